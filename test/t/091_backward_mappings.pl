# Mappings back: derived where nothing is lost, refused and named where
# something would be, and defined by hand.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Mistakes;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");

#
# What is derived and what is not: [name, blue's columns, green's columns,
# transform, columns of the derived transform or the problem]
#
my @cases = (
	[ 'same', 'id int PRIMARY KEY, v text', 'id int PRIMARY KEY, v text', undef,
		'id AS id, v AS v' ],
	[ 'renamed', 'id int PRIMARY KEY, "Odd name" text',
		'v text, "key" int PRIMARY KEY',
		'SELECT "Odd name" AS v, id AS "key" FROM %s',
		'key AS id, v AS "Odd name"' ],
	[ 'wider', 'id int PRIMARY KEY, a smallint, b varchar(10), c numeric(8,2)',
		'id bigint PRIMARY KEY, a int, b text, c numeric(12,2)', undef,
		'id AS id, a AS a, b AS b, c AS c' ],
	[ 'narrower', 'id bigint PRIMARY KEY, v text',
		'id int PRIMARY KEY, v varchar(20)', undef, 'id AS id, v AS v' ],
	[ 'casted', 'id int PRIMARY KEY, n int', 'id int PRIMARY KEY, n bigint',
		'SELECT id, n::bigint AS n FROM %s', 'id AS id, n AS n' ],
	[ 'more', 'id int PRIMARY KEY, v text, local text',
		'id int PRIMARY KEY, v text, len int, extra text',
		'SELECT id, v, length(v) AS len FROM %s', 'id AS id, v AS v' ],
	[ 'generated', 'id int PRIMARY KEY, v int, d int GENERATED ALWAYS AS (v * 2) STORED',
		'id int PRIMARY KEY, v int, d int GENERATED ALWAYS AS (v * 3) STORED',
		undef, 'id AS id, v AS v' ],
	[ 'half_generated', 'id int PRIMARY KEY, v int, d int GENERATED ALWAYS AS (v * 2) STORED',
		'id int PRIMARY KEY, v int, d int', undef, 'id AS id, v AS v' ],
	[ 'optional', q{id int PRIMARY KEY, v text NOT NULL DEFAULT 'x'},
		'id int PRIMARY KEY', 'SELECT id FROM %s', 'id AS id' ],
	[ 'domain', 'id int PRIMARY KEY, v positive', 'id int PRIMARY KEY, v int',
		undef, 'id AS id, v AS v' ],
	[ 'keyless', 'v text', 'v text', undef, 'v AS v' ],
	[ 'round', 'id int PRIMARY KEY, v numeric(8,2)',
		'id int PRIMARY KEY, v numeric', undef, qr/does not tell column v$/ ],
	[ 'floating', 'id int PRIMARY KEY, v int', 'id int PRIMARY KEY, v numeric',
		undef, qr/does not tell column v$/ ],
	[ 'day', 'id int PRIMARY KEY, v date', 'id int PRIMARY KEY, v timestamp',
		undef, qr/does not tell column v$/ ],
	[ 'cut', 'id int PRIMARY KEY, v text', 'id int PRIMARY KEY, v text',
		'SELECT id, v::varchar(3) AS v FROM %s', qr/does not tell column v$/ ],
	[ 'joined', 'id int PRIMARY KEY, first text, last text',
		'id int PRIMARY KEY, name text',
		q{SELECT id, first || ' ' || last AS name FROM %s},
		qr/does not tell column first, last$/ ],
	[ 'needed', 'id int PRIMARY KEY, v text NOT NULL', 'id int PRIMARY KEY',
		'SELECT id FROM %s', qr/does not tell column v$/ ],
	[ 'filtered', 'id int PRIMARY KEY, v text', 'id int PRIMARY KEY, v text',
		'SELECT id, v FROM %s WHERE id > 0', qr/has a filter$/ ],
	[ 'merged', 'id int PRIMARY KEY, v text', 'id int PRIMARY KEY, v text',
		undef, qr/on_write 'merge'$/, q{on_write => 'merge'} ],
	[ 'ignored', 'id int PRIMARY KEY, v text', 'id int PRIMARY KEY, v text',
		undef, qr/on_delete 'ignore'$/, q{on_delete => 'ignore'} ],
	[ 'looked_up', 'id int PRIMARY KEY, v int', 'id int PRIMARY KEY, v int',
		undef, qr/has a lookup, and only green knows what it makes of column id, v$/,
		q{lookup => 'SELECT id, v FROM incoming'} ],
	[ 'computed', 'id int PRIMARY KEY, v text', 'id int PRIMARY KEY, v text',
		'SELECT id + 1 AS id, v FROM %s', qr/does not tell column id$/ ],
);
my ($sql_blue, $sql_green, $map) = ('', '', '');
foreach my $case (@cases)
{
	my ($name, $left, $right, $transform, undef, $how) = @$case;
	$sql_blue .= "CREATE TABLE $name ($left);";
	$sql_green .= "CREATE TABLE $name ($right);";
	my @more = defined $transform ? "transform => \$t\$" . sprintf($transform, $name) . '$t$' : ();
	push @more, $how if $how;
	$map .= 'SELECT bluegreen.map_table(' . join(', ', q{'d'}, "'$name'", @more) . ');';
}
my $domain = 'CREATE DOMAIN positive AS int CHECK (VALUE > 0);';
my $identity = 'ALTER TABLE keyless REPLICA IDENTITY FULL;';
my $combined = 'ALTER TABLE joined REPLICA IDENTITY FULL;
	ALTER TABLE merged REPLICA IDENTITY FULL;
	ALTER TABLE ignored REPLICA IDENTITY FULL;
	ALTER TABLE filtered REPLICA IDENTITY FULL;';
$blue->safe_psql("$domain $sql_blue $identity $combined");
$green->safe_psql("$domain $sql_green $identity");
$blue->safe_psql("SELECT bluegreen.create_deployment('d', 'green'); $map");

sub problems
{
	my %problem;
	my $rows = $blue->safe_psql(q{SELECT object, message
		FROM bluegreen.preflight('d')
		WHERE "check" = 'way_back' AND severity = 'error'});
	foreach (split /\n/, $rows)
	{
		my ($object, $message) = /^public\.(\w+)\|(.*)$/ or next;
		$problem{$object} = $message;
	}
	return %problem;
}

my %before = problems();
$blue->safe_psql(q{CALL bluegreen.start('d')});
my %after = problems();
foreach my $case (@cases)
{
	my ($name, undef, undef, undef, $expected) = @$case;
	my $transform = $green->safe_psql(qq{SELECT derived_from
		FROM bluegreen.table_mapping
		WHERE target_table = '$name' AND direction = 'backward'});
	if (ref $expected)
	{
		like($before{$name}, $expected, "$name: the preflight names why");
		like($after{$name}, $expected, "$name: after the start, too");
		is($transform, '', "$name: nothing is derived");
		next;
	}
	like($transform, qr/^SELECT \Q$expected\E FROM public\.$name; /,
		"$name: derived");
	is($before{$name} // $after{$name}, undef, "$name: the preflight is content");
}

#
# Types at their limits: what fits comes back, what does not stops the stream
#
$green->safe_psql(q{INSERT INTO wider VALUES (5, -7, 'short', 12.34);
	INSERT INTO renamed VALUES ('green', 9);
	INSERT INTO generated (id, v) VALUES (1, 5);
	INSERT INTO keyless VALUES ('twice'), ('twice');
	INSERT INTO more VALUES (1, 'abc', 3, 'extra');
	INSERT INTO narrower VALUES (2147483647, 'x');});
wait_for_both('d');
is( $blue->safe_psql(q{SELECT w::text, r::text, g::text, m::text, n::text,
		(SELECT count(*) FROM keyless) FROM wider w, renamed r, generated g,
		more m, narrower n}),
	'(5,-7,short,12.34)|(9,green)|(1,5,10)|(1,abc,)|(2147483647,x)|2',
	'rows come back as they would be on blue');
my @misfits = (
	[ q{INSERT INTO wider VALUES (2147483648, 0, '', 0)}, '22003' ],
	[ q{INSERT INTO wider VALUES (2, 32768, '', 0)}, '22003' ],
	[ q{INSERT INTO wider VALUES (3, 0, 'more than ten', 0)}, '22001' ],
	[ q{INSERT INTO wider VALUES (4, 0, '', 12345678.90)}, '22003' ],
	[ q{INSERT INTO domain VALUES (1, -1)}, '23514' ],
);
foreach my $misfit (@misfits)
{
	my ($sql, $state) = @$misfit;
	$green->safe_psql($sql);
	ok( $green->poll_query_until(
			qq{SELECT state = 'error' AND error_sqlstate = '$state'
				AND error_relation <> '' FROM bluegreen.stat_stream}),
		"$sql: stops the stream back")
	  or diag($green->safe_psql('SELECT * FROM bluegreen.stat_stream'));
	$green->safe_psql(q{SELECT bluegreen.skip('d', error_lsn)
		FROM bluegreen.stat_stream});
	wait_for_both('d');
}

#
# By hand
#
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'joined', 'joined',
	$t$SELECT id, split_part(name, ' ', 1) AS first,
		split_part(name, ' ', 2) AS last FROM joined$t$,
	direction => 'backward');});
is( $blue->safe_psql(q{SELECT source, target, derived FROM bluegreen.mapping
		WHERE direction = 'backward' AND target = 'public.joined'}),
	'public.joined|public.joined|f', 'a mapping back that was defined');
my %now = problems();
is($now{joined}, undef, 'contents the preflight');
$green->safe_psql(q{INSERT INTO joined VALUES (1, 'Jane Doe')});
wait_for_both('d');
is($blue->safe_psql('TABLE joined'), '1|Jane|Doe', 'and works at once');

# what only green has, by the caller's search_path
$blue->safe_psql('CREATE TABLE notes (id int PRIMARY KEY, v text)');
$green->safe_psql(q{CREATE SCHEMA inner_green;
	CREATE TABLE inner_green.notes_green (id int PRIMARY KEY, v text);});
$blue->safe_psql(q{SET search_path = inner_green;
	SELECT bluegreen.map_table('d', 'notes_green', 'public.notes',
		transform => 'SELECT id, upper(v) AS v FROM notes_green',
		direction => 'backward');});
$green->safe_psql(q{INSERT INTO inner_green.notes_green VALUES (1, 'a')});
wait_for_both('d');
is($blue->safe_psql('TABLE notes'), '1|A', 'a table that blue does not have');
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d',
	'inner_green.notes_green', transform =>
		'SELECT id, lower(v) AS v FROM inner_green.notes_green',
	direction => 'backward')});
$green->safe_psql(q{INSERT INTO inner_green.notes_green VALUES (2, 'B')});
wait_for_both('d');
is($blue->safe_psql('SELECT v FROM notes WHERE id = 2'),
	'b', 'its mapping is altered from blue');
is( $blue->safe_psql(q{SELECT bluegreen.unmap_table('d',
		'inner_green.notes_green', direction => 'backward')}),
	1, 'and removed');
is( $green->safe_psql(q{SELECT count(*) FROM bluegreen.mapping
		WHERE source = 'inner_green.notes_green'}),
	0, 'on green');

# what is defined wins over what is derived, and the derived one comes back
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'same', 'same',
	'SELECT id, v || ''!'' AS v FROM same', direction => 'backward')});
is( $blue->safe_psql(q{SELECT derived FROM bluegreen.mapping
		WHERE direction = 'backward' AND target = 'public.same'}),
	'f', 'a definition takes the place of the derived one');
$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d');});
is( $blue->safe_psql(q{SELECT derived FROM bluegreen.mapping
		WHERE direction = 'backward' AND target = 'public.same'}),
	'f', 'and keeps it');
$green->safe_psql(q{INSERT INTO same VALUES (1, 'hey')});
wait_for_both('d');
is($blue->safe_psql('TABLE same'), '1|hey!', 'and is what counts');
$blue->safe_psql(
	q{SELECT bluegreen.unmap_table('d', 'same', direction => 'backward')});
is( $blue->safe_psql(q{SELECT derived FROM bluegreen.mapping
		WHERE direction = 'backward' AND target = 'public.same'}),
	't', 'without it there is the derived one again');

# a forward mapping that comes, changes or goes takes the derived one along
sub derived
{
	my ($table) = @_;
	return $green->safe_psql(qq{SELECT count(*) FROM bluegreen.mapping
		WHERE direction = 'backward' AND target = 'public.$table'});
}
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 'more',
	transform => 'SELECT id, upper(v) AS v, 1 AS len FROM more')});
is(derived('more'), 0, 'an altered mapping that loses something');
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 'more',
	transform => 'SELECT id, v, 2 AS len FROM more')});
is(derived('more'), 1, 'and one that does not any more');
$blue->safe_psql(q{SELECT bluegreen.unmap_table('d', 'more')});
is(derived('more'), 0, 'a mapping that is removed');
$green->safe_psql('TRUNCATE more');
wait_for_both('d');
is($blue->safe_psql('SELECT count(*) FROM more'),
	1, 'so that green\'s table can be emptied');
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'more', transform =>
	'SELECT id, v, 3 AS len FROM more')});
wait_for_both('d');
is(derived('more'), 1, 'and one that comes');

#
# Mistakes
#
fails_with(
	$blue,
	{
		sql => q{SELECT bluegreen.map_table('d', 'nowhere', 'same',
			direction => 'backward')},
		state => '42P01', message => 'relation "nowhere" does not exist'
	},
	'a table that green does not have');
fails_with(
	$green,
	{
		sql => q{SELECT bluegreen.map_table('d', 'same')},
		state => '55000', message => 'this server is green of deployment "d"'
	},
	'forward mappings are blue\'s');
fails_with(
	$blue,
	{
		sql => q{SELECT bluegreen.map_table('d', 'same', direction => 'up')},
		state => '22023',
		message => 'invalid value for argument "direction": "up"'
	},
	'a direction that is none');
$green->stop;
fails_with(
	$blue,
	{
		sql => q{SELECT bluegreen.unmap_table('d', 'wider')},
		state => '08001',
		message => qr/could not connect to peer/
	},
	'without green, a mapping with a way back stays');
$green->start;
is($blue->safe_psql(q{SELECT count(*) FROM bluegreen.mapping
	WHERE source = 'public.wider' AND direction = 'forward'}), 1, 'it is still there');

done_testing();
