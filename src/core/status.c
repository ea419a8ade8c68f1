/*-------------------------------------------------------------------------
 *
 * status.c
 *		The set-returning functions behind the views: shared memory as rows.
 *
 * Each shows the current database's streams only, and no rows where the
 * library is not preloaded.  An entry is copied under its spinlock and turned
 * into a row afterwards.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/definition.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_stream_state);
PG_FUNCTION_INFO_V1(bluegreen_table_state);
PG_FUNCTION_INFO_V1(bluegreen_copy_state);

#define ROW_MAX 48

/* A row that is being put together, column by column. */
typedef struct StateRow
{
	int			n;
	Datum		values[ROW_MAX];
	bool		nulls[ROW_MAX];
} StateRow;

static void
add(StateRow *row, Datum value, bool isnull)
{
	if (row->n >= ROW_MAX)
		elog(ERROR, "too many columns");
	row->values[row->n] = value;
	row->nulls[row->n] = isnull;
	row->n++;
}

static void
add_text(StateRow *row, const char *value)
{
	bool		empty = value == NULL || value[0] == '\0';

	add(row, empty ? (Datum) 0 : CStringGetTextDatum(value), empty);
}

static void
add_lsn(StateRow *row, XLogRecPtr value)
{
	add(row, LSNGetDatum(value), XLogRecPtrIsInvalid(value));
}

static void
add_time(StateRow *row, TimestampTz value)
{
	add(row, TimestampTzGetDatum(value), value == 0);
}

static void
add_int4(StateRow *row, int32 value, bool isnull)
{
	add(row, Int32GetDatum(value), isnull);
}

static void
add_int8(StateRow *row, int64 value)
{
	add(row, Int64GetDatum(value), false);
}

static void
put(ReturnSetInfo *rsinfo, const StateRow *row)
{
	if (row->n != rsinfo->setDesc->natts)
		elog(ERROR, "row has %d columns instead of %d", row->n,
			 rsinfo->setDesc->natts);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc,
						 unconstify(StateRow *, row)->values,
						 unconstify(StateRow *, row)->nulls);
}

/*
 * Copy an entry up to its copy part; false if it is not of this database.
 */
static bool
copy_stream(StreamShared *s, StreamShared *copy)
{
	SpinLockAcquire(&s->mutex);
	memcpy(copy, s, offsetof(StreamShared, chunk_version));
	SpinLockRelease(&s->mutex);
	return copy->in_use && copy->dboid == MyDatabaseId;
}

static void
add_stream_identity(StateRow *row, const StreamShared *s)
{
	add_int4(row, s->deployment, false);
	add_text(row, direction_name(s->direction));
	add_text(row, s->slot_name);
	add_int4(row, (int32) s->pid, s->pid == 0);
	add_text(row, stream_state_names[s->state]);
	add(row, BoolGetDatum(s->stop_requested), false);
	add_int8(row, s->mapping_version);
	add_lsn(row, s->window_since);
	add_time(row, s->next_start);
	add_int4(row, s->failures, false);
}

static void
add_stream_positions(StateRow *row, const StreamShared *s)
{
	add_lsn(row, s->decoded_lsn);
	add_lsn(row, s->applied_lsn);
	add_lsn(row, s->confirmed_lsn);
	add_time(row, s->applied_commit_time);
	add_time(row, s->applied_at);
	add_time(row, s->oldest_pending);
	add_time(row, s->waiting_since);
	add_text(row, s->waits_for);
}

static void
add_stream_counters(StateRow *row, const StreamShared *s)
{
	add_int8(row, s->transactions);
	add_int8(row, s->batches);
	add_int8(row, s->rows);
	add_int8(row, s->bytes);
	add_int8(row, s->errors);
	add_int8(row, s->restarts);
	add_int8(row, s->skipped);
	add_int8(row, s->careful_batches);
	add_time(row, s->stats_reset);
	add(row, Int64GetDatum(s->clock_ahead), s->clock_ahead_at == 0);
	add_time(row, s->clock_ahead_at);
}

static void
add_stream_error(StateRow *row, const StreamError *error)
{
	static const StreamError none = {0};

	if (error->at == 0)
		error = &none;			/* what is left of one that is over */
	add_time(row, error->at);
	add_text(row, error->sqlstate);
	add_lsn(row, error->lsn);
	add_text(row, error->relation);
	add_text(row, error->key);
	add_text(row, error->message);
	add_text(row, error->detail);
	add_text(row, error->hint);
}

/*
 * bluegreen.stream_state(): one row per stream of this database.
 */
Datum
bluegreen_stream_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StreamShared *copy;

	InitMaterializedSRF(fcinfo, 0);
	if (!shared_is_loaded())
		return (Datum) 0;
	copy = palloc(sizeof(StreamShared));
	for (int i = 0; i < stream_shared_count(); i++)
	{
		StateRow	row = {0};

		if (!copy_stream(stream_shared_at(i), copy))
			continue;
		add_stream_identity(&row, copy);
		add_stream_positions(&row, copy);
		add_stream_counters(&row, copy);
		add_stream_error(&row, &copy->error);
		put(rsinfo, &row);
	}
	return (Datum) 0;
}

static void
put_table(ReturnSetInfo *rsinfo, int32 mapping, int32 deployment)
{
	TableShared *table = table_shared_get(mapping, deployment);
	StateRow	row = {0};

	add_int4(&row, mapping, false);
	add_text(&row, table_state_names[table->state]);
	add_int8(&row, pg_atomic_read_u64(&table->inserts));
	add_int8(&row, pg_atomic_read_u64(&table->updates));
	add_int8(&row, pg_atomic_read_u64(&table->deletes));
	add_int8(&row, pg_atomic_read_u64(&table->truncates));
	add_int8(&row, pg_atomic_read_u64(&table->filtered));
	add_int8(&row, pg_atomic_read_u64(&table->conflicts));
	add_int8(&row, pg_atomic_read_u64(&table->copied_rows));
	add_int8(&row, pg_atomic_read_u64(&table->copied_bytes));
	add_int8(&row, pg_atomic_read_u64(&table->copied_chunks));
	add_int8(&row, table->estimated_rows);
	add_time(&row, table->copy_started_at);
	add_time(&row, table->copy_finished_at);
	add_lsn(&row, table->copied_until);
	put(rsinfo, &row);
}

/*
 * bluegreen.table_state(): one row per mapping whose stream is known to shared
 * memory.
 */
Datum
bluegreen_table_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	CatalogAccess access;
	uint64		n;

	InitMaterializedSRF(fcinfo, 0);
	if (!shared_is_loaded())
		return (Datum) 0;
	catalog_begin(&access);
	n = catalog_run("SELECT id, deployment FROM bluegreen.table_mapping "
					"ORDER BY id", NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		int32		deployment = DatumGetInt32(catalog_value(i, 2, NULL));

		/* without a stream no counters exist, and looking must not make them */
		if (stream_of_deployment(deployment) != NULL)
			put_table(rsinfo, DatumGetInt32(catalog_value(i, 1, NULL)),
					  deployment);
	}
	catalog_end(&access);
	return (Datum) 0;
}

static void
put_copy(ReturnSetInfo *rsinfo, const StreamShared *s, const CopyShared *copy)
{
	StateRow	row = {0};
	bool		idle = copy->mapping == 0;

	add_int4(&row, s->deployment, false);
	add_int4(&row, (int32) copy->pid, false);
	add_int4(&row, copy->mapping, idle);
	add_int4(&row, copy->number, idle);
	add(&row, Int64GetDatum(copy->generation), idle);
	add_text(&row, !idle && copy->has_lower ? copy->lower : NULL);
	add_text(&row, !idle && copy->has_upper ? copy->upper : NULL);
	add(&row, BoolGetDatum(copy->key_only), idle);
	add(&row, Int64GetDatum(copy->rows), idle);
	add_time(&row, idle ? 0 : copy->started_at);
	put(rsinfo, &row);
}

/*
 * bluegreen.copy_state(): one row per copy worker of this database's streams,
 * with the chunk that it has announced.
 */
Datum
bluegreen_copy_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StreamShared *copy;

	InitMaterializedSRF(fcinfo, 0);
	if (!shared_is_loaded())
		return (Datum) 0;
	copy = palloc(sizeof(StreamShared));
	for (int i = 0; i < stream_shared_count(); i++)
	{
		StreamShared *s = stream_shared_at(i);

		if (!copy_stream(s, copy))
			continue;
		LWLockAcquire(shared_chunk_lock(), LW_SHARED);
		memcpy(copy->copy, s->copy, sizeof(s->copy));
		LWLockRelease(shared_chunk_lock());
		for (int w = 0; w < BG_MAX_COPY_WORKERS; w++)
			if (copy->copy[w].pid != 0)
				put_copy(rsinfo, copy, &copy->copy[w]);
	}
	return (Datum) 0;
}
