"""SQL of container keys while the root key above them changes."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from uuid import UUID

from app.store.ledger import Ledger, Transaction
from app.store.pool import Pool

FENCE: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest"


async def fence(ledger: Ledger, pool: Pool, tenant: UUID) -> None:
    """Wait until every transaction that had begun before this call is over: what they saw is past."""
    async with ledger.transaction(tenant) as tx:
        mine = await tx.connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
    while True:
        if (await pool.fetch(FENCE))[0]["oldest"] > mine:
            return
        await asyncio.sleep(0.05)


async def under_other_roots(tx: Transaction, tenant: UUID, active: int, limit: int) -> list[Any]:
    """Container keys under other root keys, with the generation that their container writes with."""
    return list(
        await tx.connection.fetch(
            "SELECT k.container_id, k.generation, k.trk_generation, k.sealed, c.ck_generation"
            " FROM confide.container_key k"
            " JOIN confide.container c ON c.tenant_id = k.tenant_id AND c.id = k.container_id"
            " WHERE k.tenant_id = $1 AND k.trk_generation <> $2 ORDER BY k.container_id, k.generation LIMIT $3",
            tenant,
            active,
            limit,
        )
    )


async def store_resealed(
    tx: Transaction,
    tenant: UUID,
    active: int,
    batch: list[Any],
    resealed: list[bytes],
    renewed: list[tuple[UUID, int, bytes]],
) -> None:
    """Exchange the wrapping of ``batch``, and let its containers write with their ``renewed`` keys from now on.

    Locks containers in the order of their ids, as the write statement does. Rows that changed meanwhile are left as
    they are: they come again.
    """
    await tx.connection.execute(
        "SELECT 1 FROM confide.container WHERE tenant_id = $1 AND id = ANY($2::uuid[]) ORDER BY id FOR NO KEY UPDATE",
        tenant,
        sorted({row["container_id"] for row in batch}),
    )
    await tx.connection.execute(
        "UPDATE confide.container_key k SET trk_generation = $2, sealed = a.sealed"
        " FROM unnest($3::uuid[], $4::int[], $5::int[], $6::bytea[]) AS a (container, generation, old, sealed)"
        " WHERE k.tenant_id = $1 AND k.container_id = a.container AND k.generation = a.generation"
        " AND k.trk_generation = a.old",
        tenant,
        active,
        [row["container_id"] for row in batch],
        [row["generation"] for row in batch],
        [row["trk_generation"] for row in batch],
        resealed,
    )
    await tx.connection.execute(
        "WITH moved AS (UPDATE confide.container c SET ck_generation = a.generation"
        " FROM unnest($3::uuid[], $4::int[]) AS a (container, generation)"
        " WHERE c.tenant_id = $1 AND c.id = a.container AND c.ck_generation = a.generation - 1 RETURNING c.id)"
        " INSERT INTO confide.container_key (tenant_id, container_id, generation, trk_generation, sealed, created_at)"
        " SELECT $1, a.container, a.generation, $2, a.sealed, now()"
        " FROM unnest($3::uuid[], $4::int[], $5::bytea[]) AS a (container, generation, sealed)"
        " JOIN moved ON moved.id = a.container",
        tenant,
        active,
        [container for container, _, _ in renewed],
        [generation for _, generation, _ in renewed],
        [sealed for _, _, sealed in renewed],
    )


async def unused(tx: Transaction, tenant: UUID, after: UUID, limit: int) -> tuple[list[tuple[UUID, int]], UUID | None]:
    """Container keys (container, generation) that nothing stored needs, and the last container that was looked at.

    A container's older keys are never written with again, so that what is unused stays unused. ``limit``: containers.
    """
    rows = await tx.connection.fetch(
        "SELECT k.container_id FROM confide.container_key k WHERE k.tenant_id = $1 AND k.container_id > $2"
        " GROUP BY k.container_id HAVING count(*) > 1 ORDER BY k.container_id LIMIT $3",
        tenant,
        after,
        limit,
    )
    several = [row["container_id"] for row in rows]
    if not several:
        return [], None
    found = await tx.connection.fetch(
        "SELECT k.container_id, k.generation FROM confide.container_key k"
        " JOIN confide.container c ON c.tenant_id = k.tenant_id AND c.id = k.container_id"
        " WHERE k.tenant_id = $1 AND k.container_id = ANY($2::uuid[]) AND k.generation < c.ck_generation"
        " AND k.generation <> c.meta_ck"
        " AND NOT EXISTS (SELECT FROM confide.context_object o WHERE o.tenant_id = $1"
        " AND o.container_id = k.container_id AND o.ck_generation = k.generation)"
        " AND NOT EXISTS (SELECT FROM confide.turn t WHERE t.tenant_id = $1 AND t.container_id = k.container_id"
        " AND t.ck_generation = k.generation AND t.removed_at IS NULL) ORDER BY 1, 2",
        tenant,
        several,
    )
    return [(row["container_id"], row["generation"]) for row in found], several[-1]


async def drop(tx: Transaction, tenant: UUID, doomed: list[tuple[UUID, int]]) -> int:
    """Remove container keys. Answers how many there were."""
    return len(
        await tx.connection.fetch(
            "DELETE FROM confide.container_key k USING unnest($2::uuid[], $3::int[]) AS a (container, generation)"
            " WHERE k.tenant_id = $1 AND k.container_id = a.container AND k.generation = a.generation"
            " RETURNING k.generation",
            tenant,
            [container for container, _ in doomed],
            [generation for _, generation in doomed],
        )
    )
