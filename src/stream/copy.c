/*-------------------------------------------------------------------------
 *
 * copy.c
 *		Copy workers.
 *
 * A stream's worker starts bluegreen.copy_workers of them when it has tables
 * to copy.  Each takes one chunk after the other (copy_plan.c, copy_run.c)
 * from whatever table has one, builds indexes and finishes tables, and ends
 * when all of them are streaming.  Copy workers hold no slot and no decoding
 * context, so they read tables and the catalogs like any backend.
 *
 * A copy worker that fails leaves nothing behind: its target transaction is
 * rolled back, its announcement is taken back at exit, and the stream's worker
 * starts another one, after a delay that grows until something is finished.
 * But if it ends without an answer to its COMMIT, the
 * target may commit the chunk at any later time.  Then the announcement stays,
 * and with it the stream waits, until the next copy worker of the slot has
 * raised the table's generation: that waits for the orphan or makes it fail.
 * One that does not die with its stream's worker cannot do harm either: the
 * next worker raises the generations first.
 *
 * The mapping version protects a table that was just added: a chunk taken
 * before the stream's worker knows the mapping would miss what commits in
 * between.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/settings.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "stream/copy.h"
#include "stream/progress.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* bgw_main_arg: which stream, which of its copy slots. */
#define COPY_ARG(stream, slot) \
	Int32GetDatum((stream) * BG_MAX_COPY_WORKERS + (slot))

#define REPLAN_MS		1000
#define LOCK_TIMEOUT	"10s"	/* on the target, see load_tables() */

void		(*copy_wait_hook) (int32 deployment) = NULL;

static CopyState *my_state = NULL;

static void
release_slot(int code, Datum arg)
{
	StreamShared *shared = my_state->shared;

	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	if (my_state->slot->committing)
		my_state->slot->pid = 0;
	else
		memset(my_state->slot, 0, sizeof(CopyShared));
	shared->chunk_version++;
	LWLockRelease(shared_chunk_lock());
	ConditionVariableBroadcast(&shared->changed);
	stream_wake(shared);
}

/*
 * Something is finished, so copy workers do not fail all the time.
 */
void
copy_succeeded(StreamShared *shared)
{
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	shared->copy_failures = 0;
	LWLockRelease(shared_chunk_lock());
}

/*
 * Take over the copy slot that was reserved for this process; false if
 * someone else has it.
 */
static bool
take_slot(CopyState *state, int slot)
{
	bool		mine;

	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	state->slot = &state->shared->copy[slot];
	mine = state->shared->in_use && state->slot->pid == 0;
	if (mine)
		state->slot->pid = MyProcPid;
	LWLockRelease(shared_chunk_lock());
	my_state = state;
	if (mine)
		before_shmem_exit(release_slot, (Datum) 0);
	return mine;
}

/*
 * Wait until every transaction that runs now has ended.  One of them may have
 * written before the slot was consistent, or before the stream's worker knew
 * the mappings that we have loaded, and end after a chunk's snapshot: the
 * stream would not have it and the chunk would not see it.  Nor would the fence
 * know of a statement that has yet to write its first row: see
 * fence_wait_writers() in cutover/fence.c, for both sides.
 */
static void
wait_for_older_transactions(CopyState *state)
{
	const char *args[] = {state->origin};
	TransactionId xid;
	Snapshot	snapshot;
	TransactionId *running;
	int			nrunning;

	StartTransactionCommand();
	xid = GetCurrentTransactionId();
	CommitTransactionCommand();

	StartTransactionCommand();
	snapshot = RegisterSnapshot(GetTransactionSnapshot());
	nrunning = snapshot->xcnt;
	running = palloc_array(TransactionId, Max(nrunning, 1));
	memcpy(running, snapshot->xip, nrunning * sizeof(TransactionId));
	UnregisterSnapshot(snapshot);
	for (int i = 0; i < nrunning; i++)
		if (TransactionIdPrecedes(running[i], xid))
			XactLockTableWait(running[i], NULL, NULL, XLTW_None);
	copy_wait_hook(state->deployment->id);
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->context);
	peer_command(state->peer, "SET lock_timeout = 0");
	(void) peer_query(state->peer, "SELECT bluegreen.wait_for_writers($1)", 1,
					  args);
	peer_command(state->peer, "SET lock_timeout = '" LOCK_TIMEOUT "'");
}

/*
 * The chunk's row for the operator on this side.
 */
void
copy_log_chunk(CopyState *state, const CopyJob *job, int64 rows, int64 bytes,
			   const char *snapshot, XLogRecPtr p)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	KeySpace   *space = job->table->directory->space;
	const char *texts[12];

	/* also for the key's output, which looks into the catalogs */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	texts[0] = psprintf("%d", state->deployment->id);
	texts[1] = psprintf("%d", job->table->transform->row->id);
	texts[2] = psprintf("%d", job->number);
	texts[3] = psprintf(INT64_FORMAT, job->generation);
	texts[4] = job->lower ? keyspace_key_to_literal(space, job->lower) : NULL;
	texts[5] = job->upper ? keyspace_key_to_literal(space, job->upper) : NULL;
	texts[6] = snapshot;
	texts[7] = psprintf("%X/%X", LSN_FORMAT_ARGS(p));
	texts[8] = psprintf(INT64_FORMAT, rows);
	texts[9] = psprintf(INT64_FORMAT, bytes);
	texts[10] = pstrdup(timestamptz_to_str(state->slot->started_at));
	texts[11] = pstrdup(timestamptz_to_str(GetCurrentTimestamp()));

	catalog_begin(&access);
	for (int i = 0; i < lengthof(texts); i++)
		catalog_arg_text(&args, texts[i]);
	/* numbers begin anew when a table that is being copied is truncated */
	catalog_run(psprintf("DELETE FROM bluegreen.chunk_log "
						 "WHERE mapping = %s AND number >= %s "
						 "AND generation < %s",
						 texts[1], texts[2], texts[3]), NULL, SPI_OK_DELETE);
	catalog_run("INSERT INTO bluegreen.chunk_log (deployment, mapping, number, "
				"generation, lower, upper, snapshot, lsn, row_count, "
				"byte_count, started_at, finished_at) "
				"SELECT $1::integer, $2::integer, $3::integer, $4::bigint, "
				"$5::text[], $6::text[], $7::pg_snapshot, $8::pg_lsn, "
				"$9::bigint, $10::bigint, $11::timestamptz, $12::timestamptz "
				"WHERE EXISTS (SELECT FROM bluegreen.table_mapping "
				"WHERE id = $2::integer) "
				"ON CONFLICT (mapping, number) DO NOTHING", &args,
				SPI_OK_INSERT);
	catalog_end(&access);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->context);
}

/*
 * May rows of a copy meet rows of the same key on the target?  Those of several
 * source rows that feed one may, and those of a mirror whose target a merge
 * feeds, too: whichever of them is copied first makes the row.
 */
static bool
needs_stage(const MappingRow *row, const List *rows)
{
	const ListCell *lc;

	if (row->on_write != ON_WRITE_MIRROR ||
		row->on_delete != ON_DELETE_DELETE || row->lookup != NULL)
		return true;
	foreach(lc, rows)
	{
		const MappingRow *other = lfirst(lc);

		if (other->on_write == ON_WRITE_MERGE &&
			strcmp(other->target_table, row->target_table) == 0 &&
			strcmp(other->target_schema, row->target_schema) == 0)
			return true;
	}
	return false;
}

static CopyTable *
make_table(CopyState *state, MappingRow *row, const List *rows)
{
	CopyTable  *table = palloc0_object(CopyTable);

	table->transform = transform_compile(row);
	transform_check_identity(table->transform);
	table->stats = table_shared_get(row->id, row->deployment);
	table->directory = chunk_directory_create(table->transform);
	table->writer = target_writer_create(state->peer, table->transform);
	table->partitioned =
		get_rel_relkind(row->source) == RELKIND_PARTITIONED_TABLE;
	table->staged = table->transform->nkeys > 0 && needs_stage(row, rows);
	table->binary = table->writer->takes_binary;
	for (int i = 0; i < row->ncolumns; i++)
		table->binary &= row->columns[i].wire != WIRE_TEXT;
	return table;
}

/*
 * Load the deployment and compile its mappings.  False if the stream's worker
 * knows other mappings than there are now: it is about to start again.
 */
static bool
load_tables(CopyState *state)
{
	char	   *name;
	List	   *rows;
	ListCell   *lc;
	int64		known;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(state->context);
	state->deployment = deployment_load(state->shared->deployment);
	SpinLockAcquire(&state->shared->mutex);
	known = state->shared->mapping_version;
	SpinLockRelease(&state->shared->mutex);
	if (state->deployment == NULL || state->deployment->mapping_version != known)
		return false;
	rows = mappings_load(state->deployment->id, state->shared->direction);
	name = psprintf("%s copy %d", stream_application_name(state->deployment),
					(int) (state->slot - state->shared->copy) + 1);
	state->origin =
		stream_origin_name(state->deployment->system_identifier, MyDatabaseId,
						   state->deployment->id, state->shared->direction);
	state->peer = peer_connect(state->deployment->server,
							   state->deployment->owner, name);
	peer_keep(state->peer);
	peer_on_connect_apply(state->peer);

	/*
	 * The stream may hold rows of a large transaction on the target while it
	 * waits for our chunk: give the chunk up then, and let the stream decide
	 * anew.
	 */
	peer_command(state->peer, "SET lock_timeout = '" LOCK_TIMEOUT "'");
	progress_session_setup(state->peer,
						   psprintf("%s_c%d", state->origin,
									(int) (state->slot - state->shared->copy) + 1));
	foreach(lc, rows)
	{
		state->tables = lappend(state->tables,
								make_table(state, lfirst(lc), rows));
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->context);
	return true;
}

/*
 * The process that had our slot before may have left a chunk that the target
 * can still commit.  Raise the table's generation, which waits for that.
 */
static void
settle_orphan(CopyState *state)
{
	const char *args[] = {state->origin, psprintf("%d", state->slot->mapping)};

	if (!state->slot->committing)
		return;
	peer_command(state->peer, "SET lock_timeout = 0");
	peer_query(state->peer,
			   "UPDATE bluegreen.applied_table SET generation = generation + 1 "
			   "WHERE stream = $1 AND mapping = $2::integer "
			   "AND state = 'copying'", 2, args);
	peer_command(state->peer, "SET lock_timeout = '" LOCK_TIMEOUT "'");
	copy_withdraw(state);
}

/*
 * May there be something to do since the last plan, made at this version?
 */
static bool
plan_may_change(const CopyState *state, uint64 version)
{
	StreamShared *shared = state->shared;
	bool		changed;
	XLogRecPtr	applied;
	ListCell   *lc;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	changed = shared->chunk_version != version || shared->recopy.mapping != 0;
	LWLockRelease(shared_chunk_lock());
	if (changed)
		return true;
	SpinLockAcquire(&shared->mutex);
	applied = shared->applied_lsn;
	SpinLockRelease(&shared->mutex);
	foreach(lc, state->tables)
	{
		const TableShared *stats = ((CopyTable *) lfirst(lc))->stats;

		if (stats->state == TABLE_CATCHING_UP &&
			applied >= stats->copied_until &&
			!copy_is_claimed(shared, stats->key.mapping))
			return true;
	}
	return false;
}

/*
 * Wait for something to do.  Every batch of the stream is broadcast, but a
 * plan asks the target about each table, so it is made again only with reason,
 * or after a second.
 */
static void
wait_for_change(CopyState *state, uint64 version)
{
	StreamShared *shared = state->shared;
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  REPLAN_MS);

	ConditionVariablePrepareToSleep(&shared->changed);
	while (!plan_may_change(state, version))
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   end);

		if (left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&shared->changed, left,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

static void
copy_loop(CopyState *state)
{
	for (;;)
	{
		CopyJob		job;
		CopyStep	step;
		uint64		version;

		worker_check();
		LWLockAcquire(shared_chunk_lock(), LW_SHARED);
		version = state->shared->chunk_version;
		LWLockRelease(shared_chunk_lock());
		step = copy_plan(state, &job);
		switch (step)
		{
			case COPY_CHUNK:
				state->table = job.table;
				(void) copy_chunk(state, &job);
				break;
			case COPY_KEY:
				state->table = job.table;
				StartTransactionCommand();
				copy_restore_key(state->peer, state->origin,
								 job.table->transform->row->id);
				CommitTransactionCommand();
				copy_succeeded(state->shared);
				copy_withdraw(state);
				break;
			case COPY_FINISH:
				state->table = job.table;
				StartTransactionCommand();
				(void) copy_finish_table(state, &job);
				CommitTransactionCommand();
				copy_withdraw(state);
				break;
			case COPY_WAIT:
				wait_for_change(state, version);
				break;
			case COPY_DONE:
				return;
		}
		MemoryContextSwitchTo(state->context);
		MemoryContextReset(state->chunk_context);
		pgstat_report_stat(false);
	}
}

/*
 * Leave the error for the stream's worker, which shows it and starts again
 * with back-off.
 */
static void
leave_error(CopyState *state, const ErrorData *error)
{
	StreamError *mine = &state->shared->copy_error;
	const char *key = NULL;

	LWLockReleaseAll();
	if (state->evaluating)
		key = copy_find_failing_row(state);
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	mine->at = GetCurrentTimestamp();
	state->shared->copy_failures++;
	state->shared->copy_failed_at = mine->at;
	strlcpy(mine->sqlstate, unpack_sql_state(error->sqlerrcode),
			sizeof(mine->sqlstate));
	shared_copy_text(mine->relation, sizeof(mine->relation), state->table ?
					 mapping_target_name(state->table->transform->row) : "");
	shared_copy_text(mine->key, sizeof(mine->key), key ? key : "");
	shared_copy_text(mine->message, sizeof(mine->message), error->message);
	shared_copy_text(mine->detail, sizeof(mine->detail),
					 error->detail ? error->detail : "");
	shared_copy_text(mine->hint, sizeof(mine->hint),
					 error->hint ? error->hint : "");
	LWLockRelease(shared_chunk_lock());
}

/*
 * In the stream's worker: raise what has ended a copy worker, unless it will
 * pass by itself.  A full disk passes too, but only if somebody sees to it.
 * The table, and the row if it is known, are noted in the stream's error;
 * *blamed says so.
 */
void
copy_check_error(StreamShared *shared, bool *blamed)
{
	StreamError error;

	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	error = shared->copy_error;
	shared->copy_error.at = 0;
	LWLockRelease(shared_chunk_lock());
	if (error.at == 0 ||
		(peer_sqlstate_is_transient(error.sqlstate) &&
		 strcmp(error.sqlstate, unpack_sql_state(ERRCODE_DISK_FULL)) != 0))
		return;
	SpinLockAcquire(&shared->mutex);
	shared->copy_failed = true;
	memcpy(shared->error.relation, error.relation, sizeof(error.relation));
	memcpy(shared->error.key, error.key, sizeof(error.key));
	SpinLockRelease(&shared->mutex);
	*blamed = true;
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(error.sqlstate[0], error.sqlstate[1],
								   error.sqlstate[2], error.sqlstate[3],
								   error.sqlstate[4])),
			 errmsg("could not copy to \"%s\": %s",
					error.relation, error.message),
			 error.detail[0] ? errdetail_internal("%s", error.detail) : 0,
			 error.hint[0] ? errhint("%s", error.hint) : 0));
}

/*
 * Entry point of a copy worker.
 */
void
bluegreen_copy_main(Datum arg)
{
	int			stream = DatumGetInt32(arg) / BG_MAX_COPY_WORKERS;
	int			slot = DatumGetInt32(arg) % BG_MAX_COPY_WORKERS;
	CopyState  *state = MemoryContextAllocZero(TopMemoryContext,
											   sizeof(CopyState));

	state->shared = stream_shared_at(stream);
	state->context = TopMemoryContext;
	state->chunk_context = AllocSetContextCreate(TopMemoryContext,
												 "pg_bluegreen chunk",
												 ALLOCSET_DEFAULT_SIZES);
	if (!take_slot(state, slot))
		proc_exit(0);
	/* the stream's worker runs as that owner, too */
	worker_start(state->shared->dboid, state->shared->owner,
				 "pg_bluegreen copy");
	PG_TRY();
	{
		if (load_tables(state))
		{
			settle_orphan(state);
			wait_for_older_transactions(state);
			copy_loop(state);
		}
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(state->context);
		error = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		leave_error(state, error);
		HOLD_INTERRUPTS();
		proc_exit(1);
	}
	PG_END_TRY();
	if (state->peer)
		peer_close(state->peer);
	proc_exit(0);
}

/*
 * After copy workers have failed, wait as after a stream's failure.  All of a
 * stream's copy workers fail together, as a rule; that counts once.
 */
static bool
must_rest(StreamShared *shared)
{
	int			failures;
	TimestampTz since;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	failures = shared->copy_failures;
	since = shared->copy_failed_at;
	LWLockRelease(shared_chunk_lock());
	if (failures == 0)
		return false;
	failures = Max(failures / Max(bg_copy_workers, 1), 1);
	return !TimestampDifferenceExceeds(since, GetCurrentTimestamp(),
									   (int) settings_restart_delay(failures));
}

/*
 * Start copy workers for the stream in the free slots, up to
 * bluegreen.copy_workers, unless they have to rest.  Called by the stream's
 * worker.
 */
void
copy_launch_workers(StreamShared *shared)
{
	if (must_rest(shared))
		return;
	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
	{
		BackgroundWorker worker = {
			.bgw_flags = BGWORKER_SHMEM_ACCESS |
			BGWORKER_BACKEND_DATABASE_CONNECTION,
			.bgw_start_time = BgWorkerStart_RecoveryFinished,
			.bgw_restart_time = BGW_NEVER_RESTART,
			.bgw_main_arg = COPY_ARG(stream_shared_index(shared), i)
		};
		bool		taken;

		/* beyond the wanted ones only for what a worker has left behind */
		LWLockAcquire(shared_chunk_lock(), LW_SHARED);
		taken = shared->copy[i].pid != 0 ||
			(i >= bg_copy_workers && !shared->copy[i].committing);
		LWLockRelease(shared_chunk_lock());
		if (taken)
			continue;
		strlcpy(worker.bgw_library_name, "pg_bluegreen", BGW_MAXLEN);
		strlcpy(worker.bgw_function_name, "bluegreen_copy_main", BGW_MAXLEN);
		snprintf(worker.bgw_name, BGW_MAXLEN, "pg_bluegreen copy %d of %s",
				 i + 1, shared->slot_name);
		strlcpy(worker.bgw_type, "pg_bluegreen copy", BGW_MAXLEN);
		if (!RegisterDynamicBackgroundWorker(&worker, NULL))
			ereport(WARNING,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("no background worker is free to copy tables"),
					 errhint("Raise max_worker_processes.")));
	}
}

/*
 * End the stream's copy workers and wait until they are gone.
 */
void
copy_stop_workers(StreamShared *shared)
{
	ConditionVariablePrepareToSleep(&shared->changed);
	for (;;)
	{
		int			alive = 0;

		CHECK_FOR_INTERRUPTS();
		LWLockAcquire(shared_chunk_lock(), LW_SHARED);
		for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
			if (shared->copy[i].pid != 0)
			{
				kill(shared->copy[i].pid, SIGTERM);
				alive++;
			}
		LWLockRelease(shared_chunk_lock());
		if (alive == 0)
			break;
		(void) ConditionVariableTimedSleep(&shared->changed, 1000,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/*
 * Take back what copy workers have left that are gone, after every generation
 * was raised.  A stream that starts does not wait for its copy workers.
 */
void
copy_forget_orphans(StreamShared *shared)
{
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
		if (shared->copy[i].pid == 0)
			memset(&shared->copy[i], 0, sizeof(CopyShared));
	shared->chunk_version++;
	shared->copy_failures = 0;
	LWLockRelease(shared_chunk_lock());
}
