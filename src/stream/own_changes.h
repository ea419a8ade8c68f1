/*-------------------------------------------------------------------------
 *
 * own_changes.h
 *		In a window: which rows this side has changed itself, and the other
 *		side has not seen.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_OWN_CHANGES_H
#define BG_OWN_CHANGES_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "storage/latch.h"
#include "utils/relcache.h"

/* A row by its key, as two hashes of 64 bits: there are no others. */
typedef struct OwnKey
{
	Oid			relation;		/* a mapping's source; of partitions, the root */
	uint32		unused;
	uint64		hash[2];
} OwnKey;

/* The last change of a row by this side. */
typedef struct OwnChange
{
	OwnKey		key;			/* must be first */
	XLogRecPtr	lsn;			/* end of its commit */
	TimestampTz commit_time;
	int64		value;			/* of the column that decides, see window.h */
	bool		deleted;		/* there is none any more */
} OwnChange;

/* for shared.c */
extern void own_request(void);
extern void own_startup(void);

/* What a relation's keys are hashed by; lives in CurrentMemoryContext. */
typedef struct OwnHasher OwnHasher;

extern OwnHasher *own_hasher_create(Relation relation, const Bitmapset *key);
extern int	own_hasher_columns(const OwnHasher *hasher,
							   const AttrNumber **attnums);
extern void own_hash(OwnHasher *hasher, Oid relation, const Datum *values,
					 OwnKey *key);

/* the process that watches (watch.c) */
extern void own_publish(const char *opposite);
extern void own_enter(const OwnChange *change);
extern void own_forget(const OwnKey *key, XLogRecPtr lsn);
extern int64 own_count(void);
extern void own_decoded(XLogRecPtr lsn);
extern XLogRecPtr own_seen(void);

/* the session that applies: what it brings had seen this (position.c) */
extern void own_attach_session(void);
extern void own_note_seen(XLogRecPtr seen);
extern RepOriginId own_session_origin(void);

#endif							/* BG_OWN_CHANGES_H */
