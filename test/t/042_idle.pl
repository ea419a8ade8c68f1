# A stream that has nothing to do costs nothing: no WAL on either side, no
# processor time, and the slot lets go of WAL that is not for it.  One that is
# stopped keeps WAL, and shows how much.
#
# What the server writes by itself is kept out: autovacuum is off, and what its
# background writer and checkpointer log once after there was something to log
# is waited out.
use strict;
use warnings;

use BlueGreen;
use Test::More;

plan skip_all => 'there is no /proc' unless -e '/proc/self/stat';

my $seconds = 5;		# without anything

my ($blue, $green) = create_pair(
	conf => "autovacuum = off\nbluegreen.idle_progress_interval = 100ms");

# A stream to another server; and one to a database of the same, so that what
# it writes there is WAL to decode for both.
$blue->safe_psql('CREATE DATABASE copy');
$blue->safe_psql('CREATE DATABASE other');
$blue->safe_psql('copy', 'CREATE EXTENSION pg_bluegreen');
BlueGreen::connect_nodes($blue, $blue, 'self');
$blue->safe_psql(q{ALTER SERVER self OPTIONS (SET dbname 'copy')});
my $ddl = 'CREATE TABLE t (id int PRIMARY KEY, v text)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql('copy', $ddl);
$blue->safe_psql('other', 'CREATE TABLE t (v text)');
$blue->safe_psql(<<'SQL');
CREATE TABLE unmapped (v text);
INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i;
SELECT bluegreen.create_deployment('far', 'green');
SELECT bluegreen.map_table('far', 't');
SELECT bluegreen.create_deployment('near', 'self');
SELECT bluegreen.map_table('near', 't');
CALL bluegreen.start('far');
CALL bluegreen.start('near');
SQL
sync_all();

sub sync_all
{
	wait_for_sync('far');
	wait_for_sync('near');
	return;
}

# Where both servers' WAL ends.
sub wal
{
	return join ' ',
	  map { $_->safe_psql('SELECT pg_current_wal_insert_lsn()') }
	  $blue, $green;
}

# Every process that works for us, on both sides: pid => what it is
sub processes
{
	my %names;
	foreach my $node ($blue, $green)
	{
		my $rows = $node->safe_psql(<<'SQL');
SELECT pid, CASE WHEN backend_type ~ 'bluegreen' THEN backend_type
	ELSE 'session of ' || application_name END
FROM pg_stat_activity
WHERE backend_type || application_name ~ 'bluegreen'
SQL
		$names{$1} = "$2 on " . $node->name while $rows =~ /^(\d+)\|(.*)/mg;
	}
	return %names;
}

#
# Nothing happens: nothing is written, and nobody works
#
ok( $blue->poll_query_until(
		q{SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity
		WHERE backend_type ~ 'bluegreen (copy|recorder)')}),
	'copy workers and the recorder of events end when they are done');
$_->safe_psql('CHECKPOINT') for $blue, $green;
my %names = processes();
is(scalar(keys %names), 6, 'two launchers, two workers and their sessions');
my (%used, %woken, $before, $after, $elapsed);
for my $try (1 .. 12)
{
	my %start = map { $_ => [ usage_of($_) ] } keys %names;
	my $began = time;
	$before = wal();
	sleep $seconds;
	$after = wal();
	foreach my $pid (keys %names)
	{
		my ($time, $wakeups) = usage_of($pid);
		$used{$pid} = $time - $start{$pid}[0];
		$woken{$pid} = $wakeups - $start{$pid}[1];
	}
	$elapsed = time - $began + 1;
	last if $before eq $after;
}
is($after, $before, "two idle streams: no WAL on either side in $seconds s");
foreach my $pid (sort { $names{$a} cmp $names{$b} } keys %names)
{
	note(sprintf 'measured in %d s: %s: %.2f s of processor time, %d wake-ups',
		$seconds, $names{$pid}, $used{$pid}, $woken{$pid});
	cmp_ok($used{$pid}, '<=', 0.05, "$names{$pid}: no processor time");
	cmp_ok($woken{$pid}, '<=', 2 * $elapsed, "$names{$pid}: hardly wakes up");
}

#
# The slots let go of WAL that is not for them
#
foreach my $where ([ 'postgres', 'unmapped', 'of tables that are not mapped' ],
	[ 'other', 't', 'of another database' ])
{
	my ($dbname, $table, $what) = @$where;
	my $position = $blue->safe_psql('SELECT pg_current_wal_insert_lsn()');
	$blue->safe_psql($dbname, "INSERT INTO $table"
		  . q{ SELECT repeat('x', 1000) FROM generate_series(1, 200)});
	ok( $blue->poll_query_until(
			"SELECT min(confirmed_flush_lsn) > '$position'"
			  . ' FROM pg_replication_slots'),
		"WAL $what is confirmed");

	# A snapshot from which decoding can begin is logged with each checkpoint,
	# and the slot moves to it when something behind it is confirmed.
	ok( BlueGreen::Node::wait_until(
			sub {
				$blue->safe_psql('CHECKPOINT');
				$blue->safe_psql($dbname, "INSERT INTO $table"
					  . q{ SELECT repeat('x', 1000) FROM generate_series(1, 100)});
				return $blue->safe_psql("SELECT min(restart_lsn) > '$position'"
					  . ' FROM pg_replication_slots') eq 't';
			}),
		'and need not be kept');
}
$blue->safe_psql(q{INSERT INTO t VALUES (0, 'after it')});
sync_all();
compare_tables('TABLE t', 'TABLE t', 'a change after it follows');

#
# A stream that is stopped keeps WAL, which can be seen
#
sub kept
{
	return $blue->safe_psql(q{SELECT state || ' ' || wal_kept_bytes
		FROM bluegreen.stat_stream WHERE deployment = 'far'});
}
$blue->safe_psql(q{CALL bluegreen.stop('far')});
my ($state, $kept) = split / /, kept();
is($state, 'stopped', 'a stopped stream');
$blue->safe_psql(q{INSERT INTO unmapped
	SELECT repeat('x', 1000) FROM generate_series(1, 3000)});
$blue->safe_psql('CHECKPOINT');
my (undef, $later) = split / /, kept();
cmp_ok($later, '>=', $kept + 3_000_000, 'shows the WAL that it keeps');
$blue->safe_psql(q{CALL bluegreen.start('far')});
wait_for_sync('far');
ok( BlueGreen::Node::wait_until(
		sub {
			$blue->safe_psql(q{CHECKPOINT; INSERT INTO unmapped
				SELECT repeat('x', 1000) FROM generate_series(1, 100)});
			return (split / /, kept())[1] < $later - 2_000_000;
		}),
	'and lets go of it when it goes on');

done_testing();
