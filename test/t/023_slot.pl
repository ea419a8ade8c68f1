# What can happen to a stream's slot: it is dropped, made anew, moved, or
# invalidated, or the server does not let the plugin work any more.  The stream
# says that it is lost, and writes nothing any more; then it is started anew.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
my ($slot, $id, $key) = (undef, undef, 0);

$_->safe_psql('CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL)')
  for $blue, $green;

# The way out of lost, as the documentation has it.
sub start_anew
{
	$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')})
	  if $blue->safe_psql('SELECT count(*) FROM bluegreen.deployment');
	$green->safe_psql('TRUNCATE t');
	$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
		SELECT bluegreen.map_table('d', 't');
		CALL bluegreen.start('d');});
	insert();
	wait_for_sync('d');
	$slot = stream('slot_name');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return compare_tables('TABLE t', 'TABLE t', 'started anew it follows');
}

sub insert
{
	$key++;
	$blue->safe_psql("INSERT INTO t VALUES ($key, 0)");
	return;
}

sub stream
{
	my ($columns) = @_;
	return $blue->safe_psql("SELECT $columns FROM bluegreen.stat_stream");
}

# Three tests: the stream is lost, says why, and the target is as it was.
sub is_lost
{
	my ($name, $message, $detail) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($blue->poll_query_until(
			"SELECT state = 'lost' FROM bluegreen.status"), "$name: lost");
	like(
		stream(q{concat_ws(' | ', error_message, error_detail, error_hint)}),
		qr/^$message \| .*$detail.* \| Drop the deployment, empty the target tables, and start anew\.$/,
		'and says so');
	like($blue->safe_psql('SELECT error FROM bluegreen.status'),
		qr/^$message$/, 'status says it, too');
	my $digest = 'SELECT count(*), sum(v) FROM t';
	my $before = $green->safe_psql($digest);
	insert();
	my (undef, undef, $error) =
	  $blue->psql(q{CALL bluegreen.wait_for_sync('d', '180 s')},
		timeout => 200);
	like($error, qr/is in state lost: $message/, 'wait_for_sync, too');
	is($green->safe_psql($digest), $before, 'the target is left alone');
	return;
}

# There is a new event of it (or two, if it was lost for two reasons).
my $lost_events = 0;

sub is_event
{
	my $count = q{SELECT count(*) FROM bluegreen.event WHERE kind = 'lost'};
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($blue->poll_query_until("SELECT ($count) > $lost_events"),
		'there is an event of it');
	$lost_events = $blue->safe_psql($count);
	return;
}

#
# Dropped
#
start_anew();
$blue->safe_psql(q{CALL bluegreen.stop('d')});
insert();
$blue->safe_psql("SELECT pg_drop_replication_slot('$slot')");
is_lost('a slot that is dropped while the stream is stopped',
	'replication slot is gone', "no slot \"$slot\"");
my (undef, undef, $error) = $blue->psql(q{CALL bluegreen.start('d')});
like($error, qr/is in state lost: replication slot is gone/,
	'start does not make it anew');
$blue->restart;
is_lost('after a restart', 'replication slot is gone', 'was dropped');
start_anew();

# by force: whoever wins the race, the worker or the drop
sub force
{
	my ($action) = @_;
	$blue->safe_psql(<<"SQL");
DO \$\$
DECLARE done boolean := false;
BEGIN
	WHILE NOT done LOOP
		PERFORM pg_terminate_backend(active_pid, 10000)
			FROM pg_replication_slots
			WHERE slot_name = '$slot' AND active_pid IS NOT NULL;
		BEGIN
			PERFORM pg_drop_replication_slot('$slot');
			done := true;
		EXCEPTION WHEN object_in_use THEN
		END;
	END LOOP;
END \$\$;
$action
SQL
	return;
}

force('');
is_lost('a slot that is dropped by force while it streams',
	'replication slot is gone', "no slot \"$slot\"");
is_event();
start_anew();

# the launcher alone notices that it is gone
sub restart_delay
{
	my ($first, $max) = @_;
	$blue->append_conf("bluegreen.restart_delay = '$first'");
	$blue->append_conf("bluegreen.restart_delay_max = '$max'");
	$blue->reload;
	return;
}

restart_delay('1h', '1h');
$green->stop;
insert();
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'a stream waits for its next try');
$blue->safe_psql("SELECT pg_drop_replication_slot('$slot')");
$green->start;
is_lost('a slot that is dropped while no worker runs',
	'replication slot is gone', "no slot \"$slot\"");
is_event();
restart_delay('100ms', '500ms');
start_anew();

#
# Made anew, moved
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
insert();
$blue->safe_psql("SELECT pg_drop_replication_slot('$slot')");
$blue->safe_psql(
	"SELECT pg_create_logical_replication_slot('$slot', 'pg_bluegreen')");
$blue->safe_psql(q{CALL bluegreen.start('d')});
is_lost('a slot that was made anew while the stream was stopped',
	'replication slot is ahead of the target', 'was made anew');
is_event();
$blue->safe_psql(q{CALL bluegreen.start('d')});
is_lost('after another start', 'replication slot is ahead of the target',
	'was made anew');
is_event();
$blue->restart;
is_lost('after a restart', 'replication slot is ahead of the target',
	'was made anew');
is_event();
start_anew();

force("SELECT pg_create_logical_replication_slot('$slot', 'pg_bluegreen')");
is_lost('a slot that is made anew by force while it streams',
	'replication slot is .*', "\"$slot\"");
is_event();
start_anew();

$blue->safe_psql(q{CALL bluegreen.stop('d')});
$blue->safe_psql("SELECT pg_drop_replication_slot('$slot');
	SELECT pg_create_logical_replication_slot('$slot', 'test_decoding')");
is_lost('a slot of the same name but another plugin',
	'replication slot is gone', 'no slot .* of plugin "pg_bluegreen"');
$blue->safe_psql("SELECT pg_drop_replication_slot('$slot')");
start_anew();

$blue->safe_psql(q{CALL bluegreen.stop('d')});
insert();
$blue->safe_psql(
	"SELECT pg_replication_slot_advance('$slot', pg_current_wal_lsn())");
$blue->safe_psql(q{CALL bluegreen.start('d')});
is_lost('a slot that was advanced', 'replication slot is ahead of the target',
	'or advanced');
is_event();
start_anew();

# the target is put back, by an older progress
$blue->safe_psql(q{CALL bluegreen.stop('d')});
my $origin = $green->safe_psql('SELECT name FROM bluegreen.applied_stream');
my $progress = $green->safe_psql(
	"SELECT pg_replication_origin_progress('$origin', true)");
$green->safe_psql("SELECT pg_replication_origin_advance('$origin', '0/100')");
$blue->safe_psql(q{CALL bluegreen.start('d')});
is_lost('a target that was put back',
	'replication slot is ahead of the target', 'target was put back');
is_event();
$green->safe_psql(
	"SELECT pg_replication_origin_advance('$origin', '$progress')");
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
compare_tables('TABLE t', 'TABLE t',
	'when it is put right again, start makes it go on');

# the source is put back: the target has what is not in its WAL
my $mine = $blue->safe_psql('SELECT pg_current_wal_lsn()');
my $theirs = $blue->safe_psql(q{SELECT pg_current_wal_lsn() + 16777216});
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$green->safe_psql(
	"SELECT pg_replication_origin_advance('$origin', '$theirs')");
$blue->safe_psql(q{CALL bluegreen.start('d')});
is_lost('a source that was put back', 'target is ahead of this server',
	"The target has what the source had up to $theirs of timeline 1@");
is_event();
$blue->safe_psql('SELECT pg_switch_wal()') for 1 .. 2;
insert();
$blue->restart;
is_lost('when it has gone on', 'target is ahead of this server',
	"up to $theirs of timeline 1@");
is_event();
start_anew();

#
# Invalidated
#
sub use_wal
{
	foreach (1 .. 4)
	{
		insert();
		$blue->safe_psql('SELECT pg_switch_wal()');
	}
	$blue->safe_psql('CHECKPOINT');
	return;
}

sub set
{
	my ($setting) = @_;
	$blue->append_conf($setting);
	$blue->reload;
	my ($name, $value) = $setting =~ /^(\S+) = '(.*)'/;
	$blue->poll_query_until("SHOW $name", $value);
	return;
}

$blue->safe_psql(q{CALL bluegreen.stop('d')});
set(q{max_slot_wal_keep_size = '16MB'});
use_wal();
is_lost('a stopped stream whose WAL is removed',
	'replication slot was invalidated', '"max_slot_wal_keep_size"');
(undef, undef, $error) = $blue->psql(q{CALL bluegreen.start('d')});
like($error, qr/is in state lost: replication slot was invalidated/,
	'start says so, too');
set(q{max_slot_wal_keep_size = '-1'});
start_anew();

# behind, but at work
my $session = $green->session;
$session->query('BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE');
insert();
ok( $green->poll_query_until(q{SELECT EXISTS (SELECT FROM pg_locks
		WHERE NOT granted AND relation = 't'::regclass)}),
	'a stream that waits on the target');
set(q{max_slot_wal_keep_size = '16MB'});
use_wal();
ok($blue->poll_query_until(
		q{SELECT wal_status = 'lost' FROM pg_replication_slots}),
	'loses its WAL');
$session->quit;
is_lost('a stream that was too slow', 'replication slot was invalidated',
	'"max_slot_wal_keep_size"');
is_event();
set(q{max_slot_wal_keep_size = '-1'});
start_anew();

SKIP:
{
	skip 'no idle_replication_slot_timeout before version 18', 6
	  if $blue->safe_psql('SHOW server_version_num') < 180000;
	$blue->safe_psql(q{CALL bluegreen.stop('d')});
	set(q{idle_replication_slot_timeout = '1s'});
	ok( $blue->poll_query_until(
			q{CHECKPOINT; SELECT invalidation_reason = 'idle_timeout'
				FROM pg_replication_slots}),
		'a slot that nobody used for too long is invalidated');
	is_lost('a stream that was stopped for too long',
		'replication slot was invalidated',
		'"idle_replication_slot_timeout"');
	set(q{idle_replication_slot_timeout = '0'});
	start_anew();
}

#
# The plugin is not listed any more
#
SKIP:
{
	skip 'this server has no output_plugin_libraries', 5
	  unless $blue->safe_psql(
		q{SELECT current_setting('output_plugin_libraries', true)});
	set(q{output_plugin_libraries = 'pgoutput'});
	insert();
	wait_for_sync('d');
	compare_tables('TABLE t', 'TABLE t',
		'a stream that runs does not mind that its plugin is delisted');
	$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d')});
	my $refused = q{SELECT state = 'error' AND error_message ~ 'pg_bluegreen'
		AND error_hint ~ 'output_plugin_libraries' FROM bluegreen.stat_stream};
	ok($blue->poll_query_until($refused), 'the next one is not let in');
	insert();

	# one library with commas in its name
	$blue->safe_psql(
		q{ALTER SYSTEM SET output_plugin_libraries = 'pgoutput, pg_bluegreen'});
	$blue->reload;
	ok( $blue->poll_query_until(
			"SELECT current_setting('output_plugin_libraries') ~ '^\"'"),
		'a list that is quoted wrongly');
	my $failures = stream('failures');
	ok( $blue->poll_query_until(
			"SELECT failures > $failures + 1 AND ($refused)
			FROM bluegreen.stat_stream"),
		'does not help');
	$blue->safe_psql(
		q{ALTER SYSTEM SET output_plugin_libraries = pgoutput, pg_bluegreen});
	$blue->reload;
	$blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream});
	wait_for_sync('d');
	compare_tables('TABLE t', 'TABLE t', 'listed again, it goes on');
}

done_testing();
