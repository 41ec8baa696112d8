-- Undoes 0007_key_upkeep.sql. Containers that stand half under one index key and half under another can't be told in the
-- older schema: the revision stays while an exchange of an index key is under way.
DO $$
BEGIN
    IF EXISTS (SELECT FROM confide_keys.index_key WHERE bound IS NOT NULL OR state = 'pending') THEN
        RAISE EXCEPTION 'an index key is being exchanged: wait until the rekey is done';
    END IF;
END $$;
DELETE FROM confide_keys.index_key WHERE state = 'retiring' AND retired_at IS NOT NULL;
DROP FUNCTION confide.due_index_keys, confide.former_answers, confide.claim_flight, confide.release_flight,
    confide.note_vendor_version, confide.note_denial, confide.denied_owners, confide.denied_lately, confide.claim_vendor_look,
    confide.due_vendor_wraps;
DROP TABLE confide_keys.kms_flight, confide_keys.denial_seen, confide_keys.vendor_kek;
ALTER TABLE confide_keys.root_key DROP COLUMN vendor_wrapped_at;
DROP INDEX confide_keys.root_key_by_vendor_version, confide_keys.index_key_retiring;
ALTER TABLE confide_keys.index_key DROP COLUMN bound, DROP COLUMN retired_at;
ALTER TABLE confide.container DROP COLUMN index_number;
