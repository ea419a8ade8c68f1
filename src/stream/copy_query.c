/*-------------------------------------------------------------------------
 *
 * copy_query.c
 *		The transform as a query over one chunk.
 *
 * The compiled transform's own query tree is taken, so what is copied is what
 * would have been streamed.  Added to it are the chunk's range, the commit
 * time of each row version in place of commit_time(), and for mappings in
 * which several source rows may feed one target row an order by commit time,
 * so that the newest comes last.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/commit_ts.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "stream/copy.h"
#include "stream/transform_class.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

typedef struct CommitContext
{
	Oid			commit_time;
	TimestampTz moment;
} CommitContext;

/*
 * coalesce(pg_xact_commit_timestamp(xmin), the chunk's time)
 */
static Node *
row_commit_time(TimestampTz moment)
{
	Const	   *fallback = makeConst(TIMESTAMPTZOID, -1, InvalidOid,
									 sizeof(TimestampTz),
									 TimestampTzGetDatum(moment), false,
									 FLOAT8PASSBYVAL);
	CoalesceExpr *coalesce;
	Var		   *xmin;
	FuncExpr   *known;

	if (!track_commit_timestamp)
		return (Node *) fallback;
	xmin = makeVar(1, MinTransactionIdAttributeNumber, XIDOID, -1, InvalidOid,
				   0);
	known = makeFuncExpr(F_PG_XACT_COMMIT_TIMESTAMP, TIMESTAMPTZOID,
						 list_make1(xmin), InvalidOid, InvalidOid,
						 COERCE_EXPLICIT_CALL);
	coalesce = makeNode(CoalesceExpr);
	coalesce->coalescetype = TIMESTAMPTZOID;
	coalesce->args = list_make2(known, fallback);
	coalesce->location = -1;
	return (Node *) coalesce;
}

static Node *
commit_time_mutator(Node *node, void *arg)
{
	CommitContext *context = arg;

	if (node == NULL)
		return NULL;
	if (IsA(node, FuncExpr) &&
		((FuncExpr *) node)->funcid == context->commit_time)
		return row_commit_time(context->moment);
	return expression_tree_mutator(node, commit_time_mutator, arg);
}

/*
 * SELECT FROM source WHERE range ORDER BY commit time, as text.
 */
static char *
frame_sql(const CopyJob *job)
{
	CopyTable  *table = job->table;
	KeySpace   *space = table->directory->space;
	Oid			source = table->transform->row->source;
	StringInfoData sql;
	struct
	{
		const char *operator;
		Datum	   *key;
	}			bounds[] = {
		{job->key_only ? "=" : "<=", job->upper},
		{">", job->lower},
	};

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT FROM %s WHERE true",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
												get_rel_name(source)));
	for (int b = 0; b < lengthof(bounds); b++)
	{
		if (bounds[b].key == NULL)
			continue;
		appendStringInfoString(&sql, " AND ROW(");
		for (int i = 0; i < space->nkeys; i++)
			appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", space->names[i]);
		appendStringInfo(&sql, ") %s ROW(", bounds[b].operator);
		for (int i = 0; i < space->nkeys; i++)
		{
			char	   *text = OutputFunctionCall(&space->output[i],
												  bounds[b].key[i]);

			appendStringInfo(&sql, "%s%s::%s", i > 0 ? ", " : "",
							 quote_literal_cstr(text), space->types[i]);
		}
		appendStringInfoChar(&sql, ')');
	}
	if (table->staged && track_commit_timestamp)
		appendStringInfoString(&sql, " ORDER BY pg_catalog.pg_xact_commit_timestamp(xmin) NULLS FIRST");
	return sql.data;
}

/*
 * Parse the frame; search_path is empty, so everything in it is pg_catalog's
 * or named with its schema.
 */
static Query *
parse_frame(const CopyJob *job)
{
	char	   *sql = frame_sql(job);
	List	   *statements = raw_parser(sql, RAW_PARSE_DEFAULT);

	return parse_analyze_fixedparams(linitial_node(RawStmt, statements), sql,
									 NULL, 0, NULL);
}

/*
 * The query that gives the chunk's rows, coerced to the target's types.  A
 * row whose commit time is not known any more gets moment.
 */
Query *
copy_build_query(const CopyJob *job, TimestampTz moment)
{
	Query	   *query = copyObject(job->table->transform->query);
	Query	   *frame = parse_frame(job);
	CommitContext context = {
		.commit_time = transform_commit_time_oid(),
		.moment = moment
	};
	ListCell   *lc;

	query->targetList = (List *)
		commit_time_mutator((Node *) query->targetList, &context);
	query->jointree->quals = (Node *)
		make_and_qual(commit_time_mutator(query->jointree->quals, &context),
					  frame->jointree->quals);
	foreach(lc, frame->targetList)
	{
		TargetEntry *entry = lfirst(lc);

		entry->resno = list_length(query->targetList) + 1;
		query->targetList = lappend(query->targetList, entry);
	}
	query->sortClause = frame->sortClause;
	rt_fetch(1, query->rtable)->inh = job->table->partitioned;
	return query;
}
