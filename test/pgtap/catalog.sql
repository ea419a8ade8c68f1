-- What the extension creates, and how: every object with its signature and a
-- comment, what PUBLIC may do, pinned search_paths, settings.
CREATE EXTENSION pg_bluegreen;
SELECT no_plan();

-- Members of the extension.
CREATE TEMPORARY VIEW member AS
SELECT classid, objid FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass
	AND refobjid = (SELECT oid FROM pg_extension
		WHERE extname = 'pg_bluegreen')
	AND deptype = 'e';

CREATE TEMPORARY VIEW routine AS
SELECT p.oid, p.proname, p.prokind, p.provolatile, p.proisstrict, p.proretset,
	p.prosecdef, p.proacl, p.proconfig, p.prolang, p.probin,
	p.oid::regprocedure::text AS signature
FROM pg_proc p WHERE p.pronamespace = 'bluegreen'::regnamespace;

--
-- Objects
--
SELECT has_schema('bluegreen');
SELECT is((SELECT extnamespace::regnamespace::text FROM pg_extension
	WHERE extname = 'pg_bluegreen'), 'bluegreen',
	'the extension lives in schema bluegreen');
SELECT set_eq($$SELECT relname::text FROM pg_class
	WHERE relnamespace = 'bluegreen'::regnamespace AND relkind = 'r'$$,
	ARRAY['deployment', 'table_mapping', 'mapping_column', 'backward_mapping', 'partition_change', 'event_log',
		'chunk_log', 'preflight_result', 'accepted', 'applied_stream', 'applied_table',
		'applied_chunk', 'saved_index', 'window_owed', 'conflict_log', 'verify_run', 'verify_table',
		'verify_difference', 'repair_row', 'schema_change', 'schema_step',
		'schema_made', 'schema_meant', 'schema_copy', 'backfill', 'fence', 'fence_target', 'fence_local',
		'switch', 'drain_condition', 'sequence_move', 'sequence_window',
		'router_route',
		'session'],
	'tables of the extension');
SELECT set_eq($$SELECT relname::text FROM pg_class
	WHERE relnamespace = 'bluegreen'::regnamespace AND relkind = 'v'$$,
	ARRAY['stat_stream', 'stat_table', 'status', 'copy_progress', 'chunk',
		'conflict', 'event', 'mapping', 'verification', 'difference',
		'change', 'change_step', 'backfill_progress',
		'fence_state', 'fence_writer', 'switch_state', 'drain', 'router',
		'stat_session'],
	'views of the extension');
SELECT set_eq($$SELECT conrelid::regclass::text FROM pg_constraint
	WHERE connamespace = 'bluegreen'::regnamespace AND contype = 'p'$$,
	$$SELECT oid::regclass::text FROM pg_class
	WHERE relnamespace = 'bluegreen'::regnamespace AND relkind = 'r'$$,
	'every table has a primary key');
SELECT is_empty($$SELECT typname FROM pg_type
	WHERE typnamespace = 'bluegreen'::regnamespace AND typrelid = 0
		AND typelem = 0$$,
	'the extension has no types but those of its tables and views');
SELECT is_empty($$SELECT relname FROM pg_class
	WHERE relnamespace = 'bluegreen'::regnamespace
		AND relkind NOT IN ('r', 'v', 'i', 'S', 't')$$,
	'nor other kinds of relations');
SELECT set_eq($$SELECT fdwname::text, fdwhandler::regproc::text,
	fdwvalidator::regproc::text, fdwacl::text
	FROM pg_foreign_data_wrapper WHERE fdwname = 'pg_bluegreen'$$,
	$$VALUES ('pg_bluegreen', '-', 'bluegreen.fdw_validator', NULL::text)$$,
	'foreign-data wrapper pg_bluegreen: a validator, no handler, for superusers to grant');
SELECT set_eq($$SELECT signature FROM routine
	WHERE prokind = 'f'$$,
	$$SELECT f FROM (VALUES
		('bluegreen.fdw_validator(text[],oid)'),
		('bluegreen.create_table(name,text,jsonb,jsonb,text)'),
		('bluegreen.drop_table(name,text)'),
		('bluegreen.rename_table(name,text,text)'),
		('bluegreen.add_column(name,text,text,text,text,boolean,text,boolean,jsonb,jsonb,text)'),
		('bluegreen.drop_column(name,text,text,text)'),
		('bluegreen.rename_column(name,text,text,text)'),
		('bluegreen.alter_column(name,text,text,text,text,text,boolean,text,text,jsonb,jsonb,jsonb,boolean,boolean)'),
		('bluegreen.create_index(name,text,text,jsonb,boolean,text,text,text)'),
		('bluegreen.drop_index(name,text)'),
		('bluegreen.create_constraint(name,text,text,text,text[],text,jsonb,jsonb,jsonb,boolean,jsonb)'),
		('bluegreen.drop_constraint(name,text,text,text,text)'),
		('bluegreen.drop_multicolumn_constraint(name,text,text,jsonb,jsonb)'),
		('bluegreen.rename_constraint(name,text,text,text)'),
		('bluegreen.set_replica_identity(name,text,jsonb)'),
		('bluegreen.derive_table(name,text,text,text,text[],text,text,jsonb)'),
		('bluegreen.sql(name,text,text,boolean)'),
		('bluegreen.create_change(name,jsonb,name)'),
		('bluegreen.drop_change(name)'),
		('bluegreen.pause_backfill(name,boolean)'),
		('bluegreen.skip_step(name)'),
		('bluegreen.set_change_owner(name,name)'),
		('bluegreen.derive_rows()'),
		('bluegreen.sync_columns()'),
		('bluegreen.create_deployment(name,name,name)'),
		('bluegreen.drop_deployment(name,boolean)'),
		('bluegreen.map_table(name,regclass,text,text,text[],text,text,text,text,text)'),
		('bluegreen.map_table(name,text,text,text,text[],text,text,text,text,text)'),
		('bluegreen.map_schema(name,name,name,name[])'),
		('bluegreen.alter_mapping(name,regclass,text,text,text[],text,text,text,text,text)'),
		('bluegreen.alter_mapping(name,text,text,text,text[],text,text,text,text,text)'),
		('bluegreen.unmap_table(name,regclass,text,text)'),
		('bluegreen.unmap_table(name,text,text,text)'),
		('bluegreen.join_deployment(name,text,name,text)'),
		('bluegreen.joined_stream(name,text)'),
		('bluegreen.leave_deployment(name,text,boolean)'),
		('bluegreen.derive_mapping(name,text,text,text,text[],text[],text,text)'),
		('bluegreen.keep_derived(name,integer[])'),
		('bluegreen.joined_mappings(name)'),
		('bluegreen.preview(name,regclass,integer)'),
		('bluegreen.preflight(name,text)'),
		('bluegreen.accept(name,text,text,boolean)'),
		('bluegreen.commit_time()'),
		('bluegreen.commit_lsn()'),
		('bluegreen.skip(name,pg_lsn)'),
		('bluegreen.confirm_source(name)'),
		('bluegreen.commit_position(pg_lsn,timestamp with time zone,pg_lsn,pg_lsn)'),
		('bluegreen.check_rows(bigint[])'),
		('bluegreen.begin_apply()'),
		('bluegreen.insert_rows(regclass,name[],bytea,bigint)'),
		('bluegreen.takes_rows(regclass,name[])'),
		('bluegreen.update_rows(regclass,name[],name[],bytea,bigint)'),
		('bluegreen.delete_rows(regclass,name[],bytea,bigint)'),
		('bluegreen.create_session(interval,jsonb,text)'),
		('bluegreen.read_session(text)'),
		('bluegreen.touch_session(text,interval)'),
		('bluegreen.write_session(text,jsonb)'),
		('bluegreen.write_session_attribute(text,text,jsonb)'),
		('bluegreen.delete_session(text)'),
		('bluegreen.expire_sessions(bigint)'),
		('bluegreen.session_state()'),
		('bluegreen.session_merge()'),
		('bluegreen.prepare_sessions(regclass,text,text,jsonb)'),
		('bluegreen.adopt_sessions(name,regclass,text,jsonb)'),
		('bluegreen.release_sessions(regclass)'),
		('bluegreen.session_rules()'),
		('bluegreen.session_gone()'),
		('bluegreen.note_reached(pg_lsn)'),
		('bluegreen.note_seen(pg_lsn)'),
		('bluegreen.write_as_own()'),
		('bluegreen.forget_key(regclass,name[],text[])'),
		('bluegreen.check_change(regclass,name[],pg_lsn,"any")'),
		('bluegreen.weigh_change(regclass,name[],pg_lsn,text,text,bigint,"any")'),
		('bluegreen.token(name)'),
		('bluegreen.wait_for_token(text,interval)'),
		('bluegreen.origin_create(text)'),
		('bluegreen.origin_setup(text)'),
		('bluegreen.origin_progress()'),
		('bluegreen.origin_drop(text)'),
		('bluegreen.save_indexes(text,integer,name[],boolean)'),
		('bluegreen.restore_indexes(text,integer,boolean)'),
		('bluegreen.restore_key(text,integer)'),
		('bluegreen.note_row(text)'),
		('bluegreen.noted_row()'),
		('bluegreen.describe_lookup(name,name,text,name[],text[],name[],boolean)'),
		('bluegreen.check_lookup(text,bigint,bigint,bigint,bigint)'),
		('bluegreen.grant_apply(regrole,regclass[])'),
		('bluegreen.revoke_apply(regrole,regclass[])'),
		('bluegreen.image_hash("any")'),
		('bluegreen.row_hash(text,"any")'),
		('bluegreen.row_bucket(integer,text,"any")'),
		('bluegreen.key_text("any")'),
		('bluegreen.checksum_add(internal,integer,integer,text,"any")'),
		('bluegreen.checksum_final(internal)'),
		('bluegreen.sequences(name)'),
		('bluegreen.add_router(name,text,name,name,text,text,text,text)'),
		('bluegreen.drop_router(name,name,name)'),
		('bluegreen.is_active(name)'),
		('bluegreen.move_sequences(name)'),
		('bluegreen.check_sequences(name)'),
		('bluegreen.sequence_position(oid)'),
		('bluegreen.column_extreme(oid,name,boolean)'),
		('bluegreen.restart_sequences(oid[],bigint[],boolean[],integer)'),
		('bluegreen.interleave_sequences(text,bigint,oid[],bigint[],bigint[],integer)'),
		('bluegreen.restore_sequences(text,bigint,oid[],bigint[],integer)'),
		('bluegreen.restore_all_sequences(integer)'),
		('bluegreen.cancel_verify(name)'),
		('bluegreen.repair(name,regclass)'),
		('bluegreen.reset_stats(name)'),
		('bluegreen.wait_for_writers(text)'),
		('bluegreen.fence_changed()'),
		('bluegreen.fence_follow()'),
		('bluegreen.fence_look(text)'),
		('bluegreen.fence_decide(text,bigint)'),
		('bluegreen.fence_settle(text,bigint)'),
		('bluegreen.window_move(text,bigint,text)'),
		('bluegreen.window_look(text,pg_lsn)'),
		('bluegreen.window_mappings(name)'),
		('bluegreen.window_decide(text,bigint)'),
		('bluegreen.window_settle(text,bigint)'),
		('bluegreen.force_active(text,name)'),
		('bluegreen.add_drain(name,name,text)'),
		('bluegreen.drop_drain(name,name)'),
		('bluegreen.fence_name_target()'),
		('bluegreen.set_local(regclass,boolean)'),
		('bluegreen.reopen()'),
		('bluegreen.stream_state()'),
		('bluegreen.table_state()'),
		('bluegreen.copy_state()'),
		('bluegreen.slot_state(name)')) v (f)$$,
	'functions with their signatures');
SELECT set_eq($$SELECT signature FROM routine
	WHERE prokind = 'p'$$,
	$$SELECT f FROM (VALUES
		('bluegreen.start(name,boolean)'),
		('bluegreen.expand(name)'),
		('bluegreen.contract(name)'),
		('bluegreen.undo(name)'),
		('bluegreen.wait_for_backfill(name,interval)'),
		('bluegreen.stop(name)'),
		('bluegreen.wait_for_token(text,interval,boolean)'),
		('bluegreen.routers_pause(name,interval)'),
		('bluegreen.routers_switch(name,text)'),
		('bluegreen.routers_resume(name)'),
		('bluegreen.verify(name,regclass,interval,boolean)'),
		('bluegreen.fence_raise(name,bigint,interval,text)'),
		('bluegreen.fence_adopt(name,bigint,interval,text)'),
		('bluegreen.fence_lower(name,bigint)'),
		('bluegreen.fence_doubt(name,bigint)'),
		('bluegreen.fence_close(name,bigint)'),
		('bluegreen.fence_activate(name,bigint)'),
		('bluegreen.switchover(name,interval,interval,text,interval,boolean)'),
		('bluegreen.rollback(name,interval,interval,text,interval,boolean)'),
		('bluegreen.open_window(name,interval)'),
		('bluegreen.close_window(name,text,interval,interval,text)'),
		('bluegreen.cancel(name)'),
		('bluegreen.finish(name)'),
		('bluegreen.wait_for_sync(name,interval)')) v (f)$$,
	'procedures with their signatures');
SELECT set_eq($$SELECT signature FROM routine
	WHERE prokind NOT IN ('f', 'p')$$,
	ARRAY['bluegreen.checksum(integer,integer,text,"any")'],
	'one aggregate, no window functions');
SELECT set_eq($$SELECT proname::text,
		pg_get_function_arguments(oid),
		pg_get_function_result(oid)
	FROM routine WHERE proname NOT LIKE '%\_state'$$,
	$$SELECT a, b, c FROM (VALUES
	('create_table', 'change name, name text, columns jsonb, constraints jsonb DEFAULT NULL::jsonb, comment text DEFAULT NULL::text', 'integer'),
	('drop_table', 'change name, name text', 'integer'),
	('rename_table', 'change name, "from" text, "to" text', 'integer'),
	('add_column', 'change name, "table" text, name text, type text, up text DEFAULT NULL::text, nullable boolean DEFAULT NULL::boolean, "default" text DEFAULT NULL::text, "unique" boolean DEFAULT NULL::boolean, "check" jsonb DEFAULT NULL::jsonb, "references" jsonb DEFAULT NULL::jsonb, comment text DEFAULT NULL::text', 'integer'),
	('drop_column', 'change name, "table" text, "column" text, down text DEFAULT NULL::text', 'integer'),
	('rename_column', 'change name, "table" text, "from" text, "to" text', 'integer'),
	('alter_column', 'change name, "table" text, "column" text, up text DEFAULT NULL::text, down text DEFAULT NULL::text, type text DEFAULT NULL::text, nullable boolean DEFAULT NULL::boolean, "default" text DEFAULT NULL::text, comment text DEFAULT NULL::text, "unique" jsonb DEFAULT NULL::jsonb, "check" jsonb DEFAULT NULL::jsonb, "references" jsonb DEFAULT NULL::jsonb, drop_default boolean DEFAULT false, drop_comment boolean DEFAULT false', 'integer'),
	('create_index', 'change name, "table" text, name text, columns jsonb, "unique" boolean DEFAULT NULL::boolean, method text DEFAULT NULL::text, predicate text DEFAULT NULL::text, storage_parameters text DEFAULT NULL::text', 'integer'),
	('drop_index', 'change name, name text', 'integer'),
	('create_constraint', 'change name, "table" text, name text, type text, columns text[] DEFAULT NULL::text[], "check" text DEFAULT NULL::text, "references" jsonb DEFAULT NULL::jsonb, up jsonb DEFAULT NULL::jsonb, down jsonb DEFAULT NULL::jsonb, no_inherit boolean DEFAULT NULL::boolean, index_parameters jsonb DEFAULT NULL::jsonb', 'integer'),
	('drop_constraint', 'change name, "table" text, name text, up text, down text', 'integer'),
	('drop_multicolumn_constraint', 'change name, "table" text, name text, up jsonb, down jsonb', 'integer'),
	('rename_constraint', 'change name, "table" text, "from" text, "to" text', 'integer'),
	('set_replica_identity', 'change name, "table" text, identity jsonb', 'integer'),
	('sql', 'change name, up text, down text DEFAULT NULL::text, on_complete boolean DEFAULT NULL::boolean', 'integer'),
	('create_change', 'name name, operations jsonb, schema name DEFAULT NULL::name', 'integer'),
	('drop_change', 'name name', 'void'),
	('pause_backfill', 'change name, paused boolean DEFAULT true', 'void'),
	('skip_step', 'change name', 'text'),
	('set_change_owner', 'change name, owner name', 'void'),
	('derive_rows', '', 'trigger'),
	('derive_table', 'change name, name text, "from" text, transform text, key text[] DEFAULT NULL::text[], on_write text DEFAULT NULL::text, on_delete text DEFAULT NULL::text, back jsonb DEFAULT NULL::jsonb', 'integer'),
	('sync_columns', '', 'trigger'),
	('expand', 'IN change name', NULL),
	('contract', 'IN change name', NULL),
	('undo', 'IN change name', NULL),
	('wait_for_backfill', 'IN change name, IN timeout interval DEFAULT NULL::interval', NULL),
	('alter_mapping', 'deployment name, source regclass, target text DEFAULT NULL::text, transform text DEFAULT NULL::text, key text[] DEFAULT NULL::text[], on_write text DEFAULT NULL::text, on_delete text DEFAULT NULL::text, lookup text DEFAULT NULL::text, direction text DEFAULT ''forward''::text, conflict text DEFAULT NULL::text', 'integer'),
	('alter_mapping', 'deployment name, source text, target text DEFAULT NULL::text, transform text DEFAULT NULL::text, key text[] DEFAULT NULL::text[], on_write text DEFAULT NULL::text, on_delete text DEFAULT NULL::text, lookup text DEFAULT NULL::text, direction text DEFAULT ''forward''::text, conflict text DEFAULT NULL::text', 'integer'),
	('join_deployment', 'deployment name, opposite text, server name, identity text, OUT stream text, OUT server_used name', 'record'),
	('joined_stream', 'deployment name, opposite text', 'text'),
	('leave_deployment', 'deployment name, opposite text, force boolean', 'void'),
	('derive_mapping', 'deployment name, source text, target text, transform text, key text[], types text[], derived_from text, conflict text', 'integer'),
	('keep_derived', 'deployment name, mappings integer[]', 'integer'),
	('joined_mappings', 'deployment name, OUT mapping integer, OUT source text, OUT target text, OUT key name[], OUT on_write text, OUT on_delete text, OUT derived boolean, OUT transform text, OUT lookup text, OUT conflict text', 'SETOF record'),
	('accept', 'deployment name, "check" text, object text, accepted boolean DEFAULT true', 'void'),
	('preflight', 'deployment name, stage text DEFAULT ''switchover''::text, OUT "check" text, OUT severity text, OUT object text, OUT message text, OUT hint text', 'SETOF record'),
	('begin_apply', '', 'void'),
	('insert_rows', 'target regclass, columns name[], rows bytea, number bigint', 'void'),
	('takes_rows', 'target regclass, key name[]', 'boolean'),
	('update_rows', 'target regclass, key name[], columns name[], rows bytea, number bigint', 'void'),
	('delete_rows', 'target regclass, key name[], rows bytea, number bigint', 'void'),
	('create_session', 'lifetime interval, data jsonb DEFAULT ''{}''::jsonb, id text DEFAULT NULL::text', 'text'),
	('read_session', 'id text', 'jsonb'),
	('touch_session', 'id text, lifetime interval DEFAULT NULL::interval', 'boolean'),
	('write_session', 'id text, data jsonb', 'boolean'),
	('write_session_attribute', 'id text, name text, value jsonb', 'boolean'),
	('delete_session', 'id text', 'boolean'),
	('expire_sessions', 'max_rows bigint DEFAULT 1000', 'bigint'),
	('session_merge', '', 'trigger'),
	('prepare_sessions', 'source regclass, preset text, side text, options jsonb DEFAULT NULL::jsonb', 'void'),
	('adopt_sessions', 'deployment name, source regclass, preset text, options jsonb DEFAULT NULL::jsonb', 'integer'),
	('release_sessions', 'source regclass', 'void'),
	('session_rules', '', 'trigger'),
	('session_gone', '', 'trigger'),
	('note_reached', 'lsn pg_lsn', 'void'),
	('note_seen', 'seen pg_lsn', 'void'),
	('write_as_own', '', 'void'),
	('forget_key', 'relation regclass, columns name[], key text[]', 'void'),
	('check_change', 'relation regclass, key name[], seen pg_lsn, VARIADIC "any"', 'void'),
	('weigh_change', 'relation regclass, key name[], seen pg_lsn, policy text, theirs text, rank bigint, VARIADIC "any"', 'integer'),
	('token', 'deployment name DEFAULT NULL::name', 'text'),
	('wait_for_token', 'token text, timeout interval', 'boolean'),
	('wait_for_token', 'IN token text, IN timeout interval, INOUT reached boolean', NULL),
	('origin_create', 'name text', 'void'),
	('origin_setup', 'name text', 'void'),
	('origin_progress', '', 'pg_lsn'),
	('origin_drop', 'stream text', 'void'),
	('save_indexes', 'stream text, mapping integer, key name[], with_key boolean', 'boolean'),
	('restore_key', 'stream text, mapping integer', 'integer'),
	('restore_indexes', 'stream text, mapping integer DEFAULT NULL::integer, gone boolean DEFAULT false', 'integer'),
	('note_row', 'stored_row text', 'void'),
	('noted_row', '', 'text'),
	('describe_lookup', 'target_schema name, target_table name, lookup text, columns name[], types text[], key name[], check_rights boolean, OUT query text, OUT given name[], OUT finds name[], OUT reads text[]', 'record'),
	('check_lookup', 'target text, incoming bigint, found bigint, written bigint, distinct_written bigint', 'boolean'),
	('grant_apply', 'role regrole, VARIADIC tables regclass[] DEFAULT ''{}''::regclass[]', 'SETOF text'),
	('revoke_apply', 'role regrole, VARIADIC tables regclass[] DEFAULT ''{}''::regclass[]', 'SETOF text'),
	('commit_lsn', '', 'pg_lsn'),
	('commit_position', 'lsn pg_lsn, commit_time timestamp with time zone, after pg_lsn, seen pg_lsn', 'void'),
	('check_rows', 'expected bigint[]', 'void'),
	('commit_time', '', 'timestamp with time zone'),
	('confirm_source', 'deployment name', 'void'),
	('sequences', 'deployment name, OUT sequence text, OUT source text, OUT source_value text, OUT value bigint, OUT next_value bigint, OUT action text, OUT message text, OUT hint text', 'SETOF record'),
	('move_sequences', 'deployment name', 'integer'),
	('add_router', 'deployment name, kind text, server name, database name, blue_route text, green_route text, route_file text DEFAULT NULL::text, route_command text DEFAULT NULL::text', 'integer'),
	('drop_router', 'deployment name, server name, database name DEFAULT NULL::name', 'integer'),
	('is_active', 'deployment name DEFAULT NULL::name', 'boolean'),
	('routers_pause', 'IN deployment name, IN timeout interval DEFAULT ''00:00:01''::interval', NULL),
	('routers_switch', 'IN deployment name, IN side text', NULL),
	('routers_resume', 'IN deployment name', NULL),
	('check_sequences', 'deployment name', 'integer'),
	('sequence_position', 'sequence oid, OUT last_value bigint, OUT is_called boolean', 'record'),
	('column_extreme', 'relation oid, "column" name, lowest boolean', 'bigint'),
	('restart_sequences', 'sequences oid[], at_least bigint[], wraps boolean[], lock_timeout integer', 'bigint[]'),
	('interleave_sequences', 'stream text, epoch bigint, sequences oid[], increments bigint[], first bigint[], lock_timeout integer', 'bigint[]'),
	('restore_sequences', 'stream text, epoch bigint, sequences oid[], at_least bigint[], lock_timeout integer', 'integer'),
	('restore_all_sequences', 'deployment integer', 'integer'),
	('cancel_verify', 'deployment name', 'boolean'),
	('checksum', 'buckets integer, keys integer, formats text, VARIADIC "any"', 'bytea'),
	('checksum_add', 'internal, integer, integer, text, VARIADIC "any"', 'internal'),
	('checksum_final', 'internal', 'bytea'),
	('create_deployment', 'name name, server name, peer_server name DEFAULT NULL::name', 'integer'),
	('drop_deployment', 'name name, force boolean DEFAULT false', 'void'),
	('wait_for_writers', 'stream text', 'void'),
	('fence_changed', '', 'trigger'),
	('fence_follow', '', 'trigger'),
	('fence_name_target', '', 'trigger'),
	('fence_raise', 'IN deployment name, IN epoch bigint, IN drain_timeout interval DEFAULT ''00:00:05''::interval, IN on_drain_timeout text DEFAULT ''abort''::text', NULL),
	('fence_adopt', 'IN deployment name, IN epoch bigint, IN drain_timeout interval DEFAULT ''00:00:05''::interval, IN on_drain_timeout text DEFAULT ''abort''::text', NULL),
	('fence_lower', 'IN deployment name, IN epoch bigint', NULL),
	('fence_doubt', 'IN deployment name, IN epoch bigint', NULL),
	('fence_close', 'IN deployment name, IN epoch bigint', NULL),
	('fence_activate', 'IN deployment name, IN epoch bigint', NULL),
	('fence_look', 'stream text, OUT state text, OUT epoch bigint, OUT "window" boolean', 'record'),
	('fence_decide', 'stream text, epoch bigint', 'void'),
	('fence_settle', 'stream text, epoch bigint', 'boolean'),
	('window_move', 'stream text, epoch bigint, state text', 'pg_lsn'),
	('window_look', 'stream text, lsn pg_lsn, OUT passed boolean, OUT problem text', 'record'),
	('window_mappings', 'deployment name, OUT source text, OUT target text, OUT policy text, OUT columns text, OUT source_key text, OUT target_key text, OUT problem text, OUT hint text', 'SETOF record'),
	('window_decide', 'stream text, epoch bigint', 'void'),
	('window_settle', 'stream text, epoch bigint', 'boolean'),
	('open_window', 'IN deployment name, IN timeout interval DEFAULT ''00:01:00''::interval', NULL),
	('close_window', 'IN deployment name, IN side text, IN timeout interval DEFAULT ''00:01:00''::interval, IN drain_timeout interval DEFAULT ''00:00:05''::interval, IN on_drain_timeout text DEFAULT ''abort''::text', NULL),
	('switchover', 'IN deployment name, IN timeout interval DEFAULT ''00:01:00''::interval, IN drain_timeout interval DEFAULT ''00:00:05''::interval, IN on_drain_timeout text DEFAULT ''abort''::text, IN require_verified interval DEFAULT NULL::interval, IN dry_run boolean DEFAULT false', NULL),
	('rollback', 'IN deployment name, IN timeout interval DEFAULT ''00:01:00''::interval, IN drain_timeout interval DEFAULT ''00:00:05''::interval, IN on_drain_timeout text DEFAULT ''abort''::text, IN require_verified interval DEFAULT NULL::interval, IN dry_run boolean DEFAULT false', NULL),
	('cancel', 'IN deployment name', NULL),
	('finish', 'IN deployment name', NULL),
	('force_active', 'side text, deployment name DEFAULT NULL::name', 'void'),
	('add_drain', 'deployment name, name name, sql text', 'void'),
	('drop_drain', 'deployment name, name name', 'void'),
	('set_local', 'relation regclass, local boolean DEFAULT true', 'void'),
	('reopen', '', 'integer'),
	('fdw_validator', 'options text[], catalog oid', 'void'),
	('image_hash', 'VARIADIC "any"', 'bigint'),
	('key_text', 'VARIADIC "any"', 'text[]'),
	('map_schema', 'deployment name, schema name, target_schema name DEFAULT NULL::name, exclude name[] DEFAULT ''{}''::name[], OUT mapping integer, OUT source regclass', 'SETOF record'),
	('map_table', 'deployment name, source regclass, target text DEFAULT NULL::text, transform text DEFAULT NULL::text, key text[] DEFAULT NULL::text[], on_write text DEFAULT ''mirror''::text, on_delete text DEFAULT ''delete''::text, lookup text DEFAULT NULL::text, direction text DEFAULT ''forward''::text, conflict text DEFAULT NULL::text', 'integer'),
	('map_table', 'deployment name, source text, target text DEFAULT NULL::text, transform text DEFAULT NULL::text, key text[] DEFAULT NULL::text[], on_write text DEFAULT ''mirror''::text, on_delete text DEFAULT ''delete''::text, lookup text DEFAULT NULL::text, direction text DEFAULT ''forward''::text, conflict text DEFAULT NULL::text', 'integer'),
	('preview', 'deployment name, source regclass, n integer DEFAULT 5, OUT target text, OUT source_row jsonb, OUT action text, OUT target_row jsonb', 'SETOF record'),
	('repair', 'deployment name, source regclass DEFAULT NULL::regclass', 'bigint'),
	('reset_stats', 'deployment name', 'void'),
	('row_bucket', 'buckets integer, formats text, VARIADIC "any"', 'integer'),
	('row_hash', 'formats text, VARIADIC "any"', 'uuid'),
	('skip', 'deployment name, lsn pg_lsn', 'void'),
	('start', 'IN deployment name, IN allow_nonempty boolean DEFAULT false', NULL),
	('stop', 'IN deployment name', NULL),
	('unmap_table', 'deployment name, source regclass, target text DEFAULT NULL::text, direction text DEFAULT ''forward''::text', 'integer'),
	('unmap_table', 'deployment name, source text, target text DEFAULT NULL::text, direction text DEFAULT ''forward''::text', 'integer'),
	('verify', 'IN deployment name, IN source regclass DEFAULT NULL::regclass, IN every interval DEFAULT NULL::interval, IN wait boolean DEFAULT true', NULL),
	('wait_for_sync', 'IN deployment name, IN timeout interval DEFAULT NULL::interval', NULL)
	) v (a, b, c)$$,
	'argument names, defaults and results');
SELECT set_eq($$SELECT proname::text FROM routine
	WHERE provolatile <> 'v'$$,
	$$SELECT f FROM (VALUES ('commit_lsn'), ('commit_time'), ('image_hash'),
		('row_hash'), ('row_bucket'), ('key_text'), ('checksum_add'),
		('checksum_final'), ('checksum'), ('check_lookup')) v (f)$$,
	'only the pseudo-functions of transforms, hashes and a check claim not to be volatile');

--
-- Members and comments
--
SELECT is_empty($$SELECT signature FROM routine r WHERE NOT EXISTS (
		SELECT FROM member WHERE classid = 'pg_proc'::regclass
			AND objid = r.oid)
	UNION ALL
	SELECT c.oid::regclass::text FROM pg_class c
	WHERE c.relnamespace = 'bluegreen'::regnamespace AND c.relkind IN ('r', 'v')
		AND NOT EXISTS (SELECT FROM member
			WHERE classid = 'pg_class'::regclass AND objid = c.oid)$$,
	'everything in the schema is a member of the extension');
-- row types have no comment of their own; a sequence is an identity column's
SELECT is_empty($$SELECT pg_describe_object(m.classid, m.objid, 0)
	FROM member m
	WHERE NOT (m.classid = 'pg_type'::regclass)
		AND NOT (m.classid = 'pg_class'::regclass AND EXISTS (
			SELECT FROM pg_class c WHERE c.oid = m.objid AND c.relkind = 'S'))
		AND NOT EXISTS (SELECT FROM pg_description d
			WHERE d.classoid = m.classid AND d.objoid = m.objid
				AND d.objsubid = 0 AND length(d.description) > 10)$$,
	'every object of the extension has a comment');
SELECT isnt((SELECT obj_description(oid, 'pg_extension') FROM pg_extension
	WHERE extname = 'pg_bluegreen'), NULL, 'and so has the extension');
SELECT is_empty($$SELECT description FROM pg_description d
		JOIN member m ON m.classid = d.classoid AND m.objid = d.objoid
	WHERE description ~ '\.$' OR description ~ '[^ -~]'$$,
	'comments are phrases in ASCII, without a full stop, as core''s');

--
-- Privileges
--
-- commit_time() and commit_lsn() tell nothing, and are used by transforms,
-- which run as any deployment's owner; note_row() keeps a text for a moment, and
-- weigh_change() looks a row up in a session that applies, as any target table's owner; describe_lookup() parses as its caller, and
-- check_lookup() compares numbers, as any target's owner; image_hash() and what compares tell what their
-- caller has; sync_columns() serves triggers of changes only, of which whoever makes a
-- partition makes a clone.
SELECT set_eq($$SELECT signature FROM routine
	WHERE has_function_privilege('public', oid, 'EXECUTE')$$,
	ARRAY['bluegreen.commit_time()', 'bluegreen.commit_lsn()',
		'bluegreen.is_active(name)', 'bluegreen.sync_columns()', 'bluegreen.token(name)',
		'bluegreen.wait_for_token(text,interval)',
		'bluegreen.wait_for_token(text,interval,boolean)',
		'bluegreen.image_hash("any")', 'bluegreen.note_row(text)',
		'bluegreen.weigh_change(regclass,name[],pg_lsn,text,text,bigint,"any")',
		'bluegreen.describe_lookup(name,name,text,name[],text[],name[],boolean)',
		'bluegreen.check_lookup(text,bigint,bigint,bigint,bigint)',
		'bluegreen.row_hash(text,"any")',
		'bluegreen.row_bucket(integer,text,"any")',
		'bluegreen.key_text("any")',
		'bluegreen.checksum_add(internal,integer,integer,text,"any")',
		'bluegreen.checksum_final(internal)',
		'bluegreen.checksum(integer,integer,text,"any")'],
	'PUBLIC may execute nothing but what tells nothing');
SELECT set_eq($$SELECT signature FROM routine
	WHERE has_function_privilege('pg_monitor', oid, 'EXECUTE')$$,
	ARRAY['bluegreen.commit_time()', 'bluegreen.commit_lsn()',
		'bluegreen.is_active(name)', 'bluegreen.sync_columns()', 'bluegreen.token(name)',
		'bluegreen.wait_for_token(text,interval)',
		'bluegreen.wait_for_token(text,interval,boolean)',
		'bluegreen.image_hash("any")', 'bluegreen.note_row(text)',
		'bluegreen.weigh_change(regclass,name[],pg_lsn,text,text,bigint,"any")',
		'bluegreen.describe_lookup(name,name,text,name[],text[],name[],boolean)',
		'bluegreen.check_lookup(text,bigint,bigint,bigint,bigint)',
		'bluegreen.row_hash(text,"any")',
		'bluegreen.row_bucket(integer,text,"any")',
		'bluegreen.key_text("any")',
		'bluegreen.checksum_add(internal,integer,integer,text,"any")',
		'bluegreen.checksum_final(internal)',
		'bluegreen.checksum(integer,integer,text,"any")',
		'bluegreen.stream_state()',
		'bluegreen.table_state()', 'bluegreen.copy_state()',
		'bluegreen.slot_state(name)', 'bluegreen.session_state()'],
	'pg_monitor may execute what the views need, and nothing that acts');
SELECT is_empty($$SELECT oid::regclass, p
	FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE',
		'TRUNCATE', 'REFERENCES', 'TRIGGER']) p
	WHERE relnamespace = 'bluegreen'::regnamespace AND relkind IN ('r', 'v')
		AND has_table_privilege('public', oid, p)$$,
	'PUBLIC has no privilege on any table or view');
SELECT is_empty($$SELECT attrelid::regclass, attname FROM pg_attribute a
		JOIN pg_class c ON c.oid = a.attrelid
	WHERE c.relnamespace = 'bluegreen'::regnamespace AND attacl IS NOT NULL$$,
	'nor has anyone on a column');
SELECT is_empty($$SELECT oid::regclass FROM pg_class
	WHERE relnamespace = 'bluegreen'::regnamespace AND relkind = 'S'
		AND (has_sequence_privilege('public', oid, 'USAGE')
			OR has_sequence_privilege('public', oid, 'SELECT')
			OR has_sequence_privilege('public', oid, 'UPDATE'))$$,
	'nor PUBLIC on a sequence');
SELECT is_empty($$SELECT oid::regclass FROM pg_class
	WHERE relnamespace = 'bluegreen'::regnamespace AND relkind = 'v'
		AND NOT has_table_privilege('pg_monitor', oid, 'SELECT')$$,
	'pg_monitor reads every view');
SELECT is_empty($$SELECT oid::regclass, p
	FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE',
		'TRUNCATE']) p
	WHERE relnamespace = 'bluegreen'::regnamespace
		AND (relkind = 'r' OR (relkind = 'v' AND p <> 'SELECT'))
		AND has_table_privilege('pg_monitor', oid, p)$$,
	'and no table, and writes nothing');
SELECT is_empty($$SELECT a.grantee::regrole, c.oid::regclass
	FROM pg_class c, aclexplode(relacl) a
	WHERE relnamespace = 'bluegreen'::regnamespace
		AND a.grantee NOT IN (c.relowner, 'pg_monitor'::regrole)$$,
	'nothing is granted to anyone else');
SELECT ok(has_schema_privilege('public', 'bluegreen', 'USAGE')
	AND NOT has_schema_privilege('public', 'bluegreen', 'CREATE'),
	'PUBLIC may look into the schema and create nothing in it');
SELECT ok(NOT has_foreign_data_wrapper_privilege('public', 'pg_bluegreen',
	'USAGE'), 'PUBLIC may not create servers of the wrapper');

--
-- Code
--
SELECT is_empty($$SELECT signature FROM routine WHERE prosecdef$$,
	'nothing is SECURITY DEFINER');
-- Procedures that commit cannot have a SET clause (C pins their search_path);
-- create_change() notes the caller's; sync_columns() and derive_rows() are
-- called for every row;
-- map_table(), alter_mapping() and unmap_table() resolve names that they are
-- given as text by the caller's; describe_lookup() resolves those of a lookup by
-- the target's schema; image_hash(), the hashes of verify(), check_change() and
-- weigh_change() are called for every row,
-- and look up no name.
SELECT set_eq($$SELECT signature FROM routine
	WHERE proconfig IS DISTINCT FROM
		ARRAY['search_path=pg_catalog, pg_temp']$$,
	ARRAY['bluegreen.start(name,boolean)', 'bluegreen.stop(name)',
		'bluegreen.create_change(name,jsonb,name)', 'bluegreen.sync_columns()',
		'bluegreen.derive_rows()',
		'bluegreen.expand(name)', 'bluegreen.contract(name)',
		'bluegreen.undo(name)', 'bluegreen.wait_for_backfill(name,interval)',
		'bluegreen.wait_for_sync(name,interval)',
		'bluegreen.wait_for_token(text,interval,boolean)',
		'bluegreen.fence_raise(name,bigint,interval,text)',
		'bluegreen.fence_adopt(name,bigint,interval,text)',
		'bluegreen.fence_lower(name,bigint)',
		'bluegreen.fence_doubt(name,bigint)',
		'bluegreen.fence_close(name,bigint)',
		'bluegreen.fence_activate(name,bigint)',
		'bluegreen.switchover(name,interval,interval,text,interval,boolean)',
		'bluegreen.rollback(name,interval,interval,text,interval,boolean)',
		'bluegreen.open_window(name,interval)',
		'bluegreen.close_window(name,text,interval,interval,text)',
		'bluegreen.cancel(name)',
		'bluegreen.finish(name)',
		'bluegreen.add_drain(name,name,text)',
		'bluegreen.map_table(name,regclass,text,text,text[],text,text,text,text,text)',
		'bluegreen.alter_mapping(name,regclass,text,text,text[],text,text,text,text,text)',
		'bluegreen.map_table(name,text,text,text,text[],text,text,text,text,text)',
		'bluegreen.alter_mapping(name,text,text,text,text[],text,text,text,text,text)',
		'bluegreen.unmap_table(name,text,text,text)',
		'bluegreen.describe_lookup(name,name,text,name[],text[],name[],boolean)',
		'bluegreen.verify(name,regclass,interval,boolean)',
		'bluegreen.routers_pause(name,interval)',
		'bluegreen.routers_switch(name,text)',
		'bluegreen.routers_resume(name)',
		'bluegreen.row_hash(text,"any")',
		'bluegreen.row_bucket(integer,text,"any")',
		'bluegreen.key_text("any")',
		'bluegreen.checksum_add(internal,integer,integer,text,"any")',
		'bluegreen.checksum_final(internal)',
		'bluegreen.checksum(integer,integer,text,"any")',
		'bluegreen.image_hash("any")',
		'bluegreen.check_change(regclass,name[],pg_lsn,"any")',
		'bluegreen.weigh_change(regclass,name[],pg_lsn,text,text,bigint,"any")'],
	'every function but these pins search_path to pg_catalog, pg_temp');
SELECT is_empty($$SELECT signature, lanname FROM routine
		JOIN pg_language l ON l.oid = prolang
	WHERE prokind <> 'a' AND (lanname <> 'c' OR probin <> '$libdir/pg_bluegreen')$$,
	'everything is in C, of this library: no body concatenates an EXECUTE');
SELECT set_eq($$SELECT tgrelid::regclass::text, tgname::text, tgenabled::text
	FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
	WHERE relnamespace = 'bluegreen'::regnamespace AND NOT tgisinternal$$,
	$$VALUES ('bluegreen.fence', 'fence_changed', 'A'),
		('bluegreen.fence_local', 'fence_changed', 'A'),
		('bluegreen.table_mapping', 'fence_changed', 'A'),
		('bluegreen.fence_target', 'fence_changed', 'A'),
		('bluegreen.applied_table', 'fence_name_target', 'A'),
		('bluegreen.deployment', 'fence_follow', 'A'),
		('bluegreen.applied_stream', 'fence_follow', 'A'),
		('bluegreen.session', 'session_merge', 'R'),
		('bluegreen.session', 'session_truncate', 'O')$$,
	'no triggers but those that keep the fence, which fire for streams, too, and one for them only');
-- what backends read of the fence is read by the columns' numbers
SELECT set_eq($$SELECT attrelid::regclass::text, attname::text,
		attnum::integer, atttypid::regtype::text FROM pg_attribute
	WHERE (attrelid, attnum) IN (('bluegreen.fence'::regclass, 1),
		('bluegreen.fence'::regclass, 2), ('bluegreen.fence'::regclass, 4),
		('bluegreen.fence'::regclass, 5), ('bluegreen.fence'::regclass, 6),
		('bluegreen.fence'::regclass, 7), ('bluegreen.fence'::regclass, 8),
		('bluegreen.table_mapping'::regclass, 2),
		('bluegreen.table_mapping'::regclass, 3),
		('bluegreen.table_mapping'::regclass, 4),
		('bluegreen.fence_target'::regclass, 1),
		('bluegreen.fence_target'::regclass, 3),
		('bluegreen.fence_target'::regclass, 4),
		('bluegreen.fence_local'::regclass, 1))$$,
	$$VALUES ('bluegreen.fence', 'id', 1, 'integer'),
		('bluegreen.fence', 'name', 2, 'name'),
		('bluegreen.fence', 'deployment', 4, 'integer'),
		('bluegreen.fence', 'stream', 5, 'text'),
		('bluegreen.fence', 'state', 6, 'text'),
		('bluegreen.fence', 'epoch', 7, 'bigint'),
		('bluegreen.fence', 'since', 8, 'timestamp with time zone'),
		('bluegreen.table_mapping', 'deployment', 2, 'integer'),
		('bluegreen.table_mapping', 'direction', 3, 'text'),
		('bluegreen.table_mapping', 'source', 4, 'oid'),
		('bluegreen.fence_target', 'stream', 1, 'text'),
		('bluegreen.fence_target', 'target_schema', 3, 'name'),
		('bluegreen.fence_target', 'target_table', 4, 'name'),
		('bluegreen.fence_local', 'relation', 1, 'oid')$$,
	'columns that fence_cache.c reads by number');
SELECT is_empty($$SELECT evtname FROM pg_event_trigger e
		JOIN member m ON m.classid = 'pg_event_trigger'::regclass
			AND m.objid = e.oid$$, 'no event triggers');
SELECT is_empty($$SELECT c.oid::regclass FROM pg_class c
	WHERE relnamespace = 'bluegreen'::regnamespace AND relkind = 'v'
		AND pg_get_viewdef(c.oid) ~ 'bluegreen_[a-z]+\('$$,
	'views call functions by their SQL names');

-- the views work under a search_path that means harm
CREATE SCHEMA harm;
CREATE FUNCTION harm.pg_replication_slots() RETURNS integer LANGUAGE sql
	AS 'SELECT 1 / 0';
CREATE VIEW harm.pg_replication_slots AS SELECT 1 / 0 AS slot_name;
CREATE FUNCTION harm.format(text, VARIADIC anyarray) RETURNS text
	LANGUAGE sql AS $$SELECT (1 / 0)::text$$;
SET search_path = harm, pg_catalog, public;
SELECT lives_ok('SELECT * FROM ' || oid::regclass,
	oid::regclass || ' can be read whatever the search_path')
FROM pg_class
WHERE relnamespace = 'bluegreen'::regnamespace AND relkind = 'v'
ORDER BY relname;
SET search_path = public;

--
-- Secrets
--
SELECT is_empty($$SELECT attrelid::regclass, attname FROM pg_attribute a
		JOIN pg_class c ON c.oid = a.attrelid
	WHERE c.relnamespace = 'bluegreen'::regnamespace AND attnum > 0
		AND attname ~* 'passw|secret|conninfo|options|dsn'$$,
	'no column is made for a password');
CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen
	OPTIONS (host '127.0.0.1', port '1', dbname 'nowhere');
CREATE USER MAPPING FOR CURRENT_USER SERVER green
	OPTIONS (user 'someone', password 'open sesame');
CREATE TABLE t (id integer PRIMARY KEY);
SELECT lives_ok($$SELECT bluegreen.create_deployment('d', 'green')$$,
	'a deployment on a server whose peer is not there');
CREATE FUNCTION message_of(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	d text;
	h text;
BEGIN
	EXECUTE sql;
	RETURN NULL;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLERRM, d, h);
END $$;
SELECT alike(message_of($$SELECT bluegreen.map_table('d', 't')$$),
	'could not connect to peer of server "green"%', 'it cannot be reached');
SELECT unalike(message_of($$SELECT bluegreen.map_table('d', 't')$$),
	'%sesame%', 'the message does not hold the password');
SELECT throws_matching($$CREATE SERVER leak FOREIGN DATA WRAPPER pg_bluegreen
	OPTIONS (password 'open sesame')$$, 'invalid option "password"',
	'a server takes no password');
SELECT unalike(message_of($$CREATE SERVER leak
	FOREIGN DATA WRAPPER pg_bluegreen OPTIONS (password 'open sesame')$$),
	'%sesame%', 'and does not repeat it');
SELECT is_empty(format('SELECT r FROM %s r WHERE r::text LIKE ''%%sesame%%''',
	oid::regclass), oid::regclass || ' does not show the password')
FROM pg_class
WHERE relnamespace = 'bluegreen'::regnamespace AND relkind IN ('r', 'v')
ORDER BY relname;

--
-- Settings
--
SELECT set_eq($$SELECT name, context,
		boot_val, unit
	FROM pg_settings WHERE name LIKE 'bluegreen.%'$$,
	$$SELECT a, b, c, d
	FROM (VALUES
	('bluegreen.allow_target_writes', 'superuser', 'off', NULL),
	('bluegreen.app_version', 'user', '', NULL),
	('bluegreen.backfill_batch_time', 'sighup', '100', 'ms'),
	('bluegreen.backfill_max_lag', 'sighup', '10000', 'ms'),
	('bluegreen.backfill_max_slot_lag', 'sighup', '0', 'kB'),
	('bluegreen.backfill_max_wal_rate', 'sighup', '0', 'kB'),
	('bluegreen.backfill_rate', 'sighup', '0', NULL),
	('bluegreen.backfill_throttle_query', 'sighup', '', NULL),
	('bluegreen.backfill_yield_to_autovacuum', 'sighup', 'off', NULL),
	('bluegreen.revert_window', 'user', '0', 's'),
	('bluegreen.batch_delay', 'sighup', '200', 'ms'),
	('bluegreen.batch_rows', 'sighup', '50000', NULL),
	('bluegreen.batch_size', 'sighup', '8192', 'kB'),
	('bluegreen.connect_timeout', 'user', '10', 's'),
	('bluegreen.copy_chunk_rows', 'sighup', '500000', NULL),
	('bluegreen.copy_workers', 'sighup', '2', NULL),
	('bluegreen.decoding_work_mem', 'sighup', '262144', 'kB'),
	('bluegreen.event_retention', 'sighup', '43200', 'min'),
	('bluegreen.idle_progress_interval', 'sighup', '10000', 'ms'),
	('bluegreen.lock_timeout', 'sighup', '500', 'ms'),
	('bluegreen.long_transaction', 'user', '60', 's'),
	('bluegreen.max_streams', 'postmaster', '16', NULL),
	('bluegreen.max_tables', 'postmaster', '4096', NULL),
	('bluegreen.peer_timeout', 'user', '30000', 'ms'),
	('bluegreen.restart_delay', 'sighup', '1000', 'ms'),
	('bluegreen.restart_delay_max', 'sighup', '60000', 'ms'),
	('bluegreen.switchover_stop_at', 'superuser', '', NULL),
	('bluegreen.router_command', 'sighup', '', NULL),
	('bluegreen.router_command_timeout', 'sighup', '10000', 'ms'),
	('bluegreen.session_purge_interval', 'sighup', '60000', 'ms'),
	('bluegreen.session_retention', 'sighup', '3600', 's'),
	('bluegreen.sequence_margin', 'user', '1000', NULL),
	('bluegreen.verify_rate', 'sighup', '100000', NULL),
	('bluegreen.max_clock_skew', 'sighup', '1000', 'ms'),
	('bluegreen.clock_offset', 'sighup', '0', 'ms'),
	('bluegreen.window_memory', 'sighup', '65536', 'kB')) v (a, b, c, d)$$,
	'settings with their context, default and unit');
SELECT is_empty($$SELECT name, short_desc FROM pg_settings
	WHERE name LIKE 'bluegreen.%'
		AND (coalesce(short_desc, '') !~ '^[A-Z].{20,}\.$'
			OR extra_desc !~ '\.$')$$,
	'every setting has a description: a sentence');
SELECT is_empty($$SELECT name FROM pg_settings
	WHERE name LIKE 'bluegreen.%' AND vartype <> 'integer'
		AND name NOT IN ('bluegreen.allow_target_writes',
			'bluegreen.switchover_stop_at', 'bluegreen.router_command',
			'bluegreen.app_version', 'bluegreen.backfill_throttle_query',
			'bluegreen.backfill_yield_to_autovacuum')$$,
	'all but six are integers');
SELECT throws_ok('SET bluegreen.no_such_setting = 1', '42602', NULL,
	'the prefix is reserved');
SELECT throws_ok('SET bluegreen.connect_timeout = 0', '22023', NULL,
	'values are checked');

--
-- The way out
--
SELECT lives_ok($$SELECT bluegreen.drop_deployment('d', true)$$,
	'a deployment whose peer is gone can be dropped');
DROP USER MAPPING FOR CURRENT_USER SERVER green;
DROP SERVER green;
SELECT lives_ok('DROP EXTENSION pg_bluegreen',
	'the extension can be dropped when nothing is left');
SELECT is_empty($$SELECT oid FROM pg_class
	WHERE relnamespace = 'bluegreen'::regnamespace
	UNION ALL SELECT oid FROM pg_proc
	WHERE pronamespace = 'bluegreen'::regnamespace$$,
	'and leaves nothing');
SELECT * FROM finish();
