# What is in the way of a window, as far as mappings and policies go: preflight
# says so, open_window() refuses, and when it is mended both are silent.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'");

# Table => [definition, what map_table() is given, mapping back, what is found];
# $full: REPLICA IDENTITY FULL.
my %cells = (
	fine => [ 'id int PRIMARY KEY, v text', "conflict => 'last_write'", '', '' ],
	merged => [ 'id int PRIMARY KEY, v int',
		"on_write => 'merge', on_delete => 'ignore'",
		"on_write => 'merge', on_delete => 'ignore'", '' ],
	numbers => [ 'id int PRIMARY KEY, v int', '', '', '' ],
	partial => [ 'id int PRIMARY KEY, v text', "conflict => 'blue'", '',
		'cannot go both ways at once: its changes do not carry whole rows; '
		  . '... its changes do not carry whole rows (on green)' ],
	patched => [ 'id int PRIMARY KEY, v int', "on_write => 'merge', conflict => 'blue'", '',
		'... it does not mirror rows and their deletes' ],
	priced => [ 'id num PRIMARY KEY, v int', "conflict => 'green'", '',
		'... column "id" of its key has a type without an extended hash function; '
		  . '... column "id" of its key has a type without an extended hash function (on green)' ],
	worded => [ 'id int PRIMARY KEY, v text', "conflict => 'newer_column:v'", '',
		'... the column that decides is not one of its source as it is, a whole number, date or timestamp; '
		  . '... the column that decides is not one of its source as it is, a whole number, date or timestamp (on green)' ],
	by_code => [ 'id int PRIMARY KEY, code int UNIQUE NOT NULL',
		"key => '{code}', conflict => 'blue'",
		"key => '{id}', conflict => 'blue'",
		'... own changes are known by (id) and (id), and rows are found by (id) and (code)' ],
	lonely => [ 'id int PRIMARY KEY, v int',
		"transform => 'SELECT id, v * 2 AS v FROM lonely', conflict => 'blue'",
		'', '... there is none of it from green' ],
	odd_policy => [ 'id int PRIMARY KEY, v int', "conflict => 'blue'",
		"conflict => 'green'",
		'policies of "public.odd_policy" differ: blue from blue, green from green' ],
	odd_column => [ 'id int PRIMARY KEY, a int NOT NULL, b int NOT NULL',
		"conflict => 'newer_column:a'", "conflict => 'newer_column:b'",
		'policies of "public.odd_column" differ: newer_column (a = a) from blue, newer_column (b = b) from green' ],
	computed => [ 'id int PRIMARY KEY, v int',
		"transform => 'SELECT id, v + 1 AS v FROM computed', conflict => 'last_write'",
		"transform => 'SELECT id, v - 1 AS v FROM computed', conflict => 'last_write'",
		'policy "last_write" of "public.computed" needs mappings that are each other\'s inverse, which cannot be seen' ],
	more => [ 'id int PRIMARY KEY, v int',
		"transform => 'SELECT id FROM more', conflict => 'last_write'",
		"transform => 'SELECT id FROM more', conflict => 'last_write'",
		'... its target has columns that it does not write; '
		  . '... its target has columns that it does not write (on green)' ]);
my %full = map { $_ => 1 } qw(fine worded odd_column by_code);

# A type that can be hashed, but not by an extended function.
my $operators = join '', map {
	my ($name, $operator) = @$_;
	"CREATE FUNCTION num_$name(num, num) RETURNS bool LANGUAGE internal
		IMMUTABLE STRICT AS 'int4$name';
	CREATE OPERATOR $operator (FUNCTION = num_$name, LEFTARG = num, RIGHTARG = num);"
} [ 'eq', '=' ], [ 'lt', '<' ], [ 'le', '<=' ], [ 'ge', '>=' ], [ 'gt', '>' ];
$_->safe_psql(qq{CREATE TYPE num;
	CREATE FUNCTION num_in(cstring) RETURNS num LANGUAGE internal
		IMMUTABLE STRICT AS 'int4in';
	CREATE FUNCTION num_out(num) RETURNS cstring LANGUAGE internal
		IMMUTABLE STRICT AS 'int4out';
	CREATE TYPE num (INPUT = num_in, OUTPUT = num_out, LIKE = int4);
	$operators
	CREATE FUNCTION num_cmp(num, num) RETURNS int LANGUAGE internal
		IMMUTABLE STRICT AS 'btint4cmp';
	CREATE FUNCTION num_hash(num) RETURNS int LANGUAGE internal
		IMMUTABLE STRICT AS 'hashint4';
	CREATE OPERATOR CLASS num_order DEFAULT FOR TYPE num USING btree AS
		OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=,
		OPERATOR 5 >, FUNCTION 1 num_cmp(num, num);
	CREATE OPERATOR CLASS num_hashes DEFAULT FOR TYPE num USING hash AS
		OPERATOR 1 =, FUNCTION 1 num_hash(num)}) foreach $blue, $green;

foreach my $table (sort keys %cells)
{
	my ($definition, $forward, $back) = @{ $cells{$table} };
	my $sql = "CREATE TABLE $table ($definition);"
	  . ($full{$table} ? "ALTER TABLE $table REPLICA IDENTITY FULL;" : '');
	$_->safe_psql($sql) foreach $blue, $green;
}
$blue->safe_psql("SELECT bluegreen.create_deployment('d', 'green');"
	  . join('', map { "SELECT bluegreen.map_table('d', '$_'"
			  . ($cells{$_}[1] ? ", $cells{$_}[1]" : '') . ');' }
		  sort keys %cells)
	  . "CALL bluegreen.start('d')");
$blue->safe_psql(join '', map { "SELECT bluegreen.map_table('d', '$_', '$_', "
		  . "$cells{$_}[2], direction => 'backward');" }
	  grep { $cells{$_}[2] } sort keys %cells);
$blue->safe_psql("CALL bluegreen.start('d')");
wait_for_both('d');

# What is found about each table
sub found
{
	my %found;
	foreach my $row (split /\n/, $blue->safe_psql(q{
		SELECT replace(object, 'public.', ''), message
		FROM bluegreen.preflight('d', 'window')
		WHERE "check" IN ('window_mapping', 'window_policy')
			AND severity = 'error' ORDER BY message COLLATE "C"}))
	{
		my ($table, $message) = split /\|/, $row, 2;
		push @{ $found{$table} }, $message;
	}
	return map { $_ => join '; ', @{ $found{$_} } } keys %found;
}

my %found = found();
foreach my $table (sort keys %cells)
{
	my $expected = $cells{$table}[3] =~
	  s/(?:\.\.\.|(?<=^)cannot go both ways at once:)/mapping of "public.$table" cannot go both ways at once:/gr;
	is($found{$table} // '', $expected, "$table: " . ($expected ? 'found' : 'nothing'));
}
my (undef, undef, $error) = $blue->psql(q{CALL bluegreen.open_window('d')});
like($error, qr/cannot open a window of deployment "d": /, 'nor is one opened');

#
# Mended: as the hints say, or mapped in another way
#
foreach my $hint (split /\x1e/, $blue->safe_psql(q{
	SELECT string_agg(DISTINCT hint, E'\x1e') FROM bluegreen.preflight('d', 'window')
	WHERE "check" IN ('window_mapping', 'window_policy')
		AND severity = 'error' AND hint <> ''}))
{
	my ($side, $sql) = $hint =~ /^-- on (blue|green)\n(.*)/s;
	($side eq 'blue' ? $blue : $green)->safe_psql($sql);
}
%found = found();
is(join(' ', map { $found{$_} // '' } qw(partial computed patched odd_policy)),
	'   ', 'what hints say mends it');
is( $blue->safe_psql(q{SELECT source, direction, conflict FROM bluegreen.mapping
		WHERE source ~ 'patched|odd_policy' ORDER BY 1, 2}),
	"public.odd_policy|backward|blue\npublic.odd_policy|forward|blue\n"
	  . 'public.patched|forward|none', 'by policies');
# (one of them has no mapping back, which a switchover does not like either)
foreach my $table ('patched', grep { $found{$_} } sort keys %cells)
{
	$blue->safe_psql(
		($cells{$table}[2] ? "SELECT bluegreen.unmap_table('d', '$table', '$table', 'backward');" : '')
		. "SELECT bluegreen.unmap_table('d', '$table')");
}
$blue->safe_psql("CALL bluegreen.start('d')");
wait_for_both('d');
%found = found();
is(join(' ', %found), '', 'nothing is found any more');
$_->safe_psql('DROP TABLE ' . join ', ', grep { $cells{$_}[3] && !/partial|computed|patched|odd_policy/ } sort keys %cells)
  foreach $blue, $green;
$blue->safe_psql(q{CALL bluegreen.open_window('d', '170 s');
	CALL bluegreen.close_window('d', 'green', '170 s')});
is($green->safe_psql('SELECT active FROM bluegreen.switch_state'),
	'green', 'and one is opened, and closed');

done_testing();
