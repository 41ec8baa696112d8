"""Which sessions and subjects were opened: by a principal, an API key, under a key generation, in a time window.

From the sealed audit log. Operators get ids and counts; what a tenant gets is its own part and nothing of another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.errors import InvalidRequest
from app.identity import NO_UUID
from app.store import backup as cell_rows
from app.store import incidents as rows
from app.store import tenants as tenant_rows
from app.store.ledger import Ledger, Transaction

MOST: Final = 10_000
"""Containers listed for each tenant; the counts are of all."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """What leaked or is feared to have. The window is always given; of the others at least one, or ``tenant``."""

    since: datetime
    until: datetime
    principal: UUID | None = None
    api_key: UUID | None = None
    generation: int | None = None
    tenant: UUID | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One tenant's part. ``key_state``: whether its data can be opened now."""

    tenant: UUID
    key_state: str
    containers: int
    subjects: int
    events: int
    listed: list[dict[str, Any]]


async def compute(ledger: Ledger, suspect: Suspect) -> list[Part]:
    """By tenant. Raises InvalidRequest."""
    if suspect.since >= suspect.until:
        raise InvalidRequest("from must be before to.", "/from")
    if suspect.generation is not None and suspect.tenant is None:
        raise InvalidRequest("A key generation is a tenant's: name the tenant.", "/tenant")
    async with ledger.transaction() as tx:
        tenants = await _tenants(tx, suspect)
        found = await rows.radius(
            tx, tenants, suspect.principal, suspect.api_key, suspect.generation, suspect.since, suspect.until
        )
    by_tenant: dict[UUID, list[Any]] = {}
    for row in found:
        by_tenant.setdefault(row["tenant_id"], []).append(row)
    async with ledger.transaction(*by_tenant) as tx:
        states = {row["id"]: row["key_state"] for row in await tenant_rows.get_many(tx, list(by_tenant))}
    return [_part(tenant, states.get(tenant, "unknown"), each) for tenant, each in by_tenant.items()]


async def _tenants(tx: Transaction, suspect: Suspect) -> list[UUID]:
    if suspect.tenant is not None:
        return [suspect.tenant]
    if suspect.principal is not None or suspect.api_key is not None:
        return await rows.tenants_of(tx, suspect.principal, suspect.api_key)
    tenants: list[UUID] = []
    after = NO_UUID
    while page := await cell_rows.all_tenants(tx, after, 1000):
        tenants += page
        after = page[-1]
    return tenants


def _part(tenant: UUID, key_state: str, found: Sequence[Any]) -> Part:
    subjects = {row["subject"] for row in found if row["subject"] is not None}
    subjects |= {row["container"] for row in found if row["kind"] == "subject"}
    listed = [
        {
            "id": row["container"],
            "kind": row["kind"],
            "subject": row["subject"],
            "stored": row["stored"],
            "events": row["events"],
            "first_at": row["first_at"],
            "last_at": row["last_at"],
            "generations": row["generations"] or [],
        }
        for row in found[:MOST]
    ]
    return Part(tenant, key_state, len(found), len(subjects), sum(row["events"] for row in found), listed)
