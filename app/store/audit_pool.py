"""Connections for reading the audit log and for sealing it, apart from those that dialogues wait for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg

from app.errors import Unavailable
from app.store.connection import BROKEN, Connect, connector
from app.store.ledger import Transaction

log = logging.getLogger("confide.audit")

OVERRIDES: Final = {
    # The planner chooses here: these questions are of many kinds, and values decide which index serves.
    "plan_cache_mode": "force_custom_plan",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
    "enable_seqscan": "on",
    "enable_bitmapscan": "on",
    "statement_timeout": "60s",
    # A peer that vanished without a word frees the sealer's lock within seconds.
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "application_name": "confide-audit",
}


STALLED: Final = {"idle_in_transaction_session_timeout": "4s"}
"""For the sealer and for signing: a process that stands still loses its transaction before another takes its place."""


def audit_connector(url: str, **more: str) -> Connect:
    return connector(url, **OVERRIDES, **more)


class AuditPool:
    """At most ``size`` connections, made when needed; a short transaction at a time on each."""

    def __init__(self, connect: Connect, size: int = 3) -> None:
        self._connect = connect
        self._idle: list[asyncpg.Connection[Any]] = []
        self._slots = asyncio.Semaphore(size)

    @asynccontextmanager
    async def transaction(self, *tenants: UUID, snapshot: bool = False) -> AsyncIterator[Transaction]:
        """Sees the named tenants. ``snapshot``: every statement sees one moment. Raises Unavailable."""
        async with self._slots:
            connection = await self._ready()
            try:
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ" if snapshot else "BEGIN")
                names = "{" + ",".join(map(str, tenants)) + "}"
                await connection.execute("SELECT set_config('confide.tenants', $1, true)", names)
                yield Transaction(connection)
                await connection.execute("COMMIT")
            except (*BROKEN, TimeoutError) as error:
                connection.terminate()
                raise Unavailable from error
            except asyncpg.PostgresError as error:
                connection.terminate()
                log.error("the database refused a statement", extra={"fields": {"sqlstate": error.sqlstate}})
                raise Unavailable from error
            except BaseException:
                connection.terminate()
                raise
            self._idle.append(connection)

    async def _ready(self) -> asyncpg.Connection[Any]:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()
