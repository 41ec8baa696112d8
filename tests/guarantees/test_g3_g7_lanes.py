"""G3 and G7 where batches form: neighbours, broken connections, true outcomes, no lost update, gap-free numbers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from app.embedded import EmbeddedPostgres
from app.store.migrate import upgrade
from tests.cell import Cell, Tenant, running_cell
from tests.dialogue.calls import commit, done, load, refused, say, session, text, words_of
from tests.guarantees.proxy import Proxy

JSON = {"content-type": "application/json"}


async def gap_free(connection: Any) -> int:
    """Every writer's numbers of every tenant begin at 1 and have no gap; answers how many events there are."""
    rows = await connection.fetch(
        "SELECT writer, tenant_id, array_agg(seq ORDER BY seq) AS seqs FROM confide_audit.journal GROUP BY 1, 2"
    )
    for row in rows:
        assert row["seqs"] == list(range(1, len(row["seqs"]) + 1)), row["seqs"]
    return sum(len(row["seqs"]) for row in rows)


# ---------------------------------------------------------------- neighbours


async def test_g3_a_failing_item_harms_no_neighbour(cell: Cell, tenant: Tenant, superuser: Any) -> None:
    places = [await session(tenant.runtime) for _ in range(8)]
    other = await cell.tenant("other")
    far = await session(other.runtime)
    good = [tenant.runtime.put(f"/v1/sessions/{place}/context/c/k", content=b"x") for place in places]
    bad = [
        tenant.runtime.put(f"/v1/sessions/{places[0]}/context/c/k", content=b"y", headers={"if-match": '"foreign"'}),
        tenant.runtime.put(f"/v1/sessions/{far}/context/c/k", content=b"y"),
        tenant.runtime.post("/v1/commit", json={"session": places[1], "expected_commit": 99}),
        other.runtime.put(f"/v1/sessions/{places[2]}/context/c/k", content=b"y"),
    ]
    answers = await asyncio.gather(*good, *bad)
    assert [answer.status_code for answer in answers[:8]] == [201] * 8
    assert [answer.status_code for answer in answers[8:]] == [412, 404, 412, 404]
    await gap_free(superuser)


async def test_g3_what_the_database_refuses_fails_alone(cell: Cell, tenant: Tenant, superuser: Any) -> None:
    """A row that no constraint lets in breaks the batch's statement; the others are sent again one by one."""
    places = [await session(tenant.runtime) for _ in range(6)]
    await superuser.execute(
        "ALTER TABLE confide.context_object ADD CONSTRAINT refused CHECK (content_type <> 'x/refused') NOT VALID"
    )
    kinds = ["x/fine"] * 5 + ["x/refused"]
    answers = await asyncio.gather(
        *(
            tenant.runtime.put(f"/v1/sessions/{place}/context/c/k", content=b"x", headers={"content-type": kind})
            for place, kind in zip(places, kinds, strict=True)
        )
    )
    assert [answer.status_code for answer in answers] == [201] * 5 + [503]
    refused(await tenant.runtime.get(f"/v1/sessions/{places[5]}/context/c/k"), 404)
    await gap_free(superuser)


async def test_g3_a_client_that_goes_away_cancels_nobody_else(tenant: Tenant, superuser: Any) -> None:
    places = [await session(tenant.runtime) for _ in range(12)]
    tasks = [
        asyncio.create_task(tenant.runtime.put(f"/v1/sessions/{place}/context/c/k", content=b"x")) for place in places
    ]
    await asyncio.sleep(0.001)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 3:
            assert not isinstance(answer, BaseException)
            assert answer.status_code == 201
    for place in places:
        done(await tenant.runtime.put(f"/v1/sessions/{place}/context/c/k", content=b"again"))
    await gap_free(superuser)


async def test_g7_a_container_stands_once_in_a_batch(tenant: Tenant, superuser: Any) -> None:
    """Each write of a session is a commit of its own, although all of them wait at the same time."""
    place = await session(tenant.runtime)
    answers = await asyncio.gather(
        *(tenant.runtime.put(f"/v1/sessions/{place}/context/c/{n}", content=b"x") for n in range(40))
    )
    assert sorted(done(answer)["commit"] for answer in answers) == list(range(2, 42))
    twice = await superuser.fetchval(
        "SELECT count(*) FROM (SELECT 1 FROM confide_audit.journal WHERE action = 'context.write'"
        " GROUP BY writer, flush, container HAVING count(*) > 1) AS t"
    )
    assert twice == 0


# ---------------------------------------------------------------- no lost update


async def _until(attempt: Callable[[], Any]) -> int:
    """Repeat until the service says yes; answers how often it said 412."""
    for tries in range(500):
        if (await attempt()).status_code != 412:
            return tries
    pytest.fail("500 attempts lost")


@asynccontextmanager
async def two_workers(database: str, state: Path) -> AsyncIterator[tuple[Tenant, list[Any]]]:
    async with running_cell(database, state) as one, running_cell(database, state) as two:
        tenant = await one.tenant()
        yield tenant, [tenant.runtime, two.client(tenant.keys["runtime"])]


async def test_g7_32_writers_of_two_workers_count_without_a_loss(database: str, tmp_path: Path, superuser: Any) -> None:
    async with two_workers(database, tmp_path / "state") as (tenant, clients):
        url = f"/v1/sessions/{await session(tenant.runtime)}/context/c/n"
        await tenant.runtime.put(url, content=b"0", headers=JSON)

        async def count(client: Any) -> None:
            async def attempt() -> Any:
                now = await client.get(url)
                head = JSON | {"if-match": now.headers["etag"]}
                return await client.put(url, content=str(int(now.text) + 1).encode(), headers=head)

            for _ in range(2):
                await _until(attempt)

        await asyncio.gather(*(count(clients[n % 2]) for n in range(32)))
        assert (await tenant.runtime.get(url)).text == "64"
    await gap_free(superuser)


async def test_g7_32_mergers_of_two_workers_lose_no_field(database: str, tmp_path: Path) -> None:
    async with two_workers(database, tmp_path / "state") as (tenant, clients):
        url = f"/v1/sessions/{await session(tenant.runtime)}/context/c/n"

        async def merge(number: int) -> None:
            for _ in range(60):
                answer = await clients[number % 2].patch(url, content=f'{{"f{number}":1}}', headers=JSON)
                if answer.status_code != 503:
                    break
            assert answer.status_code in {200, 201}, answer.text

        await asyncio.gather(*(merge(n) for n in range(32)))
        assert (await tenant.runtime.get(url)).json() == {f"f{n}": 1 for n in range(32)}


async def test_g7_32_appenders_of_two_workers_lose_no_turn(database: str, tmp_path: Path, superuser: Any) -> None:
    async with two_workers(database, tmp_path / "state") as (tenant, clients):
        place = await session(tenant.runtime)
        refusals = 0

        async def append(number: int) -> None:
            nonlocal refusals
            for _ in range(60):
                turns = {"turns": [text(str(number))]}
                answer = await clients[number % 2].post(f"/v1/sessions/{place}/turns", json=turns)
                if answer.status_code != 503:
                    break
                refusals += 1
            assert answer.status_code == 200, answer.text

        await asyncio.gather(*(append(n) for n in range(32)))
        turns = done(await tenant.runtime.get(f"/v1/sessions/{place}/turns"))["turns"]
        assert [turn["number"] for turn in turns] == list(range(1, 33))
        assert sorted(words_of(turns), key=int) == [str(n) for n in range(32)]
        assert refusals == 0, "appends that only wait for each other are no outage"
    await gap_free(superuser)


async def test_g7_what_another_worker_removed_or_made_anew_is_seen(database: str, tmp_path: Path) -> None:
    async with two_workers(database, tmp_path / "state") as (_, (one, two)):
        body = {
            "external_id": "s",
            "create": {},
            "app": {"name": "a", "put": [{"collection": "c", "key": "k", "json": 1}]},
        }
        first = await commit(one, **body)
        assert (await load(two, external_id="s", app="a"))["app"]["id"] == first["app"]["id"]
        for path in (f"/v1/sessions/{first['session']['id']}", f"/v1/apps/{first['app']['id']}"):
            assert (await one.delete(path)).status_code == 204
        refused(await two.post("/v1/load", json={"external_id": "s"}), 404)
        second = await commit(one, **body)
        seen = await load(two, external_id="s", app="a")
        assert (seen["session"]["id"], seen["app"]["id"]) == (second["session"]["id"], second["app"]["id"])
        for path in (f"/v1/sessions/{second['session']['id']}", f"/v1/apps/{second['app']['id']}"):
            assert (await two.delete(path)).status_code == 204
        third = await commit(one, **body)
        assert third["session"]["created"] is True
        assert third["app"]["id"] != second["app"]["id"]


# ---------------------------------------------------------------- broken connections


@asynccontextmanager
async def proxied(database: str, state: Path) -> AsyncIterator[tuple[Proxy, Cell]]:
    parts = urlsplit(database)
    proxy = Proxy(parts.hostname or "", parts.port or 5432)
    await proxy.start()
    netloc = parts.netloc.rpartition("@")[0] + f"@127.0.0.1:{proxy.port}"
    try:
        async with running_cell(urlunsplit(parts._replace(netloc=netloc)), state) as cell:
            yield proxy, cell
    finally:
        await proxy.stop()


async def test_g7_an_answer_lost_after_the_commit_is_outcome_unknown_and_a_repeat_gets_it(
    database: str, tmp_path: Path, superuser: Any
) -> None:
    async with proxied(database, tmp_path / "state") as (proxy, cell):
        tenant = await cell.tenant()
        place = await session(tenant.runtime)
        head = {"idempotency-key": "k"}
        body = {"session": place, "turns": [text("once")]}
        proxy.swallow = 1
        problem = refused(await tenant.runtime.post("/v1/commit", json=body, headers=head), 503, "outcome-unknown")
        assert problem["retry_after"] >= 1
        assert await superuser.fetchval("SELECT count(*) FROM confide.turn") == 1
        again = done(await tenant.runtime.post("/v1/commit", json=body, headers=head))
        assert (again["session"]["first_turn"], again["session"]["commit"]) == (1, 2)
        assert await superuser.fetchval("SELECT count(*) FROM confide.turn") == 1
    await gap_free(superuser)


async def test_g7_killed_backends_yield_2xx_that_are_there_and_503_that_say_which(
    cell: Cell, tenant: Tenant, superuser: Any
) -> None:
    """pg_terminate_backend at many points of a load of writes; afterwards every answer is held against the rows."""
    places = [await session(tenant.runtime) for _ in range(6)]
    outcomes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    ended = False

    async def write(worker: int) -> None:
        number = 0
        while not ended:
            place, word = places[worker % 6], f"{worker}-{number}"
            number += 1
            answer = await tenant.runtime.post(f"/v1/sessions/{place}/turns", json={"turns": [text(word)]})
            slug = "ok" if answer.status_code == 200 else answer.json()["type"].rpartition(":")[2]
            outcomes[slug].append((place, word))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(write(n)) for n in range(12)]
    for number in range(12):
        await asyncio.sleep(0.08)
        while len(outcomes["ok"]) <= 2 * number:  # noqa: ASYNC110  a slow machine needs longer to come back
            await asyncio.sleep(0.01)
        await superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'confide%'"
            " AND datname = current_database() AND pid <> pg_backend_pid()"
        )
    ended = True
    await asyncio.gather(*tasks)
    assert len(outcomes["ok"]) > 20
    assert set(outcomes) <= {"ok", "unavailable", "outcome-unknown"}
    stored: set[tuple[str, str]] = set()
    for place in places:
        last = 0
        while True:
            page = done(await tenant.runtime.get(f"/v1/sessions/{place}/turns", params={"after": last, "limit": 1000}))
            numbers = [turn["number"] for turn in page["turns"]]
            assert numbers == list(range(last + 1, last + 1 + len(numbers)))
            words = [(place, word) for word in words_of(page["turns"])]
            assert not stored & set(words)
            stored |= set(words)
            if not page.get("more"):
                break
            last = numbers[-1]
    assert set(outcomes["ok"]) <= stored, "acknowledged, but not there"
    assert not set(outcomes["unavailable"]) & stored, "refused as not stored, but there"
    assert stored <= set(outcomes["ok"]) | set(outcomes["outcome-unknown"])
    await gap_free(superuser)


async def test_g3_no_database_is_503_with_retry_after_and_recovers_by_itself(database: str, tmp_path: Path) -> None:
    async with proxied(database, tmp_path / "state") as (proxy, cell):
        tenant = await cell.tenant()
        place = await session(tenant.runtime)
        await say(tenant.runtime, place, "before")
        proxy.refuse = True
        proxy.abort()
        answers = await asyncio.gather(
            tenant.runtime.get(f"/v1/sessions/{place}/turns"),
            tenant.runtime.post(f"/v1/sessions/{place}/turns", json={"turns": [text("lost")]}),
            tenant.runtime.post("/v1/load", json={"session": place, "turns": {"last": 3}}),
        )
        for answer in answers:
            assert "before" not in str(refused(answer, 503))
            assert int(answer.headers["retry-after"]) >= 1
        proxy.refuse = False
        await asyncio.sleep(0.2)
        await say(tenant.runtime, place, "after")
        turns = done(await tenant.runtime.get(f"/v1/sessions/{place}/turns"))["turns"]
        assert words_of(turns)[0] == "before"
        assert words_of(turns)[-1] == "after"


async def test_g7_a_database_killed_in_mid_commit_never_acknowledges_what_is_gone(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    url = own_postgres.superuser_url()
    await asyncio.to_thread(upgrade, url)
    async with running_cell(url, tmp_path / "state", lane_reconnect_seconds=20.0) as cell:
        tenant = await cell.tenant()
        place = await session(tenant.runtime)
        acknowledged: list[str] = []

        async def write(worker: int) -> None:
            for number in range(25):
                word = f"{worker}-{number}"
                answer = await tenant.runtime.post(f"/v1/sessions/{place}/turns", json={"turns": [text(word)]})
                assert answer.status_code in {200, 503}, answer.text
                if answer.status_code == 200:
                    acknowledged.append(word)

        tasks = [asyncio.create_task(write(n)) for n in range(6)]
        while len(acknowledged) < 12:  # noqa: ASYNC110  others append to it
            await asyncio.sleep(0.002)
        os.kill(own_postgres.postmaster_pid, signal.SIGKILL)
        await asyncio.gather(*tasks)
        turns = done(await tenant.runtime.get(f"/v1/sessions/{place}/turns?limit=1000"))["turns"]
        assert len(acknowledged) > 30
        assert set(acknowledged) <= set(words_of(turns))
        connection = await asyncpg.connect(url)
        try:
            assert await gap_free(connection) >= len(acknowledged)
        finally:
            await connection.close()
