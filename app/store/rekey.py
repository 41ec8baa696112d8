"""SQL of exchanging a tenant's index key: containers under another key, piece by piece, while they are in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from app.store.ledger import Transaction
from app.store.pool import Pool

OBJECTS: Final = 100
TURNS: Final = 400
BYTES: Final = 2 * 1024 * 1024
"""What one piece holds at most (one object may be larger): a container's writers wait for no more than that."""

DUE_INDEX_KEYS: Final = "SELECT tenant_id, number FROM confide.due_index_keys($1)"
FORMER_ANSWERS: Final = "SELECT * FROM confide.former_answers($1, $2, $3)"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a container, its row locked, with the tenant's standing. ``last``: nothing is left after this piece."""

    row: Any
    tenant: Any
    keys: list[Any]
    objects: list[Any]
    turns: list[Any]
    last: bool


async def left(tx: Transaction, tenant: UUID, number: int, bound: UUID, after: UUID, limit: int) -> list[UUID]:
    """Containers from after ``after`` up to ``bound`` that don't stand under index key ``number`` yet."""
    rows = await tx.connection.fetch(
        "SELECT id FROM confide.container WHERE tenant_id = $1 AND id > $3 AND id <= $4"
        " AND index_number IS DISTINCT FROM $2 ORDER BY id LIMIT $5",
        tenant,
        number,
        after,
        bound,
        limit,
    )
    return [row["id"] for row in rows]


async def piece(tx: Transaction, tenant: UUID, container: UUID, number: int) -> Piece | None:
    """What is to be moved next. None where the container has gone, or stands under index key ``number`` already."""
    fetch = tx.connection.fetch
    row = await tx.connection.fetchrow(
        "SELECT * FROM confide.container WHERE tenant_id = $1 AND id = $2 FOR NO KEY UPDATE", tenant, container
    )
    if row is None or row["index_number"] == number:
        return None
    standing = await tx.connection.fetchrow("SELECT epoch, state, key_state FROM confide.tenant WHERE id = $1", tenant)
    keys = await fetch(
        "SELECT * FROM confide.container_key WHERE tenant_id = $1 AND container_id = $2 ORDER BY generation",
        tenant,
        container,
    )
    # Before the first piece everything stands under older keys; from then on what doesn't is done.
    below = row["ck_generation"] + (row["index_number"] != -number)
    objects = await fetch(
        "SELECT * FROM (SELECT l.*, sum(l.size) OVER (ORDER BY l.id) - l.size AS ahead FROM"
        " (SELECT * FROM confide.context_object o WHERE o.tenant_id = $1 AND o.container_id = $2"
        " AND o.ck_generation < $3 ORDER BY o.id LIMIT $4) l) b WHERE b.ahead <= $5 ORDER BY b.id",
        tenant,
        container,
        below,
        OBJECTS,
        BYTES,
    )
    turns: list[Any] = []
    if len(objects) < OBJECTS and sum(each["size"] for each in objects) <= BYTES:
        turns = await fetch(
            "SELECT * FROM (SELECT l.*, sum(l.size) OVER (ORDER BY l.number) - l.size AS ahead FROM"
            " (SELECT * FROM confide.turn o WHERE o.tenant_id = $1 AND o.container_id = $2 AND o.removed_at IS NULL"
            " AND o.ck_generation < $3 ORDER BY o.number LIMIT $4) l) b WHERE b.ahead <= $5 ORDER BY b.number",
            tenant,
            container,
            below,
            TURNS,
            BYTES,
        )
    counted = await tx.connection.fetchrow(
        "SELECT (SELECT count(*) FROM (SELECT FROM confide.context_object WHERE tenant_id = $1 AND container_id = $2"
        " AND ck_generation < $3 LIMIT $4) a) AS objects,"
        " (SELECT count(*) FROM (SELECT FROM confide.turn WHERE tenant_id = $1 AND container_id = $2"
        " AND ck_generation < $3 AND removed_at IS NULL LIMIT $5) a) AS turns",
        tenant,
        container,
        below,
        OBJECTS + 1,
        TURNS + 1,
    )
    left_now = counted or {"objects": 0, "turns": 0}
    last = left_now["objects"] == len(objects) and left_now["turns"] == len(turns)
    return Piece(row, standing, list(keys), list(objects), list(turns), last)


async def begin(
    tx: Transaction, tenant: UUID, container: UUID, number: int, generation: int, trk_generation: int, sealed: bytes
) -> None:
    """A container's next key, which its writes use from now on, and the mark that its move is under way."""
    await tx.connection.execute(
        "INSERT INTO confide.container_key (tenant_id, container_id, generation, trk_generation, sealed, created_at)"
        " VALUES ($1, $2, $3, $4, $5, now())",
        tenant,
        container,
        generation,
        trk_generation,
        sealed,
    )
    await tx.connection.execute(
        "UPDATE confide.container SET ck_generation = $3, index_number = $4 WHERE tenant_id = $1 AND id = $2",
        tenant,
        container,
        generation,
        -number,
    )


async def replace(
    tx: Transaction,
    tenant: UUID,
    container: UUID,
    generation: int,
    objects: Sequence[tuple[Any, ...]],
    turns: Sequence[tuple[int, bytes]],
) -> None:
    """Objects and turns under the container's new key. ``objects``: old id, new id, collection tag, tags, fingerprint,
    body; ``turns``: number, body.
    """
    run = tx.connection.execute
    # No new id is an old one of another object: both are 122 bits of HMAC.
    await run(
        "UPDATE confide.context_object o SET id = a.new, collection_tag = a.collection, tags = a.tags,"
        " fingerprint = a.mark, body = a.body, ck_generation = $3"
        " FROM unnest($4::uuid[], $5::uuid[], $6::uuid[], $7::bytea[], $8::bytea[], $9::bytea[])"
        " AS a (old, new, collection, tags, mark, body)"
        " WHERE o.tenant_id = $1 AND o.container_id = $2 AND o.id = a.old",
        tenant,
        container,
        generation,
        *([each[place] for each in objects] for place in range(6)),
    )
    await run(
        "UPDATE confide.turn t SET body = a.body, ck_generation = $3 FROM unnest($4::bigint[], $5::bytea[])"
        " AS a (number, body) WHERE t.tenant_id = $1 AND t.container_id = $2 AND t.number = a.number",
        tenant,
        container,
        generation,
        [number for number, _ in turns],
        [body for _, body in turns],
    )


async def complete(
    tx: Transaction,
    tenant: UUID,
    container: UUID,
    number: int,
    generation: int,
    meta: tuple[UUID, bytes, UUID | None, list[UUID]],
) -> None:
    """The container's own names under the new keys: it stands under index key ``number``, and its old keys open
    nothing.

    ``meta``: version, sealed, external tag, label tags.
    """
    run = tx.connection.execute
    version, names, external, labels = meta
    await run(
        "UPDATE confide.container SET meta = $4, meta_ck = $3, meta_version = $5, external_tag = $6, index_number = $7"
        " WHERE tenant_id = $1 AND id = $2",
        tenant,
        container,
        generation,
        names,
        version,
        external,
        number,
    )
    await run("DELETE FROM confide.container_label WHERE tenant_id = $1 AND container_id = $2", tenant, container)
    await run(
        "INSERT INTO confide.container_label (tenant_id, label_tag, container_id)"
        " SELECT $1, a, $2 FROM unnest($3::uuid[]) AS a",
        tenant,
        container,
        labels,
    )


async def reasons(tx: Transaction, tenant: UUID, after: UUID, limit: int) -> list[Any]:
    """Holds from after ``after``, their rows held, released ones too."""
    return list(
        await tx.connection.fetch(
            "SELECT id, container_id, reason FROM confide.legal_hold WHERE tenant_id = $1 AND id > $2"
            " ORDER BY id LIMIT $3 FOR NO KEY UPDATE",
            tenant,
            after,
            limit,
        )
    )


async def replace_reason(tx: Transaction, tenant: UUID, hold: UUID, sealed: bytes) -> None:
    await tx.connection.execute(
        "UPDATE confide.legal_hold SET reason = $3 WHERE tenant_id = $1 AND id = $2", tenant, hold, sealed
    )


# ---------------------------------------------------------------- the index keys themselves


async def exchange(tx: Transaction, tenant: UUID) -> None:
    """The pending index key becomes the active one. Containers that there are now may still stand under the old one."""
    run = tx.connection.execute
    await run(
        "UPDATE confide_keys.index_key SET state = 'retiring', retired_at = now()"
        " WHERE tenant_id = $1 AND state = 'active'",
        tenant,
    )
    await run(
        "UPDATE confide_keys.index_key SET state = 'active', bound = coalesce((SELECT c.id FROM confide.container c"
        " WHERE c.tenant_id = $1 ORDER BY c.id DESC LIMIT 1), '00000000-0000-0000-0000-000000000000')"
        " WHERE tenant_id = $1 AND state = 'pending'",
        tenant,
    )


async def all_moved(tx: Transaction, tenant: UUID) -> None:
    await tx.connection.execute("UPDATE confide_keys.index_key SET bound = NULL WHERE tenant_id = $1", tenant)


async def drop_index_key(tx: Transaction, tenant: UUID, number: int) -> bool:
    """Remove a retiring index key. False where another worker was first."""
    return bool(
        await tx.connection.fetchval(
            "DELETE FROM confide_keys.index_key WHERE tenant_id = $1 AND number = $2 AND state = 'retiring'"
            " RETURNING true",
            tenant,
            number,
        )
    )


# ---------------------------------------------------------------- answers to repeated requests


async def former_answers(pool: Pool, tenant: UUID, tags: Sequence[bytes]) -> list[Any]:
    """Answers of the last 24 hours under these tags. Raises ``Unavailable``."""
    return await pool.fetch(FORMER_ANSWERS, "{" + str(tenant) + "}", tenant, list(tags))


async def keep_answer(tx: Transaction, tenant: UUID, tag: bytes, fingerprint: bytes, answer: bytes, row: Any) -> None:
    """The answer of ``row`` once more, under another tag, as old as it is."""
    await tx.connection.execute(
        "INSERT INTO confide.idempotency (tenant_id, key_tag, fingerprint, answer, facts, created_at)"
        " VALUES ($1, $2, $3, $4, $5::jsonb, $6) ON CONFLICT (tenant_id, key_tag) DO NOTHING",
        tenant,
        tag,
        fingerprint,
        answer,
        row["facts"],
        row["created_at"],
    )
