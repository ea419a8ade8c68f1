/*-------------------------------------------------------------------------
 *
 * copy_index.c
 *		The target's indexes while a table is copied in several chunks.
 *
 * Chunks are read under different snapshots, and the stream applies changes
 * to the chunks that are there already.  So for a while the target can hold
 * rows of different moments, and a unique value that moved from one row to
 * another may stand in both.  Once the stream has passed the last P the target
 * is again what the source was at one moment, and the clash is gone.
 *
 * Therefore unique and exclusion indexes beside the key's are put aside, in one
 * transaction, before the first of several chunks, and built again before the
 * table counts as streaming.  Where one of them cannot be (the target is
 * partitioned, it is the primary key or the replica identity) the table is
 * copied as one chunk.  All other indexes go with them: building one costs much
 * less than filling it row by row, and the stream finds its rows by the key.
 * The target does all that itself, as the table's owner: core/saved_index.c.
 *
 * The index over the key goes with them where the target can be without it, and
 * is built after the last chunk: that costs half of filling it.  As long as it
 * is aside (applied_table.key_aside) the stream writes nothing to the table, and
 * no key is copied again.  A stream that has a change for a finished chunk asks
 * for the index (TableShared.key_wanted) and waits, as it waits for an announced
 * chunk: copy workers finish the chunks that they are at, one of them builds the
 * index of what is there, and the rest is copied with it in place.  So a table
 * that nobody writes to gains, and for others the stream waits once, for little.
 * What is aside is known to the target alone, so it outlives every crash.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/event.h"
#include "miscadmin.h"
#include "stream/copy.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * The names of the target's key columns as the literal of a name[].
 */
static char *
key_names_literal(const CopyTable *table)
{
	StringInfoData literal;
	Transform  *transform = table->transform;

	initStringInfo(&literal);
	appendStringInfoChar(&literal, '{');
	for (int k = 0; k < transform->nkeys; k++)
	{
		const char *name = transform->columns[transform->keys[k]].def->name;

		appendStringInfo(&literal, "%s\"", k > 0 ? "," : "");
		for (const char *p = name; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&literal, '\\');
			appendStringInfoChar(&literal, *p);
		}
		appendStringInfoChar(&literal, '"');
	}
	appendStringInfoChar(&literal, '}');
	return literal.data;
}

/*
 * Put aside what is in the way of several chunks.  False if that cannot be:
 * copy the table in one.
 */
bool
copy_save_indexes(CopyState *state, CopyTable *table)
{
	MappingRow *row = table->transform->row;
	bool		with_key = !table->staged && !row->target_shared &&
		table->directory->nkeys == 0;
	const char *args[] = {state->origin, psprintf("%d", row->id),
	key_names_literal(table), with_key ? "true" : "false"};
	PeerResult *result;

	result = peer_query(state->peer,
						"SELECT bluegreen.save_indexes($1, $2::integer, "
						"$3::name[], $4::boolean)", 4, args);
	return result->values[0][0][0] == 't';
}

/*
 * Have the index over the key of a mapping's target built, if it is aside, in
 * the peer session's current transaction or one of its own.
 */
void
copy_restore_key(Peer *peer, const char *origin, int32 mapping)
{
	const char *args[] = {origin, psprintf("%d", mapping)};

	peer_query(peer, "SELECT bluegreen.restore_key($1, $2::integer)", 2, args);
}

/*
 * Have the indexes of a mapping's target that are aside built again, in the peer
 * session's current transaction; unless another mapping is still copied into
 * the same target, which then does it.  If the mapping is gone, that one takes
 * over what it has saved.
 */
void
copy_restore_indexes(Peer *peer, const char *origin, int32 mapping, bool gone)
{
	const char *args[] = {origin, psprintf("%d", mapping),
	gone ? "true" : "false"};

	peer_query(peer,
			   "SELECT bluegreen.restore_indexes($1, $2::integer, "
			   "$3::boolean)", 3, args);
}

/*
 * A table is copied and the stream has passed its last P: build its indexes
 * and call it streaming, in one transaction on the target.  False if its
 * generation was raised meanwhile.
 */
bool
copy_finish_table(CopyState *state, const CopyJob *job)
{
	CopyTable  *table = job->table;
	const char *args[] = {state->origin,
		psprintf("%d", table->transform->row->id),
	psprintf(INT64_FORMAT, job->generation)};
	PeerResult *result;
	bool		first;

	peer_command(state->peer, "BEGIN");
	result = peer_query(state->peer,
						"SELECT state FROM bluegreen.applied_table "
						"WHERE stream = $1 AND mapping = $2::integer "
						"AND generation = $3::bigint FOR UPDATE", 3, args);
	if (result->ntuples == 0)
	{
		peer_command(state->peer, "ROLLBACK");
		return false;
	}
	/* another copy worker may have been faster */
	first = strcmp(result->values[0][0], "copying") == 0;
	if (first)
	{
		peer_query(state->peer,
				   "UPDATE bluegreen.applied_table SET state = 'streaming' "
				   "WHERE stream = $1 AND mapping = $2::integer", 2, args);
		copy_restore_indexes(state->peer, state->origin,
							 table->transform->row->id, false);
	}
	peer_command(state->peer, "COMMIT");
	copy_succeeded(state->shared);

	if (first)
	{
		table->stats->copy_finished_at = GetCurrentTimestamp();
		event_record(MyDatabaseId, state->deployment->id, EVENT_COPIED,
					 table->directory->copied_until,
					 psprintf("\"%s\" is copied and follows",
							  mapping_target_name(table->transform->row)), NULL);
	}
	table->stats->state = TABLE_STREAMING;
	LWLockAcquire(shared_chunk_lock(), LW_EXCLUSIVE);
	state->shared->chunk_version++;
	LWLockRelease(shared_chunk_lock());
	ConditionVariableBroadcast(&state->shared->changed);
	stream_wake(state->shared);
	return true;
}
