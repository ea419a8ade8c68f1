/*-------------------------------------------------------------------------
 *
 * wire.h
 *		Values as the bytes that go over the wire, and arrays of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_WIRE_H
#define BG_WIRE_H

#include "stream/arena.h"
#include "stream/transform.h"

/*
 * A column's value as it goes over the wire; data NULL = SQL NULL.  The four
 * bytes before data are its length as it stands in an array.
 */
typedef struct WireValue
{
	int32		len;
	char	   *data;
} WireValue;

#define WIRE_HEADER	((int) sizeof(int32))

extern WireEncoding wire_encoding(const TransformColumn *column);

/*
 * Turn one value into bytes in an arena, or into the ones that result has if
 * they suffice.  What that takes beside is in CurrentMemoryContext.
 */
extern void wire_encode_in(Arena *arena, TransformColumn *column, Datum value,
						   bool isnull, WireValue *result);

/* The same, with the bytes in CurrentMemoryContext. */
extern void wire_encode(TransformColumn *column, Datum value, bool isnull,
						WireValue *result);

#endif							/* BG_WIRE_H */
