# Clocks of the two sides that differ: who wins by commit time is not the later
# one then.  It is said before a window is opened, and while it is open; both sides
# are the same in the end all the same.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::TwoWay;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'\nmax_worker_processes = 24",
	blue_conf => "bluegreen.clock_offset = '-30s'",
	green_conf => "bluegreen.clock_offset = '30s'");

# made has every write of a side, noted when it holds its row
$_->safe_psql(q{
	CREATE TABLE plain (id int PRIMARY KEY, v text);
	CREATE TABLE made (id int, v text,
		at timestamptz NOT NULL DEFAULT clock_timestamp());
	ALTER TABLE plain REPLICA IDENTITY FULL;
	CREATE FUNCTION write_plain(i int, n text, what int) RETURNS void
	LANGUAGE plpgsql AS $$
	BEGIN
		IF what < 6 THEN
			WITH w AS (UPDATE plain SET v = n WHERE id = i RETURNING *)
			INSERT INTO made SELECT id, v FROM w;
		ELSIF what < 8 THEN
			WITH w AS (DELETE FROM plain WHERE id = i RETURNING *)
			INSERT INTO made SELECT id FROM w;
		ELSE
			WITH w AS (INSERT INTO plain VALUES (i, n)
				ON CONFLICT DO NOTHING RETURNING *)
			INSERT INTO made SELECT id, v FROM w;
		END IF;
	END $$}) foreach $blue, $green;
$blue->safe_psql(q{
	INSERT INTO plain SELECT i, '0' FROM generate_series(1, 60) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'plain', conflict => 'blue');
	SELECT bluegreen.accept('d', 'unmapped_table', 'public.made');
	CALL bluegreen.start('d')});
wait_for_both('d');

#
# Before
#
sub clock_check
{
	my ($node) = @_;
	return ($node || $blue)->safe_psql(q{SELECT severity, message
		FROM bluegreen.preflight('d', 'window') WHERE "check" = 'window_clock'});
}

sub set_on_blue
{
	my ($ms) = @_;
	$blue->safe_psql("ALTER SYSTEM SET bluegreen.max_clock_skew = $ms");
	$blue->safe_psql('SELECT pg_reload_conf()');
	return $blue->poll_query_until("SELECT setting = '$ms' FROM pg_settings
		WHERE name = 'bluegreen.max_clock_skew'");
}

like(clock_check(), qr/^ok\|/, 'no policy goes by the clocks');
$blue->safe_psql(
	q{SELECT bluegreen.alter_mapping('d', 'plain', conflict => 'last_write')});
wait_for_both('d');
is($_->safe_psql('SELECT conflict FROM bluegreen.table_mapping'),
	'last_write', "now it does, on $_->{name}") foreach $blue, $green;
like(
	clock_check(),
	qr/^error\|the clock of green is (59|6\d)\.\d\d\d s ahead of that of blue.*Measured to \d\.\d\d\d s/,
	'the clocks are found to be apart');
like(clock_check($green),
	qr/^error\|the clock of blue is (59|6\d)\.\d\d\d s behind that of green/,
	'from green, too');
like($green->safe_psql(q{SELECT hint FROM bluegreen.preflight('d', 'window')
		WHERE "check" = 'window_clock'}),
	qr/^-- on green\n/, 'with a hint for green');
my (undef, undef, $error) = $blue->psql(q{CALL bluegreen.open_window('d')});
like($error, qr/cannot open a window of deployment "d": the clock of green/,
	'no window is opened');
is($blue->safe_psql(q{SELECT count(*) FROM bluegreen.preflight('d')
		WHERE "check" = 'window_clock'}),
	0, 'a switchover does not care');
set_on_blue(90000);
like(clock_check(), qr/^ok\|/, 'within bluegreen.max_clock_skew');
set_on_blue(-1);
like(clock_check(), qr/^ok\|/, 'nobody compares them');
set_on_blue(1000);
like(clock_check(), qr/^error\|/, 'somebody does');
my $hint = $blue->safe_psql(q{SELECT hint FROM bluegreen.preflight('d', 'window')
	WHERE "check" = 'window_clock'});
like($hint, qr/^-- on blue\n/, 'the hint says where');
$blue->safe_psql($hint);
like(clock_check(), qr/^notice\|accepted: /, 'and what: it is accepted');

#
# While it is open
#
$blue->safe_psql(q{CALL bluegreen.open_window('d', '170 s')});
($error) = ($blue->psql(
	q{SELECT bluegreen.alter_mapping('d', 'plain', conflict => 'blue')}))[2];
like($error, qr/cannot change mappings of deployment "d" while its window is open.*close_window/s,
	'no other policy in a window');

# Blue is later, and green wins
stop_both('d', $blue, $green);
$green->safe_psql(q{UPDATE plain SET v = 'green' WHERE id = 1});
$blue->safe_psql(q{UPDATE plain SET v = 'blue' WHERE id = 1});
start_both('d', $blue, $green);
settle('d', $blue, $green);
is($_->safe_psql('SELECT v FROM plain WHERE id = 1'),
	'green', "$_->{name} has green's, which was not later") foreach $blue, $green;
like($blue->safe_psql('SELECT decision FROM bluegreen.conflict'),
	qr/^green wins \(last_write\)/, 'a conflict tells');
ok( $blue->poll_query_until(q{SELECT count(*) = 1 FROM bluegreen.event
		WHERE kind = 'clock' AND deployment = 'd'
		AND message LIKE 'the clock of the other side is ahead, by %'}),
	'an event on blue says that the other clock is ahead')
  or diag $blue->safe_psql(q{SELECT * FROM bluegreen.event});
is( $blue->safe_psql(q{SELECT clock_ahead > '1 s' AND clock_ahead < '65 s'
		FROM bluegreen.stat_stream}),
	't', 'the view stat_stream, by how much');
like($blue->safe_psql('SELECT error FROM bluegreen.status'),
	qr/^the other clock is 00:0\d:\d\d.* ahead$/, 'and status');
is( $green->safe_psql(q{SELECT clock_ahead IS NULL,
		(SELECT count(*) FROM bluegreen.event WHERE kind = 'clock')
		FROM bluegreen.stat_stream}),
	't|0', 'not on green');

#
# Load on both sides
#
$_->safe_psql('TRUNCATE bluegreen.conflict_log, made') for $blue, $green;

sub load
{
	my ($node) = @_;
	return pgbench_start($node,
		clients => 2,
		rate => 150,
		script => "\\set i random(1, 80)\n\\set what random(0, 9)\n"
		  . "\\set n random(1, 1000000000)\n"
		  . "SELECT write_plain(:i, '$node->{name} ' || :n, :what);");
}
stop_both('d', $blue, $green);
my @loads = map { load($_) } $blue, $green;
ok($_->poll_query_until('SELECT count(*) > 80 FROM made'),
	"$_->{name} writes") for $blue, $green;
start_both('d', $blue, $green);
ok($_->poll_query_until('SELECT count(*) > 300 FROM made'),
	"$_->{name} writes on") for $blue, $green;
ok(pgbench_stop($_), 'to the end') for @loads;
ok(settle('d', $blue, $green), 'both streams run');
# the last writes of some rows meet for certain
stop_both('d', $blue, $green);
foreach my $node ($green, $blue)
{
	$node->safe_psql("SELECT write_plain(i, '$node->{name} last', 5) FROM generate_series(1, 5) i");
}
start_both('d', $blue, $green);
ok(settle('d', $blue, $green), 'to the end');
compare_tables('TABLE plain', 'TABLE plain', 'both sides are the same');

# Who is not as the last write left it is in a conflict
my (%last, %is, %told);
foreach my $node ($blue, $green)
{
	foreach (split /\n/, $node->safe_psql(
		q{SELECT id, coalesce(v, 'gone'), extract(epoch FROM at) FROM made}))
	{
		my ($id, $v, $at) = split /\|/;
		$last{$id} = [ $at, $v ] if !$last{$id} || $last{$id}[0] < $at;
	}
	$told{$_} = 1
	  for split /\n/, $node->safe_psql(
		q{SELECT substring(key from '''(\d+)''') FROM bluegreen.conflict});
}
%is = map { split /\|/ } split /\n/, $blue->safe_psql('TABLE plain');
my @lost = grep { ($is{$_} // 'gone') ne $last{$_}[1] } keys %last;
cmp_ok(scalar @lost, '>', 0, 'later writes are lost');
is(join(' ', grep { !$told{$_} } @lost), '', 'each with a conflict that says so');
$blue->safe_psql(q{CALL bluegreen.close_window('d', 'blue', '170 s', '100 s')});
is($blue->safe_psql('SELECT clock_ahead IS NULL FROM bluegreen.stat_stream'),
	't', 'nobody cares after the window');

done_testing();
