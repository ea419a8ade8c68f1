/*-------------------------------------------------------------------------
 *
 * verify_rows.c
 *		Suspect keys: is the row wrong, or on its way?
 *
 * Applications write while the two sides are compared, and what they write is
 * on the target some time later.  So a key whose rows differ is looked at
 * again, in this order:
 *
 *	1. the target: g1
 *	2. the source: b2, then L, a WAL position behind all that b2 shows
 *	3. wait until the stream has applied everything up to L
 *	4. the target: g2
 *	5. wait until those have ended who are just committing
 *	6. the source: b3
 *
 * If g1 and g2 are the very same row version (or none), and b2 and b3 as well,
 * and they differ, the row is wrong: the source's row has not changed from b2
 * to b3, so it is the one that the target should have at L; the stream has
 * passed L and the target's row has not been written meanwhile.  If g2 is b2 or
 * b3, it is right.  Otherwise somebody has written in between, and it begins
 * anew.
 *
 * Step 5 is for a commit that is in the WAL before others can see it, while it
 * waits for a standby above all: the stream may have applied it already.  Such
 * a one is running when g2 is done, whether it began before b2 or after, or b3
 * sees it.  Who has been running for a while and does not wait for a standby
 * has not committed yet, and the stream knows nothing of him.
 *
 * A row that is written all the time is never at rest.  For such ones the two
 * sides are looked at in turn, quickly: the target's row is right if it is what
 * the source had at some look, of those looks that the stream had not passed
 * before the target was looked at.  What stays unclear after that is counted as
 * unsettled.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "compat.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/standby.h"
#include "stream/verify.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define ROUNDS			12
#define FIRST_PAUSE		20		/* ms; doubles with each round */
#define LAST_PAUSE		1000
#define BURST_ROUND		2		/* from this round on */
#define BURST_LOOKS		30
#define BURST_SUSPECTS	50		/* of more, looks are not quick */
#define COMMIT_GRACE	2000	/* ms that a commit may take to be seen */

/* Who is running. */
typedef struct Running
{
	int			n;
	TransactionId *xids;
} Running;

/* ---- looks ---- */

static void
read_keyed_look(const PeerResult *result, Look *look, int row)
{
	char	  **values = result->values[row];

	look->version = look->rows == 0 ? pstrdup(values[1]) :
		psprintf("%s %s", look->version, values[1]);
	look->hashes = lappend(look->hashes, pstrdup(values[2]));
	if (look->key == NULL)
		look->key = pstrdup(values[3]);
	look->rows++;
}

/*
 * What one side has for each of the suspects.
 */
static void
read_looks(const VerifyTable *table, const PeerResult *result, Look *looks,
		   Suspect **suspects, int n)
{
	for (int i = 0; i < n; i++)
	{
		memset(&looks[i], 0, sizeof(Look));
		looks[i].version = "";
	}
	for (int row = 0; row < result->ntuples; row++)
	{
		char	  **values = result->values[row];

		if (table->nkeys > 0)
		{
			read_keyed_look(result, &looks[atoi(values[0]) - 1], row);
			continue;
		}
		for (int i = 0; i < n; i++)
			if (strcmp(suspects[i]->key[0], values[0]) == 0)
			{
				looks[i].rows = strtoll(values[1], NULL, 10);
				looks[i].version = pstrdup(values[2]);
			}
	}
}

static OuterQuery
look_query(const VerifyTable *table, Suspect **suspects, int n)
{
	Suspect    *copies = palloc_array(Suspect, n);

	for (int i = 0; i < n; i++)
		copies[i] = *suspects[i];
	return verify_look_query(table, copies, n, false);
}

static void
look_at_target(VerifyState *state, Suspect **suspects, int n, Look *looks)
{
	OuterQuery	outer = look_query(state->table, suspects, n);
	char	   *sql = verify_target_query(state->table, NULL, NULL, &outer);

	read_looks(state->table, peer_query(state->peer, sql, 0, NULL), looks,
			   suspects, n);
}

/*
 * Returns a position behind everything that it saw.
 */
static XLogRecPtr
look_at_source(VerifyState *state, Suspect **suspects, int n, Look *looks)
{
	OuterQuery	outer = look_query(state->table, suspects, n);
	PeerResult *result;
	XLogRecPtr	lsn;
	Query	   *query;

	StartTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
	/* parse first: the snapshot should not be older than need be */
	PushActiveSnapshot(GetTransactionSnapshot());
	query = verify_source_query(state->table, NULL, NULL, &outer);
	PopActiveSnapshot();
	PushActiveSnapshot(GetTransactionSnapshot());
	lsn = verify_position();
	result = verify_run_query(state->table, query);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
	read_looks(state->table, result, looks, suspects, n);
	return lsn;
}

/* ---- judgement ---- */

static bool
look_is_same(const Look *a, const Look *b)
{
	return a->rows == b->rows && strcmp(a->version, b->version) == 0;
}

/*
 * Is the target's row what the source's gives?
 */
static bool
look_fits(const VerifyTable *table, const Look *source, const Look *target)
{
	ListCell   *a;
	ListCell   *b;

	if (table->nkeys == 0)
		return source->rows == target->rows;
	if (source->rows == 0)
		return target->rows == 0 || !table->finds_extra;
	if (target->rows == 0)
		return table->transform->row->on_write == ON_WRITE_PATCH;
	foreach(a, source->hashes)
	{
		foreach(b, target->hashes)
		{
			if (strcmp(lfirst(a), lfirst(b)) == 0)
				return true;
		}
	}
	return false;
}

/* ---- commits under way ---- */

/*
 * All that run now, also those that no snapshot counts as running, because
 * they are newer than all that have ended.
 */
static void
note_running(Running *running)
{
	RunningTransactions all = GetRunningTransactionData();

	LWLockRelease(XidGenLock);
	LWLockRelease(ProcArrayLock);
	running->n = all->xcnt;
	running->xids = palloc_array(TransactionId, Max(running->n, 1));
	memcpy(running->xids, all->xids, running->n * sizeof(TransactionId));
}

/*
 * Does a transaction wait for a standby?  If it was prepared, it has no process
 * of its own, and who commits it has no transaction: anybody like that counts.
 */
static bool
waits_for_standby(TransactionId xid)
{
	bool		owned = false;
	bool		owner_waits = false;
	bool		other_waits = false;

	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (int i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		bool		waits = proc->syncRepState != SYNC_REP_NOT_WAITING;

		if (proc->xid == xid)
		{
			owned = true;
			owner_waits = waits;
		}
		else if (!TransactionIdIsValid(proc->xid))
			other_waits |= waits;
	}
	LWLockRelease(ProcArrayLock);
	return owned ? owner_waits : other_waits;
}

/*
 * Wait until nobody is left of those who may have been committing.  Prepared
 * transactions and others that just run on have not committed.
 */
static bool
wait_for_commits(VerifyState *state)
{
	Running		running;
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  COMMIT_GRACE);

	note_running(&running);
	for (;;)
	{
		int			left = 0;
		bool		committing = false;

		for (int i = 0; i < running.n; i++)
			if (TransactionIdIsInProgress(running.xids[i]))
			{
				left++;
				committing |= waits_for_standby(running.xids[i]);
			}
		if (left == 0)
			return true;
		if (GetCurrentTimestamp() >= end)
			return !committing;
		verify_pause(state, 10);
	}
}

/* ---- rounds ---- */

static bool
any_differs(const VerifyTable *table, const Look *source, const Look *target,
			int n)
{
	for (int i = 0; i < n; i++)
		if (!look_fits(table, &source[i], &target[i]))
			return true;
	return false;
}

/*
 * One round of looks for suspects that are not settled.
 */
static void
look_round(VerifyState *state, Suspect **suspects, int n)
{
	const VerifyTable *table = state->table;
	Look	   *g1 = palloc_array(Look, n);
	Look	   *b2 = palloc_array(Look, n);
	Look	   *g2 = palloc_array(Look, n);
	Look	   *b3 = palloc_array(Look, n);
	XLogRecPtr	lsn;
	bool		calm;

	look_at_target(state, suspects, n, g1);
	lsn = look_at_source(state, suspects, n, b2);
	verify_wait_applied(state, lsn);
	look_at_target(state, suspects, n, g2);
	calm = !any_differs(table, b2, g2, n) || wait_for_commits(state);
	(void) look_at_source(state, suspects, n, b3);
	verify_check(state);		/* that the rows were written by this mapping */
	for (int i = 0; i < n; i++)
	{
		Suspect    *suspect = suspects[i];

		suspect->source = b3[i];
		suspect->target = g2[i];
		if (look_fits(table, &b2[i], &g2[i]) ||
			look_fits(table, &b3[i], &g2[i]))
			suspect->settled = true;
		else if (calm && look_is_same(&g1[i], &g2[i]) &&
				 look_is_same(&b2[i], &b3[i]))
			suspect->settled = suspect->differs = true;
		if (suspect->differs)
			verify_log_difference(state, suspect, lsn);
	}
}

/*
 * Quick looks in turn, for rows that do not come to rest.
 */
static void
look_burst(VerifyState *state, Suspect **suspects, int n)
{
	const VerifyTable *table = state->table;
	Look	   *source[BURST_LOOKS];
	XLogRecPtr	lsn[BURST_LOOKS];
	Look	   *target = palloc_array(Look, n);
	int			first = 0;

	for (int m = 0; m < BURST_LOOKS; m++)
	{
		XLogRecPtr	applied;

		source[m] = palloc_array(Look, n);
		lsn[m] = look_at_source(state, suspects, n, source[m]);
		applied = verify_applied(state);
		look_at_target(state, suspects, n, target);
		/* the target has at least what the last look shows that was passed */
		while (first < m && lsn[first + 1] <= applied)
			first++;
		for (int i = 0; i < n; i++)
			for (int k = first; k <= m && !suspects[i]->settled; k++)
				suspects[i]->settled = look_fits(table, &source[k][i],
												 &target[i]);
		verify_check(state);
	}
}

/*
 * Move those that are not settled to the front.
 */
static int
unsettled(Suspect **suspects, int n)
{
	int			left = 0;

	for (int i = 0; i < n; i++)
		if (!suspects[i]->settled)
			suspects[left++] = suspects[i];
	return left;
}

/*
 * Find out which suspects differ, and record these.
 */
void
verify_suspects(VerifyState *state, Suspect *suspects, int n)
{
	Suspect   **open = palloc_array(Suspect *, n);
	long		pause = FIRST_PAUSE;

	for (int i = 0; i < n; i++)
		open[i] = &suspects[i];
	state->progress.suspects += n;
	for (int round = 0; n > 0 && round < ROUNDS; round++)
	{
		if (round > 0)
		{
			verify_pause(state, pause);
			pause = Min(pause * 2, LAST_PAUSE);
		}
		state->progress.rechecks++;
		look_round(state, open, n);
		n = unsettled(open, n);
		if (n > 0 && round >= BURST_ROUND && n <= BURST_SUSPECTS &&
			state->table->nkeys > 0)
		{
			look_burst(state, open, n);
			n = unsettled(open, n);
		}
	}
	state->progress.unsettled += n;
}
