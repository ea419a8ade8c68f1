/*-------------------------------------------------------------------------
 *
 * derive.c
 *		The trigger that keeps a derived table in step.
 *
 * bluegreen.derive_rows() is an AFTER trigger for each row of the source, and
 * a BEFORE trigger for TRUNCATE.  Its arguments are the statements that were
 * made of the transform (operation_derive.c): they take the row's columns as
 * parameters and write to the derived table.  They run as the source's owner,
 * under the change's search_path.
 *
 * Triggers after rows run when the statement is over, so the row at hand may
 * not be the newest one: a trigger of the application has changed it again.
 * Whether that was carried over is not known: to its own call it may have been
 * an update of nothing, or one that came from the other direction.  So what is
 * written is the newest version, if the row is not gone; and what a row has left
 * behind is removed only if no other row gives it by now, which the statements
 * see to.
 *
 * Like foreign keys, our statements see what is committed, also in transactions
 * with one snapshot, and fail there to write over what that does not see.
 *
 * Where a table is derived from another one and back, the write that one
 * trigger does is not carried back by the other: a transform need not be exact
 * there and back.  The statement that fires a trigger tells (dualwrite.c
 * remembers it), if the table is the one that it writes: actions of foreign
 * keys are fired by the statement around them.  Writes of the application's own
 * triggers are statements of their own, and are carried over like any others.
 *
 * An update that changes nothing has nothing to carry over; but it puts the row
 * to another place, where the backfill may have been already.  That of derived
 * rows comes after those of columns.
 *
 * Foreign keys and triggers of the derived table hold as for any write, also
 * where rows are applied or filled, in session_replication_role = replica.
 *
 * Its name sorts before those of foreign keys, which may want the derived row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/execdesc.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "schema/change.h"
#include "schema/derive.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(bluegreen_derive_rows);

typedef struct Derived
{
	Oid			trigger;		/* hash key */
	bool		valid;
	int			users;			/* calls that use it now */
	Oid			relid;
	bool		filled;			/* are all rows carried over? */
	char	   *path;
	int			nargs;
	AttrNumber *args;
	SPIPlanPtr	plans[DERIVE_COLUMNS];	/* NULL: nothing is to be done */
} Derived;

static HTAB *cache = NULL;
static int	deriving = 0;		/* calls that run now, one in another */

static void
forget_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Derived    *derived;

	hash_seq_init(&status, cache);
	while ((derived = hash_seq_search(&status)) != NULL)
	{
		if (!OidIsValid(relid) || derived->relid == relid)
			derived->valid = false;
	}
}

static void
create_cache(void)
{
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(Derived),
		.hcxt = TopMemoryContext
	};

	cache = hash_create("pg_bluegreen derived tables", 16, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
}

static void
release_derived(Derived *derived)
{
	for (int i = DERIVE_WRITE; i <= DERIVE_REMOVE; i++)
	{
		if (derived->plans[i] != NULL)
			SPI_freeplan(derived->plans[i]);
		derived->plans[i] = NULL;
	}
	if (derived->args != NULL)
		pfree(derived->args);
	derived->args = NULL;
	if (derived->path != NULL)
		pfree(derived->path);
	derived->path = NULL;
}

/* The source's columns that are the parameters. */
static void
read_columns(Derived *derived, const TriggerData *data)
{
	const Trigger *trigger = data->tg_trigger;

	derived->nargs = trigger->tgnargs - DERIVE_COLUMNS;
	derived->args = MemoryContextAlloc(TopMemoryContext,
									   sizeof(AttrNumber) *
									   Max(derived->nargs, 1));
	for (int i = 0; i < derived->nargs; i++)
	{
		const char *name = trigger->tgargs[DERIVE_COLUMNS + i];

		derived->args[i] = get_attnum(derived->relid, name);
		if (derived->args[i] == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\", from which a table is derived, does not exist",
							name, RelationGetRelationName(data->tg_relation))));
	}
}

/* Prepare the statements; the caller runs as the source's owner. */
static void
prepare_statements(Derived *derived, const TriggerData *data)
{
	TupleDesc	desc = RelationGetDescr(data->tg_relation);
	int			n = derived->nargs;
	Oid		   *types = palloc_array(Oid, 2 * n + 1);

	for (int i = 0; i < 2 * n; i++)
		types[i] = TupleDescAttr(desc, derived->args[i % n] - 1)->atttypid;
	for (int i = DERIVE_WRITE; i <= DERIVE_REMOVE; i++)
	{
		const char *sql = data->tg_trigger->tgargs[i];
		bool		both = i == DERIVE_MOVE_LOCK || i == DERIVE_MOVE;
		SPIPlanPtr	plan;

		if (*sql == '\0')
			continue;
		plan = prepare_as_written(sql, both ? 2 * n : n, types);
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_keepplan failed");
		derived->plans[i] = plan;
	}
}

/* Triggers come and go: what is not valid any more need not be kept. */
static void
release_unused(void)
{
	HASH_SEQ_STATUS status;
	Derived    *derived;

	hash_seq_init(&status, cache);
	while ((derived = hash_seq_search(&status)) != NULL)
	{
		if (derived->valid || derived->users > 0)
			continue;
		release_derived(derived);
		(void) hash_search(cache, &derived->trigger, HASH_REMOVE, NULL);
	}
}

static Derived *
find_derived(const TriggerData *data)
{
	Oid			trigger = data->tg_trigger->tgoid;
	Derived    *derived;
	RunAs		saved;

	if (cache == NULL)
		create_cache();
	derived = hash_search(cache, &trigger, HASH_FIND, NULL);
	if (derived == NULL)
	{
		release_unused();
		derived = hash_search(cache, &trigger, HASH_ENTER, NULL);
		memset(derived, 0, sizeof(Derived));
		derived->trigger = trigger;
	}
	if (derived->valid || derived->users > 0)
		return derived;
	release_derived(derived);
	derived->relid = RelationGetRelid(data->tg_relation);
	derived->path = MemoryContextStrdup(TopMemoryContext,
										data->tg_trigger->tgargs[DERIVE_PATH]);
	read_columns(derived, data);
	derived->valid = true;		/* unless something happens meanwhile */
	derived->users++;			/* planning may run code that writes */
	run_as_owner(data->tg_relation->rd_rel->relowner, derived->path, &saved);
	SPI_connect();
	PG_TRY();
	{
		prepare_statements(derived, data);
	}
	PG_CATCH();
	{
		derived->users--;
		derived->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	derived->users--;
	SPI_finish();
	run_as_restore(&saved);
	return derived;
}

/* ---- rows ---- */

static void
read_slot(const Derived *derived, TupleTableSlot *slot, Datum *values,
		  char *nulls)
{
	for (int i = 0; i < derived->nargs; i++)
	{
		bool		isnull;

		values[i] = slot_getattr(slot, derived->args[i], &isnull);
		nulls[i] = isnull ? 'n' : ' ';
	}
}

/* Has an update changed nothing that may be read? */
static bool
is_unchanged(const Derived *derived, TupleDesc desc, const Datum *values,
			 const char *nulls)
{
	int			n = derived->nargs;

	for (int i = 0; i < n; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc,
													derived->args[i] - 1);

		if (nulls[i] != nulls[n + i] ||
			(nulls[i] == ' ' &&
			 !datum_image_eq(values[i], values[n + i], attribute->attbyval,
							 attribute->attlen)))
			return false;
	}
	return true;
}

/*
 * Run a statement, if there is one; returns the number of rows.  In a
 * transaction with one snapshot, it sees what is committed, as the actions of
 * foreign keys do: a row may have been filled since.
 */
static uint64
execute(const Derived *derived, DeriveArgument what, Datum *values,
		char *nulls)
{
	Snapshot	latest = InvalidSnapshot;
	Snapshot	own = InvalidSnapshot;
	int			rc;

	if (derived->plans[what] == NULL)
		return 0;
	if (IsolationUsesXactSnapshot())
	{
		CommandCounterIncrement();
		latest = GetLatestSnapshot();
		own = GetTransactionSnapshot();
	}
	rc = SPI_execute_snapshot(derived->plans[what], values, nulls, latest, own,
							  false, true, 0);
	if (rc < 0)
		elog(ERROR, "derived row was not written: %s",
			 SPI_result_code_string(rc));
	return SPI_processed;
}

/*
 * Do what is done for a row that has left its derived row.  That is locked
 * first: the statement that looks whether another row gives it must see what
 * those have done who had it before.
 */
static void
leave(const Derived *derived, DeriveArgument lock, DeriveArgument what,
	  Datum *values, char *nulls)
{
	if (derived->plans[lock] == NULL ||
		execute(derived, lock, values, nulls) > 0)
		(void) execute(derived, what, values, nulls);
}

/*
 * Has the backfill carried over all rows?  If there is one, which a transaction
 * with an older snapshot would not see.
 */
static bool
is_filled(Derived *derived, const TriggerData *data)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	if (derived->filled)
		return true;
	catalog_begin(&access);
	PushActiveSnapshot(GetLatestSnapshot());
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(derived->relid));
	catalog_arg_text(&args, data->tg_trigger->tgname);
	if (SPI_execute_with_args("SELECT FROM bluegreen.backfill "
							  "WHERE relation = $1 AND purpose = $2 "
							  "AND NOT done", args.n, args.types, args.values,
							  args.nulls, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "unexpected result of a query for a backfill");
	derived->filled = SPI_processed == 0;
	PopActiveSnapshot();
	catalog_end(&access);
	return derived->filled;
}

/*
 * The newest version of a row whose version at hand is in the slot: that, or a
 * slot of its own, or NULL if the row is gone.
 */
static TupleTableSlot *
find_newest(Relation relation, TupleTableSlot *slot)
{
	ItemPointerData tid = slot->tts_tid;
	TableScanDesc scan;
	TupleTableSlot *newest;

	if (table_tuple_satisfies_snapshot(relation, slot, SnapshotSelf))
		return slot;
	scan = table_beginscan_tid(relation, SnapshotSelf);
	table_tuple_get_latest_tid(scan, &tid);
	table_endscan(scan);
	newest = table_slot_create(relation, NULL);
	if (table_tuple_fetch_row_version(relation, &tid, SnapshotSelf, newest))
		return newest;
	ExecDropSingleTupleTableSlot(newest);
	return NULL;
}

/* Write the row whose version at hand is in the slot, as it is now. */
static void
write_newest(const Derived *derived, const TriggerData *data,
			 TupleTableSlot *slot, DeriveArgument what)
{
	TupleTableSlot *newest = find_newest(data->tg_relation, slot);
	Datum	   *values;
	char	   *nulls;

	if (newest == NULL)
		return;
	values = palloc_array(Datum, derived->nargs + 1);
	nulls = palloc(derived->nargs + 1);
	read_slot(derived, newest, values, nulls);
	(void) execute(derived, what, values, nulls);
	if (newest != slot)
		ExecDropSingleTupleTableSlot(newest);
}

static void
derive_row(Derived *derived, const TriggerData *data)
{
	int			n = derived->nargs;
	Datum	   *values = palloc_array(Datum, 2 * n + 1);
	char	   *nulls = palloc(2 * n + 1);
	bool		is_update = TRIGGER_FIRED_BY_UPDATE(data->tg_event);
	TupleTableSlot *slot = is_update ? data->tg_newslot : data->tg_trigslot;
	DeriveArgument what = DERIVE_WRITE;

	read_slot(derived, data->tg_trigslot, values, nulls);
	if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
	{
		leave(derived, DERIVE_REMOVE_LOCK, DERIVE_REMOVE, values, nulls);
		return;
	}
	if (is_update)
	{
		read_slot(derived, slot, values + n, nulls + n);
		if (!is_unchanged(derived, RelationGetDescr(data->tg_relation),
						  values, nulls))
			leave(derived, DERIVE_MOVE_LOCK, DERIVE_MOVE, values, nulls);
		else if (dualwrite_is_filling(derived->relid) ||
				 is_filled(derived, data))
			return;				/* ... or its own backfill comes to it */
		else
			what = DERIVE_KEEP;
	}
	write_newest(derived, data, slot, what);
}

/* ---- the trigger ---- */

/*
 * Was the row written by a statement of the other direction?  Those run inside
 * of a call of ours, or in a worker that fills; nobody else's are believed.
 */
static bool
is_carried_back(const TriggerData *data)
{
	const QueryDesc *statement = dualwrite_statement();
	const char *opposite = data->tg_trigger->tgargs[DERIVE_OPPOSITE];
	ListCell   *lc;

	if (*opposite == '\0' || statement == NULL ||
		(deriving == 0 && MyBackendType != B_BG_WORKER) ||
		strncmp(statement->sourceText, opposite, strlen(opposite)) != 0)
		return false;
	foreach(lc, statement->plannedstmt->resultRelations)
	{
		if (rt_fetch(lfirst_int(lc), statement->plannedstmt->rtable)->relid ==
			RelationGetRelid(data->tg_relation))
			return true;
	}
	return false;
}

static void
check_call(FunctionCallInfo fcinfo)
{
	TriggerData *data = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		(TRIGGER_FIRED_BY_TRUNCATE(data->tg_event) ?
		 !TRIGGER_FIRED_BEFORE(data->tg_event) :
		 !TRIGGER_FIRED_AFTER(data->tg_event) ||
		 !TRIGGER_FIRED_FOR_ROW(data->tg_event)) ||
		data->tg_trigger->tgnargs < DERIVE_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired by a trigger of a change",
						"bluegreen.derive_rows")));
}

/*
 * Become the source's owner.  This is no security-restricted operation, as it
 * is in dualwrite.c: the derived table may have deferred constraints, which
 * could not be queued there.  Triggers of the source, which are the same
 * owner's, are not restricted either.
 */
static void
become_owner(const Derived *derived, const TriggerData *data, RunAs *saved)
{
	Oid			owner = data->tg_relation->rd_rel->relowner;

	run_as_owner(owner, derived->path, saved);
	SetUserIdAndSecContext(owner, saved->userid == owner ?
						   saved->sec_context :
						   saved->sec_context | SECURITY_LOCAL_USERID_CHANGE);
}

/*
 * Is this a statement that derives rows, and not one that looks like it?
 */
bool
derive_is_statement(const QueryDesc *statement)
{
	return statement != NULL &&
		(deriving > 0 || MyBackendType == B_BG_WORKER) &&
		strncmp(statement->sourceText, DERIVE_MARK,
				strlen(DERIVE_MARK)) == 0;
}

/*
 * bluegreen.derive_rows() returns trigger; see the top.
 *
 * session_replication_role is set as a variable, and put back after all
 * settings that an error has left behind, as in prepared.c.
 */
Datum
bluegreen_derive_rows(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	int			role = SessionReplicationRole;
	Derived    *derived;
	RunAs		saved;

	check_call(fcinfo);
	if (is_carried_back(data))
		return PointerGetDatum(NULL);
	derived = find_derived(data);
	become_owner(derived, data, &saved);
	derived->users++;
	deriving++;
	SessionReplicationRole = SESSION_REPLICATION_ROLE_ORIGIN;
	PG_TRY();
	{
		SPI_connect();
		if (TRIGGER_FIRED_BY_TRUNCATE(data->tg_event))
			(void) execute(derived, DERIVE_REMOVE, NULL, NULL);
		else
			derive_row(derived, data);
		SPI_finish();
	}
	PG_CATCH();
	{
		deriving--;
		derived->users--;
		AtEOXact_GUC(false, saved.guc_level);
		SessionReplicationRole = role;
		PG_RE_THROW();
	}
	PG_END_TRY();
	deriving--;
	derived->users--;
	run_as_restore(&saved);
	SessionReplicationRole = role;
	return PointerGetDatum(NULL);
}
