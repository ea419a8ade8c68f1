/*-------------------------------------------------------------------------
 *
 * lookup_describe.c
 *		On a target: what may be a lookup, and what one says.
 *
 * A lookup is a SELECT over the relation "incoming", which has the columns
 * that a mapping's transform gives, joined with tables of the target.  It must
 * give one row for each incoming row, whichever other rows come with it: how
 * many are sent together is nobody's business.  So incoming stands in the FROM
 * of the SELECT itself, once, where no join can make up or drop a side of it,
 * and nothing above it takes rows together (GROUP BY, DISTINCT, LIMIT, ...).
 * Subqueries may do all that.
 *
 *		WHERE		leaves incoming rows out, on purpose
 *		JOIN ... ON	must find: an incoming row without a row is an error, and so
 *					is one with two
 *
 * To tell the one from the other, WHERE becomes a column.  What is kept and run
 * later is our text of the query, with every name qualified:
 *
 *		SELECT <the user's columns>, incoming.bluegreen_ordinal,
 *			(<WHERE>) IS TRUE AS bluegreen_passes
 *		FROM <the user's>
 *
 * The target's row of an incoming row must be found again when that changes or
 * goes.  So it is asked which columns of incoming the key depends on, or
 * whether there is a row at all: those that the key's expressions, the join
 * conditions, WHERE and what is LATERAL read.
 *
 * Nothing is run here but the parser, as the caller.  What the statement may
 * do when it runs is for guard.c to say; its rules are applied here as well,
 * for a mistake is better told now.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/guard.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/analyze.h"
#include "parser/parse_coerce.h"
#include "parser/parse_node.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(bluegreen_describe_lookup);
PG_FUNCTION_INFO_V1(bluegreen_check_lookup);

#define INCOMING	"incoming"
#define ORDINAL		"bluegreen_ordinal"
#define PASSES		"bluegreen_passes"

/* The arguments of describe_lookup(), by position. */
enum
{
	ARG_SCHEMA,
	ARG_TABLE,
	ARG_LOOKUP,
	ARG_COLUMNS,
	ARG_TYPES,
	ARG_KEY,
	ARG_CHECK_RIGHTS
};

/* One lookup that is looked at. */
typedef struct Description
{
	char	   *target;			/* its name, for messages */
	Oid			relid;			/* of the target */
	List	   *columns;		/* of incoming: names ... */
	List	   *types;			/* ... and types */
	List	   *key;			/* of the target: names */
	Query	   *query;
	int			incoming;		/* its place in the query's range table */
	List	   *relations;		/* OIDs of the tables that are read */
} Description;

static void
refuse(const Description *lookup, const char *construct, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("lookup of target table \"%s\" must not contain %s",
					lookup->target, construct),
			 errhint("%s", hint)));
}

/* ---- parsing ---- */

/*
 * SELECT NULL::type AS name, ...: stands for what a batch brings.
 */
static CommonTableExpr *
incoming_cte(const Description *lookup)
{
	CommonTableExpr *cte = makeNode(CommonTableExpr);
	StringInfoData sql;
	ListCell   *name;
	ListCell   *type;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	forboth(name, lookup->columns, type, lookup->types)
		appendStringInfo(&sql, "NULL::%s AS %s, ", (char *) lfirst(type),
						 quote_identifier(lfirst(name)));
	appendStringInfoString(&sql, "NULL::pg_catalog.int8 AS " ORDINAL);
	cte->ctename = pstrdup(INCOMING);
	cte->ctequery = linitial_node(RawStmt,
								  raw_parser(sql.data, RAW_PARSE_DEFAULT))->stmt;
	cte->location = -1;
	return cte;
}

/*
 * Parse and analyze the text, with incoming as its first WITH query.
 */
static Query *
parse(const Description *lookup, const char *text)
{
	List	   *statements = raw_parser(text, RAW_PARSE_DEFAULT);
	ParseState *pstate = make_parsestate(NULL);
	SelectStmt *select;
	Query	   *query;

	if (list_length(statements) != 1 ||
		!IsA(linitial_node(RawStmt, statements)->stmt, SelectStmt) ||
		((SelectStmt *) linitial_node(RawStmt, statements)->stmt)->intoClause)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("lookup of target table \"%s\" must be one SELECT statement",
						lookup->target)));
	select = (SelectStmt *) linitial_node(RawStmt, statements)->stmt;
	if (select->withClause == NULL)
	{
		select->withClause = makeNode(WithClause);
		select->withClause->location = -1;
	}
	select->withClause->ctes = lcons(incoming_cte(lookup),
									 select->withClause->ctes);
	pstate->p_sourcetext = text;
	query = transformTopLevelStmt(pstate, linitial_node(RawStmt, statements));
	free_parsestate(pstate);
	return query;
}

/*
 * "incoming.*" has the number that we gave the row as well: that is no column
 * of the target.
 */
static void
drop_ordinal(Query *query)
{
	List	   *kept = NIL;
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst(lc);

		if (!entry->resjunk && strcmp(entry->resname, ORDINAL) == 0)
			continue;
		kept = lappend(kept, entry);
		entry->resno = list_length(kept);
	}
	query->targetList = kept;
}

/* ---- the class ---- */

static bool
is_users_stable_function(Oid funcid, void *context)
{
	return funcid >= FirstNormalObjectId &&
		func_volatile(funcid) == PROVOLATILE_STABLE;
}

/*
 * Does the query call what may read tables that are not in it?
 */
static bool
may_read_unseen(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (check_functions_in_node(node, is_users_stable_function, NULL))
		return true;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, may_read_unseen, NULL, 0);
	return expression_tree_walker(node, may_read_unseen, NULL);
}

/*
 * The clauses that take rows together, or do more than read.
 */
static void
check_clauses(const Description *lookup)
{
	const Query *query = lookup->query;
	const struct
	{
		bool		present;
		const char *construct;
	}			clauses[] = {
		{query->setOperations != NULL, "UNION, INTERSECT or EXCEPT"},
		{query->groupClause != NIL || query->groupingSets != NIL, "GROUP BY"},
		{query->havingQual != NULL, "HAVING"},
		{query->hasAggs, "an aggregate function"},
		{query->hasWindowFuncs || query->windowClause != NIL,
		"a window function"},
		{query->hasTargetSRFs, "a set-returning function"},
		{query->distinctClause != NIL, "DISTINCT"},
		{query->sortClause != NIL, "ORDER BY"},
		{query->limitCount != NULL || query->limitOffset != NULL, "LIMIT"},
		{query->hasModifyingCTE, "INSERT, UPDATE or DELETE"},
	};

	for (int i = 0; i < lengthof(clauses); i++)
		if (clauses[i].present)
			refuse(lookup, clauses[i].construct,
				   "A lookup gives one row for each incoming row, whichever others come with it; a subquery in it may do more.");
	if (contain_volatile_functions((Node *) query))
		refuse(lookup, "a VOLATILE function",
			   "A batch may be applied again, and must give the same rows then.");
	if (may_read_unseen((Node *) query, NULL))
		refuse(lookup, "a user-defined STABLE function",
			   "What it reads would not be known, so not copied before. Declare it IMMUTABLE if it reads nothing, else join the tables here.");
}

/*
 * Is incoming in this part of the FROM clause, where each of its rows comes
 * out?  Error for joins that make rows up.
 */
static bool
finds_incoming(const Description *lookup, Node *node)
{
	JoinExpr   *join;

	if (IsA(node, RangeTblRef))
		return ((RangeTblRef *) node)->rtindex == lookup->incoming;
	join = castNode(JoinExpr, node);
	switch (join->jointype)
	{
		case JOIN_INNER:
			return finds_incoming(lookup, join->larg) ||
				finds_incoming(lookup, join->rarg);
		case JOIN_LEFT:
			return finds_incoming(lookup, join->larg);
		case JOIN_RIGHT:
			return finds_incoming(lookup, join->rarg);
		default:
			return false;
	}
}

/*
 * The one place of incoming in the query.
 */
static void
find_incoming(Description *lookup, const CommonTableExpr *cte)
{
	const Query *query = lookup->query;
	int			rtindex = 0;
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		rtindex++;
		if (rte->rtekind == RTE_CTE && rte->ctelevelsup == 0 &&
			strcmp(rte->ctename, INCOMING) == 0)
			lookup->incoming = rtindex;
	}
	if (lookup->incoming == 0 || cte->cterefcount != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("lookup of target table \"%s\" must read \"%s\" once, in the FROM clause of the SELECT itself",
						lookup->target, INCOMING),
				 errhint("The form of a lookup is SELECT ... FROM incoming JOIN ... ON ...")));
	if (list_length(query->jointree->fromlist) != 1 ||
		!finds_incoming(lookup, linitial(query->jointree->fromlist)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("lookup of target table \"%s\" must join \"%s\" with JOIN ... ON or LEFT JOIN ... ON",
						lookup->target, INCOMING),
				 errdetail("A row that a JOIN does not find is an error, one that WHERE leaves out is not; an outer join must keep the incoming rows.")));
}

/* ---- what it reads ---- */

static bool
collect_relations(Node *node, Description *lookup)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (rte->rtekind == RTE_RELATION)
			lookup->relations = list_append_unique_oid(lookup->relations,
													   rte->relid);
		if (rte->tablesample != NULL)
			refuse(lookup, "TABLESAMPLE", "A lookup sees every row.");
		return false;
	}
	if (IsA(node, Query))
	{
		if (((Query *) node)->rowMarks != NIL)
			refuse(lookup, "FOR UPDATE or FOR SHARE",
				   "A lookup only reads.");
		return query_tree_walker((Query *) node, collect_relations, lookup,
								 QTW_EXAMINE_RTES_BEFORE);
	}
	return expression_tree_walker(node, collect_relations, lookup);
}

static char *
relation_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

/*
 * A table that a lookup reads: one that mappings may feed, so that commit
 * order says what is in it.
 */
static void
check_relation(const Description *lookup, Oid relid)
{
	char		kind = get_rel_relkind(relid);

	if ((kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE) ||
		relid < FirstNormalObjectId ||
		get_rel_persistence(relid) == RELPERSISTENCE_TEMP ||
		get_rel_namespace(relid) == get_namespace_oid(BG_SCHEMA, true))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("lookup of target table \"%s\" reads \"%s\", which is not a user's table",
						lookup->target, relation_name(relid)),
				 errhint("Read the tables themselves.")));
	if (relation_owner(relid) != relation_owner(lookup->relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("lookup of target table \"%s\" reads table \"%s\", which belongs to another role",
						lookup->target, relation_name(relid)),
				 errdetail("A lookup runs as the target's owner.")));
}

/*
 * What the session of a stream will refuse.
 */
static void
check_guard(const Description *lookup)
{
	List	   *foreign = NIL;
	ListCell   *lc;

	foreach(lc, lookup->relations)
	{
		if (guard_is_foreign(lfirst_oid(lc)))
			foreign = lappend_oid(foreign, lfirst_oid(lc));
	}
	if (guard_is_foreign(lookup->relid))
		foreign = list_append_unique_oid(foreign, lookup->relid);
	if (foreign != NIL)
		guard_check_shape(lookup->query, foreign,
						  relation_owner(lookup->relid));
}

static void
check_rights(const Description *lookup)
{
	ListCell   *lc;

	foreach(lc, lookup->relations)
	{
		Oid			relid = lfirst_oid(lc);

		if (pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK &&
			pg_attribute_aclcheck_all(relid, GetUserId(), ACL_SELECT,
									  ACLMASK_ANY) != ACLCHECK_OK)
			guard_denied(relid);
	}
}

/*
 * Each column must be one of the target's, of a type that can be assigned to
 * it.  Whether the target has it, and must have it, is for map_table() to say.
 */
static void
check_column(const Description *lookup, const TargetEntry *entry)
{
	AttrNumber	attno = get_attnum(lookup->relid, entry->resname);
	Oid			given = exprType((Node *) entry->expr);
	Oid			wanted;

	if (attno <= 0)
		return;
	wanted = get_atttype(lookup->relid, attno);
	if (!can_coerce_type(1, &given, &wanted, COERCION_ASSIGNMENT))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of target table \"%s\" is of type %s but the lookup gives %s",
						entry->resname, lookup->target,
						format_type_be(wanted), format_type_be(given)),
				 errhint("Cast the expression in the lookup.")));
}

/* ---- what the key depends on ---- */

typedef struct FindsContext
{
	const Description *lookup;
	int			level;			/* of subqueries below the lookup */
	Bitmapset  *attnos;			/* of incoming */
} FindsContext;

static bool
finds_walker(Node *node, FindsContext *context)
{
	Query	   *query = context->lookup->query;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;
		RangeTblEntry *rte;

		if (var->varlevelsup != context->level)
			return false;
		rte = rt_fetch(var->varno, query->rtable);
		if (rte->rtekind == RTE_JOIN && var->varattno > 0)
		{
			int			level = context->level;
			bool		result;

			/* what it stands for is written at the level of the lookup */
			context->level = 0;
			result = finds_walker(list_nth(rte->joinaliasvars,
										   var->varattno - 1), context);
			context->level = level;
			return result;
		}
		if (var->varno == context->lookup->incoming && var->varattno > 0)
			context->attnos = bms_add_member(context->attnos, var->varattno);
		else if (var->varno == context->lookup->incoming ||
				 rte->rtekind == RTE_JOIN)
			context->attnos =
				bms_add_range(context->attnos, 1,
							  list_length(context->lookup->columns));
		return false;
	}
	if (IsA(node, Query))
	{
		bool		result;

		context->level++;
		result = query_tree_walker((Query *) node, finds_walker, context, 0);
		context->level--;
		return result;
	}
	return expression_tree_walker(node, finds_walker, context);
}

/*
 * Columns of incoming by number.
 */
static Bitmapset *
find_columns(const Description *lookup)
{
	FindsContext context = {.lookup = lookup};
	ListCell   *lc;

	foreach(lc, lookup->query->targetList)
	{
		TargetEntry *entry = lfirst(lc);

		if (name_in_list(lookup->key, entry->resname))
			(void) finds_walker((Node *) entry->expr, &context);
	}
	(void) finds_walker((Node *) lookup->query->jointree, &context);
	foreach(lc, lookup->query->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		(void) finds_walker((Node *) rte->subquery, &context);
		(void) finds_walker((Node *) rte->functions, &context);
		(void) finds_walker((Node *) rte->values_lists, &context);
		(void) finds_walker((Node *) rte->tablefunc, &context);
	}
	return context.attnos;
}

/* ---- the answer ---- */

/*
 * Our text of the lookup.
 */
static char *
rewrite(const Description *lookup, CommonTableExpr *cte)
{
	Query	   *query = lookup->query;
	int			n = list_length(query->targetList);
	Node	   *passes = makeBoolConst(true, false);
	int			guc_level;
	char	   *result;

	if (query->jointree->quals != NULL)
	{
		BooleanTest *test = makeNode(BooleanTest);

		test->arg = (Expr *) query->jointree->quals;
		test->booltesttype = IS_TRUE;
		test->location = -1;
		passes = (Node *) test;
		query->jointree->quals = NULL;
	}
	query->targetList =
		lappend(query->targetList,
				makeTargetEntry((Expr *) makeVar(lookup->incoming,
												 list_length(lookup->columns) + 1,
												 INT8OID, -1, InvalidOid, 0),
								n + 1, pstrdup(ORDINAL), false));
	query->targetList =
		lappend(query->targetList,
				makeTargetEntry((Expr *) passes, n + 2, pstrdup(PASSES),
								false));
	query->cteList = list_delete_ptr(query->cteList, cte);
	guc_level = search_path_pin();
	result = pg_get_querydef(query, false);
	search_path_restore(guc_level);
	return result;
}

static Datum
names_array(List *names)
{
	Datum	   *values = palloc_array(Datum, list_length(names) + 1);
	int			n = 0;
	ListCell   *lc;

	foreach(lc, names)
	{
		values[n++] = DirectFunctionCall1(namein,
										  CStringGetDatum(lfirst(lc)));
	}
	return PointerGetDatum(construct_array(values, n, NAMEOID, NAMEDATALEN,
										   false, TYPALIGN_CHAR));
}

static List *
given_columns(const Description *lookup)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, lookup->query->targetList)
	{
		TargetEntry *entry = lfirst(lc);

		check_column(lookup, entry);
		names = lappend(names, entry->resname);
	}
	return names;
}

static List *
found_by(const Description *lookup)
{
	Bitmapset  *attnos = find_columns(lookup);
	List	   *names = NIL;
	int			i = -1;

	while ((i = bms_next_member(attnos, i)) >= 0)
		if (i <= list_length(lookup->columns))
			names = lappend(names, list_nth(lookup->columns, i - 1));
	return names;
}

/*
 * The names of the tables, and of the tables that are parts of them or that
 * they are parts of: whoever writes these writes what is read.
 */
static Datum
reads_array(const Description *lookup)
{
	List	   *all = NIL;
	Datum	   *values;
	int			n = 0;
	ListCell   *lc;

	foreach(lc, lookup->relations)
	{
		Oid			relid = lfirst_oid(lc);

		all = list_concat_unique_oid(all, find_all_inheritors(relid,
															  AccessShareLock,
															  NULL));
		if (get_rel_relispartition(relid))
			all = list_concat_unique_oid(all, get_partition_ancestors(relid));
	}
	values = palloc_array(Datum, list_length(all) + 1);
	foreach(lc, all)
	{
		Oid			relid = lfirst_oid(lc);

		values[n++] =
			CStringGetTextDatum(psprintf("%s.%s",
										 get_namespace_name(get_rel_namespace(relid)),
										 get_rel_name(relid)));
	}
	return PointerGetDatum(construct_array(values, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * The target, and names as lists.
 */
static void
read_arguments(FunctionCallInfo fcinfo, Description *lookup)
{
	char	   *schema = NameStr(*PG_GETARG_NAME(ARG_SCHEMA));
	char	   *table = NameStr(*PG_GETARG_NAME(ARG_TABLE));

	lookup->target = quote_qualified_identifier(schema, table);
	lookup->relid = get_relname_relid(table, LookupExplicitNamespace(schema,
																	 false));
	if (!OidIsValid(lookup->relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("target table \"%s\" does not exist",
						lookup->target)));
	lookup->columns = mapping_names_argument(PG_GETARG_ARRAYTYPE_P(ARG_COLUMNS),
											 NAMEOID);
	lookup->types = mapping_names_argument(PG_GETARG_ARRAYTYPE_P(ARG_TYPES),
										   TEXTOID);
	lookup->key = mapping_names_argument(PG_GETARG_ARRAYTYPE_P(ARG_KEY),
										 NAMEOID);
	if (list_length(lookup->columns) != list_length(lookup->types))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there must be as many types as columns")));
}

/*
 * Parse with the target's schema as search_path, and check.
 */
static CommonTableExpr *
analyze(FunctionCallInfo fcinfo, Description *lookup)
{
	int			guc_level = NewGUCNestLevel();
	CommonTableExpr *cte = NULL;
	ListCell   *lc;

	(void) set_config_option("search_path",
							 psprintf("%s, pg_temp",
									  quote_identifier(NameStr(*PG_GETARG_NAME(ARG_SCHEMA)))),
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	lookup->query = parse(lookup,
						  text_to_cstring(PG_GETARG_TEXT_PP(ARG_LOOKUP)));
	AtEOXact_GUC(true, guc_level);
	foreach(lc, lookup->query->cteList)
	{
		if (strcmp(lfirst_node(CommonTableExpr, lc)->ctename, INCOMING) == 0)
			cte = lfirst(lc);
	}
	check_clauses(lookup);
	drop_ordinal(lookup->query);
	find_incoming(lookup, cte);
	(void) collect_relations((Node *) lookup->query, lookup);
	foreach(lc, lookup->relations)
	{
		check_relation(lookup, lfirst_oid(lc));
	}
	check_guard(lookup);
	if (PG_GETARG_BOOL(ARG_CHECK_RIGHTS))
		check_rights(lookup);
	return cte;
}

/*
 * bluegreen.describe_lookup(target_schema name, target_table name, lookup
 * text, columns name[], types text[], key name[], check_rights boolean)
 * returns record: check the text of a lookup over an "incoming" of these
 * columns.  Returns our text of it (query), the columns that it gives (given),
 * those of incoming by which the target's row is found (finds), and the tables
 * whose rows it reads (reads).  Takes AccessShareLock on these.
 */
Datum
bluegreen_describe_lookup(PG_FUNCTION_ARGS)
{
	Description lookup = {0};
	CommonTableExpr *cte;
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false, false, false, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	read_arguments(fcinfo, &lookup);
	cte = analyze(fcinfo, &lookup);
	values[1] = names_array(given_columns(&lookup));
	values[2] = names_array(found_by(&lookup));
	values[3] = reads_array(&lookup);
	values[0] = CStringGetTextDatum(rewrite(&lookup, cte));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * bluegreen.check_lookup(target text, incoming bigint, found bigint, written
 * bigint, distinct_written bigint) returns boolean: true; an error unless all
 * incoming rows were found, and each is written at most once.  Tells the
 * session how many rows its statement writes (tally.c).
 *
 * IMMUTABLE, so that the guard lets it be called as the owner; its arguments
 * are never constants.
 */
Datum
bluegreen_check_lookup(PG_FUNCTION_ARGS)
{
	char	   *target = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int64		incoming = PG_GETARG_INT64(1);
	int64		found = PG_GETARG_INT64(2);
	int64		written = PG_GETARG_INT64(3);

	if (found != incoming)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("lookup of target table \"%s\" found nothing for " INT64_FORMAT " of " INT64_FORMAT " incoming rows",
						target, incoming - found, incoming),
				 errhint("See to it that its JOINs find a row for each. To leave rows out on purpose, use LEFT JOIN and WHERE.")));
	if (written != PG_GETARG_INT64(4))
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("lookup of target table \"%s\" gave " INT64_FORMAT " rows for " INT64_FORMAT " incoming rows",
						target, written, PG_GETARG_INT64(4)),
				 errhint("It must give at most one row for each; join by unique columns.")));
	tally_expect(written);
	PG_RETURN_BOOL(true);
}
