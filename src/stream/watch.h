/*-------------------------------------------------------------------------
 *
 * watch.h
 *		The process that keeps a side's own changes in a window.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_WATCH_H
#define BG_WATCH_H

#include "core/shared.h"
#include "stream/relation.h"

/* decode.c: a change that is not to be applied, but watched */
extern void watch_change(DecodeState *state, RelationEntry *entry,
						 Relation relation, ReorderBufferChange *change);

/* The name of its slot; buf has NAMEDATALEN bytes. */
extern void watch_slot_name(char *buf, const char *stream_slot);

extern TimestampTz watch_start(StreamShared *shared);
extern void watch_stop(StreamShared *shared);

#endif							/* BG_WATCH_H */
