/*-------------------------------------------------------------------------
 *
 * check_roles.c
 *		Preflight: what roles may do on green: the one that applies, and those
 *		of the applications after a switchover.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cutover/preflight.h"

/*
 * The list of what grant_apply() grants, in its own words, taken apart:
 * "EXECUTE ON FUNCTION f(..), f(..)", "privilege (columns), privilege ON
 * table".  The tables that are to be written are looked at with each target.
 */
const char sql_apply_privileges[] =
", granted AS (SELECT split_part(p, ' ON ', 1) AS privileges,"
"   split_part(p, ' ON ', 2) AS object"
"  FROM given, jsonb_array_elements_text(f -> 'privileges') p),"
" wanted AS (SELECT split_part(i, ' (', 1) AS privilege,"
"   string_to_array(rtrim(split_part(i, ' (', 2), ')'), ', ') AS columns,"
"   object"
"  FROM granted CROSS JOIN LATERAL"
"   regexp_split_to_table(privileges, ', (?=[A-Z])') i),"
" missing AS ("
"  SELECT 'EXECUTE on ' || o AS what FROM wanted CROSS JOIN LATERAL"
"   regexp_split_to_table(replace(object, 'FUNCTION ', ''), ', (?=bluegreen)') o"
"   WHERE privilege = 'EXECUTE'"
"   AND NOT has_function_privilege(to_regprocedure(o), 'EXECUTE')"
"  UNION ALL SELECT privilege || ' on the database' FROM wanted"
"   WHERE object LIKE 'DATABASE %'"
"   AND NOT has_database_privilege(current_database(), privilege)"
"  UNION ALL SELECT privilege || ' on ' || object FROM wanted"
"   WHERE object LIKE 'SCHEMA %'"
"   AND NOT has_schema_privilege(substr(object, 8), privilege)"
"  UNION ALL SELECT privilege || ' on ' || object FROM wanted"
"   WHERE object LIKE 'bluegreen.%' AND CASE WHEN columns = '{}'"
"    THEN NOT has_table_privilege(object, privilege)"
"    ELSE EXISTS (SELECT FROM unnest(columns) k"
"     WHERE NOT has_column_privilege(object, k, privilege)) END) "
"SELECT 'error', CURRENT_USER::text, format('role \"%s\" lacks what streams"
" need on green: %s', CURRENT_USER, string_agg(what, ', ')),"
"  " ON_GREEN "format('SELECT bluegreen.grant_apply(%L);',"
"   quote_ident(CURRENT_USER))"
" FROM missing HAVING count(*) > 0";

/* What must be said if it cannot be seen. */
const char sql_visibility[] =
"SELECT 'notice', v.role, format('role \"%s\" cannot see %s', CURRENT_USER,"
"   v.what), " ON_GREEN
"  format('GRANT %I TO %I;', v.role, CURRENT_USER)"
" FROM given, (VALUES"
"  ('pg_read_all_stats', 'transactions of other roles on green that may be in"
" the way'),"
"  ('pg_read_all_settings', 'which libraries green loads')) v (role, what)"
" WHERE NOT pg_has_role(v.role, 'USAGE')";

/* ---- roles of applications ---- */

/*
 * Who may do what with mapped tables here.  An owner may do everything; roles
 * of the system, the bookkeeping's and superusers need no grant.
 */
const char facts_grants[] =
", granted AS (SELECT DISTINCT m.id, a.grantee, a.privilege_type"
"  FROM mapping m JOIN pg_class c ON c.oid = m.relid"
"   CROSS JOIN LATERAL ("
"    SELECT grantee, privilege_type FROM aclexplode(c.relacl)"
"     WHERE grantee <> c.relowner"
"    UNION ALL SELECT c.relowner, p"
"     FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) p) a"
"  WHERE a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE',"
"   'TRUNCATE')) "
"SELECT jsonb_agg(jsonb_build_object('id', g.id, 'role',"
"  CASE WHEN g.grantee = 0 THEN 'public' ELSE r.rolname END,"
"  'public', g.grantee = 0, 'login', r.rolcanlogin,"
"  'privilege', g.privilege_type))::text"
" FROM granted g LEFT JOIN pg_roles r ON r.oid = g.grantee, given"
" WHERE g.grantee = 0 OR NOT r.rolsuper AND r.rolname <> f ->> 'owner'"
"  AND r.oid >= 16384";

#define GRANTED \
	", granted AS (SELECT g.* FROM given CROSS JOIN LATERAL" \
	"  jsonb_to_recordset(x) AS g (id int4, role name, public bool, login bool," \
	"   privilege text)) "

const char sql_roles[] =
GRANTED
"SELECT 'warning', g.role::text, format('role \"%s\", which may use mapped"
" tables on blue, does not exist on green', g.role),"
"  " ON_GREEN "format('CREATE ROLE %I%s;', g.role,"
"   CASE WHEN bool_or(g.login) THEN ' LOGIN' ELSE '' END)"
" FROM granted g WHERE NOT g.public"
"  AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = g.role)"
" GROUP BY g.role";

const char sql_grants[] =
GRANTED
", lacking AS (SELECT DISTINCT m.name, m.target_schema, g.role, g.public,"
"   g.privilege"
"  FROM granted g JOIN mapping m ON m.id = g.id"
"  WHERE (g.public OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = g.role))"
"   AND NOT has_table_privilege(CASE WHEN g.public THEN 'public'"
"    ELSE g.role END, m.relid, g.privilege)) "
"SELECT 'warning', l.name || ' ' || l.role, format('%s, which may %s table"
" %s on blue, may not use %s on green',"
"   CASE WHEN l.public THEN 'everybody' ELSE format('role \"%s\"', l.role) END,"
"   string_agg(DISTINCT l.privilege, ', '), min(m.source_name), l.name),"
"  " ON_GREEN "CASE WHEN NOT has_schema_privilege(CASE WHEN l.public"
"     THEN 'public' ELSE l.role END, l.target_schema, 'USAGE')"
"    THEN format('GRANT USAGE ON SCHEMA %I TO %s;\n', l.target_schema, w.who)"
"    ELSE '' END"
"  || format('GRANT %s ON %s TO %s;', string_agg(DISTINCT l.privilege, ', '),"
"   l.name, w.who)"
" FROM lacking l JOIN mapping m ON m.name = l.name"
"  CROSS JOIN LATERAL (SELECT CASE WHEN l.public THEN 'PUBLIC'"
"   ELSE quote_ident(l.role) END) w (who)"
" GROUP BY l.name, l.target_schema, l.role, l.public, w.who";
