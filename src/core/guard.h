/*-------------------------------------------------------------------------
 *
 * guard.h
 *		On a target: whose rights the code of its tables has in a session that
 *		applies.  See guard.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_GUARD_H
#define BG_GUARD_H

#include "compat.h"
#include "nodes/parsenodes.h"
#include "utils/array.h"

/* Whom to return to. */
typedef struct GuardUser
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
} GuardUser;

/* guard.c: run as a table's owner, with no more than his rights */
extern void guard_enter(Oid owner, GuardUser *saved);
extern void guard_leave(const GuardUser *saved);
extern void guard_failed(void);
extern bool guard_session_applies(void);
extern void guard_require(void);

/*
 * Called with each relation whose rows are about to be written by C code of
 * ours that no executor knows of; set by who must know (cutover/fence_hook.c).
 */
extern void (*guard_write_hook) (Oid relation);

extern Oid	guard_copy_owner(Oid relation, List *columns);
extern Oid	guard_keyed_owner(Oid relation, List *key, List *set);
extern List *guard_column_names(ArrayType *array);

/*
 * Run a part of a statement as a table's owner.
 */
#define AS_OWNER(owner, part) \
	do { \
		GuardUser	saved_user; \
		guard_enter(owner, &saved_user); \
		PG_TRY(); \
		{ \
			part; \
		} \
		PG_CATCH(); \
		{ \
			guard_failed(); \
			PG_RE_THROW(); \
		} \
		PG_END_TRY(); \
		guard_leave(&saved_user); \
	} while (0)

/* guard_check.c: error unless the current user may have this done for owner */
extern bool guard_is_foreign(Oid relation);
extern Oid	guard_check_relation(Oid relation);
extern bool guard_is_granted(Oid relation, AclMode needed);
extern pg_noreturn void guard_denied(Oid relation);
extern void guard_check_shape(Query *query, List *relations, Oid owner);

/* tally.c; expected of a statement: as many as its lookup gives */
#define BG_ROWS_BY_LOOKUP	(-2)

extern void tally_install(void);
extern void tally_expect(int64 rows);

#endif							/* BG_GUARD_H */
