/*-------------------------------------------------------------------------
 *
 * json.c
 *		Read jsonb documents field by field, and write small ones.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "schema/json.h"
#include "utils/json.h"

/*
 * The value of a key; false if it is absent.  Also finds nulls.
 */
bool
field_value(JsonbContainer *object, const char *key, JsonbValue *value)
{
	return JsonContainerIsObject(object) &&
		getKeyJsonValueFromContainer(object, key, strlen(key), value) != NULL;
}

/*
 * Is the key there, be it null?
 */
bool
field_has(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	return field_value(object, key, &value);
}

/*
 * A string as a C string.
 */
char *
field_string(const JsonbValue *value)
{
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/*
 * A string field, or NULL.
 */
char *
field_text(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (!field_value(object, key, &value) || value.type != jbvString)
		return NULL;
	return field_string(&value);
}

bool
field_bool(JsonbContainer *object, const char *key, bool otherwise)
{
	JsonbValue	value;

	if (!field_value(object, key, &value) || value.type != jbvBool)
		return otherwise;
	return value.val.boolean;
}

/*
 * An object field, or NULL.
 */
JsonbContainer *
field_object(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (!field_value(object, key, &value) || value.type != jbvBinary ||
		!JsonContainerIsObject(value.val.binary.data))
		return NULL;
	return value.val.binary.data;
}

/*
 * Elements of an array, as a list of JsonbValue *.
 */
List *
field_elements(JsonbContainer *array)
{
	List	   *result = NIL;

	for (uint32 i = 0; i < JsonContainerSize(array); i++)
		result = lappend(result, getIthJsonbValueFromContainer(array, i));
	return result;
}

static List *
array_field(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (!field_value(object, key, &value) || value.type != jbvBinary ||
		!JsonContainerIsArray(value.val.binary.data))
		return NIL;
	return field_elements(value.val.binary.data);
}

/*
 * An array of strings as a list of C strings.
 */
List *
field_texts(JsonbContainer *object, const char *key)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, array_field(object, key))
	{
		JsonbValue *value = lfirst(lc);

		if (value->type == jbvString)
			result = lappend(result, field_string(value));
	}
	return result;
}

/*
 * An array of objects as a list of JsonbContainer *.
 */
List *
field_objects(JsonbContainer *object, const char *key)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, array_field(object, key))
	{
		JsonbValue *value = lfirst(lc);

		if (value->type == jbvBinary &&
			JsonContainerIsObject(value->val.binary.data))
			result = lappend(result, value->val.binary.data);
	}
	return result;
}

/*
 * The keys of an object as a list of C strings.
 */
List *
field_keys(JsonbContainer *object)
{
	List	   *result = NIL;
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			result = lappend(result, field_string(&value));
	}
	return result;
}

/*
 * Append a field whose value is JSON already.
 */
void
field_append_raw(StringInfo json, const char *key, const char *value)
{
	if (json->len > 0 && json->data[json->len - 1] != '{')
		appendStringInfoString(json, ", ");
	escape_json(json, key);
	appendStringInfo(json, ": %s", value);
}

/*
 * Append a string field.
 */
void
field_append(StringInfo json, const char *key, const char *value)
{
	StringInfoData quoted;

	initStringInfo(&quoted);
	escape_json(&quoted, value);
	field_append_raw(json, key, quoted.data);
	pfree(quoted.data);
}
