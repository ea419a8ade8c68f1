/*-------------------------------------------------------------------------
 *
 * token.c
 *		Tokens: read your writes across the two sides.
 *
 * bluegreen.token(), after a commit, gives a position of this side as a short
 * text, which an application keeps with its user (in a cookie, say).
 * bluegreen.wait_for_token() on the other side waits until the stream from here
 * has brought everything up to there, and others can see it.
 *
 *		b.3.1C0FFEE5A.016B3748.5F3A9C0D12345678.1A2B3C4D
 *		| | |         |        |                checksum of what is before it
 *		| | |         |        the deployment: hash of its forward stream's name
 *		| | |         position: no commit that its holder knows of lies behind it
 *		| | timeline of this server, and a hash of where that begins
 *		| epoch of this side (of its fence: moves so far)
 *		side: b or g
 *
 * A text that is not exactly what token() makes is refused: one that was cut
 * off could pass for an earlier position.  It is not signed.  Who makes up a
 * position has to wait, as long as he wants to; he learns nothing.
 *
 * What is true without waiting: a token of this side; and one that is older than
 * the move by which this side has become the only active one, because that
 * waited until everything was here (or a human has decided that nothing more
 * comes).  An epoch alone does not tell that: it also rises on one side, with a
 * move that is undone.
 *
 * A position means something on its timeline only.  If another server has taken
 * the source's place, or that was put back to an earlier state, the commit may
 * be in nobody's history any more, while positions go on beyond it.  So a token
 * of another timeline than that which the stream follows is never reached.
 *
 * A position is that of the end of this server's WAL, not of the session's
 * commit: behind a pooler the session that asks is often another one than that
 * which has committed; and others can see a commit before anybody is told of it.
 *
 * The procedure commits before it waits, so that no snapshot keeps vacuum from
 * its work.  A function cannot do that.  What is true of the tables is asked
 * again after waiting, and after the position was read: a table that was mapped
 * meanwhile is registered here before the stream passes the mapping.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/timeline.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "core/place.h"
#include "core/reached.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_token);
PG_FUNCTION_INFO_V1(bluegreen_wait_for_token);
PG_FUNCTION_INFO_V1(bluegreen_call_wait_for_token);

typedef struct Token
{
	char		side;			/* 'b' or 'g' */
	int64		epoch;
	uint64		timeline;		/* see timeline_id() */
	XLogRecPtr	lsn;
	uint64		deployment;		/* 0 = not known */
} Token;

/* What this database is in a deployment: a row of bluegreen.fence. */
typedef struct Place
{
	Token		token;			/* of this side, but for its position */
	int32		deployment;		/* of which it is the source; 0 = not */
	bool		retired;
	bool		open;			/* takes writes, and the other side does not */
	int64		activated;		/* epoch in which it became the active side */
	bool		follows;		/* all tables of the stream to here do, and it
								 * is not lost */
	char	   *stream;			/* from the other side to here; NULL = none */
	uint64		followed;		/* the timeline that it comes from; 0 = none */
} Place;

/* What can be said of a token at once. */
typedef enum Answer
{
	ANSWER_REACHED,
	ANSWER_NEVER,				/* nothing would bring it here */
	ANSWER_WAIT
} Answer;

/* ---- the text ---- */

/*
 * The same on all servers, whatever their version.
 */
static uint64
hash_name(const char *name)
{
	uint64		hash = UINT64CONST(0xcbf29ce484222325);

	for (const char *c = name; *c != '\0'; c++)
		hash = (hash ^ (unsigned char) *c) * UINT64CONST(0x100000001b3);
	return hash;
}

static char *
token_text(const Token *token)
{
	char	   *text = psprintf("%c." INT64_FORMAT ".%X%08X.%X%08X.%08X%08X",
								token->side, token->epoch,
								LSN_FORMAT_ARGS(token->timeline),
								LSN_FORMAT_ARGS(token->lsn),
								LSN_FORMAT_ARGS(token->deployment));
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, text, strlen(text));
	FIN_CRC32C(crc);
	return psprintf("%s.%08X", text, crc);
}

/*
 * Take a text apart.  Error unless it is one that token_text() makes.
 */
static Token
token_parse(const char *text)
{
	Token		token = {0};
	char	   *end = unconstify(char *, text);

	token.side = *end == '\0' ? '\0' : *end++;
	if (*end == '.')
		token.epoch = strtoll(end + 1, &end, 10);
	if (*end == '.')
		token.timeline = strtoull(end + 1, &end, 16);
	if (*end == '.')
		token.lsn = strtoull(end + 1, &end, 16);
	if (*end == '.')
		token.deployment = strtoull(end + 1, &end, 16);
	if ((token.side != 'b' && token.side != 'g') ||
		strcmp(token_text(&token), text) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid token"),
				 errdetail("It is not what bluegreen.token() has given, or not all of it."),
				 errhint("Go on as if there were none.")));
	return token;
}

/* ---- timelines ---- */

/*
 * Two standbys that are promoted may take the same number, so it goes with where
 * it begins.  The same on both sides.
 */
static uint64
timeline_id(TimeLineID tli, XLogRecPtr begin)
{
	uint64		hash = hash_name(psprintf("%X/%X", LSN_FORMAT_ARGS(begin)));

	return (uint64) tli << 32 | (uint32) (hash ^ hash >> 32);
}

/* As the target keeps it: source_timeline() of the other side. */
static uint64
parse_timeline(const char *text)
{
	uint32		tli = 0;
	uint32		hi = 0;
	uint32		lo = 0;

	if (text != NULL)
		(void) sscanf(text, "%u@%X/%X", &tli, &hi, &lo);
	return tli == 0 ? 0 : timeline_id(tli, (uint64) hi << 32 | lo);
}

/*
 * That of this server, which does not change while it runs.
 */
static uint64
own_timeline(void)
{
	static uint64 known = 0;

	if (known == 0)
		known = parse_timeline(source_timeline());
	return known;
}

/*
 * Is a position of this side's in this server's history?
 */
static bool
is_in_history(const Token *token)
{
	ListCell   *lc;

	if (token->timeline == own_timeline())
		return token->lsn <= GetXLogInsertEndRecPtr();
	foreach(lc, readTimeLineHistory(GetWALInsertionTimeLine()))
	{
		TimeLineHistoryEntry *entry = lfirst(lc);

		if (timeline_id(entry->tli, entry->begin) == token->timeline)
			return token->lsn <= entry->end;
	}
	return false;
}

/* ---- what this side is ---- */

/*
 * The deployment's forward stream tells it from all others; both sides know
 * its name.  False as long as it has none, but for a side that stays closed
 * when the deployment is gone.
 */
static bool
read_place(const CatalogAccess *access, uint64 row, Place *place)
{
	char	   *sysid = catalog_text(access, row, 6);
	char	   *state = catalog_text(access, row, 2);
	bool		isnull;
	const char *name;

	place->token.side = catalog_text(access, row, 1)[0];
	place->token.epoch = DatumGetInt64(catalog_value(row, 3, NULL));
	place->stream = catalog_text(access, row, 4);
	place->deployment = DatumGetInt32(catalog_value(row, 5, &isnull));
	place->follows = DatumGetBool(catalog_value(row, 7, NULL));
	place->followed = parse_timeline(catalog_text(access, row, 8));
	place->activated = DatumGetInt64(catalog_value(row, 9, NULL));
	place->retired = strcmp(state, "retired") == 0;
	place->open = (strcmp(state, "open") == 0 ||
				   strcmp(state, "raised") == 0) &&
		!DatumGetBool(catalog_value(row, 10, NULL));
	if (place->token.side == 'g')
		name = place->stream;
	else
		name = sysid == NULL ? NULL :
			stream_origin_name((uint64) strtoll(sysid, NULL, 10), MyDatabaseId,
							   place->deployment, 'f');
	if (name != NULL)
		place->token.deployment = hash_name(name);
	return name != NULL || place->retired;
}

/*
 * All that this database is, in the deployment of that name or in any.  *rows:
 * how many there are, those included that have no stream yet.
 */
static List *
load_places(Datum name, bool any, uint64 *rows)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *places = NIL;

	catalog_begin(&access);
	catalog_arg(&args, NAMEOID, name);
	if (any)
		args.nulls[0] = 'n';
	*rows = catalog_run("SELECT f.side, f.state, f.epoch, f.stream, "
						"COALESCE(f.deployment, 0), "
						"d.system_identifier::text, "
						"NOT EXISTS (SELECT FROM bluegreen.applied_table t "
						" WHERE t.stream = f.stream "
						" AND t.state <> 'streaming') "
						"AND NOT EXISTS (SELECT FROM bluegreen.applied_stream a "
						" WHERE a.name = f.stream AND a.lost IS NOT NULL), "
						"(SELECT a.timeline FROM bluegreen.applied_stream a "
						" WHERE a.name = f.stream), f.activated, f.window "
						"FROM bluegreen.fence f "
						"LEFT JOIN bluegreen.deployment d ON d.id = f.deployment "
						"WHERE $1 IS NULL OR f.name = $1",
						&args, SPI_OK_SELECT);
	for (uint64 i = 0; i < *rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(access.context);
		Place	   *place = palloc0_object(Place);

		if (read_place(&access, i, place))
			places = lappend(places, place);
		MemoryContextSwitchTo(old);
	}
	catalog_end(&access);
	return places;
}

static void
refuse_in_recovery(const char *function)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot execute %s during recovery", function),
				 errhint("Call it on the primary.")));
}

/* ---- token() ---- */

/*
 * The one place that a token can be meant for; NULL if there is none.
 */
static Place *
only_place(List *places, bool any)
{
	Place	   *result = NULL;
	ListCell   *lc;
	int			n = 0;

	foreach(lc, places)
	{
		Place	   *place = lfirst(lc);

		if ((any && place->retired) || place->token.deployment == 0)
			continue;
		result = place;
		n++;
	}
	if (n > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_ALIAS),
				 errmsg("this database takes part in %d deployments", n),
				 errhint("Name one: bluegreen.token(deployment).")));
	return result;
}

/*
 * The position behind all that was committed so far, on disk.  What commits
 * publish (wake.c) would not do: that is after others can see them.
 */
static XLogRecPtr
committed_position(void)
{
	XLogRecPtr	lsn = GetXLogInsertEndRecPtr();

	XLogFlush(lsn);				/* streams send nothing that is not */
	return lsn;
}

/*
 * bluegreen.token(deployment name DEFAULT NULL) returns text: where this side
 * is, for wait_for_token() on the other.  Null if there is no deployment that
 * was started.  Errors: in a transaction that has written, whose commit would
 * lie behind it; several deployments and none named; no such deployment.
 */
Datum
bluegreen_token(PG_FUNCTION_ARGS)
{
	bool		any = PG_ARGISNULL(0);
	List	   *places;
	Place	   *place;
	uint64		rows;
	StreamShared *stream;

	refuse_in_recovery("bluegreen.token");
	shared_require();
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("cannot make a token in a transaction that has written"),
				 errdetail("What it has written is not committed, so nobody could wait for it."),
				 errhint("Commit, then call bluegreen.token().")));
	places = load_places(any ? (Datum) 0 : PG_GETARG_DATUM(0), any, &rows);
	if (rows == 0 && !any)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("deployment \"%s\" does not exist",
						NameStr(*PG_GETARG_NAME(0)))));
	place = only_place(places, any);
	if (place == NULL)
		PG_RETURN_NULL();
	place->token.timeline = own_timeline();
	place->token.lsn = committed_position();
	stream = place->deployment == 0 ? NULL :
		stream_of_deployment(place->deployment);
	if (stream != NULL)
		stream_want_told(stream, place->token.lsn);
	PG_RETURN_TEXT_P(cstring_to_text(token_text(&place->token)));
}

/* ---- wait_for_token() ---- */

/*
 * What this side is in a token's deployment.  If it is a side that stays closed
 * without its deployment: that may have been it.
 */
static Place *
find_place(List *places, const Token *token)
{
	Place	   *closed = NULL;
	ListCell   *lc;

	foreach(lc, places)
	{
		Place	   *place = lfirst(lc);

		if (place->token.deployment == token->deployment)
			return place;
		if (place->token.deployment == 0)
			closed = place;
	}
	if (closed == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("token is of a deployment that this database does not take part in"),
				 errhint("Go on as if there were none.")));
	return closed;
}

/*
 * What can be said, if the stream from the other side is at this position: one
 * that was read before.  If one must wait: for which stream.
 */
static Answer
look(const Token *token, XLogRecPtr position, ReachedWatch *watch)
{
	uint64		rows;
	List	   *places = load_places((Datum) 0, true, &rows);
	Place	   *place;

	if (rows == 0)
		return ANSWER_REACHED;	/* there is no other side any more */
	place = find_place(places, token);
	if (place->token.side == token->side)
		return is_in_history(token) ? ANSWER_REACHED : ANSWER_NEVER;
	if (place->open && place->activated > token->epoch)
		return ANSWER_REACHED;
	if (place->retired || place->stream == NULL || !place->follows)
		return ANSWER_NEVER;
	reached_watch(watch, place->stream);
	if (place->followed == token->timeline)
		return position >= token->lsn ? ANSWER_REACHED : ANSWER_WAIT;
	/* a server that has just become the source will be followed soon */
	return place->followed >> 32 < token->timeline >> 32 &&
		position < token->lsn ? ANSWER_WAIT : ANSWER_NEVER;
}

/*
 * Wait for what a token stands for.  Commits, if told so, before it waits.
 */
static bool
wait_until_reached(const Token *token, TimestampTz end, bool commit)
{
	ReachedWatch watch;
	XLogRecPtr	position;
	Answer		answer = look(token, InvalidXLogRecPtr, &watch);

	if (answer != ANSWER_WAIT)
		return answer == ANSWER_REACHED;
	position = reached_position(&watch);
	if (position < token->lsn)
	{
		if (commit)
			SPI_commit();		/* no snapshot while we wait */
		position = reached_wait(&watch, token->lsn, end);
	}
	return look(token, position, &watch) == ANSWER_REACHED;
}

static TimestampTz
deadline(FunctionCallInfo fcinfo)
{
	require_argument(fcinfo, 1, "timeout");
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   PG_GETARG_DATUM(1)));
}

/*
 * bluegreen.wait_for_token(token text, timeout interval) returns boolean: wait
 * until what the token stands for can be seen here; false if that is not so
 * after the timeout.  True for null.  The statement's snapshot is held while it
 * waits, and does not show what came meanwhile; the next statement's does.
 * Errors: no token, or of another deployment; the transaction has one snapshot
 * for all statements.
 */
Datum
bluegreen_wait_for_token(PG_FUNCTION_ARGS)
{
	TimestampTz end = deadline(fcinfo);
	Token		token;

	refuse_in_recovery("bluegreen.wait_for_token");
	shared_require();
	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(true);
	token = token_parse(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("cannot wait for a token in a transaction whose snapshot is taken"),
				 errdetail("It would not see what it has waited for."),
				 errhint("Wait before the transaction begins, or use READ COMMITTED.")));
	PG_RETURN_BOOL(wait_until_reached(&token, end, false));
}

static bool
call_wait(const char *text, TimestampTz end)
{
	Token		token = token_parse(text);
	bool		result;

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	result = wait_until_reached(&token, end, true);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	return result;
}

/*
 * CALL bluegreen.wait_for_token(token text, timeout interval, INOUT reached
 * boolean): the same without a snapshot.  Commits if it has to wait.
 */
Datum
bluegreen_call_wait_for_token(PG_FUNCTION_ARGS)
{
	CallContext *context = (CallContext *) fcinfo->context;
	TimestampTz end = deadline(fcinfo);
	TupleDesc	desc;
	Datum		values[1];
	bool		nulls[1] = {false};

	refuse_in_recovery("bluegreen.wait_for_token");
	shared_require();
	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s cannot run inside a transaction block",
						"CALL bluegreen.wait_for_token"),
				 errhint("Call it before the transaction begins, or use SELECT bluegreen.wait_for_token().")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	values[0] = BoolGetDatum(PG_ARGISNULL(0) ||
							 call_wait(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									   end));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
