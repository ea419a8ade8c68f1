/*-------------------------------------------------------------------------
 *
 * dualwrite.c
 *		The trigger that keeps the columns of the old and the new version in
 *		step.
 *
 * bluegreen.sync_columns() is a BEFORE INSERT OR UPDATE trigger for each row.
 * Its rules are its argument (rule.c).  It assigns to the row at hand and does
 * nothing else, so it cannot recurse.  What it does when is the table in
 * doc/expand.md; applies() below is that table.
 *
 * Which version writes.  What a statement was written for is the view that it
 * names as its target: rewriting leaves the view among the relations of the
 * plan, with the privileges that the statement needs on it.  The plan of the
 * innermost statement that runs is remembered by hooks of the executor; a
 * utility statement (COPY) has none.  search_path says less: it may name
 * several schemas, and inside of functions it is the function's.
 *
 * Expressions are SQL of the table's owner, so they are evaluated as him, in a
 * security-restricted operation, under the change's search_path.  They are
 * prepared once in a session for each trigger, and again when the relation
 * cache says that something about the table is new.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "compat.h"
#include "core/settings.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "rewrite/rewriteHandler.h"
#include "schema/shape.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

PG_FUNCTION_INFO_V1(bluegreen_sync_columns);

bool		dualwrite_filling = false;

/* ---- the statement that runs ---- */

/* The innermost statement that runs. */
typedef struct Statement
{
	QueryDesc  *desc;			/* NULL: none, or a utility statement */
	int			depth;			/* of statements */
	uint64		serial;			/* of no other statement; 0: none */
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

	running.desc = desc;
	running.depth++;
	running.serial = ++last_serial;
	return outer;
}

static void
watch_run EXECUTOR_RUN_PARAMS
{
	Statement	outer = watch_begin(desc);

	PG_TRY();
	{
		if (next_run)
			next_run EXECUTOR_RUN_ARGS;
		else
			standard_ExecutorRun EXECUTOR_RUN_ARGS;
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
	Statement	outer = watch_begin(desc);

	PG_TRY();
	{
		if (next_finish)
			next_finish(desc);
		else
			standard_ExecutorFinish(desc);
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
	Statement	outer = watch_begin(NULL);

	PG_TRY();
	{
		if (next_utility)
			next_utility(pstmt, source, read_only, context, params,
						 environment, dest, completion);
		else
			standard_ProcessUtility(pstmt, source, read_only, context, params,
									environment, dest, completion);
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
	next_run = ExecutorRun_hook;
	ExecutorRun_hook = watch_run;
	next_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = watch_finish;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = watch_utility;
}

/*
 * Text of the innermost statement that runs, or NULL: there is none, or it is
 * a utility statement.
 */
const char *
dualwrite_statement(void)
{
	return running.desc ? running.desc->sourceText : NULL;
}

/* ---- prepared rules ---- */

/* An expression with what it reads and gives. */
typedef struct Expression
{
	SPIPlanPtr	plan;			/* NULL: there is no expression */
	int			nargs;
	AttrNumber *args;
	Oid			type;			/* that it gives */
	ExprState  *coercion;		/* to the target's type, or NULL */
} Expression;

/* One direction of a rule: what is computed for which column. */
typedef struct Direction
{
	bool		up;
	AttrNumber	source;			/* the other column of the pair, or 0 */
	AttrNumber	target;			/* 0: there is no such direction */
	AttrNumber	mark;			/* says why the expression failed; 0: none */
	Expression	expression;
} Direction;

typedef struct Prepared
{
	Oid			trigger;		/* hash key */
	bool		valid;
	int			users;			/* calls that use it now */
	Oid			relid;
	char	   *argument;
	MemoryContext context;		/* of all below */
	RuleSet    *set;
	int			ndirections;	/* first all downs, then all ups */
	Direction  *directions;
	ExprContext *econtext;
	uint64		serial;			/* of the statement that is_new is for */
	bool		is_new;			/* does it write through the new version? */
} Prepared;

static HTAB *cache = NULL;

static void
forget_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Prepared   *prepared;

	hash_seq_init(&status, cache);
	while ((prepared = hash_seq_search(&status)) != NULL)
	{
		if (!OidIsValid(relid) || prepared->relid == relid)
			prepared->valid = false;
	}
}

static void
create_cache(void)
{
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(Prepared),
		.hcxt = TopMemoryContext
	};

	cache = hash_create("pg_bluegreen dual writes", 16, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
}

static AttrNumber
require_attribute(Relation relation, const char *name)
{
	AttrNumber	attnum = name ? get_attnum(RelationGetRelid(relation), name) :
		InvalidAttrNumber;

	if (name != NULL && attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\", which a change keeps in step, does not exist",
						name, RelationGetRelationName(relation))));
	return attnum;
}

/* What turns a value of the expression's type to one of the column's. */
static ExprState *
prepare_coercion(Relation relation, AttrNumber target, Oid given)
{
	Form_pg_attribute attribute =
		TupleDescAttr(RelationGetDescr(relation), target - 1);
	CaseTestExpr *value = makeNode(CaseTestExpr);
	Node	   *node;

	value->typeId = given;
	value->typeMod = -1;
	value->collation = get_typcollation(given);
	node = coerce_to_target_type(NULL, (Node *) value, given,
								 attribute->atttypid, attribute->atttypmod,
								 COERCION_PLPGSQL, COERCE_IMPLICIT_CAST, -1);
	if (node == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" is of type %s, but its expression is of type %s",
						NameStr(attribute->attname),
						format_type_be(attribute->atttypid),
						format_type_be(given))));
	if (node == (Node *) value)
		return NULL;
	return ExecInitExpr(expression_planner((Expr *) node), NULL);
}

static void
prepare_expression(Expression *expression, Relation relation,
				   const char *text, List *reads, const char *alias)
{
	Oid		   *types = palloc_array(Oid, list_length(reads) + 1);
	StringInfoData sql;
	ListCell   *lc;

	expression->nargs = list_length(reads);
	expression->args = palloc_array(AttrNumber, expression->nargs + 1);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT (%s\n)", text);
	foreach(lc, reads)
	{
		ColumnRead *read = lfirst(lc);
		int			i = foreach_current_index(lc);

		expression->args[i] = require_attribute(relation, read->column);
		types[i] = TupleDescAttr(RelationGetDescr(relation),
								 expression->args[i] - 1)->atttypid;
		appendStringInfo(&sql, "%s$%d AS %s",
						 i == 0 ? " FROM (SELECT " : ", ", i + 1,
						 quote_identifier(read->name));
	}
	if (reads != NIL)
		appendStringInfo(&sql, ") AS %s", quote_identifier(alias));
	expression->plan = SPI_prepare(sql.data, expression->nargs, types);
	if (expression->plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql.data,
			 SPI_result_code_string(SPI_result));
	if (SPI_keepplan(expression->plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
}

/* Type of what a prepared statement with one column gives. */
static Oid
plan_type(SPIPlanPtr plan)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));

	return TupleDescAttr(source->resultDesc, 0)->atttypid;
}

static void
prepare_direction(Prepared *prepared, Direction *direction,
				  Relation relation, const Rule *rule)
{
	const RuleSet *set = prepared->set;
	const char *alias = direction->up || set->new_alias == NULL ?
		set->old_alias : set->new_alias;
	MemoryContext oldcontext;

	direction->source =
		require_attribute(relation, direction->up ? rule->old_column :
						  rule->new_column);
	direction->target =
		require_attribute(relation, direction->up ? rule->new_column :
						  rule->old_column);
	if (!direction->up)
		direction->mark = require_attribute(relation, rule->mark);
	oldcontext = MemoryContextSwitchTo(prepared->context);
	prepare_expression(&direction->expression, relation,
					   direction->up ? rule->up : rule->down,
					   direction->up ? rule->up_reads : rule->down_reads,
					   alias);
	/* SPI_prepare() has left us in a context that ends with SPI_finish() */
	MemoryContextSwitchTo(prepared->context);
	direction->expression.type = plan_type(direction->expression.plan);
	direction->expression.coercion =
		prepare_coercion(relation, direction->target,
						 direction->expression.type);
	MemoryContextSwitchTo(oldcontext);
}

static void
release_prepared(Prepared *prepared)
{
	for (int i = 0; i < prepared->ndirections; i++)
	{
		if (prepared->directions[i].expression.plan != NULL)
			SPI_freeplan(prepared->directions[i].expression.plan);
	}
	prepared->ndirections = 0;
	if (prepared->econtext != NULL)
		FreeExprContext(prepared->econtext, false);
	prepared->econtext = NULL;
	if (prepared->context != NULL)
		MemoryContextDelete(prepared->context);
	prepared->context = NULL;
}

/* Prepare the rules of a trigger; the caller runs as the table's owner. */
static void
prepare_rules(Prepared *prepared, Relation relation)
{
	bool		ups[] = {false, true};
	ListCell   *lc;

	prepared->directions =
		MemoryContextAllocZero(prepared->context, sizeof(Direction) *
							   (2 * list_length(prepared->set->rules) + 1));
	for (int i = 0; i < lengthof(ups); i++)
	{
		foreach(lc, prepared->set->rules)
		{
			Rule	   *rule = lfirst(lc);

			if ((ups[i] ? rule->up : rule->down) == NULL)
				continue;
			prepared->directions[prepared->ndirections].up = ups[i];
			prepare_direction(prepared,
							  &prepared->directions[prepared->ndirections++],
							  relation, rule);
		}
	}
}

static Prepared *
find_prepared(const TriggerData *data)
{
	Oid			trigger = data->tg_trigger->tgoid;
	Prepared   *prepared;
	MemoryContext oldcontext;
	RunAs		saved;
	bool		found;

	if (cache == NULL)
		create_cache();
	prepared = hash_search(cache, &trigger, HASH_ENTER, &found);
	if (!found)
	{
		memset(prepared, 0, sizeof(Prepared));
		prepared->trigger = trigger;
	}
	/* within a call for the same table it is in use */
	if (prepared->valid || prepared->users > 0)
		return prepared;
	release_prepared(prepared);
	prepared->relid = RelationGetRelid(data->tg_relation);
	prepared->context = AllocSetContextCreate(TopMemoryContext,
											  "pg_bluegreen dual write",
											  ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(prepared->context);
	prepared->argument = pstrdup(data->tg_trigger->tgargs[0]);
	prepared->set = rules_read(prepared->argument);
	prepared->econtext = CreateStandaloneExprContext();
	MemoryContextSwitchTo(oldcontext);
	prepared->valid = true;		/* unless something happens meanwhile */
	run_as_owner(data->tg_relation->rd_rel->relowner, prepared->set->path,
				 &saved);
	SPI_connect();
	PG_TRY();
	{
		prepare_rules(prepared, data->tg_relation);
	}
	PG_CATCH();
	{
		prepared->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	SPI_finish();
	run_as_restore(&saved);
	return prepared;
}

/* ---- who writes ---- */

typedef enum Writer
{
	WRITER_OLD,
	WRITER_NEW,
	WRITER_UNKNOWN
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

/* The table that versions have a view of: of a leaf, the topmost parent. */
static Oid
root_of(Oid relid)
{
	if (!get_rel_relispartition(relid))
		return relid;
	return llast_oid(get_partition_ancestors(relid));
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
 * Rows that are applied were written somewhere else, by whichever version; so
 * settings of a database say nothing about them.
 */
static Writer
who_writes(Prepared *prepared)
{
	const RuleSet *set = prepared->set;
	Oid			schema;

	if (running.depth == 0 ||
		SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		return WRITER_UNKNOWN;
	if (bg_app_version != NULL && *bg_app_version)
		return strcmp(bg_app_version, set->name) == 0 ||
			strcmp(bg_app_version, set->schema) == 0 ? WRITER_NEW : WRITER_OLD;
	if (running.desc == NULL)
		return WRITER_OLD;
	if (prepared->serial != running.serial)
	{
		schema = get_namespace_oid(set->schema, true);
		prepared->is_new = OidIsValid(schema) &&
			targets_version(running.desc->plannedstmt, schema,
							root_of(prepared->relid));
		prepared->serial = running.serial;
	}
	return prepared->is_new ? WRITER_NEW : WRITER_OLD;
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
	bool		is_partition;
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

/*
 * The value of an expression for a row, or with of_old for the row as it was.
 * Made in the current memory context; the caller runs as the table's owner.
 */
static NullableDatum
evaluate(Prepared *prepared, const Direction *direction, const Row *row,
		 bool of_old)
{
	const Expression *expression = &direction->expression;
	Datum	   *args = palloc_array(Datum, expression->nargs + 1);
	char	   *nulls = palloc(expression->nargs + 1);
	MemoryContext context = CurrentMemoryContext;
	MemoryContext oldcontext;
	Form_pg_attribute target =
		TupleDescAttr(row->desc, direction->target - 1);
	NullableDatum result;

	for (int i = 0; i < expression->nargs; i++)
	{
		int			a = expression->args[i] - 1;

		args[i] = of_old ? row->old_values[a] : row->values[a];
		nulls[i] = (of_old ? row->old_nulls : row->nulls)[a] ? 'n' : ' ';
	}
	SPI_connect();
	if (SPI_execute_plan(expression->plan, args, nulls, true, 1) !=
		SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "expression for column \"%s\" gave no value",
			 NameStr(target->attname));
	result.value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								 1, &result.isnull);
	if (expression->coercion != NULL)
	{
		prepared->econtext->caseValue_datum = result.value;
		prepared->econtext->caseValue_isNull = result.isnull;
		oldcontext =
			MemoryContextSwitchTo(prepared->econtext->ecxt_per_tuple_memory);
		result.value = ExecEvalExpr(expression->coercion, prepared->econtext,
									&result.isnull);
		MemoryContextSwitchTo(oldcontext);
	}
	oldcontext = MemoryContextSwitchTo(context);
	if (!result.isnull)
		result.value = datumCopy(result.value, target->attbyval,
								 target->attlen);
	MemoryContextSwitchTo(oldcontext);
	ResetExprContext(prepared->econtext);
	SPI_finish();
	return result;
}

/* Is the target what the expression gave for the row as it was? */
static bool
was_derived(Prepared *prepared, const Direction *direction, const Row *row)
{
	return same_value(row, direction->target,
					  evaluate(prepared, direction, row, true),
					  old_value(row, direction->target));
}

static bool
reads_updated(const Direction *direction, const Row *row)
{
	for (int i = 0; i < direction->expression.nargs; i++)
	{
		if (is_updated(row, direction->expression.args[i]))
			return true;
	}
	return false;
}

/*
 * Does a row that is inserted say the same in both columns of a pair?  One that
 * an update has moved to this partition does: it was looked at where it was.
 */
static bool
is_moved(Prepared *prepared, const Direction *down, const Row *row)
{
	if (!row->is_partition || down->source == 0 ||
		row->nulls[down->source - 1] || row->nulls[down->target - 1])
		return false;
	for (int i = 0; i < prepared->ndirections; i++)
	{
		const Direction *up = &prepared->directions[i];

		if (up->up && up->source == down->target)
			return same_value(row, up->target,
							  evaluate(prepared, up, row, false),
							  new_value(row, up->target));
	}
	return false;
}

static bool
applies_to_insert(Prepared *prepared, const Direction *direction,
				  const Row *row, Writer writer)
{
	bool		target_null = row->nulls[direction->target - 1];

	if (writer == WRITER_UNKNOWN)
		return target_null && (direction->source == 0 ? direction->up :
							   direction->up ||
							   !row->nulls[direction->source - 1]);
	if (direction->up)
		return writer == WRITER_OLD && target_null;
	return writer == WRITER_NEW && !is_moved(prepared, direction, row);
}

static bool
applies_to_update(Prepared *prepared, const Direction *direction,
				  const Row *row, Writer writer)
{
	if (is_updated(row, direction->target))
		return false;			/* the application wrote it, or we did */
	if (direction->source != 0 && is_updated(row, direction->source))
		return true;
	if (direction->up && !prepared->set->filled &&
		row->nulls[direction->target - 1])
		return true;
	if (direction->up ? writer == WRITER_NEW : writer != WRITER_NEW)
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
 * The same as evaluate() where nobody needs the value yet: where there is none
 * because the expression fails, the row says why.
 */
static NullableDatum
evaluate_marked(Prepared *prepared, const Direction *direction, Row *row)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	NullableDatum volatile mark = {0, true};
	NullableDatum volatile result = {0, true};

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		result = evaluate(prepared, direction, row, false);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			ReThrowError(error);
		mark.value = CStringGetTextDatum(error->message);
		mark.isnull = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	set_value(row, direction->mark, mark);
	return result;
}

/* A value for the direction's target, which the row gets. */
static void
sync_target(Prepared *prepared, const Direction *direction, Row *row)
{
	NullableDatum value;

	if (direction->mark != 0 && prepared->set->lenient)
		value = evaluate_marked(prepared, direction, row);
	else
	{
		value = evaluate(prepared, direction, row, false);
		if (direction->mark != 0)
			set_value(row, direction->mark, (NullableDatum) {0, true});
	}
	set_value(row, direction->target, value);
}

static void
sync_row(Prepared *prepared, Row *row)
{
	Writer		writer = who_writes(prepared);

	for (int i = 0; i < prepared->ndirections; i++)
	{
		const Direction *direction = &prepared->directions[i];

		if (row->old_values == NULL ?
			!applies_to_insert(prepared, direction, row, writer) :
			!applies_to_update(prepared, direction, row, writer))
			continue;
		sync_target(prepared, direction, row);
	}
}

static void
read_row(const TriggerData *data, Row *row)
{
	bool		is_update = TRIGGER_FIRED_BY_UPDATE(data->tg_event);
	int			natts;

	row->desc = RelationGetDescr(data->tg_relation);
	row->is_partition = data->tg_relation->rd_rel->relispartition;
	natts = row->desc->natts;
	row->values = palloc_array(Datum, natts);
	row->nulls = palloc_array(bool, natts);
	row->replaced = palloc0_array(bool, natts);
	heap_deform_tuple(is_update ? data->tg_newtuple : data->tg_trigtuple,
					  row->desc, row->values, row->nulls);
	if (!is_update)
		return;
	row->old_values = palloc_array(Datum, natts);
	row->old_nulls = palloc_array(bool, natts);
	heap_deform_tuple(data->tg_trigtuple, row->desc, row->old_values,
					  row->old_nulls);
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
	RunAs		saved;
	Row			row = {0};

	check_call(fcinfo);
	prepared = find_prepared(data);
	tuple = TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple :
		data->tg_trigtuple;
	read_row(data, &row);
	run_as_owner(data->tg_relation->rd_rel->relowner, prepared->set->path,
				 &saved);
	prepared->users++;
	PG_TRY();
	{
		sync_row(prepared, &row);
	}
	PG_FINALLY();
	{
		prepared->users--;
	}
	PG_END_TRY();
	run_as_restore(&saved);
	if (row.is_changed)
		tuple = heap_modify_tuple(tuple, row.desc, row.values, row.nulls,
								  row.replaced);
	else if (dualwrite_filling)
		tuple = NULL;
	return PointerGetDatum(tuple);
}
