package BlueGreen::Proxy;

# A TCP proxy that a test puts between two clusters, to do to their connections
# what networks do.  It needs no privileges.
#
#	my $proxy = BlueGreen::Proxy->new($green->port);
#	... connect to 127.0.0.1:$proxy->port ...
#	$proxy->stall;				# nothing moves any more, nothing is closed;
#								# who connects gets no answer
#	$proxy->forward;			# all is well again, late bytes arrive
#	$proxy->delay(200);			# ms, each way
#	$proxy->reset;				# the connections of now end with RST
#	$proxy->refuse;				# ... and new ones are refused, until forward
#	$proxy->cut(100_000);		# RST all after so many more bytes
#	$proxy->cut_at('COMMIT');	# RST the connection whose client sends this:
#								# it goes on to the server, no answer comes back
#	$proxy->stall_at('COMMIT');	# the same, and the connection is left hanging
#	$proxy->count				# connections accepted so far
#	$proxy->fired				# how often cut, cut_at or stall_at has happened
#
# What is not said in the list happens to all connections.  The proxy is a
# process of its own and ends with the test.

use strict;
use warnings;

use Carp;
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Scalar::Util ();
use Socket qw(AF_UNIX SOCK_STREAM PF_UNSPEC SOL_SOCKET SO_LINGER);
use Time::HiRes qw(time);

use constant {
	PIECE => 65536,
	MAX_QUEUE => 1024 * 1024,
};

my @controls;

# A proxy for a port of 127.0.0.1.
sub new
{
	my ($class, $target) = @_;
	my $listener = _listen(0);
	socketpair(my $mine, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
	  or croak "socketpair: $!";
	my $pid = fork // croak "fork: $!";
	if (!$pid)
	{
		# another proxy ends when nobody has the other end of its socket
		close $_ for $mine, grep { defined } @controls;
		$SIG{INT} = $SIG{TERM} = $SIG{HUP} = 'DEFAULT';
		$SIG{PIPE} = 'IGNORE';
		eval { _run($its, $listener, $target); 1 } or print STDERR "# proxy: $@";
		POSIX::_exit(0);
	}
	close $its;
	push @controls, $mine;
	Scalar::Util::weaken($controls[-1]);
	my $self = bless {
		control => $mine,
		port => $listener->sockport,
		pid => $pid,
		owner => $$
	}, $class;
	$mine->autoflush(1);
	return $self;
}

sub port { return $_[0]{port} }
sub forward { return $_[0]->_ask('forward') }
sub stall { return $_[0]->_ask('stall') }
sub delay { return $_[0]->_ask("delay $_[1]") }
sub reset { return $_[0]->_ask('reset') }
sub refuse { return $_[0]->_ask('refuse') }
sub cut { return $_[0]->_ask("cut $_[1]") }
sub cut_at { return $_[0]->_ask("cut_at $_[1]") }
sub stall_at { return $_[0]->_ask("stall_at $_[1]") }
sub count { return $_[0]->_ask('count') }
sub fired { return $_[0]->_ask('fired') }

sub DESTROY
{
	my ($self) = @_;
	return if $self->{owner} != $$ || !$self->{control};
	local $?;
	close delete $self->{control};
	waitpid $self->{pid}, 0;
	return;
}

# A command and its answer.
sub _ask
{
	my ($self, $command) = @_;
	local $SIG{PIPE} = 'IGNORE';
	print { $self->{control} } "$command\n";
	my $answer = readline $self->{control};
	croak 'the proxy has died' unless defined $answer;
	chomp $answer;
	return $answer;
}

#
# In the proxy's process
#

sub _listen
{
	my ($port) = @_;
	return IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		LocalPort => $port,
		Proto => 'tcp',
		ReuseAddr => 1,
		Listen => 64) || croak "cannot listen: $!";
}

# State: listener, mode, delay, ends => { fileno => end }.  An end is one socket
# of a connection: { socket, other (end), is_client, queue => [[time, bytes]],
# queued, eof, hung }.  What is read from a socket goes to the other's queue.
sub _run
{
	my ($control, $listener, $target) = @_;
	my $state = {
		control => $control,
		listener => $listener,
		port => $listener->sockport,
		target => $target,
		mode => 'forward',
		delay => 0,
		count => 0,
		fired => 0,
		ends => {}
	};
	$control->autoflush(1);
	1 while _round($state);
	return;
}

# Wait for what may happen in the current mode, and do it.
sub _round
{
	my ($state) = @_;
	my $now = time;
	my $wait = 60;
	my ($readers, $writers) = (IO::Select->new($state->{control}),
		IO::Select->new);

	if ($state->{mode} ne 'stall')
	{
		$readers->add($state->{listener}) if $state->{listener};
		foreach my $end (grep { !$_->{hung} } values %{ $state->{ends} })
		{
			$readers->add($end->{socket})
			  if !$end->{eof} && $end->{other}{queued} < MAX_QUEUE;
			next unless @{ $end->{queue} };
			my $left = $end->{queue}[0][0] - $now;
			if ($left <= 0) { $writers->add($end->{socket}) }
			elsif ($left < $wait) { $wait = $left }
		}
	}
	my ($readable, $writable) =
	  IO::Select->select($readers, $writers, undef, $wait);
	foreach my $socket (@{ $readable || [] })
	{
		if ($socket == $state->{control})
		{
			return 0 unless _command($state);
		}
		elsif ($state->{listener} && $socket == $state->{listener})
		{
			_accept($state);
		}
		else
		{
			my $end = $state->{ends}{ fileno($socket) // -1 };
			_read($state, $end) if $end && $end->{socket} == $socket;
		}
	}
	foreach my $socket (@{ $writable || [] })
	{
		my $end = $state->{ends}{ fileno($socket) // -1 };
		_write($state, $end) if $end && $end->{socket} == $socket;
	}
	return 1;
}

sub _command
{
	my ($state) = @_;
	my $line = readline $state->{control};
	return 0 unless defined $line;
	chomp $line;
	my ($word, $argument) = split / /, $line, 2;
	my $answer = 'ok';

	if ($word eq 'forward')
	{
		$state->{mode} = $word;
		$state->{delay} = 0;
		delete @{$state}{qw(cut cut_at stall_at)};
		delete $_->{hung} for values %{ $state->{ends} };
		$state->{listener} ||= _listen($state->{port});
	}
	elsif ($word eq 'stall') { $state->{mode} = $word }
	elsif ($word eq 'delay') { $state->{delay} = $argument / 1000 }
	elsif ($word eq 'reset') { _reset_all($state) }
	elsif ($word eq 'refuse')
	{
		close delete $state->{listener} if $state->{listener};
		_reset_all($state);
	}
	elsif ($word =~ /^(cut|cut_at|stall_at)$/) { $state->{$word} = $argument }
	else { $answer = $state->{$word} }
	print { $state->{control} } "$answer\n";
	return 1;
}

sub _accept
{
	my ($state) = @_;
	my $client = $state->{listener}->accept or return;
	my $server = IO::Socket::INET->new(
		PeerAddr => '127.0.0.1',
		PeerPort => $state->{target},
		Proto => 'tcp');
	$state->{count}++;
	return _rst($client) unless $server;
	my @ends = map {
		$_->blocking(0);
		{ socket => $_, queue => [], queued => 0 }
	} $client, $server;
	$ends[0]{is_client} = 1;
	foreach my $i (0, 1)
	{
		$ends[$i]{other} = $ends[ 1 - $i ];
		$state->{ends}{ fileno $ends[$i]{socket} } = $ends[$i];
	}
	return;
}

# Take what has arrived on one end.
sub _read
{
	my ($state, $end) = @_;
	my $read = sysread $end->{socket}, my $bytes, PIECE;
	return if !defined $read && $!{EAGAIN};
	if (!$read)
	{
		$end->{eof} = 1;
		_close($state, $end) unless @{ $end->{other}{queue} };
		return;
	}
	push @{ $end->{other}{queue} }, [ time + $state->{delay}, $bytes ];
	$end->{other}{queued} += $read;
	_look($state, $end, $bytes);
	return;
}

# Is this what was to be waited for?
sub _look
{
	my ($state, $end, $bytes) = @_;
	if (defined $state->{cut})
	{
		$state->{cut} -= length $bytes;
		if ($state->{cut} <= 0)
		{
			delete $state->{cut};
			$state->{fired}++;
			_reset_all($state);
			return;
		}
	}
	foreach my $what (grep { defined $state->{$_} } qw(cut_at stall_at))
	{
		next unless $end->{is_client} && index($bytes, $state->{$what}) >= 0;
		delete $state->{$what};
		$state->{fired}++;

		# the server gets it, and its answer gets lost
		$end->{other}{last} = $what;
		_write($state, $end->{other});
		return;
	}
	return;
}

sub _write
{
	my ($state, $end) = @_;
	while (@{ $end->{queue} } && ($end->{last} || $end->{queue}[0][0] <= time))
	{
		my $written = syswrite $end->{socket}, $end->{queue}[0][1];
		if (!defined $written)
		{
			return if $!{EAGAIN};
			return _close($state, $end);
		}
		$end->{queued} -= $written;
		substr($end->{queue}[0][1], 0, $written) = '';
		shift @{ $end->{queue} } unless length $end->{queue}[0][1];
	}
	if (my $last = delete $end->{last})
	{
		return _close($state, $end, 1) if $last eq 'cut_at';
		$end->{hung} = $end->{other}{hung} = 1;
	}
	_close($state, $end) if $end->{other}{eof};
	return;
}

# Close both ends of a connection.
sub _close
{
	my ($state, $end, $rst) = @_;
	foreach my $one ($end, $end->{other})
	{
		delete $state->{ends}{ fileno $one->{socket} };
		if ($rst) { _rst($one->{socket}) }
		else { close $one->{socket} }
	}
	delete $end->{other}{other};
	delete $end->{other};
	return;
}

sub _rst
{
	my ($socket) = @_;
	setsockopt $socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0);
	close $socket;
	return;
}

sub _reset_all
{
	my ($state) = @_;
	my @ends = values %{ $state->{ends} };
	foreach my $end (@ends)
	{
		_close($state, $end, 1) if $end->{is_client} && $end->{other};
	}
	return;
}

1;
