/*-------------------------------------------------------------------------
 *
 * rowchange.h
 *		From the old and new row of a change to what happens on the target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_ROWCHANGE_H
#define BG_ROWCHANGE_H

#include "stream/relation.h"

extern bool copy_sees(DecodeState *state, Transform *transform);
extern void row_change(DecodeState *state, RelationEntry *entry,
					   Relation relation, ReorderBufferChange *change);

#endif							/* BG_ROWCHANGE_H */
