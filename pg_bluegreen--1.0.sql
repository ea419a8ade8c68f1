/* pg_bluegreen--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_bluegreen" to load this file. \quit

--
-- Tables on the source: what was asked for
--
CREATE TABLE bluegreen.deployment (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name name NOT NULL UNIQUE,
	owner oid NOT NULL,
	server name NOT NULL,
	desired text NOT NULL DEFAULT 'defined'
		CHECK (desired IN ('defined', 'started', 'stopped', 'finished')),
	mapping_version bigint NOT NULL DEFAULT 1,
	system_identifier bigint,
	slot_lsn pg_lsn,
	skip_lsn pg_lsn,
	source_place text,
	created_at timestamptz NOT NULL DEFAULT now(),
	started_at timestamptz,
	-- Each side has a row of a deployment that can go back (core/join.c).
	side text NOT NULL DEFAULT 'blue' CHECK (side IN ('blue', 'green')),
	peer_server name,				-- on blue: green's server that leads back
	opposite text,					-- origin of the stream that writes here ...
	opposite_lsn pg_lsn,			-- ... from here on
	-- Do both sides take writes?  Streams keep what that needs unless closed.
	"window" text NOT NULL DEFAULT 'closed'
		CHECK ("window" IN ('closed', 'opening', 'open', 'closing'))
);

CREATE TABLE bluegreen.table_mapping (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	direction text NOT NULL CHECK (direction IN ('forward', 'backward')),
	source oid NOT NULL,
	view oid NOT NULL,
	target_schema name NOT NULL,
	target_table name NOT NULL,
	on_write text NOT NULL CHECK (on_write IN ('mirror', 'merge', 'patch')),
	on_delete text NOT NULL CHECK (on_delete IN ('delete', 'ignore', 'write')),
	lookup text,
	lookup_query text,				-- what the target made of it
	lookup_columns name[],			-- that it gives
	lookup_key name[],				-- of the target
	lookup_reads text[],			-- tables of the target
	has_other_columns boolean NOT NULL,
	row_shape text[],				-- of a transform that reads whole rows
	defined_in pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
	derived_from text,				-- what blue derived it from; NULL = defined
	conflict text NOT NULL DEFAULT 'error'	-- who wins while both sides write
		CHECK (conflict IN ('last_write', 'blue', 'green', 'error', 'none')
			OR conflict LIKE 'newer_column:_%'),
	UNIQUE (deployment, direction, source, target_schema, target_table)
);

CREATE TABLE bluegreen.mapping_column (
	mapping integer NOT NULL
		REFERENCES bluegreen.table_mapping ON DELETE CASCADE,
	position smallint NOT NULL,
	name name NOT NULL,
	type text NOT NULL,
	wire text NOT NULL CHECK (wire IN ('binary', 'array', 'text')),
	is_key boolean NOT NULL,
	finds boolean NOT NULL DEFAULT false,	-- the lookup's key depends on it
	PRIMARY KEY (mapping, position)
);

-- On blue: green's mappings back, as green has told when they were last asked
-- for or changed; what counts is table_mapping on green.
CREATE TABLE bluegreen.backward_mapping (
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	mapping integer NOT NULL,		-- table_mapping.id of green
	source text NOT NULL,
	target text NOT NULL,
	key name[],
	on_write text NOT NULL,
	on_delete text NOT NULL,
	derived boolean NOT NULL,
	transform text NOT NULL,
	lookup text,
	conflict text NOT NULL,
	PRIMARY KEY (deployment, mapping)
);

-- Passes through when partitions come or go with their rows (core/partition.c).
CREATE TABLE bluegreen.partition_change (
	relations text PRIMARY KEY		-- OIDs of the parent and its ancestors
);

CREATE TABLE bluegreen.event_log (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	deployment integer,
	deployment_name name,
	kind text NOT NULL,
	lsn pg_lsn,
	message text NOT NULL,
	detail text
);
CREATE INDEX ON bluegreen.event_log (at);

-- Chunks that this side has copied out, for its operator; what counts is
-- applied_chunk on the target.
CREATE TABLE bluegreen.chunk_log (
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	mapping integer NOT NULL
		REFERENCES bluegreen.table_mapping ON DELETE CASCADE,
	number integer NOT NULL,
	generation bigint NOT NULL,
	lower text[],
	upper text[],
	snapshot pg_snapshot NOT NULL,
	lsn pg_lsn NOT NULL,
	row_count bigint NOT NULL,
	byte_count bigint NOT NULL,
	started_at timestamptz NOT NULL,
	finished_at timestamptz NOT NULL,
	PRIMARY KEY (mapping, number)
);

-- What the last preflight has found, and what its reader can live with.
CREATE TABLE bluegreen.preflight_result (
	deployment integer PRIMARY KEY
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	severity text NOT NULL
		CHECK (severity IN ('ok', 'notice', 'warning', 'error')),
	at timestamptz NOT NULL
);

CREATE TABLE bluegreen.accepted (
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	"check" text NOT NULL,
	object text NOT NULL,
	accepted_by name NOT NULL,
	at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (deployment, "check", object)
);

-- Where the last move of sequences has put those of the other side.
CREATE TABLE bluegreen.sequence_move (
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	sequence oid NOT NULL,			-- of this side
	target text NOT NULL,
	increment bigint NOT NULL,		-- of the target
	last_value bigint NOT NULL,		-- of this side's, when it was read
	moved_to bigint NOT NULL,		-- the first value over there
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (deployment, sequence, target)
);

-- Sequences of this side that leave numbers to the other one, as they were
-- before (cutover/sequence_window.c).
CREATE TABLE bluegreen.sequence_window (
	sequence oid PRIMARY KEY,
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	increment bigint NOT NULL,
	last_value bigint NOT NULL,		-- one of its own numbers
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What stands between clients and the two sides (cutover/router.c).
CREATE TABLE bluegreen.router_route (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	kind text NOT NULL CHECK (kind = 'pgbouncer'),
	server name NOT NULL,			-- foreign server: the admin console
	database name NOT NULL,			-- as the router calls it
	blue_route text NOT NULL,
	green_route text NOT NULL,
	route_file text,
	route_command text,
	leads_to text CHECK (leads_to IN ('blue', 'green')),
	changed_at timestamptz,
	paused_at timestamptz,			-- NULL = it is not, nor will be at once
	login_retry text,				-- what is to be set again then
	UNIQUE (deployment, server, database),
	CHECK (num_nonnulls(route_file, route_command) = 1)
);

-- Comparisons of both sides (stream/verify_log.c).
CREATE TABLE bluegreen.verify_run (
	deployment integer PRIMARY KEY
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	number bigint NOT NULL DEFAULT 1,
	state text NOT NULL
		CHECK (state IN ('running', 'done', 'failed', 'cancelled')),
	source oid,						-- of the one table; NULL = all
	every interval,					-- NULL = only when asked for
	requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	requested_by name NOT NULL,
	finished_at timestamptz,
	message text,
	verified_at timestamptz,		-- end of the last one over all tables ...
	verified_lsn pg_lsn,			-- ... what it holds for at least, NULL if not
									-- every table was compared to its end
	differences bigint				-- ... and found
);

CREATE TABLE bluegreen.verify_table (
	mapping integer PRIMARY KEY
		REFERENCES bluegreen.table_mapping ON DELETE CASCADE,
	run bigint NOT NULL,
	state text NOT NULL DEFAULT 'waiting' CHECK (state IN
		('waiting', 'comparing', 'done', 'stopped', 'skipped')),
	position text[],				-- all up to this key is done
	ranges bigint NOT NULL DEFAULT 0,
	row_count bigint NOT NULL DEFAULT 0,
	target_row_count bigint NOT NULL DEFAULT 0,
	estimated_rows bigint,
	suspects bigint NOT NULL DEFAULT 0,
	rechecks bigint NOT NULL DEFAULT 0,
	differences bigint NOT NULL DEFAULT 0,
	unsettled bigint NOT NULL DEFAULT 0,
	first_lsn pg_lsn,
	last_lsn pg_lsn,
	started_at timestamptz,
	finished_at timestamptz,
	message text
);

CREATE TABLE bluegreen.verify_difference (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	mapping integer NOT NULL
		REFERENCES bluegreen.table_mapping ON DELETE CASCADE,
	run bigint NOT NULL,
	key text[] NOT NULL,
	kind text NOT NULL CHECK (kind IN ('missing', 'extra', 'different')),
	source_rows bigint NOT NULL,
	target_rows bigint NOT NULL,
	lsn pg_lsn NOT NULL,
	found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	repaired_at timestamptz,
	repaired_by name
);
CREATE INDEX ON bluegreen.verify_difference (mapping, hash_array(key));

-- Rows that are to be written again pass through, into the WAL
-- (stream/repair.c).
CREATE TABLE bluegreen.repair_row (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	mapping integer NOT NULL,
	source_row bytea,				-- NULL: the key has none
	key text[],						-- of the target, or all columns of a row to
									-- take away
	copies bigint NOT NULL DEFAULT 1
);

--
-- Changes inside this database (src/schema)
--
CREATE TABLE bluegreen.schema_change (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name name NOT NULL UNIQUE,
	owner oid NOT NULL,
	schema name NOT NULL,
	path text NOT NULL,				-- search_path for what the document says
	version_schema name NOT NULL UNIQUE,
	version_oid oid NOT NULL DEFAULT 0,	-- the schema that was created
	operations jsonb NOT NULL,
	state text NOT NULL DEFAULT 'defined' CHECK (state IN
		('defined', 'expanding', 'backfilling', 'validating', 'expanded',
		'retiring', 'revertible', 'reverting', 'contracting', 'contracted',
		'undoing', 'undone')),
	revert_window interval,			-- that contract() was called with
	revert_until timestamptz,		-- while revertible
	revert_server text,				-- on which that was set
	paused boolean NOT NULL DEFAULT false,
	starts integer NOT NULL DEFAULT 0,	-- of workers that nothing came of
	error_sqlstate text,			-- of what ended the worker
	error_message text,
	error_detail text,
	error_hint text,
	created_at timestamptz NOT NULL DEFAULT now(),
	state_since timestamptz NOT NULL DEFAULT clock_timestamp(),
	expanded_at timestamptz,
	contracted_at timestamptz
);
CREATE UNIQUE INDEX ON bluegreen.schema_change (schema)
	WHERE state NOT IN ('defined', 'undone', 'contracted');

CREATE TABLE bluegreen.schema_step (
	change integer NOT NULL
		REFERENCES bluegreen.schema_change ON DELETE CASCADE,
	phase text NOT NULL,
	number integer NOT NULL,		-- 0: the phase is planned
	kind text NOT NULL
		CHECK (kind IN ('plan', 'sql', 'user', 'index', 'drop index',
			'check', 'validate', 'partitions', 'attach', 'rehearsal',
			'version', 'drop version')),
	title text NOT NULL,
	relation text,
	relid oid NOT NULL,				-- of the relation, or 0
	object text,
	locks text[] NOT NULL,
	statements text[] NOT NULL,
	undo text[] NOT NULL,
	guards text[] NOT NULL,			-- queries: are things what they were?
	done boolean NOT NULL,
	tries integer NOT NULL DEFAULT 0,
	waits_for text,
	started_at timestamptz,
	finished_at timestamptz,
	PRIMARY KEY (change, phase, number)
);

CREATE TABLE bluegreen.schema_made (
	change integer NOT NULL
		REFERENCES bluegreen.schema_change ON DELETE CASCADE,
	kind text NOT NULL
		CHECK (kind IN ('table', 'column', 'constraint', 'index',
			'restored')),			-- a constraint, or an index with a name
	relation oid NOT NULL,			-- the table
	number oid NOT NULL,			-- of the column, constraint or index; of a
									-- table, the operation
	name text,						-- of an index, qualified
	identity text,					-- of an index: what it is
	PRIMARY KEY (change, kind, relation, number)
);

CREATE TABLE bluegreen.schema_meant (
	change integer NOT NULL
		REFERENCES bluegreen.schema_change ON DELETE CASCADE,
	kind text NOT NULL
		CHECK (kind IN ('table', 'column', 'constraint', 'index')),
	relation oid NOT NULL,			-- the table of a column or constraint, or 0
	name name NOT NULL,				-- that the document gives
	number oid NOT NULL,
	identity text,					-- of a constraint or index: what it is
	PRIMARY KEY (change, kind, relation, name)
);

CREATE TABLE bluegreen.schema_copy (
	change integer NOT NULL
		REFERENCES bluegreen.schema_change ON DELETE CASCADE,
	relation oid NOT NULL,			-- the table
	name name NOT NULL,				-- of the copy, until the contract
	is_index boolean NOT NULL,
	final_name name NOT NULL,		-- that of what it is a copy of
	constraint_kind text,			-- of an index
	after_constraint text,			-- SQL: DEFERRABLE
	locks text,						-- another table
	PRIMARY KEY (change, relation, name)
);

CREATE TABLE bluegreen.backfill (
	change integer NOT NULL
		REFERENCES bluegreen.schema_change ON DELETE CASCADE,
	relation oid NOT NULL,			-- a table or leaf
	purpose text NOT NULL DEFAULT '',	-- the trigger of a derived table
	root oid NOT NULL,
	columns text[] NOT NULL,
	statement text,					-- that fills a derived table
	file oid NOT NULL DEFAULT 0,	-- that next_block is of
	fired oid NOT NULL DEFAULT 0,	-- the trigger, when filling began
	next_block bigint NOT NULL DEFAULT 0,
	blocks bigint,
	batch_blocks integer NOT NULL,
	batches bigint NOT NULL DEFAULT 0,
	row_count bigint NOT NULL DEFAULT 0,
	done boolean NOT NULL DEFAULT false,
	waits_for text,
	started_at timestamptz,
	finished_at timestamptz,
	PRIMARY KEY (change, relation, purpose)
);

--
-- Tables on the target: what has been done, in the transactions that did it
--
CREATE TABLE bluegreen.applied_stream (
	name text PRIMARY KEY,			-- origin name
	deployment name NOT NULL,
	slot_lsn pg_lsn NOT NULL,		-- the slot's first position
	timeline text NOT NULL,			-- of the source that writes
	lost text,						-- why no source may go on writing
	seen pg_lsn,					-- in a window: of this side, by the source
	seen_version bigint,			-- ... which window: its mapping_version there
	created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE bluegreen.applied_table (
	stream text NOT NULL
		REFERENCES bluegreen.applied_stream ON DELETE CASCADE,
	mapping integer NOT NULL,		-- table_mapping.id of the source
	target_schema name NOT NULL,
	target_table name NOT NULL,
	generation bigint NOT NULL DEFAULT 1,
	state text NOT NULL DEFAULT 'copying'
		CHECK (state IN ('copying', 'streaming')),
	key_aside boolean NOT NULL DEFAULT false,	-- see saved_index.is_key
	PRIMARY KEY (stream, mapping)
);

CREATE TABLE bluegreen.applied_chunk (
	stream text NOT NULL,
	mapping integer NOT NULL,
	number integer NOT NULL,
	generation bigint NOT NULL,
	lower text[],					-- exclusive; NULL = from the start
	upper text[],					-- inclusive; NULL = to the end
	key_only boolean NOT NULL DEFAULT false,	-- one key, copied again
	snapshot pg_snapshot NOT NULL,	-- S
	lsn pg_lsn NOT NULL,			-- P
	row_count bigint NOT NULL,
	byte_count bigint NOT NULL,
	started_at timestamptz NOT NULL,
	finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (stream, mapping, number),
	FOREIGN KEY (stream, mapping)
		REFERENCES bluegreen.applied_table ON DELETE CASCADE
);

CREATE TABLE bluegreen.saved_index (
	stream text NOT NULL,
	mapping integer NOT NULL,
	name name NOT NULL,
	definition text NOT NULL,		-- for who looks; it is in the catalogs, too
	is_key boolean NOT NULL,		-- over the mapping's key
	PRIMARY KEY (stream, mapping, name),
	FOREIGN KEY (stream, mapping)
		REFERENCES bluegreen.applied_table ON DELETE CASCADE
);

CREATE TABLE bluegreen.window_owed (
	stream text NOT NULL
		REFERENCES bluegreen.applied_stream ON DELETE CASCADE,
	mapping integer NOT NULL,		-- table_mapping.id of the source
	key text[] NOT NULL,			-- as the mapping has it
	source_columns name[] NOT NULL,	-- the same row's key on the source ...
	source_key text[] NOT NULL,		-- ... and its values
	PRIMARY KEY (stream, mapping, key)
);

CREATE TABLE bluegreen.conflict_log (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	stream text NOT NULL,
	deployment name,
	target_schema name NOT NULL,
	target_table name NOT NULL,
	key text,
	kind text NOT NULL,
	lsn pg_lsn,
	commit_time timestamptz,
	incoming text,
	existing text,
	decision text NOT NULL
);
CREATE INDEX ON bluegreen.conflict_log (at);

--
-- The fence: what stops the application's writes to this side.  Each writer of a
-- mapped table locks the table "fence"; see src/cutover/fence.c.  Its columns,
-- and those of the tables that say what is mapped, are read by number.
--
CREATE TABLE bluegreen.fence (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name name NOT NULL,				-- of the deployment
	side text NOT NULL CHECK (side IN ('blue', 'green')),
	deployment integer UNIQUE,		-- of which this side is the source
	stream text UNIQUE,				-- who writes here, by its origin's name
	state text NOT NULL CHECK (state IN ('open', 'raised', 'in_doubt',
		'closed', 'retired', 'guarded')),
	epoch bigint NOT NULL DEFAULT 0,
	since timestamptz NOT NULL DEFAULT clock_timestamp(),
	raised_by integer,				-- process
	switched_at timestamptz,		-- became the active side, or was closed
	marked boolean NOT NULL DEFAULT false,	-- by the sign for clients
	"window" boolean NOT NULL DEFAULT false,	-- the other side takes writes, too
	activated bigint NOT NULL DEFAULT 0,	-- epoch in which it was, the last time
	closing boolean NOT NULL DEFAULT false	-- the other side did, and may still send
);

-- The last move that began on this side (core/switch_row.c);
-- what decides it are the rows of both sides in fence.
CREATE TABLE bluegreen.switch (
	deployment integer PRIMARY KEY
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	kind text NOT NULL
		CHECK (kind IN ('switchover', 'rollback', 'open_window')),
	epoch bigint NOT NULL,
	state text NOT NULL
		CHECK (state IN ('running', 'decided', 'done', 'failed')),
	begun boolean NOT NULL DEFAULT false,	-- a worker has begun
	cancelled boolean NOT NULL DEFAULT false,
	requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	requested_by name NOT NULL,
	deadline timestamptz NOT NULL,
	drain_timeout integer NOT NULL,	-- ms
	on_drain_timeout text NOT NULL
		CHECK (on_drain_timeout IN ('abort', 'terminate')),
	stop_at text,					-- for tests: a step
	finished_at timestamptz,
	sqlstate text,					-- why it failed, or cannot go on now
	message text,
	detail text,
	hint text
);

-- What a switchover waits for beside transactions (cutover/drain.c).
CREATE TABLE bluegreen.drain_condition (
	deployment integer NOT NULL
		REFERENCES bluegreen.deployment ON DELETE CASCADE,
	name name NOT NULL,
	sql text NOT NULL,
	search_path text NOT NULL,
	PRIMARY KEY (deployment, name)
);

-- What streams write to here: as in applied_table, where roles that apply may
-- write.  This is granted to nobody, and all that a backend reads is.
CREATE TABLE bluegreen.fence_target (
	stream text NOT NULL,
	mapping integer NOT NULL,
	target_schema name NOT NULL,
	target_table name NOT NULL,
	PRIMARY KEY (stream, mapping)
);

-- Tables that stay writable when this side is closed.
CREATE TABLE bluegreen.fence_local (
	relation oid PRIMARY KEY
);

--
-- Sessions of users, for applications without a store of their own.  Both sides
-- may write them; what is newer the rows say by themselves (src/app/session.c).
-- Stamps are [microseconds, writer].
--
CREATE TABLE bluegreen.session (
	id text COLLATE "C" PRIMARY KEY CHECK (id <> ''),
	data jsonb NOT NULL CHECK (jsonb_typeof(data) = 'object'),
	written jsonb NOT NULL,			-- stamp of the data as a whole
	attributes jsonb NOT NULL DEFAULT '{}',	-- ... of what was written by itself
	stamp bigint NOT NULL,			-- the last one's microseconds
	lifetime interval NOT NULL,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	expires_at timestamptz NOT NULL,
	deleted_at timestamptz			-- a tombstone: no data any more
);
CREATE INDEX ON bluegreen.session (expires_at);
-- A change must carry the whole row: the other side may not have it.
ALTER TABLE bluegreen.session REPLICA IDENTITY FULL;
SELECT pg_extension_config_dump('bluegreen.session', '');

--
-- The peer: a foreign server, so that secrets sit in its user mapping
--
CREATE FUNCTION bluegreen.fdw_validator(options text[], catalog oid)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_fdw_validator'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FOREIGN DATA WRAPPER pg_bluegreen
	NO HANDLER VALIDATOR bluegreen.fdw_validator;

--
-- Definitions
--
CREATE FUNCTION bluegreen.create_deployment(name name, server name,
	peer_server name DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_create_deployment'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.drop_deployment(name name,
	force boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_drop_deployment'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- No SET search_path: the names in the transform are the caller's to resolve.
-- C pins the path for everything else.
CREATE FUNCTION bluegreen.map_table(deployment name, source regclass,
	target text DEFAULT NULL, transform text DEFAULT NULL,
	key text[] DEFAULT NULL, on_write text DEFAULT 'mirror',
	on_delete text DEFAULT 'delete', lookup text DEFAULT NULL,
	direction text DEFAULT 'forward', conflict text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_map_table'
LANGUAGE C;

-- The same by name: the source of a mapping back need not exist on blue.
CREATE FUNCTION bluegreen.map_table(deployment name, source text,
	target text DEFAULT NULL, transform text DEFAULT NULL,
	key text[] DEFAULT NULL, on_write text DEFAULT 'mirror',
	on_delete text DEFAULT 'delete', lookup text DEFAULT NULL,
	direction text DEFAULT 'forward', conflict text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_map_table'
LANGUAGE C;

CREATE FUNCTION bluegreen.map_schema(deployment name, schema name,
	target_schema name DEFAULT NULL, exclude name[] DEFAULT '{}',
	OUT mapping integer, OUT source regclass)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_map_schema'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.alter_mapping(deployment name, source regclass,
	target text DEFAULT NULL, transform text DEFAULT NULL,
	key text[] DEFAULT NULL, on_write text DEFAULT NULL,
	on_delete text DEFAULT NULL, lookup text DEFAULT NULL,
	direction text DEFAULT 'forward', conflict text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_alter_mapping'
LANGUAGE C;

CREATE FUNCTION bluegreen.alter_mapping(deployment name, source text,
	target text DEFAULT NULL, transform text DEFAULT NULL,
	key text[] DEFAULT NULL, on_write text DEFAULT NULL,
	on_delete text DEFAULT NULL, lookup text DEFAULT NULL,
	direction text DEFAULT 'forward', conflict text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_alter_mapping'
LANGUAGE C;

CREATE FUNCTION bluegreen.unmap_table(deployment name, source regclass,
	target text DEFAULT NULL, direction text DEFAULT 'forward')
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_unmap_table'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.unmap_table(deployment name, source text,
	target text DEFAULT NULL, direction text DEFAULT 'forward')
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_unmap_table'
LANGUAGE C;

CREATE FUNCTION bluegreen.preview(deployment name, source regclass,
	n integer DEFAULT 5,
	OUT target text, OUT source_row jsonb, OUT action text,
	OUT target_row jsonb)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_preview'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.preflight(deployment name,
	stage text DEFAULT 'switchover',
	OUT "check" text, OUT severity text, OUT object text, OUT message text,
	OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_preflight'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.accept(deployment name, "check" text, object text,
	accepted boolean DEFAULT true)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_accept'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.add_router(deployment name, kind text, server name,
	database name, blue_route text, green_route text,
	route_file text DEFAULT NULL, route_command text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_router'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.drop_router(deployment name, server name,
	database name DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_drop_router'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- For health checks, of whoever: it tells what a write would.
CREATE FUNCTION bluegreen.is_active(deployment name DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_is_active'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- Steps of a switchover, for who has to do one by hand.
CREATE PROCEDURE bluegreen.routers_pause(deployment name,
	timeout interval DEFAULT '1 second')
AS 'MODULE_PATHNAME', 'bluegreen_routers_pause'
LANGUAGE C;

CREATE PROCEDURE bluegreen.routers_switch(deployment name, side text)
AS 'MODULE_PATHNAME', 'bluegreen_routers_switch'
LANGUAGE C;

CREATE PROCEDURE bluegreen.routers_resume(deployment name)
AS 'MODULE_PATHNAME', 'bluegreen_routers_resume'
LANGUAGE C;

CREATE FUNCTION bluegreen.sequences(deployment name,
	OUT sequence text, OUT source text, OUT source_value text,
	OUT value bigint, OUT next_value bigint, OUT action text,
	OUT message text, OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_sequences'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.move_sequences(deployment name)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_move_sequences'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.check_sequences(deployment name)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_check_sequences'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- Not for PUBLIC to lose: like now(), they tell nothing, and a transform that
-- uses them is run as a deployment's owner.
CREATE FUNCTION bluegreen.commit_time()
RETURNS timestamptz
AS 'MODULE_PATHNAME', 'bluegreen_commit_time'
LANGUAGE C STABLE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.commit_lsn()
RETURNS pg_lsn
AS 'MODULE_PATHNAME', 'bluegreen_commit_lsn'
LANGUAGE C STABLE STRICT
SET search_path = pg_catalog, pg_temp;

--
-- Control; procedures that commit can't have a SET clause, C pins the path
--
CREATE PROCEDURE bluegreen.start(deployment name,
	allow_nonempty boolean DEFAULT false)
AS 'MODULE_PATHNAME', 'bluegreen_start'
LANGUAGE C;

CREATE PROCEDURE bluegreen.stop(deployment name)
AS 'MODULE_PATHNAME', 'bluegreen_stop'
LANGUAGE C;

CREATE PROCEDURE bluegreen.wait_for_sync(deployment name,
	timeout interval DEFAULT NULL)
AS 'MODULE_PATHNAME', 'bluegreen_wait_for_sync'
LANGUAGE C;

CREATE PROCEDURE bluegreen.verify(deployment name,
	source regclass DEFAULT NULL, every interval DEFAULT NULL,
	wait boolean DEFAULT true)
AS 'MODULE_PATHNAME', 'bluegreen_verify'
LANGUAGE C;

CREATE FUNCTION bluegreen.cancel_verify(deployment name)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_cancel_verify'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.repair(deployment name,
	source regclass DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'bluegreen_repair'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.skip(deployment name, lsn pg_lsn)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_skip'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.confirm_source(deployment name)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_confirm_source'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.commit_position(lsn pg_lsn, commit_time timestamptz,
	after pg_lsn, seen pg_lsn)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_commit_position'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

--
-- Sessions and tokens: for applications
--
CREATE FUNCTION bluegreen.create_session(lifetime interval,
	data jsonb DEFAULT '{}', id text DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'bluegreen_create_session'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.read_session(id text)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'bluegreen_read_session'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.touch_session(id text,
	lifetime interval DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_touch_session'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.write_session(id text, data jsonb)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_write_session'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.write_session_attribute(id text, name text,
	value jsonb)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_write_session_attribute'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.delete_session(id text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_delete_session'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.expire_sessions(max_rows bigint DEFAULT 1000)
RETURNS bigint
AS 'MODULE_PATHNAME', 'bluegreen_expire_sessions'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.session_state(OUT missing bigint, OUT late bigint,
	OUT purged bigint)
AS 'MODULE_PATHNAME', 'bluegreen_session_state'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.session_merge()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_session_merge'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE TRIGGER session_merge BEFORE INSERT OR UPDATE ON bluegreen.session
	FOR EACH ROW EXECUTE FUNCTION bluegreen.session_merge();
ALTER TABLE bluegreen.session ENABLE REPLICA TRIGGER session_merge;

CREATE FUNCTION bluegreen.token(deployment name DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'bluegreen_token'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE PROCEDURE bluegreen.wait_for_token(token text, timeout interval,
	INOUT reached boolean)
AS 'MODULE_PATHNAME', 'bluegreen_call_wait_for_token'
LANGUAGE C;

CREATE FUNCTION bluegreen.wait_for_token(token text, timeout interval)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_wait_for_token'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.prepare_sessions(source regclass, preset text,
	side text, options jsonb DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_prepare_sessions'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.adopt_sessions(deployment name, source regclass,
	preset text, options jsonb DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_adopt_sessions'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.release_sessions(source regclass)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_release_sessions'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.session_rules()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_session_rules'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.session_gone()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_session_gone'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE TRIGGER session_truncate BEFORE TRUNCATE ON bluegreen.session
	FOR EACH STATEMENT EXECUTE FUNCTION bluegreen.session_rules();

--
-- For blue, on green: the deployment's second row and its derived mappings
--
CREATE FUNCTION bluegreen.join_deployment(deployment name, opposite text,
	server name, identity text, OUT stream text, OUT server_used name)
AS 'MODULE_PATHNAME', 'bluegreen_join_deployment'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.joined_stream(deployment name, opposite text)
RETURNS text
AS 'MODULE_PATHNAME', 'bluegreen_joined_stream'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.leave_deployment(deployment name, opposite text,
	force boolean)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_leave_deployment'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.derive_mapping(deployment name, source text,
	target text, transform text, key text[], types text[], derived_from text,
	conflict text)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_derive_mapping'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.keep_derived(deployment name, mappings integer[])
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_keep_derived'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.joined_mappings(deployment name,
	OUT mapping integer, OUT source text, OUT target text, OUT key name[],
	OUT on_write text, OUT on_delete text, OUT derived boolean,
	OUT transform text, OUT lookup text, OUT conflict text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_joined_mappings'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

--
-- For streams, on a target: what a role that applies changes is granted
--
CREATE FUNCTION bluegreen.check_rows(expected bigint[])
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_check_rows'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.begin_apply()
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_begin_apply'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.note_reached(lsn pg_lsn)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_note_reached'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.note_seen(seen pg_lsn)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_note_seen'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.check_change(relation regclass, key name[],
	seen pg_lsn, VARIADIC "any")
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_check_change'
LANGUAGE C;

CREATE FUNCTION bluegreen.weigh_change(relation regclass, key name[],
	seen pg_lsn, policy text, theirs text, rank bigint, VARIADIC "any")
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_weigh_change'
LANGUAGE C;

CREATE FUNCTION bluegreen.forget_key(relation regclass, columns name[],
	key text[])
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_forget_key'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.write_as_own()
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_write_as_own'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.origin_create(name text)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_origin_create'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.origin_setup(name text)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_origin_setup'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.origin_progress()
RETURNS pg_lsn
AS 'MODULE_PATHNAME', 'bluegreen_origin_progress'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.origin_drop(stream text)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_origin_drop'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.insert_rows(target regclass, columns name[],
	rows bytea, number bigint)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_insert_rows'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.takes_rows(target regclass, key name[])
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_takes_rows'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.update_rows(target regclass, key name[],
	columns name[], rows bytea, number bigint)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_update_rows'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.delete_rows(target regclass, key name[],
	rows bytea, number bigint)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_delete_rows'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.save_indexes(stream text, mapping integer,
	key name[], with_key boolean)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_save_indexes'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.restore_indexes(stream text,
	mapping integer DEFAULT NULL, gone boolean DEFAULT false)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_restore_indexes'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.restore_key(stream text, mapping integer)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_restore_key'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.sequence_position(sequence oid,
	OUT last_value bigint, OUT is_called boolean)
AS 'MODULE_PATHNAME', 'bluegreen_sequence_position'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.column_extreme(relation oid, "column" name,
	lowest boolean)
RETURNS bigint
AS 'MODULE_PATHNAME', 'bluegreen_column_extreme'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.restart_sequences(sequences oid[],
	at_least bigint[], wraps boolean[], lock_timeout integer)
RETURNS bigint[]
AS 'MODULE_PATHNAME', 'bluegreen_restart_sequences'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.interleave_sequences(stream text, epoch bigint,
	sequences oid[], increments bigint[], first bigint[],
	lock_timeout integer)
RETURNS bigint[]
AS 'MODULE_PATHNAME', 'bluegreen_interleave_sequences'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.restore_sequences(stream text, epoch bigint,
	sequences oid[], at_least bigint[], lock_timeout integer)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_restore_sequences'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.restore_all_sequences(deployment integer)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_restore_all_sequences'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

-- Not for PUBLIC to lose: it is called as the owner of the row's table, and
-- keeps a text of his for the rest of the transaction.
CREATE FUNCTION bluegreen.note_row(stored_row text)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_note_row'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- Not for PUBLIC to lose: it parses, with its caller's rights.  No SET
-- search_path: C pins the path, and looks for the lookup's names in the
-- target's schema.
CREATE FUNCTION bluegreen.describe_lookup(target_schema name,
	target_table name, lookup text, columns name[], types text[], key name[],
	check_rights boolean, OUT query text, OUT given name[], OUT finds name[],
	OUT reads text[])
RETURNS record
AS 'MODULE_PATHNAME', 'bluegreen_describe_lookup'
LANGUAGE C STRICT;

-- Not for PUBLIC to lose: it is called as the owner of the target.
CREATE FUNCTION bluegreen.check_lookup(target text, incoming bigint,
	found bigint, written bigint, distinct_written bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_check_lookup'
LANGUAGE C IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.noted_row()
RETURNS text
AS 'MODULE_PATHNAME', 'bluegreen_noted_row'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.wait_for_writers(stream text)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_wait_for_writers'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.grant_apply(role regrole,
	VARIADIC tables regclass[] DEFAULT '{}')
RETURNS SETOF text
AS 'MODULE_PATHNAME', 'bluegreen_grant_apply'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.revoke_apply(role regrole,
	VARIADIC tables regclass[] DEFAULT '{}')
RETURNS SETOF text
AS 'MODULE_PATHNAME', 'bluegreen_revoke_apply'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

-- Called for every row of a table: no SET clause.
CREATE FUNCTION bluegreen.image_hash(VARIADIC "any")
RETURNS bigint
AS 'MODULE_PATHNAME', 'bluegreen_image_hash'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 10;

-- Also these are called for every row.  Settings that texts depend on are those
-- of the session.
CREATE FUNCTION bluegreen.row_hash(formats text, VARIADIC "any")
RETURNS uuid
AS 'MODULE_PATHNAME', 'bluegreen_row_hash'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 10;

CREATE FUNCTION bluegreen.row_bucket(buckets integer, formats text,
	VARIADIC "any")
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_row_bucket'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 10;

CREATE FUNCTION bluegreen.key_text(VARIADIC "any")
RETURNS text[]
AS 'MODULE_PATHNAME', 'bluegreen_key_text'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 10;

CREATE FUNCTION bluegreen.checksum_add(internal, integer, integer, text,
	VARIADIC "any")
RETURNS internal
AS 'MODULE_PATHNAME', 'bluegreen_checksum_add'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 10;

CREATE FUNCTION bluegreen.checksum_final(internal)
RETURNS bytea
AS 'MODULE_PATHNAME', 'bluegreen_checksum_final'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

CREATE AGGREGATE bluegreen.checksum(buckets integer, keys integer,
	formats text, VARIADIC "any") (
	SFUNC = bluegreen.checksum_add,
	STYPE = internal,
	FINALFUNC = bluegreen.checksum_final
);

CREATE FUNCTION bluegreen.reset_stats(deployment name)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_reset_stats'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

--
-- The fence: its rows come and go with what they belong to, and every change
-- of what is fenced tells the backends, also in sessions that apply
--
CREATE FUNCTION bluegreen.fence_changed()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_fence_changed'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.fence_follow()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_fence_follow'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.fence_name_target()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_fence_name_target'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE TRIGGER fence_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON bluegreen.fence
	FOR EACH STATEMENT EXECUTE FUNCTION bluegreen.fence_changed();
ALTER TABLE bluegreen.fence ENABLE ALWAYS TRIGGER fence_changed;
CREATE TRIGGER fence_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON bluegreen.fence_local
	FOR EACH STATEMENT EXECUTE FUNCTION bluegreen.fence_changed();
ALTER TABLE bluegreen.fence_local ENABLE ALWAYS TRIGGER fence_changed;
CREATE TRIGGER fence_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON bluegreen.table_mapping
	FOR EACH STATEMENT EXECUTE FUNCTION bluegreen.fence_changed();
ALTER TABLE bluegreen.table_mapping ENABLE ALWAYS TRIGGER fence_changed;
CREATE TRIGGER fence_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON bluegreen.fence_target
	FOR EACH STATEMENT EXECUTE FUNCTION bluegreen.fence_changed();
ALTER TABLE bluegreen.fence_target ENABLE ALWAYS TRIGGER fence_changed;
CREATE TRIGGER fence_name_target
	AFTER INSERT OR DELETE OR
		UPDATE OF stream, mapping, target_schema, target_table
	ON bluegreen.applied_table
	FOR EACH ROW EXECUTE FUNCTION bluegreen.fence_name_target();
ALTER TABLE bluegreen.applied_table ENABLE ALWAYS TRIGGER fence_name_target;
CREATE TRIGGER fence_follow AFTER INSERT OR DELETE ON bluegreen.deployment
	FOR EACH ROW EXECUTE FUNCTION bluegreen.fence_follow();
ALTER TABLE bluegreen.deployment ENABLE ALWAYS TRIGGER fence_follow;
CREATE TRIGGER fence_follow AFTER INSERT OR DELETE ON bluegreen.applied_stream
	FOR EACH ROW EXECUTE FUNCTION bluegreen.fence_follow();
ALTER TABLE bluegreen.applied_stream ENABLE ALWAYS TRIGGER fence_follow;

-- Steps of a switchover; they commit, so C pins the path.
CREATE PROCEDURE bluegreen.fence_raise(deployment name, epoch bigint,
	drain_timeout interval DEFAULT '5 s',
	on_drain_timeout text DEFAULT 'abort')
AS 'MODULE_PATHNAME', 'bluegreen_fence_raise'
LANGUAGE C;

CREATE PROCEDURE bluegreen.fence_adopt(deployment name, epoch bigint,
	drain_timeout interval DEFAULT '5 s',
	on_drain_timeout text DEFAULT 'abort')
AS 'MODULE_PATHNAME', 'bluegreen_fence_adopt'
LANGUAGE C;

CREATE PROCEDURE bluegreen.fence_lower(deployment name, epoch bigint)
AS 'MODULE_PATHNAME', 'bluegreen_fence_lower'
LANGUAGE C;

CREATE PROCEDURE bluegreen.fence_doubt(deployment name, epoch bigint)
AS 'MODULE_PATHNAME', 'bluegreen_fence_doubt'
LANGUAGE C;

CREATE PROCEDURE bluegreen.fence_close(deployment name, epoch bigint)
AS 'MODULE_PATHNAME', 'bluegreen_fence_close'
LANGUAGE C;

CREATE PROCEDURE bluegreen.fence_activate(deployment name, epoch bigint)
AS 'MODULE_PATHNAME', 'bluegreen_fence_activate'
LANGUAGE C;

-- The other side asks these, by its stream's name.
CREATE FUNCTION bluegreen.fence_look(stream text, OUT state text,
	OUT epoch bigint, OUT "window" boolean)
AS 'MODULE_PATHNAME', 'bluegreen_fence_look'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.fence_decide(stream text, epoch bigint)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_fence_decide'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.fence_settle(stream text, epoch bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_fence_settle'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

-- The same when a window is opened or has been closed.
CREATE FUNCTION bluegreen.window_move(stream text, epoch bigint, state text)
RETURNS pg_lsn
AS 'MODULE_PATHNAME', 'bluegreen_window_move'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.window_look(stream text, lsn pg_lsn,
	OUT passed boolean, OUT problem text)
AS 'MODULE_PATHNAME', 'bluegreen_window_look'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

-- What both sides compare before.
CREATE FUNCTION bluegreen.window_mappings(deployment name, OUT source text,
	OUT target text, OUT policy text, OUT columns text, OUT source_key text,
	OUT target_key text, OUT problem text, OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_window_mappings'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.window_decide(stream text, epoch bigint)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_window_decide'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.window_settle(stream text, epoch bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'bluegreen_window_settle'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

--
-- Switchover; the procedures commit, so C pins the path
--
CREATE PROCEDURE bluegreen.switchover(deployment name,
	timeout interval DEFAULT '60 s', drain_timeout interval DEFAULT '5 s',
	on_drain_timeout text DEFAULT 'abort',
	require_verified interval DEFAULT NULL, dry_run boolean DEFAULT false)
AS 'MODULE_PATHNAME', 'bluegreen_switchover'
LANGUAGE C;

CREATE PROCEDURE bluegreen.rollback(deployment name,
	timeout interval DEFAULT '60 s', drain_timeout interval DEFAULT '5 s',
	on_drain_timeout text DEFAULT 'abort',
	require_verified interval DEFAULT NULL, dry_run boolean DEFAULT false)
AS 'MODULE_PATHNAME', 'bluegreen_rollback'
LANGUAGE C;

CREATE PROCEDURE bluegreen.open_window(deployment name,
	timeout interval DEFAULT '60 s')
AS 'MODULE_PATHNAME', 'bluegreen_open_window'
LANGUAGE C;

CREATE PROCEDURE bluegreen.close_window(deployment name, side text,
	timeout interval DEFAULT '60 s', drain_timeout interval DEFAULT '5 s',
	on_drain_timeout text DEFAULT 'abort')
AS 'MODULE_PATHNAME', 'bluegreen_close_window'
LANGUAGE C;

CREATE PROCEDURE bluegreen.cancel(deployment name)
AS 'MODULE_PATHNAME', 'bluegreen_cancel'
LANGUAGE C;

CREATE PROCEDURE bluegreen.finish(deployment name)
AS 'MODULE_PATHNAME', 'bluegreen_finish'
LANGUAGE C;

CREATE FUNCTION bluegreen.force_active(side text,
	deployment name DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_force_active'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- No SET search_path: the names in the query are the caller's to resolve.
CREATE FUNCTION bluegreen.add_drain(deployment name, name name, sql text)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_add_drain'
LANGUAGE C;

CREATE FUNCTION bluegreen.drop_drain(deployment name, name name)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_drop_drain'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.set_local(relation regclass,
	local boolean DEFAULT true)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_set_local'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.reopen()
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_reopen'
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp;

--
-- Changes inside this database
--

-- No SET search_path: what the document names is looked up in the caller's.
-- C pins the path for everything else.
CREATE FUNCTION bluegreen.create_change(name name, operations jsonb,
	schema name DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_create_change'
LANGUAGE C;

CREATE FUNCTION bluegreen.drop_change(name name)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_drop_change'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- One function for each operation, named like it; all build the document.
CREATE FUNCTION bluegreen.create_table(change name, name text, columns jsonb,
	constraints jsonb DEFAULT NULL, comment text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.drop_table(change name, name text)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.rename_table(change name, "from" text, "to" text)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.add_column(change name, "table" text, name text, type text,
	up text DEFAULT NULL, nullable boolean DEFAULT NULL,
	"default" text DEFAULT NULL, "unique" boolean DEFAULT NULL,
	"check" jsonb DEFAULT NULL, "references" jsonb DEFAULT NULL,
	comment text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.drop_column(change name, "table" text, "column" text,
	down text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.rename_column(change name, "table" text, "from" text, "to" text)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.alter_column(change name, "table" text, "column" text,
	up text DEFAULT NULL, down text DEFAULT NULL, type text DEFAULT NULL,
	nullable boolean DEFAULT NULL, "default" text DEFAULT NULL,
	comment text DEFAULT NULL, "unique" jsonb DEFAULT NULL,
	"check" jsonb DEFAULT NULL, "references" jsonb DEFAULT NULL,
	drop_default boolean DEFAULT false, drop_comment boolean DEFAULT false)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.create_index(change name, "table" text, name text, columns jsonb,
	"unique" boolean DEFAULT NULL, method text DEFAULT NULL,
	predicate text DEFAULT NULL, storage_parameters text DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.drop_index(change name, name text)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.create_constraint(change name, "table" text, name text, type text,
	columns text[] DEFAULT NULL, "check" text DEFAULT NULL,
	"references" jsonb DEFAULT NULL, up jsonb DEFAULT NULL,
	down jsonb DEFAULT NULL, no_inherit boolean DEFAULT NULL,
	index_parameters jsonb DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.drop_constraint(change name, "table" text, name text, up text,
	down text)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.drop_multicolumn_constraint(change name, "table" text,
	name text, up jsonb, down jsonb)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.rename_constraint(change name, "table" text, "from" text,
	"to" text)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.set_replica_identity(change name, "table" text,
	identity jsonb)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.derive_table(change name, name text, "from" text,
	transform text, key text[] DEFAULT NULL, on_write text DEFAULT NULL,
	on_delete text DEFAULT NULL, back jsonb DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.sql(change name, up text, down text DEFAULT NULL,
	on_complete boolean DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'bluegreen_add_operation'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.pause_backfill(change name, paused boolean DEFAULT true)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_pause_backfill'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.skip_step(change name)
RETURNS text
AS 'MODULE_PATHNAME', 'bluegreen_skip_step'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.set_change_owner(change name, owner name)
RETURNS void
AS 'MODULE_PATHNAME', 'bluegreen_set_change_owner'
LANGUAGE C
SET search_path = pg_catalog, pg_temp;

-- Called for every row: no SET clause.
CREATE FUNCTION bluegreen.derive_rows()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_derive_rows'
LANGUAGE C;

CREATE FUNCTION bluegreen.sync_columns()
RETURNS trigger
AS 'MODULE_PATHNAME', 'bluegreen_sync_columns'
LANGUAGE C;

CREATE PROCEDURE bluegreen.expand(change name)
AS 'MODULE_PATHNAME', 'bluegreen_expand'
LANGUAGE C;

CREATE PROCEDURE bluegreen.contract(change name)
AS 'MODULE_PATHNAME', 'bluegreen_contract'
LANGUAGE C;

CREATE PROCEDURE bluegreen.undo(change name)
AS 'MODULE_PATHNAME', 'bluegreen_undo'
LANGUAGE C;

CREATE PROCEDURE bluegreen.wait_for_backfill(change name,
	timeout interval DEFAULT NULL)
AS 'MODULE_PATHNAME', 'bluegreen_wait_for_backfill'
LANGUAGE C;

--
-- Shared memory as rows
--
CREATE FUNCTION bluegreen.stream_state(
	OUT deployment integer, OUT direction text, OUT slot_name text,
	OUT pid integer, OUT state text, OUT stop_requested boolean,
	OUT mapping_version bigint, OUT window_since pg_lsn,
	OUT next_start timestamptz, OUT failures integer,
	OUT decoded_lsn pg_lsn, OUT applied_lsn pg_lsn, OUT confirmed_lsn pg_lsn,
	OUT applied_commit_time timestamptz, OUT applied_at timestamptz,
	OUT oldest_pending timestamptz,
	OUT waiting_since timestamptz, OUT waits_for text,
	OUT transactions bigint, OUT batches bigint, OUT rows bigint,
	OUT bytes bigint, OUT errors bigint, OUT restarts bigint,
	OUT skipped bigint, OUT careful_batches bigint,
	OUT stats_reset timestamptz,
	OUT clock_ahead bigint, OUT clock_ahead_at timestamptz,
	OUT error_at timestamptz, OUT error_sqlstate text, OUT error_lsn pg_lsn,
	OUT error_relation text, OUT error_key text, OUT error_message text,
	OUT error_detail text, OUT error_hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_stream_state'
LANGUAGE C VOLATILE STRICT ROWS 10
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.table_state(
	OUT mapping integer, OUT state text,
	OUT inserts bigint, OUT updates bigint, OUT deletes bigint,
	OUT truncates bigint, OUT filtered bigint, OUT conflicts bigint,
	OUT copied_rows bigint, OUT copied_bytes bigint, OUT copied_chunks bigint,
	OUT estimated_rows bigint, OUT copy_started_at timestamptz,
	OUT copy_finished_at timestamptz, OUT copied_until pg_lsn)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_table_state'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.copy_state(
	OUT deployment integer, OUT pid integer, OUT mapping integer,
	OUT number integer, OUT generation bigint, OUT lower text, OUT upper text,
	OUT key_only boolean, OUT rows bigint, OUT started_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'bluegreen_copy_state'
LANGUAGE C VOLATILE STRICT ROWS 16
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION bluegreen.slot_state(slot_name name,
	OUT message text, OUT detail text, OUT hint text)
AS 'MODULE_PATHNAME', 'bluegreen_slot_state'
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp;

--
-- Views
--
CREATE VIEW bluegreen.stat_stream AS
SELECT d.name AS deployment,
	i.direction,
	CASE
		WHEN pg_is_in_recovery() THEN 'standby'
		WHEN d.desired IN ('defined', 'finished') THEN d.desired
		-- a first start that was killed before it had a slot
		WHEN r.slot_name IS NULL AND d.desired = 'started'
			AND d.slot_lsn IS NULL THEN 'defined'
		WHEN l.message IS NOT NULL THEN 'lost'
		WHEN d.desired = 'started'
			THEN coalesce(nullif(s.state, 'stopped'), 'starting')
		WHEN s.pid IS NOT NULL THEN s.state
		ELSE d.desired
	END AS state,
	s.pid,
	n.slot_name,
	s.decoded_lsn,
	s.applied_lsn,
	s.confirmed_lsn,
	CASE
		WHEN s.deployment IS NULL THEN NULL
		WHEN s.oldest_pending IS NULL AND s.decoded_lsn IS NOT NULL
			THEN greatest(w.lsn - greatest(s.decoded_lsn, s.applied_lsn), 0)
		ELSE greatest(w.lsn - coalesce(s.applied_lsn, r.confirmed_flush_lsn), 0)
	END::bigint AS lag_bytes,
	CASE
		WHEN s.oldest_pending IS NOT NULL
			THEN greatest(clock_timestamp() - s.oldest_pending, '0'::interval)
		WHEN s.pid IS NOT NULL AND s.waiting_since IS NOT NULL
			THEN greatest(clock_timestamp() - s.waiting_since, '0'::interval)
		WHEN s.state = 'streaming' THEN '0'::interval
	END AS lag,
	(w.lsn - r.restart_lsn)::bigint AS wal_kept_bytes,
	s.applied_commit_time,
	s.applied_at,
	s.transactions,
	s.batches,
	s.rows,
	s.bytes,
	s.skipped,
	s.careful_batches,
	s.errors,
	s.restarts,
	s.failures,
	s.next_start,
	s.error_at,
	s.error_sqlstate,
	s.error_lsn,
	s.error_relation,
	s.error_key,
	coalesce(l.message, s.error_message) AS error_message,
	CASE WHEN l.message IS NULL THEN s.error_detail ELSE l.detail END
		AS error_detail,
	CASE WHEN l.message IS NULL THEN s.error_hint ELSE l.hint END
		AS error_hint,
	CASE
		WHEN d.desired = 'started' AND d.slot_lsn IS NULL
			AND r.slot_name IS NOT NULL AND r.active_pid IS NULL
			THEN 'bluegreen.start() to be called again'
		WHEN s.pid IS NOT NULL AND s.waits_for IS NOT NULL THEN s.waits_for
		ELSE (SELECT string_agg(DISTINCT CASE b.pid
				WHEN 0 THEN 'a prepared transaction'
				ELSE 'process ' || b.pid END, ', ')
			FROM pg_stat_activity a
				CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) b(pid)
			WHERE a.wait_event_type = 'Lock'
				AND (a.pid IN (r.active_pid, s.pid)
					OR a.pid IN (SELECT c.pid FROM bluegreen.copy_state() c
						WHERE c.deployment = d.id)))
	END AS waits_for,
	d.started_at,
	s.stats_reset,
	-- of the other side, as its changes told lately
	CASE WHEN d."window" <> 'closed'
			AND s.clock_ahead_at > clock_timestamp() - '1 minute'::interval
		THEN make_interval(secs => s.clock_ahead / 1e6) END AS clock_ahead,
	f.severity AS preflight,
	f.at AS preflight_at,
	v.verified_at,
	v.verified_lsn,
	v.differences
FROM bluegreen.deployment d
	CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery()
		THEN pg_last_wal_replay_lsn()
		ELSE pg_current_wal_flush_lsn() END AS lsn) w
	CROSS JOIN LATERAL (SELECT CASE d.side WHEN 'blue' THEN 'forward'
		ELSE 'backward' END AS direction) i
	CROSS JOIN LATERAL (SELECT 'bluegreen_' || b.oid || '_' || d.id || '_'
			|| left(i.direction, 1) AS slot_name
		FROM pg_database b WHERE b.datname = current_database()) n
	LEFT JOIN bluegreen.stream_state() s
		ON s.deployment = d.id AND s.direction = i.direction
	LEFT JOIN pg_replication_slots r ON r.slot_name = n.slot_name::name
	LEFT JOIN LATERAL bluegreen.slot_state(n.slot_name::name) l
		ON d.slot_lsn IS NOT NULL
	LEFT JOIN bluegreen.preflight_result f ON f.deployment = d.id
	LEFT JOIN bluegreen.verify_run v ON v.deployment = d.id;

CREATE VIEW bluegreen.stat_table AS
SELECT d.name AS deployment,
	format('%I.%I', m.target_schema, m.target_table) AS target,
	coalesce(t.state, 'waiting') AS state,
	t.inserts,
	t.updates,
	t.deletes,
	t.filtered,
	t.conflicts
FROM bluegreen.table_mapping m
	JOIN bluegreen.deployment d ON d.id = m.deployment
	LEFT JOIN bluegreen.table_state() t ON t.mapping = m.id
ORDER BY d.name, m.id;

CREATE VIEW bluegreen.status AS
SELECT s.deployment,
	(SELECT CASE WHEN f.window THEN 'both'
			WHEN f.state IN ('open', 'raised') THEN f.side
			WHEN f.state = 'in_doubt' THEN 'doubt'
			WHEN f.side = 'blue' THEN 'green'
			ELSE 'blue' END
		FROM bluegreen.fence f
			JOIN bluegreen.deployment d ON d.id = f.deployment
		WHERE d.name = s.deployment) AS active,
	s.state,
	(SELECT count(*) FILTER (WHERE t.state = 'streaming') || '/' || count(*)
		FROM bluegreen.stat_table t
		WHERE t.deployment = s.deployment) AS tables,
	s.lag_bytes,
	date_trunc('milliseconds', s.lag) AS lag,
	CASE WHEN s.state IN ('error', 'lost', 'standby') OR s.error_at IS NOT NULL THEN
		CASE WHEN length(s.error_message) > 40
			THEN left(s.error_message, 37) || '...'
			ELSE s.error_message END
		ELSE coalesce(left('waits for ' || s.waits_for, 40),
			'the other clock is ' || date_trunc('milliseconds', s.clock_ahead)
				|| ' ahead')
	END AS error,
	s.preflight || ago.preflight AS preflight,
	-- everything before this was compared, how long ago, and what was found
	coalesce(s.verified_lsn::text, 'incomplete') || ago.verified
		|| CASE WHEN s.differences > 0
			THEN ', ' || s.differences || ' wrong' ELSE '' END AS verified
FROM bluegreen.stat_stream s
	CROSS JOIN LATERAL (SELECT
			max(text) FILTER (WHERE what = 'preflight') AS preflight,
			max(text) FILTER (WHERE what = 'verified') AS verified
		FROM (VALUES ('preflight', s.preflight_at),
				('verified', s.verified_at)) v (what, at)
			CROSS JOIN LATERAL greatest(
				extract(epoch FROM clock_timestamp() - at)::bigint, 0) a (s)
			CROSS JOIN LATERAL (SELECT CASE
				WHEN a.s < 60 THEN ' ' || a.s || 's'
				WHEN a.s < 3600 THEN ' ' || a.s / 60 || 'min'
				WHEN a.s < 86400 THEN ' ' || a.s / 3600 || 'h'
				ELSE ' ' || a.s / 86400 || 'd'
			END) t (text)
		WHERE at IS NOT NULL) ago
ORDER BY s.deployment, s.direction;

CREATE VIEW bluegreen.copy_progress AS
SELECT d.name AS deployment,
	format('%I.%I', m.target_schema, m.target_table) AS target,
	t.state,
	p.rows,
	t.estimated_rows AS estimate,
	t.copied_chunks AS chunks,
	(p.rows / nullif(p.seconds, 0))::bigint AS rows_per_s,
	CASE
		WHEN t.copy_finished_at IS NOT NULL THEN '0'::interval
		WHEN p.rows > 0 THEN date_trunc('seconds', make_interval(secs =>
			greatest(t.estimated_rows - p.rows, 0) * p.seconds / p.rows))
	END AS eta
FROM bluegreen.table_mapping m
	JOIN bluegreen.deployment d ON d.id = m.deployment
	JOIN bluegreen.table_state() t ON t.mapping = m.id
	CROSS JOIN LATERAL (SELECT
		t.copied_rows + coalesce((SELECT sum(c.rows)::bigint
			FROM bluegreen.copy_state() c WHERE c.mapping = m.id), 0) AS rows,
		extract(epoch FROM coalesce(t.copy_finished_at, clock_timestamp())
			- t.copy_started_at)::double precision AS seconds) p
ORDER BY d.name, m.id;

CREATE VIEW bluegreen.chunk AS
SELECT d.name AS deployment,
	m.source::regclass AS source,
	format('%I.%I', m.target_schema, m.target_table) AS target,
	c.number,
	c.state,
	-- ids of sessions are secrets
	CASE WHEN NOT s.secret THEN c.lower END AS lower,
	CASE WHEN NOT s.secret THEN c.upper END AS upper,
	c.rows,
	c.bytes,
	c.lsn,
	c.generation,
	c.started_at,
	c.finished_at
FROM (SELECT l.mapping, l.number, 'copied'::text AS state, l.lower, l.upper,
		l.row_count AS rows, l.byte_count AS bytes, l.lsn, l.generation,
		l.started_at, l.finished_at
	FROM bluegreen.chunk_log l
	UNION ALL
	SELECT a.mapping, a.number, 'copying', a.lower::text[], a.upper::text[],
		a.rows, NULL, NULL, a.generation, a.started_at, NULL
	FROM bluegreen.copy_state() a
	WHERE a.mapping IS NOT NULL) c
	JOIN bluegreen.table_mapping m ON m.id = c.mapping
	JOIN bluegreen.deployment d ON d.id = m.deployment
	CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_trigger t
		WHERE t.tgrelid = m.source AND t.tgfoid IN (
			'bluegreen.session_merge()'::regprocedure,
			'bluegreen.session_rules()'::regprocedure,
			'bluegreen.session_gone()'::regprocedure)) AS secret) s
ORDER BY d.name, m.id, c.number;

CREATE VIEW bluegreen.conflict AS
SELECT id,
	at,
	deployment,
	format('%I.%I', target_schema, target_table) AS target,
	key,
	kind,
	decision,
	lsn,
	commit_time,
	incoming,
	existing,
	stream
FROM bluegreen.conflict_log
ORDER BY id;

CREATE VIEW bluegreen.verification AS
SELECT d.name AS deployment,
	format('%I.%I', m.target_schema, m.target_table) AS target,
	CASE WHEN t.state IN ('waiting', 'comparing') AND r.state <> 'running'
		THEN r.state ELSE t.state END AS state,
	t.row_count AS rows,
	t.estimated_rows AS estimate,
	t.differences,
	t.unsettled,
	t.rechecks,
	t.first_lsn AS lsn,
	t.last_lsn,
	t.target_row_count AS target_rows,
	t.ranges,
	t.suspects,
	t.started_at,
	t.finished_at,
	m.source::regclass AS source,
	coalesce(t.message, r.message) AS message
FROM bluegreen.verify_table t
	JOIN bluegreen.table_mapping m ON m.id = t.mapping
	JOIN bluegreen.deployment d ON d.id = m.deployment
	JOIN bluegreen.verify_run r ON r.deployment = d.id
ORDER BY d.name, m.id;

CREATE VIEW bluegreen.difference AS
SELECT d.name AS deployment,
	format('%I.%I', m.target_schema, m.target_table) AS target,
	CASE WHEN s.secret				-- as in conflict
		THEN ARRAY(SELECT 'sha256:' || substr(encode(sha256(
				convert_to(k, 'UTF8')), 'hex'), 1, 16)
			FROM unnest(f.key) WITH ORDINALITY u (k, o) ORDER BY o)
		ELSE f.key END AS key,
	f.kind,
	f.source_rows,
	f.target_rows,
	f.lsn,
	f.found_at,
	f.repaired_at,
	f.repaired_by,
	m.source::regclass AS source
FROM bluegreen.verify_difference f
	JOIN bluegreen.table_mapping m ON m.id = f.mapping
	JOIN bluegreen.deployment d ON d.id = m.deployment
	CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_trigger t
		WHERE t.tgrelid = m.source AND t.tgfoid IN (
			'bluegreen.session_merge()'::regprocedure,
			'bluegreen.session_rules()'::regprocedure,
			'bluegreen.session_gone()'::regprocedure)) AS secret) s
ORDER BY d.name, m.id, f.id;

CREATE VIEW bluegreen.event AS
SELECT e.at,
	coalesce(e.deployment_name, d.name) AS deployment,
	e.kind,
	e.message,
	e.lsn,
	e.detail
FROM bluegreen.event_log e
	LEFT JOIN bluegreen.deployment d ON d.id = e.deployment
ORDER BY e.id;

CREATE VIEW bluegreen.router AS
SELECT d.name AS deployment,
	r.kind,
	r.server,
	r.database,
	r.leads_to,
	r.changed_at,
	r.paused_at,
	r.blue_route,
	r.green_route,
	coalesce('file ' || r.route_file, 'command') AS route_by
FROM bluegreen.router_route r
	JOIN bluegreen.deployment d ON d.id = r.deployment
ORDER BY d.name, r.id;

CREATE VIEW bluegreen.mapping AS
SELECT d.name AS deployment,
	m.direction,
	m.id AS mapping,
	format('%I.%I', n.nspname, r.relname) AS source,
	format('%I.%I', m.target_schema, m.target_table) AS target,
	coalesce(m.lookup_key, (SELECT array_agg(c.name ORDER BY c.position)
		FROM bluegreen.mapping_column c
		WHERE c.mapping = m.id AND c.is_key)) AS key,
	m.on_write,
	m.on_delete,
	m.derived_from IS NOT NULL AS derived,
	pg_get_viewdef(m.view) AS transform,
	m.lookup,
	m.conflict
FROM bluegreen.table_mapping m
	JOIN bluegreen.deployment d ON d.id = m.deployment
	JOIN pg_class r ON r.oid = m.source
	JOIN pg_namespace n ON n.oid = r.relnamespace
UNION ALL
SELECT d.name,
	'backward',
	b.mapping,
	b.source,
	b.target,
	b.key,
	b.on_write,
	b.on_delete,
	b.derived,
	b.transform,
	b.lookup,
	b.conflict
FROM bluegreen.backward_mapping b
	JOIN bluegreen.deployment d ON d.id = b.deployment
ORDER BY 1, 2 DESC, 3;

CREATE VIEW bluegreen.fence_writer AS
SELECT l.pid,
	p.gid AS prepared,
	NOT l.granted AS held,
	coalesce(a.xact_start, p.prepared) AS xact_start,
	coalesce(a.usename, p.owner) AS username,
	a.state,
	a.query
FROM pg_locks l
	LEFT JOIN pg_stat_activity a ON a.pid = l.pid
	LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL
		AND x.locktype = 'transactionid'
		AND x.virtualtransaction = l.virtualtransaction
	LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE l.locktype = 'relation'
	AND l.database = (SELECT oid FROM pg_database
		WHERE datname = current_database())
	AND l.relation = 'bluegreen.fence'::regclass
	AND l.mode = 'RowExclusiveLock'
ORDER BY 4;

CREATE VIEW bluegreen.fence_state AS
SELECT f.name AS deployment,
	f.side,
	CASE WHEN f.state = 'raised' AND o.drained IS NULL THEN 'abandoned'
		ELSE f.state END AS state,
	f.window,
	f.epoch,
	f.since,
	f.raised_by,
	coalesce(o.drained, false) AND f.state IN ('raised', 'in_doubt') AS drained,
	w.running,
	w.held
FROM bluegreen.fence f
	-- the session that raises has a lock of its own, see fence.c
	LEFT JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_locks s
			WHERE s.locktype = 'relation' AND s.pid = l.pid
				AND s.database = l.database AND s.relation = l.classid
				AND s.mode = 'ShareLock' AND s.granted) AS drained
		FROM pg_locks l
		WHERE l.locktype = 'object'
			AND l.database = (SELECT oid FROM pg_database
				WHERE datname = current_database())
			AND l.classid = 'bluegreen.fence'::regclass
			AND l.objid = 0
			AND l.granted) o ON true
	CROSS JOIN (SELECT count(*) FILTER (WHERE NOT held) AS running,
			count(*) FILTER (WHERE held) AS held
		FROM bluegreen.fence_writer) w
ORDER BY f.name, f.side;

CREATE VIEW bluegreen.stat_session AS
SELECT s.live,
	s.expired,
	s.deleted,
	s.oldest_expiry,
	c.missing,
	c.late,
	c.purged
FROM (SELECT count(*) FILTER (WHERE deleted_at IS NULL
			AND expires_at > clock_timestamp()) AS live,
		count(*) FILTER (WHERE deleted_at IS NULL
			AND expires_at <= clock_timestamp()) AS expired,
		count(*) FILTER (WHERE deleted_at IS NOT NULL) AS deleted,
		min(expires_at) AS oldest_expiry
	FROM bluegreen.session) s
	CROSS JOIN bluegreen.session_state() c;

CREATE VIEW bluegreen.drain AS
SELECT d.name AS deployment,
	c.name,
	c.sql
FROM bluegreen.drain_condition c
	JOIN bluegreen.deployment d ON d.id = c.deployment
ORDER BY d.name, c.name;

CREATE VIEW bluegreen.switch_state AS
SELECT f.name AS deployment,
	f.side,
	a.active,
	coalesce(f.switched_at, d.created_at) AS since,
	f.state AS fence,
	d.window,
	f.epoch,
	m.kind AS move,
	m.state AS move_state,
	m.requested_at,
	m.finished_at,
	m.message,
	CASE
		WHEN f.state = 'retired'
			THEN 'finished: no way back; reopen() lets this side take writes again'
		WHEN f.state = 'in_doubt'
			THEN coalesce(m.hint, 'the other side will be asked which one is active')
		WHEN m.state IN ('running', 'decided')
			THEN coalesce(m.hint, format('%s is under way', CASE m.kind
				WHEN 'open_window' THEN 'opening the window'
				ELSE 'a ' || m.kind END))
		WHEN f.window
			THEN 'both sides take writes; close_window() names the one that stays'
		WHEN a.active = 'blue'
			THEN 'nothing to roll back: blue is the active side'
		WHEN d.opposite IS NOT NULL
			THEN 'rollback() would move the users back to blue'
		WHEN f.side = 'blue' OR f.stream IS NOT NULL
			THEN 'no stream leads back from green: a rollback is not possible'
	END AS advice
FROM bluegreen.fence f
	CROSS JOIN LATERAL (SELECT CASE
		WHEN f.window AND f.state <> 'in_doubt' THEN 'both'
		WHEN f.state IN ('open', 'raised') THEN f.side
		WHEN f.state IN ('closed', 'guarded', 'retired')
			THEN CASE f.side WHEN 'blue' THEN 'green' ELSE 'blue' END
	END AS active) a
	LEFT JOIN bluegreen.deployment d ON d.id = f.deployment
	LEFT JOIN bluegreen.switch m ON m.deployment = f.deployment
ORDER BY f.name, f.side;

CREATE VIEW bluegreen.change AS
SELECT c.name AS change,
	c.state,
	c.schema,
	c.version_schema,
	c.state_since AS since,
	jsonb_array_length(c.operations) AS operations,
	c.error_message AS error,
	c.revert_until,
	coalesce(s.waits_for, CASE WHEN c.state = 'backfilling' THEN
		(SELECT min(b.waits_for) FROM bluegreen.backfill b
			WHERE b.change = c.id AND NOT b.done) END) AS waits_for,
	c.paused,
	pg_get_userbyid(c.owner) AS owner,
	c.error_sqlstate,
	c.error_detail,
	c.error_hint,
	c.created_at,
	c.expanded_at,
	c.contracted_at,
	c.operations AS document
FROM bluegreen.schema_change c
	LEFT JOIN LATERAL (SELECT t.waits_for FROM bluegreen.schema_step t
		WHERE t.change = c.id AND t.phase = c.state AND NOT t.done
		ORDER BY t.number LIMIT 1) s ON true
ORDER BY c.id;

CREATE VIEW bluegreen.change_step AS
SELECT c.name AS change,
	s.phase,
	s.number,
	s.title AS step,
	s.done,
	s.tries,
	s.waits_for,
	s.finished_at,
	s.locks || s.statements AS statements
FROM bluegreen.schema_step s
	JOIN bluegreen.schema_change c ON c.id = s.change
WHERE s.number > 0
ORDER BY c.id, array_position(ARRAY['expanding', 'validating', 'retiring',
	'reverting', 'contracting', 'undoing'], s.phase), s.number;

CREATE VIEW bluegreen.backfill_progress AS
SELECT c.name AS change,
	b.relation::regclass AS relation,
	CASE WHEN b.done THEN 'done' WHEN b.started_at IS NULL THEN 'waiting'
		ELSE 'filling' END AS state,
	b.row_count AS rows,
	CASE WHEN b.done THEN 100 WHEN b.blocks > 0
		THEN round(100.0 * b.next_block / b.blocks, 1) ELSE 0 END AS percent,
	(b.row_count / nullif(p.seconds, 0))::bigint AS rows_per_s,
	CASE WHEN b.done THEN '0'::interval WHEN b.next_block > 0
		THEN date_trunc('seconds', make_interval(secs =>
			greatest(b.blocks - b.next_block, 0) * p.seconds / b.next_block))
	END AS eta,
	b.waits_for,
	b.next_block,
	b.blocks,
	b.batches,
	b.batch_blocks,
	b.started_at,
	b.finished_at
FROM bluegreen.backfill b
	JOIN bluegreen.schema_change c ON c.id = b.change
	CROSS JOIN LATERAL (SELECT extract(epoch FROM coalesce(b.finished_at,
		clock_timestamp()) - b.started_at)::double precision AS seconds) p
ORDER BY c.id, b.relation;

--
-- Privileges: whoever may use these is named by the administrator.  Reading
-- the views is for pg_monitor; the tables are granted to nobody.
--
GRANT USAGE ON SCHEMA bluegreen TO PUBLIC;

REVOKE ALL ON FUNCTION bluegreen.fdw_validator(text[], oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.create_deployment(name, name, name)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_deployment(name, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.map_table(name, regclass, text, text, text[],
	text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.map_table(name, text, text, text, text[],
	text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.map_schema(name, name, name, name[])
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.alter_mapping(name, regclass, text, text,
	text[], text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.alter_mapping(name, text, text, text,
	text[], text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.unmap_table(name, regclass, text, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.unmap_table(name, text, text, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.join_deployment(name, text, name, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.joined_stream(name, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.leave_deployment(name, text, boolean)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.derive_mapping(name, text, text, text, text[],
	text[], text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.keep_derived(name, integer[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.joined_mappings(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.preview(name, regclass, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.preflight(name, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.accept(name, text, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.add_router(name, text, name, name, text, text,
	text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_router(name, name, name) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.routers_pause(name, interval) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.routers_switch(name, text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.routers_resume(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.sequences(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.move_sequences(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.check_sequences(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.sequence_position(oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.column_extreme(oid, name, boolean)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.restart_sequences(oid[], bigint[], boolean[],
	integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.interleave_sequences(text, bigint, oid[],
	bigint[], bigint[], integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.restore_sequences(text, bigint, oid[],
	bigint[], integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.restore_all_sequences(integer) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.start(name, boolean) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.stop(name) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.wait_for_sync(name, interval) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.verify(name, regclass, interval, boolean)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.cancel_verify(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.repair(name, regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.skip(name, pg_lsn) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.confirm_source(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.commit_position(pg_lsn, timestamptz, pg_lsn,
	pg_lsn)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.check_rows(bigint[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.begin_apply() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.insert_rows(regclass, name[], bytea, bigint)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.takes_rows(regclass, name[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.update_rows(regclass, name[], name[], bytea,
	bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.delete_rows(regclass, name[], bytea, bigint)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.create_session(interval, jsonb, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.read_session(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.touch_session(text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.write_session(text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.write_session_attribute(text, text, jsonb)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.delete_session(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.expire_sessions(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.session_state() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.session_merge() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.prepare_sessions(regclass, text, text, jsonb)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.adopt_sessions(name, regclass, text, jsonb)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.release_sessions(regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.session_rules() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.session_gone() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.note_reached(pg_lsn) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.note_seen(pg_lsn) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.check_change(regclass, name[], pg_lsn,
	VARIADIC "any") FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.write_as_own() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.forget_key(regclass, name[], text[])
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.origin_create(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.origin_setup(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.origin_progress() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.origin_drop(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.save_indexes(text, integer, name[], boolean)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.restore_indexes(text, integer, boolean)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.restore_key(text, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.noted_row() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.grant_apply(regrole, regclass[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.revoke_apply(regrole, regclass[])
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.create_change(name, jsonb, name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_change(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.create_table(name, text, jsonb, jsonb, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_table(name, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.rename_table(name, text, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.add_column(name, text, text, text, text, boolean, text,
	boolean, jsonb, jsonb, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_column(name, text, text, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.rename_column(name, text, text, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.alter_column(name, text, text, text, text, text, boolean,
	text, text, jsonb, jsonb, jsonb, boolean, boolean)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.create_index(name, text, text, jsonb, boolean, text, text,
	text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_index(name, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.create_constraint(name, text, text, text, text[], text, jsonb,
	jsonb, jsonb, boolean, jsonb)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_constraint(name, text, text, text, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_multicolumn_constraint(name, text, text,
	jsonb, jsonb)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.rename_constraint(name, text, text, text)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.set_replica_identity(name, text, jsonb)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.derive_table(name, text, text, text, text[], text,
	text, jsonb)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.sql(name, text, text, boolean)
	FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.pause_backfill(name, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.skip_step(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.set_change_owner(name, name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.derive_rows() FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.expand(name) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.contract(name) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.undo(name) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.wait_for_backfill(name, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.reset_stats(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.wait_for_writers(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.fence_changed() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.fence_follow() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.fence_name_target() FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.fence_raise(name, bigint, interval, text)
	FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.fence_adopt(name, bigint, interval, text)
	FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.fence_lower(name, bigint) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.fence_doubt(name, bigint) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.fence_close(name, bigint) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.fence_activate(name, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.fence_look(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.fence_decide(text, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.fence_settle(text, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.window_move(text, bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.window_look(text, pg_lsn) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.window_mappings(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.window_decide(text, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.window_settle(text, bigint) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.switchover(name, interval, interval, text,
	interval, boolean) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.rollback(name, interval, interval, text,
	interval, boolean) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.open_window(name, interval) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.close_window(name, text, interval, interval,
	text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.cancel(name) FROM PUBLIC;
REVOKE ALL ON PROCEDURE bluegreen.finish(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.force_active(text, name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.add_drain(name, name, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.drop_drain(name, name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.set_local(regclass, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.reopen() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.stream_state() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.table_state() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.copy_state() FROM PUBLIC;
REVOKE ALL ON FUNCTION bluegreen.slot_state(name) FROM PUBLIC;

-- A view's functions run with its reader's rights.
GRANT EXECUTE ON FUNCTION bluegreen.stream_state(), bluegreen.table_state(),
	bluegreen.copy_state(), bluegreen.slot_state(name),
	bluegreen.session_state() TO pg_monitor;
GRANT SELECT ON bluegreen.status, bluegreen.stat_stream, bluegreen.stat_table,
	bluegreen.copy_progress, bluegreen.chunk, bluegreen.conflict,
	bluegreen.event, bluegreen.mapping, bluegreen.verification,
	bluegreen.difference, bluegreen.change, bluegreen.change_step,
	bluegreen.backfill_progress, bluegreen.fence_state, bluegreen.fence_writer,
	bluegreen.switch_state, bluegreen.drain, bluegreen.router,
	bluegreen.stat_session TO pg_monitor;

--
-- Comments
--
COMMENT ON FOREIGN DATA WRAPPER pg_bluegreen IS
	'servers of this wrapper are peers of deployments; they have no foreign tables';
COMMENT ON FUNCTION bluegreen.fdw_validator(text[], oid) IS
	'checks the options of a peer''s server and user mapping';

COMMENT ON TABLE bluegreen.deployment IS
	'planned moves from this database to a peer; see view status';
COMMENT ON TABLE bluegreen.table_mapping IS
	'mappings of deployments; see view mapping';
COMMENT ON TABLE bluegreen.mapping_column IS
	'target columns of mappings, in the order of the transform';
COMMENT ON TABLE bluegreen.backward_mapping IS
	'on blue: the mappings that green has, as it told; see view mapping';
COMMENT ON TABLE bluegreen.partition_change IS
	'always empty: ATTACH and DETACH of partitions with rows pass through it into the WAL';
COMMENT ON TABLE bluegreen.event_log IS
	'what happened to deployments; see view event';
COMMENT ON TABLE bluegreen.chunk_log IS
	'chunks that this side has copied out; see view chunk';
COMMENT ON TABLE bluegreen.preflight_result IS
	'worst severity of each deployment''s last preflight; see view status';
COMMENT ON TABLE bluegreen.accepted IS
	'findings of preflights that somebody has accepted';
COMMENT ON TABLE bluegreen.router_route IS
	'routers of deployments; see view router';
COMMENT ON TABLE bluegreen.sequence_move IS
	'where the other side''s sequences were moved to last, for check_sequences()';
COMMENT ON TABLE bluegreen.verify_run IS
	'the last comparison of each deployment, and when the next is due';
COMMENT ON TABLE bluegreen.verify_table IS
	'how far the comparison of each mapping is; see view verification';
COMMENT ON TABLE bluegreen.verify_difference IS
	'rows that a comparison has found wrong; see view difference';
COMMENT ON TABLE bluegreen.repair_row IS
	'always empty: rows that repair() has written again pass through it into the WAL';
COMMENT ON TABLE bluegreen.applied_stream IS
	'on a target: the streams that write here';
COMMENT ON TABLE bluegreen.applied_table IS
	'on a target: state and generation of each table of a stream';
COMMENT ON TABLE bluegreen.applied_chunk IS
	'on a target: chunks that are copied in, with the snapshot and position they show';
COMMENT ON TABLE bluegreen.saved_index IS
	'on a target: indexes that are not in use until their table is copied';
COMMENT ON TABLE bluegreen.window_owed IS
	'rows that a stream has left out for another row of a unique constraint: the source is to have them as they are here';
COMMENT ON TABLE bluegreen.conflict_log IS
	'on a target: rows that were not as a stream expected; see view conflict';

COMMENT ON TABLE bluegreen.fence IS
	'state of this side in each deployment, and the lock that writers of mapped tables take; see view fence_state';
COMMENT ON TABLE bluegreen.sequence_window IS
	'sequences of this side that leave numbers to the other one while both take writes, as they were before';
COMMENT ON TABLE bluegreen.switch IS
	'the last switchover, rollback or opening of a window that began on this side; see view switch_state';
COMMENT ON TABLE bluegreen.drain_condition IS
	'what a switchover waits for; see view drain';
COMMENT ON TABLE bluegreen.session IS
	'sessions of users, read and written by functions; see view stat_session';
COMMENT ON TABLE bluegreen.fence_target IS
	'on a target: the tables that streams write to, as the fence reads them';
COMMENT ON TABLE bluegreen.fence_local IS
	'tables that stay writable when this side is closed; see set_local()';

COMMENT ON FUNCTION bluegreen.create_deployment(name, name, name) IS
	'define a deployment whose peer is a foreign server; peer_server: the peer''s server that leads back; returns its id';
COMMENT ON FUNCTION bluegreen.drop_deployment(name, boolean) IS
	'stop a deployment and remove it on both sides; force: also if the peer cannot be reached';
COMMENT ON FUNCTION bluegreen.map_table(name, regclass, text, text, text[],
	text, text, text, text, text) IS
	'map a table to a table of the peer through a transform; returns the mapping''s id';
COMMENT ON FUNCTION bluegreen.map_table(name, text, text, text, text[],
	text, text, text, text, text) IS
	'map a table to a table of the peer through a transform; direction backward: a table of the peer to one of this side; returns the mapping''s id';
COMMENT ON FUNCTION bluegreen.map_schema(name, name, name, name[]) IS
	'map every table of a schema under its own name, all or nothing';
COMMENT ON FUNCTION bluegreen.alter_mapping(name, regclass, text, text, text[],
	text, text, text, text, text) IS
	'change a mapping without a new copy; what is null stays; returns the mapping''s id';
COMMENT ON FUNCTION bluegreen.alter_mapping(name, text, text, text, text[],
	text, text, text, text, text) IS
	'change a mapping without a new copy; what is null stays; returns the mapping''s id';
COMMENT ON FUNCTION bluegreen.unmap_table(name, regclass, text, text) IS
	'remove the mappings of a table, or the one to a target; returns how many';
COMMENT ON FUNCTION bluegreen.unmap_table(name, text, text, text) IS
	'remove the mappings of a table, or the one to a target; returns how many';
COMMENT ON FUNCTION bluegreen.join_deployment(name, text, name, text) IS
	'for blue, on green: have a row of the deployment, for the stream back; returns the stream''s name, null if no server leads back';
COMMENT ON FUNCTION bluegreen.joined_stream(name, text) IS
	'for blue, on green: the name of the deployment''s stream back, null if there is none';
COMMENT ON FUNCTION bluegreen.leave_deployment(name, text, boolean) IS
	'for blue, on green: drop the row of the deployment and the stream back';
COMMENT ON FUNCTION bluegreen.derive_mapping(name, text, text, text, text[],
	text[], text, text) IS
	'for blue, on green: have a mapping back that was derived, unless somebody defined one; returns its id, null if somebody did';
COMMENT ON FUNCTION bluegreen.keep_derived(name, integer[]) IS
	'for blue, on green: remove the derived mappings back but these; returns how many';
COMMENT ON FUNCTION bluegreen.joined_mappings(name) IS
	'for blue, on green: the mappings back';
COMMENT ON FUNCTION bluegreen.preview(name, regclass, integer) IS
	'show what rows of a mapped table become; nothing is written';
COMMENT ON FUNCTION bluegreen.preflight(name, text) IS
	'every reason why a start or a switchover would fail or lose something, with what mends it; stage ''window'': or open_window()';
COMMENT ON FUNCTION bluegreen.accept(name, text, text, boolean) IS
	'count what a check of preflight() finds about an object as a notice; accepted => false: not any more';
COMMENT ON FUNCTION bluegreen.add_router(name, text, name, name, text, text,
	text, text) IS
	'have a switchover pause a database of a PgBouncer and change its route; server: its admin console; returns its id';
COMMENT ON FUNCTION bluegreen.drop_router(name, name, name) IS
	'leave a router, or one database of it, alone again; returns how many';
COMMENT ON FUNCTION bluegreen.is_active(name) IS
	'does this database take the application''s writes; without a deployment: in all of them';
COMMENT ON PROCEDURE bluegreen.routers_pause(name, interval) IS
	'step of a switchover: let transactions through routers end and hold the next ones';
COMMENT ON PROCEDURE bluegreen.routers_switch(name, text) IS
	'step of a switchover: have routers lead to blue or green';
COMMENT ON PROCEDURE bluegreen.routers_resume(name) IS
	'step of a switchover: let clients through routers again';
COMMENT ON FUNCTION bluegreen.sequences(name) IS
	'sequences of the other side that mapped tables use, those of this side that go with them, and what a move would do';
COMMENT ON FUNCTION bluegreen.move_sequences(name) IS
	'move the other side''s sequences beyond this side''s, as a switchover does; returns how many there are';
COMMENT ON FUNCTION bluegreen.check_sequences(name) IS
	'warn of sequences of this side that have reached what the other side hands out since the last move; returns how many';
COMMENT ON FUNCTION bluegreen.sequence_position(oid) IS
	'for move_sequences(): where a sequence stands; nulls if the caller may not read it';
COMMENT ON FUNCTION bluegreen.column_extreme(oid, name, boolean) IS
	'for move_sequences(): largest or lowest value of a column; null if the caller may not read it';
COMMENT ON FUNCTION bluegreen.restart_sequences(oid[], bigint[], boolean[],
	integer) IS
	'for move_sequences(), on a target: restart sequences, given UPDATE on them, never the wrong way; returns their next values';
COMMENT ON FUNCTION bluegreen.commit_time() IS
	'in a transform: commit time of the change on the source';
COMMENT ON FUNCTION bluegreen.commit_lsn() IS
	'in a transform: WAL position of the change''s commit on the source';
COMMENT ON PROCEDURE bluegreen.start(name, boolean) IS
	'start a deployment''s stream, and the one back; allow_nonempty: target tables may have rows at the first start';
COMMENT ON PROCEDURE bluegreen.stop(name) IS
	'stop a deployment''s stream, and the one back; their slots go on to hold WAL';
COMMENT ON PROCEDURE bluegreen.wait_for_sync(name, interval) IS
	'wait until all tables follow and what was committed before the call is on the peer; query_canceled after the timeout';
COMMENT ON PROCEDURE bluegreen.verify(name, regclass, interval, boolean) IS
	'compare all rows of both sides while they are in use; every: again and again';
COMMENT ON FUNCTION bluegreen.cancel_verify(name) IS
	'end the comparison that runs, and those that would come by themselves; false if none ran';
COMMENT ON FUNCTION bluegreen.repair(name, regclass) IS
	'have the stream write the rows again that verify() has found wrong; returns how many';
COMMENT ON FUNCTION bluegreen.skip(name, pg_lsn) IS
	'leave out the transaction that the stream stands at in state error, given its error_lsn';
COMMENT ON FUNCTION bluegreen.confirm_source(name) IS
	'this server is the deployment''s source now: after a failover, a move or a clone';
COMMENT ON FUNCTION bluegreen.commit_position(pg_lsn, timestamptz, pg_lsn,
	pg_lsn) IS
	'for streams, on a target: let this transaction''s commit record the source''s position';
COMMENT ON FUNCTION bluegreen.check_rows(bigint[]) IS
	'for streams, on a target: error unless the statements since the last check affected as many rows each';
COMMENT ON FUNCTION bluegreen.begin_apply() IS
	'for streams, on a target: make this session one that applies changes, for good';
COMMENT ON FUNCTION bluegreen.create_session(interval, jsonb, text) IS
	'begin a session that expires so long after it was last touched; returns its id, random unless given';
COMMENT ON FUNCTION bluegreen.read_session(text) IS
	'data of a session; null if there is none that has not expired or been deleted';
COMMENT ON FUNCTION bluegreen.touch_session(text, interval) IS
	'let a session expire later: its lifetime from now, or the one given; false if there is none';
COMMENT ON FUNCTION bluegreen.write_session(text, jsonb) IS
	'replace the data of a session and touch it; false if there is none';
COMMENT ON FUNCTION bluegreen.write_session_attribute(text, text, jsonb) IS
	'set one attribute of a session''s data, null: remove it, and touch the session; false if there is none';
COMMENT ON FUNCTION bluegreen.delete_session(text) IS
	'log out: end a session on both sides; false if there is none';
COMMENT ON FUNCTION bluegreen.expire_sessions(bigint) IS
	'remove sessions that expired longer than bluegreen.session_retention ago, which also happens by itself; returns how many';
COMMENT ON FUNCTION bluegreen.session_state() IS
	'what is counted of sessions; see view stat_session';
COMMENT ON FUNCTION bluegreen.session_merge() IS
	'trigger in sessions that apply: the other side''s row of a session meets the one that is here';
COMMENT ON FUNCTION bluegreen.prepare_sessions(regclass, text, text, jsonb) IS
	'have the session table of a framework follow the rules of sessions on this side, blue or green';
COMMENT ON FUNCTION bluegreen.adopt_sessions(name, regclass, text, jsonb) IS
	'map the session table of a framework, prepared on both sides, in both directions; returns the number of mappings';
COMMENT ON FUNCTION bluegreen.release_sessions(regclass) IS
	'take away from a session table what prepare_sessions() has added';
COMMENT ON FUNCTION bluegreen.session_rules() IS
	'trigger of adopted session tables: stamps, tombstones, and rows of both sides that meet';
COMMENT ON FUNCTION bluegreen.session_gone() IS
	'trigger of tombstones in sessions that apply: what the other side has deleted is deleted';
COMMENT ON FUNCTION bluegreen.note_seen(pg_lsn) IS
	'for a stream in a window, on its target: what the source has seen';
COMMENT ON FUNCTION bluegreen.check_change(regclass, name[], pg_lsn,
	VARIADIC "any") IS
	'for a stream in a window: error if this side has changed the row as well';
COMMENT ON FUNCTION bluegreen.weigh_change(regclass, name[], pg_lsn, text,
	text, bigint, VARIADIC "any") IS
	'for a stream in a window: whose change of the row wins';
COMMENT ON FUNCTION bluegreen.forget_key(regclass, name[], text[]) IS
	'for a stream in a window: the row that was left out is to go where it came from';
COMMENT ON FUNCTION bluegreen.write_as_own() IS
	'for a stream in a window: what this transaction writes goes back as well';
COMMENT ON FUNCTION bluegreen.note_reached(pg_lsn) IS
	'for streams, on a target: let who waits know how far the stream is, with nothing to apply';
COMMENT ON FUNCTION bluegreen.token(name) IS
	'after a commit: where this side is, for wait_for_token() on the other side; null if no deployment was started';
COMMENT ON PROCEDURE bluegreen.wait_for_token(text, interval, boolean) IS
	'wait until what a token stands for can be seen here; reached: is it, or did the time pass';
COMMENT ON FUNCTION bluegreen.wait_for_token(text, interval) IS
	'the same as a function: it holds its statement''s snapshot, and the next statement sees what came';
COMMENT ON FUNCTION bluegreen.origin_create(text) IS
	'for streams, on a target: create a stream''s replication origin, if it does not exist';
COMMENT ON FUNCTION bluegreen.origin_setup(text) IS
	'for streams, on a target: advance a stream''s replication origin from this session';
COMMENT ON FUNCTION bluegreen.origin_progress() IS
	'for streams, on a target: how far the session''s replication origin is';
COMMENT ON FUNCTION bluegreen.origin_drop(text) IS
	'for streams, on a target: drop a stream''s replication origins';
COMMENT ON FUNCTION bluegreen.save_indexes(text, integer, name[], boolean) IS
	'for streams, on a target: put aside the indexes that are in the way of a copy; false if that cannot be';
COMMENT ON FUNCTION bluegreen.restore_indexes(text, integer, boolean) IS
	'for streams, on a target: build the indexes again that were put aside; returns how many';
COMMENT ON FUNCTION bluegreen.restore_key(text, integer) IS
	'for streams, on a target: build the index over a mapping''s key again if it was put aside; returns how many';
COMMENT ON FUNCTION bluegreen.insert_rows(regclass, name[], bytea, bigint) IS
	'for streams, on a target: insert rows that are in the format of COPY BINARY';
COMMENT ON FUNCTION bluegreen.takes_rows(regclass, name[]) IS
	'for streams, on a target: can update_rows and delete_rows be used for the table?';
COMMENT ON FUNCTION bluegreen.update_rows(regclass, name[], name[], bytea, bigint) IS
	'for streams, on a target: update rows by key; they are in the format of COPY BINARY';
COMMENT ON FUNCTION bluegreen.delete_rows(regclass, name[], bytea, bigint) IS
	'for streams, on a target: delete rows by key; keys are in the format of COPY BINARY';
COMMENT ON FUNCTION bluegreen.note_row(text) IS
	'for streams, on a target: keep a row for the conflict that is about to be recorded';
COMMENT ON FUNCTION bluegreen.describe_lookup(name, name, text, name[], text[],
	name[], boolean) IS
	'for map_table(), on a target: check the text of a lookup and say what it is';
COMMENT ON FUNCTION bluegreen.check_lookup(text, bigint, bigint, bigint,
	bigint) IS
	'for streams, on a target: error unless a lookup gave a row for each incoming row';
COMMENT ON FUNCTION bluegreen.noted_row() IS
	'for streams, on a target: the row that was kept last in this transaction';
COMMENT ON FUNCTION bluegreen.grant_apply(regrole, regclass[]) IS
	'on a target: grant a role what it needs to apply changes to the tables; returns the statements';
COMMENT ON FUNCTION bluegreen.revoke_apply(regrole, regclass[]) IS
	'on a target: take back what grant_apply() has granted, on the tables or altogether; returns the statements';
COMMENT ON FUNCTION bluegreen.image_hash(VARIADIC "any") IS
	'for streams, on a target: hash of values as they are stored';
COMMENT ON FUNCTION bluegreen.row_hash(text, VARIADIC "any") IS
	'for verify(): hash of a row that is the same on both sides';
COMMENT ON FUNCTION bluegreen.row_bucket(integer, text, VARIADIC "any") IS
	'for verify(): the bucket of checksum() that a key is in';
COMMENT ON FUNCTION bluegreen.key_text(VARIADIC "any") IS
	'for verify(): values as their types write them';
COMMENT ON FUNCTION bluegreen.checksum_add(internal, integer, integer, text,
	VARIADIC "any") IS 'transition function of checksum()';
COMMENT ON FUNCTION bluegreen.checksum_final(internal) IS
	'final function of checksum()';
COMMENT ON AGGREGATE bluegreen.checksum(integer, integer, text,
	VARIADIC "any") IS
	'for verify(): number of rows and sum of their hashes, in buckets by their key';
COMMENT ON FUNCTION bluegreen.create_change(name, jsonb, name) IS
	'define a change of the schema: operations in pgroll''s format; returns its id';
COMMENT ON FUNCTION bluegreen.drop_change(name) IS
	'forget a change that is not under way; the schema of its version stays';
COMMENT ON FUNCTION bluegreen.create_table(name, text, jsonb, jsonb, text) IS
	'add an operation to a change: a new table; returns its number';
COMMENT ON FUNCTION bluegreen.drop_table(name, text) IS
	'add an operation to a change: a table that the new version does not have; returns its number';
COMMENT ON FUNCTION bluegreen.rename_table(name, text, text) IS
	'add an operation to a change: another name for a table; returns its number';
COMMENT ON FUNCTION bluegreen.add_column(name, text, text, text, text, boolean, text,
	boolean, jsonb, jsonb, text) IS
	'add an operation to a change: a new column; up is its value in rows of the old version; returns its number';
COMMENT ON FUNCTION bluegreen.drop_column(name, text, text, text) IS
	'add an operation to a change: a column that the new version does not have; down is its value in rows of that; returns its number';
COMMENT ON FUNCTION bluegreen.rename_column(name, text, text, text) IS
	'add an operation to a change: another name for a column; returns its number';
COMMENT ON FUNCTION bluegreen.alter_column(name, text, text, text, text, text, boolean,
	text, text, jsonb, jsonb, jsonb, boolean, boolean) IS
	'add an operation to a change: another type, nullability, default, comment or constraint; up and down convert; returns its number';
COMMENT ON FUNCTION bluegreen.create_index(name, text, text, jsonb, boolean, text, text,
	text) IS
	'add an operation to a change: an index, built concurrently; returns its number';
COMMENT ON FUNCTION bluegreen.drop_index(name, text) IS
	'add an operation to a change: an index that goes at the contract; returns its number';
COMMENT ON FUNCTION bluegreen.create_constraint(name, text, text, text, text[], text, jsonb,
	jsonb, jsonb, boolean, jsonb) IS
	'add an operation to a change: a constraint over several columns; returns its number';
COMMENT ON FUNCTION bluegreen.drop_constraint(name, text, text, text, text) IS
	'add an operation to a change: a constraint of one column that the new version does not have; returns its number';
COMMENT ON FUNCTION bluegreen.drop_multicolumn_constraint(name, text, text,
	jsonb, jsonb) IS
	'add an operation to a change: a constraint that the new version does not have; returns its number';
COMMENT ON FUNCTION bluegreen.rename_constraint(name, text, text, text) IS
	'add an operation to a change: another name for a constraint; returns its number';
COMMENT ON FUNCTION bluegreen.set_replica_identity(name, text, jsonb) IS
	'add an operation to a change: what identifies rows in the WAL; returns its number';
COMMENT ON FUNCTION bluegreen.derive_table(name, text, text, text, text[], text,
	text, jsonb) IS
	'add an operation to a change: a table that follows another one; returns its number';
COMMENT ON FUNCTION bluegreen.sql(name, text, text, boolean) IS
	'add an operation to a change: statements of your own; returns its number';
COMMENT ON FUNCTION bluegreen.skip_step(name) IS
	'take statements of a document that have failed for done; returns their step';
COMMENT ON FUNCTION bluegreen.set_change_owner(name, name) IS
	'let a change belong to another role, with whose rights its document is carried out';
COMMENT ON FUNCTION bluegreen.pause_backfill(name, boolean) IS
	'let the backfill of a change rest; paused => false: go on';
COMMENT ON FUNCTION bluegreen.derive_rows() IS
	'trigger function of changes: write what a derived table makes of a row';
COMMENT ON FUNCTION bluegreen.sync_columns() IS
	'trigger function of changes: keep the columns of two versions in step';
COMMENT ON PROCEDURE bluegreen.expand(name) IS
	'add what the new version of the schema needs; the old one is served as before';
COMMENT ON PROCEDURE bluegreen.contract(name) IS
	'drop what only the old version of the schema needs';
COMMENT ON PROCEDURE bluegreen.undo(name) IS
	'drop what expand() has added';
COMMENT ON PROCEDURE bluegreen.wait_for_backfill(name, interval) IS
	'wait until the new version can be deployed; query_canceled after the timeout';

COMMENT ON TABLE bluegreen.schema_change IS
	'changes inside this database; see view change';
COMMENT ON TABLE bluegreen.schema_step IS
	'what each phase of a change does; see view change_step';
COMMENT ON TABLE bluegreen.schema_made IS
	'what a change has made, and an undo drops';
COMMENT ON TABLE bluegreen.schema_meant IS
	'what the names in the document of a change meant when it was expanded';
COMMENT ON TABLE bluegreen.schema_copy IS
	'constraints and indexes that a change has made for new columns after those of the old ones';
COMMENT ON TABLE bluegreen.backfill IS
	'tables whose rows are filled for a change; see view backfill_progress';
COMMENT ON VIEW bluegreen.change IS
	'changes inside this database and how far they are';
COMMENT ON VIEW bluegreen.change_step IS
	'statements of each step of a change';
COMMENT ON VIEW bluegreen.backfill_progress IS
	'how far the backfill of each table is';
COMMENT ON FUNCTION bluegreen.reset_stats(name) IS
	'set the counters of a deployment''s stream to zero';
COMMENT ON FUNCTION bluegreen.wait_for_writers(text) IS
	'for streams: waits for statements that began to write to its tables before they were guarded';
COMMENT ON FUNCTION bluegreen.fence_changed() IS
	'trigger: backends look at the fences again';
COMMENT ON FUNCTION bluegreen.fence_name_target() IS
	'trigger: the fence knows the tables that streams write to';
COMMENT ON FUNCTION bluegreen.fence_follow() IS
	'trigger: a deployment, or a stream on its target, has a fence';
COMMENT ON PROCEDURE bluegreen.fence_raise(name, bigint, interval, text) IS
	'step of a switchover: hold writers of mapped tables, and wait for those that had written before';
COMMENT ON PROCEDURE bluegreen.fence_adopt(name, bigint, interval, text) IS
	'step of a switchover: the same for a fence whose session is gone';
COMMENT ON PROCEDURE bluegreen.fence_lower(name, bigint) IS
	'step of a switchover: give up, writers go on';
COMMENT ON PROCEDURE bluegreen.fence_doubt(name, bigint) IS
	'step of a switchover: the decision is about to be made on the other side';
COMMENT ON PROCEDURE bluegreen.fence_close(name, bigint) IS
	'step of a switchover: the other side is the active one, this one takes no writes';
COMMENT ON PROCEDURE bluegreen.fence_activate(name, bigint) IS
	'step of a switchover: this side is the active one';
COMMENT ON FUNCTION bluegreen.fence_look(text) IS
	'for the other side of a switchover: state and epoch of the fence of a stream''s target';
COMMENT ON FUNCTION bluegreen.fence_decide(text, bigint) IS
	'for the other side of a switchover: the decision, this side is the active one';
COMMENT ON FUNCTION bluegreen.interleave_sequences(text, bigint, oid[],
	bigint[], bigint[], integer) IS
	'for open_window(): have sequences leave numbers to the other side, given UPDATE on them; returns their next values';
COMMENT ON FUNCTION bluegreen.restore_sequences(text, bigint, oid[],
	bigint[], integer) IS
	'for close_window(): give all sequences their own increment back, these from a number on; returns how many';
COMMENT ON FUNCTION bluegreen.restore_all_sequences(integer) IS
	'give a deployment''s sequences their own increment back, beyond what is in their columns; returns how many';
COMMENT ON FUNCTION bluegreen.window_move(text, bigint, text) IS
	'for the other side of open_window() and close_window(): its streams begin or end to keep what a window needs; returns the position';
COMMENT ON FUNCTION bluegreen.window_look(text, pg_lsn) IS
	'for the other side of open_window() and close_window(): has the stream from here passed a position, in a window?';
COMMENT ON FUNCTION bluegreen.window_mappings(name) IS
	'for the other side of open_window(): the mappings of the stream from here, as that from there would have them';
COMMENT ON FUNCTION bluegreen.window_decide(text, bigint) IS
	'for the other side of open_window(): the decision, this side takes writes, too';
COMMENT ON FUNCTION bluegreen.window_settle(text, bigint) IS
	'for the other side of open_window(): was it decided? If not it is undone here and cannot be any more';
COMMENT ON FUNCTION bluegreen.fence_settle(text, bigint) IS
	'for the other side of a switchover: was it decided? If not it cannot be any more';
COMMENT ON PROCEDURE bluegreen.switchover(name, interval, interval, text,
	interval, boolean) IS
	'move the users from blue to green; an error leaves everything as it was; dry_run: tell what would be done and what is in the way';
COMMENT ON PROCEDURE bluegreen.rollback(name, interval, interval, text,
	interval, boolean) IS
	'move the users back from green to blue';
COMMENT ON PROCEDURE bluegreen.open_window(name, interval) IS
	'let both sides take writes; a conflict is decided by its mapping''s policy';
COMMENT ON PROCEDURE bluegreen.close_window(name, text, interval, interval,
	text) IS
	'end that: one side, blue or green, goes on to take writes, as after a switchover or a rollback';
COMMENT ON PROCEDURE bluegreen.cancel(name) IS
	'end a switchover, a rollback or the opening of a window that has not been decided';
COMMENT ON PROCEDURE bluegreen.finish(name) IS
	'end the way back: remove streams, slots and origins; blue stays closed until reopen()';
COMMENT ON FUNCTION bluegreen.force_active(text, name) IS
	'a human says which side is the active one, because the other server cannot be asked';
COMMENT ON FUNCTION bluegreen.add_drain(name, name, text) IS
	'a switchover waits until this query, which returns one boolean, is true';
COMMENT ON FUNCTION bluegreen.drop_drain(name, name) IS
	'a switchover does not wait for this condition any more';
COMMENT ON FUNCTION bluegreen.set_local(regclass, boolean) IS
	'a table stays writable when this side is closed, or no longer';
COMMENT ON FUNCTION bluegreen.reopen() IS
	'this side takes writes again after it was closed; returns how many deployments had closed it';
COMMENT ON FUNCTION bluegreen.stream_state() IS
	'streams of this database as the workers show them; see view stat_stream';
COMMENT ON FUNCTION bluegreen.table_state() IS
	'counters of mapped tables as the workers show them; see view stat_table';
COMMENT ON FUNCTION bluegreen.copy_state() IS
	'copy workers and their chunks; see view chunk';
COMMENT ON FUNCTION bluegreen.slot_state(name) IS
	'what is wrong with a stream''s slot, nulls if nothing is; on a standby: if it were promoted';

COMMENT ON VIEW bluegreen.status IS
	'one line per stream: how far it is and what is wrong';
COMMENT ON VIEW bluegreen.stat_stream IS
	'positions, counters and the last error of each stream';
COMMENT ON VIEW bluegreen.stat_table IS
	'row changes sent per mapping';
COMMENT ON VIEW bluegreen.copy_progress IS
	'progress of the copy per mapping';
COMMENT ON VIEW bluegreen.chunk IS
	'chunks that are copied or being copied';
COMMENT ON VIEW bluegreen.conflict IS
	'on a target: rows that were not as a stream expected';
COMMENT ON VIEW bluegreen.verification IS
	'progress and result of the last comparison of each mapping';
COMMENT ON VIEW bluegreen.difference IS
	'keys whose rows verify() has found wrong, and which of them are repaired';
COMMENT ON VIEW bluegreen.event IS
	'history of the deployments';
COMMENT ON VIEW bluegreen.router IS
	'routers of the deployments: where they lead to, and since when they are paused';
COMMENT ON VIEW bluegreen.mapping IS
	'mappings with their transforms';

COMMENT ON VIEW bluegreen.fence_state IS
	'does this side take writes, and who is held or waited for if a fence is raised';
COMMENT ON VIEW bluegreen.switch_state IS
	'which side is the active one, since when, what moves are under way and what a rollback would do';
COMMENT ON VIEW bluegreen.stat_session IS
	'how many sessions there are, and what was counted since the server was started';
COMMENT ON COLUMN bluegreen.stat_session.missing IS
	'changes for a session that is not there';
COMMENT ON COLUMN bluegreen.stat_session.late IS
	'changes of the other side for a session that is deleted';
COMMENT ON COLUMN bluegreen.stat_session.purged IS
	'expired and deleted sessions that were removed';
COMMENT ON VIEW bluegreen.drain IS
	'conditions that a switchover waits for';
COMMENT ON VIEW bluegreen.fence_writer IS
	'transactions that have written to mapped tables, or are held before they do';

COMMENT ON COLUMN bluegreen.fence_state.state IS
	'open, raised, abandoned (raised by a session that is gone; holds nobody), in_doubt, closed, retired, guarded';
COMMENT ON COLUMN bluegreen.fence_state.drained IS
	'no transaction that has written to mapped tables is in flight, and none can begin';
COMMENT ON COLUMN bluegreen.status.state IS
	'defined, starting, copying, streaming, stopped, error, lost; standby on a standby';
COMMENT ON COLUMN bluegreen.status.active IS
	'the side that takes writes: blue or green; doubt: see view switch_state';
COMMENT ON COLUMN bluegreen.status.tables IS
	'how many of the mapped tables are copied and follow';
COMMENT ON COLUMN bluegreen.status.lag_bytes IS
	'WAL that is not durable on the peer; 0 when nothing is pending';
COMMENT ON COLUMN bluegreen.status.lag IS
	'age of the oldest transaction that is not durable on the peer; 0 when nothing is pending';
COMMENT ON COLUMN bluegreen.status.error IS
	'start of the error''s message, or what is waited for; all of it is in stat_stream';
COMMENT ON COLUMN bluegreen.status.preflight IS
	'worst severity of the last preflight() (ok, notice, warning, error), and how long ago that was';
COMMENT ON COLUMN bluegreen.stat_stream.preflight IS
	'worst severity of the last preflight(): ok, notice, warning, error';
COMMENT ON COLUMN bluegreen.stat_stream.preflight_at IS
	'when that preflight was';
COMMENT ON COLUMN bluegreen.status.verified IS
	'position up to which the last complete verify() compared all tables (or incomplete, if some were left out), how long ago that was, and how many rows were wrong';
COMMENT ON COLUMN bluegreen.stat_stream.verified_at IS
	'end of the last complete comparison of all tables';
COMMENT ON COLUMN bluegreen.stat_stream.verified_lsn IS
	'everything committed before this position was compared by it; NULL if tables were left out';
COMMENT ON COLUMN bluegreen.stat_stream.differences IS
	'rows that it found wrong';
COMMENT ON COLUMN bluegreen.verification.unsettled IS
	'keys that were written all the time and could not be compared';
COMMENT ON COLUMN bluegreen.verification.rechecks IS
	'rounds of looks at rows that might have been on their way';
COMMENT ON COLUMN bluegreen.verification.lsn IS
	'everything committed before this position was compared';
COMMENT ON COLUMN bluegreen.difference.kind IS
	'missing: the target lacks it; extra: only the target has it; different';
COMMENT ON COLUMN bluegreen.stat_stream.wal_kept_bytes IS
	'WAL that the stream''s slot holds back';
COMMENT ON COLUMN bluegreen.stat_stream.error_lsn IS
	'the failing transaction, for bluegreen.skip()';
COMMENT ON COLUMN bluegreen.stat_stream.careful_batches IS
	'batches that were done again row by row to find an error''s cause';
COMMENT ON COLUMN bluegreen.stat_stream.waits_for IS
	'whose locks or transactions hold up the start, the stream or its copy';
COMMENT ON COLUMN bluegreen.stat_stream.next_start IS
	'when the stream is tried again after an error';
COMMENT ON COLUMN bluegreen.chunk.lower IS
	'key after which the chunk begins; null = from the start';
COMMENT ON COLUMN bluegreen.chunk.upper IS
	'last key of the chunk; null = to the end';
