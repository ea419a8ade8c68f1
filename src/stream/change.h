/*-------------------------------------------------------------------------
 *
 * change.h
 *		What decoding hands on: a transformed row change, and the sink that
 *		takes it (the batch in the worker, text in the SQL interface).
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_CHANGE_H
#define BG_CHANGE_H

#include "lib/stringinfo.h"
#include "replication/reorderbuffer.h"
#include "stream/transform.h"

typedef enum ChangeKind
{
	CHANGE_INSERT,				/* mirror: the row is new */
	CHANGE_UPDATE,				/* mirror: the row is there */
	CHANGE_UPSERT,				/* insert, or update these columns */
	CHANGE_PATCH,				/* update if there */
	CHANGE_DELETE,				/* mirror: the row is there */
	CHANGE_DELETE_IF_THERE,
	CHANGE_MOVE					/* mirror: the key changes, and the row's
								 * other columns must be carried along */
} ChangeKind;

extern const char *const change_kind_names[];

/*
 * One row change.  Arrays have the transform's ncolumns entries and live until
 * the sink returns.  For deletes only the key columns of values are set; for
 * CHANGE_MOVE old_values holds the old key.
 *
 * Without a key there are CHANGE_INSERT, CHANGE_UPDATE and CHANGE_DELETE only:
 * values of a delete, and old_values of an update, are the whole old row.
 */
typedef struct RowChange
{
	Transform  *transform;
	ChangeKind	kind;
	Datum	   *values;
	bool	   *isnull;
	bool	   *missing;		/* not carried by the change (unchanged TOAST) */
	bool		gives_way;		/* to any change of the target, in a window */
	Datum	   *old_values;
	bool	   *old_isnull;
} RowChange;

typedef struct ChangeSink
{
	void		(*begin) (void *arg, ReorderBufferTXN *txn);
	void		(*row) (void *arg, const RowChange *change);
	void		(*filtered) (void *arg, Transform *transform);	/* or NULL */
	void		(*truncate) (void *arg, List *transforms, bool cascade,
							 bool restart_identity);
	void		(*commit) (void *arg, ReorderBufferTXN *txn,
						   XLogRecPtr end_lsn);
	/* mappings were changed by this transaction; does not return; or NULL */
	void		(*redefined) (void *arg, ReorderBufferTXN *txn);
	void		(*message) (void *arg, ReorderBufferTXN *txn, XLogRecPtr lsn,
							bool transactional, const char *prefix,
							Size size, const char *content);
	void	   *arg;
} ChangeSink;

extern void change_describe(StringInfo out, const RowChange *change);
extern void change_describe_key(StringInfo out, const RowChange *change);
extern void change_describe_old(StringInfo out, const RowChange *change);

extern void change_describe_source(StringInfo out, Transform *transform);

#endif							/* BG_CHANGE_H */
