/*-------------------------------------------------------------------------
 *
 * check_window.c
 *		Preflight: can both sides take writes?  (Sequences: sequence_window.c.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/clock.h"
#include "core/definition.h"
#include "core/settings.h"
#include "cutover/preflight.h"
#include "stream/window.h"
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
 * For a stream back preflight_row() has hints say green where they say blue: in
 * them "blue" is here.  In what is said of both, these are.
 */
static const char *
this_side(const PreflightRun *run)
{
	return run->deployment->direction == 'f' ? "blue" : "green";
}

static const char *
other_side(const PreflightRun *run)
{
	return run->deployment->direction == 'f' ? "green" : "blue";
}

static char *
copy_or_null(const char *text)
{
	return text == NULL ? NULL : pstrdup(text);
}

/*
 * The mappings of the stream from there, a list of WindowMapping as ours would
 * be if they belong to them; source and target are theirs.
 */
static List *
load_there(PreflightRun *run)
{
	const char *args[] = {run->deployment->name};
	PeerResult *result =
		peer_query(run->peer, "SELECT source, target, policy, columns, "
				   "source_key, target_key, problem, hint "
				   "FROM bluegreen.window_mappings($1::pg_catalog.name)",
				   1, args);
	List	   *there = NIL;

	for (int i = 0; i < result->ntuples; i++)
	{
		char	  **row = result->values[i];
		WindowMapping *m = palloc0_object(WindowMapping);

		m->source = pstrdup(row[0]);
		m->target = pstrdup(row[1]);
		m->policy = pstrdup(row[2]);
		m->columns = copy_or_null(row[3]);
		m->source_key = pstrdup(row[4]);
		m->target_key = pstrdup(row[5]);
		m->problem.why = copy_or_null(row[6]);
		m->problem.hint = copy_or_null(row[7]);
		there = lappend(there, m);
	}
	return there;
}

static char *
hint_on(const char *side, const char *sql)
{
	return sql == NULL ? NULL : psprintf("-- on %s\n%s", side, sql);
}

static bool
is_looked_up(const WindowMapping *m)
{
	return strcmp(m->policy, "none") != 0;
}

/* The mapping the other way, or NULL. */
static const WindowMapping *
find_opposite(List *mappings, const WindowMapping *m)
{
	ListCell   *lc;

	foreach(lc, mappings)
	{
		const WindowMapping *other = lfirst(lc);

		if (strcmp(other->source, m->target) == 0 &&
			strcmp(other->target, m->source) == 0)
			return other;
	}
	return NULL;
}

/*
 * The check "window_mapping": can conflicts of each mapping's rows be decided,
 * also with the one the other way?
 */
void
check_window_mappings(PreflightRun *run)
{
	List	   *here = window_describe(run->deployment, false);
	List	   *there = NIL;
	ListCell   *lc;

	foreach(lc, here)
	{
		const WindowMapping *m = lfirst(lc);

		if (m->problem.why != NULL)
			refuse_mapping(run, m->target, m->problem.why,
						   hint_on("blue", m->problem.hint));
	}
	if (run->peer == NULL || run->deployment->opposite == NULL)
		return;
	there = load_there(run);
	foreach(lc, there)
	{
		const WindowMapping *m = lfirst(lc);

		if (m->problem.why != NULL)
			refuse_mapping(run, m->target,
						   psprintf("%s (on %s)", m->problem.why,
									other_side(run)),
						   hint_on("green", m->problem.hint));
		else if (is_looked_up(m) && find_opposite(here, m) == NULL)
			refuse_mapping(run, m->target,
						   psprintf("there is none of %s from %s", m->source,
									this_side(run)), NULL);
	}
	foreach(lc, here)
	{
		const WindowMapping *m = lfirst(lc);
		const WindowMapping *back = find_opposite(there, m);

		if (!is_looked_up(m) || m->problem.why != NULL)
			continue;
		if (back == NULL)
			refuse_mapping(run, m->target,
						   psprintf("there is none of it from %s",
									other_side(run)), NULL);
		else if (is_looked_up(back) &&
				 (strcmp(m->source_key, back->source_key) != 0 ||
				  strcmp(m->target_key, back->target_key) != 0))
			refuse_mapping(run, m->target,
						   psprintf("own changes are known by (%s) and (%s), and rows are found by (%s) and (%s)",
									m->source_key, back->target_key,
									back->source_key, m->target_key), NULL);
	}
}

/* ---- policies ---- */

static bool
wins_by_rank(const char *policy)
{
	return strcmp(policy, "last_write") == 0 || strchr(policy, '(') != NULL;
}

/*
 * What writes the other side's row over one's own must leave the same on both:
 * the two mappings have to be each other's inverse, which can be seen of
 * columns as they are.
 */
static void
check_inverse(PreflightRun *run, const WindowMapping *m,
			  const WindowMapping *back)
{
	PreflightRow row = {.severity = PREFLIGHT_ERROR,.object = m->target};

	if (!wins_by_rank(m->policy) ||
		(m->columns != NULL && back->columns != NULL &&
		 strcmp(m->columns, back->columns) == 0))
		return;
	row.message = psprintf("policy \"%s\" of \"%s\" needs mappings that are each other's inverse, which cannot be seen",
						   m->policy, m->target);
	row.hint = psprintf("-- on blue\n-- if they are: each row becomes what it was there and back\n"
						"SELECT bluegreen.accept(%s, 'window_policy', %s);",
						quote_literal_cstr(run->deployment->name),
						quote_literal_cstr(m->target));
	preflight_row(run, &row);
}

/* SQL that has the mapping back decide as blue's does. */
static char *
hint_policy(const PreflightRun *run, const WindowMapping *m,
			const WindowMapping *back)
{
	bool		here = run->deployment->direction == 'f';
	const char *policy = here ? m->policy : back->policy;

	if (strchr(policy, '(') != NULL)
		return NULL;			/* which column it is to be, nobody knows */
	return psprintf("-- on %s\nSELECT bluegreen.alter_mapping(%s, %s, %s, conflict => %s);",
					here ? "blue" : "green",
					quote_literal_cstr(run->deployment->name),
					quote_literal_cstr(here ? m->source : m->target),
					quote_literal_cstr(here ? m->target : m->source),
					quote_literal_cstr(policy));
}

/*
 * The check "window_policy": do both directions decide by the same policy, and
 * can it be one?
 */
void
check_window_policies(PreflightRun *run)
{
	List	   *there;
	ListCell   *lc;

	if (run->peer == NULL || run->deployment->opposite == NULL)
		return;
	there = load_there(run);
	foreach(lc, window_describe(run->deployment, false))
	{
		const WindowMapping *m = lfirst(lc);
		const WindowMapping *back = find_opposite(there, m);
		PreflightRow row = {.severity = PREFLIGHT_ERROR,.object = m->target};

		if (back == NULL)
			continue;
		if (strcmp(m->policy, back->policy) == 0)
		{
			check_inverse(run, m, back);
			continue;
		}
		row.message = psprintf("policies of \"%s\" differ: %s from %s, %s from %s",
							   m->target, m->policy, this_side(run),
							   back->policy, other_side(run));
		row.hint = hint_policy(run, m, back);
		preflight_row(run, &row);
	}
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

/* ---- clocks ---- */

/*
 * The check "window_clock": who wins by commit time is the later one only if
 * both clocks tell the same.
 */
void
check_window_clocks(PreflightRun *run)
{
	PreflightRow row = {.severity = PREFLIGHT_ERROR,.object = "clock"};
	bool		asked = false;
	ClockSkew	skew;
	int64		apart;
	ListCell   *lc;

	foreach(lc, run->mappings)
	{
		const MappingRow *mapping = lfirst(lc);

		asked = asked || strcmp(mapping->conflict, "last_write") == 0;
	}
	if (!asked || run->peer == NULL || bg_max_clock_skew < 0)
		return;
	skew = clock_compare(run->peer);
	apart = skew.ahead < 0 ? -skew.ahead : skew.ahead;
	if (apart - skew.error <= (int64) bg_max_clock_skew * 1000)
		return;
	row.message = psprintf("the clock of green is %.3f s %s that of %s",
						   apart / 1e6, skew.ahead < 0 ? "behind" : "ahead of",
						   this_side(run));
	row.detail = psprintf("Measured to %.3f s. Where the policy is \"last_write\", the side that is ahead wins over changes that are up to that much later.",
						  skew.error / 1e6);
	row.hint = psprintf("-- on blue\n-- have both servers' clocks set by NTP; or, if it does not matter who is later:\n"
						"SELECT bluegreen.accept(%s, 'window_clock', 'clock');",
						quote_literal_cstr(run->deployment->name));
	preflight_row(run, &row);
}
