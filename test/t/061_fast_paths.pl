# What makes the stream fast must not show: batches of any size, several of
# them on their way at once, and what cannot be done in sets.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '200ms'\n"
	  . "bluegreen.batch_delay = '60s'");

# one counter of the stream
sub stream
{
	my ($column) = @_;
	return $blue->safe_psql("SELECT $column FROM bluegreen.stat_stream");
}

sub same
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('d');
	return compare_tables("TABLE $table", "TABLE $table", $name);
}

# What is done in one transaction is one batch, unless it is large.
sub in_one_batch
{
	my ($sql) = @_;
	return $blue->safe_psql("BEGIN; $sql; COMMIT;");
}

# Conflicts since the last call.
sub conflicts
{
	return $green->safe_psql(q{SELECT string_agg(kind || ' ' || key, ' '
			ORDER BY key) FROM bluegreen.conflict;
		DELETE FROM bluegreen.conflict_log});
}

# Have a new worker use these sizes of batches.
sub set_batches
{
	my ($rows, $size) = @_;
	$blue->append_conf("bluegreen.batch_rows = $rows\n"
		  . "bluegreen.batch_size = '$size'\n");
	$blue->reload;
	$blue->poll_query_until('SHOW bluegreen.batch_rows', $rows);
	$blue->safe_psql(q{CALL bluegreen.stop('d');
		SELECT bluegreen.reset_stats('d');
		CALL bluegreen.start('d')});
	wait_for_sync('d');
	return;
}

foreach my $node ($blue, $green)
{
	$node->safe_psql(<<'SQL');
CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text);
CREATE TABLE n (id int PRIMARY KEY, times int);
CREATE TABLE wide (id int PRIMARY KEY, v text);
SQL
}
$blue->safe_psql(<<'SQL');
INSERT INTO t SELECT i, i, 'copied' FROM generate_series(1, 5000) i;
INSERT INTO n SELECT i, 0 FROM generate_series(1, 20) i;
SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 't');
SELECT bluegreen.map_table('d', 'n');
SELECT bluegreen.map_table('d', 'wide');
CALL bluegreen.start('d');
SQL
wait_for_sync('d');
is(stream('careful_batches'), 0, 'the copy needs no careful path');

# Done row by row, the expectation says; then with the same result.
sub careful
{
	my ($is, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('d');
	is(stream('careful_batches > 0') eq 't' ? 1 : 0, $is, $name);
	$blue->safe_psql(q{SELECT bluegreen.reset_stats('d')});
	return;
}

#
# In sets
#
in_one_batch(q{UPDATE t SET v = 'updated' WHERE id <= 4500;
	DELETE FROM t WHERE id % 7 = 0;
	INSERT INTO t SELECT i, i, 'inserted' FROM generate_series(5001, 9900) i;});
same('t', 'statements for more rows than one of them takes');

in_one_batch(q{DO $$ BEGIN FOR i IN 1..300 LOOP
		UPDATE t SET u = 100000 + i, v = 'x' || i WHERE id = 1;
		UPDATE t SET v = 'y' || i WHERE id = 1;
		DELETE FROM t WHERE id = 2;
		INSERT INTO t VALUES (2, -1000 - i, 'again');
		INSERT INTO t VALUES (100000 + i, 200000 + i, 'short');
		DELETE FROM t WHERE id = 100000 + i;
	END LOOP; END $$;});
same('t', 'the same keys many times');

in_one_batch(q{UPDATE t SET u = 200000 WHERE id = 10;
	UPDATE t SET u = 10 WHERE id = 11;
	DELETE FROM t WHERE id = 12;
	INSERT INTO t VALUES (200001, 12, 'takes the value of a deleted row');});
same('t', 'a unique value that is free by the time it is needed');
careful(0, 'all of that went in sets');

# Keys of each kind that is handled in its own way, and of others, alone and
# with a second column: in ascending order, the last one again, in any order.
my %keys = (
	int2 => 'i',
	int4 => 'i * 60000000',
	int8 => 'i::int8 << 58',
	oid => '4294967260 + i',
	date => q{date '2000-01-01' + i},
	timestamptz => q{timestamptz 'epoch' + i * interval '1 year'},
	uuid => 'md5(i::text)',
	numeric => q{i || '.0'},
	text => 'repeat(i::text, 3)',
	float8 => 'i::float8 / 3');
my @keyed = map { ("k_$_", "k_${_}_2") } sort keys %keys;
my ($tables, $functions) = ('', '');
foreach my $type (sort keys %keys)
{
	$tables .= "CREATE TABLE k_$type (k $type PRIMARY KEY, v text);
		CREATE TABLE k_${type}_2 (a int, k $type, v text, PRIMARY KEY (k, a));\n";
	$functions .= <<"SQL";
CREATE FUNCTION fold_$type(n int, op int, what text) RETURNS void
LANGUAGE plpgsql AS '
#variable_conflict use_column
DECLARE i int := n / 2; key $type := ${\ ($keys{$type} =~ s/'/''/gr)};
BEGIN
	IF op = 0 THEN
		INSERT INTO k_$type VALUES (key, what) ON CONFLICT DO NOTHING;
		INSERT INTO k_${type}_2 VALUES (n % 2, key, what) ON CONFLICT DO NOTHING;
	ELSIF op = 1 THEN
		UPDATE k_$type SET v = v || what WHERE k = key;
		UPDATE k_${type}_2 SET v = v || what WHERE a = n % 2 AND k = key;
	ELSE
		DELETE FROM k_$type WHERE k = key;
		DELETE FROM k_${type}_2 WHERE a = n % 2 AND k = key;
	END IF;
END';
SQL
}
$_->safe_psql($tables) for $blue, $green;
$blue->safe_psql($functions . join '',
	map { "SELECT bluegreen.map_table('d', '$_');" } @keyed);
wait_for_sync('d');

# the number of the step is x: which key, and what happens to it
foreach my $step (
	[ 'in order', 'x - 32', '0' ],
	[ 'in order, most of them twice', '(x + 1) / 2 - 32', 'x % 2' ],
	[ 'the last one again and again', '32', 'x % 3' ],
	[ 'in any order', '(x * 37) % 64 - 32', '(x * 7 / 3) % 3' ],
	[ 'backwards', '32 - x', '2' ])
{
	my ($name, $key, $op) = @$step;
	in_one_batch(join '',
		map { "SELECT fold_$_($key, $op, '-' || x)"
			  . ' FROM generate_series(1, 64) x;' } sort keys %keys);
	wait_for_sync('d');
	my $rows = join ' UNION ALL ',
	  map { "SELECT '$_', count(*), array_agg(t ORDER BY t)::text FROM $_ t" }
	  @keyed;
	compare_tables($rows, $rows, "keys of each kind, $name");
}
careful(0, 'these went in sets, too');

# 1 MB a row: no batch holds many, no statement more than one
in_one_batch(q{INSERT INTO wide SELECT i, repeat('x', 1000000)
		FROM generate_series(1, 12) i;});
same('wide', 'rows that fill a statement by themselves');
careful(0, 'they went in sets');

#
# Many rows to insert go by COPY's code
#
$green->safe_psql(<<'SQL');
CREATE TABLE seen (query text);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO public.seen VALUES (current_query()); RETURN NULL; END$$;
CREATE TRIGGER see AFTER INSERT ON t EXECUTE FUNCTION see();
ALTER TABLE t ENABLE ALWAYS TRIGGER see;
CREATE TRIGGER see AFTER INSERT ON n EXECUTE FUNCTION see();
ALTER TABLE n ENABLE ALWAYS TRIGGER see;
SQL

# By what statements did rows come, since the last call?
sub ways
{
	return $green->safe_psql(q{SELECT string_agg(DISTINCT
			substring(query FROM '^(INSERT|SELECT bluegreen\.insert_rows)'), ' ')
		FROM seen; TRUNCATE seen});
}

in_one_batch(q{INSERT INTO t SELECT i, i, nullif('n' || i % 4, 'n0')
		FROM generate_series(10001, 11500) i;});
same('t', 'many rows to insert');
is(ways(), 'SELECT bluegreen.insert_rows', 'which go by COPY');
in_one_batch(q{INSERT INTO t SELECT i, i, 'few'
		FROM generate_series(11501, 11600) i;});
same('t', 'few rows to insert');
is(ways(), 'INSERT', 'which do not');
careful(0, 'they went in sets');

$green->safe_psql(q{INSERT INTO t VALUES (12001, 12001, 'was here'),
	(12700, 12700, 'was here, too'); TRUNCATE seen});
in_one_batch(q{INSERT INTO t SELECT i, i, 'inserted'
		FROM generate_series(12000, 13500) i;});
same('t', 'rows among many that are there already');
careful(1, 'are found row by row');
is( conflicts(),
	q{insert_exists id[integer]:'12001' insert_exists id[integer]:'12700'},
	'and are conflicts');

# what is not exactly the type is for INSERT to convert
ways();
$green->safe_psql('ALTER TABLE n ALTER times TYPE bigint');
$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d')});
in_one_batch('INSERT INTO n SELECT i, i FROM generate_series(101, 900) i;');
same('n', 'a column of a wider type on the target');
is(ways(), 'INSERT', 'for which COPY is not asked');
$blue->safe_psql('DELETE FROM n WHERE id > 100');
$green->safe_psql('DROP TRIGGER see ON t; DROP TRIGGER see ON n');

# what the function refuses
$green->safe_psql(q{CREATE TABLE direct (id int PRIMARY KEY, v text);
	CREATE TABLE ruled (id int);
	CREATE RULE r AS ON INSERT TO ruled DO INSTEAD NOTHING;
	CREATE VIEW looked_at AS SELECT 1 AS id;});
my $row = q{'\x00020000000400000001ffffffff'};
foreach my $case (
	[ '', 'direct', '{id,v}', $row, 1, qr/session does not apply changes/ ],
	[ 'b', 'direct', '{id,v}', $row, 2, qr/inserted 1 of 2 rows into "direct"/ ],
	[ 'b', 'direct', '{id,v}', q{'\x000200000004'}, 1, qr/unexpected EOF/ ],
	[ 'b', 'direct', '{id}', $row, 1, qr/row field count is 2, expected 1/ ],
	[ 'b', 'direct', '{id,w}', $row, 1, qr/column "w" .*does not exist/ ],
	[ 'b', 'ruled', '{id}', $row, 1, qr/"ruled" has rules or row-level/ ],
	[ 'b', 'looked_at', '{id}', $row, 1, qr/"looked_at" is not a table/ ])
{
	my ($begin, $table, $columns, $rows, $number, $error) = @$case;
	my (undef, undef, $stderr) = $green->psql(
		($begin ? 'SELECT bluegreen.begin_apply(); ' : '')
		. "SELECT bluegreen.insert_rows('$table', '$columns', $rows, $number)");
	like($stderr, $error, "insert_rows: $error");
}
$green->safe_psql(qq{SELECT bluegreen.begin_apply();
	SELECT bluegreen.insert_rows('direct', '{id,v}', $row, 1)});
is($green->safe_psql('SELECT id, v IS NULL FROM direct'),
	'1|t', 'insert_rows inserts, and nothing when it fails');

#
# Rows to update or delete are found by key without a plan
#
my $seen = 0;

# By what statements did a table's rows change, since the last call?
sub changes
{
	my ($table) = @_;
	my $log = $green->log($seen);
	$seen += length $log;
	my %by = map { $_ => 1 } $log =~
	  /: (UPDATE|DELETE FROM|SELECT bluegreen\.(?:update|delete)_rows)(?: |\(')public\.$table\b/g;
	return join ', ', sort keys %by;
}

$green->append_conf("log_statement = all\nlog_parameter_max_length = 0");
$green->reload;
$green->poll_query_until('SHOW log_statement', 'all');
foreach my $node ($blue, $green)
{
	$node->safe_psql(<<'SQL');
CREATE TABLE p (gone int, id int PRIMARY KEY, u int UNIQUE, v text,
	w numeric(10,2), CHECK (u <> -13));
ALTER TABLE p DROP gone;
CREATE INDEX ON p (v);
CREATE TABLE large (id int PRIMARY KEY, short text, long text, n int);
ALTER TABLE large ALTER long SET STORAGE EXTERNAL;
SQL
}
$blue->safe_psql(<<'SQL');
INSERT INTO p SELECT i, i, 'copied', i FROM generate_series(1, 5000) i;
ALTER TABLE large REPLICA IDENTITY FULL;
INSERT INTO large SELECT i, repeat('x', 10000 + i), repeat('y', 5000 + i), 0
	FROM generate_series(1, 20) i;
SELECT bluegreen.map_table('d', 'p');
SELECT bluegreen.map_table('d', 'large');
SQL
wait_for_sync('d');
$blue->safe_psql(q{SELECT bluegreen.reset_stats('d')});
changes('p');

in_one_batch(q{UPDATE p SET v = 'x' || id, w = nullif(id % 4, 0) / 3.0
		WHERE id % 3 = 0;
	UPDATE p SET u = -u WHERE id % 5 = 1;
	DELETE FROM p WHERE id % 7 = 0;});
same('p', 'many rows to update and to delete');
my $direct = 'SELECT bluegreen.delete_rows, SELECT bluegreen.update_rows';
is(changes('p'), $direct, 'which go without a plan');
in_one_batch(q{UPDATE p SET v = 'one' WHERE id = 1; DELETE FROM p WHERE id = 2});
same('p', 'a single row of each');
is(changes('p'), $direct, 'goes so, too');
in_one_batch(q{UPDATE k_numeric SET k = k + 0.000;
	UPDATE k_numeric_2 SET k = k + 0.000, v = NULL WHERE a = 1;});
same('k_numeric', 'keys that look different now');
same('k_numeric_2', 'and with another column');

# values that are stored out of line, or compressed
my $chunks = q{SELECT array_agg(DISTINCT chunk_id) FROM }
  . $green->safe_psql(q{SELECT reltoastrelid::regclass FROM pg_class
	WHERE relname = 'large'});
my $before = $green->safe_psql($chunks);
in_one_batch('UPDATE large SET n = n + 1');
same('large', 'large values that come and are as they were');
is($green->safe_psql($chunks), $before, 'are not stored again');
in_one_batch(q{UPDATE large SET short = repeat('z', length(short)) WHERE id < 5;
	UPDATE large SET long = repeat('z', length(long)) WHERE id < 5;
	UPDATE large SET short = NULL, long = '' WHERE id = 6});
same('large', 'others of the same length are');
careful(0, 'they went in sets');

# rows that somebody else holds
sub waits
{
	my ($id) = @_;
	return $green->poll_query_until(qq{SELECT count(*) > 0
		FROM pg_stat_activity a, LATERAL unnest(pg_blocking_pids(a.pid)) b
		WHERE a.query ~ 'bluegreen\..*_rows' AND b = $id});
}
my ($undone, $done) = ($green->session, $green->session);
my ($undone_pid, $done_pid) =
  map { $_->query('SELECT pg_backend_pid()') } $undone, $done;
$undone->query('BEGIN; UPDATE p SET w = 0 WHERE id IN (10, 11);
	DELETE FROM p WHERE id = 12');
$done->query('BEGIN; UPDATE p SET w = 0 WHERE id IN (16, 17)');
in_one_batch(q{UPDATE p SET v = 'waited' WHERE id < 20; DELETE FROM p WHERE id = 9});
waits($undone_pid);
$undone->query('ROLLBACK');
waits($done_pid);
$done->query('COMMIT');
same('p', 'rows that are held, and that were changed meanwhile');
careful(0, 'went in sets');
$done->query('BEGIN; UPDATE p SET w = 0 WHERE id IN (16, 17);
	DELETE FROM p WHERE id = 18');
in_one_batch(q{UPDATE p SET v = 'once more' WHERE id < 20});
waits($done_pid);
$done->query('COMMIT');
$_->quit for $undone, $done;
same('p', 'one that was deleted while it was waited for');
careful(1, 'is found missing');
is(conflicts(), q{update_missing id[integer]:'18'}, 'and is a conflict');

# a table that has more to it is for SQL, also if that is new
$green->safe_psql(<<'SQL');
CREATE TABLE fired (what text);
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO public.fired VALUES (TG_OP); RETURN NULL; END$$;
CREATE TRIGGER fire AFTER UPDATE OR DELETE ON p FOR EACH ROW
	EXECUTE FUNCTION fire();
SQL
changes('p');
in_one_batch(q{UPDATE p SET v = 'not fired' WHERE id < 100;
	DELETE FROM p WHERE id = 100;});
same('p', 'a trigger that does not fire in sessions of streams');
is(changes('p'), $direct, 'is none to care for');
$green->safe_psql('ALTER TABLE p ENABLE REPLICA TRIGGER fire');
in_one_batch(q{UPDATE p SET v = 'fired' WHERE id < 100;
	DELETE FROM p WHERE id = 101;});
same('p', 'a trigger that fires');
like(changes('p'), qr/^DELETE FROM, .*UPDATE$/, 'is for SQL');
is( $green->safe_psql('SELECT what, count(*) FROM fired GROUP BY 1 ORDER BY 1'),
	"DELETE|1\nUPDATE|" . $blue->safe_psql('SELECT count(*) FROM p WHERE id < 100'),
	'and has fired for each row once');
in_one_batch(q{DELETE FROM p WHERE id = 102});
same('p', 'a stream that knows of it');
is(changes('p'), 'DELETE FROM', 'uses SQL at once');
careful(0, 'none of that went row by row');
$green->safe_psql('DROP TRIGGER fire ON p');
$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d')});

# an error names its row
in_one_batch(q{ALTER TABLE p DROP CONSTRAINT p_u_check;
	UPDATE p SET u = -13 WHERE id = 4000;
	UPDATE p SET v = 'more' WHERE id BETWEEN 3990 AND 4010;});
$blue->poll_query_until(q{SELECT state = 'error' FROM bluegreen.stat_stream});
like(stream('error_message'), qr/violates check constraint "p_u_check"/,
	'a constraint holds');
is(stream('error_key'), q{id[integer]:'4000'}, 'and the error has its row');
$green->safe_psql('ALTER TABLE p DROP CONSTRAINT p_u_check');
same('p', 'it goes on');
$blue->safe_psql(q{SELECT bluegreen.reset_stats('d')});

# for which tables
$green->safe_psql(<<'SQL');
CREATE TABLE plain (id int PRIMARY KEY, a int, b int, UNIQUE (a, b));
CREATE TABLE generated (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id) STORED);
CREATE TABLE ruled_2 (id int PRIMARY KEY);
CREATE RULE r AS ON INSERT TO ruled_2 DO ALSO NOTHING;
CREATE TABLE secured (id int PRIMARY KEY);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE TABLE fires (id int PRIMARY KEY);
CREATE TRIGGER fire AFTER UPDATE ON fires FOR EACH ROW EXECUTE FUNCTION fire();
ALTER TABLE fires ENABLE ALWAYS TRIGGER fire;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE leaf PARTITION OF parted DEFAULT;
CREATE TABLE partial (id int);
CREATE UNIQUE INDEX ON partial (id) WHERE id > 0;
CREATE TABLE computed (id int);
CREATE UNIQUE INDEX ON computed ((id + 1));
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
CREATE TABLE twice (id int);
CREATE INDEX ON twice (id);
CREATE VIEW viewed AS SELECT id FROM plain;
SQL
my $takes = 'concat(' . join(', ', map {
	my ($table, $key) = split /:/;
	$key //= 'id';
	"bluegreen.takes_rows('$table', '{$key}')::int"
} ('plain', 'plain:b,a', 'child', 'plain:a', 'pg_class:oid',
	qw(generated ruled_2 secured fires parent parted leaf partial computed
	deferred twice viewed))) . ')';
is( $green->safe_psql("SELECT bluegreen.begin_apply(); SELECT $takes"),
	"\n11100000000000000", 'tables whose rows are changed without a plan');
unlike($green->safe_psql("SELECT $takes"), qr/1/,
	'none in a session that does not apply');

# what the functions refuse
$green->safe_psql('INSERT INTO plain VALUES (1, 1, 1), (2, 2, 2)');
my $one = '00000004000000';
foreach my $case (
	[ '', 'delete_rows', "'plain', '{id}', '\\x0001${one}01', 1",
		qr/session does not apply changes/ ],
	[ 'b', 'delete_rows', "'plain', '{id}', '\\x0001${one}01', 2",
		qr/affected 1 rows instead of 2/ ],
	[ 'b', 'delete_rows', "'plain', '{id}', '\\x0001${one}010001${one}01', -1",
		qr/changed twice by one statement/ ],
	[ 'b', 'delete_rows', "'plain', '{id}', '\\x0002${one}01', 1",
		qr/not in the format of COPY BINARY/ ],
	[ 'b', 'delete_rows', "'plain', '{id}', '\\x00010000000400', 1",
		qr/not in the format of COPY BINARY/ ],
	[ 'b', 'delete_rows', "'plain', '{id}', '\\x0001', 1",
		qr/insufficient data left in message/ ],
	[ 'b', 'delete_rows', "'plain', '{id}', '\\x0001000000050000000100', 1",
		qr/incorrect binary data format/ ],
	[ 'b', 'delete_rows', "'plain', '{none}', '', 0",
		qr/column "none" .*does not exist/ ],
	[ 'b', 'delete_rows', "'plain', '{ctid}', '', 0",
		qr/column "ctid" .*does not exist/ ],
	[ 'b', 'delete_rows', "'plain', '{}', '', 0",
		qr/cannot be changed without a plan/ ],
	[ 'b', 'delete_rows', "'fires', '{id}', '', 0",
		qr/cannot be changed without a plan/ ],
	[ 'b', 'update_rows', "'plain', '{id}', '{id}', '\\x0002${one}01${one}02', 1",
		qr/duplicate key value/ ],
	[ 'b', 'update_rows', "'plain', '{id}', '{id}', '\\x0002${one}01ffffffff', 1",
		qr/violates not-null constraint/ ],
	[ 'b', 'update_rows', "'plain', '{id}', '{a}', '\\x0002${one}03${one}03', 1",
		qr/affected 0 rows instead of 1/ ],
	[ 'b', 'update_rows', "'plain', '{id}', '{a}', '\\x0002ffffffff${one}03', 1",
		qr/affected 0 rows instead of 1/ ],
	[ 'b', 'update_rows', "'plain', '{id}', '{none}', '', 0",
		qr/column "none" .*does not exist/ ])
{
	my ($begin, $function, $arguments, $error) = @$case;
	my (undef, undef, $stderr) = $green->psql(
		($begin ? 'SELECT bluegreen.begin_apply(); ' : '')
		. "SELECT bluegreen.$function($arguments)");
	like($stderr, $error, "$function: $error");
}
is($green->safe_psql('SELECT * FROM plain ORDER BY id'),
	"1|1|1\n2|2|2", 'and nothing is changed when they fail');
$green->safe_psql(qq{SELECT bluegreen.begin_apply();
	SELECT bluegreen.update_rows('plain', '{b,a}', '{a,id}',
		'\\x0004${one}01${one}01ffffffff${one}07', 1);
	SELECT bluegreen.delete_rows('plain', '{id}', '\\x0001${one}02', -1)});
is($green->safe_psql('SELECT * FROM plain'), '7||1', 'they change rows');

#
# Not in sets: values of a unique index that rows swap
#
in_one_batch(q{UPDATE t SET u = -1 WHERE id = 20;
	UPDATE t SET u = 20 WHERE id = 22;
	UPDATE t SET u = 22 WHERE id = 20;});
same('t', 'rows swap unique values');
careful(1, 'row by row');

in_one_batch(q{UPDATE t SET u = -u WHERE id BETWEEN 3000 AND 3300;
	DELETE FROM t WHERE id = 3301;
	UPDATE t SET u = -u + 1 WHERE id BETWEEN 3000 AND 3300;});
same('t', 'unique values move along');
$blue->safe_psql(q{SELECT bluegreen.reset_stats('d')});

#
# A count that is wrong never commits
#
$green->safe_psql(q{DELETE FROM t WHERE id IN (2501, 4400)});
in_one_batch(q{UPDATE t SET v = 'all' WHERE id BETWEEN 2000 AND 5000;});
same('t', 'rows that are missing on the target are inserted');
careful(1, 'row by row: an UPDATE that finds too few rows is not committed');
is( conflicts(),
	q{update_missing id[integer]:'2501' update_missing id[integer]:'4400'},
	'and these rows are conflicts');

#
# The bounds of a batch
#
my $many = q{
	INSERT INTO t SELECT i, i, 'many' FROM generate_series(300001, 303000) i;
	UPDATE t SET v = v || id, u = u + 1000000 WHERE id % 3 = 0;
	DELETE FROM t WHERE id % 5 = 0 OR id > 302000;
	INSERT INTO t SELECT i, i, 'more' FROM generate_series(303001, 303300) i;};

set_batches(1, '1GB');
in_one_batch('DELETE FROM t WHERE id > 9000 OR id % 10 <> 0;');
same('t', 'one transaction in batches of one row');
$blue->safe_psql($_) for map { "INSERT INTO t VALUES ($_, $_, 'one')" } 1 .. 9;
same('t', 'small transactions in batches of one row');
# (one more if the idle stream has marked its position meanwhile)
cmp_ok(stream('batches'), '>=', 10, 'each transaction is one on the target');
careful(0, 'they go in sets');

set_batches(1000000, '64kB');
in_one_batch($many);
same('t', 'in the smallest batches by size');
careful(0, 'they go in sets');

set_batches(1000000, '1GB');
in_one_batch("TRUNCATE t; $many");
same('t', 'in the largest batches');
in_one_batch('DELETE FROM t WHERE id % 11 <> 0;');
same('t', 'of deletes, too');
careful(0, 'they go in sets');

# in a part of a transaction that is not its last
set_batches(500, '1GB');
in_one_batch(q{DELETE FROM t;
	INSERT INTO t SELECT i, i, 'parts' FROM generate_series(1, 4000) i;});
wait_for_sync('d');
$green->safe_psql('DELETE FROM t WHERE id = 700');
in_one_batch(q{UPDATE t SET v = 'in parts';});
same('t', 'a row that is missing in a part of a transaction is inserted');
careful(1, 'row by row');
is(conflicts(), q{update_missing id[integer]:'700'}, 'and is a conflict');

#
# An error in the middle of several batches on their way
#
# The worst is a COMMIT that fails: the session is free for the next BEGIN.
$green->safe_psql(<<'SQL');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN RAISE 'refused: %', NEW.id; END$$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (NEW.v = 'refused at COMMIT') EXECUTE FUNCTION refuse();
ALTER TABLE t ENABLE ALWAYS TRIGGER refuse;
ALTER TABLE t ADD CONSTRAINT accepted CHECK (v <> 'refused');
SQL
set_batches(1, '1GB');

# Several transactions, of which one is refused; none of them is answered before
# the last is sent.
sub refused_in_flight
{
	my ($value, $id, $error) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $holder = $green->session;

	$blue->safe_psql('UPDATE n SET times = 0');
	wait_for_sync('d');
	my $before = stream('batches');
	my $applied = stream('transactions');
	$holder->query('BEGIN; SELECT FROM n WHERE id = 1 FOR UPDATE');
	$blue->safe_psql("UPDATE n SET times = times + 1 WHERE id = $_") for 1 .. 4;
	$blue->safe_psql("INSERT INTO t VALUES ($id, $id, '$value')");
	$blue->safe_psql("UPDATE n SET times = times + 1 WHERE id = $_") for 5 .. 9;
	ok( $blue->poll_query_until("SELECT batches - $before = 10
				AND transactions = $applied FROM bluegreen.stat_stream"),
		"$value: ten transactions are on their way");
	$holder->query('COMMIT');
	$blue->poll_query_until(
		q{SELECT state = 'error' FROM bluegreen.stat_stream});
	like(stream('error_message'), $error, "$value: the stream stops at it");
	is( $green->safe_psql(
			'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM n WHERE times > 0'),
		'1 2 3 4',
		"$value: what came before is applied, and nothing behind it");
	$holder->quit;
	return;
}

# The cause is removed.
sub goes_on
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$blue->poll_query_until(
		q{SELECT state = 'streaming' FROM bluegreen.stat_stream});
	same('n', 'the stream goes on behind it');
	same('t', 'with the row');
	return;
}

refused_in_flight('refused', 5001, qr/violates check constraint/);
$green->safe_psql('ALTER TABLE t DROP CONSTRAINT accepted');
goes_on();

refused_in_flight('refused at COMMIT', 5002, qr/refused: 5002/);
$green->safe_psql('DROP TRIGGER refuse ON t');
goes_on();

# Indexes have what the tables have.
SKIP:
{
	skip 'no amcheck', 1 if $green->safe_psql(
		q{SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'}) == 0;
	$green->safe_psql('CREATE EXTENSION amcheck');
	is( $green->safe_psql(
			q{SELECT count(bt_index_check(indexrelid, true)) > 30 FROM pg_index
			JOIN pg_class c ON c.oid = indexrelid WHERE relkind = 'i'
			AND relnamespace = 'public'::regnamespace}),
		't', 'the indexes are in order');
}

done_testing();
