# The fence of a target: from start() on nobody but the stream writes to mapped
# tables; when that side is activated, the stream does not any more.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	guard => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
foreach my $node ($blue, $green)
{
	$node->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v int);
		CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
		CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
		CREATE TABLE later (id int PRIMARY KEY, v int);
		CREATE TABLE other (id int PRIMARY KEY, v int);
		CREATE ROLE fence_app LOGIN;
		GRANT ALL ON t, p, p1, later, other TO fence_app});
}
$blue->safe_psql(q{INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i;
	INSERT INTO p SELECT i, 0 FROM generate_series(1, 100) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	SELECT bluegreen.map_table('d', 'p')});
# Statements that began before their table was mapped, and have written nothing
# yet: they wait for a lock that the test has.
my @early;
foreach my $node ($blue, $green)
{
	my %one = (lock => $node->session, writer => $node->session);
	$one{lock}->query('SELECT pg_advisory_lock(1)');
	$one{writer}->query('BEGIN');
	$one{writer}->send('INSERT INTO p SELECT i + 600, 6 FROM generate_series(1, 3) i,
		(SELECT pg_advisory_lock_shared(1)) x');
	ok( $node->poll_query_until(
			q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted
				AND locktype = 'advisory'}),
		'a statement that is not mapped yet');
	push @early, \%one;
}

my $session = $green->session;
$session->query('INSERT INTO other VALUES (1, 1); BEGIN; SELECT count(*) FROM t');
is($green->safe_psql('SELECT count(*) FROM bluegreen.fence_state'), 0,
	'before the start there is no fence on green');
is( $blue->safe_psql('SELECT deployment, side, state FROM bluegreen.fence_state'),
	'd|blue|open', 'there is one on blue, which is open');
$blue->safe_psql(q{CALL bluegreen.start('d')});
foreach my $i (0, 1)
{
	my $node = ($blue, $green)[$i];
	ok( $node->poll_query_until(
			q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted
				AND locktype = 'virtualxid'}),
		"the copy waits for a statement from before on $node->{name}");
	is($blue->safe_psql('SELECT count(*) FROM bluegreen.chunk_log'), 0,
		'and has copied nothing');
	$early[$i]{lock}->query('SELECT pg_advisory_unlock(1)');
	$early[$i]{writer}->wait;
	is($early[$i]{writer}->errors, '', 'which goes on');
	$early[$i]{writer}->query($i == 0 ? 'COMMIT' : 'ROLLBACK');
}
wait_for_sync('d');
is($green->safe_psql('SELECT count(*) FROM p WHERE id > 600'), 3,
	'what it has written is copied');
is( $green->safe_psql('SELECT deployment, side, state FROM bluegreen.fence_state'),
	'd|green|guarded', 'start() guards green');

# every stray write
my $refused =
  qr/25006: cannot write to table "\w+": it is a target of deployment "d"/;

sub refused
{
	my ($sql, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, undef, $err) =
	  $green->psql("\\set VERBOSITY verbose\n$sql", %options);
	like($err, $refused, $name);
	return $err;
}
like(refused('INSERT INTO t VALUES (1000, 1)', 'an insert'),
	qr/HINT:  Write on the other side/, 'with a hint');
refused($_, $_)
  for 'UPDATE t SET v = 1', 'DELETE FROM p1', 'TRUNCATE p',
  "COPY t FROM STDIN;\n1\t1\n\\.\n",
  'WITH w AS (DELETE FROM t RETURNING 1) SELECT 1 FROM w';
# rows that are written without a plan are seen as well: the session has the lock
is( $green->safe_psql("SELECT bluegreen.begin_apply(); BEGIN;
		SELECT bluegreen.$_;
		SELECT 'locks: ' || count(*) FROM pg_locks WHERE pid = pg_backend_pid()
			AND locktype = 'object' AND classid = 'bluegreen.fence'::regclass")
	  =~ s/.*^(?=locks)//msr,
	'locks: 1', $_)
  for q{insert_rows('t', '{id}', '', 0)},
  q{update_rows('t', '{id}', '{v}', '', 0)}, q{delete_rows('t', '{id}', '', 0)};
refused('UPDATE t SET v = 1', 'another role', user => 'fence_app');
$session->query('UPDATE t SET v = 1');
like($session->errors, qr/it is a target of deployment "d"/,
	'a session whose transaction began before');
$session->query('ROLLBACK');
my (undef, undef, $err) =
  $green->psql('SET bluegreen.allow_target_writes = on', user => 'fence_app');
like($err, qr/permission denied to set parameter/, 'only a superuser may');
is( $green->safe_psql('SET bluegreen.allow_target_writes = on;
		UPDATE t SET v = 7 WHERE id = 1 RETURNING v'),
	7, 'repair a row');
is( $green->safe_psql('INSERT INTO other VALUES (2, 1); CREATE INDEX ON t (v);
		ALTER TABLE t ADD w int; VACUUM t; SELECT count(*) FROM other'),
	2, 'what is not mapped is open, and DDL on what is');

# the stream goes on
$blue->safe_psql('UPDATE t SET v = v + 1; DELETE FROM p WHERE id = 1;
	INSERT INTO p VALUES (500, 5); TRUNCATE t; INSERT INTO t VALUES (1, 1)');
wait_for_sync('d');
compare_tables('SELECT id, v FROM t', 'SELECT id, v FROM t',
	'the stream passes the guard');
compare_tables('TABLE p', 'TABLE p', 'through partitions, too');

# a table that is mapped later
$green->safe_psql('INSERT INTO later VALUES (1, 1); TRUNCATE later');
$blue->safe_psql(q{INSERT INTO later VALUES (1, 1);
	SELECT bluegreen.map_table('d', 'later')});
wait_for_sync('d');
refused('UPDATE later SET v = 2', 'a table that is mapped later is guarded');
$blue->safe_psql(q{SELECT bluegreen.unmap_table('d', 'later')});
ok( $green->poll_query_until(
		q{WITH w AS (UPDATE later SET v = 3 RETURNING 1) SELECT count(*) = 1 FROM w}),
	'and no more when it is unmapped');

# over a restart
$green->restart('immediate');
refused('UPDATE t SET v = 1', 'the guard outlives a crash');
wait_for_sync('d');

#
# Blue's fence does not hold the stream, and green's does not either
#
my $raiser = $blue->session;
$raiser->query(q{CALL bluegreen.fence_raise('d', 1)});
is($raiser->errors, '', 'raised on blue');
wait_for_sync('d');
pass('what had been written is sent');
$raiser->query(q{CALL bluegreen.fence_lower('d', 1)});

#
# Green is activated: the stream's sessions are refused from then on
#
$blue->safe_psql('INSERT INTO t VALUES (2, 2)');
wait_for_sync('d');
# "other" is the source of another deployment; a session that applies, if not
# for this stream
$green->safe_psql(q{INSERT INTO bluegreen.deployment (name, owner, server)
		VALUES ('e', 10, 'none');
	INSERT INTO bluegreen.table_mapping (deployment, direction, source, view,
		target_schema, target_table, on_write, on_delete, has_other_columns)
	SELECT id, 'forward', 'other'::regclass, 0, 'public', 'other', 'mirror',
		'delete', false FROM bluegreen.deployment});
my $lock = $green->session;
$lock->query('SELECT bluegreen.begin_apply()');
$lock->query('BEGIN; UPDATE t SET v = 3 WHERE id = 2');
is($lock->errors, '', 'any stream may write to a target');
my $active = $green->session;
$active->send(q{CALL bluegreen.fence_activate('d', 2)});
ok( $green->poll_query_until(
		q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted
			AND classid = 'bluegreen.fence'::regclass}),
	'activating waits for who applies');
is( $green->safe_psql(q{SET statement_timeout = '60 s';
		UPDATE other SET v = 5 WHERE id = 1 RETURNING v}),
	5, 'and holds up nobody else');
$lock->query('ROLLBACK');
$active->wait;
is($active->errors, '', 'then it is done');
is( $green->safe_psql(q{SELECT state, epoch FROM bluegreen.fence_state
		WHERE deployment = 'd'}),
	'open|2', 'green is open');
is($green->safe_psql('INSERT INTO t VALUES (1000, 1) RETURNING v'), 1,
	'the application writes');
# so many rows come by COPY's code, without a plan
$blue->safe_psql('INSERT INTO t SELECT i, i FROM generate_series(2000, 4000) i');
ok( $blue->poll_query_until(
		q{SELECT state = 'error' AND error_message LIKE
			'this side of deployment "d" has become the active one%'
			FROM bluegreen.stat_stream}),
	'the stream does not, and says so');
is($green->safe_psql('SELECT count(*) FROM t WHERE id >= 2000'), 0,
	'nothing of it has arrived');

# Green is raised, to go back: the stream is no more live than before, and other
# sessions that apply are held like any writer.
my $back = $green->session;
$back->query(q{CALL bluegreen.fence_raise('d', 3)});
is($back->errors, '', 'raised on green');
my $from = length $green->log;
ok( $green->wait_for_log(
		qr/(this side of deployment "d" has become the active one.*){2}/s, $from),
	'the stream tries again');
is($green->safe_psql('SELECT count(*) FROM t WHERE id >= 2000'), 0,
	'and is still refused');
$lock->send('UPDATE t SET v = 4 WHERE id = 2');
ok( $green->poll_query_until('SELECT max(held) = 1 FROM bluegreen.fence_state'),
	'another session that applies is held');
$back->query(q{CALL bluegreen.fence_lower('d', 3)});
$lock->wait;
is($lock->errors, '', 'and goes on when it is lowered');

#
# It goes with the deployment
#
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
$green->safe_psql('DELETE FROM bluegreen.deployment');
is($_->safe_psql('SELECT count(*) FROM bluegreen.fence'), 0,
	"no fence is left on $_->{name}")
  for $blue, $green;

done_testing();
