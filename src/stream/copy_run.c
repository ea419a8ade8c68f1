/*-------------------------------------------------------------------------
 *
 * copy_run.c
 *		Copy one chunk: from the source's executor to the peer's COPY.
 *
 * Order matters:
 *	1. the range is announced already (copy_plan.c);
 *	2. lock the source ACCESS SHARE, so that no rewrite can come between;
 *	3. take S, in a read-only REPEATABLE READ transaction;
 *	4. note P, a position after S, and make it durable: a commit that S sees
 *	   may be asynchronous, and the source must not lose what the target has;
 *	   for the same reason standbys have it before the target commits;
 *	5. on the target, hold the table's row FOR SHARE and check its generation,
 *	   copy, insert the chunk's row with S and P, commit;
 *	6. take the announcement back.
 *
 * Rows that may meet others of the same key on the target (merge, patch, an
 * upserting mirror, a mirror beside a merge, a key that is copied again) go
 * through a temporary table, numbered in commit order, of which the last row
 * of each key counts.
 *
 * A patch updates rows that other mappings put there, so everything that S
 * sees must be on the target first.  For it, writers of the source are locked
 * out for the moment in which S and P are taken: then every change that S does
 * not see lies behind P, the stream can pass P without touching the chunk,
 * and the copy waits until it has.  The same holds for a mapping with a lookup,
 * which finds what other mappings put there; its rows go through a temporary
 * table, too, and from there through the lookup.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xlog.h"
#include "catalog/pg_inherits.h"
#include "compat.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "stream/copy.h"
#include "stream/relation.h"
#include "stream/standby.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define STANDBY_TIMEOUT	10000	/* ms that a chunk waits for a standby */
#define WRITER_LOCK_TIMEOUT	"300ms"

/*
 * Run the chunk's query under S, as the mapping's owner.
 */
static void
run_query(CopyReceiver *receiver, const CopyJob *job, TimestampTz moment)
{
	Query	   *query = copy_build_query(job, moment);
	int			guc_level = NewGUCNestLevel();
	QueryDesc  *desc;
	PlannedStmt *plan;
	Oid			userid;
	int			sec_context;

	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(job->table->transform->row->owner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);
	plan = pg_plan_query(query, "pg_bluegreen copy", 0, NULL);
	desc = CreateQueryDesc(plan, "pg_bluegreen copy", GetActiveSnapshot(),
						   InvalidSnapshot, &receiver->pub, NULL, NULL, 0);
	receiver->state->job = *job;
	receiver->state->evaluating = true;
	ExecutorStart(desc, 0);
	executor_run(desc, ForwardScanDirection, 0);
	ExecutorFinish(desc);
	receiver->state->evaluating = false;
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(userid, sec_context);
}

/*
 * Evaluate the transform over one row.  For the error that it may raise.
 */
static void
try_row(Transform *transform)
{
	Datum	   *values = palloc_array(Datum, transform->ncolumns);
	bool	   *isnull = palloc_array(bool, transform->ncolumns);
	bool	   *missing = palloc_array(bool, transform->ncolumns);

	if (transform_filter(transform))
		transform_row(transform, NULL, values, isnull, missing);
}

/*
 * Try the chunk's rows one by one; name is the row that is being tried.
 */
static void
try_rows(const CopyJob *job, StringInfo name)
{
	Transform  *transform = job->table->transform;
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext,
													  "pg_bluegreen row",
													  ALLOCSET_DEFAULT_SIZES);
	StringInfoData sql;
	Portal		portal;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT *");
	copy_append_range(&sql, job->table, job->lower, job->upper);
	SPI_connect();
	portal = SPI_cursor_open_with_args(NULL, sql.data, 0, NULL, NULL, NULL,
									   true, 0);
	SetUserIdAndSecContext(transform->row->owner,
						   SECURITY_RESTRICTED_OPERATION);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, 1000);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(row_context);

			CHECK_FOR_INTERRUPTS();
			transform_fill_slot(transform, SPI_tuptable->vals[i],
								SPI_tuptable->tupdesc, 1);
			change_describe_source(name, transform);
			try_row(transform);
			MemoryContextSwitchTo(old);
			MemoryContextReset(row_context);
		}
		SPI_freetuptable(SPI_tuptable);
	}
}

/*
 * The transform has failed for some row of the chunk, and the executor does
 * not say for which.  Find it, in a transaction of its own, that is rolled
 * back.  NULL if it does not fail again.
 */
char *
copy_find_failing_row(CopyState *state)
{
	StringInfo	name = makeStringInfo();
	volatile bool found = false;

	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(state->context);
	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		try_rows(&state->job, name);
	}
	PG_CATCH();
	{
		FlushErrorState();
		found = true;
	}
	PG_END_TRY();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(state->context);
	return found ? name->data : NULL;
}

static char *
column_list(const CopyTable *table, const char *prefix)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < table->transform->ncolumns; i++)
		appendStringInfo(&list, "%s%s%s", i > 0 ? ", " : "", prefix,
						 quote_identifier(table->transform->columns[i].def->name));
	return list.data;
}

static char *
key_columns(const CopyTable *table, const char *prefix)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int k = 0; k < table->transform->nkeys; k++)
		appendStringInfo(&list, "%s%s%s", k > 0 ? ", " : "", prefix,
						 quote_identifier(table->transform->columns[table->transform->keys[k]].def->name));
	return list.data;
}

/*
 * The type of a column of the stage: as it travels, so that nothing is checked
 * before merge_stage() makes it the target's.
 */
static char *
stage_type(const CopyTable *table, int i)
{
	const TransformColumn *column = &table->transform->columns[i];

	if (column->def->wire == WIRE_TEXT)
		return "pg_catalog.text";
	/* "no length", see transform.c: a plain char would be one of length 1 */
	return format_type_extended(column->type, -1, FORMAT_TYPE_TYPEMOD_GIVEN |
								FORMAT_TYPE_FORCE_QUALIFY);
}

static void
create_stage(CopyState *state, const CopyTable *table)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "CREATE TEMPORARY TABLE bluegreen_stage (");
	for (int i = 0; i < table->transform->ncolumns; i++)
		appendStringInfo(&sql, "%s %s, ",
						 quote_identifier(table->transform->columns[i].def->name),
						 stage_type(table, i));
	appendStringInfoString(&sql, "bluegreen_ordinal bigint "
						   "GENERATED ALWAYS AS IDENTITY) ON COMMIT DROP");
	peer_command(state->peer, sql.data);
}

/*
 * The staged rows as the target's types.
 */
static char *
staged_rows(const CopyTable *table)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "(SELECT ");
	for (int i = 0; i < table->transform->ncolumns; i++)
	{
		const MappingColumn *def = table->transform->columns[i].def;

		appendStringInfo(&sql, "%s::%s AS %s, ", quote_identifier(def->name),
						 def->type, quote_identifier(def->name));
	}
	appendStringInfoString(&sql, "bluegreen_ordinal "
						   "FROM pg_temp.bluegreen_stage) AS staged");
	return sql.data;
}

/*
 * The SET list of an upsert or patch from a source of the same column names.
 */
static char *
set_list(const CopyTable *table, const char *from)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < table->transform->ncolumns; i++)
	{
		const MappingColumn *def = table->transform->columns[i].def;

		if (def->is_key || table->writer->always_identity[i])
			continue;
		appendStringInfo(&list, "%s%s = %s.%s", list.len > 0 ? ", " : "",
						 quote_identifier(def->name), from,
						 quote_identifier(def->name));
	}
	return list.data;
}

/*
 * A key that is copied again has, as far as S sees, no row but the one that is
 * staged, if any.  What the target has is older, or another mapping's.  The
 * key's columns are the chunk key's.
 */
static void
delete_key(CopyState *state, const CopyJob *job)
{
	Transform  *transform = job->table->transform;
	KeySpace   *space = job->table->directory->space;
	const char **args = palloc_array(const char *, transform->nkeys);
	StringInfoData sql;

	if (transform->row->target_shared)
		return;
	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s WHERE ", job->table->writer->name);
	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = &transform->columns[transform->keys[k]];
		int			i = 0;

		while (space->attnos[i] != column->source_attno)
			i++;
		args[k] = OutputFunctionCall(&space->output[i], job->upper[i]);
		/* text until it is executed: a literal would be checked before */
		appendStringInfo(&sql, "%s%s %s $%d::pg_catalog.text::%s",
						 k > 0 ? " AND " : "",
						 quote_identifier(column->def->name),
						 job->table->writer->key_operator[k], k + 1,
						 column->def->type);
	}
	(void) peer_query(state->peer, sql.data, transform->nkeys, args);
}

/*
 * Write the staged rows to the target, the last row of each key.
 */
static void
merge_stage(CopyState *state, const CopyTable *table)
{
	Transform  *transform = table->transform;
	char	   *keys = key_columns(table, "");
	char	   *latest;
	StringInfoData sql;

	latest = psprintf("SELECT DISTINCT ON (%s) %s FROM %s "
					  "ORDER BY %s, bluegreen_ordinal DESC",
					  keys, column_list(table, ""), staged_rows(table), keys);
	initStringInfo(&sql);
	if (transform->row->on_write == ON_WRITE_PATCH)
	{
		if (set_list(table, "s")[0] == '\0')
			return;				/* nothing to set */
		appendStringInfo(&sql, "UPDATE %s AS t SET %s FROM (%s) AS s WHERE ",
						 table->writer->name, set_list(table, "s"), latest);
		for (int k = 0; k < transform->nkeys; k++)
		{
			const char *name = quote_identifier(transform->columns[transform->keys[k]].def->name);

			appendStringInfo(&sql, "%st.%s %s s.%s", k > 0 ? " AND " : "",
							 name, table->writer->key_operator[k], name);
		}
	}
	else
	{
		appendStringInfo(&sql, "INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE %s "
						 "ON CONFLICT (%s) DO ", table->writer->name,
						 column_list(table, ""), latest, keys);
		if (set_list(table, "EXCLUDED")[0] == '\0')
			appendStringInfoString(&sql, "NOTHING");
		else
			appendStringInfo(&sql, "UPDATE SET %s", set_list(table, "EXCLUDED"));
	}
	peer_command(state->peer, sql.data);
}

/*
 * Write what the lookup makes of the staged rows.
 */
static void
look_up_stage(CopyState *state, const CopyTable *table)
{
	StringInfoData incoming;
	StringInfoData sql;

	initStringInfo(&incoming);
	initStringInfo(&sql);
	appendStringInfo(&incoming, "SELECT %s, bluegreen_ordinal FROM %s",
					 column_list(table, "staged."), staged_rows(table));
	if (lookup_build_copy(&sql, table->writer, incoming.data,
						  "(SELECT pg_catalog.count(*) "
						  "FROM pg_temp.bluegreen_stage)"))
		peer_command(state->peer, sql.data);
}

/*
 * Is the generation still the one that the chunk was planned under?  Holds it
 * until the target commits.
 */
static bool
hold_generation(CopyState *state, const CopyJob *job)
{
	const char *args[] = {state->origin,
	psprintf("%d", job->table->transform->row->id)};
	PeerResult *result;

	result = peer_query(state->peer,
						"SELECT generation FROM bluegreen.applied_table "
						"WHERE stream = $1 AND mapping = $2::integer FOR SHARE",
						2, args);
	return result->ntuples == 1 &&
		strtoll(result->values[0][0], NULL, 10) == job->generation;
}

static char *
bound_literal(const CopyJob *job, const Datum *key)
{
	return key == NULL ? NULL :
		keyspace_key_to_literal(job->table->directory->space, key);
}

static char *
snapshot_text(void)
{
	return OidOutputFunctionCall(F_PG_SNAPSHOT_OUT,
								 DirectFunctionCall1(pg_current_snapshot,
													 (Datum) 0));
}

/*
 * The chunk's row, on the target in the transaction of its data.
 */
static void
record_chunk(CopyState *state, const CopyJob *job,
			 const CopyReceiver *receiver, const char *snapshot, XLogRecPtr p)
{
	const char *args[] = {
		state->origin,
		psprintf("%d", job->table->transform->row->id),
		psprintf("%d", job->number),
		psprintf(INT64_FORMAT, job->generation),
		bound_literal(job, job->lower),
		bound_literal(job, job->upper),
		job->key_only ? "true" : "false",
		snapshot,
		psprintf("%X/%X", LSN_FORMAT_ARGS(p)),
		psprintf(INT64_FORMAT, receiver->rows),
		psprintf(INT64_FORMAT, receiver->bytes),
		timestamptz_to_str(state->slot->started_at)
	};

	peer_query(state->peer,
			   "INSERT INTO bluegreen.applied_chunk (stream, mapping, number, "
			   "generation, lower, upper, key_only, snapshot, lsn, row_count, "
			   "byte_count, started_at) VALUES ($1, $2::integer, $3::integer, "
			   "$4::bigint, $5::text[], $6::text[], $7::boolean, "
			   "$8::pg_snapshot, $9::pg_lsn, $10::bigint, $11::bigint, "
			   "$12::timestamptz)", lengthof(args), args);
}

/*
 * Wait until everything that S sees is on the target.
 */
static void
wait_for_stream(CopyState *state, XLogRecPtr p)
{
	StreamShared *shared = state->shared;
	XLogRecPtr	applied;

	ConditionVariablePrepareToSleep(&shared->changed);
	for (;;)
	{
		SpinLockAcquire(&shared->mutex);
		applied = shared->applied_lsn;
		SpinLockRelease(&shared->mutex);
		if (applied >= p)
			break;
		stream_wake(shared);
		ConditionVariableTimedSleep(&shared->changed, 1000,
									PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/*
 * Copy the rows into the target's open transaction.
 */
static void
copy_rows(CopyState *state, const CopyJob *job, CopyReceiver *receiver,
		  XLogRecPtr p)
{
	CopyTable  *table = job->table;
	bool		staged = table->staged || job->key_only;
	TimestampTz moment = GetCurrentTimestamp();

	if (staged)
		create_stage(state, table);
	if (job->key_only)
	{
		/* the stream waits, maybe with locks on this very row */
		peer_command(state->peer, "SET LOCAL lock_timeout = '300ms'");
		delete_key(state, job);
	}
	peer_copy_begin(state->peer,
					psprintf("COPY %s (%s) FROM STDIN (FORMAT %s)",
							 staged ? "pg_temp.bluegreen_stage" :
							 table->writer->name, column_list(table, ""),
							 table->binary ? "binary" : "text"));
	transform_moment.commit_time = moment;
	transform_moment.commit_lsn = p;
	run_query(receiver, job, moment);
	peer_copy_end(state->peer);
	if (mapping_copied_late(table->transform->row))
		wait_for_stream(state, p);
	if (table->writer->lookup)
		look_up_stage(state, table);
	else if (staged)
		merge_stage(state, table);
}

/*
 * Lock the source and its partitions against rewrites.
 */
static void
lock_source(const CopyTable *table)
{
	Relation	source;
	Misfit		misfit;

	source = table_open(table->transform->row->source, AccessShareLock);
	(void) find_all_inheritors(table->transform->row->source,
							   AccessShareLock, NULL);
	misfit = relation_find_misfit(table->transform, source);
	if (misfit.column != NULL)
		relation_refuse(table->transform, &misfit);
	table_close(source, NoLock);
}

/*
 * Keep writers of the source out.  Waits only shortly in the lock queue, since
 * the application queues behind us; false if that was not enough.
 */
static bool
lock_out_writers(const CopyTable *table)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool locked = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		(void) set_config_option("lock_timeout", WRITER_LOCK_TIMEOUT,
								 PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_LOCAL,
								 true, 0, false);
		LockRelationOid(table->transform->row->source, ShareLock);
		(void) find_all_inheritors(table->transform->row->source, ShareLock,
								   NULL);
		ReleaseCurrentSubTransaction();
		locked = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(old);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return locked;
}

static void
let_writers_in(const CopyTable *table)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(table->transform->row->source, NoLock,
									NULL))
		UnlockRelationOid(lfirst_oid(lc), ShareLock);
}

/*
 * Take S and P.  False if writers could not be kept out, where that matters.
 */
static bool
take_snapshot(CopyState *state, const CopyJob *job, XLogRecPtr *p)
{
	bool		late = mapping_copied_late(job->table->transform->row);

	lock_source(job->table);
	if (late && !lock_out_writers(job->table))
		return false;
	PushActiveSnapshot(GetTransactionSnapshot());
	*p = LogLogicalMessage("bluegreen", "", 0, false, false);
	if (late)
	{
		LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
		state->slot->lsn = *p;
		state->shared->chunk_version++;
		LWLockRelease(shared_chunk_lock());
		let_writers_in(job->table);
		stream_wake(state->shared);
	}
	XLogFlush(*p);
	return true;
}

/*
 * A chunk is finished.  If the copy had failed, it has not any more.
 */
static void
count_chunk(StreamShared *shared, const CopyJob *job,
			const CopyReceiver *receiver)
{
	TableShared *stats = job->table->stats;

	pg_atomic_fetch_add_u64(&stats->copied_rows, receiver->rows);
	pg_atomic_fetch_add_u64(&stats->copied_bytes, receiver->bytes);
	pg_atomic_fetch_add_u64(&stats->copied_chunks, 1);
	copy_succeeded(shared);
	SpinLockAcquire(&shared->mutex);
	if (shared->copy_failed && shared->state == STREAM_COPYING)
	{
		shared->copy_failed = false;
		shared->error.at = 0;
		shared->failures = 0;
	}
	SpinLockRelease(&shared->mutex);
}

/*
 * Copy the announced chunk and take the announcement back.  False if it was
 * given up and should be planned again: the table's generation was raised,
 * writers could not be kept out for a moment, or a standby did not receive P in
 * time.  Errors end the worker, and
 * leave nothing on the target.
 */
bool
copy_chunk(CopyState *state, const CopyJob *job)
{
	CopyReceiver *receiver;
	XLogRecPtr	p = InvalidXLogRecPtr;
	char	   *snapshot;
	bool		done = false;

	/* if one is away, better without a snapshot */
	(void) standby_wait(state->shared, GetFlushRecPtr(NULL), -1);
	StartTransactionCommand();
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;
	MemoryContextSwitchTo(state->chunk_context);
	receiver = copy_receiver_create(state, job->table);
	if (take_snapshot(state, job, &p))
	{
		snapshot = snapshot_text();
		peer_command(state->peer, "BEGIN");
		if (hold_generation(state, job))
		{
			copy_rows(state, job, receiver, p);
			record_chunk(state, job, receiver, snapshot, p);
			done = standby_wait(state->shared, p, STANDBY_TIMEOUT);
		}
		state->slot->committing = done;
		peer_command(state->peer, done ? "COMMIT" : "ROLLBACK");
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->chunk_context);
	if (done)
	{
		count_chunk(state->shared, job, receiver);
		copy_log_chunk(state, job, receiver->rows, receiver->bytes, snapshot,
					   p);
	}
	copy_withdraw(state);
	return done;
}
