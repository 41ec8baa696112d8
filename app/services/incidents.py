"""Incidents: the clock that starts at detection, who was told what and when, and which data is concerned (GDPR 33, 34).

The history is only ever added to; the database refuses anything else. What operators write is sealed under the cell's
key. Drafts come from detections; an operator confirms or dismisses them, but their clock has been running all along.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import orjson

from app.crypto.secret import SecretKey
from app.crypto.tokens import open_token, seal_token
from app.errors import Conflict, InvalidRequest, NotFound
from app.identity import NO_UUID, Caller, new_id
from app.services import blast_radius
from app.services.auditing import Auditing, Trace
from app.services.blast_radius import Part, Suspect
from app.services.control import ControlPlane
from app.services.incident_clock import AUTHORITY, CUSTOMER, SteadyClock, WallClock, deadlines
from app.store import incidents as rows
from app.store.ledger import Ledger

Audience = Literal["customer", "authority"]
PHASES: Final = ("investigating", "confirmed", "contained", "recovered", "dismissed")
_ROUTE: Final = "incident"


class Incidents:
    """Operators' side, and what a tenant sees of it."""

    def __init__(
        self,
        control: ControlPlane,
        ledger: Ledger,
        auditing: Auditing,
        notes: SecretKey,
        *,
        customer: timedelta = CUSTOMER,
        authority: timedelta = AUTHORITY,
        clock: WallClock | None = None,
    ) -> None:
        self.clock = clock or SteadyClock()
        self._control = control
        self._ledger = ledger
        self._auditing = auditing
        self._notes = notes
        self.customer = customer
        self.authority = authority

    # ------------------------------------------------------------ operators

    async def open(self, caller: Caller, kind: str, detected_at: datetime, words: str, trace: Trace) -> dict[str, Any]:
        """Raises InvalidRequest for a time in the future."""
        if detected_at > self.clock() + timedelta(minutes=5):
            raise InvalidRequest("detected_at is in the future.", "/detected_at")
        incident = new_id()
        async with self._control.act(caller, trace, "incident.open", incident=str(incident), kind=kind) as act:
            due = deadlines(detected_at, self.customer, self.authority)
            await rows.insert(act.tx, incident, kind, None, detected_at, due)
            await rows.add(act.tx, incident, "opened", actor=caller.principal, words=self._seal(words), at=self.clock())
        return await self.get(caller, incident, trace)

    async def draft(self, kind: str, dedupe: str, detail: dict[str, Any]) -> UUID | None:
        """By a detection, now. None where the same thing has been drafted before."""
        incident, detected_at = new_id(), self.clock()
        async with self._ledger.transaction(NO_UUID) as tx:
            due = deadlines(detected_at, self.customer, self.authority)
            if await rows.insert(tx, incident, kind, dedupe, detected_at, due) is None:
                return None
            await rows.add(tx, incident, "drafted", detail=detail, at=detected_at)
            facts = orjson.dumps({"detail": {"incident": str(incident), "kind": kind, "by": "detection"}}).decode()
            tx.event(NO_UUID, "incident.open", facts)
        self._auditing.alarm("incident-drafted", incident=str(incident), kind=kind)
        return incident

    async def get(self, caller: Caller, incident: UUID, trace: Trace) -> dict[str, Any]:
        """With its whole history. Raises NotFound."""
        async with self._control.look(caller, trace) as tx:
            row = await rows.get(tx, incident, self.clock())
            if row is None:
                raise NotFound
            entries = await rows.entries(tx, incident)
        return describe(row, entries) | {"history": [self._entry(each) for each in entries]}

    async def page(self, caller: Caller, before: UUID | None, limit: int, trace: Trace) -> list[dict[str, Any]]:
        """The newest first."""
        async with self._control.look(caller, trace) as tx:
            found = await rows.page(tx, before, limit, self.clock())
            return [describe(row, await rows.entries(tx, row["id"])) for row in found]

    async def add(self, caller: Caller, incident: UUID, phase: str | None, words: str, trace: Trace) -> dict[str, Any]:
        """A note, a phase, or the end (``closed``). Raises NotFound, Conflict where it is closed."""
        action = "incident.close" if phase == "closed" else "incident.update"
        async with self._control.act(caller, trace, action, incident=str(incident)) as act:
            await self._check_open(act.tx, incident)
            kind = "closed" if phase == "closed" else "phase" if phase is not None else "note"
            detail = {"phase": phase} if phase is not None else {}
            act.detail |= detail
            await rows.add(
                act.tx, incident, kind, actor=caller.principal, detail=detail, words=self._seal(words), at=self.clock()
            )
        return await self.get(caller, incident, trace)

    async def notify(
        self, caller: Caller, incident: UUID, audience: Audience, tenants: Sequence[UUID], words: str, trace: Trace
    ) -> dict[str, Any]:
        """Tell customers (by their webhook, through the outbox), or record that the authority was told.

        Raises NotFound, Conflict, InvalidRequest.
        """
        if (audience == "customer") != bool(tenants):
            raise InvalidRequest("Name the tenants for customers; none for the authority.", "/tenants")
        detail = {"incident": str(incident), "audience": audience}
        async with self._control.act(caller, trace, "incident.notify", *tenants, **detail) as act:
            row = await self._check_open(act.tx, incident)
            for tenant in tenants:
                notice = new_id()
                body = {"type": "incident", "notice": notice, "incident": incident, "kind": row["kind"],
                        "tenant": tenant, "detected_at": row["detected_at"], "due": row["customer_due"]}  # fmt: skip
                await rows.insert_notice(act.tx, tenant, notice, incident, orjson.dumps(body, str).decode())
            for affected in tenants or (None,):
                await rows.add(
                    act.tx, incident, "notified", actor=caller.principal, audience=audience, affected=affected,
                    words=self._seal(words), at=self.clock(),
                )  # fmt: skip
        return await self.get(caller, incident, trace)

    async def scope(self, caller: Caller, incident: UUID, suspect: Suspect, trace: Trace) -> list[Part]:
        """Compute the blast radius, keep each tenant's part where that tenant can read it, and answer all parts."""
        parts = await blast_radius.compute(self._ledger, suspect)
        asked = {
            name: str(value)
            for name in ("principal", "api_key", "generation", "since", "until")
            if (value := getattr(suspect, name)) is not None
        }
        affected = [part.tenant for part in parts if part.tenant != NO_UUID]
        async with self._control.act(caller, trace, "incident.scope", *affected, incident=str(incident)) as act:
            row = await self._check_open(act.tx, incident)
            clock = {"detected_at": row["detected_at"].isoformat(), "customer_due": row["customer_due"].isoformat()}
            for part in parts:
                counts = {"containers": part.containers, "subjects": part.subjects, "events": part.events}
                states = {"key_states": part.key_states, "key_history": part.key_history}
                scope = asked | counts | states | clock
                if part.dropped_to is not None:
                    scope["dropped_to"] = part.dropped_to.isoformat()
                await rows.insert_part(act.tx, part.tenant, incident, scope, part.listed)
                await rows.add(
                    act.tx,
                    incident,
                    "scoped",
                    actor=caller.principal,
                    affected=part.tenant,
                    detail=asked | counts,
                    at=self.clock(),
                )
            if not parts:
                await rows.add(
                    act.tx,
                    incident,
                    "scoped",
                    actor=caller.principal,
                    detail=asked | {"containers": 0},
                    at=self.clock(),
                )
        return parts

    # ------------------------------------------------------------ tenants

    async def own_parts(self, caller: Caller, trace: Trace) -> list[dict[str, Any]]:
        """What incidents have touched of the caller's tenant: its own part of each, the newest first."""
        async with self._control.look(caller, trace) as tx:
            found = await rows.parts(tx, caller.tenant)
        return [
            {
                "incident": row["incident_id"],
                "at": row["at"],
                "scope": orjson.loads(row["scope"]),
                "containers": orjson.loads(row["containers"]),
            }
            for row in found
        ]

    # ------------------------------------------------------------ deadlines

    async def raise_overdue(self) -> int:
        """Alarm what is past its deadline with nobody told: once, and for good in the history."""
        async with self._ledger.transaction(NO_UUID) as tx:
            if not await rows.lead(tx):
                return 0
            now = self.clock()
            late = await rows.overdue(tx, now)
            for row in late:
                clocks = {"due": row["due"].isoformat(), "worker": now.isoformat(), "database": row["now"].isoformat()}
                await rows.add(tx, row["id"], "overdue", audience=row["audience"], detail=clocks, at=now)
                facts = orjson.dumps({"detail": {"incident": str(row["id"]), "audience": row["audience"]}}).decode()
                tx.event(NO_UUID, "incident.update", facts, outcome="failed", reason="overdue")
        for row in late:
            self._auditing.alarm("incident-overdue", incident=str(row["id"]), audience=row["audience"])
        return len(late)

    # ------------------------------------------------------------ inside

    async def _check_open(self, tx: Any, incident: UUID) -> Any:
        row = await rows.get(tx, incident, self.clock())
        if row is None:
            raise NotFound
        if any(entry["kind"] == "closed" for entry in await rows.entries(tx, incident)):
            raise Conflict("The incident is closed. Open another one that names it.")
        return row

    def _seal(self, words: str) -> str | None:
        return seal_token(self._notes, NO_UUID, _ROUTE, words.encode()) if words else None

    def _entry(self, row: Any) -> dict[str, Any]:
        entry = {name: row[name] for name in ("number", "at", "kind", "actor", "audience", "affected")}
        words = open_token(self._notes, NO_UUID, _ROUTE, row["words"]).decode() if row["words"] else None
        entry |= {"detail": orjson.loads(row["detail"]), "words": words}
        return {name: value for name, value in entry.items() if value is not None}


def describe(row: Any, entries: Sequence[Any]) -> dict[str, Any]:
    """An incident's state: phase, deadlines, and whether each was kept. ``row["now"]``: the latest of the clocks.

    Customers are told when the last of them is: each tenant that was found affected.
    """
    first: dict[tuple[str, UUID | None], datetime] = {}
    for each in entries:
        if each["kind"] == "notified":
            first.setdefault((each["audience"], each["affected"]), each["at"])
    affected = {each["affected"] for each in entries if each["kind"] == "scoped"} - {None, NO_UUID}
    untold = affected - {tenant for audience, tenant in first if audience == "customer"}
    told = {
        "authority": min((at for (audience, _), at in first.items() if audience == "authority"), default=None),
        "customer": None
        if untold
        else max((at for (audience, _), at in first.items() if audience == "customer"), default=None),
    }
    phases = [orjson.loads(entry["detail"]).get("phase") for entry in entries if entry["kind"] in {"phase", "closed"}]
    start = "draft" if row["draft"] else "open"

    def clock(audience: str, due: datetime) -> dict[str, Any]:
        moment = told[audience]
        return {"due": due, "told_at": moment, "overdue": moment is None and row["now"] > due,
                "kept": moment is not None and moment <= due}  # fmt: skip

    return {
        "id": row["id"],
        "kind": row["kind"],
        "phase": phases[-1] if phases else start,
        "detected_at": row["detected_at"],
        "opened_at": row["opened_at"],
        "customer": clock("customer", row["customer_due"]) | {"untold": sorted(untold)},
        "authority": clock("authority", row["authority_due"]),
    }
