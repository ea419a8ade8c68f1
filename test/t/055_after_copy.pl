# The stream's decisions outlive a crash right after a table's copy has ended,
# and a batch may begin with a change that is sent by itself.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.copy_chunk_rows = 100
bluegreen.idle_progress_interval = 1h
bluegreen.restart_delay = 100ms
CONF

# a move as the first change of a batch
$blue->safe_psql('CREATE TABLE m (id int PRIMARY KEY, v text)');
$green->safe_psql(
	q{CREATE TABLE m (id int PRIMARY KEY, v text, other text DEFAULT 'o')});
$blue->safe_psql(<<'SQL');
INSERT INTO m VALUES (1, 'a');
SELECT bluegreen.create_deployment('m', 'green');
SELECT bluegreen.map_table('m', 'm');
CALL bluegreen.start('m');
SQL
wait_for_sync('m');
$blue->safe_psql('UPDATE m SET id = 2');
wait_for_sync('m');
is($green->safe_psql('TABLE m'), '2|a|o',
	'a row is moved with what the mapping does not write');
is($blue->safe_psql('SELECT careful_batches FROM bluegreen.stat_stream'),
	0, 'and needs no careful path for it');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('m')});

# a change that the chunk has seen, decoded again after a crash
$_->safe_psql(<<'SQL') for $blue, $green;
CREATE TABLE d (id int PRIMARY KEY, n int, v text);
ALTER TABLE d ALTER v SET STORAGE EXTERNAL;
CREATE TABLE h (id int PRIMARY KEY);
SQL
$blue->safe_psql(<<'SQL');
CREATE FUNCTION hold(id integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
	IF current_setting('transaction_isolation') = 'repeatable read' THEN
		PERFORM pg_advisory_xact_lock_shared(id);
	END IF;
	RETURN id;
END $$;
INSERT INTO h VALUES (1);
INSERT INTO d SELECT i, i, repeat('x', 5000) FROM generate_series(1, 20) i;
SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 'h', transform => 'SELECT hold(id) AS id FROM h');
SELECT bluegreen.map_table('d', 'd');
SQL
$blue->append_conf('bluegreen.copy_workers = 1');
$blue->safe_psql('SELECT pg_reload_conf()');
my $holder = $blue->session;
$holder->query('SELECT pg_advisory_lock(1)');
$blue->safe_psql(q{CALL bluegreen.start('d')});
$blue->poll_query_until(q{SELECT count(*) = 1 FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted});
$blue->safe_psql('UPDATE d SET n = n + 1 WHERE id = 7');
$blue->safe_psql('DELETE FROM d WHERE id = 7');
my $lsn = $blue->safe_psql('SELECT pg_current_wal_lsn()');
$blue->poll_query_until(
	"SELECT decoded_lsn >= '$lsn' FROM bluegreen.stat_stream");
$holder->query('SELECT pg_advisory_unlock(1)');
wait_for_sync('d');
$blue->kill9;
$blue->start;
$blue->safe_psql(q{INSERT INTO d VALUES (100, 1, 'x')});
wait_for_sync('d');
compare_tables('TABLE d', 'TABLE d', 'equal after a crash right after the copy');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'what the copy has seen is not applied again');

# Large chunks end where the statistics say, as far as they reach.
$blue->append_conf('bluegreen.copy_chunk_rows = 50000');
$blue->reload;
$_->safe_psql('CREATE TABLE s (id int PRIMARY KEY)') for $blue, $green;
$blue->safe_psql(<<'SQL');
INSERT INTO s SELECT 3 * i FROM generate_series(1, 200000) i;
ANALYZE s;
INSERT INTO s SELECT 3 * i FROM generate_series(200001, 220000) i;
SELECT bluegreen.map_table('d', 's');
SQL
wait_for_sync('d');
compare_tables('TABLE s', 'TABLE s', 'a table is cut by its statistics');
my $bounds = q{SELECT unnest(histogram_bounds::text::int[]) FROM pg_stats
	WHERE tablename = 's'};
is( $blue->safe_psql(qq{SELECT count(*) > 1, bool_or(c.upper IS NULL),
		bool_and((c.upper::text[]::int[])[1] IN ($bounds)) FILTER
			(WHERE number < 4)
	FROM bluegreen.chunk_log c
	WHERE mapping = (SELECT max(id) FROM bluegreen.table_mapping)}),
	't|t|t', 'at bounds of the histogram');

done_testing();
