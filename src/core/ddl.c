/*-------------------------------------------------------------------------
 *
 * ddl.c
 *		Refuse DDL that would leave a mapped table unable to tell its changes.
 *
 * Most of what an ALTER TABLE may do to a mapping shows when the next row is
 * decoded, and nothing is lost until then (relation.c).  But some of it makes
 * the WAL silent about rows that are written from then on: a replica identity
 * that does not suffice any more, however it came about, or a table that
 * becomes unlogged.  Or it changes the values of all rows without saying so: a
 * new expression of a generated column.  A stream could stop at that, but not
 * go on again without loss.
 *
 * So the relations that a transaction alters are noted, and where one is the
 * source of a started deployment, or a partition of one, its mappings are
 * checked before the transaction commits; only then, since a key may be dropped
 * and made again.  An error there aborts the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "core/partition.h"
#include "core/shared.h"
#include "executor/spi.h"
#include "nodes/parsenodes.h"
#include "stream/transform.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* A generated column that was given another expression. */
typedef struct NotedColumn
{
	Oid			relid;
	AttrNumber	attno;
} NotedColumn;

static List *noted = NIL;		/* relations, in this transaction */
static List *noted_columns = NIL;	/* of NotedColumn */
static object_access_hook_type next_object_access_hook = NULL;

/*
 * The relation is altered in this transaction: check its mappings before the
 * commit.
 */
void
ddl_note(Oid relid)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopTransactionContext);

	noted = list_append_unique_oid(noted, relid);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Look at the subcommands of an ALTER TABLE that has been done.
 */
void
ddl_note_commands(Oid relid, const AlterTableStmt *stmt)
{
	ListCell   *lc;

	ddl_note(relid);
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		MemoryContext oldcontext;
		NotedColumn *column;

		if (!IS_SET_EXPRESSION(cmd->subtype))
			continue;
		oldcontext = MemoryContextSwitchTo(TopTransactionContext);
		column = palloc_object(NotedColumn);
		column->relid = relid;
		column->attno = get_attnum(relid, cmd->name);
		noted_columns = lappend(noted_columns, column);
		MemoryContextSwitchTo(oldcontext);
	}
}

/*
 * Mappings of a relation, or of the tables that it is a partition of, in
 * deployments that were started: a list of ids.
 */
static List *
started_mappings(Oid relid)
{
	StringInfoData sources;
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *result = NIL;
	ListCell   *lc;
	uint64		n;

	initStringInfo(&sources);
	appendStringInfo(&sources, "{%u", relid);
	if (get_rel_relispartition(relid))
	{
		foreach(lc, get_partition_ancestors(relid))
		{
			appendStringInfo(&sources, ",%u", lfirst_oid(lc));
		}
	}
	appendStringInfoChar(&sources, '}');
	catalog_begin(&access);
	catalog_arg_text(&args, sources.data);
	n = catalog_run("SELECT m.id FROM bluegreen.table_mapping m "
					"JOIN bluegreen.deployment d ON d.id = m.deployment "
					"WHERE m.source = ANY ($1::oid[]) "
					"AND d.desired NOT IN ('defined', 'finished') "
					"ORDER BY m.id",
					&args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);

		result = lappend_int(result,
							 DatumGetInt32(catalog_value(i, 1, NULL)));
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return result;
}

static void
refuse(Oid relid, const MappingRow *row, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s table \"%s\" because it is mapped to \"%s\"",
					what, get_rel_name(relid), mapping_target_name(row)),
			 errdetail("The stream could not tell which rows change by that."),
			 errhint("Use bluegreen.unmap_table() first.")));
}

static void
check_columns(Oid relid, const Transform *transform)
{
	ListCell   *lc;

	foreach(lc, noted_columns)
	{
		NotedColumn *column = lfirst(lc);

		if (column->relid == relid &&
			bms_is_member(column->attno, transform->reads))
			refuse(relid, transform->row,
				   psprintf("cannot change the expression of column \"%s\" of",
							get_attname(relid, column->attno, false)));
	}
}

/*
 * Error if a mapping of the relation cannot go on.
 */
static void
check_relation(Oid relid)
{
	ListCell   *lc;
	int			guc_level;

	if (get_rel_name(relid) == NULL ||
		get_rel_persistence(relid) == RELPERSISTENCE_TEMP)
		return;					/* gone, or of no interest */
	guc_level = search_path_pin();
	foreach(lc, started_mappings(relid))
	{
		MappingRow *row = mapping_load(lfirst_int(lc));
		Transform  *transform;

		if (get_rel_persistence(relid) != RELPERSISTENCE_PERMANENT)
			refuse(relid, row, "cannot make unlogged");
		transform = transform_compile(row);
		transform_check_identity(transform);
		check_columns(relid, transform);
	}
	search_path_restore(guc_level);
}

/*
 * Before a commit.  The lists end with the transaction.
 */
static void
check_noted(XactEvent event, void *arg)
{
	List	   *relids = noted;
	ListCell   *lc;

	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		noted = noted_columns = NIL;
	if (relids == NIL ||
		(event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE) ||
		!OidIsValid(partition_change_relid()))
		return;
	noted = NIL;
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, relids)
	{
		check_relation(lfirst_oid(lc));
	}
	PopActiveSnapshot();
}

/*
 * An index that is dropped may be a replica identity; a partition that is made
 * may have none.
 */
static void
watch_object_access(ObjectAccessType access, Oid classId, Oid objectId,
					int subId, void *arg)
{
	Oid			table;

	if (next_object_access_hook)
		next_object_access_hook(access, classId, objectId, subId, arg);
	if (classId != RelationRelationId || subId != 0 ||
		!XLogLogicalInfoActive() || !shared_has_streams())
		return;
	if (access == OAT_POST_CREATE)
		ddl_note(objectId);
	else if (access == OAT_DROP &&
			 get_rel_relkind(objectId) == RELKIND_INDEX)
	{
		table = IndexGetRelation(objectId, true);
		if (OidIsValid(table))
			ddl_note(table);
	}
}

/*
 * Install the watch; from _PG_init() while preloading.
 */
void
ddl_watch_install(void)
{
	next_object_access_hook = object_access_hook;
	object_access_hook = watch_object_access;
	RegisterXactCallback(check_noted, NULL);
}
