# SIGKILL for whatever takes part, at random moments under load, half of the
# times during the copy: the stream's worker, copy workers, the launcher, the
# recorder, either postmaster, both, the stream's sessions on green.  Nothing is
# lost, nothing is applied twice, and nothing arrives that blue has forgotten.
#
# Environment:
#	BLUEGREEN_KILLS		how often, default 50
#	BLUEGREEN_SEED		repeats the choice of victims and moments
use strict;
use warnings;

use BlueGreen;
use File::Temp;
use IPC::Run;
use List::Util qw(max);
use Test::More;
use Time::HiRes qw(usleep);

my $kills = $ENV{BLUEGREEN_KILLS} || 50;
my $seed = $ENV{BLUEGREEN_SEED} || time;
srand $seed;
note("BLUEGREEN_SEED=$seed BLUEGREEN_KILLS=$kills");

# chunks of 200 rows, of which there are 15 for each of half of the kills
my $accounts = 2_000 * max(50, $kills);

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '20ms'\n"
	  . "bluegreen.restart_delay_max = '200ms'\n"
	  . "bluegreen.batch_delay = '20ms'\n"
	  . "shared_buffers = '16MB'",
	blue_conf => "bluegreen.copy_chunk_rows = 200\n"
	  . "bluegreen.batch_rows = 1000");

# Each transaction adds one to an account, and a row to the ledger; some rows
# of the ledger are confirmed, some are withdrawn.
my $ddl = q{
CREATE TABLE account (id int PRIMARY KEY, v int NOT NULL, filler text);
CREATE TABLE ledger (id bigint PRIMARY KEY, account int NOT NULL,
	v int NOT NULL DEFAULT 0);
CREATE TABLE attempt (id bigint PRIMARY KEY, v int NOT NULL DEFAULT 0);};
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(qq{
CREATE SEQUENCE number;
INSERT INTO account SELECT i, 0, repeat('x', 50)
	FROM generate_series(1, $accounts) i;
ANALYZE account;});

# Green writes down whatever is written, in the same transaction.  Values only
# grow, so no change may be there twice, and none may come after a later one.
$green->safe_psql(q{
CREATE TABLE applied (n bigserial PRIMARY KEY, what text NOT NULL,
	op text NOT NULL, id bigint NOT NULL, v int NOT NULL);
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql
SET search_path = public AS $$
DECLARE
	r record := coalesce(NEW, OLD);
BEGIN
	INSERT INTO applied (what, op, id, v)
		VALUES (tg_table_name, tg_op, r.id, r.v);
	RETURN NULL;
END $$;});
foreach my $table (qw(account ledger attempt))
{
	$green->safe_psql(qq{
CREATE TRIGGER write_down AFTER INSERT OR UPDATE OR DELETE ON $table
	FOR EACH ROW EXECUTE FUNCTION write_down();
ALTER TABLE $table ENABLE ALWAYS TRIGGER write_down;});
}

# Each chunk takes a while, and between two kills there are not more of them
# than $step, so that there is a copy to be killed however slow the server is.
my $step = 15;
$green->safe_psql(q{
CREATE TABLE allowed (chunks bigint NOT NULL);
INSERT INTO allowed VALUES (0);
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql
SET search_path = public AS $$
BEGIN
	LOOP
		PERFORM pg_sleep(0.06);
		EXIT WHEN (SELECT count(*) FROM bluegreen.applied_chunk)
			< (SELECT chunks FROM allowed);
	END LOOP;
	RETURN NULL;
END $$;
CREATE TRIGGER take_time BEFORE INSERT ON account
	FOR EACH STATEMENT EXECUTE FUNCTION take_time();
ALTER TABLE account ENABLE ALWAYS TRIGGER take_time;});

#
# Load that comes back after a crash of blue.  Of what it commits
# asynchronously blue forgets the last part when it crashes.
#
my $files = File::Temp->newdir;
my $commit = '\set asynchronous random(0, 1)
\if :asynchronous
SET LOCAL synchronous_commit = off;
\endif
COMMIT;';
my %scripts = (
	'small@95' => "\\set id random(1, $accounts)
BEGIN;
UPDATE account SET v = v + 1 WHERE id = :id;
INSERT INTO attempt VALUES (nextval('number'));
INSERT INTO ledger VALUES (nextval('number'), :id);
$commit",
	'later@4' => "BEGIN;
UPDATE ledger SET v = v + 1 WHERE id = (SELECT max(id) - 100 FROM ledger);
DELETE FROM attempt WHERE id = (SELECT min(id) FROM attempt);
$commit",
	'giant@1' => "\\set id random(1, $accounts - 1500)
BEGIN;
WITH u AS (UPDATE account SET v = v + 1 WHERE id BETWEEN :id AND :id + 1499
	RETURNING id)
INSERT INTO ledger SELECT nextval('number'), id FROM u;
$commit");
foreach my $name (keys %scripts)
{
	open my $script, '>', "$files/$name" =~ s/@.*//r or die $!;
	print $script "$scripts{$name}\n";
	close $script;
}
my $load = IPC::Run::start(
	[
		'bash', '-c',
		'cd "$1"; while [ ! -e stop ]; do "$2/pgbench" -n -c 4 -R 200 -T 3600'
		  . ' -f small@95 -f later@4 -f giant@1 "$3" >log 2>&1 || sleep 0.05;'
		  . ' done',
		'load', "$files", $blue->{client}, $blue->connstr
	],
	'<', '/dev/null', '>', '/dev/null', '2>&1');

END
{
	$load->kill_kill(grace => 1) if $load && $load->pumpable;
}

sub stop_load
{
	open my $stop, '>', "$files/stop" or die $!;
	close $stop;
	BlueGreen::Node::wait_until(
		sub {
			$blue->psql(q{SELECT pg_terminate_backend(pid, 10000)
				FROM pg_stat_activity WHERE application_name = 'pgbench'});
			return !$load->pumpable;
		}) or die 'the load does not stop';
	return;
}

#
# Waiting, never for ever
#
sub give_up
{
	my ($what) = @_;
	diag("BLUEGREEN_SEED=$seed");
	foreach my $question (
		[ $blue => 'SELECT * FROM bluegreen.stat_stream' ],
		[ $blue => 'SELECT * FROM bluegreen.copy_progress' ],
		[ $blue => 'SELECT * FROM bluegreen.copy_state()' ],
		[ $blue => 'SELECT * FROM pg_replication_slots' ],
		[ $blue => 'SELECT * FROM pg_stat_activity' ],
		[ $green => 'SELECT * FROM bluegreen.applied_table' ],
		[ $green => 'SELECT * FROM pg_replication_origin_status' ],
		[ $green => 'SELECT * FROM pg_stat_activity' ])
	{
		my ($node, $sql) = @$question;
		my (undef, $out, $err) =
		  $node->psql($sql, extra_params => ['-x'], timeout => 30);
		diag($node->name, ": $sql\n$out$err");
	}
	diag('pgbench: ', BlueGreen::Node::slurp("$files/log"));
	die "$what\n";
}

my $applied = 'SELECT coalesce(max(n), 0) FROM applied';
my $chunks = 'SELECT count(*) FROM bluegreen.applied_chunk';

# Wait until a number on green is above $n.
sub wait_for_more
{
	my ($sql, $n, $what) = @_;
	$green->poll_query_until("SELECT ($sql) > $n")
	  or give_up("green does not get $what");
	return;
}

# Ask green, which may not know yet that one of its processes was killed.
sub ask
{
	my ($sql) = @_;
	my ($status, $out);
	BlueGreen::Node::wait_until(
		sub { ($status, $out) = $green->psql($sql); return $status == 0 })
	  or give_up('green does not answer');
	return $out;
}

sub is_copying
{
	return ask(q{SELECT state FROM bluegreen.applied_table
		WHERE target_table = 'account'}) eq 'copying';
}

#
# Victims
#

# One of a postmaster's children, whatever it is doing; false if there is none.
sub kill_child
{
	my ($node, $pattern) = @_;
	my @pids = $node->processes($pattern) or return 0;
	return kill 'KILL', $pids[ rand @pids ];
}

sub kill_postmaster
{
	my (@nodes) = @_;
	$_->kill9 for @nodes;
	$_->start for @nodes;
	return 1;
}

my %victims = (
	"the stream's worker" => sub { kill_child($blue, qr/bluegreen stream/) },
	'a copy worker' => sub { kill_child($blue, qr/bluegreen copy/) },
	'the launcher' => sub { kill_child($blue, qr/bluegreen launcher/) },
	'the recorder' => sub { kill_child($blue, qr/bluegreen recorder/) },
	"a stream's session on green" =>
	  sub { kill_child($green, qr/postgres: postgres postgres 127/) },
	'blue' => sub { kill_postmaster($blue) },
	'green' => sub { kill_postmaster($green) },
	'both servers' => sub { kill_postmaster($green, $blue) },
	'no process, but the connections to green' => sub {
		$green->psql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name LIKE 'bluegreen%'});
		return 1;
	});
my %done;

# Kill one that exists: first each once, then at random.  Its name.
sub kill_somebody
{
	my ($phase) = @_;
	my @names = sort keys %victims;
	my @new = grep { !$done{"$_ $phase"} } @names;
	for (my $tries = 0; $tries < 1000; $tries++)
	{
		my @from = @new && $tries < 20 ? @new : @names;
		my $name = $from[ rand @from ];
		if ($victims{$name}->())
		{
			$done{"$name $phase"}++;
			return $name;
		}
		usleep(20_000);
	}
	give_up('there is nobody to kill');
}

# The next kill comes some time after the stream goes on; or before it does.
sub wait_a_moment
{
	my ($sql, $n, $what) = @_;
	wait_for_more($sql, $n, $what) if rand() < 0.75;
	usleep(rand 150_000);
	$_->wait_until_up or give_up($_->name . ' does not come up')
	  for $blue, $green;
	return;
}

# The last victim's server may notice only now, and start anew under our feet.
sub synced
{
	BlueGreen::Node::wait_until(sub {
		$blue->psql(q{CALL bluegreen.wait_for_sync('kill', '180 s')}) == 0
	}) or give_up('green does not catch up');
	return;
}

#
# The copy
#
$blue->poll_query_until('SELECT count(*) > 100 FROM ledger')
  or give_up('there is no load');
$blue->safe_psql(q{SELECT bluegreen.create_deployment('kill', 'green');
	SELECT bluegreen.map_table('kill', 'account');
	SELECT bluegreen.map_table('kill', 'ledger');
	SELECT bluegreen.map_table('kill', 'attempt');
	CALL bluegreen.start('kill');});

my $copied = 0;
for my $n (1 .. $kills / 2)
{
	ask("UPDATE allowed SET chunks = $copied + $step");
	wait_a_moment($chunks, $copied, 'chunks');
	my $copying = is_copying();
	my $victim = kill_somebody('copying');
	$green->wait_until_up;
	my $now = ask($chunks);
	ok($copying && $now >= $copied,
		"kill $n, during the copy: $victim; $now chunks stay finished")
	  or diag("there were $copied");
	$copied = $now;
}
ask("UPDATE allowed SET chunks = 1000 * chunks");
ask('ALTER TABLE account DISABLE TRIGGER take_time');
synced();

#
# The stream
#
for my $n (1 .. $kills - int($kills / 2))
{
	wait_a_moment($applied, ask($applied), 'rows');
	my $victim = kill_somebody('streaming');
	$green->wait_until_up;
	is( ask('SELECT (SELECT sum(v) FROM account) = count(*) FROM ledger'),
		't',
		"kill $n, while streaming: $victim; green has whole transactions only");
}
note("killed: $done{$_} times $_") for sort keys %done;

#
# The end
#
wait_for_more($applied, ask($applied), 'rows');
$blue->wait_until_up;
stop_load();
synced();
compare_tables("TABLE $_", "TABLE $_", "$_: every row is equal")
  for qw(account ledger attempt);
is( $blue->safe_psql('SELECT (SELECT sum(v) FROM account) = count(*),'
		  . ' count(*) > 1000, sum(v) > 0 FROM ledger'),
	't|t|t',
	'blue has what it promised');
compare_tables('SELECT id, 1::bigint FROM ledger',
	q{SELECT id, count(*) FROM applied
		WHERE what = 'ledger' AND op = 'INSERT' GROUP BY id},
	'every row of the ledger arrived exactly once');
is( $green->safe_psql(q{SELECT count(*), min(w::text) FROM (
		SELECT what, op, id, v, count(*) FROM applied
		GROUP BY what, op, id, v HAVING count(*) > 1) w}),
	'0|',
	'no change was applied twice');
is( $green->safe_psql(q{SELECT count(*), min(w::text) FROM (
		SELECT *, lag(v) OVER (PARTITION BY what, id ORDER BY n) AS before
		FROM applied) w WHERE v < before}),
	'0|',
	'and none after a later one');
is( $green->safe_psql(q{SELECT string_agg(c::text, E'\n')
		FROM (SELECT * FROM bluegreen.conflict LIMIT 5) c}),
	'',
	'no row was otherwise than expected');

done_testing();
