# bluegreen.preflight() where nobody is a superuser and names are hostile; a
# start that it refuses.
#
# Claims: an owner who is no superuser, with a role on green that is none,
# gets every row, and what they may not see is a row of its own.  Nobody else
# gets one.  Hints quote what they name: run as printed until nothing is found,
# they mend everything and do nothing else.  start refuses what concerns it,
# leaves both sides as they were, and warns of what may hurt.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Mistakes;
use BlueGreen::Preflight;
use Test::More;

my ($blue, $green) = create_pair(conf => "bluegreen.restart_delay = '100ms'");
my $port = $green->port;
my $deployment = q{it's "D"; --};
my ($schema, $table, $column, $role) =
  (q{House "1"; DROP TABLE canary; --}, q{It's a %s table}, q{Col"umn 'x'},
	q{App"lier 'x'});
my %id = map { $_ => '"' . s/"/""/gr . '"' } $schema, $table, $column, $role,
  'Landlord', 'Re"ader';
my ($s, $t, $c, $r) = @id{ $schema, $table, $column, $role };
my $name = $deployment =~ s/'/''/gr;

$blue->safe_psql(qq{CREATE ROLE mover LOGIN REPLICATION; CREATE ROLE stranger LOGIN;
	GRANT USAGE ON FOREIGN DATA WRAPPER pg_bluegreen TO mover;
	GRANT EXECUTE ON ROUTINE bluegreen.create_deployment,
		bluegreen.map_table(name, regclass, text, text,
			text[], text, text, text, text, text),
		bluegreen.map_table(name, text, text, text,
			text[], text, text, text, text, text),
		bluegreen.preflight, bluegreen.accept, bluegreen.start,
		bluegreen.wait_for_sync,
		bluegreen.alter_mapping(name, text, text, text, text[], text, text, text, text, text)
		TO mover, stranger;
	GRANT pg_monitor TO mover; CREATE TABLE canary (id int PRIMARY KEY);});
$green->safe_psql(qq{CREATE ROLE $r LOGIN PASSWORD 'open sesame';
	CREATE ROLE $id{Landlord}; CREATE TABLE canary (id int PRIMARY KEY);});
$green->require_password($r);
foreach my $node ($blue, $green)
{
	$node->safe_psql(qq{CREATE SCHEMA $s;
	CREATE TABLE $s.$t ($c int PRIMARY KEY, v text);
	CREATE TABLE $s."Child" (id int PRIMARY KEY,
		$c int CONSTRAINT "Ref's %s" REFERENCES $s.$t);
	CREATE TABLE $s."Parts" (id int PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE $s."Part 1" PARTITION OF $s."Parts"
		FOR VALUES FROM (0) TO (10);});
}
$blue->safe_psql(qq{GRANT USAGE ON SCHEMA $s TO mover;
	GRANT SELECT ON ALL TABLES IN SCHEMA $s TO mover;
	INSERT INTO $s.$t VALUES (1, 'a'), (2, 'b');
	INSERT INTO $s."Child" VALUES (1, 1);
	INSERT INTO $s."Parts" VALUES (1);});
$green->safe_psql(qq{ALTER SCHEMA $s OWNER TO $id{Landlord};
	ALTER TABLE $s.$t OWNER TO $id{Landlord};
	ALTER TABLE $s."Child" OWNER TO $id{Landlord};
	ALTER TABLE $s."Parts" OWNER TO $id{Landlord};
	ALTER TABLE $s."Part 1" OWNER TO $id{Landlord};});
my $applier = $role =~ s/'/''/gr;
$blue->safe_psql(qq{CREATE SERVER mine FOREIGN DATA WRAPPER pg_bluegreen
		OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	CREATE USER MAPPING FOR mover SERVER mine
		OPTIONS (user '$applier', password 'open sesame');
	SELECT bluegreen.create_deployment('$name', 'mine');
	SELECT bluegreen.accept('$name', 'way_back', 'green');
	SELECT count(bluegreen.map_table('$name', n)) FROM unnest(ARRAY[
		'$s.${\ ($t =~ s/'/''/gr)}', '$s."Child"', '$s."Parts"']::regclass[]) n;},
	user => 'mover');

my %mover = (user => 'mover');

# Run each hint that is found, until there is nothing or nothing changes.
sub mend
{
	my ($rounds, @left) = (shift);
	foreach my $round (1 .. $rounds)
	{
		@left = grep { $_->{severity} ne 'ok' }
		  preflight($blue, $deployment, %mover);
		last unless @left;
		foreach my $row (@left)
		{
			run_hint($blue, $green, $row->{hint});
		}
	}
	@left = grep { $_->{severity} ne 'ok' }
	  preflight($blue, $deployment, %mover);
	return join "\n", map { "$_->{check} $_->{object}: $_->{message}" } @left;
}

#
# What the role may not do, and not see
#
my @rows = preflight($blue, $deployment, %mover);
my @found = found(@rows);
is( join("\n", grep { /^(apply|vis)/ } @found),
	join("\n",
		"apply error $deployment",
		"apply_privileges error $role",
		'visibility notice pg_read_all_settings',
		'visibility notice pg_read_all_stats'),
	'a role without grants: what it lacks, and what it cannot see')
  or diag(join "\n", @found);
like((grep { $_->{check} eq 'apply_privileges' } @rows)[0]{message},
	qr/EXECUTE on bluegreen\.begin_apply\(\).*UPDATE on bluegreen\.applied_stream/s,
	'each privilege is named');
is(scalar(grep { /^target error/ } @found), 3, 'no target may be written');
is(mend(5), '', 'the hints mend all of it');
is( $green->safe_psql(qq{SELECT pg_has_role('$applier', 'pg_read_all_stats',
		'USAGE'), has_table_privilege('$applier', '$s."Child"', 'TRUNCATE')}),
	't|t', 'by granting what they said');

# tables that refer to each other
$green->safe_psql(qq{INSERT INTO $s.$t VALUES (1, 'mine');
	INSERT INTO $s."Child" VALUES (1, 1);});
is(scalar(grep { /^empty error/ } found(preflight($blue, $deployment, %mover))),
	2, 'targets with rows');
is(mend(1), '', 'are emptied together');

# another's deployment
my ($status, undef, $error) =
  $blue->psql("SELECT * FROM bluegreen.preflight('$name')", user => 'stranger');
like($error, qr/must be owner of deployment/, 'nobody else may look');
(undef, undef, $error) = $blue->psql(
	"SELECT bluegreen.accept('$name', 'role', 'x')", user => 'stranger');
like($error, qr/must be owner of deployment/, 'or accept');
(undef, undef, $error) = $blue->psql(q{BEGIN READ ONLY;
	SELECT * FROM bluegreen.preflight('x')});
like($error, qr/read-only transaction/, 'it keeps its result');
(undef, undef, $error) = $blue->psql(
	q{SELECT * FROM bluegreen.preflight(NULL)});
like($error, qr/argument "deployment" must not be null/, 'null is no name');

#
# A start that is refused
#
my $start = qq{SET ROLE mover; CALL bluegreen.start('$name')};
my %refused = (
	sql => $start,
	state => '55000');
try_mistakes(
	$blue, $green,
	{
		%refused,
		title => 'a grant that was taken back',
		green => "REVOKE INSERT ON bluegreen.applied_chunk FROM $r",
		message => qr/^cannot start deployment "\Q$deployment\E": role "App"lier 'x'" lacks what streams need on green: INSERT on bluegreen\.applied_chunk$/,
		hint => qr/^-- on green$/,
		green_after => "GRANT INSERT ON bluegreen.applied_chunk TO $r"
	},
	{
		%refused,
		title => 'a rule that changes what is written',
		green => qq{CREATE RULE "R's" AS ON UPDATE TO $s.$t DO INSTEAD NOTHING;
			ALTER TABLE $s.$t ENABLE ALWAYS RULE "R's"},
		message => qr/^cannot apply changes to table/,
		green_after => qq{DROP RULE "R's" ON $s.$t}
	},
	{
		%refused,
		title => 'a target with rows',
		green => qq{INSERT INTO $s.$t VALUES (1, 'mine')},
		message => qr/ is not empty$/,
		green_after => qq{DELETE FROM $s.$t}
	});
$green->safe_psql(qq{CREATE FUNCTION noise() RETURNS trigger LANGUAGE plpgsql
		AS 'BEGIN RETURN NEW; END';
	CREATE TRIGGER "Noisy's" BEFORE UPDATE ON $s.$t FOR EACH ROW
		EXECUTE FUNCTION noise();
	ALTER TABLE $s.$t ENABLE ALWAYS TRIGGER "Noisy's";});
(undef, undef, $error) = $blue->psql($start);
like($error, qr/WARNING:  trigger "Noisy's" of table .* fires for each row/,
	'what may hurt is only warned of');
wait_for_sync($name);
compare_tables("TABLE $s.$t", "TABLE $s.$t", 'it is started');
is(mend(2), '', 'the hint mends that, too');

#
# Everything at once, under names that mean harm
#
$green->safe_psql(qq{
	ALTER TABLE $s.$t ADD CONSTRAINT "U'n %s" UNIQUE (v) DEFERRABLE;
	ALTER TABLE $s.$t ADD CONSTRAINT "C'h;" CHECK (v <> '') NOT VALID;
	ALTER TABLE $s.$t DISABLE TRIGGER "Noisy's";
	CREATE RULE "R's" AS ON UPDATE TO $s.$t DO ALSO NOTHING;
	ALTER TABLE $s.$t DISABLE RULE "R's";
	ALTER TABLE $s."Part 1" OWNER TO postgres;
	CREATE MATERIALIZED VIEW $s."M;
DROP TABLE canary; --" AS SELECT 1 AS one WITH NO DATA;
	CREATE UNIQUE INDEX "I'x;" ON $s.$t (($c + 0));
	UPDATE pg_index SET indisvalid = false
		WHERE indexrelid = '$s."I''x;"'::regclass;
	SET session_replication_role = replica;
	INSERT INTO $s."Child" VALUES (1000, 1000);});
$blue->safe_psql(qq{
	CREATE ROLE $id{'Re"ader'}; GRANT SELECT ON $s.$t TO $id{'Re"ader'};
	CREATE UNLOGGED TABLE $s."U's" (id int PRIMARY KEY);
	CREATE SEQUENCE $s."S;q'";
	CREATE TABLE $s."New's" (id int); INSERT INTO $s."New's" VALUES (1);
	ALTER TABLE $s."Child" ADD COLUMN "C;'l" text;
	SELECT lo_create(1);
	BEGIN; INSERT INTO $s."New's" VALUES (2); PREPARE TRANSACTION 'it''s; %s';});
$blue->poll_query_until(qq{SELECT pg_stat_get_tuples_inserted(
	'$s."New''s"'::regclass) > 0});
@found = found(preflight($blue, $deployment, %mover,
		set => 'SET bluegreen.long_transaction = 0'));
is( join(' ', sort map { (split / /)[0] } @found),
	join(' ', sort qw(deferrable_constraint not_valid_constraint silent_trigger
		rule partition_owner materialized_view index foreign_key role
		unlogged_table sequence unmapped_table new_column large_object
		prepared_transaction)),
	'all of it is found') or diag(join "\n", @found);
{
	my %set = (set => 'SET bluegreen.long_transaction = 0');
	my ($row) = grep { $_->{check} eq 'prepared_transaction' }
	  preflight($blue, $deployment, %mover, %set);
	run_hint($blue, $green, $row->{hint});
	is($blue->safe_psql('SELECT count(*) FROM pg_prepared_xacts'), 0,
		'its hint ends the prepared transaction');
}
# what is accepted stays as a notice
my @left = grep { !/: accepted: / } split /\n/, mend(3);
is(join("\n", @left), '', 'and all hints together mend it');
is( $green->safe_psql('SELECT count(*) FROM canary')
	  . $blue->safe_psql('SELECT count(*) FROM canary'),
	'00', 'and do nothing else');
like($blue->safe_psql('SELECT preflight FROM bluegreen.status', %mover),
	qr/^notice /, 'the owner sees it in status');

# a table of which the role may not see the rows: another column will not do
$green->safe_psql(qq{CREATE TABLE public.elsewhere (id int PRIMARY KEY, v int);
	GRANT SELECT (v) ON public.elsewhere TO PUBLIC;
	ALTER TABLE $s."Child" ADD CONSTRAINT there FOREIGN KEY (id)
		REFERENCES public.elsewhere NOT VALID;
	ALTER TABLE public.elsewhere OWNER TO $id{Landlord};});
@rows = preflight($blue, $deployment, %mover);
my ($blind) = grep { $_->{check} eq 'foreign_key' } @rows;
like($blind->{message}, qr/cannot be looked at/,
	'a foreign key that it cannot look at is a row');
ok(run_hint($blue, $green, $blind->{hint}), 'with a hint');
@rows = preflight($blue, $deployment, %mover);
is(join(' ', map { $_->{severity} } grep { $_->{check} eq 'foreign_key' } @rows),
	'error', 'after which it is looked at');
$green->safe_psql('ALTER TABLE public.elsewhere OWNER TO postgres');
($blind) = grep { $_->{check} eq 'foreign_key' }
  preflight($blue, $deployment, %mover);
like($blind->{message}, qr/have different owners/,
	'code of one owner does not run as another: this is said');
$green->safe_psql(qq{ALTER TABLE $s."Child" ENABLE ROW LEVEL SECURITY;
	ALTER TABLE $s."Child" DROP CONSTRAINT there});
($blind) = grep { $_->{check} eq 'foreign_key' }
  preflight($blue, $deployment, %mover);
is($blind->{severity}, 'warning', 'so is one that it sees a part of');
like($blind->{message}, qr/cannot be looked at/, 'and it says so');
ok(run_hint($blue, $green, $blind->{hint}), 'with a hint');
is(scalar(grep { /^foreign_key/ } found(preflight($blue, $deployment, %mover))),
	0, 'after which it is looked at');

done_testing();
