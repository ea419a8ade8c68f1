/*-------------------------------------------------------------------------
 *
 * fence.c
 *		The fence: raise it, wait until nobody writes, lower it or close the
 *		side.
 *
 * The fence is PostgreSQL's own lock manager.  Every transaction that writes
 * to a mapped table has RowExclusiveLock on the table bluegreen.fence from
 * before its first such write until its end (fence_check.c).  The lock is weak
 * enough for the fast path: as long as nobody raises a fence, writers do not
 * meet in shared memory.
 *
 * Raising is to wait for ShareLock on that table.  From the moment in which it
 * is asked for, new writers queue behind it; those that had written before run
 * on until they end.  Prepared transactions keep their locks, also over a
 * restart, so they count.  When the lock is there, no transaction that has
 * written to a mapped table is in flight, and while it is there, none can
 * begin.  That is all that holds writers of a raised fence: the row's state
 * does not.  So
 *
 *		- writers that are held stand in a lock queue.  If one of them has
 *		  locked a row that a running one waits for, the deadlock detector lets
 *		  it through first, without an error for anybody.  It is in front of us
 *		  then, and we wait for it;
 *		- a raise that lost its session, or whose session had an error, holds
 *		  nobody any more.  Nothing was decided, nothing is lost; the row says
 *		  "raised" until somebody lowers or raises it.  The view shows it as
 *		  abandoned.
 *
 * What has been decided, or may have been, must outlive everything, so there
 * the row does count: it is committed while the lock is still held, and whoever
 * gets the lock next reads it first (in doubt, closed).  Therefore locks are
 * released after the commit has told all caches, never with it.
 *
 * On a target the fence is there from the beginning (guarded), and nothing is
 * drained.  Sessions that apply take a lock of their own for each fence of a
 * target (RowShareLock); activating a side waits for them (ExclusiveLock), and
 * is in nobody else's way.
 *
 * One raise at a time in each database: after a switch all of it is closed.
 * The session that raises has a lock of its own for that, which tells it from
 * others that hold ShareLock for some other reason (CREATE INDEX on the table).
 *
 * Functions here that commit need a procedure that may (SPI, not atomic), or a
 * worker's transaction without a snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "cutover/fence.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

/* What terminated writers get to end, beside the drain timeout itself. */
#define TERMINATE_MIN_MS	10000

/* What a synchronous standby gets to confirm a step. */
#define STANDBY_WAIT_MS		10000

const char *const fence_state_names[] = {
	"open", "raised", "in_doubt", "closed", "retired", "guarded"
};

/* The fence that this session has raised. */
static struct
{
	Oid			relid;			/* bluegreen.fence; invalid = none */
	int32		fence;
	int64		epoch;
	bool		drained;		/* we have ShareLock */
}			own;

/* ---- locks ---- */

/*
 * The session's locks end with an error that reaches the top level.
 */
static void
forget_own(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		own.relid = InvalidOid;
}

/* Whoever has this is the one that raises, in this database. */
static void
owner_tag(LOCKTAG *tag, Oid relid)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, relid, 0, 0);
}

/*
 * The lock of those that apply to a target, see fence_check.c.  relid: of the
 * table bluegreen.fence.
 */
void
fence_applier_tag(LOCKTAG *tag, Oid relid, int32 fence)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, relid, (uint32) fence, 0);
}

static Oid
fence_relid(void)
{
	return get_relname_relid("fence", get_namespace_oid(BG_SCHEMA, false));
}

/*
 * Let writers go on.  Only after the commit of what they shall read.
 */
static void
release(void)
{
	LOCKTAG		tag;
	LockRelId	relid = {.relId = own.relid,.dbId = MyDatabaseId};

	if (own.drained)
		UnlockRelationIdForSession(&relid, ShareLock);
	owner_tag(&tag, own.relid);
	(void) LockRelease(&tag, ExclusiveLock, true);
	own.relid = InvalidOid;
}

/*
 * Core would not do that for a session that is in no transaction: they would
 * be held for ever by nobody.
 */
static void
release_at_exit(int code, Datum arg)
{
	AbortOutOfAnyTransaction();
	if (OidIsValid(own.relid))
		release();
}

/*
 * Be the one session that moves this fence.  Error if another is.
 */
static void
become_owner(int32 fence, int64 epoch)
{
	static bool registered = false;
	LOCKTAG		tag;
	Oid			relid;

	if (OidIsValid(own.relid) && own.fence == fence)
	{
		own.epoch = epoch;
		return;
	}
	if (!registered)
	{
		RegisterXactCallback(forget_own, NULL);
		before_shmem_exit(release_at_exit, (Datum) 0);
	}
	registered = true;
	relid = fence_relid();
	owner_tag(&tag, relid);
	if (OidIsValid(own.relid) ||
		LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("a fence of this database is already raised"),
				 errhint("Wait until that switchover has ended; see view bluegreen.fence_state.")));
	own.relid = relid;
	own.fence = fence;
	own.epoch = epoch;
	own.drained = false;
}

/* ---- states ---- */

/*
 * State of a fence, and its epoch if asked for.  Error if it does not exist.
 */
FenceState
fence_state(int32 fence, int64 *epoch)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	FenceState	state;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	if (catalog_run("SELECT state, epoch FROM bluegreen.fence WHERE id = $1",
					&args, SPI_OK_SELECT) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("fence %d does not exist", fence)));
	state = enum_lookup(fence_state_names, lengthof(fence_state_names),
						catalog_text(&access, 0, 1));
	if (epoch)
		*epoch = DatumGetInt64(catalog_value(0, 2, NULL));
	catalog_end(&access);
	return state;
}

/*
 * Does the other side take writes, too, as far as is known here?
 */
bool
fence_in_window(int32 fence)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	result = catalog_run("SELECT FROM bluegreen.fence "
						 "WHERE id = $1 AND \"window\"", &args,
						 SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/*
 * The fence of a deployment, by its name.  Error if this database has none, or
 * one as source and another as target.
 */
int32
fence_find(const char *deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		fence;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_name(&args, deployment);
	n = catalog_run("SELECT id FROM bluegreen.fence "
					"WHERE name = $1 AND state <> 'retired'",
					&args, SPI_OK_SELECT);
	if (n != 1)
		ereport(ERROR,
				(errcode(n == 0 ? ERRCODE_UNDEFINED_OBJECT :
						 ERRCODE_AMBIGUOUS_ALIAS),
				 n == 0 ?
				 errmsg("deployment \"%s\" has no fence in this database",
						deployment) :
				 errmsg("several deployments that this database takes part in are called \"%s\"",
						deployment)));
	fence = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return fence;
}

/*
 * The fence of a deployment of this database, by its id.
 */
int32
fence_of_deployment(int32 deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		fence;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	if (catalog_run("SELECT id FROM bluegreen.fence WHERE deployment = $1",
					&args, SPI_OK_SELECT) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("deployment %d has no fence", deployment)));
	fence = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return fence;
}

/*
 * "blue" or "green".
 */
char *
fence_side(int32 fence)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *side;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_run("SELECT side FROM bluegreen.fence WHERE id = $1", &args,
				SPI_OK_SELECT);
	side = catalog_text(&access, 0, 1);
	catalog_end(&access);
	return side;
}

static void
refuse_move(int32 fence, int64 epoch, FenceState to)
{
	int64		now;
	FenceState	state = fence_state(fence, &now);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("fence cannot become \"%s\" in epoch " INT64_FORMAT,
					fence_state_names[to], epoch),
			 errdetail("It is \"%s\" in epoch " INT64_FORMAT ".",
					   fence_state_names[state], now)));
}

/* Which states may come before, as a text[], and may the epoch rise? */
typedef struct Move
{
	FenceState	to;
	const char *from;
	bool		begins;			/* an epoch */
	bool		switches;		/* who is the active side */
} Move;

static const Move move_raise = {FENCE_RAISED, "{open,raised}", true, false};
static const Move move_lower = {FENCE_OPEN, "{raised,in_doubt}", false, false};
static const Move move_doubt = {FENCE_IN_DOUBT, "{raised}", false, false};
static const Move move_close = {FENCE_CLOSED, "{raised,in_doubt}", false, true};
static const Move move_settle = {FENCE_CLOSED, "{in_doubt}", false, true};
static const Move move_activate = {FENCE_OPEN, "{guarded,closed}", true, true};

/*
 * Commit, in a procedure or in a worker.
 */
static void
commit_now(void)
{
	if (ActivePortal != NULL)
	{
		SPI_commit();
		return;
	}
	CommitTransactionCommand();
	StartTransactionCommand();
}

/*
 * Commit what a procedure or a worker has written, durably here.
 */
void
fence_commit(void)
{
	ForceSyncCommit();
	commit_now();
}

/*
 * Have the current transaction's commit wait for the synchronous standbys, if
 * there are any, whatever synchronous_commit says: one that is promoted must
 * know what has been decided here.
 */
void
fence_commit_durably(void)
{
	ForceSyncCommit();
	if (synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
								 false);
}

/*
 * Error unless the synchronous standbys have what this session has committed
 * last: core only warns when waiting for them is canceled.
 */
void
fence_check_durable(void)
{
	bool		durable;

	if (max_wal_senders == 0 || SyncRepStandbyNames == NULL ||
		SyncRepStandbyNames[0] == '\0')
		return;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	durable = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH] >= XactLastCommitEnd;
	LWLockRelease(SyncRepLock);
	if (!durable)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("synchronous standbys do not have what was decided about a fence"),
				 errdetail("One that is promoted would not know of it."),
				 errhint("See to the standbys in synchronous_standby_names, then try again.")));
}

static volatile sig_atomic_t stopped_waiting = false;

/* In a signal handler: as a cancel does, end the wait for a standby. */
static void
stop_waiting(void)
{
	int			save_errno = errno;

	if (MyProc->syncRepState == SYNC_REP_WAITING)
	{
		stopped_waiting = true;
		kill(MyProcPid, SIGINT);
	}
	errno = save_errno;
}

/*
 * Commit, but do not wait for a standby that is away for ever: writers are held
 * meanwhile.
 */
static void
commit_in_time(void)
{
	static TimeoutId standby = MAX_TIMEOUTS;

	if (standby == MAX_TIMEOUTS)
		standby = RegisterTimeout(USER_TIMEOUT, stop_waiting);
	stopped_waiting = false;
	enable_timeout_after(standby, STANDBY_WAIT_MS);
	commit_now();
	disable_timeout(standby, false);
	if (stopped_waiting)
		QueryCancelPending = false; /* if it came too late for the wait */
}

/*
 * Compare and set a fence's row.  A side that is activated may be open already,
 * in a window, which ends when it is decided who is the active one.  Errors: it
 * is in another state or epoch.
 */
static void
set_fence(int32 fence, int64 epoch, const Move *move)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_arg_text(&args, fence_state_names[move->to]);
	catalog_arg(&args, INT8OID, Int64GetDatum(epoch));
	catalog_arg_text(&args, move->from);
	catalog_arg(&args, BOOLOID, BoolGetDatum(move->begins));
	catalog_arg(&args, BOOLOID, BoolGetDatum(move->switches));
	n = catalog_run("UPDATE bluegreen.fence SET state = $2, epoch = $3, "
					"since = clock_timestamp(), raised_by = CASE "
					"WHEN $2 = 'raised' THEN pg_backend_pid() "
					"WHEN $2 <> 'open' THEN raised_by END, "
					"switched_at = CASE WHEN $6 THEN clock_timestamp() "
					"ELSE switched_at END, "
					"activated = CASE WHEN $6 AND $2 = 'open' THEN $3 "
					"ELSE activated END, \"window\" = \"window\" AND NOT $6, "
					"closing = closing OR \"window\" AND $6 AND $2 = 'open' "
					"WHERE id = $1 AND (state = ANY ($4::text[]) "
					"OR $6 AND $2 = 'open' AND state = 'open' AND \"window\") "
					"AND CASE WHEN $5 THEN epoch < $3 ELSE epoch = $3 END",
					&args, SPI_OK_UPDATE);
	catalog_end(&access);
	if (n == 0)
		refuse_move(fence, epoch, move->to);
}

static void
move_fence(int32 fence, int64 epoch, const Move *move)
{
	set_fence(fence, epoch, move);
	/* what a standby does not know of these makes it refuse too much, at worst */
	if (move == &move_raise || move == &move_lower)
		ForceSyncCommit();
	else
		fence_commit_durably();
	commit_in_time();
}

/*
 * Begin to raise a fence, in a new epoch.  Writers are not held yet: see
 * fence_wait_drained().  Commits.  Errors: another fence of the database is
 * raised; this one is not open, or its epoch is not older.
 */
void
fence_raise(int32 fence, int64 epoch)
{
	become_owner(fence, epoch);
	move_fence(fence, epoch, &move_raise);
}

/*
 * Take over a fence that a session which is gone has left raised or in doubt.
 * Then wait again: writers may have gone through a raised one.  Errors: another
 * session has it; it is in another state or epoch.
 */
void
fence_adopt(int32 fence, int64 epoch)
{
	int64		now;
	FenceState	state;

	become_owner(fence, epoch);
	state = fence_state(fence, &now);
	if ((state != FENCE_RAISED && state != FENCE_IN_DOUBT) || now != epoch)
		refuse_move(fence, epoch, FENCE_RAISED);
}

/*
 * Give up: the side is as it was before, and writers go on.  Commits.  From in
 * doubt: only when it is certain that the other side has not been and will not
 * be activated.
 */
void
fence_lower(int32 fence, int64 epoch)
{
	become_owner(fence, epoch);
	move_fence(fence, epoch, &move_lower);
	release();
}

/*
 * The other side is about to be activated: from now on writers wait for the
 * outcome, whatever happens to this session or this server.  Commits.
 * Errors: writers have not been waited for; a synchronous standby does not have
 * it (it is in doubt then, but nothing can have been decided).
 */
void
fence_doubt(int32 fence, int64 epoch)
{
	if (!OidIsValid(own.relid) || own.fence != fence || !own.drained)
		refuse_move(fence, epoch, FENCE_IN_DOUBT);
	move_fence(fence, epoch, &move_doubt);
	fence_check_durable();
}

/*
 * The other side is the active one: disconnect those that are held, and refuse
 * all writes to this side.  Commits.
 */
void
fence_close(int32 fence, int64 epoch)
{
	become_owner(fence, epoch);
	move_fence(fence, epoch, own.drained ? &move_close : &move_settle);
	release();
}

/*
 * Wait until no session is left that has applied something to a fence's target
 * in its transaction, and hold all that want to, until this one ends.
 */
void
fence_lock_appliers(int32 fence)
{
	LOCKTAG		tag;

	fence_applier_tag(&tag, fence_relid(), fence);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * This side becomes the active one: the stream that wrote here is not live any
 * more, and the application may write.  Waits for the sessions that apply.
 * Commits.  Errors: it is in another state or epoch; a synchronous standby does
 * not have it (it is active then).
 */
void
fence_activate(int32 fence, int64 epoch)
{
	fence_lock_appliers(fence);
	move_fence(fence, epoch, &move_activate);
	fence_check_durable();
}

/*
 * The same, without the commit: the decision of a switchover, unless the epoch
 * was settled before.
 */
void
fence_decide(int32 fence, int64 epoch)
{
	fence_lock_appliers(fence);
	set_fence(fence, epoch, &move_activate);
	fence_commit_durably();
}

/*
 * The decision of a window: this side takes writes, too, and the epoch stays.
 * The stream that writes here goes on.  Errors: it is open; the epoch was
 * settled.  Does not commit.
 */
void
fence_decide_window(int32 fence, int64 epoch)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_arg(&args, INT8OID, Int64GetDatum(epoch));
	n = catalog_run("UPDATE bluegreen.fence SET state = 'open', "
					"\"window\" = true, since = clock_timestamp(), "
					"switched_at = clock_timestamp() "
					"WHERE id = $1 AND state IN ('guarded', 'closed') "
					"AND epoch < $2", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	if (n == 0)
		refuse_move(fence, epoch, FENCE_OPEN);
	fence_commit_durably();
}

/*
 * The other side takes writes, too: so this one, which is open, is in a window.
 * Does not commit.
 */
void
fence_enter_window(int32 fence)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_run("UPDATE bluegreen.fence SET \"window\" = true "
				"WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Settle an epoch whose decision nobody knows of: from now on it is not
 * possible any more.  Waits for a decision that is being committed.  True if
 * this side takes writes, as that epoch was decided (window: together with the
 * other one): a side that does not, or a window that is as it was before, takes
 * part in no later one.  Does not commit.
 */
bool
fence_settle(int32 fence, int64 epoch, bool window)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	FenceState	state;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_arg(&args, INT8OID, Int64GetDatum(epoch));
	catalog_arg(&args, BOOLOID, BoolGetDatum(window));
	catalog_run("UPDATE bluegreen.fence SET epoch = $2 WHERE id = $1 "
				"AND epoch < $2 AND CASE WHEN $3 OR NOT \"window\" "
				"THEN state IN ('guarded', 'closed') "
				"ELSE state IN ('open', 'raised', 'in_doubt') END",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
	fence_commit_durably();
	state = fence_state(fence, NULL);
	return (state == FENCE_OPEN || state == FENCE_RAISED ||
			state == FENCE_IN_DOUBT) && fence_in_window(fence) == window;
}

/*
 * Have a side open or closed, whatever it was, in a new epoch.  For a human who
 * knows better; nobody else may have the lock.  Does not commit.
 */
void
fence_force(int32 fence, bool open)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	LockRelationOid(fence_relid(), ExclusiveLock);
	fence_lock_appliers(fence);
	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_arg_text(&args, fence_state_names[open ? FENCE_OPEN : FENCE_CLOSED]);
	catalog_run("UPDATE bluegreen.fence SET state = $2, epoch = epoch + 1, "
				"since = clock_timestamp(), switched_at = clock_timestamp(), "
				"activated = CASE $2 WHEN 'open' THEN epoch + 1 "
				"ELSE activated END, "
				"\"window\" = false, closing = false, raised_by = NULL "
				"WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	fence_commit_durably();
}

/* ---- wait ---- */

/* How writers are waited for. */
typedef struct Wait
{
	LOCKTAG		tag;			/* what they have */
	int			timeout;		/* ms until they are ended, ... */
	int			limit;			/* ... until we give up */
	FencePolicy policy;
	BackgroundWorkerHandle *ender;
} Wait;

static void
lock_all_out(void *arg)
{
	Wait	   *wait = arg;
	LockRelId	relid = {.relId = own.relid,.dbId = MyDatabaseId};

	if (wait->policy == FENCE_TERMINATE)
		wait->ender = fence_end_writers(&wait->tag, wait->timeout);
	LockRelationIdForSession(&relid, ShareLock);
	own.drained = true;
}

/*
 * Wait for ShareLock, for the session.  NULL, or the error.
 */
static ErrorData *
try_lock(Wait *wait)
{
	ErrorData  *error;
	int			saved = LockTimeout;

	LockTimeout = Max(wait->limit, 1);
	error = attempt(lock_all_out, wait);
	LockTimeout = saved;
	if (wait->ender != NULL)
		TerminateBackgroundWorker(wait->ender);
	return error;
}

static pg_noreturn void
report_timeout(int timeout, FencePolicy policy, const char *who)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("transactions that write to mapped tables did not end within %d ms",
					timeout),
			 who[0] != '\0' ? errdetail("Still running: %s.", who) : 0,
			 policy == FENCE_ABORT ?
			 errhint("End them, allow more time, or use on_drain_timeout => 'terminate'.") :
			 errhint("Prepared transactions must be committed or rolled back.")));
}

/*
 * Wait until no transaction is left that has written to a mapped table, and
 * hold all who want to.  After timeout ms the policy: ABORT is an error,
 * TERMINATE disconnects those who still write, and waits for them as long
 * again, at least 10 s.  Errors: timeout (55P03), cancel; the fence has
 * been lowered then, and nobody has noticed more than a delay.  That commits.
 */
void
fence_wait_drained(int timeout, FencePolicy policy)
{
	Wait		wait = {.timeout = timeout,.limit = timeout,.policy = policy};
	ErrorData  *error;
	char	   *who;

	Assert(OidIsValid(own.relid));
	if (own.drained)
		return;
	SET_LOCKTAG_RELATION(wait.tag, MyDatabaseId, own.relid);
	fence_note_writers(&wait.tag);
	if (policy == FENCE_TERMINATE)
		wait.limit += Max(timeout, TERMINATE_MIN_MS);
	error = try_lock(&wait);
	if (error == NULL)
		return;
	who = fence_describe_writers();
	if (fence_state(own.fence, NULL) == FENCE_RAISED)
		fence_lower(own.fence, own.epoch);
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
		report_timeout(timeout, policy, who);
	ReThrowError(error);
}
