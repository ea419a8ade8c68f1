/*-------------------------------------------------------------------------
 *
 * definition.h
 *		What the files that define and control deployments share; nobody else
 *		includes it.
 *
 * The extension's own tables are granted to nobody.  SQL over them is fixed
 * text, runs as the bootstrap superuser under a pinned search_path, and stands
 * between catalog_begin() and catalog_end().  Whatever a user wrote (the text
 * of a transform, the rows of a table) is never touched in between.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_DEFINITION_H
#define BG_DEFINITION_H

#include "core/catalog.h"
#include "core/peer.h"
#include "core/shared.h"
#include "core/target.h"
#include "fmgr.h"
#include "nodes/parsenodes.h"
#include "utils/array.h"
#include "utils/relcache.h"

#define BG_SCHEMA "bluegreen"
#define BG_EXTENSION "pg_bluegreen"
#define BG_PLUGIN "pg_bluegreen"
#define BG_VERSION "1.0"		/* default_version of the control file */

struct Transform;

/* ---- catalog.c: access to the extension's own tables ---- */

typedef struct CatalogAccess
{
	Oid			userid;			/* to return to */
	int			sec_context;
	int			guc_level;
	MemoryContext context;		/* the caller's: results go there */
	bool		pushed;			/* a snapshot; a worker may have none */
	bool		read_only;		/* was the transaction */
} CatalogAccess;

#define CATALOG_MAX_ARGS 12

typedef struct CatalogArgs
{
	int			n;
	Oid			types[CATALOG_MAX_ARGS];
	Datum		values[CATALOG_MAX_ARGS];
	char		nulls[CATALOG_MAX_ARGS];
} CatalogArgs;

extern int	search_path_pin(void);
extern void search_path_restore(int guc_level);
extern void catalog_begin(CatalogAccess *access);
extern void catalog_end(CatalogAccess *access);
extern void catalog_arg(CatalogArgs *args, Oid type, Datum value);
extern void catalog_arg_text(CatalogArgs *args, const char *value);
extern void catalog_arg_name(CatalogArgs *args, const char *value);
extern void catalog_arg_int4(CatalogArgs *args, int32 value);
extern uint64 catalog_run(const char *sql, const CatalogArgs *args,
						  int expected);
extern char *catalog_text(const CatalogAccess *access, uint64 row, int column);
extern Datum catalog_value(uint64 row, int column, bool *isnull);
extern void catalog_update_deployment(int32 deployment, const char *set);

extern int	enum_lookup(const char *const *names, int n, const char *value);

/* deployment by name, its row locked, its owner checked */
extern Deployment *deployment_lock(const char *name);
extern void deployment_bump_version(int32 deployment);
extern void deployment_drop_local(Deployment *deployment);
extern void deployment_drop(Deployment *deployment, bool force);
extern void deployment_check_server(const char *name);
extern char *catalog_text_array(List *names);

/* ---- registry.c: what a stream leaves on the peer ---- */

extern Peer *registry_connect(const Deployment *deployment, bool to_write);
extern char *registry_origin(const Deployment *deployment);
extern void registry_create(Peer *peer, const Deployment *deployment,
							XLogRecPtr slot_lsn, bool *registered);
extern void registry_try_sessions(const Deployment *deployment);
extern void registry_check_source(Peer *peer, const Deployment *deployment);
extern void registry_remove(Peer *peer, const char *origin);

/* ---- control.c ---- */

extern void require_argument(FunctionCallInfo fcinfo, int i, const char *name);
extern void require_writable(const char *function);
extern void control_require_active(const Deployment *deployment,
								   const char *what);
extern void procedure_begin(FunctionCallInfo fcinfo, const char *name);
extern void procedure_end(void);
extern Deployment *procedure_lock(const char *name);
extern void control_lock(int32 deployment, bool session);
extern void control_unlock(int32 deployment);
extern void control_stop_stream(const char *slot_name);
extern void control_release_stream(StreamShared *s);
extern void control_reload_at_commit(int32 deployment);
extern void control_retry_at_commit(int32 deployment);
extern void control_resume_at_abort(int32 deployment);
extern void control_drop_slot(const char *slot_name);
extern XLogRecPtr control_position(void);
extern StreamShared *control_stream(const Deployment *deployment);
extern void control_check_stream(StreamShared *s, const char *name);
extern void control_wait_applied(const Deployment *deployment);

/* ---- mapping_check.c: what a mapping asks of its two tables ---- */

typedef struct MapRequest
{
	Oid			source;
	char	   *target_schema;	/* NULL = the source's */
	char	   *target_table;	/* NULL = the source's */
	char	   *transform;		/* NULL = all columns by name */
	List	   *key;			/* of char *; NIL = the primary key */
	bool		keyless;		/* key => '{}': find rows by all their values */
	OnWrite		on_write;
	OnDelete	on_delete;
	char	   *lookup;			/* NULL = none */
	char	   *conflict;		/* in a window; NULL: as on_write says */
	/* with a lookup, from lookup_define() */
	Lookup	   *defined;
	int			nincoming;
	MappingColumn *incoming;	/* what the transform gives */
} MapRequest;

extern void source_check(Oid source, Oid owner);
extern bool holds_sessions(Relation relation);
extern TargetTable *target_require(Peer *peer, const MapRequest *request);
extern char *transform_default(const MapRequest *request, TargetTable *target);
extern void target_check_columns(const MapRequest *request,
								 TargetTable *target, List *names);
extern bool target_has_other_columns(TargetTable *target, List *names);
extern WireKind target_wire_kind(const TargetColumn *column);

/* ---- join.c, backward.c: the deployment's second row, on green ---- */

extern Peer *backward_connect(const Deployment *deployment);
extern bool backward_join(Deployment *deployment, Peer *peer);
extern void backward_derive(const Deployment *deployment, Peer *peer);
extern void backward_mappings_changed(const Deployment *deployment);
extern void backward_keep_policy(const Deployment *deployment,
								 const struct Transform *transform);
extern int32 backward_call_integer(const Deployment *deployment,
								   const char *sql, int nargs,
								   const char *const *args);
extern void backward_expect(const char *name);
extern void backward_start(const char *name);
extern void backward_require(const char *name);
extern void backward_stop(const char *name);
extern void backward_leave(const Deployment *deployment, bool force);

/* derive.c: what a mapping back is, if its forward mapping tells */
typedef struct DerivedMapping
{
	const MappingRow *forward;
	char	   *source;			/* quoted */
	char	   *target;			/* quoted */
	char	   *transform;
	List	   *key;			/* of char *; NIL: without a key */
	List	   *types;			/* of the columns, as SQL */
	char	   *conflict;		/* who wins in a window, as forward */
	char	   *basis;			/* differs whenever one of it does */
	char	   *problem;		/* why there is none, or NULL */
} DerivedMapping;

extern List *derive_mappings(const Deployment *deployment);
extern char *derive_policy(const struct Transform *transform);

/* ---- lookup.c: mappings with a lookup ---- */

extern List *lookup_define(Peer *peer, MapRequest *request,
						   TargetTable *target, Query *query,
						   bool check_rights);
extern void lookup_tell(const MapRequest *request, bool has_other_columns);
extern char *lookup_default_transform(const MapRequest *request);
extern void lookup_store(int32 mapping, const MapRequest *request);
extern void lookup_check_cycle(int32 deployment, char direction);
extern void lookup_check_stored(Peer *peer, const MappingRow *mapping);

/* ---- ready.c: what a first start asks of both sides ---- */

extern void ready_mappings(const Deployment *deployment, List *mappings);
extern void ready_wal_level(const Deployment *deployment);
extern void ready_plugin(const Deployment *deployment);
extern void ready_slot(const Deployment *deployment, const char *slot_name);
extern void ready_workers(const Deployment *deployment);
extern void ready_source(const MappingRow *mapping);
extern void ready_target(Peer *peer, const MappingRow *mapping);
extern void ready_target_rights(Peer *peer, const MapRequest *request);
extern void ready_empty(Peer *peer, const MappingRow *mapping,
						List *mappings);
extern void ready_announce_wait(const Deployment *deployment);

/* ---- grant.c: what a role that applies is granted beside its tables ---- */

extern const char *const apply_privileges[];
extern const int apply_privilege_count;

/* ---- ddl.c: DDL that a mapping could not live with ---- */

extern void ddl_note(Oid relid);
extern void ddl_note_commands(Oid relid, const AlterTableStmt *stmt);

/* ---- mapping.c ---- */

/* arguments of functions that define mappings */
extern bool mapping_is_remote(FunctionCallInfo fcinfo, int i,
							  const Deployment *deployment);
extern Oid	mapping_source_oid(FunctionCallInfo fcinfo, int i);
extern char *mapping_text_argument(FunctionCallInfo fcinfo, int i);
extern char *mapping_conflict_argument(FunctionCallInfo fcinfo, int i);
extern int32 mapping_define(const Deployment *deployment, Peer *peer,
							MapRequest *request, const char *derived_from);
extern void mapping_remove(const MappingRow *mapping);
extern bool mapping_writes(const MappingRow *mapping,
						   const MapRequest *request);
extern void mapping_require_no_window(const Deployment *deployment);
extern void mappings_changed(const Deployment *deployment,
							 const char *message);
extern int	mapping_word_argument(FunctionCallInfo fcinfo, int i,
								  const char *name, const char *const *words);
extern List *mapping_names_argument(ArrayType *array, Oid type);
extern void mapping_resolve_target(MapRequest *request, text *target);

/* what is stored of a mapping */
extern List *mapping_output_names(Query *query);
extern bool name_in_list(List *names, const char *name);
extern void mapping_insert_column(int32 mapping, const MappingColumn *column);
extern void mapping_insert_columns(int32 mapping, TargetTable *target,
								   List *names);
extern void mapping_create_view(int32 mapping, Oid owner, Query *query,
								List *names);
extern void mapping_drop_view(Oid view);
extern struct Transform *mapping_check_stored(int32 mapping);

extern void mappings_remove_all(int32 deployment);

#endif							/* BG_DEFINITION_H */
