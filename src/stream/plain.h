/*-------------------------------------------------------------------------
 *
 * plain.h
 *		Values of common types as their send functions give them, with the
 *		length before it, as in COPY's binary format; without a call.
 *
 * Inline, because whoever needs this spends most of its time here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PLAIN_H
#define BG_PLAIN_H

#include "lib/stringinfo.h"
#include "port/pg_bswap.h"
#include "utils/fmgroids.h"
#include "utils/uuid.h"

static inline char *
plain_space(StringInfo out, int len)
{
	char	   *to;

	if (out->len + len >= out->maxlen)
		enlargeStringInfo(out, len);
	to = out->data + out->len;
	out->len += len;
	return to;
}

/*
 * Append bytes with their length before them.
 */
static inline void
plain_append_bytes(StringInfo out, const char *data, int len)
{
	char	   *to = plain_space(out, sizeof(uint32) + len);
	uint32		swapped = pg_hton32((uint32) len);

	memcpy(to, &swapped, sizeof(swapped));
	memcpy(to + sizeof(swapped), data, len);
}

/* A value of a fixed length. */
#define PLAIN_APPEND_FIXED(out, type, value) \
	do { \
		type		bytes_ = (value); \
		char	   *to_ = plain_space(out, sizeof(uint32) + sizeof(bytes_)); \
		uint32		len_ = pg_hton32((uint32) sizeof(bytes_)); \
		memcpy(to_, &len_, sizeof(len_)); \
		memcpy(to_ + sizeof(len_), &bytes_, sizeof(bytes_)); \
	} while (0)

/*
 * Is it the send function of a type of texts, which it sends in the client's
 * encoding?
 */
static inline bool
plain_is_text(Oid send)
{
	return send == F_TEXTSEND || send == F_VARCHARSEND || send == F_BPCHARSEND;
}

/*
 * Append a value, text in the database's encoding; false if its type needs its
 * send function.
 */
static inline bool
plain_append(StringInfo out, Oid send, Datum value)
{
	struct varlena *content;

	switch (send)
	{
		case F_INT4SEND:
		case F_DATE_SEND:
		case F_OIDSEND:
		case F_FLOAT4SEND:
			PLAIN_APPEND_FIXED(out, uint32,
							   pg_hton32((uint32) DatumGetInt32(value)));
			return true;
		case F_INT8SEND:
		case F_TIME_SEND:
		case F_TIMESTAMP_SEND:
		case F_TIMESTAMPTZ_SEND:
		case F_FLOAT8SEND:
			PLAIN_APPEND_FIXED(out, uint64,
							   pg_hton64((uint64) DatumGetInt64(value)));
			return true;
		case F_INT2SEND:
			PLAIN_APPEND_FIXED(out, uint16,
							   pg_hton16((uint16) DatumGetInt16(value)));
			return true;
		case F_BOOLSEND:
			PLAIN_APPEND_FIXED(out, uint8, DatumGetBool(value) ? 1 : 0);
			return true;
		case F_UUID_SEND:
			plain_append_bytes(out, (char *) DatumGetUUIDP(value)->data,
							   UUID_LEN);
			return true;
		case F_TEXTSEND:
		case F_VARCHARSEND:
		case F_BPCHARSEND:
		case F_BYTEASEND:
			content = PG_DETOAST_DATUM_PACKED(value);
			plain_append_bytes(out, VARDATA_ANY(content),
							   VARSIZE_ANY_EXHDR(content));
			return true;
		default:
			return false;
	}
}

#endif							/* BG_PLAIN_H */
