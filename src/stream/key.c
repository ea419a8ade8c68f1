/*-------------------------------------------------------------------------
 *
 * key.c
 *		Keys of target rows: equality, hash, order.
 *
 * By the key type's own functions, since 1.0 and 1.00 are one numeric key.  A
 * whole number is a key of nearly every table, and equal if it is the same
 * number, so these are compared and hashed without a call.  Two mappings of one
 * target must hash a key alike, also if one has it as an integer and the other
 * as a bigint: all of them hash by the number.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "stream/key.h"
#include "utils/fmgroids.h"
#include "utils/uuid.h"

KeyKind
key_kind(Oid equal)
{
	switch (equal)
	{
		case F_INT8EQ:
		case F_TIMESTAMP_EQ:
		case F_TIMESTAMPTZ_EQ:
			return KEY_INT8;
		case F_INT4EQ:
		case F_DATE_EQ:
			return KEY_INT4;
		case F_INT2EQ:
			return KEY_INT2;
		case F_OIDEQ:
			return KEY_OID;
		case F_UUID_EQ:
			return KEY_UUID;
		default:
			return KEY_OTHER;
	}
}

/*
 * Is it a number?  Which one?
 */
static inline bool
is_number(const TransformColumn *column, Datum value, int64 *number)
{
	switch (column->key_kind)
	{
		case KEY_INT8:
			*number = DatumGetInt64(value);
			return true;
		case KEY_INT4:
			*number = DatumGetInt32(value);
			return true;
		case KEY_INT2:
			*number = DatumGetInt16(value);
			return true;
		case KEY_OID:
			*number = DatumGetObjectId(value);
			return true;
		case KEY_UUID:
		case KEY_OTHER:
			break;
	}
	return false;
}

static inline TransformColumn *
key_column(const Transform *transform, int k)
{
	return &transform->columns[transform->keys[k]];
}

/*
 * The finalizer of MurmurHash3, for 64 bits.
 */
static inline uint32
hash_number(int64 number)
{
	uint64		h = (uint64) number;

	h ^= h >> 33;
	h *= UINT64CONST(0xff51afd7ed558ccd);
	h ^= h >> 33;
	h *= UINT64CONST(0xc4ceb9fe1a85ec53);
	h ^= h >> 33;
	return (uint32) h;
}

uint32
key_hash(Transform *transform, const Datum *key)
{
	uint32		hash = 0;

	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = key_column(transform, k);
		int64		number;

		hash = hash_combine(hash, is_number(column, key[k], &number) ?
							hash_number(number) :
							DatumGetUInt32(FunctionCall1Coll(&column->hash,
															 column->collation,
															 key[k])));
	}
	return hash;
}

bool
key_equal(Transform *transform, const Datum *a, const Datum *b)
{
	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = key_column(transform, k);
		int64		x;
		int64		y;

		if (is_number(column, a[k], &x) && is_number(column, b[k], &y))
		{
			if (x != y)
				return false;
		}
		else if (!DatumGetBool(FunctionCall2Coll(&column->equal,
												 column->collation,
												 a[k], b[k])))
			return false;
	}
	return true;
}

int64
key_order(const Transform *transform, const Datum *key)
{
	int64		number = 0;

	if (!is_number(key_column(transform, 0), key[0], &number) &&
		key_column(transform, 0)->key_kind == KEY_UUID)
	{
		uint64		head;

		memcpy(&head, DatumGetUUIDP(key[0])->data, sizeof(head));
		number = (int64) (pg_ntoh64(head) ^ (UINT64CONST(1) << 63));
	}
	return number;
}

int
key_compare(Transform *transform, const Datum *a, const Datum *b)
{
	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = key_column(transform, k);
		int64		x;
		int64		y;
		int			order = 0;

		if (is_number(column, a[k], &x) && is_number(column, b[k], &y))
			order = (x > y) - (x < y);
		else if (OidIsValid(column->compare.fn_oid))
			order = DatumGetInt32(FunctionCall2Coll(&column->compare,
													column->collation,
													a[k], b[k]));
		if (order != 0)
			return order;
	}
	return 0;
}
