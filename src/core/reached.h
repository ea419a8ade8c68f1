/*-------------------------------------------------------------------------
 *
 * reached.h
 *		On a target: how far a stream has come, as others can see it, for who
 *		waits until it has come so far.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_REACHED_H
#define BG_REACHED_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "replication/origin.h"

/* for shared.c */
extern void reached_request(void);
extern void reached_startup(void);

/* The session advances a stream's origin: what it commits is made known. */
extern void reached_attach(const char *stream);
extern void reached_commit(XLogRecPtr lsn);

#define REACHED_NAME_SIZE 96	/* of an origin of ours */

/* A stream into this database, as who waits for it knows it. */
typedef struct ReachedWatch
{
	char		stream[REACHED_NAME_SIZE];	/* its origin's name */
	RepOriginId origin;
} ReachedWatch;

/*
 * How far a stream is; invalid if nobody knows.  And wait until it is at lsn, or
 * end is past.  Waiting needs no snapshot.
 */
extern void reached_watch(ReachedWatch *watch, const char *stream);
extern XLogRecPtr reached_position(const ReachedWatch *watch);
extern XLogRecPtr reached_wait(const ReachedWatch *watch, XLogRecPtr lsn,
							   TimestampTz end);

#endif							/* BG_REACHED_H */
