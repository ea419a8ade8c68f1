# Rows that cannot be carried over: the stream stops before them, says which
# row it is, and goes on at exactly that change when the cause is removed.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'");
my ($lsn, $error);

sub stream
{
	my ($columns) = @_;
	return $blue->safe_psql("SELECT $columns FROM bluegreen.stat_stream");
}

# The stream stands at an error whose message matches.
sub stands
{
	my ($pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream});
	like(stream('error_message'), $pattern, $name);
	$lsn = stream('error_lsn');
	return;
}

# The cause is removed: the stream tries again by itself.
sub goes_on
{
	$blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream});
	wait_for_sync('d');
	return;
}

sub same
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('d');
	return compare_tables("TABLE $table", "TABLE $table", $name);
}

#
# The transform fails
#
$blue->safe_psql('CREATE TABLE t (id int PRIMARY KEY, a int, b int, v text)');
$green->safe_psql('CREATE TABLE t (id int PRIMARY KEY, q int, v text)');
foreach my $node ($blue, $green)
{
	$node->safe_psql('CREATE TABLE n (id int PRIMARY KEY, times int)');
}
$blue->safe_psql(q{INSERT INTO t SELECT i, i, 1, 'copied'
		FROM generate_series(1, 1000) i;
	INSERT INTO n SELECT i, 0 FROM generate_series(1, 100) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't',
		transform => 'SELECT id, a / b AS q, v FROM t');
	SELECT bluegreen.map_table('d', 'n');
	CALL bluegreen.start('d');});
wait_for_sync('d');
my $quotients = 'SELECT id, a / b AS q, v FROM t';
compare_tables($quotients, 'TABLE t', 'the copy divides');

# one bad row in the middle of thousands, in one transaction of several tables,
# between transactions that count how often they are applied
$blue->safe_psql(q{UPDATE n SET times = times + 1;
	BEGIN;
	UPDATE n SET times = times + 1;
	INSERT INTO t SELECT i, i, CASE i WHEN 3333 THEN 0 ELSE 1 END, 'bad'
		FROM generate_series(2001, 6000) i;
	UPDATE n SET times = times + 1;
	COMMIT;
	UPDATE n SET times = times + 1;});
stands(qr/division by zero/, 'a transform that fails stops the stream');
is(stream('error_sqlstate, error_relation, error_key, error_lsn IS NOT NULL'),
	q{22012|public.t|id[integer]:'3333'|t},
	'the error names table and row, and the position of the transaction');
like(stream('error_hint'), qr/alter_mapping|skip/, 'and says what can be done');
is($green->safe_psql('SELECT DISTINCT times FROM n'), 1,
	'what came before is applied, and nothing of the transaction');
is($green->safe_psql('SELECT count(*) FROM t'), 1000, 'in no table');
my $tries = stream('errors');
$blue->poll_query_until(
	"SELECT errors > $tries + 1 FROM bluegreen.stat_stream");
is(stream("error_lsn = '$lsn'"), 't', 'it stands there however often it tries');

$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 't',
	transform => 'SELECT id, a / nullif(b, 0) AS q, v FROM t')});
$quotients =~ s/b AS/nullif(b, 0) AS/;
goes_on();
compare_tables($quotients, 'TABLE t',
	'with another transform it goes on at that very change');
is($green->safe_psql('SELECT DISTINCT times FROM n'), 4,
	'and applies everything around it once');
is(stream('skipped'), 0, 'nothing was left out');
is($blue->safe_psql(q{SELECT count(*) FROM bluegreen.event
		WHERE kind = 'defined' AND message LIKE '%altered'}),
	1, 'the change of the mapping is an event');

#
# The next one, in the filter and in the old row; then two in a row
#
$green->safe_psql('CREATE TABLE f (id int PRIMARY KEY)');
$blue->safe_psql(q{CREATE TABLE f (id int PRIMARY KEY, b int);
	ALTER TABLE f REPLICA IDENTITY FULL;
	SELECT bluegreen.map_table('d', 'f',
		transform => 'SELECT id FROM f WHERE 10 / b > 1');
	INSERT INTO f VALUES (1, 1), (2, 9), (3, 5)});
wait_for_sync('d');
$blue->safe_psql(q{INSERT INTO f VALUES (4, 2);
	UPDATE f SET b = 0 WHERE id = 2;
	DELETE FROM f WHERE id = 2;
	INSERT INTO f VALUES (5, 3);});
stands(qr/division by zero/, 'a filter that fails stops the stream, too');
is(stream('error_relation, error_key'), q{public.f|id[integer]:'2'},
	'with the row named');
my $first = $lsn;
(undef, undef, $error) =
  $blue->psql(qq{SELECT bluegreen.skip('d', '$lsn'::pg_lsn - 8)});
like($error, qr/stands at \Q$lsn\E, not at/, 'skip wants this very position');
$blue->safe_psql("SELECT bluegreen.skip('d', '$lsn')");
ok( $blue->poll_query_until(
		"SELECT state = 'error' AND error_lsn > '$first'"
		  . ' FROM bluegreen.stat_stream'),
	'the row as it was before a DELETE fails at another transaction');
$lsn = stream('error_lsn');
like(stream('error_message'), qr/division by zero/, 'for the same reason');
(undef, undef, $error) = $blue->psql("SELECT bluegreen.skip('d', '$first')");
like($error, qr/stands at \Q$lsn\E, not at/,
	'which the first position does not skip');
$blue->safe_psql("SELECT bluegreen.skip('d', '$lsn')");
goes_on();
is( $green->safe_psql('SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM f'),
	'1 3 4 5',
	'after both are skipped nothing else is missing');
is( $blue->safe_psql(q{SELECT string_agg(lsn::text, ' ' ORDER BY lsn)
		FROM bluegreen.event WHERE kind = 'skipped'
		AND message LIKE 'left a transaction out%'}),
	"$first $lsn",
	'both are events');
is(stream('skipped'), 2, 'and counted');
same('n', 'the others go on');

#
# What green refuses.  Each case: what is set up there, the row that breaks it,
# SQLSTATE, and how it is mended; the row stands in the middle of a batch.
#
$green->safe_psql(q{CREATE TYPE mood AS ENUM ('ok');
	CREATE DOMAIN small AS int CHECK (VALUE < 1000);
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN RAISE 'not that'; END$$;
	CREATE TABLE g (id int PRIMARY KEY, k small, s varchar(100), m mood,
		r int4range)});
$blue->safe_psql(q{CREATE TABLE g (id int PRIMARY KEY, k int, s text, m text,
		r int4range);
	INSERT INTO g SELECT i, i, 's', 'ok', int4range(i, i + 1)
		FROM generate_series(1, 900) i;
	SELECT bluegreen.map_table('d', 'g')});
wait_for_sync('d');
my @cases = (
	[ 'a CHECK', 'ALTER TABLE g ADD CONSTRAINT c CHECK (k <> 950)',
		'k = 950', '23514', 'ALTER TABLE g DROP CONSTRAINT c' ],
	[ 'NOT NULL', 'ALTER TABLE g ALTER s SET NOT NULL',
		's = NULL', '23502', 'ALTER TABLE g ALTER s DROP NOT NULL' ],
	[ 'a unique index', 'CREATE UNIQUE INDEX u ON g (k) WHERE k > 0',
		'k = 7', '23505', 'UPDATE g SET k = NULL WHERE id = 7' ],
	[ 'an exclusion constraint',
		'ALTER TABLE g ADD CONSTRAINT x EXCLUDE USING gist (r WITH &&)',
		q{r = '[8,9)'}, '23P01', 'ALTER TABLE g DROP CONSTRAINT x' ],
	[ 'a length', 'ALTER TABLE g ALTER s TYPE varchar(3)',
		q{s = 'long'}, '22001', 'ALTER TABLE g ALTER s TYPE text' ],
	[ 'an enum', '', q{m = 'new'}, '22P02',
		q{ALTER TYPE mood ADD VALUE 'new'} ],
	[ 'a domain', '', 'k = 1001', '23514',
		'ALTER DOMAIN small DROP CONSTRAINT small_check' ],
	[ 'a trigger',
		q{CREATE TRIGGER t BEFORE INSERT ON g FOR EACH ROW
			WHEN (new.k = 5000) EXECUTE FUNCTION refuse();
		ALTER TABLE g ENABLE ALWAYS TRIGGER t},
		'k = 5000', 'P0001', 'DROP TRIGGER t ON g' ]);
my $id = 10_000;
foreach my $case (@cases)
{
	my ($name, $before, $poison, $sqlstate, $cure) = @$case;
	my $row = ($id += 1000) + 500;
	my ($column, $value) = $poison =~ /^(\w) = (.*)/;
	$green->safe_psql($before) if $before;
	$blue->safe_psql("UPDATE n SET times = times + 1;
		INSERT INTO g SELECT i, -i, 's', 'ok', 'empty'
			FROM generate_series($id, $id + 99) i;
		BEGIN; INSERT INTO g SELECT i, -i, 's', 'ok', 'empty'
			FROM generate_series($id + 100, $id + 899) i WHERE i <> $row;
		INSERT INTO g SELECT i, "
		  . join(', ', map { $_->[0] eq $column ? $value : $_->[1] }
			[ k => '-i' ], [ s => q{'s'} ], [ m => q{'ok'} ],
			[ r => q{int4range 'empty'} ])
		  . " FROM generate_series($row, $row) i;
		UPDATE n SET times = times + 1; COMMIT;
		DELETE FROM g WHERE id = $id");
	$blue->poll_query_until(
		"SELECT state = 'error' AND error_sqlstate = '$sqlstate'"
		  . ' FROM bluegreen.stat_stream');
	is( stream('error_relation, error_key, error_lsn IS NOT NULL'),
		qq{public.g|id[integer]:'$row'|t},
		"$name of green that is broken stops the stream at the row");
	is( $green->safe_psql(
			"SELECT count(*), count(*) FILTER (WHERE id < $id + 100)"
			  . " FROM g WHERE id >= $id"),
		'100|100',
		'after all that came before');
	$green->safe_psql($cure);
	goes_on();
}
compare_tables('SELECT * FROM g WHERE id <> 7',
	'SELECT id, k::int, s::text, m::text, r FROM g WHERE id <> 7',
	'with the causes gone everything arrives');
same('n', 'each transaction once');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'), 0,
	'and no row was a conflict, which it would be the second time');

#
# While a table is copied
#
$blue->append_conf('bluegreen.copy_chunk_rows = 100');
$blue->reload;
foreach my $table (qw(c1 c2))
{
	$green->safe_psql("CREATE TABLE $table (id int PRIMARY KEY, w int)");
	$blue->safe_psql("CREATE TABLE $table (id int PRIMARY KEY, b int);
		INSERT INTO $table SELECT i, i - 777 FROM generate_series(1, 1000) i;
		ANALYZE $table");
}
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'c1',
	transform => 'SELECT id, 10 / b AS w FROM c1')});
stands(qr/^could not copy to "public\.c1": division by zero/,
	'a transform that fails in the copy stops the stream');
# a copy worker that is ended while it looks for the row does not name it
ok( $blue->poll_query_until(q{SELECT error_message ~ 'division by zero'
		AND error_key = $$id[integer]:'777'$$ FROM bluegreen.stat_stream}),
	'at the row');
is($lsn, '', 'with no transaction to skip');
$blue->safe_psql('INSERT INTO c1 VALUES (2000, 2)');
(undef, undef, $error) = $blue->psql(q{SELECT bluegreen.alter_mapping('d', 'c1',
	on_delete => 'ignore')});
like($error, qr/cannot be changed like this before the table is copied/,
	'then not everything of a mapping can be changed');
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 'c1',
	transform => 'SELECT id, 10 / nullif(b, 0) AS w FROM c1')});
goes_on();
compare_tables('SELECT id, 10 / nullif(b, 0) FROM c1', 'TABLE c1',
	'with another transform the copy goes on');

$green->safe_psql('ALTER TABLE c2 ADD CHECK (w <> 0)');
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'c2',
	transform => 'SELECT id, b AS w FROM c2')});
stands(qr/^could not copy to "public\.c2": .*c2_w_check/,
	'a row that green refuses stops the copy');
$green->safe_psql('ALTER TABLE c2 DROP CONSTRAINT c2_w_check');
goes_on();
compare_tables('TABLE c2', 'TABLE c2', 'until green takes it');
same('n', 'other tables have lost nothing');

done_testing();
