/*-------------------------------------------------------------------------
 *
 * target.c
 *		What the peer says about itself and about a target table.
 *
 * Two queries to the peer's catalogs, good for all versions that we support:
 * the table with its columns, and its unique indexes.  Which index is the
 * mapping's key is decided here, and why none is, so that the message can name
 * the cause.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "core/definition.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * $1 schema, $2 table.  One row per column, or one without a column.
 *
 * A type travels in binary if everything that it is made of does: array
 * elements, domains' base types, ranges' subtypes, fields of composite types.
 * The reg* types do not: their binary form is an OID, and an object has
 * another one on another cluster.  Nor do tsquery, which is not stored in the
 * same way when it comes in binary, so that rows without a key would not be
 * found, and vectors, whose binary form cannot be empty.
 */
static const char describe_sql[] =
"WITH RECURSIVE target AS ("
"  SELECT c.oid, c.relkind, c.relpersistence,"
"    (c.oid < 16384 OR n.nspname ~ '^pg_'"
"     OR n.nspname = 'information_schema') AS is_system,"
"    EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.contype = 'f'"
"      AND f.confrelid = c.oid AND f.conrelid <> c.oid) AS has_incoming_fk"
"  FROM pg_catalog.pg_class c"
"    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
"  WHERE n.nspname = $1::pg_catalog.name AND c.relname = $2::pg_catalog.name),"
" col AS ("
"  SELECT a.* FROM target JOIN pg_catalog.pg_attribute a"
"    ON a.attrelid = target.oid WHERE a.attnum > 0 AND NOT a.attisdropped),"
" part(whole, type) AS ("
"  SELECT atttypid, atttypid FROM col"
"  UNION"
"  SELECT p.whole, x.type FROM part p"
"    JOIN pg_catalog.pg_type t ON t.oid = p.type"
"    CROSS JOIN LATERAL ("
"      SELECT t.typelem WHERE t.typelem <> 0 AND t.typsubscript ="
"        'pg_catalog.array_subscript_handler'::pg_catalog.regproc"
"      UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0"
"      UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r"
"        WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid"
"      UNION ALL SELECT f.atttypid FROM pg_catalog.pg_attribute f"
"        WHERE t.typrelid <> 0 AND f.attrelid = t.typrelid"
"          AND f.attnum > 0 AND NOT f.attisdropped) x(type)),"
" wire AS ("
"  SELECT p.whole, pg_catalog.bool_and(t.typsend::pg_catalog.oid <> 0"
"      AND t.typreceive::pg_catalog.oid <> 0"
"      AND (t.typname !~ '^(reg.*|tsquery|int2vector|oidvector)$'"
"        OR t.typnamespace <>"
"        'pg_catalog'::pg_catalog.regnamespace)) AS has_binary"
"  FROM part p JOIN pg_catalog.pg_type t ON t.oid = p.type GROUP BY p.whole)"
" SELECT target.relkind, target.relpersistence, target.is_system,"
"   target.has_incoming_fk, a.attname,"
"   pg_catalog.format_type(a.atttypid, a.atttypmod), n.nspname, t.typname,"
"   t.typtype, t.typelem <> 0 AND t.typsubscript ="
"     'pg_catalog.array_subscript_handler'::pg_catalog.regproc,"
"   wire.has_binary, a.atttypid, a.attnotnull,"
"   a.atthasdef AND a.attgenerated = '' OR a.attidentity <> '',"
"   a.attgenerated, a.attidentity"
" FROM target LEFT JOIN (col a"
"     JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
"     JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
"     JOIN wire ON wire.whole = a.atttypid) ON true"
" ORDER BY a.attnum";

/* Columns of its result. */
enum
{
	D_RELKIND, D_PERSISTENCE, D_IS_SYSTEM, D_INCOMING_FK, D_NAME, D_TYPE,
	D_TYPE_SCHEMA, D_TYPE_NAME, D_TYPE_KIND, D_IS_ARRAY, D_HAS_BINARY,
	D_TYPE_OID, D_NOT_NULL, D_HAS_DEFAULT, D_GENERATED, D_IDENTITY
};

/*
 * $1 schema, $2 table.  One row per key column of each index that enforces
 * uniqueness or an exclusion: those of the table, and those that single
 * partitions have beside it.  A primary key that is not ready is one that is
 * aside until the table is copied.
 */
static const char indexes_sql[] =
"WITH target AS ("
"  SELECT c.oid FROM pg_catalog.pg_class c"
"    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
"  WHERE n.nspname = $1::pg_catalog.name AND c.relname = $2::pg_catalog.name)"
" SELECT i.indexrelid, i.indrelid = target.oid, i.indisprimary,"
"   i.indisunique AND NOT i.indisexclusion AND i.indpred IS NULL"
"     AND i.indexprs IS NULL AND i.indrelid = target.oid,"
"   i.indisvalid OR i.indisprimary AND NOT i.indisready, i.indimmediate,"
"   a.attname"
" FROM target JOIN pg_catalog.pg_index i ON i.indrelid = target.oid"
"     OR i.indrelid IN (SELECT p.relid"
"         FROM pg_catalog.pg_partition_tree(target.oid) p)"
"       AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h"
"         WHERE h.inhrelid = i.indexrelid)"
"   CROSS JOIN LATERAL pg_catalog.unnest(i.indkey)"
"     WITH ORDINALITY AS k(attnum, position)"
"   LEFT JOIN pg_catalog.pg_attribute a"
"     ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
" WHERE (i.indisunique OR i.indisexclusion) AND i.indislive"
"   AND k.position <= i.indnkeyatts"
" ORDER BY i.indisprimary DESC, i.indexrelid, k.position";

enum
{
	I_INDEX, I_OWN, I_PRIMARY, I_PLAIN, I_VALID, I_IMMEDIATE, I_COLUMN
};

/* One such index. */
typedef struct UniqueIndex
{
	bool		primary;
	bool		plain;			/* unique, without predicate or expressions */
	bool		valid;
	bool		immediate;
	List	   *columns;		/* names; NULL for an expression */
} UniqueIndex;

/* A boolean in a result. */
static bool
is_true(const char *value)
{
	return value != NULL && value[0] == 't';
}

/* The table's name for messages. */
static char *
target_name(const TargetTable *target)
{
	return quote_qualified_identifier(target->schema, target->table);
}

/*
 * The column of this name, or NULL.
 */
TargetColumn *
target_column(TargetTable *table, const char *name)
{
	for (int i = 0; i < table->ncolumns; i++)
	{
		if (strcmp(table->columns[i].name, name) == 0)
			return &table->columns[i];
	}
	return NULL;
}

static void
read_column(TargetColumn *column, char **row)
{
	column->name = row[D_NAME];
	column->type = row[D_TYPE];
	column->type_schema = row[D_TYPE_SCHEMA];
	column->type_name = row[D_TYPE_NAME];
	column->type_kind = row[D_TYPE_KIND][0];
	column->is_array = is_true(row[D_IS_ARRAY]);
	column->has_binary = is_true(row[D_HAS_BINARY]);
	column->type_oid = strtoul(row[D_TYPE_OID], NULL, 10);
	column->not_null = is_true(row[D_NOT_NULL]);
	column->has_default = is_true(row[D_HAS_DEFAULT]);
	column->generated = row[D_GENERATED][0];
	column->identity = row[D_IDENTITY][0];
}

/* The table and its columns; NULL if it does not exist. */
static TargetTable *
read_table(Peer *peer, const char *schema, const char *table)
{
	const char *const args[] = {schema, table};
	PeerResult *result = peer_query(peer, describe_sql, 2, args);
	TargetTable *target;

	if (result->ntuples == 0)
		return NULL;
	target = palloc0(sizeof(TargetTable));
	target->schema = pstrdup(schema);
	target->table = pstrdup(table);
	target->kind = result->values[0][D_RELKIND][0];
	target->persistence = result->values[0][D_PERSISTENCE][0];
	target->is_system = is_true(result->values[0][D_IS_SYSTEM]);
	target->has_incoming_fk = is_true(result->values[0][D_INCOMING_FK]);
	if (result->values[0][D_NAME] == NULL)
		return target;
	target->ncolumns = result->ntuples;
	target->columns = palloc0(sizeof(TargetColumn) * result->ntuples);
	for (int i = 0; i < result->ntuples; i++)
		read_column(&target->columns[i], result->values[i]);
	return target;
}

/* Its unique indexes, the primary key's first. */
static List *
read_indexes(Peer *peer, const TargetTable *target)
{
	const char *const args[] = {target->schema, target->table};
	PeerResult *result = peer_query(peer, indexes_sql, 2, args);
	List	   *indexes = NIL;
	UniqueIndex *index = NULL;
	const char *last = "";

	for (int i = 0; i < result->ntuples; i++)
	{
		char	  **row = result->values[i];

		if (strcmp(row[I_INDEX], last) != 0)
		{
			index = palloc0(sizeof(UniqueIndex));
			index->primary = is_true(row[I_PRIMARY]) && is_true(row[I_OWN]);
			index->plain = is_true(row[I_PLAIN]);
			index->valid = is_true(row[I_VALID]);
			index->immediate = is_true(row[I_IMMEDIATE]);
			indexes = lappend(indexes, index);
			last = row[I_INDEX];
		}
		index->columns = lappend(index->columns, row[I_COLUMN]);
	}
	return indexes;
}

/*
 * Is the name among these (of char *, some may be NULL)?
 */
bool
name_in_list(List *names, const char *name)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (lfirst(lc) != NULL && strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* "a, b", quoted where needed. */
static char *
name_list(List *names)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, names)
	{
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
						 quote_identifier(lfirst(lc)));
	}
	return buf.data;
}

/*
 * Does the index have exactly the key's columns, in any order?  Without a key
 * the primary key is asked for.
 */
static bool
index_matches(const UniqueIndex *index, List *key)
{
	ListCell   *lc;

	if (key == NIL)
		return index->primary;
	if (list_length(index->columns) != list_length(key))
		return false;
	foreach(lc, key)
	{
		if (!name_in_list(index->columns, lfirst(lc)))
			return false;
	}
	return true;
}

/* Error unless the columns of a given key exist, each named once. */
static void
check_key_columns(TargetTable *target, List *key)
{
	List	   *seen = NIL;
	ListCell   *lc;

	foreach(lc, key)
	{
		char	   *name = lfirst(lc);

		if (target_column(target, name) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of target table \"%s\" does not exist",
							name, target_name(target)),
					 errhint("Name columns that the table has on the peer.")));
		if (name_in_list(seen, name))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("key column \"%s\" of target table \"%s\" is named twice",
							name, target_name(target)),
					 errhint("Name each key column once.")));
		seen = lappend(seen, name);
	}
}

/*
 * No index can be the key: say why, as exactly as we know.  best: one that
 * would be if it were valid or enforced plain equality, or NULL.
 */
pg_noreturn static void
no_key(const TargetTable *target, List *key, const UniqueIndex *best)
{
	char	   *name = target_name(target);

	if (best != NULL && !best->plain)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("primary key of target table \"%s\" can't be a mapping's key",
						name),
				 errdetail("It is declared WITHOUT OVERLAPS, so that rows can't be found by equal keys alone."),
				 errhint("Name as key the columns of a unique index that are NOT NULL.")));
	if (best != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the unique index on (%s) of target table \"%s\" is not valid",
						name_list(best->columns), name),
				 errhint("Use REINDEX on the index on the peer.")));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
			 errmsg("target table \"%s\" has no unique index on (%s)",
					name, name_list(key)),
			 errdetail("A key needs a unique index on exactly its columns, without predicate or expressions."),
			 errhint("On the peer, use CREATE UNIQUE INDEX ON %s (%s).",
					 name, name_list(key))));
}

/* Number the key's columns in the order of its index. */
static void
set_key(TargetTable *target, const UniqueIndex *index)
{
	int			position = 0;
	ListCell   *lc;

	foreach(lc, index->columns)
	{
		TargetColumn *column = target_column(target, lfirst(lc));

		if (column == NULL)
			elog(ERROR, "key column \"%s\" of \"%s\" changed meanwhile",
				 (char *) lfirst(lc), target_name(target));
		if (!column->not_null)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("key column \"%s\" of target table \"%s\" is not marked NOT NULL",
							column->name, target_name(target)),
					 errhint("On the peer, use ALTER TABLE %s ALTER COLUMN %s SET NOT NULL, or name another key.",
							 target_name(target),
							 quote_identifier(column->name))));
		column->key_position = ++position;
	}
}

/*
 * Find the key among the indexes: a valid immediate one, the primary key's if
 * it can be; else a deferrable one, which only gets noted.
 */
static void
find_key(TargetTable *target, List *indexes, List *key)
{
	UniqueIndex *found = NULL;
	UniqueIndex *best = NULL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		UniqueIndex *index = lfirst(lc);

		if (!index_matches(index, key))
			continue;
		if (!index->plain || !index->valid)
		{
			if (index->plain || index->primary)
				best = index;
		}
		else if (found == NULL || (index->immediate && !found->immediate))
			found = index;
	}
	if (found == NULL && best == NULL && key == NIL)
		return;					/* has_key stays false */
	if (found == NULL)
		no_key(target, key, best);
	target->has_key = true;
	target->key_is_deferrable = !found->immediate;
	target->other_unique = list_length(indexes) - 1;
	set_key(target, found);
}

/*
 * Describe a table of the peer (see target.h); palloc'ed.  A relation that
 * can't be a target at all is described without a key, for the caller to
 * refuse.  Waits for the peer; raises its errors, and one for a key that is
 * not there as named.
 */
TargetTable *
target_describe(Peer *peer, const char *schema, const char *table, List *key,
				bool want_key)
{
	TargetTable *target = read_table(peer, schema, table);

	if (target == NULL || !want_key || target->is_system ||
		target->persistence != RELPERSISTENCE_PERMANENT ||
		(target->kind != RELKIND_RELATION &&
		 target->kind != RELKIND_PARTITIONED_TABLE))
		return target;
	check_key_columns(target, key);
	find_key(target, read_indexes(peer, target), key);
	return target;
}

/*
 * What a peer says about itself.  $1: start time of our postmaster in its own
 * unit, $2: our database.
 */
static const char identify_sql[] =
"SELECT (SELECT extversion FROM pg_catalog.pg_extension"
"   WHERE extname = '" BG_EXTENSION "'),"
"  pg_catalog.pg_is_in_recovery(),"
"  (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()"
"    - '2000-01-01 00:00:00+00'::pg_catalog.timestamptz) * 1000000)"
"    ::pg_catalog.int8 = $1::pg_catalog.int8"
"  AND (SELECT oid FROM pg_catalog.pg_database"
"    WHERE datname = pg_catalog.current_database()) = $2::pg_catalog.oid";

/*
 * Both sides must have the same major version of the extension: what one side
 * asks of the other's tables and functions stays within one.
 */
static void
check_version(Peer *peer, const char *version)
{
	int			here = atoi(BG_VERSION);
	int			there;

	if (version == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"%s\" is not installed on %s",
						BG_EXTENSION, peer_description(peer)),
				 errhint("Run CREATE EXTENSION %s; there.", BG_EXTENSION)));
	there = atoi(version);
	if (there == here)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"%s\" has version %s on %s, but version %s here",
					BG_EXTENSION, version, peer_description(peer), BG_VERSION),
			 errdetail("Both sides must have the same major version."),
			 there < here ?
			 errhint("Install version %d on the peer's server, and run ALTER EXTENSION %s UPDATE; there.",
					 here, BG_EXTENSION) :
			 errhint("Install version %d on this server, restart it, and run ALTER EXTENSION %s UPDATE;",
					 there, BG_EXTENSION)));
}

/*
 * Error unless a peer can be one: the extension is there in a version that
 * works with ours, it is no standby, and it is not this very database.  A
 * physical copy has our system identifier and OIDs, but started at another
 * time.
 */
void
target_check_peer(Peer *peer)
{
	const char *const args[] = {psprintf(INT64_FORMAT, (int64) PgStartTime),
	psprintf("%u", MyDatabaseId)};
	PeerResult *result = peer_query(peer, identify_sql, 2, args);
	char	  **row = result->values[0];

	if (row[2][0] == 't')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("peer %s is this database itself",
						peer_description(peer)),
				 errhint("Set host, port and dbname of the peer with ALTER SERVER.")));
	if (row[1][0] == 't')
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("peer %s is a standby", peer_description(peer)),
				 errhint("Set host and port of the peer's primary with ALTER SERVER, or promote the standby.")));
	check_version(peer, row[0]);
}
