/*-------------------------------------------------------------------------
 *
 * rehearse.c
 *		Constraints, indexes and defaults are tried before rows are filled.
 *
 * An operator class that the new type has not, a check that cannot be cast, a
 * foreign key between types that do not compare: all that would be found out
 * after the backfill, hours later.  So when the new columns exist, an empty
 * table like the real one is made, in a schema of its own, and gets what the
 * real one will get; then it is rolled back.  It belongs to the table's owner,
 * as whom the server runs what an index calls.
 *
 * Event triggers do not notice: the statements are parts of one that is not
 * there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "schema/shape.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/* What is tried, for who is told. */
typedef struct Rehearsal
{
	const Shape *shape;
	const ShapeTable *table;
	char	   *schema;
	char	   *copy;			/* the table without rows, SQL */
} Rehearsal;

static void
run_part(const char *sql)
{
	RawStmt    *raw = linitial_node(RawStmt,
									raw_parser(sql, RAW_PARSE_DEFAULT));
	PlannedStmt *statement = makeNode(PlannedStmt);

	statement->commandType = CMD_UTILITY;
	statement->canSetTag = true;
	statement->utilityStmt = raw->stmt;
	statement->stmt_location = raw->stmt_location;
	statement->stmt_len = raw->stmt_len;
	PushActiveSnapshot(GetTransactionSnapshot());
	ProcessUtility(statement, sql, false, PROCESS_UTILITY_SUBCOMMAND, NULL,
				   NULL, None_Receiver, NULL);
	PopActiveSnapshot();
	CommandCounterIncrement();
}

/* Locks, cancels, no memory: errors that say nothing about the statement. */
static bool
says_nothing(const ErrorData *error)
{
	static const int classes[] = {
		ERRCODE_T_R_SERIALIZATION_FAILURE, ERRCODE_INSUFFICIENT_RESOURCES,
		ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
		ERRCODE_OPERATOR_INTERVENTION, ERRCODE_IO_ERROR,
		ERRCODE_INTERNAL_ERROR
	};

	for (int i = 0; i < lengthof(classes); i++)
	{
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
			ERRCODE_TO_CATEGORY(classes[i]))
			return true;
	}
	return false;
}

/* Try a statement about a thing of this kind and name.  Error if it fails. */
static void
try_part(const Rehearsal *rehearsal, const char *kind, const char *name,
		 const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *error;

	PG_TRY();
	{
		run_part(sql);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (says_nothing(error))
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 errmsg("%s \"%s\" of table \"%s\" cannot be made for the new version: %s",
						kind, name, rehearsal->table->old_name,
						error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 errhint("No row was filled yet. Use CALL bluegreen.undo(%s), and put that right before.",
						 quote_literal_cstr(rehearsal->shape->change->name))));
	}
	PG_END_TRY();
}

/* ---- the table ---- */

/* " PARTITION BY ..." as the table has it */
static char *
partitioning(const ShapeTable *table)
{
	CatalogArgs args = {0};

	if (!table->partitioned)
		return "";
	catalog_arg(&args, OIDOID, ObjectIdGetDatum(table->relid));
	return linitial(query_texts("SELECT ' PARTITION BY ' "
								"|| pg_get_partkeydef($1)", &args));
}

/*
 * A table of the same columns, which belongs to the same owner.
 */
static void
make_copy(const Rehearsal *rehearsal)
{
	const ShapeTable *table = rehearsal->table;
	char	   *owner = GetUserNameFromId(table->owner, false);
	char	   *sql = psprintf("CREATE TABLE %s (LIKE %s INCLUDING GENERATED)%s",
							   rehearsal->copy, table->qualified,
							   partitioning(table));
	RunAs		saved;

	run_part(psprintf("CREATE SCHEMA %s", quote_identifier(rehearsal->schema)));
	if (table->owner == GetUserId())
	{
		run_part(sql);
		return;
	}
	run_part(psprintf("GRANT USAGE, CREATE ON SCHEMA %s TO %s",
					  quote_identifier(rehearsal->schema),
					  quote_identifier(owner)));
	run_restricted(table->owner, rehearsal->shape->change->path, &saved);
	run_part(sql);
	run_as_restore(&saved);
}

/* ---- what it gets ---- */

/*
 * Does a foreign key refer to a table that gets a unique index by this change?
 * Then it cannot be tried.
 */
static bool
refers_to_new_key(const Shape *shape, const NewConstraint *constraint)
{
	ListCell   *lc;
	ListCell   *other;

	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (strcmp(table->qualified, constraint->locks) != 0)
			continue;
		foreach(other, table->indexes)
		{
			if (((NewIndex *) lfirst(other))->unique)
				return true;
		}
	}
	return false;
}

/*
 * Run a function in a subtransaction that is rolled back, and with it the locks
 * that it has taken.
 */
static void
roll_back(void (*run) (const Rehearsal *, const void *),
		  const Rehearsal *rehearsal, const void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	run(rehearsal, arg);
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

static void
try_constraint(const Rehearsal *rehearsal, const void *arg)
{
	const NewConstraint *constraint = arg;

	try_part(rehearsal, "constraint", constraint->final_name ?
			 constraint->final_name : constraint->name,
			 psprintf("ALTER TABLE %s ADD CONSTRAINT %s %s NOT VALID",
					  rehearsal->copy, quote_identifier(constraint->name),
					  constraint->definition));
}

static void
try_index(const Rehearsal *rehearsal, const NewIndex *index)
{
	const char *name = index->final_name ? index->final_name : index->name;

	try_part(rehearsal, "index", name,
			 psprintf("CREATE %sINDEX %s ON %s %s",
					  index->unique ? "UNIQUE " : "",
					  quote_identifier(index->name), rehearsal->copy,
					  index->definition));
	if (index->constraint != NULL)
		try_part(rehearsal, "constraint", name,
				 psprintf("ALTER TABLE %s ADD CONSTRAINT %s %s USING INDEX %s%s",
						  rehearsal->copy, quote_identifier(name),
						  index->constraint, quote_identifier(index->name),
						  index->deferrable ? index->deferrable : ""));
}

static void
try_default(const Rehearsal *rehearsal, const ShapeColumn *column)
{
	if (column->name != NULL && column->default_differs &&
		column->default_sql != NULL)
		try_part(rehearsal, "default of column", column->name,
				 psprintf("ALTER TABLE %s ALTER COLUMN %s SET DEFAULT %s",
						  rehearsal->copy, quote_identifier(column->column),
						  column->default_sql));
}

static void
try_table(const Rehearsal *rehearsal, const void *arg)
{
	const ShapeTable *table = rehearsal->table;
	ListCell   *lc;

	make_copy(rehearsal);
	foreach(lc, table->columns)
	{
		try_default(rehearsal, lfirst(lc));
	}
	foreach(lc, table->indexes)
	{
		try_index(rehearsal, lfirst(lc));
	}
	foreach(lc, table->constraints)
	{
		NewConstraint *constraint = lfirst(lc);

		/* the lock of one other table is given back before the next */
		if (constraint->locks == NULL ||
			!refers_to_new_key(rehearsal->shape, constraint))
			roll_back(try_constraint, rehearsal, constraint);
	}
}

/*
 * Try what the phase after the backfill will make, with the tables as they are
 * now, where the new columns are.  Errors: it cannot be made.
 */
void
rehearse(const Change *change)
{
	Shape	   *shape = shape_build(change, CHANGE_VALIDATING);
	Rehearsal	rehearsal = {shape};
	int			guc_level = NewGUCNestLevel();
	ListCell   *lc;

	foreach(lc, shape->tables)
	{
		if (table_has_pairs(lfirst(lc)))
			dependents_copy(shape, lfirst(lc));
	}
	(void) set_config_option("search_path", change->path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	rehearsal.schema = psprintf("bluegreen_%d_rehearsal", change->id);
	foreach(lc, shape->tables)
	{
		ShapeTable *table = lfirst(lc);

		if (table->name == NULL)
			continue;
		rehearsal.table = table;
		rehearsal.copy = quote_qualified_identifier(rehearsal.schema,
													table->old_name);
		roll_back(try_table, &rehearsal, NULL);
	}
	AtEOXact_GUC(false, guc_level);
}
