"""The one place that seals and opens.

A sealed value is a 28-byte header and a Cobblestone-256 body. The header names the suite and the key; it is the first
field of the authenticated context. Exactly one key is ever tried. ``docs/format.md`` gives the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final
from uuid import UUID

from app.crypto import cobblestone
from app.crypto.context import SealContext
from app.crypto.secret import EXPOSE, KEY_SIZE, SecretKey
from app.errors import Tampered

MAGIC: Final = b"\xc0CFD"
FORMAT_VERSION: Final = 1
SUITE_COBBLESTONE_256: Final = 1

# magic, format version, suite, flags, key id, key generation
_HEADER: Final = Struct(">4sBBH16sI")
_START: Final = MAGIC + bytes((FORMAT_VERSION, SUITE_COBBLESTONE_256)) + b"\x00\x00"
HEADER_SIZE: Final = 28
OVERHEAD: Final = HEADER_SIZE + cobblestone.PREFIX_SIZE + cobblestone.TAG_SIZE
"""Bytes that sealing adds to a plaintext below 16 KiB. Longer ones: ``sealed_size``."""


@dataclass(frozen=True, slots=True)
class Header:
    """Which key a sealed value needs. Not authenticated until the value is opened."""

    key_id: UUID
    generation: int


def sealed_size(plaintext_size: int) -> int:
    """The size in bytes of the sealed form of that many bytes."""
    return HEADER_SIZE + cobblestone.body_size(plaintext_size)


def read_header(sealed: bytes | memoryview) -> Header:
    """The header of a sealed value. Raises ``Tampered`` on an unknown magic, version, suite or flag."""
    if len(sealed) < OVERHEAD:
        raise Tampered("A stored object was refused: it is too short. The operator has been alarmed.")
    magic, version, suite, flags, key_id, generation = _HEADER.unpack(sealed[:HEADER_SIZE])
    if (magic, version, suite, flags) != (MAGIC, FORMAT_VERSION, SUITE_COBBLESTONE_256, 0):
        raise Tampered("A stored object was refused: its header is unknown. The operator has been alarmed.")
    return Header(UUID(bytes=key_id), generation)


def seal(key: SecretKey, key_id: UUID, generation: int, context: SealContext, plaintext: bytes | memoryview) -> bytes:
    """``plaintext`` sealed under ``key`` and bound to ``context``. The salt is made here, fresh for each call.

    ``generation`` is an unsigned 32-bit integer. Raises ``ValueError`` if a number is out of range, ``KeyWiped``.
    """
    header = _header(key_id, generation)
    return b"".join([header, *cobblestone.encrypt_parts(key, context.encode(header), plaintext)])


def open_sealed(
    key: SecretKey, key_id: UUID, generation: int, context: SealContext, sealed: bytes | memoryview
) -> bytes:
    """The plaintext of ``sealed``. Raises ``Tampered`` unless it was sealed under exactly this key and context."""
    header = _header(key_id, generation)
    return cobblestone.decrypt(key, context.encode(header), _body(header, sealed))


def seal_key(key: SecretKey, key_id: UUID, generation: int, context: SealContext, inner: SecretKey) -> bytes:
    """``inner`` sealed under ``key``, as ``seal`` does."""
    sealed = seal(key, key_id, generation, context, inner.expose(EXPOSE))
    inner.require()
    return sealed


def open_key(
    key: SecretKey, key_id: UUID, generation: int, context: SealContext, sealed: bytes | memoryview
) -> SecretKey:
    """The key in ``sealed``, with no copy left that can't be wiped. Raises ``Tampered`` as ``open_sealed`` does."""
    header = _header(key_id, generation)
    raw = bytearray(KEY_SIZE)
    try:
        cobblestone.decrypt_short_into(key, context.encode(header), _body(header, sealed), raw)
        return SecretKey.of(raw)
    finally:
        raw[:] = bytes(KEY_SIZE)


def _header(key_id: UUID, generation: int) -> bytes:
    if not 0 <= generation < 1 << 32:
        raise ValueError("The key's generation is out of range.")
    return _START + key_id.int.to_bytes(16, "big") + generation.to_bytes(4, "big")


def _body(header: bytes, sealed: bytes | memoryview) -> memoryview:
    """What follows the header, which must be the expected one: no other key is looked for."""
    if sealed[:HEADER_SIZE] != header:
        raise Tampered("A stored object was refused: its header is the wrong one. The operator has been alarmed.")
    return memoryview(sealed)[HEADER_SIZE:]
