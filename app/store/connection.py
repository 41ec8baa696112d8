"""Connections to PostgreSQL as ``confide_service``, with the settings that the statements need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from app.errors import Unavailable

Connect = Callable[[], Awaitable["asyncpg.Connection[Any]"]]

BROKEN: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server said farewell while the connection was idle
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)
"""What tells that the connection is gone, so that the outcome of its last statement isn't known."""

SETTINGS: Final = {
    "role": "confide_service",
    "application_name": "confide",
    "search_path": "pg_catalog",
    "TimeZone": "UTC",
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "synchronous_commit": "on",
    # The statements are nested loops over primary keys, whatever the statistics of an almost empty table say.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "work_mem": "32MB",
}


def connector(url: str, **overrides: str) -> Connect:
    """A function that opens a connection to ``url``, or raises ``Unavailable`` with no word of what the server said."""
    settings = SETTINGS | overrides

    async def connect() -> asyncpg.Connection[Any]:
        try:
            return await asyncpg.connect(url, timeout=5, server_settings=settings, statement_cache_size=256)
        except (*BROKEN, asyncpg.PostgresError, TimeoutError) as error:
            raise Unavailable from error

    return connect
