package BlueGreen::Mistakes;

# Mistakes that users make, as a table: each is a statement that must fail with
# a certain message and leave both sides as they were.
#
#	try_mistakes($blue, $green,
#		{
#			title => 'what is wrong',
#			blue => SQL, green => SQL,		# before it, on either side
#			sql => 'CALL ...',				# the mistake, on blue
#			state => '55000',				# SQLSTATE
#			message => qr/.../, detail => qr/.../, hint => qr/.../,
#			blue_after => SQL, green_after => SQL
#		}, ...);
#
# sql on another node: node => $node.  All but title, sql, state and message
# are optional.  Both sides are looked at after each start and each case with
# something before or after it, and after the last one.

use strict;
use warnings;

use BlueGreen::Node;
use Exporter 'import';
use Test::More ();

our @EXPORT = qw(try_mistakes fails_with side_state);

# Every row of every table that is not a system table, every relation, slot
# and origin of a side, and the folders of its slots.
my $state_sql = <<'SQL';
SELECT what FROM (	-- tables without rows give null
	SELECT 'slot ' || slot_name || ' ' || plugin FROM pg_replication_slots
	UNION ALL
	SELECT 'origin ' || roname FROM pg_replication_origin
	UNION ALL
	SELECT 'server ' || srvname FROM pg_foreign_server
	UNION ALL
	SELECT 'relation ' || c.oid::regclass || ' ' || relkind::text
	FROM pg_class c WHERE c.oid >= 16384 AND relkind <> 't'
		AND relnamespace <> 'pg_toast'::regnamespace
		AND relpersistence <> 't'
	UNION ALL
	SELECT 'rows ' || c.oid::regclass || ' ' || (xpath('//x/text()',
		query_to_xml(format(
			'SELECT string_agg(t::text, E''\n'' ORDER BY t::text) AS x FROM %s t',
			c.oid::regclass), false, false, '')))[1]::text
	FROM pg_class c WHERE c.oid >= 16384 AND relkind = 'r'
		AND relpersistence <> 't') state(what)
ORDER BY what COLLATE "C"
SQL

# What there is on a side, as text.
sub side_state
{
	my ($node) = @_;
	my $dir = $node->data_dir . '/pg_replslot';
	opendir my $in, $dir or die "$dir: $!";
	my @slots = sort grep { !/^\./ } readdir $in;
	closedir $in;
	return $node->safe_psql($state_sql) . "\nslot files: @slots\n";
}

# Processes of streams on blue, sessions of theirs on green: gone soon.
sub _nobody_works
{
	my ($blue, $green) = @_;
	return $blue->poll_query_until(q{SELECT NOT EXISTS (SELECT
			FROM pg_stat_activity WHERE backend_type
				IN ('pg_bluegreen stream', 'pg_bluegreen copy',
					'pg_bluegreen probe'))})
	  && $green->poll_query_until(q{SELECT NOT EXISTS (SELECT
			FROM pg_stat_activity WHERE application_name ~ '^bluegreen '
				AND backend_type = 'client backend')});
}

# A test: the statement fails so.
sub fails_with
{
	my ($node, $case, $title) = @_;
	my (undef, $out, $err) =
	  $node->psql("\\set VERBOSITY verbose\n$case->{sql}");
	my %got;
	($got{state}, $got{message}) =
	  $err =~ /(?:ERROR|FATAL):  ([0-9A-Z]{5}): (.*)/;
	($got{detail}) = $err =~ /^DETAIL:  (.*)/m;
	($got{hint}) = $err =~ /^HINT:  (.*)/m;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @wrong = grep {
		my ($is, $wanted) = ($got{$_} // '', $case->{$_});
		defined $wanted && $is !~ (ref $wanted ? $wanted : qr/^\Q$wanted\E$/)
	} qw(state message detail hint);
	Test::More::ok(!@wrong, $title);
	Test::More::diag("wrong @wrong of: $case->{sql}\n$err$out") if @wrong;
	Test::More::diag($err) if $ENV{SHOW_MESSAGES};
	return !@wrong;
}

sub try_mistakes
{
	my ($blue, $green, @cases) = @_;
	my @before;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $i (0 .. $#cases)
	{
		my $case = $cases[$i];
		my $next = $cases[ $i + 1 ];
		if ($case->{blue} || $case->{green})
		{
			@before = ();
			$blue->safe_psql($case->{blue}) if $case->{blue};
			$green->safe_psql($case->{green}) if $case->{green};
		}
		@before = map { side_state($_) } $blue, $green unless @before;
		fails_with($case->{node} // $blue, $case, $case->{title});

		my $is_start = $case->{sql} =~ /\bstart\b/;
		next unless $is_start || !$next || grep { defined }
			@$case{qw(blue_after green_after)}, @$next{qw(blue green)};
		Test::More::ok(_nobody_works($blue, $green),
			"$case->{title}: nobody is left working") if $is_start;
		my @after = map { side_state($_) } $blue, $green;
		Test::More::is($after[0], $before[0],
			"$case->{title}: blue is as it was");
		Test::More::is($after[1], $before[1],
			"$case->{title}: green is as it was");
		@before = @after;

		@before = () if $case->{blue_after} || $case->{green_after};
		$blue->safe_psql($case->{blue_after}) if $case->{blue_after};
		$green->safe_psql($case->{green_after}) if $case->{green_after};
	}
	return;
}

1;
