"""A few connections for single statements that leave nothing behind: no reset between uses, no transaction."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

import asyncpg

from app.errors import Unavailable
from app.store.connection import BROKEN, Connect

log = logging.getLogger("confide.pool")

FIND_SESSIONS = "SELECT id FROM confide.find_sessions($1, $2, $3, $4, $5, $6)"
RESOLVE = "SELECT * FROM confide.resolve($1, $2, $3, $4, $5)"


class Pool:
    """At most ``size`` connections, made when needed. What it runs reads only, so that it may be run again."""

    def __init__(self, connect: Connect, size: int = 4) -> None:
        self._connect = connect
        self._idle: list[asyncpg.Connection[Any]] = []
        self._slots = asyncio.Semaphore(size)

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """Rows. Raises ``Unavailable``."""
        async with self._slots:
            while True:
                fresh = not self._idle
                connection = await self._connect() if fresh else self._idle.pop()
                try:
                    rows = await connection.fetch(sql, *arguments)
                except BROKEN as error:
                    connection.terminate()
                    if fresh:
                        raise Unavailable from error
                    continue  # one that broke while it was idle says nothing of the others, nor of the database
                except asyncpg.PostgresError as error:
                    self._idle.append(connection)
                    log.error("the database refused a statement", extra={"fields": {"sqlstate": error.sqlstate}})
                    raise Unavailable from error
                except BaseException:
                    connection.terminate()
                    raise
                self._idle.append(connection)
                return list(rows)

    async def resolve(self, tenant: UUID, kind: str, container: UUID | None, external: UUID | None) -> list[Any]:
        """The container of that id or external tag, a row for each of its keys; none where there is no such one."""
        return await self.fetch(RESOLVE, "{" + str(tenant) + "}", tenant, kind, container, external)

    async def find_sessions(
        self, tenant: UUID, subject: UUID | None, label: UUID | None, after: UUID | None, limit: int
    ) -> list[UUID]:
        """Ids of living sessions by subject or label, from after ``after``, oldest first."""
        rows = await self.fetch(FIND_SESSIONS, "{" + str(tenant) + "}", tenant, subject, label, after, limit)
        return [row["id"] for row in rows]

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()
