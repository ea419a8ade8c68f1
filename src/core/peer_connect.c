/*-------------------------------------------------------------------------
 *
 * peer_connect.c
 *		Opening the connection to the other cluster.
 *
 * Who may connect how is decided as postgres_fdw does it: the options are
 * those of the foreign server and of the user's mapping, and a user who is no
 * superuser must bring a password of his own and the peer must have asked for
 * it, so that he can't borrow what the server's operating system user has.
 *
 * Secrets go into libpq and nowhere else.  A message here names the server,
 * or host, port and database; libpq's own messages carry host, port, user,
 * database and file names, never a password.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "core/peer_int.h"
#include "core/settings.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define FDW_NAME			"pg_bluegreen"

/* Options handed to libpq; a later one wins over an earlier one. */
typedef struct ConnectParams
{
	int			n;
	const char **keywords;
	const char **values;
} ConnectParams;

/* A setting of the peer's session. */
typedef struct SessionSetting
{
	const char *name;
	const char *value;
	int			since;			/* server version that has it */
} SessionSetting;

/*
 * Pinned from the first byte on, because text that either end writes or reads
 * depends on them (worker_pin_settings() does the same on this end).
 */
static const SessionSetting startup_settings[] = {
	{"datestyle", "ISO"},
	{"intervalstyle", "postgres"},
	{"extra_float_digits", "3"},
	{"timezone", "UTC"},
	{"default_transaction_read_only", "off"},	/* a sign for clients only */
	{"jit", "off"},				/* of queries that run once */
	{NULL}
};

/*
 * What a session that applies changes needs beyond that: no limit of the role
 * or database ends a batch, text is read and written alike on both ends, keyed
 * statements keep their plan.  That triggers and foreign keys stay silent, and
 * what they may do if they don't, is begin_apply()'s, on the peer (guard.c).
 */
static const SessionSetting apply_settings[] = {
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	{"synchronous_commit", "on"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	{"transaction_timeout", "0", 170000},
	{"row_security", "off"},
	{"lc_monetary", "C"},
	{"lc_numeric", "C"},
	{"lc_time", "C"},
	{"bytea_output", "hex"},
	{"array_nulls", "on"},
	{"xmloption", "content"},
	{"default_text_search_config", "pg_catalog.simple"},
	{"plan_cache_mode", "force_generic_plan"},
	{NULL}
};

/*
 * Backends from 15.20 on know which libpq options are safe to take from users
 * (later minors of the other branches too).  Bound weakly, so that one build
 * works with servers that have the function and with those that don't.
 */
#if defined(__ELF__) && (defined(__GNUC__) || defined(__clang__))
extern bool libpqsrv_is_valid_proxy_option(const char *keyword)
			__attribute__((weak));
#define proxy_option_is_valid(keyword) \
	(libpqsrv_is_valid_proxy_option == NULL || \
	 libpqsrv_is_valid_proxy_option(keyword))
#else
#define proxy_option_is_valid(keyword) true
#endif


/*
 * libpq's connection options, of whatever version is installed.  Returns an
 * array that lives as long as the process, its length in *count.
 */
const PeerOption *
peer_options(int *count)
{
	static PeerOption *options = NULL;
	static int	noptions = 0;

	if (options == NULL)
	{
		PQconninfoOption *all = PQconndefaults();
		PeerOption *result;
		int			n = 0;

		if (all == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_OUT_OF_MEMORY),
					 errmsg("out of memory"),
					 errdetail("Could not get libpq's default connection options.")));
		while (all[n].keyword != NULL)
			n++;
		result = MemoryContextAlloc(TopMemoryContext, sizeof(PeerOption) * n);
		for (int i = 0; i < n; i++)
		{
			result[i].keyword = MemoryContextStrdup(TopMemoryContext,
													all[i].keyword);
			result[i].secret = strchr(all[i].dispchar, '*') != NULL;
			result[i].debug = strchr(all[i].dispchar, 'D') != NULL;
		}
		PQconninfoFree(all);
		options = result;
		noptions = n;
	}
	*count = noptions;
	return options;
}

static void
add_param(ConnectParams *params, const char *keyword, const char *value)
{
	params->keywords[params->n] = keyword;
	params->values[params->n] = value;
	params->n++;
	params->keywords[params->n] = params->values[params->n] = NULL;
}

/* Value of an option, or NULL; the last one counts. */
static const char *
find_param(const ConnectParams *params, const char *keyword)
{
	for (int i = params->n - 1; i >= 0; i--)
	{
		if (strcmp(params->keywords[i], keyword) == 0)
			return params->values[i];
	}
	return NULL;
}

/* Add the options of a server or user mapping, without our own. */
static void
add_generic_options(ConnectParams *params, List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, "password_required") == 0)
			continue;
		if (!proxy_option_is_valid(def->defname))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to set connection option \"%s\"",
							def->defname)));
		add_param(params, def->defname, defGetString(def));
	}
}

/*
 * TCP notices a peer that is gone while nothing is under way to it, after
 * bluegreen.peer_timeout: half of it until the first probe, then three.  Where
 * an answer is due, peer_probe.c looks after it.
 */
static void
add_timeouts(ConnectParams *params)
{
	int			seconds = Max(bg_peer_timeout / 1000, 1);

	add_param(params, "connect_timeout", psprintf("%d", bg_connect_timeout));
	add_param(params, "keepalives", "1");
	add_param(params, "keepalives_idle", psprintf("%d", Max(seconds / 2, 1)));
	add_param(params, "keepalives_interval",
			  psprintf("%d", Max(seconds / 6, 1)));
	add_param(params, "keepalives_count", "3");
}

/*
 * The user's own startup options with ours behind them: of two settings of one
 * parameter the later one counts, and ours must.
 */
static char *
startup_options(const char *own)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (own != NULL)
		appendStringInfoString(&buf, own);
	for (const SessionSetting *s = startup_settings; s->name != NULL; s++)
		appendStringInfo(&buf, " -c %s=%s", s->name, s->value);
	return buf.data;
}

static void
build_params(ConnectParams *params, ForeignServer *server, UserMapping *user,
			 const char *application_name)
{
	int			max = list_length(server->options) +
		list_length(user->options) + 12;

	params->n = 0;
	params->keywords = palloc(sizeof(char *) * max);
	params->values = palloc(sizeof(char *) * max);
	add_timeouts(params);
	add_generic_options(params, server->options);
	add_generic_options(params, user->options);
	add_param(params, "options",
			  startup_options(find_param(params, "options")));
	add_param(params, "application_name", application_name);
	add_param(params, "client_encoding", GetDatabaseEncodingName());
}

/* Did a superuser exempt this mapping from bringing a password? */
static bool
password_required(UserMapping *user)
{
	ListCell   *lc;

	foreach(lc, user->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, "password_required") == 0)
			return defGetBoolean(def);
	}
	return true;
}

/*
 * A user who is no superuser must not get in with what libpq finds in the
 * server's home directory or environment: before connecting, the mapping must
 * hold a password.
 */
static void
check_password_given(const ConnectParams *params, UserMapping *user)
{
	const char *password = find_param(params, "password");

	if (superuser_arg(user->userid) || !password_required(user) ||
		(password != NULL && password[0] != '\0'))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
			 errmsg("password is required"),
			 errdetail("Non-superusers must provide a password in the user mapping.")));
}

/* ... and after connecting, the peer must have asked for it. */
static void
check_password_used(PGconn *conn, UserMapping *user)
{
	if (superuser_arg(user->userid) || !password_required(user) ||
		PQconnectionUsedPassword(conn))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
			 errmsg("password is required"),
			 errdetail("Non-superuser cannot connect if the server does not request a password."),
			 errhint("Target server's authentication method must be changed or password_required=false set in the user mapping attributes.")));
}

/* Only servers of our own wrapper, and only for those who may use them. */
static void
check_server(ForeignServer *server, Oid userid)
{
	ForeignDataWrapper *fdw = GetForeignDataWrapper(server->fdwid);

	if (strcmp(fdw->fdwname, FDW_NAME) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" does not belong to foreign-data wrapper \"%s\"",
						server->servername, FDW_NAME),
				 errhint("Create the peer's server with FOREIGN DATA WRAPPER %s.",
						 FDW_NAME)));
	if (!DatumGetBool(DirectFunctionCall3(has_server_privilege_id_id,
										  ObjectIdGetDatum(userid),
										  ObjectIdGetDatum(server->serverid),
										  CStringGetTextDatum("USAGE"))))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FOREIGN_SERVER,
					   server->servername);
}

/*
 * Remote notices are for those who debug, unless somebody wants them; a FATAL
 * is kept as last words.
 */
static void
peer_notice_receiver(void *arg, const PGresult *res)
{
	Peer	   *peer = arg;
	const char *severity = PQresultErrorField(res,
											  PG_DIAG_SEVERITY_NONLOCALIZED);
	PeerError	notice;

	peer_note_error(peer, res, &notice);
	if (peer->show_notices && severity != NULL &&
		(strcmp(severity, "NOTICE") == 0 || strcmp(severity, "WARNING") == 0))
		ereport(severity[0] == 'W' ? WARNING : NOTICE,
				(errmsg_internal("%s", notice.message),
				 notice.detail[0] ? errdetail_internal("%s", notice.detail) : 0,
				 notice.hint[0] ? errhint("%s", notice.hint) : 0));
	else
		ereport(DEBUG1,
				(errmsg_internal("message of peer: %s", notice.message)));
}

/*
 * From now on the caller's client gets the notices and warnings of the peer.
 */
void
peer_show_notices(Peer *peer)
{
	peer->show_notices = true;
}

pg_noreturn static void
connect_failed(const char *server, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
			 errmsg("could not connect to peer of server \"%s\"", server),
			 errdetail_internal("%s", detail),
			 errhint("If it is not just away, use ALTER SERVER %s OPTIONS (SET ...), or ALTER USER MAPPING for its user and password.",
					 quote_identifier(server))));
}

/*
 * Poll a started connection to its end, at most timeout ms (0: no limit; libpq
 * itself looks at connect_timeout only when it is allowed to block).
 * Returns false on timeout; otherwise PQstatus() tells.
 */
static bool
poll_connection(PGconn *conn, int timeout)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   timeout);

	if (PQstatus(conn) == CONNECTION_BAD)
		return true;
	while (status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		int			io = status == PGRES_POLLING_READING ?
			WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;
		long		left = -1;
		int			rc;

		if (timeout > 0)
		{
			left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												   deadline);
			if (left <= 0)
				return false;
		}
		rc = WaitLatchOrSocket(MyLatch, WL_EXIT_ON_PM_DEATH | WL_LATCH_SET |
							   io | (timeout > 0 ? WL_TIMEOUT : 0),
							   PQsocket(conn), left, peer_wait_event());
		if (rc & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (rc & io)
			status = PQconnectPoll(conn);
	}
	return true;
}

/* The limit that the options set, in ms. */
static int
connect_timeout(const ConnectParams *params)
{
	int			seconds = atoi(find_param(params, "connect_timeout"));

	return (int) Min(seconds * INT64CONST(1000), INT_MAX);
}

/* Open the connection; raises an error if that fails. */
static void
open_connection(Peer *peer, const char *server, const ConnectParams *params,
				int timeout)
{
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to peer of server \"%s\"", server),
				 errdetail("There are too many open files on the local server."),
				 errhint("Raise the server's max_files_per_process and/or \"ulimit -n\" limits.")));

	peer->conn = PQconnectStartParams(params->keywords, params->values, 0);
	if (peer->conn == NULL)
	{
		ReleaseExternalFD();
		connect_failed(server, _("out of memory"));
	}
	PQsetNoticeReceiver(peer->conn, peer_notice_receiver, peer);
	if (!poll_connection(peer->conn, timeout))
		connect_failed(server,
					   psprintf(_("The peer did not answer within %g s."),
								timeout / 1000.0));
	if (PQstatus(peer->conn) != CONNECTION_OK)
		connect_failed(server, pchomp(PQerrorMessage(peer->conn)));
	if (PQsetnonblocking(peer->conn, 1) != 0)
		connect_failed(server, pchomp(PQerrorMessage(peer->conn)));
	peer_abort_at_close(peer, true);
}

/* "host:port/database" */
static char *
describe_connection(PGconn *conn)
{
	const char *host = PQhost(conn);

	return psprintf("%s:%s/%s", host != NULL ? host : "",
					PQport(conn), PQdb(conn));
}

/*
 * The first statement of every session.  An empty search_path keeps other
 * people's objects out of our statements.  And the server is to notice when we
 * are gone, with or without a word, so that what we leave behind does not hold
 * locks and the stream's origin for long: it looks while a statement runs, and
 * TCP looks for it.  We need to know who serves us, to ask for it one day.
 */
static void
secure_session(Peer *peer)
{
	int			seconds = Max(bg_peer_timeout / 1000, 1);
	PeerResult *result;

	result = peer_query(peer,
						psprintf("SELECT pg_catalog.set_config('search_path', '', false),"
								 " pid, backend_start,"
								 " CASE WHEN pg_catalog.version()"
								 " OPERATOR(pg_catalog.~) '-linux' THEN"
								 " pg_catalog.concat("
								 "pg_catalog.set_config('client_connection_check_interval', '1s', false),"
								 "pg_catalog.set_config('tcp_keepalives_idle', '%d', false),"
								 "pg_catalog.set_config('tcp_keepalives_interval', '%d', false),"
								 "pg_catalog.set_config('tcp_keepalives_count', '3', false),"
								 "pg_catalog.set_config('tcp_user_timeout', '%d', false)) END"
								 " FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())",
								 Max(seconds / 2, 1), Max(seconds / 6, 1),
								 bg_peer_timeout), 0, NULL);
	if (result->ntuples != 1 || result->values[0][2] == NULL)
		return;
	peer_copy_text(peer->backend_pid, sizeof(peer->backend_pid),
				   result->values[0][1]);
	peer_copy_text(peer->backend_start, sizeof(peer->backend_start),
				   result->values[0][2]);
}

/* The mapping of a user, or that of PUBLIC. */
static UserMapping *
require_user_mapping(ForeignServer *server, Oid userid)
{
	char	   *name = GetUserNameFromId(userid, false);

	if (!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(userid),
							   ObjectIdGetDatum(server->serverid)) &&
		!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(InvalidOid),
							   ObjectIdGetDatum(server->serverid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("user mapping not found for user \"%s\", server \"%s\"",
						name, server->servername),
				 errhint("Use CREATE USER MAPPING FOR %s SERVER %s OPTIONS (user '...', password '...');",
						 quote_identifier(name),
						 quote_identifier(server->servername))));
	return GetUserMapping(userid, server->serverid);
}

/*
 * Connect to a foreign server of ours as its mapping for a user says.
 *
 * Needs a transaction (for the catalogs), and belongs to it until it commits;
 * see peer_keep().  Raises an error if the server or mapping does not exist,
 * the user may not use it, or the peer can't be reached; waits interruptibly.
 */
Peer *
peer_connect(const char *servername, Oid userid, const char *application_name)
{
	ForeignServer *server = GetForeignServerByName(servername, false);
	UserMapping *user = require_user_mapping(server, userid);
	ConnectParams params;
	Peer	   *peer;

	check_server(server, userid);
	build_params(&params, server, user, application_name);
	check_password_given(&params, user);

	peer = peer_create();
	PG_TRY();
	{
		open_connection(peer, servername, &params, connect_timeout(&params));
		check_password_used(peer->conn, user);
		peer->version = PQserverVersion(peer->conn);
		peer->description = MemoryContextStrdup(peer->context,
												describe_connection(peer->conn));
		secure_session(peer);
	}
	PG_CATCH();
	{
		peer_close(peer);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return peer;
}

/*
 * The same for the admin console of a connection pooler, which knows no
 * settings and no extended protocol.
 */
static Peer *
connect_console(const char *servername, Oid userid, int timeout)
{
	ForeignServer *server = GetForeignServerByName(servername, false);
	UserMapping *user = require_user_mapping(server, userid);
	ConnectParams params = {0};
	int			max = list_length(server->options) +
		list_length(user->options) + 12;
	Peer	   *peer;

	check_server(server, userid);
	params.keywords = palloc(sizeof(char *) * max);
	params.values = palloc(sizeof(char *) * max);
	add_timeouts(&params);
	add_param(&params, "dbname", "pgbouncer");
	add_generic_options(&params, server->options);
	add_generic_options(&params, user->options);
	add_param(&params, "application_name", "bluegreen router");
	check_password_given(&params, user);

	peer = peer_create();
	peer->simple = true;
	PG_TRY();
	{
		open_connection(peer, servername, &params, timeout);
		check_password_used(peer->conn, user);
		peer->description = MemoryContextStrdup(peer->context,
												describe_connection(peer->conn));
	}
	PG_CATCH();
	{
		peer_close(peer);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return peer;
}

/*
 * Connect to an admin console, within timeout ms.  If it cannot be reached, or
 * the user may not connect like this, NULL with the reason in *error.  Those
 * errors are raised here, with nothing held; all others are passed on.
 */
Peer *
peer_try_console(const char *servername, Oid userid, int timeout,
				 PeerError *error)
{
	MemoryContext context = CurrentMemoryContext;
	Peer	   *volatile peer = NULL;

	memset(error, 0, sizeof(*error));
	PG_TRY();
	{
		peer = connect_console(servername, userid, timeout);
	}
	PG_CATCH();
	{
		ErrorData  *data;

		MemoryContextSwitchTo(context);
		data = CopyErrorData();
		if (data->sqlerrcode != ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION &&
			data->sqlerrcode != ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED &&
			data->sqlerrcode != ERRCODE_UNDEFINED_OBJECT)
			PG_RE_THROW();
		FlushErrorState();
		peer_copy_text(error->sqlstate, sizeof(error->sqlstate),
					   unpack_sql_state(data->sqlerrcode));
		peer_copy_text(error->message, sizeof(error->message), data->message);
		peer_copy_text(error->detail, sizeof(error->detail), data->detail);
		peer_copy_text(error->hint, sizeof(error->hint), data->hint);
	}
	PG_END_TRY();
	return peer;
}

/*
 * Make the session one that applies changes.  Errors: the peer's user may not.
 */
void
peer_begin_apply(Peer *peer)
{
	PeerError	error;

	if (peer_try_command(peer, "SELECT bluegreen.begin_apply()", &error))
		return;
	if (strcmp(error.sqlstate, "42501") == 0 && error.hint[0] == '\0')
		peer_copy_text(error.hint, sizeof(error.hint),
					   psprintf(_("On the peer, use SELECT bluegreen.grant_apply(%s); and name the target tables in it, too."),
								quote_literal_cstr(quote_identifier(PQuser(peer->conn)))));
	peer_rethrow(&error, NULL);
}

/*
 * ... and give it the settings that it needs, in one round trip.  Raises an
 * error if the peer's user may not set one of them.
 */
void
peer_on_connect_apply(Peer *peer)
{
	StringInfoData sql;

	peer_begin_apply(peer);
	initStringInfo(&sql);
	for (const SessionSetting *s = apply_settings; s->name != NULL; s++)
	{
		if (peer->version < s->since)
			continue;
		appendStringInfo(&sql, "%s pg_catalog.set_config('%s', '%s', false)",
						 sql.len > 0 ? "," : "SELECT", s->name, s->value);
	}
	(void) peer_command(peer, sql.data);
	pfree(sql.data);
}
