/*-------------------------------------------------------------------------
 *
 * transform_class.h
 *		The class of SELECTs that may be a transform.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_TRANSFORM_CLASS_H
#define BG_TRANSFORM_CLASS_H

#include "nodes/parsenodes.h"

extern int	transform_check_class(Query *query, Oid source, bool *user_code);
extern Oid	transform_commit_time_oid(void);
extern Oid	transform_commit_lsn_oid(void);

#endif							/* BG_TRANSFORM_CLASS_H */
