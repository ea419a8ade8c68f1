-- On green a shopper thinks better of it, which touches his cart as well.
\set customer :client_id + 1
\set product random(1, 4)
BEGIN;
DELETE FROM cart_line USING customer c
WHERE c.id = :customer AND (product_id, cart_line.cart_id) = (:product, c.cart_id);
UPDATE cart SET last_modified = now() AT TIME ZONE 'UTC'
FROM customer c WHERE c.id = :customer AND cart.id = c.cart_id;
COMMIT;
