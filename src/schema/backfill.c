/*-------------------------------------------------------------------------
 *
 * backfill.c
 *		Fill the new columns of rows that were there before.
 *
 * A table, or each leaf of a partitioned one, is gone through once, by ranges
 * of blocks.  A range is updated in a transaction of its own, which also notes
 * how far the table is; so a crash costs a range at most.  The update sets
 * nothing: the table's trigger (dualwrite.c) gives the values, as it does for
 * any write, and drops the rows for which it gives none.
 *
 * Rows that are written meanwhile, wherever they come to lie, are filled by
 * the same trigger.  If the table gets another file (VACUUM FULL), what was
 * behind may be ahead: it begins anew, and skips what is filled.  So does a
 * partition that has got another trigger, since it was detached for a while.
 *
 * The number of blocks follows bluegreen.backfill_batch_time.  A row that
 * somebody else has locked for longer than bluegreen.lock_timeout ends the
 * range: its transaction is rolled back and tried again with half the blocks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "core/settings.h"
#include "executor/spi.h"
#include "schema/shape.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define FIRST_BLOCKS	16
#define MAX_BLOCKS		8192
#define DEADLOCK_MS		"10ms"

/* A row of bluegreen.backfill. */
typedef struct Backfill
{
	Oid			relid;
	Oid			root;			/* the table of the change */
	Oid			file;
	int64		next_block;
	int32		batch_blocks;
	char	   *assignments;	/* SQL: a = a, b = b */
	char	   *condition;		/* SQL: a IS NULL OR b IS NULL */
	char	   *purpose;		/* '', or the trigger of a derived table */
	char	   *statement;		/* SQL that fills that; $1 and $2 are tids */
} Backfill;

/* ---- plan ---- */

static void
insert_leaf(int32 change, Oid root, Oid leaf, List *columns)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(root));
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(leaf));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(columns));
	catalog_arg_int4(&args, FIRST_BLOCKS);
	(void) catalog_run("INSERT INTO bluegreen.backfill "
					   "(change, root, relation, columns, batch_blocks) "
					   "VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
					   &args, SPI_OK_INSERT);
	catalog_end(&access);
}

/*
 * The table's rows will have to be filled in these columns.  Leaves that are
 * noted already stay as they are.
 */
void
backfill_plan(int32 change, Oid relid, List *columns)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_RELATION)
			insert_leaf(change, relid, lfirst_oid(lc), columns);
	}
}

/*
 * A derived table will have to be filled from this one by a statement.
 */
void
backfill_plan_derived(int32 change, Oid relid, const char *trigger,
					  const char *statement)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	catalog_arg_text(&args, trigger);
	catalog_arg_text(&args, statement);
	catalog_arg_int4(&args, FIRST_BLOCKS);
	(void) catalog_run("INSERT INTO bluegreen.backfill "
					   "(change, root, relation, purpose, columns, statement, "
					   "batch_blocks) VALUES ($1, $2, $2, $3, '{}', $4, $5) "
					   "ON CONFLICT DO NOTHING", &args, SPI_OK_INSERT);
	catalog_end(&access);
}

/*
 * Is there anything to fill?
 */
bool
backfill_exists(int32 change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	result = catalog_run("SELECT FROM bluegreen.backfill WHERE change = $1",
						 &args, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/* The change's trigger of b.relation, as a number. */
#define TRIGGER_SQL \
	"(SELECT t.oid FROM pg_trigger t WHERE t.tgrelid = b.relation " \
	"AND t.tgname = 'zz_bluegreen_' || b.change)"

/* $1 change */
static const char *const renew_leaves_sql =
	"UPDATE bluegreen.backfill b SET done = false, next_block = 0, "
	"finished_at = NULL WHERE change = $1 AND done AND purpose = '' "
	"AND fired <> " TRIGGER_SQL;

/* $1 change, $2 blocks */
static const char *const new_leaves_sql =
	"INSERT INTO bluegreen.backfill "
	"(change, root, relation, columns, batch_blocks) "
	"SELECT DISTINCT b.change, b.root, t.relid::oid, b.columns, $2 "
	"FROM bluegreen.backfill b "
	"JOIN pg_partitioned_table p ON p.partrelid = b.root "
	"CROSS JOIN LATERAL pg_partition_tree(b.root) t "
	"JOIN pg_class c ON c.oid = t.relid "
	"WHERE b.change = $1 AND b.purpose = '' AND t.isleaf "
	"AND c.relkind = 'r' ON CONFLICT DO NOTHING";

/*
 * Note partitions that have come since, or come back: their rows may be from
 * before.  True if there are some.
 */
static bool
note_new_leaves(int32 change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	uint64		n;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	n = catalog_run(renew_leaves_sql, &args, SPI_OK_UPDATE);
	catalog_arg_int4(&args, FIRST_BLOCKS);
	n += catalog_run(new_leaves_sql, &args, SPI_OK_INSERT);
	catalog_end(&access);
	return n > 0;
}

/* ---- which table, and how far ---- */

static Backfill *
next_backfill(int32 change)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Backfill   *backfill = NULL;

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	if (catalog_run("SELECT relation, file, next_block, batch_blocks, "
					"(SELECT string_agg(c || ' = ' || c, ', ') "
					"FROM unnest(columns) c), "
					"(SELECT string_agg(c || ' IS NULL', ' OR ') "
					"FROM unnest(columns) c), purpose, statement, root "
					"FROM bluegreen.backfill "
					"WHERE change = $1 AND NOT done "
					"ORDER BY relation, purpose LIMIT 1", &args,
					SPI_OK_SELECT) > 0)
	{
		backfill = MemoryContextAllocZero(access.context, sizeof(Backfill));
		backfill->relid = DatumGetObjectId(catalog_value(0, 1, NULL));
		backfill->file = DatumGetObjectId(catalog_value(0, 2, NULL));
		backfill->next_block = DatumGetInt64(catalog_value(0, 3, NULL));
		backfill->batch_blocks = DatumGetInt32(catalog_value(0, 4, NULL));
		backfill->assignments = catalog_text(&access, 0, 5);
		backfill->condition = catalog_text(&access, 0, 6);
		backfill->purpose = catalog_text(&access, 0, 7);
		backfill->statement = catalog_text(&access, 0, 8);
		backfill->root = DatumGetObjectId(catalog_value(0, 9, NULL));
	}
	catalog_end(&access);
	return backfill;
}

static void
note_wait(int32 change, const Backfill *backfill, const char *reason)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(backfill->relid));
	catalog_arg_text(&args, reason);
	catalog_arg_text(&args, backfill->purpose);
	(void) catalog_run("UPDATE bluegreen.backfill SET waits_for = $3 "
					   "WHERE change = $1 AND relation = $2 AND purpose = $4 "
					   "AND waits_for IS DISTINCT FROM $3", &args,
					   SPI_OK_UPDATE);
	catalog_end(&access);
}

/* A range is done, and with it maybe the table. */
static void
note_range(int32 change, const Backfill *backfill, int64 blocks, uint64 rows)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(backfill->relid));
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(backfill->file));
	catalog_arg(&args, INT8OID, Int64GetDatum(backfill->next_block));
	catalog_arg(&args, INT8OID, Int64GetDatum(blocks));
	catalog_arg(&args, INT8OID, Int64GetDatum((int64) rows));
	catalog_arg_int4(&args, backfill->batch_blocks);
	catalog_arg_text(&args, backfill->purpose);
	(void) catalog_run("UPDATE bluegreen.backfill b SET file = $3, "
					   "fired = CASE WHEN next_block = 0 "
					   "THEN coalesce(" TRIGGER_SQL ", 0) ELSE fired END, "
					   "next_block = $4, blocks = $5, "
					   "row_count = row_count + $6, batch_blocks = $7, "
					   "done = $4 >= $5, waits_for = NULL, "
					   "batches = batches + 1, "
					   "started_at = coalesce(started_at, now()), "
					   "finished_at = CASE WHEN $4 >= $5 "
					   "THEN clock_timestamp() END "
					   "WHERE change = $1 AND relation = $2 "
					   "AND purpose = $8", &args,
					   SPI_OK_UPDATE);
	catalog_end(&access);
}

/* ---- a range ---- */

static void
set_local(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * How a range waits for the locks of rows.  It has rows locked for which the
 * application may wait meanwhile, so each may have to wait for the other.
 * Whoever looks first has to give way, and that is us: we look at once, the
 * application after its deadlock_timeout.  Who begins to wait after we have
 * looked does not look before we have given up.
 */
static void
set_row_waits(void)
{
	set_local("lock_timeout", psprintf("%d", bg_lock_timeout));
	set_local("deadlock_timeout", DEADLOCK_MS);
	set_local("log_lock_waits", "off");
}

/*
 * Update a range of blocks, as the table's owner.  The application's triggers
 * do not fire: nothing happens that it would want to know.  Returns the number
 * of rows.
 */
static uint64
update_range(const Change *change, const Backfill *backfill,
			 Relation relation, int64 end)
{
	RunAs		saved;
	uint64		rows;
	char	   *schema =
		get_namespace_name(RelationGetNamespace(relation));
	char	   *name = RelationGetRelationName(relation);

	require_same_owner(backfill->relid, backfill->root);
	run_restricted(relation->rd_rel->relowner, change->path, &saved);
	set_local("session_replication_role", "replica");
	set_local("enable_seqscan", "off");
	set_row_waits();
	SPI_connect();
	rows = dualwrite_fill(backfill->relid,
						  psprintf("UPDATE ONLY %s SET %s "
								   "WHERE ctid >= '(" INT64_FORMAT ",0)' "
								   "AND ctid < '(" INT64_FORMAT ",0)' "
								   "AND (%s)",
								   quote_qualified_identifier(schema, name),
								   backfill->assignments,
								   backfill->next_block, end,
								   backfill->condition));
	SPI_finish();
	run_as_restore(&saved);
	return rows;
}

/*
 * Fill a derived table from a range of blocks, as the owner of both.  Its
 * constraints and triggers hold as for any new row, at once: none could be
 * deferred in a security-restricted operation.
 */
static uint64
derive_range(const Change *change, const Backfill *backfill,
			 Relation relation, int64 end)
{
	Oid			types[] = {TIDOID, TIDOID};
	ItemPointerData range[2];
	Datum		values[] = {
		PointerGetDatum(&range[0]), PointerGetDatum(&range[1])
	};
	RunAs		saved;
	uint64		rows;
	int			rc;

	AfterTriggerSetState(makeNode(ConstraintsSetStmt));
	ItemPointerSet(&range[0], (BlockNumber) backfill->next_block, 0);
	ItemPointerSet(&range[1], (BlockNumber) end, 0);
	run_as_owner(relation->rd_rel->relowner, change->path, &saved);
	set_local("enable_seqscan", "off");
	set_row_waits();
	SPI_connect();
	rc = SPI_execute_with_args(backfill->statement, lengthof(types), types,
							   values, NULL, false, 0);
	if (rc != SPI_OK_INSERT && rc != SPI_OK_UPDATE)
		elog(ERROR, "unexpected result of \"%s\"", backfill->statement);
	rows = SPI_processed;
	SPI_finish();
	run_as_restore(&saved);
	return rows;
}

/* Aim at the time that a range should take; at most twice as many at once. */
static int32
adapted_blocks(int32 blocks, TimestampTz start)
{
	long		ms = TimestampDifferenceMilliseconds(start,
													 GetCurrentTimestamp());
	int64		wanted = (int64) blocks * bg_backfill_batch_time / Max(ms, 1);

	wanted = Min(wanted, (int64) blocks * 2);
	return (int32) Min(Max(wanted, 1), MAX_BLOCKS);
}

/* How long to rest so that there are not more rows a second than allowed. */
static int
rest_ms(uint64 rows, TimestampTz start)
{
	long		ms = TimestampDifferenceMilliseconds(start,
													 GetCurrentTimestamp());
	int64		wanted;

	if (bg_backfill_rate == 0)
		return 0;
	wanted = (int64) rows * 1000 / bg_backfill_rate;
	return (int) Min(Max(wanted - ms, 0), 60000);
}

/* Is a table still what it was when it was noted? */
static bool
is_of_change(const Backfill *backfill)
{
	Oid			relid = backfill->relid;

	while (relid != backfill->root && get_rel_relispartition(relid))
		relid = get_partition_parent(relid, true);
	return relid == backfill->root;
}

static void
fill_range(const Change *change, Backfill *backfill, int *sleep_ms)
{
	Relation	relation = try_relation_open(backfill->relid,
											 AccessShareLock);
	TimestampTz start = GetCurrentTimestamp();
	int64		blocks;
	int64		end;
	uint64		rows = 0;

	if (relation == NULL || !is_of_change(backfill))
	{
		/* a partition that was dropped or detached */
		if (relation != NULL)
			relation_close(relation, NoLock);
		note_range(change->id, backfill, 0, 0);
		return;
	}
	if (backfill->file != relation_file(relation))
	{
		backfill->file = relation_file(relation);
		backfill->next_block = 0;
	}
	blocks = RelationGetNumberOfBlocks(relation);
	end = Min(backfill->next_block + backfill->batch_blocks, blocks);
	if (end > backfill->next_block)
		rows = backfill->statement ?
			derive_range(change, backfill, relation, end) :
			update_range(change, backfill, relation, end);
	relation_close(relation, NoLock);
	if (end - backfill->next_block == backfill->batch_blocks)
		backfill->batch_blocks = adapted_blocks(backfill->batch_blocks, start);
	backfill->next_block = end;
	note_range(change->id, backfill, blocks, rows);
	*sleep_ms = rest_ms(rows, start);
}

/*
 * Fill the next range of the change's tables, in the current transaction, or
 * say why not.  Sets how long to sleep after it.  Errors: those of the
 * expressions; a row that stays locked.
 */
BackfillResult
backfill_run(const Change *change, int *sleep_ms)
{
	Backfill   *backfill = next_backfill(change->id);
	char	   *reason;

	*sleep_ms = 0;
	if (backfill == NULL)
		return note_new_leaves(change->id) ? BACKFILL_MORE : BACKFILL_DONE;
	reason = throttle_reason(change, backfill->relid, sleep_ms);
	if (reason != NULL)
	{
		note_wait(change->id, backfill, reason);
		return BACKFILL_WAIT;
	}
	fill_range(change, backfill, sleep_ms);
	return BACKFILL_MORE;
}

/*
 * A range was given up because somebody holds a row, or for another reason like
 * that: the next one is smaller.
 */
void
backfill_blocked(int32 change, const char *reason)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, change);
	catalog_arg_text(&args, reason);
	(void) catalog_run("UPDATE bluegreen.backfill SET "
					   "batch_blocks = greatest(batch_blocks / 2, 1), "
					   "waits_for = $2 WHERE change = $1 AND NOT done "
					   "AND (relation, purpose) = (SELECT relation, purpose "
					   "FROM bluegreen.backfill WHERE change = $1 "
					   "AND NOT done ORDER BY relation, purpose LIMIT 1)",
					   &args, SPI_OK_UPDATE);
	catalog_end(&access);
}
