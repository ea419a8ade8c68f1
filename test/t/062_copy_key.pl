# While a table is copied in chunks the index over its key is put aside.  Whatever
# dies meanwhile, or ends the copy, it comes back, with every row in it.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
autovacuum = off
bluegreen.copy_chunk_rows = 100
bluegreen.copy_workers = 2
bluegreen.restart_delay = 100ms
bluegreen.restart_delay_max = 500ms
CONF

# The copy, not the stream, stops at a row as long as there is a file for its
# id, which outlives every crash.
$blue->safe_psql(<<'SQL');
CREATE FUNCTION hold(id integer) RETURNS integer
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF current_setting('transaction_isolation') = 'repeatable read' THEN
		WHILE id % 250 = 0
			AND (pg_stat_file('hold_' || id, true)).size IS NOT NULL LOOP
			PERFORM pg_sleep(0.02);
		END LOOP;
	END IF;
	RETURN id;
END
$$;
SQL

sub file { return $blue->data_dir . "/hold_$_[0]" }

sub hold
{
	open my $file, '>', file($_[0]) or die "hold: $!";
	close $file;
	return;
}
sub let_go { return unlink file($_[0]) }

# Wait until a chunk is held and, by two workers, all others are copied.
sub wait_held
{
	my ($table) = @_;
	$blue->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen copy' AND wait_event = 'PgSleep'});
	return $green->poll_query_until(qq{SELECT sum(row_count) = 900
		FROM bluegreen.applied_chunk JOIN bluegreen.applied_table
		USING (stream, mapping) WHERE target_table = '$table'});
}

sub deploy
{
	my ($name, $value) = @_;
	$value //= q{'row ' || i};
	$blue->safe_psql("CREATE TABLE $name (id integer PRIMARY KEY, v text);
		INSERT INTO $name SELECT i, $value FROM generate_series(1, 1000) i");
	$green->safe_psql("CREATE TABLE $name (id integer PRIMARY KEY, v text,
		h integer); CREATE INDEX ON $name (v)");
	$blue->safe_psql("SELECT bluegreen.create_deployment('$name', 'green');
		SELECT bluegreen.map_table('$name', '$name',
			transform => 'SELECT id, v, hold(id) AS h FROM $name');
		CALL bluegreen.start('$name')");
	return;
}

# Processor time that the copy workers have used.
sub copy_usage
{
	my $seconds = 0;
	$seconds += (usage_of($_))[0]
	  for split /\n/, $blue->safe_psql(q{SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen copy'});
	return $seconds;
}

# Which indexes of the table are in use, and what is noted of the others.
sub indexes
{
	my ($table) = @_;
	return $green->safe_psql(
		"SELECT coalesce(string_agg(indexrelid::regclass::text, ' '
				ORDER BY indexrelid::regclass::text) FILTER (WHERE indisready AND indisvalid), '')
			|| '|' || (SELECT count(*) FROM bluegreen.saved_index)
			|| '|' || (SELECT count(*) FROM bluegreen.applied_table
				WHERE key_aside)
		FROM pg_index WHERE indrelid = '$table'::regclass");
}

# The key is in force again, and its index has every row.
sub is_whole
{
	my ($table, $claim) = @_;
	is(indexes($table), "${table}_pkey ${table}_v_idx|0|0",
		"$claim: its indexes are in use");
	is( $green->safe_psql("SET enable_seqscan = off; SET enable_bitmapscan = off;
			SELECT count(*) FROM $table WHERE id > 0"),
		$green->safe_psql("SET enable_indexscan = off;
			SET enable_indexonlyscan = off; SET enable_bitmapscan = off;
			SELECT count(*) FROM $table"),
		"$claim: the key's has every row");
	my (undef, undef, $error) =
	  $green->psql("INSERT INTO $table SELECT * FROM $table LIMIT 1");
	like($error, qr/${table}_pkey/, "$claim: and allows none twice");
	return;
}

sub follows
{
	my ($table, $claim) = @_;
	wait_for_sync($table);
	compare_tables("SELECT id, v FROM $table", "SELECT id, v FROM $table",
		"$claim: no row is lost or there twice");
	return is_whole($table, $claim);
}

#
# Killed while it is aside
#
hold(250);
deploy('kills');
wait_held('kills');
is(indexes('kills'), '|2|1', 'the key is put aside with the other index');
is( $green->safe_psql(
		q{SELECT string_agg(name || ' ' || is_key, ', ' ORDER BY name)
		FROM bluegreen.saved_index}),
	'kills_pkey true, kills_v_idx false',
	'and noted as the key');
my $filenode =
  $green->safe_psql(q{SELECT pg_relation_filenode('kills_pkey')});
my @victims = (
	[ 'a copy worker' => sub { kill9_worker($blue, 'copy') } ],
	[ 'its session on green' => sub { kill9_worker($green, 'copy') } ],
	[
		'green' => sub { $green->kill9; $green->start }
	],
	[
		'blue' => sub { $blue->kill9; $blue->start }
	]);
foreach my $victim (@victims)
{
	my ($name, $kill) = @$victim;
	$kill->();
	$_->wait_until_up for $blue, $green;
	wait_held('kills');
	is(indexes('kills'), '|2|1', "it stays aside when $name is killed");
}
$blue->safe_psql(q{CALL bluegreen.stop('kills')});
is(indexes('kills'), '|2|1', 'and when the deployment is stopped');
$blue->safe_psql(q{CALL bluegreen.start('kills')});
wait_held('kills');
is($green->safe_psql(q{SELECT pg_relation_filenode('kills_pkey')}),
	$filenode, 'nothing has built it for that');
let_go(250);
follows('kills', 'after all that');

#
# Killed while it is built: who writes to the table keeps it waiting
#
my $builds = q{SELECT count(*) > 0 FROM pg_locks
	WHERE NOT granted AND relation = 'built'::regclass AND mode = 'ShareLock'};
my $writer;

sub hold_build
{
	$writer = $green->session;
	$writer->query('BEGIN; LOCK TABLE built IN ROW EXCLUSIVE MODE');
	return;
}
hold(250);
deploy('built');
wait_held('built');
hold_build();
let_go(250);
$green->poll_query_until($builds);
is(indexes('built'), '|2|1', 'it is aside until it is built');
kill9_worker($blue, 'copy');
# the next one waits for that writer before it does anything
ok( $green->poll_query_until(
		q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted
		AND (relation = 'built'::regclass OR locktype = 'virtualxid')}),
	'who builds it can be killed');
$green->kill9;
$green->start;
$green->wait_until_up;
follows('built', 'built after a crash');

#
# What ends the copy brings it back
#
hold(250);
deploy('dropped');
wait_held('dropped');
is(indexes('dropped'), '|2|1', 'aside once more');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('dropped')});
is_whole('dropped', 'dropped');

deploy('unmapped');
wait_held('unmapped');
$blue->safe_psql(q{SELECT bluegreen.unmap_table('unmapped', 'unmapped')});
wait_for_sync('unmapped');
is_whole('unmapped', 'unmapped');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('unmapped')});

#
# A copy worker that has sent its rows sleeps until green answers
#
hold(250);
deploy('waits', q{repeat('x', 2000)});
wait_held('waits');
my $lock = $green->session;
$lock->query('BEGIN; LOCK TABLE bluegreen.applied_chunk IN SHARE MODE');
let_go(250);
my $waits_for_green = q{SELECT count(*) = 1 FROM pg_locks
	WHERE NOT granted AND relation = 'bluegreen.applied_chunk'::regclass};
$green->poll_query_until($waits_for_green);
my $before = copy_usage();
$green->poll_query_until(
	"$waits_for_green AND clock_timestamp() - waitstart > '2 s'");
cmp_ok(copy_usage() - $before, '<', 0.1, 'who waits for green sleeps');
$lock->query('COMMIT');
follows('waits', 'and goes on');

#
# Where a stream leads back, it finds rows by the key
#
$blue->safe_psql("SELECT bluegreen.drop_deployment('$_')") for qw(kills built);
sub key_file { return $green->safe_psql("SELECT pg_relation_filenode('$_[0]_pkey')") }

$_->safe_psql('CREATE TABLE forth (id integer PRIMARY KEY, v text);
	CREATE TABLE back (id integer PRIMARY KEY, v text)') for $blue, $green;
foreach my $table (qw(forth back))
{
	connect_nodes($green, $blue, 'blue') if $table eq 'back';
	my $file = key_file($table);
	$blue->safe_psql("INSERT INTO $table SELECT i, 'row' FROM generate_series(1, 1000) i;
		SELECT bluegreen.create_deployment('$table', 'green');
		SELECT bluegreen.map_table('$table', '$table');
		CALL bluegreen.start('$table')");
	wait_for_sync($table);
	my $same = key_file($table) eq $file;
	ok($table eq 'back' ? $same : !$same,
		$table eq 'back' ? 'with a way back the key stays' : 'else it is built anew');
}
is($blue->safe_psql(q{SELECT count(*) FROM bluegreen.mapping
		WHERE direction = 'backward' AND deployment = 'back'}),
	1, 'and it is mapped back');

done_testing();
