# Every operation, as expanded, contracted and undone: odd names, several
# operations in one change, partitioned tables, row-level security, grants.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one');
$node->safe_psql('CREATE EXTENSION pg_bluegreen');
$node->safe_psql(<<'SQL');
CREATE SCHEMA app;
CREATE ROLE reader LOGIN;
GRANT USAGE ON SCHEMA app TO reader;
SQL

sub sql { return $node->safe_psql("SET search_path = app; $_[0]") }

sub new
{
	my ($version, $sql, %options) = @_;
	return $node->safe_psql(qq{SET search_path = "app_$version"; $sql},
		%options);
}

sub fails
{
	my ($sql, $pattern, $name) = @_;
	my (undef, undef, $error) = $node->psql($sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($error, $pattern, $name);
}

sub change
{
	my ($name, @operations) = @_;
	my $list = join ', ', @operations;
	sql("SELECT bluegreen.create_change('$name', \$\$[$list]\$\$)");
	return;
}

sub expand
{
	$node->safe_psql("CALL bluegreen.expand('$_[0]');"
		  . " CALL bluegreen.wait_for_backfill('$_[0]', '180 s')",
		timeout => 200);
	return;
}

sub contract { $node->safe_psql("CALL bluegreen.contract('$_[0]')"); return }
sub undo { $node->safe_psql("CALL bluegreen.undo('$_[0]')"); return }

# everything that there is in the schema
sub catalog
{
	return $node->safe_psql(<<'SQL');
SELECT attrelid::regclass, attname, atttypid::regtype, attnotnull,
	pg_get_expr(adbin, adrelid), col_description(attrelid, attnum), attacl
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid IN (SELECT oid FROM pg_class
		WHERE relnamespace = 'app'::regnamespace) AND attnum > 0
	AND NOT attisdropped
ORDER BY attrelid, attnum;
SELECT relname, relkind, relreplident, relacl FROM pg_class
WHERE relnamespace = 'app'::regnamespace ORDER BY oid;
SELECT conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated
FROM pg_constraint WHERE connamespace = 'app'::regnamespace ORDER BY 1, 2;
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger
WHERE NOT tgisinternal ORDER BY 1, 2;
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'app%' ORDER BY 1;
SQL
}

# a change that is undone leaves nothing; then it is expanded again
sub there_and_back
{
	my ($name) = @_;
	my $before = catalog();
	expand($name);
	undo($name);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(catalog(), $before, "$name: undo leaves nothing behind");
	expand($name);
	return;
}

#
# Tables
#
change('tables',
	q({"create_table": {"name": "customer", "comment": "who buys", "columns": [
		{"name": "id", "type": "serial", "pk": true},
		{"name": "na\"me", "type": "varchar(40)", "unique": true,
			"default": "'nobody'", "comment": "as he says"},
		{"name": "age", "type": "integer", "nullable": true,
			"check": {"name": "of_age", "constraint": "age >= 18"}}]}}),
	q({"create_table": {"name": "purchase", "columns": [
		{"name": "id", "type": "bigint", "pk": true, "generated":
			{"identity": {"user_specified_values": "BY DEFAULT"}}},
		{"name": "customer", "type": "integer", "references":
			{"name": "purchase_customer", "table": "customer", "column": "id",
			"on_delete": "CASCADE"}},
		{"name": "amount", "type": "numeric(10,2)"},
		{"name": "day", "type": "date", "default": "now()"}],
		"constraints": [
		{"name": "amount_day", "type": "unique", "columns": ["amount", "day"],
			"index_parameters": {"include_columns": ["customer"]}},
		{"name": "positive", "type": "check", "check": "amount > 0"}]}}),
	q({"create_index": {"name": "purchase_day", "table": "purchase",
		"columns": [{"column": "day", "sort": "DESC", "nulls": "LAST"}],
		"predicate": "amount > 100"}}));
there_and_back('tables');
is( new('tables', q{INSERT INTO customer DEFAULT VALUES;
		INSERT INTO purchase (customer, amount)
		VALUES (1, 5), (1, 7) RETURNING id}),
	"1\n2", 'tables are created, and can be written to through the views');
is( $node->safe_psql(q{SELECT pg_get_indexdef('app.purchase_day'::regclass),
		obj_description('app_tables.customer'::regclass),
		col_description('app_tables.customer'::regclass, 2)}),
	'CREATE INDEX purchase_day ON app.purchase USING btree'
	  . ' (day DESC NULLS LAST) WHERE (amount > (100)::numeric)'
	  . '|who buys|as he says',
	'with indexes and comments');
contract('tables');

#
# Columns, many in one change, with old and new names
#
sql(q{INSERT INTO purchase (customer, amount, day)
	SELECT 1, i, date '2026-01-01' + i FROM generate_series(10, 3000) i;
	GRANT SELECT, INSERT, UPDATE ON purchase TO reader;
	GRANT USAGE ON ALL SEQUENCES IN SCHEMA app TO reader});
change('columns',
	q({"rename_column": {"table": "purchase", "from": "customer",
		"to": "buyer"}}),
	q({"add_column": {"table": "purchase", "up": "amount * 100",
		"column": {"name": "ce nts", "type": "bigint", "comment": "100 of",
		"check": {"name": "cents_positive", "constraint": "\"ce nts\" > 0"}}}}),
	q({"add_column": {"table": "purchase", "column": {"name": "state",
		"type": "text", "default": "'open'"}}}),
	q({"add_column": {"table": "purchase", "column": {"name": "token",
		"type": "uuid", "default": "gen_random_uuid()", "unique": true}}}),
	q({"add_column": {"table": "purchase", "column": {"name": "counter",
		"type": "serial"}}}),
	q({"add_column": {"table": "purchase", "up": "'day ' || day",
		"column": {"name": "label", "type": "text", "nullable": true}}}),
	q({"drop_column": {"table": "purchase", "column": "amount",
		"down": "\"ce nts\" / 100.0"}}),
	q({"rename_table": {"from": "purchase", "to": "Sale"}}));
there_and_back('columns');
is( new('columns', q{SELECT count(*), count(DISTINCT token),
		count(DISTINCT counter), sum("ce nts"), min(state), min(buyer)
		FROM "Sale"}),
	sql(q{SELECT count(*) || '|' || count(*) || '|' || count(*) || '|'
		|| (sum(amount) * 100)::bigint || '|open|1' FROM purchase}),
	'added columns are filled, others have their new names');
new('columns', q{SET ROLE reader; INSERT INTO "Sale" (buyer, "ce nts", day)
	VALUES (1, 1234, '2001-01-01')});
is( sql(q{SELECT amount, state, token IS NULL, counter IS NULL FROM purchase
		WHERE day = '2001-01-01'}),
	'12.34|open|f|f',
	'an insert of the new version by an ordinary role, down to the dropped column');
sql(q{SET ROLE reader; INSERT INTO purchase (customer, amount, day)
	VALUES (1, 5.67, '2001-01-02')});
is( new('columns', q{SELECT "ce nts", state, token IS NULL, counter IS NULL
		FROM "Sale" WHERE day = '2001-01-02'}),
	'567|open|f|f', 'an insert of the old version');
sql(q{UPDATE purchase SET amount = 6 WHERE day = '2001-01-02'});
is(new('columns', q{SELECT "ce nts" FROM "Sale" WHERE day = '2001-01-02'}),
	'600', 'an update of what the new column was made from');
new('columns', q{UPDATE "Sale" SET label = 'mine' WHERE day = '2001-01-02'});
sql(q{UPDATE purchase SET day = day + 1 WHERE day <= '2001-01-02'});
is( new('columns', q{SELECT string_agg(label, ',' ORDER BY day) FROM "Sale"
		WHERE day < '2002-01-01'}),
	'mine', 'what the new version has set itself is not overwritten');
fails(q{SET search_path = app_columns; INSERT INTO "Sale" (buyer, "ce nts")
	VALUES (1, -1)}, qr/violates check constraint "cents_positive"/,
	'the new version\'s check holds');
contract('columns');
is( $node->safe_psql(q{SELECT string_agg(attname || CASE WHEN attnotnull
		THEN '!' ELSE '' END, ' ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = 'app."Sale"'::regclass AND attnum > 0
		AND NOT attisdropped}),
	'id! buyer! day! ce nts! state! token! counter! label', 'contracted');
is( $node->safe_psql(q{SELECT string_agg(conname, ' ' ORDER BY conname)
		FROM pg_constraint WHERE conrelid = 'app."Sale"'::regclass
		AND contype IN ('c', 'u')}),
	'cents_positive purchase_token_key', 'constraints have their names');
is( new('columns', q{INSERT INTO "Sale" (buyer, "ce nts") VALUES (1, 9)
		RETURNING state, token IS NULL, counter IS NULL}),
	'open|f|f', 'and columns their defaults');
fails('SELECT * FROM app_tables.purchase', qr/does not exist/,
	'the version before is gone');

#
# Constraints and indexes
#
sql(q{CREATE TABLE seat (id int PRIMARY KEY, hall text, n int, price int,
		CONSTRAINT cheap CHECK (price < 1000));
	CREATE TABLE hall (name text PRIMARY KEY);
	CREATE INDEX seat_n ON seat (n);
	INSERT INTO hall VALUES ('a'), ('b');
	INSERT INTO seat SELECT i, CASE WHEN i % 3 = 0 THEN 'x' ELSE 'a' END, i,
		i FROM generate_series(1, 900) i});
change('constraints',
	q({"drop_constraint": {"table": "seat", "name": "cheap",
		"up": "price", "down": "least(price, 999)"}}),
	q({"create_constraint": {"table": "seat", "name": "seat_hall",
		"type": "foreign_key", "columns": ["hall"],
		"references": {"table": "hall", "columns": ["name"],
			"on_delete": "SET NULL"},
		"up": {"hall": "SELECT name FROM hall WHERE name = hall"},
		"down": {"hall": "coalesce(hall, 'none')"}}}),
	q({"create_constraint": {"table": "seat", "name": "one_n",
		"type": "unique", "columns": ["n"], "up": {"n": "n"},
		"down": {"n": "n"}}}),
	q({"create_constraint": {"table": "seat", "name": "costs",
		"type": "check", "columns": ["price", "n"],
		"check": "price > 0 OR n < 0", "up": {"price": "price", "n": "n"},
		"down": {"price": "price", "n": "n"}}}),
	q({"create_index": {"name": "seat_hash", "table": "seat",
		"columns": [{"column": "hall"}], "method": "hash",
		"storage_parameters": "fillfactor = 70"}}),
	q({"drop_index": {"name": "seat_n"}}),
	q({"set_replica_identity": {"table": "seat",
		"identity": {"type": "full", "index": ""}}}));
there_and_back('constraints');
is(new('constraints', 'SELECT count(*), count(hall) FROM seat'), '900|600',
	'"up" with a subquery');
new('constraints', q{INSERT INTO seat VALUES (1001, NULL, 1001, 5000)});
is(sql('SELECT hall, price FROM seat WHERE id = 1001'), 'none|999',
	'a dropped constraint does not bind the new version, but the old one');
fails(q{SET search_path = app_constraints;
	INSERT INTO seat VALUES (1002, 'nowhere', 1002, 1)},
	qr/violates foreign key constraint "seat_hall"/,
	'a new one binds the new version');
sql(q{INSERT INTO seat VALUES (1003, 'nowhere', 1003, 1)});
is(new('constraints', 'SELECT hall IS NULL FROM seat WHERE id = 1003'), 't',
	'and the old one goes through "up"');
contract('constraints');
is( $node->safe_psql(q{SELECT string_agg(conname || ' ' || contype::text
		|| ' ' || convalidated, ', ' ORDER BY conname)
		FROM pg_constraint WHERE conrelid = 'app.seat'::regclass
		AND contype <> 'n'}),
	'costs c true, one_n u true, seat_hall f true, seat_pkey p true',
	'constraints after the contract');
is( $node->safe_psql(q{SELECT relreplident, to_regclass('app.seat_n') IS NULL,
		pg_get_indexdef('app.seat_hash'::regclass)
		FROM pg_class WHERE oid = 'app.seat'::regclass}),
	q{f|t|CREATE INDEX seat_hash ON app.seat USING hash (hall) WITH (fillfactor='70')},
	'index, dropped index and replica identity');

#
# NOT NULL there and back, default, comment, drop_table, rename_constraint,
# primary key
#
sql(q{CREATE TABLE plain (id int NOT NULL, a text, b text NOT NULL DEFAULT 'b',
		c int DEFAULT 1, CONSTRAINT c_small CHECK (c < 100));
	COMMENT ON COLUMN plain.c IS 'old';
	CREATE TABLE unwanted (id int);
	INSERT INTO plain SELECT i FROM generate_series(1, 500) i});
change('plain',
	q({"alter_column": {"table": "plain", "column": "a", "nullable": false,
		"up": "coalesce(a, 'none')", "down": "nullif(a, 'none')"}}),
	q({"alter_column": {"table": "plain", "column": "b", "nullable": true,
		"up": "b", "down": "coalesce(b, 'null')"}}),
	q({"alter_column": {"table": "plain", "column": "c", "default": null,
		"comment": "new", "up": "c", "down": "c"}}),
	q({"create_constraint": {"table": "plain", "name": "plain_pkey",
		"type": "primary_key", "columns": ["id"], "up": {"id": "id"},
		"down": {"id": "id"}}}),
	q({"rename_constraint": {"table": "plain", "from": "c_small",
		"to": "c is small"}}),
	q({"drop_table": {"name": "unwanted"}}));
there_and_back('plain');
fails(q{SET search_path = app_plain; TABLE unwanted}, qr/does not exist/,
	'the new version does not see a dropped table');
is(sql('SELECT count(*) FROM unwanted'), 0, 'the old one does');
is( new('plain', q{INSERT INTO plain (id, a) VALUES (1000, 'a') RETURNING b, c}),
	'b|', 'a default that is dropped, and one that is not');
fails(q{SET search_path = app_plain; INSERT INTO plain (id) VALUES (1001)},
	qr/violates check constraint/, 'NOT NULL holds for the new version');
sql(q{INSERT INTO plain (id) VALUES (1002)});
is(new('plain', 'SELECT a, c FROM plain WHERE id = 1002'), 'none|1',
	'but does not stop the old one');
new('plain', q{UPDATE plain SET b = NULL, a = 'none' WHERE id = 1002});
is(sql('SELECT a IS NULL, b FROM plain WHERE id = 1002'), 't|null',
	'NULL of the new version');
sql(q{UPDATE plain SET c = 2 WHERE id = 1002});
is(new('plain', 'SELECT a, b IS NULL FROM plain WHERE id = 1002'), 'none|t',
	'which an update of the old one keeps');
contract('plain');
is( $node->safe_psql(q{SELECT string_agg(attname || CASE WHEN attnotnull
		THEN '!' ELSE '' END || coalesce(pg_get_expr(adbin, adrelid), ''),
		' ' ORDER BY attname) FROM pg_attribute
		LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		WHERE attrelid = 'app.plain'::regclass AND attnum > 0
		AND NOT attisdropped})
	  . $node->safe_psql(q{SELECT '|' || string_agg(conname, ',' ORDER BY conname)
		|| coalesce('|' || to_regclass('app.unwanted'), '')
		FROM pg_constraint WHERE conrelid = 'app.plain'::regclass
		AND contype <> 'n'}),
	q{a! b'b'::text c id!|c is small,plain_pkey}, 'contracted');

#
# sql
#
change('sql', q({"sql": {"up": "CREATE TABLE by_hand (id int)",
	"down": "DROP TABLE IF EXISTS by_hand"}}));
there_and_back('sql');
is(new('sql', 'SELECT count(*) FROM by_hand'), 0, 'sql');
contract('sql');
change('later', q({"sql": {"up": "ALTER TABLE by_hand ADD COLUMN later int",
	"onComplete": true}}));
expand('later');
is(new('later', 'SELECT * FROM by_hand'), '', 'onComplete: not yet');
contract('later');
is( $node->safe_psql(q{SELECT attname FROM pg_attribute
		WHERE attrelid = 'app.by_hand'::regclass AND attname = 'later'}),
	'later', 'onComplete');

#
# Partitioned, with a dropped column in one leaf; a partition that comes while
# rows are filled
#
sql(<<'SQL');
CREATE TABLE event (id int, year int, v text, PRIMARY KEY (id, year))
	PARTITION BY LIST (year);
CREATE TABLE event_2024 PARTITION OF event FOR VALUES IN (2024);
CREATE TABLE event_2025 (gone int, v text, year int NOT NULL, id int NOT NULL);
ALTER TABLE event_2025 DROP COLUMN gone;
ALTER TABLE event ATTACH PARTITION event_2025 FOR VALUES IN (2025);
CREATE INDEX event_v ON event (v);
INSERT INTO event SELECT i, 2024 + i % 2, i::text FROM generate_series(1, 3000) i;
SQL
change('part', q({"alter_column": {"table": "event", "column": "v",
	"type": "bigint", "up": "v::bigint", "down": "v::text"}}),
	q({"create_index": {"name": "event_id", "table": "event",
		"columns": [{"column": "id"}]}}));
there_and_back('part');
is( new('part', 'SELECT count(*), sum(v) FROM event'),
	sql('SELECT count(*), sum(v::bigint) FROM event'),
	'a partitioned table is filled');
new('part', 'INSERT INTO event VALUES (5000, 2025, 77)');
sql(q{INSERT INTO event VALUES (5001, 2024, '78');
	UPDATE event SET year = 2025 WHERE id = 5001;
	INSERT INTO event_2025 (id, year, v) VALUES (5002, 2025, '79')});
is(sql('SELECT v FROM event WHERE id = 5000'), '77', 'row of the new version');
is( new('part', q{SELECT string_agg(v::text, ',' ORDER BY id) FROM event
		WHERE id > 5000}),
	'78,79', 'rows of the old one, one of which moves to another partition');
sql(q{INSERT INTO event VALUES (5004, 2024, '0081')});
new('part', 'UPDATE event SET year = 2025 WHERE id = 5004');
is(sql('SELECT v FROM event WHERE id = 5004'), '0081',
	'a row that the new version moves keeps what it does not know exactly');
sql(q{CREATE TABLE event_2026 PARTITION OF event FOR VALUES IN (2026);
	INSERT INTO event VALUES (5003, 2026, '80')});
is(new('part', 'SELECT v FROM event WHERE id = 5003'), '80',
	'a new partition');
contract('part');
is( $node->safe_psql(q{SELECT relname, indisvalid, count(inhrelid)
		FROM pg_class JOIN pg_index ON indexrelid = oid
		JOIN pg_inherits ON inhparent = oid
		WHERE relname IN ('event_v', 'event_id') GROUP BY 1, 2 ORDER BY 1}),
	"event_id|t|3\nevent_v|t|3", 'its indexes are valid');

#
# Row-level security and grants on columns
#
sql(<<'SQL');
CREATE TABLE mine (id int PRIMARY KEY, who text, v text);
ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON mine USING (who = current_user);
GRANT SELECT, INSERT ON mine TO reader;
INSERT INTO mine VALUES (1, 'reader', '1'), (2, 'other', '2');
CREATE TABLE partly (id int PRIMARY KEY, secret text, v text);
GRANT SELECT (id, v) ON partly TO reader;
INSERT INTO partly VALUES (1, 'secret', '1');
SQL
change('rights', map {
		qq({"alter_column": {"table": "$_", "column": "v", "type": "integer",
		"up": "v::integer", "down": "v::text"}})
	} qw(mine partly));
there_and_back('rights');
is(new('rights', 'SET ROLE reader; SELECT v FROM mine'), '1',
	'row-level security holds through the view');
is(new('rights', 'SET ROLE reader; SELECT id, v FROM partly'), '1|1',
	'granted columns can be read through it');
fails('SET ROLE reader; SELECT secret FROM app_rights.partly',
	qr/permission denied/, 'others cannot');
new('rights', q{SET ROLE reader; INSERT INTO mine VALUES (3, 'reader', 3)});
is(sql('SELECT v FROM mine WHERE id = 3'), '3', 'and rows written');
contract('rights');

#
# Refused
#
sql(q{CREATE TABLE bad (id int PRIMARY KEY, a int, g int GENERATED ALWAYS AS
		(a * 2) STORED, i int GENERATED ALWAYS AS IDENTITY, b text NOT NULL);
	CREATE TABLE child (bad int REFERENCES bad);
	CREATE VIEW looks AS SELECT b FROM bad;
	CREATE TABLE late (id int PRIMARY KEY, a int);
	CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN NEW.a := 5; RETURN NEW; END';
	CREATE TRIGGER zzz BEFORE UPDATE ON late FOR EACH ROW
		EXECUTE FUNCTION late();
	CREATE TABLE forced (id int PRIMARY KEY, a int);
	ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	CREATE ROLE owner LOGIN;
	GRANT CREATE, USAGE ON SCHEMA app TO owner;
	ALTER TABLE forced OWNER TO owner});
my @refused = (
	[ 'no_table', '{"drop_table": {"name": "nowhere"}}',
		qr/operation 1 \(drop_table\): table "nowhere" does not exist in schema "app"/ ],
	[ 'no_column', '{"drop_column": {"table": "bad", "column": "x"}}',
		qr/column "x" of table "bad" does not exist/ ],
	[ 'key', '{"alter_column": {"table": "bad", "column": "id", "type": "text"}}',
		qr/column "id" is part of the primary key/ ],
	[ 'generated', '{"alter_column": {"table": "bad", "column": "g", "type": "text"}}',
		qr/column "g" is a generated or identity column/ ],
	[ 'identity', '{"alter_column": {"table": "bad", "column": "i", "type": "text"}}',
		qr/column "i" is a generated or identity column/ ],
	[ 'generated_from', '{"alter_column": {"table": "bad", "column": "a", "type": "text"}}',
		qr/column "a" of table "bad" cannot be replaced or dropped because/ ],
	[ 'view', '{"alter_column": {"table": "bad", "column": "b", "type": "varchar(9)"}}',
		qr/because rule _RETURN on view (app\.)?looks depends on it/ ],
	[ 'referenced', '{"drop_table": {"name": "bad"}}',
		qr/table "bad" cannot be dropped because/ ],
	[ 'reads_generated', '{"add_column": {"table": "bad", "up": "g + 1",
		"column": {"name": "n", "type": "int"}}}',
		qr/generated column "g" cannot be used in "g \+ 1"/ ],
	[ 'no_up', '{"add_column": {"table": "child", "column": {"name": "n", "type": "int"}}}',
		qr/field "up" is missing, and column "n" is neither nullable nor has a default/ ],
	[ 'syntax', '{"add_column": {"table": "child", "up": "1 +",
		"column": {"name": "n", "type": "int"}}}', qr/syntax error/ ],
	[ 'two', '{"add_column": {"table": "child", "up": "1) , (2",
		"column": {"name": "n", "type": "int"}}}', qr/is not one expression/ ],
	[ 'unknown', '{"add_column": {"table": "child", "up": "nothing",
		"column": {"name": "n", "type": "int"}}}', qr/column "nothing" does not exist/ ],
	[ 'exists', '{"add_column": {"table": "child",
		"column": {"name": "bad", "type": "int", "nullable": true}}}',
		qr/column "bad" of table "child" already exists/ ],
	[ 'late', '{"alter_column": {"table": "late", "column": "a", "type": "text"}}',
		qr/trigger "zzz" of table "late" would be fired after that of the change/ ],
	[ 'forced', '{"alter_column": {"table": "forced", "column": "a", "type": "text"}}',
		qr/row-level security of table "forced" is forced on its owner/ ],
	[ 'twice', '{"alter_column": {"table": "seat", "column": "n", "type": "bigint"}},
		{"alter_column": {"table": "seat", "column": "n", "type": "text"}}',
		qr/operation 2 \(alter_column\): column "n" is altered twice/ ]);
my $before = catalog();
foreach my $case (@refused)
{
	my ($name, $operations, $pattern) = @$case;
	change($name, $operations);
	fails("CALL bluegreen.expand('$name')", $pattern, "refused: $name");
	undo($name);
}
is(catalog(), $before, 'nothing of it is left');

#
# One at a time, and who may
#
change('first', '{"rename_table": {"from": "hall", "to": "room"}}');
change('second', '{"rename_table": {"from": "seat", "to": "chair"}}');
expand('first');
fails(q{CALL bluegreen.expand('second')},
	qr/change "first" of schema "app" is under way/,
	'one change at a time in a schema');
fails(q{SELECT bluegreen.drop_change('first')}, qr/change "first" is expanded/,
	'it cannot be dropped then');
undo('first');
fails(q{CALL bluegreen.contract('first')}, qr/change "first" is undone/,
	'nor contracted when undone');
$node->safe_psql(q{SELECT bluegreen.drop_change('first')});
$node->safe_psql(q{GRANT USAGE ON SCHEMA bluegreen TO reader;
	GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO reader;
	GRANT CREATE ON DATABASE postgres TO reader;
	GRANT CREATE ON SCHEMA app TO reader});
fails(q{SET ROLE reader; CALL bluegreen.expand('second')},
	qr/must be owner of change "second"/, 'not for others');
$node->safe_psql(q{SET ROLE reader; SELECT bluegreen.create_change('theirs',
	'[{"rename_table": {"from": "seat", "to": "chair"}}]', 'app')});
fails(q{CALL bluegreen.expand('theirs')},
	qr/must be owner of table seat/,
	'a superuser who calls lends his rights to nobody');

done_testing();
