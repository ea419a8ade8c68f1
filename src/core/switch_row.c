/*-------------------------------------------------------------------------
 *
 * switch_row.c
 *		A switchover's or rollback's row, and its worker in shared memory.
 *
 * bluegreen.switch has one row for each deployment: the last move that began
 * on this side.  It says what was asked for and how it ended.  It is not what
 * decides anything: that are the fences' rows on both sides.  Who finds it
 * unfinished knows that there is something to do, and looks at those.
 *
 * What is done while users wait is not written to a table: each commit would
 * be a write to disk.  It goes to the stream's entry in shared memory, which
 * the caller reads, and to the events.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/switch_row.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

const char *const switch_kind_names[] = {
	"switchover", "rollback", "open_window"
};
const char *const switch_state_names[] = {
	"running", "decided", "done", "failed"
};

/* ---- the row ---- */

static int
word(const CatalogAccess *access, int column, const char *const *names, int n)
{
	char	   *value = catalog_text(access, 0, column);
	int			i = enum_lookup(names, n, value);

	if (i < 0)
		elog(ERROR, "unexpected word \"%s\" in bluegreen.switch", value);
	return i;
}

/*
 * Read a deployment's row; false if there is none.  Needs a transaction.
 */
bool
switch_row_read(int32 deployment, SwitchRow *row)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		found;

	memset(row, 0, sizeof(SwitchRow));
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	found = catalog_run("SELECT kind, epoch, state, begun, cancelled, deadline, "
						"drain_timeout, on_drain_timeout, stop_at, sqlstate, "
						"message, detail, hint "
						"FROM bluegreen.switch WHERE deployment = $1",
						&args, SPI_OK_SELECT) > 0;
	if (found)
	{
		row->deployment = deployment;
		row->kind = word(&access, 1, switch_kind_names,
						 lengthof(switch_kind_names));
		row->epoch = DatumGetInt64(catalog_value(0, 2, NULL));
		row->state = word(&access, 3, switch_state_names,
						  lengthof(switch_state_names));
		row->begun = DatumGetBool(catalog_value(0, 4, NULL));
		row->cancelled = DatumGetBool(catalog_value(0, 5, NULL));
		row->deadline = DatumGetTimestampTz(catalog_value(0, 6, NULL));
		row->drain_timeout = DatumGetInt32(catalog_value(0, 7, NULL));
		row->on_drain_timeout = catalog_text(&access, 0, 8);
		row->stop_at = catalog_text(&access, 0, 9);
		row->sqlstate = catalog_text(&access, 0, 10);
		row->message = catalog_text(&access, 0, 11);
		row->detail = catalog_text(&access, 0, 12);
		row->hint = catalog_text(&access, 0, 13);
	}
	catalog_end(&access);
	return found;
}

/*
 * Ask for a move; false if one is not finished.
 */
bool
switch_row_request(const SwitchRow *row)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		done;

	catalog_begin(&access);
	catalog_arg_int4(&args, row->deployment);
	catalog_arg_text(&args, switch_kind_names[row->kind]);
	catalog_arg(&args, INT8OID, Int64GetDatum(row->epoch));
	catalog_arg(&args, TIMESTAMPTZOID, TimestampTzGetDatum(row->deadline));
	catalog_arg_int4(&args, row->drain_timeout);
	catalog_arg_text(&args, row->on_drain_timeout);
	catalog_arg_text(&args, row->stop_at);
	catalog_arg_name(&args, GetUserNameFromId(GetSessionUserId(), false));
	done = catalog_run("INSERT INTO bluegreen.switch AS s (deployment, kind, "
					   "epoch, state, deadline, drain_timeout, "
					   "on_drain_timeout, stop_at, requested_by) "
					   "VALUES ($1, $2, $3, 'running', $4, $5, $6, $7, $8) "
					   "ON CONFLICT (deployment) DO UPDATE SET "
					   "kind = EXCLUDED.kind, epoch = EXCLUDED.epoch, "
					   "state = 'running', begun = false, cancelled = false, "
					   "deadline = EXCLUDED.deadline, "
					   "drain_timeout = EXCLUDED.drain_timeout, "
					   "on_drain_timeout = EXCLUDED.on_drain_timeout, "
					   "stop_at = EXCLUDED.stop_at, "
					   "requested_at = clock_timestamp(), "
					   "requested_by = EXCLUDED.requested_by, "
					   "finished_at = NULL, sqlstate = NULL, message = NULL, "
					   "detail = NULL, hint = NULL "
					   "WHERE s.state IN ('done', 'failed')",
					   &args, SPI_OK_INSERT) > 0;
	catalog_end(&access);
	return done;
}

/*
 * Change columns of a row; set is SQL, made of constants.
 */
void
switch_row_set(int32 deployment, const char *set)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	catalog_run(psprintf("UPDATE bluegreen.switch SET %s WHERE deployment = $1",
						 set), &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * A move has ended with an error, or (state running or decided) cannot go on
 * for the time being.
 */
void
switch_row_error(int32 deployment, SwitchState state, const ErrorData *error)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	catalog_arg_text(&args, switch_state_names[state]);
	catalog_arg_text(&args, unpack_sql_state(error->sqlerrcode));
	catalog_arg_text(&args, error->message);
	catalog_arg_text(&args, error->detail);
	catalog_arg_text(&args, error->hint);
	catalog_run("UPDATE bluegreen.switch SET state = $2, sqlstate = $3, "
				"message = $4, detail = $5, hint = $6, finished_at = CASE "
				"WHEN $2 = 'failed' THEN clock_timestamp() END "
				"WHERE deployment = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Error if a move of the deployment has not ended.
 */
void
switch_refuse_unfinished(const Deployment *deployment, const char *what)
{
	SwitchRow	row;

	if (!switch_row_read(deployment->id, &row) ||
		row.state == SWITCH_DONE || row.state == SWITCH_FAILED)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("cannot %s deployment \"%s\" during its %s", what,
					deployment->name, switch_kind_names[row.kind]),
			 errhint("Wait for its end, or end it with CALL bluegreen.cancel(%s); view bluegreen.switch_state tells where it is.",
					 quote_literal_cstr(deployment->name))));
}

/* ---- shared memory ---- */

/*
 * For a stream's worker that has just started: have the launcher start a worker
 * if a move has not ended.  Needs a transaction.
 */
void
switch_schedule(StreamShared *shared)
{
	SwitchRow	row;

	if (switch_row_read(shared->deployment, &row) &&
		(row.state == SWITCH_RUNNING || row.state == SWITCH_DECIDED))
		switch_wake(shared);
}

/*
 * Have the launcher start a worker now, unless one runs.
 */
void
switch_wake(StreamShared *shared)
{
	SpinLockAcquire(&shared->mutex);
	if (shared->switch_pid == 0)
	{
		shared->switch_at = GetCurrentTimestamp();
		shared->switch_failures = 0;
	}
	SpinLockRelease(&shared->mutex);
	launcher_wake();
}

/*
 * A new move has nothing to tell yet.
 */
void
switch_progress_begin(StreamShared *shared)
{
	SpinLockAcquire(&shared->mutex);
	shared->switch_nlines = 0;
	SpinLockRelease(&shared->mutex);
}

/*
 * Tell the caller something.  Of too much the last is kept.
 */
void
switch_progress_add(StreamShared *shared, const char *text)
{
	char		line[BG_SWITCH_LINE];

	shared_copy_text(line, sizeof(line), text);
	SpinLockAcquire(&shared->mutex);
	memcpy(shared->switch_lines[shared->switch_nlines % BG_SWITCH_LINES],
		   line, sizeof(line));
	shared->switch_nlines++;
	SpinLockRelease(&shared->mutex);
	ConditionVariableBroadcast(&shared->changed);
}

/*
 * What was told as the i-th thing; false if there is no such thing yet.
 */
bool
switch_progress_get(StreamShared *shared, int i, char *text, int size)
{
	bool		found;

	SpinLockAcquire(&shared->mutex);
	found = i < shared->switch_nlines;
	if (found)
		memcpy(text, shared->switch_lines[i % BG_SWITCH_LINES],
			   Min(size, BG_SWITCH_LINE));
	SpinLockRelease(&shared->mutex);
	return found;
}
