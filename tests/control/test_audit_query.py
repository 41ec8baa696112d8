"""Reading the audit log: the format's fields, filters, bound cursors, and the reading is an event too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from app.audit.event import encode
from app.identity import NO_UUID, new_id
from app.services.audit_log import event_of
from tests.cell import Cell, Tenant
from tests.control.support import events

WORK = {
    "external_id": "call-1",
    "create": {"subject": "s"},
    "put": [{"collection": "state", "key": "slots", "json": {"city": "Bern"}}],
    "turns": [{"json": {"text": "Hello"}}],
}


async def work(tenant: Tenant) -> None:
    """Some events of several kinds."""
    done = await tenant.runtime.post("/v1/commit", json=WORK, headers={"idempotency-key": "one"})
    assert done.status_code == 200, done.text
    again = await tenant.runtime.post("/v1/commit", json=WORK, headers={"idempotency-key": "one"})
    assert again.json() == done.json()
    load = {"external_id": "call-1", "context": [{}], "turns": {"last": 2}}
    assert (await tenant.runtime.post("/v1/load", json=load)).status_code == 200
    assert (await tenant.runtime.post("/v1/load", json={"external_id": "nobody"})).status_code == 404
    assert (await tenant.runtime.get("/v1/audit/events")).status_code == 403


async def query(tenant: Tenant, **params: Any) -> dict[str, Any]:
    answer = await tenant.auditor.get("/v1/audit/events", params={"limit": 1000} | params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_every_event_has_the_formats_canonical_form(cell: Cell, tenant: Tenant) -> None:
    await work(tenant)
    found = (await query(tenant))["events"]
    assert len({event["action"] for event in found}) >= 6
    for event in found + await events(cell, NO_UUID):
        assert encode(event)
        assert event["region"] == "eu-central-1"
    assert {event["tenant"] for event in found} == {str(tenant.id)}


async def test_a_writers_numbers_have_no_gap(cell: Cell, tenant: Tenant) -> None:
    await work(tenant)
    writers: dict[str, list[int]] = {}
    for event in await events(cell, tenant.id):
        writers.setdefault(event["writer"], []).append(event["seq"])
    for numbers in writers.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


async def test_the_reading_is_an_event_before_its_answer(cell: Cell, tenant: Tenant) -> None:
    answer = await query(tenant, action="key.intent", outcome="allowed")
    [event] = await events(cell, tenant.id, "audit.query")
    assert event["detail"] == {"filters": "action,outcome", "events": len(answer["events"])}
    assert event["role"] == "auditor"
    assert "audit.query" not in {event["action"] for event in answer["events"]}
    assert len((await query(tenant, action="audit.query"))["events"]) == 1


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_pages_add_up_to_the_whole_in_order(tenant: Tenant, order: str) -> None:
    await work(tenant)
    until = datetime.now(UTC).isoformat()
    whole = (await query(tenant, order=order, to=until))["events"]
    seen: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        params = {"limit": 3, "order": order, "to": until} | ({"cursor": cursor} if cursor else {})
        page = await query(tenant, **params)
        seen += page["events"]
        cursor = page.get("cursor")
        if cursor is None:
            break
        assert len(page["events"]) == 3
    assert seen == whole
    assert [event["time"] for event in whole] == sorted((e["time"] for e in whole), reverse=order == "newest")


async def test_each_filter_narrows(tenant: Tenant) -> None:
    await work(tenant)
    whole = (await query(tenant, order="oldest"))["events"]
    commit = next(event for event in whole if event["action"] == "context.commit")
    for name, value, field in (
        ("action", "context.commit", "action"),
        ("outcome", "denied", "outcome"),
        ("container", commit["container"], "container"),
        ("principal", commit["principal"], "principal"),
    ):
        found = (await query(tenant, order="oldest", **{name: value}))["events"]
        assert found == [event for event in whole if event.get(field) == value], name
        assert found, name
    middle = whole[len(whole) // 2]["time"]
    before = (await query(tenant, order="oldest", to=middle))["events"]
    after = (await query(tenant, order="oldest", **{"from": middle, "to": whole[-1]["time"]}))["events"]
    assert before + after + [whole[-1]] == whole


async def test_nobody_reads_another_tenants_events(tenant: Tenant, other: Tenant) -> None:
    await work(tenant)
    theirs = next(e for e in (await query(tenant))["events"] if "container" in e)
    assert (await query(other, container=theirs["container"]))["events"] == []
    assert (await query(other, principal=theirs["principal"]))["events"] == []
    assert {event["tenant"] for event in (await query(other))["events"]} == {str(other.id)}


async def test_a_cursor_belongs_to_one_tenant_one_route_and_one_query(tenant: Tenant, other: Tenant) -> None:
    cursor = (await query(tenant, limit=1, outcome="allowed"))["cursor"]
    keys = (await tenant.admin.get("/v1/api-keys", params={"limit": 1})).json()["cursor"]
    for client, params in (
        (other.auditor, {"cursor": cursor, "outcome": "allowed"}),
        (tenant.auditor, {"cursor": cursor}),
        (tenant.auditor, {"cursor": cursor, "outcome": "denied"}),
        (tenant.auditor, {"cursor": cursor, "outcome": "allowed", "order": "oldest"}),
        (tenant.auditor, {"cursor": keys}),
        (tenant.auditor, {"cursor": cursor[:-1], "outcome": "allowed"}),
        (tenant.auditor, {"cursor": "", "outcome": "allowed"}),
    ):
        assert (await client.get("/v1/audit/events", params=params)).status_code == 400
    for sealed in (cursor, keys):
        assert str(tenant.id) not in sealed
    assert (await query(tenant, limit=5, outcome="allowed", cursor=cursor))["events"]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "1e3"},
        {"from": "yesterday"},
        {"from": "2026-01-01"},
        {"from": "2026-01-01T00:00:00"},
        {"action": "Drop Table"},
        {"outcome": "maybe"},
        {"order": "random"},
        {"principal": "me"},
        {"container": str(new_id()).upper()},
        {"tenant": str(new_id())},
        {"sql": "1"},
    ],
)
async def test_a_query_that_isnt_one_is_refused(tenant: Tenant, params: dict[str, str]) -> None:
    assert (await tenant.auditor.get("/v1/audit/events", params=params)).status_code == 400


async def test_an_auditor_opens_no_context(tenant: Tenant) -> None:
    await work(tenant)
    for method, path, body in (
        ("POST", "/v1/load", {"external_id": "call-1"}),
        ("POST", "/v1/commit", {"external_id": "call-1"}),
        ("POST", "/v1/sessions/lookup", {"external_id": "call-1"}),
    ):
        assert (await tenant.auditor.request(method, path, json=body)).status_code == 403


def row(**changes: Any) -> dict[str, Any]:
    values = {
        "tenant_id": UUID(int=1),
        "id": new_id(),
        "time": datetime(2026, 1, 2, 3, 4, 5, 60, UTC),
        "writer": new_id(),
        "seq": 1,
        "action": "context.load",
        "outcome": "allowed",
        "reason": None,
        "container": None,
        "objects": None,
        "versions": None,
        "turns": None,
        "commit_number": None,
        "facts": "{}",
    }
    return values | changes


def test_what_a_row_leaves_open_is_left_out() -> None:
    event = event_of(row(turns=[None, None], objects=[], versions=[], facts='{"trace":"","source":null}'), "local")
    assert encode(event)
    assert set(event) == {"v", "id", "time", "tenant", "region", "writer", "seq", "action", "outcome"}
    assert event["time"] == "2026-01-02T03:04:05.000060Z"


def test_what_the_statement_found_wins_over_what_the_worker_said() -> None:
    lie = '{"outcome":"allowed","tenant":"x","seq":9,"action":"context.read","container":"x"}'
    container = new_id()
    event = event_of(row(outcome="denied", reason="suspended", container=container, facts=lie), "local")
    assert encode(event)
    assert (event["outcome"], event["seq"], event["container"]) == ("denied", 1, str(container))


def test_rows_objects_turns_and_commit_take_the_formats_form() -> None:
    item, version = new_id(), new_id()
    event = event_of(row(objects=[item], versions=[version], turns=[2, 5], commit_number=7), "local")
    assert encode(event)
    assert (event["objects"], event["turns"], event["commit"]) == ([[str(item), str(version)]], [[2, 5]], 7)


def test_an_answer_given_again_is_allowed_and_says_so() -> None:
    event = event_of(row(reason="replay"), "local")
    assert encode(event)
    assert event["detail"] == {"note": "replay"}
