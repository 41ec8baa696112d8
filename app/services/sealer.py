"""The sealer: moves events from the journal into their tenants' logs, and has checkpoints signed.

It runs in every worker; the one that holds the advisory lock leads, on the connection that holds it, so that a leader
whose connection is gone has neither lock nor transaction. A batch is one transaction: events, nodes, heads, marks.

Per writer flushes are committed in order, so everything up to the flush in the writer's row is there to be read. The
journal has no index but time; a flush that the search by time doesn't find is looked for without it, so a worker's
clock may jump as it likes. What can't be encoded is sealed as a small event that says so. Nothing is ever skipped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from app.audit.event import leaf_hash
from app.audit.merkle import Frontier, Node
from app.errors import ConfideError
from app.identity import new_id
from app.observability.metrics import Counter, Gauge, Histogram
from app.services.audit_epochs import open_epochs
from app.services.audit_events import entry_of
from app.services.audit_signing import Forked, Signing
from app.services.auditing import Auditing
from app.store import audit_seal as rows
from app.store.audit_seal import Connection, Leaf, Waiting
from app.store.audit_tree import Head, head
from app.store.connection import BROKEN, Connect

log = logging.getLogger("confide.sealer")

POLL_SECONDS: Final = 0.5
SIGN_SECONDS: Final = 30.0
TIDY_SECONDS: Final = 30.0
MARGIN: Final = timedelta(seconds=30)
"""Clocks of workers and database differ by less; what doesn't is found without the help of time."""
TARGET_ROWS: Final = 4000
LATE_SECONDS: Final = 5.0
ALARM_SECONDS: Final = 60.0
SLICE: Final = 64
"""Events encoded before the worker's other work gets a turn."""
MERGE_SECONDS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


class SealerMetrics:
    """Merge delay, backlog and what was sealed. Attributes have the names that ``Metrics`` collects them by."""

    def __init__(self) -> None:
        self.audit_merge_seconds = Histogram(
            "confide_audit_merge_seconds", "From an event's time to its place in the tree.", MERGE_SECONDS
        )
        self.audit_sealed = Counter("confide_audit_sealed_events", "Events sealed into a tree.")
        self.audit_quarantined = Counter("confide_audit_quarantined_events", "Events sealed as their replacement.")
        self.audit_backlog = Gauge("confide_audit_backlog_flushes", "Committed flushes that wait to be sealed.")
        self.audit_delay = Gauge("confide_audit_merge_delay_seconds", "Age of the oldest event of the last batch.")
        self.audit_leader = Gauge("confide_audit_sealer_leader", "Workers that lead the sealing: 1 in a cell.")


@dataclass(slots=True)
class _Batch:
    """What one transaction will write."""

    leaves: list[Leaf] = field(default_factory=list)
    nodes: list[tuple[UUID, int, Node]] = field(default_factory=list)
    grown: dict[UUID, tuple[Head, Frontier]] = field(default_factory=dict)


class Sealer:
    """``start`` once; ``leading`` tells whether this worker seals. ``also``: the leader's further work, each poll."""

    def __init__(
        self,
        region: str,
        connect: Connect,
        signing: Signing,
        auditing: Auditing,
        also: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._region = region
        self._connect = connect
        self._signing = signing
        self._auditing = auditing
        self._also = also
        self.metrics = SealerMetrics()
        self.leading = False
        self._id = new_id()
        self._task: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._heads: dict[UUID, Head] = {}
        self._since: datetime | None = None
        self._step = 64
        self._next_sign = self._next_tidy = self._late_alarm = 0.0
        self._last_delay = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sealer")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                await self._lead()
            except (*BROKEN, asyncpg.PostgresError, ConfideError, TimeoutError, rows.LostRace, Forked) as error:
                code = getattr(error, "sqlstate", None) or ""
                log.error("the sealer starts again", extra={"fields": {"error": type(error).__name__, "code": code}})
            except Exception as error:  # noqa: BLE001  an unsealed journal is worse than a repeated failure
                log.error("the sealer failed", extra={"fields": {"error": type(error).__name__}})
                self._auditing.alarm("audit-sealer", error=type(error).__name__)
            await asyncio.sleep(POLL_SECONDS)

    async def _lead(self) -> None:
        connection = await self._connect()
        try:
            while not await rows.try_lead(connection):  # noqa: ASYNC110  another process leads
                await asyncio.sleep(POLL_SECONDS)
            self._reset()
            self.leading = True
            self.metrics.audit_leader.set(1)
            await rows.make_partitions(connection)
            await open_epochs(connection, self._signing, self._region, self._auditing)
            while True:
                async with asyncio.timeout(120):
                    more = await self.poll(connection)
                await self._further()
                if not more:
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            self.leading = False
            self.metrics.audit_leader.set(0)
            connection.terminate()

    async def _further(self) -> None:
        """What else the leader does must not stop the sealing."""
        if self._also is None:
            return
        try:
            await self._also()
        except ConfideError as error:
            log.error("the leader's further work waits", extra={"fields": {"error": type(error).__name__}})

    async def poll(self, connection: Connection) -> bool:
        """Seal a batch, sign and tidy where it is time. Answers whether more is waiting."""
        started = await rows.now(connection)
        waiting = await rows.waiting(connection)
        self.metrics.audit_backlog.set(sum(writer.top - writer.mark for writer in waiting))
        if self._since is None:
            self._since = min((writer.time for writer in waiting), default=started) - MARGIN
        step = self._step
        whole = all(writer.top - writer.mark <= step for writer in waiting)
        if waiting:
            await self._seal(connection, waiting, step, started)
        now = time.monotonic()
        if whole:
            self._since = started - MARGIN
        if now >= self._next_tidy:
            await self._tidy(connection, now)
        if now >= self._next_sign:
            self._next_sign = now + SIGN_SECONDS
            await self._signing.sign(await rows.unsigned(connection, self._signing.key_id))
        return not whole

    async def _tidy(self, connection: Connection, now: float) -> None:
        self._next_tidy = now + TIDY_SECONDS
        await rows.make_partitions(connection)
        await rows.summarize(connection)
        if self._since is not None:
            await rows.set_swept(connection, self._id, self._since)

    # ------------------------------------------------------------ one batch

    async def _seal(self, connection: Connection, waiting: list[Waiting], step: int, started: datetime) -> None:
        found = await self._collect(connection, waiting, step)
        for tenant in {row["tenant_id"] for row in found} - self._heads.keys():
            self._heads[tenant] = await self._head(connection, tenant, started)
        batch = await self._build(found)
        latest: dict[UUID, datetime] = {}
        for row in found:
            latest[row["writer"]] = row["time"]
        marks = [(w.writer, min(w.top, w.mark + step), latest.get(w.writer, w.time)) for w in waiting]
        async with connection.transaction():
            await rows.see(connection, batch.grown)
            for before, after in batch.grown.values():
                await rows.grow(connection, before, after)
            if batch.leaves:
                await rows.insert_leaves(connection, batch.leaves)
                await rows.insert_nodes(connection, batch.nodes)
            await rows.set_marks(connection, marks)
        for tenant, (before, after) in batch.grown.items():
            self._heads[tenant] = Head(tenant, before.epoch, after, started)
        self._step = max(8, min(4096, step * TARGET_ROWS // max(len(found), 1) if found else step))
        self._measure(found, started)

    async def _head(self, connection: Connection, tenant: UUID, started: datetime) -> Head:
        async with connection.transaction():
            await rows.see(connection, [tenant])
            return await head(connection, tenant) or Head(tenant, 1, Frontier(), started)

    async def _collect(self, connection: Connection, waiting: list[Waiting], step: int) -> list[Any]:
        """The rows of every waiting flush, in an order that keeps each writer's and else follows time."""
        by_writer: dict[UUID, list[Any]] = {writer.writer: [] for writer in waiting}
        for row in await rows.unsealed(connection, self._since, step):
            if row["writer"] in by_writer:
                by_writer[row["writer"]].append(row)
        for writer in waiting:
            for since in (writer.time - MARGIN, None):
                if _whole(by_writer[writer.writer], writer, step):
                    break
                by_writer[writer.writer] = await rows.unsealed(connection, since, step, writer.writer)
        ordered: list[tuple[datetime, UUID, int, int, Any]] = []
        for writer in waiting:
            top, latest = min(writer.top, writer.mark + step), None
            for row in sorted(by_writer[writer.writer], key=lambda row: (row["flush"], row["seq"])):
                if row["flush"] <= top:
                    latest = row["time"] if latest is None else max(latest, row["time"])
                    ordered.append((latest, writer.writer, row["flush"], row["seq"], row))
        ordered.sort(key=lambda item: item[:4])
        return [item[4] for item in ordered]

    async def _build(self, found: list[Any]) -> _Batch:
        batch = _Batch()
        for number, row in enumerate(found):
            tenant = row["tenant_id"]
            before, frontier = batch.grown.get(tenant) or (self._heads[tenant], self._heads[tenant].frontier.copy())
            batch.grown[tenant] = (before, frontier)
            event, entry, fault = entry_of(row, self._region)
            if fault is not None:
                self.metrics.audit_quarantined.inc()
                self._auditing.alarm("audit-quarantine", tenant=str(tenant), event=event["id"], cause=fault)
            place = frontier.size
            batch.nodes.extend((tenant, before.epoch, node) for node in frontier.append(leaf_hash(entry)))
            batch.leaves.append(Leaf(tenant, before.epoch, place, UUID(event["id"]), row["time"], event, entry))
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return batch

    def _measure(self, found: list[Any], started: datetime) -> None:
        """Merge delays; and an alarm where the delay is over the promise and growing."""
        if not found:
            return
        delays = [(started - row["time"]).total_seconds() for row in found]
        for delay in delays:
            self.metrics.audit_merge_seconds.observe(max(delay, 0.0))
        self.metrics.audit_sealed.inc((), len(found))
        oldest = max(delays)
        self.metrics.audit_delay.set(max(oldest, 0.0))
        now = time.monotonic()
        if oldest > LATE_SECONDS and oldest >= self._last_delay and now >= self._late_alarm:
            self._late_alarm = now + ALARM_SECONDS
            self._auditing.alarm("audit-backlog", seconds=round(oldest))
        self._last_delay = oldest


def _whole(found: list[Any], writer: Waiting, step: int) -> bool:
    """Whether every flush that is due has a row here. Each has at least one, all of one moment."""
    due = min(writer.top, writer.mark + step) - writer.mark
    return len({row["flush"] for row in found if row["flush"] <= writer.mark + due}) == due
