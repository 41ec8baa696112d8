"""What is derived from the cell's one secret: a key for each use, so that none can stand in for another."""

from __future__ import annotations

from dataclasses import dataclass

from app.crypto.keys import hkdf_sha256
from app.crypto.secret import SecretKey


@dataclass(frozen=True, slots=True, repr=False)
class CellSecrets:
    """``pepper`` is what API keys and enrolment tokens are stored under; ``cursors`` seals what clients hand back;
    ``notes`` seals what operators write.
    """

    pepper: SecretKey
    cursors: SecretKey
    notes: SecretKey

    @classmethod
    def derive(cls, secret: bytes) -> CellSecrets:
        """From the cell's 32 bytes."""
        root = SecretKey.of(secret)
        try:
            return cls(*(hkdf_sha256(root, b"confide/v1/" + use) for use in (b"pepper", b"cursors", b"notes")))
        finally:
            root.wipe()
