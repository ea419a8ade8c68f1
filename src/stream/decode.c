/*-------------------------------------------------------------------------
 *
 * decode.c
 *		The output plugin's callbacks: from decoded changes to RowChanges.
 *
 * The same callbacks serve two hosts.  In a stream's worker they are handed a
 * DecodeState by decode_attach(), with a sink that fills batches.  Behind
 * pg_logical_slot_get_changes() they build one from the slot's options, with a
 * sink that writes text.
 *
 * One change goes through every transform of its table.  For each of them the
 * old row (as far as the change carries it) and the new row are put into the
 * transform's slot and evaluated, and the pair is turned into what must happen
 * on the target (see rowchange.c).  startup runs outside of any transaction in
 * a worker or walsender; nothing here may assign a transaction id.
 *
 * No stream_* and no prepare callbacks are registered: a transaction arrives
 * as a whole when its commit is decoded, a prepared one with COMMIT PREPARED.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "core/partition.h"
#include "core/shared.h"
#include "core/worker.h"
#include "nodes/makefuncs.h"
#include "replication/output_plugin.h"
#include "stream/relation.h"
#include "stream/repair_row.h"
#include "stream/rowchange.h"
#include "stream/watch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

/* Handed over by decode_attach() to the next startup callback. */
static DecodeState *attached = NULL;

static void
scratch_init(RowChange *change, int ncolumns)
{
	change->values = palloc0_array(Datum, ncolumns);
	change->isnull = palloc0_array(bool, ncolumns);
	change->missing = palloc0_array(bool, ncolumns);
}

/*
 * Make the state of a decoding session over compiled transforms, in
 * CurrentMemoryContext, which must live as long as the session.
 */
DecodeState *
decode_create(List *transforms, const ChangeSink *sink)
{
	DecodeState *state = palloc0_object(DecodeState);
	ListCell   *lc;

	state->transforms = transforms;
	state->sink = *sink;
	state->context = CurrentMemoryContext;
	state->change_context = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_bluegreen change",
												  ALLOCSET_DEFAULT_SIZES);
	foreach(lc, transforms)
	{
		state->max_columns = Max(state->max_columns,
								 ((Transform *) lfirst(lc))->ncolumns);
	}
	scratch_init(&state->scratch, Max(state->max_columns, 1));
	scratch_init(&state->old_scratch, Max(state->max_columns, 1));
	state->row_name = makeStringInfo();
	relation_entries_create(state);
	return state;
}

/*
 * The next startup callback of this process uses this state.
 */
void
decode_attach(DecodeState *state)
{
	attached = state;
}

/*
 * Options of a slot that is read through SQL or a walsender.  Anyone with
 * REPLICATION may pass them.
 */
typedef struct PluginOptions
{
	char	   *deployment;
	char	   *direction;
	char	   *format;
} PluginOptions;

static void
parse_options(List *options, PluginOptions *result)
{
	const struct
	{
		const char *name;
		char	  **value;
	}			known[] = {
		{"deployment", &result->deployment},
		{"direction", &result->direction},
		{"format", &result->format},
	};
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *elem = lfirst_node(DefElem, lc);
		int			i;

		for (i = 0; i < lengthof(known); i++)
			if (strcmp(elem->defname, known[i].name) == 0)
				break;
		if (i == lengthof(known))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized pg_bluegreen option \"%s\"",
							elem->defname),
					 errhint("Valid options are \"deployment\", \"direction\" and \"format\".")));
		if (*known[i].value != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_SYNTAX_ERROR),
					 errmsg("conflicting or redundant option \"%s\"",
							elem->defname)));
		if (elem->arg == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" requires a value", elem->defname)));
		*known[i].value = strVal(elem->arg);
	}
}

static void
check_options(const PluginOptions *options)
{
	if (options->deployment == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"deployment\" is required"),
				 errhint("Name the deployment whose mappings should be shown.")));
	if (options->format != NULL && strcmp(options->format, "text") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"format\": \"%s\"",
						options->format),
				 errhint("The only format is \"text\".")));
	if (options->direction != NULL &&
		strcmp(options->direction, "forward") != 0 &&
		strcmp(options->direction, "backward") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"direction\": \"%s\"",
						options->direction),
				 errhint("Use \"forward\" or \"backward\".")));
}

/*
 * Compile the deployment's mappings under the current catalogs.  A walsender
 * calls startup outside of a transaction, the SQL functions inside one.
 */
static List *
load_transforms(const PluginOptions *options, Oid *partition_change)
{
	bool		own_transaction = !IsTransactionState();
	MemoryContext context = CurrentMemoryContext;
	Deployment *deployment;
	List	   *transforms = NIL;
	List	   *rows;
	ListCell   *lc;

	if (own_transaction)
		StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	deployment = deployment_load_by_name(options->deployment, false);
	deployment_check_owner(deployment);
	rows = mappings_load(deployment->id, options->direction ?
						 options->direction[0] : deployment->direction);
	foreach(lc, rows)
	{
		Transform  *transform = transform_compile(lfirst(lc));

		transform_check_identity(transform);
		transforms = lappend(transforms, transform);
	}
	*partition_change = partition_change_relid();
	PopActiveSnapshot();
	if (own_transaction)
		CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return transforms;
}

/*
 * The end of a decoding context, by an error too: the session that read the
 * slot goes on, and must not find a moment there.
 */
static void
forget_moment(void *arg)
{
	memset(&transform_moment, 0, sizeof(transform_moment));
}

/*
 * Set up decoding for a slot that is read through SQL or a walsender.
 */
static DecodeState *
text_decode_create(LogicalDecodingContext *ctx)
{
	MemoryContextCallback *callback = palloc0_object(MemoryContextCallback);
	PluginOptions parsed = {0};
	ChangeSink	sink = {0};
	DecodeState *state;
	List	   *transforms;
	Oid			partition_change;

	parse_options(ctx->output_plugin_options, &parsed);
	check_options(&parsed);
	text_sink_init(&sink, ctx);
	transforms = load_transforms(&parsed, &partition_change);
	state = decode_create(transforms, &sink);
	state->partition_change = partition_change;
	text_gate_init(&state->gate, ctx);
	state->pin_settings = true;
	callback->func = forget_moment;
	MemoryContextRegisterResetCallback(ctx->context, callback);
	return state;
}

/* startup callback */
static void
plugin_startup(LogicalDecodingContext *ctx, OutputPluginOptions *options,
			   bool is_init)
{
	MemoryContext old = MemoryContextSwitchTo(ctx->context);

	options->output_type = OUTPUT_PLUGIN_TEXTUAL_OUTPUT;
	options->receive_rewrites = false;
	if (attached != NULL)
	{
		ctx->output_plugin_private = attached;
		attached = NULL;
	}
	else if (!is_init)
		ctx->output_plugin_private = text_decode_create(ctx);
	MemoryContextSwitchTo(old);
}

/* begin callback */
static void
plugin_begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	DecodeState *state = ctx->output_plugin_private;

	if (state->pin_settings)
		state->guc_level = settings_pin_formatting();
	state->txn = txn;
	state->skipping = !XLogRecPtrIsInvalid(state->skip_lsn) &&
		txn->final_lsn == state->skip_lsn;
	transform_moment.commit_time = txn->xact_time.commit_time;
	transform_moment.commit_lsn = txn->final_lsn;
	state->sink.begin(state->sink.arg, txn);
}

/* commit callback */
static void
plugin_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			  XLogRecPtr commit_lsn)
{
	DecodeState *state = ctx->output_plugin_private;

	state->sink.commit(state->sink.arg, txn, txn->end_lsn);
	state->txn = NULL;
	state->skipping = false;
	if (state->pin_settings)
		settings_restore(state->guc_level);
}

/*
 * A row of bluegreen.partition_change: rows of these tables came or went that
 * no row change tells of.
 */
static void
check_partitions(DecodeState *state, Relation relation,
				 ReorderBufferChange *change)
{
	HeapTuple	tuple = change_new_tuple(change);
	ListCell   *lc;
	bool		isnull;
	char	   *content;

	if (tuple == NULL)
		return;					/* it is deleted again */
	content = TextDatumGetCString(heap_getattr(tuple, 1,
											   RelationGetDescr(relation),
											   &isnull));
	foreach(lc, state->transforms)
	{
		Transform  *transform = lfirst(lc);

		if (partition_change_names(content, transform->row->source) &&
			!copy_sees(state, transform))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("a partition with rows was attached to or detached from table \"%s\", source of \"%s\"",
							get_rel_name(transform->row->source),
							mapping_target_name(transform->row)),
					 errdetail("Which rows came or went is not in the WAL."),
					 errhint("Unmap the table, empty its target and map it again; or bring the rows over by hand and leave this transaction out with bluegreen.skip().")));
	}
}

/*
 * A row of bluegreen.deployment: have our mappings been changed since they
 * were compiled?  What comes next in the WAL must not be evaluated by what was
 * in force before.
 */
static void
check_definition(DecodeState *state, Relation relation,
				 ReorderBufferChange *change)
{
	TupleDesc	desc = RelationGetDescr(relation);
	HeapTuple	tuple = change_new_tuple(change);
	bool		isnull;

	if (tuple == NULL || state->sink.redefined == NULL ||
		DatumGetInt32(heap_getattr(tuple, BG_DEPLOYMENT_ID, desc,
								   &isnull)) != state->deployment ||
		DatumGetInt64(heap_getattr(tuple, BG_DEPLOYMENT_VERSION, desc,
								   &isnull)) <= state->mapping_version)
		return;
	state->sink.redefined(state->sink.arg, state->txn);
}

/* change callback: one INSERT, UPDATE or DELETE */
static void
plugin_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			  Relation relation, ReorderBufferChange *change)
{
	DecodeState *state = ctx->output_plugin_private;
	RelationEntry *entry;
	MemoryContext old;

	if (state->skipping || state->transforms == NIL)
		return;
	entry = relation_entry(state, relation);
	if (entry->ntransforms == 0 &&
		entry->relid != state->partition_change &&
		entry->relid != state->repair_rows &&
		entry->relid != state->deployments)
		return;

	old = MemoryContextSwitchTo(state->change_context);
	if (state->watches)
		watch_change(state, entry, relation, change);
	else if (entry->relid == state->partition_change)
		check_partitions(state, relation, change);
	else if (entry->relid == state->repair_rows)
		repair_row(state, relation, change);
	else if (entry->relid == state->deployments)
		check_definition(state, relation, change);
	else
		row_change(state, entry, relation, change);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->change_context);
}

/*
 * Transforms whose whole source is truncated.  A partition that is truncated
 * alone cannot be carried over: the target does not know which rows were in
 * it.
 */
static List *
truncated_transforms(DecodeState *state, int nrelations, Relation relations[])
{
	List	   *result = NIL;
	List	   *relids = NIL;

	for (int i = 0; i < nrelations; i++)
		relids = lappend_oid(relids, RelationGetRelid(relations[i]));
	for (int i = 0; i < nrelations; i++)
	{
		RelationEntry *entry = relation_entry(state, relations[i]);

		for (int j = 0; j < entry->ntransforms; j++)
		{
			Transform  *transform = entry->transforms[j].transform;

			if (!list_member_oid(relids, transform->row->source))
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("TRUNCATE of partition \"%s\" cannot be applied to \"%s\"",
								RelationGetRelationName(relations[i]),
								mapping_target_name(transform->row)),
						 errhint("Delete the rows on the target yourself, then leave this transaction out with bluegreen.skip().")));
			result = list_append_unique_ptr(result, transform);
		}
	}
	return result;
}

/* truncate callback */
static void
plugin_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				int nrelations, Relation relations[],
				ReorderBufferChange *change)
{
	DecodeState *state = ctx->output_plugin_private;
	MemoryContext old;
	List	   *transforms;

	if (state->skipping || state->transforms == NIL || state->watches)
		return;
	old = MemoryContextSwitchTo(state->change_context);
	transforms = truncated_transforms(state, nrelations, relations);
	if (transforms != NIL)
		state->sink.truncate(state->sink.arg, transforms,
							 change->data.truncate.cascade,
							 change->data.truncate.restart_seqs);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->change_context);
}

/* message callback */
static void
plugin_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			   XLogRecPtr lsn, bool transactional, const char *prefix,
			   Size size, const char *content)
{
	DecodeState *state = ctx->output_plugin_private;

	if (state->sink.message)
		state->sink.message(state->sink.arg, transactional ? txn : NULL, lsn,
							transactional, prefix, size, content);
}

/*
 * Entry point of the output plugin.
 */
void
_PG_output_plugin_init(OutputPluginCallbacks *cb)
{
	cb->startup_cb = plugin_startup;
	cb->begin_cb = plugin_begin;
	cb->change_cb = plugin_change;
	cb->truncate_cb = plugin_truncate;
	cb->message_cb = plugin_message;
	cb->commit_cb = plugin_commit;
	/* core asks it for every record: not without need */
	if (attached != NULL && attached->left_out != NIL)
		cb->filter_by_origin_cb = origin_filter;
}
