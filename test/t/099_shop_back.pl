# The shop of the demo, there and back again, under load.  Green's application
# makes carts with numbers of its own, which blue knows only as lines of
# customers; blue's goes on with them; and what blue cannot hold (last_modified,
# a cart's number) is there when the users come to green again.
use strict;
use warnings;

use BlueGreen;
use File::Basename;
use Test::More;

my $demo = dirname(__FILE__) . '/../../demo';
my $shoppers = 3;

sub demo
{
	my ($file) = @_;
	return BlueGreen::Node::slurp("$demo/$file.sql");
}

# A shopper of the demo who is many customers, the first $rounds * $shoppers.
# A customer belongs to one client, so that commit times rise with the order of
# his changes.
sub shopper
{
	my ($file, $rounds) = @_;
	my $sql = demo($file);
	$sql =~ s/:client_id \+ 1$/:client_id + 1 + $shoppers * random(0, $rounds - 1)/m
	  or die "$file: no customer";
	return $sql;
}

my ($blue, $green) = create_pair(
	guard => 1,
	way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
$blue->safe_psql(demo('blue') . demo('ledger'));
$green->safe_psql(demo('green'));
$blue->safe_psql(q{
	INSERT INTO customer SELECT i, 'customer ' || i
		FROM generate_series(5, 200) i;
	INSERT INTO cart_line SELECT p, c, 1 + (p + c) % 9
		FROM generate_series(1, 4) p, generate_series(5, 200) c
		WHERE c % 5 > 1 AND (p * 7 + c) % 3 > 0});

# Load on a side until it is closed; returns a function that waits for that.
sub load
{
	my ($node, $done, @scripts) = @_;
	my $load = pgbench_start($node, clients => $shoppers, rate => 400,
		script => \@scripts);
	$node->poll_query_until($done);
	return sub {
		ok( $node->poll_query_until(
				q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
				WHERE application_name = 'pgbench')}),
			"no client is left on $node->{name}");
		$load->{harness}->kill_kill(grace => 1);
		delete $load->{harness};
	};
}

sub load_blue
{
	my ($rounds, $changes) = @_;
	my $mark = $blue->safe_psql('SELECT count(*) FROM shopper_log') + $changes;
	return load($blue, "SELECT count(*) > $mark FROM shopper_log",
		map { shopper($_, $rounds) } qw(add change remove));
}

# until so many more carts were made
sub load_green
{
	my ($rounds, $carts) = @_;
	my $mark = $green->safe_psql('SELECT last_value FROM cart_id_seq') + $carts;
	return load($green, "SELECT last_value > $mark FROM cart_id_seq",
		map { shopper("green_$_", $rounds) } qw(add add add remove pay));
}

sub call
{
	my ($node, $call, $name) = @_;
	my ($status, undef, $err) = $node->psql($call, timeout => 180);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($status, 0, $name) or diag $err;
	return $err;
}

# SQL of each side, which knows nothing of the other's schema
sub same_shop
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('shop');
	compare_tables(
		'SELECT product_id, customer_id, quantity FROM cart_line',
		'SELECT product_id, c.id, quantity FROM cart_line l
			LEFT JOIN customer c ON c.cart_id = l.cart_id',
		"$name: each line is its customer's");
	compare_tables('SELECT id, name FROM customer',
		'SELECT id, name FROM customer', "$name: customers");
	compare_tables('TABLE product', 'TABLE product', "$name: products");
	is($_->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
		0, "$name: no conflict on $_->{name}")
	  foreach $blue, $green;
	return;
}

# {customer => "cart|last_modified"}
sub carts
{
	return map { split /\|/, $_, 2 } split /\n/, $green->safe_psql(
		q{SELECT c.id, cart.id, last_modified
		FROM customer c JOIN cart ON cart.id = c.cart_id});
}

# {customer => last change}, as blue's ledger has it
sub touched
{
	my ($mark) = @_;
	return map { split /\|/, $_, 2 } split /\n/, $blue->safe_psql(
		qq{SELECT customer_id,
			max(pg_xact_commit_timestamp(xmin)) AT TIME ZONE 'UTC'
		FROM shopper_log WHERE id > $mark GROUP BY 1});
}

#
# Green follows; a way back has to be thought of
#
$blue->safe_psql(q{SELECT bluegreen.create_deployment('shop', 'green')});
$blue->safe_psql(demo('mappings'));
my $done = load_blue(40, 100);
$blue->safe_psql(q{CALL bluegreen.start('shop')});
wait_for_sync('shop');

sub not_back
{
	return $blue->safe_psql(q{SELECT DISTINCT object
		FROM bluegreen.preflight('shop')
		WHERE "check" = 'way_back' AND severity = 'error' ORDER BY 1});
}
is( not_back(), "public.cart_line\npublic.customer",
	'the preflight names what does not come back by itself');
$green->safe_psql(demo('back_green'));
$blue->safe_psql(demo('back_blue'));
is(not_back(), '', '... and is content with the mappings back');
is( $blue->safe_psql(q{SELECT severity, object, message
		FROM bluegreen.preflight('shop')
		WHERE "check" = 'way_back'}),
	'notice|public.cart|table public.cart of green has no mapping back:'
	  . ' what is written to it there stays there',
	'but for what blue cannot hold');
is( $blue->safe_psql(q{SELECT object FROM bluegreen.preflight('shop')
		WHERE severity = 'error'}),
	'public.shopper_log', 'and the ledger, which is ours');
$blue->safe_psql(
	q{SELECT bluegreen.accept('shop', 'unmapped_table', 'public.shopper_log')});

#
# There
#
wait_for_both('shop');
call($blue, q{CALL bluegreen.switchover('shop', drain_timeout => '60 s')},
	'switchover');
$done->();
same_shop('switchover');
is($green->safe_psql('SELECT max(id) < 1000000 FROM cart'),
	't', "all carts are blue's until now");

#
# And back: carts are made, filled, changed, paid for; in one transaction a new
# customer comes, and a cart is left for another one with the same product
#
$done = load_green(40, 100);
$green->safe_psql(q{
	SELECT cart_id AS old FROM customer WHERE id = 187 \gset
	BEGIN;
	INSERT INTO customer VALUES (201, 'Ma');
	INSERT INTO cart VALUES (DEFAULT, '2026-01-01') RETURNING id AS new \gset
	UPDATE customer SET cart_id = :new WHERE id = 201;
	INSERT INTO cart_line VALUES (1, :new, 1), (4, :new, 4);
	UPDATE cart_line SET quantity = 5 WHERE cart_id = :new AND product_id = 4;
	COMMIT;
	BEGIN;
	DELETE FROM cart_line WHERE cart_id = :old;
	UPDATE customer SET cart_id = NULL WHERE id = 187;
	DELETE FROM cart WHERE id = :old;
	INSERT INTO cart VALUES (DEFAULT, '2026-01-02') RETURNING id AS new \gset
	UPDATE customer SET cart_id = :new WHERE id = 187;
	INSERT INTO cart_line SELECT p, :new, 1 + p FROM generate_series(1, 4) p;
	DELETE FROM cart_line WHERE cart_id = :new AND product_id = 2;
	COMMIT;
	UPDATE product SET price = price + 1 WHERE id = 3;});
call($green, q{CALL bluegreen.rollback('shop', drain_timeout => '60 s')},
	'rollback');
$done->();
same_shop('rollback');
is( $blue->safe_psql(q{SELECT customer_id, product_id, quantity FROM cart_line
		WHERE customer_id IN (187, 201) ORDER BY 1, 2}),
	"187|1|2\n187|3|4\n187|4|5\n201|1|1\n201|4|5",
	"blue has the lines of green's carts");
is( $blue->safe_psql(q{SELECT count(*) FROM cart_line l
		WHERE NOT EXISTS (SELECT FROM customer WHERE id = l.customer_id)}),
	0, 'and no others');
is( $blue->safe_psql(q{SELECT object FROM bluegreen.preflight('shop')
		WHERE severity = 'error'}),
	'', 'a table that only the opposite stream writes need not be mapped');
my %before = carts();
cmp_ok(scalar(grep { /^1\d{6}\|/ } values %before),
	'>', 20, "many carts are green's own");
my $paid = $green->safe_psql(
	'SELECT count(*) FROM customer WHERE cart_id IS NULL');
cmp_ok($paid, '>', 0, 'and others are gone');

#
# Blue goes on with half of them
#
my $mark = $blue->safe_psql('SELECT max(id) FROM shopper_log');
$done = load_blue(20, 300);
$blue->safe_psql(q{
	BEGIN;
	INSERT INTO customer VALUES (202, 'Lucky');
	INSERT INTO cart_line VALUES (2, 202, 1), (2, 201, 2);
	INSERT INTO shopper_log (customer_id, action)
		VALUES (202, 'add'), (201, 'add');
	COMMIT;});
call($blue, q{CALL bluegreen.switchover('shop', drain_timeout => '60 s')},
	'switchover again');
$done->();
same_shop('again');
my %touched = touched($mark);
my %expected = %before;
foreach my $customer (keys %touched)
{
	my ($cart) = split /\|/, $before{$customer} // $customer;
	$expected{$customer} = "$cart|$touched{$customer}";
}
my %after = carts();
is_deeply(\%after, \%expected,
	'a cart has the number that it had, and was modified when blue touched it');
is( $after{187}, $before{187},
	'what blue cannot hold was kept for those that it did not');
my @own = grep { $touched{$_} && $after{$_} =~ /^1\d{6}\|/ } keys %after;
cmp_ok(scalar @own, '>', 5, "blue touched carts of green's own");
cmp_ok(scalar(grep { !$before{$_} } keys %touched),
	'>', 0, 'and made some where there was none');

#
# Green serves again, and no number is used twice
#
my $highest = $green->safe_psql('SELECT max(id) FROM cart');
$done = load_green(40, 30);
cmp_ok(
	$green->safe_psql(q{WITH made AS (
		INSERT INTO cart (last_modified) VALUES (now()) RETURNING id)
	SELECT id FROM made}),
	'>', $highest, 'a new cart has a new number');
call($green, q{CALL bluegreen.rollback('shop', drain_timeout => '60 s')},
	'rollback again');
$done->();
same_shop('the end');
is($_->safe_psql('SELECT careful_batches, skipped FROM bluegreen.stat_stream'),
	'0|0', "no batch of $_->{name} went row by row")
  foreach $blue, $green;

done_testing();
