/*-------------------------------------------------------------------------
 *
 * switchover.c
 *		The state machine that moves the users to the other side.
 *
 * A move goes from the side that is the active one (blue for a switchover,
 * green for a rollback) to the other.  It is run by a worker on the side that
 * it goes from.  The procedures only leave a request in bluegreen.switch, wait,
 * and print (switchover_call.c).
 *
 * One row decides: the fence of the other side.  Its epoch rises with every
 * move, and the decision is one transaction there, which compares and sets state
 * and epoch: guarded or closed -> open.  Before it is asked for, this side is
 * durably in doubt; nobody writes here then, whatever becomes of this worker or
 * this server, until somebody has looked at that row:
 *
 *		not decided		it is settled first: the epoch is raised without opening
 *						that side, so that the decision, should it still be on
 *						its way, cannot be made any more.  Then this side is
 *						opened as it was.
 *		decided			this side is closed.
 *
 * So whatever is killed whenever, there is one side that takes writes, or none
 * until both servers can be asked:
 *
 *		killed before in_doubt	a raised fence ends with its session.  The next
 *								worker finds the row unfinished and undoes.
 *		while in doubt			the next worker asks, for ever.  A human who
 *								knows better can call force_active().
 *		after closed			the next worker does what is left.
 *
 * Steps are two tables: those before the decision, each with what undoes it, and
 * those after it, each of which may be done again.  An error, a timeout or a
 * cancel before the decision undoes all of the first; after it there is no way
 * but forward, and the launcher starts a worker until all is done.
 *
 * Whatever waits holds no snapshot.  An error before this side is in doubt
 * aborts the transaction, which lets held writers go on at once.  While in doubt
 * errors are caught in subtransactions, so that the lock stays and writers wait
 * for the outcome instead of being refused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "core/event.h"
#include "core/worker.h"
#include "cutover/switchover.h"
#include "cutover/window.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#define STOP_POLL_MS	20
#define AGAIN_REST_MS	100

static const SwitchStep steps_before[] = {
	{"ready", "the stream follows closely", step_ready, NULL,
	"wait until the stream follows closely"},
	{"drain", NULL, step_drain, NULL, NULL},
	{"pause", NULL, step_pause, undo_pause, "pause the routers, if there are any"},
	{"fence", "fence raised and drained", step_fence, undo_fence,
	"raise the fence, wait for transactions that have written"},
	{"barrier", "everything is applied", step_barrier, NULL,
	"wait until everything is applied"},
	{"sequences", NULL, step_sequences, NULL, "move the sequences"},
	{"doubt", "ready to decide", step_doubt, NULL,
	"write down that the decision is about to be made"},
};

/* "decide" is between them */
static const SwitchStep steps_after[] = {
	{"close", NULL, step_close, NULL, "open the other side, close this one"},
	{"routers", NULL, step_routers, NULL,
	"have the routers lead there, and resume them"},
	{"numbers", NULL, step_numbers_back, NULL, NULL},
	{"margin", NULL, step_margin, NULL, NULL},
	{"window", NULL, step_window_closed, NULL, NULL},
	{"tell", NULL, step_tell, NULL, "tell clients"},
};

static bool move_is_decided(SwitchMove *move);

const SwitchPlan switch_plan_move = {
	.before = steps_before,.nbefore = lengthof(steps_before),
	.after = steps_after,.nafter = lengthof(steps_after),
	.decide = "SELECT bluegreen.fence_decide($1, $2)",
	.settle = "SELECT bluegreen.fence_settle($1, $2)",
	.decided = "%s is the active side",
	.doubt = "it is in doubt whether %s is the active side",
	.is_decided = move_is_decided
};

/* ---- transactions and waiting ---- */

/*
 * Commit, durably here, and go on in a new transaction.
 */
void
switch_commit(SwitchMove *move)
{
	fence_commit();
	MemoryContextSwitchTo(move->context);
}

/*
 * Wait for ms at most, or until the stream has advanced.
 */
void
switch_rest(SwitchMove *move, long ms)
{
	worker_check();
	ConditionVariablePrepareToSleep(&move->shared->changed);
	(void) ConditionVariableTimedSleep(&move->shared->changed, ms,
									   PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
	worker_check();
}

static void
begin(SwitchMove *move)
{
	StartTransactionCommand();
	MemoryContextSwitchTo(move->context);
}

/* After an error: nothing of it is left, no lock, no timeout. */
static ErrorData *
take_error(SwitchMove *move)
{
	ErrorData  *error;

	MemoryContextSwitchTo(move->context);
	error = CopyErrorData();
	HOLD_INTERRUPTS();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	LWLockReleaseAll();
	RESUME_INTERRUPTS();
	return error;
}

/* ---- steps ---- */

/*
 * Tell the caller, and history.
 */
static void
tell(SwitchMove *move, const char *text)
{
	long		ms = TimestampDifferenceMilliseconds(move->step_begun,
													 GetCurrentTimestamp());

	switch_progress_add(move->shared, psprintf("%s (%ld ms)", text, ms));
	event_record(MyDatabaseId, move->deployment->id, EVENT_SWITCH,
				 InvalidXLogRecPtr,
				 psprintf("%s, epoch " INT64_FORMAT ": %s",
						  switch_kind_names[move->row.kind], move->row.epoch,
						  text),
				 psprintf("%ld ms", ms));
}

/*
 * For tests: wait here until somebody says otherwise, if that was asked for.
 */
void
switch_stop_at(SwitchMove *move, const char *step)
{
	SwitchRow	row = move->row;

	if (!move->stops || row.stop_at == NULL || strcmp(row.stop_at, step) != 0)
		return;
	move->stops = false;
	switch_row_set(row.deployment, "stop_at = 'at ' || stop_at");
	switch_commit(move);
	while (row.stop_at != NULL)
	{
		switch_rest(move, STOP_POLL_MS);
		(void) switch_row_read(row.deployment, &row);
	}
}

static void
run_step(SwitchMove *move, const SwitchStep *step)
{
	switch_stop_at(move, step->name);
	move->step_name = step->name;
	resetStringInfo(&move->note);
	move->step_begun = GetCurrentTimestamp();
	pgstat_report_activity(STATE_RUNNING, step->name);
	step->run(move);
	if (move->note.len > 0)
		tell(move, move->note.data);
	else if (step->what != NULL)
		tell(move, step->what);
}

static void
undo(SwitchMove *move)
{
	for (int i = move->plan->nbefore - 1; i >= 0; i--)
	{
		if (move->plan->before[i].undo != NULL)
			move->plan->before[i].undo(move);
	}
}

/*
 * All steps before the decision.  A step that asks for it (again) has them
 * undone and done once more.
 */
static void
run_before(SwitchMove *move)
{
	do
	{
		move->again = false;
		for (int i = 0; i < move->plan->nbefore && !move->again; i++)
		{
			run_step(move, &move->plan->before[i]);
		}
		if (move->again)
		{
			undo(move);
			move->row.epoch++;
			switch_row_set(move->row.deployment, "epoch = epoch + 1");
			switch_commit(move);
			switch_rest(move, AGAIN_REST_MS);
		}
	} while (move->again);
}

static void
run_after(SwitchMove *move)
{
	for (int i = 0; i < move->plan->nafter; i++)
	{
		run_step(move, &move->plan->after[i]);
	}
}

/* ---- ends ---- */

static ErrorData *
make_error(SwitchMove *move, int sqlerrcode, const char *message)
{
	ErrorData  *error = MemoryContextAllocZero(move->context,
											   sizeof(ErrorData));

	error->sqlerrcode = sqlerrcode;
	error->message = pstrdup(message);
	return error;
}

/*
 * What the caller is told: a cancel or the end of its time came as an
 * interrupted wait.
 */
static ErrorData *
explain(SwitchMove *move, ErrorData *error)
{
	const char *kind = switch_kind_names[move->row.kind];
	SwitchRow	row;
	ErrorData  *result;

	if (error->sqlerrcode != ERRCODE_QUERY_CANCELED)
		return error;
	if (switch_row_read(move->row.deployment, &row) && row.cancelled)
		result = make_error(move, error->sqlerrcode,
							psprintf("%s of deployment \"%s\" was cancelled",
									 kind, move->deployment->name));
	else if (GetCurrentTimestamp() >= move->row.deadline)
		result = make_error(move, error->sqlerrcode,
							psprintf("%s of deployment \"%s\" took longer than its timeout",
									 kind, move->deployment->name));
	else
		return error;
	if (move->step_name != NULL)
		result->detail = psprintf("It was at step \"%s\".", move->step_name);
	return result;
}

/*
 * The move is over, and this side is as it was.
 */
static void
end_failed(SwitchMove *move, ErrorData *error)
{
	undo(move);
	error = explain(move, error);
	switch_row_error(move->row.deployment, SWITCH_FAILED, error);
	switch_commit(move);
	event_record(MyDatabaseId, move->deployment->id, EVENT_SWITCH,
				 InvalidXLogRecPtr,
				 psprintf("%s, epoch " INT64_FORMAT ": undone",
						  switch_kind_names[move->row.kind], move->row.epoch),
				 error->message);
}

/*
 * Begin from the beginning.  Returns NULL if the other side is the active one,
 * else the error; the transaction is the same then, or a new one.
 */
static ErrorData *
try_move(SwitchMove *move)
{
	ErrorData  *volatile error = NULL;
	int64		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													   move->row.deadline);

	enable_timeout_after(STATEMENT_TIMEOUT, (int) Max(left, 1));
	PG_TRY();
	{
		if (move->row.cancelled)
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("cancelled before it had begun")));
		run_before(move);
	}
	PG_CATCH();
	{
		error = take_error(move);
		begin(move);
	}
	PG_END_TRY();
	if (error != NULL && fence_state(move->fence, NULL) != FENCE_IN_DOUBT)
		return error;
	move->step_begun = GetCurrentTimestamp();
	if (error == NULL && switch_decide(move))
		return NULL;
	disable_all_timeouts(false);
	QueryCancelPending = false;
	if (switch_resolve(move))
		return NULL;
	return error != NULL ? error : move->error;
}

static void
go_forward(SwitchMove *move)
{
	disable_all_timeouts(false);
	QueryCancelPending = false;
	tell(move, psprintf(move->plan->decided, move->to));
	run_after(move);
}

static bool
move_is_decided(SwitchMove *move)
{
	FenceState	state = fence_state(move->fence, NULL);

	return state == FENCE_CLOSED ||
		(state == FENCE_IN_DOUBT && switch_resolve(move));
}

/*
 * A worker before us has ended in the middle.
 */
static void
recover(SwitchMove *move)
{
	move->step_begun = GetCurrentTimestamp();
	if (move->plan->is_decided(move))
	{
		go_forward(move);
		return;
	}
	end_failed(move,
			   make_error(move, ERRCODE_ADMIN_SHUTDOWN,
						  psprintf("%s of deployment \"%s\" was interrupted and has been undone",
								   switch_kind_names[move->row.kind],
								   move->deployment->name)));
}

static void
run_move(SwitchMove *move)
{
	ErrorData  *error;

	if (move->row.begun)
	{
		recover(move);
		return;
	}
	switch_row_set(move->row.deployment, "begun = true");
	switch_commit(move);
	move->stops = true;
	error = try_move(move);
	if (error == NULL)
		go_forward(move);
	else
		end_failed(move, error);
}

/* ---- the process ---- */

/* There is nothing to do any more, unless somebody asks again. */
static void
all_done(StreamShared *shared)
{
	SpinLockAcquire(&shared->mutex);
	shared->switch_at = 0;
	shared->switch_failures = 0;
	SpinLockRelease(&shared->mutex);
}

/*
 * What the move is about; false if none is unfinished.
 */
static bool
load(SwitchMove *move)
{
	move->deployment = deployment_load(move->shared->deployment);
	if (move->deployment == NULL ||
		!switch_row_read(move->deployment->id, &move->row) ||
		move->row.state == SWITCH_DONE || move->row.state == SWITCH_FAILED)
		return false;
	move->plan = move->row.kind == SWITCH_OPEN_WINDOW ?
		&switch_plan_open_window : &switch_plan_move;
	/* it begins on the side that it goes from */
	move->from = move->deployment->direction == 'f' ? "blue" : "green";
	move->to = move->deployment->direction == 'f' ? "green" : "blue";
	move->fence = fence_of_deployment(move->deployment->id);
	move->stream = registry_origin(move->deployment);
	initStringInfo(&move->note);
	return true;
}

/*
 * Entry point of the worker of a switchover; the argument is the stream's
 * entry.
 */
void
bluegreen_switch_main(Datum arg)
{
	SwitchMove *move = MemoryContextAllocZero(TopMemoryContext,
											  sizeof(SwitchMove));

	move->shared = stream_shared_at(DatumGetInt32(arg));
	move->context = AllocSetContextCreate(TopMemoryContext,
										  "pg_bluegreen switch",
										  ALLOCSET_DEFAULT_SIZES);
	if (!worker_take_entry(move->shared, &move->shared->switch_pid))
		proc_exit(0);
	worker_start(move->shared->dboid, move->shared->owner,
				 "pg_bluegreen switch");
	PG_TRY();
	{
		begin(move);
		if (load(move))
			run_move(move);
		CommitTransactionCommand();
		all_done(move->shared);
	}
	PG_CATCH();
	{
		(void) take_error(move);
		proc_exit(1);
	}
	PG_END_TRY();
	proc_exit(0);
}
