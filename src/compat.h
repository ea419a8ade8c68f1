/*-------------------------------------------------------------------------
 *
 * compat.h
 *		All differences between PostgreSQL 15, 16, 17 and 18.
 *
 * The rest of the code is written against the newest API under its own name;
 * what an older server lacks or spells otherwise is supplied here, one block
 * per difference, headed by what changed.  No other file may look at
 * PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_COMPAT_H
#define BG_COMPAT_H

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "pg_bluegreen supports PostgreSQL 15, 16, 17 and 18"
#endif

#include "access/xlog.h"
#include "fmgr.h"
#include "nodes/parsenodes.h"
#include "replication/message.h"
#include "replication/reorderbuffer.h"
#include "replication/slot.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

/*
 * 18 marks functions with pg_noreturn before the declaration, and dropped
 * pg_attribute_noreturn() after it.
 */
#ifndef pg_noreturn
#define pg_noreturn pg_attribute_noreturn()
#endif
#ifndef pg_attribute_noreturn
#define pg_attribute_noreturn() __attribute__((noreturn))
#endif

/* 18 has PG_MODULE_MAGIC_EXT, which carries the module's name and version. */
#ifndef PG_MODULE_MAGIC_EXT
#define PG_MODULE_MAGIC_EXT(...) PG_MODULE_MAGIC
#endif

/*
 * 18 adds error_if_invalid to ReplicationSlotAcquire.  Older servers acquire
 * an invalidated slot and complain when the decoding context is created.
 */
#if PG_VERSION_NUM < 180000
#define ReplicationSlotAcquire(name, nowait, error_if_invalid) \
	ReplicationSlotAcquire(name, nowait)
#endif

/*
 * change_tuple(change->data.tp.newtuple): the tuple of a change, or NULL.
 * 17 dropped the ReorderBufferTupleBuf around it.
 */
#if PG_VERSION_NUM >= 170000
static inline HeapTuple
change_tuple(HeapTuple tuple)
{
	return tuple;
}
#else
static inline HeapTuple
change_tuple(ReorderBufferTupleBuf *buf)
{
	return buf != NULL ? &buf->tuple : NULL;
}
#endif

/*
 * 17 adds flush to LogLogicalMessage: a message outside a transaction is on
 * disk when the call returns.
 */
#if PG_VERSION_NUM < 170000
static inline XLogRecPtr
log_logical_message(const char *prefix, const char *message, size_t size,
					bool transactional, bool flush)
{
	XLogRecPtr	lsn = LogLogicalMessage(prefix, message, size, transactional);

	if (flush && !transactional)
		XLogFlush(lsn);
	return lsn;
}

#define LogLogicalMessage(prefix, message, size, transactional, flush) \
	log_logical_message(prefix, message, size, transactional, flush)
#endif

/*
 * 17 has RestrictSearchPath(), for running code of users who are less trusted
 * than we are; it must be called inside a GUC nest level.
 */
#if PG_VERSION_NUM < 170000
#define RestrictSearchPath() \
	((void) set_config_option("search_path", "pg_catalog, pg_temp", \
							  PGC_USERSET, PGC_S_SESSION, \
							  GUC_ACTION_SAVE, true, 0, false))
#endif

/* 17 gives extensions wait events with names of their own. */
#if PG_VERSION_NUM < 170000
#define WaitEventExtensionNew(name) ((uint32) PG_WAIT_EXTENSION)
#endif

/* 16 has one function for all kinds of objects. */
#if PG_VERSION_NUM >= 160000
#define pg_database_aclcheck(database, role, mode) \
	object_aclcheck(DatabaseRelationId, database, role, mode)
#define pg_namespace_aclcheck(schema, role, mode) \
	object_aclcheck(NamespaceRelationId, schema, role, mode)
#define pg_class_ownercheck(relation, role) \
	object_ownercheck(RelationRelationId, relation, role)
#endif

/* A set of events that lives as long as the process. */
#if PG_VERSION_NUM >= 170000
#define WaitEventSetCreate(n) CreateWaitEventSet(NULL, n)
#else
#define WaitEventSetCreate(n) CreateWaitEventSet(TopMemoryContext, n)
#endif

/* 17 has transaction_timeout. */
#define HAVE_TRANSACTION_TIMEOUT (PG_VERSION_NUM >= 170000)

/*
 * Has the server invalidated this slot?  Since 16 the cause is kept
 * (data.invalidated); 15 has the position instead.  The caller holds the
 * slot's mutex or owns the slot.
 */
static inline bool
slot_is_invalidated(const ReplicationSlot *slot)
{
#if PG_VERSION_NUM >= 160000
	return slot->data.invalidated != RS_INVAL_NONE;
#else
	return slot->data.invalidated_at != InvalidXLogRecPtr;
#endif
}

/*
 * The setting that made the server invalidate a slot.  On 15 there is only
 * one; 16 adds conflicts of a standby and wal_level, 18 the idle timeout.
 */
static inline const char *
slot_invalidation_setting(const ReplicationSlot *slot)
{
#if PG_VERSION_NUM >= 160000
	switch (slot->data.invalidated)
	{
		case RS_INVAL_HORIZON:
			return "hot_standby_feedback";
		case RS_INVAL_WAL_LEVEL:
			return "wal_level";
#if PG_VERSION_NUM >= 180000
		case RS_INVAL_IDLE_TIMEOUT:
			return "idle_replication_slot_timeout";
#endif
		default:
			break;
	}
#endif
	return "max_slot_wal_keep_size";
}

/*
 * 17 can synchronize slots to standbys (failover slots), and has
 * synchronized_standby_slots: standbys that must have received what is decoded
 * before it is sent.
 */
#if PG_VERSION_NUM >= 170000
#include "replication/walsender_private.h"
#include "storage/condition_variable.h"

#define STANDBY_SLOT_HINT \
	"See the server log and the documentation of \"sync_replication_slots\"."
#define STANDBY_SLOT_NAMES \
	(synchronized_standby_slots ? synchronized_standby_slots : "")

/* pg_create_logical_replication_slot's temporary, twophase, failover */
#define FAILOVER_SLOT_ARGUMENTS ", false, false, true"

#define slot_is_failover(slot) ((slot)->data.failover)
#define standbys_have_caught_up(lsn, elevel) \
	StandbySlotsHaveCaughtup(lsn, elevel)
/* between these two, a standby that has received more sets our latch */
#define standby_wait_begin() \
	ConditionVariablePrepareToSleep(&WalSndCtl->wal_confirm_rcv_cv)
#define standby_wait_end() ConditionVariableCancelSleep()
#else
#define STANDBY_SLOT_HINT \
	"Servers before version 17 do not synchronize slots to standbys."
#define STANDBY_SLOT_NAMES ""
#define FAILOVER_SLOT_ARGUMENTS ""
#define slot_is_failover(slot) (false)
#define standbys_have_caught_up(lsn, elevel) ((void) (lsn), (void) (elevel), true)
#define standby_wait_begin() ((void) 0)
#define standby_wait_end() ((void) 0)
#endif

/* The two tuples of a change. */
#define change_new_tuple(change) change_tuple((change)->data.tp.newtuple)
#define change_old_tuple(change) change_tuple((change)->data.tp.oldtuple)

/* 16 has palloc_object() and friends. */
#ifndef palloc0_object
#define palloc_object(type) ((type *) palloc(sizeof(type)))
#define palloc0_object(type) ((type *) palloc0(sizeof(type)))
#define palloc_array(type, count) ((type *) palloc(sizeof(type) * (count)))
#define palloc0_array(type, count) ((type *) palloc0(sizeof(type) * (count)))
#endif

/*
 * 16 moved permissions out of the range table: keep just those of the one
 * entry that stays.
 */
#if PG_VERSION_NUM >= 160000
#define query_keep_permission(query, rte) \
	((query)->rteperminfos = list_make1(list_nth((query)->rteperminfos, \
									(rte)->perminfoindex - 1)), \
	 (rte)->perminfoindex = 1)
#else
#define query_keep_permission(query, rte) ((void) 0)
#endif

/* 16 reports soft errors of parseTypeString through a node. */
#if PG_VERSION_NUM >= 160000
#define parse_type_string(text, type, typmod) \
	((void) parseTypeString(text, type, typmod, NULL))
#else
#define parse_type_string(text, type, typmod) \
	parseTypeString(text, type, typmod, false)
#endif

/*
 * 18 has virtual generated columns: they are not in the tuple, so references
 * to them are replaced by their expressions.
 */
#if PG_VERSION_NUM >= 180000
#define expand_virtual_columns(node, relation) \
	expand_generated_columns_in_expr(node, relation, 1)
#else
#define expand_virtual_columns(node, relation) (node)
#endif

/* 18 dropped execute_once from ExecutorRun. */
#if PG_VERSION_NUM >= 180000
#define executor_run(desc, direction, count) \
	ExecutorRun(desc, direction, count)
#else
#define executor_run(desc, direction, count) \
	ExecutorRun(desc, direction, count, true)
#endif

/* 17 wants to know how keys of a dshash are copied. */
#if PG_VERSION_NUM >= 170000
#define DSHASH_COPY_FUNCTION .copy_function = dshash_memcpy,
#else
#define DSHASH_COPY_FUNCTION
#endif

/* 18 can return a deferrable primary key as well; older servers never do. */
#if PG_VERSION_NUM >= 180000
#define relation_primary_key(relation) RelationGetPrimaryKeyIndex(relation, false)
#else
#define relation_primary_key(relation) RelationGetPrimaryKeyIndex(relation)
#endif

/* ... which hooks of the executor see. */
#if PG_VERSION_NUM >= 180000
#define EXECUTOR_RUN_PARAMS \
	(QueryDesc *desc, ScanDirection direction, uint64 count)
#define EXECUTOR_RUN_ARGS (desc, direction, count)
#else
#define EXECUTOR_RUN_PARAMS \
	(QueryDesc *desc, ScanDirection direction, uint64 count, bool once)
#define EXECUTOR_RUN_ARGS (desc, direction, count, once)
#endif

/* 16 tells who may SET ROLE to another from who is a member. */
#if PG_VERSION_NUM >= 160000
#define role_can_set(member, role) member_can_set_role(member, role)
#else
#define role_can_set(member, role) is_member_of_role(member, role)
#endif

/*
 * What a range table entry needs permission for, and whose.  16 moved both
 * into a list beside the range table.
 */
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"

#define query_perminfos(query) ((query)->rteperminfos)
#define plan_perminfos(plan) ((plan)->permInfos)
#define plan_check_permissions(plan, entries) \
	ExecCheckPermissions((plan)->rtable, entries, false)
#define plan_permission_entries(plan) ((plan)->permInfos)
#define permission_entry_set_user(entry, userid) \
	(((RTEPermissionInfo *) (entry))->checkAsUser = (userid))

static inline AclMode
rte_required_perms(List *perminfos, RangeTblEntry *rte)
{
	return rte->perminfoindex == 0 ? 0 :
		getRTEPermissionInfo(perminfos, rte)->requiredPerms;
}

static inline Oid
rte_check_as_user(List *perminfos, RangeTblEntry *rte)
{
	return rte->perminfoindex == 0 ? InvalidOid :
		getRTEPermissionInfo(perminfos, rte)->checkAsUser;
}

static inline void
rte_set_check_as_user(List *perminfos, RangeTblEntry *rte, Oid userid)
{
	if (rte->perminfoindex != 0)
		getRTEPermissionInfo(perminfos, rte)->checkAsUser = userid;
}
#else
#define query_perminfos(query) NIL
#define plan_perminfos(plan) NIL
#define plan_check_permissions(plan, entries) ExecCheckRTPerms(entries, false)
#define plan_permission_entries(plan) ((plan)->rtable)
#define permission_entry_set_user(entry, userid) \
	(((RangeTblEntry *) (entry))->checkAsUser = (userid))

static inline AclMode
rte_required_perms(List *perminfos, RangeTblEntry *rte)
{
	return rte->requiredPerms;
}

static inline Oid
rte_check_as_user(List *perminfos, RangeTblEntry *rte)
{
	return rte->checkAsUser;
}

static inline void
rte_set_check_as_user(List *perminfos, RangeTblEntry *rte, Oid userid)
{
	rte->checkAsUser = userid;
}
#endif

/* 17 numbers backends by their PGPROC, and keeps the two numbers together. */
#include "storage/proc.h"
#include "storage/procarray.h"
#if PG_VERSION_NUM >= 170000
#define vxid_proc(vxid) ProcNumberGetProc((vxid).procNumber)
#define proc_lxid(proc) ((proc)->vxid.lxid)
#else
#include "storage/sinvaladt.h"

#define vxid_proc(vxid) BackendIdGetProc((vxid).backendId)
#define proc_lxid(proc) ((proc)->lxid)
#endif

/* 18 counts what index scans do. */
#if PG_VERSION_NUM >= 180000
#define begin_index_scan(rel, index, snapshot, nkeys) \
	index_beginscan(rel, index, snapshot, NULL, nkeys, 0)
#else
#define begin_index_scan(rel, index, snapshot, nkeys) \
	index_beginscan(rel, index, snapshot, nkeys, 0)
#endif

/* 16 tells which indexes an UPDATE leaves as they are: all that summarize. */
#if PG_VERSION_NUM >= 160000
#include "access/tableam.h"

typedef TU_UpdateIndexes UpdatedIndexes;
#define insert_index_entries(target, slot, estate, indexes) \
	((indexes) == TU_None ? NIL : \
	 ExecInsertIndexTuples(target, slot, estate, true, false, NULL, NIL, \
						   (indexes) == TU_Summarizing))
#else
typedef bool UpdatedIndexes;
#define insert_index_entries(target, slot, estate, indexes) \
	(!(indexes) ? NIL : \
	 ExecInsertIndexTuples(target, slot, estate, true, false, NULL, NIL))
#endif

/*
 * Give an executor state the range table of a statement that updates columns
 * (numbers as in permissions) of one relation.
 */
#include "executor/executor.h"
#include "nodes/makefuncs.h"

static inline void
init_range_table(EState *estate, Relation rel, Bitmapset *updated)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
#if PG_VERSION_NUM >= 160000
	List	   *permissions = NIL;
#endif

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(rel);
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;
#if PG_VERSION_NUM >= 160000
	addRTEPermissionInfo(&permissions, rte)->updatedCols = updated;
#else
	rte->updatedCols = updated;
#endif
#if PG_VERSION_NUM >= 180000
	ExecInitRangeTable(estate, list_make1(rte), permissions,
					   bms_make_singleton(1));
#elif PG_VERSION_NUM >= 160000
	ExecInitRangeTable(estate, list_make1(rte), permissions);
#else
	ExecInitRangeTable(estate, list_make1(rte));
#endif
}

/* 16 has one function for the owners of all kinds of objects. */
#include "catalog/pg_class_d.h"
#include "utils/acl.h"
#if PG_VERSION_NUM >= 160000
#define owns_table(relid) \
	object_ownercheck(RelationRelationId, relid, GetUserId())
#else
#define owns_table(relid) pg_class_ownercheck(relid, GetUserId())
#endif

/* How many sessions may have an origin: 18 has a setting of its own. */
#include "replication/origin.h"
#if PG_VERSION_NUM >= 180000
#define max_origin_sessions() (max_active_replication_origins)
#else
#define max_origin_sessions() (max_replication_slots)
#endif

/* ALTER TABLE ... SET EXPRESSION is new in 17. */
#if PG_VERSION_NUM >= 170000
#define IS_SET_EXPRESSION(subtype) ((subtype) == AT_SetExpression)
#else
#define IS_SET_EXPRESSION(subtype) false
#endif

/* 16 calls the number of a relation's file by another name. */
#if PG_VERSION_NUM >= 160000
#define relation_file(relation) ((relation)->rd_locator.relNumber)
#else
#define relation_file(relation) ((relation)->rd_node.relNode)
#endif

/* 18 can add a foreign key to a partitioned table as NOT VALID. */
#define HAVE_PARTITIONED_NOT_VALID (PG_VERSION_NUM >= 180000)

/* 18 has constraints that are not enforced. */
#if PG_VERSION_NUM >= 180000
#define constraint_is_enforced(form) ((form)->conenforced)
#else
#define constraint_is_enforced(form) true
#endif

#endif							/* BG_COMPAT_H */
