/*-------------------------------------------------------------------------
 *
 * control.c
 *		Stop streams, wait for them, skip a transaction; what start.c and
 *		deployment.c need for it.
 *
 * start, stop and wait_for_sync are procedures, because a slot can only be
 * created in a transaction that has written nothing, and because nobody may
 * wait for long under a snapshot.  They commit through SPI, so they have no
 * SET clause; catalog_begin() pins the path.  Two of them never run for the
 * same deployment at once: they hold a session lock, which survives commits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/lost.h"
#include "core/shared.h"
#include "core/switch_row.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "replication/slot.h"
#include "storage/condition_variable.h"
#include "storage/lmgr.h"
#include "stream/window.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(bluegreen_stop);
PG_FUNCTION_INFO_V1(bluegreen_wait_for_sync);
PG_FUNCTION_INFO_V1(bluegreen_skip);
PG_FUNCTION_INFO_V1(bluegreen_reset_stats);

/* Looks again this often where only a broadcast is waited for. */
#define RECHECK_MS 1000L
#define SYNC_RECHECK_MS 100L
#define DEADLOCK_CHECKS 10		/* rechecks between looks for a deadlock */
/* A worker that was asked to stop may finish its batch for so long. */
#define STOP_GRACE_MS 1000

/* ---- locks, transactions, commit actions ---- */

static void
control_locktag(LOCKTAG *tag, int32 deployment)
{
	Oid			relation = get_relname_relid("deployment",
											 get_namespace_oid(BG_SCHEMA,
															   false));

	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, relation, (Oid) deployment, 0);
}

/*
 * Take the lock under which a deployment's stream is started, stopped or
 * dropped; for the session, or until the end of the transaction.
 */
void
control_lock(int32 deployment, bool session)
{
	LOCKTAG		tag;

	control_locktag(&tag, deployment);
	(void) LockAcquire(&tag, ExclusiveLock, session, false);
}

/*
 * Release the session's lock.
 */
void
control_unlock(int32 deployment)
{
	LOCKTAG		tag;

	control_locktag(&tag, deployment);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/*
 * Error if an argument is null.  Functions of ours are not STRICT: one that
 * silently did nothing would pass for one that did what it was asked for.
 */
void
require_argument(FunctionCallInfo fcinfo, int i, const char *name)
{
	if (PG_ARGISNULL(i))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name)));
}

/*
 * Is this database one whose sessions begin read-only because the side is
 * closed (cutover/fence_mark.c)?
 */
static bool
has_closed_sign(void)
{
	CatalogAccess access;
	bool		result;

	catalog_begin(&access);
	result = catalog_run("SELECT FROM bluegreen.fence WHERE marked", NULL,
						 SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/*
 * Error if nothing can be written: on a standby, or in a transaction that is
 * read-only.  Who comes to a closed side, to open it again or to drop what is
 * there, has a session that is read-only as a sign; that does not count.
 */
void
require_writable(const char *function)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s during recovery", function),
				 errhint("Call it on the primary.")));
	if (!DefaultXactReadOnly || !has_closed_sign())
		PreventCommandIfReadOnly(function);
}

/*
 * Error unless this side of a deployment takes writes: what it has is right,
 * and the other side follows.
 */
void
control_require_active(const Deployment *deployment, const char *what)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *side = NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	if (catalog_run("SELECT side FROM bluegreen.fence WHERE deployment = $1 "
					"AND state NOT IN ('open', 'raised')",
					&args, SPI_OK_SELECT) > 0)
		side = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (side != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot %s deployment \"%s\" from %s, which is not the active side",
						what, deployment->name, side),
				 errhint("Call it on the other side.")));
}

/*
 * Begin a procedure that commits: error in a transaction block, or where
 * nothing can be written; SPI that may end transactions.
 */
void
procedure_begin(FunctionCallInfo fcinfo, const char *name)
{
	CallContext *context = (CallContext *) fcinfo->context;

	require_argument(fcinfo, 0, "deployment");
	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s cannot run inside a transaction block", name),
				 errhint("Call it at top level; it commits while it runs.")));
	require_writable(name);
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
procedure_end(void)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * The deployment, under the session's control lock; its row is locked in the
 * current transaction.  The caller releases with control_unlock(), also after
 * an error.
 */
Deployment *
procedure_lock(const char *name)
{
	Deployment *deployment = deployment_load_by_name(name, false);

	deployment_check_owner(deployment);
	control_lock(deployment->id, true);
	return deployment;
}

/* Deployments whose workers are told something when this commits. */
static List *reload_list = NIL; /* read the mappings again */
static List *retry_list = NIL;	/* try again at once */
static List *resume_list = NIL; /* go on, if this aborts */

static void
retry_stream(int32 deployment)
{
	StreamShared *s = stream_of_deployment(deployment);

	if (s != NULL)
		control_release_stream(s);
}

/*
 * Transaction callback.  After the commit it must not fail: it only sets flags
 * in shared memory and wakes processes.
 */
static void
tell_at_commit(XactEvent event, void *arg)
{
	ListCell   *lc;

	if (reload_list == NIL && retry_list == NIL && resume_list == NIL)
		return;
	if (event == XACT_EVENT_PRE_PREPARE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has changed a deployment")));
	if (event == XACT_EVENT_COMMIT && shared_is_loaded())
	{
		foreach(lc, reload_list)
		{
			stream_request_reload(MyDatabaseId, lfirst_int(lc));
		}
		foreach(lc, retry_list)
		{
			retry_stream(lfirst_int(lc));
		}
	}
	if (event == XACT_EVENT_ABORT && shared_is_loaded())
	{
		foreach(lc, resume_list)
		{
			retry_stream(lfirst_int(lc));
		}
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		reload_list = retry_list = resume_list = NIL;	/* freed with the
														 * transaction */
}

static void
tell_later(List **list, int32 deployment)
{
	static bool registered = false;
	MemoryContext oldcontext;

	if (!registered)
		RegisterXactCallback(tell_at_commit, NULL);
	registered = true;
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	*list = list_append_unique_int(*list, deployment);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * When the current transaction commits, have the deployment's worker read its
 * mappings again.  A request of an aborted subtransaction stays: reading once
 * too often does no harm.
 */
void
control_reload_at_commit(int32 deployment)
{
	tell_later(&reload_list, deployment);
}

/*
 * When the current transaction commits, have the launcher start the worker
 * that waits after an error.
 */
void
control_retry_at_commit(int32 deployment)
{
	tell_later(&retry_list, deployment);
}

/*
 * If the current transaction aborts, let a stream that it has stopped go on.
 */
void
control_resume_at_abort(int32 deployment)
{
	tell_later(&resume_list, deployment);
}

/* ---- stopping ---- */

static bool
stream_has_processes(StreamShared *s)
{
	bool		result;

	SpinLockAcquire(&s->mutex);
	result = s->pid != 0 || s->verify_pid != 0;
	SpinLockRelease(&s->mutex);
	if (result)
		return true;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
		if (s->copy[i].pid != 0)
			result = true;
	LWLockRelease(shared_chunk_lock());
	return result;
}

/*
 * End the stream's worker wherever it waits: for a peer that is slow or gone,
 * most likely.  It takes its copy workers with it, but for one that was on its
 * way when the worker ended, and that may wait for our very transaction.
 */
static void
terminate_worker(StreamShared *s)
{
	pid_t		pid;
	pid_t		verify_pid;

	SpinLockAcquire(&s->mutex);
	pid = s->pid;
	verify_pid = s->verify_pid;
	SpinLockRelease(&s->mutex);
	if (pid != 0)
		(void) kill(pid, SIGTERM);
	if (verify_pid != 0)
		(void) kill(verify_pid, SIGTERM);
	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
		if (s->copy[i].pid != 0)
			(void) kill(s->copy[i].pid, SIGTERM);
	LWLockRelease(shared_chunk_lock());
}

/*
 * Ask a stream's processes to end, and wait until they are gone.  Does nothing
 * for a stream that has no entry in shared memory.  The launcher leaves it
 * alone until stop_requested is cleared.
 *
 * The worker sends what it has decoded first, but not for long: what is not
 * confirmed is decoded again when it runs again.
 */
void
control_stop_stream(const char *slot_name)
{
	StreamShared *s = shared_is_loaded() ? stream_shared_find(slot_name) : NULL;
	TimestampTz grace_end;

	if (s == NULL)
		return;
	SpinLockAcquire(&s->mutex);
	s->stop_requested = true;
	SpinLockRelease(&s->mutex);
	stream_wake(s);

	grace_end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											STOP_GRACE_MS);
	ConditionVariablePrepareToSleep(&s->changed);
	while (stream_has_processes(s))
	{
		if (GetCurrentTimestamp() >= grace_end)
			terminate_worker(s);
		(void) ConditionVariableTimedSleep(&s->changed, RECHECK_MS,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	stream_set_state(s, STREAM_STOPPED);
}

/*
 * Drop a stream's slot if it exists.  Waits for a process that holds it.
 */
void
control_drop_slot(const char *slot_name)
{
	window_forget(slot_name);
	if (SearchNamedReplicationSlot(slot_name, true) != NULL)
		ReplicationSlotDrop(slot_name, false);
}

/*
 * Allow the launcher to run the stream, at once.  One that is lost is looked
 * at again: what was wrong may have been put right.
 */
void
control_release_stream(StreamShared *s)
{
	bool		failed;

	SpinLockAcquire(&s->mutex);
	s->stop_requested = false;
	s->next_start = 0;
	s->failures = 0;
	failed = s->state == STREAM_ERROR || s->state == STREAM_LOST;
	/* a worker that is on its way already has not read what is new */
	if (s->pid != 0 && failed)
		s->reload = true;
	SpinLockRelease(&s->mutex);
	if (failed)
		stream_set_state(s, STREAM_STARTING);
	launcher_wake();
}

/* ---- stop ---- */

static void
stop_locked(const char *name)
{
	Deployment *deployment = deployment_lock(name);
	char		slot_name[NAMEDATALEN];

	if (deployment->desired == DESIRED_DEFINED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" has not been started",
						deployment->name),
				 errhint("Use CALL bluegreen.start().")));
	switch_refuse_unfinished(deployment, "stop");
	if (deployment->desired == DESIRED_STARTED)
	{
		catalog_update_deployment(deployment->id, "desired = 'stopped'");
		event_record_local(deployment->id, EVENT_STOPPED, InvalidXLogRecPtr,
						   "stream stopped", NULL);
	}
	SPI_commit();
	deployment_slot_name(slot_name, deployment);
	control_stop_stream(slot_name);
	backward_stop(name);
}

/*
 * bluegreen.stop(deployment name): stop a stream; its slot goes on to hold
 * WAL.  Commits, then waits until the stream's processes are gone.
 */
Datum
bluegreen_stop(PG_FUNCTION_ARGS)
{
	char	   *name;
	int32		id;

	procedure_begin(fcinfo, "bluegreen.stop");
	shared_require();
	name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	id = procedure_lock(name)->id;
	PG_TRY();
	{
		stop_locked(name);
	}
	PG_FINALLY();
	{
		control_unlock(id);
	}
	PG_END_TRY();
	procedure_end();
	PG_RETURN_VOID();
}

/* ---- wait_for_sync ---- */

/* What a waiter looks at, copied under the spinlock. */
typedef struct SyncView
{
	StreamState state;
	bool		stop_requested;
	bool		resting;		/* no worker runs, and the next one is not due */
	int			failures;
	int64		errors;			/* grows with each one */
	XLogRecPtr	applied_lsn;
	StreamError error;
} SyncView;

static void
sync_look(StreamShared *s, SyncView *view)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&s->mutex);
	view->state = s->state;
	view->stop_requested = s->stop_requested;
	view->resting = s->pid == 0 && s->next_start > now;
	view->failures = s->failures;
	view->errors = s->errors;
	view->applied_lsn = s->applied_lsn;
	view->error = s->error;
	SpinLockRelease(&s->mutex);
}

/*
 * Position after everything that has been written so far.  The insert position
 * of an exactly filled page lies behind the next page's header, which no
 * record's end ever equals; step back to the page's start then.
 */
XLogRecPtr
control_position(void)
{
	XLogRecPtr	lsn = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(lsn, wal_segment_size) == SizeOfXLogLongPHD)
		return lsn - SizeOfXLogLongPHD;
	if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return lsn - SizeOfXLogShortPHD;
	return lsn;
}

/*
 * Errors for a stream that will not get there by itself.  One that fails for
 * a passing reason (the peer restarts, say) tries again, so the wait goes on.
 */
static void
sync_check(const char *name, const SyncView *view)
{
	if (view->state == STREAM_LOST ||
		(view->state == STREAM_ERROR &&
		 !peer_sqlstate_is_transient(view->error.sqlstate)))
		ereport(ERROR,
				(errcode(view->error.sqlstate[0] ?
						 MAKE_SQLSTATE(view->error.sqlstate[0],
									   view->error.sqlstate[1],
									   view->error.sqlstate[2],
									   view->error.sqlstate[3],
									   view->error.sqlstate[4]) :
						 ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("stream of deployment \"%s\" is in state %s: %s",
						name, stream_state_names[view->state],
						view->error.message),
				 view->error.detail[0] ?
				 errdetail("%s", view->error.detail) : 0,
				 view->error.hint[0] ? errhint("%s", view->error.hint) : 0));
	if (view->stop_requested)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("stream of deployment \"%s\" is stopped", name),
				 errhint("Use CALL bluegreen.start().")));
}

/*
 * The same, for who waits for a stream in another way.
 */
void
control_check_stream(StreamShared *s, const char *name)
{
	SyncView   *view = palloc0(sizeof(SyncView));

	sync_look(s, view);
	sync_check(name, view);
	pfree(view);
}

static void
sync_timed_out(const char *name, const SyncView *view, XLogRecPtr goal)
{
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("timeout while waiting for deployment \"%s\"", name),
			 errdetail("The stream is in state %s and has applied up to %X/%X; waited for %X/%X (" INT64_FORMAT " bytes).",
					   stream_state_names[view->state],
					   LSN_FORMAT_ARGS(view->applied_lsn),
					   LSN_FORMAT_ARGS(goal),
					   goal > view->applied_lsn ?
					   (int64) (goal - view->applied_lsn) : (int64) 0)));
}

/*
 * Does the stream show an error from before the wait began, or rest after one?
 * Its cause may have been removed since: have it try again now, and see.
 */
static bool
sync_try_again(StreamShared *s, const SyncView *view, int64 errors_before)
{
	if (view->stop_requested || view->errors != errors_before ||
		(view->state != STREAM_ERROR && !view->resting))
		return false;
	SpinLockAcquire(&s->mutex);
	s->next_start = 0;
	SpinLockRelease(&s->mutex);
	launcher_wake();
	return true;
}

static void
sync_wait(StreamShared *s, const char *name, XLogRecPtr goal, TimestampTz end)
{
	SyncView   *view = palloc0(sizeof(SyncView));
	int64		errors_before;

	sync_look(s, view);
	errors_before = view->errors;
	ConditionVariablePrepareToSleep(&s->changed);
	for (;;)
	{
		long		wait = SYNC_RECHECK_MS;

		sync_look(s, view);
		if (view->state == STREAM_STREAMING && view->applied_lsn >= goal)
			break;
		if (!sync_try_again(s, view, errors_before))
			sync_check(name, view);
		if (end != DT_NOEND)
		{
			wait = Min(wait, TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
															 end));
			if (wait <= 0)
				sync_timed_out(name, view, goal);
		}
		(void) ConditionVariableTimedSleep(&s->changed, wait,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/*
 * The entry of a started deployment's stream.
 */
StreamShared *
control_stream(const Deployment *deployment)
{
	char		slot_name[NAMEDATALEN];
	LostReason	reason;
	StreamShared *s;

	deployment_slot_name(slot_name, deployment);
	reason = lost_by_slot(slot_name);
	if (!XLogRecPtrIsInvalid(deployment->slot_lsn) && reason.message != NULL)
		lost_report(deployment->name, &reason);
	s = stream_shared_find(slot_name);
	if (deployment->desired != DESIRED_STARTED || s == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" is not started", deployment->name),
				 errhint("Use CALL bluegreen.start().")));
	return s;
}

/*
 * bluegreen.wait_for_sync(deployment name, timeout interval): wait until all
 * tables follow and everything that was committed before the call is durable
 * on the target.  Commits first, so that it waits without a snapshot.  Errors:
 * the stream is not running or fails (at once, with the stream's own error; one
 * that it shows from before is tried again first); query_canceled after the
 * timeout.
 */
Datum
bluegreen_wait_for_sync(PG_FUNCTION_ARGS)
{
	char	   *name;
	Deployment *deployment;
	StreamShared *s;
	XLogRecPtr	goal;
	TimestampTz end = DT_NOEND;

	procedure_begin(fcinfo, "bluegreen.wait_for_sync");
	shared_require();
	goal = control_position();
	name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	if (!PG_ARGISNULL(1))
		end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													  TimestampTzGetDatum(GetCurrentTimestamp()),
													  PG_GETARG_DATUM(1)));
	deployment = deployment_load_by_name(name, false);
	deployment_check_owner(deployment);
	s = control_stream(deployment);
	SPI_commit();
	sync_wait(s, name, goal, end);
	procedure_end();
	PG_RETURN_VOID();
}

/*
 * Does a worker of the stream wait for a lock that we hold, or for somebody who
 * does?  Nobody else would notice: we wait for the stream by no lock.
 */
static bool
stream_waits_for_us(const StreamShared *s)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	StringInfoData pids;
	bool		result;

	initStringInfo(&pids);
	appendStringInfo(&pids, "{%d", (int) s->pid);
	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
		appendStringInfo(&pids, ",%d", (int) s->copy[i].pid);
	appendStringInfoChar(&pids, '}');
	catalog_begin(&access);
	catalog_arg_text(&args, pids.data);
	catalog_run("WITH RECURSIVE blocker(pid) AS ("
				"SELECT unnest($1::int[]) UNION "
				"SELECT unnest(pg_blocking_pids(pid)) FROM blocker WHERE pid > 0) "
				"SELECT EXISTS (SELECT FROM blocker WHERE pid = pg_backend_pid())",
				&args, SPI_OK_SELECT);
	result = DatumGetBool(catalog_value(0, 1, NULL));
	catalog_end(&access);
	pfree(pids.data);
	return result;
}

/*
 * Wait until a started deployment's stream has durably applied everything that
 * has been written so far, committed or not.  For a caller who is in a
 * transaction and keeps others from writing.  Errors: as wait_for_sync(),
 * without a timeout of its own; the stream waits for the caller.
 */
void
control_wait_applied(const Deployment *deployment)
{
	StreamShared *s = control_stream(deployment);
	SyncView   *view = palloc0(sizeof(SyncView));
	XLogRecPtr	goal = control_position();

	XLogFlush(goal);
	ConditionVariablePrepareToSleep(&s->changed);
	for (int i = 1;; i++)
	{
		sync_look(s, view);
		if (view->applied_lsn >= goal)
			break;
		sync_check(deployment->name, view);
		if (i % DEADLOCK_CHECKS == 0 && stream_waits_for_us(s))
			ereport(ERROR,
					(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
					 errmsg("deadlock detected"),
					 errdetail("The stream of deployment \"%s\" waits for a lock of this transaction, which waits for the stream.",
							   deployment->name),
					 errhint("Roll back and try again.")));
		stream_wake(s);
		(void) ConditionVariableTimedSleep(&s->changed, SYNC_RECHECK_MS,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* ---- skip, reset_stats ---- */

static StreamShared *
find_stream(const Deployment *deployment)
{
	char		slot_name[NAMEDATALEN];

	deployment_slot_name(slot_name, deployment);
	return stream_shared_find(slot_name);
}

/*
 * Error unless the stream stands in an error of exactly this transaction.  It
 * may just be trying again, and then its state is another for a moment.
 */
static void
check_skippable(const Deployment *deployment, XLogRecPtr lsn)
{
	StreamShared *s = find_stream(deployment);
	SyncView   *view = palloc0(sizeof(SyncView));

	if (s != NULL)
		sync_look(s, view);
	if (s == NULL || (view->state != STREAM_ERROR && view->failures == 0))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("stream of deployment \"%s\" is not in state error",
						deployment->name)));
	if (XLogRecPtrIsInvalid(view->error.lsn))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the error of deployment \"%s\" does not belong to a transaction: %s",
						deployment->name, view->error.message)));
	if (view->error.lsn != lsn)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("stream of deployment \"%s\" stands at %X/%X, not at %X/%X",
						deployment->name, LSN_FORMAT_ARGS(view->error.lsn),
						LSN_FORMAT_ARGS(lsn))));
}

/*
 * bluegreen.skip(deployment name, lsn pg_lsn): leave out the transaction that
 * the stream stands at; it goes on when the caller commits.
 */
Datum
bluegreen_skip(PG_FUNCTION_ARGS)
{
	XLogRecPtr	lsn;
	Deployment *deployment;
	CatalogAccess access;
	CatalogArgs args = {0};

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "lsn");
	require_writable("bluegreen.skip");
	shared_require();
	lsn = PG_GETARG_LSN(1);
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	check_skippable(deployment, lsn);
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg(&args, PG_LSNOID, LSNGetDatum(lsn));
	catalog_run("UPDATE bluegreen.deployment SET skip_lsn = $2 WHERE id = $1",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
	event_record_local(deployment->id, EVENT_SKIPPED, lsn,
					   psprintf("skip requested by %s",
								GetUserNameFromId(GetUserId(), false)), NULL);
	/* also a worker that is just trying again has to know */
	control_reload_at_commit(deployment->id);
	PG_RETURN_VOID();
}

/*
 * bluegreen.reset_stats(deployment name): set the stream's counters to zero.
 */
Datum
bluegreen_reset_stats(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	StreamShared *s;

	require_argument(fcinfo, 0, "deployment");
	shared_require();
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	s = find_stream(deployment);
	if (s == NULL)
		PG_RETURN_VOID();
	SpinLockAcquire(&s->mutex);
	s->transactions = s->batches = s->rows = s->bytes = 0;
	s->errors = s->restarts = s->skipped = s->careful_batches = 0;
	s->stats_reset = GetCurrentTimestamp();
	SpinLockRelease(&s->mutex);
	PG_RETURN_VOID();
}
