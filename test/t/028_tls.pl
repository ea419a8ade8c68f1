# TLS to the peer: what sslmode=verify-full promises is kept, and a stream never
# falls back to less.  The authorities and certificates are made here.
use strict;
use warnings;

use BlueGreen;
use File::Temp;
use IPC::Run;
use Test::More;

plan skip_all => 'no openssl'
  if system('openssl version >/dev/null 2>&1') != 0;

my $dir = File::Temp->newdir;

sub openssl
{
	my (@arguments) = @_;
	my $out = '';
	return 1
	  if IPC::Run::run([ 'openssl', @arguments ], '<', '/dev/null', '>&',
		\$out);
	note($out);
	return 0;
}

sub authority
{
	my ($name) = @_;
	openssl(
		qw(req -x509 -newkey rsa:2048 -nodes -days 30),
		'-subj', "/CN=$name authority",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.crt")
	  or die 'openssl failed';
	return;
}

# Certificate $name of $authority for common name $cn; expired if told so.
sub certificate
{
	my ($name, $authority, $cn, $expired) = @_;
	open my $extensions, '>', "$dir/extensions" or die $!;
	print $extensions "subjectAltName=DNS:$cn\n";
	close $extensions;
	openssl(qw(req -newkey rsa:2048 -nodes), '-subj', "/CN=$cn",
		'-keyout', "$dir/$name.key", '-out', "$dir/request")
	  or die 'openssl failed';
	my @sign = (
		qw(x509 -req), '-in', "$dir/request", '-CA', "$dir/$authority.crt",
		'-CAkey', "$dir/$authority.key", '-CAcreateserial',
		'-extfile', "$dir/extensions", '-out', "$dir/$name.crt");
	foreach my $days (
		$expired
		? ([ '-days', -1 ],
			[qw(-not_before 20200101000000Z -not_after 20200102000000Z)])
		: [ '-days', 30 ])
	{
		return if openssl(@sign, @$days);
	}
	die 'openssl failed';
}

# Put a file beside a node's data, where only its server reads it.  Returns the
# path there.
sub install
{
	my ($node, $file, $as) = @_;
	my $to = $node->data_dir . "/$as";
	my (undef, undef, undef, undef, $uid, $gid) = stat $node->data_dir;
	open my $out, '>', $to or die $!;
	print $out BlueGreen::Node::slurp("$dir/$file");
	close $out;
	chmod 0600, $to;
	chown $uid, $gid, $to;
	return substr $to, length $node->{root};
}

authority($_) for qw(ours other);
certificate('green', 'ours', 'green.example');
certificate('expired', 'ours', 'green.example', 1);
certificate('client', 'ours', 'with_certificate');

my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.restart_delay = 50ms
bluegreen.restart_delay_max = 200ms
CONF
$_->safe_psql('CREATE TABLE t (id int PRIMARY KEY, v text)') for $blue, $green;
$green->safe_psql('CREATE ROLE with_certificate LOGIN SUPERUSER');

my %root = map { $_ => install($blue, "$_.crt", "$_.crt") } qw(ours other);
my %client =
  map { $_ => install($blue, "client.$_", "client.$_") } qw(crt key);
install($green, "$_", $_) for qw(green.crt green.key expired.crt expired.key);
install($green, 'ours.crt', 'root.crt');

sub serve
{
	my ($lines) = @_;
	$green->append_conf($lines);
	$green->restart;
	return;
}

# Only over TLS, but for the plaintext case; one role needs a certificate.
sub write_hba
{
	my ($type) = @_;
	open my $hba, '>', $green->data_dir . '/pg_hba.conf' or die $!;
	print $hba "hostssl all with_certificate all cert\n";
	print $hba "$type all all all trust\n";
	close $hba;
	return;
}
write_hba('hostssl');
serve(<<'CONF');
ssl = on
ssl_cert_file = 'green.crt'
ssl_key_file = 'green.key'
ssl_ca_file = 'root.crt'
CONF

$blue->safe_psql(qq{
ALTER SERVER green OPTIONS (SET host 'green.example',
	ADD hostaddr '127.0.0.1', ADD sslmode 'verify-full',
	ADD sslrootcert '$root{ours}');
SELECT bluegreen.create_deployment('tls', 'green');});

# The server's options are these for the moment; what does a connection say?
sub with_options
{
	my ($options, $table) = @_;
	my (undef, undef, $error) = $blue->psql(
		qq{BEGIN; ALTER SERVER green OPTIONS ($options);
		SELECT bluegreen.map_table('tls', 't'); ROLLBACK;});
	return $error;
}

sub refused
{
	my ($options, $why, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like(
		with_options($options),
		qr/ERROR:  could not connect to peer of server "green"\n.*$why/s,
		"refused: $name");
	return;
}

#
# What is refused
#
is(with_options(q{SET host 'green.example'}),
	'', 'the right authority and host are taken');
refused("SET sslrootcert '$root{other}'",
	qr/certificate verify failed/, 'the certificate of another authority');
refused("SET host 'localhost'",
	qr/server certificate for "green\.example".* does not match host name "localhost"/,
	'a certificate for another host');
is(with_options(q{SET host 'localhost', SET sslmode 'verify-ca'}),
	'', '... which verify-ca does not look at');
refused("SET sslrootcert '/nonexistent/root.crt'",
	qr/root certificate file "\/nonexistent\/root\.crt" does not exist/,
	'without the authority to check with');
refused("SET sslmode 'disable'", qr/no encryption/,
	'plaintext, where the peer wants TLS');
refused("ADD ssl_min_protocol_version 'TLSv1.3', ADD ssl_max_protocol_version 'TLSv1.2'",
	qr/invalid SSL protocol version range/, 'options that contradict');
like(
	with_options("SET sslmode 'sometimes'"),
	qr/invalid sslmode value: "sometimes"/,
	'a value that libpq does not know');
like(with_options("ADD tls 'yes'"),
	qr/invalid option "tls"\nHINT:  Valid options.*sslmode/,
	'an option that libpq does not know');
is(with_options(join ', ', map { "ADD $_" } "ssl_min_protocol_version 'TLSv1.2'",
		"gssencmode 'disable'", "channel_binding 'prefer'",
		"sslcompression '0'", "sslsni '1'", "keepalives_idle '7'"),
	'', "libpq's other options are taken");

#
# Client certificates, which a superuser gives to a mapping
#
$blue->safe_psql(
	q{ALTER USER MAPPING FOR CURRENT_USER SERVER green
	OPTIONS (SET user 'with_certificate')});
refused("SET sslmode 'verify-full'", qr/certificate/,
	'no client certificate where one is wanted');
$blue->safe_psql(qq{ALTER USER MAPPING FOR CURRENT_USER SERVER green
	OPTIONS (ADD sslcert '$client{crt}', ADD sslkey '$client{key}')});
is(with_options("SET sslmode 'verify-full'"),
	'', 'with a client certificate it connects');

#
# Who may name files
#
$blue->safe_psql(q{CREATE ROLE owner LOGIN;
	GRANT USAGE ON FOREIGN DATA WRAPPER pg_bluegreen TO owner;});
foreach my $option (qw(sslrootcert sslcert sslkey sslcrl sslcrldir))
{
	my (undef, undef, $error) =
	  $blue->psql(qq{SET ROLE owner; CREATE SERVER mine
		FOREIGN DATA WRAPPER pg_bluegreen OPTIONS ($option '/etc/passwd')});
	like($error, qr/permission denied to set option "$option" of a server/,
		"$option of a server is for superusers");
}
is( $blue->psql(q{SET ROLE owner; CREATE SERVER mine
	FOREIGN DATA WRAPPER pg_bluegreen
	OPTIONS (sslmode 'verify-full', sslrootcert 'system')}),
	0, "but not the system's own certificates");

#
# A stream
#
$blue->safe_psql(q{SELECT bluegreen.map_table('tls', 't');
	CALL bluegreen.start('tls'); INSERT INTO t VALUES (1, 'copied');});
wait_for_sync('tls');
is( $green->safe_psql(q{SELECT DISTINCT ssl, client_dn
	FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
	WHERE application_name LIKE 'bluegreen tls%'}),
	't|/CN=with_certificate',
	'a stream runs over TLS, as who it is');

my $message = q{SELECT state IN ('error', 'starting') AND error_at IS NOT NULL
	AND error_sqlstate = '08001' AND error_detail LIKE '%s'
	FROM bluegreen.stat_stream};

sub fails
{
	my ($detail, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($blue->poll_query_until(sprintf $message, $detail), $name);
	is( $green->safe_psql(q{SELECT count(*) FROM pg_stat_activity
		WHERE application_name LIKE 'bluegreen tls%'}),
		0, '... and nothing is sent');
	return;
}

serve("ssl_cert_file = 'expired.crt'\nssl_key_file = 'expired.key'");
$blue->safe_psql(q{INSERT INTO t VALUES (2, 'expired')});
fails('%certificate verify failed%',
	"the stream stops when the peer's certificate has expired");
write_hba('host');
serve('ssl = off');
fails('%server does not support SSL, but SSL was required%',
	'and when the peer has no TLS any more');
write_hba('hostssl');
serve("ssl = on\nssl_cert_file = 'green.crt'\nssl_key_file = 'green.key'");
wait_for_sync('tls');
compare_tables('TABLE t', 'TABLE t', 'it goes on when all is well again');

done_testing();
