"""The high-water mark of every log, outside the database: what was signed, so that nothing contradicts it later.

``witness.log`` is appended to and fsynced before a checkpoint is published. A line: ``<origin> <size> <base64 root>``.
Workers share the file through a lock that the kernel frees when its holder dies. A line that a crash cut off has no
newline and counts as not written: its checkpoint was not published either.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from app.audit.merkle import HASH_BYTES

COMPACT_BYTES: Final = 16 * 1024 * 1024


class Seen(NamedTuple):
    """The largest tree that was signed under an origin."""

    origin: str
    size: int
    root: bytes


class WitnessError(Exception):
    """The witness can't be read or written: nothing may be signed."""


class Witness:
    """``async with witness.locked(): ... witness.append(...)``. ``latest`` is true while the lock is held."""

    def __init__(self, folder: Path, compact_bytes: int = COMPACT_BYTES) -> None:
        self._folder = folder
        self._path = folder / "witness.log"
        self._compact_bytes = compact_bytes
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
                descriptor = os.open(self._folder / "witness.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise WitnessError(f"the witness folder can't be used: {error.strerror}") from None
            try:
                while not _try_lock(descriptor):  # noqa: ASYNC110  another process holds it
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(self._catch_up)
                yield
            finally:
                os.close(descriptor)

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
        text = "".join(map(_line, entries)).encode()
        try:
            if self._read_to > self._compact_bytes:
                self._compact()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, self._read_to)  # what a crash cut off
                _write(descriptor, text)
                os.fsync(descriptor)
                self._inode = os.fstat(descriptor).st_ino
            finally:
                os.close(descriptor)
            _sync_folder(self._folder)
        except OSError as error:
            raise WitnessError(f"the witness can't be written: {error.strerror}") from None
        self._read_to += len(text)
        self._known.update({entry.origin: entry for entry in entries})

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
        draft.replace(self._path)
        self._read_to = len(text)

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
            entry = _parse(line)
            self._known[entry.origin] = entry
        self._read_to += len(whole)


def _line(entry: Seen) -> str:
    return f"{entry.origin} {entry.size} {b64encode(entry.root).decode()}\n"


def _parse(line: bytes) -> Seen:
    try:
        origin, size, root = line.decode().split(" ")
        entry = Seen(origin, int(size), b64decode(root, validate=True))
    except ValueError:
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
