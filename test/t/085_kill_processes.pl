# Kill -9 of who calls a switchover or a rollback, and of its worker, at every
# step; see BlueGreen::KillMatrix.  And what a human can do when the other side
# cannot be asked.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::KillMatrix;
use Test::More;

my $matrix = BlueGreen::KillMatrix->new;
my ($blue, $green) = @{ $matrix->{nodes} }{qw(blue green)};
$matrix->run(qw(caller worker ended));

sub writable { return BlueGreen::KillMatrix::writable(@_) }

my $caller = $blue->session;
$caller->query(q{SET bluegreen.switchover_stop_at = 'close'});
$caller->send(q{CALL bluegreen.switchover('d', timeout => '100 s')});
$blue->poll_query_until(q{SELECT count(*) = 1 FROM bluegreen.switch
	WHERE stop_at = 'at close' AND state = 'running'});
$green->stop('immediate');
$blue->restart('immediate');
ok( $blue->poll_query_until(
		q{SELECT fence = 'in_doubt' AND active IS NULL
			AND message LIKE 'it is in doubt whether green is the active side: %'
			AND advice LIKE 'It is asked again and again. If green is lost for good, call bluegreen.force_active(''blue'') here; %'
			FROM bluegreen.switch_state}),
	'in doubt, which the view tells with what can be done');
is(writable($blue, 'doubt'), 0, 'blue does not take writes');
my (undef, undef, $err) = $blue->psql(q{CALL bluegreen.switchover('d')});
like($err, qr/cannot switch over deployment "d" during its switchover/,
	'nor another switchover');
$blue->safe_psql(q{SELECT bluegreen.force_active('blue')});
is(writable($blue, 'forced'), 1, 'blue is active, said a human');
is( $blue->safe_psql(
		'SELECT active, fence, move_state FROM bluegreen.switch_state'),
	'blue|open|failed', 'the view agrees');
$green->start;
is($green->safe_psql('SELECT active FROM bluegreen.switch_state'),
	'green', 'green thinks otherwise, for it was decided');
$green->safe_psql(q{SELECT bluegreen.force_active('blue')});
is(writable($green, 'forced'), 0, 'it is told the same');
wait_for_sync('d');
is($green->safe_psql(q{SELECT count(*) FROM w WHERE id = 'forced'}),
	1, 'and follows again');

done_testing();
