# Tokens: who takes one on a side after a commit and waits for it on the other
# sees what was committed, whatever it was; others are refused, or wait as long
# as they want to, without a snapshot.
use strict;
use warnings;

use BlueGreen;
use Test::More;
use Time::HiRes qw(time);

my ($blue, $green) = create_pair(way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'");
foreach my $node ($blue, $green)
{
	$node->safe_psql(q{
		CREATE TABLE t (id int PRIMARY KEY, v text);
		CREATE TABLE u (id int PRIMARY KEY);
		CREATE TABLE late (id int PRIMARY KEY);
		CREATE ROLE app LOGIN;
		GRANT ALL ON t TO app;});
}

is($blue->safe_psql('SELECT bluegreen.token() IS NULL'),
	't', 'no deployment, no token');
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');});
is($blue->safe_psql('SELECT bluegreen.token() IS NULL'),
	't', 'a deployment that was not started: nothing to wait for');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_both('d');

# as applications have them: any role, connections that stay
my ($b, $g) = map { $_->session } $blue, $green;
$_->query('SET SESSION AUTHORIZATION app') for $b, $g;

my $token = 'SELECT bluegreen.token()';

sub call
{
	my ($session, $text, $timeout) = @_;
	$timeout //= '120 s';
	return $session->query(
		"CALL bluegreen.wait_for_token('$text', '$timeout', NULL)");
}

#
# What was committed can be seen
#
my $own = $b->query($token);
like($own, qr/^b\.\d+\.[0-9A-F]+\.[0-9A-F]{16}\.[0-9A-F]{8}$/, 'a token');
is(call($b, $own, '0'), 't', 'a token of this side is there at once');

sub seen
{
	my ($from, $to, $first) = @_;
	my ($reached, $seen) = (0, 0);
	foreach my $i ($first .. $first + 49)
	{
		$from->query("INSERT INTO t VALUES ($i, 'x')");
		my $text = $from->query($token);
		$reached += call($to, $text) eq 't';
		$seen += $to->query("SELECT count(*) FROM t WHERE id = $i");
	}
	return "$reached $seen";
}
is(seen($b, $g, 1), '50 50', 'blue to green: read after write, fifty times');
is(seen($g, $b, 101), '50 50', 'and back');
is(call($g, $own, '0'), 't', 'an older token is there at once');

my $begin = time;
$blue->safe_psql('INSERT INTO u VALUES (1)');
my $unmapped = $b->query($token);
is(call($g, $unmapped), 't', 'a commit that is none of the stream\'s');
$blue->safe_psql('SET synchronous_commit = off; INSERT INTO u VALUES (2)');
is(call($g, $b->query($token)), 't', 'one that nobody has flushed');
$blue->safe_psql(q{BEGIN; INSERT INTO t VALUES (90, 'p'); COMMIT});
is(call($g, $b->query($token)), 't', 'a commit of somebody else');
cmp_ok(time - $begin, '<', 60, '... are told, not found out after the timeout');

#
# Waiting
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$b->query("INSERT INTO t VALUES (91, 'late')");
my $late = $b->query($token);
$begin = time;
is(call($g, $late, '300 ms'), 'f', 'not there in time');
cmp_ok(time - $begin, '>=', 0.3, '... and it has waited for so long');
is($g->query("SELECT bluegreen.wait_for_token('$late', '0')"),
	'f', 'the function tells as well');

my @waiters = map { $green->session } 1 .. 3;
$_->query('SET SESSION AUTHORIZATION app') for @waiters;
$begin = time;
$_->send("CALL bluegreen.wait_for_token('$late', '170 s', NULL)")
  for @waiters;
my $pids = join ',', map { $_->pid } @waiters;
$green->poll_query_until(
	"SELECT count(*) FROM pg_stat_activity WHERE pid IN ($pids)
	AND wait_event_type = 'Extension'", 3) or die;
is( $green->safe_psql(
		"SELECT count(backend_xmin), count(backend_xid)
		FROM pg_stat_activity WHERE pid IN ($pids)"),
	'0|0', 'who waits holds no snapshot');
$blue->safe_psql(q{CALL bluegreen.start('d')});
is(join(' ', map { $_->wait } @waiters),
	't t t', 'they are woken when it is there');
cmp_ok(time - $begin, '<', 100, '... and not by their timeout');
is($waiters[0]->query('SELECT v FROM t WHERE id = 91'),
	'late', '... and see it');
$_->quit for @waiters;

#
# In transactions
#
$b->query('BEGIN');
like($b->query($token), qr/^b/, 'in a transaction that has not written');
$b->query('INSERT INTO t VALUES (92)');
$b->query($token);
like($b->errors, qr/cannot make a token in a transaction that has written/,
	'... that has written');
$b->query('ROLLBACK');
$b->query("INSERT INTO t VALUES (93, 'y')");
my $last = $b->query($token);
$g->query('BEGIN');
call($g, $last);
like($g->errors, qr/cannot run inside a transaction block/,
	'CALL in a transaction block');
$g->query('ROLLBACK');
is( $g->query("BEGIN; SELECT bluegreen.wait_for_token('$last', '120 s');
		SELECT v FROM t WHERE id = 93; COMMIT"),
	"t\ny", 'the function, and the next statement sees the row');
$g->query("BEGIN ISOLATION LEVEL REPEATABLE READ;
	SELECT bluegreen.wait_for_token('$last', '120 s')");
like($g->errors, qr/snapshot is taken/, 'not with a snapshot that stays');
$g->query('ROLLBACK');

#
# What is no token
#
my @wrong = (
	'', 'b', 'nonsense', "$last ", lc $last, "${last}0", "g" . substr($last, 1),
	$last =~ s/\.(\d+)\./.1$1./r, $last =~ s/\.([0-9A-F]+)\./.0$1./r,
	map { substr $last, 0, $_ } 10 .. length($last) - 1);
my $refused = 0;
foreach my $text (@wrong)
{
	call($g, $text);
	$refused++ if $g->errors =~ /invalid token/;
}
is($refused, scalar @wrong, 'what was cut off or changed is refused');
is($g->query(q{CALL bluegreen.wait_for_token(NULL, '0', NULL)}),
	't', 'no token, nothing to wait for');
$g->query("CALL bluegreen.wait_for_token('$last', NULL, NULL)");
like($g->errors, qr/argument "timeout" must not be null/, 'no timeout');

#
# After restarts, also where nothing was applied
#
$blue->safe_psql('INSERT INTO u VALUES (3)');
$unmapped = $b->query($token);
$_->quit for $b, $g;
$green->restart('immediate');
$g = $green->session;
is(call($g, $unmapped, '170 s'), 't', 'green was restarted');
$blue->safe_psql('INSERT INTO u VALUES (4)');
$b = $blue->session;
$unmapped = $b->query($token);
$b->quit;
$blue->restart('immediate');
is(call($g, $unmapped, '170 s'), 't', 'blue was restarted');

#
# While a table is copied
#
$b = $blue->session;
wait_for_both('d');
$blue->append_conf('bluegreen.copy_workers = 0');
$blue->reload;
$b->query(q{SELECT bluegreen.map_table('d', 'late')});
$green->poll_query_until(q{SELECT count(*) FROM bluegreen.applied_table
	WHERE state = 'copying'}, 1) or die;
is(call($g, $b->query($token)), 'f', 'a table that is copied is not there');
$blue->append_conf('bluegreen.copy_workers = 2');
$blue->reload;
wait_for_both('d');
is(call($g, $b->query($token)), 't', '... but when it follows');

#
# Two deployments
#
$b->query(q{SELECT bluegreen.create_deployment('e', 'green');
	SELECT bluegreen.map_table('e', 'u', 'late');});
$blue->safe_psql(q{CALL bluegreen.start('e', allow_nonempty => true)});
wait_for_sync('e');
$b->query($token);
like($b->errors, qr/takes part in 2 deployments/, 'which one?');
my $other = $b->query(q{SELECT bluegreen.token('e')});
is(call($g, $other), 't', 'each has its own');
is(call($g, $b->query(q{SELECT bluegreen.token('d')})), 't', '... position');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('e')});
call($g, $other);
like($g->errors, qr/of a deployment that this database does not take part in/,
	'a token of another deployment');
$b->query(q{SELECT bluegreen.token('e')});
like($b->errors, qr/deployment "e" does not exist/, 'of none');

#
# After a move, the side that was left is not needed any more
#
$b->query("INSERT INTO t VALUES (94, 'z')");
my $before = $b->query($token);
$blue->safe_psql(q{CALL bluegreen.switchover('d')});
is(call($b, $g->query($token)), 't', 'green\'s token, on blue');
$b->quit;
$g->quit;
$blue->stop('immediate');
$green->restart('immediate');
$g = $green->session;
is(call($g, $before, '0'), 't', 'a token from before the move is there');
$g->quit;

done_testing();
