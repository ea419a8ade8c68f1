-- On green a shopper gets a cart, if he has none, and puts something in.
\set customer :client_id + 1
\set product random(1, 4)
\set quantity random(1, 9)
BEGIN;
WITH made AS (
    INSERT INTO cart (last_modified)
    SELECT now() AT TIME ZONE 'UTC' FROM customer
    WHERE id = :customer AND cart_id IS NULL RETURNING id
)
UPDATE customer SET cart_id = made.id FROM made WHERE customer.id = :customer;
UPDATE cart SET last_modified = now() AT TIME ZONE 'UTC'
FROM customer c WHERE c.id = :customer AND cart.id = c.cart_id;
INSERT INTO cart_line
SELECT :product, cart_id, :quantity FROM customer WHERE id = :customer
ON CONFLICT (product_id, cart_id) DO UPDATE SET quantity = EXCLUDED.quantity;
COMMIT;
