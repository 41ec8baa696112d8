"""Lanes: where batches form.

A lane holds one connection and one audit writer. A flush takes what waited while the previous commit was under way, up
to a count and a number of bytes, round-robin over tenants, and sends it as one statement with one commit. No timer: a
lone request goes as soon as the event loop has turned a few times.

What fails, fails alone: a batch that the database refuses is run again item by item. A connection that breaks during a
statement leaves the outcome unknown; the writer's row tells it truly, once a new connection has fenced off the old one.
What was not committed is sent again; what was, but whose answer is lost, is ``OutcomeUnknown``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import asyncpg

from app.errors import OutcomeUnknown, Unavailable
from app.identity import new_id
from app.store.connection import BROKEN, Connect
from app.store.statements import Read, Record, Sequences, Write

log = logging.getLogger("confide.lane")

Item = TypeVar("Item", Read, Write, Record)
Encode = Callable[[Sequence[Any], UUID, int, Sequences], tuple[Any, ...]]
Decode = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]

FENCED: Final = "CF001"
RETRIED: Final = frozenset({"40001", "40P01", "55P03", "23505"})
"""Serialization failure, deadlock, lock not available, and a unique key that another lane or worker was first to take:
the batch is sent again whole, a few times; it then sees what stood in its way.
"""
RETRIES: Final = 3
QUIET_TURNS: Final = 4
"""Turns of the event loop without a new request, after which a batch leaves."""


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """``count`` items and ``weight`` bytes in a batch; ``waiting`` items in the queue, above which a request is shed;
    ``reconnect`` seconds that a waiting request allows for a lost database.
    """

    count: int = 64
    weight: int = 8 * 1024 * 1024
    waiting: int = 4096
    reconnect: float = 2.0


class _Waiting(Generic[Item]):
    """A submitted item and its caller's future."""

    __slots__ = ("future", "item", "retried")

    def __init__(self, item: Item, future: asyncio.Future[Any]) -> None:
        self.item: Item = item
        self.future = future
        self.retried = False


class _Queue(Generic[Item]):
    """First come first served within a tenant, round-robin between tenants."""

    def __init__(self) -> None:
        self._by_tenant: dict[UUID, deque[_Waiting[Item]]] = {}
        self.size = 0

    def push(self, waiting: _Waiting[Item]) -> None:
        queue = self._by_tenant.get(waiting.item.tenant)
        if queue is None:
            queue = self._by_tenant[waiting.item.tenant] = deque()
        queue.append(waiting)
        self.size += 1

    def push_back(self, batch: Sequence[_Waiting[Item]]) -> None:
        """Return what was taken but not done, to the front, in its order."""
        for waiting in reversed(batch):
            self._by_tenant.setdefault(waiting.item.tenant, deque()).appendleft(waiting)
            self.size += 1

    def take(self, limits: LaneLimits) -> list[_Waiting[Item]]:
        """A batch in which no container stands twice; what would, waits for the next one. Drops what nobody awaits."""
        batch: list[_Waiting[Item]] = []
        busy: set[UUID] = set()
        weight = 0
        aside: list[_Waiting[Item]] = []
        while self._by_tenant and len(batch) < limits.count and len(aside) < limits.count:
            tenant, queue = next(iter(self._by_tenant.items()))
            waiting = queue.popleft()
            self.size -= 1
            del self._by_tenant[tenant]
            if queue:
                self._by_tenant[tenant] = queue  # to the end: the next tenant's turn
            if waiting.future.done():
                continue
            containers = waiting.item.containers()
            if (batch and weight + waiting.item.weight > limits.weight) or not busy.isdisjoint(containers):
                aside.append(waiting)
                busy.update(containers)  # a later one for the same container stays behind it
                continue
            busy.update(containers)
            weight += waiting.item.weight
            batch.append(waiting)
        self.push_back(aside)
        return batch

    def drain(self) -> list[_Waiting[Item]]:
        everything = [waiting for queue in self._by_tenant.values() for waiting in queue]
        self._by_tenant.clear()
        self.size = 0
        return everything


class Lane(Generic[Item]):
    """One connection, one writer, one kind of statement. ``submit`` is what services call."""

    def __init__(
        self,
        name: str,
        connect: Connect,
        sql: str,
        encode: Encode,
        decode: Decode,
        limits: LaneLimits,
        *,
        observe: Callable[[str, int, int], None] = lambda name, items, events: None,
        changes: bool = True,
    ) -> None:
        """``changes`` False: what is lost with a connection may simply be asked again."""
        self.name = name
        self._changes = changes
        self._connect = connect
        self._sql = sql
        self._encode = encode
        self._decode = decode
        self._limits = limits
        self._observe = observe
        self._queue: _Queue[Item] = _Queue()
        self._wake = asyncio.Event()
        self._connection: asyncpg.Connection[Any] | None = None
        self.writer = new_id()
        self._flush = 0
        self._sequences = Sequences()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Connect and begin. Raises ``Unavailable`` if the database can't be reached."""
        await self._open(0)
        self._task = asyncio.create_task(self._run(), name=f"lane-{self.name}")

    def submit(self, item: Item) -> asyncio.Future[Any]:
        """The item's result, after its commit. A caller that goes away harms nobody; its item may still be done.

        Raises, or ends in, ``Unavailable`` (nothing was stored or released) or ``OutcomeUnknown``.
        """
        if self._closing or self._queue.size >= self._limits.waiting:
            raise Unavailable
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.push(_Waiting(item, future))
        self._wake.set()
        return future

    async def close(self) -> None:
        """Finish what waits, then disconnect."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        if self._connection is not None:
            await self._connection.close()

    @property
    def waiting(self) -> int:
        return self._queue.size

    async def _run(self) -> None:
        while True:
            if not self._queue.size:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._gather()
            batch = self._queue.take(self._limits)
            if not batch:
                continue
            try:
                await self._flush_batch(batch)
            except Exception as error:  # noqa: BLE001  the lane must outlive whatever one batch brings
                log.error("a flush failed", extra={"fields": {"lane": self.name, "error": type(error).__name__}})
                _refuse(batch, Unavailable())

    async def _gather(self) -> None:
        """Let requests that are being read off their sockets at this moment come along: turns of the event loop, no
        timer.

        A lone request loses some microseconds; a crowd shares one statement instead of being split by who came first.
        """
        size, quiet = self._queue.size, 0
        while quiet < QUIET_TURNS and size < self._limits.count:
            await asyncio.sleep(0)
            grown = self._queue.size
            quiet = quiet + 1 if grown == size else 0
            size = grown

    async def _flush_batch(self, batch: list[_Waiting[Item]], retries: int = RETRIES) -> None:
        if self._connection is None and not await self._reopen(batch):
            return
        assert self._connection is not None  # noqa: S101  _reopen has just set it
        flush = self._flush + 1
        items = [waiting.item for waiting in batch]
        try:
            arguments = self._encode(items, self.writer, flush, self._sequences)
            rows = await self._connection.fetch(self._sql, *arguments)
        except BROKEN:
            await self._resolve(batch, flush)
            return
        except asyncpg.PostgresError as error:
            self._sequences.give_back()
            await self._refused(batch, error, retries)
            return
        except BaseException:
            self._sequences.give_back()
            raise
        self._sequences.keep()
        self._flush = flush
        self._observe(self.name, len(batch), sum(item.events for item in items))
        for waiting, result in zip(batch, self._decode(items, rows), strict=True):
            if not waiting.future.done():
                waiting.future.set_result(result)

    async def _refused(self, batch: list[_Waiting[Item]], error: asyncpg.PostgresError, retries: int) -> None:
        """The database rolled the statement back. Its message may hold values: only the code is kept."""
        code = error.sqlstate or "?"
        if code == FENCED:
            self._drop_connection()
            await self._flush_batch(batch, retries - 1) if retries else _refuse(batch, Unavailable())
        elif code in RETRIED and retries:
            await self._flush_batch(batch, retries - 1)
        elif len(batch) > 1:
            for waiting in batch:
                await self._flush_batch([waiting])
        else:
            log.error("the database refused a statement", extra={"fields": {"lane": self.name, "sqlstate": code}})
            _refuse(batch, Unavailable())

    # ------------------------------------------------------------ a broken connection

    async def _resolve(self, batch: list[_Waiting[Item]], flush: int) -> None:
        """Find out whether the broken statement was committed, and act on it."""
        self._drop_connection()
        try:
            async with asyncio.timeout(self._limits.reconnect):
                committed = await self._open(flush)
        except (*BROKEN, asyncpg.PostgresError, TimeoutError, Unavailable):
            _refuse(batch, OutcomeUnknown() if self._changes else Unavailable())
            return
        if committed and self._changes:
            _refuse(batch, OutcomeUnknown())
            return
        _refuse([waiting for waiting in batch if waiting.retried], Unavailable())
        again = [waiting for waiting in batch if not waiting.future.done()]
        for waiting in again:
            waiting.retried = True
        self._queue.push_back(again)

    async def _reopen(self, batch: list[_Waiting[Item]]) -> bool:
        """Wait a little for a lost database, for those who wait."""
        try:
            async with asyncio.timeout(self._limits.reconnect):
                while True:
                    try:
                        await self._open(0)
                        return True
                    except (*BROKEN, asyncpg.PostgresError, Unavailable):
                        await asyncio.sleep(0.1)
        except TimeoutError:
            _refuse(batch, Unavailable())
            return False

    async def _open(self, flush: int) -> bool:
        """Connect, fence off this lane's last writer, and begin a new one. Answers whether ``flush`` was committed.

        The update waits for the old connection's statement where it still runs; where it has yet to arrive, it will
        find
        its writer gone and fail. So the old writer's numbers end without a gap, and a new writer's begin at 1.
        """
        connection = await self._connect()
        try:
            stood = await connection.fetchval(
                "UPDATE confide_audit.writer SET flush = -flush - 1 WHERE id = $1 AND flush >= 0 RETURNING -flush - 1",
                self.writer,
            )
            writer = new_id()
            await connection.execute("INSERT INTO confide_audit.writer (id) VALUES ($1)", writer)
        except BaseException:
            connection.terminate()
            raise
        self.writer, self._flush, self._sequences = writer, 0, Sequences()
        self._connection = connection
        return stood is not None and bool(stood >= flush)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class Lanes(Generic[Item]):
    """Lanes of one kind. An item goes where least is under way.

    One is best where the database is near, since its batches are the largest; more of them pay where a commit takes
    long.
    """

    def __init__(self, lanes: Sequence[Lane[Item]]) -> None:
        self._lanes: tuple[Lane[Item], ...] = tuple(lanes)
        self._load = [0] * len(self._lanes)
        self.name: str = self._lanes[0].name

    async def start(self) -> None:
        for lane in self._lanes:
            await lane.start()

    def submit(self, item: Item) -> asyncio.Future[Any]:
        """As ``Lane.submit``."""
        load = self._load
        if len(load) == 1:
            return self._lanes[0].submit(item)
        place = load.index(min(load))
        future = self._lanes[place].submit(item)
        load[place] += 1
        future.add_done_callback(lambda _: self._done(place))
        return future

    def _done(self, place: int) -> None:
        self._load[place] -= 1

    async def close(self) -> None:
        for lane in self._lanes:
            await lane.close()

    @property
    def waiting(self) -> int:
        return sum(lane.waiting for lane in self._lanes)


def _refuse(batch: Sequence[_Waiting[Any]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)
