/*-------------------------------------------------------------------------
 *
 * check_tables.c
 *		Preflight: mapped tables: identities, triggers, rules, indexes and
 *		constraints.
 *
 * A stream applies in sessions of session_replication_role = replica.  There,
 * triggers and rules fire that are enabled as REPLICA or ALWAYS; foreign keys
 * and deferrable constraints, which are triggers, do not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cutover/preflight.h"

/* ---- blue ---- */

const char sql_keyless[] =
"SELECT 'warning', m.name, format('table %s is mapped without a key and has"
" not REPLICA IDENTITY FULL: an UPDATE or DELETE stops the stream', m.name),"
"  " ON_BLUE "string_agg(format('ALTER TABLE %I.%I REPLICA IDENTITY FULL;',"
"   n.nspname, c.relname), '\n' ORDER BY c.oid)"
" FROM given, mapping m CROSS JOIN LATERAL (SELECT m.relid"
"   UNION SELECT relid FROM pg_partition_tree(m.relid)) p (relid)"
"  JOIN pg_class c ON c.oid = p.relid"
"  JOIN pg_namespace n ON n.oid = c.relnamespace"
" WHERE m.key IS NULL AND c.relkind = 'r' AND c.relreplident <> 'f'"
" GROUP BY m.name";

const char sql_unlogged[] =
"SELECT 'warning', format('%I.%I', n.nspname, c.relname), format('rows of"
" unlogged table %I.%I cannot be carried over', n.nspname, c.relname),"
"  " ON_BLUE "format('ALTER TABLE %I.%I SET LOGGED;', n.nspname, c.relname)"
" FROM given, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
" WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND c.oid >= 16384"
"  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid ="
"   'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"
"  AND c.oid NOT IN (SELECT relid FROM mapping UNION"
"   SELECT p.relid FROM mapping m CROSS JOIN LATERAL"
"    pg_partition_tree(m.relid) p)";

/* ---- green: triggers and rules ---- */

/* Those of sessions fire for streams; some of them for nobody else. */
#define IS_OURS \
	"t.tgfoid IN (SELECT oid FROM pg_proc" \
	" WHERE pronamespace = 'bluegreen'::regnamespace)"

const char sql_triggers[] =
"SELECT 'warning', format('%s %I', p.name, t.tgname), format('trigger \"%s\""
" of table %s fires for each row that the stream applies, though blue has"
" done what there is to do', t.tgname, p.name),"
"  " ON_GREEN "format('ALTER TABLE %s ENABLE TRIGGER %I;', p.name, t.tgname)"
" FROM given, part p JOIN pg_trigger t ON t.tgrelid = p.relid"
" WHERE NOT t.tgisinternal AND t.tgenabled IN ('R', 'A')"
"  AND NOT " IS_OURS;

/* Internal ones are those of foreign keys and deferrable constraints. */
const char sql_silent_triggers[] =
"SELECT 'error', p.name, format('constraints of table %s are not enforced,"
" because their triggers are disabled', p.name),"
"  " ON_GREEN "string_agg(format('ALTER TABLE %s ENABLE TRIGGER %I;', p.name,"
"    t.tgname), '\n')"
" FROM given, part p JOIN pg_trigger t ON t.tgrelid = p.relid"
" WHERE t.tgisinternal AND t.tgenabled NOT IN ('O', 'A') GROUP BY p.name"
" UNION ALL "
"SELECT 'warning', format('%s %I', p.name, t.tgname), format('trigger \"%s\""
" of table %s is disabled and will not fire for applications', t.tgname,"
"  p.name),"
"  " ON_GREEN "format('ALTER TABLE %s ENABLE TRIGGER %I;', p.name, t.tgname)"
" FROM given, part p JOIN pg_trigger t ON t.tgrelid = p.relid"
" WHERE NOT t.tgisinternal AND t.tgenabled IN ('D', 'R')"
"  AND NOT (t.tgenabled = 'R' AND " IS_OURS ")";

/* Sessions that apply refuse those of a table that is not their role's. */
const char sql_rules[] =
"SELECT CASE WHEN pg_get_userbyid(c.relowner) = CURRENT_USER THEN 'warning'"
"   ELSE 'error' END, format('%s %I', p.name, r.rulename), format('rule \"%s\""
" of table %s changes what the stream writes', r.rulename, p.name),"
"  " ON_GREEN "format('ALTER TABLE %s ENABLE RULE %I;', p.name, r.rulename)"
" FROM given, part p JOIN pg_class c ON c.oid = p.relid"
"  JOIN pg_rewrite r ON r.ev_class = p.relid"
" WHERE r.ev_enabled IN ('R', 'A')"
" UNION ALL "
"SELECT 'warning', format('%s %I', p.name, r.rulename), format('rule \"%s\""
" of table %s is disabled and will not fire for applications', r.rulename,"
"  p.name),"
"  " ON_GREEN "format('ALTER TABLE %s ENABLE RULE %I;', p.name, r.rulename)"
" FROM given, part p JOIN pg_rewrite r ON r.ev_class = p.relid"
" WHERE r.ev_enabled = 'D'";

const char sql_partition_owners[] =
"SELECT 'error', p.name, format('partition %s of table %s belongs to another"
" owner', p.name, p.root_name),"
"  " ON_GREEN "format('ALTER TABLE %s OWNER TO %I;', p.name,"
"   pg_get_userbyid(r.relowner))"
" FROM given, part p JOIN pg_class c ON c.oid = p.relid"
"  JOIN pg_class r ON r.oid = p.root"
" WHERE c.relowner <> r.relowner AND pg_get_userbyid(r.relowner)"
"  <> CURRENT_USER";

/* ---- green: indexes and constraints ---- */

/* While a table is copied its indexes are put aside on purpose. */
const char sql_indexes[] =
"SELECT CASE WHEN i.indisunique THEN 'error' ELSE 'warning' END,"
"  format('%I.%I', n.nspname, c.relname),"
"  format('index %I of table %s is not valid', c.relname, p.name),"
"  " ON_GREEN "format('REINDEX INDEX %I.%I;', n.nspname, c.relname)"
" FROM given, part p JOIN pg_index i ON i.indrelid = p.relid"
"  JOIN pg_class c ON c.oid = i.indexrelid"
"  JOIN pg_namespace n ON n.oid = c.relnamespace"
" WHERE p.is_copied AND c.relkind = 'i'"
"  AND NOT (i.indisvalid AND i.indisready AND i.indislive)";

/* The same with its words DEFERRABLE and what may follow taken away. */
#define NOT_DEFERRABLE(definition) \
	"regexp_replace(" definition \
	", ' DEFERRABLE( INITIALLY (DEFERRED|IMMEDIATE))?$', '')"

const char sql_deferrable[] =
"SELECT 'warning', format('%s %I', p.name, k.conname), format('nothing"
" enforces constraint \"%s\" of table %s while the stream applies, because it"
" is deferrable', k.conname, p.name),"
"  " ON_GREEN "format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %2$I"
" %3$s;', p.name, k.conname, " NOT_DEFERRABLE("pg_get_constraintdef(k.oid)") ")"
" FROM given, part p JOIN pg_constraint k ON k.conrelid = p.relid"
" WHERE k.contype IN ('p', 'u', 'x') AND k.condeferrable"
"  AND k.conparentid = 0";

const char facts_exclusions[] =
"SELECT jsonb_agg(jsonb_build_object('id', m.id, 'definition', "
NOT_DEFERRABLE("pg_get_constraintdef(k.oid)") "))::text"
" FROM mapping m JOIN pg_constraint k ON k.conrelid = m.relid"
" WHERE k.contype = 'x'";

const char sql_exclusions[] =
"SELECT DISTINCT 'warning', format('%s %I', m.name, k.conname), format("
"'exclusion constraint \"%s\" of table %s is not on table %s of blue, whose"
" rows may violate it and stop the stream', k.conname, m.name, m.source_name),"
"  " ON_BLUE "format('ALTER TABLE %s ADD CONSTRAINT %I %s;', m.source_name,"
"   k.conname, pg_get_constraintdef(k.oid))"
" FROM given, mapping m JOIN pg_constraint k ON k.conrelid = m.relid"
" WHERE k.contype = 'x' AND NOT k.condeferrable AND NOT EXISTS ("
"  SELECT FROM jsonb_to_recordset(x) AS b (id int4, definition text)"
"  WHERE b.id = m.id AND b.definition = pg_get_constraintdef(k.oid))";

/* Since 18 some are not meant to be enforced. */
#define IS_ENFORCED \
	"coalesce((to_jsonb(k) ->> 'conenforced')::bool, true)"

const char sql_not_valid[] =
"SELECT 'warning', format('%s %I', p.name, k.conname), format('constraint"
" \"%s\" of table %s is NOT VALID', k.conname, p.name),"
"  " ON_GREEN "format('ALTER TABLE %s VALIDATE CONSTRAINT %I;', p.name,"
"   k.conname)"
" FROM given, part p JOIN pg_constraint k ON k.conrelid = p.relid"
" WHERE NOT k.convalidated AND k.conparentid = 0 AND " IS_ENFORCED;

/*
 * Rows whose reference is nowhere, which VALIDATE would not find: for each
 * foreign key a query that looks for them by the operators of the key itself.
 * Partitions' own keys are looked at with their table's.
 */
const char sql_foreign_keys[] =
", fk AS (SELECT k.*, quote_ident(cn.nspname) || '.' || quote_ident(c.relname)"
"    AS child, quote_ident(pn.nspname) || '.' || quote_ident(p.relname)"
"    AS parent,"
"   CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END AS only_child,"
"   CASE p.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END AS only_parent,"
"   (SELECT bool_and(has_column_privilege(c.oid, a, 'SELECT'))"
"    FROM unnest(k.conkey) a) AS sees_child,"
"   (SELECT bool_and(has_column_privilege(p.oid, a, 'SELECT'))"
"    FROM unnest(k.confkey) a) AS sees_parent,"
"   has_schema_privilege(cn.oid, 'USAGE') AS uses_child,"
"   has_schema_privilege(pn.oid, 'USAGE') AS uses_parent,"
"   row_security_active(c.oid) OR row_security_active(p.oid) AS hides,"
"   c.relowner <> p.relowner AS of_two,"
"   pn.nspname AS parent_schema, cn.nspname AS child_schema"
"  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
"   JOIN pg_namespace cn ON cn.oid = c.relnamespace"
"   JOIN pg_class p ON p.oid = k.confrelid"
"   JOIN pg_namespace pn ON pn.oid = p.relnamespace"
"  WHERE k.contype = 'f' AND k.conparentid = 0 AND " IS_ENFORCED
"   AND NOT coalesce((to_jsonb(k) ->> 'conperiod')::bool, false)"
"   AND EXISTS (SELECT FROM part t WHERE t.relid IN (c.oid, p.oid))"
"   AND NOT EXISTS (SELECT FROM part t WHERE t.relid IN (c.oid, p.oid)"
"    AND NOT t.is_copied)),"
" pair AS (SELECT k.oid,"
"   string_agg(format('p.%I OPERATOR(%I.%s) c.%I', pa.attname, n.nspname,"
"    o.oprname, ca.attname), ' AND ' ORDER BY u.i) AS matches,"
"   string_agg(format('c.%I IS NOT NULL', ca.attname), ' AND ' ORDER BY u.i)"
"    AS all_set,"
"   string_agg(format('c.%I IS NOT NULL', ca.attname), ' OR ' ORDER BY u.i)"
"    AS any_set"
"  FROM fk k CROSS JOIN LATERAL ROWS FROM (unnest(k.conkey),"
"    unnest(k.confkey), unnest(k.conpfeqop)) WITH ORDINALITY"
"    AS u (ckey, pkey, op, i)"
"   JOIN pg_attribute ca ON ca.attrelid = k.conrelid AND ca.attnum = u.ckey"
"   JOIN pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.pkey"
"   JOIN pg_operator o ON o.oid = u.op"
"   JOIN pg_namespace n ON n.oid = o.oprnamespace GROUP BY k.oid),"
" orphan AS (SELECT fk.*, format('%s%s c WHERE (%s) AND NOT EXISTS ("
"SELECT FROM %s%s p WHERE %s)', only_child, child,"
"   CASE confmatchtype WHEN 'f' THEN any_set ELSE all_set END,"
"   only_parent, parent, matches) AS rows,"
"   format('%s %I', child, conname) AS object"
"  FROM fk JOIN pair ON pair.oid = fk.oid) "
"SELECT 'warning', object, format('foreign key \"%s\" of table %s cannot be"
" looked at, because role \"%s\" may not read both tables', conname, child,"
"   CURRENT_USER),"
"  '-- on green\n' || concat_ws('\n',"
"   CASE WHEN NOT uses_child THEN format('GRANT USAGE ON SCHEMA %I TO %I;',"
"    child_schema, CURRENT_USER) END,"
"   CASE WHEN NOT uses_parent THEN format('GRANT USAGE ON SCHEMA %I TO %I;',"
"    parent_schema, CURRENT_USER) END,"
"   CASE WHEN NOT sees_child THEN format('GRANT SELECT ON %s TO %I;', child,"
"    CURRENT_USER) END,"
"   CASE WHEN NOT sees_parent THEN format('GRANT SELECT ON %s TO %I;', parent,"
"    CURRENT_USER) END,"
"   CASE WHEN hides THEN format('ALTER ROLE %I BYPASSRLS;', CURRENT_USER) END),"
"  NULL"
" FROM orphan WHERE hides OR NOT (uses_child AND uses_parent AND sees_child"
"  AND sees_parent)"
" UNION ALL "
"SELECT 'warning', object, format('foreign key \"%s\" of table %s cannot be"
" looked at, because both tables have different owners', conname, child),"
"  '-- on green\n-- look yourself', NULL FROM orphan WHERE of_two AND NOT hides"
"  AND uses_child AND uses_parent AND sees_child AND sees_parent"
" UNION ALL "
"SELECT 'error', object, format(' rows of table %s refer to rows that table %s"
" does not have, against its foreign key \"%s\"', child, parent, conname),"
"  format('-- on green\n-- look at them first; rows that are on blue, too, go"
" there, or come back\nDELETE FROM %s;', rows),"
"  format('SELECT pg_catalog.count(*) FROM %s', rows)"
" FROM orphan WHERE NOT hides AND NOT of_two AND uses_child AND uses_parent"
"  AND sees_child AND sees_parent";
