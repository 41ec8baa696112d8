-- The sealed audit log: events in leaf order, the tree over them, checkpoints, streams.
--
-- Only the sealer writes here, in one transaction a batch: events, their places, the nodes that they complete, the log's
-- head and the writers' marks. Months are those of sealing, so that a partition holds a whole range of leaves of each log.

-- ---------------------------------------------------------------- logs

-- A log is a tenant's tree under one origin; a restored database starts the next epoch. The head is the sealer's state,
-- not evidence: it is held against the witness file before anything is signed.
CREATE TABLE confide_audit.log (
    tenant_id  uuid NOT NULL,
    epoch      integer NOT NULL CHECK (epoch >= 1),
    size       bigint NOT NULL DEFAULT 0 CHECK (size >= 0),
    frontier   bytea NOT NULL,            -- app.audit.merkle.Frontier.to_bytes
    sealed_at  timestamptz NOT NULL,      -- of the last leaf; never goes back
    opened_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, epoch)
) WITH (fillfactor = 50);

-- How far each writer's flushes are sealed. Written together with the events.
CREATE TABLE confide_audit.sealer_mark (
    writer     uuid PRIMARY KEY,
    flush      bigint NOT NULL,
    time       timestamptz NOT NULL       -- of the last event sealed
) WITH (fillfactor = 50);

CREATE TABLE confide_audit.event (
    tenant_id  uuid NOT NULL,
    epoch      integer NOT NULL,
    leaf       bigint NOT NULL,
    sealed_at  timestamptz NOT NULL,
    id         uuid NOT NULL,
    time       timestamptz NOT NULL,
    action     text NOT NULL,
    outcome    text NOT NULL,
    principal  uuid,
    api_key    uuid,
    container  uuid,
    kek        text,
    kms_request_id text,
    purpose    text,
    entry      bytea NOT NULL,            -- the leaf entry, byte for byte
    PRIMARY KEY (tenant_id, epoch, leaf, sealed_at)
) PARTITION BY RANGE (sealed_at);
ALTER TABLE confide_audit.event ALTER COLUMN entry SET STORAGE EXTENDED;
CREATE INDEX event_by_id ON confide_audit.event (tenant_id, id);
CREATE INDEX event_by_time ON confide_audit.event (tenant_id, time, id);
CREATE INDEX event_by_action ON confide_audit.event (tenant_id, action, time, id);
CREATE INDEX event_by_outcome ON confide_audit.event (tenant_id, outcome, time, id) WHERE outcome <> 'allowed';
CREATE INDEX event_by_principal ON confide_audit.event (tenant_id, principal, time, id) WHERE principal IS NOT NULL;
CREATE INDEX event_by_api_key ON confide_audit.event (tenant_id, api_key, time, id) WHERE api_key IS NOT NULL;
CREATE INDEX event_by_container ON confide_audit.event (tenant_id, container, time, id) WHERE container IS NOT NULL;
CREATE INDEX event_by_kek ON confide_audit.event (tenant_id, kek, time, id) WHERE kek IS NOT NULL;
CREATE INDEX event_by_kms_request ON confide_audit.event (tenant_id, kms_request_id, time, id)
    WHERE kms_request_id IS NOT NULL;
CREATE INDEX event_by_purpose ON confide_audit.event (tenant_id, purpose, time, id)
    WHERE purpose IS NOT NULL AND purpose <> 'serve';

-- Which events name an object. A side table, because operators on arrays are not leakproof: behind row-level security
-- an index on an array would never be used.
CREATE TABLE confide_audit.event_object (
    tenant_id  uuid NOT NULL,
    object     uuid NOT NULL,
    time       timestamptz NOT NULL,
    id         uuid NOT NULL,
    sealed_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, object, time, id, sealed_at)
) PARTITION BY RANGE (sealed_at);

-- Perfect subtrees, from the leaf hashes (level 0) up. They outlive the events, so that the tree stays verifiable.
CREATE TABLE confide_audit.node (
    tenant_id  uuid NOT NULL,
    epoch      integer NOT NULL,
    level      smallint NOT NULL,
    index      bigint NOT NULL,
    hash       bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (tenant_id, epoch, level, index)
);

CREATE TABLE confide_audit.checkpoint (
    tenant_id  uuid NOT NULL,
    epoch      integer NOT NULL,
    size       bigint NOT NULL,
    key_id     bytea NOT NULL CHECK (length(key_id) = 4),
    root       bytea NOT NULL CHECK (length(root) = 32),
    note       bytea NOT NULL,
    signed_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, epoch, size, key_id)
);

-- Ranges that an export carried out of the service whole. What was not exported is not dropped.
CREATE TABLE confide_audit.exported (
    tenant_id  uuid NOT NULL,
    epoch      integer NOT NULL,
    first      bigint NOT NULL,
    beyond     bigint NOT NULL CHECK (beyond > first),
    exported_at timestamptz NOT NULL DEFAULT now(),
    event      uuid NOT NULL,             -- of the audit.export event
    PRIMARY KEY (tenant_id, epoch, first, beyond, event)
);

CREATE TABLE confide_audit.retention (
    tenant_id  uuid PRIMARY KEY,
    months     integer NOT NULL CHECK (months BETWEEN 12 AND 120)
);

-- Everything sealed up to here, where no clock jumped; readers of the unsealed tail begin a little before it.
CREATE TABLE confide_audit.sealer (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    leader     uuid,
    swept_to   timestamptz NOT NULL DEFAULT '-infinity',
    seen_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20);
INSERT INTO confide_audit.sealer DEFAULT VALUES;

-- Pushes to tenants' receivers. The secret that signs them is derived, not stored.
CREATE TABLE confide_audit.stream (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    url        text NOT NULL CHECK (length(url) <= 2048),
    region     text NOT NULL,
    epoch      integer NOT NULL,
    next_leaf  bigint NOT NULL,
    failures   integer NOT NULL DEFAULT 0,
    last_error text,
    last_ok_at timestamptz,
    next_try_at timestamptz NOT NULL DEFAULT now(),
    dropped    bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 50);

-- Logins that auditors bring their own SQL client with, and the one tenant that each of them sees.
CREATE TABLE confide_audit.auditor (
    login      name NOT NULL,
    tenant_id  uuid NOT NULL,
    PRIMARY KEY (login, tenant_id)
);

-- ---------------------------------------------------------------- append-only

CREATE FUNCTION confide_audit.guard(p_table regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER is_append_only BEFORE UPDATE OR DELETE ON %s
                    FOR EACH ROW EXECUTE FUNCTION confide_audit.refuse()', p_table);
    EXECUTE format('CREATE TRIGGER is_not_truncated BEFORE TRUNCATE ON %s
                    FOR EACH STATEMENT EXECUTE FUNCTION confide_audit.refuse()', p_table);
END $$;
SELECT confide_audit.guard(t::regclass) FROM unnest(ARRAY[
    'confide_audit.event', 'confide_audit.event_object', 'confide_audit.node', 'confide_audit.checkpoint',
    'confide_audit.exported']) AS t;

-- ---------------------------------------------------------------- walls

CREATE FUNCTION confide_audit.my_tenants() RETURNS uuid[] LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
    $$ SELECT coalesce(array_agg(tenant_id), '{}') FROM confide_audit.auditor WHERE login = session_user $$;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['log', 'event', 'event_object', 'node', 'checkpoint', 'exported', 'retention', 'stream'] LOOP
        EXECUTE format('ALTER TABLE confide_audit.%I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE confide_audit.%I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY named_tenants ON confide_audit.%I TO confide_service
                        USING (tenant_id = ANY ((SELECT confide.tenants())::uuid[]))', t);
        EXECUTE format('CREATE POLICY owner ON confide_audit.%I TO confide_owner USING (true)', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['log', 'event', 'node', 'checkpoint'] LOOP
        EXECUTE format('CREATE POLICY own_tenant ON confide_audit.%I FOR SELECT TO confide_auditor
                        USING (tenant_id = ANY ((SELECT confide_audit.my_tenants())::uuid[]))', t);
    END LOOP;
END $$;

-- What auditors' own logins see: security_invoker, so that the policies judge the login and not the view's owner.
CREATE VIEW confide_audit.events WITH (security_invoker = true, security_barrier = true) AS
    SELECT tenant_id, epoch, leaf, id, time, action, outcome, principal, api_key, container, kek, kms_request_id, purpose,
           convert_from(entry, 'UTF8') AS entry, sealed_at
    FROM confide_audit.event;
CREATE VIEW confide_audit.checkpoints WITH (security_invoker = true, security_barrier = true) AS
    SELECT tenant_id, epoch, size, root, convert_from(note, 'UTF8') AS note, signed_at FROM confide_audit.checkpoint;

GRANT USAGE ON SCHEMA confide_audit TO confide_auditor;
GRANT SELECT ON confide_audit.event, confide_audit.node, confide_audit.checkpoint, confide_audit.log,
    confide_audit.events, confide_audit.checkpoints TO confide_auditor;

GRANT SELECT, INSERT ON confide_audit.event, confide_audit.event_object, confide_audit.node, confide_audit.checkpoint,
    confide_audit.exported TO confide_service;
GRANT SELECT, INSERT, UPDATE ON confide_audit.log, confide_audit.sealer_mark, confide_audit.retention, confide_audit.stream
    TO confide_service;
GRANT SELECT, UPDATE ON confide_audit.sealer TO confide_service;

-- ---------------------------------------------------------------- the sealer's questions, which cross tenants

-- Journal rows that are not sealed yet, at most p_step flushes of each writer, with the last flush that each writer had
-- committed at the same moment. p_since bounds the search by time; p_writer asks for one writer only.
CREATE FUNCTION confide_audit.unsealed(p_since timestamptz, p_step bigint, p_writer uuid)
RETURNS TABLE (tenant_id uuid, id uuid, "time" timestamptz, writer uuid, seq bigint, flush bigint, action text,
               outcome text, reason text, container uuid, objects uuid[], versions uuid[], turns bigint[],
               commit_number bigint, facts text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' SET enable_seqscan = on SET enable_bitmapscan = on
    SET enable_hashjoin = on AS $$
    SELECT j.tenant_id, j.id, j.time, j.writer, j.seq, j.flush, j.action, j.outcome, j.reason, j.container, j.objects,
           j.versions, j.turns, j.commit_number, j.facts
    FROM (SELECT w.id, coalesce(m.flush, 0) AS mark, CASE WHEN w.flush < 0 THEN -w.flush - 1 ELSE w.flush END AS top
          FROM confide_audit.writer w LEFT JOIN confide_audit.sealer_mark m ON m.writer = w.id
          WHERE p_writer IS NULL OR w.id = p_writer) w
    JOIN confide_audit.journal j ON j.writer = w.id AND j.flush > w.mark
        AND j.flush <= least(w.top, w.mark + p_step)
    WHERE w.top > w.mark AND j.time >= p_since
$$;

-- Writers with flushes that are not sealed: how many, and since when.
CREATE FUNCTION confide_audit.waiting_writers()
RETURNS TABLE (writer uuid, mark bigint, top bigint, "time" timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT w.id, coalesce(m.flush, 0), CASE WHEN w.flush < 0 THEN -w.flush - 1 ELSE w.flush END,
           coalesce(m.time, w.started_at)
    FROM confide_audit.writer w LEFT JOIN confide_audit.sealer_mark m ON m.writer = w.id
    WHERE CASE WHEN w.flush < 0 THEN -w.flush - 1 ELSE w.flush END > coalesce(m.flush, 0)
$$;

-- The newest epoch's head of every log. Hashes and sizes, no events.
CREATE FUNCTION confide_audit.heads() RETURNS SETOF confide_audit.log
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT DISTINCT ON (tenant_id) * FROM confide_audit.log ORDER BY tenant_id, epoch DESC $$;

-- Logs that grew since their last checkpoint.
CREATE FUNCTION confide_audit.unsigned_logs(p_key bytea) RETURNS TABLE (tenant_id uuid, epoch integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT l.tenant_id, l.epoch FROM confide_audit.heads() l
    WHERE l.size > 0 AND NOT EXISTS (SELECT FROM confide_audit.checkpoint c WHERE c.tenant_id = l.tenant_id
                                     AND c.epoch = l.epoch AND c.size = l.size AND c.key_id = p_key) $$;

CREATE FUNCTION confide_audit.due_streams(p_now timestamptz, p_limit integer) RETURNS SETOF confide_audit.stream
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT s.* FROM confide_audit.stream s JOIN confide_audit.log l ON l.tenant_id = s.tenant_id AND l.epoch = s.epoch
    WHERE s.deleted_at IS NULL AND s.next_try_at <= p_now AND (s.next_leaf < l.size OR EXISTS (
        SELECT FROM confide_audit.log n WHERE n.tenant_id = s.tenant_id AND n.epoch > s.epoch))
    ORDER BY s.next_try_at LIMIT p_limit $$;

-- Operators see counts of a cell's events, never an event.
CREATE FUNCTION confide_audit.counts(p_since timestamptz, p_until timestamptz)
RETURNS TABLE (tenant_id uuid, action text, outcome text, events bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT e.tenant_id, e.action, e.outcome, count(*) FROM confide_audit.event e
    WHERE e.time >= p_since AND e.time < p_until GROUP BY 1, 2, 3 $$;

-- BRIN knows nothing of new pages until they are summarized; until then every search would read them.
CREATE FUNCTION confide_audit.summarize_journal() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    i regclass;
BEGIN
    FOR i IN SELECT c.oid FROM pg_catalog.pg_partition_tree('confide_audit.journal_by_time') t
             JOIN pg_catalog.pg_class c ON c.oid = t.relid WHERE t.isleaf
    LOOP
        PERFORM pg_catalog.brin_summarize_new_values(i);
    END LOOP;
END $$;

-- ---------------------------------------------------------------- partitions

CREATE FUNCTION confide_audit.make_event_partitions(p_month date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    parent text;
    name text;
    first date := date_trunc('month', p_month::timestamp)::date;
BEGIN
    PERFORM pg_advisory_xact_lock(7203552);
    FOREACH parent IN ARRAY ARRAY['event', 'event_object'] LOOP
        name := parent || '_' || to_char(first, 'YYYYMM');
        CONTINUE WHEN to_regclass('confide_audit.' || name) IS NOT NULL;
        EXECUTE format('CREATE TABLE confide_audit.%I PARTITION OF confide_audit.%I FOR VALUES FROM (%L) TO (%L)', name,
                       parent, first::text || ' 00:00:00+00', (first + interval '1 month')::date::text || ' 00:00:00+00');
        EXECUTE format('ALTER TABLE confide_audit.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE confide_audit.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY owner ON confide_audit.%I TO confide_owner USING (true)', name);
        EXECUTE format('CREATE TRIGGER is_not_truncated_itself BEFORE TRUNCATE ON confide_audit.%I
                        FOR EACH STATEMENT EXECUTE FUNCTION confide_audit.refuse()', name);
    END LOOP;
END $$;
SELECT confide_audit.make_event_partitions((now() AT TIME ZONE 'UTC')::date + n * 31) FROM generate_series(0, 1) AS n;

-- Drop a day of the journal whose every row is sealed. Answers how many rows went; raises where one is not sealed.
CREATE FUNCTION confide_audit.drop_journal_partition(p_day date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    name text := 'journal_' || to_char(p_day, 'YYYYMMDD');
    rows bigint;
    open bigint;
BEGIN
    IF p_day > (now() AT TIME ZONE 'UTC')::date - 2 THEN
        RAISE EXCEPTION 'a day of the journal stays for two days at least';
    END IF;
    IF to_regclass('confide_audit.' || name) IS NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format('LOCK TABLE confide_audit.%I IN ACCESS EXCLUSIVE MODE', name);
    EXECUTE format('SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM confide_audit.event e
        WHERE e.tenant_id = j.tenant_id AND e.id = j.id)) FROM confide_audit.%I j', name) INTO rows, open;
    IF open > 0 THEN
        RAISE EXCEPTION 'the journal of that day has % events that are not sealed', open;
    END IF;
    EXECUTE format('DROP TABLE confide_audit.%I', name);
    RETURN rows;
END $$;

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

-- An auditor's login sees one tenant from now on. The login itself is the administrator's to create:
--   CREATE ROLE acme_auditor LOGIN PASSWORD '...' IN ROLE confide_auditor;
CREATE FUNCTION confide_audit.admit_auditor(p_login name, p_tenant uuid) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO confide_audit.auditor (login, tenant_id) VALUES (p_login, p_tenant) ON CONFLICT DO NOTHING $$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA confide_audit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confide_audit.unsealed, confide_audit.waiting_writers, confide_audit.heads,
    confide_audit.unsigned_logs, confide_audit.due_streams, confide_audit.counts, confide_audit.summarize_journal,
    confide_audit.make_event_partitions, confide_audit.drop_journal_partition, confide_audit.drop_event_partition
    TO confide_service;
GRANT EXECUTE ON FUNCTION confide_audit.my_tenants TO confide_auditor, confide_service;
GRANT EXECUTE ON FUNCTION confide_audit.refuse, confide_audit.make_journal_partition TO confide_service;
