# Kill -9 of a server or of PgBouncer, and a cut of the network between the sides,
# at every step of a switchover and a rollback; see BlueGreen::KillMatrix.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::KillMatrix;
use Test::More;

BlueGreen::KillMatrix->new->run(qw(from to network router));

done_testing();
