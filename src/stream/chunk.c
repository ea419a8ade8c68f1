/*-------------------------------------------------------------------------
 *
 * chunk.c
 *		The directory of a table's chunks, and who knows what about them.
 *
 * A chunk is a range of the chunk key, copied under one short snapshot S.  It
 * is finished when its row in bluegreen.applied_chunk commits on the target,
 * together with its data; before that it is announced in shared memory by the
 * copy worker that is at it.  The directory of a table is both together.
 *
 * The order of things makes it safe to decide a decoded row by what the
 * directory says at that moment:
 *
 *	copy worker: announce the range -> lock the table -> take S -> copy ->
 *		commit on the target -> take the announcement back
 *	stream: wait until the row's transaction has left the proc array ->
 *		read announcements and finished chunks -> decide
 *
 * If the range was not announced then, S is taken later and sees the row's
 * transaction: drop the row.  If it is announced: wait.  If it is finished: S
 * tells.  Every announcement and every end of one raises
 * StreamShared.chunk_version, and a load that saw the version change under it
 * loads again.
 *
 * Bounds are compared on the source only, by the chunk key's index order.
 * They travel as text[] literals of the key's output functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "stream/chunk.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/typcache.h"

static void
fill_key_column(KeySpace *space, int i, const Transform *transform,
				AttrNumber attno)
{
	Form_pg_attribute att = TupleDescAttr(transform->source_desc, attno - 1);
	TypeCacheEntry *type = lookup_type_cache(att->atttypid,
											 TYPECACHE_CMP_PROC);
	Oid			function;
	bool		is_varlena;

	space->attnos[i] = attno;
	space->names[i] = pstrdup(quote_identifier(NameStr(att->attname)));
	space->types[i] = format_type_extended(att->atttypid, att->atttypmod,
										   FORMAT_TYPE_TYPEMOD_GIVEN |
										   FORMAT_TYPE_FORCE_QUALIFY);
	space->collations[i] = att->attcollation;
	space->typmods[i] = att->atttypmod;
	fmgr_info(type->cmp_proc, &space->compare[i]);
	getTypeOutputInfo(att->atttypid, &function, &is_varlena);
	fmgr_info(function, &space->output[i]);
	getTypeInputInfo(att->atttypid, &function, &space->ioparams[i]);
	fmgr_info(function, &space->input[i]);

	/* load the collation, which a comparison looks up only once */
	if (OidIsValid(att->attcollation))
	{
		Datum		empty = InputFunctionCall(&space->input[i],
											  pstrdup(""), space->ioparams[i],
											  space->typmods[i]);

		(void) FunctionCall2Coll(&space->compare[i], att->attcollation,
								 empty, empty);
	}
}

/*
 * Bounds are parsed and written where there is no transaction.  The functions
 * of text[] look the element type up when they are called first, so do that.
 */
static void
prepare_array_functions(KeySpace *space)
{
	Datum		array;

	fmgr_info(F_ARRAY_IN, &space->array_input);
	fmgr_info(F_ARRAY_OUT, &space->array_output);
	array = InputFunctionCall(&space->array_input, pstrdup("{}"), TEXTOID, -1);
	(void) OutputFunctionCall(&space->array_output, array);
}

/*
 * The key space of a compiled transform, in CurrentMemoryContext.  Needs a
 * transaction and no decoding context.
 */
KeySpace *
keyspace_create(Transform *transform)
{
	KeySpace   *space = palloc0_object(KeySpace);
	Relation	index;
	int			n;

	prepare_array_functions(space);
	if (!transform->chunkable)
		return space;
	index = index_open(transform->chunk_index, AccessShareLock);
	n = IndexRelationGetNumberOfKeyAttributes(index);
	space->nkeys = n;
	space->attnos = palloc0_array(AttrNumber, n);
	space->names = palloc0_array(char *, n);
	space->types = palloc0_array(char *, n);
	space->compare = palloc0_array(FmgrInfo, n);
	space->collations = palloc0_array(Oid, n);
	space->input = palloc0_array(FmgrInfo, n);
	space->output = palloc0_array(FmgrInfo, n);
	space->ioparams = palloc0_array(Oid, n);
	space->typmods = palloc0_array(int32, n);
	for (int i = 0; i < n; i++)
		fill_key_column(space, i, transform,
						index->rd_index->indkey.values[i]);
	index_close(index, AccessShareLock);
	return space;
}

/*
 * -1, 0 or 1, in the order of the chunk key's index.
 */
int
chunk_compare_keys(const KeySpace *space, const Datum *a, const Datum *b)
{
	for (int i = 0; i < space->nkeys; i++)
	{
		int			order;

		order = DatumGetInt32(FunctionCall2Coll(&space->compare[i],
												space->collations[i],
												a[i], b[i]));
		if (order != 0)
			return order;
	}
	return 0;
}

/*
 * The row's key, pointing into the slot.
 */
Datum *
keyspace_key_from_slot(const KeySpace *space, TupleTableSlot *slot)
{
	Datum	   *key = palloc_array(Datum, Max(space->nkeys, 1));

	for (int i = 0; i < space->nkeys; i++)
		key[i] = slot->tts_values[space->attnos[i] - 1];
	return key;
}

/*
 * A key as the literal of a text[].
 */
char *
keyspace_key_to_literal(KeySpace *space, const Datum *key)
{
	Datum	   *texts = palloc_array(Datum, Max(space->nkeys, 1));
	ArrayType  *array;

	for (int i = 0; i < space->nkeys; i++)
		texts[i] = CStringGetTextDatum(OutputFunctionCall(&space->output[i],
														  key[i]));
	array = construct_array(texts, space->nkeys, TEXTOID, -1, false,
							TYPALIGN_INT);
	return OutputFunctionCall(&space->array_output, PointerGetDatum(array));
}

/*
 * The reverse.  NULL for NULL.
 */
Datum *
keyspace_key_from_literal(KeySpace *space, const char *literal)
{
	Datum		array;
	Datum	   *texts;
	Datum	   *key;
	int			n;

	if (literal == NULL)
		return NULL;
	array = InputFunctionCall(&space->array_input, unconstify(char *, literal),
							  TEXTOID, -1);
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &texts, NULL, &n);
	if (n != space->nkeys)
		elog(ERROR, "chunk bound has %d columns instead of %d", n,
			 space->nkeys);
	key = palloc_array(Datum, Max(n, 1));
	for (int i = 0; i < n; i++)
		key[i] = InputFunctionCall(&space->input[i],
								   TextDatumGetCString(texts[i]),
								   space->ioparams[i], space->typmods[i]);
	return key;
}

/*
 * An empty directory over a transform's key, in CurrentMemoryContext.
 */
ChunkDirectory *
chunk_directory_create(Transform *transform)
{
	ChunkDirectory *directory = palloc0_object(ChunkDirectory);

	directory->transform = transform;
	directory->space = keyspace_create(transform);
	directory->context = AllocSetContextCreate(CurrentMemoryContext,
											   "pg_bluegreen chunks",
											   ALLOCSET_DEFAULT_SIZES);
	return directory;
}

static int
compare_xids(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

/*
 * Parse the text form of a pg_snapshot: xmin:xmax:xip,xip,...
 */
static void
parse_snapshot(Chunk *chunk, const char *text)
{
	char	   *end;
	int			max = 8;

	chunk->xmin = strtoull(text, &end, 10);
	chunk->xmax = strtoull(end + 1, &end, 10);
	chunk->xip = palloc_array(uint64, max);
	end++;
	while (*end != '\0')
	{
		if (chunk->nxip == max)
		{
			max *= 2;
			chunk->xip = repalloc(chunk->xip, max * sizeof(uint64));
		}
		chunk->xip[chunk->nxip++] = strtoull(end, &end, 10);
		if (*end == ',')
			end++;
	}
	qsort(chunk->xip, chunk->nxip, sizeof(uint64), compare_xids);
}

/*
 * Is a transaction, which has ended, visible in the chunk's snapshot S?
 */
bool
chunk_sees(const Chunk *chunk, TransactionId xid)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint64		epoch = EpochFromFullTransactionId(next);
	uint64		wide;

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	wide = (epoch << 32) | xid;
	if (wide < chunk->xmin)
		return true;
	if (wide >= chunk->xmax)
		return false;
	return bsearch(&wide, chunk->xip, chunk->nxip, sizeof(uint64),
				   compare_xids) == NULL;
}

/*
 * Add the announcements of this table's chunks.  Caller holds the chunk lock.
 */
static int
add_announced(ChunkDirectory *directory, const StreamShared *shared,
			  Chunk *chunks)
{
	int			n = 0;

	for (int i = 0; i < BG_MAX_COPY_WORKERS; i++)
	{
		const CopyShared *copy = &shared->copy[i];
		Chunk	   *chunk = &chunks[n];

		if (copy->mapping != directory->transform->row->id)
			continue;			/* mapping without pid: see copy.c */
		memset(chunk, 0, sizeof(Chunk));
		chunk->number = copy->number;
		chunk->announced = true;
		chunk->key_only = copy->key_only;
		chunk->lsn = copy->lsn;
		/* parsed after the lock is released */
		chunk->lower = copy->has_lower ? (Datum *) pstrdup(copy->lower) : NULL;
		chunk->upper = copy->has_upper ? (Datum *) pstrdup(copy->upper) : NULL;
		n++;
	}
	return n;
}

static int
compare_chunks(const void *a, const void *b, void *arg)
{
	const Chunk *x = a;
	const Chunk *y = b;

	if (x->lower == NULL || y->lower == NULL)
		return (x->lower != NULL) - (y->lower != NULL);
	return chunk_compare_keys(arg, x->lower, y->lower);
}

static void
add_finished(ChunkDirectory *directory, PeerResult *result, Chunk *chunk,
			 int row)
{
	char	  **values = result->values[row];

	memset(chunk, 0, sizeof(Chunk));
	chunk->number = atoi(values[0]);
	chunk->lower = keyspace_key_from_literal(directory->space, values[1]);
	chunk->upper = keyspace_key_from_literal(directory->space, values[2]);
	chunk->key_only = values[3][0] == 't';
	parse_snapshot(chunk, values[4]);
	chunk->lsn = DatumGetLSN(DirectFunctionCall1(pg_lsn_in,
												 CStringGetDatum(values[5])));
	directory->copied_until = Max(directory->copied_until, chunk->lsn);
}

/*
 * Split into ranges and single keys, sort, and see whether all is covered.
 */
static void
arrange(ChunkDirectory *directory, Chunk *all, int n)
{
	Datum	   *lower;
	Datum	   *upper;

	directory->announced = false;
	directory->chunks = palloc_array(Chunk, Max(n, 1));
	directory->keys = palloc_array(Chunk, Max(n, 1));
	directory->nchunks = 0;
	directory->nkeys = 0;
	for (int i = 0; i < n; i++)
	{
		if (all[i].key_only)
			directory->keys[directory->nkeys++] = all[i];
		else
			directory->chunks[directory->nchunks++] = all[i];
		directory->next_number = Max(directory->next_number,
									 all[i].number + 1);
		directory->announced |= all[i].announced;
	}
	qsort_arg(directory->chunks, directory->nchunks, sizeof(Chunk),
			  compare_chunks, directory->space);
	directory->complete = !directory->announced && directory->nchunks > 0 &&
		!chunk_first_gap(directory, &lower, &upper);
}

static PeerResult *
query_finished(ChunkDirectory *directory, Peer *peer, const char *origin)
{
	char	   *mapping = psprintf("%d", directory->transform->row->id);
	const char *args[] = {origin, mapping};
	PeerResult *result;

	result = peer_query(peer,
						"SELECT generation, key_aside "
						"FROM bluegreen.applied_table "
						"WHERE stream = $1 AND mapping = $2::integer",
						2, args);
	if (result->ntuples == 0)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("peer does not know the copy of table \"%s\"",
						mapping_target_name(directory->transform->row)),
				 errhint("The table may have been unmapped just now; the stream starts again.")));
	directory->generation = strtoll(result->values[0][0], NULL, 10);
	directory->key_aside = result->values[0][1][0] == 't';
	return peer_query(peer,
					  "SELECT number, lower, upper, key_only, snapshot, lsn "
					  "FROM bluegreen.applied_chunk "
					  "WHERE stream = $1 AND mapping = $2::integer "
					  "ORDER BY number DESC", 2, args);
}

/*
 * Load the directory anew: finished chunks from the target over a connection
 * that is not in pipeline mode, announced ones from shared memory.
 */
void
chunk_directory_load(ChunkDirectory *directory, Peer *peer,
					 const char *origin, StreamShared *shared)
{
	LWLock	   *lock = shared_chunk_lock();
	MemoryContext old = MemoryContextSwitchTo(directory->context);
	Chunk		announced[BG_MAX_COPY_WORKERS];
	bool		changed;

	do
	{
		PeerResult *result;
		Chunk	   *all;
		int			n;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(directory->context);
		directory->copied_until = InvalidXLogRecPtr;
		directory->next_number = 1;
		LWLockAcquire(lock, LW_SHARED);
		directory->version = shared->chunk_version;
		n = add_announced(directory, shared, announced);
		LWLockRelease(lock);

		result = query_finished(directory, peer, origin);
		all = palloc_array(Chunk, n + result->ntuples + 1);
		for (int i = 0; i < n; i++)
		{
			all[i] = announced[i];
			all[i].lower = keyspace_key_from_literal(directory->space,
													 (char *) all[i].lower);
			all[i].upper = keyspace_key_from_literal(directory->space,
													 (char *) all[i].upper);
		}
		for (int i = 0; i < result->ntuples; i++)
			add_finished(directory, result, &all[n + i], i);
		arrange(directory, all, n + result->ntuples);

		LWLockAcquire(lock, LW_SHARED);
		changed = directory->version != shared->chunk_version;
		LWLockRelease(lock);
	} while (changed);
	MemoryContextSwitchTo(old);
}

/*
 * The chunk that a key lies in, or NULL.  A key that was copied again has its
 * own, which counts.
 */
Chunk *
chunk_find(ChunkDirectory *directory, const Datum *key)
{
	const KeySpace *space = directory->space;
	int			low = 0;
	int			high = directory->nchunks;
	Chunk	   *chunk;

	for (int i = 0; i < directory->nkeys; i++)
		if (chunk_compare_keys(space, directory->keys[i].upper, key) == 0)
			return &directory->keys[i];

	/* the last range that begins below the key */
	while (low < high)
	{
		int			middle = (low + high) / 2;

		chunk = &directory->chunks[middle];
		if (chunk->lower == NULL ||
			chunk_compare_keys(space, chunk->lower, key) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == 0)
		return NULL;
	chunk = &directory->chunks[low - 1];
	if (chunk->upper != NULL &&
		chunk_compare_keys(space, key, chunk->upper) > 0)
		return NULL;
	return chunk;
}

/*
 * The first range that no chunk, finished or announced, covers; false if there
 * is none.  NULL bounds are open.
 */
bool
chunk_first_gap(ChunkDirectory *directory, Datum **lower, Datum **upper)
{
	Datum	   *covered = NULL;

	for (int i = 0; i < directory->nchunks; i++)
	{
		Chunk	   *chunk = &directory->chunks[i];

		if (chunk->lower != NULL &&
			(covered == NULL ||
			 chunk_compare_keys(directory->space, covered,
								chunk->lower) < 0))
		{
			*lower = covered;
			*upper = chunk->lower;
			return true;
		}
		if (chunk->upper == NULL)
			return false;
		covered = chunk->upper;
	}
	*lower = covered;
	*upper = NULL;
	return true;
}
