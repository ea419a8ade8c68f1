# What somebody else has made, or given the name of something of a change's, is
# neither taken for it nor dropped.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one', <<'CONF');
bluegreen.lock_timeout = '60s'
CONF
$node->safe_psql('CREATE EXTENSION pg_bluegreen');

sub change
{
	my ($name, @operations) = @_;
	my $list = join ', ', @operations;
	$node->safe_psql("SELECT bluegreen.create_change('$name', \$\$[$list]\$\$)");
	return;
}

sub calls { return "CALL bluegreen.$_[0]('$_[1]')" }
sub filled { return "CALL bluegreen.wait_for_backfill('$_[0]', '180 s')" }

sub expand
{
	my ($name) = @_;
	return $node->safe_psql(calls('expand', $name) . '; ' . filled($name),
		timeout => 200);
}

sub contracts
{
	my ($name, $window) = @_;
	return "SET bluegreen.revert_window = '$window'; "
	  . calls('contract', $name);
}

sub contract { return $node->safe_psql(contracts(@_), timeout => 200) }
sub undo { return $node->safe_psql(calls('undo', $_[0]), timeout => 200) }

sub fails
{
	my ($sql, $pattern, $name) = @_;
	my (undef, undef, $error) = $node->psql($sql, timeout => 200);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($error, $pattern, $name);
}

sub value_is
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql($sql), $expected, $name);
}

# checks and unique constraints, and indexes without a constraint
sub things
{
	return $node->safe_psql(<<"SQL");
SELECT string_agg(name, ' ' ORDER BY name) FROM (
	SELECT conname FROM pg_constraint WHERE conrelid = '$_[0]'::regclass
		AND contype IN ('c', 'u')
	UNION ALL
	SELECT indexrelid::regclass::text FROM pg_index
	WHERE indrelid = '$_[0]'::regclass AND NOT EXISTS (
		SELECT FROM pg_constraint WHERE conindid = indexrelid)) t (name)
SQL
}

#
# Somebody adds a column and a constraint while steps run that have no lock
#
$node->safe_psql(<<'SQL');
CREATE TABLE shelf (id int PRIMARY KEY, a int);
INSERT INTO shelf SELECT i, i FROM generate_series(1, 10) i;
CREATE FUNCTION gate(int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(7);
	RETURN true;
END $$;
SQL
my @checks = map {
	qq({"create_constraint": {"table": "shelf", "name": "shelf_$_",
		"type": "check", "columns": ["a"], "check": "gate(a)",
		"up": {"a": "a"}, "down": {"a": "a"}}})
} 1 .. 2;
change('checks', @checks);
my $gate = $node->session;
$gate->query('SELECT pg_advisory_lock(7)');
my $caller = $node->session;
$caller->send(calls('expand', 'checks') . '; ' . filled('checks'));
ok( $node->poll_query_until(q{SELECT count(*) > 0 FROM pg_locks
		WHERE locktype = 'advisory' AND NOT granted AND objid = 7}),
	'a constraint is validated');
my $other = $node->session;
$other->send(q{BEGIN; ALTER TABLE shelf ADD COLUMN note text,
	ADD CHECK (note <> '')});
my $waits = q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted
	AND relation = 'shelf'::regclass};
ok($node->poll_query_until($waits), 'somebody waits to add a column');
$gate->query('SELECT pg_advisory_unlock(7)');
$other->wait;
ok( $node->poll_query_until($waits), 'then it is the next validation that waits');
$other->query('COMMIT');
$caller->wait;
is($other->errors . $caller->errors, '', 'both succeed');
$node->safe_psql(q{UPDATE shelf SET note = id});
undo('checks');
value_is('SELECT count(note) FROM shelf', 10, 'undo does not drop that column');
is(things('shelf'), 'shelf_note_check',
	'nor that constraint, but its own');

#
# At the contract names have to mean what they meant
#
$node->safe_psql(<<'SQL');
CREATE TABLE legacy (old int);
CREATE TABLE lamp (id int PRIMARY KEY, watt int, volt int, maker text,
	CONSTRAINT lamp_bright CHECK (watt > 10), CONSTRAINT lamp_volt CHECK (volt > 0));
CREATE INDEX lamp_maker ON lamp (lower(maker));
INSERT INTO lamp VALUES (1, 20, 12, 'me');
SQL
change('names', q({"drop_table": {"name": "legacy"}}),
	q({"drop_column": {"table": "lamp", "column": "maker"}}),
	q({"drop_index": {"name": "lamp_maker"}}),
	q({"drop_constraint": {"table": "lamp", "name": "lamp_bright",
		"up": "watt", "down": "watt"}}),
	q({"rename_constraint": {"table": "lamp", "from": "lamp_volt",
		"to": "lamp_voltage"}}),
	q({"rename_column": {"table": "lamp", "from": "volt", "to": "voltage"}}));
expand('names');
my $names = contracts('names', 0);
foreach my $case (
	[   'ALTER TABLE legacy RENAME TO legacy_2025;
			CREATE TABLE legacy (new int); INSERT INTO legacy VALUES (1)',
		qr/table "legacy" is not the same as before\nDETAIL:  .*"legacy_2025"/,
		'ALTER TABLE legacy RENAME TO fresh;
			ALTER TABLE legacy_2025 RENAME TO legacy',
		'a table' ],
	[   'ALTER TABLE lamp RENAME maker TO made_by;
			ALTER TABLE lamp ADD maker text',
		qr/column "maker" of table "lamp" is not the same as before/,
		'ALTER TABLE lamp DROP maker; ALTER TABLE lamp RENAME made_by TO maker',
		'a column that goes' ],
	[   'DROP INDEX lamp_maker; CREATE INDEX lamp_maker ON lamp (watt)',
		qr/index "lamp_maker" is not the same as before/,
		'DROP INDEX lamp_maker; CREATE INDEX lamp_maker ON lamp (lower(maker))',
		'an index' ],
	[   'ALTER TABLE lamp DROP CONSTRAINT lamp_bright,
			ADD CONSTRAINT lamp_bright CHECK (watt > 5)',
		qr/constraint "lamp_bright" of table "lamp" is not the same as before/,
		'ALTER TABLE lamp DROP CONSTRAINT lamp_bright,
			ADD CONSTRAINT lamp_bright CHECK (watt > 10)',
		'a constraint that goes' ],
	[   'ALTER TABLE lamp DROP CONSTRAINT lamp_volt,
			ADD CONSTRAINT lamp_volt CHECK (id > 0)',
		qr/constraint "lamp_volt" of table "lamp" is not the same as before/,
		'ALTER TABLE lamp DROP CONSTRAINT lamp_volt,
			ADD CONSTRAINT lamp_volt CHECK (volt > 0)',
		'one that is renamed' ])
{
	my ($do, $pattern, $undo, $title) = @$case;
	$node->safe_psql($do);
	fails($names, $pattern, "$title of that name is another one");
	$node->safe_psql($undo);
}
contract('names', 0);
value_is(q{SELECT to_regclass('legacy') IS NULL, count(new) FROM fresh}, 't|1',
	'contracted, and what is not ours is there');
is(things('lamp'), 'lamp_voltage', 'and nothing else');

#
# The same names within the window of a contract
#
$node->safe_psql(<<'SQL');
CREATE TABLE price (id int PRIMARY KEY, price int, email text,
	state varchar CHECK (state IN ('open', 'sold')), note text,
	CONSTRAINT price_check CHECK (price > 0));
CREATE UNIQUE INDEX price_email ON price (email);
INSERT INTO price VALUES (1, 1, 'a', 'open', 'open');
SQL
change('window', q({"drop_constraint": {"table": "price",
		"name": "price_check", "up": "price", "down": "price"}}),
	q({"drop_column": {"table": "price", "column": "state", "down": "note"}}),
	q({"drop_column": {"table": "price", "column": "email"}}));
expand('window');
contract('window', '1h');
is(things('price') =~ s/bluegreen_\S+//gr, '',
	'the old constraints are gone for the time being');
$node->safe_psql(q{ALTER TABLE price
	ADD CONSTRAINT price_check CHECK (price > -5)});
my $changed =
  qr/constraint "price_check" of table "price" is not the same as before/;
fails(contracts('window', 0), $changed, 'one of that name is not dropped');
fails(calls('undo', 'window'), $changed, 'nor replaced');
$node->safe_psql(q{ALTER TABLE price RENAME CONSTRAINT price_check TO mine;
	ALTER TABLE price ADD CONSTRAINT price_state_check CHECK (state <> '')});
fails(calls('undo', 'window'),
	qr/constraint "price_state_check" of table "price" is not the same as before/,
	'nor one on an old column');
$node->safe_psql(q{ALTER TABLE price DROP CONSTRAINT price_state_check;
	UPDATE public_window.price SET note = 'of the new version'});
fails(calls('undo', 'window'), qr/"price_state_check" .* is violated by some row/,
	'an old constraint can be restored by half');
contract('window', '1h');
$node->safe_psql(q{UPDATE public_window.price SET note = 'open';
	CREATE INDEX price_email ON price (id)});
fails(calls('undo', 'window'),
	qr/index "public\.price_email" is not the same as before/,
	'an index of that name is not dropped');
$node->safe_psql('ALTER INDEX price_email RENAME TO my_email');
undo('window');
is(things('price'), 'mine my_email price_check price_email price_state_check',
	'undone, when the names are free');

#
# An index that goes anyway has no copy
#
foreach my $window ('0', '1h')
{
	$node->safe_psql('DROP TABLE IF EXISTS card CASCADE;
		CREATE TABLE card (id int PRIMARY KEY, c text);
		CREATE UNIQUE INDEX card_c ON card (c)');
	change("card$window", q({"alter_column": {"table": "card", "column": "c",
			"type": "varchar(9)"}}), q({"drop_index": {"name": "card_c"}}));
	expand("card$window");
	contract("card$window", $window);
	contract("card$window", 0) if $window;
	is(things('card'), '', "it is gone with its column, window $window");
}

#
# An index that somebody else has made under the name of ours
#
$node->safe_psql('CREATE TABLE orders (id int PRIMARY KEY, day int, shop int);
	INSERT INTO orders SELECT i, i, 1 FROM generate_series(1, 10) i');
change('index', q({"add_column": {"table": "orders", "up": "day",
		"column": {"name": "no", "type": "int", "unique": true,
		"nullable": true}}}),
	q({"create_index": {"table": "orders", "name": "orders_day",
		"columns": [{"column": "day"}]}}));
$node->safe_psql(q{SELECT bluegreen.pause_backfill('index')});
$node->safe_psql(calls('expand', 'index'));
fails('CREATE UNIQUE INDEX CONCURRENTLY orders_day ON orders (shop)',
	qr/could not create unique index "orders_day"/, 'an index that is not valid');
my $before = $node->safe_psql(q{SELECT 'orders_day'::regclass::oid});
$node->safe_psql(q{SELECT bluegreen.pause_backfill('index', false)});
fails(filled('index'), qr/relation "orders_day" already exists/,
	'is not removed');
value_is(q{SELECT 'orders_day'::regclass::oid}, $before, 'it is still there');
$node->safe_psql('DROP INDEX orders_day; CREATE INDEX orders_day ON orders (shop)');
fails(calls('expand', 'index') . '; ' . filled('index'),
	qr/relation "orders_day" already exists/,
	'nor taken for ours if it is valid');
undo('index');
is(things('orders'), 'orders_day', 'nor dropped by an undo, which drops ours');
$node->safe_psql('DROP INDEX orders_day');
expand('index');
is(things('orders'), 'orders_day orders_no_key', 'ours has that name');
$node->safe_psql('REINDEX INDEX CONCURRENTLY orders_day');
undo('index');
is(things('orders'), '', 'and is known when it was rebuilt');

done_testing();
