# A new version of the extension while a stream runs: the library is replaced,
# the objects are updated, the servers restarted.  And what becomes of
# deployments when the extension is dropped, or a database dumped and restored.
use strict;
use warnings;

use BlueGreen;
use File::Copy;
use File::Temp;
use IPC::Run;
use Test::More;

my $old = '1.0';
my $new = '1.0.99test';
my $other = '2.0test';

my ($blue, $green) =
  create_pair(conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
plan skip_all => 'only in a private copy of the server'
  unless $blue->installed('sharedir') && $green->installed('sharedir');

#
# The new version: scripts that test/run does not install
#
my %scripts = (
	"$old--$new" => q{
ALTER TABLE bluegreen.applied_stream ADD COLUMN tested text DEFAULT 'yes';
ALTER TABLE bluegreen.deployment ADD COLUMN tested text DEFAULT 'yes';
CREATE FUNCTION bluegreen.tested() RETURNS text LANGUAGE sql
	SET search_path = pg_catalog, pg_temp
	AS $$ SELECT 'version with a test' $$;},
	"$new--$other" => "SELECT 1;",
	"$other--$new" => "SELECT 1;");
my %files;
foreach my $node ($blue, $green)
{
	my $folder = $node->installed('sharedir') . '/extension';
	$files{"$folder/pg_bluegreen--$_.sql"} = $scripts{$_} for keys %scripts;
}

END
{
	unlink keys %files;
}

foreach my $file (keys %files)
{
	open my $out, '>', $file or die "$file: $!";
	print $out $files{$file};
	close $out;
}

#
# A stream under load
#
my $ddl = 'CREATE TABLE t (id bigint PRIMARY KEY, v int NOT NULL)';
$_->safe_psql($ddl) for $blue, $green;
$blue->safe_psql(q{CREATE SEQUENCE number;
	INSERT INTO t SELECT -i, i FROM generate_series(1, 100) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't',
		transform => 'SELECT id, v + 1 AS v FROM t');
	CALL bluegreen.start('d')});
wait_for_sync('d');

sub load
{
	return pgbench_start($blue, rate => 100, script =>
		"INSERT INTO t VALUES (nextval('number'), 1);\n"
		  . "UPDATE t SET v = v + 1 WHERE id = -1 - random() * 99;");
}

sub stream
{
	my ($column) = @_;
	return $blue->safe_psql("SELECT $column FROM bluegreen.stat_stream");
}

# More rows arrive than there are.
sub rows_arrive
{
	my ($name) = @_;
	my $count = $green->safe_psql('SELECT count(*) FROM t');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		$green->poll_query_until("SELECT count(*) > $count + 20 FROM t"),
		$name);
}

my $load = load();
rows_arrive('a stream runs');

#
# The library, as packages do it: a new file takes the old one's name
#
foreach my $node ($blue, $green)
{
	my $library = $node->installed('pkglibdir') . '/pg_bluegreen.so';
	my $inode = (stat $library)[1];
	copy($library, "$library.new.$$") or die $!;
	chmod 0755, "$library.new.$$";
	rename "$library.new.$$", $library or die $!;
	isnt((stat $library)[1], $inode, $node->name . ': the library is another file');
}
rows_arrive('the stream goes on with the library that it has');
$blue->safe_psql(
	q{SELECT pg_terminate_backend(pid) FROM bluegreen.stat_stream});
rows_arrive('so does a new worker');

#
# The objects, on green first
#
my $errors = stream('errors');
foreach my $node ($green, $blue)
{
	$node->safe_psql("ALTER EXTENSION pg_bluegreen UPDATE TO '$new'");
	is( $node->safe_psql(
			'SELECT bluegreen.tested(), tested FROM bluegreen.'
			  . ($node eq $blue ? 'deployment' : 'applied_stream')),
		'version with a test|yes',
		$node->name . ' is updated');
	rows_arrive('the stream goes on');
}
is(stream('errors'), $errors, 'without an error');
is( $blue->safe_psql(
		q{SELECT count(*) > 0 FROM bluegreen.preview('d', 't')}),
	't',
	'functions of the library work');

# the servers, blue last
pgbench_stop($load);
$_->restart for $green, $blue;
$load = load();
rows_arrive('after a restart of both servers the stream goes on by itself');

#
# Objects of another major version
#
$blue->safe_psql("ALTER EXTENSION pg_bluegreen UPDATE TO '$other'");
my (undef, undef, $error) =
  $blue->psql(q{SELECT bluegreen.unmap_table('d', 't')});
like(
	$error,
	qr/"pg_bluegreen" has version \Q$other\E in this database, but the server runs version 1\.\d+ of its library\nHINT:  Install version 2 of the library and restart/,
	'objects that the library is too old for are refused');
$blue->safe_psql(
	q{SELECT pg_terminate_backend(pid) FROM bluegreen.stat_stream});
ok( $blue->poll_query_until(q{SELECT state = 'error'
		AND error_message ~ 'has version 2.0test' FROM bluegreen.stat_stream}),
	'a stream that starts stops with that');
$blue->safe_psql("ALTER EXTENSION pg_bluegreen UPDATE TO '$new'");
rows_arrive('and goes on when they fit again');

pgbench_stop($load);
wait_for_sync('d');
compare_tables('SELECT id, v + 1 FROM t', 'TABLE t', 'nothing is lost');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'nothing was applied twice');

#
# Dump and restore, of either side
#
my $dump = File::Temp->new;
foreach my $node ($blue, $green)
{
	my $name = $node->name;
	my $restored = $node->connstr('restored');
	IPC::Run::run([ "$node->{client}/pg_dump", '-Fc', '-f', $dump->filename,
			'-d', $node->connstr ]) or die 'pg_dump fails';
	$node->safe_psql('CREATE DATABASE restored');
	ok( IPC::Run::run([ "$node->{client}/pg_restore", '--exit-on-error',
				'-d', $restored, $dump->filename ]),
		"$name can be restored");
	is( $node->safe_psql('restored', q{SELECT
			(SELECT extversion FROM pg_extension WHERE extname = 'pg_bluegreen'),
			(SELECT count(*) FROM bluegreen.deployment),
			(SELECT count(*) FROM bluegreen.table_mapping),
			(SELECT count(*) FROM bluegreen.applied_stream),
			(SELECT count(*) FROM pg_class c JOIN pg_namespace n
				ON n.oid = c.relnamespace WHERE nspname = 'bluegreen'
				AND relname ~ '^transform')}),
		"$old|0|0|0|0",
		'without the deployment: a copy does not begin to push');
	is( $node->safe_psql('SELECT md5(string_agg(t::text, $$,$$ ORDER BY id)) FROM t'),
		$node->safe_psql('restored',
			'SELECT md5(string_agg(t::text, $$,$$ ORDER BY id)) FROM t'),
		'but with all rows');
}
is($blue->safe_psql('SELECT count(*) FROM pg_replication_slots'),
	1, 'no slot was made');
is( $blue->safe_psql('restored', q{SELECT bluegreen.create_deployment('d', 'green');
		SELECT bluegreen.map_table('d', 't') > 0}),
	"1\nt",
	'a deployment can be defined in the copy');

#
# Drop, and begin anew
#
(undef, undef, $error) = $blue->psql('DROP EXTENSION pg_bluegreen CASCADE');
like($error, qr/ERROR:  .*deployment/, 'the extension stays while there is a deployment');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d');
	DROP EXTENSION pg_bluegreen CASCADE;
	CREATE EXTENSION pg_bluegreen;});
is( $blue->safe_psql(q{SELECT
		(SELECT count(*) FROM pg_replication_slots),
		(SELECT count(*) FROM bluegreen.deployment),
		(SELECT count(*) FROM pg_foreign_server)}),
	'0|0|0',
	'without one it goes, with everything, and comes back empty');
$green->safe_psql('DROP EXTENSION pg_bluegreen CASCADE;
	CREATE EXTENSION pg_bluegreen; TRUNCATE t');
BlueGreen::connect_nodes($blue, $green, 'green');
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't'); CALL bluegreen.start('d')});
wait_for_sync('d');
compare_tables('TABLE t', 'TABLE t', 'a new deployment works');

done_testing();
