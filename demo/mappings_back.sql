-- Back: products by themselves, for nothing happens to them. Of the others, what
-- blue has a place for.
SELECT bluegreen.map_table('shop', 'public.customer', 'public.customer',
    transform => 'SELECT id, name FROM customer', direction => 'backward');
SELECT bluegreen.map_table('shop', 'public.cart_line', 'public.cart_line',
    transform => 'SELECT product_id, cart_id AS customer_id, quantity FROM cart_line',
    direction => 'backward');
