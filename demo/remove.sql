-- A shopper thinks better of it, and notes it in the ledger.
\set customer :client_id + 1
\set product random(1, 4)
WITH line AS (
    DELETE FROM cart_line
    WHERE (product_id, customer_id) = (:product, :customer) RETURNING customer_id
)
INSERT INTO shopper_log (customer_id, action) SELECT customer_id, 'remove' FROM line;
