/*-------------------------------------------------------------------------
 *
 * derive.c
 *		The trigger that keeps a derived table in step.
 *
 * bluegreen.derive_rows() is an AFTER trigger for each row of the source.  Its
 * arguments are the statements that were made of the transform
 * (operation_derive.c): they take the row's columns as parameters and write to
 * the derived table.  They run as the source's owner, in a security-restricted
 * operation, under the change's search_path.
 *
 * Where a table is derived from another one and back, the write that one
 * trigger does is not carried back by the other: a transform need not be exact
 * there and back.  The statement that fires a trigger tells (dualwrite.c
 * remembers it).  Writes of the application's own triggers are statements of
 * their own, and are carried over like any others.
 *
 * Its name sorts before those of foreign keys, which may want the derived row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "compat.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "schema/change.h"
#include "schema/derive.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(bluegreen_derive_rows);

typedef struct Derived
{
	Oid			trigger;		/* hash key */
	bool		valid;
	int			users;			/* calls that use it now */
	Oid			relid;
	char	   *path;
	int			nargs;
	AttrNumber *args;
	SPIPlanPtr	plans[DERIVE_COLUMNS];	/* NULL: nothing is to be done */
} Derived;

static HTAB *cache = NULL;

static void
forget_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Derived    *derived;

	hash_seq_init(&status, cache);
	while ((derived = hash_seq_search(&status)) != NULL)
	{
		if (!OidIsValid(relid) || derived->relid == relid)
			derived->valid = false;
	}
}

static void
create_cache(void)
{
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(Derived),
		.hcxt = TopMemoryContext
	};

	cache = hash_create("pg_bluegreen derived tables", 16, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
}

static void
release_derived(Derived *derived)
{
	for (int i = DERIVE_WRITE; i <= DERIVE_REMOVE; i++)
	{
		if (derived->plans[i] != NULL)
			SPI_freeplan(derived->plans[i]);
		derived->plans[i] = NULL;
	}
	if (derived->args != NULL)
		pfree(derived->args);
	derived->args = NULL;
	if (derived->path != NULL)
		pfree(derived->path);
	derived->path = NULL;
}

/* The source's columns that are the parameters. */
static void
read_columns(Derived *derived, const TriggerData *data)
{
	const Trigger *trigger = data->tg_trigger;

	derived->nargs = trigger->tgnargs - DERIVE_COLUMNS;
	derived->args = MemoryContextAlloc(TopMemoryContext,
									   sizeof(AttrNumber) *
									   Max(derived->nargs, 1));
	for (int i = 0; i < derived->nargs; i++)
	{
		const char *name = trigger->tgargs[DERIVE_COLUMNS + i];

		derived->args[i] = get_attnum(derived->relid, name);
		if (derived->args[i] == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\", from which a table is derived, does not exist",
							name, RelationGetRelationName(data->tg_relation))));
	}
}

/* Prepare the statements; the caller runs as the source's owner. */
static void
prepare_statements(Derived *derived, const TriggerData *data)
{
	TupleDesc	desc = RelationGetDescr(data->tg_relation);
	int			n = derived->nargs;
	Oid		   *types = palloc_array(Oid, 2 * n + 1);

	for (int i = 0; i < 2 * n; i++)
		types[i] = TupleDescAttr(desc, derived->args[i % n] - 1)->atttypid;
	for (int i = DERIVE_WRITE; i <= DERIVE_REMOVE; i++)
	{
		const char *sql = data->tg_trigger->tgargs[i];
		SPIPlanPtr	plan;

		if (*sql == '\0')
			continue;
		plan = SPI_prepare(sql, i == DERIVE_MOVE ? 2 * n : n, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", sql,
				 SPI_result_code_string(SPI_result));
		derived->plans[i] = plan;
	}
}

static Derived *
find_derived(const TriggerData *data)
{
	Oid			trigger = data->tg_trigger->tgoid;
	Derived    *derived;
	RunAs		saved;
	bool		found;

	if (cache == NULL)
		create_cache();
	derived = hash_search(cache, &trigger, HASH_ENTER, &found);
	if (!found)
	{
		memset(derived, 0, sizeof(Derived));
		derived->trigger = trigger;
	}
	if (derived->valid || derived->users > 0)
		return derived;
	release_derived(derived);
	derived->relid = RelationGetRelid(data->tg_relation);
	derived->path = MemoryContextStrdup(TopMemoryContext,
										data->tg_trigger->tgargs[DERIVE_PATH]);
	read_columns(derived, data);
	derived->valid = true;		/* unless something happens meanwhile */
	run_as_owner(data->tg_relation->rd_rel->relowner, derived->path, &saved);
	SPI_connect();
	PG_TRY();
	{
		prepare_statements(derived, data);
	}
	PG_CATCH();
	{
		derived->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	SPI_finish();
	run_as_restore(&saved);
	return derived;
}

/* ---- rows ---- */

static void
read_slot(const Derived *derived, TupleTableSlot *slot, Datum *values,
		  char *nulls)
{
	for (int i = 0; i < derived->nargs; i++)
	{
		bool		isnull;

		values[i] = slot_getattr(slot, derived->args[i], &isnull);
		nulls[i] = isnull ? 'n' : ' ';
	}
}

/* Has an update changed nothing that may be read? */
static bool
is_unchanged(const Derived *derived, TupleDesc desc, const Datum *values,
			 const char *nulls)
{
	int			n = derived->nargs;

	for (int i = 0; i < n; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc,
													derived->args[i] - 1);

		if (nulls[i] != nulls[n + i] ||
			(nulls[i] == ' ' &&
			 !datum_image_eq(values[i], values[n + i], attribute->attbyval,
							 attribute->attlen)))
			return false;
	}
	return true;
}

static void
execute(const Derived *derived, DeriveArgument what, Datum *values,
		char *nulls)
{
	int			rc;

	if (derived->plans[what] == NULL)
		return;
	rc = SPI_execute_plan(derived->plans[what], values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "derived row was not written: %s",
			 SPI_result_code_string(rc));
}

static void
derive_row(const Derived *derived, const TriggerData *data)
{
	int			n = derived->nargs;
	Datum	   *values = palloc_array(Datum, 2 * n + 1);
	char	   *nulls = palloc(2 * n + 1);

	read_slot(derived, data->tg_trigslot, values, nulls);
	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		execute(derived, DERIVE_WRITE, values, nulls);
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		execute(derived, DERIVE_REMOVE, values, nulls);
	else
	{
		read_slot(derived, data->tg_newslot, values + n, nulls + n);
		if (is_unchanged(derived, RelationGetDescr(data->tg_relation), values,
						 nulls))
			return;
		execute(derived, DERIVE_MOVE, values, nulls);
		execute(derived, DERIVE_WRITE, values + n, nulls + n);
	}
}

static void
check_call(FunctionCallInfo fcinfo)
{
	TriggerData *data = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		data->tg_trigger->tgnargs <= DERIVE_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired by a trigger of a change",
						"bluegreen.derive_rows")));
}

/*
 * bluegreen.derive_rows() returns trigger; see the top.
 */
Datum
bluegreen_derive_rows(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	const char *statement = dualwrite_statement();
	Derived    *derived;
	RunAs		saved;

	check_call(fcinfo);
	if (statement != NULL &&
		strncmp(statement, DERIVE_MARK, strlen(DERIVE_MARK)) == 0)
		return PointerGetDatum(NULL);
	derived = find_derived(data);
	run_as_owner(data->tg_relation->rd_rel->relowner, derived->path, &saved);
	derived->users++;
	PG_TRY();
	{
		SPI_connect();
		derive_row(derived, data);
		SPI_finish();
	}
	PG_FINALLY();
	{
		derived->users--;
	}
	PG_END_TRY();
	run_as_restore(&saved);
	return PointerGetDatum(NULL);
}
