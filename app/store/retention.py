"""SQL for what reaches the end of its time, and for removing containers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.store.ledger import Transaction

LEADER: Final = 7_203_560
"""Advisory lock: one sweeper at a time in a cell."""

REMOVE: Final = "SELECT * FROM confide.remove_containers($1, $2, $3)"


async def lead(tx: Transaction) -> bool:
    """Whether this transaction is the cell's sweeper."""
    found: bool = await tx.connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LEADER)
    return found


async def due(tx: Transaction, limit: int) -> list[Any]:
    """(tenant_id, id) of containers whose turn it is to be looked at, the longest waiting first."""
    return list(await tx.connection.fetch("SELECT * FROM confide.due_containers(now(), $1)", limit))


async def name_tenants(tx: Transaction, tenants: Sequence[UUID]) -> None:
    """Let the rest of the transaction see the tenants that ``due`` found."""
    names = "{" + ",".join(str(tenant) for tenant in tenants) + "}"
    await tx.connection.execute("SELECT set_config('confide.tenants', $1, true)", names)


async def remove(tx: Transaction, tenants: Sequence[UUID], containers: Sequence[UUID], mode: str) -> list[Any]:
    """``confide.remove_containers``: rows (tenant_id, id, kind, status, objects, turns, keys)."""
    return list(await tx.connection.fetch(REMOVE, list(tenants), list(containers), mode))


async def drop_old_answers(tx: Transaction, limit: int) -> int:
    dropped: int = await tx.connection.fetchval("SELECT confide.drop_old_answers($1)", limit)
    return dropped


async def oldest_due(tx: Transaction) -> float:
    """Seconds that the longest waiting container is late; 0 where none waits."""
    late: float = await tx.connection.fetchval(
        "SELECT coalesce(extract(epoch FROM now() - confide.oldest_due(now())), 0)::float8"
    )
    return late


async def deleted_since(tx: Transaction, since: datetime) -> list[Any]:
    return list(await tx.connection.fetch("SELECT * FROM confide.deleted_since($1)", since))


async def summary(tx: Transaction, tenant: UUID, grace_seconds: int) -> list[Any]:
    """By kind: how many, how many held, expired and still stored, overdue (for longer than the grace), the oldest."""
    return list(
        await tx.connection.fetch(
            "SELECT kind, count(*) AS stored, count(*) FILTER (WHERE hold) AS held,"
            " count(*) FILTER (WHERE expires_at <= now() AND NOT hold) AS expired,"
            " count(*) FILTER (WHERE expires_at <= now() - $2 * interval '1 second' AND NOT hold) AS overdue,"
            " count(*) FILTER (WHERE expires_at IS NULL) AS unlimited,"
            " min(created_at) AS oldest, min(updated_at) AS longest_idle, max(expires_at) AS last_expiry"
            " FROM confide.container WHERE tenant_id = $1 GROUP BY kind ORDER BY kind",
            tenant,
            float(grace_seconds),
        )
    )
