"""What the worker knows of an event: who called, for what, under which key. The statement adds what it finds.

``facts`` is JSON text with the names that docs/format-audit.md gives. The part that stays equal for a caller and a key
state is made once and kept.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from typing import Any, Final
from uuid import UUID

import orjson
from msgspec import Struct

from app.audit.event import commitment
from app.identity import NO_UUID, Caller, Purpose
from app.store.erasables import keep_value
from app.store.lane import Lanes
from app.store.ledger import Ledger
from app.store.statements import Record

log = logging.getLogger("confide.alarm")

KEPT: Final = 10_000


class Trace(Struct, frozen=True):
    """Where a request comes from: W3C trace id, request id (text), and the client's address."""

    trace: str
    request: str
    source: str


NO_TRACE: Final = Trace("", "", "")


class Auditing:
    """Makes facts, and appends events that have no rows of their own."""

    def __init__(self, region: str, lane: Lanes[Record], ledger: Ledger) -> None:
        self._region = region
        self._lane = lane
        self._ledger = ledger
        self.alarms: dict[str, int] = {}
        self._callers: OrderedDict[tuple[UUID, Purpose | None], str] = OrderedDict()
        self._sources: OrderedDict[tuple[UUID, str], str] = OrderedDict()

    def facts(self, caller: Caller, purpose: Purpose | None, keys: str, trace: Trace, source: str) -> str:
        """JSON of an event by ``caller``. ``keys``: a JSON fragment of the key state, with a comma first, or
        nothing.
        """
        start = self._callers.get((caller.api_key, purpose))
        if start is None:
            start = self._start(caller, purpose)
        return f'{start}{keys},"trace":"{trace.trace}","request":"{trace.request}","source":"{source}"}}'

    def _start(self, caller: Caller, purpose: Purpose | None) -> str:
        known: dict[str, Any] = {
            "principal": str(caller.principal),
            "api_key": str(caller.api_key),
            "role": caller.role.value,
        }
        if purpose is not None:
            known["purpose"] = purpose.value
        start = orjson.dumps(known).decode()[:-1]
        self._callers[(caller.api_key, purpose)] = start
        if len(self._callers) > KEPT:
            self._callers.popitem(last=False)
        return start

    def known_source(self, tenant: UUID, address: str) -> str | None:
        """As ``source``, where it needn't be made."""
        return self._sources.get((tenant, address))

    async def source(self, tenant: UUID, address: str) -> str:
        """The salted commitment of a client's address, whose value stands in a side table before it is first used."""
        found = self.known_source(tenant, address)
        if found is not None:
            return found
        salt = secrets.token_bytes(16)
        made = commitment(address, salt)
        async with self._ledger.transaction(tenant) as tx:
            await keep_value(tx, tenant, made, salt, address)
        self._sources[(tenant, address)] = made
        if len(self._sources) > KEPT:
            self._sources.popitem(last=False)
        return made

    async def control_facts(
        self, caller: Caller | None, trace: Trace, *, purpose: Purpose | None = None, **more: Any
    ) -> str:
        """Facts of a control-plane event. ``more`` are further fields of the event, ``detail`` among them."""
        tenant = caller.tenant if caller is not None else NO_UUID
        known: dict[str, Any] = dict(more)
        if caller is not None:
            known |= {"principal": str(caller.principal), "api_key": str(caller.api_key), "role": caller.role.value}
        if purpose is not None:
            known["purpose"] = purpose.value
        if trace is not NO_TRACE:
            known |= {"trace": trace.trace, "request": trace.request}
            if trace.source:
                known["source"] = await self.source(tenant, trace.source)
        return orjson.dumps(known).decode()

    async def append(self, record: Record) -> None:
        """Commit one event. Raises ``Unavailable`` or ``OutcomeUnknown``."""
        await self._lane.submit(record)

    async def denied(self, caller: Caller, reason: str, trace: Trace, **more: Any) -> None:
        """A refused request is an event too."""
        facts = await self.control_facts(caller, trace, **more)
        await self.append(Record(caller.tenant, "access.denied", "denied", facts, reason))

    async def looked_up(self, caller: Caller, purpose: Purpose | None, trace: Trace) -> None:
        """A look-up that found nothing used the index key all the same."""
        facts = await self.control_facts(caller, trace, purpose=purpose)
        await self.append(Record(caller.tenant, "session.lookup", "allowed", facts))

    async def tampered(self, caller: Caller, trace: Trace, container: UUID) -> None:
        """Stored bytes were refused: an event in the tenant's log, and an alarm."""
        facts = await self.control_facts(caller, trace)
        await self.append(Record(caller.tenant, "tamper.refused", "denied", facts, "tampered", container))
        self.alarm("tampered", tenant=str(caller.tenant), container=str(container))

    def alarm(self, name: str, **facts: Any) -> None:
        """What an operator must see: a log line at ERROR and a counter. Holds ids and codes, never content."""
        log.error("alarm", extra={"fields": {"alarm": name, **facts}})
        self.alarms[name] = self.alarms.get(name, 0) + 1
