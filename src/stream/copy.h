/*-------------------------------------------------------------------------
 *
 * copy.h
 *		Copying tables in chunks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_COPY_H
#define BG_COPY_H

#include "stream/chunk.h"
#include "stream/statement.h"
#include "tcop/dest.h"

/* A table as a copy worker sees it. */
typedef struct CopyTable
{
	Transform  *transform;
	TableShared *stats;
	ChunkDirectory *directory;
	TargetWriter *writer;
	bool		partitioned;	/* source is */
	bool		staged;			/* rows go through a temporary table */
	bool		binary;			/* COPY format */
	bool		crowded;		/* in a plan: others are at it */
} CopyTable;

/* A chunk to copy, or a table to finish. */
typedef struct CopyJob
{
	CopyTable  *table;
	int64		generation;
	int			number;
	Datum	   *lower;
	Datum	   *upper;
	int64		rows;			/* about so many */
	bool		key_only;
} CopyJob;

typedef struct CopyState
{
	StreamShared *shared;
	CopyShared *slot;			/* this worker's */
	Deployment *deployment;
	Peer	   *peer;
	char	   *origin;			/* of the stream, names its rows */
	MemoryContext context;		/* lives with the worker */
	MemoryContext chunk_context;	/* reset after each chunk */
	List	   *tables;			/* of CopyTable */
	CopyTable  *table;			/* that is being worked on, for messages */
	bool		evaluating;		/* rows are being transformed ... */
	CopyJob		job;			/* ... of this chunk */
} CopyState;

/* Receives rows from the executor and sends them as COPY data. */
typedef struct CopyReceiver
{
	DestReceiver pub;
	CopyState  *state;
	const CopyTable *table;
	StringInfoData buffer;
	MemoryContext row_context;
	int64		rows;
	int64		bytes;
} CopyReceiver;

/* What to do next.  */
typedef enum CopyStep
{
	COPY_CHUNK,					/* a chunk is announced: copy it */
	COPY_KEY,					/* a table's key has to be built */
	COPY_FINISH,				/* a table is copied and the stream is past it */
	COPY_WAIT,					/* for the stream or for other copy workers */
	COPY_DONE					/* every table is streaming */
} CopyStep;

/* copy_plan.c */
extern CopyStep copy_plan(CopyState *state, CopyJob *job);
extern void copy_append_range(StringInfo sql, const CopyTable *table,
							  const Datum *lower, const Datum *upper);
extern void copy_estimate_source(const CopyTable *table);
extern Datum *copy_find_upper(CopyTable *table, Datum *lower,
							  Datum *gap_upper, int64 rows);
extern void copy_withdraw(CopyState *state);
extern bool copy_is_claimed(const StreamShared *shared, int32 mapping);

/* copy_run.c */
extern bool copy_chunk(CopyState *state, const CopyJob *job);
extern char *copy_find_failing_row(CopyState *state);

/* copy_send.c */
extern CopyReceiver *copy_receiver_create(CopyState *state,
										  const CopyTable *table);

/* copy_query.c */
extern Query *copy_build_query(const CopyJob *job, TimestampTz moment);

/* copy_index.c */
extern bool copy_save_indexes(CopyState *state, CopyTable *table);
extern void copy_restore_indexes(Peer *peer, const char *origin, int32 mapping,
								 bool gone);
extern void copy_restore_key(Peer *peer, const char *origin, int32 mapping);
extern bool copy_finish_table(CopyState *state, const CopyJob *job);

/* copy.c */
extern void copy_log_chunk(CopyState *state, const CopyJob *job, int64 rows,
						   int64 bytes, const char *snapshot, XLogRecPtr p);
extern void copy_succeeded(StreamShared *shared);
extern void copy_launch_workers(StreamShared *shared);
extern void copy_check_error(StreamShared *shared, bool *blamed);
extern void copy_stop_workers(StreamShared *shared);
extern void copy_forget_orphans(StreamShared *shared);

/*
 * Waits for who writes to a deployment's tables on this side and was there
 * before they were mapped; set by who knows how (cutover/fence_hook.c).
 */
extern void (*copy_wait_hook) (int32 deployment);

#endif							/* BG_COPY_H */
