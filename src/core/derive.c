/*-------------------------------------------------------------------------
 *
 * derive.c
 *		The mapping back that follows from a forward mapping.
 *
 * Where a forward mapping only renames, reorders or casts without loss, each
 * row of the target tells what the row of the source was.  A column of the
 * source is had back from a target column that is that column alone, in a type
 * from which every value either comes back as it was or is refused (an integer
 * that is out of range, a text that is too long).  A column that the mapping
 * does not read stays as it is on blue, or gets its default there.  A column
 * that it reads only in other expressions is lost: then nothing is derived, and
 * the preflight names it.
 *
 * Neither is anything derived where rows go more than one way (a filter, merge,
 * patch, a lookup, several mappings of one table): which row comes back from
 * where is for a human to say.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "core/definition.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_type.h"
#include "stream/transform.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* ---- types ---- */

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

static bool
is_text(Oid type)
{
	return type == TEXTOID || type == VARCHAROID;
}

/* numeric(p,s): the scale, as numeric.c packs it */
static int
scale_of(int32 typmod)
{
	return (typmod - VARHDRSZ) & 0x7ff;
}

/*
 * Types of one base type: does each value of the wider come back as it is from
 * there, or is it refused?  Those that round do neither.
 */
static bool
length_reverses(Oid type, int32 here, int32 there)
{
	if (here == there || here < 0)
		return true;
	switch (type)
	{
		case BPCHAROID:
		case VARBITOID:
			return true;
		case NUMERICOID:
			return there >= 0 && scale_of(here) == scale_of(there);
		default:
			return false;
	}
}

/*
 * Is a column of the source had back from a target column of this type, which
 * is that column alone?
 */
static bool
type_reverses(Form_pg_attribute here, const MappingColumn *there)
{
	int32		typmod = here->atttypmod;
	Oid			type;
	Oid			other;
	int32		other_typmod;

	if (strcmp(format_type_with_typemod(here->atttypid, typmod),
			   there->type) == 0)
		return true;
	if (there->wire == WIRE_TEXT)
		return false;			/* maybe a type that is not known here */
	parse_type_string(there->type, &other, &other_typmod);
	type = getBaseTypeAndTypmod(here->atttypid, &typmod);
	other = getBaseTypeAndTypmod(other, &other_typmod);
	if ((is_integer(type) && is_integer(other)) ||
		(is_text(type) && is_text(other)))
		return true;
	return type == other && length_reverses(type, typmod, other_typmod);
}

/* ---- expressions ---- */

/*
 * The expression below a cast that loses nothing, as far as the types say; or
 * NULL.  An assignment refuses what does not fit, an explicit cast to a length
 * would cut it off.
 */
static Node *
below_cast(Node *expr)
{
	FuncExpr   *cast = (FuncExpr *) expr;
	Node	   *arg;

	if (IsA(expr, RelabelType))
		return (Node *) ((RelabelType *) expr)->arg;
	if (IsA(expr, CoerceToDomain))
		return (Node *) ((CoerceToDomain *) expr)->arg;
	if (!IsA(expr, FuncExpr))
		return NULL;
	arg = linitial(cast->args);
	if (cast->funcformat == COERCE_IMPLICIT_CAST)
		return arg;
	if (cast->funcformat == COERCE_EXPLICIT_CAST &&
		is_integer(exprType(arg)) && is_integer(cast->funcresulttype))
		return arg;
	return NULL;
}

/*
 * The number of the source's column that the expression is, or 0.
 */
static AttrNumber
column_alone(Node *expr)
{
	Node	   *below;

	while ((below = below_cast(expr)) != NULL)
		expr = below;
	return IsA(expr, Var) ? Max(((Var *) expr)->varattno, 0) : 0;
}

/* ---- one mapping ---- */

/* What is found out about one. */
typedef struct Derivation
{
	DerivedMapping *result;
	Transform  *transform;
	TupleDesc	desc;			/* of the source, with its constraints */
	int		   *from;			/* by the source's column: its place among the
								 * target's columns, from 1; 0 = none */
	AttrNumber *alone;			/* by the target's column, see column_alone() */
} Derivation;

static void
find_columns(Derivation *d)
{
	Transform  *transform = d->transform;
	TupleDesc	desc = d->desc;
	ListCell   *lc;
	int			i = 0;

	foreach(lc, transform->query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		MappingColumn *column = &transform->row->columns[i];
		AttrNumber	attno = column_alone((Node *) tle->expr);
		Form_pg_attribute att;

		i++;
		if (attno == 0)
			continue;
		att = TupleDescAttr(desc, attno - 1);
		if (!type_reverses(att, column))
			continue;
		d->alone[i - 1] = attno;
		if (d->from[attno - 1] == 0)
			d->from[attno - 1] = i;
	}
}

/*
 * Columns of the source that rows from green would lack, "a, b"; NULL if there
 * are none.
 */
static char *
lost_columns(const Derivation *d)
{
	TupleDesc	desc = d->desc;
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attgenerated || d->from[i] != 0)
			continue;
		if (!bms_is_member(i + 1, d->transform->reads) &&
			(!att->attnotnull || att->atthasdef || att->attidentity))
			continue;
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
						 quote_identifier(NameStr(att->attname)));
	}
	return buf.len > 0 ? buf.data : NULL;
}

/*
 * The policy of the mapping back: who wins in a window is the same there; a
 * column that decides has its name here.
 */
char *
derive_policy(const Transform *transform)
{
	MappingRow *row = transform->row;
	char	   *column = strchr(row->conflict, ':');

	for (int i = 0; column != NULL && i < transform->ncolumns; i++)
		if (strcmp(transform->columns[i].def->name, column + 1) == 0 &&
			transform->columns[i].source_attno > 0)
			return psprintf("newer_column:%s",
							get_attname(row->source,
										transform->columns[i].source_attno,
										false));
	return row->conflict;
}

/*
 * The source's columns that are the target's key; false if not all are had.
 */
static bool
find_key(Derivation *d)
{
	Transform  *transform = d->transform;

	for (int i = 0; i < transform->ncolumns; i++)
	{
		if (!transform->row->columns[i].is_key)
			continue;
		if (d->alone[i] == 0)
			return false;
		d->result->key =
			lappend(d->result->key,
					pstrdup(NameStr(TupleDescAttr(d->desc,
												  d->alone[i] - 1)->attname)));
	}
	return true;
}

static void
write_transform(Derivation *d)
{
	TupleDesc	desc = d->desc;
	StringInfoData sql;
	StringInfoData types;

	initStringInfo(&sql);
	initStringInfo(&types);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const MappingColumn *column;
		char	   *type;

		if (att->attisdropped || att->attgenerated || d->from[i] == 0)
			continue;
		column = &d->transform->row->columns[d->from[i] - 1];
		appendStringInfo(&sql, "%s%s AS %s", sql.len > 0 ? ", " : "SELECT ",
						 quote_identifier(column->name),
						 quote_identifier(NameStr(att->attname)));
		type = format_type_with_typemod(att->atttypid, att->atttypmod);
		d->result->types = lappend(d->result->types, type);
		appendStringInfo(&types, "; %s to %s", column->type, type);
	}
	appendStringInfo(&sql, " FROM %s", d->result->source);
	d->result->transform = sql.data;
	d->result->conflict = derive_policy(d->transform);
	if (strcmp(d->result->conflict, "error") != 0)
		appendStringInfo(&types, "; conflict %s", d->result->conflict);
	d->result->basis = psprintf("%s; to %s; key %s%s", sql.data,
								d->result->target,
								catalog_text_array(d->result->key),
								types.data);
}

/*
 * Is there another mapping of the same source or target?
 */
static bool
shares_table(const MappingRow *row, List *rows)
{
	ListCell   *lc;

	foreach(lc, rows)
	{
		const MappingRow *other = lfirst(lc);

		if (other != row && other->source == row->source)
			return true;
	}
	return row->target_shared;
}

/*
 * The columns of the source that the transform reads, "a, b".
 */
static char *
columns_read(const Transform *transform)
{
	StringInfoData buf;
	int			attno = -1;

	initStringInfo(&buf);
	while ((attno = bms_next_member(transform->reads, attno)) >= 0)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
						 quote_identifier(get_attname(transform->row->source,
													  attno, false)));
	return buf.data;
}

/*
 * Why nothing can be derived from a mapping, whatever its columns; or NULL.
 */
static char *
find_obstacle(const MappingRow *row, List *rows, const Transform *transform)
{
	if (row->lookup != NULL)
		return psprintf("the mapping has a lookup, and only green knows what it makes of column %s",
						columns_read(transform));
	if (row->on_write != ON_WRITE_MIRROR)
		return psprintf("the mapping has on_write '%s'",
						on_write_names[row->on_write]);
	if (row->on_delete != ON_DELETE_DELETE)
		return psprintf("the mapping has on_delete '%s'",
						on_delete_names[row->on_delete]);
	if (transform->filter != NULL)
		return "the mapping has a filter";
	if (shares_table(row, rows))
		return "there are several mappings of one table";
	return NULL;
}

static DerivedMapping *
derive(MappingRow *row, List *rows)
{
	DerivedMapping *result = palloc0_object(DerivedMapping);
	Derivation	d = {.result = result};
	Relation	source;
	char	   *lost;

	result->forward = row;
	result->source = mapping_target_name(row);
	result->target =
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(row->source)),
								   get_rel_name(row->source));
	d.transform = transform_compile(row);
	result->problem = find_obstacle(row, rows, d.transform);
	if (result->problem != NULL)
		return result;
	source = table_open(row->source, AccessShareLock);
	d.desc = CreateTupleDescCopyConstr(RelationGetDescr(source));
	table_close(source, NoLock);
	d.from = palloc0_array(int, Max(d.desc->natts, 1));
	d.alone = palloc0_array(AttrNumber, Max(d.transform->ncolumns, 1));
	find_columns(&d);
	lost = lost_columns(&d);
	if (lost != NULL)
		result->problem = psprintf("green does not tell column %s", lost);
	else if (!find_key(&d))
		result->problem = "the key is no column of blue alone";
	else
		write_transform(&d);
	return result;
}

/*
 * What the mappings back would be: a DerivedMapping for each forward mapping,
 * with a problem if nothing follows from it.  Needs a transaction; reads the
 * mappings and this side's catalogs.
 */
List *
derive_mappings(const Deployment *deployment)
{
	List	   *rows = mappings_load(deployment->id, 'f');
	List	   *result = NIL;
	ListCell   *lc;
	int			guc_level = search_path_pin();

	foreach(lc, rows)
	{
		result = lappend(result, derive(lfirst(lc), rows));
	}
	search_path_restore(guc_level);
	return result;
}
