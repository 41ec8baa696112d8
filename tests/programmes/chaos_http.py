"""A client that keeps every byte that arrived, however the connection ended."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from tests.programmes.chaos_record import Received

TIMEOUT_SECONDS = 15.0
SIP = 1 << 15
SIP_SECONDS = 0.003


class Wire:
    """One connection after another to the service, one request at a time. ``slow``: takes answers in sips, so that
    they are under way for long and a crash can cut them.
    """

    def __init__(self, port: int, key: str, *, slow: bool = False) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        self._slow = slow
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Received:
        """Never raises for what the network does: what came is in the answer, and ``fault`` says how it ended."""
        got = Received()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._ask(got, method, path, headers, body)
        except (OSError, EOFError, TimeoutError) as error:
            got.fault = type(error).__name__
        if not got.whole or got.headers.get("connection") == "close":
            self.close()
        return got

    async def _ask(self, got: Received, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        if self._streams is None:
            self._streams = await self._connect()
        reader, writer = self._streams
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        got.sent = True
        head = f"{method} {path} HTTP/1.1\r\n{self._head}{lines}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        got.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
        got.status = int(first.split(" ")[1])
        await self._body(got, reader, int(got.headers.get("content-length", 0)))
        got.whole = True

    async def _body(self, got: Received, reader: asyncio.StreamReader, length: int) -> None:
        taken = bytearray()
        try:
            while len(taken) < length:
                chunk = await reader.read(min(SIP, length - len(taken)))
                if not chunk:
                    raise EOFError
                taken += chunk
                if self._slow:
                    await asyncio.sleep(SIP_SECONDS)
        finally:
            got.body = bytes(taken)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        own = socket.socket()
        own.setblocking(False)
        if self._slow:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SIP)
        try:
            await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", self._port))
            return await asyncio.open_connection(sock=own, limit=SIP)
        except BaseException:
            own.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            with suppress(RuntimeError):
                self._streams[1].transport.abort()
        self._streams = None
