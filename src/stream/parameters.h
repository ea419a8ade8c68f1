/*-------------------------------------------------------------------------
 *
 * parameters.h
 *		Rows of a batch as the parameters of a statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_PARAMETERS_H
#define BG_PARAMETERS_H

#include "stream/batch.h"

/* The parameters of one statement, being filled. */
typedef struct Parameters
{
	int			n;
	const char **values;
	int		   *lengths;
	int		   *formats;
} Parameters;

/* Which columns of rows a statement takes. */
typedef enum ColumnSet
{
	COLUMNS_CARRIED,			/* all that are not missing */
	COLUMNS_KEY,				/* with a lookup: what finds the row */
	COLUMNS_OLD					/* without a key: of the old row */
} ColumnSet;

/* All of them allocate in CurrentMemoryContext. */
extern Parameters parameters_create(int max);

/*
 * Arrays for the columns of rows, which all carry the same columns; some columns
 * of rows (by index) in the format of COPY BINARY; an array with a number for each row;
 * and one with a single value of a column.
 */
extern void parameters_add_columns(Parameters *p, Transform *transform,
								   BatchRow **rows, int nrows, ColumnSet set);
extern void parameters_add_rows(Parameters *p, BatchRow **rows, int nrows,
								const int *columns, int ncolumns);
extern void parameters_add_numbers(Parameters *p, const int *numbers, int n);
extern void parameters_add_value(Parameters *p, const TransformColumn *column,
								 const WireValue *value);

/* A text, or NULL. */
extern void parameters_add_text(Parameters *p, const char *text);

#endif							/* BG_PARAMETERS_H */
