"""G8: while a legal hold stands, nothing in the container can be removed; adding and replacing go on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cell import Cell, Tenant
from tests.dialogue.calls import commit, done, refused
from tests.module_cell import cell, in_module, module_database, tenant

__all__ = ["cell", "module_database", "tenant"]
pytestmark = in_module

ONE = {"collection": "state", "key": "slots"}
REMOVALS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "one object": ("DELETE", "/context/state/slots", None),
    "a collection": ("DELETE", "/context?collection=state", None),
    "a tag": ("DELETE", "/context?tag=t", None),
    "a prune": ("DELETE", "/context?collection=state&keep_newest=1", None),
    "a pop": ("POST", "/turns/pop", {"count": 1}),
    "a clear": ("DELETE", "/turns", None),
    "the session": ("DELETE", "", None),
}


async def _dialogue(tenant: Tenant) -> tuple[str, str]:
    """A session's path, and its subject's."""
    put = [{**ONE, "json": {"n": 1}, "tags": ["t"]}, {"collection": "state", "key": "other", "json": 2}]
    made = await commit(
        tenant.runtime,
        external_id="call",
        create={"subject": "person"},
        put=put,
        turns=[{"json": "one"}, {"json": "two"}],
        subject={"put": put},
    )
    return f"/v1/sessions/{made['session']['id']}", f"/v1/subjects/{made['subject']['id']}"


async def _hold(tenant: Tenant, who: str, session: str) -> str | None:
    if who == "runtime":
        done(await tenant.runtime.patch(session, json={"hold": True}))
        return None
    body = {"subject": "person", "reason": "Litigation"}
    return str((await tenant.admin.post("/v1/privacy/holds", json=body)).raise_for_status().json()["id"])


async def _content(tenant: Tenant, *paths: str) -> list[Any]:
    objects = [done(await tenant.runtime.get(f"{path}/context"))["objects"] for path in paths]
    return [*objects, done(await tenant.runtime.get(f"{paths[0]}/turns"))["turns"]]


@pytest.mark.parametrize("who", ["runtime", "admin"])
async def test_g8_a_hold_refuses_every_removal_and_lets_everything_else_go_on(
    cell: Cell, tenant: Tenant, who: str
) -> None:
    session, subject = await _dialogue(tenant)
    hold = await _hold(tenant, who, session)
    places = [session] if who == "runtime" else [session, subject]
    before = await _content(tenant, session, subject)
    for place in places:
        for name, (method, path, body) in REMOVALS.items():
            if place == subject and "turns" in path:
                continue
            answer = await tenant.runtime.request(method, place + path, json=body)
            problem = refused(answer, 409, "conflict")
            assert "hold" in problem["detail"], name
    identity = {"session": session.rpartition("/")[2]}
    for delete in ([ONE], [{"collection": "state", "keep_newest": 1}], [{"tag": "t"}]):
        refused(
            await tenant.runtime.post("/v1/commit", json={**identity, "delete": delete, "turns": [{"json": 3}]}), 409
        )
    batch = {"requests": [{"op": "delete", **identity, **ONE}, {"op": "get", **identity, **ONE}]}
    results = done(await tenant.runtime.post("/v1/batch", json=batch))["results"]
    assert [result["status"] for result in results] == [409, 200]
    assert await _content(tenant, session, subject) == before

    changed = await commit(
        tenant.runtime,
        **identity,
        put=[{**ONE, "json": {"n": 3}}],
        merge=[{"collection": "state", "key": "other", "json": {"m": 4}}],
        turns=[{"json": "three"}],
    )
    assert changed["session"]["last_turn"] == 3
    assert len(done(await tenant.runtime.get(f"{session}/turns"))["turns"]) == 3

    if hold is None:
        done(await tenant.runtime.patch(session, json={"hold": False}))
    else:
        (await tenant.admin.delete(f"/v1/privacy/holds/{hold}")).raise_for_status()
    for method, path, body in REMOVALS.values():
        assert (await tenant.runtime.request(method, session + path, json=body)).is_success, path


async def test_g8_a_removal_that_a_hold_refuses_is_an_event(cell: Cell, tenant: Tenant) -> None:
    session, _ = await _dialogue(tenant)
    await _hold(tenant, "admin", session)
    refused(await tenant.runtime.delete(f"{session}/turns"), 409)
    query = {"outcome": "denied", "container": session.rpartition("/")[2]}
    events = done(await tenant.auditor.get("/v1/audit/events", params=query))["events"]
    assert [(event["action"], event["reason"]) for event in events] == [("turns.clear", "hold")]
