-- The statement that writes: checks what `confide.read` checks, and preconditions; applies each request whole or not at all;
-- and inserts one audit event a container, in one round trip and one commit. A container stands once in a batch.
--
-- Every writer locks the container's row first, in order of (tenant, id): so versions, commit numbers and turn numbers move
-- under one lock, and two batches can't wait for each other.
--
-- Sealed bodies come one after another in p_bodies: a driver copies one long value much faster than an array of them.
--
-- Rows come back: 'h' for each target, 'o' for each operation that answers something of its own, 't' for each popped turn.
-- Statuses: those of read, and replay, mismatch (idempotency), exists, gone (an expired container holds the external id), hold,
-- key (the container has moved to another key), commit, head, meta, guard (428), precondition, no-object.

CREATE FUNCTION confide.write(
    p_tenants text, p_writer uuid, p_flush bigint, p_time timestamptz,
    c_tenant uuid[], c_api_key uuid[], c_epoch bigint[],
    r_caller int[], r_guarded boolean[], r_idem bytea[], r_print bytea[], r_answer bytea[],
    t_request int[], t_event uuid[], t_seq bigint[], t_action text[], t_facts text[],
    t_container uuid[], t_kind text[], t_external uuid[], t_ck int[], t_new_key bytea[], t_trk int[], t_commit bigint[], t_head bigint[],
    t_make text[], t_change text[], t_meta bytea[],
    o_target int[], o_type text[], o_id uuid[], o_version uuid[], o_collection uuid[], o_tags bytea[],
    o_if uuid[], o_none boolean[], o_print bytea[], o_content text[], o_size int[], o_number bigint[],
    o_start int[], o_length int[], p_bodies bytea
) RETURNS TABLE (
    target int, row_type text, id uuid, version uuid, number bigint, ck_generation int, commit_number bigint,
    content_type text, created_at timestamptz, updated_at timestamptz, body bytea, selector int, extra jsonb
) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_status text[];                 -- by request
    v_ok boolean[];                  -- by target
    v_tenant uuid[];                 -- by target, and what its container's row says once it is locked:
    v_id uuid[];
    v_kind text[];
    v_ck int[];
    v_commit bigint[];
    v_head bigint[];
    v_expired boolean[];
    v_hold boolean[];
    v_meta_version uuid[];
    v_named uuid[] := '{}';          -- by target: the container that holds the external id, and whether it has expired
    v_named_expired boolean[] := '{}';
    v_idem text[] := '{}';           -- by request: replay or mismatch
    v_turned int[] := '{}';          -- by target: how many turns it appends
    v_answer bytea[] := '{}';        -- by request that is a replay: what it was answered first
    v_facts jsonb[] := '{}';
    v_failed int[] := '{}';          -- by request: the operation whose precondition failed
    v_same int[] := '{}';            -- operations whose equal content is stored already
    v_same_version uuid[] := '{}';
    v_gone int[] := '{}';            -- by removed object: operation, id, version
    v_gone_id uuid[] := '{}';
    v_gone_version uuid[] := '{}';
    v_pop_op int[] := '{}';
    v_pop confide.turn[] := '{}';
    v_turns jsonb := '{}';
    v_cleared jsonb := '{}';         -- by target: how many turns it cleared
    v_made int[] := '{}';            -- targets of objects that did not exist before
    f record;
BEGIN
    PERFORM set_config('confide.tenants', p_tenants, true);
    UPDATE confide_audit.writer SET flush = p_flush WHERE id = p_writer AND flush = p_flush - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this writer was fenced off' USING ERRCODE = 'CF001';
    END IF;

    -- A row that another writer held until now comes as he left it.
    SELECT array_agg(l.tenant ORDER BY l.n), array_agg(l.id ORDER BY l.n), array_agg(l.kind ORDER BY l.n),
           array_agg(l.ck_generation ORDER BY l.n), array_agg(l.commit_number ORDER BY l.n),
           array_agg(l.turn_head ORDER BY l.n), array_agg(coalesce(l.expires_at <= now(), false) ORDER BY l.n),
           array_agg(l.hold ORDER BY l.n), array_agg(l.meta_version ORDER BY l.n)
    INTO v_tenant, v_id, v_kind, v_ck, v_commit, v_head, v_expired, v_hold, v_meta_version
    FROM (
        SELECT a.n, a.tenant, c.* FROM (
            SELECT a.n, c_tenant[r_caller[a.request]] AS tenant, a.container, a.make
            FROM unnest(t_request, t_container, t_make) WITH ORDINALITY AS a (request, container, make, n)
            ORDER BY 2, 3 OFFSET 0) a
        LEFT JOIN LATERAL (
            SELECT b.id, b.kind, b.ck_generation, b.commit_number, b.turn_head, b.expires_at, b.hold, b.meta_version
            FROM confide.container b
            WHERE a.make IS NULL AND b.tenant_id = a.tenant AND b.id = a.container FOR NO KEY UPDATE) c ON true
        OFFSET 0) l;

    IF r_idem <> '{}' THEN
        SELECT array_agg(CASE WHEN i.fingerprint = a.print THEN 'replay' WHEN i.key_tag IS NOT NULL THEN 'mismatch' END
                         ORDER BY a.n) INTO v_idem
        FROM unnest(r_caller, r_idem, r_print) WITH ORDINALITY AS a (caller, idem, print, n)
        LEFT JOIN LATERAL (
            SELECT * FROM confide.idempotency b
            WHERE a.idem IS NOT NULL AND b.tenant_id = c_tenant[a.caller] AND b.key_tag = a.idem
              AND b.created_at > now() - interval '24 hours' LIMIT 1) i ON true;
    END IF;
    IF t_external <> '{}' THEN
        SELECT array_agg(x.id ORDER BY a.n), array_agg(x.expires_at <= now() AND NOT x.hold ORDER BY a.n)
        INTO v_named, v_named_expired
        FROM unnest(v_tenant, t_kind, t_external) WITH ORDINALITY AS a (tenant, kind, external, n)
        LEFT JOIN LATERAL (
            SELECT * FROM confide.container b
            WHERE a.external IS NOT NULL AND b.tenant_id = a.tenant AND b.kind = a.kind
              AND b.external_tag = a.external LIMIT 1) x ON true;
    END IF;

    -- The gate. It sees what was committed before the locks were had.
    WITH caller AS MATERIALIZED (
        SELECT array_agg(CASE WHEN k.id IS NULL OR k.revoked_at <= now() OR k.expires_at <= now() THEN 'api-key'
                              WHEN t.state IS DISTINCT FROM 'active' THEN 'suspended'
                              WHEN t.key_state = 'sealed' THEN 'sealed'
                              WHEN t.key_state = 'revoked' THEN 'revoked'
                              WHEN t.epoch <> c.epoch THEN 'epoch'
                              ELSE 'ok' END ORDER BY c.n) AS status,
               array_agg(coalesce(t.require_preconditions, false) ORDER BY c.n) AS strict
        FROM unnest(c_tenant, c_api_key, c_epoch) WITH ORDINALITY AS c (tenant, api_key, epoch, n)
        LEFT JOIN LATERAL (SELECT * FROM confide.tenant b WHERE b.id = c.tenant LIMIT 1) t ON true
        LEFT JOIN LATERAL (
            SELECT * FROM confide.api_key b WHERE b.tenant_id = c.tenant AND b.id = c.api_key LIMIT 1) k ON true
    )
    SELECT array_agg(q.status ORDER BY q.request) INTO v_status FROM (
        SELECT g.request, coalesce((array_agg(g.status ORDER BY g.n) FILTER (WHERE g.status <> 'ok'))[1], 'ok') AS status
        FROM (
            SELECT a.request, a.n,
                   CASE WHEN caller.status[r_caller[a.request]] <> 'ok' THEN caller.status[r_caller[a.request]]
                        WHEN v_idem[a.request] IS NOT NULL THEN v_idem[a.request]
                        WHEN caller.strict[r_caller[a.request]] AND NOT coalesce(r_guarded[a.request], true) THEN 'guard'
                        WHEN a.make IS NOT NULL AND v_named_expired[a.n] THEN 'gone'
                        WHEN a.make IS NOT NULL AND v_named[a.n] IS NOT NULL THEN 'exists'
                        WHEN a.make IS NOT NULL AND a.expected <> 0 THEN 'commit'
                        WHEN a.make IS NOT NULL THEN 'ok'
                        WHEN a.id IS NULL OR a.is_kind <> a.kind THEN 'absent'
                        WHEN a.expired AND NOT a.hold AND a.action <> 'retention.expire' THEN 'absent'
                        WHEN (a.action = 'retention.expire') AND (a.hold OR NOT a.expired) THEN 'hold'
                        WHEN a.hold AND EXISTS (SELECT FROM unnest(o_target, o_type) AS o (target, type)
                                                WHERE o.target = a.n AND o.type NOT IN ('put', 'turn')) THEN 'hold'
                        WHEN a.ck IS NOT NULL AND a.is_ck + (a.new_key IS NOT NULL)::int <> a.ck THEN 'key'
                        WHEN a.expected <> a.is_commit THEN 'commit'
                        WHEN a.head <> a.is_head THEN 'head'
                        WHEN (a.change::jsonb ->> 'if_meta_version')::uuid <> a.is_meta_version THEN 'meta'
                        ELSE 'ok' END AS status
            FROM caller CROSS JOIN unnest(t_request, t_action, t_kind, t_ck, t_new_key, t_commit, t_head, t_make, t_change,
                v_id, v_kind, v_ck, v_commit, v_head, v_expired, v_hold, v_meta_version) WITH ORDINALITY
                AS a (request, action, kind, ck, new_key, expected, head, make, change,
                      id, is_kind, is_ck, is_commit, is_head, expired, hold, is_meta_version, n)
        ) g GROUP BY g.request
    ) q;

    IF o_none <> '{}' OR o_if <> '{}' THEN
        FOR f IN
            SELECT o.n, t_request[o.target] AS request, e.id AS found, e.version,
                   (o.none AND e.id IS NOT NULL AND e.fingerprint = o.print) AS same,
                   (o.cond = '00000000-0000-0000-0000-000000000000' AND e.id IS NULL) AS missing
            FROM unnest(o_target, o_id, o_if, o_none, o_print) WITH ORDINALITY AS o (target, id, cond, none, print, n)
            LEFT JOIN LATERAL (
                SELECT b.id, b.version, b.fingerprint FROM confide.context_object b
                WHERE b.tenant_id = v_tenant[o.target] AND b.container_id = t_container[o.target] AND b.id = o.id
                LIMIT 1) e ON true
            WHERE v_status[t_request[o.target]] = 'ok'
              AND ((o.none AND e.id IS NOT NULL)
                   OR (o.cond = '00000000-0000-0000-0000-000000000000' AND e.id IS NULL)
                   OR (o.cond <> '00000000-0000-0000-0000-000000000000' AND e.version IS DISTINCT FROM o.cond))
            ORDER BY o.n
        LOOP
            IF f.same THEN
                v_same := v_same || f.n::int;
                v_same_version := v_same_version || f.version;
            ELSIF v_status[f.request] = 'ok' THEN
                v_status[f.request] := CASE WHEN f.missing THEN 'no-object' ELSE 'precondition' END;
                v_failed[f.request] := f.n;
            END IF;
        END LOOP;
    END IF;

    SELECT array_agg(v_status[a.request] = 'ok' ORDER BY a.n) INTO v_ok
    FROM unnest(t_request) WITH ORDINALITY AS a (request, n);

    IF t_make <> '{}' THEN
        INSERT INTO confide.container (tenant_id, id, kind, external_tag, subject_id, meta_version, meta, meta_ck, ck_generation,
            ttl_absolute_seconds, ttl_idle_seconds, created_at, updated_at, expires_at, sweep_at)
        SELECT a.tenant, a.container, a.kind, a.external, m.subject, m.meta_version, a.meta, a.ck, a.ck,
               m.ttl_absolute, m.ttl_idle, p_time, p_time, d.at, d.at
        FROM unnest(v_tenant, t_container, t_kind, t_external, t_make, t_meta, t_ck) WITH ORDINALITY
             AS a (tenant, container, kind, external, make, meta, ck, n),
             jsonb_to_record(a.make::jsonb) AS m (subject uuid, meta_version uuid, ttl_absolute int, ttl_idle int),
             LATERAL (SELECT least(p_time + m.ttl_absolute * interval '1 second', now() + m.ttl_idle * interval '1 second') AS at) d
        WHERE a.make IS NOT NULL AND v_ok[a.n];
    END IF;

    IF t_new_key <> '{}' THEN
        INSERT INTO confide.container_key (tenant_id, container_id, generation, trk_generation, sealed, created_at)
        SELECT a.tenant, a.container, a.ck, a.trk, a.new_key, p_time
        FROM unnest(v_tenant, t_container, t_ck, t_trk, t_new_key) WITH ORDINALITY
             AS a (tenant, container, ck, trk, new_key, n)
        WHERE a.new_key IS NOT NULL AND v_ok[a.n];
    END IF;

    -- What a commit deletes goes before what it puts, so that it can replace a collection; it prunes last.
    IF o_type && ARRAY['delete', 'delete-many', 'erase'] THEN
        WITH doomed AS (
            SELECT o.n, b.tenant_id, b.container_id, b.id, b.version
            FROM unnest(o_target, o_type, o_id, o_collection, o_tags) WITH ORDINALITY
                 AS o (target, type, id, collection, tags, n)
            CROSS JOIN LATERAL (
                SELECT e.* FROM confide.context_object e
                WHERE o.type = 'delete' AND e.tenant_id = v_tenant[o.target]
                  AND e.container_id = t_container[o.target] AND e.id = o.id
                UNION ALL
                SELECT e.* FROM confide.context_object e
                WHERE o.type IN ('delete-many', 'erase') AND e.tenant_id = v_tenant[o.target]
                  AND e.container_id = t_container[o.target]
                  AND (o.collection IS NULL OR e.collection_tag = o.collection)
                  AND (o.tags IS NULL OR position(o.tags IN e.tags) > 0)
            ) b
            WHERE v_ok[o.target]
        ), deleted AS (
            DELETE FROM confide.context_object e USING doomed d
            WHERE e.tenant_id = d.tenant_id AND e.container_id = d.container_id AND e.id = d.id
            RETURNING d.n, e.id, e.version
        )
        SELECT coalesce(array_agg(deleted.n::int), '{}'), coalesce(array_agg(deleted.id), '{}'),
               coalesce(array_agg(deleted.version), '{}')
        INTO v_gone, v_gone_id, v_gone_version FROM deleted;
    END IF;

    IF 'put' = ANY (o_type) THEN
        WITH written AS (
        INSERT INTO confide.context_object AS e (tenant_id, container_id, id, version, collection_tag, ck_generation, size,
            commit_number, content_type, created_at, updated_at, tags, fingerprint, body)
        SELECT v_tenant[o.target], t_container[o.target], o.id, o.version, o.collection, t_ck[o.target], o.size,
               coalesce(v_commit[o.target], 0) + 1, o.content, p_time, p_time, coalesce(o.tags, ''), o.print,
               substring(p_bodies FROM o.start FOR o.length)
        FROM unnest(o_target, o_type, o_id, o_version, o_collection, o_tags, o_print, o_content, o_size, o_start, o_length)
             WITH ORDINALITY AS o (target, type, id, version, collection, tags, print, content, size, start, length, n)
        WHERE o.type = 'put' AND v_ok[o.target] AND NOT (o.n::int = ANY (v_same))
        ON CONFLICT (tenant_id, container_id, id) DO UPDATE SET
            version = EXCLUDED.version, collection_tag = EXCLUDED.collection_tag, ck_generation = EXCLUDED.ck_generation,
            size = EXCLUDED.size, commit_number = EXCLUDED.commit_number, content_type = EXCLUDED.content_type,
            updated_at = EXCLUDED.updated_at, tags = EXCLUDED.tags, fingerprint = EXCLUDED.fingerprint, body = EXCLUDED.body
        RETURNING e.container_id, e.created_at = e.updated_at AS made)
        SELECT coalesce(array_agg(a.n::int), '{}') INTO v_made
        FROM written w JOIN unnest(t_container) WITH ORDINALITY AS a (container, n) ON a.container = w.container_id
        WHERE w.made;
    END IF;

    IF 'prune' = ANY (o_type) THEN
        WITH doomed AS (
            SELECT o.n, b.tenant_id, b.container_id, b.id
            FROM unnest(o_target, o_type, o_collection, o_number) WITH ORDINALITY AS o (target, type, collection, keep, n)
            CROSS JOIN LATERAL (
                SELECT e.* FROM confide.context_object e
                WHERE o.type = 'prune' AND e.tenant_id = v_tenant[o.target]
                  AND e.container_id = t_container[o.target] AND e.collection_tag = o.collection
                ORDER BY e.version DESC OFFSET CASE WHEN o.type = 'prune' THEN o.keep ELSE 0 END
            ) b
            WHERE v_ok[o.target]
        ), deleted AS (
            DELETE FROM confide.context_object e USING doomed d
            WHERE e.tenant_id = d.tenant_id AND e.container_id = d.container_id AND e.id = d.id
            RETURNING d.n, e.id, e.version
        )
        SELECT v_gone || coalesce(array_agg(deleted.n::int), '{}'), v_gone_id || coalesce(array_agg(deleted.id), '{}'),
               v_gone_version || coalesce(array_agg(deleted.version), '{}')
        INTO v_gone, v_gone_id, v_gone_version FROM deleted;
    END IF;

    IF 'turn' = ANY (o_type) THEN
        INSERT INTO confide.turn (tenant_id, container_id, number, id, ck_generation, size, commit_number, content_type,
            created_at, body)
        SELECT v_tenant[o.target], t_container[o.target], o.number, o.id, t_ck[o.target], o.size,
               coalesce(v_commit[o.target], 0) + 1, o.content, p_time, substring(p_bodies FROM o.start FOR o.length)
        FROM unnest(o_target, o_type, o_id, o_number, o_content, o_size, o_start, o_length)
             AS o (target, type, id, number, content, size, start, length)
        WHERE o.type = 'turn' AND v_ok[o.target];
        SELECT array_agg(q.turned ORDER BY q.n) INTO v_turned FROM (
            SELECT a.n, count(*) FILTER (WHERE o.type = 'turn')::int AS turned
            FROM generate_subscripts(t_container, 1) AS a (n)
            LEFT JOIN unnest(o_target, o_type) AS o (target, type) ON o.target = a.n GROUP BY a.n) q;
    END IF;

    IF o_type && ARRAY['pop', 'clear'] THEN
        WITH doomed AS (
            SELECT o.n, o.target, o.type, b
            FROM unnest(o_target, o_type, o_number) WITH ORDINALITY AS o (target, type, how_many, n)
            CROSS JOIN LATERAL (
                SELECT u FROM confide.turn u
                WHERE u.tenant_id = v_tenant[o.target] AND u.container_id = t_container[o.target]
                  AND u.removed_at IS NULL
                ORDER BY u.number DESC LIMIT CASE WHEN o.type = 'pop' THEN o.how_many END) AS l (b)
            WHERE o.type IN ('pop', 'clear') AND v_ok[o.target]
        ), removed AS (
            UPDATE confide.turn u SET body = NULL, removed_at = p_time FROM doomed d
            WHERE u.tenant_id = (d.b).tenant_id AND u.container_id = (d.b).container_id AND u.number = (d.b).number
            RETURNING d.n, d.target, d.type, d.b
        ), ranges AS (
            SELECT removed.target, min((removed.b).number) AS low, max((removed.b).number) AS high,
                   count(*) FILTER (WHERE removed.type = 'clear') AS cleared
            FROM removed GROUP BY removed.target
        )
        SELECT coalesce(array_agg(removed.n::int) FILTER (WHERE removed.type = 'pop'), '{}'),
               coalesce(array_agg(removed.b) FILTER (WHERE removed.type = 'pop'), '{}'),
               coalesce((SELECT jsonb_object_agg(ranges.target, jsonb_build_array(ranges.low, ranges.high)) FROM ranges), '{}'),
               coalesce((SELECT jsonb_object_agg(ranges.target, ranges.cleared) FROM ranges), '{}')
        INTO v_pop_op, v_pop, v_turns, v_cleared FROM removed;
    END IF;

    IF t_make <> '{}' OR t_change <> '{}' THEN
        DELETE FROM confide.container_label l USING unnest(v_tenant, t_container, t_change) WITH ORDINALITY
            AS a (tenant, container, change, n)
        WHERE v_ok[a.n] AND a.change IS NOT NULL AND a.change::jsonb ? 'labels'
          AND l.tenant_id = a.tenant AND l.container_id = a.container;
        INSERT INTO confide.container_label (tenant_id, label_tag, container_id)
        SELECT a.tenant, l.tag::uuid, a.container
        FROM unnest(v_tenant, t_container, t_make, t_change) WITH ORDINALITY AS a (tenant, container, make, change, n),
             jsonb_array_elements_text(coalesce(a.make, a.change)::jsonb -> 'labels') AS l (tag)
        WHERE v_ok[a.n] AND coalesce(a.make, a.change) IS NOT NULL;
        UPDATE confide.container c SET
            meta = coalesce(a.meta, c.meta), meta_ck = CASE WHEN a.meta IS NULL THEN c.meta_ck ELSE a.ck END,
            meta_version = coalesce((j.v ->> 'meta_version')::uuid, c.meta_version),
            ttl_absolute_seconds = CASE WHEN j.v ? 'ttl_absolute' THEN (j.v ->> 'ttl_absolute')::int
                                   ELSE c.ttl_absolute_seconds END,
            ttl_idle_seconds = CASE WHEN j.v ? 'ttl_idle' THEN (j.v ->> 'ttl_idle')::int ELSE c.ttl_idle_seconds END,
            hold = coalesce((j.v ->> 'hold')::boolean, c.hold),
            sweep_at = CASE WHEN j.v ? 'ttl_absolute' OR j.v ? 'ttl_idle' THEN p_time ELSE c.sweep_at END
        FROM unnest(v_tenant, t_container, t_change, t_meta, t_ck) WITH ORDINALITY
             AS a (tenant, container, change, meta, ck, n),
             LATERAL (SELECT a.change::jsonb AS v) j
        WHERE a.change IS NOT NULL AND v_ok[a.n] AND c.tenant_id = a.tenant AND c.id = a.container;
    END IF;

    UPDATE confide.container c SET
        commit_number = c.commit_number + 1,
        turn_head = c.turn_head + coalesce(v_turned[a.n], 0),
        ck_generation = coalesce(a.ck, c.ck_generation),
        updated_at = p_time,
        expires_at = least(c.created_at + c.ttl_absolute_seconds * interval '1 second',
                           now() + c.ttl_idle_seconds * interval '1 second')
    FROM unnest(v_tenant, t_container, t_ck) WITH ORDINALITY AS a (tenant, container, ck, n)
    WHERE v_ok[a.n] AND c.tenant_id = a.tenant AND c.id = a.container;

    INSERT INTO confide_audit.journal
        (tenant_id, id, time, writer, seq, flush, action, outcome, reason, container, objects, versions, turns,
         commit_number, facts)
    SELECT a.tenant, a.event, p_time, p_writer, a.seq, p_flush, a.action,
           CASE v_status[a.request] WHEN 'ok' THEN 'allowed' WHEN 'replay' THEN 'allowed' WHEN 'epoch' THEN 'failed'
               WHEN 'key' THEN 'failed' WHEN 'head' THEN 'failed' WHEN 'exists' THEN 'failed' WHEN 'gone' THEN 'failed'
               ELSE 'denied' END,
           nullif(v_status[a.request], 'ok'), CASE WHEN v_status[a.request] <> 'absent' THEN a.container END,
           w.objects, w.versions, w.turns, CASE WHEN v_ok[a.n] THEN coalesce(a.commit_number, 0) + 1 END, a.facts
    FROM unnest(t_request, v_tenant, t_event, t_seq, t_action, t_container, v_commit, t_facts) WITH ORDINALITY
         AS a (request, tenant, event, seq, action, container, commit_number, facts, n)
    LEFT JOIN (
        SELECT y.target, array_agg(y.id) FILTER (WHERE y.id IS NOT NULL) AS objects,
               array_agg(y.version) FILTER (WHERE y.id IS NOT NULL) AS versions,
               coalesce(ARRAY[min(y.number), max(y.number)], NULL) AS turns
        FROM (
            SELECT o.target, o.id, o.version, NULL::bigint AS number
            FROM unnest(o_target, o_type, o_id, o_version) WITH ORDINALITY AS o (target, type, id, version, n)
            WHERE o.type = 'put' AND NOT (o.n::int = ANY (v_same))
            UNION ALL
            SELECT o_target[d.n], d.id, d.version, NULL FROM unnest(v_gone, v_gone_id, v_gone_version) AS d (n, id, version)
            UNION ALL
            SELECT o.target, NULL, NULL, o.number FROM unnest(o_target, o_type, o_number) AS o (target, type, number)
            WHERE o.type = 'turn'
            UNION ALL
            SELECT e.key::int, NULL, NULL, x.v::bigint
            FROM jsonb_each(v_turns) AS e, jsonb_array_elements_text(e.value) AS x (v)
        ) y GROUP BY y.target
    ) w ON w.target = a.n AND v_ok[a.n];

    IF r_idem <> '{}' THEN
        INSERT INTO confide.idempotency AS e (tenant_id, key_tag, fingerprint, answer, facts, created_at)
        SELECT c_tenant[r_caller[a.n]], a.idem, a.print, a.answer,
               jsonb_build_object('heads', (
                   SELECT jsonb_agg(jsonb_build_array(c.commit_number, c.turn_head,
                                                      cardinality(array_positions(v_made, b.n::int))) ORDER BY b.n)
                   FROM unnest(t_request, t_container) WITH ORDINALITY AS b (request, container, n)
                      LEFT JOIN LATERAL (
                       SELECT e.commit_number, e.turn_head FROM confide.container e
                       WHERE e.tenant_id = c_tenant[r_caller[a.n]] AND e.id = b.container LIMIT 1) c ON true
                   WHERE b.request = a.n), 'same', (
                   SELECT jsonb_agg(jsonb_build_array(s.n - (SELECT min(o.n) FROM unnest(o_target) WITH ORDINALITY AS o (target, n)
                                                             WHERE t_request[o.target] = a.n), s.version))
                   FROM unnest(v_same, v_same_version) AS s (n, version) WHERE t_request[o_target[s.n]] = a.n)), now()
        FROM unnest(r_idem, r_print, r_answer) WITH ORDINALITY AS a (idem, print, answer, n)
        WHERE a.idem IS NOT NULL AND v_status[a.n] = 'ok'
        ON CONFLICT (tenant_id, key_tag) DO UPDATE SET fingerprint = EXCLUDED.fingerprint, answer = EXCLUDED.answer,
            facts = EXCLUDED.facts, created_at = EXCLUDED.created_at
            WHERE e.created_at <= now() - interval '24 hours';
    END IF;

    IF 'replay' = ANY (v_status) THEN
        SELECT array_agg(i.answer ORDER BY a.n), array_agg(i.facts ORDER BY a.n) INTO v_answer, v_facts
        FROM unnest(r_caller, r_idem, v_status) WITH ORDINALITY AS a (caller, idem, status, n)
        LEFT JOIN LATERAL (
            SELECT * FROM confide.idempotency b
            WHERE a.status = 'replay' AND b.tenant_id = c_tenant[a.caller] AND b.key_tag = a.idem LIMIT 1) i ON true;
    END IF;
    RETURN QUERY
    SELECT a.n::int, 'h', coalesce(v_named[a.n], a.id), NULL::uuid,
           CASE WHEN v_ok[a.n] THEN coalesce(a.head, 1) + coalesce(v_turned[a.n], 0) ELSE a.head END, NULL::int,
           CASE WHEN v_ok[a.n] THEN coalesce(a.commit_number, 0) + 1 ELSE a.commit_number END, v_status[a.request],
           NULL::timestamptz, NULL::timestamptz, v_answer[a.request],
           coalesce(v_failed[a.request], CASE WHEN v_made <> '{}' THEN cardinality(array_positions(v_made, a.n::int)) ELSE 0 END),
           CASE WHEN v_status[a.request] = 'replay' THEN v_facts[a.request]
                WHEN v_failed[a.request] IS NOT NULL THEN jsonb_build_object('current',
                    (SELECT e.version FROM confide.context_object e WHERE e.tenant_id = a.tenant
                     AND e.container_id = t_container[o_target[v_failed[a.request]]] AND e.id = o_id[v_failed[a.request]]))
                WHEN v_cleared ? a.n::text THEN jsonb_build_object('cleared', v_cleared -> a.n::text)
           END
    FROM unnest(t_request, v_tenant, v_id, v_head, v_commit) WITH ORDINALITY
         AS a (request, tenant, id, head, commit_number, n);
    IF v_same <> '{}' THEN
        RETURN QUERY SELECT o_target[s.n], 'o', o_id[s.n], s.version, NULL::bigint, NULL::int, NULL::bigint, NULL::text,
            NULL::timestamptz, NULL::timestamptz, NULL::bytea, s.n, NULL::jsonb
        FROM unnest(v_same, v_same_version) AS s (n, version);
    END IF;
    IF v_gone <> '{}' THEN
        RETURN QUERY SELECT o_target[d.n], 'd', d.id, d.version, NULL::bigint, NULL::int, NULL::bigint, NULL::text,
            NULL::timestamptz, NULL::timestamptz, NULL::bytea, d.n, NULL::jsonb
        FROM unnest(v_gone, v_gone_id, v_gone_version) AS d (n, id, version);
    END IF;
    IF v_pop_op <> '{}' THEN
        RETURN QUERY SELECT o_target[d.n], 't', (d.u).id, NULL::uuid, (d.u).number, (d.u).ck_generation, (d.u).commit_number,
            (d.u).content_type, (d.u).created_at, NULL::timestamptz, (d.u).body, d.n, NULL::jsonb
        FROM (SELECT unnest(v_pop_op) AS n, unnest(v_pop) AS u) d;
    END IF;

    -- Erasing comes last, so that the rows above could still name what goes.
    IF 'erase' = ANY (o_type) THEN
        FOR f IN SELECT v_tenant[o.target] AS tenant, t_container[o.target] AS container
                 FROM unnest(o_target, o_type) AS o (target, type) WHERE o.type = 'erase' AND v_ok[o.target]
        LOOP
            DELETE FROM confide.turn u WHERE u.tenant_id = f.tenant AND u.container_id = f.container;
            DELETE FROM confide.container_key k WHERE k.tenant_id = f.tenant AND k.container_id = f.container;
            DELETE FROM confide.container_label l WHERE l.tenant_id = f.tenant AND l.container_id = f.container;
            DELETE FROM confide.container c WHERE c.tenant_id = f.tenant AND c.id = f.container;
        END LOOP;
    END IF;
END $$;

-- Events with no rows to read or write: denials, intents and outcomes of KMS calls, transitions.
CREATE FUNCTION confide.record(
    p_tenants text, p_writer uuid, p_flush bigint,
    t_tenant uuid[], t_event uuid[], t_time timestamptz[], t_seq bigint[], t_action text[], t_outcome text[],
    t_reason text[], t_container uuid[], t_facts text[]
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('confide.tenants', p_tenants, true);
    UPDATE confide_audit.writer SET flush = p_flush WHERE id = p_writer AND flush = p_flush - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this writer was fenced off' USING ERRCODE = 'CF001';
    END IF;
    INSERT INTO confide_audit.journal (tenant_id, id, time, writer, seq, flush, action, outcome, reason, container, facts)
    SELECT a.tenant, a.event, a.time, p_writer, a.seq, p_flush, a.action, a.outcome, a.reason, a.container, a.facts
    FROM unnest(t_tenant, t_event, t_time, t_seq, t_action, t_outcome, t_reason, t_container, t_facts)
         AS a (tenant, event, time, seq, action, outcome, reason, container, facts);
END $$;

-- What a worker needs before it can seal: the container behind an external id, its keys and heads. Opens nothing.
CREATE FUNCTION confide.resolve(p_tenants text, p_tenant uuid, p_kind text, p_id uuid, p_external uuid)
RETURNS TABLE (id uuid, subject_id uuid, ck_generation int, commit_number bigint, turn_head bigint, expired boolean,
               meta_version uuid, meta_ck int, meta bytea, key_generation int, trk_generation int, sealed bytea)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_id uuid := p_id;
BEGIN
    PERFORM set_config('confide.tenants', p_tenants, true);
    IF v_id IS NULL THEN
        SELECT c.id INTO v_id FROM confide.container c
        WHERE c.tenant_id = p_tenant AND c.kind = p_kind AND c.external_tag = p_external;
    END IF;
    RETURN QUERY
    SELECT c.id, c.subject_id, c.ck_generation, c.commit_number, c.turn_head,
           coalesce(c.expires_at <= now() AND NOT c.hold, false), c.meta_version, c.meta_ck, c.meta,
           k.generation, k.trk_generation, k.sealed
    FROM confide.container c
    LEFT JOIN confide.container_key k ON k.tenant_id = p_tenant AND k.container_id = v_id
    WHERE c.tenant_id = p_tenant AND c.id = v_id AND c.kind = p_kind;
END $$;

-- Ids of living sessions by subject or label, in order of creation. Their names are opened by confide.read, with an event each.
CREATE FUNCTION confide.find_sessions(p_tenants text, p_tenant uuid, p_subject uuid, p_label uuid, p_after uuid, p_limit int)
RETURNS TABLE (id uuid) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('confide.tenants', p_tenants, true);
    RETURN QUERY
    SELECT c.id FROM confide.container c
    WHERE p_subject IS NOT NULL AND c.tenant_id = p_tenant AND c.subject_id = p_subject AND c.kind = 'session'
      AND (c.expires_at > now() OR c.hold) IS NOT FALSE AND (p_after IS NULL OR c.id > p_after)
    UNION ALL
    SELECT c.id FROM confide.container_label l
    JOIN confide.container c ON c.tenant_id = l.tenant_id AND c.id = l.container_id
    WHERE p_label IS NOT NULL AND l.tenant_id = p_tenant AND l.label_tag = p_label AND c.kind = 'session'
      AND (c.expires_at > now() OR c.hold) IS NOT FALSE AND (p_after IS NULL OR c.id > p_after)
    ORDER BY id LIMIT p_limit;
END $$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA confide, confide_audit FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA confide, confide_audit TO confide_service;
