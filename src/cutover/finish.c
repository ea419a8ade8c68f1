/*-------------------------------------------------------------------------
 *
 * finish.c
 *		finish(): the end of a deployment whose users have moved; and
 *		force_active(), for a human who knows which side is the active one.
 *
 * After finish() there is no way back: streams, slots, origins and what hangs
 * on them are gone on both sides.  Blue stays closed (retired) until reopen().
 * It says so first, durably, then it removes; called again after a crash it
 * removes what is left.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/event.h"
#include "cutover/switchover.h"
#include "cutover/window.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(bluegreen_finish);
PG_FUNCTION_INFO_V1(bluegreen_force_active);

#define END_POLL_MS		20L

/* ---- finish ---- */

/*
 * Error unless green is the active side.
 */
static void
check_moved(const Deployment *deployment, int32 fence)
{
	FenceState	state = fence_state(fence, NULL);

	switch_refuse_unfinished(deployment, "finish");
	if (state == FENCE_CLOSED || state == FENCE_RETIRED)
		return;
	if (fence_in_window(fence))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("both sides of deployment \"%s\" take writes",
						deployment->name),
				 errhint("Use CALL bluegreen.close_window() first.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("blue is the active side of deployment \"%s\"",
					deployment->name),
			 errhint("There is nothing to finish before CALL bluegreen.switchover(). To give the deployment up, use bluegreen.drop_deployment().")));
}

static void
retire(const Deployment *deployment, int32 fence)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_update_deployment(deployment->id, "desired = 'finished'");
	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_run("UPDATE bluegreen.fence SET state = 'retired' WHERE id = $1",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
	event_record_local(deployment->id, EVENT_SWITCH, InvalidXLogRecPtr,
					   "finished: there is no way back any more", NULL);
}

static void
finish_locked(const char *name)
{
	Deployment *deployment = deployment_lock(name);
	int32		fence = fence_of_deployment(deployment->id);
	char		slot_name[NAMEDATALEN];
	Peer	   *peer;

	check_moved(deployment, fence);
	(void) sequences_restore(deployment->id, 0, NULL, NULL, true);
	retire(deployment, fence);
	SPI_commit();
	deployment_slot_name(slot_name, deployment);
	control_stop_stream(slot_name);
	backward_leave(deployment, false);
	peer = registry_connect(deployment, true);
	registry_remove(peer, registry_origin(deployment));
	peer_close(peer);
	if (deployment->opposite != NULL)
		replorigin_drop_by_name(deployment->opposite, true, true);
	catalog_update_deployment(deployment->id,
							  "slot_lsn = NULL, opposite = NULL");
	SPI_commit();
	control_drop_slot(slot_name);
	(void) stream_shared_remove(slot_name);
}

/*
 * bluegreen.finish(deployment name): end the way back.  Commits.  Errors: blue
 * is the active side; green cannot be reached.
 */
Datum
bluegreen_finish(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	char	   *name;
	int32		id;

	procedure_begin(fcinfo, "bluegreen.finish");
	shared_require();
	name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	deployment = deployment_load_by_name(name, true);
	if (deployment == NULL || deployment->direction == 'b')
	{
		switch_pass_on(name, "blue", "finish");
		procedure_end();
		PG_RETURN_VOID();
	}
	id = procedure_lock(name)->id;
	PG_TRY();
	{
		finish_locked(name);
	}
	PG_FINALLY();
	{
		control_unlock(id);
	}
	PG_END_TRY();
	procedure_end();
	PG_RETURN_VOID();
}

/* ---- force_active ---- */

/*
 * The fence of the deployment of that name, or of the only one.
 */
static int32
find_fence(const char *name)
{
	CatalogAccess access;
	int32		fence = 0;
	uint64		n;

	if (name != NULL)
		return fence_find(name);
	catalog_begin(&access);
	n = catalog_run("SELECT id FROM bluegreen.fence WHERE state <> 'retired'",
					NULL, SPI_OK_SELECT);
	if (n == 1)
		fence = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	if (n != 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_ALIAS),
				 errmsg("this database takes part in " UINT64_FORMAT " deployments",
						n),
				 errhint("Name one: bluegreen.force_active(side, deployment).")));
	return fence;
}

/*
 * Deployment of a fence, NULL if this side is only a target; its rights are
 * checked.  A superuser may always.
 */
static Deployment *
check_rights(int32 fence)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Deployment *deployment;
	int32		id;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_run("SELECT deployment FROM bluegreen.fence WHERE id = $1", &args,
				SPI_OK_SELECT);
	id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	deployment = id == 0 ? NULL : deployment_load(id);
	if (deployment != NULL)
		deployment_check_owner(deployment);
	else if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied: on a side that is only a target this is for superusers")));
	return deployment;
}

/*
 * End the worker of a move, and do not have another one started.
 */
static void
end_worker(const Deployment *deployment)
{
	char		slot_name[NAMEDATALEN];
	StreamShared *shared;
	pid_t		pid;

	deployment_slot_name(slot_name, deployment);
	shared = shared_is_loaded() ? stream_shared_find(slot_name) : NULL;
	if (shared == NULL)
		return;
	for (;;)
	{
		SpinLockAcquire(&shared->mutex);
		pid = shared->switch_pid;
		shared->switch_at = 0;
		SpinLockRelease(&shared->mutex);
		if (pid == 0)
			break;
		(void) kill(pid, SIGTERM);
		ConditionVariablePrepareToSleep(&shared->changed);
		(void) ConditionVariableTimedSleep(&shared->changed, END_POLL_MS,
										   PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
	}
}

/*
 * bluegreen.force_active(side text, deployment name) returns void: a human says
 * which side is the active one, because the other one cannot be asked.  On that
 * side: it is opened.  On the other: it is closed.  Nothing is asked of the
 * other server.
 */
Datum
bluegreen_force_active(PG_FUNCTION_ARGS)
{
	char	   *side;
	int32		fence;
	Deployment *deployment;
	bool		open;

	require_argument(fcinfo, 0, "side");
	require_writable("bluegreen.force_active");
	side = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (strcmp(side, "blue") != 0 && strcmp(side, "green") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"", "side",
						side),
				 errhint("Valid values are \"%s\" and \"%s\".", "blue",
						 "green")));
	fence = find_fence(PG_ARGISNULL(1) ? NULL : NameStr(*PG_GETARG_NAME(1)));
	deployment = check_rights(fence);
	open = strcmp(fence_side(fence), side) == 0;
	if (deployment != NULL)
		end_worker(deployment);
	fence_force(fence, open);
	if (deployment != NULL)
		(void) window_set(deployment->id, WINDOW_CLOSED);
	if (open)
		fence_unmark(fence);
	else
		fence_mark(fence);
	if (deployment != NULL)
	{
		switch_row_set(deployment->id,
					   "state = 'failed', finished_at = clock_timestamp(), "
					   "message = 'a human has said which side is active', "
					   "detail = NULL, hint = NULL");
		event_record_local(deployment->id, EVENT_SWITCH, InvalidXLogRecPtr,
						   psprintf("%s is the active side, said %s", side,
									GetUserNameFromId(GetUserId(), false)),
						   NULL);
	}
	PG_RETURN_VOID();
}
