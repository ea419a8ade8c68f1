/*-------------------------------------------------------------------------
 *
 * progress.c
 *		What the target knows of a stream: its position and its tables.
 *
 * The position is the progress of the stream's replication origin, advanced
 * by the commits that carry the data.  Beside it bluegreen.applied_stream says
 * that this target belongs to this stream at all, and to which source of it, and
 * bluegreen.applied_table has a row per mapping with the generation of its copy.
 *
 * Raising a generation waits for the chunk transactions that hold the row FOR
 * SHARE, and makes those fail that come later: so nothing that a dead copy
 * worker left behind on the target can commit after the next worker has looked
 * at what is there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "compat.h"
#include "core/lost.h"
#include "core/place.h"
#include "miscadmin.h"
#include "stream/copy.h"
#include "stream/progress.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

static bool
setup_session(Peer *peer, const char *origin, PeerError *error)
{
	char	   *sql;

	sql = psprintf("SELECT bluegreen.origin_setup(%s)",
				   quote_literal_cstr(origin));
	return peer_try_command(peer, sql, error);
}

/*
 * Make the peer session the one that advances an origin, which is created if
 * it does not exist.  A session that a worker of ours left behind is ended;
 * whoever asks then gets the transient error 55006 and tries again.
 */
void
progress_session_setup(Peer *peer, const char *origin)
{
	const char *origin_args[] = {origin};
	PeerError	error;

	peer_query(peer, "SELECT bluegreen.origin_create($1)", 1, origin_args);
	if (setup_session(peer, origin, &error))
		return;
	if (strcmp(error.sqlstate, "55006") == 0)
		peer_query(peer,
				   "SELECT pg_catalog.pg_terminate_backend(pid, 5000) "
				   "FROM pg_catalog.pg_stat_activity "
				   "WHERE application_name = "
				   "pg_catalog.current_setting('application_name') "
				   "AND pid <> pg_catalog.pg_backend_pid() "
				   "AND usename = CURRENT_USER", 0, NULL);
	if (setup_session(peer, origin, &error))
		return;
	if (strcmp(error.sqlstate, "53400") == 0)
		snprintf(error.hint, sizeof(error.hint),
				 _("On the peer, increase \"%s\" and restart."),
				 peer_server_version(peer) >= 180000 ?
				 "max_active_replication_origins" : "max_replication_slots");
	peer_rethrow(&error, "setting up the replication origin");
}

/*
 * How far the target has durably applied the session's origin; invalid if
 * nothing yet.
 */
XLogRecPtr
progress_read(Peer *peer)
{
	PeerResult *result;

	result = peer_query(peer, "SELECT bluegreen.origin_progress()", 0, NULL);
	if (result->values[0][0] == NULL)
		return InvalidXLogRecPtr;
	return DatumGetLSN(DirectFunctionCall1(pg_lsn_in,
										   CStringGetDatum(result->values[0][0])));
}

/*
 * The target is ahead of this server, or was found to be before.
 */
static pg_noreturn void
raise_ahead(char *detail)
{
	LostReason	reason = {"target is ahead of this server", detail};

	lost_raise(&reason);
}

/*
 * Error if this source may not write to the target: that belongs to another
 * database than the one that start() registered with, was restored since, is
 * ahead of the source, or follows another server.  To be called before the
 * session takes over the origin, which would end another source's session, and
 * again after that, because only then nobody else can take over.
 */
void
progress_check_stream(Peer *peer, const char *origin,
					  const Deployment *deployment)
{
	const char *args[] = {origin};
	PeerResult *result;

	result = peer_query(peer,
						"SELECT timeline, lost FROM bluegreen.applied_stream "
						"WHERE name = $1",
						1, args);
	if (result->ntuples == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("peer %s does not know the stream of deployment \"%s\"",
						peer_description(peer), deployment->name),
				 errdetail("Its database is not the one that the deployment was started with, or it was put back to an earlier state."),
				 errhint("Point the server at the right database, or drop the deployment and start anew.")));
	if (result->values[0][1] != NULL)
		raise_ahead(result->values[0][1]);
	(void) source_check_timeline(deployment, result->values[0][0]);
}

/*
 * Make this server the source that the target follows.  The session owns the
 * origin.  What the target has, by the stream or in chunks, must be in this
 * server's history: not if a standby was promoted that had not received it, or
 * if this server was put back to an earlier state.  The latter cannot be seen
 * any more once there is new WAL, so the target keeps it in mind.
 */
void
progress_take_over(Peer *peer, const char *origin,
				   const Deployment *deployment, XLogRecPtr progress)
{
	const char *args[] = {origin, NULL};
	char	   *here = source_timeline();
	char	   *timeline;
	XLogRecPtr	end;
	XLogRecPtr	reached;
	PeerResult *result;

	result = peer_query(peer,
						"SELECT s.timeline, (SELECT COALESCE("
						"pg_catalog.max(c.lsn), '0/0') "
						"FROM bluegreen.applied_chunk c WHERE c.stream = s.name) "
						"FROM bluegreen.applied_stream s WHERE s.name = $1",
						1, args);
	timeline = result->values[0][0];
	end = source_check_timeline(deployment, timeline);
	reached = DatumGetLSN(DirectFunctionCall1(pg_lsn_in,
											  CStringGetDatum(result->values[0][1])));
	reached = Max(reached, progress);
	if (reached > end)
	{
		char	   *detail =
			psprintf("The target has what the source had up to %X/%X of timeline %s; this server, on timeline %s, has that only up to %X/%X.",
					 LSN_FORMAT_ARGS(reached), timeline, here,
					 LSN_FORMAT_ARGS(end));

		args[1] = detail;
		if (strcmp(timeline, here) == 0)
			peer_query(peer,
					   "UPDATE bluegreen.applied_stream SET lost = $2 "
					   "WHERE name = $1", 2, args);
		raise_ahead(detail);
	}
	args[1] = here;
	if (strcmp(timeline, here) != 0)
		peer_query(peer,
				   "UPDATE bluegreen.applied_stream SET timeline = $2 "
				   "WHERE name = $1", 2, args);
}

/*
 * Forget tables that the stream has no longer.  What a copy that did not end
 * had taken away from the target comes back first.
 */
static void
forget_tables(Peer *peer, const char *origin, const char *kept)
{
	const char *args[] = {origin, kept};
	PeerResult *result;

	result = peer_query(peer,
						"SELECT mapping FROM bluegreen.applied_table "
						"WHERE stream = $1 AND mapping <> ALL ($2::integer[])",
						2, args);
	for (int i = 0; i < result->ntuples; i++)
	{
		const char *gone[] = {origin, result->values[i][0]};

		peer_command(peer, "BEGIN");
		copy_restore_indexes(peer, origin, atoi(gone[1]), true);
		/* foreign keys do not cascade in a session of role replica */
		peer_query(peer,
				   "DELETE FROM bluegreen.applied_chunk "
				   "WHERE stream = $1 AND mapping = $2::integer", 2, gone);
		peer_query(peer,
				   "DELETE FROM bluegreen.applied_table "
				   "WHERE stream = $1 AND mapping = $2::integer", 2, gone);
		peer_command(peer, "COMMIT");
	}
}

/*
 * Tell the target which tables the stream has, forget those that it has no
 * longer, and raise the generation of those that are not copied yet.  A stream
 * back copies nothing: its tables follow from the first position of its slot.
 */
void
progress_register_tables(Peer *peer, const char *origin, List *rows)
{
	const char *origin_args[] = {origin};
	StringInfoData ids;
	ListCell   *lc;

	initStringInfo(&ids);
	appendStringInfoChar(&ids, '{');
	foreach(lc, rows)
	{
		MappingRow *row = lfirst(lc);
		const char *args[] = {origin, psprintf("%d", row->id),
		row->target_schema, row->target_table,
		row->direction == 'f' ? "copying" : "streaming"};
		PeerResult *result;

		appendStringInfo(&ids, "%s%d", ids.len > 1 ? "," : "", row->id);
		peer_command(peer, "BEGIN");
		result = peer_query(peer,
							"INSERT INTO bluegreen.applied_table "
							"(stream, mapping, target_schema, target_table, state) "
							"VALUES ($1, $2::integer, $3, $4, $5) "
							"ON CONFLICT (stream, mapping) DO NOTHING "
							"RETURNING mapping", 5, args);
		/* whoever else is copied there must not be without it any longer */
		if (result->ntuples > 0)
			copy_restore_key(peer, origin, row->id);
		peer_command(peer, "COMMIT");
	}
	appendStringInfoChar(&ids, '}');
	forget_tables(peer, origin, ids.data);
	peer_query(peer,
			   "UPDATE bluegreen.applied_table SET generation = generation + 1 "
			   "WHERE stream = $1 AND state = 'copying'", 1, origin_args);
}
