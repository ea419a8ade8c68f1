/*-------------------------------------------------------------------------
 *
 * session.c
 *		Sessions of users, for applications without a store of their own.
 *
 * A session is a row of bluegreen.session.  Both sides may write it at the
 * same time, and both get the other's row as a whole, sometime, in any order,
 * some of them twice.  So a row says by itself what is newer in it, and two rows of one
 * session are merged by rules that give the same whichever comes first
 * (session_merge.c): nobody has to be asked, no clock of the other side to be
 * trusted, and rows that were merged already change nothing.
 *
 *	data		the newer one, whole; on it each attribute that was written by
 *				itself since then, the newer of the two
 *	expires_at	the later one: a touch does not touch the data
 *	deleted_at	stays: the row remains as a tombstone, without its data, until
 *				it would have expired, and somewhat longer
 *
 * What is newer is told by a stamp [microseconds, writer].  It is the time, but
 * always later than the stamps that are in the row already.  So who has read
 * what the other side wrote (with a token, say) and then writes is newer,
 * whatever the clocks say; they decide only between writers that did not know
 * of each other.  The writer is a number of the database, for ties.
 *
 * To remove an expired row (session_purge.c) is not to log out: deletes are not
 * carried over, each side removes its own.
 *
 * The functions run as the bootstrap superuser, and only by key: an id is a
 * secret that its holder knows, and there is nothing else to learn here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "app/session.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/definition.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_create_session);
PG_FUNCTION_INFO_V1(bluegreen_read_session);
PG_FUNCTION_INFO_V1(bluegreen_touch_session);
PG_FUNCTION_INFO_V1(bluegreen_write_session);
PG_FUNCTION_INFO_V1(bluegreen_write_session_attribute);
PG_FUNCTION_INFO_V1(bluegreen_delete_session);

#define ID_BYTES 24				/* of a random id */

#define IS_LIVE "id = $1 AND deleted_at IS NULL " \
	"AND expires_at > clock_timestamp()"
/* $2: microseconds now, $3: the writer */
#define NEW_STAMP "greatest($2, stamp + 1)"
#define TOUCHED "expires_at = greatest(expires_at, " \
	"clock_timestamp() + lifetime)"

/*
 * This database, as the one that has written something.
 */
int64
session_writer(void)
{
	return (int64) (hash_combine64(GetSystemIdentifier(), MyDatabaseId) >> 11);
}

static char *
random_id(void)
{
	unsigned char bytes[ID_BYTES];
	char	   *id = palloc(2 * ID_BYTES + 1);

	if (!pg_strong_random(bytes, ID_BYTES))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	hex_encode((char *) bytes, ID_BYTES, id);
	id[2 * ID_BYTES] = '\0';
	return id;
}

static void
check_lifetime(Interval *lifetime)
{
	Interval	none = {0};

	if (!DatumGetBool(DirectFunctionCall1(interval_finite,
										  IntervalPGetDatum(lifetime))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lifetime of a session must be finite"),
				 errdetail("When it is deleted it is remembered until it would have expired.")));
	if (DatumGetBool(DirectFunctionCall2(interval_le,
										 IntervalPGetDatum(lifetime),
										 IntervalPGetDatum(&none))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lifetime of a session must be positive")));
}

static void
check_data(FunctionCallInfo fcinfo, int i)
{
	require_argument(fcinfo, i, "data");
	if (!JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(i)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("data of a session must be a JSON object")));
}

/*
 * The first arguments of every statement: session, time, writer.
 */
static void
begin_arguments(FunctionCallInfo fcinfo, CatalogArgs *args)
{
	int64		now = GetCurrentTimestamp() +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	require_argument(fcinfo, 0, "id");
	catalog_arg(args, TEXTOID, PG_GETARG_DATUM(0));
	catalog_arg(args, INT8OID, Int64GetDatum(now));
	catalog_arg(args, INT8OID, Int64GetDatum(session_writer()));
}

/*
 * Run an UPDATE of a live session: is there one?  Error if the function may not
 * write.
 */
static bool
change(const char *function, const char *sql, const CatalogArgs *args)
{
	CatalogAccess access;
	bool		found;

	require_writable(function);
	catalog_begin(&access);
	found = catalog_run(sql, args, SPI_OK_UPDATE) > 0;
	catalog_end(&access);
	if (!found)
		session_count(SESSION_MISSING, 1);
	session_note_write();
	return found;
}

/*
 * bluegreen.create_session(lifetime interval, data jsonb, id text) returns
 * text: a new session; its id is random unless given.  Errors: there is, or was, one
 * of that id.
 */
Datum
bluegreen_create_session(PG_FUNCTION_ARGS)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Datum		id;
	bool		created;

	require_argument(fcinfo, 0, "lifetime");
	check_lifetime(PG_GETARG_INTERVAL_P(0));
	check_data(fcinfo, 1);
	require_writable("bluegreen.create_session");
	id = PG_ARGISNULL(2) ? CStringGetTextDatum(random_id()) :
		PG_GETARG_DATUM(2);
	catalog_arg(&args, TEXTOID, id);
	catalog_arg(&args, INTERVALOID, PG_GETARG_DATUM(0));
	catalog_arg(&args, JSONBOID, PG_GETARG_DATUM(1));
	catalog_arg(&args, INT8OID, Int64GetDatum(session_writer()));
	catalog_begin(&access);
	created = catalog_run("INSERT INTO bluegreen.session "
						  "(id, data, written, stamp, lifetime, expires_at) "
						  "SELECT $1, $3, jsonb_build_array(s.us, $4), s.us, "
						  "$2, clock_timestamp() + $2 "
						  "FROM (SELECT (extract(epoch FROM clock_timestamp()) "
						  " * 1000000)::bigint AS us) s "
						  "ON CONFLICT DO NOTHING", &args, SPI_OK_INSERT) > 0;
	catalog_end(&access);
	if (!created)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("there is or was a session of this id"),
				 errhint("Give a new session an id of its own.")));
	session_note_write();
	PG_RETURN_DATUM(id);
}

/*
 * bluegreen.read_session(id text) returns jsonb: its data; null if there is no
 * such session any more.
 */
Datum
bluegreen_read_session(PG_FUNCTION_ARGS)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Datum		data = (Datum) 0;

	require_argument(fcinfo, 0, "id");
	catalog_arg(&args, TEXTOID, PG_GETARG_DATUM(0));
	catalog_begin(&access);
	if (catalog_run("SELECT data FROM bluegreen.session WHERE " IS_LIVE,
					&args, SPI_OK_SELECT) > 0)
		data = SPI_datumTransfer(catalog_value(0, 1, NULL), false, -1);
	catalog_end(&access);
	if (data == (Datum) 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(data);
}

/*
 * bluegreen.touch_session(id text, lifetime interval) returns boolean: it
 * expires later; after so long from now, or its own lifetime.  False if there
 * is no such session.
 */
Datum
bluegreen_touch_session(PG_FUNCTION_ARGS)
{
	CatalogArgs args = {0};

	require_argument(fcinfo, 0, "id");
	catalog_arg(&args, TEXTOID, PG_GETARG_DATUM(0));
	if (!PG_ARGISNULL(1))
		check_lifetime(PG_GETARG_INTERVAL_P(1));
	catalog_arg(&args, INTERVALOID,
				PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1));
	if (PG_ARGISNULL(1))
		args.nulls[1] = 'n';
	PG_RETURN_BOOL(change("bluegreen.touch_session",
						  "UPDATE bluegreen.session SET expires_at = "
						  "greatest(expires_at, clock_timestamp() "
						  "+ coalesce($2, lifetime)) WHERE " IS_LIVE, &args));
}

/*
 * bluegreen.write_session(id text, data jsonb) returns boolean: all of its
 * data; touches it.  False if there is no such session.
 */
Datum
bluegreen_write_session(PG_FUNCTION_ARGS)
{
	CatalogArgs args = {0};

	begin_arguments(fcinfo, &args);
	check_data(fcinfo, 1);
	catalog_arg(&args, JSONBOID, PG_GETARG_DATUM(1));
	PG_RETURN_BOOL(change("bluegreen.write_session",
						  "UPDATE bluegreen.session SET data = $4, "
						  "written = jsonb_build_array(" NEW_STAMP ", $3), "
						  "attributes = '{}', stamp = " NEW_STAMP ", " TOUCHED
						  " WHERE " IS_LIVE, &args));
}

/*
 * bluegreen.write_session_attribute(id text, name text, value jsonb) returns
 * boolean: one attribute of its data, which null removes; touches it.  False if
 * there is no such session.
 */
Datum
bluegreen_write_session_attribute(PG_FUNCTION_ARGS)
{
	CatalogArgs args = {0};

	begin_arguments(fcinfo, &args);
	require_argument(fcinfo, 1, "name");
	catalog_arg(&args, TEXTOID, PG_GETARG_DATUM(1));
	catalog_arg(&args, JSONBOID,
				PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2));
	if (PG_ARGISNULL(2))
		args.nulls[4] = 'n';
	PG_RETURN_BOOL(change("bluegreen.write_session_attribute",
						  "UPDATE bluegreen.session SET data = "
						  "CASE WHEN $5 IS NULL THEN data - $4 "
						  "ELSE data || jsonb_build_object($4, $5) END, "
						  "attributes = attributes || jsonb_build_object($4, "
						  "jsonb_build_array(" NEW_STAMP ", $3)), "
						  "stamp = " NEW_STAMP ", " TOUCHED
						  " WHERE " IS_LIVE, &args));
}

/*
 * bluegreen.delete_session(id text) returns boolean: a logout, also of one that
 * has expired: the other side may know better.  False if there is no such
 * session.
 */
Datum
bluegreen_delete_session(PG_FUNCTION_ARGS)
{
	CatalogArgs args = {0};

	begin_arguments(fcinfo, &args);
	PG_RETURN_BOOL(change("bluegreen.delete_session",
						  "UPDATE bluegreen.session SET "
						  "deleted_at = clock_timestamp(), data = '{}', "
						  "written = jsonb_build_array(" NEW_STAMP ", $3), "
						  "attributes = '{}', stamp = " NEW_STAMP
						  " WHERE id = $1 AND deleted_at IS NULL", &args));
}
