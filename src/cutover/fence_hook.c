/*-------------------------------------------------------------------------
 *
 * fence_hook.c
 *		All the ways in which an application writes to a table.
 *
 *		executor		the result relations of a plan, whatever the command is
 *						called: INSERT, UPDATE, DELETE, MERGE, data-modifying
 *						CTEs, what rules make of a statement.  Triggers,
 *						foreign keys, functions and DO blocks come here with
 *						statements of their own; EXPLAIN ANALYZE, EXECUTE and
 *						cached plans, too
 *		utility			COPY FROM, TRUNCATE with all that it reaches, DDL that
 *						names a table, COMMIT PREPARED, CREATE TABLE AS on a
 *						side that is closed
 *		object access	tables that are altered or dropped by what does not name
 *						them (DROP SCHEMA ... CASCADE, DROP OWNED, ...)
 *
 * Utility statements are looked at before they lock anything, so that who is
 * held by a fence does not hold up readers.  Those that write rows are looked at
 * again when they are done: the table may have been mapped in between, when
 * nobody could know of them.
 *
 * Not here, because they change no row of a mapped table: SELECT FOR UPDATE,
 * LOCK TABLE, CREATE INDEX, VACUUM, ANALYZE, CLUSTER, REINDEX, sequences.  Not
 * here, because no hook sees them: large objects, apply workers of native
 * subscriptions, other extensions' C code that goes to the heap by itself.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/defrem.h"
#include "compat.h"
#include "core/guard.h"
#include "cutover/fence.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parsetree.h"
#include "stream/copy.h"
#include "tcop/utility.h"
#include "utils/inval.h"

static ExecutorStart_hook_type next_start = NULL;
static ProcessUtility_hook_type next_utility = NULL;
static object_access_hook_type next_object_access = NULL;

/*
 * In recovery nothing must be remembered.
 */
static bool
is_in_use(void)
{
	return !RecoveryInProgress() && !IsBinaryUpgrade &&
		OidIsValid(MyDatabaseId);
}

/*
 * May anything be written at all?  What cannot be is core's to refuse.
 */
static bool
is_watched(void)
{
	return !XactReadOnly && is_in_use();
}

/* ---- executor ---- */

static void
check_plan(const PlannedStmt *plan)
{
	ListCell   *lc;

	foreach(lc, plan->resultRelations)
	{
		fence_check(rt_fetch(lfirst_int(lc), plan->rtable)->relid, FENCE_ROWS);
	}
}

static void
fence_start(QueryDesc *desc, int eflags)
{
	if (desc->plannedstmt->resultRelations != NIL &&
		!(eflags & EXEC_FLAG_EXPLAIN_ONLY) && is_watched())
		check_plan(desc->plannedstmt);
	if (next_start)
		next_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
}

/*
 * For code of ours that writes rows without a plan.
 */
static void
fence_write(Oid relid)
{
	if (is_watched())
		fence_check(relid, FENCE_ROWS);
}

/* ---- utility statements ---- */

/*
 * A relation that a statement names.  One that is not there is for core to
 * complain about.
 */
static void
check_named(const RangeVar *name, FenceAccess access)
{
	Oid			relid;

	if (name == NULL)
		return;
	relid = RangeVarGetRelid(name, NoLock, true);
	if (OidIsValid(relid))
		fence_check(relid, access);
}

/*
 * Everything that a TRUNCATE would empty.
 */
static void
check_truncate(const TruncateStmt *stmt)
{
	List	   *relids = NIL;
	ListCell   *lc;

	foreach(lc, stmt->relations)
	{
		RangeVar   *name = lfirst(lc);
		Oid			relid = RangeVarGetRelid(name, NoLock, true);

		if (OidIsValid(relid))
			relids = list_concat_unique_oid(relids, name->inh ?
											find_all_inheritors(relid, NoLock,
																NULL) :
											list_make1_oid(relid));
	}
	if (stmt->behavior == DROP_CASCADE)
	{
		List	   *more;

		while ((more = heap_truncate_find_FKs(relids)) != NIL)
		{
			relids = list_concat_unique_oid(relids, more);
		}
	}
	foreach(lc, relids)
	{
		fence_check(lfirst_oid(lc), FENCE_ROWS);
	}
}

static void
check_drop(const DropStmt *stmt)
{
	ListCell   *lc;

	if (stmt->removeType != OBJECT_TABLE)
		return;
	foreach(lc, stmt->objects)
	{
		check_named(makeRangeVarFromNameList(lfirst(lc)), FENCE_DDL);
	}
}

static void
check_create_as(const CreateTableAsStmt *stmt)
{
	if (stmt->objtype == OBJECT_TABLE && !stmt->into->skipData &&
		stmt->into->rel->relpersistence == RELPERSISTENCE_PERMANENT)
		fence_check_new_table();
}

static void check_utility(const Node *stmt);

/*
 * EXPLAIN ANALYZE of a utility statement (CREATE TABLE AS) does not pass the
 * hook again.
 */
static void
check_explain(const ExplainStmt *stmt)
{
	const Query *query = (const Query *) stmt->query;
	bool		analyze = false;
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "analyze") == 0)
			analyze = defGetBoolean(option);
	}
	if (analyze && IsA(query, Query) && query->commandType == CMD_UTILITY)
		check_utility(query->utilityStmt);
}

static void
check_utility(const Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CopyStmt:
			if (((CopyStmt *) stmt)->is_from)
				check_named(((CopyStmt *) stmt)->relation, FENCE_ROWS);
			break;
		case T_TruncateStmt:
			check_truncate((TruncateStmt *) stmt);
			break;
		case T_AlterTableStmt:
			check_named(((AlterTableStmt *) stmt)->relation, FENCE_DDL);
			break;
		case T_RenameStmt:
			check_named(((RenameStmt *) stmt)->relation, FENCE_DDL);
			break;
		case T_AlterObjectSchemaStmt:
			check_named(((AlterObjectSchemaStmt *) stmt)->relation, FENCE_DDL);
			break;
		case T_CreateTrigStmt:
			check_named(((CreateTrigStmt *) stmt)->relation, FENCE_DDL);
			break;
		case T_RuleStmt:
			check_named(((RuleStmt *) stmt)->relation, FENCE_DDL);
			break;
		case T_DropStmt:
			check_drop((DropStmt *) stmt);
			break;
		case T_CreateTableAsStmt:
			check_create_as((CreateTableAsStmt *) stmt);
			break;
		case T_ExplainStmt:
			check_explain((ExplainStmt *) stmt);
			break;
		default:
			break;
	}
}

/* This does not write by itself: a transaction that is read-only can do it. */
static bool
is_commit_prepared(const Node *stmt)
{
	return IsA(stmt, TransactionStmt) &&
		((const TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED;
}

static bool
writes_rows(const Node *stmt)
{
	return IsA(stmt, TruncateStmt) ||
		(IsA(stmt, CopyStmt) && ((const CopyStmt *) stmt)->is_from);
}

static void
fence_utility(PlannedStmt *pstmt, const char *query_string,
			  bool read_only_tree, ProcessUtilityContext context,
			  ParamListInfo params, QueryEnvironment *environment,
			  DestReceiver *dest, QueryCompletion *completion)
{
	Node	   *stmt = pstmt->utilityStmt;
	bool		watch = false;

	/* also ROLLBACK comes by, in a transaction that has failed */
	if (IsTransactionState())
	{
		watch = is_watched();
		if (watch)
		{
			AcceptInvalidationMessages();
			check_utility(stmt);
		}
		if (is_commit_prepared(stmt) && is_in_use())
			fence_check_commit_prepared();
	}
	if (next_utility)
		next_utility(pstmt, query_string, read_only_tree, context, params,
					 environment, dest, completion);
	else
		standard_ProcessUtility(pstmt, query_string, read_only_tree, context,
								params, environment, dest, completion);
	if (watch && writes_rows(stmt))
		check_utility(stmt);
}

/* ---- object access ---- */

/*
 * What core does to relations on its own account, such as the new files of a
 * VACUUM FULL, is no change of the table.
 */
static bool
is_internal(ObjectAccessType access, const void *arg)
{
	switch (access)
	{
		case OAT_DROP:
			return (((const ObjectAccessDrop *) arg)->dropflags &
					PERFORM_DELETION_INTERNAL) != 0;
		case OAT_POST_ALTER:
			return ((const ObjectAccessPostAlter *) arg)->is_internal;
		default:
			return true;
	}
}

static void
fence_object_access(ObjectAccessType access, Oid classId, Oid objectId,
					int subId, void *arg)
{
	if (next_object_access)
		next_object_access(access, classId, objectId, subId, arg);
	if (classId == RelationRelationId && arg != NULL &&
		!is_internal(access, arg) && is_watched())
		fence_check(objectId, FENCE_DDL);
}

static void
wait_before_copy(int32 deployment)
{
	fence_wait_writers(deployment, NULL);
}

/*
 * Install the hooks; from _PG_init() while preloading.
 */
void
fence_hooks_install(void)
{
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = fence_start;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = fence_utility;
	next_object_access = object_access_hook;
	object_access_hook = fence_object_access;
	guard_write_hook = fence_write;
	copy_wait_hook = wait_before_copy;
}
