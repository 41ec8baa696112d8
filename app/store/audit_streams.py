"""SQL of the push streams: their settings, and where each stands."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from app.store.audit_tree import Connection


async def insert(connection: Connection, tenant: UUID, ident: UUID, url: str, region: str) -> Any:
    """A stream that begins with the next event that is sealed."""
    return await connection.fetchrow(
        "INSERT INTO confide_audit.stream (tenant_id, id, url, region, epoch, next_leaf)"
        " SELECT $1, $2, $3, $4, coalesce(max(l.epoch), 1), coalesce(max(l.size) FILTER (WHERE l.epoch ="
        " (SELECT max(n.epoch) FROM confide_audit.log n WHERE n.tenant_id = $1)), 0)"
        " FROM confide_audit.log l WHERE l.tenant_id = $1 RETURNING *",
        tenant,
        ident,
        url,
        region,
    )


async def count(connection: Connection, tenant: UUID) -> int:
    found: int = await connection.fetchval(
        "SELECT count(*) FROM confide_audit.stream WHERE tenant_id = $1 AND deleted_at IS NULL", tenant
    )
    return found


async def get(connection: Connection, tenant: UUID, ident: UUID) -> Any:
    return await connection.fetchrow(
        "SELECT * FROM confide_audit.stream WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL", tenant, ident
    )


async def every(connection: Connection, tenant: UUID) -> list[Any]:
    """The tenant's streams with ``waiting``, the number of sealed events that each has yet to deliver."""
    return list(
        await connection.fetch(
            "SELECT s.*, (SELECT coalesce(sum(CASE WHEN l.epoch = s.epoch THEN greatest(l.size - s.next_leaf, 0)"
            " ELSE l.size END), 0) FROM confide_audit.log l WHERE l.tenant_id = s.tenant_id"
            " AND l.epoch >= s.epoch)::bigint AS waiting"
            " FROM confide_audit.stream s WHERE s.tenant_id = $1 AND s.deleted_at IS NULL ORDER BY s.id",
            tenant,
        )
    )


async def delete(connection: Connection, tenant: UUID, ident: UUID) -> bool:
    done = await connection.execute(
        "UPDATE confide_audit.stream SET deleted_at = now() WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL",
        tenant,
        ident,
    )
    return done.endswith(" 1")


async def due(connection: Connection, now: datetime, limit: int) -> list[Any]:
    """Streams of all tenants that have something to deliver and whose time has come."""
    return list(await connection.fetch("SELECT * FROM confide_audit.due_streams($1, $2)", now, limit))


async def next_events(connection: Connection, stream: Any, limit: int) -> list[Any]:
    """(leaf, id, sealed_at, entry) of the next events of the stream's epoch, in order."""
    return list(
        await connection.fetch(
            "SELECT leaf, id, sealed_at, entry FROM confide_audit.event WHERE tenant_id = $1 AND epoch = $2"
            " AND leaf >= $3 ORDER BY leaf LIMIT $4",
            stream["tenant_id"],
            stream["epoch"],
            stream["next_leaf"],
            limit,
        )
    )


async def first_since(connection: Connection, stream: Any, since: datetime) -> int | None:
    """The first leaf of the stream's epoch that was sealed at that time or later."""
    found: int | None = await connection.fetchval(
        "SELECT min(leaf) FROM confide_audit.event WHERE tenant_id = $1 AND epoch = $2 AND leaf >= $3"
        " AND sealed_at >= $4",
        stream["tenant_id"],
        stream["epoch"],
        stream["next_leaf"],
        since,
    )
    return found


async def move(connection: Connection, stream: Any, epoch: int, next_leaf: int, dropped: int = 0) -> None:
    """Go on from there. Only from where the stream stood: never back."""
    await connection.execute(
        "UPDATE confide_audit.stream SET epoch = $3, next_leaf = $4, dropped = dropped + $7"
        " WHERE tenant_id = $1 AND id = $2 AND epoch = $5 AND next_leaf = $6",
        stream["tenant_id"],
        stream["id"],
        epoch,
        next_leaf,
        stream["epoch"],
        stream["next_leaf"],
        dropped,
    )


async def delivered(connection: Connection, stream: Any, next_leaf: int) -> None:
    await connection.execute(
        "UPDATE confide_audit.stream SET next_leaf = $3, failures = 0, last_error = NULL, last_ok_at = now(),"
        " next_try_at = now() WHERE tenant_id = $1 AND id = $2 AND epoch = $4 AND next_leaf = $5",
        stream["tenant_id"],
        stream["id"],
        next_leaf,
        stream["epoch"],
        stream["next_leaf"],
    )


async def failed(connection: Connection, stream: Any, error: str, wait: float) -> None:
    """``error``: a code; ``wait``: seconds until the next try."""
    await connection.execute(
        "UPDATE confide_audit.stream SET failures = failures + 1, last_error = $3,"
        " next_try_at = now() + $4 * interval '1 second' WHERE tenant_id = $1 AND id = $2",
        stream["tenant_id"],
        stream["id"],
        error,
        wait,
    )
