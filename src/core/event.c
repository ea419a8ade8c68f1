/*-------------------------------------------------------------------------
 *
 * event.c
 *		History for the operator: the event ring and its recorder.
 *
 * Who has something to tell often can't write a row: it holds a decoding
 * context, is about to exit with an error, or is in no database at all.  So
 * events go to a ring in shared memory, and a recorder, a background worker
 * that the launcher starts when there is something, writes those of its
 * database to bluegreen.event_log, deletes what is older than
 * bluegreen.event_retention, and ends when it has been idle for a moment (a
 * longer stay would be in the way of DROP DATABASE).
 *
 * If events come faster than they are recorded the oldest is overwritten and
 * counted, and the recorder writes how many were lost.  Entries leave the ring
 * after the transaction that wrote them has committed.  What is in the ring
 * does not survive a crash of the server: it is history, not state.
 *
 * The recorder is a superuser.  It writes to nothing but tables that belong
 * to the extension, so that nobody can make it fire a trigger of his own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "core/catalog.h"
#include "core/event.h"
#include "core/settings.h"
#include "core/shared.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define RING_SIZE			512
#define RECORD_BATCH		64	/* events written in one transaction */
#define RECORDER_LINGER		2000	/* ms idle before the recorder ends */
#define PRUNE_INTERVAL		(60 * 60 * 1000)	/* ms */
#define PRUNE_ROWS			1000	/* rows deleted in one transaction */

typedef struct Event
{
	Oid			dboid;			/* InvalidOid = nothing to record */
	uint64		number;			/* in the order of event_record() */
	int32		deployment;		/* 0 = none */
	EventKind	kind;
	XLogRecPtr	lsn;
	TimestampTz at;
	bool		has_detail;
	char		message[512];
	char		detail[640];
} Event;

/* All fields are protected by event_lock. */
typedef struct EventRing
{
	uint64		next;			/* number of the next event */
	uint64		recorded;		/* events dealt with, for the launcher */
	int			pending;		/* entries with something to record */
	int64		lost;			/* overwritten and not yet told */
	Oid			recorder_dboid;
	Latch	   *recorder_latch; /* NULL = no recorder */
	Event		events[RING_SIZE];	/* event n is at n modulo RING_SIZE */
} EventRing;

const char *const event_kind_names[] = {
	[EVENT_DEFINED] = "defined",
	[EVENT_STARTED] = "started",
	[EVENT_STOPPED] = "stopped",
	[EVENT_COPY_STARTED] = "copy started",
	[EVENT_COPY_RESTARTED] = "copy restarted",
	[EVENT_COPIED] = "copied",
	[EVENT_STREAMING] = "streaming",
	[EVENT_ERROR] = "error",
	[EVENT_CONFLICT] = "conflict",
	[EVENT_SKIPPED] = "skipped",
	[EVENT_LOST] = "lost",
	[EVENT_DROPPED] = "dropped",
	[EVENT_VERIFIED] = "verified",
	[EVENT_REPAIRED] = "repaired",
	[EVENT_SWITCH] = "switch",
	[EVENT_SEQUENCES] = "sequences",
	[EVENT_ROUTERS] = "routers",
	[EVENT_CLOCK] = "clock",
	[EVENT_CHANGE] = "change",
	[EVENT_BLOCKED] = "blocked"
};

static EventRing *ring = NULL;
static LWLock *event_lock = NULL;

/*
 * Bytes of shared memory for the ring.
 */
Size
event_shared_size(void)
{
	return sizeof(EventRing);
}

/*
 * Create the ring.  Called with AddinShmemInitLock held.
 */
void
event_shared_startup(void)
{
	bool		found;

	ring = ShmemInitStruct("pg_bluegreen events", event_shared_size(), &found);
	if (!found)
		memset(ring, 0, event_shared_size());
	event_lock = &GetNamedLWLockTranche("pg_bluegreen_event")->lock;
}

/* Copy text, cut at a character's boundary. */
static void
copy_text(char *dst, Size size, const char *src)
{
	int			len = strlen(src);

	len = pg_mbcliplen(src, len, Min(len, (int) size - 1));
	memcpy(dst, src, len);
	dst[len] = '\0';
}

/* Make e nothing to record.  Needs the event lock. */
static void
event_clear(Event *e)
{
	e->dboid = InvalidOid;
	ring->pending--;
	ring->recorded++;
}

/*
 * Note an event for the history of a database.  May be called in any process
 * and state, except while holding a spinlock or the event lock.  Does nothing
 * in a server that does not preload us.
 */
void
event_record(Oid dboid, int32 deployment, EventKind kind, XLogRecPtr lsn,
			 const char *message, const char *detail)
{
	Event	   *e;
	Latch	   *latch;

	if (ring == NULL || !OidIsValid(dboid))
		return;

	LWLockAcquire(event_lock, LW_EXCLUSIVE);
	e = &ring->events[ring->next % RING_SIZE];
	if (OidIsValid(e->dboid))
	{
		ring->lost++;
		event_clear(e);
	}
	e->dboid = dboid;
	e->number = ring->next++;
	e->deployment = deployment;
	e->kind = kind;
	e->lsn = lsn;
	e->at = GetCurrentTimestamp();
	copy_text(e->message, sizeof(e->message), message);
	e->has_detail = detail != NULL;
	copy_text(e->detail, sizeof(e->detail), detail ? detail : "");
	ring->pending++;
	latch = ring->recorder_dboid == dboid ? ring->recorder_latch : NULL;
	LWLockRelease(event_lock);

	if (latch != NULL)
		SetLatch(latch);
	else
		launcher_wake();
}

/*
 * Find the database of the oldest event that waits to be recorded.  Returns
 * false if there is none.  Takes the event lock.
 */
bool
event_pending_database(Oid *dboid)
{
	bool		found = false;

	LWLockAcquire(event_lock, LW_SHARED);
	if (ring->pending > 0)
	{
		for (int i = 0; i < RING_SIZE && !found; i++)
		{
			Event	   *e = &ring->events[(ring->next + i) % RING_SIZE];

			found = OidIsValid(e->dboid);
			if (found)
				*dboid = e->dboid;
		}
	}
	LWLockRelease(event_lock);
	return found;
}

/*
 * Forget all events of a database.  Takes the event lock.
 */
void
event_discard(Oid dboid)
{
	LWLockAcquire(event_lock, LW_EXCLUSIVE);
	for (int i = 0; i < RING_SIZE; i++)
	{
		if (ring->events[i].dboid == dboid)
			event_clear(&ring->events[i]);
	}
	LWLockRelease(event_lock);
}

/*
 * How many events have left the ring, written or not: a recorder that does not
 * move this has done nothing.  Takes the event lock.
 */
uint64
event_recorded(void)
{
	uint64		result;

	LWLockAcquire(event_lock, LW_SHARED);
	result = ring->recorded;
	LWLockRelease(event_lock);
	return result;
}

/*
 * The OID of one of our own tables, or InvalidOid if the extension is not
 * there or a table of that name does not belong to it.
 */
static Oid
own_table(const char *name)
{
	Oid			extension = get_extension_oid("pg_bluegreen", true);
	Oid			schema = get_namespace_oid("bluegreen", true);
	Oid			relid;

	if (!OidIsValid(extension) || !OidIsValid(schema))
		return InvalidOid;
	relid = get_relname_relid(name, schema);
	if (!OidIsValid(relid) ||
		getExtensionOfObject(RelationRelationId, relid) != extension)
		return InvalidOid;
	return relid;
}

/* Insert one row into event_log.  Needs SPI. */
static void
insert_event(const Event *e)
{
	static const char *const sql =
		"INSERT INTO bluegreen.event_log"
		" (at, deployment, deployment_name, kind, lsn, message, detail)"
		" SELECT $1, $2, (SELECT d.name FROM bluegreen.deployment d"
		" WHERE d.id OPERATOR(pg_catalog.=) $2), $3, $4, $5, $6";
	Oid			types[] = {TIMESTAMPTZOID, INT4OID, TEXTOID, LSNOID, TEXTOID,
	TEXTOID};
	Datum		values[] = {
		TimestampTzGetDatum(e->at),
		Int32GetDatum(e->deployment),
		CStringGetTextDatum(event_kind_names[e->kind]),
		LSNGetDatum(e->lsn),
		CStringGetTextDatum(e->message),
		CStringGetTextDatum(e->detail)
	};
	char		nulls[] = "      ";

	if (e->deployment == 0)
		nulls[1] = 'n';
	if (XLogRecPtrIsInvalid(e->lsn))
		nulls[3] = 'n';
	if (!e->has_detail)
		nulls[5] = 'n';
	if (SPI_execute_with_args(sql, lengthof(types), types, values, nulls,
							  false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert into bluegreen.event_log");
}

/* Like insert_event(), but as the table's owner, and with its own SPI. */
static void
insert_event_as_owner(const Event *e, Oid relid)
{
	Oid			user;
	int			context;
	bool		read_only = XactReadOnly;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(relation_owner(relid),
						   context | SECURITY_LOCAL_USERID_CHANGE);
	if (DefaultXactReadOnly)	/* as catalog_begin() does */
		XactReadOnly = false;
	SPI_connect();
	insert_event(e);
	SPI_finish();
	XactReadOnly = read_only;
	SetUserIdAndSecContext(user, context);
}

/*
 * Write an event in the caller's own transaction, whoever the caller is.
 * Raises an error if the extension is not installed.
 */
void
event_record_local(int32 deployment, EventKind kind, XLogRecPtr lsn,
				   const char *message, const char *detail)
{
	Oid			relid = own_table("event_log");
	bool		pushed = ActivePortal == NULL && !ActiveSnapshotSet();
	Event		e = {0};

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table bluegreen.event_log of extension pg_bluegreen does not exist"),
				 errhint("Use CREATE EXTENSION pg_bluegreen.")));

	e.deployment = deployment;
	e.kind = kind;
	e.lsn = lsn;
	e.at = GetCurrentTimestamp();
	copy_text(e.message, sizeof(e.message), message);
	e.has_detail = detail != NULL;
	copy_text(e.detail, sizeof(e.detail), detail ? detail : "");
	if (pushed)					/* a worker */
		PushActiveSnapshot(GetTransactionSnapshot());
	insert_event_as_owner(&e, relid);
	if (pushed)
		PopActiveSnapshot();
}

/* Start a transaction of the recorder. */
static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, "recording events");
}

/* Commit it. */
static void
commit_transaction(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/*
 * Copy the oldest events of this database, at most RECORD_BATCH, and the
 * number of lost ones.  Returns how many were copied.
 */
static int
peek_events(Event *batch, int64 *lost)
{
	int			n = 0;

	LWLockAcquire(event_lock, LW_SHARED);
	for (int i = 0; i < RING_SIZE && n < RECORD_BATCH; i++)
	{
		Event	   *e = &ring->events[(ring->next + i) % RING_SIZE];

		if (e->dboid == MyDatabaseId)
			batch[n++] = *e;
	}
	*lost = ring->lost;
	LWLockRelease(event_lock);
	return n;
}

/* Take the events out of the ring that were copied, if they are still there. */
static void
release_events(const Event *batch, int n, int64 lost)
{
	LWLockAcquire(event_lock, LW_EXCLUSIVE);
	for (int i = 0; i < n; i++)
	{
		Event	   *e = &ring->events[batch[i].number % RING_SIZE];

		if (OidIsValid(e->dboid) && e->number == batch[i].number)
			event_clear(e);
		else
			ring->lost--;		/* overwritten, but written by us */
	}
	ring->lost -= lost;
	LWLockRelease(event_lock);
}

/* Write that events were lost. */
static void
insert_lost(int64 lost)
{
	Event		e = {0};

	e.kind = EVENT_ERROR;
	e.at = GetCurrentTimestamp();
	snprintf(e.message, sizeof(e.message),
			 "%lld events of this server were lost because they came faster than they could be recorded",
			 (long long) lost);
	insert_event(&e);
}

/*
 * Write one batch of events.  Returns false if there was none.
 */
static bool
record_batch(Event *batch)
{
	int64		lost;
	int			n = peek_events(batch, &lost);

	if (n == 0)
		return false;

	begin_transaction();
	/* Without the extension nobody wants the events. */
	if (OidIsValid(own_table("event_log")))
	{
		for (int i = 0; i < n; i++)
			insert_event(&batch[i]);
		if (lost > 0)
			insert_lost(lost);
	}
	commit_transaction();
	release_events(batch, n, lost);
	return true;
}

/* A table of history, and how to delete its oldest rows. */
typedef struct History
{
	const char *table;
	const char *sql;			/* $1 = delete what is older, $2 = rows */
} History;

#define PRUNE_SQL(table) \
	"DELETE FROM bluegreen." table " WHERE id OPERATOR(pg_catalog.=) ANY" \
	" (ARRAY(SELECT h.id FROM bluegreen." table " h" \
	" WHERE h.at OPERATOR(pg_catalog.<) $1 ORDER BY h.at LIMIT $2))"

static const History histories[] = {
	{"event_log", PRUNE_SQL("event_log")},
	{"conflict_log", PRUNE_SQL("conflict_log")}
};

/* Delete one portion of old rows.  Returns whether there may be more. */
static bool
prune_portion(const History *history)
{
	Oid			types[] = {TIMESTAMPTZOID, INT8OID};
	Datum		values[] = {
		TimestampTzGetDatum(GetCurrentTimestamp() -
							bg_event_retention * (60 * USECS_PER_SEC)),
		Int64GetDatum(PRUNE_ROWS)
	};
	uint64		deleted = 0;

	begin_transaction();
	if (OidIsValid(own_table(history->table)))
	{
		if (SPI_execute_with_args(history->sql, lengthof(types), types, values,
								  NULL, false, 0) != SPI_OK_DELETE)
			elog(ERROR, "could not delete from bluegreen.%s", history->table);
		deleted = SPI_processed;
	}
	commit_transaction();
	return deleted == PRUNE_ROWS;
}

/* Delete what is older than bluegreen.event_retention, if it is time to. */
static void
prune_history(void)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (bg_event_retention == 0 ||
		!TimestampDifferenceExceeds(last, now, PRUNE_INTERVAL))
		return;
	last = now;

	for (int i = 0; i < lengthof(histories); i++)
	{
		while (prune_portion(&histories[i]))
			worker_check();
	}
}

/* At exit: nobody is to wake us; the launcher sees to what is left. */
static void
recorder_detach(int code, Datum arg)
{
	LWLockAcquire(event_lock, LW_EXCLUSIVE);
	ring->recorder_latch = NULL;
	ring->recorder_dboid = InvalidOid;
	LWLockRelease(event_lock);
}

/* Let event_record() wake this process. */
static void
recorder_attach(Oid dboid)
{
	before_shmem_exit(recorder_detach, (Datum) 0);
	LWLockAcquire(event_lock, LW_EXCLUSIVE);
	ring->recorder_latch = MyLatch;
	ring->recorder_dboid = dboid;
	LWLockRelease(event_lock);
}

/*
 * Wait for more events.  Returns false if none came, or if those of another
 * database wait for their recorder.
 */
static bool
recorder_wait(void)
{
	static uint32 wait_event = 0;
	Oid			other;
	int			events;

	if (event_pending_database(&other))
		return other == MyDatabaseId;
	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("BluegreenRecorder");

	events = WaitLatch(MyLatch,
					   WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					   RECORDER_LINGER, wait_event);
	ResetLatch(MyLatch);
	return (events & WL_LATCH_SET) != 0;
}

/*
 * Main function of the recorder; arg is the database's OID.
 */
void
bluegreen_recorder_main(Datum arg)
{
	Oid			dboid = DatumGetObjectId(arg);
	Event	   *batch;

	worker_start(dboid, InvalidOid, "bluegreen recorder");
	recorder_attach(dboid);
	batch = MemoryContextAlloc(TopMemoryContext, sizeof(Event) * RECORD_BATCH);

	do
	{
		worker_check();
		while (record_batch(batch))
			worker_check();
		prune_history();
	} while (recorder_wait());

	proc_exit(0);
}
