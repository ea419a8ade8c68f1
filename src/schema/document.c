/*-------------------------------------------------------------------------
 *
 * document.c
 *		What may stand in the document of a change.
 *
 * The format is that of pgroll's migrations.  It is a table here: for each
 * operation its fields, and for each field its type.  A document is checked as
 * a whole when it is stored, without a look at the database: what it names may
 * not exist yet.  That is checked when the change is expanded.
 *
 * Errors name the operation by its place, counted from 1, and the field by its
 * path: operation 2 (add_column): field "column.type" is missing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "mb/pg_wchar.h"
#include "parser/parser.h"
#include "schema/change.h"
#include "schema/json.h"

typedef enum FieldType
{
	FIELD_STRING,
	FIELD_NAME,					/* a string that is no longer than a name */
	FIELD_BOOLEAN,
	FIELD_NAMES,				/* array of names */
	FIELD_STRINGS,
	FIELD_OBJECT,
	FIELD_OBJECTS,				/* array of objects */
	FIELD_EXPRESSIONS			/* object of strings, one for each column */
} FieldType;

static const char *const type_names[] = {
	[FIELD_STRING] = "a string",
	[FIELD_NAME] = "a string",
	[FIELD_BOOLEAN] = "true or false",
	[FIELD_NAMES] = "an array of strings",
	[FIELD_STRINGS] = "an array of strings",
	[FIELD_OBJECT] = "an object",
	[FIELD_OBJECTS] = "an array of objects",
	[FIELD_EXPRESSIONS] = "an object of strings"
};

typedef enum FieldNeed
{
	OPTIONAL,
	REQUIRED,
	NULLABLE					/* optional, and null has a meaning */
} FieldNeed;

typedef struct FieldSpec
{
	const char *name;			/* NULL ends a table */
	FieldType	type;
	FieldNeed	need;
	const struct FieldSpec *fields; /* of FIELD_OBJECT(S) */
	const char *const *words;	/* the only values, or NULL; ends with NULL */
} FieldSpec;

static const char *const actions[] = {
	"NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT", NULL
};
static const char *const matches[] = {"SIMPLE", "FULL", NULL};
static const char *const given_values[] = {"ALWAYS", "BY DEFAULT", NULL};
static const char *const sorts[] = {"ASC", "DESC", NULL};
static const char *const nulls_orders[] = {"FIRST", "LAST", NULL};
static const char *const methods[] = {
	"btree", "hash", "gist", "spgist", "gin", "brin", NULL
};
static const char *const identities[] = {
	"default", "full", "nothing", "index", NULL
};
static const char *const write_words[] = {"mirror", "merge", "patch", NULL};
static const char *const delete_words[] = {"delete", "ignore", "write", NULL};
static const char *const table_constraints[] = {
	"unique", "check", "primary_key", "foreign_key", "exclude", NULL
};
static const char *const new_constraints[] = {
	"unique", "check", "primary_key", "foreign_key", NULL
};

static const FieldSpec check_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{"constraint", FIELD_STRING, REQUIRED},
	{"no_inherit", FIELD_BOOLEAN},
	{NULL}
};

static const FieldSpec unique_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{NULL}
};

static const FieldSpec reference_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{"table", FIELD_NAME, REQUIRED},
	{"column", FIELD_NAME, REQUIRED},
	{"match_type", FIELD_STRING, OPTIONAL, NULL, matches},
	{"on_delete", FIELD_STRING, OPTIONAL, NULL, actions},
	{"on_update", FIELD_STRING, OPTIONAL, NULL, actions},
	{"deferrable", FIELD_BOOLEAN},
	{"initially_deferred", FIELD_BOOLEAN},
	{NULL}
};

static const FieldSpec table_reference_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"columns", FIELD_NAMES, REQUIRED},
	{"name", FIELD_NAME},
	{"match_type", FIELD_STRING, OPTIONAL, NULL, matches},
	{"on_delete", FIELD_STRING, OPTIONAL, NULL, actions},
	{"on_update", FIELD_STRING, OPTIONAL, NULL, actions},
	{"on_delete_set_columns", FIELD_NAMES},
	{NULL}
};

static const FieldSpec identity_fields[] = {
	{"sequence_options", FIELD_STRING},
	{"user_specified_values", FIELD_STRING, OPTIONAL, NULL, given_values},
	{NULL}
};

static const FieldSpec generated_fields[] = {
	{"expression", FIELD_STRING},
	{"identity", FIELD_OBJECT, OPTIONAL, identity_fields},
	{NULL}
};

static const FieldSpec column_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{"type", FIELD_STRING, REQUIRED},
	{"comment", FIELD_STRING},
	{"nullable", FIELD_BOOLEAN},
	{"unique", FIELD_BOOLEAN},
	{"pk", FIELD_BOOLEAN},
	{"default", FIELD_STRING},
	{"check", FIELD_OBJECT, OPTIONAL, check_fields},
	{"references", FIELD_OBJECT, OPTIONAL, reference_fields},
	{"generated", FIELD_OBJECT, OPTIONAL, generated_fields},
	{NULL}
};

static const FieldSpec index_parameter_fields[] = {
	{"tablespace", FIELD_NAME},
	{"storage_parameters", FIELD_STRING},
	{"include_columns", FIELD_NAMES},
	{NULL}
};

static const FieldSpec exclude_fields[] = {
	{"index_method", FIELD_STRING},
	{"elements", FIELD_STRING, REQUIRED},
	{"predicate", FIELD_STRING},
	{NULL}
};

static const FieldSpec constraint_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{"type", FIELD_STRING, REQUIRED, NULL, table_constraints},
	{"columns", FIELD_NAMES},
	{"check", FIELD_STRING},
	{"deferrable", FIELD_BOOLEAN},
	{"initially_deferred", FIELD_BOOLEAN},
	{"nulls_not_distinct", FIELD_BOOLEAN},
	{"no_inherit", FIELD_BOOLEAN},
	{"references", FIELD_OBJECT, OPTIONAL, table_reference_fields},
	{"exclude", FIELD_OBJECT, OPTIONAL, exclude_fields},
	{"index_parameters", FIELD_OBJECT, OPTIONAL, index_parameter_fields},
	{NULL}
};

static const FieldSpec opclass_fields[] = {
	{"name", FIELD_STRING},
	{"params", FIELD_STRINGS},
	{NULL}
};

static const FieldSpec index_column_fields[] = {
	{"column", FIELD_NAME, REQUIRED},
	{"collate", FIELD_STRING},
	{"sort", FIELD_STRING, OPTIONAL, NULL, sorts},
	{"nulls", FIELD_STRING, OPTIONAL, NULL, nulls_orders},
	{"opclass", FIELD_OBJECT, OPTIONAL, opclass_fields},
	{NULL}
};

static const FieldSpec replica_identity_fields[] = {
	{"type", FIELD_STRING, REQUIRED, NULL, identities},
	{"index", FIELD_STRING},
	{NULL}
};

static const FieldSpec create_table_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{"columns", FIELD_OBJECTS, REQUIRED, column_fields},
	{"constraints", FIELD_OBJECTS, OPTIONAL, constraint_fields},
	{"comment", FIELD_STRING},
	{NULL}
};

static const FieldSpec name_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{NULL}
};

static const FieldSpec rename_table_fields[] = {
	{"from", FIELD_NAME, REQUIRED},
	{"to", FIELD_NAME, REQUIRED},
	{NULL}
};

static const FieldSpec rename_in_table_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"from", FIELD_NAME, REQUIRED},
	{"to", FIELD_NAME, REQUIRED},
	{NULL}
};

static const FieldSpec add_column_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"column", FIELD_OBJECT, REQUIRED, column_fields},
	{"up", FIELD_STRING},
	{NULL}
};

static const FieldSpec drop_column_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"column", FIELD_NAME, REQUIRED},
	{"down", FIELD_STRING},
	{NULL}
};

static const FieldSpec alter_column_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"column", FIELD_NAME, REQUIRED},
	{"type", FIELD_STRING},
	{"nullable", FIELD_BOOLEAN},
	{"default", FIELD_STRING, NULLABLE},
	{"comment", FIELD_STRING, NULLABLE},
	{"unique", FIELD_OBJECT, OPTIONAL, unique_fields},
	{"check", FIELD_OBJECT, OPTIONAL, check_fields},
	{"references", FIELD_OBJECT, OPTIONAL, reference_fields},
	{"up", FIELD_STRING},
	{"down", FIELD_STRING},
	{NULL}
};

static const FieldSpec create_index_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{"table", FIELD_NAME, REQUIRED},
	{"columns", FIELD_OBJECTS, REQUIRED, index_column_fields},
	{"unique", FIELD_BOOLEAN},
	{"method", FIELD_STRING, OPTIONAL, NULL, methods},
	{"predicate", FIELD_STRING},
	{"storage_parameters", FIELD_STRING},
	{NULL}
};

static const FieldSpec create_constraint_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"name", FIELD_NAME, REQUIRED},
	{"type", FIELD_STRING, REQUIRED, NULL, new_constraints},
	{"columns", FIELD_NAMES},
	{"check", FIELD_STRING},
	{"references", FIELD_OBJECT, OPTIONAL, table_reference_fields},
	{"no_inherit", FIELD_BOOLEAN},
	{"index_parameters", FIELD_OBJECT, OPTIONAL, index_parameter_fields},
	{"up", FIELD_EXPRESSIONS},
	{"down", FIELD_EXPRESSIONS},
	{NULL}
};

static const FieldSpec drop_constraint_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"name", FIELD_NAME, REQUIRED},
	{"up", FIELD_STRING},
	{"down", FIELD_STRING, REQUIRED},
	{NULL}
};

static const FieldSpec drop_multicolumn_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"name", FIELD_NAME, REQUIRED},
	{"up", FIELD_EXPRESSIONS},
	{"down", FIELD_EXPRESSIONS, REQUIRED},
	{NULL}
};

static const FieldSpec set_replica_identity_fields[] = {
	{"table", FIELD_NAME, REQUIRED},
	{"identity", FIELD_OBJECT, REQUIRED, replica_identity_fields},
	{NULL}
};

static const FieldSpec back_fields[] = {
	{"transform", FIELD_STRING, REQUIRED},
	{"key", FIELD_NAMES},
	{"on_write", FIELD_STRING, OPTIONAL, NULL, write_words},
	{"on_delete", FIELD_STRING, OPTIONAL, NULL, delete_words},
	{NULL}
};

static const FieldSpec derive_table_fields[] = {
	{"name", FIELD_NAME, REQUIRED},
	{"from", FIELD_NAME, REQUIRED},
	{"transform", FIELD_STRING, REQUIRED},
	{"key", FIELD_NAMES},
	{"on_write", FIELD_STRING, OPTIONAL, NULL, write_words},
	{"on_delete", FIELD_STRING, OPTIONAL, NULL, delete_words},
	{"back", FIELD_OBJECT, OPTIONAL, back_fields},
	{NULL}
};

static const FieldSpec sql_fields[] = {
	{"up", FIELD_STRING, REQUIRED},
	{"down", FIELD_STRING},
	{"onComplete", FIELD_BOOLEAN},
	{NULL}
};

/* In the order of OperationKind. */
static const FieldSpec *const operation_fields[] = {
	[OP_CREATE_TABLE] = create_table_fields,
	[OP_DROP_TABLE] = name_fields,
	[OP_RENAME_TABLE] = rename_table_fields,
	[OP_ADD_COLUMN] = add_column_fields,
	[OP_DROP_COLUMN] = drop_column_fields,
	[OP_RENAME_COLUMN] = rename_in_table_fields,
	[OP_ALTER_COLUMN] = alter_column_fields,
	[OP_CREATE_INDEX] = create_index_fields,
	[OP_DROP_INDEX] = name_fields,
	[OP_CREATE_CONSTRAINT] = create_constraint_fields,
	[OP_DROP_CONSTRAINT] = drop_constraint_fields,
	[OP_DROP_MULTICOLUMN_CONSTRAINT] = drop_multicolumn_fields,
	[OP_RENAME_CONSTRAINT] = rename_in_table_fields,
	[OP_SET_REPLICA_IDENTITY] = set_replica_identity_fields,
	[OP_DERIVE_TABLE] = derive_table_fields,
	[OP_SQL] = sql_fields
};

const char *const operation_names[] = {
	[OP_CREATE_TABLE] = "create_table",
	[OP_DROP_TABLE] = "drop_table",
	[OP_RENAME_TABLE] = "rename_table",
	[OP_ADD_COLUMN] = "add_column",
	[OP_DROP_COLUMN] = "drop_column",
	[OP_RENAME_COLUMN] = "rename_column",
	[OP_ALTER_COLUMN] = "alter_column",
	[OP_CREATE_INDEX] = "create_index",
	[OP_DROP_INDEX] = "drop_index",
	[OP_CREATE_CONSTRAINT] = "create_constraint",
	[OP_DROP_CONSTRAINT] = "drop_constraint",
	[OP_DROP_MULTICOLUMN_CONSTRAINT] = "drop_multicolumn_constraint",
	[OP_RENAME_CONSTRAINT] = "rename_constraint",
	[OP_SET_REPLICA_IDENTITY] = "set_replica_identity",
	[OP_DERIVE_TABLE] = "derive_table",
	[OP_SQL] = "sql"
};

/*
 * Refuse an operation: what is wrong, beginning with its place.  The format
 * takes one string.
 */
void
operation_refuse(const Operation *operation, const char *format,
				 const char *argument)
{
	char	   *message = psprintf(format, argument);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("operation %d (%s): %s", operation->number,
					operation_names[operation->kind], message)));
}

static char *
field_path(const char *parent, const char *name)
{
	return *parent ? psprintf("%s.%s", parent, name) : pstrdup(name);
}

static void
wrong_type(const Operation *operation, const char *path, FieldType type)
{
	operation_refuse(operation,
					 psprintf("field \"%%s\" must be %s", type_names[type]),
					 path);
}

static void check_fields_of(const Operation *operation, const char *path,
							JsonbContainer *object, const FieldSpec *specs);

static void
check_string(const Operation *operation, const char *path,
			 const FieldSpec *spec, const JsonbValue *value)
{
	char	   *string;

	if (value->type != jbvString)
		wrong_type(operation, path, spec->type);
	string = field_string(value);
	if (spec->type == FIELD_NAME || spec->type == FIELD_NAMES)
	{
		if (*string == '\0')
			operation_refuse(operation, "field \"%s\" must not be empty",
							 path);
		if (strlen(string) >= NAMEDATALEN)
			operation_refuse(operation, "field \"%s\" is longer than a name can be",
							 path);
	}
	if (spec->words == NULL || *string == '\0')
		return;
	for (const char *const *word = spec->words; *word != NULL; word++)
	{
		if (pg_strcasecmp(*word, string) == 0)
			return;
	}
	operation_refuse(operation,
					 psprintf("field \"%s\" cannot be \"%%s\"", path), string);
}

/* The elements of an array, or the values of an object of strings. */
static void
check_elements(const Operation *operation, const char *path,
			   const FieldSpec *spec, JsonbContainer *array)
{
	ListCell   *lc;

	foreach(lc, field_elements(array))
	{
		JsonbValue *value = lfirst(lc);
		char	   *place = psprintf("%s[%d]", path, foreach_current_index(lc));

		if (spec->type != FIELD_OBJECTS)
			check_string(operation, place, spec, value);
		else if (value->type != jbvBinary ||
				 !JsonContainerIsObject(value->val.binary.data))
			wrong_type(operation, place, FIELD_OBJECT);
		else
			check_fields_of(operation, place, value->val.binary.data,
							spec->fields);
	}
}

static void
check_expressions(const Operation *operation, const char *path,
				  JsonbContainer *object)
{
	ListCell   *lc;

	foreach(lc, field_keys(object))
	{
		JsonbValue	value;

		if (field_value(object, lfirst(lc), &value) && value.type != jbvString)
			wrong_type(operation, field_path(path, lfirst(lc)), FIELD_STRING);
	}
}

static void
check_field(const Operation *operation, const char *path,
			const FieldSpec *spec, const JsonbValue *value)
{
	bool		is_array = value->type == jbvBinary &&
		JsonContainerIsArray(value->val.binary.data);
	bool		is_object = value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data);

	if (value->type == jbvNull && spec->need != REQUIRED)
		return;
	switch (spec->type)
	{
		case FIELD_STRING:
		case FIELD_NAME:
			check_string(operation, path, spec, value);
			break;
		case FIELD_BOOLEAN:
			if (value->type != jbvBool)
				wrong_type(operation, path, spec->type);
			break;
		case FIELD_NAMES:
		case FIELD_STRINGS:
		case FIELD_OBJECTS:
			if (!is_array)
				wrong_type(operation, path, spec->type);
			check_elements(operation, path, spec, value->val.binary.data);
			break;
		case FIELD_OBJECT:
			if (!is_object)
				wrong_type(operation, path, spec->type);
			check_fields_of(operation, path, value->val.binary.data,
							spec->fields);
			break;
		case FIELD_EXPRESSIONS:
			if (!is_object)
				wrong_type(operation, path, spec->type);
			check_expressions(operation, path, value->val.binary.data);
			break;
	}
}

static const FieldSpec *
find_spec(const FieldSpec *specs, const char *name)
{
	for (; specs->name != NULL; specs++)
	{
		if (strcmp(specs->name, name) == 0)
			return specs;
	}
	return NULL;
}

static void
check_fields_of(const Operation *operation, const char *path,
				JsonbContainer *object, const FieldSpec *specs)
{
	ListCell   *lc;

	foreach(lc, field_keys(object))
	{
		char	   *name = lfirst(lc);
		const FieldSpec *spec = find_spec(specs, name);
		JsonbValue	value;

		if (spec == NULL)
			operation_refuse(operation, "field \"%s\" is not known",
							 field_path(path, name));
		if (field_value(object, name, &value))
			check_field(operation, field_path(path, name), spec, &value);
	}
	for (; specs->name != NULL; specs++)
	{
		if (specs->need == REQUIRED && !field_has(object, specs->name))
			operation_refuse(operation, "field \"%s\" is missing",
							 field_path(path, specs->name));
	}
}

/* ---- what a table of types cannot say ---- */

static void
check_constraint(const Operation *operation, const char *path,
				 JsonbContainer *object)
{
	char	   *type = field_text(object, "type");
	static const struct
	{
		const char *type;
		const char *needs;
	}			needs[] = {
		{"unique", "columns"}, {"primary_key", "columns"},
		{"foreign_key", "columns"}, {"foreign_key", "references"},
		{"check", "check"}, {"exclude", "exclude"}
	};

	for (int i = 0; i < lengthof(needs); i++)
	{
		if (strcmp(needs[i].type, type) == 0 &&
			!field_has(object, needs[i].needs))
			operation_refuse(operation, "field \"%s\" is missing",
							 field_path(path, needs[i].needs));
	}
}

static void
check_create_table(const Operation *operation)
{
	ListCell   *lc;

	foreach(lc, field_objects(operation->fields, "constraints"))
	{
		check_constraint(operation, psprintf("constraints[%d]",
											 foreach_current_index(lc)),
						 lfirst(lc));
	}
}

/* What cannot be added to a table that has rows and users. */
static void
check_add_column(const Operation *operation)
{
	JsonbContainer *column = field_object(operation->fields, "column");

	if (field_bool(column, "pk", false))
		operation_refuse(operation, "field \"%s\": a primary key cannot be changed",
						 "column.pk");
	if (field_has(column, "generated"))
		operation_refuse(operation, "field \"%s\": generated and identity columns cannot be added to a table that exists",
						 "column.generated");
}

static void
check_alter_column(const Operation *operation)
{
	static const char *const one_of[] = {
		"type", "nullable", "default", "comment", "unique", "check",
		"references"
	};

	for (int i = 0; i < lengthof(one_of); i++)
	{
		if (field_has(operation->fields, one_of[i]))
			return;
	}
	operation_refuse(operation, "nothing is to be altered%s", "");
}

static void
check_create_constraint(const Operation *operation)
{
	check_constraint(operation, "", operation->fields);
}

static void
check_replica_identity(const Operation *operation)
{
	JsonbContainer *identity = field_object(operation->fields, "identity");

	if (pg_strcasecmp(field_text(identity, "type"), "index") == 0 &&
		(field_text(identity, "index") == NULL ||
		 *field_text(identity, "index") == '\0'))
		operation_refuse(operation, "field \"%s\" is missing",
						 "identity.index");
}

/* Statements whose syntax is wrong would be found only when it is too late. */
static void
check_syntax(const Operation *operation, const char *field)
{
	const char *sql = field_text(operation->fields, field);
	MemoryContext context = CurrentMemoryContext;

	if (sql == NULL)
		return;
	PG_TRY();
	{
		(void) raw_parser(sql, RAW_PARSE_DEFAULT);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 errmsg("operation %d (%s): field \"%s\": %s",
						operation->number, operation_names[operation->kind],
						field, error->message)));
	}
	PG_END_TRY();
}

static void
check_sql(const Operation *operation)
{
	if (field_bool(operation->fields, "onComplete", false) &&
		field_text(operation->fields, "down") != NULL)
		operation_refuse(operation, "field \"%s\" cannot be given with \"onComplete\"",
						 "down");
	check_syntax(operation, "up");
	check_syntax(operation, "down");
}

static void (*const further_checks[]) (const Operation *) = {
	[OP_CREATE_TABLE] = check_create_table,
	[OP_ADD_COLUMN] = check_add_column,
	[OP_ALTER_COLUMN] = check_alter_column,
	[OP_CREATE_CONSTRAINT] = check_create_constraint,
	[OP_SET_REPLICA_IDENTITY] = check_replica_identity,
	[OP_SQL] = check_sql
};

/* One element of the array. */
static Operation *
read_operation(JsonbValue *value, int number)
{
	Operation  *operation = palloc0_object(Operation);
	List	   *keys;
	int			kind = -1;

	if (value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data))
		keys = field_keys(value->val.binary.data);
	else
		keys = NIL;
	if (list_length(keys) == 1)
		kind = enum_lookup(operation_names, lengthof(operation_names),
						   linitial(keys));
	if (kind < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 list_length(keys) == 1 ?
				 errmsg("operation %d: operation \"%s\" is not known", number,
						(char *) linitial(keys)) :
				 errmsg("operation %d must be an object with one key, the operation's name",
						number)));
	operation->number = number;
	operation->kind = kind;
	operation->fields = field_object(value->val.binary.data, linitial(keys));
	if (operation->fields == NULL)
		operation_refuse(operation, "its value must be an object%s", "");
	check_fields_of(operation, "", operation->fields, operation_fields[kind]);
	if (kind < lengthof(further_checks) && further_checks[kind] != NULL)
		further_checks[kind] (operation);
	return operation;
}

/*
 * The operations of a document, which is an array, as a list of Operation *.
 * Errors: whatever is wrong with it.
 */
List *
document_read(Jsonb *document)
{
	List	   *result = NIL;
	const Operation *immediate = NULL;
	ListCell   *lc;

	if (!JsonContainerIsArray(&document->root) ||
		JsonContainerIsScalar(&document->root))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("operations must be an array")));
	foreach(lc, field_elements(&document->root))
	{
		Operation  *operation = read_operation(lfirst(lc),
											   foreach_current_index(lc) + 1);

		if (operation->kind == OP_SQL &&
			!field_bool(operation->fields, "onComplete", false))
			immediate = operation;
		result = lappend(result, operation);
	}
	/* nobody knows what it does to the tables of the others */
	if (immediate != NULL && list_length(result) > 1)
		operation_refuse(immediate, "a change with it must have no other operation, unless it is marked \"%s\"",
						 "onComplete");
	return result;
}
