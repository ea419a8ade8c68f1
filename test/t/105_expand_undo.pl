# A contract that can be undone for a while; what stands in a change's way, and
# what others have done to its tables meanwhile.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one', <<'CONF');
bluegreen.lock_timeout = '500ms'
autovacuum_naptime = '1s'
CONF
$node->safe_psql('CREATE EXTENSION pg_bluegreen');

sub change
{
	my ($name, @operations) = @_;
	my $list = join ', ', @operations;
	$node->safe_psql("SELECT bluegreen.create_change('$name', \$\$[$list]\$\$)");
	return;
}

sub calls { return "CALL bluegreen.$_[0]('$_[1]')" }

sub expand
{
	my ($name) = @_;
	return $node->safe_psql(calls('expand', $name)
		  . "; CALL bluegreen.wait_for_backfill('$name', '180 s')",
		timeout => 200);
}

sub contract
{
	my ($name, $window) = @_;
	return $node->safe_psql("SET bluegreen.revert_window = '$window'; "
		  . calls('contract', $name),
		timeout => 200);
}

sub undo { return $node->safe_psql(calls('undo', $_[0]), timeout => 200) }

sub field
{
	my ($name, $column) = @_;
	return $node->safe_psql(
		"SELECT $column FROM bluegreen.change WHERE change = '$name'");
}

sub wait_for
{
	my ($name, $condition, $title) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$node->poll_query_until("SELECT $condition FROM bluegreen.change"
			  . " WHERE change = '$name'"),
		$title);
}

sub fails
{
	my ($sql, $pattern, $name) = @_;
	my (undef, undef, $error) = $node->psql($sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($error, $pattern, $name);
}

# everything that there is in schema public
sub catalog
{
	return $node->safe_psql(<<'SQL');
SELECT attrelid::regclass, attname, atttypid::regtype, attnotnull,
	pg_get_expr(adbin, adrelid)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid IN (SELECT oid FROM pg_class
		WHERE relnamespace = 'public'::regnamespace) AND attnum > 0
	AND NOT attisdropped
ORDER BY attrelid::regclass::text COLLATE "C", attnum;
SELECT conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
	AND conrelid <> 0
ORDER BY conrelid::regclass::text COLLATE "C", conname;
SELECT indexrelid::regclass, pg_get_indexdef(indexrelid), indisvalid
FROM pg_index WHERE indrelid IN (SELECT oid FROM pg_class
		WHERE relnamespace = 'public'::regnamespace)
ORDER BY indexrelid::regclass::text COLLATE "C";
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger
WHERE NOT tgisinternal ORDER BY tgrelid::regclass::text COLLATE "C", tgname;
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'public%' ORDER BY 1;
SQL
}

#
# A contract with a window: the new version is alone, and nothing is lost
#
$node->safe_psql(<<'SQL');
CREATE TABLE hall (name text PRIMARY KEY);
INSERT INTO hall VALUES ('a'), ('b');
CREATE TABLE item (
	id int PRIMARY KEY,
	code text NOT NULL UNIQUE CHECK (code ~ '^[0-9]+$'),
	hall text REFERENCES hall,
	note text NOT NULL,
	tag text,
	n int CONSTRAINT small CHECK (n < 100)
);
CREATE UNIQUE INDEX item_low ON item (lower(code)) WHERE id > 0;
CREATE INDEX item_code ON item (code);
INSERT INTO item SELECT i, i::text, 'a', 'note', 'tag', 1
	FROM generate_series(1, 2000) i;
CREATE TABLE ticket (id int PRIMARY KEY, item int REFERENCES item);
INSERT INTO ticket VALUES (1, 1);
SQL
my $before = catalog();
my @document = (
	q({"alter_column": {"table": "item", "column": "code", "type": "bigint",
		"up": "code::bigint", "down": "(1 / ((code - 666000) * (code - 667000)) * 0 + code % 100000)::text"}}),
	q({"drop_column": {"table": "item", "column": "hall",
		"down": "'nowhere'"}}),
	q({"alter_column": {"table": "item", "column": "note", "nullable": true,
		"up": "note", "down": "note"}}),
	q({"drop_constraint": {"table": "item", "name": "small", "up": "n",
		"down": "n"}}),
	q({"add_column": {"table": "item", "up": "tag || '!'",
		"column": {"name": "loud", "type": "text", "unique": false}}}),
	q({"create_index": {"name": "item_loud", "table": "item",
		"columns": [{"column": "loud"}]}}),
	q({"drop_table": {"name": "ticket"}}),
	q({"sql": {"up": "CREATE TABLE at_the_end (id int)", "onComplete": true}}));
change('window', @document);
expand('window');
fails(q{DELETE FROM public_window.item WHERE id = 1},
	qr/violates foreign key constraint "ticket_item_fkey"/,
	'while expanded, the old version binds the new one');
contract('window', '1h');
is(field('window', q{state || ' ' || (revert_until > now() + '50 min')}),
	'revertible true', 'contracted, and can still be undone');
is($node->safe_psql(q{SELECT to_regclass('at_the_end') IS NULL}), 't',
	'onComplete has to wait');
is( $node->safe_psql(<<'SQL'),
DELETE FROM public_window.item WHERE id = 1;
INSERT INTO public_window.item (id, code, note, n, tag, loud)
	VALUES (-1, 100002, 'same', 500, 't', 'x'),
	(3002, 667000, 'marked', 1, 't', 'x');
UPDATE public_window.item SET note = NULL, code = 666000 WHERE id = 3;
UPDATE public_window.item SET code = 666000 WHERE id = 3;
SELECT string_agg(concat_ws(':', id, code, coalesce(note, '?')), ' ' ORDER BY id)
	FROM public_window.item WHERE id > 3000 OR id IN (-1, 3);
SQL
	'-1:100002:same 3:666000:? 3002:667000:marked',
	'what the old version would not allow, and what it cannot say');
is( $node->safe_psql(<<'SQL'),
SELECT string_agg(concat_ws(':', id, coalesce(code, '?'), hall), ' ' ORDER BY id)
	FROM item WHERE id > 3000 OR id IN (-1, 3);
SQL
	'-1:2:nowhere 3:?:a 3002:?:nowhere',
	'but its columns are kept in step');
fails(calls('undo', 'window'),
	qr/rows of table public\.item have no value for the old version(?=.*\(3\): division by zero)(?=.*\(3002\): division by zero)/s,
	'rows without a value stop an undo, which names them');
is(field('window', 'state'), 'reverting', 'which is not over');
contract('window', '1h');
is(field('window', 'state'), 'revertible', 'but can be taken back');
$node->safe_psql(q{UPDATE public_window.item SET code = id
	WHERE id IN (3, 3002)});
fails(calls('undo', 'window'), qr/check constraint "small".*violated/,
	'a constraint of the old version is restored');
fails(q{UPDATE public_window.item SET code = 666000 WHERE id = 5},
	qr/division by zero/, 'while it is undone old values are wanted');
$node->safe_psql('UPDATE public_window.item SET n = 1 WHERE n = 500');
fails(calls('undo', 'window'), qr/violates foreign key constraint "item_hall_fkey"/,
	'a foreign key as well');
$node->safe_psql(q{INSERT INTO hall VALUES ('nowhere')});
fails(calls('undo', 'window'), qr/check constraint "bluegreen_\d+_4_old_note"/,
	'and NOT NULL');
$node->safe_psql(q{UPDATE public_window.item SET note = '' WHERE id = 3});
fails(calls('undo', 'window'), qr/could not create unique index/,
	'and what is unique');
contract('window', '1h');
is( $node->safe_psql(<<'SQL'),
UPDATE public_window.item SET note = NULL, code = 100004 WHERE id = 5;
UPDATE public_window.item SET note = '', code = 5 WHERE id = 5 RETURNING 'back';
SQL
	'back', 'all of which can be taken back: nothing binds the new version');
fails(calls('undo', 'window'), qr/could not create unique index/,
	'and wanted again');
$node->safe_psql(q{UPDATE public_window.item SET code = 3001 WHERE id = -1});
fails(calls('undo', 'window'), qr/"ticket_item_fkey"/,
	'and the foreign key of a table');
$node->safe_psql(q{INSERT INTO item VALUES (1, '1', 'a', 'note', 'tag', 1)});
undo('window');
is(field('window', 'state'), 'undone', 'undone after the contract');
is(catalog(), $before, 'everything is what it was');
is( $node->safe_psql('SELECT count(*), min(code::int), max(code::int) FROM item'),
	'2002|1|3002', 'with what the new version has written');

#
# The end of the window
#
expand('window');
contract('window', '1h');
contract('window', '1h');
is(field('window', 'state'), 'revertible', 'called again, nothing is lost');
contract('window', '0');
is(field('window', 'state'), 'contracted', 'the window can be ended');
fails(calls('undo', 'window'), qr/What is contracted cannot be undone/,
	'and then it is final');
is( $node->safe_psql(<<'SQL'),
SELECT string_agg(attname || ' ' || atttypid::regtype
		|| CASE WHEN attnotnull THEN '!' ELSE '' END, ', ' ORDER BY attname)
	FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 0
	AND NOT attisdropped;
SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint
	WHERE conrelid = 'item'::regclass AND contype IN ('c', 'f', 'u');
SELECT string_agg(indexrelid::regclass::text, ' '
		ORDER BY indexrelid::regclass::text COLLATE "C")
	FROM pg_index WHERE indrelid = 'item'::regclass;
SELECT to_regclass('ticket') IS NULL, to_regclass('at_the_end') IS NOT NULL;
SQL
	"code bigint!, id integer!, loud text!, n integer, note text, tag text\n"
	  . "item_code_check item_code_key\n"
	  . "item_code item_code_key item_loud item_low item_pkey\nt|t",
	'contracted like any other, copies have the names of what they replace');
change('soon', q({"rename_column": {"table": "item", "from": "tag",
	"to": "label"}}));
expand('soon');
contract('soon', '1s');
wait_for('soon', q{state = 'contracted'}, 'a worker contracts at its end');
is($node->safe_psql('SELECT count(label) FROM item'), '2002', 'by itself');

#
# A row that cannot be converted while the contract can be undone, and can again
#
$node->safe_psql(<<'SQL');
CREATE TABLE mend (id int PRIMARY KEY, z text, q int, old text, per int, gone text);
INSERT INTO mend VALUES (0, '1', 0, '1', 100, 'x');
CREATE FUNCTION convert(z text) RETURNS text LANGUAGE plpgsql AS
	$$BEGIN
		IF z = 'busy' THEN
			RAISE 'later' USING ERRCODE = '40001';
		END IF;
		RETURN z::int;
	END$$;
SQL
change('mend', q({"drop_column": {"table": "mend", "column": "old",
	"down": "convert(z)"}}),
	q({"drop_column": {"table": "mend", "column": "per", "down": "100 / q"}}),
	q({"drop_column": {"table": "mend", "column": "gone", "down": "z"}}));
expand('mend');

sub marks
{
	return $node->safe_psql(<<'SQL');
SELECT string_agg(concat_ws(':', m.id, old, per, (SELECT value FROM
	jsonb_each_text(to_jsonb(m)) WHERE key ~ 'undo.*old$')), ' ' ORDER BY id)
FROM mend m
SQL
}
$node->safe_psql('UPDATE public_mend.mend SET q = 5 WHERE id = 0');
is(marks(), '0:1:100', 'what could not have been derived was not');
contract('mend', '1h');
my $writer = $node->session;
$writer->query(q{INSERT INTO public_mend.mend VALUES (1, 'abc', 1), (2, 'abc', 1)});
is($writer->errors, '', 'values that the old version cannot have');
$writer->query(q{UPDATE public_mend.mend SET z = '5' WHERE id = 1;
	UPDATE mend SET old = 'given' WHERE id = 2});
is($writer->errors . marks(), '0:1:100 1:5:100 2:given:100',
	'until another one is written');
$writer->query(q{INSERT INTO public_mend.mend VALUES (3, 'busy', 1)});
like($writer->errors, qr/later/, 'what may succeed later is an error');
$node->safe_psql('ALTER FUNCTION convert(text) RENAME TO hidden');
my $other = $node->session;
foreach my $session ($writer, $other)
{
	$session->query(q{DELETE FROM public_mend.mend WHERE id > 0;
		INSERT INTO public_mend.mend VALUES (4, '4', 1)});
	like($session->errors . marks(),
		qr/^0:1:100 4:100:function convert\(text\) does not exist$/,
		'a function that is not there is none');
}
$node->safe_psql(q{ALTER FUNCTION hidden(text) RENAME TO convert;
	ALTER TABLE mend RENAME gone TO away});
foreach my $session ($writer, $other)
{
	$session->query(q{DELETE FROM public_mend.mend WHERE id > 0;
		INSERT INTO public_mend.mend VALUES (5, '5', 1)});
	is($session->errors . marks(), '0:1:100 5:5:100',
		'nor a column of the old version that somebody has renamed');
}
$node->safe_psql('ALTER TABLE mend RENAME away TO gone');
contract('mend', 0);

#
# Views of several versions: nobody waits for the table behind us while we wait
# for a view
#
$node->safe_psql('ALTER TABLE item ADD amount int; CREATE INDEX item_amount ON item (amount)');
change('again', q({"alter_column": {"table": "item", "column": "amount",
	"type": "bigint"}}));
expand('again');
my $holder = $node->session;
$holder->query(q{BEGIN; COMMENT ON VIEW public_again.item IS 'held'});
my $caller = $node->session;
$caller->send(calls('contract', 'again'));
ok( $node->poll_query_until(<<'SQL'),
SELECT count(*) > 0 FROM pg_locks w WHERE NOT granted
	AND relation = 'public_again.item'::regclass AND NOT EXISTS (
	SELECT FROM pg_locks g WHERE g.pid = w.pid AND g.granted
		AND g.relation = 'item'::regclass AND g.mode = 'AccessExclusiveLock')
SQL
	'views are locked before the table');

# who cancels the worker while it rests does not end it
my $pid = $node->safe_psql(q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'pg_bluegreen change'});
$node->safe_psql(<<"SQL");
DO \$\$ DECLARE waits boolean; BEGIN
	FOR i IN 1 .. 3 LOOP
		FOREACH waits IN ARRAY ARRAY[true, false] LOOP
			LOOP
				EXIT WHEN waits = EXISTS (SELECT FROM pg_locks
					WHERE pid = $pid AND NOT granted);
				PERFORM pg_sleep(0.005);
			END LOOP;
		END LOOP;
		PERFORM pg_cancel_backend($pid);
	END LOOP;
END \$\$
SQL
is( $node->safe_psql(q{SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen change'}),
	$pid, 'a worker that is cancelled at any time goes on');

# nothing is dropped yet: back
my $second = $node->session;
$second->send(calls('undo', 'again'));
wait_for('again', q{state IN ('undoing', 'undone')},
	'a contract that has dropped nothing can be undone');
$holder->query('COMMIT');
$second->wait;
is($second->errors, '', 'and is');
is(field('again', 'state'), 'undone', 'without a window');
$caller->wait;
like($caller->errors, qr/change "again" is (undoing|undone)/,
	'who waits for it is told');

#
# Indexes of the old column that come or change while the change is expanded
#
expand('again');
$node->safe_psql('CREATE INDEX item_late ON item (amount)');
fails(calls('contract', 'again'),
	qr/"item_late" of table "item" would be lost with the old column/,
	'an index that would be lost');
undo('again');
is(field('again', 'state'), 'undone', 'there is a way back');
$node->safe_psql('DROP INDEX item_late');
expand('again');
$node->safe_psql('REINDEX INDEX CONCURRENTLY item_amount');
contract('again', 0);
is( $node->safe_psql(q{SELECT pg_get_indexdef('item_amount'::regclass),
		(SELECT count(*) FROM pg_class WHERE relname LIKE 'bluegreen\_%')}),
	'CREATE INDEX item_amount ON public.item USING btree (amount)|0',
	'an index that was built anew is replaced all the same');

#
# A step's locks together take no longer than one may
#
$node->safe_psql(q{CREATE TABLE event (id int, PRIMARY KEY (id))
		PARTITION BY RANGE (id)}
	  . join '', map { "; CREATE TABLE event_$_ PARTITION OF event"
		  . " FOR VALUES FROM (${_}0) TO (${_}9)" } 1 .. 3);
change('slow', q({"add_column": {"table": "event", "column": {"name": "v",
	"type": "int", "nullable": true}}}));
my @holders = map { $node->session } 1 .. 3;
foreach my $i (1 .. 3)
{
	my $leaf = "event_$i";
	$holders[ $i - 1 ]->query("BEGIN; LOCK TABLE $leaf IN ROW EXCLUSIVE MODE");
	$holders[ $i - 1 ]->send(<<"SQL");
DO \$\$ BEGIN
	LOOP
		PERFORM FROM pg_locks WHERE NOT granted
			AND relation = '$leaf'::regclass;
		EXIT WHEN FOUND;
		PERFORM pg_sleep(0.01);
	END LOOP;
	PERFORM pg_sleep(0.35);
END \$\$; COMMIT
SQL
}
expand('slow');
$_->wait for @holders;
is( $node->safe_psql(q{SELECT tries > 1 FROM bluegreen.change_step
		WHERE change = 'slow' AND step = 'expand table event'}),
	't', 'locks of three partitions, each soon, but together too late');
undo('slow');

#
# An index of a partitioned table that is not complete
#
change('leaf', q({"create_index": {"name": "event_index", "table": "event",
	"columns": [{"column": "id"}]}}));
$holder->query('BEGIN; LOCK TABLE event_2 IN ROW EXCLUSIVE MODE');
$caller = $node->session;
$caller->send(calls('expand', 'leaf'));
ok( $node->poll_query_until(q{SELECT count(*) = 1 FROM pg_index
		WHERE indrelid = 'event_2'::regclass AND NOT indisvalid}),
	'the index of a partition waits');
$second = $node->session;
$second->send(calls('undo', 'leaf'));
wait_for('leaf', q{state = 'undoing'}, 'it is not wanted any more');
$holder->query('COMMIT');
$second->wait;
is($second->errors, '', 'undone');
is( $node->safe_psql(q{SELECT count(*) FROM pg_class
		WHERE relname LIKE 'bluegreen\_%' OR relname = 'event_index'}),
	'0', 'with the indexes of partitions that were not attached');

#
# Autovacuum does not stop a change; what a backfill waits for
#
$node->safe_psql(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY, v text) WITH (
	autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,
	autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0);
INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i;
DELETE FROM big WHERE id % 4 = 0;
CREATE TABLE brake (why text);
INSERT INTO brake VALUES ('the shop is busy');
SQL

sub vacuum_runs
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$node->poll_query_until(q{SELECT count(*) = 1
			FROM pg_stat_progress_vacuum WHERE relid = 'big'::regclass}),
		$_[0]);
}

sub configure
{
	$node->append_conf(join "\n", map { "bluegreen.backfill_$_" } @_);
	$node->reload;
	return;
}

sub waits_for
{
	my ($pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$node->poll_query_until("SELECT waits_for ~ '$pattern'"
			  . " FROM bluegreen.backfill_progress WHERE change = 'big'"),
		"a backfill waits for $name");
}
vacuum_runs('autovacuum works on the table');
my $log = length $node->log;
configure(q(throttle_query = 'SELECT why FROM public.brake'),
	'batch_time = 1ms', 'yield_to_autovacuum = on');
change('big', q({"alter_column": {"table": "big", "column": "v",
	"type": "varchar(200)"}}));
$node->safe_psql(calls('expand', 'big'), timeout => 200);
ok($node->wait_for_log(qr/canceling autovacuum task/, $log),
	'a change lets autovacuum go away');
waits_for('^the shop is busy$', 'a query of the user');
vacuum_runs('autovacuum again');
waits_for('^autovacuum of .*big, process \d+$', 'autovacuum');
$node->safe_psql(q{UPDATE brake SET why = NULL;
	SELECT pg_create_physical_replication_slot('behind', true);
	SELECT pg_logical_emit_message(false, 'x', repeat('x', 200000))});
configure('max_slot_lag = 64kB');
waits_for('^replication slot "behind", which is behind by ', 'a slot');
configure('yield_to_autovacuum = off', 'max_wal_rate = 64kB');
$node->safe_psql(q{SELECT pg_drop_replication_slot('behind')});
waits_for('^bluegreen.backfill_max_wal_rate$', 'the rate of WAL');
cmp_ok(
	$node->safe_psql(q{SELECT rows FROM bluegreen.backfill_progress
		WHERE change = 'big'}),
	'<', 15000, 'and is not done');
configure('max_wal_rate = 0', q(throttle_query = ''));
expand('big');
is( $node->safe_psql(q{SELECT rows, waits_for IS NULL
		FROM bluegreen.backfill_progress WHERE change = 'big'}),
	'15000|t', 'until nothing speaks against it');
undo('big');
$node->safe_psql('DROP TABLE big');

#
# Roles: the table's owner uses the version, and changes outlive theirs
#
$node->safe_psql(<<'SQL');
CREATE ROLE keeper LOGIN;
CREATE SCHEMA kept AUTHORIZATION keeper;
SET ROLE keeper;
CREATE TABLE kept.thing (id int PRIMARY KEY, v text);
RESET ROLE;
SET search_path = kept;
SELECT bluegreen.create_change('thing', '[{"alter_column": {"table": "thing",
	"column": "v", "type": "varchar(9)"}}]');
SQL
expand('thing');
is( $node->safe_psql(q{SET ROLE keeper;
		INSERT INTO kept_thing.thing VALUES (1, 'mine');
		SELECT v FROM kept_thing.thing}),
	'mine', 'the owner of a table may what others do with his table');
undo('thing');
$node->safe_psql(<<'SQL');
CREATE ROLE gone LOGIN;
GRANT USAGE ON SCHEMA bluegreen TO gone;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO gone;
CREATE SCHEMA his AUTHORIZATION gone;
CREATE TABLE his.thing (id int PRIMARY KEY, v text);
ALTER TABLE his.thing OWNER TO gone;
SET ROLE gone;
SET search_path = his;
SELECT bluegreen.create_change('orphan', '[{"alter_column": {"table": "thing",
	"column": "v", "type": "varchar(9)"}}]');
SQL
fails('SET ROLE gone; ' . calls('expand', 'orphan'),
	qr/permission denied for database postgres\nDETAIL:.*\nHINT:  Use GRANT CREATE ON DATABASE postgres TO gone\./,
	'who cannot create the version\'s schema is told at once');
$node->safe_psql('GRANT CREATE ON DATABASE postgres TO gone');
expand('orphan');
$node->safe_psql('REASSIGN OWNED BY gone TO keeper; DROP OWNED BY gone; DROP ROLE gone');
fails(calls('undo', 'orphan'), qr/owner of change "orphan" was dropped/,
	'what a role has written does not get a superuser\'s rights');
$node->safe_psql(q{SELECT bluegreen.set_change_owner('orphan', 'keeper')});
undo('orphan');
is(field('orphan', q{state || ' ' || owner}), 'undone keeper',
	'but those of a role that he names');
is($node->safe_psql(q{SELECT to_regnamespace('his_orphan') IS NULL}), 't',
	'and can undo it');

#
# What an undo within the window restores
#
my $version = $node->safe_psql('SHOW server_version_num') / 10000;
$node->safe_psql(<<'SQL');
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE quick LOCATION '';
CREATE TABLE room (
	id int PRIMARY KEY,
	code text CONSTRAINT room_must NOT NULL,
	old text NOT NULL CONSTRAINT room_old CHECK (old <> 'is NOT VALID'),
	note text
);
CREATE UNIQUE INDEX room_quick ON room (lower(code)) TABLESPACE quick
	WHERE id > 0;
ALTER TABLE room ADD UNIQUE (code) USING INDEX TABLESPACE quick;
INSERT INTO room SELECT i, i, i, 'n' FROM generate_series(1, 10) i;
CREATE TABLE lamp (id int PRIMARY KEY, room int REFERENCES room);
CREATE INDEX lamp_room ON lamp (room);
SQL
$node->safe_psql(q{ALTER TABLE room ADD during int4range, ADD at int4range,
	ADD UNIQUE (during, at WITHOUT OVERLAPS)}) if $version >= 18;
my @room = (
	q({"alter_column": {"table": "room", "column": "code", "type": "bigint",
		"up": "code::bigint", "down": "code::text"}}),
	q({"drop_column": {"table": "room", "column": "old", "down": "'?'"}}),
	q({"add_column": {"table": "room", "up": "note",
		"column": {"name": "more", "type": "text", "nullable": true}}}),
	q({"create_index": {"table": "room", "name": "room_note",
		"columns": [{"column": "note"}]}}),
	q({"create_table": {"name": "fresh",
		"columns": [{"name": "id", "type": "int", "pk": true}]}}));

sub everything
{
	return catalog() . "\n" . $node->safe_psql(<<'SQL');
SELECT c.relname, s.spcname FROM pg_class c
	JOIN pg_tablespace s ON s.oid = c.reltablespace
	WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1
SQL
}
$before = everything();
change('periods', q({"drop_column": {"table": "room", "column": "during",
	"down": "NULL"}}));
fails(calls('expand', 'periods'), $version >= 18 ?
	qr/"during".*because constraint room_during_at_key on table public.room/ :
	qr/column "during" of table "room" does not exist/,
	'a column of a constraint WITHOUT OVERLAPS stays');
undo('periods');
change('room', @room);
expand('room');
fails('DROP EXTENSION pg_bluegreen',
	qr/schema public_room depends on extension pg_bluegreen/,
	'the extension stays while both versions are served');
contract('room', '1h');
undo('room');
is(everything(), $before, 'constraints are what they were, and where');

#
# What others do to its tables while a change is expanded
#
expand('room');
fails('ALTER TABLE room DROP COLUMN code',
	qr/trigger zz_bluegreen_\d+ on table room depends on column code/,
	'a column that a version needs is not dropped by the way');
$node->safe_psql('ALTER TABLE room DROP COLUMN code CASCADE');
fails('SET bluegreen.revert_window = 0; ' . calls('contract', 'room'),
	qr/column "code" of table "room" does not exist/,
	'if it is dropped with CASCADE, there is no way on');
$node->safe_psql(<<'SQL');
REINDEX INDEX CONCURRENTLY room_note;
ALTER TABLE room RENAME TO chamber;
ALTER TABLE chamber RENAME more TO most;
CREATE TABLE room (id int, more text, bluegreen_is_fine int);
CREATE TABLE stale (mine int);
ALTER TABLE fresh RENAME TO renamed;
ALTER TABLE stale RENAME TO fresh;
SQL
undo('room');
is( $node->safe_psql(<<'SQL'),
SELECT string_agg(c.relname || '.' || a.attname, ' ' ORDER BY 1, a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0
WHERE c.relname IN ('room', 'chamber', 'fresh', 'renamed')
	AND NOT attisdropped AND attname NOT IN ('during', 'at')
GROUP BY c.relname ORDER BY 1;
SELECT to_regclass('room_note') IS NULL;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%bluegreen%';
SQL
	"chamber.id chamber.old chamber.note\nfresh.mine\n"
	  . "room.id room.more room.bluegreen_is_fine\nt\n0",
	'but one back, which drops what the change has made and nothing else');
$node->safe_psql(q{DROP TABLE room, fresh; ALTER TABLE chamber RENAME TO room;
	ALTER TABLE room ADD code text UNIQUE; UPDATE room SET code = id});

# a table that is gone, and one that is recreated while the undo waits for it
change('both', $room[0],
	q({"add_column": {"table": "lamp", "up": "room", "column": {"name": "watt",
		"type": "int", "nullable": true}}}));
expand('both');
$holder->query('BEGIN; LOCK TABLE room, lamp IN SHARE MODE');
$second = $node->session;
$second->send(calls('undo', 'both'));
ok($node->poll_query_until(q{SELECT count(*) > 0 FROM pg_locks
	WHERE NOT granted AND relation IN ('room'::regclass, 'lamp'::regclass)}),
	'an undo waits');
$holder->query('DROP TABLE lamp; CREATE TABLE lamp (id int, watt int); COMMIT');
$second->wait;
is($second->errors, '', 'and goes on');
is( $node->safe_psql(q{SELECT count(watt) FROM lamp;
		SELECT count(*) FROM pg_attribute WHERE attname LIKE 'bluegreen\_%'
		AND attrelid = 'room'::regclass}),
	"0\n0", 'with what is there then');

#
# The same in the window of a contract
#
$node->safe_psql(q{CREATE INDEX lamp_room ON lamp (id);
	CREATE TABLE plug (id int)});
change('late', @room[ 0 .. 1 ], q({"drop_table": {"name": "plug"}}),
	q({"drop_index": {"name": "lamp_room"}}),
	q({"sql": {"up": "SELECT 1 / 0", "onComplete": true}}));
expand('late');
contract('late', '1h');
my $end = 'SET bluegreen.revert_window = 0; ' . calls('contract', 'late');
$node->safe_psql('CREATE INDEX room_late ON room (code)');
fails($end, qr/"room_late" of table "room" would be lost with the old column/,
	'an index that was created in the window is not lost');
$node->safe_psql('DROP INDEX room_late; ALTER TABLE room RENAME old TO older');
fails($end, qr/column "old" of table "room" is "older" now/,
	'a column is known by its number');
$node->safe_psql('ALTER TABLE room DROP COLUMN older CASCADE;
	ALTER TABLE plug RENAME TO socket; CREATE TABLE plug (mine int)');
fails($end, qr/table "public\.plug" is "public\.socket" now/, 'and a table');
$node->safe_psql(q{DROP TABLE socket; DROP INDEX lamp_room; CREATE INDEX lamp_room ON lamp (watt)});
fails($end, qr/index "public\.lamp_room" is not the same as before/,
	'and an index');
fails(q{SELECT bluegreen.skip_step('late')},
	qr/no statements of the document of change "late" have failed/,
	'which cannot be skipped');
$node->safe_psql(q{DROP INDEX lamp_room});
fails($end, qr/division by zero/, 'what is gone is done');
is($node->safe_psql(q{SELECT bluegreen.skip_step('late')}),
	'operation 5: sql', 'statements of the document can be skipped');
contract('late', '0');
is( $node->safe_psql(<<'SQL'),
SELECT count(mine) FROM plug;
SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attname)
	FROM pg_attribute WHERE attrelid = 'room'::regclass AND attnum > 0
	AND NOT attisdropped AND attname NOT IN ('during', 'at');
SELECT count(*) FROM pg_depend WHERE classid = 'pg_namespace'::regclass
	AND refclassid = 'pg_extension'::regclass AND deptype = 'n';
SQL
	"0\ncode bigint, id integer, note text\n0",
	'contracted, and what is new is there');

# undone when a table is gone; not when an old column is, and its trigger with it
$node->safe_psql('UPDATE room SET note = id;
	ALTER TABLE room ADD UNIQUE (note), ADD old text UNIQUE');
change('back',
	q({"drop_column": {"table": "room", "column": "old", "down": "'?' || id"}}),
	q({"alter_column": {"table": "room", "column": "note",
		"type": "varchar(9)"}}), q({"drop_table": {"name": "plug"}}));
expand('back');
contract('back', '1h');
$node->safe_psql(q{DROP TABLE plug; UPDATE room SET note = id});
undo('back');
is( $node->safe_psql(q{SELECT string_agg(conname, ' ' ORDER BY conname)
		FROM pg_constraint WHERE conrelid = 'room'::regclass
		AND contype = 'u' AND conname NOT LIKE '%during%';
	SELECT count(*) FROM pg_attribute WHERE attname LIKE 'bluegreen\_%'
		AND attrelid = 'room'::regclass}),
	"room_code_key room_note_key room_old_key\n0", 'what is there is restored');
change('gone', q({"drop_column": {"table": "room", "column": "old", "down": "'?' || id"}}),
	q({"alter_column": {"table": "room", "column": "note", "type": "varchar(9)"}}));
expand('gone');
contract('gone', '1h');
$node->safe_psql('ALTER TABLE room DROP COLUMN old CASCADE');
fails(q{CALL bluegreen.undo('gone')},
	qr/trigger .* was dropped or disabled.*\nDETAIL:.*\nHINT:  Use CALL bluegreen\.contract\('gone'\) to keep the new version/,
	'nothing kept the old column in step that is left');
contract('gone', 0);
is($node->safe_psql(q{SELECT state FROM bluegreen.change WHERE change = 'gone'}),
	'contracted', 'so the new one is kept');

#
# The window on another server
#
$node->safe_psql(q{CREATE SCHEMA other; CREATE TABLE other.thing (id int);
	SET search_path = other; SELECT bluegreen.create_change('clone',
		'[{"rename_column": {"table": "thing", "from": "id", "to": "no"}}]')});
expand('clone');
change('same', q({"rename_column": {"table": "room", "from": "note",
	"to": "notes"}}));
expand('same');
contract($_, '1h') foreach 'clone', 'same';
$node->safe_psql(q{UPDATE bluegreen.schema_change SET
	revert_until = now() - interval '1 h', revert_server = CASE name
		WHEN 'clone' THEN 'another' ELSE revert_server END
	WHERE state = 'revertible'});
$node->restart;
wait_for('clone', q{state = 'revertible' AND revert_until > now() + '50 min'},
	'on a server that is another one the window begins anew');
wait_for('same', q{state = 'revertible' AND revert_until > now()
	AND revert_until < now() + '6 min'},
	'after a restart there are some minutes left of it');
contract($_, '0') foreach 'clone', 'same';

done_testing();
