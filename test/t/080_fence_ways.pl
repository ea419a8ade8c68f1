# The fence: every way to write to a mapped table passes while it is open, is
# held while it is raised and goes on unharmed when it is lowered, is
# disconnected when the side is closed, and refused from then on.  And what does
# not write passes always.
use strict;
use warnings;

use BlueGreen;
use File::Temp;
use IPC::Run;
use Test::More;

my $node = BlueGreen->blue('one', 'max_prepared_transactions = 10');
$node->safe_psql(q{CREATE EXTENSION pg_bluegreen; CREATE EXTENSION dblink;
	CREATE ROLE fence_app LOGIN});

# Mappings without a peer: a fence looks at nothing else.
sub map_table
{
	my (@tables) = @_;
	return $node->safe_psql(join ';', map {
		"INSERT INTO bluegreen.table_mapping (deployment, direction, source, view,
			target_schema, target_table, on_write, on_delete, has_other_columns)
		SELECT id, 'forward', '$_'::regclass, 0, 'public', '$_', 'mirror', 'delete',
			false FROM bluegreen.deployment WHERE name = 'd'"
	} @tables);
}

my $next = 0;

# The tables as they are in the beginning.
sub set_up
{
	$node->safe_psql('SET client_min_messages = warning;
		DROP SCHEMA IF EXISTS app, gone CASCADE;
		DELETE FROM bluegreen.deployment;
		DELETE FROM bluegreen.fence;
		INSERT INTO bluegreen.deployment (name, owner, server)
			VALUES (\'d\', 10, \'none\')');
	$node->safe_psql(<<'SQL');
CREATE SCHEMA app;
CREATE SCHEMA gone;
CREATE TABLE app.t (id int PRIMARY KEY, v int);
INSERT INTO app.t SELECT i, 0 FROM generate_series(1, 20) i;
CREATE TABLE app.other (id int PRIMARY KEY, v int);
INSERT INTO app.other SELECT i, 0 FROM generate_series(1, 20) i;
CREATE TABLE app.part (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
CREATE TABLE app.part1 PARTITION OF app.part FOR VALUES FROM (0) TO (100);
CREATE TABLE app.part2 PARTITION OF app.part FOR VALUES FROM (100) TO (200)
	PARTITION BY RANGE (id);
CREATE TABLE app.part21 PARTITION OF app.part2 FOR VALUES FROM (100) TO (150);
INSERT INTO app.part SELECT i, 0 FROM generate_series(1, 140) i;
CREATE TABLE app.whole (id int, v int) PARTITION BY RANGE (id);
CREATE TABLE app.leaf PARTITION OF app.whole FOR VALUES FROM (0) TO (100);
CREATE TABLE app.leaf2 PARTITION OF app.whole FOR VALUES FROM (100) TO (200);
CREATE TABLE app.parent (id int, v int);
CREATE TABLE app.child () INHERITS (app.parent);
INSERT INTO app.child VALUES (1, 0);
CREATE VIEW app.simple AS SELECT * FROM app.t;
CREATE VIEW app.instead AS SELECT * FROM app.t;
CREATE FUNCTION app.instead() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE app.t SET v = NEW.v WHERE id = NEW.id; RETURN NEW; END $$;
CREATE TRIGGER instead INSTEAD OF UPDATE ON app.instead FOR EACH ROW
	EXECUTE FUNCTION app.instead();
CREATE TABLE app.ruled (id int);
CREATE RULE ruled AS ON INSERT TO app.ruled
	DO INSTEAD UPDATE app.t SET v = 1 WHERE id = NEW.id;
CREATE TABLE app.log (id int);
CREATE FUNCTION app.log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE app.t SET v = 1 WHERE id = NEW.id; RETURN NEW; END $$;
CREATE TRIGGER log AFTER INSERT ON app.log FOR EACH ROW
	EXECUTE FUNCTION app.log();
CREATE TABLE app.late (id int);
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON app.late DEFERRABLE
	INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION app.log();
CREATE TABLE app.referred (id int PRIMARY KEY);
INSERT INTO app.referred VALUES (1), (2);
CREATE TABLE app.refers (id int REFERENCES app.referred ON DELETE CASCADE);
INSERT INTO app.refers VALUES (1), (2);
CREATE FUNCTION app.sets(int) RETURNS int LANGUAGE sql AS
	'UPDATE app.t SET v = 1 WHERE id = $1 RETURNING v';
CREATE FUNCTION app.sets2(int) RETURNS int LANGUAGE plpgsql AS
	'BEGIN UPDATE app.t SET v = 1 WHERE id = $1; RETURN 1; END';
CREATE PROCEDURE app.calls(int) LANGUAGE plpgsql AS
	'BEGIN COMMIT; UPDATE app.t SET v = 1 WHERE id = $1; COMMIT; END';
CREATE TABLE app.emptied (id int);
INSERT INTO app.emptied VALUES (1);
CREATE TABLE app.referred2 (id int PRIMARY KEY);
INSERT INTO app.referred2 VALUES (1);
CREATE TABLE app.refers2 (id int REFERENCES app.referred2);
INSERT INTO app.refers2 VALUES (1);
CREATE TABLE app.altered (id int);
CREATE TABLE app.renamed (id int);
CREATE TABLE app.moved (id int);
CREATE TABLE app.dropped (id int);
CREATE TABLE app.triggered (id int);
CREATE TABLE gone.t (id int);
CREATE TABLE app.quiet (id int PRIMARY KEY, v int);
GRANT ALL ON SCHEMA app TO fence_app;
GRANT ALL ON ALL TABLES IN SCHEMA app TO fence_app;
SQL
	map_table(map { "app.$_" }
		  qw(t part leaf child refers emptied refers2 altered renamed moved dropped
		  triggered quiet));
	map_table('gone.t');
	return;
}

# name, statement, what is true after it and was not before, role
my $set = sub { "(SELECT v = 1 FROM app.t WHERE id = $_[0])" };
my @ways = (
	[ 'INSERT', 'INSERT INTO app.t VALUES (100, 1)', $set->(100) ],
	[ 'UPDATE', 'UPDATE app.t SET v = 1 WHERE id = 1', $set->(1) ],
	[ 'DELETE', 'DELETE FROM app.t WHERE id = 2',
		'NOT EXISTS (SELECT FROM app.t WHERE id = 2)' ],
	[ 'MERGE', 'MERGE INTO app.t USING (VALUES (3)) s (id) ON t.id = s.id
		WHEN MATCHED THEN UPDATE SET v = 1', $set->(3) ],
	[ 'upsert', 'INSERT INTO app.t VALUES (4, 1) ON CONFLICT (id) DO UPDATE SET v = 1',
		$set->(4) ],
	[ 'data-modifying CTE',
		'WITH w AS (UPDATE app.t SET v = 1 WHERE id = 5 RETURNING 1) SELECT * FROM w',
		$set->(5) ],
	[ 'EXPLAIN ANALYZE', 'EXPLAIN ANALYZE UPDATE app.t SET v = 1 WHERE id = 6',
		$set->(6) ],
	[ 'function in SQL', 'SELECT app.sets(7)', $set->(7) ],
	[ 'function in plpgsql', 'SELECT app.sets2(8)', $set->(8) ],
	[ 'procedure that commits', 'CALL app.calls(9)', $set->(9) ],
	[ 'DO', 'DO $$BEGIN UPDATE app.t SET v = 1 WHERE id = 10; END$$', $set->(10) ],
	[ 'PREPARE and EXECUTE',
		'PREPARE p AS UPDATE app.t SET v = 1 WHERE id = 11; EXECUTE p', $set->(11) ],
	[ 'another role', 'UPDATE app.t SET v = 1 WHERE id = 12', $set->(12), 'fence_app' ],
	[ 'view', 'UPDATE app.simple SET v = 1 WHERE id = 13', $set->(13) ],
	[ 'INSTEAD OF trigger', 'UPDATE app.instead SET v = 1 WHERE id = 14', $set->(14) ],
	[ 'rule', 'INSERT INTO app.ruled VALUES (15)', $set->(15) ],
	[ 'trigger of another table', 'INSERT INTO app.log VALUES (16)', $set->(16) ],
	[ 'trigger that waits for COMMIT', 'INSERT INTO app.late VALUES (17)', $set->(17) ],
	[ 'foreign key', 'DELETE FROM app.referred WHERE id = 1',
		'NOT EXISTS (SELECT FROM app.refers WHERE id = 1)' ],
	[ 'lock_timeout is not meant for it',
		"SET lock_timeout = '1ms'; UPDATE app.t SET v = 1 WHERE id = 18", $set->(18) ],
	[ 'subtransaction', 'BEGIN; SAVEPOINT s; UPDATE app.t SET v = 1 WHERE id = 19; COMMIT',
		$set->(19) ],
	[ 'serializable', 'BEGIN ISOLATION LEVEL SERIALIZABLE;
		UPDATE app.t SET v = 1 WHERE id = 20; COMMIT', $set->(20) ],
	[ 'partitioned table', 'INSERT INTO app.part VALUES (0, 1)',
		'EXISTS (SELECT FROM app.part WHERE id = 0)' ],
	[ 'partition', 'UPDATE app.part1 SET v = 1 WHERE id = 2',
		'(SELECT v = 1 FROM app.part WHERE id = 2)' ],
	[ 'partition of a partition', 'UPDATE app.part21 SET v = 1 WHERE id = 102',
		'(SELECT v = 1 FROM app.part WHERE id = 102)' ],
	[ 'parent of a mapped partition', 'INSERT INTO app.whole VALUES (1, 1)',
		'EXISTS (SELECT FROM app.leaf)' ],
	[ 'inheritance', 'UPDATE app.parent SET v = 1',
		'(SELECT v = 1 FROM app.child)' ],
	[ 'COPY', "COPY app.t FROM STDIN;\n200\t1\n\\.\n", $set->(200) ],
	[ 'COPY of a query that writes',
		"COPY (INSERT INTO app.t VALUES (201, 1) RETURNING 1) TO STDOUT", $set->(201) ],
	[ 'TRUNCATE', 'TRUNCATE app.emptied', 'NOT EXISTS (SELECT FROM app.emptied)' ],
	[ 'TRUNCATE CASCADE', 'TRUNCATE app.referred2 CASCADE',
		'NOT EXISTS (SELECT FROM app.refers2)' ],
	[ 'ALTER TABLE', 'ALTER TABLE app.altered ALTER id TYPE bigint USING id + 1',
		"(SELECT atttypid = 'bigint'::regtype FROM pg_attribute
			WHERE attrelid = 'app.altered'::regclass AND attname = 'id')" ],
	[ 'ALTER TABLE RENAME', 'ALTER TABLE app.renamed RENAME TO named',
		"to_regclass('app.named') IS NOT NULL" ],
	[ 'ALTER TABLE SET SCHEMA', 'ALTER TABLE app.moved SET SCHEMA public;
		ALTER TABLE public.moved SET SCHEMA app; ALTER TABLE app.moved ADD a int',
		"EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'app.moved'::regclass
			AND attname = 'a')" ],
	[ 'CREATE TRIGGER', 'CREATE TRIGGER x BEFORE INSERT ON app.triggered
		FOR EACH ROW EXECUTE FUNCTION app.log()',
		"EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'app.triggered'::regclass)" ],
	[ 'DROP TABLE', 'DROP TABLE app.dropped', "to_regclass('app.dropped') IS NULL" ],
	[ 'DROP SCHEMA', 'DROP SCHEMA gone CASCADE', "to_regclass('gone.t') IS NULL" ],
);

# What writes nothing that is mapped.  On a table of its own: who is held has
# locked the table he is about to write to.
my @passing = (
	'SELECT * FROM app.quiet FOR UPDATE',
	'BEGIN; LOCK TABLE app.quiet; COMMIT',
	'CREATE INDEX ON app.quiet (v)',
	'VACUUM app.quiet',
	'ANALYZE app.quiet',
	'CLUSTER app.quiet USING quiet_pkey',
	'REINDEX TABLE app.quiet',
	'EXPLAIN UPDATE app.quiet SET v = 1',
	'BEGIN READ ONLY; SELECT count(*) FROM app.quiet; COMMIT',
	'CREATE TEMPORARY TABLE mine AS SELECT * FROM app.quiet; UPDATE mine SET v = 1',
	'CREATE UNLOGGED TABLE unlogged (id int); INSERT INTO unlogged VALUES (1);
		DROP TABLE unlogged',
	q{SELECT nextval(pg_get_serial_sequence('bluegreen.event_log', 'id'))},
	'COMMENT ON TABLE app.quiet IS NULL',
	'COPY app.quiet TO STDOUT',
);

sub true_ways
{
	return $node->safe_psql('SELECT '
		  . join(" ||\n", map { "CASE WHEN $_->[2] THEN 'y' ELSE 'n' END" } @ways));
}

# Start all ways at the same time.
sub start_ways
{
	my @started;
	foreach my $way (@ways)
	{
		my $run = { name => $way->[0], out => '', err => '' };
		$run->{file} = File::Temp->new(SUFFIX => '.sql');
		print { $run->{file} } "SET client_min_messages = warning;\n$way->[1]",
		  $way->[1] =~ /\\\.\n/ ? '' : ";\n";
		close $run->{file};
		$run->{harness} = IPC::Run::start(
			[
				"$node->{client}/psql", '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v',
				'VERBOSITY=verbose', '-d', $node->connstr(undef, $way->[3]), '-f', $run->{file}->filename
			],
			'<', '/dev/null', '>', \$run->{out}, '2>', \$run->{err},
			IPC::Run::timeout(180));
		push @started, $run;
	}
	return @started;
}

sub finish_ways
{
	$_->{harness}->finish for @_;
	return;
}

my $all = @ways;
my $yes = 'y' x $all;
my $no = 'n' x $all;

# Raise in a session that stays, start all ways, and wait until they are held.
sub raise
{
	my ($epoch) = @_;
	my $session = $node->session;
	$session->query("CALL bluegreen.fence_raise('d', $epoch)");
	is($session->errors, '', "raised in epoch $epoch");
	my @started = start_ways();
	ok( $node->poll_query_until('SELECT held FROM bluegreen.fence_state', $all),
		"all $all ways are held")
	  or diag(map { "$_->{name}: $_->{out} $_->{err}\n" }
		grep { !$_->{harness}->pump_nb || $_->{err} } @started);
	is(true_ways(), $no, 'and none has done anything');
	return ($session, @started);
}

#
# Open
#
set_up();
is(true_ways(), $no, 'the beginning');
my @started = start_ways();
finish_ways(@started);
is(join('', map { $_->{err} } @started), '', 'an open fence: no way fails');
is(true_ways(), $yes, 'all have done what they do');

#
# Raised and lowered
#
set_up();
my $session;
($session, @started) = raise(1);
foreach my $sql (@passing)
{
	my (undef, undef, $err) =
	  $node->psql("SET statement_timeout = '30s';\n$sql");
	is($err, '', "raised, but not held: $sql");
}
is( $node->safe_psql(
		'SELECT deployment, side, state, epoch, drained, running FROM bluegreen.fence_state'),
	'd|blue|raised|1|t|0',
	'the view says so');
is( $node->safe_psql(
		q{SELECT count(*) FROM bluegreen.fence_writer WHERE held AND pid IS NOT NULL
		AND xact_start IS NOT NULL AND query <> ''}),
	$all, 'and who is held');
is($session->query(q{CALL bluegreen.fence_lower('d', 1)}) . $session->errors,
	'', 'lowered');
finish_ways(@started);
is(join('', map { $_->{err} } @started),
	'', 'those that were held go on, without an error');
is(true_ways(), $yes, 'and have done what they do');

#
# Raised and closed
#
set_up();
$node->safe_psql('CREATE TABLE IF NOT EXISTS own (id int PRIMARY KEY);
	CREATE TABLE IF NOT EXISTS forgotten (id int PRIMARY KEY);
	SELECT bluegreen.set_local(\'own\')');
my (undef, undef, $refused) = $node->psql(q{SELECT bluegreen.set_local('app.t')});
like($refused, qr/table "t" is mapped in deployment "d"/,
	'a mapped table cannot be local');
my $reader = $node->session;
is($reader->query('BEGIN; SELECT count(*) FROM app.t'), 20,
	'a session that has not written');
($session, @started) = raise(1);
is($session->query(q{CALL bluegreen.fence_close('d', 1)}) . $session->errors,
	'', 'closed');
finish_ways(@started);
is( join(', ', map { $_->{name} }
		  grep { $_->{err} !~ /FATAL:  57P01: terminating connection because this side of deployment "d" is closed/ }
		  @started),
	'', 'those that were held are disconnected');
is(true_ways(), $no, 'and have done nothing');
is($reader->query('SELECT count(*) FROM app.t'), 20, 'who reads goes on');
eval { $reader->query('INSERT INTO app.t VALUES (300, 1)') };
like($reader->errors, qr/57P01|terminating connection because/,
	'until he writes');

@started = start_ways();
finish_ways(@started);
is( join(', ', map { "$_->{name}: $_->{err}" }
		  grep { $_->{err} !~ /ERROR:  25006: cannot write to table ".*": this side of deployment "d" is closed/ }
		  @started),
	'', 'who comes later is refused');
is(true_ways(), $no, 'everywhere');
foreach my $sql (
	'INSERT INTO forgotten VALUES (1)',
	'TRUNCATE forgotten',
	'ALTER TABLE forgotten ADD v int',
	'DROP TABLE forgotten',
	'CREATE TABLE made AS SELECT 1',
	'SELECT 1 INTO made',
	'EXPLAIN ANALYZE CREATE TABLE made AS SELECT 1',
	q{BEGIN; UPDATE own SET id = 1; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'}
  )
{
	my (undef, undef, $err) =
	  $node->psql("\\set VERBOSITY verbose\n$sql", on_error_stop => 0);
	like($err, qr/25006: .*this side of deployment "d" is closed/s,
		"closed for all: $sql");
}
$node->safe_psql(q{ROLLBACK PREPARED 'p'});
foreach my $sql (
	@passing,
	'INSERT INTO own VALUES (1)',
	'CREATE TABLE new (id int)',
	'EXPLAIN CREATE TABLE made AS SELECT 1',
	'CREATE TEMPORARY TABLE mine AS SELECT 1',
	'CREATE ROLE fence_new; DROP ROLE fence_new',
	q{SELECT bluegreen.set_local('new')},
	'INSERT INTO new VALUES (1)')
{
	my ($status, undef, $err) = $node->psql($sql);
	is("$status$err", 0, "closed, but passes: $sql");
}

#
# The deployment goes, the side stays closed until it is reopened
#
$node->safe_psql('DELETE FROM bluegreen.deployment');
is($node->safe_psql('SELECT deployment, state FROM bluegreen.fence_state'),
	'd|retired', 'a closed side outlives its deployment');
my (undef, undef, $err) = $node->psql('INSERT INTO app.t VALUES (300, 1)');
like($err, qr/this side of deployment "d" is closed/, 'and stays closed');
is($node->safe_psql('SELECT bluegreen.reopen()'), 1, 'until it is reopened');
is( $node->safe_psql(
		'INSERT INTO app.t VALUES (300, 1); INSERT INTO forgotten VALUES (1);
		SELECT count(*) FROM bluegreen.fence'),
	0, 'then all is as if nothing had been');
is($node->safe_psql(q{SELECT bluegreen.set_local('own', false);
	SELECT bluegreen.set_local('new', false);
	SELECT count(*) FROM bluegreen.fence_local}), "\n\n0", 'nothing is left');

done_testing();
