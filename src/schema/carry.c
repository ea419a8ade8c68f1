/*-------------------------------------------------------------------------
 *
 * carry.c
 *		What comes along with a column beside its indexes and constraints
 *		(dependent.c), and what would be found out too late.
 *
 * Indexes and constraints are made when all rows are filled.  What cannot be
 * made then is refused before, where it can be told from the catalogs; the rest
 * is rehearsed (rehearse.c).  So is what only a partition has: nothing would
 * make it for the new column, and it would go with the old one without a word.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "schema/shape.h"
#include "utils/builtins.h"

/* ---- what cannot come along ---- */

typedef enum Reason
{
	REASON_REFERENCE,
	REASON_UNIQUE,
	REASON_PERIOD,
	REASON_NOT_VALID,
	REASON_PARTITION
} Reason;

static const char *const reasons[] = {
	[REASON_REFERENCE] = "Before PostgreSQL 18, a foreign key cannot be added to a partitioned table without a scan under a lock.",
	[REASON_UNIQUE] = "A unique constraint cannot be added to a partitioned table that is in use.",
	[REASON_PERIOD] = "It has a PERIOD.",
	[REASON_NOT_VALID] = "It is not valid, but would have to hold for all rows.",
	[REASON_PARTITION] = "Only a partition has it, so nothing would make it for the new column."
};

/*
 * $1 table, $2 its columns, $3 those that will be NOT NULL, $4 constraints that
 * are dropped, $5 is partitioned, $6 foreign keys can be added to such
 */
static const char *const not_carried_sql =
	"WITH col AS (SELECT attnum, attname, attnotnull FROM pg_attribute "
	"WHERE attrelid = $1 AND attname::text = ANY ($2)), "
	"own AS (SELECT k.oid, CASE "
	"WHEN k.contype = 'f' AND $5 AND NOT $6 THEN 0 "
	"WHEN k.contype = 'u' AND $5 THEN 1 "
	"WHEN k.contype = 'f' AND (to_jsonb(k) ->> 'conperiod')::boolean THEN 2 "
	"WHEN k.contype = 'n' AND NOT k.convalidated AND EXISTS (SELECT FROM col "
	"WHERE col.attnum = k.conkey[1] AND col.attname::text = ANY ($3)) THEN 3 "
	"END AS reason FROM pg_constraint k WHERE k.conrelid = $1 "
	"AND k.conparentid = 0 AND k.oid <> ALL ($4::oid[]) "
	"AND k.conkey && ARRAY(SELECT attnum FROM col)), "
	"leaf AS (SELECT a.attrelid, a.attnum, a.attname, "
	"a.attnotnull AND NOT col.attnotnull AS not_null "
	"FROM pg_partition_tree($1) t JOIN pg_attribute a ON a.attrelid = t.relid "
	"JOIN col ON col.attname = a.attname WHERE t.relid <> $1), "
	"leaf_constraint AS (SELECT k.oid, k.conindid FROM pg_constraint k "
	"JOIN leaf l ON l.attrelid = k.conrelid AND l.attnum = ANY (k.conkey) "
	"WHERE k.conparentid = 0 AND k.coninhcount = 0 "
	"AND k.contype IN ('c', 'f', 'u')) "
	"SELECT pg_describe_object('pg_constraint'::regclass, oid, 0), reason "
	"FROM own WHERE reason IS NOT NULL "
	"UNION ALL "
	"SELECT pg_describe_object('pg_constraint'::regclass, oid, 0), 4 "
	"FROM leaf_constraint "
	"UNION ALL "
	"SELECT pg_describe_object('pg_class'::regclass, i.indexrelid, 0), 4 "
	"FROM leaf l JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass "
	"AND d.refobjid = l.attrelid AND d.refobjsubid = l.attnum "
	"AND d.classid = 'pg_class'::regclass "
	"JOIN pg_index i ON i.indexrelid = d.objid "
	"WHERE NOT EXISTS (SELECT FROM pg_inherits h "
	"WHERE h.inhrelid = i.indexrelid) "
	"UNION ALL "
	"SELECT format('NOT NULL of column %I of table %s', l.attname, "
	"l.attrelid::regclass), 4 FROM leaf l WHERE l.not_null "
	"ORDER BY 2, 1 LIMIT 1";

/* An array of the OIDs, as text. */
static char *
oids_text(List *oids)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	foreach(lc, oids)
	{
		appendStringInfo(&text, "%s%u", text.len > 1 ? "," : "",
						 lfirst_oid(lc));
	}
	appendStringInfoChar(&text, '}');
	return text.data;
}

static void
not_carried_args(CatalogArgs *args, const ShapeTable *table)
{
	List	   *pairs = NIL;
	List	   *not_null = NIL;
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->rule == NULL || column->rule->kind != RULE_PAIR)
			continue;
		pairs = lappend(pairs, column->old_name);
		if (column->set_not_null)
			not_null = lappend(not_null, column->old_name);
	}
	catalog_arg(args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg(args, TEXTARRAYOID, texts_datum(pairs));
	catalog_arg(args, TEXTARRAYOID, texts_datum(not_null));
	catalog_arg_text(args, oids_text(table->dropped_oids));
	catalog_arg(args, BOOLOID, BoolGetDatum(table->partitioned));
	catalog_arg(args, BOOLOID, BoolGetDatum(HAVE_PARTITIONED_NOT_VALID));
}

static void
require_columns_carried(const ShapeTable *table)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *what = NULL;
	Reason		reason = REASON_PARTITION;

	not_carried_args(&args, table);
	catalog_begin(&access);
	if (catalog_run(not_carried_sql, &args, SPI_OK_SELECT) > 0)
	{
		what = catalog_text(&access, 0, 1);
		reason = DatumGetInt32(catalog_value(0, 2, NULL));
	}
	catalog_end(&access);
	if (what == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s cannot be carried over to a new column", what),
			 errdetail_internal("%s", reasons[reason]),
			 reason == REASON_NOT_VALID ?
			 errhint("Use ALTER TABLE ... VALIDATE CONSTRAINT before.") :
			 errhint("Drop it before, and create it again after the contract.")));
}

/* $1 partitioned table, $2 columns, $3 is an index made anyway */
static const char *const other_partition_sql =
	"SELECT c.relname::text FROM pg_inherits h "
	"JOIN pg_class c ON c.oid = h.inhrelid "
	"WHERE h.inhparent = $1 AND c.relkind <> 'r' AND ($3 OR EXISTS ("
	"SELECT FROM pg_attribute a JOIN pg_depend d ON d.refobjid = a.attrelid "
	"AND d.refobjsubid = a.attnum AND d.refclassid = 'pg_class'::regclass "
	"AND d.classid = 'pg_class'::regclass "
	"JOIN pg_index i ON i.indexrelid = d.objid AND i.indisvalid "
	"WHERE a.attrelid = $1 AND a.attname::text = ANY ($2))) "
	"ORDER BY c.oid LIMIT 1";

/* Indexes of partitioned tables are built on each partition. */
static void
require_plain_partitions(const ShapeTable *table)
{
	CatalogArgs args = {0};
	List	   *pairs = NIL;
	List	   *found;
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->rule != NULL && column->rule->kind == RULE_PAIR)
			pairs = lappend(pairs, column->old_name);
	}
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(pairs));
	catalog_arg(&args, BOOLOID, BoolGetDatum(table->indexes != NIL));
	found = query_texts(other_partition_sql, &args);
	if (found != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("index of table \"%s\" cannot be built on partition \"%s\"",
						table->old_name, (char *) linitial(found)),
				 errdetail("Partitions have to be ordinary tables, not partitioned or foreign ones."),
				 errhint("Drop the index, or detach the partition, until the change is contracted.")));
}

/*
 * Error if something that the old columns of a table have cannot be made for
 * the new ones, or an index not on all partitions: that is told before any row
 * is filled.
 */
void
require_carried(const ShapeTable *table)
{
	if (table_has_pairs(table))
		require_columns_carried(table);
	if (table->partitioned)
		require_plain_partitions(table);
}

/* ---- what comes along ---- */

/*
 * $1 table, $2 column, $3 table as SQL, $4 new column, $5 its type.  Some
 * servers keep something of their own among the options ("pg_attver" of 15.20).
 */
static const char *const column_settings_sql =
	"SELECT format('ALTER TABLE %s ALTER COLUMN %I SET %s', $3, $4, s.setting) "
	"FROM pg_attribute a JOIN pg_type t ON t.oid = $5 CROSS JOIN LATERAL ("
	"SELECT 'STATISTICS ' || a.attstattarget WHERE a.attstattarget >= 0 "
	"UNION ALL "
	"SELECT 'STORAGE ' || CASE a.attstorage WHEN 'p' THEN 'PLAIN' "
	"WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END "
	"WHERE a.atttypid = t.oid AND a.attstorage <> t.typstorage "
	"UNION ALL "
	"SELECT 'COMPRESSION ' || CASE a.attcompression WHEN 'l' THEN 'lz4' "
	"ELSE 'pglz' END WHERE a.attcompression <> '' AND t.typstorage <> 'p' "
	"UNION ALL "
	"SELECT '(' || string_agg(o, ', ') || ')' FROM unnest(a.attoptions) o "
	"WHERE o ^@ 'n_distinct' HAVING count(*) > 0) s (setting) "
	"WHERE a.attrelid = $1 AND a.attnum = $2";

/*
 * Statements that give a new column what the old one has as to statistics and
 * storage.
 */
List *
column_settings(const ShapeTable *table, const ShapeColumn *column)
{
	CatalogArgs args = {0};

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg(&args, INT2OID, Int16GetDatum(column->attnum));
	catalog_arg_text(&args, table->qualified);
	catalog_arg_text(&args, column->column);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(column->type));
	return query_texts(column_settings_sql, &args);
}

/* $1 table, $2 the same as SQL, $3 constraint */
static const char *const constraint_comment_sql =
	"SELECT format('COMMENT ON CONSTRAINT %I ON %s IS %L', conname, $2, "
	"obj_description(oid, 'pg_constraint')) FROM pg_constraint "
	"WHERE conrelid = $1 AND conname = $3::name "
	"AND obj_description(oid, 'pg_constraint') IS NOT NULL";

/* $1 table, $2 the same as SQL, $3 index as SQL */
static const char *const index_settings_sql =
	"SELECT s.sql FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
	"CROSS JOIN LATERAL (SELECT format('COMMENT ON INDEX %s IS %L', $3, "
	"obj_description(c.oid, 'pg_class')) "
	"WHERE obj_description(c.oid, 'pg_class') IS NOT NULL "
	"UNION ALL "
	"SELECT format('ALTER TABLE %s CLUSTER ON %I', $2, c.relname) "
	"WHERE i.indisclustered "
	"UNION ALL "
	"SELECT format('ALTER INDEX %s ALTER COLUMN %s SET STATISTICS %s', $3, "
	"a.attnum, a.attstattarget) FROM pg_attribute a "
	"WHERE a.attrelid = c.oid AND a.attstattarget >= 0) s (sql) "
	"WHERE i.indrelid = $1 AND i.indexrelid = to_regclass($3)";

static void
note_settings(Step *step, const ShapeTable *table, const char *query,
			  const char *name)
{
	CatalogArgs args = {0};

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg_text(&args, table->qualified);
	catalog_arg_text(&args, name);
	step->statements = list_concat(step->statements,
								   query_texts(query, &args));
}

/*
 * Note statements for a contract that give copies of constraints and indexes,
 * under their last names, what the originals have beside their definitions.
 */
void
note_copied_settings(Step *step, const Shape *shape, const ShapeTable *table)
{
	ListCell   *lc;

	foreach(lc, table->constraints)
	{
		NewConstraint *copy = lfirst(lc);

		if (copy->final_name != NULL)
			note_settings(step, table, constraint_comment_sql,
						  copy->final_name);
	}
	foreach(lc, table->indexes)
	{
		NewIndex   *copy = lfirst(lc);

		if (copy->final_name == NULL)
			continue;
		note_settings(step, table, index_settings_sql,
					  shape_qualified(shape, copy->final_name));
		if (copy->constraint != NULL)
			note_settings(step, table, constraint_comment_sql,
						  copy->final_name);
	}
}
