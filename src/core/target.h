/*-------------------------------------------------------------------------
 *
 * target.h
 *		What the peer says about a target table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BG_TARGET_H
#define BG_TARGET_H

#include "core/catalog.h"
#include "core/peer.h"

typedef struct TargetColumn
{
	char	   *name;
	char	   *type;			/* format_type() with schema, e.g.
								 * numeric(10,2), app.mood; pg_catalog types
								 * unqualified */
	char	   *type_schema;
	char	   *type_name;		/* pg_type.typname (arrays: _int4) */
	char		type_kind;		/* pg_type.typtype: b c d e r m */
	bool		is_array;		/* true array (typelem with array
								 * subscripting) */
	bool		has_binary;		/* its binary form means the same on two
								 * clusters: see describe_sql in target.c */
	Oid			type_oid;		/* on the peer; built-in ones equal ours */
	bool		not_null;
	bool		has_default;	/* default or identity, not generated */
	char		generated;		/* attgenerated, or 0 */
	char		identity;		/* attidentity: 'a', 'd' or 0 */
	int			key_position;	/* place in the key, from 1; 0 = no key column */
} TargetColumn;

typedef struct TargetTable
{
	char	   *schema;
	char	   *table;
	char		kind;			/* relkind */
	char		persistence;	/* relpersistence */
	bool		is_system;
	bool		has_key;		/* false: no primary key, and no key was named */
	bool		key_is_deferrable;
	bool		has_incoming_fk;	/* referenced by another table's FK */
	int			other_unique;	/* unique or exclusion indexes beside the key */
	int			ncolumns;
	TargetColumn *columns;
} TargetTable;

/*
 * Describe a table of the peer; NULL if it does not exist.  key: names (char *)
 * of the key's columns, or NIL for the primary key.  Raises an error if no
 * valid, unique, non-partial index on plain NOT NULL columns has exactly these
 * columns; key_position says which were found, in the index's order.  If only
 * a deferrable one has them, key_is_deferrable is set and nothing is raised;
 * neither is it if the table has no primary key: has_key is false then.
 * Without want_key, and of what is no permanent user table, no key is looked
 * for.
 */
extern TargetTable *target_describe(Peer *peer, const char *schema,
									const char *table, List *key,
									bool want_key);
extern TargetColumn *target_column(TargetTable *table, const char *name);

/* Error unless a peer can be one: version, no standby, another database. */
extern void target_check_peer(Peer *peer);

#endif							/* BG_TARGET_H */
