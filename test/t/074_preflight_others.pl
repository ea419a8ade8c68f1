# bluegreen.preflight() of a deployment that runs: roles, extensions, collations,
# and who else writes; a pair under load, and one that is still copying.
#
# Claims: as in 070_preflight.pl.  Under load a healthy pair stays without a
# finding.  What is only so because a table is being copied is not reported.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Preflight;
use Test::More;

my ($blue, $green) = create_pair();
$_->safe_psql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE parent (a int PRIMARY KEY);
	CREATE TABLE child (id serial PRIMARY KEY, a int REFERENCES parent);
	CREATE TABLE late (id int PRIMARY KEY, a int REFERENCES parent);
	CREATE UNIQUE INDEX late_a ON late (a);
	CREATE TABLE few (id int PRIMARY KEY, v text);
	CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
	CREATE TABLE words (w text COLLATE "de-x-icu" PRIMARY KEY);})
  for $blue, $green;
$blue->safe_psql(q{
	INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) i;
	INSERT INTO parts SELECT generate_series(1, 10);
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT count(bluegreen.map_table('d', n))
		FROM unnest('{t,parent,child,few,parts,words}'::regclass[]) n;
	CALL bluegreen.start('d');});
wait_for_sync('d');
nothing_found($blue, 'd', 'a healthy pair');

# A subscription's worker notices only after a while that it is not wanted.
sub drop_slot
{
	return q{DO $$ BEGIN
			WHILE (SELECT active FROM pg_replication_slots
				WHERE slot_name = 'copycat') LOOP PERFORM pg_sleep(0.05); END LOOP;
		END $$;
		SELECT pg_drop_replication_slot('copycat');};
}

my ($green_port, $blue_port) = ($green->port, $blue->port);
my %fast = (set => 'SET bluegreen.long_transaction = 0');
fires_and_mends(
	$blue, $green, 'd',
	#
	# Roles, extensions
	#
	{
		check => 'role', severity => 'warning', object => 'app',
		blue => 'CREATE ROLE app LOGIN; GRANT SELECT, INSERT ON t TO app',
		then => ['privileges warning public.t app']
	},
	{
		check => 'privileges', severity => 'warning', object => 'public.t app',
		message => qr/^role "app", which may INSERT, SELECT table public\.t on blue/,
		blue_after => 'REVOKE ALL ON t FROM app'
	},
	{
		title => 'what everybody may',
		check => 'privileges', severity => 'warning',
		object => 'public.parts public',
		blue => 'GRANT SELECT ON parts TO PUBLIC'
	},
	{
		title => 'what the owner may',
		check => 'privileges', severity => 'warning',
		object => 'public.few app',
		blue => 'ALTER TABLE few OWNER TO app'
	},
	{
		check => 'extension', severity => 'warning', object => 'hstore',
		blue => 'CREATE EXTENSION hstore'
	},
	{
		title => 'an extension that is too old',
		check => 'extension', severity => 'warning', object => 'hstore',
		green => q{DROP EXTENSION hstore; CREATE EXTENSION hstore VERSION '1.4'}
	},
	{
		check => 'collation_version', severity => 'warning',
		object => 'collation pg_catalog."de-x-icu"',
		blue => q{UPDATE pg_collation SET collversion = '0'
			WHERE collname = 'de-x-icu'}
	},
	{
		title => 'a collation of green',
		check => 'collation_version', severity => 'warning',
		object => 'collation pg_catalog."de-x-icu"',
		green => q{UPDATE pg_collation SET collversion = '0'
			WHERE collname = 'de-x-icu'}
	},

	#
	# Who else writes
	#
	{
		title => 'a subscription on green',
		check => 'subscription', severity => 'error', object => 'copycat',
		blue => 'CREATE PUBLICATION everything FOR TABLE parts1',
		green => qq{CREATE SUBSCRIPTION copycat
			CONNECTION 'host=127.0.0.1 port=$blue_port user=postgres dbname=postgres'
			PUBLICATION everything WITH (copy_data = false)},
		green_after => 'ALTER SUBSCRIPTION copycat SET (slot_name = NONE);
			DROP SUBSCRIPTION copycat',
		blue_after => drop_slot() . q{
			DROP PUBLICATION everything}
	},
	{
		title => 'a subscription on blue',
		check => 'subscription', severity => 'error', object => 'copycat',
		green => 'CREATE PUBLICATION everything FOR TABLE parent',
		before => sub {
			$green->safe_psql('CREATE PUBLICATION everything2 FOR TABLE parent');
			$blue->safe_psql(qq{CREATE SUBSCRIPTION copycat
				CONNECTION 'host=127.0.0.1 port=$green_port user=postgres dbname=postgres'
				PUBLICATION everything2 WITH (copy_data = false)});
		},
		blue_after => 'ALTER SUBSCRIPTION copycat SET (slot_name = NONE);
			DROP SUBSCRIPTION copycat',
		green_after => drop_slot() . q{
			DROP PUBLICATION everything; DROP PUBLICATION everything2}
	},
	{
		%fast,
		check => 'prepared_transaction', severity => 'warning',
		object => q{it's}, title => 'a prepared transaction on blue',
		blue => q{BEGIN; UPDATE t SET v = 'x' WHERE id = 1;
			PREPARE TRANSACTION 'it''s'}
	},
	{
		%fast,
		check => 'prepared_transaction', severity => 'warning',
		object => q{it's}, title => 'a prepared transaction on green',
		green => q{BEGIN; CREATE TABLE mine (id int);
			PREPARE TRANSACTION 'it''s'}
	});
foreach my $node ($blue, $green)
{
	my $session = $node->session;
	$session->query('BEGIN; SELECT pg_current_xact_id()');
	fires_and_mends(
		$blue, $green, 'd',
		{
			%fast,
			title => 'a transaction on ' . $node->name,
			check => 'long_transaction', severity => 'warning',
			object => 'process ' . $session->pid, wait => 1
		});
	local $SIG{PIPE} = 'IGNORE';
	eval { $session->quit };
}

#
# Under load
#
my $bench = pgbench_start($blue, clients => 2, script => q{
	\set a random(1, 1000000000)
	BEGIN;
	INSERT INTO parent VALUES (:a) ON CONFLICT DO NOTHING;
	INSERT INTO child (a) VALUES (:a);
	END;
	DELETE FROM child WHERE a = :a;
	DELETE FROM parent WHERE a = :a;});
$blue->poll_query_until('SELECT last_value > 200 FROM child_id_seq');
nothing_found($blue, 'd', "under load, time $_") for 1 .. 3;
pgbench_stop($bench);

#
# While a table is copied
#
$blue->safe_psql(q{ALTER SYSTEM SET bluegreen.copy_workers = 0;
	SELECT pg_reload_conf();});
$blue->poll_query_until('SHOW bluegreen.copy_workers', '0');
$green->safe_psql(q{UPDATE pg_index SET indisvalid = false
		WHERE indexrelid = 'late_a'::regclass;});
$blue->safe_psql(q{SELECT bluegreen.map_table('d', 'late')});
$green->safe_psql(q{SET session_replication_role = replica;
	INSERT INTO late VALUES (1, 0);});
$blue->poll_query_until(q{SELECT state = 'copying' FROM bluegreen.status});
my @rows = preflight($blue, 'd');
is(join(' ', found(@rows)), 'stream error d', 'a pair that still copies');
like($rows[0]{hint}, qr/^CALL bluegreen\.wait_for_sync\('d'\);$/m,
	'is to be waited for');
$green->safe_psql('DELETE FROM late; REINDEX INDEX late_a');
$blue->safe_psql(q{ALTER SYSTEM RESET bluegreen.copy_workers;
	SELECT pg_reload_conf();});
ok(run_hint($blue, $green, $rows[0]{hint}), 'as its hint does');
nothing_found($blue, 'd', 'all is well at the end');

done_testing();
