/*-------------------------------------------------------------------------
 *
 * verify.h
 *		Comparing what a deployment's mappings give with what the target has.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_VERIFY_H
#define BG_VERIFY_H

#include "stream/copy.h"

#define VERIFY_MAX_DIFFERENCES 10000	/* of a mapping; then it gives up */

/* A mapping as the comparison sees it. */
typedef struct VerifyTable
{
	Transform  *transform;
	CopyTable	copy;			/* for the copy's planner and query */
	TargetWriter *writer;
	const char *unfit;			/* why it cannot be compared, or NULL */
	bool		ranged;			/* a range of the source's key is one of the
								 * target's */
	bool		finds_extra;	/* rows that only the target has are wrong */
	int			nkeys;			/* 0: rows are counted by their hashes */
	char	   *keys;			/* "s.c0, s.c1" */
	char	   *key_formats;
	char	   *key_condition;	/* joins rows with keys, on the target */
	char	   *source_key_condition;
	char	   *columns;		/* all that is compared, the key first */
	char	   *formats;
} VerifyTable;

/* How far the comparison of a mapping is; as in bluegreen.verify_table. */
typedef struct VerifyProgress
{
	char	   *position;		/* literal of the last key done, or NULL */
	int64		ranges;
	int64		rows;			/* of the source */
	int64		target_rows;
	int64		suspects;		/* keys that were looked at again */
	int64		rechecks;		/* rounds of looks */
	int64		differences;
	int64		unsettled;		/* keys that changed too often to tell */
	XLogRecPtr	first_lsn;		/* smallest and largest position that the */
	XLogRecPtr	last_lsn;		/* result holds for */
} VerifyProgress;

/* One side's rows of a key (or of a hash) at one moment. */
typedef struct Look
{
	int64		rows;
	char	   *version;		/* which row versions, "" for none */
	List	   *hashes;			/* of char * */
	char	   *key;			/* as this side writes it */
} Look;

/* A key whose rows may differ. */
typedef struct Suspect
{
	char	  **key;			/* values as text, or the one hash */
	Look		source;
	Look		target;
	bool		settled;
	bool		differs;
} Suspect;

typedef struct VerifyState
{
	StreamShared *shared;
	Deployment *deployment;
	Peer	   *peer;
	MemoryContext context;		/* lives with the worker */
	MemoryContext range_context;	/* reset after each range */
	int64		run;
	List	   *tables;			/* of VerifyTable */
	VerifyTable *table;			/* that is compared now */
	VerifyProgress progress;	/* of it */
	TimestampTz range_started;
	int64		range_cost;		/* rows, for the throttle */
} VerifyState;

/* A query around a relation "s". */
typedef struct OuterQuery
{
	char	   *before;			/* its name */
	char	   *after;
	char	   *source_after;	/* on the source, if that is another */
} OuterQuery;

/* verify_query.c */
extern VerifyTable *verify_table_create(Peer *peer, MappingRow *row,
										bool fits_alone);
extern Query *verify_source_query(const VerifyTable *table, const Datum *lower,
								  const Datum *upper, const OuterQuery *outer);
extern char *verify_target_query(const VerifyTable *table, const Datum *lower,
								 const Datum *upper, const OuterQuery *outer);
extern PeerResult *verify_run_query(const VerifyTable *table, Query *query);
extern OuterQuery verify_look_query(const VerifyTable *table, Suspect *suspects,
							   int n, bool whole);

/* verify_range.c */
extern void verify_range(VerifyState *state, const Datum *lower,
						 const Datum *upper, int64 rows);

/* verify_rows.c */
extern void verify_suspects(VerifyState *state, Suspect *suspects, int n);

/* verify_log.c */
extern bool verify_log_begin(VerifyState *state);
extern bool verify_log_table(VerifyState *state, char **status);
extern void verify_log_range(VerifyState *state, const char *status,
							 const char *note);
extern void verify_log_difference(VerifyState *state, const Suspect *suspect,
								  XLogRecPtr lsn);
extern void verify_log_end(VerifyState *state, const char *status,
						   const char *message);
extern void verify_request(int32 deployment, Oid source);
extern void verify_schedule(StreamShared *shared);

/* verify.c */
extern XLogRecPtr verify_position(void);
extern XLogRecPtr verify_applied(const VerifyState *state);
extern void verify_wait_applied(VerifyState *state, XLogRecPtr lsn);
extern void verify_pause(VerifyState *state, long ms);
extern void verify_check(VerifyState *state);

#endif							/* BG_VERIFY_H */
