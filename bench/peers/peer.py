"""What a peer is: something to write 4 KiB to and to read it from, durably."""

from __future__ import annotations

from typing import Any, Protocol

NAMES = 10_000


class Peer(Protocol):
    """``number`` is below NAMES and stands for the object; every one of them was written before reads begin."""

    async def open(self, job: dict[str, Any]) -> None: ...
    async def write(self, task: int, number: int, body: bytes) -> None: ...
    async def read(self, task: int, number: int) -> bytes: ...
    async def close(self) -> None: ...
