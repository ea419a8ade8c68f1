# There, back, and there again through PgBouncer under load: no client has an
# error, and each transaction that was acknowledged is there once.  Prints the
# longest time that a client had to wait.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::PgBouncer;
use File::Temp;
use IPC::Run;
use Test::More;

my ($clients, $each, $rate) = (8, 1000, 500);

my ($blue, $green) = create_pair(guard => 1, way_back => 1);
foreach my $node ($blue, $green)
{
	$node->safe_psql(q{
		CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
		CREATE TABLE history (id uuid PRIMARY KEY, account int, delta int)});
}
my $bouncer = BlueGreen::PgBouncer->new($blue, ['app'],
	"pool_mode = transaction\nmax_client_conn = 100\ndefault_pool_size = 20");
my $file = $bouncer->route_file('app');
my ($port, $password) = ($bouncer->port, $bouncer->password);
my %route = map {
	$_->name => 'host=127.0.0.1 port=' . $_->port . ' dbname=postgres'
} $blue, $green;
$blue->safe_psql(q{INSERT INTO account SELECT i, 0 FROM generate_series(1, 1000) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', t::regclass)
	FROM unnest('{account,history}'::text[]) t;
	CALL bluegreen.start('d')});
wait_for_sync('d');
$_->safe_psql("CREATE SERVER bouncer FOREIGN DATA WRAPPER pg_bluegreen
		OPTIONS (host '127.0.0.1', port '$port');
	CREATE USER MAPPING FOR CURRENT_USER SERVER bouncer
		OPTIONS (user 'console', password '$password');
	SELECT bluegreen.add_router('d', 'pgbouncer', 'bouncer', 'app',
		'$route{blue}', '$route{green}', route_file => '$file')")
  for $blue, $green;
$bouncer->start;

my $dir = File::Temp->newdir;
open my $script, '>', "$dir/script" or die $!;
print $script "\\set a random(1, 1000)\n\\set d random(-9, 9)\nBEGIN;\n"
  . "UPDATE account SET balance = balance + :d WHERE id = :a;\n"
  . "INSERT INTO history VALUES (gen_random_uuid(), :a, :d);\nCOMMIT;\n";
close $script;
my $out = '';
my $load = IPC::Run::start(
	[ "$blue->{client}/pgbench", '-n', '-c', $clients, '-t', $each,
		'-R', $rate, '-l', "--log-prefix=$dir/log", '-f', "$dir/script",
		$bouncer->connstr ],
	'<', '/dev/null', '>', \$out, '2>&1');

my %nodes = (blue => $blue, green => $green);
my $at = 'blue';
foreach my $kind (qw(switchover rollback switchover))
{
	my $from = $nodes{$at};
	my $rows = $from->safe_psql('SELECT count(*) FROM history');
	$from->poll_query_until("SELECT count(*) > $rows + 200 FROM history");
	my ($status, undef, $err) = $from->psql(
		"CALL bluegreen.$kind('d', timeout => '100 s', drain_timeout => '60 s')",
		timeout => 180);
	is($status, 0, $kind) or diag $err;
	note $err;
	like($err, qr/routers are paused.*routers lead to/s, 'with the router');
	$at = $at eq 'blue' ? 'green' : 'blue';
}
my $finished = $load->finish;
ok($finished, 'pgbench had no error') or diag $out;
unlike($out, qr/aborted|ERROR|FATAL/, 'and no client either');
is($green->safe_psql('SELECT count(*) FROM history'), $clients * $each,
	'each acknowledged transaction is on green, once');
wait_for_sync('d', node => $green);
compare_tables("TABLE $_", "TABLE $_", "$_ is the same")
  for qw(account history);
is( $green->safe_psql(
		'SELECT sum(balance) = (SELECT sum(delta) FROM history) FROM account'),
	't', 'and consistent');

my @waits;
foreach my $log (glob "$dir/log*")
{
	push @waits, map { (split)[2] } split /\n/, BlueGreen::Node::slurp($log);
}
@waits = sort { $b <=> $a } @waits;
note sprintf 'measured: %d transactions, the longest took %.0f ms',
  scalar @waits, $waits[0] / 1000;

done_testing();
