--
-- Definitions: deployments, mappings, preview; every good and every bad call.
-- The peer is another database of the same cluster.
--
\set VERBOSITY default
\set blue :DBNAME
SET client_min_messages = warning;
CREATE DATABASE regression_green TEMPLATE template0;
\c regression_green
SET client_min_messages = warning;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.pair AS (a integer, b text);
CREATE TYPE app.elsewhere AS ENUM ('x', 'y');
CREATE TABLE app.users (id integer PRIMARY KEY, name text NOT NULL,
	email text, added integer DEFAULT 7);
CREATE TABLE app."Odd ""name""" ("Key" integer PRIMARY KEY, "a b" text);
CREATE TABLE app.kinds (id bigint PRIMARY KEY, m app.mood, ms app.mood[],
	p app.pair, ps app.pair[], e app.elsewhere, n numeric(10,2), a integer[],
	v varchar(5));
CREATE TABLE app.generated (id integer PRIMARY KEY,
	twice integer GENERATED ALWAYS AS (id * 2) STORED, plain integer);
CREATE TABLE app.must (id integer PRIMARY KEY, must integer NOT NULL);
CREATE TABLE app.deferrable (id integer PRIMARY KEY DEFERRABLE, v text);
CREATE TABLE app.keyless (id integer, v text);
CREATE TABLE app.composite (a integer, b integer, v text, w text UNIQUE,
	PRIMARY KEY (a, b));
CREATE UNLOGGED TABLE app.unlogged (id integer PRIMARY KEY, v text);
CREATE VIEW app.view AS SELECT 1 AS id;
CREATE TABLE app.parts (id integer PRIMARY KEY, v text)
	PARTITION BY RANGE (id);
\c :blue
SET client_min_messages = warning;

CREATE EXTENSION pg_bluegreen;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.pair AS (a integer, b text);
CREATE TABLE app.users (id integer PRIMARY KEY, name text NOT NULL,
	email text);
INSERT INTO app.users VALUES (1, 'ann', 'Ann@x'), (2, 'bob', NULL);
CREATE TABLE app."Odd ""name""" ("Key" integer PRIMARY KEY, "a b" text);
CREATE TABLE app.kinds (id bigint PRIMARY KEY, m app.mood, ms app.mood[],
	p app.pair, ps app.pair[], e text, n numeric, a integer[], v text);
CREATE TABLE app.generated (id integer PRIMARY KEY,
	twice integer GENERATED ALWAYS AS (id * 2) STORED, plain integer);
CREATE TABLE app.plain (id integer PRIMARY KEY, v text);
CREATE TABLE app.keyless (id integer, v text);
CREATE TABLE app.parts (id integer PRIMARY KEY, v text)
	PARTITION BY RANGE (id);
CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES FROM (0) TO (10);
CREATE UNLOGGED TABLE app.unlogged (id integer PRIMARY KEY, v text);
CREATE VIEW app.view AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW app.matview AS SELECT 1 AS id;
CREATE SEQUENCE app.seq;
CREATE TEMPORARY TABLE temporary (id integer PRIMARY KEY);

-- Run a statement; its error without what depends on the place.
CREATE FUNCTION try(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	r text;
	m text;
	d text;
	h text;
BEGIN
	EXECUTE sql INTO r;
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL,
		h = PG_EXCEPTION_HINT;
	RETURN regexp_replace(SQLSTATE || ' ' || m
		|| coalesce(E'\n  ' || nullif(d, ''), '')
		|| coalesce(E'\n  ' || nullif(h, ''), ''),
		'on \S+/regression_green|port ''\d+''', 'on PEER', 'g');
END $$;

SELECT format('CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen OPTIONS (host %L, port %L, dbname ''regression_green'')',
	coalesce(nullif(trim(split_part(
		current_setting('unix_socket_directories'), ',', 1)), ''), '127.0.0.1'),
	current_setting('port')) AS create_server \gset
:create_server;
SELECT format('CREATE USER MAPPING FOR CURRENT_USER SERVER green OPTIONS (user %L)',
	current_user) AS create_mapping \gset
:create_mapping;
CREATE FOREIGN DATA WRAPPER other_wrapper;
CREATE SERVER other FOREIGN DATA WRAPPER other_wrapper;
\pset format unaligned
\pset tuples_only on

-- deployments
SELECT try($$SELECT bluegreen.create_deployment('d', 'nowhere')$$);
SELECT try($$SELECT bluegreen.create_deployment('d', 'other')$$);
SELECT try($$SELECT bluegreen.create_deployment('', 'green')$$);
SELECT try($$SELECT bluegreen.create_deployment(NULL, 'green')$$);
SELECT bluegreen.create_deployment('d', 'green');
SELECT try($$SELECT bluegreen.create_deployment('d', 'green')$$);
SELECT try($$SELECT bluegreen.drop_deployment('nope')$$);
SELECT try($$SELECT bluegreen.map_table('nope', 'app.users')$$);

-- the peer must have the extension
SELECT try($$SELECT bluegreen.map_table('d', 'app.users')$$);
\c regression_green
CREATE EXTENSION pg_bluegreen;
\c :blue
SET client_min_messages = warning;
CREATE TEMPORARY TABLE temporary (id integer PRIMARY KEY);

-- arguments
SELECT try($$SELECT bluegreen.map_table(NULL, 'app.users')$$);
SELECT try($$SELECT bluegreen.map_table('d', NULL)$$);
SELECT try($$SELECT bluegreen.map_table('d', 0)$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', 'a.b.c')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', on_write => 'no')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', on_write => NULL)$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', on_delete => 'no')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', key => '{NULL}')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', direction => 'backward')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', direction => 'up')$$);

-- lookups
\c regression_green
CREATE TABLE app.owner (who text PRIMARY KEY, user_id integer, since date);
CREATE TABLE app.halves (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE app.half PARTITION OF app.halves FOR VALUES FROM (0) TO (9);
CREATE TABLE app.landlord (id integer PRIMARY KEY);
CREATE ROLE regress_bluegreen_landlord;
ALTER TABLE app.landlord OWNER TO regress_bluegreen_landlord;
\c :blue
SET client_min_messages = warning;
CREATE TABLE app.letter (id integer PRIMARY KEY, sender text, m app.mood,
	at numeric(7,2), tags integer[], v varchar(9));
SELECT bluegreen.create_deployment('l', 'green');
CREATE FUNCTION look(lookup text,
	transform text DEFAULT 'SELECT id, email AS mail FROM app.users')
RETURNS text LANGUAGE sql AS $$
	SELECT try(format($f$SELECT bluegreen.map_table('l', 'app.users',
		'app.composite', transform => %L, lookup => %L)$f$,
		transform, lookup))
$$;
SELECT look('x');
SELECT look('SELECT 1; SELECT 2');
SELECT look('SELECT id AS a, 1 AS b INTO t FROM incoming');
SELECT look('DELETE FROM incoming');
SELECT look('WITH d AS (DELETE FROM owner RETURNING who)
	SELECT id AS a, 1 AS b FROM incoming JOIN d ON who = mail');
SELECT look('SELECT user_id AS a, 1 AS b FROM owner');
SELECT look('SELECT i.id AS a, o.id AS b
	FROM incoming i JOIN incoming o ON o.id = i.id');
SELECT look('SELECT id AS a, 1 AS b FROM (SELECT * FROM incoming) i');
SELECT look('WITH incoming AS (SELECT 1 AS id)
	SELECT id AS a, 1 AS b FROM incoming');
SELECT look('SELECT id AS a, user_id AS b FROM incoming, owner
	WHERE who = mail');
SELECT look('SELECT id AS a, user_id AS b FROM incoming
	RIGHT JOIN owner ON who = mail');
SELECT look('SELECT id AS a, user_id AS b FROM incoming
	FULL JOIN owner ON who = mail');
SELECT look('SELECT id AS a, max(user_id) AS b FROM incoming
	JOIN owner ON who = mail GROUP BY id');
SELECT look('SELECT DISTINCT id AS a, 1 AS b FROM incoming');
SELECT look('SELECT id AS a, 1 AS b FROM incoming LIMIT 1');
SELECT look('SELECT id AS a, 1 AS b FROM incoming UNION SELECT 1, 2');
SELECT look('SELECT id AS a, generate_series(1, 2) AS b FROM incoming');
SELECT look('SELECT id AS a, row_number() OVER () AS b FROM incoming');
SELECT look('SELECT id AS a, 1 AS b FROM incoming
	JOIN owner ON who = mail FOR UPDATE OF owner');
SELECT look('SELECT id AS a, random()::int AS b FROM incoming');
SELECT look('SELECT id AS a, v.id AS b FROM incoming
	JOIN view v USING (id)');
SELECT look('SELECT id AS a, relpages AS b FROM incoming
	JOIN pg_class ON relname = mail');
SELECT look('SELECT id AS a, 1 AS b FROM incoming JOIN landlord USING (id)');
SELECT look('SELECT id AS a, 1 AS b FROM incoming JOIN nowhere USING (id)');
SELECT look('SELECT id AS a, name AS b FROM incoming');
SELECT look('SELECT id AS a FROM incoming');
SELECT look('SELECT id AS a, 1 AS b, 2 AS c FROM incoming');
SELECT look('SELECT id AS a, 1 AS b, 2 AS b FROM incoming');
SELECT look('SELECT id AS a, current_date AS b FROM incoming');
SELECT look('SELECT mail AS v, 1 AS a, 2 AS b FROM incoming',
	'SELECT email AS mail FROM app.users');
SELECT look('SELECT mail AS v, 1 AS a, 2 AS b FROM incoming',
	'SELECT id + 1 AS id, email AS mail FROM app.users');
SELECT look('SELECT 1 AS a, 2 AS b FROM incoming',
	'SELECT id, email AS id FROM app.users');
-- what a DELETE or UPDATE does not carry
SELECT look('SELECT id AS a, user_id AS b FROM incoming
	JOIN owner ON who = mail');
SELECT look('SELECT id AS a, id AS b, mail AS v FROM incoming');
SELECT look('SELECT id AS a, id AS b FROM incoming',
	'SELECT id FROM app.users WHERE length(name) > 3');
-- without a key
SELECT try($$SELECT bluegreen.map_table('l', 'app.keyless',
	lookup => 'SELECT id, v FROM incoming')$$);
SELECT try($$SELECT bluegreen.map_table('l', 'app.keyless', 'app.users',
	lookup => 'SELECT id, v AS name FROM incoming')$$);
SELECT try($$SELECT bluegreen.map_table('l', 'app.users', key => '{}',
	lookup => 'SELECT * FROM incoming')$$);
-- all is well
ALTER TABLE app.users REPLICA IDENTITY FULL;
ALTER TABLE app.letter REPLICA IDENTITY FULL;
SELECT look('SELECT id AS a, user_id AS b, mail AS v FROM incoming
	LEFT JOIN owner ON who = mail WHERE since > ''2020-01-01''');
SELECT look('SELECT id AS a, user_id AS b FROM incoming
	LEFT JOIN owner ON who = mail');
SELECT try($$SELECT bluegreen.map_table('l', 'app.letter', 'app.kinds',
	lookup => 'SELECT id, m, at AS n, tags AS a, (SELECT max(id) FROM half)::text
		AS v FROM incoming')$$);
SELECT target, key, lookup FROM bluegreen.mapping WHERE deployment = 'l';
SELECT m.target_table, lookup_query, lookup_columns, lookup_key, lookup_reads
	FROM bluegreen.table_mapping m JOIN bluegreen.deployment d
		ON d.id = m.deployment WHERE d.name = 'l' ORDER BY 1;
SELECT m.target_table, c.name, c.type, c.wire, c.is_key, c.finds
	FROM bluegreen.mapping_column c JOIN bluegreen.table_mapping m
		ON m.id = c.mapping JOIN bluegreen.deployment d
		ON d.id = m.deployment WHERE d.name = 'l' ORDER BY 1, position;
SELECT target, action, target_row FROM bluegreen.preview('l', 'app.users', 1);
-- changed
SELECT try($$SELECT bluegreen.alter_mapping('l', 'app.letter',
	transform => 'SELECT id, v FROM app.letter')$$);
SELECT try($$SELECT bluegreen.alter_mapping('l', 'app.letter',
	transform => 'SELECT id, v FROM app.letter',
	lookup => 'SELECT id, v FROM incoming')$$);
SELECT key, lookup FROM bluegreen.mapping WHERE target = 'app.kinds';
SELECT try($$SELECT bluegreen.alter_mapping('l', 'app.letter',
	lookup => '')$$);
SELECT key, lookup FROM bluegreen.mapping WHERE target = 'app.kinds';
-- each would wait for the other's copy
SELECT try($$SELECT bluegreen.map_table('l', 'app.plain', 'app.owner',
	lookup => 'SELECT i.v AS who, b AS user_id FROM incoming i
		LEFT JOIN composite ON a = id')$$);
ALTER TABLE app.plain REPLICA IDENTITY FULL;
SELECT try($$SELECT bluegreen.map_table('l', 'app.plain', 'app.owner',
	lookup => 'SELECT i.v AS who, b AS user_id FROM incoming i
		LEFT JOIN composite ON a = id')$$);
SELECT bluegreen.drop_deployment('l');
DROP TABLE app.letter;
DROP FUNCTION look;
ALTER TABLE app.users REPLICA IDENTITY DEFAULT;
ALTER TABLE app.plain REPLICA IDENTITY DEFAULT;
\c regression_green
DROP TABLE app.owner, app.halves, app.landlord;
DROP ROLE regress_bluegreen_landlord;
\c :blue
SET client_min_messages = warning;
CREATE TEMPORARY TABLE temporary (id integer PRIMARY KEY);

-- sources
SELECT try($$SELECT bluegreen.map_table('d', 'app.view')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.matview')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.seq')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain_pkey')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.unlogged')$$);
SELECT regexp_replace(try($$SELECT bluegreen.map_table('d', 'temporary')$$),
	'pg_temp_\d+', 'pg_temp');
SELECT try($$SELECT bluegreen.map_table('d', 'app.parts_1')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'pg_class')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'information_schema.sql_features')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'bluegreen.deployment')$$);

-- targets
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'nowhere.plain')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'view')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'unlogged')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'pg_catalog.pg_class')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'bluegreen.deployment')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'deferrable')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'keyless')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', key => '{email}')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', key => '{nope}')$$);

-- columns
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'users')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'must', 'SELECT id FROM app.plain')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'must', 'SELECT 1 AS must FROM app.plain')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', transform => 'SELECT id, name, lower(email) FROM app.users')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', transform => 'SELECT id, name, email AS name FROM app.users')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.generated', transform => 'SELECT id, twice FROM app.generated')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users', transform => 'SELECT id, name, ARRAY[1] AS added FROM app.users')$$);

-- nothing of all that has left anything
SELECT count(*) FROM bluegreen.mapping;
SELECT count(*) FROM pg_class WHERE relname LIKE 'transform\_%'
	AND relnamespace = 'bluegreen'::regnamespace;

-- good ones; a name in a transform is the caller's to resolve
SET search_path = app, public;
SELECT try($$SELECT bluegreen.map_table('d', 'users',
	transform => 'SELECT id, upper(name) AS name FROM users WHERE id <> 2')$$);
RESET search_path;
SELECT try($$SELECT bluegreen.map_table('d', 'app.users')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.plain', 'must', 'SELECT id FROM app.plain', on_write => 'patch', on_delete => 'ignore')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.generated')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.kinds')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app."Odd ""name"""')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.parts')$$);
\pset format aligned
\pset tuples_only off
SELECT deployment, source, target, key, on_write, on_delete
FROM bluegreen.mapping;
SELECT replace(regexp_replace(transform, '\s+', ' ', 'g'), 'users.', '')
FROM bluegreen.mapping WHERE source = 'app.users';
SELECT m.source, c.name, c.type, c.wire, c.is_key
FROM bluegreen.mapping_column c
	JOIN bluegreen.mapping m USING (mapping)
ORDER BY c.mapping, c.position;
SELECT source::regclass, has_other_columns FROM bluegreen.table_mapping
ORDER BY id;

-- preview
SELECT * FROM bluegreen.preview('d', 'app.users');
SELECT count(*) FROM bluegreen.preview('d', 'app.users', 1);
SELECT count(*) FROM bluegreen.preview('d', 'app.parts');
ALTER TABLE app.plain ADD COLUMN later integer;
INSERT INTO app.plain (id, later) VALUES (1, 1);
SELECT target_row FROM bluegreen.preview('d', 'app.plain');
\pset format unaligned
\pset tuples_only on
SELECT try($$SELECT bluegreen.preview('d', 'app.users', -1)$$);
SELECT try($$SELECT bluegreen.preview('d', 'app.keyless')$$);

-- the transform's view guards what it reads, and the extension is not lost
-- to a CASCADE
SELECT split_part(try($$ALTER TABLE app.users DROP COLUMN name$$), E'\n', 1);
SELECT try($$DROP TABLE app.users CASCADE$$);
SELECT try($$DROP EXTENSION pg_bluegreen CASCADE$$);
SELECT split_part(try($$DROP VIEW $$ || view::regclass), E'\n', 1) <> 'ok'
FROM bluegreen.table_mapping LIMIT 1;
ALTER TABLE app.users RENAME COLUMN name TO nom;
SELECT target_row FROM bluegreen.preview('d', 'app.users', 1);
ALTER TABLE app.users RENAME COLUMN nom TO name;

-- unmap
SELECT try($$SELECT bluegreen.unmap_table('d', 'app.users', 'nope')$$);
SELECT bluegreen.unmap_table('d', 'app.users', 'app.users');
SELECT try($$SELECT bluegreen.unmap_table('d', 'app.users')$$);
SELECT try($$SELECT bluegreen.unmap_table('d', NULL)$$);
SELECT mapping_version > 1 FROM bluegreen.deployment;

-- map_schema: all or nothing
SELECT try($$SELECT bluegreen.map_schema('d', 'nowhere')$$);
SELECT try($$SELECT bluegreen.map_schema('d', 'app')$$);
SELECT bluegreen.create_deployment('e', 'green');
SELECT source FROM bluegreen.map_schema('e', 'app',
	exclude => '{unlogged,plain,keyless}');
SELECT count(*) FROM bluegreen.mapping WHERE deployment = 'e';
SELECT try($$SELECT bluegreen.map_schema('e', 'app', 'nowhere', '{unlogged}')$$);

-- a user who is not the owner
CREATE ROLE regress_bluegreen_other LOGIN REPLICATION;
SET ROLE regress_bluegreen_other;
SELECT try($$SELECT bluegreen.create_deployment('f', 'green')$$);
SELECT try($$SELECT * FROM bluegreen.deployment$$);
SELECT try($$SELECT * FROM bluegreen.status$$);
RESET ROLE;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO regress_bluegreen_other;
GRANT USAGE ON SCHEMA app TO regress_bluegreen_other;
GRANT pg_monitor TO regress_bluegreen_other;
SET ROLE regress_bluegreen_other;
SELECT try($$SELECT bluegreen.create_deployment('f', 'green')$$);
SELECT try($$SELECT bluegreen.map_table('d', 'app.users')$$);
SELECT try($$SELECT bluegreen.unmap_table('d', 'app.plain')$$);
SELECT try($$SELECT bluegreen.preview('d', 'app.plain')$$);
SELECT try($$SELECT bluegreen.drop_deployment('d')$$);
SELECT try($$SELECT bluegreen.skip('d', '0/1')$$);
CALL bluegreen.start('d');
CALL bluegreen.stop('d');
CALL bluegreen.wait_for_sync('d');
SELECT deployment, state, tables FROM bluegreen.status;
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER green TO regress_bluegreen_other;
SET ROLE regress_bluegreen_other;
SELECT bluegreen.create_deployment('f', 'green');
SELECT try($$SELECT bluegreen.map_table('f', 'app.users')$$);
RESET ROLE;
GRANT SELECT ON app.users TO regress_bluegreen_other;
ALTER TABLE app.users ENABLE ROW LEVEL SECURITY;
SET ROLE regress_bluegreen_other;
SELECT try($$SELECT bluegreen.map_table('f', 'app.users')$$);
SELECT bluegreen.drop_deployment('f');
RESET ROLE;

-- control without a stream
CALL bluegreen.start('nope');
CALL bluegreen.start(NULL);
BEGIN;
CALL bluegreen.start('d');
ROLLBACK;
CALL bluegreen.stop('d');
CALL bluegreen.wait_for_sync('d', '1s');
SELECT try($$SELECT bluegreen.skip('d', '0/1')$$);
SELECT bluegreen.create_deployment('empty', 'green');
CALL bluegreen.start('empty');
SELECT deployment, state, tables FROM bluegreen.status;
SELECT bluegreen.commit_time();

-- nothing is executable for PUBLIC that need not be
SELECT p.oid::regprocedure FROM pg_proc p
WHERE p.pronamespace = 'bluegreen'::regnamespace
	AND has_function_privilege('public', p.oid, 'EXECUTE')
ORDER BY 1;
-- everything has a comment
SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
WHERE refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_bluegreen')
	AND deptype = 'e' AND obj_description(objid, classid::regclass::name) IS NULL
	AND pg_describe_object(classid, objid, 0) !~ '^(sequence|view bluegreen.transform_|type)';

-- drop
SELECT bluegreen.drop_deployment('empty');
SELECT bluegreen.drop_deployment('d');
SELECT bluegreen.drop_deployment('e', force => true);
SELECT count(*) FROM bluegreen.mapping;
SELECT count(*) FROM pg_class WHERE relname LIKE 'transform\_%'
	AND relnamespace = 'bluegreen'::regnamespace;
SELECT deployment, kind, message FROM bluegreen.event;
DROP EXTENSION pg_bluegreen CASCADE;
DROP OWNED BY regress_bluegreen_other;
DROP ROLE regress_bluegreen_other;
DROP FOREIGN DATA WRAPPER other_wrapper CASCADE;
DROP SCHEMA app CASCADE;
DROP SCHEMA bluegreen CASCADE;
DROP FUNCTION try(text);
DROP DATABASE regression_green;
