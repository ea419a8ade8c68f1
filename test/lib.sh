# Functions that test/run and demo/run share (bash): a work folder that always
# goes away, a private copy of a server with the extension in it, clusters.
#
# Nothing here touches the installed server or its clusters.  A "root" is the
# path of another Debian system that is entered with chroot, or '' for this
# one; paths handed to programs inside a root are as seen from there.
# shellcheck shell=bash

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work_dirs=()				# root:dir of every work folder
export LC_ALL=C
for name in ${!PG@}; do		# a user's PGHOST or PGOPTIONS is not meant for us
	case $name in PG_* | PGCTLTIMEOUT) ;; *) unset "$name" ;; esac
done

# run_in ROOT COMMAND...
run_in() {
	local root=$1
	shift
	if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi
}

# run_server ROOT COMMAND...: the same as a user who may run a server
run_server() {
	local root=$1
	shift
	if [ "$(id -u)" -eq 0 ]; then
		(cd / && run_in "$root" runuser -u postgres -- "$@")
	else
		(cd / && run_in "$root" "$@")
	fi
}

# work_begin ROOT: make a work folder; its path (inside the root) is in REPLY
work_begin() {
	local root=$1
	REPLY=$(run_in "$root" mktemp -d "${TMPDIR:-/tmp}/pg_bluegreen.XXXXXX") ||
		return 1
	work_dirs+=("$root:$REPLY")
	chmod 755 "$root$REPLY"
	mkdir "$root$REPLY/clusters"
	if [ "$(id -u)" -eq 0 ]; then
		run_in "$root" chown postgres: "$REPLY/clusters"
	fi
}

# work_end: stop every server of the work folders and remove them; KEEP=1 only
# stops the servers
work_end() {
	local entry dir pidfile pid
	for entry in "${work_dirs[@]}"; do
		dir=${entry/:/}
		for pidfile in "$dir"/clusters/*/data/postmaster.pid; do
			[ -e "$pidfile" ] || continue
			pid=$(head -n 1 "$pidfile")
			kill -QUIT "$pid" 2>/dev/null
			timeout 30 tail -s 0.1 --pid="$pid" -f /dev/null	# until it has gone
		done
		if [ -n "${KEEP:-}" ]; then
			echo "# kept $dir"
		else
			rm -rf "$dir"
		fi
	done
	work_dirs=()
}

# is_server_config ROOT PG_CONFIG: does it belong to a server we can build for?
is_server_config() {
	local pgxs bindir
	pgxs=$(run_in "$1" "$2" --pgxs 2>/dev/null) &&
		bindir=$(run_in "$1" "$2" --bindir) &&
		[ -e "$1$pgxs" ] && [ -x "$1$bindir/postgres" ]
}

# find_pg_config ROOT [PG_CONFIG]: the given one, that of PATH, or the newest
# of Debian's; in REPLY
find_pg_config() {
	local candidate
	for candidate in "${2:-pg_config}" \
		$(cd "$1/" && printf '/%s\n' usr/lib/postgresql/*/bin/pg_config |
			sort -rV); do
		REPLY=$candidate
		is_server_config "$1" "$candidate" && return 0
		[ -z "${2:-}" ] || break
	done
	echo "no server with its development files found for ${2:-pg_config}" >&2
	return 1
}

# copy_server ROOT PG_CONFIG DEST: copy an installation so that it finds its
# own files in the new place, as PostgreSQL's own temporary installs do
copy_server() {
	local root=$1 config=$2 dest=$3 what dir
	for what in bindir pkglibdir sharedir; do
		dir=$(run_in "$root" "$config" "--$what")
		mkdir -p "$root$dest$dir"
		cp -al "$root$dir/." "$root$dest$dir" 2>/dev/null ||
			cp -a "$root$dir/." "$root$dest$dir" || return 1
		rm -rf "$root$dest$dir"/pg_bluegreen.so \
			"$root$dest$dir"/extension/pg_bluegreen* \
			"$root$dest$dir"/bitcode/pg_bluegreen*
	done
}

# compiler ROOT PG_CONFIG: the server's own, through ccache where that is there:
# the same sources are built for each suite of .ci/run, in another folder
compiler() {
	local cc
	cc=$(run_in "$1" "$2" --cc)
	if run_in "$1" sh -c 'command -v ccache' >/dev/null; then
		cc="env CCACHE_NOHASHDIR=1 ccache $cc"
	fi
	echo "$cc"
}

# private_install ROOT PG_CONFIG WORK: build the extension in WORK/src and
# install it into a copy of the server in WORK/server; the copy's folder of
# programs is in REPLY
private_install() {
	local root=$1 config=$2 work=$3 log=$1$3/build.log
	mkdir "$root$work/src" "$root$work/server"
	tar -C "$TOP" --exclude=.git --exclude='*.o' --exclude='*.bc' \
		--exclude='*.so' --exclude=./results --exclude=./output_iso -cf - . |
		tar -C "$root$work/src" --no-same-owner -xf - || return 1
	copy_server "$root" "$config" "$work/server" || return 1
	if ! run_in "$root" make -s -C "$work/src" -j "$(nproc)" with_llvm=no \
		CC="$(compiler "$root" "$config")" PG_CONFIG="$config" all >"$log" 2>&1 ||
		! run_in "$root" make -s -C "$work/src" with_llvm=no \
			PG_CONFIG="$config" DESTDIR="$work/server" install >>"$log" 2>&1 ||
		grep -q 'warning:' "$log"; then
		echo "the build for $config failed:" >&2
		head -n 80 "$log" >&2
		return 1
	fi
	REPLY=$work/server$(run_in "$root" "$config" --bindir)
	[ -z "${SERVER_WRAPPER:-}" ] ||
		wrap_server "$root" "$REPLY" "$SERVER_WRAPPER"
}

# wrap_server ROOT BINDIR COMMAND: servers of this copy run under a command
wrap_server() {
	local postgres=$1$2/postgres
	mv "$postgres" "$postgres.real"
	cat >"$postgres" <<-SH
		#!/bin/sh
		case " \$* " in
			*' -D '*) exec $3 "$2/postgres.real" "\$@" ;;
			*) exec "$2/postgres.real" "\$@" ;;
		esac
	SH
	chmod 755 "$postgres"
}

# free_port: one that nobody listens on, in REPLY
free_port() {
	REPLY=$(perl -MIO::Socket::INET -e '
		while (1)
		{
			my $port = 10000 + int(rand(20000));
			my $socket = IO::Socket::INET->new(LocalAddr => "127.0.0.1",
				LocalPort => $port, Proto => "tcp", Listen => 1) or next;
			print $port;
			last;
		}')
}

# cluster_start ROOT BINDIR DIR PORT: create a cluster and start it
cluster_start() {
	local root=$1 bindir=$2 dir=$3 port=$4 conf=$1$3/data/postgresql.conf
	run_server "$root" mkdir "$dir"
	run_server "$root" "$bindir/initdb" -D "$dir/data" -U postgres -A trust \
		--no-sync --locale=C -E UTF8 >"$root$dir.initdb" 2>&1 || {
		cat "$root$dir.initdb" >&2
		return 1
	}
	{
		cat "$TOP/test/cluster.conf"
		echo "port = $port"
		if run_server "$root" "$bindir/postgres" --describe-config |
			grep '^output_plugin_libraries' >/dev/null; then
			echo "output_plugin_libraries = 'pgoutput, test_decoding, pg_bluegreen'"
		fi
	} >>"$conf"
	run_server "$root" "$bindir/pg_ctl" -D "$dir/data" -l "$dir/log" -w -s \
		start </dev/null || {
		tail -n 30 "$root$dir/log" >&2
		return 1
	}
}
