/*-------------------------------------------------------------------------
 *
 * guard.c
 *		Is what a step is about still what it was when it was planned?
 *
 * Days may lie in between, and names are all that statements have.  So a step
 * has guards: queries that know tables and columns by their numbers.  They are
 * asked before the step, and under its locks once more.  What is gone is done:
 * the step has nothing to do.  What has another name now, or has given its name
 * to something else, is an error of a contract; an undo is planned anew.
 *
 * Here is also what makes others leave alone what a change needs: its triggers
 * depend on the columns that they read and write, so that dropping such a column
 * takes CASCADE, which drops the trigger, and not every write fails; and the
 * version's schema depends on the extension until the change is at its end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "compat.h"
#include "core/attempt.h"
#include "executor/spi.h"
#include "parser/parser.h"
#include "schema/derive.h"
#include "schema/guard.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/varlena.h"

/*
 * What has a qualified name, which is SQL; InvalidOid if nothing has.
 */
Oid
find_relation(const char *qualified)
{
	List	   *name = textToQualifiedNameList(cstring_to_text(qualified));

	return RangeVarGetRelid(makeRangeVarFromNameList(name), NoLock, true);
}

/* ---- guards: SQL that gives NULL, '' for what is gone, or what is wrong ---- */

/*
 * The table is there, under its name.
 */
void
guard_table(Step *step, Oid relid, const char *qualified)
{
	const char *name = quote_literal_cstr(qualified);

	step->guards =
		lappend(step->guards,
				psprintf("SELECT CASE WHEN to_regclass(%s) = '%u'::oid THEN NULL "
						 "WHEN EXISTS (SELECT FROM pg_class WHERE oid = '%u') "
						 "THEN format('table \"%%s\" is \"%%s\" now', %s, '%u'::oid::regclass) "
						 "ELSE '' END", name, relid, relid, name, relid));
}

/*
 * The column has its name, or is gone and nothing else has it.
 */
void
guard_column(Step *step, Oid relid, AttrNumber attnum, const char *name)
{
	const char *literal = quote_literal_cstr(name);

	step->guards =
		lappend(step->guards,
				psprintf("SELECT CASE WHEN a.attname = %s THEN NULL "
						 "WHEN a.attname IS NOT NULL THEN format("
						 "'column \"%%s\" of table \"%%s\" is \"%%s\" now', %s, c.relname, a.attname) "
						 "WHEN EXISTS (SELECT FROM pg_attribute o "
						 "WHERE o.attrelid = c.oid AND o.attname = %s) THEN format("
						 "'column \"%%s\" of table \"%%s\" is not the same as before', %s, c.relname) "
						 "END FROM pg_class c LEFT JOIN pg_attribute a "
						 "ON a.attrelid = c.oid AND a.attnum = %d AND NOT a.attisdropped "
						 "WHERE c.oid = '%u'",
						 literal, literal, literal, literal, attnum, relid));
}

/*
 * What an index is, but for its name and number, which REINDEX CONCURRENTLY
 * changes: SQL of a text, from the SQL of its OID.
 */
char *
index_identity(const char *oid)
{
	return psprintf("(SELECT concat_ws('/', i.indrelid, i.indkey, i.indcollation, "
					"i.indclass, i.indoption, i.indisunique, "
					"regexp_replace(concat(i.indexprs, i.indpred), "
					"':location -?[0-9]+', '', 'g')) "
					"FROM pg_index i WHERE i.indexrelid = %s)", oid);
}

/*
 * The same of a constraint, which is not identified by its number alone where it
 * was made again.  Whether it is valid does not count.
 */
char *
constraint_identity(const char *oid)
{
	return psprintf("(SELECT concat_ws('/', k.conrelid, k.contype, k.conkey, "
					"k.condeferrable, k.condeferred, k.connoinherit, "
					"k.confrelid, k.confkey, k.confupdtype, k.confdeltype, "
					"k.confmatchtype, k.confdelsetcols, k.conexclop, "
					"regexp_replace(k.conbin::text, "
					"':location -?[0-9]+', '', 'g')) "
					"FROM pg_constraint k WHERE k.oid = %s)", oid);
}

/* What an SQL expression gives now, as text. */
static char *
read_text(const char *expression)
{
	CatalogAccess access;
	char	   *result = NULL;

	catalog_begin(&access);
	if (catalog_run(psprintf("SELECT %s", expression), NULL,
					SPI_OK_SELECT) > 0)
		result = catalog_text(&access, 0, 1);
	catalog_end(&access);
	return result;
}

/*
 * The index has its name, or one that is just like it.
 */
void
guard_index(Step *step, Oid index, const char *qualified)
{
	const char *name = quote_literal_cstr(qualified);
	char	   *now = index_identity(psprintf("to_regclass(%s)", name));
	char	   *before = read_text(index_identity(psprintf("'%u'::oid",
															index)));

	step->guards =
		lappend(step->guards,
				psprintf("SELECT CASE WHEN to_regclass(%s) = '%u'::oid OR %s = %s THEN NULL "
						 "WHEN EXISTS (SELECT FROM pg_class WHERE oid = '%u') "
						 "THEN format('index \"%%s\" is \"%%s\" now', %s, '%u'::oid::regclass) "
						 "WHEN to_regclass(%s) IS NOT NULL "
						 "THEN format('index \"%%s\" is not the same as before', %s) "
						 "ELSE '' END", name, index, now,
						 quote_literal_cstr(before ? before : ""), index,
						 name, index, name, name));
}

/*
 * The trigger that keeps columns in step is there, in partitions as well, and
 * fires always: else rows that were written meanwhile may be out of step.
 * (ENABLE TRIGGER ALL makes it one that does not fire in replica sessions.)
 */
void
guard_trigger(Step *step, Oid relid, const char *trigger)
{
	step->guards =
		lappend(step->guards,
				psprintf("SELECT format('trigger \"%%s\" of table \"%%s\" was dropped or disabled for a while, "
						 "so its rows may be out of step', %s, c.relname) "
						 "FROM (SELECT '%u'::oid UNION SELECT p.relid "
						 "FROM pg_partition_tree('%u') p) r (relid) "
						 "JOIN pg_class c ON c.oid = r.relid "
						 "WHERE c.relkind IN ('r', 'p') AND NOT EXISTS ("
						 "SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid "
						 "AND t.tgname = %s AND t.tgenabled = 'A') LIMIT 1",
						 quote_literal_cstr(trigger), relid, relid,
						 quote_literal_cstr(trigger)));
}

/*
 * No constraint but this one has its name, nor one that the change has restored,
 * nor one that is just like it.  None at all may: that is as good.
 */
void
guard_constraint(Step *step, Oid relid, Oid constraint, const char *name)
{
	char	   *before = read_text(constraint_identity(psprintf("'%u'::oid",
																constraint)));

	step->guards =
		lappend(step->guards,
				psprintf("SELECT format('constraint \"%%s\" of table \"%%s\" is not the same as before', "
						 "c.conname, t.relname) FROM pg_constraint c "
						 "JOIN pg_class t ON t.oid = c.conrelid "
						 "WHERE c.conrelid = '%u' AND c.conname = %s "
						 "AND c.oid <> '%u' AND %s IS DISTINCT FROM %s "
						 "AND NOT EXISTS (SELECT FROM bluegreen.schema_made m "
						 "WHERE m.kind = 'restored' AND m.name IS NULL "
						 "AND m.relation = c.conrelid AND m.number = c.oid)",
						 relid, quote_literal_cstr(name), constraint,
						 constraint_identity("c.oid"),
						 quote_literal_cstr(before ? before : "")));
}

/*
 * The same for an index, of which no other relation may have the name.
 */
void
guard_index_name(Step *step, Oid index, const char *qualified)
{
	char	   *before = read_text(index_identity(psprintf("'%u'::oid",
															index)));

	step->guards =
		lappend(step->guards,
				psprintf("SELECT format('index \"%%s\" is not the same as before', "
						 "c.oid::regclass) FROM pg_class c "
						 "WHERE c.oid = to_regclass(%s) AND c.oid <> '%u' "
						 "AND %s IS DISTINCT FROM %s "
						 "AND NOT EXISTS (SELECT FROM bluegreen.schema_made m "
						 "WHERE m.kind = 'restored' AND m.name IS NOT NULL "
						 "AND m.number = c.oid)",
						 quote_literal_cstr(qualified), index,
						 index_identity("c.oid"),
						 quote_literal_cstr(before ? before : "")));
}

/* What goes with columns of a table that goes: name, OID, what an index is. */
static char *
hanging_sql(const ShapeTable *table, const char *attnums)
{
	return psprintf("SELECT k.conname, k.oid, NULL FROM pg_constraint k "
					"WHERE k.conrelid = '%u' AND k.conparentid = 0 "
					"AND k.contype IN ('c', 'f', 'u', 'x') "
					"AND k.conkey && '{%s}'::int2[] "
					"UNION ALL "
					"SELECT DISTINCT c.relname, c.oid, %s FROM pg_depend d "
					"JOIN pg_class c ON c.oid = d.objid "
					"JOIN pg_index i ON i.indexrelid = c.oid "
					"WHERE d.classid = 'pg_class'::regclass "
					"AND d.refclassid = 'pg_class'::regclass "
					"AND d.refobjid = '%u' "
					"AND d.refobjsubid = ANY ('{%s}'::int2[]) "
					"AND i.indisvalid "
					"UNION ALL "
					"SELECT DISTINCT s.stxname, s.oid, NULL FROM pg_depend d "
					"JOIN pg_statistic_ext s ON s.oid = d.objid "
					"WHERE d.classid = 'pg_statistic_ext'::regclass "
					"AND d.refclassid = 'pg_class'::regclass "
					"AND d.refobjid = '%u' "
					"AND d.refobjsubid = ANY ('{%s}'::int2[])",
					table->relid, attnums, index_identity("c.oid"),
					table->relid, attnums, table->relid, attnums);
}

/* Numbers of the columns that second ones replace: 1,2 */
static char *
replaced_columns(const ShapeTable *table)
{
	StringInfoData attnums;
	ListCell   *lc;

	initStringInfo(&attnums);
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->rule != NULL && column->rule->kind == RULE_PAIR)
			appendStringInfo(&attnums, "%s%d", attnums.len > 0 ? "," : "",
							 column->attnum);
	}
	return attnums.data;
}

/*
 * Nothing has come to hang on the columns that second ones replace, which would
 * be lost with them: constraints and indexes that are there now were copied, or
 * are meant to go.  An index may have been built anew.
 */
void
guard_lost(Step *step, const ShapeTable *table)
{
	char	   *attnums = replaced_columns(table);
	char	   *hanging;
	char	   *oids;
	char	   *indexes;

	if (*attnums == '\0')
		return;
	hanging = psprintf("(%s) h (name, oid, what)",
					   hanging_sql(table, attnums));
	oids = read_text(psprintf("coalesce(array_agg(h.oid), '{}')::text FROM %s",
							  hanging));
	indexes = read_text(psprintf("coalesce(array_agg(h.name || ' ' || h.what) "
								 "FILTER (WHERE h.what IS NOT NULL), '{}')::text FROM %s",
								 hanging));
	step->guards =
		lappend(step->guards,
				psprintf("SELECT format('\"%%s\" of table \"%%s\" would be lost with the old column', "
						 "h.name, %s) FROM %s WHERE h.oid <> ALL (%s::oid[]) "
						 "AND (h.what IS NULL "
						 "OR h.name || ' ' || h.what <> ALL (%s::text[])) LIMIT 1",
						 quote_literal_cstr(table->old_name), hanging,
						 quote_literal_cstr(oids),
						 quote_literal_cstr(indexes)));
}

/*
 * Ask the guards.  With GUARD_CHANGED, *what says what is wrong, in the current
 * memory context.
 */
GuardResult
guards_check(const Step *step, char **what)
{
	CatalogAccess access;
	GuardResult result = GUARD_SAME;
	ListCell   *lc;

	*what = NULL;
	catalog_begin(&access);
	foreach(lc, step->guards)
	{
		char	   *text;

		if (catalog_run(lfirst(lc), NULL, SPI_OK_SELECT) == 0)
			continue;
		text = catalog_text(&access, 0, 1);
		if (text == NULL)
			continue;
		*what = text;
		result = *text == '\0' ? GUARD_GONE : GUARD_CHANGED;
		if (result == GUARD_CHANGED || OidIsValid(step->relid) ||
			step->kind == STEP_DROP_INDEX)
			break;
	}
	catalog_end(&access);
	return result;
}

/* ---- what it means for a step ---- */

/* Is what is gone all that the step is about? */
static bool
is_about_one(const Step *step)
{
	return OidIsValid(step->relid) || step->kind == STEP_DROP_INDEX;
}

static bool
is_plan_old(const Change *change, const Step *step, GuardResult result)
{
	return change->state == CHANGE_UNDOING &&
		(result == GUARD_CHANGED ||
		 (result == GUARD_GONE && !is_about_one(step)));
}

/*
 * Is the step to be planned anew?  An undo finds what there is then.
 */
bool
guard_plan_is_old(const Change *change, const Step *step)
{
	char	   *what;

	return is_plan_old(change, step, guards_check(step, &what));
}

/*
 * Is there still something to do for the step, and to the same things?  Error
 * if not to the same.
 */
bool
guard_step(const Change *change, const Step *step)
{
	char	   *what;
	GuardResult result = guards_check(step, &what);

	if (is_plan_old(change, step, result))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("planning the undo of change \"%s\" anew, because its tables have changed",
						change->name)));
	if (result != GUARD_CHANGED)
		return result == GUARD_SAME || !is_about_one(step);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s", what),
			 errdetail("That was done when the change was under way already."),
			 change->state == CHANGE_REVERTING ?
			 errhint("Use CALL bluegreen.contract(%s) to keep the new version.",
					 quote_literal_cstr(change->name)) :
			 errhint("Take it back and call again, or use CALL bluegreen.undo(%s) while that is possible.",
					 quote_literal_cstr(change->name))));
}

/*
 * Was it because something is gone?
 */
bool
guard_is_gone(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_UNDEFINED_TABLE ||
		error->sqlerrcode == ERRCODE_UNDEFINED_COLUMN ||
		error->sqlerrcode == ERRCODE_UNDEFINED_OBJECT;
}

typedef struct GuardedRun
{
	const char *sql;
	void		(*run) (const char *);
} GuardedRun;

static void
run_guarded(void *arg)
{
	const GuardedRun *guarded = arg;

	guarded->run(guarded->sql);
}

/*
 * Run a statement; what is about something that is gone is passed over, and
 * recorded.
 */
void
guard_run(const Change *change, const char *sql, void (*run) (const char *))
{
	GuardedRun	guarded = {sql, run};
	ErrorData  *error = attempt(run_guarded, &guarded);

	if (error == NULL)
		return;
	if (!guard_is_gone(error))
		ReThrowError(error);
	change_event(change, EVENT_CHANGE,
				 psprintf("passed over: %s", error->message), sql);
}

/* ---- what depends on what ---- */

static void
depend_on_column(Oid trigger, Oid relid, const char *name)
{
	AttrNumber	attnum = get_attnum(relid, name);
	ObjectAddress depender;
	ObjectAddress column;

	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", name,
						get_rel_name(relid))));
	ObjectAddressSet(depender, TriggerRelationId, trigger);
	ObjectAddressSubSet(column, RelationRelationId, relid, attnum);
	recordDependencyOn(&depender, &column, DEPENDENCY_NORMAL);
}

static void
depend_on_reads(Oid trigger, Oid relid, List *reads)
{
	ListCell   *lc;

	foreach(lc, reads)
	{
		depend_on_column(trigger, relid, ((ColumnRead *) lfirst(lc))->column);
	}
}

static void
depend_on_rules(Oid trigger, Oid relid, const char *rules)
{
	ListCell   *lc;

	foreach(lc, rules_read(rules)->rules)
	{
		Rule	   *rule = lfirst(lc);

		if (rule->old_column != NULL)
			depend_on_column(trigger, relid, rule->old_column);
		if (rule->new_column != NULL)
			depend_on_column(trigger, relid, rule->new_column);
		if (rule->mark != NULL)
			depend_on_column(trigger, relid, rule->mark);
		depend_on_reads(trigger, relid, rule->up_reads);
		depend_on_reads(trigger, relid, rule->down_reads);
	}
}

/*
 * Make the trigger that this statement of ours has just made depend on the
 * columns that its arguments name.  Error: one of them does not exist.
 */
void
guard_trigger_columns(const char *sql)
{
	CreateTrigStmt *stmt =
		castNode(CreateTrigStmt,
				 linitial_node(RawStmt, raw_parser(sql,
												   RAW_PARSE_DEFAULT))->stmt);
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, false);
	Oid			trigger = get_trigger_oid(relid, stmt->trigname, false);

	if (list_length(stmt->args) == 1)
		depend_on_rules(trigger, relid, strVal(linitial(stmt->args)));
	for (int i = DERIVE_COLUMNS; i < list_length(stmt->args); i++)
		depend_on_column(trigger, relid, strVal(list_nth(stmt->args, i)));
}

/*
 * DROP EXTENSION takes CASCADE while the version's schema is in use by both
 * versions: without the triggers they would no longer agree.
 */
void
guard_extension(Oid schema)
{
	ObjectAddress depender;
	ObjectAddress extension;

	ObjectAddressSet(depender, NamespaceRelationId, schema);
	ObjectAddressSet(extension, ExtensionRelationId,
					 get_extension_oid(BG_EXTENSION, false));
	recordDependencyOn(&depender, &extension, DEPENDENCY_NORMAL);
}

/*
 * The change is at its end, and the schema stays without us, if there is one.
 */
void
guard_extension_end(Oid schema)
{
	if (OidIsValid(schema))
		(void) deleteDependencyRecordsForSpecific(NamespaceRelationId, schema,
												  DEPENDENCY_NORMAL,
												  ExtensionRelationId,
												  get_extension_oid(BG_EXTENSION,
																	false));
}
