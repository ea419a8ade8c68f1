/*-------------------------------------------------------------------------
 *
 * attempt.c
 *		Do something whose error is not the end of what it belongs to.
 *
 * It is done in a subtransaction.  If it fails, that is rolled back, with its
 * locks and the connections that it has made, and the caller decides what
 * becomes of the error.  Session locks, slots, and fields of structs are the
 * caller's to put right.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "core/attempt.h"
#include "utils/resowner.h"

/*
 * Call what(arg).  Returns NULL, or a copy of its error in the current memory
 * context, which is current again in any case.  Needs a transaction.
 */
ErrorData *
attempt(void (*what) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		what(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/*
 * The same, but a cancel is raised again.
 */
ErrorData *
attempt_or_cancel(void (*what) (void *arg), void *arg)
{
	ErrorData  *error = attempt(what, arg);

	if (error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	return error;
}
