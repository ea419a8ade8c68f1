# A to B to C, with ways back: every change arrives everywhere, once.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($a, $b) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
my $c = BlueGreen->blue('c', 'bluegreen.allow_target_writes = on');
$c->safe_psql('CREATE EXTENSION pg_bluegreen');
connect_nodes($b, $c, 'further');
connect_nodes($c, $b, 'back');

$_->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE log (who text, what int);
	ALTER TABLE log REPLICA IDENTITY FULL;}) for $a, $b, $c;
$a->safe_psql(q{INSERT INTO t SELECT i, 'a' FROM generate_series(1, 500) i;
	INSERT INTO log SELECT 'a', i FROM generate_series(1, 5) i;
	SELECT bluegreen.create_deployment('ab', 'green');
	SELECT bluegreen.map_schema('ab', 'public');
	CALL bluegreen.start('ab');
	CALL bluegreen.wait_for_sync('ab', '180 s');});
$b->safe_psql(q{SELECT bluegreen.create_deployment('bc', 'further');
	SELECT bluegreen.map_schema('bc', 'public');
	CALL bluegreen.start('bc');});

# Each stream, as often as a change has to go through streams.
sub settle
{
	foreach (1 .. 3)
	{
		wait_for_sync('ab', node => $_) for $a, $b;
		wait_for_sync('bc', node => $_) for $b, $c;
	}
	return;
}

sub all_same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	settle();
	foreach my $table (qw(t log))
	{
		compare_tables("TABLE $table", "TABLE $table", "$name: $table, A and B",
			blue => $a, green => $b);
		compare_tables("TABLE $table", "TABLE $table", "$name: $table, B and C",
			blue => $b, green => $c);
	}
	return;
}

sub rows_of
{
	return join ' ', map {
		$_->safe_psql(q{SELECT string_agg(deployment || ' ' || left(direction, 1)
				|| '=' || rows, ' ' ORDER BY deployment)
			FROM bluegreen.stat_stream})
	} $a, $b, $c;
}

all_same('copied');
is( $b->safe_psql(q{SELECT deployment, direction, state
		FROM bluegreen.stat_stream ORDER BY 1}),
	"ab|backward|streaming\nbc|forward|streaming",
	'B is green of one deployment and blue of the other');
# what was there is copied by bc: A's rows have an origin at B, and are in the
# copy or in the stream
is(rows_of(), 'ab f=0 ab b=0 bc f=0 bc b=0', 'nobody sent anything back');

$a->safe_psql(q{UPDATE t SET v = 'from a' WHERE id <= 10;
	INSERT INTO log VALUES ('a', 1), ('a', 1);});
all_same('A writes');
is(rows_of(), 'ab f=12 ab b=0 bc f=12 bc b=0', 'it goes on to C, and not back');
$c->safe_psql(q{UPDATE t SET v = 'from c' WHERE id BETWEEN 6 AND 20;
	DELETE FROM log WHERE who = 'a' AND what = 3;});
all_same('C writes');
is(rows_of(), 'ab f=12 ab b=16 bc f=12 bc b=16', 'it goes on to A, and no further');
$b->safe_psql(q{UPDATE t SET v = 'from b' WHERE id = 7;
	INSERT INTO t VALUES (1000, 'b');});
all_same('B writes');
is(rows_of(), 'ab f=12 ab b=18 bc f=14 bc b=16', 'it goes both ways');

# all at once, and one of them crashes
my %first = (a => 2000, b => 3000, c => 4000);
my @bench = map {
	my ($node, $name) = @$_;
	pgbench_start($node, clients => 1, rate => 50, script => <<"SQL")
\\set id random($first{$name}, $first{$name} + 200)
INSERT INTO t VALUES (:id, '$name') ON CONFLICT (id) DO UPDATE SET v = t.v || '$name';
INSERT INTO log VALUES ('$name', :id);
SQL
} [ $a, 'a' ], [ $b, 'b' ], [ $c, 'c' ];
$c->poll_query_until(q{SELECT count(DISTINCT who) = 3 FROM log WHERE what > 1000});
pgbench_stop($bench[1]);
$b->kill9;
$b->start;
pgbench_stop($bench[$_]) for 0, 2;
all_same('B was killed');
is( join(' ', map { $_->safe_psql('SELECT count(*) FROM bluegreen.conflict') }
		  $a, $b, $c),
	'0 0 0', 'there was no conflict');

# another deployment of the same name
(undef, undef, my $error) = $a->psql(q{
	SELECT bluegreen.create_deployment('bc', 'green');
	SELECT bluegreen.map_table('bc', 't', 'log',
		'SELECT v AS who, id AS what FROM t', key => '{}');
	CALL bluegreen.start('bc', allow_nonempty => true);});
like($error,
	qr/could not be started: deployment "bc" exists on the peer and is another one/,
	'a name that is taken on the peer has no way back');
$a->safe_psql(q{SELECT bluegreen.drop_deployment('bc')});
is($b->safe_psql('SELECT count(*) FROM bluegreen.deployment'),
	2, 'and is left alone');

$b->safe_psql(q{SELECT bluegreen.drop_deployment('bc')});
$a->safe_psql(q{SELECT bluegreen.drop_deployment('ab')});
is( join(' ', map { $_->safe_psql(q{SELECT
			(SELECT count(*) FROM pg_replication_slots)
			+ (SELECT count(*) FROM pg_replication_origin)
			+ (SELECT count(*) FROM bluegreen.deployment)}) } $a, $b, $c),
	'0 0 0', 'nothing is left anywhere');

done_testing();
