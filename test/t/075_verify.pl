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
cmp_ok(
	$blue->safe_psql('SELECT sum(suspects) FROM bluegreen.verification'),
	'>', 0, 'rows were in flight');
note($blue->safe_psql(q{SELECT target, rows, suspects, rechecks, unsettled
	FROM bluegreen.verification}));

done_testing();
