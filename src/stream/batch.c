/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Fold row changes by key to one net change each.
 *
 * A batch holds whole source transactions (or, of a giant one, a part) as a
 * set of rows per mapping, hashed by the target's key with the key type's own
 * equality: 1.0 and 1.00 are one numeric key.  What a new change makes of what
 * is known of its key stands in one table, fold_rules.  Where the rules have
 * no answer, or where folding would hide an order that matters, the batch is
 * cut: what is there is sent (in the same target transaction), and the change
 * starts afresh.
 *
 * Order between mappings matters only where two of them write the same target
 * table.  Their keys are remembered together, by hash, and a key that arrives
 * through a second mapping cuts the batch; a false match costs a cut.
 *
 * Mappings without a key fold in another way, by whole rows: see keyless.c.
 *
 * Values are kept as the bytes that will go over the wire, so that encoding
 * happens once and nothing points into the decoder's memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "compat.h"
#include "port/pg_bswap.h"
#include "stream/batch.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"

#define FOLD_CUT	ROW_KINDS	/* no rule: cut the batch */
#define INITIAL_BUCKETS 64

/* What a change is when nothing is known of its key. */
static const RowKind first_kind[] = {
	[CHANGE_INSERT] = ROW_INSERT,
	[CHANGE_UPDATE] = ROW_UPDATE,
	[CHANGE_UPSERT] = ROW_UPSERT,
	[CHANGE_PATCH] = ROW_PATCH,
	[CHANGE_DELETE] = ROW_DELETE,
	[CHANGE_DELETE_IF_THERE] = ROW_DELETE_IF_THERE,
	[CHANGE_MOVE] = FOLD_CUT
};

#define RULES(insert, update, upsert, patch, delete, delete_if) \
	{insert, update, upsert, patch, delete, delete_if, FOLD_CUT}

/*
 * fold_rules[what is known][what comes]: what is known then.
 */
static const RowKind fold_rules[ROW_KINDS][CHANGE_MOVE + 1] = {
	/* INSERT, UPDATE, UPSERT, PATCH, DELETE, DELETE_IF_THERE */
	[ROW_NONE] = RULES(ROW_INSERT, FOLD_CUT, ROW_INSERT, ROW_NONE,
					   FOLD_CUT, ROW_NONE),
	[ROW_INSERT] = RULES(FOLD_CUT, ROW_INSERT, ROW_INSERT, ROW_INSERT,
						 ROW_NONE, ROW_NONE),
	[ROW_UPDATE] = RULES(FOLD_CUT, ROW_UPDATE, ROW_UPSERT, ROW_UPDATE,
						 ROW_DELETE, ROW_DELETE),
	[ROW_UPSERT] = RULES(ROW_UPSERT, ROW_UPSERT, ROW_UPSERT, ROW_UPSERT,
						 ROW_DELETE_IF_THERE, ROW_DELETE_IF_THERE),
	[ROW_PATCH] = RULES(FOLD_CUT, FOLD_CUT, ROW_UPSERT, ROW_PATCH,
						ROW_DELETE_IF_THERE, ROW_DELETE_IF_THERE),
	[ROW_DELETE] = RULES(ROW_REPLACE, FOLD_CUT, ROW_REPLACE, ROW_DELETE,
						 FOLD_CUT, ROW_DELETE),
	[ROW_DELETE_IF_THERE] = RULES(ROW_REPLACE_IF_THERE, FOLD_CUT,
								  ROW_RECREATE, ROW_DELETE_IF_THERE,
								  FOLD_CUT, ROW_DELETE_IF_THERE),
	[ROW_REPLACE] = RULES(FOLD_CUT, ROW_REPLACE, ROW_REPLACE, ROW_REPLACE,
						  ROW_DELETE, ROW_DELETE),
	[ROW_REPLACE_IF_THERE] = RULES(FOLD_CUT, ROW_REPLACE_IF_THERE,
								   ROW_REPLACE_IF_THERE, ROW_REPLACE_IF_THERE,
								   ROW_DELETE_IF_THERE, ROW_DELETE_IF_THERE),
	[ROW_RECREATE] = RULES(ROW_RECREATE, ROW_RECREATE, ROW_RECREATE,
						   ROW_RECREATE, ROW_DELETE_IF_THERE,
						   ROW_DELETE_IF_THERE),
};

/*
 * Make an empty batch for a stream's transforms, in CurrentMemoryContext.
 */
Batch *
batch_create(List *transforms)
{
	Batch	   *batch = palloc0_object(Batch);
	ListCell   *lc;

	batch->context = AllocSetContextCreate(CurrentMemoryContext,
										   "pg_bluegreen batch",
										   ALLOCSET_DEFAULT_SIZES);
	batch->tables = palloc0_array(BatchTable, Max(list_length(transforms), 1));
	foreach(lc, transforms)
	{
		batch->tables[batch->ntables++].transform = lfirst(lc);
	}
	return batch;
}

/*
 * Forget all rows and give their memory back.
 */
void
batch_reset(Batch *batch)
{
	for (int i = 0; i < batch->ntables; i++)
	{
		Transform  *transform = batch->tables[i].transform;

		memset(&batch->tables[i], 0, sizeof(BatchTable));
		batch->tables[i].transform = transform;
	}
	batch->rows = 0;
	batch->bytes = 0;
	batch->shared_keys = NULL;
	batch->nshared = 0;
	batch->shared_size = 0;
	MemoryContextReset(batch->context);
}

/*
 * The rows of a transform.
 */
BatchTable *
batch_table(Batch *batch, const Transform *transform)
{
	BatchTable *table = &batch->tables[transform->number];

	Assert(table->transform == transform);
	return table;
}

/*
 * Fixed-width values that their send functions only swap to network order.
 */
static bool
encode_fixed(Oid send, Datum value, WireValue *result)
{
	uint64		bytes8;
	uint32		bytes4;
	uint16		bytes2;

	switch (send)
	{
		case F_INT8SEND:
		case F_TIMESTAMP_SEND:
		case F_TIMESTAMPTZ_SEND:
			bytes8 = pg_hton64((uint64) DatumGetInt64(value));
			result->len = sizeof(bytes8);
			result->data = palloc(sizeof(bytes8));
			memcpy(result->data, &bytes8, sizeof(bytes8));
			return true;
		case F_INT4SEND:
		case F_DATE_SEND:
			bytes4 = pg_hton32((uint32) DatumGetInt32(value));
			result->len = sizeof(bytes4);
			result->data = palloc(sizeof(bytes4));
			memcpy(result->data, &bytes4, sizeof(bytes4));
			return true;
		case F_INT2SEND:
			bytes2 = pg_hton16((uint16) DatumGetInt16(value));
			result->len = sizeof(bytes2);
			result->data = palloc(sizeof(bytes2));
			memcpy(result->data, &bytes2, sizeof(bytes2));
			return true;
		default:
			return false;
	}
}

/*
 * Values whose binary form is their content: both ends of the connection use
 * this database's encoding.
 */
static bool
encode_plain(Oid send, Datum value, WireValue *result)
{
	struct varlena *content;

	if (send != F_TEXTSEND && send != F_VARCHARSEND && send != F_BPCHARSEND &&
		send != F_BYTEASEND)
		return false;
	content = PG_DETOAST_DATUM_PACKED(value);
	result->len = VARSIZE_ANY_EXHDR(content);
	result->data = palloc(result->len + 1);
	memcpy(result->data, VARDATA_ANY(content), result->len);
	if ((Pointer) content != DatumGetPointer(value))
		pfree(content);
	return true;
}

/*
 * Turn a column's value into the bytes that go into a parameter: its binary
 * form, or the text form of what unnest() could not carry.  Result in
 * CurrentMemoryContext.
 */
void
wire_encode(TransformColumn *column, Datum value, bool isnull,
			WireValue *result)
{
	bytea	   *bytes;

	result->len = 0;
	result->data = NULL;
	if (isnull)
		return;
	if (column->def->wire != WIRE_BINARY)
	{
		result->data = OutputFunctionCall(&column->output, value);
		result->len = strlen(result->data);
		return;
	}
	if (encode_fixed(column->send.fn_oid, value, result))
		return;
	if (encode_plain(column->send.fn_oid, value, result))
		return;
	/* a send function's buffer is larger than what it holds: keep a copy */
	bytes = SendFunctionCall(&column->send, value);
	result->len = VARSIZE(bytes) - VARHDRSZ;
	result->data = palloc(result->len + 1);
	memcpy(result->data, VARDATA(bytes), result->len);
	pfree(bytes);
}

static uint32
hash_key(Transform *transform, const Datum *values)
{
	uint32		hash = 0;

	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = &transform->columns[transform->keys[k]];
		Datum		value = values[transform->keys[k]];

		hash = hash_combine(hash,
							DatumGetUInt32(FunctionCall1Coll(&column->hash,
															 column->collation,
															 value)));
	}
	return hash;
}

static bool
row_has_key(Transform *transform, const BatchRow *row, const Datum *values)
{
	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = &transform->columns[transform->keys[k]];

		if (!DatumGetBool(FunctionCall2Coll(&column->equal, column->collation,
											row->key[k],
											values[transform->keys[k]])))
			return false;
	}
	return true;
}

static BatchRow *
find_row(BatchTable *table, const Datum *values, uint32 hash)
{
	BatchRow   *row;

	if (table->nbuckets == 0)
		return NULL;
	row = table->buckets[hash & (table->nbuckets - 1)];
	while (row != NULL &&
		   (row->hash != hash || !row_has_key(table->transform, row, values)))
		row = row->chain;
	return row;
}

/*
 * Double the buckets when there are as many rows as buckets.
 */
static void
grow_buckets(BatchTable *table)
{
	if (table->nrows < table->nbuckets)
		return;
	table->nbuckets = Max(table->nbuckets * 2, INITIAL_BUCKETS);
	table->buckets = palloc0_array(BatchRow *, table->nbuckets);
	for (BatchRow *row = table->first; row != NULL; row = row->next)
	{
		BatchRow  **bucket = &table->buckets[row->hash & (table->nbuckets - 1)];

		row->chain = *bucket;
		*bucket = row;
	}
}

static void
copy_key(Transform *transform, BatchRow *row, const Datum *values)
{
	row->key = palloc_array(Datum, transform->nkeys);
	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = &transform->columns[transform->keys[k]];
		Datum		value = values[transform->keys[k]];

		/* a varlena may still point into the decoder's memory */
		if (column->typlen == -1)
			row->key[k] = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
		else
			row->key[k] = datumCopy(value, column->typbyval, column->typlen);
	}
}

static BatchRow *
new_row(BatchTable *table, const Datum *values, uint32 hash)
{
	BatchRow   *row = palloc0_object(BatchRow);
	BatchRow  **bucket;

	grow_buckets(table);
	row->hash = hash;
	copy_key(table->transform, row, values);
	row->values = palloc0_array(WireValue, table->transform->ncolumns);
	bucket = &table->buckets[hash & (table->nbuckets - 1)];
	row->chain = *bucket;
	*bucket = row;
	if (table->last)
		table->last->next = row;
	else
		table->first = row;
	table->last = row;
	table->nrows++;
	return row;
}

/*
 * Has this key come through another mapping of the same target?  Remembers it
 * either way.  Open addressing over (hash of table and key, mapping).
 */
static bool
shared_key_clashes(Batch *batch, const Transform *transform, uint32 hash)
{
	uint32		mapping = (uint32) transform->row->id;
	uint64		mine;
	uint32		i;

	hash = hash_combine(hash, string_hash(transform->row->target_table,
										  NAMEDATALEN));
	mine = ((uint64) hash << 32) | mapping;
	if (batch->nshared * 2 >= batch->shared_size)
	{
		uint64	   *old = batch->shared_keys;
		uint32		old_size = batch->shared_size;

		batch->shared_size = Max(old_size * 2, INITIAL_BUCKETS);
		batch->shared_keys = palloc0_array(uint64, batch->shared_size);
		for (uint32 j = 0; j < old_size; j++)
			if (old[j] != 0)
			{
				i = (uint32) (old[j] >> 32) & (batch->shared_size - 1);
				while (batch->shared_keys[i] != 0)
					i = (i + 1) & (batch->shared_size - 1);
				batch->shared_keys[i] = old[j];
			}
	}
	i = hash & (batch->shared_size - 1);
	while (batch->shared_keys[i] != 0)
	{
		if ((uint32) (batch->shared_keys[i] >> 32) == hash)
			return batch->shared_keys[i] != mine;
		i = (i + 1) & (batch->shared_size - 1);
	}
	batch->shared_keys[i] = mine;
	batch->nshared++;
	return false;
}

static bool
is_delete(ChangeKind kind)
{
	return kind == CHANGE_DELETE || kind == CHANGE_DELETE_IF_THERE;
}

/*
 * Put the change's values into the row.  What the change does not carry stays
 * as the row has it, and is missing if the row has nothing either.
 */
static void
take_values(Batch *batch, Transform *transform, BatchRow *row,
			const RowChange *change, bool is_new)
{
	for (int i = 0; i < transform->ncolumns; i++)
	{
		TransformColumn *column = &transform->columns[i];

		if (is_delete(change->kind) && !column->def->is_key)
			continue;
		if (!is_delete(change->kind) && change->missing[i])
		{
			if (is_new)
			{
				if (row->missing == NULL)
					row->missing = palloc0_array(bool, transform->ncolumns);
				row->missing[i] = true;
			}
			continue;
		}
		wire_encode(column, change->values[i], change->isnull[i],
					&row->values[i]);
		if (row->missing)
			row->missing[i] = false;
		batch->bytes += row->values[i].len + sizeof(int32);
	}
}

/*
 * Add a change.  BATCH_CUT means that nothing was added: the caller sends the
 * batch, resets it, and adds the change again (a move it sends by itself).
 */
BatchResult
batch_add(Batch *batch, const RowChange *change)
{
	Transform  *transform = change->transform;
	BatchTable *table = batch_table(batch, transform);
	uint32		hash;
	MemoryContext old;
	BatchRow   *row;
	RowKind		kind;
	bool		fresh;

	if (transform->nkeys == 0)
	{
		keyless_add(batch, table, change);
		return BATCH_ADDED;
	}
	hash = hash_key(transform, change->values);
	row = find_row(table, change->values, hash);
	kind = row ? fold_rules[row->kind][change->kind] : first_kind[change->kind];
	if (kind == FOLD_CUT)
		return BATCH_CUT;

	old = MemoryContextSwitchTo(batch->context);
	if (transform->row->target_shared &&
		shared_key_clashes(batch, transform, hash))
	{
		MemoryContextSwitchTo(old);
		return BATCH_CUT;
	}
	/* nothing of a row that was deleted may show through in a later one */
	fresh = row == NULL || row->kind == ROW_NONE || row->kind == ROW_DELETE ||
		row->kind == ROW_DELETE_IF_THERE;
	if (row == NULL)
	{
		row = new_row(table, change->values, hash);
		batch->rows++;
	}
	row->kind = kind;
	if (kind != ROW_NONE)
		take_values(batch, transform, row, change, fresh);
	MemoryContextSwitchTo(old);
	return BATCH_ADDED;
}

/*
 * Forget what is known of a key, given the values of its row.
 */
void
batch_forget(Batch *batch, const Transform *transform, const Datum *values)
{
	BatchTable *table = batch_table(batch, transform);
	BatchRow   *row = find_row(table, values,
							   hash_key(table->transform, values));

	if (row != NULL)
		row->kind = ROW_NONE;
}

static int
compare_rows(const void *a, const void *b, void *arg)
{
	const BatchRow *x = *(BatchRow *const *) a;
	const BatchRow *y = *(BatchRow *const *) b;
	Transform  *transform = arg;

	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = &transform->columns[transform->keys[k]];
		int			order;

		if (!OidIsValid(column->compare.fn_oid))
			continue;
		order = DatumGetInt32(FunctionCall2Coll(&column->compare,
												column->collation,
												x->key[k], y->key[k]));
		if (order != 0)
			return order;
	}
	return 0;
}

/*
 * The table's rows by key, so that the target walks its index once and locks
 * rows in the same order in every batch.  nrows entries in
 * CurrentMemoryContext.
 */
BatchRow  **
batch_sorted_rows(BatchTable *table)
{
	BatchRow  **rows = palloc_array(BatchRow *, Max(table->nrows, 1));
	int			n = 0;

	for (BatchRow *row = table->first; row != NULL; row = row->next)
		rows[n++] = row;
	qsort_arg(rows, n, sizeof(BatchRow *), compare_rows, table->transform);
	return rows;
}
