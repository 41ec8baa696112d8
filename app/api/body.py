"""Reading a request's body whole, within a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from app.errors import BadRequest, TooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_DRAIN_BYTES: Final = 4 * 1024 * 1024
_DRAIN_SECONDS: Final = 2.0


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """At most ``limit`` bytes. Raises TooLarge, by Content-Length where there is one, else as soon as it's passed."""
    length = headers.get(b"content-length")
    if length is not None and _as_int(length) > limit:
        if b"expect" not in headers:  # with Expect: 100-continue the client hasn't begun to send
            await _drain(receive)
        raise TooLarge(f"The body is larger than this route's limit of {limit} bytes.")
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and len(body) <= limit:
        return body
    return await _read_on(receive, body, limit, more=bool(message.get("more_body", False)))


def _as_int(length: bytes) -> int:
    if not length.isdigit():
        raise BadRequest("Content-Length is not a number.")
    return int(length)


async def _read_on(receive: Receive, first: bytes, limit: int, *, more: bool) -> bytes:
    parts = [first]
    size = len(first)
    while more and size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    if size > limit:
        if more:
            await _drain(receive)
        raise TooLarge(f"The body is larger than this route's limit of {limit} bytes.")
    return b"".join(parts)


async def _drain(receive: Receive) -> None:
    """Read a little of what is too large, without keeping it: a client that still sends doesn't read its answer."""
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def refuse_body(headers: Mapping[bytes, bytes]) -> None:
    """For routes without a body (RFC 9110 section 9.3.1: content in a GET has no meaning). Raises BadRequest."""
    if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
        raise BadRequest("This route takes no body.")
