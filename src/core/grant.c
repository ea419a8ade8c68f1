/*-------------------------------------------------------------------------
 *
 * grant.c
 *		On a target: what a role needs that applies changes and is no
 *		superuser, granted and taken back.
 *
 * Plain GRANT and REVOKE statements, run with the caller's own rights and
 * returned to him, so that he sees what he has given away.  That the role can
 * do no more with it than a stream does is the work of guard.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "core/definition.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(bluegreen_grant_apply);
PG_FUNCTION_INFO_V1(bluegreen_revoke_apply);

#define TABLE_PRIVILEGES "SELECT, INSERT, UPDATE, DELETE, TRUNCATE"
#define SEQUENCE_PRIVILEGES "SELECT, UPDATE"

/* What every stream needs; the database's name goes where %s is. */
const char *const apply_privileges[] = {
	"CONNECT, TEMPORARY ON DATABASE %s",
	"USAGE ON SCHEMA bluegreen",
	"SELECT, INSERT, UPDATE (timeline, lost, seen, seen_version), DELETE ON bluegreen.applied_stream",
	"SELECT, INSERT, UPDATE, DELETE ON bluegreen.applied_table",
	"SELECT, INSERT, DELETE ON bluegreen.applied_chunk",
	"INSERT, SELECT (at), DELETE ON bluegreen.conflict_log",
	"SELECT, INSERT, DELETE ON bluegreen.window_owed",
	"EXECUTE ON FUNCTION bluegreen.begin_apply(), "
	"bluegreen.check_rows(bigint[]), "
	"bluegreen.commit_position(pg_lsn, timestamptz, pg_lsn, pg_lsn), "
	"bluegreen.note_seen(pg_lsn), bluegreen.write_as_own(), "
	"bluegreen.forget_key(regclass, name[], text[]), "
	"bluegreen.check_change(regclass, name[], pg_lsn, \"any\"), "
	"bluegreen.insert_rows(regclass, name[], bytea, bigint), "
	"bluegreen.takes_rows(regclass, name[]), "
	"bluegreen.update_rows(regclass, name[], name[], bytea, bigint), "
	"bluegreen.delete_rows(regclass, name[], bytea, bigint), "
	"bluegreen.noted_row(), bluegreen.note_reached(pg_lsn), "
	"bluegreen.origin_create(text), "
	"bluegreen.origin_setup(text), bluegreen.origin_progress(), "
	"bluegreen.origin_drop(text), "
	"bluegreen.save_indexes(text, integer, name[], boolean), "
	"bluegreen.restore_indexes(text, integer, boolean), "
	"bluegreen.restore_key(text, integer), bluegreen.wait_for_writers(text), "
	"bluegreen.fence_look(text), bluegreen.fence_decide(text, bigint), "
	"bluegreen.fence_settle(text, bigint), "
	"bluegreen.window_move(text, bigint, text), "
	"bluegreen.window_look(text, pg_lsn), "
	"bluegreen.window_mappings(name), "
	"bluegreen.window_decide(text, bigint), "
	"bluegreen.window_settle(text, bigint)",
	"EXECUTE ON FUNCTION bluegreen.sequence_position(oid), "
	"bluegreen.column_extreme(oid, name, boolean), "
	"bluegreen.restart_sequences(oid[], bigint[], boolean[], integer), "
	"bluegreen.interleave_sequences(text, bigint, oid[], bigint[], bigint[], "
	"integer), "
	"bluegreen.restore_sequences(text, bigint, oid[], bigint[], integer)",
};
const int	apply_privilege_count = lengthof(apply_privileges);

/* Tables of others on which a role has been granted the right to write. */
static const char granted_tables[] =
"SELECT c.oid FROM pg_catalog.pg_class c "
"WHERE c.relkind IN ('r', 'p') AND c.relowner <> $1 "
"AND (c.relnamespace <> 'bluegreen'::pg_catalog.regnamespace "
" OR c.relname = 'session') "
"AND EXISTS (SELECT FROM pg_catalog.aclexplode(c.relacl) a "
" WHERE a.grantee = $1 AND a.privilege_type = 'TRUNCATE') "
"ORDER BY c.oid::pg_catalog.regclass::text";

/* Sequences of the table's owner that a table owns or has in a default. */
static const char used_sequences[] =
"SELECT s.oid FROM pg_catalog.pg_class t JOIN pg_catalog.pg_class s "
"ON s.relkind = 'S' AND s.relowner = t.relowner WHERE t.oid = $1 "
"AND EXISTS (SELECT FROM pg_catalog.pg_depend d "
" LEFT JOIN pg_catalog.pg_attrdef f "
" ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass "
" AND f.oid = d.objid AND f.adrelid = t.oid "
" WHERE d.objid = s.oid AND d.refobjid = t.oid AND d.deptype IN ('a', 'i') "
" AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass "
" AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass "
" OR f.oid IS NOT NULL AND d.refobjid = s.oid "
" AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass) "
"ORDER BY s.oid::pg_catalog.regclass::text";

/* One call. */
typedef struct GrantCall
{
	bool		revoke;
	char	   *role;			/* quoted */
	ReturnSetInfo *rsinfo;
} GrantCall;

/*
 * Grant or revoke, and return the statement.
 */
static void
grant(GrantCall *call, const char *privileges)
{
	char	   *sql = psprintf(call->revoke ? "REVOKE %s FROM %s" :
							   "GRANT %s TO %s", privileges, call->role);
	Datum		values[1];
	bool		nulls[1] = {false};

	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", sql);
	values[0] = CStringGetTextDatum(sql);
	tuplestore_putvalues(call->rsinfo->setResult, call->rsinfo->setDesc,
						 values, nulls);
}

/*
 * The relations that a query finds, given an OID.
 */
static Oid *
query_relations(const char *sql, Oid argument, uint64 *n)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(argument)};
	Oid		   *result;

	if (SPI_execute_with_args(sql, 1, types, values, NULL, true,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not look for relations");
	*n = SPI_processed;
	result = palloc_array(Oid, *n + 1);
	for (uint64 i = 0; i < *n; i++)
	{
		bool		isnull;

		result[i] = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
												   SPI_tuptable->tupdesc, 1,
												   &isnull));
	}
	return result;
}

static char *
relation_name(Oid relation)
{
	char	   *schema = get_namespace_name(get_rel_namespace(relation));

	return quote_qualified_identifier(schema, get_rel_name(relation));
}

static void
grant_table(GrantCall *call, Oid table)
{
	char	   *name = get_rel_name(table);
	char		kind = get_rel_relkind(table);
	char	   *schema;
	Oid		   *sequences;
	uint64		n;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("there is no table with OID %u", table)));
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", name)));
	schema = get_namespace_name(get_rel_namespace(table));
	if (!call->revoke)
		grant(call, psprintf("USAGE ON SCHEMA %s", quote_identifier(schema)));
	grant(call, psprintf(TABLE_PRIVILEGES " ON %s", relation_name(table)));
	sequences = query_relations(used_sequences, table, &n);
	for (uint64 i = 0; i < n; i++)
		grant(call, psprintf(SEQUENCE_PRIVILEGES " ON SEQUENCE %s",
							 relation_name(sequences[i])));
}

static void
grant_base(GrantCall *call)
{
	char	   *database = get_database_name(MyDatabaseId);

	for (int i = 0; i < lengthof(apply_privileges); i++)
		grant(call, strchr(apply_privileges[i], '%') == NULL ?
			  apply_privileges[i] :
			  psprintf("CONNECT, TEMPORARY ON DATABASE %s",
					   quote_identifier(database)));
}

/*
 * Every table on which the role has what grant_apply() grants.
 */
static void
revoke_all_tables(GrantCall *call, Oid role)
{
	uint64		n;
	Oid		   *tables = query_relations(granted_tables, role, &n);

	for (uint64 i = 0; i < n; i++)
		grant_table(call, tables[i]);
}

static void
grant_tables(GrantCall *call, ArrayType *array)
{
	Datum	   *tables;
	bool	   *nulls;
	int			ntables;

	deconstruct_array(array, REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT,
					  &tables, &nulls, &ntables);
	for (int i = 0; i < ntables; i++)
		if (!nulls[i])
			grant_table(call, DatumGetObjectId(tables[i]));
}

/*
 * bluegreen.grant_apply(role regrole, VARIADIC tables regclass[]) returns
 * setof text: grant a role what it needs to apply changes to the tables;
 * without tables, what it needs beside them.  Returns the statements.
 */
Datum
bluegreen_grant_apply(PG_FUNCTION_ARGS)
{
	Oid			role = PG_GETARG_OID(0);
	GrantCall	call = {.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo};

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	call.role = pstrdup(quote_identifier(GetUserNameFromId(role, false)));
	SPI_connect();
	grant_base(&call);
	grant_tables(&call, PG_GETARG_ARRAYTYPE_P(1));
	SPI_finish();
	return (Datum) 0;
}

/*
 * bluegreen.revoke_apply(role regrole, VARIADIC tables regclass[]) returns
 * setof text: take back what was granted on the tables; without tables,
 * everything.  Returns the statements.
 */
Datum
bluegreen_revoke_apply(PG_FUNCTION_ARGS)
{
	Oid			role = PG_GETARG_OID(0);
	ArrayType  *tables = PG_GETARG_ARRAYTYPE_P(1);
	GrantCall	call = {
		.revoke = true,.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo
	};

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	call.role = pstrdup(quote_identifier(GetUserNameFromId(role, false)));
	SPI_connect();
	if (ArrayGetNItems(ARR_NDIM(tables), ARR_DIMS(tables)) == 0)
	{
		revoke_all_tables(&call, role);
		grant_base(&call);
	}
	else
		grant_tables(&call, tables);
	SPI_finish();
	return (Datum) 0;
}
