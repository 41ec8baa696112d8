"""Opaque tokens that a client hands back, such as cursors: encrypted, and bound to one tenant and route.

A token is a Cobblestone-256 body in base64url without padding (RFC 4648 section 5), in its one canonical spelling.
"""

from __future__ import annotations

import base64
import re
from typing import Final
from uuid import UUID

from app.crypto import cobblestone
from app.crypto.context import Domain, SealContext
from app.crypto.secret import SecretKey
from app.errors import BadRequest, Tampered
from app.identity import NO_UUID

MAX_TOKEN: Final = 8192
"""Characters in the longest token that is looked at."""

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def seal_token(key: SecretKey, tenant: UUID, route: str, payload: bytes) -> str:
    """``payload`` as a token for this tenant and route. Raises ``ValueError`` if it gets longer than ``MAX_TOKEN``."""
    text = _text(cobblestone.encrypt(key, _context(tenant, route), payload))
    if len(text) > MAX_TOKEN:
        raise ValueError("The token's payload is too long.")
    return text


def open_token(key: SecretKey, tenant: UUID, route: str, text: str) -> bytes:
    """The payload of a token. Raises ``BadRequest``, with one text, if it isn't one for this tenant and route."""
    try:
        return cobblestone.decrypt(key, _context(tenant, route), _bytes(text))
    except (Tampered, ValueError):
        raise BadRequest("The cursor is not valid here. Start again without a cursor.") from None


def _context(tenant: UUID, route: str) -> bytes:
    return SealContext(Domain.EXTERNAL, "", tenant, NO_UUID, NO_UUID, NO_UUID, 0, route).encode(b"")


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    """Strict decoding: the alphabet, no padding, and no stray bits in the last character."""
    if len(text) > MAX_TOKEN or not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _text(raw) != text:
        raise ValueError("not canonical base64url")
    return raw
