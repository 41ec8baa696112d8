"""G8: a legal hold keeps what it is on, also what comes later, and exactly as long as one of them is open."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg

from tests.cell import Cell, Tenant
from tests.module_cell import cell, in_module, module_database, tenant
from tests.privacy.made import dialogue, expire, rows_of, sql
from tests.privacy.test_erasure import finished

__all__ = ["cell", "module_database", "tenant"]
pytestmark = in_module


async def hold(tenant: Tenant, **target: str) -> str:
    set_ = await tenant.admin.post("/v1/privacy/holds", json={"reason": "Litigation"} | target)
    assert set_.status_code == 201, set_.text
    return str(set_.json()["id"])


async def release(tenant: Tenant, *holds: str) -> None:
    for each in holds:
        assert (await tenant.admin.delete(f"/v1/privacy/holds/{each}")).status_code == 200


async def is_held(tenant: Tenant, session: UUID) -> Any:
    found = await tenant.runtime.get(f"/v1/sessions/{session}")
    assert found.status_code == 200, found.text
    return found.json().get("hold", False)


async def test_g8_a_session_begun_after_its_subjects_hold_is_held_until_the_release(cell: Cell, tenant: Tenant) -> None:
    await dialogue(tenant, "before", "customer-1")
    held = await hold(tenant, subject="customer-1")
    late, other = await dialogue(tenant, "late", "customer-1"), await dialogue(tenant, "other", "customer-2")
    branched = await tenant.runtime.post(f"/v1/sessions/{late}/branch", json={"external_id": "copy"})
    copy = UUID(branched.json()["session"]["id"])
    assert [await is_held(tenant, each) for each in (late, copy, other)] == [True, True, False]
    assert (await tenant.runtime.delete(f"/v1/sessions/{late}")).status_code == 409
    assert (await tenant.runtime.patch(f"/v1/sessions/{late}", json={"hold": False})).json()["hold"] is True
    await expire(cell, late)
    assert await cell.parts.services.privacy.retention.sweep_all() == 0
    asked = (await tenant.admin.post("/v1/privacy/erasures", json={"session": str(late)})).json()
    blocked = await finished(tenant, asked["id"], "blocked")
    assert [each["hold"] for each in blocked["blocked_by"]] == [held]
    await release(tenant, held)
    await finished(tenant, asked["id"])
    assert await rows_of(cell, late) == 0
    assert not await is_held(tenant, copy)


async def test_g8_overlapping_holds_are_released_one_by_one_and_a_runtimes_own_outlasts_them(
    cell: Cell, tenant: Tenant
) -> None:
    plain, own = await dialogue(tenant, "plain", "customer-1"), await dialogue(tenant, "own", "customer-1")
    assert (await tenant.runtime.patch(f"/v1/sessions/{own}", json={"hold": True})).status_code == 200
    first, second = await hold(tenant, subject="customer-1"), await hold(tenant, subject="customer-1")
    third = await hold(tenant, session=str(plain))
    late = await dialogue(tenant, "late", "customer-1")
    await release(tenant, first)
    assert [await is_held(tenant, each) for each in (plain, own, late)] == [True, True, True]
    await release(tenant, second)
    assert [await is_held(tenant, each) for each in (plain, own, late)] == [True, True, False]
    await release(tenant, third)
    assert [await is_held(tenant, each) for each in (plain, own)] == [False, True]
    assert (await tenant.admin.delete(f"/v1/privacy/holds/{third}")).status_code == 404  # released is released
    found = (await tenant.auditor.get("/v1/audit/events", params={"action": "privacy.hold"})).json()["events"]
    steps = sorted((each["detail"]["hold"], each["detail"]["step"]) for each in found if each["outcome"] == "allowed")
    assert steps == sorted((each, step) for each in (first, second, third) for step in ("set", "released"))
    assert len({each["principal"] for each in found}) == 1
    assert (await tenant.runtime.delete(f"/v1/privacy/holds/{first}")).status_code == 403


async def test_g8_a_runtimes_own_hold_and_a_legal_one_come_and_go_independently(cell: Cell, tenant: Tenant) -> None:
    begun, lifted = await dialogue(tenant, "begun", "customer-1"), await dialogue(tenant, "lifted", "customer-1")
    assert (await tenant.runtime.patch(f"/v1/sessions/{lifted}", json={"hold": True})).status_code == 200
    legal = await hold(tenant, subject="customer-1")
    # While the legal hold is on, the runtime begins one of its own, and ends another.
    for session, wanted in ((begun, True), (lifted, False)):
        answer = await tenant.runtime.patch(f"/v1/sessions/{session}", json={"hold": wanted})
        assert answer.json()["hold"] is True  # somebody holds it
    # A change of something else changes no hold.
    assert (await tenant.runtime.patch(f"/v1/sessions/{begun}", json={"labels": ["x"]})).json()["hold"] is True
    await release(tenant, legal)
    assert [await is_held(tenant, each) for each in (begun, lifted)] == [True, False]
    assert (await tenant.runtime.delete(f"/v1/sessions/{begun}")).status_code == 409
    assert (await tenant.runtime.patch(f"/v1/sessions/{begun}", json={"hold": False})).json().get(
        "hold", False
    ) is False
    assert (await tenant.runtime.delete(f"/v1/sessions/{begun}")).status_code == 204


async def test_g8_a_hold_right_after_a_change_of_policy_is_set_at_once(cell: Cell, tenant: Tenant) -> None:
    """The change raises the tenant's epoch: this worker's keys are stale, and it must notice by itself."""
    session = await dialogue(tenant, "call-1")
    for seconds in (86_400, 172_800):
        assert (await tenant.admin.patch("/v1/tenant", json={"ttl_idle_seconds": seconds})).status_code == 200
        await release(tenant, await hold(tenant, session=str(session)))


async def test_g8_a_session_whose_transaction_began_before_the_hold_is_held_too(cell: Cell, tenant: Tenant) -> None:
    first = await dialogue(tenant, "first", "customer-1")
    row = (await sql(cell, "SELECT * FROM confide.container WHERE id = $1", first))[0]
    other = await asyncpg.connect(cell.url)
    try:
        transaction = other.transaction()
        await transaction.start()
        made: UUID = await other.fetchval(
            "INSERT INTO confide.container SELECT (jsonb_populate_record(c, jsonb_build_object('id', gen_random_uuid(),"
            " 'external_tag', NULL))).* FROM confide.container c WHERE c.id = $1 RETURNING id",
            first,
        )
        setting = asyncio.create_task(hold(tenant, subject="customer-1"))
        await asyncio.sleep(0.5)
        assert not setting.done()  # it isn't confirmed while somebody may still have missed it
        await transaction.commit()
        await setting
    finally:
        await other.close()
    assert row["subject_id"] is not None
    assert (await sql(cell, "SELECT hold FROM confide.container WHERE id = $1", made))[0]["hold"] is True
