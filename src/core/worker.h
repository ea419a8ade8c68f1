/*-------------------------------------------------------------------------
 *
 * worker.h
 *		Background workers: registration, the launcher, and what every worker
 *		does first.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_WORKER_H
#define BG_WORKER_H

#include "compat.h"
#include "core/shared.h"

/* entry points, found by name in the library */
extern PGDLLEXPORT void bluegreen_launcher_main(Datum arg);
extern PGDLLEXPORT void bluegreen_stream_main(Datum arg);	/* stream/sync.c */
extern PGDLLEXPORT void bluegreen_copy_main(Datum arg); /* stream/copy.c */
extern PGDLLEXPORT void bluegreen_verify_main(Datum arg);	/* stream/verify.c */
extern PGDLLEXPORT void bluegreen_watch_main(Datum arg);	/* stream/watch.c */
extern PGDLLEXPORT void bluegreen_switch_main(Datum arg);	/* cutover/switchover.c */
extern PGDLLEXPORT void bluegreen_recorder_main(Datum arg); /* core/event.c */
extern PGDLLEXPORT void bluegreen_probe_main(Datum arg);
extern PGDLLEXPORT void bluegreen_resume_main(Datum arg);	/* schema/resume.c */
extern PGDLLEXPORT void bluegreen_router_main(Datum arg);	/* cutover/router_watch.c */
extern PGDLLEXPORT void bluegreen_end_writers_main(Datum arg);	/* cutover/fence_writers.c */

extern void launcher_register(void);

/*
 * Start the watchdog of a deployment's routers (cutover/router_watch.c): it
 * ends when none is paused any more.  Error if there is no room for a worker.
 * routers_paused(): is one, by what is noted on this side?
 */
extern void router_watch(int32 deployment);
extern bool routers_paused(int32 deployment);

/*
 * Start a worker for a change (schema/call.c); NULL if there is no room.
 */
extern struct BackgroundWorkerHandle *change_start_worker(Oid database,
														  int32 change,
														  Oid owner);

/* Is there room for n more background workers? */
extern bool workers_are_free(int n);

/*
 * A stream worker's first call (index = its bgw_main_arg): it takes over the
 * entry, that is, sets pid and latch, and arranges that both are cleared and
 * the launcher is woken when the process ends, however it ends.  Ends the
 * process if the entry is gone or has a worker already.
 */
extern StreamShared *worker_attach_stream(int index);

/*
 * The same for the worker of a verification or a switchover: pid is the field
 * of the entry that says that there is one, and is cleared when the process
 * ends.  False if the entry is gone or has one already.
 */
extern bool worker_take_entry(StreamShared *shared, pid_t *pid);

/*
 * Signals, database connection as a role (InvalidOid: as the bootstrap
 * superuser), search_path and the pinned settings; application_name is shown
 * in pg_stat_activity.
 */
extern void worker_start(Oid dboid, Oid userid, const char *application_name);
extern void worker_start_session(Oid dboid, Oid userid,
								 const char *application_name);

/*
 * As whom a stream's worker runs (owner.c): the owner that it connects as,
 * InvalidOid if that has to be found out; finding it out, which ends the
 * process; checking it when connected.
 */
extern Oid	worker_take_owner(StreamShared *s);
extern pg_noreturn void worker_find_owner(StreamShared *s);
extern void worker_keep_owner(StreamShared *s, const char *deployment);

/* Workers of a role that is altered start again; from _PG_init(). */
extern void owner_watch_install(void);

/* CHECK_FOR_INTERRUPTS, and read the configuration again after SIGHUP. */
extern void worker_check(void);

/*
 * This worker decodes: give core's reorder buffer the memory that
 * bluegreen.decoding_work_mem says, now and when that changes.
 */
extern void worker_use_decoding_memory(void);

/* A setting whose value must not depend on who configured what. */
typedef struct PinnedSetting
{
	const char *name;
	const char *value;
	bool		formatting;		/* values travel by it: both ends need it */
} PinnedSetting;

extern const PinnedSetting pinned_settings[];	/* ends with name == NULL */

/* Settings that formatting depends on, the same on both ends. */
extern void worker_pin_settings(void);

/*
 * The formatting ones among them for a while, in a session that is not ours:
 * what a transform gives there must be what a worker would give.  Returns the
 * level that settings_restore() takes; the end of the (sub)transaction
 * restores too.
 */
extern int	settings_pin_formatting(void);
extern void settings_restore(int guc_level);

/*
 * Commit callback that wakes the stream workers; registered once.
 *
 * A stream worker that has read all WAL calls wake_before_wait(), looks at
 * wake_last_commit() and the flush position once more, and only then waits on
 * its latch; wake_after_wait() when it goes on.  A commit sets the latch only
 * between the two.
 */
extern void wake_register(void);
extern void wake_before_wait(StreamShared *s);
extern void wake_after_wait(StreamShared *s);

/* Largest commit position published by a backend (maybe not flushed). */
extern XLogRecPtr wake_last_commit(void);

/* for shared.c */
extern Size wake_shared_size(void);
extern void wake_shared_startup(void);
extern void wake_stream_added(int index, Oid dboid);
extern void wake_stream_removed(int index);

#endif							/* BG_WORKER_H */
