# Many small transactions: pgbench's own, single-row inserts, single-row updates
# over uniformly random keys.
# shellcheck shell=bash disable=SC2154

# small WORKLOAD RUN PGBENCH_OPTION...: 200,000 transactions, eight clients, the
# same for each run of the benchmark.  Blue does not wait for its disk while
# they are collected, which changes nothing in the WAL.
small() {
	PGOPTIONS='-c synchronous_commit=off' "$bindir/pgbench" -n -M prepared \
		-c 8 -j 2 -t "$(scaled $((25000 * ${GROWTH:-1})))" --random-seed="$2" \
		"${@:3}" -p "${port[blue]}" postgres >"$work/pgbench.log" 2>&1 || {
		cat "$work/pgbench.log" >&2
		exit 1
	}
}

pgbench_tables='
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int,
	filler char(84)) WITH (fillfactor = 100);
CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int,
	filler char(88)) WITH (fillfactor = 100);
CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int,
	filler char(84)) WITH (fillfactor = 100);
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int,
	mtime timestamp, filler char(22));'

# pgbench_rows FACTOR: SQL that does what pgbench -i does, at this scale
pgbench_rows() {
	cat <<-SQL
		INSERT INTO pgbench_branches SELECT i, 0 FROM generate_series(1, $1) i;
		INSERT INTO pgbench_tellers SELECT i, (i - 1) / 10 + 1, 0
			FROM generate_series(1, $1 * 10) i;
		INSERT INTO pgbench_accounts SELECT i, (i - 1) / 100000 + 1, 0, ''
			FROM generate_series(1, $1 * 100000) i;
	SQL
}

workload_catchup_pgbench() {
	make_tables "$pgbench_tables"
	sql blue <<<"$(pgbench_rows 10)"
	catch_up catchup_pgbench
	drop_tables
}
load_catchup_pgbench() { small catchup_pgbench "$1" -b tpcb-like -s 10; }

workload_single_insert() {
	make_tables "$item"
	echo "INSERT INTO item VALUES (nextval('items'), :client_id, 'a new item',
		now());" >"$work/single_insert.sql"
	sql blue <<<'CREATE SEQUENCE items'
	catch_up single_insert
	sql blue <<<'DROP SEQUENCE items'
	drop_tables
}
load_single_insert() { small single_insert "$1" -f "$work/single_insert.sql"; }

workload_single_update() {
	make_tables "$item"
	sql blue <<<"$items"
	printf '%s\n' "\\set id random(1, $(scaled 1000000))" \
		'UPDATE item SET amount = amount + 1 WHERE id = :id;' \
		>"$work/single_update.sql"
	catch_up single_update
	drop_tables
}
load_single_update() { small single_update "$1" -f "$work/single_update.sql"; }
