/*-------------------------------------------------------------------------
 *
 * check_server.c
 *		Preflight: settings, slots and origins, what the way back needs,
 *		collations, extensions, transactions of others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/definition.h"
#include "cutover/preflight.h"

/* A list of names as ALTER SYSTEM takes it, with ours at its end. */
#define LIST_WITH_US(setting) \
	"(SELECT string_agg(quote_literal(i), ', ') FROM (" \
	"SELECT trim(BOTH ' \"' FROM i) FROM unnest(string_to_array(" setting \
	", ',')) i WHERE trim(BOTH ' \"' FROM i) NOT IN ('', '" BG_PLUGIN "')" \
	" UNION ALL SELECT '" BG_PLUGIN "') list (i))"

/*
 * This setting cannot be changed while the server runs only if the library was
 * loaded with it; a session in which it was not called does not know it.
 */
#define NOT_PRELOADED \
	"NOT EXISTS (SELECT FROM pg_settings WHERE name =" \
	" 'bluegreen.max_streams' AND context = 'postmaster')"

/* ---- settings of blue ---- */

const char sql_library[] =
"SELECT 'error', 'shared_preload_libraries', 'no stream can run, because \""
BG_PLUGIN "\" is not in \"shared_preload_libraries\"',"
"  " ON_BLUE "'ALTER SYSTEM SET shared_preload_libraries = ' || "
LIST_WITH_US("current_setting('shared_preload_libraries')")
"   || ';\n-- and restart the server'"
" FROM given WHERE " NOT_PRELOADED;

const char sql_track_commit_timestamp[] =
"SELECT 'warning', 'track_commit_timestamp',"
"  'rows that are older than the stream get the time of their copy, and of"
" several that a merge brings together the newest is not known, because"
" \"track_commit_timestamp\" is off',"
"  " ON_BLUE "'ALTER SYSTEM SET track_commit_timestamp = on;\n"
"-- and restart the server'"
" WHERE NOT current_setting('track_commit_timestamp')::bool"
"  AND EXISTS (SELECT FROM mapping m WHERE m.on_write = 'merge'"
"   OR EXISTS (SELECT FROM pg_rewrite r JOIN pg_depend d"
"    ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid"
"    WHERE r.ev_class = m.view AND d.refclassid = 'pg_proc'::regclass"
"     AND d.refobjid = 'bluegreen.commit_time()'::regprocedure))";

const char sql_idle_slot_timeout[] =
"SELECT 'warning', s.name, 'a stream that is stopped for longer than \"' ||"
"   s.name || '\" (' || current_setting(s.name) || ') is lost',"
"  " ON_BLUE "format('ALTER SYSTEM SET %I = 0;\nSELECT pg_reload_conf();',"
"   s.name)"
" FROM pg_settings s, given"
" WHERE s.name = 'idle_replication_slot_timeout' AND s.setting <> '0'";

const char sql_standby_slots[] =
", item AS (SELECT trim(i) AS slot FROM unnest(string_to_array("
"   current_setting('synchronized_standby_slots', true), ',')) i"
"  WHERE trim(i) <> ''),"
" bad AS (SELECT slot FROM item WHERE NOT EXISTS ("
"  SELECT FROM pg_replication_slots r WHERE r.slot_name = item.slot::name"
"   AND r.slot_type = 'physical' AND r.active))"
"SELECT 'warning', slot, format('the stream waits for standby slot \"%s\","
" which \"synchronized_standby_slots\" names, and which nobody uses', slot),"
"  " ON_BLUE "format('ALTER SYSTEM SET synchronized_standby_slots = %s;"
"\nSELECT pg_reload_conf();', coalesce((SELECT string_agg(quote_literal(slot),"
"    ', ') FROM item WHERE slot NOT IN (SELECT slot FROM bad)), ''''''))"
" FROM bad, given";

/* ---- origins ---- */

/*
 * What the limit is called, and how many origins of others there are.  Those
 * that are in use are what counts; not everybody may see which are.
 */
#define ORIGIN_LIMIT \
	", setting AS (SELECT name, setting::int AS value FROM pg_settings" \
	"  WHERE name = CASE WHEN current_setting('server_version_num')::int" \
	"    >= 180000 THEN 'max_active_replication_origins'" \
	"   ELSE 'max_replication_slots' END) "

const char sql_origins[] =
ORIGIN_LIMIT
", need AS (SELECT 1 + (f ->> 'copy_workers')::int AS n,"
"   1 + least((f ->> 'copy_workers')::int, 1) AS least,"
"   f ->> 'origin' AS origin,"
"   has_function_privilege('pg_show_replication_origin_status()', 'EXECUTE')"
"    AS sees FROM given) "
"SELECT NULL, NULL, NULL, NULL, format("
"  'SELECT CASE WHEN %s AND used.n + %s > %s THEN ''error'' ELSE ''warning''"
" END, %L, format(''the stream and its copy workers need %s replication"
" origins, but of %s that \"%s\" allows %%s are in use'', used.n),"
"  ''-- on green\n'' || format(''ALTER SYSTEM SET %s = %%s;\n"
"-- and restart the server'', used.n + %s) FROM (SELECT count(*) FROM %s"
"   WHERE NOT starts_with(%s, %L)) used (n) WHERE used.n + %s > %s',"
"  sees::text, least, value, name, need.n, value, name, name, need.n + 2,"
"  CASE WHEN sees THEN 'pg_show_replication_origin_status()'"
"   ELSE 'pg_replication_origin' END,"
"  CASE WHEN sees THEN 'external_id' ELSE 'roname' END, origin, need.n, value)"
" FROM setting, need";

/* ---- what a stream back from green needs ---- */

const char sql_back_wal_level[] =
"SELECT 'error', 'wal_level', 'no stream back from green is possible, because"
" \"wal_level\" of green is not \"logical\"',"
"  " ON_GREEN "'ALTER SYSTEM SET wal_level = logical;\n"
"-- and restart the server'"
" FROM given WHERE current_setting('wal_level') <> 'logical'";

const char sql_back_library[] =
"SELECT 'error', 'shared_preload_libraries', 'no stream back from green is"
" possible, because \"" BG_PLUGIN "\" is not in \"shared_preload_libraries\""
" of green', " ON_GREEN
"  CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE')"
"   THEN 'ALTER SYSTEM SET shared_preload_libraries = '"
"    || " LIST_WITH_US("current_setting('shared_preload_libraries')")
"    || ';\n-- and restart the server'"
"   ELSE '-- add it to shared_preload_libraries, which this role may not"
" read, and restart the server' END"
" FROM given WHERE " NOT_PRELOADED;

const char sql_back_plugin[] =
"SELECT 'error', name, 'no stream back from green is possible, because \""
BG_PLUGIN "\" is not in \"' || name || '\" of green',"
"  " ON_GREEN "format('ALTER SYSTEM SET %I = %s;\nSELECT pg_reload_conf();',"
"   name, " LIST_WITH_US("setting") ")"
" FROM pg_settings, given WHERE name = 'output_plugin_libraries'"
"  AND NOT EXISTS (SELECT FROM unnest(string_to_array(setting, ',')) i"
"   WHERE trim(BOTH ' ' FROM i) = '" BG_PLUGIN "')";

const char sql_back_slots[] =
", used AS (SELECT count(*) AS n FROM pg_replication_slots) "
"SELECT 'error', 'max_replication_slots', format('no stream back from green is"
" possible, because all %s replication slots of green are in use', setting),"
"  " ON_GREEN "format('ALTER SYSTEM SET max_replication_slots = %s;\n"
"-- and restart the server', used.n + 5)"
" FROM pg_settings, used, given WHERE name = 'max_replication_slots'"
"  AND used.n >= setting::int";

const char sql_back_origins[] =
ORIGIN_LIMIT
", used AS (SELECT count(*) AS n FROM pg_show_replication_origin_status()) "
"SELECT 'error', name, format('no stream back to blue is possible, because all"
" %s replication origins that \"%s\" allows are in use', value, name),"
"  " ON_BLUE "format('ALTER SYSTEM SET %I = %s;\n-- and restart the server',"
"   name, used.n + 5)"
" FROM setting, used WHERE used.n >= value";

/* ---- collations ---- */

#define COLLATION_VERSION(side) \
	"SELECT 'warning', format('database %I', d.datname), format('collations" \
	" of the operating system are of version %s, but were of version %s when" \
	" the database was made: indexes may be out of order', a.now," \
	"  d.datcollversion), " side \
	"format('REINDEX DATABASE %I;\nALTER DATABASE %1$I REFRESH COLLATION" \
	" VERSION;', d.datname)" \
	" FROM given, pg_database d CROSS JOIN LATERAL" \
	"  pg_database_collation_actual_version(d.oid) a (now)" \
	" WHERE d.datname = current_database() AND a.now <> d.datcollversion" \
	" UNION ALL " \
	"SELECT 'warning', format('collation %I.%I', n.nspname, o.collname)," \
	"  format('collation is of version %s, but was of version %s when it was" \
	" made: indexes may be out of order', a.now, o.collversion), " side \
	"string_agg(DISTINCT format('REINDEX TABLE %s;\n', m.name), '')" \
	"   || format('ALTER COLLATION %I.%I REFRESH VERSION;', n.nspname," \
	"    o.collname)" \
	" FROM mapping m JOIN pg_attribute t ON t.attrelid = m.relid" \
	"   AND t.attnum > 0 AND NOT t.attisdropped" \
	"  JOIN pg_collation o ON o.oid = t.attcollation" \
	"  JOIN pg_namespace n ON n.oid = o.collnamespace" \
	"  CROSS JOIN LATERAL pg_collation_actual_version(o.oid) a (now)" \
	" WHERE a.now <> o.collversion" \
	" GROUP BY n.nspname, o.collname, a.now, o.collversion"

const char sql_collation_version_blue[] = COLLATION_VERSION(ON_BLUE);
const char sql_collation_version_green[] = COLLATION_VERSION(ON_GREEN);

/*
 * What ICU is told has another column since 17, and since 16 the spelling of
 * BCP 47.
 */
#define LOCALE \
	"jsonb_build_object('LC_COLLATE', d.datcollate, 'LC_CTYPE', d.datctype," \
	" 'provider', d.datlocprovider, 'locale of the provider'," \
	" replace(coalesce(to_jsonb(d) ->> 'datlocale'," \
	"  to_jsonb(d) ->> 'daticulocale', ''), '_', '-'))"

const char facts_locale[] =
"SELECT " LOCALE "::text FROM pg_database d WHERE datname = current_database()";

const char sql_locale[] =
"SELECT 'warning', b.key, format('%s of the database is %s on blue and %s on"
" green: texts sort, compare or fold in another way there', b.key, b.value,"
"  g.value), " ACCEPT("locale", "b.key")
" FROM given CROSS JOIN LATERAL jsonb_each_text(x) b"
"  JOIN pg_database d ON d.datname = current_database()"
"  CROSS JOIN LATERAL jsonb_each_text(" LOCALE ") g"
" WHERE g.key = b.key AND g.value <> b.value"
"  AND (b.key <> 'locale of the provider'"
"   OR x ->> 'provider' = d.datlocprovider::text)";

/* ---- extensions ---- */

const char facts_extensions[] =
"SELECT jsonb_agg(jsonb_build_object('name', extname, 'version', extversion))"
"::text FROM pg_extension WHERE extname <> '" BG_EXTENSION "'";

/*
 * A newer server has newer versions: that is fine as long as green has the one
 * that is its server's.
 */
const char sql_extensions[] =
"SELECT 'warning', b.name, CASE WHEN e.oid IS NULL"
"   THEN format('extension \"%s\" is not installed on green', b.name)"
"   ELSE format('extension \"%s\" has version %s on green, but %s on blue,"
" and %s is there', b.name, e.extversion, b.version, v.default_version) END,"
"  CASE WHEN e.oid IS NOT NULL THEN " ON_GREEN
"    format('ALTER EXTENSION %I UPDATE;', b.name)"
"   WHEN v.name IS NOT NULL THEN " ON_GREEN
"    format('CREATE EXTENSION %I;', b.name)"
"   ELSE " ACCEPT("extension", "b.name") " END"
" FROM given CROSS JOIN LATERAL jsonb_to_recordset(x)"
"   AS b (name name, version text)"
"  LEFT JOIN pg_available_extensions v ON v.name = b.name"
"  LEFT JOIN pg_extension e ON e.extname = b.name"
" WHERE e.oid IS NULL OR e.extversion <> b.version"
"  AND e.extversion <> v.default_version";

/* ---- transactions ---- */

#define PREPARED(name) \
	"SELECT 'warning', p.gid, format('prepared transaction %L in database" \
	" \"%s\" has waited since %s: who waits for its locks, or for it, waits" \
	" for ever', p.gid, p.database, date_trunc('seconds', p.prepared)), " \
	"'-- on " name "\n-- in its database; or COMMIT PREPARED\n'" \
	" || format('ROLLBACK PREPARED %L;', p.gid)" \
	" FROM pg_prepared_xacts p, given" \
	" WHERE p.prepared < clock_timestamp() - make_interval(secs =>" \
	"  (f ->> 'long')::int)"

const char sql_prepared_blue[] = PREPARED("blue");
const char sql_prepared_green[] =
PREPARED("green") " AND p.database = current_database()";

/* Ours come and go, and the fence knows what to do about them. */
#define TRANSACTIONS(side) \
	"SELECT 'warning', 'process ' || a.pid, format('process %s of user \"%s\"" \
	" in database \"%s\" has been in a transaction that writes since %s'," \
	"  a.pid, a.usename, a.datname, date_trunc('seconds', a.xact_start)), " \
	side "format('SELECT pg_terminate_backend(%s);', a.pid)" \
	" FROM pg_stat_activity a, given WHERE a.backend_xid IS NOT NULL" \
	"  AND a.pid <> pg_backend_pid()" \
	"  AND a.backend_type NOT IN ('autovacuum worker', 'walsender')" \
	"  AND a.backend_type NOT LIKE 'pg!_bluegreen %' ESCAPE '!'" \
	"  AND a.application_name NOT LIKE 'bluegreen %'" \
	"  AND a.xact_start < clock_timestamp() - make_interval(secs =>" \
	"   (f ->> 'long')::int)"

const char sql_transactions_blue[] = TRANSACTIONS(ON_BLUE);
const char sql_transactions_green[] =
TRANSACTIONS(ON_GREEN) " AND a.datname = current_database()";
