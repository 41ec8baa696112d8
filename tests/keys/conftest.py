"""A cell with every key service as its neighbour: ministack, OpenBao, the Azure fake, and key files.

The tests that use servers share two xdist groups, so that servers are started twice at most.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.kms.binding import LocalBinding
from app.kms.registry import KmsSettings
from app.services import unused_keys
from tests.cell import REGION, Cell, running_cell
from tests.keys.customers import QUICK, World
from tests.kms.conftest import authority, bao, fake_azure, ministack
from tests.kms.fake_azure import FakeAzure
from tests.kms.rigs import AwsWorld, TransitWorld

__all__ = ["authority", "bao", "fake_azure", "ministack"]

_SERVERS = {"ministack", "bao", "fake_azure", "world", "customer", "cell", "two_workers", "other_world"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and _SERVERS & set(getattr(item, "fixturenames", ())):
            half = "revocation" if "revocation" in item.path.name else "moves"
            item.add_marker(pytest.mark.xdist_group(f"keys-{half}"))


@pytest.fixture
def world(
    ministack: AwsWorld,
    bao: TransitWorld,
    fake_azure: FakeAzure,
    tmp_path: Path,
) -> World:
    made = World(ministack, bao, fake_azure, tmp_path / "keys")
    made.clear()
    return made


@pytest.fixture
async def cell(database: str, tmp_path: Path, world: World) -> AsyncIterator[Cell]:
    async with running_cell(database, tmp_path / "state", world.settings()) as made:
        yield made


@pytest.fixture
async def two_workers(database: str, tmp_path: Path, world: World) -> AsyncIterator[tuple[Cell, Cell]]:
    """Two workers of one cell: one database, one state folder, one set of key services."""
    kms = world.settings()
    async with (
        running_cell(database, tmp_path / "state", kms) as first,
        running_cell(database, tmp_path / "state", kms) as second,
    ):
        yield first, second


@pytest.fixture
async def pair(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Cell, Cell]]:
    """Two workers of one cell, with key files for customers' keys."""
    monkeypatch.setattr(unused_keys, "LINGER", 0.0)
    kms = KmsSettings(REGION, LocalBinding("vendor"), QUICK, dev=True, local_folder=tmp_path)
    async with (
        running_cell(database, tmp_path / "state", kms) as first,
        running_cell(database, tmp_path / "state", kms) as second,
    ):
        yield first, second
