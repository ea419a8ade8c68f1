/*-------------------------------------------------------------------------
 *
 * mapping_check.c
 *		What a mapping asks of its source and of its target.
 *
 * Whatever can be refused is refused when the mapping is defined, with a
 * message of its own per reason (decision 2); nothing here changes anything.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

/* Kinds of relation that cannot be mapped, on either side. */
static const struct
{
	char		kind;
	const char *what;
	const char *hint;
}			refused_kinds[] = {
	{RELKIND_VIEW, "a view", "Map the table that it reads."},
	{RELKIND_MATVIEW, "a materialized view",
	"Map the tables that it reads, and refresh it on the other side."},
	{RELKIND_FOREIGN_TABLE, "a foreign table",
	"Its changes are not in this server's WAL; map it where it lives."},
	{RELKIND_SEQUENCE, "a sequence", "Map the tables that use it; set the peer's sequences yourself."},
	{RELKIND_INDEX, "an index", "Map its table."},
	{RELKIND_PARTITIONED_INDEX, "an index", "Map its table."},
	{RELKIND_COMPOSITE_TYPE, "a composite type", "Map a table."},
	{RELKIND_TOASTVALUE, "a TOAST table", "Map the table that it belongs to."},
};

/*
 * Error unless a relation of this kind can be mapped.  where: "" or
 * " on <peer>".
 */
static void
check_kind(char kind, const char *name, const char *where)
{
	if (kind == RELKIND_RELATION || kind == RELKIND_PARTITIONED_TABLE)
		return;
	for (int i = 0; i < lengthof(refused_kinds); i++)
		if (kind == refused_kinds[i].kind)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("cannot map \"%s\"%s because it is %s",
							name, where, refused_kinds[i].what),
					 errhint("%s", refused_kinds[i].hint)));
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("cannot map \"%s\"%s because it is not a table",
					name, where)));
}

static void
check_persistence(char persistence, const char *name, const char *where)
{
	if (persistence == RELPERSISTENCE_UNLOGGED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot map table \"%s\"%s because it is unlogged",
						name, where),
				 errhint("Use ALTER TABLE %s SET LOGGED.", name)));
	if (persistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot map table \"%s\"%s because it is temporary",
						name, where)));
}

static void
check_not_system(bool is_system, const char *name, const char *where)
{
	if (is_system)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot map \"%s\"%s because it is a system table",
						name, where)));
}

static void
check_not_partition(Relation source, const char *name)
{
	Oid			root;

	if (!source->rd_rel->relispartition)
		return;
	root = llast_oid(get_partition_ancestors(RelationGetRelid(source)));
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("cannot map table \"%s\" because it is a partition", name),
			 errhint("Map its root, \"%s\".",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(root)),
												get_rel_name(root)))));
}

/*
 * The owner, as whom the copy reads, must see every row.
 */
static void
check_readable(Relation source, const char *name, Oid owner)
{
	Oid			relid = RelationGetRelid(source);

	if (pg_class_aclcheck(relid, owner, ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table \"%s\"", name),
				 errdetail("The deployment's owner, \"%s\", must be able to read it.",
						   GetUserNameFromId(owner, false)),
				 errhint("Use GRANT SELECT ON %s TO %s.", name,
						 quote_identifier(GetUserNameFromId(owner, false)))));
	if (check_enable_rls(relid, owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot map table \"%s\" because row-level security hides rows from the deployment's owner",
						name),
				 errhint("Let a role with BYPASSRLS, or the table's owner without FORCE ROW LEVEL SECURITY, own the deployment.")));
}

/*
 * Our own tables are not mapped; but sessions are users' data.
 */
static bool
is_own_table(const char *schema, const char *table)
{
	return strcmp(schema, BG_SCHEMA) == 0 && strcmp(table, "session") != 0;
}

/*
 * Does a table hold sessions of users: ours, or an adopted one?  It is known by
 * the trigger that merges them.
 */
bool
holds_sessions(Relation relation)
{
	Oid			schema = get_namespace_oid(BG_SCHEMA, true);
	TriggerDesc *triggers = relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Oid			function = triggers->triggers[i].tgfoid;

		if (get_func_namespace(function) == schema &&
			strncmp(get_func_name(function), "session_", 8) == 0)
			return true;
	}
	return false;
}

/*
 * Rows of sessions are merged where they meet; otherwise one side's would be
 * written over the other's, and the removal of expired ones would log out users.
 */
static void
check_sessions(const MapRequest *request, const char *target)
{
	Relation	source = table_open(request->source, AccessShareLock);
	bool		sessions = holds_sessions(source) ||
		(strcmp(request->target_schema, BG_SCHEMA) == 0 &&
		 strcmp(request->target_table, "session") == 0);

	table_close(source, NoLock);
	if (sessions && (request->on_write != ON_WRITE_MERGE ||
					 request->on_delete != ON_DELETE_IGNORE))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mapping to table \"%s\" must merge and ignore deletes",
						target),
				 errdetail("Its rows are sessions of users."),
				 errhint("Use on_write => 'merge', on_delete => 'ignore'.")));
}

/*
 * Error unless the relation can be the source of a mapping of this owner.
 * Takes AccessShareLock on it and keeps it until the end of the transaction.
 */
void
source_check(Oid source, Oid owner)
{
	Relation	relation;
	char	   *name;
	Oid			namespace = get_rel_namespace(source);

	if (!OidIsValid(namespace))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", source)));
	name = quote_qualified_identifier(get_namespace_name(namespace),
									  get_rel_name(source));
	check_kind(get_rel_relkind(source), name, "");
	relation = table_open(source, AccessShareLock);
	check_not_system(source < FirstNormalObjectId ||
					 IsCatalogRelation(relation) ||
					 is_own_table(get_namespace_name(namespace),
								  get_rel_name(source)), name, "");
	check_persistence(relation->rd_rel->relpersistence, name, "");
	check_not_partition(relation, name);
	check_readable(relation, name, owner);
	table_close(relation, NoLock);
}

/*
 * Has the source a primary key, or another index as its replica identity?
 */
static bool
source_has_key(Oid source)
{
	Relation	relation = table_open(source, AccessShareLock);
	bool		result = OidIsValid(relation_primary_key(relation)) ||
		OidIsValid(RelationGetReplicaIndex(relation));

	table_close(relation, NoLock);
	return result;
}

/*
 * The mapping is to do without a key: because it was told so, or because
 * neither table has one.  If only the target has none, that is most likely
 * forgotten.
 */
static void
check_keyless(const MapRequest *request, const char *name)
{
	if (!request->keyless && source_has_key(request->source))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("target table \"%s\" has no primary key", name),
				 errhint("Create a primary key on the peer, or name the mapping's key: the columns of a unique index that are NOT NULL. To find rows by all their values instead, use key => '{}'.")));
	if (request->on_write != ON_WRITE_MIRROR ||
		request->on_delete != ON_DELETE_DELETE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mapping to table \"%s\" needs a key", name),
				 errdetail("Without one, only on_write 'mirror' with on_delete 'delete' is possible."),
				 errhint("Create a primary key on the peer, or name the columns of a unique index as the mapping's key.")));
}

/*
 * Describe the target of a request; error unless it can be one.
 */
TargetTable *
target_require(Peer *peer, const MapRequest *request)
{
	char	   *name = quote_qualified_identifier(request->target_schema,
												  request->target_table);
	char	   *where = psprintf(" on %s", peer_description(peer));
	TargetTable *target = target_describe(peer, request->target_schema,
										  request->target_table,
										  request->key, !request->keyless);

	if (target == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("target table \"%s\" does not exist%s", name, where),
				 errhint("Create it there, or name another with \"target\".")));
	check_kind(target->kind, name, where);
	check_not_system(target->is_system ||
					 is_own_table(target->schema, request->target_table),
					 name, where);
	check_persistence(target->persistence, name, where);
	if (target->key_is_deferrable)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the key of target table \"%s\"%s is deferrable",
						name, where),
				 errdetail("Nothing enforces a deferrable key while a stream applies changes."),
				 errhint("Make the constraint NOT DEFERRABLE, or name another key.")));
	if (!target->has_key)
		check_keyless(request, name);
	check_sessions(request, name);
	return target;
}

/*
 * The transform of a mapping that has none: every column of the source by its
 * name.  Errors: the target lacks a column.
 */
char *
transform_default(const MapRequest *request, TargetTable *target)
{
	Relation	source = table_open(request->source, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(source);
	char	   *name =
		quote_qualified_identifier(get_namespace_name(RelationGetNamespace(source)),
								   RelationGetRelationName(source));
	StringInfoData sql;
	bool		first = true;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		TargetColumn *column;

		if (att->attisdropped)
			continue;
		column = target_column(target, NameStr(att->attname));
		if (column == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("target table \"%s\" has no column \"%s\"",
							quote_qualified_identifier(target->schema,
													   target->table),
							NameStr(att->attname)),
					 errhint("Give a transform that says what becomes of column \"%s\" of table \"%s\".",
							 NameStr(att->attname), name)));
		if (att->attgenerated && column->generated)
			continue;
		appendStringInfo(&sql, "%s%s", first ? "" : ", ",
						 quote_identifier(NameStr(att->attname)));
		first = false;
	}
	appendStringInfo(&sql, " FROM %s", name);
	table_close(source, NoLock);
	if (first)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("table \"%s\" has no columns to map", name)));
	return sql.data;
}

/*
 * One column that the transform gives.
 */
static void
check_given_column(const MapRequest *request, TargetTable *target,
				   List *before, const char *name)
{
	const char *what = request->lookup ? "lookup" : "transform";
	char	   *table = quote_qualified_identifier(target->schema,
												   target->table);
	TargetColumn *column = target_column(target, name);

	if (column == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("target table \"%s\" has no column \"%s\"",
						table, name),
				 errhint("Name each column of the %s after the target's column, with AS where needed.",
						 what)));
	if (column->generated)
		ereport(ERROR,
				(errcode(ERRCODE_GENERATED_ALWAYS),
				 errmsg("column \"%s\" of target table \"%s\" is generated",
						name, table),
				 errhint("Leave it out of the %s; the target computes it.",
						 what)));
	if (name_in_list(before, name))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_COLUMN),
				 errmsg("%s gives column \"%s\" of target table \"%s\" twice",
						what, name, table)));
}

/*
 * One column that the transform does not give.
 */
static void
check_missing_column(const MapRequest *request, TargetTable *target,
					 const TargetColumn *column)
{
	const char *what = request->lookup ? "lookup" : "transform";
	char	   *table = quote_qualified_identifier(target->schema,
												   target->table);

	if (column->key_position > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("%s does not give key column \"%s\" of target table \"%s\"",
						what, column->name, table),
				 errhint("Add it to the %s, or name another key.", what)));
	if (column->not_null && !column->has_default && !column->generated &&
		request->on_write != ON_WRITE_PATCH)
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("%s does not give column \"%s\" of target table \"%s\", which is NOT NULL and has no default",
						what, column->name, table),
				 errhint("Add it to the %s, or give the column a default there.",
						 what)));
}

/*
 * Check the column names that a transform gives, in order, against the
 * target's columns.
 */
void
target_check_columns(const MapRequest *request, TargetTable *target,
					 List *names)
{
	List	   *before = NIL;
	ListCell   *lc;

	foreach(lc, names)
	{
		check_given_column(request, target, before, lfirst(lc));
		before = lappend(before, lfirst(lc));
	}
	for (int i = 0; i < target->ncolumns; i++)
		if (!name_in_list(names, target->columns[i].name))
			check_missing_column(request, target, &target->columns[i]);
}

/*
 * Does the target have columns that the mapping doesn't write, and that are
 * not computed from those that it writes?
 */
bool
target_has_other_columns(TargetTable *target, List *names)
{
	for (int i = 0; i < target->ncolumns; i++)
		if (!target->columns[i].generated &&
			!name_in_list(names, target->columns[i].name))
			return true;
	return false;
}

/*
 * OID of the type here that has the schema and the name of the target's, or
 * InvalidOid.
 */
static Oid
local_type(const TargetColumn *column)
{
	Oid			namespace = get_namespace_oid(column->type_schema, true);

	if (!OidIsValid(namespace))
		return InvalidOid;
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
						   CStringGetDatum(column->type_name),
						   ObjectIdGetDatum(namespace));
}

/*
 * Are parts of a type's values checked when a parameter comes in, before
 * anybody has decided whose rights the domain's CHECK shall have?
 */
static bool
is_checked(Oid type)
{
	Oid			range = get_multirange_range(type);
	Oid			subtype = get_range_subtype(OidIsValid(range) ? range : type);

	return get_typtype(OidIsValid(subtype) ? subtype : type) == TYPTYPE_DOMAIN;
}

/*
 * How values of a target column travel.  Binary needs a type that both sides
 * know under one name; a row type's binary form names its columns' types by
 * OID, which differ between clusters, so rows and arrays of them go as text.
 */
WireKind
target_wire_kind(const TargetColumn *column)
{
	Oid			type = local_type(column);
	Oid			element;

	if (!OidIsValid(type) || !column->has_binary || column->type_kind == 'c')
		return WIRE_TEXT;
	type = getBaseType(type);
	element = get_element_type(type);
	if (type_is_rowtype(OidIsValid(element) ? element : type) ||
		is_checked(OidIsValid(element) ? element : type))
		return WIRE_TEXT;
	/* also a domain over an array */
	return column->is_array || OidIsValid(element) ? WIRE_ARRAY : WIRE_BINARY;
}
