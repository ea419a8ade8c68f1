# Databases of different encodings: LATIN1 into UTF8 and back again; a character
# that the target's encoding lacks stops the stream, and nothing wrong is
# written.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my ($blue, $green) =
  create_pair(conf => "bluegreen.restart_delay = 50ms\n"
	  . 'bluegreen.restart_delay_max = 200ms');

# A database of each encoding on each side, which follow each other crosswise.
my %other = (latin => 'utf', utf => 'latin');
my %encoding = (latin => 'LATIN1', utf => 'UTF8');
foreach my $node ($blue, $green)
{
	foreach my $name (sort keys %other)
	{
		$node->safe_psql("CREATE DATABASE $name TEMPLATE template0"
			  . " ENCODING '$encoding{$name}' LOCALE 'C'");
		$node->safe_psql($name, <<'SQL');
SET client_encoding = 'UTF8';
CREATE EXTENSION pg_bluegreen;
CREATE TYPE mood AS ENUM ('süß', 'groß');
CREATE TABLE "Größe" (id int PRIMARY KEY, "Wörter" text, c "char", m mood,
	a text[], j jsonb, b bytea, x xml);
CREATE TABLE bag (v text, n varchar(4));
ALTER TABLE bag REPLICA IDENTITY FULL;
SQL
	}
}
my $port = $green->port;
foreach my $name (sort keys %other)
{
	$blue->safe_psql($name, <<"SQL");
SET client_encoding = 'UTF8';
CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen
	OPTIONS (host '127.0.0.1', port '$port', dbname '$other{$name}');
CREATE USER MAPPING FOR CURRENT_USER SERVER green
	OPTIONS (user 'postgres', password 'x');
INSERT INTO "Größe" VALUES (1, 'äöüß\tÿ', 'x', 'süß', '{"é,",NULL}',
	'{"ü": "ñ"}', '\\x00e4ff', '<ä>ö</ä>');
INSERT INTO "Größe" VALUES (2, repeat('é', 5000));
INSERT INTO bag VALUES ('Straße', 'äöüß'), ('Straße', 'äöüß'), (NULL, 'éé');
SELECT bluegreen.create_deployment('Übergang', 'green');
SELECT bluegreen.map_table('Übergang', '"Größe"');
SELECT bluegreen.map_table('Übergang', 'bag');
CALL bluegreen.start('Übergang');
SQL
}

sub sync
{
	my ($name) = @_;
	return $blue->psql($name, q{SET client_encoding = 'UTF8';
		CALL bluegreen.wait_for_sync('Übergang', '180 s')});
}

# Are the tables the same, as text in UTF8?
sub same
{
	my ($name, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $table ('"Größe"', 'bag')
	{
		my @rows = map {
			scalar $_->[0]->safe_psql($_->[1],
				"SET client_encoding = 'UTF8';"
				  . " SELECT t::text FROM $table t ORDER BY t::text COLLATE \"C\"")
		} [ $blue, $name ], [ $green, $other{$name} ];
		ok($rows[0] eq $rows[1] && $rows[0] =~ /\(/,
			"$encoding{$name} to $encoding{$other{$name}}: $table $what")
		  or diag("blue $rows[0]\ngreen $rows[1]");
	}
	return;
}

foreach my $name (sort keys %other)
{
	is((sync($name))[2], '', "$name: in sync");
	same($name, 'copied');
	$blue->safe_psql($name, <<'SQL');
SET client_encoding = 'UTF8';
INSERT INTO "Größe" VALUES (3, 'Ærø', 'x', 'groß', '{{ä,ö},{NULL,ü}}',
	'["Þ"]', '\xc3a4', '<a b="ç"/>');
UPDATE "Größe" SET "Wörter" = 'Ðÿ' WHERE id = 1;
UPDATE "Größe" SET id = 20, m = 'groß' WHERE id = 2;
UPDATE bag SET v = 'Gruß' WHERE ctid = (SELECT min(ctid) FROM bag);
DELETE FROM bag WHERE v IS NULL;
SQL
	is((sync($name))[2], '', "$name: in sync again");
	same($name, 'streamed');
	is($green->safe_psql($other{$name},
			'SELECT count(*) FROM bluegreen.conflict'),
		0, "$name: every row was found");
}

#
# LATIN1 has no such character
#
my $before = $green->safe_psql('latin', 'SELECT count(*) FROM bag');
$blue->safe_psql('utf', q{SET client_encoding = 'UTF8';
	BEGIN; INSERT INTO bag VALUES ('fits', 'ä'); INSERT INTO "Größe"
	VALUES (5, 'Ж'); COMMIT;
	INSERT INTO bag VALUES ('after', 'ä');});
like(
	(sync('utf'))[2],
	qr/has no equivalent in encoding "LATIN1"/,
	'a character that the target lacks stops the stream');
is( $blue->safe_psql('utf',
		q{SELECT error_sqlstate || ' ' || (error_lsn IS NOT NULL)
		FROM bluegreen.stat_stream}),
	'22P05 true',
	'which says so, with its position');
is( $green->safe_psql('latin', q{SET client_encoding = 'UTF8';
		SELECT count(*) FROM "Größe" WHERE id = 5}),
	0, 'nothing of the row is written');
is($green->safe_psql('latin', 'SELECT count(*) FROM bag'),
	$before, 'nor of its transaction, nor what comes after it');
$blue->safe_psql('utf', q{SET client_encoding = 'UTF8';
	SELECT bluegreen.skip('Übergang', error_lsn) FROM bluegreen.stat_stream;
	DELETE FROM "Größe" WHERE id = 5; DELETE FROM bag WHERE v = 'fits';});
is((sync('utf'))[2], '', 'skip goes on');
is( $green->safe_psql('latin', q{SELECT count(*) FROM bag WHERE v = 'after'}),
	1, 'with what came after it');
same('utf', 'after skip');

done_testing();
