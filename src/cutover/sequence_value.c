/*-------------------------------------------------------------------------
 *
 * sequence_value.c
 *		Where a sequence is to go on: arithmetic only.
 *
 * A sequence goes up or down, by steps that may be larger than one, which
 * somebody may have chosen so that two sequences never meet (odd numbers here,
 * even ones there).  So we stay on its own steps.  One that goes down is the
 * mirror image of one that goes up: ~x takes the order of all integers around,
 * without an overflow.  All below is about one that goes up; flip() goes in
 * and out.
 *
 * The first value must be beyond what either side has handed out, beyond the
 * values in the columns, and should leave the margin behind what this side has
 * handed out.  Where the margin does not fit, half of what is left is margin.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cutover/sequence.h"

static int64
flip(int64 increment, int64 value)
{
	return increment < 0 ? ~value : value;
}

static uint64
step_of(int64 increment)
{
	return increment < 0 ? 0 - (uint64) increment : (uint64) increment;
}

/* a + b, or the largest number. */
static int64
add(int64 a, uint64 b)
{
	if (b > (uint64) PG_INT64_MAX - (uint64) a)
		return PG_INT64_MAX;
	return (int64) ((uint64) a + b);
}

/* a * b, or the largest number. */
static uint64
multiply(uint64 a, uint64 b)
{
	return a != 0 && b > (uint64) PG_INT64_MAX / a ? PG_INT64_MAX : a * b;
}

/* Is value further than other, in the direction of the increment? */
bool
sequence_is_beyond(int64 increment, int64 value, int64 other)
{
	return flip(increment, value) > flip(increment, other);
}

/*
 * The first value in its direction that a sequence has not given, whatever its
 * steps are.
 */
int64
sequence_unused(int64 increment, int64 last, bool called)
{
	return called ? flip(increment, add(flip(increment, last), 1)) : last;
}

/* The end in the sequence's direction, flipped; and the other one. */
static int64
limit_of(const SequenceMove *move)
{
	return flip(move->increment, move->increment < 0 ? move->min : move->max);
}

static int64
bottom_of(const SequenceMove *move)
{
	return flip(move->increment, move->increment < 0 ? move->max : move->min);
}

/*
 * The first of the sequence's own values from at_least on that it has not
 * handed out; false if there is none before its end.  In *value then.
 */
bool
sequence_next(const SequenceMove *move, int64 at_least, int64 *value)
{
	uint64		step = step_of(move->increment);
	int64		limit = limit_of(move);
	int64		wanted = flip(move->increment, at_least);
	int64		next = flip(move->increment, move->last);

	if (next > limit)
		return false;
	if (move->called)
	{
		if (step > (uint64) limit - (uint64) next)
			return false;
		next = (int64) ((uint64) next + step);
	}
	if (wanted > next)
	{
		uint64		distance = (uint64) wanted - (uint64) next;
		uint64		steps = distance / step + (distance % step != 0);

		if (wanted > limit ||
			steps > ((uint64) limit - (uint64) next) / step)
			return false;
		next = (int64) ((uint64) next + steps * step);
	}
	*value = flip(move->increment, next);
	return true;
}

/*
 * The first value that a source has not handed out, flipped as the target's
 * are; *margin behind it may be handed out soon.
 */
static int64
first_free(const SequenceMove *move, const SequenceSource *source, int margin,
		   uint64 *room)
{
	bool		same = (source->increment < 0) == (move->increment < 0);
	int64		value = flip(move->increment, same ? source->last :
							 source->start);

	/* one that goes the other way has begun at its start, and goes away */
	*room = same ? multiply((uint64) margin + (uint64) source->cache,
							step_of(source->increment)) : 0;
	return source->called ? add(value, 1) : value;
}

/*
 * It begins anew at its other end: behind as much as the margin there, in
 * which the other side may be.
 */
static void
wrap(SequenceMove *move, uint64 margin)
{
	int64		bottom = bottom_of(move);
	uint64		room = (uint64) limit_of(move) - (uint64) bottom;
	uint64		step = step_of(move->increment);

	margin = Min(margin, room / 2) / step * step;
	move->verdict = SEQUENCE_WRAPS;
	move->first = flip(move->increment, (int64) ((uint64) bottom + margin));
}

/*
 * Decide where a sequence is to go on, and whether it can be moved there.
 */
void
sequence_decide(SequenceMove *move, int margin)
{
	int64		limit = limit_of(move);
	int64		least = PG_INT64_MIN;	/* nobody has handed that out */
	int64		wanted = PG_INT64_MIN;	/* ... and behind the margin */
	uint64		largest = 0;
	int64		value;
	ListCell   *lc;

	move->verdict = SEQUENCE_DENIED;
	if (!move->readable || !move->writable)
		return;
	if (move->has_extreme)
		least = add(flip(move->increment, move->extreme), 1);
	foreach(lc, move->sources)
	{
		uint64		room;
		int64		source = first_free(move, lfirst(lc), margin, &room);

		least = Max(least, source);
		wanted = Max(wanted, add(source, room));
		largest = Max(largest, room);
	}
	wanted = Max(wanted, least);
	move->verdict = SEQUENCE_OK;
	move->first = flip(move->increment, wanted);
	if (sequence_next(move, move->first, &value))
		return;
	move->verdict = SEQUENCE_TIGHT;
	if (least <= limit)
	{
		uint64		half = ((uint64) limit - (uint64) least) / 2;

		move->first = flip(move->increment, (int64) ((uint64) least + half));
		if (!sequence_next(move, move->first, &value))
			move->first = flip(move->increment, least);
	}
	if (least <= limit && sequence_next(move, move->first, &value))
	{
		value = flip(move->increment, value);
		move->left = ((uint64) limit - (uint64) value) /
			step_of(move->increment) + 1;
	}
	else if (move->cycle)
		wrap(move, largest);
	else
		move->verdict = SEQUENCE_EXHAUSTED;
}
