"""The sealer: moves events from the journal into their tenants' logs, and has checkpoints signed.

It runs in every worker. The one with the advisory lock leads for a term; a leader whose connection is gone has neither
lock nor transaction, and one that stands still loses its lease. A batch is one transaction, which renews the lease of
its own term: events, nodes, heads, marks.

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
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import asyncpg

from app.audit.event import leaf_hash
from app.audit.merkle import Frontier
from app.errors import ConfideError
from app.identity import new_id
from app.observability.metrics import Counter, Gauge, Histogram
from app.services.audit_encode import Encoder
from app.services.audit_epochs import open_epochs
from app.services.audit_signing import Forked, Signing
from app.services.auditing import Auditing
from app.services.ending import end
from app.store import audit_seal as rows
from app.store.audit_seal import Connection, Grown, Leaves, Waiting
from app.store.audit_tree import Head, head
from app.store.connection import BROKEN, Connect

log = logging.getLogger("confide.sealer")

POLL_SECONDS: Final = 0.5
SIGN_SECONDS: Final = 30.0
TIDY_SECONDS: Final = 30.0
RENEW_SECONDS: Final = 1.5
MARGIN: Final = timedelta(seconds=30)
"""Clocks of workers and database differ by less; what doesn't is found without the help of time."""
TARGET_ROWS: Final = 4000
LATE_SECONDS: Final = 5.0
ALARM_SECONDS: Final = 60.0
SLICE: Final = 128
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

    leaves: Leaves = field(default_factory=Leaves)
    grown: list[Grown] = field(default_factory=list)


class Sealer:
    """``start`` once; ``leading`` tells whether this worker seals. ``also``: the leader's further work, beside it."""

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
        self._encoder = Encoder(region)
        self.metrics = SealerMetrics()
        self.leading = False
        self._id = new_id()
        self._task: asyncio.Task[None] | None = None
        self._beside: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._heads: dict[UUID, Head] = {}
        self._since: datetime | None = None
        self._step = 64
        self._term: int | None = None
        self._next_sign = self._next_tidy = self._next_hold = self._late_alarm = 0.0
        self._last_delay = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sealer")

    async def close(self) -> None:
        await end(self._task)

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
            self._reset()
            while not await self.take(connection):  # noqa: ASYNC110  another process leads
                await asyncio.sleep(POLL_SECONDS)
            self.leading = True
            self.metrics.audit_leader.set(1)
            await rows.make_partitions(connection)
            await open_epochs(connection, self._signing, self._region, self._auditing, self.hold)
            while True:
                async with asyncio.timeout(120):
                    more = await self.poll(connection)
                self._further()
                if not more:
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            self.leading = False
            self.metrics.audit_leader.set(0)
            connection.terminate()
            await end(self._beside)

    async def take(self, connection: Connection) -> bool:
        """Begin a term, unless another leads."""
        self._term, self._next_hold = await rows.take_lead(connection, self._id), 0.0
        return self._term is not None

    async def hold(self, connection: Connection) -> None:
        """Renew the lease, and let nobody else lead before the open transaction ends. Raises LostRace."""
        if self._term is None:
            raise rows.LostRace
        await rows.hold_lead(connection, self._id, self._term)
        self._next_hold = time.monotonic() + RENEW_SECONDS

    def _further(self) -> None:
        """What else the leader does stands beside the sealing: dropping a month may take minutes, a statement hang."""
        if self._also is not None and (self._beside is None or self._beside.done()):
            self._beside = asyncio.create_task(self._do_further(self._also), name="sealer-beside")

    async def _do_further(self, also: Callable[[], Awaitable[None]]) -> None:
        try:
            await also()
        except ConfideError as error:
            log.error("the leader's further work waits", extra={"fields": {"error": type(error).__name__}})
        except Exception as error:  # noqa: BLE001  it is tried again, and nobody else would tell
            log.error("the leader's further work failed", extra={"fields": {"error": type(error).__name__}})
            self._auditing.alarm("audit-sealer", error=type(error).__name__)

    async def poll(self, connection: Connection) -> bool:
        """Seal a batch, sign and tidy where it is time. Answers whether more is waiting. Raises LostRace."""
        if self._term is None:
            await self.take(connection)
        if self._term is None or time.monotonic() >= self._next_hold:
            await self.hold(connection)
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
            await self._sign(connection)
        return not whole

    async def _sign(self, connection: Connection) -> None:
        """A fork of what was signed is for a new leader to name. Of what was never signed there is nothing to name: it
        stays unsigned, with an alarm at each attempt, until an operator has looked at it.
        """
        try:
            await self._signing.sign(await rows.unsigned(connection, self._signing.key_id))
        except Forked as fork:
            if fork.signed_before:
                raise
            log.error("a log isn't signed: its tree doesn't fit", extra={"fields": {"origins": fork.origins}})

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
            await self.hold(connection)
            await rows.see(connection, [log.before.tenant for log in batch.grown])
            if batch.grown:
                await rows.grow(connection, batch.grown)
                await rows.insert_leaves(connection, batch.leaves)
                for tenant in await rows.insert_nodes(connection, batch.grown):
                    self._auditing.alarm("audit-tree", tenant=str(tenant), cause="a hash stood where another belongs")
            await rows.set_marks(connection, marks)
        for before, after, _ in batch.grown:
            self._heads[before.tenant] = Head(before.tenant, before.epoch, after, started)
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
        ordered: list[tuple[datetime, UUID, int, list[Any]]] = []
        for writer in waiting:
            top, latest = min(writer.top, writer.mark + step), None
            for flush, group in groupby(sorted(by_writer[writer.writer], key=_place), key=_flush):
                if flush <= top:
                    rows_ = list(group)
                    newest = max(row["time"] for row in rows_)
                    latest = newest if latest is None else max(latest, newest)
                    ordered.append((latest, writer.writer, flush, rows_))
        ordered.sort(key=lambda item: item[:3])
        return [row for item in ordered for row in item[3]]

    async def _build(self, found: list[Any]) -> _Batch:
        batch = _Batch()
        logs: dict[UUID, tuple[str, str, int, list[bytes]]] = {}
        for number, row in enumerate(found, 1):
            tenant = row["tenant_id"]
            event = self._encoder.encode(row)
            if event.fault is not None:
                self.metrics.audit_quarantined.inc()
                self._auditing.alarm("audit-quarantine", tenant=str(tenant), event=event.id, cause=event.fault)
            log_ = logs.get(tenant)
            if log_ is None:
                head = self._heads[tenant]
                log_ = logs[tenant] = (str(tenant), str(head.epoch), head.size, [])
            name, epoch, size, hashes = log_
            batch.leaves.add(name, epoch, size + len(hashes), event)
            hashes.append(leaf_hash(event.entry))
            if number % SLICE == 0:
                await asyncio.sleep(0)
        for tenant, (_, _, _, hashes) in logs.items():
            frontier = self._heads[tenant].frontier.copy()
            batch.grown.append(Grown(self._heads[tenant], frontier, frontier.extend(hashes)))
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


def _flush(row: Any) -> int:
    flush: int = row["flush"]
    return flush


def _place(row: Any) -> tuple[int, int]:
    return row["flush"], row["seq"]


def _whole(found: list[Any], writer: Waiting, step: int) -> bool:
    """Whether every flush that is due has a row here. Each has at least one, all of one moment."""
    due = min(writer.top, writer.mark + step) - writer.mark
    return len({row["flush"] for row in found if row["flush"] <= writer.mark + due}) == due
