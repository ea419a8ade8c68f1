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
 * Rows go out in a pipeline and the worker decodes on while the target works.
 * While one batch is filled the one before it is sent, statement by statement
 * (a slice of its rows each), as fast as the connection takes them; those
 * before that are in flight: sent, and not answered.  The worker waits for the
 * target only when its batch is full and the one before it is not on its way.
 *
 * Nothing waits for an answer but the slot, so the target has to see to it
 * itself that nothing wrong is committed.  Behind the rows of a batch follow
 *
 *		check_rows()		each UPDATE and DELETE found the rows it was for
 *		commit_position()	the target is where the transaction before this
 *							one was to bring it
 *		COMMIT
 *
 * of which each fails if what is before it in the transaction has failed.  The
 * session stays in a failed transaction then, and the following BEGIN fails
 * like anything else.  Only if it was COMMIT itself that failed (a deferred
 * trigger, say) the next transaction begins; its commit_position() finds that
 * the target is not where it should be.
 *
 * A batch that fails, or whose counts are wrong, is never mended here.  The
 * worker notes the position up to which it must go one row at a time
 * (StreamShared.careful_until), ends, and its successor decodes again from
 * the target's progress; that careful path (apply_careful.c) finds the
 * one row that is at fault, resolves what is a conflict, and stops with the
 * row's key at what is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/settings.h"
#include "miscadmin.h"
#include "stream/apply.h"
#include "stream/window.h"
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
 * set up for the origin, which is at progress.  Asks the peer about each target table.  Everything
 * lives in CurrentMemoryContext.
 */
Apply *
apply_create(Peer *peer, StreamShared *shared, const char *origin,
			 List *transforms, XLogRecPtr progress)
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
	apply->reached = progress;
	apply->spare = batch_create(transforms);
	apply->max_expected = 64;
	apply->expected = palloc0_array(int64, apply->max_expected);
	prune_conflicts(peer);
	apply->check_rows =
		peer_statement_create("SELECT bluegreen.check_rows("
							  "$1::pg_catalog.int8[])", 1, NULL);
	apply->commit_position =
		peer_statement_create("SELECT bluegreen.check_rows("
							  "$1::pg_catalog.int8[]), "
							  "bluegreen.commit_position("
							  "$2::pg_catalog.pg_lsn, "
							  "$3::pg_catalog.timestamptz, "
							  "$4::pg_catalog.pg_lsn, "
							  "$5::pg_catalog.pg_lsn), "
							  "pg_catalog.pg_current_xact_id()", 5, NULL);
	apply->note_reached =
		peer_statement_create("SELECT bluegreen.note_reached("
							  "$1::pg_catalog.pg_lsn)", 1, NULL);
	apply->note_seen =
		peer_statement_create("SELECT bluegreen.note_seen("
							  "$1::pg_catalog.pg_lsn)", 1, NULL);
	peer_pipeline_enter(peer);
	return apply;
}

/*
 * Both sides take writes: ask the peer what that needs.  seen is what it has
 * noted with the progress.
 */
void
apply_open_window(Apply *apply, char direction, XLogRecPtr seen)
{
	apply->window = direction == 'f' ? "blue" : "green";
	apply->noted_seen = seen;
	peer_pipeline_exit(apply->peer);
	for (int i = 0; i < apply->nwriters; i++)
		window_writer_load(apply->peer, apply->writers[i], apply->window,
						   apply->origin);
	peer_pipeline_enter(apply->peer);
}

/* ---- sending ---- */

/*
 * What the statements on tables must have done, since the peer was asked last:
 * an array for check_rows(), or NULL if it need not look.
 */
static char *
take_expected(Apply *apply)
{
	StringInfoData array;

	if (apply->careful)
	{
		apply->nexpected = 0;
		return NULL;
	}
	initStringInfo(&array);
	for (int i = 0; i < apply->nexpected; i++)
		appendStringInfo(&array, "%c" INT64_FORMAT, i == 0 ? '{' : ',',
						 apply->expected[i]);
	appendStringInfoString(&array, apply->nexpected == 0 ? "{}" : "}");
	apply->nexpected = 0;
	return array.data;
}

static void
queue_check(Apply *apply)
{
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	const char *values[1] = {take_expected(apply)};

	peer_send(apply->peer, apply->check_rows, values, NULL, NULL);
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
}

/*
 * In a window: what this side had seen goes with the position, if it has moved.
 */
static void
note_seen(Apply *apply)
{
	if (apply->window == NULL || apply->position.seen <= apply->noted_seen)
		return;
	peer_send_sql(apply->peer,
				  psprintf("UPDATE bluegreen.applied_stream SET seen = '%X/%X' WHERE name = %s",
						   LSN_FORMAT_ARGS(apply->position.seen),
						   quote_literal_cstr(apply->origin)));
	apply_expect(apply, -1);
	apply->noted_seen = apply->position.seen;
}

/*
 * The position goes with every commit; a transaction without rows takes a
 * transaction id, without which its position would not be recorded.
 */
static void
queue_commit(Apply *apply)
{
	MemoryContext old = MemoryContextSwitchTo(apply->param_context);
	const ApplyPosition *position = &apply->position;
	const char *values[5];

	note_seen(apply);
	values[0] = take_expected(apply);
	values[1] = psprintf("%X/%X", LSN_FORMAT_ARGS(position->end_lsn));
	values[2] = timestamptz_to_str(position->commit_time);
	values[3] = psprintf("%X/%X", LSN_FORMAT_ARGS(apply->reached));
	values[4] = psprintf("%X/%X", LSN_FORMAT_ARGS(position->seen));
	peer_send(apply->peer, apply->commit_position, values, NULL, NULL);
	peer_send_sql(apply->peer, "COMMIT");
	MemoryContextSwitchTo(old);
	MemoryContextReset(apply->param_context);
	apply->reached = position->end_lsn;
	apply->open = false;
	apply->careful = false;
	apply->shared->batches++;
}

/*
 * Close the open group of statements.
 */
void
apply_launch(Apply *apply, bool commits)
{
	Flight	   *flight = &apply->flights[(apply->first_flight +
										  apply->nflights) % PEER_MAX_GROUPS];

	Assert(apply->nflights < PEER_MAX_GROUPS);
	flight->commits = commits;
	flight->position = apply->position;
	apply->nflights++;
	peer_sync(apply->peer);
}

/*
 * All rows of the outgoing batch are queued: end it.
 */
static void
end_batch(Apply *apply)
{
	bool		commit = apply->commit_wanted;

	if (commit)
		queue_commit(apply);
	else
		queue_check(apply);
	apply_launch(apply, commit);
	apply->spare = apply->outgoing;
	apply->outgoing = NULL;
	batch_reset(apply->spare);
}

/*
 * Queue more of the outgoing batch, as long as the connection takes it.  False
 * if there was nothing to do.
 */
static bool
send_more(Apply *apply)
{
	bool		moved = false;

	while (apply->outgoing != NULL && !peer_is_clogged(apply->peer))
	{
		moved = true;
		if (apply->next_slice < apply->nslices)
			apply_queue_slice(apply, &apply->slices[apply->next_slice++]);
		else
			end_batch(apply);
	}
	return moved;
}

/* ---- answers ---- */

/*
 * Note that the transactions up to the failed position need the careful path,
 * and end.  Transient errors are retried as they are.
 */
static void
batch_failed(Apply *apply, const Flight *flight, const PeerError *error)
{
	if (!peer_sqlstate_is_transient(error->sqlstate))
	{
		SpinLockAcquire(&apply->shared->mutex);
		apply->shared->careful_until = flight->position.end_lsn;
		SpinLockRelease(&apply->shared->mutex);
	}
	peer_rethrow(error, "applying a batch");
}

/*
 * Publish the commit time of the oldest transaction that the target does not
 * have.
 */
void
apply_note_oldest(Apply *apply)
{
	TimestampTz oldest = 0;

	for (int i = 0; i < apply->nflights && oldest == 0; i++)
		oldest = apply->flights[(apply->first_flight + i) %
								PEER_MAX_GROUPS].position.oldest;
	if (oldest == 0 && apply->outgoing != NULL)
		oldest = apply->position.oldest;
	if (oldest == 0 && apply->waiting != NULL)
		oldest = apply->waiting->oldest;
	SpinLockAcquire(&apply->shared->mutex);
	apply->shared->oldest_pending = oldest;
	SpinLockRelease(&apply->shared->mutex);
}

static void
committed(Apply *apply, const ApplyPosition *position)
{
	StreamShared *shared = apply->shared;

	apply->applied = *position;
	SpinLockAcquire(&shared->mutex);
	shared->applied_lsn = Max(shared->applied_lsn, position->end_lsn);
	shared->told_lsn = Max(shared->told_lsn, position->end_lsn);
	if (position->commit_time != 0)
		shared->applied_commit_time = position->commit_time;
	shared->applied_at = GetCurrentTimestamp();
	shared->transactions += position->transactions;
	shared->failures = 0;
	if (position->transactions > 0 && !shared->copy_failed)
		shared->error.at = 0;
	SpinLockRelease(&shared->mutex);
	apply_note_oldest(apply);
	ConditionVariableBroadcast(&shared->changed);
}

/*
 * Take the answers that are in, in the order of sending.  The first failure is
 * the cause of those behind it.  False if there was none.
 */
static bool
take_answers(Apply *apply)
{
	const PeerGroup *group;
	bool		moved = false;

	while (apply->nflights > 0 &&
		   (group = peer_take_group(apply->peer)) != NULL)
	{
		Flight		flight = apply->flights[apply->first_flight];

		apply->first_flight = (apply->first_flight + 1) % PEER_MAX_GROUPS;
		apply->nflights--;
		moved = true;
		if (group->failed >= 0 || group->error.sqlstate[0] != '\0')
			batch_failed(apply, &flight, &group->error);
		if (flight.commits)
			committed(apply, &flight.position);
	}
	return moved;
}

/*
 * Send what can be sent and take what answers there are, without waiting.
 * True if nothing is on its way any more.  Raises remote errors.
 */
bool
apply_poll(Apply *apply)
{
	bool		moved = true;

	while (moved && (apply->outgoing != NULL || apply->nflights > 0))
	{
		moved = send_more(apply);
		(void) peer_pump(apply->peer);
		moved |= take_answers(apply);
	}
	return apply->outgoing == NULL && apply->nflights == 0;
}

/*
 * Is no transaction open, and nothing on its way?
 */
bool
apply_is_idle(const Apply *apply)
{
	return !apply->open && apply->outgoing == NULL && apply->nflights == 0;
}

static void
wait_for_move(Apply *apply)
{
	CHECK_FOR_INTERRUPTS();
	peer_wait(apply->peer);
}

/*
 * Wait until nothing is on its way.
 */
void
apply_wait(Apply *apply)
{
	while (!apply_poll(apply))
		wait_for_move(apply);
}

/* ---- what is sent ---- */

/*
 * In a window: who watches there may be waited for in this transaction, and has
 * to have room.  So he is told what we have seen before it, not after.
 */
static void
tell_seen_before(Apply *apply)
{
	XLogRecPtr	seen = apply->position.seen_before;

	if (apply->window == NULL || seen <= apply->told_seen)
		return;
	peer_send_sql(apply->peer,
				  psprintf("SELECT bluegreen.note_seen('%X/%X')",
						   LSN_FORMAT_ARGS(seen)));
	apply->told_seen = seen;
}

/*
 * Wait until all that was to be sent is queued, and open a group of statements
 * in a transaction that is to reach position.
 */
void
apply_start_group(Apply *apply, const ApplyPosition *position)
{
	while (!apply_poll(apply) &&
		   (apply->outgoing != NULL || !peer_has_room(apply->peer)))
		wait_for_move(apply);
	apply->position = *position;
	if (apply->open)
		return;
	apply->open = true;
	peer_send_sql(apply->peer, "BEGIN");
	tell_seen_before(apply);
}

/*
 * Send the rows of a batch, which reaches up to position.  With commit, the
 * transaction is to commit; without, it stays open for more.  Waits until the
 * batch before it is sent, not for any answer; raises what had gone wrong
 * there.  Returns an empty batch.
 */
Batch *
apply_send(Apply *apply, Batch *batch, const ApplyPosition *position,
		   bool commit)
{
	if (batch->rows == 0 && !commit)
		return batch;
	apply_start_group(apply, position);
	apply->outgoing = batch;
	apply->commit_wanted = commit;
	apply_slice_batch(apply, batch);
	batch = apply->spare;
	apply->spare = NULL;
	(void) apply_poll(apply);
	return batch;
}

/*
 * Ask the peer for a sign of life, when idle.  Does not wait.
 */
void
apply_ping(Apply *apply)
{
	Assert(apply_is_idle(apply));
	memset(&apply->position, 0, sizeof(apply->position));
	apply_launch(apply, false);
}

/*
 * Let the target's sessions know, when idle, that there is nothing up to lsn
 * that is not there.  Nothing is written.  Does not wait.
 */
void
apply_tell(Apply *apply, XLogRecPtr lsn)
{
	char		text[32];
	const char *values[1] = {text};

	Assert(apply_is_idle(apply));
	snprintf(text, sizeof(text), "%X/%X", LSN_FORMAT_ARGS(lsn));
	memset(&apply->position, 0, sizeof(apply->position));
	peer_send(apply->peer, apply->note_reached, values, NULL, NULL);
	apply_launch(apply, false);
}

/*
 * Let the target know, when idle, what this side has seen of it.  Does not wait.
 */
void
apply_tell_seen(Apply *apply, XLogRecPtr seen)
{
	char		text[32];
	const char *values[1] = {text};

	Assert(apply_is_idle(apply));
	snprintf(text, sizeof(text), "%X/%X", LSN_FORMAT_ARGS(seen));
	memset(&apply->position, 0, sizeof(apply->position));
	peer_send(apply->peer, apply->note_seen, values, NULL, NULL);
	apply_launch(apply, false);
}

/*
 * Check that a mapping's target may be emptied.
 */
void
apply_check_truncate(Apply *apply, const Transform *transform)
{
	MappingRow *row = transform->row;

	if (apply_writer(apply, transform)->window != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("TRUNCATE of table \"%s\" cannot be applied to \"%s\" in a window",
						get_rel_name(row->source), mapping_target_name(row)),
				 errdetail("Nobody could say which rows of the other side it was to take."),
				 errhint("Delete the rows on the target yourself, then leave this transaction out with bluegreen.skip().")));
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
 * Queue a statement on a table that may affect any number of rows.
 */
static void
queue_uncounted(Apply *apply, const char *sql)
{
	peer_send_sql(apply->peer, sql);
	apply_expect(apply, -1);
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

	apply_start_group(apply, position);
	foreach(lc, transforms)
	{
		TargetWriter *writer = apply_writer(apply, lfirst(lc));
		TableShared *stats = table_shared_get(writer->transform->row->id,
											  writer->transform->row->deployment);

		pg_atomic_fetch_add_u64(&stats->truncates, 1);
		/* one by one: the target does each as the table's owner */
		if (writer->has_incoming_fk)
			queue_uncounted(apply, psprintf("DELETE FROM %s", writer->name));
		else
			peer_send_sql(apply->peer,
						  psprintf("TRUNCATE %s%s", writer->name,
								   restart_identity ?
								   " RESTART IDENTITY" : ""));
	}
	apply_launch(apply, false);
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

	apply_start_group(apply, position);
	queue_uncounted(apply,
					psprintf("UPDATE bluegreen.applied_table "
							 "SET generation = generation + 1, state = 'copying' "
							 "WHERE stream = %s AND mapping = %d",
							 stream, mapping));
	queue_uncounted(apply,
					psprintf("DELETE FROM bluegreen.applied_chunk "
							 "WHERE stream = %s AND mapping = %d",
							 stream, mapping));
	apply_launch(apply, false);
}
