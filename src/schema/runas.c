/*-------------------------------------------------------------------------
 *
 * runas.c
 *		Run the code of a table's owner as him.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "schema/change.h"
#include "utils/guc.h"

/*
 * Become the owner, under a search_path, until run_as_restore() or the abort
 * of the (sub)transaction.  Who is somebody else is kept from what would
 * outlast that, as core does where it runs the code of an owner.
 */
void
run_as_owner(Oid owner, const char *path, RunAs *saved)
{
	GetUserIdAndSecContext(&saved->userid, &saved->sec_context);
	saved->guc_level = NewGUCNestLevel();
	if (saved->userid != owner)
		SetUserIdAndSecContext(owner, saved->sec_context |
							   SECURITY_RESTRICTED_OPERATION);
	(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * The same, and in a security-restricted operation whoever it was before, so
 * that the code does the same for everybody.
 */
void
run_restricted(Oid owner, const char *path, RunAs *saved)
{
	run_as_owner(owner, path, saved);
	SetUserIdAndSecContext(owner, saved->sec_context |
						   SECURITY_RESTRICTED_OPERATION);
}

/*
 * Be who it was before run_as_owner() or run_restricted().
 */
void
run_as_restore(const RunAs *saved)
{
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->userid, saved->sec_context);
}

/*
 * SPI_prepare() of what somebody has written at another time: to the parser it
 * is what it was then, however this session reads strings.
 */
SPIPlanPtr
prepare_as_written(const char *sql, int nargs, Oid *types)
{
	int			guc_level = NewGUCNestLevel();
	SPIPlanPtr	plan;

	(void) set_config_option("standard_conforming_strings", "on", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("transform_null_equals", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	plan = SPI_prepare(sql, nargs, types);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql,
			 SPI_result_code_string(SPI_result));
	AtEOXact_GUC(false, guc_level);
	return plan;
}
