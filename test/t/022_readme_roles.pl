# Section "Without superusers" of the README: its statements run as printed, and
# are all that the two roles need.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => "bluegreen.restart_delay = '100ms'");

my ($section) = BlueGreen::Node::slurp('README.md') =~
  /^### Without superusers\n(.*?)^## /ms;
my ($on_blue, $on_green) = $section =~ /^```sql\n(.*?)^```/gms;
my ($functions) = $on_blue =~ /ON ROUTINE (.*?) TO/s;

my $tables = q{CREATE TABLE customer (id int PRIMARY KEY, name text);
	CREATE TABLE product (id int PRIMARY KEY, name text);};
$blue->safe_psql("$tables INSERT INTO customer VALUES (1, 'Joe');
	INSERT INTO product VALUES (1, 'Rope');");
$green->safe_psql($tables);
$blue->safe_psql($on_blue);
like(
	$green->safe_psql($on_green),
	qr/^GRANT .* ON public\.customer TO applier$/m,
	'what is printed runs');
$green->require_password('applier');

sub mover
{
	my ($sql) = @_;
	return $blue->safe_psql($sql, user => 'mover');
}
mover(q{SELECT bluegreen.create_deployment('shop', 'green');
	SELECT bluegreen.map_schema('shop', 'public', 'public');
	SELECT bluegreen.preview('shop', 'customer', 1);
	CALL bluegreen.start('shop');});
mover(q{CALL bluegreen.wait_for_sync('shop', '180 s')});
$blue->safe_psql(q{INSERT INTO customer VALUES (2, 'Jack');
	UPDATE product SET name = 'Shovel';});
mover(q{CALL bluegreen.wait_for_sync('shop', '180 s')});
compare_tables("TABLE $_", "TABLE $_", "$_ follows") for qw(customer product);
is( mover(q{SELECT state, tables FROM bluegreen.status}),
	'streaming|2/2',
	'the owner reads the views');
mover(q{SELECT bluegreen.alter_mapping('shop', 'customer',
		transform => 'SELECT id, upper(name) AS name FROM customer');
	SELECT bluegreen.unmap_table('shop', 'product');
	CALL bluegreen.stop('shop');
	SELECT bluegreen.reset_stats('shop');
	SELECT bluegreen.drop_deployment('shop');});
is($blue->safe_psql('SELECT count(*) FROM pg_replication_slots'),
	0, 'and can drop it all');
foreach my $function (split /,\s*(?=bluegreen)/, $functions)
{
	ok( mover(
			"SELECT bool_and(has_function_privilege(oid, 'EXECUTE'))
			FROM pg_proc WHERE oid IN (CASE WHEN '$function' LIKE '%(%' THEN
				to_regprocedure('$function')::oid
				ELSE to_regproc('$function')::oid END)") eq 't',
		"granted: $function");
}
$green->safe_psql(q{SELECT bluegreen.revoke_apply('applier');
	REVOKE USAGE ON SCHEMA public FROM applier; DROP ROLE applier;});
is($green->safe_psql(q{SELECT count(*) FROM pg_roles
		WHERE rolname = 'applier'}),
	0, 'after revoke_apply nothing is left that holds the role');

done_testing();
