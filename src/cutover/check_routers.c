/*-------------------------------------------------------------------------
 *
 * check_routers.c
 *		Preflight: do the routers answer, lead to the active side, and let
 *		clients wait; does the other side know them?
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/definition.h"
#include "cutover/preflight.h"
#include "cutover/router.h"
#include "utils/builtins.h"

/* Seconds for which a switchover may hold clients, unless it is told otherwise. */
#define MAY_HOLD	60

/*
 * What is wrong with a router, or worth knowing: the first of these that finds
 * something says it.
 */
typedef bool (*RouterCheck) (const Deployment *deployment,
							 const Router *router, PreflightRow *row);

static bool
fails(const Deployment *deployment, const Router *router, PreflightRow *row)
{
	if (router->error == NULL)
		return false;
	row->severity = PREFLIGHT_ERROR;
	row->message = psprintf("router \"%s\": %s", router->server,
							router->error);
	return true;
}

static bool
leads_elsewhere(const Deployment *deployment, const Router *router,
				PreflightRow *row)
{
	RouteParts	parts;
	RouterSide	active;

	if (!router_active_side(deployment, &active))
		return false;
	route_parse(router->routes[active], router->database, &parts);
	if (strcmp(parts.port, router->port) == 0 &&
		strcmp(parts.dbname, router->target) == 0)
		return false;
	row->severity = PREFLIGHT_WARNING;
	row->message = psprintf("router \"%s\" leads to port %s and database \"%s\", not to its %s_route",
							router->server, router->port,
							router->target, router_sides[active]);
	return true;
}

static bool
is_impatient(const Deployment *deployment, const Router *router,
			 PreflightRow *row)
{
	if (router->query_wait <= 0 || router->query_wait >= MAY_HOLD)
		return false;
	row->severity = PREFLIGHT_WARNING;
	row->message = psprintf("router \"%s\" disconnects clients that have waited for %g s, and a switchover may hold them for as long as its timeout",
							router->server, router->query_wait);
	row->hint = psprintf("-- on blue\n-- in pgbouncer.ini, set query_wait_timeout = %d or more, then RELOAD; or use a shorter timeout",
						 MAY_HOLD);
	return true;
}

static bool
keeps_sessions(const Deployment *deployment, const Router *router,
			   PreflightRow *row)
{
	if (!router->holds_sessions)
		return false;
	row->severity = PREFLIGHT_NOTICE;
	row->message = psprintf("router \"%s\" keeps a server connection for each session: clients will be disconnected",
							router->server);
	row->hint = "-- on blue\n-- use pool_mode = transaction if the application can";
	return true;
}

static const RouterCheck router_checks[] = {
	fails, leads_elsewhere, is_impatient, keeps_sessions
};

static void
describe(PreflightRun *run, const Router *router)
{
	PreflightRow row = {0};

	row.object = psprintf("%s/%s", router->server, router->database);
	for (int i = 0; i < lengthof(router_checks); i++)
	{
		if (!router_checks[i] (run->deployment, router, &row))
			continue;
		preflight_row(run, &row);
		break;
	}
}

/* ---- the other side ---- */

static void
add_unknown(PreflightRun *run, const Router *router, const char *there)
{
	PreflightRow row = {.severity = PREFLIGHT_WARNING};

	row.object = psprintf("%s/%s of %s", router->server, router->database,
						  there);
	row.message = psprintf("%s does not know the router of database \"%s\": it could not bring clients back",
						   there, router->database);
	row.hint = psprintf("-- on green\n"
						"CREATE SERVER %s FOREIGN DATA WRAPPER %s OPTIONS (host '...', port '...');\n"
						"CREATE USER MAPPING FOR CURRENT_USER SERVER %s OPTIONS (user '...', password '...');\n"
						"SELECT bluegreen.add_router(%s, 'pgbouncer', %s, %s,\n"
						"    %s, %s, route_file => '...');",
						quote_identifier(router->server), BG_EXTENSION,
						quote_identifier(router->server),
						quote_literal_cstr(run->deployment->name),
						quote_literal_cstr(router->server),
						quote_literal_cstr(router->database),
						quote_literal_cstr(router->routes[SIDE_BLUE]),
						quote_literal_cstr(router->routes[SIDE_GREEN]));
	preflight_row(run, &row);
}

static int
count_database(List *routers, const char *database)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, routers)
		if (strcmp(((Router *) lfirst(lc))->database, database) == 0)
			n++;
	return n;
}

static bool
may_look(PreflightRun *run, const char *there)
{
	PreflightRow row = {.severity = PREFLIGHT_NOTICE};
	PeerResult *result =
		peer_query(run->peer, "SELECT CURRENT_USER, "
				   "pg_catalog.has_table_privilege('bluegreen.router', 'SELECT')",
				   0, NULL);

	if (result->values[0][1][0] == 't')
		return true;
	row.object = unconstify(char *, there);
	row.message = psprintf("role \"%s\" may not see whether %s knows the routers",
						   result->values[0][0], there);
	row.hint = psprintf("-- on green\nGRANT pg_monitor TO %s;",
						quote_identifier(result->values[0][0]));
	preflight_row(run, &row);
	return false;
}

/*
 * The other side, once it is the active one, needs routers of its own.  A name of
 * a server means nothing there, so they are counted by database.
 */
static void
check_there(PreflightRun *run, List *routers)
{
	const char *there = run->deployment->direction == 'f' ? "green" : "blue";
	const char *args[] = {run->deployment->name};
	List	   *left = list_copy(routers);
	PeerResult *result;
	ListCell   *lc;

	if (routers == NIL || run->peer == NULL ||
		run->deployment->opposite == NULL || !may_look(run, there))
		return;
	result = peer_query(run->peer, "SELECT database, pg_catalog.count(*) "
						"FROM bluegreen.router "
						"WHERE deployment = $1::pg_catalog.name GROUP BY 1",
						1, args);
	foreach(lc, routers)
	{
		Router	   *router = lfirst(lc);
		int			known = 0;

		for (int i = 0; i < result->ntuples; i++)
			if (strcmp(result->values[i][0], router->database) == 0)
				known = atoi(result->values[i][1]);
		if (count_database(left, router->database) > known)
			add_unknown(run, router, there);
		left = list_delete_ptr(left, router);
	}
}

/*
 * The check "router".
 */
void
check_routers(PreflightRun *run)
{
	List	   *routers = routers_look(run->deployment);
	ListCell   *lc;

	foreach(lc, routers)
		describe(run, lfirst(lc));
	check_there(run, routers);
}
