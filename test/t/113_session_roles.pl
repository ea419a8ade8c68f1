# Sessions are merged, and logged out, by a role that may only apply, on tables
# of somebody else.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => "bluegreen.restart_delay = '100ms'");
my $table = q{CREATE ROLE shop LOGIN; CREATE ROLE app LOGIN;
	GRANT CREATE ON SCHEMA public TO shop; SET ROLE shop;
	CREATE TABLE session (sid varchar PRIMARY KEY, sess json NOT NULL,
		expire timestamp(6) NOT NULL);
	GRANT SELECT, INSERT, UPDATE, DELETE ON session TO app; RESET ROLE;};
foreach my $node ($blue, $green)
{
	$node->safe_psql($table);
	$node->safe_psql("SELECT bluegreen.prepare_sessions('session',
		'connect-pg-simple', '" . $node->name . "')");
}
is( $green->safe_psql(q{SELECT relowner::regrole FROM pg_class
		WHERE relname = 'session_bluegreen_gone'}),
	'shop', 'the tombstones are the table\'s owner\'s');
$green->safe_psql(q{CREATE ROLE applier LOGIN;
	SELECT bluegreen.grant_apply('applier', 'session',
		'session_bluegreen_gone', 'bluegreen.session')});
$blue->safe_psql(q{ALTER USER MAPPING FOR CURRENT_USER SERVER green
		OPTIONS (SET user 'applier');
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', t, on_write => 'merge',
		on_delete => 'ignore') FROM unnest('{session, session_bluegreen_gone,
			bluegreen.session}'::regclass[]) t;
	SELECT bluegreen.create_session('1 hour', '{"a": 1}', 's');
	INSERT INTO session SELECT i, '{"v": 1}', now() + interval '1 hour'
	FROM generate_series(1, 3) i;
	CALL bluegreen.start('d');});
wait_for_sync('d');

# both sides, and neither knows of the other
$green->safe_psql(q{SELECT bluegreen.write_session_attribute('s', 'g', '2');
	UPDATE session SET sess = '{"v": "green"}' WHERE sid IN ('1', '2');});
$blue->safe_psql(q{SELECT bluegreen.write_session_attribute('s', 'b', '3');
	SELECT bluegreen.create_session('1 hour', '{}', 'gone');
	SET SESSION AUTHORIZATION app;
	UPDATE session SET expire = now() + interval '5 hours' WHERE sid = '1';
	DELETE FROM session WHERE sid = '2';});
wait_for_sync('d');
is($green->safe_psql(q{SELECT bluegreen.read_session('s')}),
	'{"a": 1, "b": 3, "g": 2}', 'the extension\'s own are merged');
is( $green->safe_psql(q{SELECT sid, sess, expire > now() + interval '4 hours'
		FROM session ORDER BY sid}),
	qq(1|{"v": "green"}|t\n3|{"v": 1}|f),
	'a framework\'s are merged, and logged out');
$green->safe_psql(q{SET SESSION AUTHORIZATION app;
	INSERT INTO session VALUES ('2', '{}', now() + interval '1 hour')});
is($green->safe_psql(q{SELECT count(*) FROM session WHERE sid = '2'}),
	0, 'an application that may not read tombstones cannot undo that');
$blue->safe_psql(q{SELECT bluegreen.delete_session('gone')});
wait_for_sync('d');
is($green->safe_psql(q{SELECT bluegreen.read_session('gone') IS NULL}),
	't', 'a logout');
is( $green->safe_psql(q{SELECT string_agg(DISTINCT usename, ' ')
		FROM pg_stat_activity WHERE application_name LIKE 'bluegreen d%'}),
	'applier', 'all of it by a role that applies');

#
# Whoever has a table prepared has no code of his run by a superuser
#
$blue->safe_psql(q{GRANT USAGE ON SCHEMA bluegreen TO shop;
	GRANT EXECUTE ON FUNCTION
		bluegreen.prepare_sessions(regclass, text, text, jsonb) TO shop;
	SET SESSION AUTHORIZATION shop;
	CREATE TYPE evil AS (v text);
	CREATE FUNCTION as_time(evil) RETURNS timestamptz LANGUAGE plpgsql AS $$
	BEGIN RAISE EXCEPTION 'run by %', current_user; END $$;
	CREATE CAST (evil AS timestamptz) WITH FUNCTION as_time(evil);
	CREATE TABLE evil_session (sid text PRIMARY KEY, e evil)});
(undef, undef, my $error) = $blue->psql(q{SET SESSION AUTHORIZATION shop;
	SELECT bluegreen.prepare_sessions('evil_session', 'custom', 'blue',
		'{"key": ["sid"], "expiry": "e", "kind": "timestamp"}')});
like($error, qr/column "e" of table "evil_session" cannot tell when a session ends/,
	'an expiry of a type of his own is refused');
unlike($error, qr/run by/, '... and not cast');

#
# Ids are secrets, wherever they turn up
#
sub hash_of
{
	return $green->safe_psql("SELECT 'sha256:' || substr(encode(sha256(
		convert_to('$_[0]', 'UTF8')), 'hex'), 1, 16)");
}
$green->safe_psql(q{SET session_replication_role = replica;
	DELETE FROM session WHERE sid = '3'});
$blue->safe_psql(q{CALL bluegreen.verify('d', 'session')});
is( $blue->safe_psql(
		q{SELECT key FROM bluegreen.difference WHERE kind = 'missing'}),
	'{' . hash_of('3') . '}', 'in differences');
is( $blue->safe_psql(q{SELECT count(*) FROM bluegreen.verify_difference
		WHERE key = '{3}'}),
	1, '... which are known to who repairs them');
$green->safe_psql(q{ALTER TABLE session ADD CHECK (sid <> 'very secret')});
$blue->safe_psql(q{INSERT INTO session
	VALUES ('very secret', '{}', now() + interval '1 hour')});
$blue->poll_query_until(q{SELECT error IS NOT NULL FROM bluegreen.status})
  or die;
my $shown = $blue->safe_psql(q{SELECT s::text FROM bluegreen.stat_stream s;
	SELECT s::text FROM bluegreen.status s; TABLE bluegreen.event;
	TABLE bluegreen.chunk}) . $blue->log;
my $hash = hash_of('very secret');
like($shown, qr/$hash/, 'in errors');
unlike($shown, qr/very secret/, '... by nothing else');
$green->safe_psql('ALTER TABLE session DROP CONSTRAINT session_sid_check');
wait_for_sync('d');
is($green->safe_psql(q{SELECT count(*) FROM session WHERE sid = 'very secret'}),
	1, '... and the stream goes on');

#
# Without a window, what comes from blue is not for green's applications
#
(undef, undef, $error) = $green->psql(q{
	SET bluegreen.allow_target_writes = off;
	SELECT bluegreen.touch_session('s')});
like($error, qr/cannot write to table "session": it is a target of deployment/,
	'green\'s functions are fenced');

# ... and nothing goes back: no stream, no token
my $token = $green->safe_psql('SELECT bluegreen.token()');
is( $blue->safe_psql("CALL bluegreen.wait_for_token('$token', '120 s', NULL)"),
	'f', 'a token without a way back is not waited for');

done_testing();
