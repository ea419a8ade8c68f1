# Tokens: who takes one on a side after a commit and waits for it on the other
# sees what was committed, whatever it was; others are refused, or wait as long
# as they want to, without a snapshot.  120_token_moves.pl: after moves and
# failovers.
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
like($own, qr/^b\.\d+(\.[0-9A-F]{9,}){2}\.[0-9A-F]{16}\.[0-9A-F]{8}$/,
	'a token');
is(call($b, $own, '0'), 't', 'a token of this side is there at once');

# the parts of a token that a test looks at, or makes up
sub position
{
	my (undef, undef, undef, $lsn) = split /\./, $_[0];
	return sprintf '%X/%X', hex(substr $lsn, 0, -8), hex(substr $lsn, -8);
}

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

# of what has no row for the other side no commit there tells
$b->query('SET SESSION AUTHORIZATION DEFAULT');
my $begin = time;
my $told = 0;
foreach my $i (101 .. 140)
{
	$b->query("INSERT INTO u VALUES ($i)");
	$told += call($g, $b->query($token)) eq 't';
}
is($told, 40, 'commits that are none of the stream\'s');
cmp_ok(time - $begin, '<', 12, '... are told at once, not once a second');
$b->query('SET SESSION AUTHORIZATION app');

# Nobody flushes it by himself for long: the time of WAL writers is also that
# after which a stream's worker does it.
$blue->append_conf("wal_writer_delay = '10s'");
$blue->reload;
$blue->poll_query_until('SHOW wal_writer_delay', '10s') or die;
$b->query('INSERT INTO t VALUES (201)');	# the worker knows, too
is(call($g, $b->query($token)), 't', 'the stream goes on');
$begin = time;
$blue->safe_psql('SET synchronous_commit = off; INSERT INTO u VALUES (2)');
is(call($g, $b->query($token)), 't', 'a commit that nobody has flushed');
cmp_ok(time - $begin, '<', 6, '... token() has flushed');
$blue->append_conf("wal_writer_delay = '200ms'");
$blue->reload;
$blue->safe_psql(q{BEGIN; INSERT INTO t VALUES (90, 'p'); COMMIT});
is(call($g, $b->query($token)), 't', 'a commit of somebody else');

# what is in WAL already may be committed, and seen, before a commit says so
my $writer = $blue->session;
$writer->query(q{BEGIN; INSERT INTO u SELECT generate_series(1000, 1100)});
my $inserted = $blue->safe_psql('SELECT pg_current_wal_insert_lsn()');
is( $blue->safe_psql("SELECT '" . position($b->query($token))
		  . "'::pg_lsn >= '$inserted'"),
	't', 'a token is behind all that is in WAL');
$writer->query('ROLLBACK');
$writer->quit;

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

# who waits for what will never come
my $far = forge_token($late, '7FFFFFFF00000000');
is(call($g, $far, '100 ms'), 'f', 'a position that is made up');
is(call($b, $far), 'f', '... on its own side: at once');
my @far = map { $green->session } 1 .. 3;
$_->query('SET SESSION AUTHORIZATION app') for @far;
my @far_pids = map { $_->pid } @far;
$_->send("CALL bluegreen.wait_for_token('$far', '170 s', NULL)") for @far;
my $all_far = join ',', @far_pids;
$green->poll_query_until(
	"SELECT count(*) FROM pg_stat_activity WHERE pid IN ($all_far)
	AND wait_event_type = 'Extension'", 3) or die;
my @before = map { (usage_of($_))[1] } @far_pids;
is(seen($b, $g, 301), '50 50', 'others do not wait for them');
my @after = map { (usage_of($_))[1] } @far_pids;
cmp_ok($after[$_] - $before[$_], '<', 20, 'nor is he woken when they are')
  for 0 .. 2;
my ($cancelled, $ended, $last_one) = @far_pids;
$green->safe_psql("SELECT pg_cancel_backend($cancelled),
	pg_terminate_backend($ended, 180000)");
$far[0]->wait;
like($far[0]->errors, qr/canceling statement due to user request/,
	'who waits can be cancelled');
is(call($far[0], $late), 't', '... and goes on');
is($green->safe_psql("SELECT count(*) FROM pg_stat_activity
	WHERE pid = $ended"), 0, '... or ended');
$green->safe_psql("SELECT pg_terminate_backend($last_one, 180000)");
is(seen($b, $g, 401), '50 50', '... and the stream is well');
$far[0]->quit;

# what is committed but waits for a standby cannot be seen
$green->append_conf("synchronous_standby_names = 'nobody'");
$green->reload;
$green->poll_query_until('SHOW synchronous_standby_names', 'nobody') or die;
$b->query("INSERT INTO t VALUES (95, 'standby')");
my $waits = $b->query($token);
$green->poll_query_until(
	"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'
	AND application_name = 'bluegreen d forward'", 1) or die;
is(call($g, $waits, '300 ms'), 'f',
	'what is committed but waits for a standby is not there');
is($g->query('SELECT count(*) FROM t WHERE id = 95'), 0, '... nor is it seen');
$green->append_conf("synchronous_standby_names = ''");
$green->reload;
is(call($g, $waits), 't', '... but then it is');
is($g->query('SELECT count(*) FROM t WHERE id = 95'), 1, '... and seen');

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
my $unmapped = $b->query($token);
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
$b->query('INSERT INTO late VALUES (1)');
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$b->query(q{SELECT bluegreen.map_table('d', 'late')});
my $mapped = $b->query($token);
$waiters[0] = $green->session;
$waiters[0]->send("CALL bluegreen.wait_for_token('$mapped', '170 s', NULL)");
$green->poll_query_until('SELECT count(*) FROM pg_stat_activity
	WHERE pid = ' . $waiters[0]->pid . q{ AND wait_event_type = 'Extension'},
	1) or die;
$blue->safe_psql(q{CALL bluegreen.start('d')});
is($waiters[0]->wait, 'f',
	'a table that was mapped while somebody waits is not there either');
$waiters[0]->quit;
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

$_->quit for $b, $g;

done_testing();
