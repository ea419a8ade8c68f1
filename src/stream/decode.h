/*-------------------------------------------------------------------------
 *
 * decode.h
 *		The output plugin: from decoded changes to transformed row changes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_DECODE_H
#define BG_DECODE_H

#include "core/catalog.h"
#include "replication/logical.h"
#include "stream/change.h"

/*
 * While a table is copied, the gate says for each row whether the stream
 * applies it.  check() looks at transform->slot, which holds the row (of an
 * old row at least the replica identity); recopy() asks for the row's key to
 * be copied again, because the change lacks a value that is nowhere else.
 * sees() tells whether the copy as a whole includes the transaction.
 */
typedef struct DecodeGate
{
	bool		(*check) (void *arg, Transform *transform,
						  ReorderBufferTXN *txn);
	void		(*recopy) (void *arg, Transform *transform,
						   ReorderBufferTXN *txn);
	bool		(*sees) (void *arg, Transform *transform,
						 ReorderBufferTXN *txn);
	void	   *arg;
} DecodeGate;

typedef struct DecodeState
{
	List	   *transforms;
	ChangeSink	sink;
	DecodeGate	gate;			/* check may be NULL: apply everything */
	XLogRecPtr	skip_lsn;		/* leave out the transaction committed here */
	bool		skipping;
	Oid			partition_change;	/* see core/partition.c */
	Oid			repair_rows;	/* see repair_row.c */
	Oid			deployments;	/* bluegreen.deployment, or invalid: where a
								 * newer mapping_version says that mappings
								 * have changed */
	int32		deployment;
	int64		mapping_version;	/* what the transforms were compiled from */
	bool		watches;		/* changes go to watch.c, and nowhere else */
	List	   *left_out;		/* ids of origins whose changes came from where
								 * this stream goes (origin_filter.c) ... */
	XLogRecPtr	left_out_from;	/* ... in WAL from here on */
	bool		pin_settings;	/* in a user's session: for each transaction */
	int			guc_level;
	MemoryContext context;		/* of this struct and the relation entries */
	MemoryContext change_context;	/* reset for each change */
	struct HTAB *relations;		/* see relation.c */
	int			max_relations;	/* look for stale ones at so many */
	struct RelationEntry *last_relation;	/* that was asked for; or NULL */
	ReorderBufferTXN *txn;		/* current, or NULL */
	int			max_columns;
	RowChange	scratch;		/* arrays of max_columns */
	RowChange	old_scratch;

	/* for errors: the transform that is evaluated, and the row, if asked for */
	Transform  *evaluating;
	bool		name_rows;
	StringInfo	row_name;
} DecodeState;

extern DecodeState *decode_create(List *transforms, const ChangeSink *sink);

/* The next startup callback of this process takes this state (the worker). */
extern void decode_attach(DecodeState *state);

/* origin_filter.c */
extern List *origin_filter_load(const Deployment *deployment);
extern bool origin_filter(struct LogicalDecodingContext *ctx,
						  RepOriginId origin);

/* The sink of the SQL interface (text.c). */
extern void text_sink_init(ChangeSink *sink, LogicalDecodingContext *ctx);
extern void text_gate_init(DecodeGate *gate, LogicalDecodingContext *ctx);

#endif							/* BG_DECODE_H */
