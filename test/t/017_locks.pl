# The stream and those who lock its tables: nobody waits for ever.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'");

foreach my $node ($blue, $green)
{
	$node->safe_psql(<<'SQL');
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE b (id int PRIMARY KEY, v text);
SQL
}
$green->safe_psql('ALTER TABLE a ADD c int');
$blue->safe_psql(<<'SQL');
INSERT INTO a VALUES (1, 'one');
SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 'a', transform => 'SELECT id, v FROM a');
SELECT bluegreen.map_table('d', 'b');
CALL bluegreen.start('d');
SQL
wait_for_sync('d');

sub worker
{
	return $blue->safe_psql(q{SELECT pid FROM bluegreen.stat_stream});
}

# A change is decoded while a TRUNCATE that is not committed holds the locks of
# its table and of the index that is its replica identity.
my $pid = worker();
kill 'STOP', $pid or die "kill: $!";
$blue->safe_psql(q{INSERT INTO b VALUES (1, 'before')});
my $truncate = $blue->session;
$truncate->query('BEGIN; TRUNCATE b');
kill 'CONT', $pid or die "kill: $!";
wait_for_sync('d');
is($green->safe_psql('SELECT v FROM b'),
	'before', 'the stream goes on while its table is locked');
is(worker(), $pid, 'with the same worker');
$truncate->query('COMMIT');
wait_for_sync('d');
is($green->safe_psql('SELECT count(*) FROM b'), '0', 'and truncates then');
$truncate->quit;

# A worker that starts reads the table that alter_mapping() keeps locked, while
# alter_mapping() waits for the worker.
my $alter = $blue->session;
$alter->query('BEGIN; ALTER TABLE a ADD c int DEFAULT 7');
$pid = worker();
kill 'TERM', $pid or die "kill: $!";
$blue->poll_query_until("SELECT wait_event_type = 'Lock' AND pid <> $pid
	FROM pg_stat_activity WHERE backend_type = 'pg_bluegreen stream'");
$alter->query(q{SELECT bluegreen.alter_mapping('d', 'a',
	transform => 'SELECT id, v, c FROM a')});
like($alter->errors, qr/ERROR:  deadlock detected/,
	'alter_mapping finds a stream that waits for it');
like($alter->errors, qr/waits for a lock of this transaction/, 'and says so');
$alter->query('ROLLBACK');
$blue->safe_psql(q{INSERT INTO a VALUES (2, 'two')});
wait_for_sync('d');
is($green->safe_psql('SELECT count(*) FROM a'), '2', 'the stream goes on');
$alter->query(q{BEGIN; ALTER TABLE a ADD c int DEFAULT 7;
	SELECT bluegreen.alter_mapping('d', 'a',
		transform => 'SELECT id, v, c FROM a'); COMMIT});
$alter->quit;
$blue->safe_psql(q{INSERT INTO a VALUES (3, 'three')});
wait_for_sync('d');
is($green->safe_psql('SELECT c FROM a WHERE id = 3'), '7', 'another try does');

done_testing();
