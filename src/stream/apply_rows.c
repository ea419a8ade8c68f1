/*-------------------------------------------------------------------------
 *
 * apply_rows.c
 *		Queue a batch's rows as set-based statements on the peer.
 *
 * Per target table: deletes, then updates (one statement per set of columns
 * that they carry), then inserts, each over rows sorted by key.
 *
 * Of mappings without a key, all old rows were on the target before the batch
 * (keyless.c): deletes, replacements, inserts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "stream/apply.h"
#include "stream/parameters.h"
#include "utils/memutils.h"

/* Which rows a statement takes, in the order of sending. */
typedef struct RowStep
{
	StatementKind kind;
	uint32		row_kinds;		/* mask of RowKind */
	bool		counted;		/* each row must be there */
	bool		by_columns;		/* rows differ in the columns they carry */
} RowStep;

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
 * Remember what the statement that was just queued should do.
 */
void
apply_expect(Apply *apply, TargetWriter *writer, int64 rows)
{
	if (apply->nexpected == apply->max_expected)
	{
		apply->max_expected *= 2;
		apply->expected = repalloc_array(apply->expected, Expectation,
										 apply->max_expected);
	}
	apply->expected[apply->nexpected].writer = writer;
	apply->expected[apply->nexpected].rows = rows;
	apply->nexpected++;
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
 * Queue one statement over rows that carry the same columns.
 */
static void
queue_statement(Apply *apply, TargetWriter *writer, const RowStep *step,
				BatchRow **rows, int nrows)
{
	PeerStatement *statement =
		target_statement(writer, step->kind,
						 step->by_columns ? rows[0]->missing : NULL);
	MemoryContext old;
	Parameters	p;

	if (statement == NULL)
		return;
	old = MemoryContextSwitchTo(apply->param_context);
	p = parameters_create(writer->transform->ncolumns);
	parameters_add_columns(&p, writer->transform, rows, nrows,
						   step->kind == STATEMENT_DELETE ||
						   step->kind == STATEMENT_FIND ?
						   COLUMNS_KEY : COLUMNS_CARRIED);
	send_statement(apply, statement, &p);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
	apply_expect(apply, writer, step->counted ? nrows : -1);
}

static bool
carry_same_columns(const BatchRow *a, const BatchRow *b, int ncolumns)
{
	for (int i = 0; i < ncolumns; i++)
		if ((a->missing && a->missing[i]) != (b->missing && b->missing[i]))
			return false;
	return true;
}

/*
 * Queue the rows of one step; where they differ in what they carry, one
 * statement per set of columns.  Usually that is one.
 */
static void
queue_step(Apply *apply, TargetWriter *writer, const RowStep *step,
		   BatchRow **rows, int nrows)
{
	int			ncolumns = writer->transform->ncolumns;
	BatchRow  **group = palloc_array(BatchRow *, nrows);

	while (nrows > 0)
	{
		int			ngroup = 0;
		int			nrest = 0;

		for (int r = 0; r < nrows; r++)
		{
			BatchRow   *row = rows[r];

			if (!step->by_columns || ngroup == 0 ||
				carry_same_columns(group[0], row, ncolumns))
				group[ngroup++] = row;
			else
				rows[nrest++] = row;
		}
		queue_statement(apply, writer, step, group, ngroup);
		nrows = nrest;
	}
	pfree(group);
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
queue_keyless(Apply *apply, TargetWriter *writer, StatementKind kind,
			  BatchRow **rows, int nrows)
{
	Transform  *transform = writer->transform;
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	Parameters	p = parameters_create(2 * transform->ncolumns + 2);

	qsort_arg(rows, nrows, sizeof(BatchRow *), compare_old_rows, transform);
	parameters_add_columns(&p, transform, rows, nrows, COLUMNS_OLD);
	if (kind == STATEMENT_REPLACE)
		parameters_add_columns(&p, transform, rows, nrows, COLUMNS_CARRIED);
	add_groups(&p, transform, rows, nrows);
	peer_send_sql(apply->peer,
				  "SET LOCAL plan_cache_mode = force_custom_plan");
	apply_expect(apply, NULL, -1);
	send_statement(apply, target_statement(writer, kind, NULL), &p);
	apply_expect(apply, writer, nrows);
	peer_send_sql(apply->peer,
				  "SET LOCAL plan_cache_mode = force_generic_plan");
	apply_expect(apply, NULL, -1);
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
queue_keyless_table(Apply *apply, BatchTable *table)
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
	TargetWriter *writer = apply_writer(apply, table->transform);
	BatchRow  **rows = palloc_array(BatchRow *, table->nrows);

	for (int s = 0; s < lengthof(steps); s++)
	{
		RowStep		insert = {.kind = steps[s].kind};
		int			nrows = 0;

		for (BatchRow *row = table->first; row != NULL; row = row->next)
			if (row->kind == steps[s].row_kind &&
				(row->kind != ROW_UPDATE ||
				 !is_unchanged(table->transform, row)))
				rows[nrows++] = row;
		if (nrows == 0)
			continue;
		if (steps[s].kind == STATEMENT_INSERT)
			queue_statement(apply, writer, &insert, rows, nrows);
		else
			queue_keyless(apply, writer, steps[s].kind, rows, nrows);
	}
	pfree(rows);
}

static void
queue_table(Apply *apply, BatchTable *table)
{
	TargetWriter *writer = apply_writer(apply, table->transform);
	MappingRow *row = table->transform->row;
	BatchRow  **sorted = batch_sorted_rows(table);
	BatchRow  **rows = palloc_array(BatchRow *, table->nrows);
	bool		can_count = row->on_write == ON_WRITE_MIRROR &&
		row->on_delete == ON_DELETE_DELETE && !row->target_shared;

	for (int s = 0; s < lengthof(row_steps); s++)
	{
		RowStep		step = row_steps[s];
		int			nrows = 0;

		for (int r = 0; r < table->nrows; r++)
			if (step.row_kinds & MASK(sorted[r]->kind))
				rows[nrows++] = sorted[r];
		step.counted &= can_count;
		if (nrows > 0)
			queue_step(apply, writer, &step, rows, nrows);
	}
	pfree(rows);
	pfree(sorted);
}

/*
 * Queue all rows of a batch.
 */
void
apply_queue_rows(Apply *apply, Batch *batch)
{
	for (int t = 0; t < batch->ntables; t++)
	{
		BatchTable *table = &batch->tables[t];

		if (table->nrows == 0)
			continue;
		if (table->transform->nkeys == 0)
			queue_keyless_table(apply, table);
		else
			queue_table(apply, table);
	}
}

/*
 * Queue one row by itself; the caller looks at how many rows it affects.
 */
void
apply_queue_row(Apply *apply, TargetWriter *writer, StatementKind kind,
				BatchRow *row)
{
	RowStep		step = {
		.kind = kind,
		.by_columns = kind == STATEMENT_UPDATE
	};

	if (kind == STATEMENT_TAKE || kind == STATEMENT_REPLACE)
		queue_keyless(apply, writer, kind, &row, 1);
	else
		queue_statement(apply, writer, &step, &row, 1);
}

/*
 * Queue the record of a conflict over a row's key; texts are the parameters of
 * STATEMENT_CONFLICT.
 */
void
apply_queue_conflict(Apply *apply, TargetWriter *writer, BatchRow *row,
					 const char *const texts[8])
{
	Transform  *transform = writer->transform;
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	Parameters	key = parameters_create(transform->nkeys);
	Parameters	p = parameters_create(8);

	if (transform->nkeys > 0)
	{
		parameters_add_columns(&key, transform, &row, 1, COLUMNS_KEY);
		send_statement(apply, target_statement(writer, STATEMENT_NOTE, NULL),
					   &key);
		apply_expect(apply, writer, -1);
	}
	for (int i = 0; i < 8; i++)
		parameters_add_text(&p, texts[i]);
	send_statement(apply, target_statement(writer, STATEMENT_CONFLICT, NULL),
				   &p);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
	apply_expect(apply, writer, -1);
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
	apply_expect(apply, writer, 1);
}
