/*-------------------------------------------------------------------------
 *
 * standby.c
 *		Wait for the standbys that the target must not be ahead of.
 *
 * Since version 17 a slot can be synchronized to standbys, so that the stream
 * goes on when one of them is promoted.  That is only true if the target has
 * nothing that the standby lacks.  Core's walsenders see to it: nothing is
 * decoded of a failover slot before the standbys that are named in
 * synchronized_standby_slots have received it.  The stream does the same: its
 * reader does not hand out WAL beyond that (stream/reader.c), and a chunk is
 * committed on the target only when the standbys have its P (copy_run.c), and
 * with it whatever its snapshot saw.
 *
 * Where the slot is no failover slot, or the setting is empty, or the server is
 * older, there is nothing to wait for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "stream/standby.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#define SHOW_AFTER_MS	500
#define WARN_AFTER_MS	1000
#define WARN_AGAIN_MS	60000

static TimestampTz next_warning = 0;	/* 0: not waiting */

/*
 * The stream's worker owns its slot: note for the copy workers whether it is
 * one that is synchronized.  Nobody can change that while it is owned.
 */
void
standby_attach(StreamShared *shared)
{
	bool		failover = slot_is_failover(MyReplicationSlot);

	SpinLockAcquire(&shared->mutex);
	shared->failover = failover;
	SpinLockRelease(&shared->mutex);
	standby_passed(shared);
}

/*
 * Have the standbys received everything before lsn?  Cheap if they have.  The
 * server log gets core's warning if this takes long.
 */
bool
standby_has(StreamShared *shared, XLogRecPtr lsn)
{
	int			level = DEBUG1;

	if (!shared->failover)
		return true;
	if (next_warning != 0 && GetCurrentTimestamp() >= next_warning)
	{
		next_warning = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   WARN_AGAIN_MS);
		level = WARNING;
	}
	if (standbys_have_caught_up(lsn, level))
		return true;
	if (next_warning == 0)
		next_warning = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   WARN_AFTER_MS);
	return false;
}

/*
 * What a slot that is named in the setting keeps us waiting for, or NULL.
 */
static char *
describe_slot(const char *name, XLogRecPtr lsn)
{
	ReplicationSlot *slot = SearchNamedReplicationSlot(name, false);
	XLogRecPtr	received;
	bool		active;

	if (slot == NULL)
		return psprintf("slot \"%s\", which does not exist", name);
	if (SlotIsLogical(slot))
		return psprintf("slot \"%s\", which is no standby's", name);
	SpinLockAcquire(&slot->mutex);
	received = slot->data.restart_lsn;
	active = slot->active_pid != 0;
	SpinLockRelease(&slot->mutex);
	if (received >= lsn)
		return NULL;
	return active ? psprintf("standby \"%s\"", name) :
		psprintf("standby \"%s\", which is not connected", name);
}

/*
 * Name of the first that has not received lsn; empty if there is none.
 */
static void
describe_wait(char *buf, Size size, XLogRecPtr lsn)
{
	List	   *names;
	ListCell   *lc;
	char	   *found = NULL;

	if (!SplitIdentifierString(pstrdup(STANDBY_SLOT_NAMES), ',', &names))
		names = NIL;
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	foreach(lc, names)
	{
		if (found == NULL)
			found = describe_slot(lfirst(lc), lsn);
	}
	LWLockRelease(ReplicationSlotControlLock);
	strlcpy(buf, found ? found : "", size);
}

/*
 * Show in the stream's entry that it waits, and, if it is not only for a
 * moment, for whom.
 */
void
standby_publish(StreamShared *shared, XLogRecPtr lsn)
{
	char		text[sizeof(shared->waits_for)] = "";
	TimestampTz now = GetCurrentTimestamp();

	if (shared->waiting_since != 0 &&
		TimestampDifferenceExceeds(shared->waiting_since, now, SHOW_AFTER_MS))
		describe_wait(text, sizeof(text), lsn);
	SpinLockAcquire(&shared->mutex);
	strlcpy(shared->waits_for, text, sizeof(shared->waits_for));
	if (shared->waiting_since == 0)
		shared->waiting_since = now;
	SpinLockRelease(&shared->mutex);
}

/*
 * The stream waits no longer.
 */
void
standby_passed(StreamShared *shared)
{
	next_warning = 0;
	if (shared->waiting_since == 0)
		return;
	SpinLockAcquire(&shared->mutex);
	shared->waits_for[0] = '\0';
	shared->waiting_since = 0;
	SpinLockRelease(&shared->mutex);
}

/*
 * Wait until the standbys have received lsn; false after the timeout (-1:
 * none).  For a copy worker, which has nothing else to do meanwhile.
 */
bool
standby_wait(StreamShared *shared, XLogRecPtr lsn, long timeout_ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  timeout_ms);
	bool		received;

	while (!(received = standby_has(shared, lsn)))
	{
		if (timeout_ms >= 0 && GetCurrentTimestamp() >= end)
			break;
		worker_check();
		standby_wait_begin();
		if (!standby_has(shared, lsn))
			(void) WaitLatch(MyLatch,
							 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 1000L, PG_WAIT_EXTENSION);
		standby_wait_end();
		ResetLatch(MyLatch);
	}
	next_warning = 0;
	return received;
}
