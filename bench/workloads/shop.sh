# The shop of the demo: carts, which blue has only as lines, become rows of three
# targets (cart, customer, cart_line).  Others get blue's rows as they are, and
# so do the floors.
# shellcheck shell=bash disable=SC2154,SC2034

shop_blue='
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE product (id int PRIMARY KEY, name text NOT NULL,
	price numeric(10,2) NOT NULL, description text);
CREATE TABLE cart_line (product_id int, customer_id int,
	quantity smallint NOT NULL, PRIMARY KEY (product_id, customer_id));'
shop_green='
CREATE TABLE cart (id int PRIMARY KEY, last_modified timestamp NOT NULL);
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL, cart_id int);
CREATE TABLE product (id int PRIMARY KEY, name text NOT NULL,
	price numeric(10,2) NOT NULL, description text);
CREATE TABLE cart_line (product_id int, cart_id int,
	quantity smallint NOT NULL, PRIMARY KEY (product_id, cart_id));'

# 10,000 customers; a customer is served by one of the clients
workload_shop() {
	local mappings
	mappings="$(sed "s/'shop'/'bench'/" "$TOP/demo/mappings.sql")
		SELECT FROM bluegreen.map_table('bench', 'mark');"
	for file in add change remove; do
		sed -e 's/^\\set customer .*/\\set customer 1 + :client_id + 8 * random(0, 1249)/' \
			-e 's/random(1, 4)/random(1, 20)/' \
			-e '/^INSERT INTO shopper_log/d' \
			-e 's/^)$/) SELECT FROM line;/' "$TOP/demo/$file.sql" \
			>"$work/$file.sql"
	done
	make_tables "$shop_blue" "$shop_green"
	sql blue <<-SQL
		INSERT INTO customer SELECT i, 'customer ' || i FROM generate_series(1, 10000) i;
		INSERT INTO product SELECT i, 'product ' || i, i * 1.5, repeat('long ', i)
			FROM generate_series(1, 20) i;
		INSERT INTO cart_line SELECT p, c, 1 + (p + c) % 9
			FROM generate_series(1, 20) p, generate_series(1, 10000) c
			WHERE (p + c) % 2 = 0;
	SQL
	catch_up shop
	drop_tables
}

load_shop() {
	small shop "$1" -f "$work/add.sql@4" -f "$work/change.sql@4" \
		-f "$work/remove.sql@2"
}

# compare_shop CONTENDER: ours has carts; all but their times can be told from
# blue's rows (test/t/030_shop.pl knows the times)
compare_shop() {
	if [ "$1" != bluegreen ]; then
		compare "$1"
		return
	fi
	sql blue >"$work/shop.blue" <<-SQL
		SELECT * FROM cart_line ORDER BY 1, 2;
		SELECT id, name FROM customer ORDER BY 1;
		TABLE product ORDER BY 1;
		SELECT DISTINCT customer_id FROM cart_line ORDER BY 1;
	SQL
	sql "$1" >"$work/shop.green" <<-SQL
		SELECT * FROM cart_line ORDER BY 1, 2;
		SELECT id, name FROM customer ORDER BY 1;
		TABLE product ORDER BY 1;
		SELECT DISTINCT cart.id FROM cart JOIN customer ON cart_id = cart.id
			JOIN cart_line l ON l.cart_id = cart.id ORDER BY 1;
	SQL
	cmp "$work/shop.blue" "$work/shop.green" >&2 ||
		die "$1 has not what blue's rows become"
}
