# Copy in chunks while the application writes: no row is lost and none is
# there twice, whatever happens in between.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.copy_chunk_rows = 100
bluegreen.copy_workers = 1
bluegreen.restart_delay = 100ms
bluegreen.restart_delay_max = 500ms
CONF

# A transform that calls hold() stops the copy, not the stream, at a row with a
# key of the table "held" for as long as a test holds the advisory lock of
# that key: the chunk is announced then, and its snapshot is taken.
$blue->safe_psql(<<'SQL');
CREATE FUNCTION hold(id integer) RETURNS integer
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF id % 1000 IN (50, 250, 350)
		AND current_setting('transaction_isolation') = 'repeatable read' THEN
		PERFORM pg_advisory_xact_lock_shared(id);
	END IF;
	RETURN id;
END
$$;
SQL
my $holder = $blue->session;

sub hold { $holder->query("SELECT pg_advisory_lock($_)") for @_; return }
sub let_go { $holder->query("SELECT pg_advisory_unlock($_)") for @_; return }

# Wait until $n chunks are held.
sub wait_held
{
	my ($n) = @_;
	return $blue->poll_query_until("SELECT count(*) = $n FROM pg_locks"
		  . " WHERE locktype = 'advisory' AND NOT granted");
}

# A table on both sides, $rows rows on blue, mapped through hold() and started.
sub deploy
{
	my ($name, %options) = @_;
	my $columns = $options{columns} // 'id integer PRIMARY KEY, v text';
	my $rows = $options{rows} // 1000;
	my $list = $options{list} // 'id, v';
	$blue->safe_psql("CREATE TABLE $name ($columns); INSERT INTO $name "
		  . ($options{fill} // "SELECT i, 'row ' || i")
		  . " FROM generate_series(1, $rows) i");
	$green->safe_psql("CREATE TABLE $name ($columns, h integer)");
	$green->safe_psql($options{green}) if $options{green};
	$blue->safe_psql("SELECT bluegreen.create_deployment('$name', 'green');"
		  . " SELECT bluegreen.map_table('$name', '$name',"
		  . " transform => 'SELECT $list, hold(id) AS h FROM $name')");
	$blue->safe_psql("CALL bluegreen.start('$name')")
	  unless $options{stopped};
	return;
}

sub same
{
	my ($name, $claim, $list) = @_;
	$list //= 'id, v';
	return compare_tables("SELECT $list FROM $name",
		"SELECT $list FROM $name", $claim);
}

sub drop
{
	my ($name) = @_;
	$blue->safe_psql("SELECT bluegreen.drop_deployment('$name')");
	return;
}

# Chunks that the target has: number, rows and when they were committed.
sub chunks
{
	my ($name) = @_;
	return $green->safe_psql(
		"SELECT c.number || ':' || c.row_count || '\@' || c.finished_at"
		  . " FROM bluegreen.applied_chunk c JOIN bluegreen.applied_table t"
		  . " USING (stream, mapping) WHERE t.target_table = '$name'"
		  . " AND NOT c.key_only ORDER BY c.number");
}

my $copy_worker = "backend_type = 'pg_bluegreen copy'";

#
# Resumed, not restarted
#
hold(250);
deploy('resume', rows => 1050);
wait_held(1);
my @first = split /\n/, chunks('resume');
is(scalar @first, 2, 'two chunks are copied before the held one');
$blue->safe_psql(
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $copy_worker"
);
wait_held(1);
is(chunks('resume'), join("\n", @first),
	'a copy worker that is killed loses its own chunk only');
$blue->safe_psql("CALL bluegreen.stop('resume')");
is($blue->safe_psql("SELECT count(*) FROM pg_stat_activity WHERE $copy_worker"),
	'0', 'stop ends copy workers too');
$blue->safe_psql("CALL bluegreen.start('resume')");
wait_held(1);
let_go(250);
wait_for_sync('resume');
my @all = split /\n/, chunks('resume');
is(join(' ', @all[ 0, 1 ]),
	join(' ', @first), 'after stop and start the finished chunks stay');
my $copied = 0;
$copied += $_ for map { /:(\d+)@/ } @all;
is("$copied " . @all, '1050 11',
	'every row is copied once, in chunks of the size asked for');
is( $blue->safe_psql(
		q{SELECT string_agg(number::text, ' ' ORDER BY number)}
		  . q{ FROM bluegreen.chunk WHERE deployment = 'resume'}),
	'1 2 3 4 5 6 7 8 9 10 11',
	'the view shows each chunk once');
same('resume', 'a copy that was interrupted twice is complete');
drop('resume');

#
# Keys that move between chunks (proof 15): the value that the UPDATE does not
# carry is copied again.
#
my $toast = 'id integer PRIMARY KEY, v text, n integer';
my $long = "SELECT i, repeat(md5(i::text), 200), 0";

sub deploy_toast
{
	my ($name, %options) = @_;
	my $storage = "ALTER TABLE $name ALTER v SET STORAGE EXTERNAL;";
	deploy(
		$name,
		columns => $toast,
		fill => $long,
		list => 'id, v, n',
		green => $storage,
		stopped => 1,
		%options);

	# rows that were written before STORAGE was set compress and fit inline
	$blue->safe_psql("$storage UPDATE $name SET v = v || 'x';"
		  . " CALL bluegreen.start('$name')");
	return;
}

hold(250);
deploy_toast('moved');
wait_held(1);
$blue->safe_psql(<<'SQL');
DELETE FROM moved WHERE id = 40;
UPDATE moved SET id = 40 WHERE id = 900;
BEGIN;
DELETE FROM moved WHERE id = 41;
UPDATE moved SET id = 41, n = 1 WHERE id = 901;
COMMIT;
BEGIN;
UPDATE moved SET id = 2042 WHERE id = 42;
UPDATE moved SET id = 42 WHERE id = 902;
COMMIT;
BEGIN;
DELETE FROM moved WHERE id = 44;
UPDATE moved SET id = 44 WHERE id = 43;
UPDATE moved SET id = 43 WHERE id = 903;
COMMIT;
BEGIN;
UPDATE moved SET id = -45 WHERE id = 45;
UPDATE moved SET id = 45 WHERE id = 905;
UPDATE moved SET id = 905 WHERE id = -45;
COMMIT;
DELETE FROM moved WHERE id = 46;
UPDATE moved SET id = 46 WHERE id = 906;
UPDATE moved SET n = 7 WHERE id = 46;
UPDATE moved SET id = 47 WHERE id = 907 AND NOT EXISTS (SELECT FROM moved
	WHERE id = 47);
DELETE FROM moved WHERE id = 48;
UPDATE moved SET id = 48 WHERE id = 908;
DELETE FROM moved WHERE id = 48;
INSERT INTO moved VALUES (48, 'short', 8);
SQL
let_go(250);
wait_for_sync('moved');
same('moved', 'keys that move into a copied chunk keep their long values',
	'id, v, n');
cmp_ok(
	$green->safe_psql(
		"SELECT count(*) FROM bluegreen.applied_chunk WHERE key_only"),
	'>', 4, 'which are copied again, each as a chunk of its own');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	'0', 'no row was found where none should be');
drop('moved');

# The copy of such a key dies: it is done again, and not forgotten.
hold(1250);
deploy_toast('again', rows => 3000);
wait_held(1);
hold(50);
$blue->safe_psql(<<'SQL');
DELETE FROM again WHERE id = 50;
UPDATE again SET id = 50 WHERE id = 2900;
SQL
let_go(1250);
$blue->poll_query_until(
	q{SELECT count(*) = 1 FROM bluegreen.copy_state() WHERE key_only});
wait_held(1);

# Who waits for that holds no lock on the source: somebody who alters it would
# wait for him, and the copy for somebody.
$blue->append_conf('bluegreen.copy_workers = 0');
$blue->reload;
my $killed_at = $green->safe_psql('SELECT clock_timestamp()');
$blue->safe_psql(
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $copy_worker"
);
$green->poll_query_until(qq{SELECT EXISTS (SELECT FROM pg_stat_activity
	WHERE application_name = 'bluegreen again forward control'
		AND backend_start > '$killed_at')});
my $altered;
for (1 .. 20)
{
	$altered = $blue->psql(q{SET lock_timeout = '1 s';
		ALTER TABLE again ALTER n SET DEFAULT 1}) == 0;
	last if $altered;
}
ok($altered, 'a source can be altered while a key waits to be copied');
$blue->append_conf('bluegreen.copy_workers = 1');
$blue->reload;
wait_held(1);
let_go(50);
wait_for_sync('again');
same('again', 'a copy worker killed while it copies such a key loses nothing',
	'id, v, n');
drop('again');

#
# Unique values that move between chunks (proof 14)
#
my $indexes = <<'SQL';
SELECT string_agg(pg_get_indexdef(indexrelid) || ' '
	|| coalesce(pg_get_constraintdef(k.oid), '') || ' '
	|| coalesce(obj_description(indexrelid, 'pg_class'), '') || ' '
	|| indisvalid || indisready || indexrelid, E'\n'
	ORDER BY pg_get_indexdef(indexrelid))
FROM pg_index i LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid
WHERE i.indrelid = 'uniq'::regclass
SQL
my $extra = <<'SQL';
CREATE UNIQUE INDEX uniq_lower ON uniq (lower(v)) WHERE id > 0;
ALTER TABLE uniq ADD CONSTRAINT uniq_w UNIQUE (w),
	ADD CONSTRAINT uniq_x EXCLUDE (w WITH =);
CREATE INDEX uniq_plain ON uniq (v, w);
COMMENT ON INDEX uniq_plain IS 'is kept';
SQL
hold(250, 350);
$blue->append_conf('bluegreen.copy_workers = 2');
$blue->reload;
deploy(
	'uniq',
	columns => 'id integer PRIMARY KEY, v text, w integer',
	fill => q{SELECT i, 'row ' || i, i},
	list => 'id, v, w',
	green => $extra,
	stopped => 1);
$blue->safe_psql($extra);
$green->safe_psql('CREATE TABLE refers (w integer REFERENCES uniq (w))');
my $before = $green->safe_psql($indexes);
$blue->safe_psql("CALL bluegreen.start('uniq')");
wait_held(2);
is( $green->safe_psql(
		q{SELECT string_agg(indexrelid::regclass::text, ' ') FROM pg_index
		WHERE indrelid = 'uniq'::regclass AND indisready}),
	'',
	'indexes are put aside while chunks are copied');
is($green->safe_psql(q{SELECT string_agg(name, ' ' ORDER BY name)
	FROM bluegreen.saved_index}),
	'uniq_lower uniq_pkey uniq_plain uniq_w uniq_x', 'and noted');

# the stream stands at a row of a held chunk, and then values move
$blue->safe_psql(<<'SQL');
UPDATE uniq SET v = 'stands here' WHERE id = 251;
BEGIN;
UPDATE uniq SET w = -800, v = 'other' WHERE id = 10;
UPDATE uniq SET w = 10, v = 'ROW 10' WHERE id = 800;
COMMIT;
SQL
let_go(350);
$blue->poll_query_until(
	q{SELECT count(*) FILTER (WHERE state = 'copied') = 10
	FROM bluegreen.chunk WHERE deployment = 'uniq'});
is( $green->safe_psql(q{SELECT count(*) FROM uniq WHERE w = 10}),
	'2', 'a unique value can be in two chunks at once');
let_go(250);
wait_for_sync('uniq');
same('uniq', 'unique values that move between chunks arrive', 'id, v, w');
is($green->safe_psql($indexes), $before, 'all indexes are built again');
my ($status, undef, $error) =
  $green->psql(q{INSERT INTO uniq VALUES (5000, 'five', 10)});
like($error, qr/uniq_w|uniq_x/, 'and are enforced');
is( $green->safe_psql(q{SET enable_seqscan = off; SET enable_bitmapscan = off;
		SELECT count(*) FROM uniq WHERE v >= ''}),
	$green->safe_psql('SELECT count(*) FROM uniq'),
	'and hold every row');
is($green->safe_psql('SELECT count(*) FROM bluegreen.saved_index'),
	'0', 'and nothing is noted any more');
$green->safe_psql('DROP TABLE refers');
drop('uniq');
$blue->append_conf('bluegreen.copy_workers = 1');
$blue->reload;

#
# TRUNCATE while a chunk is copied, alone and in a group
#
hold(250);
deploy('cut');
$blue->safe_psql(q{CREATE TABLE cut2 (LIKE cut INCLUDING ALL);
INSERT INTO cut2 SELECT * FROM cut;});
$green->safe_psql(q{CREATE TABLE cut2 (LIKE cut INCLUDING ALL)});
wait_held(1);
$blue->safe_psql(q{SELECT bluegreen.map_table('cut', 'cut2',
	transform => 'SELECT id, v FROM cut2')});
wait_held(1);
my $generation =
  $green->safe_psql(q{SELECT generation FROM bluegreen.applied_table
	WHERE target_table = 'cut'});
my $other = $blue->session;
$other->query('BEGIN');
$other->query(q{INSERT INTO cut SELECT i, 'gone' FROM
	generate_series(5001, 5010) i});
$other->send(q{TRUNCATE cut, cut2});
$blue->poll_query_until(q{SELECT count(*) > 0 FROM pg_locks
	WHERE mode = 'AccessExclusiveLock' AND NOT granted});
let_go(250);
$other->wait;
$other->query(q{INSERT INTO cut SELECT i, 'after ' || i
	FROM generate_series(1, 700) i});
$other->query('COMMIT');
$blue->safe_psql(q{INSERT INTO cut2 VALUES (1, 'after')});
wait_for_sync('cut');
same('cut', 'a table that is truncated while it is copied starts again');
same('cut2', 'a group that is truncated, too');
cmp_ok(
	$green->safe_psql(q{SELECT generation FROM bluegreen.applied_table
	WHERE target_table = 'cut'}), '>', $generation,
	'its generation is raised');
is( $blue->safe_psql(q{SELECT sum(rows) FROM bluegreen.chunk
	WHERE source = 'cut'::regclass}),
	'700',
	'the view shows the chunks of the last copy');
$blue->safe_psql(q{TRUNCATE cut; INSERT INTO cut VALUES (3, 'last')});
wait_for_sync('cut');
same('cut', 'and a table that follows is truncated');
drop('cut');

#
# Writers that were in flight
#
hold(250);
deploy('late');
wait_held(1);
my $writer = $blue->session;
my $prepared = $blue->session;
my $ddl = 'CREATE TABLE added (id integer PRIMARY KEY, v text)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{INSERT INTO added SELECT i, 'row ' || i
	FROM generate_series(1, 300) i});
$writer->query(q{BEGIN; INSERT INTO added VALUES (1001, 'in flight');
	UPDATE added SET v = 'in flight' WHERE id = 7;
	DELETE FROM added WHERE id = 8;});
$prepared->query(q{BEGIN; INSERT INTO added VALUES (1002, 'prepared');
	DELETE FROM added WHERE id = 9; PREPARE TRANSACTION 'spans';});
$blue->safe_psql(q{SELECT bluegreen.map_table('late', 'added')});
$blue->poll_query_until("SELECT count(*) = 1 FROM pg_stat_activity"
	  . " WHERE $copy_worker AND wait_event = 'transactionid'");
is(chunks('added'), '',
	'a table that is added is not copied while a writer is in flight');
$writer->query('COMMIT');
$blue->safe_psql(q{UPDATE added SET v = 'between' WHERE id = 10});
is(chunks('added'), '', 'nor while a transaction is prepared');
$blue->safe_psql(q{COMMIT PREPARED 'spans'});
let_go(250);
wait_for_sync('late');
same('added', 'a table that is added to a running deployment is complete');

# one more, taken away while it is copied
hold(250);
$blue->safe_psql(q{CREATE TABLE leaves (id integer PRIMARY KEY, v text UNIQUE);
INSERT INTO leaves SELECT i, 'row ' || i FROM generate_series(1, 1000) i;});
$green->safe_psql(
	q{CREATE TABLE leaves (id integer PRIMARY KEY, v text UNIQUE, h int)});
$blue->safe_psql(q{SELECT bluegreen.map_table('late', 'leaves',
	transform => 'SELECT id, v, hold(id) AS h FROM leaves')});
wait_held(1);
$blue->safe_psql(q{SELECT bluegreen.unmap_table('late', 'leaves');
INSERT INTO late VALUES (3001, 'after');});
wait_for_sync('late');
same('late', 'the others go on when a table is unmapped while it is copied');
is( $green->safe_psql(
		q{SELECT count(*) FROM pg_constraint JOIN pg_index
		ON indexrelid = conindid WHERE conrelid = 'leaves'::regclass
		AND contype = 'u' AND indisready AND indisvalid}),
	'1',
	'and its unique constraint is in force again');
is( $green->safe_psql(
		q{SELECT count(*) FROM bluegreen.applied_table
		WHERE target_table = 'leaves'}),
	'0',
	'and the target knows nothing of it any more');
let_go(250);
drop('late');

#
# Writers that began before the slot was made: start waits for one, and for a
# prepared one
#
$blue->safe_psql(q{CREATE TABLE early (id integer PRIMARY KEY, v text);
INSERT INTO early SELECT i, 'row' FROM generate_series(1, 300) i;});
$green->safe_psql('CREATE TABLE early (id integer PRIMARY KEY, v text)');
$blue->safe_psql(q{SELECT bluegreen.create_deployment('early', 'green');
SELECT bluegreen.map_table('early', 'early')});
$writer->query(q{BEGIN; UPDATE early SET v = 'early' WHERE id < 20});
$prepared->query(q{BEGIN; DELETE FROM early WHERE id > 290;
	PREPARE TRANSACTION 'early'});
my $starter = $blue->session;
$starter->send(q{CALL bluegreen.start('early')});
$blue->poll_query_until(q{SELECT count(*) = 1 FROM pg_locks l
	WHERE l.locktype = 'transactionid' AND NOT l.granted AND l.pid = }
	  . $starter->pid);
$writer->query(q{INSERT INTO early VALUES (1001, 'early'); COMMIT});
$blue->safe_psql(q{COMMIT PREPARED 'early'});
$starter->wait;
wait_for_sync('early');
same('early', 'what began before the slot was made is copied');
drop('early');

#
# A commit that hangs waiting for a standby is in WAL and not yet visible
# (proofs 10 and 11)
#
hold(250);
deploy('hangs');
wait_held(1);
$blue->append_conf(q{synchronous_standby_names = 'nobody'});
$blue->reload;
$blue->poll_query_until(q{SHOW synchronous_standby_names}, 'nobody');
$writer->send(q{SET synchronous_commit = on; BEGIN;
INSERT INTO hangs VALUES (2001, 'hangs');
UPDATE hangs SET v = 'hangs' WHERE id IN (1, 500);
DELETE FROM hangs WHERE id IN (2, 501); COMMIT});
$blue->poll_query_until("SELECT count(*) = 1 FROM pg_stat_activity"
	  . " WHERE wait_event = 'SyncRep' AND pid = "
	  . $writer->pid);
let_go(250);
ok( $blue->poll_query_until(
		q{SELECT count(*) >= 9 FROM bluegreen.chunk
		WHERE deployment = 'hangs' AND state = 'copied'}),
	'chunks are copied while a commit hangs');
is($green->safe_psql(q{SELECT v FROM hangs WHERE id = 500}),
	'row 500', 'and do not see it');
$blue->append_conf(q{synchronous_standby_names = ''});
$blue->reload;
$writer->wait;
wait_for_sync('hangs');
same('hangs', 'a commit that hung while chunks were copied arrives');
drop('hangs');

#
# Rewrites, heavy load with keys that move, asynchronous commits and a crash
#
my $load = <<'SQL';
CREATE FUNCTION work(a integer, b integer, what integer) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	CASE what % 8
	WHEN 0 THEN DELETE FROM busy WHERE id = a;
	WHEN 1 THEN UPDATE busy SET v = repeat(md5(b::text), 150) WHERE id = a;
	WHEN 2, 3 THEN UPDATE busy SET id = b WHERE id = a;
	WHEN 4 THEN
		UPDATE busy SET id = -b WHERE id = a;
		UPDATE busy SET id = a WHERE id = b;
		UPDATE busy SET id = b WHERE id = -b;
	WHEN 5 THEN UPDATE busy SET n = n + 1, u = NULL WHERE id = a;
	WHEN 6 THEN UPDATE busy SET n = n + 1, u = b WHERE id = a;
	ELSE INSERT INTO busy VALUES (a, repeat(md5(b::text), 150), b);
	END CASE;
EXCEPTION WHEN unique_violation OR deadlock_detected THEN
	UPDATE busy SET n = n + 1 WHERE id = a;
END
$$;
SQL
$ddl = <<'SQL';
CREATE TABLE busy (id integer PRIMARY KEY, v text, n integer, u integer UNIQUE);
ALTER TABLE busy ALTER v SET STORAGE EXTERNAL;
SQL
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql($load);
$blue->safe_psql(<<'SQL');
ALTER TABLE busy ADD COLUMN pad integer;
INSERT INTO busy SELECT i, repeat(md5(i::text), 100), 0, i
	FROM generate_series(1, 20000) i;
SELECT bluegreen.create_deployment('busy', 'green');
SELECT bluegreen.map_table('busy', 'busy',
	transform => 'SELECT id, v, n, u FROM busy');
SQL
$blue->append_conf('bluegreen.copy_workers = 3');
$blue->reload;
my $script = <<'SQL';
\set a random(1, 22000)
\set b random(1, 22000)
\set what random(1, 1000)
SELECT work(:a, :b, :what);
SQL
my @arguments = (script => $script, clients => 3, rate => 400);
my $bench = pgbench_start($blue, @arguments);
$blue->safe_psql(q{CALL bluegreen.start('busy')});
my $rewrites = 0;
until ($blue->safe_psql(q{SELECT state FROM bluegreen.status}) eq 'streaming'
	  || $rewrites > 60)
{
	my $type = $rewrites++ % 2 ? 'integer' : 'bigint';
	$blue->safe_psql("ALTER TABLE busy ALTER COLUMN pad TYPE $type");
}
ok(pgbench_stop($bench), 'the application runs on');
wait_for_sync('busy');
cmp_ok($rewrites, '>', 1, 'the table is rewritten while it is copied');
same('busy', 'a table under load is complete after its copy', 'id, v, n, u');
drop('busy');

$green->safe_psql('TRUNCATE busy');
$blue->safe_psql(<<'SQL');
ALTER DATABASE postgres SET synchronous_commit = off;
ALTER SYSTEM SET wal_writer_delay = '1s';
SELECT pg_reload_conf();
SELECT bluegreen.create_deployment('busy', 'green');
SELECT bluegreen.map_table('busy', 'busy',
	transform => 'SELECT id, v, n, u FROM busy');
SQL
$bench = pgbench_start($blue, @arguments);
$blue->safe_psql(q{CALL bluegreen.start('busy')});
$blue->poll_query_until(q{SELECT count(*) > 20 FROM bluegreen.chunk
	WHERE state = 'copied'});
$blue->kill9;
undef $bench->{harness};
$blue->start;
wait_for_sync('busy');
same('busy', 'the target has nothing that a crash of the source lost',
	'id, v, n, u');
is( $green->safe_psql(
		'SELECT kind, key, incoming, existing FROM bluegreen.conflict'),
	'',
	'no row was found where none should be, in all of this');

done_testing();
