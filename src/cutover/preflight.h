/*-------------------------------------------------------------------------
 *
 * preflight.h
 *		Would a start or a switchover work, and lose nothing?
 *
 * What is looked at is one table (preflight_list.c), in the order in which it
 * is looked at; each entry is a query or a function.  preflight.c runs them.
 *
 * A query runs on one side and returns rows (severity, object, message, hint
 * [, next]).  Before it stand these tables:
 *
 *		given		f: facts about the deployment, x: what .facts gave (jsonb)
 *		mapping		one row for each mapping, see preflight_prefix(); relid
 *					and name are those of the side on which it runs
 *
 * so that it begins with SELECT or with ", name AS (...) SELECT".  .facts is a
 * query on blue, with the same tables, whose one value a query on green is to
 * compare with.  A row with nothing but "next" is none yet: next is a query on
 * green that gives the rows, made with format('%I, %L').  Another row with
 * "next" is one if that query, of tables, counts more than 0.
 *
 * On blue a query is run by the superuser, and on green by the peer's role in
 * an ordinary session.  So neither may run code that somebody else wrote:
 * catalogs only.  Rows of tables are counted in a session that applies, whose
 * guard sees to it that this is done as their owner.
 *
 * A hint is what one can run as it is: each line "-- on blue" or "-- on green"
 * says where what follows is run, all other words are comments.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PREFLIGHT_H
#define BG_PREFLIGHT_H

#include "core/catalog.h"
#include "core/peer.h"

/* When does it matter? */
#define PREFLIGHT_START			0x01
#define PREFLIGHT_SWITCHOVER	0x02
#define PREFLIGHT_WINDOW		0x04
#define PREFLIGHT_BOTH			(PREFLIGHT_START | PREFLIGHT_SWITCHOVER)

typedef enum PreflightSeverity
{
	PREFLIGHT_OK,				/* looked at, nothing found */
	PREFLIGHT_NOTICE,			/* cannot be seen; or an error or a warning
								 * that was accepted */
	PREFLIGHT_WARNING,			/* may hurt */
	PREFLIGHT_ERROR				/* fails, or something is lost */
} PreflightSeverity;

extern const char *const preflight_severities[];

typedef struct PreflightRun PreflightRun;

typedef void (*PreflightFunction) (PreflightRun *run);
typedef void (*PreflightMappingFunction) (PreflightRun *run,
										  const MappingRow *mapping);

typedef enum PreflightScope
{
	PREFLIGHT_ALWAYS,
	PREFLIGHT_FIRST_START,		/* until the deployment was started */
	PREFLIGHT_STARTED			/* from then on */
} PreflightScope;

/* One thing to look at. */
typedef struct PreflightCheck
{
	const char *name;
	const char *side;			/* "blue" or "green" */
	int			phases;
	const char *what;			/* is said if nothing was found */
	const char *sql;			/* either this, */
	const char *facts;
	PreflightFunction function; /* or this, */
	PreflightMappingFunction mapping_function;	/* or this */
	PreflightScope scope;
	bool		required;		/* raises errors of its own; nobody may do
								 * without it */
} PreflightCheck;

extern const PreflightCheck preflight_checks[];
extern const int preflight_check_count;

/* One row of the answer. */
typedef struct PreflightRow
{
	int			check;			/* its place in preflight_checks */
	PreflightSeverity severity;
	char	   *object;
	char	   *message;
	char	   *detail;			/* or NULL */
	char	   *hint;			/* or NULL */
} PreflightRow;

/* One call. */
struct PreflightRun
{
	Deployment *deployment;
	List	   *mappings;
	char		slot_name[NAMEDATALEN];
	bool		allow_nonempty;
	bool		raise;			/* for start(): raise what functions raise */
	int			phases;
	Peer	   *peer;			/* an ordinary session */
	Peer	   *apply;			/* one that applies; either may be NULL if it
								 * could not be had */
	int			check;			/* that is at work */
	bool		found;			/* it has found something */
	char	   *facts;			/* given.f */
	List	   *accepted;		/* of "check object" that are accepted */
	List	   *rows;			/* of PreflightRow */
	MemoryContext context;		/* of rows */
};

/* preflight.c */
extern void preflight_row(PreflightRun *run, const PreflightRow *row);
extern Peer *preflight_start(Deployment *deployment, List *mappings,
							 const char *slot_name, bool allow_nonempty);
extern void preflight_refuse(Deployment *deployment, int phases);

/* preflight_query.c */
extern void preflight_gather(PreflightRun *run);
extern void preflight_query(PreflightRun *run, const PreflightCheck *check);

/* What queries are made of: strings, at the beginning of a hint */
#define ON_BLUE		"'-- on blue\n' || "
#define ON_GREEN	"'-- on green\n' || "

/*
 * As a hint where no statement mends it: that it is known.  $object is SQL.
 */
#define ACCEPT(check, object) \
	ON_BLUE "format('SELECT bluegreen.accept(%L, %L, %L);', f ->> 'deployment', " \
	"'" check "', " object ")"

/* check_*.c: the queries */
extern const char sql_library[];
extern const char sql_track_commit_timestamp[];
extern const char sql_idle_slot_timeout[];
extern const char sql_standby_slots[];
extern const char sql_origins[];
extern const char sql_back_wal_level[];
extern const char sql_back_library[];
extern const char sql_back_plugin[];
extern const char sql_back_slots[];
extern const char sql_back_origins[];
extern const char sql_collation_version_blue[];
extern const char sql_collation_version_green[];
extern const char facts_locale[];
extern const char sql_locale[];
extern const char facts_extensions[];
extern const char sql_extensions[];
extern const char sql_prepared_blue[];
extern const char sql_prepared_green[];
extern const char sql_transactions_blue[];
extern const char sql_transactions_green[];

extern const char sql_apply_privileges[];
extern const char sql_visibility[];
extern const char facts_grants[];
extern const char sql_roles[];
extern const char sql_grants[];

extern const char sql_keyless[];
extern const char sql_unlogged[];
extern const char sql_triggers[];
extern const char sql_silent_triggers[];
extern const char sql_rules[];
extern const char sql_partition_owners[];
extern const char sql_indexes[];
extern const char sql_deferrable[];
extern const char facts_exclusions[];
extern const char sql_exclusions[];
extern const char sql_not_valid[];
extern const char sql_foreign_keys[];

extern const char sql_large_objects[];
extern const char sql_matviews[];
extern const char facts_sequences[];
extern const char sql_sequences[];
extern const char facts_unmapped[];
extern const char sql_unmapped[];
extern const char facts_new_columns[];
extern const char sql_new_columns[];
extern const char sql_subscriptions_blue[];
extern const char sql_subscriptions_green[];
extern const char sql_stream[];

/* check_data.c */
extern void check_sequences(PreflightRun *run);

/* check_window.c */
extern void check_window_mappings(PreflightRun *run);
extern void check_window_policies(PreflightRun *run);
extern void check_window_streams(PreflightRun *run);
extern void check_window_clocks(PreflightRun *run);

/* sequence_window.c */
extern void check_window_sequences(PreflightRun *run);

/* check_routers.c */
extern void check_routers(PreflightRun *run);

/* check_wal.c */
extern void check_wal_space(PreflightRun *run);
extern void check_wal_keep(PreflightRun *run);
extern void check_encoding(PreflightRun *run);

/* check_back.c */
extern void check_way_back(PreflightRun *run);

#endif							/* BG_PREFLIGHT_H */
