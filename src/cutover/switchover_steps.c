/*-------------------------------------------------------------------------
 *
 * switchover_steps.c
 *		The steps of a switchover on the side that it goes from; those that
 *		belong to the other side are in switchover_peer.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/worker.h"
#include "cutover/router.h"
#include "cutover/sequence.h"
#include "cutover/switchover.h"
#include "cutover/window.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define POLL_MS			20
#define SMALL_LAG		(1024 * 1024)	/* bytes, before anybody is held up */
#define BARRIER			"bluegreen barrier"
#define ROUTER_TRIES	10
#define ROUTER_REST_MS	500

/* ---- ready ---- */

/* Bytes of WAL that the stream has not applied; -1: it does not stream. */
static int64
stream_lag(SwitchMove *move)
{
	XLogRecPtr	now = control_position();
	XLogRecPtr	applied;
	StreamState state;

	SpinLockAcquire(&move->shared->mutex);
	state = move->shared->state;
	applied = move->shared->applied_lsn;
	SpinLockRelease(&move->shared->mutex);
	if (state != STREAM_STREAMING)
		return -1;
	return now > applied ? (int64) (now - applied) : 0;
}

/*
 * Wait until the stream is so close behind that what is left takes no time.
 * Errors: those of a stream that will not get there.
 */
void
step_ready(SwitchMove *move)
{
	int64		lag;

	while ((lag = stream_lag(move)) < 0 || lag > SMALL_LAG)
	{
		control_check_stream(move->shared, move->deployment->name);
		stream_wake(move->shared);
		switch_rest(move, POLL_MS);
	}
	/* connect while nobody waits for it */
	(void) switch_peer(move);
}

/* ---- drain conditions ---- */

/*
 * Wait until work outside of transactions has ended, before anybody is held
 * up: it may have to write.
 */
void
step_drain(SwitchMove *move)
{
	const char *unmet;
	bool		any = drain_any(move->deployment->id);

	while ((unmet = drain_unmet(move->deployment)) != NULL)
	{
		move->step_name = psprintf("drain condition \"%s\"", unmet);
		switch_rest(move, POLL_MS * 5);
	}
	if (any)
		appendStringInfoString(&move->note, "drain conditions are met");
}

/* ---- fence ---- */

/*
 * Hold writers, and wait for those who had written.  If a drain condition is
 * not met any more, who has to work on shall be able to: begin again.
 */
void
step_fence(SwitchMove *move)
{
	FencePolicy policy =
		strcmp(move->row.on_drain_timeout, "terminate") == 0 ?
		FENCE_TERMINATE : FENCE_ABORT;
	const char *unmet;

	fence_raise(move->fence, move->row.epoch);
	MemoryContextSwitchTo(move->context);
	if (move->deployment->window == WINDOW_OPEN)
		window_check_other(move);
	fence_wait_drained(move->row.drain_timeout, policy);
	unmet = drain_unmet(move->deployment);
	if (unmet == NULL)
		return;
	move->again = true;
	appendStringInfo(&move->note,
					 "fence lowered, drain condition \"%s\" is not met any more",
					 unmet);
}

/*
 * Let writers go on.  In doubt: only after switch_resolve().
 */
void
undo_fence(SwitchMove *move)
{
	int64		epoch;
	FenceState	state = fence_state(move->fence, &epoch);

	if (state == FENCE_RAISED || state == FENCE_IN_DOUBT)
		fence_lower(move->fence, epoch);
}

/* ---- barrier ---- */

/*
 * Everything that was committed before is durable on the other side when this
 * returns.  The message is committed and flushed, and asynchronous commits
 * before it are with it; its place is behind all that counts, because nobody
 * can write any more.  applied_lsn is what the other side's COMMIT has
 * acknowledged.
 */
void
step_barrier(SwitchMove *move)
{
	XLogRecPtr	goal;
	XLogRecPtr	applied;

	(void) LogLogicalMessage(BARRIER, BARRIER, sizeof(BARRIER), true, true);
	switch_commit(move);
	goal = XactLastCommitEnd;
	for (;;)
	{
		SpinLockAcquire(&move->shared->mutex);
		applied = move->shared->applied_lsn;
		SpinLockRelease(&move->shared->mutex);
		if (applied >= goal)
			break;
		control_check_stream(move->shared, move->deployment->name);
		stream_wake(move->shared);
		switch_rest(move, POLL_MS);
	}
}

/* ---- sequences ---- */

/*
 * What the other side hands out from now on was not handed out before.  To be
 * undone it needs nothing: numbers are left out.  In a window that is so anyway.
 */
void
step_sequences(SwitchMove *move)
{
	int64		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													   move->row.deadline);
	int			n;

	if (move->deployment->window != WINDOW_CLOSED)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	n = sequences_move(move->deployment, switch_peer(move),
					   (int) Max(left, 1));
	PopActiveSnapshot();
	switch_commit(move);
	if (n > 0)
		appendStringInfo(&move->note, "%d sequences moved", n);
}

/*
 * Nothing keeps nextval() on this side from going on: has it reached what the
 * other side hands out?
 */
void
step_margin(SwitchMove *move)
{
	int			n;

	PushActiveSnapshot(GetTransactionSnapshot());
	n = sequences_check_margin(move->deployment);
	PopActiveSnapshot();
	switch_commit(move);
	if (n > 0)
		appendStringInfo(&move->note,
						 "%d sequences were used beyond bluegreen.sequence_margin",
						 n);
}

/* ---- the decision is near ---- */

void
step_doubt(SwitchMove *move)
{
	fence_doubt(move->fence, move->row.epoch);
	MemoryContextSwitchTo(move->context);
}

/*
 * Wait until every standby that is connected has all that is written: one that
 * is promoted later must know that this side was in doubt.  Not those who only
 * collect WAL.
 */
void
switch_wait_standbys(SwitchMove *move)
{
	XLogRecPtr	goal = XactLastCommitEnd;
	uint64		n;

	do
	{
		CatalogAccess access;
		CatalogArgs args = {0};

		catalog_begin(&access);
		catalog_arg(&args, PG_LSNOID, Int64GetDatum((int64) goal));
		n = catalog_run("SELECT FROM pg_stat_replication r "
						"WHERE r.state = 'streaming' "
						"AND r.application_name <> 'pg_receivewal' "
						"AND coalesce(r.flush_lsn, '0/0') < $1 "
						"AND NOT EXISTS (SELECT FROM pg_replication_slots s "
						"WHERE s.active_pid = r.pid AND s.slot_type = 'logical')",
						&args, SPI_OK_SELECT);
		catalog_end(&access);
		if (n > 0)
			switch_rest(move, POLL_MS);
	} while (n > 0);
}

/* ---- routers ---- */

static RouterSide
switch_to(const SwitchMove *move)
{
	return move->row.kind == SWITCH_SWITCHOVER ? SIDE_GREEN : SIDE_BLUE;
}

/*
 * Clients of poolers wait there, and have no error.  Their transactions may go
 * on for as long as any other.
 */
void
step_pause(SwitchMove *move)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  move->row.drain_timeout);

	if (routers_load(move->deployment->id) == NIL)
		return;
	routers_pause(move->deployment, Min(end, move->row.deadline));
	MemoryContextSwitchTo(move->context);
	appendStringInfoString(&move->note, "routers are paused");
}

void
undo_pause(SwitchMove *move)
{
	(void) routers_resume(move->deployment);
	MemoryContextSwitchTo(move->context);
}

/*
 * They lead to the other side now, and let clients through.  One that cannot be
 * reached is tried for some time; whoever looks after it finds an event.
 */
void
step_routers(SwitchMove *move)
{
	int			n = 0;

	for (int i = 0; i < ROUTER_TRIES; i++)
	{
		int			paused;

		if (i > 0)
			switch_rest(move, ROUTER_REST_MS);
		n = routers_switch(move->deployment, switch_to(move), true);
		paused = routers_resume(move->deployment);
		n = Max(n, paused);
		MemoryContextSwitchTo(move->context);
		if (n == 0)
			break;
	}
	if (n > 0)
		appendStringInfo(&move->note, "%d routers did not do it, see events",
						 n);
	else if (routers_load(move->deployment->id) != NIL)
		appendStringInfo(&move->note, "routers lead to %s", move->to);
}

/* ---- after the decision ---- */

/*
 * A verification that runs would take rows on their way back for differences.
 */
static void
end_verification(int32 deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	catalog_run("UPDATE bluegreen.verify_run SET state = 'cancelled', "
				"finished_at = clock_timestamp() "
				"WHERE deployment = $1 AND state = 'running'",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * The other side is the active one: close this one, with the sign for clients,
 * and have it in the row.  Held writers are disconnected.
 */
void
step_close(SwitchMove *move)
{
	int64		epoch;
	FenceState	state = fence_state(move->fence, &epoch);

	if (state == FENCE_CLOSED)
		return;
	HOLD_INTERRUPTS();
	fence_mark(move->fence);
	end_verification(move->row.deployment);
	window_leave(move->fence);
	switch_row_set(move->row.deployment, "state = 'decided', sqlstate = NULL, "
				   "message = NULL, detail = NULL, hint = NULL");
	fence_close(move->fence, epoch);
	RESUME_INTERRUPTS();
	MemoryContextSwitchTo(move->context);
	appendStringInfo(&move->note, "%s is closed", move->from);
}

/*
 * The last step: whoever listens is told, and the move is over.
 */
void
step_tell(SwitchMove *move)
{
	routers_notify(move->deployment, switch_kind_names[move->row.kind],
				   router_sides[switch_to(move)], move->row.epoch);
	switch_row_set(move->row.deployment,
				   "state = 'done', finished_at = clock_timestamp()");
	switch_commit(move);
}
