-- Who may do what.  The peer is another database of the same cluster, which
-- asks nobody for a password.
CREATE EXTENSION pg_bluegreen;
CREATE EXTENSION dblink;
SELECT no_plan();

CREATE ROLE tap_nobody;
CREATE ROLE tap_joe LOGIN;
CREATE ROLE tap_jack LOGIN;
CREATE ROLE tap_monitor IN ROLE pg_monitor;
CREATE TABLE t (id integer PRIMARY KEY, v text);
INSERT INTO t VALUES (1, 'one');
CREATE TABLE secret (id integer PRIMARY KEY, v text);
CREATE TABLE partly (id integer PRIMARY KEY, v text);
GRANT SELECT ON t TO tap_joe, tap_jack;
GRANT SELECT (id) ON partly TO tap_joe;
SELECT format('host=127.0.0.1 port=%s user=%s dbname=',
	current_setting('port'), current_user) AS conninfo \gset
SELECT format('host=127.0.0.1 port=%s user=tap_jack dbname=%s',
	current_setting('port'), current_database()) AS jack \gset
SELECT dblink_exec(:'conninfo' || current_database(),
	'CREATE DATABASE tap_privileges_green TEMPLATE template0');
SELECT dblink_exec(:'conninfo' || 'tap_privileges_green', $$
	CREATE EXTENSION pg_bluegreen;
	CREATE TABLE t (id integer PRIMARY KEY, v text);
	CREATE TABLE u (id integer PRIMARY KEY, v text);
	CREATE TABLE secret (id integer PRIMARY KEY, v text);
	CREATE TABLE partly (id integer PRIMARY KEY, v text)$$);
SELECT format('CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen OPTIONS (host ''127.0.0.1'', port %L, dbname ''tap_privileges_green'')',
	current_setting('port')) AS create_server \gset
:create_server;
CREATE SERVER others FOREIGN DATA WRAPPER pg_bluegreen;
SELECT format('CREATE USER MAPPING FOR CURRENT_USER SERVER green OPTIONS (user %L, password ''open sesame'')',
	current_user) AS create_mapping \gset
:create_mapping;
SELECT lives_ok($$SELECT bluegreen.create_deployment('admins', 'green')$$,
	'a superuser''s deployment');
SELECT lives_ok($$SELECT bluegreen.map_table('admins', 'secret')$$,
	'with a mapping');

CREATE FUNCTION why(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	d text;
	h text;
BEGIN
	EXECUTE sql;
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLSTATE || ' ' || SQLERRM, nullif(d, ''),
		nullif(h, ''));
END $$;

--
-- An ordinary role
--
SET ROLE tap_nobody;
SELECT is(why(call), '42501 permission denied for ' || kind || ' ' || name,
	'an ordinary role may not: ' || call)
FROM (VALUES
	('function', 'create_deployment',
		$$SELECT bluegreen.create_deployment('x', 'green')$$),
	('function', 'drop_deployment',
		$$SELECT bluegreen.drop_deployment('admins')$$),
	('function', 'map_table', $$SELECT bluegreen.map_table('admins', 't')$$),
	('function', 'map_schema',
		$$SELECT bluegreen.map_schema('admins', 'public')$$),
	('function', 'alter_mapping',
		$$SELECT bluegreen.alter_mapping('admins', 't')$$),
	('function', 'unmap_table',
		$$SELECT bluegreen.unmap_table('admins', 't')$$),
	('function', 'preview',
		$$SELECT * FROM bluegreen.preview('admins', 'secret')$$),
	('function', 'preflight', $$SELECT * FROM bluegreen.preflight('admins')$$),
	('function', 'accept', $$SELECT bluegreen.accept('admins', 'role', 'x')$$),
	('function', 'add_router', $$SELECT bluegreen.add_router('admins',
		'pgbouncer', 'green', 'x', '', '', '/x')$$),
	('function', 'drop_router',
		$$SELECT bluegreen.drop_router('admins', 'green')$$),
	('procedure', 'routers_pause',
		$$CALL bluegreen.routers_pause('admins')$$),
	('procedure', 'routers_switch',
		$$CALL bluegreen.routers_switch('admins', 'blue')$$),
	('procedure', 'routers_resume',
		$$CALL bluegreen.routers_resume('admins')$$),
	('function', 'sequences', $$SELECT * FROM bluegreen.sequences('admins')$$),
	('function', 'move_sequences',
		$$SELECT bluegreen.move_sequences('admins')$$),
	('function', 'check_sequences',
		$$SELECT bluegreen.check_sequences('admins')$$),
	('function', 'sequence_position',
		$$SELECT bluegreen.sequence_position(1)$$),
	('function', 'column_extreme',
		$$SELECT bluegreen.column_extreme(1, 'x', true)$$),
	('function', 'restart_sequences',
		$$SELECT bluegreen.restart_sequences('{}', '{}', '{}', 0)$$),
	('function', 'interleave_sequences',
		$$SELECT bluegreen.interleave_sequences('x', 1, '{}', '{}', '{}', 0)$$),
	('function', 'restore_sequences',
		$$SELECT bluegreen.restore_sequences('x', 1, '{}', '{}', 0)$$),
	('function', 'restore_all_sequences',
		$$SELECT bluegreen.restore_all_sequences(1)$$),
	('function', 'window_move', $$SELECT bluegreen.window_move('x', 1, 'closed')$$),
	('function', 'window_look', $$SELECT bluegreen.window_look('x', '0/1')$$),
	('function', 'window_mappings', $$SELECT bluegreen.window_mappings('admins')$$),
	('function', 'window_decide', $$SELECT bluegreen.window_decide('x', 1)$$),
	('function', 'window_settle', $$SELECT bluegreen.window_settle('x', 1)$$),
	('procedure', 'open_window', $$CALL bluegreen.open_window('admins')$$),
	('procedure', 'close_window',
		$$CALL bluegreen.close_window('admins', 'green')$$),
	('procedure', 'start', $$CALL bluegreen.start('admins')$$),
	('procedure', 'stop', $$CALL bluegreen.stop('admins')$$),
	('procedure', 'wait_for_sync', $$CALL bluegreen.wait_for_sync('admins')$$),
	('procedure', 'verify', $$CALL bluegreen.verify('admins')$$),
	('function', 'cancel_verify',
		$$SELECT bluegreen.cancel_verify('admins')$$),
	('function', 'repair', $$SELECT bluegreen.repair('admins')$$),
	('function', 'skip', $$SELECT bluegreen.skip('admins', '0/1')$$),
	('function', 'confirm_source',
		$$SELECT bluegreen.confirm_source('admins')$$),
	('function', 'commit_position',
		$$SELECT bluegreen.commit_position('0/1', now(), '0/0',
			'0/0')$$),
	('function', 'check_rows', $$SELECT bluegreen.check_rows('{}')$$),
	('function', 'reset_stats', $$SELECT bluegreen.reset_stats('admins')$$),
	('function', 'begin_apply', $$SELECT bluegreen.begin_apply()$$),
	('function', 'insert_rows',
		$$SELECT bluegreen.insert_rows('pg_class', '{}', '', 0)$$),
	('function', 'takes_rows', $$SELECT bluegreen.takes_rows('pg_class', '{}')$$),
	('function', 'update_rows',
		$$SELECT bluegreen.update_rows('pg_class', '{}', '{}', '', 0)$$),
	('function', 'delete_rows',
		$$SELECT bluegreen.delete_rows('pg_class', '{}', '', 0)$$),
	('function', 'create_session',
		$$SELECT bluegreen.create_session('1 hour')$$),
	('function', 'read_session', $$SELECT bluegreen.read_session('x')$$),
	('function', 'touch_session', $$SELECT bluegreen.touch_session('x')$$),
	('function', 'write_session',
		$$SELECT bluegreen.write_session('x', '{}')$$),
	('function', 'write_session_attribute',
		$$SELECT bluegreen.write_session_attribute('x', 'a', '1')$$),
	('function', 'delete_session', $$SELECT bluegreen.delete_session('x')$$),
	('function', 'expire_sessions', $$SELECT bluegreen.expire_sessions()$$),
	('function', 'session_state', $$SELECT bluegreen.session_state()$$),
	('function', 'prepare_sessions',
		$$SELECT bluegreen.prepare_sessions('t', 'custom', 'blue')$$),
	('function', 'adopt_sessions',
		$$SELECT bluegreen.adopt_sessions('admins', 't', 'custom')$$),
	('function', 'release_sessions',
		$$SELECT bluegreen.release_sessions('t')$$),
	('function', 'note_reached', $$SELECT bluegreen.note_reached('0/1')$$),
	('function', 'note_seen', $$SELECT bluegreen.note_seen('0/1')$$),
	('function', 'write_as_own', $$SELECT bluegreen.write_as_own()$$),
	('function', 'forget_key',
		$$SELECT bluegreen.forget_key('t', '{}', '{}')$$),
	('function', 'check_change',
		$$SELECT bluegreen.check_change('t', '{}', '0/1', 1)$$),
	('function', 'origin_create',
		$$SELECT bluegreen.origin_create('bluegreen_x')$$),
	('function', 'origin_setup',
		$$SELECT bluegreen.origin_setup('bluegreen_x')$$),
	('function', 'origin_progress', $$SELECT bluegreen.origin_progress()$$),
	('function', 'origin_drop', $$SELECT bluegreen.origin_drop('bluegreen_x')$$),
	('function', 'save_indexes',
		$$SELECT bluegreen.save_indexes('x', 1, '{}', false)$$),
	('function', 'restore_indexes',
		$$SELECT bluegreen.restore_indexes('x')$$),
	('function', 'restore_key',
		$$SELECT bluegreen.restore_key('x', 1)$$),
	('function', 'noted_row', $$SELECT bluegreen.noted_row()$$),
	('function', 'join_deployment',
		$$SELECT bluegreen.join_deployment('x', 'y', NULL, 'z')$$),
	('function', 'joined_stream',
		$$SELECT bluegreen.joined_stream('x', 'y')$$),
	('function', 'leave_deployment',
		$$SELECT bluegreen.leave_deployment('x', 'y', false)$$),
	('function', 'derive_mapping',
		$$SELECT bluegreen.derive_mapping('x', 'a', 'b', 'c', '{}', '{}', 'd',
			'error')$$),
	('function', 'keep_derived',
		$$SELECT bluegreen.keep_derived('x', '{}')$$),
	('function', 'joined_mappings',
		$$SELECT bluegreen.joined_mappings('x')$$),
	('function', 'wait_for_writers',
		$$SELECT bluegreen.wait_for_writers('x')$$),
	('function', 'grant_apply',
		$$SELECT bluegreen.grant_apply('tap_nobody')$$),
	('function', 'revoke_apply',
		$$SELECT bluegreen.revoke_apply('tap_nobody')$$),
	('function', 'stream_state', $$SELECT * FROM bluegreen.stream_state()$$),
	('function', 'table_state', $$SELECT * FROM bluegreen.table_state()$$),
	('function', 'copy_state', $$SELECT * FROM bluegreen.copy_state()$$),
	('function', 'slot_state', $$SELECT * FROM bluegreen.slot_state('s')$$),
	('function', 'fdw_validator',
		$$SELECT bluegreen.fdw_validator('{}', 0)$$)) c (kind, name, call);
SELECT is(why('SELECT * FROM ' || oid::regclass),
	format('42501 permission denied for %s %s',
		CASE relkind WHEN 'v' THEN 'view' ELSE 'table' END, relname),
	'an ordinary role may not read ' || oid::regclass)
FROM pg_class WHERE relnamespace = 'bluegreen'::regnamespace
	AND relkind IN ('r', 'v') AND relname NOT LIKE 'transform\_%'
ORDER BY relname;
SELECT is(why($$SELECT * FROM bluegreen.transform_1$$),
	'42501 permission denied for view transform_1',
	'nor what is behind a mapping');
SELECT is(why($$SELECT bluegreen.commit_time()$$),
	'55000 bluegreen.commit_time() can only be used in the transform of a mapping',
	'commit_time() tells it nothing');
SELECT is(why('CREATE SERVER mine FOREIGN DATA WRAPPER pg_bluegreen'),
	'42501 permission denied for foreign-data wrapper pg_bluegreen',
	'it may not create a server');
SELECT is(why('CREATE USER MAPPING FOR CURRENT_USER SERVER green'),
	'42501 permission denied for foreign server green',
	'nor a user mapping for one that it may not use');
SELECT is(why('CREATE TABLE bluegreen.trap (id integer)'),
	'42501 permission denied for schema bluegreen',
	'nor anything in the schema');
RESET ROLE;

-- who is granted to apply
SELECT bluegreen.grant_apply('tap_nobody', 't');
SET ROLE tap_nobody;
SELECT is(why(call), '42501 replication origin "pg_1" is not one of a stream',
	'a role that applies knows no origins but those of streams: ' || call)
FROM (VALUES ($$SELECT bluegreen.origin_create('pg_1')$$),
	($$SELECT bluegreen.origin_setup('pg_1')$$),
	($$SELECT bluegreen.origin_drop('pg_1')$$)) c (call);
SELECT is(why(call), '42501 permission denied for table ' || name,
	'and not more of the tables than it needs: ' || call)
FROM (VALUES
	('deployment', 'TABLE bluegreen.deployment'),
	('saved_index', 'TABLE bluegreen.saved_index'),
	('saved_index', $$INSERT INTO bluegreen.saved_index VALUES ('s', 1, 'i', 'x', false)$$),
	('applied_stream', $$UPDATE bluegreen.applied_stream SET name = 'x'$$),
	('applied_chunk', $$UPDATE bluegreen.applied_chunk SET number = 1$$),
	('conflict_log', $$SELECT incoming FROM bluegreen.conflict_log$$),
	('conflict_log', $$UPDATE bluegreen.conflict_log SET kind = 'x'$$),
	('event_log', 'TABLE bluegreen.event_log')) c (name, call);
SELECT is(why(call), '42501 permission denied for function ' || name,
	'nor any function beside: ' || call)
FROM (VALUES
	('create_deployment', $$SELECT bluegreen.create_deployment('x', 'green')$$),
	('grant_apply', $$SELECT bluegreen.grant_apply('tap_nobody', 'secret')$$),
	('stream_state', $$SELECT * FROM bluegreen.stream_state()$$)) c (name, call);
RESET ROLE;
SELECT bluegreen.revoke_apply('tap_nobody');
SELECT is_empty($$SELECT oid::regclass FROM pg_class, aclexplode(relacl)
		WHERE grantee = 'tap_nobody'::regrole
	UNION ALL SELECT oid FROM pg_proc, aclexplode(proacl)
		WHERE grantee = 'tap_nobody'::regrole$$,
	'revoke_apply leaves it nothing');

-- pg_monitor
SET ROLE tap_monitor;
SELECT is(why('SELECT * FROM ' || oid::regclass), 'ok',
	'pg_monitor reads ' || oid::regclass)
FROM pg_class WHERE relnamespace = 'bluegreen'::regnamespace
	AND relkind = 'v' AND relname NOT LIKE 'transform\_%'
ORDER BY relname;
SELECT is(why('DELETE FROM bluegreen.deployment'),
	'42501 permission denied for table deployment', 'and changes nothing');
SELECT is((SELECT count(*) FROM bluegreen.status
	WHERE deployment = 'admins')::integer, 1, 'it sees who moves where');
RESET ROLE;

--
-- A role that the administrator lets define deployments
--
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO tap_joe, tap_jack;
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.create_deployment('joes', 'green')$$),
	E'42501 permission denied for foreign server green\nUse GRANT USAGE ON FOREIGN SERVER green TO tap_joe.',
	'EXECUTE alone is not enough: the server must be granted');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER green TO tap_joe, tap_jack;
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.create_deployment('joes', 'green')$$),
	E'42501 owner "tap_joe" of deployment "joes" lacks the attribute REPLICATION\nA stream runs as the deployment''s owner, which must be allowed to log in and to replicate.\nUse ALTER ROLE tap_joe REPLICATION.',
	'the role must be allowed to replicate');
RESET ROLE;
ALTER ROLE tap_joe NOLOGIN REPLICATION;
ALTER ROLE tap_jack REPLICATION;
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.create_deployment('joes', 'green')$$),
	E'42501 owner "tap_joe" of deployment "joes" lacks the attribute LOGIN\nA stream runs as the deployment''s owner, which must be allowed to log in and to replicate.\nUse ALTER ROLE tap_joe LOGIN.',
	'and to log in');
RESET ROLE;
ALTER ROLE tap_joe LOGIN;
SELECT format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database())
	AS revoke_connect \gset
:revoke_connect;
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.create_deployment('joes', 'green')$$),
	format(E'42501 owner "tap_joe" of deployment "joes" lacks CONNECT on database "%s"\nUse GRANT CONNECT ON DATABASE %1$I TO tap_joe.',
		current_database()), 'and to connect');
RESET ROLE;
SELECT format('GRANT CONNECT ON DATABASE %I TO PUBLIC', current_database())
	AS grant_connect \gset
:grant_connect;
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.create_deployment('joes', 'green')$$), 'ok',
	'with USAGE on the server it can define a deployment');
SELECT is(why($$SELECT bluegreen.create_deployment('more', 'others')$$),
	E'42501 permission denied for foreign server others\nUse GRANT USAGE ON FOREIGN SERVER others TO tap_joe.',
	'but not on another server');

-- the connection to the peer
SELECT alike(why($$SELECT bluegreen.map_table('joes', 't')$$),
	'%user mapping%not found%', 'it needs a user mapping of its own');
SELECT is(why('CREATE USER MAPPING FOR tap_joe SERVER green
		OPTIONS (user ''tap_joe'', password_required ''false'')'),
	E'42501 password_required=false is superuser-only\nUser mappings with the password_required option set to false may only be created or modified by the superuser.',
	'it cannot exempt itself from a password');
SELECT alike(why('CREATE USER MAPPING FOR tap_joe SERVER green
		OPTIONS (user ''tap_joe'', ' || option || ' ''/etc/passwd'')'),
	'42501 permission denied to set option "' || option || '"%',
	'it cannot name a file of the server: ' || option)
FROM unnest('{passfile,sslcert,sslkey}'::text[]) option;
SELECT is(why('CREATE USER MAPPING FOR tap_joe SERVER green
		OPTIONS (user ''tap_joe'')'), 'ok', 'a user mapping without password');
SELECT is(why($$SELECT bluegreen.map_table('joes', 't')$$),
	E'2F003 password is required\nNon-superusers must provide a password in the user mapping.',
	'is refused before connecting');
SELECT is(why('ALTER USER MAPPING FOR tap_joe SERVER green
		OPTIONS (ADD password '''')'), 'ok', 'an empty password');
SELECT is(why($$SELECT bluegreen.map_table('joes', 't')$$),
	E'2F003 password is required\nNon-superusers must provide a password in the user mapping.',
	'is none');
SELECT is(why('ALTER USER MAPPING FOR tap_joe SERVER green
		OPTIONS (SET password ''x'')'), 'ok', 'a password');
SELECT is(why($$SELECT bluegreen.map_table('joes', 't')$$),
	E'2F003 password is required\nNon-superuser cannot connect if the server does not request a password.\nTarget server''s authentication method must be changed or password_required=false set in the user mapping attributes.',
	'that the peer does not ask for is refused after connecting');
SELECT is((SELECT count(*) FROM pg_user_mappings WHERE srvname = 'green'
	AND umoptions::text LIKE '%sesame%')::integer, 0,
	'it cannot see the administrator''s password');
RESET ROLE;
SELECT format('ALTER USER MAPPING FOR tap_joe SERVER green OPTIONS (SET user %L, ADD password_required ''false'')',
	current_user) AS alter_mapping \gset
:alter_mapping;
SELECT format('CREATE USER MAPPING FOR tap_jack SERVER green OPTIONS (user %L, password_required ''false'')',
	current_user) AS create_mapping \gset
:create_mapping;
SET ROLE tap_joe;
SELECT alike(why('ALTER USER MAPPING FOR tap_joe SERVER green
		OPTIONS (SET user ''other'')'),
	'42501 password_required=false is superuser-only%',
	'a mapping that a superuser has opened is no longer the role''s to alter');
SELECT is(why($$SELECT bluegreen.map_table('joes', 't')$$), 'ok',
	'a superuser may open it to a role');

-- tables and functions
SELECT is(why($$SELECT bluegreen.map_table('joes', 'secret')$$),
	E'42501 permission denied for table "public.secret"\nThe deployment''s owner, "tap_joe", must be able to read it.\nUse GRANT SELECT ON public.secret TO tap_joe.',
	'a table that the owner cannot read');
SELECT alike(why($$SELECT bluegreen.map_table('joes', 'partly', 't',
		'SELECT id FROM partly')$$),
	'42501 permission denied for table "public.partly"%',
	'or not all of whose columns');
SELECT is(why($$SELECT bluegreen.map_table('joes', 't', 'u',
		'SELECT id FROM secret')$$),
	E'42P17 transform of table "t" reads "secret"\nThe table after FROM must be the mapping''s source.',
	'nor by a detour');
SELECT is(why($$SELECT bluegreen.map_schema('joes', 'public')$$),
	E'42501 permission denied for table "public.partly"\nThe deployment''s owner, "tap_joe", must be able to read it.\nUse GRANT SELECT ON public.partly TO tap_joe.',
	'a schema with such a table is not mapped at all');
RESET ROLE;
CREATE FUNCTION forbidden(text) RETURNS text IMMUTABLE LANGUAGE sql
	AS 'SELECT $1';
REVOKE EXECUTE ON FUNCTION forbidden(text) FROM PUBLIC;
CREATE FUNCTION who(text) RETURNS text IMMUTABLE LANGUAGE plpgsql
	AS 'BEGIN RETURN current_user; END';
CREATE FUNCTION intrude(text) RETURNS text IMMUTABLE LANGUAGE plpgsql
	AS 'BEGIN PERFORM set_config(''role'', ''none'', false); RETURN current_user; END';
CREATE FUNCTION peep(integer) RETURNS text IMMUTABLE LANGUAGE plpgsql
	AS 'BEGIN RETURN (SELECT v FROM public.secret WHERE id = $1); END';
INSERT INTO secret VALUES (1, 'treasure');
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.map_table('joes', 't', 'u',
		'SELECT id, forbidden(v) AS v FROM t')$$),
	'42501 permission denied for function forbidden',
	'a function that the owner may not call');
SELECT is(why($$SELECT bluegreen.map_table('joes', 't', 'u',
		'SELECT id, who(v) AS v FROM t')$$), 'ok', 'one that it may');
RESET ROLE;
SELECT is((SELECT target_row ->> 'v' FROM bluegreen.preview('joes', 't')
		WHERE target = 'public.u'), 'tap_joe',
	'it runs as the owner, even for a superuser');
SELECT is(bluegreen.unmap_table('joes', 't', 'u'), 1,
	'a superuser may change anyone''s deployment');
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.map_table('joes', 't', 'u',
		'SELECT id, intrude(v) AS v FROM t')$$), 'ok',
	'one that means harm');
RESET ROLE;
SELECT is(why($$SELECT * FROM bluegreen.preview('joes', 't')$$),
	'42501 cannot set parameter "role" within security-restricted operation',
	'cannot become the superuser who looks');
SELECT is(bluegreen.unmap_table('joes', 't', 'u'), 1, 'it goes');
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.map_table('joes', 't', 'u',
		'SELECT id, peep(id) AS v FROM t')$$), 'ok', 'or');
RESET ROLE;
SELECT is(why($$SELECT * FROM bluegreen.preview('joes', 't')$$),
	'42501 permission denied for table secret',
	'read what the owner cannot read through the superuser');
SELECT is(bluegreen.unmap_table('joes', 't', 'u'), 1, 'it goes, too');
-- constants are folded while the mapping is defined
SET ROLE tap_joe;
SELECT is(why($$SELECT bluegreen.map_table('joes', 't', 'u',
		'SELECT id, peep(1) AS v FROM t')$$),
	'42501 permission denied for table secret',
	'nor while the mapping is defined');
RESET ROLE;
SELECT is(why($$SELECT bluegreen.map_table('joes', 't', 'u',
		'SELECT id, peep(1) AS v FROM t')$$),
	'42501 permission denied for table secret',
	'not even if a superuser defines it for the role');
SELECT is(why($$SELECT bluegreen.map_table('joes', 'secret')$$),
	E'42501 permission denied for table "public.secret"\nThe deployment''s owner, "tap_joe", must be able to read it.\nUse GRANT SELECT ON public.secret TO tap_joe.',
	'and it is the owner who must be able to read the table');

-- the transform's view belongs to the owner, and is not granted
SELECT set_eq($$SELECT relowner::regrole::text FROM pg_class
	WHERE oid IN (SELECT view FROM bluegreen.table_mapping
		JOIN bluegreen.deployment d ON d.id = deployment
		WHERE d.name = 'joes')$$, ARRAY['tap_joe'],
	'a transform''s view belongs to the deployment''s owner');
SELECT is_empty($$SELECT oid::regclass FROM pg_class
	WHERE relname LIKE 'transform\_%'
		AND relnamespace = 'bluegreen'::regnamespace
		AND (relacl IS NOT NULL AND relacl::text LIKE '%=r%/%'
			OR has_table_privilege('tap_jack', oid, 'SELECT'))$$,
	'and nobody else may read it');
SET ROLE tap_joe;
SELECT alike(why('DROP VIEW ' || c.oid::regclass), '2BP01 cannot drop view%',
	'not even the owner drops it')
FROM pg_class c WHERE relowner = 'tap_joe'::regrole AND relkind = 'v';
SELECT is(why('INSERT INTO bluegreen.deployment (name, owner, server)
	VALUES (''x'', 10, ''green'')'),
	'42501 permission denied for table deployment',
	'the tables are not granted to it');

--
-- Another's deployment
--
SET ROLE tap_jack;
SELECT is(why(call), '42501 must be owner of deployment "joes"',
	'another''s deployment: ' || call)
FROM (VALUES
	($$SELECT bluegreen.drop_deployment('joes')$$),
	($$SELECT bluegreen.drop_deployment('joes', force => true)$$),
	($$SELECT bluegreen.map_table('joes', 't', 'u')$$),
	($$SELECT bluegreen.map_schema('joes', 'public')$$),
	($$SELECT bluegreen.alter_mapping('joes', 't')$$),
	($$SELECT bluegreen.unmap_table('joes', 't')$$),
	($$SELECT * FROM bluegreen.preview('joes', 't')$$),
	($$SELECT * FROM bluegreen.preflight('joes')$$),
	($$SELECT bluegreen.accept('joes', 'role', 'x')$$),
	($$SELECT bluegreen.skip('joes', '0/1')$$),
	($$SELECT bluegreen.confirm_source('joes')$$),
	($$SELECT bluegreen.cancel_verify('joes')$$),
	($$SELECT bluegreen.repair('joes')$$),
	($$SELECT bluegreen.add_router('joes', 'pgbouncer', 'green', 'x', '', '')$$),
	($$SELECT bluegreen.drop_router('joes', 'green')$$),
	($$SELECT * FROM bluegreen.sequences('joes')$$),
	($$SELECT bluegreen.move_sequences('joes')$$),
	($$SELECT bluegreen.check_sequences('joes')$$),
	($$SELECT bluegreen.reset_stats('joes')$$)) c (call);
SELECT is(why($$SELECT bluegreen.create_deployment('joes', 'green')$$),
	'42710 deployment "joes" already exists', 'its name is taken');
SELECT is(why($$SELECT bluegreen.create_deployment('jacks', 'green')$$), 'ok',
	'beside it he may have his own');
SELECT is(why($$SELECT bluegreen.map_table('jacks', 't', 'u')$$), 'ok',
	'with a mapping of the same table');
RESET ROLE;

-- procedures, which commit and so need a session of their own
SELECT is(why(format('SELECT dblink_exec(%L, %L)', :'jack', call)),
	'42501 must be owner of deployment "joes"', 'nor: ' || call)
FROM (VALUES ($$CALL bluegreen.start('joes')$$),
	($$CALL bluegreen.stop('joes')$$),
	($$CALL bluegreen.verify('joes')$$),
	($$CALL bluegreen.wait_for_sync('joes', '1s')$$)) c (call);

-- rights that are taken away later
SELECT is((SELECT desired FROM bluegreen.deployment WHERE name = 'joes'),
	'defined', 'nothing of this has changed it');
REVOKE SELECT ON t FROM tap_joe;
SET ROLE tap_joe;
SELECT is(why($$SELECT * FROM bluegreen.preview('joes', 't')$$),
	'42501 permission denied for table "t"',
	'preview shows nothing to an owner who has lost SELECT');
SELECT is(why($$SELECT bluegreen.drop_deployment('joes')$$), 'ok',
	'an owner drops a deployment');
SET ROLE tap_jack;
SELECT is(why($$SELECT bluegreen.unmap_table('jacks', 't')$$), 'ok',
	'and unmaps a table');
RESET ROLE;
SELECT is((SELECT count(*) FROM pg_class WHERE relowner = ANY
	(ARRAY['tap_joe', 'tap_jack']::regrole[]))::integer, 0,
	'no view is left behind');
SELECT is(why($$SELECT bluegreen.drop_deployment('jacks')$$), 'ok',
	'a superuser drops anyone''s');
SELECT is(why($$SELECT bluegreen.drop_deployment('admins')$$), 'ok',
	'and his own');

DROP SERVER green CASCADE;
DROP EXTENSION pg_bluegreen CASCADE;
SELECT dblink_exec(:'conninfo' || current_database(),
	'DROP DATABASE tap_privileges_green WITH (FORCE)');
DROP OWNED BY tap_joe, tap_jack, tap_nobody, tap_monitor;
DROP ROLE tap_joe, tap_jack, tap_nobody, tap_monitor;
SELECT * FROM finish();
