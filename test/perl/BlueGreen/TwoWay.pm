package BlueGreen::TwoWay;

# Helpers for tests in which both sides take writes.

use strict;
use warnings;

use BlueGreen;
use Exporter 'import';
use Test::More ();

our @EXPORT = qw(set_window stop_both start_both);

# Give the deployment's row on both sides that state, and all mappings that
# policy, by hand; wait until both streams go by it.
sub set_window
{
	my ($deployment, $state, $policy, @nodes) = @_;
	foreach my $node (@nodes)
	{
		$node->safe_psql(qq{
			UPDATE bluegreen.table_mapping SET conflict = '$policy';
			UPDATE bluegreen.deployment SET "window" = '$state',
				mapping_version = mapping_version + 1});
	}
	foreach my $node (@nodes)
	{
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		Test::More::ok(
			$node->poll_query_until(q{SELECT state = 'streaming'
				FROM bluegreen.stat_stream}), "$node->{name}: window is $state");
	}
	wait_for_both($deployment);
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

1;
