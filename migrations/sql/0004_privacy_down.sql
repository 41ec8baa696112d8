-- Undoes 0004_privacy.sql.
DROP TRIGGER legal_hold_stays ON confide.container;
DROP FUNCTION confide.keep_legal_hold, confide.remove_containers, confide.oldest_due, confide.drop_old_answers,
    confide.deleted_since, confide.waiting_notices, confide.suspicious, confide.audit_gaps,
    confide.blast_radius, confide.tenants_of;
DROP TABLE confide.notice, confide.incident_part, confide.incident_entry, confide.incident, confide.attestation,
    confide.bulk_read, confide.erased, confide.trust_acceptance, confide.notice_contact, confide.consent, confide.legal_hold;
