/*-------------------------------------------------------------------------
 *
 * adopt.c
 *		Session tables of frameworks: what makes them follow the rules of
 *		sessions on both sides, and their mappings.
 *
 * The application goes on as it is.  Its table gets
 *
 *		a column	bluegreen_stamp: when, and on which side, what is in the row
 *					was written (times of a touch excepted)
 *		a trigger	session_rules(), which keeps the stamp and merges rows that
 *					meet (adopt_rules.c)
 *		a table		of tombstones, beside it and of the same owner, for sessions
 *					that were logged out, until they would have expired
 *
 * and REPLICA IDENTITY FULL, so that a change carries the whole row: a touch
 * does not carry data that is stored out of line, and the other side may not
 * have the row.  Both tables are mapped in both directions as upserts, with
 * deletes ignored: a logout comes as a tombstone, the removal of what has
 * expired does not come at all.
 *
 * The stamp is in the row because it must come with it, and is compared when it
 * has come; a table beside it is another row of another statement.
 *
 * Each side is prepared by the table's owner; no role of the other side could.
 * What is done is fixed DDL with the table's names, run as the bootstrap
 * superuser: the triggers are for nobody else to make, since they act as the
 * table's owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "app/adopt.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "commands/trigger.h"
#include "core/definition.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(bluegreen_prepare_sessions);
PG_FUNCTION_INFO_V1(bluegreen_adopt_sessions);
PG_FUNCTION_INFO_V1(bluegreen_release_sessions);

/* A table that gets or loses what the rules need. */
typedef struct Adoption
{
	char	   *schema;
	char	   *table;
	char	   *owner;			/* quoted */
	const char *key;			/* text[] */
	const char *own;			/* text[] */
	const char *rules[RULE_ARGUMENTS];
	const char *rows;			/* table, or "" */
	const char *rows_session;
} Adoption;

/* ---- arguments ---- */

static void
check_table(Oid relid)
{
	char	   *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!owns_table(relid))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, name);
	if (get_rel_relkind(relid) != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not an ordinary table", name)));
	if (get_rel_persistence(relid) != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot adopt table \"%s\" because it is unlogged or temporary",
						name),
				 errhint("Use ALTER TABLE %s SET LOGGED.",
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
													name))));
	if (strlen(name) + strlen(STORE_GONE) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("name of table \"%s\" is too long to put \"%s\" behind it",
						name, STORE_GONE)));
}

/* An option, or what the preset says. */
static const char *
option(const CatalogAccess *access, int column, const char *preset)
{
	char	   *value = catalog_text(access, 0, column);

	return value != NULL ? value : preset;
}

/*
 * Options replace what the preset says.
 */
static SessionStore
read_store(FunctionCallInfo fcinfo, int preset, int options)
{
	SessionStore store;
	CatalogAccess access;
	CatalogArgs args = {0};

	require_argument(fcinfo, preset, "preset");
	store = *session_store_preset(text_to_cstring(PG_GETARG_TEXT_PP(preset)));
	catalog_arg(&args, JSONBOID,
				PG_ARGISNULL(options) ? (Datum) 0 : PG_GETARG_DATUM(options));
	if (PG_ARGISNULL(options))
		args.nulls[0] = 'n';
	catalog_begin(&access);
	catalog_run("SELECT (SELECT array_agg(e)::text "
				" FROM jsonb_array_elements_text($1 -> 'key') e), "
				"(SELECT array_agg(e)::text "
				" FROM jsonb_array_elements_text($1 -> 'touch') e), "
				"(SELECT array_agg(e)::text "
				" FROM jsonb_array_elements_text($1 -> 'own') e), "
				"$1 ->> 'expiry', $1 ->> 'kind', "
				"($1 ->> 'lifetime')::interval::text, "
				"(SELECT string_agg(k, ', ') FROM jsonb_object_keys($1) k "
				" WHERE k NOT IN ('key', 'touch', 'own', 'expiry', 'kind', "
				" 'lifetime'))", &args, SPI_OK_SELECT);
	store.key = option(&access, 1, store.key);
	store.touch = option(&access, 2, store.touch);
	store.own = option(&access, 3, store.own);
	store.expiry = option(&access, 4, store.expiry);
	store.kind = option(&access, 5, store.kind);
	store.lifetime = option(&access, 6, store.lifetime);
	if (catalog_text(&access, 0, 7) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown option of a session table: %s",
						catalog_text(&access, 0, 7)),
				 errhint("Valid options are key, touch, own, expiry, kind and lifetime.")));
	catalog_end(&access);
	if (store.expiry == NULL || strcmp(store.key, "{}") == 0 ||
		expiry_sql(store.kind) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options of the session table are not complete"),
				 errdetail("A custom table needs a key and the column of its expiry; its kind is timestamptz, timestamp, utc, seconds or milliseconds.")));
	return store;
}

static Adoption
describe(Oid relid)
{
	Adoption	a = {0};
	Relation	relation = table_open(relid, AccessShareLock);

	a.schema = get_namespace_name(RelationGetNamespace(relation));
	a.table = pstrdup(RelationGetRelationName(relation));
	a.owner = pstrdup(quote_identifier(GetUserNameFromId(relation->rd_rel->relowner,
														  false)));
	table_close(relation, NoLock);
	return a;
}

static Adoption
sessions_of(Oid relid, const SessionStore *store, const char *side)
{
	Adoption	a = describe(relid);

	a.key = store->key;
	a.own = store->own;
	a.rules[RULE_SIDE] = side;
	a.rules[RULE_KEY] = store->key;
	a.rules[RULE_TOUCH] = store->touch;
	a.rules[RULE_OWN] = store->own;
	a.rules[RULE_EXPIRY] = store->expiry;
	a.rules[RULE_KIND] = store->kind;
	a.rules[RULE_LIFETIME] = store->lifetime;
	a.rules[RULE_PARENT] = "";
	a.rules[RULE_PARENT_KEY] = "";
	a.rows = store->rows == NULL ? "" : psprintf("%s%s", a.table, store->rows);
	a.rows_session = store->rows_session ? store->rows_session : "";
	return a;
}

static Adoption
rows_of(Oid relid, const SessionStore *store, const Adoption *sessions)
{
	Adoption	a = describe(relid);

	a.key = store->rows_key;
	a.own = "{}";
	a.rules[RULE_SIDE] = sessions->rules[RULE_SIDE];
	a.rules[RULE_KEY] = store->rows_key;
	a.rules[RULE_TOUCH] = "{}";
	a.rules[RULE_OWN] = "{}";
	a.rules[RULE_EXPIRY] = "";
	a.rules[RULE_KIND] = "timestamptz";
	a.rules[RULE_LIFETIME] = "0";
	a.rules[RULE_PARENT] = sessions->table;
	a.rules[RULE_PARENT_KEY] = store->session;
	a.rows = "";
	a.rows_session = "";
	return a;
}

/*
 * The table of rows that belong to sessions; invalid if there is to be none.
 */
static Oid
rows_table(Oid relid, const Adoption *sessions)
{
	Oid			rows;

	if (sessions->rows[0] == '\0')
		return InvalidOid;
	rows = get_relname_relid(sessions->rows, get_rel_namespace(relid));
	if (!OidIsValid(rows))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", sessions->schema,
						sessions->rows)));
	check_table(rows);
	return rows;
}

/* ---- preparing a table ---- */

static char *
quoted(const Adoption *a, const char *suffix)
{
	return quote_qualified_identifier(a->schema,
									  psprintf("%s%s", a->table, suffix));
}

/* "a, b", quoted, of a text[] literal */
static char *
column_list(const CatalogAccess *access, const char *array)
{
	CatalogArgs args = {0};

	catalog_arg_text(&args, array);
	catalog_run("SELECT string_agg(quote_ident(c), ', ' ORDER BY o) "
				"FROM unnest($1::text[]) WITH ORDINALITY u (c, o)", &args,
				SPI_OK_SELECT);
	return catalog_text(access, 0, 1);
}

/*
 * Error if the table lacks one of the columns.
 */
static void
check_columns(const CatalogAccess *access, Oid relid, const Adoption *a)
{
	CatalogArgs args = {0};

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	catalog_arg_text(&args, a->rules[RULE_KEY]);
	catalog_arg_text(&args, a->rules[RULE_TOUCH]);
	catalog_arg_text(&args, a->rules[RULE_OWN]);
	catalog_arg_text(&args, a->rules[RULE_EXPIRY]);
	catalog_run("SELECT min(c) FROM unnest($2::text[] || $3::text[] || "
				"$4::text[] || nullif($5, '')) c WHERE c IS NOT NULL "
				"AND NOT EXISTS (SELECT FROM pg_attribute a "
				"WHERE a.attrelid = $1 AND a.attname = c AND a.attnum > 0 "
				"AND NOT a.attisdropped)", &args, SPI_OK_SELECT);
	if (catalog_text(access, 0, 1) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist",
						catalog_text(access, 0, 1), a->table),
				 errhint("Is it the preset of this framework? Names of columns are given as options.")));
}

/*
 * Error if the later of two values of a column could not be found out.
 */
static void
check_touch(Oid relid, const Adoption *a)
{
	ListCell   *lc;

	foreach(lc, store_names(a->rules[RULE_TOUCH]))
	{
		Oid			type = get_atttype(relid, get_attnum(relid, lfirst(lc)));

		if (!OidIsValid(lookup_type_cache(type, TYPECACHE_CMP_PROC)->cmp_proc))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("values of column \"%s\" of table \"%s\" cannot be compared",
							(char *) lfirst(lc), a->table),
					 errdetail("It is of type %s.", format_type_be(type))));
	}
}

/*
 * Error if the expiry cannot be computed from its column.  Casts of a type that
 * is not one of the server's own would be somebody's code, which we do not run
 * here.
 */
static void
check_expiry(Oid relid, const Adoption *a)
{
	CatalogArgs args = {0};
	AttrNumber	n = get_attnum(relid, a->rules[RULE_EXPIRY]);
	Oid			type;

	if (n == InvalidAttrNumber)
		return;					/* rows that belong to sessions have none */
	type = getBaseType(get_atttype(relid, n));
	if (type >= FirstNormalObjectId)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" cannot tell when a session ends",
						a->rules[RULE_EXPIRY], a->table),
				 errdetail("It is of type %s.", format_type_be(type))));
	catalog_arg(&args, type, (Datum) 0);
	args.nulls[0] = 'n';
	catalog_arg_text(&args, a->rules[RULE_LIFETIME]);
	catalog_run(psprintf("SELECT (%s + $2::interval)::timestamptz",
						 expiry_sql(a->rules[RULE_KIND])), &args,
				SPI_OK_SELECT);
}

static void
ddl(const char *sql)
{
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "could not execute \"%s\"", sql);
}

static Oid
find_table(const Adoption *a, const char *suffix)
{
	return get_relname_relid(psprintf("%s%s", a->table, suffix),
							 get_namespace_oid(a->schema, false));
}

static bool
has_trigger(const Adoption *a, const char *suffix)
{
	Oid			relid = find_table(a, suffix);

	return OidIsValid(relid) &&
		OidIsValid(get_trigger_oid(relid, STORE_TRIGGER, true));
}

static void
drop_triggers(const Adoption *a)
{
	static const char *const suffixes[] = {"", STORE_GONE};

	for (int i = 0; i < lengthof(suffixes); i++)
		if (has_trigger(a, suffixes[i]))
		{
			ddl(psprintf("DROP TRIGGER " STORE_TRIGGER " ON %s",
						 quoted(a, suffixes[i])));
			ddl(psprintf("DROP TRIGGER IF EXISTS " STORE_TRUNCATE " ON %s",
						 quoted(a, suffixes[i])));
		}
}

static void
refuse_truncate(const Adoption *a, const char *suffix)
{
	ddl(psprintf("CREATE TRIGGER " STORE_TRUNCATE " BEFORE TRUNCATE ON %s "
				 "FOR EACH STATEMENT "
				 "EXECUTE FUNCTION bluegreen.session_rules()",
				 quoted(a, suffix)));
}

static void
create_triggers(const Adoption *a)
{
	StringInfoData arguments;

	initStringInfo(&arguments);
	for (int i = 0; i < RULE_ARGUMENTS; i++)
		appendStringInfo(&arguments, "%s%s", i > 0 ? ", " : "",
						 quote_literal_cstr(a->rules[i]));
	ddl(psprintf("CREATE TRIGGER " STORE_TRIGGER " BEFORE INSERT OR UPDATE "
				 "OR DELETE ON %s FOR EACH ROW "
				 "EXECUTE FUNCTION bluegreen.session_rules(%s)",
				 quoted(a, ""), arguments.data));
	ddl(psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER " STORE_TRIGGER,
				 quoted(a, "")));
	ddl(psprintf("CREATE TRIGGER " STORE_TRIGGER " BEFORE INSERT OR UPDATE "
				 "ON %s FOR EACH ROW "
				 "EXECUTE FUNCTION bluegreen.session_gone(%s, %s, %s, %s)",
				 quoted(a, STORE_GONE), quote_literal_cstr(a->table),
				 quote_literal_cstr(a->key), quote_literal_cstr(a->rows),
				 quote_literal_cstr(a->rows_session)));
	ddl(psprintf("ALTER TABLE %s ENABLE REPLICA TRIGGER " STORE_TRIGGER,
				 quoted(a, STORE_GONE)));
	refuse_truncate(a, "");
	refuse_truncate(a, STORE_GONE);
}

/*
 * A table of that name that is there already must be of the same owner.
 */
static void
check_gone(const Adoption *a)
{
	Oid			relid = find_table(a, STORE_GONE);

	if (!OidIsValid(relid))
		return;
	if (get_rel_relkind(relid) != RELKIND_RELATION ||
		strcmp(describe(relid).owner, a->owner) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("\"%s\" is not a table of the owner of table \"%s\"",
						quoted(a, STORE_GONE), a->table)));
}

/*
 * Give a table what it needs; again, if some of it is there.
 */
static void
prepare_table(Oid relid, const Adoption *a)
{
	CatalogAccess access;
	char	   *key;

	catalog_begin(&access);
	check_columns(&access, relid, a);
	check_touch(relid, a);
	check_expiry(relid, a);
	check_gone(a);
	key = column_list(&access, a->key);
	drop_triggers(a);
	if (get_attnum(relid, STORE_STAMP) == InvalidAttrNumber)
		ddl(psprintf("ALTER TABLE %s ADD COLUMN " STORE_STAMP
					 " bigint NOT NULL DEFAULT 0", quoted(a, "")));
	ddl(psprintf("ALTER TABLE %s REPLICA IDENTITY FULL", quoted(a, "")));
	if (!OidIsValid(find_table(a, STORE_GONE)))
	{
		ddl(psprintf("CREATE TABLE %s AS SELECT %s FROM %s WITH NO DATA",
					 quoted(a, STORE_GONE), key, quoted(a, "")));
		ddl(psprintf("ALTER TABLE %s ADD COLUMN " STORE_UNTIL
					 " timestamptz NOT NULL, ADD COLUMN " STORE_STAMP
					 " bigint NOT NULL, ADD PRIMARY KEY (%s)",
					 quoted(a, STORE_GONE), key));
		ddl(psprintf("ALTER TABLE %s OWNER TO %s", quoted(a, STORE_GONE),
					 a->owner));
	}
	create_triggers(a);
	catalog_end(&access);
}

static void
prepare(Oid relid, const SessionStore *store, const char *side)
{
	Adoption	sessions = sessions_of(relid, store, side);
	Oid			rows = rows_table(relid, &sessions);

	prepare_table(relid, &sessions);
	if (OidIsValid(rows))
	{
		Adoption	a = rows_of(rows, store, &sessions);

		prepare_table(rows, &a);
	}
}

/*
 * bluegreen.prepare_sessions(source regclass, preset text, side text, options
 * jsonb): have a framework's session table follow the rules of sessions on this
 * side.  For its owner.  Locks it exclusively until the end of the transaction.
 */
Datum
bluegreen_prepare_sessions(PG_FUNCTION_ARGS)
{
	SessionStore store;
	char	   *side;

	require_argument(fcinfo, 0, "source");
	require_argument(fcinfo, 2, "side");
	require_writable("bluegreen.prepare_sessions");
	side = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (strcmp(side, "blue") != 0 && strcmp(side, "green") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"", "side",
						side),
				 errhint("Valid values are \"%s\" and \"%s\".", "blue",
						 "green")));
	check_table(PG_GETARG_OID(0));
	store = read_store(fcinfo, 1, 3);
	prepare(PG_GETARG_OID(0), &store, side);
	PG_RETURN_VOID();
}

/*
 * bluegreen.release_sessions(source regclass): take all of that away again.
 * Errors: the table is mapped.
 */
Datum
bluegreen_release_sessions(PG_FUNCTION_ARGS)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Adoption	a;

	require_argument(fcinfo, 0, "source");
	require_writable("bluegreen.release_sessions");
	check_table(PG_GETARG_OID(0));
	a = describe(PG_GETARG_OID(0));
	check_gone(&a);
	catalog_begin(&access);
	catalog_arg(&args, OIDOID, PG_GETARG_DATUM(0));
	if (catalog_run("SELECT FROM bluegreen.table_mapping WHERE source = $1",
					&args, SPI_OK_SELECT) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("table \"%s\" is mapped", a.table),
				 errhint("Use bluegreen.unmap_table() first, or release it when the deployment is gone.")));
	drop_triggers(&a);
	if (get_attnum(PG_GETARG_OID(0), STORE_STAMP) != InvalidAttrNumber)
		ddl(psprintf("ALTER TABLE %s DROP COLUMN " STORE_STAMP,
					 quoted(&a, "")));
	if (OidIsValid(find_table(&a, STORE_GONE)))
		ddl(psprintf("DROP TABLE %s", quoted(&a, STORE_GONE)));
	catalog_end(&access);
	PG_RETURN_VOID();
}

/* ---- mappings ---- */

/*
 * Map one table in both directions.
 */
static void
map_both(const char *deployment, const Adoption *a, const char *suffix)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	const char *const directions[] = {"forward", "backward"};
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *transform;
	Datum		values[5];

	catalog_begin(&access);
	catalog_arg_text(&args, quoted(a, suffix));
	catalog_arg_text(&args, a->own);
	catalog_run("SELECT format('SELECT %s FROM %s', string_agg("
				"quote_ident(attname), ', ' ORDER BY attnum), $1) "
				"FROM pg_attribute WHERE attrelid = $1::regclass "
				"AND attnum > 0 AND NOT attisdropped AND attgenerated = '' "
				"AND attname <> ALL ($2::name[])", &args, SPI_OK_SELECT);
	transform = catalog_text(&access, 0, 1);
	catalog_end(&access);
	values[0] = CStringGetTextDatum(deployment);
	values[1] = CStringGetTextDatum(quoted(a, suffix));
	values[2] = CStringGetTextDatum(transform);
	values[3] = CStringGetTextDatum(a->key);
	for (int i = 0; i < lengthof(directions); i++)
	{
		values[4] = CStringGetTextDatum(directions[i]);
		if (SPI_execute_with_args("SELECT bluegreen.map_table($1::name, $2, "
								  "transform => $3, key => $4::text[], "
								  "on_write => 'merge', on_delete => 'ignore', "
								  "direction => $5)", 5, types, values, NULL,
								  false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not map sessions");
	}
}

static pg_noreturn void
not_prepared(const char *side, const char *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table %s on %s is not prepared for sessions", table, side),
			 errhint("As its owner, on %s: SELECT bluegreen.prepare_sessions(%s, preset, '%s');",
					 side, quote_literal_cstr(table), side)));
}

static pg_noreturn void
other_options(const char *side, const char *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table %s on %s is prepared for sessions with another preset, other options, or as the other side",
					table, side),
			 errhint("Give the same preset and options to bluegreen.prepare_sessions() on both sides and to bluegreen.adopt_sessions().")));
}

/*
 * pg_trigger.tgargs of the rules on a side, in hexadecimal.
 */
static char *
rules_hex(const Adoption *a, const char *side)
{
	StringInfoData rules;
	char	   *hex;

	initStringInfo(&rules);
	for (int i = 0; i < RULE_ARGUMENTS; i++)
	{
		appendStringInfoString(&rules, i == RULE_SIDE ? side : a->rules[i]);
		appendStringInfoChar(&rules, '\0');
	}
	hex = palloc0(2 * rules.len + 1);
	hex_encode(rules.data, rules.len, hex);
	return hex;
}

static void
check_prepared_here(Oid relid, const Adoption *a)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	if (!has_trigger(a, "") || !has_trigger(a, STORE_GONE))
		not_prepared("blue", quoted(a, ""));
	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	catalog_arg_text(&args, rules_hex(a, "blue"));
	if (catalog_run("SELECT FROM pg_trigger WHERE tgrelid = $1 "
					"AND tgname = '" STORE_TRIGGER "' AND tgenabled = 'A' "
					"AND encode(tgargs, 'hex') = $2", &args,
					SPI_OK_SELECT) != 1)
		other_options("blue", quoted(a, ""));
	catalog_end(&access);
}

static void
check_prepared_there(Peer *peer, const Adoption *a)
{
	const char *args[] = {quoted(a, ""), rules_hex(a, "green")};
	PeerResult *result;

	result = peer_query(peer,
						"SELECT pg_catalog.encode(tgargs, 'hex') = $2 "
						"FROM pg_catalog.pg_trigger "
						"WHERE tgrelid = pg_catalog.to_regclass($1) "
						"AND tgname = '" STORE_TRIGGER "' AND tgenabled = 'A'",
						2, args);
	if (result->ntuples != 1)
		not_prepared("green", args[0]);
	if (result->values[0][0][0] != 't')
		other_options("green", args[0]);
}

/*
 * Error unless both sides' tables were prepared, in the same way: a side that
 * takes another session for expired would log out the other one's users.  Green
 * looks at blue's by itself, so blue's must have been committed.
 */
static void
check_prepared(Peer *peer, Oid relid, const Adoption *a)
{
	check_prepared_here(relid, a);
	check_prepared_there(peer, a);
}

/*
 * bluegreen.adopt_sessions(deployment name, source regclass, preset text,
 * options jsonb) returns integer: map a framework's session table, with its
 * tombstones, in both directions; how many mappings.  Errors: those of
 * map_table(); one side is not prepared.
 */
Datum
bluegreen_adopt_sessions(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	SessionStore store;
	Adoption	sessions;
	Adoption	attributes;
	Oid			rows;
	Peer	   *peer;
	int			n = 4;

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "source");
	require_writable("bluegreen.adopt_sessions");
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	if (deployment->direction != 'f')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sessions are adopted on blue")));
	check_table(PG_GETARG_OID(1));
	store = read_store(fcinfo, 2, 3);
	sessions = sessions_of(PG_GETARG_OID(1), &store, "blue");
	rows = rows_table(PG_GETARG_OID(1), &sessions);
	peer = registry_connect(deployment, false);
	check_prepared(peer, PG_GETARG_OID(1), &sessions);
	if (OidIsValid(rows))
	{
		attributes = rows_of(rows, &store, &sessions);
		check_prepared(peer, rows, &attributes);
	}
	peer_close(peer);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	map_both(deployment->name, &sessions, "");
	map_both(deployment->name, &sessions, STORE_GONE);
	if (OidIsValid(rows))
	{
		map_both(deployment->name, &attributes, "");
		map_both(deployment->name, &attributes, STORE_GONE);
		n = 8;
	}
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	PG_RETURN_INT32(n);
}
