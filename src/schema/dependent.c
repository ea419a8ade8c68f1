/*-------------------------------------------------------------------------
 *
 * dependent.c
 *		What hangs on a column that gets a second one: what comes along, and
 *		what cannot.
 *
 * Indexes, checks and foreign keys of the old column are made for the new one
 * as well, under names of ours, and get theirs at the contract.  Their
 * definitions are not edited as text: expressions are taken from the catalogs
 * with the column's number replaced, and written down again.  Everything else
 * that depends on the column (views, policies, generated columns, foreign keys
 * of others ...) is a reason to refuse.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/attmap.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/reloptions.h"
#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_coerce.h"
#include "schema/shape.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

/* ---- what cannot come along ---- */

/* $1 table, $2 column or 0 for the whole table */
static const char *const dependents_sql =
	"SELECT what FROM ("
	"SELECT pg_describe_object(d.classid, d.objid, d.objsubid) "
	"FROM pg_depend d LEFT JOIN pg_rewrite r ON r.oid = d.objid "
	"AND d.classid = 'pg_rewrite'::regclass "
	"LEFT JOIN pg_class v ON v.oid = r.ev_class "
	"WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 "
	"AND ($2 = 0 OR d.refobjsubid = $2) AND d.deptype IN ('n', 'a') "
	"AND (d.classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass) "
	"OR $2 <> 0 AND d.classid IN ('pg_policy'::regclass, "
	"'pg_trigger'::regclass, 'pg_statistic_ext'::regclass, "
	"'pg_publication_rel'::regclass, 'pg_attrdef'::regclass)) "
	"AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.oid = d.objid "
	"AND d.classid = 'pg_trigger'::regclass "
	"AND t.tgfoid IN ('bluegreen.sync_columns()'::regprocedure, "
	"'bluegreen.derive_rows()'::regprocedure)) "
	"AND NOT EXISTS (SELECT FROM pg_attrdef a WHERE a.oid = d.objid "
	"AND d.classid = 'pg_attrdef'::regclass AND a.adnum = $2) "
	"AND (v.oid IS NULL OR v.oid <> $1 AND NOT EXISTS ("
	"SELECT FROM bluegreen.schema_change c JOIN pg_namespace n "
	"ON n.nspname = c.version_schema WHERE n.oid = v.relnamespace)) "
	"UNION ALL "
	"SELECT pg_describe_object('pg_constraint'::regclass, k.oid, 0) "
	"FROM pg_constraint k WHERE k.conparentid = 0 AND "
	"(k.contype = 'f' AND k.confrelid = $1 "
	"AND ($2 = 0 AND k.conrelid <> $1 OR $2 = ANY (k.confkey)) "
	"OR k.conrelid = $1 AND $2 = ANY (k.conkey) AND (k.contype = 'x' "
	"OR k.contype = 'u' AND (SELECT i.indisexclusion FROM pg_index i "
	"WHERE i.indexrelid = k.conindid))) "
	"UNION ALL "
	"SELECT 'replica identity index ' || i.indexrelid::regclass "
	"FROM pg_index i WHERE i.indrelid = $1 AND i.indisreplident "
	"AND $2 = ANY (i.indkey::int2[]) "
	"UNION ALL "
	"SELECT 'the partition key' FROM pg_partitioned_table p "
	"WHERE p.partrelid = $1 AND $2 = ANY (p.partattrs::int2[])"
	") all_of_them (what) ORDER BY what LIMIT 1";

/* What depends on a column, or with 0 on the table; NULL if nothing does. */
static char *
find_dependent(Oid relid, AttrNumber attnum)
{
	CatalogArgs args = {0};
	List	   *found;

	catalog_arg(&args, OIDOID, ObjectIdGetDatum(relid));
	catalog_arg(&args, INT2OID, Int16GetDatum(attnum));
	found = query_texts(dependents_sql, &args);
	return found != NIL ? linitial(found) : NULL;
}

/*
 * Error if something depends on the column, or with NULL on the table, or on
 * that of a partition, that is not ours to replace.
 */
void
require_no_dependents(const ShapeTable *table, const ShapeColumn *column,
					  const Operation *operation)
{
	char	   *what = NULL;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(table->relid, NoLock, NULL))
	{
		Oid			relid = lfirst_oid(lc);

		if (what == NULL && column == NULL)
			what = find_dependent(relid, 0);
		else if (what == NULL)
			what = find_dependent(relid, get_attnum(relid, column->old_name));
	}
	if (what == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
			 column ?
			 errmsg("operation %d (%s): column \"%s\" of table \"%s\" cannot be replaced or dropped because %s depends on it",
					operation->number, operation_names[operation->kind],
					column->old_name, table->old_name, what) :
			 errmsg("operation %d (%s): table \"%s\" cannot be dropped because %s depends on it",
					operation->number, operation_names[operation->kind],
					table->old_name, what),
			 errhint("Drop it before, and create it again after the contract.")));
}

/*
 * Error if a trigger could change a row after ours has seen it: both would not
 * agree any more.
 */
static void
require_last_trigger(Oid relid, const char *ours)
{
	Relation	relation = relation_open(relid, AccessShareLock);
	int			n = relation->trigdesc ? relation->trigdesc->numtriggers : 0;

	for (int i = 0; i < n; i++)
	{
		const Trigger *trigger = &relation->trigdesc->triggers[i];

		if (trigger->tgisinternal || !TRIGGER_FOR_BEFORE(trigger->tgtype) ||
			!TRIGGER_FOR_ROW(trigger->tgtype) ||
			strcmp(trigger->tgname, ours) <= 0)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("trigger \"%s\" of table \"%s\" would be fired after that of the change",
						trigger->tgname, RelationGetRelationName(relation)),
				 errdetail("Triggers are fired in the order of their names; that of the change, \"%s\", has to see what will be stored.",
						   ours),
				 errhint("Rename the trigger.")));
	}
	relation_close(relation, NoLock);
}

/*
 * Error if a partition of a table belongs to somebody else: its rows are
 * filled as the table's owner, who has no rights on it.
 */
void
require_same_owner(Oid partition, Oid table)
{
	Oid			owner = relation_owner(table);
	char	   *name = get_rel_name(partition);
	char	   *schema = get_namespace_name(get_rel_namespace(partition));

	if (relation_owner(partition) != owner)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("partition \"%s\" and table \"%s\" belong to different roles",
						name, get_rel_name(table)),
				 errhint("Use ALTER TABLE %s OWNER TO %s.",
						 quote_qualified_identifier(schema, name),
						 quote_identifier(GetUserNameFromId(owner, false)))));
}

/*
 * Error if rows cannot be kept in step by a trigger of this name, or not be
 * filled.
 */
void
require_dual_writes(const ShapeTable *table, const char *trigger)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(table->relid, AccessShareLock, NULL))
	{
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_FOREIGN_TABLE)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("partition \"%s\" of table \"%s\" is a foreign table, whose columns are those of another server",
							get_rel_name(lfirst_oid(lc)), table->old_name),
					 errhint("Change the table there by itself, and detach the partition until then.")));
		require_same_owner(lfirst_oid(lc), table->relid);
		require_last_trigger(lfirst_oid(lc), trigger);
		/* the backfill would not see all rows */
		if (check_enable_rls(lfirst_oid(lc), table->owner,
							 true) == RLS_ENABLED)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("row-level security of table \"%s\" is forced on its owner, who fills its rows",
							get_rel_name(lfirst_oid(lc))),
					 errhint("Use ALTER TABLE %s NO FORCE ROW LEVEL SECURITY until the change is expanded, or let a role with BYPASSRLS own the table.",
							 table->qualified)));
	}
}

/* ---- expressions with other columns ---- */

/* Old to new column numbers of a table's pairs; the others as they are. */
static AttrMap *
pair_map(const ShapeTable *table, Relation relation)
{
	int			natts = RelationGetNumberOfAttributes(relation);
	AttrMap    *map = make_attrmap(natts);
	ListCell   *lc;

	for (int i = 0; i < natts; i++)
		map->attnums[i] = i + 1;
	foreach(lc, table->columns)
	{
		ShapeColumn *column = lfirst(lc);
		AttrNumber	attnum;

		if (column->rule == NULL || column->rule->kind != RULE_PAIR)
			continue;
		attnum = get_attnum(table->relid, column->column);
		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\", which has the new version's values, does not exist",
							column->column, table->old_name)));
		map->attnums[column->attnum - 1] = attnum;
	}
	return map;
}

static bool
map_changes(const AttrMap *map, AttrNumber attnum)
{
	return attnum > 0 && map->attnums[attnum - 1] != attnum;
}

typedef struct MapContext
{
	Relation	relation;
	const AttrMap *map;
	bool		changed;
} MapContext;

/* The new column, as a value of the old one's type. */
static Node *
mapped_var(const Var *old, MapContext *context)
{
	AttrNumber	attnum = context->map->attnums[old->varattno - 1];
	Form_pg_attribute attribute =
		TupleDescAttr(RelationGetDescr(context->relation), attnum - 1);
	Var		   *var = makeVar(1, attnum, attribute->atttypid,
							  attribute->atttypmod, attribute->attcollation,
							  0);
	Node	   *node;

	context->changed = true;
	if (var->vartype == old->vartype)
		return (Node *) var;
	node = coerce_to_target_type(NULL, (Node *) var, var->vartype,
								 old->vartype, old->vartypmod,
								 COERCION_EXPLICIT, COERCE_EXPLICIT_CAST, -1);
	if (node == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_COERCE),
				 errmsg("expressions over column \"%s\" cannot be carried over, because type %s cannot be cast to %s",
						NameStr(attribute->attname),
						format_type_be(var->vartype),
						format_type_be(old->vartype)),
				 errhint("Drop the constraint or index before, and create it again after the contract.")));
	return node;
}

static Node *
map_node(Node *node, MapContext *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (map_changes(context->map, var->varattno))
			return mapped_var(var, context);
	}
	return expression_tree_mutator(node, map_node, context);
}

/* Does an expression read a column that has a second one? */
static bool
reads_pair(Relation relation, Node *node, const AttrMap *map)
{
	MapContext	context = {relation, map};

	(void) map_node(node, &context);
	return context.changed;
}

/* An expression over the new columns, as SQL. */
static char *
mapped_expression(Relation relation, Node *node, const AttrMap *map)
{
	MapContext	context = {relation, map};

	return deparse_expression(map_node(node, &context),
							  deparse_context_for(RelationGetRelationName(relation),
												  RelationGetRelid(relation)),
							  false, false);
}

/* ---- indexes ---- */

static bool
index_reads_pair(Relation relation, Relation index, const AttrMap *map)
{
	Form_pg_index form = index->rd_index;

	for (int i = 0; i < form->indnatts; i++)
	{
		if (map_changes(map, form->indkey.values[i]))
			return true;
	}
	return reads_pair(relation, (Node *) RelationGetIndexExpressions(index),
					  map) ||
		reads_pair(relation, (Node *) RelationGetIndexPredicate(index), map);
}

/* " COLLATE ... opclass DESC NULLS ..." of an index column */
static void
append_column_options(StringInfo sql, Relation index, int i, Oid type,
					  Oid collation)
{
	Oid			opclass;
	bool		isnull;
	Datum		classes = SysCacheGetAttr(INDEXRELID, index->rd_indextuple,
										  Anum_pg_index_indclass, &isnull);
	int16		option = index->rd_indoption[i];
	HeapTuple	tuple;
	Form_pg_opclass form;

	if (OidIsValid(index->rd_indcollation[i]) &&
		index->rd_indcollation[i] != collation)
		appendStringInfo(sql, " COLLATE %s",
						 generate_collation_name(index->rd_indcollation[i]));
	opclass = ((oidvector *) DatumGetPointer(classes))->values[i];
	if (GetDefaultOpClass(type, index->rd_rel->relam) != opclass)
	{
		tuple = SearchSysCache1(CLAOID, ObjectIdGetDatum(opclass));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for operator class %u", opclass);
		form = (Form_pg_opclass) GETSTRUCT(tuple);
		appendStringInfo(sql, " %s",
						 quote_qualified_identifier(get_namespace_name(form->opcnamespace),
													NameStr(form->opcname)));
		ReleaseSysCache(tuple);
	}
	if (!index->rd_indam->amcanorder)
		return;
	appendStringInfo(sql, " %s NULLS %s",
					 (option & INDOPTION_DESC) ? "DESC" : "ASC",
					 (option & INDOPTION_NULLS_FIRST) ? "FIRST" : "LAST");
}

static void
append_index_columns(StringInfo sql, Relation relation, Relation index,
					 const AttrMap *map)
{
	Form_pg_index form = index->rd_index;
	List	   *expressions = RelationGetIndexExpressions(index);
	ListCell   *next = list_head(expressions);

	for (int i = 0; i < form->indnatts; i++)
	{
		AttrNumber	attnum = form->indkey.values[i];

		if (i == form->indnkeyatts)
			appendStringInfoString(sql, ") INCLUDE (");
		else if (i > 0)
			appendStringInfoString(sql, ", ");
		if (attnum != 0)
		{
			Form_pg_attribute old = TupleDescAttr(RelationGetDescr(relation),
												  attnum - 1);
			Form_pg_attribute new = TupleDescAttr(RelationGetDescr(relation),
												  map->attnums[attnum - 1] - 1);

			appendStringInfoString(sql,
								   quote_identifier(NameStr(new->attname)));
			if (i < form->indnkeyatts)
				append_column_options(sql, index, i, old->atttypid,
									  old->attcollation);
		}
		else
		{
			Node	   *node = lfirst(next);

			next = lnext(expressions, next);
			appendStringInfo(sql, "(%s)",
							 mapped_expression(relation, node, map));
			append_column_options(sql, index, i, exprType(node),
								  exprCollation(node));
		}
	}
}

/* " WITH ... TABLESPACE ... WHERE ..." of an index */
static void
append_index_tail(StringInfo sql, Relation relation, Relation index,
				  const AttrMap *map)
{
	HeapTuple	tuple = SearchSysCache1(RELOID,
										ObjectIdGetDatum(RelationGetRelid(index)));
	List	   *predicate = RelationGetIndexPredicate(index);
	Datum		options;
	bool		isnull;

	if (index->rd_index->indisunique && index->rd_index->indnullsnotdistinct)
		appendStringInfoString(sql, " NULLS NOT DISTINCT");
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u",
			 RelationGetRelid(index));
	options = SysCacheGetAttr(RELOID, tuple, Anum_pg_class_reloptions,
							  &isnull);
	if (!isnull)
	{
		ListCell   *lc;

		foreach(lc, untransformRelOptions(options))
		{
			DefElem    *option = lfirst(lc);

			appendStringInfo(sql, "%s%s = %s",
							 foreach_current_index(lc) == 0 ? " WITH (" : ", ",
							 quote_identifier(option->defname),
							 quote_literal_cstr(defGetString(option)));
		}
		appendStringInfoChar(sql, ')');
	}
	ReleaseSysCache(tuple);
	if (OidIsValid(index->rd_rel->reltablespace))
		appendStringInfo(sql, " TABLESPACE %s",
						 quote_identifier(get_tablespace_name(index->rd_rel->reltablespace)));
	if (predicate != NIL)
		appendStringInfo(sql, " WHERE (%s)",
						 mapped_expression(relation,
										   (Node *) make_ands_explicit(predicate),
										   map));
}

static const char *
deferrable_sql(const HeapTupleData *tuple)
{
	Form_pg_constraint constraint = (Form_pg_constraint) GETSTRUCT(tuple);

	if (!constraint->condeferrable)
		return "";
	return constraint->condeferred ? " DEFERRABLE INITIALLY DEFERRED" :
		" DEFERRABLE";
}

/* Constraint of an index; its name, or NULL.  Sets what follows its kind. */
static char *
index_constraint(Oid index, const char **deferrable)
{
	Oid			oid = get_index_constraint(index);
	HeapTuple	tuple;
	char	   *name;

	if (!OidIsValid(oid))
		return NULL;
	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for constraint %u", oid);
	name = pstrdup(NameStr(((Form_pg_constraint) GETSTRUCT(tuple))->conname));
	*deferrable = deferrable_sql(tuple);
	ReleaseSysCache(tuple);
	return name;
}

static void
copy_index(Shape *shape, ShapeTable *table, Relation relation, Relation index,
		   const AttrMap *map)
{
	NewIndex   *copy = palloc0_object(NewIndex);
	const char *deferrable = "";
	char	   *constraint = index_constraint(RelationGetRelid(index),
											  &deferrable);
	StringInfoData sql;
	HeapTuple	am = SearchSysCache1(AMOID,
									 ObjectIdGetDatum(index->rd_rel->relam));

	if (!HeapTupleIsValid(am))
		elog(ERROR, "cache lookup failed for access method %u",
			 index->rd_rel->relam);
	initStringInfo(&sql);
	appendStringInfo(&sql, "USING %s (",
					 quote_identifier(NameStr(((Form_pg_am) GETSTRUCT(am))->amname)));
	ReleaseSysCache(am);
	append_index_columns(&sql, relation, index, map);
	appendStringInfoChar(&sql, ')');
	append_index_tail(&sql, relation, index, map);
	copy->name = shape_hidden_name(shape, RelationGetRelid(index),
								   RelationGetRelationName(index));
	copy->definition = sql.data;
	copy->unique = index->rd_index->indisunique;
	copy->final_name = constraint ? constraint :
		pstrdup(RelationGetRelationName(index));
	copy->constraint = constraint ? "UNIQUE" : NULL;
	copy->deferrable = pstrdup(deferrable);
	if (constraint != NULL && table->partitioned)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("unique constraint \"%s\" of a partitioned table cannot be carried over to another column",
						constraint)));
	table->indexes = lappend(table->indexes, copy);
}

static void
copy_indexes(Shape *shape, ShapeTable *table, Relation relation,
			 const AttrMap *map)
{
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(relation))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Oid			constraint = get_index_constraint(lfirst_oid(lc));

		if (index->rd_index->indisvalid &&
			index_reads_pair(relation, index, map) &&
			!list_member_oid(table->dropped_oids, constraint) &&
			!list_member_oid(shape->dropped_index_oids, lfirst_oid(lc)))
			copy_index(shape, table, relation, index, map);
		index_close(index, NoLock);
	}
}

/* ---- constraints ---- */

static char *
mapped_names(const ShapeTable *table, ArrayType *keys, const AttrMap *map,
			 Oid relid)
{
	int16	   *attnums = (int16 *) ARR_DATA_PTR(keys);
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < ARR_DIMS(keys)[0]; i++)
	{
		AttrNumber	attnum = map ? map->attnums[attnums[i] - 1] : attnums[i];

		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(get_attname(relid, attnum, false)));
	}
	return sql.data;
}

static const char *
action_sql(char action)
{
	switch (action)
	{
		case FKCONSTR_ACTION_RESTRICT:
			return "RESTRICT";
		case FKCONSTR_ACTION_CASCADE:
			return "CASCADE";
		case FKCONSTR_ACTION_SETNULL:
			return "SET NULL";
		case FKCONSTR_ACTION_SETDEFAULT:
			return "SET DEFAULT";
		default:
			return "NO ACTION";
	}
}

/* FOREIGN KEY ... of a constraint, over the new columns */
static char *
foreign_key_definition(const ShapeTable *table, Relation catalog,
					   HeapTuple tuple, const AttrMap *map)
{
	Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);
	bool		isnull;
	ArrayType  *keys =
		DatumGetArrayTypeP(heap_getattr(tuple, Anum_pg_constraint_conkey,
										RelationGetDescr(catalog), &isnull));
	ArrayType  *targets =
		DatumGetArrayTypeP(heap_getattr(tuple, Anum_pg_constraint_confkey,
										RelationGetDescr(catalog), &isnull));
	Datum		set = heap_getattr(tuple, Anum_pg_constraint_confdelsetcols,
								   RelationGetDescr(catalog), &isnull);
	char	   *set_columns = isnull ? "" :
		psprintf(" (%s)", mapped_names(table, DatumGetArrayTypeP(set), map,
									   table->relid));

	return psprintf("FOREIGN KEY (%s) REFERENCES %s (%s)%s ON UPDATE %s ON DELETE %s%s%s",
					mapped_names(table, keys, map, table->relid),
					quote_qualified_identifier(get_namespace_name(get_rel_namespace(form->confrelid)),
											   get_rel_name(form->confrelid)),
					mapped_names(table, targets, NULL, form->confrelid),
					form->confmatchtype == FKCONSTR_MATCH_FULL ?
					" MATCH FULL" : "",
					action_sql(form->confupdtype),
					action_sql(form->confdeltype), set_columns,
					deferrable_sql(tuple));
}

static char *
check_definition(Relation relation, Relation catalog, HeapTuple tuple,
				 const AttrMap *map)
{
	bool		isnull;
	Datum		expression = heap_getattr(tuple, Anum_pg_constraint_conbin,
										  RelationGetDescr(catalog), &isnull);
	Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);

	return psprintf("CHECK (%s)%s",
					mapped_expression(relation,
									  stringToNode(TextDatumGetCString(expression)),
									  map),
					form->connoinherit ? " NO INHERIT" : "");
}

static bool
constraint_reads_pair(Relation catalog, HeapTuple tuple, const AttrMap *map)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, Anum_pg_constraint_conkey,
									 RelationGetDescr(catalog), &isnull);
	ArrayType  *keys;
	int16	   *attnums;

	if (isnull)
		return false;
	keys = DatumGetArrayTypeP(value);
	attnums = (int16 *) ARR_DATA_PTR(keys);
	for (int i = 0; i < ARR_DIMS(keys)[0]; i++)
	{
		if (map_changes(map, attnums[i]))
			return true;
	}
	return false;
}

static NewConstraint *
copy_constraint(const ShapeTable *table, Relation relation, Relation catalog,
				HeapTuple tuple, const AttrMap *map)
{
	Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);
	NewConstraint *copy = palloc0_object(NewConstraint);

	copy->final_name = pstrdup(NameStr(form->conname));
	copy->not_valid = !form->convalidated;
	if (form->contype == CONSTRAINT_FOREIGN)
	{
		copy->definition = foreign_key_definition(table, catalog, tuple, map);
		copy->locks =
			quote_qualified_identifier(get_namespace_name(get_rel_namespace(form->confrelid)),
									   get_rel_name(form->confrelid));
	}
	else
		copy->definition = check_definition(relation, catalog, tuple, map);
	if (!constraint_is_enforced(form))
		copy->definition = psprintf("%s NOT ENFORCED", copy->definition);
	return copy;
}

static void
copy_constraints(Shape *shape, ShapeTable *table, Relation relation,
				 const AttrMap *map)
{
	Relation	catalog = table_open(ConstraintRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_constraint_conrelid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(table->relid));
	scan = systable_beginscan(catalog, ConstraintRelidTypidNameIndexId, true,
							  NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);

		if ((form->contype == CONSTRAINT_CHECK ||
			 form->contype == CONSTRAINT_FOREIGN) &&
			!OidIsValid(form->conparentid) &&
			!list_member_oid(table->dropped_oids, form->oid) &&
			constraint_reads_pair(catalog, tuple, map))
		{
			NewConstraint *copy = copy_constraint(table, relation, catalog,
												  tuple, map);

			copy->name = shape_hidden_name(shape, form->oid,
										   copy->final_name);
			table->constraints = lappend(table->constraints, copy);
		}
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/*
 * Note copies of what the old columns of pairs have, which all must exist.
 */
void
dependents_copy(Shape *shape, ShapeTable *table)
{
	Relation	relation = relation_open(table->relid, AccessShareLock);
	AttrMap    *map = pair_map(table, relation);

	copy_constraints(shape, table, relation, map);
	copy_indexes(shape, table, relation, map);
	relation_close(relation, NoLock);
}
