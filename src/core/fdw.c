/*-------------------------------------------------------------------------
 *
 * fdw.c
 *		The validator of foreign-data wrapper pg_bluegreen.
 *
 * The wrapper has no handler: its servers only say where a peer is, and their
 * user mappings who connects to it.  Options are those of the installed libpq,
 * so that a new one needs no change here.  By default an option belongs to the
 * server, and a secret one to the user mapping; a table holds the exceptions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "core/peer.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/guc.h"

/* Where an option may stand: a set of these. */
#define ON_SERVER			0x01
#define ON_MAPPING			0x02
/* Only a superuser may set it at all ... */
#define SUPERUSER_ONLY		0x04
/* ... or to false. */
#define SUPERUSER_FALSE		0x08

typedef struct OptionRule
{
	const char *keyword;
	bool		is_prefix;
	int			flags;
} OptionRule;

/*
 * What differs from the default.  Files are named by superusers only, because
 * the server reads them with its own rights and tells what it finds; who connects is no matter of the
 * server; and what we set ourselves nobody else may.
 */
static const OptionRule option_rules[] = {
	{"user", false, ON_MAPPING},
	{"passfile", false, ON_MAPPING | SUPERUSER_ONLY},
	{"sslcert", false, ON_SERVER | ON_MAPPING | SUPERUSER_ONLY},
	{"sslkey", false, ON_SERVER | ON_MAPPING | SUPERUSER_ONLY},
	{"sslrootcert", false, ON_SERVER | SUPERUSER_ONLY},
	{"sslcrl", true, ON_SERVER | SUPERUSER_ONLY},	/* and sslcrldir */
	{"servicefile", false, ON_SERVER | SUPERUSER_ONLY},
	{"password_required", false, ON_MAPPING | SUPERUSER_FALSE},
	{"application_name", false, 0},
	{"fallback_application_name", false, 0},
	{"client_encoding", false, 0},
	{"replication", false, 0},
	/* its flow talks on stderr and waits without looking at interrupts */
	{"oauth_", true, 0},
};

PG_FUNCTION_INFO_V1(bluegreen_fdw_validator);

/* Where an option may stand, and for whom. */
static int
option_flags(const char *keyword, bool secret)
{
	for (int i = 0; i < lengthof(option_rules); i++)
	{
		const OptionRule *rule = &option_rules[i];

		if (rule->is_prefix ?
			strncmp(keyword, rule->keyword, strlen(rule->keyword)) == 0 :
			strcmp(keyword, rule->keyword) == 0)
			return rule->flags;
	}
	return secret ? ON_MAPPING : ON_SERVER;
}

/* The flags of an option by its name; 0 if there is no such option. */
static int
lookup_option(const char *keyword)
{
	int			count;
	const PeerOption *options = peer_options(&count);

	if (strcmp(keyword, "password_required") == 0)
		return option_flags(keyword, false);
	for (int i = 0; i < count; i++)
	{
		if (strcmp(options[i].keyword, keyword) == 0)
			return options[i].debug ? 0 :
				option_flags(keyword, options[i].secret);
	}
	return 0;
}

/* Comma-separated options that may stand at a place. */
static char *
valid_options(int place)
{
	int			count;
	const PeerOption *options = peer_options(&count);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < count; i++)
	{
		if (!options[i].debug &&
			(option_flags(options[i].keyword, options[i].secret) & place))
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
							 options[i].keyword);
	}
	if (place == ON_MAPPING)
		appendStringInfoString(&buf, ", password_required");
	return buf.data;
}

/* Refuse an option that does not belong at a place (0: none does). */
static void
check_option(const DefElem *def, int flags, int place)
{
	if (place == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("invalid option \"%s\"", def->defname),
				 errhint("There are no valid options in this context.")));
	if ((flags & place) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("invalid option \"%s\"", def->defname),
				 errhint("Valid options in this context are: %s",
						 valid_options(place))));
}

/*
 * Refuse an option that is for superusers.  ALTER shows us the options that
 * were there before as well, so that nobody else can alter what a superuser
 * has opened.
 */
static void
check_privilege(DefElem *def, int flags, int place)
{
	bool		is_false = (flags & SUPERUSER_FALSE) != 0 &&
		!defGetBoolean(def);

	if (superuser())
		return;
	if (is_false)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("password_required=false is superuser-only"),
				 errhint("User mappings with the password_required option set to false may only be created or modified by the superuser.")));
	/* the certificates of the system, which is no file that one can choose */
	if (strcmp(def->defname, "sslrootcert") == 0 &&
		strcmp(defGetString(def), "system") == 0)
		return;
	if (flags & SUPERUSER_ONLY)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 place == ON_MAPPING ?
				 errmsg("permission denied to set option \"%s\" of a user mapping",
						def->defname) :
				 errmsg("permission denied to set option \"%s\" of a server",
						def->defname),
				 errdetail("The option names a file on the database server."),
				 place == ON_MAPPING ?
				 errhint("User mappings with this option may only be created or modified by the superuser.") :
				 errhint("Servers with this option may only be created or modified by the superuser.")));
}

/*
 * libpq checks values when it connects, except this one, which it does not
 * read itself when it must not block.
 */
static void
check_value(DefElem *def)
{
	int			seconds;

	if (strcmp(def->defname, "connect_timeout") == 0 &&
		!parse_int(defGetString(def), &seconds, 0, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for integer option \"%s\": %s",
						def->defname, defGetString(def)),
				 errhint("Give a number of seconds.")));
}

/*
 * bluegreen.fdw_validator(options text[], catalog oid) returns void
 *
 * Called by CREATE and ALTER of the wrapper, its servers and user mappings,
 * with all options the object would have.  Raises an error for the first that
 * is unknown, misplaced or not the user's to set.
 */
Datum
bluegreen_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	int			place = 0;
	ListCell   *lc;

	if (catalog == ForeignServerRelationId)
		place = ON_SERVER;
	else if (catalog == UserMappingRelationId)
		place = ON_MAPPING;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		int			flags = lookup_option(def->defname);

		check_option(def, flags, place);
		check_value(def);
		check_privilege(def, flags, place);
	}
	PG_RETURN_VOID();
}
