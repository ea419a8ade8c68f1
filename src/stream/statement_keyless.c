/*-------------------------------------------------------------------------
 *
 * statement_keyless.c
 *		The statements that find rows of a target without a key.
 *
 * A row is found by all its values, compared as they are stored
 * (record_image_eq): so 1.0 is not 1.00, and types without an equality, such
 * as json, compare as well.  Of rows that are the same any will do, but each
 * must be taken once.  So the old rows that a statement looks for are numbered
 * on the source (keyless.c): those that are the same form a group g and are
 * counted by k.  The target's rows that look like the group's are counted too,
 * and number k is the row for number k:
 *
 *	WITH u AS (old rows, maybe new rows, g, k),
 *		m AS (SELECT t.tableoid AS r, t.ctid AS p, u.g, row_number()
 *				OVER (PARTITION BY u.g) AS k FROM t JOIN u ON u.k = 1
 *				AND image_hash(t.a, ...) = image_hash(u.o0, ...)
 *				AND record_image_eq(ROW(t.a, ...), ROW(u.o0, ...)))
 *	DELETE FROM t USING m, u WHERE t.tableoid = m.r AND t.ctid = m.p
 *		AND m.g = u.g AND m.k = u.k
 *
 * The hash makes that one pass over the target, however many rows are looked
 * for.  Where the target has an index over NOT NULL columns, their equality is
 * put beside the hash, and the planner may use it; so that it knows how many
 * rows it is about, these statements are planned for each batch.
 *
 * A replaced row keeps what the mapping does not write: it is deleted, and
 * inserted again with the new values and the rest of the old ones, which also
 * changes columns that are GENERATED ALWAYS.  All are deleted before the first
 * is inserted, so values of unique indexes may go from one to another.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "lib/stringinfo.h"
#include "stream/statement.h"
#include "utils/builtins.h"

#define MAX_HASHED	99			/* a function has at most 100 arguments */

/*
 * The column of the mapping that rows are found by and that has this name, or
 * -1.
 */
static int
finding_column(const Transform *transform, const char *name)
{
	for (int i = 0; i < transform->ncolumns; i++)
		if (transform->columns[i].finds_row &&
			strcmp(transform->columns[i].def->name, name) == 0)
			return i;
	return -1;
}

/*
 * Look for an index of the target that may help, a unique one first: as many
 * of its leading columns as are NOT NULL and written by the mapping.
 */
void
keyless_load_locators(Peer *peer, TargetWriter *writer)
{
	Transform  *transform = writer->transform;
	MappingRow *row = transform->row;
	const char *args[] = {row->target_schema, row->target_table};
	const char *index = "";
	PeerResult *result;

	result = peer_query(peer,
						"SELECT i.indexrelid, p.n, a.attname,"
						" pg_catalog.format('OPERATOR(%I.%s)', opn.nspname, o.oprname) "
						"FROM pg_catalog.pg_class c "
						"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
						"JOIN pg_catalog.pg_index i ON i.indrelid = c.oid"
						" AND i.indisvalid AND i.indpred IS NULL "
						"CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts - 1) AS p(n) "
						"JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid"
						" AND a.attnum = i.indkey[p.n] AND a.attnotnull "
						"JOIN pg_catalog.pg_opclass oc ON oc.oid = i.indclass[p.n] "
						"JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod AND am.amname = 'btree' "
						"JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily"
						" AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype"
						" AND ao.amopstrategy = 3 "
						"JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr "
						"JOIN pg_catalog.pg_namespace opn ON opn.oid = o.oprnamespace "
						"WHERE n.nspname = $1 AND c.relname = $2 "
						"ORDER BY i.indisunique DESC, i.indexrelid, p.n", 2, args);
	writer->locators = palloc0_array(Locator, Max(result->ntuples, 1));
	for (int r = 0; r < result->ntuples; r++)
	{
		char	  **values = result->values[r];
		int			column = finding_column(transform, values[2]);

		if (writer->nlocators > 0 && strcmp(values[0], index) != 0)
			break;
		if (column < 0 || atoi(values[1]) != writer->nlocators)
			continue;
		index = values[0];
		writer->locators[writer->nlocators].column = column;
		writer->locators[writer->nlocators].operator = values[3];
		writer->nlocators++;
	}
}

/*
 * WITH u AS (the rows of the parameters): o0, ... are old values, c0, ... new
 * ones, then g and k.  Returns how many parameters.
 */
static int
append_incoming(StringInfo sql, const TargetWriter *writer, bool with_new)
{
	const Transform *transform = writer->transform;
	StringInfoData arrays;
	StringInfoData names;
	int			n = 0;

	initStringInfo(&arrays);
	initStringInfo(&names);
	appendStringInfoString(sql, "WITH u AS MATERIALIZED (SELECT ");
	for (int c = 0; c < transform->ncolumns * (with_new ? 2 : 1); c++)
	{
		int			i = c % transform->ncolumns;
		char		prefix = c < transform->ncolumns ? 'o' : 'c';
		const TransformColumn *column = &transform->columns[i];

		if (prefix == 'o' && !column->finds_row)
			continue;
		appendStringInfo(&arrays, "pg_catalog.unnest($%d::%s[]), ", ++n,
						 column->carrier);
		appendStringInfo(&names, "%c%d, ", prefix, i);
		appendStringInfo(sql, "%c%d", prefix, i);
		if (column->def->wire != WIRE_BINARY)
			appendStringInfo(sql, "::%s AS %c%d", column->def->type, prefix, i);
		appendStringInfoString(sql, ", ");
	}
	appendStringInfo(sql, "g, k FROM ROWS FROM (%s"
					 "pg_catalog.unnest($%d::pg_catalog.int4[]), "
					 "pg_catalog.unnest($%d::pg_catalog.int4[])) "
					 "AS r(%sg, k))", arrays.data, n + 1, n + 2, names.data);
	return n + 2;
}

/*
 * The columns that rows are found by, of the target (t) or of the old row (u);
 * at most max of them.  A domain is compared as its base type, as which its
 * value came.
 */
static void
append_image(StringInfo sql, const TargetWriter *writer, bool target, int max)
{
	const Transform *transform = writer->transform;
	int			n = 0;

	for (int i = 0; i < transform->ncolumns && n < max; i++)
	{
		const TransformColumn *column = &transform->columns[i];

		if (!column->finds_row)
			continue;
		if (n++ > 0)
			appendStringInfoString(sql, ", ");
		if (!target)
			appendStringInfo(sql, "u.o%d", i);
		else if (column->def->wire == WIRE_BINARY)
			appendStringInfo(sql, "t.%s::%s",
							 quote_identifier(column->def->name),
							 column->carrier);
		else
			appendStringInfo(sql, "t.%s",
							 quote_identifier(column->def->name));
	}
}

/*
 * m AS (where the rows are): r, p, g, k
 */
static void
append_found(StringInfo sql, const TargetWriter *writer)
{
	const Transform *transform = writer->transform;

	appendStringInfo(sql, ", m AS MATERIALIZED (SELECT t.tableoid AS r, "
					 "t.ctid AS p, u.g, pg_catalog.row_number() "
					 "OVER (PARTITION BY u.g) AS k FROM %s AS t JOIN u "
					 "ON u.k = 1", writer->name);
	for (int l = 0; l < writer->nlocators; l++)
	{
		int			i = writer->locators[l].column;

		appendStringInfo(sql, " AND t.%s %s u.o%d",
						 quote_identifier(transform->columns[i].def->name),
						 writer->locators[l].operator, i);
	}
	appendStringInfoString(sql, " AND bluegreen.image_hash(");
	append_image(sql, writer, true, MAX_HASHED);
	appendStringInfoString(sql, ") = bluegreen.image_hash(");
	append_image(sql, writer, false, MAX_HASHED);
	appendStringInfoString(sql, ") AND pg_catalog.record_image_eq(ROW(");
	append_image(sql, writer, true, transform->ncolumns);
	appendStringInfoString(sql, "), ROW(");
	append_image(sql, writer, false, transform->ncolumns);
	appendStringInfoString(sql, ")))");
}

static void
append_delete(StringInfo sql, const TargetWriter *writer)
{
	appendStringInfo(sql, "DELETE FROM %s AS t USING m, u "
					 "WHERE t.tableoid = m.r AND t.ctid = m.p "
					 "AND m.g = u.g AND m.k = u.k", writer->name);
}

/*
 * Delete rows.  Parameters: the old rows, g, k.  Returns how many.
 */
int
keyless_build_take(StringInfo sql, const TargetWriter *writer)
{
	int			n = append_incoming(sql, writer, false);

	append_found(sql, writer);
	appendStringInfoChar(sql, ' ');
	append_delete(sql, writer);
	return n;
}

static bool
is_written(const Transform *transform, const char *name)
{
	for (int i = 0; i < transform->ncolumns; i++)
		if (strcmp(transform->columns[i].def->name, name) == 0)
			return true;
	return false;
}

/* Ways to name the columns of the target that the mapping does not write. */
typedef enum OtherName
{
	OTHER_ALIAS,				/* x0 */
	OTHER_OLD,					/* t.name */
	OTHER_NAME,					/* name */
	OTHER_CARRIED				/* d.x0 */
} OtherName;

/*
 * Those columns, each after a comma.
 */
static void
append_others(StringInfo sql, const TargetWriter *writer, OtherName how)
{
	for (int i = 0; i < writer->ntarget; i++)
	{
		const char *name = quote_identifier(writer->target_columns[i]);

		if (is_written(writer->transform, writer->target_columns[i]))
			continue;
		if (how == OTHER_ALIAS || how == OTHER_CARRIED)
			appendStringInfo(sql, ", %sx%d",
							 how == OTHER_CARRIED ? "d." : "", i);
		else
			appendStringInfo(sql, ", %s%s", how == OTHER_OLD ? "t." : "", name);
	}
}

/*
 * Replace rows.  Parameters: the old rows, the new ones, g, k.  Returns how
 * many.
 */
int
keyless_build_replace(StringInfo sql, const TargetWriter *writer)
{
	int			n = append_incoming(sql, writer, true);

	append_found(sql, writer);
	appendStringInfoString(sql, ", d (g, k");
	append_others(sql, writer, OTHER_ALIAS);
	appendStringInfoString(sql, ") AS (");
	append_delete(sql, writer);
	appendStringInfoString(sql, " RETURNING u.g, u.k");
	append_others(sql, writer, OTHER_OLD);
	appendStringInfo(sql, ") INSERT INTO %s (", writer->name);
	statement_append_columns(sql, writer);
	append_others(sql, writer, OTHER_NAME);
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	for (int i = 0; i < writer->transform->ncolumns; i++)
		appendStringInfo(sql, "%su.c%d", i > 0 ? ", " : "", i);
	append_others(sql, writer, OTHER_CARRIED);
	/* the count makes sure that all are deleted first */
	appendStringInfoString(sql, " FROM d JOIN u ON u.g = d.g AND u.k = d.k "
						   "WHERE (SELECT pg_catalog.count(*) FROM d) >= 0");
	return n;
}
