# Mistakes on the way to green and there: the connection, the wrong server, the
# wrong version, tables that have changed, rights, encodings, origins.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Mistakes;
use Test::More;

my ($blue, $green) = create_pair();
my $host = 'localhost';
my ($port, $blue_port) = ($green->port, $blue->port);
$_->safe_psql(q{CREATE TABLE t (id int PRIMARY KEY, v text)}) for $blue, $green;
$blue->safe_psql(q{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');});
my $start = q{CALL bluegreen.start('d')};

#
# The connection
#
# password needed for role applier, and nobody else but postgres may come
$green->safe_psql(q{CREATE ROLE applier LOGIN PASSWORD 'correct horse';
	CREATE ROLE stranger LOGIN; CREATE DATABASE other});
{
	my $file = $green->data_dir . '/pg_hba.conf';
	open my $hba, '>', $file or die $!;
	print $hba <<'HBA';
host all applier 127.0.0.1/32 scram-sha-256
host all postgres 127.0.0.1/32 trust
host replication postgres 127.0.0.1/32 trust
HBA
	close $hba;
	$green->reload;
}
my $nobody = BlueGreen::Node::free_port();

sub connection
{
	my ($title, $detail, %change) = @_;
	my %server = (port => $change{port}, host => $change{host},
		dbname => $change{dbname});
	my $options = join ', ',
	  map { "SET $_ '$server{$_}'" } grep { defined $server{$_} } sort keys %server;
	my $user = $change{user} // 'postgres';
	my $password = $change{password} // 'not asked for';
	return {
		title => $title,
		blue => ($options ? "ALTER SERVER green OPTIONS ($options);" : '')
		  . "ALTER USER MAPPING FOR postgres SERVER green
			OPTIONS (SET user '$user', SET password '$password')",
		sql => $change{sql} // $start,
		state => '08001',
		message => qr/^could not connect to peer of server "green"$/,
		detail => $detail,
		hint => qr/ALTER SERVER green OPTIONS .*ALTER USER MAPPING/,
		blue_after => "ALTER SERVER green OPTIONS
				(SET host '127.0.0.1', SET port '$port', SET dbname 'postgres');
			ALTER USER MAPPING FOR postgres SERVER green
				OPTIONS (SET user 'postgres', SET password 'not asked for')"
	};
}

try_mistakes(
	$blue, $green,
	connection('a port where nobody listens', qr/onnection refused/,
		port => $nobody),
	connection('the same for map_table', qr/onnection refused/,
		port => $nobody, sql => q{SELECT bluegreen.map_table('d', 't', 'u')}),
	connection('a wrong host name', qr/could not translate host name/,
		host => 'no such host'),
	connection('a wrong database', qr/database "nowhere" does not exist/,
		dbname => 'nowhere'),
	connection('a wrong password',
		qr/password authentication failed for user "applier"/,
		user => 'applier', password => 'wrong horse'),
	connection('no pg_hba entry', qr/no pg_hba\.conf entry .*"stranger"/,
		user => 'stranger'),
	{
		title => 'no user mapping',
		blue => 'DROP USER MAPPING FOR postgres SERVER green',
		sql => $start,
		state => '42704',
		message => qr/^user mapping not found for user "postgres", server "green"$/,
		hint => qr/^Use CREATE USER MAPPING FOR postgres SERVER green/,
		blue_after => q{CREATE USER MAPPING FOR postgres SERVER green
			OPTIONS (user 'postgres', password 'not asked for')}
	});
unlike($blue->log, qr/horse/, 'no password is logged');

#
# The wrong server, the wrong version
#
my $standby = BlueGreen->green('standby', undef, standby_of => $green);
my $standby_port = $standby->port;
my $back = "ALTER SERVER green OPTIONS (SET port '$port', SET dbname 'postgres')";
foreach my $sql ($start, q{SELECT bluegreen.map_table('d', 't', 'u')})
{
	try_mistakes(
		$blue, $green,
		{
			title => "the peer is blue itself: $sql",
			blue => "ALTER SERVER green OPTIONS (SET port '$blue_port')",
			sql => $sql,
			state => '55000',
			message => qr/^peer 127\.0\.0\.1:$blue_port\/postgres is this database itself$/,
			hint => qr/ALTER SERVER/,
			blue_after => $back
		},
		{
			title => "the peer is a standby: $sql",
			blue => "ALTER SERVER green OPTIONS (SET port '$standby_port')",
			sql => $sql,
			state => '25006',
			message => qr/^peer 127\.0\.0\.1:$standby_port\/postgres is a standby$/,
			hint => qr/primary/,
			blue_after => $back
		},
		{
			title => "the peer has no extension: $sql",
			blue => "ALTER SERVER green OPTIONS (SET dbname 'other')",
			sql => $sql,
			state => '42704',
			message => qr/^extension "pg_bluegreen" is not installed on 127\.0\.0\.1:$port\/other$/,
			hint => qr/^Run CREATE EXTENSION pg_bluegreen; there\.$/,
			blue_after => $back
		},
		{
			title => "an older extension: $sql",
			green => q{UPDATE pg_extension SET extversion = '0.9'
				WHERE extname = 'pg_bluegreen'},
			sql => $sql,
			state => '55000',
			message => qr/^extension "pg_bluegreen" has version 0\.9 on 127\.0\.0\.1:$port\/postgres, but version 1\.\d+ here$/,
			detail => qr/^Both sides must have the same major version\.$/,
			hint => qr/^Install version 1 on the peer's server, and run ALTER EXTENSION pg_bluegreen UPDATE; there\.$/
		},
		{
			title => "a newer extension: $sql",
			green => q{UPDATE pg_extension SET extversion = '2.0'
				WHERE extname = 'pg_bluegreen'},
			sql => $sql,
			state => '55000',
			message => qr/^extension "pg_bluegreen" has version 2\.0 on /,
			hint => qr/^Install version 2 on this server, restart it, and run ALTER EXTENSION pg_bluegreen UPDATE;$/,
			green_after => q{UPDATE pg_extension SET extversion = '1.0'
				WHERE extname = 'pg_bluegreen'}
		});
}

#
# On a standby of green, which has what green has
#
fails_with(
	$standby,
	{
		sql => $_->[1],
		state => '25006',
		message => qr/^cannot execute bluegreen\.$_->[0] during recovery$/,
		hint => qr/^Call it on the primary\.$/
	},
	"$_->[0] on a standby")
  foreach [ 'start', $start ], [ 'stop', q{CALL bluegreen.stop('d')} ],
  [ 'wait_for_sync', q{CALL bluegreen.wait_for_sync('d')} ],
  [ 'create_deployment', q{SELECT bluegreen.create_deployment('x', 'green')} ],
  [ 'drop_deployment', q{SELECT bluegreen.drop_deployment('d')} ],
  [ 'map_table', q{SELECT bluegreen.map_table('d', 't')} ],
  [ 'map_schema', q{SELECT bluegreen.map_schema('d', 'public')} ],
  [ 'unmap_table', q{SELECT bluegreen.unmap_table('d', 't')} ],
  [ 'skip', q{SELECT bluegreen.skip('d', '0/1')} ],
  [ 'confirm_source', q{SELECT bluegreen.confirm_source('d')} ];
$standby->stop;

#
# Tables that are not what they were
#
my $peer = qr/127\.0\.0\.1:$port\/postgres/;
try_mistakes(
	$blue, $green,
	{
		title => 'the target table is missing',
		green => 'ALTER TABLE t RENAME TO t_away',
		sql => $start,
		state => '42P01',
		message => qr/^target table "public\.t" does not exist on $peer$/,
		hint => qr/^Create it there/,
		green_after => 'ALTER TABLE t_away RENAME TO t'
	},
	{
		title => 'the target table lacks a column',
		green => 'ALTER TABLE t RENAME v TO w',
		sql => $start,
		state => '42703',
		message => qr/^target table "public\.t" on $peer has no column "v" any more$/,
		hint => qr/ALTER TABLE public\.t ADD COLUMN v text;/,
		green_after => 'ALTER TABLE t RENAME w TO v'
	},
	{
		title => 'a column of the target has another type',
		green => 'ALTER TABLE t ALTER v TYPE varchar(5)',
		sql => $start,
		state => '42804',
		message => qr/^column "v" of target table "public\.t" on $peer is of type character varying\(5\), but was text when the table was mapped$/,
		hint => qr/map it again/,
		green_after => 'ALTER TABLE t ALTER v TYPE text'
	},
	{
		title => 'the target has got a column that must be given',
		green => 'ALTER TABLE t ADD must int NOT NULL',
		sql => $start,
		state => '23502',
		message => qr/^transform does not give column "must" of target table "public\.t"/,
		green_after => 'ALTER TABLE t DROP must'
	},
	{
		title => 'the target has lost its key',
		green => 'ALTER TABLE t DROP CONSTRAINT t_pkey',
		sql => $start,
		state => '42P10',
		message => qr/^target table "public\.t" has no unique index on \(id\)$/,
		hint => qr/CREATE UNIQUE INDEX ON public\.t \(id\)/,
		green_after => 'ALTER TABLE t ADD PRIMARY KEY (id)'
	},
	{
		title => 'the target has rows',
		green => q{INSERT INTO t VALUES (1000, 'mine')},
		sql => $start,
		state => '55000',
		message => qr/^target table "public\.t" on $peer is not empty$/,
		hint => qr/allow_nonempty => true/,
		green_after => 'TRUNCATE t'
	});

#
# Rights of the role that writes there
#
my $as_applier = q{ALTER USER MAPPING FOR postgres SERVER green
	OPTIONS (SET user 'applier', SET password 'correct horse')};
my $as_postgres = q{ALTER USER MAPPING FOR postgres SERVER green
	OPTIONS (SET user 'postgres', SET password 'not asked for')};
$blue->safe_psql($as_applier);
foreach my $case (
	[
		'the right to apply', 'CREATE ROLE landlord', '42501',
		qr/^permission denied for function begin_apply$/,
		qr/^On the peer, use (SELECT bluegreen.grant_apply\('applier'\);)/
	],
	[
		'USAGE on the schema', 'REVOKE USAGE ON SCHEMA public FROM PUBLIC',
		'42501', qr/^role "applier" may not use schema "public" on $peer$/,
		qr/^On the peer, use (GRANT USAGE ON SCHEMA public TO applier;)$/
	],
	[
		'rights on the table', 'GRANT SELECT ON t TO applier', '42501',
		qr/^role "applier" lacks privileges on target table "public\.t" on $peer$/,
		qr/^On the peer, use (SELECT bluegreen.grant_apply\('applier', 'public\.t'\);)$/
	],
	[
		'sight of all rows',
		'ALTER TABLE t OWNER TO landlord;
		ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
		'55000',
		qr/^row-level security of target table "public\.t" on $peer is forced for its owner, as whom changes are applied$/,
		qr/^On the peer, use (ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY;)/
	])
{
	my ($what, $green_sql, $state, $message, $hint) = @$case;
	try_mistakes(
		$blue, $green,
		{
			title => "the peer's role lacks $what",
			green => $green_sql,
			sql => $start,
			state => $state,
			message => $message,
			hint => $hint
		});
	my (undef, undef, $err) = $blue->psql($start);
	my ($statement) = $err =~ /HINT:  On the peer, use ([^;]+)/;
	$green->safe_psql($statement) if $statement;
}
$blue->safe_psql($as_postgres);
$green->safe_psql('GRANT USAGE ON SCHEMA public TO PUBLIC;
	ALTER TABLE t OWNER TO postgres;
	ALTER TABLE t DISABLE ROW LEVEL SECURITY');

#
# A green that calls itself read-only is none
#
$green->safe_psql('ALTER SYSTEM SET default_transaction_read_only = on');
$green->reload;
$green->poll_query_until('SHOW default_transaction_read_only', 'on');
$blue->safe_psql($start);
wait_for_sync('d');
compare_tables('TABLE t', 'TABLE t',
	'default_transaction_read_only on green is no obstacle');
$green->safe_psql('SET default_transaction_read_only = off;
	ALTER SYSTEM RESET default_transaction_read_only');
$green->reload;
$green->poll_query_until('SHOW default_transaction_read_only', 'off');

#
# The version while the stream runs
#
sub green_version
{
	my ($version) = @_;
	$green->safe_psql("UPDATE pg_extension SET extversion = '$version'
		WHERE extname = 'pg_bluegreen'");
	$blue->safe_psql(q{CALL bluegreen.stop('d'); CALL bluegreen.start('d');});
	return;
}
green_version('1.77');
wait_for_sync('d');
pass('another minor version is fine');
green_version('2.0');
$blue->safe_psql(q{INSERT INTO t VALUES (1001, 'later')});
ok( $blue->poll_query_until(q{SELECT state = 'error'
		AND error_sqlstate = '55000' AND error_lsn IS NULL AND error_message
			~ '^extension "pg_bluegreen" has version 2.0 on .* but version 1'
		FROM bluegreen.stat_stream}),
	'another major version stops a stream');
fails_with(
	$blue,
	{
		sql => q{CALL bluegreen.wait_for_sync('d')},
		state => '55000',
		message => qr/^stream of deployment "d" is in state error: extension/
	},
	'who waits for it is told');
green_version('1.0');
wait_for_sync('d');
compare_tables('TABLE t', 'TABLE t', 'and nothing is missing after that');

#
# The extension is dropped on green under a running stream
#
$green->safe_psql(q{SELECT pg_terminate_backend(pid, 180000)
	FROM pg_stat_activity WHERE application_name LIKE 'bluegreen d %';
	DROP EXTENSION pg_bluegreen});
ok( $blue->poll_query_until(q{SELECT state = 'error' AND error_message
			~ '^extension "pg_bluegreen" is not installed on '
		FROM bluegreen.stat_stream}),
	'an extension that is gone stops the stream');
fails_with(
	$blue,
	{
		sql => q{SELECT bluegreen.drop_deployment('d')},
		state => '42704',
		message => qr/^extension "pg_bluegreen" is not installed on /
	},
	'and the deployment cannot be dropped');
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d', force => true)});
$green->safe_psql(q{SELECT pg_replication_origin_drop(roname)
	FROM pg_replication_origin; CREATE EXTENSION pg_bluegreen});

done_testing();
