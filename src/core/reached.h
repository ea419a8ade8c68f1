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

/* for shared.c */
extern void reached_request(void);
extern void reached_startup(void);

/* The session advances a stream's origin: what it commits is made known. */
extern void reached_attach(const char *stream);
extern void reached_commit(XLogRecPtr lsn);

/*
 * How far a stream into this database is; invalid if nobody knows.  And wait
 * until it is at lsn, or end is past: false.  Waiting needs no snapshot.
 */
extern XLogRecPtr reached_position(const char *stream);
extern bool reached_wait(const char *stream, XLogRecPtr lsn, TimestampTz end);

#endif							/* BG_REACHED_H */
