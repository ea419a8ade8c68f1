-- On green a shopper pays, and his cart is gone.
\set customer :client_id + 1
BEGIN;
SELECT coalesce(cart_id, 0) AS cart FROM customer WHERE id = :customer FOR UPDATE \gset
DELETE FROM cart_line WHERE cart_id = :cart;
UPDATE customer SET cart_id = NULL WHERE id = :customer AND cart_id = :cart;
DELETE FROM cart WHERE id = :cart;
COMMIT;
