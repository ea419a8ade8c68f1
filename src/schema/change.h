/*-------------------------------------------------------------------------
 *
 * change.h
 *		Changes: expand and contract inside one database (doc/expand.md).
 *
 * The document of a change is read to operations (document.c).  With the
 * catalogs they become a shape: what each table is for the old and the new
 * version (shape.c), and from it each phase's steps (plan.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_CHANGE_H
#define BG_CHANGE_H

#include "core/definition.h"
#include "core/event.h"
#include "datatype/timestamp.h"
#include "postmaster/bgworker.h"
#include "utils/jsonb.h"

typedef enum ChangeState
{
	CHANGE_DEFINED,				/* -> EXPANDING */
	CHANGE_EXPANDING,			/* -> BACKFILLING, VALIDATING, UNDOING */
	CHANGE_BACKFILLING,			/* -> VALIDATING, UNDOING */
	CHANGE_VALIDATING,			/* -> EXPANDED, UNDOING */
	CHANGE_EXPANDED,			/* -> RETIRING, CONTRACTING, UNDOING */
	CHANGE_RETIRING,			/* -> REVERTIBLE, REVERTING */
	CHANGE_REVERTIBLE,			/* -> CONTRACTING, REVERTING */
	CHANGE_REVERTING,			/* -> UNDOING, RETIRING */
	CHANGE_CONTRACTING,			/* -> CONTRACTED; while nothing is dropped
								 * also UNDOING, REVERTING */
	CHANGE_CONTRACTED,
	CHANGE_UNDOING,				/* -> UNDONE */
	CHANGE_UNDONE				/* -> EXPANDING */
} ChangeState;

extern const char *const change_state_names[];

typedef struct Change
{
	int32		id;
	char	   *name;
	Oid			owner;
	char	   *schema;
	char	   *path;			/* search_path for what users wrote */
	char	   *version_schema;
	Jsonb	   *operations;
	ChangeState state;
	bool		paused;			/* its backfill */
	TimestampTz revert_until;	/* CHANGE_REVERTIBLE */
	char	   *sqlstate;		/* of the last error, or NULL */
	char	   *message;
	char	   *detail;
	char	   *hint;
} Change;

typedef enum OperationKind
{
	OP_CREATE_TABLE,
	OP_DROP_TABLE,
	OP_RENAME_TABLE,
	OP_ADD_COLUMN,
	OP_DROP_COLUMN,
	OP_RENAME_COLUMN,
	OP_ALTER_COLUMN,
	OP_CREATE_INDEX,
	OP_DROP_INDEX,
	OP_CREATE_CONSTRAINT,
	OP_DROP_CONSTRAINT,
	OP_DROP_MULTICOLUMN_CONSTRAINT,
	OP_RENAME_CONSTRAINT,
	OP_SET_REPLICA_IDENTITY,
	OP_DERIVE_TABLE,
	OP_SQL
} OperationKind;

extern const char *const operation_names[];

typedef struct Operation
{
	int			number;			/* from 1 */
	OperationKind kind;
	JsonbContainer *fields;
} Operation;

/* ---- document.c ---- */

extern List *document_read(Jsonb *document);
extern void operation_refuse(const Operation *operation, const char *format,
							 const char *argument);

/* ---- change.c ---- */

extern Change *change_load(int32 id);	/* NULL if none */
extern Change *change_by_name(const char *name);	/* owner checked */
extern bool change_set_state(int32 id, ChangeState from, ChangeState to);
extern void change_require_owner(const Change *change);
extern void change_lock_row(Change *change);
extern void change_set_window(int32 id, int seconds);
extern void change_keep_window(int32 id);
extern bool change_try_lock(int32 id);
extern int	change_count_start(int32 id);
extern void change_forget_starts(int32 id);
extern void change_unlock(int32 id);
extern void change_interrupt(int32 id);
extern bool change_set_error(int32 id, ChangeState state,
							 const ErrorData *error);
extern void change_event(const Change *change, EventKind kind,
						 const char *message, const char *detail);

/* ---- step.c: what a phase does, stored ---- */

typedef enum StepKind
{
	STEP_SQL,					/* one transaction */
	STEP_USER,					/* the same, of the document's own statements */
	STEP_INDEX,					/* one statement outside of a transaction */
	STEP_DROP_INDEX,			/* the same */
	STEP_CHECK,					/* queries that must not find anything */
	STEP_VALIDATE,				/* STEP_SQL that runs the table owner's code */
	STEP_PARTITIONS,			/* an index of partitions: partition_index.c */
	STEP_ATTACH,				/* STEP_SQL that attaches one */
	STEP_REHEARSAL,				/* nothing is done: rehearse.c */
	STEP_VERSION,				/* makes the version's schema, as it is then */
	STEP_DROP_VERSION			/* drops a schema of which object is the OID */
} StepKind;

extern const char *const step_kind_names[];

typedef struct Step
{
	int			number;
	StepKind	kind;
	char	   *title;
	List	   *locks;			/* LOCK statements, taken first */
	Oid			relid;			/* the table that it is about, or 0 */
	char	   *relation;		/* the same, qualified, or NULL */
	char	   *object;			/* STEP_INDEX: the index, qualified; else see
								 * StepKind */
	List	   *statements;		/* of char * */
	List	   *undo;			/* what takes it back, if no catalog tells */
	List	   *guards;			/* queries: guard.c */
	ChangeState phase;
} Step;

extern Step *step_make(StepKind kind, const char *title,
					   const char *relation);
extern void steps_store(int32 change, ChangeState phase, List *steps);
extern void steps_insert(int32 change, const Step *before, List *steps);
extern void steps_delete(int32 change);
extern void steps_renew(int32 change);
extern void steps_forget(int32 change, ChangeState phase);
extern Step *step_next(int32 change, ChangeState phase);
extern bool steps_exist(int32 change, ChangeState phase);
extern bool steps_untouched(int32 change, ChangeState phase);
extern void step_finish(int32 change, const Step *step);
extern void step_store_statements(int32 change, const Step *step);
extern void step_started(int32 change, const Step *step);
extern void step_lock(int32 change, const Step *step);
extern void step_tried(int32 change, const Step *step, const char *waits_for);
extern Datum texts_datum(List *strings);
extern List *steps_undo(int32 change, ChangeState phase);

/* ---- worker.c and call.c ---- */

/* What a worker is told, in bgw_extra. */
typedef struct ChangeWorkerExtra
{
	Oid			database;
	Oid			owner;
	int32		change;
} ChangeWorkerExtra;

extern PGDLLEXPORT void bluegreen_change_main(Datum arg);

/* ---- backfill.c ---- */

typedef enum BackfillResult
{
	BACKFILL_MORE,				/* call again */
	BACKFILL_WAIT,				/* call again after a while */
	BACKFILL_DONE
} BackfillResult;

extern void backfill_plan(int32 change, Oid relid, List *columns);
extern void backfill_plan_derived(int32 change, Oid relid, const char *trigger,
								  const char *statement);
extern bool backfill_exists(int32 change);
extern BackfillResult backfill_run(const Change *change, int *sleep_ms);
extern void backfill_blocked(int32 change, const char *reason);

/* ---- throttle.c ---- */

extern char *throttle_reason(const Change *change, Oid relid, int *sleep_ms);

/* ---- dualwrite.c ---- */

/* How a statement begins that may make a trigger of ours (worker.c). */
#define TRIGGER_STATEMENT "CREATE TRIGGER"

/* How a lock begins that is no SQL: of a view, without what it reads. */
#define LOCK_VIEW "LOCK VIEW "

/* Define the settings and hooks; from _PG_init(). */
extern void dualwrite_install(void);

/* The innermost statement that runs, or NULL. */
extern const struct QueryDesc *dualwrite_statement(void);

/* Run an UPDATE that fills rows of a table; returns the number of rows. */
extern uint64 dualwrite_fill(Oid relid, const char *sql);
extern bool dualwrite_is_filling(Oid relid);

/* ---- runas.c ---- */

typedef struct RunAs
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
} RunAs;

extern void run_as_owner(Oid owner, const char *path, RunAs *saved);
extern void run_restricted(Oid owner, const char *path, RunAs *saved);
extern void run_as_restore(const RunAs *saved);
extern struct _SPI_plan *prepare_as_written(const char *sql, int nargs,
											Oid *types);

#endif							/* BG_CHANGE_H */
