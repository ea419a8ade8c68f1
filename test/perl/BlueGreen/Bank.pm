package BlueGreen::Bank;

# A bank (TPC-B-like) whose users come through a PgBouncer in transaction mode
# and are moved while they work: no client may have an error, and what was
# acknowledged to one is on the active side, once.
#
#	my $bank = BlueGreen::Bank->new(clients => 16, rate => 1000, conf => '...');
#	$bank->let_in;
#	$bank->wait_for_more(1000);			# until so many more transactions are done
#	my $move = $bank->move('switchover');
#	$bank->let_out;
#	is($bank->problems, '', 'all is well');
#	$bank->measure($move);				# what it cost, see there
#
# A transaction has an id of its own: the client and its number.  pgbench's log
# has those that were acknowledged.

use strict;
use warnings;

use BlueGreen;
use BlueGreen::PgBouncer;
use Carp;
use File::Temp;
use IPC::Run;
use List::Util qw(max);
use Time::HiRes qw(time);

use constant {
	BRANCHES => 16,
	TELLERS => 160,
	ACCOUNTS => 16_000,
	AFTERWARDS => 1,		# seconds in which a client may still wait for a move
};

my $tables = q{
	CREATE TABLE branch (id int PRIMARY KEY, balance bigint NOT NULL);
	CREATE TABLE teller (id int PRIMARY KEY, balance bigint NOT NULL);
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
	CREATE TABLE history (client int, number int, account int, teller int,
		branch int, delta int, at timestamptz DEFAULT now(),
		PRIMARY KEY (client, number));};

my $script = '\set n :n + 1
\set a random(1, ' . ACCOUNTS . ')
\set t random(1, ' . TELLERS . ')
\set b random(1, ' . BRANCHES . ')
\set d random(-5000, 5000)
BEGIN;
UPDATE account SET balance = balance + :d WHERE id = :a;
SELECT balance FROM account WHERE id = :a;
UPDATE teller SET balance = balance + :d WHERE id = :t;
UPDATE branch SET balance = balance + :d WHERE id = :b;
INSERT INTO history VALUES (:client_id, :n, :a, :t, :b, :d);
END;
';

# The pair, the router, a deployment d that follows.  Options: clients, rate
# (transactions per second), conf (lines for postgresql.conf).
sub new
{
	my ($class, %options) = @_;
	my $self = bless { dir => File::Temp->newdir, %options, active => 'blue' },
	  $class;
	my ($blue, $green) = create_pair(
		guard => 1, way_back => 1, conf => $options{conf} // '');
	$self->{nodes} = { blue => $blue, green => $green };
	$_->safe_psql($tables) for $blue, $green;
	$blue->safe_psql('INSERT INTO branch SELECT i, 0 FROM generate_series(1, '
		  . BRANCHES . ') i; INSERT INTO teller SELECT i, 0 FROM generate_series(1, '
		  . TELLERS . ') i; INSERT INTO account SELECT i, 0 FROM generate_series(1, '
		  . ACCOUNTS . q{) i;
		SELECT bluegreen.create_deployment('d', 'green');
		SELECT bluegreen.map_table('d', t::regclass)
		FROM unnest('{branch,teller,account,history}'::text[]) t;
		CALL bluegreen.start('d')});
	wait_for_sync('d');
	$self->{bouncer} = BlueGreen::PgBouncer->new($blue, ['app'],
		"pool_mode = transaction\nmax_client_conn = 100\n"
		  . 'default_pool_size = 20', $green);
	$self->{bouncer}->add_to('d', 'app', $blue, $green);
	$self->{bouncer}->start;
	return $self;
}

sub bouncer { return $_[0]{bouncer} }
sub active { return $_[0]{nodes}{ $_[0]{active} } }

# Let the clients in.
sub let_in
{
	my ($self) = @_;
	open my $file, '>', "$self->{dir}/script" or croak $!;
	print $file $script;
	close $file;
	$self->{out} = '';
	$self->{load} = IPC::Run::start(
		[ $self->active->{client} . '/pgbench', '-n', '-c', $self->{clients},
			'-T', 3600, '-R', $self->{rate}, '-D', 'n=0', '-l',
			"--log-prefix=$self->{dir}/log", '-f', "$self->{dir}/script",
			$self->{bouncer}->connstr ],
		'<', '/dev/null', '>', \$self->{out}, '2>&1');
	return;
}

# Wait until so many more transactions are done; false if that takes too long, or
# if the clients have gone.
sub wait_for_more
{
	my ($self, $more) = @_;
	my $last = q{(SELECT coalesce(max(number), 0) FROM history WHERE client = 0)};
	my $number = $self->active->safe_psql("SELECT $last") +
	  int($more / $self->{clients});
	return $self->{load}->pumpable
	  && $self->active->poll_query_until("SELECT $last >= $number");
}

# Move the users, under load; returns what is known of it for measure().
sub move
{
	my ($self, $kind) = @_;
	my $to = $kind eq 'switchover' ? 'green' : 'blue';
	my %move = (kind => $kind, begin => time);
	(my $status, undef, $move{notices}) = $self->active->psql(
		"CALL bluegreen.$kind('d', timeout => '100 s', drain_timeout => '60 s')",
		timeout => 180);
	$move{end} = time;
	$move{failed} = 1 if $status;
	$self->{active} = $to unless $status;
	return \%move;
}

# Have the clients end, each after its transaction: what pgbench does when its
# time is over.
sub let_out
{
	my ($self) = @_;
	my $load = delete $self->{load};
	$load->signal('ALRM');
	$self->{finished} = $load->finish;
	return;
}

# [client, number, ended at, waited for the answer] of each transaction that was
# acknowledged.  What it waited for its turn (pgbench -R) does not count.
sub _acknowledged
{
	my ($self) = @_;
	$self->{acknowledged} //= [
		map {
			my ($client, $number, $us, undef, $epoch, $rest, $lag) = split;
			[ $client, $number, $epoch + $rest / 1e6, ($us - $lag) / 1e6 ]
		} map { split /\n/, BlueGreen::Node::slurp($_) } glob "$self->{dir}/log*"
	];
	return @{ $self->{acknowledged} };
}

# What is wrong, or ''; after let_out().
sub problems
{
	my ($self) = @_;
	my @wrong;
	push @wrong, "pgbench: $self->{out}"
	  if !$self->{finished} || $self->{out} =~ /aborted|ERROR|FATAL/;
	my %missing = map { ("$_->[0] $_->[1]" => 1) } $self->_acknowledged;
	my @there = split /\n/,
	  $self->active->safe_psql(q{SELECT client || ' ' || number FROM history});
	my @doubled = grep { !delete $missing{$_} } @there;
	push @wrong, keys(%missing) . ' acknowledged transactions are lost'
	  if %missing;
	push @wrong, @doubled . ' transactions were not acknowledged, or are double'
	  if @doubled;
	push @wrong, 'the balances are wrong'
	  if $self->active->safe_psql(q{SELECT count(DISTINCT s) FROM (
		SELECT sum(balance) FROM branch UNION ALL
		SELECT sum(balance) FROM teller UNION ALL
		SELECT sum(balance) FROM account UNION ALL
		SELECT sum(delta) FROM history) x (s)}) ne '1';
	return join '; ', @wrong, $self->_differences;
}

# Both sides have the same, and none of it came as a surprise.
sub _differences
{
	my ($self) = @_;
	my @wrong;
	wait_for_sync('d', node => $self->active);
	foreach my $table (qw(branch teller account history))
	{
		my ($blue, $green) = map {
			$_->safe_psql("SELECT count(*), sum(hashtextextended(t::text, 0))
				FROM $table t")
		} @{ $self->{nodes} }{qw(blue green)};
		push @wrong, "$table differs" if $blue ne $green;
	}
	foreach my $side (qw(blue green))
	{
		my $n = $self->{nodes}{$side}
		  ->safe_psql('SELECT count(*) FROM bluegreen.conflict');
		push @wrong, "$n conflicts on $side" if $n;
	}
	return @wrong;
}

# What a move cost, in ms: pause, the longest time that a client waited for the
# answer to a transaction; held, from the routers' pause to the moment in which
# they are let go; and each of its steps in between, as [name, ms].
sub measure
{
	my ($self, $move) = @_;
	my ($begin, $end) = ($move->{begin}, $move->{end} + AFTERWARDS);
	my @waited = map { $_->[3] }
	  grep { $_->[2] >= $begin && $_->[2] - $_->[3] <= $end }
	  $self->_acknowledged;
	my @steps;
	while ($move->{notices} =~ /NOTICE:  (.*) \((\d+) ms\)$/mg)
	{
		my ($name, $ms) = ($1, $2);
		push @steps, [ $name, $ms ] if @steps || $name eq 'routers are paused';
		last if $name =~ /^routers lead/;
	}
	my $held = 0;
	$held += $_->[1] for @steps;
	return {
		pause => 1000 * max(0, @waited),
		held => $held,
		steps => \@steps
	};
}

# Transactions per second, over all.
sub speed
{
	my ($self) = @_;
	my @ended = sort { $a <=> $b } map { $_->[2] } $self->_acknowledged;
	return @ended / ($ended[-1] - $ended[0] || 1);
}

# A test that ends too early takes the clients with it.
sub DESTROY
{
	my ($self) = @_;
	local $?;
	$self->{load}->kill_kill(grace => 1) if $self->{load};
	return;
}

1;
