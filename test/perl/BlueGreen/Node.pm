package BlueGreen::Node;

# One temporary cluster of a test: made with initdb on a free port of
# 127.0.0.1, run by an unprivileged user, on this system or in a chroot.
#
# SQL goes through psql.  Where a method takes SQL, the database may be named
# before it: $node->safe_psql('SELECT 1'), $node->safe_psql('app', 'SELECT 1').
# Without a name it is 'postgres'.

use strict;
use warnings;

use Carp;
use File::Path qw(remove_tree);
use File::Temp;
use IO::Socket::INET;
use IPC::Run;
use Test::More ();
use Time::HiRes qw(usleep);

use constant TIMEOUT => $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;

my $conf_file = __FILE__ =~ s{perl/BlueGreen/Node\.pm$}{cluster.conf}r;

# Make and start a cluster.  $place: { root, bindir, client, work }; $conf:
# lines for postgresql.conf; %options: initdb => [arguments], or standby_of =>
# a node, whose streaming standby it becomes.
sub new
{
	my ($class, $name, $place, $conf, %options) = @_;
	my $port = free_port();
	my $self = bless {
		%$place,
		name => $name,
		dir => "$place->{work}/clusters/$name-$port",
		port => $port,
	}, $class;

	$self->_server('mkdir', '-p', $self->{dir});
	if ($options{standby_of})
	{
		$self->_server(
			"$self->{bindir}/pg_basebackup",
			'-D', "$self->{dir}/data", '-d', $options{standby_of}->connstr,
			qw(-R -c fast --no-sync));
	}
	else
	{
		$self->_init(@{ $options{initdb} || [] });
	}
	$self->append_conf("port = $self->{port}");
	$self->append_conf($conf) if defined $conf;
	$self->start;
	return $self;
}

# A new cluster with what all of them have in postgresql.conf.
sub _init
{
	my ($self, @arguments) = @_;
	$self->_server("$self->{bindir}/initdb",
		'-D', "$self->{dir}/data", qw(-U postgres -A trust --no-sync),
		qw(--locale=C -E UTF8), @arguments);
	$self->append_conf(slurp($conf_file));
	my $known =
	  $self->_server("$self->{bindir}/postgres", '--describe-config');
	$self->append_conf(
		"output_plugin_libraries = 'pgoutput, test_decoding, pg_bluegreen'")
	  if $known =~ /^output_plugin_libraries\t/m;
	return;
}

sub name { return $_[0]{name} }
sub port { return $_[0]{port} }
sub host { return '127.0.0.1' }

# Path of the data directory, as seen from outside of its chroot.
sub data_dir { return "$_[0]{root}$_[0]{dir}/data" }

sub connstr
{
	my ($self, $dbname, $user) = @_;
	$dbname //= 'postgres';
	$user //= 'postgres';
	s/([\\'])/\\$1/g for $dbname, $user;
	return "host=127.0.0.1 port=$self->{port} user='$user' dbname='$dbname'";
}

# The server's log; from a position of earlier, if given (length of log then).
sub log
{
	my ($self, $from) = @_;
	my $log = slurp("$self->{root}$self->{dir}/log");
	return defined $from ? substr($log, $from) : $log;
}

# Add lines to postgresql.conf; takes effect at reload or restart.
sub append_conf
{
	my ($self, $lines) = @_;
	open my $out, '>>', $self->data_dir . '/postgresql.conf' or croak $!;
	print $out "$lines\n";
	close $out;
	return;
}

# Ask these roles for a password (SCRAM); nobody else is asked.
sub require_password
{
	my ($self, @roles) = @_;
	my $file = $self->data_dir . '/pg_hba.conf';
	my $rules = slurp($file);
	open my $out, '>', $file or croak $!;
	print $out "host all $_ all scram-sha-256\n" for @roles;
	print $out $rules;
	close $out;
	$self->reload;
	return;
}

#
# Life and death
#

# The postmaster's pid, or undef if it does not run.
sub pid
{
	my ($self) = @_;
	open my $in, '<', $self->data_dir . '/postmaster.pid' or return undef;
	my $pid = <$in>;
	return undef unless defined $pid && $pid =~ /^(\d+)/;
	return alive($1) ? $1 : undef;
}

# Start, unless it runs.
sub start
{
	my ($self) = @_;
	$self->_pg_ctl('start') unless $self->pid;
	return;
}

# Stop, if it runs; mode is fast, immediate or smart.
sub stop
{
	my ($self, $mode) = @_;
	$self->_pg_ctl('stop', '-m', $mode || 'fast') if $self->pid;
	return;
}

sub restart
{
	my ($self, $mode) = @_;
	$self->stop($mode);
	$self->start;
	return;
}

sub reload { my ($self) = @_; $self->_pg_ctl('reload'); return }
sub promote { my ($self) = @_; $self->_pg_ctl('promote'); return }

# kill -9 the postmaster, and return when its children have gone as well: all of
# them, so it is stopped before they are counted, and can start no more.
sub kill9
{
	my ($self) = @_;
	my $pid = $self->pid or croak "$self->{name} does not run";
	kill 'STOP', $pid;
	wait_until(sub { !alive($pid) || process_state($pid) eq 'T' });
	my @children = children($pid);
	kill 'KILL', $pid;
	wait_until(sub { !grep { alive($_) } $pid, @children })
	  or croak "children of $self->{name} live on";

	# A server takes a zombie for a running one, and not every init reaps soon.
	unlink $self->data_dir . '/postmaster.pid' if kill 0, $pid;
	return;
}

# Pids of the postmaster's children whose title matches: "postgres: checkpointer".
# Needs no connection.
sub processes
{
	my ($self, $pattern) = @_;
	my $postmaster = $self->pid or return;
	return grep {
		my $title = eval { slurp("/proc/$_/cmdline") } // '';
		$title =~ $pattern;
	} children($postmaster);
}

# Wait until connections are accepted (again).
sub wait_until_up
{
	my ($self) = @_;
	return wait_until(sub { $self->psql('SELECT 1') == 0 });
}

# Move a part of the data directory (pg_wal, pg_replslot, ...), or with a name
# that is not there a folder for a tablespace, to a disk of its own with so many
# megabytes.  The server must not run.  Returns its path as the server sees it.
# The test must have called own_mounts(), which also sees to it that the disk
# goes away.
sub small_disk
{
	my ($self, $name, $megabytes) = @_;
	my $disk = "$self->{dir}/disk_$name";
	my $outside = "$self->{root}$disk";
	my $part = $self->data_dir . "/$name";
	mkdir $outside or croak "$outside: $!";
	IPC::Run::run([ 'mount', '-t', 'tmpfs', '-o',
			"size=${megabytes}m,mode=0700", 'tmpfs', $outside ])
	  or croak "cannot mount on $outside";
	push @{ $self->{mounts} }, $outside;
	$self->_server_owns($outside);
	if (-e $part)
	{
		IPC::Run::run([ 'cp', '-a', "$part/.", $outside ]) or croak $!;
		remove_tree($part);
		symlink $disk, $part or croak $!;
		$self->_server_owns($part);
	}
	return $disk;
}

# Fill such a disk, but for so many kilobytes; empty_disk() undoes it.
sub fill_disk
{
	my ($self, $disk, $leave) = @_;
	my $block = 'x' x 4096;
	open my $out, '>', "$self->{root}$disk/filler" or croak $!;
	while (1)
	{
		my $written = syswrite $out, $block;
		last unless defined $written && $written == length $block;
	}
	my $size = -s $out;
	truncate $out, $size > $leave * 1024 ? $size - $leave * 1024 : 0;
	close $out;
	return;
}

sub empty_disk
{
	my ($self, $disk) = @_;
	unlink "$self->{root}$disk/filler" or croak $!;
	return;
}

# Mounts of this test are seen by nobody else, and end with its processes:
# begin anew in a mount namespace.  Says why not if that is not possible.
sub own_mounts
{
	return '' if $ENV{BLUEGREEN_OWN_MOUNTS};
	return 'only root can mount' if $> != 0;

	# in a chroot there is no mount point whose propagation could be changed
	my @unshare = qw(unshare --mount --propagation unchanged);
	my $try = 'd=$(mktemp -d) && mount -t tmpfs tmpfs "$d"'
	  . ' && umount "$d"; s=$?; rmdir "$d"; exit $s';
	IPC::Run::run([ @unshare, 'sh', '-c', $try ], '>', \my $out, '2>&1')
	  or return 'cannot mount here';
	$ENV{BLUEGREEN_OWN_MOUNTS} = 1;
	exec @unshare, $^X, $0, @ARGV or croak "unshare: $!";
}

# Stop and remove without a trace; never dies.
sub destroy
{
	my ($self) = @_;
	my $pid = $self->pid;
	if ($pid)
	{
		kill 'QUIT', $pid;
		wait_until(sub { !alive($pid) });
	}
	IPC::Run::run([ 'umount', '-l', $_ ]) for @{ $self->{mounts} || [] };
	remove_tree("$self->{root}$self->{dir}", { safe => 0 })
	  unless $ENV{KEEP};
	return;
}

#
# SQL
#

# Run SQL.  Options: timeout => seconds, stdout/stderr => \$scalar,
# extra_params => [psql arguments], on_error_stop => 0, on_error_die => 1,
# user => a role other than postgres.
# In list context (status, stdout, stderr), else the status of psql.
sub psql
{
	my ($self, @arguments) = @_;
	my ($dbname, $sql, %options) = _sql_arguments(@arguments);
	my ($out, $err) = ('', '');
	my $stop = $options{on_error_stop} // 1;
	my @command = (
		"$self->{client}/psql", '-XAtq',
		'-d', $self->connstr($dbname, $options{user}), '-v', "ON_ERROR_STOP=$stop", '-f', '-',
		@{ $options{extra_params} || [] });
	my $seconds = $options{timeout} || TIMEOUT;

	# from a file: who cannot connect ends without reading a pipe, which would
	# be an error of ours
	my $in = File::Temp->new;
	print $in $sql;
	close $in or croak $!;
	my $harness = IPC::Run::start(\@command, '<', $in->filename, '>', \$out, '2>',
		\$err, my $timer = IPC::Run::timeout($seconds));
	eval { $harness->finish; 1 } or do
	{
		my $error = $@;
		$harness->kill_kill(grace => 1);
		$error = "no answer in $seconds s" if $timer->is_expired;
		croak "psql on $self->{name}: $error: $sql";
	};
	my $status = $harness->full_result;
	$status = $status & 127 ? -1 : $status >> 8;
	chomp($out, $err);
	${ $options{stdout} } = $out if $options{stdout};
	${ $options{stderr} } = $err if $options{stderr};
	croak "psql on $self->{name}: $err: $sql"
	  if $status && $options{on_error_die};
	return wantarray ? ($status, $out, $err) : $status;
}

# Run SQL that must not fail; returns what it prints.
sub safe_psql
{
	my ($self, @arguments) = @_;
	my (undef, $out) = $self->psql(@arguments, on_error_die => 1);
	return $out;
}

# Repeat a query until it prints $expected ('t' if not given).  False after the
# timeout, or if nobody looks at the result, the end of the test.
# poll_query_until([dbname,] query [, expected])
sub poll_query_until
{
	my ($self, @arguments) = @_;
	unshift @arguments, 'postgres'
	  if @arguments == 1 || (@arguments == 2 && $arguments[0] =~ /\s/);
	my ($dbname, $query, $expected) = @arguments;
	$expected //= 't';
	my ($status, $out, $err);
	my $reached = wait_until(
		sub {
			($status, $out, $err) = $self->psql($dbname, $query);
			return $status == 0 && $out eq $expected;
		});
	return $reached if $reached;
	my $missing =
	  "$self->{name} never answered '$expected' but '$out' $err to: $query";
	croak $missing unless defined wantarray;
	Test::More::diag($missing);
	return $reached;
}

# Wait until the log (from a position) matches; true if it does in time.
sub wait_for_log
{
	my ($self, $pattern, $from) = @_;
	return wait_until(sub { $self->log($from) =~ $pattern });
}

# A session that stays open; see BlueGreen::Session.
sub session
{
	my ($self, $dbname) = @_;
	return BlueGreen::Session->new($self, $dbname);
}

#
# Helpers
#

sub slurp
{
	my ($file) = @_;
	open my $in, '<', $file or croak "$file: $!";
	local $/;
	return scalar(<$in>) // '';
}

# A port that nobody listens on, and that no other test of this run gets, also
# while its server is down.
sub free_port
{
	my $taken = $ENV{BLUE_WORK} ? "$ENV{BLUE_WORK}/ports" : undef;
	mkdir $taken if defined $taken;
	while (1)
	{
		my $port = 10000 + int(rand(20000));
		next if defined $taken && !mkdir "$taken/$port";
		return $port
		  if IO::Socket::INET->new(
			LocalAddr => '127.0.0.1',
			LocalPort => $port,
			Proto => 'tcp',
			Listen => 1);
	}
}

# A folder of the server's installation, as seen from outside of its chroot:
# installed('sharedir').  Undef if it is not test/run's private copy, in which
# a test may change things (other tests use it at the same time).
sub installed
{
	my ($self, $what) = @_;
	chomp(my $dir = $self->_server("$self->{bindir}/pg_config", "--$what"));
	return undef if index($dir, "$self->{work}/server/") != 0;
	return "$self->{root}$dir";
}

# Ask until it is true; false after the timeout.
sub wait_until
{
	my ($condition, $seconds) = @_;
	my $end = time + ($seconds || TIMEOUT);
	while (time < $end)
	{
		return 1 if $condition->();
		usleep(50_000);
	}
	return 0;
}

# One letter of /proc/PID/stat, or '' if there is no such process.
sub process_state
{
	my ($pid) = @_;
	open my $in, '<', "/proc/$pid/stat" or return '';
	my $stat = <$in> // '';
	return $stat =~ /^\d+ \(.*\) (\S)/ ? $1 : '';
}

# A process that exists and is no zombie.
sub alive
{
	my ($pid) = @_;
	return process_state($pid) =~ /[^Z]/;
}

sub children
{
	my ($parent) = @_;
	my @found;
	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		open my $in, '<', $file or next;
		my $stat = <$in> // '';
		push @found, $1 if $stat =~ /^(\d+) \(.*\) \S $parent /;
	}
	return @found;
}

# (dbname, sql, options) from ([dbname,] sql, options)
sub _sql_arguments
{
	my (@arguments) = @_;
	unshift @arguments, 'postgres' if @arguments % 2;
	$arguments[0] //= 'postgres';
	return @arguments;
}

# Run a program beside the server: in its root, as the user who runs it.
sub _server
{
	my ($self, @command) = @_;
	unshift @command, 'runuser', '-u', 'postgres', '--' if $> == 0;
	unshift @command, 'chroot', $self->{root} if $self->{root} ne '';

	# into a file: a server would keep a pipe open
	my $out = File::Temp->new;
	IPC::Run::run(
		\@command, '<', '/dev/null', '>', $out->filename, '2>&1',
		init => sub { chdir '/' })
	  or croak "@command: " . slurp($out->filename);
	return slurp($out->filename);
}

# A file or folder becomes that of the user who runs the server.
sub _server_owns
{
	my ($self, $file) = @_;
	my @stat = stat $self->data_dir;
	IPC::Run::run([ 'chown', '-hR', "$stat[4]:$stat[5]", $file ]) or croak $!;
	return;
}

sub _pg_ctl
{
	my ($self, @arguments) = @_;
	eval {
		$self->_server("$self->{bindir}/pg_ctl", '-D', "$self->{dir}/data",
			'-l', "$self->{dir}/log", '-w', '-t', TIMEOUT, @arguments);
		1;
	} or croak "$self->{name}: $@" . substr($self->log, -3000);
	return;
}

package BlueGreen::Session;

# A psql that stays open, for transactions that last over several steps.
#
#	my $session = $node->session;
#	$session->query('BEGIN');			# waits, returns what is printed
#	$session->send('LOCK TABLE t');		# does not wait
#	$session->wait;						# ... until now
#	$session->errors					# stderr of the last statement
#	$session->quit;

use strict;
use warnings;

use Carp;
use IPC::Run;

my $marker = 'BlueGreen::Session is ready';

sub new
{
	my ($class, $node, $dbname) = @_;
	my $self = bless { in => '', out => '', err => '', node => $node }, $class;
	$self->{timer} = IPC::Run::timeout(BlueGreen::Node::TIMEOUT);
	$self->{harness} = IPC::Run::start(
		[ "$node->{client}/psql", '-XAtq', '-d', $node->connstr($dbname) ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err},
		$self->{timer});
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	return $self;
}

# Pid of the backend.
sub pid { return $_[0]{pid} }

sub send
{
	my ($self, $sql) = @_;
	($self->{out}, $self->{err}) = ('', '');
	$self->{in} .= "$sql\n;\n\\echo $marker\n\\warn $marker\n";
	$self->{harness}->pump_nb;
	return;
}

sub wait
{
	my ($self) = @_;
	$self->{timer}->start;
	$self->{harness}->pump
	  until $self->{out} =~ /$marker\n/ && $self->{err} =~ /$marker\n/;
	s/\n?$marker\n// for $self->{out}, $self->{err};
	return $self->{out};
}

sub query
{
	my ($self, $sql) = @_;
	$self->send($sql);
	return $self->wait;
}

sub errors { return $_[0]{err} }

sub quit
{
	my ($self) = @_;
	$self->{in} .= "\\q\n";
	return $self->{harness}->finish;
}

1;
