# One table, unchanged: what is there is copied, what comes follows.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();
my $ddl = 'CREATE TABLE t (id int PRIMARY KEY, v text)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{INSERT INTO t SELECT i, 'before ' || i
	FROM generate_series(1, 1000) i});

$blue->safe_psql(q{SELECT bluegreen.create_deployment('smoke', 'green');
SELECT bluegreen.map_table('smoke', 't');});
my $bench = pgbench_start(
	$blue,
	clients => 2,
	rate => 200,
	script => <<'SQL');
\set id random(1, 2000)
INSERT INTO t VALUES (:id, 'during') ON CONFLICT (id)
	DO UPDATE SET v = t.v || '.';
DELETE FROM t WHERE id = :id + 7;
SQL
$blue->safe_psql(q{CALL bluegreen.start('smoke')});
wait_for_sync('smoke');
ok(pgbench_stop($bench), 'the application runs on');
wait_for_sync('smoke');
compare_tables('TABLE t', 'TABLE t', 'both sides have the same rows');

$blue->safe_psql(q{INSERT INTO t VALUES (5000, 'new');
UPDATE t SET v = 'changed' WHERE id <= 10;
DELETE FROM t WHERE id BETWEEN 11 AND 20;});
wait_for_sync('smoke');
compare_tables('TABLE t', 'TABLE t', 'insert, update and delete follow');

$blue->restart;
$blue->safe_psql(q{INSERT INTO t VALUES (5001, 'after a restart')});
wait_for_sync('smoke');
compare_tables('TABLE t', 'TABLE t', 'the stream comes back after a restart');

$green->kill9;
$blue->safe_psql(q{INSERT INTO t VALUES (5002, 'while green is away')});
$green->start;
wait_for_sync('smoke');
compare_tables('TABLE t', 'TABLE t', 'and after a crash of green');

done_testing();
