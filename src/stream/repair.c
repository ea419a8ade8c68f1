/*-------------------------------------------------------------------------
 *
 * repair.c
 *		bluegreen.repair(): have the stream write rows again that differ.
 *
 * Nothing is written to the target from here.  The rows, as they are on the
 * source now, go through the table bluegreen.repair_row into the WAL, and the
 * stream, which finds them there, applies them like any other change
 * (repair_row.c): in the order of commits, by its ordinary statements, exactly
 * once.  A row that somebody changes afterwards comes afterwards.  So that
 * nobody changes one between our look and our commit, the sources are locked
 * against writers, from the look to the end of the caller's transaction.
 *
 * A key that the source has no row for is deleted on the target, if rows that
 * only the target has are wrong (verify.h).
 *
 * Without a key, rows that are the same have no names, so what counts is how
 * many more or fewer the target has.  While writers are locked out, the stream
 * is waited for, and then the rows are counted on both sides.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "core/event.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "stream/verify.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(bluegreen_repair);

#define LOCK_TIMEOUT	"1s"	/* the application queues behind us */
#define REPAIR_KEYS		500		/* at once */

/* The differences of one mapping. */
typedef struct RepairJob
{
	const Deployment *deployment;
	Peer	   *peer;
	VerifyTable *table;
	Suspect    *keys;
	int			n;
	int64		last;			/* id of the last difference among them */
	bool		wrote;			/* the transaction had written before us */
} RepairJob;

/*
 * The values of a key of so many columns.
 */
static char **
key_columns(ArrayType *array, int columns)
{
	char	  **result = palloc_array(char *, columns);
	Datum	   *texts;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL,
					  &n);
	/* one that a verification found which had the mapping's former key */
	if (n != columns)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a difference has a key of %d columns, but the mapping's has %d",
						n, columns),
				 errhint("Verify the table again.")));
	for (int k = 0; k < n; k++)
		result[k] = TextDatumGetCString(texts[k]);
	return result;
}

/*
 * The keys of a mapping that differ and are not repaired.
 */
static void
load_keys(RepairJob *job, const MappingRow *row)
{
	CatalogAccess access;
	int			columns = 0;

	for (int i = 0; i < row->ncolumns; i++)
		if (row->columns[i].is_key)
			columns++;
	catalog_begin(&access);
	job->n = (int) catalog_run(psprintf("SELECT key, id FROM "
										"bluegreen.verify_difference "
										"WHERE mapping = %d "
										"AND repaired_at IS NULL ORDER BY id",
										row->id), NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(access.context);
	job->keys = palloc0_array(Suspect, Max(job->n, 1));
	for (int i = 0; i < job->n; i++)
	{
		job->keys[i].key =
			key_columns(DatumGetArrayTypeP(catalog_value(i, 1, NULL)),
						Max(columns, 1));
		job->last = DatumGetInt64(catalog_value(i, 2, NULL));
	}
	catalog_end(&access);
}

/*
 * Keep writers of the source out until the end of the transaction, if the
 * caller might do so with LOCK TABLE.
 */
static void
lock_out_writers(Oid source)
{
	int			guc_level;

	if (pg_class_aclmask(source, GetUserId(), ACL_UPDATE | ACL_DELETE |
						 ACL_TRUNCATE, ACLMASK_ANY) == 0)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(source));
	guc_level = NewGUCNestLevel();
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	LockRelationOid(source, ShareLock);
	(void) find_all_inheritors(source, ShareLock, NULL);
	AtEOXact_GUC(false, guc_level);
}

/*
 * Let a row through into the WAL: of the source, or values of the target's row
 * that is to go.
 */
static void
pass_row(const RepairJob *job, const char *source_row, Datum values,
		 int64 copies)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bytea	   *bytes = NULL;

	if (source_row != NULL)
	{
		Size		size = VARSIZE(source_row);

		bytes = palloc(VARHDRSZ + size);
		SET_VARSIZE(bytes, VARHDRSZ + size);
		memcpy(VARDATA(bytes), source_row, size);
	}
	catalog_begin(&access);
	catalog_arg_int4(&args, job->table->transform->row->id);
	catalog_arg(&args, BYTEAOID, PointerGetDatum(bytes));
	args.nulls[1] = bytes ? ' ' : 'n';
	catalog_arg(&args, TEXTARRAYOID, values);
	args.nulls[2] = bytes ? 'n' : ' ';
	catalog_arg(&args, INT8OID, Int64GetDatum(copies));
	catalog_run("INSERT INTO bluegreen.repair_row "
				"(mapping, source_row, key, copies) VALUES ($1, $2, $3, $4)",
				&args, SPI_OK_INSERT);
	catalog_end(&access);
}

static Datum
text_array(char **values, int n)
{
	Datum	   *texts = palloc_array(Datum, Max(n, 1));
	bool	   *nulls = palloc_array(bool, Max(n, 1));
	int			dims[] = {n};
	int			bounds[] = {1};

	for (int i = 0; i < n; i++)
	{
		nulls[i] = values[i] == NULL;
		texts[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(values[i]);
	}
	return PointerGetDatum(construct_md_array(texts, nulls, 1, dims, bounds,
											  TEXTOID, -1, false,
											  TYPALIGN_INT));
}

static PeerResult *
ask_source(const RepairJob *job, const OuterQuery *outer)
{
	PeerResult *volatile result = NULL;

	PushActiveSnapshot(GetTransactionSnapshot());
	PG_TRY();
	{
		result = verify_run_query(job->table,
								  verify_source_query(job->table, NULL, NULL,
													  outer));
	}
	PG_FINALLY();
	{
		/* the session goes on, and must not find a moment there */
		memset(&transform_moment, 0, sizeof(transform_moment));
	}
	PG_END_TRY();
	PopActiveSnapshot();
	return result;
}

static PeerResult *
ask_target(const RepairJob *job, const OuterQuery *outer)
{
	return peer_query(job->peer,
					  verify_target_query(job->table, NULL, NULL, outer), 0,
					  NULL);
}

/* ---- with a key ---- */

static void
repair_keys(const RepairJob *job, Suspect *keys, int n)
{
	OuterQuery	outer = verify_look_query(job->table, keys, n, true);
	PeerResult *rows = ask_source(job, &outer);
	bool	   *found = palloc0_array(bool, n);

	for (int i = 0; i < rows->ntuples; i++)
	{
		found[atoi(rows->values[i][0]) - 1] = true;
		pass_row(job, rows->values[i][4], (Datum) 0, 1);
	}
	for (int i = 0; i < n; i++)
		if (!found[i] && job->table->finds_extra)
			pass_row(job, NULL, text_array(keys[i].key, job->table->nkeys), 1);
}

/* ---- without ---- */

static int64
count_of(const PeerResult *looks, const char *hash)
{
	for (int i = 0; i < looks->ntuples; i++)
		if (strcmp(looks->values[i][0], hash) == 0)
			return strtoll(looks->values[i][1], NULL, 10);
	return 0;
}

/*
 * One row of a hash: on the source as it is, on the target all its values.
 */
static OuterQuery
one_row_query(const RepairJob *job, const char *hash, bool source)
{
	const VerifyTable *table = job->table;
	StringInfoData columns;

	initStringInfo(&columns);
	for (int i = 0; i < table->transform->ncolumns && !source; i++)
		appendStringInfo(&columns, "%ss.c%d", i > 0 ? ", " : "", i);
	return (OuterQuery) {
		psprintf("SELECT %s FROM ", source ? "s.whole" : columns.data),
		psprintf(" WHERE bluegreen.row_hash('%s', %s) OPERATOR(pg_catalog.=) "
				 "'%s'::pg_catalog.uuid LIMIT 1", table->formats,
				 table->columns, hash)
	};
}

static void
repair_hash(const RepairJob *job, const char *hash, int64 here, int64 there)
{
	OuterQuery	outer;
	PeerResult *row;

	if (here == there)
		return;
	outer = one_row_query(job, hash, here > there);
	row = here > there ? ask_source(job, &outer) : ask_target(job, &outer);
	if (row->ntuples == 0)
		return;
	if (here > there)
		pass_row(job, row->values[0][0], (Datum) 0, here - there);
	else
		pass_row(job, NULL, text_array(row->values[0], row->nfields),
				 there - here);
}

static void
repair_hashes(const RepairJob *job, Suspect *keys, int n)
{
	OuterQuery	outer = verify_look_query(job->table, keys, n, false);
	PeerResult *here;
	PeerResult *there;

	if (pg_get_client_encoding() != GetDatabaseEncoding())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot repair table \"%s\", which is mapped without a key, in a session of another encoding",
						mapping_target_name(job->table->transform->row)),
				 errhint("Use SET client_encoding = %s;",
						 GetDatabaseEncodingName())));
	control_wait_applied(job->deployment);
	here = ask_source(job, &outer);
	there = ask_target(job, &outer);
	for (int i = 0; i < n; i++)
		repair_hash(job, keys[i].key[0], count_of(here, keys[i].key[0]),
					count_of(there, keys[i].key[0]));
}

/* ---- all of them ---- */

static void
mark_repaired(const RepairJob *job, int32 mapping)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *user = GetUserNameFromId(GetUserId(), false);

	catalog_begin(&access);
	catalog_arg_name(&args, user);
	catalog_run(psprintf("UPDATE bluegreen.verify_difference "
						 "SET repaired_at = clock_timestamp(), repaired_by = $1 "
						 "WHERE mapping = %d AND repaired_at IS NULL "
						 "AND id <= " INT64_FORMAT, mapping, job->last),
				&args, SPI_OK_UPDATE);
	catalog_run("DELETE FROM bluegreen.repair_row", NULL, SPI_OK_DELETE);
	catalog_end(&access);
}

/*
 * Can the job's table be repaired by this transaction?  Without a key, what it
 * has written to the source counts as a row here, but is not on the target yet.
 */
static void
check_table(const RepairJob *job, const MappingRow *row)
{
	if (job->table->unfit != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" cannot be repaired",
						mapping_target_name(row)),
				 errdetail("It cannot be compared: %s.", job->table->unfit)));
	if (job->table->nkeys == 0 && job->wrote)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot repair table \"%s\", which is mapped without a key, in a transaction that has written",
						mapping_target_name(row)),
				 errhint("Call bluegreen.repair() in a transaction of its own.")));
}

static void
repair_all_keys(const RepairJob *job)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pg_bluegreen repair",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	for (int i = 0; i < job->n; i += REPAIR_KEYS)
	{
		int			n = Min(job->n - i, REPAIR_KEYS);

		if (job->table->nkeys > 0)
			repair_keys(job, job->keys + i, n);
		else
			repair_hashes(job, job->keys + i, n);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * Repair what is wrong in one mapping; returns how many keys.
 */
static int64
repair_mapping(RepairJob *job, MappingRow *row)
{
	load_keys(job, row);
	if (job->n == 0)
		return 0;
	if (table_shared_get(row->id, row->deployment)->state != TABLE_STREAMING)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is being copied",
						mapping_target_name(row)),
				 errhint("Verify it again when it is copied.")));
	job->table = verify_table_create(job->peer, row, !row->target_shared);
	check_table(job, row);
	lock_out_writers(row->source);
	repair_all_keys(job);
	mark_repaired(job, row->id);
	event_record_local(row->deployment, EVENT_REPAIRED, InvalidXLogRecPtr,
					   psprintf("%d keys of \"%s\" are written again", job->n,
								mapping_target_name(row)),
					   psprintf("asked for by %s",
								GetUserNameFromId(GetUserId(), false)));
	return job->n;
}

/*
 * bluegreen.repair(deployment name, source regclass) returns bigint: write
 * the rows again that verify() has found wrong.
 */
Datum
bluegreen_repair(PG_FUNCTION_ARGS)
{
	RepairJob	job = {0};
	Oid			source = PG_ARGISNULL(1) ? InvalidOid : PG_GETARG_OID(1);
	int64		repaired = 0;
	int			guc_level;
	ListCell   *lc;

	require_argument(fcinfo, 0, "deployment");
	require_writable("bluegreen.repair");
	shared_require();
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("bluegreen.repair() needs isolation level READ COMMITTED"),
				 errdetail("It has to see the rows as they are when it has locked them.")));
	job.wrote = TransactionIdIsValid(GetTopTransactionIdIfAny());
	job.deployment = deployment_lock(NameStr(*PG_GETARG_NAME(0)));
	control_require_active(job.deployment, "repair");
	if (job.deployment->window != WINDOW_CLOSED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot repair tables of deployment \"%s\" in a window",
						job.deployment->name),
				 errdetail("What differs may be on its way from either side."),
				 errhint("Write the row on one side as it is to be, or close the window first.")));
	control_check_stream(control_stream(job.deployment), job.deployment->name);
	guc_level = settings_pin_formatting();
	job.peer = peer_connect(job.deployment->server, job.deployment->owner,
							psprintf("%s repair",
									 stream_application_name(job.deployment)));
	peer_on_connect_apply(job.peer);
	foreach(lc, mappings_load(job.deployment->id,
							   job.deployment->direction))
	{
		MappingRow *row = lfirst(lc);

		if (!OidIsValid(source) || row->source == source)
			repaired += repair_mapping(&job, row);
	}
	peer_close(job.peer);
	settings_restore(guc_level);
	PG_RETURN_INT64(repaired);
}
