/*-------------------------------------------------------------------------
 *
 * apply_careful.c
 *		Write to the target one row at a time, and wait for each.
 *
 * This is how a batch that failed is applied again (see apply.c): to find the
 * one row that is at fault, to resolve what is a conflict, and to stop with the
 * row's key at what is an error.
 *
 * The source's word counts.  A row to insert that is there becomes an update,
 * a row to update that is not there is inserted, a row to delete that is not
 * there is gone already; each is recorded in bluegreen.conflict_log in the
 * same transaction.  In a window, in which both sides have a word, see window.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/event.h"
#include "miscadmin.h"
#include "stream/apply.h"
#include "stream/window.h"
#include "utils/timestamp.h"

#define UNIQUE_VIOLATION "23505"

static WireValue *
encode_values(Transform *transform, const Datum *values, const bool *isnull)
{
	WireValue  *result = palloc0_array(WireValue, transform->ncolumns);

	for (int i = 0; i < transform->ncolumns; i++)
		wire_encode(&transform->columns[i], values[i], isnull[i], &result[i]);
	return result;
}

/*
 * A row outside of a batch, encoded.
 */
static BatchRow *
encode_row(const RowChange *change)
{
	Transform  *transform = change->transform;
	BatchRow   *row = palloc0_object(BatchRow);

	if (transform->nkeys == 0)
	{
		row->values = encode_values(transform, change->values, change->isnull);
		row->old = change->kind == CHANGE_UPDATE ?
			encode_values(transform, change->old_values, change->old_isnull) :
			row->values;
		return row;
	}
	row->values = palloc0_array(WireValue, transform->ncolumns);
	row->missing = palloc0_array(bool, transform->ncolumns);
	for (int i = 0; i < transform->ncolumns; i++)
	{
		bool		key_only = change->kind == CHANGE_DELETE ||
			change->kind == CHANGE_DELETE_IF_THERE;

		if (key_only && !transform->columns[i].def->is_key &&
			!transform->columns[i].def->finds)
			continue;
		row->missing[i] = !key_only && change->missing[i];
		if (!row->missing[i])
			wire_encode(&transform->columns[i], change->values[i],
						change->isnull[i], &row->values[i]);
	}
	return row;
}

static void
queue_move(Apply *apply, const RowChange *change)
{
	Transform  *transform = change->transform;
	WireValue  *old_key = palloc0_array(WireValue, transform->nkeys);

	for (int k = 0; k < transform->nkeys; k++)
	{
		int			i = transform->keys[k];

		wire_encode(&transform->columns[i], change->old_values[i], false,
					&old_key[k]);
	}
	apply_queue_move(apply, apply_writer(apply, transform), encode_row(change),
					 old_key);
}

/*
 * Move a row to another key in the open transaction.  The batch before it has
 * been sent.  Does not wait for the answer.
 */
void
apply_move(Apply *apply, const RowChange *change,
		   const ApplyPosition *position)
{
	apply_start_group(apply, position);
	queue_move(apply, change);
	apply_launch(apply, false);
}

/*
 * Note for the operator which row the error to be raised is about.  Returns
 * its key as text, after a space.
 */
char *
apply_blame_row(Apply *apply, const RowChange *change)
{
	StreamError *error = &apply->shared->error;
	const char *relation = mapping_target_name(change->transform->row);
	StringInfoData key;

	initStringInfo(&key);
	change_describe_key(&key, change);
	SpinLockAcquire(&apply->shared->mutex);
	shared_copy_text(error->relation, sizeof(error->relation), relation);
	shared_copy_text(error->key, sizeof(error->key), key.data + 1);
	SpinLockRelease(&apply->shared->mutex);
	apply->blamed = true;
	return key.data;
}

/*
 * Close the group of a careful statement and wait.  A remote error is raised
 * with the row's key, or with meets -1 returned if it is that of a unique
 * constraint.  Returns the rows that the last statement on the table affected.
 */
static int64
finish_carefully(Apply *apply, const RowChange *change, bool meets)
{
	const PeerGroup *group;
	char	   *key;

	apply->careful = true;
	apply->nexpected = 0;
	peer_sync(apply->peer);
	while ((group = peer_take_group(apply->peer)) == NULL)
	{
		CHECK_FOR_INTERRUPTS();
		peer_wait(apply->peer);
	}
	if (group->failed < 0 && group->error.sqlstate[0] == '\0')
		return group->affected[apply->row_statement];
	if (meets && strcmp(group->error.sqlstate, UNIQUE_VIOLATION) == 0)
		return -1;

	key = apply_blame_row(apply, change);
	peer_rethrow(&group->error,
				 psprintf("applying %s to \"%s\",%s",
						  change_kind_names[change->kind],
						  mapping_target_name(change->transform->row), key));
	return 0;					/* keep compiler quiet */
}

int64
apply_finish_carefully(Apply *apply, const RowChange *change)
{
	return finish_carefully(apply, change, false);
}

int64
apply_run_carefully(Apply *apply, StatementKind kind, BatchRow *row,
			  const RowChange *change, const CarefulContext *context)
{
	TargetWriter *writer = apply_writer(apply, change->transform);

	if (target_statement(writer, kind, kind == STATEMENT_UPDATE ?
						 row->missing : NULL) == NULL)
		return 1;				/* nothing to set */
	apply_start_group(apply, &context->position);
	apply_queue_row(apply, writer, kind, row);
	return finish_carefully(apply, change, context->meets);
}

void
apply_record_conflict(Apply *apply, BatchRow *row, const RowChange *change,
					  const CarefulContext *context,
					  const char *const words[2])
{
	TargetWriter *writer = apply_writer(apply, change->transform);
	TableShared *stats = table_shared_get(change->transform->row->id,
										  change->transform->row->deployment);
	StringInfoData key;
	StringInfoData incoming;
	char		lsn[32];
	const char *texts[8];

	initStringInfo(&key);
	initStringInfo(&incoming);
	change_describe_key(&key, change);
	change_describe(&incoming, change);
	snprintf(lsn, sizeof(lsn), "%X/%X", LSN_FORMAT_ARGS(context->position.commit_lsn));
	texts[0] = apply->origin;
	texts[1] = context->deployment;
	texts[2] = key.data + 1;
	texts[3] = words[0];
	texts[4] = lsn;
	texts[5] = timestamptz_to_str(context->position.commit_time);
	texts[6] = incoming.data + 1;
	texts[7] = words[1];
	apply_start_group(apply, &context->position);
	apply_queue_conflict(apply, writer, row, texts, context->note);
	(void) apply_finish_carefully(apply, change);
	pg_atomic_fetch_add_u64(&stats->conflicts, 1);
	if (apply->window != NULL)
		apply->conflict_at = GetCurrentTimestamp();
	event_record(MyDatabaseId, change->transform->row->deployment,
				 EVENT_CONFLICT, context->position.commit_lsn,
				 psprintf("%s on \"%s\": %s", words[0],
						  mapping_target_name(change->transform->row),
						  words[1]),
				 "The peer's view bluegreen.conflict has the rows.");
}

static const char *const insert_exists[] = {"insert_exists", "updated the row that is there"};
static const char *const move_exists[] = {"insert_exists", "replaced the row that is there"};
static const char *const update_missing[] = {"update_missing", "inserted the row"};
static const char *const delete_missing[] = {"delete_missing", "nothing to delete"};

static bool
carries_all(const RowChange *change)
{
	for (int i = 0; i < change->transform->ncolumns; i++)
		if (change->missing[i])
			return false;
	return true;
}

static void
update_carefully(Apply *apply, BatchRow *row, const RowChange *change,
				 const CarefulContext *context)
{
	if (apply_run_carefully(apply, STATEMENT_UPDATE, row, change, context) > 0)
		return;
	if (!carries_all(change))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("row to update is missing on target table \"%s\":%s",
						mapping_target_name(change->transform->row),
						apply_blame_row(apply, change)),
				 errdetail("The change does not carry all columns, so the row cannot be inserted."),
				 errhint("Insert the row on the target, or leave this transaction out with bluegreen.skip().")));
	apply_record_conflict(apply, row, change, context, update_missing);
	(void) apply_run_carefully(apply, STATEMENT_UPSERT, row, change, context);
}

/*
 * A row that stands where the moved one is to go makes place for it.
 */
static void
move_carefully(Apply *apply, BatchRow *row, const RowChange *change,
			   const CarefulContext *context)
{
	if (apply_run_carefully(apply, STATEMENT_FIND, row, change, context) > 0)
	{
		apply_record_conflict(apply, row, change, context, move_exists);
		(void) apply_run_carefully(apply, STATEMENT_DELETE, row, change, context);
	}
	apply_start_group(apply, &context->position);
	queue_move(apply, change);
	if (apply_finish_carefully(apply, change) == 0)
		update_carefully(apply, row, change, context);
}

static void
insert_carefully(Apply *apply, BatchRow *row, const RowChange *change,
				 const CarefulContext *context)
{
	if (apply_run_carefully(apply, STATEMENT_INSERT_ABSENT, row, change, context) > 0)
		return;
	apply_record_conflict(apply, row, change, context, insert_exists);
	(void) apply_run_carefully(apply, STATEMENT_UPSERT, row, change, context);
}

/*
 * The same without a key: there is no row that an insert could meet.
 */
static void
apply_keyless_carefully(Apply *apply, BatchRow *row, const RowChange *change,
						const CarefulContext *context)
{
	switch (change->kind)
	{
		case CHANGE_DELETE:
			if (apply_run_carefully(apply, STATEMENT_TAKE, row, change, context) == 0)
				apply_record_conflict(apply, row, change, context, delete_missing);
			return;
		case CHANGE_UPDATE:
			if (apply_run_carefully(apply, STATEMENT_REPLACE, row, change, context) > 0)
				return;
			apply_record_conflict(apply, row, change, context, update_missing);
			break;
		default:
			break;
	}
	(void) apply_run_carefully(apply, STATEMENT_INSERT, row, change, context);
}

/*
 * The statement that tells whether a lookup writes a row, by what a change
 * carries.
 */
static StatementKind
lookup_test_of(ChangeKind kind)
{
	return kind == CHANGE_DELETE || kind == CHANGE_DELETE_IF_THERE ?
		STATEMENT_LOOK_OLD : STATEMENT_LOOK;
}

/*
 * Apply one change in the open transaction and wait for it; resolve conflicts;
 * raise errors with the row's key.
 */
void
apply_row_carefully(Apply *apply, const RowChange *change,
					const CarefulContext *context)
{
	BatchRow   *row = encode_row(change);

	if (apply_writer(apply, change->transform)->window != NULL)
	{
		window_row(apply, row, change, context);
		return;
	}
	if (change->transform->nkeys == 0)
	{
		apply_keyless_carefully(apply, row, change, context);
		return;
	}
	if (change->transform->row->lookup != NULL &&
		apply_run_carefully(apply, lookup_test_of(change->kind), row, change,
					  context) == 0)
		return;					/* the lookup leaves it out */
	switch (change->kind)
	{
		case CHANGE_INSERT:
			insert_carefully(apply, row, change, context);
			break;
		case CHANGE_UPDATE:
			update_carefully(apply, row, change, context);
			break;
		case CHANGE_UPSERT:
			(void) apply_run_carefully(apply, STATEMENT_UPSERT, row, change, context);
			break;
		case CHANGE_PATCH:
			(void) apply_run_carefully(apply, STATEMENT_UPDATE, row, change, context);
			break;
		case CHANGE_DELETE:
			if (apply_run_carefully(apply, STATEMENT_DELETE, row, change, context) == 0)
				apply_record_conflict(apply, row, change, context, delete_missing);
			break;
		case CHANGE_DELETE_IF_THERE:
			(void) apply_run_carefully(apply, STATEMENT_DELETE, row, change, context);
			break;
		case CHANGE_MOVE:
			move_carefully(apply, row, change, context);
			break;
	}
}
