/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		Keeps one worker running for every stream of this server.
 *
 * No setting says which streams there are: replication slots are the durable
 * registry.  The launcher looks for logical slots of our plugin that are named
 * like a stream, keeps a shared entry for each, gives back entries whose slot
 * is gone, and starts a worker for each entry that should have one.  So
 * streams come back by themselves after a restart of the server, and a server
 * without slots runs nothing but this loop.
 *
 * Workers are dynamic and never restarted by the postmaster, because only the
 * launcher knows when: at once after an orderly end or a reload, after a
 * growing delay if they failed.  The worker counts its failures in the shared
 * entry; one that died before it took over its entry is counted here.
 *
 * The loop sleeps on its latch.  The postmaster wakes it when a worker has
 * started or ended (bgw_notify_pid), launcher_wake() when there is a new slot
 * or a new wish; else it looks around every ten seconds, which finds slots
 * that somebody has made or dropped by hand.
 *
 * The launcher also starts the recorder (event.c) when there are events, and
 * when it has started itself, a worker in each database that lets changes of
 * schemas go on (schema/resume.c), until there was room for all of them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "compat.h"

#include "core/event.h"
#include "core/lost.h"
#include "core/settings.h"
#include "core/shared.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "stream/watch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define PLUGIN_NAME				"pg_bluegreen"
#define LAUNCHER_RESTART_TIME	5	/* seconds */
#define LAUNCHER_INTERVAL		10000	/* ms between looks at the slots */
#define MAX_QUICK_ENDS			3	/* orderly ends in a row without delay */
#define PROBE_TIME				60000	/* ms, if nobody ends it */
#define MAX_RECORDER_TRIES		10	/* then a database's events are dropped */
#define MAX_RESUME_TRIES		3	/* of workers that have come to nothing */

/* What the launcher remembers of an entry's worker. */
typedef struct LauncherEntry
{
	BackgroundWorkerHandle *handle; /* registered and not yet ended, or NULL */
	bool		inherited;		/* worker that an earlier launcher started */
	TimestampTz started_at;
	int64		transactions;	/* that the stream had applied by then */
	int			quick_ends;		/* orderly ends soon after the start, in a row,
								 * and nothing was applied */
	BackgroundWorkerHandle *verify; /* its verify worker */
	BackgroundWorkerHandle *switching;	/* that of a switchover */
} LauncherEntry;

/* What it remembers of the recorder. */
typedef struct LauncherRecorder
{
	BackgroundWorkerHandle *handle;
	Oid			dboid;
	uint64		recorded;		/* events dealt with when it was started */
	int			tries;			/* in a row, for dboid, without any */
	TimestampTz next_start;
} LauncherRecorder;

static LauncherEntry *entries;	/* index as in shared memory */
static LauncherRecorder recorder;
static List *to_resume = NIL;	/* databases whose changes may have to go on */
static BackgroundWorkerHandle *resuming;
static bool is_resuming = false;	/* its result is not looked at yet */
static int	resume_tries = 0;	/* in vain, in a row */
static TimestampTz resume_next = 0;
static NameData *slot_names;	/* found at the last look */
static int	nslots;

/*
 * Register the launcher.  Only from _PG_init while preloading.
 */
void
launcher_register(void)
{
	BackgroundWorker worker = {0};

	/* The connection, to no database, is for signals and pg_stat_activity. */
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_RESTART_TIME;
	strlcpy(worker.bgw_library_name, "pg_bluegreen",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "bluegreen_launcher_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "pg_bluegreen launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "pg_bluegreen launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

/* Start a worker that tells us when it ends; NULL if there is no room. */
static BackgroundWorkerHandle *
start_worker(const char *function, const char *type, const char *name,
			 Datum arg)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = arg;
	strlcpy(worker.bgw_library_name, "pg_bluegreen",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, function,
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, type, sizeof(worker.bgw_type));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "%s %s", type, name);

	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		return NULL;
	return handle;
}

/*
 * Entry point of a worker that takes up room until it is told to end.  Other
 * things set its latch, too, at its start for one; were it to end then, its
 * room would be taken for free while the next probe is registered.
 */
void
bluegreen_probe_main(Datum arg)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  PROBE_TIME);
	long		left;

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	while (!ShutdownRequestPending &&
		   (left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												   end)) > 0)
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	proc_exit(0);
}

/*
 * Is there room for n more workers?  Nothing tells, so it is tried.  Waits
 * until the room is free again.
 */
bool
workers_are_free(int n)
{
	BackgroundWorkerHandle **handles = palloc0_array(BackgroundWorkerHandle *, n);
	int			started = 0;

	while (started < n &&
		   (handles[started] = start_worker("bluegreen_probe_main",
											"pg_bluegreen probe", "",
											(Datum) 0)) != NULL)
		started++;
	for (int i = 0; i < started; i++)
		TerminateBackgroundWorker(handles[i]);
	for (int i = 0; i < started; i++)
		(void) WaitForBackgroundWorkerShutdown(handles[i]);
	return started == n;
}

/* Is a registered worker still there?  Frees the handle if it is not. */
static bool
worker_is_there(BackgroundWorkerHandle **handle)
{
	pid_t		pid;

	if (*handle == NULL)
		return false;
	if (GetBackgroundWorkerPid(*handle, &pid) != BGWH_STOPPED)
		return true;
	pfree(*handle);
	*handle = NULL;
	return false;
}

/* Is this a slot of a stream, complete and of our plugin? */
static bool
slot_is_stream(ReplicationSlot *slot)
{
	ReplicationSlotPersistentData data;
	Oid			dboid;
	int32		deployment;
	char		direction;

	if (!slot->in_use || !SlotIsLogical(slot))
		return false;
	SpinLockAcquire(&slot->mutex);
	data = slot->data;
	SpinLockRelease(&slot->mutex);

	/* The plugin's name alone also matches slots that people made by hand. */
	return data.persistency == RS_PERSISTENT &&
		strcmp(NameStr(data.plugin), PLUGIN_NAME) == 0 &&
		stream_parse_slot_name(NameStr(data.name), &dboid, &deployment,
							   &direction) &&
		dboid == data.database;
}

/* Read the names of all streams' slots into slot_names. */
static void
read_slots(void)
{
	nslots = 0;
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (slot_is_stream(slot))
			slot_names[nslots++] = slot->data.name;
	}
	LWLockRelease(ReplicationSlotControlLock);
}

/* Was this slot there at the last look? */
static bool
slot_was_seen(const char *name)
{
	for (int i = 0; i < nslots; i++)
	{
		if (strcmp(NameStr(slot_names[i]), name) == 0)
			return true;
	}
	return false;
}

/* Make entries for new slots. */
static void
adopt_slots(void)
{
	static bool warned = false;
	bool		full = false;

	for (int i = 0; i < nslots; i++)
	{
		const char *name = NameStr(slot_names[i]);

		if (stream_shared_adopt(name) != NULL)
			continue;
		full = true;
		if (!warned)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("stream of replication slot \"%s\" cannot run because all stream entries are taken",
							name),
					 errhint("Increase \"bluegreen.max_streams\" and restart the server.")));
	}
	warned = full;
}

/*
 * An orderly end asks for a new start at once, but not for ever if the worker
 * ends as soon as it has started.  Returns the delay in ms.
 */
static int64
quick_end_delay(StreamShared *s, LauncherEntry *entry, TimestampTz now)
{
	int64		transactions;

	SpinLockAcquire(&s->mutex);
	transactions = s->transactions;
	SpinLockRelease(&s->mutex);
	if (transactions != entry->transactions ||
		TimestampDifferenceExceeds(entry->started_at, now, bg_restart_delay))
		entry->quick_ends = 0;
	else
		entry->quick_ends++;
	return entry->quick_ends > MAX_QUICK_ENDS ? bg_restart_delay : 0;
}

/* Show a failure that the worker could not report itself. */
static void
report_failure(StreamShared *s, int sqlstate, const char *message,
			   const char *hint)
{
	TimestampTz now = GetCurrentTimestamp();
	const char *code = unpack_sql_state(sqlstate);
	int			failures;

	SpinLockAcquire(&s->mutex);
	failures = ++s->failures;
	s->next_start =
		TimestampTzPlusMilliseconds(now, settings_restart_delay(failures));
	s->state = STREAM_ERROR;
	s->errors++;
	memset(&s->error, 0, sizeof(s->error));
	s->error.at = now;
	strlcpy(s->error.sqlstate, code, sizeof(s->error.sqlstate));
	shared_copy_text(s->error.message, sizeof(s->error.message), message);
	shared_copy_text(s->error.hint, sizeof(s->error.hint), hint);
	SpinLockRelease(&s->mutex);
	ConditionVariableBroadcast(&s->changed);

	/* once, not at every try */
	if (failures == 1)
		event_record(s->dboid, s->deployment, EVENT_ERROR, InvalidXLogRecPtr,
					 message, NULL);
}

/* The worker of an entry has ended: decide when the next one may start. */
static void
worker_ended(StreamShared *s, LauncherEntry *entry)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		quick = quick_end_delay(s, entry, now);
	int64		delay;
	bool		claimed;

	SpinLockAcquire(&s->mutex);
	claimed = s->claimed;
	s->pid = 0;
	s->latch = NULL;
	if (s->failures == 0 || s->reload)
		delay = quick;
	else
		delay = settings_restart_delay(s->failures);
	s->next_start = TimestampTzPlusMilliseconds(now, delay);
	SpinLockRelease(&s->mutex);
	ConditionVariableBroadcast(&s->changed);

	if (!claimed)
		report_failure(s, ERRCODE_INTERNAL_ERROR,
					   "stream worker ended before it had connected as the deployment's owner",
					   "See the server log.");
}

/* Should a worker start on this entry, and when?  0 = no. */
static TimestampTz
entry_start_time(StreamShared *s)
{
	TimestampTz result = 0;

	SpinLockAcquire(&s->mutex);
	if (s->in_use && s->pid == 0 && !s->stop_requested &&
		s->state != STREAM_LOST)
		result = Max(s->next_start, 1);
	SpinLockRelease(&s->mutex);
	return result;
}

/* Start the worker of an entry, or note why that is not possible. */
static void
start_stream(int index)
{
	StreamShared *s = stream_shared_at(index);
	LauncherEntry *entry = &entries[index];

	SpinLockAcquire(&s->mutex);
	if (s->claimed)
		s->restarts++;
	s->claimed = false;
	/* A new worker reads its mappings anyway. */
	s->reload = false;
	entry->transactions = s->transactions;
	SpinLockRelease(&s->mutex);
	stream_set_state(s, STREAM_STARTING);

	entry->started_at = GetCurrentTimestamp();
	entry->handle = start_worker("bluegreen_stream_main",
								 "pg_bluegreen stream", s->slot_name,
								 Int32GetDatum(index));
	if (entry->handle == NULL)
		report_failure(s, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
					   "no background worker slot is free for the stream worker",
					   "Increase \"max_worker_processes\" and restart the server.");
}

/*
 * Does a worker run on the entry, or is one on its way?  Tells worker_ended()
 * of one that has ended since the last look.
 */
static bool
entry_is_served(StreamShared *s, LauncherEntry *entry)
{
	bool		had_worker = entry->handle != NULL || entry->inherited;
	bool		served;

	if (entry->handle != NULL)
		served = worker_is_there(&entry->handle);
	else
	{
		/* of an earlier launcher, so we have no handle */
		SpinLockAcquire(&s->mutex);
		served = s->pid != 0;
		SpinLockRelease(&s->mutex);
		entry->inherited = served;
	}

	if (had_worker && !served)
		worker_ended(s, entry);
	return served;
}

/*
 * The slot of an entry is gone: give the entry back.  If nobody has asked the
 * stream to stop, as who drops a deployment does, then it is lost; from now on
 * the deployment's row says so (view stat_stream), but it is history, too.
 */
static void
forget_entry(StreamShared *s)
{
	Oid			dboid = s->dboid;
	int32		deployment = s->deployment;
	LostReason	reason = lost_by_slot(s->slot_name);
	bool		wanted;

	SpinLockAcquire(&s->mutex);
	wanted = !s->stop_requested && s->state != STREAM_LOST;
	SpinLockRelease(&s->mutex);
	if (stream_shared_remove(s->slot_name) && wanted && reason.message != NULL)
		event_record(dboid, deployment, EVENT_LOST, InvalidXLogRecPtr,
					 reason.message, reason.detail);
}

/*
 * Look after one entry.  Returns when it wants to be looked at again, or 0.
 */
static TimestampTz
tend_entry(int index)
{
	StreamShared *s = stream_shared_at(index);
	LauncherEntry *entry = &entries[index];
	TimestampTz start;

	if (entry_is_served(s, entry) || !s->in_use)
		return 0;
	if (!slot_was_seen(s->slot_name))
	{
		forget_entry(s);
		return 0;
	}

	start = entry_start_time(s);
	if (start == 0 || start > GetCurrentTimestamp())
		return start;
	start_stream(index);
	return entry->handle == NULL ? entry_start_time(s) : 0;
}

/*
 * Start a stream's verify worker when that is due and the stream runs.  Unless
 * it says otherwise, the next one comes after a delay.  Returns when to look
 * again, or 0.
 */
static TimestampTz
tend_verify(int index)
{
	StreamShared *s = stream_shared_at(index);
	LauncherEntry *entry = &entries[index];
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz at;

	if (worker_is_there(&entry->verify) || !s->in_use)
		return 0;
	SpinLockAcquire(&s->mutex);
	at = s->verify_at;
	if (s->verify_pid != 0 || s->pid == 0 || s->stop_requested ||
		!OidIsValid(s->owner) || s->mapping_version == 0)
		at = 0;
	if (at != 0 && at <= now)
		s->verify_at =
			TimestampTzPlusMilliseconds(now, settings_restart_delay(++s->verify_failures));
	SpinLockRelease(&s->mutex);
	if (at == 0 || at > now)
		return at;
	entry->verify = start_worker("bluegreen_verify_main",
								 "pg_bluegreen verify", s->slot_name,
								 Int32GetDatum(index));
	if (entry->verify == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no background worker is free to verify"),
				 errhint("Raise max_worker_processes.")));
	return entry->verify == NULL ? s->verify_at : 0;
}

/*
 * Start the worker of a switchover or rollback when that is due, whether the
 * stream runs or not.  Returns when to look again, or 0.
 */
static TimestampTz
tend_switch(int index)
{
	StreamShared *s = stream_shared_at(index);
	LauncherEntry *entry = &entries[index];
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz at;

	if (worker_is_there(&entry->switching) || !s->in_use)
		return 0;
	SpinLockAcquire(&s->mutex);
	at = s->switch_at;
	if (s->switch_pid != 0 || !OidIsValid(s->owner))
		at = 0;
	if (at != 0 && at <= now)
		s->switch_at =
			TimestampTzPlusMilliseconds(now, settings_restart_delay(++s->switch_failures));
	SpinLockRelease(&s->mutex);
	if (at == 0 || at > now)
		return at;
	entry->switching = start_worker("bluegreen_switch_main",
									"pg_bluegreen switch", s->slot_name,
									Int32GetDatum(index));
	if (entry->switching == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no background worker is free for a switchover"),
				 errhint("Raise max_worker_processes.")));
	return s->switch_at;
}

/*
 * Give up the events of a database that no recorder can get into: it was
 * dropped, most likely.
 */
static void
give_up_events(void)
{
	ereport(LOG,
			(errmsg("events of database %u are discarded because they cannot be recorded",
					recorder.dboid)));
	event_discard(recorder.dboid);
	recorder.tries = 0;
}

/* Start a recorder for a database. */
static void
start_recorder(Oid dboid)
{
	TimestampTz now = GetCurrentTimestamp();
	char		name[16];

	if (dboid != recorder.dboid)
		recorder.tries = 0;
	recorder.dboid = dboid;
	recorder.recorded = event_recorded();
	recorder.next_start =
		TimestampTzPlusMilliseconds(now,
									settings_restart_delay(recorder.tries + 1));

	snprintf(name, sizeof(name), "%u", dboid);
	recorder.handle = start_worker("bluegreen_recorder_main",
								   "pg_bluegreen recorder", name,
								   ObjectIdGetDatum(dboid));
	/* Only a recorder that ran is a try. */
	if (recorder.handle != NULL)
		recorder.tries++;
}

/*
 * Look after the recorder.  Returns when to look again, or 0.
 */
static TimestampTz
tend_recorder(void)
{
	Oid			dboid;

	if (worker_is_there(&recorder.handle))
		return 0;
	if (event_recorded() != recorder.recorded)
	{
		recorder.tries = 0;
		recorder.next_start = 0;
	}
	if (!event_pending_database(&dboid))
		return 0;
	if (dboid == recorder.dboid && recorder.tries >= MAX_RECORDER_TRIES)
	{
		give_up_events();
		return GetCurrentTimestamp();
	}
	if (dboid == recorder.dboid && recorder.next_start > GetCurrentTimestamp())
		return recorder.next_start;

	start_recorder(dboid);
	return recorder.handle == NULL ? recorder.next_start : 0;
}

/*
 * Note all databases that may have changes.  Templates are left alone: nobody
 * can copy one while somebody is connected to it.
 */
static void
list_databases(void)
{
	Relation	catalog;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	catalog = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(catalog, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);

		/* a connection limit of -2: it was not dropped to the end */
		if (form->datallowconn && !form->datistemplate &&
			form->datconnlimit >= -1)
			to_resume = lappend_oid(to_resume, form->oid);
		MemoryContextSwitchTo(oldcontext);
	}
	table_endscan(scan);
	table_close(catalog, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}

/*
 * The worker of the first database has ended.  Forget the database, or look at
 * it again after the others.
 */
static void
resume_ended(void)
{
	Oid			database = linitial_oid(to_resume);
	Resumed		resumed = launcher_resumed();
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);

	is_resuming = false;
	resume_tries++;
	to_resume = list_delete_first(to_resume);
	/* it may have taken the last place itself, which is free now */
	if (resumed.result == RESUME_AGAIN)
		(void) change_start_worker(database, resumed.change, resumed.owner);
	if (resumed.result == RESUME_AGAIN ||
		(resumed.result == RESUME_NONE && resume_tries < MAX_RESUME_TRIES))
	{
		to_resume = lappend_oid(to_resume, database);
		resume_next =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										settings_restart_delay(resume_tries));
	}
	else
		resume_tries = 0;
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Let changes go on, in one database at a time.  Without room for a worker it
 * is tried again in a later round.  Returns when to look again, or 0.
 */
static TimestampTz
tend_resume(void)
{
	char		name[16];

	if (worker_is_there(&resuming))
		return 0;
	if (is_resuming)
		resume_ended();
	if (to_resume == NIL)
		return 0;
	if (resume_next > GetCurrentTimestamp())
		return resume_next;
	(void) launcher_resumed();
	snprintf(name, sizeof(name), "%u", linitial_oid(to_resume));
	resuming = start_worker("bluegreen_resume_main", "pg_bluegreen resume",
							name, ObjectIdGetDatum(linitial_oid(to_resume)));
	is_resuming = resuming != NULL;
	return 0;
}

/* The earlier of two times, where 0 is none. */
static TimestampTz
earlier(TimestampTz a, TimestampTz b)
{
	if (a == 0 || b == 0)
		return Max(a, b);
	return Min(a, b);
}

/* One round over everything.  Returns the time to sleep, in ms. */
static long
launcher_round(void)
{
	TimestampTz wanted = 0;

	read_slots();
	adopt_slots();
	for (int i = 0; i < stream_shared_count(); i++)
	{
		wanted = earlier(wanted, tend_entry(i));
		wanted = earlier(wanted, tend_verify(i));
		wanted = earlier(wanted, tend_switch(i));
		/* the stream's worker may be stopped */
		wanted = earlier(wanted, watch_start(stream_shared_at(i)));
	}
	wanted = earlier(wanted, tend_recorder());
	wanted = earlier(wanted, tend_resume());

	if (wanted == 0)
		return LAUNCHER_INTERVAL;
	return Min(LAUNCHER_INTERVAL,
			   TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wanted));
}

/* Signals, the connection to no database, and private memory. */
static void
launcher_start(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("application_name", "bluegreen launcher",
					PGC_USERSET, PGC_S_OVERRIDE);

	entries = MemoryContextAllocZero(TopMemoryContext,
									 sizeof(LauncherEntry) *
									 stream_shared_count());
	slot_names = MemoryContextAllocZero(TopMemoryContext,
										sizeof(NameData) *
										Max(max_replication_slots, 1));
	MemoryContextSwitchTo(TopMemoryContext);
	launcher_attach();
}

/*
 * Main function of the launcher.  Exit code 1 asks the postmaster to start it
 * again, which it does not while it shuts down.
 */
void
bluegreen_launcher_main(Datum arg)
{
	uint32		wait_event;

	launcher_start();
	list_databases();
	wait_event = WaitEventExtensionNew("BluegreenLauncher");

	while (!ShutdownRequestPending)
	{
		long		timeout;

		worker_check();
		timeout = launcher_round();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, wait_event);
		ResetLatch(MyLatch);
	}
	proc_exit(1);
}
