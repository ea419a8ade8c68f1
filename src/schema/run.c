/*-------------------------------------------------------------------------
 *
 * run.c
 *		Statements of steps, and whose rights they are run with.
 *
 * They are the change's owner's.  But what runs code of a table's owner (checks
 * that are validated, queries of the table) is run as him, in a
 * security-restricted operation: he may have made it since, for a superuser to
 * run it.  And triggers of ours are made by the extension.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "schema/guard.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/varlena.h"

/*
 * Run a statement.
 */
void
run_statement(const char *sql)
{
	int			rc;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	rc = SPI_execute(sql, false, 0);
	if (rc < 0)
		elog(ERROR, "unexpected result of \"%s\": %s", sql,
			 SPI_result_code_string(rc));
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	CommandCounterIncrement();
}

/*
 * Run an ALTER TABLE that runs code of the table's owner, such as checks: as
 * whoever owns the table that has the name now.
 */
void
run_as_table_owner(const char *sql)
{
	RawStmt    *raw = linitial_node(RawStmt,
									raw_parser(sql, RAW_PARSE_DEFAULT));
	AlterTableStmt *stmt = castNode(AlterTableStmt, raw->stmt);
	Oid			relid = RangeVarGetRelid(stmt->relation, AccessShareLock, false);
	Oid			owner = relation_owner(relid);
	RunAs		saved;

	if (owner == GetUserId())
	{
		run_statement(sql);
		return;
	}
	run_restricted(owner, pstrdup(namespace_search_path), &saved);
	run_statement(sql);
	run_as_restore(&saved);
}

/*
 * A query that finds what must not be, each as a text.
 */
void
run_check(const Change *change, const Step *step, const char *sql)
{
	RunAs		saved;
	StringInfoData found;

	/* the old version was not retired yet */
	if (get_attnum(find_relation(step->relation), step->object) ==
		InvalidAttrNumber)
		return;
	/* it may be something else that has the name by now */
	run_restricted(relation_owner(step->relid), change->path, &saved);
	SPI_connect();
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "unexpected result of \"%s\"", sql);
	initStringInfo(&found);
	for (uint64 i = 0; i < SPI_processed; i++)
		appendStringInfo(&found, "%s%s", i > 0 ? "\n" : "",
						 SPI_getvalue(SPI_tuptable->vals[i],
									  SPI_tuptable->tupdesc, 1));
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("rows of table %s have no value for the old version",
						step->relation),
				 errdetail_internal("%s", found.data),
				 errhint("Write values to them that \"down\" can convert and call again, or use CALL bluegreen.contract(%s) to keep the new version.",
						 quote_literal_cstr(change->name))));
	SPI_finish();
	run_as_restore(&saved);
}

/*
 * Create a trigger of ours, whose function is granted to nobody.  It is on the
 * table that has the name now: not on one that is no business of the change's
 * owner, whom its schema may have been renamed for.  (It was made by this
 * transaction or a subtransaction; who makes one of that name since is an error.)
 */
void
run_as_extension(const char *sql)
{
	RawStmt    *raw = linitial_node(RawStmt,
									raw_parser(sql, RAW_PARSE_DEFAULT));
	CreateTrigStmt *stmt = castNode(CreateTrigStmt, raw->stmt);
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	(void) catalog_run(sql, NULL, SPI_OK_UTILITY);
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(access.userid));
	catalog_arg_text(&args, stmt->trigname);
	if (catalog_run("SELECT t.tgrelid::regclass::text FROM pg_trigger t "
					"JOIN pg_class c ON c.oid = t.tgrelid "
					"WHERE t.tgname = $2::name AND "
					"age(t.xmin) <= age(pg_current_xact_id()::xid) "
					"AND NOT t.tgisinternal AND t.tgparentid = 0 "
					"AND NOT pg_has_role($1, c.relowner, 'USAGE')", &args,
					SPI_OK_SELECT) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of table %s",
						catalog_text(&access, 0, 1))));
	catalog_end(&access);
	CommandCounterIncrement();
	guard_trigger_columns(sql);
}
