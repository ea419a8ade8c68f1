# The fence under load: it is raised and lowered while clients write at full
# speed, in many ways, and while it is up not one row is committed.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $ROUNDS = 50;

my $node = BlueGreen->blue('one');
$node->safe_psql(q{CREATE EXTENSION pg_bluegreen;
	CREATE TABLE t (id bigserial PRIMARY KEY, v int DEFAULT 0);
	CREATE TABLE part (id bigserial, v int DEFAULT 0) PARTITION BY RANGE (id);
	CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100000000);
	CREATE TABLE seen (round int PRIMARY KEY, before bigint, after bigint,
		xids bigint);
	INSERT INTO t SELECT FROM generate_series(1, 1000);
	INSERT INTO bluegreen.deployment (name, owner, server) VALUES ('d', 10, 'none');
	INSERT INTO bluegreen.table_mapping (deployment, direction, source, view,
		target_schema, target_table, on_write, on_delete, has_other_columns)
	SELECT id, 'forward', r::regclass, 0, 'public', r, 'mirror', 'delete', false
	FROM bluegreen.deployment, unnest('{t,part}'::text[]) r});

my $load = pgbench_start($node, clients => 6, args => ['-M', 'prepared'],
	script => [
		'INSERT INTO t DEFAULT VALUES',
		"\\set id random(1, 1000)\nUPDATE t SET v = v + 1 WHERE id = :id",
		"\\set id random(1, 1000)\nBEGIN;\nUPDATE t SET v = v + 1 WHERE id = :id;\n"
		  . "INSERT INTO part DEFAULT VALUES;\nCOMMIT",
		"\\set id random(1, 1000)\nWITH w AS (DELETE FROM t WHERE id = :id + 1000 RETURNING 1)\n"
		  . 'SELECT count(*) FROM w',
	]);
$node->poll_query_until('SELECT max(id) > 10 FROM part');

# What is committed, by its own word: every row, with the transaction that
# wrote it; read by a session that has no part in the fence.
my $all = "SELECT coalesce((SELECT sum(hashint8(id) + xmin::text::bigint + v)
	FROM t), 0) || ' ' || (SELECT count(*) FROM t) || ' ' ||
	(SELECT count(*) FROM part)";

my ($raiser, $watcher) = map { $node->session } 1, 2;
my ($changed, $held, $running, $moved) = (0, 0, 0, 0);
my $last = '';
foreach my $round (1 .. $ROUNDS)
{
	$raiser->query("CALL bluegreen.fence_raise('d', $round, '170s')");
	is($raiser->errors, '', "round $round") if $raiser->errors ne '';
	my $before = $watcher->query($all);
	my $state = $watcher->query(
		'SELECT running, held > 0 FROM bluegreen.fence_state');
	my $after = $watcher->query($all);
	$changed++ if $before ne $after;
	$running++ if $state !~ /^0\|/;
	$held++ if $state =~ /\|t/;
	$moved++ if $before ne $last;
	$last = $after;
	$raiser->query("CALL bluegreen.fence_lower('d', $round)");
	is($raiser->errors, '', "round $round") if $raiser->errors ne '';
}
is($changed, 0, "in $ROUNDS rounds no row changed while the fence was up");
is($running, 0, 'nobody had written and not ended');
cmp_ok($held, '>', $ROUNDS / 2, "writers were held in most of them ($held)");
cmp_ok($moved, '>', $ROUNDS / 2, "and went on in between ($moved)");
my $tail = $node->safe_psql($all);
ok($node->poll_query_until("SELECT (SELECT count(*) FROM part) > "
		  . (split / /, $tail)[2]), 'they do at the end');

# terminate: not one of those that are held is hit
my $writer = $node->session;
$writer->query('BEGIN; INSERT INTO t VALUES (-1)');	# in nobody's way
my $errors = length $node->log;
$raiser->query("CALL bluegreen.fence_raise('d', 1000, '200 ms', 'terminate')");
is($raiser->errors, '', 'raised over a writer that does not end');
my $log = substr $node->log, $errors;
my @terminated = $log =~ /terminating connection/g;
is(scalar @terminated, 1, 'which is the only one that was terminated');
$raiser->query("CALL bluegreen.fence_lower('d', 1000)");

# closed: all are disconnected, and what they had committed is all there is
$raiser->query("CALL bluegreen.fence_raise('d', 1001, '170s')");
my $before = $watcher->query($all);
$raiser->query("CALL bluegreen.fence_close('d', 1001)");
ok($node->poll_query_until(q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
	WHERE application_name = 'pgbench')}), 'closed: no client is left');
is($watcher->query($all), $before, 'and no row came after');
my @lost = ($node->log) =~ /FATAL:  terminating connection because this side/g;
cmp_ok(scalar @lost, '>=', 6, 'they were told why');
$load->{harness}->kill_kill(grace => 1);
delete $load->{harness};

done_testing();
