/*-------------------------------------------------------------------------
 *
 * throttle.c
 *		Why a backfill should rest.
 *
 * Before each range it is asked for reasons, one after the other.  The first
 * one is shown in backfill_progress until it is gone.  None of them but WAL
 * knows how long to rest, so the others are asked again after a second, and
 * what they ask the server for is not asked more often.
 *
 * The limit of WAL counts what the whole server writes, because it is there for
 * archiving and standbys.  Over the time since it was last kept the WAL may be
 * no more than the rate allows; what was not used is forgotten after a second.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/settings.h"
#include "executor/spi.h"
#include "schema/change.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define LOOK_MS		1000

typedef char *(*Throttle) (const Change *change, Oid relid);

/* One text of a query over the server's views, or NULL. */
static char *
ask(const char *sql, const CatalogArgs *args)
{
	CatalogAccess access;
	char	   *answer = NULL;

	catalog_begin(&access);
	if (catalog_run(sql, args, SPI_OK_SELECT) > 0)
		answer = catalog_text(&access, 0, 1);
	catalog_end(&access);
	return answer;
}

static char *
standby_lag(const Change *change, Oid relid)
{
	CatalogArgs args = {0};

	if (bg_backfill_max_lag == 0)
		return NULL;
	catalog_arg_int4(&args, bg_backfill_max_lag);
	return ask("SELECT format('standby \"%s\", which lags by %s', "
			   "application_name, replay_lag) "
			   "FROM pg_stat_replication WHERE replay_lag > "
			   "$1 * interval '1 ms' ORDER BY replay_lag DESC LIMIT 1", &args);
}

static char *
slot_lag(const Change *change, Oid relid)
{
	CatalogArgs args = {0};

	if (bg_backfill_max_slot_lag == 0)
		return NULL;
	catalog_arg_int4(&args, bg_backfill_max_slot_lag);
	return ask("SELECT format('replication slot \"%s\", which is behind by %s', "
			   "slot_name, pg_size_pretty(behind)) "
			   "FROM (SELECT slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), "
			   "coalesce(confirmed_flush_lsn, restart_lsn)) AS behind "
			   "FROM pg_replication_slots) s WHERE behind > $1 * 1024.0 "
			   "ORDER BY behind DESC LIMIT 1", &args);
}

static char *
autovacuum(const Change *change, Oid relid)
{
	CatalogArgs args = {0};

	if (!bg_backfill_yield)
		return NULL;
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	return ask("SELECT format('autovacuum of %s, process %s', "
			   "v.relid::regclass, v.pid) "
			   "FROM pg_stat_progress_vacuum v JOIN pg_stat_activity a "
			   "USING (pid) WHERE v.relid = $1 "
			   "AND v.datname = current_database() "
			   "AND a.backend_type = 'autovacuum worker'", &args);
}

/* What somebody has configured: null and false mean nothing. */
static char *
users_query(const Change *change, Oid relid)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *answer = NULL;

	if (bg_backfill_throttle_query == NULL || !*bg_backfill_throttle_query)
		return NULL;
	SPI_connect();
	if (SPI_execute(bg_backfill_throttle_query, true, 1) != SPI_OK_SELECT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not a query",
						"bluegreen.backfill_throttle_query")));
	if (SPI_processed > 0)
		answer = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (answer != NULL && SPI_gettypeid(SPI_tuptable->tupdesc, 1) == BOOLOID)
		answer = strcmp(answer, "t") == 0 ?
			"bluegreen.backfill_throttle_query" : NULL;
	if (answer != NULL)
		answer = MemoryContextStrdup(context, answer);
	SPI_finish();
	return answer;
}

static const Throttle throttles[] = {
	standby_lag, slot_lag, autovacuum, users_query
};

/* How long to wait until WAL is within its limit, in ms. */
static int
wal_wait(void)
{
	static XLogRecPtr start = InvalidXLogRecPtr;
	static TimestampTz start_at = 0;
	XLogRecPtr	now = GetXLogInsertRecPtr();
	TimestampTz now_at = GetCurrentTimestamp();
	long		elapsed = TimestampDifferenceMilliseconds(start_at, now_at);
	int64		allowed = (int64) bg_backfill_max_wal_rate * 1024;
	int64		wanted;

	if (start == InvalidXLogRecPtr || allowed == 0)
		wanted = 0;
	else
		wanted = (int64) (now - start) * 1000 / allowed;
	if (wanted > elapsed)
		return (int) Min(wanted - elapsed, LOOK_MS);
	if (start == InvalidXLogRecPtr || elapsed >= LOOK_MS)
	{
		start = now;
		start_at = now_at;
	}
	return 0;
}

/*
 * Why the backfill of a table should rest now, or NULL.  Sets for how long, in
 * ms.  Errors: those of the user's query.
 */
char *
throttle_reason(const Change *change, Oid relid, int *sleep_ms)
{
	static TimestampTz looked_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	*sleep_ms = LOOK_MS;
	if (change->paused)
		return "bluegreen.pause_backfill()";
	if (TimestampDifferenceExceeds(looked_at, now, LOOK_MS))
	{
		for (int i = 0; i < lengthof(throttles); i++)
		{
			char	   *reason = throttles[i] (change, relid);

			if (reason != NULL)
				return reason;
		}
		looked_at = now;
	}
	*sleep_ms = wal_wait();
	return *sleep_ms > 0 ? "bluegreen.backfill_max_wal_rate" : NULL;
}
