/*-------------------------------------------------------------------------
 *
 * watch.c
 *		In a window: read this side's WAL for its own changes.
 *
 * A process for each stream, with a slot of its own beside the stream's, which
 * is copied from that when the window is opened.  It decodes what the stream
 * decodes, and leaves out what the stream leaves out, but only enters the keys
 * in the table of own_changes.c, so nothing can hold it up.
 *
 * What the other side has seen is taken out again, in the order of commits, and
 * then the slot may let go of its WAL.  After a crash the process begins with
 * the first change that the other side had not seen.
 *
 * It ends when the stream's mappings change, and when the window is closed: then
 * StreamShared.watch_wanted is not what it has compiled.  The stream's worker
 * starts it, and the launcher if it is gone.  While it runs StreamShared.window_since is set: that is what
 * open_window() waits for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "compat.h"
#include "core/clock.h"
#include "core/worker.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "stream/own_changes.h"
#include "stream/watch.h"
#include "stream/window.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define IDLE_MS 200L
#define CONFIRM_MS 1000
#define PUBLISH_RECORDS 64

/* From one start to the next: it reads much WAL to begin with. */
#define DELAY_MS	500
#define MAX_DELAY_MS	8000
#define QUIET_MS	60000

/* The last change of a key, in a list in the order of commits. */
typedef struct Watched
{
	OwnKey		key;			/* hash key */
	XLogRecPtr	lsn;			/* end of its commit */
	XLogRecPtr	commit_lsn;		/* its begin */
	dlist_node	node;
} Watched;

typedef struct Watch
{
	StreamShared *shared;
	Deployment *deployment;
	List	   *transforms;
	OwnHasher **hashers;		/* by transform; NULL: no key */
	int		   *deciders;		/* by transform: attribute of its source that
								 * decides, or 0 */
	DecodeState *decode;
	LogicalDecodingContext *decoding;
	HTAB	   *entries;		/* of Watched */
	dlist_head	changes;
	XLogRecPtr	confirmed;
	TimestampTz next_confirm;
} Watch;

static Watch *the_watch = NULL;

/*
 * The name of the slot beside a stream's.
 */
void
watch_slot_name(char *buf, const char *stream_slot)
{
	snprintf(buf, NAMEDATALEN, "%s_own", stream_slot);
}

/* ---- changes ---- */

static void
enter(Watch *watch, const OwnChange *change, XLogRecPtr commit_lsn)
{
	Watched    *watched;
	bool		found;

	if (change->lsn <= own_seen())
		return;					/* nobody will ask for it */
	own_enter(change);
	watched = hash_search(watch->entries, &change->key, HASH_ENTER, &found);
	if (found)
		dlist_delete(&watched->node);
	watched->lsn = change->lsn;
	watched->commit_lsn = commit_lsn;
	dlist_push_tail(&watch->changes, &watched->node);
}

/*
 * A value of the source's column in one of the tuples; what the new one left
 * out, because it is stored elsewhere and did not change, is in the old one.
 */
static Datum
value_of(const RelationTransform *bound, const DeformedTuple *tuple,
		 const DeformedTuple *old, AttrNumber attnum, bool *isnull)
{
	AttrNumber	here = bound->attrmap ? bound->attrmap[attnum - 1] : attnum;

	*isnull = here == 0 || tuple->isnull[here - 1];
	if (*isnull)
		return (Datum) 0;
	if (old != NULL && !old->isnull[here - 1] &&
		TupleDescAttr(bound->transform->source_desc,
					  attnum - 1)->attlen == -1 &&
		VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(tuple->values[here - 1])))
		return old->values[here - 1];
	return tuple->values[here - 1];
}

/*
 * Hash the key of a tuple; false if it has none.
 */
static bool
hash_tuple(OwnHasher *hasher, const RelationTransform *bound,
		   const DeformedTuple *tuple, const DeformedTuple *old, OwnKey *key)
{
	const AttrNumber *attnums;
	int			n = own_hasher_columns(hasher, &attnums);
	Datum	   *values = palloc_array(Datum, n);

	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		values[i] = value_of(bound, tuple, old, attnums[i], &isnull);
		if (isnull)
			return false;
	}
	own_hash(hasher, bound->transform->row->source, values, key);
	return true;
}

/*
 * The change of one source, which may be the root of the relation.
 */
static void
watch_source(Watch *watch, const RelationTransform *bound,
			 const DeformedTuple *new, const DeformedTuple *old)
{
	int			number = bound->transform->number;
	OwnHasher  *hasher = watch->hashers[number];
	ReorderBufferTXN *txn = watch->decode->txn;
	OwnChange	change = {
		.lsn = txn->end_lsn,
		.commit_time = clock_shifted(txn->xact_time.commit_time),
		.value = PG_INT64_MIN
	};
	OwnKey		old_key;
	bool		has_old;

	if (watch->deciders[number] > 0)
	{
		AttrNumber	decider = watch->deciders[number];
		bool		isnull;
		Datum		value = value_of(bound, new ? new : old, NULL, decider,
									 &isnull);

		change.value = window_value_rank(TupleDescAttr(bound->transform->source_desc,
												 decider - 1)->atttypid,
								   value, isnull);
	}
	has_old = old != NULL && hash_tuple(hasher, bound, old, NULL, &old_key);
	if (new != NULL && hash_tuple(hasher, bound, new, old, &change.key))
	{
		enter(watch, &change, txn->final_lsn);
		has_old = has_old &&
			memcmp(&old_key, &change.key, sizeof(OwnKey)) != 0;
	}
	if (!has_old)
		return;
	change.key = old_key;
	change.deleted = true;
	enter(watch, &change, txn->final_lsn);
}

/*
 * The plugin's change callback, in a process that watches.
 */
void
watch_change(DecodeState *state, RelationEntry *entry, Relation relation,
			 ReorderBufferChange *change)
{
	TupleDesc	desc = RelationGetDescr(relation);
	HeapTuple	new = change_new_tuple(change);
	HeapTuple	old = change_old_tuple(change);
	Oid			source = InvalidOid;

	if (new)
		heap_deform_tuple(new, desc, entry->new.values, entry->new.isnull);
	if (old)
		heap_deform_tuple(old, desc, entry->old.values, entry->old.isnull);
	for (int i = 0; i < entry->ntransforms; i++)
	{
		const RelationTransform *bound = &entry->transforms[i];

		if (bound->misfit.column != NULL ||
			the_watch->hashers[bound->transform->number] == NULL ||
			bound->transform->row->source == source)
			continue;
		source = bound->transform->row->source;
		watch_source(the_watch, bound, new ? &entry->new : NULL,
					 old ? &entry->old : NULL);
	}
}

/* ---- what the other side has seen ---- */

static void
forget_seen(Watch *watch)
{
	XLogRecPtr	seen = own_seen();

	while (!dlist_is_empty(&watch->changes))
	{
		Watched    *watched = dlist_head_element(Watched, node,
												 &watch->changes);
		OwnKey		key = watched->key;

		if (watched->lsn > seen)
			break;
		own_forget(&key, watched->lsn);
		dlist_delete(&watched->node);
		(void) hash_search(watch->entries, &key, HASH_REMOVE, NULL);
	}
}

/*
 * Between two records: tell who waits how far this is, and the slot what is
 * needed no more.
 */
static void
publish(Watch *watch)
{
	XLogRecPtr	decoded = watch->decoding->reader->EndRecPtr;
	TimestampTz now = GetCurrentTimestamp();

	own_decoded(decoded);
	forget_seen(watch);
	if (now < watch->next_confirm)
		return;
	watch->next_confirm = TimestampTzPlusMilliseconds(now, CONFIRM_MS);
	if (!dlist_is_empty(&watch->changes))
		decoded = dlist_head_element(Watched, node,
									 &watch->changes)->commit_lsn;
	if (decoded <= watch->confirmed)
		return;
	LogicalConfirmReceivedLocation(decoded);
	watch->confirmed = decoded;
}

/* ---- the loop ---- */

static void
check_wanted(const Watch *watch)
{
	StreamShared *shared = watch->shared;
	bool		stop;

	worker_check();
	SpinLockAcquire(&shared->mutex);
	stop = !shared->in_use ||
		shared->watch_wanted != watch->deployment->mapping_version;
	SpinLockRelease(&shared->mutex);
	if (stop)
		proc_exit(0);
}

/*
 * XLogReaderRoutine.page_read: up to a page of flushed WAL.
 */
static int
watch_page(XLogReaderState *reader, XLogRecPtr page, int wanted,
		   XLogRecPtr target, char *buffer)
{
	TimeLineID	current = GetWALInsertionTimeLine();
	XLogRecPtr	limit = page + XLOG_BLCKSZ;
	XLogRecPtr	flushed;
	WALReadError error;
	int			count;

	XLogReadDetermineTimeline(reader, page, wanted, current);
	if (reader->currTLI != current)
		limit = Min(limit, reader->currTLIValidUntil);
	if (page + wanted > limit)
		return -1;
	while ((flushed = GetFlushRecPtr(NULL)) < page + wanted)
	{
		publish(the_watch);
		check_wanted(the_watch);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, IDLE_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	count = Min(flushed, limit) - page;
	if (!WALRead(reader, buffer, page, XLOG_BLCKSZ, reader->currTLI, &error))
		WALReadRaiseError(&error);
	return count;
}

static void
no_output(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid,
		  bool last_write)
{
	elog(ERROR, "a process that watches has no output to write to");
}

static void
no_begin(void *arg, ReorderBufferTXN *txn)
{
}

static void
no_commit(void *arg, ReorderBufferTXN *txn, XLogRecPtr end_lsn)
{
}

/*
 * Read the mappings as the stream does.
 */
static void
load(Watch *watch)
{
	int			n = 0;
	List	   *rows;
	ListCell   *lc;

	watch->deployment = deployment_load(watch->shared->deployment);
	if (watch->deployment == NULL || watch->deployment->opposite == NULL ||
		watch->deployment->owner != GetUserId())
		proc_exit(0);
	rows = mappings_load(watch->deployment->id, watch->shared->direction);
	watch->hashers = palloc0_array(OwnHasher *, list_length(rows) + 1);
	watch->deciders = palloc0_array(int, list_length(rows) + 1);
	foreach(lc, rows)
	{
		Transform  *transform = transform_compile(lfirst(lc));
		Relation	source = table_open(transform->row->source,
										AccessShareLock);

		transform->number = n;
		if (transform->chunk_key != NULL &&
			strcmp(transform->row->conflict, "none") != 0)
			watch->hashers[n] = own_hasher_create(source,
												  transform->chunk_key);
		watch->deciders[n] = window_decider(transform);
		table_close(source, AccessShareLock);
		watch->transforms = lappend(watch->transforms, transform);
		n++;
	}
}

/* From here on everybody can tell what this side has changed, or not. */
static void
tell_since(StreamShared *shared, int64 version, XLogRecPtr since)
{
	SpinLockAcquire(&shared->mutex);
	if (shared->watch_wanted == version)
		shared->window_since = since;
	SpinLockRelease(&shared->mutex);
}

/* At exit. */
static void
tell_end(int code, Datum arg)
{
	tell_since(the_watch->shared, the_watch->deployment->mapping_version,
			   InvalidXLogRecPtr);
}

static void
begin_decoding(Watch *watch)
{
	ChangeSink	sink = {.begin = no_begin, .commit = no_commit};
	char		slot_name[NAMEDATALEN];

	watch->decode = decode_create(watch->transforms, &sink);
	watch->decode->watches = true;
	watch->decode->left_out = origin_filter_load(watch->deployment);
	watch->decode->left_out_from = watch->deployment->opposite_lsn;
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(watch->decode->context);

	own_publish(watch->deployment->opposite);
	worker_use_decoding_memory();
	watch_slot_name(slot_name, watch->shared->slot_name);
	ReplicationSlotAcquire(slot_name, true, false);
	watch->confirmed = MyReplicationSlot->data.confirmed_flush;
	decode_attach(watch->decode);
	watch->decoding =
		CreateDecodingContext(InvalidXLogRecPtr, NIL, false,
							  XL_ROUTINE(.page_read = watch_page,
										 .segment_open = wal_segment_open,
										 .segment_close = wal_segment_close),
							  no_output, no_output, NULL);
	InvalidateSystemCaches();
	XLogBeginRead(watch->decoding->reader,
				  MyReplicationSlot->data.restart_lsn);
	before_shmem_exit(tell_end, (Datum) 0);
	tell_since(watch->shared, watch->deployment->mapping_version,
			   watch->confirmed);
}

static void
watch_loop(Watch *watch)
{
	XLogReaderState *reader = watch->decoding->reader;

	for (uint32 records = 1;; records++)
	{
		char	   *message = NULL;
		XLogRecord *record = XLogReadRecord(reader, &message);

		if (message)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not decode WAL at %X/%X: %s",
							LSN_FORMAT_ARGS(reader->EndRecPtr), message)));
		if (record)
			LogicalDecodingProcessRecord(watch->decoding, reader);
		if (records % PUBLISH_RECORDS != 0)
			continue;
		publish(watch);
		check_wanted(watch);
	}
}

static void
create_entries(Watch *watch, MemoryContext context)
{
	HASHCTL		control = {
		.keysize = sizeof(OwnKey),
		.entrysize = sizeof(Watched),
		.hcxt = context
	};

	watch->entries = hash_create("pg_bluegreen watched", 1024, &control,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	dlist_init(&watch->changes);
}

/*
 * Entry point of the process.
 */
void
bluegreen_watch_main(Datum arg)
{
	StreamShared *shared = stream_shared_at(DatumGetInt32(arg));
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "pg_bluegreen watch",
												  ALLOCSET_DEFAULT_SIZES);

	if (!worker_take_entry(shared, &shared->watch_pid))
		proc_exit(0);
	worker_start(shared->dboid, shared->owner, "pg_bluegreen watch");
	SpinLockAcquire(&shared->mutex);
	shared->watch_latch = MyLatch;
	SpinLockRelease(&shared->mutex);
	the_watch = MemoryContextAllocZero(context, sizeof(Watch));
	the_watch->shared = shared;
	create_entries(the_watch, context);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	load(the_watch);
	check_wanted(the_watch);
	begin_decoding(the_watch);
	watch_loop(the_watch);
}

/* ---- for the stream's worker, and the launcher ---- */

/*
 * Start the process, if there is none and it is wanted.  Returns when to be
 * called again, or 0.
 */
TimestampTz
watch_start(StreamShared *shared)
{
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_main_arg = Int32GetDatum(stream_shared_index(shared))
	};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz at = 0;

	SpinLockAcquire(&shared->mutex);
	if (shared->in_use && shared->watch_wanted != 0 && shared->watch_pid == 0)
		at = Max(TimestampTzPlusMilliseconds(shared->watch_at,
											 shared->watch_delay), 1);
	if (at != 0 && at <= now)
	{
		/* one that was started long ago was not in trouble at once */
		shared->watch_delay =
			TimestampDifferenceExceeds(shared->watch_at, now, QUIET_MS) ?
			DELAY_MS : Min(2 * shared->watch_delay, MAX_DELAY_MS);
		shared->watch_at = now;
	}
	SpinLockRelease(&shared->mutex);
	if (at == 0 || at > now)
		return at;
	strlcpy(worker.bgw_library_name, "pg_bluegreen", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "bluegreen_watch_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "pg_bluegreen watch of %s",
			 shared->slot_name);
	strlcpy(worker.bgw_type, "pg_bluegreen watch", BGW_MAXLEN);
	if (!RegisterDynamicBackgroundWorker(&worker, NULL))
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no background worker is free to watch this side's own changes"),
				 errhint("Raise max_worker_processes.")));
	return TimestampTzPlusMilliseconds(now, DELAY_MS);	/* did it begin? */
}

/*
 * End the process and wait until it is gone.
 */
void
watch_stop(StreamShared *shared)
{
	SpinLockAcquire(&shared->mutex);
	shared->watch_wanted = 0;
	SpinLockRelease(&shared->mutex);
	ConditionVariablePrepareToSleep(&shared->changed);
	for (;;)
	{
		Latch	   *latch;
		pid_t		pid;

		SpinLockAcquire(&shared->mutex);
		pid = shared->watch_pid;
		latch = shared->watch_latch;
		SpinLockRelease(&shared->mutex);
		if (pid == 0)
			break;
		if (latch != NULL)
			SetLatch(latch);
		(void) ConditionVariableTimedSleep(&shared->changed, IDLE_MS,
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	SpinLockAcquire(&shared->mutex);
	shared->watch_latch = NULL;
	SpinLockRelease(&shared->mutex);
}
