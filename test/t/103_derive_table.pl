# A table out of another one, in one database: the words of a mapping, both ways,
# and writes in odd orders.  A shop under load is in 106_expand_shop.pl.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one', "bluegreen.lock_timeout = '300ms'");
$node->safe_psql('CREATE EXTENSION pg_bluegreen');

sub sql { return $node->safe_psql(@_) }

sub fails
{
	my ($sql, $pattern, $name) = @_;
	my (undef, undef, $error) = $node->psql($sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($error, $pattern, $name);
}

sub change
{
	my ($name, $operations) = @_;
	sql("SELECT bluegreen.create_change('$name', \$\$$operations\$\$)");
	return;
}

sub expand
{
	my ($name, $operations) = @_;
	change($name, $operations) if $operations;
	sql("CALL bluegreen.expand('$name');"
		  . " CALL bluegreen.wait_for_backfill('$name', '180 s')",
		timeout => 200);
	return;
}

sub end
{
	my ($name) = @_;
	sql("CALL bluegreen.undo('$name'); SELECT bluegreen.drop_change('$name')");
	return;
}

# {"derive_table": ...} of a transform; further fields as JSON
sub derive
{
	my ($name, $from, $transform, $more) = @_;
	return qq({"derive_table": {"name": "$name", "from": "$from",
		"transform": "$transform")
	  . ($more ? ", $more" : '') . '}}';
}

#
# Carts out of lines: the words of a mapping, one by one
#
sql(<<'SQL');
CREATE TABLE cart_line (
	product_id int,
	customer_id int,
	quantity int NOT NULL,
	PRIMARY KEY (product_id, customer_id)
);
INSERT INTO cart_line SELECT p, c, 1 FROM generate_series(1, 4) p,
	generate_series(1, 300) c;
CREATE TABLE cart (id int PRIMARY KEY, last_modified timestamptz);
SQL
my $carts = 'SELECT customer_id AS id, now() AS last_modified FROM cart_line';
expand('cart', '[' . derive('cart', 'cart_line', $carts,
	'"on_write": "merge", "on_delete": "write"') . ']');
fails('ALTER TABLE cart_line DROP COLUMN quantity',
	qr/trigger BLUEGREEN_\d+_1 on table cart_line depends on column quantity/,
	'a column that a trigger is given is not dropped by the way');
is( sql(<<'SQL'),
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
UPDATE cart SET last_modified = '2001-01-01';
TRUNCATE cart_line;
SELECT last_modified > '2020-01-01', count(*) FROM cart GROUP BY 1 ORDER BY 1;
SQL
	"t\nt\nt\nf\nf|2\nt|298",
	'an insert, a delete, a line that moves; one that stays as it was; all');
end('cart');

# carts that go with their last line, whoever takes it
sql(q{TRUNCATE cart; INSERT INTO cart_line VALUES (1, 1, 1), (2, 1, 1),
	(1, 2, 1), (1, 3, 1), (2, 3, 1); ALTER TABLE cart DROP last_modified});
my $delete = '[' . derive('cart', 'cart_line',
	'SELECT customer_id AS id FROM cart_line') . ']';
expand('delete', $delete);

sub carts
{
	return sql(q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM cart});
}

is( sql(q{DELETE FROM cart_line WHERE (product_id, customer_id) = (1, 1)})
	  . carts(),
	'1 2 3', 'a cart stays while there is a line');
sql(q{DELETE FROM cart_line WHERE customer_id = 1});
is(carts(), '2 3', 'and goes with the last one');
my ($one, $two) = map { $node->session } 1, 2;

# The second one waits for the first one's cart.
sub meet
{
	my ($first, $second, $expected, $name) = @_;
	$one->query("BEGIN; $first");
	$two->send($second);
	$node->poll_query_until('SELECT wait_event_type = \'Lock\''
		  . ' FROM pg_stat_activity WHERE pid = ' . $two->pid);
	$one->query('COMMIT');
	$two->wait;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($one->errors . $two->errors . carts(), $expected, $name);
}
meet('DELETE FROM cart_line WHERE (product_id, customer_id) = (1, 3)',
	'DELETE FROM cart_line WHERE (product_id, customer_id) = (2, 3)',
	'2', 'two sessions take the last two lines');
meet('INSERT INTO cart_line VALUES (2, 2, 1)',
	'DELETE FROM cart_line WHERE (product_id, customer_id) = (1, 2)',
	'2', 'one puts in a line, another one takes the last one that it sees');
sql(q{UPDATE cart_line SET customer_id = 5;
	INSERT INTO cart_line VALUES (1, 6, 1)});
is(carts(), '5 6', 'lines that move');
sql('UPDATE cart_line SET customer_id = 11 - customer_id');
is(carts(), '5 6', 'that change places');
sql('INSERT INTO cart VALUES (7); TRUNCATE cart_line');
is(carts(), '7', 'that are truncated');
end('delete');

#
# Both ways
#
sql(<<'SQL');
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
$one->query('BEGIN ISOLATION LEVEL REPEATABLE READ; TABLE noted');
expand('address', $address);
$one->query('DELETE FROM person WHERE id = 14');
like($one->errors, qr/could not serialize access/,
	'a snapshot from before does not see what was filled');
$one->query('ROLLBACK');
is( sql('SELECT count(*), sum(age) FROM address'),
	sql('SELECT count(*), sum(age::int) FROM person
		WHERE street IS NOT NULL'),
	'filled, but for rows that the transform leaves out');
is( sql(<<'SQL'),
UPDATE person SET street = 'new' WHERE id = 1;
UPDATE person SET street = NULL WHERE id = 2;
UPDATE person SET id = 10004 WHERE id = 4;
DELETE FROM person WHERE id = 6;
SELECT string_agg(person::text, ',' ORDER BY person) FROM address
	WHERE person < 9 OR person > 9999;
SQL
	'1,8,10004', 'rows that begin to match, that do not any more, that move');
is(sql('SELECT age FROM person WHERE id = 1'),
	'01', 'what is derived is not carried back: it need not be exact');
is( sql(<<'SQL'),
UPDATE address SET street = 'back' WHERE person = 8;
INSERT INTO address VALUES (3, 'back', 77), (-1, 'nobody', 1);
DELETE FROM address WHERE person = 10;
SELECT string_agg(concat_ws(' ', id, street, age), ',' ORDER BY id)
	FROM person WHERE id IN (3, 8, 10, -1);
SQL
	'3 back 77,8 back 8,10 s10 010', 'and back: patch, and ignore');
sql(<<'SQL');
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
	UPDATE person SET street = street || '!' WHERE id = new.person
		AND street NOT LIKE '%!';
	RETURN NULL; END$$;
CREATE TRIGGER note AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION note();
UPDATE person SET street = 'x' WHERE id = 8;
SQL
is(sql('SELECT street FROM address WHERE person = 8'),
	'x!', 'a write of the application\'s own trigger is carried over');
is( sql(q{SET session_replication_role = replica;
	UPDATE person SET street = 'applied' WHERE id = 12;
	SELECT street FROM address WHERE person = 12}),
	'applied!', 'where rows are applied, derived rows are written as ever');
is( sql("COPY person FROM stdin;\n70001\tn\ts\t5\n\\.\n"
		  . 'SELECT * FROM address WHERE person = 70001'),
	'70001|s|5', 'COPY');
my $name = sql(q{SELECT tgname FROM pg_trigger WHERE tgname ~ '_back$'});
sql(qq{DO \$\$BEGIN EXECUTE '/* bluegreen derives: $name */ UPDATE person'
	' SET street = ''told'' WHERE id = 16'; END\$\$});
is(sql('SELECT street FROM address WHERE person = 16'),
	'told!', 'a statement that only looks like ours is carried over');
sql('TRUNCATE address');
is(sql('SELECT count(*) > 2900 FROM person'), 't', 'truncated, ignored');
sql(q{INSERT INTO address VALUES (-2, 'nobody', 1);
	UPDATE person SET street = street || '!'; TRUNCATE person});
is(sql('SELECT string_agg(person::text, $$ $$) FROM address'),
	'-2', 'truncated, and gone');
sql(q{CALL bluegreen.undo('address')});

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
	change('no', $address =~
		  s/"SELECT id AS person, street, age::int FROM person WHERE street IS NOT NULL"/"$transform"/r);
	fails(q{CALL bluegreen.expand('no')}, $pattern, "refused: $transform");
	end('no');
}

#
# Writes that are not over when the trigger sees them
#
sql(<<'SQL');
CREATE TABLE s (id int PRIMARY KEY, v text);
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE);
CREATE TABLE w (id int PRIMARY KEY);
INSERT INTO s SELECT i, 'v' || i FROM generate_series(1, 9) i;
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
	IF new.v = 'touch' AND new.id IN (7, 31) THEN
		UPDATE s SET v = v WHERE id = new.id + 1;
	ELSIF TG_OP = 'UPDATE' AND new.v = 'outer' AND new.id IN (1, 3) THEN
		UPDATE s SET v = 'inner' WHERE id = new.id + 1;
	ELSIF TG_OP = 'UPDATE' AND old.id = 5 AND new.id = 15 THEN
		UPDATE s SET id = 6 WHERE id = 16;
	ELSIF TG_OP = 'DELETE' AND old.id = 1 THEN
		INSERT INTO s VALUES (2, 'again');
	ELSIF TG_OP = 'INSERT' AND new.v = 'short' THEN
		DELETE FROM s WHERE v = 'short';
	END IF;
	RETURN NULL; END$$;
CREATE TRIGGER meddle AFTER INSERT OR UPDATE OR DELETE ON s
	FOR EACH ROW EXECUTE FUNCTION meddle();
SQL
expand('s', '[' . derive('t', 's', 'SELECT id, v FROM s') . ', '
	  . derive('w', 'u', 'SELECT id FROM u') . ']');

sub same
{
	my ($statement, $name) = @_;
	sql($statement);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql('SELECT string_agg(t::text, $$ $$ ORDER BY t) FROM t'),
		sql('SELECT string_agg(s::text, $$ $$ ORDER BY s) FROM s'), $name);
}
same(q{UPDATE s SET v = 'outer' WHERE id IN (1, 2, 3, 4)},
	'rows that a trigger has changed once more meanwhile');
is(sql('SELECT string_agg(v, $$ $$ ORDER BY id) FROM t WHERE id < 5'),
	'outer inner outer inner', 'with what came last');
same(q{UPDATE s SET v = 'touch' WHERE id IN (7, 8)},
	'rows that it has updated meanwhile without a change');
same(q{INSERT INTO s VALUES (31, 'touch'), (32, 'touch')}, 'new ones as well');
same(q{DELETE FROM s WHERE id > 30}, 'gone');
same(q{UPDATE s SET id = id + 10 WHERE id IN (5, 6)}, 'whose key it put back');
same(q{DELETE FROM s WHERE id IN (1, 2)}, 'that it inserted anew');
same(q{INSERT INTO s VALUES (21, 'short'), (22, 'short'), (23, 'long')},
	'that it deleted');
same(q{UPDATE s SET id = -id WHERE id > 6}, 'other keys');
same(q{UPDATE s SET id = id + 1 WHERE id < 0}, 'keys of each other');
sql(q{INSERT INTO u VALUES (1, 3), (2, 4)});
same(q{DELETE FROM s WHERE id = 3}, 'a row that others refer to');
is(sql('SELECT string_agg(id::text, $$ $$) FROM w'), '2',
	'what goes with a derived row is carried over');
same(q{TRUNCATE s, t, u}, 'all of them truncated');
end('s');

#
# A row that the other direction has written meanwhile
#
sql(<<'SQL');
CREATE TABLE there (id int PRIMARY KEY, v text, w text);
CREATE TABLE back (id int PRIMARY KEY, v text, w text);
INSERT INTO there VALUES (1, 'a', 'a'), (2, 'a', 'a');
CREATE FUNCTION write_back() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
	IF new.id = 1 THEN
		UPDATE back SET v = 'b' WHERE id = 2;
	END IF;
	RETURN NULL; END$$;
CREATE TRIGGER write_back AFTER UPDATE ON there
	FOR EACH ROW EXECUTE FUNCTION write_back();
SQL
expand('back', '[' . derive('back', 'there', 'SELECT id, v, w FROM there',
	'"back": {"transform": "SELECT id, v FROM back", "on_write": "patch",
		"on_delete": "ignore"}') . ']');
sql(q{UPDATE there SET w = 'x'});
is( sql('SELECT there::text, back::text FROM there JOIN back USING (id) ORDER BY id'),
	"(1,a,x)|(1,a,x)\n(2,b,x)|(2,b,x)", 'nothing of it is lost');
end('back');

#
# An update of nothing moves a row to where the backfill was already
#
sql(<<'SQL');
CREATE TABLE wide (id int PRIMARY KEY, v text);
INSERT INTO wide SELECT i, repeat('x', 400) FROM generate_series(1, 6000) i;
DELETE FROM wide WHERE id <= 100;
VACUUM wide;
CREATE TABLE narrow (id int PRIMARY KEY);
ALTER SYSTEM SET bluegreen.backfill_rate = 1;
SELECT pg_reload_conf();
SQL
change('wide', '[' . derive('narrow', 'wide', 'SELECT id FROM wide') . ']');
$one->query('BEGIN ISOLATION LEVEL REPEATABLE READ; TABLE noted');
sql(q{CALL bluegreen.expand('wide')});
$node->poll_query_until(q{SELECT bool_or(next_block > 0 AND NOT done)
	FROM bluegreen.backfill});
$one->query(q{UPDATE wide SET v = v WHERE id BETWEEN 5850 AND 5859; COMMIT});
is( $one->errors . sql(q{UPDATE wide SET v = v WHERE id BETWEEN 5800 AND 5849;
	SELECT count(*) > 50 FROM wide, bluegreen.backfill
	WHERE id BETWEEN 5800 AND 5859
		AND (wide.ctid::text::point)[0] < next_block AND NOT done}),
	't', 'rows come to lie where it was, also from an old snapshot');
sql(q{ALTER SYSTEM RESET bluegreen.backfill_rate; SELECT pg_reload_conf()});
expand('wide');
is(sql('SELECT count(*) FROM narrow'), 5900, 'and are there all the same');
end('wide');

#
# Owners, and constraints that are looked at later
#
sql(<<'SQL');
CREATE ROLE keeper;
CREATE ROLE app LOGIN;
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent SELECT generate_series(1, 9);
CREATE TABLE source (id int PRIMARY KEY, n int);
CREATE TABLE target (id int PRIMARY KEY
	REFERENCES parent DEFERRABLE INITIALLY DEFERRED, n int, by text);
CREATE FUNCTION note_who() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN new.by = current_user; RETURN new; END';
CREATE TRIGGER who BEFORE INSERT OR UPDATE ON target
	FOR EACH ROW EXECUTE FUNCTION note_who();
INSERT INTO source VALUES (1, 1);
ALTER TABLE parent OWNER TO keeper;
ALTER TABLE source OWNER TO keeper;
ALTER TABLE target OWNER TO keeper;
GRANT INSERT ON source TO app;
SQL
expand('target', '[' . derive('target', 'source', 'SELECT id, n FROM source')
	  . ']');
is( $node->safe_psql('INSERT INTO source VALUES (2, 2)', user => 'app')
	  . sql(q{SELECT string_agg(id || ' ' || n || ' ' || by, ', ' ORDER BY id)
		FROM target}),
	'1 1 keeper, 2 2 keeper', 'derived rows are written by the owner');
my (undef, undef, $error) =
  $node->psql('INSERT INTO source VALUES (20, 3)', user => 'app');
like($error, qr/violates foreign key constraint "target_id_fkey"/,
	'deferred constraints hold');
end('target');

sql(<<'SQL');
CREATE TABLE later (id int PRIMARY KEY DEFERRABLE, n int UNIQUE);
CREATE TABLE plain (id int, n int UNIQUE, must int NOT NULL);
CREATE TABLE strict (id int PRIMARY KEY, must int NOT NULL);
CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
SQL
my $has_virtual = sql('SHOW server_version_num') >= 180000;
sql('CREATE TABLE computed (id int PRIMARY KEY, n int GENERATED ALWAYS AS (id) '
	  . ($has_virtual ? 'VIRTUAL)' : 'STORED)'));
@refused = (
	[ $has_virtual ? derive('w', 'computed', 'SELECT id FROM computed WHERE n > 0')
		: undef,
		qr/generated column "n" is virtual/ ],
	[ $has_virtual ? derive('t', 'computed', 'SELECT id, computed::text AS v FROM computed')
		: undef,
		qr/generated column "n" is virtual/ ],
	[ derive('t', 'later', 'SELECT id FROM later'),
		qr/constraint "later_pkey" of table "later", from whose columns the key is derived, is deferrable/ ],
	[ derive('later', 't', 'SELECT id FROM t'),
		qr/table "later" has no unique index on the key that is not deferrable/ ],
	[ derive('plain', 't', 'SELECT id, 1 AS must FROM t', '"key": ["id"]'),
		qr/table "plain" has no unique index on the key/ ],
	[ derive('plain', 't', 'SELECT id AS n, 1 AS must FROM t', '"key": ["n"]'),
		qr/whose columns are NOT NULL/ ],
	[ derive('strict', 't', 'SELECT id FROM t'),
		qr/column "must" is NOT NULL without a default, and not given/ ],
	[ derive('always', 't', 'SELECT id FROM t'),
		qr/cannot insert a non-DEFAULT value into column "id"/ ],
	[ derive('w', 't', 'SELECT v AS id FROM t'),
		qr/column "id" is of type integer, but the transform gives type text/ ],
	[ derive('w', 't', 'SELECT id FROM t') . ', '
		  . derive('u', 'w', 'SELECT id FROM w'),
		qr/table "w" is part of another derive_table/ ],
	[ derive('w', 't', 'SELECT id FROM t') . ', '
		  . derive('w', 'u', 'SELECT id FROM u',
			'"back": {"transform": "SELECT id FROM w"}'),
		qr/table "w" is part of another derive_table/ ]);
foreach my $case (@refused)
{
	my ($operation, $pattern) = @$case;
	next if !defined $operation;
	change('no', "[$operation]");
	fails(q{CALL bluegreen.expand('no')}, $pattern, "refused: $pattern");
	end('no');
}

done_testing();
