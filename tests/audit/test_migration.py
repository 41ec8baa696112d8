"""The schema of the sealed log goes down and up again."""

from __future__ import annotations

import asyncio

from app.store import migrate


async def test_the_sealed_log_migrates_up_down_and_up(empty_database: str) -> None:
    await asyncio.to_thread(migrate.upgrade, empty_database, "0002")
    await asyncio.to_thread(migrate.downgrade, empty_database, "0001")
    await asyncio.to_thread(migrate.upgrade, empty_database, "0002")
    assert await asyncio.to_thread(migrate.current, empty_database) == "0002"
