/*-------------------------------------------------------------------------
 *
 * settings.c
 *		Configuration parameters (bluegreen.*).
 *
 * All but a few are integers, so they are one table.  Those that size shared
 * memory can only be fixed while the postmaster starts; where the library is
 * loaded later they are still defined, so that a configuration file which
 * mentions them is not complained about, but they size nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "compat.h"

#include "core/settings.h"
#include "core/shared.h"
#include "miscadmin.h"
#include "utils/guc.h"

int			bg_max_streams = 16;
int			bg_max_tables = 4096;
int			bg_copy_workers = 2;
int			bg_copy_chunk_rows = 500000;
int			bg_batch_rows = 50000;
int			bg_batch_size = 8192;
int			bg_batch_delay = 200;
int			bg_decoding_work_mem = 256 * 1024;
int			bg_window_memory = 64 * 1024;
int			bg_max_clock_skew = 1000;
int			bg_clock_offset = 0;
int			bg_verify_rate = 100000;
int			bg_connect_timeout = 10;
int			bg_peer_timeout = 30000;
int			bg_restart_delay = 1000;
int			bg_restart_delay_max = 60000;
int			bg_idle_progress_interval = 10000;
int			bg_event_retention = 43200;
int			bg_session_purge_interval = 60000;
int			bg_session_retention = 3600;
int			bg_long_transaction = 60;
bool		bg_allow_target_writes = false;
char	   *bg_switchover_stop_at = NULL;
int			bg_sequence_margin = 1000;
char	   *bg_router_command = NULL;
int			bg_router_command_timeout = 10000;
int			bg_lock_timeout = 500;
int			bg_backfill_batch_time = 100;
int			bg_backfill_rate = 0;
int			bg_backfill_max_lag = 10000;
int			bg_backfill_max_slot_lag = 0;
int			bg_backfill_max_wal_rate = 0;
bool		bg_backfill_yield = false;
char	   *bg_backfill_throttle_query = NULL;
int			bg_revert_window = 0;
char	   *bg_app_version = NULL;

/* One parameter; the default is the variable's initial value. */
typedef struct Setting
{
	const char *name;
	int		   *variable;
	int			min;
	int			max;
	GucContext	context;
	int			flags;			/* GUC_UNIT_* and others */
	const char *description;
	const char *detail;
} Setting;

static const Setting settings[] = {
	{
		"bluegreen.max_streams", &bg_max_streams, 1, 1024,
		PGC_POSTMASTER, 0,
		"Sets the maximum number of streams that this server can run.",
		"A deployment has one stream on each of its two servers."
	},
	{
		"bluegreen.max_tables", &bg_max_tables, 1, 1000000,
		PGC_POSTMASTER, 0,
		"Sets the maximum number of mapped tables over all databases of this server.",
		NULL
	},
	{
		"bluegreen.copy_workers", &bg_copy_workers, 0, BG_MAX_COPY_WORKERS,
		PGC_SIGHUP, 0,
		"Sets the number of copy workers per stream.",
		"With 0 no table is copied until it is raised."
	},
	{
		"bluegreen.copy_chunk_rows", &bg_copy_chunk_rows, 100, 100000000,
		PGC_SIGHUP, 0,
		"Sets the number of rows that one chunk of a copy aims at.",
		"Each chunk is copied under a snapshot of its own."
	},
	{
		"bluegreen.batch_rows", &bg_batch_rows, 1, 1000000,
		PGC_SIGHUP, 0,
		"Sends a batch to the target when it has this many row changes.",
		NULL
	},
	{
		"bluegreen.batch_size", &bg_batch_size, 64, 1024 * 1024,
		PGC_SIGHUP, GUC_UNIT_KB,
		"Sends a batch to the target when it has reached this size.",
		NULL
	},
	{
		"bluegreen.batch_delay", &bg_batch_delay, 0, 60 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sends a batch to the target this long after its first row change.",
		"A batch is also sent as soon as no more WAL is waiting."
	},
	{
		"bluegreen.decoding_work_mem", &bg_decoding_work_mem, 64, MAX_KILOBYTES,
		PGC_SIGHUP, GUC_UNIT_KB,
		"Sets the maximum memory in which a stream keeps transactions before it spills them to disk.",
		"Where logical_decoding_work_mem is larger, that is used."
	},
	{
		"bluegreen.verify_rate", &bg_verify_rate, 0, INT_MAX,
		PGC_SIGHUP, 0,
		"Sets the number of rows that a verification compares per second.",
		"Of rows wider than 1 kB each kB counts. 0 means as fast as possible."
	},
	{
		"bluegreen.connect_timeout", &bg_connect_timeout, 2, 3600,
		PGC_USERSET, GUC_UNIT_S,
		"Sets the maximum time to wait for a connection to the peer.",
		NULL
	},
	{
		"bluegreen.peer_timeout", &bg_peer_timeout, 1000, INT_MAX,
		PGC_USERSET, GUC_UNIT_MS,
		"Takes the peer for dead after this time without any sign of it.",
		"A peer that is silent because it works is asked for over a second connection."
	},
	{
		"bluegreen.restart_delay", &bg_restart_delay, 10, 3600 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sets the time before a failed stream is started again.",
		"The time doubles with each further failure, up to bluegreen.restart_delay_max."
	},
	{
		"bluegreen.restart_delay_max", &bg_restart_delay_max, 10, 24 * 3600 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sets the longest time before a failed stream is started again.",
		NULL
	},
	{
		"bluegreen.window_memory", &bg_window_memory, 1024, MAX_KILOBYTES,
		PGC_SIGHUP, GUC_UNIT_KB,
		"Sets the maximum memory for the rows that one side has changed in a window and the other side has not seen.",
		"A stream in a window stops when it is exceeded."
	},
	{
		"bluegreen.max_clock_skew", &bg_max_clock_skew, -1, 24 * 3600 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sets how far the clocks of two servers may be apart in a window in which commit times decide.",
		"-1 lets nobody compare them."
	},
	{
		"bluegreen.clock_offset", &bg_clock_offset,
		-24 * 3600 * 1000, 24 * 3600 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS | GUC_NOT_IN_SAMPLE,
		"Shifts what this server takes for its clock where the two sides' times are compared.",
		"For tests only."
	},
	{
		"bluegreen.idle_progress_interval", &bg_idle_progress_interval,
		100, 3600 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sets the time between progress marks of a stream that has nothing to send.",
		"They let the slot release WAL of tables that are not mapped."
	},
	{
		"bluegreen.event_retention", &bg_event_retention, 0, INT_MAX,
		PGC_SIGHUP, GUC_UNIT_MIN,
		"Deletes events and conflicts that are older than this.",
		"0 keeps them for ever."
	},
	{
		"bluegreen.session_purge_interval", &bg_session_purge_interval,
		0, 24 * 3600 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sets the time between removals of expired sessions.",
		"0 removes none but by bluegreen.expire_sessions()."
	},
	{
		"bluegreen.session_retention", &bg_session_retention, 0, 366 * 24 * 3600,
		PGC_SIGHUP, GUC_UNIT_S,
		"Keeps sessions this long after they have expired.",
		"Longer than a change of the other side may be under way."
	},
	{
		"bluegreen.long_transaction", &bg_long_transaction, 0, INT_MAX,
		PGC_USERSET, GUC_UNIT_S,
		"Lets a preflight report transactions that write and are older than this.",
		NULL
	},
	{
		"bluegreen.sequence_margin", &bg_sequence_margin, 0, INT_MAX,
		PGC_USERSET, 0,
		"Sets how many values a switchover leaves out when it moves a sequence.",
		"Nothing stops nextval() on the side that is closed."
	},
	{
		"bluegreen.router_command_timeout", &bg_router_command_timeout,
		100, 3600 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Ends commands that change a route after this time.",
		"Those of bluegreen.router_command and of add_router()."
	},
	{
		"bluegreen.lock_timeout", &bg_lock_timeout, 10, 60 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sets the longest time that a change of a schema waits for a lock before it lets others pass.",
		"It tries again later. Keep it below deadlock_timeout."
	},
	{
		"bluegreen.backfill_batch_time", &bg_backfill_batch_time, 1, 60 * 1000,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Sets the time that a backfill aims at for one of its transactions.",
		"Rows that it has written stay locked for so long."
	},
	{
		"bluegreen.backfill_rate", &bg_backfill_rate, 0, INT_MAX,
		PGC_SIGHUP, 0,
		"Sets the number of rows that a backfill writes per second.",
		"0 means as fast as possible."
	},
	{
		"bluegreen.backfill_max_lag", &bg_backfill_max_lag, 0, INT_MAX,
		PGC_SIGHUP, GUC_UNIT_MS,
		"Lets backfills wait while a standby lags by more than this.",
		"0 means that they do not look."
	},
	{
		"bluegreen.backfill_max_slot_lag", &bg_backfill_max_slot_lag,
		0, MAX_KILOBYTES,
		PGC_SIGHUP, GUC_UNIT_KB,
		"Lets backfills wait while a replication slot is behind by more than this.",
		"0 means that they do not look."
	},
	{
		"bluegreen.backfill_max_wal_rate", &bg_backfill_max_wal_rate,
		0, MAX_KILOBYTES,
		PGC_SIGHUP, GUC_UNIT_KB,
		"Lets backfills wait while the server writes more WAL per second.",
		"Whoever writes it. 0 means that they do not look."
	},
	{
		"bluegreen.revert_window", &bg_revert_window, 0, 365 * 24 * 3600,
		PGC_USERSET, GUC_UNIT_S,
		"Sets for how long a contract can be undone.",
		"That of the session that calls bluegreen.contract() counts."
	}
};

/*
 * Define all parameters and reserve the prefix.  Called once, from _PG_init.
 */
void
settings_define(void)
{
	for (int i = 0; i < lengthof(settings); i++)
	{
		const Setting *s = &settings[i];
		GucContext	context = s->context;

		if (context == PGC_POSTMASTER &&
			!process_shared_preload_libraries_in_progress)
			context = PGC_SIGHUP;
		DefineCustomIntVariable(s->name, s->description, s->detail,
								s->variable, *s->variable, s->min, s->max,
								context, s->flags, NULL, NULL, NULL);
	}
	DefineCustomBoolVariable("bluegreen.allow_target_writes",
							 "Lets a session write to the target tables of a stream.",
							 "For repairs: what is written may be in the stream's way.",
							 &bg_allow_target_writes, false,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("bluegreen.switchover_stop_at",
							   "Lets a switchover of this session wait before a step.",
							   "For tests only: it waits until bluegreen.switch.stop_at is null.",
							   &bg_switchover_stop_at, "",
							   PGC_SUSET, GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
	DefineCustomStringVariable("bluegreen.router_command",
							   "Sets the shell command that brings clients to the side that is activated.",
							   "It is run on the side that is left, after the decision.",
							   &bg_router_command, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomBoolVariable("bluegreen.backfill_yield_to_autovacuum",
							 "Lets backfills wait while autovacuum works on their table.",
							 NULL,
							 &bg_backfill_yield, false,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("bluegreen.backfill_throttle_query",
							   "Sets a query that tells backfills to wait.",
							   "It gives a reason, or null. It is run as the change's owner.",
							   &bg_backfill_throttle_query, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("bluegreen.app_version",
							   "Sets the version of the schema that the session writes for.",
							   "Name of a change or of its schema. Empty: the view that is written to tells.",
							   &bg_app_version, "", PGC_USERSET, 0, NULL, NULL,
							   NULL);
	MarkGUCPrefixReserved("bluegreen");
}

/*
 * How long to wait, in ms, before something is started again that has failed
 * so many times in a row, at least once.
 */
int64
settings_restart_delay(int failures)
{
	int64		delay = (int64) bg_restart_delay << Min(failures - 1, 30);

	return Min(delay, Max(bg_restart_delay, bg_restart_delay_max));
}
