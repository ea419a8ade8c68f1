/*-------------------------------------------------------------------------
 *
 * session_purge.c
 *		Expired sessions are removed in the background, in small batches; and
 *		what is counted.
 *
 * Whoever writes a session looks whether it is time again, and has a worker
 * started.  So a database without sessions has no worker, nothing must be set
 * up, and where nobody writes nothing grows.  The worker ends when there is
 * nothing left to remove, or this side is closed.
 *
 * A row is kept for bluegreen.session_retention after it expired: a tombstone
 * is needed for as long as the other side's changes can be under way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "app/adopt.h"
#include "app/session.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "core/settings.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_expire_sessions);
PG_FUNCTION_INFO_V1(bluegreen_session_state);

#define LOCK_NAME "pg_bluegreen_session"
#define MAX_DATABASES 1024
#define PURGE_ROWS 500			/* in one transaction */

/* Of a database that has sessions. */
typedef struct SessionShared
{
	Oid			dboid;			/* hash key, must be first */
	pg_atomic_uint64 purge_at;	/* the next time, a TimestampTz */
	pg_atomic_uint64 counters[SESSION_COUNTERS];
} SessionShared;

static LWLock *session_lock = NULL;
static HTAB *databases = NULL;
static SessionShared *mine = NULL;	/* entries stay for ever */

/*
 * Reserve shared memory and the lock.  Only from shmem_request_hook.
 */
void
session_request(void)
{
	RequestAddinShmemSpace(hash_estimate_size(MAX_DATABASES,
											  sizeof(SessionShared)));
	RequestNamedLWLockTranche(LOCK_NAME, 1);
}

/*
 * Create the shared part.  Only from shmem_startup_hook.
 */
void
session_startup(void)
{
	HASHCTL		info = {
		.keysize = sizeof(Oid),.entrysize = sizeof(SessionShared)
	};

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	databases = ShmemInitHash("pg_bluegreen sessions", 16, MAX_DATABASES,
							  &info, HASH_ELEM | HASH_BLOBS);
	session_lock = &GetNamedLWLockTranche(LOCK_NAME)->lock;
	LWLockRelease(AddinShmemInitLock);
}

/*
 * This database's entry; NULL if the library is not preloaded, or there are
 * too many.
 */
static SessionShared *
session_shared(void)
{
	bool		found;

	if (mine != NULL || databases == NULL)
		return mine;
	LWLockAcquire(session_lock, LW_EXCLUSIVE);
	mine = hash_search(databases, &MyDatabaseId, HASH_ENTER_NULL, &found);
	if (mine != NULL && !found)
	{
		pg_atomic_init_u64(&mine->purge_at, 0);
		for (int i = 0; i < SESSION_COUNTERS; i++)
			pg_atomic_init_u64(&mine->counters[i], 0);
	}
	LWLockRelease(session_lock);
	return mine;
}

void
session_count(SessionCounter counter, int64 n)
{
	SessionShared *shared = session_shared();

	if (shared != NULL)
		pg_atomic_fetch_add_u64(&shared->counters[counter], n);
}

/* ---- when ---- */

static void
start_worker(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	strlcpy(worker.bgw_library_name, BG_EXTENSION,
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "bluegreen_session_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "pg_bluegreen session", sizeof(worker.bgw_type));
	strlcpy(worker.bgw_name, "pg_bluegreen session", sizeof(worker.bgw_name));
	/* without room for one: the next time */
	(void) RegisterDynamicBackgroundWorker(&worker, NULL);
}

/*
 * Sessions have been written: is it time to look for expired ones?  One of many
 * at a time has the worker started.
 */
void
session_note_write(void)
{
	SessionShared *shared = session_shared();
	TimestampTz now = GetCurrentTimestamp();
	uint64		due;

	if (shared == NULL || bg_session_purge_interval == 0)
		return;
	due = pg_atomic_read_u64(&shared->purge_at);
	if ((TimestampTz) due > now)
		return;
	now = TimestampTzPlusMilliseconds(now, bg_session_purge_interval);
	if (pg_atomic_compare_exchange_u64(&shared->purge_at, &due, (uint64) now))
		start_worker();
}

/* ---- what ---- */

/* Of one adopted table. */
typedef struct TombstonePurge
{
	char	   *table;			/* quoted */
	Oid			owner;
	int64		max_rows;
	int64		removed;
} TombstonePurge;

static void
purge_table(void *arg)
{
	TombstonePurge *p = arg;
	Oid			userid;
	int			sec_context;

	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(p->owner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);
	p->removed = catalog_run(psprintf("DELETE FROM %s WHERE ctid = ANY "
									  "(ARRAY(SELECT ctid FROM %s WHERE "
									  STORE_UNTIL " < clock_timestamp() - "
									  "make_interval(secs => %d) LIMIT "
									  INT64_FORMAT "))", p->table, p->table,
									  bg_session_retention, p->max_rows),
							 NULL, SPI_OK_DELETE);
	SetUserIdAndSecContext(userid, sec_context);
}

/*
 * Remove tombstones of adopted tables (adopt.c), as the owner of each; returns
 * how many.  An error of one, which may be its owner's, does not keep the
 * others from it.  Within catalog_begin().
 */
static int64
purge_tombstones(int64 max_rows)
{
	uint64		n;
	int64		removed = 0;
	SPITupleTable *tables;

	n = catalog_run("SELECT c.relowner, format('%I.%I', n.nspname, c.relname) "
					"FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
					"JOIN pg_namespace n ON n.oid = c.relnamespace "
					"WHERE t.tgfoid = 'bluegreen.session_gone'::regproc", NULL,
					SPI_OK_SELECT);
	tables = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		TombstonePurge p = {.max_rows = max_rows};
		ErrorData  *error;

		p.table = SPI_getvalue(tables->vals[i], tables->tupdesc, 2);
		p.owner = DatumGetObjectId(SPI_getbinval(tables->vals[i],
												 tables->tupdesc, 1, &isnull));
		error = attempt_or_cancel(purge_table, &p);
		if (error != NULL)
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("could not remove tombstones of sessions from table %s: %s",
							p.table, error->message)));
		removed += p.removed;
	}
	return removed;
}

/*
 * Remove some rows; returns how many.  Rows that somebody has locked are left
 * for another time.
 */
static int64
purge(int64 max_rows)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int64		removed;

	catalog_begin(&access);
	catalog_arg(&args, INT8OID, Int64GetDatum(max_rows));
	catalog_arg_int4(&args, bg_session_retention);
	removed = catalog_run("DELETE FROM bluegreen.session WHERE id = ANY (ARRAY("
						  "SELECT id FROM bluegreen.session "
						  "WHERE expires_at < clock_timestamp() "
						  "- make_interval(secs => $2) "
						  "ORDER BY expires_at LIMIT $1 "
						  "FOR UPDATE SKIP LOCKED))", &args, SPI_OK_DELETE);
	removed += purge_tombstones(max_rows);
	catalog_end(&access);
	session_count(SESSION_PURGED, removed);
	return removed;
}

/*
 * bluegreen.expire_sessions(max_rows bigint) returns bigint: remove sessions
 * that have been expired for long enough now; returns how many.
 */
Datum
bluegreen_expire_sessions(PG_FUNCTION_ARGS)
{
	require_argument(fcinfo, 0, "max_rows");
	if (PG_GETARG_INT64(0) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must not be negative")));
	PG_RETURN_INT64(purge(PG_GETARG_INT64(0)));
}

/*
 * Is this side closed, or the extension gone?  Nothing is to be written then.
 */
static bool
is_closed(void)
{
	CatalogAccess access;
	bool		result;

	if (!OidIsValid(get_namespace_oid(BG_SCHEMA, true)) ||
		!OidIsValid(get_relname_relid("session",
									  get_namespace_oid(BG_SCHEMA, true))))
		return true;
	catalog_begin(&access);
	result = catalog_run("SELECT FROM bluegreen.fence WHERE state IN "
						 "('in_doubt', 'closed', 'retired')", NULL,
						 SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

void
bluegreen_session_main(Datum arg)
{
	int64		removed;

	worker_start(DatumGetObjectId(arg), InvalidOid, "pg_bluegreen session");
	/* a target's expired sessions are its own to remove */
	SetConfigOption("bluegreen.allow_target_writes", "on", PGC_SUSET,
					PGC_S_OVERRIDE);
	do
	{
		worker_check();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		pgstat_report_activity(STATE_RUNNING, "removing expired sessions");
		removed = is_closed() ? 0 : purge(PURGE_ROWS);
		PopActiveSnapshot();
		CommitTransactionCommand();
		pgstat_report_stat(false);
	} while (removed >= PURGE_ROWS);
	proc_exit(0);
}

/*
 * bluegreen.session_state(): what is counted; see view stat_session.
 */
Datum
bluegreen_session_state(PG_FUNCTION_ARGS)
{
	SessionShared *shared = session_shared();
	TupleDesc	desc;
	Datum		values[SESSION_COUNTERS];
	bool		nulls[SESSION_COUNTERS] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (int i = 0; i < SESSION_COUNTERS; i++)
		values[i] = Int64GetDatum(shared == NULL ? 0 :
								  pg_atomic_read_u64(&shared->counters[i]));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
