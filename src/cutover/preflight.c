/*-------------------------------------------------------------------------
 *
 * preflight.c
 *		Run the checks of a preflight, and what comes of it: rows for people,
 *		an error for a start or a switchover.
 *
 * Each check runs in a subtransaction of its own, so that one that fails
 * becomes a row like others: what it was to find out is not known then.  Where
 * a function raises an error because of what it has found, that is the row,
 * and the statement that mends it is taken from the error's hint.
 *
 * For a start, errors of functions are raised as they are instead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "cutover/preflight.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

PG_FUNCTION_INFO_V1(bluegreen_preflight);
PG_FUNCTION_INFO_V1(bluegreen_accept);

const char *const preflight_severities[] = {"ok", "notice", "warning", "error"};

/* ---- rows ---- */

static bool
is_accepted(const PreflightRun *run, const char *object)
{
	char	   *key = psprintf("%s %s", preflight_checks[run->check].name,
								   object);
	ListCell   *lc;

	foreach(lc, run->accepted)
	{
		if (strcmp(lfirst(lc), key) == 0)
			return true;
	}
	return false;
}

/* How hints and messages name a side, on both of them. */
static const char *const side_words[][2] = {
	{"-- on blue\n", "-- on green\n"},
	{" of blue ", " of green "},
	{" on blue ", " on green "},
};

/* Length of such words at the beginning of a text, and what stands for them. */
static size_t
match_side(const char *text, const char **other)
{
	for (int i = 0; i < lengthof(side_words); i++)
		for (int side = 0; side < 2; side++)
		{
			size_t		len = strlen(side_words[i][side]);

			if (strncmp(text, side_words[i][side], len) != 0)
				continue;
			*other = side_words[i][1 - side];
			return len;
		}
	return 0;
}

/*
 * For a stream back what the checks call blue is green, and the reverse.
 */
static char *
swap_sides(const char *text)
{
	StringInfoData buf;

	initStringInfo(&buf);
	while (*text)
	{
		const char *other;
		size_t		len = match_side(text, &other);

		if (len > 0)
			appendStringInfoString(&buf, other);
		else
			appendStringInfoChar(&buf, *text);
		text += Max(len, 1);
	}
	return buf.data;
}

/*
 * Add a row to the answer of the check at work.  Its strings are copied.
 */
void
preflight_row(PreflightRun *run, const PreflightRow *row)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(run->context);
	PreflightRow *copy = palloc(sizeof(PreflightRow));

	*copy = *row;
	copy->check = run->check;
	copy->object = pstrdup(row->object);
	copy->message = pstrdup(row->message);
	copy->detail = row->detail ? pstrdup(row->detail) : NULL;
	copy->hint = row->hint ? pstrdup(row->hint) : NULL;
	if (run->deployment->direction == 'b')
	{
		copy->message = swap_sides(copy->message);
		if (copy->hint != NULL)
			copy->hint = swap_sides(copy->hint);
	}
	if (row->severity > PREFLIGHT_NOTICE && is_accepted(run, row->object))
	{
		copy->severity = PREFLIGHT_NOTICE;
		copy->message = psprintf("accepted: %s", copy->message);
		copy->hint = NULL;
	}
	if (copy->severity > PREFLIGHT_OK)
		run->found = true;
	run->rows = lappend(run->rows, copy);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Does a text begin with a SQL command, as hints write it?
 */
static bool
is_command(const char *text)
{
	return strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") >= 3;
}

/*
 * The semicolon that ends a statement, or NULL; those in names and strings
 * don't.
 */
static const char *
end_of_statement(const char *text)
{
	char		quote = 0;

	for (; *text; text++)
	{
		if (quote != 0)
			quote = *text == quote ? 0 : quote;
		else if (*text == '\'' || *text == '"')
			quote = *text;
		else if (*text == ';')
			return text;
	}
	return NULL;
}

/*
 * Append a text as a comment.  It is one line, whatever names are in it.
 */
static void
append_remark(StringInfo buf, const char *text)
{
	appendStringInfoString(buf, "-- ");
	for (; *text; text++)
		appendStringInfoChar(buf, *text == '\n' || *text == '\r' ? ' ' : *text);
}

static bool
skip_word(const char **text, const char *word)
{
	size_t		length = strlen(word);

	if (strncmp(*text, word, length) != 0)
		return false;
	*text += length;
	return true;
}

/*
 * The statement in an error's hint, as a preflight prints it.  Such hints are
 * "[On the peer, ]use STATEMENT; [and STATEMENT; ]remark", and those with one
 * statement only may have a full stop instead of the semicolon.  All else is a
 * remark.
 */
static char *
statement_of_hint(const char *hint, const char *side)
{
	const char *text = hint;
	const char *end;
	size_t		length;
	StringInfoData buf;

	if (hint == NULL)
		return NULL;
	length = strlen(hint);
	if (skip_word(&text, "On the peer, ") ||
		(length > 8 && strcmp(hint + length - 8, "; there.") == 0))
		side = "green";
	(void) (skip_word(&text, "Use ") || skip_word(&text, "use ") ||
			skip_word(&text, "Run "));
	initStringInfo(&buf);
	appendStringInfo(&buf, "-- on %s\n", side);
	end = end_of_statement(text);
	if (is_command(text) && end == NULL && strstr(text, ", or ") == NULL)
	{
		length = strlen(text);
		appendStringInfo(&buf, "%.*s;",
						 (int) (length - (text[length - 1] == '.')), text);
		return buf.data;
	}
	if (!is_command(text) || end == NULL)
	{
		append_remark(&buf, hint);
		return buf.data;
	}
	for (;;)
	{
		appendStringInfo(&buf, "%.*s", (int) (end - text) + 1, text);
		text = end + 1;
		text += strspn(text, " \n");
		if (strncmp(text, "and ", 4) == 0 && is_command(text + 4))
			text += 4;
		end = end_of_statement(text);
		if (!is_command(text) || end == NULL)
			break;
		appendStringInfoChar(&buf, '\n');
	}
	if (strlen(text) > 1 && strcmp(text, "there.") != 0)
	{
		appendStringInfoChar(&buf, '\n');
		append_remark(&buf, text);
	}
	return buf.data;
}

static void
add_error(PreflightRun *run, const char *object, const ErrorData *error)
{
	const PreflightCheck *check = &preflight_checks[run->check];
	PreflightRow row = {.severity = PREFLIGHT_ERROR};

	row.object = unconstify(char *, object ? object : run->deployment->name);
	row.message = error->message;
	row.detail = error->detail;
	row.hint = statement_of_hint(error->hint, check->side);
	if (!check->required)
	{
		row.severity = PREFLIGHT_WARNING;
		row.object = unconstify(char *, check->side);
		row.message = psprintf("could not be checked: %s", error->message);
	}
	if (run->peer != NULL && !peer_is_alive(run->peer))
	{
		/* said once: without a connection, green is not looked at */
		row.severity = PREFLIGHT_ERROR;
		peer_close(run->peer);
		run->peer = NULL;
	}
	preflight_row(run, &row);
}

/* ---- run ---- */

static void
run_check(PreflightRun *run, const MappingRow *mapping)
{
	const PreflightCheck *check = &preflight_checks[run->check];

	if (check->sql != NULL)
		preflight_query(run, check);
	else if (check->function != NULL)
		check->function(run);
	else
		check->mapping_function(run, mapping);
}

/*
 * Run the check at work in a subtransaction; its error becomes a row.  Checks
 * change nothing, so all are rolled back, which gives their locks on tables
 * back: rows of large tables may be counted later.  But not where a connection
 * was made, which would go with it.
 */
static void
try_check(PreflightRun *run, const MappingRow *mapping)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Peer	   *peer = run->peer;
	Peer	   *apply = run->apply;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run_check(run, mapping);
		if (run->peer != peer || run->apply != apply)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			(run->raise && run->peer != NULL &&
			 !peer_is_alive(run->peer)))
			ReThrowError(error);
		add_error(run, mapping ? mapping_target_name(mapping) : NULL, error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

static bool
is_wanted(const PreflightRun *run, const PreflightCheck *check)
{
	bool		started = !XLogRecPtrIsInvalid(run->deployment->slot_lsn);

	if ((check->phases & run->phases) == 0)
		return false;
	if (check->scope != PREFLIGHT_ALWAYS &&
		(check->scope == PREFLIGHT_STARTED) != started)
		return false;
	/* without a connection there is one row for that, and nothing is ok */
	return strcmp(check->side, "green") != 0 || run->peer != NULL ||
		strcmp(check->name, "peer") == 0;
}

/*
 * All of a deployment's checks of the run's phases, in their order.
 */
static void
run_checks(PreflightRun *run)
{
	run->context = CurrentMemoryContext;
	preflight_gather(run);
	for (int i = 0; i < preflight_check_count; i++)
	{
		const PreflightCheck *check = &preflight_checks[i];
		ListCell   *lc;

		CHECK_FOR_INTERRUPTS();
		run->check = i;
		run->found = false;
		if (!is_wanted(run, check))
			continue;
		if (check->mapping_function != NULL)
		{
			foreach(lc, run->mappings)
			{
				if (run->raise)
					run_check(run, lfirst(lc));
				else
					try_check(run, lfirst(lc));
			}
		}
		else if (run->raise && check->required)
			run_check(run, NULL);
		else
			try_check(run, NULL);
		if (!run->found)
		{
			PreflightRow row = {
				.severity = PREFLIGHT_OK,
				.object = unconstify(char *, check->side),
				.message = unconstify(char *, check->what)
			};

			preflight_row(run, &row);
		}
	}
}

static void
close_peers(PreflightRun *run, bool keep_apply)
{
	if (run->peer != NULL)
		peer_close(run->peer);
	if (run->apply != NULL && !keep_apply)
		peer_close(run->apply);
	run->peer = NULL;
}

/* ---- refuse ---- */

#define MAX_REASONS 5

/*
 * Error if there are errors among the rows: the first one, and the next ones in
 * the detail.
 */
static void
raise_errors(const PreflightRun *run, const char *what)
{
	PreflightRow *first = NULL;
	StringInfoData more;
	int			n = 0;
	ListCell   *lc;

	initStringInfo(&more);
	foreach(lc, run->rows)
	{
		PreflightRow *row = lfirst(lc);

		if (row->severity != PREFLIGHT_ERROR)
			continue;
		if (first == NULL)
			first = row;
		else if (n < MAX_REASONS)
			appendStringInfo(&more, "%s%s", more.len > 0 ? "\n" : "",
							 row->message);
		n++;
	}
	if (first == NULL)
		return;
	if (n > MAX_REASONS)
		appendStringInfo(&more, "\n%d more", n - MAX_REASONS);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot %s deployment \"%s\": %s", what,
					run->deployment->name, first->message),
			 more.len > 0 ? errdetail_internal("%s", more.data) : 0,
			 errhint("%s%sbluegreen.preflight() tells all of it.",
					 first->hint ? first->hint : "",
					 first->hint ? "\n-- " : "")));
}

/*
 * For start(), which has found the deployment and its mappings and has changed
 * nothing: raise an error if it would fail, warn of what may hurt, and return a
 * session of the peer's that applies.
 */
Peer *
preflight_start(Deployment *deployment, List *mappings, const char *slot_name,
				bool allow_nonempty)
{
	PreflightRun run = {
		.deployment = deployment,.mappings = mappings,
		.allow_nonempty = allow_nonempty,.raise = true,
		.phases = PREFLIGHT_START
	};
	ListCell   *lc;

	strlcpy(run.slot_name, slot_name, NAMEDATALEN);
	run_checks(&run);
	raise_errors(&run, "start");
	foreach(lc, run.rows)
	{
		PreflightRow *row = lfirst(lc);

		if (row->severity == PREFLIGHT_WARNING)
			ereport(WARNING,
					(errmsg("%s", row->message),
					 row->detail ? errdetail_internal("%s", row->detail) : 0,
					 row->hint ? errhint("%s", row->hint) : 0));
	}
	close_peers(&run, true);
	return run.apply;
}

static void
prepare_run(PreflightRun *run, Deployment *deployment, int phases)
{
	run->deployment = deployment;
	run->mappings = mappings_load(deployment->id, deployment->direction);
	run->phases = phases;
	deployment_slot_name(run->slot_name, deployment);
}

/*
 * For who is about to do something: error if the preflight of these phases
 * finds an error, with the first ones.  Takes as long as a preflight does, and
 * holds no lock on the deployment.
 */
void
preflight_refuse(Deployment *deployment, int phases)
{
	PreflightRun run = {0};

	prepare_run(&run, deployment, phases);
	run_checks(&run);
	close_peers(&run, false);
	raise_errors(&run, (phases & PREFLIGHT_WINDOW) ? "open a window of" :
				 (phases & PREFLIGHT_SWITCHOVER) ? "switch over" : "start");
}

/* ---- the functions ---- */

static int
compare_rows(const ListCell *a, const ListCell *b)
{
	const PreflightRow *left = lfirst(a);
	const PreflightRow *right = lfirst(b);

	if (left->severity != right->severity)
		return left->severity > right->severity ? -1 : 1;
	if (left->check != right->check)
		return left->check < right->check ? -1 : 1;
	return strcmp(left->object, right->object);
}

static void
put_rows(const PreflightRun *run, ReturnSetInfo *rsinfo)
{
	ListCell   *lc;

	foreach(lc, run->rows)
	{
		const PreflightRow *row = lfirst(lc);
		const char *name = preflight_checks[row->check].name;
		char	   *message = row->detail == NULL ? row->message :
			psprintf("%s. %s", row->message, row->detail);
		Datum		values[5];
		bool		nulls[5] = {0};

		values[0] = CStringGetTextDatum(name);
		values[1] = CStringGetTextDatum(preflight_severities[row->severity]);
		values[2] = CStringGetTextDatum(row->object);
		values[3] = CStringGetTextDatum(message);
		if (row->hint)
			values[4] = CStringGetTextDatum(row->hint);
		else
			nulls[4] = true;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 nulls);
	}
}

/*
 * Keep the worst severity, for view status.
 */
static void
keep_result(const PreflightRun *run)
{
	PreflightSeverity worst = PREFLIGHT_OK;
	CatalogAccess access;
	CatalogArgs args = {0};
	ListCell   *lc;

	foreach(lc, run->rows)
	{
		worst = Max(worst, ((PreflightRow *) lfirst(lc))->severity);
	}
	catalog_begin(&access);
	catalog_arg_int4(&args, run->deployment->id);
	catalog_arg_text(&args, preflight_severities[worst]);
	catalog_run("INSERT INTO bluegreen.preflight_result "
				"VALUES ($1, $2, clock_timestamp()) "
				"ON CONFLICT (deployment) DO UPDATE "
				"SET severity = excluded.severity, at = excluded.at",
				&args, SPI_OK_INSERT);
	catalog_end(&access);
}

/*
 * bluegreen.preflight(deployment name, stage text) returns setof ("check" text, severity
 * text, object text, message text, hint text): see the head of preflight.h.
 * The worst rows come first.  stage: 'switchover', or 'window' for what only
 * open_window() asks, too.  Reads both sides, changes nothing there but the
 * result that view status shows.  Errors: no such deployment; not its owner;
 * a standby or a read-only transaction.
 */
Datum
bluegreen_preflight(PG_FUNCTION_ARGS)
{
	static const char *const stages[] = {"switchover", "window"};
	PreflightRun run = {0};
	Deployment *deployment;
	int			stage;

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "stage");
	stage = enum_lookup(stages, lengthof(stages),
						text_to_cstring(PG_GETARG_TEXT_PP(1)));
	if (stage < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"", "stage",
						text_to_cstring(PG_GETARG_TEXT_PP(1))),
				 errhint("Valid values are \"%s\" and \"%s\".", stages[0],
						 stages[1])));
	require_writable("bluegreen.preflight");
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	InitMaterializedSRF(fcinfo, 0);
	prepare_run(&run, deployment,
				stage == 0 ? PREFLIGHT_BOTH : PREFLIGHT_BOTH | PREFLIGHT_WINDOW);
	run_checks(&run);
	close_peers(&run, false);
	list_sort(run.rows, compare_rows);
	put_rows(&run, (ReturnSetInfo *) fcinfo->resultinfo);
	keep_result(&run);
	return (Datum) 0;
}

/*
 * Error unless there is a check of this name whose findings one may live with.
 */
static void
require_acceptable(const char *name)
{
	for (int i = 0; i < preflight_check_count; i++)
		if (strcmp(preflight_checks[i].name, name) == 0)
		{
			if (!preflight_checks[i].required)
				return;
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("check \"%s\" cannot be accepted", name),
					 errdetail("Nothing works without what it looks at.")));
		}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("preflight has no check \"%s\"", name)));
}

/*
 * bluegreen.accept(deployment name, "check" text, object text, accepted
 * boolean) returns void: from now on the check's findings about the object are
 * known and count as a notice; with accepted => false not any more.  Locks the
 * deployment's row.  Errors: no such deployment or check; not its owner; a
 * check without which nothing works; nothing to take back.
 */
Datum
bluegreen_accept(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"deployment", "check", "object",
	"accepted"};
	Deployment *deployment;
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *check;
	char	   *object;

	for (int i = 0; i < lengthof(names); i++)
		require_argument(fcinfo, i, names[i]);
	require_writable("bluegreen.accept");
	check = text_to_cstring(PG_GETARG_TEXT_PP(1));
	object = text_to_cstring(PG_GETARG_TEXT_PP(2));
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	require_acceptable(check);
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg_text(&args, check);
	catalog_arg_text(&args, object);
	if (PG_GETARG_BOOL(3))
	{
		catalog_arg_name(&args, GetUserNameFromId(GetSessionUserId(), false));
		catalog_run("INSERT INTO bluegreen.accepted (deployment, \"check\", "
					"object, accepted_by) VALUES ($1, $2, $3, $4) "
					"ON CONFLICT DO NOTHING", &args, SPI_OK_INSERT);
	}
	else if (catalog_run("DELETE FROM bluegreen.accepted WHERE deployment = $1 "
						 "AND \"check\" = $2 AND object = $3", &args,
						 SPI_OK_DELETE) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("check \"%s\" of object \"%s\" was not accepted",
						check, object)));
	catalog_end(&access);
	PG_RETURN_VOID();
}
