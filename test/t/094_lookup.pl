# Lookups: the shop, seen from its new schema.  The source knows carts with ids
# of their own, the target only lines of customers.  Whose a cart is the target
# learns from another mapping of the same stream.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $customers = 60;				# of each shopper

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'");

sub stream
{
	my ($columns) = @_;
	return $blue->safe_psql("SELECT $columns FROM bluegreen.stat_stream");
}

sub batch_rows
{
	my ($rows) = @_;
	$blue->append_conf("bluegreen.batch_rows = $rows");
	$blue->reload;
	$blue->poll_query_until('SHOW bluegreen.batch_rows', $rows);
	return;
}

sub same_lines
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('d');
	return compare_tables(
		'SELECT product_id, customer_id, quantity
		FROM cart_line JOIN cart ON cart.id = cart_id',
		'TABLE cart_line', $name);
}

$blue->safe_psql(q{
	CREATE TABLE cart (
		id int GENERATED ALWAYS AS IDENTITY (START WITH 1000) PRIMARY KEY,
		customer_id int NOT NULL UNIQUE,
		last_modified timestamptz NOT NULL DEFAULT now());
	CREATE TABLE cart_line (
		cart_id int REFERENCES cart ON DELETE CASCADE,
		quantity smallint NOT NULL,
		product_id int,
		PRIMARY KEY (product_id, cart_id));
	INSERT INTO cart (customer_id) SELECT i FROM generate_series(1, 200) i;
	INSERT INTO cart_line SELECT id, 1, p
		FROM cart, generate_series(1, 4) p WHERE id % p = 0;});
$green->safe_psql(q{
	CREATE TABLE cart_owner (cart_id int PRIMARY KEY, customer_id int NOT NULL);
	CREATE TABLE cart_line (
		product_id bigint, customer_id int, quantity smallint NOT NULL,
		PRIMARY KEY (product_id, customer_id));});

my $add = qq{
\\set customer 1 + :client_id * $customers + random(0, $customers - 1)
\\set product random(1, 8)
BEGIN;
INSERT INTO cart (customer_id) VALUES (:customer) ON CONFLICT DO NOTHING;
INSERT INTO cart_line (product_id, cart_id, quantity)
	SELECT p, id, 1 FROM cart, generate_series(:product, :product + 1) p
	WHERE customer_id = :customer
	ON CONFLICT (product_id, cart_id)
	DO UPDATE SET quantity = (cart_line.quantity + 1) % 30000;
COMMIT;};
my $change = qq{
\\set customer 1 + :client_id * $customers + random(0, $customers - 1)
\\set product random(1, 9)
UPDATE cart_line SET quantity = (quantity + 7) % 30000 FROM cart
	WHERE cart.id = cart_id AND customer_id = :customer
	AND product_id <= :product;};
# another product, and another cart
my $move = qq{
\\set customer 1 + :client_id * $customers + random(0, $customers - 1)
\\set other 1 + :client_id * $customers + random(0, $customers - 1)
\\set product random(1, 9)
BEGIN;
UPDATE cart_line l SET product_id = l.product_id + 20 FROM cart
	WHERE cart.id = cart_id AND customer_id = :customer
	AND product_id = :product AND NOT EXISTS (SELECT FROM cart_line o
		WHERE o.cart_id = l.cart_id AND o.product_id = l.product_id + 20);
UPDATE cart_line l SET cart_id = o.id FROM cart c, cart o
	WHERE c.id = l.cart_id AND c.customer_id = :customer
	AND o.customer_id = :other AND l.product_id % 3 = :product % 3
	AND NOT EXISTS (SELECT FROM cart_line x
		WHERE x.cart_id = o.id AND x.product_id = l.product_id);
COMMIT;};
# the cart is gone with its lines, and a new one has some of the same
my $checkout = qq{
\\set customer 1 + :client_id * $customers + random(0, $customers - 1)
\\set product random(1, 9)
BEGIN;
DELETE FROM cart WHERE customer_id = :customer;
INSERT INTO cart (customer_id) VALUES (:customer);
INSERT INTO cart_line (product_id, cart_id, quantity)
	SELECT p, id, :product FROM cart, generate_series(1, :product) p
	WHERE customer_id = :customer;
DELETE FROM cart_line USING cart WHERE cart.id = cart_id
	AND customer_id = :customer AND product_id = :product;
COMMIT;};

my $bench = pgbench_start($blue, clients => 4, rate => 300,
	script => [ $add, $change, $move, $checkout ]);

$blue->safe_psql(q{
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'cart_line',
		key => '{product_id, customer_id}',
		lookup => 'SELECT product_id, customer_id, quantity
			FROM incoming JOIN cart_owner USING (cart_id)');
	SELECT bluegreen.map_table('d', 'cart', 'cart_owner', on_delete => 'ignore',
		transform => 'SELECT id AS cart_id, customer_id FROM cart');});
is( $blue->safe_psql(
		q{SELECT key, lookup IS NOT NULL FROM bluegreen.mapping ORDER BY 1}),
	"{cart_id}|f\n{product_id,customer_id}|t",
	'a mapping with a lookup has the key of its target');
is( $blue->safe_psql(q{SELECT m.target_table, c.name, c.is_key, c.finds
		FROM bluegreen.mapping_column c
			JOIN bluegreen.table_mapping m ON m.id = c.mapping
		WHERE m.lookup IS NOT NULL ORDER BY c.position}),
	"cart_line|cart_id|t|f\ncart_line|quantity|f|f\ncart_line|product_id|t|f",
	'rows are told from each other by the key of the source');
$blue->safe_psql("CALL bluegreen.start('d')");
wait_for_sync('d');
ok( $blue->safe_psql(q{SELECT bool_and(state = 'streaming')
	FROM bluegreen.stat_table}) eq 't', 'tables are copied under load');

#
# Under load, in batches of any size
#
sub under_load
{
	my ($rows) = @_;
	my $transactions = stream('transactions');
	batch_rows($rows);
	$blue->poll_query_until("SELECT transactions > $transactions + 900
		FROM bluegreen.stat_stream");
	return;
}

under_load($_) foreach (10000, 1, 5);
# together: the stream has not seen any of it when it starts
$blue->safe_psql("CALL bluegreen.stop('d')");
batch_rows(10000);
my $before = $blue->safe_psql('SELECT last_value FROM cart_id_seq');
$blue->poll_query_until(
	"SELECT last_value > $before + 300 FROM cart_id_seq");
$blue->safe_psql("CALL bluegreen.start('d')");
wait_for_sync('d');
ok(pgbench_stop($bench), 'the shoppers are served to the end');
same_lines('lines and quantities are the same after copy and stream');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'nothing was applied twice or to the wrong row');
is(stream('careful_batches'), 0, 'and no batch had to go row by row');

#
# Large transactions: more than a statement holds
#
$blue->safe_psql(q{
	BEGIN;
	INSERT INTO cart (customer_id) SELECT i FROM generate_series(1001, 4000) i;
	INSERT INTO cart_line SELECT id, 2, p
		FROM cart, generate_series(1, 3) p WHERE customer_id > 1000;
	UPDATE cart_line SET quantity = 3 WHERE product_id = 2;
	DELETE FROM cart_line WHERE product_id = 3;
	COMMIT;
	DELETE FROM cart WHERE customer_id BETWEEN 2000 AND 2999;});
same_lines('large transactions');

#
# Conflicts are found, and resolved, by the target's key
#
my $cart = $blue->safe_psql(
	'SELECT id FROM cart WHERE customer_id = 3001');
$green->safe_psql(q{
	INSERT INTO cart_line VALUES (101, 3001, 55);
	DELETE FROM cart_line WHERE customer_id = 3001 AND product_id IN (1, 2)});
$blue->safe_psql(qq{
	BEGIN;
	INSERT INTO cart_line (product_id, cart_id, quantity)
		VALUES (100, $cart, 1), (101, $cart, 2);
	UPDATE cart_line SET quantity = 9 WHERE cart_id = $cart AND product_id = 1;
	DELETE FROM cart_line WHERE cart_id = $cart AND product_id = 2;
	COMMIT;});
same_lines('the row is as the source says, also where it was not as it should');
is( $green->safe_psql(q{SELECT kind, existing FROM bluegreen.conflict
		ORDER BY id}),
	qq(insert_exists|{"quantity": 55, "product_id": 101, "customer_id": 3001}\n)
	  . "update_missing|\ndelete_missing|",
	'each conflict is recorded with the row that was there');
like(
	$green->safe_psql(q{SELECT key FROM bluegreen.conflict
		ORDER BY id LIMIT 1}),
	qr/cart_id\[integer\]:'$cart'.*product_id\[integer\]:'101'/,
	'its key is that of the incoming row');
ok(stream('careful_batches') > 0, 'these batches went row by row');

#
# Two incoming rows that lead to one row of the target: in one batch or not,
# what comes of it is the same
#
sub two_for_one
{
	my ($rows, $customer) = @_;
	my ($own, $other) = ($customer + 100000, -$customer);
	$blue->safe_psql(qq{INSERT INTO cart OVERRIDING SYSTEM VALUE
		VALUES ($own, $customer), ($other, $other);});
	wait_for_sync('d');
	# nothing in the first fails; only its order tells that the line is gone
	foreach my $lines (
		qq{INSERT INTO cart_line VALUES ($own, 1, 1);
		INSERT INTO cart_line VALUES ($other, 2, 1);
		DELETE FROM cart_line WHERE product_id = 1 AND cart_id = $own;},
		qq{INSERT INTO cart_line VALUES ($own, 1, 3), ($own, 1, 4);
		INSERT INTO cart_line VALUES ($other, 2, 3);
		UPDATE cart_line SET quantity = 7 WHERE product_id = 3
			AND cart_id = $own;
		INSERT INTO cart_line VALUES ($other, 2, 4);
		UPDATE cart_line SET quantity = 7 WHERE product_id = 4
			AND cart_id = $own;
		UPDATE cart_line SET quantity = 8 WHERE product_id = 4
			AND cart_id = $other;})
	{
		$blue->safe_psql("CALL bluegreen.stop('d')");
		batch_rows($rows);
		$blue->safe_psql("BEGIN; $lines COMMIT;");
		$blue->safe_psql("CALL bluegreen.start('d')");
		wait_for_sync('d');
	}
	return $green->safe_psql(qq{SELECT product_id, quantity FROM cart_line
		WHERE customer_id = $customer ORDER BY 1});
}

$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 'cart',
	transform => 'SELECT id AS cart_id, abs(customer_id) AS customer_id
		FROM cart')});
is(two_for_one(10000, 7001), "3|7\n4|8", 'two rows for one, in one batch');
is(two_for_one(1, 7002), "3|7\n4|8", '... and one by one');
$blue->safe_psql(q{DELETE FROM cart WHERE customer_id < 0 OR customer_id > 7000});
$green->safe_psql('DELETE FROM cart_line WHERE customer_id > 7000');
batch_rows(10000);
same_lines('these are gone');

#
# The shop of the demo: the cart is the customer's to know.  Whose it was must
# be known for lines that are left in it, too.
#
$blue->safe_psql(q{
	CREATE SCHEMA shop;
	CREATE TABLE shop.cart (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		last_modified timestamp NOT NULL DEFAULT now());
	CREATE TABLE shop.customer (id int PRIMARY KEY, name text NOT NULL,
		cart_id int REFERENCES shop.cart);
	ALTER TABLE shop.customer REPLICA IDENTITY FULL;
	CREATE TABLE shop.cart_line (product_id int, cart_id int
		REFERENCES shop.cart, quantity smallint NOT NULL,
		PRIMARY KEY (product_id, cart_id));
	INSERT INTO shop.cart SELECT FROM generate_series(1, 5);
	INSERT INTO shop.customer SELECT i, 'customer ' || i,
		nullif(i, greatest(i, 6)) FROM generate_series(1, 10) i;
	INSERT INTO shop.cart_line SELECT p, c, 1 FROM generate_series(1, 3) p,
		generate_series(1, 5) c;});
$green->safe_psql(q{
	CREATE SCHEMA shop;
	CREATE TABLE shop.customer (id int PRIMARY KEY, name text NOT NULL);
	CREATE TABLE shop.cart_line (product_id int, customer_id int
		REFERENCES shop.customer, quantity smallint NOT NULL,
		PRIMARY KEY (product_id, customer_id));
	CREATE TABLE shop.cart_owner (cart_id int PRIMARY KEY,
		customer_id int NOT NULL);});
$blue->safe_psql(q{
	SELECT bluegreen.map_table('d', 'shop.customer',
		transform => 'SELECT id, name FROM shop.customer');
	SELECT bluegreen.map_table('d', 'shop.customer', 'shop.cart_owner',
		on_write => 'merge', on_delete => 'ignore',
		transform => 'SELECT cart_id, id AS customer_id FROM shop.customer
			WHERE cart_id IS NOT NULL');
	SELECT bluegreen.map_table('d', 'shop.cart_line',
		lookup => 'SELECT i.product_id, o.customer_id, i.quantity
			FROM incoming i JOIN cart_owner o ON o.cart_id = i.cart_id');});
wait_for_sync('d');
my $old = $green->safe_psql('SELECT count(*) FROM bluegreen.conflict');
foreach my $rows (10000, 1)
{
	batch_rows($rows);
	$blue->safe_psql(q{
		SELECT cart_id AS old FROM shop.customer WHERE id = 1 \gset
		BEGIN;
		INSERT INTO shop.cart SELECT FROM generate_series(1, 2);
		UPDATE shop.customer SET cart_id = (SELECT max(id) FROM shop.cart)
			WHERE id = 7;
		INSERT INTO shop.cart_line SELECT 1, cart_id, 1 FROM shop.customer
			WHERE id = 7;
		UPDATE shop.customer SET cart_id = (SELECT max(id) - 1 FROM shop.cart)
			WHERE id = 1;
		DELETE FROM shop.cart_line WHERE product_id = 2 AND cart_id = :old;
		UPDATE shop.cart_line SET cart_id = (SELECT max(id) - 1 FROM shop.cart),
			quantity = quantity + 1 WHERE cart_id = :old;
		COMMIT;
		BEGIN;
		DELETE FROM shop.cart_line USING shop.customer c
			WHERE c.cart_id = cart_line.cart_id AND c.id IN (3, 7);
		UPDATE shop.customer SET cart_id = NULL WHERE id IN (3, 7);
		DELETE FROM shop.customer WHERE id = 3;
		INSERT INTO shop.customer VALUES (3, 'again', NULL);
		COMMIT;});
	wait_for_sync('d');
	compare_tables(
		'SELECT product_id, customer.id AS customer_id, quantity
		FROM shop.cart_line JOIN shop.customer USING (cart_id)',
		'TABLE shop.cart_line', "the shop, in batches of $rows");
}
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	$old, 'every line was found');
batch_rows(10000);

$blue->safe_psql(q{TRUNCATE cart_line});
wait_for_sync('d');
is($green->safe_psql('SELECT count(*) FROM cart_line'), 0, 'TRUNCATE');

done_testing();
