-- One sealer leads for a term. The advisory lock frees itself when its holder's connection ends; a holder that stands
-- still keeps it, so that the lease decides: whoever finds it run out takes the next term, and nobody of an older term
-- can commit anything, because each of the leader's transactions renews the lease under its own term.
ALTER TABLE confide_audit.sealer ADD COLUMN term bigint NOT NULL DEFAULT 0,
    ADD COLUMN lease_until timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN locked boolean NOT NULL DEFAULT true;   -- whether the leader has the lock too, or the lease alone

-- Ranges of leaves whose events retention has dropped. The tree's hashes stay.
CREATE TABLE confide_audit.dropped (
    tenant_id  uuid NOT NULL,
    epoch      integer NOT NULL,
    first      bigint NOT NULL,
    beyond     bigint NOT NULL CHECK (beyond > first),
    oldest     timestamptz NOT NULL,      -- times of the events that went
    newest     timestamptz NOT NULL,
    events     bigint NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, epoch, first)
);
SELECT confide_audit.guard('confide_audit.dropped');
ALTER TABLE confide_audit.dropped ENABLE ROW LEVEL SECURITY;
ALTER TABLE confide_audit.dropped FORCE ROW LEVEL SECURITY;
CREATE POLICY named_tenants ON confide_audit.dropped TO confide_service
    USING (tenant_id = ANY ((SELECT confide.tenants())::uuid[]));
CREATE POLICY owner ON confide_audit.dropped TO confide_owner USING (true);
CREATE POLICY own_tenant ON confide_audit.dropped FOR SELECT TO confide_auditor
    USING (tenant_id = ANY ((SELECT confide_audit.my_tenants())::uuid[]));
GRANT SELECT ON confide_audit.dropped TO confide_auditor;
GRANT SELECT ON confide_audit.dropped TO confide_service;

-- Drop a month of events, whole: past the retention of every tenant in it, under a checkpoint, and exported.
-- The tree's nodes stay. Answers the ranges that went.
DROP FUNCTION confide_audit.drop_event_partition(date);
CREATE FUNCTION confide_audit.drop_event_partition(p_month date)
RETURNS TABLE (tenant_id uuid, epoch integer, first bigint, beyond bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    month date := date_trunc('month', p_month::timestamp)::date;
    name text := 'event_' || to_char(month, 'YYYYMM');
    r record;
    why text;
BEGIN
    IF to_regclass('confide_audit.' || name) IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('LOCK TABLE confide_audit.%I IN ACCESS EXCLUSIVE MODE', name);
    FOR r IN SELECT * FROM confide_audit.month_ranges(month) LOOP
        IF r.why IS NOT NULL THEN
            RAISE EXCEPTION 'tenant %: %', r.tenant_id, r.why;
        END IF;
        INSERT INTO confide_audit.dropped (tenant_id, epoch, first, beyond, oldest, newest, events)
        VALUES (r.tenant_id, r.epoch, r.first, r.beyond, r.oldest, r.newest, r.events);
        tenant_id := r.tenant_id; epoch := r.epoch; first := r.first; beyond := r.beyond;
        RETURN NEXT;
    END LOOP;
    EXECUTE format('DROP TABLE confide_audit.%I', name);
    EXECUTE format('DROP TABLE confide_audit.%I', 'event_object_' || to_char(month, 'YYYYMM'));
END $$;

-- A month's ranges of leaves, and why each may not go yet (NULL: it may).
CREATE FUNCTION confide_audit.month_ranges(p_month date)
RETURNS TABLE (tenant_id uuid, epoch integer, first bigint, beyond bigint, events bigint, oldest timestamptz,
               newest timestamptz, why text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    name text := 'event_' || to_char(p_month, 'YYYYMM');
    kept integer;
    covered int8multirange;
BEGIN
    IF to_regclass('confide_audit.' || name) IS NULL THEN
        RETURN;
    END IF;
    FOR tenant_id, epoch, first, beyond, events, oldest, newest IN
        EXECUTE format('SELECT tenant_id, epoch, min(leaf), max(leaf) + 1, count(*), min(time), max(time)
                        FROM confide_audit.%I GROUP BY 1, 2', name)
    LOOP
        SELECT coalesce((SELECT t.months FROM confide_audit.retention t WHERE t.tenant_id = month_ranges.tenant_id), 13)
        INTO kept;
        SELECT range_agg(int8range(x.first, x.beyond)) INTO covered FROM confide_audit.exported x
        WHERE x.tenant_id = month_ranges.tenant_id AND x.epoch = month_ranges.epoch;
        why := CASE
            WHEN greatest(newest, (p_month + interval '1 month') AT TIME ZONE 'UTC') > now() - kept * interval '1 month'
                THEN format('the month is kept for %s months', kept)
            WHEN events <> beyond - first THEN 'the month is not a whole range of leaves'
            WHEN NOT EXISTS (SELECT FROM confide_audit.checkpoint c WHERE c.tenant_id = month_ranges.tenant_id
                             AND c.epoch = month_ranges.epoch AND c.size >= month_ranges.beyond)
                THEN 'no checkpoint covers the month'
            WHEN covered IS NULL OR NOT covered @> int8range(first, beyond) THEN 'the month is not exported'
        END;
        RETURN NEXT;
    END LOOP;
END $$;

-- Months that have their events, oldest first.
CREATE FUNCTION confide_audit.months() RETURNS SETOF date
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT to_date(substr(c.relname, 7), 'YYYYMM') FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'confide_audit.event'::regclass AND c.relname ~ '^event_[0-9]{6}$'
    ORDER BY 1 $$;

REVOKE EXECUTE ON FUNCTION confide_audit.drop_event_partition, confide_audit.month_ranges, confide_audit.months
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide_audit.drop_event_partition, confide_audit.month_ranges, confide_audit.months
    TO confide_service;
