"""SQL of the cross-check: what a tenant has stored, ids and numbers only, and every event that sealed something."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from app.store.audit_query import JOURNAL, TAIL
from app.store.audit_tree import Connection


async def sealing_events(connection: Connection, tenant: UUID) -> AsyncIterator[bytes]:
    """Leaf entries of events that name a container, epoch by epoch, in the order of the log."""
    place = (0, -1)
    while True:
        page = await connection.fetch(
            "SELECT epoch, leaf, entry FROM confide_audit.event WHERE tenant_id = $1 AND container IS NOT NULL"
            " AND outcome = 'allowed' AND (epoch, leaf) > ($2, $3) ORDER BY epoch, leaf LIMIT 2000",
            tenant,
            *place,
        )
        for row in page:
            yield row["entry"]
        if not page:
            return
        place = (page[-1]["epoch"], page[-1]["leaf"])


async def tail(connection: Connection, tenant: UUID) -> list[Any]:
    return list(
        await connection.fetch(
            f"SELECT {JOURNAL}{TAIL} AND j.container IS NOT NULL AND j.outcome = 'allowed' ORDER BY j.writer, j.seq",
            tenant,
        )
    )


async def first_leaf(connection: Connection, tenant: UUID) -> int | None:
    """The first event that is still stored; 0 where none was dropped."""
    found: int | None = await connection.fetchval(
        "SELECT min(leaf) FROM confide_audit.event WHERE tenant_id = $1 AND epoch = (SELECT min(epoch)"
        " FROM confide_audit.log WHERE tenant_id = $1)",
        tenant,
    )
    return found


async def containers(connection: Connection, tenant: UUID) -> list[Any]:
    return list(
        await connection.fetch(
            "SELECT id, commit_number, turn_head FROM confide.container WHERE tenant_id = $1", tenant
        )
    )


async def objects(connection: Connection, tenant: UUID) -> list[Any]:
    return list(
        await connection.fetch(
            "SELECT container_id, id, version FROM confide.context_object WHERE tenant_id = $1", tenant
        )
    )


async def turns(connection: Connection, tenant: UUID) -> list[Any]:
    """(container, number, living) of every turn and tombstone."""
    return list(
        await connection.fetch(
            "SELECT container_id, number, removed_at IS NULL AS living FROM confide.turn WHERE tenant_id = $1", tenant
        )
    )


async def tenants(connection: Connection) -> list[UUID]:
    rows = await connection.fetch(
        "SELECT t FROM confide.tenant_ids('00000000-0000-0000-0000-000000000000', 1000000) AS t"
    )
    return [row["t"] for row in rows]
