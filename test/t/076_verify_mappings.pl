# verify() and repair() for every kind of mapping: computed, filtered and split
# tables, merges and patches, keys of several columns, computed ones and ones
# that a collation takes for equal, wide and partitioned tables, columns that
# depend on the commit; with an owner and a role on green that are no
# superusers.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();

$blue->safe_psql(<<'SQL');
CREATE ROLE owner LOGIN REPLICATION;
GRANT USAGE ON FOREIGN SERVER green TO owner;
GRANT CREATE ON SCHEMA public TO owner;
CREATE USER MAPPING FOR owner SERVER green
	OPTIONS (user 'apply', password 'not asked for', password_required 'false');
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO owner;
SQL
$green->safe_psql(q{CREATE ROLE apply LOGIN; CREATE ROLE keeper;
	GRANT CREATE ON SCHEMA public TO keeper});

sub on_blue
{
	my ($sql) = @_;
	return $blue->safe_psql($sql, user => 'owner');
}

my $wide = join ', ', map { "w$_ integer DEFAULT $_" } 1 .. 150;
on_blue(<<"SQL");
CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2',
	deterministic = false);
CREATE TABLE customer (id integer PRIMARY KEY, name text, city text, note text,
	active boolean DEFAULT true);
CREATE TABLE dated (id integer PRIMARY KEY, v text);
CREATE TABLE pair (a integer, b uuid, n numeric, PRIMARY KEY (a, b));
CREATE TABLE number (n numeric PRIMARY KEY, v text);
CREATE TABLE word (w text COLLATE ci PRIMARY KEY, v text);
CREATE TABLE code (c varchar(20) PRIMARY KEY, v text);
CREATE TABLE wide (id integer PRIMARY KEY, $wide);
CREATE TABLE part (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (500);
CREATE TABLE part_2 (v text, id integer NOT NULL);
ALTER TABLE part ATTACH PARTITION part_2 DEFAULT;
CREATE DOMAIN whole AS integer CHECK (VALUE > 0);
CREATE TABLE domained (id whole PRIMARY KEY, v text);
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE feeling (m mood PRIMARY KEY, v text);
INSERT INTO domained SELECT i, 'v' FROM generate_series(1, 30000) i;
INSERT INTO feeling VALUES ('sad', 'v'), ('glad', 'v');
CREATE TABLE extra (customer integer PRIMARY KEY, phone text);
CREATE TABLE wide_bag (id integer, $wide);
ALTER TABLE customer REPLICA IDENTITY FULL;
INSERT INTO customer SELECT i, 'name ' || i, nullif('city ' || i % 7, 'city 3'),
	CASE WHEN i % 5 = 0 THEN repeat('long ', 2000) END, i % 10 <> 0
	FROM generate_series(1, 1000) i;
INSERT INTO dated SELECT i, 'v' FROM generate_series(1, 100) i;
INSERT INTO pair SELECT i % 10, md5(i::text)::uuid, i / 10.0
	FROM generate_series(1, 1000) i;
INSERT INTO number SELECT i / 10.0, i FROM generate_series(1, 100) i;
INSERT INTO word SELECT 'wort' || i, 'v' FROM generate_series(1, 20000) i;
INSERT INTO code SELECT 'code ' || i, 'v' FROM generate_series(1, 20000) i;
INSERT INTO wide (id) SELECT generate_series(1, 100);
INSERT INTO part SELECT i, 'v' FROM generate_series(1, 1000) i;
INSERT INTO extra SELECT i, 'phone ' || i FROM generate_series(1, 1200, 2) i;
INSERT INTO wide_bag (id) SELECT i % 50 FROM generate_series(1, 100) i;
SQL
$green->safe_psql(<<"SQL");
SET ROLE keeper;
CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2',
	deterministic = false);
CREATE TABLE person (id bigint PRIMARY KEY, name text, town text, phone text,
	seen timestamptz DEFAULT now());
CREATE TABLE active (id integer PRIMARY KEY, upper_name text);
CREATE TABLE passive (key text PRIMARY KEY, name text, note text);
CREATE TABLE dated (id integer PRIMARY KEY, v text, at timestamptz, lsn pg_lsn);
CREATE TABLE pair (b uuid, n numeric, a integer, PRIMARY KEY (b, a));
CREATE TABLE number (n numeric PRIMARY KEY, v text);
CREATE TABLE word (w text COLLATE ci PRIMARY KEY, v text);
CREATE TABLE code (c varchar(20) PRIMARY KEY, v text);
CREATE TABLE wide (id integer PRIMARY KEY, $wide);
CREATE TABLE part (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (300);
CREATE TABLE part_2 PARTITION OF part DEFAULT;
CREATE TABLE wide_bag (id integer, $wide);
CREATE TABLE domained (id integer PRIMARY KEY, v text);
CREATE TABLE bag (id integer);
RESET ROLE;
CREATE SCHEMA elsewhere;
GRANT USAGE ON SCHEMA elsewhere TO keeper, apply;
CREATE TYPE elsewhere.temper AS ENUM ('glad', 'sad');
SET ROLE keeper;
CREATE TABLE feeling (m elsewhere.temper PRIMARY KEY, v text);
RESET ROLE;
SELECT bluegreen.grant_apply('apply', 'person', 'active', 'passive', 'dated',
	'pair', 'number', 'word', 'code', 'wide', 'part', 'wide_bag',
	'domained', 'feeling', 'bag');
SQL
on_blue(<<'SQL');
SELECT bluegreen.create_deployment('m', 'green');
SELECT bluegreen.map_table('m', 'customer', 'person',
	'SELECT id, name, city AS town FROM customer', on_write => 'merge');
SELECT bluegreen.map_table('m', 'extra', 'person',
	'SELECT customer AS id, phone FROM extra', on_write => 'patch',
	on_delete => 'ignore');
SELECT bluegreen.map_table('m', 'customer', 'active',
	'SELECT id, upper(name) AS upper_name FROM customer WHERE id % 3 = 0');
SELECT bluegreen.map_table('m', 'customer', 'passive',
	$$SELECT 'k' || id::text AS key, name, note FROM customer WHERE id % 3 = 1$$);
SELECT bluegreen.map_table('m', 'dated', transform =>
	'SELECT id, v, bluegreen.commit_time() AS at, bluegreen.commit_lsn() AS lsn FROM dated');
SELECT bluegreen.map_table('m', 'pair');
SELECT bluegreen.map_table('m', 'number');
SELECT bluegreen.map_table('m', 'word');
SELECT bluegreen.map_table('m', 'code');
SELECT bluegreen.map_table('m', 'wide');
SELECT bluegreen.map_table('m', 'part');
SELECT bluegreen.map_table('m', 'domained');
SELECT bluegreen.map_table('m', 'feeling');
ALTER TABLE wide_bag REPLICA IDENTITY FULL;
SELECT bluegreen.map_table('m', 'wide_bag');
CALL bluegreen.start('m');
SQL
on_blue(q{CALL bluegreen.wait_for_sync('m', '180 s')});

# CALL verify(): what differs
sub differences
{
	my ($status, undef, $said) = $blue->psql(q{CALL bluegreen.verify('m')},
		user => 'owner');
	is($status, 0, 'verify()') or diag($said);
	is($said =~ /not compared|could not/ ? $said : '', '', 'everything is compared');
	return $blue->safe_psql(q{SELECT target || ' ' || kind || ' ' || key::text
		FROM bluegreen.difference WHERE repaired_at IS NULL
		ORDER BY target COLLATE "C", kind, key});
}

is(differences(), '', 'a copied pair has no differences');
is( $blue->safe_psql(q{SELECT string_agg(target || CASE WHEN ranges > 1
			THEN ' in ranges' ELSE '' END, ', ' ORDER BY target)
		FROM bluegreen.verification WHERE rows = 20000}),
	'public.code in ranges, public.word',
	'text is read in ranges where both sides order it by its bytes');
on_blue(<<'SQL');
UPDATE customer SET name = name || '!', city = NULL WHERE id % 4 = 0;
UPDATE customer SET active = NOT active;
DELETE FROM customer WHERE id > 950;
UPDATE extra SET phone = phone || '0' WHERE customer % 7 = 0;
UPDATE number SET n = n + 1000 WHERE n < 1;
UPDATE part SET id = id + 2000 WHERE id < 100;
UPDATE dated SET v = 'new' WHERE id < 50;
DELETE FROM wide_bag WHERE id = 7;
SQL
on_blue(q{CALL bluegreen.wait_for_sync('m', '180 s')});
is(differences(), '', 'nor has one that was streamed to');

#
# What is wrong is found, what is not a mapping's business is not
#
$green->safe_psql(<<'SQL');
SET session_replication_role = replica;
-- columns and rows that no mapping carries
UPDATE person SET seen = 'epoch' WHERE id < 100;
INSERT INTO person VALUES (5000, 'green only');
UPDATE dated SET at = 'epoch', lsn = '0/1' WHERE id = 1;
-- and those that they do
UPDATE person SET town = 'Town' WHERE id = 10;
UPDATE person SET phone = NULL WHERE id = 11;
DELETE FROM person WHERE id = 12;
INSERT INTO active VALUES (1, 'NOT OF THREE');
DELETE FROM active WHERE id = 6;
UPDATE passive SET name = name || ' ' WHERE key = 'k7';
UPDATE passive SET note = note || '.' WHERE key = 'k10';
UPDATE passive SET key = 'k' || 4000 WHERE key = 'k13';
UPDATE dated SET v = 'old' WHERE id = 2;
UPDATE pair SET n = 0.10 WHERE n = 0.1;
UPDATE number SET n = 5.00 WHERE n = 5.0;
UPDATE word SET w = 'WORT5' WHERE w = 'wort5';
UPDATE word SET v = 'w' WHERE w = 'wort6';
UPDATE code SET v = NULL WHERE c = 'code 9';
INSERT INTO code VALUES ('code "x\', ''), ('code 5 ', NULL);
UPDATE wide SET w150 = NULL WHERE id = 3;
UPDATE domained SET v = 'w' WHERE id = 9000;
UPDATE feeling SET v = 'w' WHERE m = 'sad';
UPDATE part SET v = 'V' WHERE id IN (200, 400);
UPDATE wide_bag SET w77 = 0 WHERE ctid = (SELECT min(ctid) FROM wide_bag);
SQL
my $key = $green->safe_psql(q{SELECT format('{%s,%s}', a, b) FROM pair
	WHERE n = 0.1});
my $swapped = $green->safe_psql(q{SELECT format('{%s,%s}', b, a) FROM pair
	WHERE n = 0.1});
my $expected = <<"END";
public.active extra {1}
public.active missing {6}
public.code different {"code 9"}
public.code extra {"code \\"x\\\\"}
public.code extra {"code 5 "}
public.dated different {2}
public.domained different {9000}
public.feeling different {sad}
public.number different {5.0000000000000000}
public.pair different KEY
public.part different {200}
public.part different {400}
public.passive different {k10}
public.passive different {k7}
public.passive extra {k4000}
public.passive missing {k13}
public.person different {10}
public.person different {11}
public.person missing {12}
public.person missing {12}
public.wide different {3}
public.wide_bag extra {hash}
public.wide_bag missing {hash}
public.word different {wort5}
public.word different {wort6}
END
my $found = differences() . "\n";
$found =~ s/\{[0-9a-f-]{36}\}/{hash}/g;
$found =~ s/\Q$key\E|\Q$swapped\E/KEY/;
$expected =~ s/public.person missing \{12\}\n//;
is($found, $expected, 'what is wrong is found, and nothing else');

like(
	($blue->psql(q{SELECT bluegreen.repair('m')}, user => 'owner'))[1],
	qr/^24$/,
	'repair() writes as many rows');
on_blue(q{CALL bluegreen.wait_for_sync('m', '180 s')});
is(differences(), '', 'and all of them are right again');
is( $green->safe_psql(q{SELECT n FROM number WHERE n = 5}),
	'5.0000000000000000', 'a key that looked different, too');
is($green->safe_psql('SELECT name FROM person WHERE id = 5000'),
	'green only', 'rows of green alone were left alone');
is( $green->safe_psql(q{SELECT count(*) FROM person WHERE seen = 'epoch'}),
	98, 'and columns, but for the row that was gone and one that was deleted');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'without conflicts');

# one table
$green->safe_psql(q{SET session_replication_role = replica;
	DELETE FROM word WHERE w = 'wort9'; DELETE FROM code WHERE c = 'code 9'});
my (undef, undef, $said) =
  $blue->psql(q{CALL bluegreen.verify('m', 'word')}, user => 'owner');
like($said, qr/^.*"public.word": \d+ rows compared, 1 differences[^"]*$/s,
	'one table can be verified alone');
is( on_blue(q{SELECT bluegreen.repair('m', 'word')}), 1, 'and repaired');
my ($status, undef, $error) =
  $blue->psql(q{CALL bluegreen.verify('m', 'pg_class')}, user => 'owner');
like($error, qr/is not mapped in deployment "m"/, 'a mapped one');

# keyless tables with one target: whose row is it?
like($blue->safe_psql('SELECT verified FROM bluegreen.status'),
	qr{^[0-9A-F]+/}, 'status shows a position when all was compared');
on_blue(<<'SQL');
CREATE TABLE bag_1 (id integer);
CREATE TABLE bag_2 (id integer);
ALTER TABLE bag_1 REPLICA IDENTITY FULL;
ALTER TABLE bag_2 REPLICA IDENTITY FULL;
INSERT INTO bag_1 VALUES (1), (2);
INSERT INTO bag_2 VALUES (3);
SELECT bluegreen.map_table('m', 'bag_1', 'bag');
SELECT bluegreen.map_table('m', 'bag_2', 'bag');
SQL
on_blue(q{CALL bluegreen.wait_for_sync('m', '180 s')});
(undef, undef, $said) =
  $blue->psql(q{CALL bluegreen.verify('m')}, user => 'owner');
is(() = $said =~ /table "public.bag" was not compared: it has no key, and other mappings write its target/g,
	2, 'keyless tables that share a target are not compared');
is( $blue->safe_psql(q{SELECT count(*) FROM bluegreen.difference
		WHERE target = 'public.bag'}), 0, 'nor do they differ');
like($blue->safe_psql('SELECT verified FROM bluegreen.status'),
	qr/^incomplete /, 'and status says that something was left out');

done_testing();
