# PgBouncer as it is in Debian: paused, turned around and resumed under load, no
# client sees an error; whatever becomes of who paused it, it is resumed.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::PgBouncer;
use IPC::Run;
use Test::More;
use Time::HiRes qw(time);

my ($blue, $green) = create_pair();

# "hits" is where clients write, "mapped" what the stream is for
foreach my $node ($blue, $green)
{
	$node->safe_psql('CREATE TABLE hits (who text, id serial);
		CREATE TABLE mapped (id integer PRIMARY KEY)');
}
my %route = map {
	$_->name => "host=127.0.0.1 port=" . $_->port . " dbname=postgres"
} $blue, $green;
my ($bouncer, $second) = map {
	BlueGreen::PgBouncer->new($blue, $_, 'pool_mode = transaction')
} [ 'app', 'sessions' ], ['app'];
my $file = $bouncer->route_file('app');
my $sessions = $bouncer->route_file('sessions');

sub server
{
	my ($name, $node) = @_;
	my ($port, $password) = ($node->port, $node->password);
	return "CREATE SERVER $name FOREIGN DATA WRAPPER pg_bluegreen
			OPTIONS (host '127.0.0.1', port '$port');
		CREATE USER MAPPING FOR CURRENT_USER SERVER $name
			OPTIONS (user 'console', password '$password');";
}
$blue->safe_psql(server('bouncer', $bouncer)
	  . q{SELECT bluegreen.create_deployment('d', 'green');
		SELECT bluegreen.map_table('d', 'mapped');});
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');

sub add
{
	my ($database, $path, $mode) = @_;
	my ($to_blue, $to_green) = map { "$_ pool_mode=$mode" } @route{qw(blue green)};
	return "SELECT bluegreen.add_router('d', 'pgbouncer', 'bouncer',"
	  . " '$database', '$to_blue', '$to_green', route_file => '$path')";
}

sub refused
{
	my ($sql, $pattern, $name) = @_;
	my (undef, undef, $error) = $blue->psql($sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($error, $pattern, $name);
	unlike($error, qr/sesame/, '... without the password');
	return;
}

#
# Definition
#
refused(
	add('app', $file, 'transaction') =~ s/pool_mode/password=open_sesame pool_mode/r,
	qr/route of blue must not hold a password\nHINT:  Let PgBouncer take/,
	'a route with a password is refused');
refused(
	q{SELECT bluegreen.add_router('d', 'pgbouncer', 'bouncer', 'app', '', '')},
	qr/a router needs either a route_file or a route_command/,
	'so is a router without a way to change its route');
refused(
	add('my app', $file, 'transaction'),
	qr/database "my app" cannot be named in a route_file\nHINT/,
	'a name that PgBouncer cannot read in a file, too');
refused(
	q{CREATE ROLE mover LOGIN REPLICATION; SET SESSION AUTHORIZATION mover; }
	  . add('app', $file, 'transaction'),
	qr/permission denied for function add_router/,
	'and who is not allowed to');
$blue->safe_psql(add('app', $file, 'transaction'));
refused(add('app', $file, 'transaction'),
	qr/database "app" of router "bouncer" is there already/,
	'nor twice');
is( BlueGreen::Node::slurp($file),
	"; written by pg_bluegreen: leads to blue\n[databases]\n"
	  . qq{app = $route{blue} pool_mode=transaction\n},
	'its file is there');
my $check = q{SELECT severity, message FROM bluegreen.preflight('d')
	WHERE "check" = 'router'};
like($blue->safe_psql($check),
	qr/^error\|router "bouncer": could not connect to peer of server "bouncer": /,
	'preflight knocks');
$blue->safe_psql(add('sessions', $sessions, 'session'));
$bouncer->start;
is($blue->safe_psql($check),
	'notice|router "bouncer" keeps a server connection for each session: clients will be disconnected',
	'and tells what it finds');
$bouncer->console('SET query_wait_timeout = 10');
is( $blue->safe_psql($check),
	join("\n", (q{warning|router "bouncer" disconnects clients that have waited for 10 s, and a switchover may hold them for as long as its timeout}) x 2),
	'and what is too short for a switchover');
$bouncer->console('SET query_wait_timeout = 120');
my $retry = $bouncer->show('CONFIG', 'value', key => 'server_login_retry');

sub paused { return $bouncer->show('DATABASES', 'paused', name => 'app') }

sub hits
{
	my ($node, $who) = @_;
	return $node->safe_psql("SELECT count(*) FROM hits WHERE who = '$who'");
}

#
# There and back, under load
#
my @load = map {
	pgbench_start($bouncer, script => "INSERT INTO hits VALUES ('load');",
		clients => 4, rate => 50)
} 1 .. 2;
$blue->poll_query_until(q{SELECT count(*) > 20 FROM hits});
my $driver = $blue->session;
$driver->query(q{CALL bluegreen.routers_pause('d', '60 s')});
is($driver->errors, '', 'paused');
is(paused(), 1, 'and the router says so');
is($blue->safe_psql(q{SELECT count(*) FROM bluegreen.router
		WHERE paused_at IS NOT NULL AND leads_to IS NULL}), 2,
	'noted on blue');
my $before = hits($blue, 'load');
$driver->query(q{CALL bluegreen.routers_switch('d', 'green')});
is($driver->errors, '', 'led to green');

# who logs in now must not make all others wait
my $late = '';
my $login = IPC::Run::start(
	[ "$blue->{client}/psql", '-XAtq', '-d', $bouncer->connstr,
		'-c', "INSERT INTO hits VALUES ('late')" ],
	'<', '/dev/null', '>', \$late, '2>&1');
BlueGreen::Node::wait_until(
	sub {
		my ($waiting) =
		  $bouncer->show('POOLS', 'cl_waiting', database => 'app');
		return ($waiting // 0) > 0;
	});
my $begin = time;
$driver->query(q{CALL bluegreen.routers_resume('d')});
is($driver->errors, '', 'resumed');
$login->finish;
is($late, '', 'who logs in meanwhile gets through');
cmp_ok(time - $begin, '<', 10, '... without the delay after a failed login');
$green->poll_query_until(q{SELECT count(*) > 20 FROM hits WHERE who = 'load'});
is(hits($green, 'late'), 1, '... to green');
is(hits($blue, 'load'), $before, 'nothing more has come to blue');
is($bouncer->show('CONFIG', 'value', key => 'server_login_retry'),
	$retry, 'the setting is as it was');
is( $blue->safe_psql(q{SELECT string_agg(concat_ws(' ', database, leads_to,
		paused_at), ', ') FROM bluegreen.router}),
	'app green, sessions green', 'the view tells where it leads to');

$driver->query(q{CALL bluegreen.routers_pause('d', '60 s')});
$driver->query(q{CALL bluegreen.routers_switch('d', 'blue')});
$driver->query(q{CALL bluegreen.routers_switch('d', 'blue')});
$driver->query(q{CALL bluegreen.routers_resume('d')});
$driver->query(q{CALL bluegreen.routers_resume('d')});
is($driver->errors, '', 'each step can be repeated');
$blue->poll_query_until("SELECT count(*) > $before FROM hits");

# who paused is ended: the watchdog resumes
$driver->query(q{CALL bluegreen.routers_pause('d', '60 s')});
is(paused(), 1, 'paused again');
$blue->safe_psql('SELECT pg_terminate_backend(' . $driver->pid . ')');
$blue->poll_query_until(
	q{SELECT count(*) = 0 FROM bluegreen.router WHERE paused_at IS NOT NULL});
is(paused(), 0, 'a pause whose session has ended is over');
my $after = hits($blue, 'load');
$blue->poll_query_until("SELECT count(*) > $after FROM hits");
is( $blue->safe_psql(q{SELECT count(*) FROM bluegreen.event
		WHERE kind = 'routers' AND message ~ 'left paused, to blue'}),
	1, 'and that is in the history');

# a transaction that does not end; and there are two of them
$blue->safe_psql(server('second', $second)
	  . add('app', $second->route_file('app'), 'transaction') =~
	  s/'bouncer'/'second'/r);
$second->start;
my $long = $bouncer->session;
$long->query(q{BEGIN; INSERT INTO hits VALUES ('long')});
$begin = time;
refused(
	q{CALL bluegreen.routers_pause('d', '300 ms')},
	qr/could not pause database "app" of router "bouncer"\nDETAIL:  .*There was no answer in time\.\nHINT:  A router waits for the transactions/,
	'a pause that does not come to be is an error');
cmp_ok(time - $begin, '<', 30, '... soon');
is(paused(), 0, '... and is taken back');
is($second->show('DATABASES', 'paused', name => 'app'),
	0, '... also of the other router');
$long->query('COMMIT');
is($long->errors, '', '... without an error for anybody');
foreach my $load (@load)
{
	pgbench_stop($load);
	unlike($load->{out}, qr/aborted|ERROR|FATAL/, 'no client has seen an error');
}
$long->quit;
$driver = $blue->session;
$driver->query(q{CALL bluegreen.routers_pause('d', '60 s')});
is(paused() . $second->show('DATABASES', 'paused', name => 'app'),
	11, 'both are paused');
$driver->query(q{CALL bluegreen.routers_resume('d')});
is(paused() . $second->show('DATABASES', 'paused', name => 'app'),
	'00', 'and resumed');
$blue->safe_psql(q{SELECT bluegreen.drop_router('d', 'second')});
$driver->quit;

#
# Sessions
#
my $session = $bouncer->session('sessions');
is($session->query('SHOW port'), $blue->port, 'a session on blue');
$driver = $blue->session;
$driver->query(q{CALL bluegreen.routers_pause('d', '60 s')});
is($driver->errors, '', 'a session does not hold up a pause');
is($session->query('SHOW port'), $blue->port, 'it is not paused itself');
$driver->query(q{CALL bluegreen.routers_switch('d', 'green');});
$driver->query(q{CALL bluegreen.routers_resume('d')});
is($driver->errors, '', 'the rest follows');
is( $bouncer->safe_psql('sessions', 'SHOW port'),
	$green->port, 'the next session is on green');
eval { $session->query('SHOW port') };
ok($@ || $session->errors, 'the old one has been disconnected');

#
# What can be lost: who pauses, all of blue's processes, PgBouncer
#
$driver->query(q{CALL bluegreen.routers_switch('d', 'blue')});
$driver->query(q{CALL bluegreen.routers_resume('d')});
$driver->query(q{CALL bluegreen.routers_pause('d', '60 s')});
is(paused(), 1, 'paused once more');
kill 'KILL', $driver->pid;
$blue->poll_query_until(
	q{SELECT count(*) = 0 FROM bluegreen.router WHERE paused_at IS NOT NULL});
is(paused(), 0, 'resumed after a crash of the server');
BlueGreen::Node::wait_until(
	sub { ($bouncer->psql('app', 'SELECT 1'))[0] == 0 });
is($bouncer->safe_psql('app', 'SHOW port'), $blue->port, 'to blue');

$bouncer->kill;
refused(
	q{CALL bluegreen.routers_pause('d')},
	qr/could not pause database "app" of router "bouncer"\nDETAIL:  could not connect/,
	'without its console there is no pause');
is( $blue->safe_psql(
		q{SELECT count(*) FROM bluegreen.router WHERE paused_at IS NOT NULL}),
	0, 'and nothing is left of it');
$blue->safe_psql(q{SELECT bluegreen.drop_router('d', 'bouncer')});
is($blue->safe_psql('SELECT count(*) FROM bluegreen.router'),
	0, 'routers can be dropped');

done_testing();
