/*-------------------------------------------------------------------------
 *
 * rowchange.c
 *		From the old and new row of a change to what happens on the target.
 *
 * A change has up to two sides: the row that was there before (an UPDATE that
 * leaves the replica identity alone has the same key on both) and the row that
 * is there after it.  Each side is evaluated to a Side: did it pass the filter
 * (yes, no, or unknown, when the filter reads columns that the change does not
 * carry), what is its key on the target, and does the stream apply it at all
 * (while the table is copied, that is decided for each side by its own chunk).
 * A side that the stream does not apply is not evaluated: the change may be
 * older than a function that the transform calls.
 *
 *	filter before / after	same key						other key
 *	yes      yes			update							move, or delete + insert
 *	yes      no				delete							delete
 *	no       yes			insert							insert
 *	unknown  yes			upsert							delete if there + upsert
 *	unknown  no				delete if there					delete if there
 *
 * The mapping's on_write and on_delete then choose the words: merge upserts,
 * patch only updates, a delete may be ignored or be a write of the old row.
 *
 * Without a key, both sides are evaluated in full: the old row as it was is
 * what the target's row is found by.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "stream/rowchange.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

typedef enum Passed
{
	PASSED_NO,
	PASSED_YES,
	PASSED_UNKNOWN
} Passed;

/* One side of a change, evaluated by one transform. */
typedef struct Side
{
	Passed		passed;
	bool		admitted;		/* by the gate */
	RowChange  *row;			/* key set if passed != NO; all columns if the
								 * side can be written */
	bool		incomplete;		/* a column is missing */
} Side;

/* What row_change() works on. */
typedef struct ChangeContext
{
	DecodeState *state;
	RelationEntry *entry;
	Relation	relation;
	RelationTransform *bound;
	Transform  *transform;
	bool		has_old;
	bool		has_new;
	Bitmapset  *absent;			/* source attributes that the new row lacks */
} ChangeContext;

/*
 * From here on an error is one of the row in the transform's slot, until
 * end_evaluation().  The row is named if that is asked for: it costs time.
 */
static void
begin_evaluation(ChangeContext *context)
{
	DecodeState *state = context->state;

	state->evaluating = context->transform;
	if (state->name_rows)
		change_describe_source(state->row_name, context->transform);
}

static void
end_evaluation(ChangeContext *context)
{
	context->state->evaluating = NULL;
}

static void
emit(ChangeContext *context, ChangeKind kind, RowChange *row)
{
	ChangeSink *sink = &context->state->sink;

	row->transform = context->transform;
	row->kind = kind;
	row->gives_way = false;
	sink->row(sink->arg, row);
}

/*
 * Put a deformed tuple (NULL: one of NULLs) into the transform's slot, in the
 * source's column order.  Where that is the tuple's own, the slot takes its
 * arrays.
 */
static void
fill_slot(const RelationTransform *bound, const DeformedTuple *tuple)
{
	TupleTableSlot *slot = bound->transform->slot;
	int			n = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	if (tuple != NULL && bound->attrmap == NULL)
	{
		slot->tts_values = tuple->values;
		slot->tts_isnull = tuple->isnull;
		ExecStoreVirtualTuple(slot);
		return;
	}
	slot->tts_values = bound->values;
	slot->tts_isnull = bound->isnull;
	for (int i = 0; i < n; i++)
	{
		bool		there = tuple != NULL && bound->attrmap[i] > 0;

		slot->tts_values[i] = there ?
			tuple->values[bound->attrmap[i] - 1] : (Datum) 0;
		slot->tts_isnull[i] = there ?
			tuple->isnull[bound->attrmap[i] - 1] : true;
	}
	ExecStoreVirtualTuple(slot);
}

/*
 * Values of the new row that an UPDATE left out because it did not touch them:
 * pointers to TOAST tables.  Under REPLICA IDENTITY FULL the old row has them;
 * otherwise they are absent.
 */
static void
complete_new_row(ChangeContext *context)
{
	RelationEntry *entry = context->entry;
	TupleDesc	desc = RelationGetDescr(context->relation);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attlen != -1 || att->attisdropped || entry->new.isnull[i] ||
			!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(entry->new.values[i])))
			continue;
		if (context->has_old && !entry->old.isnull[i])
			entry->new.values[i] = entry->old.values[i];
		else
		{
			entry->new.isnull[i] = true;
			context->absent = bms_add_member(context->absent, i + 1);
		}
	}
}

/*
 * Absent attributes of the leaf as attributes of the transform's source.
 */
static Bitmapset *
absent_in_source(const ChangeContext *context)
{
	const AttrNumber *map = context->bound->attrmap;
	Bitmapset  *result = NULL;

	if (map == NULL || context->absent == NULL)
		return context->absent;
	for (int i = 0; i < context->transform->source_desc->natts; i++)
		if (map[i] > 0 && bms_is_member(map[i], context->absent))
			result = bms_add_member(result, i + 1);
	return result;
}

/*
 * Will the copy of the table have what the current transaction did?
 */
bool
copy_sees(DecodeState *state, Transform *transform)
{
	DecodeGate *gate = &state->gate;

	return gate->sees != NULL && gate->sees(gate->arg, transform, state->txn);
}

static bool
admitted(ChangeContext *context)
{
	DecodeGate *gate = &context->state->gate;

	return gate->check == NULL ||
		gate->check(gate->arg, context->transform, context->state->txn);
}

/*
 * Can this side of a change be evaluated in full?  The old row only if the
 * change carries it all, or if nothing else is read.
 */
static bool
old_row_is_known(const RelationTransform *bound)
{
	return bound->identity_full ||
		bms_is_subset(bound->transform->reads, bound->identity);
}

static void
evaluate_old(ChangeContext *context, Side *side)
{
	Transform  *transform = context->transform;

	fill_slot(context->bound, &context->entry->old);
	side->admitted = admitted(context);
	if (!side->admitted)
		return;
	begin_evaluation(context);
	if (transform->filter == NULL)
		side->passed = PASSED_YES;
	else if (context->bound->filter_by_identity)
		side->passed = transform_filter(transform) ? PASSED_YES : PASSED_NO;
	else
		side->passed = PASSED_UNKNOWN;
	if (side->passed != PASSED_NO)
	{
		if (transform->row->on_delete == ON_DELETE_WRITE &&
			old_row_is_known(context->bound))
			transform_row(transform, NULL, side->row->values,
						  side->row->isnull, side->row->missing);
		transform_key(transform, side->row->values, side->row->isnull);
	}
	end_evaluation(context);
}

static void
count_filtered(ChangeContext *context, const Side *side)
{
	ChangeSink *sink = &context->state->sink;

	if (side->admitted && sink->filtered != NULL)
		sink->filtered(sink->arg, context->transform);
}

static void
evaluate_new(ChangeContext *context, Side *side)
{
	Transform  *transform = context->transform;

	fill_slot(context->bound, &context->entry->new);
	side->admitted = admitted(context);
	if (!side->admitted)
		return;
	begin_evaluation(context);
	side->passed = transform_filter(transform) ? PASSED_YES : PASSED_NO;
	side->incomplete = false;
	if (side->passed == PASSED_NO)
	{
		end_evaluation(context);
		count_filtered(context, side);
		return;
	}
	side->incomplete = transform_row(transform, absent_in_source(context),
									 side->row->values, side->row->isnull,
									 side->row->missing);
	transform_check_key(transform, side->row->isnull);
	end_evaluation(context);
}

/*
 * An UPDATE that leaves the identity alone: the old side has the new side's
 * key.  Needs the slot to hold the new row.
 */
static void
old_from_new(ChangeContext *context, const Side *new, Side *old)
{
	Transform  *transform = context->transform;

	old->admitted = new->admitted;
	if (!new->admitted)
		return;
	if (transform->filter == NULL)
		old->passed = PASSED_YES;
	else
		old->passed = context->bound->filter_by_identity ? new->passed :
			PASSED_UNKNOWN;
	if (new->passed == PASSED_NO && old->passed != PASSED_NO)
	{
		begin_evaluation(context);
		transform_key(transform, old->row->values, old->row->isnull);
		end_evaluation(context);
	}
}

/*
 * The row goes from the target, in the mapping's words.
 */
static void
emit_delete(ChangeContext *context, Side *old)
{
	MappingRow *row = context->transform->row;

	switch (row->on_delete)
	{
		case ON_DELETE_IGNORE:
			break;
		case ON_DELETE_DELETE:
			emit(context, old->passed == PASSED_YES &&
				 row->on_write == ON_WRITE_MIRROR ?
				 CHANGE_DELETE : CHANGE_DELETE_IF_THERE, old->row);
			break;
		case ON_DELETE_WRITE:
			memset(old->row->missing, 0, context->transform->ncolumns);
			emit(context, row->on_write == ON_WRITE_PATCH ?
				 CHANGE_PATCH : CHANGE_UPSERT, old->row);
			break;
	}
}

/*
 * The row is new to the target, in the mapping's words.
 */
static void
emit_insert(ChangeContext *context, Side *old, Side *new)
{
	MappingRow *row = context->transform->row;

	if (row->on_write == ON_WRITE_PATCH)
		emit(context, CHANGE_PATCH, new->row);
	else if (new->incomplete)
		context->state->gate.recopy(context->state->gate.arg,
									context->transform, context->state->txn);
	else if (row->on_write == ON_WRITE_MERGE ||
			 row->on_delete != ON_DELETE_DELETE ||
			 (old != NULL && old->passed == PASSED_UNKNOWN))
		emit(context, CHANGE_UPSERT, new->row);
	else
		emit(context, CHANGE_INSERT, new->row);
}

/*
 * Old and new row have the same key on the target.
 */
static void
emit_same_key(ChangeContext *context, Side *old, Side *new)
{
	MappingRow *row = context->transform->row;

	if (!new->admitted)
		return;
	if (new->passed == PASSED_NO)
	{
		if (old->passed != PASSED_NO)
			emit_delete(context, old);
	}
	else if (row->on_write == ON_WRITE_MIRROR && old->passed == PASSED_YES)
		emit(context, CHANGE_UPDATE, new->row);
	else
		emit_insert(context, old, new);
}

/*
 * The key changed on the target.  The row is moved where something must be
 * carried along from the target's row; else it is a delete and an insert,
 * which fold into a batch.
 */
static void
emit_other_key(ChangeContext *context, Side *old, Side *new)
{
	MappingRow *row = context->transform->row;
	bool		gone = old->passed != PASSED_NO && old->admitted;
	bool		came = new->passed == PASSED_YES && new->admitted;

	if (gone && came && old->passed == PASSED_YES &&
		row->on_write == ON_WRITE_MIRROR &&
		row->on_delete == ON_DELETE_DELETE && row->lookup == NULL &&
		(new->incomplete || row->has_other_columns || row->target_shared))
	{
		new->row->old_values = old->row->values;
		new->row->old_isnull = old->row->isnull;
		emit(context, CHANGE_MOVE, new->row);
		return;
	}
	if (gone)
		emit_delete(context, old);
	if (came)
		emit_insert(context, old, new);
}

static void
emit_update(ChangeContext *context)
{
	Side		old = {.row = &context->state->old_scratch};
	Side		new = {.row = &context->state->scratch};

	if (context->has_old)
		evaluate_old(context, &old);
	evaluate_new(context, &new);
	if (!context->has_old)
		old_from_new(context, &new, &old);

	if (context->has_old && old.passed != PASSED_NO &&
		new.passed == PASSED_YES &&
		!transform_finds_equal(context->transform, old.row->values,
							   old.row->isnull, new.row->values,
							   new.row->isnull))
		emit_other_key(context, &old, &new);
	else if (context->has_old &&
			 (old.passed == PASSED_NO || new.passed == PASSED_NO))
	{
		/* at most one side is on the target; each has its own chunk */
		if (old.passed != PASSED_NO && old.admitted)
			emit_delete(context, &old);
		if (new.passed == PASSED_YES && new.admitted)
			emit_insert(context, &old, &new);
	}
	else
		emit_same_key(context, &old, &new);
}

static void
emit_one_side(ChangeContext *context)
{
	Side		side = {0};

	if (context->has_new)
	{
		side.row = &context->state->scratch;
		evaluate_new(context, &side);
		if (side.admitted && side.passed == PASSED_YES)
			emit_insert(context, NULL, &side);
	}
	else
	{
		side.row = &context->state->old_scratch;
		evaluate_old(context, &side);
		if (side.admitted && side.passed != PASSED_NO)
			emit_delete(context, &side);
	}
}

/*
 * There is no publication that would have refused the UPDATE or DELETE on the
 * source; one that does not say which row it changed stops the stream here.
 */
static void
check_identity(ChangeContext *context, bool is_delete)
{
	if (context->bound->identity_ok && (context->has_old || !is_delete))
		return;
	fill_slot(context->bound, context->has_new ? &context->entry->new :
			  context->has_old ? &context->entry->old : NULL);
	begin_evaluation(context);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s of table \"%s\" does not carry the replica identity that its mapping to \"%s\" was compiled for",
					is_delete ? "DELETE" : "UPDATE",
					RelationGetRelationName(context->relation),
					mapping_target_name(context->transform->row)),
			 errhint("Restore the table's REPLICA IDENTITY, repair the row on the target, then leave this transaction out with bluegreen.skip().")));
}

/*
 * The source was altered.  Rows that the copy of the table has seen need not
 * be evaluated; of others nobody could say what they become.
 */
static void
refuse_misfit(ChangeContext *context)
{
	context->state->evaluating = context->transform;
	resetStringInfo(context->state->row_name);
	relation_refuse(context->transform, &context->bound->misfit);
}

/*
 * Without a key, a change that the stream has to apply must carry the whole
 * old row.
 */
static void
check_whole_row(ChangeContext *context, ReorderBufferChange *change)
{
	Relation	relation = context->relation;
	bool		is_delete = change->action == REORDER_BUFFER_CHANGE_DELETE;

	if (change->action == REORDER_BUFFER_CHANGE_INSERT ||
		(context->bound->identity_full && context->has_old))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s of table \"%s\" cannot be applied to \"%s\", which is mapped without a key",
					is_delete ? "DELETE" : "UPDATE",
					RelationGetRelationName(relation),
					mapping_target_name(context->transform->row)),
			 errdetail("The table has not REPLICA IDENTITY FULL, so the change does not say which row it changed."),
			 errhint("Change the row on the target by hand, then leave this transaction out with bluegreen.skip(). To have such changes carried over from now on: ALTER TABLE %s REPLICA IDENTITY FULL;",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
												RelationGetRelationName(relation)))));
}

/*
 * One side in full: true if it passes the filter.
 */
static bool
evaluate_keyless(ChangeContext *context, const DeformedTuple *tuple,
				 RowChange *row)
{
	Transform  *transform = context->transform;
	bool		passed;

	fill_slot(context->bound, tuple);
	begin_evaluation(context);
	passed = transform_filter(transform);
	if (passed)
		transform_row(transform, NULL, row->values, row->isnull, row->missing);
	end_evaluation(context);
	return passed;
}

/*
 * A change of a mapping without a key.  Its table is one chunk, so the gate
 * has one answer for both sides.
 */
static void
keyless_change(ChangeContext *context, ReorderBufferChange *change)
{
	RelationEntry *entry = context->entry;
	RowChange  *old = &context->state->old_scratch;
	RowChange  *new = &context->state->scratch;
	Side		side = {.admitted = true};
	bool		was;
	bool		is;

	if (!admitted(context))
		return;
	check_whole_row(context, change);
	was = context->has_old &&
		evaluate_keyless(context, &entry->old, old);
	is = context->has_new &&
		evaluate_keyless(context, &entry->new, new);
	if (context->has_new && !is)
		count_filtered(context, &side);
	if (was && is)
	{
		new->old_values = old->values;
		new->old_isnull = old->isnull;
		emit(context, CHANGE_UPDATE, new);
	}
	else if (was)
		emit(context, CHANGE_DELETE, old);
	else if (is)
		emit(context, CHANGE_INSERT, new);
}

static void
transform_change(ChangeContext *context, ReorderBufferChange *change)
{
	bool		is_delete = change->action == REORDER_BUFFER_CHANGE_DELETE;
	bool		keyless = context->transform->nkeys == 0;
	TransformUser saved;

	if (context->bound->misfit.column != NULL)
	{
		if (!copy_sees(context->state, context->transform))
			refuse_misfit(context);
		return;
	}
	if (change->action != REORDER_BUFFER_CHANGE_INSERT && !keyless)
		check_identity(context, is_delete);
	transform_enter(context->transform, &saved);
	if (keyless)
		keyless_change(context, change);
	else if (change->action == REORDER_BUFFER_CHANGE_UPDATE)
		emit_update(context);
	else
		emit_one_side(context);
	transform_leave(&saved);
}

/*
 * Deform the tuples of a change into the entry, and run each transform over
 * them.  Called in the change's own memory context.
 */
void
row_change(DecodeState *state, RelationEntry *entry, Relation relation,
		   ReorderBufferChange *change)
{
	TupleDesc	desc = RelationGetDescr(relation);
	HeapTuple	new = change_new_tuple(change);
	HeapTuple	old = change_old_tuple(change);
	ChangeContext context = {
		.state = state,
		.entry = entry,
		.relation = relation,
		.has_old = old != NULL,
		.has_new = new != NULL
	};

	if (old)
		heap_deform_tuple(old, desc, entry->old.values, entry->old.isnull);
	if (new)
	{
		heap_deform_tuple(new, desc, entry->new.values, entry->new.isnull);
		if (HeapTupleHasExternal(new))
			complete_new_row(&context);
	}
	for (int i = 0; i < entry->ntransforms; i++)
	{
		context.bound = &entry->transforms[i];
		context.transform = context.bound->transform;
		transform_change(&context, change);
	}
}
