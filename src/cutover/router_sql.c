/*-------------------------------------------------------------------------
 *
 * router_sql.c
 *		Routers: define them, and move them by hand.
 *
 * The admin console is a foreign server of ours with a user mapping, so that
 * its password is where passwords are.  The file and the command of a route
 * are a superuser's: they are written and run by the server's operating system
 * user.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/stat.h>

#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/event.h"
#include "cutover/router.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_add_router);
PG_FUNCTION_INFO_V1(bluegreen_drop_router);
PG_FUNCTION_INFO_V1(bluegreen_routers_pause);
PG_FUNCTION_INFO_V1(bluegreen_routers_switch);
PG_FUNCTION_INFO_V1(bluegreen_routers_resume);

/* ---- define ---- */

static char *
text_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

static void
check_kind(const char *kind)
{
	if (strcmp(kind, "pgbouncer") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown kind of router \"%s\"", kind),
				 errhint("The kind that there is is \"pgbouncer\". For others there are bluegreen.router_command and NOTIFY bluegreen.")));
}

static void
check_server(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, false);
	ForeignDataWrapper *fdw = GetForeignDataWrapper(server->fdwid);

	if (strcmp(fdw->fdwname, "pg_bluegreen") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" does not belong to foreign-data wrapper \"%s\"",
						name, "pg_bluegreen"),
				 errhint("Create a server with FOREIGN DATA WRAPPER pg_bluegreen for the router's admin console, and a user mapping with its password.")));
}

/* How the route is changed: by one of the two. */
static void
check_way(const Router *router)
{
	struct stat st;

	if ((router->route_file == NULL) == (router->route_command == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a router needs either a route_file or a route_command")));
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to add a router"),
				 errdetail("Its file is written, and its command is run, by the server's operating system user.")));
	if (router->route_file == NULL)
		return;
	/* PgBouncer reads no other names in a file, quoted or not */
	if (strspn(router->database, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "abcdefghijklmnopqrstuvwxyz0123456789_.-") !=
		strlen(router->database))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("database \"%s\" cannot be named in a route_file",
						router->database),
				 errhint("Give it a name of ASCII letters, digits, \"_\", \".\" and \"-\" in PgBouncer, or use a route_command.")));
	if (!is_absolute_path(router->route_file))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("route_file \"%s\" is no absolute path",
						router->route_file)));
	if (stat(router->route_file, &st) == 0 && !S_ISREG(st.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("route_file \"%s\" is not a file",
						router->route_file)));
}

static int32
insert_router(const Deployment *deployment, const char *kind,
			  const Router *router)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		id;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_text(&args, kind);
	catalog_arg_name(&args, router->server);
	catalog_arg_name(&args, router->database);
	catalog_arg_text(&args, router->routes[SIDE_BLUE]);
	catalog_arg_text(&args, router->routes[SIDE_GREEN]);
	catalog_arg_text(&args, router->route_file);
	catalog_arg_text(&args, router->route_command);
	if (catalog_run("INSERT INTO bluegreen.router_route (deployment, kind, "
					"server, database, blue_route, green_route, route_file, "
					"route_command) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) "
					"ON CONFLICT (deployment, server, database) DO NOTHING "
					"RETURNING id", &args, SPI_OK_INSERT_RETURNING) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("database \"%s\" of router \"%s\" is there already",
						router->database, router->server)));
	id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return id;
}

/*
 * bluegreen.add_router(deployment name, kind text, server name, database name,
 * blue_route text, green_route text, route_file text, route_command text)
 * returns integer.  A route file that is not there yet is written.  Locks the
 * deployment's row.  Errors: no such deployment or server; not its owner, not
 * a superuser; an unknown kind; a route with a password; not exactly one of
 * file and command; it is there already.
 */
Datum
bluegreen_add_router(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"deployment", "kind", "server",
	"database", "blue_route", "green_route"};
	Router		router = {0};
	Deployment *deployment;
	RouterSide	own;
	struct stat st;
	int32		id;

	for (int i = 0; i < lengthof(names); i++)
		require_argument(fcinfo, i, names[i]);
	require_writable("bluegreen.add_router");
	check_kind(text_argument(fcinfo, 1));
	router.server = NameStr(*PG_GETARG_NAME(2));
	router.database = NameStr(*PG_GETARG_NAME(3));
	router.routes[SIDE_BLUE] = text_argument(fcinfo, 4);
	router.routes[SIDE_GREEN] = text_argument(fcinfo, 5);
	router.route_file = text_argument(fcinfo, 6);
	router.route_command = text_argument(fcinfo, 7);
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	check_server(router.server);
	route_check(router.routes[SIDE_BLUE], "blue");
	route_check(router.routes[SIDE_GREEN], "green");
	check_way(&router);
	own = router_own_side(deployment);
	id = insert_router(deployment, "pgbouncer", &router);
	if (router.route_file != NULL && stat(router.route_file, &st) != 0)
		route_write(&router, own);
	event_record_local(deployment->id, EVENT_DEFINED, InvalidXLogRecPtr,
					   psprintf("database \"%s\" of router \"%s\" added",
								router.database, router.server), NULL);
	PG_RETURN_INT32(id);
}

/*
 * bluegreen.drop_router(deployment name, server name, database name) returns
 * integer: how many there were.  The route stays as it is.  Locks the
 * deployment's row.  Errors: no such deployment; not its owner; one is paused;
 * there is none.
 */
Datum
bluegreen_drop_router(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "server");
	require_writable("bluegreen.drop_router");
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg(&args, NAMEOID, PG_GETARG_DATUM(1));
	catalog_arg(&args, NAMEOID, PG_ARGISNULL(2) ? (Datum) 0 :
				PG_GETARG_DATUM(2));
	if (PG_ARGISNULL(2))
		args.nulls[2] = 'n';
	if (catalog_run("SELECT FROM bluegreen.router_route "
					"WHERE deployment = $1 AND server = $2 "
					"AND ($3 IS NULL OR database = $3) "
					"AND paused_at IS NOT NULL", &args, SPI_OK_SELECT) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("router \"%s\" is paused",
						NameStr(*PG_GETARG_NAME(1))),
				 errhint("Use CALL bluegreen.routers_resume(%s);",
						 quote_literal_cstr(deployment->name))));
	n = catalog_run("DELETE FROM bluegreen.router_route "
					"WHERE deployment = $1 AND server = $2 "
					"AND ($3 IS NULL OR database = $3)", &args,
					SPI_OK_DELETE);
	catalog_end(&access);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("deployment \"%s\" has no such router \"%s\"",
						deployment->name, NameStr(*PG_GETARG_NAME(1)))));
	PG_RETURN_INT32((int32) n);
}

/* ---- move by hand ---- */

static Deployment *
begin(FunctionCallInfo fcinfo, const char *name)
{
	Deployment *deployment;

	procedure_begin(fcinfo, name);
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	return deployment;
}

static void
require_all(int failed)
{
	if (failed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("%d routers did not do it", failed),
				 errhint("Call it again.")));
}

/*
 * CALL bluegreen.routers_pause(deployment name, timeout interval): see
 * routers_pause().  The pause ends with the session at the latest.
 */
Datum
bluegreen_routers_pause(PG_FUNCTION_ARGS)
{
	TimestampTz deadline;
	Deployment *deployment;

	require_argument(fcinfo, 1, "timeout");
	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(GetCurrentTimestamp()),
													   PG_GETARG_DATUM(1)));
	deployment = begin(fcinfo, "bluegreen.routers_pause");
	routers_pause(deployment, deadline);
	procedure_end();
	PG_RETURN_VOID();
}

/*
 * CALL bluegreen.routers_switch(deployment name, side text)
 */
Datum
bluegreen_routers_switch(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	char	   *word;
	int			side;

	require_argument(fcinfo, 1, "side");
	word = text_argument(fcinfo, 1);
	side = enum_lookup(router_sides, SIDE_GREEN + 1, word);
	if (side < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"", "side",
						word),
				 errhint("Valid values are \"%s\" and \"%s\".", "blue",
						 "green")));
	deployment = begin(fcinfo, "bluegreen.routers_switch");
	require_all(routers_switch(deployment, side, false));
	procedure_end();
	PG_RETURN_VOID();
}

/*
 * CALL bluegreen.routers_resume(deployment name)
 */
Datum
bluegreen_routers_resume(PG_FUNCTION_ARGS)
{
	Deployment *deployment = begin(fcinfo, "bluegreen.routers_resume");

	require_all(routers_resume(deployment));
	procedure_end();
	PG_RETURN_VOID();
}
