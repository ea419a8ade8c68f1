/*-------------------------------------------------------------------------
 *
 * window.h
 *		A window, in which both sides take writes: what opens and closes it.
 *		See window.c for the design.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_CUTOVER_WINDOW_H
#define BG_CUTOVER_WINDOW_H

#include "core/catalog.h"
#include "core/peer.h"
#include "cutover/sequence.h"
#include "cutover/switchover.h"

/* window.c: steps on the side that a move goes from */
extern const SwitchPlan switch_plan_open_window;
extern void window_check_other(SwitchMove *move);
extern void step_numbers_back(SwitchMove *move);
extern void step_window_closed(SwitchMove *move);

/* window_target.c: what the other side is asked */
extern bool window_set(int32 deployment, WindowState state);
extern void window_leave(int32 fence);

/*
 * A sequence that must not give what one of the other side gives, while both
 * sides take writes; see sequence_window.c.
 */
typedef struct WindowSequence
{
	bool		here;
	Oid			oid;
	char	   *name;
	int64		increment;		/* its own */
	int64		last;
	bool		called;
	bool		cycle;
	int64		min;
	int64		max;
	SequenceMove *move;			/* of one over there */
	SequenceSource *source;		/* of one here */
	int			group;			/* those that go together have the same */
	int64		step;			/* its increment in the window; 0 = as before */
	int64		first;			/* nextval() is to give this, or what is
								 * further */
	char	   *problem;		/* or NULL */
} WindowSequence;

/*
 * sequence_window.c
 *
 * window_sequences_plan(): what is to be done, or why it cannot be; an array.
 *
 * window_sequences_open(): have the sequences of this side, then those of the
 * other leave each other's numbers out.  In one transaction on each side;
 * commits here in between.  Errors: a problem that was not accepted; 55P03 if
 * transactions that use a sequence do not end in time.
 *
 * window_sequences_close(): those of the other side, which stays, go on by
 * their own steps, beyond all that either side has given; those of this side
 * have their own steps again.  Can be repeated.  False if transactions that use
 * a sequence are to be waited for.
 */
extern WindowSequence *window_sequences_plan(const Deployment *deployment,
											 Peer *to, int *n);
extern int	window_sequences_open(SwitchMove *move, Peer *to);
extern bool window_sequences_close(SwitchMove *move, Peer *to, int *n);
extern bool window_sequences_undo(const Deployment *deployment);

#define WINDOW_SEQUENCE_CHECK "window_sequence" /* what accept() calls it */

/* sequence_target.c: on the side of the sequence */
extern int64 sequence_interleave(int32 deployment, Oid sequence,
								 int64 increment, int64 first);
extern int	sequences_restore(int32 deployment, int n, const Oid *sequences,
							  const int64 *at_least, bool look);

#endif							/* BG_CUTOVER_WINDOW_H */
