/*-------------------------------------------------------------------------
 *
 * verify_range.c
 *		Compare a range of a table: sums of hashes, then the keys.
 *
 * Each side sums up the hashes of its rows in the range, in buckets by the hash
 * of the key (verify_checksum.c).  Both do so at the same time, and a bucket
 * whose sum is the same is done.  Of the others both sides list keys and
 * hashes, and what is not in both lists is suspect: it may be wrong, or on its
 * way.  verify_rows.c finds out.
 *
 * Where a range of the source's key is no range of the target's (the key is
 * computed, or ordered by a collation), or where there is no key, the range is
 * the whole table, and the buckets do all the work.  Without a key a row's
 * bucket is by all its values, and what is listed are hashes and how many rows
 * have them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "port/pg_bswap.h"
#include "stream/verify.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define BUCKET_ROWS		100
#define MAX_BUCKETS		65536
#define LIST_ROWS		200000	/* keys that are listed at once, about */
#define SUSPECTS		1000	/* that are looked at together */

/* What a side says of a range. */
typedef struct RangeSums
{
	uint64		bytes;
	uint64	   *sums;			/* rows, high, low of each bucket; NULL = no
								 * rows */
} RangeSums;

/* An entry of a side's list. */
typedef struct ListedRow
{
	char	   *key;
	char	   *hash;			/* without a key: how many rows */
} ListedRow;

typedef struct RowList
{
	int			n;
	ListedRow  *rows;
} RowList;

/* ---- sums ---- */

static int
hex_value(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

static uint64
hex_number(const char *text)
{
	uint64		number = 0;

	for (int i = 0; i < 16; i++)
		number = number << 4 | hex_value(text[i]);
	return number;
}

/*
 * Take apart what checksum() gave.
 */
static void
parse_sums(const PeerResult *result, int buckets, RangeSums *sums)
{
	const char *text = result->ntuples == 1 ? result->values[0][0] : NULL;

	memset(sums, 0, sizeof(*sums));
	if (text == NULL)
		return;
	if (strlen(text) != 2 + 16 * (1 + 3 * buckets))
		elog(ERROR, "unexpected length of a checksum");
	sums->bytes = hex_number(text + 2);
	sums->sums = palloc_array(uint64, 3 * buckets);
	for (int i = 0; i < 3 * buckets; i++)
		sums->sums[i] = hex_number(text + 18 + 16 * i);
}

static bool
bucket_is_same(const RangeSums *a, const RangeSums *b, int bucket)
{
	for (int i = 3 * bucket; i < 3 * bucket + 3; i++)
		if ((a->sums ? a->sums[i] : 0) != (b->sums ? b->sums[i] : 0))
			return false;
	return true;
}

static int64
bucket_rows(const RangeSums *sums, int bucket)
{
	return sums->sums ? (int64) sums->sums[3 * bucket] : 0;
}

/*
 * Have both sides answer a query at the same time.
 */
static void
ask_both(VerifyState *state, const Datum *lower, const Datum *upper,
		 const OuterQuery *outer, PeerResult **results)
{
	const VerifyTable *table = state->table;
	char	   *sql;
	Query	   *query;

	StartTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
	PushActiveSnapshot(GetTransactionSnapshot());
	query = verify_source_query(table, lower, upper, outer);
	sql = verify_target_query(table, lower, upper, outer);
	peer_query_begin(state->peer, sql);
	results[0] = verify_run_query(table, query);
	results[1] = peer_query_end(state->peer, sql);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(state->range_context);
}

static void
sum_range(VerifyState *state, const Datum *lower, const Datum *upper,
		  int buckets, RangeSums *sums)
{
	const VerifyTable *table = state->table;
	OuterQuery	outer = {0};
	PeerResult *results[2];

	outer.before = psprintf("SELECT bluegreen.checksum(%d, %d, '%s'%s%s) FROM ",
							buckets, table->nkeys, table->formats,
							table->columns[0] ? ", " : "", table->columns);
	outer.after = "";
	ask_both(state, lower, upper, &outer, results);
	parse_sums(results[0], buckets, &sums[0]);
	parse_sums(results[1], buckets, &sums[1]);
}

/* ---- lists ---- */

static int
compare_listed(const void *a, const void *b)
{
	const ListedRow *x = a;
	const ListedRow *y = b;
	int			order = strcmp(x->key, y->key);

	return order != 0 ? order : strcmp(x->hash, y->hash);
}

static RowList
make_list(const PeerResult *result)
{
	RowList		list = {.n = result->ntuples};

	list.rows = MemoryContextAllocHuge(CurrentMemoryContext,
									   Max(list.n, 1) * sizeof(ListedRow));
	for (int i = 0; i < list.n; i++)
	{
		list.rows[i].key = result->values[i][0];
		list.rows[i].hash = result->values[i][1];
	}
	qsort(list.rows, list.n, sizeof(ListedRow), compare_listed);
	return list;
}

/*
 * The entries of the list from i on that have the same key.
 */
static int
same_key(const RowList *list, int i)
{
	int			n = 1;

	while (i + n < list->n &&
		   strcmp(list->rows[i].key, list->rows[i + n].key) == 0)
		n++;
	return n;
}

/*
 * Is one of the source's rows of a key the target's?
 */
static bool
any_is_same(const ListedRow *a, int na, const ListedRow *b, int nb)
{
	for (int x = 0; x < na; x++)
		for (int y = 0; y < nb; y++)
			if (strcmp(a[x].hash, b[y].hash) == 0)
				return true;
	return false;
}

static void
add_suspect(const VerifyTable *table, Suspect *suspects, int *n,
			const char *key)
{
	KeySpace   *space = table->copy.directory->space;
	Suspect    *suspect = &suspects[(*n)++];
	Datum		array;
	Datum	   *texts;
	bool	   *nulls;
	int			ntexts;

	memset(suspect, 0, sizeof(*suspect));
	suspect->key = palloc0_array(char *, Max(table->nkeys, 1));
	if (table->nkeys == 0)
	{
		suspect->key[0] = pstrdup(key);
		return;
	}
	array = InputFunctionCall(&space->array_input, unconstify(char *, key),
							  TEXTOID, -1);
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &texts, &nulls, &ntexts);
	for (int k = 0; k < table->nkeys; k++)
	{
		if (k >= ntexts || nulls[k])
			elog(ERROR, "a key of table \"%s\" is null",
				 mapping_target_name(table->transform->row));
		suspect->key[k] = TextDatumGetCString(texts[k]);
	}
}

/*
 * Go through both lists side by side.
 */
static void
merge_lists(VerifyState *state, const RowList *source, const RowList *target)
{
	const VerifyTable *table = state->table;
	bool		patches = table->transform->row->on_write == ON_WRITE_PATCH;
	Suspect    *suspects = palloc_array(Suspect, SUSPECTS);
	int			n = 0;
	int			i = 0;
	int			j = 0;

	while (i < source->n || j < target->n)
	{
		int			order = i == source->n ? 1 : j == target->n ? -1 :
			strcmp(source->rows[i].key, target->rows[j].key);
		int			ni = order <= 0 ? same_key(source, i) : 0;
		int			nj = order >= 0 ? same_key(target, j) : 0;
		bool		wrong;

		if (order == 0)
			wrong = !any_is_same(source->rows + i, ni, target->rows + j, nj);
		else
			wrong = order < 0 ? !patches :
				table->finds_extra || table->nkeys == 0;
		if (wrong)
			add_suspect(table, suspects, &n,
						order <= 0 ? source->rows[i].key :
						target->rows[j].key);
		i += ni;
		j += nj;
		if (n == SUSPECTS || (n > 0 && i == source->n && j == target->n))
		{
			verify_suspects(state, suspects, n);
			n = 0;
		}
		if (state->progress.differences >= VERIFY_MAX_DIFFERENCES)
			break;
	}
}

/*
 * List the rows of some buckets.  The lists may be long, so they do not outlive
 * this.
 */
static void
list_buckets(VerifyState *state, const Datum *lower, const Datum *upper,
			 int buckets, const char *wanted)
{
	const VerifyTable *table = state->table;
	MemoryContext range_context = state->range_context;
	PeerResult *results[2];
	RowList		lists[2];
	OuterQuery	outer = {0};

	state->range_context = AllocSetContextCreate(range_context,
												 "pg_bluegreen buckets",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(state->range_context);
	if (table->nkeys > 0)
	{
		outer.before = psprintf("SELECT bluegreen.key_text(%s), "
								"bluegreen.row_hash('%s', %s) FROM ",
								table->keys, table->formats, table->columns);
		outer.after = psprintf(" WHERE bluegreen.row_bucket(%d, '%s', %s) "
							   "OPERATOR(pg_catalog.=) "
							   "ANY ('{%s}'::pg_catalog.int4[])",
							   buckets, table->key_formats, table->keys,
							   wanted);
	}
	else
	{
		outer.before = psprintf("SELECT q.h, pg_catalog.count(*) FROM "
								"(SELECT bluegreen.row_hash('%s', %s) AS h FROM ",
								table->formats, table->columns);
		outer.after = psprintf(" WHERE bluegreen.row_bucket(%d, '%s', %s) "
							   "OPERATOR(pg_catalog.=) "
							   "ANY ('{%s}'::pg_catalog.int4[])) AS q "
							   "GROUP BY q.h",
							   buckets, table->formats, table->columns,
							   wanted);
	}
	ask_both(state, lower, upper, &outer, results);
	lists[0] = make_list(results[0]);
	lists[1] = make_list(results[1]);
	merge_lists(state, &lists[0], &lists[1]);
	MemoryContextDelete(state->range_context);
	state->range_context = range_context;
	MemoryContextSwitchTo(range_context);
}

/* ---- a range ---- */

/*
 * Is there a bucket to be listed that has many more rows than was thought?
 */
static bool
any_too_full(const RangeSums *sums, int buckets)
{
	for (int i = 0; i < buckets; i++)
		if (!bucket_is_same(&sums[0], &sums[1], i) &&
			Max(bucket_rows(&sums[0], i), bucket_rows(&sums[1], i)) > LIST_ROWS)
			return true;
	return false;
}

/*
 * Compare the rows after lower up to upper (NULL: open), about so many.  Adds
 * to state->progress, and to the differences in the database.  Everything that
 * is made is in state->range_context, or gone.
 */
void
verify_range(VerifyState *state, const Datum *lower, const Datum *upper,
			 int64 rows)
{
	int			buckets = (int) Min(Max(rows / BUCKET_ROWS, 1), MAX_BUCKETS);
	VerifyProgress *progress = &state->progress;
	RangeSums	sums[2];
	StringInfoData wanted;
	int64		listed = 0;
	XLogRecPtr	lsn = verify_position();

	sum_range(state, lower, upper, buckets, sums);
	if (buckets < MAX_BUCKETS && any_too_full(sums, buckets))
	{
		buckets = MAX_BUCKETS;
		sum_range(state, lower, upper, buckets, sums);
	}
	progress->first_lsn = XLogRecPtrIsInvalid(progress->first_lsn) ? lsn :
		Min(progress->first_lsn, lsn);
	progress->last_lsn = Max(progress->last_lsn, lsn);
	state->range_cost = 0;
	initStringInfo(&wanted);
	for (int i = 0; i < buckets; i++)
	{
		int64		here = bucket_rows(&sums[0], i);
		int64		there = bucket_rows(&sums[1], i);

		progress->rows += here;
		progress->target_rows += there;
		state->range_cost += here;
		if (!bucket_is_same(&sums[0], &sums[1], i))
		{
			appendStringInfo(&wanted, "%s%d", wanted.len > 0 ? "," : "", i);
			listed += Max(here, there);
		}
		if (wanted.len > 0 && (listed >= LIST_ROWS || i == buckets - 1) &&
			progress->differences < VERIFY_MAX_DIFFERENCES)
		{
			verify_check(state);
			list_buckets(state, lower, upper, buckets, wanted.data);
			resetStringInfo(&wanted);
			listed = 0;
		}
	}
	/* a wide row counts for more */
	state->range_cost = Max(state->range_cost, (int64) (sums[0].bytes / 1024));
	progress->ranges++;
}
