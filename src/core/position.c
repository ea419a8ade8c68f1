/*-------------------------------------------------------------------------
 *
 * position.c
 *		On a target: the source's position, recorded by a commit or not at all.
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
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "access/xact.h"
#include "fmgr.h"
#include "replication/origin.h"
#include "storage/ipc.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_commit_position);

static XLogRecPtr position_lsn = InvalidXLogRecPtr; /* invalid = none */
static TimestampTz position_time = 0;

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
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			forget_position(0, (Datum) 0);
			break;
		default:
			break;
	}
}

/*
 * bluegreen.commit_position(lsn pg_lsn, commit_time timestamptz): have the
 * current transaction's commit advance the session's replication origin to
 * lsn, with the time at which the source committed.
 */
Datum
bluegreen_commit_position(PG_FUNCTION_ARGS)
{
	static bool registered = false;

	if (replorigin_session_origin == InvalidRepOriginId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no replication origin is configured")));
	if (!registered)
	{
		RegisterXactCallback(position_at_transaction_end, NULL);
		before_shmem_exit(forget_position, (Datum) 0);
		registered = true;
	}
	position_lsn = PG_GETARG_LSN(0);
	position_time = PG_GETARG_TIMESTAMPTZ(1);
	PG_RETURN_VOID();
}
