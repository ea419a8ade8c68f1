/*-------------------------------------------------------------------------
 *
 * peer.h
 *		The connection to the other cluster.  Only peer*.c know libpq;
 *		everybody else sees the types below.
 *
 * Two ways to talk:
 *	- simple: peer_query() and peer_command() wait (interruptibly) and raise
 *	  the remote error with its own SQLSTATE;
 *	- pipeline: peer_send*() queue statements, peer_pump() moves bytes without
 *	  blocking, and the outcome of each queued statement is read when the
 *	  group that peer_sync() closed has completed.  Several groups may be on
 *	  their way.  Nothing is raised for a remote statement that fails; the
 *	  caller reads PeerGroup.
 *
 * A Peer has a memory context of its own and survives the caller's;
 * peer_close() frees it.  Whatever a transaction or subtransaction opened is
 * closed when that aborts, and every peer is closed at process exit;
 * peer_keep() makes one outlive aborts as well.
 *
 * Every function that talks to the peer waits on the latch too and may raise
 * a local error (a cancel, a shutdown).  A peer whose statement was left that
 * way counts as lost.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PEER_H
#define BG_PEER_H

#include "compat.h"
#include "datatype/timestamp.h"

typedef struct Peer Peer;

/* One connection option that libpq has. */
typedef struct PeerOption
{
	const char *keyword;
	bool		secret;			/* a password or the like */
	bool		debug;			/* for developers; not offered to users */
} PeerOption;

/* A result of a simple query, palloc'ed in the caller's context. */
typedef struct PeerResult
{
	int			ntuples;
	int			nfields;
	char	  **names;			/* of the columns */
	char	 ***values;			/* [row][column]; NULL = SQL NULL; text format */
	int64		affected;		/* rows that the command tag counts, else 0 */
} PeerResult;

/* One remote error, in fixed storage so that it outlives every context. */
typedef struct PeerError
{
	char		sqlstate[6];	/* "" = no error; "08006" for a lost
								 * connection */
	char		message[512];
	char		detail[512];
	char		hint[256];
	char		context[512];	/* the peer's own: a function, a COPY line */
	char		schema[NAMEDATALEN];
	char		table[NAMEDATALEN];
	char		column[NAMEDATALEN];
	char		constraint[NAMEDATALEN];
} PeerError;

/* Outcome of the statements between two peer_sync() calls. */
typedef struct PeerGroup
{
	bool		done;			/* all answers are in */
	int			nstatements;	/* statements queued in the group */
	int64	   *affected;		/* per statement; -1 = not executed */
	int			failed;			/* index of the failed statement, or -1 */
	PeerError	error;			/* set if failed >= 0 or connection lost (then
								 * failed is -1 and what ran is unknown) */
	int			allocated;		/* entries of affected */
} PeerGroup;

#define PEER_MAX_GROUPS 16		/* that wait to be taken, and one */

/*
 * A statement that is prepared at its first use on a connection.  It must live
 * until every group that used it is done.
 */
typedef struct PeerStatement
{
	char	   *sql;
	char		name[32];		/* of its last preparation */
	int			nparams;
	Oid		   *types;			/* NULL: let the server infer every type */
	uint64		prepared_on;	/* id of the connection that knows it, or 0 */
} PeerStatement;

/* connection */
extern Peer *peer_connect(const char *server, Oid userid,
						  const char *application_name);
extern Peer *peer_try_console(const char *server, Oid userid, int timeout,
							  PeerError *error);
extern void peer_close(Peer *peer);
extern void peer_keep(Peer *peer);	/* outlive transactions that abort */

/* What errors say of this table's values is not for everybody to read. */
extern void peer_hide(Peer *peer, const char *schema, const char *table);
extern void peer_show_notices(Peer *peer);
extern bool peer_is_alive(Peer *peer);
extern void peer_check(Peer *peer);
extern int	peer_server_version(Peer *peer);
extern const char *peer_description(Peer *peer);	/* host:port/db, no secret */
extern void peer_begin_apply(Peer *peer);
extern void peer_on_connect_apply(Peer *peer);	/* session settings of apply */
extern const PeerOption *peer_options(int *count);	/* all of libpq's */

/* simple */
extern PeerResult *peer_query(Peer *peer, const char *sql, int nargs,
							  const char *const *args);
extern PeerResult *peer_try_query(Peer *peer, const char *sql, int nargs,
								  const char *const *args, PeerError *error);
extern void peer_query_begin(Peer *peer, const char *sql);
extern PeerResult *peer_query_end(Peer *peer, const char *sql);
extern PeerResult *peer_try_end(Peer *peer, PeerError *error);
extern void peer_set_deadline(Peer *peer, TimestampTz deadline);
extern int64 peer_command(Peer *peer, const char *sql);
extern bool peer_try_command(Peer *peer, const char *sql, PeerError *error);

/* COPY ... FROM STDIN */
extern void peer_copy_begin(Peer *peer, const char *sql);
extern void peer_copy_data(Peer *peer, const char *data, int len);
extern int64 peer_copy_end(Peer *peer);

/*
 * pipeline
 *
 * peer_send*() open a group and peer_sync() closes it; others may follow at
 * once, as long as peer_has_room().  Groups are done in order, and
 * peer_take_group() takes the next one that is.  The server knows nothing of
 * groups failing together: it carries out the next one when one has failed.
 *
 * peer_busy(): a closed group is not done.  peer_pump() moves what can move
 * now and returns true if none is; peer_wait() waits until something has moved.
 * peer_is_clogged(): what was queued is not on its way yet, and more should
 * wait until it is.  On a lost connection all closed groups are done, with error
 * 08006 if they were not before.
 */
extern void peer_pipeline_enter(Peer *peer);
extern void peer_pipeline_exit(Peer *peer);
extern PeerStatement *peer_statement_create(const char *sql, int nparams,
											const Oid *types);
extern void peer_send(Peer *peer, PeerStatement *stmt,
					  const char *const *values, const int *lengths,
					  const int *formats);
extern void peer_send_sql(Peer *peer, const char *sql);
extern void peer_sync(Peer *peer);
extern bool peer_pump(Peer *peer);
extern bool peer_busy(Peer *peer);
extern bool peer_has_room(Peer *peer);
extern bool peer_is_clogged(Peer *peer);
extern int	peer_open_statements(Peer *peer);
extern const PeerGroup *peer_take_group(Peer *peer);
extern int	peer_wait_events(Peer *peer);	/* WL_SOCKET_* wanted now */
extern int	peer_socket(Peer *peer);
extern void peer_wait(Peer *peer);

/* for those who wait themselves, while peer_busy() */
extern long peer_watch(Peer *peer);
extern bool peer_is_silent(Peer *peer); /* has not been heard of for long */
extern void peer_sign(Peer *peer);

/* errors */
extern void peer_rethrow(const PeerError *error, const char *context) pg_attribute_noreturn();
extern bool peer_sqlstate_is_transient(const char *sqlstate);

#endif							/* BG_PEER_H */
