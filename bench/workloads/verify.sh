# Verification: how long it takes to compare both sides, beside the copy and
# beside comparing dumps; and what one at the default rate costs blue's clients.
# shellcheck shell=bash disable=SC2154

# verify_rate RATE|default
verify_rate() {
	if [ "$1" = default ]; then
		sql blue <<<'ALTER SYSTEM RESET bluegreen.verify_rate'
	else
		sql blue <<<"ALTER SYSTEM SET bluegreen.verify_rate = $1"
	fi
	sql blue >/dev/null <<<'SELECT pg_reload_conf()'
	until_true blue "SELECT CASE '$1' WHEN 'default' THEN setting = boot_val
		ELSE setting = '$1' END FROM pg_settings
		WHERE name = 'bluegreen.verify_rate'" >/dev/null
}

# same: the last verification must have found nothing
same() {
	until_true blue "SELECT bool_and(state = 'done' AND differences = 0)
		FROM bluegreen.verification" >/dev/null
}

# dump CLUSTER TABLE KEY: all rows in the order of the key, as a hash
dump() {
	sql "$1" <<<"COPY (SELECT * FROM $2 ORDER BY $3) TO STDOUT" | md5sum
}

# compare_dumps TABLE KEY: both sides at the same time
compare_dumps() {
	dump blue "$@" >"$work/dump.blue" &
	dump bluegreen "$@" >"$work/dump.green"
	wait $!
	cmp -s "$work/dump.blue" "$work/dump.green" || die "dumps differ"
}

# verify WORKLOAD TABLE KEY: all runs, of the table that is there
verify() {
	local run begin us on query
	verify_rate 0
	settle blue
	for ((run = 1; run <= runs; run++)); do
		settle bluegreen
		followed_bluegreen blue bluegreen
		us=$(timed "$on" "$query" follow_bluegreen blue bluegreen)
		result "$1" copy "$us"
		settle bluegreen
		begin=$(now)
		sql blue <<<"CALL bluegreen.verify('bench')"
		result "$1" verify $(($(now) - begin))
		same
		begin=$(now)
		compare_dumps "$2" "$3"
		result "$1" dump_md5 $(($(now) - begin))
		pause_bluegreen blue bluegreen
		unfollow_bluegreen blue bluegreen
		tables bluegreen | on_each 'TRUNCATE @' | sql bluegreen
	done
	verify_rate default
}

workload_verify() {
	[[ " ${contenders[*]} " == *" bluegreen "* ]] || return 0
	make_tables "$accounts"
	account_rows "$(scaled 5000000)"
	verify verify pgbench_accounts aid
	drop_tables
	make_tables "$wide"
	sql blue <<<"$(wide_rows 1 "$(scaled 1000000)")"
	verify verify_wide document id
	drop_tables
	verify_load
}

# load_tps: TPC-B of eight clients for some seconds; prints the tps
load_tps() {
	"$bindir/pgbench" -n -M prepared -c 8 -j 2 -T "${TIME:-15}" -b tpcb-like \
		-s 10 -p "${port[blue]}" postgres >"$work/pgbench.log" 2>&1 ||
		die "$(<"$work/pgbench.log")"
	sed -n 's/^tps = \([0-9]*\).*/\1/p' "$work/pgbench.log"
}

# verify_load: blue's tps while green follows, without and with a verification
# at the default rate that begins again and again
verify_load() {
	local run off on
	"$bindir/pgbench" -i -q -s 10 -p "${port[blue]}" postgres 2>/dev/null
	sql blue <<<"ALTER TABLE pgbench_history REPLICA IDENTITY FULL"
	"$bindir/pg_dump" -s -t 'pgbench*' -p "${port[blue]}" postgres |
		sql bluegreen >/dev/null
	follow bluegreen blue bluegreen
	for ((run = 1; run <= runs; run++)); do
		off=$(load_tps)
		sql blue <<<"CALL bluegreen.verify('bench', every => '1 ms',
			wait => false)"
		on=$(load_tps)
		sql blue >/dev/null <<<"SELECT bluegreen.cancel_verify('bench')"
		result_in verify_tps_off bluegreen "$off" tps
		result_in verify_tps_on bluegreen "$on" tps
		result_in verify_tps_on/off bluegreen $((on * 100 / off)) %
	done
	pause_bluegreen blue bluegreen
	unfollow_bluegreen blue bluegreen
	drop_tables
}
