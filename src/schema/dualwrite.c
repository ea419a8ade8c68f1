/*-------------------------------------------------------------------------
 *
 * dualwrite.c
 *		The trigger that keeps the columns of the old and the new version in
 *		step.
 *
 * bluegreen.sync_columns() is a BEFORE INSERT OR UPDATE trigger for each row.
 * Its rules are its argument (rule.c), and are evaluated as the table's owner
 * (prepared.c).  It assigns to the row at hand and does nothing else, so it
 * cannot recurse.  What it does when is the table in doc/expand.md;
 * applies_to_insert() and applies_to_update() below are that table.
 *
 * Which version writes.  What a statement was written for is the view that it
 * names as its target: rewriting leaves the view among the relations of the
 * plan, with the privileges that the statement needs on it.  The plan of the
 * innermost statement that runs is remembered by hooks of the executor; COPY
 * has none.  search_path says less: it may name several schemas, and inside of
 * functions it is the function's.
 *
 * The hooks watch only statements that fire triggers for rows.  All others
 * pass with a test and a call.
 *
 * An update that moves a row to another partition fires the triggers of an
 * update for the one, and then those of an insert for the other.  The latter
 * is an update for us, of the row as we have left it: we remember that one if
 * it does not fit into the partition that it was in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/sysattr.h"
#include "access/tupconvert.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "compat.h"
#include "core/attempt.h"
#include "core/settings.h"
#include "core/shared.h"
#include "executor/executor.h"
#include "rewrite/rewriteHandler.h"
#include "schema/derive.h"
#include "schema/prepared.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(bluegreen_sync_columns);

/* ---- the statement that runs ---- */

/* The innermost statement that runs. */
typedef struct Statement
{
	QueryDesc  *desc;			/* NULL: none, or a utility statement */
	int			depth;			/* of statements */
	uint64		serial;			/* of no other statement; 0: none */
	Oid			moved_table;	/* whose row it is about to move */
	Oid			moved_from;		/* partition of that */
	HeapTuple	moved;			/* the row */
} Statement;

static Statement running = {0};
static uint64 last_serial = 0;

static ExecutorRun_hook_type next_run = NULL;
static ExecutorFinish_hook_type next_finish = NULL;
static ProcessUtility_hook_type next_utility = NULL;

/* A statement begins; returns the one around it, to be set again afterwards. */
static Statement
watch_begin(QueryDesc *desc)
{
	Statement	outer = running;

	running = (Statement) {
		.desc = desc,
		.depth = outer.depth + 1,
		.serial = ++last_serial
	};
	return outer;
}

/* Does it write rows, so that it fires triggers? */
static inline bool
is_writing(const QueryDesc *desc)
{
	return desc->operation != CMD_SELECT ||
		desc->plannedstmt->hasModifyingCTE;
}

static void
watch_run EXECUTOR_RUN_PARAMS
{
	Statement	outer;

	if (!is_writing(desc))
	{
		next_run EXECUTOR_RUN_ARGS;
		return;
	}
	outer = watch_begin(desc);
	PG_TRY();
	{
		next_run EXECUTOR_RUN_ARGS;
	}
	PG_FINALLY();
	{
		running = outer;
	}
	PG_END_TRY();
}

static void
watch_finish(QueryDesc *desc)
{
	Statement	outer;

	if (!is_writing(desc))
	{
		next_finish(desc);
		return;
	}
	outer = watch_begin(desc);
	PG_TRY();
	{
		next_finish(desc);
	}
	PG_FINALLY();
	{
		running = outer;
	}
	PG_END_TRY();
}

static void
watch_utility(PlannedStmt *pstmt, const char *source, bool read_only,
			  ProcessUtilityContext context, ParamListInfo params,
			  QueryEnvironment *environment, DestReceiver *dest,
			  QueryCompletion *completion)
{
	Statement	outer;

	/* what others run are statements of their own */
	if (!IsA(pstmt->utilityStmt, CopyStmt))
	{
		next_utility(pstmt, source, read_only, context, params, environment,
					 dest, completion);
		return;
	}
	outer = watch_begin(NULL);
	PG_TRY();
	{
		next_utility(pstmt, source, read_only, context, params, environment,
					 dest, completion);
	}
	PG_FINALLY();
	{
		running = outer;
	}
	PG_END_TRY();
}

/*
 * Install the hooks; from _PG_init(), while preloading.
 */
void
dualwrite_install(void)
{
	next_run = ExecutorRun_hook ? ExecutorRun_hook : standard_ExecutorRun;
	ExecutorRun_hook = watch_run;
	next_finish = ExecutorFinish_hook ? ExecutorFinish_hook :
		standard_ExecutorFinish;
	ExecutorFinish_hook = watch_finish;
	next_utility = ProcessUtility_hook ? ProcessUtility_hook :
		standard_ProcessUtility;
	ProcessUtility_hook = watch_utility;
}

/*
 * The innermost statement that runs, or NULL: there is none, or it is a
 * utility statement.  Error if nobody has watched.
 */
const QueryDesc *
dualwrite_statement(void)
{
	shared_require();
	return running.desc;
}

/* ---- filling ---- */

/* The table that is filled, by a statement at this depth. */
static Oid	filled_table = InvalidOid;
static int	filled_depth = 0;
static uint64 filled_rows = 0;	/* that the trigger has let through */

/*
 * Run an UPDATE that fills rows of a table: one that stays as it is is not
 * written.  Returns the number of those that were.  The caller is connected to
 * SPI.  Errors: whatever comes of the statement; rows were written that the
 * trigger has not seen.
 */
uint64
dualwrite_fill(Oid relid, const char *sql)
{
	filled_table = relid;
	filled_depth = running.depth + 1;
	filled_rows = 0;
	PG_TRY();
	{
		if (SPI_execute(sql, false, 0) != SPI_OK_UPDATE)
			elog(ERROR, "unexpected result of \"%s\"", sql);
	}
	PG_FINALLY();
	{
		filled_table = InvalidOid;
	}
	PG_END_TRY();
	if (SPI_processed > filled_rows)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("rows of table \"%s\" are not filled, because its trigger does not fire",
						get_rel_name(relid))));
	return SPI_processed;
}

/*
 * Is it the statement that fills this table that runs, and none within it?
 */
bool
dualwrite_is_filling(Oid relid)
{
	return relid == filled_table && running.depth == filled_depth;
}

/* ---- who writes ---- */

typedef enum Writer
{
	WRITER_OLD,					/* or it is not known */
	WRITER_NEW,
	WRITER_TOLD					/* the new one, as it says; not by its view */
} Writer;

/* Is this a view of the table?  Those of versions select from it alone. */
static bool
is_view_of(Oid view, Oid relid)
{
	Relation	relation = relation_open(view, AccessShareLock);
	bool		result = false;
	ListCell   *lc;

	foreach(lc, get_view_query(relation)->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (rte->rtekind == RTE_RELATION && rte->relid == relid)
			result = true;
	}
	relation_close(relation, AccessShareLock);
	return result;
}

/* Is the target of the statement this schema's view of the table? */
static bool
targets_version(const PlannedStmt *plan, Oid schema, Oid relid)
{
	ListCell   *lc;

	foreach(lc, plan->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (OidIsValid(rte->relid) && rte->relkind == RELKIND_VIEW &&
			(rte_required_perms(plan_perminfos(plan), rte) &
			 (ACL_INSERT | ACL_UPDATE | ACL_DELETE)) != 0 &&
			get_rel_namespace(rte->relid) == schema &&
			is_view_of(rte->relid, relid))
			return true;
	}
	return false;
}

/*
 * Rows that are applied were written somewhere else, by whichever version, and
 * those that are derived by a statement of ours; so settings say nothing about
 * them.
 */
static Writer
who_writes(Prepared *prepared)
{
	const RuleSet *set = prepared->set;
	Oid			schema;

	if (running.depth == 0 ||
		SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA ||
		derive_is_statement(running.desc))
		return WRITER_OLD;
	if (prepared->serial != running.serial)
	{
		schema = get_namespace_oid(set->schema, true);
		prepared->is_new = running.desc != NULL && OidIsValid(schema) &&
			targets_version(running.desc->plannedstmt, schema,
							prepared->table);
		prepared->serial = running.serial;
	}
	if (prepared->is_new)
		return WRITER_NEW;
	if (bg_app_version != NULL &&
		(strcmp(bg_app_version, set->name) == 0 ||
		 strcmp(bg_app_version, set->schema) == 0))
		return WRITER_TOLD;
	return WRITER_OLD;
}

/* ---- rows ---- */

typedef struct Row
{
	TupleDesc	desc;
	Datum	   *values;			/* as they will be */
	bool	   *nulls;
	bool	   *replaced;
	Datum	   *old_values;		/* NULL for an insert */
	bool	   *old_nulls;
	bool		is_changed;		/* by us */
	Writer		writer;
} Row;

static NullableDatum
new_value(const Row *row, AttrNumber attnum)
{
	return (NullableDatum) {row->values[attnum - 1], row->nulls[attnum - 1]};
}

static NullableDatum
old_value(const Row *row, AttrNumber attnum)
{
	return (NullableDatum) {row->old_values[attnum - 1],
		row->old_nulls[attnum - 1]};
}

static bool
same_value(const Row *row, AttrNumber attnum, NullableDatum a, NullableDatum b)
{
	Form_pg_attribute attribute = TupleDescAttr(row->desc, attnum - 1);

	if (a.isnull || b.isnull)
		return a.isnull == b.isnull;
	return datum_image_eq(a.value, b.value, attribute->attbyval,
						  attribute->attlen);
}

/* Does an update change this column? */
static bool
is_updated(const Row *row, AttrNumber attnum)
{
	return !same_value(row, attnum, new_value(row, attnum),
					   old_value(row, attnum));
}

/* ---- expressions that may fail ---- */

/* What is tried by evaluate(). */
typedef struct Evaluation
{
	Prepared   *prepared;
	Direction  *direction;
	const Datum *values;
	const bool *nulls;
	NullableDatum result;
} Evaluation;

static void
evaluate_row(void *arg)
{
	Evaluation *evaluation = arg;

	evaluation->result = prepared_evaluate(evaluation->prepared,
										   evaluation->direction,
										   evaluation->values,
										   evaluation->nulls);
}

/* Does an error say nothing about the row?  The next try may succeed. */
static bool
is_passing(const ErrorData *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return true;
		default:
			return false;
	}
}

/*
 * Evaluate where nobody needs the value.  Returns the error, or NULL.
 */
static ErrorData *
evaluate(Evaluation *evaluation)
{
	ErrorData  *error = attempt(evaluate_row, evaluation);

	if (error != NULL && is_passing(error))
		ReThrowError(error);
	return error;
}

/*
 * Is the target what the expression gave for the row as it was?  Where it
 * failed it gave nothing.
 */
static bool
was_derived(Prepared *prepared, Direction *direction, const Row *row)
{
	Evaluation	evaluation = {
		prepared, direction, row->old_values, row->old_nulls, {0, true}
	};
	ErrorData  *error;

	if (direction->mark != 0 && !row->old_nulls[direction->mark - 1])
		return true;
	error = evaluate(&evaluation);
	if (error != NULL)
	{
		FreeErrorData(error);
		return false;
	}
	return same_value(row, direction->target, evaluation.result,
					  old_value(row, direction->target));
}

/* ---- what applies ---- */

static bool
reads_updated(const Direction *direction, const Row *row)
{
	for (int i = 0; i < direction->expression.nargs; i++)
	{
		AttrNumber	attnum = direction->expression.args[i];

		if (attnum != InvalidAttrNumber && is_updated(row, attnum))
			return true;
	}
	return false;
}

/*
 * A statement that names a table may be one of the other version than the
 * setting says, or the new version itself: a value that was given is not
 * overwritten, unless both columns were.
 */
static bool
applies_to_insert(const Direction *direction, const Row *row)
{
	bool		is_pair = direction->source != 0;
	bool		target_null = row->nulls[direction->target - 1];
	bool		source_null = is_pair && row->nulls[direction->source - 1];

	if (is_pair && row->replaced[direction->source - 1])
		return false;			/* we did it, from the target */
	switch (row->writer)
	{
		case WRITER_NEW:
			return !direction->up;
		case WRITER_TOLD:
			if (direction->up)
				return is_pair && target_null && !source_null;
			return target_null || (is_pair && !source_null);
		default:
			return target_null && (direction->up ||
								   (is_pair && !source_null));
	}
}

static bool
applies_to_update(Prepared *prepared, Direction *direction, const Row *row)
{
	if (is_updated(row, direction->target))
		return false;			/* the application wrote it, or we did */
	if (direction->source != 0 && row->replaced[direction->source - 1])
		return false;			/* we did that, from the target */
	if (direction->source != 0 && is_updated(row, direction->source))
		return true;
	if (direction->up && !prepared->set->filled &&
		row->nulls[direction->target - 1])
		return true;
	if (direction->up != (row->writer == WRITER_OLD))
		return false;
	return reads_updated(direction, row) &&
		was_derived(prepared, direction, row);
}

static void
set_value(Row *row, AttrNumber attnum, NullableDatum value)
{
	if (same_value(row, attnum, value, new_value(row, attnum)))
		return;
	row->values[attnum - 1] = value.value;
	row->nulls[attnum - 1] = value.isnull;
	row->replaced[attnum - 1] = true;
	row->is_changed = true;
}

/*
 * Evaluate where nobody needs the value yet: where there is none because the
 * expression fails, the row says why.
 */
static NullableDatum
evaluate_marked(Prepared *prepared, Direction *direction, Row *row)
{
	Evaluation	evaluation = {
		prepared, direction, row->values, row->nulls, {0, true}
	};
	NullableDatum mark = {0, true};
	ErrorData  *error = evaluate(&evaluation);

	if (error != NULL)
	{
		mark.value = CStringGetTextDatum(error->message);
		mark.isnull = false;
		FreeErrorData(error);
	}
	set_value(row, direction->mark, mark);
	return evaluation.result;
}

/* The row has a value for the direction's target: there is nothing to say. */
static void
clear_mark(const Direction *direction, Row *row)
{
	if (direction->mark != 0)
		set_value(row, direction->mark, (NullableDatum) {0, true});
}

/* A value for the direction's target, which the row gets. */
static void
sync_target(Prepared *prepared, Direction *direction, Row *row)
{
	NullableDatum value;

	if (direction->mark != 0 && prepared->set->lenient)
		value = evaluate_marked(prepared, direction, row);
	else
	{
		value = prepared_evaluate(prepared, direction, row->values,
								  row->nulls);
		clear_mark(direction, row);
	}
	set_value(row, direction->target, value);
}

static void
sync_row(Prepared *prepared, Row *row)
{
	for (int i = 0; i < prepared->ndirections; i++)
	{
		Direction  *direction = &prepared->directions[i];

		if (row->old_values == NULL ? applies_to_insert(direction, row) :
			applies_to_update(prepared, direction, row))
			sync_target(prepared, direction, row);
		else if (row->old_values != NULL &&
				 is_updated(row, direction->target) &&
				 !row->nulls[direction->target - 1])
			clear_mark(direction, row);
	}
}

/* ---- rows that move to another partition ---- */

/* After an update: is the row going to be inserted somewhere else? */
static void
note_move(Prepared *prepared, const TriggerData *data, HeapTuple tuple)
{
	MemoryContext oldcontext;

	if (!TRIGGER_FIRED_BY_UPDATE(data->tg_event) || running.desc == NULL)
		return;
	running.moved_table = InvalidOid;
	/* a trigger before the delete may keep the row where it is */
	if (data->tg_relation->trigdesc->trig_delete_before_row ||
		prepared_fits(prepared, tuple))
		return;
	if (running.moved != NULL)
		heap_freetuple(running.moved);
	oldcontext =
		MemoryContextSwitchTo(running.desc->estate->es_query_cxt);
	running.moved = heap_copytuple(tuple);
	MemoryContextSwitchTo(oldcontext);
	running.moved_from = prepared->relid;
	running.moved_table = prepared->table;
}

/*
 * The row as it left another partition to be inserted here, in terms of this
 * one; NULL if it did not.  The next row of a statement that is inserted is
 * the one that was to be moved.
 */
static HeapTuple
moved_row(const Prepared *prepared, Relation relation)
{
	Relation	source;
	TupleConversionMap *map;
	HeapTuple	tuple;

	if (running.moved_table != prepared->table)
		return NULL;
	running.moved_table = InvalidOid;
	source = relation_open(running.moved_from, NoLock);
	map = convert_tuples_by_name(RelationGetDescr(source),
								 RelationGetDescr(relation));
	tuple = map ? execute_attr_map_tuple(running.moved, map) : running.moved;
	relation_close(source, NoLock);
	return tuple;
}

/* Is this a column that a rule writes? */
static bool
is_target(const Prepared *prepared, AttrNumber attnum)
{
	for (int i = 0; i < prepared->ndirections; i++)
	{
		if (prepared->directions[i].target == attnum ||
			prepared->directions[i].mark == attnum)
			return true;
	}
	return false;
}

/*
 * Has the row that arrives the key of the one that left, or without a primary
 * key all that no rule writes and nothing generates?  A trigger may have stopped the one that left.
 */
static bool
is_moved_row(const Prepared *prepared, Relation relation, const Row *row)
{
	Bitmapset  *key =
		RelationGetIndexAttrBitmap(relation, INDEX_ATTR_BITMAP_PRIMARY_KEY);

	for (AttrNumber attnum = 1; attnum <= row->desc->natts; attnum++)
	{
		if (key == NULL ? !is_target(prepared, attnum) &&
			TupleDescAttr(row->desc, attnum - 1)->attgenerated == '\0' :
			bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, key))
		{
			if (is_updated(row, attnum))
				return false;
		}
	}
	return true;
}

/* ---- the trigger ---- */

/* Read the row, and as what it was before, if it was. */
static void
read_row(const Prepared *prepared, const TriggerData *data, Row *row)
{
	bool		is_update = TRIGGER_FIRED_BY_UPDATE(data->tg_event);
	HeapTuple	old = is_update ? data->tg_trigtuple :
		moved_row(prepared, data->tg_relation);
	int			natts;

	row->desc = RelationGetDescr(data->tg_relation);
	natts = row->desc->natts;
	row->values = palloc_array(Datum, natts);
	row->nulls = palloc_array(bool, natts);
	row->replaced = palloc0_array(bool, natts);
	heap_deform_tuple(is_update ? data->tg_newtuple : data->tg_trigtuple,
					  row->desc, row->values, row->nulls);
	if (old == NULL)
		return;
	row->old_values = palloc_array(Datum, natts);
	row->old_nulls = palloc_array(bool, natts);
	heap_deform_tuple(old, row->desc, row->old_values, row->old_nulls);
}

static void
check_call(FunctionCallInfo fcinfo)
{
	TriggerData *data = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		TRIGGER_FIRED_BY_DELETE(data->tg_event) ||
		data->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired by a trigger of a change",
						"bluegreen.sync_columns")));
}

/*
 * bluegreen.sync_columns() returns trigger; see the top.  While rows are
 * filled, one that stays as it is is not written.
 */
Datum
bluegreen_sync_columns(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	HeapTuple	tuple;
	Prepared   *prepared;
	PreparedCall call;
	Row			row = {0};

	check_call(fcinfo);
	shared_require();
	prepared = prepared_find(data);
	tuple = TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple :
		data->tg_trigtuple;
	read_row(prepared, data, &row);
	row.writer = who_writes(prepared);
	prepared_enter(prepared, &call);
	PG_TRY();
	{
		prepared_ready(prepared, data->tg_relation);
		if (TRIGGER_FIRED_BY_INSERT(data->tg_event) &&
			row.old_values != NULL &&
			!is_moved_row(prepared, data->tg_relation, &row))
			row.old_values = NULL;
		sync_row(prepared, &row);
		if (row.is_changed)
			tuple = heap_modify_tuple(tuple, row.desc, row.values, row.nulls,
									  row.replaced);
		note_move(prepared, data, tuple);
	}
	PG_CATCH();
	{
		prepared_leave(prepared, &call, true);
		PG_RE_THROW();
	}
	PG_END_TRY();
	prepared_leave(prepared, &call, false);
	if (dualwrite_is_filling(prepared->relid))
	{
		if (row.is_changed)
			filled_rows++;
		else
			tuple = NULL;
	}
	return PointerGetDatum(tuple);
}
