/*-------------------------------------------------------------------------
 *
 * window_target.c
 *		What the other side of a window is asked, by its stream's name; see
 *		window.c.
 *
 * Whoever asks may be gone, and what he has asked may arrive late.  So each
 * question names the epoch of its move, and looks at this side's fence under the
 * row's lock: before the decision the epoch must not have been settled, after
 * that it must be the side's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/event.h"
#include "cutover/fence.h"
#include "cutover/router.h"
#include "cutover/sequence.h"
#include "cutover/window.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"

PG_FUNCTION_INFO_V1(bluegreen_window_move);
PG_FUNCTION_INFO_V1(bluegreen_window_look);
PG_FUNCTION_INFO_V1(bluegreen_window_decide);
PG_FUNCTION_INFO_V1(bluegreen_window_settle);
PG_FUNCTION_INFO_V1(bluegreen_interleave_sequences);
PG_FUNCTION_INFO_V1(bluegreen_restore_sequences);

/* ---- a deployment's window ---- */

/*
 * Note what a deployment's window is on this side; its worker starts again if
 * it has to keep other things than before.  False if nothing has changed.  Does
 * not commit.
 */
bool
window_set(int32 deployment, WindowState state)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		begins = false;
	bool		changed;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	catalog_arg_text(&args, window_state_names[state]);
	changed = catalog_run("UPDATE bluegreen.deployment n SET \"window\" = $2, "
						  "mapping_version = n.mapping_version + o.begins::int "
						  "FROM (SELECT id, (\"window\" = 'closed') "
						  "<> ($2 = 'closed') AS begins "
						  "FROM bluegreen.deployment WHERE id = $1 FOR UPDATE) o "
						  "WHERE n.id = o.id AND n.\"window\" <> $2 "
						  "RETURNING o.begins", &args,
						  SPI_OK_UPDATE_RETURNING) > 0;
	if (changed)
		begins = DatumGetBool(catalog_value(0, 1, NULL));
	if (changed && state == WINDOW_CLOSED)
		catalog_run("UPDATE bluegreen.fence SET closing = false "
					"WHERE deployment = $1 AND closing", &args,
					SPI_OK_UPDATE);
	catalog_end(&access);
	if (begins)
		control_reload_at_commit(deployment);
	return changed;
}

/*
 * This side has become the only one: its window is about to be closed, if there
 * was one.  Does not commit.
 */
void
window_leave(int32 fence)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_run("UPDATE bluegreen.deployment SET \"window\" = 'closing' "
				"FROM bluegreen.fence f WHERE f.id = $1 "
				"AND deployment.id = f.deployment "
				"AND deployment.\"window\" <> 'closed'", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/* ---- who asks ---- */

/* What this side is for a stream of the other one. */
typedef struct WindowPlace
{
	int32		fence;
	int64		epoch;
	Deployment *deployment;
} WindowPlace;

/*
 * Find it, and lock the fence's row.  Errors: there is no way back, or it is not
 * started.
 */
static WindowPlace
lock_place(const char *stream)
{
	WindowPlace place = {.fence = fence_of_stream(stream)};
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		deployment;

	catalog_begin(&access);
	catalog_arg_int4(&args, place.fence);
	catalog_run("SELECT epoch, coalesce(deployment, 0) FROM bluegreen.fence "
				"WHERE id = $1 FOR UPDATE", &args, SPI_OK_SELECT);
	place.epoch = DatumGetInt64(catalog_value(0, 1, NULL));
	deployment = DatumGetInt32(catalog_value(0, 2, NULL));
	catalog_end(&access);
	place.deployment = deployment_load(deployment);
	if (place.deployment == NULL ||
		place.deployment->desired != DESIRED_STARTED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no stream leads back against stream \"%s\"", stream),
				 errhint("Use CALL bluegreen.start() on blue.")));
	return place;
}

/*
 * Error if what is asked belongs to a move that is over.
 */
static void
check_epoch(const WindowPlace *place, int64 epoch, bool decided)
{
	if (decided ? place->epoch == epoch : place->epoch < epoch)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("epoch " INT64_FORMAT " of deployment \"%s\" is over",
					epoch, place->deployment->name),
			 errdetail("It is in epoch " INT64_FORMAT ".", place->epoch)));
}

static pg_noreturn void
refuse_state(const WindowPlace *place)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("window of deployment \"%s\" is %s",
					place->deployment->name,
					window_state_names[place->deployment->window])));
}

/*
 * bluegreen.window_move(stream text, epoch bigint, state text) returns pg_lsn:
 * a window is about to be opened here ('opening'), or has been closed ('closing',
 * 'closed').  Returns a position behind all that was committed before; null if
 * it is closed already.  Errors: the move is over; another one is not; sequences
 * cannot be locked.
 */
Datum
bluegreen_window_move(PG_FUNCTION_ARGS)
{
	WindowPlace place;
	char	   *word = text_to_cstring(PG_GETARG_TEXT_PP(2));
	int			state = enum_lookup(window_state_names, WINDOW_CLOSING + 1,
									word);

	require_writable("bluegreen.window_move");
	if (state < 0 || state == WINDOW_OPEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"", "state",
						word)));
	place = lock_place(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (state != WINDOW_OPENING && place.deployment->window == WINDOW_CLOSED)
		PG_RETURN_NULL();
	check_epoch(&place, PG_GETARG_INT64(1), state != WINDOW_OPENING);
	/* the epoch of a move that is over is that of the next window, too */
	if (state == WINDOW_OPENING ?
		place.deployment->window > WINDOW_OPENING :
		place.deployment->window != WINDOW_CLOSING)
		refuse_state(&place);
	if (state == WINDOW_OPENING)
		(void) sequences_restore(place.deployment->id, 0, NULL, NULL, true);
	if (state != WINDOW_CLOSING)
		(void) window_set(place.deployment->id, state);
	PG_RETURN_LSN(control_position());
}

/*
 * bluegreen.window_look(stream text, lsn pg_lsn, OUT passed boolean, OUT problem
 * text): does the stream from here keep what a window needs, and has it applied
 * all up to there?  Its error, if it has one.
 */
Datum
bluegreen_window_look(PG_FUNCTION_ARGS)
{
	char	   *stream = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int32		fence = fence_of_stream(stream);
	Datum		values[2] = {0};
	bool		nulls[2] = {false, true};
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		id;
	Deployment *deployment;
	StreamShared *shared;
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_run("SELECT coalesce(deployment, 0) FROM bluegreen.fence "
				"WHERE id = $1", &args, SPI_OK_SELECT);
	id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	deployment = deployment_load(id);
	shared = deployment == NULL ? NULL : stream_of_deployment(deployment->id);
	if (shared != NULL)
	{
		char		message[sizeof(shared->error.message)];

		SpinLockAcquire(&shared->mutex);
		values[0] = BoolGetDatum(shared->pid != 0 &&
								 shared->state == STREAM_STREAMING &&
								 shared->mapping_version >= deployment->mapping_version &&
								 !XLogRecPtrIsInvalid(shared->window_since) &&
								 shared->applied_lsn >= PG_GETARG_LSN(1));
		nulls[1] = shared->state != STREAM_ERROR &&
			shared->state != STREAM_LOST;
		memcpy(message, shared->error.message, sizeof(message));
		SpinLockRelease(&shared->mutex);
		values[1] = CStringGetTextDatum(message);
		stream_wake(shared);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * bluegreen.window_decide(stream text, epoch bigint) returns void: this side
 * takes writes, too, from the commit on.  Errors: it is open; the epoch was
 * settled; it is not prepared.
 */
Datum
bluegreen_window_decide(PG_FUNCTION_ARGS)
{
	WindowPlace place;
	int64		epoch = PG_GETARG_INT64(1);

	require_writable("bluegreen.window_decide");
	place = lock_place(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	check_epoch(&place, epoch, false);
	if (place.deployment->window != WINDOW_OPENING)
		refuse_state(&place);
	fence_decide_window(place.fence, epoch);
	fence_unmark(place.fence);
	(void) window_set(place.deployment->id, WINDOW_OPEN);
	event_record_local(place.deployment->id, EVENT_SWITCH, InvalidXLogRecPtr,
					   "the window is open: this side takes writes, too", NULL);
	routers_notify(place.deployment, "open_window", "both", epoch);
	ForceSyncCommit();
	PG_RETURN_VOID();
}

/*
 * bluegreen.window_settle(stream text, epoch bigint) returns boolean: was the
 * window opened?  If not it cannot be any more once this commits, and this side
 * is as it was.  Errors: sequences cannot be locked.
 */
Datum
bluegreen_window_settle(PG_FUNCTION_ARGS)
{
	WindowPlace place;
	bool		decided;

	require_writable("bluegreen.window_settle");
	place = lock_place(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	decided = fence_settle(place.fence, PG_GETARG_INT64(1), true);
	if (!decided && place.deployment->window == WINDOW_OPENING)
	{
		(void) sequences_restore(place.deployment->id, 0, NULL, NULL, false);
		(void) window_set(place.deployment->id, WINDOW_CLOSED);
	}
	PG_RETURN_BOOL(decided);
}

/* ---- sequences ---- */

static void
check_length(int a, int b)
{
	if (a != b)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("arrays must have the same length")));
}

/* For the rest of the function; returns what AtEOXact_GUC() takes. */
static int
set_lock_timeout(int ms)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout", psprintf("%d", ms), PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return guc_level;
}

/*
 * bluegreen.interleave_sequences(stream text, epoch bigint, sequences oid[],
 * increments bigint[], first bigint[], lock_timeout integer) returns bigint[]:
 * sequence_interleave() for each.
 */
Datum
bluegreen_interleave_sequences(PG_FUNCTION_ARGS)
{
	Datum	   *sequences;
	Datum	   *increments;
	Datum	   *first;
	int			n = sequence_array_values(PG_GETARG_ARRAYTYPE_P(2), OIDOID, &sequences);
	int			guc_level = set_lock_timeout(PG_GETARG_INT32(5));
	WindowPlace place;

	require_writable("bluegreen.interleave_sequences");
	check_length(sequence_array_values(PG_GETARG_ARRAYTYPE_P(3), INT8OID, &increments),
				 n);
	check_length(sequence_array_values(PG_GETARG_ARRAYTYPE_P(4), INT8OID, &first), n);
	place = lock_place(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	check_epoch(&place, PG_GETARG_INT64(1), false);
	for (int i = 0; i < n; i++)
		first[i] = Int64GetDatum(sequence_interleave(place.deployment->id,
													 DatumGetObjectId(sequences[i]),
													 DatumGetInt64(increments[i]),
													 DatumGetInt64(first[i])));
	AtEOXact_GUC(false, guc_level);
	PG_RETURN_ARRAYTYPE_P(construct_array(first, n, INT8OID, sizeof(int64),
										  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * bluegreen.restore_sequences(stream text, epoch bigint, sequences oid[],
 * at_least bigint[], lock_timeout integer) returns integer: the window is
 * closed, and this side stays; sequences_restore().
 */
Datum
bluegreen_restore_sequences(PG_FUNCTION_ARGS)
{
	Datum	   *sequences;
	Datum	   *values;
	int			n = sequence_array_values(PG_GETARG_ARRAYTYPE_P(2), OIDOID, &sequences);
	int			guc_level = set_lock_timeout(PG_GETARG_INT32(4));
	Oid		   *oids = palloc_array(Oid, n + 1);
	int64	   *at_least = palloc_array(int64, n + 1);
	WindowPlace place;
	int			restored = 0;

	require_writable("bluegreen.restore_sequences");
	check_length(sequence_array_values(PG_GETARG_ARRAYTYPE_P(3), INT8OID, &values), n);
	for (int i = 0; i < n; i++)
	{
		oids[i] = DatumGetObjectId(sequences[i]);
		at_least[i] = DatumGetInt64(values[i]);
	}
	place = lock_place(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	check_epoch(&place, PG_GETARG_INT64(1), true);
	if (place.deployment->window == WINDOW_CLOSING)
		restored = sequences_restore(place.deployment->id, n, oids, at_least,
									 false);
	AtEOXact_GUC(false, guc_level);
	PG_RETURN_INT32(restored);
}
