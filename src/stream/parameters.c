/*-------------------------------------------------------------------------
 *
 * parameters.c
 *		Rows of a batch as the parameters of a statement.
 *
 * A parameter is a one-dimensional array in PostgreSQL's binary format, one for
 * each column.  The values of a row lie side by side in memory, so all arrays
 * of a statement are filled at once, row by row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "port/pg_bswap.h"
#include "stream/parameters.h"
#include "utils/memutils.h"

#define ARRAY_HEADER	(5 * (int) sizeof(int32))

/* An array that is being filled. */
typedef struct Filling
{
	int			column;			/* index into the transform's columns */
	bool		has_null;
	Size		size;			/* of the values, without their lengths */
	char	   *start;
	char	   *next;
} Filling;

Parameters
parameters_create(int max)
{
	Parameters	p = {
		.values = palloc0_array(const char *, max),
		.lengths = palloc0_array(int, max),
		.formats = palloc0_array(int, max)
	};

	return p;
}

static void
add_parameter(Parameters *p, const char *data, int length, int format)
{
	p->values[p->n] = data;
	p->lengths[p->n] = length;
	p->formats[p->n] = format;
	p->n++;
}

static inline char *
put_int32(char *to, int32 value)
{
	uint32		bytes = pg_hton32((uint32) value);

	memcpy(to, &bytes, sizeof(bytes));
	return to + sizeof(bytes);
}

static char *
put_array_header(char *to, Oid element_type, int n, bool has_null)
{
	to = put_int32(to, 1);		/* dimensions */
	to = put_int32(to, has_null ? 1 : 0);
	to = put_int32(to, (int32) element_type);
	to = put_int32(to, n);
	return put_int32(to, 1);	/* lower bound */
}

/* The type of what goes as text is its column's carrier. */
static Oid
element_type(const TransformColumn *column)
{
	return column->def->wire == WIRE_BINARY ? column->type : BPCHAROID;
}

/*
 * A value with its length in front.  Copying the usual sizes takes no call.
 */
static inline char *
put_value(char *to, const WireValue *value)
{
	if (value->data == NULL)
		return put_int32(to, -1);
	switch (value->len)
	{
		case 4:
			memcpy(to, value->data - WIRE_HEADER, WIRE_HEADER + 4);
			break;
		case 8:
			memcpy(to, value->data - WIRE_HEADER, WIRE_HEADER + 8);
			break;
		default:
			memcpy(to, value->data - WIRE_HEADER, WIRE_HEADER + value->len);
			break;
	}
	return to + WIRE_HEADER + value->len;
}

/*
 * Is the column in the set, of rows that carry the same columns as this one?
 */
static bool
is_in_set(const TransformColumn *column, ColumnSet set, const BatchRow *row)
{
	switch (set)
	{
		case COLUMNS_KEY:
			return column->def->is_key || column->def->finds;
		case COLUMNS_OLD:
			return column->finds_row;
		case COLUMNS_CARRIED:
			break;
	}
	return row->missing == NULL || !row->missing[column->def->position - 1];
}

static inline const WireValue *
values_of(const BatchRow *row, ColumnSet set)
{
	return set == COLUMNS_OLD ? row->old : row->values;
}

static void
measure(Filling *fillings, int n, BatchRow **rows, int nrows, ColumnSet set)
{
	for (int r = 0; r < nrows; r++)
	{
		const WireValue *values = values_of(rows[r], set);

		for (int f = 0; f < n; f++)
		{
			const WireValue *value = &values[fillings[f].column];

			fillings[f].size += value->data ? value->len : 0;
			fillings[f].has_null |= value->data == NULL;
		}
	}
}

static void
fill(Filling *fillings, int n, BatchRow **rows, int nrows, ColumnSet set)
{
	for (int r = 0; r < nrows; r++)
	{
		const WireValue *values = values_of(rows[r], set);

		for (int f = 0; f < n; f++)
			fillings[f].next = put_value(fillings[f].next,
										 &values[fillings[f].column]);
	}
}

void
parameters_add_columns(Parameters *p, Transform *transform, BatchRow **rows,
					   int nrows, ColumnSet set)
{
	Filling    *fillings = palloc0_array(Filling, transform->ncolumns);
	int			n = 0;

	for (int i = 0; i < transform->ncolumns; i++)
		if (is_in_set(&transform->columns[i], set, rows[0]))
			fillings[n++].column = i;
	measure(fillings, n, rows, nrows, set);
	for (int f = 0; f < n; f++)
	{
		fillings[f].start = palloc(ARRAY_HEADER + fillings[f].size +
								   (Size) nrows * WIRE_HEADER);
		fillings[f].next =
			put_array_header(fillings[f].start,
							 element_type(&transform->columns[fillings[f].column]),
							 nrows, fillings[f].has_null);
	}
	fill(fillings, n, rows, nrows, set);
	for (int f = 0; f < n; f++)
		add_parameter(p, fillings[f].start,
					  fillings[f].next - fillings[f].start, 1);
}

void
parameters_add_rows(Parameters *p, BatchRow **rows, int nrows,
					const int *columns, int ncolumns)
{
	uint16		header = pg_hton16((uint16) ncolumns);
	Size		size = nrows * (sizeof(header) + (Size) ncolumns * WIRE_HEADER);
	char	   *start;
	char	   *next;

	for (int r = 0; r < nrows; r++)
		for (int i = 0; i < ncolumns; i++)
		{
			const WireValue *value = &rows[r]->values[columns[i]];

			size += value->data ? value->len : 0;
		}
	start = next = palloc(size);
	for (int r = 0; r < nrows; r++)
	{
		memcpy(next, &header, sizeof(header));
		next += sizeof(header);
		for (int i = 0; i < ncolumns; i++)
			next = put_value(next, &rows[r]->values[columns[i]]);
	}
	add_parameter(p, start, next - start, 1);
}

void
parameters_add_numbers(Parameters *p, const int *numbers, int n)
{
	char	   *array = palloc(ARRAY_HEADER + (Size) n * (WIRE_HEADER + 4));
	char	   *next = put_array_header(array, INT4OID, n, false);

	for (int i = 0; i < n; i++)
	{
		next = put_int32(next, sizeof(int32));
		next = put_int32(next, numbers[i]);
	}
	add_parameter(p, array, next - array, 1);
}

void
parameters_add_value(Parameters *p, const TransformColumn *column,
					 const WireValue *value)
{
	char	   *array = palloc(ARRAY_HEADER + (Size) WIRE_HEADER + value->len);
	char	   *next = put_array_header(array, element_type(column), 1,
										value->data == NULL);

	next = put_value(next, value);
	add_parameter(p, array, next - array, 1);
}

void
parameters_add_text(Parameters *p, const char *text)
{
	add_parameter(p, text, text ? strlen(text) : 0, 0);
}
