/*-------------------------------------------------------------------------
 *
 * pg_bluegreen.c
 *		What happens when the library is loaded: settings, hooks, shared
 *		memory, the launcher, the commit callback; nothing else.
 *
 * The library also loads in a server that does not preload it, as an output
 * plugin or for functions that only read the catalog.  What needs shared
 * memory says so with shared_require().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "app/session.h"
#include "core/catalog.h"
#include "core/partition.h"
#include "core/settings.h"
#include "core/shared.h"
#include "core/worker.h"
#include "cutover/fence.h"
#include "miscadmin.h"
#include "schema/change.h"
#include "storage/ipc.h"

PG_MODULE_MAGIC_EXT(.name = "pg_bluegreen", .version = "1.0");

extern PGDLLEXPORT void _PG_init(void);

static shmem_request_hook_type previous_shmem_request_hook = NULL;
static shmem_startup_hook_type previous_shmem_startup_hook = NULL;

static void
bluegreen_shmem_request(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	shared_request();
	session_request();
}

static void
bluegreen_shmem_startup(void)
{
	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();
	shared_startup();
	session_startup();
}

/*
 * Called once when the library is loaded.
 */
void
_PG_init(void)
{
	settings_define();
	deployment_guard_install();

	if (!process_shared_preload_libraries_in_progress)
		return;

	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = bluegreen_shmem_request;
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = bluegreen_shmem_startup;

	/* A server that is being upgraded must not change by itself. */
	if (!IsBinaryUpgrade)
		launcher_register();
	wake_register();
	partition_hook_install();
	ddl_watch_install();
	owner_watch_install();
	fence_hooks_install();
	dualwrite_install();
}
