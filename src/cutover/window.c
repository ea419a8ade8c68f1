/*-------------------------------------------------------------------------
 *
 * window.c
 *		Opening a window, in which both sides take writes, and what is beside
 *		a switchover when it is closed.
 *
 * A window is opened by the worker of a switchover (switchover.c), on the side
 * that is active, as a move of another kind.  Nobody is held up:
 *
 *		mode		both streams begin to keep what they need to tell conflicts
 *					from other changes (deployment.window is 'opening')
 *		numbers		sequences of the two sides leave each other's numbers out
 *					(sequence_window.c)
 *		decide		one transaction on the other side: its fence becomes open,
 *					"window" as well.  From then on its stream from here passes
 *					an open fence, and applications do.
 *		open		here: the fence is in a window, too
 *
 * As with a switchover the decision is a compare-and-set of the other side's
 * fence.  The epoch stays as it is, since nothing is behind: a token of the
 * other side is to be waited for.  The number of the move, one more than both
 * epochs, is what a settled epoch is compared with: if it is not known whether
 * the decision was made, the other side's epoch is raised to it first, unless it
 * was.  Until then this side goes on to take writes; there is one side that does
 * or there are two that are in a window, whoever dies.  What was begun is undone
 * on both sides, as often as it takes.
 *
 * It is closed by a switchover or a rollback, from the side that is to be closed.
 * That side's fence is raised, all of its changes are applied, and the decision
 * is the same compare-and-set, which takes an open fence that is in a window.
 * Both sides could be closed at the same time, each with its fence raised, which
 * the decision there would wait for.  So who has raised one looks at the other
 * before it waits for anybody: of two at least one sees the other, and gives up.
 * After the decision (deployment.window is 'closing'):
 *
 *		numbers		sequences go by their own steps again; the other side's
 *					beyond all that either has given
 *		window		when all that the other side wrote in the window is here, and
 *					all is there that this one had to write because of that, the
 *					streams need not keep anything any more
 *
 * What is asked of the other side is in window_target.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/attempt.h"
#include "core/event.h"
#include "core/worker.h"
#include "cutover/router.h"
#include "cutover/window.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#define POLL_MS			20
#define RETRY_MS		500

/* ---- both sides ---- */

static WindowState
window_of(const SwitchMove *move)
{
	return deployment_load(move->row.deployment)->window;
}

/*
 * Have the other side's window moved; returns its position then, NULL if it is
 * closed already.
 */
static char *
move_there(SwitchMove *move, WindowState state)
{
	const char *args[] = {move->stream,
	psprintf(INT64_FORMAT, move->row.epoch), window_state_names[state]};
	PeerResult *result;

	result = peer_query(switch_peer(move),
						"SELECT bluegreen.window_move($1, $2, $3)", 3, args);
	return result->values[0][0];
}

/*
 * Begin to ask what is asked again and again, for hours if a stream stands:
 * what is made now is there until the next question.  Returns the context to go
 * back to.
 */
static MemoryContext
begin_question(void)
{
	static MemoryContext context = NULL;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext,
										"pg_bluegreen window",
										ALLOCSET_SMALL_SIZES);
	MemoryContextReset(context);
	return MemoryContextSwitchTo(context);
}

/*
 * Has the other side's stream passed a position, in a window?  *problem: its
 * error, or NULL; until the next question.
 */
static bool
has_passed(SwitchMove *move, const char *position, char **problem)
{
	MemoryContext old = begin_question();
	const char *args[] = {move->stream, position};
	PeerResult *result =
		peer_query(switch_peer(move), "SELECT passed, problem "
				   "FROM bluegreen.window_look($1, $2::pg_lsn)", 2, args);

	*problem = result->values[0][1];
	MemoryContextSwitchTo(old);
	return result->values[0][0][0] == 't';
}

/* Does our stream keep what a window needs, and has it passed a position? */
static bool
has_passed_here(SwitchMove *move, int64 version, XLogRecPtr position)
{
	StreamShared *shared = move->shared;
	bool		result;

	SpinLockAcquire(&shared->mutex);
	result = shared->pid != 0 && shared->state == STREAM_STREAMING &&
		shared->mapping_version >= version &&
		!XLogRecPtrIsInvalid(shared->window_since) &&
		shared->applied_lsn >= position;
	SpinLockRelease(&shared->mutex);
	return result;
}

/* ---- opening: the streams ---- */

/*
 * Have both streams keep what a window needs, and wait until all that they did
 * not keep is applied.  Errors: those of a stream that will not get there.
 */
static void
step_mode(SwitchMove *move)
{
	char	   *position;
	char	   *problem;
	XLogRecPtr	here;
	int64		version;

	(void) window_set(move->row.deployment, WINDOW_OPENING);
	switch_commit(move);
	while (!window_sequences_undo(move->deployment))	/* left by force */
		switch_rest(move, RETRY_MS);
	switch_commit(move);
	version = deployment_load(move->row.deployment)->mapping_version;
	here = control_position();
	position = move_there(move, WINDOW_OPENING);
	while (!has_passed_here(move, version, here))
	{
		control_check_stream(move->shared, move->deployment->name);
		stream_wake(move->shared);
		switch_rest(move, POLL_MS);
	}
	while (!has_passed(move, position, &problem))
	{
		if (problem != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the stream from %s of deployment \"%s\" has an error: %s",
							move->to, move->deployment->name, problem)));
		switch_rest(move, POLL_MS);
	}
}

/*
 * Both sides as they were.  The other one first, which must not be able to open
 * any more; it is asked until it answers.
 */
static void
undo_mode(SwitchMove *move)
{
	if (window_of(move) == WINDOW_CLOSED)
		return;
	if (switch_resolve(move))
		elog(ERROR, "a window that was opened cannot be undone");
	while (!window_sequences_undo(move->deployment))
		switch_rest(move, RETRY_MS);
	(void) window_set(move->row.deployment, WINDOW_CLOSED);
	switch_commit(move);
}

/* ---- opening: the other steps ---- */

static void
step_numbers(SwitchMove *move)
{
	int			n = window_sequences_open(move, switch_peer(move));

	if (n > 0)
		appendStringInfo(&move->note,
						 "%d sequences leave numbers to the other side", n);
}

/*
 * The other side takes writes: this one is in a window, too.
 */
static void
step_open(SwitchMove *move)
{
	fence_enter_window(move->fence);
	(void) window_set(move->row.deployment, WINDOW_OPEN);
	switch_row_set(move->row.deployment, "state = 'decided', sqlstate = NULL, "
				   "message = NULL, detail = NULL, hint = NULL");
	fence_commit_durably();
	switch_commit(move);
}

static void
step_opened(SwitchMove *move)
{
	routers_notify(move->deployment, "open_window", "both", move->row.epoch);
	switch_row_set(move->row.deployment,
				   "state = 'done', finished_at = clock_timestamp()");
	switch_commit(move);
}

static bool
open_is_decided(SwitchMove *move)
{
	switch (window_of(move))
	{
		case WINDOW_OPENING:
			return switch_resolve(move);
		case WINDOW_OPEN:
			return true;
		default:
			return false;
	}
}

static const SwitchStep steps_before[] = {
	{"ready", "the stream follows closely", step_ready, NULL, NULL},
	{"mode", "both streams keep their own changes", step_mode, undo_mode, NULL},
	{"numbers", NULL, step_numbers, NULL, NULL},
};

static const SwitchStep steps_after[] = {
	{"open", "the window is open", step_open, NULL, NULL},
	{"tell", NULL, step_opened, NULL, NULL},
};

const SwitchPlan switch_plan_open_window = {
	.before = steps_before,.nbefore = lengthof(steps_before),
	.after = steps_after,.nafter = lengthof(steps_after),
	.decide = "SELECT bluegreen.window_decide($1, $2)",
	.settle = "SELECT bluegreen.window_settle($1, $2)",
	.decided = "%s takes writes, too",
	.doubt = "it is in doubt whether %s takes writes, too",
	.is_decided = open_is_decided
};

/* ---- closing ---- */

/*
 * This side's fence is raised.  Error if the other one's is, too, or if it does
 * not take writes any more.
 */
void
window_check_other(SwitchMove *move)
{
	FenceView	there = switch_look(switch_peer(move), move->stream);

	if (there.state != FENCE_OPEN || !there.window)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("%s is about to be closed, too, or does not take writes in deployment \"%s\"",
						move->to, move->deployment->name),
				 errdetail("Its fence is %s in epoch " INT64_FORMAT ".",
						   fence_state_names[there.state], there.epoch)));
}

/*
 * Sequences go by their own steps again: those of this side, which is closed,
 * and those of the other, which stays.
 */
void
step_numbers_back(SwitchMove *move)
{
	int			n = 0;

	if (window_of(move) != WINDOW_CLOSING)
		return;
	while (!window_sequences_close(move, switch_peer(move), &n))
		switch_rest(move, RETRY_MS);
	if (n > 0)
		appendStringInfo(&move->note,
						 "%d sequences go by their own steps again", n);
}

/* What stands in the row while a stream has an error. */
static void
show_problem(SwitchMove *move, const char *from, const char *problem,
			 char **shown_before)
{
	ErrorData	shown = {0};
	const char *to = from == move->to ? move->from : move->to;

	if (problem == NULL ||
		(*shown_before != NULL && strcmp(*shown_before, problem) == 0))
		return;
	*shown_before = MemoryContextStrdup(move->context, problem);
	shown.sqlerrcode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	shown.message = psprintf("the stream from %s has an error: %s", from,
							 problem);
	shown.hint = psprintf("What %s has written in the window is not on %s yet. See view bluegreen.status on %s.",
						  from, to, from);
	switch_row_error(move->row.deployment, SWITCH_DECIDED, &shown);
	switch_commit(move);
}

/*
 * Wait until all that the other side has written so far is here.  False if the
 * window is closed there already.
 */
static bool
wait_for_other(SwitchMove *move, char **shown)
{
	char	   *position = move_there(move, WINDOW_CLOSING);
	char	   *problem;

	while (position != NULL && !has_passed(move, position, &problem))
	{
		show_problem(move, move->to, problem, shown);
		switch_rest(move, POLL_MS);
	}
	return position != NULL;
}

/* Rows that were left out, and that who left them out has not sent yet. */
#define OWED "SELECT EXISTS (SELECT FROM bluegreen.window_owed WHERE stream = $1)"

static bool
is_owed(SwitchMove *move)
{
	MemoryContext old = begin_question();
	const char *there[] = {move->stream};
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		owed;

	catalog_begin(&access);
	catalog_arg_text(&args, move->deployment->opposite);
	catalog_run(OWED, &args, SPI_OK_SELECT);
	owed = DatumGetBool(catalog_value(0, 1, NULL));
	catalog_end(&access);
	if (!owed)
		owed = peer_query(switch_peer(move), OWED, 1,
						  there)->values[0][0][0] == 't';
	MemoryContextSwitchTo(old);
	return owed;
}

/*
 * How far this side's stream is, and how many rows of its own it has found so
 * far; tells of its error.
 */
static XLogRecPtr
look_here(SwitchMove *move, int64 *rows, char **shown)
{
	StreamShared *shared = move->shared;
	char		problem[sizeof(shared->error.message)];
	XLogRecPtr	applied;
	bool		failed;

	SpinLockAcquire(&shared->mutex);
	applied = shared->applied_lsn;
	*rows = shared->rows;
	failed = shared->state == STREAM_ERROR || shared->state == STREAM_LOST;
	memcpy(problem, shared->error.message, sizeof(problem));
	SpinLockRelease(&shared->mutex);
	show_problem(move, move->from, failed ? problem : NULL, shown);
	return applied;
}

/*
 * Wait until nothing is owed.  Who owes it sends it when his stream has applied
 * what it gave way to.
 */
static void
wait_for_owed(SwitchMove *move, char **shown)
{
	while (is_owed(move))
	{
		char	   *problem;
		int64		rows;

		(void) has_passed(move, "0/0", &problem);
		if (problem != NULL)
			show_problem(move, move->to, problem, shown);
		else
			(void) look_here(move, &rows, shown);
		switch_rest(move, POLL_MS);
	}
}

/*
 * Wait until all that this side has written is there; returns how many rows of
 * its own this side's stream has found so far.
 */
static int64
wait_for_own(SwitchMove *move, char **shown)
{
	XLogRecPtr	goal = control_position();
	int64		rows;

	while (look_here(move, &rows, shown) < goal)
	{
		stream_wake(move->shared);
		switch_rest(move, POLL_MS);
	}
	return rows;
}

/*
 * What the other side wrote in the window may conflict with what this one did,
 * until all of it is here.  A conflict may have this side write something of
 * its own, though it is closed, which the other side still takes; so again,
 * until a round was without.
 */
void
step_window_closed(SwitchMove *move)
{
	char	   *shown = NULL;
	int64		rows = -1;
	bool		over = false;

	if (window_of(move) != WINDOW_CLOSING)
		return;
	while (!over && wait_for_other(move, &shown))
	{
		int64		before = rows;

		wait_for_owed(move, &shown);
		rows = wait_for_own(move, &shown);
		over = rows == before;
	}
	(void) move_there(move, WINDOW_CLOSED);
	(void) window_set(move->row.deployment, WINDOW_CLOSED);
	switch_commit(move);
	appendStringInfoString(&move->note, "the window is closed");
}
