/*-------------------------------------------------------------------------
 *
 * tally.c
 *		On a target: did the statements of a stream do what they were for?
 *
 * A stream sends its rows and the COMMIT behind them without waiting for any
 * answer.  So that no UPDATE or DELETE which missed a row is committed, a
 * session that applies counts the rows of each statement of its own, as the
 * statement's command tag does, and the stream has the counts compared with
 * what it knows, before the COMMIT: check_rows().
 *
 * Statements within others (triggers, functions) do not count, nor do the
 * further commands of a rule, nor what is no INSERT, UPDATE, DELETE or MERGE.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/guard.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(bluegreen_check_rows);

static int	level = 0;			/* of statements within statements */

/* Rows of one statement. */
typedef struct Count
{
	int64		rows;			/* that it affected */
	int64		expected;		/* that it said itself, or -1 */
} Count;

static Count *counts = NULL;	/* of the transaction, since the last check */
static int	ncounts = 0;
static int	max_counts = 0;
static int64 expected_now = -1;	/* by the statement that runs */

static ExecutorRun_hook_type next_run = NULL;
static ExecutorFinish_hook_type next_finish = NULL;
static ExecutorEnd_hook_type next_end = NULL;
static ProcessUtility_hook_type next_utility = NULL;

/* Do something that may run statements within this one. */
#define ONE_DOWN(call) \
	do { \
		level++; \
		PG_TRY(); \
		{ \
			call; \
		} \
		PG_FINALLY(); \
		{ \
			level--; \
		} \
		PG_END_TRY(); \
	} while (0)

static void
run_next EXECUTOR_RUN_PARAMS
{
	if (next_run)
		next_run EXECUTOR_RUN_ARGS;
	else
		standard_ExecutorRun EXECUTOR_RUN_ARGS;
}

static void
tally_run EXECUTOR_RUN_PARAMS
{
	ONE_DOWN(run_next EXECUTOR_RUN_ARGS);
}

static void
finish_next(QueryDesc *desc)
{
	if (next_finish)
		next_finish(desc);
	else
		standard_ExecutorFinish(desc);
}

static void
tally_finish(QueryDesc *desc)
{
	ONE_DOWN(finish_next(desc));
}

static void
note_count(int64 count)
{
	if (ncounts == max_counts)
	{
		int			size = Max(max_counts * 2, 64);

		if (counts == NULL)
			counts = MemoryContextAlloc(TopMemoryContext,
										size * sizeof(Count));
		else
			counts = repalloc_huge(counts, size * sizeof(Count));
		max_counts = size;
	}
	counts[ncounts].rows = count;
	counts[ncounts++].expected = expected_now;
	expected_now = -1;
}

/*
 * The statement that runs writes so many rows, as far as it knows.
 */
void
tally_expect(int64 rows)
{
	expected_now = rows;
}

static void
tally_end(QueryDesc *desc)
{
	if (level == 0 && desc->plannedstmt->canSetTag &&
		desc->operation != CMD_SELECT)
		note_count(desc->estate->es_processed);
	if (next_end)
		next_end(desc);
	else
		standard_ExecutorEnd(desc);
}

/*
 * Arguments of a utility statement's hook; many, so under one name.
 */
#define UTILITY_PARAMS \
	PlannedStmt *pstmt, const char *query_string, bool read_only_tree, \
	ProcessUtilityContext context, ParamListInfo params, \
	QueryEnvironment *environment, DestReceiver *dest, \
	QueryCompletion *completion
#define UTILITY_ARGS \
	pstmt, query_string, read_only_tree, context, params, environment, dest, \
	completion

static void
utility_next(UTILITY_PARAMS)
{
	if (next_utility)
		next_utility(UTILITY_ARGS);
	else
		standard_ProcessUtility(UTILITY_ARGS);
}

static void
tally_utility(UTILITY_PARAMS)
{
	ONE_DOWN(utility_next(UTILITY_ARGS));
}

static void
tally_at_transaction_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
	{
		ncounts = 0;
		expected_now = -1;
	}
}

/*
 * Count in this session from now on.  For begin_apply(), once.
 */
void
tally_install(void)
{
	next_run = ExecutorRun_hook;
	ExecutorRun_hook = tally_run;
	next_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = tally_finish;
	next_end = ExecutorEnd_hook;
	ExecutorEnd_hook = tally_end;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = tally_utility;
	RegisterXactCallback(tally_at_transaction_end, NULL);
}

/*
 * Compare the counts with what was expected.
 */
static void
check_counts(ArrayType *array)
{
	Datum	   *expected;
	bool	   *isnull;
	int			nexpected;

	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &expected, &isnull, &nexpected);
	if (nexpected != ncounts)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("a batch consists of %d statements on tables, but %d were carried out",
						nexpected, ncounts)));
	for (int i = 0; i < ncounts; i++)
	{
		int64		rows = DatumGetInt64(expected[i]);

		bool		by_lookup = rows == BG_ROWS_BY_LOOKUP;

		if (by_lookup)
			rows = counts[i].expected;
		if (!isnull[i] && (rows >= 0 || by_lookup) &&
			rows != counts[i].rows)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_EXCEPTION),
					 errmsg("a batch did not find all rows that it changes on the target"),
					 errdetail("Statement %d of the batch affected " INT64_FORMAT " rows instead of " INT64_FORMAT ".",
							   i + 1, counts[i].rows, rows),
					 errhint("The batch is applied again row by row to find the cause.")));
	}
}

/*
 * bluegreen.check_rows(expected bigint[]): error unless the session's
 * statements on tables in this transaction, since the last call, affected as
 * many rows each; -1 stands for any, -2 for as many as the statement's lookup
 * gave.  With NULL nothing is compared.
 */
Datum
bluegreen_check_rows(PG_FUNCTION_ARGS)
{
	guard_require();
	if (!PG_ARGISNULL(0))
		check_counts(PG_GETARG_ARRAYTYPE_P(0));
	ncounts = 0;
	PG_RETURN_VOID();
}
