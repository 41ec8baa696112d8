"""A worker on a database of the test's own, and somebody who may write any row of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.cell import Cell, Tenant, running_cell
from tests.guarantees.wire import Wire


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An id for each operation: of items with one id, which schemathesis makes, pytest-xdist runs a single one."""
    for item in items:
        label = getattr(item, "operation_label", None)
        if label is not None and item.id.params is None:
            item._id = item.id.with_params(label)
    if len({item.nodeid for item in items}) != len(items):
        raise pytest.UsageError("two tests have one id: one of them would not be run")


@pytest.fixture
async def cell(database: str, tmp_path: Path) -> AsyncIterator[Cell]:
    async with running_cell(database, tmp_path / "state") as cell:
        yield cell


@pytest.fixture
async def wire(database: str) -> AsyncIterator[Wire]:
    """What ``watched`` says to its database."""
    address = urlsplit(database)
    made = Wire(address.hostname or "", address.port or 0)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def watched(database: str, tmp_path: Path, wire: Wire) -> AsyncIterator[Cell]:
    """A worker behind ``wire``."""
    address = urlsplit(database)
    place = address.netloc.rpartition("@")[0] + f"@127.0.0.1:{wire.port}"
    async with running_cell(urlunsplit(address._replace(netloc=place)), tmp_path / "watched") as made:
        yield made


@pytest.fixture
async def tenant(cell: Cell) -> Tenant:
    return await cell.tenant()


@pytest.fixture
async def superuser(database: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()
