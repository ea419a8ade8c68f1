/*-------------------------------------------------------------------------
 *
 * repair_row.h
 *		Rows that come again, found while decoding.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_REPAIR_ROW_H
#define BG_REPAIR_ROW_H

#include "stream/decode.h"
#include "utils/relcache.h"

extern Oid	repair_row_relid(void);
extern void repair_row(DecodeState *state, Relation relation,
					   ReorderBufferChange *change);

#endif							/* BG_REPAIR_ROW_H */
