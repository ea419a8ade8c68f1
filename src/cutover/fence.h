/*-------------------------------------------------------------------------
 *
 * fence.h
 *		What stops the application's writes to one side of a deployment.  See
 *		fence.c for the design.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_FENCE_H
#define BG_FENCE_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "postmaster/bgworker.h"
#include "storage/lock.h"

/*
 * State of a side.  Legal next states, and who asks for them:
 */
typedef enum FenceState
{
	FENCE_OPEN,					/* -> RAISED (raise); in a window also
								 * -> OPEN without (activate) */
	FENCE_RAISED,				/* -> OPEN (lower), IN_DOUBT, CLOSED, RAISED */
	FENCE_IN_DOUBT,				/* -> OPEN (lower), CLOSED (close) */
	FENCE_CLOSED,				/* -> OPEN (activate, reopen), RETIRED */
	FENCE_RETIRED,				/* closed, and the deployment is gone */
	FENCE_GUARDED				/* a target; -> OPEN (activate) */
} FenceState;

extern const char *const fence_state_names[];
extern const char *const fence_policy_names[];

/* What is about to happen to a relation. */
typedef enum FenceAccess
{
	FENCE_ROWS,					/* its rows are written */
	FENCE_DDL					/* it is altered or dropped */
} FenceAccess;

/* What becomes of writers that go on for too long. */
typedef enum FencePolicy
{
	FENCE_ABORT,				/* the fence is lowered */
	FENCE_TERMINATE				/* they are disconnected */
} FencePolicy;

/* A row of bluegreen.fence. */
typedef struct Fence
{
	int32		id;
	char	   *name;			/* of the deployment */
	char	   *stream;			/* origin name of who may write; NULL = nobody */
	int32		deployment;		/* this side is its source; 0 = not */
	FenceState	state;
	int64		epoch;
	TimestampTz since;
	bool		window;			/* the other side takes writes, too */
	bool		closing;		/* ... did, and its stream may still */
	bool		activated;		/* by a move: it is no stream's target */
} Fence;

/* What the fences of this database say about one relation. */
typedef struct FenceVerdict
{
	Oid			relid;			/* must be first: hash key */
	Bitmapset  *fences;			/* those that it is mapped in */
	Bitmapset  *inherited;		/* and so are its partitions */
	bool		closable;		/* a side that is closed includes it */
} FenceVerdict;

/* fence.c: move a side from state to state; all of these commit */
extern void fence_raise(int32 fence, int64 epoch);
extern void fence_adopt(int32 fence, int64 epoch);
extern void fence_wait_drained(int timeout, FencePolicy policy);
extern void fence_lower(int32 fence, int64 epoch);
extern void fence_doubt(int32 fence, int64 epoch);
extern void fence_close(int32 fence, int64 epoch);
extern void fence_activate(int32 fence, int64 epoch);
extern void fence_commit(void);

/* ... and these do not */
extern void fence_decide(int32 fence, int64 epoch);
extern void fence_decide_window(int32 fence, int64 epoch);
extern void fence_enter_window(int32 fence);
extern bool fence_settle(int32 fence, int64 epoch, bool window);
extern void fence_force(int32 fence, bool open);
extern FenceState fence_state(int32 fence, int64 *epoch);
extern bool fence_in_window(int32 fence);
extern int32 fence_of_stream(const char *stream);
extern int32 fence_find(const char *deployment);
extern int32 fence_of_deployment(int32 deployment);
extern char *fence_side(int32 fence);

/* fence_sql.c: arguments of procedures */
extern int	fence_timeout_argument(FunctionCallInfo fcinfo, int i,
								   const char *name);
extern FencePolicy fence_policy_argument(FunctionCallInfo fcinfo, int i);

/* ... parts of these, which do not commit */
extern void fence_applier_tag(LOCKTAG *tag, Oid relid, int32 fence);
extern void fence_lock_appliers(int32 fence);
extern void fence_commit_durably(void);
extern void fence_check_durable(void);
extern void fence_wait_writers(int32 deployment, const char *stream);

/* fence_writers.c: who writes while a fence is being raised */
extern void fence_note_writers(const LOCKTAG *tag);
extern char *fence_describe_writers(void);
extern BackgroundWorkerHandle *fence_end_writers(const LOCKTAG *tag,
												 int after);

/* fence_check.c: may this be written? */
extern void fence_check(Oid relid, FenceAccess access);
extern void fence_check_commit_prepared(void);
extern void fence_check_new_table(void);

/* fence_cache.c: what a backend knows of the fences */
extern bool fence_cache_any(void);
extern Oid	fence_cache_relid(void);
extern const Fence *fence_cache_get(int i);
extern const Fence *fence_cache_closed(void);
extern FenceVerdict fence_cache_verdict(Oid relid);
extern List *fence_cache_relations(int32 deployment, const char *stream,
								   int32 *fence);

/* fence_mark.c: a sign for clients; these do not commit */
extern void fence_mark(int32 fence);
extern void fence_unmark(int32 fence);

/* fence_hook.c: who asks */
extern void fence_hooks_install(void);

#endif							/* BG_FENCE_H */
