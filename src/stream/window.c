/*-------------------------------------------------------------------------
 *
 * window.c
 *		Both sides take writes: what a stream does otherwise then.
 *
 * Each transaction that is sent carries how far its side had applied the stream
 * of the other direction when it committed: seen.  In this side's WAL a
 * transaction of that stream has its position there in its commit record, and
 * commits come by in order; so seen is known for each transaction exactly.  For
 * those that a restart finds applied already, it is noted on the target with
 * the progress (applied_stream.seen).
 *
 * A batch goes out as always, and behind its rows a question for each table: has
 * the target changed one of these keys beyond what we had seen?  If so, the
 * batch is applied again row by row, and each row is
 *
 *	1.	locked, if it is there;
 *	2.	weighed: has the target changed it, beyond what we had seen, and who wins
 *		by the policy;
 *	3.	written, or left out, and the conflict is recorded.
 *
 * If somebody has made the row in between, the whole transaction is done again.
 *
 * A row with another key may be in the way, by a unique index.  If the target
 * has made it and we had not seen it, one of the two loses, by the same policy.
 * What comes is left out, if it loses: our side removes it when the other one
 * arrives there.  If theirs loses, it is removed by a transaction of the target's
 * own, which then comes to us like others: we may have got the row by then, if
 * ours has ceased to be in the way.  And if what comes is left out, the other
 * row may cease to be in the way as well, and never meet it on our side: so the
 * target owes us the row as it has it, or has it not, and sends it by a
 * transaction of its own (window_owed), when what was left out is committed.
 *
 * Both sides come to the same rows, because both decide with the same function
 * of two changes.  That holds if a change of one side never has a lower rank
 * than the changes of the same row before it: its commit time, or a column that
 * only grows.
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
#include "stream/parameters.h"
#include "stream/watch.h"
#include "stream/window.h"
#include "utils/builtins.h"
#include "utils/array.h"
#include "utils/date.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define NEWER_COLUMN "newer_column:"
#define AGAIN_TIMES	10			/* a transaction that somebody gets in the way of */

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
	SpinLockAcquire(&shared->mutex);
	if (shared->watch_wanted != deployment->mapping_version)
		shared->window_since = 0;	/* until the next one watches */
	shared->watch_wanted = deployment->mapping_version;
	SpinLockRelease(&shared->mutex);
	watch_start(shared);
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
 * Have the target send what it owes us: rows that were left out there, as they
 * are.
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

	if (owed->ntuples == 0)
		return;
	(void) peer_command(peer, "BEGIN");
	(void) peer_query(peer, "SELECT bluegreen.write_as_own()", 0, NULL);
	for (int i = 0; i < owed->ntuples; i++)
	{
		char	  **values = owed->values[i];
		MappingRow *row = find_mapping(worker, atoi(values[0]));

		if (row == NULL ||
			peer_command(peer, touch_statement(row, values[1])) > 0 ||
			strcmp(values[2], "{}") == 0)	/* it was deleted, and is gone */
			continue;
		(void) peer_query(peer,
						  psprintf("SELECT bluegreen.forget_key(%s, %s, %s)",
								   quote_literal_cstr(mapping_target_name(row)),
								   quote_literal_cstr(values[2]),
								   quote_literal_cstr(values[3])),
						  0, NULL);
	}
	(void) peer_command(peer,
						psprintf("DELETE FROM bluegreen.window_owed WHERE stream = %s",
								 quote_literal_cstr(worker->origin)));
	(void) peer_command(peer, "COMMIT");
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
	watch_start(worker->shared);
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

/* ---- batches ---- */

/*
 * Queue the question whether the target has changed one of these rows.
 */
void
window_queue_check(Apply *apply, const Slice *slice)
{
	TargetWriter *writer = slice->writer;
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	Parameters	p = parameters_create(writer->transform->ncolumns + 1);
	StringInfoData seen;

	initStringInfo(&seen);
	for (int r = 0; r < slice->nrows; r++)
		appendStringInfo(&seen, "%c%X/%X", r == 0 ? '{' : ',',
						 LSN_FORMAT_ARGS(slice->rows[r]->seen));
	appendStringInfoChar(&seen, '}');
	parameters_add_columns(&p, writer->transform, slice->rows, slice->nrows,
						   COLUMNS_KEY);
	parameters_add_text(&p, seen.data);
	peer_send(apply->peer, writer->window->check, p.values, p.lengths,
			  p.formats);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
}

/* ---- row by row ---- */

/* Answers of weigh_change(). */
#define VERDICT(weight)		((weight) & 3)
#define VERDICT_NONE	0
#define VERDICT_THEIRS	1		/* as the target sees it: ours, here */
#define VERDICT_OURS	2
#define VERDICT_ERROR	3
#define IS_DELETED(weight)	(((weight) & 4) != 0)

/* A row that is applied by itself. */
typedef struct WindowRow
{
	Apply	   *apply;
	TargetWriter *writer;
	BatchRow   *row;
	const RowChange *change;
	const CarefulContext *context;
	int64		rank;
	bool		is_delete;
	bool		there;			/* and locked */
} WindowRow;

/*
 * What decides: the commit time, or the column's value.
 */
static int64
rank_of(const WindowRow *w)
{
	Transform  *transform = w->change->transform;
	int			decider = w->writer->window->decider;

	if (decider == 0)
		return w->context->position.commit_time;
	if (w->change->gives_way)
		return PG_INT64_MIN;
	return window_value_rank(TupleDescAttr(transform->source_desc,
									 decider - 1)->atttypid,
					   transform->slot->tts_values[decider - 1],
					   transform->slot->tts_isnull[decider - 1]);
}

/*
 * Ask something about the row; returns a number of rows.
 */
static int64
ask(WindowRow *w, PeerStatement *statement, ColumnSet set, bool weigh)
{
	Apply	   *apply = w->apply;
	MemoryContext old;
	Parameters	p;

	apply_start_group(apply, &w->context->position);
	old = MemoryContextSwitchTo(apply->param_context);
	p = parameters_create(w->writer->transform->ncolumns + 2);
	parameters_add_columns(&p, w->writer->transform, &w->row, 1, set);
	if (weigh)
	{
		parameters_add_text(&p, psprintf("%X/%X",
										 LSN_FORMAT_ARGS(w->context->position.seen)));
		parameters_add_text(&p, psprintf(INT64_FORMAT, w->rank));
	}
	peer_send(apply->peer, statement, p.values, p.lengths, p.formats);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
	apply_expect(apply, -1);
	return apply_finish_carefully(apply, w->change);
}

static int64
run(WindowRow *w, StatementKind kind)
{
	return apply_run_carefully(w->apply, kind, w->row, w->change, w->context);
}

static const char *
kind_of(const WindowRow *w, int weight)
{
	bool		ours_deleted = IS_DELETED(weight);

	if (w->is_delete)
		return ours_deleted ? "delete_delete" : "delete_update";
	if (w->change->kind == CHANGE_INSERT)
		return ours_deleted ? "insert_delete" : "insert_insert";
	return ours_deleted ? "update_delete" : "update_update";
}

static const char *
other_side(const char *side)
{
	return strcmp(side, "blue") == 0 ? "green" : "blue";
}

/* A datum as text. */
static Datum
text_of(Oid type, Datum value)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	return CStringGetTextDatum(OidOutputFunctionCall(function, value));
}

static char *
text_array(Datum *values, int n)
{
	ArrayType  *array = construct_array(values, n, TEXTOID, -1, false,
										TYPALIGN_INT);

	return OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(array));
}

/*
 * The target owes us this row: what comes was left out for another one.  Or what
 * comes deletes it, and found nothing that it could have locked: somebody may
 * make it before our transaction is committed.  That one has not seen us, but
 * stands behind us here; so the row is sent, if there is one then, by a change
 * that has.
 */
static void
owe(WindowRow *w)
{
	Transform  *transform = w->change->transform;
	TupleTableSlot *slot = transform->slot;
	Datum	   *key = palloc_array(Datum, transform->nkeys);
	Datum	   *names = palloc_array(Datum, transform->source_desc->natts);
	Datum	   *values = palloc_array(Datum, transform->source_desc->natts);
	int			attnum = -1;
	int			n = 0;

	for (int k = 0; k < transform->nkeys; k++)
		key[k] = text_of(transform->columns[transform->keys[k]].type,
						 w->change->values[transform->keys[k]]);
	while (!w->is_delete &&
		   (attnum = bms_next_member(transform->chunk_key, attnum)) >= 0)
	{
		Form_pg_attribute att = TupleDescAttr(transform->source_desc,
											  attnum - 1);

		names[n] = CStringGetTextDatum(NameStr(att->attname));
		values[n++] = text_of(att->atttypid, slot->tts_values[attnum - 1]);
	}
	apply_start_group(w->apply, &w->context->position);
	peer_send_sql(w->apply->peer,
				  psprintf("INSERT INTO bluegreen.window_owed VALUES (%s, %d, %s, %s, %s) ON CONFLICT DO NOTHING",
						   quote_literal_cstr(w->apply->origin),
						   transform->row->id,
						   quote_literal_cstr(text_array(key, transform->nkeys)),
						   quote_literal_cstr(text_array(names, n)),
						   quote_literal_cstr(text_array(values, n))));
	apply_expect(w->apply, -1);
	(void) apply_finish_carefully(w->apply, w->change);
	w->apply->owes = true;
}

/*
 * The words of a conflict: its kind and what was decided.
 */
static void
describe_decision(const WindowRow *w, const char *kind, int weight,
				  const char *done, const char *words[2])
{
	const WindowWriter *window = w->writer->window;
	bool		theirs = VERDICT(weight) == VERDICT_THEIRS;

	words[0] = kind;
	words[1] = psprintf("%s wins (%s): %s",
						theirs ? window->side : other_side(window->side),
						window->policy, done);
}

/*
 * Record a conflict; note keeps the row that it is with, if that is not the one
 * with our key.
 */
static void
record(WindowRow *w, const char *const words[2], PeerStatement *note)
{
	CarefulContext context = *w->context;

	context.note = note;
	apply_record_conflict(w->apply, w->row, w->change, &context, words);
}

static void
refuse_conflict(WindowRow *w, const char *kind)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("conflict %s on table \"%s\":%s", kind,
					mapping_target_name(w->change->transform->row),
					apply_blame_row(w->apply, w->change)),
			 errdetail("Both sides have changed the row, and neither had the other's change. The mapping's policy is \"error\"."),
			 errhint("Leave the transaction out with bluegreen.skip(), on both sides if both have stopped; then change the row on one side to what it is to be.")));
}

static void
require_whole_row(WindowRow *w)
{
	for (int i = 0; i < w->writer->transform->ncolumns; i++)
		if (w->change->missing[i])
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("a change of table \"%s\" does not carry the whole row:%s",
							mapping_target_name(w->change->transform->row),
							apply_blame_row(w->apply, w->change)),
					 errhint("ALTER TABLE on the source: REPLICA IDENTITY FULL.")));
}

/*
 * Roll back, and have the worker's successor apply the transaction again.
 */
static pg_noreturn void
apply_again(WindowRow *w, const char *why)
{
	StreamShared *shared = w->apply->shared;

	int			times;

	SpinLockAcquire(&shared->mutex);
	times = shared->again_lsn == w->context->position.end_lsn ?
		shared->again_times + 1 : 1;
	shared->again_lsn = w->context->position.end_lsn;
	shared->again_times = times;
	shared->careful_until = Max(shared->careful_until,
								w->context->position.end_lsn);
	shared->reload = times <= AGAIN_TIMES;
	SpinLockRelease(&shared->mutex);
	if (times > AGAIN_TIMES)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("table \"%s\" does not take a row:%s",
						mapping_target_name(w->change->transform->row),
						apply_blame_row(w->apply, w->change)),
				 errdetail("%s, %d times.", why, times),
				 errhint("Look for a trigger that leaves the row out.")));
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("%s; the transaction is applied again", why)));
}

/*
 * The target's own row is in the way, and loses.  It is removed by a transaction
 * of the target's own; what was done of ours is rolled back, and the worker's
 * successor does it again.
 */
static pg_noreturn void
remove_in_way(WindowRow *w, const WindowWay *way, int weight)
{
	Apply	   *apply = w->apply;
	const char *words[2];

	describe_decision(w, "unique", weight,
					  "removed the row that was in the way", words);
	peer_send_sql(apply->peer, "ROLLBACK");
	peer_send_sql(apply->peer, "BEGIN");
	peer_send_sql(apply->peer, "SELECT bluegreen.write_as_own()");
	record(w, words, way->note);
	if (ask(w, way->remove, COLUMNS_CARRIED, false) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("a row of table \"%s\" that is in the way could not be removed:%s",
						mapping_target_name(w->change->transform->row),
						apply_blame_row(apply, w->change)),
				 errhint("Look for a trigger that keeps it.")));
	peer_send_sql(apply->peer, "COMMIT");
	apply_expect(apply, -1);
	(void) apply_finish_carefully(apply, w->change);
	SpinLockAcquire(&apply->shared->mutex);
	apply->shared->again_times = 0;		/* it got further */
	SpinLockRelease(&apply->shared->mutex);
	apply_again(w, "a row that was in the way was removed");
}

/*
 * Is another row in the way of what comes?  True if that loses and is left out.
 */
static bool
loses_to_other_row(WindowRow *w)
{
	WindowWriter *window = w->writer->window;

	for (int i = 0; i < window->nways; i++)
	{
		WindowWay  *way = &window->ways[i];
		const char *words[2];
		int			weight;

		if (ask(w, way->find, COLUMNS_CARRIED, false) == 0)
			continue;
		weight = (int) ask(w, way->weigh, COLUMNS_CARRIED, true);
		switch (VERDICT(weight))
		{
			case VERDICT_NONE:
				break;			/* it is in the way of the source as well */
			case VERDICT_THEIRS:
				remove_in_way(w, way, weight);
			case VERDICT_OURS:
				describe_decision(w, "unique", weight,
								  "left out what came", words);
				record(w, words, way->note);
				owe(w);
				return true;
			case VERDICT_ERROR:
				refuse_conflict(w, "unique");
		}
	}
	return false;
}

/*
 * Have the row as it came.
 */
static void
write_row(WindowRow *w)
{
	if (w->there)
		(void) run(w, STATEMENT_UPSERT);
	else if (run(w, STATEMENT_INSERT_ABSENT) == 0)
		apply_again(w, "somebody has made a row that was to be inserted");
}

/*
 * The row is not changed on both sides.  What comes counts.
 */
static void
apply_alone(WindowRow *w)
{
	static const char *const exists[] = {"insert_exists", "updated the row that is there"};
	static const char *const missing[] = {"update_missing", "inserted the row"};
	static const char *const gone[] = {"delete_missing", "nothing to delete"};
	ChangeKind	kind = w->change->kind;

	if (w->is_delete)
	{
		if (w->there)
			(void) run(w, STATEMENT_DELETE);
		else if (kind == CHANGE_DELETE)
		{
			record(w, gone, NULL);
			owe(w);
		}
		return;
	}
	if (w->there && kind == CHANGE_UPDATE)
	{
		(void) run(w, STATEMENT_UPDATE);
		return;
	}
	require_whole_row(w);
	if (w->there && kind == CHANGE_INSERT)
		record(w, exists, NULL);
	else if (!w->there && kind == CHANGE_UPDATE)
		record(w, missing, NULL);
	write_row(w);
}

/*
 * Both sides have changed it.
 */
static void
apply_concurrent(WindowRow *w, int weight)
{
	const char *kind = kind_of(w, weight);
	const char *words[2];
	bool		theirs = VERDICT(weight) == VERDICT_THEIRS;

	/* what was owed is not any more */
	if (w->change->gives_way)
		return;
	if (VERDICT(weight) == VERDICT_ERROR)
		refuse_conflict(w, kind);
	describe_decision(w, kind, weight,
					  !theirs ? "left out what came" :
					  w->is_delete ? "deleted the row" : "wrote the row that came",
					  words);
	record(w, words, NULL);
	if (!theirs)
		return;
	if (!w->is_delete)
		write_row(w);
	else if (w->there)
		(void) run(w, STATEMENT_DELETE);
	else
		owe(w);
}

static pg_noreturn void
refuse_move(Apply *apply, const RowChange *change)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a key of table \"%s\" was changed in a window:%s",
					mapping_target_name(change->transform->row),
					apply_blame_row(apply, change)),
			 errdetail("The target has columns that the mapping does not write.")));
}

/*
 * Error if a change must not go with others, in a batch: then the worker's
 * successor applies its transaction row by row.
 */
void
window_check_change(Apply *apply, const RowChange *change)
{
	Transform  *transform = change->transform;

	if (apply_writer(apply, transform)->window == NULL)
		return;
	if (change->kind == CHANGE_MOVE)
		refuse_move(apply, change);
	if (change->kind == CHANGE_UPDATE &&
		transform->nkeys == transform->ncolumns)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("an update of table \"%s\" has nothing to set, so a batch would not lock its row",
						mapping_target_name(transform->row))));
}

/*
 * Apply one change in the open transaction and wait for it.  Errors: a conflict
 * that nobody wins; those of the target, with the row's key.
 */
void
window_row(Apply *apply, BatchRow *row, const RowChange *change,
		   const CarefulContext *context)
{
	WindowRow	w = {
		.apply = apply,
		.writer = apply_writer(apply, change->transform),
		.row = row,
		.change = change,
		.context = context,
		.is_delete = change->kind == CHANGE_DELETE ||
		change->kind == CHANGE_DELETE_IF_THERE
	};
	int			weight;

	if (change->kind == CHANGE_MOVE)
		refuse_move(apply, change);
	w.rank = rank_of(&w);
	w.there = run(&w, STATEMENT_FIND) > 0;
	weight = (int) ask(&w, w.writer->window->weigh, COLUMNS_KEY, true);
	if (!w.is_delete && (VERDICT(weight) == VERDICT_NONE ||
						 VERDICT(weight) == VERDICT_THEIRS))
	{
		if (VERDICT(weight) == VERDICT_THEIRS || w.writer->window->nways > 0)
			require_whole_row(&w);
		if (loses_to_other_row(&w))
			return;
	}
	if (VERDICT(weight) == VERDICT_NONE)
		apply_alone(&w);
	else
		apply_concurrent(&w, weight);
}
