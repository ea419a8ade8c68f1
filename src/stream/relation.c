/*-------------------------------------------------------------------------
 *
 * relation.c
 *		Cache of decoded relations: which transforms a change goes through.
 *
 * Decoding shows leaf partitions; a mapping names the root.  An entry binds a
 * leaf to the transforms of its ancestors, with a map from the root's columns
 * to the leaf's (they may stand in another order).  Everything here is read
 * from the catalogs as they were when the change was made and compared with
 * what was compiled under the current ones.  A difference (a misfit) is an
 * error as soon as a row has to be evaluated: an expression compiled for text
 * would read an int as a pointer.  It is none for a row that the copy of the
 * table has seen, so a table may be mapped again after any ALTER TABLE.
 *
 * Relcache invalidation makes an entry stale, not gone, for it may be in use.
 * Stale entries are given back when new ones are needed and there have come to
 * be many: else tables that come and go would add up.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "compat.h"
#include "stream/relation.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#define MIN_ENTRIES		256		/* fewer are not worth a look for stale ones */

/* Whose entries the invalidation callback marks; one state per process. */
static DecodeState *invalidated = NULL;

static bool
is_source(const DecodeState *state, Oid relid)
{
	ListCell   *lc;

	foreach(lc, state->transforms)
	{
		if (((Transform *) lfirst(lc))->row->source == relid)
			return true;
	}
	return false;
}

/*
 * Relcache callback.  Most relations are no sources, and there may be many
 * entries: only for a source they are all looked at, since a leaf's entry
 * depends on its root's columns as well.
 */
static void
invalidate_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	RelationEntry *entry;

	if (invalidated == NULL)
		return;
	if (OidIsValid(relid) && !is_source(invalidated, relid))
	{
		entry = hash_search(invalidated->relations, &relid, HASH_FIND, NULL);
		if (entry != NULL)
			entry->valid = false;
		return;
	}
	hash_seq_init(&status, invalidated->relations);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (!OidIsValid(relid) || entry->relid == relid)
			entry->valid = false;
		for (int i = 0; i < entry->ntransforms; i++)
			if (entry->transforms[i].transform->row->source == relid)
				entry->valid = false;
	}
}

/*
 * Give back the stale entries if there have come to be many.  None may be in
 * use.
 */
static void
forget_stale_entries(DecodeState *state)
{
	HASH_SEQ_STATUS status;
	RelationEntry *entry;

	if (hash_get_num_entries(state->relations) < state->max_relations)
		return;
	state->last_relation = NULL;
	hash_seq_init(&status, state->relations);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->valid)
			continue;
		if (entry->context)
			MemoryContextDelete(entry->context);
		hash_search(state->relations, &entry->relid, HASH_REMOVE, NULL);
	}
	state->max_relations = Max(hash_get_num_entries(state->relations) * 2,
							   MIN_ENTRIES);
}

static void
forget_entries(void *arg)
{
	invalidated = NULL;
}

/*
 * Make the state's empty cache.  The callback is registered once per process,
 * since there is no way to take it back.
 */
void
relation_entries_create(DecodeState *state)
{
	static bool registered = false;
	HASHCTL		ctl = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(RelationEntry),
		.hcxt = state->context
	};
	MemoryContextCallback *callback =
		MemoryContextAllocZero(state->context, sizeof(*callback));

	state->relations = hash_create("pg_bluegreen relations", 64, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	state->max_relations = MIN_ENTRIES;
	invalidated = state;
	callback->func = forget_entries;
	MemoryContextRegisterResetCallback(state->context, callback);
	if (!registered)
		CacheRegisterRelcacheCallback(invalidate_relation, (Datum) 0);
	registered = true;
}

/*
 * Was a column, which the transform reads, another one when the change was
 * made?  The reason as a sentence, or NULL.
 */
static const char *
compare_column(const Transform *transform, AttrNumber attno, TupleDesc desc)
{
	const SourceAttribute *mine = &transform->source[attno - 1];
	Form_pg_attribute att;

	if (attno > desc->natts)
		return "The column did not exist yet when the row was written.";
	att = TupleDescAttr(desc, attno - 1);
	if (att->attisdropped != mine->dropped)
		return att->attisdropped ?
			"The column had been dropped when the row was written." :
			"The column has been dropped since the row was written.";
	if (att->atttypid != mine->type || att->atttypmod != mine->typmod)
		return psprintf("The row was written with type %s; the mapping expects %s.",
						format_type_with_typemod(att->atttypid, att->atttypmod),
						format_type_with_typemod(mine->type, mine->typmod));
	if (transform->reads_whole_row &&
		strcmp(NameStr(att->attname), NameStr(mine->name)) != 0)
		return psprintf("The column was named \"%s\" when the row was written, and the transform reads whole rows.",
						NameStr(att->attname));
	return NULL;
}

/*
 * The first column that the transform reads and that is not, in the relation
 * as it was or is, what was compiled.  Of a transform that reads whole rows,
 * this may be a column that was added.
 */
Misfit
relation_find_misfit(const Transform *transform, Relation root)
{
	TupleDesc	desc = RelationGetDescr(root);
	Misfit		misfit = transform->misfit;
	int			attno = -1;

	if (misfit.column != NULL)
		return misfit;
	while ((attno = bms_next_member(transform->reads, attno)) >= 0)
	{
		misfit.reason = compare_column(transform, attno, desc);
		if (misfit.reason != NULL)
		{
			misfit.column = NameStr(transform->source[attno - 1].name);
			return misfit;
		}
	}
	for (int i = transform->source_desc->natts;
		 transform->reads_whole_row && i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		misfit.column = pstrdup(NameStr(att->attname));
		misfit.reason = "The column was added, and the transform reads whole rows.";
		break;
	}
	return misfit;
}

/*
 * Raise the error for a misfit.
 */
void
relation_refuse(const Transform *transform, const Misfit *misfit)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column \"%s\" of table \"%s\" is not what the mapping to \"%s\" was compiled for",
					misfit->column,
					get_rel_name(transform->row->source),
					mapping_target_name(transform->row)),
			 errdetail_internal("%s", misfit->reason),
			 errhint("Change the mapping with bluegreen.alter_mapping() so that it fits; or unmap the table, empty its target and map it again.")));
}

/*
 * Map the root's columns to a leaf's, by name; both as of the change.  There is
 * an entry for each column of today, which the root may not have had yet.
 * Returns NULL if they are the same.
 */
static AttrNumber *
build_attrmap(const Transform *transform, Relation root, Relation leaf)
{
	TupleDesc	desc = RelationGetDescr(root);
	int			natts = transform->source_desc->natts;
	AttrNumber *map = palloc0_array(AttrNumber, natts);
	bool		same = natts <= desc->natts;

	for (int i = 0; i < Min(natts, desc->natts); i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		for (int j = 0; j < RelationGetDescr(leaf)->natts; j++)
		{
			Form_pg_attribute other = TupleDescAttr(RelationGetDescr(leaf), j);

			if (!att->attisdropped && !other->attisdropped &&
				strcmp(NameStr(att->attname), NameStr(other->attname)) == 0)
				map[i] = j + 1;
		}
		same &= map[i] == i + 1;
	}
	return same ? NULL : map;
}

/*
 * Which columns of the source do old tuples of this relation carry, and is
 * that enough?  Someone may have altered it before or since the transform was
 * compiled.
 */
static void
bind_identity(RelationTransform *bound, Relation leaf)
{
	Transform  *transform = bound->transform;
	Bitmapset  *carried = relation_identity(leaf, &bound->identity_full);

	for (int i = 0; i < transform->source_desc->natts; i++)
	{
		int			attno = i + 1;

		if (bound->attrmap)
			attno = bound->attrmap[i];
		if (bms_is_member(attno, carried))
			bound->identity = bms_add_member(bound->identity, i + 1);
	}
	bound->identity_ok = bound->identity_full ||
		transform_identity_suffices(transform, bound->identity);
	bound->filter_by_identity = bound->identity_full ||
		bms_is_subset(transform->filter_reads, bound->identity);
}

static void
bind_transform(RelationEntry *entry, Transform *transform, Relation relation)
{
	RelationTransform *bound = &entry->transforms[entry->ntransforms++];
	Oid			source = transform->row->source;

	bound->transform = transform;
	bound->attrmap = NULL;
	if (source == RelationGetRelid(relation))
		bound->misfit = relation_find_misfit(transform, relation);
	else
	{
		Relation	root = RelationIdGetRelation(source);

		if (!RelationIsValid(root))
			elog(ERROR, "could not open relation with OID %u", source);
		bound->misfit = relation_find_misfit(transform, root);
		bound->attrmap = build_attrmap(transform, root, relation);
		RelationClose(root);
	}
	bound->values = palloc_array(Datum, transform->source_desc->natts);
	bound->isnull = palloc_array(bool, transform->source_desc->natts);
	if (bound->misfit.column == NULL)
		bind_identity(bound, relation);
}

static void
deformed_init(DeformedTuple *tuple, int natts)
{
	tuple->values = palloc0_array(Datum, natts);
	tuple->isnull = palloc_array(bool, natts);
	memset(tuple->isnull, true, natts);
}

static void
fill_entry(DecodeState *state, RelationEntry *entry, Relation relation)
{
	List	   *sources = NIL;
	int			natts = RelationGetDescr(relation)->natts;
	ListCell   *lc;

	if (relation->rd_rel->relispartition)
		sources = get_partition_ancestors(entry->relid);
	sources = lcons_oid(entry->relid, sources);

	entry->ntransforms = 0;
	entry->transforms = palloc0_array(RelationTransform,
									  Max(list_length(state->transforms), 1));
	foreach(lc, state->transforms)
	{
		Transform  *transform = lfirst(lc);

		if (!list_member_oid(sources, transform->row->source))
			continue;
		bind_transform(entry, transform, relation);
		natts = Max(natts, transform->source_desc->natts);
	}
	deformed_init(&entry->new, natts);
	deformed_init(&entry->old, natts);
}

/*
 * The entry of a relation that a change refers to, brought up to date.  It is
 * good until the next call.
 */
RelationEntry *
relation_entry(DecodeState *state, Relation relation)
{
	Oid			relid = RelationGetRelid(relation);
	RelationEntry *entry = state->last_relation;
	MemoryContext old;

	/* mostly it is the one of the change before */
	if (entry != NULL && entry->relid == relid && entry->valid)
		return entry;
	entry = hash_search(state->relations, &relid, HASH_FIND, NULL);
	state->last_relation = entry;
	if (entry != NULL && entry->valid)
		return entry;
	if (entry == NULL)
	{
		forget_stale_entries(state);
		entry = hash_search(state->relations, &relid, HASH_ENTER, NULL);
		entry->context = NULL;
	}

	entry->ntransforms = 0;
	if (entry->context)
		MemoryContextReset(entry->context);
	else
		entry->context = AllocSetContextCreate(state->context,
											   "pg_bluegreen relation",
											   ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(entry->context);
	/* set first: an invalidation that arrives meanwhile must win */
	entry->valid = true;
	fill_entry(state, entry, relation);
	MemoryContextSwitchTo(old);
	return entry;
}
