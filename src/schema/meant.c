/*-------------------------------------------------------------------------
 *
 * meant.c
 *		What the names in a document mean.
 *
 * A document names tables, columns, constraints and indexes.  What has these
 * names when the expansion is planned is meant, and written down by its number.
 * Each later phase looks the names up again, maybe weeks later, and finds
 * nothing else, or an error.  A constraint or index that was made again just as
 * it was is as good, because REINDEX CONCURRENTLY gives new numbers as well.
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

typedef enum MeantKind
{
	MEANT_TABLE,
	MEANT_COLUMN,
	MEANT_CONSTRAINT,
	MEANT_INDEX
} MeantKind;

typedef struct Meant
{
	MeantKind	kind;
	Oid			relid;			/* of a column or constraint; else 0 */
	const char *name;
	Oid			number;
} Meant;

/* Of each kind its name, and SQL of the name that the number $1 has now. */
static const struct
{
	const char *name;
	const char *now;
}			kinds[] =
{
	[MEANT_TABLE] = {"table", "SELECT relname::text FROM pg_class "
		"WHERE oid = $1 AND $2 = 0"},
	[MEANT_COLUMN] = {"column", "SELECT attname::text FROM pg_attribute "
		"WHERE attrelid = $2 AND attnum = $1::int AND NOT attisdropped"},
	[MEANT_CONSTRAINT] = {"constraint", "SELECT conname::text "
		"FROM pg_constraint WHERE oid = $1 AND conrelid = $2"},
	[MEANT_INDEX] = {"index", "SELECT relname::text FROM pg_class "
		"WHERE oid = $1 AND $2 = 0"}
};

/* SQL of what the number $5 of a kind is, beside that. */
static const char *
identity_sql(MeantKind kind)
{
	if (kind == MEANT_INDEX)
		return index_identity("$5");
	return kind == MEANT_CONSTRAINT ? constraint_identity("$5") : "NULL";
}

static void
meant_args(CatalogArgs *args, const Shape *shape, const Meant *meant)
{
	catalog_arg_int4(args, shape->change->id);
	catalog_arg_text(args, kinds[meant->kind].name);
	catalog_arg(args, OIDOID, ObjectIdGetDatum(meant->relid));
	catalog_arg_name(args, meant->name);
	catalog_arg(args, OIDOID, ObjectIdGetDatum(meant->number));
}

static void
meant_store(const Shape *shape, const Meant *meant)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	meant_args(&args, shape, meant);
	(void) catalog_run(psprintf("INSERT INTO bluegreen.schema_meant "
								"(change, kind, relation, name, number, identity) "
								"VALUES ($1, $2, $3, $4, $5, %s) "
								"ON CONFLICT DO NOTHING",
								identity_sql(meant->kind)), &args,
					   SPI_OK_INSERT);
	catalog_end(&access);
}

/* What was meant, if that is something else; else InvalidOid. */
static Oid
meant_other(const Shape *shape, const Meant *meant)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Oid			result = InvalidOid;

	catalog_begin(&access);
	meant_args(&args, shape, meant);
	if (catalog_run(psprintf("SELECT number FROM bluegreen.schema_meant "
							 "WHERE change = $1 AND kind = $2 "
							 "AND relation = $3 AND name = $4 "
							 "AND number <> $5 AND coalesce(identity <> %s, true)",
							 identity_sql(meant->kind)), &args,
					SPI_OK_SELECT) > 0)
		result = DatumGetObjectId(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return result;
}

/* The name that something has by now, or NULL if it is gone. */
static char *
name_now(MeantKind kind, Oid relid, Oid number)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *result = NULL;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(number));
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	if (catalog_run(kinds[kind].now, &args, SPI_OK_SELECT) > 0)
		result = catalog_text(&access, 0, 1);
	catalog_end(&access);
	return result;
}

/*
 * This is what the document names; note or check it.
 */
static void
meant_check(const Shape *shape, const Meant *meant)
{
	const char *kind = kinds[meant->kind].name;
	Oid			other;
	char	   *now;

	if (shape->phase == CHANGE_EXPANDING)
	{
		meant_store(shape, meant);
		return;
	}
	other = meant_other(shape, meant);
	if (!OidIsValid(other))
		return;
	now = name_now(meant->kind, meant->relid, other);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 OidIsValid(meant->relid) ?
			 errmsg("%s \"%s\" of table \"%s\" is not the same as before",
					kind, meant->name, get_rel_name(meant->relid)) :
			 errmsg("%s \"%s\" is not the same as before", kind,
					meant->name),
			 now ? errdetail("That with which the change was expanded is \"%s\" now.",
							 now) :
			 errdetail("That with which the change was expanded is gone."),
			 errhint("Take it back and call again, or use CALL bluegreen.undo(%s).",
					 quote_literal_cstr(shape->change->name))));
}

/*
 * The document names a table of the change's schema, which is this one.
 * Error: it meant another one when the change was expanded.
 */
void
meant_table(const Shape *shape, const char *name, Oid relid)
{
	Meant		meant = {MEANT_TABLE, InvalidOid, name, relid};

	meant_check(shape, &meant);
}

/*
 * The same for an index.
 */
void
meant_index(const Shape *shape, const char *name, Oid index)
{
	Meant		meant = {MEANT_INDEX, InvalidOid, name, index};

	meant_check(shape, &meant);
}

/*
 * The same for a constraint of a table.
 */
void
meant_constraint(const Shape *shape, const ShapeTable *table, const char *name,
				 Oid constraint)
{
	Meant		meant = {MEANT_CONSTRAINT, table->relid, name, constraint};

	meant_check(shape, &meant);
}

/* Does anything become of a column of the old version? */
static bool
is_touched(const ShapeColumn *column)
{
	return column->name == NULL || column->rule != NULL || column->is_used ||
		column->default_differs || column->set_not_null ||
		column->drop_not_null || strcmp(column->name, column->old_name) != 0;
}

/*
 * The same for the columns of a table that something becomes of.
 */
void
meant_columns(const Shape *shape, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);
		Meant		meant = {MEANT_COLUMN, table->relid, column->old_name,
			column->attnum};

		if (column->old_name != NULL && is_touched(column))
			meant_check(shape, &meant);
	}
}
