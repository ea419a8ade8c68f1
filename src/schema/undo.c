/*-------------------------------------------------------------------------
 *
 * undo.c
 *		The steps that take an expansion back.
 *
 * They come from what is written down as made (made.c) and from the catalogs,
 * not from the document: what that names may be gone or have other names by
 * now, and an undo must be possible all the same.  The version's views go first,
 * then tables one by one, as they were expanded: trigger, constraints and
 * columns of a table in one step.  What somebody else has made is not touched,
 * whatever its name.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "schema/guard.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* A trigger t of the change $1. */
#define OUR_TRIGGER \
	"t.tgparentid = 0 AND t.tgfoid IN (SELECT p.oid FROM pg_proc p " \
	"WHERE p.pronamespace = 'bluegreen'::regnamespace " \
	"AND p.proname IN ('sync_columns', 'derive_rows')) " \
	"AND (t.tgname::text = 'zz_bluegreen_' || $1 " \
	"OR t.tgname::text LIKE 'BLUEGREEN\\_' || $1 || '\\_%')"

/* A table, as it is now. */
typedef struct UndoTable
{
	Oid			relid;
	char	   *qualified;		/* SQL */
	char	   *name;
	bool		created;
} UndoTable;

/*
 * Tables that were created later may refer to those before.  $2 the change's
 * owner: whoever owns a table can make a trigger of any name on it.
 */
static const char *const tables_sql =
	"SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relname::text, "
	"coalesce(m.created, false) "
	"FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
	"LEFT JOIN (SELECT relation, bool_or(kind = 'table') AS created, "
	"max(number) FILTER (WHERE kind = 'table') AS number "
	"FROM bluegreen.schema_made WHERE change = $1 AND kind <> 'index' "
	"GROUP BY relation) m ON m.relation = c.oid "
	"WHERE m.relation IS NOT NULL OR EXISTS (SELECT FROM pg_trigger t "
	"WHERE t.tgrelid = c.oid AND pg_has_role($2, c.relowner, 'USAGE') "
	"AND " OUR_TRIGGER ") "
	"ORDER BY 4, m.number DESC, c.oid DESC";

static List *
find_tables(const Change *change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(change->owner));
	n = catalog_run(tables_sql, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *qualified = catalog_text(&access, i, 2);
		char	   *name = catalog_text(&access, i, 3);
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);
		UndoTable  *table = palloc0_object(UndoTable);

		table->relid = DatumGetObjectId(catalog_value(i, 1, NULL));
		table->qualified = qualified;
		table->name = name;
		table->created = DatumGetBool(catalog_value(i, 4, NULL));
		result = lappend(result, table);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return result;
}

/*
 * What is dropped of a table: $2 its number, $3 its name, as SQL.  Hidden
 * columns are ours by their names.
 */
static const char *const drops_sql =
	"SELECT format('DROP TRIGGER IF EXISTS %I ON %s', t.tgname, $3), "
	"1, NULL::int, NULL::text FROM pg_trigger t "
	"WHERE t.tgrelid = $2 AND " OUR_TRIGGER " "
	"UNION ALL "
	"SELECT format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', $3, "
	"k.conname), 2, NULL, NULL FROM bluegreen.schema_made m "
	"JOIN pg_constraint k ON k.oid = m.number AND k.conrelid = m.relation "
	"WHERE m.change = $1 AND m.relation = $2 AND m.kind = 'constraint' "
	"UNION ALL "
	"SELECT format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', $3, "
	"a.attname), 3, a.attnum, a.attname::text FROM pg_attribute a "
	"WHERE a.attrelid = $2 AND a.attnum > 0 AND NOT a.attisdropped "
	"AND (a.attname::text LIKE 'bluegreen\\_' || $1 || '\\_%' "
	"OR EXISTS (SELECT FROM bluegreen.schema_made m WHERE m.change = $1 "
	"AND m.relation = $2 AND m.kind = 'column' AND m.number = a.attnum)) "
	"ORDER BY 2, 3, 1";

static void
note_drops(Step *step, const Change *change, const UndoTable *table)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg_text(&args, table->qualified);
	n = catalog_run(drops_sql, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *sql = catalog_text(&access, i, 1);
		char	   *column = catalog_text(&access, i, 4);
		int			attnum = column != NULL ?
			DatumGetInt32(catalog_value(i, 3, NULL)) : 0;
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);

		step_note(step, sql);
		if (column != NULL)
			guard_column(step, table->relid, attnum, column);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
}

static Step *
undo_table(const Change *change, const UndoTable *table)
{
	Step	   *step = step_make(STEP_SQL, psprintf("undo table %s",
													table->name),
								 table->qualified);

	step->relid = table->relid;
	guard_table(step, table->relid, table->qualified);
	step->locks = table_locks(table->qualified, NIL, table->created ?
							  referenced_tables(table->relid) : NIL,
							  LOCK_TO_DROP);
	if (table->created)
		step_note(step, psprintf("DROP TABLE IF EXISTS %s",
								 table->qualified));
	else
		note_drops(step, change, table);
	return step->statements != NIL ? step : NULL;
}

/* ---- indexes ---- */

/*
 * Those that steps have built, and what one may have left behind under a name of
 * ours.  One that was built anew has another number, but is the same.
 */
static char *
indexes_sql(void)
{
	return psprintf("SELECT c.oid, format('%%I.%%I', n.nspname, c.relname), "
					"c.relname::text, c.relkind = 'I', "
					"format('%%I.%%I', tn.nspname, tc.relname) "
					"FROM (SELECT m.relation, "
					"CASE WHEN EXISTS (SELECT FROM pg_class WHERE oid = m.number) "
					"THEN m.number "
					"WHEN %s = m.identity THEN to_regclass(m.name)::oid "
					"END AS oid FROM bluegreen.schema_made m "
					"WHERE m.change = $1 AND m.kind = 'index' "
					"UNION "
					"SELECT i.indrelid, i.indexrelid "
					"FROM bluegreen.schema_step s "
					"JOIN pg_index i ON i.indexrelid = to_regclass(s.object) "
					"WHERE s.change = $1 AND s.phase = 'validating' "
					"AND s.kind = 'index' AND NOT s.done "
					"AND s.started_at IS NOT NULL "
					"AND (i.indrelid = s.relid OR s.relid IN (SELECT a.relid "
					"FROM pg_partition_ancestors(i.indrelid) a))) x "
					"JOIN pg_index i ON i.indexrelid = x.oid "
					"AND i.indrelid = x.relation "
					"JOIN pg_class c ON c.oid = i.indexrelid "
					"JOIN pg_namespace n ON n.oid = c.relnamespace "
					"JOIN pg_class tc ON tc.oid = i.indrelid "
					"JOIN pg_namespace tn ON tn.oid = tc.relnamespace "
					"ORDER BY c.relkind = 'I' DESC, c.oid",
					index_identity("to_regclass(m.name)"));
}

/*
 * Those that are not gone with a column by then; those of partitions go with
 * that of the table if they are attached to it already.
 */
static List *
undo_indexes(const Change *change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	n = catalog_run(indexes_sql(), &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		Oid			index = DatumGetObjectId(catalog_value(i, 1, NULL));
		char	   *qualified = catalog_text(&access, i, 2);
		char	   *name = catalog_text(&access, i, 3);
		bool		partitioned = DatumGetBool(catalog_value(i, 4, NULL));
		char	   *table = catalog_text(&access, i, 5);
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);
		Step	   *step = step_make(partitioned ? STEP_SQL :
									 STEP_DROP_INDEX,
									 psprintf("drop index %s", name), table);

		step->object = qualified;
		step_note(step, psprintf("DROP INDEX %sIF EXISTS %s",
								 partitioned ? "" : "CONCURRENTLY ",
								 qualified));
		if (partitioned)
			step->locks =
				list_make1(psprintf("LOCK TABLE %s IN ACCESS EXCLUSIVE MODE",
									table));
		guard_table(step, index, qualified);
		result = lappend(result, step);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return result;
}

/* ---- the whole ---- */

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
		result->guards = list_concat(result->guards, step->guards);
		result->statements = list_concat(result->statements,
										 step->statements);
	}
	return result;
}

/* Does the change derive tables? */
static bool
has_derivations(const Change *change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	result = catalog_run("SELECT FROM pg_trigger t WHERE " OUR_TRIGGER
						 " AND t.tgname::text LIKE 'BLUEGREEN%'", &args,
						 SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/*
 * The steps that take back what an expansion has added.
 */
List *
plan_undo(const Change *change)
{
	List	   *steps = version_drop_steps(change, change->version_schema);
	List	   *tables = NIL;
	ListCell   *lc;

	foreach(lc, find_tables(change))
	{
		Step	   *step = undo_table(change, lfirst(lc));

		if (step != NULL)
			tables = lappend(tables, step);
	}
	/* a foreign key may want the rows that the trigger writes */
	if (tables != NIL && has_derivations(change))
		tables = list_make1(merge_steps("undo tables", tables));
	steps = list_concat(steps, tables);
	steps = list_concat(steps, undo_indexes(change));
	return list_concat(steps, steps_undo(change->id, CHANGE_EXPANDING));
}
