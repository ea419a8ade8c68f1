/*-------------------------------------------------------------------------
 *
 * sequence_target.c
 *		What the other side's session does with sequences of this one: look
 *		where they are, and restart them.
 *
 * setval() would be no use: sessions that have cached values would go on to
 * hand them out.  ALTER SEQUENCE ... RESTART gives the sequence a new file,
 * which every session notices.  It takes the sequence's owner, whom the role
 * that applies must not be a member of.  It has UPDATE, which is what setval()
 * asks for, and is given no more than that: the statement is run as the owner,
 * without hooks that could run code of others (event triggers).
 *
 * Where a sequence goes on is decided here again, under the lock that keeps
 * nextval() out, so that nobody gets a value twice and none goes back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/sequence.h"
#include "core/definition.h"
#include "core/guard.h"
#include "cutover/sequence.h"
#include "cutover/window.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(bluegreen_sequence_position);
PG_FUNCTION_INFO_V1(bluegreen_column_extreme);
PG_FUNCTION_INFO_V1(bluegreen_restart_sequences);
PG_FUNCTION_INFO_V1(bluegreen_restore_all_sequences);

static char *
relation_full_name(Oid relid)
{
	char	   *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  name);
}

static void
require_sequence(Oid sequence)
{
	char	   *name = relation_full_name(sequence);

	if (get_rel_relkind(sequence) != RELKIND_SEQUENCE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a sequence", name)));
}

/*
 * Where a sequence stands, as of now.  What is on its page is ahead of what any
 * session has cached; the log_cnt values that the WAL is ahead of it count
 * after a crash only, and are then on the page.
 */
static void
read_position(Oid sequence, int64 *last, bool *called)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	char	   *sql = psprintf("SELECT last_value, is_called FROM %s",
							   relation_full_name(sequence));

	catalog_begin(&access);
	if (catalog_run(sql, &args, SPI_OK_SELECT) != 1)
		elog(ERROR, "sequence %u has no row", sequence);
	*last = DatumGetInt64(catalog_value(0, 1, NULL));
	*called = DatumGetBool(catalog_value(0, 2, NULL));
	catalog_end(&access);
}

/*
 * bluegreen.sequence_position(sequence oid) returns (last_value bigint,
 * is_called boolean): nulls if the caller may not read it.
 */
Datum
bluegreen_sequence_position(PG_FUNCTION_ARGS)
{
	Oid			sequence = PG_GETARG_OID(0);
	TupleDesc	desc;
	Datum		values[2] = {0};
	bool		nulls[2] = {true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	require_sequence(sequence);
	if (pg_class_aclcheck(sequence, GetUserId(), ACL_SELECT) == ACLCHECK_OK)
	{
		int64		last;
		bool		called;

		read_position(sequence, &last, &called);
		values[0] = Int64GetDatum(last);
		values[1] = BoolGetDatum(called);
		nulls[0] = nulls[1] = false;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

static bool
is_number(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID ||
		type == NUMERICOID;
}

/*
 * The query is of built-in types and operators.  It is run as the table's
 * owner, whose row-level security does not hide rows from him.
 */
static bool
query_extreme(const char *sql, int64 *value)
{
	bool		isnull = true;
	int			guc_level = search_path_pin();

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(sql, true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not execute \"%s\"", sql);
	*value = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	search_path_restore(guc_level);
	return !isnull;
}

/*
 * bluegreen.column_extreme(relation oid, "column" name, lowest boolean) returns
 * bigint: the column's largest value, or its lowest; null if there is none, or
 * if the caller may not read it.  For columns of numbers.
 */
Datum
bluegreen_column_extreme(PG_FUNCTION_ARGS)
{
	Oid			relation = PG_GETARG_OID(0);
	char	   *column = NameStr(*PG_GETARG_NAME(1));
	AttrNumber	attnum = get_attnum(relation, column);
	char	   *name = relation_full_name(relation);
	char		kind = get_rel_relkind(relation);
	bool		found = false;
	int64		value = 0;
	char	   *sql;

	if (attnum <= 0 || !is_number(getBaseType(get_atttype(relation, attnum))) ||
		(kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a column of numbers of table %s",
						column, name)));
	if (pg_class_aclcheck(relation, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		PG_RETURN_NULL();
	/* of a numeric column, what a bigint can be */
	sql = psprintf("SELECT CASE WHEN v IS NOT NULL THEN least(greatest("
				   "v::numeric, '-9223372036854775808'::numeric),"
				   " '9223372036854775807'::numeric)::int8 END"
				   " FROM (SELECT %s(%s) FROM %s) x (v)",
				   PG_GETARG_BOOL(2) ? "min" : "max", quote_identifier(column),
				   name);
	AS_OWNER(relation_owner(relation), found = query_extreme(sql, &value));
	if (!found)
		PG_RETURN_NULL();
	PG_RETURN_INT64(value);
}

/* ---- restart ---- */

/*
 * What sequence_next() needs, under a lock that keeps nextval() out until the
 * end of the transaction.
 */
static void
lock_sequence(Oid sequence, SequenceMove *move)
{
	HeapTuple	tuple;
	Form_pg_sequence form;

	LockRelationOid(sequence, ShareRowExclusiveLock);
	require_sequence(sequence);
	if (pg_class_aclcheck(sequence, GetUserId(), ACL_UPDATE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_SEQUENCE,
					   get_rel_name(sequence));
	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(sequence));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", sequence);
	form = (Form_pg_sequence) GETSTRUCT(tuple);
	move->increment = form->seqincrement;
	move->min = form->seqmin;
	move->max = form->seqmax;
	move->cycle = form->seqcycle;
	ReleaseSysCache(tuple);
	read_position(sequence, &move->last, &move->called);
}

static DefElem *
option(const char *name, int64 value)
{
	return makeDefElem(unconstify(char *, name),
					   (Node *) makeFloat(psprintf(INT64_FORMAT, value)), -1);
}

/*
 * ALTER SEQUENCE ... INCREMENT increment, unless 0, RESTART first, unless NULL.
 */
static void
alter_sequence(Oid sequence, int64 increment, const int64 *first)
{
	AlterSeqStmt *stmt = makeNode(AlterSeqStmt);

	stmt->sequence = makeRangeVar(get_namespace_name(get_rel_namespace(sequence)),
								  get_rel_name(sequence), -1);
	if (increment != 0)
		stmt->options = lappend(stmt->options, option("increment", increment));
	if (first != NULL)
		stmt->options = lappend(stmt->options, option("restart", *first));
	(void) AlterSequence(make_parsestate(NULL), stmt);
	CommandCounterIncrement();
}

/*
 * Restart one; returns the value that it gives next.
 */
static int64
restart(Oid sequence, int64 at_least, bool wraps)
{
	SequenceMove move = {0};
	int64		first = at_least;

	lock_sequence(sequence, &move);
	if (!(wraps && move.cycle) && !sequence_next(&move, at_least, &first))
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("sequence \"%s\" has no value left beyond " INT64_FORMAT,
						get_rel_name(sequence), at_least)));
	AS_OWNER(relation_owner(sequence), alter_sequence(sequence, 0, &first));
	return first;
}

/*
 * The values of an array; their number.  Error: one of them is NULL.
 */
int
sequence_array_values(ArrayType *array, Oid type, Datum **values)
{
	int			n;
	int16		typlen;
	bool		typbyval;
	char		typalign;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("array must not contain nulls")));
	deconstruct_array(array, type, typlen, typbyval, typalign, values, NULL,
					  &n);
	return n;
}

/*
 * bluegreen.restart_sequences(sequences oid[], at_least bigint[],
 * wraps boolean[], lock_timeout integer) returns bigint[]: restart each sequence
 * at the first of its own values that is not before at_least and was not handed
 * out, or exactly there if it wraps around; returns these values.  Holds the
 * sequences until the end of the transaction.  Waits for each for at most
 * lock_timeout ms.  Errors: no UPDATE privilege; nothing left; 55P03.
 */
Datum
bluegreen_restart_sequences(PG_FUNCTION_ARGS)
{
	Datum	   *sequences;
	Datum	   *values;
	Datum	   *wraps;
	int			n = sequence_array_values(PG_GETARG_ARRAYTYPE_P(0), OIDOID, &sequences);
	int			guc_level = NewGUCNestLevel();

	if (sequence_array_values(PG_GETARG_ARRAYTYPE_P(1), INT8OID, &values) != n ||
		sequence_array_values(PG_GETARG_ARRAYTYPE_P(2), BOOLOID, &wraps) != n)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("arrays must have the same length")));
	(void) set_config_option("lock_timeout",
							 psprintf("%d", PG_GETARG_INT32(3)), PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	for (int i = 0; i < n; i++)
		values[i] = Int64GetDatum(restart(DatumGetObjectId(sequences[i]),
										  DatumGetInt64(values[i]),
										  DatumGetBool(wraps[i])));
	AtEOXact_GUC(false, guc_level);
	PG_RETURN_ARRAYTYPE_P(construct_array(values, n, INT8OID, sizeof(int64),
										  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* ---- while both sides take writes ---- */

/* Further, in the sequence's direction. */
static int64
further(int64 increment, int64 a, int64 b)
{
	return sequence_is_beyond(increment, a, b) ? a : b;
}

/*
 * Keep what a sequence is before it leaves numbers out.
 */
static void
keep_sequence(int32 deployment, Oid sequence, const SequenceMove *move)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(sequence));
	catalog_arg_int4(&args, deployment);
	catalog_arg(&args, INT8OID, Int64GetDatum(move->increment));
	catalog_arg(&args, INT8OID, Int64GetDatum(move->last));
	catalog_run("INSERT INTO bluegreen.sequence_window (sequence, deployment, "
				"increment, last_value) VALUES ($1, $2, $3, $4) "
				"ON CONFLICT DO NOTHING", &args, SPI_OK_INSERT);
	catalog_end(&access);
}

/*
 * From now on a sequence gives first, or what is further, in steps of increment.
 * Returns what it gives next; never what it has given.  Needs UPDATE on it; waits
 * for transactions that use it.  Errors: there is no such number.
 */
int64
sequence_interleave(int32 deployment, Oid sequence, int64 increment,
					int64 first)
{
	SequenceMove move = {0};
	int64		at_least;

	lock_sequence(sequence, &move);
	keep_sequence(deployment, sequence, &move);
	at_least = further(increment, first,
					   sequence_unused(move.increment, move.last, move.called));
	move.increment = increment;
	move.last = first;
	move.called = false;
	if (!sequence_next(&move, at_least, &first))
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("sequence \"%s\" has no value left beyond " INT64_FORMAT,
						get_rel_name(sequence), at_least)));
	AS_OWNER(relation_owner(sequence),
			 alter_sequence(sequence, increment, &first));
	return first;
}

/* A row of bluegreen.sequence_window, and from where on the sequence goes. */
typedef struct KeptSequence
{
	Oid			sequence;
	int64		increment;
	int64		last;
	bool		has_extreme;
	int64		extreme;		/* in columns that it feeds */
} KeptSequence;

/*
 * What was kept; with look also the furthest value in the columns, where an
 * index gives it at once.
 */
static KeptSequence *
load_kept(int32 deployment, bool look, int *n)
{
	static const char sql[] =
		"SELECT w.sequence, w.increment, w.last_value, CASE WHEN $2 THEN ("
		" SELECT CASE WHEN w.increment < 0 THEN min(v) ELSE max(v) END"
		" FROM (SELECT d.refobjid, d.refobjsubid FROM pg_depend d"
		"   WHERE d.classid = 'pg_class'::regclass AND d.objid = w.sequence"
		"   AND d.deptype IN ('a', 'i')"
		"   AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0"
		"  UNION SELECT f.adrelid, f.adnum FROM pg_depend d"
		"   JOIN pg_attrdef f ON f.oid = d.objid"
		"   WHERE d.classid = 'pg_attrdef'::regclass"
		"   AND d.refclassid = 'pg_class'::regclass"
		"   AND d.refobjid = w.sequence) u (relid, attnum)"
		" JOIN pg_class t ON t.oid = u.relid AND t.relkind IN ('r', 'p')"
		" JOIN pg_attribute a ON a.attrelid = u.relid AND a.attnum = u.attnum"
		"  AND a.atttypid IN (20, 21, 23, 1700)"
		" CROSS JOIN LATERAL bluegreen.column_extreme(u.relid, a.attname,"
		"  w.increment < 0) v"
		" WHERE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = u.relid"
		"  AND i.indkey[0] = u.attnum AND i.indisvalid AND i.indpred IS NULL"
		" )) END"
		" FROM bluegreen.sequence_window w JOIN pg_class s ON s.oid = w.sequence"
		"  AND s.relkind = 'S' WHERE w.deployment = $1 ORDER BY 1";
	CatalogAccess access;
	CatalogArgs args = {0};
	KeptSequence *kept;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment);
	catalog_arg(&args, BOOLOID, BoolGetDatum(look));
	*n = (int) catalog_run(sql, &args, SPI_OK_SELECT);
	kept = MemoryContextAllocZero(access.context,
								  sizeof(KeptSequence) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		kept[i].sequence = DatumGetObjectId(catalog_value(i, 1, NULL));
		kept[i].increment = DatumGetInt64(catalog_value(i, 2, NULL));
		kept[i].last = DatumGetInt64(catalog_value(i, 3, NULL));
		kept[i].extreme = DatumGetInt64(catalog_value(i, 4, &isnull));
		kept[i].has_extreme = !isnull;
	}
	catalog_end(&access);
	return kept;
}

/*
 * Give one its own increment back.  It goes on with a number of its own, as
 * before, that it has not given, from at_least on.  One that has none left gives
 * none.
 */
static void
restore_sequence(const KeptSequence *kept, const int64 *at_least)
{
	SequenceMove move = {0};
	int64		least;
	int64		first;
	bool		found;

	lock_sequence(kept->sequence, &move);
	least = sequence_unused(move.increment, move.last, move.called);
	if (at_least != NULL)
		least = further(kept->increment, *at_least, least);
	if (kept->has_extreme)
		least = further(kept->increment,
						sequence_unused(kept->increment, kept->extreme, true),
						least);
	move.increment = kept->increment;
	move.last = kept->last;
	move.called = false;
	found = sequence_next(&move, least, &first);
	AS_OWNER(relation_owner(kept->sequence),
			 alter_sequence(kept->sequence, kept->increment,
							found ? &first : NULL));
}

/*
 * Give a deployment's sequences of this side their own increments back, some of
 * them from at_least on; look: beyond what is in their columns.  Waits for
 * transactions that use them.  Returns how many.  With the rights of a
 * superuser: whoever made them leave numbers out had the right to.
 */
int
sequences_restore(int32 deployment, int n, const Oid *sequences,
				  const int64 *at_least, bool look)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	int			nkept;
	KeptSequence *kept;

	catalog_begin(&access);
	kept = load_kept(deployment, look, &nkept);
	for (int i = 0; i < nkept; i++)
	{
		const int64 *least = NULL;

		for (int j = 0; j < n; j++)
		{
			if (sequences[j] == kept[i].sequence)
				least = &at_least[j];
		}
		restore_sequence(&kept[i], least);
	}
	catalog_arg_int4(&args, deployment);
	catalog_run("DELETE FROM bluegreen.sequence_window WHERE deployment = $1",
				&args, SPI_OK_DELETE);
	catalog_end(&access);
	return nkept;
}

/*
 * bluegreen.restore_all_sequences(deployment integer) returns integer: for who
 * ends a deployment, whose window may have been ended by force.  Errors: not its
 * owner; no such deployment.
 */
Datum
bluegreen_restore_all_sequences(PG_FUNCTION_ARGS)
{
	Deployment *deployment = deployment_load(PG_GETARG_INT32(0));

	require_writable("bluegreen.restore_all_sequences");
	if (deployment == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("deployment %d does not exist", PG_GETARG_INT32(0))));
	deployment_check_owner(deployment);
	PG_RETURN_INT32(sequences_restore(deployment->id, 0, NULL, NULL, true));
}
