# A disk that is full, on either side: the stream says so, tries again, leaves
# nothing out, and goes on by itself when there is space.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $reason = BlueGreen::Node::own_mounts();
plan skip_all => $reason if $reason;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'",
	blue_conf => "bluegreen.decoding_work_mem = '64kB'\n"
	  . "logical_decoding_work_mem = '64kB'\n"
	  . "max_wal_size = '256MB'",
	green_conf => "wal_init_zero = on\nmax_wal_size = '16MB'\n"
	  . "min_wal_size = '2MB'",
	initdb => ['--wal-segsize=1']);

# A table of green lives on the small disk, another beside it.
my $space = $green->small_disk('space', 96);
$green->safe_psql("CREATE TABLESPACE small LOCATION '$space'");
$green->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v text)
		TABLESPACE small;
	CREATE TABLE other (id int PRIMARY KEY)});
$blue->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE other (id int PRIMARY KEY);
	INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 4000) i});

sub stream
{
	my ($column) = @_;
	return $blue->safe_psql(
		"SELECT $column FROM bluegreen.stat_stream WHERE deployment = 'disk'");
}

# The stream has stopped at a full disk, more than once ($tries: SQL).
sub stops_with
{
	my ($message, $tries, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( $blue->poll_query_until("SELECT state = 'error'
			AND error_sqlstate = '53100' AND $tries
			FROM bluegreen.stat_stream"),
		"$name: the stream is in state error, and tries again");
	like(stream('error_message'), $message, 'and says why');
	like($blue->safe_psql('SELECT error FROM bluegreen.status'),
		qr/^.{10}/, 'in status as well');
	is(stream('error_lsn'), '', 'it is no transaction to be left out');
	my (undef, undef, $error) = $blue->psql("\\set VERBOSITY verbose\n"
		  . q{CALL bluegreen.wait_for_sync('disk', '100 ms')});
	like($error, qr/57014/, 'who waits for the stream goes on waiting');
	return;
}

sub goes_on
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('disk');
	compare_tables('TABLE t', 'TABLE t', "with space the stream goes on: $name");
	compare_tables('TABLE other', 'TABLE other', 'in all tables', empty => 1);
	is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
		0, 'without a conflict');
	is(stream('state, skipped, error_at IS NULL'),
		'streaming|0|t', 'and without leaving out anything');
	return;
}

#
# Green, while it is copied and afterwards
#
$green->fill_disk($space, 2048);
$blue->safe_psql(q{SELECT bluegreen.create_deployment('disk', 'green');
	SELECT bluegreen.map_table('disk', 't');
	SELECT bluegreen.map_table('disk', 'other');
	CALL bluegreen.start('disk')});
stops_with(
	qr/could not copy to "public\.t": peer lacks resources: .*No space left/s,
	'errors > 2', 'green is full, copy');
$green->empty_disk($space);
goes_on('copy');

$green->fill_disk($space, 512);
$blue->safe_psql(q{INSERT INTO t SELECT i, repeat('y', 1000)
		FROM generate_series(10001, 14000) i;
	INSERT INTO other VALUES (1)});
stops_with(qr/^peer lacks resources: .*No space left/s,
	'failures > 3', 'green is full, stream');
is($green->safe_psql('SELECT count(*) FROM other'),
	0, 'what was committed later waits');
$green->empty_disk($space);
goes_on('stream');

#
# Green's WAL.  That is a PANIC, and nothing runs there until there is space.
#
$green->stop;
my $wal = $green->small_disk('pg_wal', 64);
$green->start;
$green->fill_disk($wal, 1024);
$blue->safe_psql(q{UPDATE t SET v = repeat('z', 1000)});
ok( $blue->poll_query_until(
		q{SELECT state = 'error' AND failures > 1 FROM bluegreen.stat_stream}),
	"green's WAL has no space: the stream waits");
$green->empty_disk($wal);
BlueGreen::Node::wait_until(
	sub { eval { $green->start }; $green->psql('SELECT 1') == 0 })
  or die 'green does not come up';
goes_on("green's WAL");

#
# Blue, where large transactions are spilled and the slot's state is kept
#
$blue->safe_psql(q{CALL bluegreen.stop('disk')});
$blue->stop;
my $slots = $blue->small_disk('pg_replslot', 64);
$blue->start;
$blue->safe_psql(q{CALL bluegreen.start('disk')});
wait_for_sync('disk');
$blue->fill_disk($slots, 2048);
$blue->safe_psql(q{UPDATE t SET v = repeat('a', 1000);
	INSERT INTO other VALUES (2)});
stops_with(qr/^could not write to data file for XID \d+: No space left/,
	'failures > 3', 'blue is full, spilling');
is($green->safe_psql('SELECT max(id) FROM other'),
	1, 'what was committed later waits');
$blue->safe_psql(q{CALL bluegreen.stop('disk')});
is( join(' ', glob $blue->data_dir . '/pg_replslot/*/xid*'),
	'', 'who stops does not leave spilled files on the full disk');

# no byte left for the slots' state, and a restart of blue
$blue->empty_disk($slots);
$blue->fill_disk($slots, 0);
$blue->safe_psql(q{CALL bluegreen.start('disk')});
$blue->psql('CHECKPOINT');
ok($blue->poll_query_until(q{SELECT state = 'error' AND failures > 1
		FROM bluegreen.stat_stream}),
	'no space at all: the stream waits');
$blue->restart;
ok($blue->poll_query_until(q{SELECT state = 'error' AND failures > 1
		FROM bluegreen.stat_stream}),
	'also after a restart');
$blue->empty_disk($slots);
wait_for_sync('disk');

# Decoding fails before the position that is applied already: a transaction is
# open, of which more than memory holds lies before it.
my $writer = $blue->session;
$writer->query(q{BEGIN; UPDATE t SET v = repeat('b', 1000)});
$blue->safe_psql('INSERT INTO other VALUES (3)');
wait_for_sync('disk');
$blue->safe_psql(q{CALL bluegreen.stop('disk')});
$blue->fill_disk($slots, 0);
$blue->safe_psql(q{CALL bluegreen.start('disk')});
ok($blue->poll_query_until(q{SELECT state = 'error' AND failures > 3
		FROM bluegreen.stat_stream}),
	'no space for what was read before: the stream waits, and says so');
$writer->query('COMMIT');
undef $writer;
unlike($blue->log, qr/PANIC/, 'no process of blue has panicked');

$blue->empty_disk($slots);
goes_on('spilling');
my $confirmed = stream('confirmed_lsn');
$blue->safe_psql('INSERT INTO other VALUES (4)');
ok($blue->poll_query_until("SELECT confirmed_lsn > '$confirmed'
		FROM bluegreen.stat_stream"),
	'the slot can be confirmed again');
$blue->safe_psql('CHECKPOINT');
is(join(' ', glob $blue->data_dir . '/pg_replslot/*/state.tmp'),
	'', 'and its state is saved');

done_testing();
