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

SELECT * FROM finish();
