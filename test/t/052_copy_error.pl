# What stops a copy is shown like what stops the stream, and the copy goes on
# by itself once the cause is gone.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair();
my $ddl = 'CREATE TABLE t (id int PRIMARY KEY, v text)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{INSERT INTO t SELECT i, 'blue' FROM generate_series(1, 100) i});
$green->safe_psql(q{INSERT INTO t VALUES (7, 'was here before')});
$blue->safe_psql(q{SELECT bluegreen.create_deployment('shop', 'green');
SELECT bluegreen.map_table('shop', 't');});
$blue->safe_psql(q{CALL bluegreen.start('shop', allow_nonempty => true)});

ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'a row in the way of the copy stops the stream');
like(
	$blue->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
	qr/^could not copy to "public\.t": duplicate key value/,
	'the error names the target');
is($blue->safe_psql('SELECT error_sqlstate FROM bluegreen.stat_stream'),
	'23505', 'and has the SQLSTATE of its cause');
is($blue->safe_psql('SELECT error_lsn FROM bluegreen.stat_stream'),
	'', 'but no transaction that could be left out');

$green->safe_psql('DELETE FROM t WHERE id = 7');
ok( $blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream}),
	'with the row gone, the copy goes on by itself');
wait_for_sync('shop');
compare_tables('TABLE t', 'TABLE t', 'both sides have the same rows');
is($blue->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
	'', 'an error that is over is not shown any more');

# a drop that fails leaves the stream running
$green->stop;
my ($status, $out, $err) =
  $blue->psql(q{SELECT bluegreen.drop_deployment('shop')});
isnt($status, 0, 'a deployment cannot be dropped while the peer is away');
$green->start;
$blue->safe_psql(q{INSERT INTO t VALUES (101, 'later')});
wait_for_sync('shop');
compare_tables('TABLE t', 'TABLE t', 'and its stream goes on afterwards');

#
# What passes by itself is tried again with a growing delay, not each second
#
$blue->append_conf("bluegreen.restart_delay = 1h\ntest.fail = on");
$blue->reload;
$blue->poll_query_until('SHOW test.fail', 'on');
$_->safe_psql('CREATE TABLE busy (id int PRIMARY KEY)') for $blue, $green;
$blue->safe_psql(<<'SQL');
CREATE FUNCTION fail(id int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF current_setting('test.fail')::boolean THEN
		RAISE EXCEPTION 'not now' USING ERRCODE = '40001';
	END IF;
	RETURN id;
END
$$;
INSERT INTO busy SELECT generate_series(1, 10);
SQL
my $failures = sub {
	my @found = $blue->log =~ /ERROR:  not now/g;
	return scalar @found;
};
$blue->safe_psql(q{SELECT bluegreen.map_table('shop', 'busy',
	transform => 'SELECT fail(id) AS id FROM busy')});
$blue->wait_for_log(qr/ERROR:  not now/);
my $then = $blue->safe_psql('SELECT clock_timestamp()');
$blue->poll_query_until(
	qq{SELECT clock_timestamp() > '$then'::timestamptz + '3 s'});
cmp_ok($failures->(), '<=', 2,
	'copy workers that fail are not started each second');
$blue->append_conf("bluegreen.restart_delay = 100ms\ntest.fail = off");
$blue->reload;
wait_for_sync('shop');
compare_tables('TABLE busy', 'TABLE busy', 'but once the delay is over');

done_testing();
