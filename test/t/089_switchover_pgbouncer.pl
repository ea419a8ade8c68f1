# There, back, and there again through PgBouncer in transaction mode under load:
# no client has an error, and each transaction that was acknowledged is there
# once.  Prints the longest time that a client had to wait.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Bank;
use Test::More;

my @moves = qw(switchover rollback switchover);
my $bank = BlueGreen::Bank->new(clients => 16, rate => 1000);
$bank->let_in;
foreach my $i (0 .. $#moves)
{
	ok($bank->wait_for_more(1000), 'the load goes on');
	my $move = $bank->move($moves[$i]);
	ok(!$move->{failed}, $moves[$i]) or diag $move->{notices};
	note $move->{notices};
	like($move->{notices}, qr/routers are paused.*routers lead to/s,
		'with the router');
	$moves[$i] = $move;
}
ok($bank->wait_for_more(1000), 'and on');
$bank->let_out;
is($bank->problems, '',
	'no client had an error, each acknowledged transaction is on green, once');
my @measured = map { $bank->measure($_) } @moves;

# the other side must know the router, too
my ($blue, $green) = @{ $bank->{nodes} }{qw(blue green)};
my $found = q{SELECT severity, object, message, left(hint, 10) FROM bluegreen.preflight('d')
	WHERE "check" = 'router' AND severity <> 'ok'};
is($green->safe_psql($found), '', 'preflight finds nothing about the router');
$blue->safe_psql(q{SET default_transaction_read_only = off;
	SELECT bluegreen.drop_router('d', 'bouncer')});
is( $green->safe_psql($found),
	'warning|bouncer/app of blue|blue does not know the router of database "app": it could not bring clients back|-- on blue',
	'but that the other side does not know it, if so');
note sprintf 'measured: 16 clients, %.0f tps, the longest waits were %s ms',
  $bank->speed, join ', ', map { sprintf '%.0f', $_->{pause} } @measured;

done_testing();
