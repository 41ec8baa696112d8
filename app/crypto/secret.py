"""A 32-byte secret key that can be wiped and doesn't show itself."""

from __future__ import annotations

import hmac
import os
from typing import Final, NoReturn, final

from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.hmac import HMAC
from typing_extensions import override

from app.errors import KeyUnavailable

KEY_SIZE: Final = 32

_SHA256 = SHA256()
_SHA512 = SHA512()


@final
class Expose:
    """The right to see raw key bytes. There is one instance, ``EXPOSE``: grep for it to find every place."""

    __slots__ = ()


EXPOSE: Final = Expose()


class KeyWiped(KeyUnavailable):
    """A key was used after it was wiped, e.g. evicted while a request still held it."""

    detail = "The lease on the cached key has ended. Try again."


@final
class SecretKey:
    """32 secret bytes in a ``bytearray``.

    Equality is constant time; hashing, pickling and copying are refused; ``repr``, ``str`` and ``format`` show
    nothing. HMAC states are kept per key, since setting one up costs more than a short message does. OpenSSL
    cleanses a state when it is freed, which ``wipe`` brings about. Any use after ``wipe`` raises ``KeyWiped``.
    """

    __slots__ = ("_hmac256", "_hmac512", "_raw")

    def __init__(self, raw: bytes | bytearray | memoryview) -> None:
        if len(raw) != KEY_SIZE:
            raise ValueError("A secret key has exactly 32 bytes.")
        self._raw: bytearray | None = bytearray(raw)
        self._hmac256: HMAC | None = None
        self._hmac512: HMAC | None = None

    @classmethod
    def generate(cls) -> SecretKey:
        """A fresh key from the operating system's generator."""
        return cls(os.urandom(KEY_SIZE))

    @classmethod
    def of(cls, raw: bytes | bytearray | memoryview) -> SecretKey:
        """A key of exactly these 32 bytes, copied. Raises ``ValueError`` on any other length."""
        return cls(raw)

    @property
    def wiped(self) -> bool:
        return self._raw is None

    def wipe(self) -> None:
        """Zero the key and drop the HMAC states. May be repeated."""
        raw, self._raw = self._raw, None
        self._hmac256 = self._hmac512 = None
        if raw is not None:
            raw[:] = bytes(KEY_SIZE)

    def expose(self, token: Expose) -> memoryview:
        """The raw key as a read-only view, which reads zeros once the key is wiped. Raises ``KeyWiped``."""
        if token is not EXPOSE:
            raise TypeError("Raw key bytes need the EXPOSE token.")
        raw = self._raw
        if raw is None:
            raise KeyWiped
        return memoryview(raw).toreadonly()

    def require(self) -> None:
        """Raise ``KeyWiped`` once the key is wiped.

        Called again after the raw bytes were read: another thread may have wiped them meanwhile, and nothing may
        ever be sealed under zeros. ``wipe`` marks the key before it zeroes it.
        """
        if self._raw is None:
            raise KeyWiped

    def hmac_sha256(self, message: bytes) -> bytes:
        """HMAC-SHA256 under this key: 32 bytes (RFC 2104). Raises ``KeyWiped``."""
        self.require()
        state = self._hmac256
        if state is None:
            state = HMAC(self.expose(EXPOSE), _SHA256)
            self.require()
            self._hmac256 = state
        mac = state.copy()
        mac.update(message)
        return mac.finalize()

    def hmac_sha512(self, message: bytes) -> bytes:
        """HMAC-SHA512 under this key: 64 bytes (RFC 2104). Raises ``KeyWiped``."""
        self.require()
        state = self._hmac512
        if state is None:
            state = HMAC(self.expose(EXPOSE), _SHA512)
            self.require()
            self._hmac512 = state
        mac = state.copy()
        mac.update(message)
        return mac.finalize()

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return hmac.compare_digest(self.expose(EXPOSE), other.expose(EXPOSE))

    __hash__ = None  # type: ignore[assignment]  # a hash would be a fingerprint of the key

    @override
    def __repr__(self) -> str:
        return "<SecretKey wiped>" if self.wiped else "<SecretKey>"

    @override
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A SecretKey can't be pickled or copied.")
