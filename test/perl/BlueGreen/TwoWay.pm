package BlueGreen::TwoWay;

# Helpers for tests in which both sides take writes.

use strict;
use warnings;

use BlueGreen;
use Exporter 'import';
use Test::More ();

our @EXPORT = qw(open_with close_to stop_both start_both settle);

my %open;

# A window in which all mappings have that policy; one that is open is closed
# before, towards blue.
sub open_with
{
	my ($deployment, $policy, $blue, $green) = @_;
	close_to($deployment, 'blue', $blue, $green) if $open{$deployment};
	$_->safe_psql('SET default_transaction_read_only = off;'
		  . "UPDATE bluegreen.table_mapping SET conflict = '$policy'")
	  foreach $blue, $green;
	$blue->safe_psql("CALL bluegreen.open_window('$deployment', '170 s')");
	$open{$deployment} = 1;
	return;
}

# Close it towards a side.
sub close_to
{
	my ($deployment, $side, $blue, $green) = @_;
	$blue->safe_psql(
		"CALL bluegreen.close_window('$deployment', '$side', '170 s', '100 s')");
	$open{$deployment} = 0;
	return;
}

# Nothing is sent between these two, so what both sides do is concurrent.
sub stop_both
{
	my ($deployment, @nodes) = @_;
	$_->safe_psql("CALL bluegreen.stop('$deployment')") for @nodes;
	return;
}

sub start_both
{
	my ($deployment, @nodes) = @_;
	$_->safe_psql("CALL bluegreen.start('$deployment')") for @nodes;
	return;
}

# Both streams run, whatever has just happened to them, and all that either side
# has written is on the other one: also rows that a side owed and sent for that,
# until there are no more.
sub settle
{
	my ($deployment, @nodes) = @_;
	my $before = '';
	foreach my $round (1 .. 20)
	{
		foreach my $node (@nodes)
		{
			$node->poll_query_until(q{SELECT state = 'streaming'
				AND NOT EXISTS (SELECT FROM bluegreen.window_owed)
				FROM bluegreen.stat_stream}) or return 0;
		}
		wait_for_both($deployment);
		my $rows = join ' ',
		  map { $_->safe_psql('SELECT rows FROM bluegreen.stat_stream') } @nodes;
		return 1 if $rows eq $before;
		$before = $rows;
	}
	return 0;
}

1;
