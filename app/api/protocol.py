"""uvicorn's HTTP protocol, with an answer's head and body in one write, and a problem document for what isn't HTTP.

uvicorn writes the head when an answer starts and the body when it comes: two system calls and two segments for each
request, a fifth of a small request's cost. Here the head waits for the first bytes of the body, which come at once.
And a whole answer, whose headers are all ours, is written without being taken apart and checked header by header.

A request that can't be parsed never becomes one of the application's. What is answered then, when, and what becomes of
the connection, is decided here: the problem comes after the answers that are still due, and the connection ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import BadRequest, ConfideError, HeadTooLarge, MethodUnknown

Headers = Sequence[tuple[bytes, bytes]]

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's target and headers together. uvicorn and httptools have no limit."""

_CLOSE: Final = b"connection: close"
_LARGE: Final = 64 * 1024
"""From so many bytes on a body isn't copied to stand behind its head in one buffer."""
_HEAD = b"HTTP/1.1 "
_CONTINUE = b"HTTP/1.1 100"
_REQUEST_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]\r?\n")
_MALFORMED: Final = "The request isn't well-formed HTTP/1.1, or is HTTP/2 or TLS, which this port doesn't speak."
_LINGER_SECONDS: Final = 2.0
"""So long a refused client may go on sending: a connection that is closed over unread bytes loses its last answer."""


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
    """Give it to uvicorn as ``http``; the application must be an ``Api``, which words and counts what is refused."""

    _pending = 0
    """Bytes that came since the last head, part of a body or end of a request."""
    _fed = 0
    _in_head = _in_body = _moved = False
    _found: ConfideError | None = None
    """What a callback found wrong; the parser lets no error of a callback through as it is."""
    _refused: ConfideError | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport))  # type: ignore[arg-type]

    @override
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused is not None:
            return
        self._moved = False
        self._fed = self._pending + len(data)
        try:
            self._feed(data)
        except HttpParserInvalidMethodError:
            alone = not self._moved and _REQUEST_LINE.match(data)  # behind another request its line isn't found
            self._refuse(MethodUnknown() if alone else BadRequest(_MALFORMED))
        except HttpParserError:
            self._refuse(self._found or BadRequest(_MALFORMED))
        else:
            self._pending = 0 if self._moved else self._fed
            if self._pending > MAX_HEAD_BYTES:  # a head without end; or trailers, or a chunk's extensions
                self._refuse(HeadTooLarge() if self._in_head else BadRequest(_MALFORMED))

    def _feed(self, data: bytes) -> None:
        """An upgrade that isn't offered is ignored (RFC 9110 section 7.8). The parser can't: after such a head it takes
        the body for the next request. So a new one is given the same head without the wish.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self._found = MethodUnknown()
                    raise HttpParserError from None
                version = b"HTTP/" + self.parser.get_http_version().encode()
                line = b" ".join((self.parser.get_method(), self.url, version))
                kept = [b": ".join(header) for header in self.headers if header[0] != b"upgrade"]
                data = b"\r\n".join((line, *kept, b"", data[upgrade.args[0] :]))
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            else:
                return

    def _refuse(self, error: ConfideError) -> None:
        """Answer what can't be parsed, once nothing else is to be answered before it."""
        self._refused = error
        cycle: RequestResponseCycle | None = self.cycle
        if not self._in_body or cycle is None:
            if cycle is None or cycle.response_complete:
                self._part()
            return
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
        elif cycle.response_started:
            self.transport.close()
        else:
            cycle.disconnected = True  # its handler waits for the rest of a body that won't come
            cycle.message_event.set()
            self._part()

    def _part(self) -> None:
        """The last answer."""
        if self._refused is None or self.transport.is_closing():
            return
        status, headers, body = self.app.refused(self._refused)
        lines = [b": ".join(header) for header in (*self.server_state.default_headers, *headers)]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join((*lines, _CLOSE, b"", body)))
        self.transport.flush()  # type: ignore[attr-defined]
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    @override
    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    @override
    def on_headers_complete(self) -> None:
        self._in_head, self._moved = False, True
        if self.parser.should_upgrade():
            return
        if self._fed > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._found = HeadTooLarge()
                raise self._found
        super().on_headers_complete()
        self.headers = []  # for the trailers: they are no headers (RFC 9110 section 6.5.1)
        self._in_body = True

    @override
    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_body, self._moved = False, True
        if not self.parser.should_upgrade():
            super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined]
        more = bool(self.pipeline)
        super().on_response_complete()
        if self._refused is not None and not more:
            self._part()
