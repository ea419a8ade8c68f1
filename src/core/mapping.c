/*-------------------------------------------------------------------------
 *
 * mapping.c
 *		Define and remove mappings.
 *
 * A mapping is a row in table_mapping, a row per target column in
 * mapping_column, and the view bluegreen.transform_<id>, which holds the
 * transform: pg_depend then guards the columns and functions that it names,
 * and renames follow by themselves.  The view belongs to the deployment's
 * owner, as whom transforms run, and is a member of the extension, so that
 * pg_dump leaves it out (a clone must not start to push).
 *
 * The user's text is parsed under the caller's privileges and search_path, and
 * what becomes of it is deparsed with every name qualified; only that is run
 * with the superuser's rights which creating the view takes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "stream/transform.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/ruleutils.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(bluegreen_map_table);
PG_FUNCTION_INFO_V1(bluegreen_map_schema);
PG_FUNCTION_INFO_V1(bluegreen_unmap_table);

/* ---- arguments ---- */

/* The arguments of map_table(), by position. */
enum
{
	ARG_DEPLOYMENT,
	ARG_SOURCE,
	ARG_TARGET,
	ARG_TRANSFORM,
	ARG_KEY,
	ARG_ON_WRITE,
	ARG_ON_DELETE,
	ARG_LOOKUP,
	ARG_DIRECTION,
	ARG_CONFLICT
};

/*
 * An argument that is one of three words.
 */
int
mapping_word_argument(FunctionCallInfo fcinfo, int i, const char *name,
			  const char *const *words)
{
	char	   *value;
	int			result;

	require_argument(fcinfo, i, name);
	value = text_to_cstring(PG_GETARG_TEXT_PP(i));
	result = enum_lookup(words, 3, value);
	if (result < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"",
						name, value),
				 errhint("Valid values are \"%s\", \"%s\" and \"%s\".",
						 words[0], words[1], words[2])));
	return result;
}

/*
 * Names of an array argument as a list of char *.
 */
List *
mapping_names_argument(ArrayType *array, Oid type)
{
	bool		is_name = type == NAMEOID;
	List	   *result = NIL;
	Datum	   *values;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, type, is_name ? NAMEDATALEN : -1, false,
					  is_name ? TYPALIGN_CHAR : TYPALIGN_INT,
					  &values, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("a list of names must not contain nulls")));
		result = lappend(result, is_name ?
						 pstrdup(NameStr(*DatumGetName(values[i]))) :
						 TextDatumGetCString(values[i]));
	}
	return result;
}

static List *
key_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(ARG_KEY))
		return NIL;
	return mapping_names_argument(PG_GETARG_ARRAYTYPE_P(ARG_KEY), TEXTOID);
}

/*
 * Fill in the target's name: as given, else the source's.
 */
void
mapping_resolve_target(MapRequest *request, text *target)
{
	List	   *names = NIL;

	if (target)
		names = textToQualifiedNameList(target);
	if (list_length(names) > 2)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("improper target name (too many dotted names): %s",
						NameListToString(names))));
	request->target_table = names ? strVal(llast(names)) :
		get_rel_name(request->source);
	request->target_schema = list_length(names) == 2 ?
		strVal(linitial(names)) :
		get_namespace_name(get_rel_namespace(request->source));
}

/*
 * Argument i, "direction": is it green that has to do what is asked for?  Each
 * side has the mappings of the tables that it is the source of.  Errors: this
 * is green, and what is asked for is blue's.
 */
bool
mapping_is_remote(FunctionCallInfo fcinfo, int i, const Deployment *deployment)
{
	char	   *word;

	require_argument(fcinfo, i, "direction");
	word = text_to_cstring(PG_GETARG_TEXT_PP(i));
	if (strcmp(word, "forward") != 0 && strcmp(word, "backward") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"direction\": \"%s\"",
						word),
				 errhint("Valid values are \"forward\" and \"backward\".")));
	if (word[0] == deployment->direction)
		return false;
	if (deployment->direction == 'b')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this server is green of deployment \"%s\"",
						deployment->name),
				 errhint("Call this on blue, or use direction => 'backward' for tables of this server.")));
	return true;
}

/*
 * The table that argument i names, by its OID or as text, which is read by the
 * caller's search_path.
 */
Oid
mapping_source_oid(FunctionCallInfo fcinfo, int i)
{
	if (get_fn_expr_argtype(fcinfo->flinfo, i) != TEXTOID)
		return PG_GETARG_OID(i);
	return DatumGetObjectId(DirectFunctionCall1(regclassin,
												CStringGetDatum(text_to_cstring(PG_GETARG_TEXT_PP(i)))));
}

/*
 * An argument as text, for green: a table by its full name, names as the
 * literal of an array.  NULL if it is null.
 */
char *
mapping_text_argument(FunctionCallInfo fcinfo, int i)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, i);
	Oid			function;
	bool		is_varlena;
	char	   *name;

	if (PG_ARGISNULL(i))
		return NULL;
	if (type == REGCLASSOID)
	{
		name = get_rel_name(PG_GETARG_OID(i));
		if (name != NULL)
			return quote_qualified_identifier(get_namespace_name(get_rel_namespace(PG_GETARG_OID(i))),
											  name);
	}
	getTypeOutputInfo(type, &function, &is_varlena);
	return OidOutputFunctionCall(function, PG_GETARG_DATUM(i));
}

/* ---- rows ---- */

/*
 * Who wins in a window: what is written in a way that needs nobody to win is not
 * looked up unless somebody says so.
 */
static const char *
conflict_policy(const MapRequest *request)
{
	if (request->conflict != NULL)
		return request->conflict;
	return request->on_write == ON_WRITE_MERGE &&
		request->on_delete == ON_DELETE_IGNORE ? "none" : "error";
}

/*
 * Insert the mapping's row; returns its id.  Error if the same mapping exists.
 */
static int32
insert_mapping(const Deployment *deployment, const MapRequest *request,
			   bool has_other_columns, const char *derived_from)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		id;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(request->source));
	catalog_arg_name(&args, request->target_schema);
	catalog_arg_name(&args, request->target_table);
	catalog_arg_text(&args, on_write_names[request->on_write]);
	catalog_arg_text(&args, on_delete_names[request->on_delete]);
	catalog_arg(&args, BOOLOID, BoolGetDatum(has_other_columns));
	catalog_arg_text(&args, direction_name(deployment->direction));
	catalog_arg_text(&args, derived_from);
	catalog_arg_text(&args, conflict_policy(request));
	if (catalog_run("INSERT INTO bluegreen.table_mapping (deployment, "
					"direction, source, view, target_schema, target_table, "
					"on_write, on_delete, has_other_columns, derived_from, "
					"conflict) "
					"VALUES ($1, $8, $2, 0, $3, $4, $5, $6, $7, $9, $10) "
					"ON CONFLICT DO NOTHING RETURNING id",
					&args, SPI_OK_INSERT_RETURNING) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table \"%s\" is already mapped to \"%s\" in deployment \"%s\"",
						get_rel_name(request->source),
						quote_qualified_identifier(request->target_schema,
												   request->target_table),
						deployment->name),
				 errhint("Use bluegreen.unmap_table() first.")));
	id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return id;
}

/*
 * Insert the row of one column; between catalog_begin() and catalog_end().
 */
void
mapping_insert_column(int32 mapping, const MappingColumn *column)
{
	CatalogArgs args = {0};

	catalog_arg_int4(&args, mapping);
	catalog_arg(&args, INT2OID, Int16GetDatum(column->position));
	catalog_arg_name(&args, column->name);
	catalog_arg_text(&args, column->type);
	catalog_arg_text(&args, wire_kind_names[column->wire]);
	catalog_arg(&args, BOOLOID, BoolGetDatum(column->is_key));
	catalog_arg(&args, BOOLOID, BoolGetDatum(column->finds));
	catalog_run("INSERT INTO bluegreen.mapping_column "
				"VALUES ($1, $2, $3, $4, $5, $6, $7)", &args, SPI_OK_INSERT);
}

/*
 * Insert a row per column, in the order of the transform.
 */
void
mapping_insert_columns(int32 mapping, TargetTable *target, List *names)
{
	CatalogAccess access;
	ListCell   *lc;
	int			position = 0;

	catalog_begin(&access);
	foreach(lc, names)
	{
		TargetColumn *there = target_column(target, lfirst(lc));
		MappingColumn column = {
			.position = ++position,
			.name = there->name,
			.type = there->type,
			.wire = target_wire_kind(there),
			.is_key = there->key_position > 0
		};

		mapping_insert_column(mapping, &column);
	}
	catalog_end(&access);
}

/* ---- the view ---- */

static void
set_extension_member(Oid view)
{
	ObjectAddress member;
	ObjectAddress extension;

	ObjectAddressSet(member, RelationRelationId, view);
	ObjectAddressSet(extension, ExtensionRelationId,
					 get_extension_oid(BG_EXTENSION, false));
	recordDependencyOn(&member, &extension, DEPENDENCY_EXTENSION);
}

/*
 * The statement that creates a mapping's view.  search_path must be pinned,
 * for pg_get_querydef() qualifies what it hides.
 */
static char *
view_statement(const char *view, Query *query, List *names)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE VIEW bluegreen.%s (", view);
	foreach(lc, names)
	{
		appendStringInfo(&sql, "%s%s", lc == list_head(names) ? "" : ", ",
						 quote_identifier(lfirst(lc)));
	}
	appendStringInfo(&sql, ") AS %s", pg_get_querydef(query, false));
	return sql.data;
}

/*
 * Create bluegreen.transform_<id> for the deployment's owner and note it in
 * the mapping's row.
 */
void
mapping_create_view(int32 mapping, Oid owner, Query *query, List *names)
{
	char	   *name = psprintf("transform_%d", mapping);
	CatalogAccess access;
	CatalogArgs args = {0};
	Oid			view;

	catalog_begin(&access);
	catalog_run(view_statement(name, query, names), NULL, SPI_OK_UTILITY);
	catalog_run(psprintf("ALTER VIEW bluegreen.%s OWNER TO %s", name,
						 quote_identifier(GetUserNameFromId(owner, false))),
				NULL, SPI_OK_UTILITY);
	view = get_relname_relid(name, get_namespace_oid(BG_SCHEMA, false));
	set_extension_member(view);
	catalog_arg_int4(&args, mapping);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(view));
	catalog_run("UPDATE bluegreen.table_mapping SET view = $2 WHERE id = $1",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Drop a mapping's view.  Error if a user's object depends on it.
 */
void
mapping_drop_view(Oid view)
{
	ObjectAddress address;

	if (!OidIsValid(view) || get_rel_relkind(view) != RELKIND_VIEW)
		return;
	deleteDependencyRecordsForClass(RelationRelationId, view,
									ExtensionRelationId,
									DEPENDENCY_EXTENSION);
	CommandCounterIncrement();
	ObjectAddressSet(address, RelationRelationId, view);
	performDeletion(&address, DROP_RESTRICT, PERFORM_DELETION_INTERNAL);
}

/* ---- map ---- */

/*
 * Names of the columns that a transform gives, in order.
 */
List *
mapping_output_names(Query *query)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (!tle->resjunk)
			names = lappend(names, tle->resname);
	}
	return names;
}

/*
 * Note the columns of the source, if the transform reads whole rows.
 */
static void
store_row_shape(const Transform *transform)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *shape = NIL;
	ListCell   *lc;
	Datum	   *names;
	int			n = 0;

	if (transform->reads_whole_row)
		shape = transform_row_shape(transform);
	names = palloc_array(Datum, Max(list_length(shape), 1));
	foreach(lc, shape)
	{
		names[n++] = CStringGetTextDatum(lfirst(lc));
	}
	catalog_begin(&access);
	catalog_arg_int4(&args, transform->row->id);
	catalog_arg(&args, TEXTARRAYOID,
				PointerGetDatum(construct_array(names, n, TEXTOID, -1, false,
												TYPALIGN_INT)));
	catalog_run("UPDATE bluegreen.table_mapping SET row_shape = "
				"NULLIF($2, '{}') WHERE id = $1", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Say what a mapping without a key can and cannot do.
 */
static void
tell_keyless(const Transform *transform)
{
	Oid			source = transform->row->source;
	char	   *name =
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
								   get_rel_name(source));

	if (transform->identity_full)
		ereport(NOTICE,
				(errmsg("table \"%s\" is mapped to \"%s\" without a key",
						get_rel_name(source),
						mapping_target_name(transform->row)),
				 errdetail("Each UPDATE and DELETE looks for a row that has all the old values."),
				 errhint("An index on the peer over NOT NULL columns makes that faster.")));
	else
		ereport(NOTICE,
				(errmsg("table \"%s\" is mapped to \"%s\" without a key",
						get_rel_name(source),
						mapping_target_name(transform->row)),
				 errdetail("Only INSERT and TRUNCATE are carried over; an UPDATE or DELETE does not say which row it changed, and stops the stream."),
				 errhint("ALTER TABLE %s REPLICA IDENTITY FULL;", name)));
}

/*
 * Compile the stored mapping, which raises the errors of types that do not
 * coerce, and check that changes carry what it needs.
 */
Transform *
mapping_check_stored(int32 mapping)
{
	int			guc_level = search_path_pin();
	Transform  *transform = transform_compile(mapping_load(mapping));

	transform_check_identity(transform);
	store_row_shape(transform);
	if (transform->nkeys == 0)
		tell_keyless(transform);
	search_path_restore(guc_level);
	return transform;
}

/*
 * Does the mapping write the table that the request is to write?
 */
bool
mapping_writes(const MappingRow *mapping, const MapRequest *request)
{
	return strcmp(mapping->target_schema, request->target_schema) == 0 &&
		strcmp(mapping->target_table, request->target_table) == 0;
}

/*
 * What somebody defines takes the place of what was derived.
 */
static void
replace_derived(const Deployment *deployment, const MapRequest *request)
{
	ListCell   *lc;

	foreach(lc, mappings_load(deployment->id, deployment->direction))
	{
		MappingRow *mapping = lfirst(lc);

		if (mapping->derived_from != NULL &&
			(mapping->source == request->source ||
			 mapping_writes(mapping, request)))
			mapping_remove(mapping);
	}
}

/*
 * Define one mapping; returns its id.
 */
int32
mapping_define(const Deployment *deployment, Peer *peer, MapRequest *request,
			   const char *derived_from)
{
	TargetTable *target = target_require(peer, request);
	Query	   *query;
	List	   *names;
	List	   *written;
	int32		id;
	int			guc_level;

	query = transform_parse(request->transform ? request->transform :
							request->lookup ?
							lookup_default_transform(request) :
							transform_default(request, target),
							request->source);
	names = mapping_output_names(query);
	written = request->lookup ?
		lookup_define(peer, request, target, query,
					  deployment->desired == DESIRED_STARTED) : names;
	target_check_columns(request, target, written);
	if (deployment->desired == DESIRED_STARTED)
		ready_target_rights(peer, request);
	if (deployment->direction == 'b')
		replace_derived(deployment, request);
	id = insert_mapping(deployment, request,
						target_has_other_columns(target, written),
						derived_from);
	if (request->lookup)
	{
		lookup_store(id, request);
		lookup_tell(request, target_has_other_columns(target, written));
	}
	else
		mapping_insert_columns(id, target, names);

	/* literals are the caller's; what is stored must not depend on his style */
	guc_level = settings_pin_formatting();
	mapping_create_view(id, deployment->owner, query, names);
	CommandCounterIncrement();
	(void) mapping_check_stored(id);
	settings_restore(guc_level);
	lookup_check_cycle(deployment->id, deployment->direction);
	return id;
}

/*
 * Error while the deployment's window is not closed.
 */
void
mapping_require_no_window(const Deployment *deployment)
{
	if (deployment->window != WINDOW_CLOSED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change mappings of deployment \"%s\" while its window is %s",
						deployment->name,
						window_state_names[deployment->window]),
				 errhint("Use CALL bluegreen.close_window() first.")));
}

/*
 * After mappings have come or gone.
 */
void
mappings_changed(const Deployment *deployment, const char *message)
{
	mapping_require_no_window(deployment);
	deployment_bump_version(deployment->id);
	event_record_local(deployment->id, EVENT_DEFINED, InvalidXLogRecPtr,
					   message, NULL);
	if (deployment->desired == DESIRED_STARTED)
		control_reload_at_commit(deployment->id);
}

static char *
describe_request(const MapRequest *request)
{
	Oid			schema = get_rel_namespace(request->source);

	return psprintf("%s mapped to %s",
					quote_qualified_identifier(get_namespace_name(schema),
											   get_rel_name(request->source)),
					quote_qualified_identifier(request->target_schema,
											   request->target_table));
}

/*
 * Have green do it, whose table it is.
 */
static int32
map_on_green(FunctionCallInfo fcinfo, const Deployment *deployment)
{
	const char *args[ARG_LOOKUP + 2];

	for (int i = 0; i <= ARG_LOOKUP; i++)
		args[i] = mapping_text_argument(fcinfo, i);
	args[ARG_LOOKUP + 1] = mapping_text_argument(fcinfo, ARG_CONFLICT);
	return backward_call_integer(deployment,
								 "SELECT bluegreen.map_table("
								 "$1::pg_catalog.name, $2::pg_catalog.text, "
								 "$3, $4, $5::pg_catalog.text[], $6, $7, $8, "
								 "'backward', $9)", lengthof(args), args);
}

/*
 * Argument i as the policy for rows that both sides change, or NULL.
 */
char *
mapping_conflict_argument(FunctionCallInfo fcinfo, int i)
{
	static const char *const words[] = {
		"last_write", "blue", "green", "error", "none"
	};
	char	   *value;

	if (PG_ARGISNULL(i))
		return NULL;
	value = text_to_cstring(PG_GETARG_TEXT_PP(i));
	if (enum_lookup(words, lengthof(words), value) < 0 &&
		(strncmp(value, "newer_column:", 13) != 0 || value[13] == '\0'))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\": \"%s\"",
						"conflict", value),
				 errhint("Valid values are \"last_write\", \"blue\", \"green\", \"newer_column:\" with the name of a column, \"error\" and \"none\".")));
	return value;
}

/*
 * bluegreen.map_table(deployment name, source regclass or text, target text,
 * transform text, key text[], on_write text, on_delete text, lookup text,
 * direction text, conflict text) returns integer: define a mapping; its id.
 *
 * The mappings of direction backward are green's, which is asked to do it.
 *
 * Locks the deployment's row and the source (AccessShareLock) until the end of
 * the transaction; reads the peer's catalogs, changes nothing there.  Errors:
 * one for each thing that source_check(), target_require(), transform_parse(),
 * target_check_columns(), transform_compile() and transform_check_identity()
 * refuse.
 */
Datum
bluegreen_map_table(PG_FUNCTION_ARGS)
{
	MapRequest	request = {0};
	Deployment *deployment;
	Peer	   *peer;
	int32		id;

	require_argument(fcinfo, ARG_DEPLOYMENT, "deployment");
	require_argument(fcinfo, ARG_SOURCE, "source");
	require_writable("bluegreen.map_table");
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(ARG_DEPLOYMENT)));
	if (mapping_is_remote(fcinfo, ARG_DIRECTION, deployment))
		PG_RETURN_INT32(map_on_green(fcinfo, deployment));
	request.source = mapping_source_oid(fcinfo, ARG_SOURCE);
	request.on_write = mapping_word_argument(fcinfo, ARG_ON_WRITE, "on_write",
									 on_write_names);
	request.on_delete = mapping_word_argument(fcinfo, ARG_ON_DELETE, "on_delete",
									  on_delete_names);
	request.conflict = mapping_conflict_argument(fcinfo, ARG_CONFLICT);
	request.key = key_argument(fcinfo);
	request.keyless = request.key == NIL && !PG_ARGISNULL(ARG_KEY);
	if (!PG_ARGISNULL(ARG_TRANSFORM))
		request.transform = text_to_cstring(PG_GETARG_TEXT_PP(ARG_TRANSFORM));
	if (!PG_ARGISNULL(ARG_LOOKUP))
		request.lookup = text_to_cstring(PG_GETARG_TEXT_PP(ARG_LOOKUP));

	source_check(request.source, deployment->owner);
	mapping_resolve_target(&request, PG_ARGISNULL(ARG_TARGET) ? NULL :
				   PG_GETARG_TEXT_PP(ARG_TARGET));
	peer = registry_connect(deployment, false);
	id = mapping_define(deployment, peer, &request, NULL);
	peer_close(peer);
	mappings_changed(deployment, describe_request(&request));
	backward_mappings_changed(deployment);
	PG_RETURN_INT32(id);
}

/* ---- map_schema ---- */

/*
 * OIDs of a schema's root tables, by name, without those to leave out.
 */
static List *
schema_tables(const char *schema, List *exclude)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *result = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID,
				ObjectIdGetDatum(get_namespace_oid(schema, false)));
	n = catalog_run("SELECT oid, relname::text FROM pg_catalog.pg_class "
					"WHERE relnamespace = $1 AND relkind IN ('r', 'p') "
					"AND NOT relispartition ORDER BY relname",
					&args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *name = catalog_text(&access, i, 2);
		MemoryContext oldcontext;
		ListCell   *lc;

		foreach(lc, exclude)
		{
			if (strcmp(lfirst(lc), name) == 0)
				break;
		}
		if (lc != NULL)
			continue;
		oldcontext = MemoryContextSwitchTo(access.context);
		result = lappend_oid(result,
							 DatumGetObjectId(catalog_value(i, 1, NULL)));
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	return result;
}

/*
 * bluegreen.map_schema(deployment name, schema name, target_schema name,
 * exclude name[]) returns table (mapping integer, source regclass): map every
 * root table of a schema under its own name, all or nothing.  Errors: as
 * map_table(); no tables to map.
 */
Datum
bluegreen_map_schema(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *schema;
	Deployment *deployment;
	List	   *tables;
	ListCell   *lc;
	Peer	   *peer;

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "schema");
	require_argument(fcinfo, 3, "exclude");
	require_writable("bluegreen.map_schema");
	InitMaterializedSRF(fcinfo, 0);
	schema = NameStr(*PG_GETARG_NAME(1));
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	if (deployment->direction == 'b')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this server is green of deployment \"%s\"",
						deployment->name),
				 errhint("Call this on blue.")));
	tables = schema_tables(schema, mapping_names_argument(PG_GETARG_ARRAYTYPE_P(3),
												  NAMEOID));
	if (tables == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("schema \"%s\" has no tables to map", schema)));

	peer = registry_connect(deployment, false);
	foreach(lc, tables)
	{
		MapRequest	request = {.source = lfirst_oid(lc)};
		Datum		values[2];
		bool		nulls[2] = {false, false};

		CHECK_FOR_INTERRUPTS();
		source_check(request.source, deployment->owner);
		mapping_resolve_target(&request, NULL);
		if (!PG_ARGISNULL(2))
			request.target_schema = NameStr(*PG_GETARG_NAME(2));
		values[0] = Int32GetDatum(mapping_define(deployment, peer, &request, NULL));
		values[1] = ObjectIdGetDatum(request.source);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	peer_close(peer);
	mappings_changed(deployment, psprintf("schema %s mapped: %d tables",
										  schema, list_length(tables)));
	backward_mappings_changed(deployment);
	return (Datum) 0;
}

/* ---- unmap_table ---- */

/*
 * Remove a mapping with its view.
 */
void
mapping_remove(const MappingRow *mapping)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	mapping_drop_view(mapping->view);
	catalog_begin(&access);
	catalog_arg_int4(&args, mapping->id);
	catalog_run("DELETE FROM bluegreen.table_mapping WHERE id = $1", &args,
				SPI_OK_DELETE);
	catalog_end(&access);
}

/*
 * Remove all mappings of a deployment, for drop_deployment().
 */
void
mappings_remove_all(int32 deployment)
{
	List	   *mappings = list_concat(mappings_load(deployment, 'f'),
									   mappings_load(deployment, 'b'));
	ListCell   *lc;

	foreach(lc, mappings)
	{
		mapping_remove(lfirst(lc));
	}
}

static int32
unmap_on_green(FunctionCallInfo fcinfo, const Deployment *deployment)
{
	const char *args[3];

	for (int i = 0; i < lengthof(args); i++)
		args[i] = mapping_text_argument(fcinfo, i);
	return backward_call_integer(deployment,
								 "SELECT bluegreen.unmap_table("
								 "$1::pg_catalog.name, $2::pg_catalog.text, "
								 "$3, 'backward')", lengthof(args), args);
}

/*
 * bluegreen.unmap_table(deployment name, source regclass or text, target text,
 * direction text) returns integer: remove the mappings of a source, or the one
 * to a target; how many.  Error if there are none.  Rows on the peer stay.
 */
Datum
bluegreen_unmap_table(PG_FUNCTION_ARGS)
{
	MapRequest	request = {0};
	Deployment *deployment;
	ListCell   *lc;
	int			removed = 0;

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "source");
	require_writable("bluegreen.unmap_table");
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	if (mapping_is_remote(fcinfo, 3, deployment))
		PG_RETURN_INT32(unmap_on_green(fcinfo, deployment));
	request.source = mapping_source_oid(fcinfo, 1);
	if (!PG_ARGISNULL(2))
		mapping_resolve_target(&request, PG_GETARG_TEXT_PP(2));

	foreach(lc, mappings_load(deployment->id, deployment->direction))
	{
		MappingRow *mapping = lfirst(lc);

		if (mapping->source != request.source)
			continue;
		if (request.target_table && !mapping_writes(mapping, &request))
			continue;
		mapping_remove(mapping);
		removed++;
	}
	if (removed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not mapped in deployment \"%s\"",
						get_rel_name(request.source), deployment->name)));
	mappings_changed(deployment, psprintf("%s unmapped",
										  get_rel_name(request.source)));
	backward_mappings_changed(deployment);
	PG_RETURN_INT32(removed);
}
