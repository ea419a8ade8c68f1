/*-------------------------------------------------------------------------
 *
 * adopt_preset.c
 *		What the session tables of frameworks are like, as their migrations
 *		make them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "app/adopt.h"
#include "compat.h"

/*
 * How frameworks keep the time at which a session ends: as a timestamptz, given
 * the column as $1.
 */
static const char *const expiry_kinds[][2] = {
	{"timestamptz", "$1"},
	{"timestamp", "$1::timestamptz"},	/* in the sessions' TimeZone */
	{"utc", "($1 AT TIME ZONE 'UTC')"},
	/* "never" is the largest bigint; what is far enough will do */
	{"seconds", "to_timestamp(least($1, 32503680000)::float8)"},
	{"milliseconds",
	"to_timestamp((least($1, 32503680000000) / 1000.0)::float8)"},
};

static const SessionStore presets[] = {
	{
		"connect-pg-simple", "{sid}", "{expire}", "{}",
		"expire", "timestamp", "0"
	},
	{
		"spring-session", "{primary_id}", "{last_access_time,expiry_time}",
		"{}", "expiry_time", "milliseconds", "0",
		"_attributes", "{session_primary_id,attribute_name}",
		"session_primary_id", "primary_id"
	},
	{
		"django", "{session_key}", "{expire_date}", "{}",
		"expire_date", "timestamptz", "0"
	},
	{							/* db:sessions:trim removes after 30 days */
		"rails", "{session_id}", "{updated_at}", "{id}",
		"updated_at", "utc", "30 days"
	},
	{							/* config/session.php: lifetime 120 */
		"laravel", "{id}", "{last_activity}", "{}",
		"last_activity", "seconds", "120 minutes"
	},
	{
		"symfony", "{sess_id}", "{sess_lifetime,sess_time}", "{}",
		"sess_lifetime", "seconds", "0"
	},
	{							/* all of it by options */
		"custom", "{}", "{}", "{}", NULL, "timestamptz", "0"
	}
};

/*
 * SQL of a kind of that name, or NULL.
 */
const char *
expiry_sql(const char *kind)
{
	for (int i = 0; i < lengthof(expiry_kinds); i++)
		if (strcmp(expiry_kinds[i][0], kind) == 0)
			return expiry_kinds[i][1];
	return NULL;
}

/*
 * A preset; error if there is none of that name.
 */
const SessionStore *
session_store_preset(const char *name)
{
	for (int i = 0; i < lengthof(presets); i++)
		if (strcmp(presets[i].name, name) == 0)
			return &presets[i];
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown preset of session tables: \"%s\"", name),
			 errhint("Valid presets are connect-pg-simple, spring-session, django, rails, laravel, symfony and custom.")));
	return NULL;				/* keep compiler quiet */
}
