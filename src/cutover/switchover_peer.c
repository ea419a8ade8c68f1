/*-------------------------------------------------------------------------
 *
 * switchover_peer.c
 *		The decision of a switchover, which is made on the other side.
 *
 * Everything here is asked in subtransactions: an error must not let go of the
 * fence, whose outcome is not known.  See switchover.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "core/attempt.h"
#include "cutover/switchover.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define RESOLVE_MS		500		/* between tries */
#define SETTLE_LOCK_TIMEOUT	"1000"

/*
 * What the other side says about its fence.  Errors: those of the peer; it does
 * not know the stream.
 */
FenceView
switch_look(Peer *peer, const char *stream)
{
	const char *args[] = {stream};
	PeerResult *result =
		peer_query(peer, "SELECT state, epoch, \"window\" FROM bluegreen.fence_look($1)",
				   1, args);
	FenceView	view;
	int			state = enum_lookup(fence_state_names, FENCE_GUARDED + 1,
									result->values[0][0]);

	if (state < 0)
		elog(ERROR, "unexpected state \"%s\" of the peer's fence",
			 result->values[0][0]);
	view.state = state;
	view.epoch = strtoll(result->values[0][1], NULL, 10);
	view.window = result->values[0][2][0] == 't';
	return view;
}

/*
 * The connection, made when it is needed.
 */
Peer *
switch_peer(SwitchMove *move)
{
	if (move->peer != NULL && peer_is_alive(move->peer))
		return move->peer;
	if (move->peer != NULL)
		peer_close(move->peer);
	move->peer = NULL;
	PushActiveSnapshot(GetTransactionSnapshot());
	move->peer = registry_connect(move->deployment, false);
	PopActiveSnapshot();
	peer_keep(move->peer);
	return move->peer;
}

typedef bool (*Question) (SwitchMove *move);

typedef struct Asked
{
	SwitchMove *move;
	Question	question;
	bool		answer;
} Asked;

static void
put(void *arg)
{
	Asked	   *asked = arg;

	asked->answer = asked->question(asked->move);
}

/*
 * Ask something.  False with *error if it could not be answered.
 */
static bool
ask(SwitchMove *move, Question question, bool *answer, ErrorData **error)
{
	Asked		asked = {.move = move,.question = question};

	MemoryContextSwitchTo(move->context);
	*error = attempt(put, &asked);
	*answer = asked.answer;
	return *error == NULL;
}

/* ---- the questions ---- */

static bool
ask_decide(SwitchMove *move)
{
	const char *args[] = {move->stream,
	psprintf(INT64_FORMAT, move->row.epoch)};
	int64		left;
	Peer	   *peer;

	switch_wait_standbys(move);
	peer = switch_peer(move);
	left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   move->row.deadline);
	peer_command(peer, psprintf("SET lock_timeout = " INT64_FORMAT,
								Max(left, 1)));
	(void) peer_query(peer, move->plan->decide, 2, args);
	return true;
}

static bool
ask_settle(SwitchMove *move)
{
	const char *args[] = {move->stream,
	psprintf(INT64_FORMAT, move->row.epoch)};
	Peer	   *peer = switch_peer(move);
	PeerResult *result;

	peer_command(peer, "SET lock_timeout = " SETTLE_LOCK_TIMEOUT);
	result = peer_query(peer, move->plan->settle, 2, args);
	return strcmp(result->values[0][0], "t") == 0;
}

/*
 * Make the decision.  False, with the reason in move->error, if it is not known
 * to have been made.
 */
bool
switch_decide(SwitchMove *move)
{
	bool		answer;

	move->step_name = "decide";
	switch_stop_at(move, "decide");
	return ask(move, ask_decide, &answer, &move->error);
}

/*
 * What stands in the row while the other side cannot be asked.
 */
static void
show_doubt(SwitchMove *move, const ErrorData *error)
{
	ErrorData	shown = {0};

	shown.sqlerrcode = error->sqlerrcode;
	shown.message = psprintf("%s: %s", psprintf(move->plan->doubt, move->to),
							 error->message);
	shown.hint = psprintf("It is asked again and again. If %s is lost for good, call bluegreen.force_active('%s') here; if it serves clients, call bluegreen.force_active('%s') here.",
						  move->to, move->from, move->to);
	ereport(WARNING,
			(errcode(shown.sqlerrcode),
			 errmsg("%s", shown.message),
			 errhint("%s", shown.hint)));
	switch_row_error(move->row.deployment, SWITCH_RUNNING, &shown);
	switch_commit(move);
}

/*
 * Was it decided?  If it was not it cannot be any more when this returns.
 * Asks until there is an answer.
 */
bool
switch_resolve(SwitchMove *move)
{
	ErrorData  *error;
	char	   *shown = NULL;
	bool		answer;

	move->step_name = "resolve";
	while (!ask(move, ask_settle, &answer, &error))
	{
		if (shown == NULL || strcmp(shown, error->message) != 0)
			show_doubt(move, error);
		shown = error->message;
		switch_rest(move, RESOLVE_MS);
	}
	return answer;
}
