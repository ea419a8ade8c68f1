/*-------------------------------------------------------------------------
 *
 * router_console.c
 *		The admin console of one PgBouncer.
 *
 * Seen on 1.18: a PAUSE whose database somebody else resumes never returns; a
 * pause outlives who asked for it; to resume what is not paused is an error.
 * So each statement has an end by our own clock, after which the connection is
 * given up, and what state it is in is asked for, not remembered.
 *
 * A client that logs in while its database is paused and its route has changed
 * makes PgBouncer open a connection, which the pause kills.  It then waits
 * for server_login_retry (15 s) before it tries again.  So that is 0 meanwhile.
 * A RELOAD sets it back to what the file says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cutover/router.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define ANSWER_MS 5000			/* for what PgBouncer does at once */

/*
 * A name in a console command.
 */
char *
console_quote(const char *name)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '"');
	for (; *name; name++)
	{
		if (*name == '"')
			appendStringInfoChar(&buf, '"');
		appendStringInfoChar(&buf, *name);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

static void
note_failure(Router *router, const PeerError *error)
{
	router->error = error->detail[0] == '\0' ? pstrdup(error->message) :
		psprintf("%s: %s", error->message, error->detail);
	if (router->console != NULL && !peer_is_alive(router->console))
	{
		peer_close(router->console);
		router->console = NULL;
	}
}

static PeerResult *
ask(Router *router, const char *command)
{
	PeerError	error;
	PeerResult *result;

	if (router->console == NULL)
		return NULL;
	peer_set_deadline(router->console,
					  TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  ANSWER_MS));
	result = peer_try_query(router->console, command, 0, NULL, &error);
	if (result == NULL)
		note_failure(router, &error);
	return result;
}

/*
 * Have a command done.  False, with the reason in router->error, if it was not.
 */
bool
console_command(Router *router, const char *command)
{
	return ask(router, command) != NULL;
}

static const char *
value_of(const PeerResult *result, int row, const char *column)
{
	for (int i = 0; i < result->nfields; i++)
		if (strcmp(result->names[i], column) == 0)
			return result->values[row][i] ? result->values[row][i] : "";
	return "";
}

/* A row by the value of one of its columns; -1 if there is none. */
static int
find_row(const PeerResult *result, const char *column, const char *value)
{
	for (int i = 0; i < result->ntuples; i++)
		if (strcmp(value_of(result, i, column), value) == 0)
			return i;
	return -1;
}

/*
 * Ask a router how it is.
 */
void
console_look(Router *router)
{
	PeerResult *databases = ask(router, "SHOW DATABASES");
	PeerResult *config = databases ? ask(router, "SHOW CONFIG") : NULL;
	const char *mode;
	int			row;
	int			setting;

	if (config == NULL)
		return;
	row = find_row(databases, "name", router->database);
	if (row < 0)
	{
		router->error = psprintf("it has no database \"%s\"", router->database);
		return;
	}
	mode = value_of(databases, row, "pool_mode");
	setting = find_row(config, "key", "pool_mode");
	if (mode[0] == '\0' && setting >= 0)
		mode = value_of(config, setting, "value");
	router->holds_sessions = strcmp(mode, "session") == 0;
	router->now_paused = strcmp(value_of(databases, row, "paused"), "1") == 0;
	router->host = pstrdup(value_of(databases, row, "host"));
	router->port = pstrdup(value_of(databases, row, "port"));
	router->target = pstrdup(value_of(databases, row, "database"));
	setting = find_row(config, "key", "server_login_retry");
	if (router->login_retry == NULL && setting >= 0)
		router->login_retry = pstrdup(value_of(config, setting, "value"));
	setting = find_row(config, "key", "query_wait_timeout");
	if (setting >= 0)
		router->query_wait = atof(value_of(config, setting, "value"));
}

/*
 * Connect to a router and ask how it is.  Does not fail: router->error says
 * why there is no connection, or what is wrong.
 */
void
console_open(Router *router, const Deployment *deployment, int timeout)
{
	PeerError	error;

	router->error = NULL;
	router->console = peer_try_console(router->server, deployment->owner,
									   timeout, &error);
	if (router->console == NULL)
		note_failure(router, &error);
	else
		console_look(router);
}

void
consoles_close(List *routers)
{
	ListCell   *lc;

	foreach(lc, routers)
	{
		Router	   *router = lfirst(lc);

		if (router->console != NULL)
			peer_close(router->console);
		router->console = NULL;
	}
}
