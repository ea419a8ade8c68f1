/*-------------------------------------------------------------------------
 *
 * router.c
 *		What stands between clients and the two sides: pause it, turn it
 *		around, let go.
 *
 * A router is a database of a PgBouncer.  A pause lets running transactions
 * end and holds the next ones, so that clients see a delay and no error.  It
 * is a risk, too: it outlives who asked for it.  So
 *
 *	- the row says that a router is paused before it is, until it is not;
 *	- who pauses holds a session lock, and a watchdog worker waits for it: when
 *	  the lock is free and the row is there, whoever paused is gone, and the
 *	  watchdog resumes.  It is started before the first pause, and by each
 *	  stream's worker when there is such a row (after a crash of the server);
 *	- no statement on a console is waited for longer than we want to.
 *
 * Several routers are paused at the same time.  Each step looks at how a router
 * is and does what is missing, so it does not matter who did what before.
 *
 * Where clients are sent to is decided by the fence, never here: a watchdog
 * sends them to the side that is active, and leaves them waiting while that
 * is in doubt.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/async.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/worker.h"
#include "cutover/router.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define CONNECT_MS	5000		/* to a console, where there is no deadline */

/* ---- one at a time ---- */

static int32 held = 0;			/* deployment whose routers are ours */

static void
router_tag(LOCKTAG *tag, int32 deployment)
{
	Oid			relation = get_relname_relid("router_route",
											 get_namespace_oid(BG_SCHEMA,
															   false));

	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, relation, (Oid) deployment, 0);
}

static void
let_go(void)
{
	LOCKTAG		tag;

	if (held == 0)
		return;
	router_tag(&tag, held);
	(void) LockRelease(&tag, ExclusiveLock, true);
	held = 0;
}

/* An error that reaches the top level has released the session's locks. */
static void
forget_held(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		held = 0;
}

/* A session that is in no transaction when it ends keeps its locks. */
static void
let_go_at_exit(int code, Datum arg)
{
	if (held == 0)
		return;
	AbortOutOfAnyTransaction();
	LockReleaseSession(DEFAULT_LOCKMETHOD);
	held = 0;
}

/*
 * Be the one that works on a deployment's routers; waits for another.  False if
 * we are that already.
 */
static bool
take(const Deployment *deployment)
{
	static bool registered = false;
	LOCKTAG		tag;

	if (!registered)
	{
		RegisterXactCallback(forget_held, NULL);
		before_shmem_exit(let_go_at_exit, (Datum) 0);
	}
	registered = true;
	if (held == deployment->id)
		return false;
	if (held != 0)
		elog(ERROR, "routers of another deployment are held");
	router_tag(&tag, deployment->id);
	(void) LockAcquire(&tag, ExclusiveLock, true, false);
	held = deployment->id;
	return true;
}

/* ---- steps ---- */

/*
 * Memory that outlives the commits of a step; the caller's is current again
 * after step_end().  After an error it goes with the portal, or the worker.
 */
static MemoryContext
step_begin(MemoryContext *callers)
{
	MemoryContext context;

	context = AllocSetContextCreate(PortalContext ? PortalContext :
									TopMemoryContext, "bluegreen routers",
									ALLOCSET_SMALL_SIZES);
	*callers = MemoryContextSwitchTo(context);
	return context;
}

static void
step_end(MemoryContext context, MemoryContext callers)
{
	MemoryContextSwitchTo(callers);
	MemoryContextDelete(context);
}

/*
 * Commit, durably, in a procedure or in a worker.
 */
static void
commit(void)
{
	MemoryContext context = CurrentMemoryContext;
	bool		had_snapshot = ActiveSnapshotSet();

	ForceSyncCommit();
	if (ActivePortal != NULL)
	{
		SPI_commit();
		return;
	}
	if (had_snapshot)
		PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
	if (had_snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
}

/* ---- rows ---- */

static Router *
read_router(const CatalogAccess *access, uint64 row)
{
	Router	   *router = MemoryContextAllocZero(access->context,
												sizeof(Router));

	router->id = DatumGetInt32(catalog_value(row, 1, NULL));
	router->server = catalog_text(access, row, 2);
	router->database = catalog_text(access, row, 3);
	router->routes[SIDE_BLUE] = catalog_text(access, row, 4);
	router->routes[SIDE_GREEN] = catalog_text(access, row, 5);
	router->route_file = catalog_text(access, row, 6);
	router->route_command = catalog_text(access, row, 7);
	router->is_paused = DatumGetBool(catalog_value(row, 8, NULL));
	router->login_retry = catalog_text(access, row, 9);
	return router;
}

/*
 * A deployment's routers, as this side knows them.
 */
List *
routers_load(int32 deployment)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	MemoryContext oldcontext;
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	n = catalog_run("SELECT id, server::text, database::text, blue_route, "
					"green_route, route_file, route_command, "
					"paused_at IS NOT NULL, login_retry "
					"FROM bluegreen.router_route WHERE deployment = $1 "
					"ORDER BY id", &args, SPI_OK_SELECT);
	oldcontext = MemoryContextSwitchTo(access.context);
	for (uint64 i = 0; i < n; i++)
		result = lappend(result, read_router(&access, i));
	MemoryContextSwitchTo(oldcontext);
	catalog_end(&access);
	return result;
}

/* Change the row of a router; $2 is value. */
static void
update_router(const Router *router, const char *set, const char *value)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, router->id);
	catalog_arg_text(&args, value);
	catalog_run(psprintf("UPDATE bluegreen.router_route SET %s WHERE id = $1",
						 set), &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Say that a router did not do what it should.
 */
static void
report(const Deployment *deployment, const Router *router, const char *what)
{
	char	   *message = psprintf("could not %s database \"%s\" of router \"%s\"",
								   what, router->database, router->server);
	const char *detail = router->error ? router->error :
		"The router could not be reached.";

	event_record_local(deployment->id, EVENT_ROUTERS, InvalidXLogRecPtr,
					   message, detail);
	ereport(WARNING,
			(errmsg("%s", message),
			 errdetail_internal("%s", detail)));
}

/* ---- consoles ---- */

static int
left_until(TimestampTz deadline)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													   deadline);

	return (int) Max(Min(left, CONNECT_MS), 1);
}

static void
open_consoles(List *routers, const Deployment *deployment,
			  TimestampTz deadline)
{
	ListCell   *lc;

	foreach(lc, routers)
	{
		console_open(lfirst(lc), deployment, left_until(deadline));
	}
}

static TimestampTz
soon(void)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CONNECT_MS);
}

/*
 * Ask all routers how they are; each one's error says what is wrong.
 */
List *
routers_look(const Deployment *deployment)
{
	List	   *routers = routers_load(deployment->id);

	open_consoles(routers, deployment, soon());
	consoles_close(routers);
	return routers;
}

/* ---- pause ---- */

static char *
on_database(const char *command, const Router *router)
{
	return psprintf("%s %s", command, console_quote(router->database));
}

static void
set_login_retry(Router *router, const char *value)
{
	if (value != NULL && value[0] != '\0' &&
		strspn(value, "0123456789.") == strlen(value))
		(void) console_command(router, psprintf("SET server_login_retry = %s",
												value));
}

/* Note that they are about to be paused, durably. */
static void
mark_paused(List *routers)
{
	ListCell   *lc;

	foreach(lc, routers)
	{
		Router	   *router = lfirst(lc);

		update_router(router, "paused_at = clock_timestamp(), "
					  "login_retry = coalesce(login_retry, $2)",
					  router->login_retry);
	}
	commit();
}

/* Ask for the pause; its end is waited for when all were asked. */
static void
begin_pause(Router *router, TimestampTz deadline)
{
	set_login_retry(router, "0");
	if (router->holds_sessions || router->console == NULL)
		return;
	/* somebody's pause, that may still wait: begin anew */
	if (router->now_paused)
		(void) console_command(router, on_database("RESUME", router));
	if (router->console == NULL)
		return;
	peer_set_deadline(router->console, deadline);
	peer_query_begin(router->console, on_database("PAUSE", router));
}

static void
end_pause(Router *router)
{
	PeerError	error;

	if (router->holds_sessions || router->console == NULL)
		return;
	if (peer_try_end(router->console, &error) != NULL)
		return;
	router->error = error.detail[0] ?
		psprintf("%s: %s", error.message, error.detail) :
		pstrdup(error.message);
}

/* The first router that has an error, or NULL. */
static Router *
first_failed(List *routers)
{
	ListCell   *lc;

	foreach(lc, routers)
	{
		Router	   *router = lfirst(lc);

		if (router->error != NULL)
			return router;
	}
	return NULL;
}

static void
refuse_pause(const Deployment *deployment, const Router *failed)
{
	char	   *detail = pstrdup(failed->error);

	(void) routers_resume(deployment);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("could not pause database \"%s\" of router \"%s\"",
					failed->database, failed->server),
			 errdetail_internal("%s", detail),
			 errhint("A router waits for the transactions that run through it. Clients go on as before.")));
}

static void
pause_all(const Deployment *deployment, List *routers, TimestampTz deadline)
{
	ListCell   *lc;

	if (take(deployment))
		router_watch(deployment->id);	/* it waits for what we have taken */
	open_consoles(routers, deployment, deadline);
	if (first_failed(routers) != NULL)
	{
		consoles_close(routers);
		refuse_pause(deployment, first_failed(routers));
	}
	mark_paused(routers);
	foreach(lc, routers)
	{
		begin_pause(lfirst(lc), deadline);
	}
	foreach(lc, routers)
	{
		end_pause(lfirst(lc));
	}
	consoles_close(routers);
	if (first_failed(routers) != NULL)
		refuse_pause(deployment, first_failed(routers));
}

void
routers_pause(const Deployment *deployment, TimestampTz deadline)
{
	MemoryContext callers;
	MemoryContext context = step_begin(&callers);
	List	   *routers = routers_load(deployment->id);

	if (routers != NIL)
		pause_all(deployment, routers, deadline);
	step_end(context, callers);
}

/* ---- switch ---- */

typedef struct RouteChange
{
	Router	   *router;
	const Deployment *deployment;
	RouterSide	to;
} RouteChange;

static void
write_route(void *arg)
{
	RouteChange *change = arg;

	if (change->router->route_file != NULL)
		route_write(change->router, change->to);
	else
		router_route_command(change->router, change->deployment, change->to);
}

/*
 * Have a route changed.  Its error becomes the router's.
 */
static void
change_route(Router *router, const Deployment *deployment, RouterSide to)
{
	RouteChange change = {router, deployment, to};
	ErrorData  *error = attempt_or_cancel(write_route, &change);

	if (error != NULL)
		router->error = psprintf("%s%s%s", error->message,
								 error->detail ? ": " : "",
								 error->detail ? error->detail : "");
}

/* Has PgBouncer taken the new route? */
static void
check_route(Router *router, RouterSide to)
{
	RouteParts	parts;

	route_parse(router->routes[to], router->database, &parts);
	if (strcmp(parts.port, router->port) == 0 &&
		strcmp(parts.dbname, router->target) == 0 &&
		(parts.host[0] == '\0' || strcmp(parts.host, router->host) == 0))
		return;
	router->error = psprintf("after RELOAD it leads to host \"%s\" port %s database \"%s\": does its pgbouncer.ini include the route file?",
							 router->host, router->port, router->target);
}

static void
switch_router(Router *router, const Deployment *deployment, RouterSide to)
{
	if (router->error != NULL)
		return;
	change_route(router, deployment, to);
	if (router->error != NULL || !console_command(router, "RELOAD"))
		return;
	/* RELOAD has set it back */
	if (router->is_paused)
		set_login_retry(router, "0");
	console_look(router);
	if (router->error == NULL)
		check_route(router, to);
	/* its sessions would stay where they are; this also pauses it */
	if (router->error == NULL && router->holds_sessions)
		router->now_paused =
			console_command(router, on_database("KILL", router));
}

/*
 * Only session pools get here without having been paused: KILL pauses.
 */
static void
mark_killed(List *routers)
{
	bool		any = false;
	ListCell   *lc;

	foreach(lc, routers)
	{
		Router	   *router = lfirst(lc);

		if (!router->holds_sessions || router->error != NULL)
			continue;
		update_router(router, "paused_at = coalesce(paused_at, "
					  "clock_timestamp()), "
					  "login_retry = coalesce(login_retry, $2)",
					  router->login_retry);
		any = true;
	}
	if (any)
		commit();
}

/* Let clients through; what it says about itself was asked for before. */
static void
resume_router(Router *router)
{
	if (router->error == NULL && router->now_paused)
		(void) console_command(router, on_database("RESUME", router));
	if (router->error == NULL)
		set_login_retry(router, router->login_retry);
}

/*
 * Have a router lead to a side, and write it down.  Clients are let through at
 * once, if that is asked for, before any commit: who finds the router noted as
 * paused looks whether it is.
 */
static bool
turn_around(Router *router, const Deployment *deployment, RouterSide to,
			bool resume)
{
	bool		turned;

	switch_router(router, deployment, to);
	turned = router->error == NULL;
	if (turned)
		update_router(router, "leads_to = $2, changed_at = clock_timestamp()",
					  router_sides[to]);
	if (turned && resume)
		resume_router(router);
	if (turned && resume && router->error == NULL)
		update_router(router, "paused_at = NULL, login_retry = NULL", NULL);
	if (router->error != NULL)
		report(deployment, router, turned ? "resume" : "switch");
	return router->error == NULL;
}

int
routers_switch(const Deployment *deployment, RouterSide to, bool resume)
{
	MemoryContext callers;
	MemoryContext context = step_begin(&callers);
	List	   *routers = routers_load(deployment->id);
	bool		was_held = held != 0;
	int			failed = 0;
	ListCell   *lc;

	if (routers != NIL)
	{
		if (take(deployment))
			router_watch(deployment->id);
		open_consoles(routers, deployment, soon());
		mark_killed(routers);
	}
	foreach(lc, routers)
	{
		if (!turn_around(lfirst(lc), deployment, to, resume))
			failed++;
	}
	consoles_close(routers);
	if (!router_command(deployment, to))
		failed++;
	routers_notify(deployment, "routers", router_sides[to],
				   router_epoch(deployment));
	commit();
	if ((resume || !was_held) && !routers_paused(deployment->id))
		let_go();
	step_end(context, callers);
	return failed;
}

/* ---- resume ---- */

static List *
only_paused(List *routers)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, routers)
	{
		if (((Router *) lfirst(lc))->is_paused)
			result = lappend(result, lfirst(lc));
	}
	return result;
}

int
routers_resume(const Deployment *deployment)
{
	MemoryContext callers;
	MemoryContext context;
	List	   *routers;
	int			failed = 0;
	ListCell   *lc;

	if (!routers_paused(deployment->id))
	{
		let_go();
		return 0;
	}
	(void) take(deployment);
	context = step_begin(&callers);
	routers = only_paused(routers_load(deployment->id));
	open_consoles(routers, deployment, soon());
	foreach(lc, routers)
	{
		Router	   *router = lfirst(lc);

		resume_router(router);
		if (router->error == NULL)
			update_router(router, "paused_at = NULL, login_retry = NULL",
						  NULL);
		else
		{
			report(deployment, router, "resume");
			failed++;
		}
	}
	consoles_close(routers);
	commit();
	if (failed == 0)
		let_go();
	step_end(context, callers);
	return failed;
}

/* ---- after a crash ---- */

int
routers_recover(const Deployment *deployment)
{
	RouterSide	active;
	RouterSide	now;
	int			failed = 0;

	(void) take(deployment);
	if (!routers_paused(deployment->id))
	{
		let_go();
		return 0;
	}
	if (!router_active_side(deployment, &now))
	{
		let_go();
		return 1;				/* who decides will do it, or we later */
	}
	event_record_local(deployment->id, EVENT_ROUTERS, InvalidXLogRecPtr,
					   psprintf("resuming routers that were left paused, to %s",
								router_sides[now]), NULL);

	/*
	 * A move that was decided while we waited for a console may have turned
	 * them around before us.  One that is decided later comes after us.
	 */
	do
	{
		active = now;
		failed = routers_switch(deployment, active, true);
		failed += routers_resume(deployment);
	} while (failed == 0 && router_active_side(deployment, &now) &&
			 now != active);
	let_go();
	return failed;
}

/* ---- listeners ---- */

/*
 * What listeners get, as JSON; it is far below the limit of a payload.
 */
char *
router_payload(const Deployment *deployment, const char *event,
			   const char *active, int64 epoch)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "{\"deployment\":");
	escape_json(&buf, deployment->name);
	appendStringInfoString(&buf, ",\"event\":");
	escape_json(&buf, event);
	appendStringInfo(&buf, ",\"active\":\"%s\",\"epoch\":" INT64_FORMAT "}",
					 active, epoch);
	return buf.data;
}

void
routers_notify(const Deployment *deployment, const char *event,
			   const char *active, int64 epoch)
{
	Async_Notify("bluegreen", router_payload(deployment, event, active, epoch));
}
