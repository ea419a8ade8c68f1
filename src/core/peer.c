/*-------------------------------------------------------------------------
 *
 * peer.c
 *		The connection to the other cluster: its lifetime, its errors, and
 *		statements that are waited for.  Connecting is in peer_connect.c,
 *		COPY and the pipeline are in peer_pipeline.c.
 *
 * A peer belongs to the (sub)transaction that opened it until that commits,
 * because an error gives its holder no chance to close it; see peer_keep().
 *
 * A remote error is copied into a PeerError as soon as its result is in, so
 * that no libpq object is held across a wait, and is raised (or handed to the
 * caller) when the connection is at rest again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/xact.h"
#include "core/peer_int.h"
#include "mb/pg_wchar.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define MAX_CONTEXT_SQL		1000	/* bytes of a statement shown in errors */

/* Errors that go away by themselves: classes and single codes. */
static const char *const transient_sqlstates[] = {
	"08",						/* connection exception */
	"40",						/* transaction rollback */
	"53",						/* insufficient resources */
	"55P03",					/* lock_not_available */
	"55006",					/* object_in_use */
	"25006",					/* read_only_sql_transaction */
	"57014",					/* query_canceled, by somebody there */
	"57P01",					/* admin_shutdown */
	"57P02",					/* crash_shutdown */
	"57P03",					/* cannot_connect_now */
};

static Peer *peers = NULL;		/* all peers of this process */
static uint64 last_peer_id = 0;


/*
 * Lifetime
 */

/*
 * Shall the kernel abort the connection when its socket is closed, even if the
 * process is killed, instead of saying goodbye?  What we have sent last may be
 * unread by a server that is busy, and it would not see our end behind that,
 * keep the locks that it has, and wait for those that it wants.
 */
void
peer_abort_at_close(Peer *peer, bool abort)
{
	struct linger linger = {.l_onoff = abort,.l_linger = 0};

	/* without effect where there is no TCP; then the server sees us end */
	(void) setsockopt(PQsocket(peer->conn), SOL_SOCKET, SO_LINGER,
					  (char *) &linger, sizeof(linger));
}

/* Does the server owe us nothing, and we it nothing? */
static bool
is_at_rest(Peer *peer)
{
	return !peer->lost && (peer->mode == PEER_IDLE ||
						   (peer->mode == PEER_PIPELINE && !peer->group_open &&
							!peer_busy(peer)));
}

/* Free a peer that is no longer in the list. */
static void
peer_free(Peer *peer)
{
	peer_probe_close(peer);
	if (peer->conn != NULL && is_at_rest(peer))
		peer_abort_at_close(peer, false);
	if (peer->conn != NULL)
		libpqsrv_disconnect(peer->conn);
	MemoryContextDelete(peer->context);
}

/*
 * Close those peers of this process that the condition selects: all of them,
 * or those that do not outlive an abort and were opened in subid (any, if
 * invalid).
 */
static void
peers_close(bool all, SubTransactionId subid)
{
	Peer	  **link = &peers;

	while (*link != NULL)
	{
		Peer	   *peer = *link;

		if (all || (!peer->keep && (subid == InvalidSubTransactionId ||
									subid == peer->subid)))
		{
			*link = peer->next;
			peer_free(peer);
		}
		else
			link = &peer->next;
	}
}

/* The peers of one subtransaction become those of another. */
static void
peers_reassign(SubTransactionId from, SubTransactionId to)
{
	for (Peer *peer = peers; peer != NULL; peer = peer->next)
	{
		if (peer->subid == from)
			peer->subid = to;
	}
}

static void
peer_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PARALLEL_ABORT)
		peers_close(false, InvalidSubTransactionId);
	else if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
		peers_reassign(TopSubTransactionId, InvalidSubTransactionId);
}

static void
peer_subxact_callback(SubXactEvent event, SubTransactionId subid,
					  SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		peers_close(false, subid);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		peers_reassign(subid, parent);
}

static void
peer_exit_callback(int code, Datum arg)
{
	peers_close(true, InvalidSubTransactionId);
}

/* A new entry in the list of peers, not connected yet. */
Peer *
peer_create(void)
{
	static bool registered = false;
	MemoryContext context;
	Peer	   *peer;

	if (!registered)
	{
		RegisterXactCallback(peer_xact_callback, NULL);
		RegisterSubXactCallback(peer_subxact_callback, NULL);
		on_proc_exit(peer_exit_callback, (Datum) 0);
		registered = true;
	}

	context = AllocSetContextCreate(TopMemoryContext, "bluegreen peer",
									ALLOCSET_SMALL_SIZES);
	peer = MemoryContextAllocZero(context, sizeof(Peer));
	peer->context = context;
	peer->id = ++last_peer_id;
	peer->subid = GetCurrentSubTransactionId();
	peer->next = peers;
	peers = peer;
	return peer;
}

/*
 * Close the connection and free the peer.  A statement that runs on it is left
 * to its server, which rolls it back.
 */
void
peer_close(Peer *peer)
{
	for (Peer **link = &peers; *link != NULL; link = &(*link)->next)
	{
		if (*link == peer)
		{
			*link = peer->next;
			peer_free(peer);
			return;
		}
	}
	elog(ERROR, "peer is not open");
}

/*
 * Let a peer outlive the transaction that opened it even if that aborts; for
 * background workers, which need a transaction only to look up the server.
 */
void
peer_keep(Peer *peer)
{
	peer->keep = true;
}

/*
 * Values of a table are secrets: leave out what errors say of them.  Those that
 * name no table may be of this one.
 */
void
peer_hide(Peer *peer, const char *schema, const char *table)
{
	MemoryContext old = MemoryContextSwitchTo(peer->context);

	peer->hidden = lappend(peer->hidden, pstrdup(schema));
	peer->hidden = lappend(peer->hidden, pstrdup(table));
	MemoryContextSwitchTo(old);
}

/*
 * Errors
 */

/* Copy into a fixed field, cut at a character, without trailing newlines. */
void
peer_copy_text(char *dst, size_t size, const char *src)
{
	size_t		len;

	if (src == NULL)
		src = "";
	len = strlen(src);
	while (len > 0 && (src[len - 1] == '\n' || src[len - 1] == ' '))
		len--;
	if (len >= size)
		len = pg_mbcliplen(src, len, size - 1);
	memcpy(dst, src, len);
	dst[len] = '\0';
}

static void
hide_values(const Peer *peer, PeerError *error)
{
	bool		hide = peer->hidden != NIL && error->table[0] == '\0';

	for (int i = 0; i < list_length(peer->hidden); i += 2)
		hide |= strcmp(list_nth(peer->hidden, i), error->schema) == 0 &&
			strcmp(list_nth(peer->hidden, i + 1), error->table) == 0;
	if (hide)
		error->detail[0] = error->context[0] = '\0';
}

/*
 * Fill an error from a failed result, without raising anything.  If the server
 * said FATAL, what it said is kept as the reason of the coming loss.
 */
void
peer_note_error(Peer *peer, const PGresult *res, PeerError *error)
{
	const char *severity = PQresultErrorField(res,
											  PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

	if (message == NULL)
		message = PQresultErrorMessage(res);
	if (message == NULL || message[0] == '\0')
		message = PQerrorMessage(peer->conn);

#define COPY_FIELD(field, code) \
	peer_copy_text(error->field, sizeof(error->field), \
				   PQresultErrorField(res, code))
	peer_copy_text(error->sqlstate, sizeof(error->sqlstate),
				   sqlstate != NULL ? sqlstate : "08006");
	peer_copy_text(error->message, sizeof(error->message), message);
	COPY_FIELD(detail, PG_DIAG_MESSAGE_DETAIL);
	COPY_FIELD(hint, PG_DIAG_MESSAGE_HINT);
	COPY_FIELD(context, PG_DIAG_CONTEXT);
	COPY_FIELD(schema, PG_DIAG_SCHEMA_NAME);
	COPY_FIELD(table, PG_DIAG_TABLE_NAME);
	COPY_FIELD(column, PG_DIAG_COLUMN_NAME);
	COPY_FIELD(constraint, PG_DIAG_CONSTRAINT_NAME);
#undef COPY_FIELD
	hide_values(peer, error);

	if (severity != NULL && (strcmp(severity, "FATAL") == 0 ||
							 strcmp(severity, "PANIC") == 0))
		peer_copy_text(peer->last_words, sizeof(peer->last_words), message);
}

/* Is this statement a COMMIT? */
bool
peer_is_commit(const char *sql)
{
	return pg_strncasecmp(sql, "COMMIT", 6) == 0;
}

/*
 * The result of a COMMIT: the server answers a COMMIT of a failed transaction
 * with success and the tag ROLLBACK.  Returns true and fills the error then.
 */
bool
peer_note_rollback(const PGresult *res, PeerError *error)
{
	if (strcmp(PQcmdStatus(unconstify(PGresult *, res)), "ROLLBACK") != 0)
		return false;
	memset(error, 0, sizeof(*error));
	peer_copy_text(error->sqlstate, sizeof(error->sqlstate), "25P02");
	peer_copy_text(error->message, sizeof(error->message),
				   _("the peer rolled the transaction back instead of committing it"));
	return true;
}

/* The connection is gone (or no longer usable): remember why. */
void
peer_lose(Peer *peer)
{
	if (peer->lost)
		return;
	peer->lost = true;
	memset(&peer->loss, 0, sizeof(peer->loss));
	peer_copy_text(peer->loss.sqlstate, sizeof(peer->loss.sqlstate), "08006");
	snprintf(peer->loss.message, sizeof(peer->loss.message),
			 _("lost connection to peer %s"), peer->description);
	if (peer->mode == PEER_STATEMENT && peer->last_words[0] == '\0' &&
		PQstatus(peer->conn) == CONNECTION_OK)
		peer_copy_text(peer->loss.detail, sizeof(peer->loss.detail),
					   _("A statement was interrupted."));
	else
		peer_copy_text(peer->loss.detail, sizeof(peer->loss.detail),
					   peer->last_words[0] != '\0' ? peer->last_words :
					   PQerrorMessage(peer->conn));
}

/*
 * Raise a remote error as our own, with its SQLSTATE and fields.  context (may
 * be NULL) becomes a line of the error's context.  Of a full disk and its like
 * (class 53) the message says whose it is: either side may have one.
 */
void
peer_rethrow(const PeerError *error, const char *context)
{
	const char *s = strlen(error->sqlstate) == 5 ? error->sqlstate : "08006";
	bool		resources = strncmp(s, "53", 2) == 0;

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4])),
			 resources ?
			 errmsg("peer lacks resources: %s", error->message) :
			 errmsg_internal("%s", error->message),
			 error->detail[0] ? errdetail_internal("%s", error->detail) : 0,
			 error->hint[0] ? errhint("%s", error->hint) : 0,
			 error->schema[0] ?
			 err_generic_string(PG_DIAG_SCHEMA_NAME, error->schema) : 0,
			 error->table[0] ?
			 err_generic_string(PG_DIAG_TABLE_NAME, error->table) : 0,
			 error->column[0] ?
			 err_generic_string(PG_DIAG_COLUMN_NAME, error->column) : 0,
			 error->constraint[0] ?
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, error->constraint) : 0,
			 error->context[0] ? errcontext("%s", error->context) : 0,
			 context != NULL ? errcontext("%s", context) : 0));
}

/* Raise a remote error with the statement that caused it as context. */
void
peer_rethrow_sql(const PeerError *error, const char *sql)
{
	int			len = strlen(sql);

	if (len > MAX_CONTEXT_SQL)
		len = pg_mbcliplen(sql, len, MAX_CONTEXT_SQL);
	peer_rethrow(error, psprintf(_("remote SQL command: %.*s"), len, sql));
}

/*
 * Does an error with this SQLSTATE go away by itself, so that trying again
 * makes sense?  NULL and "" (no error) do not.
 */
bool
peer_sqlstate_is_transient(const char *sqlstate)
{
	if (sqlstate == NULL)
		return false;
	for (int i = 0; i < lengthof(transient_sqlstates); i++)
	{
		if (strncmp(sqlstate, transient_sqlstates[i],
					strlen(transient_sqlstates[i])) == 0)
			return true;
	}
	return false;
}


/*
 * Can the connection still be used?  Looks, without waiting, for an end that
 * the peer has announced; a peer that has silently gone is noticed by TCP.
 */
bool
peer_is_alive(Peer *peer)
{
	if (peer->lost)
		return false;
	if (peer->mode == PEER_STATEMENT)
		peer_lose(peer);
	else if (peer->mode != PEER_COPY && peer->queue_head == peer->queue_tail)
	{
		/* PQisBusy() takes in what was read, maybe a FATAL */
		if (!PQconsumeInput(peer->conn) || PQisBusy(peer->conn) ||
			peer->last_words[0] != '\0')
			peer_lose(peer);
	}
	return !peer->lost;
}

/* Raise the loss of the connection, if it is lost; see peer_is_alive(). */
void
peer_check(Peer *peer)
{
	if (!peer_is_alive(peer))
		peer_rethrow(&peer->loss, NULL);
}

/* The peer's version as in server_version_num. */
int
peer_server_version(Peer *peer)
{
	return peer->version;
}

/* host:port/database for messages; lives as long as the peer. */
const char *
peer_description(Peer *peer)
{
	return peer->description;
}


/*
 * Simple statements
 */

/* Raise the loss of the connection, or an elog if it is used wrongly. */
void
peer_require(Peer *peer, PeerMode mode)
{
	if (peer->mode == PEER_STATEMENT)
		peer_lose(peer);
	if (peer->lost)
		peer_rethrow(&peer->loss, NULL);
	if (peer->mode != mode)
		elog(ERROR, "peer is in mode %d instead of %d", peer->mode, mode);
}

/* What pg_stat_activity shows while we wait for a peer. */
uint32
peer_wait_event(void)
{
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("BluegreenPeer");
	return event;
}

/*
 * Wait until the latch is set or one of the events (WL_SOCKET_*) happens on the
 * socket; take in what the server sent and send what can be sent.  Only while
 * the peer owes us something.  Returns false if the connection failed.
 */
bool
peer_wait_socket(Peer *peer, int events)
{
	long		timeout;
	int			rc;

	if (PQsocket(peer->conn) < 0)
		return false;
	timeout = peer_watch(peer);
	if (peer->lost)
		return false;
	rc = WaitLatchOrSocket(MyLatch, WL_EXIT_ON_PM_DEATH | WL_LATCH_SET |
						   WL_TIMEOUT | events,
						   PQsocket(peer->conn), timeout, peer_wait_event());
	if (rc & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (rc & events)
	{
		peer_sign(peer);
		return PQconsumeInput(peer->conn) != 0;
	}
	return true;
}

/* PQgetResult() that waits interruptibly; NULL at the end or on a failure. */
PGresult *
peer_get_result(Peer *peer)
{
	while (PQisBusy(peer->conn))
	{
		if (!peer_wait_socket(peer, peer_wait_events(peer)))
			break;
	}
	if (PQisBusy(peer->conn))
	{
		peer_lose(peer);
		return NULL;
	}
	return PQgetResult(peer->conn);
}

/* Rows that a result's command tag counts, else 0. */
int64
peer_result_affected(PGresult *res)
{
	const char *tuples = PQcmdTuples(res);

	return tuples[0] != '\0' ? strtoll(tuples, NULL, 10) : 0;
}

/* Copy the rows of a result into the caller's context. */
static void
copy_rows(const PGresult *res, PeerResult *result)
{
	int			ntuples = PQntuples(res);
	int			nfields = PQnfields(res);

	result->ntuples = ntuples;
	result->nfields = nfields;
	result->names = palloc(sizeof(char *) * Max(nfields, 1));
	for (int col = 0; col < nfields; col++)
		result->names[col] = pstrdup(PQfname(res, col));
	result->values = palloc(sizeof(char **) * Max(ntuples, 1));
	for (int row = 0; row < ntuples; row++)
	{
		result->values[row] = palloc(sizeof(char *) * Max(nfields, 1));
		for (int col = 0; col < nfields; col++)
			result->values[row][col] = PQgetisnull(res, row, col) ? NULL :
				pnstrdup(PQgetvalue(res, row, col),
						 PQgetlength(res, row, col));
	}
}

/*
 * Look at one result of a simple statement: it goes into result if it is a
 * success, into error if it is the first failure.
 */
static void
read_result(Peer *peer, PGresult *res, PeerResult *result, PeerError *error)
{
	switch (PQresultStatus(res))
	{
		case PGRES_TUPLES_OK:
			copy_rows(res, result);
			result->affected = peer_result_affected(res);
			break;
		case PGRES_COMMAND_OK:
		case PGRES_EMPTY_QUERY:
			result->affected = peer_result_affected(res);
			if (peer->is_commit && error->sqlstate[0] == '\0')
				(void) peer_note_rollback(res, error);
			break;
		case PGRES_COPY_IN:
		case PGRES_COPY_OUT:
		case PGRES_COPY_BOTH:
			/* nothing that we could read to its end */
			peer_lose(peer);
			elog(ERROR, "COPY in a statement that is no COPY FROM STDIN");
			break;
		default:
			if (error->sqlstate[0] == '\0')
				peer_note_error(peer, res, error);
			break;
	}
}

/* Take one result and free it. */
static void
take_result(Peer *peer, PGresult *res, PeerResult *result, PeerError *error)
{
	PG_TRY();
	{
		read_result(peer, res, result, error);
	}
	PG_CATCH();
	{
		PQclear(res);
		PG_RE_THROW();
	}
	PG_END_TRY();
	PQclear(res);
}

/*
 * Read all results of the statement that runs, filling result and error
 * (sqlstate "" if there was none).  The connection is idle again afterwards,
 * or lost.
 */
static void
finish_statement(Peer *peer, PeerResult *result, PeerError *error)
{
	PGresult   *res;

	memset(error, 0, sizeof(*error));
	while ((res = peer_get_result(peer)) != NULL)
		take_result(peer, res, result, error);
	peer->mode = PEER_IDLE;
	if (PQstatus(peer->conn) == CONNECTION_BAD)
		peer_lose(peer);
	if (peer->lost)
		*error = peer->loss;
}

/* Make sure that a statement can be sent, and note that it will be. */
static void
begin_statement(Peer *peer, const char *sql)
{
	peer_require(peer, PEER_IDLE);
	peer->mode = PEER_STATEMENT;
	peer->is_commit = peer_is_commit(sql);
	peer_watch_begin(peer);
}

/* libpq could not even queue the statement. */
static void
sending_failed(Peer *peer)
{
	peer->mode = PEER_IDLE;
	peer_lose(peer);
}

/* Send a statement (simple protocol) on an idle connection. */
void
peer_start(Peer *peer, const char *sql)
{
	begin_statement(peer, sql);
	if (!PQsendQuery(peer->conn, sql))
	{
		sending_failed(peer);
		peer_rethrow_sql(&peer->loss, sql);
	}
}

/* Wait for the statement that runs and raise its error; rows affected. */
int64
peer_finish(Peer *peer, const char *sql)
{
	PeerResult	result = {0};
	PeerError	error;

	finish_statement(peer, &result, &error);
	if (error.sqlstate[0] != '\0')
		peer_rethrow_sql(&error, sql);
	return result.affected;
}

/*
 * Run one statement with text arguments (NULL = SQL NULL) and return its rows,
 * palloc'ed.  Waits interruptibly; raises remote errors and a lost connection.
 */
PeerResult *
peer_query(Peer *peer, const char *sql, int nargs, const char *const *args)
{
	PeerError	error;
	PeerResult *result;

	peer_require(peer, PEER_IDLE);
	result = peer_try_query(peer, sql, nargs, args, &error);
	if (result == NULL)
		peer_rethrow_sql(&error, sql);
	return result;
}

/*
 * Like peer_query(), but a remote error or a lost connection is returned in
 * *error with NULL instead of being raised.
 */
PeerResult *
peer_try_query(Peer *peer, const char *sql, int nargs,
			   const char *const *args, PeerError *error)
{
	PeerResult *result = palloc0(sizeof(PeerResult));
	bool		sent;

	if (!peer_is_alive(peer))
	{
		*error = peer->loss;
		return NULL;
	}
	begin_statement(peer, sql);
	sent = peer->simple ? PQsendQuery(peer->conn, sql) :
		PQsendQueryParams(peer->conn, sql, nargs, NULL, args, NULL, NULL, 0);
	if (sent)
		finish_statement(peer, result, error);
	else
	{
		sending_failed(peer);
		*error = peer->loss;
	}
	return error->sqlstate[0] == '\0' ? result : NULL;
}

/*
 * The same in two steps, without arguments: between them the peer works, and
 * so may the caller, but not with this peer.  An error in between leaves the
 * connection behind as lost.
 */
void
peer_query_begin(Peer *peer, const char *sql)
{
	peer_start(peer, sql);
	(void) PQflush(peer->conn);
}

PeerResult *
peer_query_end(Peer *peer, const char *sql)
{
	PeerResult *result = palloc0(sizeof(PeerResult));
	PeerError	error;

	finish_statement(peer, result, &error);
	if (error.sqlstate[0] != '\0')
		peer_rethrow_sql(&error, sql);
	return result;
}

/*
 * The second step, with a remote error or a lost connection returned in *error
 * with NULL.
 */
PeerResult *
peer_try_end(Peer *peer, PeerError *error)
{
	PeerResult *result = palloc0(sizeof(PeerResult));

	finish_statement(peer, result, error);
	return error->sqlstate[0] == '\0' ? result : NULL;
}

/*
 * From now on, a statement that has no answer by then is given up, and with it
 * the connection.  For what cannot be asked whether it is still there.
 */
void
peer_set_deadline(Peer *peer, TimestampTz deadline)
{
	peer->deadline = deadline;
}

/*
 * Run a command, or several separated by semicolons, and return the rows that
 * the last one affected.  Waits and raises as peer_query() does; so does a
 * COMMIT that the peer answers with a rollback.
 */
int64
peer_command(Peer *peer, const char *sql)
{
	peer_start(peer, sql);
	return peer_finish(peer, sql);
}

/*
 * Like peer_command(), but a remote error or a lost connection is returned in
 * *error with false instead of being raised.
 */
bool
peer_try_command(Peer *peer, const char *sql, PeerError *error)
{
	PeerResult	result = {0};

	if (!peer_is_alive(peer))
	{
		*error = peer->loss;
		return false;
	}
	begin_statement(peer, sql);
	if (PQsendQuery(peer->conn, sql))
		finish_statement(peer, &result, error);
	else
	{
		sending_failed(peer);
		*error = peer->loss;
	}
	return error->sqlstate[0] == '\0';
}
