# Functions that the benchmarks share (bash): pairs of temporary clusters, and
# contenders that make green follow blue.
#
# A contender NAME has its own pair of clusters, NAME.blue and NAME.green, so
# that nobody decodes another's WAL; whoever is not measured is idle.  It is a
# function contender_NAME, which is called when the tables of the benchmark
# exist on both sides, and returns when all of them follow.
#
# Settings that matter for the numbers are in bench.conf, and printed.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../test/lib.sh"

BENCH=$TOP/bench
declare -A port=()			# of each cluster
export PGUSER=postgres PGHOST=127.0.0.1

# bench_begin: build, and install into a copy of the server; $work and $bindir
bench_begin() {
	work_begin '' || exit 1
	work=$REPLY
	trap 'trap - EXIT; work_end' EXIT
	trap 'exit 1' INT TERM HUP
	find_pg_config '' "${PG_CONFIG:-}" || exit 1
	echo "# $("$REPLY" --version), $(nproc) processors," \
		"load $(cut -d' ' -f1-3 </proc/loadavg)"
	private_install '' "$REPLY" "$work" || exit 1
	bindir=$REPLY
}

# server NAME PROGRAM...: pg_ctl and the like, on a cluster
server() {
	local dir=$work/clusters/$1
	run_server '' "$bindir/$2" -D "$dir/data" -l "$dir/log" -w -s "${@:3}" \
		</dev/null
}

# cluster NAME: make and start one, with the settings of bench.conf
cluster() {
	free_port
	port[$1]=$REPLY
	cluster_start '' "$bindir" "$work/clusters/$1" "$REPLY" || exit 1
	cat "$BENCH/bench.conf" >>"$work/clusters/$1/data/postgresql.conf"
	server "$1" pg_ctl -m fast restart || exit 1
}

# sql NAME: run the SQL of standard input on a cluster; prints rows
sql() {
	"$bindir/psql" -XAtq -v ON_ERROR_STOP=1 -p "${port[$1]}" -d postgres -f -
}

# until_true NAME SQL: wait until a query prints t
until_true() {
	local i
	for ((i = 0; i < 1200; i++)); do
		[ "$(sql "$1" <<<"$2")" != t ] || return 0
		sleep 0.1
	done
	echo "never true on $1: $2" >&2
	exit 1
}

# pair NAME TABLES BLUE_SQL: the clusters of a contender with the benchmark's
# tables on both sides and, on blue, what is in them
pair() {
	local side
	for side in blue green; do
		cluster "$1.$side"
		sql "$1.$side" <<<"$2"
	done
	sql "$1.blue" <<<"$3"
	"contender_$1" "$1.blue" "$1.green"
}

# tables NAME: the tables of a cluster's benchmark
tables() {
	sql "$1" <<<"SELECT relname FROM pg_class WHERE relkind = 'r'
		AND relnamespace = 'public'::regnamespace ORDER BY 1"
}

contender_bluegreen() {
	local table
	sql "$2" <<<'CREATE EXTENSION pg_bluegreen'
	sql "$1" <<SQL
CREATE EXTENSION pg_bluegreen;
CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen
	OPTIONS (host '127.0.0.1', port '${port[$2]}', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER green
	OPTIONS (user 'postgres', password 'not asked for');
SELECT FROM bluegreen.create_deployment('bench', 'green');
SQL
	for table in $(tables "$1"); do
		sql "$1" <<<"SELECT FROM bluegreen.map_table('bench', '$table')"
	done
	sql "$1" <<<"CALL bluegreen.start('bench')"
	sql "$1" <<<"CALL bluegreen.wait_for_sync('bench', '10 minutes')"
}

# Native logical replication; its commits on green are made as durable as ours
# before they are visible (a subscription's default is not to wait).
contender_native() {
	sql "$1" <<<'CREATE PUBLICATION bench FOR ALL TABLES'
	sql "$2" <<SQL || exit 1
CREATE SUBSCRIPTION bench
	CONNECTION 'host=127.0.0.1 port=${port[$1]} user=postgres dbname=postgres'
	PUBLICATION bench WITH (synchronous_commit = on)
SQL
	until_true "$2" "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
}
