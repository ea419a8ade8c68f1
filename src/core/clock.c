/*-------------------------------------------------------------------------
 *
 * clock.c
 *		The clocks of two servers: how far are they apart?
 *
 * While both sides take writes, and under the policy "last_write", whose commit
 * time is later wins; so it matters that both mean the same by it.  Nothing else
 * depends on the clocks: both sides end the same however they go.
 *
 * Before a window is opened the preflight asks the other side for its time.
 * While it is open the sessions that apply see commit times of the other side:
 * one that lies in the future here tells that the other clock is ahead, by that
 * much at least.  So the side whose clock is behind finds out, under load as
 * well, and without a question.  It is told (an event, stat_stream.clock_ahead),
 * and stops nobody: a stream that stands still would leave more to conflict.
 *
 * bluegreen.clock_offset, for tests, shifts what a side takes for its clock and
 * for the commit times of its changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/clock.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/settings.h"
#include "core/shared.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/timestamp.h"

#define SAMPLES		5
#define TELL_MS		10000		/* the state again */
#define QUIET_MS	60000		/* it begins anew after that; see stat_stream */

/*
 * A time of this server's clock, as this server is to take it.
 */
TimestampTz
clock_shifted(TimestampTz at)
{
	return at + (TimestampTz) bg_clock_offset * 1000;
}

/* ---- a question ---- */

#define CLOCK_SQL \
	"SELECT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() " \
	"- '2000-01-01 00:00:00+00'::pg_catalog.timestamptz) * 1000000)" \
	"::pg_catalog.int8 + COALESCE((SELECT 1000 * s.setting::pg_catalog.int8 " \
	"FROM pg_catalog.pg_settings s WHERE s.name = 'bluegreen.clock_offset'), 0)"

/*
 * Ask the other side for its clock, a few times, and believe the quickest
 * answer: the error is half of its round trip.  Errors: those of the peer.
 */
ClockSkew
clock_compare(Peer *peer)
{
	ClockSkew	best = {.error = PG_INT64_MAX};

	for (int i = 0; i < SAMPLES; i++)
	{
		TimestampTz asked = GetCurrentTimestamp();
		PeerResult *result = peer_query(peer, CLOCK_SQL, 0, NULL);
		int64		trip = GetCurrentTimestamp() - asked;
		int64		there = strtoll(result->values[0][0], NULL, 10);

		if (trip < 0 || trip / 2 >= best.error)
			continue;			/* somebody has set ours */
		best.error = trip / 2;
		best.ahead = there - clock_shifted(asked + trip / 2);
	}
	return best;
}

/* ---- what changes tell ---- */

/*
 * The deployment whose stream this session applies, if that is in a window and
 * commit times decide; or 0.
 */
static int32
find_deployment(void)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *origin;
	int32		result = 0;

	if (!replorigin_by_oid(replorigin_session_origin, true, &origin))
		return 0;
	catalog_begin(&access);
	catalog_arg_text(&args, origin);
	if (catalog_run("SELECT d.id FROM bluegreen.deployment d "
					"WHERE d.opposite = $1 AND d.\"window\" <> 'closed' "
					"AND EXISTS (SELECT FROM bluegreen.table_mapping m "
					"WHERE m.deployment = d.id "
					"AND m.conflict = 'last_write')",
					&args, SPI_OK_SELECT) > 0)
		result = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return result;
}

/*
 * Keep what was found, for stat_stream; an event when it begins.  Sessions come
 * and go, so the stream's entry knows.
 */
static void
tell_ahead(int32 deployment, int64 ahead, TimestampTz now)
{
	StreamShared *shared = stream_of_deployment(deployment);
	TimestampTz before;

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	before = shared->clock_ahead_at;
	shared->clock_ahead = ahead;
	shared->clock_ahead_at = now;
	SpinLockRelease(&shared->mutex);
	if (before == 0 || TimestampDifferenceExceeds(before, now, QUIET_MS))
		event_record(MyDatabaseId, deployment, EVENT_CLOCK, InvalidXLogRecPtr,
					 psprintf("the clock of the other side is ahead, by %.3f s at least",
							  ahead / 1e6),
					 "Its changes win over later ones of this side, where the policy is \"last_write\".");
}

/*
 * Somebody has committed there at that time: look whether that is still to come
 * here, by more than bluegreen.max_clock_skew.  In a transaction, in a session
 * that applies, while the window is open.
 */
void
clock_note_commit(TimestampTz commit_time)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();
	int64		ahead = commit_time - clock_shifted(now);
	int32		deployment;

	if (bg_max_clock_skew < 0 || ahead <= (int64) bg_max_clock_skew * 1000 ||
		!shared_is_loaded() ||
		(last != 0 && !TimestampDifferenceExceeds(last, now, TELL_MS)))
		return;
	last = now;
	deployment = find_deployment();
	if (deployment != 0)
		tell_ahead(deployment, ahead, now);
}
