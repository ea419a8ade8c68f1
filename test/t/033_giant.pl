# Transactions of a million rows (BLUEGREEN_ROWS) go through in bounded memory,
# of which their rows alone would need more.
use strict;
use warnings;

use BlueGreen;
use Test::More;
use Time::HiRes qw(time);

my $rows = $ENV{BLUEGREEN_ROWS} || 1_000_000;
my $limit_mb = 100;

my ($blue, $green) = create_pair(
	conf => "max_wal_size = 8GB\nautovacuum = off\nshared_buffers = 64MB",
	blue_conf => "bluegreen.decoding_work_mem = '4MB'\n"
	  . "logical_decoding_work_mem = '4MB'");
my $ddl = 'CREATE TABLE big (id int PRIMARY KEY, n bigint, v text)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{SELECT bluegreen.create_deployment('giant', 'green');
	SELECT bluegreen.map_table('giant', 'big');
	CALL bluegreen.start('giant');});
wait_for_sync('giant');

my $pid = $blue->safe_psql('SELECT pid FROM bluegreen.stat_stream');
my $digest = 'SELECT count(*), sum(n), sum(hashtextextended(t::text, 0))'
  . ' FROM big t';

# The worker's peak of memory so far, in MB.
sub peak
{
	my $status = BlueGreen::Node::slurp("/proc/$pid/status");
	my ($kb) = $status =~ /^VmHWM:\s+(\d+) kB/m or die 'no VmHWM';
	return int $kb / 1024;
}

foreach my $step (
	[ INSERT => "INSERT INTO big SELECT i, i, 'row ' || i"
		  . " FROM generate_series(1, $rows) i" ],
	[ UPDATE => q{UPDATE big SET n = n + 1, v = v || '.'} ],
	[ DELETE => 'DELETE FROM big' ])
{
	my ($what, $sql) = @$step;
	$blue->safe_psql($sql);
	my $begin = time;
	wait_for_sync('giant', timeout => 600);
	my $seconds = time - $begin;
	diag(
		sprintf 'measured: %s of %d rows: synced %.1f s after its commit, %d rows/s;'
		  . ' the worker took up to %d MB',
		$what, $rows, $seconds, $rows / $seconds, peak());
	is( $blue->safe_psql('SELECT pid FROM bluegreen.stat_stream'),
		$pid, "$what of $rows rows in one transaction needs one worker only");
	cmp_ok(peak(), '<', $limit_mb, "$what: memory is bounded");
	compare_tables($digest, $digest, "$what: the result is equal");
}
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'every row was as expected');

# In as much memory as bluegreen.decoding_work_mem says they are not spilled to
# disk, and a worker that runs takes the setting over.
my $spilled = 'SELECT spill_count FROM pg_stat_replication_slots';

# Does a transaction of 100,000 rows spill?  Tries until it does as
# expected: the worker may read its configuration some transactions later.
sub spills
{
	my ($memory, $expected) = @_;
	my $spills;

	$blue->append_conf("bluegreen.decoding_work_mem = '$memory'");
	$blue->reload;
	for (1 .. 10)
	{
		my $before = $blue->safe_psql($spilled);
		$blue->safe_psql('INSERT INTO big SELECT i, i FROM'
			  . " generate_series(1, 100000) i; DELETE FROM big");
		wait_for_sync('giant');
		$spills = $blue->safe_psql($spilled) > $before;
		last if $spills == $expected;
	}
	return $spills;
}
ok(!spills('256MB', 0), 'with more memory for decoding nothing is spilled');
ok(spills('64kB', 1), 'with less it is');
is( $blue->safe_psql('SELECT pid FROM bluegreen.stat_stream'),
	$pid, 'the worker has been one and the same');

done_testing();
