/*-------------------------------------------------------------------------
 *
 * window.h
 *		Both sides take writes: policies, and what a stream does otherwise.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_WINDOW_H
#define BG_WINDOW_H

#include "stream/apply.h"
#include "stream/sync.h"

/* sync.c, reader.c: the worker of a stream in a window */
extern void window_prepare(StreamWorker *worker);
extern void window_load(StreamWorker *worker);
extern void window_see(StreamWorker *worker);
extern void window_tell(StreamWorker *worker);

/* The number that a value of the column that decides stands for. */
extern int64 window_value_rank(Oid type, Datum value, bool isnull);

/* Attribute of the source that decides in a mapping, or 0. */
extern int	window_decider(const Transform *transform);

/* control.c: end who watches, and drop his slot */
extern void window_forget(const char *slot_name);

/* statement_window.c */
extern void window_writer_load(Peer *peer, TargetWriter *writer,
							   const char *side);

/* apply_rows.c: the keys of a batch */
extern void window_queue_check(Apply *apply, const Slice *slice);

/* apply.c: one row in the careful path */
extern void window_row(Apply *apply, BatchRow *row, const RowChange *change,
					   const CarefulContext *context);

#endif							/* BG_WINDOW_H */
