# The walk of the README: its statements run as printed, print what is shown
# there, and leave nothing behind.
use strict;
use warnings;

use BlueGreen;
use File::Temp;
use IPC::Run;
use Test::More;

my ($walk) = BlueGreen::Node::slurp('README.md') =~ /^## A walk.*?\n(.*?)^## /ms;

# [what kind, what it holds, the words before it]
my @blocks;
push @blocks, [ $2, $3, $1 ] while $walk =~ /\G(.*?)^```(\w+)\n(.*?)^```\n/gms;

# The first makes two clusters, on ports of its own and as another user than ours
# may be: ours have its settings.
my ($settings) = (shift @blocks)->[1] =~ /<<'EOF'\n(.*?)^EOF/ms;
shift @blocks;
$settings =~ s/^output_plugin_libraries.*\n//m;
my ($blue, $green) = map { BlueGreen->$_($_, $settings) } qw(blue green);
$_->safe_psql('CREATE DATABASE shop') for $blue, $green;
my %nodes = (blue => $blue, green => $green);
my %ports = (7001 => $blue->port, 7002 => $green->port);
sub places { return $_[0] =~ s/\b(700[12])\b/$ports{$1}/gr }

# What is compared: numbers, and the width of columns, differ.
sub shape
{
	my ($line) = @_;
	$line =~ s/\d+/0/g;
	$line =~ s/([- ])\1+/$1/g;
	$line =~ s/ *$//;
	return $line;
}

my $dir = File::Temp->newdir;
my ($side, $terminal, $printed, %orders);

sub run_sql
{
	my ($sql) = @_;
	open my $file, '>', "$dir/sql" or die $!;
	print $file places($sql);
	close $file;
	my $out = '';
	IPC::Run::run(
		[ "$nodes{$side}{client}/psql", '-X', '-P', 'pager=off', '-d',
			$nodes{$side}->connstr('shop'), '-f', "$dir/sql" ],
		'>', \$out, '2>&1');
	$out =~ s{^psql:\Q$dir\E/sql:\d+: }{}mg;
	return $out;
}

# Until it is killed, as somebody would in a terminal of his own.
sub run_terminal
{
	my ($script) = @_;
	local $ENV{PGHOST} = '127.0.0.1';
	local $ENV{PGUSER} = 'postgres';
	local $ENV{PGDATABASE} = 'shop';
	local $ENV{PATH} = "$blue->{client}:$ENV{PATH}";
	$terminal = IPC::Run::start(
		[ 'sh', '-c', places($script) =~ s/localhost/127.0.0.1/gr ],
		'<', '/dev/null', '>', "$dir/terminal", '2>', "$dir/errors");
	BlueGreen::Node::wait_until(sub { -s "$dir/terminal" });
	return;
}

# Averell's orders: each one that he was told of is there, and one more at most,
# which was under way when he was stopped.
sub end_orders
{
	my $told = sub { split /\n/, BlueGreen::Node::slurp("$dir/terminal") };
	my $before = () = $told->();
	ok( BlueGreen::Node::wait_until(
			sub { my $now = () = $told->(); return $now > $before }),
		'orders go on');
	$terminal->kill_kill(grace => 0);
	undef $terminal;
	$green->poll_query_until(q{SELECT count(*) = 0 FROM pg_stat_activity
		WHERE datname = 'shop' AND pid <> pg_backend_pid()
		AND application_name = 'psql'});
	my @orders = $told->();
	is(join(' ', @orders), join(' ', 13 .. 12 + @orders),
		'no order is lost or doubled');
	my $beans = $green->safe_psql('shop',
		'SELECT quantity FROM cart_line WHERE product_id = 4');
	cmp_ok($beans - $orders[-1], '<=', 1, 'green has them all');
	unlike(BlueGreen::Node::slurp("$dir/errors"), qr/ERROR:|PANIC:/,
		'he was disconnected at worst');
	return;
}

foreach my $block (@blocks)
{
	my ($kind, $text, $before) = @$block;
	$side = $1 while $before =~ /\b[Oo]n (blue|green)\b/g;
	end_orders() if $before =~ /\^C/;
	if ($kind eq 'sql')
	{
		$printed = run_sql($text);
		note $printed;
	}
	elsif ($kind eq 'sh')
	{
		run_terminal($text);
	}
	else
	{
		my %seen = map { shape($_) => 1 } split /\n/, $printed;
		my @missing = grep { /\S/ && !$seen{ shape($_) } } split /\n/, $text;
		is(join("\n", @missing), '',
			'printed is: ' . (split /\n/, $text)[0])
		  or diag "but:\n$printed";
	}
}
END { $terminal->kill_kill(grace => 0) if $terminal }

# Nothing is left
is( $_->safe_psql('shop', q{SELECT (SELECT count(*) FROM pg_replication_slots)
		+ (SELECT count(*) FROM pg_replication_origin)
		+ (SELECT count(*) FROM pg_db_role_setting)
		+ (SELECT count(*) FROM pg_roles
			WHERE rolname <> 'postgres' AND rolname !~ '^pg_')
		+ (SELECT count(*) FROM bluegreen.deployment)
		+ (SELECT count(*) FROM bluegreen.fence)
		+ (SELECT count(*) FROM bluegreen.fence_target)
		+ (SELECT count(*) FROM bluegreen.table_mapping)
		+ (SELECT count(*) FROM bluegreen.applied_stream)
		+ (SELECT count(*) FROM bluegreen.applied_table)
		+ (SELECT count(*) FROM bluegreen.switch)}),
	0, "nothing is left on $_->{name}")
  for $blue, $green;
is( $_->safe_psql('shop', q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type ~ 'pg_bluegreen (stream|copy|verify|switch|router)'}),
	0, "nor does anything run on $_->{name}")
  for $blue, $green;

done_testing();
