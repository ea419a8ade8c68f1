/*-------------------------------------------------------------------------
 *
 * worker.c
 *		The worker that runs a change.
 *
 * It is a session of the change's owner, so whatever the document says is done
 * with his rights.  It does what the change's state says, one step or range
 * after the other, and reads the state again before each: CALL undo() sets it,
 * and cancels what runs.  The worker ends when the state asks for nothing more,
 * or with an error, which it leaves in the change's row.
 *
 * Who crashes takes the server along, which starts it again, and it would crash
 * again.  So a worker counts that it has begun to work, until something comes
 * of it, and does not begin for the fourth time in vain; it is for a human to
 * call, then.
 *
 * A lock that cannot be had within bluegreen.lock_timeout is no error.  The
 * step is rolled back, so that nobody has to wait behind us for longer, and
 * tried again after a time that grows and is random.  Only who it was that
 * stood in the way is recorded.
 *
 * Indexes are built and dropped concurrently, which cannot be done inside of a
 * transaction, so not through SPI: the statement is handed to ProcessUtility
 * as if a client had sent it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/tablecmds.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "core/settings.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "schema/guard.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define FIRST_DELAY_MS	100
#define MAX_DELAY_MS	10000
#define MAX_WINDOW_WAIT_MS	60000
#define MAX_RAISED		6		/* tries of what fails as if it were blocked */
#define MAX_STARTS		3		/* of workers that nothing came of, in a row */
#define MAX_CANCELS		5		/* of the same thing, in a row */

typedef enum Work
{
	WORK_MORE,
	WORK_WAIT,					/* ... after a while */
	WORK_END
} Work;

static int	wait_ms = 0;		/* for WORK_WAIT */
static int	tries = 0;			/* in vain, one after the other */
static int	raised_tries = 0;	/* ... for which no lock was the reason */
static int	cancels = 0;		/* the same, without another state */
static bool begun = false;		/* this worker has been counted */
static bool counted = false;	/* ... and nothing has come of it yet */
static Change *changing = NULL; /* what this round is about */
static Step *current = NULL;	/* step that is tried, for who is told */
static MemoryContext round_context; /* of what one round makes */
static bool window_known = false;	/* CHANGE_REVERTIBLE was looked at */

/* ---- transactions; what is made in them survives until the next round ---- */

static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(round_context);
}

static void
commit(void)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(round_context);
	pgstat_report_stat(true);
}

static void
set_path(const char *path, GucAction action)
{
	(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION,
							 action, true, 0, false);
}

/* ---- steps ---- */

/*
 * What the document's own statements set is not for those after them.
 */
static void
run_user_statements(const Change *change, const Step *step)
{
	int			guc_level;
	ListCell   *lc;

	step_lock(change->id, step);
	guc_level = NewGUCNestLevel();
	foreach(lc, step->statements)
	{
		run_statement(lfirst(lc));
	}
	AtEOXact_GUC(false, guc_level);
}

/* May what a statement is about be gone? */
static bool
is_lenient(const Change *change, const Step *step)
{
	return (step->kind == STEP_SQL || step->kind == STEP_VALIDATE) &&
		(change->state == CHANGE_RETIRING ||
		 change->state == CHANGE_REVERTING ||
		 change->state == CHANGE_UNDOING);
}

static void
run_step_statement(const Change *change, const Step *step, const char *sql)
{
	void		(*run) (const char *) = run_statement;

	if (step->kind == STEP_SQL &&
		strncmp(sql, TRIGGER_STATEMENT, strlen(TRIGGER_STATEMENT)) == 0)
		run = run_as_extension;
	if (step->kind == STEP_VALIDATE)
		run = run_as_table_owner;
	if (step->kind == STEP_CHECK)
		run_check(change, step, sql);
	else if (is_lenient(change, step))
		guard_run(change, sql, run);
	else
		run(sql);
}

static void
run_statements(const Change *change, const Step *step)
{
	ListCell   *lc;

	foreach(lc, step->statements)
	{
		run_step_statement(change, step, lfirst(lc));
	}
}

/*
 * Locks and statements of a step in one transaction with its mark.
 */
static void
run_transaction(const Change *change, Step *step)
{
	TableBefore before;

	locks_set_timeout(bg_lock_timeout);
	if (step->kind == STEP_VERSION)
		version_prepare_create(change, step);
	set_path(change->path, GUC_ACTION_LOCAL);
	if (step->kind == STEP_DROP_VERSION)
		version_prepare_drop(step);
	if (guard_step(change, step))
	{
		locks_take(step, change->state != CHANGE_EXPANDING &&
				   change->state != CHANGE_VALIDATING);
		if (guard_step(change, step))
		{
			made_begin(step, &before);
			if (step->kind == STEP_USER)
				run_user_statements(change, step);
			else
				run_statements(change, step);
			made_end(change->id, step, &before);
		}
	}
	if (step->kind == STEP_VERSION)
		guard_extension(version_store(change));
	step_finish(change->id, step);
}

/*
 * Run a utility statement outside of a transaction block.
 */
static void
run_top_level(const char *sql)
{
	MemoryContext context = AllocSetContextCreate(round_context,
												  "pg_bluegreen statement",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext portal = PortalContext;
	PlannedStmt *statement;
	QueryCompletion completion;
	RawStmt    *raw;

	begin();
	MemoryContextSwitchTo(context); /* not the transactions', which end */
	raw = linitial_node(RawStmt, raw_parser(sql, RAW_PARSE_DEFAULT));
	statement = makeNode(PlannedStmt);
	statement->commandType = CMD_UTILITY;
	statement->canSetTag = true;
	statement->utilityStmt = raw->stmt;
	statement->stmt_location = raw->stmt_location;
	statement->stmt_len = raw->stmt_len;
	InitializeQueryCompletion(&completion);
	PortalContext = context;
	PG_TRY();
	{
		ProcessUtility(statement, sql, false, PROCESS_UTILITY_TOPLEVEL, NULL,
					   NULL, None_Receiver, &completion);
	}
	PG_FINALLY();
	{
		PortalContext = portal;
	}
	PG_END_TRY();
	commit();
	MemoryContextDelete(context);
}

/* What a step has built gets its name, and is written down, in one transaction. */
static void
finish_index(const Change *change, const Step *step)
{
	Oid			index = find_relation(step->object);

	if (OidIsValid(index))
	{
		locks_set_timeout(bg_lock_timeout);
		for (int i = 1; i < list_length(step->statements); i++)
			run_statement(list_nth(step->statements, i));
	}
	if (step->phase == CHANGE_VALIDATING || step->phase == CHANGE_REVERTING)
		made_index(change->id, step->phase, index);
}

/*
 * Build or drop an index concurrently, unless that is done already; then mark
 * the step.
 */
static void
run_concurrently(const Change *change, Step *step)
{
	IndexState	state = INDEX_MISSING;
	bool		wanted;

	begin();
	wanted = guard_step(change, step);
	if (wanted && step->kind == STEP_INDEX)
		state = made_index_state(step);
	commit();
	if (state == INDEX_INVALID)
		run_top_level(psprintf("DROP INDEX CONCURRENTLY %s", step->object));
	if (wanted && state != INDEX_VALID)
	{
		set_path(change->path, GUC_ACTION_SET);
		run_top_level(linitial(step->statements));
		set_path("", GUC_ACTION_SET);
	}
	begin();
	if (step->kind == STEP_INDEX)
		finish_index(change, step);
	step_finish(change->id, step);
	commit();
}

/* Rehearse what is to be made when all rows are filled. */
static void
run_rehearsal(const Change *change, const Step *step)
{
	locks_set_timeout(bg_lock_timeout);
	rehearse(change);
	step_finish(change->id, step);
}

/* See which partitions lack an index, and put steps for them before this one. */
static void
run_partitions(const Change *change, const Step *step)
{
	if (guard_step(change, step))
		partitions_run(change, step);
	else
		step_finish(change->id, step);
}

static void
run_step(const Change *change, Step *step)
{
	current = step;
	pgstat_report_activity(STATE_RUNNING, step->title);
	begin();
	step_started(change->id, step);
	commit();
	if (step->kind == STEP_INDEX || step->kind == STEP_DROP_INDEX)
	{
		run_concurrently(change, step);
		return;
	}
	begin();
	if (step->kind == STEP_PARTITIONS)
		run_partitions(change, step);
	else if (step->kind == STEP_REHEARSAL)
		run_rehearsal(change, step);
	else
		run_transaction(change, step);
	commit();
}

/* ---- phases ---- */

static void
set_state(const Change *change, ChangeState to)
{
	begin();
	if (change_set_state(change->id, change->state, to))
	{
		change_event(change, EVENT_CHANGE, change_state_names[to], NULL);
		if (to == CHANGE_CONTRACTED)
			guard_extension_end(version_schema(change->id));
	}
	commit();
	/* the window begins now */
	if (to == CHANGE_REVERTIBLE)
		window_known = true;
}

/* Where a phase leads when all of its steps are done. */
static ChangeState
next_state(const Change *change)
{
	switch (change->state)
	{
		case CHANGE_EXPANDING:
			return backfill_exists(change->id) ? CHANGE_BACKFILLING :
				CHANGE_VALIDATING;
		case CHANGE_VALIDATING:
			return CHANGE_EXPANDED;
		case CHANGE_RETIRING:
			return CHANGE_REVERTIBLE;
		case CHANGE_REVERTING:
			return CHANGE_UNDOING;
		case CHANGE_CONTRACTING:
			return CHANGE_CONTRACTED;
		default:
			return CHANGE_UNDONE;
	}
}

static Work
work_on_steps(Change *change)
{
	ChangeState to;
	Step	   *step = NULL;

	begin();
	locks_set_timeout(bg_lock_timeout);
	if (!steps_exist(change->id, change->state))
		change_plan(change);
	step = step_next(change->id, change->state);
	if (step != NULL && guard_plan_is_old(change, step))
	{
		steps_forget(change->id, change->state);
		change_plan(change);
		step = step_next(change->id, change->state);
	}
	to = next_state(change);
	commit();
	if (step != NULL)
		run_step(change, step);
	else
		set_state(change, to);
	return WORK_MORE;
}

/* Count that we begin, once.  Error after too many who had no chance to. */
static void
count_start(const Change *change)
{
	int			starts;

	if (begun)
		return;
	begin();
	starts = change_count_start(change->id);
	commit();
	begun = counted = true;
	if (starts > MAX_STARTS)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("%d workers in a row ended without a word",
						MAX_STARTS),
				 errdetail("They have crashed, or the server was stopped each time."),
				 errhint("See the server log, and call again.")));
}

/* Something came of it; if we only have to wait, we will begin once more. */
static void
forget_starts(const Change *change, bool waiting)
{
	if (counted)
	{
		begin();
		change_forget_starts(change->id);
		commit();
	}
	counted = false;
	if (waiting)
		begun = false;
}

static Work
work_on_backfill(Change *change)
{
	BackfillResult result;
	int			sleep_ms;

	pgstat_report_activity(STATE_RUNNING, "backfill");
	begin();
	result = backfill_run(change, &sleep_ms);
	commit();
	if (result == BACKFILL_DONE)
		set_state(change, CHANGE_VALIDATING);
	if (result == BACKFILL_WAIT)
		forget_starts(change, true);
	if (sleep_ms == 0)
		return WORK_MORE;
	wait_ms = sleep_ms;
	return WORK_WAIT;
}

/* Nothing is to be done until the contract is final. */
static Work
wait_for_window(const Change *change)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													   change->revert_until);

	if (!window_known)
	{
		begin();
		change_keep_window(change->id);
		commit();
		window_known = true;
		return WORK_MORE;
	}
	if (left <= 0)
	{
		set_state(change, CHANGE_CONTRACTING);
		return WORK_MORE;
	}
	wait_ms = (int) Min(left, MAX_WINDOW_WAIT_MS);
	return WORK_WAIT;
}

static Work
work(Change *change)
{
	switch (change->state)
	{
		case CHANGE_EXPANDING:
		case CHANGE_VALIDATING:
		case CHANGE_RETIRING:
		case CHANGE_REVERTING:
		case CHANGE_CONTRACTING:
		case CHANGE_UNDOING:
			count_start(change);
			return work_on_steps(change);
		case CHANGE_REVERTIBLE:
			return wait_for_window(change);
		case CHANGE_BACKFILLING:
			count_start(change);
			return work_on_backfill(change);
		default:
			return WORK_END;
	}
}

/* ---- what goes wrong ---- */

/*
 * Somebody else's lock, or what can come of it.  Sets whether that is said by
 * the code that runs, and not by the server, which knows.
 */
static bool
is_blocked(const ErrorData *error, bool *raised)
{
	bool		expired = locks_expired();

	*raised = !expired &&
		(error->funcname == NULL ||
		 (strcmp(error->funcname, "ProcessInterrupts") != 0 &&
		  strcmp(error->funcname, "DeadLockReport") != 0));
	return expired ||
		error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
		error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE;
}

/* Who holds the lock that a step wants, or NULL. */
static char *
find_blocker(const Step *step)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *blocker = NULL;

	catalog_begin(&access);
	catalog_arg_text(&args, step->relation);
	if (catalog_run("SELECT format('process %s (%s, %s), transaction since %s', "
					"a.pid, a.usename, coalesce(a.state, a.backend_type), "
					"date_trunc('second', a.xact_start)) "
					"FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
					"WHERE l.relation = to_regclass($1) AND l.granted "
					"AND l.database = (SELECT oid FROM pg_database "
					"WHERE datname = current_database()) "
					"AND a.pid <> pg_backend_pid() "
					"ORDER BY a.xact_start LIMIT 1", &args,
					SPI_OK_SELECT) > 0)
		blocker = catalog_text(&access, 0, 1);
	catalog_end(&access);
	return blocker;
}

/* The reason is NULL if the server knows of a lock. */
static void
note_blocked(const Change *change, int try, const char *reason)
{
	const char *blocker = reason;

	begin();
	if (blocker == NULL && current != NULL && current->relation != NULL)
		blocker = find_blocker(current);
	if (blocker == NULL)
		blocker = "a lock";
	if (current != NULL)
		step_tried(change->id, current, blocker);
	if (change->state == CHANGE_BACKFILLING)
		backfill_blocked(change->id, blocker);
	/* the first, and then fewer and fewer */
	if ((try & (try - 1)) == 0)
		change_event(change, EVENT_BLOCKED,
					 psprintf("%s waits for %s",
							  current ? current->title :
							  change_state_names[change->state], blocker),
					 NULL);
	commit();
}

static int
blocked_delay(void)
{
	double		ms = Min((double) FIRST_DELAY_MS * (1 << Min(tries - 1, 10)),
						 MAX_DELAY_MS);

	return (int) (ms * (0.5 + pg_prng_double(&pg_global_prng_state)));
}

/*
 * After a cancel: is the state another one now, or was it by mistake?  What is
 * cancelled again and again raises that itself, such as by a statement_timeout
 * of its own.
 */
static bool
is_repeated(const Change *change)
{
	Change	   *now;

	begin();
	now = change_load(change->id);
	commit();
	if (now == NULL || now->state != change->state)
		cancels = 0;
	else
		cancels++;
	return cancels > 0;
}

/*
 * After an error; the transaction is aborted already.
 */
static Work
recover(const Change *change, ErrorData *error)
{
	Work		result = WORK_MORE;
	bool		raised;
	bool		blocked = is_blocked(error, &raised) &&
		(!raised || raised_tries++ < MAX_RAISED);

	if (blocked)
		note_blocked(change, ++tries, raised ? error->message : NULL);
	else if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		if (!is_repeated(change))
			return WORK_MORE;
		tries++;
	}
	if (blocked || (error->sqlerrcode == ERRCODE_QUERY_CANCELED &&
					cancels < MAX_CANCELS))
	{
		forget_starts(change, true);
		wait_ms = blocked_delay();
		return WORK_WAIT;
	}
	/* an index of an old column that is gone is not to be restored */
	if (change->state == CHANGE_REVERTING && current != NULL &&
		current->kind == STEP_INDEX && guard_is_gone(error))
	{
		begin();
		change_event(change, EVENT_CHANGE,
					 psprintf("passed over: %s", error->message),
					 current->title);
		step_finish(change->id, current);
		commit();
		return WORK_MORE;
	}
	begin();
	if (change_set_error(change->id, change->state, error))
		result = WORK_END;
	change_event(change, EVENT_ERROR, error->message,
				 current ? current->title : NULL);
	commit();
	return result;
}

/* ---- the loop ---- */

/*
 * Who waits for a lock for deadlock_timeout has an autovacuum that holds it
 * cancelled.  We never wait for so long, unless it is shorter for us; it is
 * also we, then, who find a deadlock first and end it.
 */
static void
follow_lock_timeout(void)
{
	static int	followed = 0;
	char		value[16];

	if (followed == bg_lock_timeout)
		return;
	followed = bg_lock_timeout;
	snprintf(value, sizeof(value), "%d", followed / 2);
	SetConfigOption("deadlock_timeout", value, PGC_SUSET, PGC_S_OVERRIDE);
}

/* The change belongs to somebody else now: to be worked on by his session. */
static Work
hand_over(const Change *change)
{
	LockReleaseSession(USER_LOCKMETHOD);
	if (change_start_worker(MyDatabaseId, change->id, change->owner) == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no background worker is free to go on with change \"%s\"",
						change->name),
				 errhint("Raise max_worker_processes, and call again what was called.")));
	return WORK_END;
}

/* Look at the change, and do the next thing for it. */
static Work
work_one_round(int32 id)
{
	bool		locked;
	Work		result;

	worker_check();
	follow_lock_timeout();
	begin();
	/* what the last step has called may have ended it */
	locked = change_try_lock(id);
	changing = change_load(id);
	commit();
	if (changing == NULL || !locked)
		return WORK_END;
	if (changing->owner != GetSessionUserId())
		return hand_over(changing);
	result = work(changing);
	forget_starts(changing, false);
	tries = cancels = raised_tries = 0;
	return result;
}

/*
 * A round, and what its error means.  CALL undo() may cancel us at any time:
 * here, and nowhere else, that is looked at.
 */
static Work
work_safely(int32 id)
{
	ErrorData  *volatile error = NULL;
	volatile Work result = WORK_MORE;

	changing = NULL;
	RESUME_CANCEL_INTERRUPTS();
	PG_TRY();
	{
		result = work_one_round(id);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		locks_end();
		MemoryContextSwitchTo(round_context);
		error = CopyErrorData();
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	/* an error has forgotten that they were held, a success released them */
	HOLD_CANCEL_INTERRUPTS();
	MemoryContextSwitchTo(round_context);
	if (error == NULL)
		return result;
	if (changing != NULL)
		return recover(changing, error);
	if (error->sqlerrcode != ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	return WORK_MORE;
}

/*
 * Wait for wait_ms, or until somebody wants something of us.  Whatever else has
 * set the latch does not end the wait: rates depend on it.
 */
static void
rest(void)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													wait_ms);
	long		left;

	pgstat_report_activity(STATE_IDLE, NULL);
	while (!InterruptPending && !ConfigReloadPending &&
		   (left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												   until)) > 0)
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

static void
work_until_end(int32 id)
{
	Work		result = WORK_MORE;

	HOLD_CANCEL_INTERRUPTS();
	while (result != WORK_END)
	{
		MemoryContextReset(round_context);
		current = NULL;
		set_path("", GUC_ACTION_SET);
		result = work_safely(id);
		if (result == WORK_WAIT)
			rest();
	}
}

/*
 * Entry point.  bgw_extra holds the database, the owner and the change.
 */
void
bluegreen_change_main(Datum arg)
{
	ChangeWorkerExtra extra;
	bool		locked;

	memcpy(&extra, MyBgworkerEntry->bgw_extra, sizeof(extra));
	worker_start_session(extra.database, extra.owner,
						 psprintf("bluegreen change %d", extra.change));
	round_context = AllocSetContextCreate(TopMemoryContext,
										  "pg_bluegreen change",
										  ALLOCSET_DEFAULT_SIZES);
	locks_init();
	begin();
	locked = change_try_lock(extra.change);
	commit();
	/* else somebody else does it */
	if (locked)
		work_until_end(extra.change);
	proc_exit(0);
}
