/*-------------------------------------------------------------------------
 *
 * change.c
 *		Changes as rows: define them, add operations, drop them, and their
 *		state.
 *
 * A change is run by one worker (worker.c).  Only that worker and the three
 * procedures (call.c) set the state, each by comparing it with what they have
 * read.  The worker holds a session lock on the change while it lives, which
 * survives its commits and ends with it, however it ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/event.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "schema/change.h"
#include "schema/json.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(bluegreen_create_change);
PG_FUNCTION_INFO_V1(bluegreen_drop_change);
PG_FUNCTION_INFO_V1(bluegreen_add_operation);
PG_FUNCTION_INFO_V1(bluegreen_pause_backfill);
PG_FUNCTION_INFO_V1(bluegreen_set_change_owner);

const char *const change_state_names[] = {
	[CHANGE_DEFINED] = "defined",
	[CHANGE_EXPANDING] = "expanding",
	[CHANGE_BACKFILLING] = "backfilling",
	[CHANGE_VALIDATING] = "validating",
	[CHANGE_EXPANDED] = "expanded",
	[CHANGE_RETIRING] = "retiring",
	[CHANGE_REVERTIBLE] = "revertible",
	[CHANGE_REVERTING] = "reverting",
	[CHANGE_CONTRACTING] = "contracting",
	[CHANGE_CONTRACTED] = "contracted",
	[CHANGE_UNDOING] = "undoing",
	[CHANGE_UNDONE] = "undone"
};

#define CHANGE_SQL \
	"SELECT id, name::text, owner, schema::text, path, version_schema::text, " \
	"operations, state, paused, error_sqlstate, error_message, error_detail, " \
	"error_hint, revert_until FROM bluegreen.schema_change WHERE "

/* Which server this is: another one has another number or timeline. */
#define SERVER_SQL \
	"((SELECT system_identifier::text FROM pg_control_system()) || ' ' " \
	"|| left(pg_walfile_name(pg_current_wal_lsn()), 8))"

/* ---- rows ---- */

static Change *
read_change(const CatalogAccess *access)
{
	Change	   *change = MemoryContextAllocZero(access->context,
												sizeof(Change));
	char	   *state = catalog_text(access, 0, 8);
	MemoryContext oldcontext = MemoryContextSwitchTo(access->context);
	bool		isnull;

	change->id = DatumGetInt32(catalog_value(0, 1, NULL));
	change->name = catalog_text(access, 0, 2);
	change->owner = DatumGetObjectId(catalog_value(0, 3, NULL));
	change->schema = catalog_text(access, 0, 4);
	change->path = catalog_text(access, 0, 5);
	change->version_schema = catalog_text(access, 0, 6);
	change->operations =
		DatumGetJsonbPCopy(catalog_value(0, 7, NULL));
	change->state = enum_lookup(change_state_names,
								lengthof(change_state_names), state);
	change->paused = DatumGetBool(catalog_value(0, 9, NULL));
	change->sqlstate = catalog_text(access, 0, 10);
	change->message = catalog_text(access, 0, 11);
	change->detail = catalog_text(access, 0, 12);
	change->hint = catalog_text(access, 0, 13);
	change->revert_until =
		DatumGetTimestampTz(catalog_value(0, 14, &isnull));
	if (isnull)
		change->revert_until = 0;
	MemoryContextSwitchTo(oldcontext);
	return change;
}

/*
 * A change by its id, in the caller's context; NULL if there is none.  Needs a
 * transaction with a snapshot.
 */
Change *
change_load(int32 id)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Change	   *change = NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	if (catalog_run(CHANGE_SQL "id = $1", &args, SPI_OK_SELECT) > 0)
		change = read_change(&access);
	catalog_end(&access);
	return change;
}

static void
check_is_owner(const Change *change)
{
	if (!has_privs_of_role(GetUserId(), change->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of change \"%s\"", change->name)));
}

/*
 * A change by its name.  Errors: there is none; the caller has not the rights
 * of its owner.
 */
Change *
change_by_name(const char *name)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Change	   *change = NULL;

	catalog_begin(&access);
	catalog_arg_name(&args, name);
	if (catalog_run(CHANGE_SQL "name = $1", &args, SPI_OK_SELECT) > 0)
		change = read_change(&access);
	catalog_end(&access);
	if (change == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("change \"%s\" does not exist", name)));
	check_is_owner(change);
	return change;
}

/*
 * Lock the change's row until the end of the transaction, and read its state
 * and owner again: the worker marks no step as done meanwhile.  Error: the
 * caller has not the owner's rights any more, whom he may have waited for.
 */
void
change_lock_row(Change *change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	n = catalog_run("SELECT state, owner FROM bluegreen.schema_change "
					"WHERE id = $1 FOR UPDATE", &args, SPI_OK_SELECT);
	if (n > 0)
	{
		change->state = enum_lookup(change_state_names,
									lengthof(change_state_names),
									catalog_text(&access, 0, 1));
		change->owner = DatumGetObjectId(catalog_value(0, 2, NULL));
	}
	catalog_end(&access);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("change \"%s\" does not exist", change->name)));
	check_is_owner(change);
}

/*
 * For how long the contract can be undone.
 */
void
change_set_window(int32 id, int seconds)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	catalog_arg_int4(&args, seconds);
	(void) catalog_run("UPDATE bluegreen.schema_change "
					   "SET revert_window = $2 * interval '1 s' "
					   "WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * A worker has found the change in its window, which began before it was
 * started.  If the server is another one by now (a restored backup, a standby
 * that was promoted), the window begins anew: nobody may have seen its end.  In
 * any case some minutes are left.
 */
void
change_keep_window(int32 id)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	(void) catalog_run("UPDATE bluegreen.schema_change SET "
					   "revert_until = greatest(revert_until, "
					   "clock_timestamp() + CASE WHEN revert_server = "
					   SERVER_SQL " THEN least(revert_window, "
					   "interval '5 min') ELSE revert_window END), "
					   "revert_server = " SERVER_SQL
					   " WHERE id = $1 AND state = 'revertible'", &args,
					   SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Error if the change's owner was dropped.  It does not simply belong to whoever
 * calls, who is a superuser then: what the document says would have his rights.
 */
void
change_require_owner(const Change *change)
{
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(change->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("owner of change \"%s\" was dropped", change->name),
				 errdetail("Its document is carried out with the rights of its owner."),
				 errhint("Look at the document, and give the change another owner: bluegreen.set_change_owner().")));
}

/*
 * Compare and set the state; also forgets the last error.  False if the state
 * was another one.
 */
bool
change_set_state(int32 id, ChangeState from, ChangeState to)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	catalog_arg_text(&args, change_state_names[from]);
	catalog_arg_text(&args, change_state_names[to]);
	n = catalog_run("UPDATE bluegreen.schema_change SET state = $3, "
					"starts = 0, "
					"version_oid = CASE WHEN $3 = 'undone' THEN 0 "
					"ELSE version_oid END, "
					"error_sqlstate = NULL, error_message = NULL, "
					"error_detail = NULL, error_hint = NULL, "
					"revert_until = CASE WHEN $3 = 'revertible' "
					"THEN CASE WHEN $2 = $3 THEN revert_until "
					"ELSE clock_timestamp() + revert_window END END, "
					"revert_server = CASE WHEN $3 = 'revertible' "
					"THEN CASE WHEN $2 = $3 THEN revert_server ELSE "
					SERVER_SQL " END END, "
					"state_since = CASE WHEN $2 = $3 THEN state_since "
					"ELSE clock_timestamp() END, "
					"expanded_at = CASE WHEN $3 = 'expanded' "
					"THEN clock_timestamp() ELSE expanded_at END, "
					"contracted_at = CASE WHEN $3 = 'contracted' "
					"THEN clock_timestamp() ELSE contracted_at END "
					"WHERE id = $1 AND state = $2", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	return n > 0;
}

/*
 * Keep the error that ends the worker.  False if the state was another one:
 * nobody wants to know any more.
 */
bool
change_set_error(int32 id, ChangeState state, const ErrorData *error)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	catalog_arg_text(&args, unpack_sql_state(error->sqlerrcode));
	catalog_arg_text(&args, error->message);
	catalog_arg_text(&args, error->detail);
	catalog_arg_text(&args, error->hint);
	catalog_arg_text(&args, change_state_names[state]);
	n = catalog_run("UPDATE bluegreen.schema_change SET starts = 0, "
					"error_sqlstate = $2, error_message = $3, "
					"error_detail = $4, error_hint = $5 "
					"WHERE id = $1 AND state = $6", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	return n > 0;
}

/*
 * An event of a change, in the current transaction.
 */
void
change_event(const Change *change, EventKind kind, const char *message,
			 const char *detail)
{
	event_record_local(0, kind, InvalidXLogRecPtr,
					   psprintf("change \"%s\": %s", change->name, message),
					   detail);
}

/*
 * A worker begins to do something.  Returns how many have done so since last
 * something came of it: progress, an error, or that it had to wait.
 */
int
change_count_start(int32 id)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int			result = 0;

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	if (catalog_run("UPDATE bluegreen.schema_change SET starts = starts + 1 "
					"WHERE id = $1 RETURNING starts", &args,
					SPI_OK_UPDATE_RETURNING) > 0)
		result = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return result;
}

/*
 * Something came of it.
 */
void
change_forget_starts(int32 id)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	(void) catalog_run("UPDATE bluegreen.schema_change SET starts = 0 "
					   "WHERE id = $1 AND starts <> 0", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/* ---- the lock of who runs it ---- */

static void
change_locktag(LOCKTAG *tag, int32 id)
{
	Oid			relation = get_relname_relid("schema_change",
											 get_namespace_oid(BG_SCHEMA,
															   false));

	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, relation, (Oid) id, 0);
	/* an error releases session locks of the other kind */
	tag->locktag_lockmethodid = USER_LOCKMETHOD;
}

/*
 * Take the lock under which a change is run, for the session; false if
 * somebody else has it.
 */
bool
change_try_lock(int32 id)
{
	LOCKTAG		tag;

	change_locktag(&tag, id);
	return LockAcquire(&tag, ExclusiveLock, true, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

void
change_unlock(int32 id)
{
	LOCKTAG		tag;

	change_locktag(&tag, id);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/*
 * Let whoever works on the change look at its state again now: what he does may
 * take long, and not be wanted any more.
 */
void
change_interrupt(int32 id)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, id);
	/* not who only looks whether there is one */
	(void) catalog_run("SELECT pg_cancel_backend(pid) FROM pg_locks "
					   "JOIN pg_stat_activity USING (pid) "
					   "WHERE locktype = 'object' AND granted "
					   "AND mode = 'ExclusiveLock' "
					   "AND backend_type = 'pg_bluegreen change' "
					   "AND database = (SELECT oid FROM pg_database "
					   "WHERE datname = current_database()) "
					   "AND classid = 'bluegreen.schema_change'::regclass "
					   "AND objid::bigint = $1",
					   &args, SPI_OK_SELECT);
	catalog_end(&access);
}

/* ---- create ---- */

/*
 * The search_path for what the document says: the change's schema, then what
 * the caller's path is now.
 */
static char *
document_path(Oid schema)
{
	StringInfoData path;
	ListCell   *lc;

	initStringInfo(&path);
	appendStringInfoString(&path,
						   quote_identifier(get_namespace_name(schema)));
	foreach(lc, fetch_search_path(false))
	{
		Oid			oid = lfirst_oid(lc);

		if (oid != schema && !isTempOrTempToastNamespace(oid))
			appendStringInfo(&path, ", %s",
							 quote_identifier(get_namespace_name(oid)));
	}
	appendStringInfoString(&path, ", pg_temp");
	return path.data;
}

/* Workers are sessions of the owner. */
static void
check_owner_can_log_in(Oid owner)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	bool		login;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for role %u", owner);
	login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!login)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" cannot own a change, because it may not log in",
						GetUserNameFromId(owner, false)),
				 errdetail("A change is worked on by a session of its owner."),
				 errhint("Use ALTER ROLE %s LOGIN.",
						 quote_identifier(GetUserNameFromId(owner, false)))));
}

/* A change is for who may create in the schema. */
static void
check_may_create(Oid schema, Oid owner)
{
	AclResult	result = pg_namespace_aclcheck(schema, owner, ACL_CREATE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_SCHEMA, get_namespace_name(schema));
}

/* The schema that a change is in. */
static Oid
change_schema(FunctionCallInfo fcinfo, int argument)
{
	List	   *path = fetch_search_path(false);
	Oid			schema;

	if (!PG_ARGISNULL(argument))
		schema = get_namespace_oid(NameStr(*PG_GETARG_NAME(argument)), false);
	else if (path == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_SCHEMA),
				 errmsg("no schema has been selected to change"),
				 errhint("Set \"search_path\", or name the schema.")));
	else
		schema = linitial_oid(path);
	if (IsCatalogNamespace(schema) || isAnyTempNamespace(schema) ||
		schema == get_namespace_oid(BG_SCHEMA, true))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("schema \"%s\" cannot be changed",
						get_namespace_name(schema))));
	return schema;
}

static void
check_name(const char *name, const char *version_schema)
{
	if (*name == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("name of a change must not be empty")));
	if (strlen(version_schema) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("name \"%s\" of the version's schema is too long",
						version_schema),
				 errhint("Choose a shorter name, or give \"version_schema\".")));
}

/*
 * The operations of what was given: an array, or a whole pgroll document.
 * version is set to its version_schema, if it names one.
 */
static Jsonb *
given_operations(Jsonb *given, char **version)
{
	JsonbValue	value;
	ListCell   *lc;

	if (!JsonContainerIsObject(&given->root))
		return given;
	foreach(lc, field_keys(&given->root))
	{
		char	   *key = lfirst(lc);

		if (strcmp(key, "name") != 0 && strcmp(key, "version_schema") != 0 &&
			strcmp(key, "operations") != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("field \"%s\" of the document is not known", key)));
	}
	*version = field_text(&given->root, "version_schema");
	if (!field_value(&given->root, "operations", &value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("field \"%s\" of the document is missing",
						"operations")));
	return JsonbValueToJsonb(&value);
}

/*
 * What changes add has their number in its name.  After DROP EXTENSION numbers
 * begin again, but what changes have added is still there: leave those out.
 */
static void
skip_used_numbers(void)
{
	(void) catalog_run("SELECT setval(s.id, m.used) FROM ("
					   "SELECT max(substring(n.name "
					   "FROM '^(?:zz_)?bluegreen_([0-9]{1,9})')::bigint) "
					   "FROM (SELECT attname::text FROM pg_attribute "
					   "WHERE attnum > 0 UNION ALL "
					   "SELECT tgname::text FROM pg_trigger UNION ALL "
					   "SELECT conname::text FROM pg_constraint UNION ALL "
					   "SELECT relname::text FROM pg_class) n (name) "
					   "WHERE n.name LIKE '%bluegreen\\_%') m (used), "
					   "(SELECT pg_get_serial_sequence("
					   "'bluegreen.schema_change', 'id')::regclass) s (id) "
					   "WHERE m.used > coalesce(pg_sequence_last_value(s.id), 0)",
					   NULL, SPI_OK_SELECT);
}

static int32
insert_change(const char *name, Oid schema, const char *version_schema,
			  Jsonb *operations)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *path = document_path(schema);
	int32		id = 0;

	catalog_begin(&access);
	skip_used_numbers();
	catalog_arg_name(&args, name);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(access.userid));
	catalog_arg_name(&args, get_namespace_name(schema));
	catalog_arg_text(&args, path);
	catalog_arg_name(&args, version_schema);
	catalog_arg(&args, JSONBOID, JsonbPGetDatum(operations));
	if (catalog_run("INSERT INTO bluegreen.schema_change "
					"(name, owner, schema, path, version_schema, operations) "
					"VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING "
					"RETURNING id", &args, SPI_OK_INSERT_RETURNING) > 0)
		id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	if (id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("change \"%s\" or one with schema \"%s\" already exists",
						name, version_schema)));
	return id;
}

/*
 * bluegreen.create_change(name name, operations jsonb, schema name) returns
 * integer: the new change's id; it belongs to the current user.  Errors: a
 * document that is not valid, a name that is taken, an owner that may not log
 * in, or not create in the schema.
 */
Datum
bluegreen_create_change(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *version = NULL;
	Jsonb	   *operations;
	Oid			schema;

	require_argument(fcinfo, 0, "name");
	require_argument(fcinfo, 1, "operations");
	require_writable("bluegreen.create_change()");
	name = NameStr(*PG_GETARG_NAME(0));
	operations = given_operations(PG_GETARG_JSONB_P(1), &version);
	(void) document_read(operations);
	schema = change_schema(fcinfo, 2);
	version = psprintf("%s_%s", get_namespace_name(schema),
					   version ? version : name);
	check_name(name, version);
	check_owner_can_log_in(GetUserId());
	check_may_create(schema, GetUserId());
	PG_RETURN_INT32(insert_change(name, schema, version, operations));
}

/* Error unless nothing has been done for a change, or all is undone. */
static void
require_idle(const Change *change)
{
	if (change->state != CHANGE_DEFINED && change->state != CHANGE_UNDONE &&
		change->state != CHANGE_CONTRACTED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("change \"%s\" is %s", change->name,
						change_state_names[change->state]),
				 errhint("Use CALL bluegreen.undo(%s) first.",
						 quote_literal_cstr(change->name))));
}

/*
 * bluegreen.drop_change(name name): forget a change that is not under way.
 * After the contract its views stay.
 */
Datum
bluegreen_drop_change(PG_FUNCTION_ARGS)
{
	Change	   *change;
	CatalogAccess access;
	CatalogArgs args = {0};

	require_argument(fcinfo, 0, "name");
	require_writable("bluegreen.drop_change()");
	change = change_by_name(NameStr(*PG_GETARG_NAME(0)));
	require_idle(change);
	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg_text(&args, change_state_names[change->state]);
	if (catalog_run("DELETE FROM bluegreen.schema_change WHERE id = $1 "
					"AND state = $2", &args, SPI_OK_DELETE) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("change \"%s\" was changed by somebody else",
						change->name)));
	catalog_end(&access);
	PG_RETURN_VOID();
}

/*
 * bluegreen.pause_backfill(change name, paused boolean): let the backfill
 * rest, or go on.
 */
Datum
bluegreen_pause_backfill(PG_FUNCTION_ARGS)
{
	Change	   *change;
	CatalogAccess access;
	CatalogArgs args = {0};

	require_argument(fcinfo, 0, "change");
	require_argument(fcinfo, 1, "paused");
	require_writable("bluegreen.pause_backfill()");
	change = change_by_name(NameStr(*PG_GETARG_NAME(0)));
	change_lock_row(change);
	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg(&args, BOOLOID, BoolGetDatum(PG_GETARG_BOOL(1)));
	(void) catalog_run("UPDATE bluegreen.schema_change SET paused = $2 "
					   "WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	PG_RETURN_VOID();
}

/*
 * bluegreen.set_change_owner(change name, owner name): the change belongs to
 * another role, whose rights its document has from now on.  Errors: the caller
 * cannot act as the new owner, or that one cannot own a change.  Locks the
 * change's row.
 */
Datum
bluegreen_set_change_owner(PG_FUNCTION_ARGS)
{
	Change	   *change;
	CatalogAccess access;
	CatalogArgs args = {0};
	Oid			owner;

	require_argument(fcinfo, 0, "change");
	require_argument(fcinfo, 1, "owner");
	require_writable("bluegreen.set_change_owner()");
	change = change_by_name(NameStr(*PG_GETARG_NAME(0)));
	owner = get_role_oid(NameStr(*PG_GETARG_NAME(1)), false);
	if (!role_can_set(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be able to SET ROLE \"%s\"",
						GetUserNameFromId(owner, false))));
	check_owner_can_log_in(owner);
	check_may_create(get_namespace_oid(change->schema, false), owner);
	change_lock_row(change);
	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(owner));
	(void) catalog_run("UPDATE bluegreen.schema_change SET owner = $2 "
					   "WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
	change_event(change, EVENT_CHANGE,
				 psprintf("belongs to role \"%s\" now",
						  GetUserNameFromId(owner, false)), NULL);
	PG_RETURN_VOID();
}

/* ---- add operations ---- */

/* Arguments of SQL functions that the document has in another place. */
static const char *const column_arguments[] = {
	"name", "type", "nullable", "default", "unique", "check", "references",
	"comment"
};

/* An argument as JSON. */
static char *
argument_json(FunctionCallInfo fcinfo, int i, Oid type)
{
	Datum		value = PG_GETARG_DATUM(i);
	StringInfoData json;

	initStringInfo(&json);
	switch (type)
	{
		case BOOLOID:
			appendStringInfoString(&json,
								   DatumGetBool(value) ? "true" : "false");
			break;
		case JSONBOID:
			return JsonbToCString(NULL, &DatumGetJsonbP(value)->root, 0);
		case TEXTARRAYOID:
			{
				Datum	   *elements;
				int			n;

				deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1,
								  false, TYPALIGN_INT, &elements, NULL, &n);
				for (int e = 0; e < n; e++)
				{
					appendStringInfoString(&json, e == 0 ? "[" : ", ");
					escape_json(&json, TextDatumGetCString(elements[e]));
				}
				appendStringInfoString(&json, n == 0 ? "[]" : "]");
				break;
			}
		default:
			escape_json(&json, TextDatumGetCString(value));
	}
	return json.data;
}

/*
 * One argument goes to the operation, or to the column in it.
 */
static void
add_argument(FunctionCallInfo fcinfo, int i, const char *name, Oid type,
			 StringInfo target)
{
	if (strcmp(name, "drop_default") == 0 || strcmp(name, "drop_comment") == 0)
	{
		if (PG_GETARG_BOOL(i))
			field_append_raw(target, name + strlen("drop_"), "null");
		return;
	}
	if (strcmp(name, "on_complete") == 0)
		name = "onComplete";
	field_append_raw(target, name, argument_json(fcinfo, i, type));
}

/*
 * The operation that a function's name and arguments say, as an array with one
 * element.
 */
static char *
operation_json(FunctionCallInfo fcinfo)
{
	char	   *function = get_func_name(fcinfo->flinfo->fn_oid);
	bool		has_column = strcmp(function,
									operation_names[OP_ADD_COLUMN]) == 0;
	HeapTuple	tuple = SearchSysCache1(PROCOID,
										ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	StringInfoData fields;
	StringInfoData column;
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			n;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u",
			 fcinfo->flinfo->fn_oid);
	n = get_func_arg_info(tuple, &types, &names, &modes);
	ReleaseSysCache(tuple);
	initStringInfo(&fields);
	initStringInfo(&column);
	for (int i = 1; i < n; i++)
	{
		bool		nested = has_column &&
			enum_lookup(column_arguments, lengthof(column_arguments),
						names[i]) >= 0;

		if (!PG_ARGISNULL(i))
			add_argument(fcinfo, i, names[i], types[i],
						 nested ? &column : &fields);
	}
	if (has_column)
		field_append_raw(&fields, "column", psprintf("{%s}", column.data));
	return psprintf("[{\"%s\": {%s}}]", function, fields.data);
}

/*
 * bluegreen.add_column(change, ...) and its kin, one function for each
 * operation, named like it: append it to the change's document.  Returns its
 * number.
 */
Datum
bluegreen_add_operation(PG_FUNCTION_ARGS)
{
	Change	   *change;
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *operations;

	require_argument(fcinfo, 0, "change");
	require_writable(get_func_name(fcinfo->flinfo->fn_oid));
	change = change_by_name(NameStr(*PG_GETARG_NAME(0)));
	change_lock_row(change);
	require_idle(change);
	catalog_begin(&access);
	catalog_arg_int4(&args, change->id);
	catalog_arg_text(&args, operation_json(fcinfo));
	if (catalog_run("UPDATE bluegreen.schema_change "
					"SET operations = operations || $2::jsonb WHERE id = $1 "
					"AND state IN ('defined', 'undone')",
					&args, SPI_OK_UPDATE) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("change \"%s\" is %s", change->name,
						change_state_names[change->state])));
	catalog_end(&access);
	operations = document_read(change_load(change->id)->operations);
	PG_RETURN_INT32(list_length(operations));
}
