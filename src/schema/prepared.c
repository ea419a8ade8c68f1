/*-------------------------------------------------------------------------
 *
 * prepared.c
 *		The rules of a dual write's trigger, prepared in this session.
 *
 * Expressions are SQL of the table's owner, so they are evaluated as him, in a
 * security-restricted operation, under the change's search_path.  The table is
 * the one that the change was made for: a partition has a clone of the
 * trigger, and may belong to somebody else, who has not written the rules.
 *
 * What an expression calls may write.  Foreign keys and triggers hold for that
 * as for any write, also where rows are applied or filled and the session is
 * in session_replication_role = replica.
 *
 * Rules are prepared once in a session for each trigger, and again when the
 * relation cache says that something about the table is new.  A call may come
 * within another one of the same trigger: an expression, or a type's input or
 * check, has written to the same table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "compat.h"
#include "core/catalog.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "schema/prepared.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"

static HTAB *cache = NULL;

static void
forget_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Prepared   *prepared;

	hash_seq_init(&status, cache);
	while ((prepared = hash_seq_search(&status)) != NULL)
	{
		if (!OidIsValid(relid) || prepared->relid == relid ||
			prepared->table == relid)
		{
			prepared->valid = false;
			prepared->changed = true;
		}
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

/* ---- reading and preparing ---- */

/*
 * The trigger of the change: of a clone, the one that it was cloned from.
 * Sets the table that this one is of.
 */
static Oid
original_trigger(const Trigger *trigger, Oid *relid)
{
	Relation	catalog = table_open(TriggerRelationId, AccessShareLock);
	Oid			original = trigger->tgoid;
	Oid			parent = trigger->tgisclone ? original : InvalidOid;

	/* the relation cache does not tell the parent */
	while (OidIsValid(parent))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		original = parent;
		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(original));
		scan = systable_beginscan(catalog, TriggerOidIndexId, true, NULL, 1,
								  &key);
		tuple = systable_getnext(scan);
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "trigger %u does not exist", original);
		*relid = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
		parent = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		systable_endscan(scan);
	}
	table_close(catalog, AccessShareLock);
	return original;
}

/*
 * Who may create a trigger on a table need not be its owner, as whom the rules
 * are evaluated.  Only the owner, and so a change, can make the trigger depend
 * on the extension.
 */
static void
require_trigger_of_change(Oid trigger, const TriggerData *data)
{
	List	   *extensions = getAutoExtensionsOfObject(TriggerRelationId,
													   trigger);

	if (!list_member_oid(extensions,
						 get_extension_oid("pg_bluegreen", false)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("trigger \"%s\" of table \"%s\" was not made by a change",
						data->tg_trigger->tgname,
						RelationGetRelationName(data->tg_relation))));
}

static AttrNumber
require_attribute(Relation relation, const char *name)
{
	AttrNumber	attnum = name ? get_attnum(RelationGetRelid(relation), name) :
		InvalidAttrNumber;

	if (name != NULL && attnum <= InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\", which a change keeps in step, does not exist",
						name, RelationGetRelationName(relation))));
	return attnum;
}

/* What turns a value of the expression's type to one of the column's. */
static Expr *
prepare_cast(Relation relation, AttrNumber target, Oid given)
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
	return expression_planner((Expr *) node);
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

/* Type of what the statement gives; error if it is not one expression. */
static Oid
plan_type(const Expression *expression, const char *text)
{
	List	   *sources = SPI_plan_get_plan_sources(expression->plan);
	TupleDesc	result = ((CachedPlanSource *) linitial(sources))->resultDesc;

	if (list_length(sources) != 1 || result == NULL || result->natts != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"%s\" is not one expression", text)));
	return TupleDescAttr(result, 0)->atttypid;
}

static void
prepare_direction(Prepared *prepared, Direction *direction,
				  Relation relation, const Rule *rule)
{
	const RuleSet *set = prepared->set;
	const char *alias = direction->up || set->new_alias == NULL ?
		set->old_alias : set->new_alias;
	const char *text = direction->up ? rule->up : rule->down;
	Expression *expression = &direction->expression;
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
	prepare_expression(expression, relation, text,
					   direction->up ? rule->up_reads : rule->down_reads,
					   alias);
	/* SPI_prepare() has left us in a context that ends with SPI_finish() */
	MemoryContextSwitchTo(prepared->context);
	expression->type = plan_type(expression, text);
	expression->cast = prepare_cast(relation, direction->target,
									expression->type);
	expression->coercion = ExecInitExpr(expression->cast, NULL);
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
	prepared->bounds = NULL;
	if (prepared->econtext != NULL)
		FreeExprContext(prepared->econtext, false);
	prepared->econtext = NULL;
	if (prepared->context != NULL)
		MemoryContextDelete(prepared->context);
	prepared->context = NULL;
}

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

/* What a row has to be to belong to this partition. */
static void
prepare_bounds(Prepared *prepared, Relation relation)
{
	List	   *bounds = RelationGetPartitionQual(relation);

	prepared->bounds =
		ExecInitCheck((List *) expression_planner((Expr *) bounds), NULL);
	prepared->slot = MakeSingleTupleTableSlot(prepared->desc,
											  &TTSOpsHeapTuple);
}

/*
 * The trigger that is fired, as this session knows it.  It may not be ready
 * (prepared_ready()).  Errors: it is no trigger of a change.
 */
Prepared *
prepared_find(const TriggerData *data)
{
	const Trigger *trigger = data->tg_trigger;
	Prepared   *prepared;
	MemoryContext oldcontext;
	bool		found;

	if (cache == NULL)
		create_cache();
	prepared = hash_search(cache, &trigger->tgoid, HASH_ENTER, &found);
	if (!found)
	{
		memset(prepared, 0, sizeof(Prepared));
		prepared->trigger = trigger->tgoid;
	}
	/* within a call for the same table it is in use */
	if (prepared->valid || prepared->users > 0)
		return prepared;
	release_prepared(prepared);
	prepared->ready = false;
	prepared->changed = false;
	prepared->relid = RelationGetRelid(data->tg_relation);
	prepared->table = prepared->relid;
	require_trigger_of_change(original_trigger(trigger, &prepared->table),
							  data);
	prepared->owner = relation_owner(prepared->table);
	prepared->context = AllocSetContextCreate(TopMemoryContext,
											  "pg_bluegreen dual write",
											  ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(prepared->context);
	prepared->argument = pstrdup(trigger->tgargs[0]);
	prepared->set = rules_read(prepared->argument);
	prepared->econtext = CreateStandaloneExprContext();
	prepared->desc = CreateTupleDescCopy(RelationGetDescr(data->tg_relation));
	MemoryContextSwitchTo(oldcontext);
	prepared->valid = !prepared->changed;
	return prepared;
}

/* ---- use ---- */

/*
 * Become the table's owner, until prepared_leave().
 *
 * The variable is set as it is, because setting the parameter would throw away
 * every plan of the session, twice for each row.  Plans depend on it only by
 * rules that are enabled for one of the roles.
 */
void
prepared_enter(Prepared *prepared, PreparedCall *call)
{
	run_restricted(prepared->owner, prepared->set->path, &call->saved);
	call->role = SessionReplicationRole;
	SessionReplicationRole = SESSION_REPLICATION_ROLE_ORIGIN;
	prepared->users++;
}

/*
 * Be who it was before; after an error, the abort of the transaction sees to
 * all but what it does not know of.
 */
void
prepared_leave(Prepared *prepared, PreparedCall *call, bool failed)
{
	prepared->users--;
	if (!failed)
		run_as_restore(&call->saved);
	SessionReplicationRole = call->role;
}

/*
 * Prepare the rules, if they are not; the caller runs as the table's owner.
 * Errors: those of the expressions.
 */
void
prepared_ready(Prepared *prepared, Relation relation)
{
	MemoryContext oldcontext;

	if (prepared->ready)
		return;
	prepared->ready = true;
	SPI_connect();
	PG_TRY();
	{
		prepare_rules(prepared, relation);
		oldcontext = MemoryContextSwitchTo(prepared->context);
		if (relation->rd_rel->relispartition)
			prepare_bounds(prepared, relation);
		MemoryContextSwitchTo(oldcontext);
	}
	PG_CATCH();
	{
		prepared->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	SPI_finish();
}

/*
 * Turn a value to the type of the column.  A call around this one may be in
 * the midst of the same cast; then this one needs a state of its own, which
 * goes with the caller's memory context.
 */
static void
cast_value(Prepared *prepared, const Expression *expression,
		   NullableDatum *value)
{
	ExprContext *econtext = prepared->econtext;
	ExprState  *state = expression->coercion;

	if (prepared->users > 1)
	{
		econtext = CreateStandaloneExprContext();
		state = ExecInitExpr(expression->cast, NULL);
	}
	econtext->caseValue_datum = value->value;
	econtext->caseValue_isNull = value->isnull;
	value->value = ExecEvalExprSwitchContext(state, econtext, &value->isnull);
}

/*
 * The value of an expression for a row, in the current memory context; the
 * caller runs as the table's owner.  Errors: those of the expression.
 */
NullableDatum
prepared_evaluate(Prepared *prepared, const Direction *direction,
				  const Datum *values, const bool *nulls)
{
	const Expression *expression = &direction->expression;
	Form_pg_attribute target =
		TupleDescAttr(prepared->desc, direction->target - 1);
	Datum	   *args = palloc_array(Datum, expression->nargs + 1);
	char	   *null_args = palloc(expression->nargs + 1);
	MemoryContext context = CurrentMemoryContext;
	MemoryContext oldcontext;
	NullableDatum result;

	for (int i = 0; i < expression->nargs; i++)
	{
		args[i] = values[expression->args[i] - 1];
		null_args[i] = nulls[expression->args[i] - 1] ? 'n' : ' ';
	}
	SPI_connect();
	if (SPI_execute_plan(expression->plan, args, null_args, true, 1) !=
		SPI_OK_SELECT || SPI_processed != 1 ||
		SPI_gettypeid(SPI_tuptable->tupdesc, 1) != expression->type)
	{
		/* a function that it calls may be another one now */
		prepared->valid = false;
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("expression for column \"%s\" gave no value of type %s",
						NameStr(target->attname),
						format_type_be(expression->type))));
	}
	result.value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								 1, &result.isnull);
	if (expression->coercion != NULL)
		cast_value(prepared, expression, &result);
	oldcontext = MemoryContextSwitchTo(context);
	if (!result.isnull)
		result.value = datumCopy(result.value, target->attbyval,
								 target->attlen);
	MemoryContextSwitchTo(oldcontext);
	/* what a call around this one has there, it needs */
	if (prepared->users == 1)
		ResetExprContext(prepared->econtext);
	SPI_finish();
	return result;
}

/*
 * Does a row belong to the partition that the trigger is of?
 */
bool
prepared_fits(Prepared *prepared, HeapTuple tuple)
{
	bool		result;

	if (prepared->bounds == NULL)
		return true;
	ExecStoreHeapTuple(tuple, prepared->slot, false);
	prepared->econtext->ecxt_scantuple = prepared->slot;
	result = ExecCheck(prepared->bounds, prepared->econtext);
	ExecClearTuple(prepared->slot);
	ResetExprContext(prepared->econtext);
	return result;
}
