# Errors that go on and on: a thousand tries of a stream (BLUEGREEN_CYCLES,
# default 100) and a thousand of the output plugin in one session
# (BLUEGREEN_PLUGIN_CYCLES, default 1000).  Nothing is left behind by any of
# them, and in the end both go on as if nothing had been.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $cycles = $ENV{BLUEGREEN_CYCLES} || 100;
my $calls = $ENV{BLUEGREEN_PLUGIN_CYCLES} || 1000;

# No room for anything that is not given back.
my ($blue, $green) = create_pair(
	blue_conf => "bluegreen.restart_delay = '10ms'\n"
	  . "bluegreen.restart_delay_max = '10ms'\n"
	  . "bluegreen.max_streams = 1\n"
	  . "max_worker_processes = 6\n"
	  . "max_replication_slots = 2\n"
	  . "logical_decoding_work_mem = '64kB'\n"
	  . "bluegreen.decoding_work_mem = '64kB'\n"
	  . "autovacuum = off",
	green_conf => "max_connections = 12\nsuperuser_reserved_connections = 2");

foreach my $node ($blue, $green)
{
	$node->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v numeric NOT NULL);
		CREATE TABLE u (id int PRIMARY KEY, v text);});
}
$blue->safe_psql(q{
CREATE FUNCTION share(v numeric) RETURNS numeric IMMUTABLE LANGUAGE plpgsql
	AS $$ BEGIN RETURN 100 / v; END $$;
INSERT INTO t SELECT i, i FROM generate_series(1, 100) i;
SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 't', transform =>
	'SELECT id, share(v) AS v FROM t');
SELECT bluegreen.map_table('d', 'u');
CALL bluegreen.start('d');});
wait_for_sync('d');
$blue->safe_psql(q{SELECT pg_create_logical_replication_slot('look', 'pg_bluegreen')});

sub stream
{
	my ($column) = @_;
	return $blue->safe_psql("SELECT $column FROM bluegreen.stat_stream");
}

# Kilobytes of a process that are its own, and its open files.
sub footprint
{
	my ($pid) = @_;
	my ($kb) =
	  BlueGreen::Node::slurp("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	my @files = glob "/proc/$pid/fd/*";
	return ($kb, scalar @files);
}

# What there is of everything, with a name.
sub inventory
{
	my ($launcher) = $blue->processes(qr/bluegreen launcher/);
	my %found;
	@found{ 'kB of the postmaster', 'files of the postmaster' } =
	  footprint($blue->pid);
	@found{ 'kB of the launcher', 'files of the launcher' } =
	  footprint($launcher);
	$found{'slots'} =
	  $blue->safe_psql('SELECT count(*) FROM pg_replication_slots');
	$found{'stream entries'} =
	  $blue->safe_psql('SELECT count(*) FROM bluegreen.stream_state()');
	$found{'table entries'} =
	  $blue->safe_psql('SELECT count(*) FROM bluegreen.table_state()');
	$found{'origins'} =
	  $green->safe_psql('SELECT count(*) FROM pg_replication_origin');
	$found{'streams on green'} =
	  $green->safe_psql('SELECT count(*) FROM bluegreen.applied_stream');
	my $data = $blue->data_dir;
	foreach my $where ('base/pgsql_tmp', 'pg_dynshmem', 'pg_replslot/*',
		'pg_logical/mappings')
	{
		my @files = grep { !/\.spill$/ } glob "$data/$where/*";
		$found{"files in $where"} = @files;
	}
	return \%found;
}

# Two inventories are equal, but for memory, which may differ a little.
sub nothing_is_left
{
	my ($before, $after, $name) = @_;
	my @more;
	foreach my $what (sort keys %$before)
	{
		my $allowed = $what =~ /^kB/ ? 700 : 0;
		note("$name: $what: $before->{$what} -> $after->{$what}");
		push @more, "$what: $before->{$what} -> $after->{$what}"
		  if $after->{$what} > $before->{$what} + $allowed;
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is("@more", '', "$name: nothing is left behind");
	return;
}

# Errors until there are $n more.
sub wait_for_errors
{
	my ($n) = @_;
	my $goal = stream('errors') + $n;
	for my $part (1 .. 20)
	{
		my $now = $goal - int($n * (20 - $part) / 20);
		$blue->poll_query_until(
			"SELECT errors >= $now FROM bluegreen.stat_stream")
		  or die 'no more errors';
	}
	return;
}

# One kind of error, over and over; then its cause goes away.
sub cycles
{
	my ($name, $sqlstate, $cure) = @_;
	wait_for_errors(20);		# until every cache is warm
	my $log = length $blue->log;
	my $before = inventory();
	my $errors = stream('errors');
	wait_for_errors($cycles / 2);
	my $after = inventory();
	$errors = stream('errors') - $errors;
	is(stream('error_sqlstate'), $sqlstate, "$name: $errors errors");
	nothing_is_left($before, $after, $name);
	cmp_ok((length($blue->log) - $log) / $errors,
		'<', 4000, 'a try writes some lines of log');
	ok( $green->poll_query_until(q{SELECT count(*) < 6 FROM pg_stat_activity
			WHERE application_name LIKE 'bluegreen%'}),
		'sessions on green end');
	# one stream, one recorder, two copy workers
	cmp_ok($blue->processes(qr/bluegreen (stream|copy|recorder)/),
		'<', 5, 'there are not more processes than there should be');

	$cure->();
	# who waits for a stream that shows an error is told of it
	$blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream})
	  or die 'the stream does not go on';
	wait_for_sync('d');
	compare_tables('SELECT id, share(v) AS v FROM t',
		'TABLE t', "$name: with its cause gone, the stream goes on");
	compare_tables('TABLE u', 'TABLE u', 'in all tables', empty => 1);
	is(stream('state, error_at IS NULL, failures'),
		'streaming|t|0', 'and nothing is said of it any more');
	is(join(' ', glob $blue->data_dir . '/pg_replslot/bluegreen*/xid*'),
		'', 'no spilled file stays');
	return;
}

#
# An error in a transform, in a transaction that is so large that it is spilled
#
$blue->safe_psql(q{BEGIN;
	INSERT INTO u SELECT i, repeat('x', 100) FROM generate_series(1, 700) i;
	INSERT INTO t VALUES (1000, 0);
	COMMIT;
	INSERT INTO u VALUES (100000, 'later');});
# While it fails, the plugin fails as well; that test also removes the cause.
cycles('an error in a transform', '22012', \&plugin_cycles);

#
# One that green raises
#
$green->safe_psql(q{ALTER TABLE u ADD CONSTRAINT short CHECK (length(v) < 200)});
$blue->safe_psql(q{BEGIN; INSERT INTO u VALUES (200000, repeat('x', 300));
	INSERT INTO t VALUES (2000, 7); COMMIT; INSERT INTO t VALUES (2001, 8)});
cycles('an error of green', '23514',
	sub { $green->safe_psql('ALTER TABLE u DROP CONSTRAINT short') });

#
# The plugin, in one session
#
sub plugin_cycles
{
	my $get = q{SELECT count(*) FROM pg_logical_slot_get_changes('look', NULL,
		NULL, 'deployment', 'd')};
	my $memory = q{SELECT 'memory', sum(total_bytes), count(*)
		FROM pg_backend_memory_contexts;};
	my (undef, $out, $err) = $blue->psql(
		join("\n",
			"SET log_min_messages = fatal;",
			("$get;") x 20, $memory, ("$get;") x ($calls - 20), $memory,
			q{SELECT 'user', current_user, session_user = current_user;},
			q{SELECT 'snapshot', count(*) FROM pg_locks
				WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid'
				AND relation IS DISTINCT FROM 'pg_locks'::regclass;},
			q{SELECT 'slot', active FROM pg_replication_slots
				WHERE slot_name = 'look';},
			q{SELECT 'unmapped', bluegreen.unmap_table('d', 't');},
			$get =~ s/^SELECT/SELECT 'changes',/r
			  . q{ WHERE data LIKE 'table public.u: INSERT%';}),
		on_error_stop => 0);
	my @errors = $err =~ /ERROR:  (.*)/g;
	is(grep({ /^division by zero$/ } @errors),
		$calls, "the plugin has failed $calls times in one session")
	  or diag($err =~ s/(.{1000}).*/$1/sr);
	is(scalar @errors, $calls, 'and in no other way');
	my ($before, $contexts_before, $after, $contexts_after) =
	  $out =~ /^memory\|(\d+)\|(\d+)$/mg;
	note("measured: memory of the session: $before -> $after bytes,"
		  . " $contexts_before -> $contexts_after contexts");
	cmp_ok($after, '<', $before + 256 * 1024, 'its memory does not grow');
	cmp_ok($contexts_after, '<', $contexts_before + 10,
		'and no memory context is left');
	like($out, qr/^user\|postgres\|t$/m, 'it is still its own user');
	like($out, qr/^slot\|f$/m, 'the slot is free');
	like($out, qr/^changes\|701$/m,
		'and without the table that failed, it gets all other changes');

	# the stream gets it back
	$green->safe_psql('DELETE FROM t');
	$blue->safe_psql(q{CREATE OR REPLACE FUNCTION share(v numeric)
		RETURNS numeric IMMUTABLE LANGUAGE plpgsql
		AS $$ BEGIN RETURN CASE WHEN v = 0 THEN 0 ELSE 100 / v END; END $$;
		SELECT bluegreen.map_table('d', 't', transform =>
			'SELECT id, share(v) AS v FROM t');});
	return;
}

done_testing();
