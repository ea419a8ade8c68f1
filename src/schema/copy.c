/*-------------------------------------------------------------------------
 *
 * copy.c
 *		Which constraint or index of a new column is the copy of which one of
 *		the old column.
 *
 * When the constraints are planned it is stored.  The contract goes by that:
 * what the old columns have by then may be something else, and the names of
 * copies come from OIDs, which REINDEX CONCURRENTLY changes.  What is there and
 * has no copy would be lost with the old column, so it is refused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

static void
store_constraint(const Shape *shape, const ShapeTable *table,
				 const NewConstraint *copy)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, shape->change->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg_name(&args, copy->name);
	catalog_arg_name(&args, copy->final_name);
	catalog_arg_text(&args, copy->locks);
	(void) catalog_run("INSERT INTO bluegreen.schema_copy (change, relation, "
					   "name, is_index, final_name, locks) "
					   "VALUES ($1, $2, $3, false, $4, $5)", &args,
					   SPI_OK_INSERT);
}

static void
store_index(const Shape *shape, const ShapeTable *table, const NewIndex *copy)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, shape->change->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg_name(&args, copy->name);
	catalog_arg_name(&args, copy->final_name);
	catalog_arg_text(&args, copy->constraint);
	catalog_arg_text(&args, copy->deferrable);
	(void) catalog_run("INSERT INTO bluegreen.schema_copy (change, relation, "
					   "name, is_index, final_name, constraint_kind, "
					   "after_constraint) VALUES ($1, $2, $3, true, $4, $5, $6)",
					   &args, SPI_OK_INSERT);
}

/*
 * Copy what the old columns of the table's pairs have, and store what is the
 * copy of what.
 */
void
copies_store(Shape *shape, ShapeTable *table)
{
	int			nconstraints = list_length(table->constraints);
	int			nindexes = list_length(table->indexes);
	CatalogAccess access;

	dependents_copy(shape, table);
	catalog_begin(&access);
	for (int i = nconstraints; i < list_length(table->constraints); i++)
		store_constraint(shape, table, list_nth(table->constraints, i));
	for (int i = nindexes; i < list_length(table->indexes); i++)
		store_index(shape, table, list_nth(table->indexes, i));
	catalog_end(&access);
}

/* ---- load ---- */

/* A copy that somebody has dropped, or an original that has none. */
static void
refuse_missing(const Shape *shape, const ShapeTable *table,
			   const char *original, const char *copy)
{
	const char *name = quote_literal_cstr(shape->change->name);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 copy ?
			 errmsg("\"%s\", which is to replace \"%s\" of table \"%s\", does not exist",
					copy, original, table->old_name) :
			 errmsg("\"%s\" of table \"%s\" would be lost with the old column",
					original, table->old_name),
			 copy ? 0 :
			 errdetail("It was created when the change had been expanded already."),
			 copy ?
			 errhint("Use CALL bluegreen.undo(%s), and expand the change again.",
					 name) :
			 errhint("Drop it, or use CALL bluegreen.undo(%s) and expand the change again.",
					 name)));
}

static void
load_copy(ShapeTable *table, const CatalogAccess *access, uint64 row)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(access->context);
	char	   *name = catalog_text(access, row, 1);
	char	   *final_name = catalog_text(access, row, 2);

	if (DatumGetBool(catalog_value(row, 3, NULL)))
	{
		NewIndex   *index = palloc0_object(NewIndex);

		index->name = name;
		index->final_name = final_name;
		index->constraint = catalog_text(access, row, 4);
		index->deferrable = catalog_text(access, row, 5);
		table->indexes = lappend(table->indexes, index);
	}
	else
	{
		NewConstraint *constraint = palloc0_object(NewConstraint);

		constraint->name = name;
		constraint->final_name = final_name;
		constraint->locks = catalog_text(access, row, 6);
		table->constraints = lappend(table->constraints, constraint);
	}
	MemoryContextSwitchTo(oldcontext);
}

static void
load_copies(const Shape *shape, ShapeTable *table)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, shape->change->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	n = catalog_run("SELECT name::text, final_name::text, is_index, "
					"constraint_kind, after_constraint, locks "
					"FROM bluegreen.schema_copy WHERE change = $1 "
					"AND relation = $2 ORDER BY name", &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
		load_copy(table, &access, i);
	catalog_end(&access);
}

static bool
constraint_is_copied(const ShapeTable *table, int first, const char *original)
{
	for (int i = first; i < list_length(table->constraints); i++)
	{
		const NewConstraint *copy = list_nth(table->constraints, i);

		if (strcmp(copy->final_name, original) == 0)
			return true;
	}
	return false;
}

static bool
index_is_copied(const ShapeTable *table, int first, const char *original)
{
	for (int i = first; i < list_length(table->indexes); i++)
	{
		const NewIndex *copy = list_nth(table->indexes, i);

		if (strcmp(copy->final_name, original) == 0)
			return true;
	}
	return false;
}

/*
 * Note the copies that were made, for the contract.  Errors: one is gone;
 * something that the old columns have was not copied.
 */
void
copies_load(Shape *shape, ShapeTable *table)
{
	ShapeTable	now = *table;
	int			nconstraints = list_length(table->constraints);
	int			nindexes = list_length(table->indexes);

	now.constraints = NIL;
	now.indexes = NIL;
	dependents_copy(shape, &now);
	load_copies(shape, table);
	for (int i = nconstraints; i < list_length(table->constraints); i++)
	{
		const NewConstraint *copy = list_nth(table->constraints, i);

		if (!OidIsValid(get_relation_constraint_oid(table->relid, copy->name,
													true)))
			refuse_missing(shape, table, copy->final_name, copy->name);
	}
	for (int i = nindexes; i < list_length(table->indexes); i++)
	{
		const NewIndex *copy = list_nth(table->indexes, i);

		if (!OidIsValid(get_relname_relid(copy->name, shape->schema)))
			refuse_missing(shape, table, copy->final_name, copy->name);
	}
	for (int i = 0; i < list_length(now.constraints); i++)
	{
		const NewConstraint *original = list_nth(now.constraints, i);

		if (!constraint_is_copied(table, nconstraints, original->final_name))
			refuse_missing(shape, table, original->final_name, NULL);
	}
	for (int i = 0; i < list_length(now.indexes); i++)
	{
		const NewIndex *original = list_nth(now.indexes, i);

		if (!index_is_copied(table, nindexes, original->final_name))
			refuse_missing(shape, table, original->final_name, NULL);
	}
}
