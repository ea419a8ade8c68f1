/*-------------------------------------------------------------------------
 *
 * operation_derive.c
 *		What derive_table does: statements out of a transform.
 *
 * A transform is a SELECT from the source.  In the statements the source is a
 * common table expression of its name, which gives the row at hand, whose
 * columns are parameters; so the transform stands there as it was written.
 *
 *		write	the row that comes of it is inserted or updated; but not if it
 *				is there already, so that nothing is written without need
 *		move	an update whose row goes to another key, or to none: what is
 *				done for a row that is gone is done for the old key
 *		remove	by on_delete: the row is deleted, unless another row of the
 *				source gives it; or left; or written once more
 *		truncate	the same for all rows
 *		fill	the same as write for a range of blocks, whose rows are locked
 *				until it commits, so that none is deleted meanwhile; rows that
 *				are there were written since, and are left alone
 *
 * Who looks whether another row gives a derived row has locked that before,
 * and who writes it locks it as well, also if nothing is to be changed in it.
 * So of two transactions one sees what the other one has done.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/analyze.h"
#include "parser/parse_coerce.h"
#include "parser/parser.h"
#include "schema/derive.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"

#define GENERATED_VIRTUAL	'v' /* attgenerated, since PostgreSQL 18 */

/* One direction: from a source to a target. */
typedef struct DeriveWork
{
	Shape	   *shape;
	const Operation *operation;
	ShapeTable *source;
	ShapeTable *target;
	char	   *transform;
	List	   *key;			/* of char * */
	List	   *columns;		/* that the transform gives: char * */
	List	   *types;			/* of these, as it gives them: OIDs */
	Query	   *query;			/* the transform */
	const char *trigger;		/* its name, which is also in statements */
	const char *opposite;		/* how those of the other one begin, or "" */
	const char *on_write;
	const char *on_delete;
} DeriveWork;

static bool
is_patch(const DeriveWork *work)
{
	return pg_strcasecmp(work->on_write, "patch") == 0;
}

static bool
deletes(const DeriveWork *work)
{
	return pg_strcasecmp(work->on_delete, "delete") == 0;
}

static bool
writes_old(const DeriveWork *work)
{
	return pg_strcasecmp(work->on_delete, "write") == 0;
}

/* ---- the transform ---- */

/* Columns of the source that a transform may read: those of the table. */
static List *
source_columns(const ShapeTable *source)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, source->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->old_name != NULL)
			result = lappend(result, column);
	}
	return result;
}

/* What a transform may not be, since it is given one row. */
static const char *
transform_problem(const Query *query, const char *source)
{
	const RangeTblEntry *rte;

	if (list_length(query->rtable) != 1 || list_length(query->cteList) != 1 ||
		query->setOperations != NULL)
		return "it must select from one table";
	rte = linitial_node(RangeTblEntry, query->rtable);
	if (rte->rtekind != RTE_CTE || strcmp(rte->ctename, source) != 0)
		return "it must select from the table that it derives from, by its name without a schema";
	if (query->hasAggs || query->hasWindowFuncs || query->hasTargetSRFs ||
		query->groupClause != NIL || query->distinctClause != NIL ||
		query->limitCount != NULL || query->limitOffset != NULL)
		return "it must give one row for each";
	if (query->hasSubLinks)
		return "subqueries are not possible: nobody would notice when their tables change";
	if (contain_volatile_functions((Node *) query))
		return "volatile functions are not possible: what is derived twice must be the same";
	return NULL;
}

/* Analyze the transform over a row of nulls; sets the names that it gives. */
static void
analyze_transform(DeriveWork *work)
{
	const char *name = work->source->old_name;
	StringInfoData sql;
	List	   *statements;
	Query	   *query;
	const char *problem;
	int			guc_level;
	ListCell   *lc;

	work->columns = NIL;
	work->types = NIL;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT * FROM (WITH %s AS (SELECT ",
					 quote_identifier(name));
	foreach(lc, source_columns(work->source))
	{
		ShapeColumn *column = lfirst(lc);

		appendStringInfo(&sql, "%sNULL::%s%s AS %s",
						 foreach_current_index(lc) > 0 ? ", " : "",
						 type_sql(column->old_type, column->old_typmod),
						 shape_collation(work->source, column,
										 column->old_type),
						 quote_identifier(column->old_name));
	}
	appendStringInfo(&sql, ") %s\n) AS derived", work->transform);
	guc_level = expression_path_enter(work->source->path);
	statements = raw_parser(sql.data, RAW_PARSE_DEFAULT);
	if (list_length(statements) != 1)
		operation_refuse(work->operation, "\"%s\" is not one SELECT",
						 work->transform);
	query = parse_analyze_fixedparams(linitial_node(RawStmt, statements),
									  sql.data, NULL, 0, NULL);
	AtEOXact_GUC(false, guc_level);
	if (query->commandType != CMD_SELECT || list_length(query->rtable) != 1)
		operation_refuse(work->operation, "\"%s\" is not one SELECT",
						 work->transform);
	work->query = linitial_node(RangeTblEntry, query->rtable)->subquery;
	problem = transform_problem(work->query, name);
	if (problem != NULL)
		operation_refuse(work->operation,
						 psprintf("transform \"%%s\": %s", problem),
						 work->transform);
	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		work->columns = lappend(work->columns, pstrdup(entry->resname));
		work->types = lappend_oid(work->types,
								  exprType((Node *) entry->expr));
	}
}

static bool
has_name(List *names, const char *name)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* Columns of the source that a part of the transform reads. */
static List *
read_columns(const DeriveWork *work, Node *node)
{
	List	   *columns = source_columns(work->source);
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, pull_var_clause(node, 0))
	{
		const Var  *var = lfirst_node(Var, lc);

		/* the whole row */
		if (var->varattno <= 0)
			return columns;
		result = lappend(result, list_nth(columns, var->varattno - 1));
	}
	return result;
}

/* The names of those that the key is made of. */
static List *
key_sources(const DeriveWork *work)
{
	List	   *result = NIL;
	ListCell   *lc;
	ListCell   *other;

	foreach(lc, work->query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resjunk || !has_name(work->key, entry->resname))
			continue;
		foreach(other, read_columns(work, (Node *) entry->expr))
		{
			result = lappend(result,
							 ((ShapeColumn *) lfirst(other))->old_name);
		}
	}
	return result;
}

/* What is computed when it is read, a trigger does not see. */
static void
require_stored_columns(const DeriveWork *work)
{
	List	   *nodes = list_make2(work->query->targetList,
								   work->query->jointree);
	ListCell   *lc;

	foreach(lc, read_columns(work, (Node *) nodes))
	{
		const ShapeColumn *column = lfirst(lc);

		if (column->is_generated && column->attnum > 0 &&
			get_attgenerated(work->source->relid, column->attnum) ==
			GENERATED_VIRTUAL)
			operation_refuse(work->operation, "generated column \"%s\" is virtual: it has no value when a row is written",
							 column->old_name);
	}
}

/*
 * Two rows of the source with one key, of which one is to go before the
 * transaction ends, would leave behind what the other one gives.
 */
static void
require_immediate_key(const DeriveWork *work)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *name = NULL;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(work->source->relid));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(key_sources(work)));
	if (catalog_run("SELECT c.conname::text FROM pg_constraint c "
					"WHERE c.conrelid = $1 AND c.condeferrable "
					"AND c.contype IN ('p', 'u') "
					"AND NOT EXISTS (SELECT FROM pg_attribute a "
					"WHERE a.attrelid = c.conrelid "
					"AND a.attnum = ANY (c.conkey) "
					"AND a.attname::text <> ALL ($2)) LIMIT 1", &args,
					SPI_OK_SELECT) > 0)
		name = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (name != NULL)
		operation_refuse(work->operation,
						 psprintf("constraint \"%%s\" of table \"%s\", from whose columns the key is derived, is deferrable",
								  work->source->old_name), name);
}

/* ON CONFLICT needs a unique index. */
static void
require_unique_key(const DeriveWork *work)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		found;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(work->target->relid));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(work->key));
	found = catalog_run("SELECT FROM pg_index i WHERE i.indrelid = $1 "
						"AND i.indisunique AND i.indimmediate "
						"AND i.indisvalid AND i.indpred IS NULL "
						"AND i.indexprs IS NULL "
						"AND (SELECT array_agg(a.attname::text "
						"ORDER BY a.attname::text) FROM pg_attribute a "
						"WHERE a.attrelid = $1 AND a.attnotnull "
						"AND a.attnum = ANY ((i.indkey::int2[])"
						"[0:i.indnkeyatts - 1])) = "
						"(SELECT array_agg(k ORDER BY k) FROM unnest($2) k)",
						&args, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	if (!found)
		operation_refuse(work->operation, "table \"%s\" has no unique index on the key that is not deferrable, and whose columns are NOT NULL",
						 work->target->old_name);
}

/* A new row must have what it cannot do without. */
static void
require_complete_row(const DeriveWork *work)
{
	ListCell   *lc;

	foreach(lc, work->target->columns)
	{
		const ShapeColumn *column = lfirst(lc);

		if (column->old_name != NULL && column->not_null &&
			column->default_sql == NULL && !column->is_generated &&
			!has_name(work->columns, column->old_name))
			operation_refuse(work->operation, "column \"%s\" is NOT NULL without a default, and not given by the transform",
							 column->old_name);
	}
}

/* The column's type in the table as it is, or will be. */
static Oid
stored_type(const ShapeColumn *column, int32 *typmod)
{
	*typmod = column->attnum > 0 ? column->old_typmod : column->typmod;
	return column->attnum > 0 ? column->old_type : column->type;
}

/*
 * What the transform gives must become the column's type by itself.  Of a key
 * without losing anything: rows are found by what the transform gives.
 */
static void
require_type(const DeriveWork *work, const char *name, Oid given)
{
	int32		typmod;
	Oid			type = stored_type(shape_require_column(work->target,
														work->operation, name),
								   &typmod);

	if (!can_coerce_type(1, &given, &type, has_name(work->key, name) ?
						 COERCION_IMPLICIT : COERCION_ASSIGNMENT))
		operation_refuse(work->operation,
						 psprintf("column \"%%s\" is of type %s, but the transform gives type %s; write a cast",
								  format_type_be(type), format_type_be(given)),
						 name);
}

/* The target's primary key, unless a key is given. */
static void
find_key(DeriveWork *work)
{
	ListCell   *lc;

	if (work->key == NIL)
	{
		foreach(lc, work->target->columns)
		{
			ShapeColumn *column = lfirst(lc);

			if (column->is_key)
				work->key = lappend(work->key, column->old_name);
		}
	}
	if (work->key == NIL)
		operation_refuse(work->operation, "table \"%s\" has no primary key; name the key",
						 work->target->old_name);
	foreach(lc, work->key)
	{
		if (!has_name(work->columns, lfirst(lc)))
			operation_refuse(work->operation, "key column \"%s\" is not given by the transform",
							 lfirst(lc));
	}
	foreach(lc, work->columns)
	{
		require_type(work, lfirst(lc),
					 list_nth_oid(work->types, foreach_current_index(lc)));
	}
	require_immediate_key(work);
	if (is_patch(work))
		return;
	require_unique_key(work);
	require_complete_row(work);
}

/* ---- statements ---- */

/* prefix.a, prefix.b */
static char *
name_list(List *names, const char *prefix)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, names)
	{
		appendStringInfo(&sql, "%s%s%s", sql.len > 0 ? ", " : "", prefix,
						 quote_identifier(lfirst(lc)));
	}
	return sql.data;
}

/* a.k = b.k AND ... */
static char *
same_key(const DeriveWork *work, const char *a, const char *b)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, work->key)
	{
		const char *name = quote_identifier(lfirst(lc));

		appendStringInfo(&sql, "%s%s.%s = %s.%s",
						 sql.len > 0 ? " AND " : "", a, name, b, name);
	}
	return sql.data;
}

static List *
other_columns(const DeriveWork *work)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, work->columns)
	{
		if (!has_name(work->key, lfirst(lc)))
			result = lappend(result, lfirst(lc));
	}
	return result;
}

/* What the transform gives, as a FROM item, if this SELECT is the source. */
static char *
derived_sql(const DeriveWork *work, const char *rows)
{
	return psprintf("(WITH %s AS (%s) %s\n)",
					quote_identifier(work->source->old_name), rows,
					work->transform);
}

/* For the row in the parameters from first on. */
static char *
row_sql(const DeriveWork *work, int first)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, source_columns(work->source))
	{
		const ShapeColumn *column = lfirst(lc);

		appendStringInfo(&sql, "%s$%d%s AS %s",
						 foreach_current_index(lc) > 0 ? ", " : "SELECT ",
						 first + foreach_current_index(lc),
						 shape_collation(work->source, column,
										 column->old_type),
						 quote_identifier(column->old_name));
	}
	return derived_sql(work, sql.data);
}

/* For all rows that are in the source now. */
static char *
all_sql(const DeriveWork *work)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, source_columns(work->source))
	{
		names = lappend(names, ((ShapeColumn *) lfirst(lc))->old_name);
	}
	return derived_sql(work, psprintf("SELECT %s FROM ONLY %s",
									  name_list(names, ""),
									  work->source->qualified));
}

/* Of several rows with one key, one. */
static char *
distinct_sql(const DeriveWork *work, const char *rows)
{
	return psprintf("(SELECT DISTINCT ON (%s) r.* FROM %s AS r)",
					name_list(work->key, "r."), rows);
}

/* Rows as they were, in the parameters, whose key is not the new one's. */
static char *
moved_sql(const DeriveWork *work)
{
	int			n = list_length(source_columns(work->source));

	return psprintf("(SELECT o.* FROM %s AS o WHERE NOT EXISTS (SELECT FROM %s AS n WHERE %s))",
					row_sql(work, 1), row_sql(work, n + 1),
					same_key(work, "n", "o"));
}

/* How a statement begins. */
static char *
mark(const char *trigger)
{
	return psprintf(DERIVE_MARK "%s */ ", trigger);
}

/*
 * Does the row t differ from these values, of the same types?  Bit by bit, so
 * that each type will do.
 */
static char *
differs_sql(const DeriveWork *work, const char *values)
{
	return psprintf("ROW(%s)::record OPERATOR(pg_catalog.*<>) ROW(%s)::record",
					name_list(other_columns(work), "t."), values);
}

/*
 * What the transform gives for other columns than the key, as the table would
 * have it: n.a::numeric(10,2).  But a text that is too long is not cut, which is
 * an error when it is written.
 */
static char *
stored_list(const DeriveWork *work)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, other_columns(work))
	{
		int32		typmod;
		Oid			type = stored_type(shape_column(work->target, lfirst(lc)),
									   &typmod);
		char		category;
		bool		preferred;

		get_type_category_preferred(type, &category, &preferred);
		if (category == TYPCATEGORY_STRING || category == TYPCATEGORY_BITSTRING)
			typmod = -1;
		appendStringInfo(&sql, "%sn.%s::%s", sql.len > 0 ? ", " : "",
						 quote_identifier(lfirst(lc)), type_sql(type, typmod));
	}
	return sql.data;
}

/* a = prefix.a, b = prefix.b */
static char *
assignments(const DeriveWork *work, const char *prefix)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, other_columns(work))
	{
		const char *name = quote_identifier(lfirst(lc));

		appendStringInfo(&sql, "%s%s = %s%s", sql.len > 0 ? ", " : "", name,
						 prefix, name);
	}
	return sql.data;
}

/*
 * What is done where the row is there already.  It is locked, also if it stays
 * as it is, but not by the backfill.
 */
static char *
conflict_sql(const DeriveWork *work, bool update)
{
	const char *first = quote_identifier(linitial(work->key));

	if (!update)
		return "NOTHING";
	if (other_columns(work) == NIL)
		return psprintf("UPDATE SET %s = excluded.%s WHERE false", first,
						first);
	return psprintf("UPDATE SET %s WHERE %s", assignments(work, "excluded."),
					differs_sql(work, name_list(other_columns(work), "excluded.")));
}

/* Write the rows of a FROM item called n; with update, also those there. */
static char *
write_sql(const DeriveWork *work, const char *rows, bool update)
{
	const char *target = work->target->qualified;

	if (is_patch(work))
		return other_columns(work) == NIL ? "" :
			psprintf("%sUPDATE %s AS t SET %s FROM %s AS n WHERE %s AND %s",
					 mark(work->trigger), target, assignments(work, "n."),
					 rows, same_key(work, "t", "n"),
					 differs_sql(work, stored_list(work)));
	return psprintf("%sINSERT INTO %s AS t (%s) SELECT %s FROM %s AS n ON CONFLICT (%s) DO %s",
					mark(work->trigger), target,
					name_list(work->columns, ""),
					name_list(work->columns, "n."), rows,
					name_list(work->key, ""), conflict_sql(work, update));
}

/*
 * Would a row be written at all?  Of types, and of columns that nobody may
 * write, the parser complains.  It cannot know a column that is yet to be added.
 */
static void
require_possible_write(const DeriveWork *work)
{
	List	   *columns = source_columns(work->source);
	const char *sql = write_sql(work, row_sql(work, 1), true);
	Oid		   *types = palloc_array(Oid, list_length(columns) + 1);
	int			guc_level;
	ListCell   *lc;

	foreach(lc, work->columns)
	{
		if (shape_column(work->target, lfirst(lc))->attnum == 0)
			return;
	}
	foreach(lc, columns)
	{
		types[foreach_current_index(lc)] =
			((const ShapeColumn *) lfirst(lc))->old_type;
	}
	guc_level = expression_path_enter(work->source->path);
	SPI_connect();
	if (SPI_prepare(sql, list_length(columns), types) == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql,
			 SPI_result_code_string(SPI_result));
	SPI_finish();
	AtEOXact_GUC(false, guc_level);
}

/* Lock what may be removed for the rows of a FROM item. */
static char *
lock_sql(const DeriveWork *work, const char *rows)
{
	return deletes(work) ?
		psprintf("SELECT FROM %s AS t, %s AS o WHERE %s FOR UPDATE OF t",
				 work->target->qualified, rows, same_key(work, "t", "o")) : "";
}

/* What is done for rows that are gone. */
static char *
remove_sql(const DeriveWork *work, const char *rows)
{
	if (writes_old(work))
		return write_sql(work, rows, true);
	return deletes(work) ?
		psprintf("%sDELETE FROM %s AS t USING %s AS o WHERE %s AND NOT EXISTS (SELECT FROM %s AS s WHERE %s)",
				 mark(work->trigger), work->target->qualified, rows,
				 same_key(work, "t", "o"), all_sql(work),
				 same_key(work, "s", "o")) : "";
}

/* The same before all of them go. */
static char *
truncate_sql(const DeriveWork *work)
{
	if (writes_old(work))
		return write_sql(work, distinct_sql(work, all_sql(work)), true);
	return deletes(work) ?
		psprintf("%sDELETE FROM %s AS t USING %s AS o WHERE %s",
				 mark(work->trigger), work->target->qualified,
				 all_sql(work), same_key(work, "t", "o")) : "";
}

/* $1 and $2: the range of blocks */
static char *
fill_sql(const DeriveWork *work)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, source_columns(work->source))
	{
		names = lappend(names, ((ShapeColumn *) lfirst(lc))->old_name);
	}
	return write_sql(work,
					 psprintf("(WITH %s AS MATERIALIZED (SELECT %s FROM ONLY %s WHERE ctid >= $1 AND ctid < $2 FOR SHARE) %s\n)",
							  quote_identifier(work->source->old_name),
							  name_list(names, ""), work->source->qualified,
							  work->transform), false);
}

/* ---- the operation ---- */

static void
require_derivable(const DeriveWork *work, const ShapeTable *table)
{
	if (table->partitioned)
		operation_refuse(work->operation, "table \"%s\" is partitioned",
						 table->old_name);
	if (table->owner != work->source->owner)
		operation_refuse(work->operation, "table \"%s\" belongs to another role than the table that it goes with",
						 table->old_name);
	if (check_enable_rls(table->relid, table->owner, true) == RLS_ENABLED)
		operation_refuse(work->operation, "row-level security of table \"%s\" is forced on its owner, who would write its rows",
						 table->old_name);
	if (shape_is_applied(table))
		operation_refuse(work->operation, "table \"%s\" is filled by a stream, which derives its rows itself",
						 table->old_name);
}

/* CREATE TRIGGER ... with its arguments, but for the columns. */
static StringInfo
begin_trigger(const DeriveWork *work, const char *name, bool truncate,
			  const char *const statements[])
{
	StringInfo	sql = makeStringInfo();

	appendStringInfo(sql, "%s %s %s ON %s FOR EACH %s EXECUTE FUNCTION "
					 "bluegreen.derive_rows(%s, %s", TRIGGER_STATEMENT,
					 quote_identifier(name), truncate ? "BEFORE TRUNCATE" :
					 "AFTER INSERT OR UPDATE OR DELETE",
					 work->source->qualified, truncate ? "STATEMENT" : "ROW",
					 quote_literal_cstr(work->source->path),
					 quote_literal_cstr(work->opposite));
	for (int i = DERIVE_WRITE; i < DERIVE_COLUMNS; i++)
	{
		appendStringInfo(sql, ", %s",
						 quote_literal_cstr(statements[i] ? statements[i] : ""));
	}
	return sql;
}

static char *
row_trigger_sql(const DeriveWork *work)
{
	const char *row = row_sql(work, 1);
	const char *moved = moved_sql(work);
	const char *const statements[DERIVE_COLUMNS] = {
		[DERIVE_WRITE] = write_sql(work, row, true),
		[DERIVE_KEEP] = write_sql(work, row, false),
		[DERIVE_MOVE_LOCK] = lock_sql(work, moved),
		[DERIVE_MOVE] = remove_sql(work, moved),
		[DERIVE_REMOVE_LOCK] = lock_sql(work, row),
		[DERIVE_REMOVE] = remove_sql(work, row)
	};
	StringInfo	sql = begin_trigger(work, work->trigger, false, statements);
	ListCell   *lc;

	foreach(lc, source_columns(work->source))
	{
		appendStringInfo(sql, ", %s",
						 quote_literal_cstr(((ShapeColumn *) lfirst(lc))->old_name));
	}
	appendStringInfoChar(sql, ')');
	return sql->data;
}

static char *
truncate_trigger_sql(const DeriveWork *work, const char *name)
{
	const char *const statements[DERIVE_COLUMNS] = {
		[DERIVE_REMOVE] = truncate_sql(work)
	};
	StringInfo	sql = begin_trigger(work, name, true, statements);

	appendStringInfoChar(sql, ')');
	return sql->data;
}

static Derivation *
add_derivation(const DeriveWork *work, const char *trigger)
{
	Derivation *derivation = palloc0_object(Derivation);

	derivation->source = work->source;
	derivation->target = work->target;
	derivation->trigger = pstrdup(trigger);
	work->shape->derivations = lappend(work->shape->derivations, derivation);
	return derivation;
}

/* Capital letters come before RI_ConstraintTrigger. */
static char *
trigger_name(const DeriveWork *work, bool back)
{
	return psprintf("BLUEGREEN_%d_%d%s", work->shape->change->id,
					work->operation->number, back ? "_back" : "");
}

/*
 * One direction.  What it needs in SQL is made only when it is first planned;
 * later its triggers' names are enough.
 */
static void
derive(DeriveWork *work, JsonbContainer *fields, bool fill)
{
	char	   *truncate = psprintf("%s_truncate", work->trigger);
	Derivation *rows = add_derivation(work, work->trigger);
	Derivation *all = add_derivation(work, truncate);

	if (work->shape->phase != CHANGE_EXPANDING)
		return;
	work->transform = field_text(fields, "transform");
	work->key = field_texts(fields, "key");
	work->on_write = field_text(fields, "on_write");
	work->on_delete = field_text(fields, "on_delete");
	if (work->on_write == NULL)
		work->on_write = "mirror";
	if (work->on_delete == NULL)
		work->on_delete = "delete";
	require_derivable(work, work->source);
	require_derivable(work, work->target);
	analyze_transform(work);
	require_stored_columns(work);
	find_key(work);
	require_possible_write(work);
	rows->create = row_trigger_sql(work);
	rows->fill = fill ? fill_sql(work) : NULL;
	all->create = truncate_trigger_sql(work, truncate);
}

/*
 * What one operation writes, another one may not read: what comes back to where
 * it began might never end.
 */
static void
require_no_chain(const DeriveWork *work, bool back)
{
	ListCell   *lc;

	foreach(lc, work->shape->derivations)
	{
		const Derivation *other = lfirst(lc);
		const ShapeTable *link = NULL;

		if (other->target == work->source ||
			(back && other->source == work->source))
			link = work->source;
		else if (other->source == work->target ||
				 (back && other->target == work->target))
			link = work->target;
		if (link != NULL)
			operation_refuse(work->operation, "table \"%s\" is part of another derive_table; one may not write what another one reads",
							 link->old_name);
	}
}

void
op_derive_table(Shape *shape, const Operation *operation)
{
	JsonbContainer *fields = operation->fields;
	JsonbContainer *back = field_object(fields, "back");
	DeriveWork	work = {
		.shape = shape,
		.operation = operation,
		.source = shape_table(shape, operation, field_text(fields, "from")),
		.target = shape_table(shape, operation, field_text(fields, "name"))
	};
	ShapeTable *source = work.source;

	if (work.source == work.target)
		operation_refuse(operation, "table \"%s\" cannot be derived from itself",
						 work.source->old_name);
	require_no_chain(&work, back != NULL);
	work.trigger = trigger_name(&work, false);
	work.opposite = back ? mark(trigger_name(&work, true)) : "";
	derive(&work, fields, true);
	if (back == NULL)
		return;
	work.source = work.target;
	work.target = source;
	work.opposite = mark(work.trigger);
	work.trigger = trigger_name(&work, true);
	derive(&work, back, false);
}
