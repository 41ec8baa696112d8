"""SQL around a restore: roles before it, what the deletion journal says after it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from app.store.ledger import Transaction

REVISION: Final = "SELECT version_num FROM confide_migrations.schema_version"
ROLES: Final = ("confide_owner", "confide_service", "confide_auditor")


async def bring_roles(connection: asyncpg.Connection[Any]) -> None:
    """The roles that a dump grants to; a dump of one database doesn't hold them."""
    for role in ROLES:
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} NOLOGIN")
    await connection.execute("GRANT confide_owner TO CURRENT_USER")


async def last_event(tx: Transaction) -> datetime | None:
    """When anything last happened in this database: how old its state is. None where nothing ever did."""
    found: datetime | None = await tx.connection.fetchval("SELECT confide.last_event()")
    return found


async def delete_object(tx: Transaction, tenant: UUID, container: UUID, item: UUID, version: UUID) -> int:
    """In the version that was deleted or an older one: what was written later stays. Versions are UUIDv7."""
    status: str = await tx.connection.execute(
        "DELETE FROM confide.context_object WHERE tenant_id = $1 AND container_id = $2 AND id = $3 AND version <= $4",
        tenant,
        container,
        item,
        version,
    )
    return int(status.rsplit(maxsplit=1)[-1])


async def remove_turns(tx: Transaction, tenant: UUID, container: UUID, turns: Sequence[int], at: Any) -> int:
    """Those written before ``at``: after an earlier restore, numbers may have been given to other turns."""
    status: str = await tx.connection.execute(
        "UPDATE confide.turn SET body = NULL, removed_at = $5 WHERE tenant_id = $1 AND container_id = $2"
        " AND number BETWEEN $3 AND $4 AND removed_at IS NULL AND created_at <= $5",
        tenant,
        container,
        turns[0],
        turns[1],
        at,
    )
    return int(status.rsplit(maxsplit=1)[-1])


async def recompute_ends(tx: Transaction, tenant: UUID) -> None:
    """Every end of life anew from the container's own times, at most the tenant's longest; each is looked at."""
    await tx.connection.execute(
        "UPDATE confide.container c SET expires_at = d.at, sweep_at = d.at FROM ("
        " SELECT b.id, least(b.created_at + b.ttl_absolute_seconds * interval '1 second',"
        "  b.updated_at + b.ttl_idle_seconds * interval '1 second',"
        "  CASE WHEN b.kind <> 'app' THEN b.updated_at + t.ttl_max_seconds * interval '1 second' END) AS at"
        " FROM confide.container b JOIN confide.tenant t ON t.id = b.tenant_id WHERE b.tenant_id = $1) d"
        " WHERE c.tenant_id = $1 AND c.id = d.id",
        tenant,
    )


async def all_tenants(tx: Transaction, after: UUID, limit: int) -> list[UUID]:
    return [row[0] for row in await tx.connection.fetch("SELECT confide.tenant_ids($1, $2)", after, limit)]
