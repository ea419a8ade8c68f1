# Session tables of frameworks, adopted: their own statements, on both sides
# while neither knows of the other.  The later payload counts, the later expiry,
# a logout stays, what expired on one side only goes on.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\n"
	  . 'bluegreen.session_purge_interval = 0');
my @sides = ($blue, $green);

# Each framework's table and statements; $k the key, $v the payload, $e the
# seconds until it expires.
my %frameworks = (
	'connect-pg-simple' => {
		table => 'session',
		ddl => q{CREATE TABLE session (sid varchar PRIMARY KEY,
				sess json NOT NULL, expire timestamp(6) NOT NULL)},
		create => q{INSERT INTO session (sess, expire, sid)
			SELECT '{"v": "$v"}', to_timestamp($t), '$k' ON CONFLICT (sid)
			DO UPDATE SET sess = '{"v": "$v"}', expire = to_timestamp($t)
			RETURNING sid},
		touch => q{UPDATE session SET expire = to_timestamp($t)
			WHERE sid = '$k' RETURNING sid},
		delete => q{DELETE FROM session WHERE sid = '$k'},
		purge => 'DELETE FROM session WHERE expire < to_timestamp($t)',
		read => q{SELECT sess ->> 'v' FROM session WHERE sid = '$k'
			AND expire >= to_timestamp($t)},
		all => 'SELECT sid, sess::text, expire FROM session',
		upserts => 1,
	},
	'spring-session' => {
		table => 'spring_session',
		ddl => q{CREATE TABLE spring_session (
				primary_id char(36) PRIMARY KEY,
				session_id char(36) NOT NULL UNIQUE,
				creation_time bigint NOT NULL, last_access_time bigint NOT NULL,
				max_inactive_interval int NOT NULL, expiry_time bigint NOT NULL,
				principal_name varchar(100));
			CREATE TABLE spring_session_attributes (
				session_primary_id char(36) NOT NULL
					REFERENCES spring_session ON DELETE CASCADE,
				attribute_name varchar(200) NOT NULL,
				attribute_bytes bytea NOT NULL,
				PRIMARY KEY (session_primary_id, attribute_name))},
		create => q{INSERT INTO spring_session VALUES
				('$k', 's-$k', 1, 1, 1800, $t::bigint * 1000, NULL);
			INSERT INTO spring_session_attributes VALUES ('$k', 'v', '$v'),
				('$k', 'kept', 'kept')},
		write => q{UPDATE spring_session SET session_id = 's-$k',
				last_access_time = 2, max_inactive_interval = 1800,
				expiry_time = $t::bigint * 1000, principal_name = NULL
				WHERE primary_id = '$k';
			UPDATE spring_session_attributes SET attribute_bytes = '$v'
				WHERE session_primary_id = '$k' AND attribute_name = 'v'},
		touch => q{UPDATE spring_session SET session_id = 's-$k',
				last_access_time = 3, max_inactive_interval = 1800,
				expiry_time = $t::bigint * 1000, principal_name = NULL
				WHERE primary_id = '$k'},
		delete => q{DELETE FROM spring_session WHERE session_id = 's-$k'
			AND max_inactive_interval >= 0},
		# with its attributes, which the other side would not send again
		early => 'DELETE FROM spring_session WHERE expiry_time < $t::bigint * 1000',
		read => q{SELECT string_agg(encode(attribute_bytes, 'escape'), ' '
				ORDER BY attribute_name DESC)
			FROM spring_session s LEFT JOIN spring_session_attributes a
				ON a.session_primary_id = s.primary_id
			WHERE s.session_id = 's-$k' AND expiry_time >= $t::bigint * 1000},
		suffix => ' kept',
		all => q{SELECT s.*, attribute_name, attribute_bytes
			FROM spring_session s FULL JOIN spring_session_attributes a
				ON a.session_primary_id = s.primary_id},
	},
	django => {
		table => 'django_session',
		ddl => q{CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY,
				session_data text NOT NULL, expire_date timestamptz NOT NULL)},
		create => q{INSERT INTO django_session (session_key, session_data,
			expire_date) VALUES ('$k', '$v', to_timestamp($t))},
		write => q{UPDATE django_session SET session_data = '$v',
			expire_date = to_timestamp($t) WHERE session_key = '$k'},
		touch => q{UPDATE django_session SET session_data = session_data,
			expire_date = to_timestamp($t) WHERE session_key = '$k'},
		delete => q{DELETE FROM django_session WHERE session_key IN ('$k')},
		purge => q{DELETE FROM django_session WHERE expire_date < to_timestamp($t)},
		read => q{SELECT session_data FROM django_session
			WHERE session_key = '$k' AND expire_date > to_timestamp($t)},
		all => 'TABLE django_session',
	},
	rails => {
		table => 'rails_sessions',
		ddl => q{CREATE TABLE rails_sessions (id bigserial PRIMARY KEY,
				session_id varchar NOT NULL UNIQUE, data text,
				created_at timestamp NOT NULL, updated_at timestamp NOT NULL)},
		create => q{INSERT INTO rails_sessions (session_id, data, created_at,
			updated_at) VALUES ('$k', '$v', '2026-01-01', to_timestamp($t)
				AT TIME ZONE 'UTC') RETURNING id},
		write => q{UPDATE rails_sessions SET data = '$v',
			updated_at = to_timestamp($t) AT TIME ZONE 'UTC' WHERE id =
				(SELECT id FROM rails_sessions WHERE session_id = '$k' LIMIT 1)},
		touch => q{UPDATE rails_sessions SET
			updated_at = to_timestamp($t) AT TIME ZONE 'UTC' WHERE id =
				(SELECT id FROM rails_sessions WHERE session_id = '$k' LIMIT 1)},
		delete => q{DELETE FROM rails_sessions WHERE id =
				(SELECT id FROM rails_sessions WHERE session_id = '$k' LIMIT 1)},
		read => q{SELECT data FROM rails_sessions WHERE session_id = '$k'},
		touched => q{SELECT updated_at = to_timestamp($t) AT TIME ZONE 'UTC'
			FROM rails_sessions WHERE session_id = '$k'},
		all => q{SELECT session_id, data, created_at, updated_at
			FROM rails_sessions},
	},
	laravel => {
		table => 'laravel_sessions',
		ddl => q{CREATE TABLE laravel_sessions (id varchar(255) PRIMARY KEY,
				user_id bigint, ip_address varchar(45), user_agent text,
				payload text NOT NULL, last_activity integer NOT NULL)},
		create => q{INSERT INTO laravel_sessions (id, payload, last_activity)
			VALUES ('$k', '$v', $t)},
		write => q{UPDATE laravel_sessions SET payload = '$v', last_activity = $t,
			user_agent = 'x' WHERE id = '$k'},
		touch => q{UPDATE laravel_sessions SET last_activity = $t
			WHERE id = '$k'},
		delete => q{DELETE FROM laravel_sessions WHERE id = '$k'},
		read => q{SELECT payload FROM laravel_sessions WHERE id = '$k'},
		touched => q{SELECT last_activity = $t FROM laravel_sessions
			WHERE id = '$k'},
		all => 'TABLE laravel_sessions',
	},
	symfony => {
		table => 'symfony_sessions',
		ddl => q{CREATE TABLE symfony_sessions (sess_id varchar(128) PRIMARY KEY,
				sess_data bytea NOT NULL, sess_lifetime integer NOT NULL,
				sess_time integer NOT NULL)},
		create => q{INSERT INTO symfony_sessions VALUES ('$k', '$v', $t, 1)
			ON CONFLICT (sess_id) DO UPDATE SET (sess_data, sess_lifetime,
				sess_time) = (EXCLUDED.sess_data, EXCLUDED.sess_lifetime,
				EXCLUDED.sess_time)},
		touch => q{UPDATE symfony_sessions SET sess_lifetime = $t, sess_time = 2
			WHERE sess_id = '$k'},
		delete => q{DELETE FROM symfony_sessions WHERE sess_id = '$k'},
		purge => 'DELETE FROM symfony_sessions WHERE sess_lifetime < $t',
		read => q{SELECT encode(sess_data, 'escape') FROM symfony_sessions
			WHERE sess_id = '$k' AND sess_lifetime >= $t},
		all => 'TABLE symfony_sessions',
		upserts => 1,
	},
	custom => {
		table => 'my_sessions',
		ddl => q{CREATE TABLE my_sessions (a int, b int, seen timestamptz, v text,
				PRIMARY KEY (a, b))},
		options => '{"key": ["a", "b"], "touch": ["seen"], "expiry": "seen",
			"lifetime": "30 minutes"}',
		create => q{INSERT INTO my_sessions VALUES (1, hashtext('$k'),
			to_timestamp($t), '$v')},
		write => q{UPDATE my_sessions SET v = '$v', seen = to_timestamp($t)
			WHERE a = 1 AND b = hashtext('$k')},
		touch => q{UPDATE my_sessions SET seen = to_timestamp($t)
			WHERE a = 1 AND b = hashtext('$k')},
		delete => q{DELETE FROM my_sessions WHERE b = hashtext('$k')},
		read => q{SELECT v FROM my_sessions WHERE b = hashtext('$k')},
		touched => q{SELECT seen = to_timestamp($t) FROM my_sessions
			WHERE b = hashtext('$k')},
		all => 'TABLE my_sessions',
	});
my @names = sort keys %frameworks;
my $start = time;
my $expires = sub { $frameworks{ $_[0] }{purge} || $frameworks{ $_[0] }{early} };

my %app;						# sessions of applications

# A framework's statement.  $seconds are those from the start of the test until
# the session expires.
sub run
{
	my ($node, $name, $what, $key, $value, $seconds) = @_;
	my $sql = $frameworks{$name}{$what} // $frameworks{$name}{create};
	my $time = $start + ($seconds // 1000);
	$sql =~ s/\$k/$key/g;
	$sql =~ s/\$v/$value/g if defined $value;
	$sql =~ s/\$t\b/$time/g;
	my $app = $app{ $node->name } //= $node->session;
	my $result = $app->query("SET SESSION AUTHORIZATION app; $sql");
	die $app->errors if $app->errors ne '';
	return $result;
}

foreach my $node (@sides)
{
	$node->safe_psql(join ';', 'CREATE ROLE app LOGIN',
		map { $frameworks{$_}{ddl} } @names);
	$node->safe_psql("GRANT SELECT, INSERT, UPDATE, DELETE ON "
		  . join(', ', map { $frameworks{$_}{table} } @names)
		  . ', spring_session_attributes TO app;'
		  . ' GRANT USAGE ON SEQUENCE rails_sessions_id_seq TO app');
}
# surrogate ids differ
$green->safe_psql(q{SELECT setval('rails_sessions_id_seq', 1000)});
run($blue, $_, 'create', 'early', 'early') for @names;

#
# Adopting
#
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green')});
my (undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.adopt_sessions('d', 'session', 'connect-pg-simple')});
like($error, qr/prepare_sessions\('public.session', preset, 'blue'\)/,
	'blue has to be prepared first');
$blue->safe_psql(
	q{SELECT bluegreen.prepare_sessions('session', 'connect-pg-simple', 'blue')});
(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.adopt_sessions('d', 'session', 'connect-pg-simple')});
like($error, qr/prepare_sessions\('public.session', preset, 'green'\)/,
	'and green');
(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.adopt_sessions('d', 'session', 'express')});
like($error, qr/unknown preset.*connect-pg-simple, spring-session, django/s,
	'an unknown preset');
(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.prepare_sessions('session', 'django', 'blue')});
like($error, qr/column "expire_date" of table "session" does not exist/,
	'the wrong preset');
(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.prepare_sessions('session', 'custom', 'blue')});
like($error, qr/not complete/, 'custom without options');
(undef, undef, $error) = $blue->psql(
	q{CREATE UNLOGGED TABLE fleeting (LIKE session);
	SELECT bluegreen.prepare_sessions('fleeting', 'connect-pg-simple', 'blue')});
like($error, qr/unlogged.*ALTER TABLE public.fleeting SET LOGGED/s,
	'an unlogged table, and what mends it');
(undef, undef, $error) = $blue->psql(q{SET SESSION AUTHORIZATION app;
	SELECT bluegreen.prepare_sessions('session', 'connect-pg-simple', 'blue')});
like($error, qr/permission denied/, 'not for everybody');

(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.prepare_sessions('session', 'connect-pg-simple', 'blue',
		'{"touch": ["sess", "expire"]}')});
like($error, qr/values of column "sess".* cannot be compared.*type json/s,
	'times of a type without an order');
(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.prepare_sessions('session', 'connect-pg-simple', 'blue',
		'{"expiry": "sess"}')});
like($error, qr/cannot cast type json/, 'an expiry that is none');

# options other than those of prepare_sessions would not count
$green->safe_psql(q{SELECT bluegreen.prepare_sessions('laravel_sessions',
	'laravel', 'green', '{"lifetime": "3 hours"}')});
$blue->safe_psql(q{SELECT bluegreen.prepare_sessions('laravel_sessions',
	'laravel', 'blue')});
foreach my $try ([ 'NULL', 'green' ], [ q{'{"lifetime": "3 hours"}'}, 'blue' ])
{
	(undef, undef, $error) = $blue->psql(
		"SELECT bluegreen.adopt_sessions('d', 'laravel_sessions', 'laravel',
			$try->[0])");
	like($error, qr/on $try->[1] is prepared for sessions with .*other options/,
		"with other options than on $try->[1]");
}

# the names of a framework's table and preset, and its options
sub arguments
{
	my ($name, $side) = @_;
	my $options = $frameworks{$name}{options};
	return "'$frameworks{$name}{table}', '$name', "
	  . (defined $side ? "'$side', " : '')
	  . (defined $options ? "'$options'" : 'NULL');
}
foreach my $node (@sides)
{
	$node->safe_psql(join '', map { 'SELECT bluegreen.prepare_sessions('
			  . arguments($_, $node->name) . ');' } @names);
}
my $mappings = $blue->safe_psql('SELECT '
	  . join ' + ',
	map { "bluegreen.adopt_sessions('d', " . arguments($_) . ')' } @names);
is($mappings, 4 * 6 + 8, 'mappings both ways, of tables and tombstones');
(undef, undef, $error) = $blue->psql(
	q{SELECT bluegreen.alter_mapping('d', 'session', on_delete => 'delete')});
like($error, qr/must merge and ignore deletes/, '... which stay what they are');
foreach my $table ('session', 'session_bluegreen_gone')
{
	foreach my $node (@sides)
	{
		(undef, undef, $error) = $node->psql("TRUNCATE $table");
		like($error, qr/cannot truncate table "$table"/,
			"TRUNCATE of $table on " . $node->name);
	}
}
is( $blue->safe_psql(q{SELECT * FROM bluegreen.preflight('d')
		WHERE "check" LIKE '%trigger%' AND severity <> 'ok'}),
	'', 'preflight does not warn of our own triggers');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_both('d');

my $everything = join ' UNION ALL ',
  map { "SELECT '$_', t::text FROM ($frameworks{$_}{all}) t" } @names;

sub same
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('d');
	compare_tables($everything, $everything, "$what: both sides are the same");
	return;
}
same('copied');

#
# Both write, and neither knows of the other
#
foreach my $name (@names)
{
	run($blue, $name, 'create', $_, 'first', 5000) for qw(a b c d e f);
	run($blue, $name, 'create', 'g', 'first', 3) if $expires->($name);
}
wait_for_both('d');
$blue->safe_psql(q{CALL bluegreen.stop('d')});
foreach my $name (@names)
{
	run($green, $name, 'write', 'a', 'green', 6000);
	run($blue, $name, 'touch', 'a', undef, 9000);
	run($green, $name, 'write', 'b', 'green', 6000);
	run($blue, $name, 'write', 'b', 'blue', 7000);
	run($blue, $name, 'write', 'c', 'blue', 6000);
	run($green, $name, 'write', 'c', 'green', 7000);
	run($blue, $name, 'delete', 'd');
	run($green, $name, 'write', 'd', 'late', 6000);
	run($green, $name, 'touch', 'e', undef, 6000);
	run($green, $name, 'delete', 'e');
	run($blue, $name, 'touch', 'e', undef, 7000);
	run($blue, $name, 'delete', 'f');
	run($green, $name, 'delete', 'f');
	run($green, $name, 'touch', 'g', undef, 8000) if $expires->($name);
}
$blue->poll_query_until("SELECT extract(epoch FROM now()) > $start + 4") or die;
foreach my $name (grep { $frameworks{$_}{early} } @names)
{
	run($blue, $name, 'early', 'g', undef, 4);
	is(run($blue, $name, 'read', 'g', undef, 0),
		"first$frameworks{$name}{suffix}",
		"$name: what has just expired is not removed");
}
$blue->append_conf('bluegreen.session_retention = 0');
$blue->reload;
$blue->poll_query_until(
	"SELECT current_setting('bluegreen.session_retention') = '0'") or die;
foreach my $name (grep { $frameworks{$_}{purge} } @names)
{
	run($blue, $name, 'purge', 'g', undef, 4);
	is(run($blue, $name, 'read', 'g', undef, 0), '',
		"$name: blue takes a session for expired, and removes it");
}
$blue->safe_psql(q{CALL bluegreen.start('d')});
same('after both have written');
foreach my $name (@names)
{
	my $suffix = $frameworks{$name}{suffix} // '';
	foreach my $node (@sides)
	{
		my $got = join ', ',
		  map { run($node, $name, 'read', $_, undef, 4999) } qw(a b c d e f);
		is( $got,
			join(', ', (map { "$_$suffix" } qw(green blue green)), '', '', ''),
			"$name on " . $node->name
			  . ': later payloads, and logouts that stay');
		is( run($node, $name, 'read', 'a', undef, 8999), "green$suffix",
			"$name on " . $node->name . ': the later expiry')
		  if $expires->($name);
		is(run($node, $name, 'touched', 'a', undef, 9000), 't',
			"$name on " . $node->name . ': the later time')
		  if $frameworks{$name}{touched};
	}
	is(run($green, $name, 'read', 'g', undef, 5000),
		"first$suffix", "$name: what expired on blue goes on on green")
	  if $expires->($name);
}
foreach my $name (grep { $expires->($_) } @names)
{
	isnt(run($blue, $name, 'read', 'g', undef, 5000),
		'', "$name: ... and is there on blue again");
}
is($blue->safe_psql('SELECT max(id) < 1000 FROM rails_sessions')
	  . $green->safe_psql('SELECT min(id) > 1000 FROM rails_sessions'),
	'tt', 'rails: surrogate ids are each side\'s own');

#
# An upsert that waits for a logout
#
foreach my $name (grep { $frameworks{$_}{upserts} } @names)
{
	run($green, $name, 'create', 'u', 'first', 6000);
	my ($logout, $late) = map { $green->session } 1, 2;
	$logout->query('BEGIN');
	$logout->query($frameworks{$name}{delete} =~ s/\$k/u/r);
	my $upsert = $frameworks{$name}{create} =~ s/\$k/u/gr;
	$upsert =~ s/\$v/late/g;
	$upsert =~ s/\$t\b/$start + 6000/ge;
	$late->send($upsert);
	$green->poll_query_until('SELECT pg_blocking_pids(' . $late->pid . ') = ARRAY['
		  . $logout->pid . ']') or die;
	$logout->query('COMMIT');
	$late->wait;
	is($late->errors, '', "$name: an upsert that waits for a logout");
	is(run($green, $name, 'read', 'u', undef, 0), '', '... is late');
	$_->quit for $logout, $late;
}

# ... and one that comes from the other side
run($blue, 'connect-pg-simple', 'create', 'u2', 'first', 6000);
wait_for_both('d');
my $logout = $green->session;
$logout->query(q{BEGIN; DELETE FROM session WHERE sid = 'u2'});
run($blue, 'connect-pg-simple', 'write', 'u2', 'late', 6000);
$green->poll_query_until('SELECT count(*) FROM pg_stat_activity WHERE '
	  . $logout->pid . ' = ANY (pg_blocking_pids(pid))', 1) or die;
$logout->query('COMMIT');
$logout->quit;
same('a write that has waited for a logout');
is(run($_, 'connect-pg-simple', 'read', 'u2', undef, 0),
	'', '... is late on ' . $_->name)
  for @sides;

#
# Rows that were written with one stamp
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$_->safe_psql(q{ALTER TABLE session DISABLE TRIGGER bluegreen_session;
	UPDATE session SET bluegreen_stamp = 5,
		sess = json_build_object('v', current_setting('port')) WHERE sid = 'c';
	ALTER TABLE session ENABLE ALWAYS TRIGGER bluegreen_session})
  for @sides;
$blue->safe_psql(q{CALL bluegreen.start('d')});
same('one stamp');

#
# A late request on the side of the logout; a new session
#
foreach my $name (grep { $frameworks{$_}{upserts} } @names)
{
	run($green, $name, 'create', 'd', 'very late', 6000);
	is(run($green, $name, 'read', 'd', undef, 0),
		'', "$name: an upsert does not bring it back");
}
run($green, $_, 'create', 'n', 'new', 6000) for @names;
same('a new one from green');
is(run($blue, $_, 'read', 'n', undef, 5000),
	'new' . ($frameworks{$_}{suffix} // ''), "$_: it is there")
  for @names;

#
# Attributes of a Spring session, on both sides; one that is removed; a login,
# which changes the session's id
#
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$green->safe_psql(q{UPDATE spring_session_attributes SET attribute_bytes = 'green'
	WHERE session_primary_id = 'n' AND attribute_name = 'kept';
	UPDATE spring_session SET session_id = 'login', principal_name = 'me',
		last_access_time = 4 WHERE primary_id = 'n'});
$blue->safe_psql(q{UPDATE spring_session_attributes SET attribute_bytes = 'blue'
	WHERE session_primary_id = 'n' AND attribute_name = 'v';
	UPDATE spring_session SET last_access_time = 5 WHERE primary_id = 'n';
	CALL bluegreen.start('d')});
same('attributes on both sides');
is( $_->safe_psql(q{SELECT session_id, principal_name, last_access_time,
			string_agg(encode(attribute_bytes, 'escape'), ' '
				ORDER BY attribute_name)
		FROM spring_session JOIN spring_session_attributes
			ON session_primary_id = primary_id
		WHERE primary_id = 'n' GROUP BY primary_id}) =~ s/ +\|/|/r,
	'login|me|5|green blue', 'each counts by itself on ' . $_->name)
  for @sides;
$blue->safe_psql(q{UPDATE spring_session SET session_id = 's-n'
	WHERE primary_id = 'n';
	UPDATE spring_session_attributes SET attribute_bytes = 'new'
	WHERE session_primary_id = 'n' AND attribute_name = 'v'});
$blue->safe_psql(q{DELETE FROM spring_session_attributes
	WHERE session_primary_id = 'n' AND attribute_name = 'kept'});
same('an attribute removed');
is(run($green, 'spring-session', 'read', 'n', undef, 5000),
	'new', 'it is gone on green');
$green->safe_psql(q{INSERT INTO spring_session_attributes
	VALUES ('n', 'kept', 'again')});
same('... and set again');
is(run($blue, 'spring-session', 'read', 'n', undef, 5000),
	'new again', 'it is there again');

cmp_ok($green->safe_psql('SELECT late FROM bluegreen.stat_session'),
	'>', 0, 'late requests are counted');
is( $_->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'none of this is a conflict on ' . $_->name)
  for @sides;

# a session that was logged out shortly before it would have expired
$green->safe_psql(q{UPDATE session_bluegreen_gone
	SET bluegreen_until = now() - interval '1 minute' WHERE sid = 'd'});
run($green, 'connect-pg-simple', 'create', 'd', 'very late', 6000);
is(run($green, 'connect-pg-simple', 'read', 'd', undef, 0),
	'', 'a tombstone counts for the retention, too');

#
# Rows of sessions that are not there
#
$green->safe_psql(q{SET session_replication_role = replica;
	INSERT INTO spring_session_attributes VALUES ('nobody', 'v', 'x')});
wait_for_both('d');
foreach my $node (@sides)
{
	$node->safe_psql('SELECT bluegreen.expire_sessions()');
	is( $node->safe_psql(q{SELECT count(*) FILTER
			(WHERE session_primary_id = 'nobody'), count(*) > 0
			FROM spring_session_attributes}),
		'0|t', 'an attribute without a session is removed, others are not');
}

#
# Tombstones go when they are not needed any more
#
is($blue->safe_psql('SELECT bluegreen.expire_sessions()'),
	0, 'tombstones stay until the sessions would have expired');
$blue->safe_psql(q{UPDATE session_bluegreen_gone
	SET bluegreen_until = now() - interval '2 hours'});
is($blue->safe_psql('SELECT bluegreen.expire_sessions() > 0;
	SELECT count(*) FROM session_bluegreen_gone'),
	"t\n0", '... and are removed then');

#
# Undone
#
(undef, undef, $error) =
  $blue->psql(q{SELECT bluegreen.release_sessions('session')});
like($error, qr/table "session" is mapped/, 'not while it is mapped');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d');
	SELECT bluegreen.release_sessions('session')});
is( $blue->safe_psql(q{SELECT count(*) FROM pg_attribute a
		JOIN pg_class c ON c.oid = attrelid WHERE relname = 'session'
			AND relnamespace = 'public'::regnamespace
			AND attname = 'bluegreen_stamp';
		SELECT to_regclass('session_bluegreen_gone') IS NULL;
		SELECT count(*) FROM pg_trigger WHERE tgrelid = 'public.session'::regclass}),
	"0\nt\n0", 'the table is as it was');

$_->quit for values %app;

done_testing();
