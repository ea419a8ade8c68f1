/*-------------------------------------------------------------------------
 *
 * sequence_query.c
 *		Which sequences of one side go with which of the other.
 *
 * Looked at are the sequences that mapped tables use, on either side: owned
 * (serial), identity, or named in a column's default, also of its domain, also
 * within an expression, also as a text that nothing depends on.  On this side
 * also those that no column owns: applications ask for their values
 * themselves.
 *
 * Two go together if a column that one feeds becomes a column that the other
 * feeds, unchanged (but for a cast), or if they have the same name, in the same
 * schema or in the one that the schema's tables are mapped to.
 *
 * Both queries read catalogs only, and positions through functions of the
 * extension, so that no code of others comes in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "core/definition.h"
#include "cutover/sequence.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/*
 * part: tables with their partitions; uses: which column (of the root) uses
 * which sequence.
 */
#define NAME_PATTERN "(\"[^\"]+\"|[[:alpha:]_][[:alnum:]_$]*)"
#define USES \
" part AS (SELECT r.oid AS root, p.relid FROM root r CROSS JOIN LATERAL" \
"   (SELECT r.oid UNION SELECT relid FROM pg_partition_tree(r.oid)) p (relid))," \
" expression AS (SELECT p.root, a.attrelid, a.attname, o.classid, o.objid," \
"   o.text FROM part p JOIN pg_attribute a ON a.attrelid = p.relid" \
"    AND a.attnum > 0 AND NOT a.attisdropped" \
"   CROSS JOIN LATERAL (" \
"    SELECT 'pg_attrdef'::regclass, f.oid, pg_get_expr(f.adbin, f.adrelid)" \
"     FROM pg_attrdef f WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum" \
"    UNION ALL SELECT 'pg_type'::regclass, t.oid, t.typdefault" \
"     FROM pg_type t WHERE t.oid = a.atttypid AND t.typtype = 'd')" \
"    AS o (classid, objid, text))," \
" named AS (SELECT e.root, e.attname, c.relnamespace AS schema," \
"   parse_ident(replace(m[1], '''''', '''')) AS name" \
"  FROM expression e JOIN pg_class c ON c.oid = e.attrelid" \
"   CROSS JOIN LATERAL regexp_matches(e.text," \
"    'nextval\\(\\(?''((?:[^'']|'''')+)''::(?:text|character varying)', 'g') m" \
"  WHERE replace(m[1], '''''', '''') ~ '^" NAME_PATTERN "([.]" NAME_PATTERN \
	")?$')," \
" uses AS (" \
"  SELECT p.root, a.attname, s.oid AS seq FROM part p" \
"   JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass" \
"    AND d.refobjid = p.relid AND d.refobjsubid > 0" \
"    AND d.classid = 'pg_class'::regclass AND d.objsubid = 0" \
"    AND d.deptype IN ('a', 'i')" \
"   JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'" \
"   JOIN pg_attribute a ON a.attrelid = p.relid AND a.attnum = d.refobjsubid" \
"  UNION SELECT e.root, e.attname, s.oid FROM expression e" \
"   JOIN pg_depend d ON d.classid = e.classid AND d.objid = e.objid" \
"    AND d.objsubid = 0 AND d.refclassid = 'pg_class'::regclass" \
"   JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'" \
"  UNION SELECT n.root, n.attname, s.oid FROM named n" \
"   JOIN pg_class s ON s.relkind = 'S'" \
"    AND s.relname = n.name[cardinality(n.name)]" \
"    AND CASE WHEN cardinality(n.name) = 2" \
"     THEN s.relnamespace = (SELECT oid FROM pg_namespace" \
"      WHERE nspname = n.name[1])" \
"     ELSE s.relnamespace IN (SELECT n.schema UNION ALL SELECT oid" \
"      FROM pg_namespace WHERE nspname = 'public') END)"

#define HAS_NO_OWNER(oid) \
" NOT EXISTS (SELECT FROM pg_depend o WHERE o.classid = 'pg_class'::regclass" \
"  AND o.objid = " oid " AND o.objsubid = 0 AND o.deptype IN ('a', 'i'))"

/*
 * This side.  $1: mappings [{m, r, s, t}] (number, source, target); $2: columns
 * that stay as they are [{m, c, a}] (target's, source's).
 */
static const char sources_sql[] =
"WITH map AS (SELECT m.*, n.nspname AS source_schema"
"  FROM jsonb_to_recordset($1::jsonb) AS m (m int4, r oid, s name, t name)"
"   JOIN pg_class c ON c.oid = m.r JOIN pg_namespace n ON n.oid = c.relnamespace),"
" same AS (SELECT * FROM jsonb_to_recordset($2::jsonb)"
"  AS c (m int4, c name, a name)),"
" root AS (SELECT DISTINCT r AS oid FROM map)," USES ","
" seq AS (SELECT seq FROM uses UNION SELECT c.oid FROM pg_class c"
"   JOIN pg_namespace n ON n.oid = c.relnamespace"
"  WHERE c.relkind = 'S' AND c.relpersistence = 'p'"
"   AND n.nspname NOT IN ('bluegreen', 'information_schema')"
"   AND NOT starts_with(n.nspname, 'pg_') AND" HAS_NO_OWNER("c.oid")
"   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid ="
"    'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')) "
"SELECT q.seqrelid::text, format('%I.%I', n.nspname, c.relname),"
" q.seqincrement::text, q.seqstart::text, q.seqcache::text, q.seqcycle::text,"
" p.last_value::text, p.is_called::text, greatest(q.seqmin, f.low)::text,"
" least(q.seqmax, f.high)::text,"
" coalesce((SELECT jsonb_agg(DISTINCT jsonb_build_object('s', map.s, 't', map.t,"
"   'c', same.c)) FROM uses JOIN map ON map.r = uses.root"
"   JOIN same ON same.m = map.m AND same.a = uses.attname"
"  WHERE uses.seq = q.seqrelid), '[]')::text,"
" (SELECT jsonb_agg(jsonb_build_object('s', x.s, 'n', c.relname))"
"  FROM (SELECT n.nspname AS s UNION SELECT s FROM map"
"   WHERE source_schema = n.nspname) x)::text"
" FROM seq JOIN pg_sequence q ON q.seqrelid = seq.seq"
"  JOIN pg_class c ON c.oid = q.seqrelid"
"  JOIN pg_namespace n ON n.oid = c.relnamespace"
"  CROSS JOIN LATERAL bluegreen.sequence_position(q.seqrelid) p"
"  CROSS JOIN LATERAL (SELECT max(CASE a.atttypid WHEN 21 THEN -32768"
"     WHEN 23 THEN -2147483648 END::int8), min(CASE a.atttypid"
"     WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 END::int8)"
"   FROM uses u JOIN pg_attribute a ON a.attrelid = u.root"
"    AND a.attname = u.attname WHERE u.seq = q.seqrelid) f (low, high)"
" ORDER BY 2";

/*
 * The other side.  $1: targets [{s, t, c}]; $2: sequences of this side
 * [{i, links, names}].  An extreme is looked for only where an index gives it
 * at once, or where nothing else says how far the sequence must be.
 */
static const char targets_sql[] =
"WITH root AS (SELECT DISTINCT c.oid, m.s, m.t"
"  FROM jsonb_to_recordset($1::jsonb) AS m (s name, t name)"
"   JOIN pg_namespace n ON n.nspname = m.s"
"   JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = m.t)," USES ","
" source AS (SELECT * FROM jsonb_to_recordset($2::jsonb)"
"  AS b (i int4, links jsonb, names jsonb)),"
" pair AS (SELECT u.seq, b.i FROM source b"
"   CROSS JOIN LATERAL jsonb_to_recordset(b.links) AS l (s name, t name, c name)"
"   JOIN root r ON r.s = l.s AND r.t = l.t"
"   JOIN uses u ON u.root = r.oid AND u.attname = l.c"
"  UNION SELECT c.oid, b.i FROM source b"
"   CROSS JOIN LATERAL jsonb_to_recordset(b.names) AS l (s name, n name)"
"   JOIN pg_namespace n ON n.nspname = l.s"
"   JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.n"
"    AND c.relkind = 'S'"
"  WHERE c.oid IN (SELECT seq FROM uses) OR" HAS_NO_OWNER("c.oid") "),"
" seq AS (SELECT seq FROM uses UNION SELECT seq FROM pair),"
" fed AS (SELECT u.seq, u.root, u.attname, CASE WHEN t.typtype = 'd'"
"    THEN t.typbasetype ELSE t.oid END AS type,"
"   EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
"    JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'"
"    WHERE i.indrelid = u.root AND i.indkey[0] = a.attnum AND i.indisvalid"
"     AND i.indpred IS NULL)"
"    OR u.seq NOT IN (SELECT seq FROM pair) AS is_looked_at"
"  FROM uses u JOIN pg_attribute a ON a.attrelid = u.root"
"    AND a.attname = u.attname JOIN pg_type t ON t.oid = a.atttypid) "
"SELECT q.seqrelid::text, format('%I.%I', n.nspname, c.relname),"
" q.seqincrement::text, q.seqstart::text, greatest(q.seqmin, f.low)::text,"
" least(q.seqmax, f.high)::text, q.seqcycle::text,"
" p.last_value::text, p.is_called::text,"
" has_sequence_privilege(q.seqrelid, 'UPDATE')::text, e.extreme::text,"
" coalesce((SELECT string_agg(i::text, ' ') FROM pair"
"  WHERE pair.seq = q.seqrelid), ''), CURRENT_USER::text,"
" EXISTS (SELECT FROM fed JOIN root ON root.oid = fed.root"
"  JOIN jsonb_to_recordset($1::jsonb) AS m (s name, t name, c jsonb)"
"   ON m.s = root.s AND m.t = root.t AND m.c ? fed.attname::text"
"  WHERE fed.seq = q.seqrelid)::text"
" FROM seq JOIN pg_sequence q ON q.seqrelid = seq.seq"
"  JOIN pg_class c ON c.oid = q.seqrelid"
"  JOIN pg_namespace n ON n.oid = c.relnamespace"
"  CROSS JOIN LATERAL bluegreen.sequence_position(q.seqrelid) p"
"  CROSS JOIN LATERAL (SELECT"
"    max(CASE type WHEN 21 THEN -32768 WHEN 23 THEN -2147483648 END::int8),"
"    min(CASE type WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 END::int8)"
"   FROM fed WHERE fed.seq = q.seqrelid) f (low, high)"
"  CROSS JOIN LATERAL (SELECT CASE WHEN q.seqincrement < 0 THEN min(v.value)"
"    ELSE max(v.value) END FROM fed CROSS JOIN LATERAL"
"    bluegreen.column_extreme(fed.root, fed.attname, q.seqincrement < 0)"
"     AS v (value)"
"   WHERE fed.seq = q.seqrelid AND fed.is_looked_at"
"    AND fed.type IN (20, 21, 23, 1700)) e (extreme)"
" ORDER BY 2";

/* ---- columns that stay as they are ---- */

/*
 * The column that an expression is, but for casts, or NULL.
 */
static Var *
plain_column(Node *node)
{
	while (node != NULL && !IsA(node, Var))
	{
		if (IsA(node, RelabelType))
			node = (Node *) ((RelabelType *) node)->arg;
		else if (IsA(node, CoerceToDomain))
			node = (Node *) ((CoerceToDomain *) node)->arg;
		else if (IsA(node, FuncExpr) &&
				 ((FuncExpr *) node)->funcformat != COERCE_EXPLICIT_CALL &&
				 ((FuncExpr *) node)->args != NIL)
			node = linitial(((FuncExpr *) node)->args);
		else
			return NULL;
	}
	return (Var *) node;
}

/* {"m": mapping, "c": target's column, "a": source's column} */
static void
append_same(StringInfo buf, const MappingRow *mapping, int i, const char *column)
{
	appendStringInfo(buf, "%c{\"m\":%d,\"c\":", buf->len > 0 ? ',' : '[',
					 mapping->id);
	escape_json(buf, mapping->columns[i].name);
	appendStringInfoString(buf, ",\"a\":");
	escape_json(buf, column);
	appendStringInfoChar(buf, '}');
}

static void
append_same_columns(StringInfo buf, const MappingRow *mapping)
{
	Relation	view = table_open(mapping->view, AccessShareLock);
	Query	   *query = get_view_query(view);

	for (int i = 0; i < mapping->ncolumns; i++)
	{
		TargetEntry *entry = get_tle_by_resno(query->targetList,
											  mapping->columns[i].position);
		Var		   *var = entry ? plain_column((Node *) entry->expr) : NULL;
		char	   *column;

		if (var == NULL || var->varattno <= 0 || var->varlevelsup != 0 ||
			rt_fetch(var->varno, query->rtable)->relid != mapping->source)
			continue;
		column = get_attname(mapping->source, var->varattno, true);
		if (column != NULL)
			append_same(buf, mapping, i, column);
	}
	table_close(view, AccessShareLock);
}

/*
 * {"m": mapping, "r": source, "s": target's schema, "t": target, "c": [columns]}
 */
static void
append_mapping(StringInfo buf, const MappingRow *mapping)
{
	appendStringInfo(buf, "%c{\"m\":%d,\"r\":%u,\"s\":",
					 buf->len > 0 ? ',' : '[', mapping->id, mapping->source);
	escape_json(buf, mapping->target_schema);
	appendStringInfoString(buf, ",\"t\":");
	escape_json(buf, mapping->target_table);
	appendStringInfoString(buf, ",\"c\":[");
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		escape_json(buf, mapping->columns[i].name);
	}
	appendStringInfoString(buf, "]}");
}

/* "[a,b" becomes "[a,b]", and nothing "[]" */
static char *
close_array(StringInfo buf)
{
	appendStringInfoString(buf, buf->len > 0 ? "]" : "[]");
	return buf->data;
}

/* ---- this side ---- */

static bool
read_bool(const char *value)
{
	return value != NULL && value[0] == 't';
}

static int64
read_int64(const char *value)
{
	return value ? strtoll(value, NULL, 10) : 0;
}

static SequenceSource *
read_source(const CatalogAccess *access, uint64 row)
{
	SequenceSource *source = MemoryContextAllocZero(access->context,
													sizeof(SequenceSource));

	source->oid = (Oid) read_int64(catalog_text(access, row, 1));
	source->name = catalog_text(access, row, 2);
	source->increment = read_int64(catalog_text(access, row, 3));
	source->start = read_int64(catalog_text(access, row, 4));
	source->cache = read_int64(catalog_text(access, row, 5));
	source->cycle = read_bool(catalog_text(access, row, 6));
	source->last = read_int64(catalog_text(access, row, 7));
	source->called = read_bool(catalog_text(access, row, 8));
	source->min = read_int64(catalog_text(access, row, 9));
	source->max = read_int64(catalog_text(access, row, 10));
	source->links = catalog_text(access, row, 11);
	source->names = catalog_text(access, row, 12);
	return source;
}

static List *
find_sources(const char *mappings, const char *same)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	MemoryContext oldcontext;
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_text(&args, mappings);
	catalog_arg_text(&args, same);
	n = catalog_run(sources_sql, &args, SPI_OK_SELECT);
	oldcontext = MemoryContextSwitchTo(access.context);
	for (uint64 i = 0; i < n; i++)
		result = lappend(result, read_source(&access, i));
	MemoryContextSwitchTo(oldcontext);
	catalog_end(&access);
	return result;
}

static char *
sources_as_json(List *sources)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, sources)
	{
		SequenceSource *source = lfirst(lc);

		appendStringInfo(&buf, "%c{\"i\":%d,\"links\":%s,\"names\":%s}",
						 buf.len > 0 ? ',' : '[', foreach_current_index(lc),
						 source->links, source->names);
	}
	return close_array(&buf);
}

/* ---- the other side ---- */

static SequenceMove *
read_move(char **values, List *sources)
{
	SequenceMove *move = palloc0_object(SequenceMove);
	char	   *number = values[11];

	move->oid = (Oid) read_int64(values[0]);
	move->name = values[1];
	move->increment = read_int64(values[2]);
	move->start = read_int64(values[3]);
	move->min = read_int64(values[4]);
	move->max = read_int64(values[5]);
	move->cycle = read_bool(values[6]);
	move->readable = values[7] != NULL;
	move->last = read_int64(values[7]);
	move->called = read_bool(values[8]);
	move->writable = read_bool(values[9]);
	move->has_extreme = values[10] != NULL;
	move->extreme = read_int64(values[10]);
	move->role = values[12];
	move->feeds_mapped = read_bool(values[13]);
	while (number != NULL && *number)
	{
		int			i = (int) strtol(number, &number, 10);

		if (i < 0 || i >= list_length(sources))
			elog(ERROR, "unexpected answer about sequences");
		move->sources = lappend(move->sources, list_nth(sources, i));
	}
	if (move->increment == 0)
		elog(ERROR, "unexpected answer about sequences");
	return move;
}

/*
 * The other side's sequences that a deployment's move is about, each with those
 * of this side that go with it; nothing is decided yet.  *all, unless NULL: all
 * sequences of this side that were looked at.  Reads both sides.
 * Needs a transaction with a snapshot.
 */
List *
sequences_find(const Deployment *deployment, Peer *to, List **all)
{
	/* a side has the mappings of which it is the source, whatever they are */
	List	   *mappings = list_concat(mappings_load(deployment->id, 'f'),
									   mappings_load(deployment->id, 'b'));
	StringInfoData tables;
	StringInfoData same;
	const char *args[2];
	PeerResult *result;
	List	   *sources;
	List	   *moves = NIL;
	ListCell   *lc;

	initStringInfo(&tables);
	initStringInfo(&same);
	foreach(lc, mappings)
	{
		append_mapping(&tables, lfirst(lc));
		append_same_columns(&same, lfirst(lc));
	}
	args[0] = close_array(&tables);
	sources = find_sources(args[0], close_array(&same));
	if (all != NULL)
		*all = sources;
	args[1] = sources_as_json(sources);
	result = peer_query(to, targets_sql, lengthof(args), args);
	for (int i = 0; i < result->ntuples; i++)
		moves = lappend(moves, read_move(result->values[i], sources));
	return moves;
}
