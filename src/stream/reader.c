/*-------------------------------------------------------------------------
 *
 * reader.c
 *		Where the decoder gets its WAL from, and what happens while there is
 *		none.
 *
 * The decoder asks for a page and is kept waiting here until it is flushed,
 * and received by the standbys that must not be behind (standby.c).
 * That makes this the place where the worker does everything else: send the
 * batch as soon as nothing more is to come, take the peer's answers, tell the
 * slot what is durable on the target, keep copy workers running, and wait on
 * the latch (set by committing backends) and the peer's socket.  Core's own
 * reader would poll every millisecond.
 *
 * Nothing is confirmed to the slot that the target does not hold durably.  An
 * idle stream, or one that sees only tables that are not mapped, marks its
 * progress on the target now and then with an empty transaction, so that the
 * slot can let go of WAL.  A stream with nothing to do at all writes nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "compat.h"
#include "core/event.h"
#include "core/settings.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/walwriter.h"
#include "replication/logical.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "stream/copy.h"
#include "stream/standby.h"
#include "stream/sync.h"
#include "stream/window.h"
#include "utils/timestamp.h"

#define TICK_MS		1000		/* how often to look after things */
#define MARK_WAL	(64 * 1024) /* bytes that are worth a progress mark */

/* XLogReaderState has no room for our own pointer: it holds the decoder's. */
static StreamWorker *the_worker = NULL;

/*
 * Later calls of reader_page() work for this worker.
 */
void
reader_attach(StreamWorker *worker)
{
	the_worker = worker;
}

/*
 * Tell the slot what the target holds.
 */
void
reader_confirm(StreamWorker *worker)
{
	XLogRecPtr	durable = Max(worker->apply->applied.end_lsn,
							  worker->progress);

	if (durable <= worker->confirmed)
		return;
	LogicalConfirmReceivedLocation(durable);
	worker->confirmed = durable;
	SpinLockAcquire(&worker->shared->mutex);
	worker->shared->confirmed_lsn = durable;
	SpinLockRelease(&worker->shared->mutex);
}

static bool
is_idle(const StreamWorker *worker)
{
	return !sink_has_pending(worker) && apply_is_idle(worker->apply);
}

/*
 * Publish how far we are.  With nothing on the way, everything that is decoded
 * has been applied as far as there was anything to apply.  Between two records
 * only.
 */
void
reader_publish(StreamWorker *worker)
{
	StreamShared *shared = worker->shared;
	bool		idle = is_idle(worker);
	bool		moved;

	worker->decoded = Max(worker->decoded,
						  worker->decoding->reader->EndRecPtr);
	SpinLockAcquire(&shared->mutex);
	moved = idle && worker->decoded > shared->applied_lsn;
	shared->decoded_lsn = worker->decoded;
	if (idle)
	{
		shared->applied_lsn = Max(shared->applied_lsn, worker->decoded);
		shared->oldest_pending = 0;
	}
	SpinLockRelease(&shared->mutex);
	if (moved)
		ConditionVariableBroadcast(&shared->changed);
}

/*
 * With nothing to send for a while, record on the target how far we are.  The
 * mark is a commit there.  If the target is on this server, or is the source
 * of a stream to here, that commit comes back as WAL to decode, and marks
 * would feed each other for ever; so a mark is for much more WAL than the
 * marks of many streams make.
 */
static void
mark_progress(StreamWorker *worker, TimestampTz now)
{
	ApplyPosition position = {
		.end_lsn = worker->decoded,
		.seen = worker->seen
	};
	XLogRecPtr	marked = Max(worker->apply->applied.end_lsn,
							 worker->progress);

	if (!is_idle(worker) || now < worker->next_mark ||
		worker->decoded < marked + MARK_WAL)
		return;
	worker->next_mark = TimestampTzPlusMilliseconds(now,
													bg_idle_progress_interval);
	worker->batch = apply_send(worker->apply, worker->batch, &position, true);
}

/*
 * A token was given for a position at which there is nothing to apply: tell the
 * target that we have passed it.  What is applied tells by itself.
 */
static void
tell_reached(StreamWorker *worker)
{
	StreamShared *shared = worker->shared;
	bool		tell;

	if (!is_idle(worker))
		return;
	SpinLockAcquire(&shared->mutex);
	tell = shared->told_lsn < shared->token_lsn &&
		shared->token_lsn <= worker->decoded;
	if (tell)
		shared->told_lsn = worker->decoded;
	SpinLockRelease(&shared->mutex);
	if (tell)
		apply_tell(worker->apply, worker->decoded);
}

/*
 * A peer that we have nothing to ask for may have gone without our notice.
 */
static void
ping(StreamWorker *worker)
{
	if (is_idle(worker) && peer_is_silent(worker->peer))
		apply_ping(worker->apply);
}

/*
 * Is the last error over?  It is when everything that had been read when it
 * happened is read again, and applied; until then nothing is said of the
 * stream but that it starts, and the delay between the tries grows.
 *
 * That it is applied does not say that it was read: decoding begins where the
 * oldest transaction began that was not at its end, and can fail there, in WAL
 * whose other transactions were applied long ago.
 */
static bool
error_is_over(StreamWorker *worker)
{
	StreamShared *shared = worker->shared;
	XLogRecPtr	read = worker->decoding->reader->EndRecPtr;
	bool		over;

	SpinLockAcquire(&shared->mutex);
	over = shared->error.at == 0 ||
		(worker->decoded > shared->error.lsn &&
		 read >= shared->error_until &&
		 shared->applied_lsn >= shared->error_until);
	SpinLockRelease(&shared->mutex);
	return over;
}

static void
forget_error(StreamShared *shared)
{
	SpinLockAcquire(&shared->mutex);
	shared->error.at = 0;
	shared->failures = 0;
	shared->copy_failed = false;
	SpinLockRelease(&shared->mutex);
}

/* Is there a table that does not follow yet? */
static bool
is_copying(const StreamWorker *worker)
{
	for (int i = 0; i < worker->gate->ntables; i++)
		if (!worker->gate->tables[i].passed ||
			worker->gate->tables[i].stats->state != TABLE_STREAMING)
			return true;
	return false;
}

/*
 * Copying or streaming?  What is shown may lag behind, until an error is over.
 */
static void
update_state(StreamWorker *worker)
{
	StreamShared *shared = worker->shared;
	StreamState state = is_copying(worker) ? STREAM_COPYING : STREAM_STREAMING;

	if (state == shared->state || !error_is_over(worker))
		return;
	if (state == STREAM_STREAMING)
	{
		forget_error(shared);
		event_record(MyDatabaseId, worker->deployment->id, EVENT_STREAMING,
					 worker->decoded, "all tables follow", NULL);
	}
	stream_set_state(shared, state);
}

/*
 * Look after things: the gate, copy workers, statistics.  Cheap enough to be
 * called for every batch; most of it is done once a second.
 */
void
reader_tick(StreamWorker *worker)
{
	TimestampTz now = GetCurrentTimestamp();

	if (is_idle(worker))
		gate_reached(worker->gate, worker->decoded);
	else
		gate_reached(worker->gate, worker->apply->applied.end_lsn);
	update_state(worker);
	mark_progress(worker, now);
	tell_reached(worker);
	window_tell(worker);
	if (now < worker->next_tick)
		return;
	worker->next_tick = TimestampTzPlusMilliseconds(now, TICK_MS);
	copy_check_error(worker->shared, &worker->apply->blamed);
	if (is_copying(worker))
		copy_launch_workers(worker->shared);
	else if (worker->control)
	{
		peer_close(worker->control);
		worker->control = NULL;
	}
	reader_confirm(worker);
	ping(worker);
}

/*
 * The worker was asked to stop, or to read its mappings again: finish what is
 * decoded and end.
 */
void
reader_stop(StreamWorker *worker)
{
	sink_flush(worker);
	apply_wait(worker->apply);
	reader_confirm(worker);
	copy_stop_workers(worker->shared);
	if (worker->shared->stop_requested)
		stream_set_state(worker->shared, STREAM_STOPPED);
	proc_exit(0);
}

/*
 * How long to wait at most.  A commit that is not flushed yet (asynchronous)
 * will be by the WAL writer, which does not wake us.
 */
static long
wait_time(StreamWorker *worker, XLogRecPtr flushed)
{
	long		time = TICK_MS;

	if (wake_last_commit() > flushed)
		time = Max(WalWriterDelay, 1);
	if (peer_busy(worker->peer) || peer_is_clogged(worker->peer))
		time = Min(time, peer_watch(worker->peer));
	return time;
}

/*
 * What WaitLatchOrSocket() does, with a set of events that is made once: making
 * one takes longer than all else that a small transaction costs here.  The
 * worker has one connection to its target as long as it lives.
 */
static int
wait_latch_or_peer(StreamWorker *worker, int socket_events, long timeout)
{
	static WaitEventSet *set = NULL;
	static int	position;
	WaitEvent	event;

	if (socket_events == 0)		/* it is lost */
		return WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, timeout, PG_WAIT_EXTENSION);
	if (set == NULL)
	{
		set = WaitEventSetCreate(3);
		AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL,
						  NULL);
		position = AddWaitEventToSet(set, WL_SOCKET_READABLE,
									 peer_socket(worker->peer), NULL, NULL);
	}
	ModifyWaitEvent(set, position, socket_events, NULL);
	if (WaitEventSetWait(set, timeout, &event, 1, PG_WAIT_EXTENSION) == 0)
		return WL_TIMEOUT;
	return event.events;
}

static void
wait_for_event(StreamWorker *worker, XLogRecPtr wanted)
{
	XLogRecPtr	flushed = GetFlushRecPtr(NULL);
	long		timeout = wait_time(worker, flushed);
	int			events = peer_wait_events(worker->peer);
	int			happened;

	wake_before_wait(worker->shared);
	if (wanted <= GetFlushRecPtr(NULL))
	{
		wake_after_wait(worker->shared);
		return;
	}
	happened = wait_latch_or_peer(worker, events, timeout);
	wake_after_wait(worker->shared);
	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (happened & WL_SOCKET_MASK)
	{
		peer_sign(worker->peer);
		(void) peer_pump(worker->peer);
	}
	if ((happened & WL_TIMEOUT) && wake_last_commit() > GetFlushRecPtr(NULL))
		XLogFlush(wake_last_commit());
}

/*
 * The next WAL is there, but a standby that must not be behind the target has
 * not received it.  New commits do not matter now, so they do not wake us.
 */
static void
wait_for_standby(StreamWorker *worker, XLogRecPtr goal)
{
	int			events = peer_wait_events(worker->peer);
	int			happened = 0;

	standby_publish(worker->shared, goal);
	standby_wait_begin();
	if (!standby_has(worker->shared, goal))
		happened = wait_latch_or_peer(worker, events, TICK_MS);
	standby_wait_end();
	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (happened & WL_SOCKET_MASK)
		(void) peer_pump(worker->peer);
}

/*
 * Find out up to where WAL may be decoded, at most up to limit: flushed here,
 * and received by the standbys that must not be behind the target.  Invalid as
 * long as wanted is not flushed.
 */
static XLogRecPtr
find_goal(XLogRecPtr wanted, XLogRecPtr limit)
{
	XLogRecPtr	flushed = GetFlushRecPtr(NULL);

	return wanted > flushed ? InvalidXLogRecPtr : Min(flushed, limit);
}

/*
 * All WAL that may be is decoded.  Do what there is to do, until there is more.
 * Returns where that ends.
 */
static XLogRecPtr
wait_for_wal(StreamWorker *worker, XLogRecPtr wanted, XLogRecPtr limit)
{
	XLogRecPtr	goal = find_goal(wanted, limit);

	while (XLogRecPtrIsInvalid(goal) || !standby_has(worker->shared, goal))
	{
		worker_check();
		if (worker->shared->stop_requested || worker->shared->reload)
			reader_stop(worker);
		if (apply_poll(worker->apply))
			sink_flush(worker);
		peer_check(worker->peer);
		reader_publish(worker);
		reader_tick(worker);
		if (apply_poll(worker->apply))
			reader_confirm(worker);
		reader_publish(worker);
		if (XLogRecPtrIsInvalid(goal))
		{
			wait_for_event(worker, wanted);
			goal = find_goal(wanted, limit);
		}
		else
			wait_for_standby(worker, goal);
	}
	standby_passed(worker->shared);
	return goal;
}

/*
 * Timeline to read a page from.  We run on primaries only; pages from before
 * a promotion lie on the timelines before it.
 */
static TimeLineID
timeline_of(XLogReaderState *reader, XLogRecPtr page, int wanted)
{
	TimeLineID	current = GetWALInsertionTimeLine();

	XLogReadDetermineTimeline(reader, page, wanted, current);
	return reader->currTLI;
}

/*
 * XLogReaderRoutine.page_read: up to a page of flushed WAL.
 */
int
reader_page(XLogReaderState *reader, XLogRecPtr page, int wanted,
			XLogRecPtr target, char *buffer)
{
	WALReadError error;
	XLogRecPtr	limit = page + XLOG_BLCKSZ;
	TimeLineID	tli = timeline_of(reader, page, wanted);
	int			count;

	if (tli != GetWALInsertionTimeLine())
		limit = Min(limit, reader->currTLIValidUntil);
	if (page + wanted > limit)
		return -1;
	count = wait_for_wal(the_worker, page + wanted, limit) - page;
	if (!WALRead(reader, buffer, page, XLOG_BLCKSZ, tli, &error))
		WALReadRaiseError(&error);
	return count;
}
