/*-------------------------------------------------------------------------
 *
 * batch.h
 *		Row changes of whole transactions, folded to one net change a key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_BATCH_H
#define BG_BATCH_H

#include "stream/change.h"
#include "stream/wire.h"

/* What a batch knows of one key. */
typedef enum RowKind
{
	ROW_NONE,					/* came and went within the batch */
	ROW_INSERT,
	ROW_UPDATE,
	ROW_UPSERT,
	ROW_PATCH,
	ROW_DELETE,
	ROW_DELETE_IF_THERE,
	ROW_REPLACE,				/* delete, then insert */
	ROW_REPLACE_IF_THERE,		/* delete if there, then insert */
	ROW_RECREATE,				/* delete if there, then upsert */
	ROW_KINDS
} RowKind;

typedef struct BatchRow
{
	RowKind		kind;
	uint32		hash;
	struct BatchRow *chain;		/* next with the same bucket */
	struct BatchRow *next;		/* next in order of arrival */
	int64		order;			/* see key_order() */
	Datum	   *key;			/* by key column */
	WireValue  *values;			/* by column */
	WireValue  *old;			/* without a key: the row to find, by column;
								 * NULL if it is new to the target */
	bool	   *missing;		/* by column; NULL = none */
	XLogRecPtr	seen;			/* by its last change, see window.c */
} BatchRow;

#define BATCH_LOOKUP_ROWS	2000	/* rows of a mapping with a lookup */

/* The rows of one mapping. */
typedef struct BatchTable
{
	Transform  *transform;
	Bitmapset  *apart;			/* tables, by number, whose rows must not be in
								 * a batch together with this one's */
	int			nrows;			/* with ROW_NONE */
	BatchRow   *first;
	BatchRow   *last;
	BatchRow  **buckets;
	uint32		nbuckets;		/* a power of 2 */
	uint32		expected;		/* rows, by the batches before */
	int64		max_order;		/* of the rows */
	bool		unsorted;		/* not each row's order was above all before */
	BatchRow   *unlinked;		/* from here on rows are not in the buckets;
								 * NULL: all of them are */
	uint32		kinds;			/* that rows are or were, as bits */
} BatchTable;

typedef struct Batch
{
	MemoryContext context;		/* reset by batch_reset() */
	Arena	   *arena;			/* the rows; as well */
	int			ntables;
	BatchTable *tables;			/* one per transform of the stream */
	Datum	   *key;			/* scratch: the key at hand, by key column */
	int64		rows;			/* in the tables */
	int64		bytes;			/* of their values */
	XLogRecPtr	seen;			/* by what is added now */
	bool		window;			/* the target takes writes, too */
	uint64	   *shared_keys;	/* keys of shared targets, see batch.c */
	uint32		nshared;
	uint32		shared_size;
} Batch;

typedef enum BatchResult
{
	BATCH_ADDED,
	BATCH_CUT					/* send what is there first, then add again */
} BatchResult;

extern Batch *batch_create(List *transforms);
extern BatchResult batch_add(Batch *batch, const RowChange *change);
extern void batch_forget(Batch *batch, const Transform *transform,
						 const Datum *values);
extern void batch_reset(Batch *batch);
extern void *batch_alloc(Batch *batch, Size size);
extern BatchTable *batch_table(Batch *batch, const Transform *transform);
extern BatchRow **batch_sorted_rows(BatchTable *table);

/* keyless.c */
extern void keyless_add(Batch *batch, BatchTable *table,
						const RowChange *change);
extern int	keyless_compare(const Transform *transform, const WireValue *a,
							const WireValue *b);

#endif							/* BG_BATCH_H */
