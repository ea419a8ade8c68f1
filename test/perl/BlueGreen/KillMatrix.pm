package BlueGreen::KillMatrix;

# Kill -9 at every step of a switchover or rollback, whoever it hits: at no time
# take both sides writes, at the end exactly one does, and nothing is lost.
#
#	my $matrix = BlueGreen::KillMatrix->new;
#	$matrix->run('switchover');
#
# Each combination of step and victim is a cell: two clients write all the time,
# one to each side, and note what was acknowledged; a move is stopped before the
# step, somebody is killed, and when it has ended it is judged.

use strict;
use warnings;

use BlueGreen;
use File::Temp;
use IPC::Run;
use POSIX ();
use Test::More;
use Time::HiRes qw(time usleep);

my @steps = qw(fence barrier doubt decide close tell);
my @victims = qw(caller worker ended from to);

# A pair with a deployment d, which maps w.
sub new
{
	my ($class) = @_;
	my $self = bless { dir => File::Temp->newdir, number => 0 }, $class;
	my ($blue, $green) = create_pair(
		guard => 1,
		way_back => 1,
		conf => "bluegreen.restart_delay = '50ms'\n"
		  . "bluegreen.restart_delay_max = '200ms'");
	$_->safe_psql('CREATE TABLE w (id text PRIMARY KEY)') for $blue, $green;
	$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
		SELECT bluegreen.map_table('d', 'w');
		CALL bluegreen.start('d')});
	wait_for_sync('d');
	$self->{nodes} = { blue => $blue, green => $green };
	return $self;
}

# Sessions begin read-only on a side that is closed: a sign, which is not what
# is tested here.
my $write = "options='-c default_transaction_read_only=off' connect_timeout=5";

#
# The clients
#
sub _client
{
	my ($self, $side, $cell) = @_;
	my $node = $self->{nodes}{$side};
	my $conn = $node->connstr . " $write";
	open my $log, '>>', "$self->{dir}/$cell.$side" or POSIX::_exit(1);
	$log->autoflush(1);
	for (my $i = 0; -e "$self->{dir}/$cell"; $i++)
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

sub _start_clients
{
	my ($self, $cell) = @_;
	open my $flag, '>', "$self->{dir}/$cell" or die $!;
	foreach my $side (qw(blue green))
	{
		my $pid = fork // die $!;
		$self->_client($side, $cell) if $pid == 0;
		push @{ $self->{clients} }, $pid;
	}
	return;
}

# What was acknowledged: side => [[id, asked at, acknowledged at], ...]
sub _stop_clients
{
	my ($self, $cell) = @_;
	unlink "$self->{dir}/$cell";
	waitpid $_, 0 for splice @{ $self->{clients} };
	return map {
		my $file = "$self->{dir}/$cell.$_";
		$_ => [ map { [split] } split /\n/, BlueGreen::Node::slurp($file) ]
	} qw(blue green);
}

#
# The victims
#
sub _worker_of
{
	my ($node) = @_;
	return $node->safe_psql('SELECT pid FROM pg_stat_activity'
		  . " WHERE backend_type = 'pg_bluegreen switch'");
}

# Kill, and have all servers run again.
sub _kill
{
	my ($self, $victim, $caller, $from, $to) = @_;
	my $before = length $from->log;
	if ($victim eq 'ended')	# in an orderly way: the worker alone
	{
		kill 'TERM', _worker_of($from);
	}
	elsif ($victim eq 'from')
	{
		$from->kill9;
		$from->start;
	}
	elsif ($victim eq 'to')
	{
		$to->kill9;
		$from->safe_psql('SET default_transaction_read_only = off;'
			  . 'UPDATE bluegreen.switch SET stop_at = NULL');
		$to->start;
	}
	else
	{
		kill 'KILL', $victim eq 'caller' ? $caller->pid : _worker_of($from);
		$from->wait_for_log(qr/ready to accept connections/, $before);
		$from->wait_until_up;
	}
	return;
}

#
# The judgement
#
sub writable
{
	my ($node, $id) = @_;
	return $node->psql('SET default_transaction_read_only = off;'
		  . "INSERT INTO w VALUES ('$id')") == 0 ? 1 : 0;
}

# What is wrong with a cell, or ''
sub _judge
{
	my ($self, $cell, $outcome, $from, $to, %acknowledged) = @_;
	my ($first) = sort { $a <=> $b } map { $_->[2] } @{ $acknowledged{$to} };
	my @late = grep { defined $first && $_->[1] > $first }
	  @{ $acknowledged{$from} };
	return "$from took a write after $to had: $late[0][0]" if @late;
	return "$to took a write" if $outcome eq 'undone' && defined $first;
	my @writable =
	  map { writable($self->{nodes}{$_}, "$cell.$_.end") } $from, $to;
	return "writable: @writable"
	  if "@writable" ne ($outcome eq 'moved' ? '0 1' : '1 0');
	my ($active, $other) = $outcome eq 'moved' ? ($to, $from) : ($from, $to);
	wait_for_sync('d', node => $self->{nodes}{$_}) for $from, $to;
	my $ids = join ',', map { "('$_->[0]')" } map { @$_ } values %acknowledged;
	foreach my $side ($active, $other)
	{
		my $lost = $self->{nodes}{$side}->safe_psql(
			"SELECT count(*) FROM (VALUES $ids) v (id)"
			  . ' WHERE NOT EXISTS (SELECT FROM w WHERE w.id = v.id)');
		return "$lost acknowledged writes are not on $side" if $lost;
	}
	return '';
}

sub _cell
{
	my ($self, $kind, $step, $victim) = @_;
	my ($from, $to) =
	  $kind eq 'switchover' ? qw(blue green) : qw(green blue);
	my ($here, $there) = @{ $self->{nodes} }{ $from, $to };
	my $cell = 'c' . ++$self->{number};
	$self->_start_clients($cell);
	my $caller = $here->session;
	$caller->query("SET bluegreen.switchover_stop_at = '$step'");
	$caller->send("CALL bluegreen.$kind('d', timeout => '170 s',"
		  . " drain_timeout => '100 s')");
	$here->poll_query_until('SELECT count(*) = 1 FROM bluegreen.switch WHERE'
		  . " stop_at = 'at $step' AND state IN ('running', 'decided')");
	$self->_kill($victim, $caller, $here, $there);
	my $ended = $here->poll_query_until(
		q{SELECT m.state IN ('done', 'failed') AND f.state IN ('open', 'closed')
		FROM bluegreen.switch m JOIN bluegreen.fence f USING (deployment)});
	my $outcome = $here->safe_psql('SELECT state FROM bluegreen.fence') eq
	  'closed' ? 'moved' : 'undone';
	usleep(100_000);
	my %acknowledged = $self->_stop_clients($cell);
	my $wrong = $ended ?
	  $self->_judge($cell, $outcome, $from, $to, %acknowledged) :
	  'not ended';
	eval { $caller->{harness}->kill_kill(grace => 1) };
	if ($outcome eq 'moved')
	{
		my $back = $kind eq 'switchover' ? 'rollback' : 'switchover';
		$there->safe_psql("CALL bluegreen.$back('d', timeout => '170 s')",
			timeout => 180);
	}
	return ($outcome, $wrong);
}

# All cells of a kind; prints what became of each.
sub run
{
	my ($self, $kind) = @_;
	my %matrix;
	foreach my $step (@steps)
	{
		foreach my $victim (@victims)
		{
			my ($outcome, $wrong) = $self->_cell($kind, $step, $victim);
			is($wrong, '', "$kind, before $step: $victim is killed: $outcome");
			is( $outcome,
				$step =~ /close|tell/ ? 'moved' :
				  $victim eq 'to' ? $outcome : 'undone',
				'with the right end');
			$matrix{$step}{$victim} = $wrong ? "$outcome!" : $outcome;
		}
	}
	note join "\n", $kind, map { join "\t", @$_ } [ 'before', @victims ],
	  map { my $s = $_; [ $s, map { $matrix{$s}{$_} } @victims ] } @steps;
	return;
}

1;
