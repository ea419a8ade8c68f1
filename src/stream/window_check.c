/*-------------------------------------------------------------------------
 *
 * window_check.c
 *		Can conflicts of a mapping's rows be decided?
 *
 * Each side looks at the mappings of its own stream, and at the tables that
 * they read.  open_window() has both described, and compares them
 * (cutover/check_window.c): what one side tells is written as the mapping the
 * other way would have it, so that two that belong together tell the same.  A
 * stream in a window looks at its own again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "compat.h"
#include "core/definition.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "stream/window.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(bluegreen_window_mappings);

#define NONE "none"

/* ---- one mapping ---- */

/* May a change lack what it did not touch? */
static bool
may_lack_values(const Transform *transform)
{
	if (transform->identity_full)
		return false;
	for (int i = 0; i < transform->source_desc->natts; i++)
		if (transform->source[i].toastable &&
			bms_is_member(i + 1, transform->reads))
			return true;
	return false;
}

/* A column of the key by which own changes are known, that has no hash. */
static const char *
unhashed_column(const Transform *transform)
{
	int			attnum = -1;

	while ((attnum = bms_next_member(transform->chunk_key, attnum)) >= 0)
	{
		Form_pg_attribute att = TupleDescAttr(transform->source_desc,
											  attnum - 1);
		TypeCacheEntry *type =
			lookup_type_cache(att->atttypid, TYPECACHE_HASH_EXTENDED_PROC);

		if (!OidIsValid(type->hash_extended_proc))
			return NameStr(att->attname);
	}
	return NULL;
}

static char *
mapping_source_name(const MappingRow *row)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(row->source)),
									  get_rel_name(row->source));
}

/*
 * Does another mapping make, remove or write what this one does?  A patch may
 * go beside it, that is not looked up and writes other columns.
 */
static bool
shares_rows(const MappingRow *row)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	if (!row->target_shared)
		return false;
	catalog_begin(&access);
	catalog_arg_int4(&args, row->id);
	result = catalog_run("SELECT FROM bluegreen.table_mapping m "
						 "JOIN bluegreen.deployment d ON d.id = m.deployment "
						 "JOIN bluegreen.table_mapping o ON o.id <> m.id "
						 "AND o.direction = m.direction "
						 "AND o.target_schema = m.target_schema "
						 "AND o.target_table = m.target_table "
						 "JOIN bluegreen.deployment od "
						 "ON od.id = o.deployment AND od.server = d.server "
						 "WHERE m.id = $1 AND (o.deployment <> m.deployment "
						 "OR o.on_write <> 'patch' OR o.on_delete = 'delete' "
						 "OR o.conflict <> 'none' OR o.lookup IS NOT NULL "
						 "OR EXISTS (SELECT FROM bluegreen.mapping_column a "
						 "JOIN bluegreen.mapping_column b ON b.name = a.name "
						 "WHERE a.mapping = m.id AND b.mapping = o.id "
						 "AND NOT b.is_key))", &args, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/* SQL that has nobody look the mapping's rows up. */
static char *
hint_none(const MappingRow *row)
{
	Deployment *deployment = deployment_load(row->deployment);

	return psprintf("-- if its rows merge by themselves, or nothing of them goes back:\n"
					"SELECT bluegreen.alter_mapping(%s, %s, %s, conflict => 'none'%s);",
					quote_literal_cstr(deployment->name),
					quote_literal_cstr(mapping_source_name(row)),
					quote_literal_cstr(mapping_target_name(row)),
					row->direction == 'b' ? ", direction => 'backward'" : "");
}

static WindowProblem
problem(const char *why, char *hint)
{
	WindowProblem result = {why, hint};

	return result;
}

/*
 * Why conflicts of a mapping's rows cannot be decided; why is NULL if they can.
 */
WindowProblem
window_problem(const Transform *transform)
{
	const MappingRow *row = transform->row;
	bool		by_column = strchr(row->conflict, ':') != NULL;
	bool		by_rank = by_column ||
		strcmp(row->conflict, "last_write") == 0;

	if (strcmp(row->conflict, NONE) == 0)
		return problem(NULL, NULL);
	if (row->lookup != NULL)
		return problem("it has a lookup", NULL);
	if (transform->nkeys == 0)
		return problem("its target has no key", NULL);
	if (row->on_write != ON_WRITE_MIRROR || row->on_delete != ON_DELETE_DELETE)
		return problem("it does not mirror rows and their deletes",
					   hint_none(row));
	if (shares_rows(row))
		return problem("another mapping writes its rows, too", NULL);
	if (bms_is_empty(transform->chunk_key))
		return problem("its source has no primary key", NULL);
	if (unhashed_column(transform) != NULL)
		return problem(psprintf("column \"%s\" of its key has a type without an extended hash function",
								unhashed_column(transform)), NULL);
	if (by_column && window_find_decider(transform) == 0)
		return problem("the column that decides is not one of its source as it is, a whole number, date or timestamp",
					   NULL);
	if (!transform->identity_full && (by_column || may_lack_values(transform)))
		return problem("its changes do not carry whole rows",
					   psprintf("ALTER TABLE %s REPLICA IDENTITY FULL;",
								mapping_source_name(transform->row)));
	if (transform->filter != NULL && !transform->identity_full &&
		!bms_is_subset(transform->filter_reads, transform->identity))
		return problem("its filter reads columns that a delete does not carry",
					   psprintf("ALTER TABLE %s REPLICA IDENTITY FULL;",
								mapping_source_name(transform->row)));
	if (by_rank && row->has_other_columns)
		return problem("its target has columns that it does not write", NULL);
	return problem(NULL, NULL);
}

/* ---- as both sides have it ---- */

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

static char *
join_sorted(List *names)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	list_sort(names, compare_names);
	foreach(lc, names)
	{
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
						 (char *) lfirst(lc));
	}
	return buf.data;
}

static char *
pair(const char *source, const char *target, bool back)
{
	return psprintf("%s = %s", quote_identifier(back ? target : source),
					quote_identifier(back ? source : target));
}

static const char *
source_column(const Transform *transform, int attnum)
{
	return NameStr(TupleDescAttr(transform->source_desc, attnum - 1)->attname);
}

/* The policy, with both names of the column that decides. */
static char *
describe_policy(const Transform *transform, bool back)
{
	const char *policy = transform->row->conflict;
	const char *column = strchr(policy, ':');
	int			decider = window_find_decider(transform);

	if (column == NULL || decider == 0)
		return pstrdup(policy);
	return psprintf("%.*s (%s)", (int) (column - policy), policy,
					pair(source_column(transform, decider), column + 1, back));
}

/*
 * Which column becomes which; NULL if any is computed, or rows are left out.
 */
static char *
describe_columns(const Transform *transform, bool back)
{
	List	   *names = NIL;

	if (transform->filter != NULL)
		return NULL;
	for (int i = 0; i < transform->ncolumns; i++)
	{
		const TransformColumn *column = &transform->columns[i];

		if (column->source_attno <= 0)
			return NULL;
		names = lappend(names, pair(source_column(transform,
												  column->source_attno),
									column->def->name, back));
	}
	return join_sorted(names);
}

static char *
describe_source_key(const Transform *transform)
{
	List	   *names = NIL;
	int			attnum = -1;

	while ((attnum = bms_next_member(transform->chunk_key, attnum)) >= 0)
		names = lappend(names, pstrdup(source_column(transform, attnum)));
	return join_sorted(names);
}

static char *
describe_target_key(const Transform *transform)
{
	List	   *names = NIL;

	for (int i = 0; i < transform->nkeys; i++)
		names = lappend(names,
						transform->columns[transform->keys[i]].def->name);
	return join_sorted(names);
}

/*
 * Describe the mappings of a deployment's stream; a list of WindowMapping.
 * back: source and target have each other's place, as the mapping the other
 * way would have them.
 */
List *
window_describe(const Deployment *deployment, bool back)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, mappings_load(deployment->id, deployment->direction))
	{
		Transform  *transform = transform_compile(lfirst(lc));
		WindowMapping *m = palloc0_object(WindowMapping);
		char	   *source_key = describe_source_key(transform);
		char	   *target_key = describe_target_key(transform);

		m->source = mapping_source_name(transform->row);
		m->target = mapping_target_name(transform->row);
		m->source_key = back ? target_key : source_key;
		m->target_key = back ? source_key : target_key;
		m->policy = describe_policy(transform, back);
		m->columns = describe_columns(transform, back);
		m->problem = window_problem(transform);
		result = lappend(result, m);
	}
	return result;
}

static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/*
 * bluegreen.window_mappings(deployment name, OUT source text, OUT target text,
 * OUT policy text, OUT columns text, OUT source_key text, OUT target_key text,
 * OUT problem text, OUT hint text) returns setof record: the mappings of the
 * stream from here, for who opens a window on the other side; all but source and
 * target as the mapping the other way would have them.  Errors: no such
 * deployment; not its owner.
 */
Datum
bluegreen_window_mappings(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Deployment *deployment =
		deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	ListCell   *lc;

	deployment_check_owner(deployment);
	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, window_describe(deployment, true))
	{
		const WindowMapping *m = lfirst(lc);
		const char *words[] = {m->source, m->target, m->policy, m->columns,
		m->source_key, m->target_key, m->problem.why, m->problem.hint};
		Datum		values[lengthof(words)];
		bool		nulls[lengthof(words)];

		for (int i = 0; i < lengthof(words); i++)
			values[i] = text_or_null(words[i], &nulls[i]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}
