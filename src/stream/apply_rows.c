/*-------------------------------------------------------------------------
 *
 * apply_rows.c
 *		A batch's rows as set-based statements on the peer.
 *
 * Per target table: deletes, then updates (statements per set of columns that
 * they carry), then inserts, each over rows sorted by key.  What goes in which
 * statement is decided when the batch is complete (slices); the statements are
 * encoded and queued one by one, when the connection takes them.
 *
 * Of mappings without a key, all old rows were on the target before the batch
 * (keyless.c): deletes, replacements, inserts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/guard.h"
#include "stream/apply.h"
#include "stream/parameters.h"
#include "stream/window.h"
#include "utils/memutils.h"

/* Which rows a statement takes, in the order of sending. */
typedef struct RowStep
{
	StatementKind kind;
	uint32		row_kinds;		/* mask of RowKind */
	bool		counted;		/* each row must be there */
	bool		by_columns;		/* rows differ in the columns they carry */
} RowStep;

#define SLICE_ROWS	2000		/* of a statement, at most */
#define SLICE_BYTES	(256 * 1024)	/* ... of their values, about */

/* COPY's code takes some 1,000 rows at a time and half a ms to begin. */
#define MANY_ROWS	500			/* of a statement, at least */
#define MANY_MOST_ROWS	20000
#define MANY_BYTES	(768 * 1024)

#define MASK(kind)	((uint32) 1 << (kind))

static const RowStep row_steps[] = {
	{STATEMENT_DELETE, MASK(ROW_DELETE) | MASK(ROW_REPLACE), true, false},
	{STATEMENT_DELETE, MASK(ROW_DELETE_IF_THERE) |
	MASK(ROW_REPLACE_IF_THERE) | MASK(ROW_RECREATE), false, false},
	{STATEMENT_UPDATE, MASK(ROW_UPDATE), true, true},
	{STATEMENT_UPDATE, MASK(ROW_PATCH), false, true},
	{STATEMENT_INSERT, MASK(ROW_INSERT) | MASK(ROW_REPLACE) |
	MASK(ROW_REPLACE_IF_THERE), true, false},
	{STATEMENT_UPSERT, MASK(ROW_UPSERT) | MASK(ROW_RECREATE), false, false},
};

/*
 * Remember how many rows the statement on a table that was just queued should
 * affect; -1 = any number.
 */
void
apply_expect(Apply *apply, int64 rows)
{
	if (apply->nexpected == apply->max_expected)
	{
		apply->max_expected *= 2;
		apply->expected = repalloc_array(apply->expected, int64,
										 apply->max_expected);
	}
	apply->expected[apply->nexpected++] = rows;
	apply->row_statement = peer_open_statements(apply->peer) - 1;
}

/*
 * The writer of a transform's target.
 */
TargetWriter *
apply_writer(Apply *apply, const Transform *transform)
{
	TargetWriter *writer = apply->writers[transform->number];

	Assert(writer->transform == transform);
	return writer;
}

static void
send_statement(Apply *apply, PeerStatement *statement, const Parameters *p)
{
	peer_send(apply->peer, statement, p->values, p->lengths, p->formats);
	for (int i = 0; i < p->n; i++)
		apply->shared->bytes += p->lengths[i];
}

/*
 * Do the parameters of a statement hold only what rows are found by?
 */
static bool
takes_key_only(StatementKind kind)
{
	return kind == STATEMENT_DELETE || kind == STATEMENT_FIND ||
		kind == STATEMENT_LOOK_OLD;
}

/*
 * Queue one statement over rows that carry the same columns.
 */
static void
queue_statement(Apply *apply, const Slice *slice)
{
	TargetWriter *writer = slice->writer;
	PeerStatement *statement =
		target_statement(writer, slice->kind,
						 slice->by_columns ? slice->rows[0]->missing : NULL);
	MemoryContext old;
	Parameters	p;

	if (statement == NULL)
		return;
	old = MemoryContextSwitchTo(apply->param_context);
	p = parameters_create(writer->transform->ncolumns + 1);
	parameters_add_columns(&p, writer->transform, slice->rows, slice->nrows,
						   takes_key_only(slice->kind) ?
						   COLUMNS_KEY : COLUMNS_CARRIED);
	if (writer->lookup)
		parameters_add_text(&p, psprintf("%d", slice->nrows));
	send_statement(apply, statement, &p);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
	if (slice->kind == STATEMENT_LOOK || slice->kind == STATEMENT_LOOK_OLD)
		apply->row_statement = peer_open_statements(apply->peer) - 1;
	else
		apply_expect(apply, !slice->counted ? -1 :
					 writer->lookup ? BG_ROWS_BY_LOOKUP : slice->nrows);
}

static bool
carry_same_columns(const BatchRow *a, const BatchRow *b, int ncolumns)
{
	if (a->missing == NULL && b->missing == NULL)
		return true;
	for (int i = 0; i < ncolumns; i++)
		if ((a->missing && a->missing[i]) != (b->missing && b->missing[i]))
			return false;
	return true;
}

/*
 * Have rows sent in one statement, behind the others of the outgoing batch.
 */
static void
add_slice(Apply *apply, const Slice *slice)
{
	if (apply->nslices == apply->max_slices)
	{
		apply->max_slices *= 2;
		apply->slices = repalloc_array(apply->slices, Slice,
									   apply->max_slices);
	}
	apply->slices[apply->nslices++] = *slice;
}

/*
 * The statement for a slice of so many rows of a step, of which there may be so
 * many in a slice.
 */
static StatementKind
slice_kind(const Slice *step, int nrows, int most)
{
	switch (step->kind)
	{
		case STATEMENT_INSERT:
			return step->writer->inserts_many && nrows >= MANY_ROWS &&
				most >= MANY_ROWS ? STATEMENT_INSERT_MANY : STATEMENT_INSERT;
		case STATEMENT_UPDATE:
			return step->writer->takes_rows ? STATEMENT_UPDATE_ROWS :
				STATEMENT_UPDATE;
		case STATEMENT_DELETE:
			return step->writer->takes_rows ? STATEMENT_DELETE_ROWS :
				STATEMENT_DELETE;
		default:
			return step->kind;
	}
}

/*
 * Cut rows into slices: the target begins with the first while the others are
 * encoded, and nothing has to hold all of them encoded.
 */
static void
add_slices(Apply *apply, const Slice *all)
{
	int64		row_size = apply->outgoing->bytes /
		Max(apply->outgoing->rows, 1) + 1;
	bool		many = all->kind == STATEMENT_INSERT &&
		all->writer->inserts_many && all->nrows >= MANY_ROWS;
	int			most = many ? Min(MANY_BYTES / row_size, MANY_MOST_ROWS) :
		Min(SLICE_BYTES / row_size, SLICE_ROWS);

	most = Max(most, 1);
	for (int r = 0; r < all->nrows; r += most)
	{
		Slice		slice = *all;

		slice.kind = slice_kind(all, all->nrows - r, most);
		slice.rows = all->rows + r;
		slice.nrows = Min(most, all->nrows - r);
		add_slice(apply, &slice);
	}
}

/*
 * Queue a statement that takes its rows as one parameter and counts them itself.
 */
static void
queue_rows(Apply *apply, const Slice *slice)
{
	TargetWriter *writer = slice->writer;
	Transform  *transform = writer->transform;
	const bool *missing = slice->by_columns ? slice->rows[0]->missing : NULL;
	PeerStatement *statement = target_statement(writer, slice->kind, missing);
	MemoryContext old;
	Parameters	p;
	int		   *columns;
	int			ncolumns = transform->ncolumns;

	if (statement == NULL)
		return;
	old = MemoryContextSwitchTo(apply->param_context);
	p = parameters_create(2);
	columns = palloc_array(int, 2 * ncolumns);
	if (slice->kind == STATEMENT_INSERT_MANY)
		for (int i = 0; i < ncolumns; i++)
			columns[i] = i;
	else
		ncolumns = target_statement_columns(writer, slice->kind, missing,
											columns);
	parameters_add_rows(&p, slice->rows, slice->nrows, columns, ncolumns);
	parameters_add_text(&p, psprintf("%d", slice->kind == STATEMENT_INSERT_MANY ||
									 slice->counted ? slice->nrows : -1));
	send_statement(apply, statement, &p);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
}

/*
 * Slice the rows of one step; where they differ in what they carry, one
 * statement at least per set of columns.  Usually that is one.
 */
static void
slice_step(Apply *apply, const Slice *step)
{
	int			ncolumns = step->writer->transform->ncolumns;
	BatchRow  **rows = step->rows;
	int			nrows = step->nrows;

	while (nrows > 0)
	{
		Slice		group = *step;
		int			nrest = 0;

		group.rows = palloc_array(BatchRow *, nrows);
		group.nrows = 0;
		for (int r = 0; r < nrows; r++)
		{
			BatchRow   *row = rows[r];

			if (!step->by_columns || group.nrows == 0 ||
				carry_same_columns(group.rows[0], row, ncolumns))
				group.rows[group.nrows++] = row;
			else
				rows[nrest++] = row;
		}
		add_slices(apply, &group);
		nrows = nrest;
	}
}

/*
 * With a lookup: have all rows of a step sent in one statement, so that the
 * target sees two that lead to one row of its own.
 */
static void
add_whole(Apply *apply, const Slice *step)
{
	Slice		slice = *step;

	if (step->nrows == 0)
		return;
	slice.rows = palloc_array(BatchRow *, step->nrows);
	memcpy(slice.rows, step->rows, step->nrows * sizeof(BatchRow *));
	add_slice(apply, &slice);
}

static int
compare_old_rows(const void *a, const void *b, void *arg)
{
	const BatchRow *x = *(BatchRow *const *) a;
	const BatchRow *y = *(BatchRow *const *) b;

	return keyless_compare(arg, x->old, y->old);
}

/*
 * Number the old rows for statement_keyless.c: rows that are the same are a
 * group, and are counted.
 */
static void
add_groups(Parameters *p, Transform *transform, BatchRow **rows, int nrows)
{
	int		   *group = palloc_array(int, nrows);
	int		   *count = palloc_array(int, nrows);

	for (int r = 0; r < nrows; r++)
	{
		bool		same = r > 0 && keyless_compare(transform, rows[r - 1]->old,
													rows[r]->old) == 0;

		group[r] = r == 0 ? 1 : group[r - 1] + (same ? 0 : 1);
		count[r] = same ? count[r - 1] + 1 : 1;
	}
	parameters_add_numbers(p, group, nrows);
	parameters_add_numbers(p, count, nrows);
}

/*
 * Queue a statement that finds its rows by all their values: STATEMENT_TAKE or
 * STATEMENT_REPLACE.  It is planned for these rows; others are planned once.
 */
static void
queue_keyless(Apply *apply, const Slice *slice)
{
	Transform  *transform = slice->writer->transform;
	BatchRow  **rows = slice->rows;
	int			nrows = slice->nrows;
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	Parameters	p = parameters_create(2 * transform->ncolumns + 2);

	qsort_arg(rows, nrows, sizeof(BatchRow *), compare_old_rows, transform);
	parameters_add_columns(&p, transform, rows, nrows, COLUMNS_OLD);
	if (slice->kind == STATEMENT_REPLACE)
		parameters_add_columns(&p, transform, rows, nrows, COLUMNS_CARRIED);
	add_groups(&p, transform, rows, nrows);
	peer_send_sql(apply->peer,
				  "SET LOCAL plan_cache_mode = force_custom_plan");
	send_statement(apply, target_statement(slice->writer, slice->kind, NULL),
				   &p);
	apply_expect(apply, nrows);
	peer_send_sql(apply->peer,
				  "SET LOCAL plan_cache_mode = force_generic_plan");
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
}

/*
 * Does a row end as it was?  Columns that depend on the commit do not.
 */
static bool
is_unchanged(const Transform *transform, const BatchRow *row)
{
	for (int i = 0; i < transform->ncolumns; i++)
		if (!transform->columns[i].finds_row)
			return false;
	return keyless_compare(transform, row->old, row->values) == 0;
}

static void
slice_keyless_table(Apply *apply, BatchTable *table)
{
	static const struct
	{
		RowKind		row_kind;
		StatementKind kind;
	}			steps[] = {
		{ROW_DELETE, STATEMENT_TAKE},
		{ROW_UPDATE, STATEMENT_REPLACE},
		{ROW_INSERT, STATEMENT_INSERT},
	};

	for (int s = 0; s < lengthof(steps); s++)
	{
		Slice		slice = {
			.writer = apply_writer(apply, table->transform),
			.kind = steps[s].kind
		};

		slice.rows = palloc_array(BatchRow *, table->nrows);
		for (BatchRow *row = table->first; row != NULL; row = row->next)
			if (row->kind == steps[s].row_kind &&
				(row->kind != ROW_UPDATE ||
				 !is_unchanged(table->transform, row)))
				slice.rows[slice.nrows++] = row;
		if (slice.nrows == 0)
			continue;
		/* each of the others reads the whole table, maybe */
		if (slice.kind == STATEMENT_INSERT)
			add_slices(apply, &slice);
		else
			add_slice(apply, &slice);
	}
}

static void
slice_table(Apply *apply, BatchTable *table)
{
	MappingRow *row = table->transform->row;
	TargetWriter *writer = apply_writer(apply, table->transform);
	BatchRow  **sorted = batch_sorted_rows(table);
	BatchRow  **rows = palloc_array(BatchRow *, table->nrows);

	/* in a window others may patch these rows, and no more: window_check.c */
	bool		can_count = row->on_write == ON_WRITE_MIRROR &&
		row->on_delete == ON_DELETE_DELETE &&
		(!row->target_shared || writer->window != NULL);

	for (int s = 0; s < lengthof(row_steps); s++)
	{
		const RowStep *step = &row_steps[s];
		Slice		slice = {
			.writer = writer,
			.kind = step->kind,
			.by_columns = step->by_columns,
			.counted = step->counted && can_count,
			.rows = rows
		};

		if ((step->row_kinds & table->kinds) == 0)
			continue;
		for (int r = 0; r < table->nrows; r++)
			if (step->row_kinds & MASK(sorted[r]->kind))
				rows[slice.nrows++] = sorted[r];
		if (slice.writer->lookup)
			add_whole(apply, &slice);
		else
			slice_step(apply, &slice);
	}
}

/*
 * In a window, behind all rows: has the target changed any of them?  Also those
 * that came and went.
 */
static void
slice_check(Apply *apply, BatchTable *table)
{
	Slice		slice = {
		.writer = apply_writer(apply, table->transform),
		.kind = STATEMENT_CHECK
	};
	BatchRow  **rows;
	int			n = 0;

	if (slice.writer->window == NULL || table->nrows == 0)
		return;
	rows = palloc_array(BatchRow *, table->nrows);
	for (BatchRow *row = table->first; row != NULL; row = row->next)
		rows[n++] = row;
	for (int r = 0; r < n; r += SLICE_ROWS)
	{
		slice.rows = rows + r;
		slice.nrows = Min(SLICE_ROWS, n - r);
		add_slice(apply, &slice);
	}
}

/*
 * Make slices of all rows of the outgoing batch, in the order of sending.
 * They live in the batch's memory.
 */
void
apply_slice_batch(Apply *apply, Batch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);

	apply->nslices = 0;
	apply->next_slice = 0;
	apply->max_slices = 16;
	apply->slices = palloc_array(Slice, apply->max_slices);
	for (int t = 0; t < batch->ntables; t++)
	{
		BatchTable *table = &batch->tables[t];

		if (table->nrows == 0)
			continue;
		if (table->transform->nkeys == 0)
			slice_keyless_table(apply, table);
		else
			slice_table(apply, table);
	}
	for (int t = 0; apply->window != NULL && t < batch->ntables; t++)
		slice_check(apply, &batch->tables[t]);
	MemoryContextSwitchTo(old);
}

/*
 * Queue the statement for a slice.
 */
void
apply_queue_slice(Apply *apply, const Slice *slice)
{
	if (slice->kind == STATEMENT_CHECK)
		window_queue_check(apply, slice);
	else if (slice->kind == STATEMENT_TAKE || slice->kind == STATEMENT_REPLACE)
		queue_keyless(apply, slice);
	else if (slice->kind == STATEMENT_INSERT_MANY ||
			 slice->kind == STATEMENT_UPDATE_ROWS ||
			 slice->kind == STATEMENT_DELETE_ROWS)
		queue_rows(apply, slice);
	else
		queue_statement(apply, slice);
}

/*
 * Queue one row by itself; the caller looks at how many rows it affects.
 */
void
apply_queue_row(Apply *apply, TargetWriter *writer, StatementKind kind,
				BatchRow *row)
{
	Slice		slice = {
		.writer = writer,
		.kind = kind,
		.by_columns = kind == STATEMENT_UPDATE,
		.rows = &row,
		.nrows = 1
	};

	apply_queue_slice(apply, &slice);
}

/*
 * Queue the record of a conflict over a row's key; texts are the parameters of
 * STATEMENT_CONFLICT.  note, if there is one, keeps another row than that of the
 * key.
 */
void
apply_queue_conflict(Apply *apply, TargetWriter *writer, BatchRow *row,
					 const char *const texts[8], PeerStatement *note)
{
	Transform  *transform = writer->transform;
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	Parameters	key = parameters_create(transform->ncolumns + 1);
	Parameters	p = parameters_create(8);

	if (note != NULL)
	{
		parameters_add_columns(&key, transform, &row, 1, COLUMNS_CARRIED);
		send_statement(apply, note, &key);
		apply_expect(apply, -1);
	}
	else if (transform->nkeys > 0)
	{
		parameters_add_columns(&key, transform, &row, 1, COLUMNS_KEY);
		if (writer->lookup)
			parameters_add_text(&key, "1");
		send_statement(apply, target_statement(writer, STATEMENT_NOTE, NULL),
					   &key);
		apply_expect(apply, -1);
	}
	for (int i = 0; i < 8; i++)
		parameters_add_text(&p, texts[i]);
	send_statement(apply, target_statement(writer, STATEMENT_CONFLICT, NULL),
				   &p);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
	apply_expect(apply, -1);
}

/*
 * Queue a move: the new row, then the old key (by key column).
 */
void
apply_queue_move(Apply *apply, TargetWriter *writer, BatchRow *row,
				 const WireValue *old_key)
{
	Transform  *transform = writer->transform;
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	Parameters	p = parameters_create(transform->ncolumns + transform->nkeys);

	parameters_add_columns(&p, transform, &row, 1, COLUMNS_CARRIED);
	for (int k = 0; k < transform->nkeys; k++)
		parameters_add_value(&p, &transform->columns[transform->keys[k]],
							 &old_key[k]);
	send_statement(apply, target_statement(writer, STATEMENT_MOVE,
										   row->missing), &p);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
	apply_expect(apply, 1);
}
