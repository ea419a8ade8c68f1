/*-------------------------------------------------------------------------
 *
 * verify.c
 *		The verify worker: compares a deployment's tables, online.
 *
 * bluegreen.verify() leaves a row in bluegreen.verify_run and a time in the
 * stream's shared entry, and the launcher starts a worker for it.  It goes
 * through the mappings, table by table and range by range, and writes down
 * each range that is done; so it can be killed at any time, and whoever comes
 * after it goes on.  It reads with ordinary queries, as the deployment's owner
 * on the source and as the role that applies on the target, holds no snapshot
 * longer than one range takes, and writes nothing on the target.
 *
 * It depends on the stream: rows in flight are waited for.  It ends when the
 * stream is stopped or gets other mappings, and goes on when the stream runs
 * again.  An error that passes by itself is tried again; any other ends the
 * verification, which says so.
 *
 * bluegreen.verify_rate is kept by resting after each range.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "compat.h"
#include "core/definition.h"
#include "core/settings.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "stream/verify.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MAX_RANGE_ROWS	100000
#define MIN_RANGE_ROWS	5000
#define RANGES			20		/* at least, of a table that is not tiny */
#define RANGE_BYTES		(INT64CONST(64) * 1024 * 1024)
#define APPLIED_LOOK_MS	100
#define STALLED			10		/* times bluegreen.peer_timeout */
#define END_POLL_MS		100

/* ---- positions ---- */

/*
 * A position in the WAL behind everything that is visible now, flushed, so
 * that the stream can get there.
 */
XLogRecPtr
verify_position(void)
{
	XLogRecPtr	lsn = control_position();

	XLogFlush(lsn);
	return lsn;
}

XLogRecPtr
verify_applied(const VerifyState *state)
{
	XLogRecPtr	applied;

	SpinLockAcquire(&state->shared->mutex);
	applied = state->shared->applied_lsn;
	SpinLockRelease(&state->shared->mutex);
	return applied;
}

/*
 * End if there is nothing to compare by any more: the stream is stopped, or
 * its mappings or its owner are others.
 */
void
verify_check(VerifyState *state)
{
	StreamShared *shared = state->shared;
	bool		stale;

	worker_check();
	SpinLockAcquire(&shared->mutex);
	stale = !shared->in_use || shared->stop_requested ||
		shared->owner != GetSessionUserId() ||
		(shared->mapping_version != 0 &&
		 shared->mapping_version != state->deployment->mapping_version);
	SpinLockRelease(&shared->mutex);
	if (stale)
		proc_exit(0);
}

/*
 * Rest.
 */
void
verify_pause(VerifyState *state, long ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
	long		left;

	while ((left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												   end)) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, Min(left, 1000),
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		verify_check(state);
	}
}

/*
 * Wait until the stream has applied everything up to a position.  Errors: the
 * stream stands in an error that will not pass by itself; it has not advanced
 * for a long time.
 */
void
verify_wait_applied(VerifyState *state, XLogRecPtr lsn)
{
	StreamShared *shared = state->shared;
	XLogRecPtr	last = InvalidXLogRecPtr;
	TimestampTz since = GetCurrentTimestamp();
	XLogRecPtr	applied;

	ConditionVariablePrepareToSleep(&shared->changed);
	while ((applied = verify_applied(state)) < lsn)
	{
		verify_check(state);
		control_check_stream(shared, state->deployment->name);
		if (applied != last)
			since = GetCurrentTimestamp();
		last = applied;
		if (TimestampDifferenceExceeds(since, GetCurrentTimestamp(),
									   (int) Min((int64) bg_peer_timeout * STALLED,
												 INT_MAX)))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("stream of deployment \"%s\" does not advance",
							state->deployment->name),
					 errdetail("It stands at %X/%X, and rows up to %X/%X are waited for.",
							   LSN_FORMAT_ARGS(applied), LSN_FORMAT_ARGS(lsn)),
					 errhint("See view bluegreen.stat_stream for what it waits for.")));
		stream_wake(shared);
		(void) ConditionVariableTimedSleep(&shared->changed, APPLIED_LOOK_MS,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* ---- ranges ---- */

/*
 * Rows of a range: small enough that the work that is lost with a worker is
 * little, large enough that a table takes not too many queries.
 */
static int64
range_rows(const TableShared *stats)
{
	int64		rows = Min(stats->estimated_rows / RANGES, MAX_RANGE_ROWS);

	if (stats->estimated_rows > 0)
		rows = Min(rows, RANGE_BYTES /
				   Max(stats->estimated_bytes / stats->estimated_rows, 1));
	return Max(rows, MIN_RANGE_ROWS);
}

/*
 * The next range of the current table: from *lower, which is NULL at the
 * beginning, to *upper, NULL at the end.
 */
static int64
plan_range(VerifyState *state, Datum **lower, Datum **upper)
{
	VerifyTable *table = state->table;
	CopyTable  *copy = &table->copy;
	int64		rows;

	*lower = *upper = NULL;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(state->range_context);
	copy_estimate_source(copy);
	rows = copy->stats->estimated_rows;
	if (table->ranged)
	{
		rows = range_rows(copy->stats);
		*lower = keyspace_key_from_literal(copy->directory->space,
										   state->progress.position);
		*upper = copy_find_upper(copy, *lower, NULL, rows);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
	return rows;
}

/*
 * Keep bluegreen.verify_rate.
 */
static void
throttle(VerifyState *state)
{
	int64		due;
	long		spent;

	if (bg_verify_rate == 0)
		return;
	due = state->range_cost * 1000 / bg_verify_rate;
	spent = TimestampDifferenceMilliseconds(state->range_started,
											GetCurrentTimestamp());
	if (due > spent)
		verify_pause(state, (long) (due - spent));
}

/*
 * Compare a range and write it down; false if it was the last one.
 */
static bool
compare_range(VerifyState *state)
{
	VerifyProgress *progress = &state->progress;
	Datum	   *lower;
	Datum	   *upper;
	int64		rows;

	state->range_started = GetCurrentTimestamp();
	rows = plan_range(state, &lower, &upper);
	verify_range(state, lower, upper, rows);
	if (progress->differences >= VERIFY_MAX_DIFFERENCES)
	{
		verify_log_range(state, "stopped",
						 "too many differences, the rest was not compared");
		return false;
	}
	if (upper == NULL)
	{
		verify_log_range(state, "done", NULL);
		return false;
	}
	progress->position =
		MemoryContextStrdup(state->context,
							keyspace_key_to_literal(state->table->copy.directory->space,
													upper));
	verify_log_range(state, "comparing", NULL);
	return true;
}

static void
compare_table(VerifyState *state)
{
	const TableShared *stats;
	char	   *status;
	bool		more = true;

	if (!verify_log_table(state, &status) ||
		(strcmp(status, "waiting") != 0 && strcmp(status, "comparing") != 0))
		return;
	stats = table_shared_get(state->table->transform->row->id,
							 state->deployment->id);
	if (state->table->unfit != NULL)
		verify_log_range(state, "skipped", state->table->unfit);
	else if (stats->state != TABLE_STREAMING)
		verify_log_range(state, "skipped", "it is not copied yet");
	else
		while (more)
		{
			verify_check(state);
			more = compare_range(state);
			throttle(state);
			MemoryContextReset(state->range_context);
			pgstat_report_stat(false);
		}
	MemoryContextReset(state->range_context);
}

/* ---- the worker ---- */

static void
load_deployment(VerifyState *state)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(state->context);
	state->deployment = deployment_load(state->shared->deployment);
	if (state->deployment == NULL)
		proc_exit(0);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
}

/*
 * Connect, and prepare the mappings.
 */
static void
load_tables(VerifyState *state)
{
	ListCell   *lc;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(state->context);
	state->peer = peer_connect(state->deployment->server,
							   state->deployment->owner,
							   psprintf("%s verify",
										stream_application_name(state->deployment)));
	peer_keep(state->peer);
	peer_on_connect_apply(state->peer);
	foreach(lc, mappings_load(state->deployment->id, state->shared->direction))
	{
		MappingRow *row = lfirst(lc);

		state->tables = lappend(state->tables,
								verify_table_create(state->peer, row,
													!row->target_shared));
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
}

static void
verify_run(VerifyState *state)
{
	ListCell   *lc;

	load_deployment(state);
	if (!verify_log_begin(state))
		return;
	/* an error from here on is the run's result */
	load_tables(state);
	foreach(lc, state->tables)
	{
		state->table = lfirst(lc);
		compare_table(state);
	}
	verify_log_end(state, "done", NULL);
}

/*
 * An error ends the verification, unless it passes by itself: then the launcher
 * starts another worker after a while, which it has been told already.
 */
static void
fail(VerifyState *state)
{
	ErrorData  *error;
	bool		passes;

	MemoryContextSwitchTo(state->context);
	error = CopyErrorData();
	EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	LWLockReleaseAll();
	passes = peer_sqlstate_is_transient(unpack_sql_state(error->sqlerrcode));
	if (state->run != 0)
	{
		MemoryContextSwitchTo(state->context);
		verify_log_end(state, passes ? "running" : "failed", error->message);
	}
	if (state->run != 0 && !passes)
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		verify_schedule(state->shared);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	proc_exit(1);
}

/*
 * Entry point of a verify worker; the argument is the stream's entry.
 */
void
bluegreen_verify_main(Datum arg)
{
	VerifyState *state = MemoryContextAllocZero(TopMemoryContext,
												sizeof(VerifyState));

	state->shared = stream_shared_at(DatumGetInt32(arg));
	state->context = TopMemoryContext;
	state->range_context = AllocSetContextCreate(TopMemoryContext,
												 "pg_bluegreen range",
												 ALLOCSET_DEFAULT_SIZES);
	if (!worker_take_entry(state->shared, &state->shared->verify_pid))
		proc_exit(0);
	worker_start(state->shared->dboid, state->shared->owner,
				 "pg_bluegreen verify");
	PG_TRY();
	{
		verify_run(state);
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		verify_schedule(state->shared);
		PopActiveSnapshot();
		CommitTransactionCommand();
		SpinLockAcquire(&state->shared->mutex);
		state->shared->verify_failures = 0;
		SpinLockRelease(&state->shared->mutex);
	}
	PG_CATCH();
	{
		fail(state);
	}
	PG_END_TRY();
	if (state->peer != NULL)
		peer_close(state->peer);
	proc_exit(0);
}
