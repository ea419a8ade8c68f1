# A switchover under load: what was acknowledged on blue is on green, once;
# long transactions, drain conditions, cancel, timeouts, dry runs.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $conf = "bluegreen.restart_delay = '100ms'\nbluegreen.restart_delay_max = '500ms'";
my ($blue, $green) =
  create_pair(guard => 1, way_back => 1, conf => $conf);
foreach my $node ($blue, $green)
{
	$node->safe_psql(q{
		CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
		CREATE TABLE history (id uuid PRIMARY KEY, account int, delta int);
		CREATE TABLE job (id int PRIMARY KEY, running boolean);
		CREATE TABLE note (id int PRIMARY KEY)});
}
$blue->safe_psql(q{
	INSERT INTO account SELECT i, 0 FROM generate_series(1, 100) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', t::regclass)
	FROM unnest('{account,history,job}'::text[]) t});

sub state_of
{
	my ($node) = @_;
	return $node->safe_psql(
		'SELECT active, fence FROM bluegreen.switch_state');
}

# What a call that must fail says
sub fails
{
	my ($node, $sql, $pattern, $name) = @_;
	my (undef, undef, $err) = $node->psql($sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($err, $pattern, $name);
	return $err;
}

fails($blue, q{CALL bluegreen.switchover('d')}, qr/is not started/,
	'not before the start');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
is(state_of($blue), 'blue|open', 'blue is active');
is(state_of($green), 'blue|guarded', 'green says so, too');

# An epoch that was settled cannot be decided any more: not by a decision that
# comes late, either
my $stream = $green->safe_psql(
	q{SELECT name FROM bluegreen.applied_stream WHERE name LIKE '%\_f'});
is($green->safe_psql("SELECT bluegreen.fence_settle('$stream', 100)"),
	'f', 'an epoch is settled');
fails($green, "SELECT bluegreen.fence_decide('$stream', 100)",
	qr/fence cannot become "open" in epoch 100/, 'and cannot be decided any more');
is(state_of($green), 'blue|guarded', 'nothing has changed');

#
# What is in the way
#
fails($blue, q{CALL bluegreen.rollback('d')},
	qr/green is not the active side of deployment "d"/, 'nothing to roll back');
fails($blue, q{CALL bluegreen.switchover('d', on_drain_timeout => 'x')},
	qr/Valid values are "abort" and "terminate"/, 'a word that is none');
fails($blue, q{BEGIN; CALL bluegreen.switchover('d')},
	qr/cannot run inside a transaction block/, 'in a transaction');
fails($blue, q{CALL bluegreen.cancel('d')}, qr/no switchover or rollback .* runs/,
	'nothing to cancel');
fails($blue, q{CALL bluegreen.finish('d')}, qr/blue is the active side/,
	'nothing to finish');

# require_verified
my $required = q{CALL bluegreen.switchover('d', require_verified => '1 hour')};
fails($blue, $required, qr/it has not been verified/, 'never verified');
# (as if the stream had written it, or it would come to blue)
$green->safe_psql(q{SET bluegreen.allow_target_writes = on;
	SELECT pg_replication_origin_session_setup(roname)
	FROM pg_replication_origin WHERE roname LIKE '%\_c16';
	UPDATE account SET balance = 7 WHERE id = 1});
$blue->safe_psql(q{CALL bluegreen.verify('d')});
fails($blue, $required, qr/the last verification found 1 difference/,
	'a difference');
$blue->safe_psql(q{SELECT bluegreen.repair('d')});
wait_for_sync('d');
$blue->safe_psql(q{CALL bluegreen.verify('d')});
fails($blue, q{CALL bluegreen.switchover('d', require_verified => '0 s')},
	qr/the last verification ended .* ago/, 'too old');

# dry run
$blue->safe_psql('INSERT INTO job VALUES (1, true);
	SET search_path = pg_catalog, public;
	SELECT bluegreen.add_drain($$d$$, $$jobs$$,
		$$SELECT NOT EXISTS (SELECT FROM job WHERE running)$$)');
is($blue->safe_psql('SELECT * FROM bluegreen.drain'),
	'd|jobs|SELECT NOT EXISTS (SELECT FROM job WHERE running)', 'view drain');
fails($blue, q{SELECT bluegreen.add_drain('d', 'x', 'SELECT 1')},
	qr/must be one query that returns one boolean/, 'a condition that is none');
my (undef, undef, $err) =
  $blue->psql(q{CALL bluegreen.switchover('d', dry_run => true)});
like($err, qr/in the way: drain condition "jobs" is not met now/,
	'a dry run tells what is in the way');
like($err, qr/would raise the fence.*1 thing is in the way/s, 'and what it would do');
is(state_of($blue), 'blue|open', 'and changes nothing');
is($blue->safe_psql('SELECT count(*) FROM bluegreen.switch'), 0, 'at all');

#
# Failures before the decision: everything is as before, no client has an error
#
my $load = pgbench_start($blue, clients => 6, args => ['-M', 'prepared'],
	script => "\\set a random(1, 100)\n\\set d random(-9, 9)\nBEGIN;\n"
	  . "UPDATE account SET balance = balance + :d WHERE id = :a;\n"
	  . "INSERT INTO history VALUES (gen_random_uuid(), :a, :d);\nCOMMIT");
$blue->poll_query_until('SELECT count(*) > 100 FROM history');

fails($blue, q{CALL bluegreen.switchover('d', timeout => '1 s')},
	qr/took longer than its timeout.*drain condition "jobs"/s,
	'a drain condition that does not become true');
is(state_of($blue), 'blue|open', 'blue is as before');
$blue->safe_psql('DELETE FROM job');

my $long = $blue->session;
$long->query(q{BEGIN; INSERT INTO history VALUES (gen_random_uuid(), 1, 0)});
$err = fails($blue,
	q{CALL bluegreen.switchover('d', drain_timeout => '500 ms')},
	qr/did not end within 500 ms/, 'a transaction that does not end');
like($err, qr/process @{[$long->pid]}/, 'it is named');
is(state_of($blue), 'blue|open', 'blue is as before');
is($blue->safe_psql(q{SELECT move_state FROM bluegreen.switch_state}), 'failed',
	'which the view tells');

# cancel, from another session and by the caller
my $caller = $blue->session;
$caller->send(q{CALL bluegreen.switchover('d', drain_timeout => '100 s', timeout => '100 s')});
$blue->poll_query_until(q{SELECT fence = 'raised' FROM bluegreen.switch_state});
fails($blue, q{CALL bluegreen.switchover('d')},
	qr/cannot switch over deployment "d" during its switchover/, 'another one');
fails($blue, q{CALL bluegreen.stop('d')},
	qr/cannot stop deployment "d" during its switchover/, 'stop');
fails($blue, q{SELECT bluegreen.drop_deployment('d')},
	qr/cannot drop deployment "d" during its switchover/, 'drop');
my (undef, undef, $notice) = $blue->psql(q{CALL bluegreen.cancel('d')});
like($notice, qr/was cancelled/, 'cancelled');
$caller->wait;
like($caller->errors, qr/switchover of deployment "d" was cancelled/,
	'the caller is told');
is(state_of($blue), 'blue|open', 'blue is as before');

$caller->send(q{CALL bluegreen.switchover('d', drain_timeout => '100 s', timeout => '100 s')});
$blue->poll_query_until(q{SELECT fence = 'raised' FROM bluegreen.switch_state});
$blue->safe_psql("SELECT pg_cancel_backend(@{[$caller->pid]})");
$caller->wait;
like($caller->errors, qr/switchover of deployment "d" was cancelled/,
	'a caller who cancels');
is(state_of($blue), 'blue|open', 'blue is as before');

# the caller is gone: it goes on, or fails, all the same
$caller->send(q{CALL bluegreen.switchover('d', drain_timeout => '2 s')});
$blue->poll_query_until(q{SELECT fence = 'raised' FROM bluegreen.switch_state});
$blue->safe_psql("SELECT pg_terminate_backend(@{[$caller->pid]})");
ok( $blue->poll_query_until(
		q{SELECT fence = 'open' AND move_state = 'failed' FROM bluegreen.switch_state}),
	'without its caller it is undone as well');

# green cannot be asked
ok($load->{harness}->pumpable, 'no client had an error');

#
# It works
#
$long->send(q{SELECT pg_sleep(0.3); COMMIT});	# inside the drain timeout
my $listener = $blue->session;
$listener->query('LISTEN bluegreen');
my (undef, undef, $notices) =
  $blue->psql(q{CALL bluegreen.switchover('d', drain_timeout => '60 s',
	require_verified => '1 hour')});
unlike($notices, qr/ERROR/, 'switched over') or diag $notices;
note $notices;
like($notices, qr/NOTICE:  preflight passed\n.*NOTICE:  fence raised and drained \(\d+ ms\)\n.*NOTICE:  green is the active side \(\d+ ms\)\n.*NOTICE:  blue is closed \(\d+ ms\)/s,
	'with its steps');
$long->wait;
is($long->errors, '', 'the transaction that was open has been waited for');
is(state_of($blue), 'green|closed', 'blue says that green is active');
is(state_of($green), 'green|open', 'so does green');
ok( $blue->poll_query_until(q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
	WHERE application_name = 'pgbench')}), 'clients were disconnected');
compare_tables('TABLE history', 'TABLE history', 'nothing is lost or doubled');
compare_tables('TABLE account', 'TABLE account', 'in any table');
is( $green->safe_psql('SELECT sum(balance) = (SELECT sum(delta) FROM history) FROM account'),
	't', 'and green is consistent');
my @ends = $blue->log =~ m{pgbench/postgres (FATAL:  terminating connection because this side)}g;
is(scalar @ends, 6, 'they were told why');
unlike($blue->log, qr{pgbench/postgres ERROR}, 'and had no other error');
$load->{harness}->kill_kill(grace => 1);
delete $load->{harness};
like($listener->query('SELECT 1') . $listener->query('SELECT 1'),
	qr/"deployment":"d","event":"switchover","active":"green"/, 'who listens was told');

# who may write where
is($green->safe_psql('UPDATE account SET balance = 0 WHERE id = 1 RETURNING id'),
	1, 'green takes writes');
fails($blue, 'UPDATE account SET balance = 0', qr/read-only transaction/,
	'blue does not: new sessions are read-only');
fails($blue, 'SET default_transaction_read_only = off; INSERT INTO note VALUES (1)',
	qr/this side of deployment "d" is closed/, 'and if they are not, it is closed');
my $events = $blue->safe_psql(
	q{SELECT string_agg(message, E'\n' ORDER BY at) FROM bluegreen.event WHERE kind = 'switch'});
like($events, qr/switchover, epoch \d+: fence raised and drained/, 'events tell');
like($blue->safe_psql('SELECT advice FROM bluegreen.switch_state'),
	qr/rollback\(\) would move the users back to blue/, 'what a rollback would do');
fails($blue, q{CALL bluegreen.switchover('d')}, qr/blue is not the active side/,
	'a second time');
fails($blue, "SET default_transaction_read_only = off; $_",
	qr/from blue, which is not the active side/, "not any more: $_")
  for q{CALL bluegreen.verify('d')}, q{SELECT bluegreen.repair('d')};

# a client with two hosts
my $two = "host=127.0.0.1,127.0.0.1 port=@{[$blue->port]},@{[$green->port]}"
  . ' user=postgres dbname=postgres target_session_attrs=read-write';
is(`$blue->{client}/psql -XAtc 'SHOW port' '$two'`, $green->port . "\n",
	'libpq goes to green');

#
# finish, reopen
#
$blue->restart('immediate');
is(state_of($blue), 'green|closed', 'blue stays closed over a crash');
$blue->safe_psql(q{CALL bluegreen.finish('d')});
is(state_of($blue), 'green|retired', 'finished');
is($_->safe_psql(q{SELECT (SELECT count(*) FROM pg_replication_slots)
		+ (SELECT count(*) FROM pg_replication_origin)}), 0,
	"no slot and no origin on $_->{name}") for $blue, $green;
is($green->safe_psql(q{SELECT (SELECT count(*) FROM bluegreen.applied_stream)
		+ (SELECT count(*) FROM bluegreen.fence)}), 0,
	'nothing is left on green');
fails($blue, q{CALL bluegreen.start('d')}, qr/is finished/, 'no new start');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
fails($blue, 'SET default_transaction_read_only = off; INSERT INTO note VALUES (1)',
	qr/this side of deployment "d" is closed/, 'dropped, and still closed');
is($blue->safe_psql('SELECT bluegreen.reopen()'), 1, 'reopened');
is($blue->safe_psql('INSERT INTO note VALUES (1) RETURNING id'), 1,
	'it takes writes');
is($blue->safe_psql(q{SELECT (SELECT count(*) FROM bluegreen.fence)
		+ (SELECT count(*) FROM pg_db_role_setting)}), 0, 'nothing is left');

done_testing();
