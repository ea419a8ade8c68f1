CREATE EXTENSION pg_bluegreen;
CREATE SERVER blue FOREIGN DATA WRAPPER pg_bluegreen
    OPTIONS (host '127.0.0.1', port '@BLUE_PORT@', dbname 'shop');
CREATE USER MAPPING FOR CURRENT_USER SERVER blue
    OPTIONS (user 'postgres', password 'lucky');
