# How long after a commit on blue does wait_for_token() return on green?
#
# pgbench makes the load (see latency.sh); ./tokens commits, takes a token and
# waits for it.
# shellcheck shell=bash disable=SC2154

# measure_token RATE NUMBER: one line of details, two results
measure_token() {
	local load line
	latency_load bluegreen_blue "$1" $((${TIME:-15} + 2)) "$2" &
	load=$!
	sleep 1		# to warm up
	line=$("$BENCH/tokens" "${port[bluegreen_blue]}" \
		"${port[bluegreen_green]}" "${TIME:-15}" "$2")
	wait "$load"
	echo "token $1 tps: $line"
	read -r -a line <<<"$line"
	result_in "token_$1_p50" bluegreen "${line[3]}" ms
	result_in "token_$1_p99" bluegreen "${line[5]}" ms
}

workload_token() {
	local rate run number=0
	[[ " ${contenders[*]} " == *' bluegreen '* ]] || return 0
	echo "$latency_script" >"$work/latency.sql"
	pair bluegreen "$latency_tables" "$latency_rows"
	for rate in ${RATES:-200 1000}; do
		for ((run = 1; run <= runs; run++)); do
			number=$((number + 1))
			measure_token "$rate" "$number"
		done
	done
	end_pair bluegreen
}
