/*-------------------------------------------------------------------------
 *
 * guard.c
 *		On a target: in a session that applies, a table's code has its owner's
 *		rights and no others.
 *
 * Who writes to a table runs its owner's code: triggers and rules that are
 * enabled in sessions of role replica, defaults, generated columns, index
 * expressions, CHECK constraints, domains, operators and casts.  In an
 * ordinary session that code has the rights of whoever writes.  Streams write
 * to everybody's tables, so in a session that has called begin_apply() every
 * statement that touches a table of somebody else is planned and executed as
 * that table's owner, in a security-restricted operation if the owner could
 * not become the session's user anyway, as core's apply workers do from
 * version 16 on.  Deferred triggers cannot wait for COMMIT then; they fire at
 * the end of the statement.
 *
 * The session's user needs privileges on the table, checked at each execution,
 * but none of the owner's: he may be no member of him.  Then the owner must be
 * safe from the user, too, who may send what he likes: guard_check.c lets
 * nothing pass that could run code of the user's as the owner.
 *
 * Where what happens:
 *
 *		parse analysis	look at the statement's relations, check, and mark the
 *						query; rewriting takes place for the owner
 *						(checkAsUser), so his tables' row-level security does
 *						not filter
 *		planning		a marked query is planned as the owner (constants are
 *						folded there), and its plan is marked
 *		execution		check privileges; a marked plan runs as the owner
 *		COPY, TRUNCATE	have neither query nor plan: all in one
 *
 * The marks are what SQL cannot make: an invalid OID among the query's
 * constraints, an entry for the owner's role among the plan's invalidation
 * items.  What has no mark runs as the session's user, as ever.  What a
 * statement does in the owner's name (triggers, functions) is not looked at
 * again: it is his already.
 *
 * The hooks are installed by begin_apply(), in that session only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "core/guard.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/planner.h"
#include "parser/analyze.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(bluegreen_begin_apply);
PG_FUNCTION_INFO_V1(bluegreen_note_row);
PG_FUNCTION_INFO_V1(bluegreen_noted_row);

static bool installed = false;	/* does this session apply? */
static int	inside = 0;			/* within guard_enter() */
static bool all_immediate = false;	/* in this transaction */
static char *noted_row = NULL;	/* in TopTransactionContext */

static post_parse_analyze_hook_type next_analyze = NULL;
static planner_hook_type next_planner = NULL;
static ExecutorStart_hook_type next_start = NULL;
static ExecutorRun_hook_type next_run = NULL;
static ExecutorFinish_hook_type next_finish = NULL;
static ProcessUtility_hook_type next_utility = NULL;

/* ---- whose rights ---- */

/*
 * Fire deferred triggers with their statement from now on: nobody would be
 * there to run them as the owner at COMMIT, and core refuses to defer them.
 */
static void
defer_nothing(void)
{
	ConstraintsSetStmt *all = makeNode(ConstraintsSetStmt);

	if (all_immediate)
		return;
	AfterTriggerSetState(all);
	all_immediate = true;
}

/*
 * Run as owner until guard_leave(), or after an error until guard_failed(): the
 * abort of the (sub)transaction then restores the user.
 */
void
guard_enter(Oid owner, GuardUser *saved)
{
	GetUserIdAndSecContext(&saved->userid, &saved->sec_context);
	saved->guc_level = 0;
	if (role_can_set(owner, saved->userid))
		SetUserIdAndSecContext(owner, saved->sec_context |
							   SECURITY_LOCAL_USERID_CHANGE);
	else
	{
		defer_nothing();
		saved->guc_level = NewGUCNestLevel();
		SetUserIdAndSecContext(owner, saved->sec_context |
							   SECURITY_RESTRICTED_OPERATION);
	}
	inside++;
}

void
guard_leave(const GuardUser *saved)
{
	inside--;
	if (saved->guc_level > 0)
		AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->userid, saved->sec_context);
}

void
guard_failed(void)
{
	inside--;
}

static void
guard_at_transaction_end(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	Assert(inside == 0);
	all_immediate = false;
	noted_row = NULL;
}

/* ---- queries ---- */

/* What a query touches. */
typedef struct Relations
{
	List	   *foreign;		/* OIDs of somebody else's tables */
	Oid			owner;			/* of these, when they are checked */
} Relations;

static bool
collect_relations(Node *node, Relations *relations)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (rte->rtekind == RTE_RELATION && guard_is_foreign(rte->relid))
			relations->foreign = list_append_unique_oid(relations->foreign,
														rte->relid);
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, collect_relations, relations,
								 QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, collect_relations, relations);
}

/*
 * Permissions are those of the table's owner for his tables, which the session
 * has to earn, see check_plan(), and the session's for its own.
 */
static bool
set_check_as_user(Node *node, Relations *relations)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;
		ListCell   *lc;

		foreach(lc, query->rtable)
		{
			RangeTblEntry *rte = lfirst(lc);

			if (rte->rtekind == RTE_RELATION)
				rte_set_check_as_user(query_perminfos(query), rte,
									  list_member_oid(relations->foreign,
													  rte->relid) ?
									  relations->owner : GetUserId());
		}
		return query_tree_walker(query, set_check_as_user, relations, 0);
	}
	return expression_tree_walker(node, set_check_as_user, relations);
}

static void
guard_analyze(ParseState *pstate, Query *query, JumbleState *jumble)
{
	Relations	relations = {0};
	ListCell   *lc;

	if (next_analyze)
		next_analyze(pstate, query, jumble);
	if (inside > 0 || query->commandType == CMD_UTILITY)
		return;
	(void) collect_relations((Node *) query, &relations);
	foreach(lc, relations.foreign)
	{
		Oid			owner = guard_check_relation(lfirst_oid(lc));

		if (OidIsValid(relations.owner) && owner != relations.owner)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("a statement of a stream cannot touch tables of several owners")));
		relations.owner = owner;
	}
	if (relations.foreign == NIL)
		return;
	guard_check_shape(query, relations.foreign, relations.owner);
	(void) set_check_as_user((Node *) query, &relations);
	query->constraintDeps = lappend_oid(query->constraintDeps, InvalidOid);
}

/* ---- plans ---- */

static bool
is_marked(const PlannedStmt *plan)
{
	ListCell   *lc;

	foreach(lc, plan->invalItems)
	{
		if (lfirst_node(PlanInvalItem, lc)->cacheId == AUTHOID)
			return true;
	}
	return false;
}

/*
 * The owner as whom a plan runs, or InvalidOid.
 */
static Oid
plan_owner(const PlannedStmt *plan)
{
	ListCell   *lc;

	if (inside > 0 || !is_marked(plan))
		return InvalidOid;
	foreach(lc, plan->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (rte->rtekind == RTE_RELATION &&
			rte_required_perms(plan_perminfos(plan), rte) != 0 &&
			guard_is_foreign(rte->relid))
			return rte_check_as_user(plan_perminfos(plan), rte);
	}
	return InvalidOid;
}

/*
 * Has the user all privileges that a plan needs, by column where need be?
 */
static bool
is_permitted(const PlannedStmt *plan)
{
	List	   *entries = copyObject(plan_permission_entries(plan));
	ListCell   *lc;

	foreach(lc, entries)
	{
		permission_entry_set_user(lfirst(lc), GetUserId());
	}
	return plan_check_permissions(plan, entries);
}

/*
 * The executor will ask for the owner's privileges; these are the user's.  The
 * owner must still be the one for whom the plan was made.
 */
static void
check_plan(const PlannedStmt *plan, Oid owner)
{
	ListCell   *lc;

	foreach(lc, plan->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);
		AclMode		needed = rte_required_perms(plan_perminfos(plan), rte);

		if (rte->rtekind != RTE_RELATION || needed == 0 ||
			!guard_is_foreign(rte->relid))
			continue;
		if (!guard_is_granted(rte->relid, needed) && !is_permitted(plan))
			guard_denied(rte->relid);
		if (guard_check_relation(rte->relid) != owner)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("owner of table \"%s\" has changed",
							get_rel_name(rte->relid))));
	}
}

static PlannedStmt *
plan_next(Query *query, const char *query_string, int options,
		  ParamListInfo params)
{
	if (next_planner)
		return next_planner(query, query_string, options, params);
	return standard_planner(query, query_string, options, params);
}

/*
 * Find for whom a marked query is planned, wherever in it his table is.
 */
static bool
find_owner(Node *node, Oid *owner)
{
	ListCell   *lc;

	if (node == NULL)
		return false;
	if (!IsA(node, Query))
		return expression_tree_walker(node, find_owner, owner);
	foreach(lc, ((Query *) node)->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (rte->rtekind == RTE_RELATION && guard_is_foreign(rte->relid))
		{
			*owner = rte_check_as_user(query_perminfos((Query *) node), rte);
			return true;
		}
	}
	return query_tree_walker((Query *) node, find_owner, owner, 0);
}

/*
 * The owner as whom a query is planned, or InvalidOid.
 */
static Oid
query_owner(Query *query)
{
	Oid			owner = InvalidOid;

	if (!list_member_oid(query->constraintDeps, InvalidOid))
		return InvalidOid;
	if (!find_owner((Node *) query, &owner) || !OidIsValid(owner))
		elog(ERROR, "could not find the owner of a stream's target");
	return owner;
}

static PlannedStmt *
guard_planner(Query *query, const char *query_string, int options,
			  ParamListInfo params)
{
	Oid			owner = inside > 0 ? InvalidOid : query_owner(query);
	PlannedStmt *volatile plan = NULL;
	PlanInvalItem *mark;

	if (!OidIsValid(owner))
		return plan_next(query, query_string, options, params);
	AS_OWNER(owner, plan = plan_next(query, query_string, options, params));
	mark = makeNode(PlanInvalItem);
	mark->cacheId = AUTHOID;
	mark->hashValue = GetSysCacheHashValue1(AUTHOID, ObjectIdGetDatum(owner));
	plan->invalItems = lappend(plan->invalItems, mark);
	return plan;
}

/* ---- execution ---- */

static void
start_next(QueryDesc *desc, int eflags)
{
	if (next_start)
		next_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
}

static void
guard_start(QueryDesc *desc, int eflags)
{
	Oid			owner = plan_owner(desc->plannedstmt);

	if (OidIsValid(owner))
	{
		check_plan(desc->plannedstmt, owner);
		AS_OWNER(owner, start_next(desc, eflags));
	}
	else
		start_next(desc, eflags);
}

static void
run_next EXECUTOR_RUN_PARAMS
{
	if (next_run)
		next_run EXECUTOR_RUN_ARGS;
	else
		standard_ExecutorRun EXECUTOR_RUN_ARGS;
}

static void
guard_run EXECUTOR_RUN_PARAMS
{
	Oid			owner = plan_owner(desc->plannedstmt);

	if (OidIsValid(owner))
		AS_OWNER(owner, run_next EXECUTOR_RUN_ARGS);
	else
		run_next EXECUTOR_RUN_ARGS;
}

static void
finish_next(QueryDesc *desc)
{
	if (next_finish)
		next_finish(desc);
	else
		standard_ExecutorFinish(desc);
}

static void
guard_finish(QueryDesc *desc)
{
	Oid			owner = plan_owner(desc->plannedstmt);

	if (OidIsValid(owner))
		AS_OWNER(owner, finish_next(desc));
	else
		finish_next(desc);
}

/* ---- COPY and TRUNCATE ---- */

/*
 * Is this a session that applies?
 */
bool
guard_session_applies(void)
{
	return installed;
}

/*
 * Error unless this is a session that applies.
 */
void
guard_require(void)
{
	if (!installed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("session does not apply changes"),
				 errhint("Call bluegreen.begin_apply() first.")));
}

/*
 * The names in an array, as String nodes.
 */
List *
guard_column_names(ArrayType *array)
{
	Datum	   *names;
	int			n;
	List	   *result = NIL;

	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &names, NULL, &n);
	for (int i = 0; i < n; i++)
		result = lappend(result,
						 makeString(pstrdup(NameStr(*DatumGetName(names[i])))));
	return result;
}

/*
 * Error unless the user has a privilege on a relation, or on all columns named.
 */
static void
check_privilege(Oid relation, List *columns, AclMode needed)
{
	ListCell   *lc;

	if (guard_is_granted(relation, needed))
		return;
	if (columns == NIL)
		guard_denied(relation);
	foreach(lc, columns)
	{
		AttrNumber	attno = get_attnum(relation, strVal(lfirst(lc)));

		if (attno == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							strVal(lfirst(lc)), get_rel_name(relation))));
		if (pg_attribute_aclcheck(relation, attno, GetUserId(),
								  needed) != ACLCHECK_OK)
			guard_denied(relation);
	}
}

void		(*guard_write_hook) (Oid relation) = NULL;

static Oid
other_owner(Oid relation)
{
	return guard_is_foreign(relation) ? guard_check_relation(relation) :
		InvalidOid;
}

/*
 * The owner for whom rows are copied into a table, or InvalidOid if it is
 * nobody else's.  columns: those that are named, NIL is all.  Errors: the user
 * lacks a privilege; a table that cannot be written to in its owner's name.
 */
Oid
guard_copy_owner(Oid relation, List *columns)
{
	check_privilege(relation, columns, ACL_INSERT);
	return other_owner(relation);
}

/*
 * The same for rows that are found by a key and updated, or deleted if no
 * columns are set.
 */
Oid
guard_keyed_owner(Oid relation, List *key, List *set)
{
	check_privilege(relation, key, ACL_SELECT);
	check_privilege(relation, set, set == NIL ? ACL_DELETE : ACL_UPDATE);
	return other_owner(relation);
}

/*
 * The owner for whom a COPY statement is executed, or InvalidOid.
 */
static Oid
copy_owner(const CopyStmt *stmt)
{
	Oid			relation;

	if (!stmt->is_from || stmt->relation == NULL)
		return InvalidOid;
	relation = RangeVarGetRelid(stmt->relation, RowExclusiveLock, false);
	if (!guard_is_foreign(relation))
		return InvalidOid;
	if (stmt->filename != NULL || stmt->is_program || stmt->whereClause != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a session that applies can only COPY FROM STDIN into tables of others")));
	return guard_copy_owner(relation, stmt->attlist);
}

static Oid
truncate_owner(const TruncateStmt *stmt)
{
	Oid			relation;

	if (list_length(stmt->relations) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a session that applies can only TRUNCATE one table at a time")));
	relation = RangeVarGetRelid(linitial(stmt->relations),
								AccessExclusiveLock, false);
	if (!guard_is_foreign(relation))
		return InvalidOid;
	if (stmt->behavior != DROP_RESTRICT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a session that applies cannot TRUNCATE tables of others with CASCADE")));
	if (!guard_is_granted(relation, ACL_TRUNCATE))
		guard_denied(relation);
	return guard_check_relation(relation);
}

/*
 * Arguments of a utility statement's hook; many, so under one name.
 */
#define UTILITY_PARAMS \
	PlannedStmt *pstmt, const char *query_string, bool read_only_tree, \
	ProcessUtilityContext context, ParamListInfo params, \
	QueryEnvironment *environment, DestReceiver *dest, \
	QueryCompletion *completion
#define UTILITY_ARGS \
	pstmt, query_string, read_only_tree, context, params, environment, dest, \
	completion

static void
utility_next(UTILITY_PARAMS)
{
	if (next_utility)
		next_utility(UTILITY_ARGS);
	else
		standard_ProcessUtility(UTILITY_ARGS);
}

static Oid
utility_owner(const PlannedStmt *pstmt)
{
	if (inside > 0)
		return InvalidOid;
	if (IsA(pstmt->utilityStmt, CopyStmt))
		return copy_owner((CopyStmt *) pstmt->utilityStmt);
	if (IsA(pstmt->utilityStmt, TruncateStmt))
		return truncate_owner((TruncateStmt *) pstmt->utilityStmt);
	return InvalidOid;
}

static void
guard_utility(UTILITY_PARAMS)
{
	Oid			owner = utility_owner(pstmt);

	if (OidIsValid(owner))
		AS_OWNER(owner, utility_next(UTILITY_ARGS));
	else
		utility_next(UTILITY_ARGS);
}

/* ---- SQL ---- */

/*
 * bluegreen.begin_apply(): make this session one that applies: role replica,
 * the guard, and the count of rows (tally.c).  For good; there is no way back.
 */
Datum
bluegreen_begin_apply(PG_FUNCTION_ARGS)
{
	SetConfigOption("session_replication_role", "replica", PGC_SUSET,
					PGC_S_SESSION);
	if (installed)
		PG_RETURN_VOID();
	next_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = guard_analyze;
	next_planner = planner_hook;
	planner_hook = guard_planner;
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = guard_start;
	next_run = ExecutorRun_hook;
	ExecutorRun_hook = guard_run;
	next_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = guard_finish;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = guard_utility;
	RegisterXactCallback(guard_at_transaction_end, NULL);
	tally_install();
	installed = true;
	/* what was analyzed before has not been looked at */
	ResetPlanCache();
	PG_RETURN_VOID();
}

/*
 * bluegreen.note_row(row text): keep a text until the end of the transaction.
 * How a row looks is for its table's owner to say (casts), what is done with
 * it is not.
 */
Datum
bluegreen_note_row(PG_FUNCTION_ARGS)
{
	noted_row = PG_ARGISNULL(0) ? NULL :
		MemoryContextStrdup(TopTransactionContext,
							text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/*
 * bluegreen.noted_row() returns text: what was noted last, or null.
 */
Datum
bluegreen_noted_row(PG_FUNCTION_ARGS)
{
	if (noted_row == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(noted_row));
}
