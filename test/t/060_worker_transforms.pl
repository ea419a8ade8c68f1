# What only the worker can show of transforms: functions run there without a
# portal's snapshot, and a replica identity may be away for a moment.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();
$blue->safe_psql(<<'SQL');
CREATE TABLE t (id int PRIMARY KEY, n int, ts timestamp, i interval);
CREATE TABLE named (id int PRIMARY KEY, v text);
INSERT INTO named VALUES (1, 'one');
CREATE FUNCTION in_sql(int) RETURNS int IMMUTABLE LANGUAGE sql
	AS 'SELECT max(x) FROM generate_series($1, $1 * 2) x';
CREATE FUNCTION in_plpgsql(int) RETURNS text IMMUTABLE LANGUAGE plpgsql
	AS 'BEGIN RETURN (SELECT string_agg(x::text, ''+'')
		FROM generate_series(1, $1) x); END';
SQL
$green->safe_psql(<<'SQL');
CREATE TABLE t (id int PRIMARY KEY, s int, p text, b boolean);
CREATE TABLE named (id int PRIMARY KEY, v text);
SQL

# OVERLAPS of these types is a function in SQL of pg_catalog; so long an
# argument keeps it from being inlined
my $long = 'ts' . ' + i' x 14;
$blue->safe_psql(qq{SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 'named');
SELECT bluegreen.map_table('d', 't', transform =>
	'SELECT id, in_sql(n) AS s, in_plpgsql(n) AS p,
		($long, i) OVERLAPS (ts, i) AS b FROM t')});
my $row = "'2024-01-01', '1 hour'";
$blue->safe_psql("INSERT INTO t VALUES (1, 3, $row)");
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
is($green->safe_psql('TABLE t'), '1|6|1+2+3|f', 'functions in the copy');
$blue->safe_psql("INSERT INTO t VALUES (2, 4, $row);
	UPDATE t SET n = 2 WHERE id = 1");
wait_for_sync('d');
is($green->safe_psql('SELECT * FROM t ORDER BY id'),
	"1|4|1+2|f\n2|8|1+2+3+4|f", 'functions in the stream');

$blue->safe_psql("SELECT bluegreen.unmap_table('d', 't');
	SELECT bluegreen.map_table('d', 't', transform =>
		'SELECT id, ($long, i) OVERLAPS (ts, i) AS b FROM t',
		on_write => 'merge')");
wait_for_sync('d');
$blue->safe_psql("INSERT INTO t VALUES (3, 3, $row)");
wait_for_sync('d');
is($green->safe_psql('SELECT * FROM t WHERE id = 3'), '3|||f',
	'a function of pg_catalog in SQL, alone');

# an UPDATE of the key that does not say which row it was must not get through
my ($status, undef, $error) =
  $blue->psql('ALTER TABLE named REPLICA IDENTITY NOTHING');
like($error, qr/replica identity of table "named" does not suffice/,
	'the replica identity that is needed cannot be taken away');
$blue->safe_psql(q{BEGIN;
	ALTER TABLE named REPLICA IDENTITY NOTHING;
	UPDATE named SET id = 2;
	ALTER TABLE named REPLICA IDENTITY DEFAULT;
	COMMIT});
ok($blue->poll_query_until(q{SELECT state = 'error'
		AND error_message LIKE 'UPDATE of table "named"%'
		FROM bluegreen.stat_stream}),
	'an UPDATE while it was away stops the stream');
is($green->safe_psql('TABLE named'), '1|one', 'and nothing went wrong unseen');
$green->safe_psql('UPDATE named SET id = 2');
$blue->safe_psql(q{SELECT bluegreen.skip('d', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('d');
$blue->safe_psql(q{UPDATE named SET id = 3, v = 'three'});
wait_for_sync('d');
compare_tables('TABLE named', 'TABLE named',
	'repaired by hand and left out: the stream goes on');

done_testing();
