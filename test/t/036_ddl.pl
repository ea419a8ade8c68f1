# DDL on blue's mapped tables: while the stream follows, while it lags behind,
# while the table waits to be copied.  What is harmless goes on, what would
# break a mapping is refused or stops the stream before a row is wrong.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'\n"
	  . "bluegreen.copy_chunk_rows = 100");
my ($status, $error);

sub stream
{
	my ($columns) = @_;
	return $blue->safe_psql("SELECT $columns FROM bluegreen.stat_stream");
}

sub goes_on
{
	$blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream});
	wait_for_sync('d');
	return;
}

#
# Harmless.  @ is the table; the DDL is done between writes, in lines of its own
# if it cannot be in a transaction.  After it v may have another name, the table
# too.
#
my @harmless = (
	[ 'ADD COLUMN', 'ALTER TABLE @ ADD c int' ],
	[ 'ADD COLUMN with a default', 'ALTER TABLE @ ADD c int DEFAULT 5' ],
	[ 'ADD COLUMN with a volatile default, a rewrite',
		'ALTER TABLE @ ADD c float DEFAULT random()' ],
	[ 'ADD COLUMN, generated',
		'ALTER TABLE @ ADD c int GENERATED ALWAYS AS (id * 2) STORED' ],
	[ 'ADD COLUMN, identity',
		'ALTER TABLE @ ADD c int GENERATED ALWAYS AS IDENTITY' ],
	[ 'DROP COLUMN', 'ALTER TABLE @ DROP extra' ],
	[ 'DROP and ADD of one name',
		'ALTER TABLE @ DROP extra, ADD extra text DEFAULT 7' ],
	[ 'RENAME COLUMN', 'ALTER TABLE @ RENAME extra TO other' ],
	[ 'RENAME of a mapped column', 'ALTER TABLE @ RENAME v TO w', v => 'w' ],
	[ 'names that change places', 'ALTER TABLE @ RENAME v TO w;
		ALTER TABLE @ RENAME extra TO v; ALTER TABLE @ RENAME w TO extra',
		v => 'extra' ],
	[ 'RENAME TABLE', 'ALTER TABLE @ RENAME TO @_renamed',
		name => '@_renamed' ],
	[ 'SET SCHEMA', 'ALTER TABLE @ SET SCHEMA elsewhere',
		name => 'elsewhere.@' ],
	[ 'retype', 'ALTER TABLE @ ALTER extra TYPE bigint' ],
	[ 'retype with a length', 'ALTER TABLE @ ALTER extra TYPE numeric(9,2)' ],
	[ 'SET NOT NULL', 'ALTER TABLE @ ALTER v SET NOT NULL' ],
	[ 'ADD CHECK, UNIQUE', 'ALTER TABLE @ ADD CHECK (v > $$$$), ADD UNIQUE (id, v)' ],
	[ 'DEFAULT, STORAGE, STATISTICS',
		'ALTER TABLE @ ALTER v SET DEFAULT 7, ALTER v SET STORAGE EXTERNAL,
			ALTER v SET STATISTICS 7, SET (fillfactor = 70)' ],
	[ 'CREATE INDEX, REINDEX', 'CREATE INDEX ON @ (v); REINDEX TABLE @' ],
	[ 'CREATE INDEX CONCURRENTLY',
		'CREATE INDEX CONCURRENTLY @_i ON @ (v)', alone => 1 ],
	[ 'DROP INDEX CONCURRENTLY', 'DROP INDEX CONCURRENTLY @_spare',
		alone => 1 ],
	[ 'REINDEX CONCURRENTLY', 'REINDEX TABLE CONCURRENTLY @', alone => 1 ],
	[ 'VACUUM FULL', 'VACUUM FULL @', alone => 1 ],
	[ 'CLUSTER', 'CLUSTER @ USING @_pkey' ],
	[ 'another primary key', 'ALTER TABLE @ DROP CONSTRAINT @_pkey;
		CREATE UNIQUE INDEX @_new ON @ (id);
		ALTER TABLE @ ADD PRIMARY KEY USING INDEX @_new' ],
	[ 'REPLICA IDENTITY FULL', 'ALTER TABLE @ REPLICA IDENTITY FULL' ],
	[ 'REPLICA IDENTITY FULL and back', 'ALTER TABLE @ REPLICA IDENTITY FULL;
		INSERT INTO @ VALUES (901, $$full$$); UPDATE @ SET id = 902 WHERE id = 901;
		ALTER TABLE @ REPLICA IDENTITY DEFAULT' ],
	[ 'REPLICA IDENTITY USING INDEX',
		'CREATE UNIQUE INDEX @_more ON @ (id, must);
		ALTER TABLE @ REPLICA IDENTITY USING INDEX @_more' ],
	[ 'a trigger and a rule',
		'CREATE TRIGGER t BEFORE UPDATE ON @ FOR EACH ROW EXECUTE FUNCTION
			suppress_redundant_updates_trigger();
		CREATE RULE r AS ON INSERT TO @ DO ALSO NOTIFY something' ],
	[ 'row-level security', 'ALTER TABLE @ ENABLE ROW LEVEL SECURITY,
		FORCE ROW LEVEL SECURITY; CREATE POLICY p ON @ USING (false)' ],
	[ 'OWNER TO', 'ALTER TABLE @ OWNER TO someone' ],
	[ 'a child by inheritance', 'CREATE TABLE @_child () INHERITS (@);
		INSERT INTO @_child VALUES (801, $$not mapped$$)', only => 1 ],
	[ 'TRUNCATE', 'TRUNCATE @' ],
	[ 'a rewrite among writes', 'INSERT INTO @ VALUES (701, $$before$$);
		UPDATE @ SET v = v || 1; ALTER TABLE @ ADD c float DEFAULT random();
		UPDATE @ SET v = v || 2, c = 1; INSERT INTO @ VALUES (702, $$after$$)' ],
	[ 'ROLLBACK', 'SAVEPOINT a; ALTER TABLE @ DROP extra, ADD c int DEFAULT 1;
		INSERT INTO @ VALUES (601, $$not there$$); ROLLBACK TO a;
		INSERT INTO @ VALUES (602, $$there$$)' ],
	[ 'subtransactions', 'SAVEPOINT a; ALTER TABLE @ ADD c int DEFAULT 1;
		INSERT INTO @ (id, v, c) VALUES (601, $$there$$, 3); RELEASE a;
		SAVEPOINT b; ALTER TABLE @ DROP c; INSERT INTO @ VALUES (602, $$b$$);
		ROLLBACK TO b; INSERT INTO @ (id, v, c) VALUES (603, $$too$$, 4)' ],
	[ 'PREPARE TRANSACTION', 'ALTER TABLE @ ADD c int DEFAULT 1',
		prepare => 1 ]);

# Tables of a mode, in the order of @harmless.
sub table_of { my ($mode, $i) = @_; return sprintf '%s%02d', $mode, $i }

sub blue_name
{
	my ($mode, $i) = @_;
	my ($name, $ddl, %options) = @{ $harmless[$i] };
	my $table = table_of($mode, $i);
	return ($options{name} // '@') =~ s/@/$table/r;
}

sub create_sql
{
	my ($mode) = @_;
	return join '', map {
		my $t = table_of($mode, $_);
		"CREATE TABLE $t (id int CONSTRAINT ${t}_pkey PRIMARY KEY, v text,"
		  . " extra int, must int NOT NULL DEFAULT 1);"
		  . "CREATE INDEX ${t}_spare ON $t (extra);"
	} 0 .. $#harmless;
}

sub green_sql
{
	my ($mode) = @_;
	return join '', map {
		'CREATE TABLE '
		  . table_of($mode, $_)
		  . ' (id int PRIMARY KEY, v text);'
	} 0 .. $#harmless;
}

sub map_sql
{
	my ($mode) = @_;
	return join '', map {
		my $t = table_of($mode, $_);
		"SELECT bluegreen.map_table('d', '$t',"
		  . " transform => 'SELECT id, v FROM $t');"
	} 0 .. $#harmless;
}

# Writes, the DDL in the middle of a transaction that writes, writes.
sub change_sql
{
	my ($mode, $i) = @_;
	my ($name, $ddl, %options) = @{ $harmless[$i] };
	my $t = table_of($mode, $i);
	my $new = blue_name($mode, $i);
	my $v = column_of($i);
	my $before = "INSERT INTO $t VALUES (311, 'before', 1);"
	  . "UPDATE $t SET v = v || 'x' WHERE id IN (1, 2);"
	  . "UPDATE $t SET id = 330 WHERE id = 3; DELETE FROM $t WHERE id = 4;";
	my $after = "INSERT INTO $new (id, $v) VALUES (321, 'after');"
	  . "UPDATE $new SET $v = $v || 'y' WHERE id IN (1, 5, 311);"
	  . "UPDATE $new SET id = 360 WHERE id = 6; DELETE FROM $new WHERE id = 7;";
	$ddl =~ s/@/$t/g;
	return "$before $ddl; $after" if $options{alone};
	my $commit =
	  $options{prepare}
	  ? "PREPARE TRANSACTION '$t'; COMMIT PREPARED '$t';"
	  : 'COMMIT;';
	return "$before BEGIN; UPDATE $t SET v = 'tx' WHERE id = 8; $ddl;"
	  . " UPDATE $new SET $v = $v || 'ty' WHERE id IN (8, 9); $commit $after";
}

# The name that v has in the end.
sub column_of
{
	my ($name, $ddl, %options) = @{ $harmless[ $_[0] ] };
	return $options{v} // 'v';
}

# One query for each side: what each table has, as a line of its own.
sub digests
{
	my ($node, @queries) = @_;
	my $n = 0;
	return split /\n/, $node->safe_psql(join(' UNION ALL ', map {
			'SELECT ' . $n++ . ", count(*), md5(string_agg(q::text, ' '"
			  . " ORDER BY id)) FROM ($_) q"
		} @queries) . ' ORDER BY 1');
}

sub compare_mode
{
	my ($mode, $when) = @_;
	my @blue = digests($blue, map {
			'SELECT id, '
			  . column_of($_)
			  . ' FROM ONLY '
			  . blue_name($mode, $_)
		} 0 .. $#harmless);
	my @green =
	  digests($green, map { 'TABLE ' . table_of($mode, $_) } 0 .. $#harmless);
	is($green[$_], $blue[$_], "$when: $harmless[$_][0]") for 0 .. $#harmless;
	unlike("@blue", qr/\|0\|/, 'and none is empty');
	return;
}

$blue->safe_psql('CREATE SCHEMA elsewhere; CREATE ROLE someone;'
	  . join '', map { create_sql($_) } qw(s l c));
$green->safe_psql(join '', map { green_sql($_) } qw(s l c));
$blue->safe_psql(join '', map {
		my $mode = $_;
		map { "INSERT INTO " . table_of($mode, $_)
			  . " SELECT i, 'v' || i, i FROM generate_series(1, 120) i;" }
		  0 .. $#harmless } qw(s l c));
$blue->safe_psql("SELECT bluegreen.create_deployment('d', 'green');"
	  . map_sql('s')
	  . map_sql('l')
	  . "CALL bluegreen.start('d');");
wait_for_sync('d');

# the stream follows
$blue->safe_psql(join "\n", map { change_sql('s', $_) } 0 .. $#harmless);
wait_for_sync('d');
compare_mode('s', 'following');
is(stream('errors'), 0, 'nothing of this is an error');

# The stream lags behind: what it decodes was written before and after.  Some
# tables wait to be copied meanwhile.
$blue->append_conf('bluegreen.copy_workers = 0');
$blue->reload;
$blue->safe_psql(map_sql('c'));
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$blue->safe_psql(join "\n",
	map { (change_sql('l', $_), change_sql('c', $_)) } 0 .. $#harmless);
$blue->append_conf('bluegreen.copy_workers = 2');
$blue->reload;
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
compare_mode('l', 'lagging');
compare_mode('c', 'before the copy');
is(stream('errors'), 0, 'nothing of this is an error either');

#
# Refused: what would break a mapping, or make the WAL silent about rows
#
$green->safe_psql('CREATE TABLE r (id int PRIMARY KEY, v text, k int);
	CREATE TABLE part (id int PRIMARY KEY, v text);
	CREATE TABLE whole (id int PRIMARY KEY, doc jsonb);
	CREATE TABLE a (id int PRIMARY KEY, v text, c int, price int);
	CREATE TABLE big (id int PRIMARY KEY, v text, n int)');
$blue->safe_psql(q{CREATE TABLE r (id int PRIMARY KEY, v text, k int NOT NULL);
	CREATE TYPE pair AS (a int, b int);
	CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
		'BEGIN RETURN $1 * 2; END';
	CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	ALTER TABLE part ADD more int;
	CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE part_b (more int, v text, gone int, id int NOT NULL);
	ALTER TABLE part_b DROP gone, ADD PRIMARY KEY (id);
	ALTER TABLE part ATTACH PARTITION part_b FOR VALUES FROM (100) TO (200);
	CREATE TABLE whole (id int PRIMARY KEY, n int);
	CREATE TABLE a (id int PRIMARY KEY, v text, price int);
	CREATE TABLE big (id int PRIMARY KEY, v text, n int);
	ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
	INSERT INTO big VALUES (1, repeat('x', 9000), 1);
	ALTER TABLE big ALTER v SET STORAGE PLAIN;
	INSERT INTO whole SELECT i, i FROM generate_series(1, 5) i;
	INSERT INTO a SELECT i, 'v', i FROM generate_series(1, 5) i;
	SELECT bluegreen.map_table('d', 'r',
		transform => 'SELECT id, v, twice(k) AS k FROM r');
	SELECT bluegreen.map_table('d', 'part',
		transform => 'SELECT id, v FROM part');
	SELECT bluegreen.map_table('d', 'whole',
		transform => 'SELECT id, to_jsonb(whole) AS doc FROM whole');
	SELECT bluegreen.map_table('d', 'a',
		transform => 'SELECT id, v, price FROM a');
	SELECT bluegreen.map_table('d', 'big');});
wait_for_sync('d');
foreach my $case (
	[ 'ALTER TABLE r DROP v', qr/cannot drop column v of table r because/ ],
	[ 'ALTER TABLE r DROP v CASCADE', qr/cannot drop (extension|server)/ ],
	[ 'DROP TABLE r', qr/cannot drop table r because/ ],
	[ 'DROP TABLE r CASCADE', qr/cannot drop (extension|server)/ ],
	[ 'DROP FUNCTION twice', qr/cannot drop function twice/ ],
	[ 'ALTER TABLE r ALTER v TYPE varchar',
		qr/cannot alter type of a column used by a view/ ],
	[ 'ALTER TABLE r ALTER id TYPE bigint',
		qr/cannot alter type of a column used by a view/ ],
	[ 'ALTER TABLE r SET UNLOGGED',
		qr/cannot make unlogged table "r" because it is mapped to "public.r"/ ],
	[ 'ALTER TABLE r REPLICA IDENTITY NOTHING',
		qr/replica identity of table "r" does not suffice/ ],
	[ 'ALTER TABLE r DROP CONSTRAINT r_pkey',
		qr/replica identity of table "r" does not suffice/ ],
	[ 'CREATE UNIQUE INDEX r_k ON r (k);
		ALTER TABLE r REPLICA IDENTITY USING INDEX r_k',
		qr/replica identity of table "r" does not suffice/ ],
	[ 'CREATE UNIQUE INDEX r_i ON r (id);
		ALTER TABLE r REPLICA IDENTITY USING INDEX r_i; DROP INDEX r_i;',
		qr/replica identity of table "r" does not suffice/ ],
	[ 'ALTER TABLE part_a REPLICA IDENTITY NOTHING',
		qr/replica identity of table "part" does not suffice/ ],
	[ 'ALTER TABLE part_b SET UNLOGGED',
		qr/cannot make unlogged table "part_b" because it is mapped/ ])
{
	my ($ddl, $message) = @$case;

	# A DROP locks the extension's tables, and may do so across a worker
	do { (undef, undef, $error) = $blue->psql("BEGIN; $ddl; COMMIT;") }
	  while $error =~ /deadlock/;
	like($error, $message, "refused: $ddl");
}
$blue->safe_psql(q{BEGIN; ALTER TABLE r REPLICA IDENTITY NOTHING;
	ALTER TABLE r REPLICA IDENTITY FULL; COMMIT;
	INSERT INTO r VALUES (1, 'v', 1); UPDATE r SET id = 2;});
wait_for_sync('d');
compare_tables('SELECT id, v, twice(k) FROM r', 'TABLE r',
	'what counts is what is there at the commit');

#
# TOASTed values in a column that says it has none
#
$blue->safe_psql('UPDATE big SET n = 2');
wait_for_sync('d');
compare_tables('TABLE big', 'TABLE big',
	'a value stored out of line before SET STORAGE PLAIN is not lost');

#
# Partitions get columns while the stream lags
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$blue->safe_psql(q{INSERT INTO part VALUES (1, 'a'), (101, 'b');
	ALTER TABLE part ADD c1 int, ADD c2 text DEFAULT 'c', ADD c3 int;
	INSERT INTO part VALUES (2, 'a'), (102, 'b');
	CREATE TABLE part_c PARTITION OF part FOR VALUES FROM (200) TO (300);
	INSERT INTO part VALUES (201, 'c');
	UPDATE part SET id = 202 WHERE id = 1; ALTER TABLE part DROP c2;
	UPDATE part SET v = v || 'x';});
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
compare_tables('SELECT id, v FROM part', 'TABLE part',
	'partitions of a table that was altered are read right');

#
# A mapping that breaks: the stream stops before the first row of it
#
$blue->safe_psql(q{INSERT INTO whole VALUES (6, 6);
	INSERT INTO a VALUES (6, 'v', 6)});
wait_for_sync('d');
$blue->safe_psql(q{ALTER TABLE whole ADD extra int;
	INSERT INTO whole VALUES (7, 7, 7); UPDATE whole SET n = 10 WHERE id = 1;
	INSERT INTO a VALUES (7, 'v', 7);});
ok( $blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream}),
	'a column that a transform of whole rows does not know stops the stream');
like(
	stream('error_message'),
	qr/^column "extra" of table "whole" is not what the mapping to "public.whole"/,
	'the error names column, table and mapping');
like(stream('error_hint'), qr/bluegreen\.alter_mapping\(\)/,
	'and says what to do');
is(stream('error_relation, error_lsn IS NOT NULL'), 'public.whole|t',
	'it belongs to a transaction');
is( $green->safe_psql('SELECT max(id) || $$ $$ || count(*) FROM whole'),
	'6 6', 'what came before is there, and nothing that is wrong');
is($green->safe_psql('SELECT max(id) FROM a'), 6, 'of no table');
my $tries = stream('errors');
$blue->poll_query_until(
	"SELECT errors > $tries + 1 FROM bluegreen.stat_stream");
is($green->safe_psql('SELECT max(id) FROM whole'),
	6, 'it does not go on by itself');
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 'whole',
	transform => $$SELECT id, jsonb_build_object('id', id, 'n', n) AS doc
		FROM whole$$)});
goes_on();
compare_tables(
	q{SELECT id, jsonb_build_object('id', id, 'n', n) FROM whole},
	'TABLE whole', 'after the mapping is altered it goes on at that row');
compare_tables('SELECT id, v, price FROM a', 'SELECT id, v, price FROM a',
	'and nothing else is lost');
is(stream('skipped'), 0, 'nor skipped');

#
# The recipes, under load
#
$blue->safe_psql('CREATE FUNCTION touch() RETURNS void LANGUAGE plpgsql AS
	$$BEGIN
		INSERT INTO a SELECT (random() * 900)::int + 10, $v$new$v$, 1
			ON CONFLICT (id) DO UPDATE SET price = a.price + 1;
		DELETE FROM a WHERE id = (random() * 900)::int + 10;
	END$$');
my $bench = pgbench_start($blue, clients => 2, rate => 200,
	script => 'SELECT touch()');
$blue->poll_query_until('SELECT count(*) > 50 FROM a');
$blue->safe_psql(q{BEGIN; ALTER TABLE a ADD c int;
	SELECT bluegreen.alter_mapping('d', 'a', transform =>
		'SELECT id, v, c, price FROM a'); COMMIT;
	CREATE OR REPLACE FUNCTION touch() RETURNS void LANGUAGE plpgsql AS
	$$BEGIN
		INSERT INTO a (id, v, price, c)
			SELECT (random() * 900)::int + 10, $v$with c$v$, 1, 7
			ON CONFLICT (id) DO UPDATE SET c = a.price, price = a.price + 1;
	END$$;
	UPDATE a SET c = id WHERE id < 10;});
$green->poll_query_until('SELECT count(*) > 20 FROM a WHERE c IS NOT NULL');
$blue->safe_psql(q{BEGIN;
	SELECT bluegreen.alter_mapping('d', 'a',
		transform => 'SELECT id, v, c FROM a');
	ALTER TABLE a ALTER price TYPE bigint;
	SELECT bluegreen.alter_mapping('d', 'a',
		transform => 'SELECT id, v, c, price::int FROM a'); COMMIT;});
my $seen = $blue->safe_psql('SELECT sum(price) FROM a');
$blue->poll_query_until("SELECT sum(price) > $seen + 50 FROM a");
ok(pgbench_stop($bench), 'nobody was disturbed');
wait_for_sync('d');
compare_tables('SELECT id, v, c, price FROM a', 'TABLE a',
	'a column that is added, and one that is retyped, under load');
is(stream('error_at IS NULL'), 't', 'without an error');

# a second mapping would be altered by a stream that lags: the rows before
# could not be read any more
$blue->safe_psql(q{CALL bluegreen.stop('d')});
(undef, undef, $error) = $blue->psql(q{BEGIN;
	INSERT INTO a VALUES (5000, 'lags', 1);
	ALTER TABLE a ADD d int;
	SELECT bluegreen.alter_mapping('d', 'a',
		transform => 'SELECT id, v, c, price::int + d AS price FROM a');});
like($error, qr/cannot be changed while deployment "d" is stopped/,
	'a stream that stands still cannot pass an altered column');
$blue->safe_psql(q{CALL bluegreen.start('d')});
(undef, undef, $error) =
  $blue->psql(q{SELECT bluegreen.alter_mapping('d', 'nope')});
like($error, qr/relation "nope" does not exist/, 'no such table');
(undef, undef, $error) =
  $blue->psql(q{SELECT bluegreen.alter_mapping('d', 'pg_class')});
like($error, qr/system table/, 'not a table of that kind');

# the key and the way of writing
$green->safe_psql('ALTER TABLE r ADD UNIQUE (k)');
$green->safe_psql('ALTER TABLE r ALTER k SET NOT NULL');
$blue->safe_psql(q{SELECT bluegreen.alter_mapping('d', 'r', key => '{k}',
	on_delete => 'ignore');
	INSERT INTO r VALUES (3, 'three', 3); UPDATE r SET v = 'new' WHERE id = 3;
	DELETE FROM r WHERE id = 3});
wait_for_sync('d');
is($green->safe_psql('SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM r'),
	'2v 3new', 'key and on_delete can be altered');
is( $blue->safe_psql(q{SELECT key::text || on_delete FROM bluegreen.mapping
		WHERE target = 'public.r'}),
	'{k}ignore', 'view mapping shows it');

#
# Unmapped, altered, mapped again: what lies in the WAL from before does not
# matter
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$green->safe_psql('DROP TABLE big; CREATE TABLE big (id text PRIMARY KEY, n int)');
$blue->safe_psql(q{UPDATE big SET n = 3; INSERT INTO big VALUES (2, 'b', 2);
	SELECT bluegreen.unmap_table('d', 'big');
	ALTER TABLE big DROP v, ALTER id TYPE text, ALTER n TYPE text;
	INSERT INTO big VALUES ('three', 3);
	SELECT bluegreen.map_table('d', 'big',
		transform => 'SELECT id, n::int FROM big');
	UPDATE big SET n = 4 WHERE id = '2';
	CALL bluegreen.start('d');});
wait_for_sync('d');
compare_tables('SELECT id, n::int FROM big', 'TABLE big',
	'a table that was altered while the stream stood is copied again');

done_testing();
