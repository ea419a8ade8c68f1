# The shop of the demo in a window: shoppers of blue and of green fill, change and
# pay the same carts, while the network is cut and a worker is killed.  Both sides
# have the same shop in the end, and each write that is lost is in a conflict.
use strict;
use warnings;

use BlueGreen;
use BlueGreen::Proxy;
use BlueGreen::TwoWay;
use File::Basename;
use Test::More;

my $demo = dirname(__FILE__) . '/../../demo';

sub demo
{
	my ($file) = @_;
	return BlueGreen::Node::slurp("$demo/$file.sql");
}

my ($blue, $green) = create_pair(
	way_back => 1,
	conf => "bluegreen.restart_delay = '50ms'\n"
	  . "bluegreen.restart_delay_max = '300ms'\n"
	  . "bluegreen.peer_timeout = '5s'\nmax_worker_processes = 24\n"
	  . "max_replication_slots = 20\ndeadlock_timeout = '50ms'");
my %proxies = (
	blue => BlueGreen::Proxy->new($green->port),
	green => BlueGreen::Proxy->new($blue->port));
$blue->safe_psql(demo('blue'));
$green->safe_psql(demo('green'));

# made: each write, noted when it holds its row
my $made = q{CREATE TABLE made (t text, key text, value text,
	at timestamptz NOT NULL DEFAULT clock_timestamp());};
$blue->safe_psql($made . q{
	INSERT INTO customer SELECT i, 'customer ' || i
		FROM generate_series(5, 60) i;
	CREATE FUNCTION shop(c int, p int, q int, what int) RETURNS void
	LANGUAGE plpgsql AS $$
	BEGIN
		IF what < 4 THEN
			WITH w AS (INSERT INTO cart_line VALUES (p, c, q)
				ON CONFLICT DO NOTHING RETURNING *)
			INSERT INTO made SELECT 'cart_line', p || ' ' || c, q FROM w;
		ELSIF what < 8 THEN
			WITH w AS (UPDATE cart_line SET quantity = q
				WHERE (product_id, customer_id) = (p, c) RETURNING *)
			INSERT INTO made SELECT 'cart_line', p || ' ' || c, q FROM w;
		ELSE
			WITH w AS (DELETE FROM cart_line
				WHERE (product_id, customer_id) = (p, c) RETURNING *)
			INSERT INTO made SELECT 'cart_line', p || ' ' || c, NULL FROM w;
		END IF;
	END $$});

# Green's application makes a cart when it needs one; to pay takes all of it.
$green->safe_psql($made . q{
	CREATE FUNCTION shop(c int, p int, q int, what int) RETURNS void
	LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM FROM cart WHERE id = c FOR UPDATE;
		IF what < 7 THEN
			INSERT INTO cart VALUES (c, now() AT TIME ZONE 'UTC')
				ON CONFLICT (id) DO UPDATE
				SET last_modified = EXCLUDED.last_modified;
			UPDATE customer SET cart_id = c WHERE id = c AND cart_id IS NULL;
			WITH w AS (INSERT INTO cart_line VALUES (p, c, q)
				ON CONFLICT (product_id, cart_id) DO UPDATE
				SET quantity = EXCLUDED.quantity RETURNING *)
			INSERT INTO made SELECT 'cart_line', p || ' ' || c, q FROM w;
		ELSIF what < 9 THEN
			WITH w AS (DELETE FROM cart_line
				WHERE (product_id, cart_id) = (p, c) RETURNING *)
			INSERT INTO made SELECT 'cart_line', p || ' ' || c, NULL FROM w;
		ELSE
			WITH w AS (DELETE FROM cart_line WHERE cart_id = c RETURNING *)
			INSERT INTO made SELECT 'cart_line', product_id || ' ' || c, NULL
				FROM w;
			UPDATE customer SET cart_id = NULL WHERE id = c;
			DELETE FROM cart WHERE id = c;
		END IF;
	EXCEPTION WHEN foreign_key_violation THEN
		NULL;				-- a line has come meanwhile
	END $$});

# Both: customers that come, are renamed and go (none of the shoppers); prices.
$_->safe_psql(q{
	CREATE FUNCTION visit(c int, n text, what int) RETURNS void
	LANGUAGE plpgsql AS $$
	BEGIN
		IF what < 4 THEN
			WITH w AS (INSERT INTO customer VALUES (c, n)
				ON CONFLICT DO NOTHING RETURNING *)
			INSERT INTO made SELECT 'customer', id, name FROM w;
		ELSIF what < 8 OR c <= 60 THEN
			WITH w AS (UPDATE customer SET name = n WHERE id = c RETURNING *)
			INSERT INTO made SELECT 'customer', id, name FROM w;
		ELSE
			WITH w AS (DELETE FROM customer WHERE id = c RETURNING *)
			INSERT INTO made SELECT 'customer', id, NULL FROM w;
		END IF;
	END $$;
	CREATE FUNCTION reprice(p int, cents int) RETURNS void
	LANGUAGE sql AS $$
		WITH w AS (UPDATE product SET price = cents / 100.0 WHERE id = p
			RETURNING *)
		INSERT INTO made SELECT 'product', id, price FROM w
	$$}) foreach $blue, $green;

$blue->safe_psql(q{SELECT bluegreen.create_deployment('shop', 'green')}
	. ';' . demo('mappings') . demo('mappings_back'));
$blue->safe_psql(q{CALL bluegreen.start('shop')});
wait_for_both('shop');
$blue->safe_psql("ALTER SERVER green OPTIONS (SET port '"
	  . $proxies{blue}->port . "')");
$green->safe_psql("ALTER SERVER blue OPTIONS (SET port '"
	  . $proxies{green}->port . "')");

#
# What is in the way of a window, and what the demo does about it
#
sub in_the_way
{
	return $blue->safe_psql(q{SELECT replace(object, 'public.', ''), message
		FROM bluegreen.preflight('shop', 'window')
		WHERE "check" ~ '^window' AND severity = 'error'
		ORDER BY "check", message COLLATE "C"});
}
is(in_the_way(), <<'ROWS' =~ s/\n$//r, 'what is in the way of a window');
cart|mapping of "public.cart" cannot go both ways at once: it does not mirror rows and their deletes
customer|mapping of "public.customer" cannot go both ways at once: another mapping writes its rows, too
customer|mapping of "public.customer" cannot go both ways at once: it does not mirror rows and their deletes
customer|mapping of "public.customer" cannot go both ways at once: its changes do not carry whole rows (on green)
product|mapping of "public.product" cannot go both ways at once: its changes do not carry whole rows
product|mapping of "public.product" cannot go both ways at once: its changes do not carry whole rows (on green)
cart_id_seq|sequence public.cart_id_seq gives numbers on one side only, for a table that both sides write
ROWS
$green->safe_psql(demo('window_green'));
$blue->safe_psql(demo('window'));
is(in_the_way(), '', 'the demo knows what to do');
$blue->safe_psql(q{SELECT bluegreen.accept('shop', 'unmapped_table', 'public.made');
	CALL bluegreen.start('shop')});
wait_for_both('shop');

#
# Load
#
sub load
{
	my ($node) = @_;
	return pgbench_start($node,
		clients => 3,
		rate => 150,
		args => [ '--max-tries=1000' ],
		script => [
			"\\set c random(1, 12)\n\\set p random(1, 4)\n"
			  . "\\set q random(1, 30000)\n\\set what random(0, 9)\n"
			  . 'SELECT shop(:c, :p, :q, :what);',
			"\\set c random(50, 75)\n\\set n random(1, 1000000000)\n"
			  . "\\set what random(0, 9)\n"
			  . "SELECT visit(:c, 'visitor ' || :n, :what);",
			"\\set p random(1, 4)\n\\set cents random(1, 1000000)\n"
			  . 'SELECT reprice(:p, :cents);',
			"\\set c random(1, 12)\n\\set q random(1, 30000)\nBEGIN;\n"
			  . "SELECT shop(:c, 1, :q, 5);\nSELECT shop(:c, 3, :q, 1);\n"
			  . 'SELECT shop(:c, 4, :q, 8);COMMIT;' ]);
}

my %shop = (
	cart_line => q{SELECT 'cart_line', product_id || ' ' || customer_id, quantity
		FROM cart_line},
	customer => q{SELECT 'customer', id, name FROM customer},
	product => q{SELECT 'product', id, price FROM product});

# Writes that were the last ones of their row, and are not what is there; and
# those of them of which no conflict tells.
sub lost_writes
{
	my (%last, %is, %told);
	foreach my $node ($blue, $green)
	{
		foreach (split /\n/, $node->safe_psql(
			q{SELECT t, key, coalesce(value, 'gone'),
				extract(epoch FROM at) FROM made}))
		{
			my ($table, $key, $value, $at) = split /\|/;
			$last{"$table $key"} = [ $at, $value ]
			  if !$last{"$table $key"} || $last{"$table $key"}[0] < $at;
		}
		foreach (split /\n/, $node->safe_psql(
			q{SELECT replace(target, 'public.', ''), key
			FROM bluegreen.conflict}))
		{
			my ($table, $key) = split /\|/;
			$told{ "$table " . join ' ', $key =~ /(\d+)/g } = 1;
		}
	}
	foreach (map { split /\n/, $blue->safe_psql($_) } values %shop)
	{
		my ($table, $key, $value) = split /\|/;
		$is{"$table $key"} = $value;
	}
	my @lost = grep { ($is{$_} // 'gone') ne $last{$_}[1] } sort keys %last;
	return (scalar(@lost), grep { !$told{$_} } @lost);
}

# What has happened to the rows that differ.
sub tell_differences
{
	my ($table, $there) = @_;
	my %count;
	foreach my $rows ([ $blue, $shop{$table} ], [ $green, $there ])
	{
		$count{$_}++
		  foreach split /\n/, $rows->[0]->safe_psql($rows->[1]);
	}
	my %keys = map { (split /\|/)[1] => 1 } grep { $count{$_} == 1 } keys %count;
	foreach my $key (map { s/ /%/r } keys %keys)
	{
		diag "$_->{name}:\n" . $_->safe_psql(qq{
			SELECT at, 'made', t, key, value, NULL FROM made
			WHERE t = '$table' AND key LIKE '$key'
			UNION ALL SELECT commit_time, at::text, kind, decision, incoming,
				existing::text
			FROM bluegreen.conflict WHERE target = 'public.$table'
				AND key LIKE '%$key%' ORDER BY 1})
		  foreach $blue, $green;
	}
	return;
}

my %accidents = (
	'cut and kill' => sub {
		$_->reset for values %proxies;
		kill9_worker($green, 'stream');
	},
	'kill and cut' => sub {
		kill9_worker($blue, 'stream');
		$_->reset for values %proxies;
	});

sub shop_in_window
{
	my ($accident) = @_;
	$blue->safe_psql(q{CALL bluegreen.open_window('shop', '170 s')});
	$_->safe_psql('TRUNCATE bluegreen.conflict_log, made') for $blue, $green;
	# what is done while nothing is sent conflicts for certain
	stop_both('shop', $blue, $green);
	my @loads = map { load($_) } $blue, $green;
	ok($_->poll_query_until('SELECT count(*) > 150 FROM made'),
		"$accident: $_->{name} writes") for $blue, $green;
	pgbench_stop($_) for @loads;	# who is killed takes all sessions along
	start_both('shop', $blue, $green);
	$accidents{$accident}->();
	my $before = $green->safe_psql('SELECT count(*) FROM made');
	@loads = map { load($_) } $blue, $green;
	ok($green->poll_query_until("SELECT count(*) > $before + 300 FROM made"),
		"$accident: green writes on");
	pgbench_stop($_) for @loads;
	settle('shop', $blue, $green) or fail("$accident: streams");

	foreach my $table (sort keys %shop)
	{
		my $there = $shop{$table} =~ s/customer_id/cart_id/r;
		compare_tables($shop{$table}, $there, "$accident: $table")
		  or tell_differences($table, $there);
	}
	is( $green->safe_psql(q{SELECT count(*) FROM cart_line l
			WHERE NOT EXISTS (SELECT FROM cart JOIN customer c ON c.cart_id = cart.id
				WHERE cart.id = l.cart_id AND c.id = l.cart_id)}),
		0, "$accident: each line has its cart, and that its customer");
	my ($lost, @unexplained) = lost_writes();
	is(join(', ', @unexplained), '',
		"$accident: $lost last writes are lost, all with a conflict");
	cmp_ok(
		$_->safe_psql(q{SELECT count(DISTINCT target) FROM bluegreen.conflict
			WHERE decision LIKE '% wins (%'}),
		'>', 1, "$accident: conflicts of several tables on $_->{name}")
	  for $blue, $green;
	return;
}

shop_in_window('cut and kill');
$blue->safe_psql(
	q{CALL bluegreen.close_window('shop', 'blue', '170 s', '100 s')});

#
# Other policies, and towards green
#
$blue->safe_psql(q{
	SELECT bluegreen.alter_mapping('shop', 'cart_line', 'cart_line',
		conflict => 'last_write');
	SELECT bluegreen.alter_mapping('shop', 'customer', 'customer',
		conflict => 'blue');
	SELECT bluegreen.alter_mapping('shop', 'product', conflict => 'blue')});
is( $blue->safe_psql(q{SELECT source, target, direction, conflict
		FROM bluegreen.mapping WHERE conflict <> 'none' ORDER BY 1, 2, 3}),
	join("\n", map { my ($t, $p) = @$_;
		map { "public.$t|public.$t|$_|$p" } qw(backward forward) }
		[ 'cart_line', 'last_write' ], [ 'customer', 'blue' ],
		[ 'product', 'blue' ]),
	'both directions have the other policies');
wait_for_both('shop');
shop_in_window('kill and cut');
$blue->safe_psql(
	q{CALL bluegreen.close_window('shop', 'green', '170 s', '100 s')});
is($green->safe_psql('SELECT active FROM bluegreen.switch_state'),
	'green', 'the users have moved');

done_testing();
