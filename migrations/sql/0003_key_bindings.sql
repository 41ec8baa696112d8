-- Customers' key bindings and what moves with them.
SELECT 1;
