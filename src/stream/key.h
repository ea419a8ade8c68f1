/*-------------------------------------------------------------------------
 *
 * key.h
 *		Keys of target rows: equality, hash, order.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_KEY_H
#define BG_KEY_H

#include "common/hashfn.h"
#include "stream/transform.h"

/* How a key column of a type is handled, by the type's equality function. */
extern KeyKind key_kind(Oid equal);

/* Keys are arrays by key column here. */
extern uint32 key_hash(Transform *transform, const Datum *key);
extern bool key_equal(Transform *transform, const Datum *a, const Datum *b);

/*
 * A number that is larger for a key that comes later, or the same;
 * key_compare() tells then.
 */
extern int64 key_order(const Transform *transform, const Datum *key);
extern int	key_compare(Transform *transform, const Datum *a, const Datum *b);

#endif							/* BG_KEY_H */
