/*-------------------------------------------------------------------------
 *
 * event.h
 *		History for the operator (view bluegreen.event).
 *
 * event_record() may be called from any process in any state, also while it
 * decodes: the event goes to a ring in shared memory, and a short-lived
 * recorder worker writes it to bluegreen.event_log.  event_record_local()
 * writes the row in the caller's own transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_EVENT_H
#define BG_EVENT_H

#include "access/xlogdefs.h"

typedef enum EventKind
{
	EVENT_DEFINED,				/* deployment, mapping created or altered */
	EVENT_STARTED,
	EVENT_STOPPED,
	EVENT_COPY_STARTED,			/* a table's copy began */
	EVENT_COPY_RESTARTED,		/* ... began again (TRUNCATE, recopy) */
	EVENT_COPIED,				/* a table is copied and follows */
	EVENT_STREAMING,			/* all tables follow */
	EVENT_ERROR,
	EVENT_CONFLICT,
	EVENT_SKIPPED,
	EVENT_LOST,
	EVENT_DROPPED,
	EVENT_VERIFIED,
	EVENT_REPAIRED,
	EVENT_SWITCH,				/* a step of a switchover or rollback */
	EVENT_SEQUENCES,			/* moved, or run beyond */
	EVENT_ROUTERS,				/* did not do it, or were left paused */
	EVENT_CLOCK,				/* the other side's is ahead, in a window */
	EVENT_CHANGE,				/* a change's state */
	EVENT_BLOCKED				/* a change waits for somebody's lock */
} EventKind;

extern const char *const event_kind_names[];

/* detail may be NULL, lsn may be InvalidXLogRecPtr */
extern void event_record(Oid dboid, int32 deployment, EventKind kind,
						 XLogRecPtr lsn, const char *message,
						 const char *detail);
extern void event_record_local(int32 deployment, EventKind kind,
							   XLogRecPtr lsn, const char *message,
							   const char *detail);

extern Size event_shared_size(void);
extern void event_shared_startup(void);

/* for the launcher: a database with events to write; give them up */
extern bool event_pending_database(Oid *dboid);
extern void event_discard(Oid dboid);
extern uint64 event_recorded(void); /* events dealt with so far */

#endif							/* BG_EVENT_H */
