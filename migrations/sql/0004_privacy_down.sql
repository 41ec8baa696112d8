-- Undoes 0004_privacy.sql.
SELECT 1;
