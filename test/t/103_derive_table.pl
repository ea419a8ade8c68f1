# A table out of another one, in one database: the shop's cart, while old and
# new version work.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one');
$node->safe_psql('CREATE EXTENSION pg_bluegreen');
$node->safe_psql(<<'SQL');
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE product (id int PRIMARY KEY, title text NOT NULL);
CREATE TABLE cart_line (
	product_id int REFERENCES product,
	customer_id int REFERENCES customer,
	quantity int NOT NULL CHECK (quantity > 0),
	PRIMARY KEY (product_id, customer_id)
);
INSERT INTO customer SELECT i, 'customer ' || i FROM generate_series(1, 400) i;
INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 20) i;
INSERT INTO cart_line SELECT p, c, 1 FROM generate_series(1, 20) p,
	generate_series(1, 300) c WHERE (p + c) % 3 = 0;
SQL

sub fails
{
	my ($sql, $pattern, $name) = @_;
	my (undef, undef, $error) = $node->psql($sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($error, $pattern, $name);
}

sub expand
{
	$node->safe_psql("CALL bluegreen.expand('$_[0]');"
		  . " CALL bluegreen.wait_for_backfill('$_[0]', '180 s')",
		timeout => 200);
	return;
}

# lines without a cart
sub wrong
{
	return $node->safe_psql('SELECT count(*) FROM public.cart_line l WHERE
		NOT EXISTS (SELECT FROM public.cart c WHERE c.id = l.customer_id)');
}

my $shop = <<'JSON';
[{"create_table": {"name": "cart", "columns": [
	{"name": "id", "type": "int", "pk": true,
		"references": {"name": "cart_customer", "table": "customer",
			"column": "id"}},
	{"name": "last_modified", "type": "timestamptz", "default": "now()"},
	{"name": "visits", "type": "int", "default": "0"}]}},
{"derive_table": {"name": "cart", "from": "cart_line",
	"transform": "SELECT customer_id AS id, now() AS last_modified FROM cart_line",
	"on_write": "merge", "on_delete": "write"}},
{"rename_column": {"table": "cart_line", "from": "customer_id",
	"to": "cart_id"}},
{"create_constraint": {"table": "cart_line", "name": "cart_line_cart",
	"type": "foreign_key", "columns": ["cart_id"],
	"references": {"table": "cart", "columns": ["id"]},
	"up": {"cart_id": "cart_id"}, "down": {"cart_id": "cart_id"}}}]
JSON
$node->safe_psql("SELECT bluegreen.create_change('cart', \$\$$shop\$\$)");

my $old_script = <<'SQL';
\set p random(1, 20)
\set c random(1, 400)
INSERT INTO public.cart_line VALUES (:p, :c, 1) ON CONFLICT DO NOTHING;
UPDATE public.cart_line SET quantity = quantity + 1
	WHERE product_id = :p AND customer_id = :c;
DELETE FROM public.cart_line WHERE quantity > 3 AND customer_id = :c;
SQL
my $new_script = <<'SQL';
\set p random(1, 20)
\set c random(1, 400)
INSERT INTO public_cart.cart (id) VALUES (:c)
	ON CONFLICT (id) DO UPDATE SET last_modified = now(),
	visits = cart.visits + 1;
INSERT INTO public_cart.cart_line (product_id, cart_id, quantity)
	VALUES (:p, :c, 1) ON CONFLICT (product_id, cart_id)
	DO UPDATE SET quantity = excluded.quantity + 1;
SELECT count(*) FROM public_cart.cart_line JOIN public_cart.cart
	ON cart.id = cart_line.cart_id WHERE cart_id = :c;
SQL

my $old = pgbench_start($node, name => 'old version', clients => 2, script => $old_script);
expand('cart');
is(wrong(), 0, 'expanded under load: each line has its cart');
my $new = pgbench_start($node, name => 'new version', clients => 2, script => $new_script);
$node->poll_query_until('SELECT sum(visits) > 500 FROM cart');
ok(pgbench_stop($new), 'the new version had no error');
$node->safe_psql(q{CALL bluegreen.undo('cart')}, timeout => 200);
is( $node->safe_psql(q{SELECT state, to_regclass('public.cart') IS NULL
		FROM bluegreen.change}),
	'undone|t', 'undone under load');
is( $node->safe_psql(q{SELECT count(*) FROM pg_trigger
		WHERE tgname ILIKE '%bluegreen%'}),
	0, 'no trigger is left');
expand('cart');
is(wrong(), 0, 'and expanded again');
$new = pgbench_start($node, name => 'new version', clients => 2, script => $new_script);
$node->poll_query_until('SELECT sum(visits) > 500 FROM cart');
ok(pgbench_stop($old), 'the old version had no error');
ok(pgbench_stop($new), 'nor had the new one');
is(wrong(), 0, 'both have worked side by side');
is( $node->safe_psql('SELECT count(*) FROM public_cart.cart_line n
	FULL JOIN public.cart_line o ON (n.product_id, n.cart_id)
		= (o.product_id, o.customer_id)
	WHERE n.quantity IS DISTINCT FROM o.quantity'),
	0, 'and see the same lines');

# each word of a mapping, one by one
is( $node->safe_psql(<<'SQL'),
DELETE FROM cart_line WHERE customer_id = 1;
UPDATE cart SET last_modified = '2001-01-01' WHERE id IN (1, 2, 3);
INSERT INTO cart_line VALUES (1, 1, 1);
SELECT last_modified > '2020-01-01' FROM cart WHERE id = 1;
UPDATE cart SET last_modified = '2001-01-01' WHERE id = 1;
DELETE FROM cart_line WHERE customer_id = 1;
SELECT last_modified > '2020-01-01' FROM cart WHERE id = 1;
DELETE FROM cart_line WHERE customer_id IN (2, 3);
INSERT INTO cart_line VALUES (1, 2, 1);
UPDATE cart SET last_modified = '2001-01-01' WHERE id IN (2, 3);
UPDATE cart_line SET customer_id = 3 WHERE customer_id = 2;
SELECT bool_and(last_modified > '2020-01-01') FROM cart WHERE id IN (2, 3);
UPDATE cart SET last_modified = '2001-01-01' WHERE id = 3;
UPDATE cart_line SET quantity = quantity WHERE customer_id = 3;
SELECT last_modified > '2020-01-01' FROM cart WHERE id = 3;
SQL
	"t\nt\nt\nf",
	'an insert, a delete, a line that moves; one that stays as it was');
$new = pgbench_start($node, name => 'new version', clients => 2, script => $new_script);
$node->safe_psql(q{CALL bluegreen.contract('cart')}, timeout => 200);
ok(pgbench_stop($new), 'contracted while the new version works');
is( $node->safe_psql(q{SELECT (SELECT count(*) FROM pg_trigger
		WHERE tgname ILIKE '%bluegreen%'), (SELECT string_agg(conname, ' '
		ORDER BY conname) FROM pg_constraint
		WHERE conrelid = 'cart_line'::regclass AND contype = 'f'),
		(SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = 'cart_line'::regclass AND attnum > 0)}),
	'0|cart_line_cart cart_line_customer_id_fkey cart_line_product_id_fkey'
	  . '|product_id cart_id quantity',
	'contracted');

#
# Both ways
#
$node->safe_psql(<<'SQL');
CREATE TABLE person (id int PRIMARY KEY, name text, street text, age text);
INSERT INTO person SELECT i, 'n' || i, CASE WHEN i % 2 = 0 THEN 's' || i END,
	'0' || i FROM generate_series(1, 3000) i;
CREATE TABLE noted (id int);
SQL
my $address = <<'JSON';
[{"create_table": {"name": "address", "columns": [
	{"name": "person", "type": "int", "pk": true},
	{"name": "street", "type": "text"},
	{"name": "age", "type": "int"}]}},
{"derive_table": {"name": "address", "from": "person",
	"transform": "SELECT id AS person, street, age::int FROM person WHERE street IS NOT NULL",
	"back": {"transform": "SELECT person AS id, street, age::text FROM address",
		"on_write": "patch", "on_delete": "ignore"}}}]
JSON
$node->safe_psql("SELECT bluegreen.create_change('address', \$\$$address\$\$)");
expand('address');
is( $node->safe_psql('SELECT count(*), sum(age) FROM address'),
	$node->safe_psql('SELECT count(*), sum(age::int) FROM person
		WHERE street IS NOT NULL'),
	'filled, but for rows that the transform leaves out');
is( $node->safe_psql(<<'SQL'),
UPDATE person SET street = 'new' WHERE id = 1;
UPDATE person SET street = NULL WHERE id = 2;
UPDATE person SET id = 10004 WHERE id = 4;
DELETE FROM person WHERE id = 6;
SELECT string_agg(person::text, ',' ORDER BY person) FROM address
	WHERE person < 9 OR person > 9999;
SQL
	'1,8,10004', 'rows that begin to match, that do not any more, that move');
is($node->safe_psql('SELECT age FROM person WHERE id = 1'),
	'01', 'what is derived is not carried back: it need not be exact');
is( $node->safe_psql(<<'SQL'),
UPDATE address SET street = 'back' WHERE person = 8;
INSERT INTO address VALUES (3, 'back', 77), (-1, 'nobody', 1);
DELETE FROM address WHERE person = 10;
SELECT string_agg(concat_ws(' ', id, street, age), ',' ORDER BY id)
	FROM person WHERE id IN (3, 8, 10, -1);
SQL
	'3 back 77,8 back 8,10 s10 010', 'and back: patch, and ignore');
$node->safe_psql(<<'SQL');
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
	UPDATE person SET street = street || '!' WHERE id = new.person
		AND street NOT LIKE '%!';
	RETURN NULL; END$$;
CREATE TRIGGER note AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION note();
UPDATE person SET street = 'x' WHERE id = 8;
SQL
is($node->safe_psql('SELECT street FROM address WHERE person = 8'),
	'x!', 'a write of the application\'s own trigger is carried over');
is( $node->safe_psql(q{SET session_replication_role = replica;
	UPDATE person SET street = 'applied' WHERE id = 12;
	SELECT street FROM address WHERE person = 12}),
	'applied', 'session_replication_role = replica');
is( $node->safe_psql("COPY person FROM stdin;\n70001\tn\ts\t5\n\\.\n"
		  . 'SELECT * FROM address WHERE person = 70001'),
	'70001|s|5', 'COPY');
$node->safe_psql(q{CALL bluegreen.undo('address')});

my @refused = (
	[ 'SELECT id AS person FROM public.person',
		qr/must select from the table that it derives from/ ],
	[ 'SELECT p.id AS person FROM person p, noted n', qr/from one table/ ],
	[ 'SELECT max(id) AS person FROM person', qr/one row for each/ ],
	[ 'SELECT id AS person, (SELECT 1) AS age FROM person', qr/subqueries/ ],
	[ 'SELECT id AS person, random() AS age FROM person', qr/volatile/ ],
	[ 'SELECT street FROM person', qr/key column "person" is not given/ ],
	[ 'SELECT id AS person, 1 AS other FROM person',
		qr/column "other" of table "address" does not exist/ ],
	[ 'SELECT FROM', qr/syntax error|key column/ ]);
foreach my $case (@refused)
{
	my ($transform, $pattern) = @$case;
	my $document = $address =~
	  s/"SELECT id AS person, street, age::int FROM person WHERE street IS NOT NULL"/"$transform"/r;
	$node->safe_psql("SELECT bluegreen.create_change('no', \$\$$document\$\$)");
	fails(q{CALL bluegreen.expand('no')}, $pattern, "refused: $transform");
	$node->safe_psql(q{CALL bluegreen.undo('no');
		SELECT bluegreen.drop_change('no')});
}

done_testing();
