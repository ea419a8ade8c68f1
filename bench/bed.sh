# The bed of the measurements (bash): one blue, and a green for each contender.
#
# All of them stream from the same blue, so that they decode the same WAL, byte
# for byte; only the one that is measured runs.  Before each measurement the
# greens are vacuumed and both sides have a checkpoint behind them.  The order
# of the contenders changes with each run.
#
# The table "mark" goes through every stream.  A row that is committed after
# all others of a load tells that green has them, since all contenders apply in
# commit order; what green has is compared with blue after each measurement.
# shellcheck shell=bash disable=SC2154

# bed_begin: the clusters, and what is in them for good
bed_begin() {
	local contender conf=
	for contender in "${contenders[@]}"; do
		if declare -F "blue_conf_$contender" >/dev/null; then
			conf+=$("blue_conf_$contender")$'\n'
		fi
	done
	cluster blue "$conf"
	for contender in "${contenders[@]}"; do
		conf=
		if declare -F "green_conf_$contender" >/dev/null; then
			conf=$("green_conf_$contender")
		fi
		cluster "$contender" "$conf"
		"prepare_$contender" blue "$contender"
	done
	for contender in "${copiers[@]}"; do
		cluster "$contender" "shared_preload_libraries = ''"
		"prepare_$contender" blue "$contender"
	done
	cluster floor "shared_preload_libraries = ''"
	sql floor <"$BENCH/floor.sql"
	sql blue <<<"CREATE PUBLICATION nothing"
}

# rotated RUN NAME...: the names, another one first in each run
rotated() {
	local i names=("${@:2}")
	for ((i = 0; i < ${#names[@]}; i++)); do
		echo "${names[(i + $1 - 1) % ${#names[@]}]}"
	done
}

# make_tables BLUE_SQL [GREEN_SQL]: on all clusters
make_tables() {
	local contender green
	sql blue <<<"$1 $mark_table"
	sql floor <<<"$1 $mark_table"
	for contender in "${contenders[@]}" "${copiers[@]}"; do
		green=$1
		if [ "$contender" = bluegreen ]; then green=${2:-$1}; fi
		sql "$contender" <<<"$green $mark_table"
	done
}
mark_table='CREATE TABLE mark (n int PRIMARY KEY);'
marks=0

drop_tables() {
	local cluster
	for cluster in blue floor "${contenders[@]}" "${copiers[@]}"; do
		tables "$cluster" | on_each 'DROP TABLE @ CASCADE' | sql "$cluster"
	done
}

# settle CLUSTER: the same state before each measurement
settle() {
	sql "$1" <<<'VACUUM ANALYZE'
	sql "$1" <<<'CHECKPOINT'
}

# mark: the end of a load, in $marks
mark() {
	marks=$((marks + 1))
	sql blue <<<"INSERT INTO mark VALUES ($marks)"
}

marked="SELECT EXISTS (SELECT FROM mark WHERE n = %s)"

# wait_marked CONTENDER: until green has the last mark
wait_marked() {
	# shellcheck disable=SC2059	# that is the format
	until_true "$1" "$(printf "$marked" "$marks")" >/dev/null
}

# timed CLUSTER QUERY COMMAND...: run the command, and print how many us it was
# from there until the query was true on the cluster
timed() {
	local cluster=$1 query=$2 begin end waiter
	shift 2
	rm -f "$work/asking"
	"$BENCH/until" "${port[$cluster]}" "$query" "${PATIENCE:-1200}" \
		"$work/asking" >"$work/moment" &
	waiter=$!
	until [ -e "$work/asking" ]; do
		kill -0 "$waiter" || die "nothing to wait for on $cluster: $query"
		sleep 0.01
	done
	begin=$(now)
	"$@"
	wait "$waiter" || die "on $cluster: $query"
	end=$(<"$work/moment")
	echo $((end - begin))
}

# result_in WORKLOAD CONTENDER VALUE UNIT: note a measurement
result_in() {
	echo "$*" >>"$work/results"
	echo "# $*"
}

# result WORKLOAD CONTENDER US: note one of time
result() {
	result_in "$1" "$2" \
		"$(awk -v us="$3" 'BEGIN { printf "%.3f", us / 1000000 }')" s
}

# contents CLUSTER: a line for each table that depends on all its rows
contents() {
	tables "$1" | on_each "SELECT '@', count(*),
		sum(hashtextextended(t::text, 0)) FROM @ t" | sql "$1"
}

# compare CONTENDER: green must have what blue has, whose contents are in the
# file $work/contents
compare() {
	contents "$1" >"$work/contents.$1"
	diff "$work/contents" "$work/contents.$1" >&2 ||
		die "$1 is not what blue is"
}
