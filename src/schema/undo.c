/*-------------------------------------------------------------------------
 *
 * undo.c
 *		From the shape to the steps that take an expansion back.
 *
 * The version's views go first, then tables one by one, as they were expanded:
 * trigger, constraints and columns of a table in one step.  Only what a step
 * has made that is done, or may have left something, is taken back, which the
 * titles of steps tell.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_inherits.h"
#include "compat.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

static void
undo_constraints(Step *step, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->constraints)
	{
		step_alter(step, table, psprintf("DROP CONSTRAINT IF EXISTS %s",
										 quote_identifier(((NewConstraint *) lfirst(lc))->name)));
	}
}

static void
undo_columns(Step *step, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->name != NULL &&
			(column->attnum == 0 || column->rule != NULL))
			step_alter(step, table, psprintf("DROP COLUMN IF EXISTS %s",
											 quote_identifier(column->column)));
	}
}

/*
 * Drop what steps that are done have added.  What has the same name, but was
 * made by somebody else while a step had to wait, is not ours to drop.
 */
static Step *
undo_table(const Shape *shape, const ShapeTable *table)
{
	int32		change = shape->change->id;
	Step	   *step = step_make(STEP_SQL, psprintf("undo table %s",
													table->old_name),
								 table->qualified);

	if (table->created)
	{
		step->locks = table_locks(table, NIL, referenced_tables(table),
								  LOCK_TO_DROP);
		step_note(step, psprintf("DROP TABLE %s", table->qualified));
		return step;
	}
	step->locks = table_locks(table, NIL, NIL, LOCK_TO_DROP);
	if (table->rules != NIL)
		note_drop_trigger(step, shape, table);
	if (step_has_effect(change, CHANGE_VALIDATING,
						constraints_title(table)))
		undo_constraints(step, table);
	if (step_has_effect(change, CHANGE_EXPANDING, expand_title(table)))
		undo_columns(step, table);
	return step->statements != NIL ? step : NULL;
}

/* An index, if its step has made it or may have left it. */
static List *
undo_index(const ShapeTable *table, int32 change, const char *name,
		   const char *qualified, bool partitioned)
{
	Step	   *step = step_make(partitioned ? STEP_SQL : STEP_DROP_INDEX,
								 psprintf("drop index %s", name),
								 table->qualified);

	if (!step_has_effect(change, CHANGE_VALIDATING, index_title(name)))
		return NIL;
	step->object = pstrdup(qualified);
	step_note(step, psprintf("DROP INDEX %sIF EXISTS %s",
							 partitioned ? "" : "CONCURRENTLY ", qualified));
	return list_make1(step);
}

/*
 * Indexes that are not gone with a column; those of partitions go with that of
 * the table if they are attached to it already.
 */
static List *
undo_indexes(const Shape *shape, const ShapeTable *table)
{
	List	   *steps = NIL;
	ListCell   *lc;

	if (table->created)
		return NIL;
	foreach(lc, table->indexes)
	{
		NewIndex   *index = lfirst(lc);
		ListCell   *child;

		steps = list_concat(steps,
							undo_index(table, shape->change->id, index->name,
									   shape_qualified(shape, index->name),
									   table->partitioned));
		if (!table->partitioned)
			continue;
		foreach(child, find_inheritance_children(table->relid, NoLock))
		{
			char	   *name = shape_hidden_name(shape, lfirst_oid(child),
												 index->name);
			char	   *schema =
				get_namespace_name(get_rel_namespace(lfirst_oid(child)));

			steps = list_concat(steps,
								undo_index(table, shape->change->id, name,
										   quote_qualified_identifier(schema,
																	  name),
										   false));
		}
	}
	return steps;
}

/* Steps as one, with all locks first. */
static Step *
merge_steps(const char *title, List *steps)
{
	Step	   *result = step_make(STEP_SQL, title, NULL);
	ListCell   *lc;

	foreach(lc, steps)
	{
		Step	   *step = lfirst(lc);

		result->relation = step->relation;
		result->locks = list_concat(result->locks, step->locks);
		result->statements = list_concat(result->statements,
										 step->statements);
	}
	return result;
}

/*
 * The steps that take back what an expansion has added.
 */
List *
plan_undo(Shape *shape)
{
	List	   *steps = version_drop_steps(shape->change,
										   shape->change->version_schema);
	List	   *tables = derivation_end_steps(shape);
	List	   *indexes = NIL;

	/* tables that were created later may refer to those before */
	for (int i = list_length(shape->tables) - 1; i >= 0; i--)
	{
		ShapeTable *table = list_nth(shape->tables, i);
		Step	   *step = undo_table(shape, table);

		if (step != NULL)
			tables = lappend(tables, step);
		indexes = list_concat(indexes, undo_indexes(shape, table));
	}
	/* a foreign key may want the rows that the trigger writes */
	if (shape->derivations != NIL)
		tables = list_make1(merge_steps("undo tables", tables));
	steps = list_concat(steps, tables);
	steps = list_concat(steps, indexes);
	return list_concat(steps, steps_undo(shape->change->id,
										 CHANGE_EXPANDING));
}
