# What a change keeps in step, where it is easy to lose: a "down" that reads other
# columns, triggers that were disabled, partitions that come back, collations,
# derived tables of other types, and what is refused because it would go wrong.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one', "bluegreen.lock_timeout = '20s'");
$node->safe_psql(<<'SQL');
CREATE EXTENSION pg_bluegreen;
CREATE EXTENSION postgres_fdw;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
GRANT CREATE ON DATABASE postgres TO app;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO app;
GRANT pg_read_all_stats TO app;
SQL

sub app { return $node->safe_psql($_[0], user => 'app', timeout => 200) }

sub change
{
	my ($name, @operations) = @_;
	app("SELECT bluegreen.create_change('$name', \$\$["
		  . join(', ', @operations) . "]\$\$)");
	return;
}

my $calls = q{CALL bluegreen.expand('%1$s');
	CALL bluegreen.wait_for_backfill('%1$s', '180 s')};

sub expand { return app(sprintf($calls, $_[0])) }

sub end
{
	return app("CALL bluegreen.undo('$_[0]'); SELECT bluegreen.drop_change('$_[0]')");
}

sub fails_with
{
	my ($sql, $pattern, $name) = @_;
	my (undef, undef, $error) =
	  $node->psql($sql, timeout => 200, user => 'app');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($error, $pattern, $name);
}

sub refused
{
	my ($name, $pattern, @operations) = @_;
	change($name, @operations);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	fails_with(sprintf($calls, $name), $pattern, "refused: $name");
	return end($name);
}

#
# "down" reads another column than its own
#
app('CREATE TABLE price (id int PRIMARY KEY, price text, cur text, k int DEFAULT 1)');
change('price', q({"alter_column": {"table": "price", "column": "price",
	"type": "numeric", "up": "split_part(price, ' ', 1)::numeric",
	"down": "round(price / (5 - k), 2) || ' ' || cur"}}));
expand('price');
app(q{INSERT INTO public_price.price VALUES (1, 9.4950, 'USD');
	UPDATE public_price.price SET cur = 'EUR' WHERE id = 1});
is( app('SELECT o.price, n.price FROM price o JOIN public_price.price n USING (id)'),
	'2.37 EUR|9.4950', 'the old version gets its value, the new one keeps its own');
app(q{SET bluegreen.revert_window = '1d'; CALL bluegreen.contract('price')});
app('UPDATE public_price.price SET k = 5 WHERE id = 1');
is(app('SELECT n.price FROM public_price.price n'), '9.4950',
	'also where the old one cannot have any');
is( app(q{BEGIN;
	INSERT INTO public_price.price SELECT i, i, 'USD', 5 FROM generate_series(10, 300) i;
	SELECT count(*) < 5 FROM pg_backend_memory_contexts
		WHERE name = 'pg_bluegreen expression';
	COMMIT}),
	't', 'what fails for each row is not kept until the end of the transaction');
app(q{CALL bluegreen.contract('price')});

#
# A trigger that was disabled for a while
#
app('CREATE TABLE loaded (id int PRIMARY KEY, c text); INSERT INTO loaded VALUES (1, 1)');
my $to_int = q({"alter_column": {"table": "%s", "column": "c", "type": "int",
	"up": "c::int", "down": "c::text"}});
sub to_int { return sprintf($to_int, $_[0]) }

# what pg_restore --disable-triggers does
my $load = q{ALTER TABLE loaded DISABLE TRIGGER USER;
	INSERT INTO loaded VALUES (%s); ALTER TABLE loaded ENABLE TRIGGER USER};
change('loaded', to_int('loaded'));
app(q{SELECT bluegreen.pause_backfill('loaded'); CALL bluegreen.expand('loaded')});
app(sprintf($load, "2, '2'"));
fails_with(q{SELECT bluegreen.pause_backfill('loaded', false);
	CALL bluegreen.wait_for_backfill('loaded', '180 s')},
	qr/rows of table "loaded" are not filled, because its trigger does not fire/,
	'the backfill notices');
end('loaded');
change('loaded', to_int('loaded'));
expand('loaded');
app(sprintf($load, "3, '3'"));
my $out = qr/trigger "zz_bluegreen_\d+" of table "loaded" was dropped or disabled for a while, so its rows may be out of step/;
fails_with(q{CALL bluegreen.contract('loaded')}, $out, 'and the contract');
fails_with(q{SET bluegreen.revert_window = '1d'; CALL bluegreen.contract('loaded')},
	$out, 'one that can be undone as well');
is( app('SELECT count(*), count(c) FROM loaded'), '3|3',
	'nothing has been dropped');
end('loaded');

#
# A partition that is detached, written, and attached again meanwhile
#
app(<<'SQL');
CREATE TABLE back (id int, c text) PARTITION BY LIST (id);
CREATE TABLE back_1 PARTITION OF back FOR VALUES IN (1);
CREATE TABLE back_2 PARTITION OF back FOR VALUES IN (2);
CREATE TABLE back_3 PARTITION OF back FOR VALUES IN (3);
INSERT INTO back VALUES (1, '1'), (2, '2'), (3, '3');
SQL
change('back', to_int('back'));
app('ALTER TABLE back DETACH PARTITION back_2');
app(q{SELECT bluegreen.pause_backfill('back'); CALL bluegreen.expand('back')});
my $locker = $node->session;
$locker->query('BEGIN; SELECT FROM back_3 FOR UPDATE');
app(q{SELECT bluegreen.pause_backfill('back', false)});
$node->poll_query_until(q{SELECT count(*) = 1 FROM bluegreen.backfill_progress
	WHERE relation = 'back_1'::regclass AND state = 'done'});
app(q{ALTER TABLE back DETACH PARTITION back_1; INSERT INTO back_1 VALUES (1, '11');
	ALTER TABLE back ATTACH PARTITION back_1 FOR VALUES IN (1);
	ALTER TABLE back_2 ADD LIKE_BACK int});
my ($hidden, $type) = split /\|/, $node->safe_psql(q{SELECT attname, atttypid::regtype
	FROM pg_attribute WHERE attrelid = 'back'::regclass AND attname LIKE 'bluegreen%'});
app(qq{ALTER TABLE back_2 DROP COLUMN like_back, ADD COLUMN $hidden $type;
	ALTER TABLE back ATTACH PARTITION back_2 FOR VALUES IN (2)});
$locker->query('COMMIT');
app(q{CALL bluegreen.wait_for_backfill('back', '180 s')});
is(app('SELECT string_agg(c::text, $$ $$ ORDER BY c) FROM public_back.back'),
	'1 2 3 11', 'rows of partitions that come back are filled');
end('back');

#
# A row without a key that moves, with a generated column
#
app(<<'SQL');
CREATE TABLE made (id int, k int, d text, g int GENERATED ALWAYS AS (k * 10) STORED)
	PARTITION BY LIST (k);
CREATE TABLE made_1 PARTITION OF made FOR VALUES IN (1);
CREATE TABLE made_2 PARTITION OF made FOR VALUES IN (2);
SQL
change('made', q({"drop_column": {"table": "made", "column": "d", "down": "'lost'"}}));
expand('made');
app(q{INSERT INTO made VALUES (1, 1, 'kept');
	UPDATE public_made.made SET k = 2 WHERE id = 1});
is(app('SELECT k, d, g FROM made'), '2|kept|20', 'is no new one');
end('made');

#
# What an expression reads has the column's collation, and is read as it was
# written
#
app(<<'SQL');
CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2',
	deterministic = false);
CREATE TABLE named (id int PRIMARY KEY, c text COLLATE caseless, phone text);
INSERT INTO named VALUES (1, 'ADMIN', '+49 D1');
SQL
change('named', q({"alter_column": {"table": "named", "column": "c", "type": "int",
	"up": "CASE WHEN c = 'admin' THEN 1 ELSE 0 END",
	"down": "CASE c WHEN 1 THEN 'admin' END"}}),
	q({"alter_column": {"table": "named", "column": "phone", "type": "bigint",
	"up": "regexp_replace(phone, '\\\\D', '', 'g')::bigint", "down": "'+' || phone"}}));
expand('named');
app(q{SET standard_conforming_strings = off; SET transform_null_equals = on;
	INSERT INTO named VALUES (2, 'Admin', '+49 D2')});
is(app('SELECT string_agg(concat_ws($$ $$, id, c, phone), $$,$$ ORDER BY id) FROM public_named.named'),
	'1 1 491,2 1 492', 'like the same SQL over the table');
end('named');

#
# Derived tables: types, collations, foreign keys where rows are applied
#
app(<<'SQL');
CREATE TABLE source (id int PRIMARY KEY, total int, name text COLLATE caseless);
INSERT INTO source VALUES (1, 1, 'Active'), (2, 2, 'gone');
CREATE TABLE target (id int PRIMARY KEY, total bigint, price numeric(10, 2),
	name varchar(10));
INSERT INTO target VALUES (1);
CREATE TABLE other (id text PRIMARY KEY);
CREATE TABLE home (id int PRIMARY KEY);
INSERT INTO home VALUES (1), (2);
CREATE TABLE lived (id int PRIMARY KEY REFERENCES home, total int);
SQL
change('patch', q({"derive_table": {"name": "target", "from": "source",
	"on_write": "patch", "on_delete": "ignore", "transform":
	"SELECT id, total, total / 2.0 AS price, name FROM source WHERE name = 'active'"}}));
expand('patch');
my $target = 'SELECT ctid, total, price, name FROM target';
is(app($target), '(0,2)|1|0.50|Active', 'a patch of other types');
app('UPDATE source SET total = total WHERE id = 1');
is(app($target), '(0,2)|1|0.50|Active', 'what is the same is not written');
app('UPDATE source SET total = 5 WHERE id = 1');
is(app($target), '(0,3)|5|2.50|Active', 'what is not is');
fails_with(q{UPDATE source SET name = 'active     ' WHERE id = 1;
	UPDATE source SET name = 'ACTIVE' WHERE id = 1},
	qr/^$/, 'the collation decides');
end('patch');
refused('key', qr/column "id" is of type text, but the transform gives type integer; write a cast/,
	q({"derive_table": {"name": "other", "from": "source",
	"transform": "SELECT id FROM source"}}));
change('lived', q({"derive_table": {"name": "lived", "from": "source",
	"transform": "SELECT id, total FROM source"}}));
expand('lived');
my (undef, undef, $error) =
  $node->psql('SET session_replication_role = replica; INSERT INTO source VALUES (3, 3)');
like($error, qr/insert or update on table "lived" violates foreign key/,
	'foreign keys hold where rows are applied');
is( $node->safe_psql(q{SET session_replication_role = replica;
	INSERT INTO home VALUES (3); INSERT INTO source VALUES (3, 3);
	SHOW session_replication_role; SELECT count(*) FROM lived}),
	"replica\n3", 'and rows are derived there');
end('lived');

#
# Refused, because it would go wrong
#
app(<<'SQL');
CREATE DOMAIN state AS text DEFAULT 'new';
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE item (id int PRIMARY KEY, s int, p positive);
INSERT INTO item VALUES (1, 1, 1);
CREATE TABLE far (id int, c text) PARTITION BY LIST (id);
SQL
$node->safe_psql(q{CREATE SERVER away FOREIGN DATA WRAPPER postgres_fdw;
	GRANT USAGE ON FOREIGN SERVER away TO app});
app('CREATE FOREIGN TABLE far_1 PARTITION OF far FOR VALUES IN (1) SERVER away');
refused('state', qr/type public.state has a default, which all rows would have/,
	q({"alter_column": {"table": "item", "column": "s", "type": "state",
	"up": "'x' || s", "down": "1"}}));
refused('given', qr/type public.state has a default/, q({"add_column": {"table": "item",
	"up": "'x'", "column": {"name": "n", "type": "state"}}}));
refused('positive', qr/type public.positive is a domain with constraints/,
	q({"alter_column": {"table": "item", "column": "p", "up": "p + 1",
	"down": "p - 1", "check": {"name": "c", "constraint": "p > 1"}}}));
refused('far', qr/partition "far_1" of table "far" is a foreign table/,
	to_int('far'));

#
# Somebody's own trigger with our function
#
app(q{CREATE TABLE own (a int, b int, m bigint);
	CREATE TRIGGER x BEFORE INSERT ON own FOR EACH ROW EXECUTE FUNCTION
	bluegreen.sync_columns('{"name": "x", "schema": "x", "path": "public",
		"old_alias": "own", "filled": true, "lenient": true, "rules": [{"kind":
		"pair", "old": "a", "new": "b", "down": "1/0", "mark": "m"}]}');
	ALTER TRIGGER x ON own DEPENDS ON EXTENSION pg_bluegreen});
fails_with('INSERT INTO own (b) VALUES (1)', qr/column "m" is not of type text/,
	'a mark is a text');

done_testing;
