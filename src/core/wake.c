/*-------------------------------------------------------------------------
 *
 * wake.c
 *		A commit wakes the stream workers of its database.
 *
 * No polling on the hot path: every backend's commit callback publishes where
 * its commit record ends and sets the latch of workers that wait for WAL.
 *
 * The callback runs in every commit of every database of the server, so what
 * it touches is kept in one or two cache lines of its own: without any stream
 * it reads one counter, and with busy streams one flag each.
 *
 * The commit callback also fires for transactions that wrote nothing, and
 * COMMIT PREPARED has no transaction id there, so neither the event nor an
 * xid tells whether something was committed.  XactLastCommitEnd does: it moves
 * exactly when this backend wrote WAL.
 *
 * An asynchronous commit is not flushed yet when we publish it, and nobody
 * reports when it is.  So the worker takes wake_last_commit() as the position
 * that it has to see flushed, and flushes it itself if the WAL writer takes
 * its time.
 *
 * No wake-up is lost: the worker raises its flag, then looks at the published
 * position; the committer publishes, then looks at the flag; and the atomic
 * operations in between are full barriers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "access/xact.h"
#include "core/settings.h"
#include "core/shared.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "storage/shmem.h"

/* What a commit looks at for one stream; index as in the entry array. */
typedef struct WakeEntry
{
	pg_atomic_uint32 waiting;	/* the worker waits for WAL */
	Oid			dboid;
} WakeEntry;

typedef struct WakeShared
{
	pg_atomic_uint32 nstreams;	/* entries in use */
	pg_atomic_uint64 last_commit;
	WakeEntry	entry[FLEXIBLE_ARRAY_MEMBER];
} WakeShared;

static WakeShared *wake_shared = NULL;

/* XactLastCommitEnd at this backend's last callback */
static XLogRecPtr last_seen = InvalidXLogRecPtr;

/*
 * Bytes of shared memory that waking needs.
 */
Size
wake_shared_size(void)
{
	return add_size(offsetof(WakeShared, entry),
					mul_size(sizeof(WakeEntry), bg_max_streams));
}

/*
 * Create the shared part.  Called with AddinShmemInitLock held.
 */
void
wake_shared_startup(void)
{
	bool		found;

	wake_shared = ShmemInitStruct("pg_bluegreen wake", wake_shared_size(),
								  &found);
	if (found)
		return;
	pg_atomic_init_u32(&wake_shared->nstreams, 0);
	pg_atomic_init_u64(&wake_shared->last_commit, 0);
	for (int i = 0; i < bg_max_streams; i++)
	{
		pg_atomic_init_u32(&wake_shared->entry[i].waiting, 0);
		wake_shared->entry[i].dboid = InvalidOid;
	}
}

/* Raise the published position to at least lsn. */
static void
publish(XLogRecPtr lsn)
{
	uint64		old = pg_atomic_read_u64(&wake_shared->last_commit);

	while (old < lsn)
	{
		if (pg_atomic_compare_exchange_u64(&wake_shared->last_commit,
										   &old, lsn))
			break;
	}
}

/*
 * A stream entry was made.  Commits were not published while there was no
 * stream, so everything in WAL so far counts as one.  Needs the stream lock.
 */
void
wake_stream_added(int index, Oid dboid)
{
	WakeEntry  *entry = &wake_shared->entry[index];

	pg_atomic_write_u32(&entry->waiting, 0);
	entry->dboid = dboid;
	pg_atomic_fetch_add_u32(&wake_shared->nstreams, 1);
	publish(GetXLogInsertEndRecPtr());
}

/*
 * A stream entry was given back.  Needs the stream lock.
 */
void
wake_stream_removed(int index)
{
	WakeEntry  *entry = &wake_shared->entry[index];

	pg_atomic_fetch_sub_u32(&wake_shared->nstreams, 1);
	entry->dboid = InvalidOid;
	pg_atomic_write_u32(&entry->waiting, 0);
}

/*
 * The worker of s is about to wait for WAL.  Look at wake_last_commit() after
 * this and before waiting.
 */
void
wake_before_wait(StreamShared *s)
{
	WakeEntry  *entry = &wake_shared->entry[stream_shared_index(s)];

	pg_atomic_exchange_u32(&entry->waiting, 1);
}

/*
 * The worker of s goes on; commits need not set its latch.
 */
void
wake_after_wait(StreamShared *s)
{
	WakeEntry  *entry = &wake_shared->entry[stream_shared_index(s)];

	pg_atomic_write_u32(&entry->waiting, 0);
}

/*
 * The largest commit position that a backend has published.  It may not be
 * flushed yet, but it is in WAL, so XLogFlush() up to it is allowed.
 */
XLogRecPtr
wake_last_commit(void)
{
	return (XLogRecPtr) pg_atomic_read_u64(&wake_shared->last_commit);
}

/* Set the latches of this database's workers that wait. */
static void
wake_waiting(void)
{
	int			nstreams = stream_shared_count();

	for (int i = 0; i < nstreams; i++)
	{
		WakeEntry  *entry = &wake_shared->entry[i];

		if (entry->dboid != MyDatabaseId ||
			pg_atomic_read_u32(&entry->waiting) == 0)
			continue;
		/* One of many committers at a time does it. */
		if (pg_atomic_exchange_u32(&entry->waiting, 0) != 0)
			stream_wake(stream_shared_at(i));
	}
}

/*
 * Is there any stream on this server?  Cheap, no lock.
 */
bool
shared_has_streams(void)
{
	return wake_shared != NULL &&
		pg_atomic_read_u32(&wake_shared->nstreams) > 0;
}

/*
 * Transaction callback: publish a commit that wrote WAL.  Runs after the
 * transaction has left the proc array, with interrupts held; must not fail.
 */
static void
wake_at_commit(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT || XactLastCommitEnd == last_seen)
		return;
	last_seen = XactLastCommitEnd;
	if (!shared_has_streams())
		return;

	publish(last_seen);
	pg_memory_barrier();
	wake_waiting();
}

/*
 * Register the commit callback; once per process, from _PG_init.
 */
void
wake_register(void)
{
	RegisterXactCallback(wake_at_commit, NULL);
}
