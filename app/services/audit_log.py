"""Reading a tenant's audit log. The reading is an event too, committed before the answer leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from app.audit.merkle import ProofError
from app.errors import NotFound, TenantSuspended, Unauthenticated, Unavailable
from app.identity import Caller
from app.services.access import Access
from app.services.audit_events import entry_of, event_of
from app.services.audit_retention import shown as shown_range
from app.services.auditing import Auditing, Trace
from app.services.control import check, with_detail
from app.store import audit_query as rows
from app.store.audit_pool import AuditPool
from app.store.audit_query import FILTERS, Query
from app.store.audit_retention import dropped
from app.store.audit_tree import Connection
from app.store.statements import Record

__all__ = ["AuditLog", "AuditReading", "Found", "event_of"]


@dataclass(frozen=True, slots=True)
class Found:
    """An event's place in the order (time, id), and its canonical JSON."""

    time: datetime
    id: UUID
    entry: bytes


class AuditReading:
    """Transactions of those who read the log: the caller is checked anew, and the reading becomes an event."""

    def __init__(self, pool: AuditPool, auditing: Auditing, access: Access) -> None:
        self.pool = pool
        self.auditing = auditing
        self._access = access

    @asynccontextmanager
    async def act(
        self,
        caller: Caller,
        trace: Trace,
        action: str,
        event: UUID | None = None,
        *,
        snapshot: bool = False,
        **detail: str | int,
    ) -> AsyncIterator[tuple[Connection, dict[str, str | int]]]:
        """When the body is through, the event is committed. Raises Unauthenticated, TenantSuspended, Unavailable."""
        try:
            async with self.pool.transaction(caller.tenant, snapshot=snapshot) as tx:
                await check(tx, caller)
                yield tx.connection, detail
        except Unauthenticated:
            self._access.forget(caller.api_key)
            raise
        except ProofError as error:
            self.auditing.alarm("audit-tree", tenant=str(caller.tenant), cause=str(error))
            raise Unavailable("The stored log's head contradicts itself. The operator has been alarmed.") from None
        except TenantSuspended:
            await self.auditing.denied(caller, "suspended", trace)
            raise
        except NotFound:
            await self.record(caller, trace, action, detail, "denied", "absent")
            raise
        await self.record(caller, trace, action, detail, event=event)

    async def record(
        self,
        caller: Caller,
        trace: Trace,
        action: str,
        detail: dict[str, str | int],
        outcome: str = "allowed",
        reason: str | None = None,
        event: UUID | None = None,
    ) -> None:
        facts = with_detail(await self.auditing.control_facts(caller, trace), detail)
        await self.auditing.append(Record(caller.tenant, action, outcome, facts, reason, event=event))


class AuditLog:
    """Queries over what is sealed and what is about to be."""

    def __init__(self, region: str, reading: AuditReading) -> None:
        self._region = region
        self._reading = reading

    async def query(
        self, caller: Caller, query: Query, trace: Trace
    ) -> tuple[list[bytes], Found | None, list[dict[str, Any]]]:
        """Canonical JSON of up to ``query.limit`` events, the place to go on behind if there are more, and what
        retention dropped of the period.
        """
        used = [name for name in FILTERS if getattr(query, name) is not None]
        wide = replace(query, limit=query.limit + 1)
        async with self._reading.act(caller, trace, "audit.query", snapshot=True, filters=",".join(used)) as (
            connection,
            detail,
        ):
            found = [Found(row["time"], row["id"], row["entry"]) for row in await rows.sealed(connection, wide)]
            found += [
                Found(row["time"], row["id"], entry_of(row, self._region)[1])
                for row in await rows.tail(connection, wide)
            ]
            gone = await dropped(connection, query.tenant, query.since, query.until)
            found.sort(key=lambda one: (one.time, one.id), reverse=query.newest_first)
            shown = found[: query.limit]
            detail["events"] = len(shown)
        last = shown[-1] if len(found) > query.limit else None
        return [one.entry for one in shown], last, [shown_range(row) for row in gone]

    async def summary(self, caller: Caller, since: datetime, until: datetime, trace: Trace) -> dict[str, Any]:
        """Counts by action, purpose, principal, outcome and day; an event without the field counts nowhere there."""
        counted: dict[str, dict[str, int]] = {name: {} for name in ("action", "purpose", "principal", "outcome", "day")}
        async with self._reading.act(caller, trace, "audit.query", snapshot=True, what="summary") as (
            connection,
            detail,
        ):
            for row in await rows.summary(connection, caller.tenant, since, until):
                if row["value"] is not None:
                    counted[row["dimension"]][row["value"]] = row["events"]
            gone = await dropped(connection, caller.tenant, since, until)
            total = sum(counted["outcome"].values())
            detail["events"] = total
        answer: dict[str, Any] = {"from": since, "to": until, "events": total} | counted
        return answer | ({"dropped": [shown_range(row) for row in gone]} if gone else {})

    async def counts(self, caller: Caller, since: datetime, until: datetime, trace: Trace) -> list[dict[str, Any]]:
        """An operator's view: how many sealed events of which kind each tenant has."""
        async with self._reading.act(caller, trace, "audit.query", what="counts") as (connection, detail):
            found = [dict(row) for row in await rows.counts(connection, since, until)]
            detail["rows"] = len(found)
        return found
