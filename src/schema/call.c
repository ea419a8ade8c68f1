/*-------------------------------------------------------------------------
 *
 * call.c
 *		CALL bluegreen.expand(), contract(), undo(), wait_for_backfill().
 *
 * A procedure sets the state, sees to it that a worker runs, and waits until
 * the state is what it wants or there is an error.  Whoever cancels the CALL
 * only stops waiting.  Each look is a transaction of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/settings.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "schema/change.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_expand);
PG_FUNCTION_INFO_V1(bluegreen_contract);
PG_FUNCTION_INFO_V1(bluegreen_undo);
PG_FUNCTION_INFO_V1(bluegreen_wait_for_backfill);

#define POLL_MS			100
#define MAX_WORKERS		5		/* that ended without a word, in a row */

#define BIT(state)		(1 << (state))

/* What a procedure asks for. */
typedef struct Request
{
	const char *procedure;
	int			from;			/* states that it begins from */
	int			under_way;		/* states in which it waits */
	int			reached;		/* states that it wants */
	ChangeState to;				/* that it sets, see target_state() */
	const char *hint;			/* in all other states */
} Request;

static const Request expand_request = {
	"bluegreen.expand()",
	BIT(CHANGE_DEFINED) | BIT(CHANGE_UNDONE),
	BIT(CHANGE_EXPANDING) | BIT(CHANGE_VALIDATING),
	BIT(CHANGE_BACKFILLING) | BIT(CHANGE_EXPANDED),
	CHANGE_EXPANDING,
	NULL
};

static const Request contract_request = {
	"bluegreen.contract()",
	BIT(CHANGE_EXPANDED) | BIT(CHANGE_REVERTIBLE) | BIT(CHANGE_REVERTING),
	BIT(CHANGE_RETIRING) | BIT(CHANGE_REVERTIBLE) | BIT(CHANGE_CONTRACTING),
	BIT(CHANGE_REVERTIBLE) | BIT(CHANGE_CONTRACTED),
	CHANGE_CONTRACTING,
	"Use CALL bluegreen.expand(%s) and CALL bluegreen.wait_for_backfill(%s) first."
};

static const Request undo_request = {
	"bluegreen.undo()",
	BIT(CHANGE_EXPANDING) | BIT(CHANGE_BACKFILLING) |
	BIT(CHANGE_VALIDATING) | BIT(CHANGE_EXPANDED) | BIT(CHANGE_RETIRING) |
	BIT(CHANGE_REVERTIBLE) | BIT(CHANGE_CONTRACTING),
	BIT(CHANGE_REVERTING) | BIT(CHANGE_UNDOING),
	BIT(CHANGE_UNDONE) | BIT(CHANGE_DEFINED),
	CHANGE_UNDOING,
	"What is contracted cannot be undone."
};


static const Request wait_request = {
	"bluegreen.wait_for_backfill()",
	0,
	BIT(CHANGE_EXPANDING) | BIT(CHANGE_BACKFILLING) | BIT(CHANGE_VALIDATING),
	BIT(CHANGE_EXPANDED),
	CHANGE_EXPANDED,
	"Use CALL bluegreen.expand(%s) first."
};

/* ---- ask ---- */

static void
wrong_state(const Request *request, const Change *change)
{
	const char *name = quote_literal_cstr(change->name);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("change \"%s\" is %s", change->name,
					change_state_names[change->state]),
			 request->hint ? errhint(request->hint, name, name) : 0));
}

/*
 * Error if another change of the schema is under way.
 */
static void
require_only_one(const Change *change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *other = NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg_name(&args, change->schema);
	if (catalog_run("SELECT name::text FROM bluegreen.schema_change "
					"WHERE id <> $1 AND schema = $2 AND state NOT IN "
					"('defined', 'undone', 'contracted')", &args,
					SPI_OK_SELECT) > 0)
		other = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (other != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("change \"%s\" of schema \"%s\" is under way", other,
						change->schema),
				 errhint("Contract or undo it first.")));
}

/* What contract() makes of a state. */
static ChangeState
contract_target(const Change *change)
{
	if (change->state == CHANGE_REVERTING)
		return CHANGE_RETIRING;
	if (bg_revert_window == 0)
		return CHANGE_CONTRACTING;
	return change->state == CHANGE_EXPANDED ? CHANGE_RETIRING : change->state;
}

/*
 * What undo() makes of a state.  A contract can be undone as long as nothing is
 * dropped, which the caller's lock of the change's row keeps so.
 */
static ChangeState
undo_target(const Request *request, const Change *change)
{
	if (change->state == CHANGE_CONTRACTING &&
		!steps_untouched(change->id, CHANGE_CONTRACTING))
		wrong_state(request, change);
	return steps_exist(change->id, CHANGE_RETIRING) ? CHANGE_REVERTING :
		CHANGE_UNDOING;
}

/* The state that a procedure sets, in place of one that it begins from. */
static ChangeState
target_state(const Request *request, const Change *change)
{
	switch (request->to)
	{
		case CHANGE_EXPANDING:
			require_only_one(change);
			steps_delete(change->id);
			return CHANGE_EXPANDING;
		case CHANGE_CONTRACTING:
			return contract_target(change);
		case CHANGE_UNDOING:
			return undo_target(request, change);
		default:
			return request->to;
	}
}

/*
 * Native subscribers get the columns that are added, and stop if they have not
 * such columns.  Tell who expands.
 */
static void
warn_published(const Change *change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *found = NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	(void) catalog_run("SELECT string_agg(DISTINCT format('table %s in publication %s', "
					   "p.tablename, p.pubname), ', ') "
					   "FROM bluegreen.schema_change c "
					   "CROSS JOIN jsonb_array_elements(c.operations) o "
					   "CROSS JOIN jsonb_each(o) f "
					   "JOIN pg_publication_tables p "
					   "ON p.schemaname = c.schema "
					   "AND p.tablename = f.value ->> 'table' "
					   "JOIN pg_publication b ON b.pubname = p.pubname "
					   "WHERE c.id = $1 AND f.key IN ('add_column', "
					   "'alter_column', 'create_constraint', "
					   "'drop_constraint', 'drop_multicolumn_constraint') "
					   "AND NOT EXISTS (SELECT FROM pg_publication_rel r "
					   "WHERE r.prpubid = b.oid AND r.prattrs IS NOT NULL "
					   "AND r.prrelid = format('%I.%I', p.schemaname, "
					   "p.tablename)::regclass)", &args, SPI_OK_SELECT);
	found = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (found != NULL)
		ereport(WARNING,
				(errmsg("change \"%s\" may add columns to tables that are published",
						change->name),
				 errdetail("%s", found),
				 errhint("Subscriptions to them stop unless their tables have these columns, or the publication has a list of columns.")));
}

/*
 * Set the state, unless it is what we want already.  An old error is forgotten
 * in any case.  True if the worker, if there is one, has to look again.
 */
static bool
ask(const Request *request, const Change *change)
{
	ChangeState to = change->state;

	if (BIT(change->state) & request->from)
		to = target_state(request, change);
	else if ((BIT(change->state) & (request->under_way | request->reached)) == 0)
		wrong_state(request, change);
	/* what is retired is restored, or the other way round: all once more */
	if (to != change->state &&
		(to == CHANGE_RETIRING || to == CHANGE_REVERTING))
		steps_renew(change->id);
	if (to != change->state && request->to == CHANGE_CONTRACTING)
		change_set_window(change->id, bg_revert_window);
	(void) change_set_state(change->id, change->state, to);
	return to != change->state;
}

/* ---- wait ---- */

/*
 * Start a worker for a change, which ends if there is one already.  NULL if
 * there is no room.
 */
BackgroundWorkerHandle *
change_start_worker(Oid database, int32 change, Oid owner)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;
	ChangeWorkerExtra extra = {database, owner, change};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, BG_EXTENSION,
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "bluegreen_change_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "pg_bluegreen change", sizeof(worker.bgw_type));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "pg_bluegreen change %d", change);
	memcpy(worker.bgw_extra, &extra, sizeof(extra));
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
}

static BackgroundWorkerHandle *
start_worker(const Change *change)
{
	BackgroundWorkerHandle *handle = change_start_worker(MyDatabaseId,
														 change->id,
														 change->owner);

	if (handle == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no background worker is free to run change \"%s\"",
						change->name),
				 errhint("Raise max_worker_processes.")));
	return handle;
}

/*
 * See to it that the change is worked on, by our worker or somebody else's.
 */
static void
require_worker(const Change *change, BackgroundWorkerHandle **handle,
			   int *started)
{
	pid_t		pid;

	if (*handle != NULL && GetBackgroundWorkerPid(*handle, &pid) !=
		BGWH_STOPPED)
		return;
	if (!change_try_lock(change->id))
	{
		*started = 0;			/* somebody is at it */
		return;
	}
	change_unlock(change->id);
	if ((*started)++ >= MAX_WORKERS)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("worker of change \"%s\" ended", change->name),
				 errhint("See the server log, and call again.")));
	*handle = start_worker(change);
}

static void
raise_stored(const Change *change)
{
	const char *c = change->sqlstate;

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(c[0], c[1], c[2], c[3], c[4])),
			 errmsg("change \"%s\": %s", change->name, change->message),
			 change->detail ? errdetail_internal("%s", change->detail) : 0,
			 change->hint ? errhint("%s", change->hint) : 0));
}

static void
check_timeout(const Request *request, const Change *change, TimestampTz until)
{
	if (until == 0 || GetCurrentTimestamp() < until)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("timeout while waiting for change \"%s\"", change->name),
			 errdetail("It is %s.", change_state_names[change->state])));
}

static bool
is_reached(const Request *request, const Change *change)
{
	/* not the end of what was asked for */
	if (change->state == CHANGE_REVERTIBLE && bg_revert_window == 0)
		return false;
	return (BIT(change->state) & request->reached) != 0;
}

static void
wait_for_state(const Request *request, const char *name, TimestampTz until)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_bluegreen wait",
												  ALLOCSET_SMALL_SIZES);
	BackgroundWorkerHandle *handle = NULL;
	int			started = 0;

	for (;;)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(context);
		Change	   *change = change_by_name(name);

		MemoryContextSwitchTo(oldcontext);
		if (is_reached(request, change))
			return;
		/* a backfill that is behind us */
		if (request == &expand_request &&
			change->state == CHANGE_VALIDATING && backfill_exists(change->id))
			return;
		if (!(BIT(change->state) & request->under_way))
			wrong_state(request, change);
		if (change->message != NULL)
			raise_stored(change);
		check_timeout(request, change, until);
		require_worker(change, &handle, &started);
		SPI_commit();
		MemoryContextReset(context);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
call(FunctionCallInfo fcinfo, const Request *request, TimestampTz until)
{
	Change	   *change;
	char	   *name;
	bool		to_interrupt;

	require_argument(fcinfo, 0, "change");
	shared_require();
	procedure_begin(fcinfo, request->procedure);
	name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	change = change_by_name(name);
	change_lock_row(change);
	change_require_owner(change);
	to_interrupt = ask(request, change);
	if (to_interrupt && request == &expand_request)
		warn_published(change);
	SPI_commit();
	if (to_interrupt)
		change_interrupt(change->id);
	wait_for_state(request, name, until);
	procedure_end();
}

/*
 * CALL bluegreen.expand(change name): returns when the old version is served
 * as before and rows are being filled, or when all is done.  Errors: whatever
 * the document asks for and cannot be done.
 */
Datum
bluegreen_expand(PG_FUNCTION_ARGS)
{
	call(fcinfo, &expand_request, 0);
	PG_RETURN_VOID();
}

/*
 * CALL bluegreen.contract(change name): the old version is gone; returns when
 * its columns, tables and views are, too, or with bluegreen.revert_window when
 * they bind the new version no more.
 */
Datum
bluegreen_contract(PG_FUNCTION_ARGS)
{
	call(fcinfo, &contract_request, 0);
	PG_RETURN_VOID();
}

/*
 * CALL bluegreen.undo(change name): returns when all that the change has added
 * is gone, and what the contract has taken from the old version is restored.
 */
Datum
bluegreen_undo(PG_FUNCTION_ARGS)
{
	call(fcinfo, &undo_request, 0);
	PG_RETURN_VOID();
}

/*
 * CALL bluegreen.wait_for_backfill(change name, timeout interval): returns
 * when the new version can be deployed.  query_canceled after the timeout.
 */
Datum
bluegreen_wait_for_backfill(PG_FUNCTION_ARGS)
{
	TimestampTz until = 0;

	if (!PG_ARGISNULL(1))
		until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														TimestampTzGetDatum(GetCurrentTimestamp()),
														PG_GETARG_DATUM(1)));
	call(fcinfo, &wait_request, until);
	PG_RETURN_VOID();
}
