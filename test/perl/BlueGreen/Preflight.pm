package BlueGreen::Preflight;

# Preflights in tests: their rows, and their hints run as they are printed.
#
#	my @rows = preflight($blue, 'd');	# {check, severity, object, message, hint}
#	nothing_found($blue, 'd', 'a healthy pair');
#	fires_and_mends($blue, $green, 'd', {
#		check => 'rule', severity => 'warning', object => 'public.t r',
#		blue => SQL, green => SQL,			# makes it so
#		also => [...],						# what is found as well
#		then => [...],						# what is found instead afterwards
#		set => SQL, before => sub, wait => 1, green_dbname => name
#		conf => { blue => 'a = 1' },		# lines for postgresql.conf, restart
#		blue_after => SQL, green_after => SQL
#	}, ...);

use strict;
use warnings;

use BlueGreen::Node;
use Exporter 'import';
use Test::More ();

our @EXPORT =
  qw(preflight found nothing_found run_hint fires_and_mends);

my @columns = qw(check severity object message hint);

# All rows of a preflight, but for the way back, which these pairs do not have.
# Options: set => SQL before it, user, dbname.
sub preflight
{
	my ($blue, $deployment, %options) = @_;
	$deployment =~ s/'/''/g;
	my $set = $options{set} // '';
	my $out = $blue->safe_psql($options{dbname},
		"$set; SELECT " . join(q{ || E'\x1f' || },
			map { qq{coalesce("$_", '')} } @columns)
		  . qq{ || E'\x1e' FROM bluegreen.preflight('$deployment')},
		user => $options{user});
	return grep { $_->{check} ne 'way_back' } map {
		my %row;
		@row{@columns} = split /\x1f/, $_, -1;
		\%row;
	} grep { /\S/ } map { s/^\n//r } split /\x1e/, $out;
}

# Those above ok, as "check severity object".
sub found
{
	return map { "$_->{check} $_->{severity} $_->{object}" }
	  grep { $_->{severity} ne 'ok' } @_;
}

# A test: there is nothing above ok.
sub nothing_found
{
	my ($blue, $deployment, $title, %options) = @_;
	my @rows = preflight($blue, $deployment, %options);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	Test::More::is(join("\n", found(@rows)), '', $title)
	  or Test::More::diag(
		map { "$_->{message}\n$_->{hint}\n" }
		grep { $_->{severity} ne 'ok' } @rows);
	return scalar @rows;
}

# Run a hint as it is printed on the sides that it names; where it says so,
# the servers are restarted.
sub run_hint
{
	my ($blue, $green, $hint, %options) = @_;
	my %node = (blue => $blue, green => $green);
	my $side;
	my %sql;
	my @order;
	foreach my $line (split /\n/, $hint)
	{
		if ($line =~ /^-- on (blue|green)$/)
		{
			$side = $1;
			push @order, [ $side, '' ];
		}
		die "a hint without a side: $hint" unless @order;
		$order[-1][1] .= "$line\n";
	}
	foreach my $step (@order)
	{
		my ($where, $sql) = @$step;
		my $user = $options{"${where}_user"};
		my ($status, $out, $err) =
		  $node{$where}->psql(
			$where eq 'green' ? $options{green_dbname} : $options{dbname},
			$sql, user => $user);
		Test::More::diag("hint failed on $where: $err\n$sql") if $status;
		return 0 if $status;
		$node{$where}->restart if $sql =~ /^-- and restart the server/m;
	}
	return scalar @order;
}

# Tests: each case makes exactly its check fire; the hint, run as printed,
# makes it silent.
sub fires_and_mends
{
	my ($blue, $green, $deployment, @cases) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $case (@cases)
	{
		my $title = $case->{title} // "$case->{check} $case->{object}";
		my %options = (set => $case->{set});
		my $wanted = "$case->{check} $case->{severity} $case->{object}";
		my %also = map { $_ => 1 } @{ $case->{also} || [] };
		foreach my $side (sort keys %{ $case->{conf} || {} })
		{
			my $node = $side eq 'blue' ? $blue : $green;
			$node->append_conf($case->{conf}{$side});
			$node->restart;
		}
		$case->{before}->() if $case->{before};
		foreach my $side (qw(blue green))
		{
			my $node = $side eq 'blue' ? $blue : $green;
			$node->safe_psql($case->{$side})
			  if $case->{$side};
		}
		my (@rows, $row);
		BlueGreen::Node::wait_until(
			sub {
				@rows = preflight($blue, $deployment, %options);
				($row) = grep {
					     $_->{check} eq $case->{check}
					  && $_->{severity} eq $case->{severity}
					  && $_->{object} eq $case->{object}
				} @rows;
				return $row || !$case->{wait};
			});
		my @others = grep { !$also{$_} } found(@rows);
		Test::More::is(join("\n", @others), $wanted, "$title: is found")
		  or Test::More::diag(map { "$_->{check}: $_->{message}\n" }
			  grep { $_->{severity} ne 'ok' } @rows);
		Test::More::like($row ? $row->{message} : '',
			$case->{message}, "$title: says why")
		  if $case->{message};
		next unless $row;
		Test::More::ok(
			run_hint(
				$blue, $green, $row->{hint},
				green_dbname => $case->{green_dbname}),
			"$title: its hint can be run");
		Test::More::diag("$row->{message}\n$row->{hint}")
		  if $ENV{SHOW_MESSAGES};
		my %known = map { $_ => 1 } @{ $case->{then} || [] };
		my @after;
		BlueGreen::Node::wait_until(
			sub {
				@after = grep { !$also{$_} && !$known{$_} }
				  found(preflight($blue, $deployment, %options));
				return !@after || !$case->{wait};
			});
		Test::More::is(join("\n", @after), '', "$title: nothing is found then");
		$blue->safe_psql($case->{blue_after})
		  if $case->{blue_after};
		$green->safe_psql($case->{green_after})
		  if $case->{green_after};
	}
	return;
}

1;
