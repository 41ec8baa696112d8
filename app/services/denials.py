"""Denials that a stranger could cause without end are counted, and written as one event a minute (G3).

Three kinds: keys that are nobody's (into the cell's own log); what a known key may not do (into its tenant's log, the
first few of a minute each as an event of its own, the rest as one with a count); revoked keys (one event for each, into
its tenant's log).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final
from uuid import UUID

import orjson

from app.errors import ConfideError
from app.identity import NO_UUID, Caller
from app.services.auditing import NO_TRACE, Auditing, Trace
from app.services.ending import end
from app.store.statements import Record

log = logging.getLogger("confide.access")

PERIOD: Final = 60.0
SINGLE: Final = 10
"""Denials of one key in a period that each get an event of their own."""
KEPT: Final = 10_000


class Denials:
    """Counts, and a task that writes them."""

    def __init__(self, auditing: Auditing, period: float = PERIOD) -> None:
        self._auditing = auditing
        self._period = period
        self._unknown: Counter[str] = Counter()
        self._single: Counter[UUID] = Counter()
        self._more: dict[tuple[UUID, str], tuple[Caller, int]] = {}
        self._revoked: Counter[tuple[UUID, UUID, UUID]] = Counter()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="denials")

    async def close(self) -> None:
        """Write what is counted, then stop."""
        await end(self._task)
        await self.flush()

    def unauthenticated(self, reason: str) -> None:
        """``reason``: malformed, unknown, secret, expired, revoked, source, region, enrolment: counted, never told."""
        self._unknown[reason] += 1

    def revoked(self, tenant: UUID, api_key: UUID, principal: UUID) -> None:
        """A revoked key was shown, with its right secret: counted by key, so that its tenant is told which it was."""
        place = (tenant, api_key, principal)
        if place in self._revoked or len(self._revoked) < KEPT:
            self._revoked[place] += 1
        else:
            self._unknown["revoked"] += 1

    async def denied(self, caller: Caller, reason: str, route: str, trace: Trace) -> None:
        """Commit the denial's event, or count it. Raises Unavailable."""
        self._single[caller.api_key] += 1
        if self._single[caller.api_key] <= SINGLE:
            await self._auditing.denied(caller, reason, trace, detail={"route": route})
            return
        place = (caller.api_key, reason)
        if place in self._more or len(self._more) < KEPT:
            self._more[place] = (caller, self._more.get(place, (caller, 0))[1] + 1)

    async def flush(self) -> None:
        """Write the counts. What can't be committed now is kept and written with the next."""
        unknown, self._unknown = self._unknown, Counter()
        more, self._more = self._more, {}
        revoked, self._revoked = self._revoked, Counter()
        self._single.clear()
        try:
            if unknown:
                facts = orjson.dumps({"detail": dict(unknown)}).decode()
                await self._auditing.append(Record(NO_UUID, "api-key.denied", "denied", facts, "unauthenticated"))
                unknown = Counter()
            while more:
                place, (caller, count) = next(iter(more.items()))
                facts = await self._auditing.control_facts(caller, NO_TRACE, detail={"count": count})
                await self._auditing.append(Record(caller.tenant, "access.denied", "denied", facts, place[1]))
                del more[place]
            while revoked:
                (tenant, api_key, principal), count = next(iter(revoked.items()))
                who = {"principal": str(principal), "api_key": str(api_key), "detail": {"revoked": count}}
                facts = orjson.dumps(who).decode()
                await self._auditing.append(Record(tenant, "api-key.denied", "denied", facts, "unauthenticated"))
                del revoked[(tenant, api_key, principal)]
        except ConfideError as error:
            log.error("denials can't be written yet", extra={"fields": {"error": type(error).__name__}})
            self._unknown.update(unknown)
            self._revoked.update(revoked)
            for place, (caller, count) in more.items():
                self._more[place] = (caller, self._more.get(place, (caller, 0))[1] + count)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            await self.flush()
