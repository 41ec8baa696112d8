"""How the control plane acts: one transaction that checks the caller anew, changes rows, and holds the event of it.

An attempt that fails is an event too, committed before the error is answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson

from app.errors import (
    ConfideError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    TenantSuspended,
    Unauthenticated,
)
from app.identity import Caller, Role
from app.services.access import Access
from app.services.auditing import Auditing, Trace
from app.store import api_keys as rows
from app.store.ledger import Ledger, Transaction
from app.store.statements import Record

_REASONS: Final[dict[type[ConfideError], tuple[str, str]]] = {
    TenantSuspended: ("denied", "suspended"),
    Forbidden: ("denied", "scope"),
    NotFound: ("denied", "absent"),
    Conflict: ("failed", "conflict"),
    PreconditionFailed: ("failed", "precondition"),
    InvalidRequest: ("failed", "invalid"),
}


@dataclass(slots=True)
class Act:
    """An open transaction and the event that it will commit. ``detail``: ids, states and counts, as they get known."""

    tx: Transaction
    detail: dict[str, str | int] = field(default_factory=dict)


class ControlPlane:
    """Opens the transactions of control routes."""

    def __init__(self, ledger: Ledger, auditing: Auditing, access: Access) -> None:
        self._ledger = ledger
        self._auditing = auditing
        self._access = access

    @asynccontextmanager
    async def act(
        self, caller: Caller, trace: Trace, action: str, *others: UUID, **detail: str | int
    ) -> AsyncIterator[Act]:
        """Raises Unauthenticated or TenantSuspended if the caller may no longer act, and what the body raises.

        ``action`` is the event in the caller's log; ``others`` are further tenants that the transaction sees and whose
        logs get the same event (an operator's act on a tenant stands in both logs).
        """
        # Made before the transaction: it may need one of its own, to keep the caller's address erasable.
        base = await self._auditing.control_facts(caller, trace)
        act: Act | None = None
        try:
            async with self._ledger.transaction(caller.tenant, *others) as tx:
                act = Act(tx, dict(detail))
                await check(tx, caller)
                yield act
                for tenant in (caller.tenant, *others):
                    tx.event(tenant, action, with_detail(base, act.detail))
        except Unauthenticated:
            self._access.forget(caller.api_key)
            raise
        except (Forbidden, NotFound, Conflict, PreconditionFailed, InvalidRequest) as error:
            outcome, reason = next(found for kind, found in _REASONS.items() if isinstance(error, kind))
            facts = with_detail(base, act.detail if act is not None else detail)
            await self._auditing.append(Record(caller.tenant, action, outcome, facts, reason))
            raise

    @asynccontextmanager
    async def local(self, tenant: UUID, action: str) -> AsyncIterator[Act]:
        """An act of whoever holds the cell's database login and secret: its command line. It names no caller."""
        async with self._ledger.transaction(tenant) as tx:
            act = Act(tx, {"by": "cell"})
            yield act
            tx.event(tenant, action, with_detail("{}", act.detail))

    @asynccontextmanager
    async def look(self, caller: Caller, trace: Trace, *others: UUID) -> AsyncIterator[Transaction]:
        """A transaction that only reads the control plane's own rows: checked like ``act``, an event only if denied."""
        try:
            async with self._ledger.transaction(caller.tenant, *others) as tx:
                await check(tx, caller)
                yield tx
        except Unauthenticated:
            self._access.forget(caller.api_key)
            raise
        except TenantSuspended:
            await self._auditing.denied(caller, "suspended", trace)
            raise


async def check(tx: Transaction, caller: Caller) -> None:
    """The caller's key and tenant as they stand in this transaction. Raises Unauthenticated, TenantSuspended."""
    standing = await rows.guard(tx, caller.tenant, caller.api_key)
    if standing == "api-key":
        raise Unauthenticated
    if standing == "suspended" and caller.role is not Role.OPERATOR:
        raise TenantSuspended


def with_detail(facts: str, detail: dict[str, Any]) -> str:
    """``facts`` (a JSON object) with a ``detail`` member."""
    if not detail:
        return facts
    comma = "" if facts == "{}" else ","
    return f'{facts[:-1]}{comma}"detail":{orjson.dumps(detail, option=orjson.OPT_SORT_KEYS).decode()}}}'
