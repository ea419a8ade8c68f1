# Owners of tables who mean harm: everything of theirs that runs when somebody
# writes to their table tries to get more than they have, on green with the
# rights of the role that applies (a superuser, then one that is granted to),
# on blue with those of the deployment's owner's worker.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
my $port = $green->port;

$blue->safe_psql(q{CREATE SCHEMA lair;
	CREATE TABLE lair.t (id int PRIMARY KEY, v text);});
$green->safe_psql(q{
CREATE ROLE villain LOGIN; CREATE ROLE applier LOGIN PASSWORD 'open sesame';
CREATE TABLE vault (secret text);
INSERT INTO vault VALUES ('treasure');
GRANT SELECT, INSERT ON vault TO applier;
CREATE SCHEMA lair AUTHORIZATION villain;});

# Whoever else touches the table runs its owner's code, too: only he does.
sub villain { return $green->safe_psql($_[0], user => 'villain') }

villain(q{CREATE TABLE lair.log (device text, who text, gained text);

-- does what it can, and says what that was
CREATE FUNCTION lair.try(device text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
	command text;
	gained text := '';
BEGIN
	FOREACH command IN ARRAY ARRAY[
		'ALTER ROLE villain SUPERUSER',
		'INSERT INTO public.vault VALUES (''robbed'')',
		'SELECT secret FROM public.vault',
		'DELETE FROM bluegreen.applied_stream',
		'SELECT bluegreen.begin_apply()',
		'SET ROLE postgres', 'SET ROLE applier', 'RESET ROLE',
		'SET SESSION AUTHORIZATION postgres', 'RESET SESSION AUTHORIZATION',
		'SET session_replication_role = origin',
		'CREATE TEMPORARY TABLE trap (i integer)',
		'DECLARE trap CURSOR WITH HOLD FOR SELECT lair.try(''cursor'')',
		'PREPARE trap AS SELECT 1', 'LISTEN trap']
	LOOP
		BEGIN
			EXECUTE command;
			gained := gained || command || '; ';
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
	SET search_path = lair, pg_catalog;
	-- not what happens in his own sessions
	IF session_user <> 'villain' THEN
		INSERT INTO lair.log VALUES (device, current_user, gained);
	END IF;
	RETURN 1;
END $$;
-- where only IMMUTABLE functions may stand
CREATE FUNCTION lair.try_at_all(device text) RETURNS integer IMMUTABLE
	LANGUAGE plpgsql AS 'BEGIN RETURN lair.try(device); END';
CREATE FUNCTION lair.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM lair.try(TG_NAME);
	RETURN NEW;
END $$;

CREATE DOMAIN lair.word AS text CHECK (lair.try_at_all('domain') = 1);
CREATE TYPE lair.mood AS ENUM ('bad', 'worse');
CREATE FUNCTION lair.look(lair.mood) RETURNS json LANGUAGE plpgsql AS
	$$ BEGIN PERFORM lair.try('cast'); RETURN '"mood"'; END $$;
CREATE CAST (lair.mood AS json) WITH FUNCTION lair.look(lair.mood);
CREATE TABLE lair.t (id int PRIMARY KEY, v lair.word,
	d int DEFAULT lair.try('default'),
	m lair.mood DEFAULT 'bad',
	g int GENERATED ALWAYS AS (lair.try_at_all('generated') + id) STORED,
	CHECK (lair.try_at_all('check') = 1));
CREATE INDEX ON lair.t ((lair.try_at_all('index expression') + id));
CREATE INDEX ON lair.t (id) WHERE lair.try_at_all('index predicate') + id > 0;
CREATE TRIGGER "row trigger" BEFORE INSERT ON lair.t
	FOR EACH ROW EXECUTE FUNCTION lair.fire();
CREATE TRIGGER "statement trigger" AFTER INSERT ON lair.t
	EXECUTE FUNCTION lair.fire();
CREATE CONSTRAINT TRIGGER "deferred trigger" AFTER INSERT ON lair.t
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION lair.fire();
CREATE TRIGGER "truncate trigger" BEFORE TRUNCATE ON lair.t
	EXECUTE FUNCTION lair.fire();
ALTER TABLE lair.t ENABLE ALWAYS TRIGGER "row trigger";
ALTER TABLE lair.t ENABLE REPLICA TRIGGER "statement trigger";
ALTER TABLE lair.t ENABLE ALWAYS TRIGGER "deferred trigger";
ALTER TABLE lair.t ENABLE ALWAYS TRIGGER "truncate trigger";
CREATE POLICY p ON lair.t USING (lair.try('policy') = 2);
ALTER TABLE lair.t ENABLE ROW LEVEL SECURITY;});
$green->safe_psql(q{SELECT bluegreen.grant_apply('applier', 'lair.t')});
$green->require_password('applier');

sub refused
{
	my ($sql, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, undef, $error) = $blue->psql($sql);
	return like($status ? $error : 'no error', $pattern, $name);
}

sub same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $rows = 'SELECT id, v::text FROM lair.t ORDER BY id';
	return is(villain($rows), $blue->safe_psql($rows), $name);
}

sub devices
{
	return villain(q{SELECT string_agg(DISTINCT device, ', ' ORDER BY device)
		FROM lair.log WHERE device <> 'index predicate'});
}

foreach my $user (qw(postgres applier))
{
	villain('TRUNCATE lair.t; TRUNCATE lair.log');
	$green->safe_psql('DELETE FROM bluegreen.conflict_log');
	$blue->safe_psql("TRUNCATE lair.t;
		INSERT INTO lair.t SELECT i, i FROM generate_series(1, 5) i;
		ALTER USER MAPPING FOR CURRENT_USER SERVER green
			OPTIONS (SET user '$user', SET password 'open sesame');
		SELECT bluegreen.create_deployment('d', 'green');
		SELECT bluegreen.map_table('d', 'lair.t');
		CALL bluegreen.start('d')");
	wait_for_sync('d');
	same("$user: the copy has all rows");
	is(devices(),
		'check, default, deferred trigger, domain, generated,'
		  . ' index expression, row trigger, statement trigger',
		"$user: the copy runs the owner's code");
	villain('TRUNCATE lair.log');

	$blue->safe_psql(q{INSERT INTO lair.t VALUES (6, 'six'), (7, 'seven');
		UPDATE lair.t SET v = 'one' WHERE id = 1;
		DELETE FROM lair.t WHERE id = 2;
		UPDATE lair.t SET id = 30 WHERE id = 3});
	wait_for_sync('d');
	same("$user: and the stream every change");
	villain(
		q{INSERT INTO lair.t (id, v) VALUES (8, 'mine'); TRUNCATE lair.log});
	$blue->safe_psql(q{INSERT INTO lair.t VALUES (8, 'yours')});
	wait_for_sync('d');
	is( $green->safe_psql(q{SELECT existing::jsonb ->> 'm'
			FROM bluegreen.conflict}),
		'mood',
		"$user: a conflict shows the row as its owner's casts do");
	$blue->safe_psql(q{TRUNCATE lair.t; INSERT INTO lair.t VALUES (1, 'x')});
	wait_for_sync('d');
	same("$user: TRUNCATE");
	is(devices(),
		'cast, check, default, deferred trigger, domain, generated,'
		  . ' index expression, row trigger, statement trigger,'
		  . ' truncate trigger',
		"$user: all of it runs the owner's code");
	is($green->safe_psql('SELECT DISTINCT who FROM lair.log'),
		'villain', "$user: with the owner's rights");
	is($green->safe_psql('SELECT DISTINCT gained FROM lair.log'),
		'', "$user: and gains nothing");
	is( $green->safe_psql(q{SELECT (SELECT string_agg(secret, ' ') FROM vault),
			rolsuper FROM pg_roles WHERE rolname = 'villain'}),
		'treasure|f',
		"$user: nothing is robbed");

	# what would redirect or filter changes is refused
	foreach my $case (
		[
			'ALTER TABLE lair.t FORCE ROW LEVEL SECURITY',
			'ALTER TABLE lair.t NO FORCE ROW LEVEL SECURITY',
			'Row-level security is forced'
		],
		[
			q{CREATE RULE r AS ON INSERT TO lair.t DO INSTEAD NOTHING;
			ALTER TABLE lair.t ENABLE ALWAYS RULE r},
			'DROP RULE r ON lair.t', 'It has a rule that fires'
		])
	{
		my ($do, $undo, $detail) = @$case;
		villain($do);
		$blue->safe_psql('INSERT INTO lair.t SELECT max(id) + 1 FROM lair.t');
		ok( $blue->poll_query_until(
				"SELECT state = 'error' AND error_detail ~ '$detail'"
				  . ' FROM bluegreen.stat_stream'),
			"$user: the stream stops: $detail");
		villain($undo);
		$blue->safe_psql(q{CALL bluegreen.start('d')});
		wait_for_sync('d');
		same("$user: and loses nothing");
	}
	$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
}

#
# The owner is safe from the role that applies, too
#
sub as_applier
{
	my ($sql, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, undef, $error) = $green->psql(
		qq{SELECT bluegreen.begin_apply();
		CREATE TEMPORARY TABLE loot AS SELECT 'bad'::kit.mood AS m;
		CREATE TEMPORARY TABLE sack AS SELECT '{bad}'::kit.mood[] AS m;
		CREATE TEMPORARY TABLE trap (m kit.mood);
		CREATE TRIGGER x AFTER INSERT ON trap REFERENCING NEW TABLE AS n
			EXECUTE FUNCTION kit.catch();
		ALTER TABLE trap ENABLE ALWAYS TRIGGER x;
		$sql}, user => 'applier');
	return like($error, $pattern, $name);
}
$green->safe_psql(q{SET ROLE villain; CREATE TABLE lair.diary (line text);
	CREATE TABLE lair.p (id int PRIMARY KEY, v text);
	RESET ROLE; SELECT bluegreen.grant_apply('applier', 'lair.p');
	CREATE SCHEMA kit AUTHORIZATION applier; SET ROLE applier;
	CREATE FUNCTION kit.rob() RETURNS void LANGUAGE plpgsql AS
		'BEGIN DROP TABLE lair.diary; END';
	CREATE FUNCTION kit.spy(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
		'BEGIN PERFORM kit.rob(); RETURN $1; END';
	CREATE FUNCTION kit.write() RETURNS void LANGUAGE sql BEGIN ATOMIC
		INSERT INTO lair.p SELECT kit.spy(1); END;
	CREATE DOMAIN kit.d AS int CHECK (kit.spy(VALUE) > 0);
	CREATE VIEW kit.v AS SELECT id, kit.spy(id) AS s FROM lair.p;
	CREATE TABLE kit.t (id int);
	CREATE FUNCTION kit.fire() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN DROP TABLE lair.diary; RETURN NEW; END';
	CREATE TYPE kit.mood AS ENUM ('bad');
	CREATE FUNCTION kit.look(kit.mood) RETURNS json LANGUAGE plpgsql AS
		$$ BEGIN PERFORM kit.rob(); RETURN '"mood"'; END $$;
	CREATE CAST (kit.mood AS json) WITH FUNCTION kit.look(kit.mood);
	CREATE FUNCTION kit.catch() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN PERFORM to_jsonb(n) FROM n LEFT JOIN lair.p ON true;
		RETURN NULL; END';
	GRANT USAGE ON SCHEMA kit TO PUBLIC;
	CREATE TRIGGER x BEFORE INSERT ON kit.t FOR EACH ROW
		EXECUTE FUNCTION kit.fire();
	ALTER TABLE kit.t ENABLE ALWAYS TRIGGER x;});
# it may send what it likes, and is asked for a password no longer
$green->safe_psql('ALTER ROLE applier PASSWORD NULL');
my $hba = $green->data_dir . '/pg_hba.conf';
my $rules = BlueGreen::Node::slurp($hba) =~ s/^host all applier.*\n//r;
open my $out, '>', $hba or die;
print $out $rules;
close $out;
$green->reload;
ok($green->poll_query_until('SELECT count(*) FROM pg_hba_file_rules'
			. " WHERE 'applier' = ANY (user_name)", '0'), 'no password');
foreach my $case (
	['INSERT INTO lair.p SELECT kit.spy(1)', 'function kit.spy\(integer\)'],
	['INSERT INTO lair.p VALUES (1::kit.d)', 'type kit.d'],
	[
		q{INSERT INTO lair.p VALUES (1, query_to_xml('TABLE lair.diary', true,
			true, ''))},
		'function query_to_xml'
	],
	[
		q{INSERT INTO lair.p VALUES (1, set_config('role', 'villain', false))},
		'function set_config'
	],
	[ 'INSERT INTO kit.t SELECT id FROM lair.p', 'table "t" cannot be used' ],
	[
		'INSERT INTO lair.p SELECT p.id FROM lair.p, kit.v',
		'table "v" cannot be used'
	],
	[ 'INSERT INTO lair.p SELECT 1, line FROM lair.diary', 'lair.diary' ],
	[ 'COPY lair.p FROM STDIN WHERE kit.spy(id) > 0', 'can only COPY' ],
	[ 'TRUNCATE lair.p CASCADE', 'CASCADE' ],
	[
		'SELECT to_jsonb(loot.m) FROM loot LEFT JOIN lair.p ON true',
		'type kit.mood'
	],
	[ 'SELECT to_jsonb(loot) FROM loot LEFT JOIN lair.p ON true', 'type' ],
	[
		q{SELECT to_jsonb(j) FROM (loot LEFT JOIN lair.p ON true) AS j},
		'type kit.mood'
	],
	[
		q{WITH d AS (DELETE FROM lair.p RETURNING ctid),
			l AS (SELECT m[1] FROM sack)
			SELECT to_jsonb(l) FROM l LEFT JOIN d ON true},
		'type kit.mood\[\]'
	],
	[
		q{INSERT INTO trap VALUES ('bad')},
		'transition tables and column definition lists'
	],
	[
		q{SELECT to_jsonb(r) FROM lair.p,
			json_to_record('{"m":"bad"}') AS r(m kit.mood)},
		'transition tables and column definition lists'
	],
	[
		q{SELECT bluegreen.image_hash(kit.spy(id)) FROM lair.p},
		'function kit.spy\(integer\)'
	],
	[
		q{SELECT sum(kit.spy(id)) OVER (PARTITION BY id) FROM lair.p},
		'function kit.spy\(integer\)'
	],
	[ 'SELECT kit.write()', 'must be owner of table diary' ],
	[ 'DROP TABLE lair.p', 'must be owner' ],
	[ 'SET ROLE villain', 'permission denied' ])
{
	as_applier($case->[0], qr/ERROR:.*$case->[1]/, "refused: $case->[0]");
}
is($green->safe_psql('SELECT count(*) FROM lair.diary'),
	0, 'what is the owner\'s alone is there');

#
# On blue: what a transform calls has the rights of the deployment's owner
#
$blue->safe_psql(q{
CREATE ROLE mover LOGIN REPLICATION; GRANT USAGE ON SCHEMA lair TO mover;
CREATE TABLE vault (secret text); INSERT INTO vault VALUES ('treasure');
CREATE TABLE lair.u (id int PRIMARY KEY, at timestamptz);
GRANT SELECT ON lair.u TO mover;
CREATE FUNCTION lair.try(integer) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
DECLARE
	gained text := current_user || ' ' || session_user;
	command text;
BEGIN
	FOREACH command IN ARRAY ARRAY['SET ROLE postgres',
		'SET SESSION AUTHORIZATION postgres', 'SELECT secret FROM public.vault',
		'ALTER ROLE mover SUPERUSER']
	LOOP
		BEGIN
			EXECUTE command;
			gained := gained || '; ' || command;
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
	PERFORM set_config('datestyle', 'SQL, DMY', false),
		set_config('timezone', 'Asia/Tokyo', false);
	RETURN gained;
END $$;
GRANT USAGE ON FOREIGN SERVER green TO mover;
CREATE USER MAPPING FOR mover SERVER green
	OPTIONS (user 'postgres', password_required 'false');
INSERT INTO lair.u SELECT i, '2026-11-03 12:00+00' FROM generate_series(1, 3) i;
GRANT EXECUTE ON ROUTINE bluegreen.create_deployment,
		bluegreen.map_table(name, regclass, text, text,
			text[], text, text, text, text, text),
		bluegreen.map_table(name, text, text, text,
			text[], text, text, text, text, text),
	bluegreen.start TO mover;});
$green->safe_psql(
	'CREATE TABLE lair.u (id int PRIMARY KEY, t text, who text)'
);
$blue->safe_psql(
	q{SELECT bluegreen.create_deployment('e', 'green');
	SELECT bluegreen.map_table('e', 'lair.u', transform =>
		'SELECT id, at::text AS t, lair.try(id) AS who FROM lair.u');
	CALL bluegreen.start('e')}, user => 'mover');
wait_for_sync('e');
$blue->safe_psql(
	q{INSERT INTO lair.u SELECT i, '2026-11-03 12:00+00'
		FROM generate_series(4, 6) i});
wait_for_sync('e');
is($green->safe_psql('SELECT count(*), who FROM lair.u GROUP BY 2'),
	'6|mover mover', 'copy and stream run transforms as the owner');
is( $green->safe_psql('SELECT count(*), t FROM lair.u WHERE id > 3 GROUP BY 2'),
	'3|2026-11-03 12:00:00+00',
	'settings do not outlive the row');
is( $blue->safe_psql(
		q{SELECT rolsuper FROM pg_roles WHERE rolname = 'mover'}),
	'f',
	'who is no superuser');

# row-level security on the source is never silent
$blue->safe_psql(q{ALTER TABLE lair.u ENABLE ROW LEVEL SECURITY;
	CREATE POLICY p ON lair.u USING (id > 3);
	CALL bluegreen.stop('e'); SELECT bluegreen.drop_deployment('e');});
(undef, undef, my $error) = $blue->psql(
	q{SELECT bluegreen.create_deployment('f', 'green');
	SELECT bluegreen.map_table('f', 'lair.u', transform =>
		'SELECT id, at::text AS t FROM lair.u')}, user => 'mover');
like($error, qr/row-level security/i, 'a source that hides rows is refused');

done_testing();
