-- Customers' key bindings and what moves with them.

-- A binding that was moved away from may still be needed, and may be denied: its state says how it stands with its KMS,
-- `current` whether the newest root key is sealed under it.
DROP INDEX confide_keys.binding_one_active;
ALTER TABLE confide_keys.binding
    ADD COLUMN current boolean NOT NULL DEFAULT false,
    ADD COLUMN kek text,                  -- the key's URI, once it was reached
    ADD COLUMN kek_version text,          -- the KMS's current version as of described_at
    ADD COLUMN described_at timestamptz,
    ADD COLUMN used_at timestamptz,       -- about when a worker last asked it to unwrap
    ADD COLUMN probe_at timestamptz,      -- when it may be probed next; moving it on is the prober's claim
    ADD COLUMN statement jsonb;           -- what was said when it was retired
CREATE UNIQUE INDEX binding_one_current ON confide_keys.binding (tenant_id) WHERE current;
CREATE INDEX binding_to_probe ON confide_keys.binding (probe_at) WHERE state IN ('revoked', 'unavailable');
CREATE INDEX binding_to_describe ON confide_keys.binding (described_at)
    WHERE state IN ('active', 'retiring') AND provider <> 'vendor';

-- While a tenant's index key is replaced, nobody can look anything up: workers answer 503 until it is done.
ALTER TABLE confide.tenant DROP CONSTRAINT tenant_key_state_check,
    ADD CONSTRAINT tenant_key_state_check CHECK (key_state IN ('active', 'unavailable', 'revoked', 'sealed', 'rekeying'));
ALTER TABLE confide_keys.index_key DROP CONSTRAINT index_key_state_check,
    ADD CONSTRAINT index_key_state_check CHECK (state IN ('pending', 'active', 'retiring', 'destroyed'));

CREATE INDEX tenant_by_change ON confide.tenant (changed_at);

-- ---------------------------------------------------------------- questions that cross tenants: ids only

-- Tenants whose row changed since then. The caller asks with an overlap, since a change shows only when it has committed.
CREATE FUNCTION confide.changed_tenants(p_since timestamptz, p_limit integer) RETURNS TABLE (id uuid, changed_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT t.id, t.changed_at FROM confide.tenant t WHERE t.changed_at > p_since ORDER BY t.changed_at LIMIT p_limit $$;

CREATE FUNCTION confide.due_probes(p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT b.tenant_id, b.id FROM confide_keys.binding b WHERE b.state IN ('revoked', 'unavailable')
       AND b.probe_at <= now() ORDER BY b.probe_at LIMIT p_limit $$;

CREATE FUNCTION confide.due_descriptions(p_seconds integer, p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT b.tenant_id, b.id FROM confide_keys.binding b WHERE b.state IN ('active', 'retiring')
       AND b.provider <> 'vendor' AND b.described_at <= now() - p_seconds * interval '1 second'
       ORDER BY b.described_at LIMIT p_limit $$;

CREATE FUNCTION confide.due_rotations(p_limit integer) RETURNS TABLE (tenant_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT t.id FROM confide.tenant t JOIN confide_keys.root_key r ON r.tenant_id = t.id AND r.state = 'active'
       WHERE t.settings ? 'rotation_days' AND t.state = 'active' AND t.key_state = 'active'
       AND r.created_at <= now() - (t.settings ->> 'rotation_days')::int * interval '1 day' LIMIT p_limit $$;

-- How tenants stand, for the worker that holds their keys: it sees those that it names.
CREATE FUNCTION confide.standings(p_tenants text)
RETURNS TABLE (id uuid, epoch bigint, state text, key_state text) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('confide.tenants', p_tenants, true);
    RETURN QUERY SELECT t.id, t.epoch, t.state, t.key_state FROM confide.tenant t WHERE t.id = ANY (p_tenants::uuid[]);
END $$;

-- What each root key generation still opens.
CREATE FUNCTION confide.dependents(p_tenant uuid)
RETURNS TABLE (generation integer, container_keys bigint, index_keys bigint) LANGUAGE sql STABLE AS $$
    SELECT r.generation,
           (SELECT count(*) FROM confide.container_key k WHERE k.tenant_id = p_tenant AND k.trk_generation = r.generation),
           (SELECT count(*) FROM confide_keys.index_key i WHERE i.tenant_id = p_tenant AND i.trk_generation = r.generation)
    FROM confide_keys.root_key r WHERE r.tenant_id = p_tenant ORDER BY r.generation
$$;

REVOKE EXECUTE ON FUNCTION confide.changed_tenants, confide.due_probes, confide.due_descriptions, confide.due_rotations,
    confide.standings, confide.dependents FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide.changed_tenants, confide.due_probes, confide.due_descriptions, confide.due_rotations,
    confide.standings, confide.dependents TO confide_service;
