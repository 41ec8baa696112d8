"""What a ciphertext is bound to.

The encoding is injective: a fixed domain string first, then the header, then each field, all with a 4-byte big-endian
length before them, in one order. No separators, no JSON. ``docs/format.md`` gives the bytes.
"""

from __future__ import annotations

from enum import StrEnum
from struct import Struct
from typing import Final, NamedTuple
from uuid import UUID

# tenant, container, item, version: 16 bytes each; number: u64. Each with its length in front.
_FIXED: Final = Struct(">I16sI16sI16sI16sIQ")


class Domain(StrEnum):
    """What a ciphertext is. A value of one domain never opens as another's."""

    OBJECT = "object"
    OBJECT_NAME = "object-name"
    TURN = "turn"
    CONTAINER_META = "container-meta"
    CONTAINER_KEY = "container-key"
    ROOT_KEY = "root-key"
    INDEX_KEY = "index-key"
    ANSWER = "answer"
    REASON = "reason"
    EXTERNAL = "external"
    HALF = "half"
    STREAM_SECRET = "stream-secret"  # noqa: S105  the name of a domain


def prefixed(value: bytes) -> bytes:
    """``value`` with its length in front: 4 bytes, big-endian."""
    return len(value).to_bytes(4, "big") + value


_PREFIX: Final = {domain: prefixed(f"confide/v1/{domain}".encode("ascii")) for domain in Domain}


class SealContext(NamedTuple):
    """Everything that is authenticated with a plaintext. Unused ids are the nil UUID.

    ``number`` is an unsigned 64-bit integer: a turn's number, a generation, or 0.
    """

    domain: Domain
    region: str
    tenant: UUID
    container: UUID
    item: UUID
    version: UUID
    number: int
    content_type: str

    def encode(self, header: bytes) -> bytes:
        """The context as bytes. Raises ``ValueError`` if ``number`` isn't in 0..2^64-1."""
        number = self.number
        if not 0 <= number < 1 << 64:
            raise ValueError("The context's number is out of range.")
        region = self.region.encode()
        content_type = self.content_type.encode()
        fixed = _FIXED.pack(
            16,
            self.tenant.int.to_bytes(16, "big"),
            16,
            self.container.int.to_bytes(16, "big"),
            16,
            self.item.int.to_bytes(16, "big"),
            16,
            self.version.int.to_bytes(16, "big"),
            8,
            number,
        )
        return b"".join(
            (
                _PREFIX[self.domain],
                len(header).to_bytes(4, "big"),
                header,
                len(region).to_bytes(4, "big"),
                region,
                fixed,
                len(content_type).to_bytes(4, "big"),
                content_type,
            )
        )
