package BlueGreen;

# Helpers for tests with two clusters (test/t/*.pl).
#
#	use BlueGreen;
#	use Test::More;
#
#	my ($blue, $green) = create_pair();
#	$blue->safe_psql("SELECT bluegreen.create_deployment('d', 'green')");
#	...
#	wait_for_sync('d');
#	compare_tables('SELECT * FROM t', 'SELECT * FROM t', 't is the same');
#	done_testing();
#
# A node is a BlueGreen::Node.  Blue runs on the server under test, green on
# the same or, if test/run was told so, on another version; a test does not
# see the difference.  Whatever a test makes is removed when it ends, and the
# end of the servers' logs is shown if it failed.
#
# Environment, set by test/run; without it PG_CONFIG or PATH says which server:
#	BLUE_BINDIR, GREEN_BINDIR	programs of the server
#	BLUE_WORK, GREEN_WORK		folder in which clusters may be made
#	GREEN_ROOT					the chroot that green lives in

use strict;
use warnings;

use BlueGreen::Node;
use Carp;
use Exporter 'import';
use File::Temp;
use IPC::Run;
use POSIX ();
use Test::More ();

our @EXPORT = qw(create_pair connect_nodes wait_for_sync wait_for_both
  compare_tables pgbench_start pgbench_stop kill9_worker memory_of usage_of
  forge_token);

# a user's own settings are not meant for the test's clusters
delete @ENV{ grep { /^PG/ && !/^PG_/ } keys %ENV };
$ENV{LC_ALL} = 'C';

my (@nodes, @benches, %places, $blue, $green);

#
# Clusters
#

# BlueGreen->blue('name', 'lines for postgresql.conf', initdb => [...]): a new
# cluster that runs.
sub blue
{
	my ($class, @arguments) = @_;
	return _node('blue', @arguments);
}

# The same on green's server.
sub green
{
	my ($class, @arguments) = @_;
	return _node('green', @arguments);
}

# Two clusters with the extension, and on blue a SERVER "green" with a user
# mapping; with way_back => 1 also a SERVER "blue" on green.  Options: conf,
# blue_conf, green_conf (lines for postgresql.conf), initdb (more arguments for
# it), dbname (created unless it is postgres), and guard => 1: green's mapped
# tables are guarded against the test's own writes, as they are by default.  The
# pair that was made last is the one that wait_for_sync, compare_tables mean.
sub create_pair
{
	my (%options) = @_;
	my $conf = $options{conf} // '';
	my $dbname = $options{dbname} // 'postgres';
	my @initdb = (initdb => $options{initdb} // []);
	$blue = BlueGreen->blue('blue', "$conf\n" . ($options{blue_conf} // ''),
		@initdb);
	my $guard = 'bluegreen.allow_target_writes = ' . ($options{guard} ? 0 : 1);
	$green = BlueGreen->green('green',
		"$conf\n$guard\n" . ($options{green_conf} // ''), @initdb);
	foreach my $node ($blue, $green)
	{
		$node->safe_psql("CREATE DATABASE $dbname") if $dbname ne 'postgres';
		$node->safe_psql($dbname, 'CREATE EXTENSION pg_bluegreen');
	}
	connect_nodes($blue, $green, 'green', $dbname);
	connect_nodes($green, $blue, 'blue', $dbname) if $options{way_back};
	return ($blue, $green);
}

# Define $to as the foreign server $server on $from.
sub connect_nodes
{
	my ($from, $to, $server, $dbname) = @_;
	$dbname //= 'postgres';
	my $port = $to->port;
	$from->safe_psql($dbname, <<"SQL");
CREATE SERVER $server FOREIGN DATA WRAPPER pg_bluegreen
	OPTIONS (host '127.0.0.1', port '$port', dbname '$dbname');
CREATE USER MAPPING FOR CURRENT_USER SERVER $server
	OPTIONS (user 'postgres', password 'not asked for');
SQL
	return;
}

#
# Deployments
#

# Wait until green has all that blue has committed so far.  Options: timeout
# (seconds), node, dbname.
sub wait_for_sync
{
	my ($deployment, %options) = @_;
	my $node = $options{node} || $blue;
	my $seconds = $options{timeout} || BlueGreen::Node::TIMEOUT;
	return $node->safe_psql($options{dbname},
		"CALL bluegreen.wait_for_sync('$deployment', '$seconds s')",
		timeout => $seconds + 10);
}

# Wait until both sides have all that either has committed so far.
sub wait_for_both
{
	my ($deployment, %options) = @_;
	wait_for_sync($deployment, %options, node => $_) for $blue, $green;
	return;
}

# A test: two queries, one on each side, give the same rows, and some.  The
# first differences are shown.  Options: dbname, empty => 1 if there may be no
# row, blue and green (nodes).
sub compare_tables
{
	my ($blue_sql, $green_sql, $name, %options) = @_;
	my ($left, $right) =
	  ($options{blue} || $blue, $options{green} || $green);
	my $dbname = $options{dbname} // 'postgres';
	my @digests = map { $_->[0]->safe_psql($dbname, _digest($_->[1])) }
	  [ $left, $blue_sql ], [ $right, $green_sql ];
	my $same = $digests[0] eq $digests[1]
	  && ($options{empty} || $digests[0] !~ /^0\|/);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	Test::More::ok($same, $name // $blue_sql);
	return $same if $same;
	Test::More::diag("rows|md5: blue $digests[0], green $digests[1]");
	_show_differences($dbname, [ $left, $blue_sql ], [ $right, $green_sql ])
	  if $digests[0] ne $digests[1];
	return $same;
}

# SIGKILL a background process of the extension whose type or name contains
# $type (regular expression), and wait until the server has recovered (it
# restarts all its processes after that).  Returns the pid.
sub kill9_worker
{
	my ($node, $type, $dbname) = @_;
	my $query = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
	  . " AND backend_type || ' ' || application_name ~* 'bluegreen'"
	  . " AND backend_type || ' ' || application_name ~* '$type' LIMIT 1";
	my $pid = '';
	BlueGreen::Node::wait_until(
		sub { $pid = $node->safe_psql($dbname, $query) })
	  or croak "$node->{name} has no process $type";
	my $from = length $node->log;
	kill 'KILL', $pid;
	$node->wait_for_log(qr/ready to accept connections/, $from)
	  or croak "$node->{name} has not recovered";
	$node->wait_until_up;
	return $pid;
}

#
# Load
#

# Run pgbench in the background.  Options: script => SQL or [SQL, ...] (else
# pgbench's own), clients, rate, dbname, user, path (search_path), args => [more
# arguments], name (of its sessions; where there are two at the same time).
sub pgbench_start
{
	my ($node, %options) = @_;
	my $scripts = $options{script};
	my @files;
	foreach my $sql (ref $scripts ? @$scripts : grep { defined } $scripts)
	{
		my $file = File::Temp->new(SUFFIX => '.sql');
		print $file "$sql\n";
		close $file;
		push @files, $file;
	}
	my $bench = {
		node => $node,
		files => \@files,
		out => '',
		name => $options{name} || 'pgbench'
	};
	local $ENV{PGAPPNAME} = $bench->{name};
	local $ENV{PGOPTIONS} = "-c search_path=$options{path}" if $options{path};
	$bench->{harness} = IPC::Run::start(
		[
			"$node->{client}/pgbench", '-n', '-T', 3600,
			'-c', $options{clients} || 2,
			($options{rate} ? ('-R', $options{rate}) : ()),
			(map { ('-f', $_->filename) } @files),
			@{ $options{args} || [] },
			$node->connstr($options{dbname}, $options{user})
		],
		'<', '/dev/null', '>', \$bench->{out}, '2>&1');
	push @benches, $bench;
	return $bench;
}

# Stop it and wait until its last transaction has ended.  A test fails if
# pgbench had given up before.
sub pgbench_stop
{
	my ($bench) = @_;
	my $harness = delete $bench->{harness} or return;
	my $alive = $harness->pumpable;
	if ($alive)
	{
		$harness->signal('TERM');
		eval { $harness->finish };
	}
	else
	{
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		Test::More::fail("pgbench runs until it is stopped");
		Test::More::diag($bench->{out});
	}
	$bench->{node}->poll_query_until("SELECT NOT EXISTS (SELECT 1 FROM"
		  . " pg_stat_activity WHERE application_name = '$bench->{name}')")
	  if $bench->{node}->pid;
	return $alive;
}

#
# Processes
#

# Memory that a process has for itself, in kB: what the server shares, and
# programs and libraries, are not in it.
sub memory_of
{
	my ($pid) = @_;
	my $kilobytes = 0;
	my $rollup = BlueGreen::Node::slurp("/proc/$pid/smaps_rollup");
	$kilobytes += $1 while $rollup =~ /^(?:Anonymous|Swap): +(\d+) kB/mg;
	return $kilobytes;
}

# Processor time in seconds that a process has used, and how often it has gone
# to sleep.
sub usage_of
{
	my ($pid) = @_;
	my ($fields) =
	  BlueGreen::Node::slurp("/proc/$pid/stat") =~ /\) (.*)/;
	my ($user, $system) = (split / /, $fields)[ 11, 12 ];
	my ($sleeps) = BlueGreen::Node::slurp("/proc/$pid/status") =~
	  /^voluntary_ctxt_switches:\s+(\d+)/m;
	my $hertz = POSIX::sysconf(POSIX::_SC_CLK_TCK());
	return (($user + $system) / $hertz, $sleeps);
}

#
# Tokens
#

# CRC-32C of a text, with which tokens end.
sub crc32c
{
	my ($text) = @_;
	my $crc = 0xFFFFFFFF;
	foreach my $byte (unpack 'C*', $text)
	{
		$crc ^= $byte;
		$crc = ($crc >> 1) ^ ($crc & 1 ? 0x82F63B78 : 0) for 1 .. 8;
	}
	return $crc ^ 0xFFFFFFFF;
}

# A token with another position, as somebody could make it up.
sub forge_token
{
	my ($token, $lsn) = @_;
	my ($side, $epoch, $timeline, undef, $deployment) = split /\./, $token;
	my $text = "$side.$epoch.$timeline.$lsn.$deployment";
	return sprintf '%s.%08X', $text, crc32c($text);
}

#
# Helpers
#

# Where clusters of a side live: { root, bindir, client, work }.
sub _place
{
	my ($side) = @_;
	my $root = $side eq 'green' ? $ENV{GREEN_ROOT} // '' : '';
	my $bindir = $ENV{ uc($side) . '_BINDIR' };
	my $work = $ENV{ uc($side) . '_WORK' };
	my $client = $ENV{BLUE_BINDIR} // _bindir('', $ENV{PG_CONFIG});
	$bindir //= _bindir($root, $ENV{GREEN_PG_CONFIG})
	  if $side eq 'green' && ($root ne '' || $ENV{GREEN_PG_CONFIG});
	$bindir //= $client;
	if (!defined $work)
	{
		my $dir = File::Temp->newdir('pg_bluegreen.XXXXXX',
			DIR => "$root/tmp", CLEANUP => !$ENV{KEEP});
		mkdir "$dir/clusters" or croak $!;
		chmod 0755, "$dir";
		chmod 0777, "$dir/clusters";
		$work = substr("$dir", length $root);
		return { root => $root, bindir => $bindir, client => $client,
			work => $work, holder => $dir };
	}
	return { root => $root, bindir => $bindir, client => $client,
		work => $work };
}

sub _bindir
{
	my ($root, $config) = @_;
	$config ||= 'pg_config';
	my @chroot = $root ne '' ? ('chroot', $root) : ();
	my $out = '';
	IPC::Run::run([ @chroot, $config, '--bindir' ], '>', \$out)
	  or croak "no $config";
	chomp $out;
	return $out;
}

sub _node
{
	my ($side, $name, $conf, %options) = @_;
	$places{$side} //= _place($side);
	my $node =
	  BlueGreen::Node->new($name // $side, $places{$side}, $conf, %options);
	push @nodes, $node;
	return $node;
}

sub _digest
{
	my ($sql) = @_;
	return "SELECT count(*), md5(string_agg(r, E'\\n' ORDER BY r COLLATE \"C\"))"
	  . " FROM (SELECT q::text AS r FROM ($sql) q) rows";
}

# The first rows that one side has and the other has not.
sub _show_differences
{
	my ($dbname, @sides) = @_;
	my @rows = map {
		my ($node, $sql) = @$_;
		my %count;
		$count{$_}++
		  for split /\n/,
		  $node->safe_psql($dbname,
			"SELECT replace(q::text, E'\\n', '\\n') FROM ($sql) q");
		\%count;
	} @sides;
	foreach my $side (0, 1)
	{
		my ($mine, $other) = @rows[ $side, 1 - $side ];
		my @only =
		  grep { $mine->{$_} > ($other->{$_} // 0) } sort keys %$mine;
		my $name = $side ? 'green' : 'blue';
		Test::More::diag(
			@only . " rows only on $name" . join '',
			map { "\n  $_" } grep { defined } @only[ 0 .. 9 ]) if @only;
	}
	return;
}

# A psql that cannot connect does not read what is written to it.
$SIG{PIPE} = 'IGNORE';

# ^C and timeouts end the test through END.
$SIG{INT} = $SIG{TERM} = $SIG{HUP} = sub { die "stopped by SIG$_[0]\n" };

END
{
	my $status = $?;
	local $SIG{INT} = local $SIG{TERM} = 'IGNORE';
	foreach my $bench (@benches)
	{
		$bench->{harness}->kill_kill(grace => 1) if $bench->{harness};
	}
	my $failed = $status || !Test::More->builder->is_passing;
	foreach my $node (@nodes)
	{
		if ($failed)
		{
			my @log = split /\n/, eval { $node->log } // '';
			splice @log, 0, -40 if @log > 40;
			Test::More::diag("the end of the log of $node->{name}:",
				map { "\n  $_" } @log);
		}
		$node->destroy;
	}
	$? = $status;
}

1;
