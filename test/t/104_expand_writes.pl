# The triggers and the backfill of a change: as whom they run, what code in "up"
# may write, rows that move between partitions, writers that name the other
# version's form.
use strict;
use warnings;

use BlueGreen;
use Test::More;

# both longer than the deadlock_timeout of the session that may get one
my $node = BlueGreen->blue('one', <<'EOF2');
bluegreen.lock_timeout = '20s'
deadlock_timeout = '30s'
EOF2
$node->safe_psql(<<'SQL');
CREATE EXTENSION pg_bluegreen;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
GRANT CREATE ON DATABASE postgres TO app;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bluegreen TO app;
SQL

sub app { return $node->safe_psql($_[0], user => 'app', timeout => 200) }

sub change
{
	my ($name, @operations) = @_;
	app("SELECT bluegreen.create_change('$name', \$\$["
		  . join(', ', @operations) . "]\$\$)");
	return;
}

sub expand_sql
{
	return "CALL bluegreen.expand('$_[0]');"
	  . " CALL bluegreen.wait_for_backfill('$_[0]', '180 s')";
}

sub expand { return app(expand_sql($_[0])) }

sub end { return app("CALL bluegreen.undo('$_[0]')") }

sub fails_with
{
	my ($sql, $pattern, $name, @options) = @_;
	my (undef, undef, $error) = $node->psql($sql, timeout => 200, @options);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($error, $pattern, $name);
}

#
# Code that says it were blocked; the worker tries while the rest goes on
#
app(<<'SQL');
CREATE SCHEMA busy AUTHORIZATION app;
CREATE TABLE busy.tried (id int);
INSERT INTO busy.tried VALUES (1);
CREATE FUNCTION busy.not_now() RETURNS int LANGUAGE plpgsql AS
	$$BEGIN RAISE 'not now' USING ERRCODE = '55P03'; END$$;
SELECT bluegreen.create_change('busy', '[{"add_column": {"table": "tried",
	"up": "busy.not_now()", "column": {"name": "n", "type": "int",
	"nullable": true}}}]', 'busy');
CALL bluegreen.expand('busy');
SQL
$node->poll_query_until(q{SELECT waits_for = 'not now'
	FROM bluegreen.backfill_progress WHERE change = 'busy'});

#
# As whom: the owner of the table that was changed, whose partition it may be
#
app(<<'SQL');
CREATE TABLE part (id int, k int, v text) PARTITION BY LIST (k);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
CREATE FUNCTION whoami() RETURNS text LANGUAGE plpgsql AS
	$$BEGIN RETURN current_user; END$$;
SQL
change('who', q({"add_column": {"table": "part", "up": "whoami()",
	"column": {"name": "who", "type": "text", "nullable": true}}}));
expand('who');
$node->safe_psql(q{CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
	INSERT INTO part VALUES (1, 2); INSERT INTO part_2 VALUES (2, 2)});
is( $node->safe_psql('SELECT tableowner, string_agg(DISTINCT who, $$,$$)
		FROM part, pg_tables WHERE tablename = $$part_2$$ GROUP BY 1'),
	'postgres|app',
	'in a partition of somebody else, code runs as the owner of the table');
app(q{CREATE TABLE part_3 PARTITION OF part FOR VALUES IN (3);
	INSERT INTO part VALUES (3, 3)});
is($node->safe_psql('SELECT who FROM part_3'), 'app',
	'its owner makes partitions as ever');
$node->safe_psql('ALTER TABLE part_2 OWNER TO app');
end('who');

sub give_away { return $node->safe_psql('ALTER TABLE part_2 OWNER TO postgres') }
give_away();
my $differ = qr/partition "part_2" and table "part" belong to different roles/;
fails_with(expand_sql('who'), $differ, 'such a partition is refused',
	user => 'app');
$node->safe_psql('ALTER TABLE part_2 OWNER TO app');
app(q{CALL bluegreen.undo('who'); SELECT bluegreen.pause_backfill('who');
	CALL bluegreen.expand('who')});
give_away();
app('ALTER TABLE part DETACH PARTITION part_3');
fails_with(
	q{SELECT bluegreen.pause_backfill('who', false);
		CALL bluegreen.wait_for_backfill('who', '180 s')},
	$differ, 'also when it is to be filled');
$node->safe_psql('ALTER TABLE part_2 OWNER TO app');
expand('who');
is($node->safe_psql('SELECT count(*) FROM part WHERE who = $$app$$'), '2',
	'filled after all');
is( $node->safe_psql(q{SELECT rows, state FROM bluegreen.backfill_progress
		WHERE relation = 'part_3'::regclass}),
	'0|done',
	'a partition that was detached is left alone');
end('who');

#
# Code in "up" that writes: its triggers, foreign keys and dual writes hold,
# also while rows are filled
#
app(<<'SQL');
CREATE TABLE item (id int PRIMARY KEY);
INSERT INTO item VALUES (1), (2), (3);
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent VALUES (1), (2);
CREATE TABLE seen (id int REFERENCES parent);
CREATE TABLE fired (id int);
CREATE FUNCTION note_fired() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO fired VALUES (new.id); RETURN NULL; END$$;
CREATE TRIGGER fired AFTER INSERT ON seen
	FOR EACH ROW EXECUTE FUNCTION note_fired();
CREATE FUNCTION note_seen(id int) RETURNS text LANGUAGE plpgsql AS
	$$BEGIN
		IF id = 99 THEN
			CREATE TEMPORARY TABLE mine ();
		END IF;
		INSERT INTO seen VALUES (id);
		RETURN id;
	END$$;
SQL
change('seen', q({"add_column": {"table": "item", "up": "note_seen(id)",
	"column": {"name": "note", "type": "text", "nullable": true}}}),
	q({"add_column": {"table": "seen", "up": "NULL::text",
	"column": {"name": "note", "type": "text", "nullable": true}}}));
fails_with(expand_sql('seen'),
	qr/insert or update on table "seen" violates foreign key/,
	'a foreign key of what "up" writes holds', user => 'app');
app('INSERT INTO parent VALUES (3), (4), (99)');
expand('seen');
is( $node->safe_psql('SELECT (SELECT count(*) FROM seen),
		(SELECT count(*) FROM fired), (SELECT count(note) FROM item)'),
	'3|3|3', 'what it writes is stored, and fires triggers');
$node->safe_psql(q{SET session_replication_role = replica;
	INSERT INTO item VALUES (4); INSERT INTO fired VALUES (4);
	INSERT INTO seen VALUES (77)});
is( $node->safe_psql('SELECT (SELECT count(*) FROM seen),
		(SELECT count(*) FROM fired)'),
	'5|5', 'the same where rows are applied, and only for "up"');
fails_with('INSERT INTO item VALUES (99)',
	qr/cannot create temporary table within security-restricted operation/,
	'code of "up" is restricted for its owner as well', user => 'app');
end('seen');

#
# Rows that move to another partition: what an update does not change stays
#
app(<<'SQL');
CREATE TABLE move (id int, k int, c text, b text, d text)
	PARTITION BY LIST (k);
CREATE TABLE move_1 PARTITION OF move FOR VALUES IN (1);
CREATE TABLE move_2 (d text, gone int, b text, c text, k int, id int);
ALTER TABLE move_2 DROP COLUMN gone;
ALTER TABLE move ATTACH PARTITION move_2 FOR VALUES IN (2);
CREATE TABLE move_3 PARTITION OF move FOR VALUES IN (3);
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN new.c = new.c || '!'; RETURN new; END$$;
CREATE TRIGGER aa BEFORE INSERT ON move_3
	FOR EACH ROW EXECUTE FUNCTION shout();
SQL
change('move', q({"alter_column": {"table": "move", "column": "c",
	"type": "int", "up": "length(c) + length(b)",
	"down": "coalesce(repeat('x', c), 'none')"}}),
	q({"drop_column": {"table": "move", "column": "d", "down": "'lost'"}}));
expand('move');

sub moved
{
	my ($id) = @_;
	return app("SELECT o.k, o.c, n.c, o.d FROM move o
		JOIN public_move.move n USING (id) WHERE id = $id");
}
app(q{INSERT INTO move VALUES (1, 1, 'abc', 'b', 'kept');
	UPDATE public_move.move SET b = 'bbb' WHERE id = 1;
	UPDATE public_move.move SET k = 2 WHERE id = 1});
is(moved(1), '2|abc|4|kept', 'the new version moves a row of the old one');
app(q{INSERT INTO public_move.move VALUES (2, 2, 5, 'b'); UPDATE
	public_move.move SET c = NULL WHERE id = 2; UPDATE move SET k = 1 WHERE id = 2});
is(moved(2), '1|none||lost', 'the old version moves one of the new one');
app(q{UPDATE public_move.move SET k = 2, c = 2 WHERE id = 2;
	UPDATE move SET k = 2, c = 'abcd' WHERE id = 1;
	UPDATE move SET k = 1 WHERE id = 1});
is(moved(2), '2|xx|2|lost', 'moved and changed by the new version');
is(moved(1), '1|abcd|7|kept', 'by the old one');
app('UPDATE move SET k = 3 WHERE id = 1');
is(moved(1), '3|abcd!|8|kept', 'what a trigger changes there is served');
app(q{WITH i AS (INSERT INTO public_move.move VALUES (3, 1, 1, 'b'))
	UPDATE public_move.move SET k = 1 WHERE id = 1});
is(moved(1) . ' ' . moved(3), '1|abcd!|8|kept 1|x|1|lost',
	'a statement that moves and inserts');
app(q{UPDATE public_move.move SET c = NULL WHERE id IN (1, 3);
	MERGE INTO move USING (VALUES (1), (4), (3), (5)) v (i) ON id = v.i
	WHEN MATCHED THEN UPDATE SET k = 2
	WHEN NOT MATCHED THEN INSERT VALUES (v.i, 2, 'abc', 'b', 'new')});
is( join(' ', map { moved($_) } 1, 3, 4, 5),
	'2|none||kept 2|none||lost 2|abc|4|new 2|abc|4|new',
	'MERGE that moves and inserts');
end('move');

#
# The setting says one version, the statement is of the other one's form
#
app('CREATE TABLE told (id int, c text)');
change('told', q({"alter_column": {"table": "told", "column": "c",
	"type": "int", "up": "c::int", "down": "c::text"}}));
expand('told');
my $hidden = $node->safe_psql(q{SELECT attname FROM pg_attribute
	WHERE attrelid = 'told'::regclass AND attname LIKE 'bluegreen%'});
app(qq{SET bluegreen.app_version = 'told';
	INSERT INTO told VALUES (1, '5');
	INSERT INTO told ($hidden, id) VALUES (6, 2);
	SET bluegreen.app_version = 'other';
	INSERT INTO public_told.told VALUES (3, 7);
	INSERT INTO told ($hidden, id) VALUES (8, 4);
	RESET bluegreen.app_version;
	INSERT INTO told ($hidden, id) VALUES (9, 5)});
is( app('SELECT string_agg(o.c || n.c, $$ $$ ORDER BY id) FROM told o
		JOIN public_told.told n USING (id)'),
	'55 66 77 88 99', 'nothing that was given is lost');

#
# An expression whose cast writes to the same table
#
app(<<'SQL');
CREATE TABLE nest (id int, c text);
CREATE FUNCTION note_nested(v text) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN
		IF v LIKE 'outer%' THEN
			INSERT INTO public.nest VALUES (2, 'inner');
		END IF;
		RETURN true;
	END$$;
CREATE DOMAIN noted AS text;
CALL bluegreen.undo('told');
SQL
change('nest', q({"alter_column": {"table": "nest", "column": "c",
	"type": "noted", "up": "c || '?'", "down": "rtrim(c, '?')"}}));
expand('nest');
app(q{ALTER DOMAIN noted ADD CHECK (note_nested(VALUE)) NOT VALID;
	INSERT INTO nest VALUES (1, 'outer')});
is( app('SELECT string_agg(id || c, $$ $$ ORDER BY id) FROM public_nest.nest'),
	'1outer? 2inner?', 'each gets its own value');
end('nest');

#
# Casts that fail, that write, that become others while a session goes on
#
app(<<'SQL');
CREATE TABLE cast_it (id int PRIMARY KEY, c text);
CREATE FUNCTION may_divide(v text) RETURNS boolean LANGUAGE sql AS
	$$SELECT 1; SELECT 1 / (9 - length(v)) < 99$$;
CREATE DOMAIN checked AS text;
CREATE DOMAIN later AS text;
CREATE FUNCTION give(text) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
CREATE FUNCTION note_number(v numeric) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN
		IF v = 1234567890.5 THEN
			UPDATE public.number SET k = k, c = '2' WHERE id = 2;
			PERFORM repeat(v::text, 1000);
		END IF;
		RETURN true;
	END$$;
CREATE DOMAIN noted_number AS numeric;
CREATE TABLE number (id int, k int, c text) PARTITION BY LIST (k);
CREATE TABLE number_1 PARTITION OF number FOR VALUES IN (1);
SQL
change('cast', q({"alter_column": {"table": "cast_it", "column": "c",
	"type": "checked", "up": "c || ''", "down": "c || ''"}}),
	q({"add_column": {"table": "cast_it", "up": "c || '!'", "column":
		{"name": "l", "type": "later", "nullable": true}}}),
	q({"add_column": {"table": "cast_it", "up": "give(c)", "column":
		{"name": "g", "type": "text", "nullable": true}}}),
	q({"alter_column": {"table": "number", "column": "c",
		"type": "noted_number", "up": "c", "down": "c::text"}}));
expand('cast');
app('ALTER DOMAIN checked ADD CHECK (may_divide(VALUE)) NOT VALID');
my $going = $node->session;
$going->query(q{INSERT INTO cast_it VALUES (1, 'one');
	BEGIN; INSERT INTO cast_it VALUES (2, 'two'); SAVEPOINT a});
is($going->errors, '', 'casts that succeed');
$going->query(q{INSERT INTO cast_it VALUES (3, 'ninechars')});
like($going->errors, qr/division by zero/, 'one fails');
$going->query(q{ROLLBACK TO a; INSERT INTO cast_it VALUES (4, 'four');
	INSERT INTO cast_it VALUES (5, 'five'); COMMIT});
is($going->errors, '', 'and the next ones do not');
app('ALTER DOMAIN later ADD CHECK (VALUE <> $$six!$$)');
$going->query(q{INSERT INTO cast_it VALUES (6, 'six')});
like($going->errors, qr/violates check constraint "later_check"/,
	'a check that the type has got');
app(q{DROP FUNCTION give; CREATE FUNCTION give(text) RETURNS text
	LANGUAGE plpgsql AS $$BEGIN RETURN 'text'; END$$});
$going->query(q{INSERT INTO cast_it VALUES (7, 'seven')});
is($going->errors, '', 'a function that gives another type now');
is( app('SELECT string_agg(concat_ws($$ $$, id, n.c, l, g), $$,$$ ORDER BY id)
		FROM public_cast.cast_it n'),
	'1 one one! 1,2 two two! 1,4 four four! 1,5 five five! 1,7 seven seven! text',
	'each has its value');
app(q{INSERT INTO number VALUES (2, 1, '0');
	ALTER DOMAIN noted_number ADD CHECK (note_number(VALUE)) NOT VALID;
	INSERT INTO number VALUES (1, 1, '1234567890.5')});
is( app('SELECT string_agg(id || $$ $$ || c, $$,$$ ORDER BY id)
		FROM public_cast.number'),
	'1 1234567890.5,2 2', 'a cast that updates a row of the same partition');
end('cast');

#
# A setting that "up" has made does not outlast its error
#
$node->safe_psql('GRANT SET ON PARAMETER session_replication_role TO app');
app(<<'SQL');
CREATE TABLE applied (id int);
CREATE FUNCTION set_role(i int) RETURNS int LANGUAGE plpgsql
	SET session_replication_role = replica AS
	$$BEGIN RETURN 1 / i; END$$;
SQL
change('applied', q({"add_column": {"table": "applied", "up": "set_role(id)",
	"column": {"name": "r", "type": "int", "nullable": true}}}));
expand('applied');
$going->query(q{SET session_replication_role = replica});
$going->query('INSERT INTO applied VALUES (0)');
like($going->errors, qr/division by zero/, 'an error');
is($going->query('SHOW session_replication_role'), 'replica',
	'in a session that applies, which goes on to');
end('applied');

#
# Rows that a trigger keeps from moving
#
app(<<'SQL');
CREATE TABLE stay (id int, k int, c text, PRIMARY KEY (id, k))
	PARTITION BY LIST (k);
CREATE TABLE stay_1 PARTITION OF stay FOR VALUES IN (1);
CREATE TABLE stay_2 PARTITION OF stay FOR VALUES IN (2);
CREATE TABLE stay_3 PARTITION OF stay FOR VALUES IN (3);
INSERT INTO stay VALUES (1, 1, 'same'), (2, 2, 'same');
CREATE FUNCTION stop_it() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN
		IF TG_OP = 'DELETE' OR new.id < 3 THEN
			RETURN NULL;
		END IF;
		RETURN new;
	END$$;
CREATE TRIGGER stop_it BEFORE DELETE ON stay_1
	FOR EACH ROW EXECUTE FUNCTION stop_it();
CREATE TRIGGER stop_it BEFORE INSERT ON stay_3
	FOR EACH ROW EXECUTE FUNCTION stop_it();
SQL
change('stay', q({"alter_column": {"table": "stay", "column": "c",
	"type": "text", "up": "c || '!'", "down": "rtrim(c, '!')"}}));
expand('stay');
foreach my $id (1, 2)
{
	app("MERGE INTO stay USING (VALUES ($id), ($id + 2)) v (i) ON id = v.i
		WHEN MATCHED THEN UPDATE SET k = 3
		WHEN NOT MATCHED THEN INSERT VALUES (v.i, 3, 'same')");
}
is( app('SELECT string_agg(concat_ws($$ $$, id, k, c), $$,$$ ORDER BY id)
		FROM public_stay.stay'),
	'1 1 same!,3 3 same!,4 3 same!',
	'the rows that are inserted after them are no moved ones');
end('stay');

#
# Deadlocks of a range with a writer
#
app(<<'SQL');
CREATE TABLE gate (id int);
CREATE TABLE dead (id int, v int);
INSERT INTO dead SELECT i, i FROM generate_series(1, 3) i;
CREATE FUNCTION wait_at(i int) RETURNS int LANGUAGE plpgsql AS
	$$BEGIN
		WHILE i = 2 AND NOT EXISTS (SELECT FROM gate) LOOP
			PERFORM pg_sleep(0.01);
		END LOOP;
		RETURN i;
	END$$;
SQL
change('dead', q({"add_column": {"table": "dead", "up": "wait_at(id)",
	"column": {"name": "w", "type": "int", "nullable": true}}}));
my $writer = $node->session;
$writer->query(q{SET deadlock_timeout = '2s'});
app(q{SELECT bluegreen.pause_backfill('dead');
	CALL bluegreen.expand('dead')});
$writer->query('BEGIN; UPDATE dead SET v = 0 WHERE id = 3');
app(q{SELECT bluegreen.pause_backfill('dead', false)});
$node->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
	WHERE wait_event = 'PgSleep'});
$writer->send('UPDATE dead SET v = 0 WHERE id = 1');
$node->poll_query_until('SELECT wait_event_type = $$Lock$$'
	  . ' FROM pg_stat_activity WHERE pid = ' . $writer->pid);
app('INSERT INTO gate VALUES (1)');
$writer->wait;
is($writer->errors, '', 'it is not the application that gets a deadlock');
$writer->query('COMMIT');
is($writer->errors, '', 'which goes on');
app(q{CALL bluegreen.wait_for_backfill('dead', '180 s')});
is(app('SELECT count(w) FROM dead'), '3', 'and so does the backfill');

ok( $node->poll_query_until(q{SELECT error = 'not now' FROM bluegreen.change
		WHERE change = 'busy'}),
	'code that says that it were blocked, but never succeeds, is told');

#
# A server without the library
#
$node->append_conf(q{shared_preload_libraries = ''});
$node->restart;
fails_with('INSERT INTO dead VALUES (4)',
	qr/pg_bluegreen is not in "shared_preload_libraries"/,
	'no row is written while nobody knows who writes');

done_testing();
