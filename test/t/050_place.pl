# A copy of the source stays quiet until a human says that it is the source.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();
my $ddl = 'CREATE TABLE t (id int PRIMARY KEY, v text)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{SELECT bluegreen.create_deployment('shop', 'green');
SELECT bluegreen.map_table('shop', 't');
INSERT INTO t VALUES (1, 'blue');});
$blue->safe_psql(q{CALL bluegreen.start('shop')});
wait_for_sync('shop');

# a copy of the files, slots included, on another port and in another place
my $clone = BlueGreen->blue('clone');
$clone->stop;
$blue->stop;
my ($from, $to) = ($blue->data_dir, $clone->data_dir);
system('rm', '-rf', $to) == 0 or die;
system('cp', '-a', $from, $to) == 0 or die;
$clone->append_conf('port = ' . $clone->port);
$clone->start;
$clone->safe_psql(q{INSERT INTO t VALUES (2, 'clone')});
ok( $clone->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'the stream of a clone stops');
like($clone->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
	qr/was started at another place/, 'and says why');
like(
	$clone->safe_psql('SELECT error_hint FROM bluegreen.stat_stream'),
	qr/SELECT bluegreen\.confirm_source\('shop'\);/,
	'and what to do if it is meant to be the source');

my (undef, undef, $error) =
  $clone->psql(q{SELECT bluegreen.drop_deployment('shop')});
like(
	$error,
	qr/was started at another place, and may run there/,
	'a clone cannot drop what its original has on the peer');
(undef, undef, $error) =
  $clone->psql(q{BEGIN; SELECT bluegreen.drop_deployment('shop', force => true)});
like($error, qr/WARNING:  could not remove what deployment "shop" left/,
	'and leaves it alone if it is forced');

$blue->start;
$blue->safe_psql(q{INSERT INTO t VALUES (3, 'blue again')});
wait_for_sync('shop');
is($green->safe_psql('SELECT string_agg(id::text, $$,$$ ORDER BY id) FROM t'),
	'1,3', 'only the source itself has written to the peer');

# the source is gone for good; the clone takes its place where it stood
$blue->safe_psql('DELETE FROM t WHERE id = 3');
wait_for_sync('shop');
$blue->stop;
$clone->stop;
system('rm', '-rf', $to) == 0 or die;
system('cp', '-a', $from, $to) == 0 or die;
$clone->append_conf('port = ' . $clone->port);
$clone->start;
$clone->safe_psql(q{INSERT INTO t VALUES (4, 'moved')});
$clone->poll_query_until(
	q{SELECT state = 'error' FROM bluegreen.stat_stream});
$clone->safe_psql(q{SELECT bluegreen.confirm_source('shop')});
$clone->safe_psql(q{CALL bluegreen.wait_for_sync('shop', '180 s')});
is($green->safe_psql('SELECT string_agg(id::text, $$,$$ ORDER BY id) FROM t'),
	'1,4', 'after confirm_source it goes on at its new place');

done_testing();
