# bluegreen.preflight() of a deployment that runs: tables, constraints, data.
#
# Claims: a healthy pair has nothing above ok.  Whatever stands in the way of a
# switchover, or would be lost by it, is found: exactly it, at its severity.
# The hint, run as it is printed on the side that it names, mends it, and
# nothing is found any more.  What no statement mends can be accepted, and
# withdrawn; it is a notice then.  status shows the last preflight.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Preflight;
use Test::More;

my ($blue, $green) = create_pair();
$_->safe_psql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b));
	CREATE TABLE child (id int PRIMARY KEY, a int, b int,
		CONSTRAINT child_fk FOREIGN KEY (a, b) REFERENCES parent);
	CREATE TABLE strict (id int PRIMARY KEY, a int, b int,
		CONSTRAINT strict_fk FOREIGN KEY (a, b) REFERENCES parent MATCH FULL);
	CREATE TABLE log (a int);
	ALTER TABLE log REPLICA IDENTITY FULL;
	CREATE TABLE s (id serial PRIMARY KEY);
	CREATE TABLE few (id int PRIMARY KEY, v text);
	CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (100);})
  for $blue, $green;
$blue->safe_psql(q{
	INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) i;
	INSERT INTO parent SELECT i, i FROM generate_series(1, 10) i;
	INSERT INTO child SELECT i, i, i FROM generate_series(1, 10) i;
	INSERT INTO child VALUES (11, NULL, 1);
	INSERT INTO strict VALUES (1, 1, 1), (2, NULL, NULL);
	INSERT INTO log VALUES (1);
	INSERT INTO s SELECT FROM generate_series(1, 10);
	INSERT INTO few VALUES (1, 'x');
	INSERT INTO parts SELECT generate_series(1, 10);
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.accept('d', 'way_back', 'green');
	SELECT bluegreen.map_table('d', 'few',
		transform => 'SELECT id, upper(v) AS v FROM few');
	SELECT count(bluegreen.map_table('d', n)) FROM unnest('{t,parent,child,
		strict,log,s,parts}'::regclass[]) n;});
$green->safe_psql(q{CREATE ROLE landlord});

sub status { return $blue->safe_psql(
		q{SELECT preflight, preflight_at > now() - interval '10 minutes'
			FROM bluegreen.stat_stream}) }

#
# Healthy
#
is(status(), '|', 'no preflight was there');
nothing_found($blue, 'd', 'a pair that can be started');
is(status(), 'notice|t', 'stat_stream has the last preflight');
like($blue->safe_psql('SELECT preflight FROM bluegreen.status'),
	qr/^notice (\d+s|\d+min)$/, 'and so has status');
foreach my $age ([ '61 s', '1min' ], [ '100 min', '1h' ], [ '73 hours', '3d' ])
{
	is( $blue->safe_psql("BEGIN; UPDATE bluegreen.preflight_result
			SET at = now() - '$age->[0]'::interval;
		SELECT preflight FROM bluegreen.status"),
		"notice $age->[1]", "status says how long ago it was: $age->[0]");
}
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_sync('d');
cmp_ok(nothing_found($blue, 'd', 'a pair that follows'),
	'>', 50, 'every check has a row');
is( $blue->safe_psql(q{BEGIN; SELECT count(*) > 0 FROM bluegreen.preflight('d');
		ROLLBACK; SELECT count(*) FROM bluegreen.stat_stream
		WHERE state = 'streaming' AND errors = 0}),
	"t\n1", 'and the stream is left alone');
is( $blue->safe_psql(q{BEGIN; SELECT count(*) > 0 FROM bluegreen.preflight('d');
		SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()
		AND relation IN (SELECT oid FROM pg_class WHERE relkind <> 'S'
			AND relnamespace = 'public'::regnamespace)}),
	"t\n0", 'no mapped table stays locked');

fires_and_mends(
	$blue, $green, 'd',
	#
	# Constraints and indexes
	#
	{
		check => 'deferrable_constraint', severity => 'warning',
		object => 'public.t t_v_key',
		green => 'ALTER TABLE t ADD CONSTRAINT t_v_key UNIQUE (v)
			DEFERRABLE INITIALLY DEFERRED'
	},
	{
		check => 'index', severity => 'error', object => 'public.t_v_key',
		green => q{UPDATE pg_index SET indisvalid = false
			WHERE indexrelid = 't_v_key'::regclass},
		green_after => 'ALTER TABLE t DROP CONSTRAINT t_v_key'
	},
	{
		check => 'exclusion_constraint', severity => 'warning',
		object => 'public.t only_one',
		green => 'ALTER TABLE t ADD CONSTRAINT only_one
			EXCLUDE USING btree (id WITH =)',
		green_after => 'ALTER TABLE t DROP CONSTRAINT only_one',
		blue_after => 'ALTER TABLE t DROP CONSTRAINT only_one'
	},
	{
		check => 'not_valid_constraint', severity => 'warning',
		object => 'public.t t_check',
		green => q{ALTER TABLE t ADD CONSTRAINT t_check CHECK (v <> '')
			NOT VALID}
	},
	{
		title => 'a reference to nothing',
		check => 'foreign_key', severity => 'error',
		object => 'public.child child_fk',
		message => qr/^1 rows of table public\.child refer to rows that table public\.parent does not have/,
		green => q{SET session_replication_role = replica;
			INSERT INTO child VALUES (1000, 9, 8), (1001, 9, NULL);}
	},
	{
		title => 'half a reference where all or nothing is due',
		check => 'foreign_key', severity => 'error',
		object => 'public.strict strict_fk',
		message => qr/^1 rows /,
		green => q{SET session_replication_role = replica;
			INSERT INTO strict VALUES (1000, 9, NULL);},
		green_after => 'DELETE FROM child WHERE id = 1001'
	},
	{
		check => 'foreign_key', severity => 'error',
		title => 'a parent that is gone, though the key is marked valid',
		object => 'public.child child_fk',
		green => q{ALTER TABLE child VALIDATE CONSTRAINT child_fk;
			SET session_replication_role = replica;
			INSERT INTO child VALUES (1000, 7, 7);
			UPDATE child SET b = 1 WHERE id = 1000;},
	},

	#
	# Triggers and rules
	#
	{
		check => 'firing_trigger', severity => 'warning',
		object => 'public.t noisy',
		green => q{CREATE FUNCTION noise() RETURNS trigger LANGUAGE plpgsql
				AS 'BEGIN RETURN NEW; END';
			CREATE TRIGGER noisy BEFORE UPDATE ON t FOR EACH ROW
				EXECUTE FUNCTION noise();
			ALTER TABLE t ENABLE ALWAYS TRIGGER noisy;}
	},
	{
		check => 'silent_trigger', severity => 'warning',
		object => 'public.t noisy',
		green => 'ALTER TABLE t DISABLE TRIGGER noisy'
	},
	{
		title => 'foreign keys that are switched off',
		check => 'silent_trigger', severity => 'error',
		object => 'public.child',
		green => 'ALTER TABLE child DISABLE TRIGGER ALL'
	},
	{
		check => 'rule', severity => 'warning', object => 'public.t r',
		green => 'CREATE RULE r AS ON DELETE TO t DO ALSO NOTHING;
			ALTER TABLE t ENABLE REPLICA RULE r'
	},
	{
		title => 'a rule that is disabled',
		check => 'rule', severity => 'warning', object => 'public.t r',
		green => 'ALTER TABLE t DISABLE RULE r',
		green_after => 'DROP RULE r ON t'
	},
	{
		check => 'partition_owner', severity => 'error',
		object => 'public.parts1',
		green => 'ALTER TABLE parts OWNER TO landlord'
	},

	#
	# What changes do not say, or streams do not carry
	#
	{
		check => 'keyless_identity', severity => 'warning',
		object => 'public.log',
		blue => 'ALTER TABLE log REPLICA IDENTITY DEFAULT'
	},
	{
		check => 'unlogged_table', severity => 'warning',
		object => 'public.cache',
		blue => 'CREATE UNLOGGED TABLE cache (id int PRIMARY KEY)'
	},
	{
		check => 'large_object', severity => 'error',
		object => 'large objects',
		blue => 'SELECT lo_create(4711)',
		then => ['large_object notice large objects'],
		blue_after => q{SELECT lo_unlink(4711)}
	},
	{
		check => 'materialized_view', severity => 'warning',
		object => 'public.mv',
		green => 'CREATE MATERIALIZED VIEW mv AS SELECT 1 AS one WITH NO DATA'
	},
	{
		check => 'sequence', severity => 'warning', object => 'public.alone',
		blue => 'CREATE SEQUENCE alone AS smallint START 7 INCREMENT 3 CYCLE'
	},
	{
		title => 'a sequence without which a column has no default',
		check => 'sequence', severity => 'warning', object => 'public.s_id_seq',
		green => 'DROP SEQUENCE s_id_seq CASCADE'
	},
	{
		title => 'a sequence that is too short',
		check => 'sequence', severity => 'error', object => 'public.alone',
		also => ['sequence_move warning public.alone'],
		blue => q{ALTER SEQUENCE alone AS bigint MAXVALUE 5000000000;
			SELECT setval('alone', 4000000000)}
	},
	{
		title => 'a table that is not on green',
		check => 'unmapped_table', severity => 'error',
		object => 'public.extra', wait => 1,
		blue => 'CREATE TABLE extra (id int PRIMARY KEY);
			INSERT INTO extra VALUES (1)',
		then => ['unmapped_table notice public.extra'],
		blue_after => q{SELECT bluegreen.accept('d', 'unmapped_table',
				'public.extra', false)}
	},
	{
		title => 'a table that is',
		check => 'unmapped_table', severity => 'error',
		object => 'public.extra',
		green => 'CREATE TABLE extra (id int PRIMARY KEY)',
		then => ['stream error d'],
		blue_after => q{CALL bluegreen.wait_for_sync('d', '180 s');
			SELECT bluegreen.unmap_table('d', 'extra');
			CALL bluegreen.wait_for_sync('d', '180 s');
			SELECT pg_stat_reset_single_table_counters('extra'::regclass);}
	},
	{
		title => 'a table that is not written',
		check => 'unmapped_table', severity => 'notice', wait => 1,
		object => 'public.extra',
		blue => 'SELECT 1',
		green => 'DROP TABLE extra',
		then => ['unmapped_table notice public.extra'],
		blue_after => 'DROP TABLE extra'
	},
	{
		title => 'columns that came later',
		check => 'new_column', severity => 'error', object => 'public.t',
		message => qr/: column color, size$/,
		blue => q{ALTER TABLE t ADD COLUMN color text;
			ALTER TABLE t ADD COLUMN size numeric(10,2)},
		wait => 1
	},
	{
		title => 'one beside a transform',
		check => 'new_column', severity => 'error', object => 'public.few',
		blue => q{ALTER TABLE few ADD COLUMN color text},
		then => ['new_column notice public.few'],
		blue_after => q{ALTER TABLE few DROP COLUMN color}
	});

#
# The stream, and what there is to be known about targets
#
fires_and_mends(
	$blue, $green, 'd',
	{
		check => 'stream', severity => 'error', object => 'd',
		message => qr/^stream is in state stopped/,
		blue => q{CALL bluegreen.stop('d')}
	},
	{
		check => 'target', severity => 'error', object => 'public.s',
		title => 'a target that has lost a column',
		green => 'ALTER TABLE s ADD COLUMN x int; ALTER TABLE s DROP COLUMN id',
		also => ['sequence warning public.s_id_seq'],
		message => qr/no unique index|has no column "id" any more/,
		before => sub {
			$blue->safe_psql(q{SELECT bluegreen.unmap_table('d', 's')});
			$_->safe_psql(q{DROP TABLE s; CREATE TABLE s (k int PRIMARY KEY,
				id int)}) for $blue, $green;
			$blue->safe_psql(q{SELECT bluegreen.map_table('d', 's');
				CALL bluegreen.wait_for_sync('d', '180 s')});
		}
	});

#
# What nobody can mend
#
$blue->safe_psql('SELECT lo_create(4712)');
is(join(' ', found(preflight($blue, 'd'))),
	'large_object notice large objects', 'what was accepted stays accepted');
is(status(), 'notice|t', 'stat_stream has it');
my ($accepted) = grep { $_->{severity} ne 'ok' } preflight($blue, 'd');
like($accepted->{message}, qr/^accepted: 1 large objects/, 'and says so');
is($accepted->{hint}, '', 'without a hint');
$blue->safe_psql(
	q{SELECT bluegreen.accept('d', 'large_object', 'large objects', false)});
is(join(' ', found(preflight($blue, 'd'))),
	'large_object error large objects', 'until it is withdrawn');
is(status(), 'error|t', 'stat_stream has that, too');
is( ($blue->psql(q{SELECT bluegreen.accept('d', 'wal_level', 'blue')}))[0] != 0
	  && ($blue->psql(q{SELECT bluegreen.accept('d', 'nonsense', 'x')}))[0] != 0
	  && ($blue->psql(q{SELECT bluegreen.accept('d', 'role', 'x', false)}))[0],
	3,
	'what nothing works without cannot be accepted, nor what does not exist');
$blue->safe_psql('SELECT lo_unlink(4712)');
nothing_found($blue, 'd', 'all is well at the end');
wait_for_sync('d');
compare_tables('SELECT id, v FROM t', 'SELECT id, v FROM t',
	'and the stream has followed');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
is($blue->safe_psql('SELECT count(*) FROM bluegreen.preflight_result'),
	0, 'what is known of a deployment goes with it');

done_testing();
