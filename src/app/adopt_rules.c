/*-------------------------------------------------------------------------
 *
 * adopt_rules.c
 *		The rules of sessions, as triggers of the tables of a framework.
 *
 * session_rules() is on a table of sessions, or of rows that belong to them.
 * In an application's session it stamps what the application writes and leaves
 * a tombstone for what it deletes; in a session that applies it merges the
 * other side's row with the one that is here.  session_gone() is on the table of
 * tombstones and deletes what the other side has deleted.
 *
 * What they do beside the row they do as the table's owner: an application's
 * role need not know of the tombstones.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "app/adopt.h"
#include "app/session.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "core/definition.h"
#include "core/settings.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(bluegreen_session_rules);
PG_FUNCTION_INFO_V1(bluegreen_session_gone);

/* Tombstones of rows that belong to a session, which has one of its own. */
#define ROW_GONE_FOR (24 * 3600)	/* seconds */

typedef struct RuleCall
{
	TriggerData *trigger;
	TupleDesc	desc;
	char	  **args;
	char	   *schema;
	char	   *gone;			/* quoted */
	List	   *key;
	List	   *touch;
	List	   *own;
	Oid			userid;			/* to return to */
	int			sec_context;
} RuleCall;

/* ---- helpers ---- */

/* A text[] literal as names. */
List *
store_names(const char *array)
{
	Oid			input;
	Oid			ioparam;
	Datum		value;

	getTypeInputInfo(TEXTARRAYOID, &input, &ioparam);
	value = OidInputFunctionCall(input, unconstify(char *, array), ioparam, -1);
	return mapping_names_argument(DatumGetArrayTypeP(value), TEXTOID);
}

static bool
is_among(const char *name, List *list)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

static char *
table_name(const RuleCall *call, const char *table)
{
	return quote_qualified_identifier(call->schema, table);
}

static int
column(const RuleCall *call, const char *name)
{
	int			n = SPI_fnumber(call->desc, name);

	if (n <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", name,
						RelationGetRelationName(call->trigger->tg_relation)),
				 errhint("The table was altered since its sessions were adopted. Call bluegreen.prepare_sessions() again.")));
	return n;
}

/*
 * A column of ours: its owner can have altered its type.
 */
static int
own_column(const RuleCall *call, const char *name, Oid type)
{
	int			n = column(call, name);

	if (SPI_gettypeid(call->desc, n) != type)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" must be of type %s",
						name,
						RelationGetRelationName(call->trigger->tg_relation),
						format_type_be(type))));
	return n;
}

static int64
stamp_of(const RuleCall *call, HeapTuple tuple)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple,
									 own_column(call, STORE_STAMP, INT8OID),
									 call->desc, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/*
 * The time in microseconds and the side, later than a stamp.
 */
static int64
next_stamp(const RuleCall *call, int64 stamp)
{
	int64		time = Max(GetCurrentTimestamp(), (stamp >> 1) + 1);

	return time << 1 | (call->args[RULE_SIDE][0] == 'g' ? 1 : 0);
}

static TimestampTz
after_seconds(TimestampTz time, int seconds)
{
	return TimestampTzPlusMilliseconds(time, (int64) seconds * 1000);
}

/*
 * A trigger's beginning and end: SPI, as the table's owner.
 */
static void
begin_call(RuleCall *call, FunctionCallInfo fcinfo, int nargs)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Relation	relation;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		trigger->tg_trigger->tgnargs != nargs)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("triggers of session tables are made by bluegreen.prepare_sessions() only")));
	relation = trigger->tg_relation;
	call->trigger = trigger;
	call->desc = RelationGetDescr(relation);
	call->args = trigger->tg_trigger->tgargs;
	call->schema = get_namespace_name(RelationGetNamespace(relation));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	GetUserIdAndSecContext(&call->userid, &call->sec_context);
	SetUserIdAndSecContext(relation->rd_rel->relowner,
						   call->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

/* The row to go on with; NULL: none. */
static Datum
end_call(RuleCall *call, HeapTuple result)
{
	if (result != NULL && result != call->trigger->tg_trigtuple &&
		result != call->trigger->tg_newtuple)
		result = SPI_copytuple(result);
	SetUserIdAndSecContext(call->userid, call->sec_context);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	return PointerGetDatum(result);
}

/*
 * "a = $1 AND b = $2", and the parameters, from a row of a list of columns.
 */
static char *
key_condition(const RuleCall *call, List *columns, HeapTuple tuple,
			  CatalogArgs *args)
{
	StringInfoData sql;
	ListCell   *from;
	ListCell   *to;

	initStringInfo(&sql);
	forboth(from, call->key, to, columns)
	{
		int			n = column(call, lfirst(from));
		bool		isnull;
		Datum		value = heap_getattr(tuple, n, call->desc, &isnull);

		catalog_arg(args, SPI_gettypeid(call->desc, n), value);
		if (isnull)
			args->nulls[args->n - 1] = 'n';
		appendStringInfo(&sql, "%s%s = $%d", args->n > 1 ? " AND " : "",
						 quote_identifier(lfirst(to)), args->n);
	}
	return sql.data;
}

/* ---- tombstones ---- */

/*
 * The stamp of a tombstone that still counts, in a table of them, or 0.
 */
static int64
gone_stamp(const RuleCall *call, const char *gone, List *columns,
		   HeapTuple tuple)
{
	CatalogArgs args = {0};
	char	   *condition = key_condition(call, columns, tuple, &args);

	if (catalog_run(psprintf("SELECT coalesce(" STORE_STAMP "::bigint, 0) "
							 "FROM %s WHERE %s AND " STORE_UNTIL
							 " > clock_timestamp() - make_interval(secs => %d)",
							 gone, condition, bg_session_retention), &args,
					SPI_OK_SELECT) == 0)
		return 0;
	return DatumGetInt64(catalog_value(0, 1, NULL));
}

static void
leave_tombstone(RuleCall *call, HeapTuple tuple, int64 stamp,
				TimestampTz until)
{
	StringInfoData columns;
	StringInfoData values;
	CatalogArgs args = {0};
	ListCell   *lc;

	(void) key_condition(call, call->key, tuple, &args);
	initStringInfo(&columns);
	initStringInfo(&values);
	foreach(lc, call->key)
	{
		appendStringInfo(&columns, "%s, ", quote_identifier(lfirst(lc)));
		appendStringInfo(&values, "$%d, ", foreach_current_index(lc) + 1);
	}
	catalog_arg(&args, TIMESTAMPTZOID, TimestampTzGetDatum(until));
	catalog_arg(&args, INT8OID, Int64GetDatum(stamp));
	columns.data[columns.len - 2] = '\0';
	catalog_run(psprintf("INSERT INTO %s AS g (%s, " STORE_UNTIL ", "
						 STORE_STAMP ") VALUES (%s$%d, $%d) ON CONFLICT (%s) "
						 "DO UPDATE SET "
						 STORE_UNTIL " = greatest(g." STORE_UNTIL ", EXCLUDED."
						 STORE_UNTIL "), "
						 STORE_STAMP " = greatest(g." STORE_STAMP ", EXCLUDED."
						 STORE_STAMP ")",
						 call->gone, columns.data, values.data, args.n - 1,
						 args.n, columns.data), &args, SPI_OK_INSERT);
	session_note_write();
}

/*
 * When does a session end?  Without a time of its own: not soon.
 */
static TimestampTz
expiry_of(RuleCall *call, HeapTuple tuple)
{
	int			n = column(call, call->args[RULE_EXPIRY]);
	CatalogArgs args = {0};
	bool		isnull;
	Datum		value = heap_getattr(tuple, n, call->desc, &isnull);

	catalog_arg(&args, SPI_gettypeid(call->desc, n), value);
	if (isnull)
		args.nulls[0] = 'n';
	catalog_arg_text(&args, call->args[RULE_LIFETIME]);
	catalog_run(psprintf("SELECT (coalesce(%s, clock_timestamp()) "
						 "+ $2::interval)::timestamptz", expiry_sql(call->args[RULE_KIND])), &args,
				SPI_OK_SELECT);
	return DatumGetTimestampTz(catalog_value(0, 1, NULL));
}

/*
 * An upsert whose row is just being deleted waits for that and then inserts it,
 * without another call of triggers.  So it is waited for here: what has been left
 * behind is seen then.
 */
static void
wait_for_delete(RuleCall *call, HeapTuple new)
{
	CatalogArgs args = {0};
	char	   *condition = key_condition(call, call->key, new, &args);

	catalog_run(psprintf("SELECT FROM %s WHERE %s FOR NO KEY UPDATE",
						 table_name(call,
									RelationGetRelationName(call->trigger->tg_relation)),
						 condition), &args, SPI_OK_SELECT);
}

/* ---- in an application's session ---- */

static HeapTuple
with_stamp(RuleCall *call, HeapTuple tuple, int64 stamp)
{
	int			n = own_column(call, STORE_STAMP, INT8OID);
	Datum		value = Int64GetDatum(stamp);
	bool		isnull = false;

	return heap_modify_tuple_by_cols(tuple, call->desc, 1, &n, &value, &isnull);
}

/*
 * A request that was late: its session is logged out.
 */
static HeapTuple
insert_here(RuleCall *call)
{
	HeapTuple	new = call->trigger->tg_trigtuple;
	int64		gone;

	wait_for_delete(call, new);
	gone = gone_stamp(call, call->gone, call->key, new);
	if (gone == STAMP_FOR_GOOD)
	{
		session_count(SESSION_LATE, 1);
		return NULL;
	}
	return with_stamp(call, new, next_stamp(call, gone));
}

/*
 * A row that belongs to a session, which is there still: else it goes with it.
 */
static bool
parent_is_there(RuleCall *call, HeapTuple tuple)
{
	List	   *columns = list_make1(call->args[RULE_PARENT_KEY]);
	CatalogArgs args = {0};
	char	   *condition = key_condition(call, columns, tuple, &args);

	return catalog_run(psprintf("SELECT FROM %s WHERE %s",
								table_name(call, call->args[RULE_PARENT]),
								condition), &args, SPI_OK_SELECT) > 0;
}

/*
 * A delete of what has not expired is a logout.  What has is removed, not at
 * once: the other side may know better and be about to tell.  A row that
 * belongs to a session goes by itself or with it.
 */
static HeapTuple
delete_here(RuleCall *call)
{
	HeapTuple	old = call->trigger->tg_trigtuple;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until;

	if (call->args[RULE_PARENT][0] != '\0')
	{
		if (parent_is_there(call, old))
			leave_tombstone(call, old, next_stamp(call, stamp_of(call, old)),
							after_seconds(now, ROW_GONE_FOR));
		return old;
	}
	until = expiry_of(call, old);
	if (until > now)
		leave_tombstone(call, old, STAMP_FOR_GOOD, until);
	else if (after_seconds(until, bg_session_retention) > now)
		return NULL;
	return old;
}

/* ---- rows that meet ---- */

/* What becomes of a column when an old and a new row meet. */
typedef enum ColumnRule
{
	COLUMN_STAYS,				/* key, the stamp, what a side has of its own */
	COLUMN_LATER,				/* the larger value */
	COLUMN_PAYLOAD				/* that of the newer row */
} ColumnRule;

static ColumnRule
column_rule(const RuleCall *call, int i)
{
	Form_pg_attribute att = TupleDescAttr(call->desc, i);
	const char *name = NameStr(att->attname);

	if (att->attisdropped || att->attgenerated != '\0' ||
		strcmp(name, STORE_STAMP) == 0 ||
		is_among(name, call->key) ||
		is_among(name, call->own))
		return COLUMN_STAYS;
	return is_among(name, call->touch) ? COLUMN_LATER :
		COLUMN_PAYLOAD;
}

/*
 * Is the first of two values of a column the larger one?  NULL is the least.
 */
static bool
is_larger(Form_pg_attribute att, const NullableDatum *a,
		  const NullableDatum *b)
{
	TypeCacheEntry *type = lookup_type_cache(att->atttypid,
											 TYPECACHE_CMP_PROC_FINFO);

	if (a->isnull || b->isnull)
		return b->isnull && !a->isnull;
	if (!OidIsValid(type->cmp_proc_finfo.fn_oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("values of column \"%s\" cannot be compared",
						NameStr(att->attname))));
	return DatumGetInt32(FunctionCall2Coll(&type->cmp_proc_finfo,
										   att->attcollation, a->value,
										   b->value)) > 0;
}

/*
 * The new row, with those columns of the old one that count more: the later of
 * times, and with keep_payload the rest of what is carried.
 */
static HeapTuple
keep_columns(RuleCall *call, bool keep_payload)
{
	HeapTuple	old = call->trigger->tg_trigtuple;
	HeapTuple	new = call->trigger->tg_newtuple;
	int			natts = call->desc->natts;
	Datum	   *values = palloc_array(Datum, natts);
	bool	   *nulls = palloc_array(bool, natts);
	bool	   *replace = palloc0_array(bool, natts);

	for (int i = 0; i < natts; i++)
	{
		ColumnRule	rule = column_rule(call, i);
		NullableDatum was;
		NullableDatum is;

		if (rule == COLUMN_STAYS)
			continue;
		was.value = heap_getattr(old, i + 1, call->desc, &was.isnull);
		is.value = heap_getattr(new, i + 1, call->desc, &is.isnull);
		replace[i] = rule == COLUMN_PAYLOAD ? keep_payload :
			is_larger(TupleDescAttr(call->desc, i), &was, &is);
		values[i] = was.value;
		nulls[i] = was.isnull;
	}
	return heap_modify_tuple(new, call->desc, values, nulls, replace);
}

/* Have the two rows other values in what is carried, but for times? */
static bool
payload_differs(RuleCall *call)
{
	for (int i = 0; i < call->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(call->desc, i);
		bool		was_null;
		bool		is_null;
		Datum		was;
		Datum		is;

		if (column_rule(call, i) != COLUMN_PAYLOAD)
			continue;
		was = heap_getattr(call->trigger->tg_trigtuple, i + 1, call->desc,
						   &was_null);
		is = heap_getattr(call->trigger->tg_newtuple, i + 1, call->desc,
						  &is_null);
		if (was_null != is_null ||
			(!was_null && !datum_image_eq(was, is, att->attbyval,
										  att->attlen)))
			return true;
	}
	return false;
}

/* Is it another session from now on? */
static bool
key_differs(RuleCall *call)
{
	ListCell   *lc;

	foreach(lc, call->key)
	{
		int			n = column(call, lfirst(lc));
		Form_pg_attribute att = TupleDescAttr(call->desc, n - 1);
		bool		isnull;
		Datum		was = heap_getattr(call->trigger->tg_trigtuple, n,
									   call->desc, &isnull);
		Datum		is = heap_getattr(call->trigger->tg_newtuple, n,
									  call->desc, &isnull);

		if (!datum_image_eq(was, is, att->attbyval, att->attlen))
			return true;
	}
	return false;
}

/*
 * A touch leaves the stamp alone.  A session that gets another id leaves the
 * old one behind, for good.
 */
static HeapTuple
update_here(RuleCall *call)
{
	int64		stamp = stamp_of(call, call->trigger->tg_trigtuple);

	if (key_differs(call))
	{
		if (call->args[RULE_PARENT][0] == '\0')
			leave_tombstone(call, call->trigger->tg_trigtuple, STAMP_FOR_GOOD,
							expiry_of(call, call->trigger->tg_trigtuple));
		stamp = next_stamp(call, stamp);
	}
	else if (payload_differs(call))
		stamp = next_stamp(call, stamp);
	return with_stamp(call, keep_columns(call, false), stamp);
}

/* ---- in a session that applies ---- */

/*
 * A row of a session that is logged out here, or a row that was deleted later.
 */
static HeapTuple
insert_there(RuleCall *call)
{
	HeapTuple	new = call->trigger->tg_trigtuple;
	int64		stamp = stamp_of(call, new);
	bool		late;

	wait_for_delete(call, new);
	late = gone_stamp(call, call->gone, call->key, new) > stamp;
	session_note_write();
	if (!late && call->args[RULE_PARENT][0] != '\0')
	{
		List	   *columns = list_make1(call->args[RULE_PARENT_KEY]);
		char	   *gone = table_name(call, psprintf("%s" STORE_GONE,
													 call->args[RULE_PARENT]));

		late = gone_stamp(call, gone, columns, new) == STAMP_FOR_GOOD;
	}
	if (!late)
		return new;
	session_count(SESSION_LATE, 1);
	return NULL;
}

/* A column of a row as text, NULL as the least. */
static const char *
column_text(RuleCall *call, HeapTuple tuple, int i)
{
	char	   *text = SPI_getvalue(tuple, call->desc, i + 1);

	return text == NULL ? "" : psprintf("=%s", text);
}

/*
 * Both rows have one stamp: they are from before the table was adopted, or a
 * server is a copy of the other.  Does the old one's payload count?  Any rule
 * will do that gives the same row on both sides.
 */
static bool
old_counts(RuleCall *call)
{
	for (int i = 0; i < call->desc->natts; i++)
	{
		int			order;

		if (column_rule(call, i) != COLUMN_PAYLOAD)
			continue;
		order = strcmp(column_text(call, call->trigger->tg_trigtuple, i),
					   column_text(call, call->trigger->tg_newtuple, i));
		if (order != 0)
			return order > 0;
	}
	return false;
}

static HeapTuple
update_there(RuleCall *call)
{
	int64		was = stamp_of(call, call->trigger->tg_trigtuple);
	int64		is = stamp_of(call, call->trigger->tg_newtuple);
	bool		keep = was == is ? old_counts(call) : was > is;

	return with_stamp(call, keep_columns(call, keep), Max(was, is));
}

/*
 * What a TRUNCATE has removed nobody could tell the other side: an error, if the
 * table is mapped.
 */
static void
check_truncate(const TriggerData *trigger)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		mapped;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID,
				ObjectIdGetDatum(RelationGetRelid(trigger->tg_relation)));
	mapped = catalog_run("SELECT FROM bluegreen.table_mapping WHERE source = $1",
						 &args, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	if (mapped)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot truncate table \"%s\" because its sessions are mapped",
						RelationGetRelationName(trigger->tg_relation)),
				 errhint("Use DELETE.")));
}

/*
 * Trigger BEFORE INSERT, UPDATE or DELETE of an adopted table; and BEFORE
 * TRUNCATE of one, and of bluegreen.session.
 */
Datum
bluegreen_session_rules(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		applies = SessionReplicationRole ==
		SESSION_REPLICATION_ROLE_REPLICA;
	RuleCall	call = {0};
	TriggerEvent event;
	HeapTuple	result;

	if (CALLED_AS_TRIGGER(fcinfo) &&
		TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		check_truncate(trigger);
		PG_RETURN_POINTER(NULL);
	}
	begin_call(&call, fcinfo, RULE_ARGUMENTS);
	call.key = store_names(call.args[RULE_KEY]);
	call.touch = store_names(call.args[RULE_TOUCH]);
	call.own = store_names(call.args[RULE_OWN]);
	call.gone = table_name(&call,
						   psprintf("%s" STORE_GONE,
									RelationGetRelationName(call.trigger->tg_relation)));
	event = call.trigger->tg_event;
	if (TRIGGER_FIRED_BY_INSERT(event))
		result = applies ? insert_there(&call) : insert_here(&call);
	else if (TRIGGER_FIRED_BY_UPDATE(event))
		result = applies ? update_there(&call) : update_here(&call);
	else
		result = applies ? call.trigger->tg_trigtuple : delete_here(&call);
	return end_call(&call, result);
}

/* ---- tombstones that arrive ---- */

/*
 * Delete what a tombstone is of, unless it is newer, and the rows that belong
 * to it.  These later: who writes one has locked the session, so what he has
 * written is seen when the session is deleted.
 */
static void
delete_gone(RuleCall *call, HeapTuple tombstone)
{
	int64		stamp = stamp_of(call, tombstone);
	CatalogArgs args = {0};
	char	   *condition = key_condition(call, call->key, tombstone, &args);
	CatalogArgs key = args;

	catalog_arg(&args, INT8OID, Int64GetDatum(stamp));
	catalog_run(psprintf("DELETE FROM %s WHERE %s AND " STORE_STAMP " < $%d",
						 table_name(call, call->args[GONE_TABLE]), condition,
						 args.n), &args, SPI_OK_DELETE);
	if (call->args[GONE_ROWS][0] != '\0')
		catalog_run(psprintf("DELETE FROM %s WHERE %s = $1",
							 table_name(call, call->args[GONE_ROWS]),
							 quote_identifier(call->args[GONE_ROWS_KEY])),
					&key, SPI_OK_DELETE);
}

/*
 * Of two tombstones the one that counts for longer.
 */
static HeapTuple
later_tombstone(RuleCall *call)
{
	TriggerData *trigger = call->trigger;
	int			numbers[2] = {own_column(call, STORE_STAMP, INT8OID),
	own_column(call, STORE_UNTIL, TIMESTAMPTZOID)};
	Datum		values[2];
	bool		nulls[2];

	for (int i = 0; i < 2; i++)
	{
		Datum		was = heap_getattr(trigger->tg_trigtuple, numbers[i],
									   call->desc, &nulls[i]);

		values[i] = heap_getattr(trigger->tg_newtuple, numbers[i], call->desc,
								 &nulls[i]);
		if (DatumGetInt64(was) > DatumGetInt64(values[i]))
			values[i] = was;
	}
	return heap_modify_tuple_by_cols(trigger->tg_newtuple, call->desc, 2,
									 numbers, values, nulls);
}

/*
 * Trigger BEFORE INSERT or UPDATE of a table of tombstones, in sessions that
 * apply.
 */
Datum
bluegreen_session_gone(PG_FUNCTION_ARGS)
{
	RuleCall	call = {0};
	HeapTuple	result;

	begin_call(&call, fcinfo, GONE_ARGUMENTS);
	call.key = store_names(call.args[GONE_KEY]);
	result = TRIGGER_FIRED_BY_UPDATE(call.trigger->tg_event) ?
		later_tombstone(&call) : call.trigger->tg_trigtuple;
	delete_gone(&call, result);
	session_note_write();
	return end_call(&call, result);
}
