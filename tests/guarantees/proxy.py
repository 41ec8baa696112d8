"""A TCP proxy between a worker and PostgreSQL that loses answers or refuses connections."""

from __future__ import annotations

import asyncio

from tests.guarantees.relay import Connection, Relay


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

    async def carry(self, data: bytes, *, forth: bool) -> None:
        lost = forth and self._proxy.swallow > 0 and b"context.commit" in data
        if lost:
            self._proxy.swallow -= 1
            self._mute = True
        if forth or not self._mute:
            await super().carry(data, forth=forth)
        if lost:
            await asyncio.sleep(0.15)  # the statement is committed by now; its answer goes nowhere
            self.abort()
