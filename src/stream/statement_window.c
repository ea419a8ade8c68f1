/*-------------------------------------------------------------------------
 *
 * statement_window.c
 *		Statements that a stream needs in a window only.
 *
 * Beside those that write, see statement.c: do keys of a batch conflict, who
 * wins for one row, and is there another row of a unique index in the way.  The
 * answer to a question is a number of rows, since that is what comes back from
 * the pipeline.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "compat.h"
#include "lib/stringinfo.h"
#include "stream/statement.h"
#include "stream/window.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/relcache.h"

/* 'schema.table'::regclass, ARRAY[key]::name[] */
static void
append_target(StringInfo sql, const TargetWriter *writer)
{
	const Transform *transform = writer->transform;

	appendStringInfo(sql, "%s::pg_catalog.regclass, ARRAY[",
					 quote_literal_cstr(writer->name));
	for (int k = 0; k < transform->nkeys; k++)
		appendStringInfo(sql, "%s%s", k > 0 ? ", " : "",
						 quote_literal_cstr(transform->columns[transform->keys[k]].def->name));
	appendStringInfoString(sql, "]::pg_catalog.name[]");
}

/* , u.c0, u.c1: the key that came; or of the row that is there */
static void
append_key(StringInfo sql, const TargetWriter *writer, bool there)
{
	const Transform *transform = writer->transform;

	for (int k = 0; k < transform->nkeys; k++)
	{
		appendStringInfoString(sql, ", ");
		if (there)
			appendStringInfo(sql, "t.%s",
							 quote_identifier(transform->columns[transform->keys[k]].def->name));
		else
			statement_value(sql, writer, transform->keys[k]);
	}
}

static PeerStatement *
build_check(const TargetWriter *writer)
{
	StringInfoData from;
	StringInfoData sql;
	int			n;

	initStringInfo(&from);
	initStringInfo(&sql);
	n = statement_unnest(&from, writer, NULL, true);
	appendStringInfoString(&sql, "SELECT bluegreen.check_change(");
	append_target(&sql, writer);
	appendStringInfo(&sql, ", (($%d::pg_catalog.pg_lsn[])[u.n])", n + 1);
	append_key(&sql, writer, false);
	appendStringInfo(&sql, ") FROM (SELECT *, pg_catalog.row_number() "
					 "OVER () AS n FROM %s) AS u", from.data);
	return peer_statement_create(sql.data, n + 1, NULL);
}

/* Parameters behind the columns: seen, rank. */
static void
append_weigh(StringInfo sql, const TargetWriter *writer, int n, bool there)
{
	appendStringInfoString(sql, "SELECT pg_catalog.generate_series(1, "
						   "bluegreen.weigh_change(");
	append_target(sql, writer);
	appendStringInfo(sql, ", $%d::pg_catalog.pg_lsn, %s, %s, "
					 "$%d::pg_catalog.int8", n + 1,
					 quote_literal_cstr(writer->window->policy),
					 quote_literal_cstr(writer->window->side), n + 2);
	append_key(sql, writer, there);
	appendStringInfoString(sql, ")) FROM ");
}

static PeerStatement *
build_weigh(const TargetWriter *writer)
{
	StringInfoData from;
	StringInfoData sql;
	int			n;

	initStringInfo(&from);
	initStringInfo(&sql);
	n = statement_unnest(&from, writer, NULL, true);
	append_weigh(&sql, writer, n, false);
	appendStringInfoString(&sql, from.data);
	return peer_statement_create(sql.data, n + 2, NULL);
}

/* ---- unique indexes other than the key's ---- */

/*
 * t is the row that has what the incoming one would have in the index, and is
 * another one.
 */
static char *
way_condition(const TargetWriter *writer, const WindowWay *way)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < way->ncolumns; i++)
	{
		const char *name =
			writer->transform->columns[way->columns[i]].def->name;

		appendStringInfo(&sql, "t.%s %s ", quote_identifier(name),
						 way->operators[i]);
		statement_value(&sql, writer, way->columns[i]);
		appendStringInfoString(&sql, " AND ");
	}
	appendStringInfoString(&sql, "NOT (");
	statement_key_condition(&sql, writer);
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

static void
build_way(const TargetWriter *writer, WindowWay *way)
{
	char	   *condition = way_condition(writer, way);
	StringInfoData from;
	StringInfoData sql;
	int			n;

	initStringInfo(&from);
	n = statement_unnest(&from, writer, NULL, false);
	way->find = peer_statement_create(psprintf("SELECT FROM %s AS t, %s WHERE %s FOR UPDATE OF t",
											   writer->name, from.data,
											   condition), n, NULL);
	initStringInfo(&sql);
	append_weigh(&sql, writer, n, true);
	appendStringInfo(&sql, "%s AS t, %s WHERE %s", writer->name, from.data,
					 condition);
	way->weigh = peer_statement_create(sql.data, n + 2, NULL);
	way->note = peer_statement_create(psprintf("SELECT bluegreen.note_row("
											   "pg_catalog.to_jsonb(t)::pg_catalog.text) "
											   "FROM %s LEFT JOIN %s AS t ON %s",
											   from.data, writer->name,
											   condition), n, NULL);
	way->remove = peer_statement_create(psprintf("DELETE FROM %s AS t USING %s WHERE %s",
												 writer->name, from.data,
												 condition), n, NULL);
}

/* ---- rows that may make place ---- */

/*
 * Is no row with the same values but this one on the source, by a unique
 * constraint there over the same columns?
 */
static bool
source_is_unique(const TargetWriter *writer, const WindowWay *way)
{
	const Transform *transform = writer->transform;
	Bitmapset  *columns = NULL;
	Relation	source;
	bool		result = false;
	ListCell   *lc;

	for (int i = 0; i < way->ncolumns; i++)
	{
		const TransformColumn *column = &transform->columns[way->columns[i]];

		if (column->source_attno <= 0 ||
			transform->source[column->source_attno - 1].type != column->type)
			return false;
		columns = bms_add_member(columns, column->source_attno);
	}
	source = table_open(transform->row->source, AccessShareLock);
	foreach(lc, RelationGetIndexList(source))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		result = result ||
			(index->rd_index->indisunique && index->rd_index->indimmediate &&
			 index->rd_index->indisvalid &&
			 RelationGetIndexPredicate(index) == NIL &&
			 RelationGetIndexExpressions(index) == NIL &&
			 bms_equal(index_columns(RelationGetRelid(index)), columns));
		index_close(index, AccessShareLock);
	}
	table_close(source, AccessShareLock);
	return result;
}

/*
 * The source's columns that are the target's key, as a literal; NULL if they are
 * not carried as they are.
 */
static char *
source_key(const TargetWriter *writer)
{
	const Transform *transform = writer->transform;
	StringInfoData names;

	if (transform->nkeys != bms_num_members(transform->chunk_key))
		return NULL;
	initStringInfo(&names);
	for (int k = 0; k < transform->nkeys; k++)
	{
		int			attnum =
			transform->columns[transform->keys[k]].source_attno;

		if (attnum <= 0 || !bms_is_member(attnum, transform->chunk_key))
			return NULL;
		appendStringInfo(&names, "%s%s", k > 0 ? ", " : "",
						 quote_literal_cstr(NameStr(TupleDescAttr(transform->source_desc,
																  attnum - 1)->attname)));
	}
	return psprintf("ARRAY[%s]::pg_catalog.name[]", names.data);
}

/*
 * A row that we had seen, or have written just now, may make place if it cannot
 * be like that on the source, and if we can say which one it is.  With the policy
 * "error" a human decides.
 */
static void
build_place(const TargetWriter *writer, WindowWay *way, const char *origin)
{
	const Transform *transform = writer->transform;
	char	   *names = source_key(writer);
	StringInfoData key;
	StringInfoData from;
	int			n;

	if (names == NULL || strcmp(writer->window->policy, "error") == 0 ||
		!source_is_unique(writer, way))
		return;
	initStringInfo(&key);
	initStringInfo(&from);
	n = statement_unnest(&from, writer, NULL, false);
	for (int k = 0; k < transform->nkeys; k++)
		appendStringInfo(&key, ", t.%s::pg_catalog.text",
						 quote_identifier(transform->columns[transform->keys[k]].def->name));
	way->key = peer_statement_create(psprintf("SELECT bluegreen.note_row("
											  "ARRAY[t.xmin::pg_catalog.text%s]::pg_catalog.text) "
											  "FROM %s AS t, %s WHERE %s",
											  key.data, writer->name, from.data,
											  way_condition(writer, way)),
									 n, NULL);
	way->is_written_now =
		pstrdup("SELECT WHERE (bluegreen.noted_row()::pg_catalog.text[])[1] = "
				"pg_catalog.pg_current_xact_id()::pg_catalog.xid::pg_catalog.text");
	way->owe = psprintf("INSERT INTO bluegreen.window_owed "
						"SELECT %s, %d, n.key, %s, n.key FROM (SELECT "
						"(bluegreen.noted_row()::pg_catalog.text[])[2:] AS key) AS n "
						"ON CONFLICT DO NOTHING",
						quote_literal_cstr(origin), transform->row->id, names);
}

static int
column_number(const TargetWriter *writer, const char *name)
{
	for (int i = 0; i < writer->transform->ncolumns; i++)
		if (strcmp(writer->transform->columns[i].def->name, name) == 0)
			return i;
	return -1;
}

/* Is it an index over the key's columns and no others? */
static bool
is_key(const TargetWriter *writer, const WindowWay *way)
{
	int			n = 0;

	for (int i = 0; i < way->ncolumns; i++)
		if (writer->transform->columns[way->columns[i]].def->is_key)
			n++;
	return n == way->ncolumns && n == writer->transform->nkeys;
}

/*
 * The unique indexes in which a row may be in the way.  Those over expressions or
 * a part of the table, or over columns that the mapping does not write, are not
 * among them: what they refuse stops the stream.
 */
static void
load_ways(Peer *peer, TargetWriter *writer, const char *origin)
{
	MappingRow *row = writer->transform->row;
	const char *args[] = {row->target_schema, row->target_table};
	PeerResult *result;
	WindowWay  *way = NULL;
	WindowWriter *window = writer->window;
	bool		exact = true;

	result = peer_query(peer,
						"SELECT i.indexrelid, a.attname, "
						"pg_catalog.format('OPERATOR(%I.%s)', opn.nspname, o.oprname), "
						"i.indnkeyatts, "
						"(SELECT co.collisdeterministic FROM pg_catalog.pg_collation co "
						" WHERE co.oid = i.indcollation[p.n]) "
						"FROM pg_catalog.pg_class c "
						"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
						"JOIN pg_catalog.pg_index i ON i.indrelid = c.oid "
						" AND i.indisunique AND i.indimmediate "
						" AND i.indpred IS NULL AND i.indexprs IS NULL "
						"CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts - 1) AS p(n) "
						"JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid "
						" AND a.attnum = i.indkey[p.n] "
						"JOIN pg_catalog.pg_opclass oc ON oc.oid = i.indclass[p.n] "
						"JOIN pg_catalog.pg_amop am ON am.amopfamily = oc.opcfamily "
						" AND am.amoplefttype = oc.opcintype AND am.amoprighttype = oc.opcintype "
						" AND am.amopstrategy = 3 "
						"JOIN pg_catalog.pg_operator o ON o.oid = am.amopopr "
						"JOIN pg_catalog.pg_namespace opn ON opn.oid = o.oprnamespace "
						"WHERE n.nspname = $1 AND c.relname = $2 "
						"ORDER BY i.indexrelid, p.n", 2, args);
	window->ways = palloc0_array(WindowWay, result->ntuples + 1);
	for (int i = 0; i < result->ntuples; i++)
	{
		char	  **values = result->values[i];
		int			column = column_number(writer, values[1]);

		if (i == 0 || strcmp(values[0], result->values[i - 1][0]) != 0)
		{
			way = &window->ways[window->nways];
			memset(way, 0, sizeof(*way));
			exact = true;
			way->columns = palloc0_array(int, atoi(values[3]));
			way->operators = palloc0_array(char *, atoi(values[3]));
		}
		if (column < 0)
			continue;
		exact = exact && (values[4] == NULL || values[4][0] == 't');
		way->columns[way->ncolumns] = column;
		way->operators[way->ncolumns++] = values[2];
		if (way->ncolumns == atoi(values[3]) && !is_key(writer, way))
		{
			build_way(writer, way);
			if (exact)
				build_place(writer, way, origin);
			window->nways++;
		}
	}
}

/*
 * Ask the peer what a window needs beside target_writer_create().  side is
 * where the changes come from, and origin their stream.  In a transaction; result
 * in CurrentMemoryContext.
 */
void
window_writer_load(Peer *peer, TargetWriter *writer, const char *side,
				   const char *origin)
{
	MappingRow *row = writer->transform->row;
	char	   *colon = strchr(row->conflict, ':');

	if (strcmp(row->conflict, "none") == 0)
		return;
	writer->window = palloc0_object(WindowWriter);
	writer->window->policy = colon == NULL ? row->conflict :
		pnstrdup(row->conflict, colon - row->conflict);
	writer->window->side = pstrdup(side);
	writer->window->decider = window_decider(writer->transform);
	writer->window->check = build_check(writer);
	writer->window->weigh = build_weigh(writer);
	load_ways(peer, writer, origin);
}
