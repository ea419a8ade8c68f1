# Stop and start, wait, skip, add and remove tables, drop: a deployment's life
# under its operator's hands.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");

foreach my $table (qw(t u w))
{
	$_->safe_psql("CREATE TABLE $table (id int PRIMARY KEY, v int NOT NULL)")
	  for $blue, $green;
	$blue->safe_psql(
		"INSERT INTO $table SELECT i, i FROM generate_series(1, 2000) i");
}
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	CALL bluegreen.start('d');});
wait_for_sync('d');

sub stream
{
	my ($column, $deployment) = @_;
	$deployment //= 'd';
	return $blue->safe_psql("SELECT $column FROM bluegreen.stat_stream"
		  . " WHERE deployment = '$deployment'");
}

sub same
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return compare_tables("TABLE $table", "TABLE $table", $name);
}

#
# Stop and start
#
my $slot = stream('slot_name');
$blue->safe_psql(q{CALL bluegreen.stop('d')});
is(stream('state'), 'stopped', 'stop stops');
is( $blue->safe_psql(q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type IN ('pg_bluegreen stream', 'pg_bluegreen copy')}),
	0,
	'and when it returns nobody works');
is( $blue->safe_psql(
		"SELECT active FROM pg_replication_slots WHERE slot_name = '$slot'"),
	'f',
	'but the slot is kept');
$blue->safe_psql('UPDATE t SET v = v + 1; INSERT INTO t VALUES (3000, 1);
	DELETE FROM t WHERE id = 1;');
my (undef, undef, $error) =
  $blue->psql(q{CALL bluegreen.wait_for_sync('d')});
like($error, qr/is not started/, 'waiting for a stopped stream is an error');
$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d');});
wait_for_sync('d');
same('t', 'start goes on where stop stopped, nothing is lost');

#
# wait_for_sync
#
my $session = $green->session;
$session->query('BEGIN; LOCK TABLE t IN EXCLUSIVE MODE');
$blue->safe_psql('INSERT INTO t VALUES (3001, 1)');
(undef, undef, $error) = $blue->psql(
	"\\set VERBOSITY verbose\nCALL bluegreen.wait_for_sync('d', '500 ms')");
like(
	$error,
	qr/57014: timeout while waiting for deployment "d"/,
	'wait_for_sync gives up at its timeout');
is(stream(q{lag > '0' AND lag_bytes > 0}),
	't', 'the lag grows in bytes and time while something is pending');
$session->query('COMMIT');
wait_for_sync('d');
is( $green->safe_psql('SELECT v FROM t WHERE id = 3001'), 1,
	'and returns when the row is on the peer');

#
# A row that cannot be applied
#
$green->safe_psql('ALTER TABLE t ADD CONSTRAINT unlucky CHECK (v <> -13)');
$blue->safe_psql('UPDATE t SET v = 12 WHERE id = 3000');
$blue->safe_psql('BEGIN; UPDATE t SET v = 99 WHERE id = 3001;
	INSERT INTO t VALUES (4000, 1), (4013, -13); COMMIT;');
$blue->safe_psql('INSERT INTO t VALUES (5000, 1)');
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'a row that the peer refuses stops the stream');
is( stream('error_sqlstate, error_relation, error_key, error_lsn IS NOT NULL'),
	q{23514|public.t|id[integer]:'4013'|t},
	'the error names sqlstate, table, key and position');
like(stream('error_message'), qr/violates check constraint "unlucky"/,
	'and what is wrong');
like(stream('error_hint'), qr/bluegreen\.skip\(/, 'and how to get rid of it');
like(
	$blue->safe_psql('SELECT state, error FROM bluegreen.status'),
	qr/^(error|starting)\|./,
	'status tells as well');
(undef, undef, $error) =
  $blue->psql(q{CALL bluegreen.wait_for_sync('d')});
like($error, qr/unlucky/, 'wait_for_sync raises the error instead of waiting');
is( $green->safe_psql(q{SELECT string_agg(id || '=' || v, ' ' ORDER BY id)
		FROM t WHERE id >= 3000}),
	'3000=12 3001=1',
	'what came before is applied, nothing of it nor after it');

my $lsn = stream('error_lsn');
(undef, undef, $error) =
  $blue->psql(qq{SELECT bluegreen.skip('d', '$lsn'::pg_lsn + 8)});
like($error, qr/stands at \Q$lsn\E, not at/, 'skip wants the right position');
my $tries = stream('errors');
ok( $blue->poll_query_until(
		"SELECT errors > $tries FROM bluegreen.stat_stream"),
	'it is tried again, with the same result');
is(stream('error_lsn'), $lsn, 'and stands at the same transaction');
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'in state error again');
$blue->safe_psql("SELECT bluegreen.skip('d', '$lsn')");
wait_for_sync('d');
is( $green->safe_psql(q{SELECT string_agg(id || '=' || v, ' ' ORDER BY id)
		FROM t WHERE id >= 3000}),
	'3000=12 3001=1 5000=1',
	'after skip only that transaction is missing');
is(stream('skipped'), 1, 'it is counted');
ok( $blue->poll_query_until(
		qq{SELECT count(*) = 2 FROM bluegreen.event
		WHERE deployment = 'd' AND kind = 'skipped' AND lsn = '$lsn'}),
	'and is recorded when it is asked for and when it is done');

# the same again, where the peer notices only when it commits
$green->safe_psql(q{
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN RAISE 'late refusal' USING ERRCODE = 'check_violation'; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t
	DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (NEW.v = -14) EXECUTE FUNCTION refuse();
ALTER TABLE t ENABLE ALWAYS TRIGGER late;});
$blue->safe_psql('BEGIN; INSERT INTO t VALUES (4014, -14); COMMIT;
	INSERT INTO t VALUES (5001, 1);');
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'a refusal at COMMIT stops the stream as well');
like(
	stream('error_sqlstate, error_relation, error_key, error_message'),
	qr/^23514\|\|\|.*late refusal/,
	'it names no row, not even an older one');
$blue->safe_psql(q{SELECT bluegreen.skip('d', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('d');
is( $green->safe_psql('SELECT string_agg(id::text, \' \') FROM t
		WHERE id IN (4014, 5001)'),
	'5001',
	'and can be skipped');
$blue->safe_psql('DELETE FROM t WHERE id = 4014');
wait_for_sync('d');
$green->safe_psql('TRUNCATE bluegreen.conflict_log');

# who has removed the cause need not wait for the stream's next try
sub restart_delay
{
	my ($first, $max) = @_;
	$blue->append_conf("bluegreen.restart_delay = '$first'\n"
		  . "bluegreen.restart_delay_max = '$max'");
	$blue->reload;
	$blue->poll_query_until('SHOW bluegreen.restart_delay', $first) or die;
	return;
}
restart_delay('1h', '1h');
$green->safe_psql('ALTER TABLE t ADD CONSTRAINT unhappy CHECK (v <> -15)');
$blue->safe_psql('INSERT INTO t VALUES (4113, -15)');
(undef, undef, $error) = $blue->psql(q{CALL bluegreen.wait_for_sync('d')});
like($error, qr/unhappy/, 'wait_for_sync raises an error');
$tries = stream('errors');
(undef, undef, $error) = $blue->psql(q{CALL bluegreen.wait_for_sync('d')});
like($error, qr/unhappy/, 'and the same error again');
cmp_ok(stream('errors'), '>', $tries, 'but after it was tried again');
$green->safe_psql('ALTER TABLE t DROP CONSTRAINT unhappy');
wait_for_sync('d');
is($green->safe_psql('SELECT v FROM t WHERE id = 4113'),
	'-15', 'and goes on at once when the cause is gone');
$blue->safe_psql('DELETE FROM t WHERE id = 4113');
restart_delay('100ms', '500ms');

# a connection that fails is no reason to leave anything out
$green->stop;
$blue->safe_psql('INSERT INTO t VALUES (5002, 1)');
ok( $blue->poll_query_until(q{SELECT state = 'error'
		AND error_sqlstate LIKE '08%' FROM bluegreen.stat_stream}),
	'a peer that is away is an error');
(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.skip('d', pg_current_wal_lsn())});
like($error, qr/does not belong to a transaction/, 'that cannot be skipped');
$green->start;
wait_for_sync('d');
is($green->safe_psql('SELECT v FROM t WHERE id = 5002'),
	1, 'and passes by itself');

# set right by hand what was skipped
$green->safe_psql('UPDATE t SET v = 99 WHERE id = 3001;
	INSERT INTO t VALUES (4000, 1);');
$blue->safe_psql('DELETE FROM t WHERE id = 4013');
wait_for_sync('d');
same('t', 'a row that is set right by hand fits');
is( $green->safe_psql('SELECT kind, key FROM bluegreen.conflict'),
	q{delete_missing|id[integer]:'4013'},
	'deleting a row that is not there is recorded as a conflict');

#
# The cause is removed
#
$blue->safe_psql('INSERT INTO t VALUES (6013, -13); INSERT INTO t VALUES (6014, 1);');
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'the next unlucky row stops the stream');
$green->safe_psql('ALTER TABLE t DROP CONSTRAINT unlucky');
ok( $blue->poll_query_until(q{SELECT state = 'streaming'
		FROM bluegreen.stat_stream}),
	'when the cause is removed the stream goes on by itself');
wait_for_sync('d');
same('t', 'and nothing is missing');
is($blue->safe_psql('SELECT error FROM bluegreen.status'),
	'', 'status tells of no error any more');

#
# Tables come and go under load
#
my $bench = pgbench_start(
	$blue,
	clients => 2,
	rate => 300,
	script => <<'SQL');
\set id random(1, 10000)
INSERT INTO t VALUES (:id, 0) ON CONFLICT (id) DO UPDATE SET v = t.v + 1;
INSERT INTO u VALUES (:id, 0) ON CONFLICT (id) DO UPDATE SET v = u.v + 1;
SQL
my $writer = $blue->session;
$writer->query(
	'BEGIN; INSERT INTO u VALUES (20001, 1); UPDATE u SET v = -1 WHERE id = 7');
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'u')});
$blue->safe_psql('INSERT INTO u VALUES (20002, 2)');
ok( $blue->poll_query_until(q{SELECT EXISTS (SELECT FROM bluegreen.stat_table
		WHERE target = 'public.u' AND state <> 'streaming')
		AND EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE a.backend_type = 'pg_bluegreen copy'
			AND l.locktype = 'transactionid' AND NOT l.granted)}),
	'a table that is added waits for a writer that was in flight');
$blue->safe_psql('INSERT INTO t VALUES (20003, 3)');
ok( $green->poll_query_until('SELECT EXISTS (SELECT FROM t WHERE id = 20003)'),
	'while the others follow');
$writer->query('INSERT INTO u VALUES (20003, 3); COMMIT');
wait_for_sync('d');
is( $green->safe_psql(q{SELECT string_agg(id || '=' || v, ' ' ORDER BY id)
		FROM u WHERE id > 20000}),
	'20001=1 20002=2 20003=3',
	'then nothing of the writer is lost');

$writer->query('BEGIN; INSERT INTO u VALUES (20004, 4);
	INSERT INTO t VALUES (20004, 4)');
$blue->safe_psql(q{SELECT bluegreen.unmap_table('d', 'u')});
wait_for_sync('d');
my $left = $green->safe_psql('SELECT count(*), sum(v) FROM u');
$writer->query('COMMIT');
my $count = $blue->safe_psql('SELECT sum(v) FROM u') + 100;
$blue->poll_query_until("SELECT sum(v) > $count FROM u");
wait_for_sync('d');
ok(pgbench_stop($bench), 'nobody was disturbed');
wait_for_sync('d');
is( $green->safe_psql('SELECT count(*), sum(v) FROM u'),
	$left, 'a table that is removed is left as it is');
same('t', 'and the others have all of the writer that was in flight');
is( $green->safe_psql('SELECT target_table FROM bluegreen.applied_table'),
	't', 'the peer has forgotten the table');

# and once more: from the beginning, onto what is there
$green->safe_psql('TRUNCATE u');
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'u')});
wait_for_sync('d');
same('u', 'a table that was removed can come back');

#
# What the operator reads
#
sub width
{
	my ($view) = @_;
	my $out = $blue->safe_psql("SELECT * FROM bluegreen.$view",
		extra_params => [qw(-P format=aligned -P tuples_only=off)]);
	my ($width) = sort { $b <=> $a } map { length } split /\n/, $out;
	cmp_ok($width, '<=', 100, "$view is at most 100 columns wide")
	  or diag($out);
	return;
}
width($_) for qw(status stat_table copy_progress);

#
# Restarts: no setting says which streams there are
#
$blue->safe_psql(q{SELECT bluegreen.create_deployment('e', 'green');
	SELECT bluegreen.map_table('e', 'w');
	CALL bluegreen.start('e');});
wait_for_sync('e');
$_->restart for $green, $blue;
$blue->safe_psql('INSERT INTO t VALUES (30000, 1); INSERT INTO w VALUES (30000, 1)');
wait_for_sync($_) for qw(d e);
same('t', 'streams come back after a restart of both servers');
same('w', 'each of them');

$blue->safe_psql(q{CALL bluegreen.stop('d')});
$blue->restart;
$blue->safe_psql('INSERT INTO t VALUES (30001, 1); INSERT INTO w VALUES (30001, 1)');
wait_for_sync('e');
same('w', 'after the next one the started deployment follows');
is(stream('state, pid'), 'stopped|', 'and the stopped one stays stopped');
is($green->safe_psql('SELECT count(*) FROM t WHERE id = 30001'),
	0, 'its changes wait');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
same('t', 'until it is started');

#
# Drop: of d everything goes, of e nothing
#
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
my $leavings = q{SELECT
	(SELECT string_agg(slot_name, ',') FROM pg_replication_slots),
	(SELECT string_agg(name, ',') FROM bluegreen.deployment),
	(SELECT string_agg(source::regclass::text, ',') FROM bluegreen.table_mapping),
	(SELECT count(DISTINCT mapping) FROM bluegreen.mapping_column),
	(SELECT count(*) FROM bluegreen.chunk_log),
	(SELECT count(*) FROM pg_class WHERE relnamespace = 'bluegreen'::regnamespace
		AND relname LIKE 'transform%'),
	(SELECT string_agg(deployment, ',') FROM bluegreen.stat_stream)};
like($blue->safe_psql($leavings),
	qr/^bluegreen_\d+_2_f\|e\|w\|1\|1\|1\|e$/,
	'drop_deployment leaves nothing on this side');
my $green_leavings = q{SELECT
	(SELECT string_agg(roname, ',') FROM pg_replication_origin
		WHERE roname NOT LIKE '%\_c_'),
	(SELECT string_agg(deployment, ',') FROM bluegreen.applied_stream),
	(SELECT string_agg(target_table, ',') FROM bluegreen.applied_table),
	(SELECT string_agg(stream || ' ' || number, ',') FROM bluegreen.applied_chunk),
	(SELECT count(*) FROM bluegreen.saved_index),
	(SELECT count(*) FROM pg_stat_activity
		WHERE application_name LIKE 'bluegreen d %')};
like($green->safe_psql($green_leavings),
	qr/^([^,|]+_2_f)\|e\|w\|\1 1\|0\|0$/,
	'nor on the other');
$blue->safe_psql('INSERT INTO w VALUES (30002, 1)');
wait_for_sync('e');
same('w', 'other deployments do not notice');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('e')});
is($blue->safe_psql($leavings), '|||0|0|0|', 'nor does the last one');
is( $green->safe_psql(q{SELECT count(*) FROM pg_replication_origin}),
	0, 'all origins are gone');
$blue->safe_psql(q{TRUNCATE w; INSERT INTO w VALUES (1, 1);
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'w');});
(undef, undef, $error) = $blue->psql(q{CALL bluegreen.start('d')});
like($error, qr/not empty/, 'a start that is refused');
is($blue->safe_psql('SELECT count(*) FROM pg_replication_slots'),
	0, 'leaves nothing either');

done_testing();
