/*-------------------------------------------------------------------------
 *
 * catalog.h
 *		Catalog rows <-> structs.
 *
 * Everything here reads the extension's own tables through SPI, needs a
 * transaction with a snapshot, and returns structs palloc'ed in the caller's
 * context.  Never call it while a decoding context is held.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_CATALOG_H
#define BG_CATALOG_H

#include "access/xlogdefs.h"
#include "nodes/pg_list.h"

typedef enum DesiredState
{
	DESIRED_DEFINED,			/* -> STARTED */
	DESIRED_STARTED,			/* -> STOPPED, FINISHED */
	DESIRED_STOPPED,			/* -> STARTED, FINISHED */
	DESIRED_FINISHED			/* green is alone; to be dropped */
} DesiredState;

/*
 * Do both sides take writes?  Streams keep what that needs unless it is closed.
 * Legal next states:
 */
typedef enum WindowState
{
	WINDOW_CLOSED,				/* -> OPENING */
	WINDOW_OPENING,				/* -> OPEN, CLOSED (undone) */
	WINDOW_OPEN,				/* -> CLOSING */
	WINDOW_CLOSING				/* one side has stayed -> CLOSED */
} WindowState;

extern const char *const window_state_names[];

/* Columns of bluegreen.deployment that are read from the WAL. */
#define BG_DEPLOYMENT_ID		1
#define BG_DEPLOYMENT_VERSION	6

typedef struct Deployment
{
	int32		id;
	char	   *name;
	Oid			owner;
	char	   *server;
	DesiredState desired;
	int64		mapping_version;
	uint64		system_identifier;	/* of the source at start; 0 = not started */
	XLogRecPtr	slot_lsn;		/* the slot's first position */
	XLogRecPtr	skip_lsn;		/* transaction to leave out, or invalid */
	char	   *source_place;	/* see place.c; NULL = not started */
	char		direction;		/* of its stream: 'f' on blue, 'b' on green */
	char	   *peer_server;	/* on blue: green's server that leads back, if
								 * it was named */
	char	   *opposite;		/* origin of the stream that writes here, or
								 * NULL: see join.c */
	XLogRecPtr	opposite_lsn;	/* from here on that is whose origin it is */
	WindowState window;
} Deployment;

typedef enum OnWrite
{
	ON_WRITE_MIRROR,			/* a row here is a row there */
	ON_WRITE_MERGE,				/* insert, or update only these columns */
	ON_WRITE_PATCH				/* update only these columns, never insert */
} OnWrite;

typedef enum OnDelete
{
	ON_DELETE_DELETE,
	ON_DELETE_IGNORE,
	ON_DELETE_WRITE				/* the old row is written as a change */
} OnDelete;

extern const char *const on_write_names[];
extern const char *const on_delete_names[];

/* How a column travels. */
typedef enum WireKind
{
	WIRE_BINARY,				/* send/recv, also as an element of an array */
	WIRE_ARRAY,					/* an array type: binary in COPY, its text
								 * form in unnest() (which would flatten it) */
	WIRE_TEXT					/* output/input function on the two sides */
} WireKind;

extern const char *const wire_kind_names[];

/*
 * One column that a transform gives (bluegreen.mapping_column): of the target,
 * or with a lookup of the relation "incoming".
 */
typedef struct MappingColumn
{
	int			position;		/* = attribute number in the transform view */
	char	   *name;
	char	   *type;			/* the target's type as SQL, schema-qualified */
	WireKind	wire;
	bool		is_key;			/* of the target; with a lookup, of the source */
	bool		finds;			/* no key column, but the target's key and
								 * whether there is a row depend on it: a
								 * delete carries it as well */
} MappingColumn;

/*
 * A SELECT on the target over the relation "incoming" (what the transform
 * gives), which says what is written: see lookup.c.
 */
typedef struct Lookup
{
	char	   *text;			/* the user's */
	char	   *query;			/* what the target made of it */
	List	   *columns;		/* of the target, that it gives; of char * */
	List	   *key;			/* of the target; of char * */
	List	   *reads;			/* tables of the target, schema.table without
								 * quotes: servers differ in when to quote */
} Lookup;

/* One mapping (bluegreen.table_mapping with its columns). */
typedef struct MappingRow
{
	int32		id;
	int32		deployment;
	char		direction;		/* 'f' or 'b' */
	Oid			owner;			/* of the deployment: transforms run as it */
	Oid			source;			/* relation */
	Oid			view;			/* bluegreen.transform_<id> */
	char	   *target_schema;
	char	   *target_table;
	bool		target_shared;	/* another mapping writes the same target */
	OnWrite		on_write;
	OnDelete	on_delete;
	bool		has_other_columns;	/* target has columns that we don't write */
	List	   *row_shape;		/* the source's columns when the mapping was
								 * made: name, type, name ...; NIL unless the
								 * transform reads whole rows */
	char	   *defined_in;		/* pg_snapshot of map_table() */
	char	   *conflict;		/* who wins in a window, see window.c */
	char	   *derived_from;	/* what blue derived it from; NULL = defined */
	Lookup	   *lookup;			/* or NULL */
	int			ncolumns;
	MappingColumn *columns;		/* by position */
} MappingRow;

extern Deployment *deployment_load(int32 id);	/* NULL if none */
extern Deployment *deployment_load_by_name(const char *name, bool missing_ok);
extern List *mappings_load(int32 deployment, char direction);
extern MappingRow *mapping_load(int32 id);

/* "schema.table", quoted where needed */
extern char *mapping_target_name(const MappingRow *row);

/* lookup.c: which mappings of a stream must be looked at together */
extern bool mapping_reads_target(const MappingRow *row,
								 const MappingRow *other);
extern bool mapping_copied_late(const MappingRow *row);
extern bool mapping_copied_after(const MappingRow *row,
								 const MappingRow *other);

/* The owner of a relation, which must exist.  Reads the system cache. */
extern Oid	relation_owner(Oid relid);

/* Error unless the current user has the rights of the deployment's owner. */
extern void deployment_check_owner(const Deployment *deployment);

/* Error unless workers can run as a role: a deployment's owner (owner.c). */
extern void owner_check(Oid owner, const char *deployment);

/* Origin name on the target, unique over all source clusters. */
extern char *stream_origin_name(uint64 system_identifier, Oid dboid,
								int32 deployment, char direction);

/* "forward" or "backward" */
extern const char *direction_name(char direction);

/* Name of the slot of its stream; buf has NAMEDATALEN bytes. */
extern void deployment_slot_name(char *buf, const Deployment *deployment);

/* What its sessions on the target are called, before what they are for. */
extern char *stream_application_name(const Deployment *deployment);

/* Refuse to drop the extension while there are deployments; from _PG_init(). */
extern void deployment_guard_install(void);

#endif							/* BG_CATALOG_H */
