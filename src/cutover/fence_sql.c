/*-------------------------------------------------------------------------
 *
 * fence_sql.c
 *		The fence as SQL objects see it: the functions that move it by hand, and
 *		the triggers that keep its rows.
 *
 * A fence comes with what it belongs to, and goes with it: a row of
 * bluegreen.deployment on the source, of bluegreen.applied_stream on the target
 * (which start() writes over its connection to the peer).  But a side that is
 * closed stays closed: its row stays behind as retired, until reopen().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "compat.h"
#include "core/definition.h"
#include "cutover/fence.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_fence_changed);
PG_FUNCTION_INFO_V1(bluegreen_fence_follow);
PG_FUNCTION_INFO_V1(bluegreen_fence_name_target);
PG_FUNCTION_INFO_V1(bluegreen_fence_raise);
PG_FUNCTION_INFO_V1(bluegreen_fence_adopt);
PG_FUNCTION_INFO_V1(bluegreen_fence_lower);
PG_FUNCTION_INFO_V1(bluegreen_fence_doubt);
PG_FUNCTION_INFO_V1(bluegreen_fence_close);
PG_FUNCTION_INFO_V1(bluegreen_fence_activate);
PG_FUNCTION_INFO_V1(bluegreen_wait_for_writers);
PG_FUNCTION_INFO_V1(bluegreen_set_local);
PG_FUNCTION_INFO_V1(bluegreen_reopen);

static const char *const policy_names[] = {"abort", "terminate"};

/* ---- triggers ---- */

/*
 * What backends know of the fences is out of date when this commits.
 */
Datum
bluegreen_fence_changed(PG_FUNCTION_ARGS)
{
	Oid			relid = get_relname_relid("fence",
										  get_namespace_oid(BG_SCHEMA, true));

	if (OidIsValid(relid))
		CacheInvalidateRelcacheByRelid(relid);
	return PointerGetDatum(NULL);
}

/* A kind of row that has a fence. */
typedef struct Follows
{
	const char *table;
	const char *key;
	const char *create;
	const char *retire;
	const char *forget;
} Follows;

static const Follows follows[] = {
	{
		"deployment", "id",
		"INSERT INTO bluegreen.fence (name, side, deployment, state) "
		"VALUES ($2::name, 'source', $1::integer, 'open')",
		"UPDATE bluegreen.fence SET state = 'retired', deployment = NULL, "
		"stream = NULL WHERE deployment = $1::integer "
		"AND state IN ('closed', 'in_doubt')",
		"DELETE FROM bluegreen.fence WHERE deployment = $1::integer"
	},
	{
		"applied_stream", "name",
		"INSERT INTO bluegreen.fence (name, side, stream, state) "
		"VALUES ($2::name, 'target', $1, 'guarded')",
		"UPDATE bluegreen.fence SET state = 'retired', stream = NULL "
		"WHERE stream = $1 AND side = 'target' "
		"AND state IN ('closed', 'in_doubt')",
		"DELETE FROM bluegreen.fence WHERE stream = $1 AND side = 'target'"
	}
};

static char *
column_text(HeapTuple tuple, TupleDesc desc, const char *column)
{
	return SPI_getvalue(tuple, desc, SPI_fnumber(desc, column));
}

static void
follow_row(const Follows *f, const TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, column_text(trigger->tg_trigtuple, desc, f->key));
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		bool		is_source = f == &follows[0];

		catalog_arg_text(&args, column_text(trigger->tg_trigtuple, desc,
											is_source ? "name" : "deployment"));
		catalog_run(f->create, &args, SPI_OK_INSERT);
	}
	else
	{
		catalog_run(f->retire, &args, SPI_OK_UPDATE);
		catalog_run(f->forget, &args, SPI_OK_DELETE);
	}
	catalog_end(&access);
}

/*
 * Trigger for each row that is inserted or deleted: its fence follows.
 */
Datum
bluegreen_fence_follow(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"bluegreen.fence_follow")));
	for (int i = 0; i < lengthof(follows); i++)
	{
		if (strcmp(follows[i].table,
				   RelationGetRelationName(trigger->tg_relation)) == 0)
			follow_row(&follows[i], trigger);
	}
	return PointerGetDatum(NULL);
}

/* ---- which tables are targets ---- */

/*
 * A role that applies says what it writes to, and nobody else may from then on.
 * So it must have the right to write there itself.
 */
static void
check_target(const char *schema, const char *table)
{
	Oid			namespace = get_namespace_oid(schema, true);
	Oid			relid = OidIsValid(namespace) ?
		get_relname_relid(table, namespace) : InvalidOid;

	if (superuser())
		return;
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", schema, table)));
	if (pg_class_aclcheck(relid, GetUserId(), ACL_INSERT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, table);
}

static void
set_target(HeapTuple tuple, TupleDesc desc)
{
	char	   *schema = column_text(tuple, desc, "target_schema");
	char	   *table = column_text(tuple, desc, "target_table");
	CatalogAccess access;
	CatalogArgs args = {0};

	check_target(schema, table);
	catalog_begin(&access);
	catalog_arg_text(&args, column_text(tuple, desc, "stream"));
	catalog_arg_text(&args, column_text(tuple, desc, "mapping"));
	catalog_arg_text(&args, schema);
	catalog_arg_text(&args, table);
	catalog_run("INSERT INTO bluegreen.fence_target "
				"VALUES ($1, $2::integer, $3::name, $4::name)", &args,
				SPI_OK_INSERT);
	catalog_end(&access);
}

static void
forget_target(HeapTuple tuple, TupleDesc desc)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, column_text(tuple, desc, "stream"));
	catalog_arg_text(&args, column_text(tuple, desc, "mapping"));
	catalog_run("DELETE FROM bluegreen.fence_target "
				"WHERE stream = $1 AND mapping = $2::integer", &args,
				SPI_OK_DELETE);
	catalog_end(&access);
}

/*
 * Trigger for each row of applied_table that is inserted or deleted, or gets
 * another name: what the fence reads follows, which is granted to nobody.
 */
Datum
bluegreen_fence_name_target(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"bluegreen.fence_name_target")));
	desc = RelationGetDescr(trigger->tg_relation);
	if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		forget_target(trigger->tg_trigtuple, desc);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		set_target(trigger->tg_trigtuple, desc);
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		set_target(trigger->tg_newtuple, desc);
	return PointerGetDatum(NULL);
}

/* ---- moving a fence by hand ---- */

typedef void (*FenceMove) (int32 fence, int64 epoch);

/*
 * Error unless the user is the owner of this database.
 */
static void
check_database_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID,
										ObjectIdGetDatum(MyDatabaseId));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for database %u", MyDatabaseId);
	owner = ((Form_pg_database) GETSTRUCT(tuple))->datdba;
	ReleaseSysCache(tuple);
	if (!has_privs_of_role(GetUserId(), owner))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_DATABASE,
					   get_database_name(MyDatabaseId));
}

/*
 * The fence of a deployment, by its name.  Error unless the user is the owner of
 * the deployment, or where it has none (on a target) of the database.
 */
static int32
find_own_fence(const char *name)
{
	int32		fence = fence_find(name);
	Deployment *deployment = deployment_load_by_name(name, true);

	if (deployment != NULL)
		deployment_check_owner(deployment);
	else
		check_database_owner();
	return fence;
}

/*
 * CALL function(deployment name, epoch bigint)
 */
static Datum
move_by_name(FunctionCallInfo fcinfo, const char *function, FenceMove move)
{
	int32		fence;
	int64		epoch;

	require_argument(fcinfo, 1, "epoch");
	procedure_begin(fcinfo, function);
	epoch = PG_GETARG_INT64(1);
	fence = find_own_fence(NameStr(*PG_GETARG_NAME(0)));
	move(fence, epoch);
	procedure_end();
	PG_RETURN_VOID();
}

/* An interval as milliseconds. */
static int
timeout_argument(FunctionCallInfo fcinfo, int i)
{
	Interval   *interval;
	double		ms;

	require_argument(fcinfo, i, "drain_timeout");
	interval = PG_GETARG_INTERVAL_P(i);
	ms = (interval->time / 1000.0) +
		(interval->day + interval->month * 30.0) * 24 * 3600 * 1000;
	if (ms < 0 || ms > INT_MAX / 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("drain_timeout is out of range")));
	return (int) ms;
}

static FencePolicy
policy_argument(FunctionCallInfo fcinfo, int i)
{
	const char *word;
	int			policy;

	require_argument(fcinfo, i, "on_drain_timeout");
	word = text_to_cstring(PG_GETARG_TEXT_PP(i));
	policy = enum_lookup(policy_names, lengthof(policy_names), word);
	if (policy < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"",
						"on_drain_timeout", word),
				 errhint("Valid values are \"%s\" and \"%s\".",
						 policy_names[0], policy_names[1])));
	return policy;
}

/* Move, then wait. */
static Datum
wait_by_name(FunctionCallInfo fcinfo, const char *function, FenceMove move)
{
	int32		fence;
	int64		epoch;
	int			timeout = timeout_argument(fcinfo, 2);
	FencePolicy policy = policy_argument(fcinfo, 3);

	require_argument(fcinfo, 1, "epoch");
	procedure_begin(fcinfo, function);
	epoch = PG_GETARG_INT64(1);
	fence = find_own_fence(NameStr(*PG_GETARG_NAME(0)));
	move(fence, epoch);
	fence_wait_drained(timeout, policy);
	procedure_end();
	PG_RETURN_VOID();
}

/*
 * bluegreen.fence_raise(deployment name, epoch bigint, drain_timeout interval,
 * on_drain_timeout text): fence_raise(), then fence_wait_drained().
 */
Datum
bluegreen_fence_raise(PG_FUNCTION_ARGS)
{
	return wait_by_name(fcinfo, "bluegreen.fence_raise", fence_raise);
}

/*
 * bluegreen.fence_adopt(...): the same for a fence that was left behind.
 */
Datum
bluegreen_fence_adopt(PG_FUNCTION_ARGS)
{
	return wait_by_name(fcinfo, "bluegreen.fence_adopt", fence_adopt);
}

Datum
bluegreen_fence_lower(PG_FUNCTION_ARGS)
{
	return move_by_name(fcinfo, "bluegreen.fence_lower", fence_lower);
}

Datum
bluegreen_fence_doubt(PG_FUNCTION_ARGS)
{
	return move_by_name(fcinfo, "bluegreen.fence_doubt", fence_doubt);
}

Datum
bluegreen_fence_close(PG_FUNCTION_ARGS)
{
	return move_by_name(fcinfo, "bluegreen.fence_close", fence_close);
}

Datum
bluegreen_fence_activate(PG_FUNCTION_ARGS)
{
	return move_by_name(fcinfo, "bluegreen.fence_activate", fence_activate);
}

/* ---- for streams ---- */

/*
 * bluegreen.wait_for_writers(stream text) returns void: wait for statements of
 * others that began to write to a stream's tables before it had a fence here.
 */
Datum
bluegreen_wait_for_writers(PG_FUNCTION_ARGS)
{
	fence_wait_writers(0, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/* ---- for administrators ---- */

/*
 * Error if a deployment maps the table here.
 */
static void
check_not_mapped(Oid relid)
{
	FenceVerdict verdict;

	if (!fence_cache_any())
		return;
	verdict = fence_cache_verdict(relid);
	if (!bms_is_empty(verdict.fences))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is mapped in deployment \"%s\"",
						get_rel_name(relid),
						fence_cache_get(bms_next_member(verdict.fences,
														-1))->name),
				 errhint("Only a table that no deployment moves can be local.")));
}

/*
 * bluegreen.set_local(relation regclass, local boolean) returns void: the table
 * belongs to this side alone, and stays writable when the side is closed.
 */
Datum
bluegreen_set_local(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	bool		local = PG_GETARG_BOOL(1);
	char		kind = get_rel_relkind(relid);
	CatalogAccess access;
	CatalogArgs args = {0};

	require_writable("bluegreen.set_local");
	check_database_owner();
	if (local)
	{
		if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("\"%s\" is not a table",
							kind ? get_rel_name(relid) : "?")));
		check_not_mapped(relid);
	}
	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	if (local)
		catalog_run("INSERT INTO bluegreen.fence_local VALUES ($1) "
					"ON CONFLICT DO NOTHING", &args, SPI_OK_INSERT);
	else
		catalog_run("DELETE FROM bluegreen.fence_local WHERE relation = $1",
					&args, SPI_OK_DELETE);
	catalog_end(&access);
	PG_RETURN_VOID();
}

/*
 * bluegreen.reopen() returns integer: this side takes writes again; how many
 * deployments had closed it.
 */
Datum
bluegreen_reopen(PG_FUNCTION_ARGS)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	require_writable("bluegreen.reopen");
	check_database_owner();
	catalog_begin(&access);
	n = catalog_run("UPDATE bluegreen.fence SET state = 'open', "
					"since = clock_timestamp(), raised_by = NULL "
					"WHERE state = 'closed'", &args, SPI_OK_UPDATE);
	n += catalog_run("DELETE FROM bluegreen.fence WHERE state = 'retired'",
					 &args, SPI_OK_DELETE);
	catalog_end(&access);
	PG_RETURN_INT32((int32) n);
}
