/*-------------------------------------------------------------------------
 *
 * version.c
 *		The schema of views of a version.
 *
 * For each table that the version has, a view under its name there, which is
 * simple enough to be written to.  Its columns are in the table's order, which
 * is that of their numbers; a column that has a second one keeps its place.
 * Who may do something with the table may do it with the view, the table's
 * owner as well, who need not be the view's; nobody else, whatever the default
 * privileges are.  All that is looked up when the views are made, not hours
 * before, when that is planned.
 *
 * The schema is the extension's: its views are dropped without a question.  It
 * is known by its OID, which is stored when it is made, so nothing happens to
 * one that only has the name of a version.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/*
 * Run a query over the catalogs that gives one text each, as a list in the
 * current memory context.
 */
List *
query_texts(const char *sql, const CatalogArgs *args)
{
	CatalogAccess access;
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	n = catalog_run(sql, args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *text = catalog_text(&access, i, 1);
		MemoryContext oldcontext = MemoryContextSwitchTo(context);

		result = lappend(result, text);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return result;
}

/*
 * Schemas of earlier versions of the same schema that still exist, as names.
 */
List *
version_previous(const Change *change)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, change->id);
	catalog_arg_name(&args, change->schema);
	return query_texts("SELECT n.nspname::text FROM bluegreen.schema_change c "
					   "JOIN pg_namespace n ON n.oid = c.version_oid "
					   "WHERE c.id <> $1 AND c.schema = $2 ORDER BY c.id",
					   &args);
}

/*
 * Views of a table in this change's schema, or with previous in those of
 * earlier versions; qualified, as SQL.
 */
List *
version_views_of(const Change *change, Oid relid, bool previous)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, change->id);
	catalog_arg_name(&args, change->schema);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	catalog_arg(&args, BOOLOID, BoolGetDatum(previous));
	return query_texts("SELECT DISTINCT format('%I.%I', n.nspname, v.relname) "
					   "FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid "
					   "JOIN pg_class v ON v.oid = r.ev_class "
					   "JOIN pg_namespace n ON n.oid = v.relnamespace "
					   "JOIN bluegreen.schema_change c "
					   "ON c.version_oid = n.oid "
					   "WHERE d.classid = 'pg_rewrite'::regclass "
					   "AND d.refclassid = 'pg_class'::regclass "
					   "AND d.refobjid = $3 AND v.relkind = 'v' "
					   "AND c.schema = $2 AND (c.id <> $1) = $4 ORDER BY 1",
					   &args);
}

/*
 * Error unless the change's owner may drop the schemas of earlier versions,
 * which the contract does.
 */
void
version_require_owned(const Change *change)
{
	CatalogArgs args = {0};
	List	   *foreign;

	catalog_arg_int4(&args, change->id);
	catalog_arg_name(&args, change->schema);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(change->owner));
	foreign = query_texts("SELECT n.nspname::text "
						  "FROM bluegreen.schema_change c "
						  "JOIN pg_namespace n ON n.oid = c.version_oid "
						  "WHERE c.id <> $1 AND c.schema = $2 "
						  "AND (NOT pg_has_role($3, n.nspowner, 'USAGE') "
						  "OR EXISTS (SELECT FROM pg_class v "
						  "WHERE v.relnamespace = n.oid AND v.relkind = 'v' "
						  "AND NOT pg_has_role($3, v.relowner, 'USAGE')))",
						  &args);
	if (foreign != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" must be owner of schema \"%s\" and its views",
						GetUserNameFromId(change->owner, false),
						(char *) linitial(foreign)),
				 errdetail("It is the version of an earlier change, and dropped when this one is contracted."),
				 errhint("Give the schema and its views, or the change, another owner.")));
}

/* Views of a schema as SQL; one that reads another one before that. */
static List *
schema_views(Oid schema)
{
	CatalogArgs args = {0};

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(schema));
	return query_texts("SELECT format('%I.%I', n.nspname, c.relname) "
					   "FROM pg_class c JOIN pg_namespace n "
					   "ON n.oid = c.relnamespace WHERE n.oid = $1 "
					   "AND c.relkind = 'v' ORDER BY c.oid DESC", &args);
}

/*
 * Set locks and statements of a step of kind STEP_DROP_VERSION to what there is
 * to drop now; nothing, if the schema is gone.
 */
void
version_prepare_drop(Step *step)
{
	Oid			schema = atooid(step->object);
	char	   *name = get_namespace_name(schema);
	ListCell   *lc;

	step->locks = NIL;
	step->statements = NIL;
	if (name == NULL)
		return;
	foreach(lc, schema_views(schema))
	{
		char	   *view = lfirst(lc);

		step->locks = lappend(step->locks, psprintf(LOCK_VIEW "%s", view));
		step->statements = lappend(step->statements,
								   psprintf("DROP VIEW IF EXISTS %s", view));
	}
	step->statements = lappend(step->statements,
							   psprintf("DROP SCHEMA %s",
										quote_identifier(name)));
}

/*
 * The step that drops the schema and the views of this version, or of an earlier
 * one that version_previous() has named; NIL if there is none.
 */
List *
version_drop_steps(const Change *change, const char *schema)
{
	Step	   *step = step_make(STEP_DROP_VERSION,
								 psprintf("drop schema %s", schema), NULL);
	CatalogArgs args = {0};
	List	   *found;

	catalog_arg_int4(&args, change->id);
	catalog_arg_name(&args, change->schema);
	catalog_arg_name(&args, schema);
	found = query_texts("SELECT n.oid::text FROM bluegreen.schema_change c "
						"JOIN pg_namespace n ON n.oid = c.version_oid "
						"WHERE (c.id = $1 AND c.version_schema = $3) "
						"OR (c.id <> $1 AND c.schema = $2 AND n.nspname = $3)",
						&args);
	if (found == NIL)
		return NIL;
	step->object = linitial(found);
	version_prepare_drop(step);
	return list_make1(step);
}

/*
 * Remember which schema the version's is, just after it was created: its OID.
 */
Oid
version_store(const Change *change)
{
	Oid			schema = get_namespace_oid(change->version_schema, false);
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(schema));
	(void) catalog_run("UPDATE bluegreen.schema_change SET version_oid = $2 "
					   "WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	return schema;
}

/*
 * The version's schema, whatever its name is now; InvalidOid if it is not there
 * yet or was dropped.
 */
Oid
version_schema(int32 id)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Oid			result = InvalidOid;

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	if (catalog_run("SELECT n.oid::text FROM bluegreen.schema_change c "
					"JOIN pg_namespace n ON n.oid = c.version_oid "
					"WHERE c.id = $1", &args, SPI_OK_SELECT) > 0)
		result = atooid(catalog_text(&access, 0, 1));
	catalog_end(&access);
	return result;
}

/* ---- create ---- */

static bool
has_column_grants(const ShapeTable *table)
{
	CatalogArgs args = {0};

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	return query_texts("SELECT ''::text FROM pg_attribute WHERE attrelid = $1 "
					   "AND attacl IS NOT NULL AND NOT attisdropped LIMIT 1",
					   &args) != NIL;
}

/*
 * With whose rights is the table read?  With those of who asks, so that
 * row-level security holds; but such a view wants all of its columns readable.
 */
static bool
is_security_invoker(const Shape *shape, const ShapeTable *table)
{
	Relation	relation = relation_open(table->relid, AccessShareLock);
	bool		secured = relation->rd_rel->relrowsecurity;

	relation_close(relation, NoLock);
	return secured || table->owner != shape->change->owner ||
		!has_column_grants(table);
}

static char *
view_name(const Shape *shape, const ShapeTable *table)
{
	return quote_qualified_identifier(shape->change->version_schema,
									  table->name);
}

static char *
create_view(const Shape *shape, const ShapeTable *table)
{
	StringInfoData sql;
	ListCell   *lc;
	const char *separator = "";

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE VIEW %s WITH (security_invoker = %s) "
					 "AS SELECT ", view_name(shape, table),
					 is_security_invoker(shape, table) ? "true" : "false");
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->name == NULL)
			continue;
		appendStringInfo(&sql, "%s%s AS %s", separator,
						 quote_identifier(column->column),
						 quote_identifier(column->name));
		separator = ", ";
	}
	appendStringInfo(&sql, " FROM %s", table->qualified);
	return sql.data;
}

/* A default of the view where that of the column shown is another one. */
static List *
view_defaults(const Shape *shape, const ShapeTable *table)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);
		char	   *value = column->default_sql;

		if (column->name == NULL || !column->default_differs)
			continue;
		/* SET DEFAULT NULL would mean the column's default */
		if (value == NULL)
			value = psprintf("CASE WHEN true THEN NULL::%s END",
							 type_sql(column->type, column->typmod));
		result = lappend(result,
						 psprintf("ALTER VIEW %s ALTER COLUMN %s SET DEFAULT %s",
								  view_name(shape, table),
								  quote_identifier(column->name), value));
	}
	return result;
}

static List *
view_comments(const Shape *shape, const ShapeTable *table)
{
	char	   *comment = GetComment(table->relid, RelationRelationId, 0);
	List	   *result = NIL;
	ListCell   *lc;

	if (comment != NULL)
		result = lappend(result,
						 psprintf("COMMENT ON VIEW %s IS %s",
								  view_name(shape, table),
								  quote_literal_cstr(comment)));
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->name == NULL)
			continue;
		comment = GetComment(table->relid, RelationRelationId,
							 get_attnum(table->relid, column->column));
		if (comment != NULL)
			result = lappend(result,
							 psprintf("COMMENT ON COLUMN %s.%s IS %s",
									  view_name(shape, table),
									  quote_identifier(column->name),
									  quote_literal_cstr(comment)));
	}
	return result;
}

/* $1 table, $2 view, as SQL, $3 the view's owner */
static const char *const table_grants_sql =
	"SELECT format('GRANT %s ON %s TO %s%s', x.privilege_type, $2, "
	"CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END, "
	"CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) "
	"FROM pg_class c CROSS JOIN aclexplode(coalesce(c.relacl, "
	"acldefault('r', c.relowner))) x WHERE c.oid = $1 "
	"AND x.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE') "
	"AND x.grantee <> $3";

/* $1 table, $2 view, $3 the table's column, $4 the view's */
static const char *const column_grants_sql =
	"SELECT format('GRANT %s (%I) ON %s TO %s%s', x.privilege_type, $4, $2, "
	"CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END, "
	"CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) "
	"FROM pg_attribute a CROSS JOIN aclexplode(a.attacl) x "
	"WHERE a.attrelid = $1 AND a.attname = $3::name "
	"AND x.privilege_type IN ('SELECT', 'INSERT', 'UPDATE')";

static List *
view_grants(const Shape *shape, const ShapeTable *table)
{
	CatalogArgs args = {0};
	CatalogArgs table_args;
	List	   *result;
	ListCell   *lc;

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg_text(&args, view_name(shape, table));
	table_args = args;
	catalog_arg(&table_args, OIDOID, ObjectIdGetDatum(shape->change->owner));
	result = query_texts(table_grants_sql, &table_args);
	if (!has_column_grants(table))
		return result;
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);
		CatalogArgs column_args = args;

		if (column->name == NULL)
			continue;
		catalog_arg_text(&column_args, column->column);
		catalog_arg_text(&column_args, column->name);
		result = list_concat(result, query_texts(column_grants_sql,
												 &column_args));
	}
	return result;
}

static List *
schema_grants(const Change *change)
{
	CatalogArgs args = {0};

	catalog_arg_name(&args, change->schema);
	catalog_arg_text(&args, change->version_schema);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(change->owner));
	return query_texts("SELECT format('GRANT USAGE ON SCHEMA %I TO %s', $2, "
					   "CASE x.grantee WHEN 0 THEN 'PUBLIC' "
					   "ELSE x.grantee::regrole::text END) "
					   "FROM pg_namespace n CROSS JOIN "
					   "aclexplode(coalesce(n.nspacl, "
					   "acldefault('n', n.nspowner))) x "
					   "WHERE n.nspname = $1 AND x.privilege_type = 'USAGE' "
					   "AND x.grantee <> $3", &args);
}

/*
 * What default privileges gave: $1 owner, $2 kind of object, $3 "TABLE" or
 * "SCHEMA" with its name, as SQL.
 */
static const char *const default_grants_sql =
	"SELECT DISTINCT format('REVOKE ALL ON %s FROM %s', $3, "
	"CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END) "
	"FROM pg_default_acl d CROSS JOIN aclexplode(d.defaclacl) x "
	"WHERE d.defaclrole = $1 AND d.defaclnamespace = 0 "
	"AND d.defaclobjtype::text = $2 AND x.grantee <> $1";

static List *
revoke_defaults(Oid owner, const char *kind, const char *object)
{
	CatalogArgs args = {0};

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(owner));
	catalog_arg_text(&args, kind);
	catalog_arg_text(&args, object);
	return query_texts(default_grants_sql, &args);
}

/* All about one view. */
static List *
view_statements(const Shape *shape, const ShapeTable *table)
{
	List	   *result = list_make1(create_view(shape, table));

	result = list_concat(result, view_defaults(shape, table));
	result = list_concat(result, view_comments(shape, table));
	result = list_concat(result,
						 revoke_defaults(shape->change->owner, "r",
										 psprintf("TABLE %s",
												  view_name(shape, table))));
	return list_concat(result, view_grants(shape, table));
}

static List *
schema_statements(const Change *change)
{
	const char *name = quote_identifier(change->version_schema);
	char	   *comment = psprintf("schema %s as change %s leaves it",
								   change->schema, change->name);
	List	   *result = NIL;

	result = lappend(result, psprintf("CREATE SCHEMA %s", name));
	result = lappend(result, psprintf("COMMENT ON SCHEMA %s IS %s", name,
									  quote_literal_cstr(comment)));
	result = list_concat(result,
						 revoke_defaults(change->owner, "n",
										 psprintf("SCHEMA %s", name)));
	return list_concat(result, schema_grants(change));
}

/*
 * The step that makes the version's schema with all of its views, without
 * statements yet.
 */
Step *
version_create_step(const Change *change)
{
	return step_make(STEP_VERSION, psprintf("create schema %s",
											change->version_schema), NULL);
}

/*
 * Set the statements of a step of kind STEP_VERSION to what makes views of the
 * tables that there are now, and store them for people to see.  The tables stay
 * locked, in ACCESS SHARE mode.  Errors: the document names what is gone.
 */
void
version_prepare_create(const Change *change, Step *step)
{
	Shape	   *shape = shape_build(change, step->phase);
	ListCell   *lc;

	shape_load_all(shape);
	step->statements = schema_statements(change);
	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (table->name != NULL)
			step->statements = list_concat(step->statements,
										   view_statements(shape, table));
	}
	step_store_statements(change->id, step);
}
