/*-------------------------------------------------------------------------
 *
 * shape.h
 *		What the tables of a change are for the old and the new version.
 *
 * A shape is built from the document and the catalogs, anew for each phase
 * that is planned.  It lives in the memory context in which it was built.  All
 * names in it are as they are in the catalogs, not quoted; what is SQL says so.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_SHAPE_H
#define BG_SHAPE_H

#include "schema/change.h"
#include "schema/json.h"

typedef enum RuleKind
{
	RULE_PAIR,					/* one thing in an old and a new column */
	RULE_ADD,					/* only the new version has it */
	RULE_DROP					/* only the old version has it */
} RuleKind;

extern const char *const rule_kind_names[];

/* A name that an expression may use, and the column that it means. */
typedef struct ColumnRead
{
	char	   *name;
	char	   *column;
	struct ShapeColumn *source; /* while a shape is built */
} ColumnRead;

/* How columns follow each other (dualwrite.c). */
typedef struct Rule
{
	RuleKind	kind;
	char	   *old_column;		/* NULL for RULE_ADD */
	char	   *new_column;		/* NULL for RULE_DROP */
	char	   *up;				/* SQL; NULL if there is none */
	List	   *up_reads;		/* of ColumnRead * */
	char	   *down;
	List	   *down_reads;
	char	   *mark;			/* column that says why "down" failed, or NULL */
} Rule;

/* A column; old_name or name is NULL for a version that has it not. */
typedef struct ShapeColumn
{
	char	   *old_name;
	char	   *name;
	char	   *column;			/* what the new version shows */
	AttrNumber	attnum;			/* of the old column, 0 if it is added */
	Oid			type;			/* of what the new version shows */
	int32		typmod;
	Oid			old_type;
	int32		old_typmod;
	bool		not_null;		/* of the old column */
	bool		is_key;			/* of the primary key */
	bool		is_generated;	/* or an identity */
	char	   *default_sql;	/* of the new version; NULL = none */
	bool		default_differs;	/* from that of the column shown */
	bool		set_not_null;	/* at the contract */
	bool		drop_not_null;	/* at the contract */
	bool		is_used;		/* by a constraint or index of this change */
	Rule	   *rule;			/* RULE_PAIR, RULE_ADD or RULE_DROP, or NULL */
} ShapeColumn;

/* A constraint that is added under its name, not valid, and validated. */
typedef struct NewConstraint
{
	char	   *name;
	char	   *definition;		/* SQL: CHECK (...), FOREIGN KEY ... */
	char	   *locks;			/* another table, qualified SQL, or NULL */
	char	   *final_name;		/* at the contract; NULL = drop it then */
	bool		not_valid;		/* for good, as what it is the copy of */
} NewConstraint;

/* An index that is built concurrently. */
typedef struct NewIndex
{
	char	   *name;
	char	   *definition;		/* SQL after the table: USING ... */
	bool		unique;
	char	   *hidden;			/* name of ours while it is built, or NULL */
	char	   *final_name;		/* at the contract, if it is another one */
	char	   *constraint;		/* SQL: UNIQUE, PRIMARY KEY; or NULL */
	char	   *deferrable;		/* SQL after the constraint, or NULL */
} NewIndex;

typedef struct ShapeTable
{
	Oid			relid;
	char	   *old_name;
	char	   *name;			/* NULL: the new version has it not */
	char	   *qualified;		/* SQL, by its old name */
	const char *path;			/* of the change */
	Oid			owner;
	bool		partitioned;
	bool		created;		/* by this change */
	bool		planned;		/* before: what it adds may be there */
	List	   *columns;		/* of ShapeColumn * */
	List	   *rules;			/* of Rule * */
	List	   *expand;			/* SQL */
	List	   *expand_undo;	/* SQL: what catalogs do not tell */
	List	   *constraints;	/* of NewConstraint * */
	List	   *indexes;		/* of NewIndex * */
	List	   *dropped_constraints;	/* names */
	List	   *dropped_oids;	/* the same */
	List	   *renamed_constraints;	/* of ColumnRead *: from, to */
	List	   *locked;			/* other tables of the contract, SQL */
} ShapeTable;

/* A table that follows another one (derive_table), in one direction. */
typedef struct Derivation
{
	ShapeTable *source;
	ShapeTable *target;
	char	   *trigger;		/* its name */
	char	   *create;			/* SQL */
	char	   *fill;			/* SQL: $1 and $2 are tids; NULL: not filled */
} Derivation;

typedef struct Shape
{
	const Change *change;
	ChangeState phase;			/* that is planned */
	Oid			schema;
	List	   *tables;			/* of ShapeTable * */
	List	   *expand;			/* of Step *: statements of the document */
	List	   *contract;		/* of Step *: the same */
	List	   *dropped_indexes;	/* qualified, SQL */
	List	   *dropped_index_oids; /* the same */
	List	   *derivations;	/* of Derivation * */
} Shape;

/* ---- shape.c ---- */

extern Shape *shape_build(const Change *change, ChangeState phase);
extern void shape_load_all(Shape *shape);
extern ShapeTable *shape_table(Shape *shape, const Operation *operation,
							   const char *name);
extern ShapeTable *shape_load(Shape *shape, Oid relid);
extern ShapeColumn *shape_column(const ShapeTable *table, const char *name);
extern char *type_sql(Oid type, int32 typmod);
extern char *collation_sql(Oid type, Oid collation);
extern char *shape_collation(const ShapeTable *table,
							 const ShapeColumn *column, Oid type);
extern ShapeColumn *shape_require_column(const ShapeTable *table,
										 const Operation *operation,
										 const char *name);
extern char *shape_hidden_name(const Shape *shape, uint32 number,
							   const char *name);
extern char *shape_qualified(const Shape *shape, const char *name);

extern bool shape_is_applied(const ShapeTable *table);

/* ---- operation*.c: one function per operation ---- */

typedef void (*OperationHandler) (Shape *shape, const Operation *operation);

extern const OperationHandler operation_handlers[];
extern void op_create_index(Shape *shape, const Operation *operation);
extern void op_drop_index(Shape *shape, const Operation *operation);
extern void op_create_constraint(Shape *shape, const Operation *operation);
extern void op_drop_constraint(Shape *shape, const Operation *operation);
extern void op_drop_multicolumn(Shape *shape, const Operation *operation);
extern void op_rename_constraint(Shape *shape, const Operation *operation);
extern void op_derive_table(Shape *shape, const Operation *operation);

extern void pair_add(Shape *shape, ShapeTable *table, ShapeColumn *column,
					 const Operation *operation);
extern void pair_expressions(const ShapeTable *table, ShapeColumn *column,
							 const Operation *operation, const char *up,
							 const char *down);
extern bool is_identity(const char *expression, const ShapeColumn *column);
extern void add_check(Shape *shape, ShapeTable *table, const char *name,
					  const char *expression, bool no_inherit);
extern void add_not_null(Shape *shape, ShapeTable *table,
						 ShapeColumn *column);
extern void add_reference(Shape *shape, ShapeTable *table,
						  const Operation *operation,
						  JsonbContainer *reference, List *columns);
extern void add_unique(Shape *shape, ShapeTable *table, const char *name,
					   List *columns, JsonbContainer *parameters);
extern void require_new_constraint(const ShapeTable *table,
								   const Operation *operation,
								   const char *name);
extern void mark_used(List *reads);
extern void require_free_name(const Shape *shape, const Operation *operation,
							  const char *name);
extern void require_no_dependents(const ShapeTable *table,
								  const ShapeColumn *column,
								  const Operation *operation);

/* ---- create.c ---- */

extern char *create_table_sql(Shape *shape, const Operation *operation);
extern char *reference_actions(JsonbContainer *reference);
extern const char *constraint_deferrable(JsonbContainer *object);
extern char *index_parameters(JsonbContainer *parameters, bool of_constraint);

/* ---- expression.c ---- */

extern List *expression_reads(const ShapeTable *table, bool new_version,
							  const char *expression);
extern char *expression_translate(const ShapeTable *table,
								  const char *expression);
extern bool expression_is_volatile(const char *path, const char *expression);
extern int	expression_path_enter(const char *path);
extern void type_parse(const char *path, const char *name, Oid *type,
					   int32 *typmod);

/* ---- dependent.c ---- */

extern void require_same_owner(Oid partition, Oid table);
extern void require_dual_writes(const ShapeTable *table,
								const char *trigger);
extern void dependents_copy(Shape *shape, ShapeTable *table);

/* ---- carry.c ---- */

extern void require_carried(const ShapeTable *table);
extern List *column_settings(const ShapeTable *table,
							 const ShapeColumn *column);
extern void note_copied_settings(Step *step, const Shape *shape,
								 const ShapeTable *table);

/* ---- run.c ---- */

extern void run_statement(const char *sql);
extern void run_as_table_owner(const char *sql);
extern void run_as_extension(const char *sql);
extern void run_check(const Change *change, const Step *step,
					  const char *sql);

/* ---- rehearse.c ---- */

extern void rehearse(const Change *change);

/* ---- partition_index.c ---- */

extern List *index_steps(const Shape *shape, const ShapeTable *table);
extern void partitions_run(const Change *change, const Step *step);

/* ---- copy.c: what was made for new columns after the old ones' ---- */

extern void copies_store(Shape *shape, ShapeTable *table);
extern void copies_load(Shape *shape, ShapeTable *table);

/* ---- version.c ---- */

extern List *query_texts(const char *sql, const CatalogArgs *args);
extern Step *version_create_step(const Change *change);
extern void version_prepare_create(const Change *change, Step *step);
extern List *version_drop_steps(const Change *change, const char *schema);
extern List *version_views_of(const Change *change, Oid relid, bool previous);
extern List *version_previous(const Change *change);
extern void version_require_owned(const Change *change);
extern Oid	version_store(const Change *change);
extern Oid	version_schema(int32 id);
extern void version_prepare_drop(Step *step);

/* ---- plan.c ---- */

/* What a table's trigger is for. */
typedef enum TriggerMode
{
	TRIGGER_FILLING,			/* rows have still to be filled */
	TRIGGER_FILLED,
	TRIGGER_LENIENT				/* where "down" fails, the row is marked */
} TriggerMode;

/* What foreign keys ask for of the table that they refer to. */
#define LOCK_TO_ADD		"SHARE ROW EXCLUSIVE"
#define LOCK_TO_DROP	"ACCESS EXCLUSIVE"

extern void change_plan(const Change *change);
extern bool table_has_pairs(const ShapeTable *table);
extern List *table_locks(const char *table, List *views, List *others,
						 const char *mode);
extern Step *step_of(StepKind kind, const char *title,
					 const ShapeTable *table);
extern void step_note(Step *step, char *sql);
extern void step_alter(Step *step, const ShapeTable *table, char *action);
extern void note_drop_trigger(Step *step, const Shape *shape,
							  const ShapeTable *table);
extern char *sync_trigger_name(const Shape *shape);
extern void note_create_trigger(Step *step, const Shape *shape,
								const ShapeTable *table, TriggerMode mode);

extern List *referenced_tables(Oid relid);
extern List *derivation_end_steps(const Shape *shape);

/* ---- lock.c ---- */

extern void require_references(const Change *change, const ShapeTable *table);
extern void locks_init(void);
extern void locks_set_timeout(int ms);
extern void locks_take(const Step *step, bool missing_ok);
extern void locks_end(void);
extern bool locks_expired(void);

/* ---- undo.c ---- */

extern List *plan_undo(const Change *change);

/* ---- retire.c ---- */

extern List *plan_retire(Shape *shape);
extern List *plan_revert(Shape *shape);
extern void note_drop_marks(Step *step, const Shape *shape,
							const ShapeTable *table);

/* ---- rule.c: rules as JSON, in the trigger's argument ---- */

typedef struct RuleSet
{
	int32		change;
	char	   *name;			/* of the change */
	char	   *schema;			/* of the new version */
	char	   *path;
	char	   *old_alias;		/* the table's name in expressions */
	char	   *new_alias;
	bool		filled;			/* are all rows? */
	bool		lenient;		/* where "down" fails, the row is marked */
	List	   *rules;			/* of Rule * */
} RuleSet;

extern char *rules_write(const RuleSet *set);
extern RuleSet *rules_read(const char *json);

#endif							/* BG_SHAPE_H */
