-- Documents of changes: what is accepted, what is refused and how, and the
-- functions that build them.
CREATE EXTENSION pg_bluegreen;
SELECT no_plan();

CREATE FUNCTION try(document text, name name DEFAULT 'x') RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM bluegreen.create_change(name, document::jsonb);
	PERFORM bluegreen.drop_change(name);
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;

--
-- Accepted: each operation in each form of its fields
--
SELECT is(try(document), 'ok', 'accepted: ' || document)
FROM (VALUES
	('[]'),
	('{"operations": []}'),
	('{"name": "n", "version_schema": "v", "operations": []}'),
	('[{"create_table": {"name": "t", "columns": []}}]'),
	('[{"create_table": {"name": "t", "comment": "c", "columns": [
		{"name": "a", "type": "int", "pk": true, "nullable": false,
		"unique": true, "default": "1", "comment": "c",
		"check": {"name": "k", "constraint": "a > 1", "no_inherit": true},
		"references": {"name": "f", "table": "o", "column": "b",
			"on_delete": "SET NULL", "on_update": "cascade",
			"match_type": "FULL", "deferrable": true,
			"initially_deferred": true}},
		{"name": "b", "type": "int", "generated": {"expression": "a + 1"}},
		{"name": "c", "type": "int", "generated": {"identity":
			{"user_specified_values": "BY DEFAULT",
			"sequence_options": "START 5"}}}],
		"constraints": [
		{"name": "u", "type": "unique", "columns": ["a"],
			"nulls_not_distinct": true, "deferrable": true,
			"index_parameters": {"tablespace": "s",
				"storage_parameters": "fillfactor = 70",
				"include_columns": ["b"]}},
		{"name": "x", "type": "exclude", "exclude": {"index_method": "gist",
			"elements": "a WITH =", "predicate": "a > 1"}},
		{"name": "c", "type": "check", "check": "a > 1", "no_inherit": true},
		{"name": "p", "type": "primary_key", "columns": ["a"]},
		{"name": "f", "type": "foreign_key", "columns": ["a"], "references":
			{"table": "o", "columns": ["b"], "on_delete": "SET DEFAULT",
			"on_delete_set_columns": ["a"]}}]}}]'),
	('[{"drop_table": {"name": "t"}}]'),
	('[{"rename_table": {"from": "a", "to": "b"}}]'),
	('[{"add_column": {"table": "t", "up": "1", "column":
		{"name": "a", "type": "int", "nullable": true}}}]'),
	('[{"drop_column": {"table": "t", "column": "a", "down": "1"}}]'),
	('[{"drop_column": {"table": "t", "column": "a"}}]'),
	('[{"rename_column": {"table": "t", "from": "a", "to": "b"}}]'),
	('[{"alter_column": {"table": "t", "column": "a", "type": "text",
		"up": "a", "down": "a", "nullable": false, "default": "1",
		"comment": "c", "unique": {"name": "u"},
		"check": {"name": "k", "constraint": "a > 1"},
		"references": {"name": "f", "table": "o", "column": "b"}}}]'),
	('[{"alter_column": {"table": "t", "column": "a", "default": null,
		"up": "a", "down": "a"}}]'),
	('[{"alter_column": {"table": "t", "column": "a", "comment": null,
		"up": "a", "down": "a"}}]'),
	('[{"create_index": {"name": "i", "table": "t", "columns": [
		{"column": "a", "collate": "\"C\"", "sort": "DESC", "nulls": "LAST",
		"opclass": {"name": "gist_trgm_ops", "params": ["siglen=32"]}}],
		"unique": true, "method": "gist", "predicate": "a > 1",
		"storage_parameters": "fillfactor = 70"}}]'),
	('[{"drop_index": {"name": "i"}}]'),
	('[{"create_constraint": {"table": "t", "name": "u", "type": "unique",
		"columns": ["a", "b"], "up": {"a": "a", "b": "b"},
		"down": {"a": "a", "b": "b"}}}]'),
	('[{"create_constraint": {"table": "t", "name": "k", "type": "check",
		"check": "a > 1", "no_inherit": true, "up": {"a": "a"},
		"down": {"a": "a"}}}]'),
	('[{"drop_constraint": {"table": "t", "name": "k", "up": "a",
		"down": "a"}}]'),
	('[{"drop_multicolumn_constraint": {"table": "t", "name": "k",
		"up": {"a": "a"}, "down": {"a": "a"}}}]'),
	('[{"rename_constraint": {"table": "t", "from": "a", "to": "b"}}]'),
	('[{"set_replica_identity": {"table": "t", "identity":
		{"type": "full", "index": ""}}}]'),
	('[{"set_replica_identity": {"table": "t", "identity":
		{"type": "index", "index": "i"}}}]'),
	('[{"derive_table": {"name": "t", "from": "s", "transform": "SELECT a FROM s",
		"key": ["a"], "on_write": "merge", "on_delete": "write", "back":
		{"transform": "SELECT a FROM t", "key": ["a"], "on_write": "patch",
		"on_delete": "ignore"}}}]'),
	('[{"sql": {"up": "SELECT 1", "down": "SELECT 2"}}]'),
	('[{"drop_index": {"name": "i"}},
		{"sql": {"up": "SELECT 1", "onComplete": true}}]')) d (document);

--
-- Refused
--
SELECT is(try(document), '22023 ' || message, 'refused: ' || message)
FROM (VALUES
	('1', 'operations must be an array'),
	('"x"', 'operations must be an array'),
	('{}', 'field "operations" of the document is missing'),
	('{"operations": [], "x": 1}', 'field "x" of the document is not known'),
	('{"operations": {}}', 'operations must be an array'),
	('[1]', 'operation 1 must be an object with one key, the operation''s name'),
	('[{}]', 'operation 1 must be an object with one key, the operation''s name'),
	('[{"a": {}, "b": {}}]',
		'operation 1 must be an object with one key, the operation''s name'),
	('[{"drop_index": {"name": "i"}}, {"make_coffee": {}}]',
		'operation 2: operation "make_coffee" is not known'),
	('[{"drop_table": 1}]',
		'operation 1 (drop_table): its value must be an object'),
	('[{"drop_table": {}}]',
		'operation 1 (drop_table): field "name" is missing'),
	('[{"drop_table": {"name": 1}}]',
		'operation 1 (drop_table): field "name" must be a string'),
	('[{"drop_table": {"name": null}}]',
		'operation 1 (drop_table): field "name" must be a string'),
	('[{"drop_table": {"name": ""}}]',
		'operation 1 (drop_table): field "name" must not be empty'),
	('[{"drop_table": {"name": "' || repeat('x', 64) || '"}}]',
		'operation 1 (drop_table): field "name" is longer than a name can be'),
	('[{"drop_table": {"name": "t", "cascade": true}}]',
		'operation 1 (drop_table): field "cascade" is not known'),
	('[{"add_column": {"table": "t", "column": {"name": "a"}}}]',
		'operation 1 (add_column): field "column.type" is missing'),
	('[{"add_column": {"table": "t", "column": []}}]',
		'operation 1 (add_column): field "column" must be an object'),
	('[{"add_column": {"table": "t", "column": {"name": "a", "type": "int",
		"nullable": "yes"}}}]',
		'operation 1 (add_column): field "column.nullable" must be true or false'),
	('[{"add_column": {"table": "t", "column": {"name": "a", "type": "int",
		"check": {"name": "k"}}}}]',
		'operation 1 (add_column): field "column.check.constraint" is missing'),
	('[{"add_column": {"table": "t", "column": {"name": "a", "type": "int",
		"pk": true}}}]',
		'operation 1 (add_column): field "column.pk": a primary key cannot be changed'),
	('[{"add_column": {"table": "t", "column": {"name": "a", "type": "int",
		"generated": {"expression": "1"}}}}]',
		'operation 1 (add_column): field "column.generated": generated and identity columns cannot be added to a table that exists'),
	('[{"create_table": {"name": "t", "columns": [{"name": "a",
		"type": "int", "references": {"name": "f", "table": "o",
		"column": "c", "on_delete": "EXPLODE"}}]}}]',
		'operation 1 (create_table): field "columns[0].references.on_delete" cannot be "EXPLODE"'),
	('[{"create_table": {"name": "t", "columns": [1]}}]',
		'operation 1 (create_table): field "columns[0]" must be an object'),
	('[{"create_table": {"name": "t", "columns": [], "constraints": [
		{"name": "u", "type": "unique"}]}}]',
		'operation 1 (create_table): field "constraints[0].columns" is missing'),
	('[{"alter_column": {"table": "t", "column": "a", "up": "a",
		"down": "a"}}]',
		'operation 1 (alter_column): nothing is to be altered'),
	('[{"create_index": {"name": "i", "table": "t", "columns": ["a"]}}]',
		'operation 1 (create_index): field "columns[0]" must be an object'),
	('[{"create_index": {"name": "i", "table": "t", "columns": [],
		"method": "magic"}}]',
		'operation 1 (create_index): field "method" cannot be "magic"'),
	('[{"create_constraint": {"table": "t", "name": "f",
		"type": "foreign_key", "columns": ["a"], "up": {}, "down": {}}}]',
		'operation 1 (create_constraint): field "references" is missing'),
	('[{"create_constraint": {"table": "t", "name": "u", "type": "unique",
		"columns": ["a"], "up": {"a": 1}, "down": {}}}]',
		'operation 1 (create_constraint): field "up.a" must be a string'),
	('[{"create_constraint": {"table": "t", "name": "u", "type": "unique",
		"columns": [["a"]], "up": {}, "down": {}}}]',
		'operation 1 (create_constraint): field "columns[0]" must be an array of strings'),
	('[{"set_replica_identity": {"table": "t", "identity":
		{"type": "index"}}}]',
		'operation 1 (set_replica_identity): field "identity.index" is missing'),
	('[{"derive_table": {"name": "t", "from": "s", "transform": "SELECT 1",
		"on_write": "lookup"}}]',
		'operation 1 (derive_table): field "on_write" cannot be "lookup"'),
	('[{"derive_table": {"name": "t", "from": "s", "transform": "SELECT 1",
		"back": {}}}]',
		'operation 1 (derive_table): field "back.transform" is missing'),
	('[{"sql": {"up": "a", "down": "b", "onComplete": true}}]',
		'operation 1 (sql): field "down" cannot be given with "onComplete"'),
	('[{"drop_table": {"name": "t"}}, {"sql": {"up": "SELECT 1"}}]',
		'operation 2 (sql): a change with it must have no other operation, unless it is marked "onComplete"'))
	d (document, message);

SELECT is(try('[{"sql": {"up": "SELECT 1", "down": "DROP TABEL t"}}]'),
	'42601 operation 1 (sql): field "down": syntax error at or near "TABEL"',
	'statements are parsed when they are defined');

--
-- Names
--
SELECT is(try('[]', ''), '42602 name of a change must not be empty', 'no name');
SELECT is(try('[]', repeat('x', 60)::name),
	'42622 name "public_' || repeat('x', 60)
		|| '" of the version''s schema is too long', 'a long name');
SELECT lives_ok($$SELECT bluegreen.create_change('taken', '[]')$$, 'a change');
SELECT throws_ok($$SELECT bluegreen.create_change('taken', '[]')$$, '42710',
	'change "taken" or one with schema "public_taken" already exists',
	'the name is taken');
SELECT throws_ok($$SELECT bluegreen.create_change('n', '[]', 'pg_catalog')$$,
	'22023', 'schema "pg_catalog" cannot be changed', 'not just any schema');
SELECT throws_ok($$SELECT bluegreen.create_change('n', '[]', 'nowhere')$$,
	'3F000', 'schema "nowhere" does not exist', 'nor one that is not there');
SELECT throws_ok($$SELECT bluegreen.skip_step('taken')$$, '55000',
	'no statements of the document of change "taken" have failed',
	'nothing to skip');
SELECT throws_ok($$SELECT bluegreen.drop_change('nothing')$$, '42704',
	'change "nothing" does not exist', 'no such change');
SELECT throws_ok($$CALL bluegreen.expand('taken')$$, '25001', NULL,
	'not in a transaction block');
CREATE ROLE tap_group;
CREATE ROLE tap_stranger;
GRANT USAGE ON SCHEMA bluegreen TO tap_group;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO tap_group;
SET ROLE tap_group;
SELECT throws_ok($$SELECT bluegreen.create_change('theirs', '[]')$$, '42501',
	'role "tap_group" cannot own a change, because it may not log in',
	'the owner must be able to log in');
SELECT throws_ok($$SELECT bluegreen.drop_change('taken')$$, '42501',
	'must be owner of change "taken"', 'a change has an owner');
RESET ROLE;
REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen FROM tap_group;
CREATE TABLE theirs (a text, b text);
ALTER TABLE theirs OWNER TO tap_group;
GRANT TRIGGER, INSERT ON theirs TO tap_stranger;
SET ROLE tap_stranger;
SELECT lives_ok($$CREATE TRIGGER t BEFORE INSERT ON theirs FOR EACH ROW
	EXECUTE FUNCTION bluegreen.sync_columns('{}')$$,
	'who makes a partition has to be able to make such a trigger');
SELECT throws_ok($$INSERT INTO theirs VALUES ('a')$$, '42501',
	'trigger "t" of table "theirs" was not made by a change',
	'but not by hand: it would run as the table''s owner');
SELECT throws_ok($$ALTER TRIGGER t ON theirs DEPENDS ON EXTENSION pg_bluegreen$$,
	'42501', 'must be owner of relation theirs', 'nor can it be marked as one');
RESET ROLE;
ALTER TRIGGER t ON theirs DEPENDS ON EXTENSION pg_bluegreen;
SELECT throws_ok($$INSERT INTO theirs VALUES ('a')$$, '22023',
	'field "name" of the rules of a trigger is missing',
	'its argument is not trusted');

--
-- The functions build the same document
--
SELECT bluegreen.create_change('built', '[]');
SELECT is(n, o, 'the number of the operation: ' || o) FROM (VALUES
	(bluegreen.create_table('built', 't',
		'[{"name": "a", "type": "int", "pk": true}]', comment => 'c'), 1),
	(bluegreen.drop_table('built', 't'), 2),
	(bluegreen.rename_table('built', 'a', 'b'), 3),
	(bluegreen.add_column('built', 't', 'a', 'int', 'b + 1', true,
		"default" => '1'), 4),
	(bluegreen.drop_column('built', 't', 'a', '1'), 5),
	(bluegreen.rename_column('built', 't', 'a', 'b'), 6),
	(bluegreen.alter_column('built', 't', 'a', 'x"y', 'a',
		type => 'text', nullable => false, drop_default => true), 7),
	(bluegreen.create_index('built', 't', 'i', '[{"column": "a"}]',
		"unique" => true), 8),
	(bluegreen.drop_index('built', 'i'), 9),
	(bluegreen.create_constraint('built', 't', 'u', 'unique', '{a,b}',
		up => '{"a": "a"}', down => '{"a": "a"}'), 10),
	(bluegreen.drop_constraint('built', 't', 'u', 'a', 'a'), 11),
	(bluegreen.drop_multicolumn_constraint('built', 't', 'u',
		'{"a": "a"}', '{"a": "a"}'), 12),
	(bluegreen.rename_constraint('built', 't', 'a', 'b'), 13),
	(bluegreen.set_replica_identity('built', 't',
		'{"type": "full"}'), 14),
	(bluegreen.sql('built', 'SELECT 1', on_complete => true), 15),
	(bluegreen.derive_table('built', 't', 's', 'SELECT a FROM s', '{a}',
		back => '{"transform": "SELECT a FROM t"}'), 16)) v (n, o);
SELECT is((SELECT document FROM bluegreen.change WHERE change = 'built'), $$[
	{"create_table": {"name": "t", "comment": "c",
		"columns": [{"name": "a", "type": "int", "pk": true}]}},
	{"drop_table": {"name": "t"}},
	{"rename_table": {"from": "a", "to": "b"}},
	{"add_column": {"table": "t", "up": "b + 1", "column": {"name": "a",
		"type": "int", "nullable": true, "default": "1"}}},
	{"drop_column": {"table": "t", "column": "a", "down": "1"}},
	{"rename_column": {"table": "t", "from": "a", "to": "b"}},
	{"alter_column": {"table": "t", "column": "a", "up": "x\"y",
		"down": "a", "type": "text", "nullable": false, "default": null}},
	{"create_index": {"table": "t", "name": "i",
		"columns": [{"column": "a"}], "unique": true}},
	{"drop_index": {"name": "i"}},
	{"create_constraint": {"table": "t", "name": "u", "type": "unique",
		"columns": ["a", "b"], "up": {"a": "a"}, "down": {"a": "a"}}},
	{"drop_constraint": {"table": "t", "name": "u", "up": "a", "down": "a"}},
	{"drop_multicolumn_constraint": {"table": "t", "name": "u",
		"up": {"a": "a"}, "down": {"a": "a"}}},
	{"rename_constraint": {"table": "t", "from": "a", "to": "b"}},
	{"set_replica_identity": {"table": "t", "identity": {"type": "full"}}},
	{"sql": {"up": "SELECT 1", "onComplete": true}},
	{"derive_table": {"name": "t", "from": "s", "transform": "SELECT a FROM s",
		"key": ["a"], "back": {"transform": "SELECT a FROM t"}}}]$$::jsonb,
	'and the document');
SELECT throws_ok($$SELECT bluegreen.drop_table('built', NULL)$$, '22023',
	'operation 17 (drop_table): field "name" is missing',
	'an operation that is not valid is refused');
SELECT is((SELECT operations FROM bluegreen.change WHERE change = 'built'), 16,
	'and not kept');
SELECT lives_ok($$SELECT bluegreen.drop_change('built')$$, 'forgotten');

--
-- Numbers of changes that were there before DROP EXTENSION are in names
--
CREATE TABLE left_over (id int, bluegreen_7000_2_a text);
SELECT cmp_ok(bluegreen.create_change('numbered', '[]'), '=', 7001,
	'a number that something is named after is left out');
SELECT is(bluegreen.create_change('numbered_too', '[]'), 7002,
	'and goes on from there');

--
-- Who owns a change
--
CREATE ROLE tap_owner LOGIN;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA bluegreen TO tap_owner;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO tap_owner;
SET ROLE tap_owner;
SELECT throws_ok($$SELECT bluegreen.create_change('n', '[]')$$, '42501',
	'permission denied for schema public',
	'a change is for who may create in the schema');
SELECT throws_ok($$SELECT bluegreen.set_change_owner('numbered', 'tap_owner')$$,
	'42501', 'must be owner of change "numbered"', 'nor are those of others his');
RESET ROLE;
SELECT throws_ok($$SELECT bluegreen.set_change_owner('numbered', 'tap_group')$$,
	'42501', 'role "tap_group" cannot own a change, because it may not log in',
	'the new owner must be able to log in');
SELECT throws_ok($$SELECT bluegreen.set_change_owner('numbered', 'tap_owner')$$,
	'42501', 'permission denied for schema public',
	'and to create in the schema');
CREATE SCHEMA lab AUTHORIZATION tap_owner;
SELECT lives_ok($$SELECT bluegreen.create_change('given', '[]', 'lab');
	SELECT bluegreen.set_change_owner('given', 'tap_owner')$$, 'given away');
SET ROLE tap_owner;
SELECT throws_ok($$SELECT bluegreen.set_change_owner('given', 'postgres')$$,
	'42501', 'must be able to SET ROLE "postgres"',
	'not to somebody else, who would run what is in it');
SELECT lives_ok($$SELECT bluegreen.drop_change('given')$$, 'by who has it');
RESET ROLE;

--
-- Names that go around; schemas that only have the name of a version; what
-- statements of the document leave behind
--
CREATE TABLE lab.item (id int PRIMARY KEY, x int, y int, n int, m int);
INSERT INTO lab.item VALUES (1, 10, 20, 30, 40);
CREATE TABLE lab.note (number serial, what text);
SELECT bluegreen.create_change('squat', '[]', 'lab');
CREATE SCHEMA lab_squat;
CREATE VIEW lab_squat.item AS SELECT id FROM lab.item;
SELECT bluegreen.create_change('names', $$[
	{"rename_column": {"table": "item", "from": "y", "to": "z"}},
	{"rename_column": {"table": "item", "from": "x", "to": "y"}},
	{"rename_column": {"table": "item", "from": "n", "to": "temporary"}},
	{"rename_column": {"table": "item", "from": "m", "to": "n"}},
	{"rename_column": {"table": "item", "from": "temporary", "to": "m"}},
	{"sql": {"onComplete": true, "up":
		"SET work_mem = '77MB'; SELECT pg_advisory_unlock_all()"}},
	{"sql": {"onComplete": true, "up":
		"INSERT INTO note (what) SELECT current_setting('work_mem') UNION ALL SELECT count(*)::text FROM pg_locks WHERE pid = pg_backend_pid() AND classid = 'bluegreen.schema_change'::regclass AND locktype = 'object'"}}]$$,
	'lab');
CALL bluegreen.expand('names');
CALL bluegreen.wait_for_backfill('names');
SELECT is((SELECT row(v.*)::text FROM lab_names.item v), '(1,10,20,30,40)',
	'the new version has other names');
CALL bluegreen.contract('names');
SELECT results_eq('SELECT id, y, z, m, n FROM lab.item',
	'VALUES (1, 10, 20, 30, 40)', 'and at last the table');
SELECT has_view('lab_squat', 'item', 'nobody else''s schema is dropped');
SELECT is((SELECT what FROM lab.note WHERE number = 1),
	current_setting('work_mem'), 'what a statement sets ends with its step');
SELECT is((SELECT what FROM lab.note WHERE number = 2), '1',
	'and the worker''s lock is taken again');

--
-- Errors of CALL, which cannot be caught
--
SELECT bluegreen.create_change('cancel', $$[{"sql": {"up":
	"DO 'BEGIN RAISE EXCEPTION ''like a cancel'' USING ERRCODE = ''57014''; END'"
	}}]$$, 'lab');
\set ON_ERROR_STOP off
CALL bluegreen.expand('cancel');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_MESSAGE'::text, 'change "cancel": like a cancel',
	'an error that looks like a cancel ends a change');
CALL bluegreen.undo('cancel');

GRANT CREATE ON DATABASE :DBNAME TO tap_owner;
ALTER TABLE lab.item OWNER TO tap_owner;
CREATE TABLE lab.hall (id int PRIMARY KEY);
INSERT INTO lab.hall VALUES (20);
SELECT bluegreen.create_change('later', $$[{"create_constraint": {
	"table": "item", "name": "item_hall", "type": "foreign_key",
	"columns": ["z"], "references": {"table": "hall", "columns": ["id"]},
	"up": {"z": "z"}, "down": {"z": "z"}}}]$$, 'lab');
SELECT bluegreen.set_change_owner('later', 'tap_owner');
\set ON_ERROR_STOP off
CALL bluegreen.expand('later');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_MESSAGE'::text,
	'change "later": role "tap_owner" must be owner of schema "lab_names" and its views',
	'who could not contract cannot expand');
CALL bluegreen.undo('later');
ALTER SCHEMA lab_names OWNER TO tap_owner;
ALTER VIEW lab_names.item OWNER TO tap_owner;
ALTER VIEW lab_names.note OWNER TO tap_owner;
\set ON_ERROR_STOP off
CALL bluegreen.expand('later');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_MESSAGE'::text, 'change "later": permission denied for table lab.hall',
	'nor who may not refer to a table, before rows are filled');
CALL bluegreen.undo('later');
GRANT REFERENCES ON lab.hall TO tap_owner;
CALL bluegreen.expand('later');
CALL bluegreen.wait_for_backfill('later');
CALL bluegreen.contract('later');
SELECT matches((SELECT statements[1] FROM bluegreen.change_step
	WHERE change = 'later' AND step = 'drop schema lab_names'),
	'^LOCK VIEW lab_names\.', 'views that are dropped are locked first');
SELECT col_is_fk('lab', 'item', 'z', 'REFERENCES is all that a foreign key wants');
SELECT hasnt_schema('lab_names', 'the schema of the earlier version is dropped');
SELECT results_eq($$SELECT n.oid FROM bluegreen.schema_change c
	JOIN pg_namespace n ON n.oid = c.version_oid WHERE c.name = 'later'$$,
	$$SELECT 'lab_later'::regnamespace::oid$$, 'not that of this one');
REVOKE CREATE ON DATABASE :DBNAME FROM tap_owner;

SELECT * FROM finish();
