# Every replica identity with every awkward kind of data: long values in and
# out of line, also in keys, generated, dropped and late columns, values that
# swap.  A random load does all of it while tables are copied in chunks,
# truncated, streamed, and get columns.
#
# Environment: BLUEGREEN_SEED, the seed of the random load.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $seed = $ENV{BLUEGREEN_SEED} // int(rand(1_000_000));
note("BLUEGREEN_SEED=$seed");

my ($blue, $green) = create_pair(conf => <<'CONF', blue_conf => <<'BLUE');
bluegreen.restart_delay = 50ms
bluegreen.restart_delay_max = 200ms
CONF
bluegreen.copy_chunk_rows = 100
bluegreen.copy_workers = 2
deadlock_timeout = 20ms
BLUE

sub both { my ($sql) = @_; $_->safe_psql($sql) for $blue, $green; return }

#
# Tables: identity x what the key is.  A key of text is longer than 2 kB, in
# the row (inline), compressed in it (packed) or outside of it (toast).
#
my %identity = (
	pk => 'PRIMARY KEY',
	full => 'PRIMARY KEY',
	index => 'UNIQUE',
	bag => undef,
	log => undef);
my %storage =
  (int => 'EXTENDED', inline => 'PLAIN', packed => 'MAIN', toast => 'EXTERNAL');
my @tables = map { my $i = $_; map { "${i}_$_" } sort keys %storage }
  qw(pk full index);
push @tables, qw(bag_int bag_toast log_int log_toast);
my $columns = 'id, k, a, n, big, u, c, early, early_big, g';

# the i-th key; the longest noise that fits into an index
sub key_of
{
	my ($table, $i) = @_;
	return $i if $table =~ /int$/;
	return "noise('key' || ($i), 2300)" if $table !~ /packed$/;
	return "repeat('k' || ($i), 1200)";
}

both(<<'SQL');
CREATE FUNCTION noise(seed text, length integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
	SELECT left(string_agg(md5(seed || ' ' || i), '' ORDER BY i), length)
	FROM generate_series(0, length / 32) i
$$;
SQL
foreach my $table (@tables)
{
	my ($identity, $kind) = split /_/, $table;
	my $key = $kind eq 'int' ? 'id' : 'k';
	my $row = key_of($table, 'i');
	my $text = $kind eq 'int' ? "'k' || i" : $row;
	my $of_key = $identity{$identity} // '';

	# columns of the row's middle are dropped when some rows have them
	$blue->safe_psql(<<"SQL");
CREATE TABLE $table (gone1 integer DEFAULT 1, id integer NOT NULL,
	k text COLLATE "C" NOT NULL, a text, gone2 text DEFAULT noise('gone', 3000),
	n integer, big text, u integer UNIQUE DEFERRABLE, gone3 numeric DEFAULT 0.5,
	c text, twice integer GENERATED ALWAYS AS (n * 2) STORED,
	g text GENERATED ALWAYS AS (big || '!') STORED);
ALTER TABLE $table ALTER k SET STORAGE $storage{$kind},
	ALTER big SET STORAGE EXTERNAL, ALTER g SET STORAGE EXTERNAL,
	ALTER gone2 SET STORAGE EXTERNAL;
ALTER TABLE $table DROP COLUMN gone1;
INSERT INTO $table (id, k, a, n, big, u, c) SELECT i, $text, 'old ' || i,
	nullif(i % 5, 0), CASE WHEN i % 3 = 0 THEN noise('big' || i, 2500) END, i,
	CASE i % 4 WHEN 0 THEN repeat('c', 9000) WHEN 1 THEN 'c' END
	FROM generate_series(1, 300) i;
ALTER TABLE $table DROP COLUMN gone2, DROP COLUMN gone3,
	ADD COLUMN early integer DEFAULT 7,
	ADD COLUMN early_big text DEFAULT '@{[ 'early' x 1000 ]}';
INSERT INTO $table (id, k, a) SELECT i, $text, 'new ' || i
	FROM generate_series(301, 350) i;
SQL
	$green->safe_psql(<<"SQL");
CREATE TABLE $table (twice integer GENERATED ALWAYS AS (n * 2) STORED,
	early_big text, g text, c text, early integer, k text COLLATE "C" NOT NULL,
	u integer UNIQUE DEFERRABLE, big text, n integer, id integer NOT NULL,
	a text, acl aclitem DEFAULT '=r/postgres');
ALTER TABLE $table ALTER k SET STORAGE $storage{$kind};
SQL
	if ($of_key)
	{
		$blue->safe_psql(
			"ALTER TABLE $table ADD CONSTRAINT ${table}_key $of_key ($key)");
		$green->safe_psql("ALTER TABLE $table ADD PRIMARY KEY ($key)");
	}
	$blue->safe_psql("ALTER TABLE $table REPLICA IDENTITY "
		  . {
			pk => 'DEFAULT',
			index => "USING INDEX ${table}_key",
			log => 'NOTHING'
		  }->{$identity})
	  if $identity !~ /full|bag/;
	$blue->safe_psql("ALTER TABLE $table REPLICA IDENTITY FULL")
	  if $identity =~ /full|bag/;
}

# Are the values where the names say?  Of an index, too, since it holds them.
is( $blue->safe_psql(q{SELECT min(pg_column_size(k)) > 2000
		AND min(length(k)) > 2000 FROM pk_inline})
	  . $blue->safe_psql(q{SELECT max(pg_column_size(k)) < 300
		AND min(length(k)) > 2000 FROM pk_packed})
	  . $blue->safe_psql(q{SELECT pg_relation_size(reltoastrelid) > 350 * 2300
		FROM pg_class WHERE relname = 'pk_toast'})
	  . $blue->safe_psql(q{SELECT pg_relation_size(oid) > 350 * 2300
		FROM pg_class WHERE relname = 'pk_inline'}),
	'tttt',
	'keys are inline, compressed and outside of the row');

#
# The random load: work() does some of the things below to a table, as its
# argument says.  Keys are $1 and $2.
#
sub operations
{
	my ($table) = @_;
	my $int = $table =~ /int$/;
	my $key = $int ? 'id' : 'k';
	my ($one, $two) = (key_of($table, '$1'), key_of($table, '$2'));
	my $text_of = sub { $int ? "'k' || $_[0]" : key_of($table, $_[0]) };
	my $insert = "INSERT INTO $table (id, k, a, n, big, u, c) ";
	my @of_all = (
		"$insert VALUES (\$1, @{[ $text_of->('$1') ]}, 'in ' || \$2,"
		  . ' nullif($2 % 5, 0),'
		  . " CASE WHEN \$2 % 3 = 0 THEN noise('new' || \$2, 2200) END,"
		  . ' CASE WHEN $2 % 2 = 0 THEN $1 END,'
		  . " CASE WHEN \$2 % 4 = 0 THEN repeat('d', \$2) END)",
		"INSERT INTO $table (id, k, a) SELECT i, @{[ $text_of->('i') ]}, 'many ' || \$2"
		  . ' FROM generate_series($1, $1 + 4) i');
	return @of_all if $table =~ /^log/;
	my $move = $int ? "id = $two" : "id = \$2, k = $two";
	my $away = $int ? 'id = -id' : "k = '-' || k";
	my $there = $int ? "id = -$one" : "k = '-' || $one";
	return (@of_all,
		# what is outside of the row stays, changes, goes
		"UPDATE $table SET n = n + 1 WHERE $key = $one",
		"UPDATE $table SET a = 'x' || \$2, n = NULL WHERE $key = $one",
		"UPDATE $table SET big = noise('up' || \$2, 2100) WHERE $key = $one",
		"UPDATE $table SET big = NULL, c = repeat('u', \$2) WHERE $key = $one",
		"UPDATE $table SET early = \$2, early_big = NULL WHERE $key = $one",
		# keys move, alone, with a long value, and swap
		"UPDATE $table SET $move WHERE $key = $one",
		"UPDATE $table SET $move, big = noise('mv' || \$2, 2100)"
		  . " WHERE $key = $one",
		"WITH away AS (UPDATE $table SET $away WHERE $key = $one RETURNING 1)"
		  . " SELECT count(*) FROM away;"
		  . "UPDATE $table SET $key = $one WHERE $key = $two;"
		  . "UPDATE $table SET $key = $two WHERE $there",
		# unique values swap in one statement
		"UPDATE $table SET u = \$1 + \$2 - u WHERE u IN (\$1, \$2)",
		"UPDATE $table SET a = a || '.' WHERE id BETWEEN \$1 AND \$1 + 5",
		"DELETE FROM $table WHERE $key = $one",
		"DELETE FROM $table WHERE id BETWEEN \$1 AND \$1 + 2",
		"DELETE FROM $table WHERE $key = $one; $of_all[0]");
}

# A statement that fails or is to be undone is so alone, like after ROLLBACK TO.
$blue->safe_psql(<<'SQL');
CREATE TABLE operation (tab text, number integer, statements text[],
	PRIMARY KEY (tab, number));
CREATE FUNCTION pick(seed integer, what text, n integer) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
	SELECT (abs(hashtextextended(what, seed) % n))::integer
$$;
CREATE FUNCTION work(seed integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	tables CONSTANT text[] := ARRAY(SELECT DISTINCT tab FROM operation ORDER BY 1);
	t text;
	statement text;
	what text[];
BEGIN
	FOR i IN 1 .. 1 + pick(seed, 'how many', 5) LOOP
		t := tables[1 + pick(seed, i || ' table', cardinality(tables))];
		SELECT statements INTO what FROM operation WHERE tab = t
			ORDER BY pick(seed, i || ' what' || number, 1000000), number LIMIT 1;
		BEGIN
			IF pick(seed, i || ' truncate', 400) = 0 THEN
				EXECUTE format('TRUNCATE %I', t);
			END IF;
			FOREACH statement IN ARRAY what LOOP
				EXECUTE statement USING 1 + pick(seed, i || ' one', 400),
					1 + pick(seed, i || ' two', 400);
			END LOOP;
			IF pick(seed, i || ' undo', 8) = 0 THEN
				RAISE SQLSTATE 'UNDO0';
			END IF;
		EXCEPTION WHEN unique_violation OR deadlock_detected OR object_in_use
			OR SQLSTATE 'UNDO0' THEN
			NULL;
		END;
	END LOOP;
END
$$;
SQL
$blue->safe_psql(
	join ';',
	map {
		my ($table, $number) = ($_, 0);
		map {
			my $list = join ', ', map { "\$q\$$_\$q\$" } split /;/;
			"INSERT INTO operation VALUES ('$table', @{[ ++$number ]},"
			  . " ARRAY[$list])"
		} operations($table)
	} @tables);
$blue->safe_psql(q{SELECT bluegreen.create_deployment('i', 'green')});
$blue->safe_psql("SET client_min_messages = warning;
	SELECT bluegreen.map_table('i', '$_', transform => 'SELECT $columns FROM $_')")
  foreach @tables;

sub conflicts
{
	return $green->safe_psql(q{SELECT string_agg(kind || ' ' || target || ' '
		|| left(key, 60), E'\n' ORDER BY id) FROM bluegreen.conflict});
}

sub compare_all
{
	my ($when, $more) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $table (@tables)
	{
		my $sql = "SELECT twice, $columns" . ($more // '') . " FROM $table";
		compare_tables($sql, $sql, "$table: $when", empty => 1);
	}
	my $filled = grep { $blue->safe_psql("SELECT EXISTS (TABLE $_)") eq 't' }
	  @tables;
	cmp_ok($filled, '>', @tables / 2, "most tables have rows: $when");
	is(conflicts(), '', "no row is found amiss: $when");
	return;
}

sub committed
{
	return $blue->safe_psql(q{SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)
		FROM pg_stat_user_tables});
}

sub wait_for_work
{
	my ($changes) = @_;
	my $end = committed() + $changes;
	return $blue->poll_query_until("SELECT sum(n_tup_ins + n_tup_upd"
		  . " + n_tup_del) > $end FROM pg_stat_user_tables");
}

my $bench = pgbench_start(
	$blue,
	clients => 3,
	rate => 150,
	args => [ '--random-seed', $seed ],
	script => "\\set seed random(1, 1000000000)\nSELECT work(:seed);");
wait_for_work(20);
$blue->safe_psql(q{CALL bluegreen.start('i')});
ok( $blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream}),
	'tables are copied under load');
wait_for_work(300);

# a column is added to rows that are there, under load
my $late = 'late' x 800;
foreach my $table (@tables)
{
	my $add = "ALTER TABLE $table ADD COLUMN late integer DEFAULT 42,"
	  . " ADD COLUMN late_big text DEFAULT '$late'";
	$green->safe_psql($add);
	# the table's lock and the stream may wait for each other, as the hint says
	my $alter = "BEGIN; $add; SELECT bluegreen.alter_mapping('i',"
	  . " '$table', transform => 'SELECT $columns, late, late_big"
	  . " FROM $table'); COMMIT;";
	my ($status, $error);
	do
	{
		($status, undef, $error) = $blue->psql($alter);
	} while ($status != 0 && $error =~ /deadlock detected/);
	is($status, 0, "$table: columns are added") or diag($error);
}
wait_for_work(300);
ok(pgbench_stop($bench), 'the load runs on');
# of the load; a worker that starts anew to copy a key logs an error of its own
is(join("\n", $blue->log =~ m{^.* pgbench/\S* ((?:ERROR|FATAL):.*)}gm),
	'', 'no statement failed');
wait_for_sync('i');
compare_all("random load, seed $seed", ', late, late_big');

done_testing();
