"""A TCP proxy between a worker and PostgreSQL that loses answers or refuses connections."""

from __future__ import annotations

import asyncio


class Proxy:
    """Between a worker and PostgreSQL. ``swallow``: the answers of so many commits never arrive."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._mute: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.swallow = 0
        self.refuse = False

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        ours = {writer, far_writer}
        self._writers |= ours
        try:
            await asyncio.gather(
                self._pipe(reader, far_writer, ours, forth=True), self._pipe(far_reader, writer, ours, forth=False)
            )
        except OSError:
            pass
        finally:
            for each in ours:
                each.transport.abort()
            self._writers -= ours

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: set[asyncio.StreamWriter],
        *,
        forth: bool,
    ) -> None:
        pending = False
        while data := await reader.read(65536):
            if forth and self.swallow and b"context.commit" in data:
                self.swallow -= 1
                pending = True
                self._mute |= both
            if not forth and writer in self._mute:
                continue
            writer.write(data)
            await writer.drain()
            if pending:
                await asyncio.sleep(0.15)  # the statement is committed by now; its answer goes nowhere
                for each in both:
                    each.transport.abort()
                return
        writer.transport.abort()
