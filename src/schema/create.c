/*-------------------------------------------------------------------------
 *
 * create.c
 *		CREATE TABLE out of the operation create_table.
 *
 * The table is new, so nothing needs to be split: it is made at once with all
 * of its constraints.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "schema/shape.h"
#include "utils/builtins.h"

static const char *
quoted(const char *name)
{
	return quote_identifier(name);
}

/* a, b, c */
static char *
name_list(List *names)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, names)
	{
		appendStringInfo(&sql, "%s%s", sql.len > 0 ? ", " : "",
						 quoted(lfirst(lc)));
	}
	return sql.data;
}

/*
 * " MATCH ... ON DELETE ... ON UPDATE ..." of a reference.
 */
char *
reference_actions(JsonbContainer *reference)
{
	StringInfoData sql;
	char	   *match = field_text(reference, "match_type");
	char	   *on_delete = field_text(reference, "on_delete");
	char	   *on_update = field_text(reference, "on_update");
	List	   *set = field_texts(reference, "on_delete_set_columns");

	initStringInfo(&sql);
	if (match != NULL && *match)
		appendStringInfo(&sql, " MATCH %s", match);
	if (on_delete != NULL && *on_delete)
		appendStringInfo(&sql, " ON DELETE %s", on_delete);
	if (set != NIL)
		appendStringInfo(&sql, " (%s)", name_list(set));
	if (on_update != NULL && *on_update)
		appendStringInfo(&sql, " ON UPDATE %s", on_update);
	return sql.data;
}

/*
 * " DEFERRABLE ..." of a constraint or reference.
 */
const char *
constraint_deferrable(JsonbContainer *object)
{
	if (field_bool(object, "initially_deferred", false))
		return " DEFERRABLE INITIALLY DEFERRED";
	return field_bool(object, "deferrable", false) ? " DEFERRABLE" : "";
}

/*
 * " INCLUDE ... WITH ... USING INDEX TABLESPACE ..." of index_parameters,
 * which may be NULL.
 */
char *
index_parameters(JsonbContainer *parameters, bool of_constraint)
{
	StringInfoData sql;
	List	   *include;
	char	   *storage;
	char	   *tablespace;

	initStringInfo(&sql);
	if (parameters == NULL)
		return sql.data;
	include = field_texts(parameters, "include_columns");
	storage = field_text(parameters, "storage_parameters");
	tablespace = field_text(parameters, "tablespace");
	if (include != NIL)
		appendStringInfo(&sql, " INCLUDE (%s)", name_list(include));
	if (storage != NULL && *storage)
		appendStringInfo(&sql, " WITH (%s)", storage);
	if (tablespace != NULL && *tablespace)
		appendStringInfo(&sql, " %s%s",
						 of_constraint ? "USING INDEX TABLESPACE " :
						 "TABLESPACE ", quoted(tablespace));
	return sql.data;
}

static char *
referenced(Shape *shape, const Operation *operation, const char *name)
{
	ListCell   *lc;

	/* itself, which does not exist yet */
	if (operation->kind == OP_CREATE_TABLE &&
		strcmp(field_text(operation->fields, "name"), name) == 0)
		return shape_qualified(shape, name);
	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (table->name != NULL && strcmp(table->name, name) == 0)
			return table->qualified;
	}
	return shape_table(shape, operation, name)->qualified;
}

static void
append_generated(StringInfo sql, JsonbContainer *generated)
{
	JsonbContainer *identity = field_object(generated, "identity");
	char	   *expression = field_text(generated, "expression");
	char	   *text;

	if (identity == NULL)
	{
		if (expression != NULL && *expression)
			appendStringInfo(sql, " GENERATED ALWAYS AS (%s) STORED",
							 expression);
		return;
	}
	text = field_text(identity, "user_specified_values");
	appendStringInfo(sql, " GENERATED %s AS IDENTITY", text ? text : "ALWAYS");
	text = field_text(identity, "sequence_options");
	if (text != NULL && *text)
		appendStringInfo(sql, " (%s)", text);
}

static void
append_column(Shape *shape, const Operation *operation, JsonbContainer *column,
			  StringInfo sql)
{
	char	   *text;
	JsonbContainer *object;

	appendStringInfo(sql, "%s %s", quoted(field_text(column, "name")),
					 field_text(column, "type"));
	if ((text = field_text(column, "default")) != NULL)
		appendStringInfo(sql, " DEFAULT %s", text);
	if (!field_bool(column, "nullable", false))
		appendStringInfoString(sql, " NOT NULL");
	if (field_bool(column, "unique", false))
		appendStringInfoString(sql, " UNIQUE");
	if ((object = field_object(column, "generated")) != NULL)
		append_generated(sql, object);
	if ((object = field_object(column, "check")) != NULL)
		appendStringInfo(sql, " CONSTRAINT %s CHECK (%s)%s",
						 quoted(field_text(object, "name")),
						 field_text(object, "constraint"),
						 field_bool(object, "no_inherit", false) ?
						 " NO INHERIT" : "");
	if ((object = field_object(column, "references")) != NULL)
		appendStringInfo(sql, " CONSTRAINT %s REFERENCES %s (%s)%s%s",
						 quoted(field_text(object, "name")),
						 referenced(shape, operation,
									field_text(object, "table")),
						 quoted(field_text(object, "column")),
						 reference_actions(object),
						 constraint_deferrable(object));
}

static void
append_exclude(StringInfo sql, JsonbContainer *exclude)
{
	char	   *method = field_text(exclude, "index_method");
	char	   *predicate = field_text(exclude, "predicate");

	appendStringInfoString(sql, "EXCLUDE");
	if (method != NULL && *method)
		appendStringInfo(sql, " USING %s", quoted(method));
	appendStringInfo(sql, " (%s)", field_text(exclude, "elements"));
	if (predicate != NULL && *predicate)
		appendStringInfo(sql, " WHERE (%s)", predicate);
}

static void
append_constraint(Shape *shape, const Operation *operation,
				  JsonbContainer *constraint, StringInfo sql)
{
	char	   *type = field_text(constraint, "type");
	char	   *columns = name_list(field_texts(constraint, "columns"));
	JsonbContainer *object;

	appendStringInfo(sql, "CONSTRAINT %s ",
					 quoted(field_text(constraint, "name")));
	if (strcmp(type, "unique") == 0)
		appendStringInfo(sql, "UNIQUE%s (%s)",
						 field_bool(constraint, "nulls_not_distinct", false) ?
						 " NULLS NOT DISTINCT" : "", columns);
	else if (strcmp(type, "primary_key") == 0)
		appendStringInfo(sql, "PRIMARY KEY (%s)", columns);
	else if (strcmp(type, "check") == 0)
		appendStringInfo(sql, "CHECK (%s)%s", field_text(constraint, "check"),
						 field_bool(constraint, "no_inherit", false) ?
						 " NO INHERIT" : "");
	else if (strcmp(type, "exclude") == 0)
		append_exclude(sql, field_object(constraint, "exclude"));
	else
	{
		object = field_object(constraint, "references");
		appendStringInfo(sql, "FOREIGN KEY (%s) REFERENCES %s (%s)%s",
						 columns,
						 referenced(shape, operation,
									field_text(object, "table")),
						 name_list(field_texts(object, "columns")),
						 reference_actions(object));
	}
	appendStringInfoString(sql,
						   index_parameters(field_object(constraint,
														"index_parameters"),
											true));
	appendStringInfoString(sql, constraint_deferrable(constraint));
}

/*
 * The statements that make the table: one or more, with semicolons between.
 */
char *
create_table_sql(Shape *shape, const Operation *operation)
{
	char	   *name = shape_qualified(shape,
									   field_text(operation->fields, "name"));
	char	   *comment = field_text(operation->fields, "comment");
	StringInfoData sql;
	List	   *key = NIL;
	ListCell   *lc;
	const char *separator = "";

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE TABLE %s (", name);
	foreach(lc, field_objects(operation->fields, "columns"))
	{
		JsonbContainer *column = lfirst(lc);

		appendStringInfoString(&sql, separator);
		append_column(shape, operation, column, &sql);
		if (field_bool(column, "pk", false))
			key = lappend(key, field_text(column, "name"));
		separator = ", ";
	}
	if (key != NIL)
	{
		appendStringInfo(&sql, "%sPRIMARY KEY (%s)", separator,
						 name_list(key));
		separator = ", ";
	}
	foreach(lc, field_objects(operation->fields, "constraints"))
	{
		appendStringInfoString(&sql, separator);
		append_constraint(shape, operation, lfirst(lc), &sql);
		separator = ", ";
	}
	appendStringInfoChar(&sql, ')');
	if (comment != NULL)
		appendStringInfo(&sql, "; COMMENT ON TABLE %s IS %s", name,
						 quote_literal_cstr(comment));
	foreach(lc, field_objects(operation->fields, "columns"))
	{
		comment = field_text(lfirst(lc), "comment");
		if (comment != NULL)
			appendStringInfo(&sql, "; COMMENT ON COLUMN %s.%s IS %s", name,
							 quoted(field_text(lfirst(lc), "name")),
							 quote_literal_cstr(comment));
	}
	return sql.data;
}
