/*-------------------------------------------------------------------------
 *
 * peer_probe.c
 *		Is a peer that owes us an answer still there?
 *
 * An answer may take as long as it likes: the peer may wait for a lock, build
 * an index, write a large batch.  A peer that is gone is silent in the same
 * way, and TCP does not always tell: something between us and it (a proxy, a
 * tunnel, a stopped process whose kernel goes on) may still acknowledge what
 * we send.  On the other hand TCP's own limit for unacknowledged data
 * (tcp_user_timeout) also counts the time in which a busy peer merely reads
 * nothing, so we do not use it.
 *
 * So while we wait, we look at the clock.  After a third of
 * bluegreen.peer_timeout without a sign of life (bytes that came, or that went)
 * a second connection is opened the same way, which asks for our session.  The
 * peer is lost if
 *	- the second connection gets no answer in another third, or can't be made;
 *	- our session is not there any more;
 *	- twice in a row it waits for us, while we wait for it.
 * In all other cases the peer works, and we ask again after the next third.
 * A server that refuses the second connection (too many connections) does
 * answer, so it counts as working.
 *
 * The probe never waits: it goes on whenever its peer's waiting loop comes by,
 * which it does often while one runs.  So what interrupts the wait does not
 * depend on it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <poll.h>
#include <sys/ioctl.h>

#include "core/peer_int.h"
#include "core/settings.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#define MAX_OPTIONS		100		/* that libpq may have */
#define STEPS			100		/* looks at a probe until its deadline */
#define PROBE_NAME		"bluegreen probe"

/* A third of the timeout, in ms. */
static long
watch_interval(void)
{
	return Max(bg_peer_timeout / 3, STEPS);
}

/* The probe, if one runs, is not needed any more. */
void
peer_probe_close(Peer *peer)
{
	if (peer->probe.conn != NULL)
		libpqsrv_disconnect(peer->probe.conn);
	peer->probe.conn = NULL;
	peer->probe.asked = false;
}

/*
 * An answer is due from now on.
 */
void
peer_watch_begin(Peer *peer)
{
	peer->last_sign = 0;
	peer->waited_for[0] = '\0';
	peer_probe_close(peer);
}

/*
 * The peer gave a sign of life: it sent something, or took something.
 */
void
peer_sign(Peer *peer)
{
	peer->last_sign = GetCurrentTimestamp();
	peer->waited_for[0] = '\0';
	peer_probe_close(peer);
}

/*
 * Has nothing been heard of the peer for so long that we should ask whether it
 * is there?  For peers that owe us nothing.
 */
bool
peer_is_silent(Peer *peer)
{
	return TimestampDifferenceExceeds(peer->last_sign, GetCurrentTimestamp(),
									  watch_interval());
}

/* The peer does not answer any more, for this reason. */
static void
peer_is_gone(Peer *peer, const char *detail)
{
	peer_probe_close(peer);
	if (peer->last_words[0] == '\0')
		peer_copy_text(peer->last_words, sizeof(peer->last_words), detail);
	peer_lose(peer);
}

/* The peer works on what we asked for. */
static void
peer_is_working(Peer *peer)
{
	peer->last_sign = GetCurrentTimestamp();
	peer_probe_close(peer);
}

/*
 * Has the peer's kernel acknowledged bytes since the last look?  A slow line
 * may take its time for what the local kernel has taken long ago.
 */
static bool
line_moves(Peer *peer)
{
#ifdef TIOCOUTQ
	int			unacked = 0;
	int			before = peer->unacked;

	if (ioctl(PQsocket(peer->conn), TIOCOUTQ, &unacked) != 0)
		return false;
	peer->unacked = unacked;
	return unacked < before;
#else
	return false;
#endif
}

/* Start a connection like the peer's, to the very host that it goes to. */
static PGconn *
connect_likewise(Peer *peer)
{
	const char *keywords[MAX_OPTIONS + 5];
	const char *values[MAX_OPTIONS + 5];
	PQconninfoOption *options = PQconninfo(peer->conn);
	PGconn	   *conn;
	int			n = 0;

	if (options == NULL)
		return NULL;
	for (PQconninfoOption *o = options; o->keyword && n < MAX_OPTIONS; o++)
	{
		/* what a service says is among the other options already */
		if (o->val == NULL || strcmp(o->keyword, "service") == 0)
			continue;
		keywords[n] = o->keyword;
		values[n++] = o->val;
	}
#define OVERRIDE(keyword, value) \
	(keywords[n] = (keyword), values[n++] = (value))
	OVERRIDE("host", PQhost(peer->conn));
	OVERRIDE("hostaddr", PQhostaddr(peer->conn));
	OVERRIDE("port", PQport(peer->conn));
	OVERRIDE("application_name", PROBE_NAME);
#undef OVERRIDE
	keywords[n] = values[n] = NULL;
	conn = PQconnectStartParams(keywords, values, 0);
	PQconninfoFree(options);
	return conn;
}

static void
ignore_notice(void *arg, const PGresult *res)
{
}

static void
start_probe(Peer *peer)
{
	PeerProbe  *probe = &peer->probe;

	if (!AcquireExternalFD())
	{
		peer_is_working(peer);	/* as far as we can know */
		return;
	}
	probe->conn = connect_likewise(peer);
	if (probe->conn == NULL)
	{
		ReleaseExternalFD();
		peer_is_working(peer);
		return;
	}
	/* a server's refusal ends with its SQLSTATE then */
	PQsetErrorVerbosity(probe->conn, PQERRORS_SQLSTATE);
	PQsetNoticeReceiver(probe->conn, ignore_notice, NULL);
	probe->polling = PGRES_POLLING_WRITING;
	probe->asked = false;
	probe->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  watch_interval());
}

/* Does a message of libpq's end with an SQLSTATE? */
static bool
ends_with_sqlstate(const char *message)
{
	int			len = strlen(message);

	while (len > 0 && message[len - 1] == '\n')
		len--;
	return len >= 7 && message[len - 6] == ' ' &&
		strspn(message + len - 5, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") >= 5;
}

/* The connection could not be made. */
static void
probe_refused(Peer *peer)
{
	const char *message = PQerrorMessage(peer->probe.conn);

	if (ends_with_sqlstate(message))
		peer_is_working(peer);
	else
		peer_is_gone(peer, message);
}

/* Ask what our session does: when it began to wait for us, if it does. */
static void
probe_ask(Peer *peer)
{
	char		sql[512];

	snprintf(sql, sizeof(sql),
			 "SELECT CASE WHEN wait_event OPERATOR(pg_catalog.=) 'ClientRead'"
			 " THEN state_change::pg_catalog.text END"
			 " FROM pg_catalog.pg_stat_get_activity(%s)"
			 " WHERE backend_start OPERATOR(pg_catalog.=)"
			 " '%s'::pg_catalog.timestamptz",
			 peer->backend_pid, peer->backend_start);
	peer->probe.asked = true;
	if (!PQsendQuery(peer->probe.conn, sql))
		probe_refused(peer);
}

/* Judge by what our session does. */
static void
probe_answered(Peer *peer, const PGresult *res)
{
	char		since[lengthof(peer->waited_for)];

	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		probe_refused(peer);
	else if (PQntuples(res) == 0)
		peer_is_gone(peer, _("Its session on the peer has ended."));
	else
	{
		peer_copy_text(since, sizeof(since), PQgetvalue(res, 0, 0));
		if (since[0] != '\0' && strcmp(since, peer->waited_for) == 0)
			peer_is_gone(peer, _("Its session on the peer waits for data that does not arrive."));
		else
		{
			strcpy(peer->waited_for, since);
			peer_is_working(peer);
		}
	}
}

static bool
socket_is_ready(PGconn *conn, bool for_write)
{
	struct pollfd fd = {.fd = PQsocket(conn),
	.events = for_write ? POLLOUT : POLLIN};

	return poll(&fd, 1, 0) > 0;
}

/* Go on with making the connection; false if that has to wait. */
static bool
probe_connect(Peer *peer)
{
	PeerProbe  *probe = &peer->probe;

	if (!socket_is_ready(probe->conn, probe->polling == PGRES_POLLING_WRITING))
		return false;
	probe->polling = PQconnectPoll(probe->conn);
	if (probe->polling == PGRES_POLLING_FAILED)
		probe_refused(peer);
	else if (probe->polling == PGRES_POLLING_OK)
		probe_ask(peer);
	return true;
}

/* Go on with the question; false if that has to wait. */
static bool
probe_read(Peer *peer)
{
	PGconn	   *conn = peer->probe.conn;
	PGresult   *res;

	if (!PQconsumeInput(conn))
		probe_refused(peer);
	else if (PQisBusy(conn))
		return false;
	else
	{
		res = PQgetResult(conn);
		probe_answered(peer, res);
		PQclear(res);
	}
	return true;
}

/* Do what the probe can do now. */
static void
probe_step(Peer *peer)
{
	PeerProbe  *probe = &peer->probe;

	while (probe->conn != NULL)
	{
		if (PQstatus(probe->conn) == CONNECTION_BAD)
			probe_refused(peer);
		else if (probe->asked ? !probe_read(peer) : !probe_connect(peer))
			break;
	}
	if (probe->conn != NULL && GetCurrentTimestamp() >= probe->deadline)
		peer_is_gone(peer, psprintf(_("The peer gave no sign of life within %d ms (bluegreen.peer_timeout), nor did it answer another connection."),
									bg_peer_timeout));
}

/*
 * To be called whenever we are about to wait for the peer, which owes us an
 * answer or has not taken what we have for it.  Never waits.  Returns for how
 * long to wait at most, in ms, or 0 if the peer is lost now.
 */
long
peer_watch(Peer *peer)
{
	TimestampTz now = GetCurrentTimestamp();
	long		silent;

	if (peer->lost)
		return 0;
	if (peer->deadline != 0)
	{
		if (now >= peer->deadline)
			peer_is_gone(peer, _("There was no answer in time."));
		return peer->lost ? 0 :
			TimestampDifferenceMilliseconds(now, peer->deadline);
	}
	if (peer->last_sign == 0)
		peer->last_sign = now;
	silent = TimestampDifferenceMilliseconds(peer->last_sign, now);
	if (peer->probe.conn == NULL && silent < watch_interval())
		return watch_interval() - silent;
	if (line_moves(peer))
	{
		peer_sign(peer);
		return watch_interval();
	}
	if (peer->probe.conn == NULL && peer->backend_pid[0] != '\0')
		start_probe(peer);
	probe_step(peer);
	return peer->lost ? 0 : watch_interval() / STEPS;
}
