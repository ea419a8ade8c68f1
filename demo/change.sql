-- A shopper wants more, or less, of something, and notes it in the ledger.
\set customer :client_id + 1
\set product random(1, 4)
\set quantity random(1, 9)
WITH line AS (
    UPDATE cart_line SET quantity = :quantity
    WHERE (product_id, customer_id) = (:product, :customer) RETURNING customer_id
)
INSERT INTO shopper_log (customer_id, action) SELECT customer_id, 'change' FROM line;
