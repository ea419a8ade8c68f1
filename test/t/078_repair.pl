# repair() where the source or the mapping has changed since the stream or the
# verification looked at it, and where it is refused.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();

foreach my $node ($blue, $green)
{
	$node->safe_psql(<<'SQL');
CREATE TABLE item (id integer PRIMARY KEY, extra integer, v text);
CREATE TABLE pair (a integer NOT NULL, b text NOT NULL, n integer,
	PRIMARY KEY (a, b));
CREATE UNIQUE INDEX a_of_pair ON pair (a);
CREATE TABLE log (line text);
SQL
}
# types of two kinds: values go as text, by the domain's input function
$green->safe_psql(<<'SQL');
CREATE TYPE green_word AS ENUM ('word1', 'word2', 'extra');
CREATE TABLE words (w green_word, n integer);
SQL
$blue->safe_psql(<<'SQL');
CREATE FUNCTION is_word(t text) RETURNS boolean STABLE LANGUAGE sql
	AS 'SELECT count(*) = 0 FROM pg_class WHERE relname = t';
CREATE DOMAIN word AS text CHECK (is_word(VALUE));
CREATE TABLE words (w word, n integer);
ALTER TABLE log REPLICA IDENTITY FULL;
ALTER TABLE words REPLICA IDENTITY FULL;
INSERT INTO item SELECT i, i, 'v' || i FROM generate_series(1, 100) i;
INSERT INTO pair SELECT i, 'b' || i, i FROM generate_series(1, 10) i;
INSERT INTO log SELECT 'line ' || i FROM generate_series(1, 10) i;
INSERT INTO words SELECT 'word' || i, i FROM generate_series(1, 2) i;
SELECT bluegreen.create_deployment('r', 'green');
SELECT bluegreen.map_table('r', 'item', transform => 'SELECT id, v FROM item');
SELECT bluegreen.map_table('r', 'pair', key => '{a}');
SELECT bluegreen.map_table('r', 'log');
SELECT bluegreen.map_table('r', 'words');
CALL bluegreen.start('r');
SQL
wait_for_sync('r');
my $worker = 'SELECT pid FROM bluegreen.stat_stream';
my $pid = $blue->safe_psql($worker);

# Change green behind the stream's back and have it found; how many rows.
sub spoil
{
	my ($sql) = @_;
	$green->safe_psql("SET session_replication_role = replica; $sql");
	$blue->safe_psql(q{CALL bluegreen.verify('r')});
	return left();
}

sub left
{
	return $blue->safe_psql(q{SELECT count(*) FROM bluegreen.difference
		WHERE repaired_at IS NULL});
}

sub repair
{
	my (@arguments) = @_;
	my $repaired = $blue->safe_psql('SELECT bluegreen.repair('
		  . join(', ', "'r'", @arguments) . ')');
	wait_for_sync('r');
	return $repaired;
}

sub same
{
	my ($name) = @_;
	compare_tables('SELECT id, v FROM item', 'SELECT id, v FROM item',
		"$name: the rows are right");
	is($blue->safe_psql($worker), $pid, 'and the stream ran all the while');
	return;
}

#
# The source was altered under the stream that runs
#
$blue->safe_psql('ALTER TABLE item ADD more integer DEFAULT 7');
is(spoil(q{UPDATE item SET v = 'wrong' WHERE id = 3;
	DELETE FROM item WHERE id = 4}), 2, 'two rows are wrong');
is(repair(), 2, 'repair() after ADD COLUMN');
same('ADD COLUMN');

$blue->safe_psql(q{ALTER TABLE item ALTER extra TYPE text
	USING repeat('text ', extra)});
spoil(q{UPDATE item SET v = 'wrong' WHERE id = 5});
is(repair(), 1, 'repair() after a column that is not read was retyped');
same('ALTER COLUMN TYPE');

$blue->safe_psql('ALTER TABLE item DROP extra');
spoil(q{UPDATE item SET v = 'wrong' WHERE id = 6});
is(repair(), 1, 'repair() after it was dropped');
same('DROP COLUMN');

# an input function that runs SQL needs a snapshot
spoil(q{INSERT INTO words VALUES ('extra', 0)});
is(repair(), 1, 'repair() of a value of a domain with a function in SQL');
compare_tables('TABLE words', 'TABLE words', 'the extra row is gone');

#
# The mapping was altered
#
is(spoil('UPDATE pair SET n = 0 WHERE a = 5'), 1, 'a row is wrong');
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('r', 'pair',
	key => '{a, b}')});
is(left(), 0, 'with another key, what was found before is forgotten');
is(repair(), 0, 'and not repaired');
$blue->safe_psql(q{CALL bluegreen.verify('r', 'pair')});
is(repair(q{'pair'}), 1, 'but when it is found again');
compare_tables('TABLE pair', 'TABLE pair', 'the row is right');

# as of a verification that ended after alter_mapping()
spoil('UPDATE pair SET n = 0 WHERE a = 6');
$blue->safe_psql(q{UPDATE bluegreen.verify_difference SET key = '{6}'
	WHERE repaired_at IS NULL});
like(
	($blue->psql(q{SELECT bluegreen.repair('r')}))[2],
	qr/a difference has a key of 1 columns, but the mapping's has 2/,
	'a key with too few columns is refused');
$blue->safe_psql(q{CALL bluegreen.verify('r')});

#
# Who may, and where
#
$blue->safe_psql(<<'SQL');
CREATE ROLE reader LOGIN REPLICATION;
GRANT USAGE ON FOREIGN SERVER green TO reader;
CREATE USER MAPPING FOR reader SERVER green OPTIONS (user 'postgres',
	password 'not asked for', password_required 'false');
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO reader;
GRANT SELECT ON pair TO reader;
UPDATE bluegreen.deployment SET owner = 'reader'::regrole;
SQL
like(
	($blue->psql(q{SELECT bluegreen.repair('r')}, user => 'reader'))[2],
	qr/permission denied for table pair/,
	'who may only read a table may not lock it');
$blue->safe_psql(q{UPDATE bluegreen.deployment SET owner = 'postgres'::regrole});
is(repair(), 1, 'who may, repairs it');

spoil(q{DELETE FROM log WHERE line = 'line 3'});
like(
	($blue->psql(q{BEGIN; INSERT INTO log VALUES ('line 3');
		SELECT bluegreen.repair('r'); COMMIT}))[2],
	qr/cannot repair table "public.log".* in a transaction that has written/,
	'without a key, it is refused after a write');
is(left(), 1, 'and remains to be done');
my (undef, $repaired, $error) = $blue->psql(q{SELECT bluegreen.repair('r');
	SELECT bluegreen.commit_time()});
is($repaired, 1, 'but not before one');
like($error, qr/commit_time\(\) can only be used in the transform/,
	'it leaves no moment behind in the session');
wait_for_sync('r');
compare_tables('TABLE log', 'TABLE log', 'the row is there once');

done_testing();
