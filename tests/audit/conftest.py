"""A worker with one tenant, and words for what auditors do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cell import Cell, Tenant, running_cell


@pytest.fixture
async def cell(database: str, tmp_path: Path) -> AsyncIterator[Cell]:
    async with running_cell(database, tmp_path / "state") as cell:
        yield cell


@pytest.fixture
async def tenant(cell: Cell) -> Tenant:
    return await cell.tenant()


async def a_turn(tenant: Tenant, number: int = 1, text: str = "Hello") -> dict[str, Any]:
    """A commit with an object and a turn; answers its JSON."""
    body = {
        "external_id": f"call-{number}",
        "create": {"subject": "customer-19"},
        "put": [{"collection": "state", "key": "slots", "json": {"city": text}}],
        "turns": [{"json": {"role": "user", "text": text}}],
    }
    done = await tenant.runtime.post("/v1/commit", json=body)
    assert done.status_code == 200, done.text
    return done.json()


async def events(tenant: Tenant, **query: Any) -> list[dict[str, Any]]:
    answer = await tenant.auditor.get("/v1/audit/events", params={"limit": 1000, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["events"]


async def sealed(cell: Cell, tenant: Tenant, seconds: float = 60.0) -> int:
    """Wait until everything that is committed now is in the tree; answers its size."""
    signing = cell.parts.services.audit
    deadline = time.monotonic() + seconds
    while True:
        async with signing.pools[0].transaction(tenant.id) as tx:
            waiting = await tx.connection.fetchval("SELECT count(*) FROM confide_audit.waiting_writers()")
            size = await tx.connection.fetchval("SELECT coalesce(max(size), 0) FROM confide_audit.log")
        if not waiting:
            return int(size)
        assert time.monotonic() < deadline, "the sealer doesn't keep up"
        await asyncio.sleep(0.05)


async def verifier_keys(tenant: Tenant) -> list[str]:
    answer: httpx2.Response = await tenant.auditor.get("/v1/audit/checkpoints")
    assert answer.status_code == 200, answer.text
    return answer.json()["keys"]
