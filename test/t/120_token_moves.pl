# Tokens over moves and failovers: an older one is there on the side that has
# become the active one, and on no other; one whose commit is lost never is.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) = create_pair(way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'");
$_->safe_psql('CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int)')
  for $blue, $green;
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't');
	CALL bluegreen.start('d');});
wait_for_both('d');

sub token { return $_[0]->safe_psql('SELECT bluegreen.token()') }

# on a node, with a timeout: t, f or an error
sub reached
{
	my ($node, $token, $timeout) = @_;
	my (undef, $out, $error) = $node->psql(
		"CALL bluegreen.wait_for_token('$token', '$timeout', NULL)");
	return $error || $out;
}

#
# Another server takes the source's place: here the same, as a standby that is
# promoted
#
$blue->safe_psql('INSERT INTO t VALUES (1)');
my $old = token($blue);
is(reached($green, $old, '120 s'), 't', 'before the failover');
my $lost = forge_token($old, sprintf '%09X',
	hex((split /\./, $old)[3]) + 1024 * 1024);
is(reached($green, $lost, '0'), 'f', 'a commit that is not there');
$blue->stop;
open my $signal, '>', $blue->data_dir . '/standby.signal' or die $!;
close $signal or die $!;
$blue->start;
$blue->promote;
$blue->poll_query_until('SELECT NOT pg_is_in_recovery()') or die;
$blue->safe_psql(q{INSERT INTO t VALUES (2);
	SELECT pg_logical_emit_message(false, 'x', repeat('x', 2000000))});
my $new = token($blue);
isnt((split /\./, $new)[2], (split /\./, $old)[2], 'another timeline');
my $waiter = $green->session;
$waiter->send("CALL bluegreen.wait_for_token('$new', '170 s', NULL)");
$green->poll_query_until('SELECT count(*) FROM pg_stat_activity WHERE pid = '
	  . $waiter->pid . " AND wait_event_type = 'Extension'", 1) or die;
$blue->safe_psql(q{SELECT bluegreen.confirm_source('d')});
is($waiter->wait, 't', 'who waits for the new server gets what it has');
is($waiter->query('SELECT count(*) FROM t'), 2, '... and sees it');
$waiter->quit;
is(reached($green, $lost, '120 s'), 'f',
	'a token of the old one is never reached, wherever the new one is');
is(reached($blue, $old, '0'), 't', 'on its own side it is in the history');
is(reached($blue, $lost, '120 s'), 'f', '... and what is lost is not');
wait_for_both('d');

#
# A move that is undone raises the epoch of one side only
#
my $writer = $blue->session;
$writer->query('BEGIN; INSERT INTO t VALUES (3)');
my (undef, undef, $error) = $blue->psql(
	q{CALL bluegreen.switchover('d', drain_timeout => '200 ms')});
like($error, qr/did not end within 200 ms/,
	'a switchover that waits for a writer in vain');
is( $blue->safe_psql('SELECT state, epoch > 0 FROM bluegreen.fence'),
	'open|t', '... is undone');
$writer->query('COMMIT');
$writer->quit;
wait_for_both('d');
$blue->safe_psql(q{CALL bluegreen.stop('d')});
$green->safe_psql('INSERT INTO u VALUES (4)');
my $behind = token($green);
is(reached($blue, $behind, '100 ms'), 'f',
	'... does not make green\'s tokens old ones');
$blue->safe_psql(q{CALL bluegreen.start('d')});
is(reached($blue, $behind, '120 s'), 't', '... when it is there it is there');

#
# Moves
#
$blue->safe_psql('INSERT INTO t VALUES (5)');
my $before = token($blue);
$blue->safe_psql(q{CALL bluegreen.switchover('d')});
is(reached($blue, token($green), '120 s'), 't', 'green\'s token, on blue');
# sessions are not mapped here; a closed side takes none all the same
(undef, undef, $error) =
  $blue->psql(q{SELECT bluegreen.create_session('1 hour')});
like($error, qr/cannot write to table "session": this side .* is closed/,
	'a closed side takes no sessions');
like($green->safe_psql(q{SELECT bluegreen.create_session('1 hour')}),
	qr/^[0-9a-f]{48}$/, '... the active one does');
$blue->stop('immediate');
$green->restart('immediate');
is(reached($green, $before, '0'), 't',
	'a token from before the move is there, and blue is not needed');
$blue->start;
wait_for_both('d');
$green->safe_psql('INSERT INTO t VALUES (6)');
my $back = token($green);
$blue->safe_psql(q{CALL bluegreen.rollback('d')});
$blue->safe_psql(q{CALL bluegreen.stop('d')});
is(reached($blue, $back, '0'), 't', 'the same after a rollback');
$blue->safe_psql('INSERT INTO t VALUES (7)');
my $unseen = token($blue);
is(reached($green, $unseen, '0'), 'f', '... after which green waits again');
$blue->safe_psql(q{CALL bluegreen.start('d')});
is(reached($green, $unseen, '120 s'), 't', '... until it is there');

# a human says it
$blue->stop('immediate');
is(reached($green, forge_token($unseen, '7FFFFFFF00000000'), '0'),
	'f', 'blue is gone, and green is not the active side');
$green->safe_psql(q{SELECT bluegreen.force_active('green', 'd')});
is(reached($green, forge_token($unseen, '7FFFFFFF00000000'), '0'),
	't', '... until somebody says so');
$blue->start;
$blue->safe_psql(q{SELECT bluegreen.force_active('green', 'd')});

# dropped
my $there = token($green);
my $here = token($blue);
$blue->safe_psql(q{SELECT bluegreen.drop_deployment('d')});
is($blue->safe_psql('SELECT state FROM bluegreen.fence'),
	'retired', 'the side that was left stays closed');
is(reached($blue, $there, '120 s'), 'f', '... gets nothing more');
is(reached($blue, $here, '0'), 't', '... and has what it had');
is($blue->safe_psql('SELECT bluegreen.token() IS NULL'),
	't', '... and nobody waits for it');
is(reached($green, $here, '120 s'), 't', 'the other one is by itself');

done_testing();
