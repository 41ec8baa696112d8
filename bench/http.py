"""A small HTTP client for setting things up: one connection, one request at a time, JSON in and out."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

POLL = 0.1


class RefusedError(Exception):
    """An answer of 400 or more."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body[:300]!r}")
        self.status = status


class Http:
    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(*self._address, limit=1 << 24)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def request(self, verb: str, path: str, key: str | None, body: bytes = b"", *more: str) -> tuple[int, bytes]:
        lines = [f"{verb} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}", *more]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        named = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        if named.get("transfer-encoding") == "chunked":
            return int(head[9:12]), await self._chunks()
        return int(head[9:12]), await self._reader.readexactly(int(named.get("content-length", "0")))

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return body

    async def json(self, verb: str, path: str, key: str | None, body: Any, *more: str) -> Any:
        """``body`` None: without one. Raises RefusedError."""
        text = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        kind = () if body is None else ("Content-Type: application/json",)
        status, answer = await self.request(verb, path, key, text, *kind, *more)
        if status >= 400:
            raise RefusedError(status, answer)
        return json.loads(answer) if answer else None

    async def done(self, path: str, key: str) -> None:
        """Wait for a job. Raises RefusedError, also where it failed."""
        while (found := await self.json("GET", path, key, None))["state"] != "done":
            if found["state"] == "failed":
                raise RefusedError(200, json.dumps(found).encode())
            await asyncio.sleep(POLL)
