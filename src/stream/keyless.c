/*-------------------------------------------------------------------------
 *
 * keyless.c
 *		Fold the changes of a mapping without a key.
 *
 * Such a target is a multiset of rows.  A change says which row it takes away
 * (the old row, as it was) and which it brings, and any row of the target that
 * looks like the old one will do.  What a batch holds are the ways of rows:
 *
 *		ROW_INSERT		came in this batch
 *		ROW_UPDATE		was on the target before (old), and changed
 *		ROW_DELETE		was on the target before, and went
 *		ROW_NONE		came and went
 *
 * A change whose old row is what a row of the batch is now goes on with that
 * one; else its old row was on the target before the batch.  So all old rows
 * of a batch are there, and untouched, when it begins, whatever order the
 * changes had: deletes, updates and inserts can be sent as sets.
 *
 * Rows are compared as the bytes that go over the wire.  They come from the
 * same transform over the same source row each time, so what was the same row
 * is the same bytes.  Columns that depend on the commit are not compared: they
 * are another value each time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "compat.h"
#include "stream/batch.h"

#define INITIAL_BUCKETS 64

static uint32
hash_row(const Transform *transform, const WireValue *values)
{
	uint32		hash = 0;

	for (int i = 0; i < transform->ncolumns; i++)
		if (transform->columns[i].finds_row)
			hash = hash_combine(hash, values[i].data == NULL ? 0 :
								hash_bytes((unsigned char *) values[i].data,
										   values[i].len));
	return hash;
}

/*
 * Put two rows, as far as they are found by, into some order; 0 = the same.
 */
int
keyless_compare(const Transform *transform, const WireValue *a,
				const WireValue *b)
{
	for (int i = 0; i < transform->ncolumns; i++)
	{
		int			order;

		if (!transform->columns[i].finds_row)
			continue;
		if (a[i].data == NULL || b[i].data == NULL)
			order = (a[i].data != NULL) - (b[i].data != NULL);
		else if (a[i].len != b[i].len)
			order = a[i].len < b[i].len ? -1 : 1;
		else
			order = memcmp(a[i].data, b[i].data, a[i].len);
		if (order != 0)
			return order;
	}
	return 0;
}

static WireValue *
encode(Batch *batch, Transform *transform, const Datum *values,
	   const bool *isnull)
{
	WireValue  *result = batch_alloc(batch, transform->ncolumns *
									 sizeof(WireValue));

	for (int i = 0; i < transform->ncolumns; i++)
	{
		wire_encode_in(batch->arena, &transform->columns[i], values[i],
					   isnull[i], &result[i]);
		batch->bytes += result[i].len + WIRE_HEADER;
	}
	return result;
}

/* Is it a row that a later change may take away? */
static bool
is_live(const BatchRow *row)
{
	return row->kind == ROW_INSERT || row->kind == ROW_UPDATE;
}

static void
link_row(BatchTable *table, BatchRow *row)
{
	BatchRow  **bucket = &table->buckets[row->hash & (table->nbuckets - 1)];

	row->chain = *bucket;
	*bucket = row;
}

static void
grow_buckets(Batch *batch, BatchTable *table)
{
	if (table->nrows < table->nbuckets)
		return;
	table->nbuckets = Max(table->nbuckets * 2, INITIAL_BUCKETS);
	table->buckets = batch_alloc(batch,
								 table->nbuckets * sizeof(BatchRow *));
	for (BatchRow *row = table->first; row != NULL; row = row->next)
		if (is_live(row))
			link_row(table, row);
}

/*
 * Take out of the buckets a row of the batch that is these values now; NULL if
 * there is none.
 */
static BatchRow *
unlink_row(BatchTable *table, const WireValue *values)
{
	uint32		hash = hash_row(table->transform, values);
	BatchRow  **place;

	if (table->nbuckets == 0)
		return NULL;
	place = &table->buckets[hash & (table->nbuckets - 1)];
	while (*place != NULL)
	{
		BatchRow   *row = *place;

		if (row->hash == hash &&
			keyless_compare(table->transform, row->values, values) == 0)
		{
			*place = row->chain;
			return row;
		}
		place = &row->chain;
	}
	return NULL;
}

static BatchRow *
append_row(Batch *batch, BatchTable *table)
{
	BatchRow   *row = batch_alloc(batch, sizeof(BatchRow));

	if (table->last)
		table->last->next = row;
	else
		table->first = row;
	table->last = row;
	table->nrows++;
	batch->rows++;
	return row;
}

/*
 * Add a change of a mapping without a key: there is always a way.
 */
void
keyless_add(Batch *batch, BatchTable *table, const RowChange *change)
{
	Transform  *transform = table->transform;
	WireValue  *new = NULL;
	WireValue  *old = NULL;
	BatchRow   *row = NULL;

	if (change->kind == CHANGE_UPDATE)
		old = encode(batch, transform, change->old_values, change->old_isnull);
	else if (change->kind == CHANGE_DELETE)
		old = encode(batch, transform, change->values, change->isnull);
	if (change->kind != CHANGE_DELETE)
		new = encode(batch, transform, change->values, change->isnull);

	grow_buckets(batch, table);
	if (old != NULL)
		row = unlink_row(table, old);
	if (row == NULL)
	{
		row = append_row(batch, table);
		row->old = old;
	}
	if (new != NULL)
	{
		row->kind = row->old ? ROW_UPDATE : ROW_INSERT;
		row->values = new;
		row->hash = hash_row(transform, new);
		link_row(table, row);
	}
	else
		row->kind = row->old ? ROW_DELETE : ROW_NONE;
}
