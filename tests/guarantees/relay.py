"""A TCP relay between a worker and PostgreSQL, for tests that watch or disturb what passes."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Connection:
    """One connection through a relay; subclasses watch or disturb it."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._ends = {True: far, False: near}

    async def carry(self, data: bytes, *, forth: bool) -> None:
        """Pass on what came from the worker (``forth``) or from PostgreSQL."""
        self._ends[forth].write(data)
        await self._ends[forth].drain()

    def abort(self) -> None:
        for end in self._ends.values():
            end.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, *, forth: bool) -> None:
        while data := await reader.read(65536):
            await self.carry(data, forth=forth)
        self._ends[forth].transport.abort()


class Relay:
    """Listens on ``port`` of the loopback once it is started."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._open: set[Connection] = set()
        self.port = 0
        self.refuse = False

    def connection(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> Connection:
        return Connection(near, far)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.abort()
        await asyncio.sleep(0.05)

    def abort(self) -> None:
        """Break every connection that is open."""
        for each in list(self._open):
            each.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        opened = self.connection(writer, far_writer)
        self._open.add(opened)
        with suppress(OSError):
            await asyncio.gather(opened.pump(reader, forth=True), opened.pump(far_reader, forth=False))
        opened.abort()
        self._open.discard(opened)
