/*-------------------------------------------------------------------------
 *
 * session.h
 *		Sessions of users: bluegreen.session.  See session.c for the design.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SESSION_H
#define BG_SESSION_H

#include "compat.h"

#include "core/shared.h"

/* What is counted, since the server was started, for each database. */
typedef enum SessionCounter
{
	SESSION_MISSING,			/* changes here of a session that is not there */
	SESSION_LATE,				/* ... from the other side, for one that is
								 * deleted */
	SESSION_PURGED,				/* rows removed */
	SESSION_COUNTERS
} SessionCounter;

extern void session_count(SessionCounter counter, int64 n);

/* Sessions have been written: have expired ones purged now and then. */
extern void session_note_write(void);

/* This database, as the one that has written something. */
extern int64 session_writer(void);

/* for pg_bluegreen.c */
extern void session_request(void);
extern void session_startup(void);

/* entry point, found by name in the library */
extern PGDLLEXPORT void bluegreen_session_main(Datum arg);

#endif							/* BG_SESSION_H */
