/*-------------------------------------------------------------------------
 *
 * retire.c
 *		A contract that can still be undone.
 *
 * With bluegreen.revert_window a contract has two halves.  The first retires
 * the old version: its columns and tables stay where they are, hidden from the
 * new version and kept in step by the trigger, but what could stop a write of
 * the new version is taken from them: constraints, unique indexes, NOT NULL.
 * Where "down" fails the old column gets null, and another column, the mark,
 * says why.  The second half is the contract proper (plan.c); the worker begins
 * it when the time is over.
 *
 * Undo in between restores what was taken, as constraints are always added here
 * (not valid, then validated; unique indexes concurrently), and is then an undo
 * like any other.  Rows that are marked stop it: they have no value for the old
 * version.
 *
 * All three are planned when the contract is called, while the catalogs have
 * everything; what others have done since is looked for under the locks of each
 * step (guard.c).  Steps that retire and restore can be repeated, in any order:
 * whoever undoes may change his mind.  So what they drop by its name is what was
 * there at first, or what one of them has restored (made.c), and nobody else's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "schema/guard.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#define UNIQUE_INDEX	'i'		/* beside CONSTRAINT_* */
#define MAX_ROWS_LISTED	10

/* What could stop a write of the new version. */
typedef struct Obstacle
{
	char		kind;
	Oid			oid;			/* of the constraint or index */
	char	   *name;
	char	   *definition;		/* SQL: of the constraint, or of the index from
								 * USING on */
	char	   *deferrable;		/* SQL after a unique constraint */
	char	   *target;			/* of a foreign key, if another table */
	char	   *hidden;			/* name of ours while it is restored */
	bool		valid;			/* else its definition says so */
} Obstacle;

/* ---- what is in the way ---- */

/* $1 table, $2 columns, $3 constraints that go anyway, $4 is partitioned */
static const char *const obstacles_sql =
	"WITH tab AS (SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name "
	"FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
	"WHERE c.oid = $1), "
	"col AS (SELECT attnum FROM pg_attribute "
	"WHERE attrelid = $1 AND attname = ANY ($2)), "
	"idx AS (SELECT i.indexrelid AS oid, c.relname, i.indisunique, "
	"i.indisexclusion, substr(d.head, length(format("
	"'CREATE UNIQUE INDEX %I ON %s ', c.relname, tab.name)) + 1) "
	"|| coalesce(' TABLESPACE ' || quote_ident(s.spcname), '') || d.tail AS def "
	"FROM tab JOIN pg_index i ON i.indrelid = tab.oid "
	"JOIN pg_class c ON c.oid = i.indexrelid "
	"LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace "
	"CROSS JOIN LATERAL (SELECT left(f.def, length(f.def) - length(f.tail)), "
	"f.tail FROM (SELECT pg_get_indexdef(c.oid), coalesce(' WHERE ' "
	"|| pg_get_expr(i.indpred, i.indrelid), '')) f (def, tail)) d (head, tail) "
	"WHERE i.indisvalid) "
	"SELECT k.contype::text, k.conname::text, "
	"CASE k.contype WHEN 'u' THEN (SELECT def FROM idx WHERE oid = k.conindid) "
	"ELSE pg_get_constraintdef(k.oid) END, "
	"CASE WHEN k.condeferred THEN ' DEFERRABLE INITIALLY DEFERRED' "
	"WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END, "
	"(SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c "
	"JOIN pg_namespace n ON n.oid = c.relnamespace "
	"WHERE c.oid = k.confrelid AND c.oid <> k.conrelid), "
	"k.oid, k.convalidated "
	"FROM pg_constraint k WHERE k.conrelid = $1 AND k.conparentid = 0 "
	"AND (k.contype IN ('c', 'f') OR k.contype = 'u' AND NOT $4 "
	"AND NOT (SELECT indisexclusion FROM idx WHERE oid = k.conindid)) "
	"AND (k.conname = ANY ($3) "
	"OR k.conkey && ARRAY(SELECT attnum FROM col)) "
	"UNION ALL "
	"SELECT 'i', relname::text, def, '', NULL, oid, true FROM idx "
	"WHERE indisunique AND NOT $4 AND NOT EXISTS ("
	"SELECT FROM pg_constraint k WHERE k.conindid = idx.oid "
	"AND k.contype IN ('p', 'u', 'x')) "
	"AND EXISTS (SELECT FROM pg_depend d "
	"WHERE d.classid = 'pg_class'::regclass AND d.objid = idx.oid "
	"AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 "
	"AND d.refobjsubid IN (SELECT attnum FROM col)) "
	"ORDER BY 1, 2";

static Obstacle *
read_obstacle(const Shape *shape, const CatalogAccess *access, uint64 row)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(access->context);
	Obstacle   *obstacle = palloc0_object(Obstacle);

	obstacle->kind = *catalog_text(access, row, 1);
	obstacle->name = catalog_text(access, row, 2);
	obstacle->definition = catalog_text(access, row, 3);
	obstacle->deferrable = catalog_text(access, row, 4);
	obstacle->target = catalog_text(access, row, 5);
	obstacle->oid = DatumGetObjectId(catalog_value(row, 6, NULL));
	obstacle->hidden = shape_hidden_name(shape, obstacle->oid,
										 psprintf("old_%s", obstacle->name));
	obstacle->valid = DatumGetBool(catalog_value(row, 7, NULL));
	MemoryContextSwitchTo(oldcontext);
	return obstacle;
}

/* Names of the columns that only the old version has. */
static List *
old_columns(const ShapeTable *table)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->old_name != NULL && column->attnum > 0 &&
			(column->name == NULL ||
			 (column->rule != NULL && column->rule->kind == RULE_PAIR)))
			result = lappend(result, column->old_name);
	}
	return result;
}

/* Names of a table's foreign keys, which stop writes to other tables. */
static List *
foreign_keys(const ShapeTable *table)
{
	Relation	relation = relation_open(table->relid, AccessShareLock);
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, RelationGetFKeyList(relation))
	{
		result = lappend(result,
						 get_constraint_name(((ForeignKeyCacheInfo *) lfirst(lc))->conoid));
	}
	relation_close(relation, NoLock);
	return result;
}

static List *
find_obstacles(const Shape *shape, const ShapeTable *table)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg(&args, TEXTARRAYOID,
				texts_datum(table->name ? old_columns(table) : NIL));
	catalog_arg(&args, TEXTARRAYOID,
				texts_datum(table->name ? table->dropped_constraints :
							foreign_keys(table)));
	catalog_arg(&args, BOOLOID, BoolGetDatum(table->partitioned));
	n = catalog_run(obstacles_sql, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		Obstacle   *obstacle = read_obstacle(shape, &access, i);
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);

		/* could not be restored without a scan under a lock */
		if (obstacle->kind != CONSTRAINT_FOREIGN || !table->partitioned ||
			HAVE_PARTITIONED_NOT_VALID)
			result = lappend(result, obstacle);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return result;
}

/* Is the column's NOT NULL in the way of the new version? */
static bool
relaxes_not_null(const ShapeColumn *column)
{
	if (column->drop_not_null)
		return true;
	return column->not_null && column->old_name != NULL &&
		column->rule != NULL && column->rule->down != NULL;
}

/* The foreign keys' other tables, as SQL. */
static List *
targets(List *obstacles)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, obstacles)
	{
		Obstacle   *obstacle = lfirst(lc);

		if (obstacle->target != NULL)
			result = lappend(result, obstacle->target);
	}
	return result;
}

/*
 * A step about old columns, as long as they have their names.  What is about
 * one that is gone is passed over (worker.c).
 */
static Step *
old_step(StepKind kind, const char *title, const ShapeTable *table)
{
	Step	   *step = step_of(kind, title, table);
	ListCell   *lc;

	foreach(lc, old_columns(table))
	{
		guard_column(step, table->relid, get_attnum(table->relid, lfirst(lc)),
					 lfirst(lc));
	}
	return step;
}

/* Nobody else has made something of the name that an obstacle has, or had. */
static void
guard_obstacle(Step *step, const Shape *shape, const ShapeTable *table,
			   const Obstacle *obstacle)
{
	if (obstacle->kind == UNIQUE_INDEX)
		guard_index_name(step, obstacle->oid,
						 shape_qualified(shape, obstacle->name));
	else
		guard_constraint(step, table->relid, obstacle->oid, obstacle->name);
}

/* ---- marks ---- */

static char *
mark_name(const Shape *shape, const ShapeTable *table, const Rule *rule)
{
	return shape_hidden_name(shape, get_attnum(table->relid, rule->old_column),
							 psprintf("undo_%s", rule->old_column));
}

static List *
mark_names(const Shape *shape, const ShapeTable *table)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, table->rules)
	{
		Rule	   *rule = lfirst(lc);

		if (rule->down != NULL)
			result = lappend(result, mark_name(shape, table, rule));
	}
	return result;
}

/*
 * Drop the marks of a table, if it has some.
 */
void
note_drop_marks(Step *step, const Shape *shape, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, mark_names(shape, table))
	{
		step_alter(step, table, psprintf("DROP COLUMN IF EXISTS %s",
										 quote_identifier(lfirst(lc))));
	}
}

/* A trigger that sets marks, or with TRIGGER_FILLED only takes them away. */
static void
note_marking_trigger(Step *step, const Shape *shape, const ShapeTable *table,
					 TriggerMode mode)
{
	ListCell   *lc;

	foreach(lc, mark_names(shape, table))
	{
		step_alter(step, table, psprintf("ADD COLUMN IF NOT EXISTS %s text",
										 quote_identifier(lfirst(lc))));
	}
	foreach(lc, table->rules)
	{
		Rule	   *rule = lfirst(lc);

		if (rule->down != NULL)
			rule->mark = mark_name(shape, table, rule);
	}
	/* who goes forward again does not need the old columns */
	if (mode != TRIGGER_LENIENT)
		guard_trigger(step, table->relid, sync_trigger_name(shape));
	note_drop_trigger(step, shape, table);
	note_create_trigger(step, shape, table, mode);
	foreach(lc, table->rules)
	{
		((Rule *) lfirst(lc))->mark = NULL;
	}
}

/* Name of the check that spares the scan of SET NOT NULL. */
static char *
not_null_name(const Shape *shape, const ShapeColumn *column)
{
	return shape_hidden_name(shape, column->attnum,
							 psprintf("old_%s", column->old_name));
}

/* ---- retire ---- */

/* The obstacle goes, and what an undo has begun to make in its place. */
static void
retire_obstacle(Step *step, const Shape *shape, const ShapeTable *table,
				const Obstacle *obstacle)
{
	guard_obstacle(step, shape, table, obstacle);
	if (obstacle->kind == UNIQUE_INDEX)
		step_note(step, psprintf("DROP INDEX IF EXISTS %s",
								 shape_qualified(shape, obstacle->name)));
	else
		step_alter(step, table, psprintf("DROP CONSTRAINT IF EXISTS %s",
										 quote_identifier(obstacle->name)));
	if (obstacle->kind == UNIQUE_INDEX || obstacle->kind == CONSTRAINT_UNIQUE)
		step_note(step, psprintf("DROP INDEX IF EXISTS %s",
								 shape_qualified(shape, obstacle->hidden)));
}

static Step *
retire_table(const Shape *shape, const ShapeTable *table)
{
	List	   *obstacles = find_obstacles(shape, table);
	Step	   *step = old_step(STEP_SQL, psprintf("retire old version of table %s",
										  table->old_name), table);
	ListCell   *lc;

	step->locks = table_locks(table->qualified, NIL, targets(obstacles), LOCK_TO_DROP);
	foreach(lc, obstacles)
	{
		retire_obstacle(step, shape, table, lfirst(lc));
	}
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (!relaxes_not_null(column))
			continue;
		step_alter(step, table, psprintf("ALTER COLUMN %s DROP NOT NULL",
										 quote_identifier(column->old_name)));
		step_alter(step, table, psprintf("DROP CONSTRAINT IF EXISTS %s",
										 quote_identifier(not_null_name(shape, column))));
	}
	if (mark_names(shape, table) != NIL)
		note_marking_trigger(step, shape, table, TRIGGER_LENIENT);
	return step->statements != NIL ? step : NULL;
}

/* Error if a trigger that has kept columns in step is not what it was. */
static void
require_triggers(const Shape *shape)
{
	Step	   *step = step_make(STEP_CHECK, "check triggers", NULL);
	ListCell   *lc;

	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (table->name != NULL && table->rules != NIL)
			guard_trigger(step, table->relid, sync_trigger_name(shape));
	}
	(void) guard_step(shape->change, step);
}

/*
 * The steps after which nothing of the old version binds the new one.
 */
List *
plan_retire(Shape *shape)
{
	List	   *steps = NIL;
	ListCell   *lc;

	require_triggers(shape);
	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);
		Step	   *step = table->created ? NULL : retire_table(shape, table);

		if (step != NULL)
			steps = lappend(steps, step);
	}
	return steps;
}

/* ---- revert ---- */

/* What names a row: its primary key, as SQL. */
static char *
row_name(const ShapeTable *table)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->is_key)
			appendStringInfo(&sql, ", %s", quote_identifier(column->old_name));
	}
	return sql.len > 0 ? sql.data : ", ctid";
}

/* Error if rows are marked. */
static List *
check_steps(const Shape *shape, const ShapeTable *table)
{
	List	   *steps = NIL;
	ListCell   *lc;

	foreach(lc, mark_names(shape, table))
	{
		Step	   *step = step_of(STEP_CHECK, psprintf("look for rows without old values in table %s",
											  table->old_name), table);
		const char *mark = quote_identifier(lfirst(lc));

		step->object = lfirst(lc);
		step_note(step, psprintf("SELECT pg_catalog.format('(%%s): %%s', pg_catalog.concat_ws(', '%s), %s) "
								 "FROM %s WHERE %s IS NOT NULL LIMIT %d",
								 row_name(table), mark, table->qualified, mark,
								 MAX_ROWS_LISTED));
		steps = lappend(steps, step);
	}
	return steps;
}

static void
add_not_valid(Step *step, const ShapeTable *table, const char *name,
			  const char *definition, bool valid)
{
	step_alter(step, table,
			   psprintf("DROP CONSTRAINT IF EXISTS %s, ADD CONSTRAINT %s %s%s",
						quote_identifier(name), quote_identifier(name),
						definition, valid ? " NOT VALID" : ""));
}

static Step *
validate_step(const ShapeTable *table, const char *name)
{
	Step	   *step = step_of(STEP_VALIDATE, psprintf("validate constraint %s",
													name), table);

	step_alter(step, table, psprintf("VALIDATE CONSTRAINT %s",
									 quote_identifier(name)));
	return step;
}

/* Checks, foreign keys and NOT NULL: not valid, then valid. */
static List *
restore_constraints(const Shape *shape, const ShapeTable *table,
					List *obstacles)
{
	Step	   *step = old_step(STEP_SQL, psprintf("restore constraints of table %s",
										  table->old_name), table);
	List	   *steps = list_make1(step);
	ListCell   *lc;

	step->locks = table_locks(table->qualified, NIL, targets(obstacles), LOCK_TO_ADD);
	foreach(lc, obstacles)
	{
		Obstacle   *obstacle = lfirst(lc);

		if (obstacle->kind != CONSTRAINT_CHECK &&
			obstacle->kind != CONSTRAINT_FOREIGN)
			continue;
		guard_obstacle(step, shape, table, obstacle);
		add_not_valid(step, table, obstacle->name, obstacle->definition,
					  obstacle->valid);
		if (obstacle->valid)
			steps = lappend(steps, validate_step(table, obstacle->name));
	}
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (!relaxes_not_null(column))
			continue;
		add_not_valid(step, table, not_null_name(shape, column),
					  psprintf("CHECK (%s IS NOT NULL)",
							   quote_identifier(column->old_name)), true);
		steps = lappend(steps, validate_step(table,
											 not_null_name(shape, column)));
	}
	return step->statements != NIL ? steps : NIL;
}

static List *
restore_indexes(const Shape *shape, const ShapeTable *table, List *obstacles)
{
	List	   *steps = NIL;
	ListCell   *lc;

	foreach(lc, obstacles)
	{
		Obstacle   *obstacle = lfirst(lc);
		Step	   *step;

		if (obstacle->kind != UNIQUE_INDEX &&
			obstacle->kind != CONSTRAINT_UNIQUE)
			continue;
		step = old_step(STEP_INDEX, psprintf("create index %s",
											  obstacle->name), table);
		step->object = shape_qualified(shape, obstacle->hidden);
		step_note(step, psprintf("CREATE UNIQUE INDEX CONCURRENTLY %s ON %s %s",
								 quote_identifier(obstacle->hidden),
								 table->qualified, obstacle->definition));
		steps = lappend(steps, step);
	}
	return steps;
}

/* NOT NULL, from version 18 on under the name that it had. */
static void
restore_not_null(Step *step, const ShapeTable *table,
				 const ShapeColumn *column)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *name = NULL;
	Oid			oid = InvalidOid;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg(&args, INT2OID, Int16GetDatum(column->attnum));
	if (catalog_run("SELECT conname::text, oid FROM pg_constraint "
					"WHERE conrelid = $1 AND contype = 'n' "
					"AND conkey = ARRAY[$2]", &args, SPI_OK_SELECT) > 0)
	{
		name = catalog_text(&access, 0, 1);
		oid = DatumGetObjectId(catalog_value(0, 2, NULL));
	}
	catalog_end(&access);
	if (name == NULL)
	{
		step_alter(step, table, psprintf("ALTER COLUMN %s SET NOT NULL",
										 quote_identifier(column->old_name)));
		return;
	}
	guard_constraint(step, table->relid, oid, name);
	step_alter(step, table,
			   psprintf("DROP CONSTRAINT IF EXISTS %s, ADD CONSTRAINT %s NOT NULL %s",
						quote_identifier(name), quote_identifier(name),
						quote_identifier(column->old_name)));
}

/* The last step: the table is what it was when it was expanded. */
static Step *
restore_table(const Shape *shape, const ShapeTable *table, List *obstacles)
{
	Step	   *step = old_step(STEP_SQL, psprintf("restore table %s",
													table->old_name), table);
	ListCell   *lc;

	step->locks = table_locks(table->qualified, NIL, NIL, LOCK_TO_DROP);
	foreach(lc, obstacles)
	{
		Obstacle   *obstacle = lfirst(lc);

		if (obstacle->kind == UNIQUE_INDEX ||
			obstacle->kind == CONSTRAINT_UNIQUE)
			guard_obstacle(step, shape, table, obstacle);
		if (obstacle->kind == UNIQUE_INDEX)
		{
			step_note(step, psprintf("DROP INDEX IF EXISTS %s",
									 shape_qualified(shape, obstacle->name)));
			step_note(step, psprintf("ALTER INDEX %s RENAME TO %s",
									 shape_qualified(shape, obstacle->hidden),
									 quote_identifier(obstacle->name)));
		}
		else if (obstacle->kind == CONSTRAINT_UNIQUE)
			step_alter(step, table,
					   psprintf("DROP CONSTRAINT IF EXISTS %s, ADD CONSTRAINT %s UNIQUE USING INDEX %s%s",
								quote_identifier(obstacle->name),
								quote_identifier(obstacle->name),
								quote_identifier(obstacle->hidden),
								obstacle->deferrable));
	}
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (!relaxes_not_null(column))
			continue;
		restore_not_null(step, table, column);
		step_alter(step, table, psprintf("DROP CONSTRAINT IF EXISTS %s",
										 quote_identifier(not_null_name(shape, column))));
	}
	if (mark_names(shape, table) != NIL)
	{
		/* it depends on the marks */
		note_drop_trigger(step, shape, table);
		note_drop_marks(step, shape, table);
		note_create_trigger(step, shape, table, TRIGGER_FILLED);
	}
	return step->statements != NIL ? step : NULL;
}

static List *
revert_table(const Shape *shape, const ShapeTable *table)
{
	List	   *obstacles = find_obstacles(shape, table);
	List	   *steps = check_steps(shape, table);
	Step	   *step;

	if (steps != NIL)
	{
		step = old_step(STEP_SQL, psprintf("want old values in table %s",
											table->old_name), table);
		step->locks = table_locks(table->qualified, NIL, NIL, LOCK_TO_ADD);
		note_marking_trigger(step, shape, table, TRIGGER_FILLED);
		steps = lappend(steps, step);
		steps = list_concat(steps, check_steps(shape, table));
	}
	steps = list_concat(steps, restore_constraints(shape, table, obstacles));
	steps = list_concat(steps, restore_indexes(shape, table, obstacles));
	step = restore_table(shape, table, obstacles);
	return step ? lappend(steps, step) : steps;
}

/*
 * The steps after which the change is what it was when it was expanded.
 */
List *
plan_revert(Shape *shape)
{
	List	   *steps = NIL;
	ListCell   *lc;

	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (!table->created)
			steps = list_concat(steps, revert_table(shape, table));
	}
	return steps;
}
