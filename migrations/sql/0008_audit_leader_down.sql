-- Undoes 0008_audit_leader.sql. What retention dropped stays dropped.
DROP FUNCTION confide_audit.drop_event_partition, confide_audit.month_ranges, confide_audit.months;
DROP TABLE confide_audit.dropped;
ALTER TABLE confide_audit.sealer DROP COLUMN term, DROP COLUMN lease_until, DROP COLUMN locked;

-- Drop a month of events, whole: past the retention of every tenant in it, under a checkpoint, and exported.
-- The tree's nodes stay. Answers the ranges that went.
CREATE FUNCTION confide_audit.drop_event_partition(p_month date)
RETURNS TABLE (tenant_id uuid, epoch integer, first bigint, beyond bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    month date := date_trunc('month', p_month::timestamp)::date;
    name text := 'event_' || to_char(month, 'YYYYMM');
    r record;
    kept integer;
    covered int8multirange;
BEGIN
    IF to_regclass('confide_audit.' || name) IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('LOCK TABLE confide_audit.%I IN ACCESS EXCLUSIVE MODE', name);
    FOR r IN EXECUTE format('SELECT tenant_id, epoch, min(leaf) AS first, max(leaf) + 1 AS beyond, count(*) AS rows,
                             max(time) AS newest FROM confide_audit.%I GROUP BY 1, 2', name)
    LOOP
        SELECT coalesce((SELECT t.months FROM confide_audit.retention t WHERE t.tenant_id = r.tenant_id), 13) INTO kept;
        IF greatest(r.newest, (month + interval '1 month') AT TIME ZONE 'UTC') > now() - kept * interval '1 month' THEN
            RAISE EXCEPTION 'tenant %: the month is kept for % months', r.tenant_id, kept;
        END IF;
        IF r.rows <> r.beyond - r.first THEN
            RAISE EXCEPTION 'tenant %: the month is not a whole range of leaves', r.tenant_id;
        END IF;
        IF NOT EXISTS (SELECT FROM confide_audit.checkpoint c WHERE c.tenant_id = r.tenant_id AND c.epoch = r.epoch
                       AND c.size >= r.beyond) THEN
            RAISE EXCEPTION 'tenant %: no checkpoint covers the month', r.tenant_id;
        END IF;
        SELECT range_agg(int8range(x.first, x.beyond)) INTO covered FROM confide_audit.exported x
        WHERE x.tenant_id = r.tenant_id AND x.epoch = r.epoch;
        IF covered IS NULL OR NOT covered @> int8range(r.first, r.beyond) THEN
            RAISE EXCEPTION 'tenant %: the month is not exported', r.tenant_id;
        END IF;
        tenant_id := r.tenant_id; epoch := r.epoch; first := r.first; beyond := r.beyond;
        RETURN NEXT;
    END LOOP;
    EXECUTE format('DROP TABLE confide_audit.%I', name);
    EXECUTE format('DROP TABLE confide_audit.%I', 'event_object_' || to_char(month, 'YYYYMM'));
END $$;

REVOKE EXECUTE ON FUNCTION confide_audit.drop_event_partition FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide_audit.drop_event_partition TO confide_service;
