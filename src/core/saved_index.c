/*-------------------------------------------------------------------------
 *
 * saved_index.c
 *		On a target: indexes that are in the way of a copy are put aside and
 *		built again.
 *
 * Why is in stream/copy_index.c, which asks for it.  An index that is put
 * aside stays in the catalogs, with its name, constraint, comment, options and
 * tablespace, and foreign keys may go on referring to it.  It is only not
 * ready and not valid, as a new one is when CREATE INDEX CONCURRENTLY begins,
 * a state that all of the server knows: writers leave it alone, nobody reads
 * it, HOT takes it into account.  REINDEX makes it ready again.  If that never
 * comes to be, "\d" shows an INVALID index that anybody can reindex.
 *
 * Indexes that are aside are listed in bluegreen.saved_index, which is granted
 * to nobody; what is done with one is done as the table's owner, or by this
 * file after a look at the caller's privileges.  So a role that applies
 * changes needs no rights of the owner, only those to write to the table.
 *
 * The index over a mapping's key goes, too, if the mapping can do without while
 * it is copied, which the source knows, and if nobody here needs it: the table
 * has no rows that the copy could meet, no trigger that fires for streams, no
 * other mapping writes to it, and it is not published or mapped itself.  While
 * it is aside nothing sees to it that keys are unique.  So whoever else begins
 * to write to the table as a stream has it built first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/guard.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(bluegreen_save_indexes);
PG_FUNCTION_INFO_V1(bluegreen_restore_indexes);
PG_FUNCTION_INFO_V1(bluegreen_restore_key);

#define WRITE_PRIVILEGES (ACL_SELECT | ACL_INSERT | ACL_UPDATE | ACL_DELETE)

/*
 * The indexes of $1, with $3 also those over key columns $2: OID, name,
 * definition, whether it must be put aside, whether it cannot be, whether it is
 * the key's.  One that is not ready is aside already, or its owner's business.
 */
static const char index_query[] =
"SELECT ic.oid, ic.relname::text, pg_catalog.pg_get_indexdef(ic.oid),"
" (i.indisunique OR i.indisexclusion) AND NOT k.is_key,"
" c.relkind = 'p' OR c.relispartition OR i.indisreplident"
"  OR i.indisprimary <> k.is_key,"
" k.is_key "
"FROM pg_catalog.pg_index i "
"JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid "
"JOIN pg_catalog.pg_class c ON c.oid = i.indrelid "
"CROSS JOIN LATERAL"
" (SELECT i.indisunique AND i.indpred IS NULL AND i.indimmediate"
"  AND i.indnkeyatts = pg_catalog.cardinality($2)"
"  AND NOT EXISTS (SELECT FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) AS p(x)"
"   LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[p.x]"
"   WHERE a.attname IS NULL OR a.attname <> ALL ($2)) AS is_key) AS k "
"WHERE c.oid = $1"
" AND i.indislive AND i.indisready AND i.indisvalid"
" AND ($3 OR NOT k.is_key) "
"ORDER BY ic.oid";

/*
 * Can table $1 be without the index over the key of mapping $3 of stream $2?
 * The table's name is returned for a look at its rows.
 */
static const char key_query[] =
"SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) "
"FROM pg_catalog.pg_class c "
"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
"WHERE c.oid = $1 AND c.relkind = 'r' AND NOT c.relispartition"
" AND NOT EXISTS (SELECT FROM bluegreen.applied_table t"
"  WHERE t.target_schema = n.nspname AND t.target_table = c.relname"
"  AND (t.stream, t.mapping) IS DISTINCT FROM ($2, $3))"
" AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g"
"  WHERE g.tgrelid = c.oid AND g.tgenabled IN ('A', 'R'))"
" AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables p"
"  WHERE p.schemaname = n.nspname AND p.tablename = c.relname)"
" AND NOT EXISTS (SELECT FROM bluegreen.table_mapping m"
"  WHERE m.source = c.oid)"
" AND NOT EXISTS (SELECT FROM bluegreen.deployment d"
"  WHERE d.opposite = $2)";

/* A mapping, as a stream names it, and its target. */
typedef struct Mapping
{
	const char *stream;
	int32		id;
	Oid			table;
} Mapping;

/* One index to be put aside. */
typedef struct FoundIndex
{
	Oid			oid;
	char	   *name;
	char	   *definition;
	bool		is_key;
} FoundIndex;

/* One that is built again. */
typedef struct SavedIndex
{
	char	   *rebuild;		/* the statement */
	Oid			table;
} SavedIndex;

/*
 * The owner of a table that the user may write to as streams do.
 */
static Oid
writable_owner(Oid table)
{
	if (!guard_is_granted(table, WRITE_PRIVILEGES))
		guard_denied(table);
	return guard_check_relation(table);
}

/*
 * Run a statement as the owner of a table.
 */
static void
run_as_owner(Oid table, const char *sql)
{
	Oid			owner = writable_owner(table);
	volatile int rc = 0;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (owner != GetUserId())
		AS_OWNER(owner, rc = SPI_execute(sql, false, 0));
	else
		rc = SPI_execute(sql, false, 0);
	if (rc != SPI_OK_UTILITY)
		elog(ERROR, "unexpected result of \"%s\": %s", sql,
			 SPI_result_code_string(rc));
	SPI_finish();
}

/*
 * The target of a stream's mapping.  InvalidOid if it does not exist.
 */
static Oid
mapping_table(const char *stream, int32 mapping)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	Oid			result = InvalidOid;

	catalog_begin(&access);
	catalog_arg_text(&args, stream);
	catalog_arg_int4(&args, mapping);
	if (catalog_run("SELECT c.oid FROM bluegreen.applied_table t "
					"JOIN pg_catalog.pg_namespace n "
					"ON n.nspname = t.target_schema "
					"JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid "
					"AND c.relname = t.target_table "
					"WHERE t.stream = $1 AND t.mapping = $2", &args,
					SPI_OK_SELECT) > 0)
		result = DatumGetObjectId(catalog_value(0, 1, NULL));
	catalog_end(&access);
	return result;
}

/*
 * Can the target be without the index over the mapping's key?  Reads rows, of
 * which nothing is evaluated.
 */
static bool
can_miss_key(const Mapping *mapping)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		result = false;

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(mapping->table));
	catalog_arg_text(&args, mapping->stream);
	catalog_arg_int4(&args, mapping->id);
	if (catalog_run(key_query, &args, SPI_OK_SELECT) > 0)
		result = catalog_run(psprintf("SELECT FROM ONLY %s LIMIT 1",
									  catalog_text(&access, 0, 1)),
							 NULL, SPI_OK_SELECT) == 0;
	catalog_end(&access);
	return result;
}

/*
 * What can be put aside, in *indexes; false if something that must be cannot.
 */
static bool
find_indexes(const Mapping *mapping, Datum key, bool with_key, List **indexes)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		possible = true;
	uint64		n;

	*indexes = NIL;
	with_key = with_key && can_miss_key(mapping);
	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(mapping->table));
	catalog_arg(&args, NAMEARRAYOID, key);
	catalog_arg(&args, BOOLOID, BoolGetDatum(with_key));
	n = catalog_run(index_query, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(access.context);
		FoundIndex *index = palloc0_object(FoundIndex);
		bool		clashes = DatumGetBool(catalog_value(i, 4, NULL));
		bool		fixed = DatumGetBool(catalog_value(i, 5, NULL));

		index->oid = DatumGetObjectId(catalog_value(i, 1, NULL));
		index->name = catalog_text(&access, i, 2);
		index->definition = catalog_text(&access, i, 3);
		index->is_key = DatumGetBool(catalog_value(i, 6, NULL));
		if (!fixed)
			*indexes = lappend(*indexes, index);
		possible &= !(clashes && fixed);
		MemoryContextSwitchTo(old);
	}
	catalog_end(&access);
	return possible;
}

/*
 * From now on nobody writes to the index or reads it.  The caller has locked
 * the table.
 */
static void
make_unready(Oid table, Oid index)
{
	Relation	catalog = table_open(IndexRelationId, RowExclusiveLock);
	HeapTuple	tuple = SearchSysCacheCopy1(INDEXRELID,
											ObjectIdGetDatum(index));
	Form_pg_index form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", index);
	form = (Form_pg_index) GETSTRUCT(tuple);
	form->indisvalid = false;
	form->indisready = false;
	CatalogTupleUpdate(catalog, &tuple->t_self, tuple);
	heap_freetuple(tuple);
	table_close(catalog, RowExclusiveLock);
	/* the table's list of indexes is not made anew for that by itself */
	CacheInvalidateRelcacheByRelid(table);
	CommandCounterIncrement();
}

static void
save_index(const Mapping *mapping, const FoundIndex *index)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, mapping->stream);
	catalog_arg_int4(&args, mapping->id);
	catalog_arg_text(&args, index->name);
	catalog_arg_text(&args, index->definition);
	catalog_arg(&args, BOOLOID, BoolGetDatum(index->is_key));
	catalog_run("WITH flag AS (UPDATE bluegreen.applied_table "
				" SET key_aside = true "
				" WHERE stream = $1 AND mapping = $2 AND $5) "
				"INSERT INTO bluegreen.saved_index "
				"(stream, mapping, name, definition, is_key) "
				"VALUES ($1, $2, $3, $4, $5) "
				"ON CONFLICT (stream, mapping, name) DO UPDATE "
				"SET definition = EXCLUDED.definition, "
				"is_key = EXCLUDED.is_key",
				&args, SPI_OK_INSERT);
	catalog_end(&access);
	make_unready(mapping->table, index->oid);
}

/*
 * Keep everybody from the table until the end of the transaction, or, if only
 * the key's indexes are found, do without them rather than wait.
 */
static bool
lock_table(Oid table, const List *indexes)
{
	const ListCell *lc;

	foreach(lc, indexes)
	{
		const FoundIndex *index = lfirst(lc);

		if (!index->is_key)
		{
			LockRelationOid(table, AccessExclusiveLock);
			return true;
		}
	}
	return ConditionalLockRelationOid(table, AccessExclusiveLock);
}

/*
 * bluegreen.save_indexes(stream text, mapping integer, key name[], with_key
 * boolean) returns boolean: put the indexes of a mapping's target aside, with
 * that over its key only if the caller does not need it and nobody else does.
 * False, and nothing is done, if that cannot be for a unique or exclusion
 * index.  Errors: the caller may not write to the table.  Locks the table
 * ACCESS EXCLUSIVE until the end of the transaction.
 */
Datum
bluegreen_save_indexes(PG_FUNCTION_ARGS)
{
	Mapping		mapping = {
		.stream = text_to_cstring(PG_GETARG_TEXT_PP(0)),
		.id = PG_GETARG_INT32(1)
	};
	Datum		key = PG_GETARG_DATUM(2);
	bool		with_key = PG_GETARG_BOOL(3);
	List	   *indexes;
	ListCell   *lc;

	mapping.table = mapping_table(mapping.stream, mapping.id);
	if (!OidIsValid(mapping.table))
		PG_RETURN_BOOL(false);
	(void) writable_owner(mapping.table);
	if (!find_indexes(&mapping, key, with_key, &indexes))
		PG_RETURN_BOOL(false);
	if (indexes == NIL || !lock_table(mapping.table, indexes))
		PG_RETURN_BOOL(true);

	/* they may have changed until we had the lock */
	if (!find_indexes(&mapping, key, with_key, &indexes))
		PG_RETURN_BOOL(false);
	foreach(lc, indexes)
	{
		save_index(&mapping, lfirst(lc));
	}
	PG_RETURN_BOOL(true);
}

/*
 * A mapping goes while others are still copied into its target: one of them
 * takes over what it has saved.
 */
static void
hand_over(const char *stream, int32 mapping)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, stream);
	catalog_arg_int4(&args, mapping);
	catalog_run("WITH heir AS (SELECT pg_catalog.min(c.mapping) AS mapping "
				" FROM bluegreen.applied_table c, bluegreen.applied_table me "
				" WHERE me.stream = $1 AND me.mapping = $2 "
				" AND c.stream = $1 AND c.mapping <> me.mapping "
				" AND c.target_schema = me.target_schema "
				" AND c.target_table = me.target_table "
				" AND c.state = 'copying') "
				"UPDATE bluegreen.saved_index s SET mapping = heir.mapping "
				"FROM heir WHERE s.stream = $1 AND s.mapping = $2 "
				"AND heir.mapping IS NOT NULL", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * Take saved indexes out of bluegreen.saved_index; sql returns the statement
 * that builds one again and its table's OID.
 */
static List *
take_indexes(const char *sql, const char *stream, int32 mapping)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	List	   *indexes = NIL;
	uint64		n;

	catalog_begin(&access);
	catalog_arg_text(&args, stream);
	catalog_arg_int4(&args, mapping);
	n = catalog_run(sql, &args, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(access.context);
		SavedIndex *index = palloc0_object(SavedIndex);

		index->rebuild = catalog_text(&access, i, 1);
		index->table = DatumGetObjectId(catalog_value(i, 2, NULL));
		indexes = lappend(indexes, index);
		MemoryContextSwitchTo(old);
	}
	catalog_end(&access);
	return indexes;
}

/* what is still there and not ready */
#define TAKEN_TABLES \
	"SELECT pg_catalog.format('REINDEX INDEX %I.%I', n.nspname, ic.relname), " \
	"c.oid FROM d " \
	"JOIN pg_catalog.pg_namespace n ON n.nspname = d.target_schema " \
	"JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid " \
	" AND c.relname = d.target_table " \
	"JOIN pg_catalog.pg_class ic ON ic.relnamespace = n.oid " \
	" AND ic.relname = d.name " \
	"JOIN pg_catalog.pg_index i ON i.indexrelid = ic.oid " \
	" AND i.indrelid = c.oid AND NOT i.indisready "

/* of a mapping's target, unless another mapping is still copied into it */
static const char take_of_mapping[] =
"WITH d AS (DELETE FROM bluegreen.saved_index s "
"USING bluegreen.applied_table me, bluegreen.applied_table t "
"WHERE me.stream = $1 AND me.mapping = $2 "
"AND t.stream = $1 AND t.target_schema = me.target_schema "
"AND t.target_table = me.target_table "
"AND s.stream = $1 AND s.mapping = t.mapping "
"AND NOT EXISTS (SELECT FROM bluegreen.applied_table c "
" WHERE c.stream = $1 AND c.mapping <> me.mapping "
" AND c.target_schema = me.target_schema "
" AND c.target_table = me.target_table AND c.state = 'copying') "
"RETURNING s.name, s.definition, me.target_schema, me.target_table) "
TAKEN_TABLES "ORDER BY d.name";

/* the key's, of a mapping's target, whoever has saved it */
static const char take_of_key[] =
"WITH d AS (DELETE FROM bluegreen.saved_index s "
"USING bluegreen.applied_table me, bluegreen.applied_table t "
"WHERE me.stream = $1 AND me.mapping = $2 "
"AND t.target_schema = me.target_schema "
"AND t.target_table = me.target_table "
"AND s.stream = t.stream AND s.mapping = t.mapping AND s.is_key "
"RETURNING s.name, s.definition, me.target_schema, me.target_table) "
TAKEN_TABLES "ORDER BY d.name";

/* of a whole stream */
static const char take_of_stream[] =
"WITH d AS (DELETE FROM bluegreen.saved_index s "
"USING bluegreen.applied_table t "
"WHERE s.stream = $1 AND t.stream = $1 AND t.mapping = s.mapping "
"AND $2 IS NOT DISTINCT FROM $2 "
"RETURNING s.mapping, s.name, s.definition, t.target_schema, t.target_table) "
TAKEN_TABLES "ORDER BY d.mapping, d.name";

/*
 * What to do about an index that cannot be built.
 */
static void
hint_at_rows(void *arg)
{
	int			code = geterrcode();

	if (code == ERRCODE_UNIQUE_VIOLATION || code == ERRCODE_EXCLUSION_VIOLATION)
		errhint("Somebody else has written to the table while it was copied, or its source allows what the index does not. Change or delete one of these rows; the index is tried again.");
}

static void
rebuild(const List *indexes)
{
	const ListCell *lc;
	ErrorContextCallback hint = {
		.callback = hint_at_rows,
		.previous = error_context_stack
	};

	error_context_stack = &hint;
	foreach(lc, indexes)
	{
		const SavedIndex *index = lfirst(lc);

		run_as_owner(index->table, index->rebuild);
	}
	error_context_stack = hint.previous;
}

/*
 * Which keys are still aside, now that some indexes are taken?
 */
static void
unflag_keys(const char *stream)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, stream);
	catalog_run("UPDATE bluegreen.applied_table t SET key_aside = false "
				"WHERE t.stream = $1 AND t.key_aside AND NOT EXISTS "
				"(SELECT FROM bluegreen.saved_index s "
				" WHERE s.stream = t.stream AND s.mapping = t.mapping "
				" AND s.is_key)", &args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * bluegreen.restore_indexes(stream text, mapping integer, gone boolean)
 * returns integer: build the saved indexes of a mapping's target again, unless
 * another mapping is still copied into it; gone: the mapping is about to be
 * forgotten.  Without a mapping, all of the stream.  Returns how many.
 */
Datum
bluegreen_restore_indexes(PG_FUNCTION_ARGS)
{
	char	   *stream;
	List	   *indexes;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	stream = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (PG_ARGISNULL(1))
		indexes = take_indexes(take_of_stream, stream, 0);
	else
	{
		if (!PG_ARGISNULL(2) && PG_GETARG_BOOL(2))
			hand_over(stream, PG_GETARG_INT32(1));
		indexes = take_indexes(take_of_mapping, stream, PG_GETARG_INT32(1));
	}
	unflag_keys(stream);
	rebuild(indexes);
	PG_RETURN_INT32(list_length(indexes));
}

/*
 * Waits until no chunk is copied into the mapping's target, and keeps others
 * from beginning until the end of the transaction, if its key is aside.
 */
static void
lock_out_copies(const char *stream, int32 mapping)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_text(&args, stream);
	catalog_arg_int4(&args, mapping);
	catalog_run("UPDATE bluegreen.applied_table t SET key_aside = false "
				"FROM bluegreen.applied_table me "
				"WHERE me.stream = $1 AND me.mapping = $2 "
				"AND t.target_schema = me.target_schema "
				"AND t.target_table = me.target_table AND t.key_aside",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/*
 * bluegreen.restore_key(stream text, mapping integer) returns integer: build
 * the index over the key of a mapping's target again, if a stream, this one or
 * another, has put it aside.  Returns how many there were.  Waits for chunks
 * that are copied into it.  From then on it stays: the mapping that calls is
 * registered, and so are the chunks that are copied.
 */
Datum
bluegreen_restore_key(PG_FUNCTION_ARGS)
{
	char	   *stream = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int32		mapping = PG_GETARG_INT32(1);
	Oid			table = mapping_table(stream, mapping);
	List	   *indexes;

	if (!OidIsValid(table))
		PG_RETURN_INT32(0);
	(void) writable_owner(table);
	/* who puts it aside at this moment has not seen our mapping: wait */
	LockRelationOid(table, AccessShareLock);
	lock_out_copies(stream, mapping);
	indexes = take_indexes(take_of_key, stream, mapping);
	rebuild(indexes);
	PG_RETURN_INT32(list_length(indexes));
}
