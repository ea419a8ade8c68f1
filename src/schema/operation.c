/*-------------------------------------------------------------------------
 *
 * operation.c
 *		What each operation on tables and columns does to the shape.
 *
 * A handler looks up what the operation names, as the operations before have
 * left it, refuses what cannot work, changes the names and columns of the new
 * version, and notes what has to be done in which phase.  Handlers run in each
 * phase that is planned; what only the first one can check (that a name is
 * free) is checked only there.  Constraints and indexes are in
 * operation_constraint.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "schema/guard.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/typcache.h"

/* ---- helpers ---- */

static bool
is_column_name(const ShapeColumn *column, const char *name)
{
	return (column->name != NULL && strcmp(name, column->name) == 0) ||
		(column->old_name != NULL && strcmp(name, column->old_name) == 0);
}

/*
 * Is the expression nothing but the column's name, in either version?
 */
bool
is_identity(const char *expression, const ShapeColumn *column)
{
	List	   *statements = raw_parser(psprintf("SELECT (%s\n)", expression),
										RAW_PARSE_DEFAULT);
	SelectStmt *select;
	Node	   *value;

	select = list_length(statements) == 1 ?
		(SelectStmt *) linitial_node(RawStmt, statements)->stmt : NULL;
	if (select == NULL || !IsA(select, SelectStmt) ||
		list_length(select->targetList) != 1)
		return false;
	value = linitial_node(ResTarget, select->targetList)->val;
	if (!IsA(value, ColumnRef) ||
		!IsA(llast(((ColumnRef *) value)->fields), String))
		return false;
	return is_column_name(column,
						  strVal(llast(((ColumnRef *) value)->fields)));
}

static void
note(List **statements, char *sql)
{
	*statements = lappend(*statements, sql);
}

/* schema.table.column as SQL */
static char *
qualified_column(const ShapeTable *table, const char *column)
{
	return psprintf("%s.%s", table->qualified, quote_identifier(column));
}

static void
note_comment(ShapeTable *table, const ShapeColumn *column, const char *comment)
{
	char	   *target = qualified_column(table, column->column);
	char	   *before = column->attnum > 0 ?
		GetComment(table->relid, RelationRelationId, column->attnum) : NULL;

	note(&table->expand,
		 psprintf("COMMENT ON COLUMN %s IS %s", target,
				  comment ? quote_literal_cstr(comment) : "NULL"));
	if (column->attnum > 0 && strcmp(column->column, column->old_name) == 0)
		note(&table->expand_undo,
			 psprintf("COMMENT ON COLUMN %s IS %s", target,
					  before ? quote_literal_cstr(before) : "NULL"));
}

/*
 * Error unless no relation has the name yet; only when planned first.
 */
void
require_free_name(const Shape *shape, const Operation *operation,
				  const char *name)
{
	if (shape->phase == CHANGE_EXPANDING &&
		OidIsValid(get_relname_relid(name, shape->schema)))
		operation_refuse(operation,
						 psprintf("relation \"%%s\" already exists in schema \"%s\"",
								  shape->change->schema), name);
}

/* ---- pairs ---- */

/*
 * Note the statements that a query gives: $1 table, $2 and $3 as it likes.
 */
static void
note_grants(ShapeTable *table, const char *query, const char *first,
			const char *second)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	MemoryContext context = CurrentMemoryContext;
	uint64		n;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg_text(&args, first);
	catalog_arg_text(&args, second);
	n = catalog_run(query, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *sql = catalog_text(&access, i, 1);
		MemoryContext oldcontext = MemoryContextSwitchTo(context);

		note(&table->expand, sql);
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
}

/* Who was granted something on the old column has it on the new one. */
static void
note_column_grants(ShapeTable *table, const ShapeColumn *column)
{
	note_grants(table, "SELECT format('GRANT %s (%I) ON %s TO %s%s', "
				"x.privilege_type, $3, a.attrelid::regclass, "
				"CASE x.grantee WHEN 0 THEN 'PUBLIC' "
				"ELSE x.grantee::regrole::text END, CASE "
				"WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) "
				"FROM pg_attribute a CROSS JOIN aclexplode(a.attacl) x "
				"WHERE a.attrelid = $1 AND a.attname = $2::name",
				column->old_name, column->column);
}

/*
 * A type that does something to all rows when a column of it is added.  It may
 * come to that when the column is there; then the change can be undone.
 */
static void
refuse_domain(const ShapeTable *table, const Operation *operation, Oid type,
			  bool filled)
{
	if (table->planned)
		return;
	if (DomainHasConstraints(type))
		operation_refuse(operation, "type %s is a domain with constraints, which would rewrite the table; use its base type and a check",
						 format_type_be(type));
	if (filled && get_typdefault(type) != NULL)
		operation_refuse(operation, "type %s has a default, which all rows would have before they are filled; use its base type",
						 format_type_be(type));
}

/*
 * Give a column a second one for the new version, of the type that is set in
 * it.  Errors: columns that cannot be doubled.
 */
void
pair_add(Shape *shape, ShapeTable *table, ShapeColumn *column,
		 const Operation *operation)
{
	if (column->is_key)
		operation_refuse(operation, "column \"%s\" is part of the primary key",
						 column->name);
	if (column->is_generated)
		operation_refuse(operation, "column \"%s\" is a generated or identity column",
						 column->name);
	if (column->attnum == 0)
		operation_refuse(operation, "column \"%s\" is added by the same change; define it there",
						 column->name);
	if (column->rule != NULL)
		operation_refuse(operation, "column \"%s\" is altered twice in the same change",
						 column->name);
	if (column->is_used)
		operation_refuse(operation, "column \"%s\" is used by an operation before this one; alter it first",
						 column->name);
	refuse_domain(table, operation, column->type, true);
	require_no_dependents(table, column, operation);
	column->column = shape_hidden_name(shape, column->attnum,
									   column->old_name);
	column->default_differs = column->default_sql != NULL;
	/* what the old column's default gives has the old type */
	if (column->default_sql != NULL && column->type != column->old_type)
		column->default_sql =
			psprintf("CAST(%s AS %s)", column->default_sql,
					 type_sql(column->type, column->typmod));
	column->rule = palloc0_object(Rule);
	column->rule->kind = RULE_PAIR;
	column->rule->old_column = column->old_name;
	column->rule->new_column = column->column;
	note(&table->expand,
		 psprintf("ALTER TABLE %s ADD COLUMN %s %s%s", table->qualified,
				  quote_identifier(column->column),
				  type_sql(column->type, column->typmod),
				  shape_collation(table, column, column->type)));
	note_column_grants(table, column);
	table->expand = list_concat(table->expand, column_settings(table, column));
}

/*
 * Set and check the expressions of a pair.
 */
void
pair_expressions(const ShapeTable *table, ShapeColumn *column,
				 const Operation *operation, const char *up, const char *down)
{
	Rule	   *rule = column->rule;

	rule->up = pstrdup(up);
	rule->down = pstrdup(down);
	rule->up_reads = expression_reads(table, false, up);
	rule->down_reads = expression_reads(table, true, down);
}

/* ---- tables ---- */

static void
run_create_table(Shape *shape, const char *sql)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("search_path", shape->change->path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "unexpected result of \"%s\"", sql);
	SPI_finish();
	AtEOXact_GUC(false, guc_level);
}

/*
 * The table is made while the expansion is planned, in the same transaction:
 * later operations want to look at it.
 */
static void
op_create_table(Shape *shape, const Operation *operation)
{
	char	   *name = field_text(operation->fields, "name");
	Oid			relid;

	require_free_name(shape, operation, name);
	if (shape->phase == CHANGE_EXPANDING)
		run_create_table(shape, create_table_sql(shape, operation));
	relid = get_relname_relid(name, shape->schema);
	if (!OidIsValid(relid))
		operation_refuse(operation, "table \"%s\" does not exist any more",
						 name);
	meant_table(shape, name, relid);
	if (shape->phase == CHANGE_EXPANDING)
		made_table(shape->change->id, relid, operation->number);
	shape_load(shape, relid)->created = true;
}

static void
op_drop_table(Shape *shape, const Operation *operation)
{
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "name"));

	require_no_dependents(table, NULL, operation);
	table->name = NULL;
}

static void
op_rename_table(Shape *shape, const Operation *operation)
{
	char	   *to = field_text(operation->fields, "to");
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "from"));

	require_free_name(shape, operation, to);
	table->name = to;
}

/* ---- columns ---- */

/* Types that are no types: a sequence and a default. */
static const char *const serial_types[][2] = {
	{"smallserial", "smallint"}, {"serial2", "smallint"},
	{"serial", "integer"}, {"serial4", "integer"},
	{"bigserial", "bigint"}, {"serial8", "bigint"}
};

/* The type behind a serial one, or NULL. */
static const char *
serial_type(const char *type)
{
	for (int i = 0; i < lengthof(serial_types); i++)
	{
		if (pg_strcasecmp(serial_types[i][0], type) == 0)
			return serial_types[i][1];
	}
	return NULL;
}

/* A sequence for a column, which has the table's owner; returns the default. */
static char *
note_sequence(Shape *shape, ShapeTable *table, const Operation *operation,
			  const char *column, const char *type)
{
	char	   *name = psprintf("%s_%s_seq", table->old_name, column);
	char	   *qualified = shape_qualified(shape, name);

	require_free_name(shape, operation, name);
	note(&table->expand, psprintf("CREATE SEQUENCE %s AS %s", qualified,
								  type));
	if (table->owner != shape->change->owner)
		note(&table->expand,
			 psprintf("ALTER SEQUENCE %s OWNER TO %s", qualified,
					  quote_identifier(GetUserNameFromId(table->owner,
														 false))));
	note(&table->expand, psprintf("ALTER SEQUENCE %s OWNED BY %s", qualified,
								  qualified_column(table, column)));
	note_grants(table, "SELECT format('GRANT USAGE ON SEQUENCE %s TO %s', "
				"$2, CASE x.grantee WHEN 0 THEN 'PUBLIC' "
				"ELSE x.grantee::regrole::text END) "
				"FROM pg_class c CROSS JOIN aclexplode(c.relacl) x "
				"WHERE c.oid = $1 AND x.privilege_type = 'INSERT' "
				"AND x.grantee <> c.relowner AND $3 <> ''",
				qualified, column);
	return psprintf("nextval(%s::regclass)", quote_literal_cstr(qualified));
}

/* What becomes of the value of an added column in rows that have none. */
typedef struct AddedColumn
{
	const char *type;			/* SQL */
	const char *value;			/* the default, SQL, or NULL */
	const char *up;
	bool		at_once;		/* the default can be set at once */
	bool		nullable;
} AddedColumn;

static void
decide_values(Shape *shape, ShapeTable *table, const Operation *operation,
			  AddedColumn *added)
{
	JsonbContainer *json = field_object(operation->fields, "column");
	const char *serial;

	added->type = field_text(json, "type");
	added->value = field_text(json, "default");
	added->up = field_text(operation->fields, "up");
	added->nullable = field_bool(json, "nullable", false);
	serial = serial_type(added->type);
	if (serial != NULL)
		added->type = serial;
	else if (added->value != NULL && added->up == NULL &&
			 expression_is_volatile(table->path, added->value))
		added->up = added->value;
	added->at_once = added->value != NULL && added->up == NULL;
	if (!added->nullable && serial == NULL && added->value == NULL &&
		added->up == NULL)
		operation_refuse(operation, "field \"up\" is missing, and column \"%s\" is neither nullable nor has a default",
						 field_text(json, "name"));
}

/* The column in the shape; one that is there was made by an earlier phase. */
static ShapeColumn *
added_shape_column(Shape *shape, ShapeTable *table,
				   const Operation *operation, const AddedColumn *added)
{
	char	   *name = field_text(field_object(operation->fields, "column"),
								 "name");
	ShapeColumn *column = shape_column(table, name);

	if (column != NULL && shape->phase == CHANGE_EXPANDING)
		operation_refuse(operation,
						 psprintf("column \"%%s\" of table \"%s\" already exists",
								  table->name), name);
	if (column == NULL)
	{
		column = palloc0_object(ShapeColumn);
		table->columns = lappend(table->columns, column);
	}
	column->old_name = NULL;
	column->name = name;
	column->column = name;
	column->attnum = 0;
	type_parse(table->path, added->type, &column->type, &column->typmod);
	refuse_domain(table, operation, column->type,
				  field_text(operation->fields, "up") != NULL);
	return column;
}

static void
op_add_column(Shape *shape, const Operation *operation)
{
	JsonbContainer *json = field_object(operation->fields, "column");
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "table"));
	AddedColumn added = {0};
	ShapeColumn *column;
	JsonbContainer *object;

	decide_values(shape, table, operation, &added);
	column = added_shape_column(shape, table, operation, &added);
	note(&table->expand,
		 psprintf("ALTER TABLE %s ADD COLUMN %s %s%s%s%s", table->qualified,
				  quote_identifier(column->name), added.type,
				  added.at_once ? " DEFAULT " : "",
				  added.at_once ? added.value : "",
				  added.at_once && !added.nullable ? " NOT NULL" : ""));
	if (serial_type(field_text(json, "type")) != NULL)
		added.value = added.up =
			note_sequence(shape, table, operation, column->name, added.type);
	column->default_sql = added.value ? pstrdup(added.value) : NULL;
	column->default_differs = added.value != NULL && !added.at_once;
	if (field_text(json, "comment") != NULL)
		note_comment(table, column, field_text(json, "comment"));
	if (added.up != NULL)
	{
		column->rule = palloc0_object(Rule);
		column->rule->kind = RULE_ADD;
		column->rule->new_column = column->name;
		column->rule->up = pstrdup(added.up);
		/* a sequence does not exist yet */
		if (serial_type(field_text(json, "type")) == NULL)
			column->rule->up_reads = expression_reads(table, false, added.up);
	}
	if (!added.nullable && !added.at_once)
		add_not_null(shape, table, column);
	if ((object = field_object(json, "check")) != NULL)
	{
		require_new_constraint(table, operation, field_text(object, "name"));
		add_check(shape, table, field_text(object, "name"),
				  field_text(object, "constraint"),
				  field_bool(object, "no_inherit", false));
	}
	if ((object = field_object(json, "references")) != NULL)
		add_reference(shape, table, operation, object, list_make1(column));
	if (field_bool(json, "unique", false))
		add_unique(shape, table, psprintf("%s_%s_key", table->old_name,
										  column->name),
				   list_make1(column), NULL);
}

static void
op_drop_column(Shape *shape, const Operation *operation)
{
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "table"));
	ShapeColumn *column =
		shape_require_column(table, operation,
							 field_text(operation->fields, "column"));
	char	   *down = field_text(operation->fields, "down");

	if (column->is_key)
		operation_refuse(operation, "column \"%s\" is part of the primary key",
						 column->name);
	if (column->rule != NULL || column->attnum == 0)
		operation_refuse(operation, "column \"%s\" is altered or added by the same change",
						 column->name);
	require_no_dependents(table, column, operation);
	if (down == NULL && column->not_null && column->default_sql == NULL &&
		!column->is_generated)
		operation_refuse(operation, "field \"down\" is missing, and column \"%s\" is NOT NULL without a default",
						 column->name);
	column->name = NULL;
	if (down == NULL)
		return;
	column->rule = palloc0_object(Rule);
	column->rule->kind = RULE_DROP;
	column->rule->old_column = column->old_name;
	column->rule->down = down;
	column->rule->down_reads = expression_reads(table, true, down);
}

static void
op_rename_column(Shape *shape, const Operation *operation)
{
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "table"));
	ShapeColumn *column =
		shape_require_column(table, operation,
							 field_text(operation->fields, "from"));
	char	   *to = field_text(operation->fields, "to");

	if (shape_column(table, to) != NULL)
		operation_refuse(operation,
						 psprintf("column \"%%s\" of table \"%s\" already exists",
								  table->name), to);
	if (column->attnum == 0)
		operation_refuse(operation, "column \"%s\" is added by the same change",
						 column->name);
	column->name = to;
}

/* ---- alter_column ---- */

/* Expressions of a pair that are not given. */
static const char *
default_expression(const char *name, Oid type, int32 typmod, bool same_type)
{
	name = quote_identifier(name);
	if (same_type)
		return name;
	return psprintf("CAST(%s AS %s)", name,
					type_sql(type, typmod));
}

/* Make a pair if the operation needs one. */
static bool
alter_needs_pair(Shape *shape, ShapeTable *table, ShapeColumn *column,
				 const Operation *operation)
{
	const char *up = field_text(operation->fields, "up");
	const char *down = field_text(operation->fields, "down");
	char	   *type = field_text(operation->fields, "type");
	bool		same = true;

	if (type != NULL)
	{
		type_parse(table->path, type, &column->type, &column->typmod);
		same = column->type == column->old_type &&
			column->typmod == column->old_typmod;
	}
	if (up == NULL)
		up = default_expression(column->old_name ? column->old_name :
								column->name, column->type, column->typmod,
								same);
	if (down == NULL)
		down = default_expression(column->name, column->old_type,
								  column->old_typmod, same);
	if (same && is_identity(up, column) && is_identity(down, column))
		return false;
	pair_add(shape, table, column, operation);
	pair_expressions(table, column, operation, up, down);
	return true;
}

static void
alter_nullable(Shape *shape, ShapeTable *table, ShapeColumn *column,
			   const Operation *operation, bool pair)
{
	bool		given = field_has(operation->fields, "nullable");
	bool		nullable = field_bool(operation->fields, "nullable",
									 !column->not_null);

	if (!nullable && (pair || !column->not_null))
		add_not_null(shape, table, column);
	if (given && nullable && column->not_null && !pair)
	{
		if (column->is_key)
			operation_refuse(operation, "column \"%s\" is part of the primary key",
							 column->name);
		column->drop_not_null = true;
	}
}

static void
op_alter_column(Shape *shape, const Operation *operation)
{
	JsonbContainer *fields = operation->fields;
	ShapeTable *table = shape_table(shape, operation,
									field_text(fields, "table"));
	ShapeColumn *column = shape_require_column(table, operation,
											   field_text(fields, "column"));
	JsonbContainer *object;
	bool		pair = alter_needs_pair(shape, table, column, operation);

	alter_nullable(shape, table, column, operation, pair);
	if (field_has(fields, "default"))
	{
		if (column->is_generated)
			operation_refuse(operation, "column \"%s\" is a generated or identity column",
							 column->name);
		column->default_sql = field_text(fields, "default");
		column->default_differs = true;
	}
	if (field_has(fields, "comment"))
		note_comment(table, column, field_text(fields, "comment"));
	else if (pair && GetComment(table->relid, RelationRelationId,
								column->attnum) != NULL)
		note_comment(table, column, GetComment(table->relid,
											   RelationRelationId,
											   column->attnum));
	if ((object = field_object(fields, "check")) != NULL)
	{
		require_new_constraint(table, operation, field_text(object, "name"));
		add_check(shape, table, field_text(object, "name"),
				  field_text(object, "constraint"),
				  field_bool(object, "no_inherit", false));
	}
	if ((object = field_object(fields, "references")) != NULL)
		add_reference(shape, table, operation, object, list_make1(column));
	if ((object = field_object(fields, "unique")) != NULL)
	{
		require_free_name(shape, operation, field_text(object, "name"));
		add_unique(shape, table, field_text(object, "name"),
				   list_make1(column), NULL);
	}
}

/* ---- others ---- */

static const char *
replica_identity_now(const Shape *shape, const ShapeTable *table)
{
	Relation	relation = relation_open(table->relid, AccessShareLock);
	const char *result = "DEFAULT";
	Oid			index;

	if (relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL)
		result = "FULL";
	else if (relation->rd_rel->relreplident == REPLICA_IDENTITY_NOTHING)
		result = "NOTHING";
	else if (relation->rd_rel->relreplident == REPLICA_IDENTITY_INDEX)
	{
		index = RelationGetReplicaIndex(relation);
		if (OidIsValid(index))
			result = psprintf("USING INDEX %s",
							  quote_identifier(get_rel_name(index)));
	}
	relation_close(relation, NoLock);
	return result;
}

static void
op_set_replica_identity(Shape *shape, const Operation *operation)
{
	JsonbContainer *identity = field_object(operation->fields, "identity");
	ShapeTable *table = shape_table(shape, operation,
									field_text(operation->fields, "table"));
	char	   *type = field_text(identity, "type");

	if (pg_strcasecmp(type, "index") == 0)
		type = psprintf("USING INDEX %s",
						quote_identifier(field_text(identity, "index")));
	note(&table->expand, psprintf("ALTER TABLE %s REPLICA IDENTITY %s",
								  table->qualified, type));
	note(&table->expand_undo, psprintf("ALTER TABLE %s REPLICA IDENTITY %s",
									   table->qualified,
									   replica_identity_now(shape, table)));
}

static void
op_sql(Shape *shape, const Operation *operation)
{
	Step	   *step = step_make(STEP_USER,
								 psprintf("operation %d: sql",
										  operation->number), NULL);
	char	   *down = field_text(operation->fields, "down");

	step->statements = list_make1(field_text(operation->fields, "up"));
	if (down != NULL && *down)
		step->undo = list_make1(down);
	if (field_bool(operation->fields, "onComplete", false))
		shape->contract = lappend(shape->contract, step);
	else
		shape->expand = lappend(shape->expand, step);
}

const OperationHandler operation_handlers[] = {
	[OP_CREATE_TABLE] = op_create_table,
	[OP_DROP_TABLE] = op_drop_table,
	[OP_RENAME_TABLE] = op_rename_table,
	[OP_ADD_COLUMN] = op_add_column,
	[OP_DROP_COLUMN] = op_drop_column,
	[OP_RENAME_COLUMN] = op_rename_column,
	[OP_ALTER_COLUMN] = op_alter_column,
	[OP_CREATE_INDEX] = op_create_index,
	[OP_DROP_INDEX] = op_drop_index,
	[OP_CREATE_CONSTRAINT] = op_create_constraint,
	[OP_DROP_CONSTRAINT] = op_drop_constraint,
	[OP_DROP_MULTICOLUMN_CONSTRAINT] = op_drop_multicolumn,
	[OP_RENAME_CONSTRAINT] = op_rename_constraint,
	[OP_SET_REPLICA_IDENTITY] = op_set_replica_identity,
	[OP_DERIVE_TABLE] = op_derive_table,
	[OP_SQL] = op_sql
};
