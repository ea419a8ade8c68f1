/*-------------------------------------------------------------------------
 *
 * copy_plan.c
 *		What a copy worker does next.
 *
 * Copy workers plan one at a time, under a heavyweight lock that an error or
 * the end of the process gives back.  The plan of a table is derived each
 * time from its directory (chunks that are finished on the target, chunks that
 * are announced): the first gap is the next chunk, so a table can be taken up
 * again wherever it was left.
 *
 * The first chunk decides how a table is copied.  A small one, or one that
 * cannot be cut, is one chunk.  One that is cut has the indexes beside its key
 * put aside first: rows that were read under different snapshots may clash in
 * unique ones until the stream has passed the last P.
 *
 * Whoever builds the indexes of a table has claimed it (CopyShared.building):
 * meanwhile others have nothing to do there.
 *
 * Copy workers rather take different tables, since two that write to one wait for
 * each other whenever it grows.  One table's indexes are then built while another
 * is copied.
 *
 * A patch finds its target rows only after they are there, so its table waits
 * until every other mapping of the same target is streaming; so does one with a
 * lookup for those that bring what the lookup reads.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_statistic.h"
#include "compat.h"
#include "core/event.h"
#include "core/settings.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "optimizer/plancat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "stream/copy.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define CHUNK_BYTES		(INT64CONST(256) * 1024 * 1024)
#define MIN_CHUNK_ROWS	100		/* of rows however wide */
#define LAST_CHUNK_ROWS	50000

/*
 * One planner at a time for a deployment; until the end of the transaction.
 */
static void
lock_planning(const CopyState *state)
{
	Oid			schema = get_namespace_oid("bluegreen", false);

	/* sub-id 1: not the lock of start() and of definitions (control.c) */
	LockDatabaseObject(get_relname_relid("deployment", schema),
					   (Oid) state->deployment->id, 1, ExclusiveLock);
}

/*
 * Add what a relation has, with its TOAST table.
 */
static void
estimate_one(Oid relid, double *rows, double *bytes)
{
	Relation	relation = table_open(relid, AccessShareLock);
	BlockNumber pages;
	double		tuples;
	double		allvisfrac;

	if (relation->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
	{
		estimate_rel_size(relation, NULL, &pages, &tuples, &allvisfrac);
		*rows += tuples;
		*bytes += (double) pages * BLCKSZ;
		if (OidIsValid(relation->rd_rel->reltoastrelid))
		{
			Relation	toast = table_open(relation->rd_rel->reltoastrelid,
										   AccessShareLock);

			*bytes += (double) RelationGetNumberOfBlocks(toast) * BLCKSZ;
			table_close(toast, AccessShareLock);
		}
	}
	table_close(relation, AccessShareLock);
}

/*
 * About how much the source has now.
 */
void
copy_estimate_source(const CopyTable *table)
{
	Oid			source = table->transform->row->source;
	double		rows = 0;
	double		bytes = 0;
	List	   *relations = table->partitioned ?
		find_all_inheritors(source, AccessShareLock, NULL) :
		list_make1_oid(source);
	ListCell   *lc;

	foreach(lc, relations)
	{
		estimate_one(lfirst_oid(lc), &rows, &bytes);
	}
	table->stats->estimated_rows = (int64) rows;
	table->stats->estimated_bytes = (int64) bytes;
}

static char *
literal_row(const KeySpace *space, const Datum *key)
{
	StringInfoData row;

	initStringInfo(&row);
	appendStringInfoString(&row, "ROW(");
	for (int i = 0; i < space->nkeys; i++)
	{
		char	   *text = OutputFunctionCall(&space->output[i], key[i]);

		appendStringInfo(&row, "%s%s::%s", i > 0 ? ", " : "",
						 quote_literal_cstr(text), space->types[i]);
	}
	appendStringInfoChar(&row, ')');
	return row.data;
}

static char *
key_list(const KeySpace *space)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < space->nkeys; i++)
		appendStringInfo(&list, "%s%s", i > 0 ? ", " : "", space->names[i]);
	return list.data;
}

/*
 * Append FROM and WHERE of a query over the source's rows in a range of keys.
 */
void
copy_append_range(StringInfo sql, const CopyTable *table, const Datum *lower,
				  const Datum *upper)
{
	KeySpace   *space = table->directory->space;
	Oid			source = table->transform->row->source;

	appendStringInfo(sql, " FROM %s%s WHERE true",
					 table->partitioned ? "" : "ONLY ",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
												get_rel_name(source)));
	if (lower)
		appendStringInfo(sql, " AND ROW(%s) > %s", key_list(space),
						 literal_row(space, lower));
	if (upper)
		appendStringInfo(sql, " AND ROW(%s) <= %s", key_list(space),
						 literal_row(space, upper));
}

/*
 * The histogram's value at which a chunk of so many rows from lower ends, or
 * NULL if it does not reach so far or is too coarse.
 */
static Datum *
histogram_upper(const CopyTable *table, const AttStatsSlot *histogram,
				const Datum *lower, int64 rows)
{
	KeySpace   *space = table->directory->space;
	Form_pg_attribute att = TupleDescAttr(table->transform->source_desc,
										  space->attnos[0] - 1);
	int64		width = table->stats->estimated_rows /
		Max(histogram->nvalues - 1, 1);
	int64		steps = rows / Max(width, 1);
	int64		low = 0;
	Datum	   *upper;

	while (lower && low < histogram->nvalues &&
		   chunk_compare_keys(space, &histogram->values[low], lower) <= 0)
		low++;
	if (lower)
		low--;					/* where lower is, or just below it */
	if (steps < 1 || low < 0 || low + steps >= histogram->nvalues - 1)
		return NULL;
	upper = palloc_object(Datum);
	*upper = datumCopy(histogram->values[low + steps], att->attbyval,
					   att->attlen);
	return upper;
}

/*
 * The end of a chunk by the source's statistics, or NULL.  Any key will do as
 * a bound; only the number of rows is more or less than was asked for.  So not
 * if the table has grown much since.  Small chunks are counted.
 */
static Datum *
guess_upper(const CopyTable *table, const Datum *lower, int64 rows)
{
	KeySpace   *space = table->directory->space;
	Relation	source;
	HeapTuple	tuple;
	AttStatsSlot histogram;
	Datum	   *upper = NULL;
	bool		grown;

	if (space->nkeys != 1 || table->partitioned || rows < LAST_CHUNK_ROWS)
		return NULL;
	source = table_open(table->transform->row->source, AccessShareLock);
	grown = RelationGetNumberOfBlocks(source) / 5 * 4 >
		(BlockNumber) Max(source->rd_rel->relpages, 0);
	table_close(source, NoLock);
	tuple = SearchSysCache3(STATRELATTINH,
							ObjectIdGetDatum(table->transform->row->source),
							Int16GetDatum(space->attnos[0]),
							BoolGetDatum(false));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	if (!grown && get_attstatsslot(&histogram, tuple,
								   STATISTIC_KIND_HISTOGRAM, InvalidOid,
								   ATTSTATSSLOT_VALUES))
	{
		if (histogram.valuetype == TupleDescAttr(table->transform->source_desc,
												 space->attnos[0] - 1)->atttypid)
			upper = histogram_upper(table, &histogram, lower, rows);
		free_attstatsslot(&histogram);
	}
	ReleaseSysCache(tuple);
	return upper;
}

/*
 * The key at which a chunk of so many rows from lower ends, if that is inside
 * of the gap; otherwise the gap's own upper bound.
 */
Datum *
copy_find_upper(CopyTable *table, Datum *lower, Datum *gap_upper, int64 rows)
{
	KeySpace   *space = table->directory->space;
	char	   *keys = key_list(space);
	Datum	   *upper = guess_upper(table, lower, rows);
	StringInfoData sql;

	if (upper &&
		(lower == NULL || chunk_compare_keys(space, upper, lower) > 0) &&
		(gap_upper == NULL || chunk_compare_keys(space, upper, gap_upper) < 0))
		return upper;
	upper = gap_upper;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s", keys);
	copy_append_range(&sql, table, lower, gap_upper);
	appendStringInfo(&sql, " ORDER BY %s OFFSET " INT64_FORMAT " LIMIT 1",
					 keys, rows - 1);

	SPI_connect();
	if (SPI_execute(sql.data, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not find the end of a chunk");
	if (SPI_processed == 1)
	{
		upper = SPI_palloc(space->nkeys * sizeof(Datum));
		for (int i = 0; i < space->nkeys; i++)
		{
			Form_pg_attribute att = TupleDescAttr(SPI_tuptable->tupdesc, i);
			bool		isnull;
			Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
											  SPI_tuptable->tupdesc, i + 1,
											  &isnull);

			upper[i] = SPI_datumTransfer(value, att->attbyval, att->attlen);
		}
	}
	SPI_finish();
	return upper;
}

/*
 * About how many rows of the table are in no chunk yet, or 0 if nobody knows.
 */
static int64
rows_left(const CopyState *state, const CopyTable *table)
{
	int64		left = table->stats->estimated_rows -
		(int64) pg_atomic_read_u64(&table->stats->copied_rows);

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
	{
		const CopyShared *copy = &state->shared->copy[i];

		if (copy->mapping == table->transform->row->id)
			left -= copy->planned_rows;
	}
	LWLockRelease(shared_chunk_lock());
	return Max(left, 0);
}

/*
 * Rows of a chunk.  Large chunks cost less, but a chunk holds its snapshot,
 * makes the stream wait for it, and is lost with its worker: so wide rows make
 * it smaller.  A thousandth of the table at least, or of what is copied of one
 * that has grown: each chunk costs a look at all of them.
 */
static int64
chunk_rows(TableShared *stats)
{
	int64		copied = (int64) pg_atomic_read_u64(&stats->copied_rows);
	int64		rows = bg_copy_chunk_rows;

	if (stats->estimated_rows > 0)
	{
		int64		width = Max(stats->estimated_bytes / stats->estimated_rows,
								1);

		rows = Min(rows, Max(CHUNK_BYTES / width, MIN_CHUNK_ROWS));
	}
	return Max(rows, Max(stats->estimated_rows, copied) / 1000);
}

/*
 * Towards the end chunks get smaller, so that the copy workers end together.
 */
static int64
share_of_rest(const CopyState *state, const CopyTable *table, int64 rows)
{
	int64		left = rows_left(state, table);

	if (left == 0 || bg_copy_workers < 2)
		return rows;
	return Min(rows, Max(left / (2 * bg_copy_workers), LAST_CHUNK_ROWS));
}

/*
 * Fill in the first gap's beginning as the job.
 */
static void
cut_chunk(CopyState *state, CopyTable *table, CopyJob *job)
{
	ChunkDirectory *directory = table->directory;
	bool		first = directory->nchunks == 0;
	int64		rows = chunk_rows(table->stats);

	job->rows = table->stats->estimated_rows;
	if (directory->space->nkeys == 0)
		return;
	if (first && (table->stats->estimated_rows <= rows ||
				  !copy_save_indexes(state, table)))
		return;
	job->rows = share_of_rest(state, table, rows);
	job->upper = copy_find_upper(table, job->lower, job->upper, job->rows);
}

static void
set_bound(char *target, bool *has, KeySpace *space, const Datum *key)
{
	char	   *literal;

	*has = key != NULL;
	if (key == NULL)
		return;
	literal = keyspace_key_to_literal(space, key);
	if (strlen(literal) >= BG_BOUND_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("key of a chunk is longer than %d bytes",
						BG_BOUND_SIZE),
				 errhint("Set bluegreen.copy_chunk_rows so high that the table is copied in one chunk.")));
	strlcpy(target, literal, BG_BOUND_SIZE);
}

/*
 * Announce the job's chunk: before its snapshot is taken.
 */
static void
announce(CopyState *state, const CopyJob *job)
{
	CopyShared	mine = *state->slot;
	KeySpace   *space = job->table->directory->space;

	mine.mapping = job->table->transform->row->id;
	mine.committing = false;
	mine.generation = job->generation;
	mine.number = job->number;
	mine.key_only = job->key_only;
	mine.lsn = InvalidXLogRecPtr;
	mine.started_at = GetCurrentTimestamp();
	mine.planned_rows = job->rows;
	mine.rows = 0;
	set_bound(mine.lower, &mine.has_lower, space, job->lower);
	set_bound(mine.upper, &mine.has_upper, space, job->upper);

	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	*state->slot = mine;
	state->shared->chunk_version++;
	if (job->key_only)
		state->shared->recopy.mapping = 0;
	LWLockRelease(shared_chunk_lock());
}

/*
 * Take the announcement back: the chunk is finished or given up.
 */
void
copy_withdraw(CopyState *state)
{
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	state->slot->mapping = 0;
	state->slot->building = 0;
	state->slot->committing = false;
	state->shared->chunk_version++;
	LWLockRelease(shared_chunk_lock());
	ConditionVariableBroadcast(&state->shared->changed);
	stream_wake(state->shared);
}

/*
 * Does a copy worker build indexes of the mapping's target?
 */
bool
copy_is_claimed(const StreamShared *shared, int32 mapping)
{
	bool		claimed = false;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
		claimed |= shared->copy[i].building == mapping;
	LWLockRelease(shared_chunk_lock());
	return claimed;
}

/*
 * Build the table's indexes, and keep other copy workers from it until
 * copy_withdraw().
 */
static CopyStep
claim(CopyState *state, const CopyTable *table, CopyStep step)
{
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	state->slot->building = table->transform->row->id;
	LWLockRelease(shared_chunk_lock());
	return step;
}

/*
 * Does the stream want the table's key?  If it has it already, say so.
 */
static bool
key_is_wanted(CopyState *state, CopyTable *table)
{
	bool		wanted;

	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	wanted = table->stats->key_wanted;
	if (wanted && !table->directory->key_aside)
	{
		table->stats->key_wanted = false;
		state->shared->chunk_version++;
	}
	LWLockRelease(shared_chunk_lock());
	if (wanted && !table->directory->key_aside)
	{
		ConditionVariableBroadcast(&state->shared->changed);
		stream_wake(state->shared);
	}
	return wanted && table->directory->key_aside;
}

/*
 * The target can be without the key's index until the last chunk is there, or
 * until the stream has something to apply.
 */
static bool
key_is_due(CopyState *state, CopyTable *table)
{
	bool		wanted = key_is_wanted(state, table);

	return table->directory->key_aside &&
		(wanted || table->staged || table->directory->complete);
}

/*
 * Is the table to wait for those of other mappings?
 */
static bool
must_wait(const CopyState *state, const CopyTable *table)
{
	MappingRow *row = table->transform->row;
	ListCell   *lc;

	if (!mapping_copied_late(row))
		return false;
	foreach(lc, state->tables)
	{
		CopyTable  *other = lfirst(lc);

		if (mapping_copied_after(row, other->transform->row) &&
			other->stats->state != TABLE_STREAMING)
			return true;
	}
	return false;
}

static void
begin_table(CopyState *state, CopyTable *table)
{
	TableShared *stats = table->stats;

	if (stats->state == TABLE_COPYING)
		return;
	copy_estimate_source(table);
	if (stats->copy_started_at == 0)
		stats->copy_started_at = GetCurrentTimestamp();
	stats->state = TABLE_COPYING;
	event_record(MyDatabaseId, state->deployment->id, EVENT_COPY_STARTED,
				 InvalidXLogRecPtr,
				 psprintf("copying \"%s\" to \"%s\"",
						  get_rel_name(table->transform->row->source),
						  mapping_target_name(table->transform->row)),
				 NULL);
}

/*
 * Look at one table.  COPY_DONE here means: nothing to do for this one.
 */
static CopyStep
plan_table(CopyState *state, CopyTable *table, CopyJob *job)
{
	ChunkDirectory *directory = table->directory;
	XLogRecPtr	applied = InvalidXLogRecPtr;

	if (table->stats->state == TABLE_STREAMING)
		return COPY_DONE;
	if (must_wait(state, table) ||
		copy_is_claimed(state->shared, table->transform->row->id))
		return COPY_WAIT;
	chunk_directory_load(directory, state->peer, state->origin, state->shared);
	memset(job, 0, sizeof(*job));
	job->table = table;
	job->generation = directory->generation;
	job->number = directory->next_number;
	if (directory->complete)
	{
		table->stats->state = TABLE_CATCHING_UP;
		table->stats->copied_until = directory->copied_until;
		SpinLockAcquire(&state->shared->mutex);
		applied = state->shared->applied_lsn;
		SpinLockRelease(&state->shared->mutex);
	}
	if (key_is_due(state, table))
		return directory->announced ? COPY_WAIT : claim(state, table, COPY_KEY);
	if (directory->complete)
		return applied >= directory->copied_until ?
			claim(state, table, COPY_FINISH) : COPY_WAIT;
	if (!chunk_first_gap(directory, &job->lower, &job->upper))
		return COPY_WAIT;		/* others are at the rest of it */
	begin_table(state, table);
	cut_chunk(state, table, job);
	announce(state, job);
	return COPY_CHUNK;
}

/*
 * A key that the stream wants to have copied again comes before everything;
 * what is on the target is looked for by its index.  COPY_DONE here means: there
 * is none.
 */
static CopyStep
plan_recopy(CopyState *state, CopyJob *job)
{
	RecopyRequest request;
	ListCell   *lc;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	request.mapping = state->shared->recopy.mapping;
	if (request.mapping != 0)
		strlcpy(request.key, state->shared->recopy.key, sizeof(request.key));
	LWLockRelease(shared_chunk_lock());
	if (request.mapping == 0)
		return COPY_DONE;
	foreach(lc, state->tables)
	{
		CopyTable  *table = lfirst(lc);

		if (table->transform->row->id != request.mapping)
			continue;
		if (copy_is_claimed(state->shared, request.mapping))
			return COPY_WAIT;
		chunk_directory_load(table->directory, state->peer, state->origin,
							 state->shared);
		memset(job, 0, sizeof(*job));
		job->table = table;
		job->generation = table->directory->generation;
		job->number = table->directory->next_number;
		if (table->directory->key_aside)
			return table->directory->announced ? COPY_WAIT :
				claim(state, table, COPY_KEY);
		job->key_only = true;
		job->upper = keyspace_key_from_literal(table->directory->space,
											   request.key);
		announce(state, job);
		return COPY_CHUNK;
	}
	return COPY_DONE;
}

/*
 * Is it something to do?
 */
static bool
is_work(CopyStep step)
{
	return step != COPY_WAIT && step != COPY_DONE;
}

/*
 * Note which tables other copy workers are at.
 */
static void
find_crowded(CopyState *state)
{
	ListCell   *lc;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	foreach(lc, state->tables)
	{
		CopyTable  *table = lfirst(lc);

		table->crowded = false;
		for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
			table->crowded |= state->shared->copy[i].mapping ==
				table->transform->row->id;
	}
	LWLockRelease(shared_chunk_lock());
}

/*
 * Look for something to do in the tables that are crowded, or in the others.
 * Until then, step is what there was to do elsewhere.
 */
static CopyStep
plan_tables(CopyState *state, CopyJob *job, CopyStep step, bool crowded)
{
	ListCell   *lc;

	foreach(lc, state->tables)
	{
		CopyTable  *table = lfirst(lc);
		CopyStep	found;

		if (is_work(step))
			break;
		if (table->crowded != crowded)
			continue;
		found = plan_table(state, table, job);
		if (found != COPY_DONE)
			step = found;
	}
	return step;
}

/*
 * Decide what to do next, in a transaction of its own.  For COPY_CHUNK the
 * chunk has been announced; the job's bounds live in state->chunk_context.
 */
CopyStep
copy_plan(CopyState *state, CopyJob *job)
{
	CopyStep	result;
	MemoryContext old;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	old = MemoryContextSwitchTo(state->chunk_context);
	lock_planning(state);
	find_crowded(state);
	result = plan_recopy(state, job);
	result = plan_tables(state, job, result, false);
	result = plan_tables(state, job, result, true);
	MemoryContextSwitchTo(old);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->context);
	return result;
}
