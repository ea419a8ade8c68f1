# One transaction that inserts, updates by key, or deletes a million rows.
# shellcheck shell=bash disable=SC2154

item='CREATE TABLE item (id int PRIMARY KEY, amount bigint NOT NULL,
	name text NOT NULL, at timestamptz NOT NULL);'
items="INSERT INTO item SELECT i, i, 'item ' || i, now()
	FROM generate_series(1, $(scaled 1000000)) i"

workload_insert() {
	make_tables "$item"
	catch_up insert
	drop_tables
}
before_insert() { sql blue <<<'TRUNCATE item'; }
load_insert() { sql blue <<<"$items"; }

workload_update() {
	make_tables "$item"
	sql blue <<<"$items"
	catch_up update
	drop_tables
}
load_update() { sql blue <<<'UPDATE item SET amount = amount + 1'; }

workload_delete() {
	make_tables "$item"
	catch_up delete
	drop_tables
}
before_delete() { sql blue <<<"$items"; }
load_delete() { sql blue <<<'DELETE FROM item'; }
