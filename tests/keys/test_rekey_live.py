"""The index key is exchanged while the tenant works: no error, no lost write, no forgotten request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.services import key_rekey
from app.services.key_rekey import Rekey
from app.store import rekey as rows
from tests.cell import Cell, Tenant, running_cell
from tests.keys.customers import World
from tests.keys.test_moves import events, last, write
from tests.keys.waiting import ended, until


def beside(other: Cell, tenant: Tenant) -> Tenant:
    """The same tenant at another worker."""
    return Tenant(tenant.id, other.client(tenant.keys["runtime"]), tenant.admin, tenant.auditor, tenant.keys)


async def rekeyed(tenant: Tenant) -> dict[str, Any]:
    done = await tenant.admin.post("/v1/keys/rekey")
    assert done.status_code == 202, done.text
    return await ended(tenant, done.json()["job"])


async def put(tenant: Tenant, session: str, number: int, **more: Any) -> Any:
    body = {"put": [{"collection": "files", "key": f"k{number}", "json": {"n": number}, "tags": ["t"], **more}]}
    return await tenant.runtime.post("/v1/commit", json={"external_id": session, "create": {"labels": ["all"]}, **body})


async def listed(tenant: Tenant, session: str) -> set[int]:
    answer = await tenant.runtime.post("/v1/load", json={"external_id": session, "context": [{"tag": "t"}]})
    assert answer.status_code == 200, answer.text
    return {each["json"]["n"] for each in answer.json()["session"]["context"]}


async def test_rekey_is_live_in_two_workers(two_workers: tuple[Cell, Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "OBJECTS", 2)
    monkeypatch.setattr(rows, "TURNS", 2)
    first, second = two_workers
    tenant = await first.tenant()
    sides = [tenant, beside(second, tenant)]
    for number in range(40):
        await write(tenant, f"old{number}", 1)
    for number in range(9):
        assert (await put(tenant, "big", number)).status_code == 200
    done, moved_by_requests = asyncio.Event(), asyncio.Event()
    failures, made, written = list[str](), list[str](), dict[str, int]()
    _hold_the_job_until(moved_by_requests, monkeypatch)

    async def talk(side: Tenant, name: str) -> None:
        number = 1
        while not done.is_set():
            number += 1
            try:
                await write(side, name, number)
                written[name] = number
                assert await last(side, name) == number
            except AssertionError as error:
                failures.append(f"{name}: {error}")
            await asyncio.sleep(0.01)

    async def found(side: Tenant) -> None:
        """Every way of looking up finds what there is, at every moment; two workers make no name twice."""
        turn = 0
        while not done.is_set():
            turn += 1
            try:
                assert await listed(side, "big") == set(range(9))
                query = {"external_id": f"new{turn}", "create": {}}
                new = await side.runtime.post("/v1/commit", json=query | {"turns": [{"json": turn}]})
                assert new.status_code in {200, 412}, new.text
                made.append(f"new{turn}")
                for body in ({"external_id": "old39"}, {"label": "all"}, {"subject": "someone"}):
                    answer = await side.runtime.post("/v1/sessions/lookup", json=body)
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["sessions"], body
            except AssertionError as error:
                failures.append(str(error))
            await asyncio.sleep(0.01)

    work = [asyncio.create_task(talk(sides[n % 2], f"old{n}")) for n in range(4)]
    work += [asyncio.create_task(found(side)) for side in sides]
    await until(lambda: asyncio.sleep(0, len(written) == 4))
    job = (await tenant.admin.post("/v1/keys/rekey")).raise_for_status().json()["job"]
    await until(lambda: _exchanged(tenant, job))
    seen = dict(written)
    await until(lambda: asyncio.sleep(0, all(written[name] > number + 1 for name, number in seen.items())))
    moved_by_requests.set()
    progress = (await ended(tenant, job))["progress"]
    await asyncio.sleep(0.2)
    done.set()
    await asyncio.gather(*work)
    assert not failures, failures[:3]
    assert progress["exchanged"] == 1
    for side in sides:
        assert [await last(side, name) for name in written] == list(written.values())
        assert await listed(side, "big") == set(range(9))
    assert await _sessions(first, tenant) == 40 + 1 + len(set(made)), "a name was made under both index keys"
    pieces = [e for e in await events(tenant, "key.rekey") if "container" in e]
    assert {e["detail"].get("by", "job") for e in pieces} == {"job", "request"}, "only one side ever moved anything"
    by_job = [e for e in pieces if "by" not in e["detail"]]
    assert max(len(e.get("objects", ())) for e in by_job) <= 4, "a piece opened more than its bound"


async def test_a_request_is_still_recognised_after_a_rekey(two_workers: tuple[Cell, Cell]) -> None:
    first, second = two_workers
    tenant = await first.tenant()
    other = beside(second, tenant)
    body = {"external_id": "s", "create": {}, "turns": [{"json": 1}]}
    header = {"idempotency-key": "one"}
    before = (await tenant.runtime.post("/v1/commit", json=body, headers=header)).raise_for_status().json()
    for _ in range(2):
        await rekeyed(tenant)
        for side in (tenant, other):
            again = (await side.runtime.post("/v1/commit", json=body, headers=header)).raise_for_status().json()
            assert again["session"]["id"] == before["session"]["id"]
            assert again["session"]["last_turn"] == before["session"]["last_turn"]
            turns = await side.runtime.get(f"/v1/sessions/{before['session']['id']}/turns", params={"last": 10})
            assert len(turns.json()["turns"]) == 1, "a repeated request was carried out once more"
            mistaken = body | {"turns": [{"json": 2}]}
            refused = await side.runtime.post("/v1/commit", json=mistaken, headers=header)
            assert refused.status_code == 422, refused.text
    assert [each["index_keys"] for each in (await tenant.admin.get("/v1/keys")).json()["generations"]] == [3]


async def test_old_index_keys_go_after_a_day_and_follow_the_root_key_until_then(cell: Cell) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    body = {"external_id": "s", "turns": [{"json": 1}]}
    header = {"idempotency-key": "one"}
    (await tenant.runtime.post("/v1/commit", json=body, headers=header)).raise_for_status()
    await rekeyed(tenant)
    rotated = await tenant.admin.post("/v1/keys/rotate")
    await ended(tenant, rotated.json()["job"])
    generations = (await tenant.admin.get("/v1/keys")).json()["generations"]
    assert [(each["generation"], each["index_keys"]) for each in generations] == [(2, 2)]
    again = (await tenant.runtime.post("/v1/commit", json=body, headers=header)).raise_for_status()
    assert again.json()["session"]["last_turn"] == 2
    rekey = cell.parts.services.keys.rekey
    await rekey.drop_due()
    assert (await tenant.admin.get("/v1/keys")).json()["generations"][0]["index_keys"] == 2
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        await tx.connection.execute(
            "UPDATE confide_keys.index_key SET retired_at = now() - interval '26 hours' WHERE tenant_id = $1"
            " AND state = 'retiring'",
            tenant.id,
        )
    await rekey.drop_due()
    assert (await tenant.admin.get("/v1/keys")).json()["generations"][0]["index_keys"] == 1
    gone = [e["detail"] for e in await events(tenant, "key.rekey") if "state" in e["detail"]]
    assert [(each["state"], each["index_key"]) for each in gone if "index_key" in each] == [("destroyed", 1)]


async def test_what_was_tampered_with_is_refused_and_the_rest_moves(
    cell: Cell, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await cell.tenant()
    for name in ("a", "b", "c"):
        await write(tenant, name, 1)
    sick = (await tenant.runtime.post("/v1/sessions/lookup", json={"external_id": "b"})).json()["sessions"][0]["id"]
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        body = await tx.connection.fetchval(
            "UPDATE confide.context_object SET body = set_byte(body, length(body) - 1,"
            " get_byte(body, length(body) - 1) # 1) WHERE tenant_id = $1 AND container_id = $2::uuid RETURNING body",
            tenant.id,
            sick,
        )
    begun = await tenant.admin.post("/v1/keys/rekey")
    job = begun.json()["job"]
    await ended(tenant, job, "blocked")
    assert await last(tenant, "a") == await last(tenant, "c") == 1
    refused = await tenant.runtime.post("/v1/load", json={"external_id": "b", "context": [{}]})
    assert (refused.status_code, refused.json()["type"]) == (500, "urn:confide:problem:tampered")
    assert "tamper.refused" in {e["action"] for e in await events(tenant, "tamper.refused")}
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        await tx.connection.execute(
            "UPDATE confide.context_object SET body = $3 WHERE tenant_id = $1 AND container_id = $2::uuid",
            tenant.id,
            sick,
            body[:-1] + bytes([body[-1] ^ 1]),
        )
        await cell.parts.services.jobs.unblock(tx, tenant.id, job)
    await ended(tenant, job)
    assert await last(tenant, "b") == 1


async def test_a_seal_during_the_exchange_holds_and_the_rekey_goes_on_after_it(
    database: str, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenant's own switch comes between the two commits of the exchange."""
    held, go = asyncio.Event(), asyncio.Event()
    real = key_rekey.fence

    async def fence(*arguments: Any) -> None:
        await real(*arguments)
        held.set()
        await go.wait()

    monkeypatch.setattr(key_rekey, "fence", fence)
    async with running_cell(database, tmp_path / "state", world.settings()) as cell:
        tenant = await cell.tenant()
        await write(tenant, "s", 1)
        job = (await tenant.admin.post("/v1/keys/rekey")).json()["job"]
        await held.wait()
        waiting = asyncio.create_task(tenant.runtime.post("/v1/load", json={"external_id": "s"}))
        await asyncio.sleep(0.2)
        assert not waiting.done(), "a request was answered while names could be made under either key"
        assert (await tenant.admin.post("/v1/keys/seal")).json()["key_state"] == "sealed"
        assert (await waiting).status_code == 403
        go.set()
        await asyncio.sleep(0.3)
        assert (await tenant.admin.get("/v1/keys")).json()["key_state"] == "sealed"
        assert (await tenant.admin.post("/v1/keys/unseal")).status_code == 200
        await until(lambda: _done(tenant, job))
        assert await last(tenant, "s") == 1


def _hold_the_job_until(moved_by_requests: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job leaves to the requests what they ask for first."""
    real = Rekey._some

    async def some(*arguments: Any) -> bool:
        await moved_by_requests.wait()
        return await real(*arguments)

    monkeypatch.setattr(Rekey, "_some", some)


async def _sessions(cell: Cell, tenant: Tenant) -> int:
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        return await tx.connection.fetchval(
            "SELECT count(*) FROM confide.container WHERE tenant_id = $1 AND kind = 'session'", tenant.id
        )


async def _exchanged(tenant: Tenant, job: str) -> bool:
    return bool((await tenant.admin.get(f"/v1/jobs/{job}")).json()["progress"].get("exchanged"))


async def _done(tenant: Tenant, job: str) -> bool:
    return bool((await tenant.admin.get(f"/v1/jobs/{job}")).json()["state"] == "done")
