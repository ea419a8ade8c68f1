# Partitions that come or go with their rows are in no row change: the stream
# stops.  Empty ones and new ones do no harm.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();
$blue->safe_psql(<<'SQL');
CREATE TABLE sale (id int, year int, v text, PRIMARY KEY (id, year))
	PARTITION BY LIST (year);
CREATE TABLE sale_2024 PARTITION OF sale FOR VALUES IN (2024);
CREATE TABLE sale_2025 (v text, year int NOT NULL, gone int, id int NOT NULL);
ALTER TABLE sale_2025 DROP COLUMN gone;
CREATE TABLE other (id int PRIMARY KEY) PARTITION BY HASH (id);
INSERT INTO sale VALUES (1, 2024, 'old');
SQL
$green->safe_psql(<<'SQL');
CREATE TABLE sale (id int, year int, v text, PRIMARY KEY (id, year));
SQL
$blue->safe_psql(q{SELECT bluegreen.create_deployment('shop', 'green');
SELECT bluegreen.map_table('shop', 'sale');});
$blue->safe_psql(q{CALL bluegreen.start('shop')});
wait_for_sync('shop');

$blue->safe_psql(<<'SQL');
ALTER TABLE sale ATTACH PARTITION sale_2025 FOR VALUES IN (2025);
INSERT INTO sale VALUES (2, 2025, 'attached empty');
CREATE TABLE sale_2026 PARTITION OF sale FOR VALUES IN (2026);
INSERT INTO sale VALUES (3, 2026, 'created');
UPDATE sale SET year = 2026 WHERE id = 2;
CREATE TABLE other_0 (id int PRIMARY KEY);
INSERT INTO other_0 VALUES (1);
ALTER TABLE other ATTACH PARTITION other_0
	FOR VALUES WITH (MODULUS 1, REMAINDER 0);
SQL
wait_for_sync('shop');
compare_tables('TABLE sale', 'TABLE sale',
	'empty, new and unmapped partitions: the stream goes on');

$blue->safe_psql(<<'SQL');
CREATE TABLE sale_2027 (id int, year int, v text, PRIMARY KEY (id, year));
INSERT INTO sale_2027 VALUES (4, 2027, 'brought along');
SQL
$blue->safe_psql(q{ALTER TABLE sale ATTACH PARTITION sale_2027
	FOR VALUES IN (2027)});
$blue->safe_psql(q{INSERT INTO sale VALUES (5, 2027, 'later')});
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'a partition attached with rows stops the stream');
like($blue->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
	qr/partition with rows was attached/, 'and it says so');
is($green->safe_psql('SELECT count(*) FROM sale WHERE id >= 4'), '0',
	'nothing behind it is applied');

# the first way of the hint
$green->safe_psql(q{INSERT INTO sale VALUES (4, 2027, 'brought along')});
$blue->safe_psql(q{SELECT bluegreen.skip('shop', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('shop');
compare_tables('TABLE sale', 'TABLE sale',
	'rows brought over by hand and the ATTACH left out: equal');

# and the other
$blue->safe_psql('ALTER TABLE sale DETACH PARTITION sale_2027');
$blue->poll_query_until(
	q{SELECT state = 'error' FROM bluegreen.stat_stream});
$blue->safe_psql(q{SELECT bluegreen.unmap_table('shop', 'sale')});
$green->safe_psql('TRUNCATE sale');
$blue->safe_psql(q{SELECT bluegreen.map_table('shop', 'sale')});
wait_for_sync('shop');
compare_tables('TABLE sale', 'TABLE sale',
	'after a DETACH, mapped and copied anew: equal');

done_testing();
