# A start that others hold up, that is interrupted, that meets a limit; sessions
# with settings of their own; encodings, origins.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Mistakes;
use Test::More;

my ($blue, $green) = create_pair(blue_conf => 'bluegreen.max_streams = 1');
my $port = $green->port;
my $start = q{CALL bluegreen.start('d')};
$_->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE u (id int PRIMARY KEY, v text)})
  for $blue, $green;
$blue->safe_psql(q{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	SELECT bluegreen.create_deployment('empty', 'green');});
my $has_transaction_timeout = $blue->safe_psql(
	q{SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'});

#
# A start that is interrupted while it waits
#
$blue->safe_psql(q{BEGIN; INSERT INTO u VALUES (2, 'prepared');
	PREPARE TRANSACTION 'forgotten'});
try_mistakes(
	$blue, $green,
	{
		title => 'a lock_timeout ends a start',
		sql => "SET lock_timeout = '300 ms'; $start",
		state => '55P03',
		message => qr/^canceling statement due to lock timeout$/
	},
	{
		title => 'a statement_timeout ends a start',
		sql => "SET statement_timeout = '1 s'; $start",
		state => '57014',
		message => qr/^canceling statement due to statement timeout$/
	});
my @before = map { side_state($_) } $blue, $green;
foreach my $how ('pg_terminate_backend',
	$has_transaction_timeout ? 'transaction_timeout' : ())
{
	my $victim = $blue->session;
	$victim->query(q{SET transaction_timeout = '1 s'}) if $how =~ /^trans/;
	my $pid = $victim->pid;
	$victim->{in} .= "$start;\n";
	$victim->{harness}->pump;
	$blue->poll_query_until(q{SELECT EXISTS (SELECT FROM pg_replication_slots)});
	$blue->safe_psql("SELECT pg_terminate_backend($pid, 180000)")
	  if $how !~ /^trans/;
	local $SIG{PIPE} = 'IGNORE';
	eval { $victim->{harness}->finish };	# psql goes with its connection
	ok( $blue->poll_query_until(q{SELECT state = 'defined'
			FROM bluegreen.status WHERE deployment = 'd'}),
		"$how: a start that was killed is no start");
	is(join(' ', (side_state($blue) =~ /^slot.*/mg)),
		'slot files: ', "$how: it leaves no slot");
	is(side_state($green), $before[1], "$how: green is as it was");
}
$blue->safe_psql(q{ROLLBACK PREPARED 'forgotten'});

#
# Somebody else's transactions hold a start up
#
my $other = $blue->session;
$other->query(q{BEGIN; INSERT INTO u VALUES (1, 'open')});
$blue->safe_psql(q{BEGIN; INSERT INTO u VALUES (2, 'prepared');
	PREPARE TRANSACTION 'forgotten'});
$blue->poll_query_until(q{SELECT max(clock_timestamp() - xact_start)
	> interval '1.5 s' FROM pg_stat_activity WHERE backend_xid IS NOT NULL});
my $starter = $blue->session;
$starter->send(q{CALL bluegreen.start('d')});
ok( $blue->poll_query_until(q{SELECT state = 'starting'
		AND error ~ '^waits for process \d+$' FROM bluegreen.status
		WHERE deployment = 'd'}),
	'status says what a start waits for');
my $second = $blue->session;
$second->send(q{CALL bluegreen.start('d')});
$other->query('COMMIT');
ok( $blue->poll_query_until(q{SELECT state = 'starting'
		AND error = 'waits for a prepared transaction'
		FROM bluegreen.status WHERE deployment = 'd'}),
	'also if it is a prepared transaction');
$blue->safe_psql(q{COMMIT PREPARED 'forgotten'});
$starter->wait;
like(
	$starter->errors,
	qr/NOTICE:  start of deployment "d" waits for transactions that run\nDETAIL:  prepared transaction 'forgotten' in database "postgres"; process \d+ of user "postgres" in database "postgres", since .*\nHINT: /,
	'and so does the one who starts it');
$second->wait;
like(
	$second->errors,
	qr/^\s*NOTICE:  deployment "d" is already started\s*$/,
	'a second start at the same time waits, and finds it started');
wait_for_sync('d');
$_->quit for $other, $starter, $second;

#
# So does a copy; and a table that is added is looked at like those of a start
#
$green->safe_psql(q{CREATE ROLE applier LOGIN; TRUNCATE u});
$blue->safe_psql(q{BEGIN; INSERT INTO u VALUES (3, 'prepared');
	PREPARE TRANSACTION 'forgotten';
	SELECT bluegreen.map_table('d', 'u');});
ok( $blue->poll_query_until(q{SELECT state = 'copying'
		AND error = 'waits for a prepared transaction'
		FROM bluegreen.status WHERE deployment = 'd'}),
	'status says what a copy waits for');
$blue->safe_psql(q{COMMIT PREPARED 'forgotten'});
wait_for_sync('d');
is($blue->safe_psql(q{SELECT error FROM bluegreen.status
		WHERE deployment = 'd'}), '', 'and nothing when nothing is waited for');
compare_tables('TABLE u', 'TABLE u', 'the copy has what it waited for');
$blue->safe_psql(q{SELECT bluegreen.unmap_table('d', 'u')});
wait_for_sync('d');
$blue->safe_psql(q{ALTER USER MAPPING FOR postgres SERVER green
	OPTIONS (SET user 'applier')});
fails_with(
	$blue,
	{
		sql => q{SELECT bluegreen.map_table('d', 'u')},
		state => '42501',
		message => qr/^role "applier" lacks privileges on target table "public\.u"/,
		detail => qr/^It lacks SELECT, UPDATE, INSERT, DELETE\.$/
	},
	'a table that is added to a stream needs its rights at once');
$blue->safe_psql(q{ALTER USER MAPPING FOR postgres SERVER green
	OPTIONS (SET user 'postgres')});
wait_for_sync('d');

$green->safe_psql('TRUNCATE u');
$blue->safe_psql(q{SELECT bluegreen.map_table('empty', 'u')});
my $green_before = side_state($green);
fails_with(
	$blue,
	{
		sql => q{CALL bluegreen.start('empty')},
		state => '53400',
		message => qr/^no shared memory left for the stream of slot /,
		hint => qr/^Increase "bluegreen.max_streams" and restart the server\.$/
	},
	'bluegreen.max_streams is reached');
is($blue->safe_psql(q{SELECT state FROM bluegreen.status
		WHERE deployment = 'empty'}),
	'defined', 'the deployment is not started then');
is(side_state($green), $green_before, 'and green does not know of it');
wait_for_sync('d');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d');
	SELECT bluegreen.drop_deployment('empty');});

#
# A session with settings of its own.  What it sees of ours it sees as others.
#
$_->safe_psql('TRUNCATE t, u') for $blue, $green;
my @sides = map { side_state($_) } $blue, $green;
my $odd = $blue->session;
$odd->query(q{
CREATE SCHEMA evil;
CREATE FUNCTION evil.wrong(int, int) RETURNS boolean LANGUAGE sql
	AS 'SELECT false';
CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.wrong);
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql
	AS 'SELECT NULL::timestamptz';
CREATE TABLE evil.deployment (id int, name name);
INSERT INTO public.t VALUES (1, 'a\b''c'), (2, NULL);
SET search_path = evil, pg_catalog, public;
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'sql_standard';
SET standard_conforming_strings = off;
SET escape_string_warning = off;
SET quote_all_identifiers = on;
SET transform_null_equals = on;
SET bytea_output = 'escape';
SET extra_float_digits = -15;
SET default_transaction_isolation = 'serializable';
SET default_transaction_deferrable = on;
SET session_replication_role = 'replica';
SET statement_timeout = '180 s';
SET lock_timeout = '180 s';});
is( $odd->query(q{
SELECT bluegreen.create_deployment('odd', 'green') OPERATOR(pg_catalog.>) 0;
SELECT bluegreen.map_table('odd', 'public.t', 'public.u', transform =>
	E'SELECT id, v || ''\\\\\\\\'' || date ''02/03/2026'' AS v FROM public.t')
	OPERATOR(pg_catalog.>) 0;
CALL bluegreen.start('odd');
CALL bluegreen.wait_for_sync('odd', '180 s');
INSERT INTO public.t VALUES (3, 'later');
CALL bluegreen.wait_for_sync('odd', '180 s');
CALL bluegreen.stop('odd');
CALL bluegreen.start('odd');
CALL bluegreen.wait_for_sync('odd', '180 s');}) . $odd->errors,
	"t\nt", 'a session with settings of its own can do everything');
is( $green->safe_psql('SELECT string_agg(v, E\'\n\' ORDER BY id) FROM u'),
	"a\\b'c\\2026-03-02\nlater\\2026-03-02",
	'and it does the right thing');
is($odd->query(q{SELECT bluegreen.drop_deployment('odd')}) . $odd->errors,
	'', 'up to the end');
$odd->query('RESET ALL; DROP SCHEMA evil CASCADE');
$odd->quit;
$_->safe_psql('TRUNCATE t, u') for $blue, $green;
my @sides_after = map { side_state($_) } $blue, $green;
s/^rows bluegreen.event_log .*?(?=^rows|^server)//ms for @sides, @sides_after;
is("@sides_after", "@sides", 'and leaves nothing behind');

#
# A name of 63 bytes, of which sessions on green can show only a part
#
my $long = "\xc3\xa9" x 31 . 'x';
$_->safe_psql('TRUNCATE t, u') for $blue, $green;
$blue->safe_psql(qq{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 300) i;
	SELECT bluegreen.create_deployment('$long', 'green');
	SELECT bluegreen.map_table('$long', 't');
	CALL bluegreen.start('$long');});
wait_for_sync($long);
compare_tables('TABLE t', 'TABLE t', 'a deployment may have a long name');
is( $green->safe_psql(q{SELECT count(DISTINCT application_name)
			= count(*), max(octet_length(application_name)) < 64
		FROM pg_stat_activity WHERE application_name LIKE 'bluegreen %'}),
	't|t',
	'and its sessions have names of their own');
$blue->safe_psql("SELECT bluegreen.drop_deployment('$long')");

#
# Rows that are there may stay if one says so
#
$_->safe_psql('TRUNCATE t, u') for $blue, $green;
$green->safe_psql(q{INSERT INTO t VALUES (1000, 'mine')});
$blue->safe_psql(q{INSERT INTO t VALUES (1, 'v');
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	CALL bluegreen.start('d', allow_nonempty => true);});
wait_for_sync('d');
is($green->safe_psql('SELECT string_agg(v, \' \' ORDER BY id) FROM t'),
	'v mine', 'a start into a table with rows, if it is told so');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
$_->safe_psql('TRUNCATE t, u') for $blue, $green;
$blue->safe_psql(q{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 20) i});

#
# An encoding that cannot hold everything; too small a limit of the slot's WAL;
# no replication origin
#
$green->safe_psql(q{CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1
	LOCALE 'C'});
$green->safe_psql('latin', 'CREATE EXTENSION pg_bluegreen;
	CREATE TABLE t (id int PRIMARY KEY, v text)');
$blue->safe_psql(q{
	DELETE FROM t WHERE id > 10;
	INSERT INTO t VALUES (0, E'gr\u00fcn');
	CREATE TABLE big AS SELECT i AS id, repeat('x', 2000) AS v
		FROM generate_series(1, 1000) i;
	ALTER TABLE big ADD PRIMARY KEY (id);
	ALTER SYSTEM SET max_slot_wal_keep_size = '1MB';});
$blue->reload;
$blue->poll_query_until('SHOW max_slot_wal_keep_size', '1MB');
$green->safe_psql('latin', 'CREATE TABLE big (id int PRIMARY KEY, v text)');
my (undef, undef, $err) = $blue->psql(q{
	ALTER SERVER green OPTIONS (SET dbname 'latin');
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	SELECT bluegreen.map_table('d', 'big');
	CALL bluegreen.start('d');
	ALTER SYSTEM RESET max_slot_wal_keep_size;
	SELECT pg_reload_conf();});
like(
	$err,
	qr/WARNING:  encoding LATIN1 of 127\.0\.0\.1:$port\/latin cannot hold everything that encoding UTF8 can/,
	'an encoding that cannot hold everything is warned of');
like(
	$err,
	qr/WARNING:  "max_slot_wal_keep_size" \(1 MB\) is less than the tables to copy \(\d MB\)\nDETAIL:  .*deployment "d" is lost\.\nHINT:  -- on blue\nALTER SYSTEM SET max_slot_wal_keep_size = -1;/,
	'and so is a small max_slot_wal_keep_size');
wait_for_sync('d');
is( $green->safe_psql('latin', 'SELECT encode(v::bytea, \'hex\') FROM t WHERE id = 0'),
	"6772fc6e",
	'what exists in both encodings arrives');
$blue->safe_psql(q{INSERT INTO t VALUES (200, E'5 \u20ac')});
ok( $blue->poll_query_until(q{SELECT state = 'error'
		AND error_sqlstate = '22P05' AND error_relation = 'public.t'
		AND error_key = 'id[integer]:''200''' AND error_lsn IS NOT NULL
		FROM bluegreen.stat_stream}),
	'a character that does not exist there stops the stream at its row');
$blue->safe_psql(q{SELECT bluegreen.skip('d', error_lsn)
	FROM bluegreen.stat_stream});
wait_for_sync('d');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d');
	ALTER SERVER green OPTIONS (SET dbname 'postgres');
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');});

$green->safe_psql('TRUNCATE t');
my $setting = $green->safe_psql(q{SELECT CASE WHEN
		current_setting('server_version_num')::int >= 180000
	THEN 'max_active_replication_origins' ELSE 'max_replication_slots' END});
foreach my $room (0, 1)
{
	# with room for none, and for the stream but not for its copy
	$green->append_conf("$setting = 2");
	$green->restart;
	my @taken;
	foreach my $i (1 .. 2 - $room)
	{
		my $holder = $green->session;
		$holder->query("SELECT pg_replication_origin_create('taken$i');
			SELECT pg_replication_origin_session_setup('taken$i')");
		push @taken, $holder;
	}
	try_mistakes(
		$blue, $green,
		{
			title => "room for $room replication origins on green",
			sql => $start,
			state => '55000',
			message => qr/^cannot start deployment "d": the stream and its copy workers need 3 replication origins, but of 2 that "$setting" allows @{[2 - $room]} are in use/
		});
	$_->quit for @taken;
	$green->poll_query_until(q{SELECT count(*) = 0 FROM (SELECT
		pg_replication_origin_drop(roname) FROM pg_replication_origin) o});
}

done_testing();
