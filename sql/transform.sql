--
-- Transforms: what may be one, what is refused and why; what a mapping needs
-- of the replica identity.  The peer is another database of the same cluster.
--
\set blue :DBNAME
SET client_min_messages = warning;
CREATE DATABASE regression_green TEMPLATE template0;
\c regression_green
SET client_min_messages = warning;
CREATE EXTENSION pg_bluegreen;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE DOMAIN app.positive AS integer CHECK (VALUE > 0);
CREATE TABLE app.t (id bigint PRIMARY KEY, v text, w varchar(5),
	n numeric(6,2), i integer, at timestamptz, day date, lsn pg_lsn,
	m app.mood, p app.positive, b boolean, j jsonb, other bigint UNIQUE NOT NULL
		DEFAULT 0);
CREATE TABLE app.vector (id tsvector PRIMARY KEY);
\c :blue
SET client_min_messages = warning;
CREATE EXTENSION pg_bluegreen;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE DOMAIN app.positive AS integer CHECK (VALUE > 0);
CREATE TABLE app.s (id bigint PRIMARY KEY, v text, u text, i integer,
	n numeric, at timestamptz, ts timestamp, a integer[], b boolean, m app.mood);
INSERT INTO app.s VALUES (1, 'Joe', 'x', 7, 1.005, '2024-02-29 23:30:00+00',
	'2024-02-29 23:30:00', '{3,4}', true, 'ok');
CREATE TABLE app.r (id bigint PRIMARY KEY, v text);
CREATE VIEW app.view AS SELECT id FROM app.s;
CREATE SEQUENCE app.seq;
CREATE FUNCTION app.double(integer) RETURNS integer IMMUTABLE LANGUAGE sql
	AS 'SELECT $1 * 2';
CREATE FUNCTION app.shout(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql
	AS 'BEGIN RETURN upper(t) || ''!''; END';
CREATE FUNCTION app.of_row(r app.s) RETURNS text IMMUTABLE LANGUAGE sql
	AS 'SELECT r.v || r.u';
CREATE FUNCTION app.stable(text) RETURNS text STABLE LANGUAGE sql
	AS 'SELECT $1';
CREATE FUNCTION app.volatile(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION app.many(integer) RETURNS SETOF integer IMMUTABLE LANGUAGE sql
	AS 'SELECT generate_series(1, $1)';
CREATE FUNCTION app.same(text, text) RETURNS boolean STABLE LANGUAGE sql
	AS 'SELECT $1 = $2';
CREATE OPERATOR app.=== (FUNCTION = app.same, LEFTARG = text, RIGHTARG = text);
CREATE AGGREGATE app.total(integer) (SFUNC = int4pl, STYPE = integer);

SELECT format('CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen OPTIONS (host %L, port %L, dbname ''regression_green'')',
	coalesce(nullif(trim(split_part(
		current_setting('unix_socket_directories'), ',', 1)), ''), '127.0.0.1'),
	current_setting('port')) AS create_server \gset
:create_server;
SELECT format('CREATE USER MAPPING FOR CURRENT_USER SERVER green OPTIONS (user %L)',
	current_user) AS create_mapping \gset
:create_mapping;
SELECT bluegreen.create_deployment('d', 'green') > 0 AS created;

-- Map app.s through a transform and say why not, or else what its row becomes.
CREATE FUNCTION try(transform text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	d text;
	h text;
	r text;
BEGIN
	PERFORM bluegreen.map_table('d', 'app.s', 'app.t', transform);
	r := coalesce((SELECT 'ok ' || (target_row - 'id')::text
		FROM bluegreen.preview('d', 'app.s')), 'ok, no row');
	PERFORM bluegreen.unmap_table('d', 'app.s');
	RETURN r;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
	RETURN SQLSTATE || ' ' || SQLERRM
		|| coalesce(E'\n  ' || nullif(d, ''), '')
		|| coalesce(E'\n  ' || nullif(h, ''), '');
END $$;
\pset format unaligned
\pset tuples_only on

-- not one SELECT
SELECT try('');
SELECT try('SELECT id FROM');
SELECT try('SELECT id FROM app.s; SELECT id FROM app.s');
SELECT try('SELECT id FROM app.s; DROP TABLE app.s');
SELECT try('DELETE FROM app.s RETURNING id');
SELECT try('UPDATE app.s SET i = 1 RETURNING id');
SELECT try('INSERT INTO app.s (id) VALUES (2) RETURNING id');
SELECT try('COPY app.s TO STDOUT');
SELECT try('EXPLAIN SELECT id FROM app.s');
SELECT try('DROP TABLE app.s');
SELECT try('SELECT id INTO app.made FROM app.s');
SELECT try('VALUES (1)');
SELECT try('SELECT $1 AS id FROM app.s');
SELECT try('SELECT id, $1::text AS v FROM app.s');
SELECT count(*), max(i) FROM app.s;

-- not from the source table alone
SELECT try('SELECT 1 AS id');
SELECT try('SELECT id FROM app.r');
SELECT try('SELECT id FROM app.view');
SELECT try('SELECT id FROM app.nowhere');
SELECT try('SELECT s.id FROM app.s, app.r');
SELECT try('SELECT s.id FROM app.s JOIN app.r ON s.id = r.id');
SELECT try('SELECT s.id FROM app.s LEFT JOIN app.r USING (id)');
SELECT try('SELECT s.id FROM app.s NATURAL JOIN app.r');
SELECT try('SELECT s.id FROM app.s, LATERAL (SELECT v FROM app.r) x');
SELECT try('SELECT s.id FROM app.s, app.s AS other');
SELECT try('SELECT id FROM (SELECT id FROM app.s) x');
SELECT try('SELECT id FROM generate_series(1, 2) AS id');
SELECT try('SELECT id FROM app.s TABLESAMPLE SYSTEM (50)');

-- clauses
SELECT try('WITH x AS (SELECT 1) SELECT id FROM app.s');
SELECT try('WITH x AS (DELETE FROM app.r RETURNING 1) SELECT id FROM app.s');
SELECT try('SELECT id FROM app.s UNION SELECT id FROM app.s');
SELECT try('SELECT id FROM app.s UNION ALL SELECT id FROM app.r');
SELECT try('SELECT id FROM app.s INTERSECT SELECT id FROM app.s');
SELECT try('SELECT id FROM app.s EXCEPT SELECT id FROM app.s');
SELECT try('SELECT id FROM app.s ORDER BY id');
SELECT try('SELECT id FROM app.s LIMIT 1');
SELECT try('SELECT id FROM app.s OFFSET 1');
SELECT try('SELECT id FROM app.s FETCH FIRST ROW ONLY');
SELECT try('SELECT DISTINCT id FROM app.s');
SELECT try('SELECT DISTINCT ON (id) id FROM app.s');
SELECT try('SELECT id FROM app.s FOR UPDATE');
SELECT try('SELECT id FROM app.s FOR KEY SHARE');
SELECT try('SELECT id FROM app.s GROUP BY id');
SELECT try('SELECT id FROM app.s GROUP BY GROUPING SETS (id)');
SELECT try('SELECT 1 AS id FROM app.s HAVING true');
SELECT try('SELECT id FROM app.s WINDOW x AS (PARTITION BY id)');

-- expressions
SELECT try('SELECT id, (SELECT v FROM app.r LIMIT 1) AS v FROM app.s');
SELECT try('SELECT id FROM app.s WHERE EXISTS (SELECT FROM app.r)');
SELECT try('SELECT id FROM app.s WHERE id IN (SELECT id FROM app.r)');
SELECT try('SELECT id, ARRAY(SELECT id FROM app.r)::text AS v FROM app.s');
SELECT try('SELECT count(*) AS id FROM app.s');
SELECT try('SELECT max(id) AS id FROM app.s');
SELECT try('SELECT app.total(i) AS id FROM app.s');
SELECT try('SELECT row_number() OVER () AS id FROM app.s');
SELECT try('SELECT generate_series(1, 2) AS id FROM app.s');
SELECT try('SELECT id, unnest(a) AS i FROM app.s');
SELECT try('SELECT id, app.many(2) AS i FROM app.s');
SELECT try('SELECT id, ctid::text AS v FROM app.s');
SELECT try('SELECT id FROM app.s WHERE tableoid = 1');
SELECT try('SELECT id, xmin::text AS v FROM app.s');

-- VOLATILE functions
SELECT try('SELECT id, random() AS n FROM app.s');
SELECT try('SELECT id FROM app.s WHERE random() < 0.5');
SELECT try('SELECT nextval(''app.seq'') AS id FROM app.s');
SELECT try('SELECT id, clock_timestamp() AS at FROM app.s');
SELECT try('SELECT id, app.volatile(v) AS v FROM app.s');
SELECT try('SELECT id, upper(app.volatile(lower(v))) AS v FROM app.s');
SELECT try('SELECT id, CASE WHEN b THEN app.volatile(v) END AS v FROM app.s');
SELECT try('SELECT id, pg_sleep(1)::text AS v FROM app.s');

-- STABLE functions that are not on the list
SELECT try('SELECT id, now() AS at FROM app.s');
SELECT try('SELECT id, statement_timestamp() AS at FROM app.s');
SELECT try('SELECT id, age(at)::text AS v FROM app.s');
SELECT try('SELECT id, current_setting(''timezone'') AS v FROM app.s');
SELECT try('SELECT id, CURRENT_TIMESTAMP AS at FROM app.s');
SELECT try('SELECT id, LOCALTIMESTAMP AS at FROM app.s');
SELECT try('SELECT id FROM app.s WHERE at::date < CURRENT_DATE');
SELECT try('SELECT id, SESSION_USER AS v FROM app.s');
SELECT try('SELECT id, CURRENT_SCHEMA AS v FROM app.s');
SELECT try('SELECT id, current_database() AS v FROM app.s');
SELECT try('SELECT id, pg_get_userbyid(i::oid) AS v FROM app.s');
SELECT try('SELECT id, v::regclass::oid AS i FROM app.s');
SELECT try('SELECT id, i::regclass::text AS v FROM app.s');
SELECT try('SELECT id, has_table_privilege(''app.s'', ''SELECT'') AS b FROM app.s');
SELECT try('SELECT id, txid_current_snapshot()::text AS v FROM app.s');
SELECT try('SELECT id, app.stable(v) AS v FROM app.s');
SELECT try('SELECT id FROM app.s WHERE app.stable(v) = ''x''');
SELECT try('SELECT id FROM app.s WHERE v OPERATOR(app.===) u');

-- what is allowed gives what it should, whatever the session's settings
ALTER TABLE app.s REPLICA IDENTITY FULL;
SET timezone = 'Asia/Tokyo';
SET datestyle = 'SQL, DMY';
SET intervalstyle = 'sql_standard';
SET extra_float_digits = -5;
SET bytea_output = 'escape';
SELECT try('SELECT id FROM app.s');
SELECT try('SELECT id FROM ONLY app.s');
SELECT try('SELECT x.id, x.v FROM app.s AS x WHERE x.id = 1');
SELECT try('SELECT ALL id FROM app.s WHERE false');
SELECT try('SELECT id FROM app.s WHERE NULL');
SELECT try('SELECT id, app.double(i) AS i FROM app.s');
SELECT try('SELECT id, app.shout(lower(v)) AS v FROM app.s WHERE app.double(i) = 14');
SELECT try('SELECT id, CASE WHEN i > 5 THEN ''big'' WHEN i > 2 THEN ''middle'' ELSE ''small'' END AS v FROM app.s');
SELECT try('SELECT id, CASE i WHEN 7 THEN ''seven'' END AS v FROM app.s');
SELECT try('SELECT id, coalesce(NULL, nullif(i, 7), greatest(i, 9)) AS i FROM app.s');
SELECT try('SELECT id, a[1] + a[array_length(a, 1)] AS i FROM app.s');
SELECT try('SELECT id, v IS NULL OR v LIKE ''J%'' AND NOT i IN (1, 2) AND i = ANY (a || 7) AND b IS TRUE AS b FROM app.s');
SELECT try('SELECT id, n::integer AS i, i AS n FROM app.s');
SELECT try('SELECT id, n, i AS v, b AS w FROM app.s');
SELECT try('SELECT id, at, at::date AS day, at::text AS v FROM app.s');
SELECT try('SELECT id, ts AT TIME ZONE ''Europe/Paris'' AS at, date_trunc(''month'', at)::date AS day FROM app.s');
SELECT try('SELECT id, to_char(at, ''YYYY-MM-DD TMDay'') AS v, extract(year FROM at) AS i FROM app.s');
SELECT try('SELECT id, to_date(''29 Feb 2024'', ''DD Mon YYYY'') AS day, make_date(2024, 1, i) AS at FROM app.s');
SELECT try('SELECT id, at + ''1 month'' AS at, concat(v, i, m) AS v, format(''%s-%L'', i, u) AS w FROM app.s');
SELECT try('SELECT id, jsonb_build_object(''v'', v, ''a'', a) AS j, md5(v) AS v FROM app.s');
SELECT try('SELECT id, to_jsonb(s) - ''at'' AS j, array_to_string(a, ''/'') AS w FROM app.s');
SELECT try('SELECT id, i || v AS v, u || i AS w FROM app.s');
SELECT try('SELECT id, row_to_json(s) -> ''v'' AS j, app.of_row(s) AS v FROM app.s');
SELECT try('SELECT id, m, CASE WHEN m = ''ok'' THEN ''sad''::app.mood END::text AS v FROM app.s');
SELECT try('SELECT id, i AS p, i::app.positive AS i FROM app.s');
SELECT try('SELECT id, $q$it''s a \ ; "constant"$q$ AS v FROM app.s -- and a comment');
SELECT try('SELECT id, ''now''::timestamptz < ''2000-01-01'' AS b FROM app.s');

-- literals are the caller's
SELECT try('SELECT id, ''01/02/2024 00:00''::timestamptz AS at, ''01/02/2024''::date AS day, ''2024-01-02 00:00 JST''::timestamptz::text AS v FROM app.s');
SELECT try('SELECT id, (at - ''1 year 2-3''::interval)::text AS v FROM app.s');
SELECT try('SELECT id, (''0.12345678901234567''::float8 * 1e15::float8)::text AS v FROM app.s');
SELECT try('SELECT id, ''\x00ff''::bytea::text AS v FROM app.s');
SHOW timezone;
RESET timezone;
RESET datestyle;
RESET intervalstyle;
RESET extra_float_digits;
RESET bytea_output;
ALTER TABLE app.s REPLICA IDENTITY DEFAULT;

-- the moment of the change; outside of a transform there is none
SELECT bluegreen.map_table('d', 'app.s', 'app.t', 'SELECT id,
	bluegreen.commit_time() AS at, bluegreen.commit_lsn() AS lsn,
	to_char(bluegreen.commit_time(), ''YYYY'') AS w FROM app.s
	WHERE bluegreen.commit_time() > ''2000-01-01''') > 0;
SELECT (target_row ->> 'at')::timestamptz <= clock_timestamp(),
	(target_row ->> 'at')::timestamptz > now() - interval '1 hour',
	(target_row ->> 'lsn')::pg_lsn <= pg_current_wal_insert_lsn(),
	(target_row ->> 'lsn')::pg_lsn > '0/0',
	(target_row ->> 'w')::integer >= 2024
FROM bluegreen.preview('d', 'app.s');
SELECT bluegreen.unmap_table('d', 'app.s');
SELECT bluegreen.commit_time();
SELECT bluegreen.commit_lsn();

-- types that do not coerce, and one that does but for this row
SELECT try('SELECT v AS id FROM app.s');
SELECT try('SELECT id, v AS i FROM app.s');
SELECT try('SELECT id, b AS i FROM app.s');
SELECT try('SELECT id, at AS n FROM app.s');
SELECT try('SELECT id, i AS at FROM app.s');
SELECT try('SELECT id, a AS j FROM app.s');
SELECT try('SELECT id, v AS m FROM app.s');
SELECT try('SELECT id, s AS i FROM app.s');
SELECT try('SELECT id, ''seven'' AS i FROM app.s');
SELECT try('SELECT id, ''123456789'' AS w FROM app.s');
SELECT try('SELECT id, nowhere AS v FROM app.s');
SELECT try('SELECT id, nowhere(v) AS v FROM app.s');
SELECT bluegreen.map_table('d', 'app.s', 'app.vector',
	'SELECT to_tsvector(id::text) AS id FROM app.s');
-- nothing of all that has left anything
SELECT count(*) FROM bluegreen.mapping;

--
-- Replica identity: each refusal, the hint as it is printed, and then success
--
CREATE FUNCTION refused_then_mended(arguments text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	call text := 'SELECT bluegreen.map_table(''d'', ' || arguments || ')';
	m text;
	d text;
	h text;
BEGIN
	BEGIN
		EXECUTE call;
		RETURN 'not refused';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL,
			h = PG_EXCEPTION_HINT;
		m := concat_ws(E'\n  ', SQLSTATE || ' ' || m, d, h);
	END;
	EXECUTE h;
	EXECUTE call;
	RETURN m;
END $$;

CREATE TABLE app.keyless (id bigint NOT NULL, v text);
CREATE TABLE app."Deferred key" (id bigint PRIMARY KEY DEFERRABLE, v text);
CREATE TABLE app.nothing (id bigint PRIMARY KEY, v text);
ALTER TABLE app.nothing REPLICA IDENTITY NOTHING;
CREATE TABLE app.parts (id bigint NOT NULL, v text, i integer)
	PARTITION BY RANGE (id);
CREATE TABLE app.parts_1 PARTITION OF app.parts (PRIMARY KEY (id))
	FOR VALUES FROM (0) TO (10);
CREATE TABLE app.parts_2 PARTITION OF app.parts
	FOR VALUES FROM (10) TO (30) PARTITION BY RANGE (id);
CREATE TABLE app.parts_2a PARTITION OF app.parts_2
	FOR VALUES FROM (10) TO (20);
CREATE TABLE app."Parts 2b" PARTITION OF app.parts_2 (PRIMARY KEY (id))
	FOR VALUES FROM (20) TO (30);
CREATE TABLE app.empty_parts (id bigint NOT NULL, v text)
	PARTITION BY RANGE (id);

-- no replica identity
BEGIN;
SELECT refused_then_mended($$'app.keyless', 'app.t'$$);
SELECT refused_then_mended($$'app."Deferred key"', 'app.t'$$);
SELECT refused_then_mended($$'app.nothing', 'app.t'$$);
SELECT refused_then_mended($$'app.parts', 'app.t'$$);
SELECT refused_then_mended($$'app.empty_parts', 'app.t'$$);
ROLLBACK;
-- the target's key
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t', 'SELECT i AS id FROM app.s'$$);
ROLLBACK;
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t',
	'SELECT id + i AS id FROM app.s'$$);
ROLLBACK;
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t',
	'SELECT id, i AS other FROM app.s', '{other}'$$);
ROLLBACK;
-- the filter
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t',
	'SELECT id FROM app.s WHERE v <> ''''', on_delete => 'ignore'$$);
ROLLBACK;
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t',
	'SELECT id, v FROM app.s WHERE i > 5'$$);
ROLLBACK;
-- on_delete => 'write'
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t', 'SELECT id, i FROM app.s',
	on_delete => 'write'$$);
ROLLBACK;
-- values that combine what may be absent
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t',
	'SELECT id, v || u AS v FROM app.s'$$);
ROLLBACK;
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t',
	'SELECT id, app.of_row(s) AS v FROM app.s'$$);
ROLLBACK;
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t',
	'SELECT id, concat(v, bluegreen.commit_lsn()) AS v FROM app.s'$$);
ROLLBACK;
-- a merge may have to insert
BEGIN;
SELECT refused_then_mended($$'app.s', 'app.t', 'SELECT id, v FROM app.s',
	on_write => 'merge'$$);
ROLLBACK;
-- what is not refused: each beside a refusal above
BEGIN;
ALTER TABLE app.s ADD UNIQUE (i), ALTER i SET NOT NULL;
ALTER TABLE app.s REPLICA IDENTITY USING INDEX s_i_key;
SELECT try('SELECT i AS id FROM app.s');
SELECT try('SELECT id FROM app.s');
ROLLBACK;
BEGIN;
ALTER TABLE app.s ALTER v SET STORAGE PLAIN, ALTER u SET STORAGE PLAIN;
SELECT try('SELECT id, v || u AS v FROM app.s WHERE v <> ''''');
ROLLBACK;
SELECT try('SELECT id, v FROM app.s WHERE id > 0');
SELECT try('SELECT id, i FROM app.s WHERE i > 5');
SELECT try('SELECT id, upper(v) AS v FROM app.s');
SELECT bluegreen.map_table('d', 'app.s', 'app.t', 'SELECT id FROM app.s',
	on_delete => 'write') > 0;
SELECT bluegreen.unmap_table('d', 'app.s');
SELECT bluegreen.map_table('d', 'app.s', 'app.t', 'SELECT id, i FROM app.s',
	on_write => 'merge') > 0;
SELECT bluegreen.unmap_table('d', 'app.s');
SELECT bluegreen.map_table('d', 'app.s', 'app.t', 'SELECT id, v FROM app.s',
	on_write => 'patch', on_delete => 'ignore') > 0;

SELECT bluegreen.drop_deployment('d');
DROP EXTENSION pg_bluegreen CASCADE;
DROP SCHEMA app CASCADE;
DROP SCHEMA bluegreen CASCADE;
DROP FUNCTION try(text);
DROP FUNCTION refused_then_mended(text);
DROP DATABASE regression_green;
