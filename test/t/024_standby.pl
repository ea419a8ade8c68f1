# A physical standby of the source, which does not have the stream's slot: one
# can look there, and change nothing.  When it is promoted the stream is lost.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(conf => "bluegreen.restart_delay = '100ms'");
$_->safe_psql('CREATE TABLE t (id int PRIMARY KEY, v int)') for $blue, $green;
$blue->safe_psql(q{INSERT INTO t VALUES (1, 1);
	SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	CALL bluegreen.start('d');});
wait_for_sync('d');
my $standby = BlueGreen->blue('standby', '', standby_of => $blue);

is( $standby->safe_psql('SELECT state, error FROM bluegreen.status'),
	'standby|standby does not have the slot',
	'a standby tells that it could not take over');
foreach my $view (qw(stat_stream stat_table copy_progress chunk conflict event
	mapping))
{
	is( ($standby->psql("SELECT * FROM bluegreen.$view"))[0],
		0, "$view can be read there");
}
foreach my $call (
	q{SELECT bluegreen.create_deployment('e', 'green')},
	q{SELECT bluegreen.map_table('d', 't')},
	q{SELECT bluegreen.unmap_table('d', 't')},
	q{CALL bluegreen.start('d')},
	q{CALL bluegreen.stop('d')},
	q{CALL bluegreen.wait_for_sync('d')},
	q{SELECT bluegreen.skip('d', '0/1')},
	q{SELECT bluegreen.confirm_source('d')},
	q{SELECT bluegreen.token()},
	q{SELECT bluegreen.wait_for_token(NULL, '0')},
	q{CALL bluegreen.wait_for_token(NULL, '0', NULL)},
	q{SELECT bluegreen.drop_deployment('d')})
{
	my ($name) = $call =~ /bluegreen\.(\w+)/;
	my (undef, undef, $error) = $standby->psql($call);
	like(
		$error,
		qr/cannot execute bluegreen\.$name.* during recovery\nHINT:  Call it on the primary/,
		"$name refuses");
}

#
# Promoted
#
$blue->stop;
$standby->promote;
$standby->safe_psql('INSERT INTO t VALUES (2, 2)');
is( $standby->safe_psql('SELECT state, error FROM bluegreen.status'),
	'lost|replication slot is gone',
	'promoted without the slot, the stream is lost');
my (undef, undef, $error) = $standby->psql(q{CALL bluegreen.start('d')});
like($error, qr/is in state lost: replication slot is gone/,
	'start does not make one');
like($error, qr/HINT:  Drop the deployment, empty the target tables/,
	'but says what to do');
(undef, undef, $error) =
  $standby->psql(q{CALL bluegreen.wait_for_sync('d', '180 s')});
like($error, qr/is in state lost: replication slot is gone/,
	'waiting says so at once');
is($green->safe_psql('TABLE t'), '1|1', 'nothing is written');

# the way out, as documented
(undef, undef, $error) =
  $standby->psql(q{SELECT bluegreen.drop_deployment('d')});
like($error, qr/bluegreen\.confirm_source\(\) first/,
	'a human has to confirm that this is the source');
$standby->safe_psql(q{SELECT bluegreen.confirm_source('d');
	SELECT bluegreen.drop_deployment('d')});
is( $green->safe_psql('SELECT (SELECT count(*) FROM bluegreen.applied_stream),
		(SELECT count(*) FROM pg_replication_origin)'),
	'0|0', 'then it is dropped on both sides');
$green->safe_psql('TRUNCATE t');
$standby->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	CALL bluegreen.start('d');
	INSERT INTO t VALUES (3, 3);});
wait_for_sync('d', node => $standby);
compare_tables('TABLE t', 'TABLE t', 'and started anew it follows',
	blue => $standby);

done_testing();
