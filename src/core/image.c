/*-------------------------------------------------------------------------
 *
 * image.c
 *		A hash of values as they are stored, for rows that have no key.
 *
 * A stream into a table without a key has to find rows that are the same in
 * all columns, some of them of types that have no equality (json, point).
 * record_image_eq() compares any values, byte by byte, but cannot be hashed;
 * this is the hash that belongs to it, so that many rows are found by one hash
 * join.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/tupmacs.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "compat.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

/*
 * Of a value longer than LONG_VALUE, which may be stored out of line, only the
 * beginning is looked at.
 */
#define LONG_VALUE	2000
#define LONG_PREFIX	1000

PG_FUNCTION_INFO_V1(bluegreen_image_hash);

typedef struct ImageType
{
	int16		len;
	bool		byval;
} ImageType;

static uint64
hash_varlena(Datum value)
{
	struct varlena *whole = (struct varlena *) DatumGetPointer(value);
	Size		size = toast_raw_datum_size(value) - VARHDRSZ;
	struct varlena *part;
	uint64		hash;

	if (size > LONG_VALUE)
		part = pg_detoast_datum_slice(whole, 0, LONG_PREFIX);
	else
		part = pg_detoast_datum_packed(whole);
	hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(part),
							   VARSIZE_ANY_EXHDR(part), size);
	if (part != whole)
		pfree(part);
	return hash;
}

static uint64
hash_value(Datum value, const ImageType *type)
{
	char		bytes[sizeof(Datum)];

	if (type->len == -1)
		return hash_varlena(value);
	if (!type->byval)
		return hash_bytes_extended((unsigned char *) DatumGetPointer(value),
								   type->len > 0 ? type->len :
								   strlen(DatumGetCString(value)), 0);
	/* of a narrow value only its own bytes: the rest has no meaning */
	store_att_byval(bytes, value, type->len);
	return hash_bytes_extended((unsigned char *) bytes, type->len, 0);
}

/*
 * The arguments' types, looked up once a query.
 */
static ImageType *
image_types(FunctionCallInfo fcinfo)
{
	FmgrInfo   *flinfo = fcinfo->flinfo;
	ImageType  *types = flinfo->fn_extra;

	if (types != NULL)
		return types;
	if (get_fn_expr_variadic(flinfo))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("bluegreen.image_hash() takes no VARIADIC array")));
	types = MemoryContextAlloc(flinfo->fn_mcxt, PG_NARGS() * sizeof(ImageType));
	for (int i = 0; i < PG_NARGS(); i++)
		get_typlenbyval(get_fn_expr_argtype(flinfo, i), &types[i].len,
						&types[i].byval);
	flinfo->fn_extra = types;
	return types;
}

/*
 * bluegreen.image_hash(VARIADIC "any") returns bigint: values that
 * record_image_eq() takes for the same have the same hash.
 */
Datum
bluegreen_image_hash(PG_FUNCTION_ARGS)
{
	ImageType  *types = image_types(fcinfo);
	uint64		hash = 0;

	for (int i = 0; i < PG_NARGS(); i++)
		hash = hash_combine64(hash, PG_ARGISNULL(i) ? 0 :
							  hash_value(PG_GETARG_DATUM(i), &types[i]));
	PG_RETURN_INT64((int64) hash);
}
