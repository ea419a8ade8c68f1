CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE product (
    id          int PRIMARY KEY,
    name        text NOT NULL,
    price       numeric(10,2) NOT NULL,
    description text
);
CREATE TABLE cart_line (
    product_id  int REFERENCES product,
    customer_id int REFERENCES customer,
    quantity    smallint NOT NULL,
    PRIMARY KEY (product_id, customer_id)
);
INSERT INTO customer VALUES (1, 'Joe'), (2, 'Jack'), (3, 'William'), (4, 'Averell');
INSERT INTO product VALUES
    (1, 'Rope',     9.90, 'Thirty feet, hemp'),
    (2, 'Shovel',  24.50, 'For digging, also tunnels'),
    (3, 'Dynamite', 3.25, 'Six sticks'),
    (4, 'Beans',    0.80, NULL);

-- Averell fills his cart, and then thinks of something else.
INSERT INTO cart_line VALUES (4, 4, 12);
INSERT INTO cart_line VALUES (1, 4, 1);
