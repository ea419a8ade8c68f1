# What a window could be held up by: more rows than who watches may keep, triggers
# that keep rows from being written, what is left of the window before, processes
# and slots that are gone.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::TwoWay;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'\nmax_worker_processes = 24\n"
	  . "max_replication_slots = 20\nbluegreen.window_memory = '1MB'");

# An update that changes nothing is one of a row that is owed, and is noted.
$_->safe_psql(q{
	CREATE TABLE plain (id int PRIMARY KEY, v int);
	CREATE TABLE pair (id int PRIMARY KEY, v text, code text UNIQUE);
	ALTER TABLE pair REPLICA IDENTITY FULL;
	CREATE TABLE owed (id int);
	CREATE FUNCTION note_owed() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN INSERT INTO owed VALUES (NEW.id); RETURN NEW; END';
	CREATE TRIGGER note_owed BEFORE UPDATE ON pair FOR EACH ROW
		WHEN (OLD.* IS NOT DISTINCT FROM NEW.*) EXECUTE FUNCTION note_owed();
	ALTER TABLE pair ENABLE ALWAYS TRIGGER note_owed;
	CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN RETURN NULL; END'}) foreach $blue, $green;
$blue->safe_psql(q{
	INSERT INTO plain SELECT i, 0 FROM generate_series(1, 10000) i;
	INSERT INTO pair SELECT i, '0', 'c' || i FROM generate_series(1, 20) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'plain', conflict => 'blue');
	SELECT bluegreen.map_table('d', 'pair', conflict => 'blue');
	SELECT bluegreen.accept('d', 'unmapped_table', 'public.owed');
	CALL bluegreen.start('d')});
wait_for_both('d');
open_with('d', 'blue', $blue, $green);

sub both_same
{
	my ($name, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('d') for 1 .. 2;
	compare_tables("SELECT * FROM $_", "SELECT * FROM $_", "$name: $_ is the same")
	  foreach @tables;
	return;
}

# Nothing goes from blue to green, until start_both('d', $blue)
sub hold_blue
{
	stop_both('d', $blue, $green);
	start_both('d', $green);
	return;
}

# What green does to row $id of plain from here on gets to blue.
sub comes_through
{
	my ($name, $id, $v) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$green->safe_psql("UPDATE plain SET v = $v WHERE id = $id");
	return ok(
		$blue->poll_query_until("SELECT v = $v FROM plain WHERE id = $id"),
		$name);
}

sub stops_with
{
	my ($pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($blue->poll_query_until(q{SELECT state = 'error'
		FROM bluegreen.stat_stream}), "$name: the stream stops");
	return like(
		$blue->safe_psql(
			'SELECT error_message, error_detail, error_hint FROM bluegreen.stat_stream'),
		$pattern, "$name: and says why");
}

#
# One row that is changed all the time takes no more room than another
#
hold_blue();
$blue->safe_psql(q{DO $$BEGIN FOR i IN 1 .. 20000 LOOP
	UPDATE plain SET v = i WHERE id = 1; END LOOP; END$$});
$green->safe_psql('UPDATE plain SET v = 2 WHERE id = 2');
ok($blue->poll_query_until('SELECT v = 2 FROM plain WHERE id = 2'),
	'one hot row: all of it was watched');
$blue->safe_psql(q{SELECT pg_log_backend_memory_contexts(active_pid)
	FROM pg_replication_slots WHERE slot_name ~ '_own$'});
my $size = qr/pg_bluegreen watched: (\d+) total/;
ok($blue->wait_for_log($size), 'one hot row: who watches says what it takes');
my ($bytes) = $blue->log =~ $size;
cmp_ok($bytes, '<', 200_000, 'one hot row: not more');

#
# More rows than window_memory holds, until the other side has them
#
$blue->safe_psql('UPDATE plain SET v = 3');
ok( $blue->wait_for_log(
		qr/too many rows were changed that the other side has not seen/),
	'many rows: who watches ends');
start_both('d', $blue);
wait_for_sync('d');
comes_through('many rows: when the other side has them it goes on', 3, 4);
both_same('many rows', 'plain');

#
# The stream from blue is stopped: what comes to it is weighed all the same
#
hold_blue();
$blue->restart;
comes_through('stopped, and the server restarted: somebody watches', 4, 5);
$blue->safe_psql(q{SELECT pg_terminate_backend(active_pid)
	FROM pg_replication_slots WHERE slot_name ~ '_own$'});
comes_through('and again, when he was ended', 5, 6);
start_both('d', $blue);
both_same('stopped', 'plain');

#
# Triggers of the target that keep it from having what comes
#
$green->safe_psql(q{CREATE TRIGGER nothing BEFORE INSERT ON plain
		FOR EACH ROW WHEN (NEW.id = 10077) EXECUTE FUNCTION nothing();
	ALTER TABLE plain ENABLE ALWAYS TRIGGER nothing});
$blue->safe_psql('INSERT INTO plain VALUES (10077, 1)');
stops_with(
	qr/table "public.plain" does not take a row:.*10077.*\d\d times.*trigger/s,
	'a trigger that leaves a row out');
$green->safe_psql('DROP TRIGGER nothing ON plain');
both_same('a trigger that leaves a row out', 'plain');

stop_both('d', $blue, $green);
$green->safe_psql(q{CREATE TRIGGER nothing BEFORE DELETE ON pair
		FOR EACH ROW EXECUTE FUNCTION nothing();
	ALTER TABLE pair ENABLE ALWAYS TRIGGER nothing;
	INSERT INTO pair VALUES (102, 'green', 'k')});
$blue->safe_psql(q{INSERT INTO pair VALUES (101, 'blue', 'k')});
start_both('d', $blue, $green);
stops_with(
	qr/table "public.pair" does not take a row:.*101.*could not be removed.*trigger/s,
	'a trigger that keeps a row');
is($green->safe_psql(q{SELECT count(*) FROM bluegreen.conflict
		WHERE kind = 'unique' AND decision ~ 'removed'}),
	0, 'a trigger that keeps a row: nothing is recorded that was not done');
$green->safe_psql('DROP TRIGGER nothing ON pair');
both_same('a trigger that keeps a row', 'pair');
is($green->safe_psql(q{SELECT id FROM pair WHERE code = 'k'}), 101,
	'a trigger that keeps a row: blue wins');

#
# What is left of a window that was ended by force
#
$_->safe_psql(q{SELECT bluegreen.force_active('blue')}) foreach $blue, $green;
foreach my $node ($blue, $green)
{
	ok($node->poll_query_until(q{SELECT count(*) = 0 FROM pg_replication_slots
		WHERE slot_name ~ '_own$'}), "by force: nobody watches on $node->{name}");
}
my $sent = $green->safe_psql('SELECT count(*) FROM owed');
$green->safe_psql(q{SET default_transaction_read_only = off;
	INSERT INTO bluegreen.window_owed
	SELECT name, } . $blue->safe_psql(q{SELECT id FROM bluegreen.table_mapping
		WHERE source = 'pair'::regclass}) . q{, '{7}', '{id}', '{7}'
	FROM bluegreen.applied_stream WHERE name LIKE '%\_f'});
$blue->safe_psql(q{CALL bluegreen.open_window('d', '170 s')});
wait_for_both('d');
is($green->safe_psql('SELECT count(*) FROM bluegreen.window_owed'), 0,
	'left over: what was owed before is forgotten');
is($green->safe_psql('SELECT count(*) FROM owed'), $sent,
	'left over: and not sent');

#
# The slot of who watches is gone
#
hold_blue();
ok( BlueGreen::Node::wait_until(
		sub {
			my ($status) = $blue->psql(q{
				SELECT pg_terminate_backend(active_pid, 1000)
				FROM pg_replication_slots
				WHERE slot_name ~ '_own$' AND active;
				SELECT pg_drop_replication_slot(slot_name)
				FROM pg_replication_slots WHERE slot_name ~ '_own$'});
			return $status == 0;
		}),
	'no slot: dropped by hand');
start_both('d', $blue);
stops_with(qr/replication slot ".*_own" of the window is gone.*force_active/s,
	'no slot');

done_testing();
