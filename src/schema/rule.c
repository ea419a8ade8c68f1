/*-------------------------------------------------------------------------
 *
 * rule.c
 *		The rules of a table as JSON: the argument of its trigger.
 *
 * So a trigger knows all that it needs, whoever's snapshot it runs under, and
 * a change of the rules is a change of the trigger, which every session
 * notices.  A table's owner can make such a trigger by hand, so what is read
 * is not trusted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"

const char *const rule_kind_names[] = {
	[RULE_PAIR] = "pair",
	[RULE_ADD] = "add",
	[RULE_DROP] = "drop"
};

static void
append_optional(StringInfo json, const char *key, const char *value)
{
	if (value != NULL)
		field_append(json, key, value);
}

/* Names and columns, one after the other. */
static void
append_reads(StringInfo json, const char *key, List *reads)
{
	StringInfoData array;
	ListCell   *lc;

	if (reads == NIL)
		return;
	initStringInfo(&array);
	foreach(lc, reads)
	{
		ColumnRead *read = lfirst(lc);

		appendStringInfoString(&array, array.len == 0 ? "[" : ", ");
		escape_json(&array, read->name);
		appendStringInfoString(&array, ", ");
		escape_json(&array, read->column);
	}
	appendStringInfoChar(&array, ']');
	field_append_raw(json, key, array.data);
}

static char *
write_rule(const Rule *rule)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	field_append(&json, "kind", rule_kind_names[rule->kind]);
	append_optional(&json, "old", rule->old_column);
	append_optional(&json, "new", rule->new_column);
	append_optional(&json, "up", rule->up);
	append_reads(&json, "up_reads", rule->up_reads);
	append_optional(&json, "down", rule->down);
	append_reads(&json, "down_reads", rule->down_reads);
	append_optional(&json, "mark", rule->mark);
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * The rules as text.
 */
char *
rules_write(const RuleSet *set)
{
	StringInfoData json;
	StringInfoData rules;
	ListCell   *lc;

	initStringInfo(&rules);
	foreach(lc, set->rules)
	{
		appendStringInfo(&rules, "%s%s", rules.len == 0 ? "[" : ", ",
						 write_rule(lfirst(lc)));
	}
	appendStringInfoString(&rules, rules.len == 0 ? "[]" : "]");
	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	field_append_raw(&json, "change", psprintf("%d", set->change));
	field_append(&json, "name", set->name);
	field_append(&json, "schema", set->schema);
	field_append(&json, "path", set->path);
	field_append(&json, "old_alias", set->old_alias);
	append_optional(&json, "new_alias", set->new_alias);
	field_append_raw(&json, "filled", set->filled ? "true" : "false");
	field_append_raw(&json, "lenient", set->lenient ? "true" : "false");
	field_append_raw(&json, "rules", rules.data);
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* A string that has to be there. */
static char *
require_text(JsonbContainer *object, const char *key)
{
	char	   *text = field_text(object, key);

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("field \"%s\" of the rules of a trigger is missing",
						key)));
	return text;
}

static List *
read_reads(JsonbContainer *rule, const char *key)
{
	List	   *texts = field_texts(rule, key);
	List	   *result = NIL;

	for (int i = 0; i + 1 < list_length(texts); i += 2)
	{
		ColumnRead *read = palloc_object(ColumnRead);

		read->name = list_nth(texts, i);
		read->column = list_nth(texts, i + 1);
		result = lappend(result, read);
	}
	return result;
}

static Rule *
read_rule(JsonbContainer *json)
{
	Rule	   *rule = palloc0_object(Rule);

	rule->kind = enum_lookup(rule_kind_names, lengthof(rule_kind_names),
							 require_text(json, "kind"));
	rule->old_column = field_text(json, "old");
	rule->new_column = field_text(json, "new");
	rule->up = field_text(json, "up");
	if (rule->up != NULL)
		(void) require_text(json, "new");
	rule->up_reads = read_reads(json, "up_reads");
	rule->down = field_text(json, "down");
	if (rule->down != NULL)
		(void) require_text(json, "old");
	rule->down_reads = read_reads(json, "down_reads");
	rule->mark = field_text(json, "mark");
	return rule;
}

/*
 * What rules_write() has written, in the current memory context.  Errors: it
 * is something else.
 */
RuleSet *
rules_read(const char *json)
{
	Jsonb	   *document =
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
	JsonbContainer *root = &document->root;
	RuleSet    *set = palloc0_object(RuleSet);
	JsonbValue	number;
	ListCell   *lc;

	if (field_value(root, "change", &number) && number.type == jbvNumeric)
	{
		Datum		value = NumericGetDatum(number.val.numeric);

		set->change =
			DatumGetInt32(DirectFunctionCall1(numeric_int4, value));
	}
	set->name = require_text(root, "name");
	set->schema = require_text(root, "schema");
	set->path = require_text(root, "path");
	set->old_alias = require_text(root, "old_alias");
	set->new_alias = field_text(root, "new_alias");
	set->filled = field_bool(root, "filled", false);
	set->lenient = field_bool(root, "lenient", false);
	foreach(lc, field_objects(root, "rules"))
	{
		set->rules = lappend(set->rules, read_rule(lfirst(lc)));
	}
	return set;
}
