# What a network can do to the connection to the peer: silence, resets, delays,
# refusal, cuts at any point.  It is noticed within bluegreen.peer_timeout, what
# works is left alone, everything can be interrupted, and when the network heals
# nothing is lost and nothing is applied twice.
#
# The network is a proxy (BlueGreen::Proxy), and at the end, where we may, one
# whose packets are dropped by iptables, in a network namespace of this test.
use strict;
use warnings;

BEGIN
{
	# only as root; otherwise, or where namespaces are forbidden, without
	if (!$ENV{BLUEGREEN_NETNS} && $> == 0)
	{
		$ENV{BLUEGREEN_NETNS} = 'unshared';
		if (system('unshare -n ip link set lo up >/dev/null 2>&1') == 0)
		{
			exec 'unshare', '-n', 'sh', '-c',
			  'ip link set lo up && exec "$@"', 'sh', $^X, $0, @ARGV;
		}
		$ENV{BLUEGREEN_NETNS} = 'none';
	}
}

use BlueGreen;
use BlueGreen::Proxy;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{BLUEGREEN_SEED} || int time;
srand $seed;
note("BLUEGREEN_SEED=$seed");

# of the settings, in seconds; a slow machine may take a multiple
my ($peer_timeout, $slow) = (3, 40);

my ($blue, $green) = create_pair(
	conf => "bluegreen.peer_timeout = '${peer_timeout}s'\n"
	  . "bluegreen.connect_timeout = '2s'\n"
	  . "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '400ms'\n"
	  . "bluegreen.batch_delay = '20ms'",
	blue_conf => "bluegreen.copy_chunk_rows = 500\n",
	green_conf => "log_connections = on\n");
my $proxy = BlueGreen::Proxy->new($green->port);

sub go_through
{
	my ($port) = @_;
	return $blue->safe_psql("ALTER SERVER green OPTIONS (SET port '$port')");
}

sub stream
{
	my ($columns) = @_;
	return $blue->safe_psql("SELECT $columns FROM bluegreen.stat_stream");
}

# This moment, for noticed().
sub mark
{
	return { time => time, errors => stream('errors') };
}

# The stream fails because of the connection, in time.
sub noticed
{
	my ($mark, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( $blue->poll_query_until("SELECT errors > $mark->{errors}"
			  . q{ AND error_sqlstate LIKE '08%' FROM bluegreen.stat_stream}),
		"noticed: $name");
	cmp_ok(time - $mark->{time}, '<', $peer_timeout + $slow,
		'... in bounded time');
	return;
}

sub heal
{
	my ($name) = @_;
	$proxy->forward;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('net');
	is( $green->safe_psql(
			'SELECT (SELECT sum(v) FROM account) = count(*) FROM ledger'),
		't',
		"healed: $name; green has whole transactions");
	return;
}

my $accounts = 20_000;
$_->safe_psql(q{
CREATE TABLE account (id int PRIMARY KEY, v int NOT NULL, filler text);
CREATE TABLE ledger (id bigint PRIMARY KEY, account int NOT NULL);
CREATE TABLE large (id int PRIMARY KEY, v text);}) for $blue, $green;
$blue->safe_psql(qq{
CREATE SEQUENCE number;
INSERT INTO account SELECT i, 0, repeat('x', 100)
	FROM generate_series(1, $accounts) i;
ANALYZE account;});

# Green counts how often each row of the ledger arrives.
$green->safe_psql(q{
CREATE TABLE arrival (id bigint PRIMARY KEY, n int NOT NULL);
CREATE FUNCTION count_arrival() RETURNS trigger LANGUAGE plpgsql
SET search_path = public AS $$
BEGIN
	INSERT INTO arrival VALUES (NEW.id, 1)
		ON CONFLICT (id) DO UPDATE SET n = arrival.n + 1;
	RETURN NULL;
END $$;
CREATE TRIGGER arrival AFTER INSERT OR UPDATE ON ledger
	FOR EACH ROW EXECUTE FUNCTION count_arrival();
ALTER TABLE ledger ENABLE ALWAYS TRIGGER arrival;});

my $load = pgbench_start(
	$blue,
	clients => 3,
	rate => 300,
	script => "\\set id random(1, $accounts)\nBEGIN;\n"
	  . "UPDATE account SET v = v + 1 WHERE id = :id;\n"
	  . "INSERT INTO ledger VALUES (nextval('number'), :id);\nCOMMIT;");

#
# The first start, and a user who waits for it
#
go_through($proxy->port);
$blue->safe_psql(q{SELECT bluegreen.create_deployment('net', 'green');
	SELECT bluegreen.map_table('net', t) FROM
		unnest('{account,ledger,large}'::regclass[]) t;});
$proxy->stall;
my $since = time;
my ($status, undef, $error) = $blue->psql(q{CALL bluegreen.start('net')});
like($error, qr/could not connect to peer.*\n.*did not answer within 2 s/,
	'start to a peer that does not answer is an error');
cmp_ok(time - $since, '<', 2 + $slow, '... in bounded time');
$proxy->forward;
$proxy->stall_at('DELETE FROM bluegreen.applied');
$since = time;
(undef, undef, $error) = $blue->psql(q{CALL bluegreen.start('net')});
like($error, qr/lost connection to peer/,
	'and so is one that falls silent in the middle of it');
cmp_ok(time - $since, '<', $peer_timeout + $slow, '... in bounded time');
is($proxy->fired, 1, '... as planned');
is( $blue->safe_psql('SELECT (SELECT desired FROM bluegreen.deployment)'
		  . ' || (SELECT count(*) FROM pg_replication_slots)'),
	'defined0',
	'nothing is left of it on blue');
$proxy->stall;
my $session = $blue->session;
$session->send(q{CALL bluegreen.start('net')});
$blue->poll_query_until('SELECT wait_event_type IN (\'Extension\') FROM'
	  . ' pg_stat_activity WHERE pid = ' . $session->pid);
$since = time;
$blue->safe_psql('SELECT pg_cancel_backend(' . $session->pid . ')');
$session->wait;
like($session->errors, qr/canceling statement due to user request/,
	'it can be cancelled');
$session->quit;
$proxy->forward;
$blue->safe_psql(q{CALL bluegreen.start('net')});

#
# Cuts at random points, while tables are copied and while the stream runs
#
my $cuts = $ENV{BLUEGREEN_CUTS} || 20;
my $reached = 0;
foreach my $round (1 .. $cuts)
{
	my $before = $proxy->fired;
	my $kind = $round <= 5 ? 0 : int rand 4;
	if ($round == 2) { $proxy->stall_at('COMMIT') }
	elsif ($kind == 0) { $proxy->cut(1 + int rand 60_000) }
	elsif ($kind == 1) { $proxy->cut_at('COMMIT') }
	elsif ($kind == 2) { $proxy->cut_at('commit_position') }
	else { $proxy->cut_at('UPDATE') }
	BlueGreen::Node::wait_until(sub { $proxy->fired > $before })
	  and $reached++;
	is( $green->safe_psql(q{SELECT state FROM bluegreen.applied_table
			WHERE target_table = 'account'}),
		'copying',
		'some while tables are copied') if $round == 3;
}
is($reached, $cuts, "$cuts cuts, at random points of the copy and the stream");
heal('after the cuts');
is($blue->safe_psql('SELECT count(*) FROM bluegreen.event'
		  . q{ WHERE kind IN ('skipped', 'lost')}),
	0, 'nothing was skipped');
is(stream('careful_batches'), 0, 'and no transaction took the careful path');

#
# Silence, with everything acknowledged
#
my $mark = mark();
$proxy->stall;
noticed($mark, 'silence under load');
my $failures = stream('failures');
ok( $blue->poll_query_until("SELECT failures > $failures"
		  . ' FROM bluegreen.stat_stream'),
	'it is tried again');
is(stream('error_lsn IS NULL'), 't', '... and no transaction can be skipped');
(undef, undef, $error) =
  $blue->psql(q{CALL bluegreen.wait_for_sync('net', '1s')});
like($error, qr/timeout while waiting/, 'wait_for_sync waits, not for ever');
$blue->safe_psql(q{CALL bluegreen.stop('net')});
is(stream('state'), 'stopped', 'stop does not hang');
(undef, undef, $error) =
  $blue->psql(q{SELECT bluegreen.drop_deployment('net')});
like($error, qr/could not connect to peer/, 'drop_deployment does not hang');
$proxy->forward;
$blue->safe_psql(q{CALL bluegreen.start('net')});
heal('silence under load');

# the same in the middle of a commit, whose outcome we do not know
$mark = mark();
$proxy->stall_at('COMMIT');
noticed($mark, 'silence in the middle of COMMIT');
heal('silence in the middle of COMMIT');

#
# Refused, reset, slow
#
$mark = mark();
$proxy->refuse;
noticed($mark, 'the peer refuses connections');
ok( $blue->poll_query_until(q{SELECT failures > 4
		AND next_start - error_at BETWEEN '390ms' AND '10s'
		FROM bluegreen.stat_stream}),
	'it is tried again, with a delay that has grown');
heal('refused');
$since = time;
my $errors = stream('errors');
$proxy->reset;
$blue->poll_query_until("SELECT errors > $errors FROM bluegreen.stat_stream");
heal('reset');
$errors = stream('errors');
$proxy->delay(150);
wait_for_sync('net');
is(stream('errors'), $errors, 'a slow line is no error');
heal('slow');

pgbench_stop($load);
heal('without load');

#
# Silence while there is nothing to say: a peer whose processes stand still,
# while its kernel acknowledges what comes
#
$mark = mark();
my @processes = ($green->pid, BlueGreen::Node::children($green->pid));
kill 'STOP', @processes;
noticed($mark, 'a peer that stands still, of an idle stream');
kill 'CONT', @processes;
heal('stood still');

#
# A peer that works for long is not taken for dead, however much waits for it
#
go_through($green->port);
$blue->append_conf("bluegreen.batch_size = '64MB'\n"
	  . "bluegreen.batch_rows = 1000000\n"
	  . "bluegreen.peer_timeout = '6s'\n");
$blue->safe_psql('SELECT pg_reload_conf()');
$blue->safe_psql(
	q{CALL bluegreen.stop('net'); CALL bluegreen.start('net');});
wait_for_sync('net');
$errors = stream('errors');
my $holder = $green->session;
$holder->query('BEGIN; LOCK TABLE large IN EXCLUSIVE MODE');
my $from = length $green->log;
$blue->safe_psql(q{INSERT INTO large SELECT i, repeat('x', 1000)
	FROM generate_series(1, 20000) i;
	INSERT INTO account VALUES (0, 0, '');});
ok( BlueGreen::Node::wait_until(
		sub {
			my @probes = $green->log($from) =~ /authorized.*bluegreen probe/g;
			return @probes >= 4;
		}),
	'a peer that is silent for long is asked whether it works');
is(stream('errors'), $errors, '... and left alone if it does');
($status, undef, $error) = $blue->psql(
	q{SET statement_timeout = '60s'; CALL bluegreen.stop('net')});
is($status, 0, 'stop does not wait for it') or diag($error);
my $sessions = q{SELECT count(*) FROM pg_stat_activity
	WHERE application_name LIKE 'bluegreen net%'};
ok($green->poll_query_until($sessions, 0),
	'and what waits for a lock on the peer ends, too');
$holder->query('COMMIT');
$holder->quit;
$blue->append_conf("bluegreen.peer_timeout = '${peer_timeout}s'");
$blue->safe_psql('SELECT pg_reload_conf()');
$blue->safe_psql(q{CALL bluegreen.start('net')});
wait_for_sync('net');

#
# What the peer says when it cannot just now is no fault of a row
#
my $careful = stream('careful_batches');
$green->safe_psql(q{
CREATE TABLE refusal (code text);
INSERT INTO refusal VALUES (NULL);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
SET search_path = public AS $$
DECLARE
	c text := code FROM refusal;
BEGIN
	IF c IS NOT NULL THEN
		RAISE 'not just now' USING ERRCODE = c;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER refuse AFTER INSERT ON large EXECUTE FUNCTION refuse();
ALTER TABLE large ENABLE ALWAYS TRIGGER refuse;});
my $id = 1_000_000;
foreach my $code (qw(08006 40P01 53100 55P03 57014 57P01))
{
	$green->safe_psql("UPDATE refusal SET code = '$code'");
	$mark = mark();
	$blue->safe_psql('INSERT INTO large VALUES (' . $id++ . ", '$code')");
	ok( $blue->poll_query_until(
			"SELECT errors > $mark->{errors} AND error_sqlstate = '$code'"
			  . ' FROM bluegreen.stat_stream'),
		"the stream stops at $code");
	is( stream("error_lsn IS NULL AND careful_batches = $careful"),
		't', '... and leaves the row alone');
	$green->safe_psql('UPDATE refusal SET code = NULL');
	wait_for_sync('net');
}

#
# Packets that vanish
#
SKIP:
{
	my $netns = $ENV{BLUEGREEN_NETNS} // 'none';
	skip 'no network namespace of our own (needs root)', 6
	  if $netns ne 'unshared';
	my $iptables =
	  (grep { system("$_ -L -n >/dev/null 2>&1") == 0 }
		  qw(iptables iptables-legacy))[0];
	skip 'no iptables', 6 unless $iptables;
	my $port = $green->port;
	my $drop = sub {
		my ($what) = @_;
		foreach my $side ('--dport', '--sport')
		{
			system("$iptables $what INPUT -p tcp $side $port -j DROP") == 0
			  or die "$iptables failed";
		}
	};
	foreach my $what ('idle', 'with changes')
	{
		$mark = mark();
		$drop->('-A');
		$blue->safe_psql('UPDATE account SET v = v WHERE id < 100')
		  if $what ne 'idle';
		noticed($mark, "packets vanish, $what");
		$drop->('-D');
		wait_for_sync('net');
		is($green->safe_psql($sessions), 1,
			'green has no session left of before');
	}
}

compare_tables("TABLE $_", "TABLE $_", "$_ is equal")
  for qw(account ledger large);
compare_tables('SELECT id, 1 FROM ledger',
	'SELECT id, n FROM arrival', 'every row arrived exactly once');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'and none was otherwise than expected');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('net')});
is($green->safe_psql('SELECT count(*) FROM pg_replication_origin'),
	0, 'the end leaves nothing');

done_testing();
