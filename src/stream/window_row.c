/*-------------------------------------------------------------------------
 *
 * window_row.c
 *		Both sides take writes: what becomes of a row that comes.
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
 * If somebody gets in between, the row is done again if it is the first one of
 * its transaction; else the worker's successor begins with the transaction.
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
 * A row in the way that the target has not made, or that we had seen, is not the
 * one that we have: we could not have written ours.  One of the two sides has
 * left a change of it out, and owes it to the other one, or the transaction at
 * hand has just written it and leaves out what came after that.  It makes place,
 * in the same transaction, and the target owes us the row, which is that it is
 * gone.  That gives way to whatever we have done to the row since.
 *
 * Both sides come to the same rows, because both decide with the same function
 * of two changes.  That holds if a change of one side never has a lower rank
 * than the changes of the same row before it: its commit time, or a column that
 * only grows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "miscadmin.h"
#include "stream/parameters.h"
#include "stream/window.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define AGAIN_TIMES	10			/* that somebody gets in our way */
#define MEET_TIMES	3			/* ... with a value that must be unique */

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
ask_sql(WindowRow *w, const char *sql)
{
	apply_start_group(w->apply, &w->context->position);
	peer_send_sql(w->apply->peer, sql);
	apply_expect(w->apply, -1);
	return apply_finish_carefully(w->apply, w->change);
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
	(void) ask_sql(w,
				  psprintf("INSERT INTO bluegreen.window_owed VALUES (%s, %d, %s, %s, %s) ON CONFLICT DO NOTHING",
						   quote_literal_cstr(w->apply->origin),
						   transform->row->id,
						   quote_literal_cstr(text_array(key, transform->nkeys)),
						   quote_literal_cstr(text_array(names, n)),
						   quote_literal_cstr(text_array(values, n))));
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

/* What came of a row. */
typedef enum Outcome
{
	OUTCOME_FREE,				/* nothing is in its way */
	OUTCOME_DONE,
	OUTCOME_AGAIN				/* nothing was done, and it is to be tried again */
} Outcome;

/* How often was the transaction begun again? */
static int
times_again(const WindowRow *w)
{
	StreamShared *shared = w->apply->shared;
	int			times;

	SpinLockAcquire(&shared->mutex);
	times = shared->again_lsn == w->context->position.end_lsn ?
		shared->again_times : 0;
	SpinLockRelease(&shared->mutex);
	return times;
}

static void
note_again(const WindowRow *w, int times)
{
	StreamShared *shared = w->apply->shared;

	SpinLockAcquire(&shared->mutex);
	shared->again_lsn = w->context->position.end_lsn;
	shared->again_times = times;
	SpinLockRelease(&shared->mutex);
}

/* The open transaction is over, by that word. */
static void
end_transaction(WindowRow *w, const char *command)
{
	(void) ask_sql(w, command);
	w->apply->open = false;
	w->apply->careful = false;
}

/*
 * Somebody has got in our way: roll back and begin again, with the row or, if
 * there is something before it in its transaction, with the worker's successor.
 * Error if that has been in vain too often.
 */
static Outcome
begin_again(WindowRow *w, const char *why)
{
	StreamShared *shared = w->apply->shared;
	int			times = times_again(w) + 1;

	note_again(w, times);
	if (times > AGAIN_TIMES)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("table \"%s\" does not take a row:%s",
						mapping_target_name(w->change->transform->row),
						apply_blame_row(w->apply, w->change)),
				 errdetail("%s, %d times.", why, times),
				 errhint("Look for a trigger that leaves rows out, or keeps them.")));
	if (w->context->first)
	{
		if (w->apply->open)
			end_transaction(w, "ROLLBACK");
		return OUTCOME_AGAIN;
	}
	SpinLockAcquire(&shared->mutex);
	shared->careful_until = Max(shared->careful_until,
								w->context->position.end_lsn);
	shared->reload = true;
	SpinLockRelease(&shared->mutex);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("%s; the transaction is applied again", why)));
}

/*
 * The target's own row is in the way, and loses.  It is removed by a transaction
 * of the target's own; what was done of ours is rolled back, and done again.
 */
static Outcome
remove_in_way(WindowRow *w, const WindowWay *way, int weight)
{
	Apply	   *apply = w->apply;
	const char *words[2];
	bool		removed;

	describe_decision(w, "unique", weight,
					  "removed the row that was in the way", words);
	peer_send_sql(apply->peer, "ROLLBACK");
	peer_send_sql(apply->peer, "BEGIN");
	peer_send_sql(apply->peer, "SELECT bluegreen.write_as_own()");
	record(w, words, way->note);
	removed = ask(w, way->remove, COLUMNS_CARRIED, false) > 0;
	end_transaction(w, removed ? "COMMIT" : "ROLLBACK");
	if (removed)
		note_again(w, 0);		/* it got further */
	return begin_again(w, removed ? "a row that was in the way was removed" :
					   "a row that was in the way could not be removed");
}

/*
 * Has the open transaction itself written the row that is in the way?
 */
static bool
is_written_now(WindowRow *w, const WindowWay *way)
{
	return ask(w, way->key, COLUMNS_CARRIED, false) > 0 &&
		ask_sql(w, way->is_written_now) > 0;
}

/*
 * The row that is in the way is not the one that we have; see above.
 */
static void
make_place(WindowRow *w, const WindowWay *way)
{
	const char *words[2] = {"unique"};

	if (ask(w, way->key, COLUMNS_CARRIED, false) == 0)
		return;					/* it was in another way as well */
	words[1] = psprintf("%s is later: removed the row that was in the way",
						w->writer->window->side);
	record(w, words, way->note);
	(void) ask(w, way->key, COLUMNS_CARRIED, false);
	(void) ask_sql(w, way->owe);
	(void) ask(w, way->remove, COLUMNS_CARRIED, false);
	w->apply->owes = true;
}

/*
 * Is another row in the way of what comes?  OUTCOME_DONE: that loses and is left
 * out.  What makes place does so when all are known.
 */
static Outcome
clear_ways(WindowRow *w)
{
	WindowWriter *window = w->writer->window;
	bool	   *makes_place = palloc0_array(bool, window->nways);

	for (int i = 0; i < window->nways; i++)
	{
		WindowWay  *way = &window->ways[i];
		const char *words[2];
		int			weight;

		if (ask(w, way->find, COLUMNS_CARRIED, false) == 0)
			continue;
		makes_place[i] = way->key != NULL && is_written_now(w, way);
		if (makes_place[i])
			continue;
		weight = (int) ask(w, way->weigh, COLUMNS_CARRIED, true);
		switch (VERDICT(weight))
		{
			case VERDICT_NONE:
				makes_place[i] = way->key != NULL;
				break;
			case VERDICT_THEIRS:
				return remove_in_way(w, way, weight);
			case VERDICT_OURS:
				describe_decision(w, "unique", weight,
								  "left out what came", words);
				record(w, words, way->note);
				owe(w);
				return OUTCOME_DONE;
			case VERDICT_ERROR:
				refuse_conflict(w, "unique");
		}
	}
	for (int i = 0; i < window->nways; i++)
		if (makes_place[i])
			make_place(w, &window->ways[i]);
	return OUTCOME_FREE;
}

/*
 * Have the row as it came; kind is how.
 */
static Outcome
write_as(WindowRow *w, StatementKind kind)
{
	CarefulContext context = *w->context;
	int64		n;

	/* somebody may have made a row with the same value since we looked */
	context.meets = times_again(w) < MEET_TIMES;
	n = apply_run_carefully(w->apply, kind, w->row, w->change, &context);
	if (n < 0)
		return begin_again(w, "a row that must be unique has met another one");
	if (n == 0 && kind == STATEMENT_INSERT_ABSENT)
		return begin_again(w, "a row was made, or left out, that was to be inserted");
	return OUTCOME_DONE;
}

static Outcome
write_row(WindowRow *w)
{
	return write_as(w, w->there ? STATEMENT_UPSERT : STATEMENT_INSERT_ABSENT);
}

/*
 * Take the row away, if it is there.  Else nothing was locked, see owe().
 */
static void
delete_row(WindowRow *w)
{
	if (w->there)
		(void) apply_run_carefully(w->apply, STATEMENT_DELETE, w->row,
								   w->change, w->context);
	else if (!w->change->gives_way)
		owe(w);
}

/*
 * The row is not changed on both sides.  What comes counts.
 */
static Outcome
apply_alone(WindowRow *w)
{
	static const char *const exists[] = {"insert_exists", "updated the row that is there"};
	static const char *const missing[] = {"update_missing", "inserted the row"};
	static const char *const gone[] = {"delete_missing", "nothing to delete"};
	ChangeKind	kind = w->change->kind;

	if (w->is_delete)
	{
		if (!w->there && kind == CHANGE_DELETE)
			record(w, gone, NULL);
		delete_row(w);
		return OUTCOME_DONE;
	}
	if (w->there && kind == CHANGE_UPDATE)
		return write_as(w, STATEMENT_UPDATE);
	require_whole_row(w);
	if (w->there && kind == CHANGE_INSERT)
		record(w, exists, NULL);
	else if (!w->there && kind == CHANGE_UPDATE)
		record(w, missing, NULL);
	return write_row(w);
}

/*
 * Both sides have changed it.
 */
static Outcome
apply_concurrent(WindowRow *w, int weight)
{
	const char *kind = kind_of(w, weight);
	const char *words[2];
	bool		theirs = VERDICT(weight) == VERDICT_THEIRS;

	/* what was owed is not any more */
	if (w->change->gives_way)
		return OUTCOME_DONE;
	if (VERDICT(weight) == VERDICT_ERROR)
		refuse_conflict(w, kind);
	describe_decision(w, kind, weight,
					  !theirs ? "left out what came" :
					  w->is_delete ? "deleted the row" : "wrote the row that came",
					  words);
	record(w, words, NULL);
	if (!theirs)
		return OUTCOME_DONE;
	if (!w->is_delete)
		return write_row(w);
	delete_row(w);
	return OUTCOME_DONE;
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
 * One attempt.
 */
static Outcome
try_row(WindowRow *w)
{
	bool		theirs;
	int			weight;

	w->there = apply_run_carefully(w->apply, STATEMENT_FIND, w->row, w->change,
								   w->context) > 0;
	weight = (int) ask(w, w->writer->window->weigh, COLUMNS_KEY, true);
	theirs = VERDICT(weight) == VERDICT_THEIRS;
	if (VERDICT(weight) != VERDICT_NONE)
		w->apply->conflict_at = GetCurrentTimestamp();
	if (!w->is_delete && (theirs || VERDICT(weight) == VERDICT_NONE))
	{
		Outcome		outcome;

		if (theirs || w->writer->window->nways > 0)
			require_whole_row(w);
		outcome = clear_ways(w);
		if (outcome != OUTCOME_FREE)
			return outcome;
	}
	if (VERDICT(weight) == VERDICT_NONE)
		return apply_alone(w);
	return apply_concurrent(w, weight);
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

	if (change->kind == CHANGE_MOVE)
		refuse_move(apply, change);
	w.rank = rank_of(&w);
	while (try_row(&w) == OUTCOME_AGAIN)
		CHECK_FOR_INTERRUPTS();
}
