/*-------------------------------------------------------------------------
 *
 * shared.c
 *		Shared memory: stream entries, table counters, the launcher's latch.
 *
 * Stream entries are an array, so that a background worker can be told its
 * entry by index, and so that a pointer to one stays valid for ever; only
 * what it stands for may change.  Three locks, never held together except in
 * this order:
 *
 *	pg_bluegreen_stream	which entry stands for which slot (in_use, slot_name,
 *						dboid, deployment, direction, creating_pid)
 *	pg_bluegreen_chunk	chunk announcements
 *	pg_bluegreen_table	membership of the table hash
 *
 * Everything else in an entry is under its spinlock, and the counters of a
 * table are atomics.
 *
 * A latch is set after the spinlock has been released: SetLatch may make a
 * system call.  That is safe though its owner may be gone by then, because a
 * latch here is always the procLatch of a PGPROC, which is never freed; at
 * worst a stranger wakes up once for nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "core/event.h"
#include "core/reached.h"
#include "core/settings.h"
#include "core/shared.h"
#include "core/worker.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "stream/own_changes.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#define SLOT_PREFIX "bluegreen_"

typedef struct BlueGreenShared
{
	slock_t		launcher_mutex;
	Latch	   *launcher_latch; /* NULL while no launcher runs */
	Resumed		resumed;		/* by the last worker of schema/resume.c */
	LWLock	   *stream_lock;
	LWLock	   *chunk_lock;
	LWLock	   *table_lock;
	int			nstreams;
	StreamShared streams[FLEXIBLE_ARRAY_MEMBER];
} BlueGreenShared;

const char *const stream_state_names[] = {
	[STREAM_STOPPED] = "stopped",
	[STREAM_STARTING] = "starting",
	[STREAM_COPYING] = "copying",
	[STREAM_STREAMING] = "streaming",
	[STREAM_ERROR] = "error",
	[STREAM_LOST] = "lost"
};

const char *const table_state_names[] = {
	[TABLE_WAITING] = "waiting",
	[TABLE_COPYING] = "copying",
	[TABLE_CATCHING_UP] = "catching up",
	[TABLE_STREAMING] = "streaming"
};

/* Locks that the postmaster sets aside for us, by name. */
static const char *const lock_names[] = {
	"pg_bluegreen_stream",
	"pg_bluegreen_chunk",
	"pg_bluegreen_table",
	"pg_bluegreen_event"
};

static BlueGreenShared *bg_shared = NULL;
static HTAB *bg_tables = NULL;

/* Bytes of the entry array with its header. */
static Size
shared_struct_size(void)
{
	return add_size(offsetof(BlueGreenShared, streams),
					mul_size(sizeof(StreamShared), bg_max_streams));
}

/*
 * Reserve shared memory and locks.  Only from shmem_request_hook.
 */
void
shared_request(void)
{
	RequestAddinShmemSpace(shared_struct_size());
	RequestAddinShmemSpace(hash_estimate_size(bg_max_tables,
											  sizeof(TableShared)));
	RequestAddinShmemSpace(event_shared_size());
	RequestAddinShmemSpace(wake_shared_size());
	reached_request();
	own_request();

	for (int i = 0; i < lengthof(lock_names); i++)
		RequestNamedLWLockTranche(lock_names[i], 1);
}

/* First contents of the entry array. */
static void
shared_struct_init(void)
{
	memset(bg_shared, 0, shared_struct_size());
	SpinLockInit(&bg_shared->launcher_mutex);
	bg_shared->stream_lock = &GetNamedLWLockTranche(lock_names[0])->lock;
	bg_shared->chunk_lock = &GetNamedLWLockTranche(lock_names[1])->lock;
	bg_shared->table_lock = &GetNamedLWLockTranche(lock_names[2])->lock;
	bg_shared->nstreams = bg_max_streams;
	for (int i = 0; i < bg_max_streams; i++)
	{
		SpinLockInit(&bg_shared->streams[i].mutex);
		ConditionVariableInit(&bg_shared->streams[i].changed);
	}
}

/*
 * Create, or after a crash create again, what we keep in shared memory.  Only
 * from shmem_startup_hook.
 */
void
shared_startup(void)
{
	bool		found;
	HASHCTL		info = {0};

	info.keysize = sizeof(TableSharedKey);
	info.entrysize = sizeof(TableShared);

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	bg_shared = ShmemInitStruct("pg_bluegreen", shared_struct_size(), &found);
	if (!found)
		shared_struct_init();
	bg_tables = ShmemInitHash("pg_bluegreen tables", bg_max_tables,
							  bg_max_tables, &info, HASH_ELEM | HASH_BLOBS);
	event_shared_startup();
	wake_shared_startup();
	reached_startup();
	own_startup();
	LWLockRelease(AddinShmemInitLock);
}

/*
 * Is pg_bluegreen in shared_preload_libraries?
 */
bool
shared_is_loaded(void)
{
	return bg_shared != NULL;
}

/*
 * Raise an error unless pg_bluegreen is in shared_preload_libraries.
 */
void
shared_require(void)
{
	if (!shared_is_loaded())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_bluegreen is not in \"shared_preload_libraries\""),
				 errhint("Add \"pg_bluegreen\" to \"shared_preload_libraries\" and restart the server.")));
}

/*
 * Write the slot name of a stream to buf, which has NAMEDATALEN bytes.
 */
void
stream_slot_name(char *buf, Oid dboid, int32 deployment, char direction)
{
	snprintf(buf, NAMEDATALEN, SLOT_PREFIX "%u_%d_%c",
			 dboid, deployment, direction);
}

/*
 * Read decimal digits at *p up to the terminator, without sign or leading
 * zeros, from 1 to max; moves *p behind the terminator.  False if malformed.
 */
static bool
parse_number(const char **p, char terminator, uint32 max, uint32 *result)
{
	const char *c = *p;
	uint64		value = 0;

	if (*c < '1' || *c > '9')
		return false;
	for (; *c >= '0' && *c <= '9'; c++)
	{
		value = value * 10 + (*c - '0');
		if (value > max)
			return false;
	}
	if (*c != terminator)
		return false;

	*result = (uint32) value;
	*p = c + 1;
	return true;
}

/*
 * Take a slot name apart; false, with nothing set, if it is not exactly what
 * stream_slot_name() writes.
 */
bool
stream_parse_slot_name(const char *name, Oid *dboid, int32 *deployment,
					   char *direction)
{
	const char *p = name + strlen(SLOT_PREFIX);
	uint32		db;
	uint32		id;

	if (strncmp(name, SLOT_PREFIX, strlen(SLOT_PREFIX)) != 0 ||
		!parse_number(&p, '_', PG_UINT32_MAX, &db) ||
		!parse_number(&p, '_', PG_INT32_MAX, &id) ||
		(p[0] != 'f' && p[0] != 'b') || p[1] != '\0')
		return false;

	*dboid = (Oid) db;
	*deployment = (int32) id;
	*direction = p[0];
	return true;
}

/*
 * The number of entries, used or not; 0 if we are not preloaded.
 */
int
stream_shared_count(void)
{
	return bg_shared ? bg_shared->nstreams : 0;
}

/*
 * The i-th entry, from 0 to stream_shared_count() - 1; look at its in_use.
 */
StreamShared *
stream_shared_at(int i)
{
	Assert(i >= 0 && i < stream_shared_count());
	return &bg_shared->streams[i];
}

/*
 * The reverse of stream_shared_at().
 */
int
stream_shared_index(const StreamShared *s)
{
	return (int) (s - bg_shared->streams);
}

/* Entry of a slot, or NULL.  Needs the stream lock. */
static StreamShared *
stream_lookup(const char *slot_name)
{
	for (int i = 0; i < bg_shared->nstreams; i++)
	{
		StreamShared *s = &bg_shared->streams[i];

		if (s->in_use && strcmp(s->slot_name, slot_name) == 0)
			return s;
	}
	return NULL;
}

/*
 * The entry of a slot, or NULL if it has none.  Takes the stream lock.
 */
StreamShared *
stream_shared_find(const char *slot_name)
{
	StreamShared *s;

	if (!shared_is_loaded())
		return NULL;
	LWLockAcquire(bg_shared->stream_lock, LW_SHARED);
	s = stream_lookup(slot_name);
	LWLockRelease(bg_shared->stream_lock);
	return s;
}

/*
 * The entry of a deployment of this database: it has one stream here, whatever
 * its direction.  NULL if it has none.  Takes the stream lock.
 */
StreamShared *
stream_of_deployment(int32 deployment)
{
	char		slot_name[NAMEDATALEN];
	StreamShared *s;

	stream_slot_name(slot_name, MyDatabaseId, deployment, 'f');
	s = stream_shared_find(slot_name);
	if (s != NULL)
		return s;
	stream_slot_name(slot_name, MyDatabaseId, deployment, 'b');
	return stream_shared_find(slot_name);
}

/* An entry that stands for nothing, or NULL.  Needs the stream lock. */
static StreamShared *
stream_free_entry(void)
{
	for (int i = 0; i < bg_shared->nstreams; i++)
	{
		if (!bg_shared->streams[i].in_use)
			return &bg_shared->streams[i];
	}
	return NULL;
}

/*
 * Clear an entry.  The spinlock itself is left alone, and held for its part,
 * since somebody may still look (or wait) through an old pointer.
 */
static void
stream_clear(StreamShared *s)
{
	Size		from = offsetof(StreamShared, pid);
	Size		copy = offsetof(StreamShared, chunk_version);

	SpinLockAcquire(&s->mutex);
	memset((char *) s + from, 0, copy - from);
	SpinLockRelease(&s->mutex);

	LWLockAcquire(bg_shared->chunk_lock, LW_EXCLUSIVE);
	memset((char *) s + copy, 0, sizeof(StreamShared) - copy);
	LWLockRelease(bg_shared->chunk_lock);
}

/*
 * Find or make the entry of a slot; NULL if all entries are taken.  Takes the
 * stream lock.
 */
static StreamShared *
stream_enter(const char *slot_name, pid_t creating_pid)
{
	StreamShared *s;

	shared_require();
	LWLockAcquire(bg_shared->stream_lock, LW_EXCLUSIVE);
	s = stream_lookup(slot_name);
	if (s == NULL && (s = stream_free_entry()) != NULL)
	{
		if (!stream_parse_slot_name(slot_name, &s->dboid, &s->deployment,
									&s->direction))
			elog(ERROR, "\"%s\" is not the slot name of a stream", slot_name);
		stream_clear(s);
		s->stats_reset = GetCurrentTimestamp();
		strlcpy(s->slot_name, slot_name, NAMEDATALEN);
		s->in_use = true;
		wake_stream_added(stream_shared_index(s), s->dboid);
	}
	if (s != NULL)
		s->creating_pid = creating_pid;
	LWLockRelease(bg_shared->stream_lock);
	return s;
}

/*
 * The entry of a slot that this process is about to create.  It is kept for as
 * long as this process lives or, once the launcher has seen the slot, for as
 * long as the slot is there.  The launcher starts a worker as soon as it sees
 * the slot, unless stop_requested.  Raises an error if all entries are taken.
 */
StreamShared *
stream_shared_create(const char *slot_name)
{
	StreamShared *s = stream_enter(slot_name, MyProcPid);

	if (s == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no shared memory left for the stream of slot \"%s\"",
						slot_name),
				 errhint("Increase \"bluegreen.max_streams\" and restart the server.")));
	return s;
}

/*
 * The entry of a slot that exists; NULL if all entries are taken.
 */
StreamShared *
stream_shared_adopt(const char *slot_name)
{
	return stream_enter(slot_name, 0);
}

/* Does another living process create this entry's slot just now? */
static bool
stream_is_being_created(const StreamShared *s)
{
	return s->creating_pid != 0 && s->creating_pid != MyProcPid &&
		BackendPidGetProc(s->creating_pid) != NULL;
}

/* Does a copy worker run on this entry?  Takes the chunk lock. */
static bool
stream_has_copy_worker(StreamShared *s)
{
	bool		result = false;

	LWLockAcquire(bg_shared->chunk_lock, LW_SHARED);
	for (int i = 0; i < BG_MAX_COPY_WORKERS && !result; i++)
		result = s->copy[i].pid != 0;
	LWLockRelease(bg_shared->chunk_lock);
	return result;
}

/*
 * Take the entry out of use; false if a worker runs on it.  in_use changes
 * under the spinlock too, so that no worker attaches at the same moment.
 */
static bool
stream_release(StreamShared *s)
{
	if (stream_has_copy_worker(s))
		return false;

	SpinLockAcquire(&s->mutex);
	if (s->pid == 0 && s->verify_pid == 0 && s->switch_pid == 0 &&
		s->watch_pid == 0)
		s->in_use = false;
	SpinLockRelease(&s->mutex);
	return !s->in_use;
}

/*
 * Forget the tables of a deployment if no stream of it is left in this
 * database.  Needs the stream lock.
 */
static void
stream_remove_tables(Oid dboid, int32 deployment)
{
	HASH_SEQ_STATUS scan;
	TableShared *table;

	for (int i = 0; i < bg_shared->nstreams; i++)
	{
		StreamShared *s = &bg_shared->streams[i];

		if (s->in_use && s->dboid == dboid && s->deployment == deployment)
			return;
	}

	LWLockAcquire(bg_shared->table_lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, bg_tables);
	while ((table = hash_seq_search(&scan)) != NULL)
	{
		if (table->key.dboid == dboid && table->deployment == deployment)
			hash_search(bg_tables, &table->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(bg_shared->table_lock);
}

/*
 * Give back the entry of a slot and the counters of its tables.  Returns
 * false, and leaves it, if a worker runs on it or another process is about to
 * create the slot; the launcher tries again later.  Takes all three locks.
 */
bool
stream_shared_remove(const char *slot_name)
{
	StreamShared *s;
	bool		removed = true;

	if (!shared_is_loaded())
		return true;
	LWLockAcquire(bg_shared->stream_lock, LW_EXCLUSIVE);
	s = stream_lookup(slot_name);
	if (s != NULL)
	{
		removed = !stream_is_being_created(s) && stream_release(s);
		if (removed)
		{
			wake_stream_removed(stream_shared_index(s));
			stream_remove_tables(s->dboid, s->deployment);
		}
	}
	LWLockRelease(bg_shared->stream_lock);
	return removed;
}

/*
 * Set the state of a stream and tell who waits for it.  Takes its spinlock.
 */
void
stream_set_state(StreamShared *s, StreamState state)
{
	SpinLockAcquire(&s->mutex);
	s->state = state;
	SpinLockRelease(&s->mutex);
	ConditionVariableBroadcast(&s->changed);
}

/*
 * The target's sessions should know that the stream is at lsn, as soon as it is
 * (a token was given for it).
 */
void
stream_want_told(StreamShared *s, XLogRecPtr lsn)
{
	bool		wake;

	SpinLockAcquire(&s->mutex);
	wake = s->told_lsn < lsn && s->token_lsn < lsn;
	s->token_lsn = Max(s->token_lsn, lsn);
	SpinLockRelease(&s->mutex);
	if (wake)
		stream_wake(s);
}

/*
 * Wake the worker of a stream, if it has one.  Takes the spinlock.
 */
void
stream_wake(StreamShared *s)
{
	Latch	   *latch;

	SpinLockAcquire(&s->mutex);
	latch = s->pid != 0 ? s->latch : NULL;
	SpinLockRelease(&s->mutex);

	if (latch != NULL)
		SetLatch(latch);
}

/*
 * Make the worker of a deployment's stream in this database read its mappings
 * again.  Nothing happens if no stream runs.
 */
void
stream_request_reload(Oid dboid, int32 deployment)
{
	for (int i = 0; i < stream_shared_count(); i++)
	{
		StreamShared *s = &bg_shared->streams[i];
		bool		failed;

		if (!s->in_use || s->dboid != dboid || s->deployment != deployment)
			continue;
		SpinLockAcquire(&s->mutex);
		s->reload = true;
		failed = s->state == STREAM_ERROR;
		if (failed)
		{
			/* what was wrong may be right with the new mappings */
			s->failures = 0;
			s->next_start = 0;
		}
		SpinLockRelease(&s->mutex);
		if (failed)
			stream_set_state(s, STREAM_STARTING);
		stream_wake(s);
		launcher_wake();
	}
}

/* The launcher is going away: nobody is to wake it. */
static void
launcher_detach(int code, Datum arg)
{
	SpinLockAcquire(&bg_shared->launcher_mutex);
	bg_shared->launcher_latch = NULL;
	SpinLockRelease(&bg_shared->launcher_mutex);
}

/*
 * Let launcher_wake() reach this process until it exits.
 */
void
launcher_attach(void)
{
	before_shmem_exit(launcher_detach, (Datum) 0);
	SpinLockAcquire(&bg_shared->launcher_mutex);
	bg_shared->launcher_latch = MyLatch;
	SpinLockRelease(&bg_shared->launcher_mutex);
}

/*
 * For the launcher: what the worker has achieved that lets changes go on.  Takes
 * a spinlock.
 */
void
launcher_set_resumed(Resumed resumed)
{
	if (!shared_is_loaded())
		return;
	SpinLockAcquire(&bg_shared->launcher_mutex);
	bg_shared->resumed = resumed;
	SpinLockRelease(&bg_shared->launcher_mutex);
}

/*
 * The same, and forget it.  Takes a spinlock.
 */
Resumed
launcher_resumed(void)
{
	Resumed		result;

	SpinLockAcquire(&bg_shared->launcher_mutex);
	result = bg_shared->resumed;
	bg_shared->resumed.result = RESUME_NONE;
	SpinLockRelease(&bg_shared->launcher_mutex);
	return result;
}

/*
 * Is there a launcher?  Takes a spinlock.
 */
bool
launcher_is_running(void)
{
	bool		result;

	if (bg_shared == NULL)
		return false;
	SpinLockAcquire(&bg_shared->launcher_mutex);
	result = bg_shared->launcher_latch != NULL;
	SpinLockRelease(&bg_shared->launcher_mutex);
	return result;
}

/*
 * Make the launcher look at slots and entries now.  Safe in any process.
 */
void
launcher_wake(void)
{
	Latch	   *latch;

	if (!shared_is_loaded())
		return;
	SpinLockAcquire(&bg_shared->launcher_mutex);
	latch = bg_shared->launcher_latch;
	SpinLockRelease(&bg_shared->launcher_mutex);

	if (latch != NULL)
		SetLatch(latch);
}

/* Find a table's entry or make it; NULL if all are taken.  Needs the lock. */
static TableShared *
table_enter(const TableSharedKey *key, int32 deployment)
{
	bool		found;
	TableShared *table = hash_search(bg_tables, key, HASH_FIND, NULL);

	if (table != NULL)
		return table;
	/* A shared hash table would grow into other people's spare memory. */
	if (hash_get_num_entries(bg_tables) >= bg_max_tables)
		return NULL;
	table = hash_search(bg_tables, key, HASH_ENTER_NULL, &found);
	if (table == NULL)
		return NULL;

	memset((char *) table + sizeof(TableSharedKey), 0,
		   sizeof(TableShared) - sizeof(TableSharedKey));
	table->deployment = deployment;
	pg_atomic_init_u64(&table->inserts, 0);
	pg_atomic_init_u64(&table->updates, 0);
	pg_atomic_init_u64(&table->deletes, 0);
	pg_atomic_init_u64(&table->truncates, 0);
	pg_atomic_init_u64(&table->filtered, 0);
	pg_atomic_init_u64(&table->conflicts, 0);
	pg_atomic_init_u64(&table->copied_rows, 0);
	pg_atomic_init_u64(&table->copied_bytes, 0);
	pg_atomic_init_u64(&table->copied_chunks, 0);
	return table;
}

/*
 * The counters of a mapping of the current database, made if there are none.
 * The pointer stays valid until the mapping or its stream is removed.  Raises
 * an error when all are taken.  Takes the table lock.
 */
TableShared *
table_shared_get(int32 mapping, int32 deployment)
{
	TableSharedKey key = {.dboid = MyDatabaseId, .mapping = mapping};
	TableShared *table;

	shared_require();
	LWLockAcquire(bg_shared->table_lock, LW_SHARED);
	table = hash_search(bg_tables, &key, HASH_FIND, NULL);
	LWLockRelease(bg_shared->table_lock);
	if (table != NULL)
		return table;

	LWLockAcquire(bg_shared->table_lock, LW_EXCLUSIVE);
	table = table_enter(&key, deployment);
	LWLockRelease(bg_shared->table_lock);
	if (table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no shared memory left for the counters of mapping %d",
						mapping),
				 errhint("Increase \"bluegreen.max_tables\" and restart the server.")));
	return table;
}

/*
 * Forget the counters of a mapping of the current database.  Takes the table
 * lock.
 */
void
table_shared_remove(int32 mapping)
{
	TableSharedKey key = {.dboid = MyDatabaseId, .mapping = mapping};

	if (!shared_is_loaded())
		return;
	LWLockAcquire(bg_shared->table_lock, LW_EXCLUSIVE);
	hash_search(bg_tables, &key, HASH_REMOVE, NULL);
	LWLockRelease(bg_shared->table_lock);
}

/*
 * The lock of all chunk announcements (StreamShared.copy and its neighbours).
 */
LWLock *
shared_chunk_lock(void)
{
	return bg_shared->chunk_lock;
}

/*
 * Copy a text into fixed storage.  One that is too long is cut between two
 * characters: half of one would not be valid in a view.
 */
void
shared_copy_text(char *to, Size size, const char *text)
{
	int			length = pg_mbcliplen(text, strlen(text), size - 1);

	memcpy(to, text, length);
	to[length] = '\0';
}
