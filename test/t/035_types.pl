# Every type of pg_catalog that can be stored, types of users and of contrib,
# and arrays of them all, with NULLs and extreme values, arrive unchanged by
# copy and by stream, under both replica identities and without a key.  So do tables whose names
# are as odd as can be.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => "timezone = 'Asia/Kathmandu'");

# type => values, each as SQL
my @types = (
	[ boolean => 'true', 'false' ],
	[ smallint => '-32768', '32767' ],
	[ integer => '-2147483648', '2147483647' ],
	[ bigint => '-9223372036854775808', '9223372036854775807' ],
	[ real => "'NaN'", "'-Infinity'", '3.4028235e38', '1.1754944e-38', "'-0'" ],
	[
		'double precision' => "'NaN'", "'Infinity'",
		'1.7976931348623157e308', '5e-324', '0.1'
	],
	[
		numeric => "'NaN'", "'Infinity'", '1.00',
		'repeat(\'9\', 1000)::numeric', '10::numeric ^ -900', '-0.000'
	],
	[ 'numeric(10,2)' => '-99999999.99', '0.01' ],
	[ money => "'-92233720368547758.08'", "'12.34'" ],
	[ text => "''", "E'\\t\\n\\r\\b\\\\ \\'\"'", "'\\N'", "'grün ☃ 🐘'", 'repeat(\'x\', 100000)' ],
	[ 'varchar(10)' => "'abc  '", "''" ],
	[ 'char(5)' => "'ab'", "''" ],
	[ bpchar => "'ab  '", "''" ],
	[ '"char"' => "'x'", "'\\377'", "''" ],
	[ name => "'a_name'" ],
	[ bytea => "''", "'\\x00ff5c0a'", 'decode(repeat(\'00ff\', 50000), \'hex\')' ],
	[ date => "'4713-01-01 BC'", "'5874897-12-31'", "'infinity'" ],
	[ time => "'00:00'", "'24:00'", "'12:34:56.789012'" ],
	[ timetz => "'00:00+14'", "'23:59:59.999999-12'" ],
	[ timestamp => "'4713-01-01 BC'", "'294276-12-31 23:59:59.999999'", "'-infinity'" ],
	[ timestamptz => "'4714-11-24 00:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'", "'infinity'" ],
	[ 'timestamptz(0)' => "'2026-03-29 01:59:59+00'" ],
	[ interval => "'-178000000 years'", "'1 mon -1 day 00:00:00.000001'" ],
	[ uuid => "'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'" ],
	[ json => "'{\"a\" : 1, \"a\":[null]}'", "'null'" ],
	[ jsonb => "'{\"a\": {\"b\": [1.00, \"\\\\u2603\"]}}'", "'null'" ],
	[ jsonpath => "'\$.a[*] ? (@ > 1)'" ],
	[ xml => "'<a b=\"c\">d &amp; e</a>'" ],
	[ inet => "'192.168.0.1/24'", "'::1'" ],
	[ cidr => "'10.0.0.0/8'", "'2001:db8::/32'" ],
	[ macaddr => "'08:00:2b:01:02:03'" ],
	[ macaddr8 => "'08:00:2b:01:02:03:04:05'" ],
	[ 'bit(5)' => "B'10101'" ],
	[ bit => "B'1'" ],
	[ 'bit varying' => "B''", "B'1' || repeat('10', 500)::varbit" ],
	[ point => "'(1.5,-2e300)'" ],
	[ line => "'{1,2,3}'" ],
	[ lseg => "'[(0,0),(1,1)]'" ],
	[ box => "'(1,1),(0,0)'" ],
	[ path => "'[(0,0),(1,1),(2,0)]'", "'((0,0),(1,1))'" ],
	[ polygon => "'((0,0),(1,1),(2,0))'" ],
	[ circle => "'<(1,2),3>'" ],
	[ tsvector => "'a:1A fat:2B,4C cat:5'", "''" ],
	[ tsquery => "'fat & (rat | !cat:ab*)'" ],
	[ int4range => "'[1,10)'", "'empty'", "'(,)'" ],
	[ numrange => "'[1.10,2.0]'" ],
	[ tstzrange => "'[2026-01-01 00:00+00,infinity)'" ],
	[ daterange => "'(,2026-01-01)'" ],
	[ int8range => "'[-9223372036854775808,9223372036854775807)'" ],
	[ tsrange => "'[-infinity,4714-11-24 BC)'" ],
	[ int8multirange => "'{[1,3),[5,7)}'", "'{}'" ],
	[ int4multirange => "'{(,2147483647)}'", "'{}'" ],
	[ nummultirange => "'{[1.10,2.0],(2.1,)}'" ],
	[ tsmultirange => "'{[2026-01-01,infinity]}'" ],
	[ tstzmultirange => "'{[2026-01-01 00:00+00,2026-01-02 00:00+00)}'" ],
	[ datemultirange => "'{[2026-01-01,2026-02-01),[infinity,infinity]}'" ],
	[ pg_lsn => "'FFFFFFFF/FFFFFFFF'" ],
	[ pg_snapshot => "'10:20:10,14,15'" ],
	[ txid_snapshot => "'10:20:10,14,15'" ],
	[ oid => '4294967295' ],
	[ xid => "'4294967295'" ],
	[ cid => "'4294967295'" ],
	[ xid8 => "'18446744073709551615'" ],
	[ tid => "'(4294967295,65535)'" ],
	[ refcursor => "'a cursor'" ],
	[ int2vector => "'1 -2 3'", "''" ],
	[ oidvector => "'1 4294967295'" ],
	[ 'int2vector[]' => q('{"1 2","3"}'), "'{}'" ],
	[ 'oidvector[]' => q('{"1 2","4294967295"}') ],
	[ aclitem => q{'"odd role"=arwdDxt/postgres'}, "'=r/postgres'" ],
	[ regclass => q{'"Odd space".t'}, "'pg_catalog.pg_class'", '0' ],
	[ regcollation => q{'"Odd space"."C"'} ],
	[ regconfig => q{'"Odd space".search'} ],
	[ regdictionary => q{'"Odd space".words'} ],
	[ regnamespace => q{'"Odd space"'} ],
	[ regoper => q{'"Odd space".<#>'} ],
	[ regoperator => q{'"Odd space".<#>(integer,color)'} ],
	[ regproc => q{'"Odd space".f'} ],
	[ regprocedure => q{'"Odd space".f(integer,color)'} ],
	[ regrole => q{'"odd role"'} ],
	[ regtype => q{'color'}, q{'color[]'} ],
	[ regnames => q{'{"\"Odd space\".t",NULL}'} ],
	[ referring => q{'("\"Odd space\".t",x)'} ],
	[ 'integer[]' => "'{}'", "'{1,NULL,3}'", "'[0:1][2:3]={{1,2},{3,4}}'" ],
	[ 'text[]' => q('{"a,b","","\"\\\\",NULL,"NULL"}') ],
	[ 'numeric[]' => "'{1.0,NaN}'" ],
	[ 'timestamptz[]' => "'{2026-01-01 00:00+00,infinity}'" ],
	[ 'jsonb[]' => "ARRAY['{\"a\": 1}'::jsonb, NULL]" ],
	[ 'bytea[]' => "ARRAY['\\x00'::bytea, '']" ],
	[ color => "'red'", "'blue'" ],
	[ 'color[]' => "'{red,NULL}'" ],
	[ percent => '0', '100' ],
	[ pair => "'(1,\"a,b\")'", "'(,)'" ],
	[ 'pair[]' => "ARRAY[ROW(1, 'x')::pair, NULL]" ],
	[ span => "'[1.5,2.5)'" ],
	[ span_multirange => "'{[1.5,2.5),[NaN,)}'" ],
	[ nothing => "'()'" ],
	[ nested => q{'("(1,\\"a,b\\")","{red,NULL}",50)'}, "'(,,)'" ],
	[ list => "'{1,NULL}'", "'[5:6]={1,2}'" ],
	[ 'list[]' => q('{"{1,2}",NULL}') ],
	[ 'regnames[]' => q('{"{pg_class}",NULL}') ],
	[ citext => "'GroßStadt ☃'", "''" ],
	[ hstore => q{'a=>1, "b c"=>NULL, ""=>"\"\\\\"'}, "''" ],
	[ ltree => "'Top.Science.Astronomy'", "''" ],
	[ lquery => "'Top.*{1,3}.!pizza\@*'" ],
	[ ltxtquery => "'Europe & Russia*\@ & !Transportation'" ],
	[ cube => "'(1,2,NaN),(3,4,1e300)'" ],
	[ isbn => "'978-0-393-04002-9'" ],
	[ seg => "'1.0 .. ~2.50'" ],
	[ query_int => "'1&(2|!3)'" ]);
my @extensions = qw(citext hstore ltree cube isn seg intarray);

# and an array of each, with NULLs and bounds of its own
sub array_of
{
	my ($type, @values) = @_;
	my ($first, $last) = map { "($_)::$type" } @values[ 0, -1 ];
	my $matrix = "ARRAY[[$first, NULL], [NULL, $last]]";
	return [
		"${type}[]",
		"ARRAY[$last, NULL, $first]",
		"('[3:4][-1:0]=' || ($matrix)::text)::${type}[]",
		"'{}'"
	];
}
# arrays of arrays, in disguise, have no array constructor
my $no_array = qr/\]$|^(int2vector|oidvector|list|regnames)$/;
push @types, map { array_of(@$_) } grep { $_->[0] !~ $no_array } @types;

my @tables = qw(by_key by_row by_all);
my $rows = 0;
foreach my $type (@types)
{
	$rows = @$type - 1 if @$type - 1 > $rows;
}

# objects have other OIDs on green
$green->safe_psql('CREATE TABLE one (a text); CREATE TABLE two (a text)');
foreach my $node ($blue, $green)
{
	$node->safe_psql("CREATE EXTENSION $_") for @extensions;
	$node->safe_psql(
		q{CREATE TYPE color AS ENUM ('red', 'green', 'blue');
		CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
		CREATE DOMAIN list AS int[];
		CREATE TYPE pair AS (n int, t text);
		CREATE TYPE nothing AS ();
		CREATE TYPE nested AS (p pair, c color[], d percent);
		CREATE TYPE span AS RANGE (subtype = float8,
			multirange_type_name = span_multirange);
		CREATE DOMAIN regnames AS regclass[];
		CREATE TYPE referring AS (r regclass, t text);
		CREATE ROLE "odd role";
		CREATE SCHEMA "Odd space"
			CREATE TABLE t (id int);
		CREATE FUNCTION "Odd space".f(int, color) RETURNS bool
			LANGUAGE sql AS 'SELECT true';
		CREATE OPERATOR "Odd space".<#> (leftarg = int, rightarg = color,
			function = "Odd space".f);
		CREATE COLLATION "Odd space"."C" (locale = 'C');
		CREATE TEXT SEARCH CONFIGURATION "Odd space".search (COPY = simple);
		CREATE TEXT SEARCH DICTIONARY "Odd space".words (TEMPLATE = simple);});
	foreach my $table (@tables)
	{
		my $n = 0;
		$node->safe_psql("CREATE TABLE $table (id int"
			  . ($table eq 'by_all' ? ', ' : ' PRIMARY KEY, ')
			  . join(', ', map { 'c' . ++$n . " $_->[0]" } @types) . ')');
		$node->safe_psql("ALTER TABLE $table REPLICA IDENTITY FULL")
		  if $table ne 'by_key';
	}
}

is( $blue->safe_psql(q{SELECT string_agg(t.typname, ' ' ORDER BY t.typname)
		FROM pg_type t
		WHERE t.typnamespace = 'pg_catalog'::regnamespace
			AND t.typtype IN ('b', 'r', 'm')
			AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
			AND NOT EXISTS (SELECT FROM pg_attribute a
				WHERE a.attrelid = 'by_key'::regclass AND a.attnum > 0
					AND a.atttypid = t.oid)
			-- no value of these can be put in by a user
			AND t.typname NOT IN ('gtsvector', 'pg_node_tree')
			AND t.typname !~ '^pg_(brin|ndistinct|dependencies|mcv_list)'}),
	'',
	'no built-in type is left out');
isnt(
	$blue->safe_psql(q{SELECT '"Odd space".t'::regclass::oid}),
	$green->safe_psql(q{SELECT '"Odd space".t'::regclass::oid}),
	'objects have other OIDs on the two sides');

# Rows of all values in turn, a row of NULLs, and a row per column in which
# only that one is set.
sub fill
{
	my ($table, $first) = @_;
	my @sql;
	foreach my $row (0 .. $rows - 1)
	{
		my @values = map {
			my $value = $_->[ 1 + $row % (@$_ - 1) ];
			"($value)::$_->[0]"
		} @types;
		push @sql, 'INSERT INTO ' . $table . ' VALUES ('
		  . join(', ', $first + $row, @values) . ')';
	}
	push @sql, "INSERT INTO $table (id) VALUES (" . ($first + $rows) . ')';
	foreach my $n (1 .. @types)
	{
		push @sql, "INSERT INTO $table (id, c$n) SELECT "
		  . ($first + $rows + $n)
		  . ", c$n FROM $table WHERE id = $first";
	}
	$blue->safe_psql('BEGIN; ' . join('; ', @sql) . '; COMMIT');
	return;
}

sub same
{
	my ($what) = @_;
	foreach my $table (@tables)
	{
		compare_tables("TABLE $table", "TABLE $table", "$table: $what");
	}
	return;
}

fill($_, 1) for @tables;
$blue->safe_psql(q{SELECT bluegreen.create_deployment('types', 'green');
	SELECT bluegreen.map_table('types', 'by_key');
	SELECT bluegreen.map_table('types', 'by_row');
	SELECT bluegreen.map_table('types', 'by_all');
	CALL bluegreen.start('types');});
wait_for_sync('types');
same('copied');

fill($_, 1001) for @tables;
wait_for_sync('types');
same('inserted by the stream');

# each column alone, from NULL and to NULL, and all of them
foreach my $table (@tables)
{
	my $set = join ', ', map { "c$_ = s.c$_" } 1 .. @types;
	my $null = join ', ', map { "c$_ = NULL" } 1 .. @types;
	my $empty = 1001 + $rows;
	$blue->safe_psql(
		join '; ', (
			map {
				"UPDATE $table SET c$_ = (SELECT c$_ FROM $table WHERE id = 2)"
				  . " WHERE id = $empty"
			} 1 .. @types),
		map { "UPDATE $table SET c$_ = NULL WHERE id = 1001" } 1 .. @types);
	$blue->safe_psql(
		"UPDATE $table t SET $set FROM $table s WHERE t.id = 1002 AND s.id = 1;
		UPDATE $table SET $null WHERE id = 1003;
		UPDATE $table SET c2 = 7 WHERE id = 1004;
		UPDATE $table SET id = id + 1000 WHERE id = 1004;");
}
wait_for_sync('types');
same('updated, with and without a new key');

$blue->safe_psql("DELETE FROM $_ WHERE id % 2 = 0") for @tables;
wait_for_sync('types');
same('deleted');
is( $green->safe_psql(q{SELECT count(*) FROM bluegreen.conflict}),
	0, 'every row was found');

#
# The same for verify(): no type looks different on the other side, and in each
# a difference is seen
#
# differences by table; table was mapped without a key, so a row that differs is
# one that is missing and one too many
sub verified
{
	my ($status, undef, $said) =
	  $blue->psql(q{CALL bluegreen.verify('types')});
	is($status, 0, 'verify()') or diag($said);
	return $blue->safe_psql(q{SELECT string_agg(target || ' ' || differences,
			', ' ORDER BY target) FROM bluegreen.verification
		WHERE deployment = 'types'});
}
is( verified(),
	'public.by_all 0, public.by_key 0, public.by_row 0',
	'no type looks different on the other side')
  or diag($blue->safe_psql('SELECT * FROM bluegreen.difference LIMIT 20'));

# rows in which one column is set lose it behind the stream's back
my $first = $rows + 2;
my $last = $rows + 1 + @types;
foreach my $table (@tables)
{
	$green->safe_psql(
		'BEGIN; SET LOCAL session_replication_role = replica; '
		  . join('; ', map {
			  "UPDATE $table SET c$_ = NULL WHERE id = " . ($rows + 1 + $_)
		  } 1 .. @types)
		  . '; COMMIT');
}
my $changed = $blue->safe_psql(
	"SELECT count(*) FROM by_key WHERE id BETWEEN $first AND $last");
my $set = $blue->safe_psql(
	"SELECT count(*) FROM by_key b WHERE id BETWEEN $first AND $last
		AND num_nonnulls("
	  . join(', ', map { "b.c$_" } 1 .. 90) . ') + num_nonnulls('
	  . join(', ', map { "b.c$_" } 91 .. @types) . ') > 0')
  if @types <= 190;
$set //= $changed;
is( verified(), 'public.by_all ' . 2 * $set
	  . ", public.by_key $set, public.by_row $set",
	'a NULL is seen in a column of every type');
is( $blue->safe_psql(q{SELECT bluegreen.repair('types')}),
	4 * $set, 'and repaired');
is( verified(),
	'public.by_all 0, public.by_key 0, public.by_row 0',
	'all types are the same again');
same('repaired');

#
# Names: every ASCII character, 63 bytes, more bytes than letters
#
sub quoted { my ($name) = @_; return '"' . $name =~ s/"/""/gr . '"' }

my @ascii = map { chr } 1 .. 127;
my ($schema, $table, @columns) = map { quoted($_) } (
	"a.\"b'; --\\\n%s \$1",
	join('', @ascii[ 50 .. 112 ]),
	join('', @ascii[ 0 .. 59 ]),
	join('', @ascii[ 60 .. 122 ]),
	join('', @ascii[ 0 .. 3, 113 .. 126 ]) . 'Größe ☃',
	'select', '☃' x 21, 'Key');
my $odd = "$schema.$table";
foreach my $node ($blue, $green)
{
	$node->safe_psql("CREATE SCHEMA $schema; CREATE TABLE $odd ("
		  . join(', ', map { "$_ text" } @columns)
		  . ", a color[], \"i.d\" int GENERATED ALWAYS AS IDENTITY,"
		  . " PRIMARY KEY (\"i.d\", $columns[-1]))");
}
my $deployment = "E'the\\n''\"\\\\% deployment'";
$blue->safe_psql(
	"INSERT INTO $odd SELECT 'a', 'b', 'c', 'd', 'e', 'k'
		FROM generate_series(1, 3);
	SELECT bluegreen.create_deployment($deployment, 'green');
	SELECT bluegreen.map_table($deployment, \$odd\$$odd\$odd\$);
	CALL bluegreen.start($deployment);");
$blue->safe_psql("CALL bluegreen.wait_for_sync($deployment, '180 s')");
compare_tables("TABLE $odd", "TABLE $odd", 'odd names, copied');
$blue->safe_psql(
	"INSERT INTO $odd SELECT 'f', 'g', 'h', 'i', 'j', 'k', '{red}'
		FROM generate_series(1, 3);
	UPDATE $odd SET $columns[0] = 'new', $columns[2] = NULL
		WHERE \"i.d\" IN (1, 4);
	UPDATE $odd SET $columns[-1] = 'moved' WHERE \"i.d\" IN (2, 5);
	DELETE FROM $odd WHERE \"i.d\" IN (3, 6);");
$blue->safe_psql("CALL bluegreen.wait_for_sync($deployment, '180 s')");
compare_tables("TABLE $odd", "TABLE $odd", 'odd names, streamed');
is( $blue->safe_psql(
		"SELECT count(*) FROM bluegreen.status WHERE state = 'streaming'"),
	2,
	'a deployment may have an odd name, too');

done_testing();
