# The shop of the demo, with more customers: carts, which blue knows only as
# lines, are on green what SQL makes of blue's lines and ledger, under load
# through copy and stream.
use strict;
use warnings;

use BlueGreen;
use File::Basename;
use Test::More;

my $demo = dirname(__FILE__) . '/../../demo';
my $shoppers = 4;

sub demo
{
	my ($file) = @_;
	return BlueGreen::Node::slurp("$demo/$file");
}

# What a shopper of the demo does, with thousands of carts.  A cart belongs to
# one client, so that commit times of its changes rise with their order.
sub many_carts
{
	my ($file) = @_;
	my $sql = demo($file);
	$sql =~ s/:client_id \+ 1$/:client_id + 1 + $shoppers * random(0, 1999)/m
	  or die "$file: no customer";
	$sql =~ s/random\(1, 4\)$/random(1, 20)/m or die "$file: no product";
	return $sql;
}

my ($blue, $green) = create_pair(conf => 'bluegreen.copy_chunk_rows = 2000');
$blue->safe_psql(demo('blue.sql'));
$blue->safe_psql(demo('ledger.sql'));
$green->safe_psql(demo('green.sql'));
$blue->safe_psql(q{
INSERT INTO customer SELECT i, 'customer ' || i FROM generate_series(5, 8000) i;
INSERT INTO product SELECT i, 'product ' || i, i * 1.5, repeat('long ', i)
	FROM generate_series(5, 20) i;});

# Lines of several ages.
foreach my $age (0 .. 4)
{
	$blue->safe_psql(qq{INSERT INTO cart_line
		SELECT p, c, 1 + (p + c) % 9
		FROM generate_series(5, 20) p, generate_series(5, 8000) c
		WHERE c % 9 > 1 AND (p * 7 + c) % 15 = $age});
}
$blue->safe_psql('ANALYZE');

my $bench = pgbench_start(
	$blue,
	clients => $shoppers,
	rate => 800,
	script => [ map { many_carts($_) } qw(add.sql change.sql remove.sql) ]);
$blue->poll_query_until('SELECT count(*) > 300 FROM shopper_log');

$blue->safe_psql("SELECT bluegreen.create_deployment('shop', 'green')");
$blue->safe_psql(demo('mappings.sql'));

# As long as green has no customers, what patches them gets no snapshot.  A cart
# that comes and goes meanwhile is none of a customer's: only green's table of
# carts, which was copied before, has seen it.
my $reader = $green->session;
$reader->query('BEGIN; LOCK TABLE customer IN SHARE MODE');
$blue->safe_psql("CALL bluegreen.start('shop')");
$blue->poll_query_until(q{SELECT count(*) = 1 FROM bluegreen.chunk_log c
	JOIN bluegreen.table_mapping m ON m.id = c.mapping
	WHERE m.source = 'cart_line'::regclass AND m.target_table = 'cart'});
$blue->safe_psql("INSERT INTO customer VALUES (9000, 'customer 9000')");
foreach my $line ('INSERT INTO cart_line VALUES (1, 9000, 1)',
	'DELETE FROM cart_line WHERE customer_id = 9000')
{
	$blue->safe_psql("BEGIN; $line; INSERT INTO shopper_log (customer_id, action)
		VALUES (9000, 'change'); COMMIT");
}
$reader->query('COMMIT');
wait_for_sync('shop');
my $copied = $blue->safe_psql('SELECT count(*) FROM shopper_log');
$blue->poll_query_until("SELECT count(*) > $copied + 3000 FROM shopper_log");
wait_for_sync('shop');
ok(pgbench_stop($bench), 'the shoppers are served to the end');
wait_for_sync('shop');

# Of each mapping's snapshot S: who was touched after it is told by the ledger,
# who was not by the lines.
is( $blue->safe_psql(q{SELECT count(*) FROM bluegreen.chunk
	WHERE source = 'cart_line'::regclass AND lower IS NULL AND upper IS NULL}),
	2,
	'what several lines feed is copied as one chunk');
my %ledger = map {
	$_ => qq{SELECT customer_id, pg_xact_commit_timestamp(l.xmin) AS at
	FROM shopper_log l
	WHERE NOT pg_visible_in_snapshot(l.xmin::text::xid8, (
		SELECT snapshot FROM bluegreen.chunk_log c
			JOIN bluegreen.table_mapping m ON m.id = c.mapping
		WHERE m.source = 'cart_line'::regclass AND m.target_table = '$_'))}
} qw(cart customer);
my $touched = $blue->safe_psql(
	"SELECT count(DISTINCT customer_id) FROM ($ledger{customer}) l");
cmp_ok($touched, '>', 1000, 'many carts are touched while the stream runs');

compare_tables(
	"WITH late AS ($ledger{cart}),
	old AS (SELECT customer_id, pg_xact_commit_timestamp(l.xmin) AS at
		FROM cart_line l WHERE customer_id NOT IN (SELECT customer_id FROM late))
	SELECT customer_id, max(at) AT TIME ZONE 'UTC'
	FROM (TABLE late UNION ALL TABLE old) t GROUP BY 1",
	'SELECT id, last_modified FROM cart',
	'a cart was modified when its newest change was committed on blue');
compare_tables(
	'SELECT product_id, customer_id, quantity FROM cart_line',
	'SELECT product_id, cart_id, quantity FROM cart_line',
	'lines and quantities are the same');
compare_tables('TABLE product', 'TABLE product', 'products are the same');
compare_tables(
	"WITH late AS ($ledger{customer})
	SELECT id, name, CASE WHEN id IN (SELECT customer_id FROM cart_line)
		OR id IN (SELECT customer_id FROM late) THEN id END FROM customer",
	'SELECT id, name, cart_id FROM customer',
	'customers are the same and each that has a cart knows it');
is( $green->safe_psql(q{SELECT count(*) FROM cart_line l
	WHERE NOT EXISTS (SELECT FROM cart WHERE id = l.cart_id)
	OR NOT EXISTS (SELECT FROM product WHERE id = l.product_id)}),
	0,
	'every line refers to a cart and a product that is there');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'nothing was applied twice or to the wrong row');

done_testing();
