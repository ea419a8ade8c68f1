/*-------------------------------------------------------------------------
 *
 * peer_int.h
 *		What peer.c (connection, simple statements), peer_pipeline.c (COPY
 *		and pipeline) and peer_probe.c (is it still there) share.  Nobody else includes this file, so that
 *		libpq stays theirs.
 *
 * The connection is in libpq's non-blocking mode for its whole life; every
 * wait is peer_wait_socket(), which looks at the latch as well and always
 * reads what the server says before it goes on sending, so that the two ends
 * can't block on each other.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PEER_INT_H
#define BG_PEER_INT_H

#include "core/peer.h"
#include "libpq/libpq-be-fe-helpers.h"

/* What the connection is doing.  Legal next states: */
typedef enum PeerMode
{
	PEER_IDLE,					/* -> STATEMENT, PIPELINE */
	PEER_STATEMENT,				/* -> IDLE, COPY; found from outside it means
								 * that an error left the statement behind */
	PEER_COPY,					/* -> STATEMENT */
	PEER_PIPELINE				/* -> IDLE */
} PeerMode;

/* One message sequence in the pipeline that the server will answer. */
typedef struct PipelineEntry
{
	enum
	{
		ENTRY_PREPARE,
		ENTRY_EXECUTE,
		ENTRY_SYNC
	}			kind;
	PeerGroup  *group;
	int			index;			/* statement in the group */
	PeerStatement *stmt;		/* ENTRY_PREPARE only */
	bool		is_commit;
	bool		answered;		/* its result is in, its end not yet */
} PipelineEntry;

/* A second connection that asks for the first, see peer_probe.c. */
typedef struct PeerProbe
{
	PGconn	   *conn;			/* NULL: none runs */
	PostgresPollingStatusType polling;
	bool		asked;			/* it is connected and has asked */
	TimestampTz deadline;
} PeerProbe;

struct Peer
{
	Peer	   *next;			/* all peers of the process */
	MemoryContext context;		/* holds this struct and all below */
	uint64		id;				/* never used again in this process */
	PGconn	   *conn;			/* NULL while connecting */
	PeerMode	mode;
	bool		is_commit;		/* the simple statement that runs is one */
	bool		keep;			/* outlives transactions that abort */
	bool		show_notices;	/* to our own client */
	List	   *hidden;			/* see peer_hide(): names, schema and table in turn */
	SubTransactionId subid;		/* that opened it */
	char	   *description;
	int			version;
	bool		simple;			/* knows the simple protocol only: a console */
	TimestampTz deadline;		/* of what runs; 0 = none */
	char		backend_pid[16];	/* the peer's process; "" until known */
	char		backend_start[64];

	/* while an answer is due */
	TimestampTz last_sign;		/* of life; 0: not waited for yet */
	PeerProbe	probe;
	char		waited_for[64]; /* since then its process waits for us, as the
								 * last probe found; "" if it does not */
	int			unacked;		/* bytes, when it was looked at last */

	bool		lost;
	PeerError	loss;			/* why, if lost */
	char		last_words[512];	/* of a FATAL that the server sent */

	size_t		unsent;			/* at most so many bytes are in libpq's output
								 * buffer */

	char	   *copy_sql;		/* the COPY that runs */

	/* pipeline: ngroups, from the oldest that was not taken */
	PeerGroup	groups[PEER_MAX_GROUPS];
	int			first_group;
	int			ngroups;
	bool		group_open;		/* the last one is */
	PipelineEntry *queue;		/* [head..tail) waits for an answer */
	int			queue_head;
	int			queue_tail;
	int			queue_size;
};

/* peer.c */
extern Peer *peer_create(void);
extern void peer_abort_at_close(Peer *peer, bool abort);
extern uint32 peer_wait_event(void);
extern void peer_copy_text(char *dst, size_t size, const char *src);
extern void peer_require(Peer *peer, PeerMode mode);
extern void peer_lose(Peer *peer);
extern bool peer_wait_socket(Peer *peer, int events);
extern PGresult *peer_get_result(Peer *peer);
extern void peer_note_error(Peer *peer, const PGresult *res,
							PeerError *error);
extern bool peer_is_commit(const char *sql);
extern bool peer_note_rollback(const PGresult *res, PeerError *error);
extern void peer_rethrow_sql(const PeerError *error,
							 const char *sql) pg_attribute_noreturn();
extern int64 peer_result_affected(PGresult *res);
extern int64 peer_finish(Peer *peer, const char *sql);
extern void peer_start(Peer *peer, const char *sql);


/* peer_probe.c */
extern void peer_watch_begin(Peer *peer);
extern void peer_probe_close(Peer *peer);

#endif							/* BG_PEER_INT_H */
