# The real connect-pg-simple from the npm registry, against both sides at once:
# hundreds of sessions, each request on any side, and reads that follow writes by
# token.  No session is lost, none is resurrected, with streams that are ended
# meanwhile.  Needs node and npm, and npm its registry or its cache.
use strict;
use warnings;

use BlueGreen;
use Cwd qw(abs_path);
use File::Temp qw(tempdir);
use IPC::Run;
use JSON::PP;
use Test::More;

my @packages =
  qw(connect-pg-simple@10.0.0 express-session@1.18.1 pg@8.13.1);
my ($users, $requests) = (300, 8);

my $script = abs_path(__FILE__) =~ s/\.pl$/.js/r;
my $folder = tempdir(CLEANUP => 1);

# Run a program; its output, or undef.
sub output_of
{
	my (@command) = @_;
	my ($out, $error);
	return (eval {
			IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$error,
				IPC::Run::timeout(120));
		}) ? $out : undef;
}
my $version = output_of('node', '--version');
plan skip_all => 'no node' unless defined $version;
plan skip_all => "node $version is too old for it"
  unless $version =~ /^v(\d+)/ && $1 >= 18;
plan skip_all => 'no npm' unless defined output_of('npm', '--version');
plan skip_all => 'npm cannot get connect-pg-simple'
  unless defined output_of('npm', 'install', '--prefix', $folder,
	'--no-audit', '--no-fund', '--prefer-offline', '--ignore-scripts',
	'--fetch-retries=1', '--fetch-timeout=20000', @packages);

my ($blue, $green) = create_pair(way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
my @sides = ($blue, $green);
my $table =
  BlueGreen::Node::slurp("$folder/node_modules/connect-pg-simple/table.sql");
foreach my $node (@sides)
{
	$node->safe_psql(qq{CREATE ROLE app LOGIN; $table
		GRANT SELECT, INSERT, UPDATE, DELETE ON session TO app;
		SELECT bluegreen.prepare_sessions('session', 'connect-pg-simple', '}
		  . $node->name . q{')});
}
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.adopt_sessions('d', 'session', 'connect-pg-simple');
	CALL bluegreen.start('d');});
wait_for_both('d');

local $ENV{NODE_PATH} = "$folder/node_modules";
my ($out, $error) = ('', '');
my $node = IPC::Run::start(
	[ 'node', $script, $blue->port, $green->port, $users, $requests ],
	'<', \undef, '>', \$out, '2>', \$error, IPC::Run::timeout(170));
for my $i (1 .. 4)
{
	last unless $node->pumpable;
	$blue->poll_query_until(
		'SELECT count(*) > ' . $i * 50 . ' FROM public.session') or die;
	$_->safe_psql('SELECT pg_terminate_backend(pid) FROM bluegreen.stat_stream')
	  for @sides;
}
ok($node->finish, 'the application has ended') or diag($error);
is($error, '', '... without an error');
my $found = $out eq '' ? {} : decode_json($out);

is($found->{requests}, $users * $requests, 'requests on both sides');
cmp_ok($found->{waits}, '>', $users, '... that wait for what others have written');
is($found->{timeouts}, 0, '... and get it in time');
is(join(', ', @{ $found->{stale} }), '', 'each reads what it has written');
is(join(', ', @{ $found->{lost} }), '', 'no session is lost');
is($found->{logouts}, $users / 2, 'half of the users have logged out');
is(join(', ', @{ $found->{resurrected} }),
	'', '... and none of them comes back');
cmp_ok($found->{late}, '>', 20, '... with late requests, too');
is(join(', ', @{ $found->{different} }),
	'', 'writes at the same time: one counts, on both sides');
wait_for_both('d');
compare_tables('SELECT sid, sess::text, expire FROM public.session',
	'SELECT sid, sess::text, expire FROM public.session',
	'both sides are the same');
is( $_->safe_psql('SELECT count(*) FROM public.session'),
	$users / 2, 'who has not logged out is there on ' . $_->name)
  for @sides;
is( $_->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'no conflict on ' . $_->name)
  for @sides;

done_testing();
