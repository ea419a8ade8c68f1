# The fence: raising it waits for those who have written, whoever they are, and
# gives up or ends them after a while; and what is left of it when its session,
# its server or its primary dies.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one', "max_prepared_transactions = 10\n"
	  . "wal_level = logical\nmax_wal_senders = 5\nhot_standby = on");
$node->safe_psql(q{CREATE EXTENSION pg_bluegreen;
	CREATE TABLE t (id int PRIMARY KEY, v int);
	CREATE TABLE free (id int PRIMARY KEY, v int);
	INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i;
	INSERT INTO free SELECT i, 0 FROM generate_series(1, 20) i;
	INSERT INTO bluegreen.deployment (name, owner, server) VALUES ('d', 10, 'none');
	INSERT INTO bluegreen.table_mapping (deployment, direction, source, view,
		target_schema, target_table, on_write, on_delete, has_other_columns)
	SELECT id, 'forward', 't'::regclass, 0, 'public', 't', 'mirror', 'delete',
		false FROM bluegreen.deployment});

my $epoch = 0;

sub state
{
	return $node->safe_psql('SELECT state FROM bluegreen.fence_state');
}

# How many hold the lock, how many wait for it.
sub writers
{
	my ($running, $held) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$node->poll_query_until(
			'SELECT running, held FROM bluegreen.fence_state',
			"$running|$held"),
		"$running running, $held held");
}

# Is the process waiting for a lock?
sub waits
{
	my ($session) = @_;
	return $node->poll_query_until(
		'SELECT wait_event_type = \'Lock\' FROM pg_stat_activity WHERE pid = '
		  . $session->pid);
}

#
# In-flight writers are waited for; new ones are held meanwhile
#
my ($raiser, $writer, $other, $third) = map { $node->session } 1 .. 4;
$writer->query('BEGIN; UPDATE t SET v = 1 WHERE id = 1');
$epoch++;
$raiser->send("CALL bluegreen.fence_raise('d', $epoch, '170s')");
ok(waits($raiser), 'raising waits for a writer');
is($node->safe_psql('SELECT state, drained FROM bluegreen.fence_state'),
	'raised|f', 'and is not through');
$other->send('UPDATE t SET v = 1 WHERE id = 2');
writers(1, 1);
is( $node->safe_psql('UPDATE free SET v = v + 1 WHERE id = 1 RETURNING v'),
	1, 'who writes another table is not held');
is($writer->query('UPDATE t SET v = 1 WHERE id = 3; SELECT count(*) FROM t'),
	20, 'who has written before goes on');
$writer->query('SAVEPOINT a; UPDATE t SET v = 2 WHERE id = 4; ROLLBACK TO a');
$writer->query('COMMIT');
is($writer->errors, '', 'to his end');
$raiser->wait;
is($raiser->errors, '', 'then the fence is up');
is($node->safe_psql('SELECT state, drained, running, held FROM bluegreen.fence_state'),
	'raised|t|0|1', 'and the held one still held');
my (undef, undef, $err) = $third->query("CALL bluegreen.fence_raise('d', 99)");
like($third->errors, qr/a fence of this database is already raised/,
	'it is raised by one session at a time');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
is($raiser->errors, '', 'lowered');
$other->wait;
is($other->errors, '', 'the held one goes on');
is($node->safe_psql('SELECT sum(v) FROM t'), 3, 'and everybody has written');

# a lock that only a subtransaction took, and gave back, is not a writer's
$writer->query('BEGIN; SAVEPOINT a; UPDATE t SET v = 1 WHERE id = 5; ROLLBACK TO a');
$epoch++;
is($raiser->query("CALL bluegreen.fence_raise('d', $epoch, '170s')") . $raiser->errors,
	'', 'a write that was rolled back to a savepoint is not waited for');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
$writer->query('COMMIT');

#
# Plans from before the fence
#
$other->query('PREPARE p AS UPDATE t SET v = v + 1 WHERE id = 6;
	EXECUTE p; EXECUTE p; EXECUTE p; EXECUTE p; EXECUTE p; EXECUTE p; EXECUTE p');
$third->query(q{CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS
	$$BEGIN UPDATE t SET v = v + 1 WHERE id = 7; END$$;
	SELECT f(); SELECT f(); SELECT f(); SELECT f(); SELECT f(); SELECT f(); SELECT f()});
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '170s')");
$other->send('EXECUTE p');
$third->send('SELECT f()');
writers(0, 2);
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
$_->wait for $other, $third;
is($node->safe_psql('SELECT sum(v) FROM t WHERE id IN (6, 7)'),
	16, 'plans that were cached before are held, too, and go on');

#
# Prepared transactions
#
$writer->query(q{BEGIN; UPDATE t SET v = 1 WHERE id = 8; PREPARE TRANSACTION 'p'});
$epoch++;
$raiser->send("CALL bluegreen.fence_raise('d', $epoch, '170s')");
ok(waits($raiser), 'a prepared transaction is waited for');
is($node->safe_psql('SELECT prepared, pid IS NULL, held FROM bluegreen.fence_writer'),
	'p|t|f', 'and shown');
$node->safe_psql('SELECT pg_cancel_backend(' . $raiser->pid . ')');
$raiser->wait;
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '300 ms')");
like($raiser->errors, qr/Still running: prepared transaction \d+\./,
	'who gives up says so');
$epoch++;
$raiser->send("CALL bluegreen.fence_raise('d', $epoch, '170s')");
ok(waits($raiser), 'it is waited for');
$node->safe_psql(q{COMMIT PREPARED 'p'});
$raiser->wait;
is($raiser->errors, '', 'until it is committed');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");

#
# A writer that waits for one that is held: no deadlock, no error
#
$other->query('BEGIN; SELECT * FROM t WHERE id = 9 FOR UPDATE');
$writer->query('BEGIN; UPDATE t SET v = 1 WHERE id = 10');
$epoch++;
$raiser->send("CALL bluegreen.fence_raise('d', $epoch, '170s')");
ok(waits($raiser), 'raising waits');
$other->send('UPDATE t SET v = v + 1 WHERE id = 9; COMMIT');
writers(1, 1);
$writer->send('UPDATE t SET v = v + 1 WHERE id = 9; COMMIT');
$_->wait for $other, $writer, $raiser;
is(join('', map { $_->errors } $other, $writer, $raiser),
	'', 'a writer waits for a row of a held one: that goes first, nobody fails');
is($node->safe_psql('SELECT v FROM t WHERE id = 9'), 2, 'both have written');
is($node->safe_psql('SELECT state, drained FROM bluegreen.fence_state'),
	'raised|t', 'and the fence is up');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");

#
# The drain timeout
#
$writer->query('BEGIN; UPDATE t SET v = 1 WHERE id = 11');
$other->query('BEGIN; SELECT count(*) FROM t');
$epoch++;
$third->send('SELECT pg_sleep(0)');
$third->wait;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '300 ms')");
like(
	$raiser->errors,
	qr/transactions that write to mapped tables did not end within 300 ms/,
	'abort: raising gives up');
my $pid = $writer->pid;
like($raiser->errors, qr/Still running: process $pid\./, 'and says why');
is(state(), 'open', 'the fence is down');
is($writer->query('UPDATE t SET v = 1 WHERE id = 12; COMMIT') . $writer->errors,
	'', 'nobody has noticed');

$writer->query('BEGIN; UPDATE t SET v = 1 WHERE id = 13');
$epoch++;
$raiser->send("CALL bluegreen.fence_raise('d', $epoch, '300 ms', 'terminate')");
ok(waits($raiser), 'terminate: raising waits');
$third->send('UPDATE t SET v = 1 WHERE id = 14');
$raiser->wait;
is($raiser->errors, '', 'and gets through');
eval { $writer->query('COMMIT') };
like($writer->errors, qr/terminating connection due to administrator command/,
	'the writer was terminated');
writers(0, 1);
is($other->query('SELECT count(*) FROM t; COMMIT') . $other->errors,
	20, 'he alone: who reads was not');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
$third->wait;
is($third->errors, '', 'nor who was held');
is($node->safe_psql('SELECT v FROM t WHERE id IN (13, 14) ORDER BY id'),
	"0\n1", 'what he had written is gone');
$writer = $node->session;

# who was held, and is let in because one who is waited for waits for him, is
# not one of those that wrote when it began
my $first = $node->session;
$first->query(q{SET deadlock_timeout = '20ms';
	BEGIN; UPDATE t SET v = 7 WHERE id = 13});
$writer->query('BEGIN; UPDATE free SET v = 1 WHERE id = 5');
$epoch++;
$raiser->send("CALL bluegreen.fence_raise('d', $epoch, '3 s', 'terminate')");
ok(waits($raiser), 'terminate: raising waits');
$writer->send('UPDATE t SET v = 7 WHERE id = 14');
writers(1, 1);
$first->send('UPDATE free SET v = 2 WHERE id = 5');
$writer->wait;
is($writer->errors, '', 'one who was held is let in');
$raiser->wait;
is($raiser->errors, '', 'and ended with the others');
writers(0, 0);
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
is($node->safe_psql('SELECT count(*) FROM t WHERE v = 7'), 0,
	'nothing of them is left');
eval { $_->query('COMMIT') } for $first, $writer;
$writer = $node->session;

# a cancel
$writer->query('BEGIN; UPDATE t SET v = 1 WHERE id = 15');
$epoch++;
$raiser->send("CALL bluegreen.fence_raise('d', $epoch, '170s')");
ok(waits($raiser), 'raising waits');
$other->send('UPDATE t SET v = 1 WHERE id = 16');
writers(1, 1);
$node->safe_psql('SELECT pg_cancel_backend(' . $raiser->pid . ')');
$raiser->wait;
like($raiser->errors, qr/canceling statement due to user request/, 'it can be canceled');
is(state(), 'open', 'then the fence is down');
$other->wait;
is($other->errors, '', 'and who was held goes on');
$writer->query('COMMIT');

#
# The session that raised it ends, or fails: nobody is held
#
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch)");
$other->send('UPDATE t SET v = 1 WHERE id = 17');
writers(0, 1);
$raiser->query('SELECT 1 / 0');
$other->wait;
is($other->errors, '', 'an error of its session gives up a raised fence');
is(state(), 'abandoned', 'as the view says');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch)");
is($raiser->errors . state(), 'raised', 'it can be raised again');
$other->send('UPDATE t SET v = 1 WHERE id = 18');
writers(0, 1);
$node->safe_psql('SELECT pg_terminate_backend(' . $raiser->pid . ')');
$other->wait;
is($other->errors, '', 'so does the end of its session');
is(state(), 'abandoned', 'as the view says');
$raiser = $node->session;
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
is($raiser->errors . state(), 'open', 'it can be lowered');

# legal moves only
foreach my $call (
	"fence_raise('d', $epoch)", "fence_close('d', $epoch)",
	"fence_doubt('d', $epoch)", "fence_lower('d', $epoch)",
	"fence_adopt('d', $epoch)", "fence_activate('d', $epoch + 1)")
{
	$raiser->query("CALL bluegreen.$call");
	like($raiser->errors, qr/fence cannot become "\w+" in epoch/,
		"an open fence: not $call");
}
is(state(), 'open', 'it is still open');

#
# kill -9 of the session that raised it: the server starts anew
#
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch)");
my $from = length $node->log;
kill 'KILL', $raiser->pid;
ok($node->wait_for_log(qr/ready to accept connections/, $from), 'a crash');
$node->wait_until_up;
is(state(), 'abandoned', 'a raised fence holds nobody after it');
is($node->safe_psql('UPDATE t SET v = 2 WHERE id = 1 RETURNING v'), 2,
	'writers go on');

# in doubt: they do not
$epoch++;
$raiser = $node->session;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch);
	CALL bluegreen.fence_doubt('d', $epoch)");
is($raiser->errors . state(), 'in_doubt', 'a decision may have been made');
$from = length $node->log;
kill 'KILL', $raiser->pid;
ok($node->wait_for_log(qr/ready to accept connections/, $from), 'a crash');
$node->wait_until_up;
is(state(), 'in_doubt', 'it is still in doubt');
(undef, undef, $err) = $node->psql('UPDATE t SET v = 3 WHERE id = 1');
like($err, qr/it is in doubt whether this side of deployment "d" is the active one/,
	'nobody writes');
is($node->safe_psql('UPDATE free SET v = 3 WHERE id = 3 RETURNING v'), 3,
	'to what is mapped');
$raiser = $node->session;
$raiser->query("CALL bluegreen.fence_adopt('d', $epoch)");
is($raiser->errors, '', 'another session takes it over');
$other = $node->session;
$other->send('UPDATE t SET v = 1 WHERE id = 19');
writers(0, 1);
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
$other->wait;
is($raiser->errors . $other->errors . state(), 'open', 'and settles it');

# a prepared transaction holds its lock over a crash
$node->safe_psql(q{BEGIN; UPDATE t SET v = 5 WHERE id = 20; PREPARE TRANSACTION 'p'});
$node->kill9;
$node->start;
$epoch++;
$raiser = $node->session;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '300 ms', 'abort')");
like($raiser->errors, qr/Still running: prepared transaction \d+\./,
	'prepared transactions count after a crash');
$node->safe_psql(q{ROLLBACK PREPARED 'p'});

#
# Closed: over a crash, and on a standby that is promoted
#
my $standby = BlueGreen->blue('standby', '', standby_of => $node);
$standby->poll_query_until('SELECT count(*) = 1 FROM bluegreen.fence');
my $early = $standby->session;
is($early->query('SELECT count(*) FROM t'), 20, 'a session of the standby');
$early->query('UPDATE t SET v = 9 WHERE id = 1');
like($early->errors, qr/read-only transaction/, 'which cannot write');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch)");
$raiser->query("CALL bluegreen.fence_close('d', $epoch)");
is($raiser->errors . state(), 'closed', 'closed');
my $lsn = $node->safe_psql('SELECT pg_current_wal_lsn()');
$standby->poll_query_until("SELECT pg_last_wal_replay_lsn() >= '$lsn'");
$node->kill9;
$standby->promote;
$standby->poll_query_until('SELECT NOT pg_is_in_recovery()');
eval { $early->query('UPDATE t SET v = 9 WHERE id = 1') };
like($early->errors, qr/this side of deployment "d" is closed/,
	'the standby is closed, too, also for a session from before');
(undef, undef, $err) = $standby->psql('INSERT INTO free VALUES (99, 9)');
like($err, qr/this side of deployment "d" is closed/, 'all of it');
$standby->stop('immediate');
$node->start;
is(state(), 'closed', 'and so is the primary after a crash');
(undef, undef, $err) = $node->psql('UPDATE t SET v = 9 WHERE id = 1');
like($err, qr/this side of deployment "d" is closed/, 'for everybody');

done_testing();
