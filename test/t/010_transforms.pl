# Transforms in the worker: functions, what DDL does to them, and values that
# look the same whatever the settings are.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.restart_delay = 100ms
bluegreen.restart_delay_max = 500ms
CONF

sub state_is
{
	my ($state) = @_;
	return $blue->poll_query_until(
		"SELECT state = '$state' FROM bluegreen.status");
}

#
# Functions (proof 1).  The SQL interface has a snapshot of its own, so only
# the worker shows this.
#
$green->safe_psql(
	'CREATE TABLE t (id integer PRIMARY KEY, a integer, b text)');
$blue->safe_psql(<<'SQL');
CREATE FUNCTION in_sql(i integer) RETURNS integer LANGUAGE sql IMMUTABLE
	AS 'SELECT max(x) FROM unnest(ARRAY[i, i * 2]) x';
CREATE FUNCTION in_plpgsql(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	result text := '';
BEGIN
	FOR n IN 1 .. length(t) LOOP
		SELECT substr(t, n, 1) || result INTO result;
	END LOOP;
	BEGIN
		PERFORM 1 / (length(t) - 3);
	EXCEPTION WHEN division_by_zero THEN
		result := result || ' of 3';
	END;
	RETURN result;
END
$$;
CREATE FUNCTION passes(i integer) RETURNS boolean LANGUAGE sql IMMUTABLE
	AS 'SELECT count(*) = 1 FROM generate_series(i, i) x WHERE x % 7 <> 0';
CREATE TABLE t (id integer PRIMARY KEY, a integer, b varchar(10), c integer);
INSERT INTO t SELECT i, i, 'row' || i, i FROM generate_series(1, 50) i;
INSERT INTO t VALUES (60, 60, 'abc', 60);
SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 't', transform =>
	'SELECT id, in_sql(a) AS a, in_plpgsql(b) AS b FROM t WHERE passes(id)');
SQL
my $expected = <<'SQL';
SELECT id, CASE WHEN a > 0 THEN a * 2 ELSE a END,
	reverse(b) || CASE WHEN length(b) = 3 THEN ' of 3' ELSE '' END
FROM t WHERE id % 7 <> 0
SQL

sub same
{
	my ($claim) = @_;
	return compare_tables($expected, 'SELECT id, a, b FROM t', $claim);
}
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
same('functions in SQL and PL/pgSQL are called by the copy');
$blue->safe_psql(<<'SQL');
INSERT INTO t VALUES (101, -5, 'xyz', 1), (105, 1, 'filtered', 1);
BEGIN;
UPDATE t SET a = -a, b = 'def' WHERE id < 10;
SAVEPOINT a;
UPDATE t SET id = id + 200 WHERE id BETWEEN 10 AND 15;
RELEASE a;
COMMIT;
DELETE FROM t WHERE id BETWEEN 20 AND 30;
SQL
wait_for_sync('d');
same('and by the stream');
is($blue->safe_psql('SELECT errors FROM bluegreen.stat_stream'),
	'0', 'without an error');

# a function that is younger than the slot, and than WAL that it is used for
$green->safe_psql('CREATE TABLE u (id integer PRIMARY KEY, v text)');
$blue->safe_psql(<<'SQL');
CREATE TABLE u (id integer PRIMARY KEY, v integer);
CALL bluegreen.stop('d');
INSERT INTO u VALUES (1, 1);
UPDATE u SET v = 2;
INSERT INTO u VALUES (2, 2);
DELETE FROM u WHERE id = 2;
CREATE FUNCTION young(i integer) RETURNS text LANGUAGE plpgsql IMMUTABLE
	AS $$ BEGIN RETURN format('young %s', i); END $$;
SELECT bluegreen.map_table('d', 'u',
	transform => 'SELECT id, young(v) AS v FROM u');
INSERT INTO u VALUES (3, 3);
UPDATE u SET v = 4 WHERE id = 1;
CALL bluegreen.start('d');
SQL
wait_for_sync('d');
$blue->safe_psql('INSERT INTO u VALUES (4, 4)');
wait_for_sync('d');
compare_tables(
	q{SELECT id, 'young ' || v FROM u},
	'TABLE u',
	'a function that is younger than the slot');

#
# DDL between (proof 2)
#
$blue->safe_psql(<<'SQL');
CALL bluegreen.stop('d');
INSERT INTO t VALUES (301, 1, 'before', 1);
ALTER TABLE t ALTER COLUMN c TYPE text USING 'c' || c;
INSERT INTO t VALUES (302, 1, 'type', 'c');
ALTER TABLE t ADD COLUMN d integer DEFAULT 5;
UPDATE t SET d = 6, b = 'added' WHERE id = 302;
ALTER TABLE t DROP COLUMN c;
UPDATE t SET a = 3 WHERE id = 302;
ALTER TABLE t RENAME COLUMN b TO bb;
INSERT INTO t VALUES (303, 1, 'renamed', 1);
UPDATE t SET bb = bb || '.' WHERE id < 5;
ALTER TABLE t RENAME TO tt;
UPDATE tt SET a = 7 WHERE id = 303;
ALTER TABLE tt RENAME TO t;
CREATE INDEX ON t (a);
CALL bluegreen.start('d');
SQL
$expected =~ s/\bb\b/bb/g;	# its new name
wait_for_sync('d');
same('unmapped columns change their type, come and go, mapped ones are renamed');
$blue->safe_psql(<<'SQL');
ALTER TABLE t RENAME COLUMN a TO b;
UPDATE t SET b = b + 1 WHERE id < 10;
ALTER TABLE t RENAME COLUMN b TO a;
UPDATE t SET a = a + 1 WHERE id < 10;
SQL
wait_for_sync('d');
same('also while the stream runs');
is($blue->safe_psql('SELECT errors FROM bluegreen.stat_stream'),
	'0', 'without an error');

# leaf partitions in an order of their own, with dropped columns
$green->safe_psql(
	'CREATE TABLE p (id integer PRIMARY KEY, a integer, b text)');
$blue->safe_psql(<<'SQL');
CREATE TABLE p (x1 integer, id integer PRIMARY KEY, a integer, b varchar(10))
	PARTITION BY RANGE (id);
ALTER TABLE p DROP COLUMN x1;
CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100);
CREATE TABLE p_2 (b varchar(10), x2 text, x3 integer, a integer,
	id integer NOT NULL);
ALTER TABLE p_2 DROP COLUMN x2, DROP COLUMN x3;
ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES FROM (100) TO (200);
CREATE TABLE p_3 (id integer NOT NULL, b varchar(10), a integer)
	PARTITION BY RANGE (id);
CREATE TABLE p_31 (a integer, id integer NOT NULL, b varchar(10));
ALTER TABLE p_3 ATTACH PARTITION p_31 FOR VALUES FROM (200) TO (250);
ALTER TABLE p ATTACH PARTITION p_3 FOR VALUES FROM (200) TO (300);
INSERT INTO p SELECT i, i, 'row' || i FROM generate_series(0, 249, 5) i;
SELECT bluegreen.map_table('d', 'p', transform =>
	'SELECT id, in_sql(a) AS a, in_plpgsql(b) AS b FROM p');
SQL
wait_for_sync('d');
$blue->safe_psql(<<'SQL');
UPDATE p SET a = a + 1, b = 'abc' WHERE id % 3 = 0;
UPDATE p SET id = id + 101 WHERE id < 40;
DELETE FROM p WHERE id % 50 = 0;
INSERT INTO p VALUES (1, 1, 'new'), (102, 2, 'new'), (203, 3, 'new');
ALTER TABLE p ADD COLUMN c text;
UPDATE p SET c = 'c', b = 'more' WHERE id IN (1, 102, 203);
SQL
wait_for_sync('d');
compare_tables(<<'SQL', 'TABLE p', 'leaves with other columns than the root');
SELECT id, CASE WHEN a > 0 THEN a * 2 ELSE a END,
	reverse(b) || CASE WHEN length(b) = 3 THEN ' of 3' ELSE '' END
FROM p
SQL

# a change that is no longer what was compiled stops the stream
my ($status, undef, $error) =
  $blue->psql('ALTER TABLE t ALTER COLUMN a TYPE bigint');
like($error, qr/view|mapping/,
	'a column that a transform reads keeps its type');

#
# Settings (proof 25): one for each side, and none shows
#
my @settings = (
	[ q{datestyle = 'SQL, DMY'}, q{datestyle = 'German'} ],
	[ q{timezone = 'Asia/Kolkata'}, q{timezone = 'America/St_Johns'} ],
	[ q{intervalstyle = 'sql_standard'}, q{intervalstyle = 'iso_8601'} ],
	[ q{extra_float_digits = 0}, q{extra_float_digits = -10} ],
	[ q{bytea_output = 'escape'}, q{bytea_output = 'hex'} ],
	[ q{xmloption = 'document'}, q{xmloption = 'document'} ],
	[
		q{default_text_search_config = 'pg_catalog.english'},
		q{default_text_search_config = 'pg_catalog.german'}
	],
	[ q{lc_monetary = 'C.UTF-8'}, q{lc_monetary = 'C'} ],
	[ q{lc_numeric = 'C.UTF-8'}, q{lc_numeric = 'C'} ],
	[ q{lc_time = 'C.UTF-8'}, q{lc_time = 'C'} ],
	[ q{statement_timeout = 0}, q{statement_timeout = '400ms'} ],
	[ q{row_security = on}, q{default_transaction_read_only = on} ],
	[ q{search_path = 'pg_temp'}, q{search_path = 'nowhere'} ],
	[
		q{default_transaction_isolation = 'serializable'},
		q{default_transaction_isolation = 'serializable'}
	],
	[ q{default_transaction_read_only = on}, q{check_function_bodies = off} ],
	[ q{quote_all_identifiers = on}, q{array_nulls = off} ],
	[ q{client_encoding = 'LATIN1'}, q{client_encoding = 'LATIN1'} ]);
my $ddl = <<'SQL';
CREATE TYPE mix AS (ts timestamptz, iv interval, f float8, b bytea, d date);
CREATE TABLE looks (id integer PRIMARY KEY, ts timestamptz, tl timestamp,
	d date, iv interval, f float8, f4 real, b bytea, x xml, m money, mx mix,
	amx mix[], ats timestamptz[], aiv interval[], af float8[], ab bytea[],
	rts tstzrange, j jsonb, e text, txt text, txf text, txd text, tv tsvector,
	an integer[]);
SQL
$_->safe_psql($ddl) for $blue, $green;
$green->safe_psql(<<'SQL');
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql
	AS $$ BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER INSERT ON looks EXECUTE FUNCTION slow();
ALTER TABLE looks ENABLE ALWAYS TRIGGER slow;
SQL
my $row = <<'SQL';
INSERT INTO looks SELECT i, '2024-03-01 12:00:00.123456+02',
	'2024-02-03 04:05:06', '2024-02-03', '1 year -2 mons +3 days -04:05:06.7',
	0.1::float8 + 0.2, 1.1::real / 3, '\x00ff5c27', 'a <b/> c', 1234.5,
	ROW('2024-03-01 12:00+02', '-1 day 02:00', 0.1::float8 + 0.2, '\x00ff5c',
		'2024-02-03')::mix,
	ARRAY[ROW('2024-03-01 12:00+02', '-1 day 02:00', 1e-7::float8 / 3,
		'\x00ff5c', '2024-02-03')::mix],
	'{2024-03-01 12:00:00.123456+02}', '{-1 day 02:00}',
	ARRAY[0.1::float8 + 0.2], '{"\\x00ff5c"}', '[2024-03-01 12:00+02,)',
	'{"a": 1}', U&'\00e4\20ac\1F600'::text, NULL, NULL, NULL,
	'''running'':1 ''laufen'':2', '{1,NULL}'
FROM generate_series(1, 3) i;
SQL
$row =~ s/\\1F600/\\+01F600/;
$blue->safe_psql("SET xmloption = content; $row");
$blue->safe_psql(<<'SQL');
CALL bluegreen.stop('d');
SELECT bluegreen.drop_deployment('d');
SELECT bluegreen.create_deployment('e', 'green');
SELECT bluegreen.map_table('e', 'looks', transform => $$
	SELECT id, ts, tl, d, iv, f, f4, b, x, m, mx, amx, ats, aiv, af, ab, rts,
		j, e, f::text AS txf, tv, an FROM looks $$);
SQL

foreach my $setting (@settings)
{
	$blue->safe_psql(
		qq{SET default_transaction_read_only = off;
		ALTER DATABASE postgres SET $setting->[0]});
	$green->safe_psql(
		qq{SET default_transaction_read_only = off; SET statement_timeout = 0;
		ALTER ROLE postgres SET $setting->[1]});
}

# The tests' own sessions read and write as they would without all this
my $plain = <<'SQL';
SET default_transaction_read_only = off; SET statement_timeout = 0;
SET search_path = public; SET datestyle = ISO; SET timezone = UTC;
SET intervalstyle = postgres; SET extra_float_digits = 3;
SET bytea_output = hex; SET xmloption = content; SET lc_monetary = 'C';
SET default_transaction_isolation = 'read committed';
SET client_encoding = 'UTF8'; SET array_nulls = on;
SQL
$blue->safe_psql(qq{$plain CALL bluegreen.start('e')});
$blue->safe_psql(qq{$plain CALL bluegreen.wait_for_sync('e', '180 s')});

my $columns = 'id, ts, tl, d, iv, f, f4, b, x::text, m, mx, amx, ats, aiv, af,'
  . ' ab, rts, j, e, tv, an';

sub looks_same
{
	my ($claim) = @_;
	my @rows = map {
		$_->safe_psql("$plain SELECT $columns FROM looks ORDER BY id")
	} $blue, $green;
	is($rows[1], $rows[0], $claim);
	return like($rows[0], qr/^3\|/m, "$claim: and there are some");
}
looks_same('settings of database and role do not show in what is copied');
$blue->safe_psql(<<"SQL");
$plain
UPDATE looks SET id = id + 10;
@{[ $row ]}
UPDATE looks SET iv = -iv, an = '{NULL,2}' WHERE id > 10;
CALL bluegreen.wait_for_sync('e', '180 s');
SQL
looks_same('nor in what is streamed');
is( $green->safe_psql(
		"$plain SELECT string_agg(DISTINCT txf, ' ') FROM looks"),
	'0.30000000000000004',
	'nor in text that a transform makes');
is($blue->safe_psql("$plain SELECT errors FROM bluegreen.stat_stream"),
	'0', 'without an error');

done_testing();
