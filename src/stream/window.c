/*-------------------------------------------------------------------------
 *
 * window.c
 *		Both sides take writes: what a stream's worker does otherwise then.
 *
 * Each transaction that is sent carries how far its side had applied the stream
 * of the other direction when it committed: seen.  In this side's WAL a
 * transaction of that stream has its position there in its commit record, and
 * commits come by in order; so seen is known for each transaction exactly.  For
 * those that a restart finds applied already, it is noted on the target with
 * the progress (applied_stream.seen).
 *
 * What is done with the rows is in window_row.c.  Where one of them was left out
 * or removed for another row of a unique constraint, the target owes us the row
 * as it has it, or has it not (window_owed), and sends it by a transaction of its
 * own, as soon as that is committed.
 *
 * A batch in which there is a conflict ends the worker, and its successor goes
 * row by row.  Where there is one there are more, so it goes on like that for
 * about as long as it takes to begin anew (window_is_careful()): a run of conflicts
 * costs one restart, and one by itself costs two of them at most.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/xact.h"
#include "access/xlogreader.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "core/event.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "replication/slot.h"
#include "stream/watch.h"
#include "stream/window.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define NEWER_COLUMN "newer_column:"
#define CAREFUL_MS	200			/* after a conflict; about what a restart costs */

/* ---- the column that decides ---- */

/*
 * The number that a value of the column that decides stands for.
 */
int64
window_value_rank(Oid type, Datum value, bool isnull)
{
	if (isnull)
		return PG_INT64_MIN;
	switch (type)
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
			return DatumGetInt32(value);
		case INT8OID:
			return DatumGetInt64(value);
		case DATEOID:
			return DatumGetDateADT(value);
		case TIMESTAMPOID:
			return DatumGetTimestamp(value);
		case TIMESTAMPTZOID:
			return DatumGetTimestampTz(value);
		default:
			elog(ERROR, "type %u has no rank", type);
	}
	return 0;					/* keep compiler quiet */
}

static bool
has_rank(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID ||
		type == DATEOID || type == TIMESTAMPOID || type == TIMESTAMPTZOID;
}

/*
 * Attribute of the source that decides in a mapping, or 0: none does, or not a
 * column of the source as it is, of a type that can decide.
 */
int
window_find_decider(const Transform *transform)
{
	const char *name = transform->row->conflict;

	if (strncmp(name, NEWER_COLUMN, strlen(NEWER_COLUMN)) != 0)
		return 0;
	name += strlen(NEWER_COLUMN);
	for (int i = 0; i < transform->ncolumns; i++)
	{
		TransformColumn *column = &transform->columns[i];

		if (strcmp(column->def->name, name) == 0 &&
			column->source_attno > 0 &&
			has_rank(TupleDescAttr(transform->source_desc,
								   column->source_attno - 1)->atttypid))
			return column->source_attno;
	}
	return 0;
}

/*
 * The same; error if the one that is named cannot decide.
 */
int
window_decider(const Transform *transform)
{
	const char *policy = transform->row->conflict;
	int			attnum = window_find_decider(transform);

	if (attnum == 0 && strncmp(policy, NEWER_COLUMN, strlen(NEWER_COLUMN)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\" cannot decide conflicts of \"%s\"",
						policy + strlen(NEWER_COLUMN),
						mapping_target_name(transform->row)),
				 errdetail("It must be a column of the source as it is, a whole number, date or timestamp.")));
	return attnum;
}

/* ---- the worker ---- */

/*
 * Error unless conflicts of a mapping's rows can be decided.
 */
static void
check_mapping(const Transform *transform)
{
	WindowProblem problem = window_problem(transform);

	if (problem.why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("mapping of \"%s\" to \"%s\" cannot be in a window: %s",
						get_rel_name(transform->row->source),
						mapping_target_name(transform->row), problem.why),
				 problem.hint != NULL ? errhint("%s", problem.hint) :
				 errhint("Map the table in another way, or with conflict => 'none' if its rows merge by themselves.")));
}

static void
copy_slot(const char *slot, const char *copy)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_name(&args, slot);
	catalog_arg_name(&args, copy);
	catalog_run("SELECT pg_catalog.pg_copy_logical_replication_slot($1, $2)",
				&args, SPI_OK_SELECT);
	catalog_end(&access);
}

/*
 * After a window: end who watches, and drop his slot.  In a transaction that
 * holds no lock of a source, for which he may be waiting.
 */
void
window_end(StreamShared *shared)
{
	Deployment *deployment = deployment_load(shared->deployment);
	char		slot_name[NAMEDATALEN];

	watch_slot_name(slot_name, shared->slot_name);
	if (deployment != NULL && deployment->window == WINDOW_CLOSED &&
		SearchNamedReplicationSlot(slot_name, true) != NULL)
		window_forget(shared->slot_name);
}

/* Have somebody watch, by the mappings of now. */
static void
want_watcher(StreamShared *shared, const Deployment *deployment)
{
	SpinLockAcquire(&shared->mutex);
	if (shared->watch_wanted != deployment->mapping_version)
		shared->window_since = 0;	/* until the next one watches */
	shared->watch_wanted = deployment->mapping_version;
	SpinLockRelease(&shared->mutex);
	(void) watch_start(shared);
}

/*
 * The stream is stopped, but what comes here has to be weighed: after a restart
 * of the server nobody else would have this side's own changes watched.
 */
void
window_watch_stopped(StreamShared *shared, const Deployment *deployment)
{
	char		slot_name[NAMEDATALEN];

	watch_slot_name(slot_name, shared->slot_name);
	if (deployment->window != WINDOW_CLOSED &&
		SearchNamedReplicationSlot(slot_name, true) != NULL)
		want_watcher(shared, deployment);
}

/*
 * Begin to watch this side's own changes, as the deployment's row says.
 * In a transaction that has written nothing, without a slot.  Errors: a mapping
 * that cannot be in a window.
 */
void
window_prepare(StreamWorker *worker)
{
	StreamShared *shared = worker->shared;
	Deployment *deployment = worker->deployment;
	char		slot_name[NAMEDATALEN];
	ListCell   *lc;

	worker->window = deployment->window != WINDOW_CLOSED;
	watch_slot_name(slot_name, shared->slot_name);
	if (!worker->window)
	{
		SpinLockAcquire(&shared->mutex);
		shared->window_since = 0;
		SpinLockRelease(&shared->mutex);
		return;
	}
	foreach(lc, worker->transforms)
	{
		check_mapping(lfirst(lc));
	}
	if (deployment->opposite == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" has no way back",
						deployment->name)));
	worker->opposite = replorigin_by_name(deployment->opposite, false);
	if (SearchNamedReplicationSlot(slot_name, true) == NULL)
	{
		if (deployment->window != WINDOW_OPENING)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("replication slot \"%s\" of the window is gone",
							slot_name),
					 errdetail("This side's own changes are not known any more, so conflicts could be missed."),
					 errhint("End the window with bluegreen.force_active() and compare the sides.")));
		copy_slot(shared->slot_name, slot_name);
	}
	want_watcher(shared, deployment);
}

static XLogRecPtr
parse_lsn(const char *text)
{
	return text == NULL ? InvalidXLogRecPtr :
		DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(text)));
}

static MappingRow *
find_mapping(const StreamWorker *worker, int id)
{
	ListCell   *lc;

	foreach(lc, worker->rows)
	{
		MappingRow *row = lfirst(lc);

		if (row->id == id)
			return row;
	}
	return NULL;
}

/*
 * UPDATE that changes nothing of the row with that key.
 */
static char *
touch_statement(const MappingRow *row, const char *key)
{
	StringInfoData set;
	StringInfoData where;
	int			n = 0;

	initStringInfo(&set);
	initStringInfo(&where);
	for (int i = 0; i < row->ncolumns; i++)
	{
		const char *name = quote_identifier(row->columns[i].name);

		if (!row->columns[i].is_key)
			continue;
		if (n == 0)
			appendStringInfo(&set, "%s = t.%s", name, name);
		appendStringInfo(&where, "%st.%s = (%s::pg_catalog.text[])[%d]::%s",
						 n > 0 ? " AND " : "", name, quote_literal_cstr(key),
						 n + 1, row->columns[i].type);
		n++;
	}
	return psprintf("UPDATE %s AS t SET %s WHERE %s",
					mapping_target_name(row), set.data, where.data);
}

/*
 * Have the target send a row that it owes us as it has it.  False if it does not
 * have the row.
 */
static bool
send_row(StreamWorker *worker, char **owed)
{
	MappingRow *row = find_mapping(worker, atoi(owed[0]));

	return row == NULL ||
		peer_command(worker->peer, touch_statement(row, owed[1])) > 0;
}

/*
 * Have it send that it does not have it.  A row that was deleted by what came
 * from here is gone here, too.  True if something was sent.
 */
static bool
send_gone(StreamWorker *worker, char **owed)
{
	MappingRow *row = find_mapping(worker, atoi(owed[0]));

	if (strcmp(owed[2], "{}") == 0)
		return false;
	(void) peer_query(worker->peer,
					  psprintf("SELECT bluegreen.forget_key(%s, %s, %s)",
							   quote_literal_cstr(mapping_target_name(row)),
							   quote_literal_cstr(owed[2]),
							   quote_literal_cstr(owed[3])),
					  0, NULL);
	return true;
}

static void
begin_own(Peer *peer)
{
	(void) peer_command(peer, "BEGIN");
	(void) peer_query(peer, "SELECT bluegreen.write_as_own()", 0, NULL);
}

/*
 * Have the target send what it owes us: rows that were left out there, or made
 * place, as they are.  Somebody may make a row, and commit, between our look and
 * the commit that says that it is gone; so we look again after that.
 */
static void
collect_owed(StreamWorker *worker)
{
	Peer	   *peer = worker->peer;
	const char *args[] = {worker->origin};
	PeerResult *owed = peer_query(peer,
								  "SELECT mapping, key, source_columns, source_key "
								  "FROM bluegreen.window_owed WHERE stream = $1",
								  1, args);
	bool	   *gone = palloc0_array(bool, owed->ntuples + 1);
	bool		any_gone = false;

	if (owed->ntuples == 0)
		return;
	begin_own(peer);
	for (int i = 0; i < owed->ntuples; i++)
	{
		gone[i] = !send_row(worker, owed->values[i]) &&
			send_gone(worker, owed->values[i]);
		any_gone |= gone[i];
	}
	if (any_gone)
	{
		(void) peer_command(peer, "COMMIT");
		begin_own(peer);
	}
	for (int i = 0; i < owed->ntuples; i++)
		if (gone[i])
			(void) send_row(worker, owed->values[i]);
	(void) peer_command(peer,
						psprintf("DELETE FROM bluegreen.window_owed WHERE stream = %s",
								 quote_literal_cstr(worker->origin)));
	(void) peer_command(peer, "COMMIT");
}

/*
 * The same between two transactions, while nothing is on its way.
 */
void
window_collect(StreamWorker *worker)
{
	if (!worker->apply->owes)
		return;
	peer_pipeline_exit(worker->peer);
	collect_owed(worker);
	peer_pipeline_enter(worker->peer);
	worker->apply->owes = false;
}

/*
 * Is the transaction that is committed at that position to go row by row?  In a
 * window also if there was a conflict just now, or a batch that has failed,
 * whatever for.
 */
bool
window_is_careful(StreamWorker *worker, XLogRecPtr commit_lsn)
{
	TimestampTz *at = &worker->apply->conflict_at;

	if (commit_lsn < worker->shared->careful_until)
	{
		if (worker->window)
			*at = GetCurrentTimestamp();
		return true;
	}
	return *at != 0 &&
		!TimestampDifferenceExceeds(*at, GetCurrentTimestamp(), CAREFUL_MS);
}

/*
 * The first worker of a window begins with what this side has seen by now: one
 * side takes no writes yet, so what is on its way cannot conflict.  That is
 * said only once.  The side that takes no writes may do so while the other one
 * still calls the window one that is being opened, and what we have seen then
 * was not seen by what is on its way.  What a window before this one was owed is
 * of no use any more.
 */
static void
begin_seen(StreamWorker *worker)
{
	const char *args[3] = {worker->origin};

	worker->seen = replorigin_get_progress(worker->opposite, true);
	args[1] = psprintf("%X/%X", LSN_FORMAT_ARGS(worker->seen));
	args[2] = psprintf(INT64_FORMAT, worker->deployment->mapping_version);
	(void) peer_query(worker->peer,
					  "DELETE FROM bluegreen.window_owed WHERE stream = $1",
					  1, args);
	(void) peer_query(worker->peer,
					  "UPDATE bluegreen.applied_stream "
					  "SET seen = $2::pg_catalog.pg_lsn, "
					  "seen_version = $3::pg_catalog.int8 WHERE name = $1",
					  3, args);
}

/*
 * What this side had seen at the target's progress.
 */
void
window_load(StreamWorker *worker)
{
	const char *args[2] = {worker->origin, NULL};
	PeerResult *result;

	if (!worker->window)
		return;
	args[1] = psprintf(INT64_FORMAT, worker->deployment->mapping_version);
	result = peer_query(worker->peer,
						"SELECT seen, seen_version IS NOT DISTINCT FROM $2::pg_catalog.int8 "
						"FROM bluegreen.applied_stream "
						"WHERE name = $1", 2, args);
	if (result->ntuples > 0)
		worker->seen = parse_lsn(result->values[0][0]);
	if (worker->deployment->window == WINDOW_OPENING &&
		result->ntuples > 0 && strcmp(result->values[0][1], "f") == 0)
		begin_seen(worker);
	collect_owed(worker);
	args[0] = psprintf("%X/%X", LSN_FORMAT_ARGS(worker->seen));
	(void) peer_query(worker->peer,
					  "SELECT bluegreen.note_seen($1::pg_catalog.pg_lsn)",
					  1, args);
}

/*
 * The record at hand may be the commit of what came from there.
 */
void
window_see(StreamWorker *worker)
{
	XLogReaderState *reader = worker->decoding->reader;
	uint8		info = XLogRecGetInfo(reader);
	xl_xact_parsed_commit parsed;

	if (XLogRecGetRmid(reader) != RM_XACT_ID ||
		(info & XLOG_XACT_OPMASK) != XLOG_XACT_COMMIT ||
		XLogRecGetOrigin(reader) != worker->opposite ||
		reader->ReadRecPtr < worker->deployment->opposite_lsn)
		return;
	ParseCommitRecord(info, (xl_xact_commit *) XLogRecGetData(reader), &parsed);
	if (parsed.xinfo & XACT_XINFO_HAS_ORIGIN)
		worker->seen = Max(worker->seen, parsed.origin_lsn);
}

/*
 * When idle: tell the target what we have seen, if that has moved; and let
 * somebody watch.
 */
void
window_tell(StreamWorker *worker)
{
	if (!worker->window)
		return;
	(void) watch_start(worker->shared);
	if (worker->seen <= worker->told_seen || sink_has_pending(worker) ||
		!apply_is_idle(worker->apply))
		return;
	worker->told_seen = worker->seen;
	apply_tell_seen(worker->apply, worker->seen);
}

/*
 * End who watches for a stream, and drop his slot.
 */
void
window_forget(const char *slot_name)
{
	StreamShared *shared = stream_shared_find(slot_name);
	char		name[NAMEDATALEN];

	watch_slot_name(name, slot_name);
	if (shared != NULL)
		watch_stop(shared);
	if (SearchNamedReplicationSlot(name, true) != NULL)
		ReplicationSlotDrop(name, false);
}
