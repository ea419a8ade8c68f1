/*-------------------------------------------------------------------------
 *
 * verify_checksum.c
 *		Rows as hashes that are the same on both sides.
 *
 * A row's bytes are those of its values, one behind the other: a mark for
 * NULL, or the length and what the type's send function gives (format 'b') or
 * its output function (format 't', where the binary form names types by OID,
 * which differ between clusters).  Both in the client's encoding: that of the
 * database on the source, and the same in the session on the target.  So what
 * differs in one bit differs here, 1.0 and 1.00 do, and 'a' and 'A' under
 * whatever collation.  The settings that text forms depend on are the
 * session's, and pinned there (core/worker.c).
 *
 * The hash of a row has 128 bits (MurmurHash3_x64_128, whose author has put it
 * into the public domain).  checksum() adds the hashes up, so the order does
 * not matter, and it counts the rows: for each of some buckets that the rows
 * are spread over by their key, so that a difference is found in a small part
 * of a large range without reading that once more.
 *
 * A function has at most 100 arguments.  Of a wider row all values come as one
 * ROW(): format 'r', followed by the formats of its columns.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "stream/plain.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(bluegreen_row_hash);
PG_FUNCTION_INFO_V1(bluegreen_row_bucket);
PG_FUNCTION_INFO_V1(bluegreen_key_text);
PG_FUNCTION_INFO_V1(bluegreen_checksum_add);
PG_FUNCTION_INFO_V1(bluegreen_checksum_final);

#define MAX_BUCKETS	65536

/* where a length would be */
static const uint32 null_mark = 0xffffffff;

typedef struct RowDigest
{
	uint64		low;
	uint64		high;
} RowDigest;

/* How one value is turned into bytes. */
typedef struct ValueForm
{
	char		format;			/* 'b', 't' or 'r' */
	Oid			type;
	FmgrInfo	function;		/* send or output */
} ValueForm;

/* What is looked up once a query. */
typedef struct RowForm
{
	int			nvalues;		/* arguments */
	ValueForm  *values;
	StringInfoData bytes;		/* of the row at hand */
	bool		converts;		/* the client has another encoding */
	/* of a ROW() */
	TupleDesc	desc;
	ValueForm  *columns;
	const char *column_formats;
	MemoryContext context;
} RowForm;

/* ---- the hash ---- */

static inline uint64
rotate(uint64 x, int bits)
{
	return (x << bits) | (x >> (64 - bits));
}

static inline uint64
little_endian(const char *p)
{
	uint64		x;

	memcpy(&x, p, sizeof(x));
#ifdef WORDS_BIGENDIAN
	x = pg_bswap64(x);
#endif
	return x;
}

static inline uint64
finish(uint64 x)
{
	x ^= x >> 33;
	x *= UINT64CONST(0xff51afd7ed558ccd);
	x ^= x >> 33;
	x *= UINT64CONST(0xc4ceb9fe1a85ec53);
	return x ^ (x >> 33);
}

#define FACTOR_1	UINT64CONST(0x87c37b91114253d5)
#define FACTOR_2	UINT64CONST(0x4cf5ad432745937f)

static RowDigest
digest(const char *data, int len)
{
	uint64		h1 = 0;
	uint64		h2 = 0;
	char		rest[16] = {0};
	RowDigest	result;
	int			i;

	for (i = 0; i + 16 <= len; i += 16)
	{
		h1 ^= rotate(little_endian(data + i) * FACTOR_1, 31) * FACTOR_2;
		h1 = (rotate(h1, 27) + h2) * 5 + 0x52dce729;
		h2 ^= rotate(little_endian(data + i + 8) * FACTOR_2, 33) * FACTOR_1;
		h2 = (rotate(h2, 31) + h1) * 5 + 0x38495ab5;
	}
	memcpy(rest, data + i, len - i);
	h2 ^= rotate(little_endian(rest + 8) * FACTOR_2, 33) * FACTOR_1;
	h1 ^= rotate(little_endian(rest) * FACTOR_1, 31) * FACTOR_2;
	h1 ^= (uint64) len;
	h2 ^= (uint64) len;
	h1 += h2;
	h2 += h1;
	h1 = finish(h1);
	h2 = finish(h2);
	h1 += h2;
	h2 += h1;
	result.low = h1;
	result.high = h2;
	return result;
}

/* ---- values as bytes ---- */

/*
 * What the send function would give, without calling it; false if it has to be
 * called.
 */
static inline bool
append_plain(const RowForm *form, StringInfo out, Oid send, Datum value)
{
	return !(form->converts && plain_is_text(send)) &&
		plain_append(out, send, value);
}

static void
find_form(ValueForm *form, char format, Oid type, MemoryContext context)
{
	Oid			function;
	bool		is_varlena;

	form->format = format;
	form->type = type;
	switch (format)
	{
		case 'b':
			getTypeBinaryOutputInfo(type, &function, &is_varlena);
			fmgr_info_cxt(function, &form->function, context);
			break;
		case 't':
			getTypeOutputInfo(type, &function, &is_varlena);
			fmgr_info_cxt(function, &form->function, context);
			break;
		case 'r':
			if (type_is_rowtype(type))
				break;
			/* FALLTHROUGH */
		default:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid format of a value: \"%c\"", format)));
	}
}

static void append_row(RowForm *form, Datum row);

static inline void
append_value(RowForm *form, ValueForm *value_form, Datum value, bool isnull)
{
	StringInfo	out = &form->bytes;
	char	   *text;
	bytea	   *bytes;

	if (value_form->format == 'r' && !isnull)
	{
		append_row(form, value);
		return;
	}
	if (isnull)
	{
		memcpy(plain_space(out, sizeof(null_mark)), &null_mark,
			   sizeof(null_mark));
		return;
	}
	if (value_form->format == 'b')
	{
		if (append_plain(form, out, value_form->function.fn_oid, value))
			return;
		bytes = SendFunctionCall(&value_form->function, value);
		plain_append_bytes(out, VARDATA(bytes), VARSIZE(bytes) - VARHDRSZ);
		pfree(bytes);
		return;
	}
	text = OutputFunctionCall(&value_form->function, value);
	if (form->converts)
		text = pg_server_to_client(text, strlen(text));
	plain_append_bytes(out, text, strlen(text));
	pfree(text);
}

/*
 * The columns of a ROW(), whose type is the same for all rows.
 */
static void
append_row(RowForm *form, Datum row)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(row);
	HeapTupleData tuple;
	Datum	   *values;
	bool	   *isnull;

	if (form->desc != NULL &&
		(form->desc->tdtypeid != HeapTupleHeaderGetTypeId(header) ||
		 form->desc->tdtypmod != HeapTupleHeaderGetTypMod(header)))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("all rows must be of one type")));
	if (form->desc == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(form->context);

		form->desc =
			lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(header),
										HeapTupleHeaderGetTypMod(header));
		if (strlen(form->column_formats) != form->desc->natts)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a row of %d columns has %d formats",
							form->desc->natts,
							(int) strlen(form->column_formats))));
		form->columns = palloc0_array(ValueForm, form->desc->natts);
		for (int i = 0; i < form->desc->natts; i++)
			find_form(&form->columns[i], form->column_formats[i],
					  TupleDescAttr(form->desc, i)->atttypid, form->context);
		MemoryContextSwitchTo(old);
	}
	values = palloc_array(Datum, form->desc->natts);
	isnull = palloc_array(bool, form->desc->natts);
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, form->desc, values, isnull);
	for (int i = 0; i < form->desc->natts; i++)
		append_value(form, &form->columns[i], values[i], isnull[i]);
	pfree(values);
	pfree(isnull);
}

/*
 * The forms of the arguments from the first on, by the formats in the argument
 * before it.
 */
static RowForm *
make_form(FunctionCallInfo fcinfo, int first)
{
	MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	RowForm    *form = palloc0_object(RowForm);
	char	   *formats;

	if (PG_ARGISNULL(first - 1) || get_fn_expr_variadic(fcinfo->flinfo))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("formats and single values must be given")));
	formats = text_to_cstring(PG_GETARG_TEXT_PP(first - 1));
	form->context = CurrentMemoryContext;
	form->nvalues = PG_NARGS() - first;
	form->values = palloc0_array(ValueForm, Max(form->nvalues, 1));
	form->converts = pg_get_client_encoding() != GetDatabaseEncoding();
	if ((int) strlen(formats) < form->nvalues)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there are more values than formats")));
	/* there is one list of columns, so only one value can be a row */
	if (strchr(formats, 'r') != NULL &&
		strchr(formats, 'r') != formats + form->nvalues - 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("only the last value can be a row")));
	for (int i = 0; i < form->nvalues; i++)
		find_form(&form->values[i], formats[i],
				  get_fn_expr_argtype(fcinfo->flinfo, first + i),
				  form->context);
	form->column_formats = formats + form->nvalues;
	initStringInfo(&form->bytes);
	MemoryContextSwitchTo(old);
	fcinfo->flinfo->fn_extra = form;
	return form;
}

static inline RowForm *
get_form(FunctionCallInfo fcinfo, int first)
{
	RowForm    *form = fcinfo->flinfo->fn_extra;

	return form != NULL ? form : make_form(fcinfo, first);
}

/*
 * Bytes of n arguments, behind what is there already.
 */
static inline void
append_arguments(FunctionCallInfo fcinfo, RowForm *form, int first, int from,
				 int to)
{
	for (int i = from; i < to; i++)
		append_value(form, &form->values[i],
					 PG_ARGISNULL(first + i) ? (Datum) 0 :
					 PG_GETARG_DATUM(first + i), PG_ARGISNULL(first + i));
}

/* ---- single rows ---- */

static RowDigest
digest_arguments(FunctionCallInfo fcinfo, int first)
{
	RowForm    *form = get_form(fcinfo, first);

	resetStringInfo(&form->bytes);
	append_arguments(fcinfo, form, first, 0, form->nvalues);
	return digest(form->bytes.data, form->bytes.len);
}

static inline uint32
bucket_of(RowDigest hash, int buckets)
{
	return (uint32) ((hash.high >> 32) % (uint32) buckets);
}

static int
get_buckets(int32 buckets)
{
	if (buckets < 1 || buckets > MAX_BUCKETS)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("number of buckets must be between 1 and %d",
						MAX_BUCKETS)));
	return buckets;
}

/*
 * bluegreen.row_hash(formats text, VARIADIC "any") returns uuid: 128 bits
 * that differ, as good as certainly, for rows that differ in any byte.
 */
Datum
bluegreen_row_hash(PG_FUNCTION_ARGS)
{
	RowDigest	hash = digest_arguments(fcinfo, 1);
	pg_uuid_t  *result = palloc_object(pg_uuid_t);
	uint64		low = pg_hton64(hash.low);
	uint64		high = pg_hton64(hash.high);

	memcpy(result->data, &high, sizeof(high));
	memcpy(result->data + sizeof(high), &low, sizeof(low));
	PG_RETURN_UUID_P(result);
}

/*
 * bluegreen.row_bucket(buckets integer, formats text, VARIADIC "any") returns
 * integer: the bucket, from 0, that checksum() puts a row with this key into.
 */
Datum
bluegreen_row_bucket(PG_FUNCTION_ARGS)
{
	int			buckets = get_buckets(PG_ARGISNULL(0) ? 0 : PG_GETARG_INT32(0));

	PG_RETURN_INT32(bucket_of(digest_arguments(fcinfo, 2), buckets));
}

/*
 * bluegreen.key_text(VARIADIC "any") returns text[]: values as their types
 * write them.
 */
Datum
bluegreen_key_text(PG_FUNCTION_ARGS)
{
	FmgrInfo   *functions = fcinfo->flinfo->fn_extra;
	Datum	   *texts = palloc_array(Datum, PG_NARGS());
	bool	   *nulls = palloc_array(bool, PG_NARGS());
	int			dims[] = {PG_NARGS()};
	int			bounds[] = {1};

	if (functions == NULL)
	{
		MemoryContext context = fcinfo->flinfo->fn_mcxt;

		functions = MemoryContextAllocZero(context,
										   PG_NARGS() * sizeof(FmgrInfo));
		for (int i = 0; i < PG_NARGS(); i++)
		{
			Oid			function;
			bool		is_varlena;

			getTypeOutputInfo(get_fn_expr_argtype(fcinfo->flinfo, i),
							  &function, &is_varlena);
			fmgr_info_cxt(function, &functions[i], context);
		}
		fcinfo->flinfo->fn_extra = functions;
	}
	for (int i = 0; i < PG_NARGS(); i++)
	{
		nulls[i] = PG_ARGISNULL(i);
		if (!nulls[i])
			texts[i] = CStringGetTextDatum(OutputFunctionCall(&functions[i],
															  PG_GETARG_DATUM(i)));
	}
	PG_RETURN_ARRAYTYPE_P(construct_md_array(texts, nulls, 1, dims, bounds,
											 TEXTOID, -1, false, TYPALIGN_INT));
}

/* ---- many rows ---- */

typedef struct Bucket
{
	uint64		rows;
	RowDigest	sum;
} Bucket;

typedef struct Checksum
{
	int			nbuckets;
	int			nkeys;
	uint64		bytes;
	Bucket		buckets[FLEXIBLE_ARRAY_MEMBER];
} Checksum;

static Checksum *
checksum_create(FunctionCallInfo fcinfo)
{
	MemoryContext context;
	int			buckets = get_buckets(PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1));
	Checksum   *sum;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "checksum_add called in non-aggregate context");
	sum = MemoryContextAllocZero(context, offsetof(Checksum, buckets) +
								 buckets * sizeof(Bucket));
	sum->nbuckets = buckets;
	sum->nkeys = PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2);
	if (sum->nkeys < 0 || sum->nkeys > PG_NARGS() - 4)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there are fewer values than key columns")));
	return sum;
}

/*
 * Transition function of bluegreen.checksum(buckets integer, keys integer,
 * formats text, VARIADIC "any"): the first values are the row's key; without
 * one the whole row chooses its bucket.
 */
Datum
bluegreen_checksum_add(PG_FUNCTION_ARGS)
{
	Checksum   *sum = PG_ARGISNULL(0) ? checksum_create(fcinfo) :
		(Checksum *) PG_GETARG_POINTER(0);
	RowForm    *form = get_form(fcinfo, 4);
	RowDigest	key;
	RowDigest	row;
	Bucket	   *bucket;

	resetStringInfo(&form->bytes);
	append_arguments(fcinfo, form, 4, 0, sum->nkeys);
	if (sum->nkeys > 0)
		key = digest(form->bytes.data, form->bytes.len);
	append_arguments(fcinfo, form, 4, sum->nkeys, form->nvalues);
	row = digest(form->bytes.data, form->bytes.len);
	bucket = &sum->buckets[bucket_of(sum->nkeys > 0 ? key : row,
									 sum->nbuckets)];
	bucket->rows++;
	bucket->sum.low += row.low;
	bucket->sum.high += row.high;
	if (bucket->sum.low < row.low)
		bucket->sum.high++;
	sum->bytes += form->bytes.len;
	PG_RETURN_POINTER(sum);
}

static void
send_number(StringInfo out, uint64 number)
{
	pq_sendint64(out, (int64) number);
}

/*
 * The aggregate's result: number of bytes that were hashed, then rows and sum
 * of each bucket, all as numbers of 8 bytes.  NULL for no rows.
 */
Datum
bluegreen_checksum_final(PG_FUNCTION_ARGS)
{
	Checksum   *sum;
	StringInfoData out;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	sum = (Checksum *) PG_GETARG_POINTER(0);
	pq_begintypsend(&out);
	send_number(&out, sum->bytes);
	for (int i = 0; i < sum->nbuckets; i++)
	{
		send_number(&out, sum->buckets[i].rows);
		send_number(&out, sum->buckets[i].sum.high);
		send_number(&out, sum->buckets[i].sum.low);
	}
	PG_RETURN_BYTEA_P(pq_endtypsend(&out));
}
