"""SQL of the cross-check: what a tenant has stored, ids and numbers only, and every event that sealed something.

And the rows beside the events, which no leaf covers: the index of objects, and when each event was sealed.
"""

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


async def naming_events(connection: Connection, tenant: UUID) -> AsyncIterator[Any]:
    """(id, time, sealed_at, entry) of events that name objects."""
    sql = (
        "SELECT id, time, sealed_at, entry FROM confide_audit.event WHERE tenant_id = $1"
        " AND position('\"objects\":['::bytea IN entry) > 0"
    )
    async for row in connection.cursor(sql, tenant, prefetch=2000):
        yield row


async def not_indexed(connection: Connection, tenant: UUID, wanted: list[tuple[Any, ...]]) -> list[Any]:
    """Those of (object, time, event, sealed_at) that the index of objects doesn't have."""
    return list(
        await connection.fetch(
            "SELECT w.object, w.id FROM unnest($2::uuid[], $3::timestamptz[], $4::uuid[], $5::timestamptz[])"
            " AS w (object, time, id, sealed_at) WHERE NOT EXISTS (SELECT FROM confide_audit.event_object o"
            " WHERE o.tenant_id = $1 AND o.object = w.object AND o.time = w.time AND o.id = w.id"
            " AND o.sealed_at = w.sealed_at)",
            tenant,
            *map(list, zip(*wanted, strict=True)),
        )
    )


async def surplus_index(connection: Connection, tenant: UUID, limit: int) -> list[Any]:
    """(object, event) of rows of the index whose event isn't there, at that time and place, or doesn't name it."""
    return list(
        await connection.fetch(
            "SELECT o.object, o.id FROM confide_audit.event_object o LEFT JOIN confide_audit.event e"
            " ON e.tenant_id = $1 AND e.id = o.id AND e.sealed_at = o.sealed_at AND e.time = o.time"
            " WHERE o.tenant_id = $1 AND (e.id IS NULL OR position(convert_to(o.object::text, 'UTF8') IN e.entry) = 0)"
            " LIMIT $2",
            tenant,
            limit,
        )
    )


async def sealed_out_of_order(connection: Connection, tenant: UUID, limit: int) -> list[Any]:
    """(epoch, leaf, sealed_at) of events that are said to be sealed before the leaf to their left, or after the log's
    last.
    """
    return list(
        await connection.fetch(
            "SELECT x.epoch, x.leaf, x.sealed_at FROM (SELECT epoch, leaf, sealed_at,"
            " lag(sealed_at) OVER (PARTITION BY epoch ORDER BY leaf) AS before FROM confide_audit.event"
            " WHERE tenant_id = $1) x JOIN confide_audit.log l ON l.tenant_id = $1 AND l.epoch = x.epoch"
            " WHERE x.sealed_at < x.before OR x.sealed_at > l.sealed_at ORDER BY 1, 2 LIMIT $2",
            tenant,
            limit,
        )
    )


async def dropped_to(connection: Connection, tenant: UUID) -> list[Any]:
    """(epoch, beyond): up to where retention is said to have dropped each origin's events."""
    return list(
        await connection.fetch(
            "SELECT epoch, max(beyond) AS beyond FROM confide_audit.dropped WHERE tenant_id = $1 GROUP BY 1 ORDER BY 1",
            tenant,
        )
    )


async def retention_events(connection: Connection, tenant: UUID) -> list[bytes]:
    rows = await connection.fetch(
        "SELECT entry FROM confide_audit.event WHERE tenant_id = $1 AND action = 'audit.retention'"  # noqa: S608
        f" UNION ALL SELECT convert_to(j.facts, 'UTF8'){TAIL} AND j.action = 'audit.retention'",
        tenant,
    )
    return [row["entry"] for row in rows]


async def tenants(connection: Connection) -> list[UUID]:
    rows = await connection.fetch(
        "SELECT t FROM confide.tenant_ids('00000000-0000-0000-0000-000000000000', 1000000) AS t"
    )
    return [row["t"] for row in rows]
