/*-------------------------------------------------------------------------
 *
 * sync.h
 *		A stream's worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SYNC_H
#define BG_SYNC_H

#include "core/catalog.h"
#include "core/shared.h"
#include "stream/apply.h"
#include "stream/decode.h"
#include "stream/gate.h"

typedef struct StreamWorker
{
	StreamShared *shared;
	MemoryContext context;		/* lives with the worker */
	Deployment *deployment;
	List	   *rows;			/* of MappingRow */
	List	   *transforms;
	Oid			partition_change;	/* see core/partition.c */
	Oid			repair_rows;	/* see repair_row.c */
	Oid			deployments;	/* bluegreen.deployment */
	List	   *left_out;		/* see origin_filter.c */
	char	   *origin;
	char	   *application_name;
	Peer	   *peer;			/* the apply connection */
	Peer	   *control;		/* for chunk directories, while copying */
	XLogRecPtr	progress;		/* of the target at start */

	LogicalDecodingContext *decoding;
	DecodeState *decode;
	Gate	   *gate;
	Batch	   *batch;
	Apply	   *apply;

	/* what is decoded and not yet committed on the target */
	ApplyPosition current;		/* the transaction being decoded */
	ApplyPosition pending;		/* complete ones; transactions = 0: none */
	TimestampTz batch_started;	/* when the first of them was decoded */
	int64		sent_rows;		/* of them, in parts of a transaction */
	int64		sent_bytes;
	bool		careful;		/* the current transaction goes row by row */
	bool		has_rows;		/* the current one has changed something */

	/* in a window, see window.c */
	bool		window;
	int			opposite;		/* origin of the stream that writes here */
	XLogRecPtr	seen;			/* of it, by the WAL up to here */
	XLogRecPtr	told_seen;		/* the target knows, beside what was committed */

	XLogRecPtr	decoded;		/* everything before is decoded */
	XLogRecPtr	confirmed;		/* what the slot was told last */
	TimestampTz next_mark;		/* idle progress is due */
	TimestampTz next_tick;
} StreamWorker;

/* sink.c */
extern void sink_init(StreamWorker *worker, ChangeSink *sink);
extern void sink_flush(StreamWorker *worker);
extern void sink_settle(void *arg, ReorderBufferTXN *txn);
extern void sink_forget(void *arg, const Transform *transform);
extern bool sink_has_pending(const StreamWorker *worker);

/* reader.c */
extern int	reader_page(XLogReaderState *reader, XLogRecPtr page, int wanted,
						XLogRecPtr target, char *buffer);
extern void reader_attach(StreamWorker *worker);
extern void reader_confirm(StreamWorker *worker);
extern void reader_publish(StreamWorker *worker);
extern void reader_tick(StreamWorker *worker);
extern pg_noreturn void reader_stop(StreamWorker *worker);

#endif							/* BG_SYNC_H */
