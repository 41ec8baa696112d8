"""Legal holds: what must not be erased, why (sealed under the tenant's key), and on whose word."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from app.errors import NotFound, Unavailable
from app.identity import Caller, Kind, new_id
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.erasure import KIND, Erasure, Target
from app.services.jobs import Jobs
from app.services.reading import Reading
from app.services.sealing import open_reason, seal_reason
from app.services.tenant_keys import TenantKeys
from app.store import privacy as rows
from app.store.container_keys import fence
from app.store.keys import epoch_of
from app.store.ledger import Ledger, Transaction
from app.store.pool import Pool

T = TypeVar("T")
TRIES: Final = 3
"""Of keys that have changed while a reason was sealed, before the caller is asked to come again."""


class _Stale(Unavailable):
    """The tenant's keys or policy have changed since its keys were loaded."""


@dataclass(slots=True)
class Hold:
    """``reason`` is a person's words."""

    id: UUID
    container: UUID
    set_by: UUID
    created_at: datetime
    released_at: datetime | None
    released_by: UUID | None
    reason: str = field(repr=False)


class Holds:
    """Set, list, release."""

    def __init__(
        self, reading: Reading, control: ControlPlane, jobs: Jobs, erasure: Erasure, ledger: Ledger, pool: Pool
    ) -> None:
        self._ledger = ledger
        self._pool = pool
        self._reading = reading
        self._control = control
        self._jobs = jobs
        self._erasure = erasure

    async def set(self, caller: Caller, target: Target, reason: str, trace: Trace) -> Hold:
        """On a session; or on a subject with the sessions that it has and those that it will begin.

        Raises NotFound, InvalidRequest.
        """
        kind, container = await self._erasure.place(caller, target)
        keys, row = await self._with_keys(
            caller.tenant, lambda keys: self._insert(caller, keys, kind, container, reason, trace)
        )
        if kind is Kind.SUBJECT:
            # A session whose transaction had begun before the hold was there has missed both the flag and the trigger.
            await fence(self._ledger, self._pool, caller.tenant)
            async with self._ledger.transaction(caller.tenant) as tx:
                await rows.flag_held(tx, caller.tenant, container)
        return self._hold(keys, row)

    async def _insert(
        self, caller: Caller, keys: TenantKeys, kind: Kind, container: UUID, reason: str, trace: Trace
    ) -> Any:
        hold = new_id()
        sealed = seal_reason(keys, container, hold, reason)
        async with self._control.act(caller, trace, "privacy.hold", step="set", hold=str(hold)) as act:
            if await rows.exists(act.tx, caller.tenant, container) != kind:
                raise NotFound
            await _present(act.tx, keys)
            act.detail["container"] = str(container)
            return await rows.insert_hold(
                act.tx, caller.tenant, hold, container, sealed, caller.principal, caller.api_key
            )

    async def page(self, caller: Caller, *, everything: bool, limit: int, trace: Trace) -> list[Hold]:
        """The newest first. Opening the reasons uses the tenant's key: it is an event."""

        async def read(keys: TenantKeys) -> list[Any]:
            async with self._control.act(caller, trace, "privacy.hold", step="read") as act:
                found = await rows.holds(act.tx, caller.tenant, everything=everything, limit=limit)
                await _present(act.tx, keys)
                act.detail["holds"] = len(found)
            return found

        keys, found = await self._with_keys(caller.tenant, read)
        return [self._hold(keys, row) for row in found]

    async def release(self, caller: Caller, hold: UUID, trace: Trace) -> Hold:
        """Erasures that it blocked go on. Raises NotFound where there is no open hold of that id."""

        async def end(keys: TenantKeys) -> Any:
            async with self._control.act(caller, trace, "privacy.hold", step="released", hold=str(hold)) as act:
                row = await rows.release_hold(act.tx, caller.tenant, hold, caller.principal)
                if row is None:
                    raise NotFound
                await _present(act.tx, keys)
                act.detail["container"] = str(row["container_id"])
                for job in await rows.blocked_jobs(act.tx, caller.tenant, KIND):
                    await self._jobs.unblock(act.tx, caller.tenant, job)
            return row

        keys, row = await self._with_keys(caller.tenant, end)
        return self._hold(keys, row)

    async def _with_keys(self, tenant: UUID, work: Callable[[TenantKeys], Awaitable[T]]) -> tuple[TenantKeys, T]:
        """What ``work`` answers, with the keys that it had: those that its transaction found to be the present ones."""
        for _ in range(TRIES):
            keys = await self._reading.keys(tenant)
            try:
                return keys, await work(keys)
            except _Stale:
                self._reading.keyring.discard(tenant, at_once=False)
        raise Unavailable

    @staticmethod
    def _hold(keys: TenantKeys, row: Any) -> Hold:
        keys.check()
        reason = open_reason(keys, row["container_id"], row["id"], row["reason"])
        return Hold(
            row["id"],
            row["container_id"],
            row["set_by"],
            row["created_at"],
            row["released_at"],
            row["released_by"],
            reason,
        )


async def _present(tx: Transaction, keys: TenantKeys) -> None:
    """Raises ``_Stale``. Reasons move with the index key: one that was sealed with older keys might be left behind."""
    if await epoch_of(tx, keys.tenant) != keys.epoch:
        raise _Stale
