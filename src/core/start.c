/*-------------------------------------------------------------------------
 *
 * start.c
 *		Start a stream: for the first time, again, or anew after a crash.
 *
 * The first start leaves marks in this order:
 *
 *		desired = 'started', slot_lsn NULL		(committed)
 *		the slot								(not transactional)
 *		applied_stream and the origin			(committed on the peer)
 *		slot_lsn								(committed)
 *
 * The worker does not run before the last one.  An error at any point removes
 * all of them; after a crash slot_lsn is still NULL, which tells the next
 * start() to drop what is there and to begin anew.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "compat.h"
#include "catalog/pg_type.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/lost.h"
#include "core/place.h"
#include "core/shared.h"
#include "cutover/preflight.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "utils/pg_lsn.h"

PG_FUNCTION_INFO_V1(bluegreen_start);

/* A first start and how far it has come. */
typedef struct StartPlan
{
	Deployment *deployment;
	bool		allow_nonempty;
	char		slot_name[NAMEDATALEN];
	StreamShared *stream;
	Peer	   *peer;
	bool		slot_created;
	bool		registered;		/* on the peer, maybe only in part */
	bool		has_asked_back; /* for the stream back */
	XLogRecPtr	slot_lsn;
} StartPlan;

typedef void (*StartStep) (void *arg);

/*
 * Create the slot.  The transaction must have written nothing.
 */
static void
step_create_slot(void *arg)
{
	StartPlan  *plan = arg;
	CatalogAccess access;
	CatalogArgs args = {0};

	ready_announce_wait(plan->deployment);
	control_stop_stream(plan->slot_name);	/* left by a crash */
	control_drop_slot(plan->slot_name);
	plan->stream = stream_shared_create(plan->slot_name);
	SpinLockAcquire(&plan->stream->mutex);
	plan->stream->stop_requested = true;	/* until all is registered */
	plan->stream->owner = plan->deployment->owner;
	plan->stream->owner_checked = true;
	SpinLockRelease(&plan->stream->mutex);

	catalog_begin(&access);
	catalog_arg_name(&args, plan->slot_name);
	catalog_run("SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot"
				"($1, '" BG_PLUGIN "'" FAILOVER_SLOT_ARGUMENTS ")",
				&args, SPI_OK_SELECT);
	plan->slot_created = true;
	plan->slot_lsn = DatumGetLSN(catalog_value(0, 1, NULL));
	catalog_end(&access);
}

/*
 * Register on the peer, then note the slot's position here.
 */
static void
step_register(void *arg)
{
	StartPlan  *plan = arg;
	CatalogAccess access;
	CatalogArgs args = {0};

	registry_create(plan->peer, plan->deployment, plan->slot_lsn,
					&plan->registered);
	registry_try_sessions(plan->deployment);

	catalog_begin(&access);
	catalog_arg_int4(&args, plan->deployment->id);
	catalog_arg(&args, PG_LSNOID, LSNGetDatum(plan->slot_lsn));
	catalog_run("UPDATE bluegreen.deployment SET slot_lsn = $2 WHERE id = $1",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
	event_record_local(plan->deployment->id, EVENT_STARTED, plan->slot_lsn,
					   "stream started", NULL);
}

/*
 * Run a step in a subtransaction, so that after an error the transaction can
 * go on to undo what earlier steps did.  Returns NULL, or the error.
 */
static ErrorData *
try_step(StartPlan *plan, StartStep step)
{
	ErrorData  *error = attempt(step, plan);

	/* a subtransaction's abort doesn't know of slots */
	if (error != NULL && MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	return error;
}

static void
step_forget_peer(void *arg)
{
	StartPlan  *plan = arg;

	if (plan->peer == NULL || !peer_is_alive(plan->peer))
		plan->peer = registry_connect(plan->deployment, true);
	else
	{
		PeerError	ignored;

		(void) peer_try_command(plan->peer, "ROLLBACK", &ignored);
	}
	registry_remove(plan->peer, registry_origin(plan->deployment));
}

static void
step_forget_source(void *arg)
{
	StartPlan  *plan = arg;

	if (plan->slot_created)
		control_drop_slot(plan->slot_name);
	(void) stream_shared_remove(plan->slot_name);
	catalog_update_deployment(plan->deployment->id,
							  "desired = 'defined', slot_lsn = NULL, "
							  "system_identifier = NULL, source_place = NULL, "
							  "started_at = NULL");
}

/*
 * A first start has failed: put both sides back and raise its error.  What
 * cannot be put back is told in a warning; the next start() repairs it.
 */
static void
undo_start(StartPlan *plan, ErrorData *error)
{
	ErrorData  *second = NULL;

	if (plan->registered)
		second = try_step(plan, step_forget_peer);
	if (second == NULL)
		second = try_step(plan, step_forget_source);
	if (second != NULL)
		ereport(WARNING,
				(errcode(second->sqlerrcode),
				 errmsg("could not undo the start of deployment \"%s\": %s",
						plan->deployment->name, second->message),
				 second->detail ? errdetail_internal("%s", second->detail) : 0,
				 errhint("Call bluegreen.start again, or drop the deployment.")));
	if (plan->peer)
		peer_close(plan->peer);
	SPI_commit();
	ReThrowError(error);
}

/*
 * Start the stream back, once.
 */
static void
start_back(StartPlan *plan)
{
	if (!plan->has_asked_back)
		backward_start(plan->deployment->name);
	plan->has_asked_back = true;
}

/*
 * Start a deployment for the first time, or anew after a crash in a first
 * start.  The stream back comes first: its slot waits for green's transactions,
 * and the copy would make long ones.
 */
static void
start_first(StartPlan *plan)
{
	List	   *mappings = mappings_load(plan->deployment->id,
											 plan->deployment->direction);
	CatalogAccess access;
	CatalogArgs args = {0};
	ErrorData  *error;

	/* a start that was interrupted may have come so far */
	plan->registered = plan->deployment->desired != DESIRED_DEFINED;
	plan->peer = preflight_start(plan->deployment, mappings, plan->slot_name,
								 plan->allow_nonempty);

	catalog_begin(&access);
	catalog_arg_int4(&args, plan->deployment->id);
	catalog_arg(&args, INT8OID, Int64GetDatum((int64) GetSystemIdentifier()));
	catalog_arg_text(&args, source_place());
	catalog_run("UPDATE bluegreen.deployment SET desired = 'started', "
				"slot_lsn = NULL, system_identifier = $2, source_place = $3, "
				"started_at = clock_timestamp() WHERE id = $1",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
	SPI_commit();

	error = try_step(plan, step_create_slot);
	if (error == NULL)
		error = try_step(plan, step_register);
	if (error != NULL)
		undo_start(plan, error);
	peer_close(plan->peer);
	SPI_commit();
	PG_TRY();
	{
		start_back(plan);
	}
	PG_FINALLY();
	{
		control_release_stream(plan->stream);
	}
	PG_END_TRY();
}

/*
 * Let the launcher run a stream whose slot is there, at once.
 */
static void
release_existing(const StartPlan *plan)
{
	StreamShared *s = stream_shared_adopt(plan->slot_name);

	if (s == NULL)				/* no room: this raises the error */
		s = stream_shared_create(plan->slot_name);
	control_release_stream(s);
}

/*
 * Let a stream run that has been stopped.
 */
static void
start_again(const StartPlan *plan)
{
	catalog_update_deployment(plan->deployment->id, "desired = 'started'");
	event_record_local(plan->deployment->id, EVENT_STARTED, InvalidXLogRecPtr,
					   "stream started again", NULL);
	SPI_commit();
	release_existing(plan);
}

/*
 * start() of a stream that is meant to run already: try at once if it waits
 * after an error.
 */
static void
start_running(const StartPlan *plan)
{
	ereport(NOTICE,
			(errmsg("deployment \"%s\" is already started",
					plan->deployment->name)));
	release_existing(plan);
}

static void
start_locked(StartPlan *plan)
{
	Deployment *deployment = deployment_lock(plan->deployment->name);
	LostReason	reason;

	plan->deployment = deployment;
	if (deployment->desired == DESIRED_FINISHED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" is finished", deployment->name),
				 errhint("Drop it, and create another one.")));
	owner_check(deployment->owner, deployment->name);
	deployment_slot_name(plan->slot_name, deployment);
	/* nothing is copied back: blue's rows are where green's are from */
	plan->allow_nonempty |= deployment->direction == 'b';
	reason = lost_by_slot(plan->slot_name);
	if (XLogRecPtrIsInvalid(deployment->slot_lsn))
		start_first(plan);
	else if (reason.message != NULL)
		lost_report(deployment->name, &reason);
	else if (deployment->desired == DESIRED_STARTED)
		start_running(plan);
	else
		start_again(plan);
}

/*
 * bluegreen.start(deployment name, allow_nonempty boolean): see the head of
 * this file.  Commits.  Errors leave both sides as they were.  Starts the
 * stream back, too, if there is a way; what is wrong with that is a warning.
 */
Datum
bluegreen_start(PG_FUNCTION_ARGS)
{
	StartPlan  *plan;
	char	   *name;
	int32		id;

	require_argument(fcinfo, 1, "allow_nonempty");
	procedure_begin(fcinfo, "bluegreen.start");
	shared_require();
	plan = palloc0(sizeof(StartPlan));
	plan->allow_nonempty = PG_GETARG_BOOL(1);
	name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	plan->deployment = procedure_lock(name);
	id = plan->deployment->id;
	PG_TRY();
	{
		backward_expect(name);
		start_locked(plan);
		start_back(plan);
	}
	PG_FINALLY();
	{
		control_unlock(id);
	}
	PG_END_TRY();
	procedure_end();
	PG_RETURN_VOID();
}
