-- Blue knows customers, no carts. So it is told whose the carts of green's own
-- are, and keeps that: lines may be there longer than the cart is the customer's.
CREATE TABLE cart_owner (cart_id int PRIMARY KEY, customer_id int NOT NULL);

SELECT bluegreen.map_table('shop', 'customer', 'cart_owner',
    transform => 'SELECT cart_id, id AS customer_id FROM customer
                  WHERE cart_id IS NOT NULL',
    on_write => 'merge', on_delete => 'ignore', direction => 'backward');

-- A line is its cart's owner's. Carts that came from blue have their customer's
-- number; for one of green's own whose owner is not known, NULL stops the stream.
SELECT bluegreen.map_table('shop', 'cart_line',
    lookup => 'SELECT i.product_id, i.quantity,
                   coalesce(o.customer_id, CASE WHEN i.cart_id < 1000000
                                                THEN i.cart_id END) AS customer_id
               FROM incoming i LEFT JOIN cart_owner o ON o.cart_id = i.cart_id',
    direction => 'backward');

-- Customers go back as they came. (Products do by themselves.)
SELECT bluegreen.map_table('shop', 'customer',
    transform => 'SELECT id, name FROM customer', direction => 'backward');

-- When blue has the users again, carts that green has made keep their numbers.
BEGIN;
SELECT bluegreen.alter_mapping('shop', 'cart_line', 'cart',
    lookup => 'SELECT coalesce(c.cart_id, i.id) AS id, i.last_modified
               FROM incoming i LEFT JOIN customer c ON c.id = i.id');
SELECT bluegreen.alter_mapping('shop', 'cart_line', 'customer',
    lookup => 'SELECT i.id, i.cart_id
               FROM incoming i JOIN customer c ON c.id = i.id
               WHERE c.cart_id IS NULL');
SELECT bluegreen.alter_mapping('shop', 'cart_line', 'cart_line',
    lookup => 'SELECT i.product_id, coalesce(c.cart_id, i.cart_id) AS cart_id,
                   i.quantity
               FROM incoming i LEFT JOIN customer c ON c.id = i.cart_id');
COMMIT;
