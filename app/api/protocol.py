"""uvicorn's HTTP protocol, with an answer's head and body in one write.

uvicorn writes the head when an answer starts and the body when it comes: two system calls and two segments for each
request, a fifth of a small request's cost. Here the head waits for the first bytes of the body, which come at once.
And a whole answer, whose headers are all ours, is written without being taken apart and checked header by header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

Headers = Sequence[tuple[bytes, bytes]]

_CLOSE: Final = b"connection: close"
_LARGE: Final = 64 * 1024
"""From so many bytes on a body isn't copied to stand behind its head in one buffer."""
_HEAD = b"HTTP/1.1 "
_CONTINUE = b"HTTP/1.1 100"


class _OneWrite:
    """A transport that keeps an answer's head back until what follows it is written, or nothing follows."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(_HEAD) and not data.startswith(_CONTINUE):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._transport.write(head)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._transport.close()


def answer_at_once(send: Any, status: int, headers: Headers, body: bytes) -> bool:
    """Write a whole answer that has a Content-Length. False, with nothing written, where ``send`` is another server's,
    or the client is gone or reads too slowly: then it's sent message by message.

    Raises ``RuntimeError`` if a header would end its line.
    """
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle or cycle.response_started or cycle.disconnected:
        return False
    if cycle.flow.write_paused or cycle.access_log:
        return False
    head = [b": ".join(header) for header in (*cycle.default_headers, *headers)]
    if not cycle.keep_alive and _CLOSE not in head:
        head.append(_CLOSE)
    keep = _CLOSE not in head
    lines = b"\r\n".join(head)
    if lines.count(b"\n") != len(head) - 1 or lines.count(b"\r") != len(head) - 1 or b"\0" in lines:
        raise RuntimeError("a header's value holds a line break")
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.keep_alive = keep
    cycle.message_event.set()
    if len(body) < _LARGE:
        cycle.transport.write(b"".join((STATUS_LINE[status], lines, b"\r\n\r\n", body)))
    else:
        cycle.transport.writelines((STATUS_LINE[status], lines, b"\r\n\r\n", body))
    if not keep:
        cycle.transport.close()
    cycle.on_response()
    return True


class Protocol(HttpToolsProtocol):
    """Give it to uvicorn as ``http``."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport))  # type: ignore[arg-type]

    @override
    def on_response_complete(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()
