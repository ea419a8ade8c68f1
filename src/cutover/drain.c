/*-------------------------------------------------------------------------
 *
 * drain.c
 *		Conditions that a switchover waits for, because not all work is in a
 *		transaction: a queue is empty, no job is running.
 *
 * A condition is a query of the user that gives one boolean.  The worker of the
 * switchover evaluates it as the deployment's owner, read-only, with the
 * search_path of who added it.  First it waits until all are true, while
 * everybody still writes; then it raises the fence and looks at them once more,
 * for new work may have come meanwhile.  Waiting under the fence would not end:
 * work has to write to get done.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/event.h"
#include "core/switch_row.h"
#include "cutover/fence.h"
#include "cutover/switchover.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(bluegreen_add_drain);
PG_FUNCTION_INFO_V1(bluegreen_drop_drain);

typedef struct DrainCondition
{
	char	   *name;
	char	   *sql;
	char	   *search_path;
} DrainCondition;

/* ---- evaluate ---- */

static List *
load_conditions(int32 deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *conditions = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	n = catalog_run("SELECT name::text, sql, search_path "
					"FROM bluegreen.drain_condition WHERE deployment = $1 "
					"ORDER BY name", &args, SPI_OK_SELECT);
	MemoryContextSwitchTo(access.context);
	for (uint64 i = 0; i < n; i++)
	{
		DrainCondition *condition = palloc_object(DrainCondition);

		condition->name = catalog_text(&access, i, 1);
		condition->sql = catalog_text(&access, i, 2);
		condition->search_path = catalog_text(&access, i, 3);
		conditions = lappend(conditions, condition);
	}
	catalog_end(&access);
	return conditions;
}

/*
 * Are there conditions at all?
 */
bool
drain_any(int32 deployment)
{
	return load_conditions(deployment) != NIL;
}

/* The one value of a result; no row or NULL is false. */
static bool
result_is_true(void)
{
	bool		isnull = true;
	Datum		value = (Datum) 0;

	if (SPI_processed > 0)
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
							  &isnull);
	return !isnull && DatumGetBool(value);
}

/*
 * Is it met?  It is evaluated as the deployment's owner, whoever asks, and may
 * not write, nor take part in the fence by it.
 */
static bool
is_met(const DrainCondition *condition, Oid owner)
{
	bool		read_only = XactReadOnly;
	int			level = NewGUCNestLevel();
	Oid			user;
	int			context;
	bool		met;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(owner, context | SECURITY_RESTRICTED_OPERATION);

	(void) set_config_option("search_path", condition->search_path,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	XactReadOnly = true;		/* an error ends the transaction */
	if (SPI_execute(condition->sql, true, 1) != SPI_OK_SELECT)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("drain condition \"%s\" is not a query",
						condition->name)));
	met = result_is_true();
	XactReadOnly = read_only;
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	PopActiveSnapshot();
	AtEOXact_GUC(false, level);
	SetUserIdAndSecContext(user, context);
	return met;
}

/*
 * Name of a condition of a deployment that is not met, or NULL.  Needs a
 * transaction.  Errors: those of the conditions.
 */
char *
drain_unmet(const Deployment *deployment)
{
	ListCell   *lc;

	foreach(lc, load_conditions(deployment->id))
	{
		const DrainCondition *condition = lfirst(lc);

		if (!is_met(condition, deployment->owner))
			return condition->name;
	}
	return NULL;
}

/* ---- define ---- */

/*
 * Error unless it is one query that gives one boolean.
 */
static void
check_condition(const char *name, const char *sql)
{
	SPIPlanPtr	plan;
	List	   *sources;
	TupleDesc	desc = NULL;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = SPI_prepare(sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	sources = SPI_plan_get_plan_sources(plan);
	if (list_length(sources) == 1)
		desc = ((CachedPlanSource *) linitial(sources))->resultDesc;
	if (desc == NULL || desc->natts != 1 ||
		TupleDescAttr(desc, 0)->atttypid != BOOLOID)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("drain condition \"%s\" must be one query that returns one boolean",
						name),
				 errhint("It is true when there is nothing to wait for, as in SELECT NOT EXISTS (SELECT FROM job WHERE state = 'running').")));
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * bluegreen.add_drain(deployment name, name name, sql text) returns void: a
 * switchover waits for this condition.  One of the same name is replaced.
 */
Datum
bluegreen_add_drain(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	char	   *name;
	char	   *sql;
	CatalogAccess access;
	CatalogArgs args = {0};

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "name");
	require_argument(fcinfo, 2, "sql");
	require_writable("bluegreen.add_drain");
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	name = NameStr(*PG_GETARG_NAME(1));
	sql = text_to_cstring(PG_GETARG_TEXT_PP(2));
	check_condition(name, sql);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_name(&args, name);
	catalog_arg_text(&args, sql);
	catalog_arg_text(&args, namespace_search_path);
	catalog_begin(&access);
	catalog_run("INSERT INTO bluegreen.drain_condition VALUES ($1, $2, $3, $4) "
				"ON CONFLICT (deployment, name) DO UPDATE "
				"SET sql = EXCLUDED.sql, search_path = EXCLUDED.search_path",
				&args, SPI_OK_INSERT);
	catalog_end(&access);
	event_record_local(deployment->id, EVENT_DEFINED, InvalidXLogRecPtr,
					   psprintf("drain condition \"%s\" defined", name), sql);
	PG_RETURN_VOID();
}

/*
 * bluegreen.drop_drain(deployment name, name name) returns void
 */
Datum
bluegreen_drop_drain(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	char	   *name;
	CatalogAccess access;
	CatalogArgs args = {0};

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "name");
	require_writable("bluegreen.drop_drain");
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	name = NameStr(*PG_GETARG_NAME(1));
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_name(&args, name);
	catalog_begin(&access);
	if (catalog_run("DELETE FROM bluegreen.drain_condition "
					"WHERE deployment = $1 AND name = $2", &args,
					SPI_OK_DELETE) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("deployment \"%s\" has no drain condition \"%s\"",
						deployment->name, name)));
	catalog_end(&access);
	PG_RETURN_VOID();
}
