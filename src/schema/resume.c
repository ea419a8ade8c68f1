/*-------------------------------------------------------------------------
 *
 * resume.c
 *		After a restart of the server: changes go on.
 *
 * Which changes a database has only a session of that database can tell.  So
 * the launcher (core/launcher.c), when it has started, starts this worker for
 * one database after the other.  It starts a worker for each change that asks
 * for one by its state and has not ended with an error, and ends.  If there was
 * no room for one of them, the launcher is told, and has it try again later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "commands/extension.h"
#include "compat.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "schema/change.h"
#include "storage/ipc.h"
#include "utils/snapmgr.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* False if there is no room for its worker. */
static bool
resume(int32 change, Oid owner)
{
	/* somebody has to give it another owner; it is worked on already */
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)) ||
		!change_try_lock(change))
		return true;
	change_unlock(change);
	if (change_start_worker(MyDatabaseId, change, owner) != NULL)
		return true;
	ereport(WARNING,
			(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg("no background worker is free to go on with change %d",
					change),
			 errdetail("It is tried again."),
			 errhint("Raise max_worker_processes.")));
	return false;
}

static Resumed
resume_all(void)
{
	CatalogAccess access;
	Resumed		result = {RESUME_DONE};
	uint64		n;

	catalog_begin(&access);
	n = catalog_run("SELECT id, owner FROM bluegreen.schema_change "
					"WHERE state NOT IN ('defined', 'expanded', 'contracted', "
					"'undone') AND error_message IS NULL ORDER BY id", NULL,
					SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		Resumed		missing = {
			.result = RESUME_AGAIN,
			.change = DatumGetInt32(catalog_value(i, 1, NULL)),
			.owner = DatumGetObjectId(catalog_value(i, 2, NULL))
		};

		if (!resume(missing.change, missing.owner))
			result = missing;
	}
	catalog_end(&access);
	return result;
}

/*
 * Entry point; the argument is the database.
 */
void
bluegreen_resume_main(Datum arg)
{
	Oid			namespace;
	Resumed		result = {RESUME_DONE};

	worker_start(DatumGetObjectId(arg), InvalidOid, "bluegreen resume");
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	namespace = get_namespace_oid(BG_SCHEMA, true);
	if (OidIsValid(get_extension_oid(BG_EXTENSION, true)) &&
		OidIsValid(namespace) &&
		OidIsValid(get_relname_relid("schema_change", namespace)))
		result = resume_all();
	PopActiveSnapshot();
	CommitTransactionCommand();
	launcher_set_resumed(result);
	proc_exit(0);
}
