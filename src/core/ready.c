/*-------------------------------------------------------------------------
 *
 * ready.c
 *		What the first start() of a deployment asks of both sides.
 *
 * All of it is asked before anything is changed, so that a refused start
 * leaves nothing behind, and so that a mistake is named here and not as the
 * error of a worker later.  What can only be found out by trying (the slot,
 * the origins on the peer) is tried by start.c, and undone.
 *
 * What was true when a mapping was defined may not be any more: the target's
 * tables are looked at again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "core/definition.h"
#include "core/settings.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "stream/transform.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/varlena.h"
#include "utils/wait_event.h"

/* A launcher that has died comes back after 5 s. */
#define LAUNCHER_WAIT_MS	100
#define LAUNCHER_WAITS		60
#define WORKER_RETRY_MS		200
#define WORKER_TRIES		10

/* ---- this side ---- */

void
ready_mappings(const Deployment *deployment, List *mappings)
{
	if (mappings == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deployment \"%s\" has no mappings",
						deployment->name),
				 errhint("Use bluegreen.map_table() or bluegreen.map_schema().")));
}

void
ready_wal_level(const Deployment *deployment)
{
	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot start deployment \"%s\" because \"wal_level\" is not \"logical\"",
						deployment->name),
				 errhint("Use ALTER SYSTEM SET wal_level = logical; and restart the server.")));
}

/*
 * Is a library in a setting that lists names?  A name with a comma in it is
 * what becomes of a whole list that was quoted in ALTER SYSTEM; *trap tells.
 * *items is the list as ALTER SYSTEM would take it, with the library.
 */
static bool
library_is_listed(const char *list, const char *library, char **items,
				  bool *trap)
{
	List	   *names = NIL;
	ListCell   *lc;
	StringInfoData buf;
	bool		found = false;

	*trap = false;
	initStringInfo(&buf);
	if (!SplitDirectoriesString(pstrdup(list), ',', &names))
		names = NIL;
	foreach(lc, names)
	{
		char	   *name = lfirst(lc);

		if (strcmp(name, library) == 0)
			found = true;
		if (strchr(name, ',') != NULL)
		{
			bool		ignored;

			*trap = true;
			(void) library_is_listed(name, library, &name, &ignored);
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", name);
		}
		else
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
							 quote_literal_cstr(name));
	}
	if (!found && strstr(buf.data, library) == NULL)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
						 quote_literal_cstr(library));
	*items = buf.data;
	return found;
}

/*
 * Newer minor releases decode only with output plugins that are listed.
 */
void
ready_plugin(const Deployment *deployment)
{
	const char *setting = "output_plugin_libraries";
	const char *list = GetConfigOption(setting, true, false);
	char	   *items;
	bool		trap;

	if (list == NULL || library_is_listed(list, BG_PLUGIN, &items, &trap))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot start deployment \"%s\" because \"%s\" is not in \"%s\"",
					deployment->name, BG_PLUGIN, setting),
			 trap ?
			 errdetail("The setting holds %s: a quoted list in ALTER SYSTEM is one name with commas in it.",
					   list) :
			 errdetail("The setting holds %s.", list),
			 errhint("Use ALTER SYSTEM SET %s = %s; and SELECT pg_reload_conf();",
					 setting, items)));
}

/*
 * Is there room for the stream's slot, or is it there?
 */
void
ready_slot(const Deployment *deployment, const char *slot_name)
{
	int			in_use = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
		if (ReplicationSlotCtl->replication_slots[i].in_use)
			in_use++;
	LWLockRelease(ReplicationSlotControlLock);
	if (in_use >= max_replication_slots &&
		SearchNamedReplicationSlot(slot_name, true) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("cannot start deployment \"%s\" because all %d replication slots are in use",
						deployment->name, max_replication_slots),
				 errhint("Use ALTER SYSTEM SET max_replication_slots = %d; and restart the server, or drop a slot that is not needed.",
						 max_replication_slots + 5)));
}

/*
 * The launcher must run, and find room for the stream's worker and one that
 * copies.  Waits for a launcher that is just starting.
 */
void
ready_workers(const Deployment *deployment)
{
	for (int i = 0; !launcher_is_running(); i++)
	{
		if (i >= LAUNCHER_WAITS)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("cannot start deployment \"%s\" because the launcher of pg_bluegreen does not run",
							deployment->name),
					 errhint("Use ALTER SYSTEM SET max_worker_processes = %d; and restart the server, if the server log says that there was no room for it.",
							 max_worker_processes + bg_copy_workers + 3)));
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LAUNCHER_WAIT_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	for (int i = 0; !workers_are_free(bg_copy_workers > 0 ? 2 : 1); i++)
	{
		/* parallel queries give theirs back soon */
		if (i < WORKER_TRIES)
		{
			pg_usleep(WORKER_RETRY_MS * 1000L);
			CHECK_FOR_INTERRUPTS();
			continue;
		}
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("cannot start deployment \"%s\" because no background workers are free",
						deployment->name),
				 errdetail("A stream needs one, and \"bluegreen.copy_workers\" (%d) more while it copies; \"max_worker_processes\" is %d.",
						   bg_copy_workers, max_worker_processes),
				 errhint("Use ALTER SYSTEM SET max_worker_processes = %d; and restart the server.",
						 max_worker_processes + bg_copy_workers + 3)));
	}
}

/*
 * Error unless a mapping's source is still what it was made for: DDL of before
 * the start is not watched.
 */
void
ready_source(const MappingRow *mapping)
{
	int			guc_level = search_path_pin();

	source_check(mapping->source, mapping->owner);
	transform_check_identity(transform_compile(unconstify(MappingRow *,
														  mapping)));
	search_path_restore(guc_level);
}

/* ---- the peer ---- */

/* What a mapping does to its target, as an array of privileges. */
static char *
wanted_privileges(OnWrite on_write, OnDelete on_delete)
{
	return psprintf("{SELECT,UPDATE%s%s}",
					on_write == ON_WRITE_PATCH ? "" : ",INSERT",
					on_delete == ON_DELETE_DELETE ? ",DELETE" : "");
}

/*
 * $1 schema, $2 table, $3 privileges.  Rights on some columns will do, as the
 * mapping may not write the others.
 */
static const char rights_sql[] =
"SELECT CURRENT_USER,"
"  pg_catalog.has_schema_privilege(n.oid, 'USAGE'),"
"  (SELECT pg_catalog.string_agg(p, ', ')"
"   FROM pg_catalog.unnest($3::pg_catalog.text[]) p"
"   WHERE NOT CASE p WHEN 'DELETE'"
"     THEN pg_catalog.has_table_privilege(c.oid, p)"
"     ELSE pg_catalog.has_any_column_privilege(c.oid, p) END),"
"  c.relrowsecurity AND c.relforcerowsecurity"
"    AND NOT o.rolsuper AND NOT o.rolbypassrls"
" FROM pg_catalog.pg_class c"
"   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
"   JOIN pg_catalog.pg_roles o ON o.oid = c.relowner"
" WHERE n.nspname = $1::pg_catalog.name AND c.relname = $2::pg_catalog.name";

/*
 * Error unless the peer's role may write to a target as its mapping wants, and
 * the target's owner, as whom it is written, sees all of its rows.
 */
void
ready_target_rights(Peer *peer, const MapRequest *request)
{
	char	   *name = quote_qualified_identifier(request->target_schema,
												  request->target_table);
	const char *const args[] = {request->target_schema, request->target_table,
	wanted_privileges(request->on_write, request->on_delete)};
	PeerResult *result = peer_query(peer, rights_sql, 3, args);
	char	  **row;

	if (result->ntuples == 0)
		return;					/* gone since: the next query says so */
	row = result->values[0];
	if (row[1][0] != 't')
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not use schema \"%s\" on %s",
						row[0], request->target_schema,
						peer_description(peer)),
				 errhint("On the peer, use GRANT USAGE ON SCHEMA %s TO %s;",
						 quote_identifier(request->target_schema),
						 quote_identifier(row[0]))));
	if (row[2] != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" lacks privileges on target table \"%s\" on %s",
						row[0], name, peer_description(peer)),
				 errdetail("It lacks %s.", row[2]),
				 errhint("On the peer, use SELECT bluegreen.grant_apply(%s, %s);",
						 quote_literal_cstr(quote_identifier(row[0])),
						 quote_literal_cstr(name))));
	if (row[3][0] == 't')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("row-level security of target table \"%s\" on %s is forced for its owner, as whom changes are applied",
						name, peer_description(peer)),
				 errhint("On the peer, use ALTER TABLE %s NO FORCE ROW LEVEL SECURITY;",
						 name)));
}

static void
check_column(Peer *peer, const MapRequest *request, TargetTable *target,
			 const MappingColumn *column)
{
	char	   *name = quote_qualified_identifier(request->target_schema,
												  request->target_table);
	TargetColumn *there = target_column(target, column->name);

	if (there == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("target table \"%s\" on %s has no column \"%s\" any more",
						name, peer_description(peer), column->name),
				 errhint("On the peer, use ALTER TABLE %s ADD COLUMN %s %s; or unmap the table here and map it again.",
						 name, quote_identifier(column->name), column->type)));
	if (strcmp(there->type, column->type) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of target table \"%s\" on %s is of type %s, but was %s when the table was mapped",
						column->name, name, peer_description(peer),
						there->type, column->type),
				 errhint("Unmap the table and map it again.")));
}

/*
 * Is the target still what the mapping was made for?
 */
void
ready_target(Peer *peer, const MappingRow *mapping)
{
	MapRequest	request = {.source = mapping->source,
		.target_schema = mapping->target_schema,
		.target_table = mapping->target_table,
		.on_write = mapping->on_write, .on_delete = mapping->on_delete};
	List	   *names = NIL;
	TargetTable *target;

	if (mapping->lookup)
	{
		request.lookup = mapping->lookup->text;
		request.key = mapping->lookup->key;
		names = mapping->lookup->columns;
	}
	for (int i = 0; i < mapping->ncolumns && !mapping->lookup; i++)
	{
		names = lappend(names, mapping->columns[i].name);
		if (mapping->columns[i].is_key)
			request.key = lappend(request.key, mapping->columns[i].name);
	}
	request.keyless = request.key == NIL;
	target = target_require(peer, &request);
	for (int i = 0; i < mapping->ncolumns && !mapping->lookup; i++)
		check_column(peer, &request, target, &mapping->columns[i]);
	if (mapping->lookup)
		lookup_check_stored(peer, mapping);
	target_check_columns(&request, target, names);
	ready_target_rights(peer, &request);
}

/*
 * The targets of mappings, each once.  To be emptied together, as foreign keys
 * may want that.
 */
static char *
target_list(List *mappings)
{
	StringInfoData buf;
	List	   *seen = NIL;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, mappings)
	{
		String	   *name = makeString(mapping_target_name(lfirst(lc)));

		if (list_member(seen, name))
			continue;
		seen = lappend(seen, name);
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", strVal(name));
	}
	return buf.data;
}

/*
 * Error if the target of one of the mappings has rows: the copy would collide
 * with them.
 */
void
ready_empty(Peer *peer, const MappingRow *mapping, List *mappings)
{
	char	   *name = mapping_target_name(mapping);
	PeerResult *result =
		peer_query(peer, psprintf("SELECT EXISTS (SELECT FROM %s)", name),
				   0, NULL);

	if (result->values[0][0][0] == 't')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("target table \"%s\" on %s is not empty",
						name, peer_description(peer)),
				 errhint("On the peer, use TRUNCATE %s; or call bluegreen.start with allow_nonempty => true if the rows there may stay.",
						 target_list(mappings))));
}

/* ---- the wait for others ---- */

/*
 * Creating a slot waits for all transactions that run, of all databases.
 * Tell of those that will not be over in a moment.
 */
void
ready_announce_wait(const Deployment *deployment)
{
	CatalogAccess access;
	char	   *list;

	catalog_begin(&access);
	catalog_run("SELECT string_agg(what, '; ' ORDER BY what) FROM ("
				"SELECT format('prepared transaction %L in database \"%s\"',"
				" gid, database) FROM pg_prepared_xacts "
				"UNION ALL "
				"SELECT format('process %s of user \"%s\" in database \"%s\", since %s',"
				" pid, usename, datname, date_trunc('seconds', xact_start)) "
				"FROM pg_stat_activity WHERE backend_xid IS NOT NULL "
				"AND pid <> pg_backend_pid() "
				"AND xact_start < clock_timestamp() - interval '1 second') "
				"t(what)", NULL, SPI_OK_SELECT);
	list = catalog_text(&access, 0, 1);
	catalog_end(&access);
	if (list != NULL)
		ereport(NOTICE,
				(errmsg("start of deployment \"%s\" waits for transactions that run",
						deployment->name),
				 errdetail("%s.", list),
				 errhint("Commit or roll back these transactions.")));
}
