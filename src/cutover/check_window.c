/*-------------------------------------------------------------------------
 *
 * check_window.c
 *		Preflight: can both sides take writes?  (Sequences: sequence_window.c.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/definition.h"
#include "cutover/preflight.h"
#include "utils/builtins.h"

/* ---- mappings ---- */

static void
refuse_mapping(PreflightRun *run, char *target, const char *why,
			   const char *hint)
{
	PreflightRow row = {
		.severity = PREFLIGHT_ERROR,.object = target,
		.message = psprintf("mapping of \"%s\" cannot go both ways at once: %s",
							target, why),
		.hint = unconstify(char *, hint)
	};

	preflight_row(run, &row);
}

/*
 * Why rows of a mapping could not be decided about one by one; NULL if they
 * could.
 */
static const char *
mapping_problem(bool has_key, bool has_lookup, const char *on_write,
				int writers)
{
	if (has_lookup)
		return "it has a lookup";
	if (!has_key)
		return "its target has no key";
	if (strcmp(on_write, on_write_names[ON_WRITE_PATCH]) == 0)
		return "it is a patch";
	if (writers > 1)
		return "several mappings write this table";
	return NULL;
}

static void
check_here(PreflightRun *run)
{
	ListCell   *lc;

	foreach(lc, run->mappings)
	{
		const MappingRow *mapping = lfirst(lc);
		bool		has_key = false;
		const char *why;

		for (int i = 0; i < mapping->ncolumns; i++)
			has_key |= mapping->columns[i].is_key;
		why = mapping_problem(has_key, mapping->lookup != NULL,
							  on_write_names[mapping->on_write],
							  mapping->target_shared ? 2 : 1);
		if (why != NULL)
			refuse_mapping(run, mapping_target_name(mapping), why, NULL);
	}
}

/*
 * Those of the other side, as it tells.
 */
static void
check_there(PreflightRun *run)
{
	const char *args[] = {run->deployment->name};
	PeerResult *result =
		peer_query(run->peer,
				   "SELECT target, pg_catalog.cardinality(key) > 0, "
				   "lookup IS NOT NULL, on_write, "
				   "pg_catalog.count(*) OVER (PARTITION BY target) "
				   "FROM bluegreen.joined_mappings($1::pg_catalog.name)",
				   1, args);

	for (int i = 0; i < result->ntuples; i++)
	{
		char	  **row = result->values[i];
		const char *why = mapping_problem(row[1] && row[1][0] == 't',
										  row[2][0] == 't', row[3],
										  atoi(row[4]));

		if (why != NULL)
			refuse_mapping(run, row[0], psprintf("%s (back)", why), NULL);
	}
}

/*
 * The check "window_mapping".
 */
void
check_window_mappings(PreflightRun *run)
{
	check_here(run);
	if (run->peer != NULL && run->deployment->opposite != NULL)
		check_there(run);
}

/* ---- streams ---- */

/*
 * The check "window_stream": of the stream back (that from here has a check of
 * its own).
 */
void
check_window_streams(PreflightRun *run)
{
	const Deployment *deployment = run->deployment;
	const char *args[] = {registry_origin(deployment)};
	PreflightRow row = {
		.severity = PREFLIGHT_ERROR,
		.object = deployment->direction == 'f' ? "backward" : "forward"
	};
	PeerResult *result;

	if (run->peer == NULL || deployment->opposite == NULL)
		return;
	result = peer_query(run->peer, "SELECT problem FROM "
						"bluegreen.window_look($1, '0/0')", 1, args);
	if (result->values[0][0] == NULL)
		return;
	row.message = psprintf("the stream against that from here has an error: %s",
						   result->values[0][0]);
	preflight_row(run, &row);
}
