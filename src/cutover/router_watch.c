/*-------------------------------------------------------------------------
 *
 * router_watch.c
 *		The watchdog of paused routers.
 *
 * It waits for the lock of whoever works on the routers.  When it has it, that
 * one has resumed them, or is gone and has not; then we do.  While it is in
 * doubt which side is active, and for consoles that cannot be reached, we try
 * again, and let others at it in between.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "core/definition.h"
#include "core/worker.h"
#include "cutover/router.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#define RETRY_MS 1000

/* ---- starting it ---- */

bool
routers_paused(int32 deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		found;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	found = catalog_run("SELECT FROM bluegreen.router_route "
						"WHERE deployment = $1 AND paused_at IS NOT NULL",
						&args, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return found;
}

void
router_watch(int32 deployment)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = Int32GetDatum(deployment);
	memcpy(worker.bgw_extra, &MyDatabaseId, sizeof(Oid));
	strlcpy(worker.bgw_library_name, BG_EXTENSION,
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "bluegreen_router_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "pg_bluegreen router", sizeof(worker.bgw_type));
	strlcpy(worker.bgw_name, "pg_bluegreen router", sizeof(worker.bgw_name));
	if (!RegisterDynamicBackgroundWorker(&worker, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free to watch the routers"),
				 errhint("Raise max_worker_processes.")));
}

/* ---- the watchdog ---- */

/*
 * One look; true if nothing is left to do.  What it makes lives in context.
 */
static bool
watch(int32 id, MemoryContext context)
{
	Deployment *deployment;
	int			left = 0;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	deployment = deployment_load(id);
	if (deployment != NULL)
		left = routers_recover(deployment);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextReset(context);
	return left == 0;
}

/*
 * The same; after an error there is something left.
 */
static bool
try_watch(int32 id, MemoryContext context)
{
	volatile bool done = false;

	PG_TRY();
	{
		done = watch(id, context);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		HOLD_INTERRUPTS();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return done;
}

void
bluegreen_router_main(Datum arg)
{
	MemoryContext context;
	Oid			dboid;

	memcpy(&dboid, MyBgworkerEntry->bgw_extra, sizeof(Oid));
	worker_start(dboid, InvalidOid, "pg_bluegreen router");
	context = AllocSetContextCreate(TopMemoryContext, "bluegreen watchdog",
									ALLOCSET_DEFAULT_SIZES);
	while (!try_watch(DatumGetInt32(arg), context))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, RETRY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		worker_check();
	}
	proc_exit(0);
}
