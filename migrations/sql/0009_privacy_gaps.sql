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

REVOKE EXECUTE ON FUNCTION confide.consent_stands, confide.unconsented_bindings, confide.hold_new_session FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide.consent_stands, confide.unconsented_bindings, confide.hold_new_session TO confide_service;
