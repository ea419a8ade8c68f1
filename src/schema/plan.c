/*-------------------------------------------------------------------------
 *
 * plan.c
 *		From the shape to the steps of a phase.
 *
 * All that happens to one table in a phase under a lock that stops others is
 * one step, so that no statement of an application meets a table that is half
 * done.  What scans the table (VALIDATE, indexes) comes in steps of its own,
 * under a lock that stops nobody.
 *
 * A step that locks a table exclusively first locks all versions' views of it:
 * applications lock a view before its table, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "miscadmin.h"
#include "schema/guard.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

/*
 * Add a statement to a step.
 */
void
step_note(Step *step, char *sql)
{
	step->statements = lappend(step->statements, sql);
}

/*
 * The same, ALTER TABLE.
 */
void
step_alter(Step *step, const ShapeTable *table, char *action)
{
	step_note(step, psprintf("ALTER TABLE %s %s", table->qualified, action));
}

/*
 * A step about a table, as long as that is what it is now.
 */
Step *
step_of(StepKind kind, const char *title, const ShapeTable *table)
{
	Step	   *step = step_make(kind, title, table->qualified);

	step->relid = table->relid;
	guard_table(step, table->relid, table->qualified);
	return step;
}

/* ---- locks ---- */

/*
 * Locks of all views, then of the table itself, and in a mode of other tables.
 * As statements, of which worker.c takes the locks, but asks for less rights.
 */
List *
table_locks(const char *table, List *views, List *others, const char *mode)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, views)
	{
		result = lappend(result,
						 psprintf(LOCK_VIEW "%s", (char *) lfirst(lc)));
	}
	result = lappend(result, psprintf("LOCK TABLE %s IN ACCESS EXCLUSIVE MODE",
									  table));
	foreach(lc, others)
	{
		result = lappend(result,
						 psprintf("LOCK TABLE %s IN %s MODE",
								  (char *) lfirst(lc), mode));
	}
	return result;
}

/*
 * The tables that foreign keys of this one refer to, as SQL.
 */
List *
referenced_tables(Oid relid)
{
	Relation	relation = relation_open(relid, AccessShareLock);
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, RelationGetFKeyList(relation))
	{
		Oid			other = ((ForeignKeyCacheInfo *) lfirst(lc))->confrelid;

		if (other != relid)
			result = lappend(result,
							 quote_qualified_identifier(get_namespace_name(get_rel_namespace(other)),
														get_rel_name(other)));
	}
	relation_close(relation, NoLock);
	return result;
}

/* ---- the trigger ---- */

/*
 * The trigger that keeps columns of a change's tables in step.
 */
char *
sync_trigger_name(const Shape *shape)
{
	return psprintf("zz_bluegreen_%d", shape->change->id);
}

/*
 * Drop the table's trigger, if it has one.
 */
void
note_drop_trigger(Step *step, const Shape *shape, const ShapeTable *table)
{
	step_note(step, psprintf("DROP TRIGGER IF EXISTS %s ON %s",
							 sync_trigger_name(shape), table->qualified));
}

/*
 * Give the table its trigger.
 */
void
note_create_trigger(Step *step, const Shape *shape, const ShapeTable *table,
					TriggerMode mode)
{
	RuleSet		set = {
		.change = shape->change->id,
		.name = shape->change->name,
		.schema = shape->change->version_schema,
		.path = shape->change->path,
		.old_alias = table->old_name,
		.new_alias = table->name,
		.filled = mode != TRIGGER_FILLING,
		.lenient = mode == TRIGGER_LENIENT,
		.rules = table->rules
	};

	step_note(step, psprintf("%s %s BEFORE INSERT OR UPDATE ON %s FOR EACH ROW "
						"EXECUTE FUNCTION bluegreen.sync_columns(%s)",
						TRIGGER_STATEMENT, sync_trigger_name(shape),
						table->qualified,
						quote_literal_cstr(rules_write(&set))));
	step_note(step, psprintf("ALTER TRIGGER %s ON %s DEPENDS ON EXTENSION "
						"pg_bluegreen", sync_trigger_name(shape),
						table->qualified));
	step_note(step, psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s",
						table->qualified, sync_trigger_name(shape)));
}

/* ---- expand ---- */

/* The columns that rows have to be filled in, quoted. */
static List *
columns_to_fill(const ShapeTable *table)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, table->rules)
	{
		Rule	   *rule = lfirst(lc);

		if (rule->up != NULL)
			result = lappend(result,
							 pstrdup(quote_identifier(rule->new_column)));
	}
	return result;
}

/* A version needs a schema of its own, which its owner may create. */
static void
require_new_schema(const Change *change)
{
	if (pg_database_aclcheck(MyDatabaseId, change->owner,
							 ACL_CREATE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database %s",
						get_database_name(MyDatabaseId)),
				 errdetail("The new version gets a schema, which will belong to role \"%s\".",
						   GetUserNameFromId(change->owner, false)),
				 errhint("Use GRANT CREATE ON DATABASE %s TO %s.",
						 quote_identifier(get_database_name(MyDatabaseId)),
						 quote_identifier(GetUserNameFromId(change->owner,
															false)))));
	if (OidIsValid(get_namespace_oid(change->version_schema, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_SCHEMA),
				 errmsg("schema \"%s\" already exists",
						change->version_schema)));
}

/*
 * Triggers of a table that follows another one, both directions at once, so
 * that each write since then is carried over, or has been there when rows were
 * filled.
 */
static List *
derivation_steps(const Shape *shape)
{
	List	   *steps = NIL;
	ListCell   *lc;

	foreach(lc, shape->derivations)
	{
		Derivation *derivation = lfirst(lc);
		Step	   *step;

		if (derivation->fill != NULL)
		{
			step = step_of(STEP_SQL,
						   psprintf("derive table %s from %s",
									derivation->target->old_name,
									derivation->source->old_name),
						   derivation->source);
			steps = lappend(steps, step);
			backfill_plan_derived(shape->change->id,
								  derivation->source->relid,
								  derivation->trigger, derivation->fill);
		}
		step = llast(steps);
		step->locks = lappend(step->locks,
							  psprintf("LOCK TABLE %s IN " LOCK_TO_ADD " MODE",
									   derivation->source->qualified));
		step_note(step, derivation->create);
		step_note(step, psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s",
								 derivation->source->qualified,
								 quote_identifier(derivation->trigger)));
	}
	return steps;
}

/*
 * The tables go their own ways; one step, so that no write meets one half.
 */
List *
derivation_end_steps(const Shape *shape)
{
	Step	   *step = step_make(STEP_SQL, "end derived tables", NULL);
	ListCell   *lc;

	foreach(lc, shape->derivations)
	{
		Derivation *derivation = lfirst(lc);

		step->relation = derivation->source->qualified;
		guard_table(step, derivation->source->relid,
					derivation->source->qualified);
		step->locks = lappend(step->locks,
							  psprintf("LOCK TABLE %s IN " LOCK_TO_DROP " MODE",
									   derivation->source->qualified));
		step_note(step, psprintf("DROP TRIGGER IF EXISTS %s ON %s",
								 quote_identifier(derivation->trigger),
								 derivation->source->qualified));
	}
	return step->statements != NIL ? list_make1(step) : NIL;
}

/*
 * Has the table columns that get second ones?
 */
bool
table_has_pairs(const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->rules)
	{
		if (((Rule *) lfirst(lc))->kind == RULE_PAIR)
			return true;
	}
	return false;
}

/* Is something to be made when all rows are filled? */
static bool
adds_late(const Shape *shape)
{
	ListCell   *lc;

	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (table_has_pairs(table) || table->constraints != NIL ||
			table->indexes != NIL)
			return true;
	}
	return false;
}

static List *
plan_expand(Shape *shape)
{
	List	   *steps = list_copy(shape->expand);
	ListCell   *lc;

	version_require_owned(shape->change);
	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);
		Step	   *step;
		List	   *fill = columns_to_fill(table);

		require_references(shape->change, table);
		require_carried(table);
		if (table->expand == NIL && table->rules == NIL)
			continue;
		step = step_of(STEP_SQL, psprintf("expand table %s",
										  table->old_name), table);
		step->locks = table_locks(table->qualified, NIL, NIL, LOCK_TO_ADD);
		step->statements = list_copy(table->expand);
		step->undo = list_copy(table->expand_undo);
		if (table->rules != NIL)
		{
			require_dual_writes(table, sync_trigger_name(shape));
			note_create_trigger(step, shape, table, fill == NIL ?
								TRIGGER_FILLED : TRIGGER_FILLING);
		}
		steps = lappend(steps, step);
		if (fill != NIL)
			backfill_plan(shape->change->id, table->relid, fill);
	}
	steps = list_concat(steps, derivation_steps(shape));
	if (adds_late(shape))
		steps = lappend(steps, step_make(STEP_REHEARSAL,
										 "rehearse constraints and indexes",
										 NULL));
	return steps;
}

/* ---- validate ---- */

/* From now on all rows are filled: constraints can be believed in. */
static List *
constraint_steps(const Shape *shape, const ShapeTable *table)
{
	Step	   *step = step_of(STEP_SQL, psprintf("add constraints to table %s",
												  table->old_name), table);
	List	   *others = NIL;
	List	   *steps;
	ListCell   *lc;

	foreach(lc, table->constraints)
	{
		NewConstraint *constraint = lfirst(lc);

		if (constraint->locks != NULL &&
			strcmp(constraint->locks, table->qualified) != 0)
			others = lappend(others, constraint->locks);
		step_note(step, psprintf("ALTER TABLE %s ADD CONSTRAINT %s %s NOT VALID",
								 table->qualified,
								 quote_identifier(constraint->name),
								 constraint->definition));
	}
	if (columns_to_fill(table) != NIL)
	{
		guard_trigger(step, table->relid, sync_trigger_name(shape));
		note_drop_trigger(step, shape, table);
		note_create_trigger(step, shape, table, TRIGGER_FILLED);
	}
	if (step->statements == NIL)
		return NIL;
	step->locks = table_locks(table->qualified, NIL, others, LOCK_TO_ADD);
	steps = list_make1(step);
	foreach(lc, table->constraints)
	{
		NewConstraint *constraint = lfirst(lc);

		if (constraint->not_valid)
			continue;
		step = step_of(STEP_VALIDATE, psprintf("validate constraint %s",
											   constraint->name), table);
		step_note(step, psprintf("ALTER TABLE %s VALIDATE CONSTRAINT %s",
								 table->qualified,
								 quote_identifier(constraint->name)));
		steps = lappend(steps, step);
	}
	return steps;
}

static List *
plan_validate(Shape *shape)
{
	List	   *steps = NIL;
	ListCell   *lc;

	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (table_has_pairs(table))
			copies_store(shape, table);
		steps = list_concat(steps, constraint_steps(shape, table));
		steps = list_concat(steps, index_steps(shape, table));
	}
	return lappend(steps, version_create_step(shape->change));
}

/* ---- contract ---- */

/* What hangs on the old columns goes, what replaces it is as it will be. */
static void
contract_before(Step *step, const Shape *shape, const ShapeTable *table)
{
	ListCell   *lc;
	ListCell   *oid;

	forboth(lc, table->dropped_constraints, oid, table->dropped_oids)
	{
		guard_constraint(step, table->relid, lfirst_oid(oid), lfirst(lc));
		step_alter(step, table, psprintf("DROP CONSTRAINT IF EXISTS %s",
										 quote_identifier(lfirst(lc))));
	}
	if (shape->phase == CHANGE_RETIRING)
		note_drop_marks(step, shape, table);
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->drop_not_null)
			step_alter(step, table,
					   psprintf("ALTER COLUMN %s DROP NOT NULL",
								quote_identifier(column->column)));
	}
}

/*
 * NOT NULL is set under the column's last name, which that of its constraint is
 * made of from version 18 on.  The check spares the scan, and then goes.
 */
static void
contract_not_null(Step *step, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->set_not_null && column->name != NULL)
			step_alter(step, table,
					   psprintf("ALTER COLUMN %s SET NOT NULL",
								quote_identifier(column->name)));
	}
	foreach(lc, table->constraints)
	{
		NewConstraint *constraint = lfirst(lc);

		if (constraint->final_name == NULL)
			step_alter(step, table,
					   psprintf("DROP CONSTRAINT %s",
								quote_identifier(constraint->name)));
	}
}

/* A sequence that belongs to the old column belongs to the new one. */
static void
contract_sequences(Step *step, const ShapeTable *table,
				   const ShapeColumn *column)
{
	ListCell   *lc;

	foreach(lc, getOwnedSequences(table->relid))
	{
		Oid			sequence = lfirst_oid(lc);
		Oid			owner;
		int32		attnum;

		if (sequenceIsOwned(sequence, DEPENDENCY_AUTO, &owner, &attnum) &&
			attnum == column->attnum)
			step_note(step, psprintf("ALTER SEQUENCE %s OWNED BY %s.%s",
									 quote_qualified_identifier(get_namespace_name(get_rel_namespace(sequence)),
																get_rel_name(sequence)),
									 table->qualified,
									 quote_identifier(column->column)));
	}
}

/* Will another column get the name that this one has now? */
static bool
is_in_the_way(const ShapeTable *table, const ShapeColumn *column)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *other = lfirst(lc);

		if (other != column && other->name != NULL &&
			strcmp(other->name, column->column) == 0)
			return true;
	}
	return false;
}

/*
 * Columns get their names, by way of one of ours where names go around.
 */
static void
contract_column_names(Step *step, const Shape *shape,
					  const ShapeTable *table)
{
	const char *rename = "RENAME COLUMN %s TO %s";
	List	   *now = NIL;
	ListCell   *lc;
	ListCell   *other;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);
		char	   *name = column->column;

		if (column->name != NULL && is_in_the_way(table, column))
		{
			name = shape_hidden_name(shape, column->attnum,
									 psprintf("to_%s", column->name));
			step_alter(step, table, psprintf(rename,
											 quote_identifier(column->column),
											 quote_identifier(name)));
		}
		now = lappend(now, name);
	}
	forboth(lc, table->columns, other, now)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->name != NULL && strcmp(lfirst(other), column->name) != 0)
			step_alter(step, table, psprintf(rename,
											 quote_identifier(lfirst(other)),
											 quote_identifier(column->name)));
	}
}

/* Old columns go; the others get their names and defaults. */
static void
contract_columns(Step *step, const Shape *shape, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);
		bool		pair = column->rule != NULL &&
			column->rule->kind == RULE_PAIR;

		if (pair)
			contract_sequences(step, table, column);
		if (!pair && column->name != NULL)
			continue;
		guard_column(step, table->relid, column->attnum, column->old_name);
		step_alter(step, table, psprintf("DROP COLUMN IF EXISTS %s",
										 quote_identifier(column->old_name)));
	}
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->name == NULL)
			continue;
		if (column->default_differs)
			step_alter(step, table, column->default_sql ?
					   psprintf("ALTER COLUMN %s SET DEFAULT %s",
								quote_identifier(column->column),
								column->default_sql) :
					   psprintf("ALTER COLUMN %s DROP DEFAULT",
								quote_identifier(column->column)));
	}
	contract_column_names(step, shape, table);
}

/* The view's defaults are the table's now. */
static void
contract_view_defaults(Step *step, const ShapeTable *table, List *views)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->name != NULL && column->default_differs && views != NIL)
			step_note(step, psprintf("ALTER VIEW IF EXISTS %s ALTER COLUMN %s DROP DEFAULT",
									 (char *) linitial(views),
									 quote_identifier(column->name)));
	}
}

/* Constraints and indexes get their names. */
static void
contract_names(Step *step, const Shape *shape, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->constraints)
	{
		NewConstraint *constraint = lfirst(lc);

		if (constraint->final_name != NULL &&
			strcmp(constraint->name, constraint->final_name) != 0)
			step_alter(step, table,
					   psprintf("RENAME CONSTRAINT %s TO %s",
								quote_identifier(constraint->name),
								quote_identifier(constraint->final_name)));
	}
	foreach(lc, table->indexes)
	{
		NewIndex   *index = lfirst(lc);

		if (index->constraint != NULL)
			step_alter(step, table,
					   psprintf("ADD CONSTRAINT %s %s USING INDEX %s%s",
								quote_identifier(index->final_name),
								index->constraint,
								quote_identifier(index->name),
								index->deferrable ? index->deferrable : ""));
		else if (index->final_name != NULL)
			step_note(step, psprintf("ALTER INDEX %s RENAME TO %s",
									 shape_qualified(shape, index->name),
									 quote_identifier(index->final_name)));
	}
	note_copied_settings(step, shape, table);
	foreach(lc, table->renamed_constraints)
	{
		ColumnRead *rename = lfirst(lc);

		step_alter(step, table, psprintf("RENAME CONSTRAINT %s TO %s",
										 quote_identifier(rename->name),
										 quote_identifier(rename->column)));
	}
}

/*
 * Tables that foreign keys refer to that go: of the table, of a column, or by
 * themselves.
 */
static List *
contract_locks(const ShapeTable *table)
{
	List	   *result = list_copy(table->locked);
	ListCell   *lc;

	if (table->name == NULL)
		return referenced_tables(table->relid);
	foreach(lc, table->constraints)
	{
		NewConstraint *constraint = lfirst(lc);

		/* the copy of one on an old column */
		if (constraint->locks != NULL && constraint->final_name != NULL &&
			strcmp(constraint->name, constraint->final_name) != 0 &&
			strcmp(constraint->locks, table->qualified) != 0)
			result = lappend(result, constraint->locks);
	}
	return result;
}

static Step *
contract_table(Shape *shape, ShapeTable *table)
{
	List	   *old_views = version_views_of(shape->change, table->relid, true);
	List	   *views = version_views_of(shape->change, table->relid, false);
	Step	   *step = step_of(STEP_SQL, psprintf("contract table %s",
												  table->old_name), table);
	ListCell   *lc;

	foreach(lc, old_views)
	{
		step_note(step, psprintf("DROP VIEW IF EXISTS %s", (char *) lfirst(lc)));
	}
	step->locks = table_locks(table->qualified,
							  list_concat(list_copy(old_views), views),
							  contract_locks(table), LOCK_TO_DROP);
	if (table->name == NULL)
	{
		step_note(step, psprintf("DROP TABLE %s", table->qualified));
		return step;
	}
	if (table->rules != NIL)
	{
		/* at the end of a window nobody needs the old columns any more */
		if (shape->phase == CHANGE_CONTRACTING)
			guard_trigger(step, table->relid, sync_trigger_name(shape));
		note_drop_trigger(step, shape, table);
	}
	guard_lost(step, table);
	contract_before(step, shape, table);
	contract_columns(step, shape, table);
	contract_not_null(step, table);
	contract_view_defaults(step, table, views);
	contract_names(step, shape, table);
	if (strcmp(table->name, table->old_name) != 0)
		step_alter(step, table, psprintf("RENAME TO %s",
										 quote_identifier(table->name)));
	return list_length(step->statements) > list_length(old_views) ? step :
		NULL;
}

static List *
plan_contract(Shape *shape)
{
	List	   *steps = derivation_end_steps(shape);
	ListCell   *lc;
	ListCell   *oid;

	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);
		Step	   *step;

		if (table_has_pairs(table))
			copies_load(shape, table);
		step = contract_table(shape, table);
		if (step != NULL)
			steps = lappend(steps, step);
	}
	forboth(lc, shape->dropped_indexes, oid, shape->dropped_index_oids)
	{
		Step	   *step = step_make(STEP_DROP_INDEX,
									 psprintf("drop index %s",
											  (char *) lfirst(lc)), NULL);

		step->object = lfirst(lc);
		guard_index(step, lfirst_oid(oid), step->object);
		step_note(step, psprintf("DROP INDEX CONCURRENTLY IF EXISTS %s",
								 (char *) lfirst(lc)));
		steps = lappend(steps, step);
	}
	foreach(lc, version_previous(shape->change))
	{
		steps = list_concat(steps, version_drop_steps(shape->change,
													  lfirst(lc)));
	}
	return list_concat(steps, shape->contract);
}

/*
 * Plan the phase that the change is in, and store its steps, in the current
 * transaction.  Errors: whatever cannot be done.
 */
void
change_plan(const Change *change)
{
	Shape	   *shape;
	List	   *steps = NIL;

	/* nothing was ever done, maybe because it could not be planned */
	if (change->state == CHANGE_UNDOING &&
		!steps_exist(change->id, CHANGE_EXPANDING))
	{
		steps_store(change->id, change->state, NIL);
		return;
	}
	/* nor was anything retired, maybe because it could not be planned */
	if (change->state == CHANGE_UNDOING || change->state == CHANGE_REVERTING)
	{
		steps_store(change->id, change->state,
					change->state == CHANGE_UNDOING ? plan_undo(change) : NIL);
		return;
	}
	if (change->state == CHANGE_EXPANDING)
		require_new_schema(change);
	shape = shape_build(change, change->state);
	switch (change->state)
	{
		case CHANGE_EXPANDING:
			steps = plan_expand(shape);
			break;
		case CHANGE_VALIDATING:
			steps = plan_validate(shape);
			break;
		case CHANGE_CONTRACTING:
			steps = plan_contract(shape);
			break;
		case CHANGE_RETIRING:
			/* while all is there that they have to know */
			steps_store(change->id, CHANGE_CONTRACTING, plan_contract(shape));
			steps_store(change->id, CHANGE_REVERTING, plan_revert(shape));
			steps = plan_retire(shape);
			break;
		default:
			elog(ERROR, "nothing is to be planned in state %d",
				 change->state);
	}
	steps_store(change->id, change->state, steps);
}
