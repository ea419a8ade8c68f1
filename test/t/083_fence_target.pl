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
my $session = $green->session;
$session->query('INSERT INTO other VALUES (1, 1); BEGIN; SELECT count(*) FROM t');
is($green->safe_psql('SELECT count(*) FROM bluegreen.fence_state'), 0,
	'before the start there is no fence on green');
is( $blue->safe_psql('SELECT deployment, side, state FROM bluegreen.fence_state'),
	'd|blue|open', 'there is one on blue, which is open');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
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
refused("SELECT bluegreen.begin_apply(); SELECT bluegreen.$_", $_)
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
my $lock = $green->session;
$lock->query('SET bluegreen.allow_target_writes = on; BEGIN;
	UPDATE t SET v = 3 WHERE id = 2');
my $active = $green->session;
$active->send(q{CALL bluegreen.fence_activate('d', 2)});
ok( $green->poll_query_until(
		q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted
			AND relation = 'bluegreen.fence'::regclass}),
	'activating waits for who writes');
$lock->query('ROLLBACK');
$active->wait;
is($active->errors, '', 'then it is done');
is($green->safe_psql('SELECT state, epoch FROM bluegreen.fence_state'),
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

#
# It goes with the deployment
#
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
is($_->safe_psql('SELECT count(*) FROM bluegreen.fence'), 0,
	"no fence is left on $_->{name}")
  for $blue, $green;

done_testing();
