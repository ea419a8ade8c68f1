-- In a window changes must carry whole rows, on both sides.
ALTER TABLE product REPLICA IDENTITY FULL;
ALTER TABLE customer REPLICA IDENTITY FULL;
