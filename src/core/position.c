/*-------------------------------------------------------------------------
 *
 * position.c
 *		On a target: the stream's replication origin, and the source's
 *		position, which a commit records or nothing does.
 *
 * pg_replication_origin_xact_setup() would do, were it not for what happens to
 * a transaction that fails after it: from version 16 on an abort advances the
 * origin as well (RecordTransactionAbort), so a COMMIT that a deferred trigger
 * refuses, or a backend that is terminated just before its COMMIT, would mark
 * as applied what was rolled back.  In every version the position stays in the
 * session, for the next transaction to record.
 *
 * Therefore the position is kept here and becomes the session's only when the
 * transaction has done all its work, deferred triggers included; and it is
 * taken back when the transaction has ended, or before a process that exits
 * aborts what it was at.
 *
 * The source lets go of its WAL when the commit has returned.  A transaction
 * that wrote no row does not wait for its commit record to reach the disk,
 * whatever synchronous_commit says, unless it is forced to.
 *
 * Core's functions for origins work on any of them, those of subscriptions
 * included.  A role that applies changes is granted the ones below, which know
 * none but a stream's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "access/xact.h"
#include "core/clock.h"
#include "core/reached.h"
#include "core/shared.h"
#include "fmgr.h"
#include "stream/own_changes.h"
#include "replication/origin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_commit_position);
PG_FUNCTION_INFO_V1(bluegreen_origin_create);
PG_FUNCTION_INFO_V1(bluegreen_origin_setup);
PG_FUNCTION_INFO_V1(bluegreen_origin_progress);
PG_FUNCTION_INFO_V1(bluegreen_origin_drop);

#define ORIGIN_PREFIX "bluegreen_"

static XLogRecPtr position_lsn = InvalidXLogRecPtr; /* invalid = none */
static TimestampTz position_time = 0;
static XLogRecPtr position_seen = InvalidXLogRecPtr;

static void
forget_position(int code, Datum arg)
{
	position_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
}

/* Only in sessions that have called commit_position(). */
static void
position_at_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (XLogRecPtrIsInvalid(position_lsn))
				break;
			replorigin_session_origin_lsn = position_lsn;
			replorigin_session_origin_timestamp = position_time;
			break;
		case XACT_EVENT_COMMIT:
			/* others can see it now, not before */
			reached_commit(position_lsn);
			if (!XLogRecPtrIsInvalid(position_lsn))
				own_note_seen(position_seen);
			forget_position(0, (Datum) 0);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			forget_position(0, (Datum) 0);
			break;
		default:
			break;
	}
}

/*
 * bluegreen.commit_position(lsn pg_lsn, commit_time timestamptz, after pg_lsn,
 * seen pg_lsn): have the current transaction's commit advance the session's replication
 * origin to lsn, with the time at which the source committed.  Error unless the
 * origin is at "after": the stream does not wait to see that the transaction
 * before this one was committed.  seen is what the source had seen of this
 * side's changes, in a window; else 0/0.
 */
Datum
bluegreen_commit_position(PG_FUNCTION_ARGS)
{
	static bool registered = false;
	XLogRecPtr	reached;

	if (replorigin_session_origin == InvalidRepOriginId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no replication origin is configured")));
	reached = replorigin_session_get_progress(false);
	if (reached != PG_GETARG_LSN(2))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the stream's progress is %X/%X instead of %X/%X",
						LSN_FORMAT_ARGS(reached),
						LSN_FORMAT_ARGS(PG_GETARG_LSN(2))),
				 errdetail("The transaction before this one was not committed.")));
	if (!registered)
	{
		RegisterXactCallback(position_at_transaction_end, NULL);
		before_shmem_exit(forget_position, (Datum) 0);
		registered = true;
	}
	ForceSyncCommit();
	position_lsn = PG_GETARG_LSN(0);
	position_time = PG_GETARG_TIMESTAMPTZ(1);
	position_seen = PG_GETARG_LSN(3);
	if (!XLogRecPtrIsInvalid(position_seen))
	{
		own_attach_session();
		clock_note_commit(position_time);
	}
	PG_RETURN_VOID();
}

/* ---- origins ---- */

static void
check_origin_name(const char *name)
{
	if (strncmp(name, ORIGIN_PREFIX, strlen(ORIGIN_PREFIX)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("replication origin \"%s\" is not one of a stream",
						name)));
}

/*
 * bluegreen.origin_create(name text): make a stream's origin, unless it is
 * there.
 */
Datum
bluegreen_origin_create(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));

	check_origin_name(name);
	if (replorigin_by_name(name, true) == InvalidRepOriginId)
		(void) DirectFunctionCall1(pg_replication_origin_create,
								   PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}

/*
 * bluegreen.origin_setup(name text): make this session the one that advances a
 * stream's origin.  Errors: object_in_use if another one does.
 */
Datum
bluegreen_origin_setup(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));

	check_origin_name(name);
	(void) DirectFunctionCall1(pg_replication_origin_session_setup,
							   PG_GETARG_DATUM(0));
	reached_attach(name);
	PG_RETURN_VOID();
}

/*
 * bluegreen.origin_progress() returns pg_lsn: how far the session's origin is,
 * durably; null if nowhere.
 */
Datum
bluegreen_origin_progress(PG_FUNCTION_ARGS)
{
	XLogRecPtr	lsn;

	if (replorigin_session_origin == InvalidRepOriginId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no replication origin is configured")));
	lsn = replorigin_session_get_progress(true);
	if (XLogRecPtrIsInvalid(lsn))
		PG_RETURN_NULL();
	PG_RETURN_LSN(lsn);
}

/*
 * bluegreen.origin_drop(stream text): drop a stream's origin and those of its
 * copy workers.  Errors: object_in_use if a session advances one.
 */
Datum
bluegreen_origin_drop(PG_FUNCTION_ARGS)
{
	char	   *stream = text_to_cstring(PG_GETARG_TEXT_PP(0));

	check_origin_name(stream);
	replorigin_drop_by_name(stream, true, true);
	for (int i = 1; i <= BG_MAX_COPY_WORKERS; i++)
		replorigin_drop_by_name(psprintf("%s_c%d", stream, i), true, true);
	PG_RETURN_VOID();
}
