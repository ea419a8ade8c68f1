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
 * What a lookup finds must be what it would have found then: rows of a mapping
 * with a lookup, and rows of tables that the lookup reads, are never in one
 * batch.  So it gives the same for the same row all over a batch, and folding
 * by the source's key is sound.  But which row of the target that is we do not
 * know: two incoming rows may lead to one, and then the order in which the
 * statements of a batch are executed must be that of the changes, or the target
 * must notice (rows that are there already, two for one, counts).  It would not
 * notice a delete that came after an insert, nor an update or insert after an
 * upsert: these cut.  And all of a kind must be in one statement.
 *
 * Mappings without a key fold in another way, by whole rows: see keyless.c.
 *
 * Values are kept as the bytes that will go over the wire, so that encoding
 * happens once and nothing points into the decoder's memory.  A row, its key
 * and its values lie side by side in the batch's arena; a value that changes
 * again takes the place of the one before where it can.  Rows are hashed when
 * the first key comes that may be among them: not as long as each is behind all
 * others, as in a bulk load.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "compat.h"
#include "stream/batch.h"
#include "stream/key.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#define FOLD_CUT	ROW_KINDS	/* no rule: cut the batch */
#define INITIAL_BUCKETS 64

/* A key that is looked for. */
typedef struct SoughtKey
{
	Datum	   *values;			/* by key column */
	int64		order;
	bool		hashed;			/* it had to be looked for in the buckets */
	uint32		hash;
} SoughtKey;

/* A row and what it is sorted by first. */
typedef struct SortedRow
{
	int64		order;
	BatchRow   *row;
} SortedRow;

static inline int
compare_rows(const SortedRow *a, const SortedRow *b, Transform *transform)
{
	if (a->order != b->order)
		return a->order < b->order ? -1 : 1;
	return key_compare(transform, a->row->key, b->row->key);
}

#define ST_SORT sort_rows
#define ST_ELEMENT_TYPE SortedRow
#define ST_COMPARE(a, b, transform) compare_rows(a, b, transform)
#define ST_COMPARE_ARG_TYPE Transform
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

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
 * Does it matter which of two mappings' rows come first, though nobody can tell
 * by their keys?
 */
static bool
must_be_apart(const MappingRow *a, const MappingRow *b)
{
	if (a->lookup == NULL && b->lookup == NULL)
		return false;
	return mapping_reads_target(a, b) || mapping_reads_target(b, a) ||
		(a->id != b->id && strcmp(a->target_table, b->target_table) == 0 &&
		 strcmp(a->target_schema, b->target_schema) == 0);
}

static void
find_apart(Batch *batch, BatchTable *table)
{
	for (int i = 0; i < batch->ntables; i++)
		if (must_be_apart(table->transform->row,
						  batch->tables[i].transform->row))
			table->apart = bms_add_member(table->apart, i);
}

/*
 * Make an empty batch for a stream's transforms, in CurrentMemoryContext.
 */
Batch *
batch_create(List *transforms)
{
	Batch	   *batch = palloc0_object(Batch);
	int			nkeys = 1;
	ListCell   *lc;

	batch->context = AllocSetContextCreate(CurrentMemoryContext,
										   "pg_bluegreen batch",
										   ALLOCSET_DEFAULT_SIZES);
	batch->arena = arena_create();
	batch->tables = palloc0_array(BatchTable, Max(list_length(transforms), 1));
	foreach(lc, transforms)
	{
		Transform  *transform = lfirst(lc);

		batch->tables[batch->ntables++].transform = transform;
		nkeys = Max(nkeys, transform->nkeys);
	}
	for (int i = 0; i < batch->ntables; i++)
		find_apart(batch, &batch->tables[i]);
	batch->key = palloc_array(Datum, nkeys);
	return batch;
}

/*
 * Forget all rows.
 */
void
batch_reset(Batch *batch)
{
	for (int i = 0; i < batch->ntables; i++)
	{
		BatchTable *table = &batch->tables[i];

		table->expected = Max(table->nrows, table->expected / 2);
		table->nrows = 0;
		table->first = NULL;
		table->last = NULL;
		table->buckets = NULL;
		table->nbuckets = 0;
		table->unsorted = false;
		table->unlinked = NULL;
		table->kinds = 0;
	}
	arena_reset(batch->arena);
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
 * Zeroed memory that lives as long as the batch's rows.
 */
void *
batch_alloc(Batch *batch, Size size)
{
	return memset(arena_alloc(batch->arena, size), 0, size);
}

/*
 * The key of a row, given its values by column.  It is in the batch's scratch
 * memory.
 */
static SoughtKey
take_key(Batch *batch, const Transform *transform, const Datum *values)
{
	SoughtKey	key = {.values = batch->key};

	for (int k = 0; k < transform->nkeys; k++)
		key.values[k] = values[transform->keys[k]];
	key.order = key_order(transform, key.values);
	return key;
}

/*
 * Make buckets for the rows that there are and some more: for as many as there
 * have come to be in the batches before.  Two for each row: who finds a bucket
 * empty need not look at a row.
 */
static void
grow_buckets(Batch *batch, BatchTable *table)
{
	uint32		wanted = Max(table->nrows + 1, table->expected);

	table->nbuckets = Max(table->nbuckets, INITIAL_BUCKETS);
	while (table->nbuckets < 2 * wanted)
		table->nbuckets *= 2;
	table->buckets = batch_alloc(batch,
								 table->nbuckets * sizeof(BatchRow *));
	table->unlinked = table->first;
}

static void
link_row(BatchTable *table, BatchRow *row, uint32 hash)
{
	BatchRow  **bucket = &table->buckets[hash & (table->nbuckets - 1)];

	row->hash = hash;
	row->chain = *bucket;
	*bucket = row;
}

/*
 * Put all rows into buckets, and have room there for one more.
 */
static void
link_rows(Batch *batch, BatchTable *table)
{
	if (2 * table->nrows >= table->nbuckets)
		grow_buckets(batch, table);
	for (BatchRow *row = table->unlinked; row != NULL; row = row->next)
		link_row(table, row, key_hash(table->transform, row->key));
	table->unlinked = NULL;
}

/*
 * The row of a key, or NULL.  Often changes come in the order of their keys:
 * one that comes behind all others is new, and then nobody needs buckets.
 */
static BatchRow *
find_row(Batch *batch, BatchTable *table, SoughtKey *key)
{
	BatchRow   *row;

	if (table->nrows == 0 || key->order > table->max_order)
		return NULL;
	link_rows(batch, table);
	key->hashed = true;
	key->hash = key_hash(table->transform, key->values);
	row = table->buckets[key->hash & (table->nbuckets - 1)];
	while (row != NULL &&
		   (row->hash != key->hash ||
			!key_equal(table->transform, row->key, key->values)))
		row = row->chain;
	return row;
}

/*
 * A key's value in the batch's memory.  A varlena may still point into the
 * decoder's.
 */
static Datum
copy_key_value(Batch *batch, const TransformColumn *column, Datum value)
{
	Size		size;
	void	   *copy;

	if (column->typbyval)
		return value;
	if (column->typlen == -1)
		value = PointerGetDatum(PG_DETOAST_DATUM(value));
	size = datumGetSize(value, column->typbyval, column->typlen);
	copy = arena_alloc(batch->arena, size);
	memcpy(copy, DatumGetPointer(value), size);
	return PointerGetDatum(copy);
}

static void
append_row(BatchTable *table, BatchRow *row)
{
	if (table->last)
		table->last->next = row;
	else
		table->first = row;
	table->last = row;
	if (table->nrows == 0 || row->order > table->max_order)
		table->max_order = row->order;
	else
		table->unsorted = true;
	table->nrows++;
}

/*
 * Append a row for a key that find_row() has not found.
 */
static BatchRow *
new_row(Batch *batch, BatchTable *table, const SoughtKey *key)
{
	Transform  *transform = table->transform;
	Size		fixed = sizeof(BatchRow) +
		transform->ncolumns * sizeof(WireValue);
	BatchRow   *row = arena_alloc(batch->arena, fixed +
								  transform->nkeys * sizeof(Datum));

	memset(row, 0, fixed);
	row->order = key->order;
	row->values = (WireValue *) (row + 1);
	row->key = (Datum *) (row->values + transform->ncolumns);
	for (int k = 0; k < transform->nkeys; k++)
		row->key[k] = copy_key_value(batch,
									 &transform->columns[transform->keys[k]],
									 key->values[k]);
	if (key->hashed)
		link_row(table, row, key->hash);
	else if (table->unlinked == NULL)
		table->unlinked = row;
	append_row(table, row);
	batch->rows++;
	batch->bytes += transform->ncolumns * WIRE_HEADER;
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
		batch->shared_keys = batch_alloc(batch, batch->shared_size *
										 sizeof(uint64));
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

static void
take_value(Batch *batch, BatchRow *row, const RowChange *change, int i)
{
	WireValue  *value = &row->values[i];
	char	   *before = value->data;

	wire_encode_in(batch->arena, &change->transform->columns[i],
				   change->values[i], change->isnull[i], value);
	if (value->data != before)
		batch->bytes += value->len;
}

/*
 * Put the change's values into the row.  What the change does not carry stays
 * as the row has it, and is missing if the row has nothing either.
 */
static void
take_values(Batch *batch, BatchRow *row, const RowChange *change, bool is_new)
{
	Transform  *transform = change->transform;

	if (is_delete(change->kind))
	{
		for (int k = 0; k < transform->nfinds; k++)
			take_value(batch, row, change, transform->finds[k]);
		return;
	}
	for (int i = 0; i < transform->ncolumns; i++)
	{
		if (!change->missing[i])
		{
			take_value(batch, row, change, i);
			if (row->missing)
				row->missing[i] = false;
		}
		else if (is_new)
		{
			if (row->missing == NULL)
				row->missing = batch_alloc(batch, transform->ncolumns);
			row->missing[i] = true;
		}
	}
}

/*
 * Has the batch rows that must not be together with those of this table?
 */
static bool
others_are_there(const Batch *batch, const BatchTable *table)
{
	int			i = -1;

	while ((i = bms_next_member(table->apart, i)) >= 0)
		if (batch->tables[i].nrows > 0)
			return true;
	return false;
}

#define MASK(kind)	((uint32) 1 << (kind))

/*
 * In a window a row that comes and goes must come all the same: the target may
 * have one with its key, of which the later change had seen, and the earlier
 * had not; or somebody may be about to make one there, and has to wait.
 */
static bool
must_come_first(const Batch *batch, const BatchRow *row,
				const RowChange *change)
{
	return batch->window && row != NULL && row->kind == ROW_INSERT &&
		is_delete(change->kind) &&
		strcmp(change->transform->row->conflict, "none") != 0;
}

/*
 * With a lookup: would a change be carried out before one that came earlier,
 * and that may be about the same row of the target?  (See the top of the file.)
 * A row is never replaced: what it was found by may have been other values
 * than now, if only other spellings of them.
 */
static bool
order_would_change(const BatchTable *table, const RowChange *change,
				   RowKind kind)
{
	const uint32 upserts = MASK(ROW_UPSERT) | MASK(ROW_RECREATE);
	const uint32 inserts = upserts | MASK(ROW_INSERT) | MASK(ROW_REPLACE) |
		MASK(ROW_REPLACE_IF_THERE);

	if (table->nrows >= BATCH_LOOKUP_ROWS)
		return true;
	if (is_delete(change->kind))
		return (table->kinds & inserts) != 0;
	if (kind != ROW_UPSERT && kind != ROW_RECREATE &&
		(table->kinds & upserts) != 0)
		return true;
	return kind == ROW_REPLACE || kind == ROW_REPLACE_IF_THERE ||
		kind == ROW_RECREATE;
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
	SoughtKey	key;
	BatchRow   *row;
	RowKind		kind;
	bool		fresh;

	if (table->apart != NULL && others_are_there(batch, table))
		return BATCH_CUT;
	if (transform->nkeys == 0)
	{
		keyless_add(batch, table, change);
		return BATCH_ADDED;
	}
	key = take_key(batch, transform, change->values);
	row = find_row(batch, table, &key);
	kind = row ? fold_rules[row->kind][change->kind] : first_kind[change->kind];
	if (kind == FOLD_CUT || must_come_first(batch, row, change) ||
		(transform->row->lookup && order_would_change(table, change, kind)) ||
		(transform->row->target_shared && transform->row->lookup == NULL &&
		 shared_key_clashes(batch, transform,
							key_hash(transform, key.values))))
		return BATCH_CUT;

	/* nothing of a row that was deleted may show through in a later one */
	fresh = row == NULL || row->kind == ROW_NONE || row->kind == ROW_DELETE ||
		row->kind == ROW_DELETE_IF_THERE;
	if (row == NULL)
		row = new_row(batch, table, &key);
	row->kind = kind;
	row->seen = batch->seen;
	table->kinds |= (uint32) 1 << kind;
	if (kind != ROW_NONE)
		take_values(batch, row, change, fresh);
	return BATCH_ADDED;
}

/*
 * Forget what is known of a key, given the values of its row.
 */
void
batch_forget(Batch *batch, const Transform *transform, const Datum *values)
{
	BatchTable *table = batch_table(batch, transform);
	SoughtKey	key = take_key(batch, transform, values);
	BatchRow   *row = find_row(batch, table, &key);

	if (row != NULL)
		row->kind = ROW_NONE;
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
	SortedRow  *sorted;
	int			n = 0;

	for (BatchRow *row = table->first; row != NULL; row = row->next)
		rows[n++] = row;
	if (!table->unsorted)
		return rows;
	sorted = palloc_array(SortedRow, n);
	for (int i = 0; i < n; i++)
	{
		sorted[i].order = rows[i]->order;
		sorted[i].row = rows[i];
	}
	sort_rows(sorted, n, table->transform);
	for (int i = 0; i < n; i++)
		rows[i] = sorted[i].row;
	pfree(sorted);
	return rows;
}
