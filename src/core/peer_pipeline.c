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
 * server up to the end of the group, and it says so for each.
 *
 * libpq copies all parameters into its output buffer and moves what is left of
 * it to the front after every partial write, so a backlog costs memory and
 * quadratic time.  We therefore count what was queued.  Callers hold back what
 * they have while it is more than CLOGGED bytes; beyond MAX_UNSENT we wait until
 * the buffer is empty, reading answers meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/peer_int.h"
#include "utils/memutils.h"

#define CLOGGED			(128 * 1024)	/* bytes queued that are enough */
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
 * Leave pipeline mode.  All groups must be done.  Raises a lost connection.
 */
void
peer_pipeline_exit(Peer *peer)
{
	peer_require(peer, PEER_PIPELINE);
	if (peer->group_open || peer_busy(peer))
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

/* Group number i, counted from the oldest. */
static PeerGroup *
group_at(Peer *peer, int i)
{
	return &peer->groups[(peer->first_group + i) % PEER_MAX_GROUPS];
}

/* The group that is open. */
static PeerGroup *
open_group(Peer *peer)
{
	Assert(peer->group_open);
	return group_at(peer, peer->ngroups - 1);
}

/* Append to the queue of expected answers, for the open group. */
static PipelineEntry *
queue_entry(Peer *peer)
{
	PipelineEntry *entry;
	int			waiting = peer->queue_tail - peer->queue_head;

	if (peer->queue_head > 0 && waiting <= peer->queue_head)
	{
		memcpy(peer->queue, &peer->queue[peer->queue_head],
			   waiting * sizeof(PipelineEntry));
		peer->queue_head = 0;
		peer->queue_tail = waiting;
	}
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
	entry->group = open_group(peer);
	entry->index = entry->group->nstatements - 1;
	return entry;
}

/*
 * Open a group, unless one is.
 */
static PeerGroup *
begin_group(Peer *peer)
{
	PeerGroup  *group;

	if (peer->mode != PEER_PIPELINE)
		elog(ERROR, "peer is not in pipeline mode");
	if (peer->group_open)
		return open_group(peer);
	if (!peer_has_room(peer))
		elog(ERROR, "too many pipeline groups");
	peer->ngroups++;
	peer->group_open = true;
	group = open_group(peer);
	group->done = false;
	group->nstatements = 0;
	group->failed = -1;
	memset(&group->error, 0, sizeof(group->error));
	if (peer->ngroups == 1)
		peer_watch_begin(peer);
	return group;
}

/*
 * Register one more statement in the open group, opening one if need be.
 * Returns false if the connection is lost; the statement then counts as not
 * executed.
 */
static bool
begin_statement(Peer *peer)
{
	PeerGroup  *group = begin_group(peer);

	if (group->nstatements == group->allocated)
	{
		int			size = Max(group->allocated * 2, 64);

		if (group->affected == NULL)
			group->affected = MemoryContextAlloc(peer->context,
												 size * sizeof(int64));
		else
			group->affected = repalloc_huge(group->affected,
											size * sizeof(int64));
		group->allocated = size;
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

/* The connection is lost: closed groups will get no more answers. */
static void
abandon_groups(Peer *peer)
{
	int			nclosed = peer->ngroups - (peer->group_open ? 1 : 0);

	for (int i = 0; i < nclosed; i++)
	{
		PeerGroup  *group = group_at(peer, i);

		if (!group->done && group->failed < 0)
			group->error = peer->loss;
		group->done = true;
	}
	peer->queue_head = peer->queue_tail = 0;
}

/* A statement failed; only the group's first failure is remembered. */
static void
take_failure(Peer *peer, const PipelineEntry *entry, const PGresult *res)
{
	PeerGroup  *group = entry->group;
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
	PeerGroup  *group = entry->group;

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
		if (entry->kind == ENTRY_SYNC && entry->group->done)
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
	(void) begin_group(peer);
	if (!peer_busy(peer))
		peer_watch_begin(peer);
	if (!peer->lost)
	{
		queue_entry(peer)->kind = ENTRY_SYNC;
		if (!PQpipelineSync(peer->conn))
			peer_lose(peer);
	}
	peer->group_open = false;
	if (peer->lost)
		abandon_groups(peer);
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
		else if (PQflush(peer->conn) == 0)
			peer->unsent = 0;
	}
	if (peer->lost)
		abandon_groups(peer);
	return !peer_busy(peer);
}

/* Is a closed group not done? */
bool
peer_busy(Peer *peer)
{
	int			nclosed = peer->ngroups - (peer->group_open ? 1 : 0);

	return nclosed > 0 && !group_at(peer, nclosed - 1)->done;
}

/* May another group be opened? */
bool
peer_has_room(Peer *peer)
{
	return peer->ngroups < PEER_MAX_GROUPS;
}

/*
 * Is so much queued in the pipeline that more should wait?  Only pumping changes
 * it.  Who waits for the answer to a COPY has nothing more to send.
 */
bool
peer_is_clogged(Peer *peer)
{
	return !peer->lost && peer->mode == PEER_PIPELINE &&
		peer->unsent > CLOGGED;
}

/* How many statements are in the open group? */
int
peer_open_statements(Peer *peer)
{
	return peer->group_open ? open_group(peer)->nstatements : 0;
}

/*
 * Take the oldest group, if it is done; else NULL.  Valid until the next
 * peer_send*() or peer_sync() that opens a group.
 */
const PeerGroup *
peer_take_group(Peer *peer)
{
	PeerGroup  *group = group_at(peer, 0);

	if (peer->ngroups == (peer->group_open ? 1 : 0) || !group->done)
		return NULL;
	peer->first_group = (peer->first_group + 1) % PEER_MAX_GROUPS;
	peer->ngroups--;
	return group;
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
	/* who is held back must go on even if the last bytes leave just now */
	if (PQflush(peer->conn) > 0 || peer_is_clogged(peer))
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
 * Wait until something has come or gone, or the latch was set, or the
 * connection is lost; at once if no group is busy and nothing is to be sent.
 * Interruptible.  There is no limit on how long the peer may work; a peer that
 * is gone is noticed (bluegreen.peer_timeout).
 */
void
peer_wait(Peer *peer)
{
	if (peer_pump(peer) && !peer_is_clogged(peer))
		return;
	if (!peer_wait_socket(peer, peer_wait_events(peer)))
	{
		collect_answers(peer);
		peer_lose(peer);
	}
	(void) peer_pump(peer);
}
