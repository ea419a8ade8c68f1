# Kill -9 at every step of a switchover, whoever it hits: at no time take both
# sides writes, at the end exactly one does, and nothing is lost.  Prints what
# became of each.
use strict;
use warnings;

use BlueGreen;
use File::Temp;
use IPC::Run;
use POSIX ();
use Test::More;
use Time::HiRes qw(time usleep);

my $dir = File::Temp->newdir;
my ($blue, $green) = create_pair(
	guard => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '200ms'");
foreach my $node ($blue, $green)
{
	$node->safe_psql('CREATE TABLE w (id text PRIMARY KEY)');
}
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'w');
	CALL bluegreen.start('d')});
wait_for_sync('d');
my %nodes = (blue => $blue, green => $green);

#
# A client for each side, which writes all the time, and notes what was
# acknowledged and when it had asked
#
my @writers;

sub write_to
{
	my ($side, $cell) = @_;
	my $node = $nodes{$side};
	my $conn = $node->connstr
	  . " options='-c default_transaction_read_only=off' connect_timeout=5";
	open my $log, '>>', "$dir/$cell.$side" or POSIX::_exit(1);
	$log->autoflush(1);
	for (my $i = 0; -e "$dir/$cell"; $i++)
	{
		my $id = "$cell.$side.$i";
		my $begin = time;
		my $out = '';
		my $ok = IPC::Run::run([ "$node->{client}/psql", '-XAtq', '-d', $conn,
				'-c', "INSERT INTO w VALUES ('$id')" ],
			'<', '/dev/null', '>', \$out, '2>', \$out);
		print $log join(' ', $id, $begin, time), "\n" if $ok;
		usleep(10_000);
	}
	POSIX::_exit(0);
}

sub start_writers
{
	my ($cell) = @_;
	open my $flag, '>', "$dir/$cell" or die;
	foreach my $side (qw(blue green))
	{
		my $pid = fork // die;
		write_to($side, $cell) if $pid == 0;
		push @writers, $pid;
	}
	return;
}

sub stop_writers
{
	my ($cell) = @_;
	unlink "$dir/$cell";
	waitpid $_, 0 for splice @writers;
	return map { my $file = "$dir/$cell.$_"; $_ =>
		  [ map { [split] } split /\n/, BlueGreen::Node::slurp($file) ] }
	  qw(blue green);
}

#
# One cell of the matrix
#
my %victims = (
	caller => sub {
		my ($caller) = @_;
		kill 'KILL', $caller->pid;
		return $blue;
	},
	worker => sub {
		kill 'KILL', $blue->safe_psql('SELECT pid FROM pg_stat_activity'
			  . " WHERE backend_type = 'pg_bluegreen switch'");
		return $blue;
	},
	ended => sub {    # SIGTERM: the worker alone
		kill 'TERM', $blue->safe_psql('SELECT pid FROM pg_stat_activity'
			  . " WHERE backend_type = 'pg_bluegreen switch'");
		return;
	},
	blue => sub { $blue->kill9; return $blue },
	green => sub { $green->kill9; return $green },
);

sub recovered
{
	my ($victim, $node, $from) = @_;
	if ($victim eq 'blue' || $victim eq 'green')
	{
		$blue->safe_psql('SET default_transaction_read_only = off;'
			  . 'UPDATE bluegreen.switch SET stop_at = NULL')
		  if $victim eq 'green';
		$node->start;
	}
	elsif ($node)
	{
		$node->wait_for_log(qr/ready to accept connections/, $from);
		$node->wait_until_up;
	}
	return;
}

sub writable
{
	my ($node, $id) = @_;
	return $node->psql('SET default_transaction_read_only = off;'
		  . "INSERT INTO w VALUES ('$id')") == 0 ? 1 : 0;
}

# What is wrong, or ''
sub judge
{
	my ($cell, $outcome, %acknowledged) = @_;
	my ($first) = sort { $a <=> $b } map { $_->[2] } @{ $acknowledged{green} };
	my @late = grep { defined $first && $_->[1] > $first }
	  @{ $acknowledged{blue} };
	return "blue took a write after green had: $late[0][0]" if @late;
	return 'green took a write' if $outcome eq 'undone' && defined $first;
	my @writable = map { writable($nodes{$_}, "$cell.$_.end") } qw(blue green);
	return "writable: @writable"
	  if "@writable" ne ($outcome eq 'moved' ? '0 1' : '1 0');
	wait_for_sync('d');
	foreach my $side (qw(blue green))
	{
		my $ids = join ',', map { "('$_->[0]')" } @{ $acknowledged{$side} };
		next if $ids eq '';
		my $lost = $green->safe_psql("SELECT count(*) FROM (VALUES $ids) v (id)"
			  . ' WHERE NOT EXISTS (SELECT FROM w WHERE w.id = v.id)');
		return "$lost writes to $side are lost" if $lost;
	}
	return '';
}

# Begin again on blue.
sub put_back
{
	$green->safe_psql(q{UPDATE bluegreen.fence SET state = 'guarded'});
	$blue->safe_psql('SELECT bluegreen.reopen()');
	return;
}

my (%matrix, $number);

sub cell
{
	my ($step, $victim) = @_;
	my $cell = 'c' . ++$number;
	start_writers($cell);
	my $caller = $blue->session;
	$caller->query("SET bluegreen.switchover_stop_at = '$step'");
	$caller->send(q{CALL bluegreen.switchover('d', timeout => '170 s', drain_timeout => '100 s')});
	$blue->poll_query_until("SELECT count(*) = 1 FROM bluegreen.switch"
		  . " WHERE stop_at = 'at $step' AND state IN ('running', 'decided')");
	my $from = length $blue->log;
	my $node = $victims{$victim}->($caller);
	recovered($victim, $node, $from);
	my $ended = $blue->poll_query_until(
		q{SELECT m.state IN ('done', 'failed') AND f.state IN ('open', 'closed')
		FROM bluegreen.switch m JOIN bluegreen.fence f USING (deployment)});
	my $outcome = $blue->safe_psql('SELECT state FROM bluegreen.fence') eq
	  'closed' ? 'moved' : 'undone';
	usleep(100_000);
	my %acknowledged = stop_writers($cell);
	my $wrong = $ended ? judge($cell, $outcome, %acknowledged) : 'not ended';
	$matrix{$step}{$victim} = $wrong ? "$outcome!" : $outcome;
	eval { $caller->{harness}->kill_kill(grace => 1) };
	put_back() if $outcome eq 'moved';
	return ($outcome, $wrong);
}

my @steps = qw(fence barrier doubt decide close tell);
my @names = qw(caller worker ended blue green);
foreach my $step (@steps)
{
	foreach my $victim (@names)
	{
		my ($outcome, $wrong) = cell($step, $victim);
		is($wrong, '', "$victim is killed before step $step: $outcome");
		my $expected = $step eq 'close' || $step eq 'tell' ? 'moved' :
		  $victim eq 'green' ? $outcome : 'undone';
		is($outcome, $expected, 'with the right end');
	}
}
note join "\n", '', map { join "\t", @$_ } [ 'step', @names ],
  map { my $s = $_; [ $s, map { $matrix{$s}{$_} } @names ] } @steps;

#
# The other side cannot be asked: it stays in doubt, says so, and a human can
# say which side is active
#
my $caller = $blue->session;
$caller->query(q{SET bluegreen.switchover_stop_at = 'close'});
$caller->send(q{CALL bluegreen.switchover('d', timeout => '5 s')});
$blue->poll_query_until(q{SELECT count(*) = 1 FROM bluegreen.switch
	WHERE stop_at = 'at close' AND state = 'running'});
$green->stop('immediate');
$blue->restart('immediate');
ok( $blue->poll_query_until(
		q{SELECT fence = 'in_doubt' AND active IS NULL AND message LIKE 'it is in doubt whether green is the active side: %'
			AND advice LIKE 'It is asked again and again. If green is lost for good, call bluegreen.force_active(''blue'') here; %'
			FROM bluegreen.switch_state}),
	'in doubt, which the view tells with what can be done');
is(writable($blue, 'doubt'), 0, 'blue does not take writes');
my (undef, undef, $err) = $blue->psql(q{CALL bluegreen.switchover('d')});
like($err, qr/cannot switch over deployment "d" during its switchover/,
	'nor another switchover');
$blue->safe_psql(q{SELECT bluegreen.force_active('blue')});
is(writable($blue, 'forced'), 1, 'blue is active, said a human');
is($blue->safe_psql('SELECT active, fence, move_state FROM bluegreen.switch_state'),
	'blue|open|failed', 'the view agrees');
$green->start;
is($green->safe_psql('SELECT active FROM bluegreen.switch_state'), 'green',
	'green thinks otherwise, for it was decided');
$green->safe_psql(q{SELECT bluegreen.force_active('blue')});
is(writable($green, 'forced'), 0, 'it is told the same');
wait_for_sync('d');
is($green->safe_psql(q{SELECT count(*) FROM w WHERE id = 'forced'}), 1,
	'and follows again');

done_testing();
