"""Requests to a container that is too large to wait for, while its index key is exchanged: they move what they need."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from app.services.audit_cross_check import cross_check
from app.services.key_rekey import Rekey
from app.services.rekey_containers import Mover
from app.store import rekey as rows
from tests.cell import REGION, Cell, Tenant
from tests.keys.waiting import ended, until

COUNT = 12


class Large:
    """A session of many pieces in a rekey whose job waits, so that nobody moves anything but requests."""

    def __init__(self, pair: tuple[Cell, Cell], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rows, "OBJECTS", 2)
        monkeypatch.setattr(rows, "TURNS", 2)
        monkeypatch.setattr(rows, "MARGIN", 1)
        self.cell, self.other = pair
        self.go = asyncio.Event()
        real = Rekey._some

        async def some(*arguments: Any) -> bool:
            await self.go.wait()
            return await real(*arguments)

        monkeypatch.setattr(Rekey, "_some", some)

    async def begin(self) -> None:
        self.tenant: Tenant = await self.cell.tenant()
        self.sides = [self.tenant.runtime, self.other.client(self.tenant.keys["runtime"])]
        puts = [{"collection": "c", "key": f"k{n:02}", "json": n, "tags": [f"t{n % 2}"]} for n in range(COUNT)]
        body = {"external_id": "s", "create": {"labels": ["a"]}, "put": puts, "turns": [{"json": n} for n in range(9)]}
        made = await self.tenant.runtime.post("/v1/commit", json=body)
        self.session = UUID(made.raise_for_status().json()["session"]["id"])
        self.job = (await self.tenant.admin.post("/v1/keys/rekey")).json()["job"]

        async def exchanged() -> bool:
            return bool((await self.tenant.admin.get(f"/v1/jobs/{self.job}")).json()["progress"].get("exchanged"))

        await until(exchanged)

    async def moved(self) -> tuple[int, bool]:
        """How many objects have been, and whether all of the container has."""
        async with self.cell.parts.services.ledger.transaction(self.tenant.id) as tx:
            row = await tx.connection.fetchrow(
                "SELECT c.index_number, (SELECT count(*) FROM confide.context_object o WHERE o.tenant_id = c.tenant_id"
                " AND o.container_id = c.id AND o.ck_generation = c.ck_generation) AS objects"
                " FROM confide.container c WHERE c.tenant_id = $1 AND c.id = $2",
                self.tenant.id,
                self.session,
            )
        return (row["objects"] if row["index_number"] is not None else 0), row["index_number"] == 2

    async def load(self, side: int, *context: dict[str, Any]) -> list[int]:
        body = {"external_id": "s", "context": list(context), "turns": {"last": 20}}
        answer = await self.sides[side].post("/v1/load", json=body)
        assert answer.status_code == 200, answer.text
        return sorted(each["json"] for each in answer.json()["session"]["context"])

    async def commit(self, side: int, **body: Any) -> Any:
        return await self.sides[side].post("/v1/commit", json={"external_id": "s", **body})

    async def end(self) -> None:
        self.go.set()
        await ended(self.tenant, self.job)
        assert (await self.moved())[1]


@pytest.fixture
async def large(pair: tuple[Cell, Cell], monkeypatch: pytest.MonkeyPatch) -> Large:
    made = Large(pair, monkeypatch)
    await made.begin()
    return made


async def test_requests_find_and_change_everything_while_most_of_it_stands_under_the_old_key(large: Large) -> None:
    places = [f"/v1/sessions/{large.session}/context/c/k{n:02}" for n in range(COUNT)]
    one = await large.sides[0].get(places[7])
    assert (one.status_code, one.json()) == (200, 7)
    count, everything = await large.moved()
    assert count <= 3
    assert not everything, "a request waited for a large container"
    assert await large.load(1, {"collection": "c", "key": "k05"}, {"newest": 2}) == [5, 10, 11]
    assert (await large.sides[1].put(places[8], json=8, headers={"if-none-match": "*"})).status_code in {200, 412}
    changed = await large.sides[1].put(places[7], json=70, headers={"if-match": one.headers["etag"]})
    assert changed.status_code == 200, changed.text
    assert (await large.sides[0].put(places[7], json=71, headers={"if-match": one.headers["etag"]})).status_code == 412
    assert (await large.sides[0].delete(places[6])).status_code == 200
    assert (await large.sides[1].get(places[6])).status_code == 404
    assert (await large.commit(0, put=[{"collection": "c", "key": "new", "json": 99}], turns=[{"json": 9}])).is_success
    assert not (await large.moved())[1]
    wanted = sorted({*range(COUNT)} - {6, 7} | {70, 99})
    for side in (0, 1):
        assert await large.load(side, {}) == wanted
        assert await large.load(side, {"tag": "t0"}) == [0, 2, 4, 8, 10]
    await large.end()
    for side in (0, 1):
        assert await large.load(side, {"collection": "c"}) == wanted
    report = await cross_check(large.cell.parts.services.audit.pools[0], large.tenant.id, REGION)
    assert report.findings == [], "the log doesn't follow what was moved piecemeal"


async def test_what_may_touch_all_of_it_moves_all_of_it(large: Large) -> None:
    keep = {"collection": "c", "keep_newest": 3}
    assert (await large.commit(1, delete=[keep])).is_success
    assert (await large.moved())[1]
    assert await large.load(0, {}) == [9, 10, 11]
    await large.end()


@pytest.mark.parametrize("gone", [1, 3])
async def test_a_list_reaches_as_far_as_it_should_when_something_goes_between(
    large: Large, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    """What was moved for a list is removed by somebody else before it is read: then the list goes further down."""
    real: Callable[..., Awaitable[Any]] = Mover.bring_part
    tries = 0

    async def bring_part(self: Mover, *arguments: Any) -> Any:
        nonlocal tries
        reach = await real(self, *arguments)
        if self is large.cell.parts.services.keys.rekey._mover:
            tries += 1
            if tries == 1:
                names = [{"collection": "c", "key": f"k{COUNT - 1 - n:02}"} for n in range(gone)]
                assert (await large.commit(1, delete=names)).is_success
        return reach

    monkeypatch.setattr(Mover, "bring_part", bring_part)
    assert await large.load(0, {"newest": 3}) == [COUNT - gone - 3 + n for n in range(3)]
    assert tries == (1 if gone == 1 else 2), "one object more than the list had was moved"
    assert not (await large.moved())[1]
    await large.end()
