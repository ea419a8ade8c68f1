/*-------------------------------------------------------------------------
 *
 * derive.h
 *		Tables that are kept in step with another one (derive_table).
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_DERIVE_H
#define BG_DERIVE_H

/* How all statements that derive rows begin. */
#define DERIVE_MARK		"/* bluegreen derives: "

struct QueryDesc;

extern bool derive_is_statement(const struct QueryDesc *statement);

/*
 * Arguments of the triggers; the source's columns follow.  Statements for a
 * row have its columns as parameters; those of a move first the row's as it
 * was, then as it is.  That of a TRUNCATE is the only one of its trigger, and
 * has none.
 */
typedef enum DeriveArgument
{
	DERIVE_PATH,				/* search_path */
	DERIVE_OPPOSITE,			/* how those of the other direction begin */
	DERIVE_WRITE,				/* SQL for a row as it is now */
	DERIVE_KEEP,				/* SQL for one as it was, but not filled */
	DERIVE_MOVE_LOCK,			/* SQL: lock what the next one may remove */
	DERIVE_MOVE,				/* SQL for a row as it was and is */
	DERIVE_REMOVE_LOCK,			/* SQL: lock what the next one may remove */
	DERIVE_REMOVE,				/* SQL for a row that is gone, or for all */
	DERIVE_COLUMNS				/* the first of them */
} DeriveArgument;

#endif							/* BG_DERIVE_H */
