/*-------------------------------------------------------------------------
 *
 * partition_index.c
 *		Indexes that are built when all rows are filled, and those of
 *		partitioned tables.
 *
 * On a partitioned table an index is made alone, invalid; then concurrently on
 * each partition; with the last one attached it is valid.  That takes hours,
 * and partitions come and go meanwhile.  So which ones lack the index is looked
 * for when they are to get it: the step that does puts one step for each before
 * itself, and looks again after those.  (What is attached or created since has
 * it at once.)  First all are built, and then attached, one by one: that takes
 * an exclusive lock of the partition's index.  A step about a table that is no
 * partition any more has nothing to do.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "schema/guard.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/varlena.h"

/* ---- when the phase is planned ---- */

/*
 * An index is built under its name, or under one of ours, and then gets its own.
 */
static Step *
index_step(const ShapeTable *table, const Shape *shape, const NewIndex *index)
{
	const char *name = index->hidden ? index->hidden : index->name;
	Step	   *step = step_of(STEP_INDEX, psprintf("create index %s",
													index->name), table);

	step->object = shape_qualified(shape, name);
	step_note(step, psprintf("CREATE %sINDEX CONCURRENTLY %s ON %s %s",
							 index->unique ? "UNIQUE " : "",
							 quote_identifier(name), table->qualified,
							 index->definition));
	if (index->hidden != NULL)
		step_note(step, psprintf("ALTER INDEX %s RENAME TO %s", step->object,
								 quote_identifier(index->name)));
	return step;
}

static RangeVar *
range_var(const char *qualified)
{
	List	   *names = textToQualifiedNameList(cstring_to_text(qualified));

	return makeRangeVarFromNameList(names);
}

/* The first step of a partitioned index: that of the table alone. */
static Step *
parent_step(const Step *step)
{
	char	   *name = range_var(step->object)->relname;
	Step	   *result = step_make(STEP_SQL, psprintf("create index %s", name),
								   step->relation);

	result->object = step->object;
	result->relid = step->relid;
	guard_table(result, step->relid, step->relation);
	step_note(result, psprintf("%s %s ON ONLY %s %s",
							   (char *) linitial(step->statements),
							   quote_identifier(name), step->relation,
							   (char *) lsecond(step->statements)));
	return result;
}

/* ... and the one that sees to the partitions; its statements are fragments. */
static Step *
partitions_step(const ShapeTable *table, const Shape *shape,
				const NewIndex *index)
{
	Step	   *step = step_of(STEP_PARTITIONS,
							   psprintf("create index %s on partitions",
										index->name), table);

	step->object = shape_qualified(shape, index->name);
	step_note(step, psprintf("CREATE %sINDEX", index->unique ? "UNIQUE " : ""));
	step_note(step, index->definition);
	return step;
}

/*
 * The steps that build the indexes of a table.
 */
List *
index_steps(const Shape *shape, const ShapeTable *table)
{
	List	   *steps = NIL;
	ListCell   *lc;

	foreach(lc, table->indexes)
	{
		NewIndex   *index = lfirst(lc);

		if (table->partitioned)
		{
			Step	   *step = partitions_step(table, shape, index);

			steps = lappend(steps, parent_step(step));
			steps = lappend(steps, step);
		}
		else
			steps = lappend(steps, index_step(table, shape, index));
	}
	return steps;
}

/* ---- when the partitions are looked at ---- */

/* $1 table, $2 its index */
static const char *const missing_sql =
	"SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'r' "
	"FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid "
	"JOIN pg_namespace n ON n.oid = c.relnamespace "
	"WHERE h.inhparent = $1 AND NOT h.inhdetachpending AND NOT EXISTS ("
	"SELECT FROM pg_index i JOIN pg_inherits a ON a.inhrelid = i.indexrelid "
	"WHERE a.inhparent = $2 AND i.indrelid = c.oid) ORDER BY c.oid";

typedef struct Partition
{
	Oid			relid;
	char	   *schema;
	char	   *qualified;		/* SQL */
} Partition;

static Partition *
read_partition(const CatalogAccess *access, uint64 row, const char *index)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(access->context);
	Partition  *partition = palloc0_object(Partition);
	char	   *name = catalog_text(access, row, 3);

	partition->relid = DatumGetObjectId(catalog_value(row, 1, NULL));
	partition->schema = catalog_text(access, row, 2);
	partition->qualified = quote_qualified_identifier(partition->schema, name);
	MemoryContextSwitchTo(oldcontext);
	if (!DatumGetBool(catalog_value(row, 4, NULL)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("index %s cannot be built on partition \"%s\"",
						index, name),
				 errdetail("Partitions have to be ordinary tables, not partitioned or foreign ones."),
				 errhint("Detach it until the change is contracted.")));
	return partition;
}

/* Partitions without the index. */
static List *
missing_partitions(const Step *step, Oid index)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(step->relid));
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(index));
	n = catalog_run(missing_sql, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		Partition  *partition = read_partition(&access, i, step->object);
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);

		result = lappend(result, partition);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return result;
}

/* A step about a partition, as long as it is one, and under its name. */
static Step *
partition_step(StepKind kind, const char *title, const Step *step,
			   const Partition *partition)
{
	Step	   *result = step_make(kind, title, step->relation);

	result->relid = step->relid;
	guard_table(result, step->relid, step->relation);
	result->guards =
		lappend(result->guards,
				psprintf("SELECT CASE WHEN to_regclass(%s) = '%u'::oid "
						 "AND EXISTS (SELECT FROM pg_inherits "
						 "WHERE inhrelid = '%u' AND inhparent = '%u' "
						 "AND NOT inhdetachpending) THEN NULL ELSE '' END",
						 quote_literal_cstr(partition->qualified),
						 partition->relid, partition->relid, step->relid));
	return result;
}

/* Two steps for each partition: built are all before one is attached. */
static List *
partition_steps(const Change *change, const Step *step, List *partitions)
{
	Shape		shape = {.change = change};
	char	   *index = range_var(step->object)->relname;
	List	   *steps = NIL;
	List	   *attach = NIL;
	ListCell   *lc;

	foreach(lc, partitions)
	{
		Partition  *partition = lfirst(lc);
		char	   *name = shape_hidden_name(&shape, partition->relid, index);
		char	   *object = quote_qualified_identifier(partition->schema,
														name);
		Step	   *build = partition_step(STEP_INDEX,
										   psprintf("create index %s", name),
										   step, partition);

		build->object = object;
		step_note(build, psprintf("%s CONCURRENTLY %s ON %s %s",
								  (char *) linitial(step->statements),
								  quote_identifier(name),
								  partition->qualified,
								  (char *) lsecond(step->statements)));
		steps = lappend(steps, build);
		build = partition_step(STEP_ATTACH, psprintf("attach index %s", name),
							   step, partition);
		step_note(build, psprintf("ALTER INDEX %s ATTACH PARTITION %s",
								  step->object, object));
		attach = lappend(attach, build);
	}
	return list_concat(steps, attach);
}

/* The step's index; InvalidOid if it is not that of its table. */
static Oid
find_index(const Step *step)
{
	Oid			index = RangeVarGetRelid(range_var(step->object), NoLock,
										 true);

	if (OidIsValid(index) &&
		get_rel_relkind(index) == RELKIND_PARTITIONED_INDEX &&
		IndexGetRelation(index, true) == step->relid)
		return index;
	return InvalidOid;
}

/*
 * It is not if a partition is dropped after others were attached and before the
 * last one was, which the server does not notice.
 */
static void
require_valid(const Step *step, Oid index)
{
	if (!get_index_isvalid(index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index %s is not valid, although all partitions of table %s have it",
						step->object, step->relation),
				 errdetail("A partition was dropped or detached while indexes of others were attached."),
				 errhint("Use DROP INDEX %s and call again, which builds it anew.",
						 step->object)));
}

/*
 * Run a step of kind STEP_PARTITIONS in the current transaction: put steps
 * before it, or mark it as done.  Errors: a partition cannot have the index.
 */
void
partitions_run(const Change *change, const Step *step)
{
	Oid			index = find_index(step);
	List	   *steps = NIL;

	if (!OidIsValid(index))
		steps = list_make1(parent_step(step));
	else
		steps = partition_steps(change, step, missing_partitions(step, index));
	if (steps != NIL)
	{
		steps_insert(change->id, step, steps);
		return;
	}
	require_valid(step, index);
	step_finish(change->id, step);
}
