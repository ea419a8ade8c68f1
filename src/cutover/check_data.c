/*-------------------------------------------------------------------------
 *
 * check_data.c
 *		Preflight: what the streams do not carry, or somebody else writes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cutover/preflight.h"
#include "cutover/sequence.h"

/* Schemas of users; $schema is the OID of one. */
#define IS_USERS_SCHEMA(schema) \
	schema " NOT IN (SELECT oid FROM pg_namespace WHERE nspname IN" \
	" ('bluegreen', 'information_schema') OR starts_with(nspname, 'pg_'))"

#define IS_NO_MEMBER(oid) \
	"NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid =" \
	" 'pg_class'::regclass AND d.objid = " oid " AND d.deptype = 'e')"

const char sql_large_objects[] =
"SELECT 'error', 'large objects', format('%s large objects of blue are not"
" carried over', count(*)), " ACCEPT("large_object", "'large objects'")
" FROM given, pg_largeobject_metadata GROUP BY f";

const char sql_matviews[] =
"SELECT 'warning', format('%I.%I', n.nspname, c.relname), format('materialized"
" view %I.%I of green has not been filled', n.nspname, c.relname),"
"  " ON_GREEN "format('REFRESH MATERIALIZED VIEW %I.%I;', n.nspname, c.relname)"
" FROM given, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
" WHERE c.relkind = 'm' AND NOT c.relispopulated";

/* ---- sequences ---- */

/* mapping: whose source has the column that the sequence belongs to */
const char facts_sequences[] =
"SELECT jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname,"
"  'full_name', format('%I.%I', n.nspname, c.relname),"
"  'type', format_type(s.seqtypid, NULL), 'increment', s.seqincrement,"
"  'start', s.seqstart, 'min', s.seqmin, 'max', s.seqmax, 'cycle', s.seqcycle,"
"  'last', q.last_value, 'mapping', m.id, 'column', a.attname))::text"
" FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid"
"  JOIN pg_namespace n ON n.oid = c.relnamespace"
"  LEFT JOIN pg_sequences q ON q.schemaname = n.nspname"
"   AND q.sequencename = c.relname"
"  LEFT JOIN pg_depend o ON o.classid = 'pg_class'::regclass"
"   AND o.objid = c.oid AND o.objsubid = 0 AND o.deptype IN ('a', 'i')"
"   AND o.refclassid = 'pg_class'::regclass AND o.refobjsubid > 0"
"  LEFT JOIN pg_attribute a ON a.attrelid = o.refobjid"
"   AND a.attnum = o.refobjsubid"
"  LEFT JOIN mapping m ON m.relid = o.refobjid AND a.attname = ANY (m.columns)"
" WHERE " IS_USERS_SCHEMA("c.relnamespace") " AND " IS_NO_MEMBER("c.oid")
"  AND c.relpersistence = 'p' AND (o.objid IS NULL OR m.id IS NOT NULL)";

/*
 * The sequence of green is the one that the target's column owns, else that of
 * the same name.  How far it is, is for the switchover to move.
 */
const char sql_sequences[] =
", blue AS (SELECT b.*, m.name AS target, a.attnum, m.relid,"
"   a.atthasdef OR a.attidentity <> '' AS has_default"
"  FROM given CROSS JOIN LATERAL jsonb_to_recordset(x) AS b (schema name,"
"    name name, full_name text, type text, increment int8, start int8,"
"    min int8, max int8, cycle bool, last int8, mapping int4, \"column\" name)"
"   LEFT JOIN mapping m ON m.id = b.mapping"
"   LEFT JOIN pg_attribute a ON a.attrelid = m.relid"
"    AND a.attname = b.\"column\" AND NOT a.attisdropped),"
" pair AS (SELECT b.*, g.oid AS green,"
"    quote_ident(gn.nspname) || '.' || quote_ident(g.relname) AS green_name,"
"   s.seqmin, s.seqmax, n.oid IS NOT NULL AS has_schema"
"  FROM blue b LEFT JOIN pg_namespace n ON n.nspname = b.schema"
"   LEFT JOIN pg_class g ON g.relkind = 'S' AND g.oid = coalesce("
"    (SELECT min(d.objid) FROM pg_depend d JOIN pg_class s ON s.oid = d.objid"
"     WHERE d.classid = 'pg_class'::regclass AND s.relkind = 'S'"
"     AND d.refclassid = 'pg_class'::regclass AND d.refobjid = b.relid"
"     AND d.refobjsubid = b.attnum AND d.deptype IN ('a', 'i')),"
"    (SELECT c.oid FROM pg_class c WHERE c.relnamespace = n.oid"
"     AND c.relname = b.name AND c.relkind = 'S'))"
"   LEFT JOIN pg_namespace gn ON gn.oid = g.relnamespace"
"   LEFT JOIN pg_sequence s ON s.seqrelid = g.oid) "
"SELECT 'warning', full_name, format('sequence %s of blue has none like it on"
" green', full_name),"
"  CASE WHEN has_schema THEN " ON_GREEN "format('CREATE SEQUENCE %I.%I AS %s"
" INCREMENT %s MINVALUE %s MAXVALUE %s START %s%s;', schema, name, type,"
"    increment, min, max, start, CASE WHEN cycle THEN ' CYCLE' ELSE '' END)"
"   || CASE WHEN target IS NULL THEN '' ELSE format('\nALTER TABLE %s"
" ALTER COLUMN %I SET DEFAULT nextval(%L);\nALTER SEQUENCE %I.%I OWNED BY"
" %1$s.%2$I;', target, \"column\", format('%I.%I', schema, name), schema, name)"
"    END"
"   ELSE " ACCEPT("sequence", "full_name") " END"
" FROM pair, given WHERE green IS NULL AND NOT coalesce(has_default, false)"
" UNION ALL "
"SELECT 'error', full_name, format('sequence %s of blue is at %s, which"
" sequence %s of green cannot reach', full_name, last, green_name),"
"  " ON_GREEN "format('ALTER SEQUENCE %s AS %s MINVALUE %s MAXVALUE %s;',"
"   green_name, type, min, max)"
" FROM pair, given WHERE last NOT BETWEEN seqmin AND seqmax";

/*
 * Can each be moved beyond blue's?
 */
void
check_sequences(PreflightRun *run)
{
	ListCell   *lc;

	foreach(lc, sequences_plan(run->deployment, run->peer))
	{
		SequenceMove *move = lfirst(lc);
		PreflightRow row = {
			.severity = move->verdict < SEQUENCE_EXHAUSTED ?
			PREFLIGHT_WARNING : PREFLIGHT_ERROR,
			.object = move->name,
			.message = sequence_message(move),
			.hint = sequence_hint(move, run->deployment)
		};

		if (move->verdict != SEQUENCE_OK)
			preflight_row(run, &row);
	}
}

/* ---- what is not mapped ---- */

/*
 * is_target: the stream from the other side writes it, and no mapping has it go
 * there; a helper table of mappings back on blue, or on green what blue cannot
 * hold.
 */
const char facts_unmapped[] =
"SELECT jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname,"
"  'full_name', format('%I.%I', n.nspname, c.relname), 'written', w.written,"
"  'is_target', EXISTS (SELECT FROM bluegreen.deployment d"
"    JOIN bluegreen.applied_table a ON a.stream = d.opposite CROSS JOIN given"
"   WHERE d.name = given.f ->> 'deployment'"
"    AND a.target_schema = n.nspname AND a.target_table = c.relname)))::text"
" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
"  CROSS JOIN LATERAL (SELECT"
"    coalesce(bool_or(pg_stat_get_tuples_inserted(p)"
"     + pg_stat_get_tuples_updated(p) + pg_stat_get_tuples_deleted(p) > 0),"
"     false), coalesce(sum(pg_relation_size(p)), 0)"
"   FROM (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid)) t (p)"
"   ) w (written, size)"
" WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'"
"  AND NOT c.relispartition AND " IS_USERS_SCHEMA("c.relnamespace")
"  AND " IS_NO_MEMBER("c.oid") " AND w.size > 0"
"  AND c.oid NOT IN (SELECT relid FROM mapping)";

const char sql_unmapped[] =
"SELECT CASE WHEN b.written AND NOT b.is_target THEN 'error' ELSE 'notice' END,"
"  b.full_name, format(CASE WHEN b.is_target THEN 'table %s is written by the"
" opposite stream and not mapped' WHEN b.written THEN 'table %s of blue is written and"
" not mapped' ELSE 'table %s of blue has rows and is not mapped' END"
"   || ': what is in it stays there', b.full_name),"
"  CASE WHEN t.oid IS NULL THEN " ACCEPT("unmapped_table", "b.full_name")
"   ELSE " ON_BLUE "format('SELECT bluegreen.map_table(%L, %L);',"
"    f ->> 'deployment', b.full_name) END"
" FROM given CROSS JOIN LATERAL jsonb_to_recordset(x)"
"   AS b (schema name, name name, full_name text, written bool, is_target bool)"
"  LEFT JOIN (pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace)"
"   ON n.nspname = b.schema AND t.relname = b.name AND t.relkind IN ('r', 'p')";

/*
 * Columns that no mapping of the table reads and that were made, or altered,
 * after the first of them was defined.  plain: the mapping is every column
 * under its own name.
 */
const char facts_new_columns[] =
", now AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric::int8"
"   AS xid),"
" source AS (SELECT m.relid, min(m.name) AS name, min(m.id) AS id,"
"   count(*) = 1 AS is_single"
"  FROM mapping m JOIN bluegreen.table_mapping t ON t.id = m.id"
"  GROUP BY m.relid HAVING bool_and(t.row_shape IS NULL)),"
" col AS (SELECT s.id, a.attname, format_type(a.atttypid, a.atttypmod) AS type,"
"   EXISTS (SELECT FROM mapping m JOIN pg_rewrite r ON r.ev_class = m.view"
"     JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass"
"      AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass"
"      AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum"
"    WHERE m.relid = s.relid) AS is_read, w.xid AS made"
"  FROM source s JOIN pg_attribute a ON a.attrelid = s.relid"
"    AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
"   CROSS JOIN now CROSS JOIN LATERAL (SELECT (now.xid & ~4294967295::int8)"
"     | a.xmin::text::int8) l (xid)"
"   CROSS JOIN LATERAL (SELECT CASE WHEN l.xid >= now.xid"
"     THEN l.xid - 4294967296 ELSE l.xid END) w (xid)),"
" new AS (SELECT c.id, jsonb_agg(jsonb_build_object('name', c.attname, 'type',"
"    c.type) ORDER BY c.attname) AS columns, count(*) AS n"
"  FROM col c JOIN bluegreen.table_mapping t ON t.id = c.id"
"  WHERE NOT c.is_read AND c.made > 2"
"   AND NOT pg_visible_in_snapshot(c.made::text::xid8, t.defined_in)"
"  GROUP BY c.id) "
"SELECT jsonb_agg(jsonb_build_object('id', n.id, 'columns', n.columns, 'plain',"
"  s.is_single AND NOT EXISTS (SELECT FROM bluegreen.table_mapping t"
"    WHERE t.id = m.id AND t.lookup IS NOT NULL)"
"   AND pg_get_viewdef(m.view) !~ '[(]| AS | WHERE '"
"   AND cardinality(m.columns) + n.n = (SELECT count(*) FROM pg_attribute a"
"    WHERE a.attrelid = m.relid AND a.attnum > 0 AND NOT a.attisdropped"
"     AND a.attgenerated = '')))::text"
" FROM new n JOIN source s ON s.id = n.id JOIN mapping m ON m.id = n.id";

const char sql_new_columns[] =
", new AS (SELECT m.source_name, m.name AS target, m.relid, b.plain,"
"   k.name AS column, k.type"
"  FROM given CROSS JOIN LATERAL jsonb_to_recordset(x)"
"    AS b (id int4, columns jsonb, plain bool)"
"   JOIN mapping m ON m.id = b.id"
"   CROSS JOIN LATERAL jsonb_to_recordset(b.columns) AS k (name name, type text)) "
"SELECT 'error', source_name, format('no mapping carries what table %s got"
" after it was mapped: column %s', source_name,"
"   string_agg(quote_ident(new.column), ', ' ORDER BY new.column)),"
"  CASE WHEN plain THEN coalesce(" ON_GREEN
"    string_agg(format('ALTER TABLE %s ADD COLUMN %I %s;', target,"
"     new.column, new.type), '\n' ORDER BY new.column)"
"     FILTER (WHERE a.attnum IS NULL) || '\n', '')"
"    || '-- on blue\n-- this is for what is written from now on\n'"
"    || format('SELECT bluegreen.alter_mapping(%L, %L, transform => %L);',"
"     f ->> 'deployment', source_name, 'SELECT * FROM ' || source_name)"
"   ELSE " ACCEPT("new_column", "source_name") " END"
" FROM given, new LEFT JOIN pg_attribute a ON a.attrelid = new.relid"
"  AND a.attname = new.column AND NOT a.attisdropped"
" GROUP BY f, source_name, plain";

/* ---- who else writes ---- */

#define SUBSCRIPTIONS(side, tables) \
	"SELECT 'error', s.subname::text, format('subscription \"%s\" writes to" \
	" mapped table %s, past everything that keeps the sides together'," \
	"   s.subname, string_agg(t.name, ', ')), " side \
	"format('ALTER SUBSCRIPTION %I DISABLE;', s.subname)" \
	" FROM given, pg_subscription s" \
	"  JOIN pg_subscription_rel r ON r.srsubid = s.oid" \
	"  JOIN " tables " t ON t.relid = r.srrelid" \
	" WHERE s.subenabled GROUP BY s.subname"

const char sql_subscriptions_blue[] =
SUBSCRIPTIONS(ON_BLUE, "(SELECT DISTINCT name, relid FROM mapping"
			  " UNION SELECT m.name, p.relid FROM mapping m"
			  " CROSS JOIN LATERAL pg_partition_tree(m.relid) p)");
const char sql_subscriptions_green[] = SUBSCRIPTIONS(ON_GREEN, "part");

/* ---- the stream ---- */

const char sql_stream[] =
"SELECT 'error', s.deployment::text, format('stream is in state %s%s',"
"   s.state, coalesce(': ' || coalesce(CASE WHEN s.error_at IS NOT NULL"
"     OR s.state IN ('error', 'lost') THEN s.error_message END,"
"    'it waits for ' || s.waits_for), '')),"
"  " ON_BLUE "CASE WHEN s.state IN ('starting', 'copying', 'stopped')"
"    THEN CASE WHEN s.state = 'stopped'"
"      THEN format('CALL bluegreen.start(%L);\n', s.deployment) ELSE '' END"
"     || format('CALL bluegreen.wait_for_sync(%L);', s.deployment)"
"    ELSE '-- see error_detail and error_hint in bluegreen.stat_stream' END"
" FROM given, bluegreen.stat_stream s"
" WHERE s.deployment = (f ->> 'deployment')::name AND s.state <> 'streaming'";
