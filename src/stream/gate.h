/*-------------------------------------------------------------------------
 *
 * gate.h
 *		Which decoded rows the stream applies while tables are copied.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_GATE_H
#define BG_GATE_H

#include "stream/chunk.h"
#include "stream/decode.h"

typedef struct GateTable
{
	Transform  *transform;
	TableShared *stats;
	ChunkDirectory *directory;
	bool		passed;			/* the stream is past the table's last P */
	bool		truncated;		/* by the current transaction: its further
								 * rows belong to chunks to come */
} GateTable;

typedef struct Gate
{
	StreamShared *shared;
	Peer	   *control;		/* second connection; not in pipeline mode */
	char	   *origin;
	int			ntables;
	GateTable  *tables;
	bool		open;			/* every table is passed */
	bool		eager;			/* commit after each transaction: a copy waits
								 * for the stream */
	bool		truncated;		/* a table is, by the current transaction */
	bool		xid_waited;		/* for the current transaction */
	/* before waiting for a chunk: everything earlier goes to the target */
	void		(*settle) (void *arg, ReorderBufferTXN *txn);
	/* a row's key has been copied again: the batch's row of it is outdated */
	void		(*forget) (void *arg, const Transform *transform);
	void	   *settle_arg;
	bool		copy_failed;	/* the error is a copy worker's: no transaction
								 * is to blame */
} Gate;

extern Gate *gate_create(StreamShared *shared, Peer *control,
						 const char *origin, List *transforms,
						 XLogRecPtr progress);
extern bool gate_is_passed(const TableShared *stats, XLogRecPtr progress);
extern void gate_init_decode(Gate *gate, DecodeGate *decode);
extern void gate_finish_recopy(Gate *gate);
extern void gate_finish_keys(Gate *gate);
extern void gate_check_stop(const StreamShared *shared);
extern void gate_wait_for_xid(Gate *gate, TransactionId xid);
extern void gate_begin(Gate *gate);
extern void gate_reached(Gate *gate, XLogRecPtr lsn);
extern bool gate_truncate(Gate *gate, Transform *transform,
						  ReorderBufferTXN *txn);
extern void gate_commit(Gate *gate);

#endif							/* BG_GATE_H */
