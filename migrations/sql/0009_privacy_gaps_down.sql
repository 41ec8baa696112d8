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
