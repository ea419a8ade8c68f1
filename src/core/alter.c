/*-------------------------------------------------------------------------
 *
 * alter.c
 *		Change a mapping whose table is copied already, without a new copy.
 *
 * alter_mapping() puts another transform, key or way of writing in the place
 * of a mapping's own; the mapping keeps its id, and with it the state of its
 * table on the target.  What is on the target stays as it is.  From where on
 * does the new definition count?
 *
 *	- A stream that runs finds the change in the WAL: what was committed before
 *	  goes by the old definition, what was committed after by the new one
 *	  (sink_redefined()).
 *	- A stream that stands in an error, or is stopped, has the new definition
 *	  when it starts again: exactly from the change at which it stood.  That is
 *	  how a transform that fails is mended.
 *
 * A definition can only be compiled for columns as they are now.  Rows in the
 * WAL that are older than the last ALTER TABLE of a column that it reads could
 * never be evaluated.  So if there may be such rows, writers are kept out, and
 * the stream must have applied everything before we return.  The caller makes
 * the ALTER TABLE in the same transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "stream/transform.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(bluegreen_alter_mapping);

/* The arguments of alter_mapping(), by position. */
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

/* One run of alter_mapping(). */
typedef struct Alteration
{
	Deployment *deployment;
	MappingRow *mapping;		/* as it was */
	MapRequest	request;		/* as it is to be */
	Peer	   *peer;
	bool		started;		/* there is a stream, running or not */
	bool		follows;		/* the table is copied */
	bool		was_chunkable;
} Alteration;

/*
 * The mapping of the request's source, to its target if one was named.
 */
static MappingRow *
find_mapping(const Deployment *deployment, const MapRequest *request)
{
	MappingRow *found = NULL;
	ListCell   *lc;

	foreach(lc, mappings_load(deployment->id, deployment->direction))
	{
		MappingRow *mapping = lfirst(lc);

		if (mapping->source != request->source ||
			(request->target_table && !mapping_writes(mapping, request)))
			continue;
		if (found != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
					 errmsg("table \"%s\" has several mappings in deployment \"%s\"",
							get_rel_name(request->source), deployment->name),
					 errhint("Name one with \"target\".")));
		found = mapping;
	}
	if (found == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not mapped in deployment \"%s\"",
						get_rel_name(request->source), deployment->name)));
	return found;
}

static List *
key_of(const MappingRow *mapping)
{
	List	   *key = NIL;

	if (mapping->lookup != NULL)
		return mapping->lookup->key;
	for (int i = 0; i < mapping->ncolumns; i++)
		if (mapping->columns[i].is_key)
			key = lappend(key, mapping->columns[i].name);
	return key;
}

/*
 * What was not given stays.
 */
static void
fill_request(FunctionCallInfo fcinfo, Alteration *alteration)
{
	MappingRow *mapping = alteration->mapping;
	MapRequest *request = &alteration->request;

	request->target_schema = mapping->target_schema;
	request->target_table = mapping->target_table;
	request->on_write = PG_ARGISNULL(ARG_ON_WRITE) ? mapping->on_write :
		mapping_word_argument(fcinfo, ARG_ON_WRITE, "on_write",
							  on_write_names);
	request->on_delete = PG_ARGISNULL(ARG_ON_DELETE) ? mapping->on_delete :
		mapping_word_argument(fcinfo, ARG_ON_DELETE, "on_delete",
							  on_delete_names);
	request->key = PG_ARGISNULL(ARG_KEY) ? key_of(mapping) :
		mapping_names_argument(PG_GETARG_ARRAYTYPE_P(ARG_KEY), TEXTOID);
	request->keyless = request->key == NIL;
	if (!PG_ARGISNULL(ARG_TRANSFORM))
		request->transform =
			text_to_cstring(PG_GETARG_TEXT_PP(ARG_TRANSFORM));
	if (!PG_ARGISNULL(ARG_LOOKUP))
		request->lookup = text_to_cstring(PG_GETARG_TEXT_PP(ARG_LOOKUP));
	else if (mapping->lookup != NULL)
		request->lookup = mapping->lookup->text;
	if (request->lookup && request->lookup[0] == '\0')
		request->lookup = NULL; /* taken away */
	request->conflict = mapping_conflict_argument(fcinfo, ARG_CONFLICT);
	if (request->conflict == NULL)
		request->conflict = mapping->conflict;
}

/*
 * Is the table copied?  The target knows.
 */
static bool
table_follows(const Alteration *alteration)
{
	const char *args[] = {registry_origin(alteration->deployment),
	psprintf("%d", alteration->mapping->id)};
	PeerResult *result;

	result = peer_query(alteration->peer,
						"SELECT state FROM bluegreen.applied_table "
						"WHERE stream = $1 AND mapping = $2::integer", 2, args);
	return result->ntuples > 0 && strcmp(result->values[0][0], "streaming") == 0;
}

static Query *
stored_query(const MappingRow *mapping)
{
	Relation	view = table_open(mapping->view, AccessShareLock);
	Query	   *query = copyObject(get_view_query(view));

	table_close(view, AccessShareLock);
	return query;
}

static void
update_mapping(const Alteration *alteration, bool has_other_columns)
{
	const MapRequest *request = &alteration->request;
	CatalogAccess access;
	CatalogArgs args = {0};
	CatalogArgs id = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, alteration->mapping->id);
	catalog_arg_text(&args, on_write_names[request->on_write]);
	catalog_arg_text(&args, on_delete_names[request->on_delete]);
	catalog_arg(&args, BOOLOID, BoolGetDatum(has_other_columns));
	catalog_arg_text(&args, request->conflict);
	catalog_run("UPDATE bluegreen.table_mapping SET on_write = $2, "
				"on_delete = $3, has_other_columns = $4, derived_from = NULL, "
				"conflict = $5 WHERE id = $1",
				&args, SPI_OK_UPDATE);
	catalog_arg_int4(&id, alteration->mapping->id);
	catalog_run("DELETE FROM bluegreen.mapping_column WHERE mapping = $1",
				&id, SPI_OK_DELETE);
	/* what a verification found, and where it is, goes by the former key */
	catalog_run("DELETE FROM bluegreen.verify_difference "
				"WHERE mapping = $1 AND repaired_at IS NULL",
				&id, SPI_OK_DELETE);
	catalog_run("UPDATE bluegreen.verify_table SET position = NULL "
				"WHERE mapping = $1", &id, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Store the new definition.  Returns it compiled; errors: as map_table().
 */
static Transform *
replace(Alteration *alteration)
{
	MappingRow *mapping = alteration->mapping;
	MapRequest *request = &alteration->request;
	TargetTable *target = target_require(alteration->peer, request);
	Query	   *query = request->transform ?
		transform_parse(request->transform, request->source) :
		stored_query(mapping);
	List	   *names = mapping_output_names(query);
	List	   *written = request->lookup ?
		lookup_define(alteration->peer, request, target, query,
					  alteration->deployment->desired == DESIRED_STARTED) :
		names;
	Transform  *result;
	int			guc_level;

	target_check_columns(request, target, written);
	lookup_tell(request, target_has_other_columns(target, written));
	update_mapping(alteration, target_has_other_columns(target, written));
	lookup_store(mapping->id, request);
	if (!request->lookup)
		mapping_insert_columns(mapping->id, target, names);
	guc_level = settings_pin_formatting();
	if (request->transform)
	{
		mapping_drop_view(mapping->view);
		mapping_create_view(mapping->id, alteration->deployment->owner, query,
							names);
	}
	CommandCounterIncrement();
	result = mapping_check_stored(mapping->id);
	settings_restore(guc_level);
	lookup_check_cycle(mapping->deployment, mapping->direction);
	return result;
}

/*
 * Oldest transaction that the stream's decoding may still come upon.
 */
static TransactionId
decoding_horizon(const char *slot_name)
{
	ReplicationSlot *slot = SearchNamedReplicationSlot(slot_name, true);
	TransactionId result = InvalidTransactionId;

	if (slot == NULL)
		return result;
	SpinLockAcquire(&slot->mutex);
	result = slot->data.catalog_xmin;
	SpinLockRelease(&slot->mutex);
	return result;
}

/*
 * Was a catalog row, by its xmin, there when the mapping was made?  All rows
 * that the stream evaluates were written after that.
 */
static bool
is_older_than(TransactionId xmin, const MappingRow *mapping)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint64		xid = U64FromFullTransactionId(next) -
		(uint32) (XidFromFullTransactionId(next) - xmin);
	Datum		snapshot;

	if (!TransactionIdIsNormal(xmin))
		return true;
	snapshot = DirectFunctionCall1(pg_snapshot_in,
								   CStringGetDatum(mapping->defined_in));
	return DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
											FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)),
											snapshot));
}

/*
 * A column that the transform reads and that may have been another one when
 * rows were written which the stream has not decoded yet; NULL if there is
 * none.
 */
static const char *
young_column(const Transform *transform, TransactionId horizon)
{
	Oid			source = transform->row->source;
	int			attno = -1;

	while ((attno = bms_next_member(transform->reads, attno)) >= 0)
	{
		HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(source),
											Int16GetDatum(attno));
		TransactionId xmin;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for attribute %d of relation %u",
				 attno, source);
		xmin = HeapTupleHeaderGetXmin(tuple->t_data);
		ReleaseSysCache(tuple);
		if ((TransactionIdIsValid(horizon) &&
			 TransactionIdPrecedes(xmin, horizon)) ||
			is_older_than(xmin, transform->row))
			continue;
		return NameStr(transform->source[attno - 1].name);
	}
	return NULL;
}

/*
 * Does the stream stand in an error of this very mapping?  Everything that was
 * committed before is applied then.
 */
static bool
stands_here(StreamShared *s, const MappingRow *mapping)
{
	const char *target = mapping_target_name(mapping);
	bool		failed;
	char		relation[sizeof(s->error.relation)];

	SpinLockAcquire(&s->mutex);
	failed = s->state == STREAM_ERROR || s->failures > 0;
	memcpy(relation, s->error.relation, sizeof(relation));
	SpinLockRelease(&s->mutex);
	return failed && strcmp(relation, target) == 0;
}

/*
 * Keep writers of the source out until the end of the transaction.  The caller
 * has altered the table, or may lock it.
 */
static void
lock_out_writers(Oid source)
{
	Relation	relation = table_open(source, AccessShareLock);
	bool		locked = CheckRelationLockedByMe(relation,
												 ShareRowExclusiveLock, true);

	table_close(relation, NoLock);
	if (!locked && pg_class_aclmask(source, GetUserId(), ACL_UPDATE |
									ACL_DELETE | ACL_TRUNCATE,
									ACLMASK_ANY) == 0)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(source));
	(void) find_all_inheritors(source, ShareRowExclusiveLock, NULL);
}

/*
 * A mapping whose table is being copied: its chunks must go on to fit.
 */
static void
check_copying(const Alteration *alteration, const Transform *now,
			  const char *young)
{
	const MappingRow *mapping = alteration->mapping;
	const MapRequest *request = &alteration->request;

	if (request->on_write == mapping->on_write &&
		request->on_delete == mapping->on_delete &&
		now->chunkable == alteration->was_chunkable && young == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("mapping of table \"%s\" to \"%s\" cannot be changed like this before the table is copied",
					get_rel_name(mapping->source),
					mapping_target_name(mapping)),
			 young ? errdetail("Column \"%s\" has been altered since the stream was there.",
							   young) :
			 errdetail("Only what the columns become may be changed meanwhile."),
			 errhint("Wait until the table follows; or unmap it, empty its target and map it again.")));
}

/*
 * The stream is to go on with the new definition.  See the top of the file.
 */
static void
check_stream(const Alteration *alteration, const Transform *now)
{
	const Deployment *deployment = alteration->deployment;
	char		slot_name[NAMEDATALEN];
	const char *young;
	StreamShared *s;

	deployment_slot_name(slot_name, deployment);
	young = young_column(now, decoding_horizon(slot_name));
	if (!alteration->follows)
	{
		check_copying(alteration, now, young);
		return;
	}
	s = shared_is_loaded() ? stream_shared_find(slot_name) : NULL;
	if (young == NULL || (s != NULL && stands_here(s, alteration->mapping)))
		return;
	if (s == NULL || deployment->desired != DESIRED_STARTED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("mapping of table \"%s\" to \"%s\" cannot be changed while deployment \"%s\" is stopped",
						get_rel_name(alteration->mapping->source),
						mapping_target_name(alteration->mapping),
						deployment->name),
				 errdetail("Column \"%s\" may have been altered since the stream was there, and the rows before that could not be read.",
						   young),
				 errhint("Use CALL bluegreen.start().")));
	lock_out_writers(alteration->mapping->source);
	control_wait_applied(deployment);
}

static int32
alter_on_green(FunctionCallInfo fcinfo, const Deployment *deployment)
{
	const char *args[ARG_LOOKUP + 2];

	for (int i = 0; i <= ARG_LOOKUP; i++)
		args[i] = mapping_text_argument(fcinfo, i);
	args[ARG_LOOKUP + 1] = mapping_text_argument(fcinfo, ARG_CONFLICT);
	return backward_call_integer(deployment,
								 "SELECT bluegreen.alter_mapping("
								 "$1::pg_catalog.name, $2::pg_catalog.text, "
								 "$3, $4, $5::pg_catalog.text[], $6, $7, $8, "
								 "'backward', $9)", lengthof(args), args);
}

/*
 * bluegreen.alter_mapping(deployment name, source regclass or text, target
 * text, transform text, key text[], on_write text, on_delete text, lookup text,
 * direction text, conflict text) returns integer: put another definition in the
 * place of a mapping's; the mapping's id.  What is null stays as it is, and so do
 * the rows on the target.  One that was derived is no longer.  Another policy is
 * also that of the mapping back.
 *
 * Locks as map_table(); where a column was altered lately, also the source
 * against writers, and waits for the stream.  Errors: as map_table(); there is
 * no such mapping, or several; a window is open; the table is being copied and
 * its chunks would not fit; a column was altered, and the stream stands still elsewhere.
 */
Datum
bluegreen_alter_mapping(PG_FUNCTION_ARGS)
{
	Alteration	alteration = {0};
	MapRequest *request = &alteration.request;
	Deployment *deployment;
	Transform  *now;

	require_argument(fcinfo, ARG_DEPLOYMENT, "deployment");
	require_argument(fcinfo, ARG_SOURCE, "source");
	deployment = deployment_lock(NameStr(*PG_GETARG_NAME(ARG_DEPLOYMENT)));
	if (mapping_is_remote(fcinfo, ARG_DIRECTION, deployment))
		PG_RETURN_INT32(alter_on_green(fcinfo, deployment));
	mapping_require_no_window(deployment);
	request->source = mapping_source_oid(fcinfo, ARG_SOURCE);
	source_check(request->source, deployment->owner);
	if (!PG_ARGISNULL(ARG_TARGET))
		mapping_resolve_target(request, PG_GETARG_TEXT_PP(ARG_TARGET));
	alteration.deployment = deployment;
	alteration.mapping = find_mapping(deployment, request);
	alteration.started = !XLogRecPtrIsInvalid(deployment->slot_lsn);
	fill_request(fcinfo, &alteration);

	alteration.peer = registry_connect(deployment, false);
	alteration.follows = alteration.started && table_follows(&alteration);
	if (alteration.started && !alteration.follows)
		alteration.was_chunkable =
			transform_compile(alteration.mapping)->chunkable;
	now = replace(&alteration);
	peer_close(alteration.peer);
	if (alteration.started)
		check_stream(&alteration, now);

	deployment_bump_version(deployment->id);
	event_record_local(deployment->id, EVENT_DEFINED, InvalidXLogRecPtr,
					   psprintf("mapping of %s to %s altered",
								get_rel_name(request->source),
								mapping_target_name(alteration.mapping)),
					   NULL);
	if (deployment->desired == DESIRED_STARTED)
		control_retry_at_commit(deployment->id);
	backward_mappings_changed(deployment);
	if (!PG_ARGISNULL(ARG_CONFLICT))
		backward_keep_policy(deployment, now);
	PG_RETURN_INT32(alteration.mapping->id);
}
