/*-------------------------------------------------------------------------
 *
 * reached.c
 *		On a target: how far a stream has come, as others can see it, for who
 *		waits until it has come so far.
 *
 * A session that applies publishes its position from its commit callback, and
 * wakes who waits.  The progress of the replication origin would not do: it is
 * advanced before others can see what was committed, for long if the commit
 * waits for a standby.
 *
 * The progress also tells of transactions with rows only.  What the source has
 * read and found nothing in, it says when somebody asks for that: see
 * bluegreen.note_reached() and tell_reached() in stream/reader.c.
 *
 * There is one entry for each stream that had a session here since the server
 * was started, or that somebody has waited for.  Its position is that of the
 * origin to begin with: of a session that takes it over, of which all that was
 * committed can be seen; and if there is no entry there has been no session.
 * Entries are found under the lock; what is in one is read without.  One that
 * nobody writes to is given away if all are taken, at last one that somebody
 * waits on, who finds that out and looks for another.
 *
 * Who waits notes his position in an array with a place for each process, and
 * the least of them in the entry.  A commit that reaches that one looks who is
 * to be woken, and wakes nobody else: however many wait for positions that will
 * never come, they cost the stream nothing.  No wake-up is lost: who waits notes
 * what he wants, then looks at the position; the commit publishes the position,
 * then looks at what is wanted; with full barriers in between.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "core/reached.h"
#include "core/settings.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "replication/origin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(bluegreen_note_reached);

#define LOCK_NAME "pg_bluegreen_reached"
#define NOTHING_WANTED PG_UINT64_MAX

typedef struct ReachedEntry
{
	Oid			dboid;			/* invalid = free */
	char		stream[REACHED_NAME_SIZE];	/* its origin's name */
	pid_t		pid;			/* the session that applies, 0 = none */
	pg_atomic_uint64 generation;	/* changes when it is given away */
	pg_atomic_uint64 position;
	pg_atomic_uint64 wanted;	/* no position before it is waited for */
} ReachedEntry;

/* What a process waits for. */
typedef struct ReachedWaiter
{
	pg_atomic_uint64 lsn;		/* invalid = nothing */
	pg_atomic_uint32 entry;		/* its number */
} ReachedWaiter;

typedef struct ReachedShared
{
	LWLock	   *lock;
	int			n;
	ReachedEntry entries[FLEXIBLE_ARRAY_MEMBER];
} ReachedShared;

static ReachedShared *reached = NULL;
static ReachedWaiter *waiters = NULL;	/* MaxBackends, as PGPROCs */
static ReachedEntry *mine = NULL;	/* of the stream of this session */

/*
 * A session has one origin, and a server so many of them at a time; the rest is
 * for those that are only waited for.
 */
static int
reached_entries(void)
{
	return max_origin_sessions() + bg_max_streams;
}

static Size
reached_size(void)
{
	return add_size(offsetof(ReachedShared, entries),
					mul_size(sizeof(ReachedEntry), reached_entries()));
}

static Size
waiters_size(void)
{
	return mul_size(sizeof(ReachedWaiter), MaxBackends);
}

/*
 * Reserve shared memory and the lock.  Only from shmem_request_hook.
 */
void
reached_request(void)
{
	RequestAddinShmemSpace(reached_size());
	RequestAddinShmemSpace(waiters_size());
	RequestNamedLWLockTranche(LOCK_NAME, 1);
}

/*
 * Create the shared part.  Called with AddinShmemInitLock held.
 */
void
reached_startup(void)
{
	bool		found;

	waiters = ShmemInitStruct("pg_bluegreen reached waiters", waiters_size(),
							  &found);
	reached = ShmemInitStruct("pg_bluegreen reached", reached_size(), &found);
	if (found)
		return;
	memset(reached, 0, reached_size());
	reached->lock = &GetNamedLWLockTranche(LOCK_NAME)->lock;
	reached->n = reached_entries();
	for (int i = 0; i < reached->n; i++)
	{
		pg_atomic_init_u64(&reached->entries[i].generation, 0);
		pg_atomic_init_u64(&reached->entries[i].position, InvalidXLogRecPtr);
		pg_atomic_init_u64(&reached->entries[i].wanted, NOTHING_WANTED);
	}
	for (int i = 0; i < MaxBackends; i++)
	{
		pg_atomic_init_u64(&waiters[i].lsn, InvalidXLogRecPtr);
		pg_atomic_init_u32(&waiters[i].entry, 0);
	}
}

/* ---- who is woken ---- */

/* Somebody waits for a position. */
static void
want(ReachedEntry *entry, XLogRecPtr lsn)
{
	uint64		wanted = pg_atomic_read_u64(&entry->wanted);

	while (lsn < wanted)
	{
		if (pg_atomic_compare_exchange_u64(&entry->wanted, &wanted, lsn))
			break;
	}
}

/*
 * Wake who waits for a position up to this one.  Must not fail.
 */
static void
wake_waiters(ReachedEntry *entry, XLogRecPtr position)
{
	pg_memory_barrier();
	if (pg_atomic_read_u64(&entry->wanted) > position)
		return;
	pg_atomic_exchange_u64(&entry->wanted, NOTHING_WANTED);
	for (int i = 0; i < MaxBackends; i++)
	{
		XLogRecPtr	lsn = pg_atomic_read_u64(&waiters[i].lsn);

		if (XLogRecPtrIsInvalid(lsn) ||
			pg_atomic_read_u32(&waiters[i].entry) != entry - reached->entries)
			continue;
		if (lsn <= position)
			SetLatch(&ProcGlobal->allProcs[i].procLatch);
		else
			want(entry, lsn);
	}
}

/* ---- entries ---- */

static bool
is_entry_of(const ReachedEntry *entry, const char *stream)
{
	return entry->dboid == MyDatabaseId &&
		strcmp(entry->stream, stream) == 0;
}

/*
 * The entry of a stream, or NULL.  Needs the lock.
 */
static ReachedEntry *
find_entry(const char *stream)
{
	for (int i = 0; i < reached->n; i++)
	{
		if (is_entry_of(&reached->entries[i], stream))
			return &reached->entries[i];
	}
	return NULL;
}

/*
 * An entry that can be given to another stream: a free one, else one that
 * nobody writes to, and if possible nobody waits on.
 */
static ReachedEntry *
entry_to_give_away(void)
{
	ReachedEntry *result = NULL;

	for (int i = 0; i < reached->n; i++)
	{
		ReachedEntry *entry = &reached->entries[i];

		if (!OidIsValid(entry->dboid))
			return entry;
		if (entry->pid != 0)
			continue;
		if (result == NULL ||
			pg_atomic_read_u64(&entry->wanted) == NOTHING_WANTED)
			result = entry;
	}
	Assert(result != NULL);		/* there are more than sessions can have */
	return result;
}

/*
 * The entry of a stream, made if there is none, with the position that its
 * origin has now.  Needs the lock, exclusively.
 */
static ReachedEntry *
make_entry(const char *stream, RepOriginId origin)
{
	ReachedEntry *entry = find_entry(stream);

	if (entry != NULL)
		return entry;
	entry = entry_to_give_away();
	entry->dboid = MyDatabaseId;
	strlcpy(entry->stream, stream, REACHED_NAME_SIZE);
	entry->pid = 0;
	/* before the position, for who looks at it without the lock */
	pg_atomic_fetch_add_u64(&entry->generation, 1);
	pg_atomic_write_u64(&entry->position,
						replorigin_get_progress(origin, false));
	wake_waiters(entry, NOTHING_WANTED);	/* those of the other stream leave */
	return entry;
}

/* ---- the session that applies ---- */

static void
detach(int code, Datum arg)
{
	LWLockAcquire(reached->lock, LW_EXCLUSIVE);
	if (mine->pid == MyProcPid)
		mine->pid = 0;
	LWLockRelease(reached->lock);
}

/*
 * This session has become the one that advances the origin of a stream.  Does
 * nothing for the origins of copy workers, which nobody waits for.
 */
void
reached_attach(const char *stream)
{
	static bool registered = false;
	size_t		length = strlen(stream);

	if (reached == NULL || length < 2 || length >= REACHED_NAME_SIZE ||
		(strcmp(stream + length - 2, "_f") != 0 &&
		 strcmp(stream + length - 2, "_b") != 0))
		return;
	LWLockAcquire(reached->lock, LW_EXCLUSIVE);
	mine = make_entry(stream, replorigin_session_origin);
	mine->pid = MyProcPid;
	pg_atomic_write_u64(&mine->position,
						replorigin_session_get_progress(false));
	LWLockRelease(reached->lock);
	wake_waiters(mine, pg_atomic_read_u64(&mine->position));
	if (!registered)
		before_shmem_exit(detach, (Datum) 0);
	registered = true;
}

/*
 * Everything of this session's stream up to lsn can be seen.  From a commit
 * callback, too: must not fail.
 */
void
reached_commit(XLogRecPtr lsn)
{
	if (mine == NULL || pg_atomic_read_u64(&mine->position) >= lsn)
		return;
	pg_atomic_write_u64(&mine->position, lsn);
	wake_waiters(mine, lsn);
}

/*
 * bluegreen.note_reached(lsn pg_lsn): there is nothing up to lsn on the source
 * that this session's stream has not committed here.
 */
Datum
bluegreen_note_reached(PG_FUNCTION_ARGS)
{
	if (replorigin_session_origin == InvalidRepOriginId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no replication origin is configured")));
	reached_commit(PG_GETARG_LSN(0));
	PG_RETURN_VOID();
}

/* ---- those who wait ---- */

/*
 * The entry to wait on.  NULL if the stream has no origin here.
 */
static ReachedEntry *
entry_to_look_at(const ReachedWatch *watch, uint64 *generation)
{
	ReachedEntry *entry;

	LWLockAcquire(reached->lock, LW_SHARED);
	entry = find_entry(watch->stream);
	if (entry != NULL)
		*generation = pg_atomic_read_u64(&entry->generation);
	LWLockRelease(reached->lock);
	if (entry != NULL || watch->origin == InvalidRepOriginId)
		return entry;
	LWLockAcquire(reached->lock, LW_EXCLUSIVE);
	entry = make_entry(watch->stream, watch->origin);
	*generation = pg_atomic_read_u64(&entry->generation);
	LWLockRelease(reached->lock);
	return entry;
}

/*
 * Which stream into this database is to be watched.  Needs a transaction.
 */
void
reached_watch(ReachedWatch *watch, const char *stream)
{
	strlcpy(watch->stream, stream, REACHED_NAME_SIZE);
	watch->origin = replorigin_by_name(watch->stream, true);
}

/*
 * How far a stream is; invalid if nobody knows.
 */
XLogRecPtr
reached_position(const ReachedWatch *watch)
{
	uint64		generation;
	ReachedEntry *entry = entry_to_look_at(watch, &generation);

	return entry == NULL ? InvalidXLogRecPtr :
		(XLogRecPtr) pg_atomic_read_u64(&entry->position);
}

/* Also when this process ends. */
static void
stop_waiting(int code, Datum arg)
{
	pg_atomic_write_u64(&waiters[MyProc - ProcGlobal->allProcs].lsn,
						InvalidXLogRecPtr);
}

static void
begin_waiting(ReachedEntry *entry, XLogRecPtr lsn)
{
	static bool registered = false;
	ReachedWaiter *waiter = &waiters[MyProc - ProcGlobal->allProcs];

	if (!registered)
		before_shmem_exit(stop_waiting, (Datum) 0);
	registered = true;
	pg_atomic_write_u32(&waiter->entry, entry - reached->entries);
	pg_atomic_write_u64(&waiter->lsn, lsn);
	pg_memory_barrier();
	want(entry, lsn);
	pg_memory_barrier();
}

/*
 * Wait for the latch, at most until end: false if that is over.
 */
static bool
sleep_until(TimestampTz end)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		wait = -1;

	if (end != DT_NOEND)
	{
		wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (wait <= 0)
			return false;
		events |= WL_TIMEOUT;
	}
	(void) WaitLatch(MyLatch, events, wait, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return true;
}

static XLogRecPtr
wait_for_position(const ReachedWatch *watch, XLogRecPtr lsn, TimestampTz end)
{
	XLogRecPtr	position = InvalidXLogRecPtr;

	do
	{
		uint64		generation = 0;
		ReachedEntry *entry = entry_to_look_at(watch, &generation);

		if (entry == NULL)
			break;
		begin_waiting(entry, lsn);
		position = pg_atomic_read_u64(&entry->position);
		pg_read_barrier();
		if (pg_atomic_read_u64(&entry->generation) != generation)
		{
			/* another stream's, maybe since before it would have woken us */
			position = InvalidXLogRecPtr;
			SetLatch(MyLatch);
		}
		else if (position >= lsn)
			break;
	} while (sleep_until(end));
	return position;
}

/*
 * Wait until a stream is at lsn, or until end (DT_NOEND: for ever); returns how
 * far it is then.  Needs no transaction.
 */
XLogRecPtr
reached_wait(const ReachedWatch *watch, XLogRecPtr lsn, TimestampTz end)
{
	XLogRecPtr	result;

	PG_TRY();
	{
		result = wait_for_position(watch, lsn, end);
	}
	PG_FINALLY();
	{
		stop_waiting(0, (Datum) 0);
	}
	PG_END_TRY();
	return result;
}
