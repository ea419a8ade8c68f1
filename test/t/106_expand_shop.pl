# The demo's shop in one database: carts out of lines, in four steps, while
# shoppers of the old version, and then of both, never stop.  Each notes what he
# does in a ledger, in the same transaction; the ledger knows nothing of the
# extension, and tells at each stage what the tables must say.
use strict;
use warnings;

use BlueGreen;
use Test::More;

# The tables are a keeper's, who is no superuser; shoppers own nothing.
my $node = BlueGreen->blue('one', "bluegreen.lock_timeout = '300ms'");
$node->safe_psql(<<'SQL');
CREATE EXTENSION pg_bluegreen;
CREATE ROLE keeper LOGIN;
CREATE ROLE shopper LOGIN;
GRANT CREATE ON DATABASE postgres TO keeper;
GRANT CREATE ON SCHEMA public TO keeper;
GRANT USAGE ON SCHEMA bluegreen TO keeper;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO keeper;
GRANT SELECT ON bluegreen.change TO keeper;
SQL

sub keeper { return $node->safe_psql($_[0], user => 'keeper', timeout => 200) }

keeper(<<'SQL');
ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO shopper;
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE product (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE cart_line (
	product_id int REFERENCES product,
	customer_id int REFERENCES customer DEFERRABLE INITIALLY DEFERRED,
	quantity int NOT NULL,
	PRIMARY KEY (product_id, customer_id)
);
INSERT INTO customer SELECT i, 'customer ' || i FROM generate_series(1, 3000) i;
INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 20) i;
INSERT INTO cart_line SELECT p, c, 1 FROM generate_series(1, 20) p,
	generate_series(1, 2000) c WHERE (p + c) % 4 = 0;
CREATE SCHEMA ledger;
GRANT USAGE ON SCHEMA ledger TO shopper;
CREATE TABLE ledger.line (version text, product_id int, customer_id int,
	quantity int, at timestamptz DEFAULT now());
CREATE TABLE ledger.visit (customer_id int, at timestamptz DEFAULT now());
INSERT INTO ledger.line
	SELECT 'before', product_id, customer_id, quantity FROM cart_line;
SQL

my $document = <<'JSON';
[{"create_table": {"name": "cart", "columns": [
	{"name": "id", "type": "int", "pk": true,
		"references": {"name": "cart_customer", "table": "customer",
			"column": "id"}},
	{"name": "last_modified", "type": "timestamptz", "default": "now()"},
	{"name": "visits", "type": "int", "default": "0"}]}},
{"add_column": {"table": "customer", "column": {"name": "cart_id",
	"type": "int", "nullable": true, "references": {"name": "customer_cart",
		"table": "cart", "column": "id"}}}},
{"derive_table": {"name": "cart", "from": "cart_line",
	"transform": "SELECT customer_id AS id, now() AS last_modified FROM cart_line",
	"on_write": "merge", "on_delete": "write"}},
{"derive_table": {"name": "customer", "from": "cart_line",
	"transform": "SELECT customer_id AS id, customer_id AS cart_id FROM cart_line",
	"on_write": "patch", "on_delete": "ignore"}},
{"rename_column": {"table": "cart_line", "from": "customer_id",
	"to": "cart_id"}},
{"create_constraint": {"table": "cart_line", "name": "cart_line_cart",
	"type": "foreign_key", "columns": ["cart_id"],
	"references": {"table": "cart", "columns": ["id"]},
	"up": {"cart_id": "cart_id"}, "down": {"cart_id": "cart_id"}}}]
JSON
keeper("SELECT bluegreen.create_change('cart', \$\$$document\$\$)");

#
# Shoppers: many share the first carts, and each has one of his own
#
sub script
{
	my ($customer, @statements) = @_;
	my $ledger = 'INSERT INTO ledger.line (version, product_id, customer_id,'
	  . ' quantity) SELECT';
	return join "\n",
	  '\set p random(1, 20)', '\set q random(1, 9)', "\\set c $customer",
	  map { s/LEDGER/$ledger/r } @statements;
}

sub old_scripts
{
	my ($customer) = @_;
	return (
		script($customer, <<'SQL'),
WITH line AS (INSERT INTO cart_line VALUES (:p, :c, :q)
	ON CONFLICT (product_id, customer_id)
	DO UPDATE SET quantity = cart_line.quantity + :q RETURNING *)
LEDGER 'old', product_id, customer_id, :q FROM line;
SQL
		script($customer, <<'SQL'),
WITH line AS (UPDATE cart_line SET quantity = quantity + :q
	WHERE product_id = :p AND customer_id = :c RETURNING *)
LEDGER 'old', product_id, customer_id, :q FROM line;
SQL
		script($customer, <<'SQL'));
WITH line AS (DELETE FROM cart_line
	WHERE product_id = :p AND customer_id = :c RETURNING *)
LEDGER 'old', product_id, customer_id, -quantity FROM line;
UPDATE cart_line SET quantity = quantity
	WHERE product_id = :p AND customer_id = :c + 1000;
SQL
}

# A cart is opened, then filled; its lines are written before itself, as the
# trigger does it.
sub new_scripts
{
	my ($customer) = @_;
	my $visit = <<'SQL';
WITH cart AS (UPDATE cart SET last_modified = now(), visits = visits + 1
	WHERE id = :c RETURNING id)
INSERT INTO ledger.visit SELECT id FROM cart;
SQL
	return (
		script($customer, <<'SQL', $visit, 'COMMIT;'),
INSERT INTO cart (id) VALUES (:c) ON CONFLICT DO NOTHING;
BEGIN;
WITH line AS (INSERT INTO cart_line VALUES (:p, :c, :q)
	ON CONFLICT (product_id, cart_id)
	DO UPDATE SET quantity = cart_line.quantity + :q RETURNING *)
LEDGER 'new', product_id, cart_id, :q FROM line;
SQL
		script($customer, <<'SQL', $visit, 'COMMIT;'),
BEGIN;
WITH line AS (UPDATE cart_line SET quantity = quantity + :q
	WHERE product_id = :p AND cart_id = :c RETURNING *)
LEDGER 'new', product_id, cart_id, :q FROM line;
SQL
		script($customer, <<'SQL', $visit, 'COMMIT;'),
BEGIN;
WITH line AS (DELETE FROM cart_line
	WHERE product_id = :p AND cart_id = :c RETURNING *)
LEDGER 'new', product_id, cart_id, -quantity FROM line;
SQL
		script($customer, $visit));
}

# one who leaves with all that he has
my $pay = script(':client_id + 2101', <<'SQL');
WITH line AS (DELETE FROM cart_line WHERE customer_id = :c RETURNING *)
LEDGER 'old', product_id, customer_id, -quantity FROM line;
SQL
my %scripts = (
	old => [ old_scripts('random(1, 50)'), old_scripts(':client_id + 2101'),
		$pay ],
	new => [ new_scripts('random(1, 50)'), new_scripts(':client_id + 2201') ]);
my %path = (old => 'public', new => 'public_cart');

sub shop
{
	my ($version) = @_;
	return pgbench_start($node, name => "$version version", clients => 3,
		rate => 400, user => 'shopper', path => $path{$version},
		script => $scripts{$version}, args => ['--verbose-errors']);
}

sub leave_shop
{
	my ($bench) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(pgbench_stop($bench), "the $bench->{name} was served to the end");
	return unlike($bench->{out}, qr/error|aborted|failed/i,
		"the $bench->{name} saw no error");
}

# some more is bought by a version
sub busy
{
	my ($version) = @_;
	my $count = "SELECT count(*) FROM ledger.line WHERE version = '$version'";
	my $more = keeper($count) + 300;
	$node->poll_query_until("SELECT ($count) >= $more");
	return;
}

# What the ledger tells, against the tables, in one snapshot.  Both versions
# write meanwhile.
sub agree
{
	my ($lines, $title) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		keeper(qq{SELECT count(*) FILTER (WHERE coalesce(l.q, 0)
				<> coalesce(t.quantity, 0)), count(*) > 10000
			FROM (SELECT product_id AS p, customer_id AS c, sum(quantity) AS q
				FROM ledger.line GROUP BY 1, 2) l
			FULL JOIN $lines t (p, c, quantity) USING (p, c)}),
		'0|t', $title);
}

# the same for carts, with columns of cart_line
sub carts_agree
{
	my ($line, $customer, $title) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		keeper(qq{SELECT
			(SELECT count(*) FROM $line WHERE NOT EXISTS
				(SELECT FROM cart WHERE cart.id = $customer)),
			(SELECT count(*) FROM cart LEFT JOIN (SELECT customer_id AS id,
					count(*) AS n FROM ledger.visit GROUP BY 1) v USING (id)
				WHERE visits <> coalesce(v.n, 0)),
			(SELECT count(*) FROM $line JOIN customer c ON c.id = $customer
				WHERE c.cart_id IS DISTINCT FROM c.id),
			(SELECT count(*) >= 2000 FROM cart)}),
		'0|0|0|t', $title);
}

sub state_is
{
	my ($state) = @_;
	return $node->poll_query_until('SELECT state FROM bluegreen.change', $state);
}

# A change that has to wait for a lock that no writer minds is undone.
sub undo_waiting
{
	my ($state, $meanwhile) = @_;
	my $holder = $node->session;
	$holder->query('BEGIN; LOCK TABLE cart_line IN SHARE UPDATE EXCLUSIVE MODE');
	$meanwhile->();
	$node->poll_query_until(qq{SELECT state = '$state' AND waits_for ~ 'process'
		FROM bluegreen.change});
	my $undo = $node->session;
	$undo->send(q{CALL bluegreen.undo('cart')});
	$node->poll_query_until(q{SELECT state IN ('undoing', 'undone')
		FROM bluegreen.change});
	$holder->query('COMMIT');
	$holder->quit;
	$undo->wait;
	is($undo->errors, '', "undone while $state");
	$undo->quit;
	return;
}

sub undone
{
	my ($stage) = @_;
	is( keeper(q{SELECT state, to_regclass('cart') IS NULL,
			(SELECT count(*) FROM pg_trigger WHERE tgname ~* 'bluegreen'),
			(SELECT count(*) FROM pg_attribute
				WHERE attrelid = 'customer'::regclass
				AND attnum > 0 AND NOT attisdropped)
			FROM bluegreen.change}),
		'undone|t|0|2', "$stage: nothing is left");
	agree('cart_line', "$stage: the ledger agrees");
	return;
}

my $expand = q{CALL bluegreen.expand('cart')};
my $wait = q{CALL bluegreen.wait_for_backfill('cart', '180 s')};
my $undo = q{CALL bluegreen.undo('cart')};
my $old = shop('old');
busy('old');

#
# Undone at each stage
#
my $expanding = $node->session;
undo_waiting('expanding', sub { $expanding->send($expand) });
$expanding->wait;
$expanding->quit;
undone('expanding');

keeper("SELECT bluegreen.pause_backfill('cart'); $expand");
state_is('backfilling');
busy('old');
keeper($undo);
undone('backfilling');

keeper("SELECT bluegreen.pause_backfill('cart'); $expand");
undo_waiting('validating',
	sub { keeper(q{SELECT bluegreen.pause_backfill('cart', false)}) });
undone('validating');

keeper("$expand; $wait");
my $new = shop('new');
busy('new');
busy('old');
carts_agree('cart_line', 'customer_id', 'both versions at work: carts');
leave_shop($new);
keeper($undo);
undone('expanded');
keeper('TRUNCATE ledger.visit');

#
# And to the end
#
keeper("$expand; $wait");
agree('public_cart.cart_line', 'expanded: the new version sees what is there');
$new = shop('new');
my $both = keeper('SELECT clock_timestamp()');
busy('old');
busy('new');
agree('cart_line', 'both versions at work: the ledger agrees');
leave_shop($old);
agree('cart_line', 'both have worked: the ledger agrees');
carts_agree('cart_line', 'customer_id', 'both have worked: carts');
is( keeper(qq{SELECT count(*) > 2,
	count(*) FILTER (WHERE last_modified <> at)
	FROM (SELECT customer_id AS id, max(at) AS at
		FROM (SELECT customer_id, at FROM ledger.line
			UNION ALL SELECT customer_id, at FROM ledger.visit) touched
		WHERE customer_id BETWEEN 2101 AND 2103 GROUP BY 1
		HAVING max(at) > '$both') t JOIN cart USING (id)}),
	't|0', 'a cart was modified when its last line was, also one that went');

keeper(q{CALL bluegreen.contract('cart')});
busy('new');
agree('cart_line', 'contracted, and the new version works: the ledger agrees');
leave_shop($new);
agree('public_cart.cart_line', 'at the end: the ledger agrees');
carts_agree('cart_line', 'cart_line.cart_id', 'at the end: carts');
is( keeper(q{SELECT (SELECT count(*) FROM pg_trigger WHERE tgname ~* 'bluegreen'),
	(SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint
		WHERE contype = 'f' AND convalidated
		AND conrelid::regclass::text ~ '^c'),
	(SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = 'cart_line'::regclass AND attnum > 0)}),
	'0|cart_customer cart_line_cart cart_line_customer_id_fkey'
	  . ' cart_line_product_id_fkey customer_cart|product_id cart_id quantity',
	'the new tables alone');
unlike($node->log, qr{ (?:old|new) version/.*(?:ERROR|FATAL)},
	'the log knows of no error either');

done_testing();
