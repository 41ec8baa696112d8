"""C2SP chunked-encryption, instantiation "Cobblestone-256" (c2sp.org/chunked-encryption).

A body is salt (24) ‖ commitment (32) ‖ chunks. Each chunk holds 16 KiB of plaintext and a 16-byte tag; the last one is
always shorter and may be empty. The message key, base nonce and commitment come from HKDF-Expand-SHA512 (RFC 5869
section 2.3) over the salt and the application's context. A fresh salt per message keeps (key, nonce) pairs apart.
"""

from __future__ import annotations

import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.crypto.secret import SecretKey
from app.errors import Tampered

CHUNK_SIZE: Final = 16 * 1024
TAG_SIZE: Final = 16
SALT_SIZE: Final = 24
PREFIX_SIZE: Final = 56  # salt and commitment

_SEALED_CHUNK: Final = CHUNK_SIZE + TAG_SIZE
_LABEL: Final = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"


def body_size(plaintext_size: int) -> int:
    """The size in bytes of the body that a plaintext of that many bytes gives."""
    return PREFIX_SIZE + plaintext_size + TAG_SIZE * (plaintext_size // CHUNK_SIZE + 1)


def encrypt(key: SecretKey, context: bytes, plaintext: bytes | memoryview) -> bytes:
    """The body for ``plaintext``, under a fresh salt."""
    return b"".join(encrypt_parts(key, context, plaintext))


def encrypt_parts(key: SecretKey, context: bytes, plaintext: bytes | memoryview) -> list[bytes]:
    """The body in consecutive pieces, so that a caller who puts something in front copies it once only."""
    return _encrypt_with_salt(key, context, plaintext, os.urandom(SALT_SIZE))


def _encrypt_with_salt(key: SecretKey, context: bytes, plaintext: bytes | memoryview, salt: bytes) -> list[bytes]:
    """For ``encrypt_parts`` and test vectors only: a salt that is used twice breaks AES-GCM."""
    okm = _derive(key, salt, context)
    nonce, commitment = okm[32:44], okm[44:]
    aead = AESGCM(okm[:32])
    if len(plaintext) < CHUNK_SIZE:
        return [salt, commitment, aead.encrypt(nonce, plaintext, None)]
    view = memoryview(plaintext)
    parts = [salt, commitment]
    # The range ends past an exact multiple of the chunk size, so the last chunk is then an empty one.
    for index, start in enumerate(range(0, len(view) + 1, CHUNK_SIZE)):
        parts.append(aead.encrypt(_nonce(nonce, index), view[start : start + CHUNK_SIZE], None))
    return parts


def decrypt(key: SecretKey, context: bytes, body: bytes | memoryview) -> bytes:
    """The plaintext of ``body``. Raises ``Tampered`` unless all of it is authentic, complete and in order."""
    view = memoryview(body)
    aead, nonce = _unlock(key, context, view)
    try:
        if len(view) < PREFIX_SIZE + _SEALED_CHUNK:
            return aead.decrypt(nonce, view[PREFIX_SIZE:], None)
        return b"".join(
            aead.decrypt(_nonce(nonce, index), view[start : start + _SEALED_CHUNK], None)
            for index, start in enumerate(range(PREFIX_SIZE, len(view), _SEALED_CHUNK))
        )
    except InvalidTag:
        raise Tampered(_refused("a part of it is not authentic")) from None


def decrypt_short_into(key: SecretKey, context: bytes, body: bytes | memoryview, out: bytearray) -> None:
    """Open a body of one chunk into ``out``, which the caller can wipe. Raises ``Tampered`` as ``decrypt`` does,
    and where the plaintext isn't exactly ``len(out)`` bytes long."""
    view = memoryview(body)
    if len(out) >= CHUNK_SIZE or len(view) != PREFIX_SIZE + TAG_SIZE + len(out):
        raise Tampered(_refused("its length is wrong"))
    aead, nonce = _unlock(key, context, view)
    try:
        aead.decrypt_into(nonce, view[PREFIX_SIZE:], None, out)
    except InvalidTag:
        raise Tampered(_refused("a part of it is not authentic")) from None


def _unlock(key: SecretKey, context: bytes, view: memoryview) -> tuple[AESGCM, bytes]:
    """The cipher and base nonce of a body whose length and commitment are right. Opens no chunk."""
    # Every chunk but the last is full, and the last is shorter: what is left over must hold at least a tag.
    if len(view) < PREFIX_SIZE or (len(view) - PREFIX_SIZE) % _SEALED_CHUNK < TAG_SIZE:
        raise Tampered(_refused("its length is wrong"))
    okm = _derive(key, bytes(view[:SALT_SIZE]), context)
    if not hmac.compare_digest(okm[44:], view[SALT_SIZE:PREFIX_SIZE]):
        del okm  # a traceback that shows locals must not show a key
        raise Tampered(_refused("it was not sealed under this key for this place"))
    return AESGCM(okm[:32]), okm[32:44]


def _derive(key: SecretKey, salt: bytes, context: bytes) -> bytes:
    """76 bytes: AEAD key (32) ‖ base nonce (12) ‖ commitment (32). HKDF-Expand, two blocks of SHA-512."""
    info = b"".join((_LABEL, salt, context))
    first = key.hmac_sha512(info + b"\x01")
    second = key.hmac_sha512(b"".join((first, info, b"\x02")))
    return first + second[:12]


def _nonce(base: bytes, index: int) -> bytes:
    """base nonce XOR chunk index, big-endian, 12 bytes."""
    return (int.from_bytes(base, "big") ^ index).to_bytes(12, "big")


def _refused(why: str) -> str:
    return f"A stored object was refused: {why}. The operator has been alarmed."
