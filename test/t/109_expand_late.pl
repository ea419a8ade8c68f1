# What is found out late: other people's DDL between plan and step, things that
# cannot come along with a column, and whose code runs with whose rights.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one', <<'CONF');
bluegreen.lock_timeout = '200ms'
CONF
my $version = $node->safe_psql('SHOW server_version_num');
$node->safe_psql(<<'SQL');
CREATE EXTENSION pg_bluegreen;
CREATE SCHEMA app;
CREATE ROLE mallory LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE intern LOGIN;
GRANT USAGE, CREATE ON SCHEMA app TO mallory;
GRANT USAGE ON SCHEMA app TO bob, intern;
SQL

sub sql { return $node->safe_psql("SET search_path = app; $_[0]") }
sub calls { return "CALL bluegreen.$_[0]('$_[1]')" }

sub change
{
	my ($name, @operations) = @_;
	my $list = join ', ', @operations;
	sql("SELECT bluegreen.create_change('$name', \$\$[$list]\$\$)");
	return;
}

sub expand
{
	my ($name) = @_;
	return $node->safe_psql(calls('expand', $name)
		  . "; CALL bluegreen.wait_for_backfill('$name', '180 s')",
		timeout => 200);
}

sub contract { return $node->safe_psql(calls('contract', $_[0])) }

# the change fails before any row is filled, and leaves nothing behind
sub refused
{
	my ($name, $pattern, $title) = @_;
	my (undef, undef, $error) = $node->psql(calls('expand', $name)
		  . "; CALL bluegreen.wait_for_backfill('$name', '180 s')");
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($error, $pattern, $title);
	is( $node->safe_psql(qq{SELECT state FROM bluegreen.change
			WHERE change = '$name'}),
		'expanding', "... at once");
	$node->safe_psql(calls('undo', $name));
	return;
}

sub alter
{
	my ($table, $column, $type, $up, $down) = @_;
	$up //= "${column}::$type";
	$down //= "${column}::text";
	return qq({"alter_column": {"table": "$table", "column": "$column",
		"type": "$type", "up": "$up", "down": "$down"}});
}

#
# What others do while an index is built: tables, roles and grants go, and
# partitions come and go
#
sql(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY);
CREATE TABLE scratch (id int);
CREATE TABLE other (id int, x int, y int DEFAULT 1);
CREATE TABLE users (id int PRIMARY KEY, name text, password text);
GRANT SELECT ON users TO bob, intern;
GRANT SELECT (id) ON other TO intern;
CREATE TABLE part (id int, v text, year int) PARTITION BY LIST (year);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
CREATE TABLE part_3 PARTITION OF part FOR VALUES IN (3);
CREATE TABLE part_4 PARTITION OF part FOR VALUES IN (4);
CREATE INDEX part_v ON part (v);
INSERT INTO part SELECT i, i, 1 + i % 4 FROM generate_series(1, 400) i;
SQL
change('late', q({"create_index": {"name": "big_i", "table": "big",
		"columns": [{"column": "id"}]}}),
	q({"create_index": {"name": "part_i", "table": "part",
		"columns": [{"column": "id"}]}}), alter('part', 'v', 'int'));
my $holder = $node->session;
$holder->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
my $caller = $node->session;
$caller->send(calls('expand', 'late')
	  . "; CALL bluegreen.wait_for_backfill('late', '180 s')");

sub builds
{
	my ($table, $title) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$node->poll_query_until(qq{SELECT count(*) > 0 FROM pg_index
			WHERE indrelid = 'app.$table'::regclass AND NOT indisvalid}),
		$title);
}
builds('big', 'an index waits for a snapshot');
sql(<<'SQL');
DROP TABLE scratch;
ALTER TABLE other RENAME x TO z;
ALTER TABLE other DROP COLUMN y;
REVOKE SELECT ON users FROM bob, intern;
REVOKE SELECT (id) ON other FROM intern;
REVOKE USAGE ON SCHEMA app FROM intern;
DROP ROLE intern;
DROP TABLE part_1;
CREATE TABLE part_5 PARTITION OF part FOR VALUES IN (5);
SQL
my $second = $node->session;
$second->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$holder->query('COMMIT');
builds('part_2', 'and then that of a partition');
sql(<<'SQL');
DROP TABLE part_3;
ALTER TABLE part_4 RENAME TO part_four;
CREATE TABLE part_6 (LIKE part);
ALTER TABLE part ATTACH PARTITION part_6 FOR VALUES IN (6);
SQL
$second->query('COMMIT');
$caller->wait;
is($caller->errors, '', 'it is expanded all the same');
is( $node->safe_psql(q{SELECT attname FROM pg_attribute
		WHERE attrelid = 'app_late.other'::regclass AND attnum > 0
		ORDER BY attnum}),
	"id\nz", 'with views of what there is by then');
is( $node->safe_psql(
		q{SELECT has_table_privilege('bob', 'app_late.users', 'SELECT')}),
	'f', 'and the grants');
like(
	$node->safe_psql(q{SELECT statements::text FROM bluegreen.change_step
		WHERE change = 'late' AND step = 'create schema app_late'}),
	qr/CREATE VIEW app_late\.other/, 'which the step tells');
is( $node->safe_psql(q{SELECT max(array_length(statements, 1)), count(*) > 2
		FROM bluegreen.change_step
		WHERE change = 'late' AND step ~ '^attach index .*_part_v$'}),
	'1|t', 'indexes of partitions are attached one by one');
contract('late');
is( $node->safe_psql(q{SELECT relname, indisvalid, count(inhrelid)
		FROM pg_class JOIN pg_index ON indexrelid = oid
		JOIN pg_inherits ON inhparent = oid
		WHERE relname IN ('part_i', 'part_v') GROUP BY 1, 2 ORDER BY 1}),
	"part_i|t|4\npart_v|t|4", 'and all partitions have them');

#
# Found out before a row is filled
#
sql(<<'SQL');
CREATE TABLE pattern (id int PRIMARY KEY, v text);
CREATE INDEX pattern_v ON pattern (v text_pattern_ops);
CREATE TABLE word (w text PRIMARY KEY);
CREATE TABLE refers (id int PRIMARY KEY, v text CONSTRAINT refers_word
	REFERENCES word);
CREATE TABLE def (id int PRIMARY KEY, v jsonb DEFAULT '{}');
CREATE TABLE whole (id int, k int, v text, UNIQUE (k, v)) PARTITION BY LIST (k);
CREATE TABLE whole_1 PARTITION OF whole FOR VALUES IN (1);
CREATE TABLE customer (id int PRIMARY KEY);
CREATE TABLE orders (id int, customer int CONSTRAINT orders_customer
	REFERENCES customer) PARTITION BY LIST (id);
CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1);
CREATE TABLE sub (id int, k int, v text) PARTITION BY LIST (id);
CREATE TABLE sub_1 PARTITION OF sub FOR VALUES IN (1) PARTITION BY LIST (k);
CREATE INDEX sub_v ON sub (v);
SQL
change('pattern', alter('pattern', 'v', 'bigint'));
refused('pattern', qr/index "pattern_v" of table "pattern" cannot be made for the new version: operator class "pg_catalog.text_pattern_ops" does not accept data type bigint/,
	'an operator class that the new type has not');
change('refers', alter('refers', 'v', 'bigint'));
refused('refers', qr/constraint "refers_word" of table "refers" cannot be made for the new version: foreign key constraint/,
	'a foreign key of another type');
change('def', alter('def', 'v', 'inet', "'::1'", "'{}'"));
refused('def', qr/default of column "v" of table "def" cannot be made for the new version: cannot cast type jsonb to inet/,
	'a default that cannot be cast');
change('whole', alter('whole', 'v', 'bigint'));
refused('whole', qr/constraint whole_k_v_key on table (app\.)?whole cannot be carried over to a new column/,
	'a unique constraint of a partitioned table');
change('orders', alter('orders', 'customer', 'bigint', undef, 'customer::int'));
if ($version < 180000)
{
	refused('orders', qr/constraint orders_customer on table (app\.)?orders cannot be carried over to a new column.*Before PostgreSQL 18/s,
		'a foreign key of a partitioned table');
}
else
{
	expand('orders');
	contract('orders');
	is( $node->safe_psql(q{SELECT convalidated FROM pg_constraint
			WHERE conrelid = 'app.orders'::regclass AND contype = 'f'}),
		't', 'a foreign key of a partitioned table');
}
change('sub', alter('sub', 'v', 'bigint'));
refused('sub', qr/index of table "sub" cannot be built on partition "sub_1"/,
	'partitions of partitions');

#
# What only a partition has, and what inherits
#
sql(<<'SQL');
CREATE TABLE leaf (id int, v text) PARTITION BY LIST (id);
CREATE TABLE leaf_1 PARTITION OF leaf FOR VALUES IN (1);
CREATE TABLE parent (id int, v text);
CREATE TABLE child () INHERITS (parent);
SQL
change('leaf', alter('leaf', 'v', 'bigint'));
foreach my $case (
	[ 'CREATE UNIQUE INDEX leaf_v ON leaf_1 (v)', 'DROP INDEX leaf_v',
		qr/index (app\.)?leaf_v cannot be carried over/ ],
	[ 'ALTER TABLE leaf_1 ADD CONSTRAINT leaf_c CHECK (v > \'\')',
		'ALTER TABLE leaf_1 DROP CONSTRAINT leaf_c',
		qr/constraint leaf_c on table (app\.)?leaf_1 cannot be carried over/ ],
	[ 'ALTER TABLE leaf_1 ALTER v SET NOT NULL',
		'ALTER TABLE leaf_1 ALTER v DROP NOT NULL',
		qr/NOT NULL of column v of table (app\.)?leaf_1 cannot be carried over/ ],
	[ 'CREATE VIEW leaf_view AS SELECT v FROM leaf_1', 'DROP VIEW leaf_view',
		qr/because rule _RETURN on view (app\.)?leaf_view depends on it/ ])
{
	my ($make, $drop, $pattern) = @$case;
	sql($make);
	refused('leaf', $pattern, "only on a partition: $make");
	sql($drop);
}
change('child', alter('child', 'v', 'bigint'));
refused('child', qr/table "child" inherits from another one/,
	'a child of INHERITS');

#
# Constraints that are not valid, or not enforced
#
sql(<<'SQL');
CREATE TABLE legacy (id int PRIMARY KEY, v text,
	CONSTRAINT short CHECK (length(v) < 10));
INSERT INTO legacy VALUES (1, 'unknown'), (2, NULL);
ALTER TABLE legacy ADD CONSTRAINT known FOREIGN KEY (v) REFERENCES word NOT VALID,
	ADD CONSTRAINT given CHECK (v <> '') NOT VALID;
SQL
sql(q{ALTER TABLE legacy ADD CONSTRAINT hope CHECK (v = 'x') NOT ENFORCED})
  if $version >= 180000;
change('legacy', alter('legacy', 'v', 'varchar(20)', 'v', 'v'));
expand('legacy');
my (undef, undef, $error) =
  $node->psql(q{INSERT INTO app_legacy.legacy VALUES (4, 'new')});
like($error, qr/violates foreign key constraint/, 'it holds for new rows');
contract('legacy');
is( $node->safe_psql(q{SELECT string_agg(conname || ' ' || convalidated
		|| coalesce(' ' || (to_jsonb(k) ->> 'conenforced'), ''), ', '
		ORDER BY conname) FROM pg_constraint k
		WHERE conrelid = 'app.legacy'::regclass AND contype IN ('c', 'f')}),
	$version >= 180000 ?
	  'given false true, hope false false, known false true, short true true' :
	  'given false, known false, short true',
	'constraints that were not valid or enforced are not');
if ($version >= 180000)
{
	sql(q{CREATE TABLE unsure (id int PRIMARY KEY, v text);
		INSERT INTO unsure VALUES (1);
		ALTER TABLE unsure ADD CONSTRAINT sure NOT NULL v NOT VALID;
		CREATE EXTENSION btree_gist;
		CREATE TABLE era (id int, during tsrange,
			PRIMARY KEY (id, during WITHOUT OVERLAPS));
		CREATE TABLE reign (n int PRIMARY KEY, id int, during tsrange,
			CONSTRAINT reign_era FOREIGN KEY (id, PERIOD during)
			REFERENCES era (id, PERIOD during))});
	change('unsure', q({"alter_column": {"table": "unsure", "column": "v",
		"type": "int", "nullable": false, "up": "v::int",
		"down": "v::text"}}));
	refused('unsure',
		qr/constraint sure on table (app\.)?unsure cannot be carried over/,
		'NOT NULL that is not valid');
	change('reign', alter('reign', 'id', 'bigint', undef, 'id::int'));
	refused('reign',
		qr/constraint reign_era on table (app\.)?reign cannot be carried over/,
		'a foreign key with a PERIOD');
}

#
# Code of a table's owner runs as him
#
sql(<<'SQL');
CREATE TABLE seen (who name);
GRANT INSERT ON seen TO PUBLIC;
SET ROLE mallory;
CREATE FUNCTION spy(anyelement) RETURNS boolean LANGUAGE plpgsql AS
	'BEGIN INSERT INTO app.seen VALUES (current_user); RETURN true; END';
CREATE TABLE trap (id int PRIMARY KEY, v text,
	CONSTRAINT spied CHECK (app.spy(v)));
INSERT INTO trap SELECT i, i FROM generate_series(1, 10) i;
RESET ROLE;
TRUNCATE seen;
SQL
change('trap', alter('trap', 'v', 'bigint'));
expand('trap');
is($node->safe_psql('SELECT DISTINCT who FROM app.seen'), 'mallory',
	'checks are validated as the table\'s owner');
is( $node->safe_psql(q{SELECT count(*) > 0 FROM bluegreen.change_step
		WHERE change = 'trap' AND step LIKE 'validate constraint%' AND done}),
	't', 'which they were');
sql('TRUNCATE seen');
$node->safe_psql(
	"SET bluegreen.revert_window = '1h'; " . calls('contract', 'trap'));
$node->safe_psql(calls('undo', 'trap'), timeout => 200);
is($node->safe_psql('SELECT DISTINCT who FROM app.seen'), 'mallory',
	'and when they are restored');

#
# Default privileges are no grants on the table
#
sql(<<'SQL');
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO bob;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO bob;
GRANT SELECT (id, name) ON users TO bob;
SQL
change('default', alter('users', 'name', 'varchar(20)', 'name', 'name'));
expand('default');
is( $node->safe_psql(q{SELECT
		has_table_privilege('bob', 'app_default.users', 'SELECT'),
		has_column_privilege('bob', 'app_default.users', 'password', 'SELECT'),
		has_column_privilege('bob', 'app_default.users', 'name', 'SELECT'),
		has_schema_privilege('bob', 'app_default', 'USAGE'),
		has_schema_privilege('bob', 'app_default', 'CREATE')}),
	'f|f|t|t|f', 'default privileges do not reach the new version');
$node->safe_psql(calls('undo', 'default'));

#
# How a column is stored, and comments
#
sql(<<'SQL');
CREATE TABLE tuned (id int PRIMARY KEY, v text, w text,
	CONSTRAINT tuned_c CHECK (v <> ''), CONSTRAINT tuned_u UNIQUE (v));
CREATE INDEX tuned_i ON tuned (lower(v), id);
ALTER TABLE tuned ALTER v SET STATISTICS 1000, ALTER v SET STORAGE EXTERNAL,
	ALTER v SET COMPRESSION pglz, ALTER v SET (n_distinct = -0.5);
ALTER INDEX tuned_i ALTER COLUMN 1 SET STATISTICS 500;
ALTER TABLE tuned CLUSTER ON tuned_i;
COMMENT ON CONSTRAINT tuned_c ON tuned IS 'not ''empty''';
COMMENT ON CONSTRAINT tuned_u ON tuned IS 'once';
COMMENT ON INDEX tuned_i IS 'case';
SQL

sub tuned
{
	return sql(q{SELECT attstattarget, attstorage, attcompression,
		(SELECT o FROM unnest(attoptions) o WHERE o LIKE 'n\_%')
		FROM pg_attribute WHERE attrelid = 'tuned'::regclass AND attname = 'v';
	SELECT attstattarget FROM pg_attribute
		WHERE attrelid = 'tuned_i'::regclass AND attnum = 1;
	SELECT indisclustered, obj_description(indexrelid, 'pg_class')
		FROM pg_index WHERE indexrelid = 'tuned_i'::regclass;
	SELECT conname, obj_description(oid, 'pg_constraint') FROM pg_constraint
		WHERE conrelid = 'tuned'::regclass AND contype <> 'n' ORDER BY 1});
}
my $tuned = tuned();
change('tuned', q({"alter_column": {"table": "tuned", "column": "v",
	"nullable": false, "up": "coalesce(v, 'none')", "down": "v"}}));
expand('tuned');
contract('tuned');
is(tuned(), $tuned, 'settings of a column and comments come along');

change('window', alter('tuned', 'w', 'int'));
expand('window');
$node->safe_psql(
	"SET bluegreen.revert_window = '1h'; " . calls('contract', 'window'));
sql('CREATE STATISTICS tuned_s ON id, w FROM tuned');
(undef, undef, $error) = $node->psql(
	"SET bluegreen.revert_window = 0; " . calls('contract', 'window'));
like($error, qr/"tuned_s" of table "tuned" would be lost with the old column/,
	'extended statistics that are made within the window');
sql('DROP STATISTICS tuned_s');
$node->safe_psql(
	"SET bluegreen.revert_window = 0; " . calls('contract', 'window'));

done_testing();
