/*-------------------------------------------------------------------------
 *
 * backward.c
 *		On blue: what is asked of green about the way back.
 *
 * The stream back belongs to green's row of the deployment (join.c).  Whoever
 * wants something of it on blue has it done there, over the peer connection
 * and in an ordinary session: start, stop, drop, its mappings.  Green's work
 * commits before blue's does.  If blue's is rolled back then, green is ahead
 * for a while; everything here can be done again, and the next start() or
 * change of a mapping puts it right.
 *
 * The origin under which the stream back writes to blue is made here, and not
 * by that stream, so that blue's own stream knows what to leave out before
 * anything can come: in the transaction that makes the origin the deployment's
 * mapping_version is raised, at which, in the WAL, blue's stream begins anew
 * (decode.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "core/event.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "replication/origin.h"
#include "stream/transform.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

/* Settings by which the text of a transform is read. */
static const char *const caller_settings[] = {
	"search_path", "datestyle", "intervalstyle", "timezone"
};

/*
 * This very database, for green to compare with what its servers lead to.  A
 * copy of us has our identifier and OIDs, but was started at another time.
 */
static char *
backward_identity(void)
{
	return psprintf(INT64_FORMAT " %u " INT64_FORMAT,
					(int64) GetSystemIdentifier(), MyDatabaseId,
					(int64) PgStartTime);
}

/*
 * An ordinary session on green, without the limits that its role may have.
 */
Peer *
backward_connect(const Deployment *deployment)
{
	Peer	   *peer = registry_connect(deployment, false);

	peer_command(peer, "SET statement_timeout = 0;"
				 "SET lock_timeout = 0;"
				 "SET idle_session_timeout = 0;"
				 "SET default_transaction_isolation = 'read committed';"
				 "SET default_transaction_deferrable = off");
	return peer;
}

/* ---- join ---- */

/*
 * Make the origin of the stream back, and have our stream leave out what comes
 * under it from here on.
 */
static void
note_opposite(Deployment *deployment, const char *stream)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	if (deployment->opposite != NULL)
		replorigin_drop_by_name(deployment->opposite, true, true);
	replorigin_drop_by_name(unconstify(char *, stream), true, true);
	deployment->opposite = pstrdup(stream);
	deployment->opposite_lsn = GetXLogInsertRecPtr();
	(void) replorigin_create(deployment->opposite);
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_text(&args, deployment->opposite);
	catalog_arg(&args, PG_LSNOID, LSNGetDatum(deployment->opposite_lsn));
	catalog_run("UPDATE bluegreen.deployment SET opposite = $2, "
				"opposite_lsn = $3, mapping_version = mapping_version + 1 "
				"WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	event_record_local(deployment->id, EVENT_DEFINED, InvalidXLogRecPtr,
					   "green has joined: there is a way back", stream);
	if (deployment->desired == DESIRED_STARTED)
		control_reload_at_commit(deployment->id);
}

/*
 * Have a row of the deployment on green.  The row here is locked.  False if no
 * server leads back from there, and none was named.  Errors: those of
 * bluegreen.join_deployment().
 */
bool
backward_join(Deployment *deployment, Peer *peer)
{
	const char *args[] = {deployment->name, registry_origin(deployment),
	deployment->peer_server, backward_identity()};
	PeerResult *result;
	char	   *stream;

	/* a role that may do nothing but apply: nobody wants a way back */
	if (deployment->peer_server == NULL)
	{
		result = peer_query(peer,
							"SELECT pg_catalog.has_function_privilege("
							"'bluegreen.join_deployment(name,text,name,text)', "
							"'EXECUTE')", 0, NULL);
		if (result->values[0][0][0] != 't')
			return false;
	}
	result = peer_query(peer,
						"SELECT stream FROM bluegreen.join_deployment("
						"$1::pg_catalog.name, $2, $3::pg_catalog.name, $4)",
						4, args);
	stream = result->values[0][0];
	if (stream == NULL)
		return false;
	if (deployment->opposite == NULL ||
		strcmp(deployment->opposite, stream) != 0 ||
		replorigin_by_name(stream, true) == InvalidRepOriginId)
		note_opposite(deployment, stream);
	return true;
}

static void
no_way_back(const Deployment *deployment, Peer *peer)
{
	PeerResult *user = peer_query(peer, "SELECT CURRENT_USER", 0, NULL);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("deployment \"%s\" has no way back", deployment->name),
			 errdetail("There is no server on %s of foreign-data wrapper \"%s\" that leads to this database and for which role \"%s\" has a user mapping.",
					   peer_description(peer), BG_EXTENSION,
					   user->values[0][0]),
			 errhint("On the peer, use CREATE SERVER blue FOREIGN DATA WRAPPER %s OPTIONS (host '...', port '%d', dbname %s); and CREATE USER MAPPING FOR %s SERVER blue OPTIONS (user '...', password '...');",
					 BG_EXTENSION, PostPortNumber,
					 quote_literal_cstr(get_database_name(MyDatabaseId)),
					 quote_identifier(user->values[0][0]))));
}

/* ---- mappings ---- */

/*
 * Keep what green has, for view mapping.  Returns how many there are.
 */
static int
refresh_mappings(const Deployment *deployment, Peer *peer)
{
	const char *name[] = {deployment->name};
	PeerResult *result =
		peer_query(peer,
				   "SELECT mapping, source, target, key, on_write, on_delete, "
				   "derived, transform, lookup, conflict "
				   "FROM bluegreen.joined_mappings($1::pg_catalog.name)",
				   1, name);
	CatalogAccess access;
	CatalogArgs id = {0};

	catalog_begin(&access);
	catalog_arg_int4(&id, deployment->id);
	catalog_run("DELETE FROM bluegreen.backward_mapping WHERE deployment = $1",
				&id, SPI_OK_DELETE);
	for (int i = 0; i < result->ntuples; i++)
	{
		CatalogArgs args = {0};

		catalog_arg_int4(&args, deployment->id);
		for (int j = 0; j < 10; j++)
			catalog_arg_text(&args, result->values[i][j]);
		catalog_run("INSERT INTO bluegreen.backward_mapping VALUES ($1, "
					"$2::integer, $3, $4, $5::name[], $6, $7, $8::boolean, "
					"$9, $10, $11)", &args, SPI_OK_INSERT);
	}
	catalog_end(&access);
	return result->ntuples;
}

/* One derived mapping on its way to green. */
typedef struct DerivedCall
{
	const Deployment *deployment;
	Peer	   *peer;
	const DerivedMapping *derived;
	char	   *id;				/* of green's, or NULL */
} DerivedCall;

static void
send_derived(void *arg)
{
	DerivedCall *call = arg;
	const DerivedMapping *derived = call->derived;
	const char *args[] = {call->deployment->name, derived->source,
		derived->target, derived->transform, catalog_text_array(derived->key),
	catalog_text_array(derived->types), derived->basis, derived->conflict};
	PeerResult *result =
		peer_query(call->peer,
				   "SELECT bluegreen.derive_mapping($1::pg_catalog.name, "
				   "$2, $3, $4, $5::pg_catalog.text[], "
				   "$6::pg_catalog.text[], $7, $8)", 8, args);
	call->id = result->values[0][0];
}

/*
 * Have one derived mapping on green; returns its id, or NULL if somebody has
 * defined one there.  What green refuses is told, and the preflight will tell
 * that there is no mapping.
 */
static char *
try_derived(const Deployment *deployment, Peer *peer,
			const DerivedMapping *derived)
{
	DerivedCall call = {deployment, peer, derived};
	ErrorData  *error = attempt_or_cancel(send_derived, &call);

	if (error == NULL)
		return call.id;
	if (!peer_is_alive(peer))
		ReThrowError(error);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("table \"%s\" is not mapped back to \"%s\": %s",
					derived->source, derived->target, error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0));
	return NULL;
}

/*
 * Have those mappings on green that follow from ours, and no other derived
 * ones.
 */
void
backward_derive(const Deployment *deployment, Peer *peer)
{
	StringInfoData ids;
	const char *args[2];
	ListCell   *lc;

	initStringInfo(&ids);
	appendStringInfoChar(&ids, '{');
	foreach(lc, derive_mappings(deployment))
	{
		DerivedMapping *derived = lfirst(lc);
		char	   *id;

		CHECK_FOR_INTERRUPTS();
		if (derived->problem != NULL)
			continue;
		id = try_derived(deployment, peer, derived);
		if (id != NULL)
			appendStringInfo(&ids, "%s%s", ids.len > 1 ? "," : "", id);
	}
	appendStringInfoChar(&ids, '}');
	args[0] = deployment->name;
	args[1] = ids.data;
	(void) peer_query(peer,
					  "SELECT bluegreen.keep_derived($1::pg_catalog.name, "
					  "$2::pg_catalog.int4[])", 2, args);
}

/*
 * Mappings of blue have changed: so have those that are derived from them.
 * Where there is no way back nothing is to be done.  Errors: green cannot be
 * reached.
 */
void
backward_mappings_changed(const Deployment *deployment)
{
	Peer	   *peer;

	if (deployment->opposite == NULL || deployment->direction != 'f')
		return;
	peer = backward_connect(deployment);
	CommandCounterIncrement();
	backward_derive(deployment, peer);
	(void) refresh_mappings(deployment, peer);
	peer_close(peer);
}

/*
 * Call one of green's functions that define mappings; args begins with the
 * deployment's name.  The text of a transform is read there as the caller's
 * session would read it.  The deployment's row is locked.
 */
int32
backward_call_integer(const Deployment *deployment, const char *sql, int nargs,
					  const char *const *args)
{
	Peer	   *peer = backward_connect(deployment);
	PeerResult *result;
	int32		value;

	if (!backward_join(unconstify(Deployment *, deployment), peer))
		no_way_back(deployment, peer);
	for (int i = 0; i < lengthof(caller_settings); i++)
	{
		const char *setting[] = {caller_settings[i],
		GetConfigOption(caller_settings[i], false, false)};

		(void) peer_query(peer, "SELECT pg_catalog.set_config($1, $2, false)",
						  2, setting);
	}
	result = peer_query(peer, sql, nargs, args);
	value = atoi(result->values[0][0]);
	(void) peer_command(peer, "SET search_path = pg_catalog, pg_temp;"
						"SET datestyle = ISO; SET intervalstyle = postgres;"
						"SET timezone = 'UTC'");
	CommandCounterIncrement();
	backward_derive(deployment, peer);
	(void) refresh_mappings(deployment, peer);
	peer_close(peer);
	return value;
}

/*
 * Have the mapping back that belongs to one of ours decide as that does, if
 * somebody has defined one.  (One that is derived does already.)  Errors: green
 * cannot be reached.
 */
void
backward_keep_policy(const Deployment *deployment, const Transform *transform)
{
	Oid			source = transform->row->source;
	const char *args[] = {deployment->name,
		mapping_target_name(transform->row),
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
								   get_rel_name(source)),
	derive_policy(transform)};
	Peer	   *peer;

	if (deployment->opposite == NULL || deployment->direction != 'f')
		return;
	peer = backward_connect(deployment);
	(void) peer_query(peer,
					  "SELECT bluegreen.alter_mapping($1::pg_catalog.name, "
					  "source, target, conflict => $4, direction => 'backward') "
					  "FROM bluegreen.joined_mappings($1::pg_catalog.name) "
					  "WHERE source = $2 AND target = $3 AND NOT derived "
					  "AND conflict <> $4", lengthof(args), args);
	(void) refresh_mappings(deployment, peer);
	peer_close(peer);
}

/* ---- start, stop ---- */

/* What is being done to the stream back. */
typedef struct BackwardCall
{
	Deployment *deployment;
	Peer	   *peer;
	bool		ready;			/* there is a stream to start or stop */
	const char *procedure;		/* of green's */
} BackwardCall;

typedef void (*BackwardStep) (void *arg);

static void
step_join(void *arg)
{
	BackwardCall *call = arg;

	call->peer = backward_connect(call->deployment);
	if (!backward_join(call->deployment, call->peer))
		return;
	backward_derive(call->deployment, call->peer);
	call->ready = refresh_mappings(call->deployment, call->peer) > 0;
}

static void
step_connect(void *arg)
{
	BackwardCall *call = arg;
	const char *args[] = {call->deployment->name,
	registry_origin(call->deployment)};
	PeerResult *result;

	call->peer = backward_connect(call->deployment);
	result = peer_query(call->peer,
						"SELECT bluegreen.joined_stream($1::pg_catalog.name, "
						"$2)", 2, args);
	call->ready = result->values[0][0] != NULL;
}

static void
step_call(void *arg)
{
	BackwardCall *call = arg;

	(void) peer_command(call->peer,
						psprintf("CALL %s(%s)", call->procedure,
								 quote_literal_cstr(call->deployment->name)));
}

/*
 * Run a step; an error becomes a message of this level, a warning for instance,
 * since the stream forward is as it should be.  False after an error.
 */
static bool
try_step(BackwardCall *call, BackwardStep step, int elevel)
{
	ErrorData  *error = attempt_or_cancel(step, call);

	if (error == NULL)
		return true;
	ereport(elevel,
			(errcode(error->sqlerrcode),
			 errmsg("stream back of deployment \"%s\" could not be %s: %s",
					call->deployment->name,
					strcmp(call->procedure, "bluegreen.stop") == 0 ?
					"stopped" : "started", error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 errhint("%s%sThen CALL %s(%s) again.",
					 error->hint ? error->hint : "",
					 error->hint ? "\n" : "", call->procedure,
					 quote_literal_cstr(call->deployment->name))));
	return false;
}

static void
step_expect(void *arg)
{
	BackwardCall *call = arg;

	call->peer = backward_connect(call->deployment);
	(void) backward_join(call->deployment, call->peer);
}

/*
 * For start(), before anything is copied: have green's row, if there is a way
 * back.  The copy needs to know (saved_index.c): a stream back finds rows by
 * keys that it would put aside.  What fails is told by backward_start().
 * Commits.
 */
void
backward_expect(const char *name)
{
	BackwardCall call = {.procedure = "bluegreen.start"};

	call.deployment = deployment_lock(name);
	if (call.deployment->direction == 'f' &&
		XLogRecPtrIsInvalid(call.deployment->slot_lsn))
		(void) try_step(&call, step_expect, DEBUG1);
	if (call.peer != NULL && peer_is_alive(call.peer))
		peer_close(call.peer);
	SPI_commit();
}

/*
 * For start(): have the stream back, its mappings included, and start it; a
 * warning if that fails, nothing if there is no way back.  Waits for green's
 * transactions when it is the first time.  Commits.
 */
void
backward_start(const char *name)
{
	BackwardCall call = {.procedure = "bluegreen.start"};

	call.deployment = deployment_lock(name);
	if (call.deployment->direction != 'f')
		return;
	if (try_step(&call, step_join, WARNING) && call.ready)
	{
		SPI_commit();			/* what green's stream writes under is known */
		(void) try_step(&call, step_call, WARNING);
	}
	if (call.peer != NULL && peer_is_alive(call.peer))
		peer_close(call.peer);
	SPI_commit();
}

/*
 * The same for who cannot do without it: raises the errors, also one if there
 * is no way back or not one mapping.
 */
void
backward_require(const char *name)
{
	BackwardCall call = {.procedure = "bluegreen.start"};

	call.deployment = deployment_lock(name);
	step_join(&call);
	if (call.deployment->opposite == NULL)
		no_way_back(call.deployment, call.peer);
	if (!call.ready)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" has no mappings back", name),
				 errhint("Use bluegreen.map_table() with direction => 'backward'.")));
	SPI_commit();
	step_call(&call);
	peer_close(call.peer);
	SPI_commit();
}

/*
 * For stop(): stop the stream back, too; a warning if that fails.
 */
void
backward_stop(const char *name)
{
	BackwardCall call = {.procedure = "bluegreen.stop"};

	call.deployment = deployment_load_by_name(name, false);
	if (call.deployment->direction != 'f' || call.deployment->opposite == NULL)
		return;
	if (try_step(&call, step_connect, WARNING) && call.ready)
		(void) try_step(&call, step_call, WARNING);
	if (call.peer != NULL && peer_is_alive(call.peer))
		peer_close(call.peer);
}

/*
 * For drop_deployment(): drop green's row.  Errors: green cannot be reached, or
 * blue cannot from there.
 */
void
backward_leave(const Deployment *deployment, bool force)
{
	const char *args[] = {deployment->name, registry_origin(deployment),
	force ? "true" : "false"};
	Peer	   *peer;

	if (deployment->opposite == NULL || deployment->direction != 'f')
		return;
	peer = backward_connect(deployment);
	(void) peer_query(peer,
					  "SELECT bluegreen.leave_deployment($1::pg_catalog.name, "
					  "$2, $3::pg_catalog.bool)", 3, args);
	peer_close(peer);
}
