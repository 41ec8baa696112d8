"""Short ways to say what a dialogue runtime does, and what it must be told when it errs."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import httpx2

from tests.cell import Cell

TYPE = "urn:confide:problem:"


async def sql(cell: Cell, statement: str, *arguments: Any) -> list[Any]:
    """Run a statement as somebody who may write any row of the database."""
    connection = await asyncpg.connect(cell.parts.settings.database_url)
    try:
        return list(await connection.fetch(statement, *arguments))
    finally:
        await connection.close()


def name() -> str:
    """A name that nothing else has."""
    return f"n-{uuid4()}"


def refused(answer: httpx2.Response, status: int, slug: str | None = None) -> dict[str, Any]:
    """The problem document, after checking that it is one and the right one."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    if slug is not None:
        assert problem["type"].endswith(slug), problem
    return problem


def done(answer: httpx2.Response, *statuses: int) -> Any:
    """The JSON of a success."""
    assert answer.status_code in (statuses or (200, 201)), (answer.status_code, answer.text)
    return answer.json() if answer.content else None


async def session(client: httpx2.AsyncClient, **body: Any) -> str:
    made: str = done(await client.post("/v1/sessions", json=body))["id"]
    return made


async def commit(client: httpx2.AsyncClient, **body: Any) -> Any:
    return done(await client.post("/v1/commit", json=body))


async def load(client: httpx2.AsyncClient, **body: Any) -> Any:
    return done(await client.post("/v1/load", json=body))


def names_of(loaded: Any) -> list[tuple[str, str]]:
    """Collection and key of each object, in the answer's order."""
    return [(each["collection"], each["key"]) for each in loaded["context"]]


def text(words: str) -> dict[str, Any]:
    """A turn."""
    return {"json": {"text": words}}


async def say(client: httpx2.AsyncClient, place: str, *words: str) -> Any:
    """Append a turn for each word."""
    turns = [text(word) for word in words]
    return done(await client.post(f"/v1/sessions/{place}/turns", json={"turns": turns}))


def words_of(turns: list[Any]) -> list[str]:
    return [turn["json"]["text"] for turn in turns]
