/*-------------------------------------------------------------------------
 *
 * chunk.h
 *		Key ranges of a table that is being copied.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_CHUNK_H
#define BG_CHUNK_H

#include "core/peer.h"
#include "core/shared.h"
#include "stream/transform.h"

/* The columns that a table is cut by; nkeys = 0: it is one chunk. */
typedef struct KeySpace
{
	int			nkeys;
	AttrNumber *attnos;
	char	  **names;			/* quoted */
	char	  **types;			/* for casts */
	FmgrInfo   *compare;
	Oid		   *collations;
	FmgrInfo   *input;
	FmgrInfo   *output;
	Oid		   *ioparams;
	int32	   *typmods;
	FmgrInfo	array_input;	/* of text[], ready for use without catalogs */
	FmgrInfo	array_output;
} KeySpace;

typedef struct Chunk
{
	int			number;
	Datum	   *lower;			/* exclusive; NULL = from the start */
	Datum	   *upper;			/* inclusive; NULL = to the end */
	bool		key_only;		/* just the key in upper, copied again */
	bool		announced;		/* a copy worker is at it */
	/* a finished chunk: its snapshot S and position P */
	XLogRecPtr	lsn;
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64	   *xip;			/* sorted */
} Chunk;

typedef struct ChunkDirectory
{
	Transform  *transform;
	KeySpace   *space;
	MemoryContext context;		/* of the chunks */
	uint64		version;		/* of StreamShared when loaded */
	int64		generation;
	bool		key_aside;		/* the target has no index over the key */
	int			nchunks;
	Chunk	   *chunks;			/* sorted by lower bound; ranges only */
	int			nkeys;
	Chunk	   *keys;			/* single keys, latest first */
	int			next_number;
	bool		announced;		/* any chunk is */
	bool		complete;		/* finished chunks cover everything */
	XLogRecPtr	copied_until;	/* largest P */
} ChunkDirectory;

extern KeySpace *keyspace_create(Transform *transform);
extern char *keyspace_key_to_literal(KeySpace *space, const Datum *key);
extern Datum *keyspace_key_from_slot(const KeySpace *space,
									 TupleTableSlot *slot);
extern Datum *keyspace_key_from_literal(KeySpace *space, const char *literal);

extern int	chunk_compare_keys(const KeySpace *space, const Datum *a,
							   const Datum *b);
extern ChunkDirectory *chunk_directory_create(Transform *transform);
extern void chunk_directory_load(ChunkDirectory *directory, Peer *peer,
								 const char *origin, StreamShared *shared);
extern Chunk *chunk_find(ChunkDirectory *directory, const Datum *key);
extern bool chunk_first_gap(ChunkDirectory *directory, Datum **lower,
							Datum **upper);
extern bool chunk_sees(const Chunk *chunk, TransactionId xid);

#endif							/* BG_CHUNK_H */
