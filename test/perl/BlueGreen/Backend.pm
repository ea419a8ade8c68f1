package BlueGreen::Backend;

# A connection to a server on this machine that trusts us, for who may not cost
# much: one long session and no library.

use strict;
use warnings;

use IO::Socket::INET;
use Socket qw(IPPROTO_TCP TCP_NODELAY);

# Connect and log in.  Options: database, options (settings as "-c name=value").
sub new
{
	my ($class, $port, %options) = @_;
	my $socket =
	  IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port)
	  or die "port $port: $!\n";
	$socket->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
	my $database = $options{database} // 'postgres';
	my $startup = pack('N', 3 << 16) . "user\0postgres\0database\0$database\0"
	  . (defined $options{options} ? "options\0$options{options}\0" : '') . "\0";
	$socket->syswrite(pack('N', 4 + length $startup) . $startup);
	my $self = bless { socket => $socket, buffer => '' }, $class;
	while (($self->message)[0] ne 'Z') { }
	return $self;
}

# The next message: its type and its body.  Ends with the connection.
sub message
{
	my ($self) = @_;
	while (1)
	{
		if (length $self->{buffer} >= 5)
		{
			my ($type, $length) = unpack 'aN', $self->{buffer};
			if (length $self->{buffer} >= $length + 1)
			{
				my $body = substr $self->{buffer}, 5, $length - 4;
				substr($self->{buffer}, 0, $length + 1) = '';
				die 'server: ' . join(' ', map { substr $_, 1 } grep { /^[CM]/ }
					  split /\0/, $body) . "\n"
				  if $type eq 'E';
				return ($type, $body);
			}
		}
		$self->{socket}->sysread($self->{buffer}, 65536, length $self->{buffer})
		  or die "the server has gone\n";
	}
}

# The first column of the last row of a query.
sub value
{
	my ($self, $query) = @_;
	my $value;
	$self->{socket}->syswrite('Q' . pack('N', 5 + length $query) . "$query\0");
	while (1)
	{
		my ($type, $body) = $self->message;
		return $value if $type eq 'Z';
		next unless $type eq 'D';
		my $length = unpack 'x2N', $body;
		$value = $length == 0xFFFFFFFF ? undef : substr $body, 6, $length;
	}
}

1;
