package BlueGreen::PgBouncer;

# A PgBouncer of a test, on a free port of 127.0.0.1, beside a node's server
# and run by the same user.  To psql, session and pgbench_start it is a node.
#
#	my $bouncer = BlueGreen::PgBouncer->new($blue, ['app'], 'pool_mode = ...');
#	... add_router(..., route_file => $bouncer->route_file('app')) ...
#	$bouncer->add_to('d', 'app', $blue, $green);	# or like this
#	$bouncer->start;
#	$bouncer->console('SHOW POOLS')
#
# Clients and the console's user ("console") have the password "open sesame".

use strict;
use warnings;

use parent -norequire, 'BlueGreen::Node';

use BlueGreen::Node;
use Carp;
use IPC::Run;

my $password = 'open sesame';
my @running;

# Its files are where a second node, if there is one, can write them as well.
sub new
{
	my ($class, $node, $databases, $settings, $second) = @_;
	my $port = BlueGreen::Node::free_port();
	my $beside = $second || $node;
	my $self = bless {
		name => "pgbouncer-$port",
		client => $node->{client},
		root => '',
		port => $port,
		dir => "$beside->{root}$beside->{dir}/pgbouncer-$port",
	}, $class;
	mkdir $self->{dir} or croak $!;
	$beside->_server_owns($self->{dir});
	chmod 0777, $self->{dir} or croak $!;
	$self->_write('users', qq{"postgres" "$password"\n"console" "$password"\n});
	$settings //= '';
	my $includes = join '', map { '%include ' . $self->route_file($_) . "\n" }
	  @$databases;
	$self->_write('pgbouncer.ini', <<"INI");
[databases]
$includes
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $self->{dir}/users
admin_users = console
logfile = $self->{dir}/log
pidfile = $self->{dir}/pid
ignore_startup_parameters = extra_float_digits
$settings
INI
	push @running, $self;
	return $self;
}

# The file that its configuration includes for a database, as a node sees it.
sub route_file
{
	my ($self, $database, $node) = @_;
	my $file = "$self->{dir}/$database.ini";
	return $file unless $node;
	return substr $file, length $node->{root};
}

# Make it a router of a deployment, on both sides: server "bouncer".
sub add_to
{
	my ($self, $deployment, $database, $blue, $green) = @_;
	my %route = map {
		$_->name => 'host=127.0.0.1 port=' . $_->port . ' dbname=postgres'
	} $blue, $green;

	# the servers may be run by two users
	$self->_write("$database.ini", "[databases]\n$database = $route{blue}\n");
	chmod 0666, $self->route_file($database) or croak $!;
	foreach my $node ($blue, $green)
	{
		my $file = $self->route_file($database, $node);
		$node->safe_psql("CREATE SERVER bouncer FOREIGN DATA WRAPPER pg_bluegreen
				OPTIONS (host '127.0.0.1', port '$self->{port}');
			CREATE USER MAPPING FOR CURRENT_USER SERVER bouncer
				OPTIONS (user 'console', password '$password');
			SELECT bluegreen.add_router('$deployment', 'pgbouncer', 'bouncer',
				'$database', '$route{blue}', '$route{green}',
				route_file => '$file')");
	}
	return;
}

sub password { return $password }

sub _write
{
	my ($self, $name, $text) = @_;
	open my $out, '>', "$self->{dir}/$name" or croak $!;
	print $out $text;
	close $out;
	return;
}

# It must not be run by root.
sub start
{
	my ($self) = @_;
	my @user = $> == 0 ? ('-u', 'postgres') : ();
	my ($program) = grep { -x } '/usr/sbin/pgbouncer',
	  map { "$_/pgbouncer" } split /:/, $ENV{PATH};
	croak 'there is no pgbouncer' unless $program;
	$self->{harness} = IPC::Run::start(
		[ $program, @user, "$self->{dir}/pgbouncer.ini" ],
		'<', '/dev/null', '>', "$self->{dir}/out", '2>&1');
	BlueGreen::Node::wait_until(
		sub { ($self->psql('pgbouncer', 'SHOW VERSION', user => 'console'))[0]
			  == 0 }, 60)
	  or croak "$self->{name} does not start: "
	  . BlueGreen::Node::slurp("$self->{dir}/out");
	return;
}

sub kill
{
	my ($self) = @_;
	my $harness = delete $self->{harness} or return;
	$harness->kill_kill(grace => 0);
	return;
}

# kill -9; it can be started again.
sub kill9
{
	my ($self) = @_;
	my $harness = delete $self->{harness} or croak "$self->{name} does not run";
	$harness->signal('KILL');
	eval { $harness->finish };
	unlink "$self->{dir}/pid";
	return;
}

sub connstr
{
	my ($self, $dbname, $user) = @_;
	$user //= 'postgres';
	$dbname //= 'app';
	return "host=127.0.0.1 port=$self->{port} user='$user' dbname='$dbname'"
	  . " password='$password'";
}

# Only a server's processes are looked for by this.
sub pid { return undef }

# A command of the admin console; returns what it prints.
sub console
{
	my ($self, $command) = @_;
	return $self->safe_psql('pgbouncer', $command, user => 'console');
}

# A column of the console's answer: the values of all rows, or of those where
# another column has a value.
sub show
{
	my ($self, $what, $column, %where) = @_;
	my ($head, @rows) = split /\n/,
	  (
		$self->psql(
			'pgbouncer', "SHOW $what",
			user => 'console',
			on_error_die => 1,
			extra_params => [ '--no-align', '-P', 'tuples_only=off',
				'-P', 'footer=off' ]))[1];
	my @names = split /\|/, $head;
	my @found;
	foreach my $row (@rows)
	{
		my %value;
		@value{@names} = split /\|/, $row, -1;
		next if grep { $value{$_} ne $where{$_} } keys %where;
		push @found, $value{$column};
	}
	return wantarray ? @found : $found[0];
}

END
{
	my $status = $?;
	$_->kill foreach @running;
	$? = $status;
}

1;
