/*-------------------------------------------------------------------------
 *
 * partition.c
 *		Say in the WAL when rows come to a partitioned table, or go, without
 *		row changes.
 *
 * ATTACH and DETACH PARTITION change which rows a table has and log no row.
 * Decoding would pass over them and the target would silently differ.  So
 * after such a command on a partition that is not empty, the parent and its
 * ancestors are written to bluegreen.partition_change, in the command's own
 * transaction; a stream that has one of them mapped finds it while decoding
 * and stops there.  (A logical message would do, could not anybody write one.)
 * An empty partition changes nothing and is not mentioned.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "compat.h"
#include "core/definition.h"
#include "core/partition.h"
#include "core/shared.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

static ProcessUtility_hook_type previous_utility = NULL;

/*
 * Has any leaf of the table a row?  Locks it as far as reading needs.
 */
static bool
has_rows(Oid relid)
{
	bool		found = false;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		Relation	relation = table_open(lfirst_oid(lc), AccessShareLock);
		TableScanDesc scan;
		TupleTableSlot *slot;

		if (!found && relation->rd_rel->relkind == RELKIND_RELATION)
		{
			slot = table_slot_create(relation, NULL);
			scan = table_beginscan(relation, GetActiveSnapshot(), 0, NULL);
			found = table_scan_getnextslot(scan, ForwardScanDirection, slot);
			table_endscan(scan);
			ExecDropSingleTupleTableSlot(slot);
		}
		table_close(relation, NoLock);
	}
	return found;
}

/*
 * Write down that rows of these tables came or went: a row that is inserted
 * and deleted again, since only its way through the WAL matters.
 */
static void
log_change(Oid parent)
{
	StringInfoData content;
	CatalogAccess access;
	CatalogArgs args = {0};
	CatalogArgs none = {0};
	ListCell   *lc;

	initStringInfo(&content);
	appendStringInfo(&content, "%u", parent);
	if (get_rel_relispartition(parent))
	{
		foreach(lc, get_partition_ancestors(parent))
		{
			appendStringInfo(&content, " %u", lfirst_oid(lc));
		}
	}
	catalog_begin(&access);
	catalog_arg_text(&args, content.data);
	catalog_run("INSERT INTO bluegreen.partition_change VALUES ($1)", &args,
				SPI_OK_INSERT);
	catalog_run("DELETE FROM bluegreen.partition_change", &none,
				SPI_OK_DELETE);
	catalog_end(&access);
}

/*
 * The table that changes of partitions are written to; invalid if the
 * extension is not in this database.
 */
Oid
partition_change_relid(void)
{
	Oid			schema = get_namespace_oid("bluegreen", true);

	return OidIsValid(schema) ?
		get_relname_relid("partition_change", schema) : InvalidOid;
}

/*
 * Does what was written down name this relation?
 */
bool
partition_change_names(const char *content, Oid relid)
{
	char	   *end;

	while (*content != '\0')
	{
		if ((Oid) strtoul(content, &end, 10) == relid)
			return true;
		if (end == content)
			break;
		content = end;
	}
	return false;
}

/*
 * The partitions that an ALTER TABLE attaches or detaches and that have rows.
 * Looked at before the command for a DETACH, after it for an ATTACH; both are
 * the same, since neither touches rows.
 */
static bool
moves_rows(AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		PartitionCmd *partition;
		Oid			relid;

		if (cmd->subtype != AT_AttachPartition &&
			cmd->subtype != AT_DetachPartition)
			continue;
		partition = castNode(PartitionCmd, cmd->def);
		relid = RangeVarGetRelid(partition->name, AccessShareLock, true);
		if (OidIsValid(relid) && has_rows(relid))
			return true;
	}
	return false;
}

static bool
is_watched(const PlannedStmt *pstmt)
{
	return IsA(pstmt->utilityStmt, AlterTableStmt) &&
		XLogLogicalInfoActive() && shared_has_streams() &&
		OidIsValid(partition_change_relid());
}

static void
partition_utility(PlannedStmt *pstmt, const char *query_string,
				  bool read_only_tree, ProcessUtilityContext context,
				  ParamListInfo params, QueryEnvironment *environment,
				  DestReceiver *dest, QueryCompletion *completion)
{
	ProcessUtility_hook_type next =
		previous_utility ? previous_utility : standard_ProcessUtility;
	AlterTableStmt *stmt = NULL;
	Oid			parent = InvalidOid;

	if (is_watched(pstmt))
	{
		stmt = copyObject((AlterTableStmt *) pstmt->utilityStmt);
		parent = RangeVarGetRelid(stmt->relation, NoLock, true);
	}
	next(pstmt, query_string, read_only_tree, context, params, environment,
		 dest, completion);
	if (OidIsValid(parent))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		if (moves_rows(stmt))
			log_change(parent);
		PopActiveSnapshot();
		ddl_note_commands(parent, stmt);
	}
}

/*
 * Install the hook; from _PG_init while preloading.
 */
void
partition_hook_install(void)
{
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = partition_utility;
}
