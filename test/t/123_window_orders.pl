# Changes of both sides in orders in which it takes an effort to end the same:
# what one side has not seen is folded with what it has, or meets nothing that
# could be locked.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::TwoWay;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\nmax_worker_processes = 24\n"
	  . "max_replication_slots = 20\nbluegreen.event_retention = 0");

foreach my $node ($blue, $green)
{
	my $extra = $node == $green ? ", extra text DEFAULT 'x'" : '';
	$node->safe_psql(qq{
		CREATE TABLE plain (id int PRIMARY KEY, v int);
		CREATE TABLE keys (id int, part int, PRIMARY KEY (id, part));
		CREATE TABLE chosen (id int PRIMARY KEY, status int);
		CREATE TABLE wider (id int PRIMARY KEY, v int$extra)});
}
my $chosen = 'SELECT id, status FROM chosen WHERE status <> 9';
$blue->safe_psql(qq{
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'plain', conflict => 'green');
	SELECT bluegreen.map_table('d', 'keys', conflict => 'green');
	SELECT bluegreen.map_table('d', 'chosen', conflict => 'green',
		transform => '$chosen');
	SELECT bluegreen.map_table('d', 'wider', conflict => 'green');
	INSERT INTO plain SELECT i, 0 FROM generate_series(1, 20) i;
	INSERT INTO keys SELECT i, 0 FROM generate_series(1, 20) i;
	INSERT INTO chosen SELECT i, 0 FROM generate_series(1, 20) i;
	INSERT INTO wider SELECT i, 0 FROM generate_series(1, 20) i;
	CALL bluegreen.start('d')});
$blue->safe_psql(qq{SELECT bluegreen.map_table('d', 'chosen', 'chosen',
		conflict => 'green', transform => '$chosen', direction => 'backward')});
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_both('d');

sub both_same
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('d') for 1 .. 2;
	return compare_tables("SELECT * FROM $table", "SELECT * FROM $table", $name);
}

# Nothing goes from blue to green, until start_both('d', $blue).  stop() on the
# side that is active would stop the other stream as well.
sub hold_blue
{
	stop_both('d', $blue, $green);
	start_both('d', $green);
	return;
}

# The rows with these ids, on green
sub rows_of
{
	my ($table, $where) = @_;
	return $green->safe_psql(
		"SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FROM $table WHERE $where");
}

#
# A filter that a delete cannot be held against
#
my (undef, undef, $error) =
  $blue->psql(q{CALL bluegreen.open_window('d', '170 s')});
like($error, qr/cannot open a window/, 'refused');
like($blue->safe_psql(q{SELECT message FROM bluegreen.preflight('d', 'window')
		WHERE "check" = 'window_mapping' AND severity = 'error'}),
	qr/"public.chosen" .*its filter reads columns that a delete does not carry/,
	'a filter beyond what a delete carries');
$_->safe_psql('ALTER TABLE chosen REPLICA IDENTITY FULL') for $blue, $green;
$blue->safe_psql("CALL bluegreen.start('d')");
wait_for_both('d');
open_with('d', 'green', $blue, $green);

$_->safe_psql("CALL bluegreen.stop('d')") for $blue, $green;
$blue->safe_psql('UPDATE chosen SET status = 1 WHERE id IN (1, 3)');
$green->safe_psql('DELETE FROM chosen WHERE id = 1;
	UPDATE chosen SET status = 9 WHERE id = 3');
start_both('d', $blue, $green);
settle('d', $blue, $green);
compare_tables($chosen, $chosen, 'filter: a delete and leaving the filter win');
is($green->safe_psql("SELECT count(*) FROM ($chosen) c WHERE id IN (1, 3)"), 0,
	'filter: they are gone');

#
# An insert that has not seen a row and a delete that has, in one batch
#
hold_blue();
$blue->safe_psql('INSERT INTO plain VALUES (101, 1)');
$green->safe_psql('INSERT INTO plain VALUES (101, 2)');
wait_for_sync('d', node => $green);
$blue->safe_psql('DELETE FROM plain WHERE id = 101');
start_both('d', $blue);
both_same('plain', 'came and went: both the same');
is(rows_of('plain', 'id = 101'), '', 'came and went: the delete is later');

#
# An update that sets nothing, against a delete that is later than its look
#
stop_both('d', $blue, $green);
$green->safe_psql('UPDATE keys SET part = part WHERE id = 2');
$blue->safe_psql('DELETE FROM keys WHERE id = 2');
start_both('d', $blue, $green);
both_same('keys', 'nothing to set: both the same');
is($green->safe_psql('SELECT count(*) FROM keys WHERE id = 2'), 1,
	'nothing to set: the update wins');

#
# A delete that finds nothing, and a row that is made before it is committed
#
stop_both('d', $blue, $green);
$_->safe_psql('DELETE FROM plain WHERE id = 5') for $blue, $green;
my $session = $blue->session;
$session->query('BEGIN; LOCK TABLE bluegreen.conflict_log IN SHARE MODE');
start_both('d', $green);
ok($blue->poll_query_until(q{SELECT EXISTS (SELECT FROM pg_locks
		WHERE relation = 'bluegreen.conflict_log'::regclass AND NOT granted)}),
	'nothing to delete: it has been looked for');
$blue->safe_psql('INSERT INTO plain VALUES (5, 55)');
$session->query('COMMIT');
wait_for_sync('d', node => $green);
start_both('d', $blue);
both_same('plain', 'nothing to delete: both the same');
is(rows_of('plain', 'id = 5'), '5:55', 'nothing to delete: the row stays');

#
# One side calls the window one that is being opened, the other takes writes
#
$blue->safe_psql(q{UPDATE bluegreen.deployment SET "window" = 'opening'});
hold_blue();
$blue->safe_psql('UPDATE plain SET v = 1 WHERE id = 7');
$green->safe_psql('UPDATE plain SET v = 2 WHERE id = 7');
wait_for_sync('d', node => $green);
start_both('d', $blue);
both_same('plain', 'opening: both the same');
is(rows_of('plain', 'id = 7'), '7:2', 'opening: what is on its way had not seen');
$blue->safe_psql(q{UPDATE bluegreen.deployment SET "window" = 'open'});

#
# A key is changed, and green has more columns
#
stop_both('d', $blue, $green);
$green->safe_psql('UPDATE wider SET v = 2 WHERE id = 1');
$blue->safe_psql('UPDATE wider SET id = 101 WHERE id = 1');
start_both('d', $blue, $green);
ok($blue->poll_query_until(q{SELECT state = 'error'
	FROM bluegreen.stat_stream}), 'moved: the stream stops');
like($blue->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
	qr/a key of table "public.wider" was changed in a window/, 'moved: refused');
$blue->safe_psql(q{SELECT bluegreen.skip('d', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('d');
$blue->safe_psql('DELETE FROM wider WHERE id = 101');
settle('d', $blue, $green);
compare_tables('SELECT id, v FROM wider', 'SELECT id, v FROM wider',
	'moved: left out and mended');

#
# Nobody says what differs in a window
#
(undef, undef, $error) = $blue->psql(q{SELECT bluegreen.repair('d', 'plain')});
like($error, qr/cannot repair tables of deployment "d" in a window/,
	'nothing is repaired');

#
# A watcher is started again while the stream is stopped
#
hold_blue();
$blue->safe_psql(q{SELECT pg_terminate_backend(active_pid)
	FROM pg_replication_slots WHERE slot_name ~ '_own$'});
$green->safe_psql('UPDATE plain SET v = 3 WHERE id = 8');
wait_for_sync('d', node => $green);
is($blue->safe_psql('SELECT v FROM plain WHERE id = 8'), 3,
	'what comes is let in, though the stream from here is stopped');
start_both('d', $blue);

close_to('d', 'green', $blue, $green);
$_->stop for $blue, $green;
done_testing();
