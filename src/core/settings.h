/*-------------------------------------------------------------------------
 *
 * settings.h
 *		Configuration parameters (bluegreen.*); defined in settings.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SETTINGS_H
#define BG_SETTINGS_H

/* postmaster */
extern int	bg_max_streams;		/* stream slots in shared memory */
extern int	bg_max_tables;		/* mapped tables with counters */

/* copy */
extern int	bg_copy_workers;	/* copy workers per stream */
extern int	bg_copy_chunk_rows; /* rows aimed at per chunk */

/* apply */
extern int	bg_batch_rows;		/* a batch is sent at this many rows ... */
extern int	bg_batch_size;		/* ... or kilobytes ... */
extern int	bg_batch_delay;		/* ... or milliseconds since its first row */

/* verification */
extern int	bg_verify_rate;		/* rows a second, 0 = no limit */

/* decoding */
extern int	bg_decoding_work_mem;	/* kilobytes, before core spills to disk */

/* peer */
extern int	bg_connect_timeout; /* seconds */
extern int	bg_peer_timeout;	/* ms without any answer = dead peer */

/* worker */
extern int	bg_restart_delay;	/* ms, first delay of the back-off */
extern int	bg_restart_delay_max;	/* ms, its ceiling */
extern int	bg_idle_progress_interval;	/* ms between idle progress marks */

/* fence */
extern bool bg_allow_target_writes;

/* window */
extern int	bg_max_clock_skew;	/* ms, -1 = any */
extern int	bg_clock_offset;	/* ms, for tests */
extern int	bg_window_memory;	/* kilobytes, for this side's own changes */

/* switchover */
extern char *bg_switchover_stop_at; /* for tests: name of a step */

/* sessions */
extern int	bg_session_purge_interval;	/* ms, 0 = never by itself */
extern int	bg_session_retention;	/* seconds after the expiry */

/* history */
extern int	bg_event_retention; /* minutes */
extern int	bg_long_transaction;	/* seconds */

/* cutover */
extern int	bg_sequence_margin; /* values left out of each sequence */
extern char *bg_router_command; /* shell command; "" = none */
extern int	bg_router_command_timeout;	/* ms */

/* changes */
extern int	bg_lock_timeout;	/* ms */
extern int	bg_backfill_batch_time; /* ms */
extern int	bg_backfill_rate;	/* rows a second, 0 = no limit */
extern int	bg_backfill_max_slot_lag;	/* kB, 0 = any */
extern int	bg_backfill_max_wal_rate;	/* kB/s, 0 = any */
extern bool bg_backfill_yield;	/* to autovacuum */
extern char *bg_backfill_throttle_query;
extern int	bg_revert_window;	/* s, 0 = a contract is final */
extern int	bg_backfill_max_lag;	/* ms, 0 = any */
extern char *bg_app_version;	/* of the schema, or empty */

extern void settings_define(void);
extern int64 settings_restart_delay(int failures);

#endif							/* BG_SETTINGS_H */
