/*-------------------------------------------------------------------------
 *
 * apply.c
 *		Write batches to the target, exactly once.
 *
 * A target transaction carries one or more whole source transactions and, in
 * the same commit, the position up to which the source has been applied: the
 * replication origin's progress, set by bluegreen.commit_position() in
 * every transaction that writes.  Whatever dies, the next worker reads that
 * progress and decoding skips whole transactions up to it.
 *
 * Rows go out in a pipeline and the worker decodes on while the target works;
 * at most one group of statements is in flight.  COMMIT is sent when the rows'
 * answers are in and every UPDATE and DELETE found the rows it was for:
 *
 *		IDLE -> ROWS -> (OPEN -> ROWS ->) COMMIT -> IDLE
 *
 * A batch that fails, or whose counts are wrong, is never mended here.  The
 * worker notes the position up to which it must go one row at a time
 * (StreamShared.careful_until), ends, and its successor decodes again from
 * the target's progress; that careful path (apply_row_carefully) finds the
 * one row that is at fault, resolves what is a conflict, and stops with the
 * row's key at what is an error.
 *
 * The source's word counts.  A row to insert that is there becomes an update,
 * a row to update that is not there is inserted, a row to delete that is not
 * there is gone already; each is recorded in bluegreen.conflict_log in the
 * same transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/event.h"
#include "core/settings.h"
#include "miscadmin.h"
#include "stream/apply.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

/*
 * The target keeps conflicts as long as the source keeps events.  Looked after
 * whenever a stream's worker starts, since a target may have no worker of its
 * own that would do it.
 */
static void
prune_conflicts(Peer *peer)
{
	if (bg_event_retention > 0)
		peer_command(peer,
					 psprintf("DELETE FROM bluegreen.conflict_log WHERE at < "
							  "pg_catalog.now() - pg_catalog.make_interval(mins => %d)",
							  bg_event_retention));
}

/*
 * Make the applying end of a stream over a connected peer whose session is
 * set up for the origin.  Asks the peer about each target table.  Everything
 * lives in CurrentMemoryContext.
 */
Apply *
apply_create(Peer *peer, StreamShared *shared, const char *origin,
			 List *transforms)
{
	Apply	   *apply = palloc0_object(Apply);
	ListCell   *lc;

	apply->peer = peer;
	apply->shared = shared;
	apply->origin = pstrdup(origin);
	apply->param_context = AllocSetContextCreate(CurrentMemoryContext,
												 "pg_bluegreen parameters",
												 ALLOCSET_DEFAULT_SIZES);
	apply->writers = palloc0_array(TargetWriter *,
								   Max(list_length(transforms), 1));
	foreach(lc, transforms)
	{
		apply->writers[apply->nwriters++] = target_writer_create(peer,
																 lfirst(lc));
	}
	apply->max_expected = 64;
	apply->expected = palloc0_array(Expectation, apply->max_expected);
	prune_conflicts(peer);
	apply->commit_position = peer_statement_create(
												   "SELECT bluegreen.commit_position("
												   "$1::pg_catalog.pg_lsn, $2::pg_catalog.timestamptz), "
												   "pg_catalog.pg_current_xact_id()", 2, NULL);
	peer_pipeline_enter(peer);
	return apply;
}

static void
queue_sql(Apply *apply, const char *sql)
{
	peer_send_sql(apply->peer, sql);
	apply_expect(apply, NULL, -1);
}

/*
 * The position goes with every commit; a transaction without rows takes a
 * transaction id, without which its position would not be recorded.
 */
static void
queue_commit(Apply *apply)
{
	char		lsn[32];
	const char *values[2];
	int			lengths[2] = {0};
	int			formats[2] = {0};

	snprintf(lsn, sizeof(lsn), "%X/%X",
			 LSN_FORMAT_ARGS(apply->position.end_lsn));
	values[0] = lsn;
	values[1] = timestamptz_to_str(apply->position.commit_time);
	peer_send(apply->peer, apply->commit_position, values, lengths, formats);
	apply_expect(apply, NULL, -1);
	queue_sql(apply, "COMMIT");
	peer_sync(apply->peer);
	apply->state = APPLY_COMMIT;
}

static void
start_group(Apply *apply, const ApplyPosition *position)
{
	apply_wait(apply);
	apply->position = *position;
	apply->nexpected = 0;
	if (apply->state == APPLY_IDLE)
		queue_sql(apply, "BEGIN");
}

/*
 * Must the answers be looked at before COMMIT may be sent?
 */
static bool
is_counted(const Apply *apply)
{
	for (int i = 0; i < apply->nexpected; i++)
		if (apply->expected[i].rows >= 0)
			return true;
	return false;
}

static void
send_group(Apply *apply)
{
	peer_sync(apply->peer);
	apply->state = APPLY_ROWS;
}

/*
 * Send the rows of a batch, which reaches up to position.  With commit, the
 * transaction commits as soon as the rows are confirmed (a statement that
 * fails fails the COMMIT behind it); without, it stays open for more.  Waits for
 * what is in flight, not for the answer; raises what had gone wrong there.
 */
void
apply_send(Apply *apply, Batch *batch, const ApplyPosition *position,
		   bool commit)
{
	start_group(apply, position);
	apply_queue_rows(apply, batch);
	apply->commit_wanted = commit;
	if (commit && !is_counted(apply))
		queue_commit(apply);
	else if (apply->nexpected > 0)
		send_group(apply);		/* maybe only BEGIN */
	apply->shared->batches += commit ? 1 : 0;
}

/*
 * Note that the transactions up to the failed position need the careful path,
 * and end.  Transient errors are retried as they are.
 */
static void
batch_failed(Apply *apply, const PeerError *error)
{
	if (error != NULL && peer_sqlstate_is_transient(error->sqlstate))
		peer_rethrow(error, "applying a batch");
	SpinLockAcquire(&apply->shared->mutex);
	apply->shared->careful_until = apply->position.end_lsn;
	SpinLockRelease(&apply->shared->mutex);
	if (error != NULL)
		peer_rethrow(error, "applying a batch");
	ereport(ERROR,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("a batch did not find all rows that it changes on the target"),
			 errhint("The batch is applied again row by row to find the cause.")));
}

/*
 * Did each statement do what it was for?
 */
static void
check_group(Apply *apply)
{
	const PeerGroup *group = peer_group(apply->peer);

	if (group->failed >= 0 || group->error.sqlstate[0] != '\0')
		batch_failed(apply, &group->error);
	Assert(group->nstatements == apply->nexpected);
	for (int i = 0; i < apply->nexpected; i++)
		if (apply->expected[i].rows >= 0 &&
			apply->expected[i].rows != group->affected[i])
			batch_failed(apply, NULL);
}

static void
committed(Apply *apply)
{
	StreamShared *shared = apply->shared;

	apply->state = APPLY_IDLE;
	apply->applied = apply->position;
	memset(&apply->position, 0, sizeof(apply->position));
	SpinLockAcquire(&shared->mutex);
	shared->applied_lsn = Max(shared->applied_lsn, apply->applied.end_lsn);
	if (apply->applied.commit_time != 0)
		shared->applied_commit_time = apply->applied.commit_time;
	shared->applied_at = GetCurrentTimestamp();
	shared->transactions += apply->applied.transactions;
	shared->failures = 0;
	if (apply->applied.transactions > 0 && !shared->copy_failed)
		shared->error.at = 0;
	shared->oldest_pending = 0;
	SpinLockRelease(&shared->mutex);
	ConditionVariableBroadcast(&shared->changed);
}

/*
 * The group in flight is done: go on to the next state.
 */
static void
advance(Apply *apply)
{
	check_group(apply);
	if (apply->state == APPLY_PING)
		apply->state = APPLY_IDLE;
	else if (apply->state == APPLY_COMMIT)
		committed(apply);
	else if (apply->commit_wanted)
	{
		apply->nexpected = 0;
		queue_commit(apply);
	}
	else
		apply->state = APPLY_OPEN;
}

static bool
in_flight(const Apply *apply)
{
	return apply->state == APPLY_ROWS || apply->state == APPLY_COMMIT ||
		apply->state == APPLY_PING;
}

/*
 * Ask the peer for a sign of life, in state IDLE.  Does not wait.
 */
void
apply_ping(Apply *apply)
{
	Assert(apply->state == APPLY_IDLE);
	apply->nexpected = 0;
	peer_sync(apply->peer);
	apply->state = APPLY_PING;
}

/*
 * Take what answers there are, without waiting.  True if nothing is in flight
 * any more.  Raises remote errors.
 */
bool
apply_poll(Apply *apply)
{
	while (in_flight(apply))
	{
		if (!peer_pump(apply->peer))
			return false;
		advance(apply);
	}
	return true;
}

/*
 * Wait until nothing is in flight.
 */
void
apply_wait(Apply *apply)
{
	while (!apply_poll(apply))
	{
		CHECK_FOR_INTERRUPTS();
		peer_wait(apply->peer);
	}
}

/*
 * Check that a mapping's target may be emptied.
 */
void
apply_check_truncate(const Transform *transform)
{
	MappingRow *row = transform->row;

	if (!row->target_shared && row->on_delete == ON_DELETE_DELETE &&
		row->on_write == ON_WRITE_MIRROR)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("TRUNCATE of table \"%s\" cannot be applied to \"%s\"",
					get_rel_name(row->source), mapping_target_name(row)),
			 errdetail("The target has rows of other mappings, or its mapping does not delete."),
			 errhint("Change the target yourself, then leave this transaction out with bluegreen.skip().")));
}

/*
 * Empty targets, which apply_check_truncate() has let pass, in the open
 * transaction.  A table that others reference is
 * emptied by DELETE: TRUNCATE would refuse, or cascade into tables that the
 * source did not truncate.  Waits for the answer.
 */
void
apply_truncate(Apply *apply, List *transforms, bool restart_identity,
			   const ApplyPosition *position)
{
	ListCell   *lc;

	start_group(apply, position);
	foreach(lc, transforms)
	{
		TargetWriter *writer = apply_writer(apply, lfirst(lc));
		TableShared *stats = table_shared_get(writer->transform->row->id,
											  writer->transform->row->deployment);

		pg_atomic_fetch_add_u64(&stats->truncates, 1);
		/* one by one: the target does each as the table's owner */
		if (writer->has_incoming_fk)
			queue_sql(apply, psprintf("DELETE FROM %s", writer->name));
		else
			queue_sql(apply, psprintf("TRUNCATE %s%s", writer->name,
									  restart_identity ?
									  " RESTART IDENTITY" : ""));
	}
	apply->commit_wanted = false;
	send_group(apply);
	apply_wait(apply);
}

/*
 * The copy of a table begins anew, in the open transaction: raise its
 * generation, which waits for chunks that are being committed and makes later
 * ones fail, and forget its chunks.
 */
void
apply_restart_copy(Apply *apply, const Transform *transform,
				   const ApplyPosition *position)
{
	char	   *stream = quote_literal_cstr(apply->origin);
	int			mapping = transform->row->id;

	start_group(apply, position);
	queue_sql(apply,
			  psprintf("UPDATE bluegreen.applied_table "
					   "SET generation = generation + 1, state = 'copying' "
					   "WHERE stream = %s AND mapping = %d", stream, mapping));
	queue_sql(apply,
			  psprintf("DELETE FROM bluegreen.applied_chunk "
					   "WHERE stream = %s AND mapping = %d", stream, mapping));
	apply->commit_wanted = false;
	send_group(apply);
}

static WireValue *
encode_values(Transform *transform, const Datum *values, const bool *isnull)
{
	WireValue  *result = palloc0_array(WireValue, transform->ncolumns);

	for (int i = 0; i < transform->ncolumns; i++)
		wire_encode(&transform->columns[i], values[i], isnull[i], &result[i]);
	return result;
}

/*
 * A row outside of a batch, encoded.
 */
static BatchRow *
encode_row(const RowChange *change)
{
	Transform  *transform = change->transform;
	BatchRow   *row = palloc0_object(BatchRow);

	if (transform->nkeys == 0)
	{
		row->values = encode_values(transform, change->values, change->isnull);
		row->old = change->kind == CHANGE_UPDATE ?
			encode_values(transform, change->old_values, change->old_isnull) :
			row->values;
		return row;
	}
	row->values = palloc0_array(WireValue, transform->ncolumns);
	row->missing = palloc0_array(bool, transform->ncolumns);
	for (int i = 0; i < transform->ncolumns; i++)
	{
		bool		key_only = change->kind == CHANGE_DELETE ||
			change->kind == CHANGE_DELETE_IF_THERE;

		if (key_only && !transform->columns[i].def->is_key)
			continue;
		row->missing[i] = !key_only && change->missing[i];
		if (!row->missing[i])
			wire_encode(&transform->columns[i], change->values[i],
						change->isnull[i], &row->values[i]);
	}
	return row;
}

static void
queue_move(Apply *apply, const RowChange *change)
{
	Transform  *transform = change->transform;
	WireValue  *old_key = palloc0_array(WireValue, transform->nkeys);

	for (int k = 0; k < transform->nkeys; k++)
	{
		int			i = transform->keys[k];

		wire_encode(&transform->columns[i], change->old_values[i], false,
					&old_key[k]);
	}
	apply_queue_move(apply, apply_writer(apply, transform), encode_row(change),
					 old_key);
}

/*
 * Move a row to another key in the open transaction.  The batch before it has
 * been sent.  Does not wait for the answer.
 */
void
apply_move(Apply *apply, const RowChange *change,
		   const ApplyPosition *position)
{
	start_group(apply, position);
	queue_move(apply, change);
	apply->commit_wanted = false;
	send_group(apply);
}

/*
 * Note for the operator which row the error to be raised is about.  Returns
 * its key as text, after a space.
 */
static char *
blame_row(Apply *apply, const RowChange *change)
{
	StreamError *error = &apply->shared->error;
	const char *relation = mapping_target_name(change->transform->row);
	StringInfoData key;

	initStringInfo(&key);
	change_describe_key(&key, change);
	SpinLockAcquire(&apply->shared->mutex);
	shared_copy_text(error->relation, sizeof(error->relation), relation);
	shared_copy_text(error->key, sizeof(error->key), key.data + 1);
	SpinLockRelease(&apply->shared->mutex);
	apply->blamed = true;
	return key.data;
}

/*
 * Close the group of a careful statement and wait.  A remote error is raised
 * with the row's key.  Returns the rows that the last statement on the table
 * affected.
 */
static int64
finish_carefully(Apply *apply, const RowChange *change)
{
	const PeerGroup *group;
	char	   *key;

	peer_sync(apply->peer);
	while (!peer_pump(apply->peer))
	{
		CHECK_FOR_INTERRUPTS();
		peer_wait(apply->peer);
	}
	apply->state = APPLY_OPEN;
	group = peer_group(apply->peer);
	if (group->failed < 0 && group->error.sqlstate[0] == '\0')
	{
		int			last = apply->nexpected - 1;

		while (last >= 0 && apply->expected[last].writer == NULL)
			last--;
		return last >= 0 ? group->affected[last] : 0;
	}

	key = blame_row(apply, change);
	peer_rethrow(&group->error,
				 psprintf("applying %s to \"%s\",%s",
						  change_kind_names[change->kind],
						  mapping_target_name(change->transform->row), key));
	return 0;					/* keep compiler quiet */
}

static int64
run_carefully(Apply *apply, StatementKind kind, BatchRow *row,
			  const RowChange *change, const CarefulContext *context)
{
	TargetWriter *writer = apply_writer(apply, change->transform);

	if (target_statement(writer, kind, kind == STATEMENT_UPDATE ?
						 row->missing : NULL) == NULL)
		return 1;				/* nothing to set */
	start_group(apply, &context->position);
	apply_queue_row(apply, writer, kind, row);
	return finish_carefully(apply, change);
}

static void
record_conflict(Apply *apply, BatchRow *row, const RowChange *change,
				const CarefulContext *context, const char *const words[2])
{
	TargetWriter *writer = apply_writer(apply, change->transform);
	TableShared *stats = table_shared_get(change->transform->row->id,
										  change->transform->row->deployment);
	StringInfoData key;
	StringInfoData incoming;
	char		lsn[32];
	const char *texts[8];

	initStringInfo(&key);
	initStringInfo(&incoming);
	change_describe_key(&key, change);
	change_describe(&incoming, change);
	snprintf(lsn, sizeof(lsn), "%X/%X", LSN_FORMAT_ARGS(context->position.commit_lsn));
	texts[0] = apply->origin;
	texts[1] = context->deployment;
	texts[2] = key.data + 1;
	texts[3] = words[0];
	texts[4] = lsn;
	texts[5] = timestamptz_to_str(context->position.commit_time);
	texts[6] = incoming.data + 1;
	texts[7] = words[1];
	start_group(apply, &context->position);
	apply_queue_conflict(apply, writer, row, texts);
	(void) finish_carefully(apply, change);
	pg_atomic_fetch_add_u64(&stats->conflicts, 1);
	event_record(MyDatabaseId, change->transform->row->deployment,
				 EVENT_CONFLICT, context->position.commit_lsn,
				 psprintf("%s on \"%s\": %s", words[0],
						  mapping_target_name(change->transform->row),
						  words[1]),
				 "The peer's view bluegreen.conflict has the rows.");
}

static const char *const insert_exists[] = {"insert_exists", "updated the row that is there"};
static const char *const move_exists[] = {"insert_exists", "replaced the row that is there"};
static const char *const update_missing[] = {"update_missing", "inserted the row"};
static const char *const delete_missing[] = {"delete_missing", "nothing to delete"};

static bool
carries_all(const RowChange *change)
{
	for (int i = 0; i < change->transform->ncolumns; i++)
		if (change->missing[i])
			return false;
	return true;
}

static void
update_carefully(Apply *apply, BatchRow *row, const RowChange *change,
				 const CarefulContext *context)
{
	if (run_carefully(apply, STATEMENT_UPDATE, row, change, context) > 0)
		return;
	if (!carries_all(change))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("row to update is missing on target table \"%s\":%s",
						mapping_target_name(change->transform->row),
						blame_row(apply, change)),
				 errdetail("The change does not carry all columns, so the row cannot be inserted."),
				 errhint("Insert the row on the target, or leave this transaction out with bluegreen.skip().")));
	record_conflict(apply, row, change, context, update_missing);
	(void) run_carefully(apply, STATEMENT_UPSERT, row, change, context);
}

/*
 * A row that stands where the moved one is to go makes place for it.
 */
static void
move_carefully(Apply *apply, BatchRow *row, const RowChange *change,
			   const CarefulContext *context)
{
	if (run_carefully(apply, STATEMENT_FIND, row, change, context) > 0)
	{
		record_conflict(apply, row, change, context, move_exists);
		(void) run_carefully(apply, STATEMENT_DELETE, row, change, context);
	}
	start_group(apply, &context->position);
	queue_move(apply, change);
	if (finish_carefully(apply, change) == 0)
		update_carefully(apply, row, change, context);
}

static void
insert_carefully(Apply *apply, BatchRow *row, const RowChange *change,
				 const CarefulContext *context)
{
	if (run_carefully(apply, STATEMENT_INSERT_ABSENT, row, change, context) > 0)
		return;
	record_conflict(apply, row, change, context, insert_exists);
	(void) run_carefully(apply, STATEMENT_UPSERT, row, change, context);
}

/*
 * The same without a key: there is no row that an insert could meet.
 */
static void
apply_keyless_carefully(Apply *apply, BatchRow *row, const RowChange *change,
						const CarefulContext *context)
{
	switch (change->kind)
	{
		case CHANGE_DELETE:
			if (run_carefully(apply, STATEMENT_TAKE, row, change, context) == 0)
				record_conflict(apply, row, change, context, delete_missing);
			return;
		case CHANGE_UPDATE:
			if (run_carefully(apply, STATEMENT_REPLACE, row, change, context) > 0)
				return;
			record_conflict(apply, row, change, context, update_missing);
			break;
		default:
			break;
	}
	(void) run_carefully(apply, STATEMENT_INSERT, row, change, context);
}

/*
 * Apply one change in the open transaction and wait for it; resolve conflicts;
 * raise errors with the row's key.
 */
void
apply_row_carefully(Apply *apply, const RowChange *change,
					const CarefulContext *context)
{
	BatchRow   *row = encode_row(change);

	if (change->transform->nkeys == 0)
	{
		apply_keyless_carefully(apply, row, change, context);
		return;
	}
	switch (change->kind)
	{
		case CHANGE_INSERT:
			insert_carefully(apply, row, change, context);
			break;
		case CHANGE_UPDATE:
			update_carefully(apply, row, change, context);
			break;
		case CHANGE_UPSERT:
			(void) run_carefully(apply, STATEMENT_UPSERT, row, change, context);
			break;
		case CHANGE_PATCH:
			(void) run_carefully(apply, STATEMENT_UPDATE, row, change, context);
			break;
		case CHANGE_DELETE:
			if (run_carefully(apply, STATEMENT_DELETE, row, change, context) == 0)
				record_conflict(apply, row, change, context, delete_missing);
			break;
		case CHANGE_DELETE_IF_THERE:
			(void) run_carefully(apply, STATEMENT_DELETE, row, change, context);
			break;
		case CHANGE_MOVE:
			move_carefully(apply, row, change, context);
			break;
	}
}
