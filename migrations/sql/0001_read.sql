-- The statement that reads: checks the tenant's state and epoch, the API key's state and the container's existence, reads
-- what was asked, and inserts one audit event a container, in one round trip and one commit.
--
-- A batch holds targets (one container and one event each); a target has a caller and selectors. A caller is an API key, its
-- tenant and the epoch that the worker's keys are of; he is judged once, however many of a batch's requests are his.
-- A row comes back for each target ('h'), each container key that the worker lacks ('k'), each object ('o'), each turn ('t').
-- Statuses: ok, api-key, suspended, sealed, revoked, epoch (the worker's keys are stale), absent.

CREATE FUNCTION confide.read(
    p_tenants text, p_writer uuid, p_flush bigint, p_time timestamptz,
    c_tenant uuid[], c_api_key uuid[], c_epoch bigint[],
    t_caller int[], t_event uuid[], t_seq bigint[], t_action text[], t_facts text[],
    t_container uuid[], t_kind text[], t_want int[],
    s_target int[], s_type text[], s_id uuid[], s_tag uuid[], s_after bigint[], s_before bigint[],
    s_version uuid[], s_limit int[], s_bytes bigint[]
) RETURNS TABLE (
    target int, row_type text, id uuid, version uuid, number bigint, ck_generation int, commit_number bigint,
    content_type text, created_at timestamptz, updated_at timestamptz, body bytea, selector int, extra jsonb
) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('confide.tenants', p_tenants, true);
    UPDATE confide_audit.writer SET flush = p_flush WHERE id = p_writer AND flush = p_flush - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this writer was fenced off' USING ERRCODE = 'CF001';
    END IF;
    RETURN QUERY
    WITH caller AS MATERIALIZED (
        SELECT array_agg(CASE WHEN k.id IS NULL OR k.revoked_at <= now() OR k.expires_at <= now() THEN 'api-key'
                              WHEN t.state IS DISTINCT FROM 'active' THEN 'suspended'
                              WHEN t.key_state = 'sealed' THEN 'sealed'
                              WHEN t.key_state = 'revoked' THEN 'revoked'
                              WHEN t.epoch <> c.epoch THEN 'epoch'
                              ELSE 'ok' END ORDER BY c.n) AS status
        FROM unnest(c_tenant, c_api_key, c_epoch) WITH ORDINALITY AS c (tenant, api_key, epoch, n)
        LEFT JOIN LATERAL (SELECT * FROM confide.tenant b WHERE b.id = c.tenant LIMIT 1) t ON true
        LEFT JOIN LATERAL (
            SELECT * FROM confide.api_key b WHERE b.tenant_id = c.tenant AND b.id = c.api_key LIMIT 1) k ON true
    ), tgt AS MATERIALIZED (
        SELECT a.n::int AS n, a.event, a.seq, a.action, a.facts, a.want, c_tenant[a.caller] AS tenant,
               CASE WHEN caller.status[a.caller] <> 'ok' THEN caller.status[a.caller]
                    WHEN c.id IS NULL OR (c.expires_at <= now() AND NOT c.hold) THEN 'absent'
                    ELSE 'ok' END AS status,
               c.id AS container, c.kind, c.subject_id, c.meta_version, c.meta, c.meta_ck, c.ck_generation,
               c.commit_number, c.turn_head, c.ttl_absolute_seconds, c.ttl_idle_seconds, c.hold, c.created_at,
               c.updated_at, c.expires_at
        FROM caller CROSS JOIN unnest(t_caller, t_event, t_seq, t_action, t_facts, t_container, t_kind, t_want) WITH ORDINALITY
             AS a (caller, event, seq, action, facts, container, kind, want, n)
        LEFT JOIN LATERAL (
            SELECT * FROM confide.container b
            WHERE caller.status[a.caller] = 'ok' AND b.tenant_id = c_tenant[a.caller] AND b.id = a.container
              AND b.kind = a.kind LIMIT 1) c ON true
    ), sel AS MATERIALIZED (
        SELECT s.n::int AS n, s.target, s.type, s.id, s.tag, s.after, s.before, s.version, s.lim, s.bytes, tgt.tenant,
               tgt.container, tgt.want, tgt.ck_generation
        FROM unnest(s_target, s_type, s_id, s_tag, s_after, s_before, s_version, s_limit, s_bytes)
             WITH ORDINALITY AS s (target, type, id, tag, after, before, version, lim, bytes, n)
        JOIN tgt ON tgt.n = s.target AND tgt.status = 'ok'
    ), obj AS MATERIALIZED (
        SELECT sel.n, sel.target, o.id, o.version, o.ck_generation, o.commit_number, o.content_type, o.created_at,
               o.updated_at, o.body
        FROM sel CROSS JOIN LATERAL (
            SELECT b.id, b.version, b.ck_generation, b.commit_number, b.content_type, b.created_at, b.updated_at, b.body
            FROM confide.context_object b
            WHERE sel.type = 'object' AND b.tenant_id = sel.tenant AND b.container_id = sel.container AND b.id = sel.id
            UNION ALL
            SELECT b.id, b.version, b.ck_generation, b.commit_number, b.content_type, b.created_at, b.updated_at, b.body
            FROM (SELECT l.*, sum(l.size) OVER (ORDER BY l.version DESC) - l.size AS ahead
                  FROM confide.context_object l
                  WHERE sel.type = 'list' AND l.tenant_id = sel.tenant AND l.container_id = sel.container
                    AND (sel.id IS NULL OR l.collection_tag = sel.id)
                    AND (sel.tag IS NULL OR position(decode(replace(sel.tag::text, '-', ''), 'hex') IN l.tags) > 0)
                    AND (sel.version IS NULL OR l.version < sel.version)
                  ORDER BY l.version DESC LIMIT sel.lim) b
            WHERE b.ahead <= sel.bytes
        ) o
    ), trn AS MATERIALIZED (
        SELECT sel.n, sel.target, u.id, u.number, u.ck_generation, u.commit_number, u.content_type, u.created_at, u.body
        FROM sel CROSS JOIN LATERAL (
            SELECT b.* FROM (
                SELECT l.*, sum(l.size) OVER (ORDER BY l.number DESC) - l.size AS ahead FROM confide.turn l
                WHERE sel.type = 'turns-before' AND l.tenant_id = sel.tenant AND l.container_id = sel.container
                  AND l.number < sel.before AND l.removed_at IS NULL
                ORDER BY l.number DESC LIMIT sel.lim) b
            WHERE b.ahead <= sel.bytes
            UNION ALL
            SELECT b.* FROM (
                SELECT l.*, sum(l.size) OVER (ORDER BY l.number) - l.size AS ahead FROM confide.turn l
                WHERE sel.type = 'turns-after' AND l.tenant_id = sel.tenant AND l.container_id = sel.container
                  AND l.number > sel.after AND l.removed_at IS NULL
                ORDER BY l.number LIMIT sel.lim) b
            WHERE b.ahead <= sel.bytes
        ) u
    ), seen AS (
        SELECT obj.target, array_agg(obj.id) AS objects, array_agg(obj.version) AS versions FROM obj GROUP BY obj.target
    ), heard AS (
        SELECT trn.target, ARRAY[min(trn.number), max(trn.number)] AS turns FROM trn GROUP BY trn.target
    ), event AS (
        INSERT INTO confide_audit.journal
            (tenant_id, id, time, writer, seq, flush, action, outcome, reason, container, objects, versions, turns, facts)
        SELECT tgt.tenant, tgt.event, p_time, p_writer, tgt.seq, p_flush, tgt.action,
               CASE tgt.status WHEN 'ok' THEN 'allowed' WHEN 'epoch' THEN 'failed' ELSE 'denied' END,
               nullif(tgt.status, 'ok'), tgt.container, seen.objects, seen.versions, heard.turns, tgt.facts
        FROM tgt LEFT JOIN seen ON seen.target = tgt.n LEFT JOIN heard ON heard.target = tgt.n
    )
    SELECT tgt.n, 'h', tgt.container, tgt.meta_version, tgt.turn_head, tgt.ck_generation, tgt.commit_number, tgt.status,
           tgt.created_at, tgt.updated_at, CASE WHEN tgt.want > 1 THEN tgt.meta END, tgt.meta_ck,
           CASE WHEN tgt.want > 1 THEN jsonb_build_object(
               'kind', tgt.kind, 'subject', tgt.subject_id, 'ttl_absolute', tgt.ttl_absolute_seconds,
               'ttl_idle', tgt.ttl_idle_seconds, 'hold', tgt.hold,
               'expires', extract(epoch FROM tgt.expires_at)) END
    FROM tgt
    UNION ALL
    SELECT tgt.n, 'k', k.container_id, NULL, k.generation, k.trk_generation, NULL, NULL, NULL, NULL, k.sealed, NULL, NULL
    FROM tgt CROSS JOIN LATERAL (
        SELECT * FROM confide.container_key b WHERE b.tenant_id = tgt.tenant AND b.container_id = tgt.container OFFSET 0) k
    WHERE tgt.status = 'ok' AND tgt.want IN (1, 3)
    UNION ALL
    SELECT obj.target, 'o', obj.id, obj.version, NULL, obj.ck_generation, obj.commit_number, obj.content_type,
           obj.created_at, obj.updated_at, obj.body, obj.n, NULL
    FROM obj
    UNION ALL
    SELECT trn.target, 't', trn.id, NULL, trn.number, trn.ck_generation, trn.commit_number, trn.content_type,
           trn.created_at, NULL, trn.body, trn.n, NULL
    FROM trn;
END $$;
