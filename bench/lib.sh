# Functions that the benchmarks share (bash): temporary clusters, SQL on them,
# and waiting without disturbing what is measured.
#
# Settings that matter for the numbers are in bench.conf, and printed.
# shellcheck shell=bash disable=SC2034

. "$(dirname "${BASH_SOURCE[0]}")/../test/lib.sh"

BENCH=$TOP/bench
declare -A port=()			# of each cluster
export PGUSER=postgres PGHOST=127.0.0.1

# bench_begin: build, and install into a copy of the server; $work and $bindir
bench_begin() {
	work_begin '' || exit 1
	work=$REPLY
	trap 'trap - EXIT; set +e; work_end' EXIT
	trap 'exit 1' INT TERM HUP
	find_pg_config '' "${PG_CONFIG:-}" || exit 1
	echo "# $("$REPLY" --version), $(nproc) processors," \
		"load $(cut -d' ' -f1-3 </proc/loadavg)"
	private_install '' "$REPLY" "$work" || exit 1
	bindir=$REPLY
	sharedir=$("$bindir/pg_config" --sharedir)
	grep -h '=' "$BENCH/bench.conf" | sed 's/^/# /'
}

# die MESSAGE: give up
die() {
	echo "bench: $1" >&2
	exit 1
}

# server NAME PROGRAM...: pg_ctl and the like, on a cluster
server() {
	local dir=$work/clusters/$1
	run_server '' "$bindir/$2" -D "$dir/data" -l "$dir/log" -w -s "${@:3}" \
		</dev/null
}

# cluster NAME [CONF]: make and start one, with the settings of bench.conf
cluster() {
	free_port
	port[$1]=$REPLY
	cluster_start '' "$bindir" "$work/clusters/$1" "$REPLY" || exit 1
	{
		cat "$BENCH/bench.conf"
		echo "${2:-}"
	} >>"$work/clusters/$1/data/postgresql.conf"
	server "$1" pg_ctl -m fast restart || exit 1
}

# sql NAME: run the SQL of standard input on a cluster; prints rows
sql() {
	PGOPTIONS="-c client_min_messages=warning ${PGOPTIONS:-}" \
		"$bindir/psql" -XAtq -v ON_ERROR_STOP=1 -p "${port[$1]}" -d postgres \
		-f - || die "on $1"
}

# until_true NAME SQL: wait until a query prints t; prints the moment (us)
until_true() {
	"$BENCH/until" "${port[$1]}" "$2" "${PATIENCE:-1200}" ||
		die "on $1: $2"
}

# now: microseconds
now() {
	echo "${EPOCHREALTIME/./}"
}

# scaled N: rows or transactions, as many as SCALE says
scaled() {
	awk -v n="$1" -v scale="${SCALE:-1}" 'BEGIN { printf "%.0f", n * scale }'
}

# tables NAME: the tables of a cluster's benchmark, the mark last
tables() {
	sql "$1" <<<"SELECT relname FROM pg_class WHERE relkind = 'r'
		AND relnamespace = 'public'::regnamespace
		ORDER BY relname = 'mark', relname"
}

# has_extension NAME: does this server know it?
has_extension() {
	[ -e "$sharedir/extension/$1.control" ]
}

# postmaster NAME: its process
postmaster() {
	head -n 1 "$work/clusters/$1/data/postmaster.pid"
}
