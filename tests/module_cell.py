"""A worker that a module's tests share, each with a tenant of its own.

A module that imports these fixtures marks its async tests with ``in_module``, and looks at nothing of other tenants.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.cell import Cell, Tenant, running_cell
from tests.conftest import temporary_database

in_module = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def module_database(postgres: str, database_template: str) -> Iterator[str]:
    """A migrated database that the module's tests share, each with tenants of its own."""
    with temporary_database(postgres, database_template) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    async with running_cell(module_database, tmp_path_factory.mktemp("state")) as cell:
        yield cell


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(cell: Cell) -> AsyncIterator[Tenant]:
    """Made anew for each test: names and external ids never meet those of another."""
    made = await cell.tenant()
    yield made
    for client in (made.runtime, made.admin, made.auditor):
        await client.aclose()
