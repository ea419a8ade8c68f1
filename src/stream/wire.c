/*-------------------------------------------------------------------------
 *
 * wire.c
 *		Values as the bytes that go over the wire.
 *
 * That is the value's binary form, or the text form of what unnest() could not
 * carry.  Send functions build it in a buffer that they get and grow, which is
 * most of what they do for a number; so numbers, and what is its own binary
 * form, are turned into bytes right here.
 *
 * Each value has its length in front, as an element of an array has: to make an
 * array of values is to copy them one behind the other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "stream/wire.h"
#include "utils/fmgroids.h"
#include "utils/uuid.h"

/*
 * Types by their send function: the ones that only swap to network order, and
 * the ones whose binary form is their content (both ends of the connection use
 * this database's encoding).
 */
static const struct
{
	Oid			send;
	WireEncoding encoding;
}			encodings[] = {
	{F_INT8SEND, WIRE_8_BYTES},
	{F_INT4SEND, WIRE_4_BYTES},
	{F_INT2SEND, WIRE_2_BYTES},
	{F_TEXTSEND, WIRE_CONTENT},
	{F_VARCHARSEND, WIRE_CONTENT},
	{F_TIMESTAMPTZ_SEND, WIRE_8_BYTES},
	{F_TIMESTAMP_SEND, WIRE_8_BYTES},
	{F_DATE_SEND, WIRE_4_BYTES},
	{F_TIME_SEND, WIRE_8_BYTES},
	{F_BOOLSEND, WIRE_BOOL},
	{F_UUID_SEND, WIRE_UUID},
	{F_BPCHARSEND, WIRE_CONTENT},
	{F_BYTEASEND, WIRE_CONTENT},
	{F_JSON_SEND, WIRE_CONTENT},
	{F_FLOAT8SEND, WIRE_8_BYTES},
	{F_FLOAT4SEND, WIRE_4_BYTES},
	{F_OIDSEND, WIRE_4_BYTES},
	{F_CASH_SEND, WIRE_8_BYTES},
};

/*
 * How values of a column, whose functions are known, are turned into bytes.
 */
WireEncoding
wire_encoding(const TransformColumn *column)
{
	if (column->def->wire != WIRE_BINARY)
		return WIRE_BY_OUTPUT;
	for (int i = 0; i < lengthof(encodings); i++)
		if (encodings[i].send == column->send.fn_oid)
			return encodings[i].encoding;
	return WIRE_BY_SEND;
}

/*
 * Room for a value of this length, in the old one's place if it suffices.
 */
static inline char *
make_room(Arena *arena, WireValue *result, int32 len)
{
	uint32		header = pg_hton32((uint32) len);

	if (result->data == NULL || result->len < len)
	{
		char	   *room = arena ? arena_bytes(arena, (Size) WIRE_HEADER + len) :
			palloc((Size) WIRE_HEADER + len);

		result->data = room + WIRE_HEADER;
	}
	result->len = len;
	memcpy(result->data - WIRE_HEADER, &header, sizeof(header));
	return result->data;
}

static void
put_bytes(Arena *arena, WireValue *result, const char *bytes, int32 len)
{
	memcpy(make_room(arena, result, len), bytes, len);
}

static void
encode_by_function(Arena *arena, TransformColumn *column, Datum value,
				   WireValue *result)
{
	char	   *text;
	bytea	   *bytes;

	if (column->encoding == WIRE_BY_OUTPUT)
	{
		text = OutputFunctionCall(&column->output, value);
		put_bytes(arena, result, text, strlen(text));
		pfree(text);
		return;
	}
	bytes = SendFunctionCall(&column->send, value);
	put_bytes(arena, result, VARDATA(bytes), VARSIZE(bytes) - VARHDRSZ);
	pfree(bytes);
}

static void
encode_content(Arena *arena, Datum value, WireValue *result)
{
	struct varlena *content = PG_DETOAST_DATUM_PACKED(value);

	put_bytes(arena, result, VARDATA_ANY(content), VARSIZE_ANY_EXHDR(content));
	if ((Pointer) content != DatumGetPointer(value))
		pfree(content);
}

void
wire_encode_in(Arena *arena, TransformColumn *column, Datum value, bool isnull,
			   WireValue *result)
{
	uint64		bytes8;
	uint32		bytes4;
	uint16		bytes2;

	if (isnull)
	{
		result->len = 0;
		result->data = NULL;
		return;
	}
	switch (column->encoding)
	{
		case WIRE_8_BYTES:
			bytes8 = pg_hton64((uint64) DatumGetInt64(value));
			memcpy(make_room(arena, result, 8), &bytes8, 8);
			break;
		case WIRE_4_BYTES:
			bytes4 = pg_hton32((uint32) DatumGetInt32(value));
			memcpy(make_room(arena, result, 4), &bytes4, 4);
			break;
		case WIRE_2_BYTES:
			bytes2 = pg_hton16((uint16) DatumGetInt16(value));
			memcpy(make_room(arena, result, 2), &bytes2, 2);
			break;
		case WIRE_BOOL:
			*make_room(arena, result, 1) = DatumGetBool(value) ? 1 : 0;
			break;
		case WIRE_UUID:
			memcpy(make_room(arena, result, UUID_LEN), DatumGetPointer(value),
				   UUID_LEN);
			break;
		case WIRE_CONTENT:
			encode_content(arena, value, result);
			break;
		case WIRE_BY_SEND:
		case WIRE_BY_OUTPUT:
			encode_by_function(arena, column, value, result);
			break;
	}
}

void
wire_encode(TransformColumn *column, Datum value, bool isnull,
			WireValue *result)
{
	result->data = NULL;
	wire_encode_in(NULL, column, value, isnull, result);
}
