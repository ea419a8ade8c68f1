/*-------------------------------------------------------------------------
 *
 * verify_call.c
 *		CALL bluegreen.verify() and bluegreen.cancel_verify().
 *
 * The procedure leaves a request, commits, and waits for the worker's result.
 * Whoever cancels the CALL only stops waiting: the worker goes on.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "stream/verify.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_verify);
PG_FUNCTION_INFO_V1(bluegreen_cancel_verify);

#define POLL_MS	200
#define MAX_EVERY_YEARS	1000

/* What the caller waits for. */
typedef struct RunResult
{
	int64		number;
	char	   *state;
	char	   *message;
} RunResult;

static bool
is_mapped(int32 deployment, Oid source)
{
	CatalogAccess access;
	bool		result;

	catalog_begin(&access);
	result = catalog_run(psprintf("SELECT FROM bluegreen.table_mapping "
								  "WHERE deployment = %d AND source = %u",
								  deployment, source), NULL,
						 SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

static bool
read_run(int32 deployment, RunResult *run)
{
	CatalogAccess access;
	bool		found;

	catalog_begin(&access);
	found = catalog_run(psprintf("SELECT number, state, message "
								 "FROM bluegreen.verify_run "
								 "WHERE deployment = %d", deployment), NULL,
						SPI_OK_SELECT) > 0;
	if (found)
	{
		run->number = DatumGetInt64(catalog_value(0, 1, NULL));
		run->state = catalog_text(&access, 0, 2);
		run->message = catalog_text(&access, 0, 3);
	}
	catalog_end(&access);
	return found;
}

/*
 * The workers add it to a time, which must not fail.
 */
static void
check_every(const Interval *every)
{
	if (every->month > MAX_EVERY_YEARS * MONTHS_PER_YEAR ||
		every->day > MAX_EVERY_YEARS * 366 ||
		every->time > MAX_EVERY_YEARS * 366 * USECS_PER_DAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("parameter \"every\" of bluegreen.verify must not be more than %d years",
						MAX_EVERY_YEARS)));
}

/*
 * Leave the request; returns the number of the run.
 */
static int64
leave_request(const Deployment *deployment, Oid source, Interval *every)
{
	RunResult	run = {0};
	CatalogAccess access;
	CatalogArgs args = {0};

	if (OidIsValid(source) && !is_mapped(deployment->id, source))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table with OID %u is not mapped in deployment \"%s\"",
						source, deployment->name)));
	if (read_run(deployment->id, &run) && strcmp(run.state, "running") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("deployment \"%s\" is being verified already",
						deployment->name),
				 errhint("Look at bluegreen.verification, or end it with SELECT bluegreen.cancel_verify(%s);",
						 quote_literal_cstr(deployment->name))));
	catalog_begin(&access);
	verify_request(deployment->id, source);
	if (every != NULL)
	{
		catalog_arg_int4(&args, deployment->id);
		catalog_arg(&args, INTERVALOID, IntervalPGetDatum(every));
		catalog_run("UPDATE bluegreen.verify_run SET every = CASE "
					"WHEN $2 > '0'::interval THEN $2 END WHERE deployment = $1",
					&args, SPI_OK_UPDATE);
	}
	catalog_end(&access);
	(void) read_run(deployment->id, &run);
	return run.number;
}

/*
 * Tell the caller about each table.
 */
static void
report(int32 deployment, int64 number)
{
	CatalogAccess access;
	uint64		n;
	char	 ***rows;

	catalog_begin(&access);
	n = catalog_run(psprintf("SELECT format('%%I.%%I', m.target_schema, m.target_table), "
							 "t.state, t.row_count::text, t.differences::text, "
							 "coalesce(t.message, ''), t.unsettled::text "
							 "FROM bluegreen.verify_table t "
							 "JOIN bluegreen.table_mapping m ON m.id = t.mapping "
							 "WHERE m.deployment = %d AND t.run = " INT64_FORMAT
							 " ORDER BY m.id", deployment, number),
					NULL, SPI_OK_SELECT);
	rows = MemoryContextAlloc(access.context, (n + 1) * sizeof(char **));
	for (uint64 i = 0; i < n; i++)
	{
		rows[i] = MemoryContextAlloc(access.context, 6 * sizeof(char *));
		for (int c = 0; c < 6; c++)
			rows[i][c] = catalog_text(&access, i, c + 1);
	}
	catalog_end(&access);
	for (uint64 i = 0; i < n; i++)
	{
		char	  **row = rows[i];

		if (strcmp(row[1], "skipped") == 0)
			ereport(NOTICE,
					(errmsg("table \"%s\" was not compared: %s", row[0],
							row[4])));
		else
			ereport(NOTICE,
					(errmsg("table \"%s\": %s rows compared, %s differences",
							row[0], row[2], row[3]),
					 row[4][0] ? errdetail_internal("%s", row[4]) : 0,
					 strcmp(row[5], "0") != 0 ?
					 errhint("%s keys were written all the time and could not be compared.",
							 row[5]) : 0));
	}
}

/*
 * Wait for the run's end.  Each look is a transaction of its own.
 */
static void
wait_for_run(StreamShared *shared, const char *name, int32 deployment,
			 int64 number)
{
	RunResult	run = {0};

	for (;;)
	{
		if (!read_run(deployment, &run) || run.number != number ||
			strcmp(run.state, "running") != 0)
			break;
		SPI_commit();
		ConditionVariablePrepareToSleep(&shared->changed);
		(void) ConditionVariableTimedSleep(&shared->changed, POLL_MS,
										   PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
		CHECK_FOR_INTERRUPTS();
		if (!launcher_is_running())
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the launcher of pg_bluegreen does not run")));
		control_check_stream(shared, name);
	}
	if (run.number != number || strcmp(run.state, "cancelled") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("verification of deployment \"%s\" was cancelled",
						name)));
	if (strcmp(run.state, "failed") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("verification of deployment \"%s\" failed: %s", name,
						run.message ? run.message : "unknown")));
	report(deployment, number);
}

static void
wake_verify(StreamShared *shared)
{
	SpinLockAcquire(&shared->mutex);
	shared->verify_at = GetCurrentTimestamp();
	shared->verify_failures = 0;
	SpinLockRelease(&shared->mutex);
	launcher_wake();
}

/*
 * bluegreen.verify(deployment name, source regclass, every interval, wait
 * boolean): compare transform(source) with the target.  Commits, then waits
 * for the result.
 */
Datum
bluegreen_verify(PG_FUNCTION_ARGS)
{
	Interval   *every = NULL;
	Oid			source = PG_ARGISNULL(1) ? InvalidOid : PG_GETARG_OID(1);
	bool		wait = PG_ARGISNULL(3) || PG_GETARG_BOOL(3);
	Deployment *deployment;
	StreamShared *shared;
	char	   *name;
	int32		id;
	int64		number;

	procedure_begin(fcinfo, "bluegreen.verify");
	shared_require();
	name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	if (!PG_ARGISNULL(2))
	{
		every = palloc_object(Interval);
		*every = *PG_GETARG_INTERVAL_P(2);
		check_every(every);
	}
	deployment = deployment_lock(name);
	control_require_active(deployment, "verify");
	id = deployment->id;
	shared = control_stream(deployment);
	control_check_stream(shared, name);
	number = leave_request(deployment, source, every);
	SPI_commit();
	wake_verify(shared);
	if (wait)
		wait_for_run(shared, name, id, number);
	procedure_end();
	PG_RETURN_VOID();
}

/*
 * bluegreen.cancel_verify(deployment name): end the verification that runs, and
 * those that would come by themselves.  Returns whether one was running.
 */
Datum
bluegreen_cancel_verify(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	CatalogAccess access;
	bool		running;

	require_argument(fcinfo, 0, "deployment");
	require_writable("bluegreen.cancel_verify");
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	catalog_begin(&access);
	running = catalog_run(psprintf("UPDATE bluegreen.verify_run "
								   "SET state = 'cancelled', "
								   "finished_at = clock_timestamp() "
								   "WHERE deployment = %d AND state = 'running'",
								   deployment->id), NULL, SPI_OK_UPDATE) > 0;
	catalog_run(psprintf("UPDATE bluegreen.verify_run SET every = NULL "
						 "WHERE deployment = %d AND every IS NOT NULL",
						 deployment->id), NULL, SPI_OK_UPDATE);
	catalog_end(&access);
	PG_RETURN_BOOL(running);
}
