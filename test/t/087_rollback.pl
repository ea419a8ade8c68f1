# There and back again: switchover, rollback, switchover under load, finish.
# What was acknowledged is on the active side, once, whichever that was.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	guard => 1,
	way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
foreach my $node ($blue, $green)
{
	$node->safe_psql(q{
		CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
		CREATE TABLE history (id uuid PRIMARY KEY, account int, delta int)});
}
$blue->safe_psql(q{
	INSERT INTO account SELECT i, 0 FROM generate_series(1, 100) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', t::regclass)
	FROM unnest('{account,history}'::text[]) t;
	CALL bluegreen.start('d')});
wait_for_sync('d');

my %nodes = (blue => $blue, green => $green);

# Load on a side until it is closed; returns a function that waits for that.
sub load
{
	my ($node) = @_;
	my $load = pgbench_start($node, clients => 4, args => ['-M', 'prepared'],
		script => "\\set a random(1, 100)\n\\set d random(-9, 9)\nBEGIN;\n"
		  . "UPDATE account SET balance = balance + :d WHERE id = :a;\n"
		  . "INSERT INTO history VALUES (gen_random_uuid(), :a, :d);\nCOMMIT");
	my $rows = $node->safe_psql('SELECT count(*) FROM history');
	$node->poll_query_until("SELECT count(*) > $rows + 100 FROM history");
	return sub {
		ok( $node->poll_query_until(
				q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
				WHERE application_name = 'pgbench')}),
			"no client is left on $node->{name}");
		$load->{harness}->kill_kill(grace => 1);
		delete $load->{harness};
	};
}

sub active
{
	my ($side, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $node ($blue, $green)
	{
		is($node->safe_psql('SELECT active FROM bluegreen.switch_state'),
			$side, "$name: $side is active, says $node->{name}");
	}
	compare_tables("TABLE $_", "TABLE $_", "$name: $_ is the same")
	  for qw(account history);
	is( $nodes{$side}->safe_psql(
			'SELECT sum(balance) = (SELECT sum(delta) FROM history) FROM account'),
		't', "$name: and consistent");
	return;
}

sub call
{
	my ($node, $call, $name) = @_;
	my ($status, undef, $err) = $node->psql($call, timeout => 180);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($status, 0, $name) or diag $err;
	note $err;
	return $err;
}

my $done = load($blue);
call($blue, q{CALL bluegreen.switchover('d', drain_timeout => '60 s')}, 'switchover');
$done->();
active('green', 'switchover');
is($blue->safe_psql('SELECT advice FROM bluegreen.switch_state'),
	'rollback() would move the users back to blue', 'there is a way back');

# called on blue, it runs on green
$done = load($green);
my $notices = call($blue, q{CALL bluegreen.rollback('d', drain_timeout => '60 s')},
	'rollback, called on blue');
like($notices, qr/NOTICE:  fence raised and drained.*NOTICE:  blue is the active side.*NOTICE:  green is closed/s,
	'with what green prints');
$done->();
active('blue', 'rollback');
is($green->safe_psql(q{SELECT move, move_state FROM bluegreen.switch_state}),
	'rollback|done', 'it ran on green');
my (undef, undef, $err) = $blue->psql(q{CALL bluegreen.rollback('d')});
like($err, qr/green is not the active side/, 'a second one');
my $two = "host=127.0.0.1,127.0.0.1 port=@{[$green->port]},@{[$blue->port]}"
  . ' user=postgres dbname=postgres target_session_attrs=read-write';
is(`$blue->{client}/psql -XAtc 'SHOW port' '$two'`,
	$blue->port . "\n", 'libpq finds blue');

# both streams live on
$blue->safe_psql('UPDATE account SET balance = balance + 1 WHERE id = 1;
	INSERT INTO history VALUES (gen_random_uuid(), 1, 1)');
wait_for_sync('d');
compare_tables('TABLE account', 'TABLE account', 'green follows again');

# called on green, it runs on blue
$done = load($blue);
call($green, q{CALL bluegreen.switchover('d', drain_timeout => '60 s')},
	'switchover, called on green');
$done->();
active('green', 'switchover again');
$green->safe_psql('UPDATE account SET balance = balance + 1 WHERE id = 2;
	INSERT INTO history VALUES (gen_random_uuid(), 2, 1)');
wait_for_sync('d', node => $green);
compare_tables('TABLE account', 'TABLE account', 'blue follows');

# the end
call($green, q{CALL bluegreen.finish('d')}, 'finish, called on green');
is($_->safe_psql(q{SELECT (SELECT count(*) FROM pg_replication_slots)
		+ (SELECT count(*) FROM pg_replication_origin)
		+ (SELECT count(*) FROM bluegreen.applied_stream)}),
	0, "no slot, origin or stream on $_->{name}")
  for $blue, $green;
is($green->safe_psql(q{SELECT (SELECT count(*) FROM bluegreen.fence)
		+ (SELECT count(*) FROM bluegreen.deployment)}),
	0, 'nothing on green');
is($blue->safe_psql('SELECT active, fence FROM bluegreen.switch_state'),
	'green|retired', 'blue is closed');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
is($blue->safe_psql('SELECT bluegreen.reopen()'), 1, 'until it is reopened');
is($blue->safe_psql(q{SELECT (SELECT count(*) FROM bluegreen.fence)
		+ (SELECT count(*) FROM bluegreen.deployment)
		+ (SELECT count(*) FROM pg_db_role_setting)}),
	0, 'nothing on blue');

done_testing();
