# Growth: the pgbench catch-up and the copy with 1, 2 and 4 times as much.  The
# time must grow as they do, and the memory must not.
# shellcheck shell=bash disable=SC2154,SC2034

factors='1 2 4'

# watched WORKLOAD COMMAND...: run it, and note the private memory of blue's and
# green's largest process meanwhile
watched() {
	local watcher
	"$BENCH/memory" "$(postmaster blue)" "$(postmaster bluegreen)" \
		>"$work/memory" &
	watcher=$!
	"${@:2}"
	kill "$watcher"
	wait "$watcher" || :
	result_in "$1" memory "$(<"$work/memory")" MB
}

# grown WORKLOAD: how the times of 2x and 4x are to that of 1x
grown() {
	awk -v w="$1" '
		$1 ~ "^" w "_[0-9]x$" && $2 == "bluegreen" { sum[$1] += $3 }
		END {
			for (f = 2; f <= 4; f *= 2)
				printf "%s_%dx bluegreen/1x %.2f x\n", w, f,
					sum[w "_" f "x"] / sum[w "_1x"]
		}' "$work/results" >"$work/grown"
	sed 's/^/# /' "$work/grown"
	cat "$work/grown" >>"$work/results"
}

workload_growth() {
	local factor contenders=(bluegreen) copiers=() floors=no GROWTH
	for factor in $factors; do
		make_tables "$pgbench_tables"
		sql blue <<<"$(pgbench_rows 10)"
		GROWTH=$factor
		watched "growth_pgbench_${factor}x" catch_up "growth_pgbench_${factor}x"
		drop_tables
	done
	grown growth_pgbench
	for factor in $factors; do
		make_tables "$accounts"
		account_rows "$(scaled $((5000000 * factor)))"
		watched "growth_copy_${factor}x" copy "growth_copy_${factor}x"
		drop_tables
	done
	grown growth_copy
}
for factor in $factors; do
	eval "load_growth_pgbench_${factor}x() { load_catchup_pgbench \"\$1\"; }"
done
