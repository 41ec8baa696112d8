"""Putting an answer on the wire, with the headers that every answer carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from app.api.http import Answer, Headers, StreamAnswer
from app.api.protocol import answer_at_once

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_TOO_LARGE: Final = 413
_NO_STORE: Final = (b"cache-control", b"no-store")
_NO_SNIFF: Final = (b"x-content-type-options", b"nosniff")
_CLOSE: Final = (b"connection", b"close")


class BrokenStream(Exception):
    """A stream's source failed after the answer's head was sent. Its cause is for the log; it has no text."""


def answer_headers(answer: Answer, request_id: str, trace_id: str) -> Headers:
    """Content-Length is that of the body also for HEAD (RFC 9110 section 8.6); 204 and 304 have none."""
    headers = [
        _NO_STORE,
        _NO_SNIFF,
        (b"confide-request-id", request_id.encode()),
        (b"confide-trace-id", trace_id.encode()),
        *answer.headers,
    ]
    if answer.content_type is not None:
        headers.append((b"content-type", answer.content_type))
        headers.append((b"content-length", b"%d" % len(answer.body)))
    elif answer.status not in {204, 304}:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    if answer.status == _TOO_LARGE:
        headers.append(_CLOSE)  # what is left of the body need not be read
    return headers


async def send_answer(send: Send, answer: Answer, method: str, request_id: str, trace_id: str) -> None:
    """A whole answer, in one write where that can be."""
    headers = answer_headers(answer, request_id, trace_id)
    body = answer.body
    if method != "HEAD" and answer_at_once(send, answer.status, headers, body):
        return
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


async def send_stream(receive: Receive, send: Send, answer: StreamAnswer, method: str, ids: tuple[str, str]) -> None:
    """Send chunks until they end or the client goes away; the source is closed either way. Raises BrokenStream."""
    headers = [
        _NO_STORE,
        _NO_SNIFF,
        (b"confide-request-id", ids[0].encode()),
        (b"confide-trace-id", ids[1].encode()),
        (b"content-type", answer.content_type),
        *answer.headers,
    ]
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if method != "HEAD":
            await _send_chunks(send, answer.chunks, gone)
        if not gone.done():
            await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        close = getattr(answer.chunks, "aclose", None)
        if close is not None:
            await close()


async def _send_chunks(send: Send, chunks: AsyncIterator[bytes], gone: asyncio.Future[None]) -> None:
    try:
        async for chunk in chunks:
            if gone.done():
                return
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except Exception as error:
        raise BrokenStream from error


async def _disconnected(receive: Receive) -> None:
    """Ends when the client is gone. The server's send only falls silent then."""
    while (await receive())["type"] != "http.disconnect":
        pass
