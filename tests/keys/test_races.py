"""Two administrators at once, and what the keys' own work meets meanwhile: one wins, the other is told so, and the
requests of runtimes notice nothing.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from app.errors import Unavailable
from app.services.jobs import Job
from app.store import bindings as rows
from tests.cell import Cell, Tenant
from tests.keys.customers import LocalCustomer, World, checked
from tests.keys.interleaved import Interleaved
from tests.keys.test_moves import last, write
from tests.keys.waiting import ended


def of_a_file(folder: Path) -> LocalCustomer:
    return LocalCustomer(cast("World", SimpleNamespace(folder=folder)))


async def behind(cell: Cell, tenant: Tenant) -> None:
    """A worker that holds the tenant's keys, and whose watch doesn't tell it that they have changed."""
    await cell.parts.services.keys.watch.close()
    loaded = await cell.client(tenant.keys["runtime"]).post("/v1/load", json={"external_id": "s"})
    assert loaded.status_code == 200, loaded.text


async def test_g5_keys_that_change_while_they_are_loaded_are_loaded_whole(
    pair: tuple[Cell, Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation commits between any two statements of another worker's load."""
    first, second = pair
    tenant = await first.tenant()
    await write(tenant, "s", 1)
    for number in range(8):
        jobs: list[str] = []

        async def rotate(jobs: list[str] = jobs) -> None:
            done = await tenant.admin.post("/v1/keys/rotate")
            assert done.status_code == 202, done.text
            jobs.append(done.json()["job"])

        keyring = second.parts.services.keyring
        keyring.discard(tenant.id, at_once=False)
        other = second.client(tenant.keys["runtime"])
        with monkeypatch.context() as patch:
            between = Interleaved(patch, second.parts.services.keys.ledgers[0], number, rotate)
            answer = await other.post("/v1/load", json={"external_id": "s", "context": [{}]})
            assert answer.status_code == 200, f"statement {number}: {answer.text}"
        if not between.ran:
            assert number > 0, "a load asks the database nothing"
            break
        await ended(tenant, jobs[0])
        assert await last(tenant, "s") == 1


async def test_a_worker_that_is_behind_reseals_all_the_same(pair: tuple[Cell, Cell]) -> None:
    """Going by the keys that it holds, it would find nothing to do, and the old root key would open things for ever."""
    first, second = pair
    tenant = await first.tenant()
    await write(tenant, "s", 1)
    await behind(second, tenant)
    del first.parts.services.jobs._handlers["reseal"]
    await ended(tenant, (await tenant.admin.post("/v1/keys/rotate")).json()["job"])
    generations = (await tenant.admin.get("/v1/keys")).json()["generations"]
    assert [(each["generation"], each["state"]) for each in generations] == [(2, "active")]


async def test_a_worker_that_is_behind_goes_on_with_a_rekey_where_another_one_left_it(pair: tuple[Cell, Cell]) -> None:
    """Else what stands under the old index key would be found no more."""
    first, second = pair
    tenant = await first.tenant()
    await write(tenant, "s", 1)
    await behind(second, tenant)
    handlers, others = first.parts.services.jobs._handlers, second.parts.services.jobs._handlers
    handler = others.pop("rekey")

    async def leaves_after_the_exchange(job: Job) -> None:
        await first.parts.services.keys.rekey._exchange(job)
        del handlers["rekey"]
        others["rekey"] = handler
        raise Unavailable

    handlers["rekey"] = leaves_after_the_exchange
    done = await ended(tenant, (await tenant.admin.post("/v1/keys/rekey")).json()["job"])
    assert done["progress"]["containers"] == 2
    assert await last(tenant, "s") == 1
    async with first.parts.services.ledger.transaction(tenant.id) as tx:
        left = await tx.connection.fetchval("SELECT count(*) FROM confide.container WHERE index_number = 1")
    assert left == 0


async def test_g5_a_denial_for_a_key_that_was_retired_meanwhile_revokes_nobody(
    pair: tuple[Cell, Cell], tmp_path: Path
) -> None:
    """A load that began before reads the old binding too; its owner was told that he may disable the key."""
    cell, _ = pair
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    old, new = [await checked(tenant, of_a_file(tmp_path)) for _ in range(2)]
    for binding in (old, new):
        begun = await tenant.admin.post(f"/v1/keys/bindings/{binding}/activate")
        await ended(tenant, begun.json()["job"])
    services = cell.parts.services
    async with services.ledger.transaction(tenant.id) as tx:
        row = next(each for each in await rows.all_of(tx, tenant.id) if str(each["id"]) == old)
    assert row["state"] == "retiring"
    assert (await tenant.admin.post(f"/v1/keys/bindings/{old}/retire")).json()["retired"]
    assert not await services.keys.states.denied(tenant.id, row, "Disabled")
    assert (await tenant.admin.get("/v1/keys")).json()["key_state"] == "active"
    assert await last(tenant, "s") == 1


async def test_the_doctor_alarms_nobody_about_what_it_provokes(pair: tuple[Cell, Cell], tmp_path: Path) -> None:
    cell, _ = pair
    tenant = await cell.tenant()
    await checked(tenant, of_a_file(tmp_path))
    assert cell.parts.services.auditing.alarms == {}


async def test_g8_a_holds_reason_outlives_the_index_key_that_it_was_sealed_under(pair: tuple[Cell, Cell]) -> None:
    cell, other = pair
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    wanted = {"reason": "Litigation", "subject": "someone"}
    holds = [(await tenant.admin.post("/v1/privacy/holds", json=wanted)).json()["id"] for _ in range(2)]
    assert (await tenant.admin.delete(f"/v1/privacy/holds/{holds[0]}")).status_code == 200
    for _ in range(2):
        done = await ended(tenant, (await tenant.admin.post("/v1/keys/rekey")).json()["job"])
        assert not done["progress"].get("tampered")
        async with cell.parts.services.ledger.transaction(tenant.id) as tx:
            await tx.connection.execute("UPDATE confide_keys.index_key SET retired_at = now() - interval '26 hours'")
        await cell.parts.services.keys.rekey.drop_due()
        for client in (tenant.admin, other.client(tenant.keys["admin"])):
            found = await client.get("/v1/privacy/holds", params={"released": "true"})
            assert found.status_code == 200, found.text
            assert [each["reason"] for each in found.json()["holds"]] == ["Litigation"] * 2
    assert (await tenant.admin.delete(f"/v1/privacy/holds/{holds[1]}")).json()["reason"] == "Litigation"
