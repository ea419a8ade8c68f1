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
 *		b.3.16B3748.5F3A9C0D12345678.1A2B3C4D
 *		| | |       |                checksum of what is before it
 *		| | |       the deployment: hash of its forward stream's name
 *		| | position: no commit that its holder knows of lies behind it
 *		| epoch of this side (core of the fence: moves so far)
 *		side: b or g
 *
 * A text that is not exactly what token() makes is refused: one that was cut
 * off could pass for an earlier position.  It is not signed.  Who makes up a
 * position has to wait, as long as he wants to; he learns nothing.
 *
 * What is true without waiting: a token of this side; and one of a former epoch
 * on the side that has become the only active one since, because the move
 * waited until everything was here (or a human has decided that nothing more
 * comes).
 *
 * A position is that of the last commit on this server, not of the session:
 * behind a pooler the session that asks is often another one than that which
 * has committed.
 *
 * The procedure commits before it waits, so that no snapshot keeps vacuum from
 * its work.  A function cannot do that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
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
	XLogRecPtr	lsn;
	uint64		deployment;
} Token;

/* What this database is in a deployment: a row of bluegreen.fence. */
typedef struct Place
{
	Token		token;			/* of this side, but for its position */
	int32		deployment;		/* of which it is the source; 0 = not */
	bool		retired;
	bool		open;			/* takes writes, and the other side does not */
	bool		follows;		/* all tables of the stream to here do, and it
								 * is not lost */
	char	   *stream;			/* from the other side to here; NULL = none */
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
	char	   *text = psprintf("%c." INT64_FORMAT ".%X%08X.%08X%08X",
								token->side, token->epoch,
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

/* ---- what this side is ---- */

/*
 * The deployment's forward stream tells it from all others; both sides know
 * its name.  False as long as it has none.
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
	place->retired = strcmp(state, "retired") == 0;
	place->open = (strcmp(state, "open") == 0 ||
				   strcmp(state, "raised") == 0) &&
		!DatumGetBool(catalog_value(row, 8, NULL));
	if (place->token.side == 'g')
		name = place->stream;
	else
		name = sysid == NULL ? NULL :
			stream_origin_name((uint64) strtoll(sysid, NULL, 10), MyDatabaseId,
							   place->deployment, 'f');
	if (name == NULL)
		return false;
	place->token.deployment = hash_name(name);
	return true;
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
						"f.window FROM bluegreen.fence f "
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

		if (any && place->retired)
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
 * The position behind all that was committed so far, on disk.  Commits tell
 * theirs while there are streams on this server.
 */
static XLogRecPtr
committed_position(void)
{
	XLogRecPtr	lsn = shared_has_streams() ? wake_last_commit() :
		GetXLogInsertEndRecPtr();

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
	place->token.lsn = committed_position();
	stream = place->deployment == 0 ? NULL :
		stream_of_deployment(place->deployment);
	if (stream != NULL)
		stream_want_told(stream, place->token.lsn);
	PG_RETURN_TEXT_P(cstring_to_text(token_text(&place->token)));
}

/* ---- wait_for_token() ---- */

static Place *
find_place(List *places, const Token *token)
{
	ListCell   *lc;

	foreach(lc, places)
	{
		Place	   *place = lfirst(lc);

		if (place->token.deployment == token->deployment)
			return place;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("token is of a deployment that this database does not take part in"),
			 errhint("Go on as if there were none.")));
	return NULL;				/* keep compiler quiet */
}

/*
 * What can be said at once; if one must wait: for which stream.
 */
static Answer
look(const Token *token, char **stream)
{
	uint64		rows;
	List	   *places = load_places((Datum) 0, true, &rows);
	Place	   *place;

	if (rows == 0)
		return ANSWER_REACHED;	/* there is no other side any more */
	place = find_place(places, token);
	if (place->token.side == token->side)
		return token->lsn <= GetXLogInsertEndRecPtr() ? ANSWER_REACHED :
			ANSWER_NEVER;
	if (place->open && place->token.epoch > token->epoch)
		return ANSWER_REACHED;
	if (place->stream == NULL || !place->follows)
		return ANSWER_NEVER;
	*stream = place->stream;
	return reached_position(place->stream) >= token->lsn ? ANSWER_REACHED :
		ANSWER_WAIT;
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
	char	   *stream;
	Answer		answer;

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
	answer = look(&token, &stream);
	PG_RETURN_BOOL(answer == ANSWER_REACHED ||
				   (answer == ANSWER_WAIT &&
					reached_wait(stream, token.lsn, end)));
}

static bool
call_wait(FunctionCallInfo fcinfo, const char *text, TimestampTz end)
{
	MemoryContext caller = CurrentMemoryContext;
	Token		token = token_parse(text);
	char	   *stream = NULL;
	Answer		answer;

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	answer = look(&token, &stream);
	if (answer == ANSWER_WAIT)
	{
		stream = MemoryContextStrdup(caller, stream);
		SPI_commit();			/* no snapshot while we wait */
		if (reached_wait(stream, token.lsn, end))
			answer = ANSWER_REACHED;
	}
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	return answer == ANSWER_REACHED;
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
							 call_wait(fcinfo,
									   text_to_cstring(PG_GETARG_TEXT_PP(0)),
									   end));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
