/*-------------------------------------------------------------------------
 *
 * lookup.c
 *		On the source: mappings with a lookup.
 *
 * What the transform gives is not the target's row then, but a row of the
 * relation "incoming", from which a SELECT on the target makes the target's:
 * there the key may be known that the source does not have.  The target
 * checks the text and tells what it means (lookup_describe.c).
 *
 * A mapping's columns are those of incoming.  Each has the type that the
 * transform gives, by a name that both sides know.  The target's key is the
 * lookup's to find; so whatever that depends on ("finds") goes with a delete as
 * well, and a change of it is a delete and an insert.
 *
 * Key columns are those by which a batch folds changes (batch.c).  A mirror has
 * a row for each row of the source, so they are the source's key, and nothing
 * is folded that is not one row.  A merge or a patch may make one row of many,
 * of which the last one counts; there they are the columns that find it, if
 * none can be NULL, so that rows which lead to one are one in the batch.
 *
 * What a lookup finds depends on tables that other mappings may feed.  Their
 * order counts in the stream (batch.c), and in the copy (copy_plan.c): the
 * table with the lookup comes last.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "executor/spi.h"
#include "nodes/nodeFuncs.h"
#include "stream/transform.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

/* ---- what must be looked at together ---- */

/*
 * Does the mapping's lookup read the target of the other (or of itself)?
 */
bool
mapping_reads_target(const MappingRow *row, const MappingRow *other)
{
	char	   *name;
	ListCell   *lc;

	if (row->lookup == NULL)
		return false;
	name = psprintf("%s.%s", other->target_schema, other->target_table);
	foreach(lc, row->lookup->reads)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/*
 * Does the copy of a mapping need what others bring to the target?
 */
bool
mapping_copied_late(const MappingRow *row)
{
	return row->on_write == ON_WRITE_PATCH || row->lookup != NULL;
}

/*
 * Must the other mapping's table be copied before this one's?  A patch finds
 * its rows only after they are there; so does a lookup.
 */
bool
mapping_copied_after(const MappingRow *row, const MappingRow *other)
{
	if (row->id == other->id)
		return false;
	if (row->on_write == ON_WRITE_PATCH && other->on_write != ON_WRITE_PATCH &&
		strcmp(other->target_table, row->target_table) == 0 &&
		strcmp(other->target_schema, row->target_schema) == 0)
		return true;
	return mapping_reads_target(row, other);
}

/* ---- arrays ---- */

static Datum
texts_to_array(List *texts)
{
	Datum	   *values = palloc_array(Datum, list_length(texts) + 1);
	int			n = 0;
	ListCell   *lc;

	foreach(lc, texts)
	{
		values[n++] = CStringGetTextDatum(lfirst(lc));
	}
	return PointerGetDatum(construct_array(values, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

static char *
texts_to_literal(List *texts)
{
	return OidOutputFunctionCall(F_ARRAY_OUT, texts_to_array(texts));
}

static List *
texts_from_literal(char *literal)
{
	Datum		array = OidInputFunctionCall(F_ARRAY_IN, literal, TEXTOID, -1);

	return mapping_names_argument(DatumGetArrayTypeP(array), TEXTOID);
}

/* ---- incoming ---- */

/*
 * How values of a type travel, which the target is to know by its name.
 */
static WireKind
wire_kind(Oid type)
{
	Oid			element = get_element_type(type);
	HeapTuple	tuple;
	bool		binary;

	if (type >= FirstNormalObjectId || type_is_rowtype(type) ||
		type_is_rowtype(element))
		return WIRE_TEXT;
	switch (OidIsValid(element) ? element : type)
	{
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGNAMESPACEOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGROLEOID:
		case REGTYPEOID:
		case TSQUERYOID:
		case INT2VECTOROID:
		case OIDVECTOROID:
			return WIRE_TEXT;
		default:
			break;
	}
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	binary = OidIsValid(((Form_pg_type) GETSTRUCT(tuple))->typsend) &&
		OidIsValid(((Form_pg_type) GETSTRUCT(tuple))->typreceive);
	ReleaseSysCache(tuple);
	if (!binary)
		return WIRE_TEXT;
	return OidIsValid(element) ? WIRE_ARRAY : WIRE_BINARY;
}

static AttrNumber
plain_column(const TargetEntry *entry)
{
	Node	   *node = (Node *) entry->expr;

	while (IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	return IsA(node, Var) ? ((Var *) node)->varattno : InvalidAttrNumber;
}

/*
 * The key of the source, by which its changes name rows.
 */
static Bitmapset *
source_key(Oid source)
{
	Relation	relation = table_open(source, AccessShareLock);
	Oid			index = relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL ?
		relation_primary_key(relation) : RelationGetReplicaIndex(relation);
	Bitmapset  *result = index_columns(index);

	table_close(relation, NoLock);
	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key, which a mapping with a lookup needs",
						get_rel_name(source)),
				 errhint("Create one, or use ALTER TABLE %s REPLICA IDENTITY USING INDEX ...",
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
													get_rel_name(source)))));
	return result;
}

/*
 * The columns of incoming, by what the transform gives.
 */
static void
describe_incoming(MapRequest *request, Query *query)
{
	ListCell   *lc;

	request->incoming = palloc0_array(MappingColumn,
									  list_length(query->targetList));
	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst(lc);
		MappingColumn *column = &request->incoming[request->nincoming++];
		Oid			type = getBaseType(exprType((Node *) entry->expr));

		column->position = request->nincoming;
		column->name = pstrdup(entry->resname);
		column->type = format_type_extended(type, -1,
											FORMAT_TYPE_TYPEMOD_GIVEN |
											FORMAT_TYPE_FORCE_QUALIFY);
		column->wire = wire_kind(type);
		for (MappingColumn *before = request->incoming; before < column;
			 before++)
			if (strcmp(before->name, column->name) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("transform gives column \"%s\" twice",
								column->name)));
	}
}

/* ---- the key of incoming ---- */

static bool
is_not_null(Oid source, AttrNumber attno)
{
	HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(source),
										Int16GetDatum(attno));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for attribute %d of relation %u",
			 attno, source);
	result = ((Form_pg_attribute) GETSTRUCT(tuple))->attnotnull;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * May rows that the lookup finds by the same values be one?
 */
static bool
folds_by_finds(const MapRequest *request, Query *query)
{
	bool		any = false;
	int			i = 0;
	ListCell   *lc;

	if (request->on_write == ON_WRITE_MIRROR)
		return false;
	foreach(lc, query->targetList)
	{
		AttrNumber	attno = plain_column(lfirst(lc));

		if (!request->incoming[i++].finds)
			continue;
		if (attno <= 0 || !is_not_null(request->source, attno))
			return false;
		any = true;
	}
	return any;
}

/*
 * The columns that find a row are its key.
 */
static void
take_finds_as_key(MapRequest *request)
{
	for (int i = 0; i < request->nincoming; i++)
	{
		MappingColumn *column = &request->incoming[i];

		column->is_key = column->finds;
		column->finds = false;
	}
}

/*
 * The source's key is the key of incoming.  Error unless the transform gives
 * all of its columns, as they are.
 */
static void
take_source_key(MapRequest *request, Query *query)
{
	Bitmapset  *key = source_key(request->source);
	Bitmapset  *given = NULL;
	int			attno = -1;
	int			i = 0;
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		MappingColumn *column = &request->incoming[i++];
		AttrNumber	from = plain_column(lfirst(lc));

		column->is_key = bms_is_member(from, key);
		column->finds &= !column->is_key;
		if (from > 0)
			given = bms_add_member(given, from);
	}
	while ((attno = bms_next_member(key, attno)) >= 0)
		if (!bms_is_member(attno, given))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("transform does not give column \"%s\" of table \"%s\"",
							get_attname(request->source, attno, false),
							get_rel_name(request->source)),
					 errdetail("With a lookup, the key of the source must be among the columns of \"incoming\", as it is."),
					 errhint("Add it to the transform.")));
}

/* ---- the target's answer ---- */

/*
 * Have the target look at the text of a request's lookup over its incoming
 * columns, and note in these which of them find the target's row.
 */
static Lookup *
describe(Peer *peer, const MapRequest *request, List *key, bool check_rights)
{
	MappingColumn *columns = request->incoming;
	int			ncolumns = request->nincoming;
	Lookup	   *lookup = palloc0_object(Lookup);
	List	   *column_names = NIL;
	List	   *types = NIL;
	List	   *finds;
	PeerResult *result;
	const char *args[7];

	for (int i = 0; i < ncolumns; i++)
	{
		column_names = lappend(column_names, columns[i].name);
		types = lappend(types, columns[i].type);
	}
	args[0] = request->target_schema;
	args[1] = request->target_table;
	args[2] = request->lookup;
	args[3] = texts_to_literal(column_names);
	args[4] = texts_to_literal(types);
	args[5] = texts_to_literal(key);
	args[6] = check_rights ? "true" : "false";
	result = peer_query(peer,
						"SELECT query, given::pg_catalog.text[], "
						"finds::pg_catalog.text[], reads "
						"FROM bluegreen.describe_lookup($1, $2, $3, $4, $5, $6, $7)",
						lengthof(args), args);
	lookup->text = pstrdup(request->lookup);
	lookup->key = key;
	lookup->query = result->values[0][0];
	lookup->columns = texts_from_literal(result->values[0][1]);
	finds = texts_from_literal(result->values[0][2]);
	lookup->reads = texts_from_literal(result->values[0][3]);
	for (int i = 0; i < ncolumns; i++)
	{
		ListCell   *lc;

		foreach(lc, finds)
		{
			columns[i].finds |= !columns[i].is_key &&
				strcmp(columns[i].name, lfirst(lc)) == 0;
		}
	}
	return lookup;
}

static List *
target_key(TargetTable *target)
{
	List	   *key = NIL;

	for (int position = 1; position <= target->ncolumns; position++)
		for (int i = 0; i < target->ncolumns; i++)
			if (target->columns[i].key_position == position)
				key = lappend(key, target->columns[i].name);
	return key;
}

/*
 * Fill in what a request with a lookup defines.  Returns the columns of the
 * target that it gives.  Errors: those of the target; a source or a target
 * without a key; a transform that does not give the source's key where that is
 * needed; with check_rights, that the peer's role may not read the lookup's
 * tables.
 */
List *
lookup_define(Peer *peer, MapRequest *request, TargetTable *target,
			  Query *query, bool check_rights)
{
	if (!target->has_key)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mapping to table \"%s\" with a lookup needs a key",
						quote_qualified_identifier(target->schema,
												   target->table)),
				 errhint("Create a primary key on the peer, or name the mapping's key: the columns of a unique index that are NOT NULL.")));
	describe_incoming(request, query);
	request->defined = describe(peer, request, target_key(target),
								check_rights);
	if (folds_by_finds(request, query))
		take_finds_as_key(request);
	else
		take_source_key(request, query);
	return request->defined->columns;
}

/*
 * Say what a mapping with a lookup does to what it does not write.
 */
void
lookup_tell(const MapRequest *request, bool has_other_columns)
{
	if (request->lookup && has_other_columns)
		ereport(NOTICE,
				(errmsg("target table \"%s\" has columns that the lookup does not give",
						quote_qualified_identifier(request->target_schema,
												   request->target_table)),
				 errdetail("A row whose key changes is deleted and inserted; these columns get their defaults then.")));
}

/*
 * The transform of a mapping that has a lookup and none: all columns.
 */
char *
lookup_default_transform(const MapRequest *request)
{
	return psprintf("SELECT * FROM %s",
					quote_qualified_identifier(get_namespace_name(get_rel_namespace(request->source)),
											   get_rel_name(request->source)));
}

/*
 * Error unless a stored lookup still means what it did, and the peer's role
 * may read its tables.
 */
void
lookup_check_stored(Peer *peer, const MappingRow *mapping)
{
	MapRequest	request = {
		.target_schema = mapping->target_schema,
		.target_table = mapping->target_table,
		.lookup = mapping->lookup->text,
		.nincoming = mapping->ncolumns,
		.incoming = mapping->columns
	};
	Lookup	   *now = describe(peer, &request, mapping->lookup->key, true);

	if (strcmp(now->query, mapping->lookup->query) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("lookup of target table \"%s\" means something else than when the table was mapped",
						mapping_target_name(mapping)),
				 errdetail("It was: %s", mapping->lookup->query),
				 errhint("Give the mapping its lookup again with bluegreen.alter_mapping().")));
}

/* ---- rows ---- */

/*
 * Store the lookup of a mapping (NULL: it has none), and what is incoming.
 */
void
lookup_store(int32 mapping, const MapRequest *request)
{
	const Lookup *lookup = request->lookup ? request->defined : NULL;
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *columns = lookup ? texts_to_literal(lookup->columns) : NULL;
	char	   *key = lookup ? texts_to_literal(lookup->key) : NULL;
	char	   *reads = lookup ? texts_to_literal(lookup->reads) : NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, mapping);
	catalog_arg_text(&args, lookup ? lookup->text : NULL);
	catalog_arg_text(&args, lookup ? lookup->query : NULL);
	catalog_arg_text(&args, columns);
	catalog_arg_text(&args, key);
	catalog_arg_text(&args, reads);
	catalog_run("UPDATE bluegreen.table_mapping SET lookup = $2, "
				"lookup_query = $3, lookup_columns = $4::name[], "
				"lookup_key = $5::name[], lookup_reads = $6::text[] "
				"WHERE id = $1", &args, SPI_OK_UPDATE);
	for (int i = 0; lookup && i < request->nincoming; i++)
		mapping_insert_column(mapping, &request->incoming[i]);
	catalog_end(&access);
}

/*
 * Is there a way from one mapping, over those that must be copied before it,
 * back to itself?
 */
static bool
waits_for(const MappingRow *row, const MappingRow *start, List *mappings,
		  Bitmapset **seen)
{
	ListCell   *lc;

	foreach(lc, mappings)
	{
		const MappingRow *other = lfirst(lc);

		if (!mapping_copied_after(row, other))
			continue;
		if (other->id == start->id)
			return true;
		if (bms_is_member(other->id, *seen))
			continue;
		*seen = bms_add_member(*seen, other->id);
		if (waits_for(other, start, mappings, seen))
			return true;
	}
	return false;
}

/*
 * Error if the copies of mappings would wait for each other.  The way back has
 * no copy.
 */
void
lookup_check_cycle(int32 deployment, char direction)
{
	List	   *mappings = direction == 'b' ? NIL :
		mappings_load(deployment, direction);
	ListCell   *lc;

	foreach(lc, mappings)
	{
		MappingRow *row = lfirst(lc);
		Bitmapset  *seen = NULL;

		if (row->lookup != NULL && waits_for(row, row, mappings, &seen))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
					 errmsg("lookup of target table \"%s\" reads what other mappings make of it",
							mapping_target_name(row)),
					 errdetail("Which of the tables should be copied first?"),
					 errhint("Have the lookup read other tables.")));
	}
}
