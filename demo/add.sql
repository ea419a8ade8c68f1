-- A shopper (pgbench: one client is one customer) puts something in the cart
-- and notes it in the ledger, if it was not there already.
\set customer :client_id + 1
\set product random(1, 4)
\set quantity random(1, 9)
WITH line AS (
    INSERT INTO cart_line VALUES (:product, :customer, :quantity)
    ON CONFLICT DO NOTHING RETURNING customer_id
)
INSERT INTO shopper_log (customer_id, action) SELECT customer_id, 'add' FROM line;
