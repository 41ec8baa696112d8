"""What a team without Confide's needs would write, well tuned: the baseline of every ratio.

Bare ASGI on uvicorn, an asyncpg pool that doesn't reset its connections, prepared statements, one statement a request,
committed durably. No encryption, no audit. It takes the requests that Confide takes, and lays its rows out as Confide
does, which is faster than PostgreSQL's defaults.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import orjson
from uuid_utils.compat import uuid7

TUNED = "WITH (fillfactor = 50, toast_tuple_target = 8160)"
SCHEMA = """
CREATE TABLE session (
    id uuid PRIMARY KEY, commit_number bigint NOT NULL DEFAULT 0, turn_head bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE TABLE object (
    session_id uuid NOT NULL, collection text NOT NULL, key text NOT NULL, version uuid NOT NULL,
    content_type text NOT NULL,
    updated_at timestamptz NOT NULL, body bytea NOT NULL, PRIMARY KEY (session_id, collection, key)
) {storage};
CREATE TABLE turn (
    session_id uuid NOT NULL, number bigint NOT NULL, created_at timestamptz NOT NULL, body bytea NOT NULL,
    PRIMARY KEY (session_id, number)
) {storage};
"""
EXTERNAL = "ALTER TABLE object ALTER body SET STORAGE EXTERNAL; ALTER TABLE turn ALTER body SET STORAGE EXTERNAL;"

GET = "SELECT version, content_type, body FROM object WHERE session_id = $1 AND collection = $2 AND key = $3"
PUT = """INSERT INTO object AS o (session_id, collection, key, version, content_type, updated_at, body)
VALUES ($1, $2, $3, $4, $5, now(), $6)
ON CONFLICT (session_id, collection, key) DO UPDATE SET version = EXCLUDED.version,
content_type = EXCLUDED.content_type, updated_at = EXCLUDED.updated_at, body = EXCLUDED.body RETURNING version"""
REPLACE = """UPDATE object SET version = $4, content_type = $5, updated_at = now(), body = $6
WHERE session_id = $1 AND collection = $2 AND key = $3 AND version = $7 RETURNING version"""
LOAD = """SELECT key, NULL::bigint AS number, body, s.commit_number FROM session s
LEFT JOIN object o ON o.session_id = s.id AND o.collection = $2 WHERE s.id = $1
UNION ALL (SELECT NULL, number, body, NULL FROM turn WHERE session_id = $1 ORDER BY number DESC LIMIT $3)"""
COMMIT = """WITH s AS (
    UPDATE session SET commit_number = commit_number + 1, turn_head = turn_head + cardinality($4::bytea[]),
    updated_at = now() WHERE id = $1 AND commit_number = $2 RETURNING commit_number, turn_head
), t AS (
    INSERT INTO turn (session_id, number, created_at, body)
    SELECT $1, s.turn_head - cardinality($4::bytea[]) + a.n, now(), a.body
    FROM s, unnest($4::bytea[]) WITH ORDINALITY AS a (body, n)
), o AS (
    INSERT INTO object AS o (session_id, collection, key, version, content_type, updated_at, body)
    SELECT $1, 'state', a.key, a.version, 'application/json', now(), a.body
    FROM s, unnest($3::text[], $5::uuid[], $6::bytea[]) AS a (key, version, body)
    ON CONFLICT (session_id, collection, key) DO UPDATE SET version = EXCLUDED.version,
    updated_at = EXCLUDED.updated_at, body = EXCLUDED.body
) SELECT commit_number, turn_head FROM s"""


class Store(Protocol):
    """One call a request: the pool below, or lanes (grouped.py)."""

    async def get(self, *a: Any) -> Any: ...
    async def put(self, *a: Any) -> Any: ...
    async def replace(self, *a: Any) -> Any: ...
    async def load(self, *a: Any) -> Any: ...
    async def commit(self, *a: Any) -> Any: ...


class OwnConnection(asyncpg.Connection):  # type: ignore[misc]
    """Released as it is: nothing here changes a connection's state, so RESET ALL would be a round trip for nothing."""

    async def reset(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  asyncpg's signature
        return


class PoolStore:
    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, url: str) -> PoolStore:
        size = int(os.environ.get("BENCH_POOL", "32"))
        return cls(await asyncpg.create_pool(url, min_size=size, max_size=size, connection_class=OwnConnection))

    async def get(self, *a: Any) -> Any:
        return await self._pool.fetchrow(GET, *a)

    async def put(self, *a: Any) -> Any:
        return await self._pool.fetchval(PUT, *a)

    async def replace(self, *a: Any) -> Any:
        return await self._pool.fetchval(REPLACE, *a)

    async def load(self, *a: Any) -> Any:
        return await self._pool.fetch(LOAD, *a)

    async def commit(self, *a: Any) -> Any:
        return await self._pool.fetchrow(COMMIT, *a)


class Plain:
    """The ASGI application over a store."""

    def __init__(self, opener: Callable[[str], Awaitable[Store]]) -> None:
        self._opener = opener
        self._store: Store
        self._key = b"Bearer " + os.environ["BENCH_KEY"].encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        headers = dict(scope["headers"])
        if headers.get(b"authorization") != self._key:
            await answer(send, 401, b"{}")
            return
        body = b""
        if scope["method"] != "GET":
            more = True
            while more:
                message = await receive()
                body += message["body"]
                more = message.get("more_body", False)
        await self._route(scope["method"], scope["path"].split("/"), headers, body, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        self._store = await self._opener(os.environ["BENCH_DATABASE_URL"])
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _route(self, method: str, parts: list[str], headers: dict[bytes, bytes], body: bytes, send: Any) -> None:
        if parts[2] == "load":
            await self._load(orjson.loads(body), send)
        elif parts[2] == "commit":
            await self._commit(orjson.loads(body), send)
        elif method == "GET":
            row = await self._store.get(UUID(parts[3]), parts[5], parts[6])
            if row is None:
                await answer(send, 404, b"{}")
                return
            await answer(send, 200, row["body"], row["content_type"].encode(), _etag(row["version"]))
        else:
            await self._put((UUID(parts[3]), parts[5], parts[6]), headers, body, send)

    async def _put(self, place: tuple[Any, ...], headers: dict[bytes, bytes], body: bytes, send: Any) -> None:
        version = uuid7()
        content = headers[b"content-type"].decode()
        wanted = headers.get(b"if-match")
        if wanted is None:
            done = await self._store.put(*place, version, content, body)
        else:
            done = await self._store.replace(*place, version, content, body, UUID(wanted[1:-1].decode()))
        if done is None:
            await answer(send, 412, b"{}")
            return
        await answer(send, 200, orjson.dumps({"version": version}), b"application/json", _etag(version))

    async def _load(self, asked: Any, send: Any) -> None:
        rows = await self._store.load(UUID(asked["session"]), asked["context"][0]["collection"], asked["turns"]["last"])
        found = {
            "session": {
                "commit": rows[0]["commit_number"],
                "context": [
                    {"key": r["key"], "json": orjson.Fragment(r["body"])} for r in rows if r["key"] is not None
                ],
            },
            "turns": [
                {"number": r["number"], "json": orjson.Fragment(r["body"])} for r in rows if r["number"] is not None
            ],
        }
        await answer(send, 200, orjson.dumps(found))

    async def _commit(self, asked: Any, send: Any) -> None:
        puts = asked["put"]
        versions = [uuid7() for _ in puts]
        row = await self._store.commit(
            UUID(asked["session"]),
            asked["expected_commit"],
            [put["key"] for put in puts],
            [orjson.dumps(turn["json"]) for turn in asked["turns"]],
            versions,
            [orjson.dumps(put["json"]) for put in puts],
        )
        if row is None:
            await answer(send, 412, b"{}")
            return
        done = {"commit": row["commit_number"], "last_turn": row["turn_head"], "put": versions}
        await answer(send, 200, orjson.dumps(done))


def _etag(version: UUID) -> tuple[bytes, bytes]:
    return b"etag", b'"' + str(version).encode() + b'"'


async def answer(send: Any, status: int, body: bytes, kind: bytes = b"application/json", *more: Any) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def application() -> Plain:
    return Plain(PoolStore.open)
