DROP FUNCTION confide.blast_radius(uuid[], uuid, uuid, integer, timestamptz, timestamptz, uuid[], timestamptz[]);
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
DROP FUNCTION confide.key_transitions(uuid[], timestamptz);
DROP FUNCTION confide.last_event();
DROP FUNCTION confide.dropped_log(uuid[], timestamptz, timestamptz);

CREATE OR REPLACE FUNCTION confide.suspicious(p_since timestamptz, p_opened timestamptz, p_until timestamptz)
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
DROP TABLE confide.detection_mark;

DROP TRIGGER legal_hold_begins ON confide.container;
DROP FUNCTION confide.hold_new_session();

CREATE OR REPLACE FUNCTION confide.due_probes(p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT b.tenant_id, b.id FROM confide_keys.binding b WHERE b.state IN ('revoked', 'unavailable')
       AND b.probe_at <= now() ORDER BY b.probe_at LIMIT p_limit $$;
CREATE OR REPLACE FUNCTION confide.due_descriptions(p_seconds integer, p_limit integer) RETURNS TABLE (tenant_id uuid, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT b.tenant_id, b.id FROM confide_keys.binding b WHERE b.state IN ('active', 'retiring')
       AND b.provider <> 'vendor' AND b.described_at <= now() - p_seconds * interval '1 second'
       ORDER BY b.described_at LIMIT p_limit $$;
DROP FUNCTION confide.unconsented_bindings(integer);
DROP INDEX confide_keys.binding_abroad;
ALTER TABLE confide_keys.binding DROP COLUMN transfer_to;
DROP FUNCTION confide.consent_stands(uuid, text, text);

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA confide FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA confide TO confide_service;
