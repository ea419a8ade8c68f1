/*-------------------------------------------------------------------------
 *
 * keyed_rows.c
 *		On a target: update or delete many rows by their keys, without a plan.
 *
 * An UPDATE or DELETE over arrays of keys is a join, whose machinery takes
 * longer for a row than finding and changing it.  Here the table and the key's
 * index are opened once, and each row that comes is looked up and changed as
 * the executor would do it.  The rows are a parameter of an ordinary statement,
 * in the format of COPY BINARY without header and trailer: the key's columns,
 * then those that are set.
 *
 * This does what the statement would do only for a table of which nothing else
 * is asked than constraints and indexes.  takes_rows() tells whether it is one:
 * not if a trigger or rule would fire, or there are partitions, children,
 * row-level security or generated columns, or no unique index has just the
 * key's columns.  A stream asks when it connects, and uses SQL for the others.
 * A table that becomes one of them later fails with an error after which the
 * stream connects anew and asks again.
 *
 * A row that somebody else has changed meanwhile is waited for and looked up
 * anew, as under READ COMMITTED.
 *
 * What runs as whom is as for insert_rows(), see guard.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "commands/trigger.h"
#include "compat.h"
#include "core/guard.h"
#include "executor/executor.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(bluegreen_takes_rows);
PG_FUNCTION_INFO_V1(bluegreen_update_rows);
PG_FUNCTION_INFO_V1(bluegreen_delete_rows);

/* A value of each row that comes. */
typedef struct Field
{
	AttrNumber	attno;
	FmgrInfo	receive;
	Oid			ioparam;
	int32		typmod;
} Field;

/* One call. */
typedef struct KeyedRows
{
	Relation	rel;
	CmdType		command;
	int64		expected;		/* rows to find; negative: any number */

	/* what comes */
	StringInfoData input;
	int			nkeys;
	int			nfields;		/* the key's columns first */
	Field	   *fields;
	Datum	   *values;			/* of the row at hand, by field */
	bool	   *isnull;

	/* what is there */
	Relation	index;
	int			key_field[INDEX_MAX_KEYS];	/* by column of the index */
	ScanKeyData scan_keys[INDEX_MAX_KEYS];
	Snapshot	snapshot;
	IndexScanDesc scan;
	TupleTableSlot *found;
	TupleTableSlot *changed;
	EState	   *estate;
	ResultRelInfo *target;
} KeyedRows;

/* ---- is it a table for us? ---- */

/*
 * Would a trigger fire?  Some of those that are enabled would not, for they are
 * for INSERT; never mind.
 */
static bool
has_firing_trigger(Relation rel)
{
	TriggerDesc *desc = rel->trigdesc;

	if (SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
		return true;
	for (int i = 0; desc != NULL && i < desc->numtriggers; i++)
		if (desc->triggers[i].tgenabled == TRIGGER_FIRES_ALWAYS ||
			desc->triggers[i].tgenabled == TRIGGER_FIRES_ON_REPLICA)
			return true;
	return false;
}

static bool
has_generated_column(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; desc->constr != NULL && i < desc->natts; i++)
		if (TupleDescAttr(desc, i)->attgenerated != '\0')
			return true;
	return false;
}

static bool
is_plain(Relation rel)
{
	return rel->rd_rel->relkind == RELKIND_RELATION &&
		!IsCatalogRelation(rel) &&
		!rel->rd_rel->relispartition && !rel->rd_rel->relhassubclass &&
		rel->rd_rules == NULL && !rel->rd_rel->relrowsecurity &&
		!has_firing_trigger(rel) && !has_generated_column(rel);
}

/*
 * Is it an index by which the rows of a key can be found, as the planner would
 * see it?
 */
static bool
is_key_index(Relation index, const Bitmapset *key)
{
	Form_pg_index form = index->rd_index;
	Bitmapset  *columns = NULL;

	if (!form->indisunique || !form->indisvalid || !form->indimmediate ||
		index->rd_rel->relam != BTREE_AM_OID ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL))
		return false;
	if (form->indcheckxmin &&
		!TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data),
							   TransactionXmin))
		return false;
	/* an expression is column 0 and so is none of the key's */
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		columns = bms_add_member(columns, form->indkey.values[i]);
	return bms_equal(columns, key);
}

/*
 * Open the unique index over a key, or return NULL.
 */
static Relation
open_key_index(Relation rel, const Bitmapset *key, LOCKMODE lockmode)
{
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(lc), lockmode);

		if (is_key_index(index, key))
			return index;
		index_close(index, lockmode);
	}
	return NULL;
}

/* ---- the call ---- */

static AttrNumber
column_number(Relation rel, const char *name)
{
	AttrNumber	attno = get_attnum(RelationGetRelid(rel), name);

	if (attno <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						name, RelationGetRelationName(rel))));
	return attno;
}

static Bitmapset *
column_set(Relation rel, List *names)
{
	Bitmapset  *result = NULL;
	ListCell   *lc;

	foreach(lc, names)
	{
		result = bms_add_member(result,
								column_number(rel, strVal(lfirst(lc))));
	}
	return result;
}

static void
init_fields(KeyedRows *work, List *key, List *set)
{
	List	   *names = list_concat_copy(key, set);
	ListCell   *lc;

	work->nkeys = list_length(key);
	work->fields = palloc0_array(Field, Max(list_length(names), 1));
	work->values = palloc0_array(Datum, Max(list_length(names), 1));
	work->isnull = palloc0_array(bool, Max(list_length(names), 1));
	foreach(lc, names)
	{
		Field	   *field = &work->fields[work->nfields++];
		Form_pg_attribute att;
		Oid			function;

		field->attno = column_number(work->rel, strVal(lfirst(lc)));
		att = TupleDescAttr(RelationGetDescr(work->rel), field->attno - 1);
		getTypeBinaryInputInfo(att->atttypid, &function, &field->ioparam);
		fmgr_info(function, &field->receive);
		field->typmod = att->atttypmod;
	}
}

/*
 * Prepare to look rows up by the index, and by the operators that it has.
 */
static void
init_scan(KeyedRows *work)
{
	for (int i = 0; i < work->nkeys; i++)
	{
		AttrNumber	attno = work->index->rd_index->indkey.values[i];
		Oid			family = work->index->rd_opfamily[i];
		Oid			type = work->index->rd_opcintype[i];
		Oid			operator = get_opfamily_member(family, type, type,
												   BTEqualStrategyNumber);

		if (!OidIsValid(operator))
			elog(ERROR, "missing operator %d(%u,%u) in opfamily %u",
				 BTEqualStrategyNumber, type, type, family);
		ScanKeyEntryInitialize(&work->scan_keys[i], 0, i + 1,
							   BTEqualStrategyNumber, InvalidOid,
							   work->index->rd_indcollation[i],
							   get_opcode(operator), (Datum) 0);
		for (int k = 0; k < work->nkeys; k++)
			if (work->fields[k].attno == attno)
				work->key_field[i] = k;
	}
	work->found = table_slot_create(work->rel, NULL);
	work->snapshot = RegisterSnapshot(GetActiveSnapshot());
	work->scan = begin_index_scan(work->rel, work->index, work->snapshot,
								  work->nkeys);
}

/*
 * What the executor's functions want to know of the table.
 */
static void
init_target(KeyedRows *work)
{
	Bitmapset  *updated = NULL;

	for (int i = work->nkeys; i < work->nfields; i++)
		updated = bms_add_member(updated, work->fields[i].attno -
								 FirstLowInvalidHeapAttributeNumber);
	work->estate = CreateExecutorState();
	init_range_table(work->estate, work->rel, updated);
	work->target = makeNode(ResultRelInfo);
	InitResultRelInfo(work->target, work->rel, 1, NULL, 0);
	CheckCmdReplicaIdentity(work->rel, work->command);
	if (work->command != CMD_UPDATE)
		return;
	ExecOpenIndices(work->target, false);
	work->changed = MakeSingleTupleTableSlot(RelationGetDescr(work->rel),
											 &TTSOpsVirtual);
}

static void
end_scan(KeyedRows *work)
{
	index_endscan(work->scan);
	UnregisterSnapshot(work->snapshot);
}

static void
finish(KeyedRows *work)
{
	end_scan(work);
	ExecDropSingleTupleTableSlot(work->found);
	if (work->changed != NULL)
	{
		ExecDropSingleTupleTableSlot(work->changed);
		ExecCloseIndices(work->target);
	}
	FreeExecutorState(work->estate);
}

/* ---- rows ---- */

static pg_noreturn void
refuse_format(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_BAD_COPY_FILE_FORMAT),
			 errmsg("rows are not in the format of COPY BINARY")));
}

/*
 * The next value, by its type's receive function.  The byte behind it is made a
 * zero for so long, which some of them count on.
 */
static Datum
read_value(KeyedRows *work, Field *field, bool *isnull)
{
	int32		len = (int32) pq_getmsgint(&work->input, 4);
	StringInfoData value;
	char	   *behind;
	char		saved;
	Datum		result;

	*isnull = len == -1;
	if (*isnull)
		return ReceiveFunctionCall(&field->receive, NULL, field->ioparam,
								   field->typmod);
	if (len < 0 || len > work->input.len - work->input.cursor)
		refuse_format();
	value.data = work->input.data + work->input.cursor;
	value.len = value.maxlen = len;
	value.cursor = 0;
	work->input.cursor += len;
	behind = work->input.data + work->input.cursor;
	saved = *behind;
	*behind = '\0';
	result = ReceiveFunctionCall(&field->receive, &value, field->ioparam,
								 field->typmod);
	*behind = saved;
	if (value.cursor != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("incorrect binary data format")));
	return result;
}

static void
read_row(KeyedRows *work)
{
	MemoryContext old =
		MemoryContextSwitchTo(GetPerTupleMemoryContext(work->estate));

	if (pq_getmsgint(&work->input, 2) != work->nfields)
		refuse_format();
	for (int i = 0; i < work->nfields; i++)
		work->values[i] = read_value(work, &work->fields[i], &work->isnull[i]);
	MemoryContextSwitchTo(old);
}

/*
 * Find the row of the key at hand.  What the scan allocates stays until its
 * end.
 */
static bool
find_row(KeyedRows *work)
{
	for (int i = 0; i < work->nkeys; i++)
	{
		int			field = work->key_field[i];

		if (work->isnull[field])
			return false;
		work->scan_keys[i].sk_argument = work->values[field];
	}
	index_rescan(work->scan, work->scan_keys, work->nkeys, NULL, 0);
	return index_getnext_slot(work->scan, ForwardScanDirection, work->found);
}

static TM_Result
delete_row(KeyedRows *work)
{
	TM_FailureData failure;

	return table_tuple_delete(work->rel, &work->found->tts_tid,
							  GetCurrentCommandId(true), work->snapshot,
							  InvalidSnapshot, true, &failure, false);
}

/*
 * Is a value that is stored compressed or out of line the one that came?  Then
 * it stays as it is stored: to compress it again takes most of the time that
 * such a row needs, and out of line it would be stored a second time.
 */
static bool
is_stored_already(Datum stored, Datum value)
{
	struct varlena *pointer = (struct varlena *) DatumGetPointer(stored);
	struct varlena *plain;

	if (!VARATT_IS_COMPRESSED(pointer) && !VARATT_IS_EXTERNAL(pointer))
		return false;
	if (VARATT_IS_EXTENDED(DatumGetPointer(value)) &&
		!VARATT_IS_SHORT(DatumGetPointer(value)))
		return false;
	if (toast_raw_datum_size(stored) - VARHDRSZ !=
		VARSIZE_ANY_EXHDR(DatumGetPointer(value)))
		return false;
	plain = pg_detoast_datum(pointer);
	return memcmp(VARDATA_ANY(plain), VARDATA_ANY(DatumGetPointer(value)),
				  VARSIZE_ANY_EXHDR(plain)) == 0;
}

/*
 * Set the columns that came in the row to be stored.
 */
static void
set_columns(KeyedRows *work)
{
	TupleTableSlot *slot = work->changed;
	MemoryContext old =
		MemoryContextSwitchTo(GetPerTupleMemoryContext(work->estate));

	for (int i = work->nkeys; i < work->nfields; i++)
	{
		int			a = work->fields[i].attno - 1;

		if (TupleDescAttr(slot->tts_tupleDescriptor, a)->attlen == -1 &&
			!slot->tts_isnull[a] && !work->isnull[i] &&
			is_stored_already(slot->tts_values[a], work->values[i]))
			continue;
		slot->tts_values[a] = work->values[i];
		slot->tts_isnull[a] = work->isnull[i];
	}
	MemoryContextSwitchTo(old);
}

/*
 * The row that was found, with the values that came.
 */
static void
make_changed(KeyedRows *work)
{
	TupleTableSlot *slot = work->changed;
	TupleDesc	desc = RelationGetDescr(work->rel);

	slot_getallattrs(work->found);
	ExecClearTuple(slot);
	memcpy(slot->tts_values, work->found->tts_values,
		   desc->natts * sizeof(Datum));
	memcpy(slot->tts_isnull, work->found->tts_isnull,
		   desc->natts * sizeof(bool));
	for (int i = 0; i < desc->natts; i++)
		slot->tts_isnull[i] |= TupleDescAttr(desc, i)->attisdropped;
	set_columns(work);
	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = RelationGetRelid(work->rel);
}

static TM_Result
update_row(KeyedRows *work)
{
	TM_FailureData failure;
	LockTupleMode lockmode;
	UpdatedIndexes indexes;
	TM_Result	result;

	make_changed(work);
	if (RelationGetDescr(work->rel)->constr != NULL)
		ExecConstraints(work->target, work->changed, work->estate);
	result = table_tuple_update(work->rel, &work->found->tts_tid,
								work->changed, GetCurrentCommandId(true),
								work->snapshot, InvalidSnapshot, true,
								&failure, &lockmode, &indexes);
	if (result == TM_Ok && work->target->ri_NumIndices > 0)
		insert_index_entries(work->target, work->changed, work->estate,
							 indexes);
	return result;
}

/*
 * Somebody else has changed or deleted the row, and committed: see what there
 * is now.
 */
static void
look_again(KeyedRows *work)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update")));
	ExecClearTuple(work->found);
	end_scan(work);
	work->snapshot = RegisterSnapshot(GetLatestSnapshot());
	work->scan = begin_index_scan(work->rel, work->index, work->snapshot,
								  work->nkeys);
}

/*
 * Change the row at hand; false if there is none.
 */
static bool
change_row(KeyedRows *work)
{
	while (find_row(work))
	{
		TM_Result	result = work->command == CMD_UPDATE ?
			update_row(work) : delete_row(work);

		if (result == TM_Ok)
			return true;
		if (result != TM_Updated && result != TM_Deleted)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_EXCEPTION),
					 errmsg("a row of table \"%s\" is to be changed twice by one statement",
							RelationGetRelationName(work->rel))));
		look_again(work);
		CHECK_FOR_INTERRUPTS();
	}
	return false;
}

static void
change_rows(KeyedRows *work)
{
	int64		found = 0;

	init_target(work);
	init_scan(work);
	while (work->input.cursor < work->input.len)
	{
		CHECK_FOR_INTERRUPTS();
		read_row(work);
		if (change_row(work))
			found++;
		ResetPerTupleExprContext(work->estate);
	}
	finish(work);
	if (work->expected >= 0 && found != work->expected)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("a batch did not find all rows that it changes on the target"),
				 errdetail("A statement on table \"%s\" affected " INT64_FORMAT " rows instead of " INT64_FORMAT ".",
						   RelationGetRelationName(work->rel), found,
						   work->expected),
				 errhint("The batch is applied again row by row to find the cause.")));
}

/*
 * Change rows of a table as whoever has to.
 */
static void
change_table(KeyedRows *work, Oid relid, List *key, List *set)
{
	Oid			owner;

	guard_require();
	PreventCommandIfReadOnly(work->command == CMD_UPDATE ? "update_rows()" :
							 "delete_rows()");
	work->rel = table_open(relid, RowExclusiveLock);
	owner = guard_keyed_owner(relid, key, set);
	if (guard_write_hook)
		guard_write_hook(relid);
	if (is_plain(work->rel))
		work->index = open_key_index(work->rel, column_set(work->rel, key),
									 RowExclusiveLock);
	if (work->index == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("rows of table \"%s\" cannot be changed without a plan",
						RelationGetRelationName(work->rel)),
				 errdetail("It has triggers, rules, generated columns or row-level security, is part of an inheritance tree, or has no unique index over the key."),
				 errhint("Use SQL.  A stream does so when it has connected again.")));
	init_fields(work, key, set);
	if (OidIsValid(owner))
		AS_OWNER(owner, change_rows(work));
	else
		change_rows(work);
	index_close(work->index, NoLock);
	table_close(work->rel, NoLock);
}

/*
 * The rows, in memory with a byte behind them.
 */
static void
take_input(KeyedRows *work, bytea *rows)
{
	initStringInfo(&work->input);
	appendBinaryStringInfo(&work->input, VARDATA_ANY(rows),
						   VARSIZE_ANY_EXHDR(rows));
}

/* ---- SQL ---- */

/*
 * bluegreen.takes_rows(target regclass, key name[]): would update_rows() and
 * delete_rows() do in this session what UPDATE and DELETE do?
 */
Datum
bluegreen_takes_rows(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	Bitmapset  *key = column_set(rel, guard_column_names(PG_GETARG_ARRAYTYPE_P(1)));
	Relation	index = is_plain(rel) ?
		open_key_index(rel, key, AccessShareLock) : NULL;
	bool		result = index != NULL;

	if (index != NULL)
		index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	PG_RETURN_BOOL(result);
}

/*
 * bluegreen.update_rows(target regclass, key name[], columns name[],
 *		rows bytea, number bigint): for each row, which has values of the key
 * and then of the columns, set the columns where the key is.  There must be so
 * many; a negative number stands for any.  Needs a session that has called
 * begin_apply(), SELECT on the key and UPDATE on the columns.  Takes
 * RowExclusiveLock on the target until the end of the transaction.  Errors: as
 * UPDATE; a table that takes no rows; another number of rows.
 */
Datum
bluegreen_update_rows(PG_FUNCTION_ARGS)
{
	KeyedRows	work = {
		.command = CMD_UPDATE,
		.expected = PG_GETARG_INT64(4)
	};

	take_input(&work, PG_GETARG_BYTEA_PP(3));
	change_table(&work, PG_GETARG_OID(0),
				 guard_column_names(PG_GETARG_ARRAYTYPE_P(1)),
				 guard_column_names(PG_GETARG_ARRAYTYPE_P(2)));
	PG_RETURN_VOID();
}

/*
 * bluegreen.delete_rows(target regclass, key name[], rows bytea,
 *		number bigint): the same for DELETE, with the privileges that it needs.
 */
Datum
bluegreen_delete_rows(PG_FUNCTION_ARGS)
{
	KeyedRows	work = {
		.command = CMD_DELETE,
		.expected = PG_GETARG_INT64(3)
	};

	take_input(&work, PG_GETARG_BYTEA_PP(2));
	change_table(&work, PG_GETARG_OID(0),
				 guard_column_names(PG_GETARG_ARRAYTYPE_P(1)), NIL);
	PG_RETURN_VOID();
}
