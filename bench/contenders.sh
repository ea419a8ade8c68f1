# Contenders: ways to make green follow blue (bash).
#
# A contender NAME has functions
#	prepare_NAME BLUE GREEN		once for a pair of clusters
#	follow_NAME BLUE GREEN		begin: copy the tables of schema public and
#								follow; may return earlier
#	followed_NAME BLUE GREEN	where ($on) it can be asked ($query) whether all
#								tables are copied and follow
#	pause_NAME, resume_NAME		stop, so that no process of it runs, and go on
#	unfollow_NAME				undo follow; the tables stay
# and perhaps blue_conf_NAME and green_conf_NAME: settings it cannot do
# without.  What is measured is from the call of follow or resume to the moment
# in which green has what is waited for.
# shellcheck shell=bash disable=SC2154

# follow CONTENDER BLUE GREEN: begin, and wait until all tables follow
follow() {
	local on query
	"follow_$1" "$2" "$3"
	"followed_$1" "$2" "$3"
	until_true "$on" "$query" >/dev/null
}

# conninfo CLUSTER
conninfo() {
	echo "host=127.0.0.1 port=${port[$1]} user=postgres dbname=postgres"
}

# on_each SQL: a statement for each table of a cluster; standard input are the
# tables' names, and @ in the statement is one
on_each() {
	while read -r table; do echo "${1//@/$table};"; done
}

#
# bluegreen: this extension
#

# connect_bluegreen CLUSTER CLUSTER SERVER: the second as a server of the first
connect_bluegreen() {
	sql "$1" <<-SQL
		CREATE SERVER $3 FOREIGN DATA WRAPPER pg_bluegreen
			OPTIONS (host '127.0.0.1', port '${port[$2]}', dbname 'postgres');
		CREATE USER MAPPING FOR CURRENT_USER SERVER $3
			OPTIONS (user 'postgres', password 'not asked for');
	SQL
}

prepare_bluegreen() {
	sql "$2" <<<'CREATE EXTENSION pg_bluegreen'
	sql "$1" <<<'CREATE EXTENSION pg_bluegreen'
	connect_bluegreen "$1" "$2" green
}

# Every table as it is, unless the workload has $mappings of its own.
follow_bluegreen() {
	{
		echo "SELECT FROM bluegreen.create_deployment('bench', 'green');"
		if [ -n "${mappings:-}" ]; then
			echo "$mappings"
		else
			tables "$1" | on_each "SELECT FROM bluegreen.map_table('bench', '@')"
		fi
		echo "CALL bluegreen.start('bench');"
	} | sql "$1" >/dev/null
}

followed_bluegreen() {
	on=$1 query="SELECT bool_and(state = 'streaming') FROM bluegreen.stat_table"
}

pause_bluegreen() {
	sql "$1" <<<"CALL bluegreen.stop('bench')"
}

resume_bluegreen() {
	sql "$1" <<<"CALL bluegreen.start('bench')"
}

unfollow_bluegreen() {
	sql "$1" >/dev/null <<<"SELECT FROM bluegreen.drop_deployment('bench')"
}

worker_bluegreen() {
	sql "$1" <<<"SELECT pid FROM bluegreen.stat_stream"
}

#
# native: logical replication as PostgreSQL has it.  Commits on green are as
# durable as ours before they are visible; a subscription's default is not to
# wait (native_async).
#

prepare_native() { :; }

# subscribe BLUE GREEN OPTIONS
subscribe() {
	sql "$1" <<<"CREATE PUBLICATION $2 FOR TABLE
		$(tables "$1" | paste -sd, -)"
	sql "$2" <<<"CREATE SUBSCRIPTION bench CONNECTION '$(conninfo "$1")'
		PUBLICATION $2 WITH (streaming = on, slot_name = '$2', $3)"
}

follow_native() { subscribe "$1" "$2" 'binary = off, synchronous_commit = on'; }

followed_native() {
	on=$2 query="SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
}

pause_native() {
	sql "$2" <<<'ALTER SUBSCRIPTION bench DISABLE'
	until_true "$1" "SELECT NOT active FROM pg_replication_slots
		WHERE slot_name = '$2'" >/dev/null
}

resume_native() {
	sql "$2" <<<'ALTER SUBSCRIPTION bench ENABLE'
}

unfollow_native() {
	sql "$2" <<<'DROP SUBSCRIPTION bench'
	sql "$1" <<<"DROP PUBLICATION $2"
}

green_conf_native() { echo "shared_preload_libraries = ''"; }

# The same with another option.  A publication's name is its own.
for name in native_binary native_async; do
	for what in prepare followed pause resume unfollow; do
		eval "${what}_$name() { ${what}_native \"\$@\"; }"
	done
	eval "green_conf_$name() { green_conf_native; }"
done
follow_native_binary() { subscribe "$1" "$2" 'binary = on, synchronous_commit = on'; }
follow_native_async() { subscribe "$1" "$2" 'binary = off'; }

#
# pglogical: where its package is installed
#

blue_conf_pglogical() {
	echo "shared_preload_libraries = 'pg_bluegreen, pglogical'"
	if run_server '' "$bindir/postgres" --describe-config |
		grep '^output_plugin_libraries' >/dev/null; then
		echo "output_plugin_libraries = 'pgoutput, test_decoding," \
			"pg_bluegreen, pglogical_output'"
	fi
}

green_conf_pglogical() {
	echo "shared_preload_libraries = 'pglogical'"
	echo 'pglogical.synchronous_commit = on'
}

prepare_pglogical() {
	local cluster
	for cluster in "$1" "$2"; do
		sql "$cluster" >/dev/null <<-SQL
			CREATE EXTENSION pglogical;
			SELECT FROM pglogical.create_node('$cluster',
				'$(conninfo "$cluster")');
		SQL
	done
}

# A table without a key is in the set for inserts alone.
follow_pglogical() {
	sql "$1" >/dev/null <<-SQL
		SELECT FROM (SELECT pglogical.replication_set_add_table(CASE WHEN EXISTS (
				SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)
				THEN 'default' ELSE 'default_insert_only' END, c.oid)
			FROM pg_class c WHERE relkind = 'r'
			AND relnamespace = 'public'::regnamespace) t;
	SQL
	sql "$2" >/dev/null <<-SQL
		SELECT FROM pglogical.create_subscription('bench', '$(conninfo "$1")',
			ARRAY['default', 'default_insert_only']);
	SQL
}

followed_pglogical() {
	on=$2 query="SELECT count(*) > 1 AND bool_and(sync_status = 'r')
		FROM pglogical.local_sync_status"
}

pause_pglogical() {
	sql "$2" >/dev/null <<<"SELECT FROM pglogical.alter_subscription_disable('bench', true)"
	until_true "$1" "SELECT bool_and(NOT active) FROM pg_replication_slots
		WHERE plugin = 'pglogical_output'" >/dev/null
}

resume_pglogical() {
	sql "$2" >/dev/null <<<"SELECT FROM pglogical.alter_subscription_enable('bench', true)"
}

unfollow_pglogical() {
	sql "$2" >/dev/null <<<"SELECT FROM pglogical.drop_subscription('bench')"
	sql "$1" >/dev/null <<-SQL
		SELECT FROM (SELECT pglogical.replication_set_remove_table(set_name, relid)
			FROM pglogical.tables WHERE set_name IS NOT NULL) t;
	SQL
}

#
# What only copies: functions copy_NAME BLUE GREEN, which return when all is
# there.
#

prepare_pipe() { :; }

# One pipe for each table, into the table with its indexes.
copy_pipe() {
	local table
	for table in $(tables "$1"); do
		pipe "$1" "$table" "$2" "$table"
	done
}

# Its filter leaves in what belongs to no table.
prepare_pgcopydb() {
	sql "$2" <<<'CREATE FOREIGN DATA WRAPPER pg_bluegreen'
}

# Two processes copy parts of the tables; then the indexes are built.  It signals
# its whole process group when it ends, so it has one of its own.
copy_pgcopydb() {
	local table dir=$work/pgcopydb
	{
		echo '[include-only-table]'
		tables "$1" | sed 's/^/public./'
	} >"$work/pgcopydb.ini"
	{
		tables "$2" | on_each 'DROP TABLE @'
		echo 'DROP SERVER IF EXISTS green CASCADE;'
		echo 'DROP PUBLICATION IF EXISTS nothing;'
	} | sql "$2"
	rm -rf "$dir"
	PATH=$bindir:$PATH setsid -w pgcopydb clone --source "$(uri "$1")" \
		--target "$(uri "$2")" --dir "$dir" --filters "$work/pgcopydb.ini" \
		--table-jobs 2 --index-jobs 2 --split-tables-larger-than '200 MB' \
		--no-owner --no-acl --skip-extensions --skip-large-objects \
		>"$work/pgcopydb.log" 2>&1 || {
		tail -n 30 "$work/pgcopydb.log" >&2
		exit 1
	}
}

uri() {
	echo "postgres://postgres@127.0.0.1:${port[$1]}/postgres"
}

# pipe CLUSTER TABLE CLUSTER TABLE: a table's rows into another
pipe() {
	"$bindir/psql" -Xq -p "${port[$1]}" -d postgres \
		-c "COPY $2 TO STDOUT (FORMAT binary)" |
		"$bindir/psql" -Xq -p "${port[$3]}" -d postgres \
			-c "COPY $4 FROM STDIN (FORMAT binary)"
}

#
# Pairs of a contender's own
#

# online: the contenders whose streams are measured under load
online() {
	local name
	for name in "${contenders[@]}"; do
		case $name in
			bluegreen | native | native_async) echo "$name" ;;
		esac
	done | paste -sd' ' -
}

# pair NAME TABLES BLUE_SQL: a pair of clusters of a contender's own, NAME_blue
# and NAME_green, that are followed: for what is measured on blue, too
pair() {
	local side conf
	for side in blue green; do
		conf=
		if declare -F "${side}_conf_$1" >/dev/null; then
			conf=$("${side}_conf_$1")
		fi
		cluster "$1_$side" "$conf"
		sql "$1_$side" <<<"$2"
	done
	sql "$1_blue" <<<"$3"
	"prepare_$1" "$1_blue" "$1_green"
	follow "$1" "$1_blue" "$1_green"
}

# end_pair NAME
end_pair() {
	local side
	for side in green blue; do
		server "$1_$side" pg_ctl -m immediate stop
		rm -rf "$work/clusters/$1_$side"
	done
}
