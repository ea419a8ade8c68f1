/*-------------------------------------------------------------------------
 *
 * prepared.h
 *		The rules of a dual write's trigger, prepared in this session.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PREPARED_H
#define BG_PREPARED_H

#include "commands/trigger.h"
#include "executor/spi.h"
#include "nodes/execnodes.h"
#include "schema/shape.h"
#include "utils/plancache.h"

/*
 * An expression that is executed.  What functions keep in its state is of the
 * transaction, and is not used again after an error.
 */
typedef struct Execution
{
	MemoryContext context;		/* of all of it */
	ExprContext *econtext;
	ExprState  *state;
	bool		busy;			/* a call is in the midst of it */
	struct Execution *next;		/* of those that have failed */
} Execution;

/* A planned expression. */
typedef struct Code
{
	Expr	   *expr;			/* NULL: none */
	int16		length;			/* of its type */
	bool		by_value;
	LocalTransactionId transaction; /* that the execution is of */
	Execution  *execution;
} Code;

/* An expression with what it reads and gives. */
typedef struct Expression
{
	SPIPlanPtr	plan;			/* NULL: not prepared yet */
	int			nargs;
	AttrNumber *args;			/* 0: there is no such column any more */
	Oid			type;			/* that it gave */
	CachedExpression *cached;	/* from that to the target's; NULL: none */
	Code		cast;			/* the same */
} Expression;

/* One direction of a rule: what is computed for which column. */
typedef struct Direction
{
	bool		up;
	const Rule *rule;
	AttrNumber	source;			/* the other column of the pair, or 0 */
	AttrNumber	target;
	AttrNumber	mark;			/* says why the expression failed; 0: none */
	Expression	expression;
} Direction;

typedef struct Prepared
{
	Oid			trigger;		/* hash key */
	bool		valid;			/* read, and nothing has changed since */
	bool		changed;		/* something has, since it began to be read */
	bool		ready;			/* its columns are looked up */
	int			users;			/* calls that use it now */
	Oid			relid;
	Oid			table;			/* of the change; of a leaf, a parent */
	Oid			owner;			/* of that */
	char	   *argument;
	MemoryContext context;		/* of all below */
	RuleSet    *set;
	TupleDesc	desc;			/* of the table */
	int			ndirections;	/* first all downs, then all ups */
	Direction  *directions;
	Code		bounds;			/* of a partition; none: any row fits */
	TupleTableSlot *slot;		/* for bounds */
	uint64		serial;			/* of the statement that is_new is for */
	bool		is_new;			/* does it write through the new version? */
} Prepared;

/* What a call changes in the session until it ends. */
typedef struct PreparedCall
{
	RunAs		saved;
	int			role;			/* session_replication_role */
} PreparedCall;

extern Prepared *prepared_find(const TriggerData *data);
extern void prepared_enter(Prepared *prepared, PreparedCall *call);
extern void prepared_ready(Prepared *prepared, Relation relation);
extern void prepared_leave(Prepared *prepared, PreparedCall *call,
						   bool failed);
extern NullableDatum prepared_evaluate(Prepared *prepared,
									   Direction *direction,
									   const Datum *values,
									   const bool *nulls);
extern bool prepared_fits(Prepared *prepared, HeapTuple tuple);

#endif							/* BG_PREPARED_H */
