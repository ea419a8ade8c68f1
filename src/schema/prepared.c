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
 * Rules are read once in a session for each trigger, and again when the relation
 * cache says that something about the table is new.  An expression is prepared
 * when it is first evaluated, so it fails only who needs it.  The server's plan
 * cache follows what it calls; to what type that gives, and how it becomes the
 * column's, we look each time.
 *
 * A call may come within another one of the same trigger: an expression, or a
 * type's input or check, has written to the same table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "compat.h"
#include "core/catalog.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "schema/prepared.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
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

/* ---- planned expressions ---- */

static void
set_code(Code *code, Expr *expr)
{
	*code = (Code) {.expr = expr};
	get_typlenbyval(exprType((Node *) expr), &code->length, &code->by_value);
}

static Execution *
create_execution(Expr *expr)
{
	MemoryContext context = AllocSetContextCreate(TopTransactionContext,
												  "pg_bluegreen expression",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	Execution  *execution = palloc0_object(Execution);

	execution->context = context;
	execution->econtext = CreateStandaloneExprContext();
	/* a copy, since it may be planned anew while it runs */
	execution->state = ExecInitExpr(copyObject(expr), NULL);
	MemoryContextSwitchTo(oldcontext);
	return execution;
}

/* Executions that have failed in a transaction, and wait for being freed. */
static Execution *failed = NULL;
static LocalTransactionId failed_in = InvalidLocalTransactionId;

static void
note_failed(Execution *execution)
{
	LocalTransactionId transaction = proc_lxid(MyProc);

	if (failed_in != transaction)
		failed = NULL;			/* gone with their transaction */
	failed_in = transaction;
	execution->next = failed;
	failed = execution;
}

/* The subtransactions that they have failed in are over. */
static void
free_failed(LocalTransactionId transaction)
{
	while (failed != NULL && failed_in == transaction)
	{
		Execution  *execution = failed;

		failed = execution->next;
		MemoryContextDelete(execution->context);
	}
	failed = NULL;
}

/*
 * The execution that the transaction has; or a new one that replaces it, or
 * that is only for a call within the one that runs it.
 */
static Execution *
find_execution(Code *code)
{
	LocalTransactionId transaction = proc_lxid(MyProc);

	free_failed(transaction);
	if (code->transaction != transaction)
		code->execution = NULL;
	code->transaction = transaction;
	if (code->execution == NULL)
		code->execution = create_execution(code->expr);
	return code->execution->busy ? create_execution(code->expr) :
		code->execution;
}

/*
 * The value for what a CaseTestExpr stands for, or for the slot's row; in the
 * current memory context.
 */
static NullableDatum
run_code(Code *code, NullableDatum given, TupleTableSlot *slot)
{
	Execution  *execution = find_execution(code);
	ExprContext *econtext = execution->econtext;
	NullableDatum result;

	execution->busy = true;
	econtext->caseValue_datum = given.value;
	econtext->caseValue_isNull = given.isnull;
	econtext->ecxt_scantuple = slot;
	PG_TRY();
	{
		result.value = ExecEvalExprSwitchContext(execution->state, econtext,
												 &result.isnull);
	}
	PG_CATCH();
	{
		/* what it has kept may be rolled back with a subtransaction */
		if (code->execution == execution)
			code->execution = NULL;
		note_failed(execution);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (!result.isnull)
		result.value = datumCopy(result.value, code->by_value, code->length);
	if (code->execution == execution)
	{
		ResetExprContext(econtext);
		execution->busy = false;
	}
	else
	{
		FreeExprContext(econtext, true);
		MemoryContextDelete(execution->context);
	}
	return result;
}

/* ---- preparing ---- */

static AttrNumber
find_attribute(const Prepared *prepared, const char *name)
{
	AttrNumber	attnum = get_attnum(prepared->relid, name);

	return Max(attnum, InvalidAttrNumber);
}

static void
missing_attribute(const Prepared *prepared, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table \"%s\", which a change keeps in step, does not exist",
					name, get_rel_name(prepared->relid))));
}

static AttrNumber
require_attribute(const Prepared *prepared, const char *name)
{
	AttrNumber	attnum = name ? find_attribute(prepared, name) :
		InvalidAttrNumber;

	if (name != NULL && attnum == InvalidAttrNumber)
		missing_attribute(prepared, name);
	return attnum;
}

/* The column that says why an expression failed, which is a text. */
static AttrNumber
require_mark(const Prepared *prepared, const char *name)
{
	AttrNumber	attnum = require_attribute(prepared, name);

	if (attnum != InvalidAttrNumber &&
		TupleDescAttr(prepared->desc, attnum - 1)->atttypid != TEXTOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" is not of type text", name)));
	return attnum;
}

/*
 * What turns a value that the expression gave to one of the column's type: it
 * is not what it was if a function, a cast or a domain is another one now.
 */
static void
prepare_cast(Prepared *prepared, Direction *direction, Oid given)
{
	Expression *expression = &direction->expression;
	Form_pg_attribute attribute =
		TupleDescAttr(prepared->desc, direction->target - 1);
	CaseTestExpr *value;
	Node	   *node;

	if (expression->type == given &&
		(expression->cached == NULL || expression->cached->is_valid))
		return;
	if (expression->cached != NULL)
		FreeCachedExpression(expression->cached);
	expression->cached = NULL;
	expression->cast.expr = NULL;
	expression->type = InvalidOid;
	value = makeNode(CaseTestExpr);
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
	if (node != (Node *) value)
	{
		expression->cached = GetCachedExpression(node);
		set_code(&expression->cast, (Expr *) expression->cached->expr);
	}
	expression->type = given;
}

/* Error unless the statement is one expression. */
static void
require_one_expression(SPIPlanPtr plan, const char *text)
{
	List	   *sources = SPI_plan_get_plan_sources(plan);
	TupleDesc	result = ((CachedPlanSource *) linitial(sources))->resultDesc;

	if (list_length(sources) != 1 || result == NULL || result->natts != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"%s\" is not one expression", text)));
}

/* " COLLATE ..." of a column, if it is not its type's; else "". */
static char *
column_collation(const Prepared *prepared, AttrNumber attnum)
{
	Form_pg_attribute attribute = TupleDescAttr(prepared->desc, attnum - 1);

	return collation_sql(attribute->atttypid, attribute->attcollation);
}

/* The caller runs as the table's owner, and is connected to SPI. */
static void
prepare_expression(Prepared *prepared, Direction *direction)
{
	const RuleSet *set = prepared->set;
	const Rule *rule = direction->rule;
	const char *text = direction->up ? rule->up : rule->down;
	List	   *reads = direction->up ? rule->up_reads : rule->down_reads;
	Expression *expression = &direction->expression;
	Oid		   *types = palloc_array(Oid, list_length(reads) + 1);
	StringInfoData sql;
	SPIPlanPtr	plan;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT (%s\n)", text);
	foreach(lc, reads)
	{
		ColumnRead *read = lfirst(lc);
		int			i = foreach_current_index(lc);

		if (expression->args[i] == InvalidAttrNumber)
			missing_attribute(prepared, read->column);
		types[i] = TupleDescAttr(prepared->desc,
								 expression->args[i] - 1)->atttypid;
		appendStringInfo(&sql, "%s$%d%s AS %s",
						 i == 0 ? " FROM (SELECT " : ", ", i + 1,
						 column_collation(prepared, expression->args[i]),
						 quote_identifier(read->name));
	}
	if (reads != NIL)
		appendStringInfo(&sql, ") AS %s",
						 quote_identifier(direction->up || !set->new_alias ?
										  set->old_alias : set->new_alias));
	plan = prepare_as_written(sql.data, expression->nargs, types);
	require_one_expression(plan, text);
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	expression->plan = plan;
}

/* Look the columns up; one that is missing may be an error of each row. */
static void
prepare_direction(Prepared *prepared, Direction *direction)
{
	const Rule *rule = direction->rule;
	Expression *expression = &direction->expression;
	List	   *reads = direction->up ? rule->up_reads : rule->down_reads;
	ListCell   *lc;

	direction->source =
		require_attribute(prepared, direction->up ? rule->old_column :
						  rule->new_column);
	direction->target =
		require_attribute(prepared, direction->up ? rule->new_column :
						  rule->old_column);
	if (!direction->up)
		direction->mark = require_mark(prepared, rule->mark);
	expression->nargs = list_length(reads);
	expression->args = MemoryContextAlloc(prepared->context,
										  sizeof(AttrNumber) *
										  (expression->nargs + 1));
	foreach(lc, reads)
	{
		const char *column = ((ColumnRead *) lfirst(lc))->column;

		expression->args[foreach_current_index(lc)] =
			direction->mark != 0 && prepared->set->lenient ?
			find_attribute(prepared, column) :
			require_attribute(prepared, column);
	}
}

/*
 * Is there what a direction cannot do without?  Who drops a column of the old
 * version while a contract could still be undone has no use for it.
 */
static bool
is_possible(const Prepared *prepared, const Rule *rule, bool up)
{
	const char *names[] = {
		rule->old_column, rule->new_column, up ? NULL : rule->mark
	};
	ListCell   *lc;

	for (int i = 0; i < lengthof(names); i++)
	{
		if (names[i] != NULL &&
			find_attribute(prepared, names[i]) == InvalidAttrNumber)
			return false;
	}
	foreach(lc, up ? rule->up_reads : NIL)
	{
		if (find_attribute(prepared, ((ColumnRead *) lfirst(lc))->column) ==
			InvalidAttrNumber)
			return false;
	}
	return true;
}

static void
release_prepared(Prepared *prepared)
{
	for (int i = 0; i < prepared->ndirections; i++)
	{
		Expression *expression = &prepared->directions[i].expression;

		if (expression->plan != NULL)
			SPI_freeplan(expression->plan);
		if (expression->cached != NULL)
			FreeCachedExpression(expression->cached);
	}
	prepared->ndirections = 0;
	prepared->bounds.expr = NULL;
	if (prepared->context != NULL)
		MemoryContextDelete(prepared->context);
	prepared->context = NULL;
}

/* Triggers come and go: what is not valid any more need not be kept. */
static void
release_unused(void)
{
	HASH_SEQ_STATUS status;
	Prepared   *prepared;

	hash_seq_init(&status, cache);
	while ((prepared = hash_seq_search(&status)) != NULL)
	{
		if (prepared->valid || prepared->users > 0)
			continue;
		release_prepared(prepared);
		(void) hash_search(cache, &prepared->trigger, HASH_REMOVE, NULL);
	}
}

static void
prepare_rules(Prepared *prepared)
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
			Direction  *direction =
				&prepared->directions[prepared->ndirections];

			if ((ups[i] ? rule->up : rule->down) == NULL ||
				(prepared->set->lenient &&
				 !is_possible(prepared, rule, ups[i])))
				continue;
			direction->up = ups[i];
			direction->rule = rule;
			prepare_direction(prepared, direction);
			prepared->ndirections++;
		}
	}
}

/* What a row has to be to belong to this partition. */
static void
prepare_bounds(Prepared *prepared, Relation relation)
{
	List	   *bounds = RelationGetPartitionQual(relation);

	if (bounds != NIL)
		set_code(&prepared->bounds,
				 expression_planner(make_ands_explicit(bounds)));
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

	if (cache == NULL)
		create_cache();
	prepared = hash_search(cache, &trigger->tgoid, HASH_FIND, NULL);
	if (prepared == NULL)
	{
		release_unused();
		prepared = hash_search(cache, &trigger->tgoid, HASH_ENTER, NULL);
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
 * that.  But the variable is put back after all settings that an error has left
 * behind: one of them may be of the parameter.
 */
void
prepared_leave(Prepared *prepared, PreparedCall *call, bool failed)
{
	prepared->users--;
	if (failed)
		AtEOXact_GUC(false, call->saved.guc_level);
	else
		run_as_restore(&call->saved);
	SessionReplicationRole = call->role;
}

/*
 * Look up what the rules name, if that was not done; the caller runs as the
 * table's owner.  Errors: there is no such column.
 */
void
prepared_ready(Prepared *prepared, Relation relation)
{
	MemoryContext oldcontext;

	if (prepared->ready)
		return;
	prepared->ready = true;
	PG_TRY();
	{
		prepare_rules(prepared);
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
}

/*
 * What an expression gives for a row, in its own type; the caller is connected
 * to SPI.
 */
static NullableDatum
execute_expression(const Prepared *prepared, const Direction *direction,
				   const Datum *values, const bool *nulls)
{
	const Expression *expression = &direction->expression;
	Datum	   *args = palloc_array(Datum, expression->nargs + 1);
	char	   *null_args = palloc(expression->nargs + 1);
	NullableDatum result;

	for (int i = 0; i < expression->nargs; i++)
	{
		args[i] = values[expression->args[i] - 1];
		null_args[i] = nulls[expression->args[i] - 1] ? 'n' : ' ';
	}
	if (SPI_execute_plan(expression->plan, args, null_args, true, 1) !=
		SPI_OK_SELECT || SPI_processed != 1 ||
		SPI_tuptable->tupdesc->natts != 1)
		elog(ERROR, "expression for column \"%s\" gave no value",
			 NameStr(TupleDescAttr(prepared->desc,
								   direction->target - 1)->attname));
	result.value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								 1, &result.isnull);
	return result;
}

/*
 * The value of an expression for a row, in the current memory context; the
 * caller runs as the table's owner.  Errors: those of the expression.
 */
NullableDatum
prepared_evaluate(Prepared *prepared, Direction *direction,
				  const Datum *values, const bool *nulls)
{
	Expression *expression = &direction->expression;
	Form_pg_attribute target =
		TupleDescAttr(prepared->desc, direction->target - 1);
	MemoryContext context = CurrentMemoryContext;
	NullableDatum result;

	SPI_connect();
	if (expression->plan == NULL)
		prepare_expression(prepared, direction);
	result = execute_expression(prepared, direction, values, nulls);
	prepare_cast(prepared, direction, SPI_gettypeid(SPI_tuptable->tupdesc, 1));
	MemoryContextSwitchTo(context);
	if (expression->cast.expr != NULL)
		result = run_code(&expression->cast, result, NULL);
	else if (!result.isnull)
		result.value = datumCopy(result.value, target->attbyval,
								 target->attlen);
	SPI_finish();
	return result;
}

/*
 * Does a row belong to the partition that the trigger is of?
 */
bool
prepared_fits(Prepared *prepared, HeapTuple tuple)
{
	NullableDatum none = {0, true};
	NullableDatum result;

	if (prepared->bounds.expr == NULL)
		return true;
	ExecStoreHeapTuple(tuple, prepared->slot, false);
	result = run_code(&prepared->bounds, none, prepared->slot);
	ExecClearTuple(prepared->slot);
	return result.isnull || DatumGetBool(result.value);
}
