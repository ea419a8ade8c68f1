# The fence, where it could be missed: backends that know of no fence or of
# another table of that name, statements that were looked at too early, sessions
# that are read-only, standbys, who may move it.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one', "max_prepared_transactions = 10\n"
	  . "wal_level = logical\nmax_wal_senders = 5\nhot_standby = on");
$node->safe_psql(q{CREATE EXTENSION pg_bluegreen;
	CREATE ROLE fence_owner LOGIN; CREATE ROLE fence_other LOGIN;
	GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO fence_owner, fence_other;
	CREATE TABLE t (id int PRIMARY KEY, v int);
	INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i;
	CREATE TABLE t2 (id int); CREATE TABLE t3 (id int);
	INSERT INTO t2 VALUES (1);
	CREATE TABLE free (id int);
	CREATE TABLE part (id int) PARTITION BY RANGE (id);
	CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE alone (id int)});

my $epoch = 0;

sub state { return $node->safe_psql('SELECT state FROM bluegreen.fence_state') }

sub map_table
{
	my ($name) = @_;
	return $node->safe_psql(qq{INSERT INTO bluegreen.table_mapping
		(deployment, direction, source, view, target_schema, target_table,
			on_write, on_delete, has_other_columns)
	SELECT id, 'forward', '$name'::regclass, 0, 'public', '$name', 'mirror',
		'delete', false FROM bluegreen.deployment});
}

# A session that waits for a lock.
sub waits
{
	my ($session, $event) = @_;
	return $node->poll_query_until("SELECT wait_event = '$event'
		FROM pg_stat_activity WHERE pid = " . $session->pid);
}

sub close_side
{
	my ($raiser) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$epoch++;
	$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '170s')");
	is($raiser->errors, '', 'raised');
	$raiser->query("CALL bluegreen.fence_close('d', $epoch)");
	return is($raiser->errors, '', 'closed');
}

my ($raiser, $holder) = map { $node->session } 1 .. 2;

#
# Sessions that looked when there was no fence
#
my $early = $node->session;
$early->query('PREPARE p AS UPDATE t SET v = v + 1 WHERE id = $1; BEGIN;
	EXECUTE p(0); EXECUTE p(0); EXECUTE p(0); EXECUTE p(0); EXECUTE p(0);
	EXECUTE p(0); EXECUTE p(0)');
is($early->errors, '', 'a transaction that has written nothing so far');
my ($copy, $truncate) = map { $node->session } 1 .. 2;
$holder->query('BEGIN; LOCK TABLE t2, t3 IN SHARE MODE');
$copy->send("COPY t3 FROM PROGRAM 'echo 7'");
$truncate->send('TRUNCATE t2');
ok(waits($_, 'relation'), 'a statement waits for its table') for $copy, $truncate;
$node->safe_psql(q{INSERT INTO bluegreen.deployment (name, owner, server)
	SELECT 'd', oid, 'none' FROM pg_roles WHERE rolname = 'fence_owner'});
map_table($_) for 't', 't2', 't3', 'alone';
$node->safe_psql(q{BEGIN; INSERT INTO free VALUES (1); PREPARE TRANSACTION 'free'});
close_side($raiser);
eval { $early->query('EXECUTE p(1)') };
like($early->errors, qr/this side of deployment "d" is closed/,
	'a transaction from before the deployment does not write');
$holder->query('COMMIT');
foreach my $session ($copy, $truncate)
{
	eval { $session->wait };
	like($session->errors, qr/this side of deployment "d" is closed/,
		'nor does a statement that waited meanwhile');
}
is($node->safe_psql('SELECT (SELECT sum(v) FROM t), (SELECT count(*) FROM t2),
	(SELECT count(*) FROM t3)'), '0|1|0', 'nothing is changed');
my (undef, undef, $err) = $node->psql(q{SET default_transaction_read_only = on;
	COMMIT PREPARED 'free'});
like($err, qr/cannot commit a prepared transaction: this side/,
	'a session that is read-only commits no prepared transaction');
$node->safe_psql(q{ROLLBACK PREPARED 'free'; SELECT bluegreen.reopen()});

#
# What is mapped becomes a partition
#
my $writer = $node->session;
is($writer->query('INSERT INTO part VALUES (1); SELECT 1'), 1,
	'a partitioned table that is not mapped');
$node->safe_psql('ALTER TABLE part ATTACH PARTITION alone
	FOR VALUES FROM (100) TO (200)');
$writer->query('BEGIN; INSERT INTO part VALUES (102)');
is($node->safe_psql('SELECT running FROM bluegreen.fence_state'), 1,
	'a mapped table is attached to it: a session that knew it is waited for');
$writer->query('COMMIT');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch)");
$writer->send('INSERT INTO part VALUES (101)');
ok($node->poll_query_until('SELECT held = 1 FROM bluegreen.fence_state'),
	'and held');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
$writer->wait;
is($writer->errors, '', 'lowered');
$node->safe_psql('ALTER TABLE part DETACH PARTITION alone');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch)");
is( $writer->query(q{SET statement_timeout = '60 s'; INSERT INTO part VALUES (2);
		SET statement_timeout = 0; SELECT 1}),
	1, 'and is not when it is detached');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");

#
# Targets are known by name
#
$node->safe_psql(q{INSERT INTO bluegreen.applied_stream
		(name, deployment, slot_lsn, timeline) VALUES ('s', 'e', '0/1', 1);
	INSERT INTO bluegreen.applied_table
		(stream, mapping, target_schema, target_table)
	VALUES ('s', 1, 'public', 'target'), ('s', 2, 'place', 'target')});
is($writer->query('INSERT INTO free VALUES (2); SELECT 1'), 1,
	'a session that knows the fences');

sub guarded
{
	my ($sql, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($sql);
	$writer->query("INSERT INTO $table VALUES (1)");
	return like($writer->errors, qr/it is a target of deployment "e"/, $name);
}
# a role that applies may say what it writes to, but stop nobody by that
$node->safe_psql(q{CREATE ROLE fence_applier LOGIN;
	SELECT bluegreen.grant_apply('fence_applier')});
my $insert = q{INSERT INTO bluegreen.applied_table
	(stream, mapping, target_schema, target_table) VALUES ('s', 3, };
(undef, undef, $err) =
  $node->psql("$insert 'public', 'free')", user => 'fence_applier');
like($err, qr/permission denied for table free/,
	'a role names no table as a target that it may not write to');
(undef, undef, $err) =
  $node->psql("$insert 'public', 'nothing')", user => 'fence_applier');
like($err, qr/relation "public.nothing" does not exist/, 'nor one to come');
$node->safe_psql('GRANT INSERT ON free TO fence_applier');
is(($node->psql("$insert 'public', 'free')", user => 'fence_applier'))[0],
	0, 'but where it may it does');
$writer->query('INSERT INTO free VALUES (3)');
like($writer->errors, qr/it is a target of deployment "e"/, 'which is guarded then');
(undef, undef, $err) = $node->psql(
	q{UPDATE bluegreen.applied_table SET target_table = 't' WHERE mapping = 3},
	user => 'fence_applier');
like($err, qr/permission denied for table t/, 'that cannot be changed either');
is( ($node->psql('DELETE FROM bluegreen.applied_table WHERE mapping = 3',
		user => 'fence_applier'))[0],
	0, 'and given up');
is($writer->query('INSERT INTO free VALUES (4); SELECT 1'), 1, 'then it is free');
my $locker = $node->session;
$locker->query('SET ROLE fence_applier; BEGIN;
	LOCK TABLE bluegreen.applied_table, bluegreen.applied_stream');
is($locker->errors, '', 'it locks the tables that it may write to');
is( $node->safe_psql(q{SET statement_timeout = '60 s';
		INSERT INTO free VALUES (5) RETURNING id}),
	5, 'and no writer waits for that');
foreach my $table (qw(fence fence_target fence_local table_mapping))
{
	(undef, undef, $err) = $node->psql("BEGIN; LOCK TABLE bluegreen.$table",
		user => 'fence_applier');
	like($err, qr/permission denied/, "it does not lock $table");
}
$locker->query('ROLLBACK');
guarded('CREATE TABLE target (id int)', 'target', 'a target that is created');
guarded('ALTER TABLE target RENAME TO before; CREATE TABLE after (id int);
	ALTER TABLE after RENAME TO target', 'target', 'one that is swapped in');
is($writer->query('INSERT INTO before VALUES (1); SELECT 1'), 1,
	'the one before is free');
guarded('DROP TABLE target; CREATE TABLE target (id int)', 'target',
	'one that is made anew');
guarded('CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.target (id int);
	ALTER SCHEMA elsewhere RENAME TO place', 'place.target',
	'one whose schema is renamed');
guarded('CREATE TABLE above (id int) PARTITION BY RANGE (id);
	ALTER TABLE above ATTACH PARTITION target FOR VALUES FROM (0) TO (100)',
	'above', 'one that becomes a partition');
$node->safe_psql('DELETE FROM bluegreen.applied_stream');

#
# Who may
#
foreach my $call ("CALL bluegreen.fence_raise('d', 99)",
	"CALL bluegreen.fence_lower('d', 99)", "CALL bluegreen.fence_adopt('d', 99)",
	"CALL bluegreen.fence_close('d', 99)", "CALL bluegreen.fence_doubt('d', 99)",
	"CALL bluegreen.fence_activate('d', 99)")
{
	(undef, undef, $err) = $node->psql($call, user => 'fence_other');
	like($err, qr/must be owner of deployment "d"/, "not for others: $call");
}
foreach my $call ("SELECT bluegreen.reopen()",
	"SELECT bluegreen.set_local('free')")
{
	(undef, undef, $err) = $node->psql($call, user => 'fence_owner');
	like($err, qr/must be owner of database postgres/, "for its owner: $call");
}
(undef, undef, $err) = $node->psql("CALL bluegreen.fence_activate('d', 1)",
	user => 'fence_owner');
like($err, qr/fence cannot become "open"/, 'the owner of the deployment may');

#
# What is reported
#
$node->safe_psql(q{BEGIN; UPDATE t SET v = 1 WHERE id = 2; PREPARE TRANSACTION 'p'});
my $xid = $node->safe_psql('SELECT transaction FROM pg_prepared_xacts');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '300 ms')");
like($raiser->errors, qr/Still running: prepared transaction $xid\./,
	'a prepared transaction whose session is gone is reported');
$node->safe_psql(q{ROLLBACK PREPARED 'p'});
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch);
	CALL bluegreen.fence_doubt('d', $epoch)");
$writer->send('UPDATE t SET v = 1 WHERE id = 3');
ok($node->poll_query_until('SELECT held = 1 FROM bluegreen.fence_state'),
	'a writer is held');
$node->safe_psql('SELECT pg_terminate_backend(' . $raiser->pid . ')');
eval { $writer->wait };
like($writer->errors, qr/terminating connection because it is in doubt/,
	'in doubt: he is told so');
$raiser = $node->session;
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
is($raiser->errors . state(), 'open', 'lowered');

#
# A standby that is waited for
#
my $standby = BlueGreen->blue('standby', '', standby_of => $node);
$node->safe_psql(q{ALTER SYSTEM SET synchronous_standby_names = '*'});
$node->reload;
ok( $node->poll_query_until(
		q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'}),
	'a synchronous standby');
$raiser->query('SET synchronous_commit = local');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch)");
is($raiser->errors, '', 'raised');
$standby->stop('immediate');
$raiser->send("CALL bluegreen.fence_doubt('d', $epoch)");
ok(waits($raiser, 'SyncRep'), 'in doubt only when the standby knows');
$raiser->wait;
like($raiser->errors, qr/ERROR:  synchronous standbys do not have what was decided/,
	'one that is away is waited for for a while');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
is($raiser->errors . state(), 'open', 'lowered');

# ... and by a writer, whose commit is one already
my $committing = $node->session;
$committing->send('UPDATE t SET v = 77 WHERE id = 5');
ok(waits($committing, 'SyncRep'), 'a commit waits for the standby');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '300 ms', 'abort')");
like($raiser->errors, qr/Still running: process @{[$committing->pid]}\./,
	'it is a writer still');
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch, '300 ms', 'terminate')");
is($raiser->errors . state(), 'raised', 'that can be ended');
is($node->safe_psql('SELECT v FROM t WHERE id = 5'),
	77, 'but what it has written counts');
$raiser->query("CALL bluegreen.fence_lower('d', $epoch)");
is($raiser->errors . state(), 'open', 'lowered');
$standby->start;
$epoch++;
$raiser->query("CALL bluegreen.fence_raise('d', $epoch);
	CALL bluegreen.fence_doubt('d', $epoch)");
unlike($raiser->errors, qr/ERROR/, 'it is there again');
is( $standby->safe_psql('SELECT 1'), 1, 'it is up');
ok($standby->poll_query_until(q{SELECT state = 'in_doubt' FROM bluegreen.fence_state}),
	'and knows');
$raiser->query("CALL bluegreen.fence_close('d', $epoch)");
is($raiser->errors . state(), 'closed', 'closed');

done_testing();
