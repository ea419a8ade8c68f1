/*-------------------------------------------------------------------------
 *
 * worker.c
 *		What every background worker does first.
 *
 * A worker must not behave differently because somebody configured the
 * database or the server for his own sessions: values are formatted under
 * settings that both ends share, nothing of ours is cut short by a timeout
 * meant for users, and names are looked up nowhere but where we say.  So the
 * settings below are pinned with PGC_S_OVERRIDE, which neither ALTER DATABASE
 * SET nor a reload of the configuration can undo.
 *
 * Workers end by signal only where they look for it (CHECK_FOR_INTERRUPTS);
 * the standard handler of background workers would raise its error inside the
 * signal handler, possibly under a spinlock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "core/settings.h"
#include "core/worker.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/reorderbuffer.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"

/* logical_decoding_work_mem of this server; 0 = this worker does not decode */
static int	core_decoding_memory = 0;

const PinnedSetting pinned_settings[] = {
	/* how values look */
	{"datestyle", "ISO", true},
	{"intervalstyle", "postgres", true},
	{"extra_float_digits", "3", true},
	{"timezone", "UTC", true},
	{"bytea_output", "hex", true},
	{"array_nulls", "on", true},
	{"xmloption", "content", true},
	{"lc_monetary", "C", true},
	{"lc_numeric", "C", true},
	{"lc_time", "C", true},
	{"default_text_search_config", "pg_catalog.simple", true},

	/* who and where we are */
	{"search_path", "", false},
	{"role", "none", false},
	{"row_security", "off", false},

	/* transactions; a standby that is away must not hold up our bookkeeping */
	{"synchronous_commit", "local", false},
	{"default_transaction_read_only", "off", false},
	{"default_transaction_isolation", "read committed", false},
	{"default_transaction_deferrable", "off", false},

	/* time */
	{"statement_timeout", "0", false},
	{"lock_timeout", "0", false},
	{"idle_in_transaction_session_timeout", "0", false},
	{"idle_session_timeout", "0", false},
#if HAVE_TRANSACTION_TIMEOUT
	{"transaction_timeout", "0", false},
#endif
	{NULL, NULL, false}
};

/*
 * Pin the settings of this process for the rest of its life.  Only for
 * background workers: a user's session keeps its own.
 */
void
worker_pin_settings(void)
{
	for (const PinnedSetting *s = pinned_settings; s->name != NULL; s++)
		SetConfigOption(s->name, s->value, PGC_SUSET, PGC_S_OVERRIDE);

	/* text travels in the database's encoding, and is converted by the peer */
	SetConfigOption("client_encoding", GetDatabaseEncodingName(),
					PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Pin what formatting depends on in a user's session.  Needs a transaction.
 */
int
settings_pin_formatting(void)
{
	int			guc_level = NewGUCNestLevel();

	for (const PinnedSetting *s = pinned_settings; s->name != NULL; s++)
		if (s->formatting)
			(void) set_config_option(s->name, s->value, PGC_USERSET,
									 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
									 false);
	return guc_level;
}

/*
 * The user's settings again.
 */
void
settings_restore(int guc_level)
{
	AtEOXact_GUC(false, guc_level);
}

/*
 * Make this background worker a session of database dboid as a role, which
 * must be allowed to log in, or if userid is invalid as the bootstrap
 * superuser.  Signals must still be blocked, as they are when a worker's main
 * function is called.
 */
void
worker_start(Oid dboid, Oid userid, const char *application_name)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnectionByOid(dboid, userid, 0);

	worker_pin_settings();
	SetConfigOption("application_name", application_name,
					PGC_USERSET, PGC_S_OVERRIDE);
	pgstat_report_appname(application_name);
	pgstat_report_activity(STATE_IDLE, NULL);
}

static void
set_decoding_memory(void)
{
	char		kilobytes[16];

	snprintf(kilobytes, sizeof(kilobytes), "%d",
			 Max(bg_decoding_work_mem, core_decoding_memory));
	SetConfigOption("logical_decoding_work_mem", kilobytes,
					PGC_SUSET, PGC_S_OVERRIDE);
}

void
worker_use_decoding_memory(void)
{
	if (core_decoding_memory == 0)
		core_decoding_memory = logical_decoding_work_mem;
	set_decoding_memory();
}

/*
 * What a worker's loop does each round: end if told so, read the configuration
 * again if it changed.
 */
void
worker_check(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		if (core_decoding_memory > 0)
			set_decoding_memory();
	}
}

/* At exit: the entry has no worker any more, and the launcher may act. */
static void
worker_detach_stream(int code, Datum arg)
{
	StreamShared *s = stream_shared_at(DatumGetInt32(arg));

	wake_after_wait(s);
	SpinLockAcquire(&s->mutex);
	if (s->pid == MyProcPid)
	{
		s->pid = 0;
		s->latch = NULL;
	}
	SpinLockRelease(&s->mutex);
	ConditionVariableBroadcast(&s->changed);
	launcher_wake();
}

/*
 * Take over the entry that bgw_main_arg names; see worker.h.  Takes the
 * entry's spinlock.
 */
StreamShared *
worker_attach_stream(int index)
{
	StreamShared *s;
	pid_t		other;

	if (index < 0 || index >= stream_shared_count())
		elog(FATAL, "there is no stream entry %d", index);

	s = stream_shared_at(index);
	SpinLockAcquire(&s->mutex);
	other = s->pid;
	if (other == 0 && s->in_use)
	{
		s->pid = MyProcPid;
		s->latch = MyLatch;
	}
	SpinLockRelease(&s->mutex);

	/* A launcher that was restarted may not know of a worker on its way. */
	if (other != 0 || !s->in_use)
	{
		ereport(LOG,
				(errmsg("stream worker ends because its stream \"%s\" is served already or was dropped",
						s->slot_name)));
		proc_exit(0);
	}
	before_shmem_exit(worker_detach_stream, Int32GetDatum(index));
	return s;
}

/* What worker_take_entry() has taken. */
static StreamShared *taken = NULL;
static pid_t *taken_pid = NULL;

/* At exit: let the launcher start the next one when that is due. */
static void
release_entry(int code, Datum arg)
{
	SpinLockAcquire(&taken->mutex);
	if (*taken_pid == MyProcPid)
		*taken_pid = 0;
	SpinLockRelease(&taken->mutex);
	ConditionVariableBroadcast(&taken->changed);
	launcher_wake();
}

/*
 * Take a stream's entry for another work than its stream; see worker.h.  Takes
 * the entry's spinlock.
 */
bool
worker_take_entry(StreamShared *shared, pid_t *pid)
{
	bool		mine;

	SpinLockAcquire(&shared->mutex);
	mine = shared->in_use && *pid == 0;
	if (mine)
		*pid = MyProcPid;
	SpinLockRelease(&shared->mutex);
	if (mine)
	{
		taken = shared;
		taken_pid = pid;
		before_shmem_exit(release_entry, (Datum) 0);
	}
	return mine;
}
