/*-------------------------------------------------------------------------
 *
 * lost.c
 *		What makes a stream lost: it cannot go on without leaving out changes,
 *		or without having applied some that never were.
 *
 * The slot holds the WAL that the target still needs.  So the stream is lost
 * if the slot is gone, was invalidated, or was confirmed beyond what the
 * target has (made anew, advanced, read by somebody else).  It is lost, too, if
 * the target has what this server has not: a standby was promoted that had not
 * received it, or the server was put back (stream/progress.c).
 *
 * Nothing of this is remembered here: each reason can be seen again by whoever
 * looks.  So a stream stays lost over restarts, and what is put right again is
 * found to be right.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "compat.h"
#include "core/definition.h"
#include "core/lost.h"
#include "funcapi.h"
#include "replication/slot.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(bluegreen_slot_state);

static bool raised = false;

/*
 * Find the slot of a stream; false if there is none, or one of the same name
 * that is none of ours.  Fills in a copy of what can be seen without owning it.
 */
static bool
find_slot(const char *slot_name, ReplicationSlot *copy)
{
	ReplicationSlot *slot;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	slot = SearchNamedReplicationSlot(slot_name, false);
	if (slot != NULL)
	{
		SpinLockAcquire(&slot->mutex);
		copy->data = slot->data;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return slot != NULL && SlotIsLogical(copy) &&
		strcmp(NameStr(copy->data.plugin), BG_PLUGIN) == 0;
}

/*
 * Is a stream lost because of its slot, as far as that can be seen without
 * asking the target?
 */
LostReason
lost_by_slot(const char *slot_name)
{
	ReplicationSlot slot = {0};
	LostReason	reason = {0};

	if (!find_slot(slot_name, &slot))
	{
		reason.message = "replication slot is gone";
		reason.detail = psprintf("There is no slot \"%s\" of plugin \"%s\": it was dropped, or this server was promoted from a standby that did not have it.",
								 slot_name, BG_PLUGIN);
	}
	else if (slot_is_invalidated(&slot))
	{
		reason.message = "replication slot was invalidated";
		reason.detail = psprintf("The server has invalidated slot \"%s\" because of \"%s\"; WAL that the target needs may be gone.",
								 slot_name, slot_invalidation_setting(&slot));
	}
	return reason;
}

/*
 * Error for a user who asks something of a lost stream.
 */
void
lost_report(const char *deployment, const LostReason *reason)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("stream of deployment \"%s\" is in state lost: %s",
					deployment, reason->message),
			 errdetail_internal("%s", reason->detail),
			 errhint(LOST_HINT)));
}

/*
 * In a stream's worker: raise the error that makes the stream lost.
 */
void
lost_raise(const LostReason *reason)
{
	raised = true;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg_internal("%s", reason->message),
			 errdetail_internal("%s", reason->detail),
			 errhint(LOST_HINT)));
}

/*
 * Was the error at hand raised by lost_raise()?  For a worker, whom any error
 * ends.
 */
bool
lost_was_raised(void)
{
	return raised;
}

/*
 * On a standby: will the stream be lost if this server is promoted?
 */
static LostReason
lost_by_promotion(const char *slot_name)
{
	ReplicationSlot slot = {0};
	LostReason	reason = {0};

	if (find_slot(slot_name, &slot) &&
		slot.data.persistency == RS_PERSISTENT && !slot_is_invalidated(&slot))
		return reason;
	reason.message = "standby does not have the slot";
	reason.detail = psprintf("Slot \"%s\" is not synchronized to this standby. If it is promoted now, the stream is lost.",
							 slot_name);
	return reason;
}

/*
 * bluegreen.slot_state(slot_name name, OUT message, OUT detail, OUT hint):
 * why the stream of a slot is lost, or would be after a promotion; nulls if
 * nothing is wrong with the slot.
 */
Datum
bluegreen_slot_state(PG_FUNCTION_ARGS)
{
	const char *slot_name = NameStr(*PG_GETARG_NAME(0));
	bool		standby = RecoveryInProgress();
	LostReason	reason = standby ? lost_by_promotion(slot_name) :
		lost_by_slot(slot_name);
	TupleDesc	desc;
	Datum		values[3] = {0};
	bool		nulls[3] = {true, true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (reason.message != NULL)
	{
		values[0] = CStringGetTextDatum(reason.message);
		values[1] = CStringGetTextDatum(reason.detail);
		values[2] = CStringGetTextDatum(standby ? STANDBY_SLOT_HINT : LOST_HINT);
		memset(nulls, false, sizeof(nulls));
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
