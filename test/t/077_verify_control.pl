# A verification that is killed goes on where it was; it is throttled, repeated,
# cancelled, asked for twice; it waits for commits that wait for a standby, and
# says so when the stream does not run or does not get on, or a target is gone.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $rows = 100_000;
my ($blue, $green) = create_pair(
	conf => <<'CONF', green_conf => "log_statement = 'all'");
bluegreen.restart_delay = 50ms
bluegreen.restart_delay_max = 200ms
max_prepared_transactions = 2
CONF

sub setting
{
	my ($name, $value) = @_;
	$blue->safe_psql("ALTER SYSTEM SET $name = '$value'");
	$blue->safe_psql('SELECT pg_reload_conf()');
	$blue->poll_query_until("SELECT setting = '$value' FROM pg_settings
		WHERE name = '$name'");
	return;
}

sub ranges
{
	my ($comparison) = @_;
	return "SELECT state = 'comparing' AND ranges $comparison
		FROM bluegreen.verification";
}

foreach my $node ($blue, $green)
{
	$node->safe_psql('CREATE TABLE t (id integer PRIMARY KEY, n integer CHECK (n < 1000000))');
}
$blue->safe_psql(<<"SQL");
ALTER TABLE t DROP CONSTRAINT t_n_check;
INSERT INTO t SELECT i, 0 FROM generate_series(1, $rows) i;
ANALYZE t;
SELECT bluegreen.create_deployment('c', 'green');
SELECT bluegreen.map_table('c', 't');
SQL
like(($blue->psql(q{CALL bluegreen.verify('c')}))[2],
	qr/deployment "c" is not started/, 'verify() needs a stream');
$blue->safe_psql(q{CALL bluegreen.start('c')});
wait_for_sync('c');

#
# kill -9 in the middle
#
setting('bluegreen.verify_rate', 25000);
$green->safe_psql(q{SET session_replication_role = replica;
	UPDATE t SET n = 1 WHERE id = 3; DELETE FROM t WHERE id = 99999});
my $log = length $green->log;
$blue->safe_psql(q{CALL bluegreen.verify('c', wait => false)});
$blue->poll_query_until(ranges('>= 3'));
my $position = $blue->safe_psql(
	q{SELECT position[1] FROM bluegreen.verify_table});
kill9_worker($blue, 'verify');
cmp_ok($blue->safe_psql('SELECT ranges FROM bluegreen.verification'),
	'>=', 3, 'what is done is written down');
setting('bluegreen.verify_rate', 0);
$blue->poll_query_until(
	q{SELECT state = 'done' FROM bluegreen.verification});
is( $blue->safe_psql(
		q{SELECT rows, target_rows, differences FROM bluegreen.verification}),
	$rows . '|' . ($rows - 1) . '|2',
	'after kill -9 it goes on, and every row was counted once');
is( $blue->safe_psql(q{SELECT string_agg(kind || key::text, ' ' ORDER BY kind)
		FROM bluegreen.difference}),
	'different{3} missing{99999}',
	'differences are those from before and after');
my %read;
foreach my $line (split /\n/, $green->log($log))
{
	$read{$1}++
	  if $line =~ /bluegreen\.checksum.* AND ROW\(t\.id\) <= ROW\('(\d+)'/;
}
is( join(' ', grep { $_ <= $position && $read{$_} != 1 } sort keys %read), '',
	'no range that was done was read again');
cmp_ok(scalar(grep { $_ > $position } keys %read), '>', 3, 'others were');
is($blue->safe_psql(q{SELECT bluegreen.repair('c')}), 2, 'repaired');

#
# Throttle, twice, cancel
#
setting('bluegreen.verify_rate', 50000);
my $before = time;
$blue->safe_psql(q{CALL bluegreen.verify('c')});
cmp_ok(time - $before, '>=', 1, 'bluegreen.verify_rate is kept');
setting('bluegreen.verify_rate', 1000);
my $caller = $blue->session;
$caller->send(q{CALL bluegreen.verify('c')});
$blue->poll_query_until(ranges('>= 1'));
like(($blue->psql(q{CALL bluegreen.verify('c')}))[2],
	qr/deployment "c" is being verified already.*HINT: .*cancel_verify/s,
	'one verification at a time');
$blue->safe_psql(q{SELECT pg_cancel_backend(} . $caller->pid . ')');
$caller->wait;
like($caller->errors, qr/canceling statement/, 'who waits can be cancelled');
is($blue->safe_psql('SELECT state FROM bluegreen.verification'),
	'comparing', 'the verification goes on');
is($blue->safe_psql(q{SELECT bluegreen.cancel_verify('c')}),
	't', 'until that is cancelled');
$blue->poll_query_until(q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
	WHERE backend_type = 'pg_bluegreen verify')});
is($blue->safe_psql('SELECT state FROM bluegreen.verification'),
	'cancelled', 'as the view says');
is($blue->safe_psql(q{SELECT bluegreen.cancel_verify('c')}),
	'f', 'then there is none');

#
# The stream is stopped meanwhile
#
$caller->send(q{CALL bluegreen.verify('c')});
$blue->poll_query_until(ranges('>= 1'));
$blue->safe_psql(q{CALL bluegreen.stop('c')});
is( $blue->safe_psql(q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen verify'}),
	0, 'stop() ends the worker');
$caller->wait;
like($caller->errors, qr/stream of deployment "c" is stopped/,
	'and who waits is told');
setting('bluegreen.verify_rate', 0);
$blue->safe_psql(q{CALL bluegreen.start('c')});
ok($blue->poll_query_until(
		q{SELECT state = 'done' FROM bluegreen.verification}),
	'it goes on when the stream is started');

#
# Again and again
#
$blue->safe_psql(
	q{CALL bluegreen.verify('c', every => '300 ms', wait => false)});
my $first = $blue->safe_psql('SELECT number FROM bluegreen.verify_run');
ok($blue->poll_query_until(
		"SELECT number >= $first + 2 FROM bluegreen.verify_run"),
	'a verification comes again by itself');
$blue->restart;
ok($blue->poll_query_until(
		"SELECT number >= $first + 4 FROM bluegreen.verify_run"),
	'after a restart of the server, too');
$blue->safe_psql(q{SELECT bluegreen.cancel_verify('c')});
$blue->poll_query_until(q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
	WHERE backend_type = 'pg_bluegreen verify')});
is($blue->safe_psql('SELECT every IS NULL FROM bluegreen.verify_run'),
	't', 'until it is cancelled');
wait_for_sync('c');

#
# Commits that the stream has applied and nobody sees yet
#
my $local = 'SET synchronous_commit = local;';
my $writer = $blue->session;

# The worker looks at suspects a second time, long after a moment on green.
sub waits_for_commits
{
	my ($since) = @_;
	ok( $green->poll_query_until(qq{SELECT count(*) = 1 FROM pg_stat_activity
			WHERE application_name = 'bluegreen c verify'
				AND query ~ 'ORDINALITY'
				AND query_start > '$since'::timestamptz + interval '2 s'}),
		'it is waited for');
	is( $blue->safe_psql('SELECT count(*) FROM bluegreen.difference
			WHERE repaired_at IS NULL'), 0, 'and is no difference');
	return;
}

# All can see it: what the verification says of (differences, unsettled, suspects).
sub is_seen
{
	my ($expected) = @_;
	setting('synchronous_standby_names', '');
	$writer->wait;
	$blue->poll_query_until(
		q{SELECT state = 'done' FROM bluegreen.verification});
	is( $blue->safe_psql(q{SELECT differences, unsettled, suspects
			FROM bluegreen.verification}),
		$expected, 'nor when all can see it');
	return;
}

foreach my $commit ('COMMIT', q{COMMIT PREPARED 'p'})
{
	my $new = length $commit;
	$writer->query(qq{BEGIN; UPDATE t SET n = $new WHERE id = 7;
		DELETE FROM t WHERE id = $new + 100;
		INSERT INTO t VALUES (-$new, 0)});
	$writer->query(q{PREPARE TRANSACTION 'p'}) if $commit =~ /PREPARED/;
	setting('synchronous_standby_names', 'nobody');
	$writer->send($commit);
	$green->poll_query_until("SELECT n = $new FROM t WHERE id = 7");
	isnt($blue->safe_psql('SELECT n FROM t WHERE id = 7'),
		$new, "a $commit waits for a standby");
	my $start = $green->safe_psql('SELECT clock_timestamp()');
	$blue->safe_psql("$local CALL bluegreen.verify('c', wait => false)");
	waits_for_commits($start);
	is_seen('0|0|3');
}

# ... the newest of all transactions, which began after the first look
my $lock = $green->session;
$lock->query('BEGIN; LOCK TABLE t IN EXCLUSIVE MODE');
$blue->safe_psql('UPDATE t SET n = 20 WHERE id = 7');
$blue->safe_psql(q{CALL bluegreen.verify('c', wait => false)});
$green->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
	WHERE application_name = 'bluegreen c verify' AND state = 'idle'
		AND query ~ 'ORDINALITY'
		AND state_change < clock_timestamp() - interval '300 ms'});
my $pid = $blue->safe_psql(q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'pg_bluegreen verify'});
kill STOP => $pid;
setting('synchronous_standby_names', 'nobody');
$writer->send('UPDATE t SET n = 21 WHERE id = 7');
$blue->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
	WHERE wait_event = 'SyncRep'});
$lock->query('ROLLBACK');
$green->poll_query_until('SELECT n = 21 FROM t WHERE id = 7');
my $go_on = $green->safe_psql('SELECT clock_timestamp()');
kill CONT => $pid;
waits_for_commits($go_on);
is_seen('0|0|1');

#
# What cannot be done
#
like(
	($blue->psql(q{CALL bluegreen.verify('c', every => '1000000 years')}))[2],
	qr/parameter "every" of bluegreen.verify must not be more than 1000 years/,
	'every has a limit');
$green->safe_psql('ALTER TABLE t RENAME TO u');
like(($blue->psql(q{CALL bluegreen.verify('c')}))[2],
	qr/verification of deployment "c" failed: .*"?public"?\."?t"?/,
	'a target that is gone is the result, and not waited for');
is($blue->safe_psql('SELECT state FROM bluegreen.verification'),
	'failed', 'as the view says');
$green->safe_psql('ALTER TABLE u RENAME TO t');

#
# The stream does not get on
#
setting('bluegreen.peer_timeout', 1000);
$lock->query('BEGIN; LOCK TABLE t IN EXCLUSIVE MODE');
$blue->safe_psql('UPDATE t SET n = 1 WHERE id = 1');
my ($status, undef, $error) = $blue->psql(q{CALL bluegreen.verify('c')});
like($error,
	qr/verification of deployment "c" failed: stream of deployment "c" does not advance/,
	'a stream that stands still is no reason to wait for ever');
is( $blue->safe_psql(q{SELECT state, message ~ 'does not advance'
		FROM bluegreen.verification}), 'failed|t', 'and the view says why');
$lock->quit;
wait_for_sync('c');
$blue->safe_psql('UPDATE t SET n = 1000000 WHERE id = 1');
$blue->poll_query_until(
	q{SELECT state = 'error' FROM bluegreen.status});
like(($blue->psql(q{CALL bluegreen.verify('c')}))[2],
	qr/stream of deployment "c" is in state error: .*t_n_check/,
	'nor is one that stands in an error');

done_testing();
