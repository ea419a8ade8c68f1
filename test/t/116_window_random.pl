# Random writes on both sides at once, the network cut, processes and servers
# killed: under each policy both sides are the same in the end, and where a row is
# not as the later write had it, there is a conflict that says so.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Proxy;
use BlueGreen::TwoWay;
use Test::More;

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'\n"
	  . "bluegreen.peer_timeout = '5s'\nmax_worker_processes = 24\n"
	  . "max_replication_slots = 20\ndeadlock_timeout = '50ms'");
my %proxies = (
	blue => BlueGreen::Proxy->new($green->port),
	green => BlueGreen::Proxy->new($blue->port));
$blue->safe_psql("ALTER SERVER green OPTIONS (SET port '"
	  . $proxies{blue}->port . "')");
$green->safe_psql("ALTER SERVER blue OPTIONS (SET port '"
	  . $proxies{green}->port . "')");

# rev is the time of the write, so it only grows; made has every write of a side.
foreach my $node ($blue, $green)
{
	$node->safe_psql(q{
		CREATE TABLE plain (id int PRIMARY KEY, v text, rev bigint NOT NULL);
		CREATE TABLE pair (id int PRIMARY KEY, v text, rev bigint NOT NULL,
			code text UNIQUE);
		CREATE TABLE made (t text, id int, rev bigint, gone boolean);
		ALTER TABLE plain REPLICA IDENTITY FULL;
		ALTER TABLE pair REPLICA IDENTITY FULL;
		CREATE FUNCTION now_rev() RETURNS bigint LANGUAGE sql
			AS 'SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint';
		CREATE FUNCTION write_plain(i int, what int) RETURNS void
		LANGUAGE plpgsql AS $$
		BEGIN
			IF what < 6 THEN
				WITH w AS (UPDATE plain SET v = v || what, rev = now_rev()
					WHERE id = i RETURNING *)
				INSERT INTO made SELECT 'plain', id, rev, false FROM w;
			ELSIF what < 8 THEN
				WITH w AS (DELETE FROM plain WHERE id = i RETURNING *)
				INSERT INTO made SELECT 'plain', id, now_rev(), true FROM w;
			ELSE
				WITH w AS (INSERT INTO plain VALUES (i, 'new', now_rev())
					ON CONFLICT DO NOTHING RETURNING *)
				INSERT INTO made SELECT 'plain', id, rev, false FROM w;
			END IF;
		END $$;
		CREATE FUNCTION write_pair(i int, c int, what int) RETURNS void
		LANGUAGE plpgsql AS $$
		BEGIN
			IF what < 5 THEN
				WITH w AS (UPDATE pair SET v = v || what, rev = now_rev(),
						code = 'c' || c WHERE id = i RETURNING *)
				INSERT INTO made SELECT 'pair', id, rev, false FROM w;
			ELSIF what < 7 THEN
				WITH w AS (DELETE FROM pair WHERE id = i RETURNING *)
				INSERT INTO made SELECT 'pair', id, now_rev(), true FROM w;
			ELSE
				WITH w AS (INSERT INTO pair VALUES (i, 'new', now_rev(), 'c' || c)
					ON CONFLICT DO NOTHING RETURNING *)
				INSERT INTO made SELECT 'pair', id, rev, false FROM w;
			END IF;
		EXCEPTION WHEN unique_violation THEN NULL;
		END $$});
}
$blue->safe_psql(q{
	INSERT INTO plain SELECT i, '0', 1 FROM generate_series(1, 300) i;
	INSERT INTO pair SELECT i, '0', 1, 'c' || i FROM generate_series(1, 200) i;
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 'plain');
	SELECT bluegreen.map_table('d', 'pair');
	SELECT bluegreen.accept('d', 'unmapped_table', 'public.made');
	CALL bluegreen.start('d')});
wait_for_both('d');

# Rows that are not as the last of all writes left them.
sub unexplained
{
	my (%last, %is, %explained);
	foreach my $node ($blue, $green)
	{
		foreach my $line (split /\n/, $node->safe_psql('SELECT * FROM made'))
		{
			my ($table, $id, $rev, $gone) = split /\|/, $line;
			$last{"$table $id"} = [ $rev, $gone eq 't' ]
			  if !$last{"$table $id"} || $last{"$table $id"}[0] < $rev;
		}
		foreach my $line (split /\n/, $node->safe_psql(q{
			SELECT target, substring(key from '''(\d+)'''),
				(existing::jsonb ->> 'id') FROM bluegreen.conflict}))
		{
			my ($table, @ids) = split /\|/, $line;
			$table =~ s/public\.//;
			$explained{"$table $_"} = 1 for grep { $_ ne '' } @ids;
		}
	}
	foreach my $table ('plain', 'pair')
	{
		foreach my $line (
			split /\n/, $blue->safe_psql("SELECT id, rev FROM $table"))
		{
			my ($id, $rev) = split /\|/, $line;
			$is{"$table $id"} = $rev;
		}
	}
	my @later = grep { $last{$_}[1] ? exists $is{$_}
		: ($is{$_} // 0) != $last{$_}[0] } keys %last;
	return (scalar(@later), grep { !$explained{$_} } @later);
}

# What happens to a round's writes while they are made.
my %accidents = (
	cut => sub { $_->reset for values %proxies },
	stall => sub {
		$_->stall for values %proxies;
		$blue->poll_query_until(q{SELECT count(*) > 200 FROM made});
		$_->reset for values %proxies;
		$_->forward for values %proxies;
	},
	watcher => sub { kill9_worker($green, 'watch') },
	stream => sub { kill9_worker($blue, 'stream') },
	server => sub { $blue->kill9; $blue->start });

sub load
{
	my ($node) = @_;
	return pgbench_start($node,
		clients => 2,
		rate => 120,
		args => [ '--max-tries=1000' ],
		script => [
			"\\set i random(1, 400)\n\\set what random(0, 9)\n"
			  . 'SELECT write_plain(:i, :what);',
			"\\set i random(1, 200)\n\\set c random(1, 250)\n"
			  . "\\set what random(0, 9)\nSELECT write_pair(:i, :c, :what);",
			"\\set i random(1, 40)\n\\set c random(1, 25)\nBEGIN;\n"
			  . "SELECT write_plain(:i, 1);\nSELECT write_plain(:i + 1, 9);\n"
			  . 'SELECT write_pair(:i, :c, 8);COMMIT;' ]);
}

foreach my $round ([ 'blue', 'cut' ], [ 'green', 'stream' ],
	[ 'last_write', 'watcher' ], [ 'last_write', 'server' ],
	[ 'newer_column:rev', 'stall' ])
{
	my ($policy, $accident) = @$round;
	my $name = "$policy, $accident";
	open_with('d', $policy, $blue, $green);
	$_->safe_psql(q{TRUNCATE bluegreen.conflict_log, made}) for $blue, $green;
	# what is made while nothing is sent conflicts for certain
	stop_both('d', $blue, $green);
	my @loads = map { load($_) } $blue, $green;
	ok($_->poll_query_until('SELECT count(*) > 80 FROM made'),
		"$name: $_->{name} writes") for $blue, $green;
	if ($accident eq 'server' || $accident eq 'stream' || $accident eq 'watcher')
	{
		pgbench_stop($_) for splice @loads;
	}
	start_both('d', $blue, $green);
	$accidents{$accident}->();
	@loads = map { load($_) } $blue, $green if !@loads;
	my $before = $green->safe_psql('SELECT count(*) FROM made');
	ok($_->poll_query_until("SELECT count(*) > $before + 80 FROM made"),
		"$name: $_->{name} writes on") for $green;
	pgbench_stop($_) for @loads;
	ok(settle('d', $blue, $green), "$name: streams");
	compare_tables("SELECT * FROM $_", "SELECT * FROM $_", "$name: $_")
	  for qw(plain pair);
	my ($later, @unexplained) = unexplained();
	is(join(', ', @unexplained), '',
		"$name: rows that are not the later ones ($later) are explained");
	cmp_ok(
		$blue->safe_psql('SELECT count(*) FROM bluegreen.conflict') +
		  $green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
		'>', 0, "$name: there were conflicts");
}

done_testing();
