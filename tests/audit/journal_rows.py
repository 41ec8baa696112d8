"""Sealing by hand, events of any shape, and the owner's view of the database."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from app.identity import new_id
from app.services.sealer import Sealer
from app.store import audit_seal
from app.store.audit_pool import audit_connector
from app.store.statements import Record
from tests.cell import REGION, Cell


async def append(cell: Cell, tenant: UUID, action: str = "context.load", outcome: str = "allowed", **more: Any) -> UUID:
    """One event through the worker's own lane. ``more``: facts, and ``container``."""
    container = more.pop("container", None)
    reason = None if outcome == "allowed" else more.pop("reason", "test")
    event = new_id()
    facts = orjson.dumps(more, default=str).decode()
    await cell.parts.services.auditing.append(Record(tenant, action, outcome, facts, reason, container, event))
    return event


async def append_rows(url: str, tenant: UUID, times: list[datetime], **more: Any) -> UUID:
    """A writer of its own, with a flush for each time. Answers the writer's id."""
    writer = new_id()
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET ROLE confide_service")
        await connection.execute("INSERT INTO confide_audit.writer (id) VALUES ($1)", writer)
        for number, moment in enumerate(times, 1):
            await connection.execute(
                "SELECT confide.record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                "{" + str(tenant) + "}",
                writer,
                number,
                [tenant],
                [more.get("id", new_id())],
                [moment],
                [number],
                [more.get("action", "context.load")],
                [more.get("outcome", "allowed")],
                [more.get("reason")],
                [None],
                [more.get("facts", "{}")],
            )
    finally:
        await connection.close()
    return writer


@asynccontextmanager
async def by_hand(cell: Cell) -> AsyncIterator[Any]:
    """Stops the worker's sealer; yields a function that seals what is there. A sealer's beginning is part of it."""
    audit = cell.parts.services.audit
    await audit.sealer.close()
    connect = audit_connector(cell.url)
    connection = await connect()
    sealer = Sealer(REGION, connect, audit.signing, cell.parts.services.auditing)

    async def seal() -> Sealer:
        while await sealer.poll(connection):
            pass
        return sealer

    try:
        while not await audit_seal.try_lead(connection):  # noqa: ASYNC110  the worker's sealer is ending
            await asyncio.sleep(0.05)
        yield seal
    finally:
        await connection.close()


@asynccontextmanager
async def superuser(url: str, *, replica: bool = False) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A database administrator. ``replica``: with the triggers switched off, as a restore or an attacker works."""
    connection = await asyncpg.connect(url)
    try:
        if replica:
            await connection.execute("SET session_replication_role = replica")
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def login(url: str, role: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A new login that is a member of ``role`` and nothing else."""
    name, password = f"test_{secrets.token_hex(6)}", secrets.token_hex(12)
    async with superuser(url) as admin:
        await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE {role}")
        connection = await asyncpg.connect(url, user=name, password=password)
        try:
            yield connection
        finally:
            await connection.close()
            await admin.execute(f"DROP OWNED BY {name}")
            await admin.execute(f"DROP ROLE {name}")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
