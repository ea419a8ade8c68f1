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
 * Therefore unique and exclusion indexes beside the key's are saved in
 * bluegreen.saved_index and dropped, in one transaction, before the first of
 * several chunks, and built again, with the row's deletion, before the table
 * counts as streaming.  Where one of them cannot be dropped (a foreign key
 * refers to it, the target is partitioned) the table is copied as one chunk.
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
 * The indexes that are in the way: their names, the statement that drops and
 * the one that makes each again, and whether it can be dropped at all.
 */
static const char index_query[] =
"SELECT ic.relname,"
" CASE WHEN k.oid IS NULL"
"  THEN pg_catalog.format('DROP INDEX %I.%I', n.nspname, ic.relname)"
"  ELSE pg_catalog.format('ALTER TABLE %I.%I DROP CONSTRAINT %I',"
"       n.nspname, c.relname, k.conname) END,"
" CASE WHEN k.oid IS NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid)"
"  ELSE pg_catalog.format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s',"
"       n.nspname, c.relname, k.conname,"
"       pg_catalog.pg_get_constraintdef(k.oid)) END,"
" c.relkind = 'p' OR c.relispartition OR i.indisprimary"
"  OR i.indisreplident OR i.indisclustered"
"  OR EXISTS (SELECT FROM pg_catalog.pg_depend d"
"     WHERE d.deptype = 'n' AND d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass"
"     AND (d.refobjid = i.indexrelid OR d.refobjid = k.oid)) "
"FROM pg_catalog.pg_index i "
"JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid "
"JOIN pg_catalog.pg_class c ON c.oid = i.indrelid "
"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
"LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid"
" AND k.contype IN ('p', 'u', 'x') "
"WHERE n.nspname = $1 AND c.relname = $2"
" AND (i.indisunique OR i.indisexclusion)"
" AND NOT (i.indisunique AND i.indpred IS NULL AND i.indimmediate"
"  AND i.indnkeyatts = pg_catalog.cardinality($3::name[])"
"  AND NOT EXISTS (SELECT FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) AS p(x)"
"   LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[p.x]"
"   WHERE a.attname IS NULL OR a.attname <> ALL ($3::name[])))";

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
 * Save and drop what is in the way of several chunks.  False if that cannot
 * be: copy the table in one.
 */
bool
copy_save_indexes(CopyState *state, CopyTable *table)
{
	MappingRow *row = table->transform->row;
	const char *args[] = {row->target_schema, row->target_table,
	key_names_literal(table)};
	PeerResult *result = peer_query(state->peer, index_query, 3, args);

	for (int i = 0; i < result->ntuples; i++)
		if (result->values[i][3][0] == 't')
			return false;
	if (result->ntuples == 0)
		return true;
	peer_command(state->peer, "BEGIN");
	for (int i = 0; i < result->ntuples; i++)
	{
		const char *saved[] = {state->origin, psprintf("%d", row->id),
		result->values[i][0], result->values[i][2]};

		peer_query(state->peer,
				   "INSERT INTO bluegreen.saved_index "
				   "(stream, mapping, name, definition) "
				   "VALUES ($1, $2::integer, $3, $4)", 4, saved);
		peer_command(state->peer, result->values[i][1]);
	}
	peer_command(state->peer, "COMMIT");
	return true;
}

/*
 * Build the saved indexes of a mapping's target again, in the peer session's
 * current transaction; unless another mapping is still copied into the same
 * target, which then does it.
 */
void
copy_restore_indexes(Peer *peer, const char *origin, int32 mapping)
{
	const char *args[] = {origin, psprintf("%d", mapping)};
	PeerResult *result;

	result = peer_query(peer,
						"DELETE FROM bluegreen.saved_index s "
						"USING bluegreen.applied_table me, bluegreen.applied_table t "
						"WHERE me.stream = $1 AND me.mapping = $2::integer "
						"AND t.stream = $1 AND t.target_schema = me.target_schema "
						"AND t.target_table = me.target_table "
						"AND s.stream = $1 AND s.mapping = t.mapping "
						"AND NOT EXISTS (SELECT FROM bluegreen.applied_table c "
						" WHERE c.stream = $1 AND c.mapping <> me.mapping "
						" AND c.target_schema = me.target_schema "
						" AND c.target_table = me.target_table "
						" AND c.state = 'copying') "
						"RETURNING s.definition", 2, args);
	for (int i = 0; i < result->ntuples; i++)
		peer_command(peer, result->values[i][0]);
}

/*
 * A mapping goes while others are still copied into its target: they take over
 * what it has saved.
 */
void
copy_hand_over_indexes(Peer *peer, const char *origin, int32 mapping)
{
	const char *args[] = {origin, psprintf("%d", mapping)};

	peer_query(peer,
			   "UPDATE bluegreen.saved_index s SET mapping = "
			   "(SELECT pg_catalog.min(c.mapping) "
			   " FROM bluegreen.applied_table c, bluegreen.applied_table me "
			   " WHERE me.stream = $1 AND me.mapping = $2::integer "
			   " AND c.stream = $1 AND c.mapping <> me.mapping "
			   " AND c.target_schema = me.target_schema "
			   " AND c.target_table = me.target_table "
			   " AND c.state = 'copying') "
			   "WHERE s.stream = $1 AND s.mapping = $2::integer "
			   "AND EXISTS (SELECT "
			   " FROM bluegreen.applied_table c, bluegreen.applied_table me "
			   " WHERE me.stream = $1 AND me.mapping = $2::integer "
			   " AND c.stream = $1 AND c.mapping <> me.mapping "
			   " AND c.target_schema = me.target_schema "
			   " AND c.target_table = me.target_table "
			   " AND c.state = 'copying')", 2, args);
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
							 table->transform->row->id);
	}
	peer_command(state->peer, "COMMIT");

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
