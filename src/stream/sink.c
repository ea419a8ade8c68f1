/*-------------------------------------------------------------------------
 *
 * sink.c
 *		The stream's sink: row changes into batches, batches to the target.
 *
 * Whole source transactions are put together into one target transaction until
 * the batch is full or old enough; reader.c sends it at once when there is no
 * more WAL to decode, so an idle system adds no latency.  A transaction that
 * is larger than a batch goes in parts, inside one target transaction.  The
 * connection is looked after every few rows, so that what was handed to apply.c
 * goes on while the next batch is filled.
 *
 * Below StreamShared.careful_until each transaction goes by itself and row by
 * row (see apply.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/clock.h"
#include "core/event.h"
#include "core/settings.h"
#include "miscadmin.h"
#include "stream/sync.h"
#include "stream/window.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define STOP_ROWS	4096		/* rows between looks at whether to stop */
#define POLL_ROWS	128			/* ... at the connection; divides the former */

/* Which counter a change goes to. */
static pg_atomic_uint64 *
counter_of(TableShared *stats, ChangeKind kind)
{
	switch (kind)
	{
		case CHANGE_INSERT:
			return &stats->inserts;
		case CHANGE_DELETE:
		case CHANGE_DELETE_IF_THERE:
			return &stats->deletes;
		default:
			return &stats->updates;
	}
}

/*
 * Count one more.  Nobody else writes these counters, so nothing is locked.
 */
static inline void
count(pg_atomic_uint64 *counter)
{
	pg_atomic_write_u64(counter, pg_atomic_read_u64(counter) + 1);
}

static inline TableShared *
stats_of(const StreamWorker *worker, const Transform *transform)
{
	return worker->gate->tables[transform->number].stats;
}

static bool
is_full(int64 rows, int64 bytes)
{
	return rows >= bg_batch_rows || bytes >= (int64) bg_batch_size * 1024;
}

static bool
batch_is_full(const StreamWorker *worker)
{
	return is_full(worker->batch->rows, worker->batch->bytes);
}

/*
 * Is there a complete transaction that has rows on the way to the target?
 */
bool
sink_has_pending(const StreamWorker *worker)
{
	return worker->pending.transactions > 0;
}

/*
 * Send what is in the batch in the open transaction, without an end.
 */
static void
send_part(StreamWorker *worker)
{
	worker->sent_rows += worker->batch->rows;
	worker->sent_bytes += worker->batch->bytes;
	worker->batch = apply_send(worker->apply, worker->batch,
							   &worker->current, false);
}

/*
 * Send and commit the complete transactions.  Waits until the batch before is
 * sent.
 */
void
sink_flush(StreamWorker *worker)
{
	ApplyPosition position = worker->pending;

	if (!sink_has_pending(worker))
		return;
	memset(&worker->pending, 0, sizeof(worker->pending));
	worker->batch_started = 0;
	worker->sent_rows = worker->sent_bytes = 0;
	worker->batch = apply_send(worker->apply, worker->batch, &position, true);
}

/*
 * Gate's settle: the stream is about to wait for a chunk inside a transaction;
 * let everything before it arrive and say so.
 */
void
sink_settle(void *arg, ReorderBufferTXN *txn)
{
	StreamWorker *worker = arg;
	StreamShared *shared = worker->shared;

	apply_wait(worker->apply);
	if (sink_has_pending(worker))
		return;
	SpinLockAcquire(&shared->mutex);
	shared->applied_lsn = Max(shared->applied_lsn, txn->final_lsn);
	SpinLockRelease(&shared->mutex);
	ConditionVariableBroadcast(&shared->changed);
}

/*
 * Gate's forget: the new row of the change at hand has been copied.
 */
void
sink_forget(void *arg, const Transform *transform)
{
	StreamWorker *worker = arg;

	batch_forget(worker->batch, transform, worker->decode->scratch.values);
}

static void
sink_begin(void *arg, ReorderBufferTXN *txn)
{
	StreamWorker *worker = arg;

	gate_begin(worker->gate);
	worker->current.end_lsn = txn->end_lsn;
	worker->current.commit_lsn = txn->final_lsn;
	worker->current.commit_time = clock_shifted(txn->xact_time.commit_time);
	worker->current.seen = worker->seen;
	/* a part of this one takes along what is pending, which has seen less */
	worker->current.seen_before = sink_has_pending(worker) ?
		worker->pending.seen_before : worker->seen;
	worker->has_rows = false;
	worker->careful = window_is_careful(worker, txn->final_lsn);
	worker->decode->name_rows = worker->careful;
	if (worker->careful)
	{
		sink_flush(worker);
		apply_wait(worker->apply);
		worker->shared->careful_batches++;
	}
	if (worker->decode->skipping)
	{
		worker->shared->skipped++;
		event_record(MyDatabaseId, worker->deployment->id, EVENT_SKIPPED,
					 txn->final_lsn, "left a transaction out, as told", NULL);
	}
}

static void
apply_carefully(StreamWorker *worker, const RowChange *change, bool first)
{
	CarefulContext context = {
		.deployment = worker->deployment->name,
		.position = worker->current,
		.first = first
	};

	apply_row_carefully(worker->apply, change, &context);
}

/*
 * Add to the batch; where that cannot be, send the batch first.
 */
static void
add_to_batch(StreamWorker *worker, const RowChange *change)
{
	worker->batch->window = worker->window;
	worker->batch->seen = worker->seen;
	if (worker->window)
		window_check_change(worker->apply, change);
	if (batch_add(worker->batch, change) == BATCH_ADDED)
		return;
	send_part(worker);
	worker->batch->window = worker->window;
	worker->batch->seen = worker->seen;
	if (change->kind == CHANGE_MOVE)
		apply_move(worker->apply, change, &worker->current);
	else if (batch_add(worker->batch, change) != BATCH_ADDED)
		elog(ERROR, "change does not fit into an empty batch");
}

static void
sink_row(void *arg, const RowChange *change)
{
	StreamWorker *worker = arg;
	TableShared *stats = stats_of(worker, change->transform);
	bool		first = !worker->has_rows;

	if (++worker->shared->rows % POLL_ROWS == 0)
	{
		(void) apply_poll(worker->apply);
		/* in a large transaction the end may be far */
		if (worker->shared->rows % STOP_ROWS == 0)
			gate_check_stop(worker->shared);
	}
	CHECK_FOR_INTERRUPTS();
	worker->has_rows = true;
	count(counter_of(stats, change->kind));
	if (worker->careful)
		apply_carefully(worker, change, first);
	else
	{
		/* not before there is more of the transaction: its end may go along */
		if (batch_is_full(worker))
			send_part(worker);
		add_to_batch(worker, change);
	}
}

static void
sink_filtered(void *arg, Transform *transform)
{
	count(&stats_of(arg, transform)->filtered);
}

/*
 * Truncate targets.  A table that is being copied begins its copy anew.
 */
static void
sink_truncate(void *arg, List *transforms, bool cascade,
			  bool restart_identity)
{
	StreamWorker *worker = arg;
	ListCell   *lc;

	/* before a copy is waited for, which may wait for us */
	foreach(lc, transforms)
	{
		apply_check_truncate(worker->apply, lfirst(lc));
	}
	worker->has_rows = true;
	send_part(worker);
	foreach(lc, transforms)
	{
		Transform  *transform = lfirst(lc);

		if (!gate_truncate(worker->gate, transform, worker->decode->txn))
			continue;
		apply_restart_copy(worker->apply, transform, &worker->current);
		event_record(MyDatabaseId, worker->deployment->id,
					 EVENT_COPY_RESTARTED, worker->current.commit_lsn,
					 psprintf("\"%s\" was truncated; its copy begins again",
							  get_rel_name(transform->row->source)), NULL);
	}
	apply_truncate(worker->apply, transforms, restart_identity,
				   &worker->current);
}

/*
 * Must the batch go out now that a transaction is complete?
 */
static bool
flush_is_due(const StreamWorker *worker)
{
	if (worker->careful || worker->gate->eager || worker->gate->truncated ||
		is_full(worker->batch->rows + worker->sent_rows,
				worker->batch->bytes + worker->sent_bytes))
		return true;
	return GetCurrentTimestamp() - worker->batch_started >=
		(int64) bg_batch_delay * 1000;
}

static void
note_pending(StreamWorker *worker)
{
	ApplyPosition before = worker->pending;

	worker->pending = worker->current;
	worker->pending.transactions = before.transactions + 1;
	worker->pending.oldest = before.oldest;
	worker->pending.seen_before = before.seen_before;
	if (before.transactions > 0)
		return;
	worker->batch_started = GetCurrentTimestamp();
	worker->pending.oldest = worker->current.commit_time;
	worker->pending.seen_before = worker->current.seen;
	apply_note_oldest(worker->apply);
}

static void
sink_commit(void *arg, ReorderBufferTXN *txn, XLogRecPtr end_lsn)
{
	StreamWorker *worker = arg;

	worker->decoded = end_lsn;
	if (!worker->has_rows && !sink_has_pending(worker) &&
		!worker->decode->skipping)
		return;
	note_pending(worker);
	if (!flush_is_due(worker))
		return;
	sink_flush(worker);
	if (worker->careful || worker->gate->truncated)
	{
		apply_wait(worker->apply);
		gate_commit(worker->gate);
		window_collect(worker);
	}
}

/*
 * The current transaction has changed our mappings.  What came before it goes
 * to the target by the old ones, and the worker's successor begins with this
 * transaction.  Its commit is in the WAL before others see it (while it waits
 * for a standby, say): a successor would load the old mappings and come back.
 *
 * If the transaction itself has rows, they are in one batch with what came
 * before, and all of it is decoded again.
 */
static void
sink_redefined(void *arg, ReorderBufferTXN *txn)
{
	StreamWorker *worker = arg;

	gate_wait_for_xid(worker->gate, txn->xid);
	if (!worker->has_rows)
		reader_stop(worker);
	SpinLockAcquire(&worker->shared->mutex);
	worker->shared->reload = true;
	SpinLockRelease(&worker->shared->mutex);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("mappings of deployment \"%s\" were changed at %X/%X; the stream reads them again",
					worker->deployment->name,
					LSN_FORMAT_ARGS(txn->final_lsn))));
}

/*
 * Set up the sink that fills the worker's batches.
 */
void
sink_init(StreamWorker *worker, ChangeSink *sink)
{
	worker->apply->waiting = &worker->pending;
	sink->begin = sink_begin;
	sink->row = sink_row;
	sink->filtered = sink_filtered;
	sink->truncate = sink_truncate;
	sink->commit = sink_commit;
	sink->redefined = sink_redefined;
	sink->message = NULL;
	sink->arg = worker;
}
