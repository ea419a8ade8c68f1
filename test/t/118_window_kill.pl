# Kill -9 of the worker that opens or closes a window, which restarts its server,
# and of either server, at each step, while clients write to both sides: it ends
# open on both sides or closed on both, what was begun is undone or brought to its
# end, exactly the right sides take writes, and no number is given twice.
# ALL_CELLS=1 for those that are much like others, too.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Window;
use Test::More;

my $conf = "bluegreen.restart_delay = '50ms'\nbluegreen.restart_delay_max = '200ms'";
my ($blue, $green) = create_pair(guard => 1, way_back => 1, conf => $conf);
my %nodes = (blue => $blue, green => $green);
BlueGreen::Window::create_tables($blue, $green);
$blue->safe_psql("SELECT bluegreen.create_deployment('d', 'green');"
	  . join('', map { "SELECT bluegreen.map_table('d', '$_');" }
		  @BlueGreen::Window::tables)
	  . "CALL bluegreen.start('d')");
wait_for_both('d');

# Move, step, victim; what is hit after the decision is brought to its end.
my @cells = (
	(map { [ 'open', $_->[0], $_->[1] ] } (
		map { my $step = $_; map { [ $step, $_ ] } qw(worker to) }
		  qw(mode numbers decide open)),
		[ 'decide', 'from' ], [ 'tell', 'worker' ]),
	(map { [ 'close', $_->[0], $_->[1] ] } (
		map { my $step = $_; map { [ $step, $_ ] } qw(worker to) }
		  qw(decide close numbers window)),
		[ 'barrier', 'worker' ], [ 'numbers', 'from' ]));
my %much_alike = map { $_ => 1 } 'open mode to', 'open open to',
  'close close to', 'close window to';
@cells = grep { $ENV{ALL_CELLS} || !$much_alike{"@$_"} } @cells;
my %after = map { $_ => 1 } 'open open', 'open tell', 'close close',
  'close numbers', 'close window';

my $active = 'blue';
my $clients = BlueGreen::Window->new($blue, $green);
$clients->start;

sub other { return $_[0] eq 'blue' ? 'green' : 'blue' }

# Has a move ended, on both sides alike?  What they are, or undef.
sub ended
{
	my @states = map {
		my ($status, $out) = $_->psql(q{SELECT f.state, f.window, d.window,
				coalesce(m.state, 'done') IN ('done', 'failed'),
				(SELECT string_agg(DISTINCT increment_by::text, ' ')
					FROM pg_sequences WHERE schemaname = 'public'),
				(SELECT count(*) FROM bluegreen.sequence_window)
			FROM bluegreen.fence f JOIN bluegreen.deployment d
				ON d.id = f.deployment
				LEFT JOIN bluegreen.switch m USING (deployment)});
		$status == 0 ? $out : 'down'
	} $blue, $green;
	my $open = 'open|t|open|t|2|3';
	my $alone = 'open|f|closed|t|1|0';
	my $closed = qr/^(?:closed|guarded)\|f\|closed\|t\|1\|0$/;
	return 'open' if $states[0] eq $open && $states[1] eq $open;
	return 'blue' if $states[0] eq $alone && $states[1] =~ $closed;
	return 'green' if $states[1] eq $alone && $states[0] =~ $closed;
	$clients->{last} = "@states";
	return undef;
}

sub kill_victim
{
	my ($victim, $from, $to) = @_;
	if ($victim eq 'worker')
	{
		kill9_worker($from, 'switch');
		return;
	}
	my $node = $victim eq 'from' ? $from : $to;
	$node->kill9;
	$from->safe_psql('SET default_transaction_read_only = off;
		UPDATE bluegreen.switch SET stop_at = NULL')
	  if $victim eq 'to';
	$node->start;
	return;
}

# Do one; from => the side that its worker is on
sub cell
{
	my ($kind, $step, $victim) = @_;
	my $from = $nodes{$active};
	my $to = $nodes{ other($active) };
	my $before = $kind eq 'open' ? $active : 'open';
	my $goal = $kind eq 'open' ? 'open' : other($active);
	my $caller = $from->session;
	$caller->query("SET default_transaction_read_only = off;
		SET bluegreen.switchover_stop_at = '$step'");
	$caller->send(
		$kind eq 'open' ? q{CALL bluegreen.open_window('d', '170 s')} :
		  "CALL bluegreen.close_window('d', '$goal', '170 s', '100 s')");
	$from->poll_query_until(
		"SELECT count(*) = 1 FROM bluegreen.switch WHERE stop_at = 'at $step'");
	kill_victim($victim, $from, $to);
	eval { $caller->wait };		# or it is gone
	my $state;
	BlueGreen::Node::wait_until(sub { $state = ended() });
	eval { $caller->{harness}->kill_kill(grace => 1) };
	$state //= "not ended: $clients->{last}";
	my $name = "$kind, at $step, $victim is killed";
	my $expected = $after{"$kind $step"} ? $goal :
	  $victim eq 'to' ? $state =~ /^(?:\Q$before\E|\Q$goal\E)$/ ? $state :
		"$before or $goal" : $before;
	is($state, $expected, "$name: $state");
	my @writable = $state eq 'open' ? qw(blue green) : $state;
	ok($clients->wait_for_writes(@writable), "@writable takes writes");
	$active = $state if $state ne 'open';
	return $state;
}

my $state = 'blue';
while (@cells)
{
	my $wanted = $state eq 'open' ? 'close' : 'open';
	my ($i) = grep { $cells[$_][0] eq $wanted } 0 .. $#cells;
	if (defined $i)
	{
		my ($cell) = splice @cells, $i, 1;
		$state = cell(@$cell);
		last if $state !~ /^(?:open|blue|green)$/;
		next;
	}
	$nodes{$active}->safe_psql('SET default_transaction_read_only = off;'
		  . ($wanted eq 'open' ? q{CALL bluegreen.open_window('d', '170 s')} :
			  "CALL bluegreen.close_window('d', '$active', '170 s')"));
	$state = ended() // 'not ended';
}
is($clients->stop, '', 'no number was given twice');
wait_for_both('d');
is($clients->missing($_), '', "nothing is lost on $_") foreach qw(blue green);
compare_tables("SELECT * FROM $_", "SELECT * FROM $_", "$_ is the same")
  foreach @BlueGreen::Window::tables;
is($_->safe_psql('SELECT count(*) FROM bluegreen.conflict'), 0, 'no conflicts')
  foreach $blue, $green;

done_testing();
