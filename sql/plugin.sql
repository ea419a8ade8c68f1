--
-- The output plugin read through SQL: what every kind of change becomes under
-- every kind of mapping.  The peer is another database of the same cluster.
--
\set blue :DBNAME
SET client_min_messages = warning;
CREATE DATABASE regression_green TEMPLATE template0;
\c regression_green
SET client_min_messages = warning;
CREATE EXTENSION pg_bluegreen;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.pair AS (a integer, b text);
CREATE DOMAIN app.positive AS integer CHECK (VALUE > 0);
CREATE TABLE app.t (id integer PRIMARY KEY, v text, n integer);
CREATE TABLE app.moves (id integer PRIMARY KEY, v text, own text);
CREATE TABLE app.big (id integer PRIMARY KEY, n integer, big text);
CREATE TABLE app.big_moves (id integer PRIMARY KEY, n integer, big text,
	own text);
CREATE TABLE app.big_filtered (id integer PRIMARY KEY, n integer, big text);
CREATE TABLE app.full_row (id integer PRIMARY KEY, joined text);
CREATE TABLE app.coded (code integer PRIMARY KEY, id integer, v text);
CREATE TABLE app.by_key (id integer PRIMARY KEY, v text);
CREATE TABLE app.by_other (id integer PRIMARY KEY, n integer);
CREATE TABLE app.by_full (id integer PRIMARY KEY, n integer);
CREATE TABLE app.merge_delete (id integer PRIMARY KEY, n integer, own text);
CREATE TABLE app.merge_ignore (LIKE app.merge_delete INCLUDING ALL);
CREATE TABLE app.merge_write (LIKE app.merge_delete INCLUDING ALL);
CREATE TABLE app.patch_delete (LIKE app.merge_delete INCLUDING ALL);
CREATE TABLE app.patch_ignore (LIKE app.merge_delete INCLUDING ALL);
CREATE TABLE app.patch_write (LIKE app.merge_delete INCLUDING ALL);
CREATE TABLE app.mirror_ignore (LIKE app.merge_delete INCLUDING ALL);
CREATE TABLE app.mirror_write (LIKE app.merge_delete INCLUDING ALL);
CREATE TABLE app.parts (id integer PRIMARY KEY, a text, b text);
CREATE TABLE app.altered (id integer PRIMARY KEY, v text, w integer);
CREATE TABLE app.retyped (id integer PRIMARY KEY, v text);
CREATE TABLE app.moment (id integer PRIMARY KEY, at timestamptz, lsn pg_lsn);
CREATE TABLE app.called (id integer PRIMARY KEY, s integer, p text);
CREATE TABLE app.computed (id integer PRIMARY KEY, twice integer, k integer);
CREATE TABLE app.kinds (id bigint PRIMARY KEY, m app.mood, ms app.mood[],
	p app.pair, ps app.pair[], d app.positive, r int4range, rs tstzrange[],
	n numeric(6,2), b bytea, at timestamptz, j jsonb, i interval, f float8,
	v varchar(3));
CREATE TABLE app."Odd ""name""" ("Key" integer PRIMARY KEY, "a 'b'" text);
CREATE TABLE app.nullable (k integer PRIMARY KEY, v text);
CREATE TABLE app.identity (id integer PRIMARY KEY, n integer);
\c :blue
SET client_min_messages = warning;
CREATE EXTENSION pg_bluegreen;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.pair AS (a integer, b text);
CREATE DOMAIN app.positive AS integer CHECK (VALUE > 0);
CREATE TABLE app.t (id integer PRIMARY KEY, v text, n integer);
CREATE TABLE app.moves (id integer PRIMARY KEY, v text);
CREATE TABLE app.big (id integer PRIMARY KEY, n integer, big text);
ALTER TABLE app.big ALTER big SET STORAGE EXTERNAL;
CREATE TABLE app.full_row (id integer PRIMARY KEY, n integer, big text);
ALTER TABLE app.full_row ALTER big SET STORAGE EXTERNAL;
ALTER TABLE app.full_row REPLICA IDENTITY FULL;
CREATE TABLE app.coded (id integer PRIMARY KEY, code integer NOT NULL UNIQUE,
	v text);
ALTER TABLE app.coded REPLICA IDENTITY USING INDEX coded_code_key;
CREATE TABLE app.filtered (id integer PRIMARY KEY, n integer, v text);
CREATE TABLE app.filtered_full (id integer PRIMARY KEY, n integer);
ALTER TABLE app.filtered_full REPLICA IDENTITY FULL;
CREATE TABLE app.many (id integer PRIMARY KEY, n integer);
ALTER TABLE app.many REPLICA IDENTITY FULL;
CREATE TABLE app.parts (id integer PRIMARY KEY, a text, b text)
	PARTITION BY RANGE (id);
CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES FROM (0) TO (10);
CREATE TABLE app.parts_2 (b text, gone integer, a text, id integer PRIMARY KEY);
ALTER TABLE app.parts_2 DROP COLUMN gone;
ALTER TABLE app.parts ATTACH PARTITION app.parts_2 FOR VALUES FROM (10) TO (20);
CREATE TABLE app.altered (id integer PRIMARY KEY, gone integer, v text);
INSERT INTO app.altered VALUES (1, 1, 'before the drop'), (2, 2, 'too');
ALTER TABLE app.altered DROP COLUMN gone;
CREATE TABLE app.defaulted (id integer PRIMARY KEY);
INSERT INTO app.defaulted VALUES (1), (2);
ALTER TABLE app.defaulted ADD n integer DEFAULT 42,
	REPLICA IDENTITY FULL;
CREATE TABLE app.retyped (id integer PRIMARY KEY, v integer);
CREATE TABLE app.moment (id integer PRIMARY KEY);
CREATE TABLE app.called (id integer PRIMARY KEY, n integer);
CREATE TABLE app.computed (id integer PRIMARY KEY,
	k integer GENERATED ALWAYS AS IDENTITY,
	twice integer GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE app.kinds (id bigint PRIMARY KEY, m app.mood, ms app.mood[],
	p app.pair, ps app.pair[], d app.positive, r int4range, rs tstzrange[],
	n numeric, b bytea, at timestamptz, j jsonb, i interval, f float8, v text);
CREATE TABLE app."Odd ""name""" ("Key" integer PRIMARY KEY, "a 'b'" text);
CREATE TABLE app.nullable (id integer PRIMARY KEY, k integer);
ALTER TABLE app.nullable REPLICA IDENTITY FULL;
CREATE TABLE app.identity (id integer PRIMARY KEY, n integer);
CREATE TABLE app.unmapped (id integer);
CREATE FUNCTION app.in_sql(n integer) RETURNS integer IMMUTABLE LANGUAGE sql
	AS 'SELECT max(x) FROM generate_series(n, n * 2) x';
CREATE FUNCTION app.in_plpgsql(n integer) RETURNS text IMMUTABLE
	LANGUAGE plpgsql
	AS 'BEGIN RETURN (SELECT string_agg(x::text, ''+'') FROM generate_series(1, n) x); END';

SELECT format('CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen OPTIONS (host %L, port %L, dbname ''regression_green'')',
	coalesce(nullif(trim(split_part(
		current_setting('unix_socket_directories'), ',', 1)), ''), '127.0.0.1'),
	current_setting('port')) AS create_server \gset
:create_server;
SELECT format('CREATE USER MAPPING FOR CURRENT_USER SERVER green OPTIONS (user %L)',
	current_user) AS create_mapping \gset
:create_mapping;
\pset format unaligned
\pset tuples_only on
SELECT bluegreen.create_deployment('d', 'green') > 0
	AND bluegreen.create_deployment('none', 'green') > 0;
SELECT count(*) FROM (VALUES
	(bluegreen.map_table('d', 'app.t')),
	(bluegreen.map_table('d', 'app.moves')),
	(bluegreen.map_table('d', 'app.big')),
	(bluegreen.map_table('d', 'app.big', 'big_moves')),
	(bluegreen.map_table('d', 'app.full_row', NULL,
		'SELECT id, n || left(big, 3) AS joined FROM app.full_row')),
	(bluegreen.map_table('d', 'app.coded')),
	(bluegreen.map_table('d', 'app.filtered', 'by_key',
		'SELECT id, v FROM app.filtered WHERE id < 100')),
	(bluegreen.map_table('d', 'app.filtered', 'by_other',
		'SELECT id, n FROM app.filtered WHERE n > 5')),
	(bluegreen.map_table('d', 'app.filtered_full', 'by_full',
		'SELECT id, n FROM app.filtered_full WHERE n > 5')),
	(bluegreen.map_table('d', 'app.many', 'merge_delete',
		on_write => 'merge')),
	(bluegreen.map_table('d', 'app.many', 'merge_ignore',
		on_write => 'merge', on_delete => 'ignore')),
	(bluegreen.map_table('d', 'app.many', 'merge_write',
		'SELECT id, -n AS n FROM app.many',
		on_write => 'merge', on_delete => 'write')),
	(bluegreen.map_table('d', 'app.many', 'patch_delete',
		on_write => 'patch')),
	(bluegreen.map_table('d', 'app.many', 'patch_ignore',
		on_write => 'patch', on_delete => 'ignore')),
	(bluegreen.map_table('d', 'app.many', 'patch_write',
		'SELECT id, -n AS n FROM app.many WHERE n > 5',
		on_write => 'patch', on_delete => 'write')),
	(bluegreen.map_table('d', 'app.many', 'mirror_ignore',
		on_delete => 'ignore')),
	(bluegreen.map_table('d', 'app.many', 'mirror_write',
		on_delete => 'write')),
	(bluegreen.map_table('d', 'app.parts')),
	(bluegreen.map_table('d', 'app.altered')),
	(bluegreen.map_table('d', 'app.defaulted', 'by_other')),
	(bluegreen.map_table('d', 'app.retyped')),
	(bluegreen.map_table('d', 'app.moment', NULL, 'SELECT id,
		bluegreen.commit_time() AS at, bluegreen.commit_lsn() AS lsn
		FROM app.moment')),
	(bluegreen.map_table('d', 'app.called', NULL, 'SELECT id,
		app.in_sql(n) AS s, app.in_plpgsql(n) AS p FROM app.called')),
	(bluegreen.map_table('d', 'app.computed')),
	(bluegreen.map_table('d', 'app.kinds')),
	(bluegreen.map_table('d', 'app."Odd ""name"""')),
	(bluegreen.map_table('d', 'app.nullable', NULL,
		'SELECT k, id AS v FROM app.nullable')),
	(bluegreen.map_table('d', 'app.identity'))) m;
SELECT 1 FROM pg_create_logical_replication_slot('regress_bluegreen',
	'pg_bluegreen');

-- What happened since the last call, without transactions that show nothing
-- (autovacuum has some) and with long values cut.
CREATE FUNCTION changes() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT regexp_replace(data, '(\w)\1{99,}', '\1...', 'g')
	FROM (SELECT data, n, lag(data) OVER w AS before, lead(data) OVER w AS after
		FROM pg_logical_slot_get_changes('regress_bluegreen', NULL, NULL,
				'deployment', 'd', 'format', 'text')
			WITH ORDINALITY AS c (lsn, xid, data, n)
		WINDOW w AS (ORDER BY n)) c
	WHERE NOT (data = 'BEGIN' AND after = 'COMMIT')
		AND NOT (data = 'COMMIT' AND before = 'BEGIN')
	ORDER BY n
$$;
CREATE FUNCTION to_now() RETURNS boolean LANGUAGE sql AS $$
	SELECT end_lsn IS NOT NULL FROM pg_replication_slot_advance(
		'regress_bluegreen', pg_current_wal_insert_lsn())
$$;

-- insert, update, delete; what is not mapped is not there
INSERT INTO app.t VALUES (1, 'one', 1), (2, NULL, 2);
UPDATE app.t SET v = 'it''s \ one' WHERE id = 1;
UPDATE app.t SET n = NULL WHERE id = 1;
DELETE FROM app.t WHERE id = 2;
INSERT INTO app.unmapped VALUES (1);
SELECT changes();
SELECT changes();

-- one transaction is one transaction, with its subtransactions that committed
BEGIN;
INSERT INTO app.t VALUES (3, 'kept', 3);
SAVEPOINT a;
INSERT INTO app.t VALUES (4, 'rolled back', 4);
UPDATE app.t SET v = 'rolled back' WHERE id = 3;
ROLLBACK TO a;
SAVEPOINT b;
INSERT INTO app.moves VALUES (3, 'kept');
RELEASE b;
UPDATE app.t SET v = 'kept, changed' WHERE id = 3;
COMMIT;
BEGIN;
DELETE FROM app.t;
ROLLBACK;
SELECT changes();

-- a key that changes: delete and insert, or a move that keeps what is the
-- target's own; an UPDATE that leaves the key alone is neither
UPDATE app.t SET id = 5 WHERE id = 3;
UPDATE app.t SET id = 5, v = 'same key' WHERE id = 5;
UPDATE app.moves SET id = 5, v = 'moved' WHERE id = 3;
SELECT changes();

-- truncate, alone and as a group, is what it is
TRUNCATE app.unmapped;
TRUNCATE app.t;
TRUNCATE app.moves, app.unmapped, app.t RESTART IDENTITY CASCADE;
SELECT changes();

-- COPY, and ON CONFLICT in all its ways
COPY app.t FROM STDIN;
1	copied	\N
2	\N	2
\.
INSERT INTO app.t VALUES (1, 'nothing', 1) ON CONFLICT DO NOTHING;
INSERT INTO app.t VALUES (1, 'updated', 1), (9, 'inserted', 9)
	ON CONFLICT (id) DO UPDATE SET v = excluded.v || ' on conflict';
SELECT changes();

-- unchanged TOAST: left out, or nowhere at all
INSERT INTO app.big VALUES (1, 1, repeat('x', 5000)), (2, 2, 'small');
SELECT changes();
UPDATE app.big SET n = 10;
SELECT changes();
UPDATE app.big SET big = repeat('y', 5000) WHERE id = 1;
UPDATE app.big SET id = 3 WHERE id = 1;
UPDATE app.big SET big = NULL WHERE id = 3;
DELETE FROM app.big;
SELECT changes();
-- REPLICA IDENTITY FULL has it in the old row
INSERT INTO app.full_row VALUES (1, 1, repeat('x', 5000));
UPDATE app.full_row SET n = 2;
UPDATE app.full_row SET id = 2;
UPDATE app.full_row SET big = NULL;
DELETE FROM app.full_row;
SELECT changes();

-- another index as replica identity
INSERT INTO app.coded VALUES (1, 100, 'x');
UPDATE app.coded SET id = 2;
UPDATE app.coded SET code = 200;
DELETE FROM app.coded;
SELECT changes();

-- filters by the key and by another column, which an UPDATE hides
INSERT INTO app.filtered VALUES (1, 1, 'a'), (2, 9, 'b'), (101, 9, 'c');
SELECT changes();
UPDATE app.filtered SET n = 9 WHERE id = 1;
UPDATE app.filtered SET n = 1 WHERE id = 2;
UPDATE app.filtered SET id = 102 WHERE id = 2;
UPDATE app.filtered SET id = 3 WHERE id = 101;
UPDATE app.filtered SET id = 103 WHERE id = 102;
SELECT changes();
DELETE FROM app.filtered WHERE id = 103;
DELETE FROM app.filtered WHERE id = 1;
SELECT changes();
-- and where the old row tells
INSERT INTO app.filtered_full VALUES (1, 1), (2, 9);
UPDATE app.filtered_full SET n = n + 1;
UPDATE app.filtered_full SET n = 10 - n;
UPDATE app.filtered_full SET n = NULL WHERE id = 1;
UPDATE app.filtered_full SET id = 3, n = 8 WHERE id = 1;
UPDATE app.filtered_full SET id = 4 WHERE id = 3;
DELETE FROM app.filtered_full;
SELECT changes();

-- many mappings of one source: merge, patch and mirror with each on_delete
INSERT INTO app.many VALUES (1, 7);
SELECT changes();
UPDATE app.many SET n = 8;
SELECT changes();
UPDATE app.many SET n = 1;
SELECT changes();
UPDATE app.many SET id = 2, n = 9;
SELECT changes();
DELETE FROM app.many;
SELECT changes();
TRUNCATE app.many;
SELECT changes();

-- partitions are their root, whatever the order of their columns
INSERT INTO app.parts VALUES (1, 'a1', 'b1'), (11, 'a11', 'b11');
UPDATE app.parts SET a = a || '!';
UPDATE app.parts SET id = 12 WHERE id = 1;
UPDATE app.parts SET id = 13 WHERE id = 12;
INSERT INTO app.parts_2 (id, a, b) VALUES (14, 'a14', 'b14');
DELETE FROM app.parts WHERE id = 11;
CREATE TABLE app.parts_3 (a text, id integer PRIMARY KEY, b text);
ALTER TABLE app.parts ATTACH PARTITION app.parts_3 FOR VALUES FROM (20) TO (30);
INSERT INTO app.parts VALUES (21, 'a21', 'b21');
TRUNCATE app.parts;
SELECT changes();

-- columns that come, go and change their names on the way; dropped ones
UPDATE app.altered SET v = v || ', changed' WHERE id = 1;
ALTER TABLE app.altered ADD unmapped integer DEFAULT 5;
INSERT INTO app.altered VALUES (3, 'with one more', 1);
UPDATE app.altered SET unmapped = 6 WHERE id = 2;
ALTER TABLE app.altered RENAME v TO renamed;
INSERT INTO app.altered VALUES (4, 'renamed', 1);
ALTER TABLE app.altered DROP unmapped;
INSERT INTO app.altered VALUES (5, 'and one less');
DELETE FROM app.altered WHERE id = 1;
ALTER TABLE app.altered RENAME renamed TO v;
SELECT changes();
-- a default that old rows do not store
SELECT bluegreen.unmap_table('d', 'app.defaulted');
SELECT bluegreen.map_table('d', 'app.defaulted', 'mirror_write',
	on_delete => 'write') > 0;
DELETE FROM app.defaulted WHERE id = 1;
UPDATE app.defaulted SET id = 3 WHERE id = 2;
SELECT changes();

-- generated and identity columns
INSERT INTO app.computed VALUES (4, DEFAULT, DEFAULT);
UPDATE app.computed SET id = 5;
SELECT changes();

-- the user's functions
INSERT INTO app.called VALUES (1, 4), (2, NULL);
UPDATE app.called SET n = 2 WHERE id = 2;
SELECT changes();
INSERT INTO app.called VALUES (3, 1);
CREATE OR REPLACE FUNCTION app.in_plpgsql(n integer) RETURNS text IMMUTABLE
	LANGUAGE plpgsql AS 'BEGIN RETURN ''then''; END';
INSERT INTO app.called VALUES (4, 1);
SELECT changes();

-- types, and settings of the session that reads
INSERT INTO app.kinds VALUES (1, 'ok', '{sad,ok}', '(1,"x y")',
	'{"(1,a)","(2,)"}', 5, '[1,5)', '{"[2024-01-01 00:00+00,)"}', 1.005,
	'\x00ff', '2024-02-29 23:30+00', '{"a": [1]}', '1 year 2 days -3 hours',
	0.12345678901234567, 'abc'),
	(2, NULL, '{}', NULL, '{NULL}', NULL, 'empty', NULL, 'NaN', '', 'infinity',
	'null', '0', '-infinity', '');
SET timezone = 'Asia/Tokyo';
SET datestyle = 'SQL, DMY';
SET intervalstyle = 'sql_standard';
SET extra_float_digits = -5;
SET bytea_output = 'escape';
SELECT changes();
SHOW timezone;
RESET timezone;
RESET datestyle;
RESET intervalstyle;
RESET extra_float_digits;
RESET bytea_output;
INSERT INTO app."Odd ""name""" VALUES (1, 'Grüße');
SELECT changes();

-- the moment: of the commit on the source, here and nowhere else
CREATE TABLE app.seen (data text);
INSERT INTO app.moment VALUES (1);
SELECT pg_current_wal_insert_lsn() AS before \gset
BEGIN;
INSERT INTO app.moment VALUES (2);
SELECT txid_current() % (2::bigint ^ 32)::bigint AS xid \gset
COMMIT;
INSERT INTO app.seen SELECT changes();
SELECT substring(data FROM $$at\[[^]]*\]:'([^']*)'$$)::timestamptz
		= pg_xact_commit_timestamp(:'xid'::xid) AS its_commit_time,
	substring(data FROM $$lsn\[[^]]*\]:'([^']*)'$$)::pg_lsn
		BETWEEN :'before' AND pg_current_wal_lsn() AS its_commit_lsn
FROM app.seen WHERE data LIKE '%''2''%';
SELECT count(DISTINCT substring(data FROM $$at\[[^]]*\]:'([^']*)'$$)),
	count(DISTINCT substring(data FROM $$lsn\[[^]]*\]:'([^']*)'$$))
FROM app.seen;
SELECT bluegreen.commit_time();
SELECT bluegreen.commit_lsn();

-- messages; ours are for the workers
BEGIN;
SELECT 1 FROM pg_logical_emit_message(true, 'mine', 'in a transaction');
INSERT INTO app.t VALUES (20, 'with a message', 0);
SELECT 1 FROM pg_logical_emit_message(false, 'mine', 'at once');
COMMIT;
BEGIN;
SELECT 1 FROM pg_logical_emit_message(true, 'mine', 'lost');
SELECT 1 FROM pg_logical_emit_message(false, 'mine', 'not lost');
ROLLBACK;
SELECT 1 FROM pg_logical_emit_message(true, 'bluegreen', 'nobody''s');
SELECT 1 FROM pg_logical_emit_message(true, '', '');
SELECT changes();

-- a prepared transaction arrives with its commit, or never
BEGIN;
INSERT INTO app.t VALUES (30, 'prepared', 0);
PREPARE TRANSACTION 'regress_bluegreen_commit';
BEGIN;
INSERT INTO app.t VALUES (31, 'prepared, rolled back', 0);
PREPARE TRANSACTION 'regress_bluegreen_rollback';
INSERT INTO app.t VALUES (32, 'meanwhile', 0);
SELECT changes();
COMMIT PREPARED 'regress_bluegreen_commit';
ROLLBACK PREPARED 'regress_bluegreen_rollback';
SELECT changes();

-- peek leaves them, binary is the same text
INSERT INTO app.t VALUES (40, 'peeked', 0);
SELECT data FROM pg_logical_slot_peek_changes('regress_bluegreen', NULL, NULL,
	'deployment', 'd') WHERE data LIKE 'table%';
SELECT convert_from(data, 'UTF8')
FROM pg_logical_slot_peek_binary_changes('regress_bluegreen', NULL, NULL,
	'deployment', 'd') WHERE data LIKE 'table%';
-- another deployment, and the other direction, have none of it
SELECT count(*) FROM pg_logical_slot_peek_changes('regress_bluegreen', NULL,
	NULL, 'deployment', 'none') WHERE data NOT IN ('BEGIN', 'COMMIT');
SELECT count(*) FROM pg_logical_slot_peek_changes('regress_bluegreen', NULL,
	NULL, 'deployment', 'd', 'direction', 'backward')
WHERE data NOT IN ('BEGIN', 'COMMIT');
SELECT changes();

--
-- What stops it
--
-- (An error that is caught inside a function leaves the slot acquired.)
CREATE FUNCTION peek(VARIADIC options text[]) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_logical_slot_peek_changes('regress_bluegreen', NULL, NULL,
		VARIADIC options);
	RETURN 'ok';
END $$;
\set SHOW_CONTEXT never

-- options
SELECT peek('deployment', 'd', 'format', 'text', 'direction', 'forward'); \echo :SQLSTATE
SELECT peek(VARIADIC '{}'); \echo :SQLSTATE
SELECT peek('format', 'text'); \echo :SQLSTATE
SELECT peek('deployment', 'd', 'include-xids', '1'); \echo :SQLSTATE
SELECT peek('deployment', 'd', 'Deployment', 'd'); \echo :SQLSTATE
SELECT peek('deployment', 'd', 'deployment', 'd'); \echo :SQLSTATE
SELECT peek('deployment', NULL); \echo :SQLSTATE
SELECT peek('deployment', 'd', 'format', 'json'); \echo :SQLSTATE
SELECT peek('deployment', 'd', 'format', ''); \echo :SQLSTATE
SELECT peek('deployment', 'd', 'direction', 'up'); \echo :SQLSTATE
SELECT peek('deployment', ''); \echo :SQLSTATE
SELECT peek('deployment', 'nope'); \echo :SQLSTATE
SELECT peek('deployment', repeat('d', 1000)); \echo :SQLSTATE
SELECT peek('deployment', 'd''; DROP TABLE app.t; --'); \echo :SQLSTATE
SELECT peek('deployment'); \echo :SQLSTATE
-- a role that may read slots may not read another's deployment
CREATE ROLE regress_bluegreen_reader LOGIN REPLICATION;
GRANT EXECUTE ON FUNCTION peek(text[]) TO regress_bluegreen_reader;
INSERT INTO app.t VALUES (50, 'secret', 0);
SET ROLE regress_bluegreen_reader;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT peek('deployment', 'nope'); \echo :SQLSTATE
SELECT data FROM pg_logical_slot_peek_changes('regress_bluegreen', NULL, NULL,
	'deployment', 'd');
RESET ROLE;
SELECT to_now();
-- its own it may, and a user's function runs as the deployment's owner, with
-- the owner's rights, whoever reads
GRANT USAGE ON FOREIGN SERVER green TO regress_bluegreen_reader;
GRANT EXECUTE ON FUNCTION bluegreen.create_deployment(name, name, name),
	bluegreen.map_table(name, text, text, text, text[], text, text, text,
	text, text) TO regress_bluegreen_reader;
GRANT USAGE ON SCHEMA app TO regress_bluegreen_reader;
GRANT SELECT ON app.called TO regress_bluegreen_reader;
SELECT format('CREATE USER MAPPING FOR regress_bluegreen_reader SERVER green OPTIONS (user %L, password_required ''false'')',
	current_user) AS create_mapping \gset
:create_mapping;
CREATE FUNCTION app.who(n integer) RETURNS text IMMUTABLE LANGUAGE plpgsql
	AS 'BEGIN RETURN n || '' by '' || current_user; END';
SET ROLE regress_bluegreen_reader;
SELECT bluegreen.create_deployment('readers', 'green') > 0;
SELECT bluegreen.map_table('readers', 'app.called', 'full_row',
	'SELECT id, app.who(n) AS joined FROM app.called') > 0;
RESET ROLE;
INSERT INTO app.called VALUES (5, 5);
INSERT INTO app.t VALUES (51, 'secret', 0);
SELECT data FROM pg_logical_slot_peek_changes('regress_bluegreen', NULL, NULL,
	'deployment', 'readers') WHERE data LIKE 'table%';
SET ROLE regress_bluegreen_reader;
SELECT data FROM pg_logical_slot_peek_changes('regress_bluegreen', NULL, NULL,
	'deployment', 'readers') WHERE data LIKE 'table%';
RESET ROLE;
SELECT current_user = session_user;
REVOKE EXECUTE ON FUNCTION app.who(integer) FROM PUBLIC;
SELECT peek('deployment', 'readers'); \echo :SQLSTATE
GRANT EXECUTE ON FUNCTION app.who(integer) TO PUBLIC;
SELECT to_now();

-- a replica identity that was taken away: while it is, and once it is back
INSERT INTO app.identity VALUES (1, 1), (2, 2);
ALTER TABLE app.identity REPLICA IDENTITY NOTHING;
UPDATE app.identity SET n = 2 WHERE id = 1;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
ALTER TABLE app.identity REPLICA IDENTITY DEFAULT;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();
ALTER TABLE app.identity REPLICA IDENTITY NOTHING;
DELETE FROM app.identity WHERE id = 1;
ALTER TABLE app.identity REPLICA IDENTITY DEFAULT;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();
ALTER TABLE app.identity REPLICA IDENTITY NOTHING;
INSERT INTO app.identity VALUES (3, 3);
ALTER TABLE app.identity REPLICA IDENTITY FULL;
UPDATE app.identity SET n = 3 WHERE id = 2;
ALTER TABLE app.identity REPLICA IDENTITY DEFAULT;
SELECT changes();
ALTER TABLE app.many REPLICA IDENTITY DEFAULT;
INSERT INTO app.many VALUES (1, 1);
UPDATE app.many SET n = 2;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
ALTER TABLE app.many REPLICA IDENTITY FULL;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();
-- of one partition
ALTER TABLE app.parts_2 REPLICA IDENTITY NOTHING;
INSERT INTO app.parts VALUES (1, 'a', 'b'), (11, 'a', 'b');
SELECT peek('deployment', 'd'); \echo :SQLSTATE
UPDATE app.parts SET a = 'c' WHERE id = 1;
ALTER TABLE app.parts_2 REPLICA IDENTITY DEFAULT;
SELECT changes();
ALTER TABLE app.parts_2 REPLICA IDENTITY NOTHING;
UPDATE app.parts SET a = 'c' WHERE id = 11;
ALTER TABLE app.parts_2 REPLICA IDENTITY DEFAULT;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();

-- a partition that is truncated alone
TRUNCATE app.parts_1;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();
BEGIN;
TRUNCATE app.t;
TRUNCATE app.parts_1, app.parts_2;
COMMIT;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();

-- a column that was another type when the row was written
INSERT INTO app.retyped VALUES (1, 1);
SELECT bluegreen.unmap_table('d', 'app.retyped');
ALTER TABLE app.retyped ALTER v TYPE text;
SELECT bluegreen.map_table('d', 'app.retyped') > 0;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();
INSERT INTO app.retyped VALUES (2, 'two');
SELECT changes();

-- a key that is null
INSERT INTO app.nullable VALUES (1, 1);
SELECT changes();
UPDATE app.nullable SET k = NULL;
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();
-- a function that fails
CREATE OR REPLACE FUNCTION app.in_plpgsql(n integer) RETURNS text IMMUTABLE
	LANGUAGE plpgsql AS 'BEGIN RAISE ''no % today'', n; END';
INSERT INTO app.called VALUES (9, 9);
SELECT peek('deployment', 'd'); \echo :SQLSTATE
SELECT to_now();
-- the moment did not outlive the error
SELECT bluegreen.commit_time();

SELECT 1 FROM pg_drop_replication_slot('regress_bluegreen');
SELECT bluegreen.drop_deployment('readers', force => true);
SELECT bluegreen.drop_deployment('none');
SELECT bluegreen.drop_deployment('d');
DROP EXTENSION pg_bluegreen CASCADE;
DROP SCHEMA app CASCADE;
DROP SCHEMA bluegreen CASCADE;
DROP FUNCTION changes(), to_now(), peek(text[]);
DROP OWNED BY regress_bluegreen_reader;
DROP ROLE regress_bluegreen_reader;
DROP DATABASE regression_green;
