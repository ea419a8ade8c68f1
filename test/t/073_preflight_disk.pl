# bluegreen.preflight(): room for WAL on blue's disk.
#
# Claims: a disk that would be full of WAL within a day if the stream stood
# still is warned of; within an hour, it is an error.  A limit for slots that
# the disk has room for ends that.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Preflight;
use Test::More;

my $reason = BlueGreen::Node::own_mounts();
plan skip_all => $reason if $reason;

my ($blue, $green) =
  create_pair(blue_conf => "min_wal_size = '32MB'\nmax_wal_size = '48MB'");
$_->safe_psql('CREATE TABLE t (id int PRIMARY KEY, v text)') for $blue, $green;
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green');
	SELECT bluegreen.map_table('d', 't')});
nothing_found($blue, 'd', 'a large disk');
$blue->stop;
my $wal = $blue->small_disk('pg_wal', 160);
$blue->start;

# 8 MB of WAL, or somewhat more, in less than an hour
$blue->safe_psql(q{SELECT pg_stat_reset_shared('wal');
	SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000)))
	FROM generate_series(1, 8)});
$blue->poll_query_until('SELECT wal_bytes > 8000000 FROM pg_stat_wal');
fires_and_mends(
	$blue, $green, 'd',
	{
		check => 'wal_space', severity => 'warning', object => 'pg_wal',
		message => qr/^the disk of "pg_wal" has \d+ MB left, which is WAL for \d+\.\d hours/,
		wait => 1,
		blue_after => "ALTER SYSTEM RESET ALL;\n SELECT pg_reload_conf()"
	},
	{
		title => 'less than an hour',
		check => 'wal_space', severity => 'error', object => 'pg_wal',
		wait => 1,
		before => sub { $blue->fill_disk($wal, 4096) },
	});
$blue->empty_disk($wal);

done_testing();
