"""The high-water mark of every log, outside the database: what was signed, so that nothing contradicts it later.

``witness.log`` is appended to and fsynced before a checkpoint is published. A line: ``<origin> <size> <base64 root>
<number>``; lines of older versions end at the root.
Workers share the file through a lock that the kernel frees when its holder dies. A line that a crash cut off counts as
not written: its checkpoint was not published either; the next writer ends it with `` torn``.

A holder that stands still has its lock broken by putting another file in its place. It notices before it writes, and
again before it lets anything be published; what it wrote in between harms nothing, because it is only appended, and
because a smaller tree never takes the place of a larger one. By then its database transaction has ended as well.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from app.audit.merkle import HASH_BYTES

log = logging.getLogger("confide.witness")

COMPACT_BYTES: Final = 16 * 1024 * 1024
BREAK_SECONDS: Final = 10.0
"""How long one holder may keep the lock: longer than a database transaction of it may stand still."""
TORN: Final = b" torn"


class Seen(NamedTuple):
    """The largest tree that was signed under an origin. ``number``: how many were, with it; 0 where nobody counted."""

    origin: str
    size: int
    root: bytes
    number: int = 0


class WitnessError(Exception):
    """The witness can't be read or written: nothing may be signed."""


class Witness:
    """``async with witness.locked(): ... witness.append(...)``. ``latest`` is true while the lock is held."""

    def __init__(self, folder: Path, compact_bytes: int = COMPACT_BYTES, break_seconds: float = BREAK_SECONDS) -> None:
        self._folder = folder
        self._path = folder / "witness.log"
        self._lock = folder / "witness.lock"
        self._compact_bytes = compact_bytes
        self._break_seconds = break_seconds
        self._held = -1
        self._known: dict[str, Seen] = {}
        self._read_to = 0
        self._inode = 0
        self._own = asyncio.Lock()

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Alone among all workers of this machine, and knowing what they have signed. Raises WitnessError."""
        async with self._own:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._held = await self._acquire()
            except OSError as error:
                raise WitnessError(f"the witness folder can't be used: {error.strerror}") from None
            try:
                await asyncio.to_thread(self._catch_up)
                yield
            finally:
                os.close(self._held)
                self._held = -1

    async def _acquire(self) -> int:
        """The lock's descriptor. A holder is told from the next one by what it writes into the file."""
        seen, since = b"", time.monotonic()
        while True:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if _try_lock(descriptor):
                    if self._is_current(descriptor):
                        os.pwrite(descriptor, secrets.token_bytes(16), 0)
                        return descriptor
                    os.close(descriptor)
                    continue
                holder = os.pread(descriptor, 16, 0)
                if holder != seen:
                    seen, since = holder, time.monotonic()
                elif time.monotonic() - since > self._break_seconds:
                    self._break(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            await asyncio.sleep(0.01)

    def _break(self, stuck: int) -> None:
        """Put the lock's file aside; whoever holds it holds nothing from now on. One breaks at a time."""
        guard = os.open(self._folder / "witness.break", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _try_lock(guard) and self._is_current(stuck):
                self._lock.unlink()
                log.error("the holder of the witness's lock stands still: another goes on")
        finally:
            os.close(guard)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._lock.stat())
        except FileNotFoundError:
            return False

    def _check_held(self) -> None:
        if self._held < 0 or not self._is_current(self._held):
            raise WitnessError("the witness's lock was lost while this process stood still")

    def latest(self, origin: str) -> Seen | None:
        return self._known.get(origin)

    def all(self) -> Mapping[str, Seen]:
        return dict(self._known)

    async def append(self, entries: Iterable[Seen]) -> None:
        """Durable when it returns. Only under the lock."""
        fresh = [entry for entry in entries if self._known.get(entry.origin) != entry]
        if fresh:
            await asyncio.to_thread(self._append, fresh)

    def _append(self, entries: list[Seen]) -> None:
        self._check_held()
        try:
            if self._read_to > self._compact_bytes:
                self._compact()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                _write(descriptor, (TORN + b"\n" if torn else b"") + "".join(map(_line, entries)).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _sync_folder(self._folder)
        except OSError as error:
            raise WitnessError(f"the witness can't be written: {error.strerror}") from None
        self._check_held()
        for entry in entries:
            self._learn(entry)

    def _learn(self, entry: Seen) -> None:
        known = self._known.get(entry.origin)
        if known is not None and known.size == entry.size and known.root != entry.root:
            raise WitnessError(f"two trees of {entry.size} leaves were signed of {entry.origin}")
        if known is None or entry.size >= known.size:
            self._known[entry.origin] = entry

    def _compact(self) -> None:
        """A new file with one line for each origin, in place of the old one, whole or not at all."""
        draft = self._path.with_suffix(".new")
        text = "".join(map(_line, self._known.values())).encode()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._check_held()
        draft.replace(self._path)
        self._read_to = 0

    def _catch_up(self) -> None:
        """Read what other workers have appended."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._read_to, self._known = inode, 0, {}
                file.seek(self._read_to)
                data = file.read()
        except FileNotFoundError:
            self._inode, self._read_to, self._known = 0, 0, {}
            return
        except OSError as error:
            raise WitnessError(f"the witness can't be read: {error.strerror}") from None
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            if not line.endswith(TORN):
                self._learn(_parse(line))
        self._read_to += len(whole)


def _line(entry: Seen) -> str:
    return f"{entry.origin} {entry.size} {b64encode(entry.root).decode()} {entry.number}\n"


def _parse(line: bytes) -> Seen:
    try:
        origin, size, root, *number = line.decode().split(" ")
        entry = Seen(origin, int(size), b64decode(root, validate=True), *map(int, number))
    except (ValueError, TypeError):
        raise WitnessError("the witness holds a line that is none") from None
    if len(entry.root) != HASH_BYTES:
        raise WitnessError("the witness holds a line that is none")
    return entry


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
