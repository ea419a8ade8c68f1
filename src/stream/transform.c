/*-------------------------------------------------------------------------
 *
 * transform.c
 *		Compile a stored transform and evaluate it over rows.
 *
 * A transform is stored as the view bluegreen.transform_<id>, so pg_depend
 * guards the columns and functions that it names, and a rename on the source
 * follows by itself.  Compiling takes the view's query tree, renumbers its
 * table to varno 1, coerces each column to the target's type, and prepares
 * one expression per column and one for WHERE.  The same tree, with the same
 * coercions, is what the copy executes, so the two cannot disagree.
 *
 * Compiling reads the current catalogs and must not happen while a decoding
 * context is held.  Evaluation happens inside decoding callbacks too: it
 * touches nothing but the compiled structs, except for user-defined functions,
 * which run as the mapping's owner under the snapshot that the caller's
 * transform_enter() pushed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_type.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "stream/key.h"
#include "stream/transform.h"
#include "stream/transform_class.h"
#include "stream/wire.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

TransformMoment transform_moment;

PG_FUNCTION_INFO_V1(bluegreen_commit_time);
PG_FUNCTION_INFO_V1(bluegreen_commit_lsn);

static void
require_moment(const char *function)
{
	if (transform_moment.commit_time == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s can only be used in the transform of a mapping",
						function)));
}

/*
 * bluegreen.commit_time() returns timestamptz: the commit time on the source
 * of the change that a transform is evaluated for.  Error elsewhere.
 */
Datum
bluegreen_commit_time(PG_FUNCTION_ARGS)
{
	require_moment("bluegreen.commit_time()");
	PG_RETURN_TIMESTAMPTZ(transform_moment.commit_time);
}

/*
 * bluegreen.commit_lsn() returns pg_lsn: the position of its commit record,
 * or in the copy the position of the chunk.  Error elsewhere.
 */
Datum
bluegreen_commit_lsn(PG_FUNCTION_ARGS)
{
	require_moment("bluegreen.commit_lsn()");
	PG_RETURN_LSN(transform_moment.commit_lsn);
}

/*
 * The view's query with its one table as varno 1 and nothing else in the
 * range table (up to 15 a view's rule has entries for OLD and NEW as well).
 */
static Query *
load_query(MappingRow *row, bool *user_code)
{
	Relation	view = table_open(row->view, AccessShareLock);
	Query	   *query = copyObject(get_view_query(view));
	int			rtindex;
	RangeTblEntry *rte;

	table_close(view, AccessShareLock);
	rtindex = transform_check_class(query, row->source, user_code);
	rte = rt_fetch(rtindex, query->rtable);
	if (rtindex != 1)
	{
		ChangeVarNodes((Node *) query->targetList, rtindex, 1, 0);
		ChangeVarNodes((Node *) query->jointree->quals, rtindex, 1, 0);
	}
	query->rtable = list_make1(rte);
	query_keep_permission(query, rte);
	query->jointree->fromlist = list_make1(makeNode(RangeTblRef));
	((RangeTblRef *) linitial(query->jointree->fromlist))->rtindex = 1;
	return query;
}

/*
 * Coerce a column's expression to the type of the target column, as an
 * assignment would.  Domains go as their base type: the target checks them.
 * WIRE_TEXT columns keep their own type; the target's input function parses
 * their text.
 */
static Expr *
coerce_column(Expr *expr, const MappingColumn *def, const MappingRow *row)
{
	Oid			type = exprType((Node *) expr);
	Oid			target;
	int32		typmod;
	Node	   *result;

	if (def->wire == WIRE_TEXT)
		return expr;
	parse_type_string(def->type, &target, &typmod);
	target = getBaseTypeAndTypmod(target, &typmod);
	result = coerce_to_target_type(NULL, (Node *) expr, type, target, typmod,
								   COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST,
								   -1);
	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of target table \"%s\" is of type %s but the transform gives %s",
						def->name, mapping_target_name(row), def->type,
						format_type_be(type)),
				 errhint("Cast the expression in the transform.")));
	return (Expr *) result;
}

/*
 * Source attribute numbers that an expression reads; a whole-row reference
 * reads every column that there is.
 */
static Bitmapset *
reads_of(Transform *transform, Node *node)
{
	TupleDesc	desc = transform->source_desc;
	Bitmapset  *raw = NULL;
	Bitmapset  *result = NULL;
	int			i = -1;

	pull_varattnos(node, 1, &raw);
	while ((i = bms_next_member(raw, i)) >= 0)
	{
		AttrNumber	attno = i + FirstLowInvalidHeapAttributeNumber;

		if (attno > 0)
			result = bms_add_member(result, attno);
		else if (attno == 0)
		{
			transform->reads_whole_row = true;
			for (int j = 0; j < desc->natts; j++)
				if (!TupleDescAttr(desc, j)->attisdropped)
					result = bms_add_member(result, j + 1);
		}
	}
	return result;
}

static bool
commit_function_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr))
	{
		Oid			funcid = ((FuncExpr *) node)->funcid;

		if (funcid == transform_commit_time_oid() ||
			funcid == transform_commit_lsn_oid())
			return true;
	}
	return expression_tree_walker(node, commit_function_walker, context);
}

/*
 * The attribute number if the expression is a plain column, maybe relabelled.
 */
static AttrNumber
plain_column(Expr *expr)
{
	while (IsA(expr, RelabelType))
		expr = ((RelabelType *) expr)->arg;
	if (IsA(expr, Var) && ((Var *) expr)->varattno > 0)
		return ((Var *) expr)->varattno;
	return 0;
}

/*
 * Functions that turn a value into bytes, and for key columns those that
 * compare it.
 */
static void
lookup_functions(TransformColumn *column, const Transform *transform)
{
	Oid			function;
	bool		is_varlena;
	TypeCacheEntry *type;

	getTypeOutputInfo(column->type, &function, &is_varlena);
	fmgr_info(function, &column->output);
	if (column->def->wire != WIRE_TEXT)
	{
		getTypeBinaryOutputInfo(column->type, &function, &is_varlena);
		fmgr_info(function, &column->send);
	}
	column->encoding = wire_encoding(column);
	if (!column->def->is_key)
		return;

	type = lookup_type_cache(column->type, TYPECACHE_HASH_PROC |
							 TYPECACHE_EQ_OPR | TYPECACHE_CMP_PROC);
	if (!OidIsValid(type->hash_proc) || !OidIsValid(type->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("key column \"%s\" of target table \"%s\" is of type %s, which cannot be hashed",
						column->def->name,
						mapping_target_name(transform->row),
						format_type_be(column->type)),
				 errhint("Cast the column to a type with a default hash operator class.")));
	fmgr_info(type->hash_proc, &column->hash);
	fmgr_info(get_opcode(type->eq_opr), &column->equal);
	column->key_kind = key_kind(column->equal.fn_oid);
	if (OidIsValid(type->cmp_proc))
		fmgr_info(type->cmp_proc, &column->compare);
}

static void
compile_column(Transform *transform, int i, TargetEntry *tle, Relation source)
{
	TransformColumn *column = &transform->columns[i];
	Expr	   *expr;

	column->def = &transform->row->columns[i];
	tle->expr = coerce_column(tle->expr, column->def, transform->row);
	expr = (Expr *) expand_virtual_columns((Node *) tle->expr, source);
	column->type = exprType((Node *) expr);
	column->typmod = exprTypmod((Node *) expr);
	column->collation = exprCollation((Node *) expr);
	get_typlenbyval(column->type, &column->typlen, &column->typbyval);
	column->reads = reads_of(transform, (Node *) expr);
	column->depends_on_commit = commit_function_walker((Node *) expr, NULL);
	/*
	 * "no length", since a plain char or bit means one of length 1.  What goes
	 * as text is carried as bpchar: a cast from there is the type's input
	 * function, while text has casts of its own (to regclass, or a user's).
	 */
	column->carrier = column->def->wire == WIRE_BINARY ?
		format_type_extended(column->type, -1, FORMAT_TYPE_TYPEMOD_GIVEN |
							 FORMAT_TYPE_FORCE_QUALIFY) :
		pstrdup("pg_catalog.bpchar");
	column->source_attno = plain_column(expr);
	if (column->source_attno == 0)
		column->state = ExecInitExpr(expression_planner(expr), NULL);
	lookup_functions(column, transform);
}

static int
compare_key_names(const void *a, const void *b, void *arg)
{
	const Transform *transform = arg;

	return strcmp(transform->columns[*(const int *) a].def->name,
				  transform->columns[*(const int *) b].def->name);
}

static void
compile_columns(Transform *transform, Relation source)
{
	ListCell   *lc;
	int			i = 0;

	transform->ncolumns = transform->row->ncolumns;
	if (list_length(transform->query->targetList) != transform->ncolumns)
		elog(ERROR, "transform view of mapping %d has %d columns instead of %d",
			 transform->row->id, list_length(transform->query->targetList),
			 transform->ncolumns);
	transform->columns = palloc0_array(TransformColumn, transform->ncolumns);
	transform->keys = palloc0_array(int, transform->ncolumns);
	transform->finds = palloc0_array(int, transform->ncolumns);
	foreach(lc, transform->query->targetList)
	{
		compile_column(transform, i, lfirst(lc), source);
		transform->reads = bms_add_members(transform->reads,
										   transform->columns[i].reads);
		if (transform->columns[i].def->is_key)
			transform->keys[transform->nkeys++] = i;
		if (transform->columns[i].def->is_key ||
			transform->columns[i].def->finds)
			transform->key_reads = bms_add_members(transform->key_reads,
												   transform->columns[i].reads);
		i++;
	}
	for (i = 0; i < transform->ncolumns; i++)
		transform->columns[i].finds_row = transform->nkeys == 0 &&
			!transform->columns[i].depends_on_commit;
	/* mappings of one target must hash a key's columns in one order */
	if (transform->row->target_shared)
		qsort_arg(transform->keys, transform->nkeys, sizeof(int),
				  compare_key_names, transform);
	for (int k = 0; k < transform->nkeys; k++)
		transform->finds[transform->nfinds++] = transform->keys[k];
	for (i = 0; i < transform->ncolumns; i++)
		if (transform->columns[i].def->finds)
			transform->finds[transform->nfinds++] = i;
}

static void
compile_filter(Transform *transform, Relation source)
{
	Node	   *quals = transform->query->jointree->quals;
	List	   *list;

	if (quals == NULL)
		return;
	quals = expand_virtual_columns(copyObject(quals), source);
	transform->filter_reads = reads_of(transform, quals);
	transform->reads = bms_add_members(transform->reads,
									   transform->filter_reads);
	list = make_ands_implicit(expression_planner((Expr *) quals));
	transform->filter = ExecInitQual(list, NULL);
}

/*
 * Remember what the source's columns were, to compare with what decoding
 * finds in older or newer catalogs.
 */
static void
remember_source(Transform *transform, Relation source)
{
	TupleDesc	desc = RelationGetDescr(source);

	transform->source_desc = CreateTupleDescCopy(desc);
	transform->source = palloc0_array(SourceAttribute, desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		SourceAttribute *mine = &transform->source[i];

		mine->name = att->attname;
		mine->type = att->atttypid;
		mine->typmod = att->atttypmod;
		mine->dropped = att->attisdropped;
		/* SET STORAGE PLAIN leaves values where they are */
		mine->toastable = att->attlen == -1 && !att->attisdropped &&
			(att->attstorage != TYPSTORAGE_PLAIN ||
			 get_typstorage(att->atttypid) != TYPSTORAGE_PLAIN);
	}
	transform->slot = MakeSingleTupleTableSlot(transform->source_desc,
											   &TTSOpsVirtual);
	transform->econtext = CreateStandaloneExprContext();
	transform->econtext->ecxt_scantuple = transform->slot;
}

/*
 * The columns of the source: a list of name, type, name, type ...
 */
List *
transform_row_shape(const Transform *transform)
{
	TupleDesc	desc = transform->source_desc;
	List	   *shape = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		shape = lappend(shape, pstrdup(NameStr(att->attname)));
		shape = lappend(shape, format_type_with_typemod(att->atttypid,
														att->atttypmod));
	}
	return shape;
}

/*
 * Name of the first column of a shape that another one does not have, or NULL.
 */
static const char *
first_missing(List *shape, List *from)
{
	for (int i = 0; i < list_length(shape); i += 2)
	{
		int			j = 0;

		while (j < list_length(from) &&
			   (strcmp(list_nth(shape, i), list_nth(from, j)) != 0 ||
				strcmp(list_nth(shape, i + 1), list_nth(from, j + 1)) != 0))
			j += 2;
		if (j >= list_length(from))
			return list_nth(shape, i);
	}
	return NULL;
}

/*
 * A transform that reads whole rows gives something else for every row when
 * the table gets, loses or renames a column.  No row is in the WAL for that, so
 * it must not go on by itself with what comes next.
 */
static void
compare_shape(Transform *transform)
{
	List	   *now = transform_row_shape(transform);
	List	   *then = transform->row->row_shape;
	const char *column;

	if (!transform->reads_whole_row || then == NIL)
		return;
	column = first_missing(now, then);
	if (column != NULL)
		transform->misfit.reason = "The transform reads whole rows, and the table had no such column when it was mapped.";
	else
	{
		column = first_missing(then, now);
		if (column != NULL)
			transform->misfit.reason = "The transform reads whole rows, and the table has lost this column since it was mapped.";
	}
	transform->misfit.column = column;
}

/*
 * Compile a stored mapping into structs in CurrentMemoryContext that outlive
 * the transaction.  Needs a transaction with an active snapshot, and no
 * decoding context.  Runs as the mapping's owner, since constant folding may
 * call the owner's functions.  Takes and keeps AccessShareLock on the source
 * until the end of the transaction.  Errors: as transform_parse(), a column
 * that does not coerce, a key type that cannot be hashed.
 */
Transform *
transform_compile(MappingRow *row)
{
	Transform  *transform = palloc0_object(Transform);
	Relation	source = table_open(row->source, AccessShareLock);
	int			guc_level = NewGUCNestLevel();
	Oid			userid;
	int			sec_context;

	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(row->owner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);
	transform->row = row;
	transform->query = load_query(row, &transform->runs_user_code);
	remember_source(transform, source);
	compile_columns(transform, source);
	compile_filter(transform, source);
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(userid, sec_context);

	transform->secret = holds_sessions(source);
	compare_shape(transform);
	transform_find_identity(transform, source);
	table_close(source, NoLock);
	return transform;
}

/*
 * Put a tuple that was read by a query into transform->slot.  Its columns, from
 * the first one (counted from 1) on, are the source's live ones.
 */
void
transform_fill_slot(Transform *transform, HeapTuple tuple, TupleDesc desc,
					int first)
{
	TupleTableSlot *slot = transform->slot;

	ExecClearTuple(slot);
	for (int i = 0; i < transform->source_desc->natts; i++)
	{
		slot->tts_isnull[i] = true;
		slot->tts_values[i] = (Datum) 0;
		if (!transform->source[i].dropped)
			slot->tts_values[i] = heap_getattr(tuple, first++, desc,
											   &slot->tts_isnull[i]);
	}
	ExecStoreVirtualTuple(slot);
}

/*
 * Evaluate WHERE over the row in transform->slot; true if the row passes.
 */
bool
transform_filter(Transform *transform)
{
	if (transform->filter == NULL)
		return true;
	/* what the last row's evaluation left in the per-tuple memory */
	ResetExprContext(transform->econtext);
	return ExecQual(transform->filter, transform->econtext);
}

static Datum
evaluate(Transform *transform, TransformColumn *column, bool *isnull)
{
	TupleTableSlot *slot = transform->slot;

	if (column->source_attno > 0)
	{
		*isnull = slot->tts_isnull[column->source_attno - 1];
		return slot->tts_values[column->source_attno - 1];
	}
	return ExecEvalExpr(column->state, transform->econtext, isnull);
}

/*
 * Evaluate all columns over transform->slot.  absent: source attributes whose
 * value the change does not carry; columns that read one are marked missing.
 * Returns whether there are any.  Results live in CurrentMemoryContext or in
 * the slot's memory.
 */
bool
transform_row(Transform *transform, const Bitmapset *absent,
			  Datum *values, bool *isnull, bool *missing)
{
	bool		any_missing = false;

	for (int i = 0; i < transform->ncolumns; i++)
	{
		TransformColumn *column = &transform->columns[i];

		missing[i] = absent != NULL && bms_overlap(column->reads, absent);
		if (missing[i])
		{
			isnull[i] = true;
			any_missing = true;
		}
		else
			values[i] = evaluate(transform, column, &isnull[i]);
	}
	return any_missing;
}

/*
 * Evaluate only the columns by which a row is found: the key's, and what else
 * a lookup needs for that.  Other entries are left as they were.  Error if a
 * key column is NULL.
 */
void
transform_key(Transform *transform, Datum *values, bool *isnull)
{
	for (int k = 0; k < transform->nfinds; k++)
	{
		int			i = transform->finds[k];

		values[i] = evaluate(transform, &transform->columns[i], &isnull[i]);
	}
	transform_check_key(transform, isnull);
}

/*
 * Error if a key column is NULL: no row of the target could be found by it.
 */
void
transform_check_key(const Transform *transform, const bool *isnull)
{
	for (int k = 0; k < transform->nkeys; k++)
	{
		int			i = transform->keys[k];

		if (isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("key column \"%s\" of target table \"%s\" is null for a row of \"%s\"",
							transform->columns[i].def->name,
							mapping_target_name(transform->row),
							get_rel_name(transform->row->source)),
					 errhint("Leave such rows out with a WHERE in the transform, or give the key another value.")));
	}
}

/*
 * Are two keys (arrays by column) the same, by the key types' own equality?
 */
bool
transform_key_equal(Transform *transform, const Datum *a, const Datum *b)
{
	for (int k = 0; k < transform->nkeys; k++)
	{
		int			i = transform->keys[k];
		TransformColumn *column = &transform->columns[i];

		if (!DatumGetBool(FunctionCall2Coll(&column->equal, column->collation,
											a[i], b[i])))
			return false;
	}
	return true;
}

/*
 * Do two rows (arrays by column) lead to the same row of the target?  With a
 * lookup more than the key counts, which may be NULL, and what a lookup makes
 * of equal values that are not the same nobody knows.
 */
bool
transform_finds_equal(Transform *transform, const Datum *a,
					  const bool *a_null, const Datum *b, const bool *b_null)
{
	if (!transform_key_equal(transform, a, b))
		return false;
	for (int k = transform->row->lookup ? 0 : transform->nkeys;
		 k < transform->nfinds; k++)
	{
		int			i = transform->finds[k];
		TransformColumn *column = &transform->columns[i];

		if (a_null[i] != b_null[i] ||
			(!a_null[i] && !datum_image_eq(a[i], b[i], column->typbyval,
										   column->typlen)))
			return false;
	}
	return true;
}

/*
 * Before evaluating: user-defined code runs as the mapping's owner and under
 * the active (in decoding: historic) snapshot, without which functions in SQL
 * crash and functions in PL/pgSQL fail.  Settings that it makes last until
 * transform_leave().
 */
void
transform_enter(Transform *transform, TransformUser *saved)
{
	saved->switched = transform->runs_user_code;
	if (saved->switched)
		transform_enter_owner(transform, saved);
}

/*
 * The same whatever the transform runs: for the input of values, which checks
 * domains.
 */
void
transform_enter_owner(Transform *transform, TransformUser *saved)
{
	saved->switched = true;
	saved->guc_level = NewGUCNestLevel();
	GetUserIdAndSecContext(&saved->userid, &saved->sec_context);
	SetUserIdAndSecContext(transform->row->owner,
						   saved->sec_context |
						   SECURITY_RESTRICTED_OPERATION);
	/* a session that reads a slot may have a transaction snapshot already */
	if (HistoricSnapshotActive())
		PushActiveSnapshot(GetCatalogSnapshot(InvalidOid));
	else
		PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * After evaluating.  Not needed after an error: aborting the transaction
 * restores the user and pops the snapshot.
 */
void
transform_leave(const TransformUser *saved)
{
	if (!saved->switched)
		return;
	PopActiveSnapshot();
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->userid, saved->sec_context);
}
