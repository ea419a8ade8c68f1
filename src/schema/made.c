/*-------------------------------------------------------------------------
 *
 * made.c
 *		What a change has made: columns, constraints, indexes and tables, by
 *		their numbers.
 *
 * It is written down in the transaction that makes it, by comparing what the
 * table has before and after a step.  That is done only for steps that take
 * locks of their table first, so that nobody else adds anything meanwhile; all
 * that add columns or constraints do.  An undo drops just that, under whatever
 * names it has by then, and does not need the document, nor anything that it
 * names, for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "schema/guard.h"

/*
 * Look at the table of a step before it, under its locks.
 */
void
made_begin(const Step *step, TableBefore *before)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	before->known = false;
	if (!OidIsValid(step->relid) || step->kind != STEP_SQL ||
		step->locks == NIL)
		return;
	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(step->relid));
	if (catalog_run("SELECT c.relnatts::int, ARRAY(SELECT k.oid "
					"FROM pg_constraint k WHERE k.conrelid = c.oid)::text "
					"FROM pg_class c WHERE c.oid = $1", &args,
					SPI_OK_SELECT) > 0)
	{
		before->known = true;
		before->natts = DatumGetInt32(catalog_value(0, 1, NULL));
		before->constraints = catalog_text(&access, 0, 2);
	}
	catalog_end(&access);
}

/* What becomes of constraints that a phase has made, or NULL. */
static const char *
constraint_kind(ChangeState phase)
{
	if (phase == CHANGE_REVERTING)
		return "restored";
	return phase == CHANGE_VALIDATING ? "constraint" : NULL;
}

/*
 * Write down what the step has made.  A contract makes nothing that an undo
 * would drop; what restores the old version only its marks, but constraints and
 * indexes that it has restored may have to go again.
 */
void
made_end(int32 change, const Step *step, const TableBefore *before)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	if (step->phase == CHANGE_VALIDATING && step->object != NULL)
		made_index(change, step->phase, find_relation(step->object));
	if (!before->known || step->phase == CHANGE_CONTRACTING ||
		step->phase == CHANGE_UNDOING)
		return;
	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(step->relid));
	catalog_arg_int4(&args, before->natts);
	catalog_arg_text(&args, before->constraints);
	catalog_arg_text(&args, constraint_kind(step->phase));
	(void) catalog_run("INSERT INTO bluegreen.schema_made "
					   "(change, kind, relation, number) "
					   "SELECT $1, 'column', $2, attnum FROM pg_attribute "
					   "WHERE attrelid = $2 AND attnum > $3 "
					   "AND NOT attisdropped "
					   "UNION ALL "
					   "SELECT $1, $5, $2, oid FROM pg_constraint "
					   "WHERE $5 IS NOT NULL AND conrelid = $2 "
					   "AND oid <> ALL ($4::oid[]) "
					   "ON CONFLICT DO NOTHING", &args, SPI_OK_INSERT);
	catalog_end(&access);
}

/*
 * The change has created a table.
 */
void
made_table(int32 change, Oid relid, int operation)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	catalog_arg_int4(&args, operation);
	(void) catalog_run("INSERT INTO bluegreen.schema_made "
					   "(change, kind, relation, number) "
					   "VALUES ($1, 'table', $2, $3)", &args, SPI_OK_INSERT);
	catalog_end(&access);
}

/*
 * What an earlier try has left of an index.  Error if the name is that of
 * something else.
 */
IndexState
made_index_state(const Step *step)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	IndexState	result = INDEX_MISSING;
	bool		is_ours = true;

	catalog_begin(&access);
	catalog_arg_text(&args, step->object);
	catalog_arg_text(&args, step->relation);
	if (catalog_run("SELECT coalesce(i.indisvalid, false), "
					"coalesce(i.indrelid = to_regclass($2) "
					"OR to_regclass($2) IN (SELECT a.relid "
					"FROM pg_partition_ancestors(i.indrelid) a), false) "
					"FROM pg_class c "
					"LEFT JOIN pg_index i ON i.indexrelid = c.oid "
					"WHERE c.oid = to_regclass($1)", &args,
					SPI_OK_SELECT) > 0)
	{
		result = DatumGetBool(catalog_value(0, 1, NULL)) ? INDEX_VALID :
			INDEX_INVALID;
		is_ours = DatumGetBool(catalog_value(0, 2, NULL));
	}
	catalog_end(&access);
	if (!is_ours)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("relation %s already exists", step->object)));
	return result;
}

/*
 * A phase has built an index, or InvalidOid.
 */
void
made_index(int32 change, ChangeState phase, Oid index)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(index));
	catalog_arg_text(&args, phase == CHANGE_REVERTING ? "restored" : "index");
	(void) catalog_run(psprintf("INSERT INTO bluegreen.schema_made "
								"(change, kind, relation, number, name, identity) "
								"SELECT $1, $3, x.indrelid, x.indexrelid, "
								"format('%%I.%%I', n.nspname, c.relname), %s "
								"FROM pg_index x "
								"JOIN pg_class c ON c.oid = x.indexrelid "
								"JOIN pg_namespace n ON n.oid = c.relnamespace "
								"WHERE x.indexrelid = $2 "
								"ON CONFLICT DO NOTHING",
								index_identity("x.indexrelid")), &args,
					   SPI_OK_INSERT);
	catalog_end(&access);
}
