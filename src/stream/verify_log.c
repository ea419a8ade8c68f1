/*-------------------------------------------------------------------------
 *
 * verify_log.c
 *		What is asked of comparisons, how far they are, and what they found.
 *
 * All of it is in tables on the source: one row per deployment in verify_run,
 * one per mapping in verify_table, the keys in verify_difference.  A range and
 * what was found in it are written when it is done, so a worker that was killed
 * is followed by one that goes on with the next range.  Of the range that was
 * cut short some differences may be there already; they are not written twice.
 *
 * Each function here runs in a transaction of its own, except for
 * verify_request() and verify_schedule(), which need one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "core/event.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "stream/verify.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* A transaction for one access to the tables. */
static void
log_begin(CatalogAccess *access)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	catalog_begin(access);
}

static void
log_end(VerifyState *state, CatalogAccess *access)
{
	catalog_end(access);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
}

/*
 * Begin a new run: what was found before is forgotten, except for what was
 * repaired.  The caller has locked the deployment's row, or is the worker.
 */
void
verify_request(int32 deployment, Oid source)
{
	char	   *mappings =
		psprintf("deployment = %d AND (%u = 0 OR source = %u)",
				 deployment, source, source);
	char	   *user = GetUserNameFromId(GetSessionUserId(), false);

	catalog_run(psprintf("INSERT INTO bluegreen.verify_run "
						 "(deployment, state, source, requested_by) "
						 "VALUES (%d, 'running', nullif(%u, 0), %s) "
						 "ON CONFLICT (deployment) DO UPDATE SET "
						 "number = verify_run.number + 1, state = 'running', "
						 "source = EXCLUDED.source, requested_at = clock_timestamp(), "
						 "requested_by = EXCLUDED.requested_by, "
						 "finished_at = NULL, message = NULL",
						 deployment, source, quote_literal_cstr(user)),
				NULL, SPI_OK_INSERT);
	catalog_run(psprintf("DELETE FROM bluegreen.verify_difference "
						 "WHERE repaired_at IS NULL AND mapping IN "
						 "(SELECT id FROM bluegreen.table_mapping WHERE %s)",
						 mappings), NULL, SPI_OK_DELETE);
	catalog_run(psprintf("DELETE FROM bluegreen.verify_table WHERE mapping IN "
						 "(SELECT id FROM bluegreen.table_mapping WHERE %s)",
						 mappings), NULL, SPI_OK_DELETE);
	catalog_run(psprintf("INSERT INTO bluegreen.verify_table (mapping, run) "
						 "SELECT id, (SELECT number FROM bluegreen.verify_run "
						 "WHERE deployment = %d) "
						 "FROM bluegreen.table_mapping WHERE %s",
						 deployment, mappings), NULL, SPI_OK_INSERT);
}

/* Is this side the one that is right?  Else what comes back would differ. */
#define IS_ACTIVE \
	"EXISTS (SELECT FROM bluegreen.fence f " \
	"WHERE f.deployment = r.deployment AND f.state IN ('open', 'raised'))"

/*
 * When a verify worker has something to do, for the launcher; needs a
 * transaction.  A request that comes while we look has set its own time.
 */
void
verify_schedule(StreamShared *shared)
{
	CatalogAccess access;
	TimestampTz at = 0;
	TimestampTz before;

	SpinLockAcquire(&shared->mutex);
	before = shared->verify_at;
	SpinLockRelease(&shared->mutex);
	catalog_begin(&access);
	if (catalog_run(psprintf("SELECT CASE WHEN state = 'running' "
							 "THEN requested_at WHEN " IS_ACTIVE
							 " THEN requested_at + every ELSE "
							 "greatest(requested_at + every, "
							 "clock_timestamp() + every / 10) END "
							 "FROM bluegreen.verify_run r WHERE deployment = %d",
							 shared->deployment), NULL, SPI_OK_SELECT) > 0)
		at = DatumGetTimestampTz(catalog_value(0, 1, NULL));
	catalog_end(&access);
	SpinLockAcquire(&shared->mutex);
	if (shared->verify_at == before)
		shared->verify_at = at;
	SpinLockRelease(&shared->mutex);
	launcher_wake();
}

/*
 * Is there something to do?  Fills in the run's number; begins a new one if
 * that is due.
 */
bool
verify_log_begin(VerifyState *state)
{
	int32		deployment = state->deployment->id;
	char	   *sql = psprintf("SELECT state = 'running', number, "
							   "requested_at + every <= clock_timestamp() "
							   "AND " IS_ACTIVE
							   " FROM bluegreen.verify_run r WHERE deployment = %d",
							   deployment);
	CatalogAccess access;
	bool		running = false;
	bool		due = false;

	log_begin(&access);
	if (catalog_run(sql, NULL, SPI_OK_SELECT) > 0)
	{
		running = DatumGetBool(catalog_value(0, 1, NULL));
		due = DatumGetBool(catalog_value(0, 3, NULL));
	}
	if (!running && due)
	{
		verify_request(deployment, InvalidOid);
		catalog_run(sql, NULL, SPI_OK_SELECT);
		running = true;
	}
	if (running)
		state->run = DatumGetInt64(catalog_value(0, 2, NULL));
	log_end(state, &access);
	return running;
}

static XLogRecPtr
stored_lsn(int column)
{
	bool		isnull;
	Datum		value = catalog_value(0, column, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
}

/*
 * How far the current table is; false if it is no part of the run (mapped
 * meanwhile, or another one was asked for).  *status is in the range's memory.
 */
bool
verify_log_table(VerifyState *state, char **status)
{
	VerifyProgress *progress = &state->progress;
	CatalogAccess access;
	bool		found;
	char	   *position;

	memset(progress, 0, sizeof(*progress));
	log_begin(&access);
	access.context = state->range_context;
	found = catalog_run(psprintf("SELECT state, position::text, ranges, "
								 "row_count, target_row_count, suspects, "
								 "rechecks, differences, unsettled, first_lsn, "
								 "last_lsn FROM bluegreen.verify_table "
								 "WHERE mapping = %d AND run = " INT64_FORMAT,
								 state->table->transform->row->id, state->run),
						NULL, SPI_OK_SELECT) > 0;
	if (found)
	{
		*status = catalog_text(&access, 0, 1);
		position = catalog_text(&access, 0, 2);
		progress->position = position ?
			MemoryContextStrdup(state->context, position) : NULL;
		progress->ranges = DatumGetInt64(catalog_value(0, 3, NULL));
		progress->rows = DatumGetInt64(catalog_value(0, 4, NULL));
		progress->target_rows = DatumGetInt64(catalog_value(0, 5, NULL));
		progress->suspects = DatumGetInt64(catalog_value(0, 6, NULL));
		progress->rechecks = DatumGetInt64(catalog_value(0, 7, NULL));
		progress->differences = DatumGetInt64(catalog_value(0, 8, NULL));
		progress->unsettled = DatumGetInt64(catalog_value(0, 9, NULL));
		progress->first_lsn = stored_lsn(10);
		progress->last_lsn = stored_lsn(11);
	}
	log_end(state, &access);
	return found;
}

static char *
lsn_literal(XLogRecPtr lsn)
{
	return XLogRecPtrIsInvalid(lsn) ? "NULL" :
		psprintf("'%X/%X'::pg_lsn", LSN_FORMAT_ARGS(lsn));
}

/*
 * Write the current table's progress.  Ends the process if the run was
 * cancelled, or another one has begun.
 */
void
verify_log_range(VerifyState *state, const char *status, const char *note)
{
	const VerifyProgress *p = &state->progress;
	int32		mapping = state->table->transform->row->id;
	bool		ended = strcmp(status, "comparing") != 0;
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		go_on;

	log_begin(&access);
	catalog_arg_text(&args, status);
	catalog_arg_text(&args, p->position);
	catalog_arg_text(&args, note);
	go_on = catalog_run(psprintf("UPDATE bluegreen.verify_table SET state = $1, "
								 "position = $2::text[], message = $3, "
								 "ranges = " INT64_FORMAT ", "
								 "row_count = " INT64_FORMAT ", "
								 "target_row_count = " INT64_FORMAT ", "
								 "estimated_rows = " INT64_FORMAT ", "
								 "suspects = " INT64_FORMAT ", "
								 "rechecks = " INT64_FORMAT ", "
								 "unsettled = " INT64_FORMAT ", "
								 "first_lsn = %s, last_lsn = %s, "
								 "differences = (SELECT count(*) "
								 "FROM bluegreen.verify_difference d "
								 "WHERE d.mapping = %d AND d.run = verify_table.run), "
								 "started_at = coalesce(started_at, clock_timestamp()), "
								 "finished_at = CASE WHEN %s THEN clock_timestamp() END "
								 "WHERE mapping = %d AND run = " INT64_FORMAT " "
								 "AND EXISTS (SELECT FROM bluegreen.verify_run r "
								 "WHERE r.deployment = %d AND r.state = 'running' "
								 "AND r.number = verify_table.run)",
								 p->ranges, p->rows, p->target_rows,
								 state->table->copy.stats->estimated_rows,
								 p->suspects, p->rechecks, p->unsettled,
								 lsn_literal(p->first_lsn),
								 lsn_literal(p->last_lsn), mapping,
								 ended ? "true" : "false", mapping, state->run,
								 state->deployment->id),
						&args, SPI_OK_UPDATE) > 0;
	log_end(state, &access);
	if (!go_on)
		proc_exit(0);
}

static const char *
difference_kind(const VerifyTable *table, const Suspect *suspect)
{
	if (suspect->source.rows == 0)
		return "extra";
	if (suspect->target.rows == 0)
		return "missing";
	if (table->nkeys > 0)
		return "different";
	return suspect->source.rows > suspect->target.rows ? "missing" : "extra";
}

/*
 * Record a difference, unless it is recorded, or the run is over.
 */
void
verify_log_difference(VerifyState *state, const Suspect *suspect,
					  XLogRecPtr lsn)
{
	const VerifyTable *table = state->table;
	CatalogAccess access;
	CatalogArgs args = {0};
	const char *key;

	if (table->nkeys == 0)
		key = psprintf("{%s}", suspect->key[0]);
	else
		key = suspect->source.key ? suspect->source.key : suspect->target.key;
	log_begin(&access);
	catalog_arg_text(&args, key);
	catalog_arg_text(&args, difference_kind(table, suspect));
	if (catalog_run(psprintf("INSERT INTO bluegreen.verify_difference "
							 "(mapping, run, key, kind, source_rows, "
							 "target_rows, lsn) "
							 "SELECT %d, " INT64_FORMAT ", $1::text[], $2, "
							 INT64_FORMAT ", " INT64_FORMAT ", %s "
							 "WHERE EXISTS (SELECT FROM bluegreen.table_mapping "
							 "WHERE id = %d) "
							 "AND EXISTS (SELECT FROM bluegreen.verify_run "
							 "WHERE deployment = %d AND number = " INT64_FORMAT
							 " AND state = 'running') AND NOT EXISTS "
							 "(SELECT FROM bluegreen.verify_difference "
							 "WHERE mapping = %d AND run = " INT64_FORMAT
							 " AND hash_array(key) = hash_array($1::text[]) "
							 "AND key = $1::text[])",
							 table->transform->row->id, state->run,
							 suspect->source.rows, suspect->target.rows,
							 lsn_literal(lsn), table->transform->row->id,
							 state->deployment->id, state->run,
							 table->transform->row->id, state->run),
					&args, SPI_OK_INSERT) > 0)
		state->progress.differences++;
	log_end(state, &access);
}

/*
 * The run is over: status 'done' or 'failed'; or it will be tried again:
 * 'running'.  The result of one over all tables is what status shows; it holds
 * for no position if not all of them were compared to their ends.
 */
void
verify_log_end(VerifyState *state, const char *status, const char *message)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	log_begin(&access);
	catalog_arg_text(&args, status);
	catalog_arg_text(&args, message);
	catalog_run(psprintf("UPDATE bluegreen.verify_run r SET state = $1, "
						 "message = $2, finished_at = CASE WHEN $1 <> 'running' "
						 "THEN clock_timestamp() END "
						 "WHERE deployment = %d AND number = " INT64_FORMAT
						 " AND state = 'running'",
						 state->deployment->id, state->run),
				&args, SPI_OK_UPDATE);
	if (strcmp(status, "done") == 0)
		catalog_run(psprintf("UPDATE bluegreen.verify_run r "
							 "SET verified_at = finished_at, "
							 "verified_lsn = t.lsn, differences = t.differences "
							 "FROM (SELECT CASE WHEN bool_and(state = 'done') "
							 "THEN min(first_lsn) END AS lsn, "
							 "coalesce(sum(differences), 0) AS differences "
							 "FROM bluegreen.verify_table "
							 "WHERE run = " INT64_FORMAT " AND mapping IN "
							 "(SELECT id FROM bluegreen.table_mapping "
							 "WHERE deployment = %d)) t "
							 "WHERE r.deployment = %d AND r.source IS NULL "
							 "AND r.number = " INT64_FORMAT,
							 state->run, state->deployment->id,
							 state->deployment->id, state->run),
					NULL, SPI_OK_UPDATE);
	if (strcmp(status, "running") != 0)
		event_record_local(state->deployment->id, EVENT_VERIFIED,
						   InvalidXLogRecPtr,
						   psprintf("verification %s", status), message);
	log_end(state, &access);
}
