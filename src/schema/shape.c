/*-------------------------------------------------------------------------
 *
 * shape.c
 *		What the tables of a change are for the old and the new version.
 *
 * Tables are loaded when an operation names them.  The old version of a table
 * is the table without the columns that this change has added, which are known
 * by their names: hidden ones begin with bluegreen_<change>_, those of
 * add_column are in the document, and were not there when the change was first
 * planned.  So a shape is the same in every phase until the contract's first
 * step, and each phase can be planned from it alone.
 *
 * The operations are gone through in their order, and each changes the shape
 * as the next one finds it (operation.c).  What has the names that they give is
 * the same in each phase, or an error (meant.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "executor/spi.h"
#include "schema/guard.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* ---- names ---- */

/*
 * A relation of the change's schema as SQL.
 */
char *
shape_qualified(const Shape *shape, const char *name)
{
	return quote_qualified_identifier(shape->change->schema, name);
}

/*
 * Name of something that this change makes for itself; unique by its number
 * among things of a kind and table.
 */
char *
shape_hidden_name(const Shape *shape, uint32 number, const char *name)
{
	char	   *full = psprintf("bluegreen_%d_%u_%s", shape->change->id, number,
								name);
	int			length = strlen(full);

	if (length >= NAMEDATALEN)
		full[pg_mbcliplen(full, length, NAMEDATALEN - 1)] = '\0';
	return full;
}

static bool
is_hidden(const Shape *shape, const char *name)
{
	char	   *prefix = psprintf("bluegreen_%d_", shape->change->id);

	return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* ---- tables ---- */

static ShapeColumn *
load_column(uint64 row, const CatalogAccess *access)
{
	ShapeColumn *column = MemoryContextAllocZero(access->context,
												 sizeof(ShapeColumn));

	column->old_name = catalog_text(access, row, 1);
	column->name = column->old_name;
	column->column = column->old_name;
	column->attnum = DatumGetInt16(catalog_value(row, 2, NULL));
	column->type = DatumGetObjectId(catalog_value(row, 3, NULL));
	column->typmod = DatumGetInt32(catalog_value(row, 4, NULL));
	column->old_type = column->type;
	column->old_typmod = column->typmod;
	column->not_null = DatumGetBool(catalog_value(row, 5, NULL));
	column->is_generated = DatumGetBool(catalog_value(row, 6, NULL));
	column->default_sql = catalog_text(access, row, 7);
	column->is_key = DatumGetBool(catalog_value(row, 8, NULL));
	return column;
}

static void
load_columns(const Shape *shape, ShapeTable *table)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	MemoryContext context = CurrentMemoryContext;
	List	   *columns = NIL;
	ListCell   *lc;
	uint64		n;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	n = catalog_run("SELECT a.attname::text, a.attnum, a.atttypid, "
					"a.atttypmod, a.attnotnull, "
					"a.attgenerated <> '' OR a.attidentity <> '', "
					"CASE WHEN a.attgenerated = '' "
					"THEN pg_get_expr(d.adbin, d.adrelid) END, "
					"EXISTS (SELECT FROM pg_index i WHERE i.indisprimary "
					"AND i.indrelid = a.attrelid "
					"AND a.attnum = ANY (i.indkey)) "
					"FROM pg_attribute a LEFT JOIN pg_attrdef d "
					"ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
					"WHERE a.attrelid = $1 AND a.attnum > 0 "
					"AND NOT a.attisdropped ORDER BY a.attnum",
					&args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		ShapeColumn *column = load_column(i, &access);
		MemoryContext oldcontext = MemoryContextSwitchTo(context);

		columns = lappend(columns, column);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	foreach(lc, columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (!is_hidden(shape, column->old_name))
			table->columns = lappend(table->columns, column);
	}
}

/*
 * Load a table into the shape.  Errors: it is no table that can be changed.
 */
ShapeTable *
shape_load(Shape *shape, Oid relid)
{
	Relation	relation = relation_open(relid, AccessShareLock);
	ShapeTable *table = palloc0_object(ShapeTable);

	table->relid = relid;
	table->old_name = pstrdup(RelationGetRelationName(relation));
	table->name = table->old_name;
	table->qualified = shape_qualified(shape, table->old_name);
	table->path = shape->change->path;
	table->planned = shape->phase != CHANGE_EXPANDING;
	table->owner = relation->rd_rel->relowner;
	table->partitioned =
		relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	if (relation->rd_rel->relkind != RELKIND_RELATION && !table->partitioned)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", table->old_name)));
	if (relation->rd_rel->relispartition)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("table \"%s\" is a partition", table->old_name),
				 errhint("Change the partitioned table.")));
	relation_close(relation, NoLock);
	load_columns(shape, table);
	shape->tables = lappend(shape->tables, table);
	return table;
}

/*
 * Find a table by its name in the new version, as the operations before have
 * left it: loaded already, or by its number, or neither.
 */
static ShapeTable *
find_table(const Shape *shape, const char *name, Oid *relid)
{
	ListCell   *lc;

	*relid = InvalidOid;
	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (table->name != NULL && strcmp(table->name, name) == 0)
			return table;
	}
	*relid = get_relname_relid(name, shape->schema);
	foreach(lc, shape->tables)
	{
		/* renamed or dropped by an operation before */
		if (((ShapeTable *) lfirst(lc))->relid == *relid)
			*relid = InvalidOid;
	}
	return NULL;
}

/*
 * A table by its name in the new version, as the operations before have left
 * it.  Errors: there is none; it belongs to somebody else.
 */
ShapeTable *
shape_table(Shape *shape, const Operation *operation, const char *name)
{
	Oid			relid;
	ShapeTable *table = find_table(shape, name, &relid);

	if (table != NULL)
		return table;
	if (!OidIsValid(relid))
		operation_refuse(operation,
						 psprintf("table \"%%s\" does not exist in schema \"%s\"",
								  shape->change->schema), name);
	meant_table(shape, name, relid);
	table = shape_load(shape, relid);
	if (!table->partitioned &&
		find_inheritance_children(relid, NoLock) != NIL)
		operation_refuse(operation, "table \"%s\" has tables that inherit from it",
						 name);
	if (!table->partitioned && has_superclass(relid))
		operation_refuse(operation, "table \"%s\" inherits from another one",
						 name);
	if (!has_privs_of_role(shape->change->owner, table->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("operation %d (%s): must be owner of table %s",
						operation->number, operation_names[operation->kind],
						name)));
	return table;
}

/*
 * Load every table of the schema that is not loaded yet: the new version shows
 * them all.
 */
void
shape_load_all(Shape *shape)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	MemoryContext context = CurrentMemoryContext;
	List	   *relids = NIL;
	ListCell   *lc;
	uint64		n;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(shape->schema));
	n = catalog_run("SELECT c.oid FROM pg_class c WHERE c.relnamespace = $1 "
					"AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
					"AND c.relpersistence <> 't' ORDER BY c.relname",
					&args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(context);

		relids = lappend_oid(relids,
							 DatumGetObjectId(catalog_value(i, 1, NULL)));
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	foreach(lc, relids)
	{
		bool		loaded = false;
		ListCell   *other;

		LockRelationOid(lfirst_oid(lc), AccessShareLock);
		/* dropped meanwhile */
		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(lfirst_oid(lc))))
			continue;

		foreach(other, shape->tables)
		{
			if (((ShapeTable *) lfirst(other))->relid == lfirst_oid(lc))
				loaded = true;
		}
		if (!loaded)
			(void) shape_load(shape, lfirst_oid(lc));
	}
}

/*
 * Does a stream from another database write to the table?
 */
bool
shape_is_applied(const ShapeTable *table)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	result = catalog_run("SELECT FROM bluegreen.applied_table a "
						 "JOIN pg_class c ON c.relname = a.target_table "
						 "JOIN pg_namespace n ON n.oid = c.relnamespace "
						 "AND n.nspname = a.target_schema WHERE c.oid = $1",
						 &args, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/* ---- columns ---- */

/*
 * A column by its name in the new version, or NULL.
 */
ShapeColumn *
shape_column(const ShapeTable *table, const char *name)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->name != NULL && strcmp(column->name, name) == 0)
			return column;
	}
	return NULL;
}

/*
 * The same, or an error.
 */
ShapeColumn *
shape_require_column(const ShapeTable *table, const Operation *operation,
					 const char *name)
{
	ShapeColumn *column = shape_column(table, name);

	if (column == NULL)
		operation_refuse(operation,
						 psprintf("column \"%%s\" of table \"%s\" does not exist",
								  table->name), name);
	return column;
}

/* ---- the whole ---- */

static void
resolve_rules(ShapeTable *table)
{
	ListCell   *lc;
	ListCell   *other;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->rule == NULL)
			continue;
		foreach(other, column->rule->down_reads)
		{
			ColumnRead *read = lfirst(other);

			read->column = read->source->column;
		}
		table->rules = lappend(table->rules, column->rule);
	}
}

/*
 * The tables that a change's operations name, and what becomes of them.
 * Errors: whatever cannot be done.
 */
Shape *
shape_build(const Change *change, ChangeState phase)
{
	Shape	   *shape = palloc0_object(Shape);
	ListCell   *lc;

	shape->change = change;
	shape->phase = phase;
	shape->schema = get_namespace_oid(change->schema, false);
	foreach(lc, document_read(change->operations))
	{
		Operation  *operation = lfirst(lc);

		operation_handlers[operation->kind] (shape, operation);
	}
	/* which columns hold what the new version reads is known only now */
	foreach(lc, shape->tables)
	{
		resolve_rules(lfirst(lc));
		meant_columns(shape, lfirst(lc));
	}
	return shape;
}
