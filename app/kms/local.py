"""The ``local`` provider: a KEK in a key file, for development and tests. It doesn't pass for production.

The file holds one line, ``confide-local-kek-v1 <key id> <64 hex digits>``, and must be a regular file of our own with
mode 0600 or narrower and a single name. It is looked at before each use, so that taking it away or replacing it acts
like a customer's revocation: absent or unreadable → ``KmsDenied``, another key → ``KmsIntegrity``.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from app.crypto.context import Domain, SealContext
from app.crypto.envelope import open_key, seal_key
from app.crypto.secret import SecretKey
from app.errors import Tampered
from app.identity import NO_UUID, new_id
from app.kms.provider import (
    KeyDescription,
    KmsCall,
    KmsDenied,
    KmsError,
    KmsIntegrity,
    KmsMisconfigured,
    KmsUnavailable,
    Unwrapped,
    WrapContext,
    Wrapped,
)

_LINE = re.compile(rb"confide-local-kek-v1 ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) ([0-9a-f]{64})\n")
_LINE_BYTES = len(b"confide-local-kek-v1 ") + 36 + 1 + 64 + 1
_VERSION = "1"
_GENERATION = 1

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _KeyFile:
    """A key as read, with the stamp of the file (device, inode, size, mtime, ctime) that it was read from."""

    key_id: UUID
    key: SecretKey = field(repr=False)
    stamp: _Stamp


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_file(status: os.stat_result) -> None:
    """Refuse what somebody else could read or swap. Raises ``KmsMisconfigured``."""
    if not stat.S_ISREG(status.st_mode):
        raise KmsMisconfigured("LocalKeyFileKind", "the key file must be a regular file")
    if stat.S_IMODE(status.st_mode) & 0o177:
        raise KmsMisconfigured("LocalKeyFileMode", "the key file must have mode 0600 or narrower")
    if status.st_uid != os.geteuid():
        raise KmsMisconfigured("LocalKeyFileOwner", "the key file must belong to the service's own user")
    if status.st_nlink != 1:
        raise KmsMisconfigured("LocalKeyFileLinks", "the key file must have exactly one name")


def _os_error(error: OSError) -> KmsError:
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return KmsDenied("LocalKeyFileMissing", "the key file is absent or may not be read")
    return KmsUnavailable("LocalKeyFileUnreadable", os.strerror(error.errno or 0))


def _read(path: Path) -> _KeyFile:
    """Read and check the key file through one descriptor, so that what was checked is what is read."""
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise KmsMisconfigured("LocalKeyFileSymlink", "the key file must not be a symbolic link")
        # O_NONBLOCK: opening a FIFO put in the file's place must not hang the service.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _os_error(error) from None
    try:
        status = os.fstat(descriptor)
        _check_file(status)
        line = bytearray(os.read(descriptor, _LINE_BYTES + 1))
    except OSError as error:
        raise _os_error(error) from None
    finally:
        os.close(descriptor)
    match = _LINE.fullmatch(line)
    if match is None:
        raise KmsMisconfigured("LocalKeyFileFormat", "the key file isn't one made by LocalProvider.create")
    key = SecretKey.of(bytearray.fromhex(match[2].decode("ascii")))
    key_id = UUID(match[1].decode("ascii"))
    line[:] = bytes(len(line))
    return _KeyFile(key_id, key, _stamp(status))


def _seal_context(context: WrapContext) -> SealContext:
    """The wrap context's digest stands in the content type: every field of it is authenticated, unambiguously."""
    return SealContext(
        domain=Domain.HALF,
        region="local",
        tenant=NO_UUID,
        container=NO_UUID,
        item=NO_UUID,
        version=NO_UUID,
        number=0,
        content_type=f"application/x-confide-wrap; context={context.digest().hex()}",
    )


class LocalProvider:
    """One KEK in one key file. ``path`` is where the file is; ``region`` is what ``describe`` reports."""

    name = "local"

    def __init__(self, path: Path, held: _KeyFile, region: str | None = None) -> None:
        self._path = path
        self._held = held
        self._region = region
        self._key_id = held.key_id
        self.kek_uri = f"local:{held.key_id}"

    @classmethod
    def create(cls, path: Path, region: str | None = None) -> LocalProvider:
        """Make a new key file, whole or not at all, and never over another file. Raises ``KmsMisconfigured``."""
        line = b"confide-local-kek-v1 %b %b\n" % (str(new_id()).encode(), secrets.token_hex(32).encode())
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line)
                os.fsync(descriptor)
                os.link(draft, path)  # unlike rename, link refuses to replace
            finally:
                os.close(descriptor)
                draft.unlink()
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except FileExistsError:
            raise KmsMisconfigured("LocalKeyFileExists", "there is a key file already; it is never replaced") from None
        except OSError as error:
            raise _os_error(error) from None
        return cls.load(path, region)

    @classmethod
    def load(cls, path: Path, region: str | None = None) -> LocalProvider:
        """Raises ``KmsDenied`` for an absent file and ``KmsMisconfigured`` for one that can't be trusted."""
        return cls(path, _read(path), region)

    def _current(self) -> SecretKey:
        """The KEK as the file holds it at this moment."""
        try:
            stamp = _stamp(os.lstat(self._path))
        except OSError as error:
            raise _os_error(error) from None
        if stamp != self._held.stamp:
            fresh = _read(self._path)
            self._held.key.wipe()
            self._held = fresh
        if self._held.key_id != self._key_id:
            raise KmsIntegrity("LocalKeyReplaced", "the key file holds another key than this provider was made with")
        return self._held.key

    def _call(self, operation: str, intent: UUID, started: float) -> KmsCall:
        latency = (time.perf_counter() - started) * 1000.0
        return KmsCall(operation, self.kek_uri, _VERSION, f"local-{intent}", latency)

    async def wrap(self, key: SecretKey, context: WrapContext, intent: UUID) -> Wrapped:
        started = time.perf_counter()
        try:
            sealed = seal_key(self._current(), self._key_id, _GENERATION, _seal_context(context), key)
        except KmsError as error:
            error.call = self._call("wrap", intent, started)
            raise
        return Wrapped(sealed, self.kek_uri, _VERSION, self._call("wrap", intent, started))

    async def unwrap(self, ciphertext: bytes, kek_version: str, context: WrapContext, intent: UUID) -> Unwrapped:
        started = time.perf_counter()
        try:
            kek = self._current()
            if kek_version != _VERSION:
                raise KmsIntegrity("LocalKeyVersion", "the local provider has one version of its key")
            try:
                key = open_key(kek, self._key_id, _GENERATION, _seal_context(context), ciphertext)
            except Tampered:
                raise KmsIntegrity("LocalUnwrapFailed", "not wrapped by this key under this context") from None
        except KmsError as error:
            error.call = self._call("unwrap", intent, started)
            raise
        return Unwrapped(key, self._call("unwrap", intent, started))

    async def describe(self, intent: UUID) -> KeyDescription:
        started = time.perf_counter()
        try:
            self._current()
        except KmsError as error:
            error.call = self._call("describe", intent, started)
            raise
        return KeyDescription(
            kek_uri=self.kek_uri,
            kind="local-file",
            enabled=True,
            state="Enabled",
            region=self._region,
            current_version=_VERSION,
            expires_at=None,
            deletion_at=None,
            tags={},
            authenticates_context=True,
            call=self._call("describe", intent, started),
        )

    async def close(self) -> None:
        self._held.key.wipe()
