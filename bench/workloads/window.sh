# What does a window cost, in which both sides take writes?  The same number of
# transactions on blue with a stream that goes one way, with one that also has a
# way back, in a window, and in a window half of them on green.
# shellcheck shell=bash disable=SC2154

# Sides change different rows: nobody meets anybody.
window_script='
\set id 2 * random(1, 5000) - :odd
BEGIN;
UPDATE account SET balance = balance + 1 WHERE id = :id;
INSERT INTO sample (run, client, number) VALUES (0, :client_id, :odd);
COMMIT;
'
window_mappings="
SELECT FROM bluegreen.map_table('bench', 'account', conflict => 'blue');
SELECT FROM bluegreen.map_table('bench', 'sample', conflict => 'blue');
"

# window_pgbench SIDE ODD CLIENTS: a quarter of the transactions for each client
window_pgbench() {
	"$bindir/pgbench" -n -M prepared -c "$3" -j 1 -t "$(scaled 10000)" \
		-D odd="$2" -f "$work/window.sql" -p "${port[bluegreen_$1]}" postgres \
		>"$work/pgbench.$1.log" 2>&1 || {
		cat "$work/pgbench.$1.log" >&2
		exit 1
	}
}

# window_processes: those of the streams, and their sessions on the other side
window_processes() {
	local side
	for side in blue green; do
		sql "bluegreen_$side" <<-'SQL'
			SELECT pid FROM pg_stat_activity
			WHERE backend_type IN ('pg_bluegreen stream', 'pg_bluegreen watch')
			OR application_name ~ '^bluegreen bench (forward|backward)$'
			ORDER BY pid
		SQL
	done | paste -sd' ' -
}

# processor_time_of PID...: us
processor_time_of() {
	local pid fields now=0
	for pid in "$@"; do
		read -r -a fields <"/proc/$pid/stat" || die "process $pid is gone"
		now=$((now + fields[13] + fields[14]))
	done
	echo $((now * (1000000 / $(getconf CLK_TCK))))
}

# window_load NAME CLIENTS_BLUE CLIENTS_GREEN: until both sides have all of it
window_load() {
	local processes before begin us tps loads=()
	settle bluegreen_blue
	settle bluegreen_green
	processes=$(window_processes)
	# shellcheck disable=SC2086	# a list
	before=$(processor_time_of $processes)
	begin=$(now)
	window_pgbench blue 1 "$2" & loads+=($!)
	if [ "$3" -gt 0 ]; then window_pgbench green 0 "$3" & loads+=($!); fi
	wait "${loads[0]}" && wait "${loads[-1]}" || exit 1
	sql bluegreen_blue <<<"CALL bluegreen.wait_for_sync('bench', '1 h')"
	if [ "$3" -gt 0 ]; then
		sql bluegreen_green <<<"CALL bluegreen.wait_for_sync('bench', '1 h')"
	fi
	us=$(($(now) - begin))
	[ "$processes" = "$(window_processes)" ] ||
		die 'a process of a stream was started again'
	# shellcheck disable=SC2086	# a list
	before=$(($(processor_time_of $processes) - before))
	tps=$((4 * $(scaled 10000) * 1000000 / us))
	us=$(awk -v us="$before" -v n="$(scaled 10000)" \
		'BEGIN { printf "%.1f", us / n / 4 }')
	result_in "window_tps_$1" bluegreen "$tps" tps
	result_in "window_us_$1" bluegreen "$us" us
	if [ "$1" = oneway ]; then one_way=("$tps" "$us"); fi
	result_in "window_tps_$1/oneway" bluegreen \
		"$(awk -v a="$tps" -v b="${one_way[0]}" 'BEGIN { print 100 * a / b }')" %
	result_in "window_us_$1/oneway" bluegreen \
		"$(awk -v a="$us" -v b="${one_way[1]}" 'BEGIN { print 100 * a / b }')" %
}

# window_follow SQL: green is as at the beginning, and follows again
window_follow() {
	local mappings=$window_mappings
	unfollow_bluegreen bluegreen_blue
	sql bluegreen_green <<<"$1 TRUNCATE account, sample"
	follow bluegreen bluegreen_blue bluegreen_green
}

workload_window() {
	local run one_way=()
	[[ " ${contenders[*]} " == *' bluegreen '* ]] || return 0
	echo "$window_script" >"$work/window.sql"
	pair bluegreen "$latency_tables" "$latency_rows"
	for ((run = 1; run <= runs; run++)); do
		window_load oneway 4 0
		connect_bluegreen bluegreen_green bluegreen_blue blue
		window_follow ''
		window_load wayback 4 0
		sql bluegreen_blue <<<"CALL bluegreen.open_window('bench')"
		window_load window 4 0
		window_load twoway 2 2
		sql bluegreen_blue <<<"CALL bluegreen.close_window('bench', 'blue')"
		contents bluegreen_blue >"$work/contents"
		contents bluegreen_green | diff "$work/contents" - >&2 ||
			die 'the two sides are not the same'
		window_follow 'SET default_transaction_read_only = off;
			SELECT FROM bluegreen.reopen(); DROP SERVER blue CASCADE;'
	done
	end_pair bluegreen
}
