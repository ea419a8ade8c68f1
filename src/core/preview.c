/*-------------------------------------------------------------------------
 *
 * preview.c
 *		Show what rows of a source become, with nothing written.
 *
 * The rows go through the same evaluator as decoded changes do, so what is
 * shown is what would be sent.  Everything after the checks of the caller's
 * rights runs as the deployment's owner in a security-restricted operation:
 * a transform may call the owner's functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "stream/transform.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bluegreen_preview);

#define PREVIEW_COLUMNS 4

/* One run of preview(). */
typedef struct Preview
{
	ReturnSetInfo *rsinfo;
	MappingRow *mapping;
	Transform  *transform;
	TupleDesc	target_desc;	/* blessed: names of the target, types of the
								 * transform's values */
	Datum	   *values;
	bool	   *isnull;
	bool	   *missing;
} Preview;

static void
check_caller(Oid source)
{
	if (pg_class_aclcheck(source, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table \"%s\"",
						get_rel_name(source))));
}

/*
 * A row type that has the target's column names.
 */
static TupleDesc
describe_target(Transform *transform)
{
	TupleDesc	desc = CreateTemplateTupleDesc(transform->ncolumns);

	for (int i = 0; i < transform->ncolumns; i++)
	{
		TransformColumn *column = &transform->columns[i];

		TupleDescInitEntry(desc, i + 1, column->def->name, column->type,
						   column->typmod, 0);
	}
	return BlessTupleDesc(desc);
}

/*
 * The transformed row as jsonb.
 */
static Datum
target_row(Preview *preview)
{
	HeapTuple	tuple;
	Datum		json;

	transform_row(preview->transform, NULL, preview->values, preview->isnull,
				  preview->missing);
	tuple = heap_form_tuple(preview->target_desc, preview->values,
							preview->isnull);
	json = DirectFunctionCall1(row_to_json,
							   HeapTupleGetDatum(tuple));
	return DirectFunctionCall1(jsonb_in,
							   CStringGetDatum(TextDatumGetCString(json)));
}

static void
preview_row(Preview *preview, HeapTuple tuple, TupleDesc desc)
{
	Datum		values[PREVIEW_COLUMNS];
	bool		nulls[PREVIEW_COLUMNS] = {false, false, false, false};
	bool		passes;

	transform_fill_slot(preview->transform, tuple, desc, 2);
	passes = transform_filter(preview->transform);
	values[0] = CStringGetTextDatum(mapping_target_name(preview->mapping));
	values[1] = SPI_getbinval(tuple, desc, 1, &nulls[1]);
	values[2] = CStringGetTextDatum(passes ? "write" : "filtered");
	nulls[3] = !passes;
	values[3] = passes ? target_row(preview) : (Datum) 0;
	tuplestore_putvalues(preview->rsinfo->setResult, preview->rsinfo->setDesc,
						 values, nulls);
}

/*
 * Read the rows and show each.  Partitions are rows of their root; children by
 * inheritance are tables of their own.
 */
static void
preview_rows(Preview *preview, int n)
{
	Oid			source = preview->mapping->source;
	char	   *name =
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
								   get_rel_name(source));
	bool		root = get_rel_relkind(source) == RELKIND_PARTITIONED_TABLE;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "preview row",
												  ALLOCSET_DEFAULT_SIZES);

	if (SPI_execute(psprintf("SELECT pg_catalog.to_jsonb(s), s.* FROM %s%s s "
							 "LIMIT %d", root ? "" : "ONLY ", name, n),
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read table %s", name);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		preview_row(preview, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		MemoryContextSwitchTo(oldcontext);
		MemoryContextReset(context);
		ResetExprContext(preview->transform->econtext);
	}
	MemoryContextDelete(context);
}

static void
preview_mapping(ReturnSetInfo *rsinfo, MappingRow *mapping, int n)
{
	Preview		preview = {.rsinfo = rsinfo, .mapping = mapping};
	Transform  *transform = transform_compile(mapping);

	preview.transform = transform;
	preview.target_desc = describe_target(transform);
	preview.values = palloc0(sizeof(Datum) * transform->ncolumns);
	preview.isnull = palloc0(sizeof(bool) * transform->ncolumns);
	preview.missing = palloc0(sizeof(bool) * transform->ncolumns);
	preview_rows(&preview, n);
	ExecDropSingleTupleTableSlot(transform->slot);
	FreeExprContext(transform->econtext, true);
}

/*
 * Preview the mappings of one source as their owner.
 */
static int
preview_source(ReturnSetInfo *rsinfo, List *mappings, Oid source, int n)
{
	ListCell   *lc;
	int			found = 0;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	foreach(lc, mappings)
	{
		MappingRow *mapping = lfirst(lc);

		if (mapping->source != source)
			continue;
		preview_mapping(rsinfo, mapping, n);
		found++;
	}
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	return found;
}

/*
 * bluegreen.preview(deployment name, source regclass, n integer) returns table
 * (target text, source_row jsonb, action text, target_row jsonb): what up to n
 * rows of the source become.  commit_time() and commit_lsn() give the present
 * moment.  Errors: not the deployment's owner, no SELECT on the source, the
 * source is not mapped, and those of the transform itself.
 */
Datum
bluegreen_preview(PG_FUNCTION_ARGS)
{
	Oid			source;
	int			n;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Deployment *deployment;
	List	   *mappings;
	Oid			userid;
	int			sec_context;
	int			guc_level;
	volatile int found = 0;

	require_argument(fcinfo, 0, "deployment");
	require_argument(fcinfo, 1, "source");
	require_argument(fcinfo, 2, "n");
	source = PG_GETARG_OID(1);
	n = PG_GETARG_INT32(2);
	if (n < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"n\" must not be negative")));
	InitMaterializedSRF(fcinfo, 0);
	deployment = deployment_load_by_name(NameStr(*PG_GETARG_NAME(0)), false);
	deployment_check_owner(deployment);
	mappings = mappings_load(deployment->id, deployment->direction);

	GetUserIdAndSecContext(&userid, &sec_context);
	if (get_rel_name(source) != NULL)
		check_caller(source);
	SetUserIdAndSecContext(deployment->owner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);
	guc_level = settings_pin_formatting();
	transform_moment.commit_time = GetCurrentTimestamp();
	transform_moment.commit_lsn = GetXLogInsertRecPtr();
	PG_TRY();
	{
		found = preview_source(rsinfo, mappings, source, n);
	}
	PG_FINALLY();
	{
		memset(&transform_moment, 0, sizeof(transform_moment));
	}
	PG_END_TRY();
	settings_restore(guc_level);
	SetUserIdAndSecContext(userid, sec_context);
	if (found == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not mapped in deployment \"%s\"",
						get_rel_name(source), deployment->name)));
	return (Datum) 0;
}
