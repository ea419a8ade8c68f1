-- Whose a cart is must be told by each change of a customer, not only his number.
ALTER TABLE customer REPLICA IDENTITY FULL;
