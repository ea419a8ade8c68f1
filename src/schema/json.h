/*-------------------------------------------------------------------------
 *
 * json.h
 *		Read jsonb documents field by field.
 *
 * A container is an object.  A field that is absent and one that is null are
 * both "not there" for all but field_has().  Nothing here raises an error for
 * the wrong type: documents are validated before (document.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_JSON_H
#define BG_JSON_H

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

extern bool field_value(JsonbContainer *object, const char *key,
					   JsonbValue *value);
extern bool field_has(JsonbContainer *object, const char *key);
extern char *field_text(JsonbContainer *object, const char *key);
extern bool field_bool(JsonbContainer *object, const char *key, bool otherwise);
extern JsonbContainer *field_object(JsonbContainer *object, const char *key);
extern List *field_texts(JsonbContainer *object, const char *key);
extern List *field_objects(JsonbContainer *object, const char *key);

/* the elements of an array as JsonbValue *; the pairs of an object */
extern List *field_elements(JsonbContainer *array);
extern List *field_keys(JsonbContainer *object);
extern char *field_string(const JsonbValue *value);

/* append "key": "value", with a comma before it unless it is the first */
extern void field_append(StringInfo json, const char *key, const char *value);
extern void field_append_raw(StringInfo json, const char *key,
							const char *value);

#endif							/* BG_JSON_H */
