"""Something else that happens between two statements of a transaction: the same at every run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from app.store.ledger import Ledger, Transaction

STATEMENTS = frozenset({"fetch", "fetchrow", "fetchval", "execute"})


class Interleaved:
    """``work`` runs once, before the statement ``number`` (from 0) of the next transaction of ``ledger``."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, ledger: Ledger, number: int, work: Callable[[], Awaitable[Any]]
    ) -> None:
        self._real = ledger.transaction
        self._left = number
        self._work = work
        self.ran = False
        monkeypatch.setattr(ledger, "transaction", self._transaction)

    @asynccontextmanager
    async def _transaction(self, *tenants: UUID) -> AsyncIterator[Transaction]:
        async with self._real(*tenants) as tx:
            if not self.ran and self._left >= 0:
                tx.connection = _Connection(tx.connection, self)  # type: ignore[assignment]
            yield tx

    async def before_a_statement(self) -> None:
        self._left -= 1
        if self._left == -1:
            self.ran = True
            await self._work()


class _Connection:
    def __init__(self, connection: Any, between: Interleaved) -> None:
        self._connection = connection
        self._between = between

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._connection, name)
        if name not in STATEMENTS:
            return real

        async def run(*arguments: Any, **more: Any) -> Any:
            await self._between.before_a_statement()
            return await real(*arguments, **more)

        return run
