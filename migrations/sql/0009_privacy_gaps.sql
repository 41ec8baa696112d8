-- What privacy still lacked: keys abroad stand on a consent, sessions begun after a hold are held, detections remember how
-- far they have looked.

-- ---------------------------------------------------------------- keys abroad

-- The region that a binding's key is in, where that is not at home (the cell's region, or the same country's at another
-- cloud). Each KMS call with it is a transfer, and needs a consent of scope kms that stands.
ALTER TABLE confide_keys.binding ADD COLUMN transfer_to text CHECK (transfer_to ~ '^[a-z0-9-]{2,32}$');
UPDATE confide_keys.binding b SET transfer_to = split_part(b.fields ->> 'key_arn', ':', 4)
WHERE b.provider = 'aws-kms' AND split_part(b.fields ->> 'key_arn', ':', 4) <> (SELECT c.region FROM confide.cell c);
CREATE INDEX binding_abroad ON confide_keys.binding (tenant_id) WHERE transfer_to IS NOT NULL AND state <> 'retired';

CREATE FUNCTION confide.consent_stands(p_tenant uuid, p_scope text, p_destination text) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = '' AS
    $$ SELECT EXISTS (SELECT FROM confide.consent c WHERE c.tenant_id = p_tenant AND c.scope = p_scope
                      AND c.destination = p_destination AND c.revoked_at IS NULL AND c.expires_at > now()) $$;

-- Bindings that open or seal although the consent that they need has been revoked or has ended.
CREATE FUNCTION confide.unconsented_bindings(p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT b.tenant_id, b.id FROM confide_keys.binding b
       WHERE b.transfer_to IS NOT NULL AND b.state IN ('active', 'unavailable', 'retiring')
       AND NOT confide.consent_stands(b.tenant_id, 'kms', b.transfer_to) LIMIT p_limit $$;

-- Without the consent a key abroad isn't asked for anything.
CREATE OR REPLACE FUNCTION confide.due_probes(p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT b.tenant_id, b.id FROM confide_keys.binding b WHERE b.state IN ('revoked', 'unavailable')
       AND b.probe_at <= now() AND (b.transfer_to IS NULL OR confide.consent_stands(b.tenant_id, 'kms', b.transfer_to))
       ORDER BY b.probe_at LIMIT p_limit $$;
CREATE OR REPLACE FUNCTION confide.due_descriptions(p_seconds integer, p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT b.tenant_id, b.id FROM confide_keys.binding b WHERE b.state IN ('active', 'retiring')
       AND b.provider <> 'vendor' AND b.described_at <= now() - p_seconds * interval '1 second'
       AND (b.transfer_to IS NULL OR confide.consent_stands(b.tenant_id, 'kms', b.transfer_to))
       ORDER BY b.described_at LIMIT p_limit $$;

-- ---------------------------------------------------------------- holds

-- A session that a held subject begins is held from its first statement on.
CREATE FUNCTION confide.hold_new_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.hold := EXISTS (SELECT FROM confide.legal_hold h WHERE h.tenant_id = NEW.tenant_id
                        AND h.container_id = NEW.subject_id AND h.released_at IS NULL);
    RETURN NEW;
END $$;
CREATE TRIGGER legal_hold_begins BEFORE INSERT ON confide.container
    FOR EACH ROW WHEN (NEW.subject_id IS NOT NULL AND NOT NEW.hold) EXECUTE FUNCTION confide.hold_new_session();

-- ---------------------------------------------------------------- detections

-- How far detections have looked: what happened while no worker looked is looked at later.
CREATE TABLE confide.detection_mark (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    looked_to timestamptz NOT NULL
) WITH (fillfactor = 20);
GRANT SELECT, INSERT, UPDATE ON confide.detection_mark TO confide_service;

-- What detections look at: events that point to a breach, counted by tenant, caller and reason; openings, which are many,
-- from p_opened on only. The journal has every event of the last two days, sealed or not (drop_journal_partition refuses a
-- younger day); what is older is taken from the sealed log too.
CREATE OR REPLACE FUNCTION confide.suspicious(p_since timestamptz, p_opened timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, what text, principal text, events bigint, containers bigint, first_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' SET enable_seqscan = on SET enable_bitmapscan = on AS $$
    WITH old AS (
        SELECT e.tenant_id, e.id, e.time, e.action, e.outcome, e.container, pg_catalog.convert_from(e.entry, 'UTF8') AS facts
        FROM (SELECT t.id FROM confide.tenant t WHERE p_since < now() - interval '47 hours'
              UNION ALL SELECT '00000000-0000-0000-0000-000000000000'::uuid WHERE p_since < now() - interval '47 hours') t,
             LATERAL (SELECT * FROM confide_audit.event b WHERE b.tenant_id = t.id AND b.time >= p_since AND b.time < p_until
                      AND (b.outcome = 'denied' OR b.time >= p_opened)) e
        WHERE NOT EXISTS (SELECT FROM confide_audit.journal j WHERE j.time = e.time AND j.id = e.id)),
    seen AS (
        SELECT j.tenant_id, j.time, j.action, j.outcome, j.reason, j.container, j.facts FROM confide_audit.journal j
        WHERE j.time >= p_since AND j.time < p_until AND (j.outcome = 'denied' OR j.time >= p_opened)
        UNION ALL
        SELECT o.tenant_id, o.time, o.action, o.outcome, o.facts::jsonb ->> 'reason', o.container, o.facts FROM old o),
    judged AS (
        SELECT s.tenant_id, s.time, s.container, s.facts,
               CASE WHEN s.action = 'tamper.refused' THEN 'tampered'
                    WHEN s.outcome = 'denied' AND (s.reason = 'api-key'
                         OR (s.action = 'api-key.denied' AND s.facts::jsonb #> '{detail,revoked}' IS NOT NULL))
                        THEN 'revoked-api-key'
                    WHEN s.outcome = 'denied' AND s.reason IN ('scope', 'purpose', 'unauthenticated') THEN 'denied'
                    WHEN s.outcome = 'allowed' AND s.time >= p_opened AND s.action IN
                         ('context.load', 'context.read', 'context.export', 'session.read', 'session.lookup', 'turns.read',
                          'branch') THEN 'opened' END AS what
        FROM seen s)
    SELECT j.tenant_id, j.what,
           -- Facts of requests begin with the caller: a cut costs less than parsing millions of rows.
           CASE WHEN pg_catalog.starts_with(j.facts, '{"principal":"') THEN pg_catalog.substr(j.facts, 15, 36)
                ELSE j.facts::jsonb ->> 'principal' END,
           -- One event may stand for many: a count, or a count for each reason that points to guessing.
           sum(CASE WHEN j.what <> 'denied' THEN 1
                    WHEN j.facts::jsonb #> '{detail,count}' IS NOT NULL THEN (j.facts::jsonb #>> '{detail,count}')::bigint
                    WHEN j.facts::jsonb ? 'principal' THEN 1
                    ELSE (SELECT coalesce(sum(d.value::bigint), 0)
                          FROM pg_catalog.jsonb_each_text(j.facts::jsonb -> 'detail') d
                          WHERE d.key IN ('unknown', 'secret', 'malformed', 'source', 'enrolment')) END)::bigint,
           count(DISTINCT j.container), min(j.time)
    FROM judged j WHERE j.what IS NOT NULL GROUP BY 1, 2, 3 $$;

-- ---------------------------------------------------------------- restores

-- When anything last happened: how old the state of a restored database is.
CREATE FUNCTION confide.last_event() RETURNS timestamptz LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    SET enable_seqscan = on AS $$
    SELECT greatest((SELECT max(j.time) FROM confide_audit.journal j), (SELECT max(l.sealed_at) FROM confide_audit.log l)) $$;

-- Ranges of leaves that retention has dropped and that held events of a period: what a count over it lacks.
CREATE FUNCTION confide.dropped_log(p_tenants uuid[], p_since timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, epoch integer, first bigint, beyond bigint, newest timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT d.tenant_id, d.epoch, d.first, d.beyond, d.newest FROM confide_audit.dropped d
    WHERE d.tenant_id = ANY (p_tenants) AND d.newest >= p_since AND d.oldest < p_until ORDER BY 1, 2, 3 $$;

-- ---------------------------------------------------------------- blast radius

-- When a tenant's keys were sealed, revoked, unavailable, and back: what the log says, the oldest first.
CREATE FUNCTION confide.key_transitions(p_tenants uuid[], p_until timestamptz)
RETURNS TABLE (tenant_id uuid, "time" timestamptz, action text, detail jsonb)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT e.tenant_id, e.time, e.action, pg_catalog.convert_from(e.entry, 'UTF8')::jsonb -> 'detail'
    FROM unnest(p_tenants) AS t (id), LATERAL (
        SELECT * FROM confide_audit.event b WHERE b.tenant_id = t.id
        AND b.action IN ('key.seal', 'key.unseal', 'binding.state') AND b.outcome = 'allowed' AND b.time < p_until) e
    ORDER BY e.tenant_id, e.time, e.epoch, e.leaf $$;

-- Which containers were opened, by whom, when: from sealed events. A time window alone crosses all tenants of the cell.
-- p_cuts are moments of p_cut_tenants: openings are counted in the periods between them, numbered from 0. The text of the
-- query depends on what is asked, so that the index of that is used.
DROP FUNCTION confide.blast_radius(uuid[], uuid, uuid, integer, timestamptz, timestamptz);
CREATE FUNCTION confide.blast_radius(p_tenants uuid[], p_principal uuid, p_api_key uuid, p_trk integer,
                                     p_since timestamptz, p_until timestamptz, p_cut_tenants uuid[], p_cuts timestamptz[])
RETURNS TABLE (tenant_id uuid, container uuid, kind text, subject uuid, stored boolean, events bigint,
               first_at timestamptz, last_at timestamptz, generations integer[], periods integer[], period_events bigint[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = '' SET enable_seqscan = on SET enable_bitmapscan = on
    SET enable_hashjoin = on SET jit = off SET work_mem = '64MB' AS $$
BEGIN
    RETURN QUERY EXECUTE $q$
    WITH cuts AS (
        SELECT u.tenant, array_agg(u.at ORDER BY u.at) AS at FROM unnest($7, $8) AS u (tenant, at) GROUP BY 1),
    found AS NOT MATERIALIZED (
        SELECT e.tenant_id, e.container, e.time, e.entry, pg_catalog.position(e.entry, '\x2274726b223a'::bytea) AS at  -- "trk":
        FROM confide_audit.event e
        WHERE e.tenant_id = ANY ($1) AND e.time >= $5 AND e.time < $6 AND e.outcome = 'allowed'
          AND e.container IS NOT NULL AND e.purpose IS NOT NULL
    $q$ || CASE WHEN p_principal IS NOT NULL THEN ' AND e.principal = $2' ELSE '' END
        || CASE WHEN p_api_key IS NOT NULL THEN ' AND e.api_key = $3' ELSE '' END
        || $q$ OFFSET 0),
    counted AS (
        SELECT e.tenant_id, e.container, coalesce(width_bucket(e.time, c.at), 0) AS period,
               -- A leaf is canonical JSON, in which a quote within a text is escaped: these bytes are the member's name.
               -- Most generations have one digit, and a comma after it.
               CASE WHEN e.at = 0 THEN NULL
                    WHEN pg_catalog.get_byte(e.entry, e.at + 6) = 44 THEN pg_catalog.get_byte(e.entry, e.at + 5) - 48
                    ELSE split_part(split_part(pg_catalog.encode(pg_catalog.substr(e.entry, e.at + 6, 12), 'escape'),
                                               ',', 1), '}', 1)::integer END AS trk,
               count(*) AS n, min(e.time) AS first_at, max(e.time) AS last_at
        FROM found e LEFT JOIN cuts c ON c.tenant = e.tenant_id GROUP BY 1, 2, 3, 4),
    openings AS (
        SELECT o.tenant_id, o.container, sum(o.n)::bigint AS n, min(o.first_at) AS first_at, max(o.last_at) AS last_at,
               array_agg(DISTINCT o.trk) FILTER (WHERE o.trk IS NOT NULL) AS generations,
               array_agg(o.period) AS periods, array_agg(o.n) AS period_events
        FROM counted o WHERE $4 IS NULL OR o.trk = $4 GROUP BY 1, 2)
    SELECT g.tenant_id, g.container, coalesce(c.kind, 'erased'), c.subject_id, c.id IS NOT NULL, g.n, g.first_at,
           g.last_at, g.generations, g.periods, g.period_events
    FROM openings g LEFT JOIN confide.container c ON c.tenant_id = g.tenant_id AND c.id = g.container
    $q$ USING p_tenants, p_principal, p_api_key, p_trk, p_since, p_until, p_cut_tenants, p_cuts;
END $$;

REVOKE EXECUTE ON FUNCTION confide.consent_stands, confide.unconsented_bindings, confide.hold_new_session,
    confide.last_event, confide.dropped_log, confide.key_transitions, confide.blast_radius FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide.consent_stands, confide.unconsented_bindings, confide.hold_new_session,
    confide.last_event, confide.dropped_log, confide.key_transitions, confide.blast_radius TO confide_service;
