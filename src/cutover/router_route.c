/*-------------------------------------------------------------------------
 *
 * router_route.c
 *		Routes: where a router leads to, as PgBouncer writes it
 *		("host=10.0.0.2 port=5432 dbname=app pool_size=20"), and the file that
 *		holds one.
 *
 * The console cannot change a route, and the main configuration file is not
 * ours.  So the one line is in a file of its own, which pgbouncer.ini has in
 * its [databases] by %include.  It is replaced as a whole: PgBouncer reads the
 * old one or the new one, whenever somebody crashes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cutover/router.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/fd.h"

const char *const router_sides[] = {"blue", "green"};

/* One "key = value" of a route; false at its end.  *at moves on. */
static bool
next_part(const char **at, char **key, char **value)
{
	const char *c = *at;
	StringInfoData buf;

	while (isspace((unsigned char) *c))
		c++;
	if (*c == '\0')
		return false;
	initStringInfo(&buf);
	while (*c && *c != '=' && !isspace((unsigned char) *c))
		appendStringInfoChar(&buf, *c++);
	*key = buf.data;
	while (isspace((unsigned char) *c))
		c++;
	initStringInfo(&buf);
	*value = NULL;
	if (*c == '=')
	{
		c++;
		while (isspace((unsigned char) *c))
			c++;
		if (*c == '\'')
		{
			/* a quote within is doubled */
			for (c++; *c && (*c != '\'' || *++c == '\''); c++)
				appendStringInfoChar(&buf, *c);
		}
		else
			while (*c && !isspace((unsigned char) *c))
				appendStringInfoChar(&buf, *c++);
		*value = buf.data;
	}
	*at = c;
	return true;
}

/*
 * Error unless a text can be a route.  side is for messages.
 */
void
route_check(const char *route, const char *side)
{
	const char *at = route;
	char	   *key;
	char	   *value;

	for (const char *c = route; *c; c++)
		if (iscntrl((unsigned char) *c))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("route of %s must be one line", side)));
	while (next_part(&at, &key, &value))
	{
		if (value == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"%s\" in the route of %s has no value", key,
							side),
					 errhint("A route is what stands behind the database's name in pgbouncer.ini, such as host=10.0.0.2 port=5432 dbname=app.")));
		if (pg_strcasecmp(key, "password") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("route of %s must not hold a password", side),
					 errhint("Let PgBouncer take passwords from its auth_file or auth_query.")));
	}
}

/*
 * Take a route apart.  What is missing is what PgBouncer takes then.
 */
void
route_parse(const char *route, const char *database, RouteParts *parts)
{
	const char *at = route;
	char	   *key;
	char	   *value;

	parts->host = "";
	parts->port = "5432";
	parts->dbname = pstrdup(database);
	while (next_part(&at, &key, &value))
	{
		if (value == NULL)
			continue;
		if (strcmp(key, "host") == 0)
			parts->host = value;
		else if (strcmp(key, "port") == 0)
			parts->port = value;
		else if (strcmp(key, "dbname") == 0)
			parts->dbname = value;
	}
}

/* What the file holds. */
static char *
file_content(const Router *router, RouterSide side)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "; written by pg_bluegreen: leads to %s\n[databases]\n",
					 router_sides[side]);
	appendStringInfo(&buf, "%s = %s\n", router->database,
					 router->routes[side]);
	return buf.data;
}

pg_noreturn static void
file_failed(const char *path)
{
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not write route file \"%s\": %m", path)));
}

/*
 * Write the file of a router, durably and at once.  PgBouncer must be able to
 * read it, so it keeps the mode of the one that is there.
 */
void
route_write(const Router *router, RouterSide side)
{
	char	   *content = file_content(router, side);
	char	   *path = psprintf("%s.bluegreen", router->route_file);
	struct stat old;
	int			fd;

	fd = OpenTransientFilePerm(path, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY,
							   0644);
	if (fd < 0)
		file_failed(path);
	if (stat(router->route_file, &old) == 0 &&
		fchmod(fd, old.st_mode & 07777) != 0)
		file_failed(path);
	errno = ENOSPC;				/* unless write() says something else */
	if (write(fd, content, strlen(content)) != (ssize_t) strlen(content) ||
		pg_fsync(fd) != 0)
		file_failed(path);
	if (CloseTransientFile(fd) != 0)
		file_failed(path);
	(void) durable_rename(path, router->route_file, ERROR);
}
