CREATE TABLE shopper_log (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id int NOT NULL,
    action      text NOT NULL
);
