/*-------------------------------------------------------------------------
 *
 * standby.h
 *		Standbys that the target must not be ahead of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_STANDBY_H
#define BG_STANDBY_H

#include "core/shared.h"

extern void standby_attach(StreamShared *shared);
extern bool standby_has(StreamShared *shared, XLogRecPtr lsn);
extern void standby_publish(StreamShared *shared, XLogRecPtr lsn);
extern void standby_passed(StreamShared *shared);
extern bool standby_wait(StreamShared *shared, XLogRecPtr lsn,
						 long timeout_ms);

#endif							/* BG_STANDBY_H */
