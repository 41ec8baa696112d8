-- Live exchange of the index key, one KMS call at a time for a tenant, the vendor's key under its current version.

-- Which index key a container's names went through when it was last moved; less than nothing: a move of it is under way.
ALTER TABLE confide.container ADD COLUMN index_number integer;

-- `bound`: containers up to this one may still stand under an older index key; none: all have moved.
-- A retiring index key finds the answers to requests that were made before it was replaced, for a day.
ALTER TABLE confide_keys.index_key
    ADD COLUMN bound uuid,
    ADD COLUMN retired_at timestamptz;
CREATE INDEX index_key_retiring ON confide_keys.index_key (retired_at) WHERE state = 'retiring';

CREATE FUNCTION confide.due_index_keys(p_limit integer) RETURNS TABLE (tenant_id uuid, number integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT i.tenant_id, i.number FROM confide_keys.index_key i
    WHERE i.state = 'retiring' AND i.retired_at <= now() - interval '25 hours'
      AND NOT EXISTS (SELECT FROM confide_keys.index_key a WHERE a.tenant_id = i.tenant_id AND a.bound IS NOT NULL)
    ORDER BY i.retired_at LIMIT p_limit $$;

-- Stored answers by the tags that older index keys give to an idempotency key.
CREATE FUNCTION confide.former_answers(p_tenants text, p_tenant uuid, p_tags bytea[])
RETURNS TABLE (key_tag bytea, fingerprint bytea, answer bytea, facts text, created_at timestamptz)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('confide.tenants', p_tenants, true);
    RETURN QUERY SELECT i.key_tag, i.fingerprint, i.answer, i.facts::text, i.created_at FROM confide.idempotency i
    WHERE i.tenant_id = p_tenant AND i.key_tag = ANY (p_tags) AND i.created_at > now() - interval '24 hours';
END $$;

-- ---------------------------------------------------------------- one KMS call at a time for a tenant, in the whole cell

-- Who calls a KMS for a tenant now. A claim ends by itself, so that a worker's death holds nobody up. Unlogged: after a
-- crash of the database no call is under way that could still be released, and no claim waits for a disk.
CREATE UNLOGGED TABLE confide_keys.kms_flight (
    tenant_id uuid PRIMARY KEY,
    holder    uuid NOT NULL,
    until     timestamptz NOT NULL
) WITH (fillfactor = 50);
ALTER TABLE confide_keys.kms_flight ENABLE ROW LEVEL SECURITY;
ALTER TABLE confide_keys.kms_flight FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON confide_keys.kms_flight TO confide_owner USING (true);

-- Whether `p_holder` may call now; the same holder may ask again.
CREATE FUNCTION confide.claim_flight(p_tenant uuid, p_holder uuid, p_seconds double precision) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
    WITH won AS (
        INSERT INTO confide_keys.kms_flight AS f (tenant_id, holder, until)
        VALUES (p_tenant, p_holder, pg_catalog.clock_timestamp() + p_seconds * interval '1 second')
        ON CONFLICT (tenant_id) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
        WHERE f.until <= pg_catalog.clock_timestamp() OR f.holder = EXCLUDED.holder
        RETURNING 1)
    SELECT EXISTS (SELECT FROM won) $$;
CREATE FUNCTION confide.release_flight(p_tenant uuid, p_holder uuid) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS
    $$ UPDATE confide_keys.kms_flight f SET until = '-infinity' WHERE f.tenant_id = p_tenant AND f.holder = p_holder $$;

-- ---------------------------------------------------------------- denials that many customers see at once

CREATE TABLE confide_keys.denial_seen (
    id        uuid PRIMARY KEY,
    owner     bytea NOT NULL,             -- hash of whose key it is: one AWS account or Entra tenant is one owner
    tenant_id uuid NOT NULL,
    binding_id uuid NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX denial_seen_by_time ON confide_keys.denial_seen (at);
ALTER TABLE confide_keys.denial_seen ENABLE ROW LEVEL SECURITY;
ALTER TABLE confide_keys.denial_seen FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON confide_keys.denial_seen TO confide_owner USING (true);

-- Note one, and forget what is past the window.
CREATE FUNCTION confide.note_denial(p_id uuid, p_owner bytea, p_tenant uuid, p_binding uuid, p_window double precision)
RETURNS void LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
    DELETE FROM confide_keys.denial_seen d WHERE d.id IN (
        SELECT o.id FROM confide_keys.denial_seen o
        WHERE o.at < pg_catalog.clock_timestamp() - p_window * interval '1 second' FOR UPDATE SKIP LOCKED);
    INSERT INTO confide_keys.denial_seen (id, owner, tenant_id, binding_id) VALUES (p_id, p_owner, p_tenant, p_binding)
        ON CONFLICT DO NOTHING $$;
-- How many unrelated customers were denied within the window.
CREATE FUNCTION confide.denied_owners(p_window double precision) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT count(DISTINCT d.owner) FROM confide_keys.denial_seen d
       WHERE d.at >= pg_catalog.clock_timestamp() - p_window * interval '1 second' $$;
CREATE FUNCTION confide.denied_lately(p_window double precision) RETURNS TABLE (tenant_id uuid, binding_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT DISTINCT d.tenant_id, d.binding_id FROM confide_keys.denial_seen d
       WHERE d.at >= pg_catalog.clock_timestamp() - p_window * interval '1 second' $$;

-- ---------------------------------------------------------------- the vendor's key under its current version

-- A provider that doesn't say which version it wrapped with ('aws-managed') is told by when it was: before `changed_at`.
ALTER TABLE confide_keys.root_key ADD COLUMN vendor_wrapped_at timestamptz NOT NULL DEFAULT now();
CREATE TABLE confide_keys.vendor_kek (
    singleton    boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    described_at timestamptz NOT NULL DEFAULT '-infinity',
    kek          text,
    version      text,                    -- the current one, as of described_at
    changed_at   timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO confide_keys.vendor_kek DEFAULT VALUES;
ALTER TABLE confide_keys.vendor_kek ENABLE ROW LEVEL SECURITY;
ALTER TABLE confide_keys.vendor_kek FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON confide_keys.vendor_kek TO confide_owner USING (true);
CREATE INDEX root_key_by_vendor_version ON confide_keys.root_key (vendor_kek, vendor_kek_version) WHERE state <> 'destroyed';

-- Whether it is this worker's turn to ask for the version of the vendor's key.
CREATE FUNCTION confide.claim_vendor_look(p_seconds double precision) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
    WITH won AS (UPDATE confide_keys.vendor_kek v SET described_at = pg_catalog.clock_timestamp()
                 WHERE v.described_at <= pg_catalog.clock_timestamp() - p_seconds * interval '1 second' RETURNING 1)
    SELECT EXISTS (SELECT FROM won) $$;
-- What the KMS says is the current version. The first word of a key dates no change.
CREATE FUNCTION confide.note_vendor_version(p_kek text, p_version text) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
    UPDATE confide_keys.vendor_kek v SET kek = p_kek, version = p_version,
        changed_at = CASE WHEN v.kek = p_kek AND v.version IS NOT NULL THEN pg_catalog.clock_timestamp() ELSE '-infinity' END
    WHERE v.kek IS DISTINCT FROM p_kek OR v.version IS DISTINCT FROM p_version $$;
-- Root keys whose vendor half is wrapped by this key, but not by this version of it.
CREATE FUNCTION confide.due_vendor_wraps(p_kek text, p_version text, p_after uuid, p_limit integer)
RETURNS TABLE (tenant_id uuid, generation integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT r.tenant_id, r.generation FROM confide_keys.root_key r CROSS JOIN confide_keys.vendor_kek v
    WHERE r.state <> 'destroyed' AND r.vendor_kek = p_kek AND r.tenant_id > p_after
      AND CASE WHEN r.vendor_kek_version = 'aws-managed' THEN r.vendor_wrapped_at < v.changed_at
               ELSE r.vendor_kek_version <> p_version END
    ORDER BY r.tenant_id, r.generation LIMIT p_limit $$;

REVOKE ALL ON confide_keys.kms_flight, confide_keys.denial_seen, confide_keys.vendor_kek FROM confide_service;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA confide FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA confide TO confide_service;
