-- Products stay what they are.
SELECT bluegreen.map_table('shop', 'product');

-- Customers bring their name; cart_id is not theirs to write.
SELECT bluegreen.map_table('shop', 'customer',
    transform => 'SELECT id, name FROM customer');

-- Whatever happens to a line, also its deletion, touches the cart ...
SELECT bluegreen.map_table('shop', 'cart_line', 'cart',
    transform => $$SELECT customer_id AS id,
                          bluegreen.commit_time() AT TIME ZONE 'UTC' AS last_modified
                   FROM cart_line$$,
    on_write => 'merge', on_delete => 'write');

-- ... which from then on is its customer's ...
SELECT bluegreen.map_table('shop', 'cart_line', 'customer',
    transform => 'SELECT customer_id AS id, customer_id AS cart_id FROM cart_line',
    on_write => 'patch', on_delete => 'ignore');

-- ... and the line itself moves into the cart.
SELECT bluegreen.map_table('shop', 'cart_line',
    transform => 'SELECT product_id, customer_id AS cart_id, quantity FROM cart_line');
