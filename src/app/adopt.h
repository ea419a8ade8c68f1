/*-------------------------------------------------------------------------
 *
 * adopt.h
 *		Session tables of frameworks.  See adopt.c for the design.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_ADOPT_H
#define BG_ADOPT_H

#include "nodes/pg_list.h"

/* What an adopted table gets, and its table of tombstones. */
#define STORE_STAMP		"bluegreen_stamp"
#define STORE_UNTIL		"bluegreen_until"
#define STORE_TRIGGER	"bluegreen_session"
#define STORE_TRUNCATE	"bluegreen_session_truncate"
#define STORE_GONE		"_bluegreen_gone"	/* after the table's name */

/* The stamp of a tombstone that nothing is newer than. */
#define STAMP_FOR_GOOD	PG_INT64_MAX

/*
 * What a table of sessions is like.  Several columns are a text[] literal.
 */
typedef struct SessionStore
{
	const char *name;			/* of a preset */
	const char *key;			/* the natural one */
	const char *touch;			/* the later value counts, each by itself */
	const char *own;			/* not carried: each side has its own */
	const char *expiry;			/* column that tells when a session ends */
	const char *kind;			/* ... and how: see expiry_sql() */
	const char *lifetime;		/* interval, added to it */
	const char *rows;			/* table of rows that belong to a session: what
								 * follows on the table's name; NULL = none */
	const char *rows_key;		/* its key ... */
	const char *rows_session;	/* ... and the column of it that is ... */
	const char *session;		/* ... the session's key, of one column then */
} SessionStore;

/* Arguments of trigger session_rules(), as they stand in pg_trigger. */
typedef enum RuleArgument
{
	RULE_SIDE,					/* blue or green */
	RULE_KEY,					/* text[] */
	RULE_TOUCH,					/* text[] */
	RULE_OWN,					/* text[] */
	RULE_EXPIRY,
	RULE_KIND,
	RULE_LIFETIME,
	RULE_PARENT,				/* table of the sessions that the rows are of */
	RULE_PARENT_KEY,			/* its key */
	RULE_ARGUMENTS
} RuleArgument;

/* ... and of session_gone(). */
typedef enum GoneArgument
{
	GONE_TABLE,					/* in the same schema */
	GONE_KEY,					/* text[] */
	GONE_ROWS,					/* table, or empty */
	GONE_ROWS_KEY,				/* its column that the session's key is in */
	GONE_ARGUMENTS
} GoneArgument;

extern const SessionStore *session_store_preset(const char *name);
extern const char *expiry_sql(const char *kind);	/* NULL: no such kind */
extern List *store_names(const char *array);	/* of a text[] literal */

#endif							/* BG_ADOPT_H */
