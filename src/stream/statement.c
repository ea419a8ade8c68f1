/*-------------------------------------------------------------------------
 *
 * statement.c
 *		Build the set-based statements that write to one target table.
 *
 * Every statement takes one array per column and works on all rows at once:
 *
 *		UPDATE t SET a = u.c1 FROM ROWS FROM (unnest($1::int4[]), ...) AS u(c0, c1)
 *			WHERE t.id OPERATOR(pg_catalog.=) u.c0
 *
 * Array-typed columns and types without a binary form travel as text (in a
 * bpchar), since unnest() would flatten an array of arrays, and are cast on the
 * target.  The
 * peer's search_path is empty, so types are named with their schema and the
 * key is compared with the equality operator of the target's own index.
 *
 * Where the target allows it, rows are updated and deleted by functions that
 * need no plan, see keyed_rows.c.  They, and COPY's code, take the rows as one
 * parameter.
 *
 * Statements are prepared once a connection and planned generically: an index
 * lookup per row whatever the array's length, which the planner would
 * otherwise trade for a scan of the whole table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "stream/statement.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/*
 * The writable columns of a target, which of them are GENERATED ALWAYS
 * identities, whether other tables reference the target, and whether COPY can
 * be in binary: it looks up the input functions of all columns of the table,
 * not only of those that come.
 */
static void
load_columns(Peer *peer, TargetWriter *writer)
{
	MappingRow *row = writer->transform->row;
	const char *args[] = {row->target_schema, row->target_table};
	PeerResult *result;

	result = peer_query(peer,
						"SELECT a.attname, a.attidentity = 'a',"
						" EXISTS (SELECT FROM pg_catalog.pg_constraint f"
						"  WHERE f.confrelid = c.oid AND f.contype = 'f'),"
						" NOT EXISTS (SELECT FROM pg_catalog.pg_attribute o"
						"  JOIN pg_catalog.pg_type t ON t.oid = o.atttypid"
						"  WHERE o.attrelid = c.oid AND o.attnum > 0"
						"  AND NOT o.attisdropped"
						"  AND t.typreceive::pg_catalog.oid = 0),"
						" c.relkind IN ('r', 'p') AND NOT c.relhasrules"
						"  AND NOT c.relrowsecurity,"
						" pg_catalog.format_type(a.atttypid, a.atttypmod) "
						"FROM pg_catalog.pg_attribute a "
						"JOIN pg_catalog.pg_class c ON c.oid = a.attrelid "
						"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
						"WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 "
						"AND NOT a.attisdropped AND a.attgenerated = '' "
						"ORDER BY a.attnum", 2, args);
	writer->ntarget = result->ntuples;
	writer->target_columns = palloc0_array(char *, Max(result->ntuples, 1));
	writer->always_identity = palloc0_array(bool, row->ncolumns);
	for (int i = 0; i < result->ntuples; i++)
	{
		if (i == 0)
			writer->inserts_many = result->values[i][4][0] == 't';
		writer->target_columns[i] = result->values[i][0];
		writer->has_incoming_fk = result->values[i][2][0] == 't';
		writer->takes_binary = result->values[i][3][0] == 't';
		for (int j = 0; j < row->ncolumns; j++)
			if (strcmp(row->columns[j].name, result->values[i][0]) == 0)
			{
				writer->always_identity[j] = result->values[i][1][0] == 't';
				/* INSERT converts what does not fit exactly */
				writer->inserts_many &= row->columns[j].wire == WIRE_BINARY &&
					strcmp(row->columns[j].type, result->values[i][5]) == 0;
			}
	}
	writer->inserts_many &= writer->takes_binary;
}

/*
 * The equality operator of the target's unique index over a key column.  A
 * primary key that is not ready is aside until the table is copied.
 */
char *
statement_key_operator(Peer *peer, const TargetWriter *writer,
					   const char *column)
{
	MappingRow *row = writer->transform->row;
	const char *args[] = {row->target_schema, row->target_table, column};
	PeerResult *result;

	result = peer_query(peer,
						"SELECT pg_catalog.format('OPERATOR(%I.%s)', opn.nspname, o.oprname) "
						"FROM pg_catalog.pg_class c "
						"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
						"JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid "
						"JOIN pg_catalog.pg_index i ON i.indrelid = c.oid "
						" AND i.indisunique AND i.indimmediate AND i.indpred IS NULL "
						" AND (i.indisvalid OR i.indisprimary AND NOT i.indisready) "
						"CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts - 1) AS p(n) "
						"JOIN pg_catalog.pg_opclass oc ON oc.oid = i.indclass[p.n] "
						"JOIN pg_catalog.pg_amop am ON am.amopfamily = oc.opcfamily "
						" AND am.amoplefttype = oc.opcintype AND am.amoprighttype = oc.opcintype "
						" AND am.amopstrategy = 3 "
						"JOIN pg_catalog.pg_operator o ON o.oid = am.amopopr "
						"JOIN pg_catalog.pg_namespace opn ON opn.oid = o.oprnamespace "
						"WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = $3 "
						" AND i.indkey[p.n] = a.attnum "
						"ORDER BY i.indisprimary DESC LIMIT 1", 3, args);
	if (result->ntuples == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("target table \"%s\" has no unique index over key column \"%s\"",
						writer->name, column),
				 errhint("Create the index on the peer, or map the table again with another key.")));
	return result->values[0][0];
}

static void
load_key(Peer *peer, TargetWriter *writer)
{
	Transform  *transform = writer->transform;

	writer->key_operator = palloc0_array(char *, Max(transform->nkeys, 1));
	for (int k = 0; k < transform->nkeys; k++)
		writer->key_operator[k] =
			statement_key_operator(peer, writer,
								   transform->columns[transform->keys[k]].def->name);
}

/*
 * {id,"a b"}: the names of the key's columns as an array.
 */
static void
append_key_names(StringInfo sql, const Transform *transform)
{
	appendStringInfoString(sql, "ARRAY[");
	for (int k = 0; k < transform->nkeys; k++)
		appendStringInfo(sql, "%s%s", k > 0 ? ", " : "",
						 quote_literal_cstr(transform->columns[transform->keys[k]].def->name));
	appendStringInfoString(sql, "]::pg_catalog.name[]");
}

/*
 * Can rows be updated and deleted without a plan?  Their bytes are those that
 * COPY's code would take.
 */
static void
ask_takes_rows(Peer *peer, TargetWriter *writer)
{
	StringInfoData sql;
	PeerResult *result;

	if (!writer->inserts_many)
		return;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT bluegreen.takes_rows(%s::pg_catalog.regclass, ",
					 quote_literal_cstr(writer->name));
	append_key_names(&sql, writer->transform);
	appendStringInfoChar(&sql, ')');
	result = peer_query(peer, sql.data, 0, NULL);
	writer->takes_rows = result->values[0][0][0] == 't';
}

/*
 * Ask the peer what must be known to write to a mapping's target.  Result in
 * CurrentMemoryContext.  Remote errors are raised.
 */
TargetWriter *
target_writer_create(Peer *peer, Transform *transform)
{
	TargetWriter *writer = palloc0_object(TargetWriter);

	writer->transform = transform;
	writer->context = CurrentMemoryContext;
	writer->name = mapping_target_name(transform->row);
	if (transform->secret)
		peer_hide(peer, transform->row->target_schema,
				  transform->row->target_table);
	load_columns(peer, writer);
	if (transform->row->lookup)
	{
		lookup_load(peer, writer);
		return writer;
	}
	load_key(peer, writer);
	if (transform->nkeys == 0)
		keyless_load_locators(peer, writer);
	else
		ask_takes_rows(peer, writer);
	return writer;
}

static bool
is_missing(const bool *missing, int i)
{
	return missing != NULL && missing[i];
}

/*
 * Types whose equal values are the same bytes.  A key column of another type
 * may change its looks and stay the same key (1.0 and 1.00).
 */
static bool
equal_means_same(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case UUIDOID:
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case BYTEAOID:
			return true;
		default:
			return false;
	}
}

/*
 * Is the column set by an UPDATE of these columns?
 */
static bool
is_set(const TargetWriter *writer, const bool *missing, int i)
{
	const TransformColumn *column = &writer->transform->columns[i];

	if (is_missing(missing, i) || writer->always_identity[i])
		return false;
	return !column->def->is_key || !equal_means_same(column->type);
}

/*
 * a, b: the names of the columns that the mapping writes.
 */
void
statement_append_columns(StringInfo sql, const TargetWriter *writer)
{
	for (int i = 0; i < writer->transform->ncolumns; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(writer->transform->columns[i].def->name));
}

/*
 * u.c<i>, cast if it travelled as text.
 */
void
statement_value(StringInfo sql, const TargetWriter *writer, int i)
{
	const MappingColumn *def = writer->transform->columns[i].def;

	appendStringInfo(sql, "u.c%d", i);
	if (def->wire != WIRE_BINARY)
		appendStringInfo(sql, "::%s", def->type);
}

/*
 * ROWS FROM (unnest($1::t[]), ...) AS u(c0, ...) over the columns that are sent: all that
 * are not missing, or the key only.
 */
int
statement_unnest(StringInfo sql, const TargetWriter *writer,
				 const bool *missing, bool key_only)
{
	StringInfoData names;
	int			n = 0;

	initStringInfo(&names);
	appendStringInfoString(sql, "ROWS FROM (");
	for (int i = 0; i < writer->transform->ncolumns; i++)
	{
		const TransformColumn *column = &writer->transform->columns[i];

		if (is_missing(missing, i) || (key_only && !column->def->is_key))
			continue;
		n++;
		appendStringInfo(sql, "%spg_catalog.unnest($%d::%s[])",
						 n > 1 ? ", " : "", n, column->carrier);
		appendStringInfo(&names, "%sc%d", n > 1 ? ", " : "", i);
	}
	appendStringInfo(sql, ") AS u(%s)", names.data);
	return n;
}

void
statement_key_condition(StringInfo sql, const TargetWriter *writer)
{
	const Transform *transform = writer->transform;

	for (int k = 0; k < transform->nkeys; k++)
	{
		int			i = transform->keys[k];

		appendStringInfo(sql, "%st.%s %s ", k > 0 ? " AND " : "",
						 quote_identifier(transform->columns[i].def->name),
						 writer->key_operator[k]);
		statement_value(sql, writer, i);
	}
}

static void
append_key_list(StringInfo sql, const TargetWriter *writer)
{
	const Transform *transform = writer->transform;

	for (int k = 0; k < transform->nkeys; k++)
		appendStringInfo(sql, "%s%s", k > 0 ? ", " : "",
						 quote_identifier(transform->columns[transform->keys[k]].def->name));
}

/*
 * INSERT INTO t (a, b) OVERRIDING SYSTEM VALUE SELECT u.c0, u.c1 FROM unnest
 */
static int
build_insert(StringInfo sql, const TargetWriter *writer)
{
	appendStringInfo(sql, "INSERT INTO %s AS t (", writer->name);
	statement_append_columns(sql, writer);
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	for (int i = 0; i < writer->transform->ncolumns; i++)
	{
		if (i > 0)
			appendStringInfoString(sql, ", ");
		statement_value(sql, writer, i);
	}
	appendStringInfoString(sql, " FROM ");
	return statement_unnest(sql, writer, NULL, false);
}

/*
 * The same by COPY's code.  Parameters: the rows, and how many they are.
 */
static int
build_insert_many(StringInfo sql, const TargetWriter *writer)
{
	appendStringInfo(sql, "SELECT bluegreen.insert_rows(%s::pg_catalog.regclass, ARRAY[",
					 quote_literal_cstr(writer->name));
	for (int i = 0; i < writer->transform->ncolumns; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_literal_cstr(writer->transform->columns[i].def->name));
	appendStringInfoString(sql, "]::pg_catalog.name[], $1::pg_catalog.bytea, $2::pg_catalog.int8)");
	return 2;
}

static int
build_insert_absent(StringInfo sql, const TargetWriter *writer)
{
	int			n = build_insert(sql, writer);

	appendStringInfoString(sql, " ON CONFLICT (");
	append_key_list(sql, writer);
	appendStringInfoString(sql, ") DO NOTHING");
	return n;
}

static int
build_upsert(StringInfo sql, const TargetWriter *writer)
{
	int			n = build_insert(sql, writer);
	int			nset = 0;

	appendStringInfoString(sql, " ON CONFLICT (");
	append_key_list(sql, writer);
	appendStringInfoString(sql, ") DO ");
	for (int i = 0; i < writer->transform->ncolumns; i++)
	{
		const char *name = writer->transform->columns[i].def->name;

		if (is_set(writer, NULL, i))
			appendStringInfo(sql, "%s%s = EXCLUDED.%s",
							 nset++ > 0 ? ", " : "UPDATE SET ",
							 quote_identifier(name), quote_identifier(name));
	}
	if (nset == 0)
		appendStringInfoString(sql, "NOTHING");
	return n;
}

/*
 * Returns 0 parameters if there is nothing to set.
 */
static int
build_update(StringInfo sql, const TargetWriter *writer, const bool *missing)
{
	int			nset = 0;
	int			n;

	appendStringInfo(sql, "UPDATE %s AS t SET ", writer->name);
	for (int i = 0; i < writer->transform->ncolumns; i++)
		if (is_set(writer, missing, i))
		{
			appendStringInfo(sql, "%s%s = ", nset++ > 0 ? ", " : "",
							 quote_identifier(writer->transform->columns[i].def->name));
			statement_value(sql, writer, i);
		}
	if (nset == 0)
		return 0;
	appendStringInfoString(sql, " FROM ");
	n = statement_unnest(sql, writer, missing, false);
	appendStringInfoString(sql, " WHERE ");
	statement_key_condition(sql, writer);
	return n;
}

static int
build_delete(StringInfo sql, const TargetWriter *writer)
{
	int			n;

	appendStringInfo(sql, "DELETE FROM %s AS t USING ", writer->name);
	n = statement_unnest(sql, writer, NULL, true);
	appendStringInfoString(sql, " WHERE ");
	statement_key_condition(sql, writer);
	return n;
}

/*
 * First the key, by which the rows are found, then what is set.
 */
int
target_statement_columns(const TargetWriter *writer, StatementKind kind,
						 const bool *missing, int *columns)
{
	const Transform *transform = writer->transform;
	int			n = 0;

	for (int k = 0; k < transform->nkeys; k++)
		columns[n++] = transform->keys[k];
	for (int i = 0; kind == STATEMENT_UPDATE_ROWS && i < transform->ncolumns; i++)
		if (is_set(writer, missing, i))
			columns[n++] = i;
	return n;
}

/*
 * The same as UPDATE and DELETE without a plan.  Parameters: the rows, and how
 * many must be found.  Returns 0 parameters if there is nothing to set.
 */
static int
build_change_rows(StringInfo sql, const TargetWriter *writer,
				  StatementKind kind, const bool *missing)
{
	int			nset = 0;

	appendStringInfo(sql, "SELECT bluegreen.%s(%s::pg_catalog.regclass, ",
					 kind == STATEMENT_UPDATE_ROWS ? "update_rows" : "delete_rows",
					 quote_literal_cstr(writer->name));
	append_key_names(sql, writer->transform);
	if (kind == STATEMENT_UPDATE_ROWS)
	{
		for (int i = 0; i < writer->transform->ncolumns; i++)
			if (is_set(writer, missing, i))
				appendStringInfo(sql, "%s%s",
								 nset++ > 0 ? ", " : ", ARRAY[",
								 quote_literal_cstr(writer->transform->columns[i].def->name));
		if (nset == 0)
			return 0;
		appendStringInfoString(sql, "]::pg_catalog.name[]");
	}
	appendStringInfoString(sql, ", $1::pg_catalog.bytea, $2::pg_catalog.int8)");
	return 2;
}

/*
 * SELECT rows by their keys, and keep them as they are.
 */
static int
build_find(StringInfo sql, const TargetWriter *writer)
{
	int			n;

	appendStringInfo(sql, "SELECT FROM %s AS t, ", writer->name);
	n = statement_unnest(sql, writer, NULL, true);
	appendStringInfoString(sql, " WHERE ");
	statement_key_condition(sql, writer);
	appendStringInfoString(sql, " FOR UPDATE OF t");
	return n;
}

static int
column_of_target(const TargetWriter *writer, const char *name)
{
	for (int i = 0; i < writer->transform->ncolumns; i++)
		if (strcmp(writer->transform->columns[i].def->name, name) == 0)
			return i;
	return -1;
}

/*
 * The row leaves under its old key and comes back under the new one, with
 * everything that the change does not carry: an UPDATE of the key would fail
 * for GENERATED ALWAYS columns.  Parameters: the new row, then the old key.
 */
static int
build_move(StringInfo sql, const TargetWriter *writer, const bool *missing)
{
	const Transform *transform = writer->transform;
	int			n;

	appendStringInfoString(sql, "WITH u AS MATERIALIZED (SELECT * FROM ");
	n = statement_unnest(sql, writer, missing, false);
	appendStringInfo(sql, "), d AS (DELETE FROM %s AS t WHERE ", writer->name);
	for (int k = 0; k < transform->nkeys; k++)
	{
		const TransformColumn *column = &transform->columns[transform->keys[k]];

		appendStringInfo(sql, "%st.%s %s (($%d::%s[])[1])",
						 k > 0 ? " AND " : "",
						 quote_identifier(column->def->name),
						 writer->key_operator[k], ++n, column->carrier);
		if (column->def->wire != WIRE_BINARY)
			appendStringInfo(sql, "::%s", column->def->type);
	}
	appendStringInfo(sql, " RETURNING t.*) INSERT INTO %s (", writer->name);
	for (int i = 0; i < writer->ntarget; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(writer->target_columns[i]));
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	for (int i = 0; i < writer->ntarget; i++)
	{
		int			mine = column_of_target(writer, writer->target_columns[i]);

		if (i > 0)
			appendStringInfoString(sql, ", ");
		if (mine >= 0 && !is_missing(missing, mine))
			statement_value(sql, writer, mine);
		else
			appendStringInfo(sql, "d.%s",
							 quote_identifier(writer->target_columns[i]));
	}
	appendStringInfoString(sql, " FROM d, u");
	return n;
}

/*
 * Keep the row that is there, as text, for the conflict that is recorded next.
 * That runs as the table's owner, for he says how his types look.
 */
static int
build_note(StringInfo sql, const TargetWriter *writer)
{
	int			n;

	appendStringInfoString(sql, "SELECT bluegreen.note_row("
						   "pg_catalog.to_jsonb(t)::pg_catalog.text) FROM ");
	n = statement_unnest(sql, writer, NULL, true);
	appendStringInfo(sql, " LEFT JOIN %s AS t ON ", writer->name);
	statement_key_condition(sql, writer);
	return n;
}

/*
 * Record a conflict together with the row that was noted.  Parameters: stream,
 * deployment, key as text, kind, LSN, commit time, incoming row, decision.
 * Without a key there is no such row, and one of a session is not shown.
 */
static int
build_conflict(StringInfo sql, const TargetWriter *writer)
{
	MappingRow *row = writer->transform->row;

	appendStringInfo(sql,
					 "INSERT INTO bluegreen.conflict_log (stream, deployment,"
					 " target_schema, target_table, key, kind, lsn, commit_time,"
					 " incoming, decision, existing) "
					 "VALUES ($1::text, $2::name, %s, %s, $3::text, $4::text,"
					 " $5::pg_lsn, $6::timestamptz, $7::text, $8::text,"
					 " %s)",
					 quote_literal_cstr(row->target_schema),
					 quote_literal_cstr(row->target_table),
					 writer->transform->nkeys > 0 &&
					 !writer->transform->secret ?
					 "bluegreen.noted_row()" : "NULL");
	return 8;
}

static int
build(StringInfo sql, const TargetWriter *writer, StatementKind kind,
	  const bool *missing)
{
	if (writer->lookup && kind != STATEMENT_CONFLICT)
		return lookup_build(sql, writer, kind);
	switch (kind)
	{
		case STATEMENT_INSERT:
			return build_insert(sql, writer);
		case STATEMENT_INSERT_MANY:
			return build_insert_many(sql, writer);
		case STATEMENT_INSERT_ABSENT:
			return build_insert_absent(sql, writer);
		case STATEMENT_UPSERT:
			return build_upsert(sql, writer);
		case STATEMENT_UPDATE:
			return build_update(sql, writer, missing);
		case STATEMENT_DELETE:
			return build_delete(sql, writer);
		case STATEMENT_UPDATE_ROWS:
		case STATEMENT_DELETE_ROWS:
			return build_change_rows(sql, writer, kind, missing);
		case STATEMENT_FIND:
			return build_find(sql, writer);
		case STATEMENT_MOVE:
			return build_move(sql, writer, missing);
		case STATEMENT_NOTE:
			return build_note(sql, writer);
		case STATEMENT_CONFLICT:
			return build_conflict(sql, writer);
		case STATEMENT_TAKE:
			return keyless_build_take(sql, writer);
		case STATEMENT_REPLACE:
			return keyless_build_replace(sql, writer);
		case STATEMENT_LOOK:
		case STATEMENT_LOOK_OLD:
			break;				/* only with a lookup */
		case STATEMENT_CHECK:
			break;				/* statement_window.c */
	}
	return 0;
}

static bool
same_columns(const bool *a, const bool *b, int n)
{
	for (int i = 0; i < n; i++)
		if (is_missing(a, i) != is_missing(b, i))
			return false;
	return true;
}

/*
 * The statement of a kind for rows that lack these columns (by column, NULL
 * for none), built at its first use; NULL if it would have nothing to do (an
 * UPDATE without a column to set).
 */
PeerStatement *
target_statement(TargetWriter *writer, StatementKind kind, const bool *missing)
{
	int			ncolumns = writer->transform->ncolumns;
	TargetStatement *statement;
	StringInfoData sql;
	MemoryContext old;
	int			nparams;

	for (statement = writer->statements; statement; statement = statement->next)
		if (statement->kind == kind &&
			same_columns(statement->missing, missing, ncolumns))
			return statement->statement;

	old = MemoryContextSwitchTo(writer->context);
	statement = palloc0_object(TargetStatement);
	statement->kind = kind;
	if (missing)
	{
		statement->missing = palloc_array(bool, ncolumns);
		memcpy(statement->missing, missing, ncolumns * sizeof(bool));
	}
	initStringInfo(&sql);
	nparams = build(&sql, writer, kind, missing);
	if (nparams > 0)
		statement->statement = peer_statement_create(sql.data, nparams, NULL);
	statement->next = writer->statements;
	writer->statements = statement;
	MemoryContextSwitchTo(old);
	return statement->statement;
}
