/*-------------------------------------------------------------------------
 *
 * sequence.h
 *		Sequences of the side that is about to be activated; see sequence.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SEQUENCE_H
#define BG_SEQUENCE_H

#include "core/catalog.h"
#include "core/peer.h"

/* A sequence of this side, from which the applications are moved. */
typedef struct SequenceSource
{
	Oid			oid;
	char	   *name;			/* "schema.sequence", quoted where needed */
	int64		increment;
	int64		start;
	int64		cache;
	bool		cycle;
	int64		last;			/* last_value and is_called */
	bool		called;
	int64		min;			/* also by the type of its columns */
	int64		max;
	char	   *links;			/* jsonb: columns over there that it feeds */
	char	   *names;			/* jsonb: what it may be called there */
} SequenceSource;

typedef enum SequenceVerdict
{
	SEQUENCE_OK,
	SEQUENCE_TIGHT,				/* the margin does not fit */
	SEQUENCE_WRAPS,				/* it cycles, and begins anew */
	SEQUENCE_EXHAUSTED,			/* nothing is left; cannot be moved */
	SEQUENCE_DENIED				/* we lack rights; cannot be moved */
} SequenceVerdict;

/* A sequence of the other side, and what is to become of it. */
typedef struct SequenceMove
{
	Oid			oid;			/* there */
	char	   *name;
	int64		increment;
	int64		start;
	int64		min;			/* also by the type of its columns */
	int64		max;
	bool		cycle;
	bool		readable;		/* its position is known: */
	int64		last;
	bool		called;
	bool		writable;		/* we may restart it */
	bool		has_extreme;	/* furthest value in its columns */
	int64		extreme;
	List	   *sources;		/* of SequenceSource; may be NIL */

	SequenceVerdict verdict;
	int64		first;			/* nextval() is to give this, or what is
								 * further */
	uint64		left;			/* values from there on, if the margin does
								 * not fit */
	char	   *role;			/* as whom we are there */
	bool		feeds_mapped;	/* a column that a mapping writes */
} SequenceMove;

/*
 * sequence_value.c: the arithmetic of both sides
 */
extern void sequence_decide(SequenceMove *move, int margin);
extern bool sequence_next(const SequenceMove *move, int64 at_least,
						  int64 *value);
extern bool sequence_is_beyond(int64 increment, int64 value, int64 other);
extern int64 sequence_unused(int64 increment, int64 last, bool called);

/*
 * sequence_query.c: what there is, on both sides; a list of SequenceMove.
 * *sources, unless NULL: all of this side, also those that go with none.
 */
extern List *sequences_find(const Deployment *deployment, Peer *to,
							List **sources);

/*
 * sequence.c
 *
 * sequences_plan(): what a move would do, without doing it; a list of
 * SequenceMove.  "to" is an idle session of the other side, of either kind.
 *
 * sequences_move(): restart the other side's sequences beyond everything that
 * was handed out on either side, and a margin.  In one transaction there, and
 * as often as one likes.  Waits for transactions there that use the sequences
 * for at most timeout ms.  Keeps in this transaction what it did, for
 * sequences_check_margin().  Returns how many there are.  Errors: one cannot
 * be moved and that was not accepted; 55P03 after the timeout; those of the
 * peer.
 *
 * sequences_check_margin(): nothing keeps nextval() on this side from going
 * on.  Has one of its sequences reached what the other side hands out since
 * the last sequences_move()?  Each that has is an event and a warning.  Reads
 * this side only.  Returns how many.
 */
extern List *sequences_plan(const Deployment *deployment, Peer *to);
extern int	sequences_move(const Deployment *deployment, Peer *to,
						   int timeout);
extern int	sequences_check_margin(const Deployment *deployment);
extern void sequences_keep(const Deployment *deployment, List *moves);
extern bool sequence_is_accepted(const Deployment *deployment,
								 const char *check, const char *object);

extern char *sequence_message(const SequenceMove *move);
extern char *sequence_hint(const SequenceMove *move,
						   const Deployment *deployment);

#define SEQUENCE_CHECK "sequence_move"	/* what accept() calls it */
extern int	sequence_array_values(ArrayType *array, Oid type, Datum **values);

#endif							/* BG_SEQUENCE_H */
