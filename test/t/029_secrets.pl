# The password of the peer appears nowhere but where it was put: whatever fails,
# and however much is logged.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($secret, $wrong) = ('S3cret-of-the-peer', 'Wr0ng-of-the-peer');
my $loud = <<'CONF';
log_min_messages = debug1
log_min_error_statement = debug1
log_statement = all
log_connections = on
log_disconnections = on
log_replication_commands = on
log_parameter_max_length_on_error = -1
log_error_verbosity = verbose
bluegreen.restart_delay = 50ms
bluegreen.restart_delay_max = 200ms
CONF
my ($blue, $green) = create_pair(conf => $loud);
my $port = $green->port;
my @said;					# what clients were told

# What psql types of a mapping is logged, as the user wishes: not here.
sub in_secret
{
	my ($sql) = @_;
	my (undef, $out, $error) = $blue->psql(
		"SET log_statement = none; SET log_min_messages = warning;"
		  . " SET log_min_error_statement = panic; $sql");
	push @said, $out, $error;
	return $error;
}

sub run_sql
{
	my ($sql, $pattern, $name) = @_;
	my ($status, $out, $error) =
	  $blue->psql("\\set VERBOSITY verbose\n$sql", timeout => 60);
	push @said, $out, $error;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($error, $pattern, $name) if $pattern;
	return $error;
}

$_->safe_psql('CREATE TABLE t (id int PRIMARY KEY, v text)') for $blue, $green;
$green->safe_psql("SET log_statement = none; SET log_min_messages = warning;
	SET password_encryption = 'scram-sha-256';
	CREATE ROLE feeder LOGIN SUPERUSER PASSWORD '$secret'");
open my $hba, '>', $green->data_dir . '/pg_hba.conf' or die $!;
print $hba "host all postgres all trust\nhost all all all scram-sha-256\n";
close $hba;
$green->reload;
$blue->safe_psql(q{DROP USER MAPPING FOR CURRENT_USER SERVER green;
	CREATE ROLE owner LOGIN; CREATE ROLE nosy LOGIN IN ROLE pg_monitor;
	GRANT USAGE ON FOREIGN SERVER green TO owner;
	GRANT SELECT ON t TO owner; ALTER TABLE t OWNER TO owner;});

#
# What may fail
#
is( in_secret("CREATE USER MAPPING FOR CURRENT_USER SERVER green
		OPTIONS (user 'feeder', password '$wrong')"),
	'', 'a mapping with a password');
run_sql(q{SELECT bluegreen.create_deployment('d', 'green')});
run_sql(q{SELECT bluegreen.map_table('d', 't')},
	qr/password authentication failed for user "feeder"/, 'a wrong password');
foreach my $bad (
	"ADD passwort '$secret'", "ADD sslpassword '$secret', ADD nonsense 'x'",
	"SET password '$secret', ADD password_required 'maybe'",
	"SET password '$secret', ADD application_name 'x'")
{
	like(
		in_secret("ALTER USER MAPPING FOR CURRENT_USER SERVER green
			OPTIONS ($bad)"),
		qr/ERROR/, 'options that are wrong are refused');
}
like(in_secret("ALTER SERVER green OPTIONS (ADD password '$secret')"),
	qr/invalid option "password"/, 'a server takes no password');
in_secret("ALTER USER MAPPING FOR CURRENT_USER SERVER green
	OPTIONS (SET password '$secret')");
foreach my $case (
	[ "SET port '1'", qr/Connection refused/ ],
	[ "SET dbname 'nowhere'", qr/database "nowhere" does not exist/ ],
	[ "ADD sslmode 'require'", qr/does not support SSL/ ],
	[ "ADD sslmode 'sometimes'", qr/invalid sslmode/ ],
	[ "SET host '/nonexistent'", qr/No such file/ ],
	[ "ADD options '-c nonsense=1'", qr/nonsense/ ])
{
	my ($options, $pattern) = @$case;
	run_sql("BEGIN; ALTER SERVER green OPTIONS ($options);
		SELECT bluegreen.map_table('d', 't'); ROLLBACK;",
		$pattern, "refused with: $options");
	my (undef, undef, $error) = $blue->psql(
		"BEGIN; ALTER SERVER green OPTIONS ($options);
		SELECT bluegreen.preview('d', 't'); ROLLBACK;");
	push @said, $error;
}
run_sql(q{SELECT bluegreen.map_table('d', 't')});
run_sql(q{SELECT bluegreen.map_table('d', 't', 'missing')},
	qr/missing/, 'no such target');
$green->safe_psql('INSERT INTO t VALUES (0, NULL)');
run_sql(q{CALL bluegreen.start('d')}, qr/is not empty/, 'start fails');
$green->safe_psql('TRUNCATE t');
run_sql(q{CALL bluegreen.start('d'); INSERT INTO t VALUES (1, 'x');});
wait_for_sync('d');

# while it runs: processes, sessions
my $activity = 'SELECT a::text FROM pg_stat_activity a';
push @said, map { $_->safe_psql($activity) } $blue, $green;
# (one may end while we look)
my $processes = join '',
  map { (eval { BlueGreen::Node::slurp("/proc/$_/cmdline") } // '') . "\n" }
  map { $_->pid, BlueGreen::Node::children($_->pid) } $blue, $green;
like($processes, qr/pg_bluegreen stream/, 'a stream runs');
push @said, $processes;

# an error on the peer, a peer that has gone, another password there
$green->safe_psql('ALTER TABLE t ADD CHECK (id <> 13)');
$blue->safe_psql('INSERT INTO t VALUES (13, NULL)');
ok( $blue->poll_query_until(q{SELECT error_lsn IS NOT NULL
		FROM bluegreen.stat_stream}),
	'the stream fails');
run_sql(q{CALL bluegreen.wait_for_sync('d')},
	qr/check constraint/, '... and says so');
run_sql(q{SELECT bluegreen.skip('d', '0/1')}, qr/ERROR/, 'skip fails');
$green->safe_psql("SET log_statement = none;"
	  . " ALTER ROLE feeder PASSWORD 'another one';"
	  . ' ALTER TABLE t DROP CONSTRAINT t_id_check;');
$green->safe_psql(q{SELECT pg_terminate_backend(pid)
	FROM pg_stat_activity WHERE usename = 'feeder'});
ok( $blue->poll_query_until(q{SELECT error_detail
		LIKE '%password authentication failed%' FROM bluegreen.stat_stream}),
	'the password is not right any more');
run_sql(q{SELECT bluegreen.drop_deployment('d')},
	qr/password authentication failed/, 'drop_deployment fails');
run_sql(q{CALL bluegreen.stop('d')});
my @events = $blue->safe_psql(q{SELECT message || detail FROM bluegreen.event});
like("@events", qr/could not connect/, 'the event log has it');

#
# Every table, view and function result of ours, on both sides, and a dump
#
foreach my $node ($blue, $green)
{
	my @relations = split /\n/, $node->safe_psql(q{
		SELECT c.oid::regclass FROM pg_class c
		JOIN pg_namespace n ON n.oid = relnamespace
		WHERE nspname = 'bluegreen' AND relkind IN ('r', 'v', 'm', 'p')
		AND relname NOT LIKE 'transform%'});
	cmp_ok(@relations, '>', 15, $node->name . ': tables and views to look at');
	push @said, map { $node->safe_psql("SELECT r::text FROM $_ r") } @relations;
	push @said, $node->safe_psql('SELECT s::text FROM pg_stat_replication s');
}
my $dump = '';
IPC::Run::run(
	[ "$blue->{client}/pg_dump", '-d', $blue->connstr ],
	'>', \$dump, '2>&1') or die $dump;
my @lines = grep { /\Q$secret\E/ } split /\n/, $dump;
is(scalar @lines, 1,
	"the owner's mapping is in a superuser's dump, as core has it");
like($lines[0] // '', qr/^\s*password '/, '... and nowhere else in it');
$dump = '';
ok( !IPC::Run::run(
		[
			"$blue->{client}/pg_dump", '-d',
			$blue->connstr . ' options=-crole=nosy'
		],
		'>', \$dump, '2>&1')
	  || $dump !~ /\Q$secret\E/,
	'nobody else can dump it');
unlike($dump, qr/\Q$secret\E/, '... not even a part');

#
# Others
#
foreach my $role (qw(nosy owner))
{
	my $seen = $blue->safe_psql(qq{SET ROLE $role;
		SELECT umoptions IS NULL FROM pg_user_mappings});
	is($seen, 't', "$role does not see the options of another's mapping");
}
is( $blue->safe_psql(q{SELECT string_agg(oid::regprocedure::text, ' ')
		FROM pg_proc WHERE pronamespace = 'bluegreen'::regnamespace
		AND prosrc ~ 'umoptions|user_mapping'}),
	'',
	'and no function of ours reads them in SQL');

#
# And the logs
#
foreach my $node ($blue, $green)
{
	my $log = $node->log;
	like($log, qr/bluegreen/, $node->name . ' has logged much');
	push @said, $log;
}
foreach my $password ($secret, $wrong)
{
	my @found = grep { defined && /\Q$password\E/ } @said;
	is(scalar @found, 0, 'the password was said nowhere');
	foreach my $text (@found)
	{
		diag($1) while $text =~ /(.*\Q$password\E.*)/g;
	}
}

done_testing();
