# Clients that are brought to the active side by other means: a command,
# listeners, health checks, libpq's list of hosts.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();
my $out = $blue->data_dir . '/routed';
my $seen = substr($out, length $blue->{root});
$blue->safe_psql(q{CREATE TABLE t (id integer PRIMARY KEY);
	SELECT bluegreen.create_deployment('d', 'green');});
$green->safe_psql('CREATE TABLE t (id integer PRIMARY KEY)');
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 't')});

sub command
{
	my ($command, $timeout) = @_;
	my $from = length $blue->log;
	$blue->append_conf("bluegreen.router_command = '$command'\n"
		  . 'bluegreen.router_command_timeout = ' . ($timeout // '30s'));
	$blue->reload;
	my $shown = $command =~ s/''/'/gr;
	$blue->poll_query_until("SELECT current_setting('bluegreen.router_command')
		= \$c\$$shown\$c\$");
	return;
}

sub routed { return -e $out ? BlueGreen::Node::slurp($out) : '' }

my $switch = q{CALL bluegreen.routers_switch('d', 'green')};
$blue->safe_psql($switch);
pass('without a command and without routers there is nothing to do');

#
# bluegreen.router_command
#
command("echo %d %s %h %p %b %% >> $seen");
$blue->safe_psql($switch);
is(routed(), 'd green 127.0.0.1 ' . $green->port . " postgres %\n",
	'the command gets the other side\'s place');
$blue->safe_psql(q{CALL bluegreen.routers_switch('d', 'blue')});
like(routed(), qr/\nd blue \S+ ${\$blue->port} postgres %\n$/,
	'and this one\'s');

command('exit 3');
my (undef, undef, $error) = $blue->psql($switch);
like($error,
	qr/WARNING:  bluegreen.router_command failed\nDETAIL:  child process exited with exit code 3\n(.*\n)*.*ERROR:  1 routers did not do it/,
	'its status counts');
command("sleep 1000", '300ms');
(undef, undef, $error) = $blue->psql($switch);
like($error,
	qr/bluegreen.router_command did not end within 300 ms/,
	'and its time');
is(join(' ', grep {
		my $line = eval { BlueGreen::Node::slurp("/proc/$_/cmdline") } // '';
		my $end = eval { BlueGreen::Node::slurp("/proc/$_/environ") } // '';
		$line =~ /sleep\0?.?1000/ && $end =~ /\Q$blue->{dir}\E/
	} map { m{(\d+)$} } glob '/proc/[0-9]*'),
	'', 'nothing of it goes on');
is( $blue->safe_psql(q{SELECT count(*) FROM bluegreen.event
		WHERE kind = 'routers' AND message ~ 'router_command'}),
	2, 'both are in the history');

command("echo %d >> $seen");
my $name = q{x; echo hacked >> } . $seen;
$blue->safe_psql("SELECT bluegreen.create_deployment(\$n\$" . substr($name, 0, 63)
	  . "\$n\$, 'green')");
(undef, undef, $error) = $blue->psql(
	"CALL bluegreen.routers_switch(\$n\$" . substr($name, 0, 63)
	  . "\$n\$, 'green')");
like($error, qr/cannot stand for %d in a shell command/,
	'a deployment\'s name runs no command');
unlike(routed(), qr/hacked/, '... really');
$blue->safe_psql(
	"SELECT bluegreen.drop_deployment(\$n\$" . substr($name, 0, 63) . "\$n\$)");
command('');

$blue->safe_psql(q{CREATE ROLE check_health LOGIN});
(undef, undef, $error) =
  $blue->psql('SHOW bluegreen.router_command', user => 'check_health');
like($error, qr/permission denied|must be superuser|pg_read_all_settings/,
	'not everybody sees the command');

#
# A router's own command
#
$blue->safe_psql(q{CREATE SERVER nowhere FOREIGN DATA WRAPPER pg_bluegreen
		OPTIONS (host '127.0.0.1', port '1');
	CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere
		OPTIONS (user 'x', password 'open sesame');
	SELECT bluegreen.add_router('d', 'pgbouncer', 'nowhere', 'app',
		'host=b', 'host=g port=7', route_command => 'true');});
(undef, undef, $error) = $blue->psql($switch);
like($error,
	qr/WARNING:  could not switch database "app" of router "nowhere"\nDETAIL:  could not connect to peer/,
	'a router that does not answer is named, and not turned around');
unlike($error, qr/sesame/, '... without its password');
$blue->safe_psql(q{SELECT bluegreen.drop_router('d', 'nowhere', 'app')});

#
# LISTEN bluegreen
#
my $listener = $blue->session;
$listener->query('LISTEN bluegreen');
$blue->safe_psql($switch);
my $notified = '';
BlueGreen::Node::wait_until(
	sub {
		$notified .= $listener->query('SELECT 1');
		return $notified =~ /Asynchronous/;
	});
like($notified, qr/Asynchronous notification "bluegreen" with payload "(.*)" received/,
	'listeners are told')
  and do
{
	my ($payload) = $notified =~ /with payload "(.*)" received/;
	is( $blue->safe_psql("SELECT string_agg(key || '=' || value, ' ' ORDER BY key)
			FROM jsonb_each_text(\$p\$$payload\$p\$)"),
		'active=green deployment=d epoch=0 event=routers',
		'in JSON');
};

#
# is_active(), for whoever asks
#
sub active
{
	my ($node, $argument) = @_;
	return $node->safe_psql('SELECT bluegreen.is_active(' . ($argument // '') . ')',
		user => 'check_health');
}
$green->safe_psql(q{CREATE ROLE check_health LOGIN});
is(active($blue), 't', 'blue is active');
is(active($green), 't', 'a database that takes part in nothing, too');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
is(active($green), 'f', 'green is not, as a target');
is(active($green, q{'d'}), 'f', '... of this deployment');
is(active($blue, q{'d'}), 't', 'blue still is');
(undef, undef, $error) = $blue->psql(q{SELECT bluegreen.is_active('e')});
like($error, qr/deployment "e" does not exist/, 'a name must be known');
my $mover = $blue->session;
$mover->query(q{CALL bluegreen.fence_raise('d', 1)});
is($mover->errors, '', 'the fence is raised');
is(active($blue), 't', 'as long as nothing is decided, blue is');
$mover->query(q{CALL bluegreen.fence_doubt('d', 1)});
is(active($blue), 'f', 'in doubt nobody is');
$green->safe_psql(q{CALL bluegreen.fence_activate('d', 1)});
$mover->query(q{CALL bluegreen.fence_close('d', 1)});
is($mover->errors, '', 'closed');
is(active($blue) . active($green), 'ft', 'then green is');

#
# Clients with a list of hosts
#
$blue->safe_psql(
	'ALTER DATABASE postgres SET default_transaction_read_only = on');
my $hosts = 'host=127.0.0.1,127.0.0.1 port=' . $blue->port . ',' . $green->port
  . ' user=postgres dbname=postgres target_session_attrs=read-write';
IPC::Run::run([ "$blue->{client}/psql", '-XAtq', '-d', $hosts, '-c', 'SHOW port' ],
	'<', '/dev/null', '>', \my $port, '2>&1');
is($port, $green->port . "\n",
	'libpq takes the side that writes where the other says it does not');

$_->quit foreach $listener, $mover;
done_testing();
