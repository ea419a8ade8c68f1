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

/*
 * What the connection is doing.  Legal next states:
 */
typedef enum ApplyState
{
	APPLY_IDLE,					/* -> ROWS, COMMIT (a batch without rows),
								 * PING */
	APPLY_ROWS,					/* rows sent -> OPEN, COMMIT */
	APPLY_OPEN,					/* transaction open, no answer due -> ROWS,
								 * COMMIT */
	APPLY_COMMIT,				/* COMMIT sent -> IDLE */
	APPLY_PING					/* only a sign of life is due -> IDLE */
} ApplyState;

/* Where a target transaction stands on the source. */
typedef struct ApplyPosition
{
	XLogRecPtr	end_lsn;		/* end of the last transaction in it */
	XLogRecPtr	commit_lsn;		/* its commit record, for messages */
	TimestampTz commit_time;
	int			transactions;	/* source transactions in it */
} ApplyPosition;

/* One queued statement: what it should do. */
typedef struct Expectation
{
	TargetWriter *writer;		/* NULL: no table (BEGIN, COMMIT) */
	int64		rows;			/* must be affected; -1 = any number */
} Expectation;

typedef struct Apply
{
	Peer	   *peer;
	StreamShared *shared;
	char	   *origin;
	int			nwriters;
	TargetWriter **writers;		/* by transform, in the batch's order */
	MemoryContext param_context;	/* parameters being encoded */
	PeerStatement *commit_position;

	ApplyState	state;
	bool		commit_wanted;	/* send COMMIT when the rows are confirmed */
	ApplyPosition position;		/* of the open transaction */
	ApplyPosition applied;		/* of the last one that is durable */
	bool		blamed;			/* the error that is raised has its row noted */
	int			nexpected;
	int			max_expected;
	Expectation *expected;
} Apply;

extern Apply *apply_create(Peer *peer, StreamShared *shared,
						   const char *origin, List *transforms);

/*
 * Send the rows of a batch that reaches up to position, and maybe commit.
 * Waits until nothing is in flight first; does not wait for the answer.
 */
extern void apply_send(Apply *apply, Batch *batch,
					   const ApplyPosition *position, bool commit);

/* Ask an idle peer for a sign of life; an answer is due then. */
extern void apply_ping(Apply *apply);

/* Take answers without blocking; true if nothing is in flight. */
extern bool apply_poll(Apply *apply);
extern void apply_wait(Apply *apply);

extern void apply_check_truncate(const Transform *transform);
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
} CarefulContext;

extern void apply_row_carefully(Apply *apply, const RowChange *change,
								const CarefulContext *context);

/* apply_rows.c */
extern void apply_queue_rows(Apply *apply, Batch *batch);
extern void apply_queue_row(Apply *apply, TargetWriter *writer,
							StatementKind kind, BatchRow *row);
extern void apply_queue_conflict(Apply *apply, TargetWriter *writer,
								 BatchRow *row, const char *const texts[8]);
extern void apply_queue_move(Apply *apply, TargetWriter *writer,
							 BatchRow *row, const WireValue *old_key);
extern void apply_expect(Apply *apply, TargetWriter *writer, int64 rows);
extern TargetWriter *apply_writer(Apply *apply, const Transform *transform);

#endif							/* BG_APPLY_H */
