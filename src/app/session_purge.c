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
 * It also looks for rows of adopted tables that a tombstone should have
 * removed.  The two can be written by transactions that do not see each other:
 * two copy workers, or an upsert of a session that is not here yet and a logout
 * that arrives.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
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
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
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
typedef struct TablePurge
{
	Oid			relid;
	char	   *schema;
	char	   *table;			/* quoted */
	Oid			owner;
	bool		tombstones;		/* or rows that belong to sessions */
	int64		max_rows;
	int64		removed;
} TablePurge;

/*
 * The arguments of our trigger on a table; NULL if it has none, or another
 * number of them.
 */
static char **
rule_arguments(Relation relation, int nargs)
{
	TriggerDesc *triggers = relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (strcmp(trigger->tgname, STORE_TRIGGER) == 0 &&
			trigger->tgnargs == nargs)
			return trigger->tgargs;
	}
	return NULL;
}

/*
 * Which rows of a table that belong to sessions are of none, and have not been
 * written for long: they came for a session that had been removed here.
 * *parent: the table of the sessions.  NULL: there can be none.
 */
static char *
orphans_sql(const TablePurge *p, char **parent)
{
	Relation	relation = table_open(p->relid, AccessShareLock);
	char	  **args = rule_arguments(relation, RULE_ARGUMENTS);
	char	   *result = NULL;

	if (args != NULL && args[RULE_PARENT][0] != '\0')
	{
		*parent = pstrdup(args[RULE_PARENT]);
		result = psprintf(STORE_STAMP " < 2000000 * extract(epoch FROM "
						  "clock_timestamp() - make_interval(secs => %d) "
						  "- timestamptz '2000-01-01 00:00:00+00') "
						  "AND NOT EXISTS (SELECT FROM %s p WHERE p.%s = r.%s)",
						  bg_session_retention,
						  quote_qualified_identifier(p->schema, *parent),
						  quote_identifier(args[RULE_PARENT_KEY]),
						  quote_identifier(linitial(store_names(args[RULE_KEY]))));
	}
	table_close(relation, NoLock);
	return result;
}

/*
 * Is a table being copied to here?  Then rows of it are missing.
 */
static bool
is_copied(const char *schema, const char *table)
{
	CatalogArgs args = {0};

	catalog_arg_name(&args, schema);
	catalog_arg_name(&args, table);
	return catalog_run("SELECT FROM bluegreen.applied_table "
					   "WHERE target_schema = $1 AND target_table = $2 "
					   "AND state <> 'streaming'", &args, SPI_OK_SELECT) > 0;
}

static uint64
run_as(Oid owner, const char *sql, int expected)
{
	Oid			userid;
	int			sec_context;
	uint64		n;

	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(owner, sec_context | SECURITY_RESTRICTED_OPERATION);
	n = catalog_run(sql, NULL, expected);
	SetUserIdAndSecContext(userid, sec_context);
	return n;
}

/*
 * Delete some rows.  The condition again, for one that is changed meanwhile:
 * older minor releases do not look at the ctid again then.
 */
static int64
delete_some(const TablePurge *p, const char *condition)
{
	return run_as(p->owner,
				  psprintf("DELETE FROM %s r WHERE ctid = ANY (ARRAY("
						   "SELECT r.ctid FROM %s r WHERE %s LIMIT "
						   INT64_FORMAT ")) AND %s", p->table, p->table,
						   condition, p->max_rows, condition),
				  SPI_OK_DELETE);
}

/*
 * Sessions whose table is being copied are not missing.  That can begin at any
 * time, so it is asked again behind the delete, which has seen what was there
 * before.
 */
static void
purge_orphans(TablePurge *p)
{
	char	   *parent = NULL;
	char	   *condition = orphans_sql(p, &parent);

	if (condition == NULL || is_copied(p->schema, parent))
		return;
	p->removed = delete_some(p, condition);
	if (p->removed > 0 && is_copied(p->schema, parent))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("table \"%s\" is being copied", parent)));
}

/*
 * Remove rows that a tombstone should have removed: have its trigger do it.
 */
static void
heal(void *arg)
{
	TablePurge *p = arg;
	Relation	relation = table_open(p->relid, AccessShareLock);
	char	  **args = rule_arguments(relation, GONE_ARGUMENTS);
	StringInfoData sql;
	ListCell   *lc;
	int			guc_level;

	if (args == NULL)
		elog(ERROR, "unexpected trigger on table %s", p->table);
	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s g SET " STORE_UNTIL " = " STORE_UNTIL
					 " WHERE " STORE_UNTIL " > clock_timestamp() "
					 "- make_interval(secs => %d) AND EXISTS (SELECT FROM %s r "
					 "WHERE r." STORE_STAMP " < g." STORE_STAMP, p->table,
					 bg_session_retention,
					 quote_qualified_identifier(p->schema, args[GONE_TABLE]));
	foreach(lc, store_names(args[GONE_KEY]))
	{
		const char *column = quote_identifier(lfirst(lc));

		appendStringInfo(&sql, " AND r.%s = g.%s", column, column);
	}
	appendStringInfoChar(&sql, ')');
	table_close(relation, NoLock);
	guc_level = NewGUCNestLevel();
	(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	session_count(SESSION_LATE, run_as(p->owner, sql.data, SPI_OK_UPDATE));
	AtEOXact_GUC(false, guc_level);
}

static void
purge_tombstones(TablePurge *p)
{
	p->removed =
		delete_some(p, psprintf(STORE_UNTIL " < clock_timestamp() "
								"- make_interval(secs => %d)",
								bg_session_retention));
}

static void
purge_table(void *arg)
{
	TablePurge *p = arg;

	if (p->tombstones)
		purge_tombstones(p);
	else
		purge_orphans(p);
}

/*
 * Do something to an adopted table.  An error, which may be its owner's, does
 * not keep others from it.
 */
static void
try_table(void (*what) (void *arg), TablePurge *p)
{
	ErrorData  *error = attempt_or_cancel(what, p);

	if (error == NULL)
		return;
	p->removed = 0;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("could not remove what is left of sessions from table %s: %s",
					p->table, error->message)));
}

/*
 * Remove tombstones of adopted tables (adopt.c), and rows that belong to
 * sessions which are not there, as the owner of each; returns how many.  And
 * with heals what tombstones should have removed.  Within catalog_begin().
 */
static int64
purge_adopted(int64 max_rows, bool heals)
{
	uint64		n;
	int64		removed = 0;
	SPITupleTable *tables;

	n = catalog_run("SELECT c.relowner, format('%I.%I', n.nspname, c.relname), "
					"c.oid, t.tgfoid = 'bluegreen.session_gone'::regproc, "
					"n.nspname "
					"FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
					"JOIN pg_namespace n ON n.oid = c.relnamespace "
					"WHERE t.tgname = '" STORE_TRIGGER "' AND (t.tgfoid = "
					" 'bluegreen.session_gone'::regproc OR (t.tgfoid = "
					" 'bluegreen.session_rules'::regproc AND "
					" encode(tgargs, 'hex') NOT LIKE '%000000'))", NULL,
					SPI_OK_SELECT);
	tables = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		HeapTuple	row = tables->vals[i];
		TupleDesc	desc = tables->tupdesc;
		TablePurge	p = {.max_rows = max_rows};

		p.owner = DatumGetObjectId(SPI_getbinval(row, desc, 1, &isnull));
		p.table = SPI_getvalue(row, desc, 2);
		p.relid = DatumGetObjectId(SPI_getbinval(row, desc, 3, &isnull));
		p.tombstones = DatumGetBool(SPI_getbinval(row, desc, 4, &isnull));
		p.schema = SPI_getvalue(row, desc, 5);
		if (heals && p.tombstones)
			try_table(heal, &p);
		try_table(purge_table, &p);
		removed += p.removed;
	}
	return removed;
}

/*
 * Remove some rows; returns how many.  Rows that somebody has locked are left
 * for another time.
 */
static int64
purge(int64 max_rows, bool heals)
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
	removed += purge_adopted(max_rows, heals);
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
	require_writable("bluegreen.expire_sessions");
	PG_RETURN_INT64(purge(PG_GETARG_INT64(0), true));
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
	bool		heals = true;

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
		removed = is_closed() ? 0 : purge(PURGE_ROWS, heals);
		PopActiveSnapshot();
		CommitTransactionCommand();
		pgstat_report_stat(false);
		heals = false;
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
