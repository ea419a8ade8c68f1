# Expand, fill, contract, undo: old and new version side by side in one
# database, for columns.
use strict;
use warnings;

use BlueGreen;
use Test::More;

my $node = BlueGreen->blue('one');
$node->safe_psql('CREATE EXTENSION pg_bluegreen');

# the old version writes the tables, the new one its views
sub old { return $node->safe_psql("SET search_path = public; $_[0]") }

sub new
{
	my ($version, $sql) = @_;
	return $node->safe_psql("SET search_path = public_$version; $sql");
}

sub change
{
	my ($name, $operations) = @_;
	$node->safe_psql("SELECT bluegreen.create_change('$name', \$\$$operations\$\$)");
	return;
}

sub expand
{
	my ($name) = @_;
	$node->safe_psql("CALL bluegreen.expand('$name');"
		  . " CALL bluegreen.wait_for_backfill('$name', '180 s')",
		timeout => 200);
	return;
}

sub state
{
	return $node->safe_psql(
		"SELECT state FROM bluegreen.change WHERE change = '$_[0]'");
}

sub columns
{
	return $node->safe_psql("SELECT string_agg(attname, ' ' ORDER BY attnum)"
		  . " FROM pg_attribute WHERE attrelid = '$_[0]'::regclass"
		  . " AND attnum > 0 AND NOT attisdropped");
}

# everything that there is in schema public, and no change may leave behind
sub catalog
{
	return $node->safe_psql(<<'SQL');
SELECT attrelid::regclass, attname, atttypid::regtype, attnotnull,
	pg_get_expr(adbin, adrelid), col_description(attrelid, attnum), attacl
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid IN (SELECT oid FROM pg_class
		WHERE relnamespace = 'public'::regnamespace) AND attnum > 0
	AND NOT attisdropped
ORDER BY 1, attnum;
SELECT conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated
FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2;
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger
WHERE NOT tgisinternal ORDER BY 1, 2;
SELECT indexrelid::regclass, indisvalid FROM pg_index
WHERE indrelid IN (SELECT oid FROM pg_class
		WHERE relnamespace = 'public'::regnamespace) ORDER BY 1;
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'public%' ORDER BY 1;
SQL
}

$node->safe_psql(<<'SQL');
CREATE TABLE review (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	product text NOT NULL,
	rating text NOT NULL DEFAULT '3',
	note text,
	CONSTRAINT some_rating CHECK (length(rating) > 0)
);
CREATE INDEX review_rating ON review (rating, product) WHERE note IS NULL;
CREATE INDEX review_expression ON review ((rating || product) DESC);
COMMENT ON COLUMN review.rating IS 'stars';
INSERT INTO review (product, rating)
	SELECT 'p' || i, (i % 5)::text FROM generate_series(1, 5000) i;
CREATE TABLE touched (n integer);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO public.touched VALUES (1); RETURN NEW; END$$;
CREATE TRIGGER touch BEFORE UPDATE ON review
	FOR EACH ROW EXECUTE FUNCTION touch();
SQL
my $before = catalog();

#
# A column gets another type
#
change('int', q([{"alter_column": {"table": "review", "column": "rating",
	"type": "integer", "up": "CAST(rating AS integer)",
	"down": "CAST(rating AS text)"}}]));
is(state('int'), 'defined', 'a change is defined');
expand('int');
is(state('int'), 'expanded', 'and expanded');
is( new('int', 'SELECT count(*), sum(rating), pg_typeof(min(rating))'
		  . ' FROM review'),
	'5000|10000|integer',
	'the new version sees every row in the new form');
is(old('SELECT count(*), pg_typeof(min(rating)) FROM review'),
	'5000|text', 'the old version sees what it saw');
is(old('SELECT count(*) FROM touched'),
	'0', 'the application\'s triggers did not fire for the backfill');
is(columns('public_int.review'), 'id product rating note',
	'the view has the table\'s columns in its order');

old(q{INSERT INTO review (product, rating) VALUES ('old', '7')});
is(new('int', q{SELECT rating + 1 FROM review WHERE product = 'old'}),
	'8', 'an insert of the old version');
new('int', q{INSERT INTO review (product, rating) VALUES ('new', 9)});
is(old(q{SELECT rating || '!' FROM review WHERE product = 'new'}),
	'9!', 'an insert of the new version');
new('int', q{INSERT INTO review (product) VALUES ('default')});
is( old(q{SELECT rating FROM review WHERE product = 'default'})
	  . new('int', q{SELECT rating FROM review WHERE product = 'default'}),
	'33', 'the default holds for the new version');
old(q{UPDATE review SET rating = '11' WHERE product = 'new'});
new('int', q{UPDATE review SET rating = 12 WHERE product = 'old'});
is( new('int', q{SELECT string_agg(rating::text, ',' ORDER BY product)
		FROM review WHERE product IN ('old', 'new')}),
	'11,12', 'updates of both, seen by the new version');
is( old(q{SELECT string_agg(rating, ',' ORDER BY product)
		FROM review WHERE product IN ('old', 'new')}),
	'11,12', 'and by the old one');

# what was written in a form that does not survive there and back
old(q{UPDATE review SET rating = '007' WHERE product = 'old'});
new('int', q{UPDATE review SET note = 'edited' WHERE product = 'old'});
is(old(q{SELECT rating FROM review WHERE product = 'old'}),
	'007', 'an update of another column does not touch it');
$node->safe_psql(q{INSERT INTO review (product, rating, bluegreen_1_3_rating)
	VALUES ('both', 'five', 5)});
is( old(q{SELECT rating FROM review WHERE product = 'both'})
	  . new('int', q{SELECT rating FROM review WHERE product = 'both'}),
	'five5', 'who writes both is left alone');
$node->safe_psql(q{UPDATE review SET rating = '5' WHERE product = 'both'});

# ways to write
new('int', q{INSERT INTO review (product, rating) VALUES ('up', 1);
	INSERT INTO review AS r (id, product, rating) OVERRIDING SYSTEM VALUE
	SELECT id, product, 20 FROM review WHERE product = 'up'
	ON CONFLICT (id) DO UPDATE SET rating = excluded.rating});
is(old(q{SELECT rating FROM review WHERE product = 'up'}),
	'20', 'ON CONFLICT DO UPDATE of the new version');
old(q{MERGE INTO review r USING (VALUES ('up', '21'), ('merged', '22')) v (p, r)
	ON r.product = v.p WHEN MATCHED THEN UPDATE SET rating = v.r
	WHEN NOT MATCHED THEN INSERT (product, rating) VALUES (v.p, v.r)});
is( new('int', q{SELECT string_agg(rating::text, ',' ORDER BY product DESC)
		FROM review WHERE product IN ('up', 'merged')}),
	'21,22', 'MERGE of the old version');
old("COPY review (product, rating) FROM stdin;\ncopied\t30\n\\.\n");
is(new('int', q{SELECT rating FROM review WHERE product = 'copied'}),
	'30', 'COPY of the old version');
$node->safe_psql(q{SET session_replication_role = replica;
	INSERT INTO review (product, rating) VALUES ('replica', '31')});
is(new('int', q{SELECT rating FROM review WHERE product = 'replica'}),
	'31', 'session_replication_role = replica');
$node->safe_psql(q{SET session_replication_role = replica;
	SET bluegreen.app_version = 'int';
	INSERT INTO review (product, rating) VALUES ('applied', '0041')});
is( old(q{SELECT rating FROM review WHERE product = 'applied'})
	  . new('int', q{SELECT rating FROM review WHERE product = 'applied'}),
	'004141', 'whatever the version of the session that applies');
$node->safe_psql(q{SET bluegreen.app_version = 'int';
	INSERT INTO review (product, rating, bluegreen_1_3_rating)
	VALUES ('told', 'x', 42)});
is(old(q{SELECT rating FROM review WHERE product = 'told'}),
	'42', 'bluegreen.app_version tells who writes to the table itself');
$node->safe_psql(q{CREATE FUNCTION pinned() RETURNS void LANGUAGE sql
	SET search_path = public_int, pg_temp
	AS $$INSERT INTO review (product, rating) VALUES ('pinned', 32)$$;
	SET search_path = public; SELECT public.pinned()});
is(old(q{SELECT rating FROM review WHERE product = 'pinned'}),
	'32', 'a function with a search_path of its own writes for that');
$node->safe_psql(q{SET search_path = public_int, public;
	INSERT INTO review (product, rating) VALUES ('two', 33);
	INSERT INTO public.review (product, rating) VALUES ('three', '34')});
is( old(q{SELECT string_agg(rating, ',' ORDER BY product)
		FROM review WHERE product IN ('two', 'three')})
	  . new('int', q{SELECT string_agg(rating::text, ',' ORDER BY product)
		FROM review WHERE product IN ('two', 'three')}),
	'34,3334,33', 'a search_path of both: the view that is written to tells');
my ($status, undef, $error) = $node->psql(
	q{INSERT INTO review (product, rating) VALUES ('wrong', 'many')});
like($error, qr/invalid input syntax for type integer: "many"/,
	'what "up" cannot convert is refused');
$node->safe_psql('DROP FUNCTION pinned()');

#
# Undo, and again
#
$node->safe_psql(q{CALL bluegreen.undo('int')});
is(state('int'), 'undone', 'a change can be undone');
is(catalog(), $before, 'and leaves nothing behind');
is(old(q{SELECT rating FROM review WHERE product = 'new'}),
	'11', 'but what the new version wrote');
expand('int');
is(new('int', q{SELECT rating FROM review WHERE product = 'new'}),
	'11', 'and expanded again');

#
# One statement for both versions
#
$node->safe_psql(q{CREATE SCHEMA pair; CREATE TABLE pair.one (id int, v text);
	CREATE TABLE pair.two (id int, v text);
	SELECT bluegreen.create_change('both', '[
	{"alter_column": {"table": "one", "column": "v", "type": "int"}},
	{"alter_column": {"table": "two", "column": "v", "type": "int"}}]', 'pair')});
expand('both');
$node->safe_psql(q{WITH new AS (INSERT INTO pair_both.one VALUES (1, 5))
	INSERT INTO pair.two VALUES (1, '05')});
is( $node->safe_psql('SELECT o.v, t.v, n.v FROM pair.one o, pair.two t,
		pair_both.two n'),
	'5|05|5', 'a statement that writes both versions of two tables');

#
# Contract
#
$node->safe_psql(q{CALL bluegreen.contract('int')});
is(state('int'), 'contracted', 'contracted');
is(columns('review'), 'id product note rating', 'the old column is gone');
is(new('int', q{INSERT INTO review (product) VALUES ('after') RETURNING rating}),
	'3', 'the view and the default still work');
is( $node->safe_psql(q{SELECT pg_get_indexdef('review_rating'::regclass),
		pg_get_indexdef('review_expression'::regclass)}),
	'CREATE INDEX review_rating ON public.review USING btree (rating, product)'
	  . ' WHERE (note IS NULL)|CREATE INDEX review_expression ON public.review'
	  . ' USING btree ((((rating)::text || product)) DESC)',
	'indexes came along');
is( $node->safe_psql(q{SELECT conname, convalidated, pg_get_constraintdef(oid)
		FROM pg_constraint WHERE conrelid = 'review'::regclass
		AND contype = 'c'}),
	'some_rating|t|CHECK ((length((rating)::text) > 0))',
	'and the check');
is( $node->safe_psql(q{SELECT attnotnull, col_description(attrelid, attnum)
		FROM pg_attribute WHERE attrelid = 'review'::regclass
		AND attname = 'rating'}),
	't|stars', 'NOT NULL and the comment');
($status, undef, $error) = $node->psql(q{CALL bluegreen.undo('int')});
like($error, qr/change "int" is contracted/, 'too late to undo');

done_testing();
