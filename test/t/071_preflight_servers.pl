# bluegreen.preflight() before a start: settings of both servers, slots,
# origins, workers, encodings, the connection, sources and empty targets.
#
# Claims: as in 070_preflight.pl, with hints that change settings and say when
# the server must be restarted.  Without a connection there is a row for that,
# and what can be seen of blue is still looked at.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Preflight;
use Test::More;

my ($blue, $green) = create_pair();
my ($port, $blue_port) = ($green->port, $blue->port);
$_->safe_psql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE later (id int PRIMARY KEY, at timestamptz);})
  for $blue, $green;
$blue->safe_psql(q{
	INSERT INTO t SELECT i, repeat('x', 2000) FROM generate_series(1, 1000) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.accept('d', 'way_back', 'green');
	SELECT bluegreen.map_table('d', 't');});
my %version = map { $_ => $_ eq 'blue'
	? $blue->safe_psql('SHOW server_version_num')
	: $green->safe_psql('SHOW server_version_num') } qw(blue green);
my %origins = map { $_ => $version{$_} >= 180000
	? 'max_active_replication_origins' : 'max_replication_slots' }
  qw(blue green);

sub has_setting
{
	my ($node, $name) = @_;
	return $node->safe_psql(
		"SELECT count(*) FROM pg_settings WHERE name = '$name'");
}

nothing_found($blue, 'd', 'a healthy pair');

# settings of blue
fires_and_mends(
	$blue, $green, 'd',
	{
		check => 'library', severity => 'error',
		object => 'shared_preload_libraries',
		conf => { blue => q{shared_preload_libraries = 'auto_explain'} }
	},
	{
		check => 'wal_level', severity => 'error', object => 'd',
		conf => { blue => 'wal_level = replica' }
	},
	has_setting($blue, 'output_plugin_libraries')
	? ( {
			check => 'output_plugin', severity => 'error', object => 'd',
			wait => 1,
			blue => 'ALTER SYSTEM SET output_plugin_libraries = pgoutput;
				SELECT pg_reload_conf()'
		},
		{
			title => 'a list that became one name',
			check => 'output_plugin', severity => 'error', object => 'd',
			wait => 1,
			blue => q{ALTER SYSTEM SET output_plugin_libraries
					= 'pgoutput, pg_bluegreen'; SELECT pg_reload_conf()}
		}) : (),
	{
		check => 'replication_slot', severity => 'error', object => 'd',
		conf => { blue => 'max_replication_slots = 1' },
		blue => q{SELECT pg_create_physical_replication_slot('other')},
		blue_after => q{SELECT pg_drop_replication_slot('other')}
	},
	{
		check => 'background_worker', severity => 'error', object => 'd',
		conf => { blue => 'max_worker_processes = 3' }
	},
	{
		check => 'slot_wal_limit', severity => 'warning',
		object => 'max_slot_wal_keep_size', wait => 1,
		blue => q{ALTER SYSTEM SET max_slot_wal_keep_size = '1MB';
			SELECT pg_reload_conf()}
	},
	{
		check => 'commit_timestamp', severity => 'warning',
		object => 'track_commit_timestamp',
		conf => { blue => 'track_commit_timestamp = off' },
		blue => q{SELECT bluegreen.map_table('d', 'later', transform =>
			'SELECT id, bluegreen.commit_time() AS at FROM later')}
	},
	{
		check => 'back_replication_origin', severity => 'error',
		object => $origins{blue},
		conf => { blue => "$origins{blue} = 1" },
		blue => q{ALTER SYSTEM RESET max_replication_slots;
			SELECT pg_replication_origin_create('mine');
			SELECT pg_replication_origin_advance('mine', '0/1')},
		before => sub {
			$blue->safe_psql('ALTER SYSTEM RESET max_replication_slots');
			$blue->restart;
		},
		blue_after => q{SELECT pg_replication_origin_drop('mine')}
	},
	has_setting($blue, 'idle_replication_slot_timeout')
	? ( {
			check => 'slot_timeout', severity => 'warning',
			object => 'idle_replication_slot_timeout', wait => 1,
			blue => q{ALTER SYSTEM SET idle_replication_slot_timeout = '1d';
				SELECT pg_reload_conf()}
		}) : (),
	has_setting($blue, 'synchronized_standby_slots')
	? ( {
			check => 'standby_slot', severity => 'warning',
			object => 'away', wait => 1,
			blue => q{ALTER SYSTEM SET synchronized_standby_slots = away;
				SELECT pg_reload_conf()}
		}) : ());

# settings of green
fires_and_mends(
	$blue, $green, 'd',
	{
		check => 'replication_origin', severity => 'error',
		object => $origins{green},
		conf => { green => "$origins{green} = 1" }
	},
	{
		title => 'room for the stream, but not for all copy workers',
		check => 'replication_origin', severity => 'warning',
		object => $origins{green},
		before => sub {
			$green->safe_psql("ALTER SYSTEM SET $origins{green} = 2");
			$green->restart;
		}
	},
	{
		check => 'back_wal_level', severity => 'error', object => 'wal_level',
		conf => { green => 'wal_level = replica' }
	},
	{
		check => 'back_library', severity => 'error',
		object => 'shared_preload_libraries',
		conf => { green => q{shared_preload_libraries = 'auto_explain'} }
	},
	has_setting($green, 'output_plugin_libraries')
	? ( {
			check => 'back_output_plugin', severity => 'error',
			object => 'output_plugin_libraries', wait => 1,
			green => 'ALTER SYSTEM SET output_plugin_libraries = pgoutput;
				SELECT pg_reload_conf()'
		}) : (),
	{
		check => 'back_replication_slot', severity => 'error',
		object => 'max_replication_slots',
		before => sub {
			$green->safe_psql('ALTER SYSTEM SET max_replication_slots = 3');
			$green->restart;
		},
		green => q{SELECT pg_create_physical_replication_slot('other' || i)
			FROM generate_series(1, 3) i},
		green_after => q{SELECT pg_drop_replication_slot(slot_name)
			FROM pg_replication_slots}
	});
is($green->safe_psql('SHOW shared_preload_libraries'),
	'auto_explain, pg_bluegreen', 'what else is in a list of names stays');

# sources and targets before a start
fires_and_mends(
	$blue, $green, 'd',
	{
		check => 'source', severity => 'error', object => 'public.t',
		title => 'a source that became unlogged',
		blue => 'ALTER TABLE t SET UNLOGGED'
	},
	{
		check => 'source', severity => 'error', object => 'public.t',
		title => 'a source without a replica identity',
		blue => 'ALTER TABLE t REPLICA IDENTITY NOTHING'
	},
	{
		check => 'empty', severity => 'error', object => 'public.t',
		green => q{INSERT INTO t VALUES (1, 'mine')}
	},
	{
		check => 'target', severity => 'error', object => 'public.t',
		title => 'a target that has lost a column',
		green => 'ALTER TABLE t DROP COLUMN v'
	});

#
# Databases that are not alike
#
$green->safe_psql(q{CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1
		LOCALE 'C';
	CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu
		ICU_LOCALE 'de';});
$green->safe_psql($_, q{CREATE EXTENSION pg_bluegreen;
		CREATE TABLE t (id int PRIMARY KEY, v text);
		CREATE TABLE later (id int PRIMARY KEY, at timestamptz);})
  for qw(latin icu);
$blue->safe_psql(q{ALTER SERVER green OPTIONS (SET dbname 'latin')});
my @rows = preflight($blue, 'd');
is(join(' ', found(@rows)), 'encoding warning encoding',
	'an encoding that cannot hold everything is warned of');
like((grep { $_->{check} eq 'encoding' } @rows)[0]{message},
	qr/^encoding LATIN1 of 127\.0\.0\.1:$port\/latin cannot hold/,
	'and it says which');
$blue->safe_psql(q{ALTER SERVER green OPTIONS (SET dbname 'icu')});
fires_and_mends(
	$blue, $green, 'd',
	{
		check => 'locale', severity => 'warning', object => 'provider',
		then => ['locale notice provider']
	},
	{
		title => "a database's collation",
		check => 'collation_version', severity => 'warning',
		object => 'database icu', green_dbname => 'icu',
		also => ['locale notice provider'],
		green => q{UPDATE pg_database SET datcollversion = '0'
			WHERE datname = 'icu'}
	});
$blue->safe_psql(q{ALTER SERVER green OPTIONS (SET dbname 'postgres');
	CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu
		ICU_LOCALE 'sv'});
$blue->safe_psql('icu', qq{CREATE EXTENSION pg_bluegreen;
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen
		OPTIONS (host '127.0.0.1', port '$port', dbname 'icu');
	CREATE USER MAPPING FOR CURRENT_USER SERVER green OPTIONS (user 'postgres');
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't')});
is(join(' ', grep { /^locale/ } found(preflight($blue, 'd', dbname => 'icu'))),
	'locale warning locale of the provider',
	'two databases whose ICU locales differ');
$blue->safe_psql('icu', q{SELECT bluegreen.drop_deployment('d')});

#
# No connection; no mapping
#
$blue->safe_psql("ALTER SERVER green OPTIONS (SET port '$blue_port')");
@rows = preflight($blue, 'd');
is(join(' ', found(@rows)), 'peer error d', 'a peer that is blue itself');
$blue->safe_psql(qq{ALTER SERVER green OPTIONS (SET port '@{[
	BlueGreen::Node::free_port()]}')});
@rows = preflight($blue, 'd');
is(join(' ', found(@rows)), 'peer error d', 'a peer that is not there');
like((grep { $_->{check} eq 'peer' } @rows)[0]{message},
	qr/could not connect to peer of server "green"\. .*refused/s, 'says why');
cmp_ok(scalar(grep { $_->{object} eq 'blue' } @rows),
	'>', 10, 'blue is looked at all the same');
is(scalar(grep { $_->{check} eq 'foreign_key' } @rows),
	0, 'and nothing is said of what could not be looked at');
like($blue->safe_psql('SELECT preflight FROM bluegreen.status'),
	qr/^error /, 'which status shows');
$blue->safe_psql("ALTER SERVER green OPTIONS (SET port '$port');
	SELECT bluegreen.create_deployment('empty', 'green')");
is(join(' ', grep { /^mapping/ } found(preflight($blue, 'empty'))),
	'mapping error empty', 'a deployment without mappings');
nothing_found($blue, 'd', 'all is well at the end');

# only the one that was looked at has a result
is( $blue->safe_psql(q{SELECT string_agg(deployment || ' ' || preflight, ' '
		ORDER BY deployment) FROM bluegreen.stat_stream}),
	'd notice empty error', 'stat_stream has a line for each');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
compare_tables('TABLE t', 'TABLE t', 'and it starts');
nothing_found($blue, 'd', 'and is healthy');

done_testing();
