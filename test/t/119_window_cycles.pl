# Windows that are opened and closed again and again, towards either side in turn,
# while clients write to both: no number is given twice, nothing is lost, nothing
# loops.  WINDOWS=100 for a hundred.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Window;
use Test::More;

my $conf = "bluegreen.restart_delay = '100ms'\nbluegreen.restart_delay_max = '500ms'";
my ($blue, $green) = create_pair(guard => 1, way_back => 1, conf => $conf);
my %nodes = (blue => $blue, green => $green);
my $windows = $ENV{WINDOWS} || 5;
BlueGreen::Window::create_tables($blue, $green);
BlueGreen::Window::create_meeting($blue, $green);
$blue->safe_psql("SELECT bluegreen.create_deployment('d', 'green');"
	  . join('', map { "SELECT bluegreen.map_table('d', '$_');" }
		  @BlueGreen::Window::tables)
	  . "SELECT bluegreen.map_table('d', 'w_pair', conflict => 'green');"
	  . "CALL bluegreen.start('d')");
wait_for_both('d');

my $clients = BlueGreen::Window->new($blue, $green);
my $active = 'blue';
my ($opened, $closed);

sub conflicts
{
	my $n = 0;
	$n += $_->safe_psql('SELECT count(*) FROM bluegreen.conflict')
	  foreach $blue, $green;
	return $n;
}

# That many windows; towards another side each time but for every third.  Each is
# open until the clients have met, if they are to.
sub windows
{
	my ($n, $meet) = @_;
	($opened, $closed) = (0, 0);
	foreach my $i (1 .. $n)
	{
		my $next = $i % 3 ? $active eq 'blue' ? 'green' : 'blue' : $active;
		$nodes{$active}->safe_psql('SET default_transaction_read_only = off;'
			  . q{CALL bluegreen.open_window('d', '170 s')});
		my $before = conflicts();
		$opened++
		  if $clients->wait_for_writes('blue', 'green')
		  && (!$meet || BlueGreen::Node::wait_until(sub { conflicts() > $before }));
		$nodes{$active}->safe_psql('SET default_transaction_read_only = off;'
			  . "CALL bluegreen.close_window('d', '$next', '170 s', '100 s')");
		$active = $next;
		$closed++ if $clients->wait_for_writes($active);
	}
	return;
}

$clients->start(clients => 2);
windows($windows);
is($opened, $windows, "$windows windows are opened, and both sides take writes");
is($closed, $windows, 'and closed, towards the side that is named');
is($clients->stop, '', 'no number was given twice');
wait_for_both('d');
is($clients->missing($_), '', "nothing is lost on $_") foreach qw(blue green);
compare_tables("SELECT * FROM $_", "SELECT * FROM $_", "$_ is the same")
  foreach @BlueGreen::Window::tables;
is($_->safe_psql('SELECT count(*) FROM bluegreen.conflict'), 0, 'no conflicts')
  foreach $blue, $green;

# what a side has read of the other's and sent back would never end
my @rows = map { $_->safe_psql('SELECT sum(rows) FROM bluegreen.stream_state()') }
  $blue, $green;
wait_for_both('d');
is_deeply(
	[ map { $_->safe_psql('SELECT sum(rows) FROM bluegreen.stream_state()') }
		  $blue, $green ],
	\@rows, 'nothing loops');
note 'numbers given: ' . keys %{ $clients->{given} };

#
# Both sides change the same rows, also while windows are opened and closed
#
my $cycles = $ENV{WINDOWS} || 3;
$clients->start(clients => 2, meet => 12);
windows($cycles, 1);
is("$opened $closed", "$cycles $cycles",
	"$cycles windows more, opened and closed while both change the same rows, and meet");
is($clients->stop, '', 'no number was given twice');
wait_for_both('d') for 1 .. 2;
is($clients->missing($_), '', "nothing is lost on $_") foreach qw(blue green);
compare_tables("SELECT * FROM $_", "SELECT * FROM $_", "$_ is the same")
  foreach @BlueGreen::Window::tables, 'w_pair';
foreach my $node ($blue, $green)
{
	note $node->name . ': ' . $node->safe_psql(q{SELECT
		string_agg(kind || ' ' || n, ', ' ORDER BY kind)
		FROM (SELECT kind, count(*) AS n FROM bluegreen.conflict GROUP BY 1) c});
	is($node->safe_psql('SELECT count(*) FROM bluegreen.window_owed'),
		0, $node->name . ': nothing is owed');
	ok($node->poll_query_until(q{SELECT count(*) = 0 FROM pg_replication_slots
			WHERE slot_name ~ '_own$'}), $node->name . ': nobody watches');
}
done_testing();
