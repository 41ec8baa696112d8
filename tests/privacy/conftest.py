"""A worker with one tenant, whose background sweeper rests unless a test asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cell import Cell, Tenant, running_cell


@pytest.fixture
async def cell(database: str, tmp_path: Path) -> AsyncIterator[Cell]:
    async with running_cell(database, tmp_path / "state") as cell:
        yield cell


@pytest.fixture
async def tenant(cell: Cell) -> Tenant:
    return await cell.tenant()
