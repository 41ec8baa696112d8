"""A TCP proxy between a worker and PostgreSQL that loses answers or refuses connections."""

from __future__ import annotations

import asyncio

from tests.guarantees.relay import Connection, Relay

READY = b"Z\x00\x00\x00\x05I"
"""How an answer of PostgreSQL's ends, outside a transaction."""


class Proxy(Relay):
    """``swallow``: the answers of so many commits never arrive. ``refuse``: nor do new connections."""

    swallow = 0

    def connection(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> Connection:
        return _Lossy(self, near, far)


class _Lossy(Connection):
    def __init__(self, proxy: Proxy, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        super().__init__(near, far)
        self._proxy = proxy
        self._mute = False
        self._heard = b""

    async def carry(self, data: bytes, *, forth: bool) -> None:
        if forth and self._proxy.swallow > 0 and b"context.commit" in data:
            self._proxy.swallow -= 1
            self._mute = True
        if forth or not self._mute:
            await super().carry(data, forth=forth)
            return
        self._heard = (self._heard + data)[-len(READY) :]
        if self._heard == READY:  # the statement is committed, and its answer goes nowhere
            self.abort()
