/*-------------------------------------------------------------------------
 *
 * relation.h
 *		What decoding knows about a relation that changes refer to.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_RELATION_H
#define BG_RELATION_H

#include "stream/decode.h"

/*
 * A tuple that is deformed.  The arrays have an entry for each column that the
 * relation or a source of a transform has; NULL if the tuple has none.
 */
typedef struct DeformedTuple
{
	Datum	   *values;
	bool	   *isnull;
} DeformedTuple;

/* One transform over a relation that is its source or a leaf of it. */
typedef struct RelationTransform
{
	Transform  *transform;
	AttrNumber *attrmap;		/* source attribute -> leaf attribute, 0 if
								 * none; NULL if they are the same */
	Datum	   *values;			/* for the slot, where that is not the tuple */
	bool	   *isnull;
	/* what old tuples carry of the source, as of now in the WAL */
	bool		identity_full;	/* the whole row */
	Bitmapset  *identity;
	bool		identity_ok;	/* it suffices */
	bool		filter_by_identity; /* the filter reads nothing else */
	Misfit		misfit;			/* no name: the transform fits the relation */
} RelationTransform;

typedef struct RelationEntry
{
	Oid			relid;			/* hash key */
	bool		valid;
	int			ntransforms;
	RelationTransform *transforms;
	MemoryContext context;
	DeformedTuple new;			/* of the change at hand */
	DeformedTuple old;
} RelationEntry;

extern void relation_entries_create(DecodeState *state);
extern Misfit relation_find_misfit(const Transform *transform, Relation root);
extern pg_noreturn void relation_refuse(const Transform *transform,
										const Misfit *misfit);
extern RelationEntry *relation_entry(DecodeState *state, Relation relation);

#endif							/* BG_RELATION_H */
