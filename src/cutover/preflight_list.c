/*-------------------------------------------------------------------------
 *
 * preflight_list.c
 *		What a preflight looks at, in this order.
 *
 * First comes what start() cannot do without, and raises errors of its own
 * for; then one query after the other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "core/definition.h"
#include "cutover/preflight.h"

/* ---- core/ready.c and its like, as checks ---- */

static void
check_owner(PreflightRun *run)
{
	owner_check(run->deployment->owner, run->deployment->name);
}

static void
check_mappings(PreflightRun *run)
{
	ready_mappings(run->deployment, run->mappings);
}

static void
check_wal_level(PreflightRun *run)
{
	ready_wal_level(run->deployment);
}

static void
check_plugin(PreflightRun *run)
{
	ready_plugin(run->deployment);
}

static void
check_slot(PreflightRun *run)
{
	ready_slot(run->deployment, run->slot_name);
}

static void
check_workers(PreflightRun *run)
{
	if (shared_is_loaded())		/* else that is said already */
		ready_workers(run->deployment);
}

static void
check_source(PreflightRun *run, const MappingRow *mapping)
{
	ready_source(mapping);
}

/*
 * The ordinary session.  Limits of the role or the database must not end a
 * look at large tables, nor row-level security hide rows.
 */
static void
check_peer(PreflightRun *run)
{
	Peer	   *peer = registry_connect(run->deployment, false);

	peer_command(peer, "SET default_transaction_isolation = 'read committed';"
				 "SET row_security = off");
	(void) peer_query(peer, "SELECT pg_catalog.set_config(name, '0', false) "
					  "FROM pg_catalog.pg_settings WHERE name IN "
					  "('statement_timeout', 'transaction_timeout', "
					  "'idle_session_timeout')", 0, NULL);
	run->peer = peer;
}

static void
check_apply(PreflightRun *run)
{
	if (run->peer != NULL)		/* one row for that is enough */
		run->apply = registry_connect(run->deployment, true);
}

static void
check_target(PreflightRun *run, const MappingRow *mapping)
{
	if (run->peer != NULL)
		ready_target(run->apply ? run->apply : run->peer, mapping);
}

static void
check_empty(PreflightRun *run, const MappingRow *mapping)
{
	if (run->apply != NULL && !run->allow_nonempty)
		ready_empty(run->apply, mapping, run->mappings);
}

/* ---- the table ---- */

#define R(c)	.function = c, .required = true
#define M(c)	.mapping_function = c, .required = true
#define F(c)	.function = c
#define Q(c)	.sql = sql_ ## c
#define QF(c)	.sql = sql_ ## c, .facts = facts_ ## c

#define S	PREFLIGHT_START
#define W	PREFLIGHT_SWITCHOVER
#define SW	PREFLIGHT_BOTH
#define O	PREFLIGHT_WINDOW

const PreflightCheck preflight_checks[] = {
	/* without which nothing works */
	{
		"owner", "blue", SW,
		"the owner may run streams",
		R(check_owner)
	},
	{
		"mapping", "blue", SW,
		"there are mappings",
		R(check_mappings)
	},
	{
		"library", "blue", SW,
		"the library is preloaded",
		Q(library), .required = true
	},
	{
		"wal_level", "blue", SW,
		"wal_level is logical",
		R(check_wal_level)
	},
	{
		"output_plugin", "blue", SW,
		"our output plugin may be used",
		R(check_plugin)
	},
	{
		"replication_slot", "blue", SW,
		"there is room for the slot",
		R(check_slot)
	},
	{
		"background_worker", "blue", S,
		"background workers are free",
		R(check_workers), .scope = PREFLIGHT_FIRST_START
	},
	{
		"source", "blue", SW,
		"mapped tables can be read, and their WAL suffices",
		M(check_source)
	},
	{
		"peer", "green", SW,
		"green can be reached and is of our version",
		R(check_peer)
	},
	{
		"apply", "green", SW,
		"its role may apply changes",
		R(check_apply)
	},
	{
		"target", "green", SW,
		"target tables are as they were mapped, and may be written",
		M(check_target)
	},
	{
		"empty", "green", S,
		"target tables are empty",
		M(check_empty), .scope = PREFLIGHT_FIRST_START
	},

	/* settings */
	{
		"encoding", "green", S,
		"green's encoding can hold everything",
		F(check_encoding)
	},
	{
		"slot_wal_limit", "blue", S,
		"max_slot_wal_keep_size leaves room for the copy",
		F(check_wal_keep), .scope = PREFLIGHT_FIRST_START
	},
	{
		"wal_space", "blue", SW,
		"the disk has room for WAL",
		F(check_wal_space)
	},
	{
		"slot_timeout", "blue", S,
		"slots are not invalidated because nobody uses them",
		Q(idle_slot_timeout)
	},
	{
		"standby_slot", "blue", S,
		"standbys that the stream waits for are there",
		Q(standby_slots)
	},
	{
		"commit_timestamp", "blue", S,
		"commit times are kept, or not asked for",
		Q(track_commit_timestamp)
	},
	{
		"replication_origin", "green", S,
		"there is room for replication origins",
		Q(origins)
	},
	{
		"back_wal_level", "green", W,
		"wal_level is logical, for the way back",
		Q(back_wal_level)
	},
	{
		"back_library", "green", W,
		"the library is preloaded, for the way back",
		Q(back_library)
	},
	{
		"back_output_plugin", "green", W,
		"our output plugin may be used, for the way back",
		Q(back_plugin)
	},
	{
		"back_replication_slot", "green", W,
		"there is room for a slot, for the way back",
		Q(back_slots)
	},
	{
		"back_replication_origin", "blue", W,
		"there is room for an origin, for the way back",
		Q(back_origins)
	},
	{
		"way_back", "green", W,
		"every mapped table has a way back",
		F(check_way_back)
	},
	{
		"collation_version", "blue", SW,
		"collations are as when they were made",
		Q(collation_version_blue)
	},
	{
		"collation_version", "green", SW,
		"collations are as when they were made",
		Q(collation_version_green)
	},
	{
		"locale", "green", W,
		"both databases have the same locale",
		QF(locale)
	},
	{
		"extension", "green", W,
		"extensions of blue are there, in versions as new",
		QF(extensions)
	},

	/* roles */
	{
		"apply_privileges", "green", S,
		"its role has what streams need",
		Q(apply_privileges)
	},
	{
		"visibility", "green", SW,
		"its role sees what preflight asks",
		Q(visibility)
	},
	{
		"role", "green", W,
		"roles that use mapped tables are there",
		Q(roles), .facts = facts_grants
	},
	{
		"privileges", "green", W,
		"roles may do there what they may do on blue",
		QF(grants)
	},

	/* tables */
	{
		"keyless_identity", "blue", S,
		"changes of tables without a key say what they change",
		Q(keyless)
	},
	{
		"unlogged_table", "blue", W,
		"no unlogged tables stay behind",
		Q(unlogged)
	},
	{
		"firing_trigger", "green", S,
		"no triggers fire for the stream",
		Q(triggers)
	},
	{
		"silent_trigger", "green", W,
		"triggers will fire for applications",
		Q(silent_triggers)
	},
	{
		"rule", "green", S,
		"no rules change what the stream writes",
		Q(rules)
	},
	{
		"partition_owner", "green", S,
		"partitions belong to their table's owner",
		Q(partition_owners)
	},
	{
		"index", "green", W,
		"indexes are valid",
		Q(indexes)
	},
	{
		"deferrable_constraint", "green", W,
		"no unenforced deferrable constraints",
		Q(deferrable)
	},
	{
		"exclusion_constraint", "green", S,
		"exclusion constraints are also on blue",
		QF(exclusions)
	},
	{
		"not_valid_constraint", "green", W,
		"constraints are valid",
		Q(not_valid)
	},
	{
		"foreign_key", "green", W,
		"every reference has its row",
		Q(foreign_keys)
	},

	/* data, and who else writes */
	{
		"large_object", "blue", W,
		"there are no large objects",
		Q(large_objects)
	},
	{
		"materialized_view", "green", W,
		"materialized views are filled",
		Q(matviews)
	},
	{
		"sequence", "green", W,
		"sequences have one like them",
		QF(sequences)
	},
	{
		"sequence_move", "green", W,
		"sequences can be moved beyond those of blue",
		F(check_sequences)
	},
	{
		"unmapped_table", "green", W,
		"every table with rows is mapped",
		QF(unmapped)
	},
	{
		"new_column", "green", W,
		"columns that tables got later are carried over",
		QF(new_columns)
	},
	{
		"router", "blue", W,
		"routers answer, lead to the active side and are known on both",
		F(check_routers)
	},
	{
		"subscription", "blue", W,
		"no subscription writes to mapped tables",
		Q(subscriptions_blue)
	},
	{
		"subscription", "green", SW,
		"no subscription writes to mapped tables",
		Q(subscriptions_green)
	},
	{
		"prepared_transaction", "blue", W,
		"no prepared transaction waits",
		Q(prepared_blue)
	},
	{
		"prepared_transaction", "green", W,
		"no prepared transaction waits",
		Q(prepared_green)
	},
	{
		"long_transaction", "blue", W,
		"no transaction that writes is old",
		Q(transactions_blue)
	},
	{
		"long_transaction", "green", W,
		"no transaction that writes is old",
		Q(transactions_green)
	},
	{
		"stream", "blue", W,
		"the stream follows",
		Q(stream), .scope = PREFLIGHT_STARTED
	},

	/* both sides take writes */
	{
		"window_mapping", "green", O,
		"mappings can go both ways at once",
		F(check_window_mappings)
	},
	{
		"window_policy", "green", O,
		"both directions decide conflicts in the same way",
		F(check_window_policies)
	},
	{
		"window_stream", "green", O,
		"both streams follow",
		F(check_window_streams), .scope = PREFLIGHT_STARTED
	},
	{
		"window_sequence", "green", O,
		"sequences can leave each other's numbers out",
		F(check_window_sequences)
	},
	{
		"window_clock", "green", O,
		"the clocks agree, or no policy goes by them",
		F(check_window_clocks)
	},
};

const int	preflight_check_count = lengthof(preflight_checks);
