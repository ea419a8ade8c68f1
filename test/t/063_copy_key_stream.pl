# While a table is copied its key may be aside, but not for longer than nobody
# has something to write to it.  A table that somebody needs the key of keeps it.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => <<'CONF');
autovacuum = off
bluegreen.copy_chunk_rows = 100
bluegreen.copy_workers = 1
bluegreen.restart_delay = 100ms
bluegreen.restart_delay_max = 500ms
CONF

# The copy, not the stream, stops at a row with a key of which somebody holds
# the advisory lock.
$blue->safe_psql(<<'SQL');
CREATE FUNCTION hold(id integer) RETURNS integer
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF id IN (250, 750)
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

sub wait_held
{
	my ($id) = @_;
	return $blue->poll_query_until("SELECT count(*) = 1 FROM pg_locks"
		  . " WHERE locktype = 'advisory' AND NOT granted AND objid = $id");
}

# A table on both sides, 1000 rows on blue.
sub table
{
	my ($name, %options) = @_;
	my $value = $options{value} // q{'row ' || i};
	my $key = $options{key} // 'PRIMARY KEY';
	$blue->safe_psql("CREATE TABLE $name (id integer PRIMARY KEY, v text);
		INSERT INTO $name SELECT i, $value FROM generate_series(1, 1000) i");
	$green->safe_psql("CREATE TABLE $name (id integer NOT NULL, v text,
		h integer, CONSTRAINT ${name}_pkey $key (id))");
	return;
}

my $transform = q{transform => 'SELECT id, v, hold(id) AS h FROM %s'};

sub start_copy
{
	my ($name) = @_;
	$blue->safe_psql("SELECT bluegreen.create_deployment('$name', 'green');
		SELECT bluegreen.map_table('$name', '$name', "
		  . sprintf($transform, $name)
		  . "); CALL bluegreen.start('$name')");
	return;
}

sub deploy
{
	my ($name, %options) = @_;
	table($name, %options);
	start_copy($name);
	return;
}

sub same
{
	my ($name, $claim) = @_;
	compare_tables("SELECT id, v FROM $name", "SELECT id, v FROM $name",
		$claim);
	is( $green->safe_psql("SELECT count(*) FROM (SELECT id FROM $name
			GROUP BY id HAVING count(*) > 1) twice"),
		'0', "$claim: none twice");
	return;
}

sub drop
{
	my ($name) = @_;
	$blue->safe_psql("SELECT bluegreen.drop_deployment('$name')");
	return;
}

my $in_use = q{SELECT indisready AND indisvalid FROM pg_index
	WHERE indexrelid = '%s_pkey'::regclass};

sub key_in_use { return $green->safe_psql(sprintf $in_use, $_[0]) }

#
# The stream wants to write: the key is built, though the copy goes on
#
hold(250, 750);
deploy('wanted');
wait_held(250);
is(key_in_use('wanted'), 'f', 'the key of a quiet table is aside');
$blue->safe_psql(<<'SQL');
UPDATE wanted SET v = 'to come' WHERE id = 600;
SQL
let_go(250);
wait_held(750);
is(key_in_use('wanted'), 'f', 'and stays so when others than the stream write');
$blue->safe_psql(<<'SQL');
BEGIN;
UPDATE wanted SET v = 'changed' WHERE id = 10;
DELETE FROM wanted WHERE id = 20;
UPDATE wanted SET id = 2000 WHERE id = 30;
UPDATE wanted SET id = 20 WHERE id = 900;
INSERT INTO wanted VALUES (0, 'new');
COMMIT;
SQL
let_go(750);
wait_for_sync('wanted');
same('wanted', 'changes of chunks that are there arrive');
is(key_in_use('wanted'), 't', 'and the key is in use');
drop('wanted');

hold(250, 750);
deploy('early');
wait_held(250);
$blue->safe_psql(q{UPDATE early SET v = 'early' WHERE id IN (10, 20)});
let_go(250);
wait_held(750);
is(key_in_use('early'), 't',
	'a change of a finished chunk has the key built in the middle of the copy');
$green->poll_query_until(
	q{SELECT count(*) = 2 FROM early WHERE v = 'early'});
ok(1, 'and arrives while the copy goes on');
let_go(750);
wait_for_sync('early');
same('early', 'the rest is copied with the key in place');
drop('early');

#
# A value that the change does not carry: copied again, by the key
#
hold(250, 750);
table('toast',
	value => q{(SELECT string_agg(md5((i * j)::text), '')
		FROM generate_series(1, 200) j)});
$blue->safe_psql('ALTER TABLE toast ALTER v SET STORAGE EXTERNAL;
	UPDATE toast SET v = v || id::text WHERE id < 50');
start_copy('toast');
wait_held(250);
$blue->safe_psql('UPDATE toast SET id = 2000 WHERE id = 10;
	UPDATE toast SET id = 10 WHERE id = 600');
let_go(250, 750);
wait_for_sync('toast');
same('toast', 'a key that has to be copied again');
drop('toast');

#
# Load
#
$blue->append_conf('bluegreen.copy_workers = 2');
$blue->reload;
table('busy');
$blue->safe_psql(q{
INSERT INTO busy SELECT i, 'row' FROM generate_series(1001, 20000) i;
CREATE SEQUENCE fresh START 100000;});
my $load = pgbench_start(
	$blue,
	clients => 3,
	rate => 300,
	script => [
		q{\set id random(1, 20000)
UPDATE busy SET v = v || 'x' WHERE id = :id;},
		q{\set id random(1, 20000)
BEGIN;
DELETE FROM busy WHERE id = :id;
INSERT INTO busy VALUES (:id, 'again');
END;},
		q{\set id random(1, 20000)
UPDATE busy SET id = nextval('fresh') WHERE id = :id;},
		q{INSERT INTO busy SELECT min(id) - 1, 'below' FROM busy
ON CONFLICT DO NOTHING;}
	]);
$blue->safe_psql(q{SELECT bluegreen.create_deployment('busy', 'green');
	SELECT bluegreen.map_table('busy', 'busy');
	CALL bluegreen.start('busy')});
wait_for_sync('busy');
ok(pgbench_stop($load), 'nobody is disturbed');
wait_for_sync('busy');
same('busy', 'a table that is written to while it is copied');
is(key_in_use('busy'), 't', 'has its key');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	'0', 'no change was applied twice');
drop('busy');

#
# Copy workers take different tables
#
hold(250);
table($_) for qw(one two);
$blue->safe_psql(q{SELECT bluegreen.create_deployment('apart', 'green')});
$blue->safe_psql("SELECT bluegreen.map_table('apart', '$_', "
	  . sprintf($transform, $_)
	  . ')')
  for qw(one two);
$blue->safe_psql(q{CALL bluegreen.start('apart')});
$blue->poll_query_until(q{SELECT count(*) = 2 FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted AND objid = 250});
is( $green->safe_psql(q{SELECT target_table, sum(row_count)
		FROM bluegreen.applied_chunk
		JOIN bluegreen.applied_table USING (stream, mapping)
		WHERE target_table IN ('one', 'two') GROUP BY 1 ORDER BY 1}),
	"one|200\ntwo|200",
	'two copy workers are not in the same table without need');
let_go(250);
wait_for_sync('apart');
same($_, "$_, beside another") for qw(one two);
drop('apart');
$blue->append_conf('bluegreen.copy_workers = 1');
$blue->reload;

#
# TRUNCATE, also where others refer to the table, so that rows are deleted
#
foreach my $name (qw(cut cut_referred))
{
	hold(750);
	table($name);
	$green->safe_psql("CREATE TABLE refers (id integer REFERENCES $name)")
	  if $name eq 'cut_referred';
	start_copy($name);
	wait_held(750);
	is(key_in_use($name), 'f', "the key of $name is aside");
	my $cutter = $blue->session;
	$cutter->send("BEGIN; TRUNCATE $name;
		INSERT INTO $name SELECT i, 'new' FROM generate_series(1, 500) i;
		UPDATE $name SET v = 'newer' WHERE id < 10; COMMIT");
	$blue->poll_query_until(q{SELECT count(*) > 0 FROM pg_locks
		WHERE mode = 'AccessExclusiveLock' AND NOT granted});
	let_go(750);
	$cutter->wait;
	wait_for_sync($name);
	same($name, "$name, which is emptied while it is copied");
	is(key_in_use($name), 't', "$name has its key");
	drop($name);
}
$green->safe_psql('DROP TABLE refers');

#
# Somebody writes a row by hand that the copy brings, too
#
hold(250, 750);
deploy('twice');
wait_held(250);
$green->safe_psql(q{INSERT INTO twice VALUES (10, 'by hand')});
$blue->safe_psql(q{UPDATE twice SET v = 'changed' WHERE id = 20});
let_go(250);
$blue->poll_query_until(
	q{SELECT error_message LIKE '%could not create unique index "twice_pkey"%'
	FROM bluegreen.stat_stream});
is($blue->safe_psql('SELECT error_lsn FROM bluegreen.stat_stream'),
	'', 'no transaction is to blame, and could be left out');
is(key_in_use('twice'), 'f', 'a row that is there twice is an error');
is($blue->safe_psql('SELECT error_relation, error_detail, error_hint IS NULL
		FROM bluegreen.stat_stream'),
	'public.twice|Key (id)=(10) is duplicated.|f',
	'which names the table and the key, and says what to do');
$green->safe_psql(q{DELETE FROM twice WHERE v = 'by hand'});
let_go(750);
# what failed before that may be shown only now
$blue->poll_query_until(q{SELECT state = 'streaming'
	FROM bluegreen.stat_stream});
wait_for_sync('twice');
same('twice', 'until it is gone');
drop('twice');

#
# The stream's own transaction is in the way of who builds the key
#
hold(250, 750);
table($_) for qw(first then_wanted);
$green->safe_psql(<<'SQL');
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql
	SET search_path = public AS $$
BEGIN
	PERFORM count(*) FROM then_wanted;
	RETURN NULL;
END $$;
CREATE TRIGGER look AFTER INSERT ON first
	FOR EACH STATEMENT EXECUTE FUNCTION look();
ALTER TABLE first ENABLE REPLICA TRIGGER look;
SQL
$blue->append_conf('bluegreen.batch_rows = 1000');
$blue->reload;
$blue->safe_psql(q{TRUNCATE first;
SELECT bluegreen.create_deployment('locks', 'green');
SELECT bluegreen.map_table('locks', 'first');
SELECT bluegreen.map_table('locks', 'then_wanted', }
	  . sprintf($transform, 'then_wanted')
	  . q{); CALL bluegreen.start('locks')});
wait_held(250);
let_go(250);
wait_held(750);
is(key_in_use('then_wanted'), 'f', 'aside');
my $log = length $blue->log;
$blue->safe_psql(q{BEGIN;
INSERT INTO first SELECT i, 'first' FROM generate_series(1, 20000) i;
UPDATE then_wanted SET v = 'wanted' WHERE id = 10;
COMMIT;});
$green->poll_query_until(q{SELECT count(*) > 0 FROM pg_locks
	WHERE relation = 'then_wanted'::regclass AND mode = 'AccessShareLock'
	AND pid IN (SELECT pid FROM pg_stat_activity
		WHERE application_name = 'bluegreen locks forward')});
let_go(750);
wait_for_sync('locks');
ok( $blue->wait_for_log(
		qr/key of table "public.then_wanted" must be built before/, $log),
	'a stream that is in the way of the key gives its transaction up');
same('then_wanted', 'a key that the stream was in the way of');
same('first', 'and its transaction');
drop('locks');

#
# Another stream comes to the table: it must not be without the key
#
hold(250, 750);
deploy('ours');
wait_held(250);
is(key_in_use('ours'), 'f', 'aside as long as nobody else writes to it');
table('others');
$blue->safe_psql(q{UPDATE others SET id = id + 5000;
SELECT bluegreen.create_deployment('others', 'green');
SELECT bluegreen.map_table('others', 'others', target => 'ours')});
$blue->safe_psql(q{CALL bluegreen.start('others', allow_nonempty => true)});
$green->poll_query_until(q{SELECT count(*) > 0 FROM pg_stat_activity
	WHERE application_name = 'bluegreen others forward'
	AND wait_event_type = 'Lock'});
let_go(250);
wait_held(750);
is(key_in_use('ours'), 't', 'it is built before another stream writes there');
let_go(750);
wait_for_sync($_) for qw(ours others);
compare_tables('SELECT id, v FROM ours UNION ALL SELECT id, v FROM others',
	'SELECT id, v FROM ours', 'and both arrive');
drop($_) for qw(ours others);

#
# Who keeps it: what was never aside is still the same file
#
table($_)
  for qw(quiet fired published identity referred shared given);
table('unique_key', key => 'UNIQUE');
$green->safe_psql(<<'SQL');
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql
	AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t BEFORE INSERT ON fired FOR EACH ROW EXECUTE FUNCTION nothing();
ALTER TABLE fired ENABLE REPLICA TRIGGER t;
CREATE PUBLICATION p FOR TABLE published;
ALTER TABLE identity REPLICA IDENTITY USING INDEX identity_pkey;
CREATE TABLE refers (id integer REFERENCES referred);
INSERT INTO given VALUES (-1, 'given');
SQL
$blue->safe_psql(q{SELECT bluegreen.create_deployment('keeps', 'green')});
my @tables =
  qw(quiet referred fired published identity given unique_key shared);
$blue->safe_psql("SELECT bluegreen.map_table('keeps', '$_', key => '{id}')")
  for @tables;
$blue->safe_psql(q{ALTER TABLE quiet REPLICA IDENTITY FULL;
SELECT bluegreen.map_table('keeps', 'quiet',
	target => 'shared', transform => 'SELECT id, v FROM quiet',
	on_write => 'merge')});
my $files = sub {
	my %files = map
	{
		$_ =>
		  $green->safe_psql("SELECT pg_relation_filenode('${_}_pkey')")
	} @tables;
	return \%files;
};
my $before = $files->();
$blue->safe_psql(q{CALL bluegreen.start('keeps', allow_nonempty => true)});
wait_for_sync('keeps');
my $after = $files->();
my %aside = map { $_ => $before->{$_} ne $after->{$_} } @tables;
is(join(' ', grep { $aside{$_} } @tables),
	'quiet referred', 'only of a table that nobody needs it of');
is( $green->safe_psql(q{SELECT count(*) FROM pg_index
		WHERE NOT (indisready AND indisvalid)}),
	'0',
	'and all are in use');
same($_, $_) for qw(quiet referred fired published identity unique_key);
drop('keeps');

done_testing();
