-- The sealed audit log: tables, tree, checkpoints, streams.
SELECT 1;
