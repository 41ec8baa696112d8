"""Encrypting everything anew, and re-sealing that survives the death of its worker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.services import jobs as runner
from app.services import moves
from app.services.audit_cross_check import cross_check
from tests.cell import REGION, Cell, Tenant, running_cell
from tests.keys.customers import World, bound, checked, make_customer
from tests.keys.test_moves import events, last, write
from tests.keys.waiting import ended, until


async def fill(tenant: Tenant) -> str:
    body = {
        "external_id": "call-1",
        "create": {"subject": "customer-19", "labels": ["vip", "de"]},
        "put": [
            {"collection": "state", "key": "slots", "json": {"city": "Bern"}, "tags": ["x", "y"]},
            {"collection": "files", "key": "a", "base64": "AAEC", "content_type": "application/x-a", "tags": ["x"]},
            {"collection": "files", "key": "b", "base64": "AwQF", "if_none_match": "*"},
        ],
        "turns": [{"json": {"text": "one"}}, {"json": {"text": "two"}}, {"json": {"text": "three"}}],
        "subject": {"put": [{"collection": "profile", "key": "name", "json": "Ada"}]},
    }
    done = await tenant.runtime.post("/v1/commit", json=body)
    assert done.status_code == 200, done.text
    session = done.json()["session"]["id"] if "session" in done.json() else done.json()["id"]
    (await tenant.runtime.post(f"/v1/sessions/{session}/turns/pop", json={"count": 1})).raise_for_status()
    return str(session)


async def everything(tenant: Tenant, session: str) -> list[Any]:
    """What a client can see, by every way of looking it up. Not the commit's own times."""
    client = tenant.runtime
    load = {"external_id": "call-1", "context": [{}], "turns": {"last": 50}, "subject": True}
    seen = [(await client.post("/v1/load", json=load)).raise_for_status().json()]
    for name in ({"external_id": "call-1"}, {"subject": "customer-19"}, {"label": "vip"}, {"label": "de"}):
        answer = await client.post("/v1/sessions/lookup", json=name)
        seen.append(answer.raise_for_status().json())
    for query in ({"collection": "files"}, {"tag": "x"}, {"tag": "y"}):
        answer = await client.get(f"/v1/sessions/{session}/context", params=query)
        seen.append(answer.raise_for_status().json())
    one = await client.get(f"/v1/sessions/{session}/context/files/a")
    seen.append((one.raise_for_status().content, one.headers["etag"], one.headers["content-type"]))
    return seen


async def test_rekey_keeps_everything_readable_and_leaves_no_old_key(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    session = await fill(tenant)
    await bound(cell, tenant, make_customer(world, "local"))
    before = await everything(tenant, session)
    old, was = await _rows(cell, tenant), await _objects(cell, tenant)
    done = await tenant.admin.post("/v1/keys/rekey")
    assert done.status_code == 202, done.text
    await ended(tenant, done.json()["job"])
    assert await everything(tenant, session) == before
    new, now = await _rows(cell, tenant), await _objects(cell, tenant)
    assert {version for _, version in was} == {version for _, version in now}
    assert not {item for item, _ in was} & {item for item, _ in now}
    assert old & new == set(), "an id, a tag or a wrapped key is the same as before"
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        keys = await tx.connection.fetch("SELECT * FROM confide.container_key WHERE tenant_id = $1", tenant.id)
        used = await tx.connection.fetch(
            "SELECT DISTINCT container_id, ck_generation FROM (SELECT tenant_id, container_id, ck_generation FROM"
            " confide.context_object UNION SELECT tenant_id, container_id, ck_generation FROM confide.turn"
            " WHERE removed_at IS NULL UNION SELECT tenant_id, id, ck_generation FROM confide.container) a"
            " WHERE tenant_id = $1",
            tenant.id,
        )
    assert {(k["container_id"], k["generation"]) for k in keys} == {tuple(row) for row in used}
    again = {"put": [{"collection": "files", "key": "b", "base64": "AwQF", "if_none_match": "*"}], "session": session}
    assert (await tenant.runtime.post("/v1/commit", json=again)).status_code == 200
    per_container = [e for e in await events(tenant, "key.rekey") if "container" in e]
    assert {e["purpose"] for e in per_container} == {"maintenance"}
    assert len({e["container"] for e in per_container}) == 2
    opened = {tuple(pair) for e in per_container for pair in e.get("objects", ())}
    assert was | now <= opened, "an object was opened or sealed, and no row names it"
    assert [e["turns"] for e in per_container if "turns" in e] == [[[1, 2]]]
    report = await cross_check(cell.parts.services.audit.pools[0], tenant.id, REGION)
    assert report.findings == []


async def _objects(cell: Cell, tenant: Tenant) -> set[tuple[str, str]]:
    """(id, version) of every stored object."""
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        found = await tx.connection.fetch(
            "SELECT id, version FROM confide.context_object WHERE tenant_id = $1", tenant.id
        )
    return {(str(row["id"]), str(row["version"])) for row in found}


async def _rows(cell: Cell, tenant: Tenant) -> set[Any]:
    """Every tag, HMAC id, body and wrapped key."""
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        found = await tx.connection.fetch(
            "SELECT id::text AS v FROM confide.context_object WHERE tenant_id = $1"
            " UNION ALL SELECT collection_tag::text FROM confide.context_object WHERE tenant_id = $1"
            " UNION ALL SELECT encode(tags, 'hex') FROM confide.context_object WHERE tenant_id = $1 AND tags <> ''"
            " UNION ALL SELECT encode(body, 'hex') FROM confide.context_object WHERE tenant_id = $1"
            " UNION ALL SELECT encode(fingerprint, 'hex') FROM confide.context_object WHERE tenant_id = $1"
            " AND fingerprint IS NOT NULL"
            " UNION ALL SELECT encode(body, 'hex') FROM confide.turn WHERE tenant_id = $1 AND body IS NOT NULL"
            " UNION ALL SELECT encode(meta, 'hex') FROM confide.container WHERE tenant_id = $1"
            " UNION ALL SELECT external_tag::text FROM confide.container WHERE tenant_id = $1"
            " UNION ALL SELECT label_tag::text FROM confide.container_label WHERE tenant_id = $1"
            " UNION ALL SELECT encode(sealed, 'hex') FROM confide.container_key WHERE tenant_id = $1"
            " UNION ALL SELECT encode(sealed, 'hex') FROM confide_keys.index_key WHERE tenant_id = $1"
            " AND state = 'active'",
            tenant.id,
        )
    return {row["v"] for row in found}


@pytest.mark.parametrize("kind", ["reseal", "rekey"])
async def test_g7_a_killed_worker_s_job_is_finished_by_another(
    database: str, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(runner, "CLAIM", 0.8)
    monkeypatch.setattr(moves, "BATCH", 3)
    kms = world.settings()
    async with running_cell(database, tmp_path / "state", kms) as first:
        tenant = await first.tenant()
        for number in range(6):
            await write(tenant, f"s{number}", number)
        binding = await checked(tenant, make_customer(world, "local"))
        _stop_after(first, 2, monkeypatch)
        path = "rekey" if kind == "rekey" else f"bindings/{binding}/activate"
        begun = await tenant.admin.post(f"/v1/keys/{path}")
        assert begun.status_code == 202, begun.text
        job = begun.json()["job"]
        await until(lambda: asyncio.sleep(0, first.parts.services.jobs.ledger.__dict__.get("dead")))
        if kind == "reseal":
            for number in range(6):
                assert await last(tenant, f"s{number}") == number
        async with running_cell(database, tmp_path / "state", kms) as second:
            await ended(tenant, job)
            again = Tenant(tenant.id, second.client(tenant.keys["runtime"]), tenant.admin, tenant.auditor, tenant.keys)
            for number in range(6):
                assert await last(again, f"s{number}") == number


def _stop_after(cell: Cell, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many committed steps the worker's job runner never does anything again, as if it had been killed."""
    jobs = cell.parts.services.jobs
    ledger = jobs.ledger
    real = ledger.transaction
    count = 0

    def transaction(*tenants: Any) -> Any:
        nonlocal count
        count += 1
        if count > steps + 3:
            ledger.__dict__["dead"] = True
            return _Never()
        return real(*tenants)

    monkeypatch.setattr(ledger, "transaction", transaction)


class _Never:
    async def __aenter__(self) -> Any:
        await asyncio.Event().wait()

    async def __aexit__(self, *_: object) -> None: ...
