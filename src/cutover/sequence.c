/*-------------------------------------------------------------------------
 *
 * sequence.c
 *		Sequences of the side that is about to be activated are moved beyond
 *		what was handed out on either side.
 *
 * Rows go from side to side, sequences do not: the target's stand where they
 * were made.  Before a side opens, each of its sequences that goes with one of
 * ours is restarted beyond what ours has handed out, beyond what is in its
 * columns and beyond itself, never the other way.
 *
 * Nothing can stop nextval() here: it takes no lock that a fence could hold,
 * and sessions have cached values.  Cached ones are no harm, since a sequence
 * stands behind them.  For those that somebody draws after we have looked,
 * there is a margin: bluegreen.sequence_margin values and the sequence's
 * CACHE, in steps of ours.  After the switch we look again whether it was
 * enough (sequences_check_margin).
 *
 * All of it happens in one statement over there (sequence_target.c), which
 * can be repeated: the second time it finds nothing to move, but still drops
 * what sessions have cached.  RESTART waits for transactions that have used
 * the sequence, and those that want to use it wait for it.  So it waits for
 * short times only, and tries again.
 *
 * What goes together is found by sequence_query.c, where to go by
 * sequence_value.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlogdefs.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/settings.h"
#include "cutover/preflight.h"
#include "cutover/sequence.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(bluegreen_sequences);
PG_FUNCTION_INFO_V1(bluegreen_move_sequences);
PG_FUNCTION_INFO_V1(bluegreen_check_sequences);

#define LOCK_TIMEOUT_MS	300		/* for one sequence, each time */
#define RETRY_MS		100		/* in which others may go on */
#define CALL_TIMEOUT_MS	30000	/* of bluegreen.move_sequences() */

/* ---- what is to be done ---- */

List *
sequences_plan(const Deployment *deployment, Peer *to)
{
	List	   *moves = sequences_find(deployment, to, NULL);
	ListCell   *lc;

	foreach(lc, moves)
	{
		sequence_decide(lfirst(lc), bg_sequence_margin);
	}
	return moves;
}

/*
 * What is wrong with a move, or NULL.
 */
char *
sequence_message(const SequenceMove *move)
{
	switch (move->verdict)
	{
		case SEQUENCE_OK:
			break;
		case SEQUENCE_TIGHT:
			return psprintf("sequence %s has only " UINT64_FORMAT " values left after the switch, and no room for bluegreen.sequence_margin",
							move->name, move->left);
		case SEQUENCE_WRAPS:
			return psprintf("sequence %s has reached its end and begins anew: values come a second time",
							move->name);
		case SEQUENCE_EXHAUSTED:
			return psprintf("sequence %s has no value left beyond those in use",
							move->name);
		case SEQUENCE_DENIED:
			return psprintf("role \"%s\" may not move sequence %s",
							move->role, move->name);
	}
	return NULL;
}

/*
 * What mends it, as a preflight prints it, or NULL.
 */
char *
sequence_hint(const SequenceMove *move, const Deployment *deployment)
{
	switch (move->verdict)
	{
		case SEQUENCE_DENIED:
			return psprintf("-- on green\nGRANT SELECT, UPDATE ON SEQUENCE %s TO %s;",
							move->name, quote_identifier(move->role));
		case SEQUENCE_EXHAUSTED:
			return psprintf("-- on green\n-- give its column and the sequence a larger type\nALTER SEQUENCE %s AS bigint %s;",
							move->name, move->increment < 0 ?
							"NO MINVALUE" : "NO MAXVALUE");
		case SEQUENCE_TIGHT:
		case SEQUENCE_WRAPS:
			return psprintf("-- on blue\nSELECT bluegreen.accept(%s, '%s', %s);",
							quote_literal_cstr(deployment->name),
							SEQUENCE_CHECK, quote_literal_cstr(move->name));
		default:
			return NULL;
	}
}

static bool
is_movable(const SequenceMove *move)
{
	return move->verdict < SEQUENCE_EXHAUSTED;
}

/*
 * Has somebody accepted what a check finds about a sequence?
 */
bool
sequence_is_accepted(const Deployment *deployment, const char *check,
					 const char *object)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		found;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_text(&args, check);
	catalog_arg_text(&args, object);
	found = catalog_run("SELECT FROM bluegreen.accepted WHERE deployment = $1 "
						"AND \"check\" = $2 AND object = $3", &args,
						SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return found;
}

/*
 * The moves that can be made; error if one cannot and nobody has accepted it.
 */
static List *
movable(const Deployment *deployment, List *moves)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, moves)
	{
		SequenceMove *move = lfirst(lc);

		if (is_movable(move))
			result = lappend(result, move);
		else if (!sequence_is_accepted(deployment, SEQUENCE_CHECK,
									   move->name))
			ereport(ERROR,
					(errcode(move->verdict == SEQUENCE_DENIED ?
							 ERRCODE_INSUFFICIENT_PRIVILEGE :
							 ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
					 errmsg("%s", sequence_message(move)),
					 errhint("%s", sequence_hint(move, deployment))));
	}
	return result;
}

/* ---- moving ---- */

/* Arguments of restart_sequences(), as texts of arrays. */
static void
describe_moves(List *moves, const char **args)
{
	StringInfoData texts[3];
	ListCell   *lc;

	for (int i = 0; i < lengthof(texts); i++)
		initStringInfo(&texts[i]);
	foreach(lc, moves)
	{
		SequenceMove *move = lfirst(lc);
		char		separator = texts[0].len > 0 ? ',' : '{';

		appendStringInfo(&texts[0], "%c%u", separator, move->oid);
		appendStringInfo(&texts[1], "%c" INT64_FORMAT, separator, move->first);
		appendStringInfo(&texts[2], "%c%c", separator,
						 move->verdict == SEQUENCE_WRAPS ? 't' : 'f');
	}
	for (int i = 0; i < lengthof(texts); i++)
	{
		appendStringInfoChar(&texts[i], '}');
		args[i] = texts[i].data;
	}
}

static void
wait_before_retry(void)
{
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("BluegreenSequence");
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 RETRY_MS, event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * Have the sequences restarted, and note in each move what it gives next.
 */
static void
restart(List *moves, Peer *to, int timeout)
{
	static const char sql[] =
		"SELECT v FROM pg_catalog.unnest(bluegreen.restart_sequences("
		"$1::oid[], $2::bigint[], $3::boolean[], $4::integer)) WITH ORDINALITY"
		" AS u (v, n) ORDER BY n";
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   timeout);
	const char *args[4];
	PeerResult *result;
	PeerError	error;
	ListCell   *lc;

	describe_moves(moves, args);
	args[3] = psprintf("%d", Max(Min(LOCK_TIMEOUT_MS, timeout), 1));
	while ((result = peer_try_query(to, sql, lengthof(args), args,
									&error)) == NULL)
	{
		bool		locked = strcmp(error.sqlstate, "55P03") == 0 ||
			strcmp(error.sqlstate, "40P01") == 0;

		if (!locked || GetCurrentTimestamp() >= deadline)
			peer_rethrow(&error, locked ?
						 "waiting for transactions that use a sequence" :
						 "moving sequences");
		wait_before_retry();
	}
	if (result->ntuples != list_length(moves))
		elog(ERROR, "unexpected answer about sequences");
	foreach(lc, moves)
	{
		((SequenceMove *) lfirst(lc))->first =
			strtoll(result->values[foreach_current_index(lc)][0], NULL, 10);
	}
}

/*
 * Keep what was done, for sequences_check_margin().
 */
void
sequences_keep(const Deployment *deployment, List *moves)
{
	CatalogAccess access;
	CatalogArgs id = {0};
	ListCell   *lc;

	catalog_begin(&access);
	catalog_arg_int4(&id, deployment->id);
	catalog_run("DELETE FROM bluegreen.sequence_move WHERE deployment = $1",
				&id, SPI_OK_DELETE);
	foreach(lc, moves)
	{
		SequenceMove *move = lfirst(lc);
		ListCell   *lc2;

		if (move->verdict == SEQUENCE_WRAPS)
			continue;			/* where values come again, none is too far */
		foreach(lc2, move->sources)
		{
			SequenceSource *source = lfirst(lc2);
			CatalogArgs args = {0};

			catalog_arg_int4(&args, deployment->id);
			catalog_arg(&args, OIDOID, ObjectIdGetDatum(source->oid));
			catalog_arg_text(&args, move->name);
			catalog_arg(&args, INT8OID, Int64GetDatum(move->increment));
			catalog_arg(&args, INT8OID, Int64GetDatum(source->last));
			catalog_arg(&args, INT8OID, Int64GetDatum(move->first));
			catalog_run("INSERT INTO bluegreen.sequence_move (deployment, "
						"sequence, target, increment, last_value, moved_to) "
						"VALUES ($1, $2, $3, $4, $5, $6)", &args,
						SPI_OK_INSERT);
		}
	}
	catalog_end(&access);
}

int
sequences_move(const Deployment *deployment, Peer *to, int timeout)
{
	List	   *moves = movable(deployment, sequences_plan(deployment, to));

	if (moves != NIL)
		restart(moves, to, timeout);
	sequences_keep(deployment, moves);
	return list_length(moves);
}

/* ---- afterwards ---- */

/* A sequence of this side that has run into what the other one hands out. */
static void
report_overrun(const Deployment *deployment, const CatalogAccess *access,
			   uint64 row)
{
	char	   *message = psprintf("sequence %s of the closed side is at %s, and sequence %s of the active side began at %s",
								   catalog_text(access, row, 1),
								   catalog_text(access, row, 2),
								   catalog_text(access, row, 3),
								   catalog_text(access, row, 4));

	event_record_local(deployment->id, EVENT_SEQUENCES, InvalidXLogRecPtr,
					   message,
					   "Somebody goes on to use it; values come twice.");
	ereport(WARNING,
			(errmsg("%s", message),
			 errdetail("Somebody goes on to use it; values come twice."),
			 errhint("End that, and call bluegreen.move_sequences().")));
}

int
sequences_check_margin(const Deployment *deployment)
{
	static const char sql[] =
		"SELECT format('%I.%I', n.nspname, c.relname), p.last_value::text,"
		" m.target, m.moved_to::text"
		" FROM bluegreen.sequence_move m JOIN pg_class c ON c.oid = m.sequence"
		"  JOIN pg_namespace n ON n.oid = c.relnamespace"
		"  JOIN pg_sequence s ON s.seqrelid = c.oid"
		"   AND sign(s.seqincrement) = sign(m.increment)"
		"  CROSS JOIN LATERAL bluegreen.sequence_position(c.oid) p"
		" WHERE m.deployment = $1 AND p.is_called"
		"  AND p.last_value <> m.last_value AND CASE WHEN m.increment < 0"
		"   THEN p.last_value <= m.moved_to ELSE p.last_value >= m.moved_to END"
		" ORDER BY 1, 3";
	CatalogAccess access;
	CatalogArgs args = {0};
	SPITupleTable *rows;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	n = catalog_run(sql, &args, SPI_OK_SELECT);
	rows = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		SPI_tuptable = rows;	/* another query may have run meanwhile */
		report_overrun(deployment, &access, i);
	}
	catalog_end(&access);
	return (int) n;
}

/* ---- the functions ---- */

static char *
source_names(const SequenceMove *move, bool values)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, move->sources)
	{
		SequenceSource *source = lfirst(lc);

		appendStringInfoString(&buf, buf.len > 0 ? ", " : "");
		if (!values)
			appendStringInfoString(&buf, source->name);
		else if (source->called)
			appendStringInfo(&buf, INT64_FORMAT, source->last);
		else
			appendStringInfoString(&buf, "unused");
	}
	return buf.len > 0 ? buf.data : NULL;
}

static const char *
action_of(const SequenceMove *move, int64 first)
{
	if (!is_movable(move))
		return "none";
	if (move->verdict == SEQUENCE_WRAPS)
		return "wrap";
	if (!move->called && first == move->last)
		return "keep";
	return "move";
}

static void
put_move(const SequenceMove *move, const Deployment *deployment,
		 ReturnSetInfo *rsinfo)
{
	Datum		values[8] = {0};
	bool		nulls[8];
	const char *texts[8] = {0};
	int64		first = move->first;

	memset(nulls, true, sizeof(nulls));
	if (is_movable(move) && move->verdict != SEQUENCE_WRAPS)
		(void) sequence_next(move, move->first, &first);
	texts[0] = move->name;
	texts[1] = source_names(move, false);
	texts[2] = source_names(move, true);
	texts[5] = action_of(move, first);
	texts[6] = sequence_message(move);
	texts[7] = sequence_hint(move, deployment);
	for (int i = 0; i < lengthof(texts); i++)
	{
		if (texts[i] == NULL)
			continue;
		values[i] = CStringGetTextDatum(texts[i]);
		nulls[i] = false;
	}
	if (move->readable && move->called)
	{
		values[3] = Int64GetDatum(move->last);
		nulls[3] = false;
	}
	if (is_movable(move))
	{
		values[4] = Int64GetDatum(first);
		nulls[4] = false;
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * bluegreen.sequences(deployment name) returns setof record: the sequences of
 * the other side that mapped tables use, those of this side that go with them,
 * and what a move would do.  Reads both sides.  Errors: no such deployment;
 * not its owner; no connection.
 */
Datum
bluegreen_sequences(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	Peer	   *peer;
	ListCell   *lc;

	require_argument(fcinfo, 0, "deployment");
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	InitMaterializedSRF(fcinfo, 0);
	peer = registry_connect(deployment, false);
	foreach(lc, sequences_plan(deployment, peer))
	{
		put_move(lfirst(lc), deployment, (ReturnSetInfo *) fcinfo->resultinfo);
	}
	peer_close(peer);
	return (Datum) 0;
}

/*
 * bluegreen.move_sequences(deployment name) returns integer: move the other
 * side's sequences beyond this side's.  A switchover does that, too; here it is
 * for who wants it earlier, or again.  Returns how many there are.  Errors: no
 * such deployment; not its owner; those of sequences_move().
 */
Datum
bluegreen_move_sequences(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	Peer	   *peer;
	int			n;

	require_argument(fcinfo, 0, "deployment");
	require_writable("bluegreen.move_sequences");
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	peer = registry_connect(deployment, false);
	n = sequences_move(deployment, peer, CALL_TIMEOUT_MS);
	peer_close(peer);
	event_record_local(deployment->id, EVENT_SEQUENCES, InvalidXLogRecPtr,
					   psprintf("%d sequences of the other side were moved", n),
					   NULL);
	PG_RETURN_INT32(n);
}

/*
 * bluegreen.check_sequences(deployment name) returns integer: how many
 * sequences of this side have run beyond the margin since they were left; see
 * sequences_check_margin().  Errors: no such deployment; not its owner.
 */
Datum
bluegreen_check_sequences(PG_FUNCTION_ARGS)
{
	Deployment *deployment;

	require_argument(fcinfo, 0, "deployment");
	require_writable("bluegreen.check_sequences");
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	PG_RETURN_INT32(sequences_check_margin(deployment));
}
