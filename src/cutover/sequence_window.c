/*-------------------------------------------------------------------------
 *
 * sequence_window.c
 *		Sequences of the two sides leave each other's numbers out while both
 *		take writes.
 *
 * Sequences that go together (sequence_query.c), directly or through others,
 * are a group of n.  L is the least common multiple of their increments.  In a
 * window each goes in steps of n * L, and the j-th of them gives what is j * L
 * beyond a multiple of that, plus what its own numbers are beyond multiples of
 * its own increment: so no two give the same, each stays on its own steps, and
 * those whose increment stands for a whole range of numbers do not meet,
 * either.  For a pair that is twice its increment.  All of it is done with
 * numbers that begin at 0 and go up (order()); what goes down is mirrored.
 *
 * This side, which takes writes all the time, first: from its turn on it gives
 * its own numbers only, and what it has given before lies below these.  Then the
 * other side, which takes no writes yet, is put beyond that.  So no margin is
 * needed.  Back again it is when only one side takes writes: that goes on by its
 * own steps beyond all that either has given, and, because nothing stops
 * nextval() on a side that is closed, beyond the margin of a switchover.
 *
 * ALTER SEQUENCE waits for transactions that have used the sequence, and who
 * wants to use it waits for it.  So it waits for short times only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/attempt.h"
#include "core/definition.h"
#include "core/settings.h"
#include "cutover/preflight.h"
#include "cutover/window.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#define LOCK_TIMEOUT_MS	300		/* for one sequence, each time */
#define RETRY_MS		200		/* in which others may go on */
#define FEWEST			65536	/* numbers that a sequence must have left */
#define LARGEST_STEP	((uint64) 1 << 40)

/* ---- numbers ---- */

static uint64
order(int64 increment, int64 value)
{
	return (uint64) (increment < 0 ? ~value : value) ^ ((uint64) 1 << 63);
}

static int64
back(int64 increment, uint64 ordered)
{
	int64		value = (int64) (ordered ^ ((uint64) 1 << 63));

	return increment < 0 ? ~value : value;
}

static uint64
step_of(int64 increment)
{
	return increment < 0 ? 0 - (uint64) increment : (uint64) increment;
}

/* Least common multiple; LARGEST_STEP if it is larger. */
static uint64
common(uint64 a, uint64 b)
{
	uint64		x = a;
	uint64		y = b;

	while (y != 0)
	{
		uint64		rest = x % y;

		x = y;
		y = rest;
	}
	return a / x > LARGEST_STEP / b ? LARGEST_STEP : Min(a / x * b, LARGEST_STEP);
}

/* ---- groups ---- */

static void
add_here(WindowSequence *s, SequenceSource *source)
{
	s->here = true;
	s->source = source;
	s->oid = source->oid;
	s->name = source->name;
	s->increment = source->increment;
	s->last = source->last;
	s->called = source->called;
	s->cycle = source->cycle;
	s->min = source->min;
	s->max = source->max;
}

static void
add_there(WindowSequence *s, SequenceMove *move)
{
	s->move = move;
	s->oid = move->oid;
	s->name = move->name;
	s->increment = move->increment;
	s->last = move->last;
	s->called = move->called;
	s->cycle = move->cycle;
	s->min = move->min;
	s->max = move->max;
	if (!move->readable || !move->writable)
		s->problem = psprintf("role \"%s\" may not alter sequence %s",
							  move->role, move->name);
}

static void
join_groups(WindowSequence *all, int n, int a, int b)
{
	for (int i = 0; i < n; i++)
	{
		if (all[i].group == b)
			all[i].group = a;
	}
}

/*
 * All sequences of both sides that matter, in groups.
 */
static WindowSequence *
find_groups(const Deployment *deployment, Peer *to, int *n)
{
	List	   *sources;
	List	   *moves = sequences_find(deployment, to, &sources);
	int			nhere = list_length(sources);
	WindowSequence *all;

	*n = nhere + list_length(moves);
	all = palloc0_array(WindowSequence, *n + 1);
	for (int i = 0; i < *n; i++)
	{
		all[i].group = i;
		if (i < nhere)
			add_here(&all[i], list_nth(sources, i));
		else
			add_there(&all[i], list_nth(moves, i - nhere));
	}
	for (int i = nhere; i < *n; i++)
	{
		for (int j = 0; j < nhere; j++)
		{
			if (list_member_ptr(all[i].move->sources, all[j].source))
				join_groups(all, *n, all[i].group, all[j].group);
		}
	}
	return all;
}

/* ---- what is to be done ---- */

/* Where numbers of a group are free. */
typedef struct Numbers
{
	int			n;
	int			there;			/* of these on the other side */
	bool		up;
	bool		down;
	uint64		multiple;		/* L */
	uint64		least;			/* nobody has given this, or what is beyond */
} Numbers;

static Numbers
measure(const WindowSequence *all, int n, int group)
{
	Numbers		g = {.multiple = 1};

	for (int i = 0; i < n; i++)
	{
		const WindowSequence *s = &all[i];

		if (s->group != group)
			continue;
		g.n++;
		if (!s->here)
			g.there++;
		if (s->increment < 0)
			g.down = true;
		else
			g.up = true;
		g.multiple = common(g.multiple, step_of(s->increment));
		g.least = Max(g.least,
					  order(s->increment, sequence_unused(s->increment, s->last,
														  s->called)));
		if (s->move != NULL && s->move->has_extreme)
			g.least = Max(g.least,
						  order(s->increment,
								sequence_unused(s->increment, s->move->extreme,
												true)));
	}
	return g;
}

/*
 * Does a column get its values from here on this side, and from somewhere else
 * on the other?
 */
static bool
is_alone(const WindowSequence *s, const Numbers *g)
{
	if (g->there > 0 && g->there < g->n)
		return false;
	return s->here ? strcmp(s->source->links, "[]") != 0 :
		s->move->feeds_mapped;
}

/*
 * Decide about the j-th sequence of a group.
 */
static void
decide(WindowSequence *s, const Numbers *g, int j)
{
	uint64		step = (uint64) g->n * g->multiple;
	uint64		remainder;
	uint64		first;
	uint64		limit = order(s->increment, s->increment < 0 ? s->min : s->max);
	uint64		left;

	if (s->problem != NULL || g->there == 0 || g->there == g->n)
		return;
	if (step > LARGEST_STEP || g->multiple >= LARGEST_STEP)
	{
		s->problem = psprintf("increment of sequence %s is too large", s->name);
		return;
	}
	remainder = (j * g->multiple +
				 order(s->increment, s->last) % step_of(s->increment)) % step;
	first = g->least + (remainder + step - g->least % step) % step;
	left = first < g->least || first > limit ? 0 : (limit - first) / step + 1;
	if (left < FEWEST)
		s->problem = psprintf("sequence %s has only " UINT64_FORMAT " values left if it leaves every other one to the other side",
							  s->name, left);
	if (left == 0)
		return;
	s->step = s->increment < 0 ? -(int64) step : (int64) step;
	s->first = back(s->increment, first);
}

static void
decide_group(WindowSequence *all, int n, int group)
{
	Numbers		g = measure(all, n, group);
	int			j = 0;

	for (int i = 0; i < n; i++)
	{
		WindowSequence *s = &all[i];

		if (s->group != group)
			continue;
		if (is_alone(s, &g))
			s->problem = psprintf("sequence %s gives numbers on one side only, for a table that both sides write",
								  s->name);
		else if (g.there > 0 && s->cycle)
			s->problem = psprintf("sequence %s cycles: its numbers come a second time",
								  s->name);
		else if (g.up && g.down)
			s->problem = psprintf("sequence %s goes with one of the other side that goes in the other direction",
								  s->name);
		else
			decide(s, &g, j);
		j++;
	}
}

WindowSequence *
window_sequences_plan(const Deployment *deployment, Peer *to, int *n)
{
	WindowSequence *all = find_groups(deployment, to, n);

	for (int i = 0; i < *n; i++)
	{
		if (all[i].group == i)
			decide_group(all, *n, i);
	}
	return all;
}

/*
 * The check "window_sequence" of the preflight.
 */
void
check_window_sequences(PreflightRun *run)
{
	int			n;
	WindowSequence *all;

	if (run->peer == NULL)
		return;
	all = window_sequences_plan(run->deployment, run->peer, &n);
	for (int i = 0; i < n; i++)
	{
		PreflightRow row = {
			.severity = PREFLIGHT_ERROR,
			.object = all[i].name,
			.message = all[i].problem
		};

		row.hint = psprintf("-- on blue\nSELECT bluegreen.accept(%s, '%s', %s);",
							quote_literal_cstr(run->deployment->name),
							WINDOW_SEQUENCE_CHECK,
							quote_literal_cstr(all[i].name));
		if (all[i].problem != NULL && run->deployment->window == WINDOW_CLOSED)
			preflight_row(run, &row);
	}
}

/* ---- opening ---- */

/*
 * Error if there is a problem that nobody has accepted.
 */
static void
check_problems(const Deployment *deployment, const WindowSequence *all, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (all[i].problem != NULL &&
			!sequence_is_accepted(deployment, WINDOW_SEQUENCE_CHECK,
								  all[i].name))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("%s", all[i].problem),
					 errhint("bluegreen.preflight(%s, 'window') tells what can be done.",
							 quote_literal_cstr(deployment->name))));
	}
}

/* What is done to sequences of this side, in one go. */
typedef struct HereCall
{
	const Deployment *deployment;
	WindowSequence *all;
	int			n;
	bool		look;			/* in columns, see sequences_restore() */
	int			restored;
} HereCall;

static int
set_lock_timeout(void)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout",
							 psprintf("%d", LOCK_TIMEOUT_MS), PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return guc_level;
}

static void
interleave_here(void *arg)
{
	HereCall   *call = arg;
	int			guc_level = set_lock_timeout();
	CatalogAccess access;

	PushActiveSnapshot(GetTransactionSnapshot());
	catalog_begin(&access);		/* our owner need not be the sequences' */
	for (int i = 0; i < call->n; i++)
	{
		WindowSequence *s = &call->all[i];

		if (s->here && s->step != 0)
			s->first = sequence_interleave(call->deployment->id, s->oid,
										   s->step, s->first);
	}
	catalog_end(&access);
	PopActiveSnapshot();
	AtEOXact_GUC(false, guc_level);
}

static void
restore_here(void *arg)
{
	HereCall   *call = arg;
	int			guc_level = set_lock_timeout();

	PushActiveSnapshot(GetTransactionSnapshot());
	call->restored = sequences_restore(call->deployment->id, 0, NULL, NULL,
									   call->look);
	PopActiveSnapshot();
	AtEOXact_GUC(false, guc_level);
}

static bool
is_locked(const char *sqlstate)
{
	return strcmp(sqlstate, "55P03") == 0 || strcmp(sqlstate, "40P01") == 0;
}

/*
 * Do it; false if somebody uses a sequence.
 */
static bool
try_here(void (*what) (void *arg), HereCall *call)
{
	ErrorData  *error = attempt(what, call);

	if (error != NULL && !is_locked(unpack_sql_state(error->sqlerrcode)))
		ReThrowError(error);
	return error == NULL;
}

/*
 * What the other side's begin with is beyond the first numbers of ours, and so
 * beyond all that ours have given before.
 */
static void
put_beyond(WindowSequence *all, int n, const WindowSequence *here)
{
	uint64		least = order(here->increment, here->first);

	for (int i = 0; i < n; i++)
	{
		WindowSequence *s = &all[i];
		uint64		first;

		if (s->here || s->group != here->group || s->step == 0)
			continue;
		first = order(s->increment, s->first);
		if (first < least)
			s->first = back(s->increment, first + (least - first +
												   step_of(s->step) - 1) /
							step_of(s->step) * step_of(s->step));
	}
}

/* Append to a text of an array. */
static void
append_number(StringInfo buf, int64 value)
{
	appendStringInfo(buf, "%c" INT64_FORMAT, buf->len > 0 ? ',' : '{', value);
}

static char *
array_text(StringInfo buf)
{
	appendStringInfoString(buf, buf->len > 0 ? "}" : "{}");
	return buf->data;
}

/*
 * Have something done on the other side, whose arguments are the sequences' OIDs
 * and one or two numbers of each; NULL if somebody uses one.
 */
static PeerResult *
try_there(SwitchMove *move, Peer *to, const char *sql,
		  const WindowSequence *all, int n, bool opens)
{
	StringInfoData texts[3];
	const char *args[6];
	int			nargs = 0;
	PeerError	error;
	PeerResult *result;

	for (int i = 0; i < lengthof(texts); i++)
		initStringInfo(&texts[i]);
	for (int i = 0; i < n; i++)
	{
		const WindowSequence *s = &all[i];

		if (s->here || (opens && s->step == 0))
			continue;
		append_number(&texts[0], s->oid);
		append_number(&texts[1], s->step);
		append_number(&texts[2], s->first);
	}
	args[nargs++] = move->stream;
	args[nargs++] = psprintf(INT64_FORMAT, move->row.epoch);
	args[nargs++] = array_text(&texts[0]);
	if (opens)
		args[nargs++] = array_text(&texts[1]);
	args[nargs++] = array_text(&texts[2]);
	args[nargs++] = psprintf("%d", LOCK_TIMEOUT_MS);
	result = peer_try_query(to, sql, nargs, args, &error);
	if (result == NULL && !is_locked(error.sqlstate))
		peer_rethrow(&error, "having sequences leave numbers out");
	return result;
}

int
window_sequences_open(SwitchMove *move, Peer *to)
{
	HereCall	call = {.deployment = move->deployment};
	int			done = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	call.all = window_sequences_plan(move->deployment, to, &call.n);
	check_problems(move->deployment, call.all, call.n);
	PopActiveSnapshot();
	while (!try_here(interleave_here, &call))
		switch_rest(move, RETRY_MS);
	switch_commit(move);
	for (int i = 0; i < call.n; i++)
	{
		if (call.all[i].step != 0)
			done++;
		if (call.all[i].here && call.all[i].step != 0)
			put_beyond(call.all, call.n, &call.all[i]);
	}
	while (done > 0 &&
		   try_there(move, to, "SELECT bluegreen.interleave_sequences($1, $2, "
					 "$3::oid[], $4::bigint[], $5::bigint[], $6)",
					 call.all, call.n, true) == NULL)
		switch_rest(move, RETRY_MS);
	return done;
}

/* ---- closing ---- */

/*
 * From where on sequences of the other side go, by their own steps again: behind
 * all that either side has given and the margin; without it where it does not
 * fit.
 */
static void
find_first(WindowSequence *all, int n, int group)
{
	Numbers		g = measure(all, n, group);
	uint64		margin = 0;

	for (int i = 0; i < n; i++)
	{
		if (all[i].group == group && all[i].here)
			margin = Max(margin, ((uint64) bg_sequence_margin +
								  (uint64) Min(all[i].source->cache, 1 << 20)) *
						 Min(step_of(all[i].increment), LARGEST_STEP / 1024));
	}
	for (int i = 0; i < n; i++)
	{
		WindowSequence *s = &all[i];
		uint64		limit;

		if (s->group != group || s->here)
			continue;
		limit = order(s->increment, s->increment < 0 ? s->min : s->max);
		s->first = back(s->increment, g.least < limit &&
						limit - g.least > margin ? g.least + margin : g.least);
		s->move->first = s->first;
	}
}

bool
window_sequences_close(SwitchMove *move, Peer *to, int *n)
{
	HereCall	call = {.deployment = move->deployment};
	PeerResult *result;
	List	   *moves = NIL;

	PushActiveSnapshot(GetTransactionSnapshot());
	call.all = find_groups(move->deployment, to, &call.n);
	PopActiveSnapshot();
	for (int i = 0; i < call.n; i++)
	{
		if (call.all[i].group == i)
			find_first(call.all, call.n, i);
		if (!call.all[i].here && call.all[i].move->sources != NIL)
			moves = lappend(moves, call.all[i].move);
	}
	result = try_there(move, to, "SELECT bluegreen.restore_sequences($1, $2, "
					   "$3::oid[], $4::bigint[], $5)", call.all, call.n, false);
	if (result == NULL)
		return false;
	if (!try_here(restore_here, &call))
		return false;
	*n = call.restored + atoi(result->values[0][0]);
	if (atoi(result->values[0][0]) > 0)
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		sequences_keep(move->deployment, moves);
		PopActiveSnapshot();
	}
	switch_commit(move);
	return true;
}

/*
 * What was begun is undone, on this side, which goes on alone.  False if
 * somebody uses a sequence.  Does not commit.
 */
bool
window_sequences_undo(const Deployment *deployment)
{
	HereCall	call = {.deployment = deployment,.look = true};

	return try_here(restore_here, &call);
}
