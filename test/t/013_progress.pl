# Exactly once: progress and rows are one, the slot never runs ahead, and a
# stream that cannot know is lost and says so.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => <<'CONF',
bluegreen.restart_delay = 100ms
bluegreen.restart_delay_max = 500ms
bluegreen.idle_progress_interval = 100ms
CONF
	green_conf => "wal_writer_delay = 10s\nwal_writer_flush_after = 1GB");

# What the target has must be durable before the slot hears of it, whatever the
# target's own settings are.
$green->safe_psql('ALTER DATABASE postgres SET synchronous_commit = off');

my $ddl = <<'SQL';
CREATE TABLE storm (id bigint PRIMARY KEY, v text);
CREATE TABLE total (id integer PRIMARY KEY, n bigint);
SQL
$_->safe_psql($ddl) for $blue, $green;
$green->safe_psql('ALTER TABLE storm ADD COLUMN at pg_lsn');
$blue->safe_psql(<<'SQL');
CREATE TABLE unmapped (v text);
CREATE SEQUENCE numbers;
INSERT INTO total SELECT i, 0 FROM generate_series(1, 10) i;
SELECT bluegreen.create_deployment('p', 'green');
SELECT bluegreen.map_table('p', 'total');
SELECT bluegreen.map_table('p', 'storm', transform =>
	'SELECT id, v, bluegreen.commit_lsn() AS at FROM storm');
CALL bluegreen.start('p');
SQL
wait_for_sync('p');

my $slot =
  $blue->safe_psql(q{SELECT slot_name FROM bluegreen.stat_stream});
my $origin = $green->safe_psql(q{SELECT name FROM bluegreen.applied_stream});
my $confirmed_sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots"
  . " WHERE slot_name = '$slot'";
my $progress_sql =
  "SELECT coalesce(pg_replication_origin_progress('$origin', true), '0/0')";

# LSNs as numbers
sub number
{
	my ($high, $low) = split m{/}, $_[0];
	return hex($high) * 4294967296 + hex($low);
}

sub confirmed { return number($blue->safe_psql($confirmed_sql)) }
sub progress { return number($green->safe_psql($progress_sql)) }

sub insert_position
{
	return number($blue->safe_psql('SELECT pg_current_wal_insert_lsn()'));
}

sub same
{
	my ($claim) = @_;
	compare_tables('SELECT id, v FROM storm', 'SELECT id, v FROM storm',
		"$claim: rows");
	compare_tables('TABLE total', 'TABLE total', "$claim: totals");
	is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
		'0', "$claim: no change was applied twice");
	return;
}

#
# A crash of the target in a storm of commits
#
my $script = <<'SQL';
\set n random(1, 10)
BEGIN;
INSERT INTO storm VALUES (nextval('numbers'), 'row');
UPDATE total SET n = n + 1 WHERE id = :n;
COMMIT;
SQL
my $bench = pgbench_start($blue, script => $script, clients => 4);
my $ahead = 0;
for my $sample (1 .. 40)
{
	my $confirmed = confirmed();
	$ahead++ if $confirmed > progress();
}
is($ahead, 0, 'the slot is never confirmed beyond the progress');

$ahead = 0;
my $torn = 0;
my $behind = 0;
for my $crash (1 .. 3)
{
	my $rows = $green->safe_psql('SELECT count(*) FROM storm');
	$green->poll_query_until(
		"SELECT count(*) > $rows + 200 FROM storm");
	my $before = confirmed();
	$blue->poll_query_until(
		"SELECT confirmed_flush_lsn - '0/0' > $before"
		  . " FROM pg_replication_slots WHERE slot_name = '$slot'");
	$green->kill9;
	my $confirmed = confirmed();

	# nobody may write while the rows are looked at
	$green->append_conf('max_worker_processes = 31');
	my $port = $green->port;
	$green->{port} = BlueGreen::Node::free_port();
	$green->append_conf("port = $green->{port}");
	$green->start;
	my $progress = progress();
	$ahead++ if $confirmed > $progress;

	# rows of one transaction: the sum of the totals is the number of rows
	$torn += $green->safe_psql('SELECT (SELECT count(*) FROM storm)'
		  . ' <> (SELECT sum(n) FROM total)') eq 't';
	my $last =
	  number($green->safe_psql('SELECT max(at) FROM storm'));
	$behind++ if $last >= $progress;
	$green->stop;
	$green->{port} = $port;
	$green->append_conf("port = $port");
	$green->start;
	$blue->safe_psql(q{CALL bluegreen.start('p')});
}
is($ahead, 0, 'what the slot was told survives a crash of the target');
is($torn, 0, 'a crash of the target leaves whole transactions');
is($behind, 0, 'the progress is past every row that is there');
ok(pgbench_stop($bench), 'the application runs on');
wait_for_sync('p');
same('after crashes of the target');

#
# WAL without anything for the target
#
my $position = insert_position();
my $restart_sql = "SELECT restart_lsn - '0/0' > $position"
  . " FROM pg_replication_slots WHERE slot_name = '$slot'";
$bench = pgbench_start(
	$blue,
	clients => 1,
	rate => 200,
	script => q{INSERT INTO unmapped VALUES (repeat('x', 1000));});
ok( $green->poll_query_until(
		"SELECT pg_replication_origin_progress('$origin', true) - '0/0'"
		  . " > $position"),
	'a stream of unmapped changes advances the progress');
ok( $blue->poll_query_until(
		"SELECT confirmed_flush_lsn - '0/0' > $position"
		  . " FROM pg_replication_slots WHERE slot_name = '$slot'"),
	'and the slot is confirmed');
$blue->safe_psql('CHECKPOINT');
ok($blue->poll_query_until($restart_sql), 'and lets go of WAL');
pgbench_stop($bench);
$blue->safe_psql(q{INSERT INTO storm VALUES (-1, 'after')});
wait_for_sync('p');
is($green->safe_psql('SELECT v FROM storm WHERE id = -1'),
	'after', 'and a change after it is applied');

#
# A mark of the progress writes no row; it is durable all the same
#
my $worth_a_mark = q{INSERT INTO unmapped
	SELECT repeat('x', 1000) FROM generate_series(1, 100)};
foreach my $crash (1 .. 3)
{
	$position = insert_position();
	$blue->safe_psql($worth_a_mark);
	$blue->poll_query_until(
		"SELECT confirmed_flush_lsn - '0/0' > $position"
		  . " FROM pg_replication_slots WHERE slot_name = '$slot'")
	  or die 'there is no mark';
	$green->kill9;
	$green->start;
}
wait_for_sync('p');
is( $blue->safe_psql('SELECT state FROM bluegreen.status'),
	'streaming', 'what a mark has told the slot survives a crash');

#
# Nobody but one session has the origin
#
$blue->safe_psql(q{CALL bluegreen.stop('p')});
my $thief = $green->session;
$thief->query("SELECT pg_replication_origin_session_setup('$origin')");
$blue->safe_psql(q{CALL bluegreen.start('p')});
ok( $blue->poll_query_until(
		q{SELECT error_sqlstate = '55006' FROM bluegreen.stat_stream}),
	'an origin that is in use is told');
$blue->safe_psql(q{INSERT INTO storm VALUES (-2, 'waits')});
$thief->quit;
wait_for_sync('p');
is($green->safe_psql('SELECT v FROM storm WHERE id = -2'),
	'waits', 'and tried again until it is free');

$blue->safe_psql(q{CALL bluegreen.stop('p')});
my $orphan = $green->session;
$orphan->query(q{SET application_name = 'bluegreen p forward'});
$orphan->query("SELECT pg_replication_origin_session_setup('$origin')");
$orphan->query(q{BEGIN; INSERT INTO storm VALUES (-3, 'orphan')});
my $orphan_pid = $orphan->pid;
$blue->safe_psql(q{CALL bluegreen.start('p')});
$blue->safe_psql(q{INSERT INTO storm VALUES (-3, 'worker')});
wait_for_sync('p');
is( $green->safe_psql(
		"SELECT count(*) FROM pg_stat_activity WHERE pid = $orphan_pid"),
	'0',
	'a session that an earlier worker left behind is ended');
same('after it');

$bench = pgbench_start($blue, script => $script, clients => 2, rate => 300);
for my $kill (1 .. 3)
{
	my $pid = $blue->safe_psql('SELECT pid FROM bluegreen.stat_stream');
	$blue->safe_psql("SELECT pg_terminate_backend($pid)") if $pid;
	$blue->poll_query_until(q{SELECT state = 'streaming' AND pid <> }
		  . ($pid || 0)
		  . q{ FROM bluegreen.stat_stream});
}
pgbench_stop($bench);
wait_for_sync('p');
same('after the worker was ended three times');

#
# Lost: the target was put back
#
$green->stop;
my $saved = $green->data_dir . '.saved';
system('cp', '-a', $green->data_dir, $saved) == 0 or die 'cp failed';
$green->start;
$blue->safe_psql(q{INSERT INTO storm VALUES (-4, 'will be gone')});
wait_for_sync('p');
$position = insert_position();
$blue->safe_psql($worth_a_mark);
$blue->poll_query_until("SELECT confirmed_flush_lsn - '0/0' > $position"
	  . " FROM pg_replication_slots WHERE slot_name = '$slot'")
  or die 'there is no mark';
$green->stop;
system('rm', '-rf', $green->data_dir) == 0 or die 'rm failed';
rename $saved, $green->data_dir or die $!;
$green->start;
$blue->safe_psql(q{INSERT INTO storm VALUES (-5, 'never')});
ok( $blue->poll_query_until(
		q{SELECT state = 'lost' FROM bluegreen.status}),
	'a target that was put back to an earlier state: lost');
my ($status, undef, $error) =
  $blue->psql(q{CALL bluegreen.wait_for_sync('p', '20 s')});
like($error, qr/lost/, 'which is said to whoever waits');
like(
	$blue->safe_psql(q{SELECT error_detail FROM bluegreen.stat_stream}),
	qr/target was put back/,
	'with the reason');
my $times = q{SELECT count(*) FROM bluegreen.event WHERE kind = 'lost'};
$blue->poll_query_until($times, '1');
$blue->safe_psql(q{CALL bluegreen.stop('p'); CALL bluegreen.start('p')});
ok($blue->poll_query_until($times, '2'), 'it stays lost, whoever starts it');
is($green->safe_psql('SELECT count(*) FROM storm WHERE id IN (-4, -5)'),
	'0', 'and nothing more is applied');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('p')});

#
# Lost: the slot was made anew
#
$blue->safe_psql(q{TRUNCATE storm; INSERT INTO storm VALUES (1, 'one')});
$green->safe_psql('TRUNCATE storm');
$blue->safe_psql(<<'SQL');
SELECT bluegreen.create_deployment('q', 'green');
SELECT bluegreen.map_table('q', 'storm', transform =>
	'SELECT id, v, bluegreen.commit_lsn() AS at FROM storm');
CALL bluegreen.start('q');
SQL
wait_for_sync('q');
$slot = $blue->safe_psql(q{SELECT slot_name FROM bluegreen.stat_stream});
$blue->safe_psql(<<"SQL");
CALL bluegreen.stop('q');
INSERT INTO storm VALUES (2, 'between');
SELECT pg_drop_replication_slot('$slot');
SQL
($status, undef, $error) = $blue->psql(q{CALL bluegreen.start('q')});
like(
	$error,
	qr/stream of deployment "q" is in state lost: .*slot/,
	'a slot that was dropped is not made again');
is($blue->safe_psql(q{SELECT state FROM bluegreen.status}),
	'lost', 'its stream is lost');
$blue->safe_psql(<<"SQL");
SELECT pg_create_logical_replication_slot('$slot', 'pg_bluegreen');
CALL bluegreen.start('q');
INSERT INTO storm VALUES (3, 'after');
SQL
ok( $blue->poll_query_until(
		q{SELECT state = 'lost' FROM bluegreen.status}),
	'a slot that was made anew by hand: lost');
is($green->safe_psql(q{SELECT string_agg(id::text, ' ') FROM storm}),
	'1', 'and the stream does not go on behind the gap');
is( $blue->safe_psql(
		q{SELECT count(*) > 0 FROM bluegreen.event WHERE kind = 'lost'}),
	't',
	'there is an event of it');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('q')});

#
# Keys that nothing would enforce (proof 20)
#
$blue->safe_psql(
	'CREATE TABLE later (id integer PRIMARY KEY); INSERT INTO later VALUES (1)');
$green->safe_psql('CREATE TABLE later (id integer PRIMARY KEY DEFERRABLE)');
$blue->safe_psql(q{SELECT bluegreen.create_deployment('r', 'green')});
($status, undef, $error) =
  $blue->psql(q{SELECT bluegreen.map_table('r', 'later')});
like($error, qr/deferrable/, 'a deferrable target key is refused');
$green->safe_psql(<<'SQL');
ALTER TABLE later DROP CONSTRAINT later_pkey, ADD PRIMARY KEY (id);
SQL
$blue->safe_psql(<<'SQL');
SELECT bluegreen.map_table('r', 'later');
CALL bluegreen.start('r');
SQL
wait_for_sync('r');
$blue->safe_psql(q{CALL bluegreen.stop('r')});
$green->safe_psql(<<'SQL');
ALTER TABLE later DROP CONSTRAINT later_pkey, ADD PRIMARY KEY (id) DEFERRABLE;
SQL
$blue->safe_psql(q{CALL bluegreen.start('r'); INSERT INTO later VALUES (2)});
ok( $blue->poll_query_until(
		q{SELECT error_message LIKE '%no unique index%'
		FROM bluegreen.stat_stream WHERE deployment = 'r'}),
	'one that becomes deferrable stops the stream');
$green->safe_psql(<<'SQL');
ALTER TABLE later DROP CONSTRAINT later_pkey, ADD PRIMARY KEY (id);
SQL
$blue->safe_psql(q{CALL bluegreen.start('r')});
wait_for_sync('r');
compare_tables('TABLE later', 'TABLE later', 'until it is mended');

done_testing();
