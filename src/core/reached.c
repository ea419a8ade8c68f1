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
 * nobody writes to is given away if all are taken.  Who waits on it finds that
 * out and looks for another.
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
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(bluegreen_note_reached);

#define LOCK_NAME "pg_bluegreen_reached"
#define STREAM_NAME_SIZE 96		/* of an origin of ours */

typedef struct ReachedEntry
{
	Oid			dboid;			/* invalid = free */
	char		stream[STREAM_NAME_SIZE];	/* its origin's name */
	pid_t		pid;			/* the session that applies, 0 = none */
	uint64		generation;		/* changes when it is given away */
	pg_atomic_uint64 position;
	ConditionVariable advanced;
} ReachedEntry;

typedef struct ReachedShared
{
	LWLock	   *lock;
	int			n;
	ReachedEntry entries[FLEXIBLE_ARRAY_MEMBER];
} ReachedShared;

static ReachedShared *reached = NULL;
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

/*
 * Reserve shared memory and the lock.  Only from shmem_request_hook.
 */
void
reached_request(void)
{
	RequestAddinShmemSpace(reached_size());
	RequestNamedLWLockTranche(LOCK_NAME, 1);
}

/*
 * Create the shared part.  Called with AddinShmemInitLock held.
 */
void
reached_startup(void)
{
	bool		found;

	reached = ShmemInitStruct("pg_bluegreen reached", reached_size(), &found);
	if (found)
		return;
	memset(reached, 0, reached_size());
	reached->lock = &GetNamedLWLockTranche(LOCK_NAME)->lock;
	reached->n = reached_entries();
	for (int i = 0; i < reached->n; i++)
	{
		pg_atomic_init_u64(&reached->entries[i].position, InvalidXLogRecPtr);
		ConditionVariableInit(&reached->entries[i].advanced);
	}
}

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
 * The entry of a stream, made if there is none, with the position that its
 * origin has now.  Needs the lock, exclusively.
 */
static ReachedEntry *
make_entry(const char *stream, RepOriginId origin)
{
	ReachedEntry *entry = find_entry(stream);

	if (entry != NULL)
		return entry;
	for (int i = 0; i < reached->n; i++)
	{
		ReachedEntry *other = &reached->entries[i];

		if (!OidIsValid(other->dboid))
		{
			entry = other;
			break;
		}
		if (other->pid == 0)
			entry = other;
	}
	Assert(entry != NULL);		/* there are more than sessions can have */
	entry->dboid = MyDatabaseId;
	strlcpy(entry->stream, stream, STREAM_NAME_SIZE);
	entry->pid = 0;
	entry->generation++;
	pg_atomic_write_u64(&entry->position,
						replorigin_get_progress(origin, false));
	ConditionVariableBroadcast(&entry->advanced);	/* others' waiters leave */
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

	if (reached == NULL || length < 2 || length >= STREAM_NAME_SIZE ||
		(strcmp(stream + length - 2, "_f") != 0 &&
		 strcmp(stream + length - 2, "_b") != 0))
		return;
	LWLockAcquire(reached->lock, LW_EXCLUSIVE);
	mine = make_entry(stream, replorigin_session_origin);
	mine->pid = MyProcPid;
	pg_atomic_write_u64(&mine->position,
						replorigin_session_get_progress(false));
	LWLockRelease(reached->lock);
	ConditionVariableBroadcast(&mine->advanced);
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
	ConditionVariableBroadcast(&mine->advanced);
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
entry_to_look_at(const char *stream, RepOriginId origin, uint64 *generation)
{
	ReachedEntry *entry;

	LWLockAcquire(reached->lock, LW_SHARED);
	entry = find_entry(stream);
	if (entry != NULL)
		*generation = entry->generation;
	LWLockRelease(reached->lock);
	if (entry != NULL || origin == InvalidRepOriginId)
		return entry;
	LWLockAcquire(reached->lock, LW_EXCLUSIVE);
	entry = make_entry(stream, origin);
	*generation = entry->generation;
	LWLockRelease(reached->lock);
	return entry;
}

/*
 * How far a stream into this database is; invalid if nobody knows.  Needs a
 * transaction.
 */
XLogRecPtr
reached_position(const char *stream)
{
	uint64		generation;
	ReachedEntry *entry =
		entry_to_look_at(stream, replorigin_by_name(stream, true), &generation);

	return entry == NULL ? InvalidXLogRecPtr :
		(XLogRecPtr) pg_atomic_read_u64(&entry->position);
}

/*
 * Wait until a stream is at lsn: false if that is not so at end (DT_NOEND:
 * never), or if the entry is gone.  Call reached_position() before, in a
 * transaction; here none is needed.
 */
bool
reached_wait(const char *stream, XLogRecPtr lsn, TimestampTz end)
{
	uint64		generation = 0;
	ReachedEntry *entry = entry_to_look_at(stream, InvalidRepOriginId,
										   &generation);
	bool		result = false;

	if (entry == NULL)
		return false;
	ConditionVariablePrepareToSleep(&entry->advanced);
	for (;;)
	{
		uint64		position = pg_atomic_read_u64(&entry->position);
		long		wait = -1;

		pg_read_barrier();
		if (entry->generation != generation)
			break;
		result = position >= lsn;
		if (result)
			break;
		if (end != DT_NOEND)
		{
			wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
			if (wait <= 0)
				break;
		}
		(void) ConditionVariableTimedSleep(&entry->advanced, wait,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return result;
}
