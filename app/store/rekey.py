"""SQL of encrypting a tenant's containers anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.store.ledger import Transaction


@dataclass(frozen=True, slots=True)
class Stored:
    """A container with everything in it, its row locked."""

    row: Any
    keys: list[Any]
    objects: list[Any]
    turns: list[Any]


async def next_container(tx: Transaction, tenant: UUID, after: UUID) -> UUID | None:
    found: UUID | None = await tx.connection.fetchval(
        "SELECT id FROM confide.container WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT 1", tenant, after
    )
    return found


async def container(tx: Transaction, tenant: UUID, container: UUID) -> Stored | None:
    """None where it has gone meanwhile."""
    row = await tx.connection.fetchrow(
        "SELECT * FROM confide.container WHERE tenant_id = $1 AND id = $2 FOR NO KEY UPDATE", tenant, container
    )
    if row is None:
        return None
    parts = [
        list(await tx.connection.fetch(sql, tenant, container))
        for sql in (
            "SELECT * FROM confide.container_key WHERE tenant_id = $1 AND container_id = $2 ORDER BY generation",
            "SELECT * FROM confide.context_object WHERE tenant_id = $1 AND container_id = $2 ORDER BY id",
            (
                "SELECT * FROM confide.turn WHERE tenant_id = $1 AND container_id = $2 AND removed_at IS NULL"
                " ORDER BY number"
            ),
        )
    ]
    return Stored(row, *parts)


async def replace(
    tx: Transaction,
    tenant: UUID,
    container: UUID,
    generation: int,
    trk_generation: int,
    sealed: bytes,
    objects: Sequence[tuple[Any, ...]],
    turns: Sequence[tuple[int, bytes]],
    meta: tuple[UUID, bytes, UUID | None, list[UUID]],
) -> None:
    """Everything in a container under one new key, the old keys gone. ``objects``: old id, new id, collection tag,
    tags, fingerprint, body; ``turns``: number, body; ``meta``: version, sealed, external tag, label tags.
    """
    run = tx.connection.execute
    await run(
        "INSERT INTO confide.container_key (tenant_id, container_id, generation, trk_generation, sealed, created_at)"
        " VALUES ($1, $2, $3, $4, $5, now())",
        tenant,
        container,
        generation,
        trk_generation,
        sealed,
    )
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
    version, names, external, labels = meta
    await run(
        "UPDATE confide.container SET meta = $4, meta_ck = $3, meta_version = $5, ck_generation = $3, external_tag = $6"
        " WHERE tenant_id = $1 AND id = $2",
        tenant,
        container,
        generation,
        names,
        version,
        external,
    )
    await run("DELETE FROM confide.container_label WHERE tenant_id = $1 AND container_id = $2", tenant, container)
    await run(
        "INSERT INTO confide.container_label (tenant_id, label_tag, container_id)"
        " SELECT $1, a, $2 FROM unnest($3::uuid[]) AS a",
        tenant,
        container,
        labels,
    )
    await run(
        "DELETE FROM confide.container_key WHERE tenant_id = $1 AND container_id = $2 AND generation < $3",
        tenant,
        container,
        generation,
    )


async def switch_index(tx: Transaction, tenant: UUID) -> None:
    """The pending index key becomes the active one, and the old one is removed with the answers that only it finds."""
    run = tx.connection.execute
    await run("DELETE FROM confide_keys.index_key WHERE tenant_id = $1 AND state = 'active'", tenant)
    await run("UPDATE confide_keys.index_key SET state = 'active' WHERE tenant_id = $1 AND state = 'pending'", tenant)
    await run("DELETE FROM confide.idempotency WHERE tenant_id = $1", tenant)
