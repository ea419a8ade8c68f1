/*-------------------------------------------------------------------------
 *
 * guard_check.c
 *		On a target: what a session that applies may have done as the owner of
 *		a table.
 *
 * Two sides are to be kept safe from each other.  The session's user from the
 * owner: no code of his may run before we have become him, or filter or
 * redirect what is written.  So parameters must be of types whose input runs
 * no SQL, and the table must be a table, without rules that fire, without
 * row-level security that holds for its owner, its partitions his own.
 *
 * And the owner from the session's user, unless that one may become the owner
 * anyway: what runs as the owner may read and write only tables that the
 * user has privileges on, and call nothing that the user could have made or
 * that does more than compute, nor hold a value of a type that the user could
 * have made: casts of his would come with it.  Statements of streams need
 * columns, parameters, unnest(), casts to the columns' types and the equality
 * operators of unique indexes, and to find rows without a key numbers of rows,
 * hashes and comparisons of records; that and its like is let through, and two
 * functions of the extension that keep or look up a row for the session.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "core/guard.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteDefine.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#define SCHEMA "bluegreen"

/* What a marked query is allowed. */
typedef struct Shape
{
	Oid			owner;			/* as whom it will run */
	List	   *relations;		/* his tables in it */
	List	   *types;			/* of their columns */
	bool		is_member;		/* the user may become the owner anyway */
	bool		is_cast;		/* the function looked at is one, or an
								 * operator's */
} Shape;

/* ---- relations ---- */

static Form_pg_class
relation_form(Oid relation, HeapTuple *tuple)
{
	*tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	if (!HeapTupleIsValid(*tuple))
		elog(ERROR, "cache lookup failed for relation %u", relation);
	return (Form_pg_class) GETSTRUCT(*tuple);
}

/*
 * Does a relation belong to somebody else, and is it none of the system's or
 * the extension's?
 */
bool
guard_is_foreign(Oid relation)
{
	HeapTuple	tuple;
	Form_pg_class form = relation_form(relation, &tuple);
	bool		result = relation >= FirstNormalObjectId &&
		form->relowner != GetUserId() &&
		form->relnamespace != get_namespace_oid(SCHEMA, true);

	ReleaseSysCache(tuple);
	return result;
}

static char *
qualified_name(Relation relation)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
									  RelationGetRelationName(relation));
}

static void
refuse_relation(Relation relation, const char *why, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot apply changes to table \"%s\"",
					qualified_name(relation)),
			 errdetail_internal("%s", why),
			 hint ? errhint("%s", hint) : 0));
}

/* Rules would change what a statement does, or do more. */
static bool
has_firing_rule(Relation relation)
{
	char		mine = SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA ?
		RULE_FIRES_ON_REPLICA : RULE_FIRES_ON_ORIGIN;

	if (relation->rd_rules == NULL)
		return false;
	for (int i = 0; i < relation->rd_rules->numLocks; i++)
	{
		char		enabled = relation->rd_rules->rules[i]->enabled;

		if (enabled == RULE_FIRES_ALWAYS || enabled == mine)
			return true;
	}
	return false;
}

/* Partitions and children of other owners have code of their own. */
static bool
has_other_owners(Relation relation)
{
	ListCell   *lc;

	if (!relation->rd_rel->relhassubclass)
		return false;
	foreach(lc, find_all_inheritors(RelationGetRelid(relation),
									AccessShareLock, NULL))
	{
		HeapTuple	tuple;
		Oid			owner = relation_form(lfirst_oid(lc), &tuple)->relowner;

		ReleaseSysCache(tuple);
		if (owner != relation->rd_rel->relowner)
			return true;
	}
	return false;
}

/*
 * Error: the user lacks a privilege on a table.
 */
void
guard_denied(Oid relation)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)),
												  get_rel_name(relation));

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for table %s", name),
			 errhint("On the target, use SELECT bluegreen.grant_apply(%s, %s);",
					 quote_literal_cstr(quote_identifier(GetUserNameFromId(GetUserId(),
																		   false))),
					 quote_literal_cstr(name))));
}

/*
 * Has the user all of these privileges on a table, as a whole?
 */
bool
guard_is_granted(Oid relation, AclMode needed)
{
	return pg_class_aclmask(relation, GetUserId(), needed,
							ACLMASK_ALL) == needed;
}

/*
 * A table of somebody else to which changes are to be applied: returns its
 * owner.  Errors: a relation that cannot be written to in its owner's name.
 */
Oid
guard_check_relation(Oid relation)
{
	Relation	rel = table_open(relation, AccessShareLock);
	Oid			owner = rel->rd_rel->relowner;

	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		refuse_relation(rel, "It is not a table.", NULL);
	if (has_firing_rule(rel))
		refuse_relation(rel, "It has a rule that fires in sessions of streams.",
						"Drop the rule, or use ALTER TABLE ... DISABLE RULE.");
	if (check_enable_rls(relation, owner, true) == RLS_ENABLED)
		refuse_relation(rel, "Row-level security is forced for its owner, as whom changes are applied.",
						"Use ALTER TABLE ... NO FORCE ROW LEVEL SECURITY.");
	if (has_other_owners(rel))
		refuse_relation(rel, "One of its partitions or children belongs to another role.",
						"Use ALTER TABLE ... OWNER TO.");
	table_close(rel, NoLock);
	return owner;
}

/*
 * A table of the user's own in a statement that runs as another: data only.
 */
static void
check_own_relation(Oid relation)
{
	HeapTuple	tuple;
	Form_pg_class form = relation_form(relation, &tuple);

	if (form->relkind != RELKIND_RELATION ||
		form->relpersistence != RELPERSISTENCE_TEMP ||
		form->relhasindex || form->relchecks > 0 || form->relhasrules ||
		form->relhastriggers || form->relhassubclass || form->relrowsecurity)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" cannot be used with tables of another owner in a session that applies",
						NameStr(form->relname))));
	ReleaseSysCache(tuple);
}

/* ---- parameters ---- */

/*
 * May the input function of a type run a domain's CHECK?
 */
static bool
input_runs_sql(Oid type)
{
	Oid			part;

	if (type < FirstUnpinnedObjectId)
		return false;
	if (OidIsValid(part = get_element_type(type)) ||
		OidIsValid(part = get_range_subtype(type)) ||
		OidIsValid(part = get_multirange_range(type)))
		return input_runs_sql(part);
	return get_typtype(type) == TYPTYPE_DOMAIN ||
		get_typtype(type) == TYPTYPE_COMPOSITE;
}

static void
check_param(const Param *param)
{
	if (!input_runs_sql(param->paramtype))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a parameter of type %s cannot be used in a session that applies",
					format_type_be(param->paramtype)),
			 errdetail("Its values may be checked by code of the type's owner.")));
}

/* ---- shape ---- */

static bool
is_trusted_owner(Oid role, const Shape *shape)
{
	return role == shape->owner || superuser_arg(role);
}

/* Collect the types of the columns of his tables. */
static void
collect_types(Shape *shape)
{
	ListCell   *lc;

	foreach(lc, shape->relations)
	{
		Relation	rel = table_open(lfirst_oid(lc), AccessShareLock);
		TupleDesc	desc = RelationGetDescr(rel);

		shape->types = lappend_oid(shape->types, rel->rd_rel->reltype);
		for (int i = 0; i < desc->natts; i++)
			if (!TupleDescAttr(desc, i)->attisdropped)
				shape->types =
					list_append_unique_oid(shape->types,
										   TupleDescAttr(desc, i)->atttypid);
		table_close(rel, NoLock);
	}
}

/*
 * A type that the user cannot have made for this: the system's, a column's,
 * or one of the owner or a superuser.
 */
static bool
type_is_allowed(Oid type, const Shape *shape)
{
	HeapTuple	tuple;
	Oid			owner;

	if (OidIsValid(get_element_type(type)))
		type = get_element_type(type);
	if (type < FirstUnpinnedObjectId || list_member_oid(shape->types, type) ||
		list_member_oid(shape->types, get_array_type(type)))
		return true;
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	owner = ((Form_pg_type) GETSTRUCT(tuple))->typowner;
	ReleaseSysCache(tuple);
	return is_trusted_owner(owner, shape);
}

/*
 * A function that only computes, or converts: of the system, or of the owner
 * or a superuser.  Callback of check_functions_in_node(); true stops.
 */
static bool
function_is_refused(Oid function, void *context)
{
	const Shape *shape = context;
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	bool		allowed;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	allowed = form->provolatile == PROVOLATILE_IMMUTABLE ||
		(shape->is_cast && form->provolatile == PROVOLATILE_STABLE);
	if (function >= FirstUnpinnedObjectId)
		allowed &= is_trusted_owner(form->proowner, shape);
	if (function == F_TO_JSONB ||
		(form->pronamespace == get_namespace_oid(SCHEMA, true) &&
		 (strcmp(NameStr(form->proname), "note_row") == 0 ||
		  strcmp(NameStr(form->proname), "weigh_change") == 0)))
		allowed = true;
	ReleaseSysCache(tuple);
	if (!allowed)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("function %s cannot be called as role \"%s\" in a session that applies",
						format_procedure(function),
						GetUserNameFromId(shape->owner, false))));
	return false;
}

/* Is the node's function one that converts or compares? */
static bool
is_cast_or_operator(Node *node)
{
	if (IsA(node, FuncExpr))
		return ((FuncExpr *) node)->funcformat == COERCE_EXPLICIT_CAST ||
			((FuncExpr *) node)->funcformat == COERCE_IMPLICIT_CAST;
	return !IsA(node, Aggref) && !IsA(node, WindowFunc);
}

static bool
is_expression_with_type(Node *node)
{
	switch (nodeTag(node))
	{
		case T_Var:
		case T_Const:
		case T_Param:
		case T_FuncExpr:
		case T_OpExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_ConvertRowtypeExpr:
		case T_RowExpr:
		case T_ArrayExpr:
		case T_CoerceToDomain:
			return true;
		default:
			return false;
	}
}

static bool check_shape(Node *node, Shape *shape);

/*
 * Has a relation rows that only the user has given a type, which no expression
 * shows if they are taken as a whole?  Then code of his could come with it
 * (to_jsonb() calls casts).
 */
static bool
has_hidden_types(const RangeTblEntry *rte)
{
	ListCell   *lc;

	if (rte->rtekind == RTE_NAMEDTUPLESTORE)
		return true;
	if (rte->rtekind == RTE_FUNCTION)
		foreach(lc, rte->functions)
			if (lfirst_node(RangeTblFunction, lc)->funccoltypes != NIL)
				return true;
	return false;
}

static void
check_query(Query *query, Shape *shape)
{
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (rte->rtekind == RTE_RELATION &&
			!list_member_oid(shape->relations, rte->relid))
			check_own_relation(rte->relid);
		if (rte->tablesample != NULL || rte->rtekind == RTE_TABLEFUNC)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("TABLESAMPLE and table functions cannot be used in a session that applies")));
		if (has_hidden_types(rte))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("transition tables and column definition lists cannot be used in a session that applies")));
	}
	if (query->resultRelation > 0 &&
		!list_member_oid(shape->relations,
						 rt_fetch(query->resultRelation,
								  query->rtable)->relid))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("rows of another owner's table cannot be written elsewhere in a session that applies")));
}

static bool
check_shape(Node *node, Shape *shape)
{
	if (node == NULL)
		return false;
	if (IsA(node, Param))
		check_param((Param *) node);
	if (IsA(node, Query))
	{
		if (!shape->is_member)
			check_query((Query *) node, shape);
		return query_tree_walker((Query *) node, check_shape, shape, 0);
	}
	if (!shape->is_member)
	{
		shape->is_cast = is_cast_or_operator(node);
		(void) check_functions_in_node(node, function_is_refused, shape);
		if (is_expression_with_type(node) &&
			!type_is_allowed(exprType(node), shape))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("type %s cannot be used as role \"%s\" in a session that applies",
							format_type_be(exprType(node)),
							GetUserNameFromId(shape->owner, false))));
	}
	return expression_tree_walker(node, check_shape, shape);
}

/*
 * Error unless a query over these tables may run as their owner.
 */
void
guard_check_shape(Query *query, List *relations, Oid owner)
{
	Shape		shape = {.owner = owner,.relations = relations};

	shape.is_member = role_can_set(GetUserId(), owner);
	if (!shape.is_member)
		collect_types(&shape);
	(void) check_shape((Node *) query, &shape);
}
