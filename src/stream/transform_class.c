/*-------------------------------------------------------------------------
 *
 * transform_class.c
 *		The class of SELECTs that may be a transform, and its gatekeeper.
 *
 * A transform must give the same row whether it runs over a change that is
 * decoded minutes after it happened, over a snapshot in the copy, or in the
 * verification.  So it may depend on one row of one table, on nothing that
 * another statement can change, and on no setting that is not pinned on both
 * ends: IMMUTABLE functions, the STABLE functions listed below (whose only
 * inputs beside their arguments are pinned settings), and the two
 * pseudo-functions commit_time() and commit_lsn().  "STABLE" alone says
 * nothing: now() and current_setting() are STABLE too.
 *
 * Everything else is refused when the mapping is defined, and the message
 * names the construct.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "catalog/namespace.h"
#include "catalog/pg_language.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parse_func.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "stream/transform.h"
#include "stream/transform_class.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

/*
 * STABLE functions of pg_catalog whose result follows from their arguments
 * and from settings that worker_pin_settings() and the peer's session pin.
 * Sorted, for bsearch.
 */
static const char *const stable_allowed[] = {
	"anytextcat", "array_in", "array_out", "array_to_json", "array_to_string",
	"cash_in", "cash_out", "concat", "concat_ws",
	"date", "date_out", "date_part", "date_trunc",
	"enum_in", "enum_out", "extract", "format",
	"interval_in", "interval_out", "json_build_array", "json_build_object",
	"jsonb_build_array", "jsonb_build_object",
	"make_timestamptz", "money", "multirange_in", "multirange_out", "numeric",
	"range_in", "range_out", "record_in", "record_out", "row_to_json",
	"text", "textanycat", "time", "time_out", "timestamp",
	"timestamp_eq_timestamptz", "timestamp_ge_timestamptz",
	"timestamp_gt_timestamptz", "timestamp_le_timestamptz",
	"timestamp_lt_timestamptz", "timestamp_ne_timestamptz", "timestamp_out",
	"timestamptz", "timestamptz_eq_timestamp", "timestamptz_ge_timestamp",
	"timestamptz_gt_timestamp", "timestamptz_le_timestamp",
	"timestamptz_lt_timestamp", "timestamptz_mi_interval",
	"timestamptz_ne_timestamp", "timestamptz_out", "timestamptz_pl_interval",
	"timetz", "timetz_out", "timezone",
	"to_char", "to_date", "to_json", "to_jsonb", "to_timestamp",
	"to_tsquery", "to_tsvector", "xml_in", "xml_out"
};

typedef struct ClassContext
{
	const char *source;			/* name of the table, for messages */
	bool		user_code;
} ClassContext;

static void
refuse(const ClassContext *context, const char *construct, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("transform of table \"%s\" must not contain %s",
					context->source, construct),
			 errhint("%s", hint)));
}

/*
 * OID of bluegreen.commit_time() or commit_lsn().
 */
static Oid
pseudo_function(const char *name)
{
	return LookupFuncName(list_make2(makeString("bluegreen"),
									 makeString(pstrdup(name))),
						  0, NULL, false);
}

Oid
transform_commit_time_oid(void)
{
	return pseudo_function("commit_time");
}

Oid
transform_commit_lsn_oid(void)
{
	return pseudo_function("commit_lsn");
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp((const char *) a, *(const char *const *) b);
}

static bool
stable_is_allowed(Oid funcid, Form_pg_proc proc)
{
	if (proc->pronamespace != PG_CATALOG_NAMESPACE)
		return false;
	return bsearch(NameStr(proc->proname), stable_allowed,
				   lengthof(stable_allowed), sizeof(char *),
				   compare_names) != NULL;
}

/*
 * Callback of check_functions_in_node(): false, or an error.
 */
static bool
check_function(Oid funcid, void *arg)
{
	ClassContext *context = arg;
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	Form_pg_proc proc;
	char	   *what;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", funcid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	/* one in SQL needs a snapshot like a user's if it is not inlined */
	if (funcid >= FirstNormalObjectId || proc->prolang == SQLlanguageId)
		context->user_code = true;

	if (proc->proretset)
		refuse(context, "a set-returning function",
			   "A transform gives at most one row for a row.");
	else if (proc->provolatile != PROVOLATILE_IMMUTABLE &&
			 funcid != transform_commit_time_oid() &&
			 funcid != transform_commit_lsn_oid() &&
			 !stable_is_allowed(funcid, proc))
	{
		what = psprintf("the %s function %s",
						proc->provolatile == PROVOLATILE_STABLE ?
						"STABLE" : "VOLATILE",
						format_procedure(funcid));
		refuse(context, what,
			   "Use IMMUTABLE functions, or bluegreen.commit_time() and bluegreen.commit_lsn().");
	}
	ReleaseSysCache(tuple);
	return false;
}

/* Node types that are refused wherever they stand. */
static const struct
{
	NodeTag		tag;
	const char *construct;
	const char *hint;
}			refused_nodes[] = {

	{T_SubLink, "a subquery",
	"Keep the value in the source table, or compute it on the target."},
	{T_Aggref, "an aggregate function",
	"A transform sees one row at a time."},
	{T_GroupingFunc, "GROUPING",
	"A transform sees one row at a time."},
	{T_WindowFunc, "a window function",
	"A transform sees one row at a time."},
	{T_Param, "a parameter",
	"Write the value into the transform."},
	{T_SQLValueFunction, "CURRENT_TIMESTAMP, CURRENT_USER or the like",
	"Use bluegreen.commit_time(), or a constant."},
	{T_NextValueExpr, "nextval",
	"Leave the column out; the target's default fills it."},
	{T_CurrentOfExpr, "WHERE CURRENT OF",
	"Use a condition on the row's columns."},
};

/*
 * The names behind regclass and its kin are those of the moment, so the text
 * of such a value is not a function of the row.  A function that takes "any"
 * value would look it up.
 */
static bool
is_object_name(Oid type)
{
	static const Oid types[] = {
		REGCLASSOID, REGCOLLATIONOID, REGCONFIGOID, REGDICTIONARYOID,
		REGNAMESPACEOID, REGOPEROID, REGOPERATOROID, REGPROCOID,
		REGPROCEDUREOID, REGROLEOID, REGTYPEOID
	};
	Oid			element = get_element_type(type);

	for (int i = 0; i < lengthof(types); i++)
		if (type == types[i] || element == types[i])
			return true;
	return false;
}

static void
check_arguments(const FuncExpr *call, const ClassContext *context)
{
	ListCell   *lc;

	if (func_volatile(call->funcid) == PROVOLATILE_IMMUTABLE)
		return;
	foreach(lc, call->args)
	{
		if (is_object_name(exprType(lfirst(lc))))
			refuse(context,
				   psprintf("a value of type %s in a STABLE function",
							format_type_be(exprType(lfirst(lc)))),
				   "Use the column as it is, or its OID.");
	}
}

static bool
class_walker(Node *node, void *arg)
{
	ClassContext *context = arg;

	if (node == NULL)
		return false;
	for (int i = 0; i < lengthof(refused_nodes); i++)
		if (nodeTag(node) == refused_nodes[i].tag)
			refuse(context, refused_nodes[i].construct, refused_nodes[i].hint);
	if (IsA(node, Var) && ((Var *) node)->varattno < 0)
		refuse(context, "a system column",
			   "Use bluegreen.commit_time() or bluegreen.commit_lsn() for the moment of the change.");
	if (IsA(node, CoerceToDomain))
		context->user_code = true;	/* its checks may call anything */
	(void) check_functions_in_node(node, check_function, context);
	if (IsA(node, FuncExpr))
		check_arguments((FuncExpr *) node, context);
	return expression_tree_walker(node, class_walker, arg);
}

/*
 * The clauses of a Query that a transform has no use for.
 */
static void
check_clauses(const Query *query, const ClassContext *context)
{
	const struct
	{
		bool		present;
		const char *construct;
	}			clauses[] = {
		{query->commandType != CMD_SELECT || query->utilityStmt != NULL,
		"anything but a SELECT"},
		{query->setOperations != NULL, "UNION, INTERSECT or EXCEPT"},
		{query->cteList != NIL, "WITH"},
		{query->groupClause != NIL || query->groupingSets != NIL, "GROUP BY"},
		{query->havingQual != NULL, "HAVING"},
		{query->hasAggs, "an aggregate function"},
		{query->hasWindowFuncs || query->windowClause != NIL,
		"a window function"},
		{query->hasTargetSRFs, "a set-returning function"},
		{query->hasSubLinks, "a subquery"},
		{query->distinctClause != NIL, "DISTINCT"},
		{query->sortClause != NIL, "ORDER BY"},
		{query->limitCount != NULL || query->limitOffset != NULL, "LIMIT"},
		{query->rowMarks != NIL, "FOR UPDATE or FOR SHARE"},
	};

	for (int i = 0; i < lengthof(clauses); i++)
		if (clauses[i].present)
			refuse(context, clauses[i].construct,
				   "A transform is SELECT ... FROM one table [WHERE ...].");
}

/*
 * The one table of the FROM clause; error if there is anything else.
 */
static int
check_from(const Query *query, Oid source, const ClassContext *context)
{
	List	   *from = query->jointree->fromlist;
	RangeTblEntry *rte;
	int			rtindex;

	if (list_length(from) != 1 || !IsA(linitial(from), RangeTblRef))
		refuse(context, from == NIL ? "a SELECT without FROM" : "a join",
			   "A transform reads one table; map the other one by itself.");
	rtindex = ((RangeTblRef *) linitial(from))->rtindex;
	rte = rt_fetch(rtindex, query->rtable);
	if (rte->rtekind != RTE_RELATION)
		refuse(context, "a subquery or function in FROM",
			   "A transform reads the source table itself.");
	if (rte->relid != source)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("transform of table \"%s\" reads \"%s\"",
						context->source, get_rel_name(rte->relid)),
				 errhint("The table after FROM must be the mapping's source.")));
	if (rte->tablesample != NULL)
		refuse(context, "TABLESAMPLE", "A transform sees every row.");
	return rtindex;
}

/*
 * Check an analyzed query against the class.  Returns the range table index
 * of its one table; tells whether user-defined code and the commit functions
 * are in it.  Raises an error that names the construct otherwise.
 */
int
transform_check_class(Query *query, Oid source, bool *user_code)
{
	ClassContext context = {.source = get_rel_name(source)};
	int			rtindex;

	check_clauses(query, &context);
	rtindex = check_from(query, source, &context);
	class_walker((Node *) query->targetList, &context);
	class_walker(query->jointree->quals, &context);
	if (user_code)
		*user_code = context.user_code;
	return rtindex;
}

/*
 * Parse and analyze the text of a transform over a source table under the
 * caller's search_path and privileges.  Errors for syntax, names and anything
 * outside the class.  Result in CurrentMemoryContext.
 */
Query *
transform_parse(const char *text, Oid source)
{
	List	   *statements = raw_parser(text, RAW_PARSE_DEFAULT);
	ClassContext context = {.source = get_rel_name(source)};
	RawStmt    *raw;
	Query	   *query;

	if (list_length(statements) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("transform of table \"%s\" must be one SELECT statement",
						context.source)));
	raw = linitial_node(RawStmt, statements);
	if (!IsA(raw->stmt, SelectStmt) ||
		((SelectStmt *) raw->stmt)->intoClause != NULL)
		refuse(&context, "anything but a SELECT",
			   "A transform is SELECT ... FROM one table [WHERE ...].");
	query = parse_analyze_fixedparams(raw, text, NULL, 0, NULL);
	(void) transform_check_class(query, source, NULL);
	return query;
}
