-- A runtime's own hold and legal holds don't know of each other; detections also look for leaves that are gone; a
-- consent is for what it allows; where a vault stands is asked for at once.

-- ---------------------------------------------------------------- holds

-- What a runtime wants held. A container's `hold` says whether anything holds it: this, or an open legal hold on it or on
-- its subject.
ALTER TABLE confide.container ADD COLUMN own_hold boolean NOT NULL DEFAULT false;
UPDATE confide.container c SET own_hold = true WHERE c.hold AND coalesce((
    SELECT bool_or(c.id = ANY (h.held_before)) FROM confide.legal_hold h WHERE h.tenant_id = c.tenant_id
    AND h.container_id IN (c.id, c.subject_id) AND h.released_at IS NULL), true);
ALTER TABLE confide.legal_hold DROP COLUMN held_before;

DROP TRIGGER legal_hold_stays ON confide.container;
DROP FUNCTION confide.keep_legal_hold();
CREATE FUNCTION confide.derive_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.hold := NEW.own_hold OR EXISTS (
        SELECT FROM confide.legal_hold h WHERE h.tenant_id = NEW.tenant_id
        AND h.container_id IN (NEW.id, NEW.subject_id) AND h.released_at IS NULL);
    RETURN NEW;
END $$;
CREATE TRIGGER hold_is_derived BEFORE UPDATE OF hold, own_hold ON confide.container
    FOR EACH ROW WHEN (OLD.hold OR NEW.hold OR NEW.own_hold) EXECUTE FUNCTION confide.derive_hold();

-- A request changes the runtime's own.
DO $$
DECLARE
    was CONSTANT text := $q$hold = coalesce((j.v ->> 'hold')::boolean, c.hold),$q$;
    text_of text := pg_get_functiondef('confide.write'::regproc);
BEGIN
    IF position(was IN text_of) = 0 THEN
        RAISE EXCEPTION 'confide.write is not the one that this migration changes';
    END IF;
    EXECUTE replace(text_of, was, $q$own_hold = coalesce((j.v ->> 'hold')::boolean, c.own_hold),$q$);
END $$;

-- ---------------------------------------------------------------- detections

-- Numbers that are missing between a writer's first and last event of a period; and, of the present only, leaves that are
-- missing in the newest part of a sealed log (no writer is named). One snapshot: a log's size and its leaves go together.
CREATE OR REPLACE FUNCTION confide.audit_gaps(p_since timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, writer uuid, missing bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT j.tenant_id, j.writer, max(j.seq) - min(j.seq) + 1 - count(DISTINCT j.seq) FROM confide_audit.journal j
    WHERE j.time >= p_since AND j.time < p_until GROUP BY 1, 2
    HAVING max(j.seq) - min(j.seq) + 1 <> count(DISTINCT j.seq)
    UNION ALL
    SELECT l.tenant_id, NULL, l.size - a.first - b.found
    FROM confide_audit.log l
    CROSS JOIN LATERAL (SELECT coalesce(min(e.leaf), l.size - 1) AS first FROM confide_audit.event e
                        WHERE e.tenant_id = l.tenant_id AND e.epoch = l.epoch AND e.time >= p_since) a
    CROSS JOIN LATERAL (SELECT count(*) AS found FROM confide_audit.event e WHERE e.tenant_id = l.tenant_id
                        AND e.epoch = l.epoch AND e.leaf >= a.first AND e.leaf < l.size) b
    WHERE l.size > 0 AND l.sealed_at >= p_since AND p_until > now() - interval '1 hour'
      AND b.found <> l.size - a.first $$;

-- ---------------------------------------------------------------- consents

-- Of what there is something to allow. Where the caller of an export sits nobody here can know.
ALTER TABLE confide.consent DROP CONSTRAINT consent_scope_check;
ALTER TABLE confide.consent ADD CONSTRAINT consent_scope_check
    CHECK (scope IN ('kms', 'audit-stream', 'incident-notice')) NOT VALID;

-- ---------------------------------------------------------------- keys abroad

-- Where a vault stands only the vault can tell, and bindings from before 0009 were never asked: the next watch asks them.
UPDATE confide_keys.binding SET described_at = '-infinity'
WHERE provider = 'azure-key-vault' AND transfer_to IS NULL AND described_at IS NOT NULL;

REVOKE EXECUTE ON FUNCTION confide.derive_hold FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide.derive_hold TO confide_service;
