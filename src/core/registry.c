/*-------------------------------------------------------------------------
 *
 * registry.c
 *		What a stream leaves on its target: the row in bluegreen.applied_stream
 *		(with all that hangs on it) and its replication origins.
 *
 * The stream's progress lives in the origin (decision 3), so an origin that
 * survived an earlier deployment of the same name would make the decoder skip
 * changes that were never applied: registering a stream always begins with
 * removing what may be left of one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "core/definition.h"
#include "core/place.h"
#include "core/settings.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "stream/progress.h"
#include "utils/builtins.h"
#include "utils/wait_event.h"

/* How long a session of a worker that has just ended may hold an origin. */
#define ORIGIN_RETRY_MS		100
#define ORIGIN_RETRIES		100

/*
 * Connect to a deployment's peer as its owner; to_write: for more than a look
 * at the catalogs.  Errors: no connection; those of target_check_peer(); the
 * peer's role may not apply changes.
 */
Peer *
registry_connect(const Deployment *deployment, bool to_write)
{
	Peer	   *peer = peer_connect(deployment->server, deployment->owner,
									"bluegreen control");

	target_check_peer(peer);
	if (to_write)
		peer_begin_apply(peer);
	return peer;
}

/*
 * Origin name of the deployment's stream from here.
 */
char *
registry_origin(const Deployment *deployment)
{
	return stream_origin_name(GetSystemIdentifier(), MyDatabaseId,
							  deployment->id, deployment->direction);
}

/*
 * Drop the stream's origin and those of its copy workers.  A session that was
 * told to end may take a while, so an origin that is in use is tried for some
 * seconds.
 */
static void
drop_origins(Peer *peer, const char *origin)
{
	char	   *sql = psprintf("SELECT bluegreen.origin_drop(%s)",
							   quote_literal_cstr(origin));

	for (int try = 0;; try++)
	{
		PeerError	error = {0};

		if (peer_try_command(peer, sql, &error))
			return;
		if (strcmp(error.sqlstate, "55006") != 0 || try >= ORIGIN_RETRIES)
			peer_rethrow(&error, "while dropping replication origins");
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ORIGIN_RETRY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Error if the peer follows another server than this one.  One that does not
 * know the stream follows nobody.
 */
void
registry_check_source(Peer *peer, const Deployment *deployment)
{
	const char *args[] = {registry_origin(deployment)};
	PeerResult *result =
		peer_query(peer,
				   "SELECT timeline FROM bluegreen.applied_stream "
				   "WHERE name = $1", 1, args);

	if (result->ntuples > 0)
		(void) source_check_timeline(deployment, result->values[0][0]);
}

/*
 * End the sessions that the stream's processes have left on the peer, which
 * did not notice yet that they are gone: they may hold locks and origins.
 */
static void
end_sessions(Peer *peer, const char *origin)
{
	const char *args[] = {origin};

	(void) peer_query(peer,
					  "SELECT pg_catalog.pg_terminate_backend(a.pid, 5000) "
					  "FROM bluegreen.applied_stream s "
					  "JOIN pg_catalog.pg_stat_activity a "
					  "ON a.datname = pg_catalog.current_database() "
					  "AND a.usename = CURRENT_USER "
					  "WHERE s.name = $1 AND a.pid <> pg_catalog.pg_backend_pid() "
					  "AND EXISTS (SELECT FROM (VALUES (' forward'), (' backward'), (' copy ')) v (word) "
					  "WHERE pg_catalog.starts_with(a.application_name, "
					  "pg_catalog.left('bluegreen ' || s.deployment || v.word, 63)))",
					  1, args);
}

static void
remove_rows(Peer *peer, const char *origin)
{
	const char *args[] = {origin};

	end_sessions(peer, origin);
	peer_command(peer, "BEGIN");
	(void) peer_query(peer, "SELECT bluegreen.restore_indexes($1)", 1, args);
	/* foreign keys do not cascade in a session of role replica */
	(void) peer_query(peer,
					  "DELETE FROM bluegreen.applied_chunk WHERE stream = $1",
					  1, args);
	(void) peer_query(peer,
					  "DELETE FROM bluegreen.applied_table WHERE stream = $1",
					  1, args);
	(void) peer_query(peer,
					  "DELETE FROM bluegreen.applied_stream WHERE name = $1",
					  1, args);
	peer_command(peer, "COMMIT");
}

/*
 * Remove everything that a stream left on the peer.  Nothing left is fine.
 */
void
registry_remove(Peer *peer, const char *origin)
{
	remove_rows(peer, origin);
	drop_origins(peer, origin);
}

/*
 * The origin of a stream back is made by blue, which knows then what to leave
 * out (backward.c).
 */
static void
require_origin(Peer *peer, const Deployment *deployment)
{
	const char *args[] = {registry_origin(deployment)};
	PeerResult *result =
		peer_query(peer, "SELECT FROM pg_catalog.pg_replication_origin "
				   "WHERE roname = $1", 1, args);

	if (result->ntuples == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("blue does not expect the stream back of deployment \"%s\"",
						deployment->name),
				 errhint("On the peer, use CALL bluegreen.start(%s);",
						 quote_literal_cstr(deployment->name))));
}

/*
 * Register a stream on the peer with the first position of its slot, in one
 * transaction there; *registered is set as soon as that may have committed.
 */
void
registry_create(Peer *peer, const Deployment *deployment, XLogRecPtr slot_lsn,
				bool *registered)
{
	char	   *origin = registry_origin(deployment);
	const char *args[] = {origin, deployment->name,
		psprintf("%X/%X", LSN_FORMAT_ARGS(slot_lsn)),
	source_timeline()};

	if (deployment->direction == 'f')
		registry_remove(peer, origin);
	else
	{
		require_origin(peer, deployment);
		remove_rows(peer, origin);
	}
	peer_command(peer, "BEGIN");
	(void) peer_query(peer,
					  "INSERT INTO bluegreen.applied_stream "
					  "(name, deployment, slot_lsn, timeline) "
					  "VALUES ($1, $2::name, $3::pg_lsn, $4)", 4, args);
	(void) peer_query(peer, "SELECT bluegreen.origin_create($1)", 1, args);
	*registered = true;
	peer_command(peer, "COMMIT");
}

/*
 * Be for a moment what a worker will be on the peer.
 */
static void
try_session(const Deployment *deployment, const char *application_name,
			const char *origin)
{
	Peer	   *peer = peer_connect(deployment->server, deployment->owner,
									application_name);

	peer_on_connect_apply(peer);
	progress_session_setup(peer, origin);
	peer_close(peer);
}

/*
 * Error if the peer has no room for the stream's origin or that of a copy
 * worker, or does not let its role do what a worker does first.  The sessions
 * have the names of the workers', which end them if they are still there.
 */
void
registry_try_sessions(const Deployment *deployment)
{
	char	   *origin = registry_origin(deployment);
	char	   *name = stream_application_name(deployment);

	try_session(deployment,
				psprintf("%s %s", name, direction_name(deployment->direction)),
				origin);
	if (bg_copy_workers > 0 && deployment->direction == 'f')
		try_session(deployment, psprintf("%s copy 1", name),
					psprintf("%s_c1", origin));
}
