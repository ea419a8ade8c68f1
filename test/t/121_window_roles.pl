# A window without superusers: roles that may only apply and join, tables of
# others; conflicts of keys and of other unique constraints, on both sides; and
# one that is found only when the side is closed.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::TwoWay;
use Test::More;

my ($blue, $green) = create_pair(guard => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'");
my $tables = q{CREATE ROLE shop LOGIN; GRANT CREATE ON SCHEMA public TO shop;
	SET ROLE shop;
	CREATE TABLE pair (id int PRIMARY KEY, v text, code text UNIQUE);
	ALTER TABLE pair REPLICA IDENTITY FULL; RESET ROLE};
my %port = (blue => $blue->port, green => $green->port);
foreach my $node ($blue, $green)
{
	my $name = $node->name;
	my $other = $name eq 'blue' ? 'green' : 'blue';
	$node->safe_psql(qq{$tables; CREATE ROLE mover LOGIN REPLICATION
			PASSWORD 'move it';
		GRANT SELECT ON pair TO mover; GRANT pg_monitor TO mover;
		GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO mover;
		SELECT bluegreen.grant_apply('mover', 'pair')});
	$node->safe_psql(qq{CREATE SERVER "to_$other" FOREIGN DATA WRAPPER pg_bluegreen
		OPTIONS (host '127.0.0.1', port '$port{$other}', dbname 'postgres');
		GRANT USAGE ON FOREIGN SERVER "to_$other" TO mover;
		CREATE USER MAPPING FOR mover SERVER "to_$other" OPTIONS (user 'mover',
			password 'move it')});
	$node->require_password('mover');
}

$ENV{PGPASSWORD} = 'move it';

# As that role, on a side
sub mover
{
	my ($node, $sql) = @_;
	return $node->safe_psql($sql, user => 'mover', password => 'move it');
}

mover($blue, q{SELECT bluegreen.create_deployment('d', 'to_green');
	SELECT bluegreen.map_table('d', 'pair', conflict => 'green')});
$blue->safe_psql(q{INSERT INTO pair
	SELECT i, '0', 'c' || i FROM generate_series(1, 100) i});
mover($blue, q{CALL bluegreen.start('d')});
wait_for_both('d');
mover($blue, q{CALL bluegreen.open_window('d', '170 s')});
is($_->safe_psql('SELECT active FROM bluegreen.switch_state'),
	'both', $_->name . ': both sides take writes') for $blue, $green;

# both sides, and neither knows of the other
mover($_, q{CALL bluegreen.stop('d')}) for $blue, $green;
foreach my $node ($blue, $green)
{
	my ($name, $more) = ($node->name, $node == $blue ? 1 : 2);
	$node->safe_psql(qq{SET SESSION AUTHORIZATION shop;
		UPDATE pair SET v = '$name' WHERE id BETWEEN 1 AND 20;
		INSERT INTO pair VALUES (200, '$name', 'new');
		INSERT INTO pair SELECT 300 + i * 10 + $more, '$name', 'both' || i
			FROM generate_series(1, 3) i;
		} . ($node == $blue ? 'DELETE FROM pair WHERE id BETWEEN 30 AND 40' :
			  q{UPDATE pair SET v = 'kept' WHERE id BETWEEN 35 AND 45}));
}
mover($_, q{CALL bluegreen.start('d')}) for $blue, $green;
wait_for_both('d') for 1 .. 3;
compare_tables('SELECT * FROM pair', 'SELECT * FROM pair', 'both are the same');
is( $blue->safe_psql(q{SELECT string_agg(DISTINCT v, ' ') FROM pair
		WHERE id BETWEEN 1 AND 20 OR id >= 200}),
	'green', 'green wins');
is( $blue->safe_psql(q{SELECT count(*) FROM pair WHERE v = 'kept'}),
	11, 'also over what was deleted');
my $kinds = q{SELECT string_agg(DISTINCT kind, ' ' ORDER BY kind)
	FROM bluegreen.conflict WHERE kind NOT LIKE '%\_missing'};
is($green->safe_psql($kinds), 'delete_update insert_insert unique update_update',
	'recorded on green');
is($blue->safe_psql($kinds), 'insert_insert unique update_delete update_update',
	'recorded on blue');

#
# Closed towards green, which is heard last: blue has a row in the way, and
# removes it, though it takes no writes
#
mover($_, q{CALL bluegreen.stop('d')}) for $blue, $green;
$_->safe_psql(q{INSERT INTO pair VALUES (} . ($_ == $blue ? 401 : 402)
	  . ", '" . $_->name . q{', 'last')}) for $blue, $green;
my $holder = $blue->session;
$holder->query('BEGIN; LOCK TABLE pair IN SHARE MODE');
mover($_, q{CALL bluegreen.start('d')}) for $blue, $green;
wait_for_sync('d');
is($green->safe_psql(q{SELECT id FROM pair WHERE code = 'last'}), 402,
	'green keeps its own row');
my $closer = $blue->session;
$closer->send(q{CALL bluegreen.close_window('d', 'green', '170 s')});
ok($green->poll_query_until(q{SELECT "window" = 'closing' AND active = 'green'
	FROM bluegreen.switch_state}), 'blue is closed, and has not heard of it');
is($blue->safe_psql(q{SELECT id FROM pair WHERE code = 'last'}), 401,
	'blue has its own one');
$holder->query('COMMIT');
$holder->quit;
$closer->wait;
like($closer->errors, qr/the window is closed/, 'closed');
$closer->quit;
is($_->safe_psql(q{SELECT id FROM pair WHERE id > 400}), 402,
	'only green\'s is left on ' . $_->name) for $blue, $green;
is($_->safe_psql(q{SELECT state FROM bluegreen.stat_stream}), 'streaming',
	$_->name . ': its stream goes on') for $blue, $green;
is($_->safe_psql(q{SELECT count(*) FROM bluegreen.window_owed}), 0,
	$_->name . ' owes nothing') for $blue, $green;
ok($_->poll_query_until(q{SELECT count(*) = 0 FROM pg_replication_slots
		WHERE slot_name ~ '_own$'}), $_->name . ': nobody watches')
  for $blue, $green;
$green->safe_psql(q{UPDATE pair SET v = 'after' WHERE id = 1});
wait_for_both('d');
compare_tables('SELECT * FROM pair', 'SELECT * FROM pair',
	'after that, too');

done_testing();
