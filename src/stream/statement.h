/*-------------------------------------------------------------------------
 *
 * statement.h
 *		The set-based statements that write to one target table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_STATEMENT_H
#define BG_STATEMENT_H

#include "core/peer.h"
#include "stream/batch.h"

typedef enum StatementKind
{
	STATEMENT_INSERT,
	STATEMENT_INSERT_MANY,		/* by COPY's code: rows as one parameter */
	STATEMENT_INSERT_ABSENT,	/* ON CONFLICT (key) DO NOTHING */
	STATEMENT_UPSERT,
	STATEMENT_UPDATE,
	STATEMENT_DELETE,
	STATEMENT_UPDATE_ROWS,		/* without a plan: rows as one parameter */
	STATEMENT_DELETE_ROWS,
	STATEMENT_FIND,				/* SELECT by key, locks */
	STATEMENT_MOVE,
	STATEMENT_NOTE,				/* keep the target's row for a conflict */
	STATEMENT_CONFLICT,			/* record a conflict with that row */
	STATEMENT_CHECK,			/* in a window: WindowWriter.check */
	/* with a lookup: SELECT what would be written ... */
	STATEMENT_LOOK,
	STATEMENT_LOOK_OLD,			/* ... or deleted */
	/* without a key: rows are found by all their values */
	STATEMENT_TAKE,				/* delete */
	STATEMENT_REPLACE			/* delete, then insert with what else it had */
} StatementKind;

/* A prepared statement for one kind and one set of missing columns. */
typedef struct TargetStatement
{
	StatementKind kind;
	bool	   *missing;		/* by column; NULL = none */
	PeerStatement *statement;	/* NULL: there is nothing to say */
	struct TargetStatement *next;
} TargetStatement;

/* A column of an index by which rows are found faster. */
typedef struct Locator
{
	int			column;
	char	   *operator;		/* its equality, as key_operator */
} Locator;

/* A column of the target that a lookup gives. */
typedef struct LookupColumn
{
	char	   *name;			/* quoted */
	bool		always_identity;
	char	   *operator;		/* of a key column, as key_operator; or NULL */
	char	   *type;			/* of a key column */
} LookupColumn;

/* A unique index in which another row may be in the way (statement_window.c). */
typedef struct WindowWay
{
	int			ncolumns;
	int		   *columns;
	char	  **operators;		/* their equality */
	PeerStatement *find;		/* and lock; all take the row that comes */
	PeerStatement *weigh;		/* and seen, and its rank */
	PeerStatement *note;
	PeerStatement *remove;
	/* if such a row may make place; else NULL */
	PeerStatement *key;			/* note its key, and who has written it */
	char	   *is_written_now; /* was that this transaction? */
	char	   *owe;			/* note that it is owed */
} WindowWay;

/* What a window needs; see window.c. */
typedef struct WindowWriter
{
	char	   *policy;
	char	   *side;			/* that the changes come from */
	int			decider;		/* attribute of the source, or 0 */
	PeerStatement *check;
	PeerStatement *weigh;
	int			nways;
	WindowWay  *ways;
} WindowWriter;

/* A target table as one mapping writes it. */
typedef struct TargetWriter
{
	Transform  *transform;
	MemoryContext context;		/* of the statements, lives with the stream */
	char	   *name;			/* quoted, with schema */
	char	  **key_operator;	/* by key, e.g. OPERATOR(pg_catalog.=) */
	bool	   *always_identity;	/* by column: GENERATED ALWAYS AS IDENTITY */
	int			ntarget;		/* writable columns of the target table */
	char	  **target_columns;
	bool		has_incoming_fk;
	bool		takes_binary;	/* in COPY: all its columns' types do */
	bool		inserts_many;	/* STATEMENT_INSERT_MANY does as INSERT would */
	bool		takes_rows;		/* so do STATEMENT_UPDATE_ROWS and ..DELETE.. */
	Lookup	   *lookup;			/* the mapping's, or NULL */
	int			nlookup;		/* with one: columns that are written */
	LookupColumn *lookup_columns;
	int			nlocators;		/* without a key */
	Locator    *locators;
	WindowWriter *window;		/* in a window, unless rows merge; or NULL */
	TargetStatement *statements;
} TargetWriter;

extern TargetWriter *target_writer_create(Peer *peer, Transform *transform);
extern PeerStatement *target_statement(TargetWriter *writer,
									   StatementKind kind,
									   const bool *missing);

/*
 * The columns of a row, as indexes, that a STATEMENT_*_ROWS takes; returns how
 * many.  There is room for two times the transform's.
 */
extern int	target_statement_columns(const TargetWriter *writer,
									 StatementKind kind, const bool *missing,
									 int *columns);

/* for statement_window.c */
extern int	statement_unnest(StringInfo sql, const TargetWriter *writer,
							 const bool *missing, bool key_only);
extern void statement_value(StringInfo sql, const TargetWriter *writer, int i);
extern void statement_key_condition(StringInfo sql,
									const TargetWriter *writer);

/* for statement_lookup.c */
extern char *statement_key_operator(Peer *peer, const TargetWriter *writer,
									const char *column);
extern void lookup_load(Peer *peer, TargetWriter *writer);
extern int	lookup_build(StringInfo sql, const TargetWriter *writer,
						 StatementKind kind);
extern bool lookup_build_copy(StringInfo sql, const TargetWriter *writer,
							  const char *incoming, const char *nrows);

/* for statement_keyless.c */
extern void statement_append_columns(StringInfo sql,
									 const TargetWriter *writer);
extern void keyless_load_locators(Peer *peer, TargetWriter *writer);
extern int	keyless_build_take(StringInfo sql, const TargetWriter *writer);
extern int	keyless_build_replace(StringInfo sql, const TargetWriter *writer);

#endif							/* BG_STATEMENT_H */
