/*-------------------------------------------------------------------------
 *
 * derive.h
 *		Tables that are kept in step with another one (derive_table).
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_DERIVE_H
#define BG_DERIVE_H

/* How our statements begin: what they write is not carried back. */
#define DERIVE_MARK "/* bluegreen derives */ "

/* Arguments of the trigger; the source's columns follow. */
typedef enum DeriveArgument
{
	DERIVE_PATH,				/* search_path */
	DERIVE_WRITE,				/* SQL for a row as it is now */
	DERIVE_MOVE,				/* SQL for a row as it was and is */
	DERIVE_REMOVE,				/* SQL for a row that is gone */
	DERIVE_COLUMNS				/* the first of them */
} DeriveArgument;

#endif							/* BG_DERIVE_H */
