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
 *		remove	by on_delete: the row is deleted, left, or written once more
 *		fill	the same as write for a range of blocks, whose rows are locked
 *				until it commits, so that none is deleted meanwhile; rows that
 *				are there were written since, and are left alone
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "compat.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "schema/derive.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rls.h"

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
	const char *on_write;
	const char *on_delete;
} DeriveWork;

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

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT * FROM (WITH %s AS (SELECT ",
					 quote_identifier(name));
	foreach(lc, source_columns(work->source))
	{
		ShapeColumn *column = lfirst(lc);

		appendStringInfo(&sql, "%sNULL::%s AS %s",
						 foreach_current_index(lc) > 0 ? ", " : "",
						 format_type_extended(column->old_type,
											  column->old_typmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY),
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
	problem = transform_problem(linitial_node(RangeTblEntry,
											  query->rtable)->subquery, name);
	if (problem != NULL)
		operation_refuse(work->operation,
						 psprintf("transform \"%%s\": %s", problem),
						 work->transform);
	foreach(lc, query->targetList)
	{
		work->columns = lappend(work->columns,
								pstrdup(lfirst_node(TargetEntry, lc)->resname));
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
		(void) shape_require_column(work->target, work->operation,
									lfirst(lc));
	}
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

/* What the transform gives for the row in the parameters from first on. */
static char *
row_sql(const DeriveWork *work, int first)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "(WITH %s AS (SELECT ",
					 quote_identifier(work->source->old_name));
	foreach(lc, source_columns(work->source))
	{
		appendStringInfo(&sql, "%s$%d AS %s",
						 foreach_current_index(lc) > 0 ? ", " : "",
						 first + foreach_current_index(lc),
						 quote_identifier(((ShapeColumn *) lfirst(lc))->old_name));
	}
	appendStringInfo(&sql, ") %s\n)", work->transform);
	return sql.data;
}

/* Do both rows differ?  Bit by bit, so that each type will do. */
static char *
differs_sql(const DeriveWork *work, const char *a, const char *b)
{
	List	   *others = other_columns(work);

	return psprintf("ROW(%s)::record OPERATOR(pg_catalog.*<>) ROW(%s)::record",
					name_list(others, a), name_list(others, b));
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

/* Write the rows of a FROM item called n; with update, also those there. */
static char *
write_sql(const DeriveWork *work, const char *rows, bool update)
{
	const char *target = work->target->qualified;
	char	   *key = name_list(work->key, "");

	if (pg_strcasecmp(work->on_write, "patch") == 0)
		return other_columns(work) == NIL ? "" :
			psprintf(DERIVE_MARK "UPDATE %s AS t SET %s FROM %s AS n WHERE %s AND %s",
					 target, assignments(work, "n."), rows,
					 same_key(work, "t", "n"), differs_sql(work, "t.", "n."));
	return psprintf(DERIVE_MARK "INSERT INTO %s AS t (%s) SELECT %s FROM %s AS n ON CONFLICT (%s) DO %s",
					target, name_list(work->columns, ""),
					name_list(work->columns, "n."), rows, key,
					update && other_columns(work) != NIL ?
					psprintf("UPDATE SET %s WHERE %s",
							 assignments(work, "excluded."),
							 differs_sql(work, "t.", "excluded.")) :
					"NOTHING");
}

static char *
remove_sql(const DeriveWork *work)
{
	if (pg_strcasecmp(work->on_delete, "ignore") == 0)
		return "";
	if (pg_strcasecmp(work->on_delete, "write") == 0)
		return write_sql(work, row_sql(work, 1), true);
	return psprintf(DERIVE_MARK "DELETE FROM %s AS t USING %s AS o WHERE %s",
					work->target->qualified, row_sql(work, 1),
					same_key(work, "t", "o"));
}

static char *
move_sql(const DeriveWork *work)
{
	int			n = list_length(source_columns(work->source));
	char	   *moved;

	if (pg_strcasecmp(work->on_delete, "ignore") == 0)
		return "";
	moved = psprintf("(SELECT o.* FROM %s AS o WHERE NOT EXISTS (SELECT FROM %s AS n WHERE %s))",
					 row_sql(work, 1), row_sql(work, n + 1),
					 same_key(work, "n", "o"));
	if (pg_strcasecmp(work->on_delete, "write") == 0)
		return write_sql(work, moved, true);
	return psprintf(DERIVE_MARK "DELETE FROM %s AS t USING %s AS o WHERE %s",
					work->target->qualified, moved,
					same_key(work, "t", "o"));
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

/* CREATE TRIGGER ... with its arguments */
static char *
trigger_sql(const DeriveWork *work, const char *name)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, TRIGGER_STATEMENT " %s AFTER INSERT OR UPDATE OR "
					 "DELETE ON %s FOR EACH ROW EXECUTE FUNCTION "
					 "bluegreen.derive_rows(%s, %s, %s, %s",
					 quote_identifier(name), work->source->qualified,
					 quote_literal_cstr(work->source->path),
					 quote_literal_cstr(write_sql(work, row_sql(work, 1),
												  true)),
					 quote_literal_cstr(move_sql(work)),
					 quote_literal_cstr(remove_sql(work)));
	foreach(lc, source_columns(work->source))
	{
		appendStringInfo(&sql, ", %s",
						 quote_literal_cstr(((ShapeColumn *) lfirst(lc))->old_name));
	}
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

/*
 * One direction.  What it needs in SQL is made only when it is first planned;
 * later its trigger's name is enough.
 */
static void
derive(DeriveWork *work, JsonbContainer *fields, const char *suffix)
{
	Derivation *derivation = palloc0_object(Derivation);
	Shape	   *shape = work->shape;

	derivation->source = work->source;
	derivation->target = work->target;
	/* capital letters come before RI_ConstraintTrigger */
	derivation->trigger = psprintf("BLUEGREEN_%d_%d%s", shape->change->id,
								   work->operation->number, suffix);
	shape->derivations = lappend(shape->derivations, derivation);
	if (shape->phase != CHANGE_EXPANDING)
		return;
	work->transform = field_text(fields, "transform");
	work->key = field_texts(fields, "key");
	work->columns = NIL;
	work->on_write = field_text(fields, "on_write");
	work->on_delete = field_text(fields, "on_delete");
	if (work->on_write == NULL)
		work->on_write = "mirror";
	if (work->on_delete == NULL)
		work->on_delete = "delete";
	require_derivable(work, work->source);
	require_derivable(work, work->target);
	analyze_transform(work);
	find_key(work);
	derivation->create = trigger_sql(work, derivation->trigger);
	derivation->fill = fill_sql(work);
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

	if (work.source == work.target)
		operation_refuse(operation, "table \"%s\" cannot be derived from itself",
						 work.source->old_name);
	derive(&work, fields, "");
	if (back == NULL)
		return;
	work.target = work.source;
	work.source = shape_table(shape, operation, field_text(fields, "name"));
	derive(&work, back, "_back");
	((Derivation *) llast(shape->derivations))->fill = NULL;
}
