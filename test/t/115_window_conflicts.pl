# Both sides change the same rows, and neither has the other's change: what
# becomes of them under each policy, and that it is the same on both sides.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::TwoWay;
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

# Position since which own changes are known, or ''
sub window_since
{
	my ($node) = @_;
	return $node->safe_psql(q{SELECT window_since FROM bluegreen.stream_state()
		WHERE window_since IS NOT NULL});
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

# Rows of the cells: $rows{round}{table}{cell}{side with the larger rev}.
my %rows;

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
				$rows{$base}{$table}{$cell}{$larger} = $number;
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

# What row $id of a table has to be: v, or '' if there must be none; and the same
# for the row that a move or insert makes.  $winner is a side.
my %expected = (
	'update/update' => sub { [ $_[0] ] },
	'update/delete' => sub { [ $_[0] eq 'blue' ? 'blue' : '' ] },
	'delete/update' => sub { [ $_[0] eq 'blue' ? '' : 'green' ] },
	'delete/delete' => sub { [''] },
	'insert/insert' => sub { [ undef, $_[0] ] },
	'replace/update' => sub { [ $_[0] ] },
	'gone/insert' => sub { [ undef, $_[0] eq 'blue' ? '' : 'green' ] },
	'update/back' => sub { [ $_[0] eq 'blue' ? 'blue' : '0' ] },
	'move/update' => sub { [ $_[0] eq 'blue' ? '' : 'green', '0' ] },
	'move/move' => sub { [ '', '0' ] });

sub row_of
{
	my ($table, $id) = @_;
	return $green->safe_psql("SELECT v FROM $table WHERE id = $id");
}

# Compare the rows of a round with what must have become of them.
sub check_winners
{
	my ($base, $name, $winner) = @_;
	my @wrong;
	my %is = map { my $table = $_;
		($table => { map { split /\|/, $_, 2 } split /\n/,
			$green->safe_psql("SELECT id, v FROM $table") }) } @tables;
	foreach my $table (@tables)
	{
		foreach my $cell (sort keys %cells)
		{
			foreach my $larger ('blue', 'green')
			{
				my $id = $rows{$base}{$table}{$cell}{$larger};
				my @is = map { $is{$table}{$_} // '' } $id, $id + 1000;
				my $must = $expected{$cell}->($winner || $larger);
				foreach my $i (0 .. $#$must)
				{
					push @wrong, "$table $cell $larger: $is[$i], not $must->[$i]"
					  if defined $must->[$i] && $is[$i] ne $must->[$i];
				}
			}
		}
	}
	foreach my $larger ('blue', 'green')
	{
		my $id = $rows{$base}{unique}{'insert/insert'}{$larger};
		my $is = join(' ', grep { defined }
			  map { $is{pair}{"$id.$_"} } 1, 2);
		push @wrong, "unique: $is" if $is ne ($winner || $larger);
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join("\n", @wrong), '', "$name: who wins");
	return;
}

$blue->safe_psql(q{
	INSERT INTO plain SELECT i, '0', 1 FROM generate_series(1, 12000) i
		WHERE i % 2000 BETWEEN 1 AND 80 OR i % 2000 BETWEEN 901 AND 909
			OR i % 2000 = 999;
	INSERT INTO triggered SELECT id, 'p', v, rev FROM plain;
	INSERT INTO pair SELECT * FROM plain});
wait_for_both('d');
open_with('d', 'blue', $blue, $green);
ok(window_since($_), "$_->{name}: own changes are watched") for $blue, $green;

#
# There and back: who has seen a change is later, and nothing conflicts
#
foreach my $i (1 .. 5)
{
	$blue->safe_psql("UPDATE plain SET v = 'blue $i', rev = 1 WHERE id BETWEEN 901 AND 909");
	wait_for_sync('d');
	$green->safe_psql("UPDATE plain SET v = 'green $i', rev = 1 WHERE id BETWEEN 901 AND 909");
	wait_for_sync('d', node => $green);
}
both_same('there and back');
is(row_of('plain', 905), 'green 5', 'the last one counts');
is(conflicts_of($blue, 'update_update') + conflicts_of($green, 'update_update'),
	0, 'nothing conflicts');
ok($_->poll_query_until(q{SELECT count(*) = 1 FROM pg_replication_slots
		WHERE slot_name ~ '_own$' AND active}), "$_->{name}: one watches")
  for $blue, $green;

#
# Each cell, under each policy
#
# The policy, the side that writes last, and the one that wins ('': that with the
# larger rev).
my $base = 0;
foreach my $round (
	[ 'blue', 'green', 'blue' ], [ 'green', 'blue', 'green' ],
	[ 'last_write', 'blue', 'blue' ],
	[ 'newer_column:rev', 'green', '' ])
{
	my ($policy, $last, $winner) = @$round;
	my $name = "$policy, $last last";
	open_with('d', $policy, $blue, $green);
	$_->safe_psql(q{TRUNCATE bluegreen.conflict_log}) for $blue, $green;
	stop_both('d', $blue, $green);
	foreach my $node ($last eq 'green' ? ($blue, $green) : ($green, $blue))
	{
		$node->safe_psql(script($node->{name}, $base));
	}
	start_both('d', $blue, $green);
	both_same($name);
	check_winners($base, $name, $winner);
	my @update = map { conflicts_of($_, 'update_update') } $blue, $green;
	ok($update[0] >= 6 && $update[1] >= 6,
		"$name: recorded on both sides (@update)");
	ok(conflicts_of($blue, 'unique') + conflicts_of($green, 'unique') > 0,
		"$name: also conflicts of other unique constraints");
	$base += 2000;
}

#
# Nobody wins: the stream stops, and somebody decides
#
open_with('d', 'error', $blue, $green);
stop_both('d', $blue, $green);
$_->safe_psql("UPDATE plain SET v = '$_->{name}', rev = rev + 1 WHERE id = 999")
  for $blue, $green;
start_both('d', $blue, $green);
foreach my $node ($blue, $green)
{
	ok($node->poll_query_until(q{SELECT state = 'error'
		FROM bluegreen.stat_stream}), "$node->{name}: stopped");
	like($node->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
		qr/conflict update_update on table "public.plain":.*999/,
		"$node->{name}: the row is named");
	my $lsn = $node->safe_psql('SELECT error_lsn FROM bluegreen.stat_stream');
	$node->safe_psql("SELECT bluegreen.skip('d', '$lsn')");
}
foreach my $node ($blue, $green)
{
	ok($node->poll_query_until(q{SELECT state = 'streaming'
		FROM bluegreen.stat_stream}), "$node->{name}: goes on");
}
wait_for_both('d');
is(row_of('plain', 999), 'green', 'both were left out');
$blue->safe_psql(q{UPDATE plain SET v = 'decided' WHERE id = 999});
both_same('decided');

#
# TRUNCATE says nothing of rows
#
$blue->safe_psql('TRUNCATE triggered');
ok($blue->poll_query_until(q{SELECT state = 'error'
	FROM bluegreen.stat_stream}), 'TRUNCATE stops the stream');
like($blue->safe_psql('SELECT error_message FROM bluegreen.stat_stream'),
	qr/TRUNCATE of table "triggered" cannot be applied to .* in a window/,
	'and says so');
$green->safe_psql('DELETE FROM triggered');
$blue->safe_psql(q{SELECT bluegreen.skip('d', error_lsn)
	FROM bluegreen.stat_stream});
ok($blue->poll_query_until(q{SELECT state = 'streaming'
	FROM bluegreen.stat_stream}), 'left out, it goes on');

#
# Closed: nothing is watched any more
#
close_to('d', 'green', $blue, $green);
foreach my $node ($blue, $green)
{
	ok($node->poll_query_until(q{SELECT count(*) = 0 FROM pg_replication_slots
			WHERE slot_name ~ '_own$'}), "$node->{name}: nobody watches");
	ok(!window_since($node), "$node->{name}: own changes are not watched");
}
$green->safe_psql(q{INSERT INTO triggered VALUES (1, 'p', 'after', 1)});
both_same('closed');

done_testing();
