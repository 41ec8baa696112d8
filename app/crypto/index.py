"""Blind look-ups: what a client names is found by its HMAC under the tenant's index key, never by the name itself."""

from __future__ import annotations

from enum import Enum
from typing import Final
from uuid import UUID

from app.crypto.context import prefixed
from app.crypto.secret import SecretKey

TAG_SIZE: Final = 32


class IndexKind(Enum):
    """What a tag stands for. Tags of different kinds never meet, even for equal values."""

    EXTERNAL_ID = "external-id"
    SUBJECT = "subject"
    APP = "app"
    COLLECTION = "collection"
    OBJECT = "object"
    TAG = "tag"
    LABEL = "label"
    IDEMPOTENCY = "idempotency"
    FINGERPRINT = "fingerprint"

    def __init__(self, text: str) -> None:
        # The kind's own field and the length of the container's id, which comes next.
        self.prefix = prefixed(f"confide/v1/index/{text}".encode("ascii")) + (16).to_bytes(4, "big")


def index_tag(key: SecretKey, kind: IndexKind, container: UUID, *values: bytes | str) -> bytes:
    """32 bytes: HMAC-SHA256 over kind, container and values, each length-prefixed. ``str`` counts as its UTF-8.

    The nil UUID as container is for what belongs to the whole tenant. Raises ``KeyWiped``.
    """
    parts = [kind.prefix, container.int.to_bytes(16, "big")]
    for value in values:
        raw = value.encode() if isinstance(value, str) else value
        parts.append(len(raw).to_bytes(4, "big"))
        parts.append(raw)
    return key.hmac_sha256(b"".join(parts))
