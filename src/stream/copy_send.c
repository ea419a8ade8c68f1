/*-------------------------------------------------------------------------
 *
 * copy_send.c
 *		Rows from the source's executor as data of the peer's COPY.
 *
 * A copy spends most of its time here and in the executor, so values that
 * their send functions only swap to network order or pass on as they are go
 * straight into the buffer: no call, no allocation.  Everything else, and
 * COPY's text format, goes through the type's functions in a context that is
 * emptied after each row that used it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "stream/copy.h"
#include "stream/plain.h"
#include "utils/memutils.h"

#define FLUSH_BYTES		65536

static void
receiver_flush(CopyReceiver *receiver)
{
	peer_copy_data(receiver->state->peer, receiver->buffer.data,
				   receiver->buffer.len);
	receiver->bytes += receiver->buffer.len;
	receiver->state->slot->rows = receiver->rows;
	resetStringInfo(&receiver->buffer);
}

/*
 * Text goes as it is: both ends of the connection use this database's encoding.
 */
static inline void
append_binary(StringInfo out, TransformColumn *column, Datum value,
			  bool isnull)
{
	bytea	   *bytes;

	if (isnull)
	{
		pq_sendint32(out, -1);
		return;
	}
	if (plain_append(out, column->send.fn_oid, value))
		return;
	bytes = SendFunctionCall(&column->send, value);
	plain_append_bytes(out, VARDATA(bytes), VARSIZE(bytes) - VARHDRSZ);
}

/*
 * One value in COPY's text format.
 */
static void
append_text(StringInfo out, TransformColumn *column, Datum value, bool isnull)
{
	static const char special[] = "\b\f\n\r\t\v\\";
	static const char escape[] = "bfnrtv\\";
	char	   *text;

	if (isnull)
	{
		appendStringInfoString(out, "\\N");
		return;
	}
	text = OutputFunctionCall(&column->output, value);

	for (const char *p = text; *p; p++)
	{
		const char *found = strchr(special, *p);

		if (found)
		{
			appendStringInfoChar(out, '\\');
			appendStringInfoChar(out, escape[found - special]);
		}
		else
			appendStringInfoChar(out, *p);
	}
}

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	CopyReceiver *receiver = (CopyReceiver *) self;
	const CopyTable *table = receiver->table;
	Transform  *transform = table->transform;
	MemoryContext old;

	slot_getallattrs(slot);
	old = MemoryContextSwitchTo(receiver->row_context);
	if (table->binary)
		pq_sendint16(&receiver->buffer, transform->ncolumns);
	for (int i = 0; i < transform->ncolumns; i++)
	{
		TransformColumn *column = &transform->columns[i];

		if (table->binary)
			append_binary(&receiver->buffer, column, slot->tts_values[i],
						  slot->tts_isnull[i]);
		else
		{
			if (i > 0)
				appendStringInfoChar(&receiver->buffer, '\t');
			append_text(&receiver->buffer, column, slot->tts_values[i],
						slot->tts_isnull[i]);
		}
	}
	if (!table->binary)
		appendStringInfoChar(&receiver->buffer, '\n');
	MemoryContextSwitchTo(old);
	MemoryContextReset(receiver->row_context);
	receiver->rows++;
	if (receiver->buffer.len >= FLUSH_BYTES)
	{
		receiver->state->evaluating = false;
		receiver_flush(receiver);
		receiver->state->evaluating = true;
	}
	return true;
}

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	CopyReceiver *receiver = (CopyReceiver *) self;
	static const char signature[] = "PGCOPY\n\377\r\n";

	if (!receiver->table->binary)
		return;
	/* the signature ends with a zero byte */
	appendBinaryStringInfo(&receiver->buffer, signature, sizeof(signature));
	pq_sendint32(&receiver->buffer, 0); /* flags */
	pq_sendint32(&receiver->buffer, 0); /* header extension */
}

static void
receiver_shutdown(DestReceiver *self)
{
	CopyReceiver *receiver = (CopyReceiver *) self;

	if (receiver->table->binary)
		pq_sendint16(&receiver->buffer, -1);
	receiver_flush(receiver);
}

static void
receiver_destroy(DestReceiver *self)
{
}

/*
 * Receives the rows of a table and sends them to the state's peer, which is
 * in a COPY; in CurrentMemoryContext.
 */
CopyReceiver *
copy_receiver_create(CopyState *state, const CopyTable *table)
{
	CopyReceiver *receiver = palloc0_object(CopyReceiver);

	receiver->pub.receiveSlot = receive_row;
	receiver->pub.rStartup = receiver_startup;
	receiver->pub.rShutdown = receiver_shutdown;
	receiver->pub.rDestroy = receiver_destroy;
	receiver->pub.mydest = DestNone;
	receiver->state = state;
	receiver->table = table;
	receiver->row_context = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_bluegreen copy row",
												  ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&receiver->buffer);
	enlargeStringInfo(&receiver->buffer, 2 * FLUSH_BYTES);
	return receiver;
}
