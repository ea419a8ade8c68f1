# A copy worker that ends between sending COMMIT and its answer: its chunk may
# still be committed on the peer, and the stream must not decide without it.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.idle_progress_interval = 1h
bluegreen.restart_delay = 100ms
bluegreen.copy_workers = 1
CONF
$_->safe_psql('CREATE TABLE h (id int PRIMARY KEY, v text)')
  for $blue, $green;

# a transform that holds up the copy, but not the stream
$blue->safe_psql(<<'SQL');
CREATE FUNCTION hold(id integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
	IF current_setting('transaction_isolation') = 'repeatable read' THEN
		PERFORM pg_advisory_xact_lock_shared(1);
	END IF;
	RETURN id;
END $$;
INSERT INTO h VALUES (1, 'old');
SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 'h',
	transform => 'SELECT hold(id) AS id, v FROM h');
SQL
my $holder = $blue->session;
$holder->query('SELECT pg_advisory_lock(1)');
$blue->safe_psql(q{CALL bluegreen.start('d')});
$blue->poll_query_until(q{SELECT count(*) = 1 FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted});
$blue->safe_psql(q{UPDATE h SET v = 'new'});

# the COMMIT of the chunk hangs on the peer
$green->append_conf(q{synchronous_standby_names = 'nobody'});
$green->safe_psql('SELECT pg_reload_conf()');
$green->poll_query_until('SHOW synchronous_standby_names', 'nobody');
$holder->query('SELECT pg_advisory_unlock(1)');
ok( $green->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
		WHERE wait_event = 'SyncRep'}),
	'the COMMIT of a chunk hangs on the peer');
my $worker = q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'pg_bluegreen copy'};
my $old = $blue->safe_psql($worker);
$blue->safe_psql("SELECT pg_terminate_backend($old)");
ok($blue->poll_query_until("SELECT count(*) = 1 FROM ($worker) w
	WHERE pid <> $old"), 'its copy worker ends, and another one comes');

$green->append_conf(q{synchronous_standby_names = ''});
$green->safe_psql('SELECT pg_reload_conf()');
wait_for_sync('d');
is($green->safe_psql('SELECT v FROM h'), 'new', 'no change is lost');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'and none is applied twice');

done_testing();
