# SIGKILL for the stream's worker, a copy worker, blue and green, each during
# the copy and while streaming, at random points of the load: nothing is lost
# and nothing is applied twice.
use strict;
use warnings;

use BlueGreen;
use File::Temp;
use IPC::Run;
use Test::More;

my $accounts = 100_000;
my $seed = $ENV{BLUEGREEN_SEED} || time;
srand $seed;
note("BLUEGREEN_SEED=$seed");

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\n"
	  . "bluegreen.batch_delay = '20ms'",
	blue_conf => 'bluegreen.copy_chunk_rows = 200');

# Each transaction adds one to an account, and a row to the ledger.
my $ddl = qq{
CREATE TABLE account (id int PRIMARY KEY, v int NOT NULL, filler text);
CREATE TABLE ledger (id bigint PRIMARY KEY, account int NOT NULL);};
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(qq{
CREATE SEQUENCE number;
INSERT INTO account SELECT i, 0, repeat('x', 50)
	FROM generate_series(1, $accounts) i;
ANALYZE account;});

# Green counts how often each row of the ledger arrives.
$green->safe_psql(q{
CREATE TABLE arrival (id bigint PRIMARY KEY, n int NOT NULL);
CREATE FUNCTION count_arrival() RETURNS trigger LANGUAGE plpgsql
SET search_path = public AS $$
BEGIN
	INSERT INTO arrival VALUES (NEW.id, 1)
		ON CONFLICT (id) DO UPDATE SET n = arrival.n + 1;
	RETURN NULL;
END $$;
CREATE TRIGGER arrival AFTER INSERT OR UPDATE ON ledger
	FOR EACH ROW EXECUTE FUNCTION count_arrival();
ALTER TABLE ledger ENABLE ALWAYS TRIGGER arrival;});

# Each chunk takes a while, so that there is a copy to be killed.
$green->safe_psql(q{
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql
SET search_path = public AS $$
BEGIN
	PERFORM pg_sleep(0.03);
	RETURN NULL;
END $$;
CREATE TRIGGER take_time BEFORE INSERT ON account
	FOR EACH STATEMENT EXECUTE FUNCTION take_time();
ALTER TABLE account ENABLE ALWAYS TRIGGER take_time;});

# Load that comes back after a crash of blue.
my $files = File::Temp->newdir;
open my $script, '>', "$files/script" or die $!;
print $script <<"SQL";
\\set id random(1, $accounts)
BEGIN;
UPDATE account SET v = v + 1 WHERE id = :id;
INSERT INTO ledger VALUES (nextval('number'), :id);
COMMIT;
SQL
close $script;
my $load = IPC::Run::start(
	[
		'bash', '-c',
		'while [ ! -e "$1/stop" ]; do "$2/pgbench" -n -c 4 -R 800 -T 3600'
		  . ' -f "$1/script" "$3" >"$1/log" 2>&1 || sleep 0.1; done',
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

# A random moment: some more transactions from now.
sub wait_a_moment
{
	my $goal = $blue->safe_psql('SELECT count(*) FROM ledger') + int rand 300;
	$blue->poll_query_until("SELECT count(*) >= $goal FROM ledger")
	  or die 'there is no load';
	return;
}

my $chunks = 'SELECT count(*) FROM bluegreen.applied_chunk';

# ... and when the copy has come this far.
sub wait_for_chunks
{
	my ($n) = @_;
	$n += int rand 10;
	$green->poll_query_until("SELECT ($chunks) >= $n")
	  or die "the copy does not get to chunk $n";
	return;
}

sub is_copying
{
	return $green->safe_psql(q{SELECT state FROM bluegreen.applied_table
		WHERE target_table = 'account'}) eq 'copying';
}

sub kill_postmaster
{
	my ($node) = @_;
	$node->kill9;
	$node->start;
	return;
}

my @victims = (
	[ "the stream's worker" => sub { kill9_worker($blue, 'bluegreen stream') } ],
	[ 'a copy worker' => sub { kill9_worker($blue, 'bluegreen copy') } ],
	[ 'blue' => sub { kill_postmaster($blue) } ],
	[ 'green' => sub { kill_postmaster($green) } ]);

$blue->poll_query_until('SELECT count(*) > 100 FROM ledger');
$blue->safe_psql(q{SELECT bluegreen.create_deployment('kill', 'green');
	SELECT bluegreen.map_table('kill', 'account');
	SELECT bluegreen.map_table('kill', 'ledger');
	CALL bluegreen.start('kill');});

my $done = 0;
foreach my $victim (@victims)
{
	wait_for_chunks($done + 10);
	$victim->[1]->();
	ok(is_copying(), "killed during the copy: $victim->[0]");
	my $now = $green->safe_psql($chunks);
	cmp_ok($now, '>=', $done, 'chunks that were finished stay finished');
	$done = $now;
}
wait_for_sync('kill');

foreach my $round (1, 2)
{
	foreach my $victim (grep { $_->[0] !~ /copy/ } @victims)
	{
		wait_a_moment();
		$victim->[1]->();
		is( $green->safe_psql(
				'SELECT (SELECT sum(v) FROM account) = count(*) FROM ledger'),
			't',
			"killed while streaming: $victim->[0];"
			  . ' green has whole transactions only');
	}
}

# the peer's end of a connection, and both servers at once
wait_a_moment();
$green->safe_psql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE application_name LIKE 'bluegreen%'});
wait_a_moment();
$green->kill9;
$blue->kill9;
$_->start for $blue, $green;
wait_a_moment();

stop_load();
wait_for_sync('kill');
compare_tables('TABLE account', 'TABLE account', 'all accounts are equal');
compare_tables('TABLE ledger', 'TABLE ledger', 'the ledger is equal');
compare_tables('SELECT id, 1 FROM ledger',
	'SELECT id, n FROM arrival', 'every row arrived exactly once');
is( $green->safe_psql('SELECT string_agg(c::text, E\'\n\')'
		  . ' FROM (SELECT * FROM bluegreen.conflict LIMIT 5) c'),
	'',
	'and no row was otherwise than expected');

done_testing();
