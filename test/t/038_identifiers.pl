# Names that nobody should use: every ASCII byte, 63 bytes, newlines, quotes,
# what looks like SQL, arrays, formats, or is more than ASCII.  They go through
# everything, nothing is run that is only a name, and messages show them whole.
use strict;
use warnings;

use BlueGreen;
use Test::More;

# every byte from 1 to 127, and the rest of what is special somewhere
my $low = join '', map { chr } 1 .. 63;
my $high = join '', map { chr } 64 .. 126;
my $sql = chr(127) . q{'; DROP TABLE public.x; --"};
my $format = q{%s %n %% %1$s $$ $a$ \\' \\n :x {"a,b",NULL} "."};
my $wide = 'é' x 31 . 'x';
my @names = ($low, $high, $sql, $format, $wide);
my $password = $low . $high . chr(127);

sub ident { return '"' . $_[0] =~ s/"/""/gr . '"' }
sub literal { return q{'} . $_[0] =~ s/'/''/gr . q{'} }
sub qualified { return join '.', map { ident($_) } @_ }

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'\n"
	  . "bluegreen.copy_chunk_rows = 100");
my ($database, $server, $deployment, $applier, $owner) =
  ($low, $high, $low, $high, $low);
foreach my $node ($blue, $green)
{
	$node->safe_psql('CREATE DATABASE ' . ident($database));
	$node->safe_psql($database, q{CREATE EXTENSION pg_bluegreen;
		CREATE TABLE public.x (); CREATE TABLE public.never (a int)});
}

sub blue { return $blue->safe_psql($database, $_[0]) }
sub green { return $green->safe_psql($database, $_[0]) }

# call('function', SQL...): of this deployment
sub call
{
	my ($function, @arguments) = @_;
	return blue("SELECT * FROM bluegreen.$function("
		  . join(', ', literal($deployment), @arguments) . ')');
}

sub sync
{
	return wait_for_sync($deployment =~ s/'/''/gr, dbname => $database);
}

# A column of stat_stream is exactly this.
sub stream_is
{
	my ($column, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(blue("SELECT $column FROM bluegreen.stat_stream"),
		$expected, $name);
}

sub same
{
	my ($source, $target, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sync();
	return compare_tables($source, $target, $name, dbname => $database);
}

#
# Tables: $low is the schema on blue, $high on green
#
my ($key, $text, $unique, $more) = map { ident($_) } $low, $high, $sql, $wide;
my $check = ident($format);
my %blue_table = map { $_ => qualified($low, $_) } @names;
my %green_table = map { $_ => qualified($high, $_) } @names;

green('CREATE ROLE ' . ident($owner) . '; CREATE ROLE ' . ident($applier)
	  . ' LOGIN PASSWORD ' . literal($password));
{
	my $file = $green->data_dir . '/pg_hba.conf';
	open my $hba, '>', $file or die $!;
	print $hba "host all postgres 127.0.0.1/32 trust\n"
	  . "host all all 127.0.0.1/32 scram-sha-256\n";
	close $hba;
	$green->reload;
}
blue('CREATE SCHEMA ' . ident($low));
green('CREATE SCHEMA ' . ident($high) . ' AUTHORIZATION ' . ident($owner));
foreach my $name (@names)
{
	my $primary = ident("key\n'\"" . substr $name, 0, 20);
	my $columns = "($key int, $text text, $unique int NOT NULL, $more text,
		CONSTRAINT $primary PRIMARY KEY ($key))";
	blue("CREATE TABLE $blue_table{$name} $columns");
	blue("INSERT INTO $blue_table{$name}
		SELECT i, 'text ' || i, i, 'more' FROM generate_series(1, 450) i");
	blue("ANALYZE $blue_table{$name}");
	green('SET ROLE ' . ident($owner)
		  . "; CREATE TABLE $green_table{$name} $columns");
}
green('SET ROLE ' . ident($owner) . '; CREATE UNIQUE INDEX '
	  . ident(scalar reverse $low) . " ON $green_table{$low} ($unique)");
my $indexes = 'SELECT indexdef FROM pg_indexes WHERE schemaname = '
  . literal($high) . ' ORDER BY 1';
my $indexes_before = green($indexes);

#
# The connection: names and a password that would be something else in a
# connection string
#
my $port = $green->port;
blue('CREATE SERVER ' . ident($server) . " FOREIGN DATA WRAPPER pg_bluegreen
	OPTIONS (host '127.0.0.1', port '$port', dbname " . literal($database)
	  . ', options ' . literal(q{-c my.own=%s\\\\'"\\ -c\\ x}) . ');
	CREATE USER MAPPING FOR postgres SERVER ' . ident($server)
	  . ' OPTIONS (user ' . literal($applier)
	  . ', password ' . literal($password) . ')');
is(call('create_deployment', literal($server)), 1, 'a deployment');
my $long = 'é' x 40;
blue("SELECT bluegreen.create_deployment('$long', " . literal($server) . ')');
is(blue("SELECT name FROM bluegreen.deployment WHERE name = '$long'"),
	'é' x 31, 'a name that is too long ends with a whole character');
blue("SELECT bluegreen.drop_deployment('$long')");
my ($status, undef, $error) =
  $blue->psql($database, 'SELECT bluegreen.drop_deployment('
	  . literal($format) . ')');
like($error, qr/deployment "\Q$format\E" does not exist/,
	'a message shows a name as it is');

#
# Mappings
#
call('map_schema', literal($low), literal($high),
	'ARRAY[' . join(', ', map { literal($_) } $sql, $format) . ']::name[]');
my @map = (literal($blue_table{$sql}),
	'target => ' . literal($green_table{$sql}),
	'transform => ' . literal("SELECT $key, upper($text) AS $text, $unique,
		concat($more, " . literal($format) . ") AS $more
		FROM $blue_table{$sql} WHERE $unique <> 7"),
	'key => ARRAY[' . literal($low) . ']');
(undef, undef, $error) = $blue->psql($database,
	'SELECT bluegreen.map_table(' . join(', ', literal($deployment), @map)
	  . ')');
my ($alter) = $error =~ /^HINT:  (ALTER TABLE .*;)$/ms;
is($alter, "ALTER TABLE $blue_table{$sql} REPLICA IDENTITY FULL;",
	'a hint can be run');
blue($alter);
call('map_table', @map);
call('map_table', literal($blue_table{$format}),
	'target => ' . literal($green_table{$format}));
is(blue('SELECT count(*) FROM bluegreen.mapping WHERE source::text IN ('
		  . join(', ', map { literal($_) } values %blue_table) . ')'),
	5, 'view mapping shows the names');
my $preview = call('preview', literal($blue_table{$sql}), '1');
like($preview, qr/^\Q$green_table{$sql}\E\|.*TEXT 1/s,
	'preview, too, and it evaluates the transform');

my @start = ($database, 'CALL bluegreen.start(' . literal($deployment) . ')');
(undef, undef, $error) = $blue->psql(@start);
my ($hint) = $error =~ /^HINT:  On the peer, use (SELECT .*\);) and name/ms;
ok($hint, 'start says what has to be granted') or diag $error;
foreach my $table (values %green_table)
{
	green('SELECT bluegreen.grant_apply(' . literal(ident($applier))
		  . ", " . literal($table) . ')');
}
green($hint) if $hint;
$blue->safe_psql(@start);
sync();

#
# Both sides
#
my %query;
foreach my $name (@names)
{
	my @sides = ("TABLE $blue_table{$name}", "TABLE $green_table{$name}");
	$sides[0] = "SELECT $key, upper($text), $unique, $more || "
	  . literal($format) . " FROM $blue_table{$name} WHERE $unique <> 7"
	  if $name eq $sql;
	$query{$name} = \@sides;
}
sub all_same
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sync();
	my $i = 0;
	same(@{ $query{$_} }, "$what, table " . ++$i) for @names;
	return;
}
all_same('copied');
cmp_ok(blue('SELECT min(n) FROM (SELECT count(*) AS n FROM bluegreen.chunk'
		  . ' GROUP BY target) t'), '>', 1, 'in several chunks');
is(blue('SELECT count(DISTINCT target) FROM bluegreen.chunk WHERE target IN ('
		  . join(', ', map { literal($_) } values %green_table) . ')'),
	5, 'view chunk shows the names');
is(green($indexes), $indexes_before, 'the indexes are there again');
is( green(q{SELECT count(*) FROM pg_stat_activity
		WHERE application_name ~ '^bluegreen .*#1 forward$'}),
	1, 'a session on green has the id in its name');

foreach my $name (@names)
{
	my $table = $blue_table{$name};
	blue("INSERT INTO $table
			SELECT i, " . literal($format) . ", i, " . literal($low) . "
			FROM generate_series(1001, 1050) i;
		UPDATE $table SET $text = " . literal($high) . " WHERE $key % 3 = 0;
		UPDATE $table SET $key = $key + 5000 WHERE $key BETWEEN 20 AND 30;
		DELETE FROM $table WHERE $key % 5 = 0;");
}
all_same('followed');
blue("TRUNCATE $blue_table{$wide}; INSERT INTO $blue_table{$wide}
	VALUES (1, 'after', 1, 'TRUNCATE')");
all_same('truncated');

#
# A conflict, an error
#
green("DELETE FROM $green_table{$low} WHERE $key = 2;
	ALTER TABLE $green_table{$low} ADD CONSTRAINT $check
		CHECK ($unique < 9000)");
blue("UPDATE $blue_table{$low} SET $text = 'conflict' WHERE $key = 2");
sync();
is( green('SELECT deployment || target || key || kind FROM bluegreen.conflict'),
	"$deployment$green_table{$low}$key" . "[integer]:'2'update_missing",
	'a conflict shows the names');
is( green('SELECT incoming::text LIKE ' . literal('%conflict%')
		  . ' AND existing IS NULL FROM bluegreen.conflict'),
	't', 'and the row');

blue("BEGIN; INSERT INTO $blue_table{$low} VALUES (3001, 'x', 9001, 'x');
	INSERT INTO $blue_table{$high} VALUES (3001, 'x', 9001, 'x'); COMMIT;
	INSERT INTO $blue_table{$format} VALUES (3002, 'x', 9001, 'x')");
$blue->poll_query_until($database,
	q{SELECT state = 'error' AND error_sqlstate = '23514'
		FROM bluegreen.stat_stream}, 't');
stream_is('error_relation', $green_table{$low}, 'an error names the table');
stream_is('error_key', $key . "[integer]:'3001'", 'and the row');
like(blue('SELECT error_message FROM bluegreen.stat_stream'),
	qr/violates check constraint "\Q$format\E"/, 'and the constraint');
(undef, undef, $error) = $blue->psql($database,
	'CALL bluegreen.wait_for_sync(' . literal($deployment) . ')');
like($error, qr/violates check constraint "\Q$format\E"/,
	'and wait_for_sync raises it');
my ($skip) = blue('SELECT error_hint FROM bluegreen.stat_stream') =~
  /(bluegreen\.skip\(.*\))/s;
blue("SELECT $skip");
blue("DELETE FROM $blue_table{$low} WHERE $key = 3001;
	DELETE FROM $blue_table{$high} WHERE $key = 3001");
all_same('skipped');
green("ALTER TABLE $green_table{$low} DROP CONSTRAINT $check");

#
# All views, changes of mappings
#
foreach my $node ($blue, $green)
{
	my @views = split /\n/,
	  $node->safe_psql($database,
		q{SELECT viewname FROM pg_views WHERE schemaname = 'bluegreen'});
	$node->safe_psql($database,
		join ';', map { "SELECT count(t::text) FROM bluegreen.$_ t" } @views);
}
is( blue('SELECT deployment FROM bluegreen.status'),
	$deployment, 'the views show the name');
my $transform = blue('SELECT transform FROM bluegreen.mapping WHERE target = '
	  . literal($green_table{$sql}));
same($transform =~ s/;\s*$//r, $query{$sql}[1], 'and a transform that can be run');

call('alter_mapping', literal($blue_table{$sql}),
	'transform => ' . literal("SELECT $key, lower($text) AS $text, $unique,
		$more || '{}' AS $more FROM $blue_table{$sql}"));
blue("UPDATE $blue_table{$sql} SET $text = 'ALTERED', $more = 'm'");
sync();
green("DELETE FROM $green_table{$sql} WHERE $key = 7");
blue("DELETE FROM $blue_table{$sql} WHERE $key = 7");
same("SELECT $key, lower($text), $unique, $more || '{}'
	FROM $blue_table{$sql}", "TABLE $green_table{$sql}", 'altered');

#
# Nothing stays
#
$blue->safe_psql($database,
	"CALL bluegreen.stop(" . literal($deployment) . ')');
call('unmap_table', literal($blue_table{$wide}),
	'target => ' . literal($green_table{$wide}));
call('drop_deployment');
is( blue(q{SELECT (SELECT count(*) FROM pg_replication_slots)
		+ (SELECT count(*) FROM bluegreen.deployment)
		+ (SELECT count(*) FROM bluegreen.table_mapping)
		+ (SELECT count(*) FROM pg_class WHERE relname LIKE 'transform%'
			AND relnamespace = 'bluegreen'::regnamespace)}),
	0, 'drop_deployment leaves nothing on blue');
is( green(q{SELECT (SELECT count(*) FROM pg_replication_origin)
		+ (SELECT count(*) FROM bluegreen.applied_stream)
		+ (SELECT count(*) FROM bluegreen.applied_table)
		+ (SELECT count(*) FROM bluegreen.applied_chunk)
		+ (SELECT count(*) FROM bluegreen.saved_index)}),
	0, 'nor on green');
green('SELECT bluegreen.revoke_apply(' . literal(ident($applier)) . ');
	DROP TABLE ' . join(', ', values %green_table));
is(green('SELECT count(*) FROM pg_class c, aclexplode(relacl) a'
		  . ' WHERE a.grantee = ' . literal(ident($applier)) . '::regrole'),
	0, 'revoke_apply, too');
foreach my $node ($blue, $green)
{
	is( $node->safe_psql($database,
			q{SELECT to_regclass('public.x') IS NOT NULL}),
		't', 'no name was run on ' . $node->name);
	# the statements of this test fail, and are logged then, without it
	is(index($node->log, $password), -1,
		'no password is in the log of ' . $node->name);
}

done_testing();
