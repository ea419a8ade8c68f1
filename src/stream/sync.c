/*-------------------------------------------------------------------------
 *
 * sync.c
 *		A stream's worker: from start to the decoding loop.
 *
 * The launcher starts one worker per slot of ours.  The worker
 *
 *	1. connects as the deployment's owner (owner.c), reads the deployment and
 *	   its mappings and compiles the transforms, in an ordinary transaction
 *	   under the current catalogs;
 *	2. connects to the peer, becomes the owner of the stream's replication
 *	   origin, reads how far the target is, and raises the generation of
 *	   tables that are not copied yet;
 *	3. acquires its slot, makes a decoding context that starts at the target's
 *	   progress, and decodes until it is told to stop.
 *
 * From 3 on it lives in decoding: no catalog of today, no table, no
 * transaction id.  Status goes to shared memory, events to the ring.  When
 * mappings change it ends and is started again, which takes some ten
 * milliseconds; at the latest at the very transaction that changed them, which
 * it finds in the WAL.  Any error ends the process: the launcher starts another one,
 * at once or with back-off, and it goes on from the target's progress.
 *
 * confirmed_flush ahead of the target's progress means that WAL which the
 * target needs may be gone: the slot was made anew, or the target was put
 * back.  The stream is lost then, and says so (core/lost.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "access/xlogutils.h"
#include "catalog/namespace.h"
#include "compat.h"
#include "core/event.h"
#include "core/lost.h"
#include "core/partition.h"
#include "core/place.h"
#include "core/switch_row.h"
#include "core/target.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "stream/copy.h"
#include "stream/progress.h"
#include "stream/repair_row.h"
#include "stream/standby.h"
#include "stream/sync.h"
#include "stream/verify.h"
#include "stream/window.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* WAL records between looks at the connection, and at everything else */
#define POLL_RECORDS	64
#define TICK_RECORDS	1024

/*
 * The stream is not to run: do not start it again until start() asks.
 */
static void
leave_alone(StreamWorker *worker)
{
	SpinLockAcquire(&worker->shared->mutex);
	worker->shared->stop_requested = true;
	SpinLockRelease(&worker->shared->mutex);
	stream_set_state(worker->shared, STREAM_STOPPED);
	proc_exit(0);
}

/*
 * Read the deployment and its mappings, and compile them.
 */
static void
load_mappings(StreamWorker *worker)
{
	StreamShared *shared = worker->shared;
	Deployment *deployment;
	ListCell   *lc;

	deployment = deployment_load(shared->deployment);
	if (deployment == NULL || deployment->desired != DESIRED_STARTED ||
		XLogRecPtrIsInvalid(deployment->slot_lsn))
	{
		if (deployment != NULL)
			window_watch_stopped(shared, deployment);
		leave_alone(worker);
	}
	if (deployment->owner != GetUserId())
		proc_exit(0);			/* the next worker finds out */
	worker_keep_owner(shared, deployment->name);
	source_check_place(deployment);
	worker->deployment = deployment;
	worker->rows = mappings_load(deployment->id, shared->direction);
	foreach(lc, worker->rows)
	{
		Transform  *transform = transform_compile(lfirst(lc));

		/* what decoding compares with must suffice by itself */
		transform_check_identity(transform);
		transform->number = list_length(worker->transforms);
		worker->transforms = lappend(worker->transforms, transform);
	}
	worker->partition_change = partition_change_relid();
	worker->repair_rows = repair_row_relid();
	worker->deployments =
		get_relname_relid("deployment", get_namespace_oid("bluegreen", false));
	worker->left_out = origin_filter_load(deployment);
	worker->origin = stream_origin_name(deployment->system_identifier,
										MyDatabaseId, deployment->id,
										shared->direction);
	worker->application_name =
		psprintf("%s %s", stream_application_name(deployment),
				 direction_name(shared->direction));
}

/*
 * State of each table as the target has it; and what it has copied of those
 * that it does not have yet.
 */
static void
load_table_states(StreamWorker *worker)
{
	const char *args[] = {worker->origin};
	PeerResult *result;

	result = peer_query(worker->peer,
						"SELECT t.mapping, t.state, "
						"COALESCE(c.row_count, 0), "
						"COALESCE(c.byte_count, 0), c.chunks, c.lsn "
						"FROM bluegreen.applied_table t CROSS JOIN LATERAL "
						"(SELECT pg_catalog.sum(row_count) AS row_count, "
						" pg_catalog.sum(byte_count) AS byte_count, "
						" pg_catalog.count(*) AS chunks, "
						" COALESCE(pg_catalog.max(lsn), '0/0') AS lsn "
						" FROM bluegreen.applied_chunk c "
						" WHERE c.stream = t.stream AND c.mapping = t.mapping) c "
						"WHERE t.stream = $1", 1, args);
	for (int i = 0; i < result->ntuples; i++)
	{
		char	  **values = result->values[i];
		TableShared *stats = table_shared_get(atoi(values[0]),
											  worker->deployment->id);

		stats->state = strcmp(values[1], "streaming") == 0 ?
			TABLE_STREAMING : TABLE_WAITING;
		pg_atomic_write_u64(&stats->copied_rows, strtoull(values[2], NULL, 10));
		pg_atomic_write_u64(&stats->copied_bytes, strtoull(values[3], NULL, 10));
		pg_atomic_write_u64(&stats->copied_chunks, strtoull(values[4], NULL, 10));
		stats->copied_until =
			DatumGetLSN(DirectFunctionCall1(pg_lsn_in,
											CStringGetDatum(values[5])));
	}
}

static bool
any_table_to_gate(const StreamWorker *worker)
{
	ListCell   *lc;

	foreach(lc, worker->rows)
	{
		MappingRow *row = lfirst(lc);

		if (!gate_is_passed(table_shared_get(row->id, row->deployment),
							worker->progress))
			return true;
	}
	return false;
}

/*
 * Connect to the peer, find out where it stands, and prepare to write to it.
 */
static void
connect_peer(StreamWorker *worker)
{
	Deployment *deployment = worker->deployment;

	worker->peer = peer_connect(deployment->server, deployment->owner,
								worker->application_name);
	peer_keep(worker->peer);
	target_check_peer(worker->peer);
	peer_on_connect_apply(worker->peer);
	progress_check_stream(worker->peer, worker->origin, deployment);
	progress_session_setup(worker->peer, worker->origin);
	progress_check_stream(worker->peer, worker->origin, deployment);
	worker->progress = progress_read(worker->peer);
	progress_take_over(worker->peer, worker->origin, deployment,
					   worker->progress);
	copy_stop_workers(worker->shared);
	window_load(worker);
	progress_register_tables(worker->peer, worker->origin, worker->rows);
	copy_forget_orphans(worker->shared);
	load_table_states(worker);
	/* not before the tables' states, which a verification looks at */
	SpinLockAcquire(&worker->shared->mutex);
	worker->shared->mapping_version = deployment->mapping_version;
	SpinLockRelease(&worker->shared->mutex);
	if (any_table_to_gate(worker))
	{
		worker->control = peer_connect(deployment->server, deployment->owner,
									   psprintf("%s control",
												worker->application_name));
		peer_keep(worker->control);
		peer_on_connect_apply(worker->control);
	}
	worker->gate = gate_create(worker->shared, worker->control,
							   worker->origin, worker->transforms,
							   worker->progress);
	worker->gate->settle = sink_settle;
	worker->gate->forget = sink_forget;
	worker->gate->settle_arg = worker;
	worker->batch = batch_create(worker->transforms);
	worker->apply = apply_create(worker->peer, worker->shared, worker->origin,
								 worker->transforms, worker->progress);
	if (worker->window)
		apply_open_window(worker->apply, worker->shared->direction,
						  worker->seen);
}

static void
check_slot(const StreamWorker *worker)
{
	LostReason	reason = lost_by_slot(worker->shared->slot_name);

	if (reason.message != NULL)
		lost_raise(&reason);
}

/*
 * Everything that needs a transaction.  What it makes lives in
 * worker->context.
 */
static void
prepare(StreamWorker *worker)
{
	StreamShared *shared = worker->shared;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(worker->context);
	window_end(shared);
	PopActiveSnapshot();
	CommitTransactionCommand();

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(worker->context);
	load_mappings(worker);
	switch_schedule(shared);
	if (routers_paused(shared->deployment))
		router_watch(shared->deployment);	/* whoever did that is gone */
	check_slot(worker);			/* whatever the peer is up to */
	window_prepare(worker);
	connect_peer(worker);
	verify_schedule(shared);
	PopActiveSnapshot();
	CommitTransactionCommand();

	/*
	 * This waits for a copy worker, which may have to wait for somebody who
	 * alters a source, who would wait for the locks that we had.
	 */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(worker->context);
	gate_finish_recopy(worker->gate);
	gate_finish_keys(worker->gate);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker->context);
}

/*
 * The slot is ours and valid, but has it been moved?
 */
static void
check_not_lost(const StreamWorker *worker)
{
	XLogRecPtr	confirmed = MyReplicationSlot->data.confirmed_flush;
	XLogRecPtr	target = Max(worker->progress, worker->deployment->slot_lsn);
	LostReason	reason;

	check_slot(worker);
	if (confirmed <= target)
		return;
	reason.message = "replication slot is ahead of the target";
	reason.detail = psprintf("Slot \"%s\" was confirmed up to %X/%X, but the target has only what came before %X/%X: the slot was made anew or advanced, or the target was put back.",
							 worker->shared->slot_name,
							 LSN_FORMAT_ARGS(confirmed),
							 LSN_FORMAT_ARGS(target));
	lost_raise(&reason);
}

/* The decoder's output functions: our sink writes, not they. */
static void
no_output(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid,
		  bool last_write)
{
	elog(ERROR, "a stream's worker has no output to write to");
}

/*
 * At exit, while the slot is still ours: remove what core has spilled of large
 * transactions.  It does so itself when the slot is decoded again, but that may
 * be much later, and the disk may be full.
 */
static void
remove_spilled(int code, Datum arg)
{
	char		path[MAXPGPATH * 2];
	DIR		   *dir;
	struct dirent *entry;

	if (MyReplicationSlot == NULL)
		return;
	snprintf(path, sizeof(path), "pg_replslot/%s",
			 NameStr(MyReplicationSlot->data.name));
	dir = AllocateDir(path);
	while ((entry = ReadDirExtended(dir, path, LOG)) != NULL)
	{
		if (strncmp(entry->d_name, "xid", 3) != 0)
			continue;
		snprintf(path, sizeof(path), "pg_replslot/%s/%s",
				 NameStr(MyReplicationSlot->data.name), entry->d_name);
		if (unlink(path) != 0)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
	FreeDir(dir);
}

/*
 * Acquire the slot and make the decoding context.
 */
static void
begin_decoding(StreamWorker *worker)
{
	ChangeSink	sink = {0};

	sink_init(worker, &sink);
	worker->decode = decode_create(worker->transforms, &sink);
	worker->decode->skip_lsn = worker->deployment->skip_lsn;
	worker->decode->partition_change = worker->partition_change;
	worker->decode->repair_rows = worker->repair_rows;
	worker->decode->deployments = worker->deployments;
	worker->decode->deployment = worker->deployment->id;
	worker->decode->mapping_version = worker->deployment->mapping_version;
	worker->decode->left_out = worker->left_out;
	worker->decode->left_out_from = worker->deployment->opposite_lsn;
	gate_init_decode(worker->gate, &worker->decode->gate);

	worker_use_decoding_memory();
	before_shmem_exit(remove_spilled, (Datum) 0);
	ReplicationSlotAcquire(worker->shared->slot_name, true, false);
	check_not_lost(worker);
	standby_attach(worker->shared);
	decode_attach(worker->decode);
	worker->decoding =
		CreateDecodingContext(worker->progress, NIL, false,
							  XL_ROUTINE(.page_read = reader_page,
										 .segment_open = wal_segment_open,
										 .segment_close = wal_segment_close),
							  no_output, no_output, NULL);
	reader_attach(worker);

	/*
	 * Decoding sees the catalogs of then: nothing that was cached of today's
	 * may be used for it.
	 */
	InvalidateSystemCaches();
	XLogBeginRead(worker->decoding->reader,
				  MyReplicationSlot->data.restart_lsn);
	worker->confirmed = MyReplicationSlot->data.confirmed_flush;
	worker->decoded = Max(worker->progress, worker->confirmed);

	/* the target may have been restarted, or we: it knows what it has */
	SpinLockAcquire(&worker->shared->mutex);
	worker->shared->told_lsn = worker->progress;
	worker->shared->token_lsn = Max(worker->shared->token_lsn,
									GetFlushRecPtr(NULL));
	SpinLockRelease(&worker->shared->mutex);
}

/*
 * Decode for ever.
 */
static void
decode_loop(StreamWorker *worker)
{
	XLogReaderState *reader = worker->decoding->reader;
	uint32		records = 0;

	for (;;)
	{
		char	   *message = NULL;
		XLogRecord *record = XLogReadRecord(reader, &message);

		if (message)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not decode WAL at %X/%X: %s",
							LSN_FORMAT_ARGS(reader->EndRecPtr), message)));
		if (record && worker->window)
			window_see(worker);
		if (record)
			LogicalDecodingProcessRecord(worker->decoding, reader);
		worker_check();
		if (++records % POLL_RECORDS == 0)
			(void) apply_poll(worker->apply);
		if (records % TICK_RECORDS != 0)
			continue;
		/* behind: look after things without waiting for the end of WAL */
		if (worker->shared->stop_requested || worker->shared->reload)
			reader_stop(worker);
		/* nothing of all that may have been for us */
		reader_publish(worker);
		reader_tick(worker);
	}
}

/*
 * Is the error a copy worker's, which the stream had to wait for?
 */
static bool
copy_has_failed(const StreamWorker *worker)
{
	return worker->gate != NULL && worker->gate->copy_failed;
}

/*
 * Fill in the stream's last error.  Only an error that will not pass by itself
 * belongs to a transaction: nobody shall skip one because of a connection.
 */
static void
note_error(StreamWorker *worker, const ErrorData *error)
{
	StreamShared *shared = worker->shared;
	StreamError *mine = &shared->error;
	const char *sqlstate = unpack_sql_state(error->sqlerrcode);
	const char *hint = error->hint ? error->hint : "";
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	const char *target = NULL;

	if (worker->decode && worker->decode->evaluating)
		target = mapping_target_name(worker->decode->evaluating->row);
	if (worker->decode && worker->decode->txn && !copy_has_failed(worker) &&
		!peer_sqlstate_is_transient(sqlstate))
		lsn = worker->current.commit_lsn;
	if (!XLogRecPtrIsInvalid(lsn) && error->hint == NULL)
		hint = psprintf("Remove the cause, or leave this transaction out with bluegreen.skip(%s, '%X/%X').",
						quote_literal_cstr(worker->deployment->name),
						LSN_FORMAT_ARGS(lsn));

	SpinLockAcquire(&shared->mutex);
	shared->failures++;
	shared->errors++;
	if (worker->decoding)
		shared->error_until = Max(shared->error_until,
								  worker->decoding->reader->EndRecPtr);
	mine->at = GetCurrentTimestamp();
	mine->lsn = lsn;
	if (!copy_has_failed(worker) &&
		(worker->apply == NULL || !worker->apply->blamed))
		mine->relation[0] = mine->key[0] = '\0';
	if (target != NULL)
	{
		shared_copy_text(mine->relation, sizeof(mine->relation), target);
		shared_copy_text(mine->key, sizeof(mine->key),
						 worker->decode->row_name->data);
	}
	strlcpy(mine->sqlstate, sqlstate, sizeof(mine->sqlstate));
	shared_copy_text(mine->message, sizeof(mine->message), error->message);
	shared_copy_text(mine->detail, sizeof(mine->detail),
					 error->detail ? error->detail : "");
	shared_copy_text(mine->hint, sizeof(mine->hint), hint);
	SpinLockRelease(&shared->mutex);
}

/*
 * A transaction cannot be decoded or transformed.  The careful path applies
 * what comes before it, some of which may still be in the batch, and names the
 * row, which costs too much to be done for every row.
 */
static void
blame_transaction(StreamWorker *worker, const ErrorData *error)
{
	StreamShared *shared = worker->shared;

	if (worker->decode == NULL || worker->decode->txn == NULL ||
		worker->careful || copy_has_failed(worker) ||
		peer_sqlstate_is_transient(unpack_sql_state(error->sqlerrcode)))
		return;
	SpinLockAcquire(&shared->mutex);
	shared->careful_until = worker->current.end_lsn;
	SpinLockRelease(&shared->mutex);
}

/*
 * Say what went wrong and end.  A batch that failed and goes the careful path
 * next is no error yet.
 */
static void
fail(StreamWorker *worker, XLogRecPtr careful_before)
{
	StreamShared *shared = worker->shared;
	ErrorData  *error = CopyErrorData();
	bool		lost = lost_was_raised();
	bool		retry_carefully;

	blame_transaction(worker, error);
	retry_carefully = !worker->careful &&
		shared->careful_until != careful_before;
	HOLD_INTERRUPTS();
	LWLockReleaseAll();
	EmitErrorReport();
	FlushErrorState();
	if (!retry_carefully && !shared->stop_requested && !shared->reload)
	{
		note_error(worker, error);
		event_record(MyDatabaseId, shared->deployment,
					 lost ? EVENT_LOST : EVENT_ERROR, shared->error.lsn,
					 error->message, error->detail);
		stream_set_state(shared, lost ? STREAM_LOST : STREAM_ERROR);
	}
	if (shared->stop_requested)
		stream_set_state(shared, STREAM_STOPPED);
	proc_exit(1);
}

/*
 * Copy workers do not outlive the stream's worker: the next one would have to
 * wait for them anyway.
 */
static void
end_copy_workers(int code, Datum arg)
{
	StreamWorker *worker = (StreamWorker *) DatumGetPointer(arg);

	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
		if (worker->shared->copy[i].pid != 0)
			kill(worker->shared->copy[i].pid, SIGTERM);
}

/*
 * Entry point of a stream's worker.
 */
void
bluegreen_stream_main(Datum arg)
{
	StreamShared *shared = worker_attach_stream(DatumGetInt32(arg));
	Oid			owner = worker_take_owner(shared);
	StreamWorker *worker;
	XLogRecPtr	careful_before = shared->careful_until;

	worker = MemoryContextAllocZero(TopMemoryContext, sizeof(StreamWorker));
	worker->shared = shared;
	worker->context = AllocSetContextCreate(TopMemoryContext,
											"pg_bluegreen stream",
											ALLOCSET_DEFAULT_SIZES);
	worker_start(shared->dboid, owner, "pg_bluegreen stream");
	SpinLockAcquire(&shared->mutex);
	shared->claimed = true;
	SpinLockRelease(&shared->mutex);
	before_shmem_exit(end_copy_workers, PointerGetDatum(worker));
	MemoryContextSwitchTo(worker->context);
	PG_TRY();
	{
		if (!OidIsValid(owner))
			worker_find_owner(shared);
		prepare(worker);
		begin_decoding(worker);
		decode_loop(worker);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(worker->context);
		fail(worker, careful_before);
	}
	PG_END_TRY();
}
