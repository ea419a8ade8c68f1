/*-------------------------------------------------------------------------
 *
 * apply.h
 *		Write batches to the target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_APPLY_H
#define BG_APPLY_H

#include "core/shared.h"
#include "stream/batch.h"
#include "stream/statement.h"

/* Where a target transaction stands on the source. */
typedef struct ApplyPosition
{
	XLogRecPtr	end_lsn;		/* end of the last transaction in it */
	XLogRecPtr	commit_lsn;		/* its commit record, for messages */
	TimestampTz commit_time;
	TimestampTz oldest;			/* commit time of the first one in it */
	int			transactions;	/* source transactions in it */
	XLogRecPtr	seen;			/* in a window: of the opposite stream, when
								 * the last one was committed */
	XLogRecPtr	seen_before;	/* ... when the first one was */
} ApplyPosition;

/* What is on its way to the peer and back: a group of the pipeline. */
typedef struct Flight
{
	bool		commits;		/* else the transaction stays open */
	ApplyPosition position;		/* which the transaction is to reach */
} Flight;

/* Rows of a batch that go in one statement. */
typedef struct Slice
{
	TargetWriter *writer;
	StatementKind kind;
	bool		by_columns;		/* update the columns that the rows carry */
	bool		counted;		/* each row must be there */
	BatchRow  **rows;
	int			nrows;
} Slice;

typedef struct Apply
{
	Peer	   *peer;
	StreamShared *shared;
	char	   *origin;
	int			nwriters;
	TargetWriter **writers;		/* by transform, in the batch's order */
	MemoryContext param_context;	/* parameters being encoded */
	PeerStatement *commit_position;
	PeerStatement *check_rows;
	PeerStatement *note_reached;
	PeerStatement *note_seen;
	char	   *window;			/* the side that this comes from, in a window;
								 * else NULL */
	XLogRecPtr	noted_seen;		/* on the target, with the progress */
	XLogRecPtr	told_seen;		/* the target was told before a transaction */
	bool		owes;			/* a row was left out, see window.c */
	TimestampTz conflict_at;	/* the last one in a window, or 0 */

	/* what is being sent */
	bool		open;			/* BEGIN was queued, COMMIT was not */
	ApplyPosition position;		/* of that transaction */
	XLogRecPtr	reached;		/* position of the last COMMIT queued */
	Batch	   *outgoing;		/* its slices are being queued; NULL: none */
	bool		commit_wanted;	/* COMMIT when all of it is queued */
	Slice	   *slices;			/* in the batch's memory */
	int			nslices;
	int			max_slices;
	int			next_slice;
	Batch	   *spare;			/* empty, while none is outgoing */

	/* what was sent */
	Flight		flights[PEER_MAX_GROUPS];	/* a ring */
	int			first_flight;
	int			nflights;
	ApplyPosition applied;		/* of the last one that is durable */
	const ApplyPosition *waiting;	/* the caller's, that are not sent yet */

	bool		blamed;			/* the error that is raised has its row noted */
	bool		careful;		/* the open transaction goes row by row */
	int			row_statement;	/* in the open group: the last on a table */

	/* rows that each statement on a table must affect, or -1; since the peer
	 * was asked last */
	int			nexpected;
	int			max_expected;
	int64	   *expected;
} Apply;

extern Apply *apply_create(Peer *peer, StreamShared *shared,
						   const char *origin, List *transforms,
						   XLogRecPtr progress);
extern void apply_open_window(Apply *apply, char direction, XLogRecPtr seen);

/*
 * Send the rows of a batch that reaches up to position, and maybe commit.
 * Waits until the batch before it is on its way; what is left of this one goes
 * with later calls of apply_poll().  Returns an empty batch to be filled next.
 */
extern Batch *apply_send(Apply *apply, Batch *batch,
						 const ApplyPosition *position, bool commit);

/* Ask an idle peer for a sign of life; an answer is due then. */
extern void apply_ping(Apply *apply);

/* Tell an idle peer's sessions how far the stream is (core/reached.c). */
extern void apply_tell(Apply *apply, XLogRecPtr lsn);

/* In a window: tell an idle peer what we have seen of it (own_changes.c). */
extern void apply_tell_seen(Apply *apply, XLogRecPtr seen);

/* Send and take answers without blocking; true if nothing is on its way. */
extern bool apply_poll(Apply *apply);
extern void apply_wait(Apply *apply);
extern bool apply_is_idle(const Apply *apply);
extern void apply_note_oldest(Apply *apply);

extern void apply_check_truncate(Apply *apply, const Transform *transform);
extern void apply_truncate(Apply *apply, List *transforms,
						   bool restart_identity,
						   const ApplyPosition *position);
extern void apply_restart_copy(Apply *apply, const Transform *transform,
							   const ApplyPosition *position);
extern void apply_move(Apply *apply, const RowChange *change,
					   const ApplyPosition *position);

/* The careful path: one row, confirmed, with conflicts resolved. */
typedef struct CarefulContext
{
	const char *deployment;
	ApplyPosition position;		/* of the transaction */
	PeerStatement *note;		/* the row that a conflict is recorded with, if
								 * it is another one than the key's */
	bool		first;			/* nothing is before it in its transaction */
	bool		meets;			/* if it violates a unique constraint the
								 * answer is -1, not an error */
} CarefulContext;

extern void apply_row_carefully(Apply *apply, const RowChange *change,
								const CarefulContext *context);

/* for apply_careful.c and window.c */
extern void apply_launch(Apply *apply, bool commits);
extern void apply_start_group(Apply *apply, const ApplyPosition *position);
extern int64 apply_finish_carefully(Apply *apply, const RowChange *change);
extern int64 apply_run_carefully(Apply *apply, StatementKind kind,
								 BatchRow *row, const RowChange *change,
								 const CarefulContext *context);
extern void apply_record_conflict(Apply *apply, BatchRow *row,
								  const RowChange *change,
								  const CarefulContext *context,
								  const char *const words[2]);
extern char *apply_blame_row(Apply *apply, const RowChange *change);

/* apply_rows.c */
extern void apply_slice_batch(Apply *apply, Batch *batch);
extern void apply_queue_slice(Apply *apply, const Slice *slice);
extern void apply_queue_row(Apply *apply, TargetWriter *writer,
							StatementKind kind, BatchRow *row);
extern void apply_queue_conflict(Apply *apply, TargetWriter *writer,
								 BatchRow *row, const char *const texts[8],
								 PeerStatement *note);
extern void apply_queue_move(Apply *apply, TargetWriter *writer,
							 BatchRow *row, const WireValue *old_key);
extern void apply_expect(Apply *apply, int64 rows);
extern TargetWriter *apply_writer(Apply *apply, const Transform *transform);

#endif							/* BG_APPLY_H */
