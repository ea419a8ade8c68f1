/*-------------------------------------------------------------------------
 *
 * place.c
 *		Where a deployment's source lives, so that a copy of it stays quiet.
 *
 * A file-system clone of the source has its slots, its deployments and the
 * peer's password, and would begin to push its own changes to the peer.  A
 * promoted standby is the source's successor, but whether it has everything
 * that the target has is not for a worker to guess.  So start() writes down
 * the place, that is timeline, host and data directory; a worker that finds
 * itself elsewhere stops before it connects, until a human says that this is
 * the source now (bluegreen.confirm_source).
 *
 * The target notes the timeline of the source that writes to it.  A worker on
 * a later timeline checks that the target has nothing that its own history
 * lacks (stream/progress.c); one on an earlier timeline, of a source that was
 * replaced, is turned away.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>
#include <unistd.h>

#include "access/timeline.h"
#include "access/xlog.h"
#include "compat.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/place.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(bluegreen_confirm_source);

/*
 * This server's place, as text that is compared and shown.
 */
char *
source_place(void)
{
	char		host[HOST_NAME_MAX + 1] = "";

	(void) gethostname(host, sizeof(host) - 1);
	return psprintf("timeline %u, host %s, directory %s",
					GetWALInsertionTimeLine(), host, DataDir);
}

/*
 * Is this the place at which the deployment was started or confirmed?
 */
bool
source_is_here(const Deployment *deployment)
{
	return deployment->source_place == NULL ||
		strcmp(deployment->source_place, source_place()) == 0;
}

/*
 * This server's timeline, as text that the target keeps.  Two standbys that are
 * promoted may get the same number, so it goes with where it begins.
 */
char *
source_timeline(void)
{
	TimeLineID	here = GetWALInsertionTimeLine();
	TimeLineHistoryEntry *entry = linitial(readTimeLineHistory(here));

	return psprintf("%u@%X/%X", here, LSN_FORMAT_ARGS(entry->begin));
}

/*
 * The position up to which this server has the WAL of the timeline of the
 * source that the target follows: the last one for the timeline that it is on,
 * the one at which it was left for those before.  Errors: the timeline is not
 * in this server's history, so another server has become the source.
 */
XLogRecPtr
source_check_timeline(const Deployment *deployment, const char *known)
{
	ListCell   *lc;
	uint32		tli = 0;
	uint32		hi = 0;
	uint32		lo = 0;

	(void) sscanf(known, "%u@%X/%X", &tli, &hi, &lo);
	foreach(lc, readTimeLineHistory(GetWALInsertionTimeLine()))
	{
		TimeLineHistoryEntry *entry = lfirst(lc);

		if (entry->tli == tli && entry->begin == (((uint64) hi) << 32 | lo))
			return XLogRecPtrIsInvalid(entry->end) ? GetFlushRecPtr(NULL) :
				entry->end;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("another server is the source of deployment \"%s\"",
					deployment->name),
			 errdetail("The target follows a source on timeline %s, which is not in the history of this server, on timeline %s.",
					   known, source_timeline()),
			 errhint("If this server was replaced, do not use it any more. Do not drop the deployment here, except with force.")));
	return InvalidXLogRecPtr;	/* keep compiler quiet */
}

/*
 * Error if the deployment was started at another place than this.
 */
void
source_check_place(const Deployment *deployment)
{
	char	   *here = source_place();

	if (source_is_here(deployment))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("deployment \"%s\" was started at another place",
					deployment->name),
			 errdetail("It was started at %s; this is %s.",
					   deployment->source_place, here),
			 errhint("If this server has taken the source's place, and the other one does not run any more: SELECT bluegreen.confirm_source(%s);",
					 quote_literal_cstr(deployment->name))));
}

/*
 * bluegreen.confirm_source(deployment name): this server is the deployment's
 * source now; the stream goes on when the caller commits.
 */
Datum
bluegreen_confirm_source(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *place;

	require_argument(fcinfo, 0, "deployment");
	require_writable("bluegreen.confirm_source");
	shared_require();
	place = source_place();
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_text(&args, place);
	catalog_run("UPDATE bluegreen.deployment SET source_place = $2 "
				"WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	event_record_local(deployment->id, EVENT_DEFINED, InvalidXLogRecPtr,
					   psprintf("source confirmed by %s",
								GetUserNameFromId(GetUserId(), false)), place);
	control_retry_at_commit(deployment->id);
	PG_RETURN_VOID();
}
