CREATE TABLE cart (id int PRIMARY KEY, last_modified timestamp NOT NULL);
CREATE TABLE customer (
    id          int PRIMARY KEY,
    name        text NOT NULL,
    cart_id     int REFERENCES cart
);
CREATE TABLE product (
    id          int PRIMARY KEY,
    name        text NOT NULL,
    price       numeric(10,2) NOT NULL,
    description text
);
CREATE TABLE cart_line (
    product_id  int REFERENCES product,
    cart_id     int REFERENCES cart,
    quantity    smallint NOT NULL,
    PRIMARY KEY (product_id, cart_id)
);
