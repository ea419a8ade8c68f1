/*-------------------------------------------------------------------------
 *
 * gate.c
 *		Decide row by row what the stream applies of a table that is copied.
 *
 * For a row with commit position L and transaction X, and the chunk that its
 * key lies in:
 *
 *	no chunk			drop: the chunk to come will see X
 *	finished (S, P)		apply if S does not see X; L >= P says so by itself;
 *						but if the target's key is aside, wait until it is
 *						built (copy_index.c)
 *	announced			wait until it is finished or given up
 *
 * X must have left the proc array before the directory is looked at (see
 * chunk.c); a commit that waits for a synchronous standby is in WAL long
 * before.  Once all chunks of a table are finished and the stream has passed
 * the largest P, the table is passed and costs nothing any more.
 *
 * While it waits, the stream stands in the middle of a transaction.  Whatever
 * came before that transaction is sent and published first (settle), since the
 * copy of a patch waits for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "stream/copy.h"
#include "stream/gate.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#define XID_WAIT_MS	10			/* between looks at a transaction that ends */

/*
 * Has the stream, which begins at the target's progress, passed the table's
 * last P?  One whose copy was finished shortly before may decode once more
 * what its chunks have seen.
 */
bool
gate_is_passed(const TableShared *stats, XLogRecPtr progress)
{
	return stats->state == TABLE_STREAMING && progress >= stats->copied_until;
}

/*
 * Make the gate of a stream's transforms, in CurrentMemoryContext.  control
 * may be NULL if all tables are passed.
 */
Gate *
gate_create(StreamShared *shared, Peer *control, const char *origin,
			List *transforms, XLogRecPtr progress)
{
	Gate	   *gate = palloc0_object(Gate);
	ListCell   *lc;

	gate->shared = shared;
	gate->control = control;
	gate->origin = pstrdup(origin);
	gate->tables = palloc0_array(GateTable, Max(list_length(transforms), 1));
	gate->open = true;
	foreach(lc, transforms)
	{
		GateTable  *table = &gate->tables[gate->ntables++];
		MappingRow *row;

		table->transform = lfirst(lc);
		row = table->transform->row;
		table->stats = table_shared_get(row->id, row->deployment);
		table->passed = gate_is_passed(table->stats, progress);
		if (table->passed)
			continue;
		table->directory = chunk_directory_create(table->transform);
		table->directory->version = PG_UINT64_MAX;	/* not loaded */
		gate->open = false;
		gate->eager |= mapping_copied_late(row);
	}
	return gate;
}

static GateTable *
gate_table(Gate *gate, const Transform *transform)
{
	GateTable  *table = &gate->tables[transform->number];

	Assert(table->transform == transform);
	return table;
}

/*
 * End the worker if it was asked to end: in the middle of a transaction, which
 * is rolled back on the target and decoded again some day.
 */
void
gate_check_stop(const StreamShared *shared)
{
	worker_check();
	if (shared->stop_requested || shared->reload)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("stream is asked to stop in the middle of a transaction")));
}

/*
 * Wait until the transaction, whose commit is decoded, has ended for everybody.
 * Mostly it has.  Where it waits for a standby it may take as long as that, so
 * look up now and then; its lock would not let us.
 */
void
gate_wait_for_xid(Gate *gate, TransactionId xid)
{
	while (!gate->xid_waited && TransactionIdIsInProgress(xid))
	{
		gate_check_stop(gate->shared);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, XID_WAIT_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	gate->xid_waited = true;
}

static void
refresh(Gate *gate, GateTable *table)
{
	uint64		version;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	version = gate->shared->chunk_version;
	LWLockRelease(shared_chunk_lock());
	if (table->directory->version != version)
		chunk_directory_load(table->directory, gate->control, gate->origin,
							 gate->shared);
}

/*
 * Wait until an announcement or its end changes the directory.
 */
static void
wait_for_chunk(Gate *gate, GateTable *table, ReorderBufferTXN *txn)
{
	StreamShared *shared = gate->shared;
	uint64		version;

	for (;;)
	{
		if (txn)
			gate->settle(gate->settle_arg, txn);
		LWLockAcquire(shared_chunk_lock(), LW_SHARED);
		version = shared->chunk_version;
		LWLockRelease(shared_chunk_lock());
		if (version != table->directory->version)
			break;
		if (WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					  1000, PG_WAIT_EXTENSION) & WL_TIMEOUT)
		{
			copy_check_error(shared, &gate->copy_failed);
			copy_launch_workers(shared);	/* if one has died */
		}
		ResetLatch(MyLatch);
		gate_check_stop(shared);
	}
}

/*
 * The stream has something to apply to the table: have its key built.
 */
static void
want_key(Gate *gate, GateTable *table)
{
	bool		wanted;

	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	wanted = table->stats->key_wanted;
	if (!wanted)
	{
		table->stats->key_wanted = true;
		gate->shared->chunk_version++;
	}
	LWLockRelease(shared_chunk_lock());
	if (!wanted)
		ConditionVariableBroadcast(&gate->shared->changed);
}

/*
 * Has a copy worker failed for want of a lock?
 */
static bool
lock_was_refused(const StreamShared *shared)
{
	bool		refused;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	refused = shared->copy_error.at != 0 &&
		strcmp(shared->copy_error.sqlstate,
			   unpack_sql_state(ERRCODE_LOCK_NOT_AVAILABLE)) == 0;
	LWLockRelease(shared_chunk_lock());
	return refused;
}

/*
 * May rows go to the target?  If its key is aside wait for a change, after
 * which the directory has to be looked at again.
 *
 * Our own transaction on the target may be in the way of who builds the key: a
 * trigger of another table has touched this one.  Then the worker ends, and the
 * next one has the key built before it decodes anything.
 */
static bool
has_key(Gate *gate, GateTable *table, ReorderBufferTXN *txn)
{
	if (!table->directory->key_aside)
		return true;
	if (txn && lock_was_refused(gate->shared))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("key of table \"%s\" must be built before a transaction is applied",
						mapping_target_name(table->transform->row))));
	want_key(gate, table);
	wait_for_chunk(gate, table, txn);
	return false;
}

static bool
decide(Gate *gate, GateTable *table, ReorderBufferTXN *txn)
{
	Datum	   *key = keyspace_key_from_slot(table->directory->space,
											 table->transform->slot);

	for (;;)
	{
		Chunk	   *chunk;

		refresh(gate, table);
		chunk = chunk_find(table->directory, key);
		if (chunk == NULL)
			return false;
		if (!chunk->announced)
		{
			if (txn->final_lsn < chunk->lsn && chunk_sees(chunk, txn->xid))
				return false;
			if (has_key(gate, table, txn))
				return true;
			continue;
		}
		if (!XLogRecPtrIsInvalid(chunk->lsn) && txn->final_lsn < chunk->lsn)
			return false;		/* nobody wrote when S was taken: S sees it */
		wait_for_chunk(gate, table, txn);
	}
}

/*
 * DecodeGate.check: does the stream apply the row in transform->slot?
 */
static bool
gate_check(void *arg, Transform *transform, ReorderBufferTXN *txn)
{
	Gate	   *gate = arg;
	GateTable  *table;

	if (gate->open)
		return true;
	table = gate_table(gate, transform);
	if (table->passed)
		return true;
	if (table->truncated)
		return false;
	gate_wait_for_xid(gate, txn->xid);
	return decide(gate, table, txn);
}

/*
 * Ask for a key to be copied again.
 */
static void
request_recopy(Gate *gate, GateTable *table, const char *key, bool first)
{
	RecopyRequest *request = &gate->shared->recopy;

	if (strlen(key) >= BG_BOUND_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("key of table \"%s\" is too long to be copied again",
						mapping_target_name(table->transform->row))));
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	if (key != request->key)
		strlcpy(request->key, key, BG_BOUND_SIZE);
	request->first = first;
	request->mapping = table->transform->row->id;
	LWLockRelease(shared_chunk_lock());
	ConditionVariableBroadcast(&gate->shared->changed);
}

static bool
recopy_requested(const Gate *gate)
{
	bool		requested;

	LWLockAcquire(shared_chunk_lock(), LW_SHARED);
	requested = gate->shared->recopy.mapping != 0;
	LWLockRelease(shared_chunk_lock());
	return requested;
}

/*
 * Wait until a copy worker has taken the request up and is done with it.  Has
 * it copied the key?  It may have died, or given up because of locks that our
 * own transaction on the target holds.
 */
static bool
wait_for_recopy(Gate *gate, GateTable *table, const Datum *key,
				ReorderBufferTXN *txn)
{
	for (;;)
	{
		bool		requested = recopy_requested(gate);
		Chunk	   *chunk;

		refresh(gate, table);

		/*
		 * Taken up while we read the directory, which then may be older than
		 * the announcement, or newer than its end: after that no change would
		 * wake us.
		 */
		if (recopy_requested(gate) != requested)
			continue;
		chunk = chunk_find(table->directory, key);
		if (!requested && (chunk == NULL || !chunk->announced))
			return chunk != NULL && chunk->key_only &&
				(txn == NULL || chunk_sees(chunk, txn->xid));
		wait_for_chunk(gate, table, txn);
	}
}

/*
 * The value cannot be had by copying: see check_absent_column() in identity.c
 * for how this may come about.
 */
static void
refuse_incomplete(const Transform *transform)
{
	Oid			source = transform->row->source;
	char	   *schema = get_namespace_name(get_rel_namespace(source));

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("an UPDATE of the key of table \"%s\" lacks a value that has to be inserted into \"%s\"",
					get_rel_name(source),
					mapping_target_name(transform->row)),
			 errdetail("The value is stored out of line and was not changed, so it is not in the WAL."),
			 errhint("Write the row to the target by hand, then leave this transaction out with bluegreen.skip(). To have such values in the WAL from now on: ALTER TABLE %s REPLICA IDENTITY FULL;",
					 quote_qualified_identifier(schema,
												get_rel_name(source)))));
}

/*
 * DecodeGate.recopy: the row in transform->slot lacks a value that is nowhere
 * else; have its key copied again, and wait for that.  The transaction has
 * left the proc array, so the copy sees it, and whatever the batch knows of
 * the key is older.  What was sent before, and may be on its way, must have
 * arrived before the copy comes.
 *
 * If the copy does not succeed, the worker ends, which gives back its locks on
 * the target, and the next one has the key copied before it decodes anything.
 */
static void
gate_recopy(void *arg, Transform *transform, ReorderBufferTXN *txn)
{
	Gate	   *gate = arg;
	GateTable  *table = gate_table(gate, transform);
	Datum	   *key;
	char	   *literal;

	if (table->passed || table->directory->space->nkeys == 0)
		refuse_incomplete(transform);
	key = keyspace_key_from_slot(table->directory->space, transform->slot);
	literal = keyspace_key_to_literal(table->directory->space, key);
	gate_wait_for_xid(gate, txn->xid);
	gate->settle(gate->settle_arg, txn);
	request_recopy(gate, table, literal, false);
	if (wait_for_recopy(gate, table, key, txn))
	{
		gate->forget(gate->settle_arg, transform);
		return;
	}
	request_recopy(gate, table, literal, true);
	SpinLockAcquire(&gate->shared->mutex);
	gate->shared->reload = true;
	SpinLockRelease(&gate->shared->mutex);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("a key of table \"%s\" must be copied before its transaction is applied",
					mapping_target_name(transform->row))));
}

/*
 * Before decoding: do what the last worker's gate_recopy() could not.
 */
void
gate_finish_recopy(Gate *gate)
{
	RecopyRequest *request = &gate->shared->recopy;

	for (int i = 0; request->first && i < gate->ntables; i++)
	{
		GateTable  *table = &gate->tables[i];
		Datum	   *key;

		if (table->passed || table->transform->row->id != request->mapping)
			continue;
		key = keyspace_key_from_literal(table->directory->space, request->key);
		copy_launch_workers(gate->shared);
		while (!wait_for_recopy(gate, table, key, NULL))
			request_recopy(gate, table, request->key, true);
	}
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	request->mapping = 0;
	request->first = false;
	LWLockRelease(shared_chunk_lock());
}

/*
 * Before decoding: have the keys built that the last worker waited for.
 */
void
gate_finish_keys(Gate *gate)
{
	for (int i = 0; i < gate->ntables; i++)
	{
		GateTable  *table = &gate->tables[i];

		if (table->passed || !table->stats->key_wanted)
			continue;
		do
		{
			refresh(gate, table);
			copy_launch_workers(gate->shared);
		} while (!has_key(gate, table, NULL));
	}
}

/*
 * DecodeGate.sees: does every chunk of the table, finished or to come, see
 * the transaction?  True also while there is no chunk.
 */
static bool
gate_sees(void *arg, Transform *transform, ReorderBufferTXN *txn)
{
	Gate	   *gate = arg;
	GateTable  *table = gate_table(gate, transform);
	ChunkDirectory *directory = table->directory;

	if (gate->open || table->passed)
		return false;
	gate_wait_for_xid(gate, txn->xid);
	refresh(gate, table);
	for (int i = 0; i < directory->nchunks; i++)
	{
		if (directory->chunks[i].announced)
		{
			wait_for_chunk(gate, table, txn);
			refresh(gate, table);
			i = -1;				/* look at all of them again */
		}
		else if (!chunk_sees(&directory->chunks[i], txn->xid))
			return false;
	}
	return true;
}

/*
 * Plug the gate into decoding.
 */
void
gate_init_decode(Gate *gate, DecodeGate *decode)
{
	decode->check = gate_check;
	decode->recopy = gate_recopy;
	decode->sees = gate_sees;
	decode->arg = gate;
}

/*
 * A transaction begins.
 */
void
gate_begin(Gate *gate)
{
	gate->xid_waited = false;
}

/*
 * The stream has applied, or seen that there is nothing to apply, up to lsn:
 * tables may be passed now.
 */
void
gate_reached(Gate *gate, XLogRecPtr lsn)
{
	bool		open = true;
	bool		eager = false;

	if (gate->open)
		return;
	for (int i = 0; i < gate->ntables; i++)
	{
		GateTable  *table = &gate->tables[i];
		TableState	state = table->stats->state;

		if (!table->passed &&
			(state == TABLE_CATCHING_UP || state == TABLE_STREAMING))
		{
			refresh(gate, table);
			table->passed = table->directory->complete &&
				!table->directory->key_aside &&
				lsn >= table->directory->copied_until;
		}
		open &= table->passed;
		eager |= !table->passed &&
			mapping_copied_late(table->transform->row);
	}
	gate->open = open;
	gate->eager = eager;
}

/*
 * A table is truncated.  True if it is being copied: then the caller raises
 * its generation and forgets its chunks with the truncation, and the rest of
 * the transaction is left to the chunks to come.
 */
bool
gate_truncate(Gate *gate, Transform *transform, ReorderBufferTXN *txn)
{
	GateTable  *table = gate_table(gate, transform);

	if (gate->open || table->passed)
		return false;
	gate_wait_for_xid(gate, txn->xid);
	do
	{
		refresh(gate, table);
	} while (table->directory->complete && !has_key(gate, table, txn));
	/* behind the last P it is a change like others, and the copy may end */
	if (table->directory->complete &&
		txn->final_lsn >= table->directory->copied_until)
	{
		table->passed = true;
		return false;
	}
	table->truncated = true;
	gate->truncated = true;
	return true;
}

/*
 * A transaction has been committed on the target: truncated tables begin anew.
 */
void
gate_commit(Gate *gate)
{
	if (!gate->truncated)
		return;
	gate->truncated = false;
	for (int i = 0; i < gate->ntables; i++)
		if (gate->tables[i].truncated)
		{
			gate->tables[i].truncated = false;
			gate->tables[i].stats->state = TABLE_WAITING;
			LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
			gate->shared->chunk_version++;
			LWLockRelease(shared_chunk_lock());
			ConditionVariableBroadcast(&gate->shared->changed);
		}
}
