-- Undoes 0002_audit_tree.sql. The journal stays; what was sealed from partitions of it that were dropped is gone.
DROP VIEW confide_audit.events, confide_audit.checkpoints;
DROP TABLE confide_audit.event, confide_audit.event_object, confide_audit.node, confide_audit.checkpoint,
    confide_audit.exported, confide_audit.retention, confide_audit.sealer, confide_audit.sealer_mark CASCADE;
DROP TABLE confide_audit.stream, confide_audit.log CASCADE;
DROP FUNCTION confide_audit.my_tenants CASCADE;
DROP FUNCTION confide_audit.waiting_writers, confide_audit.unsealed, confide_audit.counts,
    confide_audit.unsigned_logs, confide_audit.summarize_journal, confide_audit.make_event_partitions,
    confide_audit.drop_journal_partition, confide_audit.drop_event_partition, confide_audit.admit_auditor,
    confide_audit.guard;
DROP TABLE confide_audit.auditor;
REVOKE USAGE ON SCHEMA confide_audit FROM confide_auditor;
