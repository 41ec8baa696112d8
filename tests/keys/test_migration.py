"""The bindings' migration goes down and up again with data in place."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.store.migrate import downgrade, upgrade
from tests.cell import running_cell
from tests.keys.customers import World, bound, checked, make_customer
from tests.keys.test_moves import last, write


async def test_bindings_migrate_down_and_up_with_data(database: str, tmp_path: Path, world: World) -> None:
    kms = world.settings()
    async with running_cell(database, tmp_path / "state", kms) as cell:
        tenant = await cell.tenant()
        await write(tenant, "s", 1)
        await bound(cell, tenant, make_customer(world, "local"))
        await checked(tenant, make_customer(world, "local"))
    await asyncio.to_thread(downgrade, database, "0002")
    await asyncio.to_thread(upgrade, database)
    async with running_cell(database, tmp_path / "state", kms) as cell:
        again = cell.client(tenant.keys["runtime"])
        tenant.runtime = again
        assert await last(tenant, "s") == 1
