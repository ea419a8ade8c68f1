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

const char *const change_kind_names[] = {
	[CHANGE_INSERT] = "INSERT",
	[CHANGE_UPDATE] = "UPDATE",
	[CHANGE_UPSERT] = "UPSERT",
	[CHANGE_PATCH] = "PATCH",
	[CHANGE_DELETE] = "DELETE",
	[CHANGE_DELETE_IF_THERE] = "DELETE IF THERE",
	[CHANGE_MOVE] = "MOVE"
};

static void
append_column(StringInfo out, TransformColumn *column, Datum value,
			  bool isnull, bool missing)
{
	char	   *text;

	appendStringInfo(out, " %s[%s]:", quote_identifier(column->def->name),
					 column->def->type);
	if (missing)
		appendStringInfoString(out, "unchanged-toast-datum");
	else if (isnull)
		appendStringInfoString(out, "null");
	else
	{
		text = OutputFunctionCall(&column->output, value);

		appendStringInfoString(out, quote_literal_cstr(text));
		pfree(text);
	}
}

/*
 * Append the key columns of a row (values by column).
 */
void
change_describe_key(StringInfo out, Transform *transform, const Datum *values)
{
	for (int k = 0; k < transform->nkeys; k++)
	{
		int			i = transform->keys[k];

		append_column(out, &transform->columns[i], values[i], false, false);
	}
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
		change_describe_key(out, transform, change->values);
	else
		for (int i = 0; i < transform->ncolumns; i++)
			append_column(out, &transform->columns[i], change->values[i],
						  change->isnull[i], change->missing[i]);
}
