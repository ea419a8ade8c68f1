# Sessions of bluegreen.session, written on both sides at once: the data is the
# newer one's, as a whole or by attribute, the expiry the later one, a logout
# stays, and to remove expired rows logs out nobody.
use strict;
use warnings;

use BlueGreen;
use IPC::Run;
use Test::More;
use Time::HiRes qw(usleep);

my ($blue, $green) = create_pair(way_back => 1,
	conf => "bluegreen.restart_delay = '100ms'\n"
	  . "bluegreen.restart_delay_max = '500ms'\n"
	  . 'bluegreen.session_purge_interval = 0');
my @sides = ($blue, $green);
foreach my $node (@sides)
{
	$node->safe_psql(q{CREATE ROLE app LOGIN;
		GRANT EXECUTE ON FUNCTION bluegreen.create_session(interval, jsonb, text),
			bluegreen.read_session(text),
			bluegreen.touch_session(text, interval),
			bluegreen.write_session(text, jsonb),
			bluegreen.write_session_attribute(text, text, jsonb),
			bluegreen.delete_session(text) TO app;});
}
my %app = map { $_->name => $_->session } @sides;
$_->query('SET SESSION AUTHORIZATION app') for values %app;

# a function of this module, as an application calls it
sub on
{
	my ($node, $call) = @_;
	return $app{ $node->name }->query("SELECT bluegreen.$call");
}

#
# One side
#
my $id = on($blue, q{create_session('1 hour', '{"cart": [1]}')});
like($id, qr/^[0-9a-f]{48}$/, 'a random id');
isnt($id, on($blue, q{create_session('1 hour')}), '... each time');
is(on($blue, "read_session('$id')"), '{"cart": [1]}', 'read');
is(on($blue, qq{write_session('$id', '{"cart": [1, 2], "lang": "de"}')}),
	't', 'write all of it');
is(on($blue, "write_session_attribute('$id', 'cart', '[3]')"),
	't', '... one attribute');
is(on($blue, "write_session_attribute('$id', 'lang', NULL)"),
	't', '... remove one');
is(on($blue, "read_session('$id')"), '{"cart": [3]}', '... as it was written');
my $expiry = q{SELECT expires_at > now() + interval '90 minutes'
	FROM bluegreen.session WHERE id = '%s'};
is($blue->safe_psql(sprintf $expiry, $id), 'f', 'its lifetime is an hour');
is(on($blue, "touch_session('$id', '2 hours')"), 't', 'touch');
is(on($blue, "touch_session('$id')"), 't', '... for less');
is($blue->safe_psql(sprintf $expiry, $id), 't', '... leaves the later expiry');
is(on($blue, "delete_session('$id')"), 't', 'delete');
is(on($blue, "read_session('$id')"), '', '... cannot be read');
is(on($blue, qq{write_session('$id', '{}')}), 'f', '... nor written');
is(on($blue, "touch_session('$id')"), 'f', '... nor touched');
is(on($blue, "delete_session('$id')"), 'f', '... nor deleted again');
is(on($blue, 'touch_session($$nobody$$)'), 'f', 'nor one that never was');
is($blue->safe_psql('SELECT live, deleted, missing FROM bluegreen.stat_session'),
	'1|1|4', '... all of which is counted');
on($blue, "create_session('1 hour', '{}', '$id')");
like($app{blue}->errors, qr/there is or was a session of this id/,
	'an id is used once');
on($blue, qq{create_session('0')});
like($app{blue}->errors, qr/must be positive/, 'a lifetime of nothing');
on($blue, qq{create_session('1 hour', '[1]')});
like($app{blue}->errors, qr/must be a JSON object/, 'data that is no object');
if ($blue->safe_psql('SHOW server_version_num') >= 170000)
{
	on($blue, q{create_session('infinity')});
	like($app{blue}->errors, qr/must be finite/, 'a lifetime without an end');
}
$app{blue}->query('TABLE bluegreen.session');
like($app{blue}->errors, qr/permission denied for table session/,
	'an application has no list of sessions');
$blue->safe_psql(q{UPDATE bluegreen.session
	SET expires_at = now() - interval '1 second' WHERE id <> '} . $id . q{'});
is($blue->safe_psql('SELECT live, expired FROM bluegreen.stat_session'),
	'0|1', 'one has expired');
is($blue->safe_psql('SELECT bluegreen.expire_sessions()'),
	0, '... and is kept for a while');

my $dump;
IPC::Run::run([ "$blue->{client}/pg_dump", '-d', $blue->connstr ],
	'>', \$dump) or die 'pg_dump fails';
like($dump, qr/^COPY bluegreen\.session .*^$id\t/ms, 'sessions are dumped');

#
# Both sides
#
$blue->safe_psql(q{SELECT bluegreen.create_deployment('d', 'green')});
foreach my $options ('', q{, on_write => 'merge'}, q{, on_delete => 'ignore'})
{
	my (undef, undef, $error) = $blue->psql(
		"SELECT bluegreen.map_table('d', 'bluegreen.session'$options)");
	like($error, qr/must merge and ignore deletes/,
		"sessions are not mapped otherwise$options");
}
$blue->safe_psql(q{BEGIN; TRUNCATE bluegreen.session; ROLLBACK;
	SELECT bluegreen.map_table('d', 'bluegreen.session',
		on_write => 'merge', on_delete => 'ignore');
	SELECT bluegreen.map_table('d', 'bluegreen.session',
		on_write => 'merge', on_delete => 'ignore', direction => 'backward');
	CALL bluegreen.start('d');});
wait_for_both('d');

foreach my $node (@sides)
{
	my (undef, undef, $error) = $node->psql('TRUNCATE bluegreen.session');
	like($error, qr/cannot truncate table "session".*\nHINT:  Use DELETE/,
		'a TRUNCATE cannot be carried over from ' . $node->name);
}

sub same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_both('d');
	return compare_tables('TABLE bluegreen.session ORDER BY id',
		'TABLE bluegreen.session ORDER BY id', "$name: both sides are the same");
}
same('copied');

# The steps happen in this order, while neither side knows of the other.
sub apart
{
	my (%sessions) = @_;
	on($blue, "create_session('1 hour', '{\"a\": 1, \"b\": 1}', '$_')")
	  for sort keys %sessions;
	wait_for_both('d');
	$blue->safe_psql(q{CALL bluegreen.stop('d')});
	foreach my $name (sort keys %sessions)
	{
		foreach my $step (@{ $sessions{$name}{steps} })
		{
			my ($node, $call) = @$step;
			is(on($node, $call =~ s/\$/'$name'/r), 't',
				"$name: $call on " . $node->name);
		}
	}
	$blue->safe_psql(q{CALL bluegreen.start('d')});
	same('after both have written');
	foreach my $name (sort keys %sessions)
	{
		is(on($_, "read_session('$name')"), $sessions{$name}{gives},
			"$name on " . $_->name)
		  for @sides;
	}
	return;
}

sub set
{
	my ($node, $name, $value) = @_;
	return [ $node, "write_session_attribute(\$, '$name', '$value')" ];
}
sub all { return [ $_[0], "write_session(\$, '$_[1]')" ] }

apart(
	'attributes' => {
		steps => [ set($blue, 'a', 2), set($green, 'b', 3) ],
		gives => '{"a": 2, "b": 3}',
	},
	'one attribute, green later' => {
		steps => [ set($blue, 'a', 2), set($green, 'a', 3) ],
		gives => '{"a": 3, "b": 1}',
	},
	'one attribute, blue later' => {
		steps => [ set($green, 'a', 3), set($blue, 'a', 2) ],
		gives => '{"a": 2, "b": 1}',
	},
	'an attribute, then all' => {
		steps => [ set($blue, 'a', 2), all($green, '{"c": 1}') ],
		gives => '{"c": 1}',
	},
	'all, then an attribute' => {
		steps => [ all($green, '{"c": 1}'), set($blue, 'a', 2) ],
		gives => '{"a": 2, "c": 1}',
	},
	'all on both' => {
		steps => [ all($green, '{"c": 1}'), all($blue, '{"d": 1}') ],
		gives => '{"d": 1}',
	},
	'all, and attributes before and after' => {
		steps => [
			set($green, 'a', 5), set($green, 'x', 5), all($blue, '{"x": 1}'),
			set($green, 'a', 6)
		],
		gives => '{"a": 6, "x": 1}',
	},
	'an attribute removed' => {
		steps => [
			set($blue, 'a', 2),
			[ $green, q{write_session_attribute($, 'a', NULL)} ]
		],
		gives => '{"b": 1}',
	},
	'removed, then set' => {
		steps => [
			[ $green, q{write_session_attribute($, 'a', NULL)} ],
			set($blue, 'a', 2),
		],
		gives => '{"a": 2, "b": 1}',
	},
	'a touch after a write' => {
		steps => [ all($green, '{"c": 1}'), [ $blue, q{touch_session($, '9 hours')} ] ],
		gives => '{"c": 1}',
	},
	'a logout, then a late request' => {
		steps => [ [ $blue, 'delete_session($)' ], all($green, '{"late": 1}') ],
		gives => '',
	},
	'a request, then a logout' => {
		steps => [
			set($green, 'a', 3),
			[ $green, q{touch_session($, '3 hours')} ],
			[ $blue, 'delete_session($)' ]
		],
		gives => '',
	},
	'two logouts' => {
		steps => [ map { [ $_, 'delete_session($)' ] } $blue, $green ],
		gives => '',
	});
is( $_->safe_psql(q{SELECT count(*) FROM bluegreen.session
		WHERE id = 'a touch after a write'
			AND expires_at > now() + interval '8 hours'}),
	1, 'the later expiry on ' . $_->name)
  for @sides;
cmp_ok($blue->safe_psql('SELECT late FROM bluegreen.stat_session'),
	'>', 0, 'late changes are counted');
is( $_->safe_psql('SELECT count(*) FROM bluegreen.conflict'),
	0, 'none of this is a conflict on ' . $_->name)
  for @sides;

# created on both, and written with one stamp
$blue->safe_psql(q{CALL bluegreen.stop('d')});
is(on($blue, q{create_session('1 hour', '{"side": "blue"}', 'twice')}),
	'twice', 'an id that blue uses');
is(on($green, q{create_session('2 hours', '{"side": "green"}', 'twice')}),
	'twice', '... and green');
is(on($_, q{create_session('30 days', '{}', 'days')}), 'days', 'a lifetime')
  for $blue;
is(on($_, q{create_session('1 month', '{}', 'days')}), 'days', '... as long')
  for $green;
$_->safe_psql(q{INSERT INTO bluegreen.session
	(id, data, written, stamp, lifetime, created_at, expires_at)
	SELECT 'one stamp', jsonb_build_object('side', current_setting('port')),
		'[1, 1]', 1, '1 hour', '2026-01-01', 'tomorrow'})
  for @sides;
$blue->safe_psql(q{CALL bluegreen.start('d')});
same('created on both');
is(on($_, q{read_session('twice')}), '{"side": "green"}',
	'the later one\'s on ' . $_->name)
  for @sides;
is($blue->safe_psql(q{SELECT lifetime FROM bluegreen.session
	WHERE id = 'twice'}), '02:00:00', 'with the longer lifetime');

# a clock that is far ahead
on($green, q{write_session('attributes', '{"from": "the future"}')});
$green->safe_psql(q{UPDATE bluegreen.session
	SET stamp = stamp + 1e12, written = jsonb_build_array(stamp + 1e12, 1)
	WHERE id = 'attributes'});
same('from the future');
is(on($blue, q{write_session('attributes', '{"now": 1}')}), 't', 'a write now');
same('... that knows of it');
is(on($green, q{read_session('attributes')}), '{"now": 1}', '... is newer');

# large data, and a touch that does not carry it
on($blue, q{create_session('1 hour', jsonb_build_object('big',
	(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) i)), 'big')});
wait_for_both('d');
on($green, q{touch_session('big', '5 hours')});
on($blue, q{write_session_attribute('big', 'small', '1')});
same('data out of line');

#
# Removed is not logged out
#
my $purge = q{SELECT bluegreen.expire_sessions(10000)};
on($blue, qq{create_session('1 hour', '{"v": 1}', '$_')}) for 'old', 'kept';
wait_for_both('d');
$blue->safe_psql(q{CALL bluegreen.stop('d')});
is(on($green, q{touch_session('kept', '1 day')}), 't', 'green knows it is in use');
$_->safe_psql(q{UPDATE bluegreen.session
	SET expires_at = now() - interval '2 hours' WHERE id = 'old'})
  for @sides;
$blue->safe_psql(q{UPDATE bluegreen.session
	SET expires_at = now() - interval '2 hours' WHERE id = 'kept'});
is($blue->safe_psql($purge), 2, 'blue does not, and removes it');
$blue->safe_psql(q{CALL bluegreen.start('d')});
wait_for_both('d');
is(on($_, q{read_session('kept')}), '{"v": 1}', 'it is there on ' . $_->name)
  for @sides;
is($green->safe_psql(q{SELECT count(*) FROM bluegreen.session
	WHERE id = 'old'}), 1, 'green has its own to remove');
is($green->safe_psql($purge), 1, '... and does');
$blue->safe_psql($purge);	# green's change of it came after it was removed
same('after that');

# by itself, in batches
$_->safe_psql(q{INSERT INTO bluegreen.session
	(id, data, written, stamp, lifetime, expires_at, deleted_at)
	SELECT 'x' || i, '{}', '[1, 1]', 1, '1 hour',
		now() - interval '2 hours', CASE WHEN i % 2 = 0 THEN now() END
	FROM generate_series(1, 1200) i})
  for $blue;
wait_for_both('d');
foreach my $node (@sides)
{
	$node->safe_psql(q{CREATE TABLE removed (n int);
		CREATE FUNCTION note_removed() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.removed SELECT count(*) FROM gone;
			RETURN NULL;
		END $$;
		CREATE TRIGGER note_removed AFTER DELETE ON bluegreen.session
			REFERENCING OLD TABLE AS gone
			EXECUTE FUNCTION note_removed()});
	$node->append_conf("bluegreen.session_purge_interval = '100ms'");
	$node->reload;
}
# green's application writes nothing: what comes from blue is enough
for (1 .. 600)
{
	on($blue, q{create_session('1 hour')});
	last if $green->safe_psql(q{SELECT NOT EXISTS (SELECT
		FROM bluegreen.session WHERE id LIKE 'x%')}) eq 't';
	usleep(100_000);
}
foreach my $node (@sides)
{
	$node->poll_query_until(q{SELECT }
		  . ($node == $blue ? q{bluegreen.touch_session('kept') AND } : '')
		  . q{ NOT EXISTS (SELECT FROM bluegreen.session WHERE id LIKE 'x%')})
	  or die;
	cmp_ok($node->safe_psql('SELECT purged FROM bluegreen.stat_session'),
		'>=', 1200, 'expired sessions go by themselves on ' . $node->name);
	is($node->safe_psql('DROP FUNCTION note_removed() CASCADE;
			SELECT max(n) FROM removed; DROP TABLE removed'),
		500, '... in small batches');
	$node->append_conf('bluegreen.session_purge_interval = 0');
	$node->reload;
}
same('after that, too');

#
# All of it at random, on both sides, with workers killed
#
my @script = (
	q{\set i random(1, 40)
	SELECT bluegreen.write_session_attribute('r' || :i, 'a' || (:i + random() * 3)::int, to_jsonb(random()));},
	q{\set i random(1, 40)
	SELECT bluegreen.write_session('r' || :i, jsonb_build_object('a1', random(), 'a' || :i, random()));},
	q{\set i random(1, 40)
	SELECT bluegreen.touch_session('r' || :i, random() * interval '9 hours' + interval '1 hour');},
	q{\set i random(30, 34)
	SELECT bluegreen.delete_session('r' || :i);});
on($blue, "create_session('1 hour', '{}', 'r$_')") for 1 .. 40;
wait_for_both('d');
my @benches = map { pgbench_start($_, script => \@script, rate => 300) } @sides;
for (1 .. 3)
{
	usleep(700_000);
	foreach my $node (@sides)
	{
		$node->safe_psql(q{SELECT pg_terminate_backend(pid)
			FROM bluegreen.stat_stream});
	}
}
pgbench_stop($_) for @benches;
same('after random changes');
is($blue->safe_psql(q{SELECT count(*) FROM bluegreen.session
	WHERE id ~ '^r\d+$'}), 40, 'all are there');
cmp_ok($blue->safe_psql(q{SELECT count(*) FROM bluegreen.session
	WHERE id ~ '^r\d+$' AND data <> '{}'}), '>=', 30, '... with data');
cmp_ok($blue->safe_psql(q{SELECT count(*) FROM bluegreen.session
	WHERE id ~ '^r\d+$' AND deleted_at IS NOT NULL}), '>', 0, '... or deleted');
$_->quit for values %app;

#
# A closed side removes nothing
#
$blue->safe_psql(q{SELECT bluegreen.create_session('1 hour', '{}', 'closed')});
wait_for_both('d');
foreach my $node (@sides)
{
	$node->safe_psql(q{UPDATE bluegreen.session
		SET expires_at = now() - interval '2 hours' WHERE id = 'closed'});
	wait_for_both('d');
}
$blue->safe_psql(q{CALL bluegreen.switchover('d')});
$blue->append_conf("bluegreen.session_purge_interval = '100ms'\n"
	  . 'log_min_messages = debug1');
$blue->reload;
$blue->poll_query_until('SHOW log_min_messages', 'debug1') or die;
my $from = length $blue->log;
$green->safe_psql(q{SELECT bluegreen.touch_session('kept')});
wait_for_both('d');
ok($blue->wait_for_log(
		qr/background worker "pg_bluegreen session" .* exited with exit code 0/,
		$from), 'what comes from green wakes blue\'s worker');
is( $_->safe_psql(q{SELECT count(*) FROM bluegreen.session
		WHERE id = 'closed' AND expires_at < now()}),
	1, 'which removes nothing, like green\'s that is asleep: ' . $_->name)
  for @sides;
is($green->safe_psql('SELECT bluegreen.expire_sessions(10000) > 0'),
	't', 'green can');

done_testing();
