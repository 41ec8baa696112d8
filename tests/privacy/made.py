"""Dialogues to be kept, expired and erased."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg

from tests.cell import Cell, Tenant


async def dialogue(tenant: Tenant, external: str, subject: str | None = None, **making: Any) -> UUID:
    """A session with two turns and an object; and, if named, a subject with one."""
    create: dict[str, Any] = dict(making)
    if subject is not None:
        create["subject"] = subject
    body: dict[str, Any] = {
        "external_id": external,
        "create": create,
        "put": [{"collection": "state", "key": "slots", "json": {"city": "Bern"}}],
        "turns": [{"json": {"role": "user", "text": "Hello"}}, {"json": {"role": "bot", "text": "Hi"}}],
    }
    done = await tenant.runtime.post("/v1/commit", json=body)
    assert done.status_code == 200, done.text
    return UUID(done.json()["session"]["id"])


async def sql(cell: Cell, text: str, *arguments: Any) -> list[Any]:
    """As the database's superuser: what nobody else may do."""
    connection = await asyncpg.connect(cell.url)
    try:
        return list(await connection.fetch(text, *arguments))
    finally:
        await connection.close()


async def expire(cell: Cell, *sessions: UUID) -> None:
    """Let the time of ``sessions`` be over."""
    await sql(
        cell,
        "UPDATE confide.container SET expires_at = now() - interval '1 second', sweep_at = now() - interval '1 second'"
        " WHERE id = ANY ($1)",
        list(sessions),
    )


async def until(true: Callable[[], Awaitable[Any]], seconds: float = 90) -> Any:
    """What ``true`` answers once it isn't empty."""
    for _ in range(int(seconds / 0.05)):
        found = await true()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it never came true")


async def rows_of(cell: Cell, container: UUID) -> int:
    """How many rows in all tables hold something of a container."""
    total = 0
    for table, column in (
        ("container", "id"),
        ("context_object", "container_id"),
        ("turn", "container_id"),
        ("container_key", "container_id"),
        ("container_label", "container_id"),
    ):
        found = await sql(cell, f"SELECT count(*) FROM confide.{table} WHERE {column} = $1", container)
        total += found[0][0]
    return total
