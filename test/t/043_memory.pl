# Memory: whatever a stream's worker has to go through, it does not grow.
# Millions of small transactions (BLUEGREEN_TRANSACTIONS, default 300000), with
# subtransactions and with user's functions in the transform; tables that come
# and go; and for the launcher and the recorder, streams that do.
use strict;
use warnings;

use BlueGreen;
use Test::More;

plan skip_all => 'there is no /proc/PID/smaps_rollup'
  unless -e '/proc/self/smaps_rollup';

my $transactions = $ENV{BLUEGREEN_TRANSACTIONS} || 300_000;
my $clients = 2;

my ($blue, $green) = create_pair(
	conf => "synchronous_commit = off\nshared_buffers = 64MB\n"
	  . "max_wal_size = 8GB\nbluegreen.restart_delay = '100ms'");
$_->safe_psql(<<'SQL') for $blue, $green;
CREATE TABLE plain (id int PRIMARY KEY, v int NOT NULL, t text);
CREATE TABLE computed (id int PRIMARY KEY, v text);
SQL
$blue->safe_psql(<<'SQL');
INSERT INTO plain SELECT i, 0, repeat('x', 50) FROM generate_series(1, 1000) i;
INSERT INTO computed SELECT id, t FROM plain;
CREATE FUNCTION in_sql(t text) RETURNS text IMMUTABLE LANGUAGE sql
	AS $$ SELECT upper(t) || (SELECT count(*) FROM generate_series(1, 3)) $$;
CREATE FUNCTION in_plpgsql(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql
	AS $$ DECLARE r text := t;
	BEGIN r := r || '!'; RETURN r; EXCEPTION WHEN others THEN RETURN 'x'; END $$;
SELECT bluegreen.create_deployment('m', 'green');
SELECT bluegreen.map_table('m', 'plain');
SELECT bluegreen.map_table('m', 'computed', transform =>
	'SELECT id, in_sql(in_plpgsql(v)) AS v FROM computed');
CALL bluegreen.start('m');

-- transactions number first to last, small ones of several kinds
CREATE PROCEDURE storm(first int, last int, step int) LANGUAGE plpgsql AS $$
DECLARE k int;
BEGIN
	FOR i IN first .. last BY step LOOP
		k := 1 + i % 1000;
		IF i % 10 < 6 THEN
			UPDATE plain SET v = v + 1 WHERE id = k;
		ELSIF i % 10 = 6 THEN
			INSERT INTO plain VALUES (1000 + i, i, 'short life');
		ELSIF i % 10 = 7 THEN
			DELETE FROM plain WHERE id = 1000 + i - step * 10 - 1;
		ELSIF i % 10 = 8 THEN
			BEGIN
				UPDATE plain SET v = v - 1 WHERE id = k;
				PERFORM 1 / (i % 20 - 8);
			EXCEPTION WHEN division_by_zero THEN
				UPDATE plain SET t = repeat('y', i % 90) WHERE id = k;
			END;
		ELSE
			UPDATE computed SET v = 'v' || i WHERE id = k;
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- tables that nobody has mapped
CREATE PROCEDURE tables(n int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		CREATE TABLE short_lived (id int, v int);
		INSERT INTO short_lived VALUES (i, i);
		COMMIT;
		DROP TABLE short_lived;
		CREATE TEMP TABLE temporary (id int);
		INSERT INTO temporary VALUES (i);
		DROP TABLE temporary;
		COMMIT;
	END LOOP;
END $$;
SQL
wait_for_sync('m');

my $worker = $blue->safe_psql('SELECT pid FROM bluegreen.stat_stream');
my $launcher = $blue->safe_psql('SELECT pid FROM pg_stat_activity'
	  . " WHERE backend_type = 'pg_bluegreen launcher'");
my $applier = $green->safe_psql('SELECT pid FROM pg_stat_activity'
	  . " WHERE application_name = 'bluegreen m forward'");

# All clients do their share of transactions $from to $to.
sub storm
{
	my ($from, $to) = @_;
	my @sessions = map { $blue->session } 1 .. $clients;
	foreach my $client (0 .. $#sessions)
	{
		$sessions[$client]->send('CALL storm('
			  . join(', ', $from + $client, $to, $clients) . ')');
	}
	foreach my $session (@sessions)
	{
		$session->wait;
		die $session->errors if $session->errors ne '';
		$session->quit;
	}
	wait_for_sync('m');
	return;
}

# A test: from the second on, the last of these is larger by at most so much.
sub stays
{
	my ($what, $bound, @kilobytes) = @_;
	note("measured: $what: private memory in kB: @kilobytes");
	my $growth = $kilobytes[-1] - $kilobytes[1];
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return cmp_ok($growth, '<=', $bound, "$what: does not grow");
}

#
# Small transactions
#
my (@worker, @applier);
my $steps = 4;
for my $step (0 .. $steps - 1)
{
	storm(int($step * $transactions / $steps) + 1,
		int(($step + 1) * $transactions / $steps));
	push @worker, memory_of($worker);
	push @applier, memory_of($applier);
}
is($blue->safe_psql('SELECT pid FROM bluegreen.stat_stream'),
	$worker, "one worker did all of $transactions transactions");
stays('worker', 2048, @worker);
stays("the worker's session on green", 1024, @applier);
compare_tables('TABLE plain', 'TABLE plain', 'and the rows are right');
compare_tables(q{SELECT id, upper(v || '!') || '3' FROM computed},
	'TABLE computed', "and those of user's functions");

#
# Tables that come and go
#
my @tables;
for my $number (300, 10, 800)
{
	$blue->safe_psql("CALL tables($number)");
	wait_for_sync('m');
	push @tables, memory_of($worker);
}
stays('worker, with 800 tables made and dropped', 300, @tables);

#
# Workers that come and go
#
my @launcher;
for my $number (5, 1, 30)
{
	$blue->safe_psql("CALL bluegreen.stop('m'); CALL bluegreen.start('m')")
	  for 1 .. $number;
	push @launcher, memory_of($launcher);
}
stays('launcher, with 30 workers started and ended', 64, @launcher);
ok( $blue->poll_query_until(
		q{SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity
		WHERE backend_type = 'pg_bluegreen recorder')}),
	'the recorder of events ends when there is nothing to record');

done_testing();
