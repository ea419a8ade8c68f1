/*-------------------------------------------------------------------------
 *
 * fence_check.c
 *		May this session write to this relation now?
 *
 * Asked before every write, see fence_hook.c.  Where no fence covers the
 * relation, the answer is a look into a hash table.  Else the session first
 * takes its lock on bluegreen.fence, for the rest of its transaction, and then
 * looks at the states; see fence.c for why in this order:
 *
 *		open, raised	go on: what holds writers of a raised fence is the lock
 *		in doubt		refuse, if it let go of the lock: nobody is there who
 *						could tell which side is the active one
 *		closed, retired refuse, whatever table it is, unless it is local
 *		guarded			refuse: rows of a target come by its stream
 *
 * A session that was there when the side was closed is disconnected, so that
 * its client connects anew and finds the other side; who comes later, maybe to
 * look at what is there, gets an error.
 *
 * A session that applies changes passes the fence of its own stream as long as
 * that side is a stream's target, or both sides take writes; from its activation on, whatever has become
 * of it since, the stream is not the live one any more.  The session takes a
 * lock of that fence, which raising does not wait for, but activating does.
 * So it does for other targets, which any stream may write to.  Once these are
 * active, and for all other fences, it is a writer like any other: what it
 * brings there must go to their other sides.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "core/guard.h"
#include "core/settings.h"
#include "cutover/fence.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "stream/own_changes.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* ---- the lock ---- */

/*
 * Lock something until the end of the transaction.  While a fence is raised
 * this waits, without a lock_timeout: the application's is not meant for it.
 * False if this transaction has it already.
 */
static bool
enter(const LOCKTAG *tag, LOCKMODE mode)
{
	int			timeout = LockTimeout;
	LockAcquireResult result;

	if (timeout == 0)
		return LockAcquire(tag, mode, false, false) == LOCKACQUIRE_OK;
	LockTimeout = 0;
	PG_TRY();
	{
		result = LockAcquire(tag, mode, false, false);
	}
	PG_FINALLY();
	{
		LockTimeout = timeout;
	}
	PG_END_TRY();
	return result == LOCKACQUIRE_OK;
}

/* As one that writes: lock bluegreen.fence. */
static bool
enter_writer(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, fence_cache_relid());
	return enter(&tag, RowExclusiveLock);
}

/* As one that applies to a fence's target. */
static bool
enter_applier(const Fence *fence)
{
	LOCKTAG		tag;

	fence_applier_tag(&tag, fence_cache_relid(), fence->id);
	return enter(&tag, RowShareLock);
}

/* ---- refusals ---- */

static const char *
relation_name(Oid relid)
{
	char	   *name = get_rel_name(relid);

	return name ? name : "?";
}

static pg_noreturn void
refuse_guarded(const Fence *fence, Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("cannot write to table \"%s\": it is a target of deployment \"%s\"",
					relation_name(relid), fence->name),
			 errdetail("Until the switchover its rows come from the other side."),
			 errhint("Write on the other side. To repair rows here, a superuser may set bluegreen.allow_target_writes.")));
}

/*
 * Nothing of the transaction has reached a mapped table, so its client can do
 * it again somewhere else.
 */
static pg_noreturn void
disconnect(const Fence *fence)
{
	ereport(FATAL,
			(errcode(ERRCODE_ADMIN_SHUTDOWN),
			 fence->state == FENCE_IN_DOUBT ?
			 errmsg("terminating connection because it is in doubt whether this side of deployment \"%s\" is the active one",
					fence->name) :
			 errmsg("terminating connection because this side of deployment \"%s\" is closed",
					fence->name),
			 errdetail("The transaction was rolled back. It had not written to any mapped table."),
			 errhint("Connect to the active side and repeat the transaction.")));
}

static pg_noreturn void
refuse_closed(const Fence *fence, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 fence->state == FENCE_IN_DOUBT ?
			 errmsg("cannot %s: it is in doubt whether this side of deployment \"%s\" is the active one",
					what, fence->name) :
			 errmsg("cannot %s: this side of deployment \"%s\" is closed",
					what, fence->name),
			 fence->state == FENCE_IN_DOUBT ?
			 errhint("Wait until the switchover has ended.") :
			 errhint("Write on the active side. To use this one for something else, call bluegreen.reopen() here; tables of its own can be declared by bluegreen.set_local().")));
}

static pg_noreturn void
refuse(const Fence *fence, Oid relid)
{
	if (MyStartTimestamp < fence->since)
		disconnect(fence);
	refuse_closed(fence, psprintf("write to table \"%s\"",
								  relation_name(relid)));
}

/* ---- checks ---- */

/*
 * One of the fences that cover a relation, under the lock.
 */
static void
check_fence(const Fence *fence, Oid relid, FenceAccess access)
{
	switch (fence->state)
	{
		case FENCE_OPEN:
		case FENCE_RAISED:
			break;
		case FENCE_GUARDED:
			if (access == FENCE_ROWS && !bg_allow_target_writes)
				refuse_guarded(fence, relid);
			break;
		case FENCE_IN_DOUBT:
		case FENCE_CLOSED:
		case FENCE_RETIRED:
			refuse(fence, relid);
	}
}

/*
 * The verdict on a relation as of now: everything that was committed before is
 * known.
 */
static FenceVerdict
current_verdict(Oid relid)
{
	FenceVerdict none = {.relid = relid};

	AcceptInvalidationMessages();
	return fence_cache_any() ? fence_cache_verdict(relid) : none;
}

static void
check_writer(Oid relid, FenceAccess access)
{
	FenceVerdict verdict = current_verdict(relid);
	int			i = -1;

	if (!bms_is_empty(verdict.fences))
	{
		(void) enter_writer();
		verdict = current_verdict(relid);
	}
	while ((i = bms_next_member(verdict.fences, i)) >= 0)
	{
		check_fence(fence_cache_get(i), relid, access);
	}
	if (verdict.closable && fence_cache_any() && fence_cache_closed() != NULL)
		refuse(fence_cache_closed(), relid);
}

/* ---- sessions that apply ---- */

/*
 * The stream of this session, which its replication origin is called after, or
 * NULL.  A copy worker's has a suffix.
 */
static const char *
session_stream(void)
{
	static RepOriginId known = InvalidRepOriginId;
	static char *name = NULL;
	RepOriginId session = own_session_origin();
	char	   *origin;

	if (session == InvalidRepOriginId)
		return NULL;
	if (known == session)
		return name;
	if (!replorigin_by_oid(session, true, &origin))
		return NULL;
	name = MemoryContextStrdup(TopMemoryContext, origin);
	known = session;
	return name;
}

static bool
is_own(const Fence *fence, const char *stream)
{
	size_t		length;

	if (stream == NULL || fence->stream == NULL)
		return false;
	length = strlen(fence->stream);
	return strncmp(stream, fence->stream, length) == 0 &&
		(stream[length] == '\0' || strncmp(stream + length, "_c", 2) == 0);
}

/*
 * Error if a side has been activated, and is no stream's target any more; also
 * when it is on its way to become one again.  Before the first move what somebody
 * has written on green by hand goes to blue, which is open.  While a window is
 * being closed the other side may have to send what follows from a conflict.
 */
static void
check_live(const Fence *fence)
{
	bool		unmoved = fence->state == FENCE_OPEN && !fence->activated;

	if (fence->state != FENCE_GUARDED && fence->state != FENCE_CLOSED &&
		!fence->window && !fence->closing && !unmoved)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this side of deployment \"%s\" has become the active one",
						fence->name),
				 errdetail("What the other side still sends is not applied.")));
}

/*
 * Take a session's lock for a fence, if it does not have it yet: that of who
 * applies for its own stream's and for those of targets, else a writer's.
 */
static bool
enter_apply(const Fence *fence, const char *stream)
{
	if (is_own(fence, stream) || fence->state == FENCE_GUARDED)
		return enter_applier(fence);
	return enter_writer();
}

/*
 * Lock until nothing new is found, then look at what was found under the locks.
 */
static void
check_apply(Oid relid, FenceAccess access)
{
	const char *stream = session_stream();
	FenceVerdict verdict;
	bool		again;
	int			i;

	do
	{
		verdict = current_verdict(relid);
		again = false;
		for (i = -1; (i = bms_next_member(verdict.fences, i)) >= 0;)
			again |= enter_apply(fence_cache_get(i), stream);
	} while (again);
	for (i = -1; (i = bms_next_member(verdict.fences, i)) >= 0;)
	{
		const Fence *fence = fence_cache_get(i);

		if (is_own(fence, stream))
			check_live(fence);
		else if (fence->state != FENCE_GUARDED)
			check_fence(fence, relid, access);
	}
}

/* ---- what the hooks call ---- */

/*
 * A relation is about to be written to.  Waits while a fence is raised that it
 * is mapped in.  Errors: 25006 if it must not be; FATAL 57P01 if the side was
 * closed while this session was connected.
 */
void
fence_check(Oid relid, FenceAccess access)
{
	/* who has a lock on the table already has not read any for long, maybe */
	AcceptInvalidationMessages();
	if (!fence_cache_any())
		return;
	if (guard_session_applies())
		check_apply(relid, access);
	else
		check_writer(relid, access);
}

/* The fence that closes all of this side, as of now, or NULL. */
static const Fence *
closed_side(void)
{
	AcceptInvalidationMessages();
	return fence_cache_any() ? fence_cache_closed() : NULL;
}

/*
 * A prepared transaction is about to be committed.  If it has written to a
 * mapped table it holds its lock, and no fence gets past it.  So what there is
 * when a side is closed has written other tables.
 */
void
fence_check_commit_prepared(void)
{
	const Fence *fence = closed_side();

	if (fence != NULL)
		refuse_closed(fence, "commit a prepared transaction");
}

/*
 * A table is about to be made with rows in it.
 */
void
fence_check_new_table(void)
{
	const Fence *fence = closed_side();

	if (fence != NULL)
		refuse_closed(fence, "create a table with rows");
}
