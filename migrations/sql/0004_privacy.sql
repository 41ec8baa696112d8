-- Residency, retention, erasure, incidents, evidence.
SELECT 1;
