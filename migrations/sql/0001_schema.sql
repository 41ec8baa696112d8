-- Confide's first schema. Tenant first in every key, so that the same tables distribute by tenant (Citus).
-- Three schemas: what is stored, what opens it (backed up apart and kept shorter), and what was done with it.

CREATE SCHEMA confide;
CREATE SCHEMA confide_keys;
CREATE SCHEMA confide_audit;

-- ---------------------------------------------------------------- the cell and its tenants

CREATE TABLE confide.cell (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    region    text NOT NULL UNIQUE CHECK (region ~ '^[a-z0-9-]{2,32}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE confide.tenant (
    id          uuid PRIMARY KEY,
    region      text NOT NULL REFERENCES confide.cell (region),
    name        text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    state       text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended', 'leaving', 'gone')),
    key_state   text NOT NULL DEFAULT 'active' CHECK (key_state IN ('active', 'unavailable', 'revoked', 'sealed')),
    epoch       bigint NOT NULL DEFAULT 1,
    require_preconditions boolean NOT NULL DEFAULT false,
    lease_seconds integer NOT NULL DEFAULT 60 CHECK (lease_seconds BETWEEN 0 AND 300),
    grace_seconds integer NOT NULL DEFAULT 0 CHECK (grace_seconds BETWEEN 0 AND 900),
    ttl_idle_seconds integer NOT NULL DEFAULT 2592000 CHECK (ttl_idle_seconds > 0),
    ttl_max_seconds integer NOT NULL DEFAULT 31536000 CHECK (ttl_max_seconds >= ttl_idle_seconds),
    rate_per_second integer CHECK (rate_per_second > 0),
    settings    jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    changed_at  timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);

CREATE FUNCTION confide.region_is_fixed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a tenant belongs to one region from its creation';
END $$;
CREATE TRIGGER tenant_region_is_fixed BEFORE UPDATE OF region, id ON confide.tenant
    FOR EACH ROW WHEN (OLD.region IS DISTINCT FROM NEW.region OR OLD.id IS DISTINCT FROM NEW.id)
    EXECUTE FUNCTION confide.region_is_fixed();

-- Operators' keys belong to the cell: tenant_id is the nil UUID.
CREATE TABLE confide.api_key (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    principal   uuid NOT NULL,
    name        text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    digest      bytea NOT NULL CHECK (length(digest) = 32),
    role        text NOT NULL CHECK (role IN ('runtime', 'admin', 'auditor', 'operator')),
    scopes      text[] NOT NULL,
    purposes    text[] NOT NULL CHECK (purposes <@ ARRAY['serve', 'subject-access', 'tenant-export', 'maintenance']),
    sources     cidr[],
    replaced_by uuid,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    revoked_at  timestamptz,
    last_used_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    CHECK ((role = 'operator') = (tenant_id = '00000000-0000-0000-0000-000000000000')),
    CHECK (role IN ('runtime', 'admin') OR purposes = '{}')
) WITH (fillfactor = 80);
CREATE INDEX api_key_by_id ON confide.api_key (id);

CREATE TABLE confide.enrolment (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    digest      bytea NOT NULL CHECK (length(digest) = 32),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    redeemed_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX enrolment_by_id ON confide.enrolment (id);

-- ---------------------------------------------------------------- containers and what they hold

CREATE TABLE confide.container (
    tenant_id     uuid NOT NULL,
    id            uuid NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('session', 'subject', 'app')),
    external_tag  uuid,                  -- HMAC of the client's own name, under the tenant's index key
    subject_id    uuid,                  -- the subject container of a session
    meta_version  uuid NOT NULL,
    meta          bytea NOT NULL,        -- sealed: external id, subject, labels
    meta_ck       integer NOT NULL,
    ck_generation integer NOT NULL,      -- the container key that writes use
    commit_number bigint NOT NULL DEFAULT 0,
    turn_head     bigint NOT NULL DEFAULT 1, -- the next turn's number
    ttl_absolute_seconds integer CHECK (ttl_absolute_seconds > 0),
    ttl_idle_seconds integer CHECK (ttl_idle_seconds > 0),
    hold          boolean NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL,
    expires_at    timestamptz,           -- exact, moved by every commit, not indexed
    sweep_at      timestamptz,           -- lower bound of expires_at, indexed, moved by the sweeper only
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX container_by_external ON confide.container (tenant_id, kind, external_tag)
    WHERE external_tag IS NOT NULL;
CREATE INDEX container_by_subject ON confide.container (tenant_id, subject_id, id) WHERE subject_id IS NOT NULL;
CREATE INDEX container_by_sweep ON confide.container (sweep_at) WHERE sweep_at IS NOT NULL;

CREATE TABLE confide.container_label (
    tenant_id    uuid NOT NULL,
    label_tag    uuid NOT NULL,
    container_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, label_tag, container_id)
);
CREATE INDEX container_label_by_container ON confide.container_label (tenant_id, container_id);

CREATE TABLE confide.container_key (
    tenant_id    uuid NOT NULL,
    container_id uuid NOT NULL,
    generation   integer NOT NULL,
    trk_generation integer NOT NULL,
    sealed       bytea NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, container_id, generation)
);
CREATE INDEX container_key_by_trk ON confide.container_key (tenant_id, trk_generation);

-- id is HMAC(collection, key) under the index key, cut to a UUIDv8: authenticated in the body's context, so that a body
-- opens under the name that it was written to and no other. An object of up to 3.9 KiB stays in its row and is updated in place.
CREATE TABLE confide.context_object (
    tenant_id      uuid NOT NULL,
    container_id   uuid NOT NULL,
    id             uuid NOT NULL,
    version        uuid NOT NULL,
    collection_tag uuid NOT NULL,
    ck_generation  integer NOT NULL,
    size           integer NOT NULL,
    commit_number  bigint NOT NULL,
    content_type   text NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    tags           bytea NOT NULL,        -- 16-byte HMACs, one after another
    fingerprint    bytea,                 -- HMAC of the content, where it was written with If-None-Match: *
    body           bytea NOT NULL,        -- sealed: name and content
    PRIMARY KEY (tenant_id, container_id, id)
) WITH (fillfactor = 50, toast_tuple_target = 8160);
ALTER TABLE confide.context_object ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE confide.turn (
    tenant_id     uuid NOT NULL,
    container_id  uuid NOT NULL,
    number        bigint NOT NULL,
    id            uuid NOT NULL,
    ck_generation integer NOT NULL,
    size          integer NOT NULL,
    commit_number bigint NOT NULL,
    content_type  text NOT NULL,
    created_at    timestamptz NOT NULL,
    removed_at    timestamptz,
    body          bytea,                  -- sealed; none in a tombstone
    PRIMARY KEY (tenant_id, container_id, number),
    CHECK ((removed_at IS NULL) = (body IS NOT NULL))
) WITH (toast_tuple_target = 8160);
ALTER TABLE confide.turn ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE confide.idempotency (
    tenant_id   uuid NOT NULL,
    key_tag     bytea NOT NULL,
    fingerprint bytea NOT NULL,
    answer      bytea NOT NULL,           -- sealed
    facts       jsonb NOT NULL,           -- what only the database knew: [commit, head, objects made] by target, equal puts
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key_tag)
);
CREATE INDEX idempotency_by_age ON confide.idempotency USING brin (created_at);

CREATE TABLE confide.job (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    kind        text NOT NULL,
    state       text NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'blocked')),
    api_key     uuid,
    principal   uuid,
    spec        jsonb NOT NULL,           -- ids only
    progress    jsonb NOT NULL DEFAULT '{}',
    deadline    timestamptz,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    finished_at timestamptz,
    claimed_by  uuid,
    claimed_until timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX job_open ON confide.job (created_at) WHERE state IN ('queued', 'running');

-- ---------------------------------------------------------------- keys

CREATE TABLE confide_keys.binding (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    provider    text NOT NULL CHECK (provider IN ('aws-kms', 'azure-key-vault', 'vault-transit', 'local', 'vendor')),
    fields      jsonb NOT NULL,
    external_id text NOT NULL,
    state       text NOT NULL CHECK (state IN ('pending', 'checked', 'active', 'unavailable', 'revoked', 'retiring', 'retired')),
    report      jsonb,
    created_at  timestamptz NOT NULL,
    changed_at  timestamptz NOT NULL,
    checked_at  timestamptz,
    activated_at timestamptz,
    retired_at  timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX binding_one_active ON confide_keys.binding (tenant_id)
    WHERE state IN ('active', 'unavailable', 'revoked');

CREATE TABLE confide_keys.root_key (
    tenant_id   uuid NOT NULL,
    generation  integer NOT NULL,
    sealed      bytea NOT NULL,
    binding_id  uuid,                     -- none: vendor key only
    customer_half bytea,
    customer_kek text,
    customer_kek_version text,
    vendor_half bytea NOT NULL,
    vendor_kek  text NOT NULL,
    vendor_kek_version text NOT NULL,
    state       text NOT NULL CHECK (state IN ('active', 'retiring', 'destroyed')),
    created_at  timestamptz NOT NULL,
    resealed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, generation),
    CHECK ((binding_id IS NULL) = (customer_half IS NULL))
);
CREATE UNIQUE INDEX root_key_one_active ON confide_keys.root_key (tenant_id) WHERE state = 'active';

CREATE TABLE confide_keys.index_key (
    tenant_id   uuid NOT NULL,
    number      integer NOT NULL,
    trk_generation integer NOT NULL,
    sealed      bytea NOT NULL,
    state       text NOT NULL CHECK (state IN ('active', 'retiring', 'destroyed')),
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, number)
);
CREATE UNIQUE INDEX index_key_one_active ON confide_keys.index_key (tenant_id) WHERE state = 'active';

-- ---------------------------------------------------------------- the audit journal

-- One row a lane: flush counts its statements, so that a broken connection's last statement can be judged truly.
CREATE TABLE confide_audit.writer (
    id         uuid PRIMARY KEY,
    flush      bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20);

-- Appended to, never changed. facts is canonical JSON of what the worker knew; the columns are what the statement knew.
CREATE TABLE confide_audit.journal (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    time       timestamptz NOT NULL,
    writer     uuid NOT NULL,
    seq        bigint NOT NULL,
    flush      bigint NOT NULL,
    action     text NOT NULL,
    outcome    text NOT NULL,
    reason     text,
    container  uuid,
    objects    uuid[],
    versions   uuid[],
    turns      bigint[],                  -- [from, to]
    commit_number bigint,
    facts      text NOT NULL
) PARTITION BY RANGE (time);
CREATE TABLE confide_audit.journal_default PARTITION OF confide_audit.journal DEFAULT;
CREATE INDEX journal_by_time ON confide_audit.journal USING brin (time) WITH (pages_per_range = 16);

-- Values that may have to be erased; the leaf holds only a salted commitment.
CREATE TABLE confide_audit.erasable (
    tenant_id  uuid NOT NULL,
    commitment text NOT NULL,
    salt       bytea NOT NULL,
    value      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, commitment)
);

CREATE FUNCTION confide_audit.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit rows are never changed or deleted';
END $$;
CREATE TRIGGER journal_is_append_only BEFORE UPDATE OR DELETE ON confide_audit.journal
    FOR EACH ROW EXECUTE FUNCTION confide_audit.refuse();
CREATE TRIGGER journal_is_not_truncated BEFORE TRUNCATE ON confide_audit.journal
    FOR EACH STATEMENT EXECUTE FUNCTION confide_audit.refuse();
CREATE TRIGGER journal_default_is_not_truncated BEFORE TRUNCATE ON confide_audit.journal_default
    FOR EACH STATEMENT EXECUTE FUNCTION confide_audit.refuse();

-- ---------------------------------------------------------------- walls

-- A statement may see the tenants that it named, and nothing else. After SET LOCAL the setting reads '' (not NULL).
CREATE FUNCTION confide.tenants() RETURNS uuid[] LANGUAGE sql STABLE PARALLEL SAFE
    RETURN coalesce(nullif(current_setting('confide.tenants', true), ''), '{}')::uuid[];

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY[
        'confide.api_key', 'confide.enrolment', 'confide.container', 'confide.container_label',
        'confide.container_key', 'confide.context_object', 'confide.turn', 'confide.idempotency', 'confide.job',
        'confide_keys.binding', 'confide_keys.root_key', 'confide_keys.index_key',
        'confide_audit.journal', 'confide_audit.journal_default', 'confide_audit.erasable']
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY named_tenants ON %s TO confide_service USING (tenant_id = ANY ((SELECT confide.tenants())::uuid[]))', t);
        -- The owner runs migrations and the few definer functions that answer with ids only.
        EXECUTE format('CREATE POLICY owner ON %s TO confide_owner USING (true)', t);
    END LOOP;
END $$;

ALTER TABLE confide.tenant ENABLE ROW LEVEL SECURITY;
ALTER TABLE confide.tenant FORCE ROW LEVEL SECURITY;
CREATE POLICY named_tenants ON confide.tenant TO confide_service USING (id = ANY ((SELECT confide.tenants())::uuid[]));
CREATE POLICY owner ON confide.tenant TO confide_owner USING (true);

GRANT USAGE ON SCHEMA confide, confide_keys, confide_audit TO confide_service;
GRANT SELECT ON confide.cell TO confide_service;
GRANT USAGE ON SCHEMA confide_migrations TO confide_service;  -- a worker refuses to start on another revision
GRANT SELECT ON ALL TABLES IN SCHEMA confide_migrations TO confide_service;
GRANT SELECT, INSERT, UPDATE ON confide.tenant, confide.api_key, confide.enrolment, confide.job TO confide_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    confide.container, confide.container_label, confide.container_key, confide.context_object, confide.turn,
    confide.idempotency TO confide_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA confide_keys TO confide_service;
GRANT SELECT, INSERT ON confide_audit.journal TO confide_service;
GRANT SELECT, INSERT, DELETE ON confide_audit.erasable TO confide_service;
GRANT SELECT, INSERT, UPDATE ON confide_audit.writer TO confide_service;

-- ---------------------------------------------------------------- questions that cross tenants: ids only

-- Which tenant an API key belongs to, before there is a tenant to name.
CREATE FUNCTION confide.api_key_by_id(p_id uuid) RETURNS SETOF confide.api_key
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT * FROM confide.api_key WHERE id = p_id $$;
CREATE FUNCTION confide.enrolment_by_id(p_id uuid) RETURNS SETOF confide.enrolment
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT * FROM confide.enrolment WHERE id = p_id $$;
CREATE FUNCTION confide.tenant_ids(p_after uuid, p_limit integer) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT id FROM confide.tenant WHERE id > p_after ORDER BY id LIMIT p_limit $$;
CREATE FUNCTION confide.due_containers(p_now timestamptz, p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT c.tenant_id, c.id FROM confide.container c WHERE c.sweep_at <= p_now ORDER BY c.sweep_at LIMIT p_limit $$;
CREATE FUNCTION confide.open_jobs(p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT j.tenant_id, j.id FROM confide.job j WHERE j.state IN ('queued', 'running')
       AND (j.claimed_until IS NULL OR j.claimed_until < now()) ORDER BY j.created_at LIMIT p_limit $$;

-- One partition a day, made ahead; the default partition catches what no partition was made for.
CREATE FUNCTION confide_audit.make_journal_partition(p_day date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    name text := 'journal_' || to_char(p_day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(7203551);
    IF to_regclass('confide_audit.' || name) IS NOT NULL THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM confide_audit.journal_default WHERE time >= p_day AND time < p_day + 1) THEN
        RETURN;  -- its rows stay where they are: they are never moved
    END IF;
    EXECUTE format('CREATE TABLE confide_audit.%I PARTITION OF confide_audit.journal FOR VALUES FROM (%L) TO (%L)',
                   name, p_day::text || ' 00:00:00+00', (p_day + 1)::text || ' 00:00:00+00');
    EXECUTE format('ALTER TABLE confide_audit.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE confide_audit.%I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY owner ON confide_audit.%I TO confide_owner USING (true)', name);
    EXECUTE format('CREATE TRIGGER journal_is_not_truncated BEFORE TRUNCATE ON confide_audit.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION confide_audit.refuse()', name);
END $$;
