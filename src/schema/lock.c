/*-------------------------------------------------------------------------
 *
 * lock.c
 *		The locks of a step, and the rights that they want.
 *
 * The worker takes them before it does anything, views before tables, and all
 * together within bluegreen.lock_timeout.
 *
 * They are stored as statements, for people to see, but not run as such.  LOCK
 * TABLE of what a foreign key refers to wants more rights than the foreign key
 * does; and LOCK TABLE of a view locks what it reads.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/tablecmds.h"
#include "compat.h"
#include "core/settings.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "schema/shape.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#define GRACE_MS		20		/* after bg_lock_timeout, which names itself */

static TimeoutId lock_timer;	/* of all locks of a step */
static volatile sig_atomic_t expired = false;

/* ---- rights, when a change is planned ---- */

/* Columns whose foreign keys will be made for their second columns as well. */
static List *
paired_columns(const ShapeTable *table)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);

		if (column->rule != NULL && column->rule->kind == RULE_PAIR)
			result = lappend(result, column->old_name);
	}
	return result;
}

/* $1 table, $2 columns, $3 tables of new foreign keys, $4 role */
static const char *const not_referable_sql =
	"SELECT t.oid::regclass::text FROM ("
	"SELECT k.confrelid FROM pg_constraint k WHERE k.conrelid = $1 "
	"AND k.contype = 'f' AND k.conparentid = 0 AND EXISTS ("
	"SELECT FROM pg_attribute a WHERE a.attrelid = $1 "
	"AND a.attnum = ANY (k.conkey) AND a.attname::text = ANY ($2)) "
	"UNION SELECT to_regclass(n) FROM unnest($3) n) t (oid) "
	"WHERE NOT has_any_column_privilege($4, t.oid, 'REFERENCES') LIMIT 1";

/*
 * Error if the change's owner may not make the foreign keys that he wants, or
 * that come along with columns: that is found out now, not when all rows are
 * filled.
 */
void
require_references(const Change *change, const ShapeTable *table)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *targets = NIL;
	char	   *refused = NULL;
	ListCell   *lc;

	foreach(lc, table->constraints)
	{
		NewConstraint *constraint = lfirst(lc);

		if (constraint->locks != NULL)
			targets = lappend(targets, constraint->locks);
	}
	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(paired_columns(table)));
	catalog_arg(&args, TEXTARRAYOID, texts_datum(targets));
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(change->owner));
	if (catalog_run(not_referable_sql, &args, SPI_OK_SELECT) > 0)
		refused = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (refused != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", refused),
				 errdetail("A foreign key of table %s will refer to it.",
						   table->qualified),
				 errhint("Use GRANT REFERENCES ON %s TO %s.", refused,
						 quote_identifier(GetUserNameFromId(change->owner,
															false)))));
}

/* ---- take them ---- */

/*
 * lock_timeout, until the end of the transaction.
 */
void
locks_set_timeout(int ms)
{
	(void) set_config_option("lock_timeout", psprintf("%d", Max(ms, 1)),
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
							 true, 0, false);
}

/* The lock timer's handler. */
static void
locks_took_too_long(void)
{
	expired = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * Lock a view, and not what it reads, which LOCK TABLE would do: whoever reads
 * another view of the same table has locked that before the table.
 */
static void
lock_view(const char *qualified)
{
	List	   *name = textToQualifiedNameList(cstring_to_text(qualified));

	(void) RangeVarGetRelidExtended(makeRangeVarFromNameList(name),
									AccessExclusiveLock, RVR_MISSING_OK,
									RangeVarCallbackOwnsRelation, NULL);
}

/* Does a foreign key of a table that we own refer to this one? */
static bool
is_referenced(Oid relid)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result;

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(GetUserId()));
	catalog_begin(&access);
	result = catalog_run("SELECT FROM pg_constraint k "
						 "JOIN pg_class c ON c.oid = k.conrelid "
						 "WHERE k.confrelid = $1 AND k.contype = 'f' "
						 "AND pg_has_role($2, c.relowner, 'USAGE') LIMIT 1",
						 &args, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

/*
 * What a foreign key refers to is locked when that is made or dropped, by whom
 * LOCK TABLE would refuse.
 */
static void
check_may_lock(const RangeVar *name, Oid relid, Oid before, void *arg)
{
	AclResult	result;

	if (!OidIsValid(relid) || relid == before ||
		pg_class_ownercheck(relid, GetUserId()))
		return;
	result = pg_attribute_aclcheck_all(relid, GetUserId(), ACL_REFERENCES,
									   ACLMASK_ANY);
	if (result != ACLCHECK_OK)
		result = pg_class_aclcheck(relid, GetUserId(), ACL_REFERENCES);
	if (result != ACLCHECK_OK && !is_referenced(relid))
		aclcheck_error(result, OBJECT_TABLE, name->relname);
}

/*
 * LOCK TABLE, with the rights that foreign keys ask for.
 */
static void
lock_table(const char *sql, bool missing_ok)
{
	RawStmt    *raw = linitial_node(RawStmt,
									raw_parser(sql, RAW_PARSE_DEFAULT));
	LockStmt   *lock = castNode(LockStmt, raw->stmt);
	ListCell   *lc;

	foreach(lc, lock->relations)
	{
		Oid			relid = RangeVarGetRelidExtended(lfirst(lc), lock->mode,
													 missing_ok ? RVR_MISSING_OK : 0,
													 check_may_lock, NULL);

		if (OidIsValid(relid) &&
			get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
			(void) find_all_inheritors(relid, lock->mode, NULL);
	}
}

/*
 * Take the locks of a step.  All together may take bluegreen.lock_timeout, also
 * where one statement locks many partitions; lock_timeout is for each lock.
 * Error if a table does not exist, unless missing_ok.
 */
void
locks_take(const Step *step, bool missing_ok)
{
	TimestampTz start = GetCurrentTimestamp();
	ListCell   *lc;

	locks_set_timeout(bg_lock_timeout);
	if (step->locks == NIL)
		return;
	enable_timeout_after(lock_timer, bg_lock_timeout + GRACE_MS);
	foreach(lc, step->locks)
	{
		const char *sql = lfirst(lc);

		if (strncmp(sql, LOCK_VIEW, strlen(LOCK_VIEW)) == 0)
			lock_view(sql + strlen(LOCK_VIEW));
		else
			lock_table(sql, missing_ok);
		locks_set_timeout(bg_lock_timeout -
						 TimestampDifferenceMilliseconds(start,
														 GetCurrentTimestamp()));
	}
	disable_timeout(lock_timer, false);
}

/*
 * For the worker: once, before all else.
 */
void
locks_init(void)
{
	lock_timer = RegisterTimeout(USER_TIMEOUT, locks_took_too_long);
}

/*
 * After an error.
 */
void
locks_end(void)
{
	disable_timeout(lock_timer, false);
}

/*
 * Was the error that of locks that took too long?  Forgets it.
 */
bool
locks_expired(void)
{
	bool		result = expired;

	expired = false;
	return result;
}
