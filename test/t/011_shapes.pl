# What a row becomes: every way to write and to delete, keys of every kind,
# types, partitions, conflicts.  Each step is done twice: followed as it
# happens, and folded into one batch.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.restart_delay = 100ms
bluegreen.restart_delay_max = 500ms
CONF

sub both { my ($sql) = @_; $_->safe_psql($sql) for $blue, $green; return }

# Changes on blue; with "batched" the stream is away meanwhile.
sub change
{
	my ($how, $sql) = @_;
	$blue->safe_psql(q{CALL bluegreen.stop('s')}) if $how eq 'batched';
	$blue->safe_psql($sql);
	$blue->safe_psql(q{CALL bluegreen.start('s')}) if $how eq 'batched';
	wait_for_sync('s');
	return;
}

sub map_tables
{
	$blue->safe_psql(join ";\n", map { "SELECT bluegreen.map_table('s', $_)" }
		  @_);
	return;
}

sub conflicts
{
	return $green->safe_psql(q{SELECT string_agg(kind || ' ' || key, E'\n'
		ORDER BY id) FROM bluegreen.conflict});
}

#
# Tables
#
both(<<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a integer, b text);
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN words AS text[];
CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2',
	deterministic = false);

CREATE TABLE plain (id integer PRIMARY KEY, v text);
CREATE TABLE money (k numeric PRIMARY KEY, v integer);
CREATE TABLE name (k text COLLATE nocase PRIMARY KEY, v integer);
CREATE TABLE uniq (id integer PRIMARY KEY, u integer UNIQUE, v text);
CREATE TABLE types (id integer PRIMARY KEY, m mood, ma mood[], p pair,
	pa pair[], d positive, w words, ia integer[], r int4range, ra int4range[],
	mr datemultirange, j jsonb, b bytea, bits bit varying(9), bi bit(5), i interval,
	n numeric(12,3), f float8, t timestamptz, ti time, x inet, u uuid,
	c "char", ch character(5), nm name, tv tsvector, xm xml, mo money,
	pt point, bo boolean, js json);
CREATE TABLE long (id integer PRIMARY KEY, v text, n integer);
ALTER TABLE long ALTER v SET STORAGE EXTERNAL;
CREATE TABLE eu (id integer PRIMARY KEY, v text);
CREATE TABLE us (id integer PRIMARY KEY, v text);
CREATE TABLE line (product integer, customer integer, quantity integer,
	PRIMARY KEY (product, customer));
SQL
$blue->safe_psql(<<'SQL');
ALTER TABLE line REPLICA IDENTITY FULL;
CREATE TABLE person (id integer PRIMARY KEY, name text);
CREATE TABLE address (person integer PRIMARY KEY, city text);
ALTER TABLE address REPLICA IDENTITY FULL;
CREATE TABLE login (person integer PRIMARY KEY, seen integer);
CREATE TABLE task (id integer PRIMARY KEY, state text, n integer);
CREATE TABLE kept (id integer PRIMARY KEY, v text);
CREATE TABLE wide (id integer PRIMARY KEY, a text, b integer);
CREATE TABLE ident (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	v integer, twice integer GENERATED ALWAYS AS (v * 2) STORED);
CREATE TABLE part (id integer, at date, v text, PRIMARY KEY (id, at))
	PARTITION BY RANGE (at);
CREATE TABLE part_1 PARTITION OF part
	FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE part_2 (v text, gone integer, at date NOT NULL,
	id integer NOT NULL);
ALTER TABLE part_2 DROP COLUMN gone;
ALTER TABLE part ATTACH PARTITION part_2
	FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
SQL
$green->safe_psql(<<'SQL');
CREATE TABLE party (id integer PRIMARY KEY, name text NOT NULL DEFAULT '',
	city text, seen integer, note text DEFAULT 'green');
CREATE TABLE cart (customer integer PRIMARY KEY, modified timestamptz);
CREATE TABLE even (id integer PRIMARY KEY, state text, n integer);
CREATE TABLE open_task (id integer PRIMARY KEY, n integer);
CREATE TABLE kept (id integer PRIMARY KEY, v text);
CREATE TABLE wide_a (id integer PRIMARY KEY, a text);
CREATE TABLE wide_b (id integer PRIMARY KEY, b integer, note text);
CREATE TABLE orders (region text, id integer, v text,
	PRIMARY KEY (id, region));
CREATE TABLE ident (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	v integer, twice integer GENERATED ALWAYS AS (v * 2) STORED);
ALTER TABLE plain ADD COLUMN note text DEFAULT 'green',
	ADD COLUMN v2 text GENERATED ALWAYS AS (upper(v)) STORED;
CREATE TABLE part (at date, v text, id integer, PRIMARY KEY (id, at))
	PARTITION BY HASH (id);
CREATE TABLE part_a PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE part_b (id integer NOT NULL, v text, at date NOT NULL);
ALTER TABLE part ATTACH PARTITION part_b
	FOR VALUES WITH (MODULUS 2, REMAINDER 1);
SQL

sub types_row
{
	my ($id) = @_;
	return <<'SQL' =~ s/\?/$id/r;
INSERT INTO types VALUES (?, 'sad', '{ok,NULL,happy}', '(1,"a b, \"c\"")',
	ARRAY['(1,x)'::pair, NULL, '(2,)'], 7, '{a,"b,c",NULL}', '{{1,2},{3,4}}',
	'[1,5)', ARRAY['[1,2]'::int4range, 'empty'], '{[2020-01-01,2020-02-01)}',
	'{"a": [1, null]}', '\x00ff27', '10101', '10111', '1 mon -2 days 03:00:00.5',
	12.340, 0.1::float8 + 0.2, '2020-02-29 12:00:00.123456+02', '12:34:56.7',
	'10.0.0.1/8', '00000000-0000-0000-0000-00000000002a', 'x', 'ab', 'nm',
	'''a'':1 ''b'':2A', '<a>&amp;</a>', 1234.5, '(1.5,-2)', true, '{"b" : 1}');
SQL
}
my $type_columns = 'id, m, ma, p, pa, d, w, ia, r, ra, mr, j, b, bits, bi, i, n,'
  . ' f, t, ti, x, u, c, ch, nm, tv, xm, mo, pt, bo, js';

$blue->safe_psql(<<"SQL");
INSERT INTO plain SELECT i, 'row ' || i FROM generate_series(1, 100) i;
INSERT INTO money VALUES (1.0, 1), (2.50, 2), (3, 3), ('NaN', 4);
INSERT INTO name VALUES ('Ann', 1), ('bob', 2), ('Cid', 3);
INSERT INTO uniq SELECT i, i, 'row ' || i FROM generate_series(1, 20) i;
INSERT INTO types (id) VALUES (1);
@{[ types_row(2) ]}
INSERT INTO long SELECT i, repeat(md5(i::text), 200), 0
	FROM generate_series(1, 20) i;
INSERT INTO person SELECT i, 'p' || i FROM generate_series(1, 10) i;
INSERT INTO address SELECT i, 'c' || i FROM generate_series(1, 8) i;
INSERT INTO login SELECT i, i FROM generate_series(3, 12) i;
INSERT INTO task SELECT i, CASE WHEN i % 3 = 0 THEN 'open' ELSE 'done' END, i
	FROM generate_series(1, 30) i;
INSERT INTO kept SELECT i, 'row ' || i FROM generate_series(1, 10) i;
INSERT INTO wide SELECT i, 'a' || i, i FROM generate_series(1, 10) i;
INSERT INTO eu SELECT i, 'eu ' || i FROM generate_series(1, 10) i;
INSERT INTO us SELECT i, 'us ' || i FROM generate_series(1, 10) i;
INSERT INTO line SELECT i, j, 1 FROM generate_series(1, 4) i,
	generate_series(1, 4) j;
INSERT INTO ident (v) SELECT i FROM generate_series(1, 10) i;
INSERT INTO part SELECT i, date '2020-01-01' + i * 20, 'row ' || i
	FROM generate_series(1, 36) i;
SELECT bluegreen.create_deployment('s', 'green');
SQL
map_tables(
	q{'plain'},
	q{'money'},
	q{'name'},
	q{'uniq'},
	q{'types'},
	q{'long'},
	q{'ident'},
	q{'part'},
	q{'person', 'party', transform => 'SELECT id, name FROM person'},
	q{'address', 'party', on_write => 'merge', on_delete => 'ignore',
		transform => 'SELECT person AS id, city FROM address'},
	q{'login', 'party', on_write => 'patch', on_delete => 'ignore',
		transform => 'SELECT person AS id, seen FROM login'},
	q{'task', 'even', transform => 'SELECT * FROM task WHERE id % 2 = 0'},
	q{'task', 'open_task',
		transform => 'SELECT id, n FROM task WHERE n < 1000 AND n % 3 = 0'},
	q{'kept', on_delete => 'ignore'},
	q{'wide', 'wide_a', transform => 'SELECT id, a FROM wide'},
	q{'wide', 'wide_b', transform => 'SELECT id, b FROM wide'},
	q{'eu', 'orders', transform => 'SELECT ''eu''::text AS region, * FROM eu'},
	q{'us', 'orders', transform => 'SELECT ''us''::text AS region, * FROM us'},
	q{'line', 'cart', on_write => 'merge', on_delete => 'write',
		transform => 'SELECT customer, bluegreen.commit_time() AS modified
		FROM line'},
	q{'line'});
$blue->safe_psql(q{CALL bluegreen.start('s')});
wait_for_sync('s');

#
# What is the same on both sides at any time
#
sub compare_all
{
	my ($when) = @_;
	my $is = sub {
		my ($claim, $left, $right) = @_;
		return compare_tables($left, $right // $left, "$claim, $when");
	};
	$is->('mirror', 'SELECT id, v FROM plain');
	$is->('numeric keys', 'SELECT k::text, v FROM money');
	$is->('keys of a non-deterministic collation',
		'SELECT k COLLATE "C", v FROM name');
	$is->('secondary unique keys', 'TABLE uniq');
	$is->('types', "SELECT $type_columns FROM types");
	$is->('long values', 'TABLE long');
	$is->('identity and generated columns', 'SELECT id, v, twice FROM ident');
	$is->('partitions', 'SELECT id, at, v FROM part');
	$is->(
		'filter on the key',
		'SELECT * FROM task WHERE id % 2 = 0', 'TABLE even');
	$is->(
		'filter on other columns',
		'SELECT id, n FROM task WHERE n < 1000 AND n % 3 = 0',
		'TABLE open_task');
	$is->(
		'one source, first target',
		'SELECT id, a FROM wide', 'TABLE wide_a');
	$is->(
		'one source, second target',
		'SELECT id, b FROM wide', 'SELECT id, b FROM wide_b');
	$is->(
		'several sources, one target',
		q{SELECT 'eu' AS region, * FROM eu UNION ALL SELECT 'us', * FROM us},
		'SELECT region, id, v FROM orders');
	$is->('composite keys', 'SELECT product, customer, quantity FROM line');
	return;
}
compare_all('copied');
compare_tables(
	q{SELECT id, coalesce(name, ''), city, seen FROM person
	FULL JOIN address ON person = id LEFT JOIN login l ON l.person = id},
	'SELECT id, name, city, seen FROM party',
	'mirror, merge and patch of one target, copied');
compare_tables(
	'SELECT customer, max(pg_xact_commit_timestamp(xmin)) FROM line GROUP BY 1',
	'TABLE cart',
	'the newest commit time of several rows, copied');

#
# Changes
#
foreach my $how (qw(followed batched))
{
	my $base = $how eq 'followed' ? 0 : 1000;
	change($how, <<"SQL");
-- the same key many times, in one transaction and in several
INSERT INTO plain VALUES ($base + 200, 'first');
UPDATE plain SET v = 'second' WHERE id = $base + 200;
DELETE FROM plain WHERE id = $base + 200;
INSERT INTO plain VALUES ($base + 200, 'third');
UPDATE plain SET v = v || '.' WHERE id = $base + 200;
BEGIN;
DELETE FROM plain WHERE id = 50;
INSERT INTO plain VALUES (50, 'again $base');
UPDATE plain SET v = v || '.' WHERE id = 50;
INSERT INTO plain VALUES ($base + 201, 'short');
DELETE FROM plain WHERE id = $base + 201;
SAVEPOINT a;
UPDATE plain SET v = 'not seen';
ROLLBACK TO a;
COMMIT;
-- swaps through a temporary value
BEGIN;
UPDATE plain SET id = -1 WHERE id = 1;
UPDATE plain SET id = 1 WHERE id = 2;
UPDATE plain SET id = 2 WHERE id = -1;
COMMIT;
BEGIN;
UPDATE plain SET id = -id WHERE id BETWEEN 60 AND 69;
UPDATE plain SET id = 129 + id WHERE id < 0;
COMMIT;
BEGIN;
UPDATE uniq SET u = -u WHERE u IN (1, 2);
UPDATE uniq SET u = 3 + u WHERE u < 0;
COMMIT;
BEGIN;
UPDATE uniq SET u = -u WHERE u BETWEEN 11 AND 20;
UPDATE uniq SET u = 31 + u WHERE u < 0;
COMMIT;
DELETE FROM uniq WHERE id = 5;
INSERT INTO uniq VALUES (500 + $base, 5, 'took 5 over');
UPDATE uniq SET u = 500 + $base WHERE id = 500 + $base;
INSERT INTO uniq VALUES (5, 5, 'took it back');
-- numeric and text keys
UPDATE money SET k = 1.00, v = v + 1 WHERE k = 1;
UPDATE money SET k = 2.5 WHERE k = 2.50;
UPDATE money SET k = 30 + $base WHERE k = 3;
INSERT INTO money VALUES (3.000, 3);
DELETE FROM money WHERE k = 30 + $base;
UPDATE name SET k = CASE k COLLATE "C" WHEN 'Ann' THEN 'ANN' ELSE 'Ann' END
	WHERE k = 'ann';
UPDATE name SET v = v + 1 WHERE k = 'BOB';
DELETE FROM name WHERE k = 'CID';
INSERT INTO name VALUES ('cID$base', 4), ('CID', 5);
DELETE FROM name WHERE k = 'cid$base';
-- values that stay outside of the row
UPDATE long SET n = n + 1 WHERE id <= 5;
UPDATE long SET v = repeat(md5('new $base'), 200) WHERE id = 3;
UPDATE long SET n = n + 1 WHERE id = 3;
UPDATE long SET id = id + 100 WHERE id IN (6, 7);
UPDATE long SET id = id - 100, n = n + 1 WHERE id = 106;
UPDATE long SET id = 7 WHERE id = 107;
DELETE FROM long WHERE id = 8;
INSERT INTO long VALUES (8, repeat(md5('8 $base'), 200), 1);
UPDATE long SET n = n + 1 WHERE id = 8;
UPDATE long SET v = NULL WHERE id = 9;
BEGIN;
UPDATE long SET id = -10 WHERE id = 10;
UPDATE long SET id = 10 WHERE id = 11;
UPDATE long SET id = 11 WHERE id = -10;
COMMIT;
-- identity, types
INSERT INTO ident (v) VALUES ($base + 11);
UPDATE ident SET v = v + 1 WHERE id = 1;
DELETE FROM ident WHERE id = (SELECT min(id) FROM ident WHERE id > 1);
INSERT INTO ident (id, v) OVERRIDING SYSTEM VALUE VALUES ($base + 5000, 1);
@{[ types_row($base + 3) ]}
UPDATE types SET m = 'happy', ma = '{}', p = NULL, pa = NULL, w = '{z}',
	ia = NULL, r = 'empty', j = 'null', n = n + 1, i = -i WHERE id = $base + 3;
INSERT INTO types (id, p, ia) VALUES ($base + 4, '(,)', '{}');
-- rows that move between partitions
UPDATE part SET at = at + 365 WHERE id BETWEEN 1 AND 5 AND at < '2021-01-01';
UPDATE part SET at = at - 365 WHERE id BETWEEN 30 AND 35 AND at >= '2021-01-01';
UPDATE part SET id = id + 100, v = v || '!' WHERE id IN (8, 9, 25);
UPDATE part SET v = 'changed' WHERE id IN (10, 28);
DELETE FROM part WHERE id IN (11, 29);
INSERT INTO part VALUES ($base + 200, '2020-05-05', 'new'),
	($base + 201, '2021-05-05', 'new');
-- filters: in, out, over it
UPDATE task SET n = n + 1 WHERE id < 10;
UPDATE task SET id = id + 101 + $base WHERE id IN (12, 13, 14, 15);
INSERT INTO task VALUES ($base + 300, 'open', 3), ($base + 301, 'open', 4),
	($base + 302, 'open', 3000);
UPDATE task SET n = 6 WHERE id = $base + 302;
UPDATE task SET n = 3000 WHERE id = $base + 300;
DELETE FROM task WHERE id IN (20, 21, 22, 24);
-- several targets, several sources
UPDATE wide SET a = a || '.', b = b + 1 WHERE id < 5;
UPDATE wide SET id = id + 100 WHERE id = 6;
DELETE FROM wide WHERE id = 7;
INSERT INTO wide VALUES (7, 'new', $base);
UPDATE eu SET v = v || '.' WHERE id < 4;
UPDATE us SET id = id + 100 + $base WHERE id < 4;
DELETE FROM eu WHERE id = 5;
INSERT INTO us VALUES ($base + 50, 'new');
-- ignore, write
DELETE FROM kept WHERE id < 3 + $base / 500;
UPDATE kept SET v = v || '.' WHERE id > 8;
SQL
	compare_all($how);
	is(conflicts(), '', "nothing was found amiss, $how");

	change($how, <<"SQL");
DELETE FROM line WHERE customer = 1 AND product = $base / 500 + 1;
SELECT pg_sleep(0.01);
UPDATE line SET quantity = quantity + 1 WHERE customer = 2 AND product = 2;
SELECT pg_sleep(0.01);
INSERT INTO line VALUES (9, 3 + $base, 1);
SQL
	compare_tables(
		'SELECT customer, product, quantity FROM line',
		'SELECT customer, product, quantity FROM line',
		"composite keys, $how");
	is( $green->safe_psql(
			q{SELECT string_agg(customer::text, ' ' ORDER BY modified DESC)
		FROM (SELECT * FROM cart ORDER BY modified DESC LIMIT 3) c}),
		(3 + $base) . ' 2 1',
		"a delete is written as a change, $how");

	# the rows of a target that others write too
	change($how, <<"SQL");
UPDATE person SET name = name || '.' WHERE id < 4;
INSERT INTO person VALUES ($base + 21, 'new');
INSERT INTO address VALUES ($base + 21, 'new'), ($base + 22, 'no person');
UPDATE address SET city = city || '.' WHERE person = 2;
DELETE FROM address WHERE person = $base / 1000 + 4;
UPDATE login SET seen = seen + 1 WHERE person IN (3, 4, 12);
INSERT INTO login VALUES ($base + 21, 1), ($base + 23, 1);
DELETE FROM login WHERE person = $base / 1000 + 6;
DELETE FROM person WHERE id = $base / 1000 + 7;
SQL
	compare_tables(
		q{SELECT id, name FROM person},
		q{SELECT id, name FROM party WHERE name <> ''},
		"a mirror of some columns, $how");
	compare_tables(
		q{SELECT person, city FROM address a WHERE person NOT IN (4, 5,
		7, 8)},
		q{SELECT id, city FROM party p WHERE city IS NOT NULL
		AND id NOT IN (4, 5, 7, 8)},
		"a merge inserts and updates its columns only, $how");
	is( $green->safe_psql(
			q{SELECT string_agg(concat_ws(' ', id, city), ', ' ORDER BY id)
		FROM party WHERE id IN (4, 5)}),
		'4 c4, 5 c5',
		"a delete that is ignored leaves its columns, $how");
	is( $green->safe_psql(
			q{SELECT string_agg(concat_ws(' ', id, seen), ', ' ORDER BY id)
		FROM party WHERE id IN (3, 4, 6, 12, 21, 23, 1021, 1023)}),
		$how eq 'followed' ? '3 4, 4 5, 6 6, 21 1'
		: '3 5, 4 6, 6 6, 21 1, 1021 1',
		"a patch updates what is there and inserts nothing, $how");
	is( $green->safe_psql(
			q{SELECT count(*) FROM party WHERE id IN (7, 8)}),
		$how eq 'followed' ? '1' : '0',
		"the mirror's delete takes the row, $how");
}
is($green->safe_psql('SELECT count(*) FROM kept'),
	'10', 'deletes are ignored');
compare_tables(
	'TABLE kept',
	'SELECT * FROM kept WHERE id > 4',
	'but nothing else is');

#
# Columns that only the target has go with a row that moves
#
$green->safe_psql(q{UPDATE plain SET note = 'kept ' || id;
	UPDATE wide_b SET note = 'kept ' || id});
foreach my $how (qw(followed batched))
{
	my $id = $how eq 'followed' ? 20 : 21;
	change($how, <<"SQL");
UPDATE plain SET id = $id + 5000 WHERE id = $id;
UPDATE plain SET v = 'moved' WHERE id = $id + 5000;
UPDATE wide SET id = $id + 5000 WHERE id = $id - 12;
SQL
	is( $green->safe_psql(
			"SELECT note, v, v2 FROM plain WHERE id = $id + 5000"),
		"kept $id|moved|MOVED",
		"other columns go with a row that moves, $how");
	is( $green->safe_psql(
			"SELECT note FROM wide_b WHERE id = $id + 5000"),
		'kept ' . ($id - 12),
		"and so they do in the second target, $how");
}

#
# Conflicts: the source's word counts, and it is recorded
#
foreach my $how (qw(followed batched))
{
	my $base = $how eq 'followed' ? 6000 : 7000;
	my $id = $how eq 'followed' ? 30 : 33;
	$green->safe_psql(<<"SQL");
TRUNCATE bluegreen.conflict_log;
INSERT INTO plain VALUES ($base, 'stray'), ($base + 1, 'stray');
DELETE FROM plain WHERE id IN ($id, $id + 1, $id + 2);
SQL
	change($how, <<"SQL");
INSERT INTO plain VALUES ($base, 'blue');
UPDATE plain SET v = 'blue' WHERE id = $id;
DELETE FROM plain WHERE id = $id + 1;
UPDATE plain SET id = $base + 1 WHERE id = 40 + $id - 30;
SQL
	is(conflicts(), <<"END" =~ s/\n\z//r, "conflicts are recorded, $how");
insert_exists id[integer]:'$base'
update_missing id[integer]:'$id'
delete_missing id[integer]:'${\ ($id + 1)}'
insert_exists id[integer]:'${\ ($base + 1)}'
END
	is( $green->safe_psql(
			qq{SELECT incoming, existing::jsonb ->> 'v' FROM bluegreen.conflict
			WHERE kind = 'insert_exists' ORDER BY id LIMIT 1}),
		"id[integer]:'$base' v[text]:'blue'|stray",
		"with both rows, $how");
	$blue->safe_psql("UPDATE plain SET v = 'mended' WHERE id = $id + 2");
	wait_for_sync('s');
	compare_tables(
		'SELECT id, v FROM plain',
		'SELECT id, v FROM plain',
		"and both sides are the same, $how");
}
cmp_ok(
	$blue->safe_psql(
		q{SELECT conflicts FROM bluegreen.stat_table WHERE target LIKE '%plain'}
	),
	'>=', 8, 'they are counted');
is($blue->safe_psql(q{SELECT state FROM bluegreen.status}),
	'streaming', 'the stream goes on');

#
# Whichever is copied first: here a merge has made the rows that a mirror brings
#
$blue->safe_psql(<<'SQL');
CREATE TABLE visit (id integer PRIMARY KEY, city text);
ALTER TABLE visit REPLICA IDENTITY FULL;
CREATE TABLE guest (id integer PRIMARY KEY, name text);
INSERT INTO visit SELECT i, 'city ' || i FROM generate_series(1, 20) i;
INSERT INTO guest SELECT i, 'name ' || i FROM generate_series(5, 25) i;
SQL
$green->safe_psql(
	'CREATE TABLE guest (id integer PRIMARY KEY, name text, city text)');
map_tables(
	q{'visit', 'guest', on_write => 'merge', on_delete => 'ignore'});
wait_for_sync('s');
map_tables(q{'guest'});
wait_for_sync('s');
compare_tables(
	'SELECT id, name, city FROM visit FULL JOIN guest USING (id)',
	'TABLE guest', 'a mirror that is copied after a merge');

done_testing();
