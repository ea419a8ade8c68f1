/*-------------------------------------------------------------------------
 *
 * router_side.c
 *		Which side is this, and which one is active: what the fence says, for
 *		routers and for those who ask from outside.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "core/definition.h"
#include "cutover/fence.h"
#include "cutover/router.h"
#include "executor/spi.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(bluegreen_is_active);

/*
 * Each side has a row of its own.
 */
RouterSide
router_own_side(const Deployment *deployment)
{
	return deployment->direction == 'f' ? SIDE_BLUE : SIDE_GREEN;
}

/* The state of a deployment's fence here; false if it has none. */
static bool
own_fence(const Deployment *deployment, FenceState *state, int64 *epoch)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		found;

	catalog_begin(&access);
	catalog_arg_int4(&args, deployment->id);
	found = catalog_run("SELECT state, epoch FROM bluegreen.fence "
						"WHERE deployment = $1", &args, SPI_OK_SELECT) > 0;
	if (found)
	{
		*state = enum_lookup(fence_state_names, FENCE_GUARDED + 1,
							 catalog_text(&access, 0, 1));
		*epoch = DatumGetInt64(catalog_value(0, 2, NULL));
	}
	catalog_end(&access);
	return found;
}

/*
 * The side that takes writes, or false if that is in doubt.  A fence that is
 * raised counts as open: who could close it is at work, or is gone.
 */
bool
router_active_side(const Deployment *deployment, RouterSide *side)
{
	RouterSide	own = router_own_side(deployment);
	RouterSide	other = own == SIDE_BLUE ? SIDE_GREEN : SIDE_BLUE;
	FenceState	state = FENCE_OPEN;
	int64		epoch;

	(void) own_fence(deployment, &state, &epoch);
	*side = state == FENCE_OPEN || state == FENCE_RAISED ? own : other;
	return state != FENCE_IN_DOUBT;
}

int64
router_epoch(const Deployment *deployment)
{
	FenceState	state;
	int64		epoch;

	return own_fence(deployment, &state, &epoch) ? epoch : 0;
}

/*
 * bluegreen.is_active(deployment name DEFAULT NULL) returns boolean: does this
 * database take the application's writes, in this deployment or as far as any
 * deployment has a say?  False on a standby.  Reads one small table.  Errors:
 * no such deployment here.
 */
Datum
bluegreen_is_active(PG_FUNCTION_ARGS)
{
	CatalogAccess access;
	CatalogArgs args = {0};
	bool		active;
	bool		isnull;

	if (RecoveryInProgress())
		PG_RETURN_BOOL(false);
	catalog_begin(&access);
	catalog_arg(&args, NAMEOID, PG_ARGISNULL(0) ? (Datum) 0 :
				PG_GETARG_DATUM(0));
	if (PG_ARGISNULL(0))
		args.nulls[0] = 'n';
	catalog_run("SELECT bool_and(state IN ('open', 'raised')) "
				"FROM bluegreen.fence WHERE $1 IS NULL OR name = $1",
				&args, SPI_OK_SELECT);
	active = DatumGetBool(catalog_value(0, 1, &isnull));
	catalog_end(&access);
	if (isnull && !PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("deployment \"%s\" does not exist",
						NameStr(*PG_GETARG_NAME(0)))));
	PG_RETURN_BOOL(active || isnull);
}
