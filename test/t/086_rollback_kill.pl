# Kill -9 at every step of a rollback; see BlueGreen::KillMatrix.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::KillMatrix;
use Test::More;

my $matrix = BlueGreen::KillMatrix->new;
$matrix->{nodes}{blue}->safe_psql(q{CALL bluegreen.switchover('d')});
$matrix->run('rollback');

done_testing();
