/*-------------------------------------------------------------------------
 *
 * insert_rows.c
 *		On a target: many rows into a table, by COPY's code in one statement.
 *
 * COPY FROM puts rows on pages and into the WAL many at a time, which INSERT
 * does not.  But a COPY cannot go through a pipeline, and a stream's batch is
 * a pipeline of which COPY would be the only part that has to be waited for.
 * So the rows come as a parameter of an ordinary statement, in the format of
 * COPY BINARY without header and trailer, and are handed to COPY's code here.
 *
 * What runs as whom is as for COPY, see guard.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "compat.h"
#include "core/guard.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_relation.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"

PG_FUNCTION_INFO_V1(bluegreen_insert_rows);

/*
 * COPY BINARY begins with a signature that ends with a zero, flags, and the
 * length of what is to extend them one day.
 */
static const char header[11 + 4 + 4] = "PGCOPY\n\377\r\n";

/* What is left to read; COPY's callback has no argument for it. */
typedef struct Piece
{
	const char *data;
	int			len;
} Piece;

static Piece pieces[2];			/* header, rows */

/*
 * COPY's source of data: at most maxread bytes; 0 is the end.
 */
static int
read_pieces(void *buffer, int minread, int maxread)
{
	int			done = 0;

	for (int i = 0; i < lengthof(pieces) && done < maxread; i++)
	{
		int			n = Min(pieces[i].len, maxread - done);

		memcpy((char *) buffer + done, pieces[i].data, n);
		pieces[i].data += n;
		pieces[i].len -= n;
		done += n;
	}
	return done;
}

/*
 * Tables that COPY would not do justice to: INSERT is for them.
 */
static void
check_relation(Relation rel)
{
	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table",
						RelationGetRelationName(rel))));
	if (rel->rd_rules != NULL ||
		check_enable_rls(RelationGetRelid(rel), InvalidOid,
						 false) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" has rules or row-level security",
						RelationGetRelationName(rel)),
				 errhint("Use INSERT.")));
	if (!rel->rd_islocaltemp)
		PreventCommandIfReadOnly("insert_rows()");
}

/*
 * Returns the number of rows that COPY's code inserted.
 */
static uint64
copy_rows(Relation rel, List *columns)
{
	ParseState *pstate = make_parsestate(NULL);
	List	   *options = list_make1(makeDefElem("format",
												 (Node *) makeString("binary"),
												 -1));
	CopyFromState copy;
	uint64		count;

	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL,
										 false, false);
	copy = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_pieces, columns,
						 options);
	count = CopyFrom(copy);
	EndCopyFrom(copy);
	free_parsestate(pstate);
	return count;
}

static uint64
copy_rows_as(Oid owner, Relation rel, List *columns)
{
	volatile uint64 count = 0;

	if (!OidIsValid(owner))
		return copy_rows(rel, columns);
	AS_OWNER(owner, count = copy_rows(rel, columns));
	return count;
}

/*
 * bluegreen.insert_rows(target regclass, columns name[], rows bytea,
 *		number bigint): insert rows, which are in the format of COPY BINARY
 * without header and trailer and must be so many.  Needs a session that has
 * called begin_apply(), and the privileges that COPY needs.  Takes
 * RowExclusiveLock on the target until the end of the transaction.  Errors: as
 * COPY; a row that a trigger left out.
 */
Datum
bluegreen_insert_rows(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	List	   *columns = guard_column_names(PG_GETARG_ARRAYTYPE_P(1));
	bytea	   *rows = PG_GETARG_BYTEA_PP(2);
	int64		expected = PG_GETARG_INT64(3);
	Relation	rel;
	Oid			owner;
	uint64		count;

	guard_require();
	rel = table_open(relid, RowExclusiveLock);
	check_relation(rel);
	owner = guard_copy_owner(relid, columns);
	if (guard_write_hook)
		guard_write_hook(relid);
	pieces[0] = (Piece) {header, sizeof(header)};
	pieces[1] = (Piece) {VARDATA_ANY(rows), VARSIZE_ANY_EXHDR(rows)};
	count = copy_rows_as(owner, rel, columns);
	if (count != expected)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("inserted " UINT64_FORMAT " of " INT64_FORMAT " rows into \"%s\"",
						count, expected, RelationGetRelationName(rel))));
	table_close(rel, NoLock);
	PG_RETURN_VOID();
}
