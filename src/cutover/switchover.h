/*-------------------------------------------------------------------------
 *
 * switchover.h
 *		What the files of the switchover share.  See switchover.c for the
 *		design.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SWITCHOVER_H
#define BG_SWITCHOVER_H

#include "core/definition.h"
#include "core/switch_row.h"
#include "cutover/fence.h"
#include "lib/stringinfo.h"

typedef struct SwitchPlan SwitchPlan;

/* One move, in its worker. */
typedef struct SwitchMove
{
	const SwitchPlan *plan;
	StreamShared *shared;
	MemoryContext context;		/* of what outlives transactions */
	Deployment *deployment;
	SwitchRow	row;
	const char *from;			/* "blue" or "green": this side */
	const char *to;
	int32		fence;			/* of this side */
	char	   *stream;			/* our stream, as the other side knows it */
	Peer	   *peer;			/* or NULL */
	bool		stops;			/* at row.stop_at */
	const char *step_name;		/* that was begun last, or NULL */
	TimestampTz step_begun;
	bool		again;			/* begin again */
	ErrorData  *error;			/* why there was no decision */
	StringInfoData note;		/* what the step tells instead of its name */
} SwitchMove;

/*
 * A step.  run() waits as long as it needs: cancel and timeout come by
 * themselves.  An error undoes the move.
 */
typedef struct SwitchStep
{
	const char *name;			/* for bluegreen.switchover_stop_at */
	const char *what;			/* was done when it returns; NULL: only the note */
	void		(*run) (SwitchMove *move);
	void		(*undo) (SwitchMove *move); /* may be called at any time before
											 * the decision, also if run() was
											 * not; or NULL */
	const char *plan;			/* what dry_run says */
} SwitchStep;

/*
 * A kind of move.  What the other side is asked has the stream and the epoch as
 * arguments; %s is the side that the move goes to.
 */
struct SwitchPlan
{
	const SwitchStep *before;	/* the decision */
	int			nbefore;
	const SwitchStep *after;
	int			nafter;
	const char *decide;			/* asks for it */
	const char *settle;			/* was it made?  It cannot be any more */
	const char *decided;		/* what is told */
	const char *doubt;			/* what is told if nobody answers */
	bool		(*is_decided) (SwitchMove *move);	/* by a worker before us */
};

/* switchover.c */
extern const SwitchPlan switch_plan_move;
extern void switch_commit(SwitchMove *move);
extern void switch_rest(SwitchMove *move, long ms);
extern void switch_stop_at(SwitchMove *move, const char *step);

/* switchover_steps.c */
extern void step_ready(SwitchMove *move);
extern void step_drain(SwitchMove *move);
extern void step_pause(SwitchMove *move);
extern void undo_pause(SwitchMove *move);
extern void step_fence(SwitchMove *move);
extern void undo_fence(SwitchMove *move);
extern void step_barrier(SwitchMove *move);
extern void step_sequences(SwitchMove *move);
extern void step_doubt(SwitchMove *move);
extern void switch_wait_standbys(SwitchMove *move);
extern void step_close(SwitchMove *move);
extern void step_routers(SwitchMove *move);
extern void step_margin(SwitchMove *move);
extern void step_tell(SwitchMove *move);

/* switchover_peer.c: the decision, which is on the other side */
typedef struct FenceView
{
	FenceState	state;
	int64		epoch;
	bool		window;
} FenceView;

extern Peer *switch_peer(SwitchMove *move);
extern FenceView switch_look(Peer *peer, const char *stream);
extern bool switch_decide(SwitchMove *move);
extern bool switch_resolve(SwitchMove *move);

/* switchover_call.c */
extern void switch_pass_on(const char *name, const char *there,
						   const char *procedure);

/* drain.c */
extern bool drain_any(int32 deployment);
extern char *drain_unmet(const Deployment *deployment);

#endif							/* BG_SWITCHOVER_H */
