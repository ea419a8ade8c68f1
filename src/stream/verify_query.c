/*-------------------------------------------------------------------------
 *
 * verify_query.c
 *		The queries of a comparison, the same on both sides.
 *
 * A query is written once, over a relation "s" whose columns are c0, c1, ...
 * (the mapping's columns) and tid, xid, rel (which row version it is).  On the
 * target that is a subquery over the target table.  On the source it is the
 * transform itself, as the copy runs it: the text is analyzed over a stand-in
 * with columns of the same types, whose place the transform's query takes.  So
 * there is one transform, and one text that turns rows into hashes.
 *
 * Columns that depend on bluegreen.commit_time() or commit_lsn() are not
 * compared.
 *
 * Rows are looked for by the key type's own equality, so a key that the target
 * writes in another way ('A' for 'a' under a collation, 1.00 for 1.0) is found,
 * and is a row that differs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "stream/transform_class.h"
#include "stream/verify.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#define MAX_ARGUMENTS	90		/* more values go as one ROW() */

/* ---- the mapping ---- */

/*
 * A column's format.  Arrays as text: their binary form names the element type
 * by OID.
 */
static char
column_format(const TransformColumn *column)
{
	return column->def->wire == WIRE_BINARY ? 'b' : 't';
}

static void
append_column(StringInfo columns, StringInfo formats,
			  const Transform *transform, int i)
{
	appendStringInfo(columns, "%ss.c%d", columns->len > 0 ? ", " : "", i);
	appendStringInfoChar(formats, column_format(&transform->columns[i]));
}

/*
 * The lists of columns, the key's first.  Wide rows as ROW(), with the key
 * beside it.
 */
static void
list_columns(VerifyTable *table)
{
	Transform  *transform = table->transform;
	StringInfoData keys;
	StringInfoData key_formats;
	StringInfoData others;
	StringInfoData formats;

	initStringInfo(&keys);
	initStringInfo(&key_formats);
	initStringInfo(&others);
	initStringInfo(&formats);
	for (int k = 0; k < transform->nkeys; k++)
		append_column(&keys, &key_formats, transform, transform->keys[k]);
	for (int i = 0; i < transform->ncolumns; i++)
		if (!transform->columns[i].def->is_key &&
			!transform->columns[i].depends_on_commit)
			append_column(&others, &formats, transform, i);
	table->keys = keys.data;
	table->key_formats = key_formats.data;
	if (formats.len + key_formats.len > MAX_ARGUMENTS)
	{
		table->columns = psprintf("%s%sROW(%s)", keys.data,
								  keys.len > 0 ? ", " : "", others.data);
		table->formats = psprintf("%sr%s", key_formats.data, formats.data);
		return;
	}
	table->columns = psprintf("%s%s%s", keys.data,
							  keys.len > 0 && others.len > 0 ? ", " : "",
							  others.data);
	table->formats = psprintf("%s%s", key_formats.data, formats.data);
}

/*
 * The encoding of a database in which a column is ordered by its bytes, as
 * collations of the C locale do.
 */
static const char bytewise_sql[] =
"SELECT pg_catalog.pg_encoding_to_char(d.encoding) "
"FROM pg_catalog.pg_attribute a "
"JOIN pg_catalog.pg_class r ON r.oid = a.attrelid "
"JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace "
"JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation "
"JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database() "
"WHERE n.nspname = $1 AND r.relname = $2 AND a.attname = $3 "
"AND CASE c.collprovider"
" WHEN 'd' THEN d.datlocprovider = 'c' AND d.datcollate IN ('C', 'POSIX')"
" ELSE c.collprovider = 'c' AND c.collcollate IN ('C', 'POSIX') END";

/*
 * Have both sides the same order for text in a key column: of its bytes, in the
 * same encoding?
 */
static bool
text_is_ordered(Peer *peer, const VerifyTable *table, int column,
				AttrNumber source)
{
	Transform  *transform = table->transform;
	MappingRow *row = transform->row;
	const char *args[] = {row->target_schema, row->target_table,
	transform->columns[column].def->name};
	PeerResult *there = peer_query(peer, bytewise_sql, 3, args);
	CatalogAccess access;
	CatalogArgs own = {0};
	bool		result;

	catalog_begin(&access);
	catalog_arg_name(&own,
					 get_namespace_name(get_rel_namespace(row->source)));
	catalog_arg_name(&own, get_rel_name(row->source));
	catalog_arg_name(&own,
					 NameStr(transform->source[source - 1].name));
	result = catalog_run(bytewise_sql, &own, SPI_OK_SELECT) == 1 &&
		there->ntuples == 1 &&
		strcmp(catalog_text(&access, 0, 1), there->values[0][0]) == 0;
	catalog_end(&access);
	return result;
}

/*
 * Is the target's type that of the source's column, or one that orders the same
 * values as it does?  Types of the same bytes may differ in that.
 */
static bool
type_is_kept(Oid source, Oid target)
{
	source = getBaseType(source);
	return source == target ||
		((source == TEXTOID || source == VARCHAROID) &&
		 (target == TEXTOID || target == VARCHAROID));
}

/*
 * Have both sides the same order for a key column?  Numbers, times and the
 * like have.
 */
static bool
column_is_ordered(Peer *peer, const VerifyTable *table, int i,
				  AttrNumber source)
{
	const TransformColumn *column = &table->transform->columns[i];

	if (column->def->wire != WIRE_BINARY ||
		column->type >= FirstUnpinnedObjectId ||
		get_typtype(column->type) != TYPTYPE_BASE ||
		OidIsValid(get_element_type(column->type)) ||
		!type_is_kept(table->transform->source[source - 1].type, column->type))
		return false;
	return !OidIsValid(column->collation) ||
		text_is_ordered(peer, table, i, source);
}

/*
 * The target's column that a column of the source's key becomes, or -1.
 */
static int
target_of(const Transform *transform, AttrNumber attno)
{
	for (int k = 0; k < transform->nkeys; k++)
		if (transform->columns[transform->keys[k]].source_attno == attno)
			return transform->keys[k];
	return -1;
}

static bool
is_ranged(Peer *peer, const VerifyTable *table)
{
	const Transform *transform = table->transform;
	const KeySpace *space = table->copy.directory->space;

	if (space->nkeys == 0)
		return false;
	for (int i = 0; i < space->nkeys; i++)
	{
		int			column = target_of(transform, space->attnos[i]);

		if (column < 0 ||
			!column_is_ordered(peer, table, column, space->attnos[i]))
			return false;
	}
	return true;
}

static bool
reads_commit(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr) &&
		(((FuncExpr *) node)->funcid == transform_commit_time_oid() ||
		 ((FuncExpr *) node)->funcid == transform_commit_lsn_oid()))
		return true;
	return expression_tree_walker(node, reads_commit, context);
}

static const char *
find_unfit(const Transform *transform, bool alone)
{
	if (transform->nkeys == 0 && !alone)
		return "it has no key, and other mappings write its target";
	if (reads_commit(transform->query->jointree->quals, NULL))
		return "its filter depends on commit_time() or commit_lsn()";
	for (int k = 0; k < transform->nkeys; k++)
		if (transform->columns[transform->keys[k]].depends_on_commit)
			return "its key depends on commit_time() or commit_lsn()";
	return NULL;
}

/*
 * The equality of a key column's type on the source.
 */
static char *
source_equality(const TransformColumn *column)
{
	Oid			operator = lookup_type_cache(column->type,
											 TYPECACHE_EQ_OPR)->eq_opr;
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	char	   *result;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("could not identify an equality operator for type %s",
						format_type_be(column->type))));
	form = (Form_pg_operator) GETSTRUCT(tuple);
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(form->oprnamespace)),
					  NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/*
 * How rows are joined with keys.  Each side has its own names for types and
 * operators.  Needs a transaction.
 */
static char *
key_condition(const VerifyTable *table, bool source)
{
	Transform  *transform = table->transform;
	StringInfoData on;

	initStringInfo(&on);
	for (int k = 0; k < transform->nkeys; k++)
	{
		TransformColumn *column = &transform->columns[transform->keys[k]];

		appendStringInfo(&on, "%ss.c%d %s k.k%d", k > 0 ? " AND " : " ON ",
						 transform->keys[k],
						 source ? source_equality(column) :
						 table->writer->key_operator[k], k);
		if (column->def->wire != WIRE_BINARY)
			appendStringInfo(&on, "::%s", source ?
							 format_type_extended(column->type, -1,
												  FORMAT_TYPE_TYPEMOD_GIVEN |
												  FORMAT_TYPE_FORCE_QUALIFY) :
							 column->def->type);
	}
	appendStringInfoString(&on, " ORDER BY 1, 2");
	return on.data;
}

/*
 * Prepare to compare a mapping; alone: no other mapping writes the target.
 * Needs a transaction; everything is made in CurrentMemoryContext.
 */
VerifyTable *
verify_table_create(Peer *peer, MappingRow *row, bool alone)
{
	VerifyTable *table = palloc0_object(VerifyTable);
	Transform  *transform = transform_compile(row);

	table->transform = transform;
	table->nkeys = transform->nkeys;
	table->writer = target_writer_create(peer, transform);
	table->copy.transform = transform;
	table->copy.directory = chunk_directory_create(transform);
	table->copy.stats = palloc0_object(TableShared);
	table->copy.partitioned =
		get_rel_relkind(row->source) == RELKIND_PARTITIONED_TABLE;
	table->finds_extra = alone && row->on_write == ON_WRITE_MIRROR &&
		row->on_delete == ON_DELETE_DELETE;
	if (row->lookup)
	{
		table->unfit = "what its rows become is known on the target only (lookup)";
		return table;
	}
	table->ranged = is_ranged(peer, table);
	table->unfit = find_unfit(transform, alone);
	table->key_condition = key_condition(table, false);
	table->source_key_condition = key_condition(table, true);
	list_columns(table);
	return table;
}

/* ---- the source ---- */

static TargetEntry *
system_entry(AttrNumber attno, Oid type, int resno, char *name)
{
	return makeTargetEntry((Expr *) makeVar(1, attno, type, -1, InvalidOid, 0),
						   resno, name, false);
}

/*
 * The transform over a range as the subquery "s".
 */
static Query *
transform_subquery(const VerifyTable *table, const Datum *lower,
				   const Datum *upper)
{
	Transform  *transform = table->transform;
	CopyJob		job = {
		.table = unconstify(CopyTable *, &table->copy),
		.lower = unconstify(Datum *, lower),
		.upper = unconstify(Datum *, upper)
	};
	Query	   *query = copy_build_query(&job, GetCurrentTimestamp());
	int			n = transform->ncolumns;
	ListCell   *lc;
	int			i = 0;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst(lc);
		TransformColumn *column = &transform->columns[i++];

		if (column->depends_on_commit)
			entry->expr = (Expr *) makeNullConst(column->type, column->typmod,
												 column->collation);
	}
	query->targetList = lappend(query->targetList,
								system_entry(SelfItemPointerAttributeNumber,
											 TIDOID, n + 1, "tid"));
	query->targetList = lappend(query->targetList,
								system_entry(MinTransactionIdAttributeNumber,
											 XIDOID, n + 2, "xid"));
	query->targetList = lappend(query->targetList,
								system_entry(TableOidAttributeNumber, OIDOID,
											 n + 3, "rel"));
	query->targetList =
		lappend(query->targetList,
				makeTargetEntry((Expr *) makeVar(1, InvalidAttrNumber,
												 get_rel_type_id(transform->row->source),
												 -1, InvalidOid, 0),
								n + 4, "whole", false));
	return query;
}

/*
 * A subquery with the same columns.
 */
static char *
stand_in(const VerifyTable *table)
{
	Transform  *transform = table->transform;
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "(SELECT ");
	for (int i = 0; i < transform->ncolumns; i++)
	{
		TransformColumn *column = &transform->columns[i];

		appendStringInfo(&sql, "NULL::%s",
						 format_type_extended(column->type, column->typmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY));
		if (OidIsValid(column->collation) &&
			column->collation != DEFAULT_COLLATION_OID)
			appendStringInfo(&sql, " COLLATE %s",
							 generate_collation_name(column->collation));
		appendStringInfo(&sql, " AS c%d, ", i);
	}
	appendStringInfo(&sql, "NULL::pg_catalog.tid AS tid, "
					 "NULL::pg_catalog.xid AS xid, "
					 "NULL::pg_catalog.oid AS rel, NULL::%s AS whole) AS s",
					 format_type_extended(get_rel_type_id(transform->row->source),
										  -1, FORMAT_TYPE_FORCE_QUALIFY));
	return sql.data;
}

/* Put the transform's query where the stand-in is. */
static bool
replace_stand_in(Query *query, Query *subquery)
{
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (rte->rtekind != RTE_SUBQUERY)
			continue;
		if (strcmp(rte->alias->aliasname, "s") == 0)
		{
			rte->subquery = subquery;
			return true;
		}
		if (replace_stand_in(rte->subquery, subquery))
			return true;
	}
	return false;
}

/*
 * The query on the source.
 */
Query *
verify_source_query(const VerifyTable *table, const Datum *lower,
					const Datum *upper, const OuterQuery *outer)
{
	char	   *sql = psprintf("%s%s%s", outer->before, stand_in(table),
							   outer->source_after ? outer->source_after :
							   outer->after);
	List	   *statements = raw_parser(sql, RAW_PARSE_DEFAULT);
	Query	   *query = parse_analyze_fixedparams(linitial_node(RawStmt,
																statements),
												  sql, NULL, 0, NULL);

	if (!replace_stand_in(query, transform_subquery(table, lower, upper)))
		elog(ERROR, "there is no place for the transform");
	return query;
}

/* Keeps rows as text. */
typedef struct TextReceiver
{
	DestReceiver pub;
	MemoryContext context;
	PeerResult *result;
	int			allocated;
	FmgrInfo   *output;
	bool	   *is_row;
} TextReceiver;

static void
text_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	TextReceiver *receiver = (TextReceiver *) self;

	receiver->result->nfields = desc->natts;
	receiver->output = palloc_array(FmgrInfo, desc->natts);
	receiver->is_row = palloc_array(bool, desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		Oid			function;
		bool		is_varlena;

		getTypeOutputInfo(TupleDescAttr(desc, i)->atttypid, &function,
						  &is_varlena);
		fmgr_info(function, &receiver->output[i]);
		receiver->is_row[i] = type_is_rowtype(TupleDescAttr(desc, i)->atttypid);
	}
}

static bool
text_receive(TupleTableSlot *slot, DestReceiver *self)
{
	TextReceiver *receiver = (TextReceiver *) self;
	PeerResult *result = receiver->result;
	MemoryContext old = MemoryContextSwitchTo(receiver->context);
	char	  **row;

	slot_getallattrs(slot);
	if (result->ntuples == receiver->allocated)
	{
		receiver->allocated *= 2;
		result->values = repalloc_huge(result->values,
									   receiver->allocated * sizeof(char **));
	}
	row = palloc_array(char *, Max(result->nfields, 1));
	for (int i = 0; i < result->nfields; i++)
	{
		Datum		value = slot->tts_values[i];

		if (slot->tts_isnull[i])
			row[i] = NULL;
		else if (receiver->is_row[i])
			row[i] = (char *) PG_DETOAST_DATUM_COPY(value);
		else
			row[i] = OutputFunctionCall(&receiver->output[i], value);
	}
	result->values[result->ntuples++] = row;
	MemoryContextSwitchTo(old);
	return true;
}

static void
text_nothing(DestReceiver *self)
{
}

/*
 * Run a query on the source under the active snapshot, as the mapping's owner;
 * its rows as text, in CurrentMemoryContext; but a source's row as the datum
 * that it is.
 */
PeerResult *
verify_run_query(const VerifyTable *table, Query *query)
{
	TextReceiver receiver = {
		.pub = {text_receive, text_startup, text_nothing, text_nothing,
		DestNone},
		.context = CurrentMemoryContext,
		.result = palloc0_object(PeerResult),
		.allocated = 64
	};
	int			guc_level = NewGUCNestLevel();
	PlannedStmt *plan;
	QueryDesc  *desc;
	Oid			userid;
	int			sec_context;

	receiver.result->values = palloc_array(char **, receiver.allocated);
	transform_moment.commit_time = GetCurrentTimestamp();
	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(table->transform->row->owner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);
	plan = pg_plan_query(query, "pg_bluegreen verify", 0, NULL);
	desc = CreateQueryDesc(plan, "pg_bluegreen verify", GetActiveSnapshot(),
						   InvalidSnapshot, &receiver.pub, NULL, NULL, 0);
	ExecutorStart(desc, 0);
	executor_run(desc, ForwardScanDirection, 0);
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(userid, sec_context);
	return receiver.result;
}

/* ---- the target ---- */

static void
append_target_bound(StringInfo sql, const VerifyTable *table,
					const char *operator, const Datum *bound)
{
	Transform  *transform = table->transform;
	KeySpace   *space = table->copy.directory->space;

	if (bound == NULL)
		return;
	appendStringInfoString(sql, " AND ROW(");
	for (int i = 0; i < space->nkeys; i++)
	{
		int			column = target_of(transform, space->attnos[i]);

		appendStringInfo(sql, "%st.%s", i > 0 ? ", " : "",
						 quote_identifier(transform->columns[column].def->name));
	}
	appendStringInfo(sql, ") %s ROW(", operator);
	for (int i = 0; i < space->nkeys; i++)
		appendStringInfo(sql, "%s%s::%s", i > 0 ? ", " : "",
						 quote_literal_cstr(OutputFunctionCall(&space->output[i],
															   bound[i])),
						 transform->columns[target_of(transform,
													  space->attnos[i])].carrier);
	appendStringInfoChar(sql, ')');
}

/*
 * The query on the target.
 */
char *
verify_target_query(const VerifyTable *table, const Datum *lower,
					const Datum *upper, const OuterQuery *outer)
{
	Transform  *transform = table->transform;
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s(SELECT ", outer->before);
	for (int i = 0; i < transform->ncolumns; i++)
		appendStringInfo(&sql, "t.%s AS c%d, ",
						 quote_identifier(transform->columns[i].def->name), i);
	appendStringInfo(&sql, "t.ctid AS tid, t.xmin AS xid, t.tableoid AS rel "
					 "FROM %s AS t WHERE true", table->writer->name);
	append_target_bound(&sql, table, "<=", upper);
	append_target_bound(&sql, table, ">", lower);
	appendStringInfo(&sql, ") AS s%s", outer->after);
	return sql.data;
}

/* ---- looking at keys ---- */

/*
 * The values of one key column as the literal of an array.
 */
static char *
key_values(Suspect *suspects, int n, int column)
{
	StringInfoData array;

	initStringInfo(&array);
	appendStringInfoChar(&array, '{');
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(&array, i > 0 ? ",\"" : "\"");
		for (const char *p = suspects[i].key[column]; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&array, '\\');
			appendStringInfoChar(&array, *p);
		}
		appendStringInfoChar(&array, '"');
	}
	appendStringInfoChar(&array, '}');
	return quote_literal_cstr(array.data);
}

static OuterQuery
look_by_key(const VerifyTable *table, Suspect *suspects, int n, bool whole)
{
	Transform  *transform = table->transform;
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT k.n, "
					 "bluegreen.row_hash('bbb', s.rel, s.tid, s.xid) AS v, "
					 "bluegreen.row_hash('%s', %s) AS h, "
					 "bluegreen.key_text(%s)%s FROM ROWS FROM (",
					 table->formats, table->columns, table->keys,
					 whole ? ", s.whole" : "");
	for (int k = 0; k < transform->nkeys; k++)
		appendStringInfo(&sql, "%spg_catalog.unnest(%s::%s[])",
						 k > 0 ? ", " : "", key_values(suspects, n, k),
						 transform->columns[transform->keys[k]].carrier);
	appendStringInfoString(&sql, ") WITH ORDINALITY AS k (");
	for (int k = 0; k < transform->nkeys; k++)
		appendStringInfo(&sql, "k%d, ", k);
	appendStringInfoString(&sql, "n) JOIN ");
	return (OuterQuery) {
		.before = sql.data,
		.after = table->key_condition,
		.source_after = table->source_key_condition
	};
}

/*
 * The query that finds the rows of some keys: number of the key, version,
 * hash, key, and with whole (on the source) the source's row.  Without a key:
 * hash, number of rows, version of all of them.
 */
OuterQuery
verify_look_query(const VerifyTable *table, Suspect *suspects, int n,
				  bool whole)
{
	if (table->nkeys > 0)
		return look_by_key(table, suspects, n, whole);
	return (OuterQuery) {
		.before =
		psprintf("SELECT q.h, pg_catalog.count(*), "
				 "bluegreen.checksum(1, 0, 'bbb', q.rel, q.tid, q.xid) "
				 "FROM (SELECT bluegreen.row_hash('%s', %s) AS h, s.rel, "
				 "s.tid, s.xid FROM ", table->formats, table->columns),
		.after =
		psprintf(") AS q "
				 "WHERE q.h OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.uuid[]) "
				 "GROUP BY q.h", key_values(suspects, n, 0))
	};
}
