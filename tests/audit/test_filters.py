"""Every documented filter, before and after sealing, and pages across the seam between the two."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from tests.audit.conftest import a_turn, events
from tests.audit.journal_rows import append, by_hand
from tests.cell import Cell, Tenant

KEK = "aws-kms://arn:aws:kms:eu-central-1:111122223333:key/1"


async def plant(cell: Cell, tenant: Tenant, number: int) -> None:
    await a_turn(tenant, number, f"text {number}")
    await append(cell, tenant.id, "key.outcome", kek=KEK, kms_request_id=f"request-{number}", kms_ms=5)
    await append(
        cell, tenant.id, "key.outcome", "denied", kek=KEK, kms_request_id=f"denied-{number}", reason="kms-denied"
    )
    await append(cell, tenant.id, "context.export", principal=uuid4(), api_key=uuid4(), purpose="tenant-export")


def cases(everything: list[dict[str, Any]]) -> list[tuple[dict[str, str], Any]]:
    """A query for each filter, and what it must leave of ``everything``."""
    turn = next(event for event in everything if "objects" in event)
    export = next(event for event in everything if event["action"] == "context.export")
    item = turn["objects"][0][0]
    middle = everything[len(everything) // 2]["time"]
    return [
        ({"from": middle}, lambda event: event["time"] >= middle),
        ({"to": middle}, lambda event: event["time"] < middle),
        ({"action": "key.outcome"}, lambda event: event["action"] == "key.outcome"),
        ({"outcome": "denied"}, lambda event: event["outcome"] == "denied"),
        ({"outcome": "allowed"}, lambda event: event["outcome"] == "allowed"),
        ({"principal": turn["principal"]}, lambda event: event.get("principal") == turn["principal"]),
        ({"api_key": export["api_key"]}, lambda event: event.get("api_key") == export["api_key"]),
        ({"container": turn["container"]}, lambda event: event.get("container") == turn["container"]),
        ({"object": item}, lambda event: item in [name for name, _ in event.get("objects", [])]),
        ({"kek": KEK}, lambda event: event.get("kek") == KEK),
        ({"kms_request_id": "request-1"}, lambda event: event.get("kms_request_id") == "request-1"),
        ({"purpose": "tenant-export"}, lambda event: event.get("purpose") == "tenant-export"),
        ({"purpose": "serve"}, lambda event: event.get("purpose") == "serve"),
        (
            {"action": "key.outcome", "outcome": "denied", "kek": KEK},
            lambda event: event["action"] == "key.outcome" and event["outcome"] == "denied",
        ),
    ]


@pytest.mark.parametrize("state", ["not yet sealed", "sealed", "half sealed"])
async def test_g3_every_filter_answers_exactly_its_events(cell: Cell, tenant: Tenant, state: str) -> None:
    async with by_hand(cell) as seal:
        await plant(cell, tenant, 1)
        if state != "not yet sealed":
            await seal()
        await plant(cell, tenant, 2)
        if state == "sealed":
            await seal()
        everything = await events(tenant, order="oldest")
        newest = everything[-1]["time"]
        for query, keep in cases(everything):
            found = [event for event in await events(tenant, order="oldest", **query) if event["time"] <= newest]
            assert found == [event for event in everything if keep(event)], query
            assert found, query


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_g3_pages_across_the_seam_miss_nothing_while_events_are_sealed(
    cell: Cell, tenant: Tenant, order: str
) -> None:
    async with by_hand(cell) as seal:
        for number in range(8):
            await plant(cell, tenant, number)
            if number == 3:
                await seal()
        stop = (await events(tenant, order="newest", limit=1))[0]["time"]
        wanted = await events(tenant, order=order, to=stop)
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = (
                await tenant.auditor.get("/v1/audit/events", params={"order": order, "to": stop, "limit": 7, **cursor})
            ).json()
            found += page["events"]
            await seal()  # the seam moves while the reader turns pages
            if "cursor" not in page:
                break
            cursor = {"cursor": page["cursor"]}
        assert found == wanted
        assert len({event["id"] for event in found}) == len(found)


async def test_g3_an_event_reads_the_same_before_and_after_sealing(cell: Cell, tenant: Tenant) -> None:
    async with by_hand(cell) as seal:
        await a_turn(tenant)
        before = await events(tenant, order="oldest")
        await seal()
        after = await events(tenant, order="oldest")
        assert [orjson.dumps(event) for event in after[: len(before)]] == [orjson.dumps(event) for event in before]


async def test_the_summary_counts_what_the_log_holds(cell: Cell, tenant: Tenant) -> None:
    await plant(cell, tenant, 1)
    everything = await events(tenant)
    summary = (await tenant.auditor.get("/v1/audit/summary")).json()
    assert summary["events"] == len(everything) + 1
    assert summary["action"]["audit.query"] == 1
    for name in ("action", "outcome", "purpose", "principal"):
        for value in {event[name] for event in everything if name in event and event["action"] != "audit.query"}:
            assert summary[name][value] >= sum(event.get(name) == value for event in everything)
    assert sum(summary["day"].values()) == summary["events"]


async def test_g11_operators_see_counts_of_tenants_and_no_event(cell: Cell, tenant: Tenant) -> None:
    async with by_hand(cell) as seal:
        await plant(cell, tenant, 1)
        await seal()
        counts = (await cell.operator.get("/v1/audit/counts")).json()["counts"]
        own = [row for row in counts if UUID(row["tenant_id"]) == tenant.id]
        assert {row["action"] for row in own} >= {"context.commit", "key.outcome"}
        assert set(own[0]) == {"tenant_id", "action", "outcome", "events"}
        assert (await cell.operator.get("/v1/audit/events")).status_code == 403
        assert (await tenant.auditor.get("/v1/audit/counts")).status_code == 403
