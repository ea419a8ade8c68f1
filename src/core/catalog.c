/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Catalog rows <-> structs, and the one way to the extension's tables.
 *
 * The tables are granted to nobody, so each access switches to the bootstrap
 * superuser, as core's foreign key triggers switch to a table's owner, and
 * pins search_path, as procedures that commit can't have a SET clause.  The
 * switch lasts for fixed SQL only and is undone by catalog_end(), or by the
 * abort of the (sub)transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "core/definition.h"
#include "core/event.h"
#include "executor/spi.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

const char *const on_write_names[] = {"mirror", "merge", "patch"};
const char *const on_delete_names[] = {"delete", "ignore", "write"};
const char *const wire_kind_names[] = {"binary", "array", "text"};
static const char *const desired_names[] = {
	"defined", "started", "stopped", "finished"
};

const char *const window_state_names[] = {
	"closed", "opening", "open", "closing"
};

#define DEPLOYMENT_SQL \
	"SELECT id, name::text, owner, server::text, desired, mapping_version, " \
	"system_identifier, slot_lsn, skip_lsn, source_place, side, " \
	"peer_server::text, opposite, opposite_lsn, \"window\" " \
	"FROM bluegreen.deployment "

#define MAPPING_SQL \
	"SELECT m.id, m.deployment, m.direction, d.owner, m.source, m.view, " \
	"m.target_schema::text, m.target_table::text, m.on_write, m.on_delete, " \
	"m.has_other_columns, EXISTS (SELECT FROM bluegreen.table_mapping o " \
	"JOIN bluegreen.deployment od ON od.id = o.deployment " \
	"WHERE o.id <> m.id AND od.server = d.server " \
	"AND o.direction = m.direction AND o.target_schema = m.target_schema " \
	"AND o.target_table = m.target_table), m.row_shape, m.defined_in, " \
	"m.derived_from, " \
	"m.lookup, m.lookup_query, m.lookup_columns::text[], " \
	"m.lookup_key::text[], m.lookup_reads, m.conflict " \
	"FROM bluegreen.table_mapping m " \
	"JOIN bluegreen.deployment d ON d.id = m.deployment "

/*
 * Set search_path to what fixed SQL expects.  Returns the level that
 * search_path_restore() takes; the end of the (sub)transaction restores too.
 */
int
search_path_pin(void)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	return guc_level;
}

void
search_path_restore(int guc_level)
{
	AtEOXact_GUC(false, guc_level);
}

/*
 * Begin to run SQL over the extension's tables: SPI, superuser, search_path.
 * Needs a transaction; a worker that has no snapshot has one until the end.
 * Results are made in the caller's memory context.
 */
void
catalog_begin(CatalogAccess *access)
{
	access->context = CurrentMemoryContext;
	access->pushed = ActivePortal == NULL && !ActiveSnapshotSet();
	if (access->pushed)
		PushActiveSnapshot(GetTransactionSnapshot());
	access->read_only = XactReadOnly;
	if (DefaultXactReadOnly)
		XactReadOnly = false;	/* whether we may is require_writable()'s */
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	GetUserIdAndSecContext(&access->userid, &access->sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   access->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	access->guc_level = search_path_pin();
	/* functions that return rows look expensive, and are called once */
	if (jit_enabled)
		(void) set_config_option("jit", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	/* the tables' foreign keys cascade */
	if (SessionReplicationRole != SESSION_REPLICATION_ROLE_ORIGIN)
		(void) set_config_option("session_replication_role", "origin",
								 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
}

/*
 * Undo catalog_begin().  The caller's memory context is current again.
 */
void
catalog_end(CatalogAccess *access)
{
	search_path_restore(access->guc_level);
	SetUserIdAndSecContext(access->userid, access->sec_context);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	if (access->pushed)
		PopActiveSnapshot();
	XactReadOnly = access->read_only;
	MemoryContextSwitchTo(access->context);
}

/*
 * Append a parameter that is not NULL.
 */
void
catalog_arg(CatalogArgs *args, Oid type, Datum value)
{
	Assert(args->n < CATALOG_MAX_ARGS);
	args->types[args->n] = type;
	args->values[args->n] = value;
	args->nulls[args->n] = ' ';
	args->n++;
}

/*
 * Append a text parameter; NULL gives SQL NULL.
 */
void
catalog_arg_text(CatalogArgs *args, const char *value)
{
	catalog_arg(args, TEXTOID, value ? CStringGetTextDatum(value) : (Datum) 0);
	if (value == NULL)
		args->nulls[args->n - 1] = 'n';
}

void
catalog_arg_name(CatalogArgs *args, const char *value)
{
	catalog_arg(args, NAMEOID,
				DirectFunctionCall1(namein, CStringGetDatum(value)));
}

void
catalog_arg_int4(CatalogArgs *args, int32 value)
{
	catalog_arg(args, INT4OID, Int32GetDatum(value));
}

/*
 * Run fixed SQL; args may be NULL.  Returns the number of rows, which are in
 * SPI_tuptable.  Errors: those of the statement.
 */
uint64
catalog_run(const char *sql, const CatalogArgs *args, int expected)
{
	static const CatalogArgs none = {0};
	int			rc;

	if (args == NULL)
		args = &none;
	rc = SPI_execute_with_args(sql, args->n, (Oid *) args->types,
							   (Datum *) args->values, args->nulls, false, 0);
	if (rc != expected)
		elog(ERROR, "unexpected result of \"%s\": %s", sql,
			 SPI_result_code_string(rc));
	return SPI_processed;
}

/*
 * A value of the current result as a string in the caller's context, or NULL.
 */
char *
catalog_text(const CatalogAccess *access, uint64 row, int column)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row],
									 SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(access->context, value) : NULL;
}

/*
 * A value of the current result; 0 if it is NULL and isnull is not asked for.
 */
Datum
catalog_value(uint64 row, int column, bool *isnull)
{
	bool		null;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &null);

	if (isnull)
		*isnull = null;
	return null ? (Datum) 0 : value;
}

/*
 * Position of a word in a table of names, or -1.
 */
int
enum_lookup(const char *const *names, int n, const char *value)
{
	for (int i = 0; i < n; i++)
		if (strcmp(names[i], value) == 0)
			return i;
	return -1;
}

/* A word that a CHECK constraint holds to the table of names. */
static int
stored_enum(const char *const *names, int n, uint64 row, int column)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row],
									 SPI_tuptable->tupdesc, column);
	int			result = enum_lookup(names, n, value);

	if (result < 0)
		elog(ERROR, "unexpected word \"%s\" in a bluegreen table", value);
	return result;
}

static XLogRecPtr
stored_lsn(uint64 row, int column)
{
	bool		isnull;
	Datum		value = catalog_value(row, column, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
}

/*
 * First row of the current result, which is made by DEPLOYMENT_SQL.
 */
static Deployment *
read_deployment(const CatalogAccess *access)
{
	Deployment *deployment = MemoryContextAllocZero(access->context,
													sizeof(Deployment));

	deployment->id = DatumGetInt32(catalog_value(0, 1, NULL));
	deployment->name = catalog_text(access, 0, 2);
	deployment->owner = DatumGetObjectId(catalog_value(0, 3, NULL));
	deployment->server = catalog_text(access, 0, 4);
	deployment->desired = stored_enum(desired_names,
									  lengthof(desired_names), 0, 5);
	deployment->mapping_version = DatumGetInt64(catalog_value(0, 6, NULL));
	deployment->system_identifier =
		(uint64) DatumGetInt64(catalog_value(0, 7, NULL));
	deployment->slot_lsn = stored_lsn(0, 8);
	deployment->skip_lsn = stored_lsn(0, 9);
	deployment->source_place = catalog_text(access, 0, 10);
	deployment->direction =
		strcmp(catalog_text(access, 0, 11), "blue") == 0 ? 'f' : 'b';
	deployment->peer_server = catalog_text(access, 0, 12);
	deployment->opposite = catalog_text(access, 0, 13);
	deployment->opposite_lsn = stored_lsn(0, 14);
	deployment->window = stored_enum(window_state_names, WINDOW_CLOSING + 1,
									 0, 15);
	return deployment;
}

/*
 * Error unless the extension's objects in this database are of the library's
 * major version: an upgrade is done for one, but not yet for the other.
 * Within a major version each works with every other.
 */
static void
check_version(const CatalogAccess *access)
{
	CatalogArgs args = {0};
	const char *version;
	int			here = atoi(BG_VERSION);
	int			there;

	if (catalog_run("SELECT extversion FROM pg_extension "
					"WHERE extname = '" BG_EXTENSION "'",
					&args, SPI_OK_SELECT) == 0)
		return;
	version = catalog_text(access, 0, 1);
	there = atoi(version);
	if (there == here)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"%s\" has version %s in this database, but the server runs version %s of its library",
					BG_EXTENSION, version, BG_VERSION),
			 there < here ?
			 errhint("Run ALTER EXTENSION %s UPDATE;", BG_EXTENSION) :
			 errhint("Install version %d of the library and restart the server.",
					 there)));
}

static Deployment *
load_deployment(const char *sql, const CatalogArgs *args)
{
	CatalogAccess access;
	Deployment *deployment = NULL;

	catalog_begin(&access);
	check_version(&access);
	if (catalog_run(sql, args, SPI_OK_SELECT) > 0)
		deployment = read_deployment(&access);
	catalog_end(&access);
	return deployment;
}

/*
 * A deployment by its id; NULL if there is none.
 */
Deployment *
deployment_load(int32 id)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, id);
	return load_deployment(DEPLOYMENT_SQL "WHERE id = $1", &args);
}

static void
deployment_undefined(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("deployment \"%s\" does not exist", name)));
}

/*
 * A deployment by its name; error or NULL if there is none.
 */
Deployment *
deployment_load_by_name(const char *name, bool missing_ok)
{
	CatalogArgs args = {0};
	Deployment *deployment;

	catalog_arg_name(&args, name);
	deployment = load_deployment(DEPLOYMENT_SQL "WHERE name = $1", &args);
	if (deployment == NULL && !missing_ok)
		deployment_undefined(name);
	return deployment;
}

/*
 * A deployment by its name, its row locked until the end of the transaction
 * against everybody who changes it or its mappings.  Errors: no such
 * deployment; not its owner.
 */
Deployment *
deployment_lock(const char *name)
{
	CatalogArgs args = {0};
	Deployment *deployment;

	deployment_check_owner(deployment_load_by_name(name, false));
	catalog_arg_name(&args, name);
	deployment = load_deployment(DEPLOYMENT_SQL
								 "WHERE name = $1 FOR UPDATE", &args);
	if (deployment == NULL)
		deployment_undefined(name);
	deployment_check_owner(deployment);
	return deployment;
}

/*
 * Change columns of a deployment; set is fixed SQL.
 */
void
catalog_update_deployment(int32 deployment, const char *set)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	catalog_run(psprintf("UPDATE bluegreen.deployment SET %s WHERE id = $1",
						 set), &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Its mappings have changed: a running worker compiles them again.
 */
void
deployment_bump_version(int32 deployment)
{
	catalog_update_deployment(deployment,
							  "mapping_version = mapping_version + 1");
}

/*
 * A text[] of the current result as a list of strings; NIL if it is NULL.
 * Made in the caller's context.
 */
static List *
stored_texts(const CatalogAccess *access, uint64 row, int column)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(access->context);
	List	   *result = NIL;
	Datum	   *values;
	bool		isnull;
	Datum		array = catalog_value(row, column, &isnull);
	int			n = 0;

	if (!isnull)
		deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
						  TYPALIGN_INT, &values, NULL, &n);
	for (int i = 0; i < n; i++)
		result = lappend(result, TextDatumGetCString(values[i]));
	MemoryContextSwitchTo(oldcontext);
	return result;
}

/*
 * The lookup whose text is in this column of the current result, or NULL.
 */
static Lookup *
read_lookup(const CatalogAccess *access, uint64 row, int column)
{
	char	   *text = catalog_text(access, row, column);
	Lookup	   *lookup;

	if (text == NULL)
		return NULL;
	lookup = MemoryContextAllocZero(access->context, sizeof(Lookup));
	lookup->text = text;
	lookup->query = catalog_text(access, row, column + 1);
	lookup->columns = stored_texts(access, row, column + 2);
	lookup->key = stored_texts(access, row, column + 3);
	lookup->reads = stored_texts(access, row, column + 4);
	return lookup;
}

/*
 * One row of the current result, which is made by MAPPING_SQL; columns are
 * read by load_columns().
 */
static MappingRow *
read_mapping(const CatalogAccess *access, uint64 row)
{
	MappingRow *mapping = MemoryContextAllocZero(access->context,
												 sizeof(MappingRow));

	mapping->id = DatumGetInt32(catalog_value(row, 1, NULL));
	mapping->deployment = DatumGetInt32(catalog_value(row, 2, NULL));
	mapping->direction = *SPI_getvalue(SPI_tuptable->vals[row],
									   SPI_tuptable->tupdesc, 3);
	mapping->owner = DatumGetObjectId(catalog_value(row, 4, NULL));
	mapping->source = DatumGetObjectId(catalog_value(row, 5, NULL));
	mapping->view = DatumGetObjectId(catalog_value(row, 6, NULL));
	mapping->target_schema = catalog_text(access, row, 7);
	mapping->target_table = catalog_text(access, row, 8);
	mapping->on_write = stored_enum(on_write_names,
									lengthof(on_write_names), row, 9);
	mapping->on_delete = stored_enum(on_delete_names,
									 lengthof(on_delete_names), row, 10);
	mapping->has_other_columns = DatumGetBool(catalog_value(row, 11, NULL));
	mapping->target_shared = DatumGetBool(catalog_value(row, 12, NULL));
	mapping->row_shape = stored_texts(access, row, 13);
	mapping->defined_in = catalog_text(access, row, 14);
	mapping->derived_from = catalog_text(access, row, 15);
	mapping->lookup = read_lookup(access, row, 16);
	mapping->conflict = catalog_text(access, row, 21);
	return mapping;
}

static void
load_columns(const CatalogAccess *access, MappingRow *mapping)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, mapping->id);
	mapping->ncolumns = (int)
		catalog_run("SELECT position, name::text, type, wire, is_key, finds "
					"FROM bluegreen.mapping_column WHERE mapping = $1 "
					"ORDER BY position", &args, SPI_OK_SELECT);
	mapping->columns =
		MemoryContextAllocZero(access->context,
							   sizeof(MappingColumn) * mapping->ncolumns);
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		MappingColumn *column = &mapping->columns[i];

		column->position = DatumGetInt16(catalog_value(i, 1, NULL));
		column->name = catalog_text(access, i, 2);
		column->type = catalog_text(access, i, 3);
		column->wire = stored_enum(wire_kind_names,
								   lengthof(wire_kind_names), i, 4);
		column->is_key = DatumGetBool(catalog_value(i, 5, NULL));
		column->finds = DatumGetBool(catalog_value(i, 6, NULL));
	}
	SPI_freetuptable(SPI_tuptable);
}

static List *
load_mappings(const char *sql, const CatalogArgs *args)
{
	CatalogAccess access;
	MemoryContext oldcontext;
	List	   *result = NIL;
	uint64		n;
	ListCell   *lc;

	catalog_begin(&access);
	n = catalog_run(sql, args, SPI_OK_SELECT);
	oldcontext = MemoryContextSwitchTo(access.context);
	for (uint64 i = 0; i < n; i++)
		result = lappend(result, read_mapping(&access, i));
	MemoryContextSwitchTo(oldcontext);
	foreach(lc, result)
	{
		load_columns(&access, lfirst(lc));
	}
	catalog_end(&access);
	return result;
}

/*
 * The mappings of one stream, by id.
 */
List *
mappings_load(int32 deployment, char direction)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, deployment);
	catalog_arg_text(&args, direction_name(direction));
	return load_mappings(MAPPING_SQL
						 "WHERE m.deployment = $1 AND m.direction = $2 "
						 "ORDER BY m.id", &args);
}

/*
 * A mapping by its id; NULL if there is none.
 */
MappingRow *
mapping_load(int32 id)
{
	CatalogArgs args = {0};
	List	   *mappings;

	catalog_arg_int4(&args, id);
	mappings = load_mappings(MAPPING_SQL "WHERE m.id = $1", &args);
	return mappings == NIL ? NULL : linitial(mappings);
}

/*
 * "schema.table" of a mapping's target, quoted where needed.
 */
char *
mapping_target_name(const MappingRow *row)
{
	return quote_qualified_identifier(row->target_schema, row->target_table);
}

/*
 * Error unless the current user has the rights of the deployment's owner.
 */
void
deployment_check_owner(const Deployment *deployment)
{
	if (!has_privs_of_role(GetUserId(), deployment->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of deployment \"%s\"",
						deployment->name)));
}

/*
 * Name of a stream's origin on its target.  The source cluster's identifier
 * and the database are in it, as several clusters may feed one target.  Copy
 * worker n has the origin of this name followed by "_c<n>".
 */
char *
stream_origin_name(uint64 system_identifier, Oid dboid, int32 deployment,
				   char direction)
{
	return psprintf("bluegreen_" UINT64_FORMAT "_%u_%d_%c",
					system_identifier, dboid, deployment, direction);
}

/*
 * Names as the literal of a text[].
 */
char *
catalog_text_array(List *names)
{
	Datum	   *values = palloc_array(Datum, Max(list_length(names), 1));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, names)
	{
		values[n++] = CStringGetTextDatum(lfirst(lc));
	}
	return OidOutputFunctionCall(F_ARRAY_OUT,
								 PointerGetDatum(construct_array(values, n,
																 TEXTOID, -1,
																 false,
																 TYPALIGN_INT)));
}

const char *
direction_name(char direction)
{
	return direction == 'f' ? "forward" : "backward";
}

void
deployment_slot_name(char *buf, const Deployment *deployment)
{
	stream_slot_name(buf, MyDatabaseId, deployment->id, deployment->direction);
}

/*
 * First part of the application_name of a deployment's sessions on its target.
 * What follows tells them from each other, and must not be cut off; servers
 * write characters that are not ASCII longer, or as "?".  A name that cannot
 * stay as it is gets the deployment's id.
 */
char *
stream_application_name(const Deployment *deployment)
{
	int			room = NAMEDATALEN - 1 - strlen("bluegreen  backward control");
	char	   *name = pstrdup(deployment->name);
	char	   *id = psprintf("#%d", deployment->id);
	bool		changed = strlen(name) > room;

	for (char *c = name; *c; c++)
	{
		if (*c >= ' ' && *c < '\x7f')
			continue;
		*c = '?';
		changed = true;
	}
	if (!changed)
		return psprintf("bluegreen %s", name);
	return psprintf("bluegreen %.*s%s", room - (int) strlen(id), name, id);
}

Oid
relation_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}
