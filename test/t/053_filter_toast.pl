# An UPDATE of the key that brings a row past the filter, without the value
# that it would need: the stream stops with the way out, and loses nothing.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();
my $ddl = 'CREATE TABLE doc (tenant int, id int, body text,
	PRIMARY KEY (tenant, id)); ALTER TABLE doc ALTER body SET STORAGE EXTERNAL';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{SELECT bluegreen.create_deployment('split', 'green');
SELECT bluegreen.map_table('split', 'doc', transform =>
	'SELECT tenant, id, body FROM doc WHERE tenant = 5');
INSERT INTO doc VALUES (5, 1, repeat('a', 5000)), (6, 2, repeat('b', 5000));});
$blue->safe_psql(q{CALL bluegreen.start('split')});
wait_for_sync('split');
my $mine = 'SELECT * FROM doc WHERE tenant = 5';
compare_tables($mine, 'TABLE doc', 'only the tenant is copied');

$blue->safe_psql('UPDATE doc SET id = 11 WHERE id = 1');
wait_for_sync('split');
compare_tables($mine, 'TABLE doc', 'a key that moves inside the filter is moved');

$blue->safe_psql('UPDATE doc SET tenant = 5 WHERE id = 2');
$blue->safe_psql(q{INSERT INTO doc VALUES (5, 3, 'behind it')});
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'a row that comes in without its TOASTed value stops the stream');
like(
	$blue->safe_psql('SELECT error_hint FROM bluegreen.stat_stream'),
	qr/ALTER TABLE public\.doc REPLICA IDENTITY FULL;/,
	'the hint has the statement that mends it');

$blue->safe_psql('ALTER TABLE public.doc REPLICA IDENTITY FULL');
$green->safe_psql(q{INSERT INTO doc VALUES (5, 2, repeat('b', 5000))});
$blue->safe_psql(q{SELECT bluegreen.skip('split', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('split');
$blue->safe_psql(q{INSERT INTO doc VALUES (6, 4, repeat('c', 5000));
UPDATE doc SET tenant = 5 WHERE id = 4});
wait_for_sync('split');
compare_tables($mine, 'TABLE doc', 'mended as the hint says, it goes on');

done_testing();
