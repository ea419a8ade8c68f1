/*-------------------------------------------------------------------------
 *
 * fence_sql.c
 *		The fence as SQL objects see it: the functions that move it by hand, and
 *		the triggers that keep its rows.
 *
 * A fence comes with what it belongs to, and goes with it: a row of
 * bluegreen.deployment where a stream begins, of bluegreen.applied_stream where
 * one ends (which start() writes over its connection to the peer).  With a
 * stream in each direction a side has both, and one fence for them.  But a side
 * that is closed stays closed: its row stays behind as retired, until reopen().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "compat.h"
#include "core/definition.h"
#include "cutover/fence.h"
#include "cutover/router.h"
#include "cutover/window.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
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
PG_FUNCTION_INFO_V1(bluegreen_fence_look);
PG_FUNCTION_INFO_V1(bluegreen_fence_decide);
PG_FUNCTION_INFO_V1(bluegreen_fence_settle);
PG_FUNCTION_INFO_V1(bluegreen_wait_for_writers);
PG_FUNCTION_INFO_V1(bluegreen_set_local);
PG_FUNCTION_INFO_V1(bluegreen_reopen);

const char *const fence_policy_names[] = {"abort", "terminate"};

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

/*
 * A kind of row that has a fence; $1 is its key.  A side whose deployment has a
 * stream back has rows of both kinds and one fence: adopt joins the second one,
 * and is tried before create.
 */
typedef struct Follows
{
	const char *table;
	const char *key;
	const char *name;			/* $2 of create */
	const char *other;			/* $3: by what the other kind is found */
	const char *adopt;
	const char *create;
	const char *gone[3];		/* in this order, when the row is deleted */
} Follows;

static const Follows follows[] = {
	{
		"deployment", "id", "name", "opposite",
		"UPDATE bluegreen.fence SET deployment = $1::integer "
		"WHERE stream = $3 AND deployment IS NULL",
		"INSERT INTO bluegreen.fence (name, side, deployment, state) "
		"SELECT $2::name, side, id, 'open' FROM bluegreen.deployment "
		"WHERE id = $1::integer",
		{
			"UPDATE bluegreen.fence SET state = 'retired', deployment = NULL, "
			"stream = NULL WHERE deployment = $1::integer "
			"AND state IN ('closed', 'in_doubt', 'retired')",
			"UPDATE bluegreen.fence SET deployment = NULL, \"window\" = false, "
			"closing = false "
			"WHERE deployment = $1::integer AND stream IS NOT NULL",
			"DELETE FROM bluegreen.fence WHERE deployment = $1::integer"
		}
	},
	{
		"applied_stream", "name", "deployment", "name",
		"UPDATE bluegreen.fence f SET stream = $1, "
		"state = CASE WHEN f.side = 'green' AND f.state = 'open' "
		"THEN 'guarded' ELSE f.state END "
		"FROM bluegreen.deployment d WHERE d.id = f.deployment "
		"AND d.opposite = $3",
		"INSERT INTO bluegreen.fence (name, side, stream, state) "
		"VALUES ($2::name, 'green', $1, 'guarded')",
		{
			"UPDATE bluegreen.fence SET state = 'retired', stream = NULL "
			"WHERE stream = $1 AND state IN ('closed', 'in_doubt', 'retired')",
			"UPDATE bluegreen.fence SET stream = NULL, \"window\" = false, "
			"closing = false, state = CASE state "
			"WHEN 'guarded' THEN 'open' ELSE state END "
			"WHERE stream = $1 AND deployment IS NOT NULL",
			"DELETE FROM bluegreen.fence WHERE stream = $1"
		}
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
	HeapTuple	tuple = trigger->tg_trigtuple;
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, column_text(tuple, desc, f->key));
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		catalog_arg_text(&args, column_text(tuple, desc, f->name));
		catalog_arg_text(&args, column_text(tuple, desc, f->other));
		if (catalog_run(f->adopt, &args, SPI_OK_UPDATE) == 0)
			catalog_run(f->create, &args, SPI_OK_INSERT);
	}
	else
	{
		for (int i = 0; i < lengthof(f->gone); i++)
			catalog_run(f->gone[i], &args, strncmp(f->gone[i], "DELETE", 6) == 0 ?
						SPI_OK_DELETE : SPI_OK_UPDATE);
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

/*
 * An argument that is an interval, as milliseconds.
 */
int
fence_timeout_argument(FunctionCallInfo fcinfo, int i, const char *name)
{
	Interval   *interval;
	double		ms;

	require_argument(fcinfo, i, name);
	interval = PG_GETARG_INTERVAL_P(i);
	ms = (interval->time / 1000.0) +
		(interval->day + interval->month * 30.0) * 24 * 3600 * 1000;
	if (ms < 0 || ms > INT_MAX / 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", name)));
	return (int) ms;
}

/*
 * The argument on_drain_timeout.
 */
FencePolicy
fence_policy_argument(FunctionCallInfo fcinfo, int i)
{
	const char *word;
	int			policy;

	require_argument(fcinfo, i, "on_drain_timeout");
	word = text_to_cstring(PG_GETARG_TEXT_PP(i));
	policy = enum_lookup(fence_policy_names, lengthof(fence_policy_names), word);
	if (policy < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"",
						"on_drain_timeout", word),
				 errhint("Valid values are \"%s\" and \"%s\".",
						 fence_policy_names[0], fence_policy_names[1])));
	return policy;
}

/* Move, then wait. */
static Datum
wait_by_name(FunctionCallInfo fcinfo, const char *function, FenceMove move)
{
	int32		fence;
	int64		epoch;
	int			timeout = fence_timeout_argument(fcinfo, 2, "drain_timeout");
	FencePolicy policy = fence_policy_argument(fcinfo, 3);

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

/* ---- for the other side, which knows its stream's name ---- */

/*
 * The fence of a stream's target.  Error if there is none.
 */
int32
fence_of_stream(const char *stream)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		fence;

	catalog_begin(&access);
	catalog_arg_text(&args, stream);
	if (catalog_run("SELECT id FROM bluegreen.fence WHERE stream = $1", &args,
					SPI_OK_SELECT) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("stream \"%s\" has no fence in this database", stream),
				 errdetail("It has been started into another database, or has been removed from this one.")));
	fence = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return fence;
}

/*
 * bluegreen.fence_look(stream text, OUT state text, OUT epoch bigint,
 * OUT window boolean)
 */
Datum
bluegreen_fence_look(PG_FUNCTION_ARGS)
{
	int32		fence = fence_of_stream(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};
	int64		epoch;
	FenceState	state = fence_state(fence, &epoch);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(fence_state_names[state]);
	values[1] = Int64GetDatum(epoch);
	values[2] = BoolGetDatum(fence_in_window(fence));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * Who listens here is told, too.
 */
static void
notify_decided(int32 fence, int64 epoch)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Deployment *deployment;
	int32		id;
	bool		is_green;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_run("SELECT coalesce(deployment, 0) FROM bluegreen.fence "
				"WHERE id = $1", &args, SPI_OK_SELECT);
	id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	deployment = deployment_load(id);
	if (deployment == NULL)
		return;
	is_green = deployment->direction == 'b';
	routers_notify(deployment, is_green ? "switchover" : "rollback",
				   router_sides[is_green ? SIDE_GREEN : SIDE_BLUE], epoch);
}

/*
 * bluegreen.fence_decide(stream text, epoch bigint) returns void: the decision
 * of a switchover: this side is the active one from the commit on.
 */
Datum
bluegreen_fence_decide(PG_FUNCTION_ARGS)
{
	int32		fence = fence_of_stream(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	require_writable("bluegreen.fence_decide");
	fence_decide(fence, PG_GETARG_INT64(1));
	fence_unmark(fence);
	window_leave(fence);
	notify_decided(fence, PG_GETARG_INT64(1));
	ForceSyncCommit();
	PG_RETURN_VOID();
}

/*
 * bluegreen.fence_settle(stream text, epoch bigint) returns boolean: was it
 * decided?  If not it cannot be any more, once this commits.
 */
Datum
bluegreen_fence_settle(PG_FUNCTION_ARGS)
{
	int32		fence = fence_of_stream(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	require_writable("bluegreen.fence_settle");
	PG_RETURN_BOOL(fence_settle(fence, PG_GETARG_INT64(1), false));
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
	fence_unmark(0);
	catalog_begin(&access);
	n = catalog_run("UPDATE bluegreen.fence SET state = 'open', "
					"since = clock_timestamp(), raised_by = NULL "
					"WHERE state = 'closed'", &args, SPI_OK_UPDATE);
	n += catalog_run("DELETE FROM bluegreen.fence WHERE state = 'retired'",
					 &args, SPI_OK_DELETE);
	catalog_end(&access);
	PG_RETURN_INT32((int32) n);
}
