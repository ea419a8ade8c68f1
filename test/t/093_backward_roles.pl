# The way back without superusers: what the preflight prints is all that the
# roles need.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => "bluegreen.restart_delay = '100ms'");
my $port = $blue->port;
my $table = 'CREATE TABLE customer (id int PRIMARY KEY, name text)';
$blue->safe_psql(qq{$table; INSERT INTO customer VALUES (1, 'Joe');
	CREATE ROLE mover LOGIN REPLICATION PASSWORD 'move it';
	GRANT SELECT ON customer TO mover;
	GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO mover;
	GRANT USAGE ON FOREIGN SERVER green TO mover;
	GRANT pg_monitor TO mover;
	CREATE USER MAPPING FOR mover SERVER green
		OPTIONS (user 'applier', password 'secret');
	SELECT bluegreen.grant_apply('mover', 'customer');});
$green->safe_psql(qq{$table;
	CREATE ROLE applier LOGIN PASSWORD 'secret';
	SELECT bluegreen.grant_apply('applier', 'customer');});
$blue->require_password('mover');
$green->require_password('applier');

sub mover
{
	my ($sql) = @_;
	return $blue->safe_psql($sql, user => 'mover', password => 'move it');
}
sub way_back
{
	return mover(q{SELECT hint FROM bluegreen.preflight('shop')
		WHERE "check" = 'way_back' AND severity = 'error'});
}

$ENV{PGPASSWORD} = 'move it';
mover(q{SELECT bluegreen.create_deployment('shop', 'green');
	SELECT bluegreen.map_table('shop', 'customer');
	CALL bluegreen.start('shop');
	CALL bluegreen.wait_for_sync('shop', '180 s');});
is($green->safe_psql('SELECT count(*) FROM bluegreen.deployment'),
	0, 'a role that may only apply has no way back');
my $hint = way_back();
like($hint, qr/^-- on green\n.*^-- on blue\nCALL bluegreen\.start\('shop'\);$/ms,
	'the preflight prints what it needs');
my ($statements) = $hint =~ /^-- on green\n(.*)^-- on blue/ms;
$statements =~ s/host '\.\.\.', port '\.\.\.', dbname '\.\.\.'/host '127.0.0.1', port '$port', dbname 'postgres'/;
$statements =~ s/user '\.\.\.', password '\.\.\.'/user 'mover', password 'move it'/;
$green->safe_psql($statements);
like(way_back(), qr/^-- on blue\nCALL bluegreen\.start/m,
	'then only a start is missing');
mover(q{CALL bluegreen.start('shop')});
is(way_back(), '', 'with it there is a way back');
is( $green->safe_psql(q{SELECT owner::regrole, server
		FROM bluegreen.deployment}),
	'applier|blue',
	'green\'s row belongs to the role as whom blue connects');
$green->safe_psql(q{INSERT INTO customer VALUES (2, 'Jane')});
$blue->safe_psql(q{UPDATE customer SET name = 'Jack' WHERE id = 1});
wait_for_both('shop');
compare_tables('TABLE customer', 'TABLE customer', 'both ways');
is( mover(q{SELECT bluegreen.map_table('shop', 'customer', 'customer',
		transform => 'SELECT id, upper(name) AS name FROM customer',
		direction => 'backward') > 0}),
	't', 'mappings back may be defined');
mover(q{CALL bluegreen.stop('shop'); SELECT bluegreen.drop_deployment('shop');});
is( join(' ', map { $_->safe_psql(q{SELECT
			(SELECT count(*) FROM pg_replication_slots)
			+ (SELECT count(*) FROM pg_replication_origin)
			+ (SELECT count(*) FROM bluegreen.deployment)}) } $blue, $green),
	'0 0', 'nothing is left');

done_testing();
