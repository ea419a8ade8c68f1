# Changes in bad company: locks that are held, kills, rewrites, writers of both
# versions all the time.
use strict;
use warnings;

use BlueGreen;
use Test::More;
use Time::HiRes 'time';

my $node = BlueGreen->blue('one', <<'EOF2');
bluegreen.lock_timeout = '200ms'
bluegreen.backfill_batch_time = '10ms'
EOF2
$node->safe_psql('CREATE EXTENSION pg_bluegreen');
$node->safe_psql(<<'SQL');
CREATE TABLE item (id int PRIMARY KEY, price numeric NOT NULL, note text);
INSERT INTO item SELECT i, i, repeat('x', 100) FROM generate_series(1, 60000) i;
SQL

sub change
{
	my ($name, $operations) = @_;
	$node->safe_psql("SELECT bluegreen.create_change('$name', \$\$$operations\$\$)");
	return;
}

sub field
{
	my ($name, $column) = @_;
	return $node->safe_psql(
		"SELECT $column FROM bluegreen.change WHERE change = '$name'");
}

sub filled
{
	return $node->safe_psql(
		"SELECT $_[0] FROM bluegreen.backfill_progress WHERE change = '$_[1]'");
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

sub rate
{
	my ($rate) = @_;
	$node->append_conf("bluegreen.backfill_rate = $rate");
	$node->reload;
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

my $cents = q([{"alter_column": {"table": "item", "column": "price",
	"type": "bigint", "up": "(price * 100)::bigint",
	"down": "price / 100.0"}}]);
change('cents', $cents);

#
# Somebody holds the table
#
my $idle = $node->session;
$idle->query('BEGIN; SELECT count(*) FROM item');
my $caller = $node->session;
$caller->send(calls('expand', 'cents'));
wait_for('cents', q{waits_for ~ '^process \d+ \(postgres, idle in transaction\)'},
	'a change that waits says for whom');
my $longest = 0;
my $until = time + 3;
while (time < $until)
{
	my $begin = time;
	$node->safe_psql('SELECT price FROM item WHERE id = 1');
	$longest = time - $begin if time - $begin > $longest;
}
cmp_ok($longest, '<', 2, 'nobody waits behind it for long');
note("longest: $longest s");
is( $node->safe_psql(q{SELECT count(*) > 0 FROM bluegreen.event
		WHERE kind = 'blocked' AND message LIKE 'change "cents": expand table item waits for process%'}),
	't', 'and there is an event');
ok( $node->poll_query_until(q{SELECT tries > 2 FROM bluegreen.change_step
		WHERE change = 'cents' AND number = 1}),
	'it tries again and again');
rate(4000);
$idle->query('COMMIT');
$caller->wait;
is($caller->errors, '', 'and succeeds when the other has ended');
is(field('cents', 'state'), 'backfilling', 'rows are being filled');

#
# Killed while rows are filled: the change goes on by itself
#
ok($node->poll_query_until(
	'SELECT rows > 2000 FROM bluegreen.backfill_progress'), 'some are');
kill9_worker($node, 'bluegreen change');
my $rows = filled('rows', 'cents');
is(field('cents', 'state'), 'backfilling', 'killed while rows are filled');
my $wait = $node->session;
$wait->send("CALL bluegreen.wait_for_backfill('cents', '180 s')");
my $second = $node->session;
$second->send("CALL bluegreen.wait_for_backfill('cents', '180 s')");
ok($node->poll_query_until(
	"SELECT rows > $rows FROM bluegreen.backfill_progress"), 'it goes on');
cmp_ok(filled('next_block', 'cents'), '>', 0, 'where it was');

# paused
$node->safe_psql(q{SELECT bluegreen.pause_backfill('cents')});
wait_for('cents', q{waits_for = 'bluegreen.pause_backfill()'}, 'paused');
$rows = filled('rows', 'cents');

# rows that move to another file, rows that are locked
$node->safe_psql('VACUUM FULL item', timeout => 180);
my $locker = $node->session;
$locker->query(q{BEGIN; UPDATE item SET note = 'locked' WHERE id = 60000});
rate(0);
$node->safe_psql(q{SELECT bluegreen.pause_backfill('cents', false)});
ok($node->poll_query_until(
	"SELECT rows > $rows FROM bluegreen.backfill_progress"), 'and going on');
wait_for('cents', q{waits_for = 'a lock'}, 'a locked row is waited for');
is($locker->query('UPDATE item SET note = note WHERE id = 1; COMMIT')
	  . $locker->errors, '', 'who has it is not disturbed');
$wait->wait;
$second->wait;
is($wait->errors . $second->errors, '', 'two callers wait for the same');
is(field('cents', 'state'), 'expanded', 'expanded');
is( $node->safe_psql(q{SELECT count(*) FILTER (WHERE n.price = o.price * 100),
		count(*) FROM item o JOIN public_cents.item n USING (id)}),
	'60000|60000', 'every row is filled and right');
cmp_ok(filled('rows', 'cents'), '<=', 60000, 'and written once at most');
is(filled('percent, state, eta', 'cents'), '100|done|00:00:00', 'progress');

#
# Both versions write all the time, while it is undone, expanded, contracted
#
my $old = pgbench_start($node, name => 'old version', clients => 2, script => <<'SQL');
\set id random(1, 60000)
\set p random(1, 100000)
UPDATE public.item SET price = :p WHERE id = :id;
SELECT price FROM public.item WHERE id = :id;
SQL
my $new = pgbench_start($node, name => 'new version', clients => 2, script => <<'SQL');
\set id random(1, 60000)
\set p random(1, 100000)
UPDATE public_cents.item SET price = :p * 100 WHERE id = :id;
INSERT INTO public_cents.item (id, price) VALUES (:id, :p)
	ON CONFLICT (id) DO UPDATE SET price = excluded.price * 100;
SQL
$node->poll_query_until('SELECT count(*) > 1000 FROM item WHERE price <> id');
ok(pgbench_stop($new), 'no error of the new version');
is( $node->safe_psql(q{SELECT count(*) FROM item o
		JOIN public_cents.item n USING (id) WHERE n.price <> o.price * 100}),
	'0', 'both see the same');
$node->safe_psql(calls('undo', 'cents'), timeout => 200);
is( $node->safe_psql(q{SELECT count(*) FROM pg_attribute
		WHERE attrelid = 'item'::regclass AND attname LIKE 'bluegreen%'}),
	'0', 'undone under load');
expand('cents');
is( $node->safe_psql(q{SELECT count(*) FROM item o
		JOIN public_cents.item n USING (id) WHERE n.price <> o.price * 100
		OR n.price IS NULL}),
	'0', 'expanded under load: nothing was lost');
ok(pgbench_stop($old), 'no error of the old version');
$new = pgbench_start($node, name => 'new version', clients => 2, script => <<'SQL');
\set id random(1, 60000)
\set p random(1, 100000)
UPDATE public_cents.item SET price = :p * 100 WHERE id = :id;
SELECT price FROM public_cents.item WHERE id = :id;
SQL
$node->safe_psql("SET bluegreen.revert_window = '1h'; "
	  . calls('contract', 'cents'), timeout => 200);
$old = pgbench_start($node, name => 'old version', clients => 1, script => <<'SQL');
\set id random(1, 60000)
\set p random(1, 100000)
UPDATE public.item SET price = :p WHERE id = :id;
SQL
$node->poll_query_until(q{SELECT count(*) > 0 FROM public_cents.item
	WHERE price <> id * 100});
ok(pgbench_stop($new), 'retired while the new version works, without error');
is( $node->safe_psql(q{SELECT count(*) FROM item o
		JOIN public_cents.item n USING (id) WHERE n.price <> o.price * 100
		OR n.price IS NULL OR o.price IS NULL}),
	'0', 'and old values are kept in step');
$node->safe_psql(calls('undo', 'cents'), timeout => 200);
ok(pgbench_stop($old), 'undone while the old version works, without error');
is( $node->safe_psql(q{SELECT attnotnull, (SELECT count(*) FROM item)
		FROM pg_attribute WHERE attrelid = 'item'::regclass
		AND attname = 'price'}),
	't|60000', 'and what was relaxed is not any more');
expand('cents');
$new = pgbench_start($node, name => 'new version', clients => 2, script => <<'SQL');
\set id random(1, 60000)
\set p random(1, 100000)
UPDATE public_cents.item SET price = :p * 100 WHERE id = :id;
SELECT price FROM public_cents.item WHERE id = :id;
SQL
$node->safe_psql(calls('contract', 'cents'), timeout => 200);
ok(pgbench_stop($new), 'contracted while the new version works, without error');
is( $node->safe_psql(q{SELECT string_agg(attname || ' ' || atttypid::regtype,
		', ' ORDER BY attname) FROM pg_attribute
		WHERE attrelid = 'item'::regclass AND attnum > 0
		AND NOT attisdropped}),
	'id integer, note text, price bigint', 'contracted');

#
# Killed in every other state
#
change('kill', q([{"alter_column": {"table": "item", "column": "note",
	"type": "varchar(200)", "nullable": false,
	"up": "coalesce(note, '')", "down": "note"}},
	{"create_index": {"name": "item_note", "table": "item",
		"columns": [{"column": "note"}]}}]));

# a call that cannot have its lock, killed: it goes on by itself
sub killed
{
	my ($procedure, $state, $name, $end) = @_;
	my $holder = $node->session;
	$holder->query('BEGIN; LOCK TABLE item IN ROW EXCLUSIVE MODE');
	my $session = $node->session;
	$session->send($procedure =~ /^CALL|;/ ? $procedure :
		  calls($procedure, $name));
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for($name, "state = '$state' AND waits_for IS NOT NULL",
		"$state, and waiting");
	kill9_worker($node, 'bluegreen change');
	wait_for($name, "state = '$end'", "killed while $state, then $end");
	return;
}
killed('expand', 'expanding', 'kill', 'expanded');
killed('undo', 'undoing', 'kill', 'undone');

# now held up where constraints are added: the backfill is done by then
$node->safe_psql(q{SELECT bluegreen.pause_backfill('kill')});
$node->safe_psql(calls('expand', 'kill'), timeout => 200);
my $holder = $node->session;
$holder->query('BEGIN; SELECT id FROM item LIMIT 1');
$node->safe_psql(q{SELECT bluegreen.pause_backfill('kill', false)});
wait_for('kill', q{state = 'validating' AND waits_for IS NOT NULL},
	'held up while constraints are added');
$node->kill9;
$node->start;
wait_for('kill', q{state = 'expanded'},
	'the server killed while validating, then expanded');

# a contract that can be undone
my $window = q{SET bluegreen.revert_window = '1h'; } . calls('contract', 'kill');
killed($window, 'retiring', 'kill', 'revertible');
killed('undo', 'reverting', 'kill', 'undone');
expand('kill');
$node->safe_psql($window, timeout => 200);
is(field('kill', 'state'), 'revertible', 'contracted for a while');

# a statement that kills its worker each time, and a server that is too small
$node->safe_psql(<<'SQL');
CREATE SCHEMA other;
SELECT bluegreen.create_change('crash',
	'[{"sql": {"up": "SELECT pg_sleep(1000)"}}]', 'other');
SQL
$node->append_conf('max_worker_processes = 4');
$caller = $node->session;
$caller->send(calls('expand', 'crash'));
sub starts
{
	my ($starts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$node->poll_query_until(<<"SQL"), "start $starts of a worker in vain");
SELECT starts = $starts AND EXISTS (SELECT FROM pg_stat_activity
	WHERE application_name = 'bluegreen change ' || id AND state = 'active')
FROM bluegreen.schema_change WHERE name = 'crash'
SQL
}
starts(1);
$node->restart;
starts(2);
is( $node->safe_psql(q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen change'}),
	'2', 'both workers run, where there was room for one at first');
$node->safe_psql(
	q{UPDATE bluegreen.schema_change SET starts = 3 WHERE name = 'crash'});
$node->append_conf('max_worker_processes = 32');
$node->kill9;
$node->start;
wait_for('crash', q{error LIKE '3 workers in a row ended without a word'},
	'a worker that crashes is not started for ever');
$caller = $node->session;
$caller->send(calls('expand', 'crash'));
starts(1);
$node->safe_psql(calls('undo', 'crash'));
is(field('crash', 'state'), 'undone', 'but by who calls, and can be undone');
kill9_worker($node, 'bluegreen change');
ok( $node->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen change'}),
	'killed, a worker waits for the end of the window again');
is(field('kill', 'state'), 'revertible', 'which is not yet');
$node->safe_psql(calls('undo', 'kill'), timeout => 200);
expand('kill');
killed('contract', 'contracting', 'kill', 'contracted');
is( $node->safe_psql(q{SELECT attnotnull, format_type(atttypid, atttypmod)
		FROM pg_attribute WHERE attrelid = 'item'::regclass
		AND attname = 'note'}),
	't|character varying(200)', 'and right');

#
# An index that cannot be built
#
$node->safe_psql(q{CREATE TABLE twin (id int PRIMARY KEY, n int);
	INSERT INTO twin VALUES (1, 1), (2, 1)});
change('one', q([{"alter_column": {"table": "twin", "column": "n",
	"unique": {"name": "twin_n"}, "up": "n", "down": "n"}}]));
my (undef, undef, $error) = $node->psql(calls('expand', 'one')
	  . q{; CALL bluegreen.wait_for_backfill('one')});
like($error, qr/change "one": could not create unique index "bluegreen_\d+_\d+_0_twin_n"/,
	'an index that cannot be built is an error');
is(field('one', 'error_sqlstate'), '23505', 'which the change keeps');
$node->safe_psql('UPDATE twin SET n = 2 WHERE id = 2');
expand('one');
$node->safe_psql(calls('contract', 'one'));
is( $node->safe_psql(q{SELECT contype, (SELECT count(*) FROM pg_index
		WHERE indrelid = 'twin'::regclass)
		FROM pg_constraint WHERE conname = 'twin_n'}),
	'u|2', 'called again, it removes what was left and succeeds');

#
# What undo leaves alone, and what it does not wait for
#
$holder = $node->session;
$holder->query('BEGIN; SELECT * FROM twin');
change('mine', q([{"add_column": {"table": "twin", "column": {"name": "mine",
	"type": "int", "nullable": true}}}]));
$caller = $node->session;
$caller->send(calls('expand', 'mine'));
wait_for('mine', q{state = 'expanding' AND waits_for IS NOT NULL},
	'a step waits');
$node->safe_psql(q{CREATE ROLE boss SUPERUSER LOGIN;
	SELECT bluegreen.set_change_owner('mine', 'boss')});
ok( $node->poll_query_until(q{SELECT usename = 'boss' FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen change'}),
	'for a worker of a new owner, once there is one');
$holder->query('ALTER TABLE twin ADD COLUMN mine text');
my $undo = $node->session;
$undo->send(calls('undo', 'mine'));
wait_for('mine', q{state IN ('undoing', 'undone')},
	'it is not wanted any more');
$holder->query('COMMIT');
$undo->wait;
is($undo->errors, '', 'and undone');
is( $node->safe_psql(q{SELECT atttypid::regtype FROM pg_attribute
		WHERE attrelid = 'twin'::regclass AND attname = 'mine'}),
	'text', 'the column that somebody else has made stays');

$holder->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM item');
change('long', q([{"create_index": {"name": "twin_long", "table": "twin",
	"columns": [{"column": "id"}]}}]));
$caller = $node->session;
$caller->send(calls('expand', 'long'));
ok( $node->poll_query_until(q{SELECT count(*) = 1 FROM pg_index
		WHERE indrelid = 'twin'::regclass AND NOT indisvalid}),
	'an index waits for a snapshot');
$node->safe_psql(calls('undo', 'long'), timeout => 60);
is( $node->safe_psql(
		q{SELECT count(*) FROM pg_class WHERE relname LIKE '%twin_long'}),
	0, 'undo does not wait for it');
$holder->query('COMMIT');

$node->safe_psql('CREATE TABLE gone (id int PRIMARY KEY, a int)');
change('gone', q([{"alter_column": {"table": "gone", "column": "a",
	"type": "text"}}]));
expand('gone');
$node->safe_psql('DROP TABLE gone CASCADE');
$node->safe_psql(calls('undo', 'gone'));
is(field('gone', 'state'), 'undone', 'a table that is gone is passed over');

#
# "up" fails for a row that is there
#
$node->safe_psql(q{CREATE TABLE word (id int PRIMARY KEY, w text);
	INSERT INTO word VALUES (1, '1'), (2, 'two');
	CREATE PUBLICATION words FOR TABLE word;
	CREATE PUBLICATION listed FOR TABLE word (id)});
change('number', q([{"alter_column": {"table": "word", "column": "w",
	"type": "int", "up": "w::int", "down": "w::text"}}]));
(undef, undef, $error) = $node->psql(calls('expand', 'number')
	  . q{; CALL bluegreen.wait_for_backfill('number')});
like($error, qr/change "number": invalid input syntax for type integer: "two"/,
	'a row that "up" cannot convert is an error');
like($error, qr/WARNING:  change "number" may add columns.*\nDETAIL:  table word in publication words\n/,
	'who subscribes to the table has to be told');
$node->safe_psql(q{DELETE FROM word WHERE id = 2});
expand('number');
is($node->safe_psql('SELECT * FROM public_number.word'), '1|1',
	'called again, it goes on');
(undef, undef, $error) = $node->psql(q{CALL bluegreen.wait_for_backfill('kill')});
like($error, qr/change "kill" is contracted/, 'nothing to wait for');

done_testing();
