# Both sides change the same rows, and neither has the other's change: what
# becomes of them under each policy, and that it is the same on both sides.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\nmax_worker_processes = 24\n"
	  . "max_replication_slots = 20");
my @tables = qw(plain pair triggered);

foreach my $node ($blue, $green)
{
	$node->safe_psql(q{
		CREATE TABLE plain (id int PRIMARY KEY, v text, rev int NOT NULL);
		CREATE TABLE pair (id numeric PRIMARY KEY, v text, rev int NOT NULL,
			code text UNIQUE);
		CREATE TABLE triggered (id int, part text, v text, rev int NOT NULL,
			PRIMARY KEY (part, id));
		CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql
			AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER nothing BEFORE INSERT OR UPDATE ON triggered
			FOR EACH ROW EXECUTE FUNCTION nothing();
		ALTER TABLE triggered ENABLE ALWAYS TRIGGER nothing;
		ALTER TABLE plain REPLICA IDENTITY FULL;
		ALTER TABLE pair REPLICA IDENTITY FULL;
		ALTER TABLE triggered REPLICA IDENTITY FULL});
}
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green')});
$blue->safe_psql("SELECT bluegreen.map_table('d', '$_', conflict => 'blue')")
  for @tables;
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_both('d');

# Until there is open_window().
sub set_window
{
	my ($state, $policy) = @_;
	foreach my $node ($blue, $green)
	{
		$node->safe_psql(qq{
			UPDATE bluegreen.table_mapping SET conflict = '$policy';
			UPDATE bluegreen.deployment SET "window" = '$state',
				mapping_version = mapping_version + 1});
	}
	foreach my $node ($blue, $green)
	{
		ok($node->poll_query_until(q{SELECT state = 'streaming'
			FROM bluegreen.stat_stream}), "$node->{name}: $state");
	}
	wait_for_both('d');
	return;
}

# Both sides are the same, at the latest now.
sub both_same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('d') for 1 .. 2;
	compare_tables("SELECT * FROM $_", "SELECT * FROM $_", "$name: $_")
	  for @tables;
	return;
}

sub conflicts_of
{
	my ($node, $kind) = @_;
	return $node->safe_psql(qq{SELECT count(*) FROM bluegreen.conflict
		WHERE kind = '$kind'});
}

# What each side does to row $id of a table, as a pair of statements; rev is what
# the side writes there.
my %cells = (
	'update/update' => [
		'UPDATE $t SET v = $side, rev = $rev WHERE id = $id',
		'UPDATE $t SET v = $side, rev = $rev WHERE id = $id' ],
	'update/delete' => [
		'UPDATE $t SET v = $side, rev = $rev WHERE id = $id',
		'UPDATE $t SET rev = $rev WHERE id = $id;
			DELETE FROM $t WHERE id = $id' ],
	'delete/update' => [
		'UPDATE $t SET rev = $rev WHERE id = $id;
			DELETE FROM $t WHERE id = $id',
		'UPDATE $t SET v = $side, rev = $rev WHERE id = $id' ],
	'delete/delete' => [
		'DELETE FROM $t WHERE id = $id', 'DELETE FROM $t WHERE id = $id' ],
	'insert/insert' => [
		'INSERT INTO $t (id, v, rev) VALUES ($new, $side, $rev)',
		'INSERT INTO $t (id, v, rev) VALUES ($new, $side, $rev)' ],
	'replace/update' => [
		'DELETE FROM $t WHERE id = $id;
			INSERT INTO $t (id, v, rev) VALUES ($id, $side, $rev)',
		'UPDATE $t SET v = $side, rev = $rev WHERE id = $id' ],
	'gone/insert' => [
		'INSERT INTO $t (id, v, rev) VALUES ($new, $side, $rev);
			DELETE FROM $t WHERE id = $new',
		'INSERT INTO $t (id, v, rev) VALUES ($new, $side, $rev)' ],
	'update/back' => [
		'UPDATE $t SET v = $side, rev = $rev WHERE id = $id',
		'BEGIN; UPDATE $t SET v = $side, rev = $rev WHERE id = $id; COMMIT;
			UPDATE $t SET v = 0 WHERE id = $id' ],
	'move/update' => [
		'UPDATE $t SET id = $new, rev = $rev WHERE id = $id',
		'UPDATE $t SET v = $side, rev = $rev WHERE id = $id' ],
	'move/move' => [
		'UPDATE $t SET id = $new, rev = $rev WHERE id = $id',
		'UPDATE $t SET id = $new, rev = $rev WHERE id = $id' ]);
my %unique = (
	'insert/insert' => [
		'INSERT INTO pair VALUES ($id + 0.1, $side, $rev, $code)',
		'INSERT INTO pair VALUES ($id + 0.2, $side, $rev, $code)' ],
	'update/insert' => [
		'UPDATE pair SET v = $side, rev = $rev, code = $code WHERE id = $id',
		'INSERT INTO pair VALUES ($id + 0.2, $side, $rev, $code)' ],
	'update/update' => [
		'UPDATE pair SET v = $side, rev = $rev, code = $code WHERE id = $id',
		'UPDATE pair SET v = $side, rev = $rev, code = $code
			WHERE id = $id + 10000' ],
	'passing/insert' => [
		'INSERT INTO pair VALUES ($id + 0.1, $side, $rev, $code);
			UPDATE pair SET code = NULL, rev = $rev + 1 WHERE id = $id + 0.1',
		'INSERT INTO pair VALUES ($id + 0.2, $side, $rev, $code)' ]);

# The statements of one side: each cell twice in each table, once with the
# larger rev on blue and once on green.
sub script
{
	my ($side, $base) = @_;
	my $number = $base;
	my $sql = '';
	foreach my $table (@tables, 'unique')
	{
		my $set = $table eq 'unique' ? \%unique : \%cells;
		foreach my $cell (sort keys %$set)
		{
			foreach my $larger ('blue', 'green')
			{
				my %values = (id => ++$number, new => $number + 1000,
					t => $table, side => "'$side'", code => "'c$number'",
					rev => $larger eq $side ? 20 : 10);
				my $statement = $set->{$cell}[ $side eq 'green' ];
				$statement =~ s/\$(\w+)/$values{$1}/g;
				$sql .= "$statement;\n";
			}
		}
	}
	$sql =~ s/INSERT INTO triggered \(id,/INSERT INTO triggered (part, id,/g;
	$sql =~ s/(INSERT INTO triggered .*) VALUES \(/$1 VALUES ('p', /g;
	return $sql;
}

my $first = 0;
$blue->safe_psql(q{
	INSERT INTO plain SELECT i, '0', 1 FROM generate_series(1, 20000) i;
	INSERT INTO triggered SELECT i, 'p', '0', 1 FROM generate_series(1, 20000) i;
	INSERT INTO pair SELECT i, '0', 1, NULL FROM generate_series(1, 20000) i;
	DELETE FROM plain WHERE id % 2000 > 1000;
	DELETE FROM triggered WHERE id % 2000 > 1000;
	DELETE FROM pair WHERE id % 2000 > 1000});
wait_for_both('d');
set_window('opening', 'blue');

# A policy, on which side the update/update row must come from for the larger
# rev, and the side whose statements are run last.
my $base = 0;
foreach my $round (
	[ 'blue', 'green', 'blue' ], [ 'green', 'blue', 'green' ],
	[ 'last_write', 'green', 'green' ], [ 'last_write', 'blue', 'blue' ],
	[ 'newer_column:rev', 'green', '' ])
{
	my ($policy, $last, $winner) = @$round;
	my $name = "$policy, $last last";
	set_window('open', $policy);
	$_->safe_psql(q{TRUNCATE bluegreen.conflict_log}) for $blue, $green;
	$_->safe_psql(q{CALL bluegreen.stop('d')}) for $blue, $green;
	foreach my $node ($last eq 'green' ? ($blue, $green) : ($green, $blue))
	{
		$node->safe_psql(script($node->{name}, $base));
	}
	$_->safe_psql(q{CALL bluegreen.start('d')}) for $blue, $green;
	both_same($name);

	my @kinds = map { my $kind = $_;
		[ map { conflicts_of($_, $kind) } $blue, $green ] }
	  qw(update_update unique);
	ok($kinds[0][0] >= 6 && $kinds[0][1] >= 6,
		"$name: recorded on both sides: @{$kinds[0]}");
	ok($kinds[1][0] + $kinds[1][1] > 0,
		"$name: also other unique constraints: @{$kinds[1]}");
	diag($_->{name}, ' ', $_->safe_psql(q{SELECT kind, decision, count(*)
		FROM bluegreen.conflict GROUP BY 1, 2 ORDER BY 1, 2})) for $blue, $green;
	$base += 2000;
}

done_testing();
