/*-------------------------------------------------------------------------
 *
 * step.c
 *		What a phase of a change does, as rows.
 *
 * A phase is planned once: its steps are stored in the transaction that has
 * planned them, headed by a row with number 0 that says so, since a phase may
 * have none.  A step is done when its row says so, and that is set in its own
 * transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "schema/guard.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(bluegreen_skip_step);

const char *const step_kind_names[] = {
	[STEP_SQL] = "sql",
	[STEP_USER] = "user",
	[STEP_INDEX] = "index",
	[STEP_DROP_INDEX] = "drop index",
	[STEP_CHECK] = "check",
	[STEP_VALIDATE] = "validate",
	[STEP_PARTITIONS] = "partitions",
	[STEP_ATTACH] = "attach",
	[STEP_REHEARSAL] = "rehearsal",
	[STEP_VERSION] = "version",
	[STEP_DROP_VERSION] = "drop version"
};

/*
 * A step without statements.
 */
Step *
step_make(StepKind kind, const char *title, const char *relation)
{
	Step	   *step = palloc0_object(Step);

	step->kind = kind;
	step->title = pstrdup(title);
	step->relation = relation ? pstrdup(relation) : NULL;
	return step;
}

/*
 * A list of strings as text[].
 */
Datum
texts_datum(List *strings)
{
	Datum	   *values = palloc_array(Datum, list_length(strings) + 1);
	ListCell   *lc;

	foreach(lc, strings)
	{
		values[foreach_current_index(lc)] = CStringGetTextDatum(lfirst(lc));
	}
	return PointerGetDatum(construct_array(values, list_length(strings),
										   TEXTOID, -1, false, TYPALIGN_INT));
}

static void
store_step(int32 change, ChangeState phase, int number, const Step *step)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[phase]);
	catalog_arg_int4(&args, number);
	catalog_arg_text(&args, step ? step_kind_names[step->kind] : "plan");
	catalog_arg_text(&args, step ? step->title : "plan");
	catalog_arg_text(&args, step ? step->relation : NULL);
	catalog_arg_text(&args, step ? step->object : NULL);
	catalog_arg(&args, TEXTARRAYOID, texts_datum(step ? step->locks : NIL));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(step ? step->statements : NIL));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(step ? step->undo : NIL));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(step ? step->guards : NIL));
	catalog_arg(&args, OIDOID,
				ObjectIdGetDatum(step ? step->relid : InvalidOid));
	(void) catalog_run("INSERT INTO bluegreen.schema_step (change, phase, "
					   "number, kind, title, relation, object, locks, "
					   "statements, undo, guards, relid, done) VALUES "
					   "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, "
					   "$12, $4 = 'plan')", &args, SPI_OK_INSERT);
}

/*
 * Store the steps of a phase, in their order; list of Step *.
 */
void
steps_store(int32 change, ChangeState phase, List *steps)
{
	CatalogAccess access;
	ListCell   *lc;

	catalog_begin(&access);
	store_step(change, phase, 0, NULL);
	foreach(lc, steps)
	{
		store_step(change, phase, foreach_current_index(lc) + 1, lfirst(lc));
	}
	catalog_end(&access);
}

/*
 * Put steps before one that is not done, of the same phase.  It is not that one
 * any more for the caller: its number is another one.
 */
void
steps_insert(int32 change, const Step *before, List *steps)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	ListCell   *lc;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[before->phase]);
	catalog_arg_int4(&args, before->number);
	catalog_arg_int4(&args, list_length(steps));
	/* by way of numbers that no step has */
	(void) catalog_run("UPDATE bluegreen.schema_step "
					   "SET number = -number - $4 "
					   "WHERE change = $1 AND phase = $2 AND number >= $3",
					   &args, SPI_OK_UPDATE);
	(void) catalog_run("UPDATE bluegreen.schema_step SET number = -number "
					   "WHERE change = $1 AND phase = $2 "
					   "AND number < 0", &args, SPI_OK_UPDATE);
	foreach(lc, steps)
	{
		store_step(change, before->phase,
				   before->number + foreach_current_index(lc), lfirst(lc));
	}
	catalog_end(&access);
}

/*
 * Forget the steps of an earlier expansion that is undone.
 */
void
steps_delete(int32 change)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	(void) catalog_run("DELETE FROM bluegreen.schema_step WHERE change = $1",
					   &args, SPI_OK_DELETE);
	(void) catalog_run("DELETE FROM bluegreen.schema_copy WHERE change = $1",
					   &args, SPI_OK_DELETE);
	(void) catalog_run("DELETE FROM bluegreen.schema_made WHERE change = $1",
					   &args, SPI_OK_DELETE);
	(void) catalog_run("DELETE FROM bluegreen.schema_meant WHERE change = $1",
					   &args, SPI_OK_DELETE);
	(void) catalog_run("DELETE FROM bluegreen.backfill WHERE change = $1",
					   &args, SPI_OK_DELETE);
	catalog_end(&access);
}

/*
 * Steps that retire the old version, and those that restore it, are to be done
 * again: they were planned together, and can be repeated.
 */
void
steps_renew(int32 change)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[CHANGE_RETIRING]);
	catalog_arg_text(&args, change_state_names[CHANGE_REVERTING]);
	(void) catalog_run("UPDATE bluegreen.schema_step SET done = false, "
					   "started_at = NULL, finished_at = NULL "
					   "WHERE change = $1 AND phase IN ($2, $3) "
					   "AND number > 0", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * The phase is to be planned anew.
 */
void
steps_forget(int32 change, ChangeState phase)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[phase]);
	(void) catalog_run("DELETE FROM bluegreen.schema_step WHERE change = $1 "
					   "AND phase = $2", &args, SPI_OK_DELETE);
	catalog_end(&access);
}

/*
 * Is the phase planned?
 */
bool
steps_exist(int32 change, ChangeState phase)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[phase]);
	result = catalog_run("SELECT FROM bluegreen.schema_step "
						 "WHERE change = $1 AND phase = $2", &args,
						 SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/*
 * Is no step of the phase done, nor may have left something?  The caller has
 * locked the change's row.
 */
bool
steps_untouched(int32 change, ChangeState phase)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[phase]);
	result = catalog_run("SELECT FROM bluegreen.schema_step "
						 "WHERE change = $1 AND phase = $2 AND number > 0 "
						 "AND (done OR kind IN ('index', 'drop index') "
						 "AND started_at IS NOT NULL)", &args,
						 SPI_OK_SELECT) == 0;
	catalog_end(&access);
	return result;
}

static List *
stored_texts(const CatalogAccess *access, uint64 row, int column)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(access->context);
	List	   *result = NIL;
	Datum	   *values;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(catalog_value(row, column, NULL)),
					  TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, &n);
	for (int i = 0; i < n; i++)
		result = lappend(result, TextDatumGetCString(values[i]));
	MemoryContextSwitchTo(oldcontext);
	return result;
}

/*
 * The first step of a phase that is not done, in the caller's context; NULL if
 * all are.
 */
Step *
step_next(int32 change, ChangeState phase)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Step	   *step = NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[phase]);
	if (catalog_run("SELECT number, kind, title, relation, object, locks, "
					"statements, guards, relid FROM bluegreen.schema_step WHERE change = $1 "
					"AND phase = $2 AND NOT done ORDER BY number LIMIT 1",
					&args, SPI_OK_SELECT) > 0)
	{
		step = MemoryContextAllocZero(access.context, sizeof(Step));
		step->number = DatumGetInt32(catalog_value(0, 1, NULL));
		step->kind = enum_lookup(step_kind_names, lengthof(step_kind_names),
								 catalog_text(&access, 0, 2));
		step->title = catalog_text(&access, 0, 3);
		step->relation = catalog_text(&access, 0, 4);
		step->object = catalog_text(&access, 0, 5);
		step->locks = stored_texts(&access, 0, 6);
		step->statements = stored_texts(&access, 0, 7);
		step->guards = stored_texts(&access, 0, 8);
		step->relid = DatumGetObjectId(catalog_value(0, 9, NULL));
		step->phase = phase;
	}
	catalog_end(&access);
	return step;
}

static bool
update_step(int32 change, const Step *step, const char *set, const char *value)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[step->phase]);
	catalog_arg_int4(&args, step->number);
	catalog_arg_text(&args, value);
	n = catalog_run(psprintf("UPDATE bluegreen.schema_step SET %s "
							 "WHERE change = $1 AND phase = $2 "
							 "AND number = $3 AND NOT done", set), &args,
					SPI_OK_UPDATE);
	catalog_end(&access);
	return n > 0;
}

/* The error that sends the worker back to look at the change again. */
static void
not_wanted(const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("canceling step because %s", why)));
}

/*
 * Error unless the step's phase is still wanted.  Who wants another state has
 * to wait for our transaction, and sees then what is done.
 */
static void
require_phase(int32 change, const Step *step)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[step->phase]);
	n = catalog_run("SELECT FROM bluegreen.schema_change WHERE id = $1 "
					"AND state = $2 FOR SHARE", &args, SPI_OK_SELECT);
	catalog_end(&access);
	if (n == 0)
		not_wanted("its phase is not wanted any more");
}

/*
 * Lock the step's row, before statements that can end the worker's own lock of
 * the change (pg_advisory_unlock_all()): nobody else may run them as well.
 */
void
step_lock(int32 change, const Step *step)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[step->phase]);
	catalog_arg_int4(&args, step->number);
	n = catalog_run("SELECT FROM bluegreen.schema_step WHERE change = $1 "
					"AND phase = $2 AND number = $3 AND NOT done "
					"FOR NO KEY UPDATE", &args, SPI_OK_SELECT);
	catalog_end(&access);
	if (n == 0)
		not_wanted("it is done already");
}

/*
 * The step is done, if this transaction commits.
 */
void
step_finish(int32 change, const Step *step)
{
	require_phase(change, step);
	if (!update_step(change, step, "done = true, waits_for = $4, "
					 "tries = tries + 1, finished_at = clock_timestamp()",
					 NULL))
		not_wanted("it is done already");
}

/*
 * Store the statements of a step that were made when it is run.
 */
void
step_store_statements(int32 change, const Step *step)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[step->phase]);
	catalog_arg_int4(&args, step->number);
	catalog_arg(&args, TEXTARRAYOID, texts_datum(step->statements));
	(void) catalog_run("UPDATE bluegreen.schema_step SET statements = $4 "
					   "WHERE change = $1 AND phase = $2 AND number = $3",
					   &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * The step is about to be tried.  Who wants another state either finds that out
 * here, or, once this has committed, that it may have left something.
 */
void
step_started(int32 change, const Step *step)
{
	require_phase(change, step);
	(void) update_step(change, step, "started_at = coalesce(started_at, "
					   "clock_timestamp(), $4::timestamptz)", NULL);
}

/*
 * The step was tried in vain.
 */
void
step_tried(int32 change, const Step *step, const char *waits_for)
{
	(void) update_step(change, step, "waits_for = $4, tries = tries + 1",
					   waits_for);
}

/* Steps whose table is what it was. */
static List *
without_changed(List *steps)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, steps)
	{
		char	   *what;

		if (guards_check(lfirst(lc), &what) == GUARD_SAME)
			result = lappend(result, lfirst(lc));
	}
	return result;
}

/*
 * What is to be run to take back the steps of a phase that are done and cannot
 * be taken back by looking at the catalogs; the last step first.  List of
 * Step * of kind STEP_SQL and STEP_USER.
 */
List *
steps_undo(int32 change, ChangeState phase)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, change_state_names[phase]);
	n = catalog_run("SELECT s.kind, s.title, s.relation, u.sql, "
					"s.guards, s.relid "
					"FROM bluegreen.schema_step s CROSS JOIN LATERAL "
					"unnest(s.undo) WITH ORDINALITY u (sql, n) "
					"WHERE s.change = $1 AND s.phase = $2 AND s.done "
					"ORDER BY s.number DESC, u.n DESC", &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *kind = catalog_text(&access, i, 1);
		char	   *title = catalog_text(&access, i, 2);
		char	   *relation = catalog_text(&access, i, 3);
		char	   *sql = catalog_text(&access, i, 4);
		List	   *guards = stored_texts(&access, i, 5);
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);
		Step	   *step = step_make(enum_lookup(step_kind_names,
												 lengthof(step_kind_names),
												 kind),
									 psprintf("undo: %s", title), relation);

		step->statements = list_make1(sql);
		step->guards = guards;
		step->relid = DatumGetObjectId(catalog_value(i, 6, NULL));
		result = lappend(result, step);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return without_changed(result);
}

/*
 * bluegreen.skip_step(change name) returns text: take the statements of the
 * document that have failed for done; returns the step's title.  Errors: no
 * such step has failed.
 */
Datum
bluegreen_skip_step(PG_FUNCTION_ARGS)
{
	Change	   *change;
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *title = NULL;

	require_argument(fcinfo, 0, "change");
	require_writable("bluegreen.skip_step()");
	change = change_by_name(NameStr(*PG_GETARG_NAME(0)));
	change_lock_row(change);
	change = change_load(change->id);
	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg_text(&args, change_state_names[change->state]);
	if (change->message != NULL &&
		catalog_run("UPDATE bluegreen.schema_step s SET done = true, "
					"undo = '{}', waits_for = NULL, "
					"finished_at = clock_timestamp() "
					"WHERE change = $1 AND phase = $2 AND kind = 'user' "
					"AND number = (SELECT min(number) "
					"FROM bluegreen.schema_step o WHERE o.change = $1 "
					"AND o.phase = $2 AND NOT o.done) RETURNING title",
					&args, SPI_OK_UPDATE_RETURNING) > 0)
		title = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (title == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no statements of the document of change \"%s\" have failed",
						change->name),
				 errdetail("Only an operation \"sql\" can be skipped.")));
	change_event(change, EVENT_CHANGE, psprintf("skipped: %s", title), NULL);
	PG_RETURN_TEXT_P(cstring_to_text(title));
}
