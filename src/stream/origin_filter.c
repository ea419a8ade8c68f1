/*-------------------------------------------------------------------------
 *
 * origin_filter.c
 *		What a stream leaves out: changes that came from where it goes.
 *
 * The stream of the opposite direction applies its changes here under a
 * replication origin of its own, and so do its copy workers.  WAL records and
 * commits name the origin by its number.  Changes of any other origin go on, or
 * a chain of deployments (A to B to C) would lose rows.
 *
 * Decoding asks outside of any transaction, where no catalog can be read: the
 * numbers are looked up before it begins.  They stay the same as long as this
 * stream has a slot: all of these origins are made before the slot or, those of
 * a stream that joins later, in the transaction that makes this worker's
 * successor begin; and they are dropped only after the slot, or after this
 * stream was stopped.  Before opposite_lsn one of the numbers may have been that
 * of another origin, which is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/shared.h"
#include "replication/origin.h"
#include "stream/decode.h"

static List *
add_origin(List *origins, char *name)
{
	RepOriginId id = replorigin_by_name(name, true);

	return id == InvalidRepOriginId ? origins : lappend_int(origins, id);
}

/*
 * The numbers of the origins of the deployment's opposite stream.  Needs a
 * transaction.
 */
List *
origin_filter_load(const Deployment *deployment)
{
	List	   *origins = NIL;

	if (deployment->opposite == NULL)
		return NIL;
	origins = add_origin(origins, deployment->opposite);
	for (int i = 1; i <= BG_MAX_COPY_WORKERS; i++)
		origins = add_origin(origins,
							 psprintf("%s_c%d", deployment->opposite, i));
	return origins;
}

/*
 * filter_by_origin callback: is the record at hand, which has this origin, left
 * out?
 */
bool
origin_filter(LogicalDecodingContext *ctx, RepOriginId origin)
{
	DecodeState *state = ctx->output_plugin_private;

	return origin != InvalidRepOriginId && state != NULL &&
		ctx->reader->ReadRecPtr >= state->left_out_from &&
		list_member_int(state->left_out, origin);
}
