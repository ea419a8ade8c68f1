/*-------------------------------------------------------------------------
 *
 * deployment.c
 *		Create and drop deployments.
 *
 * Dropping removes what a deployment has left on both sides: its processes,
 * its slot, and on the peer the stream's registration.  The slot goes last,
 * for that cannot be taken back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/place.h"
#include "core/switch_row.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(bluegreen_create_deployment);
PG_FUNCTION_INFO_V1(bluegreen_drop_deployment);

/* ---- create ---- */

/*
 * Error unless the server is one of ours that the caller may use.
 */
void
deployment_check_server(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, false);
	ForeignDataWrapper *wrapper = GetForeignDataWrapper(server->fdwid);

	if (strcmp(wrapper->fdwname, BG_EXTENSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" belongs to foreign-data wrapper \"%s\"",
						name, wrapper->fdwname),
				 errhint("Create the server with FOREIGN DATA WRAPPER %s.",
						 BG_EXTENSION)));
	if (!DatumGetBool(OidFunctionCall2(F_HAS_SERVER_PRIVILEGE_OID_TEXT,
									   ObjectIdGetDatum(server->serverid),
									   CStringGetTextDatum("USAGE"))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for foreign server %s", name),
				 errhint("Use GRANT USAGE ON FOREIGN SERVER %s TO %s.",
						 quote_identifier(name),
						 quote_identifier(GetUserNameFromId(GetUserId(),
															false)))));
}

/*
 * bluegreen.create_deployment(name name, server name, peer_server name)
 * returns integer: the new deployment's id; it belongs to the current user.
 * peer_server, a server on the peer that leads back, is looked at there later.
 * Errors: no such server, a server of another wrapper, no USAGE on it, a role
 * that workers cannot run as, the name is taken.
 */
Datum
bluegreen_create_deployment(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *server;
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		id;

	require_argument(fcinfo, 0, "name");
	require_argument(fcinfo, 1, "server");
	require_writable("bluegreen.create_deployment");
	name = NameStr(*PG_GETARG_NAME(0));
	server = NameStr(*PG_GETARG_NAME(1));
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a deployment must not be empty")));
	deployment_check_server(server);
	owner_check(GetUserId(), name);
	catalog_arg_name(&args, name);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(GetUserId()));
	catalog_arg_name(&args, server);
	catalog_arg_text(&args, PG_ARGISNULL(2) ? NULL :
					 NameStr(*PG_GETARG_NAME(2)));
	catalog_begin(&access);
	if (catalog_run("INSERT INTO bluegreen.deployment "
					"(name, owner, server, peer_server) "
					"VALUES ($1, $2, $3, $4) "
					"ON CONFLICT DO NOTHING RETURNING id",
					&args, SPI_OK_INSERT_RETURNING) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("deployment \"%s\" already exists", name)));
	id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	event_record_local(id, EVENT_DEFINED, InvalidXLogRecPtr,
					   psprintf("deployment created on server \"%s\"", server),
					   NULL);
	PG_RETURN_INT32(id);
}

/* ---- drop ---- */

/*
 * Remove the registration on the peer.  Errors: it belongs to another server:
 * to the original of a copy, or to the successor of a source that was replaced.
 */
static void
clean_peer(const Deployment *deployment, bool force)
{
	Peer	   *peer;

	if (!source_is_here(deployment))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" was started at another place, and may run there",
						deployment->name),
				 errdetail("It was started at %s; this is %s.",
						   deployment->source_place, source_place()),
				 errhint("To drop it here and leave the peer alone, use force => true. If this server has taken the source's place, call bluegreen.confirm_source() first.")));
	backward_leave(deployment, force);
	if (deployment->desired == DESIRED_DEFINED)
		return;
	peer = registry_connect(deployment, true);
	registry_check_source(peer, deployment);
	registry_remove(peer, registry_origin(deployment));
	peer_close(peer);
}

static void
clean_peer_by_force(void *arg)
{
	clean_peer(arg, true);
}

/*
 * The same; an error becomes a warning.
 */
static void
try_clean_peer(const Deployment *deployment)
{
	ErrorData  *error = attempt_or_cancel(clean_peer_by_force,
										  unconstify(Deployment *, deployment));

	if (error == NULL)
		return;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not remove what deployment \"%s\" left on server \"%s\": %s",
					deployment->name, deployment->server, error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 errhint("If no other server is the deployment's source: delete the row \"%s\" from bluegreen.applied_stream on the peer, and drop the replication origins whose names begin with it.",
					 registry_origin(deployment))));
}

/*
 * May there be something of it on the peer?
 */
static bool
is_on_peer(const Deployment *deployment)
{
	if (deployment->desired == DESIRED_FINISHED)
		return !XLogRecPtrIsInvalid(deployment->slot_lsn);
	return deployment->desired != DESIRED_DEFINED;
}

static void
delete_deployment(const Deployment *deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	mappings_remove_all(deployment->id);
	event_record_local(deployment->id, EVENT_DROPPED, InvalidXLogRecPtr,
					   "deployment dropped", NULL);
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_run("DELETE FROM bluegreen.deployment WHERE id = $1", &args,
				SPI_OK_DELETE);
	catalog_end(&access);
}

/*
 * Sequences that leave numbers to the other side need not any more.
 */
static void
restore_sequences(const Deployment *deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_run("SELECT bluegreen.restore_all_sequences($1)", &args,
				SPI_OK_SELECT);
	catalog_end(&access);
}

/*
 * Drop a deployment that is locked, and what this side has of it: the stream's
 * processes, mappings, the row, and the slot.
 */
void
deployment_drop_local(Deployment *deployment)
{
	char		slot_name[NAMEDATALEN];

	deployment_slot_name(slot_name, deployment);
	restore_sequences(deployment);
	delete_deployment(deployment);
	control_drop_slot(slot_name);
	(void) stream_shared_remove(slot_name);
}

/*
 * What the stream back has left here, if green could not take it away: from now
 * on it is turned away.
 */
static void
forget_opposite(const Deployment *deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	CatalogArgs name = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, deployment->opposite);
	catalog_run("DELETE FROM bluegreen.applied_stream WHERE name = $1", &args,
				SPI_OK_DELETE);
	catalog_arg_text(&name, psprintf("%s backward",
									 stream_application_name(deployment)));
	catalog_run("SELECT pg_terminate_backend(pid, 5000) "
				"FROM pg_stat_activity WHERE application_name = $1 "
				"AND datname = current_database()", &name, SPI_OK_SELECT);
	catalog_end(&access);
	replorigin_drop_by_name(deployment->opposite, true, true);
}

/*
 * Drop a deployment whose owner the caller is.
 */
void
deployment_drop(Deployment *deployment, bool force)
{
	char		slot_name[NAMEDATALEN];

	control_lock(deployment->id, false);
	deployment = deployment_lock(deployment->name);
	if (!force)
		switch_refuse_unfinished(deployment, "drop");
	if (!force && deployment->window != WINDOW_CLOSED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot drop deployment \"%s\" while its window is %s",
						deployment->name,
						window_state_names[deployment->window]),
				 errhint("Use CALL bluegreen.close_window() first.")));
	deployment_slot_name(slot_name, deployment);
	if (deployment->desired == DESIRED_STARTED)
		control_resume_at_abort(deployment->id);
	control_stop_stream(slot_name);

	if (is_on_peer(deployment) || deployment->opposite != NULL)
	{
		if (force)
			try_clean_peer(deployment);
		else
			clean_peer(deployment, false);
	}
	if (deployment->opposite != NULL && deployment->direction == 'f')
		forget_opposite(deployment);
	deployment_drop_local(deployment);
}

/*
 * bluegreen.drop_deployment(name name, force boolean) returns void: stop the
 * streams of both directions, remove what they left on the peer (with force, if
 * the peer can be reached), the mappings, the deployment and the slots.  The
 * tables and their rows stay on both sides.  Waits for the streams' processes.
 * Errors: green's row goes with blue's, or with force.
 */
Datum
bluegreen_drop_deployment(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	bool		force;

	require_argument(fcinfo, 0, "name");
	require_argument(fcinfo, 1, "force");
	require_writable("bluegreen.drop_deployment");
	force = PG_GETARG_BOOL(1);
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	if (deployment->direction == 'b' && !force)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this server is green of deployment \"%s\"",
						deployment->name),
				 errhint("Drop it on blue. If blue is gone for good, use force => true.")));
	deployment_drop(deployment, force);
	PG_RETURN_VOID();
}

/* ---- guard ---- */

static object_access_hook_type next_object_access_hook = NULL;

static const char guard_hint[] =
"Use bluegreen.unmap_table() for a table that is to be dropped, or bluegreen.drop_deployment() for all.";

static bool
is_deployment_table(Oid relation)
{
	char	   *name = get_rel_name(relation);

	return name != NULL && strcmp(name, "deployment") == 0 &&
		get_rel_namespace(relation) == get_namespace_oid(BG_SCHEMA, true);
}

/*
 * Error if there is a deployment.  Reads the table without its indexes, some
 * of which may be gone already.
 */
static void
check_no_deployment(Oid relation)
{
	Relation	table = table_open(relation, NoLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(table, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	bool		found = table_scan_getnextslot(scan, ForwardScanDirection,
											   slot);

	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(table, NoLock);
	if (found)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop extension \"%s\" because there are deployments",
						BG_EXTENSION),
				 errdetail("A CASCADE that reaches a mapping's transform would drop the whole extension, too, and leave replication slots behind."),
				 errhint("%s", guard_hint)));
}

/*
 * Error if a deployment's peer is this foreign server.
 */
static void
check_server_unused(Oid serverid)
{
	Oid			relation = get_relname_relid("deployment",
											 get_namespace_oid(BG_SCHEMA, true));
	char	   *server = GetForeignServer(serverid)->servername;
	CatalogAccess access;
	CatalogArgs args = {0};

	if (!OidIsValid(relation))
		return;
	catalog_begin(&access);
	catalog_arg_name(&args, server);
	if (catalog_run("SELECT name::text FROM bluegreen.deployment "
					"WHERE server = $1 ORDER BY name", &args,
					SPI_OK_SELECT) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop server \"%s\" because deployment \"%s\" uses it",
						server, catalog_text(&access, 0, 1)),
				 errdetail("A CASCADE that reaches a mapping's transform would drop the whole extension, and the server with it."),
				 errhint("%s", guard_hint)));
	catalog_end(&access);
}

/*
 * Transform views are members of the extension, so DROP TABLE ... CASCADE of a
 * mapped table would drop the extension with every deployment.  Refuse to drop
 * the table of deployments while it has rows.
 */
static void
guard_object_access(ObjectAccessType access, Oid classId, Oid objectId,
					int subId, void *arg)
{
	if (next_object_access_hook)
		next_object_access_hook(access, classId, objectId, subId, arg);
	if (access == OAT_DROP && classId == RelationRelationId && subId == 0 &&
		is_deployment_table(objectId))
		check_no_deployment(objectId);
	if (access == OAT_DROP && classId == ForeignServerRelationId)
		check_server_unused(objectId);
}

/*
 * Install the guard; from _PG_init().
 */
void
deployment_guard_install(void)
{
	next_object_access_hook = object_access_hook;
	object_access_hook = guard_object_access;
}
