# Nobody is a superuser: the deployment's owner on blue, whose streams run as
# he, and the role on green that his user mapping names.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
my $port = $green->port;

$blue->safe_psql(q{CREATE ROLE mover LOGIN; CREATE ROLE helper LOGIN;
	CREATE ROLE stranger LOGIN;
	GRANT CREATE ON SCHEMA public TO mover;
	GRANT USAGE ON FOREIGN DATA WRAPPER pg_bluegreen TO mover;
	GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen
		TO mover, helper, stranger;
	GRANT pg_monitor TO mover;});
$green->safe_psql(
	q{CREATE ROLE applier LOGIN SUPERUSER PASSWORD 'open sesame'});
$green->require_password('applier');

# SQL on blue as the owner, or as somebody else.
sub mover { return $blue->safe_psql($_[0], user => $_[1] // 'mover') }

sub refused
{
	my ($node, $user, $sql, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, undef, $error) = $node->psql($sql, user => $user);
	return like($status ? $error : 'no error', $pattern, $name);
}

sub stream
{
	my ($column) = @_;
	return $blue->safe_psql("SELECT $column FROM bluegreen.stat_stream");
}

$blue->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i;
	GRANT SELECT ON t TO mover;});
$green->safe_psql('CREATE TABLE t (id int PRIMARY KEY, v text)');

#
# Who may own a deployment
#
mover(qq{CREATE SERVER mine FOREIGN DATA WRAPPER pg_bluegreen
		OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	CREATE USER MAPPING FOR mover SERVER mine
		OPTIONS (user 'applier', password 'open sesame');});
refused(
	$blue, 'mover',
	q{SELECT bluegreen.create_deployment('d', 'mine')},
	qr/owner "mover" of deployment "d" lacks the attribute REPLICATION\n.*\nHINT:  Use ALTER ROLE mover REPLICATION\./,
	'a role without REPLICATION cannot own a deployment');
$blue->safe_psql('ALTER ROLE mover REPLICATION');
mover(q{SELECT bluegreen.create_deployment('d', 'mine');
	SELECT bluegreen.map_table('d', 't');});
$blue->safe_psql('ALTER ROLE mover NOREPLICATION');
refused(
	$blue, 'postgres',
	q{CALL bluegreen.start('d')},
	qr/owner "mover" of deployment "d" lacks the attribute REPLICATION/,
	'nor can its deployment be started, whoever asks');
is(stream('state'), 'defined', 'which leaves it as it was');
$blue->safe_psql('ALTER ROLE mover REPLICATION');

#
# As whom it runs
#
my $lock = $green->session;
$lock->query('BEGIN; LOCK TABLE t IN EXCLUSIVE MODE');
mover(q{CALL bluegreen.start('d')});
my $users = q{SELECT string_agg(DISTINCT usename, ' ') FROM pg_stat_activity
	WHERE backend_type = 'pg_bluegreen };
ok($blue->poll_query_until("${users}copy'", 'mover'),
	'copy workers run as the owner');
is($blue->safe_psql("${users}stream'"), 'mover', 'and so does the stream');
$lock->query('COMMIT');
wait_for_sync('d');
compare_tables('TABLE t', 'TABLE t', 'the table is copied');
like(mover('SELECT * FROM bluegreen.status'),
	qr/^d\|forward\|streaming\|1\/1/, 'the owner sees its status');

#
# Who may control it
#
refused($blue, 'stranger', q{CALL bluegreen.stop('d')},
	qr/must be owner of deployment "d"/, 'another role may not stop it');
refused($blue, 'helper', q{CALL bluegreen.stop('d')},
	qr/must be owner of deployment "d"/, 'nor another');
$blue->safe_psql('GRANT mover TO helper');
mover(q{CALL bluegreen.stop('d')}, 'helper');
is(stream('state'), 'stopped', 'but it may as a member of the owner');
mover(q{CALL bluegreen.start('d')}, 'helper');
wait_for_sync('d');
foreach my $user (qw(stranger helper mover))
{
	is( $blue->safe_psql(
			"SET ROLE $user; SELECT count(*) FROM pg_user_mappings"
			  . " WHERE umoptions::text LIKE '%sesame%'"),
		$user eq 'mover' ? 1 : 0,
		"the password is shown to its owner only: $user");
}

#
# What the owner loses later
#
foreach my $attribute (qw(REPLICATION LOGIN))
{
	my $from = length $blue->log;
	$blue->safe_psql("ALTER ROLE mover NO$attribute");
	ok( $blue->poll_query_until(
			"SELECT state = 'error' AND error_message = 'owner \"mover\" of"
			  . " deployment \"d\" lacks the attribute $attribute'"
			  . " FROM bluegreen.stat_stream"),
		"an owner who loses $attribute stops the stream");
	my $failures = stream('failures');
	$blue->safe_psql("INSERT INTO t SELECT max(id) + 1, 'after' FROM t");
	ok($blue->poll_query_until(
			"SELECT failures > $failures FROM bluegreen.stat_stream"),
		'it tries again, with delays');
	$blue->safe_psql("ALTER ROLE mover $attribute");
	ok($blue->poll_query_until(
			"SELECT state = 'streaming' FROM bluegreen.stat_stream"),
		'and goes on when the attribute is back');
	wait_for_sync('d');
	my $starts = () = substr($blue->log, $from) =~ /lacks the attribute/g;
	cmp_ok($starts, '<', 200, 'without a storm');
}
compare_tables('TABLE t', 'TABLE t', 'nothing is lost');

# a superuser needs neither a password nor REPLICATION, until he is none
$blue->safe_psql('ALTER ROLE mover SUPERUSER NOREPLICATION');
mover(q{ALTER USER MAPPING FOR mover SERVER mine
	OPTIONS (SET user 'postgres', DROP password)});
$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d')});
wait_for_sync('d');
$blue->safe_psql('ALTER ROLE mover NOSUPERUSER REPLICATION');
ok( $blue->poll_query_until(
		"SELECT state = 'error' AND error_message = 'password is required'"
		  . ' FROM bluegreen.stat_stream'),
	'an owner who is no superuser any more needs a password');
mover(q{ALTER USER MAPPING FOR mover SERVER mine
	OPTIONS (SET user 'applier', ADD password 'open sesame')});
mover(q{CALL bluegreen.start('d')});
wait_for_sync('d');
pass('with which it goes on');

# after a restart nothing but the slot tells of the stream
$blue->restart;
$blue->safe_psql("INSERT INTO t SELECT max(id) + 1, 'restarted' FROM t");
wait_for_sync('d');
is($blue->safe_psql("${users}stream'"),
	'mover', 'it runs as the owner after a restart, too');
compare_tables('TABLE t', 'TABLE t', 'and follows');

#
# The end
#
mover(q{SELECT bluegreen.drop_deployment('d')});
is( $green->safe_psql('SELECT count(*) FROM pg_replication_origin') . ' '
	  . $green->safe_psql('SELECT count(*) FROM bluegreen.applied_stream')
	  . ' '
	  . $blue->safe_psql('SELECT count(*) FROM pg_replication_slots'),
	'0 0 0',
	'drop_deployment leaves nothing on either side');
unlike($blue->log . $green->log, qr/sesame/, 'no log has the password');

done_testing();
