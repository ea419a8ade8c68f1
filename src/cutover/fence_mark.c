/*-------------------------------------------------------------------------
 *
 * fence_mark.c
 *		A sign for clients on the side that is closed.
 *
 * libpq's target_session_attrs=read-write, and its like in other drivers,
 * leave out a server whose sessions begin with default_transaction_read_only
 * = on.  So a side that is closed sets that for its database, in the
 * transaction that closes it, and a side that is activated takes it back in
 * the transaction of the decision: the sign and the fence never disagree.  It
 * is only a sign; what stops writes is the fence.  What an administrator has
 * set himself is left alone.
 *
 * Who comes to a side that is closed, to roll back or to open it again, has a
 * session with that sign, too; require_writable() overlooks it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "core/definition.h"
#include "cutover/fence.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#define SIGN "default_transaction_read_only"

/* Does any of this database's fences have the sign? */
static bool
is_marked(void)
{
	CatalogAccess access;
	bool		result;

	catalog_begin(&access);
	result = catalog_run("SELECT FROM bluegreen.fence WHERE marked", NULL,
						 SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

static void
note_mark(int32 fence, bool marked)
{
	CatalogAccess access;
	CatalogArgs args = {0};

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	catalog_arg(&args, BOOLOID, BoolGetDatum(marked));
	catalog_run("UPDATE bluegreen.fence SET marked = $2 WHERE id = $1",
				&args, SPI_OK_UPDATE);
	catalog_end(&access);
}

/* Has somebody said for this database what new sessions begin with? */
static bool
is_set(void)
{
	CatalogAccess access;
	bool		result;

	catalog_begin(&access);
	result = catalog_run("SELECT FROM pg_db_role_setting s "
						 "JOIN pg_database d ON d.oid = s.setdatabase "
						 "WHERE d.datname = current_database() "
						 "AND s.setrole = 0 AND EXISTS (SELECT "
						 "FROM unnest(s.setconfig) u (setting) "
						 "WHERE starts_with(setting, '" SIGN "='))",
						 NULL, SPI_OK_SELECT) > 0;
	catalog_end(&access);
	return result;
}

static void
alter_database(const char *what)
{
	char	   *database = get_database_name(MyDatabaseId);
	CatalogAccess access;

	catalog_begin(&access);
	catalog_run(psprintf("ALTER DATABASE %s %s", quote_identifier(database),
						 what), NULL, SPI_OK_UTILITY);
	catalog_end(&access);
}

/*
 * Set the sign for a side that is closed.  Does not commit.
 */
void
fence_mark(int32 fence)
{
	bool		marked = is_marked();

	if (!marked && is_set())
		return;
	note_mark(fence, true);
	if (!marked)
		alter_database("SET " SIGN " = on");
}

/*
 * Take it back, unless another deployment needs it.  fence 0: all of them.
 * Does not commit.
 */
void
fence_unmark(int32 fence)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		was_marked;

	catalog_begin(&access);
	catalog_arg_int4(&args, fence);
	was_marked = catalog_run("UPDATE bluegreen.fence SET marked = false "
							 "WHERE marked AND ($1 = 0 OR id = $1)",
							 &args, SPI_OK_UPDATE) > 0;
	catalog_end(&access);
	if (was_marked && !is_marked())
		alter_database("RESET " SIGN);
}
