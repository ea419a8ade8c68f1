# How long after a commit on blue can green's clients see it?
#
# pgbench commits small transactions on blue at a fixed rate.  On green a
# trigger tells a client that listens of each row.  What is a transaction's
# latency is in README.md.
# shellcheck shell=bash disable=SC2154

# An update and an insert.  The client's number of the transaction is that of
# pgbench's log.
latency_script='
\set n :n + 1
\set id random(1, 10000)
BEGIN;
UPDATE account SET balance = balance + 1 WHERE id = :id;
INSERT INTO sample (run, client, number) VALUES (:run, :client_id, :n);
COMMIT;
'
latency_tables='
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE sample (id bigserial PRIMARY KEY, run int NOT NULL,
	client int NOT NULL, number int NOT NULL);
'
latency_rows='INSERT INTO account SELECT i, 0 FROM generate_series(1, 10000) i;'
latency_tell="
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM pg_notify('seen', NEW.run || ' ' || NEW.client || ' ' || NEW.number);
	RETURN NULL;
END \$\$;
CREATE TRIGGER tell AFTER INSERT ON sample FOR EACH ROW EXECUTE FUNCTION tell();
ALTER TABLE sample ENABLE ALWAYS TRIGGER tell;
"

# latency_load CLUSTER RATE SECONDS NUMBER: pgbench, which logs each
# transaction's end
latency_load() {
	rm -f "$work"/acknowledged.*
	"$bindir/pgbench" -n -M prepared -c 4 -j 1 -R "$2" -T "$3" \
		-D n=0 -D run="$4" -l --log-prefix="$work/acknowledged" \
		-f "$work/latency.sql" -p "${port[$1]}" postgres \
		>"$work/pgbench.log" 2>&1 || {
		cat "$work/pgbench.log" >&2
		exit 1
	}
}

# written CLUSTER NUMBER: when each transaction's commit record was written (us)
written() {
	sql "$1" <<<"COPY (SELECT client, number, (extract(epoch FROM
		pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
		FROM sample WHERE run = $2) TO STDOUT"
}

# syncs CLUSTER: WAL syncs so far, and ms spent in them; since PostgreSQL 18
# they are counted elsewhere
syncs() {
	sql "$1" <<-'SQL'
		SELECT current_setting('server_version_num')::int >= 180000 AS has_io \gset
		\if :has_io
		SELECT sum(fsyncs) || ' ' || sum(fsync_time) FROM pg_stat_io
			WHERE object = 'wal';
		\else
		SELECT wal_sync || ' ' || wal_sync_time FROM pg_stat_wal;
		\endif
	SQL
}

# measure_latency CONTENDER RATE NUMBER: one line of details, two results
measure_latency() {
	local blue=$1_blue green=$1_green number=$3 listener before after count line
	: >"$work/seen"
	"$BENCH/listen" "${port[$green]}" seen >"$work/seen" &
	listener=$!
	latency_load "$blue" "$2" 2 0		# to warm up
	before="$(syncs "$blue") $(syncs "$green")"
	latency_load "$blue" "$2" "${TIME:-15}" "$number"
	count=$(sql "$blue" <<<"SELECT count(*) FROM sample WHERE run = $number")
	until_true "$green" "SELECT count(*) = $count FROM sample
		WHERE run = $number" >/dev/null
	after="$(syncs "$blue") $(syncs "$green")"
	kill "$listener"
	wait "$listener" 2>/dev/null || :
	written "$blue" "$number" >"$work/written"
	line=$("$BENCH/percentiles" "$1" "$2" "$number" "$before $after" \
		"$work"/acknowledged.* "$work/written" "$work/seen")
	echo "$line"
	read -r -a line <<<"$line"
	result_in "latency_$2_p50" "$1" "${line[3]}" ms
	result_in "latency_$2_p99" "$1" "${line[5]}" ms
}

workload_latency() {
	local rate run contender number=0 online
	read -r -a online <<<"$(online)"
	echo "$latency_script" >"$work/latency.sql"
	for contender in "${online[@]}"; do
		pair "$contender" "$latency_tables" "$latency_rows"
		sql "${contender}_green" <<<"$latency_tell"
	done
	"$BENCH/percentiles" --head
	for rate in ${RATES:-200 1000}; do
		for ((run = 1; run <= runs; run++)); do
			for contender in $(rotated "$run" "${online[@]}"); do
				number=$((number + 1))
				measure_latency "$contender" "$rate" "$number"
			done
		done
	done
	for contender in "${online[@]}"; do end_pair "$contender"; done
}
