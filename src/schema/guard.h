/*-------------------------------------------------------------------------
 *
 * guard.h
 *		Is what a step is about still what it was (guard.c), and what the
 *		document names what that meant (meant.c), and what has a change made
 *		(made.c)?
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_GUARD_H
#define BG_GUARD_H

#include "schema/shape.h"

/* ---- guard.c ---- */

typedef enum GuardResult
{
	GUARD_SAME,
	GUARD_GONE,
	GUARD_CHANGED
} GuardResult;

extern Oid	find_relation(const char *qualified);
extern void guard_table(Step *step, Oid relid, const char *qualified);
extern void guard_column(Step *step, Oid relid, AttrNumber attnum,
						 const char *name);
extern void guard_index(Step *step, Oid index, const char *qualified);
extern void guard_trigger(Step *step, Oid relid, const char *trigger);
extern void guard_constraint(Step *step, Oid relid, Oid constraint,
							 const char *name);
extern void guard_index_name(Step *step, Oid index, const char *qualified);
extern void guard_lost(Step *step, const ShapeTable *table);
extern char *index_identity(const char *oid);
extern char *constraint_identity(const char *oid);
extern GuardResult guards_check(const Step *step, char **what);
extern bool guard_plan_is_old(const Change *change, const Step *step);
extern bool guard_step(const Change *change, const Step *step);
extern bool guard_is_gone(const ErrorData *error);
extern void guard_run(const Change *change, const char *sql,
					  void (*run) (const char *));
extern void guard_trigger_columns(const char *sql);
extern void guard_extension(Oid schema);
extern void guard_extension_end(Oid schema);

/* ---- meant.c: what do the names in the document mean ---- */

extern void meant_table(const Shape *shape, const char *name, Oid relid);
extern void meant_index(const Shape *shape, const char *name, Oid index);
extern void meant_constraint(const Shape *shape, const ShapeTable *table,
							 const char *name, Oid constraint);
extern void meant_columns(const Shape *shape, const ShapeTable *table);

/* ---- made.c ---- */

/* What a table has before a step. */
typedef struct TableBefore
{
	bool		known;
	int			natts;
	char	   *constraints;	/* an array of their OIDs, as text */
} TableBefore;

/* What an earlier try has left of an index. */
typedef enum IndexState
{
	INDEX_MISSING,
	INDEX_INVALID,
	INDEX_VALID
} IndexState;

extern void made_begin(const Step *step, TableBefore *before);
extern void made_end(int32 change, const Step *step,
					 const TableBefore *before);
extern void made_table(int32 change, Oid relid, int operation);
extern IndexState made_index_state(const Step *step);
extern void made_index(int32 change, ChangeState phase, Oid index);

#endif							/* BG_GUARD_H */
