/*-------------------------------------------------------------------------
 *
 * session_merge.c
 *		The other side's row of a session meets the one that is here.
 *
 * A trigger of bluegreen.session that fires in sessions that apply, only.  The
 * mapping upserts (on_write 'merge') and ignores deletes, so every change of
 * the other side arrives here as a whole row, next to the one that is there.  What
 * comes of the two is the same in whatever order, and however often, rows are
 * merged; see session.c for the rules.  It is written here by the stream, so it
 * does not go back: the other side merges the same rows by itself.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "app/session.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_session_merge);

/* The columns that are merged; numbers as in the table. */
typedef enum SessionColumn
{
	COLUMN_DATA,
	COLUMN_WRITTEN,
	COLUMN_ATTRIBUTES,
	COLUMN_STAMP,
	COLUMN_EXPIRES_AT,
	COLUMN_DELETED_AT,
	COLUMN_LIFETIME,
	COLUMN_CREATED_AT,
	SESSION_COLUMNS
} SessionColumn;

static const char *const column_names[SESSION_COLUMNS] = {
	"data", "written", "attributes", "stamp", "expires_at", "deleted_at",
	"lifetime", "created_at"
};

/* Two rows of one session, and what comes of them. */
typedef struct SessionMerge
{
	TupleDesc	desc;
	int			number[SESSION_COLUMNS];
	Datum		old[SESSION_COLUMNS];
	bool		old_null[SESSION_COLUMNS];
	Datum		new[SESSION_COLUMNS];
	bool		new_null[SESSION_COLUMNS];
} SessionMerge;

/*
 * $1 to $3: data, written and attributes of one row, $4 to $6 those of the
 * other.  The one that was written as a whole last is the base; attributes of
 * the other that are newer than that, and than those of the base, go on top.
 * Stamps are equal of what one writer has written once, or if a server is a copy
 * of the other: then the texts decide, the same on both sides.
 */
static const char merge_sql[] =
"SELECT (b.data - coalesce(o.gone, '{}')) || coalesce(o.added, '{}'), "
"b.written, b.attributes || coalesce(o.stamps, '{}') FROM (SELECT "
"CASE WHEN n THEN $4 ELSE $1 END AS data, "
"CASE WHEN n THEN $5 ELSE $2 END AS written, "
"CASE WHEN n THEN $6 ELSE $3 END AS attributes, "
"CASE WHEN n THEN $1 ELSE $4 END AS other_data, "
"CASE WHEN n THEN $3 ELSE $6 END AS other_attributes "
"FROM (SELECT $5 > $2 OR ($5 = $2 AND $4::text COLLATE \"C\" > "
" $1::text COLLATE \"C\") AS n) w) b CROSS JOIN LATERAL (SELECT "
"jsonb_object_agg(key, value) AS stamps, "
"jsonb_object_agg(key, b.other_data -> key) "
" FILTER (WHERE jsonb_exists(b.other_data, key)) AS added, "
"array_agg(key) FILTER (WHERE NOT jsonb_exists(b.other_data, key)) AS gone "
"FROM jsonb_each(b.other_attributes) "
"WHERE value > b.written AND (NOT jsonb_exists(b.attributes, key) "
" OR value > b.attributes -> key)) o";

static void
read_rows(SessionMerge *merge, TriggerData *trigger)
{
	merge->desc = RelationGetDescr(trigger->tg_relation);
	for (int i = 0; i < SESSION_COLUMNS; i++)
	{
		int			n = SPI_fnumber(merge->desc, column_names[i]);

		if (n <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
					 errmsg("table \"%s\" is not one of sessions",
							RelationGetRelationName(trigger->tg_relation))));
		merge->number[i] = n;
		merge->old[i] = heap_getattr(trigger->tg_trigtuple, n, merge->desc,
									 &merge->old_null[i]);
		merge->new[i] = heap_getattr(trigger->tg_newtuple, n, merge->desc,
									 &merge->new_null[i]);
	}
}

static bool
same_jsonb(const SessionMerge *merge, SessionColumn column)
{
	return compareJsonbContainers(&DatumGetJsonbP(merge->old[column])->root,
								  &DatumGetJsonbP(merge->new[column])->root) == 0;
}

/*
 * Whose data is it?
 */
static void
merge_data(SessionMerge *merge)
{
	Oid			types[6] = {JSONBOID, JSONBOID, JSONBOID, JSONBOID, JSONBOID,
	JSONBOID};
	Datum		values[6];

	if (same_jsonb(merge, COLUMN_WRITTEN) &&
		same_jsonb(merge, COLUMN_ATTRIBUTES) &&
		same_jsonb(merge, COLUMN_DATA))
		return;					/* the same data */
	for (int i = 0; i < 3; i++)
	{
		values[i] = merge->old[COLUMN_DATA + i];
		values[3 + i] = merge->new[COLUMN_DATA + i];
	}
	if (SPI_execute_with_args(merge_sql, 6, types, values, NULL, true,
							  1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not merge sessions");
	for (int i = 0; i < 3; i++)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 1 + i,
										  &isnull);

		merge->new[COLUMN_DATA + i] = SPI_datumTransfer(value, false, -1);
	}
}

/*
 * A deleted one has no data, and the earlier of two deletions counts.
 */
static void
merge_deletion(SessionMerge *merge)
{
	Datum		empty = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));

	if (merge->old_null[COLUMN_DELETED_AT] &&
		merge->new_null[COLUMN_DELETED_AT])
		return;
	if (merge->new_null[COLUMN_DELETED_AT])
		session_count(SESSION_LATE, 1);
	if (merge->new_null[COLUMN_DELETED_AT] ||
		(!merge->old_null[COLUMN_DELETED_AT] &&
		 DatumGetTimestampTz(merge->old[COLUMN_DELETED_AT]) <
		 DatumGetTimestampTz(merge->new[COLUMN_DELETED_AT])))
		merge->new[COLUMN_DELETED_AT] = merge->old[COLUMN_DELETED_AT];
	merge->new_null[COLUMN_DELETED_AT] = false;
	merge->new[COLUMN_DATA] = empty;
	merge->new[COLUMN_ATTRIBUTES] = empty;
}

/*
 * Of two that were created with one id: the longer lifetime, which is compared
 * as its parts where it is the same time, and the earlier creation.
 */
static void
merge_creation(SessionMerge *merge)
{
	Interval   *was = DatumGetIntervalP(merge->old[COLUMN_LIFETIME]);
	Interval   *is = DatumGetIntervalP(merge->new[COLUMN_LIFETIME]);
	int			order = DatumGetInt32(DirectFunctionCall2(interval_cmp,
														  IntervalPGetDatum(was),
														  IntervalPGetDatum(is)));

	if (order > 0 || (order == 0 && (was->month > is->month ||
									 (was->month == is->month &&
									  was->day > is->day))))
		merge->new[COLUMN_LIFETIME] = merge->old[COLUMN_LIFETIME];
	merge->new[COLUMN_CREATED_AT] =
		TimestampTzGetDatum(Min(DatumGetTimestampTz(merge->old[COLUMN_CREATED_AT]),
								DatumGetTimestampTz(merge->new[COLUMN_CREATED_AT])));
}

static HeapTuple
merge_rows(TriggerData *trigger)
{
	SessionMerge merge;
	HeapTuple	result;

	read_rows(&merge, trigger);
	merge_data(&merge);
	merge_deletion(&merge);
	merge_creation(&merge);
	merge.new[COLUMN_STAMP] =
		Int64GetDatum(Max(DatumGetInt64(merge.old[COLUMN_STAMP]),
						  DatumGetInt64(merge.new[COLUMN_STAMP])));
	merge.new[COLUMN_EXPIRES_AT] =
		TimestampTzGetDatum(Max(DatumGetTimestampTz(merge.old[COLUMN_EXPIRES_AT]),
								DatumGetTimestampTz(merge.new[COLUMN_EXPIRES_AT])));
	result = heap_modify_tuple_by_cols(trigger->tg_newtuple, merge.desc,
									   SESSION_COLUMNS, merge.number,
									   merge.new, merge.new_null);
	return SPI_copytuple(result);
}

/*
 * Trigger BEFORE INSERT or UPDATE of bluegreen.session, in sessions that apply.
 * A row that is new here has nothing to be merged with, but will expire.
 */
Datum
bluegreen_session_merge(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	result;

	session_note_write();
	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger before INSERT or UPDATE",
						"bluegreen.session_merge")));
	if (!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		return PointerGetDatum(trigger->tg_trigtuple);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	result = merge_rows(trigger);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	return PointerGetDatum(result);
}
