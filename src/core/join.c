/*-------------------------------------------------------------------------
 *
 * join.c
 *		On green: the second row of a deployment, for the stream back.
 *
 * A deployment that can go back has a row on each side, of the same name.
 * Green's is made by blue, over its connection, and belongs to the role as
 * whom blue connects; its server is one of green's foreign servers, for which
 * that role has a user mapping, and which leads to this very blue: the same
 * running server, the same database.  From there on green's row is like any
 * other: its stream has a slot, a worker, mappings and transforms here, and
 * writes to blue.  Nothing is copied; its tables follow from the first
 * position of the slot.
 *
 * "opposite" is the name of the replication origin under which the other
 * side's stream writes here.  It says to which deployment of which blue the
 * row belongs, and what the stream leaves out, since it came from there
 * (stream/origin_filter.c).  The origins of blue's copy workers must not come
 * later than the slot, for a decoding worker cannot look for new ones; so all
 * of them are made when the row is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "core/event.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(bluegreen_join_deployment);
PG_FUNCTION_INFO_V1(bluegreen_joined_stream);
PG_FUNCTION_INFO_V1(bluegreen_leave_deployment);
PG_FUNCTION_INFO_V1(bluegreen_joined_mappings);
PG_FUNCTION_INFO_V1(bluegreen_derive_mapping);
PG_FUNCTION_INFO_V1(bluegreen_keep_derived);

/* What backward_identity() is, as the peer tells it. */
static const char identity_sql[] =
"SELECT pg_catalog.concat_ws(' ', s.system_identifier, d.oid,"
"  (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()"
"    - '2000-01-01 00:00:00+00'::pg_catalog.timestamptz) * 1000000)"
"    ::pg_catalog.int8)"
" FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d"
" WHERE d.datname = pg_catalog.current_database()";

/* ---- the server that leads back ---- */

static bool
leads_to(const char *server, const char *identity, char **where)
{
	Peer	   *peer = peer_connect(server, GetUserId(), "bluegreen control");
	PeerResult *result = peer_query(peer, identity_sql, 0, NULL);
	bool		same = strcmp(result->values[0][0], identity) == 0;

	if (where != NULL)
		*where = pstrdup(peer_description(peer));
	peer_close(peer);
	return same;
}

/* Does a server lead to blue? */
typedef struct Lead
{
	const char *server;
	const char *identity;
	bool		found;
} Lead;

static void
follow(void *arg)
{
	Lead	   *lead = arg;

	lead->found = leads_to(lead->server, lead->identity, NULL);
}

/*
 * leads_to(), where a server that cannot be reached leads nowhere.
 */
static bool
try_server(const char *server, const char *identity)
{
	Lead		lead = {.server = server,.identity = identity};
	ErrorData  *error = attempt_or_cancel(follow, &lead);

	if (error != NULL)
		ereport(DEBUG1,
				(errmsg_internal("server \"%s\" does not lead back: %s",
								 server, error->message)));
	return lead.found;
}

/*
 * The one server of ours that leads to blue and for which the caller has a
 * user mapping; NULL if there is none.  Errors: there are several.
 */
static char *
find_server(const char *deployment, const char *identity)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *servers = NIL;
	char	   *found = NULL;
	ListCell   *lc;
	uint64		n;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(access.userid));
	n = catalog_run("SELECT s.srvname::text FROM pg_foreign_server s "
					"JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw "
					"WHERE w.fdwname = '" BG_EXTENSION "' "
					"AND has_server_privilege($1, s.oid, 'USAGE') "
					"AND EXISTS (SELECT FROM pg_user_mapping u "
					"WHERE u.umserver = s.oid AND u.umuser IN ($1, 0)) "
					"ORDER BY s.srvname", &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(access.context);

		servers = lappend(servers, catalog_text(&access, i, 1));
		MemoryContextSwitchTo(oldcontext);
	}
	catalog_end(&access);
	foreach(lc, servers)
	{
		char	   *server = lfirst(lc);

		if (!try_server(server, identity))
			continue;
		if (found != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
					 errmsg("servers \"%s\" and \"%s\" both lead back to the source of deployment \"%s\"",
							found, server, deployment),
					 errhint("Name one as peer_server in bluegreen.create_deployment().")));
		found = server;
	}
	return found;
}

/*
 * Error unless the server that was named leads to blue.
 */
static void
check_named_server(const char *server, const char *identity)
{
	char	   *where;

	deployment_check_server(server);
	if (!leads_to(server, identity, &where))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("server \"%s\" leads to %s, which is not the source of the deployment",
						server, where),
				 errhint("On the peer, use ALTER SERVER %s OPTIONS (SET host '...', SET port '...', SET dbname '...');",
						 quote_identifier(server))));
}

/* ---- the row ---- */

static char *
stream_of(const Deployment *deployment)
{
	return stream_origin_name(GetSystemIdentifier(), MyDatabaseId,
							  deployment->id, 'b');
}

/*
 * Are two streams, bluegreen_<system>_<database>_<id>_f, of one database?
 */
static bool
same_source(const char *a, const char *b)
{
	int			n = 0;

	for (const char *c = a; *c; c++)
		if (*c == '_' && ++n == 3)
			return strncmp(a, b, c - a + 1) == 0;
	return false;
}

/*
 * The row of this name that belongs to blue's deployment, or NULL if there is
 * none.  One that an earlier deployment of that blue has left, because it was
 * given up before it was started, is removed.  Errors: the row is somebody
 * else's.
 */
static Deployment *
find_joined(const char *name, const char *opposite)
{
	Deployment *deployment = deployment_load_by_name(name, true);

	if (deployment == NULL)
		return NULL;
	if (deployment->direction == 'b')
	{
		deployment_check_owner(deployment);
		if (strcmp(deployment->opposite, opposite) == 0)
			return deployment;
		if (deployment->desired == DESIRED_DEFINED &&
			same_source(deployment->opposite, opposite))
		{
			deployment_drop_local(deployment);
			return NULL;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("deployment \"%s\" exists on the peer and is another one",
					name),
			 errdetail(deployment->direction == 'b' ?
					   "It goes back to another server, or was left there by a deployment that was dropped with force." :
					   "The peer is the source of that one."),
			 deployment->direction == 'b' ?
			 errhint("If nobody needs it, use SELECT bluegreen.drop_deployment(%s, force => true); there. Or choose another name.",
					 quote_literal_cstr(name)) :
			 errhint("Choose another name.")));
	return NULL;				/* keep compiler quiet */
}

static int32
insert_row(const char *name, const char *server, const char *opposite)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int32		id;

	owner_check(GetUserId(), name);
	catalog_arg_name(&args, name);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(GetUserId()));
	catalog_arg_name(&args, server);
	catalog_arg_text(&args, opposite);
	catalog_begin(&access);
	catalog_run("INSERT INTO bluegreen.deployment "
				"(name, owner, server, side, opposite) "
				"VALUES ($1, $2, $3, 'green', $4) RETURNING id",
				&args, SPI_OK_INSERT_RETURNING);
	id = DatumGetInt32(catalog_value(0, 1, NULL));
	catalog_end(&access);
	event_record_local(id, EVENT_DEFINED, InvalidXLogRecPtr,
					   psprintf("deployment joined as green, back over server \"%s\"",
								server), NULL);
	return id;
}

/*
 * See the head of this file.
 */
static void
create_copy_origins(const char *opposite)
{
	for (int i = 1; i <= BG_MAX_COPY_WORKERS; i++)
	{
		char	   *name = psprintf("%s_c%d", opposite, i);

		if (replorigin_by_name(name, true) == InvalidRepOriginId)
			(void) replorigin_create(name);
	}
}

/*
 * bluegreen.join_deployment(deployment name, opposite text, server name,
 * identity text, OUT stream text, OUT server_used name): have a row of blue's
 * deployment, whose stream is called opposite.  server: what blue's owner has
 * named, or null to find it.  identity: what that server must lead to.  Gives
 * the name of the stream back; nulls if no server leads there.  Errors: the
 * name is taken; the server leads elsewhere; several do; the role cannot own a
 * deployment.
 */
Datum
bluegreen_join_deployment(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *opposite;
	char	   *identity;
	char	   *server = NULL;
	Deployment *deployment;
	TupleDesc	desc;
	Datum		values[2] = {0};
	bool		nulls[2] = {true, true};

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "opposite");
	require_argument(fcinfo, 3, "identity");
	require_writable("bluegreen.join_deployment");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	name = NameStr(*PG_GETARG_NAME(0));
	opposite = text_to_cstring(PG_GETARG_TEXT_PP(1));
	identity = text_to_cstring(PG_GETARG_TEXT_PP(3));
	deployment = find_joined(name, opposite);
	if (deployment == NULL)
	{
		if (PG_ARGISNULL(2))
			server = find_server(name, identity);
		else
		{
			server = NameStr(*PG_GETARG_NAME(2));
			check_named_server(server, identity);
		}
		if (server != NULL)
			deployment = deployment_load(insert_row(name, server, opposite));
	}
	if (deployment != NULL)
	{
		create_copy_origins(opposite);
		values[0] = CStringGetTextDatum(stream_of(deployment));
		values[1] = DirectFunctionCall1(namein,
										CStringGetDatum(deployment->server));
		nulls[0] = nulls[1] = false;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * bluegreen.joined_stream(deployment name, opposite text) returns text: the
 * name of the stream back of blue's deployment, null if there is none.  Errors:
 * the row of that name is another deployment's.
 */
Datum
bluegreen_joined_stream(PG_FUNCTION_ARGS)
{
	Deployment *deployment =
		find_joined(NameStr(*PG_GETARG_NAME(0)),
					text_to_cstring(PG_GETARG_TEXT_PP(1)));

	if (deployment == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(stream_of(deployment)));
}

/*
 * bluegreen.leave_deployment(deployment name, opposite text, force boolean):
 * drop the row, with what its stream has left on blue (with force, if blue can
 * be reached).  Does nothing if there is none.  Errors: as drop_deployment().
 */
Datum
bluegreen_leave_deployment(PG_FUNCTION_ARGS)
{
	Deployment *deployment;

	require_writable("bluegreen.leave_deployment");
	deployment = find_joined(NameStr(*PG_GETARG_NAME(0)),
							 text_to_cstring(PG_GETARG_TEXT_PP(1)));
	if (deployment != NULL)
		deployment_drop(deployment, PG_GETARG_BOOL(2));
	PG_RETURN_VOID();
}

/* ---- its mappings, for blue ---- */

static const char mappings_sql[] =
"SELECT m.id, format('%I.%I', n.nspname, c.relname),"
"  format('%I.%I', m.target_schema, m.target_table),"
"  coalesce(m.lookup_key, (SELECT array_agg(k.name ORDER BY k.position)"
"    FROM bluegreen.mapping_column k WHERE k.mapping = m.id AND k.is_key)),"
"  m.on_write, m.on_delete, m.derived_from IS NOT NULL, pg_get_viewdef(m.view),"
"  m.lookup, m.conflict"
" FROM bluegreen.table_mapping m"
"  JOIN pg_class c ON c.oid = m.source"
"  JOIN pg_namespace n ON n.oid = c.relnamespace"
" WHERE m.deployment = $1 ORDER BY m.id";

/*
 * bluegreen.joined_mappings(deployment name): one row per mapping.  Errors: no
 * such deployment; not its owner.
 */
Datum
bluegreen_joined_mappings(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Deployment *deployment =
		deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	deployment_check_owner(deployment);
	InitMaterializedSRF(fcinfo, 0);
	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	n = catalog_run(mappings_sql, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		Datum		values[10];
		bool		nulls[10];

		for (int j = 0; j < lengthof(values); j++)
			values[j] = catalog_value(i, j + 1, &nulls[j]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 nulls);
	}
	catalog_end(&access);
	return (Datum) 0;
}

/* ---- derived mappings ---- */

static Deployment *
lock_joined(const char *name)
{
	Deployment *deployment = deployment_lock(name);

	if (deployment->direction != 'b')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this server is not green of deployment \"%s\"",
						name)));
	return deployment;
}

/*
 * Make room for a derived mapping.  Returns the id of the one that is there
 * already, made from the same; or -1 if somebody has defined one; or 0.
 */
static int32
clear_place(const Deployment *deployment, const MapRequest *request,
			const char *derived_from)
{
	List	   *replaced = NIL;
	ListCell   *lc;

	foreach(lc, mappings_load(deployment->id, 'b'))
	{
		MappingRow *mapping = lfirst(lc);

		if (mapping->source != request->source &&
			!mapping_writes(mapping, request))
			continue;
		if (mapping->derived_from == NULL)
			return -1;
		if (strcmp(mapping->derived_from, derived_from) == 0)
			return mapping->id;
		replaced = lappend(replaced, mapping);
	}
	foreach(lc, replaced)
	{
		mapping_remove(lfirst(lc));
	}
	return 0;
}

/*
 * Blue may tell of what it has altered in a transaction that is not over, and
 * that nobody else sees.
 */
static void
check_types(int32 id, List *types)
{
	MappingRow *mapping = mapping_load(id);

	if (list_length(types) != mapping->ncolumns)
		elog(ERROR, "%d types of %d columns", list_length(types),
			 mapping->ncolumns);
	for (int i = 0; i < mapping->ncolumns; i++)
		if (strcmp(mapping->columns[i].type, list_nth(types, i)) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("column \"%s\" of table \"%s\" is being altered",
							mapping->columns[i].name,
							mapping_target_name(mapping)),
					 errdetail("Its type is %s, and is to be %s.",
							   mapping->columns[i].type,
							   (char *) list_nth(types, i)),
					 errhint("Call bluegreen.start() on blue when that is committed.")));
}

/*
 * bluegreen.derive_mapping(deployment name, source text, target text, transform
 * text, key text[], types text[], derived_from text, conflict text) returns
 * integer: have a mapping that blue has derived; its id, or null if somebody has defined one of the same
 * source or target.  Changes nothing if it is there already, derived from the
 * same.  Errors: as map_table(); the target's columns are not of these types.
 */
Datum
bluegreen_derive_mapping(PG_FUNCTION_ARGS)
{
	MapRequest	request = {0};
	char	   *derived_from = text_to_cstring(PG_GETARG_TEXT_PP(6));
	Deployment *deployment;
	Peer	   *peer;
	int32		id;

	require_writable("bluegreen.derive_mapping");
	deployment = lock_joined(NameStr(*PG_GETARG_NAME(0)));
	request.source =
		RangeVarGetRelid(makeRangeVarFromNameList(textToQualifiedNameList(PG_GETARG_TEXT_PP(1))),
						 NoLock, false);
	mapping_resolve_target(&request, PG_GETARG_TEXT_PP(2));
	request.transform = text_to_cstring(PG_GETARG_TEXT_PP(3));
	request.key = mapping_names_argument(PG_GETARG_ARRAYTYPE_P(4), TEXTOID);
	request.keyless = request.key == NIL;
	request.conflict = text_to_cstring(PG_GETARG_TEXT_PP(7));
	id = clear_place(deployment, &request, derived_from);
	if (id < 0)
		PG_RETURN_NULL();
	if (id > 0)
		PG_RETURN_INT32(id);
	source_check(request.source, deployment->owner);
	peer = registry_connect(deployment, false);
	id = mapping_define(deployment, peer, &request, derived_from);
	peer_close(peer);
	check_types(id, mapping_names_argument(PG_GETARG_ARRAYTYPE_P(5),
										   TEXTOID));
	mappings_changed(deployment,
					 psprintf("%s mapped back to %s, as derived",
							  text_to_cstring(PG_GETARG_TEXT_PP(1)),
							  text_to_cstring(PG_GETARG_TEXT_PP(2))));
	PG_RETURN_INT32(id);
}

/*
 * bluegreen.keep_derived(deployment name, mappings integer[]) returns integer:
 * remove all derived mappings but these; how many.
 */
Datum
bluegreen_keep_derived(PG_FUNCTION_ARGS)
{
	Deployment *deployment;
	Datum	   *ids;
	bool	   *nulls;
	int			n;
	int			removed = 0;
	ListCell   *lc;

	require_writable("bluegreen.keep_derived");
	deployment = lock_joined(NameStr(*PG_GETARG_NAME(0)));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, sizeof(int32), true,
					  TYPALIGN_INT, &ids, &nulls, &n);
	foreach(lc, mappings_load(deployment->id, 'b'))
	{
		MappingRow *mapping = lfirst(lc);
		bool		kept = mapping->derived_from == NULL;

		for (int i = 0; i < n && !kept; i++)
			kept = !nulls[i] && DatumGetInt32(ids[i]) == mapping->id;
		if (kept)
			continue;
		mapping_remove(mapping);
		removed++;
	}
	if (removed > 0)
		mappings_changed(deployment,
						 psprintf("%d derived mappings removed", removed));
	PG_RETURN_INT32(removed);
}
