/*-------------------------------------------------------------------------
 *
 * text.c
 *		The sink of the SQL interface: transformed changes as text.
 *
 * For people and regression tests that read a slot with
 * pg_logical_slot_get_changes().  One line per row change:
 *
 *		table shop.cart: UPSERT: id[integer]:'7' quantity[smallint]:'2'
 *
 * Deletes show the key, moves show the old key first, and a column that the
 * change does not carry shows as unchanged-toast-datum.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/partition.h"
#include "lib/stringinfo.h"
#include "replication/output_plugin.h"
#include "stream/decode.h"
#include "utils/builtins.h"

static void
text_line(LogicalDecodingContext *ctx, const char *line)
{
	OutputPluginPrepareWrite(ctx, true);
	appendStringInfoString(ctx->out, line);
	OutputPluginWrite(ctx, true);
}

static void
text_begin(void *arg, ReorderBufferTXN *txn)
{
	text_line(arg, "BEGIN");
}

static void
text_commit(void *arg, ReorderBufferTXN *txn, XLogRecPtr end_lsn)
{
	text_line(arg, "COMMIT");
}

static void
text_row(void *arg, const RowChange *change)
{
	LogicalDecodingContext *ctx = arg;
	Transform  *transform = change->transform;

	OutputPluginPrepareWrite(ctx, true);
	appendStringInfo(ctx->out, "table %s: %s:",
					 mapping_target_name(transform->row),
					 change_kind_names[change->kind]);
	if (change->kind == CHANGE_MOVE ||
		(change->kind == CHANGE_UPDATE && transform->nkeys == 0))
	{
		appendStringInfoString(ctx->out, " from");
		change_describe_old(ctx->out, change);
		appendStringInfoString(ctx->out, " to");
	}
	change_describe(ctx->out, change);
	OutputPluginWrite(ctx, true);
}

static void
text_truncate(void *arg, List *transforms, bool cascade,
			  bool restart_identity)
{
	StringInfoData line;
	ListCell   *lc;

	initStringInfo(&line);
	appendStringInfoString(&line, "truncate");
	foreach(lc, transforms)
	{
		appendStringInfo(&line, "%s %s",
						 lc == list_head(transforms) ? "" : ",",
						 mapping_target_name(((Transform *) lfirst(lc))->row));
	}
	text_line(arg, line.data);
}

static void
text_message(void *arg, ReorderBufferTXN *txn, XLogRecPtr lsn,
			 bool transactional, const char *prefix, Size size,
			 const char *content)
{
	LogicalDecodingContext *ctx = arg;

	if (strcmp(prefix, BG_MESSAGE_PREFIX) == 0)
		return;					/* our own marks in the WAL */
	OutputPluginPrepareWrite(ctx, true);
	appendStringInfo(ctx->out, "message: transactional: %d prefix: %s, sz: %zu content:",
					 transactional, prefix, size);
	appendBinaryStringInfo(ctx->out, content, size);
	OutputPluginWrite(ctx, true);
}

/*
 * A row that must be copied again can only be shown as such.
 */
static void
text_recopy(void *arg, Transform *transform, ReorderBufferTXN *txn)
{
	text_line(arg, psprintf("table %s: RECOPY",
							mapping_target_name(transform->row)));
}

/*
 * Set up a sink that writes text to a decoding context's output.
 */
void
text_sink_init(ChangeSink *sink, LogicalDecodingContext *ctx)
{
	sink->begin = text_begin;
	sink->row = text_row;
	sink->truncate = text_truncate;
	sink->commit = text_commit;
	sink->message = text_message;
	sink->arg = ctx;
}

/*
 * And the gate of the SQL interface, which lets everything through.
 */
void
text_gate_init(DecodeGate *gate, LogicalDecodingContext *ctx)
{
	gate->check = NULL;
	gate->recopy = text_recopy;
	gate->sees = NULL;
	gate->arg = ctx;
}
