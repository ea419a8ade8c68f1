/*-------------------------------------------------------------------------
 *
 * window.h
 *		Both sides take writes: policies, and what a stream does otherwise.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_STREAM_WINDOW_H
#define BG_STREAM_WINDOW_H

#include "stream/apply.h"
#include "stream/sync.h"

/* sync.c, reader.c: the worker of a stream in a window */
extern void window_end(StreamShared *shared);
extern void window_prepare(StreamWorker *worker);
extern void window_load(StreamWorker *worker);
extern void window_see(StreamWorker *worker);
extern void window_tell(StreamWorker *worker);
extern void window_watch_stopped(StreamShared *shared,
								 const Deployment *deployment);

/* sink.c: after what was left out is committed; before a transaction */
extern void window_collect(StreamWorker *worker);
extern bool window_is_careful(StreamWorker *worker, XLogRecPtr commit_lsn);

/* The number that a value of the column that decides stands for. */
extern int64 window_value_rank(Oid type, Datum value, bool isnull);

/*
 * Attribute of the source that decides in a mapping, or 0; the first: also if
 * the one that is named cannot.
 */
extern int	window_find_decider(const Transform *transform);
extern int	window_decider(const Transform *transform);

/* window_check.c: can conflicts of a mapping's rows be decided? */
typedef struct WindowProblem
{
	const char *why;			/* NULL: they can */
	char	   *hint;			/* SQL to be run on the side of the source, or
								 * NULL */
} WindowProblem;

/* A mapping, as it is compared with the one the other way. */
typedef struct WindowMapping
{
	char	   *source;
	char	   *target;
	char	   *policy;			/* with the column that decides on both sides */
	char	   *columns;		/* which becomes which; NULL: not as they are */
	char	   *source_key;		/* own changes of the source are known by it */
	char	   *target_key;		/* rows of the target are found by it */
	WindowProblem problem;
} WindowMapping;

extern WindowProblem window_problem(const Transform *transform);
extern List *window_describe(const Deployment *deployment, bool back);

/* control.c: end who watches, and drop his slot */
extern void window_forget(const char *slot_name);

/* statement_window.c */
extern void window_writer_load(Peer *peer, TargetWriter *writer,
							   const char *side, const char *origin);

/* window_row.c, for apply_rows.c: the keys of a batch */
extern void window_queue_check(Apply *apply, const Slice *slice);

/* sink.c: error if a change must not go with others, in a batch */
extern void window_check_change(Apply *apply, const RowChange *change);

/* apply.c: one row in the careful path */
extern void window_row(Apply *apply, BatchRow *row, const RowChange *change,
					   const CarefulContext *context);

#endif							/* BG_STREAM_WINDOW_H */
