/*-------------------------------------------------------------------------
 *
 * shared.h
 *		What the processes of pg_bluegreen share: one StreamShared per stream,
 *		one TableShared per mapping with counters, and the event ring.
 *
 * A stream's entry is found by its slot name.  The launcher creates entries
 * for the slots that it finds, start() for a slot that it is about to create;
 * an entry is given back when its slot is gone.  Fields are protected by
 * StreamShared.mutex (a spinlock: copy in, copy out, nothing else), except
 * the chunk announcements, which need the LWLock so that announcing and
 * looking up are ordered (see stream/chunk.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SHARED_H
#define BG_SHARED_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/spin.h"

#define BG_MAX_COPY_WORKERS		16
#define BG_BOUND_SIZE			6144	/* a chunk bound as text */
#define BG_SWITCH_LINES			32	/* what a switchover tells its caller */
#define BG_SWITCH_LINE			160

/*
 * State of a stream.  Legal next states:
 */
typedef enum StreamState
{
	STREAM_STOPPED,				/* -> STARTING (start) */
	STREAM_STARTING,			/* -> COPYING, STREAMING, ERROR, LOST, STOPPED */
	STREAM_COPYING,				/* -> STREAMING, ERROR, LOST, STOPPED,
								 * STARTING */
	STREAM_STREAMING,			/* -> COPYING (new table), ERROR, LOST,
								 * STOPPED, STARTING (reload) */
	STREAM_ERROR,				/* -> STARTING (next try), STOPPED */
	STREAM_LOST					/* -> STARTING (start, which looks again) */
} StreamState;

extern const char *const stream_state_names[];	/* 'stopped', 'starting', ... */

/* State of one mapped table.  Legal next states: */
typedef enum TableState
{
	TABLE_WAITING,				/* -> COPYING */
	TABLE_COPYING,				/* -> CATCHING_UP, WAITING (TRUNCATE) */
	TABLE_CATCHING_UP,			/* all chunks done, stream not past the last P
								 * -> STREAMING, WAITING (TRUNCATE) */
	TABLE_STREAMING				/* final */
} TableState;

extern const char *const table_state_names[];	/* 'waiting', 'copying',
												 * 'catching up', 'streaming' */

/* The last error of a stream, in fixed storage. */
typedef struct StreamError
{
	TimestampTz at;				/* 0 = none */
	char		sqlstate[6];
	XLogRecPtr	lsn;			/* commit record of the failing transaction */
	char		relation[NAMEDATALEN * 4 + 8];	/* quotes may double it */
	char		key[512];
	char		message[1024];
	char		detail[512];
	char		hint[512];
} StreamError;

/* A chunk that a copy worker has announced and not yet committed. */
typedef struct CopyShared
{
	pid_t		pid;			/* 0 = free */
	int32		mapping;		/* 0 = no chunk announced */
	int32		building;		/* the mapping whose indexes it builds */
	bool		committing;		/* COMMIT may have been sent: the announcement
								 * outlives its process, see stream/copy.c */
	int64		generation;
	int32		number;			/* chunk number */
	bool		has_lower;		/* lower bound, exclusive */
	bool		has_upper;		/* upper bound, inclusive */
	bool		key_only;		/* recopy of the one key in upper */
	char		lower[BG_BOUND_SIZE];	/* text[] literal */
	char		upper[BG_BOUND_SIZE];
	XLogRecPtr	lsn;			/* P, once it is known and if nobody else
								 * wrote the table when S was taken (patches) */
	TimestampTz started_at;
	int64		planned_rows;	/* about so many will be copied */
	int64		rows;			/* copied so far in this chunk */
} CopyShared;

/* A key that must be copied again (see stream/chunk.c). */
typedef struct RecopyRequest
{
	int32		mapping;		/* 0 = none */
	bool		first;			/* before the next worker decodes anything */
	char		key[BG_BOUND_SIZE];
} RecopyRequest;

typedef struct StreamShared
{
	bool		in_use;
	char		slot_name[NAMEDATALEN];
	Oid			dboid;
	int32		deployment;		/* deployment.id */
	char		direction;		/* 'f' or 'b' */
	pid_t		creating_pid;	/* made by this process, slot not seen yet by
								 * the launcher: not given back while it lives */

	slock_t		mutex;
	ConditionVariable changed;	/* broadcast by stream_set_state(), when pid
								 * is cleared, and when applied_lsn advances;
								 * init with the entry array, not with the
								 * entry */
	/* everything from here on starts at zero in a new entry */
	pid_t		pid;			/* worker, 0 = none */
	struct Latch *latch;		/* its latch while pid != 0 */
	bool		claimed;		/* the worker that was started last came up */
	Oid			owner;			/* of the deployment, as far as is known */
	bool		owner_checked;	/* the next worker may connect as he, see
								 * owner.c */
	StreamState state;
	bool		stop_requested; /* launcher leaves it alone until start() */
	bool		reload;			/* worker should read its mappings again */
	int64		mapping_version;	/* what the worker has compiled */
	XLogRecPtr	window_since;	/* in a window: this side's own changes from
								 * here on are watched; 0 = they are not */

	/* restart and the careful path */
	TimestampTz next_start;		/* not before this */
	int			failures;		/* in a row; counted by the worker, the delay
								 * of the next start by the launcher */
	XLogRecPtr	careful_until;	/* one row at a time up to here */
	XLogRecPtr	again_lsn;		/* in a window: a transaction that was applied
								 * once more */
	int			again_times;	/* in a row, in vain */
	XLogRecPtr	error_until;	/* read when the last error happened: it is
								 * over once that is applied */
	bool		copy_failed;	/* and no chunk was finished since */

	/* positions on the source */
	XLogRecPtr	decoded_lsn;	/* read and decoded up to here */
	XLogRecPtr	applied_lsn;	/* durable on the target up to here */
	XLogRecPtr	confirmed_lsn;	/* slot confirmed up to here */
	XLogRecPtr	told_lsn;		/* the target's sessions know of this */
	XLogRecPtr	token_lsn;		/* ... and should know of this */
	TimestampTz applied_commit_time;	/* source commit time of the last
										 * applied transaction */
	TimestampTz applied_at;		/* when that was acknowledged */
	bool		failover;		/* its slot is synchronized to standbys */
	TimestampTz waiting_since;	/* for a standby; 0 = not */
	char		waits_for[128];	/* which one, see stream/standby.c */
	TimestampTz oldest_pending; /* commit time of the oldest transaction that
								 * is decoded but not applied; 0 = none */

	/* counters since stats_reset */
	TimestampTz stats_reset;
	int64		transactions;
	int64		batches;
	int64		rows;			/* row changes decoded for mapped tables */
	int64		bytes;			/* sent to the target */
	int64		errors;
	int64		restarts;
	int64		skipped;		/* transactions, by skip() */
	int64		careful_batches;
	StreamError error;

	/* verification, see stream/verify.c */
	pid_t		verify_pid;		/* 0 = none */
	TimestampTz verify_at;		/* start a worker then; 0 = not */
	int			verify_failures;	/* since one has come to its end */

	/* in a window: who watches this side's own changes, see stream/watch.c */
	pid_t		watch_pid;		/* 0 = none */
	struct Latch *watch_latch;
	int64		watch_wanted;	/* by these mappings (a version); 0 = not */
	TimestampTz watch_at;		/* he was started last */
	int			watch_delay;	/* ms from then to the next start */

	/* the other side's clock, see clock.c */
	int64		clock_ahead;	/* microseconds, when that was too much */
	TimestampTz clock_ahead_at; /* 0 = never */

	/* switchover or rollback that begins here, see core/switch_row.c */
	pid_t		switch_pid;		/* 0 = none */
	TimestampTz switch_at;		/* start a worker then; 0 = not */
	int			switch_failures;	/* since one has come to its end */

	/* copy: protected by bg_shared->chunk_lock */
	uint64		chunk_version;	/* changes whenever a chunk is announced,
								 * finished or given up */
	CopyShared	copy[BG_MAX_COPY_WORKERS];
	RecopyRequest recopy;
	StreamError copy_error;		/* why a copy worker ended; the stream's
								 * worker takes it over */
	int			copy_failures;	/* of copy workers since a chunk or a table
								 * was finished */
	TimestampTz copy_failed_at; /* the last of them */

	/* steps that are done; protected by mutex */
	int			switch_nlines;
	char		switch_lines[BG_SWITCH_LINES][BG_SWITCH_LINE];
} StreamShared;

/* Counters and state of one mapping, in a shared hash table. */
typedef struct TableSharedKey
{
	Oid			dboid;
	int32		mapping;
} TableSharedKey;

typedef struct TableShared
{
	TableSharedKey key;			/* must be first */
	int32		deployment;
	TableState	state;
	pg_atomic_uint64 inserts;	/* rows sent to the target, by kind */
	pg_atomic_uint64 updates;
	pg_atomic_uint64 deletes;
	pg_atomic_uint64 truncates;
	pg_atomic_uint64 filtered;	/* rows the transform's WHERE left out */
	pg_atomic_uint64 conflicts;
	pg_atomic_uint64 copied_rows;
	pg_atomic_uint64 copied_bytes;
	pg_atomic_uint64 copied_chunks;
	int64		estimated_rows; /* of the source at start of the copy */
	int64		estimated_bytes;	/* with what is stored out of line */
	TimestampTz copy_started_at;
	TimestampTz copy_finished_at;
	XLogRecPtr	copied_until;	/* largest P of its chunks */
	bool		key_wanted;		/* by the stream, if it is aside (see
								 * stream/copy_index.c); chunk_lock */
} TableShared;

extern void shared_request(void);	/* from shmem_request_hook */
extern void shared_startup(void);	/* from shmem_startup_hook */

/*
 * The slot name of a stream, the reverse of it, and its entry.  find returns
 * NULL if there is none; create (by start()) raises an error when all entries
 * are taken.  adopt is the launcher's, for a slot that is there, and returns
 * NULL then.  remove gives the entry and its tables' counters back, unless a
 * worker or another process that is creating the slot uses it.
 */
extern void stream_slot_name(char *buf, Oid dboid, int32 deployment,
							 char direction);
extern bool stream_parse_slot_name(const char *name, Oid *dboid,
								   int32 *deployment, char *direction);
extern StreamShared *stream_shared_find(const char *slot_name);
extern StreamShared *stream_of_deployment(int32 deployment);
extern StreamShared *stream_shared_create(const char *slot_name);
extern StreamShared *stream_shared_adopt(const char *slot_name);
extern bool stream_shared_remove(const char *slot_name);
extern int	stream_shared_count(void);	/* entries, in_use or not */
extern StreamShared *stream_shared_at(int i);
extern int	stream_shared_index(const StreamShared *s);

extern void stream_set_state(StreamShared *s, StreamState state);
extern void stream_wake(StreamShared *s);
extern void stream_want_told(StreamShared *s, XLogRecPtr lsn);
extern void launcher_wake(void);
extern bool launcher_is_running(void);
extern void launcher_attach(void);	/* by the launcher itself */

/* what a worker of schema/resume.c has achieved */
typedef enum ResumeResult
{
	RESUME_NONE,				/* it has not come to its end */
	RESUME_AGAIN,				/* there was no room for a worker */
	RESUME_DONE
} ResumeResult;

typedef struct Resumed
{
	ResumeResult result;
	int32		change;			/* RESUME_AGAIN: that has no worker yet */
	Oid			owner;
} Resumed;

extern void launcher_set_resumed(Resumed resumed);
extern Resumed launcher_resumed(void);
extern void stream_request_reload(Oid dboid, int32 deployment);

extern TableShared *table_shared_get(int32 mapping, int32 deployment);
extern void table_shared_remove(int32 mapping);

extern LWLock *shared_chunk_lock(void);

/* Into fixed storage; what is too long ends with a whole character. */
extern void shared_copy_text(char *to, Size size, const char *text);

/* Is pg_bluegreen in shared_preload_libraries?  require raises the error. */
extern bool shared_is_loaded(void);
extern bool shared_has_streams(void);	/* wake.c */
extern void shared_require(void);

#endif							/* BG_SHARED_H */
