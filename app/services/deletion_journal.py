"""Every deletion, written outside the database before it is acknowledged, so that a restored backup can be told.

Each worker appends to a file of its own in one folder, a new one each day, so that workers never wait for each other
and what is old can go (``journal_horizon.py``). A line is the entry's JSON, a tab and its CRC-32; one write and one
fsync serve all who wait (``append``). An entry holds ids only:

    container   a session, subject or app with all that it holds
    object      a context object, in every version up to the one deleted
    turns       turns of a session by number, both ends included
    tenant      a tenant that has left, with its keys

Objects' ids change with a rekey, and a backup from before it knows the old ones. So one kind of line deletes nothing:

    moved       an object's id (``object``) and the one that it had until the rekey (``former``)
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson

from app.errors import Unavailable
from app.identity import new_id
from app.store.statements import TargetResult, WriteTarget

SUFFIX: Final = ".deletions"
IDS: Final = ("container", "object", "version", "former")

Key = tuple[UUID, UUID | None, UUID | None, UUID | None, tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class Deletion:
    """One entry. ``why``: the audited action. ``turns``: first and last number. With ``former`` nothing was deleted."""

    tenant: UUID
    why: str
    container: UUID | None = None
    object: UUID | None = None
    version: UUID | None = None
    turns: tuple[int, int] | None = None
    at: datetime | None = None
    former: UUID | None = None

    @property
    def key(self) -> Key:
        """What tells one deletion from another."""
        return self.tenant, self.container, self.object, self.version, self.turns

    def line(self) -> bytes:
        moment = self.at or datetime.now(UTC)
        known: dict[str, Any] = {"v": 1, "at": moment.isoformat(), "tenant": str(self.tenant), "why": self.why}
        for name in IDS:
            value = getattr(self, name)
            if value is not None:
                known[name] = str(value)
        if self.turns is not None:
            known["turns"] = list(self.turns)
        body = orjson.dumps(known)
        return body + b"\t%08x\n" % zlib.crc32(body)

    @classmethod
    def parse(cls, line: bytes) -> Deletion | None:
        """None for a line that was not written whole."""
        body, tab, check = line.rstrip(b"\n").rpartition(b"\t")
        if not tab or check != b"%08x" % zlib.crc32(body):
            return None
        known = orjson.loads(body)
        ids = {name: UUID(known[name]) for name in IDS if name in known}
        turns = (known["turns"][0], known["turns"][1]) if "turns" in known else None
        return cls(UUID(known["tenant"]), known["why"], turns=turns, at=datetime.fromisoformat(known["at"]), **ids)


def deletions_of(tenant: UUID, targets: Sequence[WriteTarget], results: Sequence[TargetResult]) -> list[Deletion]:
    """What a committed write has deleted. Most writes delete nothing and cost nothing here."""
    gone: list[Deletion] = []
    for target, result in zip(targets, results, strict=True):
        types = [operation.type for operation in target.operations]
        if "erase" in types:
            gone.append(Deletion(tenant, target.action, target.container))  # with all that it held
            continue
        if "clear" in types:
            gone.append(Deletion(tenant, target.action, target.container, turns=(1, result.head["number"] - 1)))
        gone += [Deletion(tenant, target.action, target.container, row["id"], row["version"]) for row in result.removed]
        gone += [Deletion(tenant, target.action, target.container, turns=(row["number"],) * 2) for row in result.turns]
    return gone


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest part of a journal: what was deleted, and which objects' ids gave way to others."""

    since: datetime
    deleted: set[Key] = field(default_factory=set)
    moved: set[tuple[UUID, UUID]] = field(default_factory=set)

    def add(self, entry: Deletion) -> None:
        if entry.former is None:
            self.deleted.add(entry.key)
        elif entry.container is not None:
            self.moved.add((entry.container, entry.former))

    def lacks(self, entry: Deletion) -> bool:
        """Whether a deletion is missing. An id that a rekey has replaced is absent, but nothing was deleted."""
        moved = entry.container is not None and (entry.container, entry.object) in self.moved
        return not moved and entry.key not in self.deleted


class DeletionJournal:
    """The folder's writer for one worker. Made lazily: a worker that deletes nothing leaves no file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._day: date | None = None
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deletions")
        self.entries = 0

    @property
    def folder(self) -> Path:
        return self._folder

    async def append(self, deletions: Sequence[Deletion]) -> None:
        """On the disk when this returns. Raises ``Unavailable``: then the deletion must not be acknowledged."""
        if not deletions:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((b"".join(each.line() for each in deletions), done))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="deletion-journal")
        await asyncio.shield(done)
        self.entries += len(deletions)

    def recent(self, look_back: timedelta) -> Recent:
        """What the journal has since the moment from which on it may lack entries."""
        now = datetime.now(UTC)
        files = [(datetime.fromtimestamp(path.stat().st_mtime, UTC), path) for path in self._folder.glob(f"*{SUFFIX}")]
        newest = max((moment for moment, _ in files), default=now)
        found = Recent(min(now, newest) - look_back)
        for moment, path in files:
            if moment >= found.since:
                for each in read_file(path):
                    found.add(each)
        return found

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                error: Exception | None = None
                try:
                    await loop.run_in_executor(self._thread, self._write, b"".join(lines for lines, _ in batch))
                except OSError:
                    error = Unavailable("The deletion journal can't be written, so the deletion isn't confirmed.")
                for _, done in batch:
                    if error is not None:
                        done.set_exception(error)
                    else:
                        done.set_result(None)
        finally:
            self._flushing = None

    def _write(self, lines: bytes) -> None:
        if self._descriptor is not None and self._day != datetime.now(UTC).date():
            os.close(self._descriptor)
            self._descriptor = None
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._open()
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            # The file may end in half a line: the next entries begin a new one.
            self._descriptor = None
            with suppress(OSError):
                os.close(descriptor)
            raise

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%S}-{new_id()}{SUFFIX}"
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._descriptor, self._day = descriptor, now.date()
        return descriptor

    async def close(self) -> None:
        """Finish what waits."""
        while self._flushing is not None:
            await asyncio.wait({self._flushing})
        self._thread.shutdown(wait=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_journal(folder: Path) -> Iterator[Deletion]:
    """All entries of all workers, in no order across files. What was torn by a crash was never acknowledged."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        yield from read_file(path)


def former_ids(folder: Path) -> dict[UUID, UUID]:
    """For objects that were deleted: the id that each had before a rekey, and that one's before an earlier rekey."""
    wanted: set[UUID] = set()
    moved = False
    for each in read_journal(folder):
        if each.former is not None:
            moved = True
        elif each.object is not None:
            wanted.add(each.object)
    found: dict[UUID, UUID] = {}
    while moved and wanted:
        more = {
            each.object: each.former
            for each in read_journal(folder)
            if each.former is not None and each.object is not None and each.object in wanted
        }
        found |= more
        wanted = set(more.values()) - found.keys()
    return found


def read_file(path: Path) -> Iterator[Deletion]:
    with path.open("rb") as file:
        for line in file:
            found = Deletion.parse(line)
            if found is not None:
                yield found
