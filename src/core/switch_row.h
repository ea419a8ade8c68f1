/*-------------------------------------------------------------------------
 *
 * switch_row.h
 *		What a switchover or rollback is, as others need to know it: its row in
 *		bluegreen.switch, and what its worker shows in shared memory.  The
 *		machine itself is cutover/switchover.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SWITCH_ROW_H
#define BG_SWITCH_ROW_H

#include "core/catalog.h"
#include "core/shared.h"
#include "datatype/timestamp.h"

typedef enum SwitchKind
{
	SWITCH_SWITCHOVER,			/* from blue to green */
	SWITCH_ROLLBACK,			/* from green to blue */
	SWITCH_OPEN_WINDOW			/* from the active side to both */
} SwitchKind;

extern const char *const switch_kind_names[];

/* State of a move.  Legal next states: */
typedef enum SwitchState
{
	SWITCH_RUNNING,				/* -> DECIDED, FAILED */
	SWITCH_DECIDED,				/* the other side is active -> DONE */
	SWITCH_DONE,				/* -> RUNNING (the next one) */
	SWITCH_FAILED				/* undone -> RUNNING (the next one) */
} SwitchState;

extern const char *const switch_state_names[];

/* A row of bluegreen.switch. */
typedef struct SwitchRow
{
	int32		deployment;
	SwitchKind	kind;
	int64		epoch;
	SwitchState state;
	bool		begun;			/* a worker has begun */
	bool		cancelled;
	TimestampTz deadline;
	int			drain_timeout;	/* ms */
	char	   *on_drain_timeout;
	char	   *stop_at;		/* for tests: a step, or NULL */
	char	   *sqlstate;		/* of an error, or NULL, as what follows */
	char	   *message;
	char	   *detail;
	char	   *hint;
} SwitchRow;

extern bool switch_row_read(int32 deployment, SwitchRow *row);
extern bool switch_row_request(const SwitchRow *row);
extern void switch_row_set(int32 deployment, const char *set);
extern void switch_row_error(int32 deployment, SwitchState state,
							 const ErrorData *error);
extern void switch_refuse_unfinished(const Deployment *deployment,
									 const char *what);

/* when a worker is to be started; what it has done */
extern void switch_schedule(StreamShared *shared);
extern void switch_wake(StreamShared *shared);
extern void switch_progress_begin(StreamShared *shared);
extern void switch_progress_add(StreamShared *shared, const char *text);
extern bool switch_progress_get(StreamShared *shared, int i, char *text,
								int size);

#endif							/* BG_SWITCH_ROW_H */
