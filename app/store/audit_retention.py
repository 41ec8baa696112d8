"""SQL of the audit log's retention: for how long, what may go, and what has gone. Its days and numbers, no event."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from app.store.audit_tree import Connection

DEFAULT_MONTHS: Final = 13


async def months(connection: Connection, tenant: UUID) -> int:
    found: int | None = await connection.fetchval(
        "SELECT months FROM confide_audit.retention WHERE tenant_id = $1", tenant
    )
    return found if found is not None else DEFAULT_MONTHS


async def set_months(connection: Connection, tenant: UUID, count: int) -> None:
    await connection.execute(
        "INSERT INTO confide_audit.retention (tenant_id, months) VALUES ($1, $2)"
        " ON CONFLICT (tenant_id) DO UPDATE SET months = EXCLUDED.months",
        tenant,
        count,
    )


async def oldest_event(connection: Connection, tenant: UUID) -> datetime | None:
    oldest: datetime | None = await connection.fetchval(
        "SELECT min(time) FROM confide_audit.event WHERE tenant_id = $1", tenant
    )
    return oldest


async def dropped(
    connection: Connection, tenant: UUID, since: datetime | None = None, until: datetime | None = None
) -> list[Any]:
    """Ranges that retention dropped and that have events of [since, until): what an answer about it lacks."""
    return list(
        await connection.fetch(
            "SELECT epoch, first, beyond, oldest, newest, events, dropped_at FROM confide_audit.dropped"
            " WHERE tenant_id = $1 AND ($2::timestamptz IS NULL OR newest >= $2)"
            " AND ($3::timestamptz IS NULL OR oldest < $3) ORDER BY epoch, first",
            tenant,
            since,
            until,
        )
    )


async def old_months(connection: Connection) -> list[date]:
    """Months that ended twelve months ago or earlier and still have their events."""
    rows = await connection.fetch(
        "SELECT month FROM confide_audit.months() AS month WHERE month + interval '13 months' <= now() ORDER BY 1"
    )
    return [row["month"] for row in rows]


async def ranges(connection: Connection, month: date) -> list[Any]:
    """A month's ranges of all tenants; ``why`` each may not go yet, or None."""
    await _take_time(connection)
    return list(await connection.fetch("SELECT * FROM confide_audit.month_ranges($1)", month))


async def drop(connection: Connection, month: date) -> list[Any]:
    """Drop the month; answers (tenant_id, epoch, first, beyond) of what went. The database refuses what must stay."""
    await _take_time(connection)
    return list(await connection.fetch("SELECT * FROM confide_audit.drop_event_partition($1)", month))


async def _take_time(connection: Connection) -> None:
    """For the rest of the transaction: a month is read whole."""
    await connection.execute("SET LOCAL statement_timeout = '10min'")
    await connection.execute("SET LOCAL enable_seqscan = on")
