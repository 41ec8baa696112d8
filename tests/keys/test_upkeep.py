"""What all workers of a cell share: turns at KMS calls, denials of many, the vendor's key under its current version."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.kms.binding import LocalBinding, TransitBinding
from app.kms.provider import KmsUnavailable
from app.services import probes
from app.store import flights
from tests.cell import Cell, Tenant, running_cell
from tests.keys.customers import World, bound, make_customer
from tests.keys.test_moves import events, last, read, write
from tests.keys.test_rekey_live import beside
from tests.keys.test_revocation import all_denied_first, state_of
from tests.kms.servers import Fault


def calls(known: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(begin, end) of every KMS call that the log knows, by begin."""
    ends = {each["intent"]: each["time"] for each in known if each["action"] == "key.outcome"}
    under_way = "9999"
    return sorted((each["time"], ends.get(each["id"], under_way)) for each in known if each["action"] == "key.intent")


async def test_one_call_at_a_time_for_a_tenant_in_the_whole_cell(two_workers: tuple[Cell, Cell], world: World) -> None:
    first, second = two_workers
    tenant = await first.tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, "vault-transit")
    await bound(first, tenant, customer, lease=0)
    other = beside(second, tenant)
    for _ in range(3):
        answers = await asyncio.gather(*(read(side, "s") for _ in range(8) for side in (tenant, other)))
        assert {answer.status_code for answer in answers} == {200}
    customer.out("silence", 4)
    answers = await asyncio.gather(*(read(side, "s") for _ in range(8) for side in (tenant, other)))
    assert {answer.status_code for answer in answers} <= {200, 503}
    made = calls(await events(tenant, "key.intent", "key.outcome"))
    assert len(made) > 8
    overlapping = [(one, two) for one, two in pairwise(made) if two[0] < one[1]]
    assert not overlapping, overlapping[:2]


async def test_a_turn_ends_by_itself_and_nobody_waits_longer_than_a_call_may_last(cell: Cell) -> None:
    tenant = await cell.tenant()
    keys = cell.parts.services.keys
    stranger = UUID(int=7)
    assert await flights.claim(keys.turns, tenant.id, stranger, 0.3)
    cell.parts.services.keyring.discard(tenant.id, at_once=True)
    cell.parts.services.keyring.forget_vendor(tenant.id)
    await write(tenant, "s", 1)  # the stranger never gives it back
    assert await flights.claim(keys.turns, tenant.id, stranger, 30)
    with pytest.raises(KmsUnavailable):
        async with keys.calls._turn(tenant.id):
            raise AssertionError("two workers have the turn")
    await flights.release(keys.turns, tenant.id, stranger)
    async with keys.calls._turn(tenant.id):
        assert not await flights.claim(keys.turns, tenant.id, stranger, 1)
    assert await flights.claim(keys.turns, tenant.id, stranger, 1)


async def test_g5_denials_that_no_worker_sees_alone_are_our_fault_too(
    two_workers: tuple[Cell, Cell], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_denied_first(monkeypatch, 6)
    tenants: list[tuple[Tenant, str]] = []
    for number in range(6):
        tenant = await two_workers[0].tenant(f"t{number}")
        await write(tenant, "s", 1)
        customer = make_customer(world, "local")
        binding = await bound(two_workers[0], tenant, customer, lease=0)
        tenants.append((beside(two_workers[number % 2], tenant), binding))
        customer.disable()
    answers = await asyncio.gather(*(read(tenant, "s") for tenant, _ in tenants))
    assert {answer.status_code for answer in answers} == {503}
    assert all(cell.parts.services.auditing.alarms["many-denials"] >= 1 for cell in two_workers)
    for tenant, binding in tenants:
        assert await state_of(tenant, binding) != "revoked"


# ---------------------------------------------------------------- the vendor's key


@asynccontextmanager
async def under_transit(database: str, folder: Path, world: World) -> AsyncIterator[tuple[Cell, str]]:
    """A cell whose own key is a Transit key; and that key's name."""
    key = f"vendor-{secrets.token_hex(4)}"
    settings = world.settings()
    world.bao.root("POST", f"transit/keys/{key}", {"type": "aes256-gcm96"})
    for use in ("encrypt", "decrypt"):
        world.policies.append(f'path "transit/{use}/{key}" {{ capabilities = ["update"] }}')
    world.policies.append(f'path "transit/keys/{key}" {{ capabilities = ["read"] }}')
    world.bao.root("POST", "sys/policies/acl/confide-cell", {"policy": "\n".join(world.policies)})
    own = replace(settings, vendor=TransitBinding("bao", "transit", key))
    async with running_cell(database, folder / "state", own) as cell:
        yield cell, key


async def vendor_versions(cell: Cell, tenant: Tenant) -> tuple[str, ...]:
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        found = await tx.connection.fetch(
            "SELECT vendor_kek_version FROM confide_keys.root_key WHERE tenant_id = $1 AND state <> 'destroyed'"
            " ORDER BY generation",
            tenant.id,
        )
    return tuple(row["vendor_kek_version"] for row in found)


async def look_again(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last look at the vendor's key were long ago."""
    with monkeypatch.context() as patched:
        patched.setattr(probes, "DESCRIBE_SECONDS", 0)
        await cell.parts.services.keys.prober.vendor_due()


async def test_a_new_version_of_the_vendors_key_is_taken_up(
    database: str, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with under_transit(database, tmp_path, world) as (cell, key):
        tenants = [await cell.tenant(f"t{number}") for number in range(3)]
        for tenant in tenants:
            await write(tenant, "s", 1)
        mine = tenants[0]
        await bound(cell, mine, make_customer(world, "local"))
        await look_again(cell, monkeypatch)
        assert {await vendor_versions(cell, tenant) for tenant in tenants} == {("1",)}
        assert not [e for e in await events(mine, "key.rotate") if e["detail"].get("half")]
        world.bao.root("POST", f"transit/keys/{key}/rotate")
        await look_again(cell, monkeypatch)
        assert {await vendor_versions(cell, tenant) for tenant in tenants} == {("2",)}
        # The older version opens nothing any more.
        world.bao.root("POST", f"transit/keys/{key}/config", {"min_decryption_version": 2})
        for tenant in tenants:
            cell.parts.services.keyring.forget_vendor(tenant.id)
            cell.parts.services.keyring.discard(tenant.id, at_once=True)
            assert await last(tenant, "s") == 1
            moved = [e["detail"] for e in await events(tenant, "key.rotate") if e["detail"].get("half")]
            assert [(each["from"], each["to"]) for each in moved] == [("1", "2")]


async def test_the_vendors_key_is_looked_at_by_one_worker_and_what_is_left_by_the_next(
    database: str, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with under_transit(database, tmp_path, world) as (cell, key):
        tenants = [await cell.tenant(f"t{number}") for number in range(3)]
        world.bao.root("POST", f"transit/keys/{key}/rotate")
        world.bao.proxy.faults.extend([Fault(503, "{}")] * 40)
        await look_again(cell, monkeypatch)
        assert {await vendor_versions(cell, tenant) for tenant in tenants} == {("1",)}
        world.clear()
        await asyncio.sleep(0.5)
        await cell.parts.services.keys.prober.vendor_due()  # not its turn: somebody has just looked
        assert {await vendor_versions(cell, tenant) for tenant in tenants} == {("1",)}
        await look_again(cell, monkeypatch)
        assert {await vendor_versions(cell, tenant) for tenant in tenants} == {("2",)}


async def test_a_local_vendor_key_has_one_version(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await cell.tenant()
    assert isinstance(cell.parts.registry.settings.vendor, LocalBinding)
    for _ in range(2):
        await look_again(cell, monkeypatch)
    assert await vendor_versions(cell, tenant) == ("1",)
    assert not await events(tenant, "key.rotate")
