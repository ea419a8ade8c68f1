/*-------------------------------------------------------------------------
 *
 * fence_writers.c
 *		Who writes while a fence is being raised: list them, name them, end
 *		them.
 *
 * Whoever raises stands in the lock's queue, and must not leave it: that would
 * let everybody in.  So those who write for too long are ended by another
 * process, which needs nothing but the lock table.  It looks again and again:
 * the deadlock detector may have let somebody in who was held before, because
 * one of those who ran waited for him.  What it has listed is ended only if the
 * raiser stood in the queue before and after, for whoever has the lock then had
 * it before the raiser could have it.
 *
 * The process is started before the wait, and ended after it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/twophase.h"
#include "access/xact.h"
#include "compat.h"
#include "core/definition.h"
#include "core/worker.h"
#include "cutover/fence.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define AGAIN_MS	100			/* between two looks */
#define IDLE_MS		1000		/* before the time has come */

/* A transaction that has written. */
typedef struct Writer
{
	PGPROC	   *proc;			/* NULL = prepared */
	pid_t		pid;
	LocalTransactionId lxid;	/* its xid if prepared */
} Writer;

/* What the process that ends them is to do; in bgw_extra. */
typedef struct EndOrder
{
	LOCKTAG		tag;			/* what writers hold */
	int			raiser;			/* who waits for it */
	TimestampTz at;				/* not before */
} EndOrder;

StaticAssertDecl(sizeof(EndOrder) <= BGW_EXTRALEN, "EndOrder is too large");

static Writer *noted = NULL;
static int	nnoted = 0;

/* ---- list ---- */

static void
identify(Writer *writer, VirtualTransactionId vxid)
{
	PGPROC	   *proc = vxid_proc(vxid);
	bool		more;

	writer->proc = proc;
	writer->lxid = vxid.localTransactionId;
	writer->pid = 0;
	/* prepared before a crash: that is its xid */
	if (VirtualTransactionIdIsRecoveredPreparedXact(vxid))
		writer->proc = NULL;
	else if (proc != NULL && proc_lxid(proc) == writer->lxid)
		writer->pid = proc->pid;
	else
	{
		/* prepared: it has its former session's number, nobody or another one */
		writer->proc = NULL;
		writer->lxid = TwoPhaseGetXidByVirtualXID(vxid, &more);
	}
}

/*
 * Is it the same transaction still?
 */
static bool
is_running(const Writer *writer)
{
	if (writer->proc == NULL)
		return TransactionIdIsValid(writer->lxid) &&
			TransactionIdIsInProgress(writer->lxid);
	return writer->proc->pid == writer->pid &&
		proc_lxid(writer->proc) == writer->lxid;
}

/*
 * Note who has the lock of a writer now, for fence_describe_writers().  Who
 * waits for it is not one of them.
 */
void
fence_note_writers(const LOCKTAG *tag)
{
	VirtualTransactionId *vxids;
	int			n;

	vxids = GetLockConflicts(tag, ShareLock, &n);
	noted = noted == NULL ?
		MemoryContextAlloc(TopMemoryContext, (n + 1) * sizeof(Writer)) :
		repalloc(noted, (n + 1) * sizeof(Writer));
	for (int i = 0; i < n; i++)
		identify(&noted[i], vxids[i]);
	nnoted = n;
	pfree(vxids);
}

/*
 * Those of them who still write, as text; "" if none does.
 */
char *
fence_describe_writers(void)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < nnoted; i++)
	{
		const Writer *writer = &noted[i];

		if (!is_running(writer))
			continue;
		if (text.len > 0)
			appendStringInfoString(&text, ", ");
		if (writer->proc == NULL)
			appendStringInfo(&text, "prepared transaction %u", writer->lxid);
		else
			appendStringInfo(&text, "process %d", (int) writer->pid);
	}
	return text.data;
}

/* ---- end them ---- */

/*
 * Have a process disconnect, after some ms, all who have the lock of a writer
 * while we wait for ShareLock; until TerminateBackgroundWorker().  Errors: no
 * process is free.
 */
BackgroundWorkerHandle *
fence_end_writers(const LOCKTAG *tag, int after)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;
	EndOrder	order = {.tag = *tag,.raiser = MyProcPid};

	order.at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), after);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	memcpy(worker.bgw_extra, &order, sizeof(order));
	strlcpy(worker.bgw_library_name, BG_EXTENSION,
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "bluegreen_end_writers_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "pg_bluegreen drain", sizeof(worker.bgw_type));
	strlcpy(worker.bgw_name, "pg_bluegreen drain", sizeof(worker.bgw_name));
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free to end transactions that write"),
				 errhint("Raise max_worker_processes.")));
	return handle;
}

/*
 * Does the raiser stand in the queue?
 */
static bool
is_waiting(const EndOrder *order)
{
	PGPROC	   *proc = BackendPidGetProc(order->raiser);
	LWLock	   *lock = LockHashPartitionLock(LockTagHashCode(&order->tag));
	bool		waits;

	if (proc == NULL)
		return false;
	/* its pointer to this lock does not change while we have its partition */
	LWLockAcquire(lock, LW_SHARED);
	waits = proc->waitLock != NULL &&
		memcmp(&proc->waitLock->tag, &order->tag, sizeof(LOCKTAG)) == 0;
	LWLockRelease(lock);
	return waits;
}

static void
end_all(const EndOrder *order)
{
	VirtualTransactionId *vxids;
	int			n;

	if (!is_waiting(order))
		return;
	vxids = GetLockConflicts(&order->tag, ShareLock, &n);
	if (is_waiting(order))
	{
		for (int i = 0; i < n; i++)
		{
			Writer		writer;

			identify(&writer, vxids[i]);
			if (writer.proc != NULL && is_running(&writer))
				(void) kill(writer.pid, SIGTERM);
		}
	}
	pfree(vxids);
}

/*
 * Entry point of the process.
 */
void
bluegreen_end_writers_main(Datum arg)
{
	EndOrder	order;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	BackgroundWorkerUnblockSignals();
	while (BackendPidGetProc(order.raiser) != NULL)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   order.at);

		if (left <= 0)
			end_all(&order);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH,
						 left <= 0 ? AGAIN_MS : Min(left, IDLE_MS),
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	proc_exit(0);
}
