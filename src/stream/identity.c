/*-------------------------------------------------------------------------
 *
 * identity.c
 *		What a change carries of its row, and whether a mapping can live with
 *		that.
 *
 * An INSERT carries every column.  An UPDATE carries the new row without the
 * TOASTed values that it left alone, and of the old row the replica identity's
 * columns (all of them under FULL) if one of those changed.  A DELETE carries
 * the replica identity's columns.  So whatever a mapping wants to know is
 * either there every time or may be missing one day, and that can be told
 * when the mapping is defined.  It is refused then, with the ALTER TABLE that
 * mends it, rather than at run time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/index.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "commands/defrem.h"
#include "stream/transform.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

/*
 * Columns that the old tuple of a relation's UPDATEs and DELETEs carries;
 * *full if all of them.  NULL if there is no replica identity.
 */
Bitmapset *
relation_identity(Relation relation, bool *full)
{
	*full = relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL;
	if (*full)
		return bms_add_range(NULL, 1, RelationGetDescr(relation)->natts);
	return index_columns(RelationGetReplicaIndex(relation));
}

/*
 * Attribute numbers of an index's key columns; NULL for InvalidOid.  Takes no
 * lock: the caller has one on the table, or is decoding, where the index is
 * what it was in the past.  A lock could wait there for a TRUNCATE whose
 * transaction waits for somebody who waits for the stream.
 */
Bitmapset *
index_columns(Oid indexid)
{
	Bitmapset  *result = NULL;
	Relation	index;

	if (!OidIsValid(indexid))
		return NULL;
	index = RelationIdGetRelation(indexid);
	if (!RelationIsValid(index))
		elog(ERROR, "could not open index with OID %u", indexid);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		result = bms_add_member(result, index->rd_index->indkey.values[i]);
	RelationClose(index);
	return result;
}

/*
 * A leaf's attribute numbers as those of its root, by column name.
 */
static Bitmapset *
to_root(Bitmapset *attnos, Relation leaf, Relation root)
{
	Bitmapset  *result = NULL;
	int			attno = -1;

	while ((attno = bms_next_member(attnos, attno)) >= 0)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(leaf),
											  attno - 1);
		AttrNumber	mine = get_attnum(RelationGetRelid(root),
									  NameStr(att->attname));

		if (mine > 0)
			result = bms_add_member(result, mine);
	}
	return result;
}

/*
 * What all leaves of a partitioned table have in common; each leaf has a
 * replica identity of its own, whatever the root's says.
 */
static void
partitioned_identity(Transform *transform, Relation root)
{
	List	   *oids = find_all_inheritors(RelationGetRelid(root),
										   AccessShareLock, NULL);
	Bitmapset  *common = bms_add_range(NULL, 1,
									   RelationGetDescr(root)->natts);
	bool		all_full = true;
	bool		any = false;
	ListCell   *lc;

	foreach(lc, oids)
	{
		Relation	leaf = table_open(lfirst_oid(lc), NoLock);
		bool		full;

		if (leaf->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		{
			Bitmapset  *mine = relation_identity(leaf, &full);

			common = bms_int_members(common, to_root(mine, leaf, root));
			all_full &= full;
			any = true;
		}
		table_close(leaf, NoLock);
	}
	transform->identity_full = any && all_full;
	transform->identity = any ? common : relation_identity(root, &all_full);
}

/*
 * Do a type's comparison, input or output look into the catalogs?  They are
 * used where there is no transaction.
 */
static bool
type_needs_catalogs(Oid type, Oid opclass)
{
	return get_typtype(type) != TYPTYPE_BASE ||
		OidIsValid(get_element_type(type)) ||
		(get_opclass_input_type(opclass) == OIDOID && type != OIDOID);
}

/*
 * Can rows be put in order by an index, on this side, with plain comparison
 * operators?  True for indexes on columns of built-in types with their default
 * operator classes and the columns' own collations.
 */
static bool
index_orders_plainly(Relation index)
{
	Relation	table = table_open(index->rd_index->indrelid, NoLock);
	bool		result = index->rd_rel->relam == BTREE_AM_OID;

	for (int i = 0; result && i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		AttrNumber	attno = index->rd_index->indkey.values[i];
		Form_pg_attribute att;
		Oid			opclass;

		if (attno <= 0)
		{
			result = false;
			break;
		}
		att = TupleDescAttr(RelationGetDescr(table), attno - 1);
		opclass = GetDefaultOpClass(att->atttypid, BTREE_AM_OID);
		result = att->atttypid < FirstNormalObjectId && att->attnotnull &&
			OidIsValid(opclass) &&
			!type_needs_catalogs(att->atttypid, opclass) &&
			get_opclass_family(opclass) == index->rd_opfamily[i] &&
			att->attcollation == index->rd_indcollation[i];
	}
	table_close(table, NoLock);
	return result;
}

/*
 * Can the table be cut into key ranges?  Its chunk key must be one to one with
 * the target's key: each of its columns is a key column of the target as it
 * is, and no key column of the target reads anything else.
 */
static bool
is_chunkable(const Transform *transform)
{
	Bitmapset  *plain = NULL;
	Relation	index;
	bool		ordered;

	if (!OidIsValid(transform->chunk_index) || transform->row->lookup ||
		transform->row->on_write != ON_WRITE_MIRROR ||
		transform->row->on_delete != ON_DELETE_DELETE ||
		!bms_is_subset(transform->key_reads, transform->chunk_key))
		return false;
	for (int k = 0; k < transform->nkeys; k++)
	{
		AttrNumber	attno = transform->columns[transform->keys[k]].source_attno;

		if (attno > 0)
			plain = bms_add_member(plain, attno);
	}
	if (!bms_is_subset(transform->chunk_key, plain))
		return false;
	index = index_open(transform->chunk_index, AccessShareLock);
	ordered = index_orders_plainly(index);
	index_close(index, AccessShareLock);
	return ordered;
}

/*
 * Fill in what the replica identity gives: its columns, whether the filter
 * follows from it, and by which index the table can be copied in chunks.
 */
void
transform_find_identity(Transform *transform, Relation source)
{
	bool		full;

	if (source->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		partitioned_identity(transform, source);
	else
	{
		transform->identity = relation_identity(source, &full);
		transform->identity_full = full;
	}
	if (transform->identity_full)
		transform->chunk_index = relation_primary_key(source);
	else
		transform->chunk_index = RelationGetReplicaIndex(source);
	transform->chunk_key = index_columns(transform->chunk_index);
	if (!bms_is_subset(transform->chunk_key, transform->identity))
	{
		transform->chunk_index = InvalidOid;
		transform->chunk_key = NULL;
	}
	transform->chunkable = is_chunkable(transform);
}

static void
append_alter(StringInfo statements, Oid relid)
{
	char	   *schema = get_namespace_name(get_rel_namespace(relid));

	appendStringInfo(statements, "%sALTER TABLE %s REPLICA IDENTITY FULL;",
					 statements->len > 0 ? " " : "",
					 quote_qualified_identifier(schema, get_rel_name(relid)));
}

/*
 * The statements that mend a table's replica identity.  ALTER TABLE of a
 * partitioned table does not reach its leaves, whose identity it is that
 * counts.
 */
static char *
mending_statements(Oid source)
{
	StringInfoData statements;
	ListCell   *lc;

	initStringInfo(&statements);
	foreach(lc, find_all_inheritors(source, NoLock, NULL))
	{
		Oid			relid = lfirst_oid(lc);
		Relation	relation;

		if (get_rel_relkind(source) != RELKIND_PARTITIONED_TABLE ||
			get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
			continue;
		relation = table_open(relid, AccessShareLock);
		if (relation->rd_rel->relreplident != REPLICA_IDENTITY_FULL)
			append_alter(&statements, relid);
		table_close(relation, NoLock);
	}
	if (statements.len == 0)
		append_alter(&statements, source);
	return statements.data;
}

static void
refuse(const Transform *transform, const char *reason)
{
	Oid			source = transform->row->source;

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("replica identity of table \"%s\" does not suffice for its mapping to \"%s\"",
					get_rel_name(source), mapping_target_name(transform->row)),
			 errdetail("%s", reason),
			 errhint("%s", mending_statements(source))));
}

/*
 * One column that may be absent: that is fine where leaving it out of an
 * UPDATE's SET says all there is to say.  The reason why it is not, or NULL.
 *
 * Let through is what only an UPDATE of the replica identity itself could
 * bring about: a row that enters a filter on the key, or that is inserted
 * under its new key because the old one stays (on_delete is not delete), with
 * a TOASTed value left alone.  To ask every filtered table for REPLICA
 * IDENTITY FULL would be a high price for what hardly ever happens; the stream
 * stops at it with the statement that mends it (gate.c).
 */
static const char *
absent_column_problem(const Transform *transform,
					  const TransformColumn *column,
					  const Bitmapset *identity)
{
	if (transform->row->lookup)
		return psprintf("An UPDATE may leave out what column \"%s\" of \"incoming\" reads, and the lookup wants all of its columns.",
						column->def->name);
	if (bms_membership(column->reads) == BMS_MULTIPLE ||
		column->depends_on_commit)
		return psprintf("Target column \"%s\" combines a column that an UPDATE may leave out with others.",
						column->def->name);
	if (transform->row->on_write == ON_WRITE_MERGE)
		return psprintf("An UPDATE may leave out what target column \"%s\" reads, and a merge may have to insert it.",
						column->def->name);
	if (transform->filter != NULL &&
		!bms_is_subset(transform->filter_reads, identity))
		return psprintf("An UPDATE that makes a row pass the filter may leave out what target column \"%s\" reads.",
						column->def->name);
	return NULL;
}

/*
 * A column of the set that may be TOASTed and is not in the identity; 0 if
 * there is none.
 */
static AttrNumber
may_be_left_out(const Transform *transform, const Bitmapset *attnos,
				const Bitmapset *identity)
{
	int			attno = -1;

	while ((attno = bms_next_member(attnos, attno)) >= 0)
		if (transform->source[attno - 1].toastable &&
			!bms_is_member(attno, identity))
			return attno;
	return 0;
}

/*
 * Why changes that carry this replica identity (attributes of the source; not
 * all of them) do not carry enough for the mapping; NULL if they do.
 */
static const char *
identity_problem(const Transform *transform, const Bitmapset *identity)
{
	AttrNumber	attno;

	if (identity == NULL)
		return "The table has no replica identity, so an UPDATE or DELETE does not say which row it changed.";
	if (transform->row->lookup &&
		!bms_is_subset(transform->key_reads, identity))
		return "The lookup's joins, conditions and key read columns outside the replica identity, so a DELETE does not say which target row goes.";
	if (transform->row->lookup &&
		!bms_is_subset(transform->filter_reads, identity))
		return "The filter reads columns outside the replica identity, so a change does not say whether the target has the row, and the lookup might not find it.";
	if (!bms_is_subset(transform->key_reads, identity))
		return "The target's key reads columns outside the replica identity, so a DELETE does not say which target row goes.";
	attno = may_be_left_out(transform, transform->filter_reads, identity);
	if (attno > 0)
		return psprintf("An UPDATE may leave out column \"%s\", which the filter reads.",
						NameStr(transform->source[attno - 1].name));
	if (transform->row->on_delete == ON_DELETE_WRITE &&
		!bms_is_subset(transform->reads, identity))
		return "The old row is written on a DELETE, but the DELETE carries only the replica identity's columns.";
	for (int i = 0; i < transform->ncolumns; i++)
	{
		const TransformColumn *column = &transform->columns[i];
		const char *problem = NULL;

		if (may_be_left_out(transform, column->reads, identity) > 0)
			problem = absent_column_problem(transform, column, identity);
		if (problem != NULL)
			return problem;
	}
	return NULL;
}

/*
 * Without a key, a row of the target is found by all that the old row gives.
 * An INSERT asks for nothing, and an UPDATE or DELETE that does not carry the
 * whole old row stops the stream (rowchange.c).
 */
static void
check_keyless(const Transform *transform)
{
	for (int i = 0; i < transform->ncolumns; i++)
		if (transform->columns[i].finds_row)
			return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("mapping to \"%s\" needs a key",
					mapping_target_name(transform->row)),
			 errdetail("All of its columns depend on the commit, so that no row can be found by its values."),
			 errhint("Map another column as well, or name the mapping's key.")));
}

static bool
is_unique_now(Oid indexid)
{
	Relation	index = RelationIdGetRelation(indexid);
	bool		result;

	if (!RelationIsValid(index))
		return false;
	result = index->rd_index->indisunique && index->rd_index->indisvalid &&
		index->rd_index->indimmediate &&
		RelationGetIndexPredicate(index) == NIL &&
		RelationGetIndexExpressions(index) == NIL;
	RelationClose(index);
	return result;
}

/*
 * Are the source's rows told from each other by these columns?
 */
static bool
is_key_of(Relation relation, const Bitmapset *columns)
{
	List	   *indexes = RelationGetIndexList(relation);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Oid			indexid = lfirst_oid(lc);

		if (is_unique_now(indexid) &&
			bms_is_subset(index_columns(indexid), columns))
			return true;
	}
	return false;
}

/*
 * The rows of a mirror with a lookup are told from each other by the source's
 * key (core/lookup.c), which must be one still.
 */
static void
check_lookup_key(const Transform *transform)
{
	Relation	relation;
	Bitmapset  *columns = NULL;
	bool		unique;

	if (transform->row->lookup == NULL ||
		transform->row->on_write != ON_WRITE_MIRROR)
		return;
	for (int i = 0; i < transform->ncolumns; i++)
		if (transform->columns[i].def->is_key)
			columns = bms_add_members(columns, transform->columns[i].reads);
	relation = table_open(transform->row->source, AccessShareLock);
	unique = is_key_of(relation, columns);
	table_close(relation, NoLock);
	if (!unique)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has lost the key that its mapping to \"%s\" goes by",
						get_rel_name(transform->row->source),
						mapping_target_name(transform->row)),
				 errdetail("The rows of a mapping with a lookup are told from each other by the source's key."),
				 errhint("Create the primary key or unique index again, or give the mapping its lookup again with bluegreen.alter_mapping().")));
}

/*
 * Refuse a mapping that a change may not carry enough for.  Errors have the
 * ALTER TABLE that mends it as their hint.  Called when the mapping is defined
 * and again whenever a stream begins: the table may have been altered since.
 */
void
transform_check_identity(Transform *transform)
{
	const char *problem = NULL;

	if (transform->nkeys == 0)
		check_keyless(transform);
	else if (!transform->identity_full)
		problem = identity_problem(transform, transform->identity);
	if (problem != NULL)
		refuse(transform, problem);
	check_lookup_key(transform);
}

/*
 * Would a change with another replica identity than the one that was compiled
 * carry enough?  Without a key every row is asked by itself (rowchange.c).
 */
bool
transform_identity_suffices(const Transform *transform,
							const Bitmapset *identity)
{
	return transform->nkeys == 0 ||
		identity_problem(transform, identity) == NULL;
}
