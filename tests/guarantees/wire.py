"""What a worker says to PostgreSQL and hears back, seen from a proxy between them (protocol 3.0, without TLS).

An exchange is a round trip: the client's messages up to one that waits (Sync, Query), and the server's up to
ReadyForQuery. Its shape holds no value: statements' texts, kinds and lengths of messages.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field

from tests.guarantees.relay import Connection, Relay

_SSL_REQUEST = 80_877_103
_WAITS = (b"S", b"Q")


@dataclass(slots=True)
class Exchange:
    """``sent`` and ``heard``: kind and length of each message; ``texts``: of the statements that were run."""

    texts: list[str] = field(default_factory=list)
    sent: list[tuple[str, int]] = field(default_factory=list)
    heard: list[tuple[str, int]] = field(default_factory=list)

    def shape(self) -> tuple[object, ...]:
        """Without the preparing of a statement, which each connection does once."""
        sent = tuple(message for message in self.sent if message[0] not in "PDH")
        heard = tuple(message for message in self.heard if message[0] not in "1tTn")
        return tuple(self.texts), sent, heard


class _Session:
    """One connection, its prepared statements and the exchange under way."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.started = False
        self.plain = False  # the answer to an SSLRequest is one byte
        self.statements: dict[bytes, str] = {}
        self.bound = ""
        self.open = Exchange()
        self.buffers = {True: b"", False: b""}

    def take(self, data: bytes, *, forth: bool) -> None:
        buffer = self.buffers[forth] + data
        if forth and not self.started:
            buffer = self._start(buffer)
        if not forth and self.plain and buffer:
            buffer, self.plain = buffer[1:], False
        while self.started and len(buffer) >= 5:
            length = int.from_bytes(buffer[1:5], "big") + 1
            if len(buffer) < length:
                break
            kind, body, buffer = buffer[:1], buffer[5:length], buffer[length:]
            (self._forth if forth else self._back)(kind, body)
        self.buffers[forth] = buffer

    def _start(self, buffer: bytes) -> bytes:
        while not self.started and len(buffer) >= 8:
            length, code = struct.unpack(">II", buffer[:8])
            if len(buffer) < length:
                break
            buffer = buffer[length:]
            if code == _SSL_REQUEST:
                self.plain = True
            else:
                self.started = True
        return buffer

    def _forth(self, kind: bytes, body: bytes) -> None:
        if kind == b"P":
            name, text = body.split(b"\0")[:2]
            self.statements[name] = text.decode()
        elif kind == b"B":
            self.bound = self.statements.get(body.split(b"\0")[1], "?")
        elif kind == b"E":
            self.open.texts.append(self.bound)
        elif kind == b"Q":
            self.open.texts.append(body[:-1].decode())
        self.open.sent.append((kind.decode(), len(body)))

    def _back(self, kind: bytes, body: bytes) -> None:
        self.open.heard.append((kind.decode(), len(body)))
        if kind == b"Z":
            self.wire.exchanges.append(self.open)
            self.open = Exchange()


class Wire(Relay):
    """The proxy. ``exchanges``: every finished one, in the order of their ends."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.exchanges: list[Exchange] = []

    def connection(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> Connection:
        return _Watched(_Session(self), near, far)

    def drain(self) -> list[Exchange]:
        found, self.exchanges = self.exchanges, []
        return found


class _Watched(Connection):
    def __init__(self, session: _Session, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        super().__init__(near, far)
        self._session = session

    async def carry(self, data: bytes, *, forth: bool) -> None:
        self._session.take(data, forth=forth)
        await super().carry(data, forth=forth)
