ALTER TABLE confide.consent DROP CONSTRAINT consent_scope_check;
ALTER TABLE confide.consent ADD CONSTRAINT consent_scope_check
    CHECK (scope IN ('kms', 'audit-stream', 'incident-notice', 'export'));

CREATE OR REPLACE FUNCTION confide.audit_gaps(p_since timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, writer uuid, missing bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT j.tenant_id, j.writer, max(j.seq) - min(j.seq) + 1 - count(DISTINCT j.seq) FROM confide_audit.journal j
    WHERE j.time >= p_since AND j.time < p_until GROUP BY 1, 2
    HAVING max(j.seq) - min(j.seq) + 1 <> count(DISTINCT j.seq) $$;

DO $$
DECLARE
    text_of text := pg_get_functiondef('confide.write'::regproc);
BEGIN
    EXECUTE replace(text_of, $q$own_hold = coalesce((j.v ->> 'hold')::boolean, c.own_hold),$q$,
                    $q$hold = coalesce((j.v ->> 'hold')::boolean, c.hold),$q$);
END $$;

DROP TRIGGER hold_is_derived ON confide.container;
DROP FUNCTION confide.derive_hold();
ALTER TABLE confide.legal_hold ADD COLUMN held_before uuid[] NOT NULL DEFAULT '{}';
ALTER TABLE confide.legal_hold ALTER COLUMN held_before DROP DEFAULT;
UPDATE confide.legal_hold h SET held_before = coalesce((
    SELECT array_agg(c.id) FROM confide.container c WHERE c.tenant_id = h.tenant_id AND c.own_hold
    AND (c.id = h.container_id OR c.subject_id = h.container_id)), '{}') WHERE h.released_at IS NULL;
ALTER TABLE confide.container DROP COLUMN own_hold;

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
REVOKE EXECUTE ON FUNCTION confide.keep_legal_hold FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide.keep_legal_hold TO confide_service;
