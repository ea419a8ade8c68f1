# Nobody is a superuser: the deployment's owner on blue, whose streams run as
# he, and the role on green that his user mapping names.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\n"
	  . "bluegreen.copy_chunk_rows = 1000");
my $port = $green->port;

$blue->safe_psql(q{CREATE ROLE mover LOGIN; CREATE ROLE helper LOGIN;
	CREATE ROLE stranger LOGIN;
	GRANT CREATE ON SCHEMA public TO mover;
	GRANT USAGE ON FOREIGN DATA WRAPPER pg_bluegreen TO mover;
	GRANT EXECUTE ON ROUTINE bluegreen.create_deployment,
		bluegreen.drop_deployment,
		bluegreen.map_table(name, regclass, text, text,
			text[], text, text, text, text, text),
		bluegreen.map_table(name, text, text, text,
			text[], text, text, text, text, text),
		bluegreen.unmap_table(name, regclass, text, text),
		bluegreen.unmap_table(name, text, text, text),
		bluegreen.preview, bluegreen.start, bluegreen.stop,
		bluegreen.wait_for_sync, bluegreen.skip TO mover, helper, stranger;
	GRANT pg_monitor TO mover;});
$green->safe_psql(q{CREATE ROLE applier LOGIN PASSWORD 'open sesame';
	CREATE ROLE landlord; CREATE SCHEMA house AUTHORIZATION landlord;});
$green->require_password('applier');

# SQL on blue as the owner, or as somebody else.
sub mover { return $blue->safe_psql($_[0], user => $_[1] // 'mover') }

sub refused
{
	my ($node, $user, $sql, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, undef, $error) = $node->psql($sql, user => $user);
	return like($status ? $error : 'no error', $pattern, $name);
}

sub stream
{
	my ($column) = @_;
	return $blue->safe_psql("SELECT $column FROM bluegreen.stat_stream");
}

$blue->safe_psql(q{CREATE SCHEMA house; GRANT USAGE ON SCHEMA house TO mover;
	CREATE TABLE house.t (id int PRIMARY KEY, v text, u int);
	INSERT INTO house.t
		SELECT i, repeat('x', 100), i FROM generate_series(1, 5000) i;
	GRANT SELECT ON house.t TO mover;});

# on green the table belongs to a third role, and nobody may see its rows
my $green_table = q{SET ROLE landlord;
	CREATE TABLE house.t (id int PRIMARY KEY, v text, u int UNIQUE);
	ALTER TABLE house.t ENABLE ROW LEVEL SECURITY;};
$green->safe_psql($green_table);

#
# Who may own a deployment
#
mover(qq{CREATE SERVER mine FOREIGN DATA WRAPPER pg_bluegreen
		OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	CREATE USER MAPPING FOR mover SERVER mine
		OPTIONS (user 'applier', password 'open sesame');});
refused(
	$blue, 'mover',
	q{SELECT bluegreen.create_deployment('d', 'mine')},
	qr/owner "mover" of deployment "d" lacks the attribute REPLICATION\n.*\nHINT:  Use ALTER ROLE mover REPLICATION\./,
	'a role without REPLICATION cannot own a deployment');
$blue->safe_psql('ALTER ROLE mover REPLICATION');
mover(q{SELECT bluegreen.create_deployment('d', 'mine');
	SELECT bluegreen.map_table('d', 'house.t');});

#
# What the role on green is granted
#
my $start = q{CALL bluegreen.start('d')};
refused(
	$blue, 'mover', $start,
	qr/permission denied for function begin_apply\nHINT:  On the peer, use SELECT bluegreen.grant_apply\('applier'\);/,
	'without a grant start fails, and says which');
like(
	$green->safe_psql(q{SELECT bluegreen.grant_apply('applier')}),
	qr/^GRANT CONNECT, TEMPORARY ON DATABASE postgres TO applier\n.*GRANT SELECT, INSERT, UPDATE \(timeline, lost, seen, seen_version\), DELETE ON bluegreen.applied_stream TO applier\n/s,
	'grant_apply returns what it has granted');
refused(
	$blue, 'mover', $start,
	qr/role "applier" may not use schema "house"/,
	'a table needs a grant, too');
$green->safe_psql('GRANT USAGE ON SCHEMA house TO applier');
refused(
	$blue, 'mover', $start,
	qr/role "applier" lacks privileges on target table "house.t".*\n.*\nHINT:  On the peer, use SELECT bluegreen.grant_apply\('applier', 'house.t'\);/,
	'and the error says which');
is( $green->safe_psql(q{SELECT s FROM bluegreen.grant_apply('applier', 'house.t') s
		WHERE s ~ 'house'}),
	"GRANT USAGE ON SCHEMA house TO applier\n"
	  . 'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON house.t TO applier',
	'grant_apply does it');
$green->safe_psql('ALTER TABLE house.t FORCE ROW LEVEL SECURITY');
refused(
	$blue, 'mover', $start,
	qr/row-level security of target table "house.t" on .* is forced for its owner/,
	'row-level security that holds for the owner is refused');
$green->safe_psql('ALTER TABLE house.t NO FORCE ROW LEVEL SECURITY');
my $held = q{SELECT string_agg(c.oid::regclass || ' ' || a.privilege_type, ', '
		ORDER BY c.oid::regclass::text, a.privilege_type) FROM pg_class c, aclexplode(c.relacl) a
	WHERE a.grantee = 'applier'::regrole};
my $grants = $green->safe_psql($held);
$green->safe_psql(q{SELECT bluegreen.revoke_apply('applier')});
is($green->safe_psql($held), '', 'revoke_apply takes everything back');
is( $green->safe_psql(q{SELECT count(*) FROM pg_proc, aclexplode(proacl) a
		WHERE a.grantee = 'applier'::regrole}),
	0,
	'functions, too');
$green->safe_psql(q{SELECT bluegreen.grant_apply('applier', 'house.t')});
is($green->safe_psql($held), $grants, 'and grant_apply gives it again');

$blue->safe_psql('ALTER ROLE mover NOREPLICATION');
refused(
	$blue, 'postgres',
	q{CALL bluegreen.start('d')},
	qr/owner "mover" of deployment "d" lacks the attribute REPLICATION/,
	'nor can its deployment be started, whoever asks');
is(stream('state'), 'defined', 'which leaves it as it was');
$blue->safe_psql('ALTER ROLE mover REPLICATION');

#
# As whom it runs
#
my $lock = $green->session;
$lock->query('BEGIN; LOCK TABLE house.t IN EXCLUSIVE MODE');
mover(q{CALL bluegreen.start('d')});
my $users = q{SELECT string_agg(DISTINCT usename, ' ') FROM pg_stat_activity
	WHERE backend_type = 'pg_bluegreen };
ok($blue->poll_query_until("${users}copy'", 'mover'),
	'copy workers run as the owner');
is($blue->safe_psql("${users}stream'"), 'mover', 'and so does the stream');
$lock->query('COMMIT');
wait_for_sync('d');
compare_tables('TABLE house.t', 'TABLE house.t', 'the table is copied');
cmp_ok($blue->safe_psql('SELECT count(*) FROM bluegreen.chunk'),
	'>', 1, 'in several chunks');
is( $green->safe_psql(
		q{SELECT count(*) FROM pg_index WHERE indrelid = 'house.t'::regclass}),
	2,
	'its index that was in the way is back');

#
# All that a stream does, with no more rights than these
#
$blue->safe_psql(q{
	UPDATE house.t SET u = -u WHERE id % 2 = 0;
	DELETE FROM house.t WHERE id % 7 = 0;
	UPDATE house.t SET id = id + 100000 WHERE id % 11 = 0;
	INSERT INTO house.t SELECT i, 'new', i FROM generate_series(6000, 6100) i;});
wait_for_sync('d');
compare_tables('TABLE house.t', 'TABLE house.t', 'changes');
$green->safe_psql(q{DELETE FROM house.t WHERE id IN (1, 2);
	INSERT INTO house.t VALUES (9999, 'mine', 9999);});
$blue->safe_psql(q{UPDATE house.t SET v = 'there' WHERE id = 1;
	DELETE FROM house.t WHERE id = 2;
	INSERT INTO house.t VALUES (9999, 'yours', 9999);});
wait_for_sync('d');
compare_tables('TABLE house.t', 'TABLE house.t', 'conflicts');
is( $green->safe_psql(q{SELECT string_agg(kind || ' ' || coalesce(existing::jsonb
		->> 'v', 'none'), ', ' ORDER BY id) FROM bluegreen.conflict}),
	'update_missing none, delete_missing none, insert_exists mine',
	'which are recorded');
$blue->safe_psql(q{TRUNCATE house.t;
	INSERT INTO house.t SELECT i, 'x', i FROM generate_series(1, 100) i});
wait_for_sync('d');
compare_tables('TABLE house.t', 'TABLE house.t', 'TRUNCATE');
$green->safe_psql(
	q{ALTER TABLE house.t ADD CONSTRAINT positive CHECK (u > 0)});
$blue->safe_psql(q{INSERT INTO house.t VALUES (200, 'bad', -200);
	INSERT INTO house.t VALUES (201, 'good', 201);});
ok($blue->poll_query_until(
		"SELECT state = 'error' FROM bluegreen.stat_stream"),
	'a row that green does not take');
mover(q{SELECT bluegreen.skip('d', error_lsn) FROM bluegreen.stat_stream});
wait_for_sync('d');
$blue->safe_psql('DELETE FROM house.t WHERE id = 200');
wait_for_sync('d');
compare_tables('TABLE house.t', 'TABLE house.t', 'is skipped');
$blue->safe_psql(q{CREATE TABLE house.m (id int PRIMARY KEY, k int, v text);
	ALTER TABLE house.m REPLICA IDENTITY FULL;
	INSERT INTO house.m SELECT i, i % 10, i FROM generate_series(1, 100) i;
	GRANT SELECT ON house.m TO mover;});
$green->safe_psql(q{SET ROLE landlord;
	CREATE DOMAIN house.short AS text CHECK (length(VALUE) < 10);
	CREATE TABLE house.m (k int PRIMARY KEY, v house.short);
	RESET ROLE;
	SELECT bluegreen.grant_apply('applier', 'house.m');});
mover(q{SELECT bluegreen.map_table('d', 'house.m',
	transform => 'SELECT k, v FROM house.m', on_write => 'merge',
	on_delete => 'ignore')});
wait_for_sync('d');
is($green->safe_psql('SELECT count(*) FROM house.m'),
	10, 'a table that is staged');
$green->safe_psql(q{REVOKE INSERT ON house.t FROM applier});
$blue->safe_psql(q{INSERT INTO house.t VALUES (300, 'late', 300)});
ok( $blue->poll_query_until(
		q{SELECT state = 'error' AND error_message ~ 'permission denied for table house.t'
		AND error_hint ~ 'grant_apply\(''applier'', ''house.t''\)'
		FROM bluegreen.stat_stream}),
	'a right that is taken away later stops the stream');
$green->safe_psql(q{SELECT bluegreen.grant_apply('applier', 'house.t')});
mover($start);
wait_for_sync('d');
compare_tables('TABLE house.t', 'TABLE house.t', 'until it is back');
mover(q{SELECT bluegreen.unmap_table('d', 'house.m')});
wait_for_sync('d');

# a table without a key: rows are found by all their values
$blue->safe_psql(q{
	CREATE TABLE house.n (a int, b text, w varchar(20), j json);
	ALTER TABLE house.n REPLICA IDENTITY FULL;
	INSERT INTO house.n SELECT i % 20, 'row', 'word', '{"a": 1.0}'
		FROM generate_series(1, 100) i;
	GRANT SELECT ON house.n TO mover;});
$green->safe_psql(q{SET ROLE landlord;
	CREATE FUNCTION house.shout(text) RETURNS text IMMUTABLE
		LANGUAGE plpgsql AS 'BEGIN RETURN upper($1); END';
	CREATE DOMAIN house.word AS varchar(20)
		CHECK (house.shout(VALUE) <> 'BAD');
	CREATE TABLE house.n (a int, b text, w house.word, j json,
		k int GENERATED ALWAYS AS IDENTITY, d text DEFAULT house.shout('d'),
		g text GENERATED ALWAYS AS (house.shout(b)) STORED)
		PARTITION BY RANGE (a);
	CREATE TABLE house.n_low PARTITION OF house.n FOR VALUES FROM (0) TO (10);
	CREATE TABLE house.n_rest PARTITION OF house.n DEFAULT;
	ALTER TABLE house.n ENABLE ROW LEVEL SECURITY;
	RESET ROLE;
	SELECT bluegreen.grant_apply('applier', 'house.n');});

sub same_without_key
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_sync('d');
	return compare_tables('TABLE house.n', 'SELECT a, b, w, j FROM house.n',
		"without a key: $name");
}
mover(q{SELECT bluegreen.map_table('d', 'house.n')});
same_without_key('copied');
$green->safe_psql(q{UPDATE house.n SET d = 'kept' WHERE a = 7});
foreach my $how ('streamed', 'in one batch')
{
	my $batched = $how eq 'in one batch';
	mover(q{CALL bluegreen.stop('d')}) if $batched;
	$blue->safe_psql(q{
		UPDATE house.n SET b = 'one of them' WHERE ctid =
			(SELECT min(ctid) FROM house.n WHERE a = 1 AND b = 'row');
		DELETE FROM house.n WHERE ctid =
			(SELECT min(ctid) FROM house.n WHERE a = 2);
		UPDATE house.n SET a = a + 10 WHERE a IN (3, 4);
		UPDATE house.n SET j = '{"a": 1.00}' WHERE a = 5;
		UPDATE house.n SET w = w || '+' WHERE a = 7;
		INSERT INTO house.n VALUES (NULL, NULL, NULL, NULL),
			(NULL, NULL, NULL, NULL), (1, 'one of them', 'word', '1');
		BEGIN; INSERT INTO house.n VALUES (30, 'went', 'w', '1');
		UPDATE house.n SET a = 31 WHERE a = 30;
		DELETE FROM house.n WHERE a = 31; COMMIT;});
	mover($start) if $batched;
	same_without_key($how);
}
is( $green->safe_psql(
		q{SELECT count(DISTINCT k), count(*), min(d), min(g) FROM house.n
		WHERE a = 7}),
	'5|5|kept|ROW',
	'without a key: what green alone has is kept');
my $seen = $green->safe_psql('SELECT count(*) FROM bluegreen.conflict');
$green->safe_psql('DELETE FROM house.n WHERE a IN (8, 9)');
$blue->safe_psql(q{UPDATE house.n SET b = 'back' WHERE a = 8;
	DELETE FROM house.n WHERE a = 9;});
same_without_key('conflicts');
is( $green->safe_psql(qq{SELECT string_agg(DISTINCT kind || ' ' ||
			split_part(key, ' ', 1), ', ') FROM
		(SELECT * FROM bluegreen.conflict ORDER BY id OFFSET $seen) c}),
	q{delete_missing a[integer]:'9', update_missing a[integer]:'8'},
	'which are recorded');
is( $green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	$seen + 10, 'one for each row');
$blue->safe_psql(q{TRUNCATE house.n;
	INSERT INTO house.n VALUES (1, 'x', 'y', '1'), (1, 'x', 'y', '1');});
same_without_key('TRUNCATE');
$blue->safe_psql(q{UPDATE house.n SET w = 'bad' WHERE ctid =
	(SELECT min(ctid) FROM house.n)});
ok( $blue->poll_query_until(
		q{SELECT state = 'error' AND error_message ~ 'value for domain'
		FROM bluegreen.stat_stream}),
	"without a key: the owner's domain holds");
mover(q{SELECT bluegreen.skip('d', error_lsn) FROM bluegreen.stat_stream});
wait_for_sync('d');
$green->safe_psql(q{REVOKE DELETE ON house.n FROM applier});
$blue->safe_psql(q{DELETE FROM house.n WHERE w = 'y'});
ok( $blue->poll_query_until(
		q{SELECT state = 'error' AND error_message ~ 'permission denied for table house.n'
		AND error_hint ~ 'grant_apply\(''applier'', ''house.n''\)'
		FROM bluegreen.stat_stream}),
	'without a key: nor does it go without a right');
$green->safe_psql(q{SELECT bluegreen.grant_apply('applier', 'house.n')});
mover($start);
wait_for_sync('d');
is($green->safe_psql('SELECT count(*), min(w) FROM house.n'),
	'1|y', 'until it is back');
mover(q{SELECT bluegreen.unmap_table('d', 'house.n')});
wait_for_sync('d');

like(mover('SELECT * FROM bluegreen.status'),
	qr/^d\|blue\|streaming\|1\/1/, 'the owner sees its status');

#
# Who may control it
#
refused($blue, 'stranger', q{CALL bluegreen.stop('d')},
	qr/must be owner of deployment "d"/, 'another role may not stop it');
refused($blue, 'helper', q{CALL bluegreen.stop('d')},
	qr/must be owner of deployment "d"/, 'nor another');
$blue->safe_psql('GRANT mover TO helper');
mover(q{CALL bluegreen.stop('d')}, 'helper');
is(stream('state'), 'stopped', 'but it may as a member of the owner');
mover(q{CALL bluegreen.start('d')}, 'helper');
wait_for_sync('d');
foreach my $user (qw(stranger helper mover))
{
	is( $blue->safe_psql(
			"SET ROLE $user; SELECT count(*) FROM pg_user_mappings"
			  . " WHERE umoptions::text LIKE '%sesame%'"),
		$user eq 'mover' ? 1 : 0,
		"the password is shown to its owner only: $user");
}

#
# What the owner loses later
#
foreach my $attribute (qw(REPLICATION LOGIN))
{
	my $from = length $blue->log;
	$blue->safe_psql("ALTER ROLE mover NO$attribute");
	ok( $blue->poll_query_until(
			"SELECT state = 'error' AND error_message = 'owner \"mover\" of"
			  . " deployment \"d\" lacks the attribute $attribute'"
			  . " FROM bluegreen.stat_stream"),
		"an owner who loses $attribute stops the stream");
	my $failures = stream('failures');
	$blue->safe_psql("INSERT INTO house.t SELECT max(id) + 1, 'after' FROM house.t");
	ok($blue->poll_query_until(
			"SELECT failures > $failures FROM bluegreen.stat_stream"),
		'it tries again, with delays');
	$blue->safe_psql("ALTER ROLE mover $attribute");
	ok($blue->poll_query_until(
			"SELECT state = 'streaming' FROM bluegreen.stat_stream"),
		'and goes on when the attribute is back');
	wait_for_sync('d');
	my $starts = () = substr($blue->log, $from) =~ /lacks the attribute/g;
	cmp_ok($starts, '<', 200, 'without a storm');
}
compare_tables('TABLE house.t', 'TABLE house.t', 'nothing is lost');

# a superuser needs neither a password nor REPLICATION, until he is none
$blue->safe_psql('ALTER ROLE mover SUPERUSER NOREPLICATION');
mover(q{ALTER USER MAPPING FOR mover SERVER mine
	OPTIONS (SET user 'postgres', DROP password)});
$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d')});
wait_for_sync('d');
$blue->safe_psql('ALTER ROLE mover NOSUPERUSER REPLICATION');
ok( $blue->poll_query_until(
		"SELECT state = 'error' AND error_message = 'password is required'"
		  . ' FROM bluegreen.stat_stream'),
	'an owner who is no superuser any more needs a password');
mover(q{ALTER USER MAPPING FOR mover SERVER mine
	OPTIONS (SET user 'applier', ADD password 'open sesame')});
mover(q{CALL bluegreen.start('d')});
wait_for_sync('d');
pass('with which it goes on');

# after a restart nothing but the slot tells of the stream
$blue->restart;
$blue->safe_psql("INSERT INTO house.t SELECT max(id) + 1, 'x' FROM house.t");
wait_for_sync('d');
is($blue->safe_psql("${users}stream'"),
	'mover', 'it runs as the owner after a restart, too');
compare_tables('TABLE house.t', 'TABLE house.t', 'and follows');

#
# The end
#
mover(q{SELECT bluegreen.drop_deployment('d')});
is( $green->safe_psql('SELECT count(*) FROM pg_replication_origin') . ' '
	  . $green->safe_psql('SELECT count(*) FROM bluegreen.applied_stream')
	  . ' '
	  . $blue->safe_psql('SELECT count(*) FROM pg_replication_slots'),
	'0 0 0',
	'drop_deployment leaves nothing on either side');
is( $green->safe_psql(q{SELECT string_agg(relname, ' ') FROM pg_class
		WHERE relowner = 'applier'::regrole}),
	'',
	'the role on green owns nothing');
unlike($blue->log . $green->log, qr/sesame/, 'no log has the password');

done_testing();
