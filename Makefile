# pg_bluegreen: a PGXS module.
#
#	make, make install, make installcheck	PG_CONFIG= chooses the server;
#		installcheck wants one that runs with test/cluster.conf
#	make test	every test on temporary clusters; TESTS="names" for some
#	make bench	how fast it is, beside others; WORKLOADS="names" for some
#		(what clients notice of a switchover: bench/switchover)
#	make demo	the shop moves while its customers keep buying
#
# test, bench and demo bring what they need (test/bootstrap) and
# install nothing into the server: they use a private copy of it.

EXTENSION = pg_bluegreen
MODULE_big = pg_bluegreen
DATA = $(wildcard $(EXTENSION)--*.sql)
OBJS = $(patsubst %.c,%.o,$(wildcard src/*.c src/*/*.c))
SRC_HEADERS = $(wildcard src/*.h src/*/*.h)

# definition creates the extension that the other files use
SQL_TESTS := $(sort $(patsubst sql/%.sql,%,$(wildcard sql/*.sql)))
REGRESS := $(filter definition,$(SQL_TESTS)) $(filter-out definition,$(SQL_TESTS))
ISOLATION := $(sort $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test
TAP_TESTS = 1
PROVE_TESTS = $(sort $(wildcard test/t/*.pl))
PROVE_FLAGS = -I $(CURDIR)/test/perl
EXTRA_CLEAN = output_iso tmp_check

PG_CPPFLAGS = -I$(srcdir)/src -I$(shell $(PG_CONFIG) --includedir)
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wno-cast-function-type
SHLIB_LINK = -lpq

all:

test: NEEDS = test
test: bootstrap
	@test/run $(TESTS)

demo: bootstrap
	@demo/run

bench:
	@test/bootstrap bench
	@bench/run $(WORKLOADS)

bootstrap:
	@test/bootstrap $(NEEDS)

.PHONY: all test demo bench bootstrap

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
$(OBJS) $(OBJS:.o=.bc): $(SRC_HEADERS)
else
all install installcheck clean:
	@echo "$@: $(PG_CONFIG) has no server development files" >&2; exit 1
endif
