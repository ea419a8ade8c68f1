/*-------------------------------------------------------------------------
 *
 * own_changes.c
 *		In a window: which rows this side has changed itself, and the other
 *		side has not seen.
 *
 * A change that comes from there conflicts with one that was made here if
 * neither side had the other's: the one here is beyond what the other side had
 * seen of this one when it committed its own.  So for each row that was changed
 * here, and until the other side says that it has seen that, the position of
 * its last change is kept: in a hash table in dynamic shared memory, by a process
 * that reads this side's WAL for it and for nothing else (watch.c).  Deleted
 * rows are kept like others.
 *
 * A session that applies looks rows up when it has them locked, or has seen that
 * there are none.  Whoever changed them before has committed then, so his
 * commit is in the WAL; the session waits until the process has read so far.
 * That process waits for nobody.  (The stream's own worker would not do: it
 * waits for the other side's session, which waits for its server's worker,
 * which waits for this session.)
 *
 * A row is known by two hashes of 64 bits over its key, by the type's own
 * functions.  They are made on this server only, on both ways: two servers need
 * not agree on the hash of an enum.
 *
 * There is one entry for each stream that comes here, by its origin's name; it
 * stays when its process ends, with what the other side has seen.  The table
 * goes with the process, and the next one reads the WAL again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/definition.h"
#include "core/guard.h"
#include "core/settings.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/dshash.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "stream/own_changes.h"
#include "stream/transform.h"
#include "utils/builtins.h"
#include "utils/dsa.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(bluegreen_check_change);
PG_FUNCTION_INFO_V1(bluegreen_weigh_change);
PG_FUNCTION_INFO_V1(bluegreen_note_seen);
PG_FUNCTION_INFO_V1(bluegreen_write_as_own);
PG_FUNCTION_INFO_V1(bluegreen_forget_key);

#define LOCK_NAME "pg_bluegreen_own"
#define ORIGIN_NAME_SIZE 96
#define ENTRY_BYTES 160			/* about, with what the hash table needs */
#define WAIT_MS 100L
#define PATIENCE_MS 10000		/* for a process that watches */

/* The table of a stream that comes here. */
typedef struct OwnTable
{
	Oid			dboid;			/* invalid = free */
	char		opposite[ORIGIN_NAME_SIZE];	/* its origin's name */
	pid_t		pid;			/* who watches, 0 = nobody */
	Latch	   *latch;			/* his */
	uint64		generation;		/* of the table */
	dsa_handle	area;
	dshash_table_handle hash;
	pg_atomic_uint64 decoded;	/* everything before is in the table */
	pg_atomic_uint64 seen;		/* ... unless the other side has seen it */
	pg_atomic_uint64 count;		/* of entries */
	ConditionVariable moved;	/* broadcast with decoded */
} OwnTable;

typedef struct OwnShared
{
	LWLock	   *lock;
	OwnTable	tables[FLEXIBLE_ARRAY_MEMBER];
} OwnShared;

/* A table as this process has it. */
typedef struct Attached
{
	OwnTable   *table;			/* NULL = none */
	uint64		generation;
	RepOriginId origin;			/* that it was looked for by */
	char		name[ORIGIN_NAME_SIZE]; /* its name */
	dsa_area   *area;
	dshash_table *hash;
} Attached;

static OwnShared *own = NULL;
static Attached mine;

/* ---- shared memory ---- */

static Size
own_size(void)
{
	return add_size(offsetof(OwnShared, tables),
					mul_size(sizeof(OwnTable), bg_max_streams));
}

/*
 * Reserve shared memory and the lock.  Only from shmem_request_hook.
 */
void
own_request(void)
{
	RequestAddinShmemSpace(own_size());
	RequestNamedLWLockTranche(LOCK_NAME, 1);
}

/*
 * Create the shared part.  Called with AddinShmemInitLock held.
 */
void
own_startup(void)
{
	bool		found;

	own = ShmemInitStruct("pg_bluegreen own changes", own_size(), &found);
	if (found)
		return;
	memset(own, 0, own_size());
	own->lock = &GetNamedLWLockTranche(LOCK_NAME)->lock;
	for (int i = 0; i < bg_max_streams; i++)
	{
		pg_atomic_init_u64(&own->tables[i].decoded, InvalidXLogRecPtr);
		pg_atomic_init_u64(&own->tables[i].seen, InvalidXLogRecPtr);
		pg_atomic_init_u64(&own->tables[i].count, 0);
		ConditionVariableInit(&own->tables[i].moved);
	}
}

static dshash_parameters
hash_parameters(void)
{
	dshash_parameters parameters = {
		.key_size = sizeof(OwnKey),
		.entry_size = sizeof(OwnChange),
		.compare_function = dshash_memcmp,
		.hash_function = dshash_memhash,
		DSHASH_COPY_FUNCTION
		.tranche_id = own->lock->tranche
	};

	return parameters;
}

/* The table of an origin, or NULL.  Needs the lock. */
static OwnTable *
find_table(const char *opposite)
{
	for (int i = 0; i < bg_max_streams; i++)
	{
		OwnTable   *table = &own->tables[i];

		if (table->dboid == MyDatabaseId &&
			strcmp(table->opposite, opposite) == 0)
			return table;
	}
	return NULL;
}

/* ---- the process that watches ---- */

/* Nobody is to attach to what goes with this process. */
static void
withdraw(int code, Datum arg)
{
	LWLockAcquire(own->lock, LW_EXCLUSIVE);
	if (mine.table->pid == MyProcPid)
	{
		mine.table->pid = 0;
		mine.table->latch = NULL;
	}
	LWLockRelease(own->lock);
}

/* An entry for a name that has none.  Needs the lock, exclusively. */
static OwnTable *
take_table(const char *opposite)
{
	OwnTable   *table = NULL;

	for (int i = 0; i < bg_max_streams; i++)
	{
		OwnTable   *other = &own->tables[i];

		if (other->pid == 0 && (table == NULL || !OidIsValid(other->dboid)))
			table = other;
	}
	if (table == NULL)
		elog(ERROR, "no shared memory left for own changes");
	table->dboid = MyDatabaseId;
	strlcpy(table->opposite, opposite, ORIGIN_NAME_SIZE);
	pg_atomic_write_u64(&table->seen, InvalidXLogRecPtr);
	return table;
}

/*
 * This process watches, for the stream with that origin.  Its table is empty.
 * Takes the lock.
 */
void
own_publish(const char *opposite)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	dshash_parameters parameters = hash_parameters();

	mine.area = dsa_create(own->lock->tranche);
	dsa_pin_mapping(mine.area);
	mine.hash = dshash_create(mine.area, &parameters, NULL);
	MemoryContextSwitchTo(old);

	LWLockAcquire(own->lock, LW_EXCLUSIVE);
	mine.table = find_table(opposite);
	if (mine.table == NULL)
		mine.table = take_table(opposite);
	mine.table->pid = MyProcPid;
	mine.table->latch = MyLatch;
	mine.table->generation++;
	mine.table->area = dsa_get_handle(mine.area);
	mine.table->hash = dshash_get_hash_table_handle(mine.hash);
	pg_atomic_write_u64(&mine.table->decoded, InvalidXLogRecPtr);
	pg_atomic_write_u64(&mine.table->count, 0);
	LWLockRelease(own->lock);
	before_shmem_exit(withdraw, (Datum) 0);
}

int64
own_count(void)
{
	return (int64) pg_atomic_read_u64(&mine.table->count);
}

/*
 * This side has changed a row.  Error if there are too many of them.
 */
void
own_enter(const OwnChange *change)
{
	bool		found;
	OwnChange  *entry = dshash_find_or_insert(mine.hash, &change->key, &found);

	*entry = *change;
	dshash_release_lock(mine.hash, entry);
	if (found)
		return;
	pg_atomic_fetch_add_u64(&mine.table->count, 1);
	if (own_count() * ENTRY_BYTES > (int64) bg_window_memory * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many rows were changed that the other side has not seen"),
				 errdetail("There are " INT64_FORMAT " of them.", own_count()),
				 errhint("Increase \"bluegreen.window_memory\".")));
}

/*
 * The other side has seen the change of a row at lsn.
 */
void
own_forget(const OwnKey *key, XLogRecPtr lsn)
{
	OwnChange  *entry = dshash_find(mine.hash, key, true);

	if (entry == NULL)
		return;
	if (entry->lsn > lsn)
	{
		dshash_release_lock(mine.hash, entry);
		return;
	}
	dshash_delete_entry(mine.hash, entry);
	pg_atomic_fetch_sub_u64(&mine.table->count, 1);
}

/*
 * Everything before lsn has been entered.
 */
void
own_decoded(XLogRecPtr lsn)
{
	if (lsn <= pg_atomic_read_u64(&mine.table->decoded))
		return;
	pg_atomic_write_u64(&mine.table->decoded, lsn);
	ConditionVariableBroadcast(&mine.table->moved);
}

XLogRecPtr
own_seen(void)
{
	return (XLogRecPtr) pg_atomic_read_u64(&mine.table->seen);
}

/* ---- hashes ---- */

struct OwnHasher
{
	int			n;
	AttrNumber *attnums;		/* ascending */
	FmgrInfo   *functions;
	Oid		   *collations;
};

/*
 * Prepare to hash the keys of a relation, which are these columns.  Error if a
 * type has no such function.
 */
OwnHasher *
own_hasher_create(Relation relation, const Bitmapset *key)
{
	OwnHasher  *hasher = palloc0_object(OwnHasher);
	int			attnum = -1;

	hasher->attnums = palloc0_array(AttrNumber, bms_num_members(key));
	hasher->functions = palloc0_array(FmgrInfo, bms_num_members(key));
	hasher->collations = palloc0_array(Oid, bms_num_members(key));
	while ((attnum = bms_next_member(key, attnum)) >= 0)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(relation),
											  attnum - 1);
		TypeCacheEntry *type =
			lookup_type_cache(att->atttypid, TYPECACHE_HASH_EXTENDED_PROC);

		if (!OidIsValid(type->hash_extended_proc))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("column \"%s\" of table \"%s\" cannot be part of a key in a window",
							NameStr(att->attname),
							RelationGetRelationName(relation)),
					 errdetail("Type %s has no extended hash function.",
							   format_type_be(att->atttypid))));
		hasher->attnums[hasher->n] = attnum;
		hasher->collations[hasher->n] = att->attcollation;
		fmgr_info(type->hash_extended_proc, &hasher->functions[hasher->n++]);
	}
	return hasher;
}

/*
 * The columns that it takes, in that order.
 */
int
own_hasher_columns(const OwnHasher *hasher, const AttrNumber **attnums)
{
	*attnums = hasher->attnums;
	return hasher->n;
}

/*
 * Hash a key's values, in the order of own_hasher_columns().
 */
void
own_hash(OwnHasher *hasher, Oid relation, const Datum *values, OwnKey *key)
{
	memset(key, 0, sizeof(*key));
	key->relation = relation;
	for (int i = 0; i < hasher->n; i++)
		for (int h = 0; h < 2; h++)
		{
			uint64		hash =
				DatumGetUInt64(FunctionCall2Coll(&hasher->functions[i],
												 hasher->collations[i],
												 values[i],
												 UInt64GetDatum(h + 1)));

			key->hash[h] = hash_combine64(key->hash[h], hash);
		}
}

/* ---- the session that applies ---- */

static void
detach(void)
{
	if (mine.hash != NULL)
		dshash_detach(mine.hash);
	if (mine.area != NULL)
		dsa_detach(mine.area);
	mine.hash = NULL;
	mine.area = NULL;
}

/* An entry that nobody watched may have been given to another stream. */
static bool
is_mine(void)
{
	return mine.table != NULL && mine.table->dboid == MyDatabaseId &&
		strcmp(mine.table->opposite, mine.name) == 0;
}

/*
 * The table of this session's stream, if it has one; needs no transaction once
 * the origin is known.
 */
static OwnTable *
session_table(void)
{
	char	   *name;

	if (own == NULL || replorigin_session_origin == InvalidRepOriginId)
		return NULL;
	if (mine.origin == replorigin_session_origin && is_mine())
		return mine.table;
	if (!IsTransactionState() ||
		!replorigin_by_oid(replorigin_session_origin, true, &name))
		return NULL;
	detach();
	LWLockAcquire(own->lock, LW_SHARED);
	mine.table = find_table(name);
	strlcpy(mine.name, name, ORIGIN_NAME_SIZE);
	mine.origin = replorigin_session_origin;
	mine.generation = 0;
	LWLockRelease(own->lock);
	return mine.table;
}

/*
 * Attach to the table as it is now.  False if nobody watches.
 */
static bool
attach(void)
{
	OwnTable   *table = session_table();
	dshash_parameters parameters = hash_parameters();
	MemoryContext old;

	if (table == NULL)
		return false;
	LWLockAcquire(own->lock, LW_SHARED);
	if (table->pid == 0 || !is_mine() ||
		(mine.hash != NULL && mine.generation == table->generation))
	{
		bool		watched = table->pid != 0 && is_mine();

		LWLockRelease(own->lock);
		return watched;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	detach();
	mine.area = dsa_attach(table->area);
	dsa_pin_mapping(mine.area);
	mine.hash = dshash_attach(mine.area, &parameters, table->hash, NULL);
	mine.generation = table->generation;
	MemoryContextSwitchTo(old);
	LWLockRelease(own->lock);
	return true;
}

static void
wake_watcher(OwnTable *table)
{
	Latch	   *latch;

	LWLockAcquire(own->lock, LW_SHARED);
	latch = table->pid != 0 ? table->latch : NULL;
	LWLockRelease(own->lock);
	if (latch != NULL)
		SetLatch(latch);
}

static bool
has_decoded(XLogRecPtr lsn)
{
	return attach() &&
		pg_atomic_read_u64(&mine.table->decoded) >= lsn &&
		mine.generation == mine.table->generation;
}

/*
 * Wait until everything that is in the WAL now is in the table.  Errors: nobody
 * fills it (transient).
 */
static void
wait_for_watcher(void)
{
	XLogRecPtr	lsn = GetXLogInsertEndRecPtr();
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  PATIENCE_MS);

	XLogFlush(lsn);
	while (!has_decoded(lsn))
	{
		CHECK_FOR_INTERRUPTS();
		if (mine.table == NULL || !attach())
		{
			if (GetCurrentTimestamp() > end)
				ereport(ERROR,
						(errcode(ERRCODE_CANNOT_CONNECT_NOW),
						 errmsg("this side's own changes are not known"),
						 errdetail("No process watches them for the stream."),
						 errhint("This server's log says why it has ended.")));
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
							 WL_EXIT_ON_PM_DEATH, WAIT_MS,
							 PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			continue;
		}
		ConditionVariablePrepareToSleep(&mine.table->moved);
		wake_watcher(mine.table);
		if (!has_decoded(lsn))
			(void) ConditionVariableTimedSleep(&mine.table->moved, WAIT_MS,
											   PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
	}
}

/*
 * Find the table, while there is a transaction.
 */
void
own_attach_session(void)
{
	(void) session_table();
}

/*
 * What this session brings had seen this side's changes up to seen.  From a
 * commit callback, too: must not fail.
 */
void
own_note_seen(XLogRecPtr seen)
{
	if (!is_mine() || mine.origin != replorigin_session_origin ||
		pg_atomic_read_u64(&mine.table->seen) >= seen)
		return;
	pg_atomic_write_u64(&mine.table->seen, seen);
}

/*
 * bluegreen.note_seen(seen pg_lsn): the source of this session's stream has seen
 * this side's changes up to there, and all that it has committed since has.
 */
Datum
bluegreen_note_seen(PG_FUNCTION_ARGS)
{
	(void) session_table();
	own_note_seen(PG_GETARG_LSN(0));
	PG_RETURN_VOID();
}

/* ---- looking rows up ---- */

/* What a call site keeps: arguments of the key in the hasher's order. */
typedef struct LookUp
{
	Oid			relation;
	OwnHasher  *hasher;
	int		   *arguments;
	Datum	   *values;
} LookUp;

static Bitmapset *
key_columns(Relation relation)
{
	Oid			index = relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL ?
		relation_primary_key(relation) : RelationGetReplicaIndex(relation);

	return index_columns(index);
}

/*
 * Which argument has which column of the key?  Error if the names are not the
 * key by which this side's own changes are known.
 */
static void
find_arguments(LookUp *look, Relation relation, List *names, int first)
{
	const AttrNumber *attnums;
	int			n = own_hasher_columns(look->hasher, &attnums);
	bool		same = n > 0 && n == list_length(names);

	look->arguments = palloc0_array(int, Max(n, 1));
	look->values = palloc0_array(Datum, Max(n, 1));
	for (int i = 0; i < n && same; i++)
	{
		ListCell   *lc;
		int			position = 0;

		foreach(lc, names)
		{
			if (get_attnum(look->relation, strVal(lfirst(lc))) == attnums[i])
				break;
			position++;
		}
		same = lc != NULL;
		look->arguments[i] = first + position;
	}
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" cannot be in a window",
						RelationGetRelationName(relation)),
				 errdetail("The key of its mapping is not its replica identity, or with REPLICA IDENTITY FULL not its primary key."),
				 errhint("Map it by that key, or change its REPLICA IDENTITY.")));
}

/*
 * What this call site keeps, from argument 0 (relation) and 1 (key name[]);
 * the key's values begin at argument first.  At its first row it waits for the
 * process that watches.
 */
static LookUp *
look_up(FunctionCallInfo fcinfo, int first)
{
	LookUp	   *look = fcinfo->flinfo->fn_extra;
	MemoryContext old;
	Relation	relation;

	if (look != NULL)
		return look;
	guard_require();
	old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	look = palloc0_object(LookUp);
	look->relation = PG_GETARG_OID(0);
	relation = table_open(look->relation, AccessShareLock);
	look->hasher = own_hasher_create(relation, key_columns(relation));
	find_arguments(look, relation,
				   guard_column_names(PG_GETARG_ARRAYTYPE_P(1)), first);
	table_close(relation, AccessShareLock);
	MemoryContextSwitchTo(old);
	wait_for_watcher();
	fcinfo->flinfo->fn_extra = look;
	return look;
}

/*
 * The change of the row whose key is in the arguments, if this side has made
 * one beyond seen.
 */
static bool
find_change(FunctionCallInfo fcinfo, LookUp *look, XLogRecPtr seen,
			OwnChange *change)
{
	const AttrNumber *attnums;
	int			n = own_hasher_columns(look->hasher, &attnums);
	OwnKey		key;
	OwnChange  *entry;

	for (int i = 0; i < n; i++)
	{
		if (PG_ARGISNULL(look->arguments[i]))
			return false;
		look->values[i] = PG_GETARG_DATUM(look->arguments[i]);
	}
	own_hash(look->hasher, look->relation, look->values, &key);
	entry = dshash_find(mine.hash, &key, false);
	if (entry == NULL)
		return false;
	*change = *entry;
	dshash_release_lock(mine.hash, entry);
	return change->lsn > seen;
}

static void
refuse_nulls(FunctionCallInfo fcinfo, int n)
{
	for (int i = 0; i < n; i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments must not be null")));
}

/*
 * bluegreen.check_change(relation regclass, key name[], seen pg_lsn, VARIADIC
 * "any"): error unless a change that came, which had seen this side up to seen,
 * of the row with this key, is without conflict.  Needs a session that has
 * called begin_apply().
 */
Datum
bluegreen_check_change(PG_FUNCTION_ARGS)
{
	LookUp	   *look;
	OwnChange	change;

	refuse_nulls(fcinfo, 3);
	look = look_up(fcinfo, 3);
	if (find_change(fcinfo, look, PG_GETARG_LSN(2), &change))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("a batch has a change of table \"%s\" that conflicts with one of this side",
						get_rel_name(look->relation)),
				 errdetail("It was committed at %X/%X, and the other side had seen what was before %X/%X.",
						   LSN_FORMAT_ARGS(change.lsn),
						   LSN_FORMAT_ARGS(PG_GETARG_LSN(2))),
				 errhint("The batch is applied again row by row.")));
	PG_RETURN_VOID();
}

/* Verdicts of weigh_change(). */
enum
{
	VERDICT_NONE,				/* they are not concurrent */
	VERDICT_THEIRS,
	VERDICT_OURS,
	VERDICT_ERROR,
	VERDICT_DELETED = 4			/* added: our change is a delete */
};

static int
compare_ranks(int64 theirs, int64 ours, bool they_are_green)
{
	if (theirs == ours)
		return they_are_green ? VERDICT_THEIRS : VERDICT_OURS;
	return theirs > ours ? VERDICT_THEIRS : VERDICT_OURS;
}

/*
 * bluegreen.weigh_change(relation regclass, key name[], seen pg_lsn, policy
 * text, theirs text, rank bigint, VARIADIC "any") returns integer: the same
 * for one row, with the verdict.  theirs is the side that it comes from; rank
 * its commit time in microseconds, or the value that decides.  0: there is no
 * conflict; 1: theirs wins; 2: ours wins; 3: nobody; 4 more: ours is a delete.
 */
Datum
bluegreen_weigh_change(PG_FUNCTION_ARGS)
{
	LookUp	   *look;
	OwnChange	change;
	char	   *policy;
	bool		they_are_green;
	int			verdict = VERDICT_ERROR;

	refuse_nulls(fcinfo, 6);
	look = look_up(fcinfo, 6);
	if (!find_change(fcinfo, look, PG_GETARG_LSN(2), &change))
		PG_RETURN_INT32(VERDICT_NONE);
	policy = text_to_cstring(PG_GETARG_TEXT_PP(3));
	they_are_green = strcmp(text_to_cstring(PG_GETARG_TEXT_PP(4)), "green") == 0;
	if (strcmp(policy, "blue") == 0)
		verdict = they_are_green ? VERDICT_OURS : VERDICT_THEIRS;
	else if (strcmp(policy, "green") == 0)
		verdict = they_are_green ? VERDICT_THEIRS : VERDICT_OURS;
	else if (strcmp(policy, "last_write") == 0)
		verdict = compare_ranks(PG_GETARG_INT64(5), change.commit_time,
								they_are_green);
	else if (strcmp(policy, "newer_column") == 0)
		verdict = compare_ranks(PG_GETARG_INT64(5), change.value,
								they_are_green);
	PG_RETURN_INT32(verdict + (change.deleted ? VERDICT_DELETED : 0));
}

/* ---- changes of this side by a session that applies ---- */

static RepOriginId put_aside = InvalidRepOriginId;

static void
take_origin_back(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	if (put_aside != InvalidRepOriginId)
		replorigin_session_origin = put_aside;
	put_aside = InvalidRepOriginId;
}

/*
 * The origin of the stream that this session applies, also while it writes as
 * this side's own.
 */
RepOriginId
own_session_origin(void)
{
	return put_aside != InvalidRepOriginId ? put_aside :
		replorigin_session_origin;
}

/*
 * bluegreen.write_as_own(): what this transaction, which must not have written
 * anything, writes is this side's own, and goes to the other side as well.
 */
Datum
bluegreen_write_as_own(PG_FUNCTION_ARGS)
{
	static bool registered = false;

	guard_require();
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("the transaction has written something already")));
	if (!registered)
		RegisterXactCallback(take_origin_back, NULL);
	registered = true;
	put_aside = replorigin_session_origin;
	replorigin_session_origin = InvalidRepOriginId;
	PG_RETURN_VOID();
}

/*
 * bluegreen.forget_key(relation regclass, columns name[], key text[]): a row that
 * the stream has left out is to go where it came from, where these columns are
 * its key.  By way of bluegreen.repair_row, since there is no row here that
 * could be deleted.  In a transaction that has called write_as_own().
 */
Datum
bluegreen_forget_key(PG_FUNCTION_ARGS)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *origin;

	guard_require();
	if (!replorigin_by_oid(put_aside, true, &origin))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("bluegreen.write_as_own() was not called")));
	catalog_begin(&access);
	catalog_arg_text(&args, origin);
	catalog_arg(&args, OIDOID, PG_GETARG_DATUM(0));
	catalog_arg(&args, NAMEARRAYOID, PG_GETARG_DATUM(1));
	catalog_arg(&args, TEXTARRAYOID, PG_GETARG_DATUM(2));
	catalog_run("INSERT INTO bluegreen.repair_row (mapping, key) "
				"SELECT m.id, (SELECT array_agg(k.value ORDER BY c.position) "
				" FROM bluegreen.mapping_column c "
				" JOIN unnest($3, $4) AS k (name, value) ON k.name = c.name "
				" WHERE c.mapping = m.id AND c.is_key) "
				"FROM bluegreen.table_mapping m JOIN bluegreen.deployment d "
				"ON d.id = m.deployment AND d.opposite = $1 "
				"WHERE m.source = $2 AND m.conflict <> 'none'",
				&args, SPI_OK_INSERT);
	catalog_run("DELETE FROM bluegreen.repair_row", NULL, SPI_OK_DELETE);
	catalog_end(&access);
	PG_RETURN_VOID();
}
