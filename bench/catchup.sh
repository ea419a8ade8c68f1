# Catch-up (bash): how long does a stream that was stopped need for what came
# together meanwhile?
#
# catch_up WORKLOAD calls
#	load_WORKLOAD RUN		the changes on blue, which are collected
#	before_WORKLOAD RUN		if there is one: changes before it that are streamed
#							but not measured
#	compare_WORKLOAD CONTENDER	if there is one, instead of compare
# on the tables that are there.  With $floors set, without the floors.
# shellcheck shell=bash disable=SC2154

# catch_up WORKLOAD: all runs
catch_up() {
	local workload=$1 run contender
	follow_all
	sql blue >/dev/null <<<"SELECT FROM pg_create_logical_replication_slot('floor', 'pgoutput')"
	for ((run = 1; run <= runs; run++)); do
		if declare -F "before_$workload" >/dev/null; then
			before "$workload" "$run"
		fi
		settle blue
		[ -n "${floors:-}" ] || floor_copy
		"load_$workload" "$run"
		mark
		sql blue <<<'CHECKPOINT'
		contents blue >"$work/contents"
		for contender in $(rotated "$run" "${contenders[@]}"); do
			measure_catch_up "$workload" "$contender"
		done
		[ -n "${floors:-}" ] || measure_floors "$workload"
	done
	sql blue >/dev/null <<<"SELECT pg_drop_replication_slot('floor')"
	for contender in "${contenders[@]}"; do
		"unfollow_$contender" blue "$contender"
	done
}

# follow_all: everybody copies and follows, one after the other, and is paused
follow_all() {
	local contender
	for contender in "${contenders[@]}"; do
		follow "$contender" blue "$contender"
		"pause_$contender" blue "$contender"
	done
}

# before WORKLOAD RUN: what is streamed before the load.  A checkpoint behind it
# writes what lets slots move their restart_lsn there: who begins again would
# read all of that a second time, which is not what is measured.
before() {
	local contender
	"before_$1" "$2"
	sql blue <<<'CHECKPOINT'
	mark
	for contender in "${contenders[@]}"; do
		"resume_$contender" blue "$contender"
		wait_marked "$contender"
		"pause_$contender" blue "$contender"
	done
}

# measure_catch_up WORKLOAD CONTENDER
measure_catch_up() {
	local us
	settle "$2"
	# shellcheck disable=SC2059	# that is the format
	us=$(timed "$2" "$(printf "$marked" "$marks")" \
		resume_and_watch "$2")
	"pause_$2" blue "$2"
	result "$1" "$2" "$us"
	if [ -n "${PERF:-}" ] && [ "$2" = bluegreen ]; then perf_report; fi
	if declare -F "compare_$1" >/dev/null; then
		"compare_$1" "$2"
	else
		compare "$2"
	fi
}

resume_and_watch() {
	"resume_$1" blue "$1"
	if [ -n "${PERF:-}" ] && [ "$1" = bluegreen ]; then
		perf_worker >"$work/perf.log" 2>&1 &
	fi
}

# perf_worker: PERF=1 tells where our worker's time goes
perf_worker() {
	local pid=
	echo "$BASHPID" >"$work/perf.pid"
	until [ -n "$pid" ]; do pid=$(worker_bluegreen blue); done
	exec perf record -g -p "$pid" -o "$perf_data"
}
perf_data=${PERF_DATA:-/tmp/bluegreen.perf.data}

# perf_report: when the worker has gone
perf_report() {
	timeout 60 tail -s 0.1 --pid="$(<"$work/perf.pid")" -f /dev/null
	perf report -i "$perf_data" --stdio --no-children -g none \
		--percent-limit 1 2>/dev/null | sed '/^#/d; /^$/d'
	echo "# call graphs: perf report -i $perf_data"
}

#
# Floors
#

# floor_copy: the floor's tables become what blue has now
floor_copy() {
	local table
	for table in $(tables blue); do
		[ "$table" != mark ] || continue
		sql floor <<<"TRUNCATE $table"
		pipe blue "$table" floor "$table"
	done
}

# measure_floors WORKLOAD: decoding alone, and the target's work alone
measure_floors() {
	local table begin
	begin=$(now)
	sql blue >/dev/null <<<"SELECT count(*) FROM pg_logical_slot_get_binary_changes(
		'floor', NULL, NULL, 'proto_version', '1', 'publication_names', 'nothing')"
	result "$1" floor:decode $(($(now) - begin))

	for table in $(tables blue); do
		[ "$table" != mark ] || continue
		sql floor <<<"CREATE UNLOGGED TABLE new_$table AS TABLE $table WITH NO DATA"
		pipe blue "$table" floor "new_$table"
	done
	sql floor >/dev/null <<<'SELECT FROM find_changes()'
	tables floor | grep '^new_' | on_each 'DROP TABLE @' | sql floor
	settle floor
	begin=$(now)
	sql floor >/dev/null <<<'SELECT FROM apply_changes()'
	result "$1" floor:apply $(($(now) - begin))
	tables floor | grep -E '^(ins|upd|del)_' | on_each 'DROP TABLE @' | sql floor
	contents floor | grep -v '^mark' >"$work/contents.floor"
	grep -v '^mark' "$work/contents" | diff - "$work/contents.floor" >&2 ||
		die "the floor's work is not what blue is"
}
