/*-------------------------------------------------------------------------
 *
 * operation_constraint.c
 *		What operations on constraints and indexes do to the shape.
 *
 * New constraints stand on the columns that the new version shows.  They are
 * added when all rows are filled, so what they are in SQL is asked for only
 * then, by when the columns exist; before, it is only checked that they make
 * sense.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "schema/guard.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* ---- what alter_column and add_column need as well ---- */

/*
 * Error if the table has a constraint of this name; only when planned first.
 */
void
require_new_constraint(const ShapeTable *table, const Operation *operation,
					   const char *name)
{
	if (!table->planned &&
		OidIsValid(get_relation_constraint_oid(table->relid, name, true)))
		operation_refuse(operation,
						 psprintf("constraint \"%%s\" of table \"%s\" already exists",
								  table->old_name), name);
}

static NewConstraint *
new_constraint(ShapeTable *table, const char *name)
{
	NewConstraint *constraint = palloc0_object(NewConstraint);

	constraint->name = pstrdup(name);
	constraint->final_name = constraint->name;
	table->constraints = lappend(table->constraints, constraint);
	return constraint;
}

/*
 * Columns that an expression of a constraint or index reads cannot be replaced
 * by later operations.
 */
void
mark_used(List *reads)
{
	ListCell   *lc;

	foreach(lc, reads)
	{
		((ColumnRead *) lfirst(lc))->source->is_used = true;
	}
}

/*
 * A check over columns of the new version.
 */
void
add_check(Shape *shape, ShapeTable *table, const char *name,
		  const char *expression, bool no_inherit)
{
	NewConstraint *constraint = new_constraint(table, name);

	mark_used(expression_reads(table, true, expression));
	if (shape->phase == CHANGE_VALIDATING)
		expression = expression_translate(table, expression);
	constraint->definition = psprintf("CHECK (%s)%s", expression,
									  no_inherit ? " NO INHERIT" : "");
}

/*
 * The column is NOT NULL in the new version: a check until the contract, which
 * saves that the scan.
 */
void
add_not_null(Shape *shape, ShapeTable *table, ShapeColumn *column)
{
	NewConstraint *constraint =
		new_constraint(table,
					   shape_hidden_name(shape,
										 list_length(table->constraints) + 1,
										 "not_null"));

	constraint->definition = psprintf("CHECK (%s IS NOT NULL)",
									  quote_identifier(column->column));
	constraint->final_name = NULL;
	column->set_not_null = true;
}

/* Columns as SQL: a, b */
static char *
column_list(List *columns)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, columns)
	{
		ShapeColumn *column = lfirst(lc);

		column->is_used = true;
		appendStringInfo(&sql, "%s%s", sql.len > 0 ? ", " : "",
						 quote_identifier(column->column));
	}
	return sql.data;
}

/* The table that a reference means, and its columns, as SQL. */
static char *
reference_target(Shape *shape, const Operation *operation,
				 JsonbContainer *reference, char **qualified)
{
	char	   *name = field_text(reference, "table");
	char	   *one = field_text(reference, "column");
	List	   *names = one ? list_make1(one) :
		field_texts(reference, "columns");
	ShapeTable *table = NULL;
	StringInfoData sql;
	ListCell   *lc;

	foreach(lc, shape->tables)
	{
		ShapeTable *candidate = lfirst(lc);

		if (candidate->name != NULL && strcmp(candidate->name, name) == 0)
			table = candidate;
	}
	if (table == NULL && !OidIsValid(get_relname_relid(name, shape->schema)))
		operation_refuse(operation,
						 psprintf("table \"%%s\" does not exist in schema \"%s\"",
								  shape->change->schema), name);
	*qualified = table ? table->qualified : shape_qualified(shape, name);
	initStringInfo(&sql);
	foreach(lc, names)
	{
		const char *column = lfirst(lc);

		if (table != NULL)
			column = shape_require_column(table, operation, column)->column;
		appendStringInfo(&sql, "%s%s", sql.len > 0 ? ", " : "",
						 quote_identifier(column));
	}
	return sql.data;
}

/*
 * A foreign key from columns of the new version.
 */
void
add_reference(Shape *shape, ShapeTable *table, const Operation *operation,
			  JsonbContainer *reference, List *columns)
{
	char	   *name = operation->kind == OP_CREATE_CONSTRAINT ?
		field_text(operation->fields, "name") : field_text(reference, "name");
	NewConstraint *constraint;
	char	   *target;
	char	   *target_columns = reference_target(shape, operation, reference,
												  &target);

	require_new_constraint(table, operation, name);
	if (table->partitioned && !HAVE_PARTITIONED_NOT_VALID)
		operation_refuse(operation, "foreign key \"%s\" cannot be added to a partitioned table without a scan under a lock before PostgreSQL 18",
						 name);
	constraint = new_constraint(table, name);
	constraint->definition =
		psprintf("FOREIGN KEY (%s) REFERENCES %s (%s)%s%s",
				 column_list(columns), target, target_columns,
				 reference_actions(reference),
				 constraint_deferrable(reference));
	constraint->locks = target;
}

/*
 * Name of an index while it is built, which takes several transactions: what has
 * this name is ours.  It gets its own in the one that says that it is done.
 */
static char *
building_name(const Shape *shape, const ShapeTable *table, const char *name)
{
	return shape_hidden_name(shape, table->relid,
							 psprintf("%d_%s", list_length(table->indexes),
									  name));
}

/*
 * A unique constraint over columns of the new version; parameters may be NULL.
 */
void
add_unique(Shape *shape, ShapeTable *table, const char *name, List *columns,
		   JsonbContainer *parameters)
{
	NewIndex   *index = palloc0_object(NewIndex);

	if (table->partitioned)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("unique constraint \"%s\" cannot be added to a partitioned table that is in use",
						name)));
	index->name = pstrdup(name);
	index->hidden = building_name(shape, table, name);
	index->final_name = index->name;
	index->unique = true;
	index->constraint = "UNIQUE";
	index->definition = psprintf("USING btree (%s)%s", column_list(columns),
								 index_parameters(parameters, false));
	table->indexes = lappend(table->indexes, index);
}

/* ---- indexes ---- */

static char *
index_column(const ShapeTable *table, const Operation *operation,
			 JsonbContainer *json)
{
	ShapeColumn *column = shape_require_column(table, operation,
											   field_text(json, "column"));
	JsonbContainer *opclass = field_object(json, "opclass");
	char	   *text;
	StringInfoData sql;

	column->is_used = true;
	initStringInfo(&sql);
	appendStringInfoString(&sql, quote_identifier(column->column));
	if ((text = field_text(json, "collate")) != NULL && *text)
		appendStringInfo(&sql, " COLLATE %s", text);
	if (opclass != NULL && (text = field_text(opclass, "name")) != NULL &&
		*text)
	{
		List	   *parameters = field_texts(opclass, "params");
		ListCell   *lc;

		appendStringInfo(&sql, " %s", text);
		foreach(lc, parameters)
		{
			appendStringInfo(&sql, "%s%s",
							 foreach_current_index(lc) == 0 ? " (" : ", ",
							 (char *) lfirst(lc));
		}
		appendStringInfoString(&sql, parameters != NIL ? ")" : "");
	}
	if ((text = field_text(json, "sort")) != NULL && *text)
		appendStringInfo(&sql, " %s", text);
	if ((text = field_text(json, "nulls")) != NULL && *text)
		appendStringInfo(&sql, " NULLS %s", text);
	return sql.data;
}

void
op_create_index(Shape *shape, const Operation *operation)
{
	JsonbContainer *fields = operation->fields;
	ShapeTable *table = shape_table(shape, operation,
									field_text(fields, "table"));
	char	   *method = field_text(fields, "method");
	char	   *predicate = field_text(fields, "predicate");
	char	   *storage = field_text(fields, "storage_parameters");
	NewIndex   *index = palloc0_object(NewIndex);
	StringInfoData sql;
	ListCell   *lc;

	index->name = field_text(fields, "name");
	require_free_name(shape, operation, index->name);
	index->hidden = building_name(shape, table, index->name);
	index->unique = field_bool(fields, "unique", false);
	initStringInfo(&sql);
	appendStringInfo(&sql, "USING %s (", method ? method : "btree");
	foreach(lc, field_objects(fields, "columns"))
	{
		appendStringInfo(&sql, "%s%s",
						 foreach_current_index(lc) > 0 ? ", " : "",
						 index_column(table, operation, lfirst(lc)));
	}
	appendStringInfoChar(&sql, ')');
	if (storage != NULL && *storage)
		appendStringInfo(&sql, " WITH (%s)", storage);
	if (predicate != NULL && *predicate)
	{
		mark_used(expression_reads(table, true, predicate));
		if (shape->phase == CHANGE_VALIDATING)
			predicate = expression_translate(table, predicate);
		appendStringInfo(&sql, " WHERE (%s)", predicate);
	}
	index->definition = sql.data;
	table->indexes = lappend(table->indexes, index);
}

void
op_drop_index(Shape *shape, const Operation *operation)
{
	char	   *name = field_text(operation->fields, "name");
	Oid			relid = get_relname_relid(name, shape->schema);
	char		relkind = OidIsValid(relid) ? get_rel_relkind(relid) : '\0';

	if (relkind != RELKIND_INDEX && relkind != RELKIND_PARTITIONED_INDEX)
		operation_refuse(operation,
						 psprintf("index \"%%s\" does not exist in schema \"%s\"",
								  shape->change->schema), name);
	if (relkind == RELKIND_PARTITIONED_INDEX)
		operation_refuse(operation, "index \"%s\" of a partitioned table cannot be dropped concurrently",
						 name);
	if (OidIsValid(get_index_constraint(relid)))
		operation_refuse(operation, "index \"%s\" belongs to a constraint; drop that",
						 name);
	meant_index(shape, name, relid);
	shape->dropped_indexes = lappend(shape->dropped_indexes,
									 shape_qualified(shape, name));
	shape->dropped_index_oids = lappend_oid(shape->dropped_index_oids, relid);
}

/* ---- constraints ---- */

/* Of a column; NULL for one that is not given. */
typedef struct GivenExpressions
{
	const char *up;
	const char *down;
} GivenExpressions;

/*
 * A pair for a column, unless its expressions are identities.
 */
static void
constraint_pair(Shape *shape, ShapeTable *table, ShapeColumn *column,
				const Operation *operation, const GivenExpressions *given)
{
	const char *name = quote_identifier(column->name);
	const char *up = given->up ? given->up : name;
	const char *down = given->down ? given->down : name;

	if (is_identity(up, column) && is_identity(down, column))
		return;
	pair_add(shape, table, column, operation);
	pair_expressions(table, column, operation, up, down);
	if (column->not_null)
		add_not_null(shape, table, column);
}

static void
require_covered(const ShapeTable *table, const Operation *operation,
				const char *field, List *columns)
{
	JsonbContainer *map = field_object(operation->fields, field);
	ListCell   *lc;

	if (map == NULL)
		return;
	foreach(lc, field_keys(map))
	{
		if (!list_member_ptr(columns, shape_require_column(table, operation,
														   lfirst(lc))))
			operation_refuse(operation,
							 psprintf("column \"%%s\" in field \"%s\" is not covered by the constraint",
									  field), lfirst(lc));
	}
}

/* Pairs for the columns of a constraint, by the objects up and down. */
static void
constraint_pairs(Shape *shape, ShapeTable *table, const Operation *operation,
				 List *columns)
{
	JsonbContainer *ups = field_object(operation->fields, "up");
	JsonbContainer *downs = field_object(operation->fields, "down");
	ListCell   *lc;

	require_covered(table, operation, "up", columns);
	require_covered(table, operation, "down", columns);
	foreach(lc, columns)
	{
		ShapeColumn *column = lfirst(lc);
		GivenExpressions given = {
			ups ? field_text(ups, column->name) : NULL,
			downs ? field_text(downs, column->name) : NULL
		};

		constraint_pair(shape, table, column, operation, &given);
	}
}

static List *
named_columns(const ShapeTable *table, const Operation *operation)
{
	List	   *names = field_texts(operation->fields, "columns");
	JsonbContainer *ups = field_object(operation->fields, "up");
	List	   *result = NIL;
	ListCell   *lc;

	/* a check may leave it to the expressions */
	if (names == NIL && ups != NULL)
		names = field_keys(ups);
	foreach(lc, names)
	{
		result = lappend(result, shape_require_column(table, operation,
													  lfirst(lc)));
	}
	return result;
}

static void
create_primary_key(Shape *shape, ShapeTable *table,
				   const Operation *operation, List *columns)
{
	NewIndex   *index;
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		if (((ShapeColumn *) lfirst(lc))->is_key)
			operation_refuse(operation, "table \"%s\" has a primary key already",
							 table->name);
	}
	foreach(lc, columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->rule != NULL && column->rule->kind == RULE_PAIR)
			operation_refuse(operation, "column \"%s\" of a primary key cannot be altered with it",
							 column->name);
		if (!column->not_null)
			add_not_null(shape, table, column);
	}
	add_unique(shape, table, field_text(operation->fields, "name"), columns,
			   field_object(operation->fields, "index_parameters"));
	index = llast(table->indexes);
	index->constraint = "PRIMARY KEY";
}

void
op_create_constraint(Shape *shape, const Operation *operation)
{
	JsonbContainer *fields = operation->fields;
	ShapeTable *table = shape_table(shape, operation,
									field_text(fields, "table"));
	char	   *name = field_text(fields, "name");
	char	   *type = field_text(fields, "type");
	List	   *columns = named_columns(table, operation);

	require_new_constraint(table, operation, name);
	constraint_pairs(shape, table, operation, columns);
	if (strcmp(type, "check") == 0)
		add_check(shape, table, name, field_text(fields, "check"),
				  field_bool(fields, "no_inherit", false));
	else if (strcmp(type, "foreign_key") == 0)
		add_reference(shape, table, operation,
					  field_object(fields, "references"), columns);
	else
	{
		require_free_name(shape, operation, name);
		if (strcmp(type, "primary_key") == 0)
			create_primary_key(shape, table, operation, columns);
		else
			add_unique(shape, table, name, columns,
					   field_object(fields, "index_parameters"));
	}
}

/* The columns of a constraint that is dropped, which is noted. */
static List *
note_dropped(const Shape *shape, ShapeTable *table, const Operation *operation,
			 const char *name)
{
	Oid			oid = get_relation_constraint_oid(table->relid, name, true);
	HeapTuple	tuple;
	Form_pg_constraint constraint;
	bool		isnull;
	Datum		keys;
	List	   *result = NIL;
	ListCell   *lc;
	int16	   *attnums;

	if (!OidIsValid(oid))
		operation_refuse(operation,
						 psprintf("constraint \"%%s\" of table \"%s\" does not exist",
								  table->name), name);
	meant_constraint(shape, table, name, oid);
	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for constraint %u", oid);
	constraint = (Form_pg_constraint) GETSTRUCT(tuple);
	if (strchr("cfu", constraint->contype) == NULL)
		operation_refuse(operation, "constraint \"%s\" is neither a check, a foreign key nor unique",
						 name);
	if (OidIsValid(constraint->confrelid))
		table->locked =
			lappend(table->locked,
					quote_qualified_identifier(get_namespace_name(get_rel_namespace(constraint->confrelid)),
											   get_rel_name(constraint->confrelid)));
	keys = SysCacheGetAttr(CONSTROID, tuple, Anum_pg_constraint_conkey,
						   &isnull);
	attnums = isnull ? NULL : (int16 *) ARR_DATA_PTR(DatumGetArrayTypeP(keys));
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);
		int			n = isnull ? 0 : ARR_DIMS(DatumGetArrayTypeP(keys))[0];

		for (int i = 0; i < n; i++)
		{
			if (attnums[i] == column->attnum && column->name != NULL)
				result = lappend(result, column);
		}
	}
	ReleaseSysCache(tuple);
	table->dropped_constraints = lappend(table->dropped_constraints,
										 pstrdup(name));
	table->dropped_oids = lappend_oid(table->dropped_oids, oid);
	return result;
}

void
op_drop_constraint(Shape *shape, const Operation *operation)
{
	JsonbContainer *fields = operation->fields;
	ShapeTable *table = shape_table(shape, operation,
									field_text(fields, "table"));
	char	   *name = field_text(fields, "name");
	List	   *columns = note_dropped(shape, table, operation, name);
	GivenExpressions given = {
		field_text(fields, "up"), field_text(fields, "down")
	};

	if (list_length(columns) != 1)
		operation_refuse(operation, "constraint \"%s\" covers several columns; use drop_multicolumn_constraint",
						 name);
	constraint_pair(shape, table, linitial(columns), operation, &given);
}

void
op_drop_multicolumn(Shape *shape, const Operation *operation)
{
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "table"));
	List	   *columns = note_dropped(shape, table, operation,
									   field_text(operation->fields, "name"));

	constraint_pairs(shape, table, operation, columns);
}

void
op_rename_constraint(Shape *shape, const Operation *operation)
{
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "table"));
	ColumnRead *rename = palloc0_object(ColumnRead);
	Oid			oid;

	rename->name = field_text(operation->fields, "from");
	rename->column = field_text(operation->fields, "to");
	oid = get_relation_constraint_oid(table->relid, rename->name, true);
	if (!OidIsValid(oid))
		operation_refuse(operation,
						 psprintf("constraint \"%%s\" of table \"%s\" does not exist",
								  table->name), rename->name);
	meant_constraint(shape, table, rename->name, oid);
	require_new_constraint(table, operation, rename->column);
	table->renamed_constraints = lappend(table->renamed_constraints, rename);
}
