/*-------------------------------------------------------------------------
 *
 * router_command.c
 *		Shell commands that bring clients to the other side: of one router
 *		(add_router's route_command), and of all others
 *		(bluegreen.router_command).
 *
 * Both are a superuser's, in the manner of archive_command: a status other
 * than 0 means that it was not done, and will be done again.  What stands for
 * the placeholders is not his: a deployment's name is its owner's.  The shell
 * would take it for what it likes, however it is quoted.  So a name with other
 * characters than those of names, addresses and files is refused.
 *
 * system() would wait for ever.  The command gets a process group of its own,
 * which is killed when its time is over or when we are told to end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/settings.h"
#include "cutover/router.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "storage/latch.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define POLL_MS 20				/* for the end of a command */

/* What stands for the placeholders. */
typedef struct Placeholders
{
	const char *deployment;		/* %d */
	const char *side;			/* %s */
	RouteParts	parts;			/* %h %p %b */
} Placeholders;

/* ---- the text ---- */

static void
append_value(StringInfo buf, const char *value, char placeholder)
{
	static const char allowed[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
		"_-.,:/@+=";

	if (strspn(value, allowed) != strlen(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" cannot stand for %%%c in a shell command",
						value, placeholder),
				 errdetail("It has characters that a shell may understand otherwise.")));
	appendStringInfoString(buf, value);
}

static char *
build(const char *text, const Placeholders *p)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (const char *c = text; *c; c++)
	{
		const char *value = NULL;

		if (*c != '%' || c[1] == '\0')
		{
			appendStringInfoChar(&buf, *c);
			continue;
		}
		switch (*++c)
		{
			case 'd':
				value = p->deployment;
				break;
			case 's':
				value = p->side;
				break;
			case 'h':
				value = p->parts.host;
				break;
			case 'p':
				value = p->parts.port;
				break;
			case 'b':
				value = p->parts.dbname;
				break;
			case '%':
				appendStringInfoChar(&buf, '%');
				break;
			default:
				appendStringInfo(&buf, "%%%c", *c);
		}
		if (value != NULL)
			append_value(&buf, value, *c);
	}
	return buf.data;
}

/* ---- the process ---- */

/* In the child: nothing of the server's but its output and its environment. */
pg_noreturn static void
become_command(const char *command)
{
	sigset_t	none;

	(void) setsid();
	for (int i = 1; i < NSIG; i++)
		(void) signal(i, SIG_DFL);
	sigemptyset(&none);
	(void) sigprocmask(SIG_SETMASK, &none, NULL);
	for (int fd = 3; fd < 1024; fd++)
		(void) close(fd);
	(void) execl("/bin/sh", "sh", "-c", command, (char *) NULL);
	_exit(127);
}

static void
end_command(pid_t pid)
{
	int			status;

	(void) kill(-pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
}

/*
 * Wait for its end; true in time, with its status.
 */
static bool
wait_for_command(pid_t pid, int *status)
{
	static uint32 event = 0;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   bg_router_command_timeout);

	if (event == 0)
		event = WaitEventExtensionNew("BluegreenRouterCommand");
	for (;;)
	{
		pid_t		ended = waitpid(pid, status, WNOHANG);

		if (ended == pid || (ended < 0 && errno != EINTR))
			return true;
		if (GetCurrentTimestamp() >= deadline)
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, POLL_MS, event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Run a command.  Errors: it takes too long, or its status is not 0.
 */
static void
run(const char *command, const char *what)
{
	int			status = 0;
	bool		in_time = false;
	pid_t		pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not run %s: %m", what)));
	if (pid == 0)
		become_command(command);
	PG_TRY();
	{
		in_time = wait_for_command(pid, &status);
	}
	PG_CATCH();
	{
		end_command(pid);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (!in_time)
	{
		end_command(pid);
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("%s did not end within %d ms", what,
						bg_router_command_timeout),
				 errhint("See bluegreen.router_command_timeout.")));
	}
	if (status != 0)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("%s failed", what),
				 errdetail_internal("%s", wait_result_to_str(status))));
}

/* ---- which ---- */

/*
 * Run the command that changes the route of a router.  Errors: as run().
 */
void
router_route_command(const Router *router, const Deployment *deployment,
					 RouterSide to)
{
	Placeholders p = {.deployment = deployment->name,.side = router_sides[to]};

	route_parse(router->routes[to], router->database, &p.parts);
	run(build(router->route_command, &p), "the router's route_command");
}

/* Where the peer is, by the options of its server. */
static void
peer_parts(const Deployment *deployment, RouteParts *parts)
{
	ForeignServer *server = GetForeignServerByName(deployment->server, false);
	ListCell   *lc;

	parts->host = "";
	parts->port = "5432";
	parts->dbname = "";
	foreach(lc, server->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, "host") == 0 ||
			(strcmp(def->defname, "hostaddr") == 0 && parts->host[0] == '\0'))
			parts->host = defGetString(def);
		else if (strcmp(def->defname, "port") == 0)
			parts->port = defGetString(def);
		else if (strcmp(def->defname, "dbname") == 0)
			parts->dbname = defGetString(def);
	}
}

/* Where we are, as far as we know. */
static void
own_parts(RouteParts *parts)
{
	char		host[256] = "";

	(void) gethostname(host, sizeof(host) - 1);
	parts->host = pstrdup(host);
	parts->port = psprintf("%d", PostPortNumber);
	parts->dbname = get_database_name(MyDatabaseId);
}

/*
 * Run bluegreen.router_command, if there is one.  False, with an event and a
 * warning, if that has failed; other errors than its own are raised.
 */
bool
router_command(const Deployment *deployment, RouterSide to)
{
	MemoryContext context = CurrentMemoryContext;
	Placeholders p = {.deployment = deployment->name,.side = router_sides[to]};
	volatile bool done = true;

	if (bg_router_command == NULL || bg_router_command[0] == '\0')
		return true;
	if (to == router_own_side(deployment))
		own_parts(&p.parts);
	else
		peer_parts(deployment, &p.parts);
	PG_TRY();
	{
		run(build(bg_router_command, &p), "bluegreen.router_command");
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_EXTERNAL_ROUTINE_EXCEPTION &&
			error->sqlerrcode != ERRCODE_INVALID_PARAMETER_VALUE)
			PG_RE_THROW();
		FlushErrorState();
		event_record_local(deployment->id, EVENT_ROUTERS, InvalidXLogRecPtr,
						   error->message, error->detail);
		ereport(WARNING,
				(errmsg("%s", error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0));
		done = false;
	}
	PG_END_TRY();
	return done;
}
