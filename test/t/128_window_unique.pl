# Unique values other than the key that both sides use again and again: a row in
# the way that the source has seen makes place, what is owed gets there whatever
# happens meanwhile, and under random load no stream stops.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::TwoWay;
use BlueGreen::Window;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'\nmax_worker_processes = 24\n"
	  . "max_replication_slots = 20");
BlueGreen::Window::create_tables($blue, $green);
BlueGreen::Window::create_meeting($blue, $green);

# An update that changes nothing is one of a row that is owed: it waits for who
# holds the lock 1.
foreach my $node ($blue, $green)
{
	my $unique = $node == $green ? 'UNIQUE' : '';
	$node->safe_psql(qq{
		CREATE TABLE pair (id int PRIMARY KEY, v text, code text UNIQUE);
		ALTER TABLE pair REPLICA IDENTITY FULL;
		CREATE TABLE strict (id int PRIMARY KEY, code text $unique);
		ALTER TABLE strict REPLICA IDENTITY FULL;
		CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END';
		CREATE TRIGGER hold BEFORE UPDATE ON pair FOR EACH ROW
			WHEN (OLD.* IS NOT DISTINCT FROM NEW.*) EXECUTE FUNCTION hold();
		ALTER TABLE pair ENABLE ALWAYS TRIGGER hold});
}
$blue->safe_psql(q{INSERT INTO pair
		SELECT i, '0', 'c' || i FROM generate_series(1, 50) i;
	INSERT INTO strict SELECT i, 'c' || i FROM generate_series(1, 5) i;
	SELECT bluegreen.create_deployment('d', 'green');}
	  . join('', map { "SELECT bluegreen.map_table('d', '$_');" }
		  @BlueGreen::Window::tables, qw(pair strict w_pair))
	  . q{CALL bluegreen.start('d')});
wait_for_both('d');

sub both_same
{
	my ($name, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('d') for 1 .. 3;
	compare_tables("SELECT * FROM $_", "SELECT * FROM $_", "$name: $_ is the same")
	  foreach @tables;
	return;
}

# id:code of these rows, on blue
sub codes
{
	my ($ids) = @_;
	return $blue->safe_psql(q{SELECT string_agg(id || ':' || code, ' ' ORDER BY id)
		FROM pair WHERE id IN } . "($ids)");
}

sub nothing_owed
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($_->poll_query_until('SELECT count(*) = 0 FROM bluegreen.window_owed'),
		"$name: $_->{name} owes nothing") foreach $blue, $green;
	return;
}

#
# Blue leaves row 1 out for row 2, and before it has sent that, row 2 gives the
# code away, and row 3 takes it.  Green has it in row 1 still.
#
open_with('d', 'last_write', $blue, $green);
stop_both('d', $blue, $green);
$green->safe_psql(q{UPDATE pair SET code = 'x' WHERE id = 1});
$blue->safe_psql(q{UPDATE pair SET code = 'x' WHERE id = 2});
$green->safe_psql(q{UPDATE pair SET code = 'y' WHERE id = 2});
my $holder = $blue->session;
$holder->query('SELECT pg_advisory_lock(1)');
start_both('d', $green);
ok($blue->poll_query_until(q{SELECT EXISTS (SELECT FROM pg_locks
		WHERE locktype = 'advisory' AND NOT granted)}),
	'used again: what is owed is not sent yet');
$blue->safe_psql(q{UPDATE pair SET code = 'z' WHERE id = 2});
$blue->safe_psql(q{UPDATE pair SET code = 'x' WHERE id = 3});
start_both('d', $blue);
ok($green->poll_query_until(q{SELECT code = 'x' FROM pair WHERE id = 3}),
	'used again: the row in the way makes place');
is($green->safe_psql('SELECT count(*) FROM pair WHERE id = 1'), 0,
	'used again: it is gone for a while');
$holder->query('SELECT pg_advisory_unlock(1)');
both_same('used again', 'pair');
is(codes('1, 2, 3'), '1:c1 2:z 3:x',
	'used again: the row that was left out is as it was');
nothing_owed('used again');
is( $green->safe_psql(q{SELECT decision, existing::jsonb ->> 'id'
		FROM bluegreen.conflict WHERE decision LIKE '%later%'}),
	'blue is later: removed the row that was in the way|1',
	'used again: recorded');

#
# The transaction itself has written the row that is in the way of its next one
#
# ... and green has changed that row, too, before
stop_both('d', $blue, $green);
$green->safe_psql(q{UPDATE pair SET v = 'green' WHERE id = 14});
$blue->safe_psql(q{BEGIN; UPDATE pair SET code = 'p' WHERE id = 14;
	UPDATE pair SET code = 't' WHERE id = 14;
	UPDATE pair SET code = 'p' WHERE id = 16; COMMIT});
$green->safe_psql(q{UPDATE pair SET code = 't' WHERE id = 15});
my $stopped = $blue->safe_psql('SELECT errors FROM bluegreen.stat_stream');
start_both('d', $blue, $green);
both_same('changed on both', 'pair');
is(codes('14, 15, 16'), '15:t 16:p', 'changed on both: the loser is gone');
is($blue->safe_psql('SELECT errors FROM bluegreen.stat_stream'), $stopped,
	'changed on both: no stream has stopped');

open_with('d', 'green', $blue, $green);
stop_both('d', $blue, $green);
$green->safe_psql(q{UPDATE pair SET code = 'taken' WHERE id = 12});
$blue->safe_psql(q{BEGIN; UPDATE pair SET code = 'passed' WHERE id = 11;
	UPDATE pair SET code = 'taken' WHERE id = 11;
	UPDATE pair SET code = 'passed' WHERE id = 13; COMMIT});
start_both('d', $blue, $green);
both_same('passed on', 'pair');
is(codes('11, 12, 13'), '12:taken 13:passed', 'passed on: the loser is gone');
nothing_owed('passed on');

#
# What is owed is that a row is gone; somebody makes it before that is committed
#
stop_both('d', $blue, $green);
$green->safe_psql(q{UPDATE pair SET code = 'new' WHERE id = 22});
$blue->safe_psql(q{INSERT INTO pair VALUES (121, 'blue', 'new')});
$holder = $green->session;
$holder->query('BEGIN; LOCK TABLE bluegreen.repair_row IN SHARE MODE');
start_both('d', $blue);
ok($green->poll_query_until(q{SELECT EXISTS (SELECT FROM pg_locks
		WHERE relation = 'bluegreen.repair_row'::regclass AND NOT granted)}),
	'made meanwhile: green is about to say that there is no such row');
$green->safe_psql(q{INSERT INTO pair VALUES (121, 'green', 'other')});
$holder->query('COMMIT');
$holder->quit;
start_both('d', $green);
both_same('made meanwhile', 'pair');
is($blue->safe_psql('SELECT v, code FROM pair WHERE id = 121'),
	'green|other', 'made meanwhile: the row is there');
nothing_owed('made meanwhile');

#
# Only green has a unique constraint: nothing makes place for that
#
$blue->safe_psql(q{UPDATE strict SET code = 'c1' WHERE id = 2});
ok($blue->poll_query_until(q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'unique on one side: the stream stops');
like($blue->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
	qr/strict_code_key/, 'unique on one side: the constraint is named');
$blue->safe_psql(q{SELECT bluegreen.skip('d', error_lsn)
	FROM bluegreen.stat_stream});
ok($blue->poll_query_until(q{SELECT state = 'streaming'
	FROM bluegreen.stat_stream}), 'unique on one side: left out');
$blue->safe_psql(q{UPDATE strict SET code = 'c2' WHERE id = 2});
both_same('unique on one side', 'strict');

#
# Two clients of each side and twelve rows, with as many codes
#
my $conflicts = $ENV{CONFLICTS} || 100;
foreach my $policy (qw(green blue last_write))
{
	open_with('d', $policy, $blue, $green);
	$_->safe_psql('TRUNCATE bluegreen.conflict_log') foreach $blue, $green;
	my @errors = map { $_->safe_psql('SELECT errors FROM bluegreen.stat_stream') }
	  $blue, $green;
	my $clients = BlueGreen::Window->new($blue, $green);
	$clients->start(clients => 2, meet => 12);
	ok( BlueGreen::Node::wait_until(
			sub {
				my $n = 0;
				$n += $_->safe_psql('SELECT count(*) FROM bluegreen.conflict')
				  foreach $blue, $green;
				return $n > $conflicts;
			}),
		"$policy: there are conflicts");
	is($clients->stop, '', "$policy: no number was given twice");
	both_same($policy, 'w_pair', @BlueGreen::Window::tables);
	nothing_owed($policy);
	is_deeply(
		[ map { $_->safe_psql('SELECT errors FROM bluegreen.stat_stream') }
			  $blue, $green ],
		\@errors, "$policy: no stream has stopped");
	note "measured $policy: " . join '; ', map {
		$_->safe_psql(q{SELECT string_agg(kind || ' ' || n, ', ' ORDER BY kind)
			FROM (SELECT kind, count(*) AS n FROM bluegreen.conflict
				GROUP BY 1) c})
	} $blue, $green;
}

close_to('d', 'green', $blue, $green);
done_testing();
