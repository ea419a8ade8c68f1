CREATE SERVER green FOREIGN DATA WRAPPER pg_bluegreen
    OPTIONS (host '127.0.0.1', port '@GREEN_PORT@', dbname 'shop');
CREATE USER MAPPING FOR CURRENT_USER SERVER green
    OPTIONS (user 'postgres', password 'lucky');

SELECT bluegreen.create_deployment('shop', 'green');
