/*-------------------------------------------------------------------------
 *
 * check_back.c
 *		Preflight: is there a way back, and for every mapped table?
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/definition.h"
#include "cutover/preflight.h"
#include "miscadmin.h"
#include "utils/builtins.h"

/* What blue calls on green. */
static const char joined_routines[] =
"bluegreen.join_deployment, bluegreen.joined_stream, "
"bluegreen.leave_deployment, bluegreen.derive_mapping, "
"bluegreen.keep_derived, bluegreen.joined_mappings, "
"bluegreen.map_table(name, text, text, text, text[], text, text, text, text, text), "
"bluegreen.alter_mapping(name, text, text, text, text[], text, text, text, text, text), "
"bluegreen.unmap_table(name, text, text, text), bluegreen.start, bluegreen.stop";

/* May the role there join, and has it a user mapping for a server of ours? */
static const char could_join_sql[] =
"SELECT CURRENT_USER,"
"  pg_catalog.has_function_privilege("
"   'bluegreen.join_deployment(name,text,name,text)', 'EXECUTE'),"
"  EXISTS (SELECT FROM pg_catalog.pg_foreign_server s"
"    JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw"
"    JOIN pg_catalog.pg_user_mappings u ON u.srvid = s.oid"
"   WHERE w.fdwname = '" BG_EXTENSION "'"
"    AND u.usename IN (CURRENT_USER, 'public'))";

/*
 * There is no way back: what would make one.
 */
static void
add_no_way(PreflightRun *run, const char *role, bool may_join, bool has_server)
{
	const Deployment *deployment = run->deployment;
	PreflightRow row = {.severity = PREFLIGHT_ERROR,.object = "green"};
	StringInfoData hint;

	row.message = psprintf("there is no way back: %s", !may_join ?
						   psprintf("role \"%s\" of green may only apply changes",
									role) : !has_server ?
						   psprintf("green has no server of foreign-data wrapper \"%s\" for role \"%s\"",
									BG_EXTENSION, role) :
						   "no server of green's leads here, or green had none at the last start");
	initStringInfo(&hint);
	appendStringInfoString(&hint, "-- on green\n");
	if (!may_join)
		appendStringInfo(&hint, "ALTER ROLE %s REPLICATION;\n"
						 "GRANT EXECUTE ON ROUTINE %s TO %s;\n",
						 quote_identifier(role), joined_routines,
						 quote_identifier(role));
	if (!has_server)
		appendStringInfo(&hint, "CREATE SERVER blue FOREIGN DATA WRAPPER %s OPTIONS (host '...', port '...', dbname '...');\n"
						 "GRANT USAGE ON FOREIGN SERVER blue TO %s;\n"
						 "CREATE USER MAPPING FOR %s SERVER blue OPTIONS (user '...', password '...');\n",
						 BG_EXTENSION, quote_identifier(role),
						 quote_identifier(role));
	appendStringInfo(&hint, "-- on blue\nCALL bluegreen.start(%s);",
					 quote_literal_cstr(deployment->name));
	row.hint = hint.data;
	preflight_row(run, &row);
}

/*
 * A table whose rows would not come back.
 */
static void
add_no_mapping(PreflightRun *run, const DerivedMapping *derived)
{
	PreflightRow row = {.severity = PREFLIGHT_ERROR};

	row.object = derived->target;
	row.message = psprintf("table \"%s\" has no mapping back: %s",
						   derived->target, derived->problem ?
						   derived->problem :
						   "green has refused the derived one, or was not asked yet");
	row.hint = psprintf("-- on blue\nSELECT bluegreen.map_table(%s, %s, %s,\n"
						"    transform => 'SELECT ... FROM %s', direction => 'backward');",
						quote_literal_cstr(run->deployment->name),
						quote_literal_cstr(derived->source),
						quote_literal_cstr(derived->target), derived->source);
	preflight_row(run, &row);
}

/*
 * A table of green whose rows nothing brings back, though blue's table from which
 * they came is written: what blue cannot hold.
 */
static void
add_not_back(PreflightRun *run, const DerivedMapping *derived)
{
	PreflightRow row = {.severity = PREFLIGHT_NOTICE};

	row.object = derived->source;
	row.message = psprintf("table %s of green has no mapping back: what is written to it there stays there",
						   derived->source);
	preflight_row(run, &row);
}

/* What joined_mappings() tells of a mapping back. */
enum
{
	BACK_TARGET,
	BACK_SOURCE
};

static bool
has_table(const PeerResult *mappings, int column, const char *name)
{
	for (int i = 0; i < mappings->ntuples; i++)
		if (strcmp(mappings->values[i][column], name) == 0)
			return true;
	return false;
}

/*
 * Every table that is mapped forward must be written by a mapping back, and
 * what each brings to green should come from there.
 */
static void
check_mappings_back(PreflightRun *run, bool joined)
{
	const char *args[] = {run->deployment->name};
	PeerResult *there = NULL;
	ListCell   *lc;

	if (joined)
		there = peer_query(run->peer, "SELECT target, source FROM "
						   "bluegreen.joined_mappings($1::pg_catalog.name)",
						   1, args);
	foreach(lc, derive_mappings(run->deployment))
	{
		const DerivedMapping *derived = lfirst(lc);

		if (joined ? !has_table(there, BACK_TARGET, derived->target) :
			derived->problem != NULL)
			add_no_mapping(run, derived);
		else if (joined && !has_table(there, BACK_SOURCE, derived->source))
			add_not_back(run, derived);
	}
}

/*
 * The check "way_back", of blue's row.
 */
void
check_way_back(PreflightRun *run)
{
	const Deployment *deployment = run->deployment;
	bool		joined = deployment->opposite != NULL;
	PeerResult *result;
	char	  **there;

	if (deployment->direction != 'f' || run->peer == NULL)
		return;
	result = peer_query(run->peer, could_join_sql, 0, NULL);
	there = result->values[0];
	if (!joined && (!XLogRecPtrIsInvalid(deployment->slot_lsn) ||
					there[1][0] != 't' || there[2][0] != 't'))
	{
		add_no_way(run, there[0], there[1][0] == 't', there[2][0] == 't');
		return;
	}
	check_mappings_back(run, joined);
}
