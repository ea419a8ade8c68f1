/*-------------------------------------------------------------------------
 *
 * peer_pipeline.c
 *		What flows to the peer without waiting for each answer: COPY data and
 *		pipelined statements.
 *
 * A group of statements is queued with peer_send*() and closed with
 * peer_sync().  For everything queued there is one PipelineEntry, in order,
 * and answers are matched to them as they come in; the closing entry's answer
 * makes the group done.  Statements behind a failed one are skipped by the
 * server, which says so for each.
 *
 * libpq copies all parameters into its output buffer and moves what is left of
 * it to the front after every partial write, so a backlog costs memory and
 * quadratic time.  We therefore count what was queued, and beyond
 * MAX_UNSENT bytes wait until the buffer is empty, reading answers meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/peer_int.h"
#include "utils/memutils.h"

#define MAX_UNSENT		(1024 * 1024)	/* bytes queued before we wait */
#define MESSAGE_OVERHEAD	64	/* bytes around a statement's parameters */

static void collect_answers(Peer *peer);


/*
 * Sending
 */

/*
 * Wait until libpq's output buffer is empty, or the connection is lost.  The
 * events waited for are not asked for with peer_wait_events(), which may send
 * the last bytes itself and then expects an answer that need not come.
 */
static void
drain_output(Peer *peer)
{
	int			rc;

	peer_watch_begin(peer);
	while (!peer->lost && (rc = PQflush(peer->conn)) != 0)
	{
		bool		ok = rc > 0 &&
			peer_wait_socket(peer, WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE);

		if (peer->mode == PEER_PIPELINE)
			collect_answers(peer);
		if (!ok)
			peer_lose(peer);
	}
	peer->unsent = 0;
}

/* Note that so many bytes were queued; wait if they have become too many. */
static void
account_output(Peer *peer, size_t bytes)
{
	peer->unsent += bytes;
	if (peer->unsent > MAX_UNSENT)
		drain_output(peer);
}


/*
 * COPY ... FROM STDIN
 */

/*
 * Start a COPY FROM STDIN.  Waits for the peer to be ready; raises remote
 * errors.  The connection must be outside a pipeline.
 */
void
peer_copy_begin(Peer *peer, const char *sql)
{
	PGresult   *res;
	ExecStatusType status;

	peer_start(peer, sql);
	res = peer_get_result(peer);
	status = PQresultStatus(res);
	if (status == PGRES_COPY_IN)
	{
		PQclear(res);
		peer->mode = PEER_COPY;
		peer->unsent = 0;
		if (peer->copy_sql != NULL)
			pfree(peer->copy_sql);
		peer->copy_sql = NULL;
		peer->copy_sql = MemoryContextStrdup(peer->context, sql);
	}
	else
	{
		PeerError	error = {0};

		if (res != NULL && status == PGRES_FATAL_ERROR)
			peer_note_error(peer, res, &error);
		PQclear(res);
		/* take the rest; raises a lost connection */
		(void) peer_finish(peer, sql);
		if (error.sqlstate[0] == '\0')
			elog(ERROR, "not a COPY FROM STDIN: %s", sql);
		peer_rethrow_sql(&error, sql);
	}
}

/*
 * Send a piece of COPY data, of any size and cut anywhere.  Waits while the
 * peer is slow; raises a lost connection (a remote error comes at the end).
 */
void
peer_copy_data(Peer *peer, const char *data, int len)
{
	peer_require(peer, PEER_COPY);
	while (!peer->lost)
	{
		int			rc = PQputCopyData(peer->conn, data, len);

		if (rc > 0)
			break;
		if (rc < 0)
			peer_lose(peer);
		else
			drain_output(peer);
	}
	if (!peer->lost)
		account_output(peer, len);
	if (peer->lost)
		peer_rethrow_sql(&peer->loss, peer->copy_sql);
}

/*
 * End the COPY and read every answer to it.  Returns the number of rows that
 * the peer took; raises its error if it did not take them.
 */
int64
peer_copy_end(Peer *peer)
{
	int			rc;

	peer_require(peer, PEER_COPY);
	while ((rc = PQputCopyEnd(peer->conn, NULL)) == 0)
		drain_output(peer);
	if (rc < 0)
		peer_lose(peer);
	peer->mode = PEER_STATEMENT;
	return peer_finish(peer, peer->copy_sql);
}


/*
 * Pipeline: mode and statements
 */

/* Go into pipeline mode.  Raises a lost connection. */
void
peer_pipeline_enter(Peer *peer)
{
	peer_require(peer, PEER_IDLE);
	if (!PQenterPipelineMode(peer->conn))
		elog(ERROR, "could not enter pipeline mode: %s",
			 PQerrorMessage(peer->conn));
	peer->mode = PEER_PIPELINE;
	peer->unsent = 0;
}

/*
 * Leave pipeline mode.  The group must be done.  Raises a lost connection.
 */
void
peer_pipeline_exit(Peer *peer)
{
	peer_require(peer, PEER_PIPELINE);
	if (!peer->group.done)
		elog(ERROR, "pipeline group is not done");
	if (!PQexitPipelineMode(peer->conn))
		elog(ERROR, "could not leave pipeline mode: %s",
			 PQerrorMessage(peer->conn));
	peer->mode = PEER_IDLE;
}

/*
 * Make a statement for peer_send(), in the caller's context, where it must
 * stay until every group that used it is done.  types may be NULL, and so may
 * single types be 0: the server infers them.
 */
PeerStatement *
peer_statement_create(const char *sql, int nparams, const Oid *types)
{
	PeerStatement *stmt = palloc0(sizeof(PeerStatement));

	stmt->sql = pstrdup(sql);
	stmt->nparams = nparams;
	if (types != NULL && nparams > 0)
	{
		stmt->types = palloc(sizeof(Oid) * nparams);
		memcpy(stmt->types, types, sizeof(Oid) * nparams);
	}
	return stmt;
}

/* Append to the queue of expected answers. */
static PipelineEntry *
queue_entry(Peer *peer)
{
	PipelineEntry *entry;

	if (peer->queue_tail == peer->queue_size)
	{
		int			size = Max(peer->queue_size * 2, 64);

		if (peer->queue == NULL)
			peer->queue = MemoryContextAlloc(peer->context,
											 size * sizeof(PipelineEntry));
		else
			peer->queue = repalloc_huge(peer->queue,
										size * sizeof(PipelineEntry));
		peer->queue_size = size;
	}
	entry = &peer->queue[peer->queue_tail++];
	memset(entry, 0, sizeof(*entry));
	entry->index = peer->group.nstatements - 1;
	return entry;
}

/*
 * Register one more statement in the open group, opening one if the last is
 * done.  Returns false if the connection is lost; the statement then counts as
 * not executed.
 */
static bool
begin_statement(Peer *peer)
{
	PeerGroup  *group = &peer->group;

	if (peer->mode != PEER_PIPELINE)
		elog(ERROR, "peer is not in pipeline mode");
	if (group->done)
	{
		group->done = false;
		group->nstatements = 0;
		group->failed = -1;
		memset(&group->error, 0, sizeof(group->error));
		peer->group_closed = false;
		peer->queue_head = peer->queue_tail = 0;
	}
	else if (peer->group_closed)
		elog(ERROR, "pipeline group is not done");

	if (group->nstatements == peer->group_size)
	{
		int			size = Max(peer->group_size * 2, 64);

		if (group->affected == NULL)
			group->affected = MemoryContextAlloc(peer->context,
												 size * sizeof(int64));
		else
			group->affected = repalloc_huge(group->affected,
											size * sizeof(int64));
		peer->group_size = size;
	}
	group->affected[group->nstatements++] = -1;
	return !peer->lost;
}

/*
 * Queue the preparation of a statement.  Every preparation has a name of its
 * own, so that it never meets an earlier one on the same connection.
 */
static bool
send_prepare(Peer *peer, PeerStatement *stmt)
{
	static uint64 last_name = 0;
	PipelineEntry *entry = queue_entry(peer);

	snprintf(stmt->name, sizeof(stmt->name), "bluegreen_" UINT64_FORMAT,
			 ++last_name);
	entry->kind = ENTRY_PREPARE;
	entry->stmt = stmt;
	stmt->prepared_on = peer->id;
	return PQsendPrepare(peer->conn, stmt->name, stmt->sql,
						 stmt->nparams, stmt->types) != 0;
}

/* Bytes of a statement's parameters. */
static size_t
params_size(const PeerStatement *stmt, const char *const *values,
			const int *lengths, const int *formats)
{
	size_t		size = MESSAGE_OVERHEAD;

	for (int i = 0; i < stmt->nparams; i++)
	{
		if (values[i] == NULL)
			continue;
		if (formats != NULL && formats[i] != 0)
			size += lengths[i];
		else
			size += strlen(values[i]);
	}
	return size;
}

/*
 * Queue the execution of a statement, preparing it first if this connection
 * does not know it.
 *
 * values: nparams parameters, NULL = SQL NULL; formats: 1 = binary, 0 = text,
 * NULL = all text; lengths: of the binary ones, may be NULL if there are none.
 * All are copied.  May wait, interruptibly, for the peer to take in what was
 * queued before.  A lost connection is not raised; the group tells.
 */
void
peer_send(Peer *peer, PeerStatement *stmt, const char *const *values,
		  const int *lengths, const int *formats)
{
	size_t		size = params_size(stmt, values, lengths, formats);
	bool		ok;

	if (!begin_statement(peer))
		return;
	ok = true;
	if (stmt->prepared_on != peer->id)
	{
		size += strlen(stmt->sql);
		ok = send_prepare(peer, stmt);
	}
	if (ok)
	{
		PipelineEntry *entry = queue_entry(peer);

		entry->kind = ENTRY_EXECUTE;
		entry->is_commit = peer_is_commit(stmt->sql);
		ok = PQsendQueryPrepared(peer->conn, stmt->name, stmt->nparams,
								 values, lengths, formats, 0) != 0;
	}
	if (!ok)
		peer_lose(peer);
	else
		account_output(peer, size);
}

/*
 * Queue one statement without parameters and without preparing it.  As
 * peer_send() otherwise.
 */
void
peer_send_sql(Peer *peer, const char *sql)
{
	PipelineEntry *entry;

	if (!begin_statement(peer))
		return;
	entry = queue_entry(peer);
	entry->kind = ENTRY_EXECUTE;
	entry->is_commit = peer_is_commit(sql);
	if (!PQsendQueryParams(peer->conn, sql, 0, NULL, NULL, NULL, NULL, 0))
		peer_lose(peer);
	else
		account_output(peer, strlen(sql) + MESSAGE_OVERHEAD);
}


/*
 * Pipeline: answers
 */

/* The connection is lost: a closed group will get no more answers. */
static void
abandon_group(Peer *peer)
{
	PeerGroup  *group = &peer->group;

	if (group->done || !peer->group_closed)
		return;
	if (group->failed < 0)
		group->error = peer->loss;
	group->done = true;
	peer->queue_head = peer->queue_tail = 0;
}

/* A statement failed; only the group's first failure is remembered. */
static void
take_failure(Peer *peer, const PipelineEntry *entry, const PGresult *res)
{
	PeerGroup  *group = &peer->group;
	PeerError	error;

	memset(&error, 0, sizeof(error));
	peer_note_error(peer, res, &error);

	/* The end of the session is no failure of the statement. */
	if (peer->last_words[0] != '\0' ||
		PQresultErrorField(res, PG_DIAG_SQLSTATE) == NULL)
		peer_lose(peer);
	else if (group->failed < 0)
	{
		group->failed = entry->index;
		group->error = error;
	}
}

/* Match one answer to the entry it belongs to. */
static void
take_answer(Peer *peer, PipelineEntry *entry, PGresult *res)
{
	PeerGroup  *group = &peer->group;

	switch (PQresultStatus(res))
	{
		case PGRES_COMMAND_OK:
		case PGRES_TUPLES_OK:
		case PGRES_EMPTY_QUERY:
			if (entry->kind != ENTRY_EXECUTE)
				break;
			if (entry->is_commit && group->failed < 0 &&
				peer_note_rollback(res, &group->error))
				group->failed = entry->index;
			else
				group->affected[entry->index] = peer_result_affected(res);
			break;
		case PGRES_PIPELINE_SYNC:
			group->done = true;
			break;
		case PGRES_FATAL_ERROR:
			take_failure(peer, entry, res);
			/* FALLTHROUGH */
		case PGRES_PIPELINE_ABORTED:
			/* not prepared, whether it failed itself or was skipped */
			if (entry->kind == ENTRY_PREPARE &&
				entry->stmt->prepared_on == peer->id)
				entry->stmt->prepared_on = 0;
			break;
		default:
			/* a COPY, which a pipeline can't carry */
			peer_lose(peer);
			break;
	}
}

/*
 * Take the answers that have arrived, without waiting.  An answer is followed
 * by a NULL, except that of the closing entry.
 */
static void
collect_answers(Peer *peer)
{
	while (!peer->lost && peer->queue_head < peer->queue_tail &&
		   !PQisBusy(peer->conn))
	{
		PipelineEntry *entry = &peer->queue[peer->queue_head];
		PGresult   *res;

		CHECK_FOR_INTERRUPTS();
		res = PQgetResult(peer->conn);
		if (res == NULL)
		{
			if (!entry->answered)
				break;			/* nothing more will come */
			peer->queue_head++;
			continue;
		}
		entry->answered = true;
		peer_sign(peer);
		take_answer(peer, entry, res);
		PQclear(res);
		if (entry->kind == ENTRY_SYNC && peer->group.done)
			peer->queue_head++;
	}
}

/*
 * Close the open group, so that the server answers and the group can become
 * done.  Without statements it still makes a round trip.  Never waits.
 */
void
peer_sync(Peer *peer)
{
	PeerGroup  *group = &peer->group;

	if (group->done)
	{
		(void) begin_statement(peer);
		group->nstatements = 0;
	}
	else if (peer->group_closed)
		elog(ERROR, "pipeline group is not done");
	peer->group_closed = true;
	peer_watch_begin(peer);
	if (!peer->lost)
	{
		queue_entry(peer)->kind = ENTRY_SYNC;
		if (!PQpipelineSync(peer->conn))
			peer_lose(peer);
	}
	if (peer->lost)
		abandon_group(peer);
}

/*
 * Send and take in what is possible without waiting.  Returns true if no
 * closed group waits for answers.  A lost connection is not raised.
 */
bool
peer_pump(Peer *peer)
{
	if (!peer->lost)
	{
		bool		ok = PQconsumeInput(peer->conn) != 0;

		collect_answers(peer);
		if (!ok || PQstatus(peer->conn) == CONNECTION_BAD)
			peer_lose(peer);
	}
	if (peer->lost)
		abandon_group(peer);
	return !peer_busy(peer);
}

/* Is a closed group not done? */
bool
peer_busy(Peer *peer)
{
	return peer->group_closed && !peer->group.done;
}

/*
 * The group that is open, closed or, if done, the last one.  Valid until the
 * first peer_send*() after it was done.
 */
const PeerGroup *
peer_group(Peer *peer)
{
	return &peer->group;
}

/*
 * Socket events (WL_SOCKET_*) to wait for before the next peer_pump(); 0 if
 * the connection is lost.  Ask again after every pump and send.
 */
int
peer_wait_events(Peer *peer)
{
	int			events = WL_SOCKET_READABLE;

	if (peer->lost)
		return 0;
	if (PQflush(peer->conn) > 0)
		events |= WL_SOCKET_WRITEABLE;
	return events;
}

/* The socket to wait on, or PGINVALID_SOCKET; may change to that any time. */
int
peer_socket(Peer *peer)
{
	return peer->lost ? PGINVALID_SOCKET : PQsocket(peer->conn);
}

/*
 * Wait until the closed group is done or the connection is lost; at once if
 * there is none.  Interruptible.  There is no limit on how long the peer may
 * work; a peer that is gone is noticed (bluegreen.peer_timeout).
 */
void
peer_wait(Peer *peer)
{
	while (!peer_pump(peer))
	{
		if (!peer_wait_socket(peer, peer_wait_events(peer)))
		{
			collect_answers(peer);
			peer_lose(peer);
		}
	}
}
