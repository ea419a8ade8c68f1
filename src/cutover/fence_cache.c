/*-------------------------------------------------------------------------
 *
 * fence_cache.c
 *		What a backend knows of the fences of its database.
 *
 * The truth is in tables: bluegreen.fence, the mapped tables in table_mapping
 * (what a stream reads here) and fence_target (what one writes here), the
 * exceptions in fence_local.  Nobody is granted anything on these: who has them
 * locked stops all writers.  A backend reads them when it first writes, and keeps what it
 * has read until it is told that something has changed: each of these tables
 * has a trigger that invalidates bluegreen.fence (bluegreen_fence_changed), so
 * that its relcache message, which goes out with the commit, means all of them.
 * No message is missed by who has taken a lock on bluegreen.fence since: taking
 * a lock reads the messages.
 *
 * The cache begins as unknown.  It is never filled in recovery: what is read
 * there may be older than what the primary said.
 *
 * The tables are read row by row and not with SQL: this happens in the middle
 * of anybody's statement.  So they must be the extension's own, not some
 * tables of the same name.
 *
 * Names are looked up once, and so are the parents of partitions.  Therefore
 * what is read is also out of date when a relation that it names changes, or
 * one of such a name, or its schema, appears or goes.
 *
 * For each relation that was written to, the answer is kept (FenceVerdict): the
 * fences that the relation is mapped in, itself or as a partition of a mapped
 * table or as a parent, through which rows may get into a mapped partition.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tupdesc.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/extension.h"
#include "compat.h"
#include "core/definition.h"
#include "cutover/fence.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* The tables, and the columns of theirs that are read here. */
typedef enum FenceTable
{
	TABLE_FENCE,
	TABLE_MAPPING,
	TABLE_TARGET,
	TABLE_LOCAL,
	NTABLES
} FenceTable;

static const char *const table_names[NTABLES] = {
	"fence", "table_mapping", "fence_target", "fence_local"
};

#define FENCE_ID			1
#define FENCE_NAME			2
#define FENCE_DEPLOYMENT	4
#define FENCE_STREAM		5
#define FENCE_STATE			6
#define FENCE_EPOCH			7
#define FENCE_SINCE			8
#define FENCE_WINDOW		12
#define FENCE_ACTIVATED		13
#define FENCE_CLOSING		14
#define MAPPING_DEPLOYMENT	2
#define MAPPING_SOURCE		4
#define TARGET_STREAM		1
#define TARGET_SCHEMA		3
#define TARGET_TABLE		4
#define LOCAL_RELATION		1

/* A relation that a fence names, or that rows go through. */
typedef struct NamedRelation
{
	Oid			relid;
	int			fence;			/* -1 = declared local */
	bool		parent;			/* of a mapped partition: not its others */
} NamedRelation;

/* Something whose change makes us read again; a hash key. */
typedef struct Watched
{
	int			cache;			/* system cache, or WATCH_RELATION */
	uint32		value;			/* hash value of a key there, or the OID */
} Watched;

#define WATCH_RELATION (-1)

static uint64 changes = 1;		/* messages that meant us */
static uint64 known = 0;		/* ... when the tables were read; 0 = unknown */
static bool verdicts_stale = false;

static MemoryContext cache_context = NULL;	/* all of the following */
static Oid	tables[NTABLES];	/* the first invalid: no extension here */
static Fence *fences = NULL;
static int	nfences = 0;
static int	closed = -1;		/* a fence that closes all of this side */
static List *named = NIL;		/* of NamedRelation */
static HTAB *watched = NULL;
static MemoryContext verdict_context = NULL;
static HTAB *verdicts = NULL;

/* ---- reading the tables ---- */

/*
 * Look for the tables.  False if the extension is not here, or not all of it
 * (it is being created or dropped).
 */
static bool
find_tables(void)
{
	Oid			schema = get_namespace_oid(BG_SCHEMA, true);
	Oid			extension;

	tables[TABLE_FENCE] = InvalidOid;
	if (!OidIsValid(schema))
		return false;
	extension = get_extension_oid(BG_EXTENSION, true);
	if (!OidIsValid(extension))
		return false;
	for (int i = NTABLES - 1; i >= 0; i--)
	{
		Oid			relid = get_relname_relid(table_names[i], schema);

		if (!OidIsValid(relid) ||
			getExtensionOfObject(RelationRelationId, relid) != extension)
			return false;
		tables[i] = relid;
	}
	return true;
}

typedef void (*RowReader) (HeapTuple tuple, TupleDesc desc);

/*
 * Hand every committed row of a table to a function.
 */
static void
read_table(FenceTable which, RowReader reader)
{
	Relation	relation = table_open(tables[which], AccessShareLock);
	SysScanDesc scan = systable_beginscan(relation, InvalidOid, false, NULL,
										  0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		reader(tuple, RelationGetDescr(relation));
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
}

static Datum
value(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		datum = heap_getattr(tuple, column, desc, &isnull);

	return isnull ? (Datum) 0 : datum;
}

static char *
text_value(HeapTuple tuple, TupleDesc desc, int column)
{
	Datum		datum = value(tuple, desc, column);

	return datum == (Datum) 0 ? NULL : TextDatumGetCString(datum);
}

static FenceState
state_value(HeapTuple tuple, TupleDesc desc)
{
	char	   *word = text_value(tuple, desc, FENCE_STATE);
	int			state = enum_lookup(fence_state_names, FENCE_GUARDED + 1, word);

	if (state < 0)
		elog(ERROR, "unexpected state \"%s\" of a fence", word);
	return state;
}

static void
read_fence(HeapTuple tuple, TupleDesc desc)
{
	Fence	   *fence;

	if (nfences == 0)
		fences = palloc_array(Fence, 1);
	else
		fences = repalloc(fences, (nfences + 1) * sizeof(Fence));
	fence = &fences[nfences];
	fence->id = DatumGetInt32(value(tuple, desc, FENCE_ID));
	fence->name = pstrdup(NameStr(*DatumGetName(value(tuple, desc,
													  FENCE_NAME))));
	fence->deployment = DatumGetInt32(value(tuple, desc, FENCE_DEPLOYMENT));
	fence->stream = text_value(tuple, desc, FENCE_STREAM);
	fence->state = state_value(tuple, desc);
	fence->epoch = DatumGetInt64(value(tuple, desc, FENCE_EPOCH));
	fence->since = DatumGetTimestampTz(value(tuple, desc, FENCE_SINCE));
	fence->window = DatumGetBool(value(tuple, desc, FENCE_WINDOW));
	fence->activated =
		DatumGetInt64(value(tuple, desc, FENCE_ACTIVATED)) != 0;
	fence->closing = DatumGetBool(value(tuple, desc, FENCE_CLOSING));
	if (fence->state == FENCE_CLOSED || fence->state == FENCE_RETIRED)
		closed = nfences;
	nfences++;
}

/* To be called before the thing is looked at: it may change at once. */
static void
watch(int cache, uint32 value)
{
	Watched		key = {.cache = cache,.value = value};

	(void) hash_search(watched, &key, HASH_ENTER, NULL);
}

static bool
is_watched(int cache, uint32 value)
{
	Watched		key = {.cache = cache,.value = value};

	return watched != NULL &&
		hash_search(watched, &key, HASH_FIND, NULL) != NULL;
}

static void
name_relation(Oid relid, int fence, bool parent)
{
	NamedRelation *entry = palloc_object(NamedRelation);

	watch(WATCH_RELATION, relid);
	entry->relid = relid;
	entry->fence = fence;
	entry->parent = parent;
	named = lappend(named, entry);
}

/*
 * A table is mapped in a fence.  Rows get into it through its parents, too.
 */
static void
name_table(Oid relid, int fence)
{
	ListCell   *lc;

	name_relation(relid, fence, false);
	if (!get_rel_relispartition(relid))
		return;
	foreach(lc, get_partition_ancestors(relid))
	{
		name_relation(lfirst_oid(lc), fence, true);
	}
}

static void
read_mapping(HeapTuple tuple, TupleDesc desc)
{
	int32		deployment = DatumGetInt32(value(tuple, desc,
												 MAPPING_DEPLOYMENT));

	for (int i = 0; i < nfences; i++)
	{
		if (fences[i].deployment == deployment)
			name_table(DatumGetObjectId(value(tuple, desc, MAPPING_SOURCE)),
					   i);
	}
}

/*
 * The relation of that name, or InvalidOid.
 */
static Oid
look_up(const char *schema_name, const char *name)
{
	Oid			schema;

	watch(NAMESPACENAME, GetSysCacheHashValue1(NAMESPACENAME,
											   CStringGetDatum(schema_name)));
	schema = get_namespace_oid(schema_name, true);
	if (!OidIsValid(schema))
		return InvalidOid;
	watch(RELNAMENSP, GetSysCacheHashValue2(RELNAMENSP, CStringGetDatum(name),
											ObjectIdGetDatum(schema)));
	return get_relname_relid(name, schema);
}

static void
read_target(HeapTuple tuple, TupleDesc desc)
{
	char	   *stream = text_value(tuple, desc, TARGET_STREAM);
	Oid			relid =
		look_up(NameStr(*DatumGetName(value(tuple, desc, TARGET_SCHEMA))),
				NameStr(*DatumGetName(value(tuple, desc, TARGET_TABLE))));

	if (!OidIsValid(relid))
		return;
	for (int i = 0; i < nfences; i++)
	{
		if (fences[i].stream != NULL &&
			strcmp(fences[i].stream, stream) == 0)
			name_table(relid, i);
	}
}

static void
read_local(HeapTuple tuple, TupleDesc desc)
{
	name_relation(DatumGetObjectId(value(tuple, desc, LOCAL_RELATION)), -1,
				  false);
}

static void
forget_verdicts(void)
{
	HASHCTL		control = {
		.keysize = sizeof(Oid),.entrysize = sizeof(FenceVerdict),
		.hcxt = verdict_context
	};

	verdicts = NULL;
	MemoryContextReset(verdict_context);
	verdicts = hash_create("bluegreen fence verdicts", 64, &control,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	verdicts_stale = false;
}

/*
 * Read all tables.  A message that arrives meanwhile makes it unknown again.
 */
static void
read_tables(void)
{
	HASHCTL		control = {
		.keysize = sizeof(Watched),.entrysize = sizeof(Watched),
		.hcxt = cache_context
	};
	uint64		before = changes;
	MemoryContext oldcontext;

	known = 0;
	verdicts = NULL;
	watched = NULL;
	MemoryContextReset(cache_context);
	watched = hash_create("bluegreen fence watch list", 64, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	verdict_context = NULL;
	fences = NULL;
	nfences = 0;
	closed = -1;
	named = NIL;
	if (find_tables())
	{
		oldcontext = MemoryContextSwitchTo(cache_context);
		read_table(TABLE_FENCE, read_fence);
		if (nfences > 0)
		{
			read_table(TABLE_MAPPING, read_mapping);
			read_table(TABLE_TARGET, read_target);
			read_table(TABLE_LOCAL, read_local);
			verdict_context = AllocSetContextCreate(cache_context, "verdicts",
													ALLOCSET_SMALL_SIZES);
			verdicts_stale = true;
		}
		MemoryContextSwitchTo(oldcontext);
	}
	known = before;
}

/* ---- what others ask ---- */

/*
 * A relcache message.  Must not do more than take note.
 */
static void
relation_changed(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || !OidIsValid(tables[TABLE_FENCE]) ||
		relid == tables[TABLE_FENCE] || is_watched(WATCH_RELATION, relid))
		changes++;
	else if (verdicts != NULL &&
			 hash_search(verdicts, &relid, HASH_FIND, NULL) != NULL)
		verdicts_stale = true;
}

/*
 * A message of a system cache: the same for a name.
 */
static void
name_changed(Datum arg, int cache, uint32 hash_value)
{
	if (hash_value == 0 || is_watched(cache, hash_value))
		changes++;
}

/* Begin to listen; once per process, before anything is read. */
static void
begin(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACENAME, name_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(RELNAMENSP, name_changed, (Datum) 0);
	cache_context = AllocSetContextCreate(CacheMemoryContext,
										  "bluegreen fences",
										  ALLOCSET_SMALL_SIZES);
}

/*
 * Is there any fence in this database, in whatever state?  Reads the tables if
 * they are not known; once: whatever is changed meanwhile is as if it had been
 * changed after that, and the next call reads it.  Needs a transaction, not in
 * recovery.
 */
bool
fence_cache_any(void)
{
	if (cache_context == NULL)
		begin();
	if (known != changes)
		read_tables();
	return nfences > 0;
}

/*
 * The table bluegreen.fence, which writers lock; only if there is a fence.
 */
Oid
fence_cache_relid(void)
{
	return tables[TABLE_FENCE];
}

/*
 * A fence of a verdict; good until the cache is asked anything else.
 */
const Fence *
fence_cache_get(int i)
{
	Assert(i >= 0 && i < nfences);
	return &fences[i];
}

/*
 * The fence that closes all of this side, or NULL.
 */
const Fence *
fence_cache_closed(void)
{
	return closed < 0 ? NULL : &fences[closed];
}

/*
 * All relations through which rows get into those that are mapped in the fences
 * of a deployment of this database, or of a stream into it.  *fence: the last of
 * these fences; 0 if there is none.
 */
List *
fence_cache_relations(int32 deployment, const char *stream, int32 *fence)
{
	List	   *relids = NIL;
	ListCell   *lc;

	*fence = 0;
	if (!fence_cache_any())
		return NIL;
	foreach(lc, named)
	{
		const NamedRelation *entry = lfirst(lc);
		const Fence *f = entry->fence < 0 ? NULL : &fences[entry->fence];

		if (f == NULL ||
			!(stream != NULL ? f->stream != NULL &&
			  strcmp(f->stream, stream) == 0 : f->deployment == deployment))
			continue;
		*fence = f->id;
		relids = list_append_unique_oid(relids, entry->relid);
		if (!entry->parent)
			relids = list_concat_unique_oid(relids,
											find_all_inheritors(entry->relid,
																NoLock, NULL));
	}
	return relids;
}

/* What the tables say of one relation by name. */
static void
judge_named(FenceVerdict *verdict)
{
	ListCell   *lc;

	foreach(lc, named)
	{
		NamedRelation *entry = lfirst(lc);

		if (entry->relid != verdict->relid)
			continue;
		if (entry->fence < 0)
		{
			verdict->closable = false;
			continue;
		}
		verdict->fences = bms_add_member(verdict->fences, entry->fence);
		if (!entry->parent)
			verdict->inherited = bms_add_member(verdict->inherited,
												entry->fence);
	}
}

/*
 * Does a side that is closed include a relation like this?  Not the catalogs,
 * our own tables but for users' sessions, views (what is behind them counts),
 * tables of other servers, and what would not be there after a crash or for
 * others.
 */
static bool
is_closable(Form_pg_class form)
{
	return (form->relkind == RELKIND_RELATION ||
			form->relkind == RELKIND_PARTITIONED_TABLE) &&
		form->relpersistence == RELPERSISTENCE_PERMANENT &&
		form->oid >= FirstNormalObjectId &&
		!IsToastNamespace(form->relnamespace) &&
		(form->relnamespace != get_rel_namespace(tables[TABLE_FENCE]) ||
		 strcmp(NameStr(form->relname), "session") == 0);
}

static FenceVerdict
judge(Oid relid)
{
	FenceVerdict verdict = {.relid = relid};
	FenceVerdict parent;
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool		is_partition;

	if (!HeapTupleIsValid(tuple))
		return verdict;
	verdict.closable = is_closable((Form_pg_class) GETSTRUCT(tuple));
	is_partition = ((Form_pg_class) GETSTRUCT(tuple))->relispartition;
	ReleaseSysCache(tuple);
	if (is_partition)
	{
		/* also makes the parent one whose messages we look at */
		parent = fence_cache_verdict(get_partition_parent(relid, true));
		verdict.fences = bms_copy(parent.inherited);
		verdict.inherited = bms_copy(parent.inherited);
		verdict.closable = verdict.closable && parent.closable;
	}
	judge_named(&verdict);
	return verdict;
}

/*
 * What the fences say about a relation.  Only after fence_cache_any() said that
 * there is one, and without anything in between that reads messages.
 */
FenceVerdict
fence_cache_verdict(Oid relid)
{
	FenceVerdict *entry;
	FenceVerdict verdict;
	MemoryContext oldcontext;

	if (verdicts_stale)
		forget_verdicts();
	entry = hash_search(verdicts, &relid, HASH_FIND, NULL);
	if (entry != NULL)
		return *entry;
	oldcontext = MemoryContextSwitchTo(verdict_context);
	verdict = judge(relid);
	MemoryContextSwitchTo(oldcontext);
	entry = hash_search(verdicts, &relid, HASH_ENTER, NULL);
	*entry = verdict;
	return verdict;
}
