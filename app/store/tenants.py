# ruff: noqa: S608  what is put into the texts are column names of this module
"""SQL for tenants. Whatever workers keep of a row is invalidated by its epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from app.store.ledger import Transaction

COLUMNS: Final = (
    "id, region, name, state, key_state, epoch, require_preconditions, lease_seconds, grace_seconds, ttl_idle_seconds,"
    " ttl_max_seconds, rate_per_second, created_at, changed_at"
)
CHANGEABLE: Final = frozenset(
    {"name", "require_preconditions", "ttl_idle_seconds", "ttl_max_seconds", "rate_per_second"}
)


async def insert(tx: Transaction, tenant: UUID, region: str, name: str, settings: Mapping[str, Any]) -> Any:
    """A new tenant. ``settings``: columns of ``CHANGEABLE``; the others have the schema's defaults."""
    names = _checked(settings)
    columns = "".join(f", {column}" for column in names)
    places = "".join(f", ${place}" for place in range(4, 4 + len(names)))
    return await tx.connection.fetchrow(
        f"INSERT INTO confide.tenant (id, region, name{columns}) VALUES ($1, $2, $3{places}) RETURNING {COLUMNS}",
        tenant,
        region,
        name,
        *(settings[column] for column in names),
    )


async def get(tx: Transaction, tenant: UUID) -> Any:
    return await tx.connection.fetchrow(f"SELECT {COLUMNS} FROM confide.tenant WHERE id = $1", tenant)


async def ids(tx: Transaction, after: UUID, limit: int) -> list[UUID]:
    """Ids above ``after`` in their order, which is that of creation. Sees all tenants, and nothing of them but ids."""
    return [row[0] for row in await tx.connection.fetch("SELECT confide.tenant_ids($1, $2)", after, limit)]


async def get_many(tx: Transaction, tenants: list[UUID]) -> list[Any]:
    """The rows of ``tenants``, which the transaction must have named."""
    return list(
        await tx.connection.fetch(f"SELECT {COLUMNS} FROM confide.tenant WHERE id = ANY ($1) ORDER BY id", tenants)
    )


async def update(tx: Transaction, tenant: UUID, changes: Mapping[str, Any]) -> Any:
    """Change columns of ``CHANGEABLE`` and move the epoch, so that every worker reads the row again. None if absent."""
    names = _checked(changes)
    parts = "".join(f", {column} = ${place}" for place, column in enumerate(names, 2))
    return await tx.connection.fetchrow(
        f"UPDATE confide.tenant SET epoch = epoch + 1, changed_at = now(){parts} WHERE id = $1 RETURNING {COLUMNS}",
        tenant,
        *(changes[column] for column in names),
    )


async def set_state(tx: Transaction, tenant: UUID, old: str, new: str) -> Any:
    """From ``old`` to ``new``; a tenant that is ``new`` already stays as it is. None if absent or in a third state."""
    return await tx.connection.fetchrow(
        "UPDATE confide.tenant SET state = $3, epoch = epoch + (state <> $3)::int,"
        " changed_at = CASE WHEN state = $3 THEN changed_at ELSE now() END"
        f" WHERE id = $1 AND state IN ($2, $3) RETURNING {COLUMNS}",
        tenant,
        old,
        new,
    )


def _checked(columns: Mapping[str, Any]) -> list[str]:
    names = sorted(columns)
    if not CHANGEABLE.issuperset(names):
        raise ValueError("a column of the tenant's that isn't set this way")
    return names
