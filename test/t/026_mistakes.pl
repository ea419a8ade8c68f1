# Mistakes on blue: configuration, wrong calls, wrong tables.  Each is refused
# with a message that says what to do, and leaves both sides as they were.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Mistakes;
use Test::More;

my ($blue, $green) = create_pair();
my $tables = q{
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text);};
$_->safe_psql($tables) for $blue, $green;
$blue->safe_psql(q{
INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
CREATE VIEW view AS SELECT * FROM t;
CREATE MATERIALIZED VIEW matview AS SELECT * FROM t;
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9);
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE far (id int) SERVER elsewhere;
SELECT bluegreen.create_deployment('d', 'green');
SELECT bluegreen.map_table('d', 't');
SELECT bluegreen.create_deployment('empty', 'green');});

#
# Calls
#
my @null = map {
	{
		title => "null for $_->[1] of $_->[0]",
		sql => $_->[2],
		state => '22004',
		message => qr/^argument "$_->[1]" must not be null$/
	}
  }
  [ 'create_deployment', 'name', q{SELECT bluegreen.create_deployment(NULL, 'green')} ],
  [ 'create_deployment', 'server', q{SELECT bluegreen.create_deployment('x', NULL)} ],
  [ 'drop_deployment', 'name', q{SELECT bluegreen.drop_deployment(NULL)} ],
  [ 'drop_deployment', 'force', q{SELECT bluegreen.drop_deployment('d', NULL)} ],
  [ 'map_table', 'deployment', q{SELECT bluegreen.map_table(NULL, 't')} ],
  [ 'map_table', 'source', q{SELECT bluegreen.map_table('d', NULL)} ],
  [ 'map_schema', 'schema', q{SELECT bluegreen.map_schema('d', NULL)} ],
  [ 'unmap_table', 'source', q{SELECT bluegreen.unmap_table('d', NULL)} ],
  [ 'preview', 'source', q{SELECT bluegreen.preview('d', NULL)} ],
  [ 'start', 'deployment', q{CALL bluegreen.start(NULL)} ],
  [ 'start', 'allow_nonempty', q{CALL bluegreen.start('d', NULL)} ],
  [ 'stop', 'deployment', q{CALL bluegreen.stop(NULL)} ],
  [ 'wait_for_sync', 'deployment', q{CALL bluegreen.wait_for_sync(NULL)} ],
  [ 'skip', 'lsn', q{SELECT bluegreen.skip('d', NULL)} ],
  [ 'confirm_source', 'deployment', q{SELECT bluegreen.confirm_source(NULL)} ],
  [ 'reset_stats', 'deployment', q{SELECT bluegreen.reset_stats(NULL)} ];

my @unknown = map {
	{
		title => "a deployment that does not exist: $_",
		sql => $_,
		state => '42704',
		message => qr/^deployment "nope" does not exist$/
	}
  } q{SELECT bluegreen.drop_deployment('nope')},
  q{SELECT bluegreen.map_table('nope', 't')},
  q{SELECT bluegreen.map_schema('nope', 'public')},
  q{SELECT bluegreen.unmap_table('nope', 't')},
  q{SELECT bluegreen.preview('nope', 't')}, q{CALL bluegreen.start('nope')},
  q{CALL bluegreen.stop('nope')}, q{CALL bluegreen.wait_for_sync('nope')},
  q{SELECT bluegreen.skip('nope', '0/1')},
  q{SELECT bluegreen.confirm_source('nope')},
  q{SELECT bluegreen.reset_stats('nope')};

my @block = map {
	{
		title => "$_->[0] in a transaction block",
		sql => "BEGIN; CALL bluegreen.$_->[1]",
		state => '25001',
		message => qr/^bluegreen\.$_->[0] cannot run inside a transaction block$/,
		hint => qr/^Call it at top level/
	}
  } [ 'start', "start('d')" ], [ 'stop', "stop('d')" ],
  [ 'wait_for_sync', "wait_for_sync('d')" ];

my @read_only = map {
	{
		title => "read-only: $_->[0]",
		sql => "SET default_transaction_read_only = on; $_->[1]",
		state => '25006',
		message =>
		  qr/^cannot execute bluegreen\.$_->[0] in a read-only transaction$/
	}
  } [ 'create_deployment', q{SELECT bluegreen.create_deployment('x', 'green')} ],
  [ 'map_table', q{SELECT bluegreen.map_table('d', 'u')} ],
  [ 'map_schema', q{SELECT bluegreen.map_schema('d', 'public')} ],
  [ 'unmap_table', q{SELECT bluegreen.unmap_table('d', 't')} ],
  [ 'start', q{CALL bluegreen.start('d')} ],
  [ 'stop', q{CALL bluegreen.stop('d')} ],
  [ 'drop_deployment', q{SELECT bluegreen.drop_deployment('d')} ];

my @tables = map {
	{
		title => "mapping $_->[0]",
		sql => "SELECT bluegreen.map_table('d', '$_->[1]')",
		state => $_->[2],
		message => $_->[3],
		hint => $_->[4]
	}
  } [ 'a view', 'view', '42809', qr/^cannot map "public.view" because it is a view$/, qr/Map the table that it reads/ ],
  [ 'a materialized view', 'matview', '42809', qr/because it is a materialized view$/, qr/Map the tables/ ],
  [ 'a foreign table', 'far', '42809', qr/because it is a foreign table$/, qr/where it lives/ ],
  [ 'an index', 't_pkey', '42809', qr/because it is an index$/, qr/Map its table/ ],
  [ 'an unlogged table', 'unlogged', '55000', qr/because it is unlogged$/, qr/^Use ALTER TABLE public.unlogged SET LOGGED\.$/ ],
  [ 'a partition', 'part', '42809', qr/^cannot map table "public.part" because it is a partition$/, qr/^Map its root, "public.whole"\.$/ ],
  [ 'a system table', 'pg_class', '42501', qr/because it is a system table$/ ],
  [ 'a table of ours', 'bluegreen.deployment', '42501', qr/because it is a system table$/ ],
  [ 'a table that does not exist', 'nowhere', '42P01', qr/"nowhere" does not exist/ ],
  [ 'a table twice', 't', '42710', qr/^table "t" is already mapped to "public.t" in deployment "d"$/, qr/unmap_table/ ];

my $long = 'n' x 63;
try_mistakes(
	$blue, $green, @null, @unknown, @block, @read_only, @tables,
	{
		title => 'mapping a temporary table',
		sql => q{CREATE TEMPORARY TABLE temporary (id int PRIMARY KEY);
			SELECT bluegreen.map_table('d', 'temporary')},
		state => '42809',
		message => qr/because it is temporary$/
	},
	{
		title => 'a deployment that exists',
		sql => q{SELECT bluegreen.create_deployment('d', 'green')},
		state => '42710',
		message => qr/^deployment "d" already exists$/
	},
	{
		title => 'a server that does not exist',
		sql => q{SELECT bluegreen.create_deployment('x', 'grin')},
		state => '42704',
		message => qr/^server "grin" does not exist$/
	},
	{
		title => 'a server of another wrapper',
		sql => q{SELECT bluegreen.create_deployment('x', 'elsewhere')},
		state => '42809',
		message =>
		  qr/^server "elsewhere" belongs to foreign-data wrapper "nothing"$/,
		hint => qr/FOREIGN DATA WRAPPER pg_bluegreen/
	},
	{
		title => 'stop of what has not been started',
		sql => q{CALL bluegreen.stop('d')},
		state => '55000',
		message => qr/^deployment "d" has not been started$/,
		hint => qr/bluegreen\.start/
	},
	{
		title => 'waiting for what has not been started',
		sql => q{CALL bluegreen.wait_for_sync('d')},
		state => '55000',
		message => qr/^deployment "d" is not started$/,
		hint => qr/bluegreen\.start/
	},
	{
		title => 'skip without an error',
		sql => q{SELECT bluegreen.skip('d', '0/1')},
		state => '55000',
		message => qr/^stream of deployment "d" is not in state error$/
	},
	{
		title => 'a start without mappings',
		sql => q{CALL bluegreen.start('empty')},
		state => '55000',
		message => qr/^deployment "empty" has no mappings$/,
		hint => qr/bluegreen\.map_table\(\)/
	},
	{
		title => 'dropping a mapped table',
		sql => 'DROP TABLE t',
		state => '2BP01',
		message => qr/^cannot drop table t because other objects depend on it$/
	},
	{
		title => 'dropping a mapped table with all that depends on it',
		sql => 'DROP TABLE t CASCADE',
		state => '2BP01',
		message => qr/because deployment "d" uses it$/,
		hint => qr/bluegreen\.unmap_table\(\)/
	},
	{
		title => 'dropping a mapped column',
		sql => 'ALTER TABLE t DROP COLUMN v',
		state => '2BP01',
		message => qr/^cannot drop column v of table t/
	},
	{
		title => "dropping a deployment's server",
		sql => 'DROP SERVER green CASCADE',
		state => '2BP01',
		message => qr/^cannot drop server "green" because deployment "d" uses it$/,
		hint => qr/bluegreen\.drop_deployment\(\)/
	},
	{
		title => 'dropping the extension',
		sql => 'DROP EXTENSION pg_bluegreen CASCADE',
		state => '2BP01',
		message => qr/deployment/
	});


#
# Configuration, from what a reload changes to what needs a restart
#
my $has_plugin_setting = $blue->safe_psql(
	q{SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'});
sub reload
{
	my (@lines) = @_;
	$blue->safe_psql(join '', map { "ALTER SYSTEM $_;" } @lines);
	$blue->reload;
	return;
}

SKIP:
{
	skip 'this server has no output_plugin_libraries', 1
	  unless $has_plugin_setting;
	foreach my $case (
		[ 'not listed', 'pgoutput, test_decoding', undef,
			qr/^The setting holds pgoutput, test_decoding\.$/ ],
		[ 'listed in quotes', "'pgoutput, pg_bluegreen'", undef,
			qr/^The setting holds "pgoutput, pg_bluegreen": a quoted list in ALTER SYSTEM is one name with commas in it\.$/ ])
	{
		reload("SET output_plugin_libraries = $case->[1]");
		$blue->poll_query_until(q{SELECT setting !~ 'decoding.*bluegreen'
			FROM pg_settings WHERE name = 'output_plugin_libraries'});
		try_mistakes(
			$blue, $green,
			{
				title => "the plugin is $case->[0]",
				sql => q{CALL bluegreen.start('d')},
				state => '55000',
				message =>
				  qr/^cannot start deployment "d" because "pg_bluegreen" is not in "output_plugin_libraries"$/,
				detail => $case->[3],
				hint =>
				  qr/^Use (ALTER SYSTEM SET output_plugin_libraries = .*'pg_bluegreen';) and (SELECT pg_reload_conf\(\);)$/
			});
		my (undef, undef, $err) =
		  $blue->psql(q{CALL bluegreen.start('d')});
		my ($statement) = $err =~ /HINT:  Use (ALTER SYSTEM .*?;)/;
		$blue->safe_psql($statement);
		$blue->reload;
		ok( $blue->poll_query_until(q{SELECT setting !~ '"'
				AND setting ~ 'pgoutput.*pg_bluegreen' FROM pg_settings
				WHERE name = 'output_plugin_libraries'}),
			'what the hint says repairs it');
	}
	reload('RESET output_plugin_libraries');
}

sub reconfigure
{
	my (%settings) = @_;
	$blue->append_conf("$_ = $settings{$_}") foreach sort keys %settings;
	$blue->restart;
	return;
}

reconfigure(shared_preload_libraries => "''");
my %not_preloaded = (
	state => '55000',
	message => qr/^pg_bluegreen is not in "shared_preload_libraries"$/,
	hint => qr/restart the server/);
try_mistakes(
	$blue, $green,
	map { { title => "not preloaded: $_", sql => $_, %not_preloaded } }
	  q{CALL bluegreen.start('d')}, q{CALL bluegreen.stop('d')},
	q{CALL bluegreen.wait_for_sync('d')}, q{SELECT bluegreen.skip('d', '0/1')},
	q{SELECT bluegreen.confirm_source('d')},
	q{SELECT bluegreen.reset_stats('d')});

reconfigure(
	shared_preload_libraries => 'pg_bluegreen',
	wal_level => 'replica');
try_mistakes(
	$blue, $green,
	{
		title => 'wal_level is too low',
		sql => q{CALL bluegreen.start('d')},
		state => '55000',
		message =>
		  qr/^cannot start deployment "d" because "wal_level" is not "logical"$/,
		hint =>
		  qr/^Use ALTER SYSTEM SET wal_level = logical; and restart the server\.$/
	});

reconfigure(wal_level => 'logical', max_replication_slots => 1,
	max_worker_processes => 3, 'bluegreen.max_streams' => 1);
try_mistakes(
	$blue, $green,
	{
		title => 'no replication slot is free',
		blue => q{SELECT pg_create_physical_replication_slot('other')},
		sql => q{CALL bluegreen.start('d')},
		state => '53400',
		message =>
		  qr/^cannot start deployment "d" because all 1 replication slots are in use$/,
		hint => qr/^Use ALTER SYSTEM SET max_replication_slots = 6; and restart/,
		blue_after => q{SELECT pg_drop_replication_slot('other')}
	},
	{
		title => 'no background worker is free',
		sql => q{CALL bluegreen.start('d')},
		state => '53400',
		message =>
		  qr/^cannot start deployment "d" because no background workers are free$/,
		detail => qr/"max_worker_processes" is 3\.$/,
		hint =>
		  qr/^Use ALTER SYSTEM SET max_worker_processes = 8; and restart the server\.$/
	});

reconfigure(max_replication_slots => 5, max_worker_processes => 1);
try_mistakes(
	$blue, $green,
	{
		title => 'there is not even room for the launcher',
		sql => q{CALL bluegreen.start('d')},
		state => '53400',
		message =>
		  qr/^cannot start deployment "d" because the launcher of pg_bluegreen does not run$/,
		hint => qr/^Use ALTER SYSTEM SET max_worker_processes = 6; and restart/
	});

done_testing();
