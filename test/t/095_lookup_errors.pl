# Lookups that do not find what they should, that leave rows out, whose key
# depends on more than the source's, and that run with the rights of others.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'");
my $port = $green->port;

sub stream
{
	my ($columns) = @_;
	return $blue->safe_psql("SELECT $columns FROM bluegreen.stat_stream");
}

sub stands
{
	$blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream});
	return;
}

sub goes_on
{
	$blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream});
	wait_for_sync('d');
	return;
}

sub conflicts
{
	return $green->safe_psql('SELECT count(*) FROM bluegreen.conflict');
}

# What is on green belongs to a role that is none of ours.
$green->safe_psql(q{
	CREATE ROLE applier LOGIN; CREATE ROLE landlord;
	SELECT bluegreen.grant_apply('applier');
	CREATE SCHEMA house AUTHORIZATION landlord;
	GRANT USAGE ON SCHEMA house TO applier;
	SET ROLE landlord;
	CREATE TABLE house.owner (cart_id int PRIMARY KEY, customer_id int);
	CREATE TABLE house.line (product_id int, customer_id int, quantity int,
		PRIMARY KEY (product_id, customer_id));
	CREATE TABLE house.letter (id int, person_id int, body text, size int,
		PRIMARY KEY (person_id, id));
	CREATE TABLE house.person (id int PRIMARY KEY, name text UNIQUE,
		badge text UNIQUE, visits int);
	CREATE TABLE house.shelf (product_id int PRIMARY KEY, stock int,
		place text DEFAULT 'somewhere');
	CREATE TABLE house.barcode (code text, product_id int);
	CREATE TABLE house.depot (product_id int PRIMARY KEY, stock int);
	RESET ROLE;
	SELECT bluegreen.grant_apply('applier', 'house.owner', 'house.line',
		'house.letter', 'house.shelf', 'house.person', 'house.depot');});
$blue->safe_psql(q{
	CREATE SCHEMA house;
	CREATE TABLE house.cart (id int PRIMARY KEY, customer_id int);
	CREATE TABLE house.line (
		cart_id int REFERENCES house.cart ON DELETE CASCADE,
		product_id int, quantity int, PRIMARY KEY (cart_id, product_id));
	CREATE TABLE house.letter (id int PRIMARY KEY, sender text, body text);
	ALTER TABLE house.letter REPLICA IDENTITY FULL;
	CREATE TABLE house.person (id int PRIMARY KEY, name text, badge text);
	CREATE TABLE house.badge (badge varchar(9) PRIMARY KEY, visits int);
	CREATE TABLE house.stock (code text PRIMARY KEY, stock int);
	CREATE TABLE house.delivery (code text, nr int, stock int,
		PRIMARY KEY (code, nr));
	INSERT INTO house.cart VALUES (1, 11), (2, NULL), (3, 13);
	INSERT INTO house.line VALUES (1, 1, 5), (2, 1, 5), (3, 1, 5);
	INSERT INTO house.person VALUES (1, 'ann', 'A'), (2, 'bob', 'B'),
		(3, 'cid', 'C');
	INSERT INTO house.letter SELECT i, CASE i % 4 WHEN 1 THEN 'ann'
		WHEN 2 THEN 'bob' WHEN 3 THEN 'cid' END, repeat('x', i)
		FROM generate_series(1, 20) i;
	INSERT INTO house.badge VALUES ('A', 1), ('C', 3);
	INSERT INTO house.stock VALUES ('one', 1), ('1', 2);});
$green->safe_psql(
	q{INSERT INTO house.barcode VALUES ('one', 1), ('1', 1), ('two', 2)});

#
# Definition and rights
#
my $define = q{
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'house.cart', 'house.owner',
		transform => 'SELECT id AS cart_id, customer_id FROM house.cart');
	SELECT bluegreen.map_table('d', 'house.line',
		key => '{product_id, customer_id}',
		lookup => 'SELECT product_id, customer_id, quantity
			FROM incoming JOIN owner ON owner.cart_id = incoming.cart_id
			WHERE customer_id IS NOT NULL');
	SELECT bluegreen.map_table('d', 'house.person');
	SELECT bluegreen.map_table('d', 'house.letter',
		key => '{id, person_id}',
		lookup => 'SELECT incoming.id, coalesce(p.id, 0) AS person_id, body,
				length(body) AS size
			FROM incoming LEFT JOIN person p ON p.name = incoming.sender');
	SELECT bluegreen.map_table('d', 'house.badge', 'house.person',
		on_write => 'patch', on_delete => 'ignore',
		lookup => 'SELECT p.id, incoming.visits
			FROM incoming JOIN house.person p ON p.badge = incoming.badge');};
my $merge = q{SELECT bluegreen.map_table('d', 'house.stock', 'house.shelf',
		on_write => 'merge', on_delete => 'write',
		lookup => 'SELECT product_id, stock
			FROM incoming JOIN barcode USING (code)');};
$blue->safe_psql(q{ALTER USER MAPPING FOR CURRENT_USER SERVER green
	OPTIONS (SET user 'applier');});
$blue->safe_psql($define);
my (undef, undef, $error) = $blue->psql($merge);
like(
	$error,
	qr/The old row is written on a DELETE.*ALTER TABLE house\.stock REPLICA IDENTITY FULL/s,
	'what a DELETE must carry is asked for');
$blue->safe_psql('ALTER TABLE house.stock REPLICA IDENTITY FULL');
(undef, undef, $error) = $blue->psql($merge);
like($error,
	qr/NOTICE:  target table "house\.shelf" has columns that the lookup does not give/,
	'columns that are not written are told of');
(undef, undef, $error) = $blue->psql(q{CALL bluegreen.start('d')});
like(
	$error,
	qr/permission denied for table house\.barcode\nHINT:  On the target, use SELECT bluegreen\.grant_apply\('applier', 'house\.barcode'\);/,
	'a start is refused while the lookup may not read its table');
$green->safe_psql('GRANT SELECT ON house.barcode TO applier');

#
# A copy that does not find what it should
#
$blue->safe_psql("INSERT INTO house.badge VALUES ('Z', 26)");
$blue->safe_psql("CALL bluegreen.start('d')");
$blue->poll_query_until(q{SELECT error_message ~ 'found nothing'
	FROM bluegreen.stat_stream});
like(
	stream('error_message'),
	qr/lookup of target table "house\.person" found nothing for 1 of 3 incoming rows/,
	'a row without a row stops the copy');
$blue->safe_psql("DELETE FROM house.badge WHERE badge = 'Z'");
wait_for_sync('d');

my $lines = q{SELECT product_id, customer_id, quantity FROM house.line
	JOIN house.cart ON id = cart_id WHERE customer_id IS NOT NULL};
my $letters = q{SELECT l.id, coalesce(p.id, 0) AS person_id, body,
	length(body) AS size
	FROM house.letter l LEFT JOIN house.person p ON name = sender};
my $visits = q{SELECT id, name, p.badge, visits FROM house.person p
	LEFT JOIN house.badge b ON b.badge = p.badge};

sub same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('d');
	compare_tables($lines, 'TABLE house.line', "$name: lines");
	compare_tables($letters, 'TABLE house.letter', "$name: letters");
	return compare_tables($visits, 'TABLE house.person', "$name: a patch");
}

same('copied');
is($green->safe_psql('SELECT product_id, place FROM house.shelf'),
	'1|somewhere', 'a merge of two rows for one');

#
# Rows that WHERE leaves out, and keys that depend on more than the source's
#
$blue->safe_psql(q{
	BEGIN;
	INSERT INTO house.cart VALUES (4, NULL), (5, 15);
	INSERT INTO house.line VALUES (4, 1, 1), (4, 2, 1), (5, 1, 1), (5, 2, 1),
		(5, 3, 1);
	UPDATE house.line SET quantity = 2 WHERE product_id = 1;
	DELETE FROM house.line WHERE product_id = 2;
	UPDATE house.line SET product_id = 4 WHERE product_id = 3;
	COMMIT;
	DELETE FROM house.line WHERE cart_id = 4;
	BEGIN;
	UPDATE house.letter SET sender = CASE sender WHEN 'ann' THEN 'bob'
		WHEN 'bob' THEN NULL ELSE 'ann' END;
	UPDATE house.letter SET sender = 'cid' WHERE id IN (1, 2);
	UPDATE house.letter SET id = id + 100 WHERE id > 15;
	UPDATE house.letter SET body = 'new' WHERE id < 8;
	DELETE FROM house.letter WHERE id BETWEEN 7 AND 10;
	INSERT INTO house.letter VALUES (8, NULL, 'nobody'), (9, 'cid', NULL);
	COMMIT;
	UPDATE house.letter SET body = repeat(md5(id::text), 2000) WHERE id < 5;
	UPDATE house.letter SET sender = 'ann' WHERE id < 5;
	UPDATE house.letter SET id = -id WHERE id < 5;
	UPDATE house.badge SET visits = visits + 1;
	INSERT INTO house.badge VALUES ('B', 7);});
same('streamed');
is(conflicts(), 0, 'no row was found where it should not be');
is(stream('careful_batches'), 0, 'and no batch went row by row');
$blue->safe_psql(q{
	UPDATE house.stock SET stock = 5 WHERE code = 'one';
	INSERT INTO house.stock VALUES ('two', 8);
	DELETE FROM house.stock WHERE code = '1';});
wait_for_sync('d');
is($green->safe_psql('SELECT product_id, stock FROM house.shelf ORDER BY 1'),
	"1|2\n2|8", 'the last word counts, also where it is a deleted row');

#
# Rows of a merge that are found by the same values are one in a batch
#
$blue->safe_psql(q{
	INSERT INTO house.delivery VALUES ('one', 1, 1), ('two', 1, 2);
	SELECT bluegreen.map_table('d', 'house.delivery', 'house.depot',
		transform => 'SELECT code, stock FROM house.delivery',
		on_write => 'merge', on_delete => 'ignore',
		lookup => 'SELECT product_id, stock
			FROM incoming JOIN barcode USING (code)');});
wait_for_sync('d');
is( $blue->safe_psql(q{SELECT c.name FROM bluegreen.mapping_column c
		JOIN bluegreen.table_mapping m ON m.id = c.mapping
		WHERE m.target_table = 'depot' AND c.is_key}),
	'code', 'their key is what finds the row');
my $careful = stream('careful_batches');
$blue->safe_psql(q{
	BEGIN;
	INSERT INTO house.delivery VALUES ('one', 2, 20), ('one', 3, 30);
	UPDATE house.delivery SET stock = 8 WHERE (code, nr) = ('one', 2);
	DELETE FROM house.delivery WHERE code = 'two';
	COMMIT;});
wait_for_sync('d');
is($green->safe_psql('SELECT product_id, stock FROM house.depot ORDER BY 1'),
	"1|8\n2|2", 'the last one counts');
is(stream('careful_batches'), $careful, '... in one batch');

#
# Counting, row by row
#
$green->safe_psql(
	'DELETE FROM house.line WHERE customer_id = 11 AND product_id = 1');
$blue->safe_psql(q{BEGIN; INSERT INTO house.line VALUES (4, 7, 7);
	UPDATE house.line SET quantity = 3; DELETE FROM house.line
	WHERE cart_id = 2; COMMIT});
same('a row that was gone');
is($green->safe_psql('SELECT kind FROM bluegreen.conflict'),
	'update_missing', 'only that is a conflict, not what WHERE leaves out');

#
# Nothing is found, in the stream
#
$blue->safe_psql('INSERT INTO house.line VALUES (5, 8, 8)');
wait_for_sync('d');
my $before = $green->safe_psql('SELECT count(*) FROM house.line');
$blue->safe_psql('DELETE FROM house.cart WHERE id = 5');
stands();
like(
	stream('error_message'),
	qr/lookup of target table "house\.line" found nothing for 1 of 1 incoming rows/,
	'a cart that is gone before its lines stops the stream');
is(stream('error_relation'), 'house.line', 'the table is named');
like(stream('error_key'), qr/cart_id\[integer\]:'5' product_id/,
	'and the key of the incoming row');
like(stream('error_hint'), qr/use LEFT JOIN and WHERE/, 'and what to do');
is($green->safe_psql('SELECT count(*) FROM house.line'),
	$before, 'nothing of the transaction is applied');
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 'house.cart',
	on_delete => 'ignore')});
goes_on();
same('owners are kept');

$green->safe_psql("INSERT INTO house.barcode VALUES ('two', 3)");
$blue->safe_psql("UPDATE house.stock SET stock = 9 WHERE code = 'two'");
stands();
like(
	stream('error_message'),
	qr/lookup of target table "house\.shelf" gave 2 rows for 1 incoming rows/,
	'two rows for one stop the stream');
$green->safe_psql('DELETE FROM house.barcode WHERE product_id = 3');
goes_on();

# the table has changed under the lookup
$green->safe_psql('ALTER TABLE house.owner RENAME customer_id TO buyer_id');
$blue->safe_psql('INSERT INTO house.line VALUES (1, 9, 9)');
stands();
like(stream('error_message'), qr/column "?owner\.customer_id"? does not exist/,
	'a lookup that is not right any more stops the stream');
$green->safe_psql('ALTER TABLE house.owner RENAME buyer_id TO customer_id');
goes_on();
same('mended');

#
# Keys of a type with a length, all columns, and what must not be in a lookup
#
$green->safe_psql(q{SET ROLE landlord;
	CREATE TABLE house.code (code char(2) PRIMARY KEY, id int, v int);
	CREATE FUNCTION house.peek() RETURNS int LANGUAGE sql STABLE
		AS 'SELECT max(v) FROM house.code';
	RESET ROLE;
	SELECT bluegreen.grant_apply('applier', 'house.code');});
$blue->safe_psql(q{
	CREATE TABLE house.code (id int PRIMARY KEY, code char(2), v int);
	ALTER TABLE house.code REPLICA IDENTITY FULL;
	INSERT INTO house.code VALUES (1, 'A', 1), (2, 'AB', 2), (3, 'AC', 3);
	SELECT bluegreen.map_table('d', 'house.code',
		lookup => 'SELECT * FROM incoming');});
wait_for_sync('d');
compare_tables('TABLE house.code', 'SELECT id, code, v FROM house.code',
	'char(n) is copied');
$blue->safe_psql(q{DELETE FROM house.code WHERE code = 'AB';
	UPDATE house.code SET v = 30 WHERE code = 'AC'});
wait_for_sync('d');
compare_tables('TABLE house.code', 'SELECT id, code, v FROM house.code',
	'and finds its own row');
for my $case (
	[
		'SELECT i.* FROM incoming i JOIN (SELECT 1 FROM owner FOR UPDATE) o ON true',
		'FOR UPDATE or FOR SHARE'
	],
	[
		'SELECT id, code, house.peek() AS v FROM incoming',
		'a user-defined STABLE function'
	])
{
	my ($lookup, $what) = @$case;
	(undef, undef, $error) = $blue->psql(
		"SELECT bluegreen.alter_mapping('d', 'house.code',
			lookup => '$lookup')");
	like($error, qr/ERROR:  lookup of target table "house\.code" must not contain $what/,
		"refused: $what");
}
(undef, undef, $error) = $blue->psql(
	'ALTER TABLE house.code DROP CONSTRAINT code_pkey;
	 INSERT INTO house.code VALUES (1, \'B\', 1)');
like($error, qr/table "code" has lost the key that its mapping to "house\.code" goes by/,
	'rows that could not be told from each other are not taken');

#
# Two rows for one row of a patch: the last one counts.  (A hash join would take
# it by chance.)
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$green->safe_psql(q{ALTER ROLE applier SET enable_hashjoin = off;
	ALTER ROLE applier SET enable_mergejoin = off});
$blue->safe_psql(q{CALL bluegreen.start('d')});
$green->safe_psql(q{SET ROLE landlord;
	CREATE TABLE house.card (nr int PRIMARY KEY, person_id int);
	INSERT INTO house.card VALUES (1, 3), (2, 3);
	RESET ROLE; GRANT SELECT ON house.card TO applier;});
$blue->safe_psql(q{
	CREATE TABLE house.visit (card int PRIMARY KEY, visits int);
	INSERT INTO house.visit VALUES (1, 5), (2, 5);
	SELECT bluegreen.map_table('d', 'house.visit', 'house.person',
		on_write => 'patch', on_delete => 'ignore',
		lookup => 'SELECT c.person_id AS id, i.visits
			FROM incoming i JOIN card c ON c.nr = i.card');});
wait_for_sync('d');
for my $order ([ 1, 2 ], [ 2, 1 ])
{
	my ($first, $last) = @$order;
	$blue->safe_psql("BEGIN;
		UPDATE house.visit SET visits = 10 + $first WHERE card = $first;
		UPDATE house.visit SET visits = 10 + $last WHERE card = $last; COMMIT");
	wait_for_sync('d');
	is($green->safe_psql('SELECT visits FROM house.person WHERE id = 3'),
		10 + $last, "card $last is the last one");
}

#
# Not compared
#
$blue->psql(q{CALL bluegreen.verify('d')});
is( $blue->safe_psql(q{SELECT state, message FROM bluegreen.verification
		WHERE target = 'house.line'}),
	'skipped|what its rows become is known on the target only (lookup)',
	'a verification says that it skips mappings with a lookup');

done_testing();
