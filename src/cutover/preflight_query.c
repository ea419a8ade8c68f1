/*-------------------------------------------------------------------------
 *
 * preflight_query.c
 *		The checks that are queries: what stands before each of them, where it
 *		runs, and how its rows are read.  See preflight.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/settings.h"
#include "cutover/preflight.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"

#define MAPPING_COLUMNS \
	"id int4, source oid, source_name text, view oid, target_schema name, " \
	"target_table name, on_write text, on_delete text, state text, " \
	"columns name[], key name[]"

/* What each query may use. */
static const char prefix_blue[] =
"WITH given (f, x) AS (SELECT $1::jsonb, $2::jsonb),"
" mapping AS (SELECT m.*, m.source AS relid, m.source_name AS name"
"  FROM given, jsonb_to_recordset(f -> 'mappings') AS m (" MAPPING_COLUMNS ")) ";

/* target: each table that is written, once; part: with its partitions. */
static const char prefix_green[] =
"WITH given (f, x) AS (SELECT $1::pg_catalog.jsonb, $2::pg_catalog.jsonb),"
" mapping AS (SELECT m.*, c.oid AS relid,"
"   format('%I.%I', n.nspname, c.relname) AS name"
"  FROM given, jsonb_to_recordset(f -> 'mappings') AS m (" MAPPING_COLUMNS ")"
"   JOIN pg_namespace n ON n.nspname = m.target_schema"
"   JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = m.target_table),"
" target AS (SELECT relid, name,"
"   bool_and(state IS NULL OR state = 'streaming') AS is_copied"
"  FROM mapping GROUP BY relid, name),"
" part AS (SELECT t.relid AS root, p.relid, t.name AS root_name,"
"   format('%I.%I', n.nspname, c.relname) AS name, t.is_copied"
"  FROM target t CROSS JOIN LATERAL (SELECT t.relid UNION"
"    SELECT relid FROM pg_partition_tree(t.relid)) p"
"   JOIN pg_class c ON c.oid = p.relid"
"   JOIN pg_namespace n ON n.oid = c.relnamespace) ";

/*
 * given.f.  $1 deployment, $2 slot, $3 origin, $4 copy workers, $5 privileges
 * of a role that applies, $6 long_transaction in s.
 */
static const char facts_sql[] =
"SELECT jsonb_build_object('deployment', d.name, 'server', d.server,"
" 'owner', pg_get_userbyid(d.owner), 'slot', $2, 'origin', $3,"
" 'copy_workers', $4, 'privileges', $5::jsonb, 'long', $6,"
" 'started', d.slot_lsn IS NOT NULL, 'mappings', coalesce("
"  (SELECT jsonb_agg(jsonb_build_object('id', m.id, 'source', m.source::int8,"
"    'source_name', format('%I.%I', n.nspname, c.relname),"
"    'view', m.view::int8, 'target_schema', m.target_schema,"
"    'target_table', m.target_table, 'on_write', m.on_write,"
"    'on_delete', m.on_delete,"
"    'state', CASE WHEN d.slot_lsn IS NOT NULL"
"      THEN coalesce(t.state, 'waiting') END,"
"    'columns', coalesce(to_jsonb(m.lookup_columns),"
"     (SELECT jsonb_agg(k.name ORDER BY position)"
"      FROM bluegreen.mapping_column k WHERE k.mapping = m.id)),"
"    'key', coalesce(to_jsonb(m.lookup_key),"
"     (SELECT jsonb_agg(k.name ORDER BY position)"
"      FROM bluegreen.mapping_column k WHERE k.mapping = m.id AND k.is_key)))"
"    ORDER BY m.id)"
"   FROM bluegreen.table_mapping m"
"    LEFT JOIN bluegreen.table_state() t ON t.mapping = m.id"
"    LEFT JOIN pg_class c ON c.oid = m.source"
"    LEFT JOIN pg_namespace n ON n.oid = c.relnamespace"
"   WHERE m.deployment = d.id), '[]'))::text"
" FROM bluegreen.deployment d WHERE d.id = $1";

static char *
privileges_as_json(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < apply_privilege_count; i++)
	{
		appendStringInfoChar(&buf, i > 0 ? ',' : '[');
		escape_json(&buf, apply_privileges[i]);
	}
	appendStringInfoChar(&buf, ']');
	return buf.data;
}

/*
 * What all queries are given, and what was accepted.
 */
void
preflight_gather(PreflightRun *run)
{
	Deployment *deployment = run->deployment;
	CatalogAccess access;
	CatalogArgs args = {0};
	CatalogArgs id = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_text(&args, run->slot_name);
	catalog_arg_text(&args, registry_origin(deployment));
	catalog_arg_int4(&args, bg_copy_workers);
	catalog_arg_text(&args, privileges_as_json());
	catalog_arg_int4(&args, bg_long_transaction);
	if (catalog_run(facts_sql, &args, SPI_OK_SELECT) == 0)
		elog(ERROR, "deployment \"%s\" has gone", deployment->name);
	run->facts = catalog_text(&access, 0, 1);

	catalog_arg_int4(&id, deployment->id);
	n = catalog_run("SELECT \"check\" || ' ' || object FROM bluegreen.accepted "
					"WHERE deployment = $1", &id, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);

		run->accepted = lappend(run->accepted, catalog_text(&access, i, 1));
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
}

/*
 * Run a query here.  facts and compared are the parameters; without facts it
 * is one of our making that has none.
 */
static PeerResult *
query_blue(const char *sql, const char *facts, const char *compared)
{
	PeerResult *result = palloc0(sizeof(PeerResult));
	CatalogAccess access;
	CatalogArgs args = {0};

	if (facts != NULL)
	{
		catalog_arg_text(&args, facts);
		catalog_arg_text(&args, compared);
	}
	catalog_begin(&access);
	result->ntuples = (int) catalog_run(sql, &args, SPI_OK_SELECT);
	result->nfields = SPI_tuptable->tupdesc->natts;
	result->values = MemoryContextAlloc(access.context, sizeof(char **) *
										(result->ntuples + 1));
	for (int i = 0; i < result->ntuples; i++)
	{
		result->values[i] = MemoryContextAlloc(access.context,
											   sizeof(char *) * result->nfields);
		for (int j = 0; j < result->nfields; j++)
			result->values[i][j] = catalog_text(&access, i, j + 1);
	}
	catalog_end(&access);
	return result;
}

static PeerResult *
query_green(Peer *peer, const char *sql, const char *facts,
			const char *compared)
{
	const char *const args[] = {facts, compared};

	return peer_query(peer, sql, facts == NULL ? 0 : lengthof(args), args);
}

static PreflightSeverity
severity_of(const char *word)
{
	int			severity = enum_lookup(preflight_severities,
									   PREFLIGHT_ERROR + 1, word);

	if (severity < 0)
		elog(ERROR, "unexpected severity \"%s\" of a check", word);
	return severity;
}

static void add_rows(PreflightRun *run, const PeerResult *result);

/*
 * Add one row of a check's answer.  One that has only a fifth value stands for
 * the rows of that query.  Where others have a fifth value, that is a query
 * that counts rows of tables: the finding is there if there are some, and its
 * message begins with their number.  It runs in the session that reads tables
 * as their owner, so that no code of his runs as somebody else.
 */
static void
add_row(PreflightRun *run, char **values, int nvalues)
{
	PreflightRow row = {0};

	if (nvalues > 4 && values[0] == NULL && values[4] != NULL)
	{
		add_rows(run, query_green(run->peer, values[4], NULL, NULL));
		return;
	}
	if (nvalues < 4 || !values[0] || !values[1] || !values[2])
		elog(ERROR, "unexpected answer of a check");
	row.severity = severity_of(values[0]);
	row.object = values[1];
	row.message = values[2];
	row.hint = values[3];
	if (nvalues > 4 && values[4] != NULL)
	{
		PeerResult *count;

		if (run->apply == NULL)
			return;				/* one row for that is enough */
		count = query_green(run->apply, values[4], NULL, NULL);
		if (count->ntuples != 1 || !count->values[0][0])
			elog(ERROR, "unexpected answer of a check");
		if (strcmp(count->values[0][0], "0") == 0)
			return;
		row.message = psprintf("%s%s", count->values[0][0], values[2]);
	}
	preflight_row(run, &row);
}

static void
add_rows(PreflightRun *run, const PeerResult *result)
{
	check_stack_depth();		/* a peer may answer what it likes */
	for (int i = 0; i < result->ntuples; i++)
		add_row(run, result->values[i], result->nfields);
}

/*
 * Run a check that is a query, and add what it finds.
 */
void
preflight_query(PreflightRun *run, const PreflightCheck *check)
{
	bool		is_green = strcmp(check->side, "green") == 0;
	char	   *sql = psprintf("%s%s", is_green ? prefix_green : prefix_blue,
							   check->sql);
	char	   *compared = NULL;
	PeerResult *result;

	if (check->facts != NULL)
	{
		result = query_blue(psprintf("%s%s", prefix_blue, check->facts),
							run->facts, NULL);
		compared = result->ntuples > 0 ? result->values[0][0] : NULL;
	}
	result = is_green ? query_green(run->peer, sql, run->facts, compared) :
		query_blue(sql, run->facts, compared);
	add_rows(run, result);
}
