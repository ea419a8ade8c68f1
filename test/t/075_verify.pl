# verify() under load: a healthy pair shows nothing; one changed bit, one
# missing and one extra row, made on green behind the stream's back, are found
# and nothing else; repair() mends them through the stream.
#
# BLUEGREEN_VERIFY_ROWS and BLUEGREEN_VERIFY_TPS make it as large as one likes.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $rows = $ENV{BLUEGREEN_VERIFY_ROWS} || 100_000;
my $tps = $ENV{BLUEGREEN_VERIFY_TPS} || 200;
my ($blue, $green) = create_pair(conf => <<'CONF');
bluegreen.verify_rate = 0
CONF

# CALL verify(): what it says, one line per table.
sub verify
{
	my (@arguments) = @_;
	my ($status, undef, $said) = $blue->psql(
		'CALL bluegreen.verify(' . join(', ', "'v'", @arguments) . ')',
		timeout => 600);
	is($status, 0, 'verify() ends') or diag($said);
	return $said;
}

sub differences
{
	return $blue->safe_psql(q{SELECT target || ' ' || kind || ' ' || key::text
		FROM bluegreen.difference WHERE repaired_at IS NULL ORDER BY 1});
}

foreach my $node ($blue, $green)
{
	$node->safe_psql(<<'SQL');
CREATE TABLE account (id bigint PRIMARY KEY, n integer NOT NULL, t text,
	f float8, at timestamptz);
CREATE TABLE busy (id integer PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
CREATE TABLE log (id integer, line text);
SQL
}
$blue->safe_psql(<<"SQL");
INSERT INTO account SELECT i, i, 'text ' || i, i / 7.0, now()
	FROM generate_series(1, $rows) i;
INSERT INTO busy SELECT generate_series(1, 3);
INSERT INTO log SELECT i % 1000, 'line ' || i % 7 FROM generate_series(1, 5000) i;
ALTER TABLE log REPLICA IDENTITY FULL;
SELECT bluegreen.create_deployment('v', 'green');
SELECT bluegreen.map_table('v', 'account');
SELECT bluegreen.map_table('v', 'busy');
SELECT bluegreen.map_table('v', 'log');
CALL bluegreen.start('v');
VACUUM ANALYZE account;
SQL
wait_for_sync('v');

like(verify(), qr/"public.account": $rows rows compared, 0 differences/,
	'a pair at rest has no differences');
is(differences(), '', 'nor does the view show any');

# load: a row that is hot, updates all over, inserts, deletes, moves of keys
my $bench = pgbench_start($blue, rate => $tps, script => <<"SQL");
\\set id random(1, $rows)
\\set hot random(1, 3)
\\set new random(1, 1000000000)
BEGIN;
UPDATE account SET n = n + 1, t = md5(random()::text) WHERE id = :id;
UPDATE busy SET n = n + 1 WHERE id = :hot;
INSERT INTO account SELECT $rows + :new, :id, 'new' ON CONFLICT DO NOTHING;
DELETE FROM account WHERE id = (SELECT min(id) FROM account WHERE id > $rows + :new);
INSERT INTO log VALUES (:id % 1000, 'line ' || :id % 7);
END;
SQL
foreach my $try (1 .. 3)
{
	my $said = verify();
	unlike($said, qr/ [1-9]\d* differences/, 'no differences under load')
	  or diag($said, differences());
	unlike($said, qr/could not be compared/, 'hot rows are compared, too')
	  or diag($said);
}
pgbench_stop($bench);

# rows that wait for a lock on green are on their way, and nothing else
wait_for_sync('v');
my $lock = $green->session;
$lock->query('BEGIN; SELECT * FROM busy FOR UPDATE');
$blue->safe_psql(q{UPDATE busy SET n = n + 1; UPDATE account SET n = 0
	WHERE id IN (5, 55, 555); INSERT INTO log VALUES (1, 'on its way')});
my $caller = $blue->session;
$caller->send(q{CALL bluegreen.verify('v')});
$green->poll_query_until(q{SELECT count(*) = 1 FROM pg_stat_activity
	WHERE application_name = 'bluegreen v verify' AND state = 'idle'
		AND query ~ 'ORDINALITY'
		AND state_change < clock_timestamp() - interval '300 ms'});
is($blue->safe_psql('SELECT count(*) FROM bluegreen.difference'),
	0, 'what is waited for is no difference');
$lock->quit;
$caller->wait;
unlike($caller->errors, qr/ [1-9]\d* differences|ERROR/,
	'nor when it has arrived') or diag($caller->errors, differences());
is( $blue->safe_psql(q{SELECT string_agg(suspects::text, ' ' ORDER BY target)
		FROM bluegreen.verification}),
	'3 0 0',
	'just these rows were looked at again');

#
# One bit, one missing, one extra row behind the stream's back, under load
#
$bench = pgbench_start($blue, rate => $tps, script => <<"SQL");
\\set id random(1, $rows)
\\set new random(1, 1000000000)
BEGIN;
UPDATE account SET n = n + 1 WHERE id = :id AND id NOT IN (77, 778, 7779);
INSERT INTO account SELECT $rows + :new, :id, 'new' ON CONFLICT DO NOTHING;
INSERT INTO log VALUES (:id % 1000, 'line ' || :id % 7);
END;
SQL
$green->safe_psql(<<'SQL');
SET session_replication_role = replica;
UPDATE account SET t = overlay(t PLACING chr(ascii(t) # 1) FROM 1 FOR 1)
	WHERE id = 77;
DELETE FROM account WHERE id = 778;
INSERT INTO account VALUES (-5, 1, 'extra');
DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE line = 'on its way');
INSERT INTO log VALUES (NULL, 'extra'), (NULL, 'extra');
SQL
like(verify(), qr/"public.account": \d+ rows compared, 3 differences/,
	'three wrong rows are found under load');
my $found = differences();
is( $found =~ s/\{[0-9a-f-]{36}\}/{hash}/gr, <<'END' =~ s/\n$//r, 'exactly these');
public.account different {77}
public.account extra {-5}
public.account missing {778}
public.log extra {hash}
public.log missing {hash}
END
is( $blue->safe_psql(q{SELECT differences, verified_lsn > '0/0',
		verified_at > now() - interval '1 hour' FROM bluegreen.stat_stream}),
	'5|t|t',
	'stat_stream shows how many, when, and up to which position');
like($blue->safe_psql('SELECT verified FROM bluegreen.status'),
	qr{^[0-9A-F]+/[0-9A-F]+ \d+(s|min), 5 wrong$}, 'status as well');

is($blue->safe_psql(q{SELECT bluegreen.repair('v')}), 5, 'repair()');
is(differences(), '', 'nothing is left to be repaired');
unlike(verify(), qr/ [1-9]\d* differences/, 'nor to be found, under load')
  or diag(differences());
pgbench_stop($bench);
wait_for_sync('v');
compare_tables('TABLE account', 'TABLE account', 'account is the same');
compare_tables('TABLE log', 'TABLE log', 'log is the same');
is($green->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'repair() makes no conflicts');
is( $blue->safe_psql(q{SELECT count(*), count(repaired_at),
		min(repaired_by) FROM bluegreen.difference}),
	'5|5|postgres',
	'what was repaired stays in the view');
is( $blue->safe_psql(q{SELECT count(*) FROM bluegreen.event
		WHERE kind = 'repaired'}), 2, 'and events say so');
is($blue->safe_psql('SELECT count(*) FROM bluegreen.repair_row'),
	0, 'nothing stays in the table that rows pass through');

# Everybody may call what hashes rows, so it believes nothing.
foreach my $call (
	q{row_hash('r', 5)},
	q{row_hash('rr', ROW(ROW(1)), ROW(2))},
	q{row_hash('rrb', ROW(ROW(ROW(1))))},
	q{row_hash('x', 5)},
	q{row_hash('b', 5, 6)})
{
	my (undef, undef, $said) = $blue->psql("SELECT bluegreen.$call");
	like($said, qr/ERROR:  /, "$call is refused");
}
my (undef, undef, $said) = $blue->psql(q{SELECT bluegreen.row_hash('rbb', r)
	FROM (VALUES (1, ROW(1, 2)), (2, ROW(3, 'x'))) v (n, r)});
like($said, qr/ERROR:  /, 'rows of several types are refused');
is($blue->safe_psql(q{SELECT count(DISTINCT bluegreen.row_hash('rbt', ROW(n, 1)))
	FROM generate_series(1, 10) n}), 10, 'rows are hashed');

done_testing();
