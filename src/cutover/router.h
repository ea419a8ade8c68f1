/*-------------------------------------------------------------------------
 *
 * router.h
 *		What brings clients to the active side; see router.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_ROUTER_H
#define BG_ROUTER_H

#include "core/catalog.h"
#include "core/peer.h"
#include "datatype/timestamp.h"

typedef enum RouterSide
{
	SIDE_BLUE,
	SIDE_GREEN
} RouterSide;

extern const char *const router_sides[];

/* A row of bluegreen.router: a database of a PgBouncer. */
typedef struct Router
{
	int32		id;
	char	   *server;			/* foreign server: its admin console */
	char	   *database;		/* as PgBouncer calls it */
	char	   *routes[2];		/* by RouterSide: what stands behind "name =" */
	char	   *route_file;		/* either is NULL */
	char	   *route_command;
	bool		is_paused;		/* somebody is at it, or has left it so */
	char	   *login_retry;	/* its server_login_retry, while it is paused */

	/* while we are at it */
	Peer	   *console;		/* NULL = could not be reached */
	bool		holds_sessions; /* pool_mode session: cannot be paused */
	bool		now_paused;		/* by its own account */
	char	   *host;			/* where it leads to */
	char	   *port;
	char	   *target;			/* database there */
	double		query_wait;		/* s after which a client that waits is
								 * disconnected; 0 = never */
	char	   *error;			/* what went wrong, or NULL */
} Router;

/* A place, taken apart; parts that are not given are "" */
typedef struct RouteParts
{
	char	   *host;
	char	   *port;
	char	   *dbname;
} RouteParts;

/* router_route.c: the route, as text */
extern void route_check(const char *route, const char *side);
extern void route_parse(const char *route, const char *database,
						RouteParts *parts);
extern void route_write(const Router *router, RouterSide side);

/* router_command.c: commands of the administrator's */
extern void router_route_command(const Router *router,
								 const Deployment *deployment, RouterSide to);
extern bool router_command(const Deployment *deployment, RouterSide to);

/* router_console.c: one PgBouncer */
extern void console_open(Router *router, const Deployment *deployment,
						 int timeout);
extern void console_look(Router *router);
extern bool console_command(Router *router, const char *command);
extern char *console_quote(const char *name);
extern void consoles_close(List *routers);

/*
 * router.c
 *
 * All of these commit: they want SPI that may, as a procedure has it, or a
 * worker's transaction without SPI.
 * They may be called again after a crash, also by another process.  One process
 * at a time works on a deployment's routers; the others wait for it.
 *
 * routers_pause(): no new transaction gets through until routers_resume(); the
 * running ones have ended.  Not for session pools, whose sessions the fence
 * holds.  Error after the deadline, or if a router cannot be reached: all go on
 * then as before.  A watchdog sees to it that they do not stay paused when this
 * process ends.
 *
 * routers_switch(): from now on they lead to a side; session pools are
 * disconnected.  Runs bluegreen.router_command.  With resume each is resumed as
 * soon as it leads there.
 *
 * routers_resume(): let clients through.
 *
 * Both of these return how many could not be reached or did not do it, with a
 * warning and an event for each; they are to be called again then.
 *
 * routers_recover(): resume what a process that is gone has left paused, to the
 * side that is active; nothing while that is in doubt.  Returns how many are
 * still paused, at least.
 *
 * routers_look(): ask all of them how they are; changes nothing.
 */
extern void routers_pause(const Deployment *deployment, TimestampTz deadline);
extern int	routers_switch(const Deployment *deployment, RouterSide to,
						   bool resume);
extern int	routers_resume(const Deployment *deployment);
extern int	routers_recover(const Deployment *deployment);
extern List *routers_load(int32 deployment);
extern List *routers_look(const Deployment *deployment);

/*
 * NOTIFY bluegreen with a JSON object; goes out with the transaction's commit.
 * event is a word: "switchover", "rollback", ...; active one of router_sides, or
 * "both" in a window.
 */
extern void routers_notify(const Deployment *deployment, const char *event,
						   const char *active, int64 epoch);
extern char *router_payload(const Deployment *deployment, const char *event,
							const char *active, int64 epoch);

/*
 * router_side.c: which side is this, which one is active (false while that is
 * in doubt), since which epoch?
 */
extern RouterSide router_own_side(const Deployment *deployment);
extern bool router_active_side(const Deployment *deployment, RouterSide *side);
extern int64 router_epoch(const Deployment *deployment);

#endif							/* BG_ROUTER_H */
