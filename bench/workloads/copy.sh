# Copy: how long until green has all rows, and follows if the contender can.
# shellcheck shell=bash disable=SC2154

# copy WORKLOAD: all runs, of the tables that are there
copy() {
	local run contender
	settle blue
	contents blue >"$work/contents"
	for ((run = 1; run <= runs; run++)); do
		for contender in $(rotated "$run" "${contenders[@]}" "${copiers[@]}"); do
			measure_copy "$1" "$contender"
		done
	done
}

# measure_copy WORKLOAD CONTENDER
measure_copy() {
	local begin us on query
	settle "$2"
	if declare -F "copy_$2" >/dev/null; then
		begin=$(now)
		"copy_$2" blue "$2"
		us=$(($(now) - begin))
	else
		"followed_$2" blue "$2"
		us=$(timed "$on" "$query" "follow_$2" blue "$2")
	fi
	result "$1" "$2" "$us"
	compare "$2"
	if ! declare -F "copy_$2" >/dev/null; then
		"pause_$2" blue "$2"
		"unfollow_$2" blue "$2"
	fi
	tables "$2" | on_each 'TRUNCATE @' | sql "$2"
}

accounts='CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int,
	abalance int, filler char(84)) WITH (fillfactor = 100);'

# account_rows N
account_rows() {
	sql blue <<<"INSERT INTO pgbench_accounts
		SELECT i, (i - 1) / 100000 + 1, 0, '' FROM generate_series(1, $1) i"
}

workload_copy() {
	make_tables "$accounts"
	account_rows "$(scaled 5000000)"
	copy copy
	drop_tables
}

workload_copy_wide() {
	make_tables "$wide"
	sql blue <<<"$(wide_rows 1 "$(scaled 1000000)")"
	copy copy_wide
	drop_tables
}
