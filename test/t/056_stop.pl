# stop() does not wait for what the stream waits for.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(blue_conf => 'bluegreen.copy_workers = 0');
my $ddl = 'CREATE TABLE t (id int PRIMARY KEY, v text)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 't');
CALL bluegreen.start('d');});
$blue->poll_query_until(
	q{SELECT state = 'copying' FROM bluegreen.stat_stream});

# a commit that waits for a standby is in the WAL, but has not ended
$blue->append_conf(q{synchronous_standby_names = 'nobody'});
$blue->safe_psql('SELECT pg_reload_conf()');
$blue->poll_query_until('SHOW synchronous_standby_names', 'nobody');
my $writer = $blue->session;
$writer->send(q{INSERT INTO t VALUES (1, 'hangs')});
ok( $blue->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
		WHERE wait_event = 'SyncRep'}),
	'a commit hangs, and the stream waits for its end');

my ($status, $out, $err) = $blue->psql(<<'SQL');
SET synchronous_commit = local;
SET statement_timeout = '60s';
CALL bluegreen.stop('d');
SQL
is($status, 0, 'stop comes back at once') or diag($err);
is($blue->safe_psql('SELECT state FROM bluegreen.stat_stream'),
	'stopped', 'with the stream stopped');

$blue->append_conf(q{synchronous_standby_names = ''});
$blue->append_conf('bluegreen.copy_workers = 1');
$blue->safe_psql('SELECT pg_reload_conf()');
$writer->wait;
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
compare_tables('TABLE t', 'TABLE t', 'and nothing is lost by it');

# a transaction that takes the stream much longer than the call
$blue->safe_psql(q{INSERT INTO t SELECT i, 'large'
	FROM generate_series(100, 1000000) i});
$blue->poll_query_until('SELECT rows > 1000 FROM bluegreen.stat_stream');
$blue->safe_psql(q{CALL bluegreen.stop('d')});
is($green->safe_psql('SELECT count(*) FROM t WHERE id >= 100'),
	0, 'stop does not wait for the end of a large transaction');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
my $digest = 'SELECT count(*), sum(id), min(v), max(v) FROM t';
compare_tables($digest, $digest, 'which is applied as a whole later');

done_testing();
