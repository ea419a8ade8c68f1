/*-------------------------------------------------------------------------
 *
 * statement_lookup.c
 *		Build the statements of a mapping with a lookup.
 *
 * What comes is the relation "incoming"; the lookup makes the target's rows of
 * it, and these are written:
 *
 *		WITH found AS MATERIALIZED (
 *			WITH incoming (id, cart_id, bluegreen_ordinal) AS (
 *				SELECT u.c0, u.c1, u.n
 *				FROM ROWS FROM (unnest($1::int4[]), ...) WITH ORDINALITY
 *					AS u(c0, c1, n))
 *			SELECT * FROM (<lookup>) AS l)
 *		UPDATE t SET a = f.a FROM found AS f
 *			WHERE f.bluegreen_passes AND (SELECT check_lookup(...) FROM found)
 *				AND t.id OPERATOR(pg_catalog.=) f.id::int4
 *
 * check_lookup() raises an error unless each incoming row was found and none is
 * written twice; the last parameter is how many are incoming.  An UPDATE would
 * take any of two rows for one of the target, so there each has to have a key of
 * its own; alone, as it is applied after that error, it has.  Its subquery
 * depends on no row, so it is evaluated before any row is written.  It also
 * tells the session how many rows the statement writes (tally.c), since the
 * lookup may leave rows out.
 *
 * A delete carries only what the row is found by; the rest of incoming is NULL
 * then.  lookup_describe.c sees to it that nobody asks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "lib/stringinfo.h"
#include "stream/statement.h"
#include "utils/builtins.h"

static bool
is_key(const Lookup *lookup, const char *name)
{
	ListCell   *lc;

	foreach(lc, lookup->key)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

static void
load_column(Peer *peer, TargetWriter *writer, const char *name)
{
	MappingRow *row = writer->transform->row;
	LookupColumn *column = &writer->lookup_columns[writer->nlookup++];
	const char *args[] = {row->target_schema, row->target_table, name};
	PeerResult *result;

	result = peer_query(peer,
						"SELECT a.attidentity = 'a', "
						"pg_catalog.format_type(a.atttypid, -1) "
						"FROM pg_catalog.pg_attribute a "
						"JOIN pg_catalog.pg_class c ON c.oid = a.attrelid "
						"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
						"WHERE n.nspname = $1 AND c.relname = $2 "
						"AND a.attname = $3", 3, args);
	if (result->ntuples == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("target table \"%s\" has no column \"%s\" any more",
						writer->name, name),
				 errhint("Give the mapping another lookup with bluegreen.alter_mapping().")));
	column->name = pstrdup(quote_identifier(name));
	column->always_identity = result->values[0][0][0] == 't';
	if (!is_key(writer->lookup, name))
		return;
	column->type = result->values[0][1];
	column->operator = statement_key_operator(peer, writer, name);
}

/*
 * Ask the peer what must be known to write what a lookup gives.  Result in
 * CurrentMemoryContext.  Remote errors are raised.
 */
void
lookup_load(Peer *peer, TargetWriter *writer)
{
	ListCell   *lc;

	writer->lookup = writer->transform->row->lookup;
	writer->inserts_many = false;
	writer->takes_binary = true;	/* into the stage, which is ours */
	writer->lookup_columns =
		palloc0_array(LookupColumn, list_length(writer->lookup->columns));
	foreach(lc, writer->lookup->columns)
	{
		load_column(peer, writer, lfirst(lc));
	}
}

/*
 * WITH found AS (...), over any query that gives incoming.
 */
static void
append_found(StringInfo sql, const TargetWriter *writer, const char *incoming)
{
	const Transform *transform = writer->transform;

	appendStringInfoString(sql, "WITH found AS MATERIALIZED (WITH incoming (");
	for (int i = 0; i < transform->ncolumns; i++)
		appendStringInfo(sql, "%s, ",
						 quote_identifier(transform->columns[i].def->name));
	appendStringInfo(sql, "bluegreen_ordinal) AS (%s) SELECT * FROM (%s) AS l) ",
					 incoming, writer->lookup->query);
}

/*
 * The query that gives the rows of a batch as incoming.  Returns how many
 * parameters it takes.
 */
static int
build_incoming(StringInfo sql, const TargetWriter *writer, bool key_only)
{
	const Transform *transform = writer->transform;
	StringInfoData arrays;
	StringInfoData names;
	int			n = 0;

	initStringInfo(&arrays);
	initStringInfo(&names);
	appendStringInfoString(sql, "SELECT ");
	for (int i = 0; i < transform->ncolumns; i++)
	{
		const TransformColumn *column = &transform->columns[i];

		if (key_only && !column->def->is_key && !column->def->finds)
		{
			appendStringInfo(sql, "NULL::%s, ", column->def->type);
			continue;
		}
		appendStringInfo(sql, column->def->wire == WIRE_BINARY ? "u.c%d, " :
						 "u.c%d::%s, ", i, column->def->type);
		n++;
		appendStringInfo(&arrays, "%spg_catalog.unnest($%d::%s[])",
						 n > 1 ? ", " : "", n, column->carrier);
		appendStringInfo(&names, "c%d, ", i);
	}
	appendStringInfo(sql, "u.n FROM ROWS FROM (%s) WITH ORDINALITY AS u(%sn)",
					 arrays.data, names.data);
	return n;
}

/*
 * Which of the rows found are written, once all is well with them.  distinct:
 * what each of them must have for itself.
 */
static void
append_checked(StringInfo sql, const TargetWriter *writer, const char *nrows,
			   const char *distinct)
{
	appendStringInfo(sql,
					 "f.bluegreen_passes AND (SELECT bluegreen.check_lookup("
					 "%s, %s, "
					 "pg_catalog.count(DISTINCT c.bluegreen_ordinal), "
					 "pg_catalog.count(*) FILTER (WHERE c.bluegreen_passes), "
					 "pg_catalog.count(DISTINCT %s)"
					 " FILTER (WHERE c.bluegreen_passes)) FROM found AS c)",
					 quote_literal_cstr(writer->name), nrows, distinct);
}

static void
append_passes(StringInfo sql, const TargetWriter *writer, const char *nrows)
{
	append_checked(sql, writer, nrows, "c.bluegreen_ordinal");
}

static void
append_columns(StringInfo sql, const TargetWriter *writer, const char *prefix)
{
	for (int i = 0; i < writer->nlookup; i++)
		appendStringInfo(sql, "%s%s%s", i > 0 ? ", " : "", prefix,
						 writer->lookup_columns[i].name);
}

/*
 * A key column of a type whose equal values are the same bytes?
 */
static bool
equal_means_same(const LookupColumn *column)
{
	static const char *const types[] = {
		"boolean", "smallint", "integer", "bigint", "oid", "uuid", "date",
		"timestamp without time zone", "timestamp with time zone", "bytea"
	};

	for (int i = 0; column->operator != NULL && i < lengthof(types); i++)
		if (strcmp(column->type, types[i]) == 0)
			return true;
	return false;
}

/*
 * a = f.a, ...: of all columns but those that cannot be set, and those that
 * are the same already.  False if there are none.
 */
static bool
append_set(StringInfo sql, const TargetWriter *writer, const char *prefix)
{
	bool		any = false;

	for (int i = 0; i < writer->nlookup; i++)
	{
		const LookupColumn *column = &writer->lookup_columns[i];

		if (column->always_identity || equal_means_same(column))
			continue;
		appendStringInfo(sql, "%s%s = %s%s", any ? ", " : "", column->name,
						 prefix, column->name);
		any = true;
	}
	return any;
}

static void
append_key_condition(StringInfo sql, const TargetWriter *writer)
{
	bool		first = true;

	for (int i = 0; i < writer->nlookup; i++)
	{
		const LookupColumn *column = &writer->lookup_columns[i];

		if (column->operator == NULL)
			continue;
		appendStringInfo(sql, "%st.%s %s f.%s::%s", first ? "" : " AND ",
						 column->name, column->operator, column->name,
						 column->type);
		first = false;
	}
}

static void
append_key_list(StringInfo sql, const TargetWriter *writer, const char *prefix)
{
	bool		first = true;

	for (int i = 0; i < writer->nlookup; i++)
	{
		if (writer->lookup_columns[i].operator == NULL)
			continue;
		appendStringInfo(sql, "%s%s%s", first ? "" : ", ", prefix,
						 writer->lookup_columns[i].name);
		first = false;
	}
}

static void
append_on_conflict(StringInfo sql, const TargetWriter *writer, bool update)
{
	StringInfoData set;

	initStringInfo(&set);
	appendStringInfoString(sql, " ON CONFLICT (");
	append_key_list(sql, writer, "");
	if (update && append_set(&set, writer, "EXCLUDED."))
		appendStringInfo(sql, ") DO UPDATE SET %s", set.data);
	else
		appendStringInfoString(sql, ") DO NOTHING");
}

static void
append_insert(StringInfo sql, const TargetWriter *writer)
{
	appendStringInfo(sql, "INSERT INTO %s AS t (", writer->name);
	append_columns(sql, writer, "");
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
}

/*
 * Of those found that lead to one row of the target, the last one.
 */
static void
append_latest(StringInfo sql, const TargetWriter *writer, const char *condition)
{
	appendStringInfoString(sql, "(SELECT DISTINCT ON (");
	append_key_list(sql, writer, "");
	appendStringInfo(sql, ") f.* FROM found AS f WHERE %s ORDER BY ", condition);
	append_key_list(sql, writer, "");
	appendStringInfoString(sql, ", f.bluegreen_ordinal DESC)");
}

/*
 * UPDATE; false if there is nothing to set.  latest: of two rows for one of the
 * target the last one counts; else they are an error.
 */
static bool
append_update(StringInfo sql, const TargetWriter *writer, const char *nrows,
			  bool latest)
{
	StringInfoData key;

	appendStringInfo(sql, "UPDATE %s AS t SET ", writer->name);
	if (!append_set(sql, writer, "f."))
		return false;
	initStringInfo(&key);
	appendStringInfoString(&key, "(");
	append_key_list(&key, writer, "c.");
	appendStringInfoString(&key, ")");
	appendStringInfoString(sql, " FROM ");
	if (latest)
		append_latest(sql, writer, "f.bluegreen_passes");
	else
		appendStringInfoString(sql, "found");
	appendStringInfoString(sql, " AS f WHERE ");
	append_checked(sql, writer, nrows,
				   latest ? "c.bluegreen_ordinal" : key.data);
	appendStringInfoString(sql, " AND ");
	append_key_condition(sql, writer);
	return true;
}

static void
append_statement(StringInfo sql, const TargetWriter *writer,
				 StatementKind kind, const char *nrows)
{
	switch (kind)
	{
		case STATEMENT_DELETE:
			appendStringInfo(sql, "DELETE FROM %s AS t USING found AS f WHERE ",
							 writer->name);
			append_passes(sql, writer, nrows);
			appendStringInfoString(sql, " AND ");
			append_key_condition(sql, writer);
			break;
		case STATEMENT_LOOK:
		case STATEMENT_LOOK_OLD:
			appendStringInfoString(sql, "SELECT FROM found AS f WHERE ");
			append_passes(sql, writer, nrows);
			break;
		case STATEMENT_NOTE:
			appendStringInfo(sql, "SELECT bluegreen.note_row("
							 "pg_catalog.to_jsonb(t)::pg_catalog.text) "
							 "FROM found AS f LEFT JOIN %s AS t ON ",
							 writer->name);
			append_key_condition(sql, writer);
			appendStringInfoString(sql, " WHERE ");
			append_passes(sql, writer, nrows);
			break;
		case STATEMENT_INSERT:
		case STATEMENT_INSERT_ABSENT:
		case STATEMENT_UPSERT:
			append_insert(sql, writer);
			append_columns(sql, writer, "f.");
			appendStringInfoString(sql, " FROM found AS f WHERE ");
			append_passes(sql, writer, nrows);
			if (kind != STATEMENT_INSERT)
				append_on_conflict(sql, writer, kind == STATEMENT_UPSERT);
			break;
		default:
			elog(ERROR, "unexpected statement %d with a lookup", (int) kind);
	}
}

/*
 * Build a statement over rows of a batch.  Returns the number of parameters,
 * the last of which is the number of rows; 0 if there is nothing to do.
 */
int
lookup_build(StringInfo sql, const TargetWriter *writer, StatementKind kind)
{
	StringInfoData incoming;
	char	   *nrows;
	int			n;

	initStringInfo(&incoming);
	n = build_incoming(&incoming, writer,
					   kind == STATEMENT_DELETE || kind == STATEMENT_NOTE ||
					   kind == STATEMENT_LOOK_OLD);
	nrows = psprintf("$%d::pg_catalog.int8", ++n);
	append_found(sql, writer, incoming.data);
	if (kind != STATEMENT_UPDATE)
		append_statement(sql, writer, kind, nrows);
	else if (!append_update(sql, writer, nrows, false))
		return 0;
	return n;
}

/*
 * Build the statement that writes the rows of a copy: those that the query
 * incoming gives, with the larger bluegreen_ordinal the later.  nrows: an
 * expression for how many they are.  False if there is nothing to do.
 */
bool
lookup_build_copy(StringInfo sql, const TargetWriter *writer,
				  const char *incoming, const char *nrows)
{
	const MappingRow *row = writer->transform->row;
	StringInfoData passes;

	append_found(sql, writer, incoming);
	if (row->on_write == ON_WRITE_PATCH)
		return append_update(sql, writer, nrows, true);
	if (row->on_write == ON_WRITE_MIRROR &&
		row->on_delete == ON_DELETE_DELETE && !row->target_shared)
	{
		append_statement(sql, writer, STATEMENT_INSERT, nrows);
		return true;
	}
	append_insert(sql, writer);
	append_columns(sql, writer, "s.");
	initStringInfo(&passes);
	append_passes(&passes, writer, nrows);
	appendStringInfoString(sql, " FROM ");
	append_latest(sql, writer, passes.data);
	appendStringInfoString(sql, " AS s");
	append_on_conflict(sql, writer, true);
	return true;
}
