"""How long a tenant's audit log is kept, and its end: whole months that are sealed, signed and exported.

The leader drops what is due. A month holds the events of all tenants, so it goes when the longest retention of any of
them has passed and every one's range was exported. Hashes and checkpoints stay: archived exports still verify.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.identity import Caller
from app.services.auditing import Auditing, Trace
from app.services.control import ControlPlane
from app.store import audit_retention as rows
from app.store.ledger import Ledger

log = logging.getLogger("confide.audit")

MIN_MONTHS: Final = 12
MAX_MONTHS: Final = 120
LOOK_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 300.0


class AuditRetention:
    """The tenant's policy, and the leader's work on it."""

    def __init__(self, control: ControlPlane, ledger: Ledger, auditing: Auditing) -> None:
        self._control = control
        self._ledger = ledger
        self._auditing = auditing
        self._next = 0.0

    async def report(self, caller: Caller, trace: Trace) -> dict[str, Any]:
        """The policy, the oldest event, what was dropped, and what is past its time but stays, with the reason."""
        async with self._control.look(caller, trace) as tx:
            held = [
                {"month": month.strftime("%Y-%m"), "why": row["why"]}
                for month in await rows.old_months(tx.connection)
                for row in await rows.ranges(tx.connection, month)
                if row["tenant_id"] == caller.tenant and row["why"] is not None
            ]
            return {
                "months": await rows.months(tx.connection, caller.tenant),
                "oldest_event": await rows.oldest_event(tx.connection, caller.tenant),
                "dropped": [shown(row) for row in await rows.dropped(tx.connection, caller.tenant)],
                "held": held,
            }

    async def change(self, caller: Caller, months: int, trace: Trace) -> dict[str, Any]:
        """Keep events for so many months from now on. What is dropped doesn't come back."""
        async with self._control.act(caller, trace, "audit.retention", months=months) as act:
            act.detail["before"] = await rows.months(act.tx.connection, caller.tenant)
            await rows.set_months(act.tx.connection, caller.tenant, months)
        return await self.report(caller, trace)

    async def dropped(self, tenant: UUID, since: datetime | None, until: datetime | None) -> list[dict[str, Any]]:
        """What an answer about [since, until) lacks, because retention dropped it: whoever accounts for a period says
        so. Empty where everything is there.
        """
        async with self._ledger.transaction(tenant) as tx:
            return [shown(row) for row in await rows.dropped(tx.connection, tenant, since, until)]

    async def work(self) -> None:
        """Drop what is due, once an hour. Raises Unavailable where the database is busy: it is tried again soon."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + RETRY_SECONDS
        await self.drop_due()
        self._next = now + LOOK_SECONDS

    async def drop_due(self) -> int:
        """Answers how many months went. A month that stays keeps all after it: what is stored has no hole."""
        done = 0
        async with self._ledger.transaction() as tx:
            months = await rows.old_months(tx.connection)
        for month in months:
            async with self._ledger.transaction() as tx:
                found = await rows.ranges(tx.connection, month)
            why = {row["why"] for row in found if row["why"] is not None}
            if why:
                log.info("a month stays", extra={"fields": {"month": month.isoformat(), "why": sorted(why)}})
                break
            tenants = {row["tenant_id"] for row in found}
            async with self._ledger.transaction(*tenants) as tx:
                for row in await rows.drop(tx.connection, month):
                    detail = {"epoch": row["epoch"], "first": row["first"], "end": row["beyond"]}
                    detail["month"] = f"{month:%Y-%m}"
                    tx.event(row["tenant_id"], "audit.retention", orjson.dumps({"detail": detail}).decode())
            done += 1
        return done

    async def close(self) -> None:
        await self._ledger.close()


def shown(row: Any) -> dict[str, Any]:
    """A dropped range as answers have it; ``end`` is the first leaf that isn't of it."""
    return {
        "epoch": row["epoch"],
        "first": row["first"],
        "end": row["beyond"],
        "events": row["events"],
        "oldest": row["oldest"],
        "newest": row["newest"],
        "dropped_at": row["dropped_at"],
    }
