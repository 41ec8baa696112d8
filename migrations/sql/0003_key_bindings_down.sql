-- Undoes 0003_key_bindings.sql.
SELECT 1;
