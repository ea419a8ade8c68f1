-- Both sides are to take writes for a while: blue's application and green's, which
-- gives a cart its customer's number as long as the window is open.
-- Changes must carry whole rows, on both sides (see window_green.sql).
ALTER TABLE product REPLICA IDENTITY FULL;
ALTER TABLE customer REPLICA IDENTITY FULL;

-- Who wins where both have changed a row? Products are the same on both sides, so
-- the later change can.
SELECT bluegreen.alter_mapping('shop', 'product', conflict => 'last_write');

-- Of a customer blue writes the name only: a row that comes from there is not all
-- of green's. So a side has to win: green, to which the users move.
SELECT bluegreen.alter_mapping('shop', 'customer', 'customer', conflict => 'green');

-- A cart is several lines, and whoever pays on green takes them all. If blue's
-- later change of one could win, half a cart would be left.
SELECT bluegreen.alter_mapping('shop', 'cart_line', 'cart_line', conflict => 'green');

-- That a cart was touched, and whose it is, is not sent back, so both sides cannot
-- differ in it: blue has neither.
SELECT bluegreen.alter_mapping('shop', 'cart_line', 'cart', conflict => 'none');
SELECT bluegreen.alter_mapping('shop', 'cart_line', 'customer', conflict => 'none');

-- Carts get numbers on green only.
SELECT bluegreen.accept('shop', 'window_sequence', 'public.cart_id_seq');
