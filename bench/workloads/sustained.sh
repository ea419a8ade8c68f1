# Sustained load: what a stream costs blue's clients, and the highest steady
# rate at which green stays less than a second behind.  Everything runs on one
# machine, so blue, green and pgbench share its processors.
# shellcheck shell=bash disable=SC2154

# sustained_pgbench CONTENDER OPTION...: TPC-B of eight clients for some
# seconds; prints the tps
sustained_pgbench() {
	"$bindir/pgbench" -n -M prepared -c 8 -j 2 -T "${TIME:-15}" "${@:2}" \
		-b tpcb-like -s 10 -p "${port[$1_blue]}" postgres \
		>"$work/pgbench.log" 2>&1 || {
		cat "$work/pgbench.log" >&2
		exit 1
	}
	sed -n 's/^tps = \([0-9]*\).*/\1/p' "$work/pgbench.log"
}

# caught_up CONTENDER: wait until green has everything
caught_up() {
	beats=$((beats + 1))
	sql "$1_blue" <<<"INSERT INTO beat VALUES (-$beats)"
	until_true "$1_green" "SELECT EXISTS (SELECT FROM beat WHERE n = -$beats)" \
		>/dev/null
}

# cost CONTENDER: blue's tps without the stream and with it
cost() {
	local off on
	"pause_$1" "$1_blue" "$1_green"
	settle "$1_blue"
	off=$(sustained_pgbench "$1")
	"resume_$1" "$1_blue" "$1_green"
	caught_up "$1"
	settle "$1_blue"
	on=$(sustained_pgbench "$1")
	caught_up "$1"
	result_in tps_off "$1" "$off" tps
	result_in tps_on "$1" "$on" tps
	result_in tps_on/off "$1" $((on * 100 / off)) %
}

# keeps_up CONTENDER [RATE]: is green less than a second behind all the time?
# Sets $reached, the tps.
keeps_up() {
	local limit=() lag
	if [ -n "${2:-}" ]; then limit=(-R "$2"); fi
	"$BENCH/lag" "${port[$1_blue]}" "${port[$1_green]}" "${TIME:-15}" \
		>"$work/lag" &
	reached=$(sustained_pgbench "$1" "${limit[@]}")
	wait $!
	lag=$(<"$work/lag")
	[ "$lag" -gt 100 ] || lag=100		# what can be told
	echo "# $1 at ${2:-any} tps: $reached tps, at most $lag ms behind"
	caught_up "$1"
	[ "$lag" -lt 1000 ] && [ "$reached" -ge $((${2:-0} * 95 / 100)) ]
}

# highest_rate CONTENDER: at full speed if it can, else by halving
highest_rate() {
	local low=0 high middle step reached
	if keeps_up "$1"; then
		result_in sustained "$1" "$reached" tps
		return
	fi
	high=$reached
	for ((step = 0; step < 5; step++)); do
		middle=$(((low + high) / 2))
		if keeps_up "$1" "$middle"; then low=$middle; else high=$middle; fi
	done
	result_in sustained "$1" "$low" tps
}

workload_sustained() {
	local contender run beats=0 online
	read -r -a online <<<"$(online)"
	for contender in "${online[@]}"; do
		pair "$contender" \
			"$pgbench_tables CREATE TABLE beat (n bigint PRIMARY KEY);" \
			"$(pgbench_rows 10)"
	done
	for ((run = 1; run <= runs; run++)); do
		for contender in $(rotated "$run" "${online[@]}"); do
			cost "$contender"
		done
	done
	for contender in "${online[@]}"; do
		highest_rate "$contender"
		end_pair "$contender"
	done
}
