# pgbench's own tables with 8 clients of its own transactions, during the copy
# and after it.  BLUEGREEN_SCALE sets the scale, 100,000 accounts each.
use strict;
use warnings;

use BlueGreen;
use IPC::Run;
use Test::More;
use Time::HiRes qw(time);

my $scale = $ENV{BLUEGREEN_SCALE} || 5;
my $patience = 600 + 10 * $scale;

my ($blue, $green) = create_pair(
	conf => "max_wal_size = 8GB\nshared_buffers = 256MB",
	blue_conf => 'wal_keep_size = 0');

sub pgbench_initialize
{
	my ($node, $steps) = @_;
	my $out = '';
	IPC::Run::run(
		[
			"$node->{client}/pgbench", '-q', '-i', '-I', $steps,
			'-s', $scale, $node->connstr
		],
		'>', \$out, '2>&1')
	  or die $out;
	return;
}

# pgbench_history has no key of its own
pgbench_initialize($blue, 'dtgvp');
$blue->safe_psql(
	'ALTER TABLE pgbench_history ADD hid bigserial PRIMARY KEY');
pgbench_initialize($green, 'dtp');
$green->safe_psql('ALTER TABLE pgbench_history ADD hid bigint PRIMARY KEY');

sub transactions
{
	return $blue->safe_psql('SELECT count(*) FROM pgbench_history');
}

# Wait for some more transactions.
sub wait_for_transactions
{
	my ($more) = @_;
	my $goal = transactions() + $more;
	return $blue->poll_query_until(
		"SELECT count(*) >= $goal FROM pgbench_history");
}

my $bench = pgbench_start($blue, clients => 8);
wait_for_transactions(500);
$blue->safe_psql(q{SELECT bluegreen.create_deployment('bench', 'green');
	SELECT bluegreen.map_schema('bench', 'public');});
my $before = transactions();
my $begin = time;
$blue->safe_psql(q{CALL bluegreen.start('bench')});
wait_for_sync('bench', timeout => $patience);
my $synced = time;
cmp_ok(transactions(), '>', $before, 'pgbench goes on during the copy');
diag(
	sprintf 'measured: scale %d copied under load of 8 clients in %.1f s (%d rows/s)',
	$scale, $synced - $begin, 100_000 * $scale / ($synced - $begin));

my ($from, $start) = (transactions(), time);
my ($max_bytes, $max_lag) = (0, 0);
foreach my $sample (1 .. 20)
{
	wait_for_transactions(200);
	my ($bytes, $lag) = split /\|/, $blue->safe_psql(
		q{SELECT lag_bytes, extract(epoch FROM lag) FROM bluegreen.stat_stream});
	$max_bytes = $bytes if $bytes > $max_bytes;
	$max_lag = $lag if $lag > $max_lag;
}
my $rate = (transactions() - $from) / (time - $start);
my $asked = time;
wait_for_sync('bench', timeout => $patience);
my $waited = time - $asked;
diag(
	sprintf 'measured: %d transactions/s; lag at most %d bytes, %.3f s;'
	  . ' a full sync under load took %.3f s',
	$rate, $max_bytes, $max_lag, $waited);
cmp_ok($max_lag, '<', 30, 'the stream keeps up with 8 clients');

ok(pgbench_stop($bench), 'pgbench runs until it is stopped');
wait_for_sync('bench', timeout => $patience);
foreach my $table (qw(accounts tellers branches history))
{
	my $columns =
	  $table eq 'history' ? 'hid, tid, bid, aid, delta, mtime, filler' : '*';
	my $sql = "SELECT count(*), sum(hashtextextended(t::text, 0))
		FROM (SELECT $columns FROM pgbench_$table) t";
	compare_tables($sql, $sql, "pgbench_$table is equal");
}
is( $green->safe_psql('SELECT count(*) FROM pgbench_accounts'),
	100_000 * $scale,
	'all accounts are there');
is( $green->safe_psql(
		q{SELECT (SELECT sum(abalance) FROM pgbench_accounts) =
			(SELECT sum(delta) FROM pgbench_history)
		AND (SELECT sum(bbalance) FROM pgbench_branches) =
			(SELECT sum(delta) FROM pgbench_history)}),
	't',
	'and green balances by itself');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'nothing was applied twice or to the wrong row');

done_testing();
