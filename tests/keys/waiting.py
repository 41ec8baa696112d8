"""Waiting for what happens in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from tests.cell import Tenant


async def until(check: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
    """What ``check`` answers once it is true."""
    async with asyncio.timeout(seconds):
        while True:
            found = await check()
            if found:
                return found
            await asyncio.sleep(0.02)


async def ended(tenant: Tenant, job: UUID | str, *states: str, seconds: float = 120.0) -> dict[str, Any]:
    async def look() -> Any:
        answer = (await tenant.admin.get(f"/v1/jobs/{job}")).raise_for_status().json()
        return answer if answer["state"] in (states or ("done",)) else None

    return await until(look, seconds)
