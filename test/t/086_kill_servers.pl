# Kill -9 of a server or of PgBouncer, and a cut of the network between the sides,
# at every step of a switchover and a rollback; see BlueGreen::KillMatrix.  And a
# PgBouncer that does not come back in time.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::KillMatrix;
use BlueGreen::Proxy;
use Test::More;

my $matrix = BlueGreen::KillMatrix->new;
$matrix->run(qw(from to network router));

my ($blue, $green) = @{ $matrix->{nodes} }{qw(blue green)};
my $router = $matrix->{router};

# A move from a side that stands before a step, while the router is killed.
sub without_router
{
	my ($from, $kind, $step, $then) = @_;
	my $caller = $from->session;
	$caller->query("SET bluegreen.switchover_stop_at = '$step'");
	$caller->send(qq{CALL bluegreen.$kind('d', timeout => '100 s')});
	$from->poll_query_until("SELECT count(*) = 1 FROM bluegreen.switch
		WHERE stop_at = 'at $step'");
	$router->kill9;
	$from->safe_psql("SET default_transaction_read_only = off; $then");
	$caller->wait;
	return $caller;
}

sub events
{
	return $blue->safe_psql(q{SELECT string_agg(message, '; ' ORDER BY at)
		FROM bluegreen.event WHERE kind = 'routers'});
}

sub is_resumed
{
	my ($side, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$side->poll_query_until(q{SELECT count(*) = 0 FROM bluegreen.router
			WHERE paused_at IS NOT NULL}),
		$name);
}

my $caller = without_router($blue, 'switchover', 'fence', q{CALL bluegreen.cancel('d')});
like($caller->errors, qr/was cancelled/, 'undone without the router');
like(events(), qr/could not resume database "app" of router "bouncer"/,
	'which is told');
is(BlueGreen::KillMatrix::writable($blue, 'undone'), 1, 'blue takes writes');
$router->start;
is_resumed($blue, 'it is looked after when it is back');
$caller->quit;

my $let_go = 'UPDATE bluegreen.switch SET stop_at = NULL';
$caller = without_router($blue, 'switchover', 'routers', $let_go);
like($caller->errors, qr/1 routers did not do it, see events/,
	'moved without the router');
unlike($caller->errors, qr/ERROR/, 'which is no error');
like(events(), qr/could not switch database "app" of router "bouncer"/,
	'but told');
is(BlueGreen::KillMatrix::writable($green, 'moved'), 1, 'green takes writes');
$router->start;
is_resumed($blue, 'it is looked after when it is back');
is($router->safe_psql('app', 'SHOW port'), $green->port, 'and leads to green');

# Who looks after it on green takes blue for the active side, and has to wait for
# the router's answer while a switchover leads it to green.
without_router($green, 'rollback', 'routers', $let_go);
my $proxy = BlueGreen::Proxy->new($router->port);
$proxy->stall_at('SHOW CONFIG');
$green->safe_psql(q{SET default_transaction_read_only = off;
	ALTER SERVER bouncer OPTIONS (SET port '} . $proxy->port . q{')});
$router->start;
BlueGreen::Node::wait_until(sub { $proxy->fired });
$blue->safe_psql(q{CALL bluegreen.switchover('d', timeout => '100 s')});
$proxy->forward;
is_resumed($green, 'it is looked after, late');
is($router->safe_psql('app', 'SHOW port'), $green->port,
	'and leads to where the users went meanwhile');

done_testing();
