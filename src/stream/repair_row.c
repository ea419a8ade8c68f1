/*-------------------------------------------------------------------------
 *
 * repair_row.c
 *		A row of bluegreen.repair_row in the WAL, as a change of its mapping.
 *
 * What repair() has let through is either a row of the source, whole, which
 * goes through the transform as if it had just been inserted, or values of a
 * row of the target that has to go.  The words are those that do not mind what
 * the target has: insert or update, delete if there.  Without a key there are
 * no such words, but repair() has counted.
 *
 * Only the extension can write to that table, so what is found in it is true.
 * A logical message, which anybody may write, would not do.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/shared.h"
#include "stream/relation.h"
#include "stream/repair_row.h"
#include "stream/rowchange.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* Columns of bluegreen.repair_row. */
#define COLUMN_MAPPING		2
#define COLUMN_SOURCE_ROW	3
#define COLUMN_KEY			4
#define COLUMN_COPIES		5

/*
 * The table that rows pass through; invalid if the extension is not in this
 * database.
 */
Oid
repair_row_relid(void)
{
	Oid			schema = get_namespace_oid("bluegreen", true);

	return OidIsValid(schema) ? get_relname_relid("repair_row", schema) :
		InvalidOid;
}

static Transform *
find_transform(const DecodeState *state, int32 mapping)
{
	ListCell   *lc;

	foreach(lc, state->transforms)
	{
		Transform  *transform = lfirst(lc);

		if (transform->row->id == mapping)
			return transform;
	}
	return NULL;
}

static void
emit(DecodeState *state, Transform *transform, ChangeKind kind, int64 copies)
{
	RowChange  *row = &state->scratch;

	row->transform = transform;
	row->kind = kind;
	row->gives_way = kind == CHANGE_DELETE_IF_THERE;
	for (int64 i = 0; i < copies; i++)
		state->sink.row(state->sink.arg, row);
}

/*
 * Put the source's row into the transform's slot.  The row is of the shape that
 * the source had then.  Columns that have another type now have no value: the
 * transform does not read them, or it would be a misfit.
 */
static void
fill_slot(Transform *transform, Relation source, const bytea *bytes)
{
	TupleTableSlot *slot = transform->slot;
	TupleDesc	desc = RelationGetDescr(source);
	Size		size = VARSIZE_ANY_EXHDR(bytes);
	HeapTupleHeader header = palloc(size);
	HeapTupleData tuple = {.t_len = size,.t_data = header};
	int			natts = Max(desc->natts, transform->source_desc->natts);

	memcpy(header, VARDATA_ANY(bytes), size);
	ExecClearTuple(slot);
	slot->tts_values = palloc0_array(Datum, natts);
	slot->tts_isnull = palloc_array(bool, natts);
	memset(slot->tts_isnull, true, natts);
	heap_deform_tuple(&tuple, desc, slot->tts_values, slot->tts_isnull);
	for (int i = 0; i < Min(desc->natts, transform->source_desc->natts); i++)
		if (TupleDescAttr(desc, i)->atttypid != transform->source[i].type)
			slot->tts_isnull[i] = true;
	ExecStoreVirtualTuple(slot);
}

/*
 * Evaluate the transform over the slot.
 */
static void
write_row(DecodeState *state, Transform *transform, int64 copies)
{
	RowChange  *row = &state->scratch;
	DecodeGate *gate = &state->gate;
	TransformUser saved;
	bool		passed;

	if (gate->check != NULL &&
		!gate->check(gate->arg, transform, state->txn))
		return;
	transform_enter(transform, &saved);
	state->evaluating = transform;
	if (state->name_rows)
		change_describe_source(state->row_name, transform);
	passed = transform_filter(transform);
	if (passed)
	{
		transform_row(transform, NULL, row->values, row->isnull, row->missing);
		transform_check_key(transform, row->isnull);
	}
	state->evaluating = NULL;
	if (passed)
		emit(state, transform, transform->nkeys == 0 ? CHANGE_INSERT :
			 transform->row->on_write == ON_WRITE_PATCH ? CHANGE_PATCH :
			 CHANGE_UPSERT, copies);
	transform_leave(&saved);
}

/*
 * A whole row of the source, which may have been altered since the transform
 * was compiled (compare transform_change()).
 */
static void
source_row(DecodeState *state, Transform *transform, const bytea *bytes,
		   int64 copies)
{
	Relation	source = RelationIdGetRelation(transform->row->source);
	Datum	   *values = transform->slot->tts_values;
	bool	   *nulls = transform->slot->tts_isnull;
	Misfit		misfit;

	if (!RelationIsValid(source))
		elog(ERROR, "could not open relation with OID %u",
			 transform->row->source);
	misfit = relation_find_misfit(transform, source);
	if (misfit.column == NULL)
	{
		fill_slot(transform, source, bytes);
		write_row(state, transform, copies);
		ExecClearTuple(transform->slot);
		transform->slot->tts_values = values;
		transform->slot->tts_isnull = nulls;
	}
	else if (!copy_sees(state, transform))
	{
		state->evaluating = transform;
		resetStringInfo(state->row_name);
		relation_refuse(transform, &misfit);
	}
	RelationClose(source);
}

/*
 * A value of a column from its text.
 */
static void
read_value(RowChange *row, const TransformColumn *column, int i, Datum value,
		   bool isnull)
{
	Oid			function;
	Oid			ioparam;

	row->isnull[i] = isnull;
	if (isnull)
		return;
	getTypeInputInfo(column->type, &function, &ioparam);
	row->values[i] = OidInputFunctionCall(function, TextDatumGetCString(value),
										  ioparam, column->typmod);
}

/*
 * Take the row with these values from the target.
 */
static void
delete_row(DecodeState *state, Transform *transform, ArrayType *array,
		   int64 copies)
{
	RowChange  *row = &state->scratch;
	bool		keyless = transform->nkeys == 0;
	TransformUser saved;
	Datum	   *texts;
	bool	   *nulls;
	int			n;

	/* a table that is being copied is emptied or will be copied anyway */
	if (state->gate.check != NULL &&
		table_shared_get(transform->row->id,
						 transform->row->deployment)->state != TABLE_STREAMING)
		return;
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls,
					  &n);
	if (n != (keyless ? transform->ncolumns : transform->nkeys))
		return;
	memset(row->missing, 0, transform->ncolumns * sizeof(bool));
	transform_enter_owner(transform, &saved);
	for (int i = 0; i < n; i++)
	{
		int			column = keyless ? i : transform->keys[i];

		read_value(row, &transform->columns[column], column, texts[i],
				   nulls[i]);
	}
	transform_leave(&saved);
	emit(state, transform, keyless ? CHANGE_DELETE : CHANGE_DELETE_IF_THERE,
		 copies);
}

/*
 * A change of bluegreen.repair_row, in the change's memory context.
 */
void
repair_row(DecodeState *state, Relation relation, ReorderBufferChange *change)
{
	TupleDesc	desc = RelationGetDescr(relation);
	HeapTuple	tuple = change_new_tuple(change);
	Transform  *transform;
	bool		isnull;
	Datum		bytes;
	int64		copies;

	if (tuple == NULL)
		return;					/* it has passed */
	transform = find_transform(state,
							   DatumGetInt32(heap_getattr(tuple, COLUMN_MAPPING,
														  desc, &isnull)));
	if (transform == NULL)
		return;
	copies = DatumGetInt64(heap_getattr(tuple, COLUMN_COPIES, desc, &isnull));
	bytes = heap_getattr(tuple, COLUMN_SOURCE_ROW, desc, &isnull);
	if (isnull)
		delete_row(state, transform,
				   DatumGetArrayTypeP(heap_getattr(tuple, COLUMN_KEY, desc,
												   &isnull)), copies);
	else
		source_row(state, transform, DatumGetByteaPP(bytes), copies);
}
