-- Undoes 0003_key_bindings.sql. Bindings that were moved away from can't stand beside the current one in the older schema.
DROP FUNCTION confide.changed_tenants, confide.due_probes, confide.due_descriptions, confide.due_rotations,
    confide.standings, confide.dependents;
DROP INDEX confide.tenant_by_change;
UPDATE confide.tenant SET key_state = 'sealed' WHERE key_state = 'rekeying';
ALTER TABLE confide.tenant DROP CONSTRAINT tenant_key_state_check,
    ADD CONSTRAINT tenant_key_state_check CHECK (key_state IN ('active', 'unavailable', 'revoked', 'sealed'));
UPDATE confide_keys.index_key SET state = 'retiring' WHERE state = 'pending';
ALTER TABLE confide_keys.index_key DROP CONSTRAINT index_key_state_check,
    ADD CONSTRAINT index_key_state_check CHECK (state IN ('active', 'retiring', 'destroyed'));
DROP INDEX confide_keys.binding_one_current;
UPDATE confide_keys.binding SET state = 'retiring' WHERE NOT current AND state IN ('active', 'unavailable', 'revoked');
ALTER TABLE confide_keys.binding
    DROP COLUMN current, DROP COLUMN kek, DROP COLUMN kek_version, DROP COLUMN described_at, DROP COLUMN used_at,
    DROP COLUMN probe_at, DROP COLUMN statement;
CREATE UNIQUE INDEX binding_one_active ON confide_keys.binding (tenant_id)
    WHERE state IN ('active', 'unavailable', 'revoked');
