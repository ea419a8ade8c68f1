# Tables without any key: inserts only, or every change under REPLICA IDENTITY
# FULL; rows that are the same, values without an equality, columns that only
# green has, partitions, conflicts, crashes.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.restart_delay = 50ms
bluegreen.restart_delay_max = 200ms
CONF

sub both { my ($sql) = @_; $_->safe_psql($sql) for $blue, $green; return }

# Changes on blue; with "batched" the stream is away meanwhile.
sub change
{
	my ($how, $sql) = @_;
	$blue->safe_psql(q{CALL bluegreen.stop('n')}) if $how eq 'batched';
	$blue->safe_psql($sql);
	$blue->safe_psql(q{CALL bluegreen.start('n')}) if $how eq 'batched';
	wait_for_sync('n');
	return;
}

sub conflicts
{
	return $green->safe_psql(q{SELECT string_agg(kind || ' ' || target || ' '
		|| key, E'\n' ORDER BY id) FROM bluegreen.conflict});
}

# Messages of a statement: (status, stderr)
sub says
{
	my ($sql) = @_;
	my ($status, undef, $error) = $blue->psql($sql);
	return $error;
}

#
# Tables
#
both(<<'SQL');
CREATE DOMAIN word AS varchar(20);
CREATE TABLE log (at timestamptz, line text);
CREATE TABLE bag (a integer, b text, n numeric, f float8, j json, p point,
	x xml, w word, ia integer[]);
CREATE TABLE swap (a integer UNIQUE, b text);
CREATE TABLE long (id integer, v text, n integer);
ALTER TABLE long ALTER v SET STORAGE EXTERNAL;
CREATE TABLE wide (a integer, b text);
CREATE TABLE filtered (a integer, b text);
CREATE TABLE part (a integer, b text) PARTITION BY LIST (a);
CREATE TABLE forgotten (id integer, v text);
CREATE TABLE dated (a integer, at timestamptz);
SQL
$blue->safe_psql(<<'SQL');
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1, 2, 3);
CREATE TABLE part_2 (b text, a integer);
ALTER TABLE part ATTACH PARTITION part_2 DEFAULT;
ALTER TABLE part_1 REPLICA IDENTITY FULL;
ALTER TABLE part_2 REPLICA IDENTITY FULL;
ALTER TABLE bag REPLICA IDENTITY FULL;
ALTER TABLE swap REPLICA IDENTITY FULL;
ALTER TABLE long REPLICA IDENTITY FULL;
ALTER TABLE wide REPLICA IDENTITY FULL;
ALTER TABLE filtered REPLICA IDENTITY FULL;
ALTER TABLE dated REPLICA IDENTITY FULL;
ALTER TABLE forgotten ADD PRIMARY KEY (id);
INSERT INTO log SELECT now(), 'line ' || i % 3 FROM generate_series(1, 100) i;
INSERT INTO bag VALUES
	(1, 'x', 1.0, 'NaN', '{"a": 1}', '(1,2)', '<a/>', 'w', '[0:1]={1,NULL}'),
	(1, 'x', 1.0, 'NaN', '{"a": 1}', '(1,2)', '<a/>', 'w', '[0:1]={1,NULL}'),
	(1, 'x', 1.00, 'NaN', '{"a": 1}', '(1,2)', '<a/>', 'w', '[0:1]={1,NULL}'),
	(1, 'x', 1.0, '-0', '{"a":1}', '(1,2)', '<a></a>', 'w', '{1,NULL}'),
	(1, 'x', 1.0, '0', '{"a":1}', '(1,2)', '<a></a>', 'w', '{1,NULL}');
INSERT INTO bag VALUES (NULL), (NULL), (2);
INSERT INTO swap VALUES (1, 'one'), (2, 'two'), (3, 'three'), (NULL, 'none'),
	(NULL, 'none');
INSERT INTO long SELECT i % 5, repeat(md5((i % 5)::text), 200), 0
	FROM generate_series(1, 20) i;
INSERT INTO wide SELECT i % 10, 'row' FROM generate_series(1, 30) i;
INSERT INTO filtered SELECT i % 10, 'row' FROM generate_series(1, 30) i;
INSERT INTO part SELECT i % 6, 'row' FROM generate_series(1, 30) i;
INSERT INTO dated SELECT i % 3, now() FROM generate_series(1, 9) i;
SQL
$green->safe_psql(<<'SQL');
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (0, 1, 2);
CREATE TABLE part_2 PARTITION OF part DEFAULT;
ALTER TABLE wide ADD COLUMN "k" integer GENERATED ALWAYS AS IDENTITY,
	ADD COLUMN g text DEFAULT 'green',
	ADD COLUMN up text GENERATED ALWAYS AS (upper(b)) STORED;
SQL
$blue->safe_psql(q{SELECT bluegreen.create_deployment('n', 'green')});

#
# What is told when it is defined
#
my $said = says(q{SELECT bluegreen.map_table('n', 'log')});
like(
	$said,
	qr/NOTICE: .*"log" is mapped to "public.log" without a key.*Only INSERT and TRUNCATE.*ALTER TABLE public.log REPLICA IDENTITY FULL;/s,
	'without FULL only inserts, and map_table says so');
like(
	says(q{SELECT bluegreen.map_table('n', 'bag')}),
	qr/NOTICE: .*"bag" is mapped .* without a key.*looks for a row that has all the old values/s,
	'under FULL every change');
like(
	says(q{SELECT bluegreen.map_table('n', 'forgotten')}),
	qr/ERROR: .*"public.forgotten" has no primary key.*key => '\{\}'/s,
	'a key that only green lacks is taken for forgotten');
like(
	says(q{SELECT bluegreen.map_table('n', 'forgotten', key => '{}')}),
	qr/NOTICE: .*Only INSERT/s,
	'unless told so');
foreach my $how (q{on_write => 'merge'}, q{on_write => 'patch'},
	q{on_delete => 'ignore'}, q{on_delete => 'write'})
{
	like(says("SELECT bluegreen.map_table('n', 'swap', $how)"),
		qr/ERROR: .*mapping to table "public.swap" needs a key/, $how);
}
like(
	says(q{SELECT bluegreen.map_table('n', 'dated',
		transform => 'SELECT bluegreen.commit_time() AS at FROM dated')}),
	qr/ERROR: .*mapping to "public.dated" needs a key.*depend on the commit/s,
	'a row must be found by something');
$blue->safe_psql(<<'SQL');
SELECT bluegreen.map_table('n', t) FROM unnest('{swap,long,wide,part}'::text[]) t;
SELECT bluegreen.map_table('n', 'filtered', transform =>
	'SELECT a + 100 AS a, b FROM filtered WHERE a % 2 = 0');
SELECT bluegreen.map_table('n', 'dated', transform =>
	'SELECT a, bluegreen.commit_time() AS at FROM dated');
SQL
is( $blue->safe_psql(q{SELECT count(*) FROM bluegreen.mapping
		WHERE key IS NULL}),
	9,
	'such mappings have no key');

sub compare_all
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	compare_tables("TABLE $_", "TABLE $_", "$_: $when")
	  foreach qw(log bag swap long part forgotten);
	compare_tables('TABLE wide', 'SELECT a, b FROM wide', "wide: $when");
	compare_tables(
		'SELECT a + 100, b FROM filtered WHERE a % 2 = 0',
		'TABLE filtered', "filtered: $when");
	compare_tables('SELECT a FROM dated', 'SELECT a FROM dated',
		"dated: $when");
	return;
}

$blue->safe_psql(q{INSERT INTO forgotten SELECT i, 'v' FROM generate_series(1, 5) i;
	CALL bluegreen.start('n');});
wait_for_sync('n');
compare_all('copied');

#
# The output plugin
#
$blue->safe_psql(
	q{SELECT pg_create_logical_replication_slot('look', 'pg_bluegreen')});
$blue->safe_psql(q{INSERT INTO wide VALUES (50, 'in'), (50, NULL);
	UPDATE wide SET a = 51 WHERE b = 'in';
	DELETE FROM wide WHERE a = 51;});
is( $blue->safe_psql(q{SELECT data FROM pg_logical_slot_get_changes('look',
		NULL, NULL, 'deployment', 'n') WHERE data ~ '^table'}),
	<<'TEXT' =~ s/\n\z//r, 'the plugin shows whole old rows');
table public.wide: INSERT: a[integer]:'50' b[text]:'in'
table public.wide: INSERT: a[integer]:'50' b[text]:null
table public.wide: UPDATE: from a[integer]:'50' b[text]:'in' to a[integer]:'51' b[text]:'in'
table public.wide: DELETE: a[integer]:'51' b[text]:'in'
TEXT
$blue->safe_psql(q{SELECT pg_drop_replication_slot('look')});
wait_for_sync('n');

#
# Changes, as they happen and in one batch
#
my $kept = $green->safe_psql(
	q{SELECT string_agg(k::text, ',' ORDER BY k) FROM wide WHERE a = 7});
foreach my $how ('streamed', 'batched')
{
	change($how, <<'SQL');
-- one of several that are the same
UPDATE bag SET b = 'one of them' WHERE ctid =
	(SELECT min(ctid) FROM bag WHERE n::text = '1.0' AND f = 'NaN');
DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a IS NULL);
INSERT INTO bag VALUES (NULL), (NULL), (9);
-- what differs in its looks only
UPDATE bag SET w = 'found' WHERE n::text = '1.00';
UPDATE bag SET w = 'minus' WHERE f::text = '-0';
UPDATE bag SET j = '{"a" : 1}' WHERE j::text = '{"a":1}' AND f::text = '0';
-- a row's way through a transaction
BEGIN;
UPDATE bag SET a = a + 1 WHERE a = 9;
UPDATE bag SET a = a + 1 WHERE a = 10;
INSERT INTO bag (a) VALUES (20), (20), (20);
UPDATE bag SET a = 21 WHERE ctid = (SELECT max(ctid) FROM bag WHERE a = 20);
DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = 20);
SAVEPOINT s;
DELETE FROM bag;
INSERT INTO bag (b) VALUES ('never');
ROLLBACK TO s;
UPDATE bag SET a = 20 WHERE a = 21;
DELETE FROM bag WHERE a = 11;
COMMIT;
-- values of a unique index go round
BEGIN;
UPDATE swap SET a = -1 WHERE a = 1;
UPDATE swap SET a = 1 WHERE a = 2;
UPDATE swap SET a = 2 WHERE a = 3;
UPDATE swap SET a = 3 WHERE a = -1;
COMMIT;
UPDATE swap SET a = 4 WHERE ctid = (SELECT min(ctid) FROM swap WHERE a IS NULL);
UPDATE swap SET a = NULL WHERE a = 4;
-- values out of line, left alone, changed and among many
UPDATE long SET n = n + 1 WHERE id < 3;
UPDATE long SET v = v || 'x' WHERE id = 3;
DELETE FROM long WHERE ctid = (SELECT min(ctid) FROM long WHERE id = 4);
UPDATE wide SET b = b || '+' WHERE a < 5;
UPDATE wide SET a = a;
-- in and out of a filter
UPDATE filtered SET a = a + 1 WHERE a < 4;
DELETE FROM filtered WHERE ctid = (SELECT min(ctid) FROM filtered);
INSERT INTO filtered VALUES (4, 'new'), (5, 'new');
-- from one partition to another, on either side
UPDATE part SET a = a + 1;
DELETE FROM part WHERE ctid = (SELECT min(ctid) FROM part_2);
INSERT INTO part VALUES (0, 'new'), (7, 'new');
UPDATE dated SET a = a + 1 WHERE a = 1;
DELETE FROM dated WHERE ctid = (SELECT min(ctid) FROM dated WHERE a = 2);
INSERT INTO log VALUES (now(), 'new'), (now(), 'new');
BEGIN; TRUNCATE long; INSERT INTO long VALUES (1, 'v', 1), (1, 'v', 1); COMMIT;
SQL
	compare_all($how);
	$blue->safe_psql(q{INSERT INTO long SELECT i % 5,
		repeat(md5((i % 5)::text), 200), 0 FROM generate_series(1, 20) i});
}
wait_for_sync('n');
is( $green->safe_psql(q{SELECT string_agg(k::text, ',' ORDER BY k)
		FROM wide WHERE a = 7}),
	$kept,
	'columns that only green has are kept by an update');
is(conflicts(), '', 'every row was found');

#
# Many at once
#
my $careful =
  $blue->safe_psql('SELECT sum(careful_batches) FROM bluegreen.stat_stream');
$blue->safe_psql(q{INSERT INTO bag (a, b) SELECT i % 7000, 'many'
		FROM generate_series(1, 20000) i;
	UPDATE bag SET a = a + 1 WHERE b = 'many';
	UPDATE bag SET b = NULL WHERE b = 'many' AND a % 2 = 0;
	DELETE FROM bag WHERE a % 3 = 0;});
wait_for_sync('n');
compare_tables('TABLE bag', 'TABLE bag', 'many rows, some the same');
is( $blue->safe_psql(
		'SELECT sum(careful_batches) FROM bluegreen.stat_stream'),
	$careful,
	'none of them one by one');

#
# Conflicts
#
$green->safe_psql(q{DELETE FROM swap WHERE a = 1 OR a = 2});
change('streamed', q{UPDATE swap SET b = 'new' WHERE a = 1;
	DELETE FROM swap WHERE a = 2;});
is(conflicts(), <<'TEXT' =~ s/\n\z//r, 'rows that were missing are recorded');
update_missing public.swap a[integer]:'1' b[text]:'three'
delete_missing public.swap a[integer]:'2' b[text]:'one'
TEXT
compare_all('after conflicts');

#
# Without FULL an update stops the stream, and goes on as told
#
change('streamed', q{INSERT INTO log VALUES (NULL, 'before')});
my $lines = $green->safe_psql('SELECT count(*) FROM log');
$blue->safe_psql(q{UPDATE log SET line = 'changed' WHERE line = 'before';
	INSERT INTO log VALUES (NULL, 'after');});
my (undef, undef, $error) =
  $blue->psql(q{CALL bluegreen.wait_for_sync('n', '180 s')});
like(
	$error,
	qr/UPDATE of table "log" cannot be applied to "public.log", which is mapped without a key/,
	'an update without the old row stops the stream');
is( $green->safe_psql('SELECT count(*) FROM log'),
	$lines,
	'and nothing behind it is written');
like(
	$blue->safe_psql('SELECT error_hint FROM bluegreen.stat_stream'),
	qr/ALTER TABLE public\.log REPLICA IDENTITY FULL;/,
	'the hint has the statement');
$blue->safe_psql(q{ALTER TABLE log REPLICA IDENTITY FULL;
	UPDATE log SET line = 'again' WHERE line = 'after';});
$green->safe_psql(q{UPDATE log SET line = 'changed' WHERE line = 'before'});
$blue->safe_psql(q{SELECT bluegreen.skip('n', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('n');
compare_all('after the table got REPLICA IDENTITY FULL');
$blue->safe_psql(q{ALTER TABLE log REPLICA IDENTITY NOTHING;
	DELETE FROM log WHERE line = 'again';});
(undef, undef, $error) =
  $blue->psql(q{CALL bluegreen.wait_for_sync('n', '180 s')});
like($error, qr/DELETE of table "log" cannot be applied/, 'a delete as well');
$green->safe_psql(q{DELETE FROM log WHERE line = 'again'});
$blue->safe_psql(q{SELECT bluegreen.skip('n', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('n');
compare_all('after skip');

#
# Exactly once, in spite of crashes, while tables are copied and after it
#
both('CREATE TABLE busy (client integer, n integer, v text)');
$blue->safe_psql(q{ALTER TABLE busy REPLICA IDENTITY FULL;
	INSERT INTO busy SELECT 0, i % 100, 'old' FROM generate_series(1, 20000) i;
	SELECT bluegreen.map_table('n', 'busy');});
my $bench = pgbench_start(
	$blue,
	clients => 3,
	rate => 200,
	script => <<'SQL');
\set n random(1, 20)
BEGIN;
INSERT INTO busy VALUES (:client_id, :n, 'new');
INSERT INTO log VALUES (NULL, :client_id);
UPDATE busy SET v = v || :n WHERE ctid =
	(SELECT min(ctid) FROM busy WHERE client = :client_id AND n = :n);
DELETE FROM busy WHERE ctid =
	(SELECT max(ctid) FROM busy WHERE client = :client_id AND n < :n);
COMMIT;
SQL
foreach my $kill (1 .. 2)
{
	kill9_worker($green, 'bluegreen n');
	my $at = $green->safe_psql('SELECT count(*) FROM log');
	$green->poll_query_until("SELECT count(*) > $at FROM log");
}
pgbench_stop($bench);
wait_for_sync('n');
compare_all('after crashes of green');
compare_tables('TABLE busy', 'TABLE busy', 'busy: after crashes of green');
is(conflicts() =~ tr/\n//, 1, 'no row was missing');

done_testing();
