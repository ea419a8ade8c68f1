# A slot that is synchronized to standbys: the target never has anything that
# a standby named in synchronized_standby_slots lacks, so when that is promoted
# the stream goes on, and nothing is lost or done twice.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
if ($blue->safe_psql('SHOW server_version_num') < 170000)
{
	plan skip_all => 'servers before version 17 do not synchronize slots';
}

# near is waited for, far is not
$blue->safe_psql("SELECT pg_create_physical_replication_slot('$_', true)")
  for qw(near far);
my ($near, $far) = map {
	BlueGreen->blue(
		$_, "primary_slot_name = '$_'\nhot_standby_feedback = on\n"
		  . "sync_replication_slots = on",
		standby_of => $blue)
} qw(near far);
set($blue, 'synchronized_standby_slots', 'near');

foreach my $table (qw(t u))
{
	$_->safe_psql("CREATE TABLE $table (id int PRIMARY KEY, v int NOT NULL)")
	  for $blue, $green;
	$blue->safe_psql(
		"INSERT INTO $table SELECT i, 0 FROM generate_series(1, 1000) i");
}
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	CALL bluegreen.start('d');});
wait_for_sync('d');
is($blue->safe_psql('SELECT failover FROM pg_replication_slots WHERE database IS NOT NULL'),
	't', 'the slot is a failover slot');

sub set
{
	my ($node, $name, $value) = @_;
	$node->append_conf("$name = '$value'");
	$node->reload;
	$node->poll_query_until("SHOW $name", $value);
	return;
}

sub stream
{
	my ($node, $columns) = @_;
	return $node->safe_psql("SELECT $columns FROM bluegreen.stat_stream");
}

sub on_green
{
	my ($where, $table) = @_;
	$table //= 't';
	return $green->safe_psql("SELECT count(*) FROM $table WHERE $where");
}

#
# On the standbys, before anything happens
#
foreach my $node ($near, $far)
{
	my $name = $node->name;
	ok( BlueGreen::Node::wait_until(
			sub {
				$blue->safe_psql('SELECT pg_log_standby_snapshot();
					UPDATE t SET v = v + 1 WHERE id = 1');
				$node->safe_psql(q{SELECT count(*) FROM pg_replication_slots
					WHERE synced AND NOT temporary});
			}),
		"the slot is synchronized to $name");
	is( $node->safe_psql(
			'SELECT state, error, lag_bytes FROM bluegreen.status'),
		'standby||', 'where the deployment is seen to be ready');
	is( $node->safe_psql(q{SELECT count(*) FROM pg_stat_activity
			WHERE backend_type LIKE 'pg_bluegreen%'}),
		0, 'but nobody works on it');
}

#
# A standby that is away holds up the stream and the copy
#
$near->stop;
my $pid = stream($blue, 'pid');
$blue->safe_psql('INSERT INTO t VALUES (2000, 0)');
ok( $blue->poll_query_until(
		'SELECT waits_for, lag > $$0$$, lag_bytes > 0, pid FROM bluegreen.stat_stream',
		"standby \"near\", which is not connected|t|t|$pid"),
	'the stream waits for a standby, and says so');
like($blue->safe_psql('SELECT error FROM bluegreen.status'),
	qr/^waits for standby "near"/, 'in status, too');
is(on_green('id = 2000'), 0, 'and the target waits with it');
ok( BlueGreen::Node::wait_until(
		sub {
			$blue->log =~
			  /WARNING:  replication slot "near" specified in parameter "synchronized_standby_slots" does not have active_pid/;
		}),
	'the log has a warning of it');
$blue->safe_psql(q{CALL bluegreen.stop('d')}, timeout => 60);
is(stream($blue, 'state, waits_for'), 'stopped|',
	'a stream that waits can be stopped');
$blue->safe_psql(q{CALL bluegreen.start('d'); SELECT bluegreen.map_table('d', 'u')});
ok( $blue->poll_query_until(q{SELECT EXISTS (SELECT FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen copy')
		AND (SELECT waits_for FROM bluegreen.stat_stream) ~ 'near'}),
	'a copy begins meanwhile');
is(on_green('true', 'u') . on_green('id = 2000'),
	'00', 'but does not reach the target');
$pid = stream($blue, 'pid');
$near->start;
wait_for_sync('d');
is(stream($blue, 'waits_for, pid'),
	"|$pid", 'when the standby is back all goes on, in the same worker');
compare_tables("TABLE $_", "TABLE $_", "with $_") for qw(t u);

# one that is connected, but receives nothing
sub receiver
{
	my ($node, $signal) = @_;
	my $receiver = $node->safe_psql('SELECT pid FROM pg_stat_wal_receiver');
	kill $signal, $receiver;
	return $receiver;
}

$near->poll_query_until('SELECT count(*) FROM pg_stat_wal_receiver', 1);
my $stopped = receiver($near, 'STOP');
$blue->safe_psql('INSERT INTO t VALUES (2001, 0)');
ok( $blue->poll_query_until('SELECT waits_for FROM bluegreen.stat_stream',
		'standby "near"'),
	'the stream waits for a standby that is slow');
is(on_green('id = 2001'), 0, 'and the target with it');
$pid = stream($blue, 'pid');
set($blue, 'synchronized_standby_slots', '');
wait_for_sync('d');
is(stream($blue, 'pid'), $pid, 'it goes on when it need not wait any more');
is(on_green('id = 2001'), 1, 'without the standby');
kill 'CONT', $stopped;
set($blue, 'synchronized_standby_slots', 'none');
$blue->safe_psql('INSERT INTO t VALUES (2002, 0)');
ok( $blue->poll_query_until('SELECT waits_for FROM bluegreen.stat_stream',
		'slot "none", which does not exist'),
	'a setting that is wrong is told, too');
set($blue, 'synchronized_standby_slots', 'near');
wait_for_sync('d');

#
# Failover under load: far has missed something that the target has, near
# something that blue has
#
$far->stop;
my $load = $blue->session;
$load->send(<<'SQL');
DO $$ BEGIN
FOR i IN 3001 .. 1000000 LOOP
	INSERT INTO t VALUES (i, 0);
	UPDATE t SET v = v + 1 WHERE id IN (1, 2, i - 5);
	UPDATE u SET v = v + 1 WHERE id = 1 + i % 1000;
	COMMIT;
	PERFORM pg_sleep(0.001);
END LOOP; END $$
SQL
ok($green->poll_query_until('SELECT max(id) > 3200 FROM t'),
	'under load the target follows');
$near->stop('immediate');
my $seen = $blue->safe_psql('SELECT max(id) FROM t');
ok( $blue->poll_query_until(
		qq{SELECT max(id) > $seen + 200 FROM t})
	  && $blue->poll_query_until(
		q{SELECT waits_for ~ '"near"' FROM bluegreen.stat_stream}),
	'a standby stays behind, and blue goes on');
$blue->kill9;
{
	local $SIG{PIPE} = 'IGNORE';	# it has ended
	eval { $load->quit };
}
foreach my $node ($near, $far)
{
	$node->start;
	$node->promote;
}

cmp_ok($near->safe_psql('SELECT max(id) FROM t'),
	'<', $seen + 200, 'the standby has not all of it');
my %there = map { $_ => 1 } split /\n/, $near->safe_psql('SELECT id FROM t');
my @ahead =
  grep { !$there{$_} } split /\n/, $green->safe_psql('SELECT id FROM t');
is("@ahead", '',
	'and the target has nothing that the promoted standby has not');
foreach my $node ($far, $near)
{
	my $name = $node->name;
	ok( $node->poll_query_until(
			q{SELECT state = 'error' AND error_message ~ 'another place'
				FROM bluegreen.stat_stream}),
		"$name waits for a human");
}
my $before = $green->safe_psql('SELECT count(*), sum(v) FROM t');
$far->safe_psql(q{SELECT bluegreen.confirm_source('d');
	INSERT INTO t VALUES (-1, 0)});
ok( $far->poll_query_until(q{SELECT state = 'lost'
		AND error_message = 'target is ahead of this server'
		AND error_detail ~ 'has that only up to'
		FROM bluegreen.stat_stream}),
	'one that the target is ahead of is lost');
is($green->safe_psql('SELECT count(*), sum(v) FROM t'),
	$before, 'and writes nothing');

$near->safe_psql(q{SELECT bluegreen.confirm_source('d');
	INSERT INTO t VALUES (2003, 0); UPDATE t SET v = v + 1 WHERE id <= 10});
$near->poll_query_until(
	q{SELECT state = 'streaming' FROM bluegreen.stat_stream});
wait_for_sync('d', node => $near);
compare_tables("TABLE $_", "TABLE $_", "the stream goes on from near: $_",
	blue => $near)
  for qw(t u);
is( $green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'and nothing came twice');

#
# Those who lost come back
#
$far->safe_psql(q{CALL bluegreen.start('d')});
$blue->start;
foreach my $node ($blue, $far)
{
	my $name = $node->name;
	$node->safe_psql('INSERT INTO t VALUES (-2, 0)');
	ok( $node->poll_query_until(q{SELECT state = 'error'
			AND error_message = 'another server is the source of deployment "d"'
			FROM bluegreen.stat_stream}),
		"$name is not the source any more");
	my (undef, undef, $error) =
	  $node->psql(q{SELECT bluegreen.drop_deployment('d')});
	like($error, qr/another server is the source of deployment "d"/,
		'and cannot drop what is now of its successor');
}
$near->safe_psql('INSERT INTO t VALUES (2004, 0)');
wait_for_sync('d', node => $near);
compare_tables('TABLE t', 'TABLE t', 'which goes on', blue => $near);

done_testing();
