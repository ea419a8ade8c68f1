/*-------------------------------------------------------------------------
 *
 * clock.h
 *		The clocks of two servers; see clock.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_CLOCK_H
#define BG_CLOCK_H

#include "core/peer.h"
#include "datatype/timestamp.h"

/* A time of this server's clock, as this server is to take it. */
extern TimestampTz clock_shifted(TimestampTz at);

/* The other side's clock, in microseconds. */
typedef struct ClockSkew
{
	int64		ahead;			/* of ours; behind if negative */
	int64		error;			/* at most */
} ClockSkew;

extern ClockSkew clock_compare(Peer *peer);

/* commit_position(): a change of the other side, in a window */
extern void clock_note_commit(TimestampTz commit_time);

#endif							/* BG_CLOCK_H */
