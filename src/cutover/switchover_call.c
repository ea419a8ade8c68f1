/*-------------------------------------------------------------------------
 *
 * switchover_call.c
 *		CALL bluegreen.switchover(), rollback(), open_window(), close_window()
 *		and cancel().
 *
 * The procedure looks whether a move is possible (the preflight takes its time,
 * and changes nothing), leaves the request, commits, and prints what the worker
 * does.  Called on the other side it is passed on to the side that the move goes
 * from, and what is printed there is printed here.
 *
 * A caller who cancels has the move cancelled, and waits for that; a second
 * cancel ends the waiting.  A caller who is gone changes nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/attempt.h"
#include "core/settings.h"
#include "cutover/preflight.h"
#include "cutover/switchover.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_switchover);
PG_FUNCTION_INFO_V1(bluegreen_rollback);
PG_FUNCTION_INFO_V1(bluegreen_open_window);
PG_FUNCTION_INFO_V1(bluegreen_close_window);
PG_FUNCTION_INFO_V1(bluegreen_cancel);

#define POLL_MS		20
#define GRACE_MS	5000		/* over the timeout, for the undo */

/* One call. */
typedef struct SwitchCall
{
	SwitchKind	kind;
	bool		closes;			/* a window */
	const char *from;
	const char *to;
	char	   *name;
	int			timeout;		/* ms */
	int			drain_timeout;	/* ms */
	FencePolicy policy;
	Interval   *require_verified;
	bool		dry_run;
	Deployment *deployment;
	int32		fence;
	StreamShared *shared;
	FenceView	there;			/* the other side's fence */
	int			problems;		/* that a dry run has found */
	int			shown;			/* lines of progress */
} SwitchCall;

typedef void (*SwitchCheck) (SwitchCall *call);

/* ---- is it possible? ---- */

static const char *const what_names[] = {
	"switch over", "roll back", "open a window of"
};

/*
 * Is the window as it should be?
 */
static void
check_window(SwitchCall *call)
{
	bool		open = fence_in_window(call->fence);

	if (open == call->closes && (open ||
								 call->deployment->window == WINDOW_CLOSED))
		return;
	if (call->closes)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("window of deployment \"%s\" is not open", call->name)));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot %s deployment \"%s\": its window is %s",
					what_names[call->kind], call->name,
					window_state_names[call->deployment->window]),
			 open ?
			 errhint("CALL bluegreen.close_window(%s, '%s') moves the users, too.",
					 quote_literal_cstr(call->name), call->to) : 0));
}

static void
check_here(SwitchCall *call)
{
	FenceState	state = fence_state(call->fence, NULL);

	switch_refuse_unfinished(call->deployment, call->closes ?
							 "close the window of" : what_names[call->kind]);
	check_window(call);
	if (state == FENCE_OPEN || state == FENCE_RAISED)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s is not the active side of deployment \"%s\"",
					call->from, call->name),
			 errdetail("Its fence is %s.", fence_state_names[state])));
}

static void
check_stream(SwitchCall *call)
{
	call->shared = control_stream(call->deployment);
	control_check_stream(call->shared, call->name);
}

static void
check_there(SwitchCall *call)
{
	Peer	   *peer = registry_connect(call->deployment, false);

	call->there = switch_look(peer, registry_origin(call->deployment));
	peer_close(peer);
	if (call->closes ? call->there.state == FENCE_OPEN && call->there.window :
		call->there.state == FENCE_GUARDED || call->there.state == FENCE_CLOSED)
		return;
	if (call->closes)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s does not take writes in deployment \"%s\"",
						call->to, call->name),
				 errdetail("Its fence is %s in epoch " INT64_FORMAT ".",
						   fence_state_names[call->there.state],
						   call->there.epoch)));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s takes writes already in deployment \"%s\"", call->to,
					call->name),
			 errdetail("Its fence is %s in epoch " INT64_FORMAT ".",
					   fence_state_names[call->there.state],
					   call->there.epoch)));
}

/*
 * What the last verification has found, if that was asked for.
 */
static void
check_verified(SwitchCall *call)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *problem = NULL;

	if (call->require_verified == NULL)
		return;
	catalog_begin(&access);
	catalog_arg_int4(&args, call->deployment->id);
	catalog_arg(&args, INTERVALOID, IntervalPGetDatum(call->require_verified));
	if (catalog_run("SELECT CASE "
					"WHEN verified_at IS NULL THEN 'it has not been verified' "
					"WHEN verified_lsn IS NULL "
					"THEN 'the last verification is incomplete' "
					"WHEN differences > 0 THEN 'the last verification found ' "
					"|| differences || CASE differences WHEN 1 "
					"THEN ' difference' ELSE ' differences' END "
					"WHEN verified_at < clock_timestamp() - $2 "
					"THEN 'the last verification ended ' "
					"|| date_trunc('seconds', clock_timestamp() - verified_at) "
					"|| ' ago' END "
					"FROM bluegreen.verify_run WHERE deployment = $1",
					&args, SPI_OK_SELECT) == 0)
		problem = "it has not been verified";
	else
		problem = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot move the users of deployment \"%s\" to %s: %s",
						call->name, call->to, problem),
				 errhint("Use CALL bluegreen.verify(%s).",
						 quote_literal_cstr(call->name))));
}

static void
check_preflight(SwitchCall *call)
{
	preflight_refuse(call->deployment, call->kind == SWITCH_OPEN_WINDOW ?
					 PREFLIGHT_SWITCHOVER | PREFLIGHT_WINDOW :
					 PREFLIGHT_SWITCHOVER);
}

/*
 * Without a stream back nobody could go back, and nothing would reach here.
 */
static void
check_way_back_is_there(SwitchCall *call)
{
	if (call->deployment->opposite == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" has no way back", call->name),
				 errhint("bluegreen.preflight(%s, 'window') tells why.",
						 quote_literal_cstr(call->name))));
}

static const SwitchCheck checks[] = {
	check_here, check_stream, check_there, check_verified, check_preflight,
	NULL
};

static const SwitchCheck open_checks[] = {
	check_here, check_way_back_is_there, check_stream, check_there,
	check_preflight, NULL
};

/* what matters of the rest was looked at when it was opened */
static const SwitchCheck close_checks[] = {
	check_here, check_stream, check_there, NULL
};

/* ---- dry run ---- */

typedef struct CheckCall
{
	SwitchCall *call;
	SwitchCheck check;
} CheckCall;

static void
run_check(void *arg)
{
	CheckCall  *run = arg;

	run->check(run->call);
}

/*
 * Run a check; what it raises is in the way.
 */
static void
try_check(SwitchCall *call, SwitchCheck check)
{
	CheckCall	run = {call, check};
	ErrorData  *error = attempt_or_cancel(run_check, &run);

	if (error == NULL)
		return;
	call->problems++;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("in the way: %s", error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0));
}

static void
check_drains(SwitchCall *call)
{
	char	   *unmet = drain_unmet(call->deployment);

	if (unmet != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("drain condition \"%s\" is not met now", unmet)));
}

/* Who would be waited for? */
static void
check_writers(SwitchCall *call)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *who = NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, call->drain_timeout);
	catalog_run("SELECT string_agg(coalesce('process ' || pid, "
				"'prepared transaction ' || prepared), ', ') "
				"FROM bluegreen.fence_writer WHERE NOT held "
				"AND clock_timestamp() - xact_start > $1 * interval '1 ms'",
				&args, SPI_OK_SELECT);
	who = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (who != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("transactions that have written are older than drain_timeout: %s",
						who)));
}

static void
dry_run(SwitchCall *call)
{
	const SwitchPlan *plan = &switch_plan_move;

	for (int i = 0; checks[i] != NULL; i++)
	{
		try_check(call, checks[i]);
	}
	try_check(call, check_drains);
	try_check(call, check_writers);
	for (int i = 0; i < plan->nbefore; i++)
	{
		if (plan->before[i].plan != NULL)
			ereport(NOTICE, (errmsg("would %s", plan->before[i].plan)));
	}
	for (int i = 0; i < plan->nafter; i++)
	{
		if (plan->after[i].plan != NULL)
			ereport(NOTICE, (errmsg("would %s", plan->after[i].plan)));
	}
	ereport(NOTICE,
			(call->problems == 0 ?
			 errmsg("nothing is in the way of moving the users of deployment \"%s\" to %s",
					call->name, call->to) :
			 errmsg_plural("%d thing is in the way", "%d things are in the way",
						   call->problems, call->problems)));
}

/* ---- request and wait ---- */

static void
leave_request(SwitchCall *call)
{
	SwitchRow	row = {0};
	int64		epoch;

	(void) fence_state(call->fence, &epoch);
	row.deployment = call->deployment->id;
	row.kind = call->kind;
	row.epoch = Max(epoch, call->there.epoch) + 1;
	row.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   call->timeout);
	row.drain_timeout = call->drain_timeout;
	row.on_drain_timeout =
		unconstify(char *, fence_policy_names[call->policy]);
	row.stop_at = bg_switchover_stop_at[0] ? bg_switchover_stop_at : NULL;
	if (!switch_row_request(&row))
		switch_refuse_unfinished(call->deployment, "move the users of");
	switch_progress_begin(call->shared);
	SPI_commit();
	switch_wake(call->shared);
}

static void
show_progress(SwitchCall *call)
{
	char		line[BG_SWITCH_LINE];

	while (switch_progress_get(call->shared, call->shown, line, sizeof(line)))
	{
		call->shown++;
		ereport(NOTICE, (errmsg("%s", line)));
	}
}

/*
 * Tell the worker to give up; it may have ended meanwhile.
 */
static void
leave_cancel(int32 deployment, StreamShared *shared)
{
	pid_t		pid;

	switch_row_set(deployment, "cancelled = true");
	SPI_commit();
	SpinLockAcquire(&shared->mutex);
	pid = shared->switch_pid;
	SpinLockRelease(&shared->mutex);
	if (pid != 0)
		(void) kill(pid, SIGINT);
	else
		switch_wake(shared);
}

static void
raise_failure(const SwitchRow *row)
{
	ereport(ERROR,
			(errcode(row->sqlstate ?
					 MAKE_SQLSTATE(row->sqlstate[0], row->sqlstate[1],
								   row->sqlstate[2], row->sqlstate[3],
								   row->sqlstate[4]) : ERRCODE_INTERNAL_ERROR),
			 errmsg("%s", row->message ? row->message : "the move was undone"),
			 row->detail ? errdetail_internal("%s", row->detail) : 0,
			 row->hint ? errhint("%s", row->hint) : 0));
}

/*
 * It should have ended by now.
 */
static void
check_late(const SwitchRow *row, const char *name)
{
	TimestampTz end = TimestampTzPlusMilliseconds(row->deadline, GRACE_MS);

	if (!launcher_is_running())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the launcher of pg_bluegreen does not run")));
	if (GetCurrentTimestamp() < end)
		return;
	if (row->message != NULL)
		raise_failure(row);
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("%s of deployment \"%s\" has not ended yet",
					switch_kind_names[row->kind], name),
			 row->begun ?
			 errdetail("Its worker goes on; view bluegreen.switch_state tells where it is.") :
			 errdetail("No worker could be started."),
			 row->begun ? 0 : errhint("Look at max_worker_processes and at the server's log.")));
}

static void
short_sleep(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 POLL_MS, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
}

/*
 * Wait for the end of the deployment's move.  Each look is a transaction of
 * its own.
 */
static void
wait_for_end(SwitchCall *call, SwitchRow *row)
{
	int32		id = call->deployment->id;
	bool		cancelled = false;

	HOLD_CANCEL_INTERRUPTS();
	for (;;)
	{
		show_progress(call);
		if (!switch_row_read(id, row))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("deployment \"%s\" was dropped", call->name)));
		if (row->state == SWITCH_DONE || row->state == SWITCH_FAILED)
			break;
		check_late(row, call->name);
		SPI_commit();
		if (QueryCancelPending && !cancelled)
		{
			QueryCancelPending = false;
			cancelled = true;
			leave_cancel(id, call->shared);
			RESUME_CANCEL_INTERRUPTS();
		}
		short_sleep();
		CHECK_FOR_INTERRUPTS();
	}
	if (!cancelled)
		RESUME_CANCEL_INTERRUPTS();
	show_progress(call);
}

/* ---- here or there ---- */

static void
move_here(SwitchCall *call)
{
	const SwitchCheck *look = call->closes ? close_checks :
		call->kind == SWITCH_OPEN_WINDOW ? open_checks : checks;
	SwitchRow	row;

	call->deployment = deployment_load_by_name(call->name, false);
	deployment_check_owner(call->deployment);
	if (call->dry_run)
	{
		dry_run(call);
		return;
	}
	for (int i = 0; look[i] != NULL; i++)
	{
		look[i] (call);
	}
	if (!call->closes)
		ereport(NOTICE, (errmsg("preflight passed")));
	leave_request(call);
	wait_for_end(call, &row);
	if (row.state == SWITCH_FAILED)
		raise_failure(&row);
}

/*
 * The other side, for something that is to be called there.
 */
static Peer *
other_side(const char *name, const char *there)
{
	Deployment *deployment = deployment_load_by_name(name, true);
	Peer	   *peer;

	if (deployment == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" is known here as a target only",
						name),
				 errhint("Call this on %s.", there)));
	deployment_check_owner(deployment);
	peer = registry_connect(deployment, false);
	peer_show_notices(peer);
	return peer;
}

/*
 * CALL a procedure that has no argument but the deployment there.
 */
void
switch_pass_on(const char *name, const char *there, const char *procedure)
{
	Peer	   *peer = other_side(name, there);
	const char *args[] = {name};

	(void) peer_query(peer, psprintf("CALL bluegreen.%s($1::name)", procedure),
					  1, args);
	peer_close(peer);
}

/*
 * CALL a procedure of the other side, from which the move goes.
 */
static void
call_there(SwitchCall *call, const char *sql, int nargs,
		   const char *const *args)
{
	Peer	   *peer = other_side(call->name, call->from);

	(void) peer_query(peer, sql, nargs, args);
	peer_close(peer);
}

static void
move_there(SwitchCall *call)
{
	const char *args[] = {
		call->name,
		psprintf("%d ms", call->timeout),
		psprintf("%d ms", call->drain_timeout),
		fence_policy_names[call->policy],
		call->require_verified == NULL ? NULL :
		DatumGetCString(DirectFunctionCall1(interval_out,
											IntervalPGetDatum(call->require_verified))),
		call->dry_run ? "t" : "f"
	};

	call_there(call,
			   psprintf("CALL bluegreen.%s($1::name, $2::interval, "
						"$3::interval, $4::text, $5::interval, "
						"$6::boolean)", switch_kind_names[call->kind]),
			   lengthof(args), args);
}

static Datum
move(FunctionCallInfo fcinfo, SwitchKind kind)
{
	SwitchCall *call;

	procedure_begin(fcinfo, kind == SWITCH_SWITCHOVER ?
					"bluegreen.switchover" : "bluegreen.rollback");
	shared_require();
	require_argument(fcinfo, 5, "dry_run");
	call = palloc0_object(SwitchCall);
	call->kind = kind;
	call->from = kind == SWITCH_SWITCHOVER ? "blue" : "green";
	call->to = kind == SWITCH_SWITCHOVER ? "green" : "blue";
	call->name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	call->timeout = fence_timeout_argument(fcinfo, 1, "timeout");
	call->drain_timeout = fence_timeout_argument(fcinfo, 2, "drain_timeout");
	call->policy = fence_policy_argument(fcinfo, 3);
	call->require_verified = PG_ARGISNULL(4) ? NULL : PG_GETARG_INTERVAL_P(4);
	call->dry_run = PG_GETARG_BOOL(5);
	call->fence = fence_find(call->name);
	if (strcmp(fence_side(call->fence), call->from) == 0)
		move_here(call);
	else
		move_there(call);
	procedure_end();
	PG_RETURN_VOID();
}

/*
 * bluegreen.switchover(deployment name, timeout interval, drain_timeout
 * interval, on_drain_timeout text, require_verified interval, dry_run boolean):
 * move the users from blue to green.  Commits.  An error means that nothing has
 * changed, unless it says otherwise.
 */
Datum
bluegreen_switchover(PG_FUNCTION_ARGS)
{
	return move(fcinfo, SWITCH_SWITCHOVER);
}

/*
 * bluegreen.rollback(...): the same from green to blue.
 */
Datum
bluegreen_rollback(PG_FUNCTION_ARGS)
{
	return move(fcinfo, SWITCH_ROLLBACK);
}

/* ---- windows ---- */

/*
 * bluegreen.open_window(deployment name, timeout interval): let both sides take
 * writes.  Commits.  An error means that nothing has changed, unless it says
 * otherwise.
 */
Datum
bluegreen_open_window(PG_FUNCTION_ARGS)
{
	SwitchCall *call;
	FenceState	state;
	const char *here;

	procedure_begin(fcinfo, "bluegreen.open_window");
	shared_require();
	call = palloc0_object(SwitchCall);
	call->kind = SWITCH_OPEN_WINDOW;
	call->name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	call->timeout = fence_timeout_argument(fcinfo, 1, "timeout");
	call->policy = FENCE_ABORT;
	call->fence = fence_find(call->name);
	here = fence_side(call->fence);
	state = fence_state(call->fence, NULL);
	call->to = strcmp(here, "blue") == 0 ? "green" : "blue";
	call->from = here;
	if (state != FENCE_GUARDED && state != FENCE_CLOSED)
		move_here(call);
	else
	{
		const char *args[] = {call->name, psprintf("%d ms", call->timeout)};

		call->from = call->to;
		call_there(call, "CALL bluegreen.open_window($1::name, $2::interval)",
				   lengthof(args), args);
	}
	procedure_end();
	PG_RETURN_VOID();
}

static char *
side_argument(FunctionCallInfo fcinfo, int i)
{
	char	   *side;

	require_argument(fcinfo, i, "side");
	side = text_to_cstring(PG_GETARG_TEXT_PP(i));
	if (strcmp(side, "blue") != 0 && strcmp(side, "green") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"", "side",
						side),
				 errhint("Valid values are \"%s\" and \"%s\".", "blue",
						 "green")));
	return side;
}

/*
 * bluegreen.close_window(deployment name, side text, timeout interval,
 * drain_timeout interval, on_drain_timeout text): one side stays, as after a
 * switchover or rollback, and the other one is closed.  Commits.  An error means
 * that nothing has changed, unless it says otherwise.
 */
Datum
bluegreen_close_window(PG_FUNCTION_ARGS)
{
	SwitchCall *call;

	procedure_begin(fcinfo, "bluegreen.close_window");
	shared_require();
	call = palloc0_object(SwitchCall);
	call->closes = true;
	call->name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	call->to = side_argument(fcinfo, 1);
	call->kind = strcmp(call->to, "green") == 0 ? SWITCH_SWITCHOVER :
		SWITCH_ROLLBACK;
	call->from = call->kind == SWITCH_SWITCHOVER ? "blue" : "green";
	call->timeout = fence_timeout_argument(fcinfo, 2, "timeout");
	call->drain_timeout = fence_timeout_argument(fcinfo, 3, "drain_timeout");
	call->policy = fence_policy_argument(fcinfo, 4);
	call->fence = fence_find(call->name);
	if (strcmp(fence_side(call->fence), call->from) == 0)
		move_here(call);
	else
	{
		const char *args[] = {call->name, call->to,
			psprintf("%d ms", call->timeout),
			psprintf("%d ms", call->drain_timeout),
		fence_policy_names[call->policy]};

		call_there(call, "CALL bluegreen.close_window($1::name, $2::text, "
				   "$3::interval, $4::interval, $5::text)", lengthof(args),
				   args);
	}
	procedure_end();
	PG_RETURN_VOID();
}

/* ---- cancel ---- */

static void
cancel_here(const Deployment *deployment, const SwitchRow *row)
{
	SwitchCall	call = {0};
	SwitchRow	end;

	deployment_check_owner(deployment);
	if (row->state == SWITCH_DECIDED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s of deployment \"%s\" cannot be cancelled any more",
						switch_kind_names[row->kind], deployment->name),
				 errdetail("The other side is the active one.")));
	call.name = deployment->name;
	call.deployment = unconstify(Deployment *, deployment);
	call.shared = control_stream(deployment);
	call.shown = PG_INT32_MAX;
	leave_cancel(deployment->id, call.shared);
	wait_for_end(&call, &end);
	if (end.state == SWITCH_DONE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s of deployment \"%s\" had been decided already",
						switch_kind_names[row->kind], deployment->name)));
	ereport(NOTICE, (errmsg("%s", end.message)));
}

/*
 * bluegreen.cancel(deployment name): end a move that has not been decided, and
 * wait until it is undone.  Commits.
 */
Datum
bluegreen_cancel(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	SwitchRow	row;
	char	   *name;

	procedure_begin(fcinfo, "bluegreen.cancel");
	shared_require();
	name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	deployment = deployment_load_by_name(name, false);
	if (switch_row_read(deployment->id, &row) &&
		(row.state == SWITCH_RUNNING || row.state == SWITCH_DECIDED))
		cancel_here(deployment, &row);
	else
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no switchover or rollback of deployment \"%s\" runs on this side",
						name),
				 errhint("A rollback runs on green, a switchover on blue.")));
	procedure_end();
	PG_RETURN_VOID();
}
