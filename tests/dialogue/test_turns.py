"""Turns: numbers without gaps, pages both ways, pop, clear; and branches."""

from __future__ import annotations

import asyncio

import pytest

from tests.cell import Cell, Tenant
from tests.dialogue.calls import commit, done, load, name, refused, say, session, sql, text, words_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = [f"w{n}" for n in range(1, 10)]


async def talk(tenant: Tenant) -> tuple[str, str]:
    place = await session(tenant.runtime, external_id=name())
    await say(tenant.runtime, place, *WORDS)
    return place, f"/v1/sessions/{place}/turns"


async def test_turns_get_the_next_numbers(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    assert (await say(tenant.runtime, place, "a", "b"))["last_turn"] == 2
    again = await say(tenant.runtime, place, "c")
    assert (again["first_turn"], again["last_turn"]) == (3, 3)
    turns = done(await tenant.runtime.get(f"/v1/sessions/{place}/turns"))["turns"]
    assert [(turn["number"], turn["json"]["text"]) for turn in turns] == [(1, "a"), (2, "b"), (3, "c")]
    assert done(await tenant.runtime.get(f"/v1/sessions/{place}"))["turns"] == 3


async def test_a_turn_keeps_its_bytes_and_type(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    turns = [{"base64": "AAEC/w==", "content_type": "audio/opus"}, {"base64": ""}, {"json": [1.0, "x"]}]
    done(await tenant.runtime.post(f"/v1/sessions/{place}/turns", json={"turns": turns}))
    got = done(await tenant.runtime.get(f"/v1/sessions/{place}/turns"))["turns"]
    assert [(t.get("base64"), t.get("json"), t["content_type"]) for t in got] == [
        ("AAEC/w==", None, "audio/opus"),
        ("", None, "application/octet-stream"),
        (None, [1.0, "x"], "application/json"),
    ]


@pytest.mark.parametrize(
    ("query", "expected", "more"),
    [
        ("", WORDS, False),
        ("limit=4", WORDS[:4], True),
        ("after=0&limit=9", WORDS, False),
        ("after=3&limit=2", WORDS[3:5], True),
        ("after=7", WORDS[7:], False),
        ("after=9", [], False),
        ("after=999", [], False),
        ("before=1", [], False),
        ("before=4", WORDS[:3], False),
        ("before=9&limit=3", WORDS[5:8], True),
        ("before=99&limit=3", WORDS[6:], True),
        ("last=2", WORDS[7:], True),
        ("last=9", WORDS, False),
        ("last=1000", WORDS, False),
    ],
)
async def test_turns_page_both_ways(tenant: Tenant, query: str, expected: list[str], more: bool) -> None:
    _, url = await talk(tenant)
    page = done(await tenant.runtime.get(f"{url}?{query}"))
    assert words_of(page["turns"]) == expected
    assert page.get("more", False) == more


async def test_paging_backwards_and_forwards_meets_every_turn_once(tenant: Tenant) -> None:
    _, url = await talk(tenant)
    down: list[str] = []
    query: dict[str, int] = {"last": 2}
    while True:
        page = done(await tenant.runtime.get(url, params=query))
        down = words_of(page["turns"]) + down
        if not page.get("more"):
            break
        query = {"before": page["turns"][0]["number"], "limit": 2}
    assert down == WORDS


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("after=1&before=3", 422),
        ("last=1&after=1", 422),
        ("last=0", 400),
        ("last=1001", 400),
        ("limit=0", 400),
        ("before=0", 400),
        ("after=-1", 400),
        ("after=x", 400),
        ("after=9007199254740992", 400),
        ("page=1", 400),
    ],
)
async def test_a_bad_page_is_refused(tenant: Tenant, query: str, status: int) -> None:
    _, url = await talk(tenant)
    refused(await tenant.runtime.get(f"{url}?{query}"), status)


async def test_a_page_of_large_turns_says_that_there_is_more(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}/turns"
    for _ in range(10):
        done(await tenant.runtime.post(url, json={"turns": [{"json": "x" * 1_000_000}]}))
    first = done(await tenant.runtime.get(url))
    assert first["more"] is True
    seen, numbers = first, [turn["number"] for turn in first["turns"]]
    while seen.get("more"):
        seen = done(await tenant.runtime.get(url, params={"after": numbers[-1]}))
        numbers += [turn["number"] for turn in seen["turns"]]
    assert numbers == list(range(1, 11))


# ---------------------------------------------------------------- pop and clear


async def test_pop_answers_what_it_removes_newest_first(cell: Cell, tenant: Tenant) -> None:
    place, url = await talk(tenant)
    popped = done(await tenant.runtime.post(f"{url}/pop", json={"count": 2}))
    assert words_of(popped["turns"]) == ["w9", "w8"]
    left = done(await tenant.runtime.get(url, params={"last": 2}))["turns"]
    assert [turn["number"] for turn in left] == [6, 7]
    rows = await sql(
        cell, "SELECT number, body, removed_at FROM confide.turn WHERE container_id = $1 ORDER BY 1", place
    )
    assert [row["number"] for row in rows] == list(range(1, 10))
    assert [row["body"] is None and row["removed_at"] is not None for row in rows] == [False] * 7 + [True] * 2


async def test_numbers_of_removed_turns_are_never_used_again(tenant: Tenant) -> None:
    place, url = await talk(tenant)
    done(await tenant.runtime.post(f"{url}/pop", json={"count": 4}))
    assert (await say(tenant.runtime, place, "new"))["first_turn"] == 10
    assert done(await tenant.runtime.delete(url))["removed"] == 6
    assert done(await tenant.runtime.get(url))["turns"] == []
    assert (await say(tenant.runtime, place, "newer"))["first_turn"] == 11
    assert words_of(done(await tenant.runtime.get(url))["turns"]) == ["newer"]


async def test_pop_takes_one_where_nothing_is_said_and_no_more_than_there_are(tenant: Tenant) -> None:
    _, url = await talk(tenant)
    assert words_of(done(await tenant.runtime.post(f"{url}/pop", json={}))["turns"]) == ["w9"]
    assert len(done(await tenant.runtime.post(f"{url}/pop", json={"count": 256}))["turns"]) == 8
    assert done(await tenant.runtime.post(f"{url}/pop", json={"count": 1}))["turns"] == []


@pytest.mark.parametrize("body", [{"count": 0}, {"count": -1}, {"count": 257}, {"count": "1"}, {"n": 1}, []])
async def test_a_bad_pop_removes_nothing(tenant: Tenant, body: object) -> None:
    _, url = await talk(tenant)
    refused(await tenant.runtime.post(f"{url}/pop", json=body), 422)
    assert len(done(await tenant.runtime.get(url))["turns"]) == 9


async def test_concurrent_pops_never_answer_a_turn_twice(tenant: Tenant) -> None:
    _, url = await talk(tenant)
    answers = await asyncio.gather(*(tenant.runtime.post(f"{url}/pop", json={}) for _ in range(12)))
    words = [word for answer in answers for word in words_of(done(answer)["turns"])]
    assert sorted(words) == WORDS


# ---------------------------------------------------------------- append


async def test_expected_last_lets_one_of_two_through(tenant: Tenant) -> None:
    place, url = await talk(tenant)
    done(await tenant.runtime.post(url, json={"turns": [text("x")], "expected_last": 9}))
    refused(await tenant.runtime.post(url, json={"turns": [text("y")], "expected_last": 9}), 412)
    refused(await tenant.runtime.post(url, json={"turns": [text("y")], "expected_last": 11}), 412)
    answers = await asyncio.gather(
        *(tenant.runtime.post(url, json={"turns": [text("z")], "expected_last": 10}) for _ in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
    assert done(await tenant.runtime.get(f"/v1/sessions/{place}"))["turns"] == 11


async def test_g7_many_appenders_lose_nothing(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}/turns"
    answers = await asyncio.gather(*(tenant.runtime.post(url, json={"turns": [text(str(n))]}) for n in range(32)))
    assert {answer.status_code for answer in answers} == {200}
    turns = done(await tenant.runtime.get(url))["turns"]
    assert [turn["number"] for turn in turns] == list(range(1, 33))
    assert sorted(words_of(turns), key=int) == [str(n) for n in range(32)]
    assert {answer.json()["first_turn"] for answer in answers} == set(range(1, 33))


@pytest.mark.parametrize(
    "body",
    [
        {"turns": []},
        {},
        {"turns": [{}]},
        {"turns": [{"json": 1, "base64": "YQ=="}]},
        {"turns": [{"json": 1, "role": "user"}]},
        {"turns": [{"json": 1, "content_type": "x"}]},
        {"turns": [{"base64": "*"}]},
        {"turns": [{"json": 1}] * 257},
        {"turns": [{"json": 1}], "expected_last": -1},
        {"turns": [{"json": 1}], "expected_last": 1.5},
    ],
)
async def test_a_bad_append_is_refused_whole(tenant: Tenant, body: object) -> None:
    _, url = await talk(tenant)
    refused(await tenant.runtime.post(url, json=body), 422)
    assert len(done(await tenant.runtime.get(url))["turns"]) == 9


# ---------------------------------------------------------------- branch


async def _story(tenant: Tenant) -> str:
    """Three commits: a turn each, one object of its own each, and one that each changes."""
    own = name()
    for n in range(1, 4):
        await commit(
            tenant.runtime,
            external_id=own,
            create={},
            turns=[text(f"t{n}")],
            put=[
                {"collection": "c", "key": str(n), "json": n, "tags": ["t"]},
                {"collection": "s", "key": "now", "json": n},
            ],
        )
    found = await load(tenant.runtime, external_id=own)
    place: str = found["session"]["id"]
    return place


async def test_a_branch_up_to_a_commit_holds_what_was_there(tenant: Tenant) -> None:
    source = await _story(tenant)
    made = done(await tenant.runtime.post(f"/v1/sessions/{source}/branch", json={"commit": 2}), 201)
    assert (made["objects"], made["turns"], made["omitted"]) == (2, 2, 2)
    copy = await load(tenant.runtime, session=made["session"]["id"], context=[{}], turns={"last": 9})
    assert words_of(copy["turns"]) == ["t1", "t2"]
    assert {(each["key"], each["json"], *each["tags"]) for each in copy["session"]["context"]} == {
        ("1", 1, "t"),
        ("2", 2, "t"),
    }


async def test_a_branch_up_to_a_turn_ends_there(tenant: Tenant) -> None:
    source = await _story(tenant)
    made = done(await tenant.runtime.post(f"/v1/sessions/{source}/branch", json={"turn": 1}), 201)
    copy = await load(tenant.runtime, session=made["session"]["id"], context=[{}], turns={"last": 9})
    assert words_of(copy["turns"]) == ["t1"]
    assert [each["key"] for each in copy["session"]["context"]] == ["1"]  # what the second turn brought isn't there


async def test_a_branch_and_its_source_go_their_own_ways(cell: Cell, tenant: Tenant) -> None:
    source = await _story(tenant)
    own = name()
    body = {"external_id": own, "labels": ["copy"], "ttl": {"idle": 99}}
    made = done(await tenant.runtime.post(f"/v1/sessions/{source}/branch", json=body), 201)["session"]
    assert (made["external_id"], made["labels"], made["ttl"]) == (own, ["copy"], {"idle": 99})
    await say(tenant.runtime, made["id"], "only here")
    done(await tenant.runtime.put(f"/v1/sessions/{source}/context/c/1", content=b"changed"))
    assert done(await tenant.runtime.get(f"/v1/sessions/{source}"))["turns"] == 3
    assert (await tenant.runtime.get(f"/v1/sessions/{made['id']}/context/c/1")).content == b"1"
    assert (await tenant.runtime.delete(f"/v1/sessions/{source}")).status_code == 204
    copy = await load(tenant.runtime, external_id=own, context=[{}], turns={"last": 9})
    assert len(copy["session"]["context"]) == 4
    assert words_of(copy["turns"]) == ["t1", "t2", "t3", "only here"]
    assert len(await sql(cell, "SELECT 1 FROM confide.container_key WHERE container_id = $1", made["id"])) == 1


async def test_a_branch_to_a_taken_name_is_409_also_when_two_race(tenant: Tenant) -> None:
    source = await _story(tenant)
    own = name()
    url = f"/v1/sessions/{source}/branch"
    answers = await asyncio.gather(*(tenant.runtime.post(url, json={"external_id": own}) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5
    assert done(await tenant.runtime.post("/v1/sessions", json={"external_id": own}), 200)["turns"] == 3
    refused(await tenant.runtime.post(url, json={"external_id": own}), 409, "conflict")


@pytest.mark.parametrize(
    "body", [{"turn": 1, "commit": 1}, {"turn": -1}, {"commit": "1"}, {"until": 1}, {"external_id": ""}]
)
async def test_a_bad_branch_is_refused(tenant: Tenant, body: object) -> None:
    source = await session(tenant.runtime)
    refused(await tenant.runtime.post(f"/v1/sessions/{source}/branch", json=body), 422)


async def test_a_large_session_is_branched_whole(tenant: Tenant) -> None:
    source = await session(tenant.runtime)
    for start in range(0, 1100, 220):
        put = [{"collection": "c", "key": str(n), "json": n} for n in range(start, start + 220)]
        await commit(tenant.runtime, session=source, put=put, turns=[text(str(n)) for n in range(start, start + 220)])
    made = done(await tenant.runtime.post(f"/v1/sessions/{source}/branch", json={}), 201)
    assert (made["objects"], made["turns"], made["omitted"]) == (1100, 1100, 0)
