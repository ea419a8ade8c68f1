# Sessions, where two things happen at once that do not see each other: logouts
# while a table is copied, a removal of what is left of sessions while one is, an
# attribute that is written while its session is logged out.  And what may not
# write.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\n"
	  . 'bluegreen.session_purge_interval = 0');
my @sides = ($blue, $green);
foreach my $node (@sides)
{
	$node->safe_psql(q{
		CREATE TABLE session (sid varchar PRIMARY KEY, sess json NOT NULL,
			expire timestamp(6) NOT NULL);
		CREATE TABLE spring_session (
			primary_id char(36) PRIMARY KEY,
			session_id char(36) NOT NULL UNIQUE,
			creation_time bigint NOT NULL, last_access_time bigint NOT NULL,
			max_inactive_interval int NOT NULL, expiry_time bigint NOT NULL,
			principal_name varchar(100));
		CREATE TABLE spring_session_attributes (
			session_primary_id char(36) NOT NULL
				REFERENCES spring_session ON DELETE CASCADE,
			attribute_name varchar(200) NOT NULL,
			attribute_bytes bytea NOT NULL,
			PRIMARY KEY (session_primary_id, attribute_name));
		INSERT INTO session VALUES ('before', '{}', now() + interval '1 hour')});
}
$blue->safe_psql(q{
	INSERT INTO session SELECT i, '{}', now() + interval '1 hour'
	FROM unnest('{a,b,z}'::text[]) i;
	INSERT INTO spring_session SELECT i, i, 1, 1, 1800, 32503680000000, NULL
	FROM unnest('{a,z}'::text[]) i;
	INSERT INTO spring_session_attributes
	SELECT i, 'v', 'x' FROM unnest('{a,z}'::text[]) i});
foreach my $node (@sides)
{
	foreach my $store ([ 'session', 'connect-pg-simple' ],
		[ 'spring_session', 'spring-session' ])
	{
		$node->safe_psql("SELECT bluegreen.prepare_sessions('$store->[0]',
			'$store->[1]', '" . $node->name . "')");
	}
}
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.adopt_sessions('d', 'session', 'connect-pg-simple');});

# On green the row z of each table is copied when this test says so.  (What takes
# it longer than 10 s is done again, and meets nothing any more.)
$green->safe_psql(q{
	CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(1);
		RETURN NEW;
	END $$;
	CREATE TRIGGER zz BEFORE INSERT ON session FOR EACH ROW
		WHEN (NEW.sid = 'z') EXECUTE FUNCTION wait_here();
	CREATE TRIGGER zz BEFORE INSERT ON spring_session FOR EACH ROW
		WHEN (NEW.primary_id = 'z') EXECUTE FUNCTION wait_here();
	ALTER TABLE session ENABLE ALWAYS TRIGGER zz;
	ALTER TABLE spring_session ENABLE ALWAYS TRIGGER zz});
my $holder = $green->session;
my $waits = q{SELECT count(*) FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted};

sub copy_workers
{
	$blue->append_conf("bluegreen.copy_workers = $_[0]");
	$blue->reload;
	return;
}

#
# A logout while tables are copied: the tombstone by one worker, while another
# one has copied the session and does not see it
#
$holder->query('SELECT pg_advisory_lock(1)');
copy_workers(1);
$blue->safe_psql(q{CALL bluegreen.start('d', allow_nonempty => true)});
$green->poll_query_until($waits, 1) or die;
$blue->safe_psql(q{DELETE FROM session WHERE sid = 'a'});
copy_workers(4);
$green->poll_query_until('SELECT count(*) FROM session_bluegreen_gone', 1)
  or die;
$holder->query('SELECT pg_advisory_unlock(1)');
wait_for_both('d');
$green->safe_psql('SELECT bluegreen.expire_sessions()');
wait_for_both('d');
is( $_->safe_psql('SELECT string_agg(sid, $$ $$ ORDER BY sid) FROM session'),
	'b before z',
	'who has logged out while his session was copied is out on ' . $_->name)
  for @sides;

#
# A removal of what is left of sessions, while they are copied
#
$holder->query('SELECT pg_advisory_lock(1)');
$blue->safe_psql(q{SELECT bluegreen.adopt_sessions('d', 'spring_session',
	'spring-session')});
$green->poll_query_until($waits, 1) or die;
$green->poll_query_until(q{SELECT count(*) FROM spring_session_attributes}, 2)
  or die;
is($green->safe_psql('SELECT count(*) FROM spring_session'),
	0, 'attributes are there, their sessions are not yet');
$green->safe_psql('SELECT bluegreen.expire_sessions()');
is($green->safe_psql('SELECT count(*) FROM spring_session_attributes'),
	2, '... which does not make them those of nobody');
$holder->query('SELECT pg_advisory_unlock(1)');
wait_for_both('d');
is( $green->safe_psql(q{SELECT count(*) FROM spring_session
		JOIN spring_session_attributes ON session_primary_id = primary_id}),
	2, 'sessions and attributes are all there');
$green->safe_psql('DROP FUNCTION wait_here() CASCADE');

#
# An attribute that is written while its session is logged out on the other side
#
my $app = $green->session;
$app->query(q{BEGIN; INSERT INTO spring_session_attributes
	VALUES ('a', 'late', 'x')});
$blue->safe_psql(q{DELETE FROM spring_session WHERE primary_id = 'a'});
$green->poll_query_until('SELECT count(*) FROM pg_stat_activity WHERE '
	  . $app->pid . ' = ANY (pg_blocking_pids(pid))', 1) or die;
$app->query('COMMIT');
is($app->errors, '', 'an attribute is written while its session is logged out');
wait_for_both('d');
is( $_->safe_psql(q{SELECT count(*) FROM spring_session_attributes
		WHERE session_primary_id = 'a'}),
	0, '... and goes with it on ' . $_->name)
  for @sides;

#
# Functions that write, and sessions that may not
#
my $id = $blue->safe_psql(q{SELECT bluegreen.create_session('1 hour')});
my $reader = $blue->session;
$reader->query('SET default_transaction_read_only = on');
foreach my $call ("touch_session('$id')", "write_session('$id', '{}')",
	"write_session_attribute('$id', 'a', '1')", "delete_session('$id')",
	q{create_session('1 hour')}, 'expire_sessions()')
{
	my ($name) = $call =~ /^(\w+)/;
	$reader->query("SELECT bluegreen.$call");
	like($reader->errors,
		qr/cannot execute bluegreen\.$name in a read-only transaction/,
		"$name in a read-only transaction");
}
is($reader->query("SELECT bluegreen.read_session('$id')"),
	'{}', '... in which one can read');

$_->quit for $app, $holder, $reader;

done_testing();
