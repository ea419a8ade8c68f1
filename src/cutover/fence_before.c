/*-------------------------------------------------------------------------
 *
 * fence_before.c
 *		Statements that were there before a fence.
 *
 * A statement looks at the fences when it begins.  One that began before its
 * table was mapped, or before a stream came to write there, has looked at none,
 * and as long as it has not written it has no transaction id that the copy would
 * wait for.  But it has locked the table.  So once the mapping is committed,
 * everybody who has such a lock is waited for, as CREATE INDEX CONCURRENTLY does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "cutover/fence.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"

/*
 * Does a transaction that has a lock on a table write no rows to it?
 */
static bool
only_maintains(VirtualTransactionId vxid)
{
	PGPROC	   *proc = vxid_proc(vxid);

	return proc != NULL && proc_lxid(proc) == vxid.localTransactionId &&
		(proc->statusFlags & (PROC_IN_VACUUM | PROC_IN_SAFE_IC)) != 0;
}

static bool
is_member(const VirtualTransactionId *list, VirtualTransactionId vxid)
{
	for (; VirtualTransactionIdIsValid(*list); list++)
	{
		if (VirtualTransactionIdEquals(*list, vxid))
			return true;
	}
	return false;
}

/*
 * Wait for all transactions that have a lock on a table with which they may
 * write, but those of sessions that apply.
 */
static void
wait_for_lockers(Oid relid, const VirtualTransactionId *appliers)
{
	LOCKTAG		tag;
	VirtualTransactionId *vxids;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	vxids = GetLockConflicts(&tag, ShareLock, NULL);
	for (; VirtualTransactionIdIsValid(*vxids); vxids++)
	{
		if (!only_maintains(*vxids) && !is_member(appliers, *vxids))
			(void) VirtualXactLock(*vxids, true);
	}
}

/*
 * Wait for the statements that began before a deployment's tables were mapped
 * here (stream NULL), or before a stream came to write here: the fence does not
 * know of them, and as long as they have written nothing, nobody does.  They
 * have locked the tables, though.  Needs a transaction.
 */
void
fence_wait_writers(int32 deployment, const char *stream)
{
	LOCKTAG		tag;
	int32		fence;
	List	   *relids;
	ListCell   *lc;
	VirtualTransactionId *appliers;

	AcceptInvalidationMessages();
	relids = fence_cache_relations(deployment, stream, &fence);
	if (relids == NIL)
		return;
	fence_applier_tag(&tag, fence_cache_relid(), fence);
	appliers = GetLockConflicts(&tag, ExclusiveLock, NULL);
	InvalidateCatalogSnapshot();	/* nobody shall wait for it meanwhile */
	foreach(lc, relids)
	{
		wait_for_lockers(lfirst_oid(lc), appliers);
	}
}
