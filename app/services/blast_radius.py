"""Which sessions and subjects were opened: by a principal, an API key, under a key generation, in a time window.

From the sealed audit log. Operators get ids and counts; what a tenant gets is its own part and nothing of another's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.errors import InvalidRequest
from app.identity import NO_UUID
from app.services import key_history
from app.services.key_history import Period, Transition
from app.store import backup as cell_rows
from app.store import incidents as rows
from app.store import tenants as tenant_rows
from app.store.ledger import Ledger, Transaction
from app.store.privacy_records import dropped

MOST: Final = 10_000
"""Containers listed for each tenant; the counts are of all."""
FEW: Final = 1000
"""So many tenants' key histories are read before it is known whom a window of time concerns."""
_NOW: Final = {"active": "available"}


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
    """One tenant's part.

    ``key_states``: openings by the key state at the moment of each. ``key_history``: key states over the window, each
    since when. ``key_state_now``: as the tenant stands today. ``dropped_to``: events of the window up to then have been
    dropped from the log by retention, and are in no count.
    """

    tenant: UUID
    key_states: dict[str, int]
    key_history: list[dict[str, Any]]
    key_state_now: str
    containers: int
    subjects: int
    events: int
    listed: list[dict[str, Any]]
    dropped_to: datetime | None = None


async def compute(ledger: Ledger, suspect: Suspect) -> list[Part]:
    """By tenant. Raises InvalidRequest."""
    if suspect.since >= suspect.until:
        raise InvalidRequest("from must be before to.", "/from")
    if suspect.generation is not None and suspect.tenant is None:
        raise InvalidRequest("A key generation is a tenant's: name the tenant.", "/tenant")
    async with ledger.transaction() as tx:
        tenants = await _tenants(tx, suspect)
        if len(tenants) <= FEW:
            histories = await _histories(tx, suspect, tenants)
            by_tenant = await _openings(tx, suspect, tenants, _cuts(histories))
        else:  # who was touched at all; then those again, by period, whose keys changed within the window
            by_tenant = await _openings(tx, suspect, tenants)
            histories = await _histories(tx, suspect, list(by_tenant))
            cuts = _cuts(histories)
            if cuts:
                by_tenant |= await _openings(tx, suspect, list({tenant for tenant, _ in cuts}), cuts)
        gone = {row["tenant_id"]: row["newest"] for row in await dropped(tx, tenants, suspect.since, suspect.until)}
    for tenant in gone.keys() - by_tenant.keys():  # nothing is left of what may have been there
        by_tenant[tenant] = []
        histories.setdefault(tenant, [Period(suspect.since, "unknown")])
    async with ledger.transaction(*by_tenant) as tx:
        now = {row["id"]: row["key_state"] for row in await tenant_rows.get_many(tx, list(by_tenant))}
    return [
        _part(tenant, now.get(tenant, "unknown"), histories[tenant], each, gone.get(tenant))
        for tenant, each in by_tenant.items()
    ]


def _cuts(histories: Mapping[UUID, Sequence[Period]]) -> list[tuple[UUID, datetime]]:
    return [(tenant, cut) for tenant, found in histories.items() for cut in key_history.cuts(found)]


async def _openings(
    tx: Transaction, suspect: Suspect, tenants: Sequence[UUID], cuts: Sequence[tuple[UUID, datetime]] = ()
) -> dict[UUID, list[Any]]:
    window = (suspect.since, suspect.until)
    found = await rows.radius(tx, tenants, suspect.principal, suspect.api_key, suspect.generation, window, cuts)
    by_tenant: dict[UUID, list[Any]] = {}
    for row in found:
        by_tenant.setdefault(row["tenant_id"], []).append(row)
    return by_tenant


async def _histories(tx: Transaction, suspect: Suspect, tenants: Sequence[UUID]) -> dict[UUID, list[Period]]:
    """Key states of each tenant over the window."""
    seen: dict[UUID, list[Transition]] = {tenant: [] for tenant in tenants}
    for row in await rows.key_transitions(tx, tenants, suspect.until):
        detail = orjson.loads(row["detail"] or b"{}")
        names = (detail.get("binding"), detail.get("from"), detail.get("to"))
        seen[row["tenant_id"]].append(Transition(row["time"], row["action"], *names))
    return {tenant: key_history.periods(each, suspect.since, suspect.until) for tenant, each in seen.items()}


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


def _part(tenant: UUID, now: str, history: Sequence[Period], found: Sequence[Any], dropped_to: datetime | None) -> Part:
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
            "key_states": _by_state(history, row),
        }
        for row in found[:MOST]
    ]
    states: Counter[str] = Counter()
    for row in found:
        states.update(_by_state(history, row))
    told = [{"state": each.state, "since": each.since} for each in history]
    events = sum(row["events"] for row in found)
    return Part(tenant, dict(states), told, _NOW.get(now, now), len(found), len(subjects), events, listed, dropped_to)


def _by_state(history: Sequence[Period], row: Any) -> dict[str, int]:
    """A container's openings by the key state at the time of each."""
    states: dict[str, int] = {}
    for number, events in zip(row["periods"], row["period_events"], strict=True):
        state = history[number].state
        states[state] = states.get(state, 0) + events
    return states
