/*-------------------------------------------------------------------------
 *
 * expression.c
 *		The expressions of a document: what they read, and what they are in
 *		terms of the columns that exist.
 *
 * An expression uses the names of a version: "up" those of the old one,
 * "down", checks and predicates those of the new one.  To find out what it
 * reads, it is analyzed over a row of nulls with these names, so nothing needs
 * to exist but its types.  It may be a whole SELECT; it stands in parentheses.
 *
 * Names are looked up in the search_path of the change; what is made of them
 * for statements is qualified, because it is written under an empty one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/analyze.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "parser/parse_type.h"
#include "parser/parser.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

/*
 * Look up names as the document does, until AtEOXact_GUC() for the level that
 * is returned.
 */
int
expression_path_enter(const char *path)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return guc_level;
}

/*
 * A type by its name, as it is written in SQL.
 */
void
type_parse(const char *path, const char *name, Oid *type, int32 *typmod)
{
	int			guc_level = expression_path_enter(path);

	parse_type_string(name, type, typmod);
	AtEOXact_GUC(false, guc_level);
}

/*
 * A type as SQL, whatever the search_path.
 */
char *
type_sql(Oid type, int32 typmod)
{
	return format_type_extended(type, typmod, FORMAT_TYPE_TYPEMOD_GIVEN |
								FORMAT_TYPE_FORCE_QUALIFY);
}

/*
 * " COLLATE ..." of a column of this type, unless it is the type's own; or "".
 */
char *
collation_sql(Oid type, Oid collation)
{
	if (!OidIsValid(collation) || collation == get_typcollation(type))
		return "";
	return psprintf(" COLLATE %s", generate_collation_name(collation));
}

/*
 * The same for a column of the table that there is, where its values are of
 * this type.
 */
char *
shape_collation(const ShapeTable *table, const ShapeColumn *column, Oid type)
{
	Oid			old_type;
	int32		typmod;
	Oid			collation;

	if (column->attnum <= 0 || !OidIsValid(get_typcollation(type)))
		return "";
	get_atttypetypmodcoll(table->relid, column->attnum, &old_type, &typmod,
						  &collation);
	return collation_sql(old_type, collation);
}

/* Columns of a version, in the order of their numbers in the row of nulls. */
static List *
version_columns(const ShapeTable *table, bool new_version)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if ((new_version ? column->name : column->old_name) != NULL)
			result = lappend(result, column);
	}
	return result;
}

/* SELECT (expression) FROM (a row of nulls) AS table */
static char *
select_from_nulls(const ShapeTable *table, bool new_version,
				  const char *expression)
{
	const char *alias = new_version && table->name ? table->name :
		table->old_name;
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT (%s\n) FROM (SELECT ", expression);
	foreach(lc, version_columns(table, new_version))
	{
		ShapeColumn *column = lfirst(lc);
		Oid			type = new_version ? column->type : column->old_type;
		int32		typmod = new_version ? column->typmod : column->old_typmod;

		appendStringInfo(&sql, "%sNULL::%s%s AS %s",
						 foreach_current_index(lc) > 0 ? ", " : "",
						 type_sql(type, typmod),
						 shape_collation(table, column, type),
						 quote_identifier(new_version ? column->name :
										  column->old_name));
	}
	appendStringInfo(&sql, ") AS %s", quote_identifier(alias));
	return sql.data;
}

/* One statement of one expression, or an error. */
static Query *
analyze_select(const char *path, const char *sql, const char *expression)
{
	int			guc_level = expression_path_enter(path);
	List	   *statements = raw_parser(sql, RAW_PARSE_DEFAULT);
	Query	   *query;

	if (list_length(statements) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"%s\" is not one expression", expression)));
	query = parse_analyze_fixedparams(linitial_node(RawStmt, statements), sql,
									  NULL, 0, NULL);
	AtEOXact_GUC(false, guc_level);
	if (query->commandType != CMD_SELECT || query->utilityStmt != NULL ||
		list_length(query->targetList) != 1 || query->setOperations != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"%s\" is not one expression", expression)));
	if (query->hasAggs || query->hasWindowFuncs || query->hasTargetSRFs)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("aggregates, window functions and functions that return sets cannot be used in \"%s\"",
						expression)));
	return query;
}

typedef struct ReadWalk
{
	int			depth;
	Bitmapset  *columns;		/* numbers in the row of nulls */
	bool		whole_row;
} ReadWalk;

static bool
find_reads(Node *node, ReadWalk *walk)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (var->varlevelsup == walk->depth && var->varno == 1)
		{
			if (var->varattno <= 0)
				walk->whole_row = true;
			else
				walk->columns = bms_add_member(walk->columns, var->varattno);
		}
		return false;
	}
	if (IsA(node, Query))
	{
		bool		result;

		walk->depth++;
		result = query_tree_walker((Query *) node, find_reads, walk, 0);
		walk->depth--;
		return result;
	}
	return expression_tree_walker(node, find_reads, walk);
}

/*
 * The columns that an expression of a version reads, as ColumnRead *.  Error if
 * it is not valid.  Its type is free: the trigger assigns it as plpgsql would.
 */
List *
expression_reads(const ShapeTable *table, bool new_version,
				 const char *expression)
{
	Query	   *query;
	TargetEntry *entry;
	ReadWalk	walk = {0};
	List	   *result = NIL;
	ListCell   *lc;

	query = analyze_select(table->path,
						   select_from_nulls(table, new_version, expression),
						   expression);
	entry = linitial_node(TargetEntry, query->targetList);
	(void) find_reads((Node *) entry->expr, &walk);
	foreach(lc, version_columns(table, new_version))
	{
		ShapeColumn *column = lfirst(lc);
		ColumnRead *read;

		if (!walk.whole_row &&
			!bms_is_member(foreach_current_index(lc) + 1, walk.columns))
			continue;
		if (column->is_generated && column->attnum > 0 &&
			get_attgenerated(table->relid, column->attnum) != '\0')
		{
			if (walk.whole_row)
				continue;
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("generated column \"%s\" cannot be used in \"%s\"",
							column->old_name, expression),
					 errdetail("It has no value yet when a row is written.")));
		}
		read = palloc_object(ColumnRead);
		read->name = new_version ? column->name : column->old_name;
		read->column = new_version ? column->column : column->old_name;
		read->source = column;
		result = lappend(result, read);
	}
	return result;
}

/*
 * Is the expression volatile?  It reads no columns.
 */
bool
expression_is_volatile(const char *path, const char *expression)
{
	Query	   *query = analyze_select(path,
									   psprintf("SELECT (%s\n)", expression),
									   expression);

	return contain_volatile_functions((Node *) query->targetList);
}

/* Name of the new version for each attribute of the table, as an alias. */
static Alias *
new_version_alias(const ShapeTable *table, Relation relation)
{
	TupleDesc	desc = RelationGetDescr(relation);
	List	   *names = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		char	   *name = psprintf("\001hidden.%d", i);
		ListCell   *lc;

		/* those have no aliases */
		if (attribute->attisdropped)
			continue;
		foreach(lc, table->columns)
		{
			ShapeColumn *column = lfirst(lc);

			if (column->name != NULL &&
				strcmp(column->column, NameStr(attribute->attname)) == 0)
				name = column->name;
		}
		names = lappend(names, makeString(name));
	}
	return makeAlias(table->name, names);
}

/*
 * A boolean expression of the new version in terms of the table's columns,
 * which must exist by now, as SQL.
 */
char *
expression_translate(const ShapeTable *table, const char *expression)
{
	Relation	relation = relation_open(table->relid, AccessShareLock);
	ParseState *pstate = make_parsestate(NULL);
	char	   *sql = psprintf("SELECT (%s\n)", expression);
	List	   *statements = raw_parser(sql, RAW_PARSE_DEFAULT);
	SelectStmt *select;
	ParseNamespaceItem *item;
	Node	   *node;
	List	   *context;
	char	   *result;
	int			guc_level;

	pstate->p_sourcetext = sql;
	select = list_length(statements) == 1 ?
		(SelectStmt *) linitial_node(RawStmt, statements)->stmt : NULL;
	if (select == NULL || !IsA(select, SelectStmt) ||
		list_length(select->targetList) != 1 || select->fromClause != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"%s\" is not one expression", expression)));
	item = addRangeTableEntryForRelation(pstate, relation, AccessShareLock,
										 new_version_alias(table, relation),
										 false, true);
	addNSItemToQuery(pstate, item, false, true, true);
	guc_level = expression_path_enter(table->path);
	node = transformExpr(pstate,
						 linitial_node(ResTarget, select->targetList)->val,
						 EXPR_KIND_CHECK_CONSTRAINT);
	node = coerce_to_boolean(pstate, node, "CHECK");
	assign_expr_collations(pstate, node);
	AtEOXact_GUC(false, guc_level);
	context = deparse_context_for(RelationGetRelationName(relation),
								  table->relid);
	result = deparse_expression(node, context, false, false);
	relation_close(relation, NoLock);
	return result;
}
