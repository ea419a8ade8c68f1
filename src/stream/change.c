/*-------------------------------------------------------------------------
 *
 * change.c
 *		Row changes as text, for people: the SQL interface, conflicts, errors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "stream/change.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"

#define SHOWN_BYTES 8			/* of a hash */

const char *const change_kind_names[] = {
	[CHANGE_INSERT] = "INSERT",
	[CHANGE_UPDATE] = "UPDATE",
	[CHANGE_UPSERT] = "UPSERT",
	[CHANGE_PATCH] = "PATCH",
	[CHANGE_DELETE] = "DELETE",
	[CHANGE_DELETE_IF_THERE] = "DELETE IF THERE",
	[CHANGE_MOVE] = "MOVE"
};

/*
 * A value, or what stands for it: who reads of a conflict shall not have the id
 * of somebody's session.  Who has the id finds the row:
 * substr(encode(sha256(convert_to(id, 'UTF8')), 'hex'), 1, 16).
 */
static char *
shown(const Transform *transform, char *text)
{
	Datum		hash;
	char		hex[2 * SHOWN_BYTES + 1];

	if (!transform->secret)
		return text;
	hash = DirectFunctionCall1(sha256_bytea,
							   PointerGetDatum(cstring_to_text(text)));
	hex_encode(VARDATA_ANY(DatumGetByteaPP(hash)), SHOWN_BYTES, hex);
	hex[2 * SHOWN_BYTES] = '\0';
	return psprintf("sha256:%s", hex);
}

static void
append_column(StringInfo out, Transform *transform, int i,
			  NullableDatum value, bool missing)
{
	TransformColumn *column = &transform->columns[i];
	char	   *text;

	appendStringInfo(out, " %s[%s]:", quote_identifier(column->def->name),
					 column->def->type);
	if (missing)
		appendStringInfoString(out, "unchanged-toast-datum");
	else if (value.isnull)
		appendStringInfoString(out, "null");
	else
	{
		text = OutputFunctionCall(&column->output, value.value);

		appendStringInfoString(out, quote_literal_cstr(shown(transform, text)));
		pfree(text);
	}
}

/*
 * Append what a row is found by: its key, or without one all columns that it
 * is found by.
 */
static void
append_key(StringInfo out, const RowChange *change, const Datum *values,
		   const bool *isnull)
{
	Transform  *transform = change->transform;

	for (int k = 0; k < transform->nkeys; k++)
	{
		int			i = transform->keys[k];

		append_column(out, transform, i, (NullableDatum) {values[i], false},
					  false);
	}
	for (int i = 0; i < transform->ncolumns; i++)
		if (transform->columns[i].finds_row)
			append_column(out, transform, i,
						  (NullableDatum) {values[i], isnull[i]}, false);
}

/*
 * Append the key of the row that a change is about; without a key, the row
 * that it changes as it was.
 */
void
change_describe_key(StringInfo out, const RowChange *change)
{
	if (change->transform->nkeys == 0 && change->kind == CHANGE_UPDATE)
		change_describe_old(out, change);
	else
		append_key(out, change, change->values, change->isnull);
}

/*
 * Append the old key of a move, or the old row of an update without a key.
 */
void
change_describe_old(StringInfo out, const RowChange *change)
{
	append_key(out, change, change->old_values, change->old_isnull);
}

/*
 * Append what the change carries: the key of a delete, else all columns.
 */
void
change_describe(StringInfo out, const RowChange *change)
{
	Transform  *transform = change->transform;

	if (change->kind == CHANGE_DELETE ||
		change->kind == CHANGE_DELETE_IF_THERE)
		change_describe_key(out, change);
	else
		for (int i = 0; i < transform->ncolumns; i++)
			append_column(out, transform, i,
						  (NullableDatum) {change->values[i], change->isnull[i]},
						  change->missing[i]);
}

/*
 * Describe the source's row in transform->slot, for an error in evaluating it:
 * the columns by which people know it.  Those are the chunk key's, else the
 * replica identity's; of a row that has neither, all.
 */
void
change_describe_source(StringInfo out, Transform *transform)
{
	TupleTableSlot *slot = transform->slot;
	Bitmapset  *columns = transform->chunk_key ? transform->chunk_key :
		transform->identity;

	resetStringInfo(out);
	for (int i = 0; i < transform->source_desc->natts; i++)
	{
		SourceAttribute *att = &transform->source[i];
		Oid			function;
		bool		is_varlena;

		if (att->dropped || slot->tts_isnull[i] ||
			(columns != NULL && !bms_is_member(i + 1, columns)))
			continue;
		getTypeOutputInfo(att->type, &function, &is_varlena);
		if (is_varlena &&
			VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(slot->tts_values[i])))
			continue;
		appendStringInfo(out, "%s%s[%s]:%s", out->len > 0 ? " " : "",
						 quote_identifier(NameStr(att->name)),
						 format_type_with_typemod(att->type, att->typmod),
						 quote_literal_cstr(shown(transform,
												  OidOutputFunctionCall(function,
																		slot->tts_values[i]))));
	}
}
