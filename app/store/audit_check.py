"""SQL of the cross-check: what a tenant has stored, ids and numbers only, and every event that sealed something."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

from app.store.audit_query import JOURNAL, TAIL
from app.store.audit_tree import Connection

Range = tuple[UUID | None, UUID | None]
"""Containers from the first id on, up to and without the second."""

_WITHIN: Final = "($2::uuid IS NULL OR {0} >= $2) AND ($3::uuid IS NULL OR {0} < $3)"


async def ranges(connection: Connection, tenant: UUID, every: int) -> list[Range]:
    """The tenant's containers, stored or named by an event, cut into ranges of ``every``: what is held at one time."""
    rows = await connection.fetch(
        "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM (SELECT id FROM confide.container"
        " WHERE tenant_id = $1 UNION SELECT container FROM confide_audit.event WHERE tenant_id = $1"
        " AND container IS NOT NULL) u) x WHERE n % $2 = 0 ORDER BY id",
        tenant,
        every,
    )
    bounds = [None, *(row["id"] for row in rows), None]
    return list(pairwise(bounds))


async def sealing_events(connection: Connection, tenant: UUID, within: Range) -> AsyncIterator[bytes]:
    """Leaf entries of events that name a container of the range, epoch by epoch, in the order of the log."""
    sql = (
        f"SELECT entry FROM confide_audit.event WHERE tenant_id = $1 AND {_WITHIN.format('container')}"  # noqa: S608
        " AND container IS NOT NULL AND outcome = 'allowed' ORDER BY epoch, leaf"
    )
    async for row in connection.cursor(sql, tenant, *within, prefetch=2000):
        yield row["entry"]


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


async def containers(connection: Connection, tenant: UUID, within: Range) -> list[Any]:
    return list(
        await connection.fetch(
            "SELECT id, commit_number, turn_head FROM confide.container"  # noqa: S608
            f" WHERE tenant_id = $1 AND {_WITHIN.format('id')}",
            tenant,
            *within,
        )
    )


async def objects(connection: Connection, tenant: UUID, within: Range) -> list[Any]:
    return list(
        await connection.fetch(
            "SELECT container_id, id, version FROM confide.context_object"  # noqa: S608
            f" WHERE tenant_id = $1 AND {_WITHIN.format('container_id')}",
            tenant,
            *within,
        )
    )


async def turns(connection: Connection, tenant: UUID, within: Range) -> list[Any]:
    """(container, number, living) of every turn and tombstone."""
    return list(
        await connection.fetch(
            "SELECT container_id, number, removed_at IS NULL AS living FROM confide.turn"  # noqa: S608
            f" WHERE tenant_id = $1 AND {_WITHIN.format('container_id')}",
            tenant,
            *within,
        )
    )


async def tenants(connection: Connection) -> list[UUID]:
    rows = await connection.fetch(
        "SELECT t FROM confide.tenant_ids('00000000-0000-0000-0000-000000000000', 1000000) AS t"
    )
    return [row["t"] for row in rows]
