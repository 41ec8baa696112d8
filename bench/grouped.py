"""The plain service with Confide's grouping and nothing else: what sealing and audit cost is the difference.

One lane for reads and one for writes. A flush takes what waited while the last one was under way and sends it as one
statement with one commit. It stores the same rows as plain.py and answers the same requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from bench.plain import Plain

MOST = 64

GET = """SELECT a.n, o.version, o.content_type, o.body
FROM unnest($1::uuid[], $2::text[], $3::text[]) WITH ORDINALITY AS a (session, collection, key, n)
JOIN object o ON o.session_id = a.session AND o.collection = a.collection AND o.key = a.key"""
PUT = """WITH a AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::bytea[], $7::uuid[])
    WITH ORDINALITY AS a (session, collection, key, version, kind, body, wanted, n)
), ok AS (
    SELECT a.* FROM a LEFT JOIN object o ON a.wanted IS NOT NULL AND o.session_id = a.session
        AND o.collection = a.collection AND o.key = a.key
    WHERE a.wanted IS NULL OR o.version = a.wanted ORDER BY a.session, a.collection, a.key
), done AS (
    INSERT INTO object AS o (session_id, collection, key, version, content_type, updated_at, body)
    SELECT session, collection, key, version, kind, now(), body FROM ok
    ON CONFLICT (session_id, collection, key) DO UPDATE SET version = EXCLUDED.version,
    content_type = EXCLUDED.content_type, updated_at = EXCLUDED.updated_at, body = EXCLUDED.body RETURNING version
) SELECT ok.n, ok.version FROM ok JOIN done USING (version)"""
LOAD = """SELECT a.n, x.*
FROM unnest($1::uuid[], $2::text[], $3::int[]) WITH ORDINALITY AS a (session, collection, last, n)
CROSS JOIN LATERAL (
    SELECT o.key, NULL::bigint AS number, o.body, s.commit_number FROM session s
    LEFT JOIN object o ON o.session_id = s.id AND o.collection = a.collection WHERE s.id = a.session
    UNION ALL (SELECT NULL, t.number, t.body, NULL FROM turn t WHERE t.session_id = a.session
               ORDER BY t.number DESC LIMIT a.last)
) x"""
COMMIT = """WITH a AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::int[]) WITH ORDINALITY AS a (session, expected, turns, n)
), s AS (
    UPDATE session s SET commit_number = s.commit_number + 1, turn_head = s.turn_head + a.turns, updated_at = now()
    FROM a WHERE s.id = a.session AND s.commit_number = a.expected
    RETURNING a.n, s.id, s.commit_number, s.turn_head, a.turns
), t AS (
    INSERT INTO turn (session_id, number, created_at, body)
    SELECT s.id, s.turn_head - s.turns + b.place, now(), b.body
    FROM unnest($4::bigint[], $5::int[], $6::bytea[]) AS b (n, place, body) JOIN s ON s.n = b.n
), o AS (
    INSERT INTO object AS o (session_id, collection, key, version, content_type, updated_at, body)
    SELECT s.id, 'state', b.key, b.version, 'application/json', now(), b.body
    FROM unnest($7::bigint[], $8::text[], $9::uuid[], $10::bytea[]) AS b (n, key, version, body) JOIN s ON s.n = b.n
    ON CONFLICT (session_id, collection, key) DO UPDATE SET version = EXCLUDED.version,
    updated_at = EXCLUDED.updated_at, body = EXCLUDED.body
) SELECT n, commit_number, turn_head FROM s"""

Item = tuple[Any, ...]
Encode = Callable[[Sequence[Item]], Sequence[Any]]


def columns(batch: Sequence[Item]) -> Sequence[Any]:
    return list(zip(*batch, strict=True))


def commit_columns(batch: Sequence[Item]) -> Sequence[Any]:
    """(session, expected, keys, turns, versions, bodies) of each, the turns and objects flattened."""
    turns = [(n, place, body) for n, item in enumerate(batch, 1) for place, body in enumerate(item[3], 1)]
    puts = [(n, *put) for n, item in enumerate(batch, 1) for put in zip(item[2], item[4], item[5], strict=True)]
    heads = [[item[0] for item in batch], [item[1] for item in batch], [len(item[3]) for item in batch]]
    return [*heads, *(columns(turns) or [[]] * 3), *(columns(puts) or [[]] * 4)]


class Lane:
    """One connection and what waits for it. A key stands once in a batch."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: list[tuple[str, Encode, Item, asyncio.Future[list[Any]]]] = []
        self._wake = asyncio.Event()

    async def start(self) -> None:
        self._connection = await asyncpg.connect(self._url)
        self._task = asyncio.create_task(self._run())

    async def ask(self, sql: str, encode: Encode, item: Item) -> list[Any]:
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((sql, encode, item, future))
        self._wake.set()
        return await future

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            await self._flush(self._take())

    def _take(self) -> list[tuple[str, Encode, Item, asyncio.Future[list[Any]]]]:
        sql = self._waiting[0][0]
        batch, rest, seen = [], [], set()
        for each in self._waiting:
            place = each[2][:3] if sql in {GET, PUT} else each[2][0]
            if each[0] == sql and place not in seen and len(batch) < MOST:
                seen.add(place)
                batch.append(each)
            else:
                rest.append(each)
        self._waiting = rest
        return batch

    async def _flush(self, batch: list[tuple[str, Encode, Item, asyncio.Future[list[Any]]]]) -> None:
        sql, encode = batch[0][0], batch[0][1]
        found: list[list[Any]] = [[] for _ in batch]
        try:
            for row in await self._connection.fetch(sql, *encode([each[2] for each in batch])):
                found[row["n"] - 1].append(row)
        except asyncpg.PostgresError as error:
            for each in batch:
                each[3].set_exception(error)
            return
        for each, rows in zip(batch, found, strict=True):
            each[3].set_result(rows)


class GroupedStore:
    def __init__(self, read: Lane, write: Lane) -> None:
        self._read = read
        self._write = write

    @classmethod
    async def open(cls, url: str) -> GroupedStore:
        store = cls(Lane(url), Lane(url))
        await store._read.start()
        await store._write.start()
        return store

    async def get(self, *a: Any) -> Any:
        return _first(await self._read.ask(GET, columns, a))

    async def put(self, *a: Any) -> Any:
        return _first(await self._write.ask(PUT, columns, (*a, None)))

    async def replace(self, *a: Any) -> Any:
        return _first(await self._write.ask(PUT, columns, a))

    async def load(self, *a: Any) -> Any:
        return await self._read.ask(LOAD, columns, a)

    async def commit(self, *a: Any) -> Any:
        return _first(await self._write.ask(COMMIT, commit_columns, a))


def _first(rows: list[Any]) -> Any:
    return rows[0] if rows else None


def application() -> Plain:
    return Plain(GroupedStore.open)
