# The stream back: both directions at once, each leaves out what came from the
# other, and nothing is lost or doubled, whatever is killed.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\n"
	  . "bluegreen.idle_progress_interval = '1s'");

$blue->safe_psql(q{
	CREATE TABLE t (id int PRIMARY KEY, v varchar(40), n int NOT NULL DEFAULT 0,
		only_blue text DEFAULT 'kept');
	CREATE TABLE log (who text, what int);
	ALTER TABLE log REPLICA IDENTITY FULL;
	INSERT INTO t SELECT i, 'row ' || i, 0 FROM generate_series(1, 2000) i;
	INSERT INTO log SELECT 'copied', i FROM generate_series(1, 10) i;});
$green->safe_psql(q{
	CREATE TABLE thing (number bigint PRIMARY KEY, name text, n int NOT NULL,
		only_green int);
	CREATE TABLE log (who text, what int);
	ALTER TABLE log REPLICA IDENTITY FULL;
	CREATE TABLE elsewhere (v text);});
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't', 'thing', transform =>
		'SELECT id AS number, v AS name, n FROM t');
	SELECT bluegreen.map_table('d', 'log');});

# The slot of the way back waits for green's transactions; a copy would make long
# ones, so it comes after that.
my ($long, $starter) = ($green->session, $blue->session);
$long->query('BEGIN; SELECT pg_current_xact_id()');
$starter->send(q{CALL bluegreen.start('d')});
$green->poll_query_until(q{SELECT count(*) = 1 FROM pg_replication_slots
	WHERE slot_name ~ '_b$' AND active});
is( $blue->safe_psql(q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen stream'}),
	0, 'nothing is copied before the slot of the way back is there');
$long->query('COMMIT');
$starter->wait;
unlike($starter->errors, qr/ERROR|WARNING/, 'then both streams start');
$_->quit for $long, $starter;

sub both_same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('d');
	compare_tables('SELECT id, v, n FROM t',
		'SELECT number, name, n FROM thing', "$name: t");
	compare_tables('TABLE log', 'TABLE log', "$name: log");
	return;
}

# rows that a side's stream has decoded for mapped tables
sub rows_of
{
	my ($node) = @_;
	return $node->safe_psql('SELECT rows FROM bluegreen.stat_stream');
}

#
# Two rows, two streams
#
both_same('copied');
is( $green->safe_psql(q{SELECT d.name, side, desired, server, direction, state
		FROM bluegreen.deployment d JOIN bluegreen.stat_stream s
			ON s.deployment = d.name}),
	'd|green|started|blue|backward|streaming',
	'green has a row of the deployment, and its stream back runs');
is( $blue->safe_psql(q{SELECT deployment, active, state, tables
		FROM bluegreen.status}),
	'd|blue|streaming|2/2',
	'status on blue shows the stream forward');
is( $green->safe_psql(q{SELECT deployment, active, state, tables
		FROM bluegreen.status}),
	'd|blue|streaming|2/2',
	'status on green shows the stream back');
is( $blue->safe_psql(q{SELECT direction, source, target, derived
		FROM bluegreen.mapping WHERE direction = 'backward'}),
	"backward|public.thing|public.t|t\nbackward|public.log|public.log|t",
	'blue shows the mappings back');
is( $blue->safe_psql(q{SELECT slot_name ~ '_f$', r.active
		FROM pg_replication_slots r})
	  . ' ' . $green->safe_psql(q{SELECT slot_name ~ '_b$', r.active
		FROM pg_replication_slots r}),
	't|t t|t',
	'each side has one slot');
is(rows_of($green), 0, 'what was copied does not come back');

#
# No loop
#
$blue->safe_psql(q{UPDATE t SET v = 'blue', n = n + 1 WHERE id <= 100;
	INSERT INTO t VALUES (3000, 'new');
	INSERT INTO log VALUES ('blue', 1), ('blue', 1);
	DELETE FROM t WHERE id = 2000;});
both_same('blue writes');
is(rows_of($green), 0, 'nothing of it comes back');
my $forward = rows_of($blue);
$green->safe_psql(q{UPDATE thing SET name = 'green', n = n + 1, only_green = 7
	WHERE number BETWEEN 51 AND 150;
	INSERT INTO thing VALUES (4000, 'green', 5);
	INSERT INTO log VALUES ('green', 2), ('green', 2);
	DELETE FROM log WHERE who = 'copied' AND what = 3;
	DELETE FROM thing WHERE number = 1999;});
both_same('green writes');
is(rows_of($blue), $forward, 'nothing of that goes forward again');
is(rows_of($green), 105, 'and it was decoded once');
is( $blue->safe_psql(q{SELECT string_agg(DISTINCT only_blue, ','),
		count(*) FILTER (WHERE v = 'green') FROM t}),
	'kept|101',
	'columns that only blue has keep their values, or get their default');
$blue->safe_psql(q{UPDATE t SET v = 'again' WHERE id = 60});
wait_for_both('d');
is($green->safe_psql('SELECT name, only_green FROM thing WHERE number = 60'),
	'again|7', 'and so do those that only green has');
is( $blue->safe_psql('SELECT count(*) FROM bluegreen.conflict')
	  + $green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'there was no conflict');

#
# The direction that is not in use only confirms
#
my $slot = q{FROM pg_replication_slots WHERE slot_name LIKE '%\_b'};
$green->safe_psql(q{INSERT INTO elsewhere SELECT repeat(md5(i::text), 60)
	FROM generate_series(1, 5000) i});
my $end = $green->safe_psql('SELECT pg_current_wal_lsn()');
ok( $green->poll_query_until("SELECT confirmed_flush_lsn >= '$end' $slot"),
	'WAL that is of no interest is confirmed');
ok( $green->poll_query_until(
		"CHECKPOINT; INSERT INTO elsewhere SELECT repeat(md5(i::text), 60)
			FROM generate_series(1, 50) i;
		SELECT restart_lsn >= '$end' $slot"),
	'and let go of');
$blue->safe_psql(q{UPDATE t SET n = n + 1 FROM generate_series(1, 3)});
wait_for_sync('d');
$end = $green->safe_psql('SELECT pg_current_wal_lsn()');
ok( $green->poll_query_until(
		"CHECKPOINT; INSERT INTO elsewhere SELECT repeat(md5(i::text), 60)
			FROM generate_series(1, 50) i;
		SELECT restart_lsn >= '$end' $slot"),
	'so is what the stream forward has written');

#
# Crashes, with both sides writing rows of their own
#
sub load
{
	my ($table, $columns, $side) = @_;
	my ($first, $last) = $side eq 'blue' ? (10001, 10500) : (20001, 20500);
	return <<"SQL";
\\set id random($first, $last)
\\set what random(1, 1000000)
INSERT INTO $table ($columns) VALUES (:id, '$side', 0)
	ON CONFLICT (@{[ (split /,/, $columns)[0] ]}) DO UPDATE SET n = $table.n + 1;
INSERT INTO log VALUES ('$side', :what);
SQL
}

sub start_load
{
	return (
		pgbench_start($blue, clients => 2, rate => 100,
			script => load('t', 'id, v, n', 'blue')),
		pgbench_start($green, clients => 2, rate => 100,
			script => load('thing', 'number, name, n', 'green')));
}

# the servers' crashes end their clients
sub crash
{
	my ($name, $side, $code) = @_;
	my @bench = start_load();
	foreach my $node ($blue, $green)
	{
		$node->poll_query_until(
			q{SELECT count(*) > 20 FROM log WHERE who = '}
			  . ($node == $blue ? 'blue' : 'green') . q{'});
	}
	pgbench_stop($bench[$side]);
	$code->();
	pgbench_stop($bench[ 1 - $side ]);
	both_same($name);
	return;
}

foreach my $side (0, 1)
{
	my $node = ($blue, $green)[$side];
	my $who = $node->name;
	crash("$who\'s worker was killed", $side,
		sub { kill9_worker($node, 'pg_bluegreen stream') });
	crash("$who was killed",
		$side,
		sub {
			$node->kill9;
			$node->start;
		});
}
$_->restart for $green, $blue;
$blue->safe_psql(q{INSERT INTO log VALUES ('blue', 0)});
$green->safe_psql(q{INSERT INTO log VALUES ('green', 0)});
both_same('both were restarted');
is( $blue->safe_psql('SELECT count(*) FROM bluegreen.conflict')
	  + $green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'there was no conflict in all that');

#
# Stop, start, drop
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
is( $green->safe_psql(q{SELECT state, pid FROM bluegreen.stat_stream}),
	'stopped|', 'stop stops both');
$green->safe_psql(q{INSERT INTO log VALUES ('green', -1)});
$blue->safe_psql(q{INSERT INTO log VALUES ('blue', -1);
	CALL bluegreen.start('d');});
both_same('start starts both');

$green->stop;
my (undef, undef, $error) = $blue->psql(q{CALL bluegreen.stop('d')});
like(
	$error,
	qr/WARNING: .*stream back of deployment "d" could not be stopped/m,
	'stop tells if green cannot be reached');
is($blue->safe_psql('SELECT state FROM bluegreen.stat_stream'),
	'stopped', 'but stops');
$green->start;
$blue->safe_psql(q{CALL bluegreen.start('d')});
both_same('start again');

(undef, undef, $error) =
  $green->psql(q{SELECT bluegreen.drop_deployment('d')});
like($error, qr/this server is green of deployment "d"/,
	'green\'s row cannot be dropped by itself');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
my $left = q{SELECT (SELECT count(*) FROM pg_replication_slots),
	(SELECT count(*) FROM pg_replication_origin),
	(SELECT count(*) FROM bluegreen.deployment),
	(SELECT count(*) FROM bluegreen.applied_stream),
	(SELECT count(*) FROM bluegreen.applied_table),
	(SELECT count(*) FROM bluegreen.backward_mapping),
	(SELECT count(*) FROM bluegreen.stream_state()),
	(SELECT count(*) FROM pg_class WHERE relname LIKE 'transform%'
		AND relnamespace = 'bluegreen'::regnamespace)};
is($blue->safe_psql($left), '0|0|0|0|0|0|0|0', 'drop leaves nothing on blue');
is($green->safe_psql($left), '0|0|0|0|0|0|0|0', 'nor on green');

#
# A deployment that is dropped by force while green is away
#
$green->safe_psql('TRUNCATE thing, log');
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'log');
	CALL bluegreen.start('d');});
wait_for_both('d');
$green->stop;
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d', force => true)});
is($blue->safe_psql($left), '0|0|0|0|0|0|0|0', 'leaves nothing on blue');
$green->start;
$green->safe_psql(q{INSERT INTO log VALUES ('green', 99)});
ok( $green->poll_query_until(q{SELECT error_message ~ 'does not know the stream'
		FROM bluegreen.stat_stream WHERE state = 'error'}),
	'green\'s stream is turned away');
is($blue->safe_psql('SELECT count(*) FROM log WHERE what = 99'),
	0, 'and writes nothing');
(undef, undef, $error) = $blue->psql(q{
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'log');
	CALL bluegreen.start('d', allow_nonempty => true);});
like($error, qr/exists on the peer and is another one.*drop_deployment\('d', force => true\)/s,
	'the name is taken there until the row is dropped');
$green->safe_psql(q{SELECT bluegreen.drop_deployment('d', force => true)});
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_both('d');
is($green->safe_psql('SELECT state FROM bluegreen.stat_stream'),
	'streaming', 'then there is a way back');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
# but for what the warning of the drop by force has named
$green->safe_psql(q{DELETE FROM bluegreen.applied_stream;
	SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin;});
is($green->safe_psql($left), '0|0|0|0|0|0|0|0', 'and nothing is left');

#
# Without a way back all is as ever; with one that leads elsewhere, too
#
$green->safe_psql(q{DROP SERVER blue CASCADE; TRUNCATE thing, log;});
my $define = q{SELECT bluegreen.map_table('d', 't', 'thing', transform =>
		'SELECT id AS number, v AS name, n FROM t');};
$blue->safe_psql("SELECT bluegreen.create_deployment('d', 'green'); $define
	CALL bluegreen.start('d');");
wait_for_sync('d');
is($green->safe_psql('SELECT count(*) FROM bluegreen.deployment'),
	0, 'without a server on green there is no second row');
(undef, undef, $error) = $blue->psql(q{SELECT bluegreen.map_table('d',
	'thing', 't', 'SELECT number AS id FROM thing', direction => 'backward')});
like($error, qr/deployment "d" has no way back.*CREATE SERVER blue/s,
	'a mapping back says what is missing');
connect_nodes($green, $green, 'loop');
connect_nodes($green, $blue, 'blue');
$blue->safe_psql(q{CALL bluegreen.start('d')});
is($green->safe_psql('SELECT server FROM bluegreen.deployment'),
	'blue', 'start finds the server that leads back, among others');
$green->safe_psql(q{UPDATE thing SET name = 'late' WHERE number = 1});
wait_for_both('d');
is($blue->safe_psql('SELECT v FROM t WHERE id = 1'),
	'late', 'and the stream back runs');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
$green->safe_psql('TRUNCATE thing');
$blue->safe_psql(
	"SELECT bluegreen.create_deployment('d', 'green', 'loop'); $define");
(undef, undef, $error) = $blue->psql(q{CALL bluegreen.start('d')});
like(
	$error,
	qr/could not be started: server "loop" leads to .*, which is not the source/,
	'a server that was named must lead back');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});

done_testing();
