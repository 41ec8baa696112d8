-- Residency, retention, erasure, incidents, evidence. Nothing here holds a name or a text in the clear: ids, codes, times,
-- counts, and what is sealed.

-- ---------------------------------------------------------------- legal holds

CREATE TABLE confide.legal_hold (
    tenant_id    uuid NOT NULL,
    id           uuid NOT NULL,
    container_id uuid NOT NULL,
    reason       bytea NOT NULL,          -- sealed
    held_before  uuid[] NOT NULL,         -- what a runtime held already: it stays held when this one is released
    set_by       uuid NOT NULL,           -- principal
    api_key      uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    released_at  timestamptz,
    released_by  uuid,
    PRIMARY KEY (tenant_id, id),
    CHECK ((released_at IS NULL) = (released_by IS NULL))
);
CREATE INDEX legal_hold_open ON confide.legal_hold (tenant_id, container_id) WHERE released_at IS NULL;

-- A runtime may set a hold on a session and lift its own; it can't lift one that an administrator set with a reason.
CREATE FUNCTION confide.keep_legal_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM confide.legal_hold h WHERE h.tenant_id = NEW.tenant_id
               AND h.container_id IN (NEW.id, NEW.subject_id) AND h.released_at IS NULL) THEN
        NEW.hold := true;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER legal_hold_stays BEFORE UPDATE OF hold ON confide.container
    FOR EACH ROW WHEN (OLD.hold AND NOT NEW.hold) EXECUTE FUNCTION confide.keep_legal_hold();

-- ---------------------------------------------------------------- consents, contacts, acceptances, bulk reads, attestations

CREATE TABLE confide.consent (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    scope       text NOT NULL CHECK (scope IN ('kms', 'audit-stream', 'incident-notice', 'export')),
    destination text NOT NULL CHECK (destination ~ '^[a-z0-9-]{2,32}$'),
    safeguard   text NOT NULL CHECK (safeguard IN ('adequacy', 'scc', 'bcr', 'explicit-consent', 'derogation')),
    granted_by  uuid NOT NULL,
    api_key     uuid NOT NULL,
    granted_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    revoked_at  timestamptz,
    revoked_by  uuid,
    PRIMARY KEY (tenant_id, id),
    CHECK (expires_at > granted_at)
);

CREATE TABLE confide.notice_contact (
    tenant_id  uuid PRIMARY KEY,
    url        text NOT NULL,             -- sealed under the cell's key: it may hold a secret
    host       text NOT NULL,
    region     text NOT NULL,
    set_by     uuid NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE confide.trust_acceptance (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    document    text NOT NULL CHECK (document ~ '^[a-z0-9-]{1,63}$'),
    version     text NOT NULL CHECK (version ~ '^[A-Za-z0-9._-]{1,63}$'),
    digest      text NOT NULL,
    accepted_by uuid NOT NULL,
    api_key     uuid NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE confide.bulk_read (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('subject', 'session', 'tenant')),
    purpose     text NOT NULL,
    api_key     uuid NOT NULL,
    principal   uuid NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    containers  integer NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX bulk_read_recent ON confide.bulk_read (tenant_id, kind, started_at);

-- What an erasure or an offboarding has removed: the receipt is made from it.
CREATE TABLE confide.erased (
    tenant_id    uuid NOT NULL,
    job_id       uuid NOT NULL,
    container_id uuid NOT NULL,
    kind         text NOT NULL,
    objects      bigint NOT NULL,
    turns        bigint NOT NULL,
    keys         bigint NOT NULL,
    event_id     uuid NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, job_id, container_id)
);

-- Receipts, certificates, statements: signed texts over ids, times and counts.
CREATE TABLE confide.attestation (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('erasure', 'offboarding', 'statement', 'evidence')),
    about      uuid NOT NULL,
    note       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX attestation_about ON confide.attestation (tenant_id, about);

-- ---------------------------------------------------------------- incidents

-- The cell's (nil tenant). Deadlines are fixed when it is opened and count from detection.
CREATE TABLE confide.incident (
    tenant_id     uuid NOT NULL CHECK (tenant_id = '00000000-0000-0000-0000-000000000000'),
    id            uuid NOT NULL,
    kind          text NOT NULL CHECK (kind ~ '^[a-z][a-z-]{0,62}$'),
    dedupe        text UNIQUE,            -- what a detection has drafted once, it doesn't draft again
    draft         boolean NOT NULL,
    detected_at   timestamptz NOT NULL,
    customer_due  timestamptz NOT NULL,
    authority_due timestamptz NOT NULL,
    opened_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    CHECK (customer_due > detected_at AND authority_due > detected_at)
);

CREATE TABLE confide.incident_entry (
    tenant_id   uuid NOT NULL CHECK (tenant_id = '00000000-0000-0000-0000-000000000000'),
    incident_id uuid NOT NULL,
    number      integer NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind        text NOT NULL CHECK (kind IN ('drafted', 'opened', 'phase', 'note', 'notified', 'scoped', 'overdue', 'closed')),
    actor       uuid,                     -- principal; none: the service itself
    audience    text CHECK (audience IN ('customer', 'authority')),
    affected    uuid,                     -- a tenant
    detail      jsonb NOT NULL DEFAULT '{}',
    words       text,                     -- sealed under the cell's key
    PRIMARY KEY (tenant_id, incident_id, number)
);

-- Each affected tenant's own part of a blast radius: the tenant may read it, and no other's.
CREATE TABLE confide.incident_part (
    tenant_id   uuid NOT NULL,
    incident_id uuid NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    scope       jsonb NOT NULL,
    containers  jsonb NOT NULL,
    PRIMARY KEY (tenant_id, incident_id, at)
);

CREATE TABLE confide.notice (
    tenant_id    uuid NOT NULL,
    id           uuid NOT NULL,
    incident_id  uuid NOT NULL,
    audience     text NOT NULL,
    body         text NOT NULL,           -- ids, times, counts
    created_at   timestamptz NOT NULL DEFAULT now(),
    attempts     integer NOT NULL DEFAULT 0,
    next_at      timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    last_error   text,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX notice_waiting ON confide.notice (next_at) WHERE delivered_at IS NULL;

CREATE TRIGGER incident_is_fixed BEFORE UPDATE OR DELETE ON confide.incident
    FOR EACH ROW EXECUTE FUNCTION confide_audit.refuse();
CREATE TRIGGER incident_entry_is_append_only BEFORE UPDATE OR DELETE ON confide.incident_entry
    FOR EACH ROW EXECUTE FUNCTION confide_audit.refuse();
CREATE TRIGGER incident_entry_is_not_truncated BEFORE TRUNCATE ON confide.incident_entry
    FOR EACH STATEMENT EXECUTE FUNCTION confide_audit.refuse();
CREATE TRIGGER incident_part_is_append_only BEFORE UPDATE OR DELETE ON confide.incident_part
    FOR EACH ROW EXECUTE FUNCTION confide_audit.refuse();

-- ---------------------------------------------------------------- removing containers

-- Removes containers with their rows and keys. A container that somebody is writing to is left for the next round, so that
-- no traffic waits. Modes: 'due' (only what has expired), 'erase' (asked for), 'replay' (erased before; holds don't count).
-- Statuses: removed, held, due-later, and no row for what is absent or locked.
CREATE FUNCTION confide.remove_containers(p_tenant uuid[], p_container uuid[], p_mode text)
RETURNS TABLE (tenant_id uuid, id uuid, kind text, status text, objects bigint, turns bigint, keys bigint)
LANGUAGE plpgsql VOLATILE SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_tenant uuid[];
    v_id uuid[];
    v_kind text[];
    v_status text[];
    v_gone_tenant uuid[];
    v_gone uuid[];
    v_objects jsonb;
    v_turns jsonb;
    v_keys jsonb;
BEGIN
    WITH locked AS MATERIALIZED (
        SELECT c.tenant_id, c.id, c.kind, c.hold OR coalesce(s.hold, false) AS held, c.expires_at
        FROM unnest(p_tenant, p_container) AS a (tenant, container)
        JOIN confide.container c ON c.tenant_id = a.tenant AND c.id = a.container
        LEFT JOIN confide.container s ON s.tenant_id = c.tenant_id AND s.id = c.subject_id
        FOR UPDATE OF c SKIP LOCKED
    )
    SELECT array_agg(l.tenant_id), array_agg(l.id), array_agg(l.kind),
           array_agg(CASE WHEN p_mode = 'replay' THEN 'removed'
                          WHEN p_mode = 'due' AND (l.expires_at IS NULL OR l.expires_at > now()) THEN 'due-later'
                          WHEN l.held THEN 'held' ELSE 'removed' END)
    INTO v_tenant, v_id, v_kind, v_status FROM locked l;
    IF v_id IS NULL THEN
        RETURN;
    END IF;
    IF p_mode = 'due' THEN
        -- What isn't due by its exact time moves on; what is held is looked at again in an hour.
        UPDATE confide.container c
        SET sweep_at = CASE a.status WHEN 'held' THEN now() + interval '1 hour' ELSE c.expires_at END
        FROM unnest(v_tenant, v_id, v_status) AS a (tenant, id, status)
        WHERE a.status <> 'removed' AND c.tenant_id = a.tenant AND c.id = a.id;
    END IF;
    SELECT array_agg(a.tenant), array_agg(a.id) INTO v_gone_tenant, v_gone
    FROM unnest(v_tenant, v_id, v_status) AS a (tenant, id, status) WHERE a.status = 'removed';
    IF v_gone IS NOT NULL THEN
        WITH d AS (DELETE FROM confide.context_object o USING unnest(v_gone_tenant, v_gone) AS a (tenant, id)
                   WHERE o.tenant_id = a.tenant AND o.container_id = a.id RETURNING o.container_id)
        SELECT jsonb_object_agg(g.container_id, g.n) INTO v_objects
        FROM (SELECT d.container_id, count(*) AS n FROM d GROUP BY 1) g;
        WITH d AS (DELETE FROM confide.turn o USING unnest(v_gone_tenant, v_gone) AS a (tenant, id)
                   WHERE o.tenant_id = a.tenant AND o.container_id = a.id RETURNING o.container_id)
        SELECT jsonb_object_agg(g.container_id, g.n) INTO v_turns
        FROM (SELECT d.container_id, count(*) AS n FROM d GROUP BY 1) g;
        WITH d AS (DELETE FROM confide.container_key o USING unnest(v_gone_tenant, v_gone) AS a (tenant, id)
                   WHERE o.tenant_id = a.tenant AND o.container_id = a.id RETURNING o.container_id)
        SELECT jsonb_object_agg(g.container_id, g.n) INTO v_keys
        FROM (SELECT d.container_id, count(*) AS n FROM d GROUP BY 1) g;
        DELETE FROM confide.container_label o USING unnest(v_gone_tenant, v_gone) AS a (tenant, id)
        WHERE o.tenant_id = a.tenant AND o.container_id = a.id;
        DELETE FROM confide.container o USING unnest(v_gone_tenant, v_gone) AS a (tenant, id)
        WHERE o.tenant_id = a.tenant AND o.id = a.id;
    END IF;
    RETURN QUERY
    SELECT a.tenant, a.id, a.kind, a.status, coalesce((v_objects ->> a.id::text)::bigint, 0),
           coalesce((v_turns ->> a.id::text)::bigint, 0), coalesce((v_keys ->> a.id::text)::bigint, 0)
    FROM unnest(v_tenant, v_id, v_kind, v_status) AS a (tenant, id, kind, status);
END $$;

-- ---------------------------------------------------------------- questions that cross tenants: ids and times only

CREATE FUNCTION confide.oldest_due(p_now timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT c.sweep_at FROM confide.container c WHERE c.sweep_at <= p_now ORDER BY c.sweep_at LIMIT 1 $$;

-- Answers to repeated requests are kept for 24 hours.
CREATE FUNCTION confide.drop_old_answers(p_limit integer) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
    WITH d AS (DELETE FROM confide.idempotency WHERE (tenant_id, key_tag) IN (
        SELECT i.tenant_id, i.key_tag FROM confide.idempotency i WHERE i.created_at < now() - interval '25 hours'
        LIMIT p_limit) RETURNING 1)
    SELECT count(*) FROM d $$;

-- What the audit journal says was deleted since: to complete the deletion journal after a crash.
CREATE FUNCTION confide.deleted_since(p_since timestamptz)
RETURNS TABLE (tenant_id uuid, at timestamptz, action text, container uuid, object uuid, version uuid, low bigint, high bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    WITH recent AS MATERIALIZED (
        SELECT j.tenant_id, j.time, j.action, j.container, j.objects, j.versions, j.turns FROM confide_audit.journal j
        WHERE j.time >= p_since AND j.outcome = 'allowed' AND j.container IS NOT NULL
          AND (j.action IN ('session.delete', 'context.delete', 'retention.expire', 'privacy.erasure', 'turns.pop',
                            'turns.clear')
               OR (j.action = 'context.commit' AND (j.objects IS NOT NULL OR j.turns IS NOT NULL))))
    SELECT r.tenant_id, r.time, r.action, r.container, NULL::uuid, NULL::uuid, NULL::bigint, NULL::bigint FROM recent r
    WHERE r.action IN ('session.delete', 'context.delete', 'retention.expire', 'privacy.erasure')
      AND NOT EXISTS (SELECT FROM confide.container c WHERE c.tenant_id = r.tenant_id AND c.id = r.container)
    UNION ALL
    SELECT r.tenant_id, r.time, r.action, r.container, o.id, o.version, NULL, NULL
    FROM recent r CROSS JOIN LATERAL unnest(r.objects, r.versions) AS o (id, version)
    WHERE r.action IN ('context.delete', 'context.commit')
      AND EXISTS (SELECT FROM confide.container c WHERE c.tenant_id = r.tenant_id AND c.id = r.container)
      AND NOT EXISTS (SELECT FROM confide.context_object e WHERE e.tenant_id = r.tenant_id
                      AND e.container_id = r.container AND e.id = o.id)
    UNION ALL
    SELECT r.tenant_id, r.time, r.action, r.container, NULL, NULL, u.number, u.number
    FROM recent r JOIN confide.turn u ON u.tenant_id = r.tenant_id AND u.container_id = r.container
         AND u.number BETWEEN r.turns[1] AND r.turns[2] AND u.removed_at IS NOT NULL
    WHERE r.turns IS NOT NULL $$;

CREATE FUNCTION confide.waiting_notices(p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT n.tenant_id, n.id FROM confide.notice n WHERE n.delivered_at IS NULL AND n.next_at <= now()
       ORDER BY n.next_at LIMIT p_limit $$;

-- What detections look at: events that point to a breach, counted by tenant, caller and reason.
-- Openings, which are many, are counted from p_opened on only.
CREATE FUNCTION confide.suspicious(p_since timestamptz, p_opened timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, what text, principal text, events bigint, containers bigint, first_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' SET enable_seqscan = on SET enable_bitmapscan = on AS $$
    SELECT j.tenant_id,
           CASE WHEN j.action = 'tamper.refused' THEN 'tampered'
                WHEN j.reason = 'api-key' OR (j.action = 'api-key.denied' AND j.facts::jsonb #>> '{detail,revoked}' IS NOT NULL)
                    THEN 'revoked-api-key'
                WHEN j.outcome = 'denied' THEN 'denied'
                ELSE 'opened' END,
           -- Facts of requests begin with the caller: a cut costs less than parsing millions of rows.
           CASE WHEN pg_catalog.starts_with(j.facts, '{"principal":"') THEN pg_catalog.substr(j.facts, 15, 36)
                ELSE j.facts::jsonb ->> 'principal' END, count(*), count(DISTINCT j.container), min(j.time)
    FROM confide_audit.journal j
    WHERE j.time >= p_since AND j.time < p_until
      AND (j.outcome = 'denied' OR (j.time >= p_opened AND j.outcome = 'allowed' AND j.action IN
           ('context.load', 'context.read', 'context.export', 'session.read', 'session.lookup', 'turns.read', 'branch')))
    GROUP BY 1, 2, 3 $$;

-- Which containers were opened, by whom, when: from sealed events. A time window alone crosses all tenants of the cell.
CREATE FUNCTION confide.blast_radius(p_tenants uuid[], p_principal uuid, p_api_key uuid, p_trk integer,
                                     p_since timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, container uuid, kind text, subject uuid, stored boolean, events bigint,
               first_at timestamptz, last_at timestamptz, generations integer[])
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' SET enable_seqscan = on SET enable_bitmapscan = on AS $$
    SELECT g.tenant_id, g.container, coalesce(c.kind, 'erased'), c.subject_id, c.id IS NOT NULL, g.events, g.first_at,
           g.last_at, g.generations
    FROM (
        SELECT e.tenant_id, e.container, count(*) AS events, min(e.time) AS first_at, max(e.time) AS last_at,
               array_agg(DISTINCT (x.v ->> 'trk')::integer) FILTER (WHERE x.v ? 'trk') AS generations
        FROM confide_audit.event e,
             LATERAL (SELECT CASE WHEN coalesce(p_principal, p_api_key) IS NOT NULL OR p_trk IS NOT NULL
                                  THEN pg_catalog.convert_from(e.entry, 'UTF8')::jsonb END AS v OFFSET 0) x
        WHERE e.tenant_id = ANY (p_tenants) AND e.time >= p_since AND e.time < p_until AND e.outcome = 'allowed'
          AND e.container IS NOT NULL AND e.purpose IS NOT NULL
          AND (p_principal IS NULL OR e.principal = p_principal) AND (p_api_key IS NULL OR e.api_key = p_api_key)
          AND (p_trk IS NULL OR (x.v ->> 'trk')::integer = p_trk)
        GROUP BY 1, 2) g
    LEFT JOIN confide.container c ON c.tenant_id = g.tenant_id AND c.id = g.container $$;

-- Whose log an API key or a principal can stand in.
CREATE FUNCTION confide.tenants_of(p_principal uuid, p_api_key uuid) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT DISTINCT k.tenant_id FROM confide.api_key k
       WHERE (p_api_key IS NULL OR k.id = p_api_key) AND (p_principal IS NULL OR k.principal = p_principal) $$;

-- Numbers that are missing between a writer's first and last event of a period, by tenant.
CREATE FUNCTION confide.audit_gaps(p_since timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, writer uuid, missing bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT j.tenant_id, j.writer, max(j.seq) - min(j.seq) + 1 - count(DISTINCT j.seq) FROM confide_audit.journal j
    WHERE j.time >= p_since AND j.time < p_until GROUP BY 1, 2
    HAVING max(j.seq) - min(j.seq) + 1 <> count(DISTINCT j.seq) $$;

-- ---------------------------------------------------------------- walls

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['legal_hold', 'consent', 'notice_contact', 'trust_acceptance', 'bulk_read', 'erased', 'attestation',
                             'incident', 'incident_entry', 'incident_part', 'notice']
    LOOP
        EXECUTE format('ALTER TABLE confide.%I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE confide.%I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY named_tenants ON confide.%I TO confide_service USING (tenant_id = ANY ((SELECT confide.tenants())::uuid[]))', t);
        EXECUTE format('CREATE POLICY owner ON confide.%I TO confide_owner USING (true)', t);
    END LOOP;
END $$;

GRANT SELECT, INSERT, UPDATE ON confide.legal_hold, confide.consent, confide.notice_contact, confide.bulk_read, confide.notice
    TO confide_service;
GRANT SELECT, INSERT ON confide.trust_acceptance, confide.erased, confide.attestation, confide.incident, confide.incident_entry,
    confide.incident_part TO confide_service;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA confide FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA confide TO confide_service;
