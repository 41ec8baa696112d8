"""Transactions of the control plane: what isn't a dialogue, but must commit together with its audit events.

One connection and one audit writer a worker, used by one transaction at a time. No transaction is held open across a
call to a KMS or any other network peer: ``Transaction`` offers SQL only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg

from app.errors import Conflict, OutcomeUnknown, Unavailable
from app.identity import new_id
from app.store.connection import BROKEN, Connect
from app.store.statements import RECORD, Record, Sequences, encode_record

log = logging.getLogger("confide.ledger")

CONFLICTS: Final = frozenset({"23505", "40001", "40P01"})
"""Unique violation, serialization failure, deadlock: somebody else was first."""


class Transaction:
    """An open transaction that sees the named tenants. SQL goes through ``connection``; events wait for the end."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self.connection = connection
        self.events: list[Record] = []

    def event(
        self,
        tenant: UUID,
        action: str,
        facts: str,
        *,
        outcome: str = "allowed",
        reason: str | None = None,
        container: UUID | None = None,
    ) -> UUID:
        """An audit event that commits with this transaction. Answers its id."""
        event = new_id()
        self.events.append(Record(tenant, action, outcome, facts, reason, container, event))
        return event


class Ledger:
    """``async with ledger.transaction(tenant) as tx``: all of it, with its events, or nothing."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection[Any] | None = None
        self._writer = new_id()
        self._flush = 0
        self._sequences = Sequences()

    @asynccontextmanager
    async def transaction(self, *tenants: UUID) -> AsyncIterator[Transaction]:
        """Raises what the body raises (and rolls back); of its own ``Conflict``, ``Unavailable``,
        ``OutcomeUnknown``.
        """
        async with self._lock:
            connection = await self._ready()
            try:
                await connection.execute("BEGIN")
                await _see(connection, tenants)
                tx = Transaction(connection)
                yield tx
                await self._write_events(tx, tenants)
            except BROKEN as error:
                self._drop()
                raise Unavailable from error
            except asyncpg.PostgresError as error:
                await self._roll_back(connection)
                if error.sqlstate in CONFLICTS:
                    raise Conflict from error
                log.error("the database refused a statement", extra={"fields": {"sqlstate": error.sqlstate}})
                raise Unavailable from error
            except BaseException:
                await self._roll_back(connection)
                raise
            await self._commit(connection)

    async def read(self, sql: str, *arguments: Any, tenants: Iterable[UUID] = ()) -> list[Any]:
        """Rows of one SELECT that opens no context, seen as ``tenants``."""
        async with self.transaction(*tenants) as tx:
            return list(await tx.connection.fetch(sql, *arguments))

    async def close(self) -> None:
        async with self._lock:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

    async def _write_events(self, tx: Transaction, tenants: Iterable[UUID]) -> None:
        if tx.events:
            arguments = encode_record(tx.events, self._writer, self._flush + 1, self._sequences)
            await tx.connection.execute(RECORD, *arguments)
            self._flush += 1

    async def _commit(self, connection: asyncpg.Connection[Any]) -> None:
        try:
            await connection.execute("COMMIT")
        except (*BROKEN, asyncpg.PostgresError) as error:
            self._drop()
            raise OutcomeUnknown from error
        except BaseException:
            self._drop()
            raise
        self._sequences.keep()

    async def _roll_back(self, connection: asyncpg.Connection[Any]) -> None:
        self._sequences.give_back()
        try:
            await connection.execute("ROLLBACK")
            self._flush = await connection.fetchval(
                "SELECT flush FROM confide_audit.writer WHERE id = $1", self._writer
            )
        except (*BROKEN, asyncpg.PostgresError):
            self._drop()  # a connection that is gone has rolled back; what led here is what the caller must hear
        except BaseException:
            self._drop()
            raise

    async def _ready(self) -> asyncpg.Connection[Any]:
        """The connection; a new one comes with a new writer, and fences off the old one."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        connection = await self._connect()
        try:
            await connection.execute(
                "UPDATE confide_audit.writer SET flush = -flush - 1 WHERE id = $1 AND flush >= 0", self._writer
            )
            self._writer, self._flush, self._sequences = new_id(), 0, Sequences()
            await connection.execute("INSERT INTO confide_audit.writer (id) VALUES ($1)", self._writer)
        except (*BROKEN, asyncpg.PostgresError) as error:
            connection.terminate()
            raise Unavailable from error
        except BaseException:  # cancelled: nobody else would close it
            connection.terminate()
            raise
        self._connection = connection
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _see(connection: asyncpg.Connection[Any], tenants: Iterable[UUID]) -> None:
    """Name the tenants that row-level policies let this transaction see."""
    names = "{" + ",".join(str(tenant) for tenant in tenants) + "}"
    await connection.execute("SELECT set_config('confide.tenants', $1, true)", names)
